//! A workflow whose runs fail at once, again and again: it is held back, tried now and then, and goes on when it is well again.

use std::time::Duration;

use bulkhead_app::installation::InstallationPatch;
use bulkhead_app::run::StartByHand;
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::worker::{Slots, WorkerConfig};
use bulkhead_app::workflow::SaveWorkflow;
use bulkhead_app::{App, AppError, StartLimits};
use bulkhead_model::breaker::{FAILURES_MAX, PROBE_FIRST, PROBE_LAST, Stand};
use bulkhead_model::id::{RunId, WorkflowId};
use bulkhead_model::permission::Permission;
use bulkhead_model::run::RunStatus;
use bulkhead_store::breaker::BreakerState;
use bulkhead_store::page::PageRequest;
use bulkhead_test_support::wait::until_async;
use serde_json::json;

use crate::guests::acme_echo;
use crate::support::{Options, PATIENCE, Tenant, TestApp};

const STORM: usize = FAILURES_MAX as usize;

/// One slot: runs follow each other.
async fn work(app: &App) -> Supervisor {
    let supervisor = Supervisor::new();
    let slots = Slots { system: 1, interactive: 1, bulk: 1 };
    app.start_worker(WorkerConfig { name: "test".into(), slots, heartbeat: None }, &supervisor).await.unwrap();
    supervisor
}

/// A workflow that calls a plugin; until that is installed, each of its runs fails.
async fn poisoned(app: &App, tenant: &Tenant, name: &str) -> WorkflowId {
    let definition = json!({
        "schema": 1, "name": name, "triggers": [{ "id": "by-hand", "type": "api" }], "start": "call",
        "steps": { "call": { "type": "action", "use": "acme/echo#it", "with": {} } },
    });
    let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
    app.create_workflow(&tenant.caller, tenant.org, save).await.unwrap().workflow.id
}

async fn harmless(app: &App, tenant: &Tenant) -> WorkflowId {
    let definition = json!({
        "schema": 1, "name": "harmless", "triggers": [{ "id": "by-hand", "type": "api" }], "start": "end",
        "steps": { "end": { "type": "stop" } },
    });
    let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
    app.create_workflow(&tenant.caller, tenant.org, save).await.unwrap().workflow.id
}

async fn begin(app: &App, tenant: &Tenant, workflow: WorkflowId, runs: usize) -> Vec<RunId> {
    let mut begun = Vec::new();
    for _ in 0..runs {
        begun.push(app.start_run(&tenant.caller, tenant.org, workflow, StartByHand::default()).await.unwrap());
    }
    begun
}

/// How many of the workflow's runs stand so.
async fn count(app: &App, tenant: &Tenant, workflow: WorkflowId, status: RunStatus) -> usize {
    let page = PageRequest { limit: 200, ..PageRequest::default() };
    let runs = app.list_runs(&tenant.caller, tenant.org, Some(status), Some(workflow), page).await.unwrap();
    runs.items.len()
}

async fn paused(app: &App, tenant: &Tenant) -> usize {
    let page = PageRequest { limit: 200, ..PageRequest::default() };
    app.list_jobs(&tenant.caller, tenant.org, Some("paused".into()), page).await.unwrap().items.len()
}

async fn breakers(app: &App, tenant: &Tenant, workflow: WorkflowId) -> Vec<BreakerState> {
    app.show_workflow(&tenant.caller, tenant.org, workflow, None).await.unwrap().breakers
}

async fn reach(app: &App, tenant: &Tenant, workflow: WorkflowId, failed: usize, waiting: usize) {
    let reached = until_async(PATIENCE, async || {
        count(app, tenant, workflow, RunStatus::Failed).await == failed && paused(app, tenant).await == waiting
    });
    let reached = reached.await;
    let found = (count(app, tenant, workflow, RunStatus::Failed).await, paused(app, tenant).await);
    assert!(
        reached,
        "{found:?} failed and paused instead of {:?}: {:?}",
        (failed, waiting),
        breakers(app, tenant, workflow).await
    );
}

