//! The audit log: entries get their place, bundles verify, and whoever changes the database is found.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_app::AppError;
use bulkhead_app::api_key::NewApiKey;
use bulkhead_audit::key::VerifierKey;
use bulkhead_audit::taxonomy::EventType;
use bulkhead_audit::verify::{Expectation, FaultKind, Report, Verifier};
use bulkhead_model::id::ApiKeyId;
use bulkhead_model::permission::{Actor, Permission, PermissionSet, SystemReason, SystemScope};
use bulkhead_model::role::assignment::Within;
use bulkhead_model::token::Token;
use bulkhead_store::StoreError;
use bulkhead_store::audit::AuditEvent;
use serde_json::json;

use crate::support::{Tenant, TestApp};

pub(crate) async fn acts(app: &TestApp, acme: &Tenant, count: usize) {
    for at in 0..count {
        app.ambient.advance(Duration::from_millis(5));
        let new = NewApiKey::new(format!("key {at}"), PermissionSet::all(), None);
        app.app.create_api_key(&acme.caller, acme.org, new).await.unwrap();
    }
}

pub(crate) fn verify(bundle: &str, keys: &[VerifierKey], kept: Vec<String>) -> Report {
    let mut verifier = Verifier::new(Expectation { keys: keys.to_vec(), kept, end: true, ..Expectation::default() });
    bundle.lines().for_each(|line| verifier.line(line));
    verifier.finish()
}

pub(crate) async fn export(app: &TestApp, acme: &Tenant, first: u64, since: Option<u64>) -> String {
    app.app.export_audit(&acme.caller, acme.org, first, since).await.unwrap().into_text().await.unwrap()
}

pub(crate) async fn verify_database(app: &TestApp, acme: &Tenant) -> Report {
    app.app.verify_audit_as_operator(acme.org, vec![], vec![]).await.unwrap()
}

/// Entries past all use cases, many in one transaction.
pub(crate) async fn record(app: &TestApp, acme: &Tenant, count: usize) {
    let scope = SystemScope::new(SystemReason::Worker).for_org(acme.org);
    for _ in 0..count.div_ceil(1000) {
        let args = (app.ambient.clone(), count.min(1000));
        let written = app.store.write(&scope, args, |tx, (ambient, count)| {
            Box::pin(async move {
                for _ in 0..*count {
                    let event = AuditEvent {
                        action: EventType::SecretStored,
                        target: "x".to_owned(),
                        actor: Actor::System(SystemReason::Worker),
                        detail: json!({}),
                    };
                    tx.record_audit(&event, ambient).await?;
                }
                Ok::<_, StoreError>(())
            })
        });
        written.await.unwrap();
    }
}

/// Numbers of entries with faults, with the faults.
fn named(report: &Report) -> Vec<(Option<u64>, String)> {
    report.faults.iter().map(|fault| (fault.entry, fault.kind.to_string())).collect()
}

pub(crate) async fn key(app: &TestApp, acme: &Tenant) -> VerifierKey {
    app.app.audit_checkpoint(&acme.caller, acme.org).await.unwrap().unwrap().1.parse().unwrap()
}

