//! What has ended is removed by real workers when its time is over, or when the quota asks for room; nothing else is.

use std::time::Duration;

use bulkhead_app::data::History;
use bulkhead_app::run::{RetryRun, StartByHand};
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::worker::{Slots, WorkerConfig};
use bulkhead_app::workflow::SaveWorkflow;
use bulkhead_app::{App, AppError};
use bulkhead_model::id::{RunId, WorkflowId};
use bulkhead_model::permission::{Permission, SystemReason, SystemScope};
use bulkhead_model::quota::Quota;
use bulkhead_model::retention::{EVICTION_AGE_MIN, RUN_FULL, RUN_HISTORY_BYTES_MAX, RetentionPolicy};
use bulkhead_model::run::RunStatus;
use bulkhead_store::page::PageRequest;
use bulkhead_store::prune::{EndedPlace, EndedRow, Removal};
use bulkhead_test_support::wait::until_async;
use serde_json::{Map, Value, json};

use crate::guests::acme_echo;
use crate::support::{Options, PATIENCE, Tenant, TestApp, conflict, problems};

const DAY: Duration = Duration::from_hours(24);
const A_LITTLE: Duration = Duration::from_mins(4);

async fn work(app: &App) -> Supervisor {
    let supervisor = Supervisor::new();
    let config = WorkerConfig { name: "test".into(), slots: Slots::default(), heartbeat: None };
    app.start_worker(config, &supervisor).await.unwrap();
    supervisor
}

/// A workflow whose runs succeed, fail, or wait for a hundred days, as their input asks.
async fn workflow(app: &TestApp, tenant: &Tenant) -> WorkflowId {
    let definition = json!({
        "schema": 1, "name": "it", "triggers": [{ "id": "api", "type": "api" }], "start": "which",
        "steps": {
            "which": { "type": "switch", "cases": [
                { "if": { "field": "trigger.body.how", "op": "eq", "value": "fail" }, "then": "fail" },
                { "if": { "field": "trigger.body.how", "op": "eq", "value": "wait" }, "then": "wait" } ], "else": "end" },
            "fail": { "type": "stop", "status": "failed" },
            "wait": { "type": "delay", "for": "100d", "next": "end" },
            "end": { "type": "stop" },
        },
    });
    let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
    app.app.create_workflow(&tenant.caller, tenant.org, save).await.unwrap().workflow.id
}

async fn try_start(
    app: &TestApp,
    tenant: &Tenant,
    id: WorkflowId,
    input: Value,
    key: Option<&str>,
) -> Result<RunId, AppError> {
    let start = StartByHand { input, variables: Map::new(), idempotency_key: key.map(str::to_owned) };
    app.app.start_run(&tenant.caller, tenant.org, id, start).await
}

async fn run_until(app: &TestApp, tenant: &Tenant, id: WorkflowId, how: &str, status: RunStatus) -> RunId {
    let run = try_start(app, tenant, id, json!({ "how": how }), None).await.unwrap();
    until_status(app, tenant, run, status).await;
    run
}

async fn until_status(app: &TestApp, tenant: &Tenant, run: RunId, status: RunStatus) {
    let reached = async || app.app.show_run(&tenant.caller, tenant.org, run).await.unwrap().run.status == status;
    assert!(until_async(PATIENCE, reached).await, "{status:?}");
}

async fn is_there(app: &TestApp, tenant: &Tenant, run: RunId) -> bool {
    match app.app.show_run(&tenant.caller, tenant.org, run).await {
        Ok(_) => true,
        Err(AppError::NotFound { .. }) => false,
        Err(error) => panic!("{error:?}"),
    }
}

/// Replaces the policy, upon which the job looks, and waits until it has looked.
async fn look(app: &TestApp, tenant: &Tenant, policy: &RetentionPolicy) -> History {
    let seen = app.app.show_retention(&tenant.caller, tenant.org).await.unwrap();
    // A policy that says the same would change nothing, and nobody would look.
    let other = RetentionPolicy { events_days: policy.events_days + 1, ..policy.clone() };
    let wanted = if seen.policy == *policy { &other } else { policy };
    app.app.replace_retention(&tenant.caller, tenant.org, seen.revision, wanted.clone()).await.unwrap();
    looked(app, tenant).await
}

