//! Runs carried forward by a real worker: steps, waits, retries, cancellation, a second start, a process that ends in mid-run.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_app::heartbeat::LEASE_TTL;
use bulkhead_app::installation::InstallationPatch;
use bulkhead_app::run::{RetryRun, RunDetail, StartByHand};
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::worker::{Slots, WorkerConfig};
use bulkhead_app::workflow::SaveWorkflow;
use bulkhead_app::{App, AppError};
use bulkhead_model::id::{RunId, WorkerId, WorkflowId};
use bulkhead_model::permission::{Permission, SystemReason, SystemScope};
use bulkhead_model::run::{RunStatus, StepStatus};
use bulkhead_store::page::PageRequest;
use bulkhead_test_support::wait::until_async;
use serde_json::{Map, Value, json};

use crate::guests::{acme_echo, manifest, package, waits};
use crate::support::{Options, PATIENCE, Tenant, TestApp, conflict, problems};

async fn work(app: &App) -> Supervisor {
    work_as(app).await.0
}

async fn work_as(app: &App) -> (Supervisor, WorkerId) {
    let supervisor = Supervisor::new();
    let config = WorkerConfig { name: "test".into(), slots: Slots::default(), heartbeat: None };
    let worker = app.start_worker(config, &supervisor).await.unwrap();
    (supervisor, worker)
}

fn call(next: Option<&str>) -> Value {
    json!({ "type": "action", "use": "acme/echo#it", "with": { "seen": "{{ trigger.body.n }}" }, "next": next })
}

async fn save(app: &TestApp, tenant: &Tenant, start: &str, steps: Value) -> WorkflowId {
    let definition = json!({
        "schema": 1, "name": "it", "triggers": [{ "id": "by-hand", "type": "api" }], "start": start, "steps": steps,
    });
    let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
    app.app.create_workflow(&tenant.caller, tenant.org, save).await.unwrap().workflow.id
}

async fn begin(app: &TestApp, tenant: &Tenant, workflow: WorkflowId, key: Option<&str>) -> RunId {
    let start =
        StartByHand { input: json!({ "n": 7 }), variables: Map::new(), idempotency_key: key.map(str::to_owned) };
    app.app.start_run(&tenant.caller, tenant.org, workflow, start).await.unwrap()
}

async fn show(app: &TestApp, tenant: &Tenant, run: RunId) -> RunDetail {
    app.app.show_run(&tenant.caller, tenant.org, run).await.unwrap()
}

async fn until_status(app: &TestApp, tenant: &Tenant, run: RunId, status: RunStatus) -> RunDetail {
    let reached = until_async(PATIENCE, async || show(app, tenant, run).await.run.status == status).await;
    let detail = show(app, tenant, run).await;
    assert!(reached, "{:?} {:?} {:?}", detail.run.status, detail.run.error, detail.steps);
    detail
}

async fn no_job_is_left(app: &TestApp, tenant: &Tenant) {
    let none = until_async(PATIENCE, async || {
        app.app.list_jobs(&tenant.caller, tenant.org, None, PageRequest::default()).await.unwrap().items.is_empty()
    });
    assert!(none.await, "a job is left");
}

