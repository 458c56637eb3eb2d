//! Breakers of workflows, and jobs that wait for them.

use std::time::Duration;

use bulkhead_model::breaker::{Breaker, FAILURES_MAX, Failed, Stand, hold_key};
use bulkhead_model::fault::Fault;
use bulkhead_model::id::RunId;
use bulkhead_model::job::Lane;
use bulkhead_model::permission::{SystemReason, SystemScope};
use bulkhead_model::run::RunStatus;
use bulkhead_store::StoreError;
use bulkhead_store::breaker::BreakerState;
use bulkhead_store::page::PageRequest;

use crate::support::{JOBS, Tenant, TestStore, claim_any, job, run};

const MINUTE: Duration = Duration::from_mins(1);

async fn stored(test: &TestStore, tenant: &Tenant) -> Option<BreakerState> {
    let workflow = tenant.workflow.id;
    tx!(test.write, &tenant.scope(), [workflow], |tx| tx.lock_breaker(*workflow, 1).await).unwrap()
}

async fn states(test: &TestStore, tenant: &Tenant) -> Vec<String> {
    let page = PageRequest::default();
    let jobs = tx!(test.read, &tenant.scope(), [page], |tx| tx.list_jobs(None, *page).await).unwrap().items;
    let mut states: Vec<String> = jobs.into_iter().map(|job| job.state).collect();
    states.sort();
    states
}

async fn claim(test: &TestStore, worker: bulkhead_model::id::WorkerId) -> Vec<bulkhead_store::job::ClaimedJob> {
    let now = test.ambient.now();
    tx!(test.write_locked, &JOBS, [worker, now], |tx| {
        claim_any(tx, *worker, Lane::Interactive, 9, *now, MINUTE).await
    })
    .unwrap()
}

