//! The audit log over the years: details are forgotten, keys change hands, and every proof goes on to hold.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_app::AppError;
use bulkhead_app::audit_log::{AuditRetentionDetail, ErasedAudit, ErasureOf};
use bulkhead_audit::bundle::Line;
use bulkhead_audit::checkpoint::Checkpoint;
use bulkhead_audit::key::VerifierKey;
use bulkhead_audit::merkle;
use bulkhead_audit::note::Note;
use bulkhead_audit::retention::PayloadRetention;
use bulkhead_audit::taxonomy::Category;
use bulkhead_audit::verify::{FaultKind, Report};
use bulkhead_model::permission::Permission;
use bulkhead_store::StoreError;
use bulkhead_store::audit::AuditFilter;
use serde_json::{Value, json};

use crate::audit_log::{acts, export, key, record, verify, verify_database};
use crate::support::{Options, Tenant, TestApp, problems};

const DAY: Duration = Duration::from_hours(24);

async fn erase(app: &TestApp, tenant: &Tenant, of: ErasureOf) -> Result<ErasedAudit, AppError> {
    app.app.erase_audit_payloads(&tenant.caller, tenant.org, "dsr-17".parse().unwrap(), of).await
}

async fn prove(app: &TestApp, tenant: &Tenant, seq: u64) -> String {
    app.app.prove_audit_entry(&tenant.caller, tenant.org, seq).await.unwrap().into_text().await.unwrap()
}

async fn select(app: &TestApp, tenant: &Tenant, filter: AuditFilter) -> String {
    app.app.select_audit(&tenant.caller, tenant.org, filter).await.unwrap().into_text().await.unwrap()
}

async fn sheet(app: &TestApp, tenant: &Tenant, filter: AuditFilter) -> String {
    let mut sheet = app.app.sheet_audit(&tenant.caller, tenant.org, filter).await.unwrap();
    let mut text = String::new();
    while let Some(lines) = sheet.next().await.unwrap() {
        text.push_str(&lines);
    }
    text
}

#[track_caller]
fn assert_sound(report: &Report) {
    assert!(report.is_sound() && (report.key_known || report.coverage.is_none()), "{:?}", report.faults);
}

/// The root of a signed checkpoint.
fn root(note: &str) -> (u64, bulkhead_audit::hash::Hash) {
    let checkpoint = Checkpoint::from_text(Note::parse(note).unwrap().text()).unwrap();
    (checkpoint.size, checkpoint.root)
}

