//! Logs as they are: rotated keys, disposed payloads, parts and selections.

use bulkhead_audit::bundle::{Line, Payload};
use bulkhead_audit::record::{Disposal, Draft, Event, UNKNOWN_TYPE};
use bulkhead_audit::taxonomy::{Category, EventType};
use bulkhead_audit::verify::{Expectation, Expired, FaultKind, Resume, Verifier};

use crate::support::{Log, key, moment, org, strict, token, verify};

fn retention() -> Disposal {
    Disposal {
        policy: token("retention:90d"),
        before: Some(moment(6)),
        categories: vec![Category::DataAccess, Category::Configuration],
        entries: Vec::new(),
    }
}

#[test]
fn erasing_payloads_keeps_every_proof() {
    let mut log = Log::of(9);
    let before = log.checkpoints[0].1.clone();
    log.dispose(&retention());
    log.dispose(&Disposal { policy: token("erasure:req_7"), before: None, categories: vec![], entries: vec![2, 8] });
    log.checkpoint();
    let bundle = log.range(0);
    for gone in [1, 2, 3, 4, 8] {
        assert!(
            !bundle.contains(&format!("\"ip\":\"192.0.2.{gone}\""))
                && !bundle.contains(&log.rows[gone].salt.to_string())
        );
    }
    let report = verify(&bundle, Expectation { kept: vec![before], ..strict(&[key(1).verifier()]) });
    assert!(report.is_sound(), "{:?}", report.faults);
    assert_eq!(report.kept_agreed, [9]);
    let expired = [
        Expired { policy: token("retention:90d"), by: 9, payloads: 3 },
        Expired { policy: token("erasure:req_7"), by: 10, payloads: 2 },
    ];
    assert_eq!(report.expired, expired);
    // A selection proves the same, with the entry that explains the gap among the chosen.
    let chosen = log.selection(&[0, 1, 4, 9]);
    assert!(verify(&chosen, strict(&[key(1).verifier()])).is_sound());
}

#[test]
fn a_payload_that_is_gone_needs_a_reason() {
    for (claim, by) in [("retention:90d", 9), ("retention:1d", 9), ("retention:90d", 8), ("retention:90d", 10_000)] {
        for seq in [1_usize, 2, 7] {
            let mut log = Log::of(9);
            log.dispose(&retention());
            log.checkpoint();
            log.rows[seq].expired = Some((token(claim), by));
            let report = verify(&log.range(0), strict(&[key(1).verifier()]));
            // Entry 1 was disposed of; 2 is of another category, 7 too young.
            let true_claim = seq == 1 && claim == "retention:90d" && by == 9;
            assert_eq!(report.is_sound(), true_claim, "{claim} by {by} for {seq}: {:?}", report.faults);
            if !true_claim {
                assert_eq!(report.faults[0].kind, FaultKind::Unexplained { by });
                assert_eq!(report.first_bad_entry(), Some(seq as u64));
            }
        }
    }
}

#[test]
fn a_guess_of_a_payload_cannot_be_confirmed_without_its_salt() {
    use bulkhead_audit::payload::{Salt, commitment};
    let log = Log::of(3);
    let row = &log.rows[1];
    assert_eq!(commitment(&row.salt, &row.payload), row.entry.record.payload_commit);
    assert_ne!(commitment(&Salt::from_bytes([0; 32]), &row.payload), row.entry.record.payload_commit);
    assert_ne!(log.rows[0].entry.record.payload_commit, log.rows[1].entry.record.payload_commit);
}

