//! Starts that there is no room for: refused at once and without a trace; what was let in is carried out.

use std::sync::Mutex;
use std::time::Duration;

use bulkhead_app::run::{RetryRun, StartByHand};
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::worker::{Slots, WorkerConfig};
use bulkhead_app::workflow::SaveWorkflow;
use bulkhead_app::{App, AppError, StartLimits};
use bulkhead_model::id::{OrgId, RunId, WorkflowId};
use bulkhead_model::permission::{SystemReason, SystemScope};
use bulkhead_model::run::RunStatus;
use bulkhead_store::StoreError;
use bulkhead_store::job::Job;
use bulkhead_store::page::PageRequest;
use bulkhead_test_support::wait::until_async;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::guests::{manifest, package, waits};
use crate::support::{PATIENCE, Tenant, TestApp};

async fn work(app: &App) -> Supervisor {
    let supervisor = Supervisor::new();
    let config = WorkerConfig { name: "test".into(), slots: Slots::default(), heartbeat: None };
    app.start_worker(config, &supervisor).await.unwrap();
    supervisor
}

async fn save(app: &App, tenant: &Tenant, name: &str, trigger: Value) -> WorkflowId {
    let definition = json!({
        "schema": 1, "name": name, "triggers": [trigger], "start": "end", "steps": { "end": { "type": "stop" } },
    });
    let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
    app.create_workflow(&tenant.caller, tenant.org, save).await.unwrap().workflow.id
}

async fn by_hand(app: &App, tenant: &Tenant) -> WorkflowId {
    save(app, tenant, "by hand", json!({ "id": "by-hand", "type": "api" })).await
}

async fn begin_with(app: &App, tenant: &Tenant, workflow: WorkflowId, key: &str) -> Result<RunId, AppError> {
    let start = StartByHand { idempotency_key: Some(key.to_owned()), ..StartByHand::default() };
    app.start_run(&tenant.caller, tenant.org, workflow, start).await
}