on_both! {
    async fn details_whose_time_is_over_are_forgotten_and_every_proof_holds(app: TestApp) {
        let acme = app.tenant("acme").await;
        acts(&app, &acme, 3).await;
        app.audit(&acme, "api_key.created").await;
        let kept = app.app.seal_audit_log(acme.org, true).await.unwrap().remove(0).note;
        let known = [key(&app, &acme).await];
        let before = export(&app, &acme, 0, None).await;
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        assert_eq!(app.app.expire_audit_payloads().await.unwrap(), 0, "nothing is old");
        // Who read what goes after 90 days, the rest after 400.
        app.ambient.advance(90 * DAY);
        assert_eq!(app.app.expire_audit_payloads().await.unwrap(), 0, "not before its time");
        app.ambient.advance(DAY);
        assert_eq!(app.app.expire_audit_payloads().await.unwrap(), 2, "a reading and an export");
        assert_eq!(app.app.expire_audit_payloads().await.unwrap(), 0, "once");
        let said = app.audit(&acme, "audit.payloads_expired").await;
        assert_eq!((said.len(), &said[0].detail["days"], &said[0].detail["categories"]), (1, &json!(90), &json!(["data_access"])));
        let read = app.audit(&acme, "audit.read").await;
        let gone = read.last().unwrap();
        assert_eq!((&gone.detail, gone.disposed_by), (&Value::Null, said[0].seq), "it says what became of it");

        app.ambient.advance(310 * DAY);
        assert!(app.app.expire_audit_payloads().await.unwrap() >= 6, "the opening, the organization, its keys, and who read since");
        let report = app.app.verify_audit_as_operator(acme.org, known.to_vec(), vec![kept.clone()]).await.unwrap();
        assert_sound(&report);
        let policies: Vec<_> = report.expired.iter().map(|expired| expired.policy.as_str()).collect();
        assert!(policies.contains(&"retention:90d") && policies.contains(&"retention:400d"), "{policies:?}");
        let after = export(&app, &acme, 0, None).await;
        let report = verify(&after, &known, vec![kept.clone()]);
        assert_sound(&report);
        assert!(report.expired.iter().map(|expired| expired.payloads).sum::<u64>() >= 8);
        // Nothing of what was said is in it, and what was taken out before verifies as it did.
        let salts = before.lines().filter_map(|line| match serde_json::from_str(line).unwrap() {
            Line::Entry(entry) => match entry.payload {
                bulkhead_audit::bundle::Payload::Shown { salt, .. } => Some(salt.to_string()),
                _ => None,
            },
            _ => None,
        });
        assert!(salts.filter(|salt| after.contains(salt.as_str())).count() == 0, "no salt is left");
        assert!(!after.contains("\"name\":\"key 1\""));
        assert_sound(&verify(&before, &known, vec![kept]));
        for seq in [0, 2, 5] {
            assert_sound(&verify(&prove(&app, &acme, seq).await, &known, vec![]));
        }
        // Nor does it matter that an entry which says so loses its own details.
        let exports = app.audit(&acme, "audit.exported").await;
        let some = exports.iter().find(|entry| entry.seq.is_some() && !entry.detail.is_null()).and_then(|entry| entry.seq).unwrap();
        let by = erase(&app, &acme, ErasureOf::Entries(vec![some])).await.unwrap().by.unwrap();
        app.ambient.advance(402 * DAY);
        assert!(app.app.expire_audit_payloads().await.unwrap() >= 1);
        assert!(app.audit(&acme, "audit.payloads_erased").await.iter().all(|entry| entry.seq == Some(by) && entry.disposed_by.is_some()));
        // What expiries say is kept: forgetting it would have to be said again.
        assert!(app.audit(&acme, "audit.payloads_expired").await.iter().all(|entry| entry.disposed_by.is_none()));
        for seq in [0, 2, 5, some, by] {
            assert_sound(&verify(&prove(&app, &acme, seq).await, &known, vec![]));
        }
    }

    async fn a_forgotten_detail_that_is_altered_is_found(app: TestApp) {
        let acme = app.tenant("acme").await;
        acts(&app, &acme, 5).await;
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        let erased = erase(&app, &acme, ErasureOf::Entries(vec![3, 4, 5])).await.unwrap();
        let by = erased.by.unwrap();
        assert_eq!(erased, ErasedAudit { payloads: 3, by: Some(by), more: false });
        assert!(verify_database(&app, &acme).await.is_sound());
        let entry = |seq: u64| format!("where id = (select id from audit_entry where seq = {seq})");
        // Something else in its place, another reason, a detail that nobody disposed of.
        app.tamper(acme.org, &format!("update audit set detail = '{{\"name\":\"x\"}}' {}", entry(3)));
        app.tamper(acme.org, "update audit_entry set disposed_by = 6 where seq = 4");
        app.tamper(acme.org, &format!("update audit set detail = 'null' {}", entry(6)));
        app.tamper(acme.org, &format!("update audit_entry set disposed_by = {by}, salt = substr(salt, 1, 0) where seq = 6"));
        app.tamper(acme.org, &format!("update audit set detail = 'null' {}", entry(2)));
        let report = verify_database(&app, &acme).await;
        let found: Vec<_> = report.faults.iter().map(|fault| (fault.entry, fault.kind.clone())).collect();
        for wanted in [
            (Some(3), FaultKind::Payload),
            (Some(2), FaultKind::Payload),
            (Some(4), FaultKind::Unexplained { by: 6 }),
            (Some(6), FaultKind::Unexplained { by }),
        ] {
            assert!(found.contains(&wanted), "{wanted:?} in {found:?}");
        }
        assert_eq!(found.len(), 4, "{found:?}");
    }

    async fn erasing_is_said_and_done_once(app: TestApp) {
        let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
        acts(&app, &acme, 3).await;
        let subject = app.audit(&acme, "api_key.created").await[0].target.clone();
        let erased = erase(&app, &acme, ErasureOf::Subject(subject.clone())).await.unwrap();
        assert_eq!((erased.payloads, erased.more), (1, false));
        let again = erase(&app, &acme, ErasureOf::Subject(subject.clone())).await.unwrap();
        assert_eq!(again, ErasedAudit { payloads: 0, by: None, more: false });
        let named = erase(&app, &acme, ErasureOf::Entries(vec![0])).await.unwrap();
        assert_eq!(named.payloads, 1);
        let said = app.audit(&acme, "audit.payloads_erased").await;
        assert_eq!(said.len(), 2);
        assert_eq!((said[1].seq, &said[1].detail["reference"]), (erased.by, &json!("dsr-17")));
        assert_eq!(said[1].actor, acme.caller.actor().to_string());
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        let bundle = export(&app, &acme, 0, None).await;
        assert!(bundle.contains("\"policy\":\"erasure:dsr-17\""));
        assert_sound(&verify(&bundle, &[key(&app, &acme).await], vec![]));
        let policy = verify_database(&app, &acme).await.expired[0].policy.to_string();
        assert_eq!(policy, "erasure:dsr-17");

        let places = |of| async { problems(erase(&app, &acme, of).await, "invalid-erasure") };
        assert_eq!(places(ErasureOf::Entries(vec![])).await[0].0, "/entries");
        assert_eq!(places(ErasureOf::Entries(vec![1, 1])).await[0].0, "/entries");
        assert_eq!(places(ErasureOf::Entries((0..1001).collect())).await[0].0, "/entries");
        assert_eq!(places(ErasureOf::Entries(vec![1, 999])).await[0].0, "/entries/1");
        assert_eq!(places(ErasureOf::Subject("two words".to_owned())).await[0].0, "/subject");
        let first = &app.audit(&acme, "org.created").await[0];
        assert!(first.seq == Some(1) && !first.detail.is_null(), "what is refused erases nothing");
        // It is a right of its own, and reaches no other organization's.
        let lacks = acme.only(&[Permission::AuditRead, Permission::AuditExport, Permission::RetentionWrite, Permission::ComplianceWrite]);
        let of = || ErasureOf::Subject(subject.clone());
        let reference = || "x".parse().unwrap();
        let refused = app.app.erase_audit_payloads(&lacks, acme.org, reference(), of()).await;
        assert!(matches!(refused, Err(AppError::Forbidden(Permission::ComplianceErase))));
        assert!(app.app.erase_audit_payloads(&other.caller, acme.org, reference(), of()).await.is_err());
        assert_eq!(erase(&app, &other, of()).await.unwrap().payloads, 0);
    }

    async fn an_organization_says_for_how_long(app: TestApp) {
        let acme = app.tenant("acme").await;
        let policy = PayloadRetention { data_access: 30, ..PayloadRetention::of(31, 31) };
        let replace = async |seen: i64, policy: PayloadRetention| {
            app.app.replace_audit_retention(&acme.caller, acme.org, seen, policy).await
        };
        let shown = app.app.show_audit_retention(&acme.caller, acme.org).await.unwrap();
        assert_eq!(shown, AuditRetentionDetail { policy: PayloadRetention::default(), revision: 0 });
        let longer = app.again(Options::default()).with_audit_retention(PayloadRetention::of(1000, 31));
        assert_eq!(longer.show_audit_retention(&acme.caller, acme.org).await.unwrap().policy.api, 1000, "the operator's");
        assert!(matches!(replace(1, policy).await, Err(AppError::StaleVersion)));
        let short = PayloadRetention { security: 29, ..policy };
        assert_eq!(problems(replace(0, short).await, "invalid-retention"), [("/security".to_owned(), "out-of-range".to_owned())]);
        assert_eq!(replace(0, policy).await.unwrap().revision, 1);
        assert_eq!(replace(1, policy).await.unwrap().revision, 1, "nothing changed");
        assert!(matches!(replace(0, policy).await, Err(AppError::StaleVersion)));
        let said = app.audit(&acme, "audit.retention_changed").await;
        assert_eq!(said.len(), 1);
        assert_eq!((&said[0].detail["before"]["api"], &said[0].detail["after"]["api"]), (&json!(400), &json!(31)));
        let reader = acme.only(&[Permission::AuditRead]);
        assert!(app.app.show_audit_retention(&reader, acme.org).await.is_ok());
        let refused = app.app.replace_audit_retention(&reader, acme.org, 1, policy).await;
        assert!(matches!(refused, Err(AppError::Forbidden(Permission::RetentionWrite))));
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        app.ambient.advance(32 * DAY);
        // The organization's own times count, and another's are the operator's.
        let other = app.tenant("other").await;
        app.app.seal_audit_log(other.org, true).await.unwrap();
        assert!(longer.expire_audit_payloads_of(acme.org).await.unwrap() >= 4);
        assert_eq!(longer.expire_audit_payloads_of(other.org).await.unwrap(), 0);
        assert!(verify_database(&app, &acme).await.is_sound());
    }

    async fn much_is_forgotten_in_turns_under_one_entry(app: TestApp) {
        let acme = app.tenant("acme").await;
        record(&app, &acme, 700).await;
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        app.ambient.advance(401 * DAY);
        assert_eq!(app.app.expire_audit_payloads_of(acme.org).await.unwrap(), 703);
        assert_eq!(app.audit(&acme, "audit.payloads_expired").await.len(), 1);
        let report = verify_database(&app, &acme).await;
        assert!(report.is_sound(), "{:?}", report.faults);
        assert_eq!(report.expired[0].payloads, 703);
    }

    async fn nothing_is_forgotten_in_a_log_that_was_cut_off(app: TestApp) {
        let acme = app.tenant("acme").await;
        acts(&app, &acme, 3).await;
        let kept = app.app.seal_audit_log(acme.org, true).await.unwrap().remove(0).note;
        let guarded = app.again(Options::default()).with_kept_checkpoints(Arc::new(move |_| Ok(Some(kept.clone()))));
        app.tamper(acme.org, "delete from audit_waiting; delete from audit_entry; delete from audit_checkpoint; delete from audit_log");
        acts(&app, &acme, 1).await;
        app.ambient.advance(401 * DAY);
        let cut_off = |result: Result<(), AppError>| {
            let error = result.unwrap_err();
            assert!(matches!(&error, AppError::Store(StoreError::Corrupt { why, .. }) if why.contains("cut off")), "{error:?}");
        };
        cut_off(guarded.rotate_audit_key(&acme.caller, acme.org).await.map(drop));
        let of = ErasureOf::Subject("x".to_owned());
        cut_off(guarded.erase_audit_payloads(&acme.caller, acme.org, "x".parse().unwrap(), of).await.map(drop));
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        app.ambient.advance(401 * DAY);
        cut_off(guarded.expire_audit_payloads_of(acme.org).await.map(drop));
        assert!(app.audit(&acme, "api_key.created").await.iter().all(|entry| !entry.detail.is_null()));
    }

    async fn a_key_changes_hands_and_what_the_old_one_signed_stays_proven(app: TestApp) {
        let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
        acts(&app, &acme, 2).await;
        let kept = app.app.seal_audit_log(acme.org, true).await.unwrap().remove(0).note;
        let old = key(&app, &acme).await;
        let rotated = app.app.rotate_audit_key(&acme.caller, acme.org).await.unwrap();
        let new: VerifierKey = rotated.verifier_key.parse().unwrap();
        assert_ne!(old, new);
        let said = app.audit(&acme, "audit.log_key_rotated").await;
        assert_eq!((&said[0].detail["before"], &said[0].detail["after"]), (&json!(old.to_string()), &json!(new.to_string())));
        assert_eq!((said[0].seq, &said[0].actor), (Some(rotated.since), &acme.caller.actor().to_string()));
        acts(&app, &acme, 2).await;
        // Another node reads the key from the database.
        let node = app.again(Options::default());
        let newest = node.seal_audit_log(acme.org, true).await.unwrap().remove(0).note;
        assert!(Note::parse(&newest).unwrap().verify(std::slice::from_ref(&new)).is_ok(), "the new key signs");
        let keys = app.app.list_audit_keys(&acme.caller, acme.org).await.unwrap();
        assert_eq!(keys.iter().map(|key| key.since).collect::<Vec<_>>(), [0, rotated.since]);
        assert_eq!(keys[0].verifier_key, old.to_string());
        let bundle = export(&app, &acme, 0, None).await;
        for known in [&old, &new] {
            let report = verify(&bundle, std::slice::from_ref(known), vec![kept.clone(), newest.clone()]);
            assert_sound(&report);
            assert_eq!(report.keys.len(), 2, "the bundle holds both");
            assert_sound(&app.app.verify_audit_as_operator(acme.org, vec![known.clone()], vec![kept.clone()]).await.unwrap());
        }
        // From behind the rotation, and an entry from before it, under the new key alone.
        assert_sound(&verify(&export(&app, &acme, rotated.since + 1, None).await, std::slice::from_ref(&new), vec![]));
        assert_sound(&verify(&export(&app, &acme, rotated.since, None).await, std::slice::from_ref(&new), vec![]));
        assert_sound(&verify(&prove(&app, &acme, 2).await, std::slice::from_ref(&new), vec![]));
        // Twice more, and nobody else may.
        for _ in 0..2 {
            app.app.rotate_audit_key(&acme.caller, acme.org).await.unwrap();
        }
        assert_sound(&verify(&export(&app, &acme, 0, None).await, &[old], vec![kept]));
        let reader = acme.only(&[Permission::AuditRead, Permission::AuditExport]);
        let refused = app.app.rotate_audit_key(&reader, acme.org).await;
        assert!(matches!(refused, Err(AppError::Forbidden(Permission::EncryptionRotate))));
        assert!(app.app.rotate_audit_key(&other.caller, acme.org).await.is_err());
        assert!(app.app.list_audit_keys(&other.caller, acme.org).await.is_err());
        // Before anything was sealed a log is opened for it.
        assert_eq!(app.app.rotate_audit_key(&other.caller, other.org).await.unwrap().since, 1);
        assert!(verify_database(&app, &other).await.is_sound());
    }

    async fn a_row_that_says_that_it_brings_a_key_brings_none(app: TestApp) {
        let acme = app.tenant("acme").await;
        acts(&app, &acme, 1).await;
        app.tamper(acme.org, "update audit set action = 'audit.log_key_rotated' where action = 'org.created'");
        app.tamper(acme.org, "update audit set action = 'audit.payloads_expired' where id = (select id from audit where action = 'api_key.created' order by id limit 1)");
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        assert_eq!(app.app.list_audit_keys(&acme.caller, acme.org).await.unwrap().len(), 1);
        let bundle = export(&app, &acme, 0, None).await;
        assert_sound(&verify(&bundle, &[key(&app, &acme).await], vec![]));
        assert!(bundle.contains("audit.row_refused") && !bundle.contains("\"disposal\""));
        // Nor does it hold up one that does.
        app.app.rotate_audit_key(&acme.caller, acme.org).await.unwrap();
        assert_eq!(app.app.list_audit_keys(&acme.caller, acme.org).await.unwrap().len(), 2);
        assert_sound(&verify(&export(&app, &acme, 0, None).await, &[key(&app, &acme).await], vec![]));
    }

    async fn a_part_says_what_became_of_it_since(app: TestApp) {
        let acme = app.tenant("acme").await;
        acts(&app, &acme, 2).await;
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        let old = key(&app, &acme).await;
        for _ in 0..6 {
            record(&app, &acme, 1000).await;
            app.app.seal_audit_log(acme.org, true).await.unwrap();
        }
        erase(&app, &acme, ErasureOf::Entries(vec![1, 2])).await.unwrap();
        app.app.rotate_audit_key(&acme.caller, acme.org).await.unwrap();
        erase(&app, &acme, ErasureOf::Entries(vec![3])).await.unwrap();
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        let new = key(&app, &acme).await;
        let part = export(&app, &acme, 0, None).await;
        let lines: Vec<Line> = part.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let later = lines.iter().filter(|line| matches!(line, Line::Later(_))).count();
        assert_eq!(later, 3, "two erasures and a key, all behind its end");
        for known in [&old, &new] {
            let report = verify(&part, std::slice::from_ref(known), vec![]);
            assert_sound(&report);
            assert!(report.entries < 6000 && report.expired.len() == 2, "{report:?}");
        }
    }

    async fn what_is_chosen_is_proven_entry_by_entry(app: TestApp) {
        let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
        acts(&app, &acme, 4).await;
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        let known = [key(&app, &acme).await];
        let proof = prove(&app, &acme, 3).await;
        let report = verify(&proof, &known, vec![]);
        assert_sound(&report);
        assert_eq!((report.entries, report.first), (1, Some(3)));
        assert!(!verify(&proof.replace("api_key.created", "api_key.updated"), &known, vec![]).is_sound());
        // One that was erased comes with the entry that says so.
        let by = erase(&app, &acme, ErasureOf::Entries(vec![3])).await.unwrap().by.unwrap();
        let report = verify(&prove(&app, &acme, 3).await, &known, vec![]);
        assert_sound(&report);
        assert_eq!((report.entries, report.last, report.expired[0].by), (2, Some(by), by));
        // By what is asked for.
        let api = AuditFilter { category: Some(Category::Api), ..AuditFilter::default() };
        let report = verify(&select(&app, &acme, api.clone()).await, &known, vec![]);
        assert_sound(&report);
        assert_eq!(report.entries, 6, "five keys and the erasure that one of them needs");
        let none = AuditFilter { action: Some("secret.stored".to_owned()), ..AuditFilter::default() };
        let nothing = app.app.select_audit(&acme.caller, acme.org, none).await.err();
        assert!(matches!(nothing, Some(AppError::NotFound { .. })));
        assert!(matches!(app.app.prove_audit_entry(&acme.caller, acme.org, 999).await.err(), Some(AppError::NotFound { .. })));
        // As a sheet.
        let text = sheet(&app, &acme, api.clone()).await;
        let rows: Vec<_> = text.lines().collect();
        assert_eq!(rows[0], "seq,id,created_at,action,category,severity,actor,target,detail,disposed_by");
        assert_eq!(rows.len(), 6);
        assert!(rows[1..].iter().all(|row| row.contains("api_key.created,api,notice")), "{text}");
        assert!(text.contains(&format!(",\"\",{by}")), "{text}");
        // Each is an entry, and a right of its own.
        let exports: Vec<_> = app.audit(&acme, "audit.exported").await.iter().map(|entry| entry.detail.clone()).collect();
        for (form, of) in [("csv", json!({ "category": "api" })), ("selection", json!({ "category": "api" })), ("selection", json!({ "entry": 3 }))] {
            assert!(exports.contains(&json!({ "form": form, "of": of })), "{form} of {of} in {exports:?}");
        }
        let reader = acme.only(&[Permission::AuditRead]);
        assert!(matches!(app.app.prove_audit_entry(&reader, acme.org, 1).await.err(), Some(AppError::Forbidden(Permission::AuditExport))));
        assert!(matches!(app.app.select_audit(&reader, acme.org, api.clone()).await.err(), Some(AppError::Forbidden(_))));
        assert!(matches!(app.app.sheet_audit(&reader, acme.org, api.clone()).await.err(), Some(AppError::Forbidden(_))));
        assert!(app.app.select_audit(&other.caller, acme.org, api).await.is_err());
    }

    async fn the_newest_checkpoint_of_each_log_is_told_after_a_restart(app: TestApp) {
        let (acme, other, _) = (app.tenant("acme").await, app.tenant("other").await, app.tenant("unsealed").await);
        for tenant in [&acme, &other] {
            app.app.seal_audit_log(tenant.org, true).await.unwrap();
        }
        acts(&app, &acme, 2).await;
        let last = app.app.seal_audit_log(acme.org, true).await.unwrap().remove(0);
        let newest = app.again(Options::default()).newest_audit_checkpoints().await.unwrap();
        assert_eq!(newest.len(), 2);
        assert!(newest.contains(&last) && newest.iter().any(|checkpoint| checkpoint.org == other.org));
    }

    async fn between_two_sizes_there_is_a_proof(app: TestApp) {
        let acme = app.tenant("acme").await;
        let nothing = app.app.audit_consistency(&acme.caller, acme.org, 1, None).await;
        assert!(matches!(nothing, Err(AppError::NotFound { .. })));
        acts(&app, &acme, 3).await;
        let first = app.app.seal_audit_log(acme.org, true).await.unwrap().remove(0).note;
        acts(&app, &acme, 7).await;
        let second = app.app.seal_audit_log(acme.org, true).await.unwrap().remove(0).note;
        let ((from, old), (to, new)) = (root(&first), root(&second));
        let found = app.app.audit_consistency(&acme.caller, acme.org, from, None).await.unwrap();
        assert_eq!((found.to, found.checkpoint.as_deref()), (to, Some(second.as_str())));
        assert!(merkle::verify_consistency(from, to, old, new, &found.path).is_ok());
        let between = app.app.audit_consistency(&acme.caller, acme.org, from, Some(to - 1)).await.unwrap();
        assert_eq!(between.checkpoint, None);
        for (from, to) in [(0, Some(to)), (to, Some(from)), (1, Some(to + 1))] {
            let refused = app.app.audit_consistency(&acme.caller, acme.org, from, to).await;
            problems(refused, "invalid-consistency");
        }
    }
}

#[test]
fn a_reference_that_is_no_code_is_refused() {
    for reference in ["", "two words", "\"x\"", "é"] {
        assert!(reference.parse::<bulkhead_audit::record::Token>().is_err(), "{reference:?}");
    }
}
