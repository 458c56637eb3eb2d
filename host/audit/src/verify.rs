//! Verifying a bundle, or the rows of a database as if they were one: line by line, in bounded memory, each fault with its place.
//!
//! A fault never ends the work: the verifier names it, takes the entry as it stands and goes on, so that a report names all that is
//! wrong and not only what comes first.

mod entries;
mod fault;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::fault::{Fault, FaultKind};
use crate::bundle::{self, Coverage, Header, LINE_BYTES_MAX, Line, Running};
use crate::chain;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::hash::Hash;
use crate::key::VerifierKey;
use crate::merkle::{self, Edge};
use crate::note::{Note, NoteError};
use crate::record::{Disposal, Token, genesis};
use crate::taxonomy::Category;

/// How many faults a report names one by one; the rest are counted.
pub const FAULTS_NAMED_MAX: usize = 100;

/// What the verifier believes beforehand, and what it asks for.
#[derive(Clone, Debug, Default)]
pub struct Expectation {
    /// Keys of the log that came by another way than the bundle: nothing counts that does not lead back to one of them. Without any, the
    /// bundle's own are used, and the report says so.
    pub keys: Vec<VerifierKey>,
    /// Checkpoints (signed notes) that were kept outside: the bundle must agree with each.
    pub kept: Vec<String>,
    /// The organization whose log it must be.
    pub org: Option<Token>,
    /// Where an earlier verification ended: the bundle must go on from there.
    pub resume: Option<Resume>,
    /// Whether there must be a last line that signs the file. Rows that are read from a database have none.
    pub end: bool,
}

/// Where a verification ended, to go on from later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resume {
    pub org: Token,
    /// How many entries were verified.
    pub size: u64,
    /// The leaf hash of the last one.
    pub last: Hash,
    /// The roots of the tree's full subtrees, largest first.
    pub edge: Vec<Hash>,
    /// The verifier key in force.
    pub key: String,
    /// The keys known beforehand that signed what was verified, then or in the verifications before it. A state is worth no more than
    /// what was known when it was written.
    #[serde(default)]
    pub known: Vec<String>,
}

/// What was verified, and what is wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub org: Option<Token>,
    pub coverage: Option<Coverage>,
    /// The number of the first entry that the bundle holds.
    pub first: Option<u64>,
    /// The number of the last entry.
    pub last: Option<u64>,
    pub entries: u64,
    pub payloads_shown: u64,
    pub payloads_withheld: u64,
    /// Payloads that were disposed of, by policy and by the entry that says so.
    pub expired: Vec<Expired>,
    pub checkpoints: u64,
    /// The size and root of the last checkpoint that held.
    pub checkpoint: Option<(u64, Hash)>,
    /// Kept checkpoints that the bundle agrees with, by size.
    pub kept_agreed: Vec<u64>,
    /// The verifier keys that signed.
    pub keys: Vec<String>,
    /// Whether a key that was known beforehand signed here. Otherwise the bundle shows no more than that it fits together.
    pub key_known: bool,
    /// Entries whose type this program does not know; their proofs were checked all the same.
    pub unknown_types: u64,
    /// Entries behind the last checkpoint: chained and signed, not yet under a root.
    pub after_checkpoint: u64,
    /// Of a database: what was recorded and has no place in the log yet.
    pub waiting: u64,
    /// The first faults, in the order of the bundle.
    pub faults: Vec<Fault>,
    pub faults_total: u64,
    /// Where a later verification goes on; none for a selection or where something is wrong.
    pub resume: Option<Resume>,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        self.faults_total == 0
    }

    /// The first entry that something is wrong with, by number.
    #[must_use]
    pub fn first_bad_entry(&self) -> Option<u64> {
        self.faults.iter().filter_map(|fault| fault.entry).min()
    }
}

/// Payloads disposed of by one entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Expired {
    pub policy: Token,
    /// The entry that says so.
    pub by: u64,
    pub payloads: u64,
}

/// What an entry of the compliance kind must explain, gathered until it comes by.
#[derive(Default)]
struct Owed {
    payloads: u64,
    /// For each category the latest moment of an entry without payload, and that entry.
    latest: BTreeMap<Category, (crate::record::Moment, u64)>,
    /// The entries, as far as a disposal could name them one by one.
    entries: Vec<u64>,
    /// The line of the first of them.
    line: u64,
}

struct Kept {
    checkpoint: Checkpoint,
    agreed: bool,
}