#[test]
fn keys_change_hands_under_both_signatures() {
    let mut log = Log::of(4);
    log.rotate(key(2));
    log.event();
    log.checkpoint();
    log.rotate(key(3));
    log.event();
    log.checkpoint();
    let bundle = log.range(0);
    // Whichever of them is known, the whole is.
    for known in 1..=3 {
        let report = verify(&bundle, strict(&[key(known).verifier()]));
        assert!(report.is_sound() && report.key_known, "{:?}", report.faults);
        assert_eq!(report.keys.len(), 3);
    }
    let stranger = verify(&bundle, strict(&[key(9).verifier()]));
    assert_eq!(stranger.faults[0].kind, FaultKind::KeyUnknown);
    let unasked = verify(&bundle, strict(&[]));
    assert!(unasked.is_sound() && !unasked.key_known, "by itself it only fits together");
    // The new key's word for itself is not enough, nor is the old key's alone.
    for (from, to) in [(",\"endorsement\":\"", ",\"endorsement\":\"AAAA"), (",\"endorsement\":\"", ",\"payload_\":\"")]
    {
        assert!(!verify(&bundle.replace(from, to), strict(&[key(1).verifier()])).is_sound());
    }
    let mut lines: Vec<_> = bundle.lines().map(str::to_owned).collect();
    let rotation = lines.iter().position(|line| line.contains("log_key_rotated")).unwrap();
    let mut line = log.line(4);
    line.endorsement = Some(line.signature);
    lines[rotation] = bulkhead_audit::bundle::Line::Entry(line).to_text();
    lines.pop();
    let report = verify(&lines.join("\n"), Expectation { keys: vec![key(1).verifier()], ..Expectation::default() });
    assert_eq!(report.faults[0].kind, FaultKind::Endorsement);
    assert_eq!(report.first_bad_entry(), Some(4));
}

/// A log of five entries with a checkpoint; then the key changes hands (entry 5), three payloads of the five expire (6), the key changes hands
/// again (7), and one more payload is erased (9).
fn log_that_went_on() -> Log {
    let mut log = Log::of(5);
    log.rotate(key(2));
    log.dispose(&retention());
    log.rotate(key(3));
    log.event();
    log.dispose(&Disposal { policy: token("erasure:req_7"), before: None, categories: vec![], entries: vec![2] });
    log.checkpoint();
    log
}

#[test]
fn a_part_leads_to_the_key_that_signs_now_and_explains_what_is_gone_since() {
    let log = log_that_went_on();
    let part = log.part(&[5, 6, 7, 9]);
    for known in 1..=3 {
        let report = verify(&part, strict(&[key(known).verifier()]));
        assert!(report.is_sound() && report.key_known, "{:?}", report.faults);
        assert_eq!(
            (report.entries, report.keys.len(), report.expired.len()),
            (5, 3, 2),
            "what is later is none of its entries"
        );
        let resume = report.resume.unwrap();
        assert_eq!((resume.size, resume.key), (5, key(1).verifier().to_string()));
    }
    // Without one of them something is left in the air.
    for (later, kind) in [
        (vec![6, 7, 9], None),
        (vec![5, 7, 9], Some(FaultKind::Unexplained { by: 6 })),
        (vec![5, 6, 7], Some(FaultKind::Unexplained { by: 9 })),
        (vec![], None),
    ] {
        let report = verify(&log.part(&later), strict(&[key(1).verifier()]));
        assert!(!report.is_sound(), "{later:?}");
        if let Some(kind) = kind {
            assert_eq!(report.faults.last().unwrap().kind, kind, "{later:?}");
        }
    }
    // Nor in another order, twice, from inside of the part, or where it explains nothing.
    for later in [vec![6, 5, 7, 9], vec![5, 5, 6, 7, 9], vec![4, 5, 6, 7, 9], vec![5, 6, 7, 8, 9]] {
        assert!(!verify(&log.part(&later), strict(&[key(1).verifier()])).is_sound(), "{later:?}");
    }
}

