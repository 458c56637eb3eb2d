//! The audit log: entries get their place, bundles verify, and whoever changes the database is found.

use std::time::Duration;

use bulkhead_app::api_key::NewApiKey;
use bulkhead_audit::key::VerifierKey;
use bulkhead_audit::verify::{Expectation, FaultKind, Report, Verifier};
use bulkhead_model::permission::PermissionSet;

use crate::support::{Tenant, TestApp};

async fn acts(app: &TestApp, acme: &Tenant, count: usize) {
    for at in 0..count {
        app.ambient.advance(Duration::from_millis(5));
        let new = NewApiKey { name: format!("key {at}"), permissions: PermissionSet::all(), expires_in_days: None };
        app.app.create_api_key(&acme.caller, acme.org, new).await.unwrap();
    }
}

fn verify(bundle: &str, keys: &[VerifierKey], kept: Vec<String>) -> Report {
    let mut verifier = Verifier::new(Expectation { keys: keys.to_vec(), kept, end: true, ..Expectation::default() });
    bundle.lines().for_each(|line| verifier.line(line));
    verifier.finish()
}

async fn key(app: &TestApp, acme: &Tenant) -> VerifierKey {
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

        let bundle = app.app.export_audit(&acme.caller, acme.org, 0, None).await.unwrap();
        let kept = vec![first[0].note.clone(), second[0].note.clone()];
        let known = key(&app, &acme).await;
        let report = verify(&bundle, std::slice::from_ref(&known), kept.clone());
        assert!(report.is_sound() && report.key_known, "{:?}", report.faults);
        assert_eq!((report.entries, report.kept_agreed.as_slice()), (9, [6, 8].as_slice()), "the export is an entry, too");
        assert!(bundle.contains("audit.exported"));
        let part = app.app.export_audit(&acme.caller, acme.org, 7, Some(6)).await.unwrap();
        let report = verify(&part, std::slice::from_ref(&known), vec![first[0].note.clone()]);
        assert!(report.is_sound(), "{:?}", report.faults);
        assert_eq!((report.first, report.last), (Some(7), Some(9)));
        let report = app.app.verify_audit_as_operator(acme.org, vec![known], kept).await.unwrap();
        assert!(report.is_sound() && report.key_known, "{:?}", report.faults);
    }

    async fn logs_of_organizations_are_their_own(app: TestApp) {
        let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
        acts(&app, &acme, 1).await;
        assert_eq!(app.app.seal_audit_logs().await.unwrap().len(), 2);
        assert!(app.app.export_audit(&other.caller, acme.org, 0, None).await.is_err());
        assert!(app.app.audit_checkpoint(&other.caller, acme.org).await.is_err());
        let bundle = app.app.export_audit(&other.caller, other.org, 0, None).await.unwrap();
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
