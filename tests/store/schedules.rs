//! Schedules: their rows, and a firing as one transaction that a lost lease undoes as a whole.

use std::time::Duration;

use bulkhead_model::job::{JobPayload, Lane, Lease};
use bulkhead_store::StoreError;
use bulkhead_store::job::{Attempt, NewJob};
use bulkhead_store::schedule::ScheduleState;

use crate::support::{self, JOBS, Tenant, TestStore};

const MINUTE: Duration = Duration::from_mins(1);

async fn stored(test: &TestStore, tenant: &Tenant) -> Option<ScheduleState> {
    let (scope, workflow) = (tenant.scope(), tenant.workflow.id);
    tx!(test.read, &scope, [workflow], |tx| tx.load_schedule(*workflow, "nightly").await).unwrap()
}

/// The schedule's job, claimed.
async fn claim(test: &TestStore, tenant: &Tenant) -> Lease {
    let (ambient, now, worker) = (test.ambient.clone(), test.ambient.now(), test.worker().await);
    let job = NewJob {
        payload: JobPayload::FireSchedule { workflow: tenant.workflow.id, trigger: "nightly".parse().unwrap() },
        priority: 100,
        run_at: now,
        dedupe_key: Some("nightly".into()),
        attempts_max: 3,
        group: None,
    };
    tx!(test.write, &tenant.scope(), [job, ambient], |tx| tx.enqueue(job, ambient).await).unwrap().unwrap();
    let claimed = tx!(test.write_locked, &JOBS, [worker, now], |tx| {
        crate::support::claim_any(tx, *worker, Lane::System, 9, *now, MINUTE).await
    });
    claimed.unwrap().remove(0).lease
}

/// A firing's writes, as the application makes them.
async fn fire(test: &TestStore, tenant: &Tenant, lease: &Lease, key: &str) -> Result<bool, StoreError> {
    let (now, next) = (test.ambient.now(), test.ambient.now().plus(MINUTE));
    let run = support::run(&test.ambient, tenant.workflow.id, Some(key));
    tx!(test.write_locked, &tenant.scope(), [lease, run, now, next], |tx| {
        let mut state = tx.lock_schedule(run.workflow, "nightly").await?.expect("the schedule is there");
        let fresh = tx.insert_run(run).await?;
        state.last_tick = state.next_tick;
        state.next_tick = Some(*next);
        state.last_run = Some(run.id);
        state.fired_count += i64::from(fresh);
        tx.save_schedule(&state).await?;
        tx.release_job(lease, *next, Attempt::StartsAnew, None, *now).await?;
        Ok(fresh)
    })
}