#[test]
fn what_is_later_than_a_part_counts_by_its_signatures() {
    let log = log_that_went_on();
    let known = Expectation { keys: vec![key(1).verifier()], ..Expectation::default() };
    let sound = log.part(&[5, 6, 7, 9]);
    let lines: Vec<String> = sound.lines().map(str::to_owned).collect();
    let first_later = lines.iter().position(|line| line.starts_with("{\"later\"")).unwrap();
    let with = |at: usize, line: String| {
        let mut lines = lines.clone();
        lines[at] = line;
        // Without the signature over the whole, which would show it as well.
        lines.pop();
        verify(&lines.join("\n"), known.clone())
    };
    assert!(with(first_later, lines[first_later].clone()).is_sound());
    // A bit of each byte of each of them.
    for (at, line) in lines.iter().enumerate().skip(first_later).take(4) {
        for byte in 0..line.len() {
            let mut bytes = line.clone().into_bytes();
            bytes[byte] ^= 1 << (byte % 7);
            let changed = String::from_utf8(bytes).unwrap();
            if !changed.contains('\n') {
                assert!(!with(at, changed.clone()).is_sound(), "{changed}");
            }
        }
    }
    // A stranger's key, brought in by the stranger alone; a rotation without the new key's signature.
    let mut forged = log.bare(5);
    forged.endorsement = Some(forged.signature);
    assert!(!with(first_later, Line::Later(forged).to_text()).is_sound());
    let mut stranger = Log::open_under(key(9));
    while stranger.size() < 5 {
        stranger.event();
    }
    stranger.rotate(key(8));
    assert!(!with(first_later, Line::Later(stranger.bare(5)).to_text()).is_sound());
    // A selection has its own way to say it, and nothing goes on behind what is later.
    let mut selection: Vec<String> = log.selection(&[0, 1, 5, 6]).lines().map(str::to_owned).collect();
    selection.pop();
    assert!(
        verify(&selection.join("\n"), Expectation { keys: vec![key(3).verifier()], ..Expectation::default() })
            .is_sound()
    );
    selection.push(Line::Later(log.bare(9)).to_text());
    assert!(
        !verify(&selection.join("\n"), Expectation { keys: vec![key(3).verifier()], ..Expectation::default() })
            .is_sound()
    );
    let mut goes_on = lines.clone();
    goes_on.pop();
    goes_on.push(Line::Entry(log.line(5)).to_text());
    assert!(!verify(&goes_on.join("\n"), known).is_sound());
}

#[test]
fn an_altered_payload_is_found_though_others_are_gone() {
    let log = log_that_went_on();
    let bundle = log.range(0);
    assert!(verify(&bundle, strict(&[key(3).verifier()])).is_sound());
    let mut lines: Vec<String> = bundle.lines().map(str::to_owned).collect();
    lines.pop();
    let known = || Expectation { keys: vec![key(3).verifier()], ..Expectation::default() };
    // What was erased comes back as something else, and what was not is changed.
    let erased = lines.iter().position(|line| line.contains("\"seq\":2,")).unwrap();
    let salt = log.rows[2].salt.clone();
    let mut back = log.bare(2);
    back.payload = Payload::shown(salt, "{\"ip\":\"198.51.100.1\"}").unwrap();
    let mut changed = lines.clone();
    changed[erased] = Line::Entry(back).to_text();
    let report = verify(&changed.join("\n"), known());
    assert_eq!((report.faults[0].kind.clone(), report.first_bad_entry()), (FaultKind::Payload, Some(2)));
    let mut changed = lines.clone();
    changed[erased] = lines[erased].replace("erasure:req_7", "erasure:req_8");
    assert_eq!(verify(&changed.join("\n"), known()).first_bad_entry(), Some(2));
    // Whoever kept it can still show it.
    let mut back = log.bare(2);
    back.payload = Payload::shown(log.rows[2].salt.clone(), &log.rows[2].payload).unwrap();
    let mut kept = lines;
    kept[erased] = Line::Entry(back).to_text();
    assert!(verify(&kept.join("\n"), known()).is_sound());
}

