//! Every way to tamper is found and named.

use bulkhead_audit::bundle::Line;
use bulkhead_audit::chain::{Chain, ChainError};
use bulkhead_audit::taxonomy::EventType;
use bulkhead_audit::verify::{Expectation, FaultKind, Report};
use proptest::prelude::*;

use crate::support::{Log, key, org, strict, verify, verify_bytes};

/// Lines of a log of 12 entries with two checkpoints, without the last line: what somebody who holds the file can change. The signature over
/// the whole file would show every change as well; here each must be found without it.
fn lines(log: &Log) -> Vec<String> {
    let mut lines: Vec<_> = log.range(0).lines().map(str::to_owned).collect();
    lines.pop();
    lines
}

fn log() -> Log {
    let mut log = Log::of(7);
    while log.size() < 12 {
        log.event();
    }
    log.checkpoint();
    log
}

fn rows(lines: &[String]) -> Report {
    let expectation = Expectation { keys: vec![key(1).verifier()], ..Expectation::default() };
    verify(&lines.join("\n"), expectation)
}

/// Where entry `seq` stands: the header is line 0, a checkpoint follows entry 6.
fn at(seq: usize) -> usize {
    1 + seq + usize::from(seq > 6)
}

#[test]
fn the_untouched_is_sound() {
    let log = log();
    let report = rows(&lines(&log));
    assert!(report.is_sound(), "{:?}", report.faults);
    assert_eq!((report.entries, report.checkpoints, report.payloads_shown), (12, 2, 12));
    assert!(report.key_known && report.resume.is_some());
    assert!(verify(&log.range(0), strict(&[key(1).verifier()])).is_sound());
}

/// Not one bit of a file can be changed, its line breaks and its signature included.
#[test]
fn each_changed_bit_is_found() {
    let log = Log::of(3);
    let bundle = log.range(0).into_bytes();
    let known = [key(1).verifier()];
    assert!(verify_bytes(&bundle, strict(&known)).is_sound());
    for at in 0..bundle.len() {
        for bit in 0..8 {
            let mut changed = bundle.clone();
            changed[at] ^= 1 << bit;
            // The very last line break is not part of the file's content.
            if at == bundle.len() - 1 {
                continue;
            }
            let report = verify_bytes(&changed, strict(&known));
            assert!(!report.is_sound(), "byte {at}, bit {bit}: {}", String::from_utf8_lossy(&changed));
        }
    }
}

/// Without the signature over the file: each bit of an entry, its payload, salt, signature and key is found, and the entry is named.
#[test]
fn each_changed_bit_of_an_entry_names_the_entry() {
    let log = log();
    let lines = lines(&log);
    let line = lines[at(4)].clone();
    for byte in 0..line.len() {
        for bit in 0..8 {
            let mut bytes = line.clone().into_bytes();
            bytes[byte] ^= 1 << bit;
            if bytes[byte] == b'\n' {
                continue; // two lines then: `each_changed_bit_is_found` has it
            }
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            let mut tampered = lines.clone();
            tampered[at(4)].clone_from(&changed);
            let report = rows(&tampered);
            assert!(!report.is_sound(), "byte {byte}, bit {bit}: {changed}");
            let first = &report.faults[0];
            assert_eq!(first.line, at(4) as u64 + 1, "byte {byte}, bit {bit}: {first}");
            let named = report.first_bad_entry();
            assert!(named.is_none() || named == Some(4), "byte {byte}, bit {bit}: {named:?}");
        }
    }
}

#[test]
fn a_missing_entry_is_named() {
    let lines = lines(&log());
    for seq in 1..12 {
        let mut cut = lines.clone();
        cut.remove(at(seq));
        let report = rows(&cut);
        let seq = seq as u64;
        // Before a checkpoint it is the checkpoint that shows it.
        let kind = match seq {
            6 | 11 => FaultKind::CheckpointPlace { size: seq + 1, entries: seq },
            _ => FaultKind::Missing { from: seq, to: seq },
        };
        assert_eq!((&report.faults[0].kind, report.first_bad_entry()), (&kind, Some(seq)));
    }
    let mut beheaded = lines;
    beheaded.remove(at(0));
    assert_eq!(rows(&beheaded).first_bad_entry(), Some(0));
}

#[test]
fn swapped_entries_are_named() {
    let lines = lines(&log());
    for first in 0..12 {
        for second in first + 1..12 {
            let mut swapped = lines.clone();
            swapped.swap(at(first), at(second));
            assert_eq!(rows(&swapped).first_bad_entry(), Some(first as u64), "{first} and {second}");
        }
    }
}

