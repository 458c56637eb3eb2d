//! What PostgreSQL does in one round trip leaves what the single statements leave, on both databases.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{CallId, OrgId, RunId, WorkerId};
use bulkhead_model::job::{Lane, Lease};
use bulkhead_model::run::{RunStatus, StepStatus};
use bulkhead_store::advance::{Begun, CalledStep, Told};
use bulkhead_store::job::{Claim, Turn, TurnEnd};
use bulkhead_store::page::PageRequest;
use bulkhead_store::run::{Run, RunEvent};
use bulkhead_store::{Store, StoreError};
use serde_json::json;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::support::{ADMIN, JOBS, Tenant, TestStore, call, dead_letter, job, run, spawn, step};

const MINUTE: Duration = Duration::from_mins(1);

/// Everything of a run that the store shows, without the ids and places that differ from run to run.
async fn picture(test: &TestStore, tenant: &Tenant, id: RunId, made: Option<CallId>) -> String {
    let (run, steps, log, call, key) = tx!(test.read, &tenant.scope(), [id, made], |tx| {
        let run = tx.require_run(*id).await?;
        let steps = tx.list_steps(*id).await?;
        let log = tx.list_run_events(*id, 0, 100).await?;
        let call = match made {
            Some(call) => tx.load_call(*call).await?,
            None => None,
        };
        let key = run.id.to_string();
        Ok((run, steps, log, call, tx.is_job_held("advance_run", &key).await?))
    })
    .unwrap();
    let events = tx!(test.read, &tenant.scope(), [], |tx| tx.list_events(None, PageRequest::default()).await).unwrap();
    let told = events.items.into_iter().filter(|event| event.subject == id.to_string());
    let told: Vec<_> = told.map(|event| (event.kind, event.detail, event.created_at)).collect();
    let text = format!("{run:?} {steps:?} {log:?} {call:?} {told:?} held: {key}");
    let text = text.replace(&id.to_string(), "RUN");
    made.map_or_else(|| text.clone(), |made| text.replace(&made.to_string(), "CALL"))
}

/// A run that is under way.
async fn under_way(test: &TestStore, tenant: &Tenant) -> Run {
    let mut run = run(&test.ambient, tenant.workflow.id, None);
    run.status = RunStatus::Running;
    tx!(test.write, &tenant.scope(), [run], |tx| tx.insert_run(run).await).unwrap();
    run
}