/// Verifies the lines of a bundle.
pub struct Verifier {
    expectation: Expectation,
    running: Running,
    header: Option<Header>,
    origin: String,
    report: Report,
    /// The number that the next entry of a range must have.
    next: u64,
    /// The leaf hash of the entry before. None where it is not known any more.
    last: Option<Hash>,
    /// The tree so far. None in a selection, and behind a gap.
    edge: Option<Edge>,
    /// The size up to which a root agreed.
    agreed: u64,
    /// Keys whose signatures count.
    keys: Vec<VerifierKey>,
    /// Keys of which a signature was checked and held.
    signed: Vec<VerifierKey>,
    /// Those of them, in verifications before this one as well, that were known beforehand.
    known: Vec<String>,
    in_force: Option<VerifierKey>,
    /// Checkpoints that were kept, by size.
    kept: BTreeMap<u64, Vec<Kept>>,
    owed: BTreeMap<(u64, Token), Owed>,
    disposals: BTreeMap<u64, Disposal>,
    /// The checkpoint that a selection's paths lead to.
    current: Option<Checkpoint>,
    /// The number of the last entry from behind the range.
    later: Option<u64>,
    /// The keys that such entries brought in, the last one last.
    later_keys: Vec<VerifierKey>,
    ended: bool,
}

impl Verifier {
    #[must_use]
    pub fn new(expectation: Expectation) -> Self {
        let report = Report {
            org: None,
            coverage: None,
            first: None,
            last: None,
            entries: 0,
            payloads_shown: 0,
            payloads_withheld: 0,
            expired: Vec::new(),
            checkpoints: 0,
            checkpoint: None,
            kept_agreed: Vec::new(),
            keys: Vec::new(),
            key_known: false,
            unknown_types: 0,
            after_checkpoint: 0,
            waiting: 0,
            faults: Vec::new(),
            faults_total: 0,
            resume: None,
        };
        Self {
            expectation,
            running: Running::default(),
            header: None,
            origin: String::new(),
            report,
            next: 0,
            last: None,
            edge: None,
            agreed: 0,
            keys: Vec::new(),
            signed: Vec::new(),
            known: Vec::new(),
            in_force: None,
            kept: BTreeMap::new(),
            owed: BTreeMap::new(),
            disposals: BTreeMap::new(),
            current: None,
            later: None,
            later_keys: Vec::new(),
            ended: false,
        }
    }

    /// Takes in the next line, without its line break.
    pub fn line(&mut self, text: &str) {
        if self.ended {
            self.fault(None, FaultKind::BehindTheEnd);
            return;
        }
        let line = if text.len() > LINE_BYTES_MAX {
            Err(format!("longer than {LINE_BYTES_MAX} bytes"))
        } else {
            serde_json::from_str::<Line>(text).map_err(|error| error.to_string())
        };
        let parsed = match line {
            Ok(line) => line,
            Err(why) => {
                self.fault(None, FaultKind::Malformed(why));
                self.running.add(text);
                self.last = None;
                return;
            }
        };
        // One text for each line: another spelling of the same would be a change that nothing else shows.
        if parsed.to_text() != text {
            self.fault(None, FaultKind::Spelling);
        }
        if self.header.is_none() && !matches!(parsed, Line::Log(_)) {
            self.fault(None, FaultKind::Header("the first line does not say whose log it is"));
            self.take_header(&unknown_log());
        }
        match parsed {
            Line::Log(header) => self.log(header),
            // Nothing stands behind what comes later but the end.
            Line::Entry(_) | Line::Checkpoint(_) if self.later.is_some() => {
                self.fault(None, FaultKind::Header("the range goes on behind entries that are later than it"));
            }
            Line::Entry(entry) => self.entry(entry),
            Line::Later(entry) => self.later_entry(&entry),
            Line::Checkpoint(note) => self.checkpoint(&note),
            Line::Consistency { from, to, path } => self.consistency(from, to, &path),
            Line::End(note) => {
                self.end(&note);
                return;
            }
        }
        self.running.add(text);
    }

    /// Takes in a line that is not UTF-8 text.
    pub fn unreadable_line(&mut self) {
        self.fault(None, FaultKind::Malformed("not UTF-8".to_owned()));
        self.running.add("");
        self.last = None;
    }

    /// Tells that what a database searches and shows of an entry is not what the entry says.
    pub fn differs(&mut self, entry: u64, what: &'static str) {
        self.fault(Some(entry), FaultKind::Index { what });
    }

    /// Whether a key of this text signs here, or is brought in by an entry. True of every key where no entry was looked at.
    #[must_use]
    pub fn has_key(&self, text: &str) -> bool {
        let is_it = |key: &VerifierKey| key.to_string() == text;
        self.next == 0 || self.keys.iter().chain(&self.later_keys).chain(&self.in_force).any(is_it)
    }