on_both! {
    async fn what_is_done_gets_its_place_and_is_proven(app: TestApp) {
        let acme = app.tenant("acme").await;
        acts(&app, &acme, 3).await;
        assert!(app.app.audit_checkpoint(&acme.caller, acme.org).await.unwrap().is_none(), "nothing is sealed yet");
        let first = app.app.seal_audit_logs().await.unwrap();
        assert_eq!(first.len(), 1, "the first seal signs a checkpoint");
        // The log's opening, the organization, its first key, three more.
        assert_eq!(first[0].size, 6);
        assert!(app.app.seal_audit_logs().await.unwrap().is_empty(), "nothing waits any more");
        acts(&app, &acme, 2).await;
        assert!(app.app.seal_audit_logs().await.unwrap().is_empty(), "sealed, but no checkpoint is due");
        app.ambient.advance(Duration::from_mins(2));
        let second = app.app.seal_audit_logs().await.unwrap();
        assert_eq!(second.iter().map(|checkpoint| checkpoint.size).collect::<Vec<_>>(), [8], "due by its time, without a new entry");

        let bundle = export(&app, &acme, 0, None).await;
        let kept = vec![first[0].note.clone(), second[0].note.clone()];
        let known = key(&app, &acme).await;
        let report = verify(&bundle, std::slice::from_ref(&known), kept.clone());
        assert!(report.is_sound() && report.key_known, "{:?}", report.faults);
        assert_eq!((report.entries, report.kept_agreed.as_slice()), (8, [6, 8].as_slice()));
        assert!(!bundle.contains("audit.exported"), "nothing new had to be signed for it");
        let part = export(&app, &acme, 7, Some(6)).await;
        let report = verify(&part, std::slice::from_ref(&known), vec![first[0].note.clone()]);
        assert!(report.is_sound(), "{:?}", report.faults);
        assert_eq!((report.first, report.last), (Some(7), Some(9)), "the first export is an entry, and the second one is");
        assert_eq!(part.matches("audit.exported").count(), 2);
        // Who asks for what is not there leaves nothing behind, neither an entry nor a checkpoint.
        let newest = app.app.audit_checkpoint(&acme.caller, acme.org).await.unwrap();
        assert!(matches!(app.app.export_audit(&acme.caller, acme.org, 11, None).await.err(), Some(AppError::NotFound { .. })));
        assert_eq!(app.audit(&acme, "audit.exported").await.len(), 2);
        assert_eq!(app.app.audit_checkpoint(&acme.caller, acme.org).await.unwrap(), newest);
        // It is another right than to read.
        let reader = acme.only(&[Permission::AuditRead]);
        let refused = app.app.export_audit(&reader, acme.org, 0, None).await;
        assert!(matches!(refused.err(), Some(AppError::Forbidden(Permission::AuditExport))));
        let report = app.app.verify_audit_as_operator(acme.org, vec![known], kept).await.unwrap();
        assert!(report.is_sound() && report.key_known, "{:?}", report.faults);
    }

    async fn the_request_that_an_entry_was_written_in_is_signed_with_it(app: TestApp) {
        let acme = app.tenant("acme").await;
        acts(&app, &acme, 1).await;
        bulkhead_app::correlated("req-1.a", acts(&app, &acme, 1)).await;
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        let bundle = export(&app, &acme, 0, None).await;
        assert!(verify(&bundle, &[key(&app, &acme).await], vec![]).is_sound());
        assert_eq!(bundle.matches("req-1.a").count(), 1, "one entry of it");
        assert!(verify_database(&app, &acme).await.is_sound());
        for other in ["'req-2'", "null"] {
            app.tamper(acme.org, &format!("update audit set correlation = {other} where correlation is not null"));
            let report = verify_database(&app, &acme).await;
            assert_eq!(report.faults_total, 1, "{:?}", report.faults);
            assert_eq!(report.faults[0].kind, FaultKind::Index { what: "its correlation id" });
        }
    }

    async fn logs_of_organizations_are_their_own(app: TestApp) {
        let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
        acts(&app, &acme, 1).await;
        assert_eq!(app.app.seal_audit_logs().await.unwrap().len(), 2);
        assert!(app.app.export_audit(&other.caller, acme.org, 0, None).await.is_err());
        assert!(app.app.audit_checkpoint(&other.caller, acme.org).await.is_err());
        let bundle = export(&app, &other, 0, None).await;
        assert!(!bundle.contains(&acme.org.to_string()));
        assert!(!verify(&bundle, &[key(&app, &acme).await], vec![]).is_sound(), "not under another's key");
    }

    async fn who_seals_at_the_same_time_writes_one_history(app: TestApp) {
        let acme = app.tenant("acme").await;
        acts(&app, &acme, 20).await;
        let (one, two) = (app.again(crate::support::Options::default()), app.again(crate::support::Options::default()));
        let (left, right) = tokio::join!(one.seal_audit_log(acme.org, true), two.seal_audit_log(acme.org, true));
        // A lost race is tried again by the store; what is left over by the next look.
        drop((left, right));
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        let report = app.app.verify_audit_as_operator(acme.org, vec![], vec![]).await.unwrap();
        assert!(report.is_sound(), "{:?}", report.faults);
        assert_eq!(report.entries, 23);
    }

    async fn a_log_that_was_cut_off_is_not_signed_again(app: TestApp) {
        let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
        let kept: Arc<Mutex<Option<String>>> = Arc::default();
        let (shelf, org) = (Arc::clone(&kept), acme.org);
        let look_up = move |asked| Ok(if asked == org { shelf.lock().unwrap().clone() } else { None });
        let guarded = app.again(crate::support::Options::default()).with_kept_checkpoints(Arc::new(look_up));
        let early = guarded.seal_audit_log(acme.org, true).await.unwrap().remove(0).note;
        app.tamper(acme.org, "create table as_it_was as select * from audit_log");
        acts(&app, &acme, 5).await;
        let late = guarded.seal_audit_log(acme.org, true).await.unwrap().remove(0).note;
        guarded.check_audit_checkpoints(acme.org, &early, &late).await.unwrap();
        *kept.lock().unwrap() = Some(late.clone());
        acts(&app, &acme, 1).await;
        guarded.seal_audit_log(acme.org, false).await.unwrap();
        // Whoever has the database, and not the key, takes back what was done since: everything is as it was.
        let cut = [
            "delete from audit_waiting",
            "delete from audit_entry where seq >= (select size from as_it_was)",
            "delete from audit_checkpoint where size > (select size from as_it_was)",
            "delete from audit where id not in (select id from audit_entry)",
            "delete from audit_log",
            "insert into audit_log select * from as_it_was",
        ];
        // On SQLite each of these is for all organizations.
        app.tamper(acme.org, &cut.map(str::to_owned).join("; "));
        acts(&app, &acme, 1).await;
        let refused = guarded.seal_audit_log(acme.org, true).await.unwrap_err();
        assert!(matches!(&refused, AppError::Store(StoreError::Corrupt { why, .. }) if why.contains("cut off")), "{refused:?}");
        assert!(guarded.export_audit(&acme.caller, acme.org, 0, None).await.is_err(), "nothing is signed by another way either");
        assert!(guarded.seal_audit_logs().await.unwrap().iter().all(|signed| signed.org != acme.org));
        let newest = guarded.audit_checkpoint(&acme.caller, acme.org).await.unwrap().unwrap().0;
        assert_eq!(newest, early, "the one before the cut");
        // Other organizations go on, and another history of the same length is no better.
        acts(&app, &other, 1).await;
        guarded.seal_audit_log(other.org, true).await.unwrap();
        acts(&app, &acme, 9).await;
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        acts(&app, &acme, 1).await;
        let refused = guarded.seal_audit_log(acme.org, true).await.unwrap_err();
        assert!(matches!(&refused, AppError::Store(StoreError::Corrupt { why, .. }) if why.contains("rewritten")), "{refused:?}");
        let newest = guarded.audit_checkpoint(&acme.caller, acme.org).await.unwrap().unwrap().0;
        assert!(guarded.check_audit_checkpoints(acme.org, &late, &newest).await.is_err());
        // What is kept and cannot be read lets nothing through.
        *kept.lock().unwrap() = Some("no note".to_owned());
        assert!(guarded.seal_audit_log(acme.org, true).await.is_err());
    }

    async fn a_backlog_is_sealed_in_turns_with_checkpoints_on_the_way(app: TestApp) {
        let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
        app.app.seal_audit_logs().await.unwrap();
        record(&app, &acme, 6000).await;
        acts(&app, &other, 1).await;
        let signed = app.app.seal_audit_log(acme.org, false).await.unwrap();
        let sizes: Vec<_> = signed.iter().map(|checkpoint| checkpoint.size).collect();
        assert!(sizes.len() >= 3 && sizes[0] < 1500, "signed while there was more: {sizes:?}");
        assert!(sizes.last().is_some_and(|size| *size < 5000), "one look takes on so many: {sizes:?}");
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        // A log as it was written before: its next checkpoint is farther away than a bundle is long.
        app.tamper(acme.org, "delete from audit_checkpoint where size > 100 and size < 6000");
        let bundle = export(&app, &acme, 100, None).await;
        let report = verify(&bundle, &[key(&app, &acme).await], vec![]);
        assert!(report.is_sound(), "{:?}", report.faults);
        assert!(report.entries > 5000 && report.first == Some(100), "{} entries", report.entries);
    }

    async fn a_bundle_of_much_ends_at_a_checkpoint_on_the_way(app: TestApp) {
        let acme = app.tenant("acme").await;
        let scope = SystemScope::new(SystemReason::Worker).for_org(acme.org);
        for _ in 0..4 {
            let written = app.store.write(&scope, app.ambient.clone(), |tx, ambient| {
                Box::pin(async move {
                    for _ in 0..100 {
                        let (action, target) = (EventType::SecretStored, "x".to_owned());
                        let detail = json!({ "text": "x".repeat(60_000 * 2) , "n": ["y".repeat(1000)] });
                        let actor = Actor::System(SystemReason::Worker);
                        tx.record_audit(&AuditEvent { action, target, actor, detail }, ambient).await?;
                        let detail = json!({ "text": "x".repeat(60_000) });
                        let (target, actor) = ("x".to_owned(), Actor::System(SystemReason::Worker));
                        tx.record_audit(&AuditEvent { action, target, actor, detail }, ambient).await?;
                    }
                    Ok::<_, StoreError>(())
                })
            });
            written.await.unwrap();
            app.app.seal_audit_log(acme.org, true).await.unwrap();
        }
        let known = [key(&app, &acme).await];
        let mut bundle = app.app.export_audit(&acme.caller, acme.org, 0, None).await.unwrap();
        let (mut text, mut longest) = (String::new(), 0);
        while let Some(lines) = bundle.next().await.unwrap() {
            longest = longest.max(lines.len());
            text.push_str(&lines);
        }
        let report = verify(&text, &known, vec![]);
        assert!(report.is_sound(), "{:?}", report.faults);
        assert!((500..700).contains(&report.entries), "{} entries", report.entries);
        assert!(longest < 8 * 1024 * 1024, "{longest} bytes in memory at once");
        let rest = verify(&export(&app, &acme, report.entries, None).await, &known, vec![]);
        assert!(rest.is_sound() && rest.first == Some(report.entries), "{:?}", rest.faults);
    }

    async fn each_organization_has_its_turn(app: TestApp) {
        let mut tenants = Vec::new();
        for slug in ["one", "two", "three"] {
            tenants.push(app.tenant(slug).await);
        }
        // Each stays on the list: what was sealed waits for its checkpoint.
        app.app.seal_audit_logs().await.unwrap();
        for tenant in &tenants {
            acts(&app, tenant, 1).await;
        }
        for _ in 0..4 {
            app.app.seal_some_audit_logs(1).await.unwrap();
        }
        for tenant in &tenants {
            let entry = &app.audit(tenant, "api_key.created").await[0];
            assert!(entry.seq.is_some(), "{entry:?}");
        }
    }

    async fn a_row_that_nobody_understands_holds_up_no_other(app: TestApp) {
        let acme = app.tenant("acme").await;
        app.app.seal_audit_logs().await.unwrap();
        acts(&app, &acme, 1).await;
        // A newer program wrote the first, and nobody but the log itself says the second.
        let waiting = "id in (select id from audit_waiting) and id not in (select id from audit_entry)";
        app.tamper(acme.org, &format!("update audit set action = 'plugin.invented' where {waiting}"));
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        let report = verify_database(&app, &acme).await;
        assert!(report.is_sound(), "{:?}", report.faults);
        assert_eq!(report.unknown_types, 1);
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        acts(&app, &acme, 1).await;
        app.tamper(acme.org, &format!("update audit set action = 'audit.log_opened' where {waiting}"));
        acts(&app, &acme, 2).await;
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        let bundle = export(&app, &acme, 0, None).await;
        assert!(bundle.contains("audit.row_refused") && verify(&bundle, &[key(&app, &acme).await], vec![]).is_sound());
        let report = verify_database(&app, &acme).await;
        assert_eq!(report.faults_total, 1, "{:?}", report.faults);
        assert_eq!(report.faults[0].kind, FaultKind::Index { what: "its action" });
        for (entry, shown) in app.audit(&acme, "api_key.created").await.iter().map(|entry| (entry.id, entry.seq)) {
            assert!(shown.is_some(), "{entry}");
        }
    }

    async fn what_is_shown_has_a_place_or_waits_for_one(app: TestApp) {
        let acme = app.tenant("acme").await;
        acts(&app, &acme, 2).await;
        assert!(app.audit(&acme, "api_key.created").await.iter().all(|entry| entry.seq.is_none()), "nothing is sealed yet");
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        assert!(app.audit(&acme, "api_key.created").await.iter().all(|entry| entry.seq.is_some()));
        acts(&app, &acme, 1).await;
        let report = verify_database(&app, &acme).await;
        assert!(report.is_sound(), "{:?}", report.faults);
        assert_eq!(report.waiting, 1, "the act since");
        // Never written by the host, and never sealed.
        let id = if app.store.is_postgres() { "gen_random_uuid()" } else { "randomblob(16)" };
        app.tamper(acme.org, &format!(
            "insert into audit (org_id, id, action, target, actor, detail, created_at)
             select org_id, {id}, action, target, actor, detail, created_at from audit where action = 'org.created'"
        ));
        let report = verify_database(&app, &acme).await;
        assert_eq!(report.faults_total, 1, "{:?}", report.faults);
        assert!(matches!(&report.faults[0].kind, FaultKind::Unplaced { id } if id.starts_with("aud")), "{:?}", report.faults);
        app.tamper(acme.org, "delete from audit_waiting");
        assert!(verify_database(&app, &acme).await.faults_total >= 3, "what waited would never have been sealed");
    }

    /// Proofs are made of these, and sealing goes on from them: neither shows in the entries.
    async fn what_is_kept_of_the_tree_is_compared_with_the_entries(app: TestApp) {
        let acme = app.tenant("acme").await;
        acts(&app, &acme, 6).await;
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        assert!(verify_database(&app, &acme).await.is_sound());
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        let found = async |statement: &str| {
            app.tamper(acme.org, statement);
            named(&verify_database(&app, &acme).await)
        };
        // What the second entry made full, in place of what the sixth one did; and back.
        app.tamper(acme.org, "create table kept as select seq, completed from audit_entry");
        let another = "update audit_entry set completed = (select completed from kept where kept.seq = 1) where seq = 5";
        let completed = found(another).await;
        assert!(completed.len() == 1 && completed[0].0 == Some(5) && completed[0].1.contains("completed"), "{completed:?}");
        app.tamper(acme.org, "update audit_entry set completed = (select completed from kept where kept.seq = 5) where seq = 5");
        assert!(verify_database(&app, &acme).await.is_sound());
        let last = found("update audit_log set last_leaf = (select leaf from audit_entry where seq = 0)").await;
        assert!(last.len() == 1 && last[0].1.contains("follows"), "{last:?}");
        let key = found("update audit_log set verifier_key = replace(verifier_key, '+', '-')").await;
        assert!(key.len() == 2 && key.iter().any(|(_, what)| what.contains("the key that signs")), "{key:?}");
    }

    async fn what_cannot_be_read_is_named_and_the_rest_is_verified(app: TestApp) {
        let acme = app.tenant("acme").await;
        acts(&app, &acme, 6).await;
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        assert!(verify_database(&app, &acme).await.is_sound());
        let entry = |seq: u32| format!("where id = (select id from audit_entry where seq = {seq})");
        app.tamper(acme.org, &format!("update audit set detail = 'x' {}", entry(2)));
        app.tamper(acme.org, "update audit_entry set salt = substr(salt, 1, 31) where seq = 3");
        app.tamper(acme.org, "update audit_entry set signature = substr(signature, 1, 3) where seq = 5");
        app.tamper(acme.org, "update audit_entry set record = 'x' where seq = 6");
        let report = verify_database(&app, &acme).await;
        let payload = FaultKind::Payload.to_string();
        let found = named(&report);
        assert_eq!(found[..2], [(Some(2), payload.clone()), (Some(3), payload)], "{found:?}");
        assert_eq!(found[2], (Some(5), FaultKind::Signature.to_string()), "{found:?}");
        assert!(found[3].0 == Some(6) && found[3].1.contains("cannot be read"), "{found:?}");
        assert_eq!((report.first, report.last), (Some(0), Some(8)), "the rest was looked at");
        let verified = app.audit(&acme, "audit.verified").await;
        assert_eq!((&verified[0].detail["sound"], &verified[0].detail["first_bad_entry"]), (&json!(false), &json!(2)));
        assert_eq!(verified[1].detail["sound"], json!(true));
    }

    async fn each_checkpoint_is_compared(app: TestApp) {
        let acme = app.tenant("acme").await;
        for _ in 0..103 {
            acts(&app, &acme, 1).await;
            app.app.seal_audit_log(acme.org, true).await.unwrap();
        }
        let report = verify_database(&app, &acme).await;
        assert!(report.is_sound() && report.checkpoints == 103, "{} checkpoints", report.checkpoints);
        app.tamper(acme.org, "update audit_checkpoint set note = (select note from audit_checkpoint where size = 4) where size = 105");
        let report = verify_database(&app, &acme).await;
        assert_eq!(report.faults[0].kind, FaultKind::CheckpointPlace { size: 4, entries: 105 }, "{:?}", report.faults);
        // A log that says it ends before its entries do.
        app.tamper(acme.org, "update audit_log set size = 80");
        let report = verify_database(&app, &acme).await;
        assert!(named(&report).iter().any(|(entry, what)| *entry == Some(80) && what.contains("where the log ends")), "{:?}", report.faults);
    }

    async fn what_was_refused_is_an_entry_once_an_hour(app: TestApp) {
        let acme = app.tenant("acme").await;
        let new = NewApiKey::new("ci", PermissionSet::one(Permission::OrgRead), Some(1));
        let made = app.app.create_api_key(&acme.caller, acme.org, new).await.unwrap();
        // Another secret of the same key.
        let mut token = Token::<ApiKeyId>::parse(&made.secret_text).unwrap();
        token.secret[0] ^= 1;
        let wrong = token.reveal();
        let reasons = async || {
            let entries = app.audit(&acme, "request.refused").await;
            assert!(entries.iter().all(|entry| entry.target == made.key.id.to_string()));
            entries.iter().map(|entry| entry.detail["reason"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        // Beside the answer: it is written when it is written.
        let wait_for = async |expected: &[&str]| {
            crate::support::within(async {
                while reasons().await != expected {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        };
        let refused = async |secret: &str| matches!(app.app.authenticate(secret).await, Err(AppError::Unauthenticated));
        assert!(app.app.authenticate(&made.secret_text).await.is_ok());
        assert!(refused(&wrong).await);
        wait_for(&["wrong_secret"]).await;
        assert!(refused(&wrong).await && refused(&wrong).await);
        app.ambient.advance(Duration::from_hours(25));
        assert!(refused(&made.secret_text).await);
        wait_for(&["expired", "wrong_secret"]).await;
        app.ambient.advance(Duration::from_millis(5));
        app.app.revoke_api_key(&acme.caller, acme.org, made.key.id).await.unwrap();
        assert!(refused(&made.secret_text).await && refused("bulkhead_nothing").await);
        wait_for(&["revoked", "expired", "wrong_secret"]).await;

        for _ in 0..3 {
            for permission in [Permission::RunsRead, Permission::RolesWrite] {
                app.ambient.advance(Duration::from_millis(5));
                app.app.record_refusal(&acme.caller, permission, Within::Organization, "GET /somewhere").await;
            }
        }
        let entries = app.audit(&acme, "access.refused").await;
        let told: Vec<_> = entries.iter().map(|entry| entry.detail["permission"].as_str().unwrap()).collect();
        assert_eq!(told, ["roles.write", "runs.read"]);
        assert_eq!(entries[0].actor, acme.caller.actor().to_string());
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        let bundle = export(&app, &acme, 0, None).await;
        assert_eq!(bundle.matches("\"outcome\":\"denied\"").count(), 5, "three keys' refusals and two of permissions");
    }

    async fn reading_the_log_is_an_entry_once_an_hour(app: TestApp) {
        let acme = app.tenant("acme").await;
        for _ in 0..5 {
            app.audit(&acme, "api_key.created").await;
        }
        assert_eq!(app.audit(&acme, "audit.read").await.len(), 1);
        app.ambient.advance(Duration::from_hours(1));
        assert_eq!(app.audit(&acme, "audit.read").await.len(), 2);
    }

    async fn whoever_changes_the_database_is_found(app: TestApp) {
        let acme = app.tenant("acme").await;
        acts(&app, &acme, 6).await;
        let kept = app.app.seal_audit_log(acme.org, true).await.unwrap().remove(0).note;
        let found = async |statement: &str| {
            app.tamper(acme.org, statement);
            app.app.verify_audit_as_operator(acme.org, vec![], vec![kept.clone()]).await.unwrap()
        };
        // What is shown and searched, and not the record.
        let report = found("update audit set actor = 'key_somebody' where action = 'org.created'").await;
        assert_eq!(report.faults[0].kind, FaultKind::Index { what: "its actor" });
        // The payload.
        let report = found("update audit set detail = '{}' where id = (select id from audit_entry where seq = 4)").await;
        assert!(report.faults.iter().any(|fault| fault.entry == Some(4) && fault.kind == FaultKind::Payload), "{:?}", report.faults);
        // A row in the middle, then the end together with the log's own row.
        let report = found("delete from audit_entry where seq = 6").await;
        assert!(report.faults.iter().any(|fault| fault.kind == FaultKind::Missing { from: 6, to: 6 }), "{:?}", report.faults);
        app.tamper(acme.org, "delete from audit_entry where seq > 5");
        app.tamper(acme.org, "delete from audit_checkpoint");
        let report = found("update audit_log set size = 6").await;
        assert!(report.faults.iter().any(|fault| matches!(fault.kind, FaultKind::KeptAhead { entries: 6, .. })), "{:?}", report.faults);
    }
}