#[test]
fn inserted_entries_are_named() {
    let (lines, mut other) = (lines(&log()), Log::open());
    while other.size() < 12 {
        other.append(EventType::RunCancelled, |_| {}, None);
    }
    for place in 1..12 {
        // Once more the same entry, another's entry with the right number (same key: whoever has it can do that), one with a free number.
        let repeated = lines[at(place - 1)].clone();
        let foreign = Line::Entry(other.line(place as u64)).to_text();
        for (what, inserted) in [("repeated", repeated), ("foreign", foreign)] {
            let mut more = lines.clone();
            more.insert(at(place), inserted);
            let report = rows(&more);
            let named = report.first_bad_entry().unwrap();
            assert!(named + 1 >= place as u64 && named <= place as u64, "{what} at {place}: {named}");
        }
    }
}

#[test]
fn entries_of_another_log_or_key_are_named() {
    let log = log();
    let forged_key = key(66);
    let mut chain = Chain::new(org());
    let mut draft = None;
    let mut scratch = Log::open();
    scratch.append(EventType::RunStarted, |made| draft = Some(made.clone()), None);
    assert_eq!(chain.append(draft.unwrap(), &forged_key, None), Err(ChainError::Opening));
    // The same record, signed by somebody else.
    let mut lines = lines(&log);
    let leaf = log.rows[4].entry.leaf;
    let mut line = log.line(4);
    line.signature.0 = forged_key.sign(&bulkhead_audit::chain::signed_bytes(leaf));
    lines[at(4)] = Line::Entry(line.clone()).to_text();
    assert_eq!(rows(&lines).faults[0].kind, FaultKind::Signature);
    line.key = forged_key.verifier().id();
    lines[at(4)] = Line::Entry(line).to_text();
    assert_eq!(rows(&lines).faults[0].kind, FaultKind::Key(forged_key.verifier().id()));
}

/// Somebody without the log's key writes a log of his own, and says in the first line that its keys are the log's.
#[test]
fn a_forged_selection_is_not_believed_by_whoever_knows_the_key() {
    let mut forged = Log::open_under(key(66));
    while forged.size() < 6 {
        forged.event();
    }
    forged.rotate(key(67));
    forged.event();
    forged.checkpoint();
    let known = key(1).verifier();
    for chosen in [[0, 3].as_slice(), &[3, 4], &[0, 6, 7], &[]] {
        for more in [Vec::new(), vec![known.to_string()]] {
            let report = verify(&forged.selection_saying(chosen, more.clone()), strict(std::slice::from_ref(&known)));
            assert!(!report.is_sound() && !report.key_known, "{chosen:?} {more:?}: {:?}", report.faults);
            assert!(report.faults.iter().any(|fault| fault.kind == FaultKind::KeyUnknown), "{:?}", report.faults);
        }
    }
    // A true entry among forged ones makes them no truer.
    let (log, forged) = (log(), forged.selection(&[3, 4]));
    let mut lines: Vec<_> = forged.lines().map(str::to_owned).collect();
    lines.insert(2, Line::Entry(log.line(2)).to_text());
    let report = rows(&lines);
    assert!(report.key_known && !report.is_sound());
    assert!(matches!(report.faults[0].kind, FaultKind::Checkpoint(_)), "{:?}", report.faults);
    // The same as a range.
    let mut forged = Log::open_under(key(66));
    forged.event();
    forged.checkpoint();
    let report = verify(&forged.range(1), strict(std::slice::from_ref(&known)));
    assert!(!report.key_known && report.faults[0].kind == FaultKind::KeyUnknown, "{:?}", report.faults);
}

/// What somebody wrote into a file reaches no terminal as it is.
#[test]
fn a_faults_words_are_plain_text() {
    let mut lines = lines(&log());
    lines.insert(2, "{\"\\u001b[2J\\u009b1A\\u202esound\":1}".to_owned());
    lines.insert(3, format!("{{\"{}\":1}}", "x".repeat(100_000)));
    let report = rows(&lines);
    assert!(report.faults.len() >= 2);
    let told = report.faults.iter().map(ToString::to_string);
    let written = report.faults.iter().map(|fault| serde_json::to_string(fault).unwrap());
    for text in told.chain(written) {
        assert!(text.chars().all(|letter| (' '..='~').contains(&letter) || letter == '…'), "{text:?}");
        assert!(text.chars().count() < 600, "{} characters", text.len());
    }
    assert!(report.faults[0].to_string().contains("\\u{1b}[2J"), "{}", report.faults[0]);
}