async fn begin(app: &App, tenant: &Tenant, workflow: WorkflowId) -> Result<RunId, AppError> {
    app.start_run(&tenant.caller, tenant.org, workflow, StartByHand::default()).await
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, AppError>) -> (&'static str, u64) {
    match result {
        Err(AppError::TooMany { code, message, retry_after_ms }) => {
            assert!(!message.is_empty());
            (code, retry_after_ms)
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

async fn jobs(app: &App, tenant: &Tenant) -> Vec<Job> {
    let page = PageRequest { limit: 200, ..PageRequest::default() };
    app.list_jobs(&tenant.caller, tenant.org, None, page).await.unwrap().items
}

async fn statuses(app: &App, tenant: &Tenant) -> Vec<RunStatus> {
    let page = PageRequest { limit: 200, ..PageRequest::default() };
    let runs = app.list_runs(&tenant.caller, tenant.org, None, None, page).await.unwrap().items;
    runs.into_iter().map(|run| run.status).collect()
}

on_both! {
    async fn a_full_queue_refuses_starts_until_it_has_room(app: TestApp) {
        let limited = app.app.clone().with_start_limits(StartLimits { waiting_max: 5, ..StartLimits::default() });
        let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
        let workflow = by_hand(&limited, &acme).await;
        let first = begin(&limited, &acme, workflow).await.unwrap();
        limited.cancel_run(&acme.caller, acme.org, first).await.unwrap();
        for _ in 0..5 {
            begin(&limited, &acme, workflow).await.unwrap();
        }
        assert_eq!(refused(begin(&limited, &acme, workflow).await), ("too-many-waiting", 5_000));
        let retried = limited.retry_run(&acme.caller, acme.org, first, RetryRun { from_step: Some("end".into()), new_generation: false });
        assert_eq!(refused(retried.await).0, "too-many-waiting");
        let elsewhere = by_hand(&limited, &other).await;
        begin(&limited, &other, elsewhere).await.unwrap();
        assert_eq!(jobs(&limited, &acme).await.len(), 5);

        let supervisor = work(&limited).await;
        let taken = until_async(PATIENCE, async || begin(&limited, &acme, workflow).await.is_ok());
        assert!(taken.await, "there is room again");
        assert!(until_async(PATIENCE, async || jobs(&limited, &acme).await.is_empty()).await);
        let ended = statuses(&limited, &acme).await;
        let count = |status| ended.iter().filter(|found| **found == status).count();
        let counted = (ended.len(), count(RunStatus::Succeeded), count(RunStatus::Cancelled));
        assert_eq!(counted, (7, 6, 1), "what was refused left no trace");
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    /// However many come at once and from wherever: the bound is the organization's, and each accepted start is a run.
    async fn a_crowd_does_not_pass_the_bound(app: TestApp) {
        let limits = StartLimits { waiting_max: 10, ..StartLimits::default() };
        let limited = app.app.clone().with_start_limits(limits);
        let acme = app.tenant("acme").await;
        let workflow = by_hand(&limited, &acme).await;
        let starts = (0..60).map(|_| begin(&limited, &acme, workflow));
        let came = futures_util::future::join_all(starts).await;
        let accepted = came.iter().filter(|came| came.is_ok()).count();
        for came in came {
            if came.is_err() {
                refused(came);
            }
        }
        assert!((1..=10).contains(&accepted), "{accepted}");
        assert_eq!(jobs(&limited, &acme).await.len(), accepted);
        // A count may have taken starts that were just committed for two; those that come again find the rest of the room.
        let filled = until_async(PATIENCE, async || begin(&limited, &acme, workflow).await.is_err() && jobs(&limited, &acme).await.len() == 10);
        assert!(filled.await, "{}", jobs(&limited, &acme).await.len());
    }

    async fn an_organization_starts_so_many_runs_in_a_minute(app: TestApp) {
        let limited = app.app.clone().with_start_limits(StartLimits { per_minute_max: 12, ..StartLimits::default() });
        let acme = app.tenant("acme").await;
        let workflow = by_hand(&limited, &acme).await;
        begin(&limited, &acme, workflow).await.unwrap();
        begin(&limited, &acme, workflow).await.unwrap();
        let (code, retry_after_ms) = refused(begin(&limited, &acme, workflow).await);
        assert_eq!(code, "runs-per-minute");
        assert!((1..=5_001).contains(&retry_after_ms), "{retry_after_ms}");
        assert_eq!(jobs(&limited, &acme).await.len(), 2);
    }

    /// Ticks are few by definition, and one that was put off could be lost: they ask for no room.
    async fn a_schedules_tick_asks_for_no_room(app: TestApp) {
        let limited = app.app.clone().with_start_limits(StartLimits { waiting_max: 1, per_minute_max: 1, ..StartLimits::default() });
        let acme = app.tenant("acme").await;
        let ticks = save(&limited, &acme, "ticks", json!({ "id": "tick", "type": "schedule", "cron": "0 * * * *" })).await;
        limited.set_workflow_active(&acme.caller, acme.org, ticks, true).await.unwrap();
        let workflow = by_hand(&limited, &acme).await;
        begin(&limited, &acme, workflow).await.unwrap();
        refused(begin(&limited, &acme, workflow).await);
        app.ambient.advance(Duration::from_hours(1));
        // Only what is due of schedules is worked on: the run waits.
        let slots = Slots { system: 1, interactive: 0, bulk: 0 };
        let supervisor = Supervisor::new();
        let config = WorkerConfig { name: "test".into(), slots, heartbeat: None };
        limited.start_worker(config, &supervisor).await.unwrap();
        let fired = until_async(PATIENCE, async || statuses(&limited, &acme).await == [RunStatus::Queued, RunStatus::Queued]);
        assert!(fired.await, "{:?}", statuses(&limited, &acme).await);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    /// What was accepted is answered for, whatever room there is now.
    async fn a_repeated_start_is_no_new_one(app: TestApp) {
        let acme = app.tenant("acme").await;
        let workflow = by_hand(&app.app, &acme).await;
        let first = begin_with(&app.app, &acme, workflow, "first").await.unwrap();
        for limits in [
            StartLimits { waiting_max: 1, ..StartLimits::default() },
            StartLimits { per_minute_max: 1, ..StartLimits::default() },
        ] {
            let limited = app.app.clone().with_start_limits(limits);
            begin(&limited, &acme, workflow).await.ok();
            for _ in 0..20 {
                refused(begin(&limited, &acme, workflow).await);
                refused(begin_with(&limited, &acme, workflow, "second").await);
                assert_eq!(begin_with(&limited, &acme, workflow, "first").await.unwrap(), first);
            }
        }
    }
}

/// SQLite's writer, kept busy until it is opened.
struct BusyWriter {
    open: oneshot::Sender<()>,
    write: tokio::task::JoinHandle<Result<(), StoreError>>,
}

impl BusyWriter {
    async fn new(app: &TestApp, org: OrgId) -> Self {
        let (entered, inside) = oneshot::channel();
        let (open, opened) = oneshot::channel::<()>();
        let hands = Mutex::new(Some((entered, opened)));
        let (store, scope) = (app.store.clone(), SystemScope::new(SystemReason::Worker).for_org(org));
        let blocks = async move {
            let write = store.write(&scope, hands, |_, hands| {
                Box::pin(async move {
                    let hands = hands.lock().unwrap().take();
                    if let Some((entered, opened)) = hands {
                        entered.send(()).unwrap();
                        opened.await.ok();
                    }
                    Ok::<_, StoreError>(())
                })
            });
            write.await
        };
        #[expect(clippy::disallowed_methods, reason = "a test waits for its tasks itself")]
        let write = tokio::spawn(blocks);
        inside.await.unwrap();
        Self { open, write }
    }

    async fn open(self) {
        self.open.send(()).unwrap();
        self.write.await.unwrap().unwrap();
    }
}

/// Asks, waits until the write stands in line, and hangs up.
async fn hang_up(app: &TestApp, start: impl Future<Output = Result<RunId, AppError>>) {
    tokio::pin!(start);
    let queued = until_async(PATIENCE, async || app.store.writer_stats().unwrap().waiting >= 1);
    tokio::select! {
        came = &mut start => panic!("the writer is blocked: {came:?}"),
        queued = queued => assert!(queued),
    }
}

/// On SQLite a write that waits is carried out whether its caller listens or not: until then it holds what it was let in for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_hangs_up_gives_nothing_back_before_its_write_is_over() {
    let app = TestApp::sqlite().await;
    let acme = app.tenant("acme").await;
    let limited = app.app.clone().with_start_limits(StartLimits { at_once_max: 1, ..StartLimits::default() });
    let workflow = by_hand(&limited, &acme).await;
    let writer = BusyWriter::new(&app, acme.org).await;
    hang_up(&app, Box::pin(begin(&limited, &acme, workflow))).await;
    for _ in 0..3 {
        assert_eq!(refused(begin(&limited, &acme, workflow).await).0, "too-many-starts");
    }
    assert_eq!(app.store.writer_stats().unwrap().waiting, 1);
    writer.open().await;
    assert!(until_async(PATIENCE, async || begin(&limited, &acme, workflow).await.is_ok()).await);
    assert_eq!(jobs(&limited, &acme).await.len(), 1, "what had not begun when its sender went is not done");
}

/// Where the process takes the run up itself, the start goes on without its sender, and nobody need find out that a job lies there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_sender_hangs_up_is_carried_out_under_its_first_lease() {
    let app = TestApp::sqlite().await;
    let acme = app.tenant("acme").await;
    let patient = manifest("acme/patient", "1.0.0", |manifest| manifest["limits"] = json!({ "wall_ms": 60_000 }));
    app.install(&acme, package(&waits(), &patient), json!({})).await;
    let definition = json!({
        "schema": 1, "name": "it", "triggers": [{ "id": "by-hand", "type": "api" }], "start": "wait",
        "steps": { "wait": { "type": "action", "use": "acme/patient#it", "with": {}, "timeout_ms": 60_000 } },
    });
    let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
    let workflow = app.app.create_workflow(&acme.caller, acme.org, save).await.unwrap().workflow.id;
    let supervisor = Supervisor::new();
    let config = WorkerConfig { name: "test".into(), slots: Slots::default(), heartbeat: None };
    let worker = app.app.start_worker(config, &supervisor).await.unwrap();
    // What stands in line may be the worker's own: then the sender went too early, and another one comes.
    for _ in 0..10 {
        let writer = BusyWriter::new(&app, acme.org).await;
        hang_up(&app, Box::pin(begin(&app.app, &acme, workflow))).await;
        writer.open().await;
        if until_async(Duration::from_secs(1), async || app.app.calls_in_flight() == 1).await {
            break;
        }
    }
    assert_eq!(app.app.calls_in_flight(), 1, "nobody carries it out");
    let jobs = SystemScope::new(SystemReason::Jobs);
    let held =
        app.store.read(&jobs, worker, |tx, id| Box::pin(async move { tx.list_held_jobs(*id).await })).await.unwrap();
    assert_eq!(held.iter().map(|lease| lease.fence).collect::<Vec<_>>(), [1], "it was handed back and claimed again");
    app.app.stop_worker(&supervisor, Duration::from_millis(50)).await;
}
