//! Entries: each for itself, its place, its payload.

use super::{Expired, FaultKind, Owed, Verifier};
use crate::bundle::{Coverage, EntryLine, Payload};
use crate::chain;
use crate::hash::Hash;
use crate::key::VerifierKey;
use crate::merkle;
use crate::payload;
use crate::record::{DISPOSED_MAX, Disposal, Record, leaf_hash};
use crate::taxonomy::EventType;

impl Verifier {
    pub(super) fn entry(&mut self, line: EntryLine) {
        let text = line.record.get();
        let leaf = leaf_hash(text);
        let record = match Record::from_canonical(text) {
            Ok(record) => record,
            Err(error) => {
                // It stands where the next one should: its number cannot be read from it.
                let seq = self.next;
                self.fault(Some(seq), FaultKind::Record(error));
                return self.pass(seq, leaf);
            }
        };
        let faults_before = self.report.faults_total;
        // In a range an entry that nobody signed is named by where it stands: its own number may be what was changed.
        let signed = self.signer(&record, leaf, &line);
        let seq =
            if self.report.coverage == Some(Coverage::Selection) || signed.is_ok() { record.seq } else { self.next };
        self.report.entries += 1;
        self.report.first.get_or_insert(seq);
        self.report.last = Some(seq);
        if self.report.org.as_ref() != Some(&record.org) {
            self.fault(Some(seq), FaultKind::OtherOrg);
        }
        let is_signed = signed.is_ok();
        match signed {
            Ok(key) => self.vouch(&key),
            Err(fault) => self.fault(Some(seq), fault),
        }
        match self.report.coverage {
            Some(Coverage::Selection) => self.place_in_selection(&record, leaf, line.path.as_deref()),
            Some(Coverage::Range) | None if is_signed => self.place_in_range(&record),
            Some(Coverage::Range) | None => {}
        }
        match record.event_type() {
            None => self.report.unknown_types += 1,
            Some(event) if event.category() != record.category && !record.is_of_unknown_type() => {
                self.fault(Some(seq), FaultKind::Category);
            }
            Some(_) => {}
        }
        if (record.event_type() == Some(EventType::LogOpened)) != (record.seq == 0) {
            self.fault(Some(seq), FaultKind::Opening);
        }
        let brought = self.brought(&record, leaf, &line, seq);
        self.payload(&record, seq, line.payload);
        if let Some(disposal) = &record.disposal {
            self.disposals.insert(seq, disposal.clone());
        }
        // A key that an unsound entry brings in is not believed.
        if let Some(key) = brought.filter(|_| self.report.faults_total == faults_before) {
            if self.report.coverage != Some(Coverage::Selection) {
                self.in_force = Some(key.clone());
            }
            self.vouch(&key);
            self.learn(key);
        }
        self.pass(seq, leaf);
    }

    /// An entry from behind the range: it counts by its signature alone, which must lead from the range's last key to it. What else it says
    /// is for the bundle that holds it in its place.
    pub(super) fn later_entry(&mut self, line: &EntryLine) {
        if self.report.coverage != Some(Coverage::Range) {
            return self.fault(None, FaultKind::Header("only a range has entries that are later than it"));
        }
        let text = line.record.get();
        let leaf = leaf_hash(text);
        let record = match Record::from_canonical(text) {
            Ok(record) => record,
            Err(error) => return self.fault(None, FaultKind::Record(error)),
        };
        let faults_before = self.report.faults_total;
        let seq = record.seq;
        if self.report.org.as_ref() != Some(&record.org) {
            self.fault(Some(seq), FaultKind::OtherOrg);
        }
        let expected = self.later.map_or(self.next, |later| later.saturating_add(1));
        if seq < expected {
            self.fault(Some(seq), FaultKind::OutOfPlace { expected });
        }
        self.later = Some(seq.max(self.later.unwrap_or(0)));
        let signer = self.later_keys.last().or(self.in_force.as_ref()).filter(|key| key.id() == line.key).cloned();
        match signer {
            None => self.fault(Some(seq), FaultKind::Key(line.key)),
            Some(key) if key.verifies(&chain::signed_bytes(leaf), &line.signature.0) => self.vouch(&key),
            Some(_) => self.fault(Some(seq), FaultKind::Signature),
        }
        if !matches!(line.payload, Payload::Withheld) || line.path.is_some() {
            self.fault(
                Some(seq),
                FaultKind::Header("an entry that is later than the range has neither payload nor path"),
            );
        }
        let brought = self.brought(&record, leaf, line, seq);
        if brought.is_none() && record.disposal.is_none() {
            self.fault(Some(seq), FaultKind::Header("an entry that is later than the range explains nothing in it"));
        }
        if self.report.faults_total > faults_before {
            return;
        }
        if let Some(disposal) = record.disposal {
            self.disposals.insert(seq, disposal);
        }
        if let Some(key) = brought {
            self.vouch(&key);
            self.later_keys.push(key);
        }
    }

    /// Goes on behind an entry, whatever it was.
    fn pass(&mut self, seq: u64, leaf: Hash) {
        if self.report.coverage == Some(Coverage::Selection) {
            // Only its direct successor can be compared with it.
            self.next = seq + 1;
            self.last = Some(leaf);
            return;
        }
        let in_place = seq == self.next;
        self.next = seq.saturating_add(1).max(self.next);
        self.last = Some(leaf);
        if in_place {
            if let Some(edge) = &mut self.edge {
                edge.append(leaf);
            }
            self.compare_kept();
        } else {
            self.edge = None;
        }
    }