    /// Tells that an entry's row is there and cannot be read: it is named, and the verifier goes on behind it, where links and roots
    /// begin anew.
    pub fn unreadable_entry(&mut self, entry: u64, why: &impl std::fmt::Display) {
        if entry > self.next {
            self.fault(Some(self.next), FaultKind::Missing { from: self.next, to: entry - 1 });
        }
        self.fault(Some(entry), FaultKind::Unreadable { why: why.to_string() });
        self.next = entry.saturating_add(1).max(self.next);
        (self.last, self.edge) = (None, None);
    }

    /// Tells that a database shows an entry of which the log knows nothing.
    pub fn unplaced(&mut self, id: &impl std::fmt::Display) {
        self.fault(None, FaultKind::Unplaced { id: id.to_string() });
    }

    /// Tells of an entry that waits for its place.
    pub fn waits(&mut self) {
        self.report.waiting += 1;
    }

    /// Tells how many entries a database says that there are: what is missing at the end is named.
    pub fn ends_at(&mut self, size: u64) {
        if self.next < size {
            self.fault(Some(self.next), FaultKind::Missing { from: self.next, to: size - 1 });
        }
    }

    fn fault(&mut self, entry: Option<u64>, kind: FaultKind) {
        self.fault_at(self.running.lines() + 1, entry, kind);
    }

    fn fault_at(&mut self, line: u64, entry: Option<u64>, kind: FaultKind) {
        self.report.faults_total += 1;
        if self.report.faults.len() < FAULTS_NAMED_MAX {
            self.report.faults.push(Fault { line, entry, kind });
        }
    }

    fn log(&mut self, header: Header) {
        if self.header.is_some() {
            self.fault(None, FaultKind::Header("there is a second first line"));
            return;
        }
        if header.v != bundle::VERSION {
            self.fault(None, FaultKind::Header("the bundle has a format that this program does not know"));
        }
        if header.origin != chain::origin(&header.org) {
            self.fault(None, FaultKind::Header("the origin is not that of the organization's log"));
        }
        if self.expectation.org.as_ref().is_some_and(|org| *org != header.org) {
            self.fault(None, FaultKind::OtherLog);
        }
        self.take_header(&header);
        let mut said = Vec::new();
        for key in &header.keys {
            match key.parse::<VerifierKey>() {
                Ok(key) if key.name() == self.origin => said.push(key),
                Ok(_) | Err(_) => self.fault(None, FaultKind::Header("a key is not one of this log's")),
            }
        }
        match header.coverage {
            Coverage::Range => self.begin_range(&header, &said),
            Coverage::Selection => {
                if header.first != 0 || header.prev != genesis(&header.org) || !header.edge.is_empty() {
                    self.fault(None, FaultKind::Header("a selection begins nowhere"));
                }
                // Whoever knows a key beforehand takes no word of the bundle's for another: anybody can write a first line.
                let known = &self.expectation.keys;
                let counting = if known.is_empty() { said.clone() } else { known.clone() };
                self.keys = counting.into_iter().filter(|key| key.name() == self.origin).collect();
            }
        }
        for note in std::mem::take(&mut self.expectation.kept) {
            // What was kept came by another way, and its root is what counts: the keys only say whether it is of this log.
            let mut keys = self.expectation.keys.clone();
            keys.extend(said.iter().cloned());
            self.keep(&note, &keys);
        }
        // A range that begins where a checkpoint was kept: its edge has that root, or it is another log's.
        self.compare_kept();
        self.header = Some(header);
    }

    fn take_header(&mut self, header: &Header) {
        self.origin.clone_from(&header.origin);
        self.report.org = Some(header.org.clone());
        self.report.coverage = Some(header.coverage);
        self.header = Some(header.clone());
    }

