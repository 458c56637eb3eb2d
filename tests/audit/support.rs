//! Small logs to verify.

use bulkhead_audit::bundle::{Coverage, EntryLine, Header, Line, Payload, Writer};
use bulkhead_audit::canonical;
use bulkhead_audit::chain::{Chain, Entry, origin};
use bulkhead_audit::checkpoint::Checkpoint;
use bulkhead_audit::hash::Hash;
use bulkhead_audit::key::{SignerKey, VerifierKey};
use bulkhead_audit::merkle::{Edge, Node, Plan};
use bulkhead_audit::payload::{Salt, commitment};
use bulkhead_audit::record::{Actor, Disposal, Draft, Moment, Target, Token, genesis};
use bulkhead_audit::taxonomy::{ActorKind, EventType, Outcome};
use bulkhead_audit::verify::{Expectation, Report, Verifier};
use serde_json::json;

pub(crate) fn token(text: &str) -> Token {
    text.parse().unwrap()
}

pub(crate) fn org() -> Token {
    token("org_01jd0000000000000000000001")
}

pub(crate) fn moment(second: u64) -> Moment {
    let (minute, second) = (second / 60, second % 60);
    format!("2026-11-21T08:{minute:02}:{second:02}.000000Z").parse().unwrap()
}

pub(crate) fn key(seed: u8) -> SignerKey {
    SignerKey::from_seed(&origin(&org()), &[seed; 32]).unwrap()
}

/// What the database would hold.
pub(crate) struct Row {
    pub(crate) entry: Entry,
    pub(crate) salt: Salt,
    pub(crate) payload: String,
    /// Policy and entry under which the payload was disposed of.
    pub(crate) expired: Option<(Token, u64)>,
}

pub(crate) struct Log {
    pub(crate) chain: Chain,
    pub(crate) rows: Vec<Row>,
    /// The edge before each entry, to begin a range there.
    edges: Vec<Edge>,
    pub(crate) signer: SignerKey,
    pub(crate) checkpoints: Vec<(Checkpoint, String)>,
}

impl Log {
    /// A log that was opened and says nothing else yet.
    pub(crate) fn open() -> Self {
        Self::open_under(key(1))
    }

    /// As [`open`](Self::open), under another key.
    pub(crate) fn open_under(signer: SignerKey) -> Self {
        let chain = Chain::new(org());
        let mut log = Self { chain, rows: Vec::new(), edges: Vec::new(), signer, checkpoints: Vec::new() };
        let verifier = log.signer.verifier().to_string();
        log.append(EventType::LogOpened, |draft| draft.key = Some(verifier), None);
        log
    }

    /// A log of so many entries with a checkpoint over them.
    pub(crate) fn of(entries: u64) -> Self {
        let mut log = Self::open();
        while log.size() < entries {
            log.event();
        }
        log.checkpoint();
        log
    }

    pub(crate) fn size(&self) -> u64 {
        self.chain.size()
    }

    pub(crate) fn event(&mut self) {
        let events = [EventType::GrantsChanged, EventType::AuditRead, EventType::SessionRefused];
        let event = events[usize::try_from(self.size() % 3).unwrap()];
        self.append(event, |_| {}, None);
    }

    pub(crate) fn append(&mut self, event: EventType, change: impl FnOnce(&mut Draft), next: Option<&SignerKey>) {
        let seq = self.size();
        let salt = Salt::from_bytes(*Hash::of(&[b"salt", &seq.to_be_bytes()]).as_bytes());
        let payload = json!({"ip": format!("192.0.2.{}", seq % 250), "before": {"n": seq}, "after": {"n": seq + 1}});
        let payload = canonical::text(&canonical::exact(payload)).unwrap();
        let mut draft = Draft {
            id: token(&format!("aud_{seq:026}")),
            ts: moment(seq),
            event: event.into(),
            severity: event.severity(),
            actor: Actor { kind: ActorKind::Key, id: token("key_1"), via: None, impersonator: None },
            target: Target { kind: token("installation"), id: token("inst_1") },
            outcome: Outcome::Success,
            reason: None,
            session: None,
            correlation: Some(token(&format!("req_{seq}"))),
            causation: None,
            payload_commit: commitment(&salt, &payload),
            key: None,
            disposal: None,
        };
        change(&mut draft);
        self.edges.push(self.chain.edge().clone());
        let entry = self.chain.append(draft, &self.signer, next).unwrap();
        self.rows.push(Row { entry, salt, payload, expired: None });
    }

    /// From here on another key signs.
    pub(crate) fn rotate(&mut self, next: SignerKey) {
        let text = next.verifier().to_string();
        self.append(EventType::LogKeyRotated, |draft| draft.key = Some(text), Some(&next));
        self.signer = next;
    }

    /// Disposes of the payloads that the disposal covers.
    pub(crate) fn dispose(&mut self, disposal: &Disposal) {
        let by = self.size();
        self.append(EventType::PayloadsExpired, |draft| draft.disposal = Some(disposal.clone()), None);
        for row in &mut self.rows {
            if row.entry.record.seq < by && disposal.covers(&row.entry.record) {
                row.expired = Some((disposal.policy.clone(), by));
            }
        }
    }

    pub(crate) fn look_up(&self, node: Node) -> Option<Hash> {
        let entry = &self.rows.get(usize::try_from(node.row()).ok()?)?.entry;
        match node.level {
            0 => Some(entry.leaf),
            level => entry.completed.get(level as usize - 1).copied(),
        }
    }