fn event(seq: i64, kind: &str, run: &Run) -> RunEvent {
    RunEvent { seq, kind: kind.to_owned(), detail: r#"{"é":"'"}"#.to_owned(), created_at: run.created_at }
}

on_both! {
    async fn a_stride_leaves_what_its_statements_leave(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (ambient, name) = (&test.ambient, tenant.plugin.name.clone());
        let mut pictures = Vec::new();
        for is_stride in [false, true] {
            let mut run = under_way(&test, &tenant).await;
            let made = call(ambient, tenant.installation.id, tenant.plugin.id, Some(run.id));
            // The first attempt's row is there; what it holds and the second leaves out stays.
            let first = step("send", 1, run.created_at);
            let second = bulkhead_store::run::Step {
                status: StepStatus::Succeeded,
                outcome: Some("returned".to_owned()),
                attempts: 2,
                input: None,
                output: Some("[1]".to_owned()),
                error: Some("{}".to_owned()),
                usage: Some(r#"{"fuel":1}"#.to_owned()),
                call: Some(made.id),
                finished_at: Some(run.created_at.plus(MINUTE)),
                ..first.clone()
            };
            r#"{"on":"the way"}"#.clone_into(&mut run.state);
            (run.generation, run.log_seq) = (3, 2);
            (run.output, run.error) = (Some("1".to_owned()), Some("2".to_owned()));
            run.updated_at = run.created_at.plus(MINUTE);
            run.waiting_until = Some(run.created_at.plus(MINUTE));
            run.kept.held_bytes = 1_000;
            let entry = event(2, "step", &run);
            let read = tx!(test.write, &tenant.scope(), [run, made, first, second, entry, name, is_stride], |tx| {
                tx.save_step(run.id, first).await?;
                let (mut run, called) = (run.clone(), CalledStep { call: made, step: second, event: entry });
                if *is_stride {
                    return tx.save_stride(&mut run, called, (name, None)).await;
                }
                tx.record_called_step(&mut run, called).await?;
                tx.update_run(&run).await?;
                tx.load_installation_of(name, None).await
            })
            .unwrap();
            assert_eq!(read.map(|read| read.id), Some(tenant.installation.id));
            let picture = picture(&test, &tenant, run.id, Some(made.id)).await;
            assert!(picture.contains("CALL") && picture.contains("the way") && !picture.contains("held_bytes: 1000,"));
            pictures.push(picture);
        }
        assert_eq!(pictures[0], pictures[1]);
    }

    async fn a_stride_finds_the_next_installation(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (own, none) = (Some(tenant.installation.id), Some(bulkhead_model::id::InstallationId::new(&test.ambient)));
        let (plugin, other) = (tenant.plugin.name.clone(), "acme/other".parse().unwrap());
        for (name, named, expected) in
            [(&plugin, None, own), (&plugin, own, own), (&plugin, none, None), (&other, None, None), (&other, own, None)]
        {
            let run = under_way(&test, &tenant).await;
            let made = call(&test.ambient, tenant.installation.id, tenant.plugin.id, Some(run.id));
            let (step, entry) = (step("send", 1, run.created_at), event(2, "step", &run));
            let found = tx!(test.write, &tenant.scope(), [run, made, step, entry, name, named], |tx| {
                let called = CalledStep { call: made, step, event: entry };
                let found = tx.save_stride(&mut run.clone(), called, (name, *named)).await?;
                let single = tx.load_installation_of(name, *named).await?;
                assert_eq!(found.as_ref().map(|found| found.id), single.map(|single| single.id));
                Ok(found)
            })
            .unwrap();
            assert_eq!(found.map(|found| found.id), expected, "{name} {named:?}");
        }
    }

    async fn an_end_leaves_what_its_statements_leave(test: TestStore) {
        let (tenant, worker) = (test.tenant("acme").await, test.worker().await);
        let (ambient, now) = (&test.ambient, test.ambient.now());
        let mut pictures = Vec::new();
        for is_one in [false, true] {
            let mut run = under_way(&test, &tenant).await;
            run.status = RunStatus::Succeeded;
            run.output = Some("[2]".to_owned());
            (run.log_seq, run.finished_at, run.kept.held_bytes) = (2, Some(now), 500);
            let (new, last, installation) = (job(run.id, now), event(2, "succeeded", &run), Some(tenant.installation.id));
            let held = tx!(test.write, &tenant.scope(), [new, worker, ambient], |tx| {
                tx.enqueue_held(new, *worker, MINUTE, ambient).await
            });
            let lease = held.unwrap().expect("there is room").lease;
            let standing = tx!(test.write, &tenant.scope(), [run, last, lease, installation, ambient, is_one], |tx| {
                let (now, subject, detail) = (ambient.now(), run.id.to_string(), json!({ "n": 1 }));
                let told = Told { kind: "run.succeeded", subject: &subject, detail: &detail };
                if *is_one {
                    let standing = tx.finish_standing(lease, now, run.id, *installation).await?;
                    tx.save_end(run, last, told, ambient).await?;
                    return Ok(standing);
                }
                tx.finish_job(lease, now).await?;
                let standing = tx.lock_standing(run.id, *installation).await?;
                tx.record_run_event(run.id, last).await?;
                tx.record_event(told.kind, told.subject, told.detail, ambient).await?;
                tx.update_run(run).await?;
                Ok(standing)
            })
            .unwrap();
            let again = tx!(test.write, &tenant.scope(), [run, lease, now], |tx| {
                tx.finish_standing(lease, *now, run.id, None).await.map(drop)
            });
            assert!(matches!(again, Err(StoreError::LostLease)), "{again:?}");
            let picture = picture(&test, &tenant, run.id, None).await;
            assert!(picture.ends_with("held: false") && picture.contains("run.succeeded"), "{picture}");
            pictures.push((picture, standing));
        }
        assert_eq!(pictures[0], pictures[1]);
    }

    /// A call, and with it the end of its run: as a stride and an end leave it.
    async fn a_last_stride_leaves_what_its_statements_leave(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (ambient, now) = (&test.ambient, test.ambient.now());
        let mut pictures = Vec::new();
        for is_one in [false, true] {
            let mut run = under_way(&test, &tenant).await;
            let made = call(ambient, tenant.installation.id, tenant.plugin.id, Some(run.id));
            // The first attempt's row is there; what it holds and the second leaves out stays.
            let first = step("send", 1, now);
            let second = bulkhead_store::run::Step {
                status: StepStatus::Failed,
                outcome: Some("returned".to_owned()),
                attempts: 2,
                input: None,
                output: Some("[1]".to_owned()),
                error: Some("{}".to_owned()),
                usage: Some(r#"{"fuel":1}"#.to_owned()),
                call: Some(made.id),
                finished_at: Some(now.plus(MINUTE)),
                ..first.clone()
            };
            // The list of dead letters is told before the run's row is saved, which leaves that alone.
            let letter = dead_letter(&run, "the channel is archived");
            r#"{"at":"its end"}"#.clone_into(&mut run.state);
            (run.status, run.generation, run.log_seq) = (RunStatus::Failed, 3, 3);
            (run.output, run.error) = (Some("[2]".to_owned()), Some("[3]".to_owned()));
            (run.updated_at, run.finished_at) = (now.plus(MINUTE), Some(now.plus(MINUTE)));
            run.kept.held_bytes = 1_000;
            let (entry, last) = (event(2, "step", &run), event(3, "failed", &run));
            let args = (letter, first, last);
            let kept = tx!(test.write, &tenant.scope(), [run, made, second, entry, args, ambient, is_one], |tx| {
                let (mut run, called) = (run.clone(), CalledStep { call: made, step: second, event: entry });
                let (subject, detail, (letter, first, last)) = (run.id.to_string(), json!({ "n": 1 }), args);
                let told = Told { kind: "run.failed", subject: &subject, detail: &detail };
                tx.save_step(run.id, first).await?;
                tx.record_dead_letter(letter, ambient).await?;
                if *is_one {
                    tx.save_last_stride(&mut run, called, last, told, ambient).await?;
                    return Ok(run.kept);
                }
                tx.record_called_step(&mut run, called).await?;
                tx.record_run_event(run.id, last).await?;
                tx.record_event(told.kind, told.subject, told.detail, ambient).await?;
                tx.update_run(&run).await?;
                Ok(run.kept)
            })
            .unwrap();
            assert!(kept.held_bytes > 1_000, "the call is counted: {kept:?}");
            let (id, wanted) = (run.id, kept.held_bytes);
            let bytes = tx!(test.read, &tenant.scope(), [id], |tx| tx.load_run_bytes(*id).await).unwrap();
            assert_eq!(bytes, Some(wanted + 22), "what it holds, its state (16 bytes), its output and its error (3 each)");
            let picture = picture(&test, &tenant, run.id, Some(made.id)).await;
            for part in ["CALL", "its end", "dead_letter: true", "run.failed"] {
                assert!(picture.contains(part), "{part}: {picture}");
            }
            pictures.push((picture, kept));
        }
        assert_eq!(pictures[0], pictures[1]);
    }

    /// A job that was enqueued again while it was held begins anew, also where the run ends with it.
    async fn an_end_keeps_what_was_enqueued_meanwhile(test: TestStore) {
        let (tenant, worker) = (test.tenant("acme").await, test.worker().await);
        let (ambient, now) = (&test.ambient, test.ambient.now());
        let run = under_way(&test, &tenant).await;
        let new = job(run.id, now);
        let lease = tx!(test.write, &tenant.scope(), [new, worker, ambient], |tx| {
            let held = tx.enqueue_held(new, *worker, MINUTE, ambient).await?.expect("there is room");
            assert!(tx.enqueue(new, ambient).await?.is_none());
            Ok(held.lease)
        })
        .unwrap();
        let key = run.id.to_string();
        let waits = tx!(test.write, &tenant.scope(), [run, lease, now, key], |tx| {
            tx.finish_standing(lease, *now, run.id, None).await?;
            assert!(!tx.is_job_held("advance_run", key).await?);
            tx.hasten_job("advance_run", key, *now).await
        });
        assert!(waits.unwrap());
    }

    async fn a_begin_leaves_what_its_statements_leave(test: TestStore) {
        let (tenant, worker) = (test.tenant("acme").await, test.worker().await);
        let (ambient, now) = (&test.ambient, test.ambient.now());
        let mut pictures = Vec::new();
        for is_one in [false, true] {
            let mut run = run(ambient, tenant.workflow.id, Some(if is_one { "one" } else { "three" }));
            run.status = RunStatus::Running;
            run.kept.held_bytes = 700;
            let (new, first) = (job(run.id, now), event(1, "queued", &run));
            let begun = tx!(test.write, &tenant.scope(), [run, new, first, worker, ambient, is_one], |tx| {
                if *is_one {
                    return tx.begin_run(run, first, new, *worker, MINUTE, ambient).await;
                }
                assert!(tx.insert_run(run).await?);
                tx.record_run_event(run.id, first).await?;
                Ok(tx.enqueue_held(new, *worker, MINUTE, ambient).await?.map_or(Begun::Queued, Begun::Held))
            })
            .unwrap();
            let Begun::Held(held) = begun else { panic!("{begun:?}") };
            let (lease, kind) = (held.lease.clone(), held.kind);
            assert_eq!((lease.worker, lease.fence, lease.attempt, kind.as_str()), (worker, 1, 1, "advance_run"));
            tx!(test.write, &tenant.scope(), [lease, now], |tx| tx.hold_lease(lease, MINUTE, *now).await).unwrap();
            pictures.push(picture(&test, &tenant, run.id, None).await.replace("\"three\"", "\"one\""));
            // The same key again begins nothing.
            let mut second = run.clone();
            second.id = RunId::new(ambient);
            let new = job(second.id, now);
            let again = tx!(test.write, &tenant.scope(), [second, new, first, worker, ambient], |tx| {
                tx.begin_run(second, first, new, *worker, MINUTE, ambient).await
            });
            assert!(matches!(again, Ok(Begun::Before)), "{again:?}");
            let id = second.id;
            assert!(tx!(test.read, &tenant.scope(), [id], |tx| tx.require_run(*id).await).is_err());
        }
        assert_eq!(pictures[0], pictures[1]);
    }

    async fn a_run_that_may_not_be_held_waits_for_its_turn(test: TestStore) {
        let (tenant, worker) = (test.tenant("acme").await, test.worker().await);
        let (ambient, now, org) = (&test.ambient, test.ambient.now(), tenant.org);
        assert!(tx!(test.write, &ADMIN, [org], |tx| tx.set_queue_share(*org, 1, 1).await).unwrap());
        let stranger = bulkhead_model::id::WorkerId::new(ambient);
        for (by, held) in [(stranger, false), (worker, true), (worker, false)] {
            let mut run = run(ambient, tenant.workflow.id, None);
            run.status = RunStatus::Running;
            let (new, first) = (job(run.id, now), event(1, "queued", &run));
            let begun = tx!(test.write, &tenant.scope(), [run, new, first, by, ambient], |tx| {
                tx.begin_run(run, first, new, *by, MINUTE, ambient).await
            });
            assert_eq!(matches!(begun, Ok(Begun::Held(_))), held, "{begun:?}");
            let id = run.id;
            let seen = tx!(test.read, &tenant.scope(), [id], |tx| tx.require_run(*id).await).unwrap();
            assert_eq!(seen.status, if held { RunStatus::Running } else { RunStatus::Queued });
        }
    }
}

/// Begins a run in a transaction that stays open until all who go by `gate` have come to it twice.
async fn start(store: Store, tenant: Tenant, worker: WorkerId, ambient: Ambient, gate: Arc<Barrier>) -> Begun {
    let mut run = run(&ambient, tenant.workflow.id, None);
    run.status = RunStatus::Running;
    let (new, first, scope) = (job(run.id, ambient.now()), event(1, "queued", &run), tenant.scope());
    let args = (run, new, first, worker, ambient, gate);
    let begun: Result<Begun, StoreError> = store
        .write_locked(&scope, args, |tx, (run, new, first, worker, ambient, gate)| {
            Box::pin(async move {
                let begun = tx.begin_run(run, first, new, *worker, MINUTE, ambient).await;
                gate.wait().await;
                gate.wait().await;
                begun
            })
        })
        .await;
    begun.unwrap()
}

async fn claim(test: &TestStore, org: OrgId, worker: WorkerId) -> Claim {
    let (now, turns) = (test.ambient.now(), vec![Turn { org, quota: 9 }]);
    tx!(test.write_locked, &JOBS, [worker, turns, now], |tx| {
        tx.claim_jobs(*worker, Lane::Interactive, turns, *now, MINUTE).await
    })
    .unwrap()
}

/// Starts on two nodes at once; what they hold, and what the organization holds in all.
async fn start_at_once(
    test: &TestStore,
    nodes: &[Store; 2],
    tenant: &Tenant,
    worker: WorkerId,
    many: usize,
) -> (Vec<Lease>, i64) {
    let (gate, mut starts) = (Arc::new(Barrier::new(many)), JoinSet::new());
    for store in nodes.iter().cycle().take(many) {
        starts.spawn(start(store.clone(), tenant.clone(), worker, test.ambient.clone(), Arc::clone(&gate)));
    }
    let begun = starts.join_all().await.into_iter();
    let leases = begun.filter_map(|begun| if let Begun::Held(job) = begun { Some(job.lease) } else { None }).collect();
    let used = tx!(test.read, &tenant.scope(), [], |tx| tx.load_lane_use(Lane::Interactive).await).unwrap();
    (leases, used.held)
}

/// As the two that follow, of PostgreSQL alone: SQLite has one writer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_of_one_organization_are_saved_beside_each_other() {
    let Some(test) = TestStore::postgres().await else { return };
    let (tenant, worker, other) = (test.tenant("acme").await, test.worker().await, test.another_node().await);
    let (gate, mut starts) = (Arc::new(Barrier::new(3)), JoinSet::new());
    for store in [&test.store, &other] {
        starts.spawn(start(store.clone(), tenant.clone(), worker, test.ambient.clone(), Arc::clone(&gate)));
    }
    gate.wait().await;
    // Both have begun, and neither is committed.
    let met = claim(&test, tenant.org, worker).await;
    // Schedules have a lane of their own, and its turn is free.
    let (turns, now) = (vec![Turn { org: tenant.org, quota: 9 }], test.ambient.now());
    let beside = tx!(test.write_locked, &JOBS, [turns, now, worker], |tx| tx
        .claim_jobs(*worker, Lane::System, turns, *now, MINUTE)
        .await);
    gate.wait().await;
    assert_eq!(beside.unwrap().turns, [(tenant.org, TurnEnd::Drained)]);
    assert_eq!(met.turns, [(tenant.org, TurnEnd::Elsewhere)]);
    for begun in starts.join_all().await {
        let Begun::Held(held) = begun else { panic!("{begun:?}") };
        let (lease, now) = (held.lease, test.ambient.now());
        tx!(test.write_locked, &tenant.scope(), [lease, now], |tx| tx.hold_lease(lease, MINUTE, *now).await).unwrap();
    }
    assert_eq!(claim(&test, tenant.org, worker).await.jobs.len(), 1, "the tenant's own, which was ready");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_at_once_hold_no_more_than_their_organization_may() {
    let Some(test) = TestStore::postgres().await else { return };
    let (tenant, worker) = (test.tenant("acme").await, test.worker().await);
    let (nodes, org) = ([test.store.clone(), test.another_node().await], tenant.org);
    // Two seats.
    assert!(tx!(test.write, &ADMIN, [org], |tx| tx.set_queue_share(*org, 1, 8).await).unwrap());
    let mut last = None;
    for held in [2, 4, 6, 8] {
        let (mut leases, used) = start_at_once(&test, &nodes, &tenant, worker, 4).await;
        assert_eq!((leases.len(), used), (2, held), "the others find no seat");
        last = leases.pop();
    }
    let (leases, used) = start_at_once(&test, &nodes, &tenant, worker, 4).await;
    assert_eq!((leases.len(), used), (0, 8));
    let (lease, now) = (last.unwrap(), test.ambient.now());
    tx!(test.write_locked, &tenant.scope(), [lease, now], |tx| tx.finish_job(lease, *now).await).unwrap();
    // There is room for one. Of two at once neither need get it, and never both do; one alone does.
    let (leases, used) = start_at_once(&test, &nodes, &tenant, worker, 2).await;
    assert!(matches!((leases.len(), used), (0, 7) | (1, 8)), "{leases:?} {used}");
    let alone = start_at_once(&test, &nodes, &tenant, worker, 1).await;
    assert_eq!((leases.len() + alone.0.len(), alone.1), (1, 8));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_meets_a_claim_waits_for_its_turn() {
    let Some(test) = TestStore::postgres().await else { return };
    let (tenant, worker, store) = (test.tenant("acme").await, test.worker().await, test.store.clone());
    let (gate, now, turns) = (Arc::new(Barrier::new(2)), test.ambient.now(), vec![Turn { org: tenant.org, quota: 9 }]);
    let args = (turns, now, Arc::clone(&gate));
    let claiming = spawn(async move {
        let claimed: Result<Claim, StoreError> = store
            .write_locked(&JOBS, args, move |tx, (turns, now, gate)| {
                Box::pin(async move {
                    let claimed = tx.claim_jobs(worker, Lane::Interactive, turns, *now, MINUTE).await;
                    gate.wait().await;
                    gate.wait().await;
                    claimed
                })
            })
            .await;
        claimed.unwrap()
    });
    gate.wait().await;
    let (own, ambient) = (Arc::new(Barrier::new(1)), test.ambient.clone());
    let begun = start(test.store.clone(), tenant.clone(), worker, ambient, own).await;
    gate.wait().await;
    assert!(matches!(begun, Begun::Queued), "{begun:?}");
    assert_eq!(claiming.await.unwrap().jobs.len(), 1, "the tenant's own, which was ready");
    let claimed = claim(&test, tenant.org, worker).await;
    let [next] = claimed.jobs.as_slice() else { panic!("{claimed:?}") };
    assert!(!next.payload.contains(&tenant.run.id.to_string()), "{next:?}");
}
