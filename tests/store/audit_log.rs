//! The audit log's rows: what waits, what has its place, checkpoints.

use std::time::Duration;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::ambient::Ambient;
use bulkhead_store::StoreError;
use bulkhead_store::audit_log::{AuditLog, AuditRow, SealedAudit, WaitingAudit};
use bulkhead_store::page::PageRequest;

use bulkhead_audit::payload::{PAYLOAD_BYTES_MAX, Salt};
use bulkhead_audit::retention::PayloadRetention;
use bulkhead_model::id::AuditId;
use bulkhead_store::audit::{AuditEvent, AuditFilter};
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
        let shown = tx!(test.read, &scope, [page], |tx| tx.list_audit(&AuditFilter::default(), *page).await).unwrap().items;
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

    /// One statement on PostgreSQL and two on SQLite: the entry as it is given, and that it waits, are there for the statements after it.
    async fn an_entry_is_there_with_its_place_in_the_line(test: TestStore) {
        let scope = scope(test.org("acme").await);
        let (event, ambient) = (audit(EventType::SecretStored, "one"), test.ambient.clone());
        let (placed, waiting) = tx!(test.write, &scope, [event, ambient], |tx| {
            let placed = tx.record_placed_audit(event, ambient).await?;
            tx.record_audit(event, ambient).await?;
            Ok((placed, tx.list_audit_waiting(9).await?.entries))
        })
        .unwrap();
        assert_eq!(waiting.len(), 2);
        assert!(waiting.contains(&placed), "{waiting:?}");
        let told = |entry: &WaitingAudit| (entry.action.clone(), entry.target.clone(), entry.actor.clone(), entry.created_at);
        let wanted = (event.action.as_str().to_owned(), "one".to_owned(), event.actor.to_string(), ambient.now());
        for entry in &waiting {
            assert_eq!(told(entry), wanted);
            assert_eq!(entry.detail, r#"{"after":{"a":2,"b":1},"before":null}"#);
        }
        let places = tx!(test.read, &scope, [], |tx| tx.list_audit_places(None, 9).await).unwrap();
        assert!(places.len() == 2 && places.iter().all(|place| place.waits && place.seq.is_none()), "{places:?}");
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

    async fn a_payload_is_emptied_once_with_its_salt_and_the_entry_says_by_what(test: TestStore) {
        let (scope, ambient) = (scope(test.org("acme").await), test.ambient.clone());
        for target in ["one", "two"] {
            ambient.advance(Duration::from_millis(1));
            let event = audit(EventType::SecretStored, target);
            tx!(test.write, &scope, [event, ambient], |tx| tx.record_audit(event, ambient).await).unwrap();
        }
        let waiting = tx!(test.read, &scope, [], |tx| tx.list_audit_waiting(9).await).unwrap().entries;
        let first = sealed_audit(3, waiting[0].id);
        tx!(test.write, &scope, [first], |tx| tx.insert_audit_entry(first).await).unwrap();
        let (all, action) = (AuditId::from_uuid(uuid::Uuid::max()), EventType::SecretStored.as_str());
        let kept = tx!(test.read, &scope, [all], |tx| tx.list_kept_audit(action, *all, 9).await).unwrap();
        assert_eq!(kept.iter().map(|kept| kept.seq).collect::<Vec<_>>(), [3], "what waits for its place is not disposed of");
        let about = tx!(test.read, &scope, [], |tx| tx.list_kept_audit_about("one", 9).await).unwrap();
        assert_eq!(about, kept);
        let (other, id) = (waiting[1].id, kept[0].id);
        let done = tx!(test.write, &scope, [id, other], |tx| {
            Ok([
                tx.dispose_of_audit(3, *other, 9).await?,
                tx.dispose_of_audit(3, *id, 9).await?,
                tx.dispose_of_audit(3, *id, 11).await?,
            ])
        });
        assert_eq!(done.unwrap(), [false, true, false], "by number and id, and once");
        let rows = tx!(test.read, &scope, [], |tx| tx.list_audit_entries(0, 9).await).unwrap();
        let [AuditRow { seq: 3, row: Ok((sealed, shown)) }] = rows.as_slice() else { panic!("{rows:?}") };
        let expected = SealedAudit { salt: Salt::from_bytes([0; 32]), disposed_by: Some(9), ..first.clone() };
        assert_eq!((sealed, shown.detail.as_str()), (&expected, "null"));
        assert!(tx!(test.read, &scope, [all], |tx| tx.list_kept_audit(action, *all, 9).await).unwrap().is_empty());
        let page = PageRequest { before: None, limit: 9 };
        let listed = tx!(test.read, &scope, [page], |tx| tx.list_audit(&AuditFilter::default(), *page).await).unwrap().items;
        let told: Vec<_> = listed.iter().map(|entry| (entry.target.as_str(), entry.detail.is_null(), entry.disposed_by)).collect();
        assert_eq!(told, [("two", false, None), ("one", true, Some(9))]);
        let actions = tx!(test.read, &scope, [], |tx| tx.list_audit_actions().await).unwrap();
        assert_eq!(actions, ["secret.stored"]);
        let numbers = tx!(test.read, &scope, [], |tx| tx.list_audit_seqs(action, 9).await).unwrap();
        assert_eq!(numbers, [3]);
    }

    async fn times_for_payloads_are_saved_over_what_was_seen(test: TestStore) {
        let (scope, now) = (scope(test.org("acme").await), test.ambient.now());
        let save = async |days: u32, seen: i64| {
            let policy = PayloadRetention::of(days, days);
            tx!(test.write, &scope, [policy, seen, now], |tx| tx.save_audit_retention(policy, *seen, *now).await).unwrap()
        };
        assert_eq!((save(31, 1).await, save(31, 0).await, save(32, 0).await, save(33, 1).await), (false, true, false, true));
        let stored = tx!(test.read, &scope, [], |tx| tx.load_audit_retention().await).unwrap().unwrap();
        assert_eq!((stored.policy, stored.revision), (PayloadRetention::of(33, 33), 2));
    }

    /// On PostgreSQL the server's own role can forget what an entry accounts for, and nothing else.
    async fn forgetting_writes_nothing_in_the_place_of_what_it_forgets(test: TestStore) {
        if !test.store.is_postgres() {
            return;
        }
        let org = test.org("acme").await;
        let (scope, ambient) = (scope(org), test.ambient.clone());
        let event = audit(EventType::SecretStored, "x");
        tx!(test.write, &scope, [event, ambient], |tx| {
            tx.record_audit(event, ambient).await?;
            tx.record_audit(event, ambient).await
        })
        .unwrap();
        let id = tx!(test.read, &scope, [], |tx| tx.list_audit_waiting(1).await).unwrap().entries[0].id;
        let entry = sealed_audit(0, id);
        tx!(test.write, &scope, [entry], |tx| tx.insert_audit_entry(entry).await).unwrap();
        let mut connection = test.raw_postgres().await;
        let context = format!("select set_config('app.org_id', '{}', false)", org.uuid());
        connection.execute(AssertSqlSafe(context)).await.unwrap();
        let mut run = async |statement: &str| {
            let result = connection.execute(AssertSqlSafe(statement.to_owned())).await;
            result.map(|done| done.rows_affected()).map_err(|error| error.into_database_error().unwrap().code().unwrap().into_owned())
        };
        assert_eq!(run("select 1 from audit").await, Ok(2), "the organization's rows are seen");
        // No entry says why yet.
        assert_eq!(run("update audit set detail = 'null'").await, Ok(0));
        let refused = Err("42501".to_owned());
        assert_eq!(run("update audit_entry set salt = '\\x01', disposed_by = 1").await, refused);
        assert_eq!(run("update audit_entry set salt = '', disposed_by = null").await, refused);
        assert_eq!(run("update audit_entry set record = ''").await, refused);
        assert_eq!(run("update audit_entry set salt = '', disposed_by = 1").await, Ok(1));
        assert_eq!(run("update audit_entry set salt = '', disposed_by = 2").await, Ok(0), "what was said stays");
        assert_eq!(run("update audit set detail = '{}'").await, refused);
        assert_eq!(run("update audit set actor = 'x'").await, refused);
        assert_eq!(run("update audit set detail = 'null'").await, Ok(1), "the one that an entry accounts for");
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
            tx!(test.write, &scope, [event, ambient], |tx| tx.record_placed_audit(event, ambient).await).unwrap();
        let page = PageRequest { before: None, limit: 9 };
        let listed = tx!(test.read, &scope, [page], |tx| tx.list_audit(&AuditFilter::default(), *page).await).unwrap();
        assert_eq!(listed.items[0].created_at, opening.created_at);
    }
}
