//! What PostgreSQL does in one round trip leaves what the single statements leave, on both databases.

use std::time::Duration;

use bulkhead_model::id::{CallId, RunId};
use bulkhead_model::run::{RunStatus, StepStatus};
use bulkhead_store::StoreError;
use bulkhead_store::advance::{Begun, CalledStep, Told};
use bulkhead_store::page::PageRequest;
use bulkhead_store::run::{Run, RunEvent};
use serde_json::json;

use crate::support::{ADMIN, Tenant, TestStore, call, dead_letter, job, run, step};

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