    fn begin_range(&mut self, header: &Header, said: &[VerifierKey]) {
        self.next = header.first;
        self.agreed = header.first;
        self.last = Some(header.prev);
        self.edge = Edge::from_roots(header.first, header.edge.clone());
        if self.edge.is_none() {
            self.fault(None, FaultKind::Header("the tree's edge does not fit to where the range begins"));
        }
        match (header.first, said) {
            (0, []) => {
                if header.prev != genesis(&header.org) {
                    self.fault(None, FaultKind::Header("the log does not begin with its genesis"));
                }
            }
            (0, _) => self.fault(None, FaultKind::Header("a log's first entry says its key, not the header")),
            (_, [key]) => {
                self.in_force = Some(key.clone());
                self.learn(key.clone());
            }
            (_, _) => self.fault(None, FaultKind::Header("a range begins under exactly one key")),
        }
        let Some(resume) = &self.expectation.resume else { return };
        let same = resume.org == header.org
            && resume.size == header.first
            && resume.last == header.prev
            && resume.edge == header.edge
            && header.keys.iter().all(|key| *key == resume.key);
        if same && header.first > 0 {
            // What was verified before leads from a key that was known then to the one in force. Where keys are known now, it must have
            // been one of these.
            let pinned = &self.expectation.keys;
            let counts = |key: &&String| pinned.is_empty() || pinned.iter().any(|pinned| pinned.to_string() == **key);
            self.known = resume.known.iter().filter(counts).cloned().collect();
            self.report.key_known = !self.known.is_empty();
        } else if !same {
            self.fault(None, FaultKind::Resume);
        }
    }

    /// A key of this log's, from now on.
    fn learn(&mut self, key: VerifierKey) {
        if !self.keys.contains(&key) {
            self.keys.push(key);
        }
    }

    /// A signature of this key held.
    fn vouch(&mut self, key: &VerifierKey) {
        if self.signed.contains(key) {
            return;
        }
        self.signed.push(key.clone());
        if self.expectation.keys.contains(key) {
            self.report.key_known = true;
            let text = key.to_string();
            if !self.known.contains(&text) {
                self.known.push(text);
            }
        }
    }

    /// Whose signature counts for what is about the log up to here: in a range exactly the key in force.
    fn signers(&self) -> Vec<VerifierKey> {
        self.in_force.as_ref().map_or_else(|| self.keys.clone(), |key| vec![key.clone()])
    }

    /// Takes a checkpoint that was kept outside; of several sizes each is compared where the log comes by it.
    fn keep(&mut self, note: &str, keys: &[VerifierKey]) {
        let unsigned = || Note::parse(note).map_err(Into::into).and_then(|note| Checkpoint::from_text(note.text()));
        // In a range from the beginning the keys are known only later, and who knows one key of a log keeps notes by its others; the root is
        // compared all the same, and the root is what counts.
        let opened = match Checkpoint::open(note, &self.origin, keys) {
            Err(CheckpointError::Note(NoteError::Unknown)) => unsigned(),
            opened => opened,
        };
        match opened {
            Ok(checkpoint) if checkpoint.origin == self.origin => {
                // A log without entries agrees with any.
                let agreed = checkpoint.size == 0;
                self.kept.entry(checkpoint.size).or_default().push(Kept { checkpoint, agreed });
            }
            Ok(_) => self.fault(None, FaultKind::KeptUnread(CheckpointError::Origin)),
            Err(error) => self.fault(None, FaultKind::KeptUnread(error)),
        }
    }

    /// Compares kept checkpoints of the size that the range has reached.
    fn compare_kept(&mut self) {
        let Some((size, root)) = self.edge.as_ref().map(|edge| (edge.size(), edge.root())) else { return };
        let Some(kept) = self.kept.get_mut(&size) else { return };
        for kept in kept.iter_mut().filter(|kept| !kept.agreed) {
            kept.agreed = kept.checkpoint.root == root;
        }
        let before = kept.len();
        kept.retain(|kept| kept.agreed);
        let forked = before - kept.len();
        if forked == 0 {
            self.agreed = size;
        }
        for _ in 0..forked {
            self.fault(None, FaultKind::KeptFork { size, agreed: self.agreed });
        }
    }

    fn checkpoint(&mut self, note: &str) {
        self.report.checkpoints += 1;
        let keys = self.signers();
        let checkpoint = match Checkpoint::open_by(note, &self.origin, &keys) {
            Ok((checkpoint, key)) => {
                self.vouch(key);
                checkpoint
            }
            Err(error) => return self.fault(None, FaultKind::Checkpoint(error)),
        };
        if self.report.coverage == Some(Coverage::Selection) {
            self.report.checkpoint = Some((checkpoint.size, checkpoint.root));
            for kept in self.kept.get_mut(&checkpoint.size).into_iter().flatten() {
                kept.agreed |= kept.checkpoint == checkpoint;
            }
            if self.current.replace(checkpoint).is_some() {
                self.fault(None, FaultKind::Header("a selection has one checkpoint"));
            }
            return;
        }
        if checkpoint.size != self.next {
            // Where it covers more than there are, the next entry is what is missing.
            let missing = (checkpoint.size > self.next).then_some(self.next);
            self.fault(missing, FaultKind::CheckpointPlace { size: checkpoint.size, entries: self.next });
            return;
        }
        if self.current.as_ref().is_some_and(|current| current.size == checkpoint.size) {
            self.fault(None, FaultKind::CheckpointTwice { size: checkpoint.size });
        }
        // Behind a gap nothing can be said about roots; the gap itself was named.
        let Some(edge) = &self.edge else { return };
        if edge.root() == checkpoint.root {
            self.agreed = checkpoint.size;
            self.report.checkpoint = Some((checkpoint.size, checkpoint.root));
            self.current = Some(checkpoint);
        } else {
            self.fault(None, FaultKind::Root { size: checkpoint.size, agreed: self.agreed });
        }
    }

