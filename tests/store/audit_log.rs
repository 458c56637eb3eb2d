//! The audit log's rows: what waits, what has its place, checkpoints.

use std::time::Duration;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::ambient::Ambient;
use bulkhead_store::StoreError;
use bulkhead_store::audit_log::{AuditLog, AuditRow};
use bulkhead_store::page::PageRequest;

use bulkhead_audit::payload::PAYLOAD_BYTES_MAX;
use bulkhead_store::audit::AuditEvent;
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::support::{JOBS, audit, audit_log, scope, sealed_audit};

on_both! {
    async fn entries_wait_until_they_have_their_place_and_a_checkpoint(test: TestStore) {
        let (org, other) = (test.org("acme").await, test.org("other").await);
        let (scope, ambient) = (scope(org), test.ambient.clone());
        for target in ["one", "two", "three"] {
            ambient.advance(Duration::from_millis(1));
            let event = audit(EventType::SecretStored, target);
            tx!(test.write, &scope, [event, ambient], |tx| tx.record_audit(event, ambient).await).unwrap();
        }
        let orgs = tx!(test.read, &JOBS, [], |tx| tx.list_audit_waiting_orgs(None, 9).await).unwrap();
        assert!(orgs.contains(&org) && !orgs.contains(&other), "{orgs:?}");
        let behind = tx!(test.read, &JOBS, [org], |tx| tx.list_audit_waiting_orgs(Some(*org), 9).await).unwrap();
        assert!(!behind.contains(&org), "{behind:?}");
        let backlog = tx!(test.read, &scope, [], |tx| tx.list_audit_waiting(2).await).unwrap();
        let (waiting, 0) = (backlog.entries, backlog.unreadable) else { panic!("all can be read") };
        assert_eq!(waiting.iter().map(|entry| entry.target.as_str()).collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(waiting[0].detail, r#"{"after":{"a":2,"b":1},"before":null}"#, "the payload is canonical");

        let entries: Vec<_> = waiting.iter().zip(0..).map(|(waiting, seq)| sealed_audit(seq, waiting.id)).collect();
        let keep = waiting[1].id;
        let left = tx!(test.write, &scope, [entries, keep], |tx| {
            for entry in entries {
                tx.insert_audit_entry(entry).await?;
            }
            assert_eq!(tx.settle_audit_waiting(Some(*keep)).await?, 1, "one is settled, one is kept, one has no place");
            tx.list_audit_waiting(9).await
        });
        assert_eq!(left.unwrap().entries.iter().map(|entry| entry.target.as_str()).collect::<Vec<_>>(), ["three"]);
        let settled = tx!(test.write, &scope, [], |tx| tx.settle_audit_waiting(None).await);
        assert_eq!(settled.unwrap(), 1);

        let listed = tx!(test.read, &scope, [], |tx| tx.list_audit_entries(1, 9).await).unwrap();
        let [AuditRow { seq: 1, row: Ok(row) }] = listed.as_slice() else { panic!("{listed:?}") };
        assert_eq!(*row, (entries[1].clone(), waiting[1].clone()), "what is read is what was written");
        let page = PageRequest { before: None, limit: 9 };
        let shown = tx!(test.read, &scope, [page], |tx| tx.list_audit(None, None, *page).await).unwrap().items;
        let shown: Vec<_> = shown.iter().map(|entry| (entry.target.as_str(), entry.seq)).collect();
        assert_eq!(shown, [("three", None), ("two", Some(1)), ("one", Some(0))]);
        let places = tx!(test.read, &scope, [], |tx| tx.list_audit_places(None, 9).await).unwrap();
        let told: Vec<_> = places.iter().map(|place| (place.seq, place.waits)).collect();
        assert_eq!(told, [(Some(0), false), (Some(1), false), (None, true)]);
        let first = places[0].id;
        let behind = tx!(test.read, &scope, [first], |tx| tx.list_audit_places(Some(*first), 1).await).unwrap();
        assert_eq!(behind, [places[1]]);
        let node = tx!(test.read, &scope, [], |tx| tx.load_audit_node(1).await).unwrap();
        assert_eq!(node, Some((entries[1].leaf, entries[1].completed.clone())));
        // A number is given once, and an entry has one place.
        for again in [sealed_audit(1, waiting[0].id), sealed_audit(7, waiting[0].id)] {
            let result = tx!(test.write, &scope, [again], |tx| tx.insert_audit_entry(again).await);
            assert!(matches!(result, Err(StoreError::Conflict { .. })), "{result:?}");
        }
    }

    async fn a_log_is_opened_once_and_its_key_stays(test: TestStore) {
        let scope = scope(test.org("acme").await);
        let log = audit_log(test.ambient.now());
        assert!(tx!(test.write, &scope, [log], |tx| tx.insert_audit_log(log).await).unwrap());
        let second = AuditLog { verifier_key: "another".to_owned(), ..log.clone() };
        assert!(!tx!(test.write, &scope, [second], |tx| tx.insert_audit_log(second).await).unwrap());
        let longer = AuditLog { size: 3, edge: vec![log.last; 2], signing_key: "another".to_owned(), ..second.clone() };
        let locked = tx!(test.write_locked, &scope, [longer], |tx| {
            tx.save_audit_log(longer).await?;
            tx.lock_audit_log().await
        });
        let expected = AuditLog { verifier_key: log.verifier_key.clone(), signing_key: log.signing_key.clone(), ..longer.clone() };
        assert_eq!(locked.unwrap(), Some(expected));
    }

    async fn checkpoints_are_found_by_what_they_cover(test: TestStore) {
        let (scope, now) = (scope(test.org("acme").await), test.ambient.now());
        tx!(test.write, &scope, [now], |tx| {
            for size in [3, 9, 20] {
                tx.record_audit_checkpoint(size, &format!("over {size}"), *now).await?;
            }
            Ok(())
        })
        .unwrap();
        let found = async |most: u64| tx!(test.read, &scope, [most], |tx| tx.load_audit_checkpoint(*most).await).unwrap();
        assert_eq!(found(2).await, None);
        assert_eq!(found(19).await, Some((9, "over 9".to_owned())));
        assert_eq!(found(u64::MAX).await, Some((20, "over 20".to_owned())));
        let listed = tx!(test.read, &scope, [], |tx| tx.list_audit_checkpoints(3, 20, 9).await).unwrap();
        assert_eq!(listed, [(9, "over 9".to_owned()), (20, "over 20".to_owned())]);
        let listed = tx!(test.read, &scope, [], |tx| tx.list_audit_checkpoints(3, u64::MAX, 1).await).unwrap();
        assert_eq!(listed, [(9, "over 9".to_owned())]);
        let second = tx!(test.write, &scope, [now], |tx| tx.record_audit_checkpoint(9, "another", *now).await);
        assert!(matches!(second, Err(StoreError::Conflict { .. })), "{second:?}");
    }

    async fn a_large_payload_is_kept_as_digests(test: TestStore) {
        let scope = scope(test.org("acme").await);
        let ambient = test.ambient.clone();
        let many = json!({ "permissions": vec!["x".repeat(1000); 600] });
        let event = AuditEvent { detail: json!({ "grants": { "before": many, "after": null } }), ..audit(EventType::GrantsChanged, "x") };
        tx!(test.write, &scope, [event, ambient], |tx| tx.record_audit(event, ambient).await).unwrap();
        let backlog = tx!(test.read, &scope, [], |tx| tx.list_audit_waiting(9).await).unwrap();
        assert!(backlog.entries[0].detail.len() <= PAYLOAD_BYTES_MAX, "{} bytes", backlog.entries[0].detail.len());
        let told: serde_json::Value = serde_json::from_str(&backlog.entries[0].detail).unwrap();
        assert!(told["grants"]["before"]["bytes"].as_u64().unwrap() > 600_000, "{told}");
        assert_eq!(told["grants"]["before"]["sha256"].as_str().unwrap().len(), 64);
    }

    async fn what_was_recorded_is_out_of_the_applications_reach(test: TestStore) {
        // SQLite has no roles: there whoever has the file has all of it.
        if !test.store.is_postgres() {
            return;
        }
        let scope = scope(test.org("acme").await);
        let (ambient, now) = (test.ambient.clone(), test.ambient.now());
        let event = audit(EventType::SecretStored, "x");
        tx!(test.write, &scope, [event, ambient, now], |tx| {
            tx.record_audit(event, ambient).await?;
            tx.record_audit_checkpoint(1, "note", *now).await
        })
        .unwrap();
        let mut connection = test.raw_postgres().await;
        for table in ["audit", "audit_entry", "audit_checkpoint"] {
            for statement in [format!("delete from {table}"), format!("update {table} set org_id = org_id")] {
                let result = connection.execute(AssertSqlSafe(statement.clone())).await;
                let code = result.unwrap_err().into_database_error().unwrap().code().map(std::borrow::Cow::into_owned);
                assert_eq!(code.as_deref(), Some("42501"), "{statement}");
            }
        }
    }

    async fn an_opening_says_the_time_that_its_row_says(test: TestStore) {
        // A clock that goes on between two looks.
        let (scope, ambient) = (scope(test.org("acme").await), Ambient::system());
        let event = audit(EventType::SecretStored, "x");
        let opening =
            tx!(test.write, &scope, [event, ambient], |tx| tx.record_audit_opening(event, ambient).await).unwrap();
        let page = PageRequest { before: None, limit: 9 };
        let listed = tx!(test.read, &scope, [page], |tx| tx.list_audit(None, None, *page).await).unwrap();
        assert_eq!(listed.items[0].created_at, opening.created_at);
    }
}