on_both! {
    async fn overdue_schedules_are_found_page_by_page(test: TestStore) {
        let (acme, other) = (test.tenant("acme").await, test.tenant("other").await);
        let now = test.ambient.now();
        for (tenant, triggers) in [(&acme, ["a", "b"]), (&other, ["a", "c"])] {
            for trigger in triggers {
                let mut state = tenant.schedule.clone();
                state.trigger = trigger.to_owned();
                state.next_tick = Some(now);
                tx!(test.write, &tenant.scope(), [state], |tx| tx.save_schedule(state).await).unwrap();
            }
        }
        let (mut found, mut after, before) = (Vec::new(), None, now.plus(MINUTE));
        loop {
            let page = tx!(test.read, &JOBS, [before, after], |tx| {
                tx.list_overdue_schedules(*before, after.as_ref(), 2).await
            });
            let page = page.unwrap();
            assert!(page.len() <= 2);
            let Some(last) = page.last() else { break };
            after = Some(last.clone());
            found.extend(page.into_iter().map(|(org, state)| (org, state.trigger)));
        }
        found.sort();
        let mut expected: Vec<_> = [(acme.org, "a"), (acme.org, "b"), (other.org, "a"), (other.org, "c")]
            .map(|(org, trigger)| (org, trigger.to_owned()))
            .into();
        expected.sort();
        assert_eq!(found, expected, "each once, and none whose tick is to come");
        let none = tx!(test.read, &JOBS, [now], |tx| tx.list_overdue_schedules(*now, None, 9).await);
        assert_eq!(none.unwrap(), []);
    }

    async fn a_schedule_is_kept_changed_and_removed(test: TestStore) {
        let tenant = test.tenant("acme").await;
        assert_eq!(stored(&test, &tenant).await.as_ref(), Some(&tenant.schedule));
        let mut changed = tenant.schedule.clone();
        changed.rule = "Europe/Berlin 0 3 * * *".into();
        changed.next_tick = None;
        changed.last_tick = tenant.schedule.next_tick;
        changed.last_fired_at = tenant.schedule.next_tick;
        changed.last_run = Some(tenant.run.id);
        (changed.fired_count, changed.late_count, changed.missed_count, changed.unmatched_count) = (4, 3, 2, 1);
        let mut other = changed.clone();
        other.trigger = "Hourly".into();
        let states = vec![changed.clone(), other.clone()];
        tx!(test.write, &tenant.scope(), [states], |tx| {
            for state in states {
                tx.save_schedule(state).await?;
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(stored(&test, &tenant).await.as_ref(), Some(&changed));
        let workflow = tenant.workflow.id;
        let listed = tx!(test.read, &tenant.scope(), [workflow], |tx| tx.list_schedules(*workflow).await).unwrap();
        assert_eq!(listed, [other, changed], "by trigger, in the order of bytes");
        let (removed, again) = tx!(test.write, &tenant.scope(), [workflow], |tx| {
            Ok((tx.delete_schedule(*workflow, "nightly").await?, tx.delete_schedule(*workflow, "nightly").await?))
        })
        .unwrap();
        assert_eq!((removed, again), (true, false));
        assert_eq!(stored(&test, &tenant).await, None);
    }

    async fn a_lost_lease_undoes_the_whole_firing(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let lease = claim(&test, &tenant).await;
        let runs = |key: &'static str| {
            let (scope, workflow) = (tenant.scope(), tenant.workflow.id);
            let test = &test;
            async move { tx!(test.read, &scope, [workflow], |tx| tx.load_run_by_dedupe_key(*workflow, key).await).unwrap() }
        };
        // Somebody else claimed the job since.
        let stale = Lease { fence: lease.fence - 1, ..lease.clone() };
        assert!(matches!(fire(&test, &tenant, &stale, "tick").await, Err(StoreError::LostLease)));
        assert_eq!((runs("tick").await, stored(&test, &tenant).await.as_ref()), (None, Some(&tenant.schedule)));
        assert!(fire(&test, &tenant, &lease, "tick").await.unwrap());
        assert!(runs("tick").await.is_some());
        assert_eq!(stored(&test, &tenant).await.unwrap().fired_count, 1);
        // The job waits for the next tick; the lease is worth nothing any more.
        assert!(matches!(fire(&test, &tenant, &lease, "other").await, Err(StoreError::LostLease)));
        assert_eq!(runs("other").await, None);
    }

    async fn a_tick_that_has_its_run_starts_no_other(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let lease = claim(&test, &tenant).await;
        assert!(fire(&test, &tenant, &lease, "tick").await.unwrap());
        test.ambient.advance(MINUTE);
        let now = test.ambient.now();
        let worker = test.worker().await;
        let claimed = tx!(test.write_locked, &JOBS, [worker, now], |tx| {
            tx.promote_jobs(*now, 9).await?;
            crate::support::claim_any(tx, *worker, Lane::System, 9, *now, MINUTE).await
        });
        let lease = claimed.unwrap().remove(0).lease;
        assert_eq!(lease.attempt, 1, "a firing that was settled begins a new count");
        assert!(!fire(&test, &tenant, &lease, "tick").await.unwrap());
        assert_eq!(stored(&test, &tenant).await.unwrap().fired_count, 1);
    }
}