    fn consistency(&mut self, from: u64, to: u64, path: &[Hash]) {
        let Some(current) = self.current.as_ref().filter(|current| current.size == to) else {
            return self.fault(None, FaultKind::Consistency { from, to });
        };
        // A path from a size that nobody kept has nothing to be checked against: it shows nothing and breaks nothing.
        let current = current.clone();
        let Some(kept) = self.kept.get_mut(&from) else { return };
        for kept in kept.iter_mut().filter(|kept| !kept.agreed) {
            let old = &kept.checkpoint;
            kept.agreed = merkle::verify_consistency(from, to, old.root, current.root, path).is_ok();
        }
        let before = kept.len();
        kept.retain(|kept| kept.agreed);
        if kept.len() < before {
            self.fault(None, FaultKind::KeptFork { size: from, agreed: 0 });
        }
    }

    fn end(&mut self, note: &str) {
        self.ended = true;
        // A key may change hands while a file is written: any that the file leads to counts.
        let keys: Vec<_> = self.signers().into_iter().chain(self.later_keys.iter().cloned()).collect();
        match bundle::open_end(note, &keys) {
            Err(error) => self.fault(None, FaultKind::EndSignature(error)),
            Ok((text, key)) => {
                self.vouch(key);
                if text != bundle::end_text(&self.origin, self.running.lines(), self.running.digest()) {
                    self.fault(None, FaultKind::EndDigest);
                }
            }
        }
    }

    /// What was found. Checks what only the whole can show: disposals, kept checkpoints, the end.
    #[must_use]
    pub fn finish(mut self) -> Report {
        if self.header.is_none() {
            self.fault(None, FaultKind::Header("there is no line"));
        }
        self.settle();
        if self.expectation.end && !self.ended {
            self.fault(None, FaultKind::EndMissing);
        }
        let size = self.next;
        let range = self.report.coverage == Some(Coverage::Range);
        for kept in std::mem::take(&mut self.kept).into_values().flatten() {
            let kept_size = kept.checkpoint.size;
            if kept.agreed {
                self.report.kept_agreed.push(kept_size);
            } else if range && kept_size > size {
                self.fault(None, FaultKind::KeptAhead { size: kept_size, entries: size });
            } else {
                self.fault(None, FaultKind::KeptUnproven { size: kept_size });
            }
        }
        let covered = self.report.checkpoint.map_or(0, |(size, _)| size);
        if range {
            let first = self.report.first.unwrap_or(size);
            self.report.after_checkpoint = size.saturating_sub(covered.max(first));
            // A file that is signed as a whole ends at a checkpoint; a database may be between two.
            if self.expectation.end && self.report.after_checkpoint > 0 && self.report.faults_total == 0 {
                self.fault(None, FaultKind::Uncovered { from: covered.max(first), to: size });
            }
        }
        if !self.expectation.keys.is_empty() && !self.report.key_known && self.header.is_some() {
            self.fault(None, FaultKind::KeyUnknown);
        }
        self.report.keys = self.signed.iter().map(ToString::to_string).collect();
        if let (true, Some(edge), Some(last), Some(key), Some(org)) =
            (range && self.report.is_sound(), &self.edge, self.last, &self.in_force, &self.report.org)
        {
            let (edge, key) = (edge.roots().to_vec(), key.to_string());
            self.report.resume = Some(Resume { org: org.clone(), size, last, edge, key, known: self.known.clone() });
        }
        self.report
    }
}

/// What stands in for a header that is missing, so that the rest can still be looked at.
fn unknown_log() -> Header {
    let org = Token::from_any("unknown");
    Header {
        v: bundle::VERSION,
        origin: chain::origin(&org),
        prev: genesis(&org),
        org,
        coverage: Coverage::Range,
        first: 0,
        edge: Vec::new(),
        keys: Vec::new(),
    }
}
