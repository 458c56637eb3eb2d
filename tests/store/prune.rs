//! What has ended: counted and removed, and nothing else with it.

use std::time::Duration;

use bulkhead_model::id::{CallId, EventId, RunId};
use bulkhead_model::job::Lane;
use bulkhead_model::quota::{Quota, Quotas};
use bulkhead_model::retention::{EndedRun, KEY_KEPT, RetentionPolicy};
use bulkhead_model::run::RunStatus;
use bulkhead_model::time::Timestamp;
use bulkhead_store::StoreError;
use bulkhead_store::page::PageRequest;
use bulkhead_store::prune::{EndedPlace, EndedRow, Removal};
use bulkhead_store::run::{Kept, Run};
use serde_json::json;

use crate::support::{ADMIN, JOBS, Tenant, TestStore, call, claim_any, history, run, step};

const HOUR: Duration = Duration::from_hours(1);

/// A run with a step, a line in its log and a call, ended so.
async fn ended(test: &TestStore, tenant: &Tenant, status: RunStatus, key: Option<&str>) -> Run {
    let now = test.ambient.now();
    let mut new = run(&test.ambient, tenant.workflow.id, key);
    let (first, event) = (step("send", 0, now), tenant.run_event.clone());
    let made = call(&test.ambient, tenant.installation.id, tenant.plugin.id, Some(new.id));
    let inserted = new.clone();
    new.kept = Kept::begun(&new.trigger_data);
    new.kept.add_step(&first);
    new.kept.add_event(&event);
    (new.status, new.finished_at, new.output) = (status, status.is_final().then_some(now), Some("null".into()));
    let last = new.clone();
    tx!(test.write, &tenant.scope(), [inserted, first, event, made, last], |tx| {
        assert!(tx.insert_run(inserted).await?);
        tx.save_step(inserted.id, first).await?;
        tx.record_run_event(inserted.id, event).await?;
        let bytes = tx.record_call(made).await?;
        let mut last = last.clone();
        last.kept.add_call(bytes);
        tx.update_run(&last).await
    })
    .unwrap();
    new
}

/// Ends the tenant's run and puts a call by hand beside it.
pub(crate) async fn end_everything(test: &TestStore, tenant: &Tenant) -> (EndedRow, CallId) {
    let mut run = tenant.run.clone();
    (run.status, run.finished_at) = (RunStatus::Failed, Some(test.ambient.now()));
    let by_hand = call(&test.ambient, tenant.installation.id, tenant.plugin.id, None);
    let id = by_hand.id;
    tx!(test.write, &tenant.scope(), [run, by_hand], |tx| {
        tx.update_run(run).await?;
        tx.record_call(by_hand).await.map(drop)
    })
    .unwrap();
    let mut rows = removable(test, tenant, EndedRun::Failed, test.ambient.now().plus(HOUR)).await;
    rows.extend(removable(test, tenant, EndedRun::DeadLetter, test.ambient.now().plus(HOUR)).await);
    let row = rows.remove(0);
    assert_eq!(row.place.run, tenant.run.id);
    (row, id)
}

async fn removable(test: &TestStore, tenant: &Tenant, ended: EndedRun, before: Timestamp) -> Vec<EndedRow> {
    tx!(test.read, &tenant.scope(), [ended, before], |tx| {
        tx.list_removable_runs(*ended, EndedPlace::FIRST, *before, 99).await
    })
    .unwrap()
}

async fn remove(test: &TestStore, tenant: &Tenant, row: &EndedRow) -> Removal {
    let now = test.ambient.now();
    tx!(test.write_locked, &tenant.scope(), [row, now], |tx| tx.remove_run(row, *now).await).unwrap()
}

async fn start(test: &TestStore, tenant: &Tenant, key: &str) -> (bool, Option<RunId>) {
    let (again, workflow) = (run(&test.ambient, tenant.workflow.id, Some(key)), tenant.workflow.id);
    let key = key.to_owned();
    tx!(test.write_locked, &tenant.scope(), [again, workflow, key], |tx| {
        Ok((tx.insert_run(again).await?, tx.load_run_by_dedupe_key(*workflow, key).await?))
    })
    .unwrap()
}