    pub(crate) fn checkpoint(&mut self) {
        let next = self.chain.checkpoint();
        let previous = self.checkpoints.last().map(|(checkpoint, _)| checkpoint);
        let proof = previous
            .map(|previous| {
                Plan::consistency(previous.size, next.size).unwrap().proof(|node| self.look_up(node)).unwrap()
            })
            .unwrap_or_default();
        let note = next.sign_after(previous, &proof, &self.signer).unwrap().to_string();
        self.checkpoints.push((next, note));
    }

    pub(crate) fn line(&self, seq: u64) -> EntryLine {
        let row = &self.rows[usize::try_from(seq).unwrap()];
        let payload = match &row.expired {
            Some((policy, by)) => Payload::Expired { policy: policy.clone(), by: *by },
            None => Payload::shown(row.salt.clone(), &row.payload).unwrap(),
        };
        EntryLine::of(&row.entry, payload).unwrap()
    }

    fn header(&self, coverage: Coverage, first: u64) -> Header {
        let at = usize::try_from(first).unwrap();
        let prev = if at == 0 { genesis(&org()) } else { self.rows[at - 1].entry.leaf };
        let brought: Vec<_> =
            self.rows.iter().filter_map(|row| Some((row.entry.record.seq, row.entry.record.key.clone()?))).collect();
        let keys = match coverage {
            Coverage::Selection => brought.into_iter().map(|(_, key)| key).collect(),
            Coverage::Range => brought
                .into_iter()
                .filter(|(seq, _)| *seq < first)
                .map(|(_, key)| key)
                .next_back()
                .into_iter()
                .collect(),
        };
        let edge = self.edges[at].roots().to_vec();
        Header { v: 1, org: org(), origin: origin(&org()), coverage, first, prev, edge, keys }
    }

    /// Every entry from `first` on, with the checkpoints among them.
    pub(crate) fn range(&self, first: u64) -> String {
        let (mut writer, mut text) = Writer::begin(self.header(Coverage::Range, first));
        for seq in first..self.size() {
            text.push_str(&writer.line(&Line::Entry(self.line(seq))));
            for (_, note) in self.checkpoints.iter().filter(|(checkpoint, _)| checkpoint.size == seq + 1) {
                text.push_str(&writer.line(&Line::Checkpoint(note.clone())));
            }
        }
        // The way from each older checkpoint, for whoever kept one from before the range.
        let last = &self.checkpoints.last().unwrap().0;
        for (old, _) in self.checkpoints.iter().filter(|(checkpoint, _)| checkpoint.size <= first) {
            text.push_str(&writer.line(&self.way(old.size, last.size)));
        }
        text.push_str(&writer.end(&self.signer).unwrap());
        text
    }

    /// The entries up to the first checkpoint, and behind it what of the rest belongs to them.
    pub(crate) fn part(&self, later: &[u64]) -> String {
        let (checkpoint, note) = &self.checkpoints[0];
        let (mut writer, mut text) = Writer::begin(self.header(Coverage::Range, 0));
        for seq in 0..checkpoint.size {
            text.push_str(&writer.line(&Line::Entry(self.line(seq))));
        }
        text.push_str(&writer.line(&Line::Checkpoint(note.clone())));
        for seq in later {
            text.push_str(&writer.line(&Line::Later(self.bare(*seq))));
        }
        text.push_str(&writer.end(&self.signer).unwrap());
        text
    }

    /// An entry without its payload.
    pub(crate) fn bare(&self, seq: u64) -> EntryLine {
        EntryLine::of(&self.rows[usize::try_from(seq).unwrap()].entry, Payload::Withheld).unwrap()
    }

    pub(crate) fn way(&self, from: u64, to: u64) -> Line {
        let path = Plan::consistency(from, to).unwrap().proof(|node| self.look_up(node)).unwrap();
        Line::Consistency { from, to, path }
    }

    /// Some entries with their paths.
    pub(crate) fn selection(&self, chosen: &[u64]) -> String {
        self.selection_saying(chosen, Vec::new())
    }

    /// As [`selection`](Self::selection), with more keys in its first line.
    pub(crate) fn selection_saying(&self, chosen: &[u64], more: Vec<String>) -> String {
        let mut header = self.header(Coverage::Selection, 0);
        header.keys.extend(more);
        let (mut writer, mut text) = Writer::begin(header);
        let (checkpoint, note) = self.checkpoints.last().unwrap();
        text.push_str(&writer.line(&Line::Checkpoint(note.clone())));
        for seq in chosen {
            let path = Plan::inclusion(*seq, checkpoint.size).unwrap().proof(|node| self.look_up(node));
            text.push_str(&writer.line(&Line::Entry(EntryLine { path, ..self.line(*seq) })));
        }
        for (old, _) in &self.checkpoints[..self.checkpoints.len() - 1] {
            text.push_str(&writer.line(&self.way(old.size, checkpoint.size)));
        }
        text.push_str(&writer.end(&self.signer).unwrap());
        text
    }
}

/// A file must end with its signature; the key is known.
pub(crate) fn strict(keys: &[VerifierKey]) -> Expectation {
    Expectation { keys: keys.to_vec(), end: true, ..Expectation::default() }
}

pub(crate) fn verify(bundle: &str, expectation: Expectation) -> Report {
    let mut verifier = Verifier::new(expectation);
    for line in bundle.split_terminator('\n') {
        verifier.line(line);
    }
    verifier.finish()
}

pub(crate) fn verify_bytes(bundle: &[u8], expectation: Expectation) -> Report {
    let mut verifier = Verifier::new(expectation);
    let lines = bundle.strip_suffix(b"\n").unwrap_or(bundle).split(|byte| *byte == b'\n');
    for line in lines {
        match std::str::from_utf8(line) {
            Ok(line) => verifier.line(line),
            Err(_) => verifier.unreadable_line(),
        }
    }
    verifier.finish()
}