on_both! {
    async fn a_poisoned_workflow_is_held_back_tried_and_goes_on(app: TestApp) {
        let acme = app.tenant("acme").await;
        let workflow = poisoned(&app.app, &acme, "poisoned").await;
        let first = app.app.clone();
        begin(&first, &acme, workflow, 3 * STORM).await;
        let supervisor = work(&first).await;
        // A storm costs so many runs; the rest waits, with all that it was started with.
        reach(&first, &acme, workflow, STORM, 2 * STORM).await;
        let open = breakers(&first, &acme, workflow).await.remove(0);
        assert_eq!((open.version, open.breaker.failures), (1, FAILURES_MAX));
        let probe_at = app.ambient.now().plus(PROBE_FIRST);
        assert_eq!(open.breaker.stand, Stand::Open { opened_at: app.ambient.now(), probe_at });
        assert!(open.error.as_ref().is_some_and(|error| error.contains("unknown-installation") && error.contains("message")), "{open:?}");
        // What an error says may be a customer's: who may not read runs sees its kind alone, and the log keeps nothing of it.
        let reader = acme.only(&[Permission::WorkflowsRead]);
        let shown = first.show_workflow(&reader, acme.org, workflow, None).await.unwrap().breakers.remove(0).error;
        assert!(shown.as_ref().is_some_and(|error| error.contains("unknown-installation") && !error.contains("message")), "{shown:?}");
        let opened = format!("{:?}", app.audit(&acme, "workflow.breaker_opened").await);
        assert!(opened.contains("fingerprint") && !opened.contains("message"), "{opened}");
        assert_eq!(app.audit(&acme, "workflow.breaker_opened").await.len(), 1);
        let events = first.list_events(&acme.caller, acme.org, Some("workflow.breaker_opened".into()), PageRequest::default());
        assert_eq!(events.await.unwrap().items[0].subject, workflow.to_string());

        // Others are not held back, and who comes later waits from the start.
        let other = harmless(&first, &acme).await;
        begin(&first, &acme, other, 1).await;
        assert!(until_async(PATIENCE, async || count(&first, &acme, other, RunStatus::Succeeded).await == 1).await);
        let later = begin(&first, &acme, workflow, 1).await.remove(0);
        reach(&first, &acme, workflow, STORM, 2 * STORM + 1).await;
        first.cancel_run(&acme.caller, acme.org, later).await.unwrap();
        reach(&first, &acme, workflow, STORM, 2 * STORM).await;

        // One is let go when it is time, and fails.
        app.ambient.advance(PROBE_FIRST);
        reach(&first, &acme, workflow, STORM + 1, 2 * STORM - 1).await;
        let open = breakers(&first, &acme, workflow).await.remove(0);
        assert_eq!(open.breaker.probes, 1);
        assert_eq!(open.breaker.stand, Stand::Open { opened_at: app.ambient.now().minus(PROBE_FIRST), probe_at: app.ambient.now().plus(2 * PROBE_FIRST) });

        // A restart changes nothing; then the cause is gone.
        assert!(supervisor.shut_down(PATIENCE).await);
        let second = app.again(Options::default());
        let supervisor = work(&second).await;
        begin(&second, &acme, workflow, 1).await;
        reach(&second, &acme, workflow, STORM + 1, 2 * STORM).await;
        app.install(&acme, acme_echo(), json!({})).await;
        app.ambient.advance(2 * PROBE_FIRST);
        let done = until_async(PATIENCE, async || count(&second, &acme, workflow, RunStatus::Succeeded).await == 2 * STORM);
        assert!(done.await, "{:?}", breakers(&second, &acme, workflow).await);
        reach(&second, &acme, workflow, STORM + 1, 0).await;
        assert!(breakers(&second, &acme, workflow).await.is_empty());
        assert_eq!(app.audit(&acme, "workflow.breaker_closed").await.len(), 1);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn a_breaker_is_closed_by_hand(app: TestApp) {
        let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
        let workflow = poisoned(&app.app, &acme, "poisoned").await;
        begin(&app.app, &acme, workflow, STORM + 5).await;
        let supervisor = work(&app.app).await;
        reach(&app.app, &acme, workflow, STORM, 5).await;
        let reader = acme.only(&[Permission::WorkflowsRead, Permission::RunsControl]);
        let refused = app.app.close_breaker(&reader, acme.org, workflow).await;
        assert!(matches!(refused, Err(AppError::Forbidden(Permission::WorkflowsActivate))), "{refused:?}");
        let foreign = app.app.close_breaker(&other.caller, other.org, workflow).await;
        assert!(matches!(foreign, Err(AppError::NotFound { .. })), "{foreign:?}");
        assert_eq!(breakers(&app.app, &acme, workflow).await.len(), 1);
        for _ in 0..2 {
            app.app.close_breaker(&acme.caller, acme.org, workflow).await.unwrap();
        }
        // They go on, and fail; five are no storm.
        reach(&app.app, &acme, workflow, STORM + 5, 0).await;
        assert!(breakers(&app.app, &acme, workflow).await.is_empty());
        let closed = app.audit(&acme, "workflow.breaker_closed").await;
        assert_eq!(closed.len(), 1);
        assert_eq!(closed[0].actor, acme.caller.actor().to_string());
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    /// The run that was to tell whether it goes better is cancelled: the next one is let go in its place.
    async fn a_probe_that_is_cancelled_is_followed_by_another(app: TestApp) {
        let acme = app.tenant("acme").await;
        let workflow = poisoned(&app.app, &acme, "poisoned").await;
        begin(&app.app, &acme, workflow, STORM + 2).await;
        let supervisor = work(&app.app).await;
        reach(&app.app, &acme, workflow, STORM, 2).await;
        assert!(supervisor.shut_down(PATIENCE).await);
        // A worker that looks after breakers and has no slot for runs.
        let second = app.again(Options::default());
        let supervisor = Supervisor::new();
        let slots = Slots { system: 1, interactive: 0, bulk: 0 };
        second.start_worker(WorkerConfig { name: "test".into(), slots, heartbeat: None }, &supervisor).await.unwrap();
        app.ambient.advance(PROBE_FIRST);
        let probe = async || breakers(&second, &acme, workflow).await.first().and_then(|state| state.breaker.probe());
        assert!(until_async(PATIENCE, async || probe().await.is_some()).await);
        let cancelled = probe().await.unwrap();
        second.cancel_run(&acme.caller, acme.org, cancelled).await.unwrap();
        assert!(until_async(PATIENCE, async || probe().await.is_some_and(|run| run != cancelled)).await);
        assert_eq!(paused(&second, &acme).await, 0);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    /// It comes to the end that the definition meant for it: it does go better.
    async fn a_probe_that_stops_as_failed_closes_it(app: TestApp) {
        let acme = app.tenant("acme").await;
        let definition = json!({
            "schema": 1, "name": "stops", "triggers": [{ "id": "by-hand", "type": "api" }], "start": "call",
            "steps": {
                "call": { "type": "action", "use": "acme/echo#it", "with": {}, "next": "end" },
                "end": { "type": "stop", "status": "failed" },
            },
        });
        let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
        let workflow = app.app.create_workflow(&acme.caller, acme.org, save).await.unwrap().workflow.id;
        begin(&app.app, &acme, workflow, STORM + 5).await;
        let supervisor = work(&app.app).await;
        reach(&app.app, &acme, workflow, STORM, 5).await;
        app.install(&acme, acme_echo(), json!({})).await;
        app.ambient.advance(PROBE_FIRST);
        reach(&app.app, &acme, workflow, STORM + 5, 0).await;
        assert!(until_async(PATIENCE, async || breakers(&app.app, &acme, workflow).await.is_empty()).await);
        let closed = app.audit(&acme, "workflow.breaker_closed").await;
        assert_eq!(closed.len(), 1);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn one_that_nobody_asks_of_is_removed(app: TestApp) {
        let acme = app.tenant("acme").await;
        let workflow = poisoned(&app.app, &acme, "poisoned").await;
        begin(&app.app, &acme, workflow, STORM).await;
        let supervisor = work(&app.app).await;
        reach(&app.app, &acme, workflow, STORM, 0).await;
        assert_eq!(breakers(&app.app, &acme, workflow).await.len(), 1);
        app.ambient.advance(PROBE_FIRST + PROBE_LAST);
        assert!(until_async(PATIENCE, async || breakers(&app.app, &acme, workflow).await.is_empty()).await);
        assert_eq!(app.audit(&acme, "workflow.breaker_closed").await.len(), 1);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    /// A tick is no reason to carry on what fails: its run waits with the others, and goes on with them.
    async fn a_schedules_run_waits_as_well(app: TestApp) {
        let acme = app.tenant("acme").await;
        let definition = json!({
            "schema": 1, "name": "hourly", "start": "call",
            "triggers": [{ "id": "by-hand", "type": "api" }, { "id": "tick", "type": "schedule", "cron": "0 * * * *" }],
            "steps": { "call": { "type": "action", "use": "acme/echo#it", "with": {} } },
        });
        // Saved while the plugin is there, which an active workflow needs.
        let installed = app.install(&acme, acme_echo(), json!({})).await.installation;
        let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
        let workflow = app.app.create_workflow(&acme.caller, acme.org, save).await.unwrap().workflow.id;
        app.app.set_workflow_active(&acme.caller, acme.org, workflow, true).await.unwrap();
        let switch = async |enabled: bool| {
            let shown = app.app.get_installation(&acme.caller, acme.org, installed.id).await.unwrap().installation;
            let patch = InstallationPatch { enabled: Some(enabled), ..InstallationPatch::default() };
            app.app.update_installation(&acme.caller, acme.org, installed.id, shown.grant_version, patch).await.unwrap();
        };
        switch(false).await;
        begin(&app.app, &acme, workflow, STORM + 1).await;
        let supervisor = work(&app.app).await;
        reach(&app.app, &acme, workflow, STORM, 1).await;
        // The one that waits is tried when the tick comes, and fails; the tick's run waits then.
        app.ambient.advance(Duration::from_mins(65));
        let fired = async || {
            let schedules = app.app.list_schedules(&acme.caller, acme.org, workflow).await.unwrap();
            schedules[0].fired
        };
        assert!(until_async(PATIENCE, async || fired().await == 1).await);
        reach(&app.app, &acme, workflow, STORM + 1, 1).await;
        switch(true).await;
        app.ambient.advance(2 * PROBE_FIRST);
        reach(&app.app, &acme, workflow, STORM + 1, 0).await;
        assert!(until_async(PATIENCE, async || count(&app.app, &acme, workflow, RunStatus::Succeeded).await == 1).await);
        assert_eq!(fired().await, 1, "the tick was fired once");
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    /// What waits for a breaker takes no room from others, and has a bound of its own.
    async fn runs_that_wait_for_a_breaker_are_bounded_apart(app: TestApp) {
        let acme = app.tenant("acme").await;
        let workflow = poisoned(&app.app, &acme, "poisoned").await;
        begin(&app.app, &acme, workflow, STORM).await;
        let supervisor = work(&app.app).await;
        reach(&app.app, &acme, workflow, STORM, 0).await;
        assert!(supervisor.shut_down(PATIENCE).await);
        // It knows the breaker, and lets nothing go.
        let limited = app.app.clone().with_start_limits(StartLimits { waiting_max: 8, ..StartLimits::default() });
        let start = async |key: &str| {
            let start = StartByHand { idempotency_key: Some(key.to_owned()), ..StartByHand::default() };
            limited.start_run(&acme.caller, acme.org, workflow, start).await
        };
        let first = start("first").await.unwrap();
        start("second").await.unwrap();
        for _ in 0..3 {
            match start("third").await {
                Err(AppError::TooMany { code, message, .. }) => {
                    assert_eq!(code, "too-many-held");
                    assert!(message.contains("2 of them wait for its breaker"), "{message}");
                }
                other => panic!("expected a refusal, got {other:?}"),
            }
            assert_eq!(start("first").await.unwrap(), first, "a repetition is answered");
        }
        assert_eq!(paused(&limited, &acme).await, 2);
        let other = harmless(&limited, &acme).await;
        begin(&limited, &acme, other, 8).await;
    }
}

/// Whichever node counts the failures, and whichever lets one go to see: there is one breaker, and one run at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_keep_one_breaker() {
    let Some(test) = TestApp::postgres().await else { return };
    let acme = test.tenant("acme").await;
    let workflow = poisoned(&test.app, &acme, "poisoned").await;
    let nodes = [test.node(&test.ambient).await, test.node(&test.ambient).await];
    begin(&test.app, &acme, workflow, 3 * STORM).await;
    let workers = [work(&nodes[0]).await, work(&nodes[1]).await];
    let stand = async || (count(&test.app, &acme, workflow, RunStatus::Failed).await, paused(&test.app, &acme).await);
    let settled = async || {
        let (failed, waiting) = stand().await;
        failed + waiting == 3 * STORM
    };
    assert!(until_async(PATIENCE, settled).await, "{:?}", stand().await);
    let (failed, waiting) = stand().await;
    // What was under way on the other node when the breaker opened comes on top; by its failure that node knows as well. (A look at all
    // breakers that began before may make it forget once more.)
    assert!((STORM..=STORM + 4).contains(&failed), "{failed} failed");
    assert_eq!(test.audit(&acme, "workflow.breaker_opened").await.len(), 1);
    for round in 1..=2_u32 {
        test.ambient.advance(PROBE_FIRST * 2_u32.pow(round - 1));
        let probed = failed + round as usize;
        let reached = until_async(PATIENCE, async || {
            let open = breakers(&test.app, &acme, workflow).await;
            open.first().is_some_and(|open| open.breaker.probes == round) && stand().await.0 == probed
        });
        assert!(reached.await, "{:?}: {:?}", stand().await, breakers(&test.app, &acme, workflow).await);
        assert_eq!(stand().await, (probed, waiting - round as usize), "one at a time");
    }
    assert_eq!(test.audit(&acme, "workflow.breaker_opened").await.len(), 1, "it opened once");
    test.install(&acme, acme_echo(), json!({})).await;
    test.ambient.advance(PROBE_FIRST * 4);
    let done =
        until_async(PATIENCE, async || count(&test.app, &acme, workflow, RunStatus::Succeeded).await == waiting - 2);
    assert!(done.await, "{:?}", breakers(&test.app, &acme, workflow).await);
    assert_eq!(test.audit(&acme, "workflow.breaker_closed").await.len(), 1);
    for worker in workers {
        assert!(worker.shut_down(PATIENCE).await);
    }
}