on_both! {
    async fn a_run_goes_with_all_that_is_its_and_nothing_else(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let gone = ended(&test, &tenant, RunStatus::Succeeded, None).await;
        test.ambient.advance(Duration::from_millis(1));
        let kept = ended(&test, &tenant, RunStatus::Succeeded, None).await;
        test.ambient.advance(HOUR);
        let rows = removable(&test, &tenant, EndedRun::Succeeded, test.ambient.now()).await;
        assert_eq!(rows.iter().map(|row| row.place.run).collect::<Vec<_>>(), [gone.id, kept.id], "oldest first");
        assert!(rows[0].bytes > 700, "a run, a step, a log line and a call: {}", rows[0].bytes);
        assert_eq!(rows[0].bytes, rows[1].bytes);
        assert_eq!(remove(&test, &tenant, &rows[0]).await, Removal::Removed);
        assert_eq!(remove(&test, &tenant, &rows[0]).await, Removal::Changed, "it is gone");
        let (first, second, of_tenant) = (gone.id, kept.id, tenant.run.id);
        tx!(test.read, &tenant.scope(), [tenant, first, second, of_tenant], |tx| {
            assert!(tx.load_run(*first).await?.is_none());
            assert!(tx.list_steps(*first).await?.is_empty());
            assert!(tx.list_run_events(*first, 0, 9).await?.is_empty());
            let calls = tx.list_calls(tenant.installation.id, None, PageRequest::default()).await?.items;
            let of = |run: RunId| calls.iter().filter(|call| call.run == Some(run)).count();
            assert_eq!((of(*first), of(*second), of(*of_tenant)), (0, 1, 1));
            for run in [second, of_tenant] {
                assert!(tx.load_run(*run).await?.is_some());
                assert_eq!((tx.list_steps(*run).await?.len(), tx.list_run_events(*run, 0, 9).await?.len()), (1, 1));
            }
            Ok(())
        })
        .unwrap();
    }

    async fn what_has_not_ended_is_in_no_line(test: TestStore) {
        let tenant = test.tenant("acme").await;
        for status in RunStatus::ALL {
            ended(&test, &tenant, *status, None).await;
        }
        test.ambient.advance(Duration::from_hours(24 * 365 * 20));
        let mut found = Vec::new();
        for class in EndedRun::ALL {
            let rows = removable(&test, &tenant, class, test.ambient.now()).await;
            assert_eq!(rows.len(), usize::from(!class.is_dead_letter()), "{class:?}");
            found.extend(rows);
        }
        // One that is begun again after it was listed stays.
        let again = found[2].place.run;
        tx!(test.write, &tenant.scope(), [again], |tx| {
            let mut run = tx.lock_run(*again).await?;
            (run.status, run.finished_at) = (RunStatus::Queued, None);
            tx.update_run(&run).await
        })
        .unwrap();
        assert_eq!(remove(&test, &tenant, &found[2]).await, Removal::Changed);
        assert!(removable(&test, &tenant, EndedRun::Failed, test.ambient.now()).await.is_empty());
        for row in &found[..2] {
            assert_eq!(remove(&test, &tenant, row).await, Removal::Removed);
        }
        let left = tx!(test.read, &tenant.scope(), [], |tx| tx.list_runs(None, None, PageRequest::default()).await);
        assert_eq!(left.unwrap().items.len(), 6, "the tenant's own, four that go on, and the one begun again");
    }

    async fn a_large_run_goes_in_parts_and_its_row_last(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let mut large = ended(&test, &tenant, RunStatus::Succeeded, None).await;
        large = tx!(test.read, &tenant.scope(), [large], |tx| tx.require_run(large.id).await).unwrap();
        for _ in 0..3 {
            let mut made = call(&test.ambient, tenant.installation.id, tenant.plugin.id, Some(large.id));
            made.input = "x".repeat(3 << 20);
            let bytes = tx!(test.write, &tenant.scope(), [made], |tx| tx.record_call(made).await).unwrap();
            assert!(bytes.all > 3 << 20 && bytes.log < 100, "{bytes:?}");
            large.kept.add_call(bytes);
        }
        let saved = large.clone();
        tx!(test.write, &tenant.scope(), [saved], |tx| tx.update_run(saved).await).unwrap();
        let mut parts = Vec::new();
        let mut row = removable(&test, &tenant, EndedRun::Succeeded, test.ambient.now().plus(HOUR)).await.remove(0);
        assert!(row.bytes > 9 << 20);
        let half_removed = async || tx!(test.read, &tenant.scope(), [], |tx| tx.list_half_removed_runs(9).await).unwrap();
        assert!(half_removed().await.is_empty());
        let id = large.id;
        let bytes = tx!(test.read, &tenant.scope(), [id], |tx| tx.load_run_bytes(*id).await).unwrap();
        assert_eq!(bytes, Some(row.bytes));
        while let Removal::Part { left } = remove(&test, &tenant, &row).await {
            let id = large.id;
            let run = tx!(test.read, &tenant.scope(), [id], |tx| tx.require_run(*id).await).unwrap();
            assert!(run.kept.removing, "nobody begins it again by now");
            row = removable(&test, &tenant, EndedRun::Succeeded, test.ambient.now().plus(HOUR)).await.remove(0);
            assert_eq!((row.place.run, row.bytes), (id, left), "whoever goes on knows what is left");
            assert_eq!(half_removed().await, [row.clone()], "and finds it, whatever its time is");
            parts.push(left);
        }
        assert_eq!(parts.len(), 1, "two of the large calls went at once: {parts:?}");
        assert!(half_removed().await.is_empty());
        let (id, installation) = (large.id, tenant.installation.id);
        tx!(test.read, &tenant.scope(), [id, installation], |tx| {
            assert!(tx.load_run(*id).await?.is_none());
            let calls = tx.list_calls(*installation, None, PageRequest::default()).await?.items;
            assert!(calls.iter().all(|call| call.run != Some(*id)));
            Ok(())
        })
        .unwrap();
    }

    async fn what_sleeps_is_counted_with_what_it_holds(test: TestStore) {
        let tenant = test.tenant("acme").await;
        for (status, held) in [(RunStatus::Waiting, 5), (RunStatus::Waiting, 7), (RunStatus::Queued, 11)] {
            let mut sleeps = ended(&test, &tenant, status, None).await;
            sleeps.kept.held_bytes = held;
            tx!(test.write, &tenant.scope(), [sleeps], |tx| tx.update_run(sleeps).await).unwrap();
        }
        let counted = tx!(test.read, &tenant.scope(), [], |tx| {
            Ok((tx.count_sleeping_runs(9).await?, tx.count_sleeping_runs(1).await?.0))
        });
        assert_eq!(counted.unwrap(), ((2, 12), 1));
    }

    async fn a_retry_is_noted_beside_what_the_job_saves(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let seen = history(test.ambient.now());
        let saved = tx!(test.write, &tenant.scope(), [seen], |tx| {
            tx.save_history(seen).await?;
            tx.note_retries(2).await?;
            // The job, which read the row before.
            tx.save_history(seen).await?;
            tx.load_history().await
        });
        let saved = saved.unwrap().unwrap();
        assert_eq!((saved.retried, saved.retried_counted), (2, 0));
    }

    async fn a_key_is_remembered_for_longer_than_its_run(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let first = ended(&test, &tenant, RunStatus::Succeeded, Some("delivery-1")).await;
        test.ambient.advance(HOUR);
        let row = removable(&test, &tenant, EndedRun::Succeeded, test.ambient.now()).await.remove(0);
        assert_eq!(remove(&test, &tenant, &row).await, Removal::KeySpent);
        assert_eq!(remove(&test, &tenant, &row).await, Removal::KeySpent, "a start may be under way");
        assert_eq!(start(&test, &tenant, "delivery-1").await, (false, Some(first.id)));
        test.ambient.advance(Duration::from_mins(1));
        assert_eq!(remove(&test, &tenant, &row).await, Removal::Removed);
        assert_eq!(start(&test, &tenant, "delivery-1").await, (false, Some(first.id)), "the run is gone, its key is not");

        test.ambient.advance(KEY_KEPT.checked_sub(2 * HOUR).unwrap());
        let (now, later) = (test.ambient.now(), test.ambient.now().plus(HOUR));
        let removed = tx!(test.write, &tenant.scope(), [now, later], |tx| {
            Ok((tx.remove_spent_keys(*now, 9).await?, tx.remove_spent_keys(*later, 9).await?))
        });
        assert_eq!(removed.unwrap(), (0, 2), "the tenant's own key and this one, when their time is over");
        assert!(start(&test, &tenant, "delivery-1").await.0);

        // A key whose time is over goes with its run.
        ended(&test, &tenant, RunStatus::Succeeded, Some("delivery-2")).await;
        test.ambient.advance(KEY_KEPT);
        let row = removable(&test, &tenant, EndedRun::Succeeded, test.ambient.now().plus(HOUR)).await.remove(0);
        assert_eq!(remove(&test, &tenant, &row).await, Removal::Removed);
        assert!(start(&test, &tenant, "delivery-2").await.0);
    }

    async fn a_dead_letter_is_known_and_goes_with_its_run(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let failed = ended(&test, &tenant, RunStatus::Failed, None).await;
        let (ambient, now) = (test.ambient.clone(), test.ambient.now());
        let (id, other) = (failed.id, RunId::new(&test.ambient));
        let is_dead = async || {
            tx!(test.read, &tenant.scope(), [id, other], |tx| {
                assert!(!tx.is_dead_letter(*other).await?);
                tx.is_dead_letter(*id).await
            })
            .unwrap()
        };
        assert!(!is_dead().await);
        let letter = crate::support::dead_letter(&failed, "the channel is archived");
        tx!(test.write, &tenant.scope(), [letter, ambient], |tx| tx.record_dead_letter(letter, ambient).await).unwrap();
        assert!(is_dead().await);
        // A line of its own: those that stay are not read again and again by whoever looks for the others.
        assert!(removable(&test, &tenant, EndedRun::Failed, now.plus(HOUR)).await.is_empty());
        let row = removable(&test, &tenant, EndedRun::DeadLetter, now.plus(HOUR)).await.remove(0);
        assert_eq!(remove(&test, &tenant, &row).await, Removal::Removed);
        assert!(!is_dead().await);
    }

    async fn what_ended_is_counted_in_pages_and_only_once(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let mut bytes = 0;
        for n in 0..5 {
            ended(&test, &tenant, RunStatus::Cancelled, None).await;
            if n % 2 == 0 {
                test.ambient.advance(HOUR);
            }
        }
        for row in removable(&test, &tenant, EndedRun::Cancelled, test.ambient.now().plus(HOUR)).await {
            bytes += row.bytes;
        }
        let until = test.ambient.now();
        let (mut after, mut pages, mut sum) = (EndedPlace::FIRST, Vec::new(), 0);
        loop {
            let counted = tx!(test.read, &tenant.scope(), [after, until], |tx| {
                tx.count_ended_runs(EndedRun::Cancelled, *after, *until, 2).await
            });
            let counted = counted.unwrap();
            pages.push(counted.rows);
            sum += counted.bytes;
            let Some(last) = counted.last else { break };
            after = last;
        }
        assert_eq!((pages, sum), (vec![2, 2, 1, 0], bytes));
        let rest = EndedPlace::after_all(until);
        let later = until.plus(HOUR);
        let counted = tx!(test.read, &tenant.scope(), [rest, later], |tx| {
            tx.count_ended_runs(EndedRun::Cancelled, *rest, *later, 9).await
        });
        assert_eq!(counted.unwrap().rows, 0, "all of the moment are counted");
    }

    async fn calls_by_hand_and_events_go_by_age(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let mut ids = Vec::new();
        for _ in 0..3 {
            test.ambient.advance(HOUR);
            let by_hand = call(&test.ambient, tenant.installation.id, tenant.plugin.id, None);
            ids.push(by_hand.id);
            let (id, ambient) = (by_hand.id.to_string(), test.ambient.clone());
            tx!(test.write, &tenant.scope(), [by_hand, id, ambient], |tx| {
                tx.record_call(by_hand).await?;
                tx.record_event("call.made", id, &json!({}), ambient).await
            })
            .unwrap();
        }
        let (first, last, events_before) =
            (CallId::first_at(Timestamp::from_micros(0)), ids[2], EventId::first_at(ids[2].made_at()));
        let (listed, counted) = tx!(test.read, &tenant.scope(), [first, last], |tx| {
            Ok((tx.list_calls_by_hand(*first, *last, 9).await?, tx.count_calls_by_hand(*first, *last, 9).await?))
        })
        .unwrap();
        assert_eq!(listed.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids[..2], "the one of a run is not among them");
        assert_eq!((counted.rows, counted.bytes), (2, listed.iter().map(|(_, bytes)| bytes).sum::<i64>()));
        let (gone, of_run) = (ids[0], tenant.call.id);
        let done = tx!(test.write, &tenant.scope(), [gone, of_run, events_before], |tx| {
            let calls = [tx.remove_call_by_hand(*gone).await?, tx.remove_call_by_hand(*gone).await?];
            assert!(!tx.remove_call_by_hand(*of_run).await?, "a run's call goes with its run");
            let counted = [tx.count_events(*events_before, 2).await?, tx.count_events(*events_before, 9).await?];
            let events = [tx.remove_events(*events_before, 2).await?, tx.remove_events(*events_before, 9).await?];
            Ok((calls, counted, events))
        });
        assert_eq!(done.unwrap(), ([true, false], [2, 3], [2, 1]));
        let left = tx!(test.read, &tenant.scope(), [], |tx| tx.list_events(None, PageRequest::default()).await).unwrap();
        assert_eq!(left.items.len(), 1);
    }

    async fn policies_and_histories_are_kept(test: TestStore) {
        let org = test.org("acme").await;
        let (scope, now) = (crate::support::scope(org), test.ambient.now());
        let policy = RetentionPolicy { dead_letter_days: Some(9), ..RetentionPolicy::default() };
        let saved = tx!(test.write, &scope, [policy, now], |tx| {
            assert_eq!(tx.load_retention().await?, None);
            let first = tx.save_retention(policy, 0, *now).await?;
            let other = RetentionPolicy { succeeded_days: 1, ..policy.clone() };
            let stale = [tx.save_retention(&other, 0, *now).await?, tx.save_retention(&other, 7, *now).await?];
            let next = tx.save_retention(&other, 1, *now).await?;
            let stored = tx.load_retention().await?.expect("it was saved");
            Ok((first, stale, next, stored.revision, stored.policy == other))
        });
        assert_eq!(saved.unwrap(), (true, [false, false], true, 2, true));
        let mut row = history(now);
        let loaded = tx!(test.write, &scope, [row], |tx| {
            tx.save_history(row).await?;
            tx.load_history().await
        });
        assert_eq!(loaded.unwrap().as_ref(), Some(&row));
        (row.pass, row.full_since, row.bytes) = (None, Some(now), 7);
        let loaded = tx!(test.write, &scope, [row], |tx| {
            tx.save_history(row).await?;
            tx.load_history().await
        });
        assert_eq!(loaded.unwrap().as_ref(), Some(&row));
    }

    async fn organizations_without_the_job_are_found(test: TestStore) {
        let (a, b) = (test.org("a").await, test.org("b").await);
        let list = async || tx!(test.read, &JOBS, [], |tx| tx.list_orgs_without_pruning(None, 9).await).unwrap();
        assert_eq!(list().await, [a, b]);
        let after = Some(a);
        let rest = tx!(test.read, &JOBS, [after], |tx| tx.list_orgs_without_pruning(*after, 9).await).unwrap();
        assert_eq!(rest, [b]);
        let ambient = test.ambient.clone();
        tx!(test.write, &crate::support::scope(a), [ambient], |tx| {
            let job = bulkhead_store::job::NewJob {
                payload: bulkhead_model::job::JobPayload::PruneHistory,
                priority: 100,
                run_at: ambient.now(),
                dedupe_key: Some("history".into()),
                attempts_max: 3,
                group: None,
            };
            tx.enqueue(&job, ambient).await
        })
        .unwrap();
        assert_eq!(list().await, [b]);
        let (worker, now) = (test.worker().await, test.ambient.now());
        let claimed = tx!(test.write_locked, &JOBS, [worker, now], |tx| {
            claim_any(tx, *worker, Lane::Bulk, 9, *now, HOUR).await
        });
        let lease = claimed.unwrap().remove(0).lease;
        assert_eq!(list().await, [b], "a held one is there");
        let clock = test.ambient.clone();
        tx!(test.write, &crate::support::scope(a), [lease, clock], |tx| tx.bury_job(lease, "no", clock).await).unwrap();
        assert_eq!(list().await, [a, b], "one that was given up is made anew");
    }

    async fn quotas_are_set_one_by_one(test: TestStore) {
        let org = test.org("acme").await;
        let set = async |quota: Quota, value: u64| {
            tx!(test.write, &ADMIN, [org, quota, value], |tx| tx.set_quota(*org, *quota, *value).await)
        };
        assert_eq!(set(Quota::ActiveWorkflows, 7).await.unwrap(), Some(Quotas::default()));
        let expected = Quotas { active_workflows_max: 7, ..Quotas::default() };
        assert_eq!(set(Quota::HistoryBytes, 5 << 20).await.unwrap(), Some(expected.clone()));
        let expected = Quotas { history_bytes_max: 5 << 20, ..expected };
        let scope = crate::support::scope(org);
        assert_eq!(tx!(test.read, &scope, [], |tx| tx.load_quotas().await).unwrap(), expected);
        assert!(matches!(set(Quota::PayloadBytes, 1).await, Err(StoreError::Misuse(_))));
        let unknown = bulkhead_model::id::OrgId::new(&test.ambient);
        let none = tx!(test.write, &ADMIN, [unknown], |tx| tx.set_quota(*unknown, Quota::LogBytes, 9_999).await);
        assert_eq!(none.unwrap(), None);
    }
}

/// What is removed goes back to the file system, a little at a time, down to what is kept for the next writes.
#[tokio::test]
async fn sqlite_gives_space_back() {
    let test = TestStore::sqlite().await;
    let tenant = test.tenant("acme").await;
    let big = "x".repeat(1024 * 1024);
    for _ in 0..8 {
        let (detail, ambient) = (json!({ "big": big }), test.ambient.clone());
        tx!(test.write, &tenant.scope(), [detail, ambient], |tx| tx.record_event("big", "x", detail, ambient).await)
            .unwrap();
    }
    let before = EventId::first_at(test.ambient.now().plus(HOUR));
    tx!(test.write, &tenant.scope(), [before], |tx| tx.remove_events(*before, 99).await).unwrap();
    let give = async |reserve: u32| {
        tx!(test.write, &tenant.scope(), [reserve], |tx| tx.give_back_space(*reserve).await).unwrap()
    };
    let free = give(u32::MAX).await;
    assert!(free >= 8 * 256, "8 MiB are free: {free} pages");
    let mut left = free;
    for _ in 0..100 {
        let next = give(64).await;
        assert!(next <= left && left - next <= 128, "{left} → {next}");
        left = next;
    }
    assert!(left <= 64, "{left} pages are still free");
}