    fn place_in_range(&mut self, record: &Record) {
        let (seq, expected) = (record.seq, self.next);
        if seq > expected {
            // Named after the first that is missing: that is where the log is broken.
            self.fault(Some(expected), FaultKind::Missing { from: expected, to: seq - 1 });
        } else if seq < expected {
            self.fault(Some(seq), FaultKind::OutOfPlace { expected });
        } else if self.last.is_some_and(|last| last != record.prev) {
            self.fault(Some(seq), FaultKind::Link);
        }
    }

    fn place_in_selection(&mut self, record: &Record, leaf: Hash, path: Option<&[Hash]>) {
        let seq = record.seq;
        if self.report.entries > 1 {
            if seq < self.next {
                self.fault(Some(seq), FaultKind::OutOfPlace { expected: self.next });
            } else if seq == self.next && self.last.is_some_and(|last| last != record.prev) {
                self.fault(Some(seq), FaultKind::Link);
            }
        }
        let held = match (&self.current, path) {
            (Some(checkpoint), Some(path)) => {
                merkle::verify_inclusion(seq, checkpoint.size, leaf, path, checkpoint.root).is_ok()
            }
            (_, _) => false,
        };
        if !held {
            self.fault(Some(seq), FaultKind::Path);
        }
    }

    /// The key that must sign this entry, if it did. The first entry brings its own along, which says nothing by itself: in a range the
    /// report tells whether it was known, in a selection the entry's path leads to a checkpoint that a counting key signed.
    fn signer(&self, record: &Record, leaf: Hash, line: &EntryLine) -> Result<VerifierKey, FaultKind> {
        let signer = if record.seq == 0 {
            brought_key(record, &self.origin).filter(|key| key.id() == line.key)
        } else if self.report.coverage == Some(Coverage::Selection) {
            self.keys.iter().find(|key| key.id() == line.key).cloned()
        } else {
            self.in_force.clone().filter(|key| key.id() == line.key)
        };
        match signer {
            None => Err(FaultKind::Key(line.key)),
            Some(key) if key.verifies(&chain::signed_bytes(leaf), &line.signature.0) => Ok(key),
            Some(_) => Err(FaultKind::Signature),
        }
    }

    /// The key that the entry brings in, if it does: its own signature must stand beside the log's.
    fn brought(&mut self, record: &Record, leaf: Hash, line: &EntryLine, seq: u64) -> Option<VerifierKey> {
        let brought = brought_key(record, &self.origin);
        let brings = matches!(record.event_type(), Some(EventType::LogOpened | EventType::LogKeyRotated));
        if brings != brought.is_some() || brings != line.endorsement.is_some() || brings != record.key.is_some() {
            self.fault(Some(seq), FaultKind::Endorsement);
        } else if let (Some(key), Some(endorsement)) = (&brought, &line.endorsement)
            && !key.verifies(&chain::signed_bytes(leaf), &endorsement.0)
        {
            self.fault(Some(seq), FaultKind::Endorsement);
        }
        brought
    }

    fn payload(&mut self, record: &Record, seq: u64, payload: Payload) {
        match payload {
            Payload::Shown { salt, value } => {
                self.report.payloads_shown += 1;
                if !payload::opens(record.payload_commit, &salt, value.get()) {
                    self.fault(Some(seq), FaultKind::Payload);
                }
            }
            Payload::Withheld => self.report.payloads_withheld += 1,
            Payload::Expired { policy, by } => {
                let line = self.running.lines() + 1;
                let owed = self.owed.entry((by, policy)).or_insert_with(|| Owed { line, ..Owed::default() });
                owed.payloads += 1;
                // One more than a disposal can name is enough to see that it does not name them all.
                if owed.entries.len() <= DISPOSED_MAX {
                    owed.entries.push(record.seq);
                }
                let latest = owed.latest.entry(record.category).or_insert_with(|| (record.ts.clone(), record.seq));
                if record.ts > latest.0 {
                    *latest = (record.ts.clone(), record.seq);
                }
            }
        }
    }

    /// Checks that each payload that is gone was disposed of by the entry that it names.
    pub(super) fn settle(&mut self) {
        for ((by, policy), owed) in std::mem::take(&mut self.owed) {
            for seq in unexplained(self.disposals.get(&by).filter(|disposal| disposal.policy == policy), &owed) {
                self.fault_at(owed.line, Some(seq), FaultKind::Unexplained { by });
            }
            self.report.expired.push(Expired { policy, by, payloads: owed.payloads });
        }
    }
}

fn unexplained(disposal: Option<&Disposal>, owed: &Owed) -> Vec<u64> {
    match disposal {
        None => owed.entries.first().copied().into_iter().collect(),
        Some(Disposal { before: Some(before), categories, .. }) => owed
            .latest
            .iter()
            .filter(|(category, (ts, _))| !(categories.contains(category) && ts < before))
            .map(|(_, (_, seq))| *seq)
            .collect(),
        Some(Disposal { before: None, entries, .. }) => {
            owed.entries.iter().copied().filter(|seq| !entries.contains(seq)).collect()
        }
    }
}

fn brought_key(record: &Record, origin: &str) -> Option<VerifierKey> {
    record.key.as_deref()?.parse::<VerifierKey>().ok().filter(|key| key.name() == origin)
}