on_both! {
    async fn a_breaker_comes_back_as_it_was_saved(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (now, workflow) = (test.ambient.now(), tenant.workflow.id);
        let made = stored(&test, &tenant).await.unwrap();
        assert_eq!(made, BreakerState { workflow, version: 1, breaker: Breaker::new(now), error: None });
        // To begin again changes nothing.
        let fingerprint = Fault { kind: "run", code: "x", step: None, message: "y" }.fingerprint();
        let mut state = made;
        for n in 0..u128::from(FAILURES_MAX) {
            let run = RunId::from_uuid(uuid::Uuid::from_u128(n));
            let failed = state.breaker.failed(run, &fingerprint, now);
            assert_eq!(failed == Failed::Suspicious, n + 1 == u128::from(FAILURES_MAX));
        }
        state.error = Some("{\"code\":\"x\"}".to_owned());
        let probe = RunId::from_uuid(uuid::Uuid::from_u128(7));
        for step in 0..3 {
            match step {
                0 => {}
                1 => state.breaker.open(now),
                _ => state.breaker.let_go(probe, now),
            }
            tx!(test.write, &tenant.scope(), [state, now], |tx| tx.save_breaker(state, *now).await).unwrap();
            assert_eq!(stored(&test, &tenant).await.as_ref(), Some(&state));
            let later = now.plus(MINUTE);
            let again = tx!(test.write, &tenant.scope(), [workflow, later], |tx| tx.begin_breaker(*workflow, 1, *later).await);
            assert_eq!(again.unwrap(), state);
            let listed = tx!(test.read, &tenant.scope(), [workflow], |tx| tx.list_breakers(*workflow).await).unwrap();
            let everywhere = tx!(test.read, &JOBS, [], |tx| tx.list_open_breakers(9, 9).await).unwrap();
            if step == 0 {
                assert!(listed.is_empty() && everywhere.is_empty());
            } else {
                assert_eq!(listed, std::slice::from_ref(&state));
                assert_eq!(everywhere, [(tenant.org, state.clone())]);
            }
        }
        assert!(matches!(state.breaker.stand, Stand::Probing { run, .. } if run == probe));
        let gone = tx!(test.write, &tenant.scope(), [workflow], |tx| {
            Ok((tx.delete_breaker(*workflow, 1).await?, tx.delete_breaker(*workflow, 1).await?))
        });
        assert_eq!(gone.unwrap(), (true, false));
        assert_eq!(stored(&test, &tenant).await, None);
    }

    async fn a_success_counts_from_a_moment_on(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (workflow, now) = (tenant.workflow.id, test.ambient.now());
        let mut ended = run(&test.ambient, workflow, None);
        ended.status = RunStatus::Succeeded;
        ended.finished_at = Some(now);
        tx!(test.write, &tenant.scope(), [ended], |tx| {
            tx.insert_run(ended).await?;
            tx.update_run(ended).await
        })
        .unwrap();
        for (version, since, found) in [(1, now, true), (1, now.plus(Duration::from_micros(1)), false), (2, now, false)] {
            let answer = tx!(test.read, &tenant.scope(), [workflow, version, since], |tx| {
                tx.has_succeeded_since(*workflow, *version, *since).await
            });
            assert_eq!(answer.unwrap(), found, "{version} {since}");
        }
    }

    /// A `stop` step that ends a run as failed is an end like any other.
    async fn a_run_that_was_stopped_ended_well(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (workflow, now) = (tenant.workflow.id, test.ambient.now());
        for (error, found) in [
            (r#"{"code":"x","message":"\"code\":\"stopped\""}"#, false),
            (r#"{"code":"stopped","message":"no"}"#, true),
        ] {
            let mut ended = run(&test.ambient, workflow, None);
            (ended.status, ended.finished_at, ended.error) = (RunStatus::Failed, Some(now), Some(error.to_owned()));
            tx!(test.write, &tenant.scope(), [ended], |tx| {
                tx.insert_run(ended).await?;
                tx.update_run(ended).await
            })
            .unwrap();
            let answer = tx!(test.read, &tenant.scope(), [workflow, now], |tx| tx.has_succeeded_since(*workflow, 1, *now).await);
            assert_eq!(answer.unwrap(), found, "{error}");
        }
    }

    /// However many one organization has: those of others are listed.
    async fn open_breakers_are_listed_so_many_of_each_organization(test: TestStore) {
        let (acme, other) = (test.tenant("acme").await, test.tenant("other").await);
        let now = test.ambient.now();
        let second = bulkhead_store::workflow::WorkflowVersion { version: 2, ..acme.version.clone() };
        let workflow = acme.workflow.id;
        tx!(test.write, &acme.scope(), [workflow, second], |tx| tx.insert_workflow_version(*workflow, second).await).unwrap();
        for (tenant, version) in [(&acme, 1), (&acme, 2), (&other, 1)] {
            let state = BreakerState { version, ..tenant.breaker(now) };
            tx!(test.write, &tenant.scope(), [state, now], |tx| {
                tx.begin_breaker(state.workflow, state.version, *now).await?;
                tx.save_breaker(state, *now).await
            })
            .unwrap();
        }
        let list = async |of_each: u32, limit: u32| {
            let listed = tx!(test.read, &JOBS, [of_each, limit], |tx| tx.list_open_breakers(*of_each, *limit).await).unwrap();
            listed.into_iter().map(|(org, state)| (org, state.version)).collect::<Vec<_>>()
        };
        let mut first = [(acme.org, 1), (other.org, 1)];
        first.sort();
        assert_eq!(list(1, 9).await, first);
        assert_eq!(list(9, 1).await, first[..1]);
        let all = list(9, 9).await;
        assert_eq!((&all[..2], all[2]), (&first[..], (acme.org, 2)));
    }

    async fn paused_jobs_are_out_of_the_way_until_they_are_let_go(test: TestStore) {
        let (tenant, worker) = (test.tenant("acme").await, test.worker().await);
        let (name, other) = (hold_key(tenant.workflow.id, 1), hold_key(tenant.workflow.id, 2));
        let ambient = test.ambient.clone();
        // One that a worker held is put aside; its attempt does not count.
        let lease = claim(&test, worker).await.remove(0).lease;
        let now = test.ambient.now();
        let pause = async || tx!(test.write_locked, &tenant.scope(), [lease, name, now], |tx| tx.pause_job(lease, name, *now).await);
        pause().await.unwrap();
        assert!(matches!(pause().await, Err(StoreError::LostLease)));
        // Ids of one millisecond have no order.
        test.ambient.advance(Duration::from_millis(1));
        // Others wait from the start; a second one under the same key is none.
        let new = job(RunId::new(&test.ambient), now);
        for (name, made) in [(&name, true), (&name, false), (&other, false)] {
            let (new, ambient, name) = (new.clone(), ambient.clone(), name.clone());
            let id = tx!(test.write, &tenant.scope(), [new, name, ambient], |tx| tx.enqueue_paused(new, name, ambient).await);
            assert_eq!(id.unwrap().is_some(), made);
        }
        let elsewhere = job(RunId::new(&test.ambient), now);
        tx!(test.write, &tenant.scope(), [elsewhere, other, ambient], |tx| {
            tx.enqueue_paused(elsewhere, other, ambient).await
        })
        .unwrap();

        assert_eq!(states(&test, &tenant).await, ["paused", "paused", "paused"]);
        assert!(claim(&test, worker).await.is_empty());
        let counted = tx!(test.read, &tenant.scope(), [name], |tx| {
            let (of_name, most) = (tx.count_paused_runs(Some(name), 9).await?, tx.count_paused_runs(None, 2).await?);
            Ok((tx.count_waiting_runs(9).await?, of_name, tx.count_paused_runs(None, 9).await?, most))
        });
        assert_eq!(counted.unwrap(), (0, 2, 3, 2), "they have a bound of their own");
        let names = async |after: Option<String>| {
            tx!(test.read, &JOBS, [after], |tx| tx.list_paused_names(after.as_deref(), 9).await).unwrap()
        };
        assert_eq!(names(None).await, [(tenant.org, name.clone()), (tenant.org, other.clone())]);
        assert_eq!(names(Some(name.clone())).await, [(tenant.org, other.clone())]);
        let resume = async |jobs: u32| {
            tx!(test.write_locked, &tenant.scope(), [name, jobs, now], |tx| tx.resume_paused_jobs(name, *jobs, *now).await).unwrap()
        };
        assert_eq!(resume(1).await, [tenant.run.id.to_string()], "the oldest comes first");
        assert_eq!(resume(9).await.len(), 1);
        assert!(resume(9).await.is_empty());
        assert_eq!(names(None).await, [(tenant.org, other.clone())]);
        let claimed = claim(&test, worker).await;
        assert_eq!(claimed.iter().map(|job| job.lease.attempt).collect::<Vec<_>>(), [1, 1]);
        // One that waits can be cancelled.
        let key = elsewhere.dedupe_key.clone().unwrap();
        let removed = tx!(test.write, &SystemScope::new(SystemReason::Worker).for_org(tenant.org), [key], |tx| {
            tx.remove_waiting_job("advance_run", key).await
        });
        assert!(removed.unwrap());
        assert!(names(None).await.is_empty());
        // A clock that stepped back leaves a job in the future; it waits as well.
        let later = bulkhead_store::job::NewJob { run_at: now.plus(MINUTE), ..job(RunId::new(&test.ambient), now) };
        tx!(test.write, &tenant.scope(), [later, name, ambient], |tx| tx.enqueue_paused(later, name, ambient).await).unwrap();
        assert_eq!(names(None).await, [(tenant.org, name.clone())]);
    }
}