#[test]
fn a_selection_trusts_what_leads_back_to_a_known_key() {
    let mut log = Log::of(4);
    let kept = vec![log.checkpoints[0].1.clone()];
    log.rotate(key(2));
    log.event();
    log.checkpoint();
    let all = [key(1).verifier(), key(2).verifier()];
    assert!(verify(&log.selection(&[1, 5]), strict(&all)).is_sound());
    // Under the new key alone: the checkpoint that it signed covers the entries that say the old one.
    let report = verify(&log.selection(&[0, 1, 4, 5]), Expectation { kept, ..strict(&all[1..]) });
    assert!(report.is_sound() && report.key_known, "{:?}", report.faults);
    let report = verify(&log.selection(&[1, 5]), strict(&all[1..]));
    assert_eq!(report.faults[0].kind, FaultKind::Key(key(1).verifier().id()));
    // Under the old key alone nothing shows that the checkpoint is the log's.
    assert!(!verify(&log.selection(&[0, 1, 4, 5]), strict(&all[..1])).is_sound());
    // By itself it fits together.
    let unasked = verify(&log.selection(&[1, 5]), strict(&[]));
    assert!(unasked.is_sound() && !unasked.key_known, "{:?}", unasked.faults);
}

#[test]
fn an_entry_of_a_type_that_nobody_here_knows_is_proven_all_the_same() {
    let mut log = Log::of(3);
    let unknown = |name: &str, reason: Option<&str>| {
        let (name, reason) = (Event::Unknown(token(name)), reason.map(token));
        move |draft: &mut Draft| (draft.event, draft.reason) = (name, reason)
    };
    log.append(EventType::RunStarted, unknown("plugin.invented", Some(UNKNOWN_TYPE)), None);
    // A program that knows the type reads it later, and does not take the log for a forged one.
    log.append(EventType::RunStarted, unknown("grants.changed", Some(UNKNOWN_TYPE)), None);
    log.checkpoint();
    let report = verify(&log.range(0), strict(&[key(1).verifier()]));
    assert!(report.is_sound(), "{:?}", report.faults);
    assert_eq!((report.entries, report.unknown_types), (5, 1));
    log.append(EventType::RunStarted, unknown("grants.changed", None), None);
    log.checkpoint();
    let report = verify(&log.range(0), strict(&[key(1).verifier()]));
    assert_eq!((&report.faults[0].kind, report.faults_total), (&FaultKind::Category, 1));
    assert_eq!(Event::named("grants.changed"), EventType::GrantsChanged.into());
    assert_eq!(Event::named("no such thing"), Event::Unknown(token("no~such~thing")));
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_is_looked_at() {
    let log = Log::of(6);
    let bundle = log.range(0);
    let lines: Vec<_> = bundle.lines().collect();
    let mut verifier = Verifier::new(Expectation { keys: vec![key(1).verifier()], ..Expectation::default() });
    for (at, line) in lines.iter().take(7).enumerate() {
        match at {
            3 => verifier.unreadable_entry(2, &"its id has 15 bytes"),
            5 => verifier.line(&line.replace("\"n\":", "\"m\":")),
            _ => verifier.line(line),
        }
    }
    verifier.unplaced(&"aud_1");
    verifier.waits();
    let report = verifier.finish();
    let kinds: Vec<_> = report.faults.iter().map(|fault| (fault.entry, fault.kind.to_string())).collect();
    assert_eq!(kinds.len(), 3, "{kinds:?}");
    assert_eq!(kinds[0], (Some(2), "its row cannot be read: its id has 15 bytes".to_owned()));
    assert_eq!(report.faults[1].kind, FaultKind::Payload);
    assert_eq!(report.faults[1].entry, Some(4));
    assert_eq!(report.faults[2].kind, FaultKind::Unplaced { id: "aud_1".to_owned() });
    assert_eq!((report.entries, report.waiting, report.last), (5, 1, Some(5)));
}

#[test]
fn many_kept_checkpoints_are_each_compared() {
    let mut log = Log::open();
    log.checkpoint();
    while log.size() < 40 {
        log.event();
        log.checkpoint();
    }
    let kept: Vec<_> = log.checkpoints.iter().map(|(_, note)| note.clone()).collect();
    let known = [key(1).verifier()];
    let report = verify(&log.range(0), Expectation { kept: kept.clone(), ..strict(&known) });
    assert!(report.is_sound(), "{:?}", report.faults);
    assert_eq!(report.kept_agreed, (1..=40).collect::<Vec<_>>());
    let mut other = Log::open();
    while other.size() < 40 {
        if other.size() == 30 {
            other.append(EventType::RunCancelled, |_| {}, None);
        } else {
            other.event();
        }
    }
    other.checkpoint();
    let report = verify(&other.range(0), Expectation { kept, ..strict(&known) });
    assert_eq!(report.kept_agreed, (1..=30).collect::<Vec<_>>());
    assert_eq!((&report.faults[0].kind, report.faults_total), (&FaultKind::KeptFork { size: 31, agreed: 30 }, 10));
}

#[test]
fn a_state_vouches_for_no_more_than_was_known() {
    let mut log = Log::of(5);
    let blind = verify(&log.range(0), strict(&[])).resume.unwrap();
    let seeing = verify(&log.range(0), strict(&[key(1).verifier()])).resume.unwrap();
    while log.size() < 8 {
        log.event();
    }
    log.checkpoint();
    let part = log.range(5);
    let with =
        |resume: &Resume, keys: &[_]| verify(&part, Expectation { resume: Some(resume.clone()), ..strict(keys) });
    let report = with(&blind, &[]);
    assert!(report.is_sound() && !report.key_known, "nobody knew a key: {:?}", report.faults);
    assert!(report.resume.unwrap().known.is_empty());
    assert!(with(&blind, &[key(1).verifier()]).is_sound());
    assert!(with(&seeing, &[]).key_known);
    for state in [&blind, &seeing] {
        let stranger = with(state, &[key(9).verifier()]);
        assert_eq!(stranger.faults[0].kind, FaultKind::KeyUnknown);
    }
    // What was known once goes on to count when the key has changed hands since.
    log.rotate(key(2));
    log.event();
    log.checkpoint();
    let keys = [key(1).verifier()];
    let rotated = verify(&log.range(5), Expectation { resume: Some(seeing), ..strict(&keys) }).resume.unwrap();
    log.event();
    log.checkpoint();
    let report = verify(&log.range(10), Expectation { resume: Some(rotated), ..strict(&keys) });
    assert!(report.is_sound() && report.key_known, "{:?}", report.faults);
    // A state of before says nothing about keys, and so nothing is known by it.
    let old = serde_json::to_value(&blind).unwrap();
    let mut old = old.as_object().unwrap().clone();
    old.remove("known");
    assert_eq!(serde_json::from_value::<Resume>(old.into()).unwrap(), blind);
}

#[test]
fn a_part_goes_on_where_the_last_one_ended() {
    let mut log = Log::of(5);
    let first = verify(&log.range(0), strict(&[key(1).verifier()]));
    let resume: Resume = first.resume.unwrap();
    let text = serde_json::to_string(&resume).unwrap();
    let resume: Resume = serde_json::from_str(&text).unwrap();
    while log.size() < 11 {
        log.event();
    }
    log.checkpoint();
    let kept = vec![log.checkpoints[0].1.clone()];
    let going_on = Expectation { resume: Some(resume.clone()), kept: kept.clone(), ..strict(&[]) };
    let report = verify(&log.range(5), going_on.clone());
    assert!(report.is_sound() && report.key_known, "{:?}", report.faults);
    assert_eq!((report.first, report.last, report.resume.unwrap().size), (Some(5), Some(10), 11));
    // Not from elsewhere, and not from another history.
    assert_eq!(verify(&log.range(4), going_on.clone()).faults[0].kind, FaultKind::Resume);
    let mut other = Log::open();
    while other.size() < 11 {
        other.append(EventType::RunCancelled, |_| {}, None);
    }
    other.checkpoint();
    assert_eq!(verify(&other.range(5), going_on).faults[0].kind, FaultKind::Resume);
    // Without a state the kept checkpoint's proof ties the part to what was kept.
    let by_checkpoint = verify(&log.range(8), Expectation { kept: kept.clone(), ..strict(&[key(1).verifier()]) });
    assert!(by_checkpoint.is_sound(), "{:?}", by_checkpoint.faults);
    assert_eq!(by_checkpoint.kept_agreed, [5]);
    let where_it_was_kept = verify(&log.range(5), Expectation { kept: kept.clone(), ..strict(&[key(1).verifier()]) });
    assert!(where_it_was_kept.is_sound() && where_it_was_kept.kept_agreed == [5], "{:?}", where_it_was_kept.faults);
    let elsewhere = verify(&other.range(5), Expectation { kept: kept.clone(), ..strict(&[key(1).verifier()]) });
    assert_eq!(elsewhere.faults[0].kind, FaultKind::KeptFork { size: 5, agreed: 5 });
    let forked = verify(&other.range(8), Expectation { kept, ..strict(&[key(1).verifier()]) });
    assert_eq!(forked.faults[0].kind, FaultKind::KeptUnproven { size: 5 });
}

#[test]
fn a_selection_proves_each_of_its_entries() {
    let mut log = Log::of(10);
    let kept = vec![log.checkpoints[0].1.clone()];
    while log.size() < 21 {
        log.event();
    }
    log.checkpoint();
    let bundle = log.selection(&[0, 3, 4, 17]);
    let report = verify(&bundle, Expectation { kept, ..strict(&[key(1).verifier()]) });
    assert!(report.is_sound(), "{:?}", report.faults);
    assert_eq!((report.entries, report.kept_agreed.as_slice()), (4, [10].as_slice()));
    assert!(report.resume.is_none());
    let lines: Vec<_> = bundle.lines().collect();
    let rows = |lines: &[&str]| {
        verify(&lines.join("\n"), Expectation { keys: vec![key(1).verifier()], ..Expectation::default() })
    };
    // Another order, an entry whose path is another's, one from a log that was never under the checkpoint.
    let swapped = [lines[0], lines[1], lines[3], lines[2]];
    assert_eq!(rows(&swapped).first_bad_entry(), Some(0));
    let mut wrong_path = log.line(4);
    wrong_path.path = Some(vec![log.rows[3].entry.leaf]);
    let wrong_path = bulkhead_audit::bundle::Line::Entry(wrong_path).to_text();
    let report = rows(&[lines[0], lines[1], &wrong_path]);
    assert_eq!((report.first_bad_entry(), &report.faults[0].kind), (Some(4), &FaultKind::Path));
    assert_eq!(rows(&[lines[0], lines[2]]).first_bad_entry(), Some(0), "without its checkpoint nothing is proven");
}

#[test]
fn another_organizations_log_is_not_taken_for_the_one_asked_for() {
    let log = Log::of(3);
    let asked = Expectation { org: Some(token("org_2")), ..strict(&[key(1).verifier()]) };
    assert_eq!(verify(&log.range(0), asked).faults[0].kind, FaultKind::OtherLog);
    let asked = Expectation { org: Some(org()), ..strict(&[key(1).verifier()]) };
    assert!(verify(&log.range(0), asked).is_sound());
    let renamed = log.range(0).replace(org().as_str(), "org_01jd0000000000000000000002");
    assert!(!verify(&renamed, strict(&[key(1).verifier()])).is_sound());
}

#[test]
fn an_entry_behind_the_last_checkpoint_is_named_in_a_file_and_counted_in_a_database() {
    let mut log = Log::of(4);
    log.event();
    let bundle = log.range(0);
    let report = verify(&bundle, strict(&[key(1).verifier()]));
    assert_eq!(report.faults[0].kind, FaultKind::Uncovered { from: 4, to: 5 });
    let rows = bundle.lines().filter(|line| !line.starts_with("{\"end\"")).collect::<Vec<_>>().join("\n");
    let report = verify(&rows, Expectation { keys: vec![key(1).verifier()], ..Expectation::default() });
    assert!(report.is_sound(), "{:?}", report.faults);
    assert_eq!(report.after_checkpoint, 1);
}