#[test]
fn a_cut_off_file_is_found_at_every_length() {
    let log = Log::of(4);
    let bundle = log.range(0);
    for length in 0..bundle.len() - 1 {
        let Some(cut) = bundle.get(..length) else { continue };
        assert!(!verify(cut, strict(&[key(1).verifier()])).is_sound(), "{length} bytes");
    }
    let more = format!("{bundle}{{}}\n");
    assert_eq!(verify(&more, strict(&[])).faults[0].kind, FaultKind::BehindTheEnd);
}

/// Somebody with the database and the log's key writes another history. Only a kept checkpoint shows it.
#[test]
fn a_rewritten_history_is_shown_by_a_kept_checkpoint() {
    let log = log();
    let mut rewritten = Log::open();
    while rewritten.size() < 14 {
        if rewritten.size() == 9 {
            rewritten.append(EventType::RunStarted, |_| {}, None);
        } else {
            rewritten.event();
        }
        if rewritten.size() == 7 {
            rewritten.checkpoint();
        }
    }
    rewritten.checkpoint();
    let bundle = rewritten.range(0);
    assert!(verify(&bundle, strict(&[key(1).verifier()])).is_sound(), "by itself it fits together");
    let kept = log.checkpoints.iter().map(|(_, note)| note.clone()).collect();
    let report = verify(&bundle, Expectation { kept, ..strict(&[key(1).verifier()]) });
    assert_eq!(report.faults[0].kind, FaultKind::KeptFork { size: 12, agreed: 7 });
    assert_eq!(report.kept_agreed, [7]);
    // Cutting off the end is another history, too.
    let kept = vec![log.checkpoints[1].1.clone()];
    let report = verify(&Log::of(7).range(0), Expectation { kept, ..strict(&[key(1).verifier()]) });
    assert_eq!(report.faults[0].kind, FaultKind::KeptAhead { size: 12, entries: 7 });
}

#[test]
fn a_changed_checkpoint_is_found() {
    let log = log();
    let lines = lines(&log);
    let mut changed = lines.clone();
    // A true checkpoint of the log at the wrong place, and one of another log.
    changed[at(6) + 1] = Line::Checkpoint(log.checkpoints[1].1.clone()).to_text();
    assert_eq!(rows(&changed).faults[0].kind, FaultKind::CheckpointPlace { size: 12, entries: 7 });
    let mut other = Log::open();
    while other.size() < 7 {
        other.append(EventType::RunCancelled, |_| {}, None);
    }
    other.checkpoint();
    changed[at(6) + 1] = Line::Checkpoint(other.checkpoints[0].1.clone()).to_text();
    assert_eq!(rows(&changed).faults[0].kind, FaultKind::Root { size: 7, agreed: 0 });
}

fn any_line() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[{}\\[\\]\",:a-z0-9]{0,40}",
        Just("{\"log\":{}}".to_owned()),
        Just(format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000))),
        Just("x".repeat(1 << 20)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_edit_of_lines_is_found(first in 0..14_usize, second in 0..14_usize, edit in 0..4_u8, length in 1..4_usize) {
        let lines = lines(&log());
        let mut edited = lines.clone();
        match edit {
            0 => edited.swap(first, second),
            1 => { edited.drain(first..(first + length).min(edited.len())); }
            2 => { let line = edited[first].clone(); edited.insert(second, line); }
            _ => edited[first..].reverse(),
        }
        // What is missing at the end, or a checkpoint, takes the last line of a file or a kept checkpoint to be seen.
        let truncated = lines.starts_with(&edited);
        let checkpoint_left_out = edit == 1 && edited.len() + 1 == lines.len() && first == at(6) + 1;
        if !truncated && !checkpoint_left_out {
            prop_assert!(!rows(&edited).is_sound(), "{edit}: {first} {second} {length}");
        }
        let file = log().range(0);
        let end = file.lines().last().unwrap().to_owned();
        edited.push(end);
        let sound = verify(&edited.join("\n"), strict(&[key(1).verifier()])).is_sound();
        prop_assert_eq!(sound, edited.join("\n") == file.trim_end());
    }

    #[test]
    fn no_input_stops_the_verifier(garbage in proptest::collection::vec(any_line(), 0..6), place in 0..14_usize) {
        let mut lines = lines(&log());
        for line in garbage {
            lines.insert(place.min(lines.len()), line.replace('\n', " "));
            prop_assert!(!rows(&lines).is_sound());
        }
    }
}