on_both! {
    /// A workflow that bounds its runs: those beyond the limit wait out of the claim path and follow one by one.
    async fn a_bound_on_runs_is_kept(app: TestApp) {
        let acme = app.tenant("acme").await;
        let patient = manifest("acme/patient", "1.0.0", |manifest| manifest["limits"] = json!({ "wall_ms": 60_000 }));
        app.install(&acme, package(&waits(), &patient), json!({})).await;
        let definition = json!({
            "schema": 1, "name": "bounded", "triggers": [{ "id": "by-hand", "type": "api" }], "start": "call",
            "concurrency": { "limit": 1, "key": "trigger.body.n" },
            "steps": { "call": { "type": "action", "use": "acme/patient#it", "with": {}, "timeout_ms": 60_000 } },
        });
        let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
        let workflow = app.app.create_workflow(&acme.caller, acme.org, save).await.unwrap().workflow.id;
        let supervisor = work(&app.app).await;
        let mut runs = Vec::new();
        for _ in 0..3 {
            runs.push(begin(&app, &acme, workflow, None).await);
        }
        let states = async || {
            let jobs = app.app.list_jobs(&acme.caller, acme.org, None, PageRequest::default()).await.unwrap().items;
            let mut states: Vec<String> = jobs.into_iter().map(|job| job.state).collect();
            states.sort();
            states
        };
        for left in (1..=3).rev() {
            let expected: Vec<&str> = std::iter::repeat_n("blocked", left - 1).chain(["leased"]).collect();
            assert!(until_async(PATIENCE, async || states().await == expected).await, "{:?}", states().await);
            let mut held = None;
            for run in &runs {
                if show(&app, &acme, *run).await.run.status == RunStatus::Running {
                    assert!(held.replace(*run).is_none(), "two at once");
                }
            }
            app.app.cancel_run(&acme.caller, acme.org, held.unwrap()).await.unwrap();
        }
        no_job_is_left(&app, &acme).await;
        app.app.set_queue_share(acme.org, 3, 200).await.unwrap();
        let told = app.audit(&acme, "org.share_set").await;
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].detail, json!({ "before": { "weight": 1, "jobs_max": 64 }, "after": { "weight": 3, "jobs_max": 200 } }));
        for (weight, jobs_max) in [(0, 1), (101, 1), (1, 0), (1, 10_001)] {
            problems(app.app.set_queue_share(acme.org, weight, jobs_max).await, "invalid-share");
        }
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn steps_follow_each_other_and_are_on_record(app: TestApp) {
        let acme = app.tenant("acme").await;
        app.install(&acme, acme_echo(), json!({})).await;
        let steps = json!({
            "first": call(Some("choose")),
            "choose": { "type": "condition", "if": { "field": "steps.first.output.seen", "op": "eq", "value": 7 },
                "then": "second", "else": "end" },
            "second": call(Some("end")),
            "end": { "type": "stop", "output": { "seen": "{{ steps.second.output.seen }}" } },
        });
        let workflow = save(&app, &acme, "first", steps).await;
        let supervisor = work(&app.app).await;
        let run = begin(&app, &acme, workflow, None).await;
        let detail = until_status(&app, &acme, run, RunStatus::Succeeded).await;
        let shown: Vec<_> = detail.steps.iter().map(|step| (step.step.as_str(), step.status, step.outcome.as_deref())).collect();
        assert_eq!(
            shown,
            [
                ("first", StepStatus::Succeeded, Some("returned")),
                ("choose", StepStatus::Succeeded, None),
                ("second", StepStatus::Succeeded, Some("returned")),
                ("end", StepStatus::Succeeded, None),
            ]
        );
        assert_eq!(detail.run.output.as_deref(), Some(r#"{"seen":7}"#));
        let log = app.app.list_run_events(&acme.caller, acme.org, run, 0, 100).await.unwrap();
        assert_eq!(log.iter().map(|event| event.seq).collect::<Vec<_>>(), (1..=i64::try_from(log.len()).unwrap()).collect::<Vec<_>>());
        assert_eq!((log[0].kind.as_str(), log[log.len() - 1].kind.as_str()), ("queued", "succeeded"));
        let events = app.app.list_events(&acme.caller, acme.org, Some("run.succeeded".into()), PageRequest::default()).await.unwrap();
        assert_eq!(events.items[0].subject, run.to_string());
        no_job_is_left(&app, &acme).await;
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn a_second_start_with_the_same_key_is_the_same_run(app: TestApp) {
        let acme = app.tenant("acme").await;
        let workflow = save(&app, &acme, "end", json!({ "end": { "type": "stop" } })).await;
        let first = begin(&app, &acme, workflow, Some("k")).await;
        let starts = (0..8).map(|_| begin(&app, &acme, workflow, Some("k")));
        for again in futures_util::future::join_all(starts).await {
            assert_eq!(again, first);
        }
        assert_ne!(begin(&app, &acme, workflow, Some("other")).await, first);
        assert_ne!(begin(&app, &acme, workflow, None).await, first);
    }

    async fn a_delay_waits_for_its_time_and_outlives_the_process(app: TestApp) {
        let acme = app.tenant("acme").await;
        app.install(&acme, acme_echo(), json!({})).await;
        let steps = json!({ "wait": { "type": "delay", "for": "3d", "next": "tell" }, "tell": call(None) });
        let workflow = save(&app, &acme, "wait", steps).await;
        let supervisor = work(&app.app).await;
        let run = begin(&app, &acme, workflow, None).await;
        let waiting = until_status(&app, &acme, run, RunStatus::Waiting).await;
        let until = waiting.run.waiting_until.unwrap();
        assert_eq!(until.since(waiting.run.created_at), Duration::from_hours(72));
        assert!(supervisor.shut_down(PATIENCE).await);
        // Another process, three days later.
        app.ambient.advance(Duration::from_hours(72));
        let later = app.again(Options::default());
        let supervisor = work(&later).await;
        let detail = until_status(&app, &acme, run, RunStatus::Succeeded).await;
        assert_eq!(detail.steps.iter().filter(|step| step.outcome.is_some()).count(), 1);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn a_cancelled_run_ends_its_call_at_once_and_can_begin_again(app: TestApp) {
        let acme = app.tenant("acme").await;
        let patient = manifest("acme/patient", "1.0.0", |manifest| manifest["limits"] = json!({ "wall_ms": 60_000 }));
        app.install(&acme, package(&waits(), &patient), json!({})).await;
        let steps = json!({ "wait": { "type": "action", "use": "acme/patient#it", "with": {}, "timeout_ms": 60_000 } });
        let workflow = save(&app, &acme, "wait", steps).await;
        let supervisor = work(&app.app).await;
        let run = begin(&app, &acme, workflow, None).await;
        assert!(until_async(PATIENCE, async || app.app.calls_in_flight() == 1).await);
        assert_eq!(show(&app, &acme, run).await.run.status, RunStatus::Running, "a claimed run says so");
        let lesser = acme.only(&[Permission::RunsRead]);
        assert!(matches!(app.app.cancel_run(&lesser, acme.org, run).await, Err(AppError::Forbidden(Permission::RunsControl))));
        app.app.cancel_run(&acme.caller, acme.org, run).await.unwrap();
        assert!(until_async(PATIENCE, async || app.app.calls_in_flight() == 0).await);
        let cancelled = until_status(&app, &acme, run, RunStatus::Cancelled).await;
        assert!(cancelled.run.finished_at.is_some());
        assert_eq!(conflict(app.app.cancel_run(&acme.caller, acme.org, run).await), "run-finished");
        no_job_is_left(&app, &acme).await;
        assert_eq!(app.audit(&acme, "run.cancelled").await.len(), 1);
        app.app.retry_run(&acme.caller, acme.org, run, RetryRun::default()).await.unwrap();
        assert!(until_async(PATIENCE, async || app.app.calls_in_flight() == 1).await);
        assert_eq!(conflict(app.app.retry_run(&acme.caller, acme.org, run, RetryRun::default()).await), "run-not-finished");
        app.app.cancel_run(&acme.caller, acme.org, run).await.unwrap();
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn failures_follow_the_definition(app: TestApp) {
        let acme = app.tenant("acme").await;
        let steps = json!({
            "absent": { "type": "action", "use": "acme/gone#it", "with": {}, "allow_failure": true, "next": "stands-in" },
            "stands-in": { "type": "action", "use": "acme/gone#it", "with": {}, "fallback": { "n": 1 }, "next": "end" },
            "end": { "type": "stop", "output": { "n": "{{ steps['stands-in'].output.n }}" } },
        });
        let workflow = save(&app, &acme, "absent", steps).await;
        let supervisor = work(&app.app).await;
        let run = begin(&app, &acme, workflow, None).await;
        let detail = until_status(&app, &acme, run, RunStatus::Succeeded).await;
        assert_eq!(detail.run.output.as_deref(), Some(r#"{"n":1}"#));
        assert_eq!(detail.steps[0].status, StepStatus::Failed);
        assert!(detail.steps[0].error.as_deref().unwrap().contains("acme/gone"), "{:?}", detail.steps[0]);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    /// A failure that the definition allows for is not where the run failed; and what is forgotten does not look done.
    async fn a_retry_begins_where_the_run_failed_and_forgets_what_came_after(app: TestApp) {
        let acme = app.tenant("acme").await;
        app.install(&acme, acme_echo(), json!({})).await;
        let steps = json!({
            "allowed": { "type": "action", "use": "acme/gone#it", "with": {}, "allow_failure": true, "next": "fails" },
            "fails": { "type": "action", "use": "acme/gone#it", "with": {}, "retry": { "max_attempts": 1 }, "next": "after" },
            "after": call(None),
        });
        let workflow = save(&app, &acme, "allowed", steps).await;
        let supervisor = work(&app.app).await;
        let run = begin(&app, &acme, workflow, None).await;
        until_status(&app, &acme, run, RunStatus::Failed).await;
        let retry = async |from_step: Option<&str>| {
            let retry = RetryRun { from_step: from_step.map(str::to_owned), new_generation: false };
            app.app.retry_run(&acme.caller, acme.org, run, retry).await
        };
        assert!(until_async(PATIENCE, async || retry(None).await.is_ok()).await);
        let log = app.app.list_run_events(&acme.caller, acme.org, run, 0, 100).await.unwrap();
        let retried = log.iter().find(|event| event.kind == "retried").unwrap();
        assert_eq!(serde_json::from_str::<Value>(&retried.detail).unwrap()["from_step"], "fails");
        until_status(&app, &acme, run, RunStatus::Failed).await;
        assert!(supervisor.shut_down(PATIENCE).await);
        // Nobody works: what is shown is what the retry left.
        retry(Some("fails")).await.unwrap();
        let steps = show(&app, &acme, run).await.steps;
        assert_eq!(steps.iter().map(|step| step.step.as_str()).collect::<Vec<_>>(), ["allowed"]);
    }

    async fn a_failed_run_begins_again_from_its_failed_step(app: TestApp) {
        let acme = app.tenant("acme").await;
        let steps = json!({ "first": { "type": "delay", "for_ms": 1, "next": "tell" }, "tell": call(None) });
        let workflow = save(&app, &acme, "first", steps).await;
        let supervisor = work(&app.app).await;
        let run = begin(&app, &acme, workflow, None).await;
        // The delay's end comes with the clock, which stands still.
        until_status(&app, &acme, run, RunStatus::Waiting).await;
        app.ambient.advance(Duration::from_millis(1));
        until_status(&app, &acme, run, RunStatus::Failed).await;
        // The plugin that was missing is installed now.
        app.install(&acme, acme_echo(), json!({})).await;
        let wrong = RetryRun { from_step: Some("nowhere".into()), new_generation: false };
        problems(app.app.retry_run(&acme.caller, acme.org, run, wrong).await, "unknown-step");
        let held = until_async(PATIENCE, async || {
            app.app.retry_run(&acme.caller, acme.org, run, RetryRun::default()).await.is_ok()
        });
        assert!(held.await);
        let detail = until_status(&app, &acme, run, RunStatus::Succeeded).await;
        assert_eq!(detail.steps.iter().find(|step| step.step == "tell").unwrap().status, StepStatus::Succeeded);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn a_revocation_in_mid_step_commits_no_result(app: TestApp) {
        let acme = app.tenant("acme").await;
        let patient = manifest("acme/patient", "1.0.0", |manifest| manifest["limits"] = json!({ "wall_ms": 60_000 }));
        let made = app.install(&acme, package(&waits(), &patient), json!({})).await;
        let steps = json!({ "wait": { "type": "action", "use": "acme/patient#it", "with": {}, "timeout_ms": 60_000, "retry": { "max_attempts": 1 } } });
        let workflow = save(&app, &acme, "wait", steps).await;
        let supervisor = work(&app.app).await;
        let run = begin(&app, &acme, workflow, None).await;
        assert!(until_async(PATIENCE, async || app.app.calls_in_flight() == 1).await);
        let (id, version) = (made.installation.id, made.installation.grant_version);
        let off = InstallationPatch { enabled: Some(false), ..InstallationPatch::default() };
        app.app.update_installation(&acme.caller, acme.org, id, version, off).await.unwrap();
        let detail = until_status(&app, &acme, run, RunStatus::Failed).await;
        assert_eq!(detail.steps[0].outcome.as_deref(), Some("revoked"), "{:?}", detail.steps[0]);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    /// A run that begins at once is called under what its start's transaction read: a change that comes after it, and be it before the
    /// call, ends the call.
    async fn a_change_after_the_start_ends_its_first_call(app: TestApp) {
        let acme = app.tenant("acme").await;
        let patient = manifest("acme/patient", "1.0.0", |manifest| manifest["limits"] = json!({ "wall_ms": 60_000 }));
        let made = app.install(&acme, package(&waits(), &patient), json!({})).await;
        let steps = json!({ "wait": { "type": "action", "use": "acme/patient#it", "with": {}, "timeout_ms": 60_000, "retry": { "max_attempts": 1 } } });
        let workflow = save(&app, &acme, "wait", steps).await;
        let supervisor = work(&app.app).await;
        // From here on the process knows the plugin.
        let before = begin(&app, &acme, workflow, None).await;
        assert!(until_async(PATIENCE, async || app.app.calls_in_flight() == 1).await);
        app.app.cancel_run(&acme.caller, acme.org, before).await.unwrap();
        no_job_is_left(&app, &acme).await;
        let run = begin(&app, &acme, workflow, None).await;
        let (id, version) = (made.installation.id, made.installation.grant_version);
        let off = InstallationPatch { enabled: Some(false), ..InstallationPatch::default() };
        app.app.update_installation(&acme.caller, acme.org, id, version, off).await.unwrap();
        let detail = until_status(&app, &acme, run, RunStatus::Failed).await;
        assert_eq!(detail.steps[0].outcome.as_deref(), Some("revoked"), "{:?}", detail.steps[0]);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn a_shutdown_hands_the_job_back_and_another_process_goes_on(app: TestApp) {
        let acme = app.tenant("acme").await;
        let patient = manifest("acme/patient", "1.0.0", |manifest| manifest["limits"] = json!({ "wall_ms": 60_000 }));
        app.install(&acme, package(&waits(), &patient), json!({})).await;
        let steps = json!({ "wait": { "type": "action", "use": "acme/patient#it", "with": {}, "timeout_ms": 60_000 } });
        let workflow = save(&app, &acme, "wait", steps).await;
        let supervisor = work(&app.app).await;
        let run = begin(&app, &acme, workflow, None).await;
        assert!(until_async(PATIENCE, async || app.app.calls_in_flight() == 1).await);
        app.app.stop_worker(&supervisor, Duration::from_millis(50)).await;
        assert_eq!(app.app.calls_in_flight(), 0);
        let jobs = app.app.list_jobs(&acme.caller, acme.org, None, PageRequest::default()).await.unwrap().items;
        assert_eq!(jobs.iter().map(|job| (job.state.as_str(), job.attempt)).collect::<Vec<_>>(), [("ready", 0)]);
        let other = app.again(Options::default());
        let supervisor = work(&other).await;
        assert!(until_async(PATIENCE, async || other.calls_in_flight() == 1).await);
        other.cancel_run(&acme.caller, acme.org, run).await.unwrap();
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn another_organization_sees_no_run(app: TestApp) {
        let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
        let workflow = save(&app, &acme, "end", json!({ "end": { "type": "stop" } })).await;
        let run = begin(&app, &acme, workflow, None).await;
        let app = Arc::new(app);
        assert!(matches!(app.app.show_run(&other.caller, other.org, run).await, Err(AppError::NotFound { .. })));
        assert!(matches!(app.app.show_run(&other.caller, acme.org, run).await, Err(AppError::NotFound { .. })));
        assert!(matches!(app.app.cancel_run(&other.caller, other.org, run).await, Err(AppError::NotFound { .. })));
        assert!(matches!(app.app.retry_run(&other.caller, other.org, run, RetryRun::default()).await, Err(AppError::NotFound { .. })));
        let start = app.app.start_run(&other.caller, other.org, workflow, StartByHand::default()).await;
        assert!(matches!(start, Err(AppError::NotFound { .. })));
        let listed = app.app.list_runs(&other.caller, other.org, None, None, PageRequest::default()).await.unwrap();
        assert!(listed.items.is_empty());
    }

    /// What another node does to one whose heartbeat is late; this one has to stop acting, and the work goes on.
    async fn a_worker_that_was_declared_dead_lets_go(app: TestApp) {
        let acme = app.tenant("acme").await;
        let patient = manifest("acme/patient", "1.0.0", |manifest| manifest["limits"] = json!({ "wall_ms": 60_000 }));
        app.install(&acme, package(&waits(), &patient), json!({})).await;
        let steps = json!({ "wait": { "type": "action", "use": "acme/patient#it", "with": {}, "timeout_ms": 60_000 } });
        let workflow = save(&app, &acme, "wait", steps).await;
        let (supervisor, worker) = work_as(&app.app).await;
        let run = begin(&app, &acme, workflow, None).await;
        assert!(until_async(PATIENCE, async || app.app.calls_in_flight() == 1).await);
        let jobs = SystemScope::new(SystemReason::Jobs);
        let ambient = app.ambient.clone();
        let other = WorkerId::new(&ambient);
        let taken = app
            .store
            .write_locked(&jobs, (worker, other, ambient), |tx, (worker, other, ambient)| {
                Box::pin(async move {
                    tx.insert_worker(*other, "other", ambient.now(), LEASE_TTL).await?;
                    tx.delete_worker(*worker).await?;
                    tx.recover_jobs(*other, ambient.now()).await
                })
            })
            .await
            .unwrap();
        assert_eq!(taken, 1, "the dead worker's job is ready again");
        // It notices, ends its call, registers anew and takes the work up again, under a new lease.
        let again = until_async(PATIENCE, async || {
            let jobs = app.app.list_jobs(&acme.caller, acme.org, None, PageRequest::default()).await.unwrap().items;
            jobs.iter().any(|job| job.state == "leased" && job.attempt == 2)
        });
        assert!(again.await, "the work was not taken up again");
        assert!(until_async(PATIENCE, async || app.app.calls_in_flight() == 1).await, "the old call goes on beside the new one");
        app.app.cancel_run(&acme.caller, acme.org, run).await.unwrap();
        until_status(&app, &acme, run, RunStatus::Cancelled).await;
        no_job_is_left(&app, &acme).await;
        assert!(supervisor.shut_down(PATIENCE).await);
    }
}