/// Waits until nobody looks: whoever began before the clock is moved would say that it looked afterwards, and saw what was there before.
async fn nobody_looks(app: &TestApp, tenant: &Tenant) {
    let done = until_async(PATIENCE, async || {
        let jobs = app.app.list_jobs(&tenant.caller, tenant.org, None, PageRequest::default()).await.unwrap().items;
        jobs.iter().all(|job| job.kind != "prune_history" || job.state == "future")
    });
    assert!(done.await);
}

/// Waits until the job has looked at this moment, and answers what it found.
async fn looked(app: &TestApp, tenant: &Tenant) -> History {
    let now = app.ambient.now();
    let history = async || app.app.show_retention(&tenant.caller, tenant.org).await.unwrap().history;
    let done = until_async(PATIENCE, async || {
        let waits = app.app.list_jobs(&tenant.caller, tenant.org, Some("future".into()), PageRequest::default()).await;
        let waits = waits.unwrap().items.iter().any(|job| job.kind == "prune_history");
        waits && history().await.is_some_and(|history| history.looked_at >= now)
    });
    assert!(done.await, "{:?}", history().await);
    history().await.unwrap()
}

on_both! {
    async fn what_has_ended_goes_when_its_time_is_over(app: TestApp) {
        let acme = app.tenant("acme").await;
        let other = app.tenant("other").await;
        let (id, foreign) = (workflow(&app, &acme).await, workflow(&app, &other).await);
        let supervisor = work(&app.app).await;
        let succeeded = run_until(&app, &acme, id, "end", RunStatus::Succeeded).await;
        let failed = run_until(&app, &acme, id, "fail", RunStatus::Failed).await;
        let waiting = run_until(&app, &acme, id, "wait", RunStatus::Waiting).await;
        let cancelled = run_until(&app, &acme, id, "wait", RunStatus::Waiting).await;
        app.app.cancel_run(&acme.caller, acme.org, cancelled).await.unwrap();
        let foreign = run_until(&app, &other, foreign, "end", RunStatus::Succeeded).await;

        app.ambient.advance(2 * DAY);
        let policy = RetentionPolicy { succeeded_days: 2, failed_days: 3, ..RetentionPolicy::default() };
        let history = look(&app, &acme, &policy).await;
        assert_eq!((history.runs, history.pass), (3, None), "nothing is older than its time");
        assert!(history.bytes > 2_000, "{}", history.bytes);

        app.ambient.advance(Duration::from_secs(1));
        let preview = app.app.preview_retention(&acme.caller, acme.org, policy.clone()).await.unwrap();
        assert_eq!((preview.succeeded, preview.cancelled, preview.failed), (1, 1, 0));
        let before = history.bytes;
        let history = look(&app, &acme, &policy).await;
        let pass = history.pass.clone().unwrap();
        assert_eq!((pass.runs, pass.calls, pass.evicted, pass.bytes), (2, 0, 0, preview.bytes));
        assert_eq!((history.runs, history.bytes), (1, before - preview.bytes));
        for (run, expected) in [(succeeded, false), (cancelled, false), (failed, true), (waiting, true)] {
            assert_eq!(is_there(&app, &acme, run).await, expected, "{run}");
        }

        app.ambient.advance(DAY);
        let history = look(&app, &acme, &policy).await;
        assert_eq!((history.runs, history.bytes), (0, 0));
        assert!(!is_there(&app, &acme, failed).await);
        assert!(is_there(&app, &other, foreign).await, "another organization's is for its own policy to say");
        // The wait outlives it all, and the run goes on where it was.
        app.ambient.advance(97 * DAY);
        assert!(is_there(&app, &acme, waiting).await);
        until_status(&app, &acme, waiting, RunStatus::Succeeded).await;
        let audited = app.audit(&acme, "retention.changed").await;
        assert_eq!(audited.len(), 3);
        assert_eq!(audited[2].detail["before"]["succeeded_days"], 30);
        assert_eq!(audited[2].detail["after"]["succeeded_days"], 2);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn calls_by_hand_and_events_go_too(app: TestApp) {
        let acme = app.tenant("acme").await;
        let installation = app.install(&acme, acme_echo(), json!({})).await.installation.id;
        let id = workflow(&app, &acme).await;
        let supervisor = work(&app.app).await;
        run_until(&app, &acme, id, "end", RunStatus::Succeeded).await;
        let call = app.app.call_once(&acme.caller, acme.org, installation, "it".into(), json!("x")).await.unwrap();
        app.ambient.advance(Duration::from_hours(1));
        let policy = RetentionPolicy { calls_days: 1, events_days: 1, ..RetentionPolicy::default() };
        let history = look(&app, &acme, &policy).await;
        assert_eq!((history.runs, history.pass), (2, None), "a run and a call");
        app.ambient.advance(DAY);
        let preview = app.app.preview_retention(&acme.caller, acme.org, policy.clone()).await.unwrap();
        assert_eq!((preview.calls, preview.events, preview.succeeded), (1, 1, 0));
        let pass = look(&app, &acme, &policy).await.pass.unwrap();
        assert_eq!((pass.runs, pass.calls), (0, 1));
        let found = app.app.get_call(&acme.caller, acme.org, call.id).await;
        assert!(matches!(found, Err(AppError::NotFound { .. })), "{found:?}");
        // The second look's policy keeps events for a day longer.
        app.ambient.advance(2 * DAY);
        look(&app, &acme, &policy).await;
        let page = PageRequest::default();
        let events = app.app.list_events(&acme.caller, acme.org, Some("run.succeeded".into()), page).await.unwrap();
        assert!(events.items.is_empty());
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn the_oldest_history_makes_room_under_the_quota(app: TestApp) {
        let acme = app.tenant("acme").await;
        let id = workflow(&app, &acme).await;
        let supervisor = work(&app.app).await;
        app.app.set_quota(acme.org, Quota::HistoryBytes, 1024 * 1024).await.unwrap();
        let big = "x".repeat(400 * 1024);
        let mut runs = Vec::new();
        for n in 0..4 {
            let key = format!("delivery-{n}");
            let run = try_start(&app, &acme, id, json!({ "how": "end", "big": big }), (n == 0).then_some(key.as_str())).await;
            runs.push(run.unwrap());
            until_status(&app, &acme, runs[n], RunStatus::Succeeded).await;
            app.ambient.advance(Duration::from_secs(1));
        }
        nobody_looks(&app, &acme).await;
        app.ambient.advance(A_LITTLE);
        let history = look(&app, &acme, &RetentionPolicy::default()).await;
        assert!(history.bytes > 1024 * 1024 && history.full_since.is_some(), "all of it is too young: {history:?}");
        // What was accepted is kept; what comes is refused while nothing can go, with the quota's name.
        let error = try_start(&app, &acme, id, json!({}), None).await.unwrap_err();
        assert!(matches!(&error, AppError::Quota(over) if over.quota == Quota::HistoryBytes), "{error:?}");

        let retry = RetryRun { from_step: Some("which".into()), new_generation: false };
        let error = app.app.retry_run(&acme.caller, acme.org, runs[0], retry).await.unwrap_err();
        assert!(matches!(&error, AppError::Quota(over) if over.quota == Quota::HistoryBytes), "{error:?}");
        let again = try_start(&app, &acme, id, json!({}), Some("delivery-0")).await;
        assert_eq!(again.unwrap(), runs[0], "what was accepted before is still answered");

        app.ambient.advance(EVICTION_AGE_MIN);
        look(&app, &acme, &RetentionPolicy::default()).await;
        // The first one's key is put aside before its run goes.
        app.ambient.advance(A_LITTLE);
        let history = look(&app, &acme, &RetentionPolicy::default()).await;
        assert_eq!(history.full_since, None);
        assert!(history.bytes <= 1024 * 1024, "{history:?}");
        let mut there = Vec::new();
        for run in &runs {
            there.push(is_there(&app, &acme, *run).await);
        }
        assert_eq!(there, [false, false, true, true], "oldest first, and no more than must be");
        let again = try_start(&app, &acme, id, json!({ "how": "end" }), Some("delivery-0")).await;
        assert_eq!(again.unwrap(), runs[0], "the key of a run that made room is still remembered");
        let page = PageRequest::default();
        let trimmed = app.app.list_events(&acme.caller, acme.org, Some("history.trimmed".into()), page).await.unwrap();
        assert!(!trimmed.items.is_empty());
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    /// A batch takes ten runs at first, which leaves the history below its quota already: the cut goes on all the same.
    async fn a_cut_ends_well_below_the_quota(app: TestApp) {
        let acme = app.tenant("acme").await;
        let id = workflow(&app, &acme).await;
        let supervisor = work(&app.app).await;
        look(&app, &acme, &RetentionPolicy::default()).await;
        let big = "x".repeat(24 * 1024);
        let mut runs = Vec::new();
        for _ in 0..60 {
            runs.push(try_start(&app, &acme, id, json!({ "how": "end", "big": big }), None).await.unwrap());
        }
        for run in &runs {
            until_status(&app, &acme, *run, RunStatus::Succeeded).await;
        }
        app.ambient.advance(2 * EVICTION_AGE_MIN);
        let before = look(&app, &acme, &RetentionPolicy::default()).await;
        assert_eq!((before.runs, before.pass), (60, None));
        let quota = before.bytes / 60 * 51;
        app.app.set_quota(acme.org, Quota::HistoryBytes, quota.unsigned_abs()).await.unwrap();
        app.ambient.advance(Duration::from_secs(1));
        let after = look(&app, &acme, &RetentionPolicy::default()).await;
        assert!(after.bytes <= quota / 100 * 95 && after.runs == 48, "{after:?}");
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    /// Whoever removed its first part died, or found enough room: what is left of it goes, long before its time.
    async fn a_half_removed_run_goes_whole(app: TestApp) {
        let acme = app.tenant("acme").await;
        let id = workflow(&app, &acme).await;
        let supervisor = work(&app.app).await;
        let (half, other) = (
            run_until(&app, &acme, id, "end", RunStatus::Succeeded).await,
            run_until(&app, &acme, id, "end", RunStatus::Succeeded).await,
        );
        let scope = SystemScope::new(SystemReason::Worker).for_org(acme.org);
        let parted = app.store.write_locked(&scope, (half, app.ambient.clone()), |tx, (half, ambient)| {
            Box::pin(async move {
                let run = tx.require_run(*half).await?;
                let place = EndedPlace { at: run.finished_at.unwrap(), run: run.id };
                // As if it took up more than goes in one transaction.
                let bytes = 5 << 20;
                let row = EndedRow { place, workflow: run.workflow, dedupe_key: None, created_at: run.created_at, bytes };
                tx.remove_run(&row, ambient.now()).await
            })
        });
        assert!(matches!(parted.await.unwrap(), Removal::Part { .. }));
        assert!(is_there(&app, &acme, half).await);
        app.ambient.advance(A_LITTLE);
        let history = look(&app, &acme, &RetentionPolicy::default()).await;
        assert!(!is_there(&app, &acme, half).await && is_there(&app, &acme, other).await);
        assert_eq!(history.runs, 1, "{history:?}");
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn a_run_that_is_begun_again_counts_once(app: TestApp) {
        let acme = app.tenant("acme").await;
        let id = workflow(&app, &acme).await;
        let supervisor = work(&app.app).await;
        app.app.set_quota(acme.org, Quota::HistoryBytes, 1024 * 1024).await.unwrap();
        let run = try_start(&app, &acme, id, json!({ "how": "fail", "big": "x".repeat(700 * 1024) }), None).await.unwrap();
        until_status(&app, &acme, run, RunStatus::Failed).await;
        nobody_looks(&app, &acme).await;
        app.ambient.advance(A_LITTLE);
        let before = look(&app, &acme, &RetentionPolicy::default()).await;
        assert_eq!(before.runs, 1);
        let retry = RetryRun { from_step: Some("which".into()), new_generation: false };
        app.app.retry_run(&acme.caller, acme.org, run, retry).await.unwrap();
        until_status(&app, &acme, run, RunStatus::Failed).await;
        nobody_looks(&app, &acme).await;
        app.ambient.advance(2 * EVICTION_AGE_MIN);
        let after = look(&app, &acme, &RetentionPolicy::default()).await;
        assert_eq!((after.runs, after.full_since, after.pass), (1, None, None), "nothing goes for what counted twice");
        assert!(after.bytes < 1024 * 1024 && is_there(&app, &acme, run).await, "{}", after.bytes);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn what_sleeps_takes_room_too(app: TestApp) {
        let acme = app.tenant("acme").await;
        let id = workflow(&app, &acme).await;
        let supervisor = work(&app.app).await;
        for _ in 0..3 {
            let input = json!({ "how": "wait", "big": "x".repeat(400 * 1024) });
            let run = try_start(&app, &acme, id, input, None).await.unwrap();
            until_status(&app, &acme, run, RunStatus::Waiting).await;
        }
        app.app.set_quota(acme.org, Quota::HistoryBytes, 1024 * 1024).await.unwrap();
        let error = try_start(&app, &acme, id, json!({}), None).await.unwrap_err();
        assert!(matches!(&error, AppError::Quota(over) if over.hint.contains("sleep")), "{error:?}");
        app.app.set_quota(acme.org, Quota::HistoryBytes, 2 * 1024 * 1024).await.unwrap();
        try_start(&app, &acme, id, json!({}), None).await.unwrap();
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    /// A run that sleeps, given so many bytes as if its calls had taken them up, and woken.
    async fn a_run_makes_no_call_beyond_its_bytes_and_much_that_ends_is_looked_at(app: TestApp) {
        let acme = app.tenant("acme").await;
        app.install(&acme, acme_echo(), json!({})).await;
        let definition = json!({
            "schema": 1, "name": "it", "triggers": [{ "id": "api", "type": "api" }], "start": "wait",
            "steps": {
                "wait": { "type": "delay", "for": "1m", "next": "say" },
                "say": { "type": "action", "use": "acme/echo#it", "with": {} },
            },
        });
        let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
        let id = app.app.create_workflow(&acme.caller, acme.org, save).await.unwrap().workflow.id;
        let supervisor = work(&app.app).await;
        look(&app, &acme, &RetentionPolicy::default()).await;
        let run = try_start(&app, &acme, id, json!({}), None).await.unwrap();
        until_status(&app, &acme, run, RunStatus::Waiting).await;
        let scope = SystemScope::new(SystemReason::Worker).for_org(acme.org);
        let filled = app.store.write_locked(&scope, run, |tx, run| {
            Box::pin(async move {
                let mut run = tx.lock_run(*run).await?;
                assert!(run.kept.held_bytes > 640, "its trigger and its log: {:?}", run.kept);
                run.kept.held_bytes = RUN_HISTORY_BYTES_MAX;
                tx.update_run(&run).await
            })
        });
        filled.await.unwrap();
        app.ambient.advance(Duration::from_secs(61));
        until_status(&app, &acme, run, RunStatus::Failed).await;
        let ended = app.app.show_run(&acme.caller, acme.org, run).await.unwrap().run;
        assert!(ended.error.as_ref().is_some_and(|error| error.contains(RUN_FULL)), "{ended:?}");
        let refused = app.app.retry_run(&acme.caller, acme.org, run, RetryRun::default()).await;
        assert_eq!(conflict(refused), RUN_FULL);
        // Its end was much: the job does not sleep on for half an hour.
        let soon = app.ambient.now().plus(A_LITTLE);
        let looks = until_async(PATIENCE, async || {
            let jobs = app.app.list_jobs(&acme.caller, acme.org, Some("future".into()), PageRequest::default()).await;
            jobs.unwrap().items.iter().any(|job| job.kind == "prune_history" && job.run_at <= soon)
        });
        assert!(looks.await);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    /// Wherever a pass breaks off, and whichever of two workers goes on with it: each run is removed once, and counted once.
    async fn a_pass_that_fails_anywhere_goes_on(app: TestApp) {
        let acme = app.tenant("acme").await;
        let id = workflow(&app, &acme).await;
        let supervisor = work(&app.app).await;
        let second = work(&app.again(Options::default())).await;
        let mut runs = Vec::new();
        for _ in 0..30 {
            runs.push(try_start(&app, &acme, id, json!({ "how": "end" }), None).await.unwrap());
        }
        for run in &runs {
            until_status(&app, &acme, *run, RunStatus::Succeeded).await;
        }
        app.ambient.advance(40 * DAY);
        // Fails some statement of the pass again and again until it comes through.
        let hook = app.store.fault_hook().clone();
        let seen = app.app.show_retention(&acme.caller, acme.org).await.unwrap();
        app.app.replace_retention(&acme.caller, acme.org, seen.revision, RetentionPolicy::default()).await.unwrap();
        let mut n = 5;
        let done = until_async(PATIENCE, async || {
            if hook.is_spent() && n < 400 {
                hook.arm(n);
                n += 37;
            }
            // The pause after a failure.
            app.ambient.advance(Duration::from_secs(31));
            let history = app.app.show_retention(&acme.caller, acme.org).await.ok().and_then(|shown| shown.history);
            history.and_then(|history| history.pass).is_some_and(|pass| pass.ended_at.is_some() && pass.runs == 30)
        });
        let reached = done.await;
        hook.arm(0);
        let history = app.app.show_retention(&acme.caller, acme.org).await.unwrap().history;
        assert!(reached, "{history:?}");
        let history = history.unwrap();
        assert_eq!((history.runs, history.bytes), (0, 0));
        for run in &runs {
            assert!(!is_there(&app, &acme, *run).await);
        }
        assert!(supervisor.shut_down(PATIENCE).await && second.shut_down(PATIENCE).await);
    }

    async fn a_policy_is_changed_by_whoever_may_and_saw_it(app: TestApp) {
        let acme = app.tenant("acme").await;
        let shown = app.app.show_retention(&acme.caller, acme.org).await.unwrap();
        assert_eq!((shown.policy, shown.revision, shown.history), (RetentionPolicy::default(), 0, None));
        let policy = RetentionPolicy { failed_days: 7, ..RetentionPolicy::default() };
        let reader = acme.only(&[Permission::OrgRead, Permission::RunsControl]);
        let refused = app.app.replace_retention(&reader, acme.org, 0, policy.clone()).await;
        assert!(matches!(refused, Err(AppError::Forbidden(Permission::RetentionWrite))), "{refused:?}");
        let changed = app.app.replace_retention(&acme.caller, acme.org, 0, policy.clone()).await.unwrap();
        assert_eq!((changed.revision, &changed.policy), (1, &policy));
        for stale in [0, 2] {
            let refused = app.app.replace_retention(&acme.caller, acme.org, stale, policy.clone()).await;
            assert!(matches!(refused, Err(AppError::StaleVersion)), "{refused:?}");
        }
        let wrong = RetentionPolicy { succeeded_days: 0, dead_letter_days: Some(4_000), ..policy };
        let out = |field: &str| (field.to_owned(), "out-of-range".to_owned());
        let expected = vec![out("/succeeded_days"), out("/dead_letter_days")];
        let refused = app.app.replace_retention(&acme.caller, acme.org, 1, wrong.clone()).await;
        assert_eq!(problems(refused, "invalid-retention"), expected);
        assert_eq!(problems(app.app.preview_retention(&acme.caller, acme.org, wrong).await, "invalid-retention"), expected);
        assert_eq!(app.audit(&acme, "retention.changed").await.len(), 1);
    }
}
