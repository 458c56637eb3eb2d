//! A job whose own task panics: its slot and its lease come back at once, the run goes on, and one that kills its task each time ends with
//! the dead letters instead of being tried for ever. And on which threads such tasks run.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_app::data::DeadLetterFilter;
use bulkhead_app::queue::look_at_queue;
use bulkhead_app::run::StartByHand;
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::worker::{Slots, WorkerConfig};
use bulkhead_app::workflow::SaveWorkflow;
use bulkhead_model::id::{RunId, WorkflowId};
use bulkhead_model::run::RunStatus;
use bulkhead_store::page::PageRequest;
use bulkhead_test_support::wait::until_async;
use metrics::{Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use serde_json::{Map, Value, json};

use crate::guests::acme_echo;
use crate::support::{PATIENCE, Tenant, TestApp};

/// How many more calls' tasks panic.
static PANICS: AtomicU32 = AtomicU32::new(0);

/// On which threads calls were counted.
static THREADS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Counts nothing; panics where calls are counted, which a job's own task does before it saves what the call gave.
struct Trap;

impl CounterFn for Trap {
    fn increment(&self, _: u64) {
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        THREADS.lock().unwrap().push(thread);
        let take = |left: u32| left.checked_sub(1);
        assert!(PANICS.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_err(), "a test's panic");
    }

    fn absolute(&self, _: u64) {}
}

impl Recorder for Trap {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        if key.name() == "bulkhead_plugin_calls_total" { Counter::from_arc(Arc::new(Self)) } else { Counter::noop() }
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

async fn workflow(app: &TestApp, tenant: &Tenant) -> WorkflowId {
    app.install(tenant, acme_echo(), json!({})).await;
    let definition = json!({
        "schema": 1, "name": "calls", "triggers": [{ "id": "by-hand", "type": "api" }], "start": "call",
        "steps": { "call": { "type": "action", "use": "acme/echo#it", "with": {} } },
    });
    let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
    app.app.create_workflow(&tenant.caller, tenant.org, save).await.unwrap().workflow.id
}

async fn begin(app: &TestApp, tenant: &Tenant, workflow: WorkflowId) -> RunId {
    let start = StartByHand { input: Value::Null, variables: Map::new(), idempotency_key: None };
    app.app.start_run(&tenant.caller, tenant.org, workflow, start).await.unwrap()
}

/// Lets the clock go on until the run has this status.
async fn comes_to(app: &TestApp, tenant: &Tenant, run: RunId, status: RunStatus) {
    let now = async || app.app.show_run(&tenant.caller, tenant.org, run).await.unwrap().run.status;
    let reached = until_async(PATIENCE, async || {
        app.ambient.advance(Duration::from_secs(10));
        now().await == status
    });
    assert!(reached.await, "{run} is {:?}, not {status:?}", now().await);
}

async fn nothing_is_held(app: &TestApp) {
    let held = async || {
        let whole = look_at_queue(&app.store, &app.ambient).await.unwrap();
        whole.nodes.iter().flat_map(|(_, held)| held).map(|held| held.count).sum::<i64>()
    };
    assert!(until_async(PATIENCE, async || held().await == 0).await, "{} are held", held().await);
}

on_both! {
    async fn a_panicking_task_gives_back_what_it_holds(app: TestApp) {
        // Another test of the same process may have been first; it sets the same.
        metrics::set_global_recorder(Trap).ok();
        let supervisor = Supervisor::new();
        // One slot: were it leaked, nothing would go on.
        let config = WorkerConfig { name: "one".into(), slots: Slots { interactive: 1, ..Slots::default() }, heartbeat: None };
        let acme = app.tenant("acme").await;
        let workflow = workflow(&app, &acme).await;
        PANICS.store(2, Ordering::SeqCst);
        let run = begin(&app, &acme, workflow).await;
        app.app.start_worker(config, &supervisor).await.unwrap();
        comes_to(&app, &acme, run, RunStatus::Succeeded).await;
        assert_eq!(PANICS.load(Ordering::SeqCst), 0);
        nothing_is_held(&app).await;

        // What kills its task each time comes to an end.
        PANICS.store(u32::MAX, Ordering::SeqCst);
        let poisoned = begin(&app, &acme, workflow).await;
        comes_to(&app, &acme, poisoned, RunStatus::Failed).await;
        let page = PageRequest { before: None, limit: 10 };
        let letters = app.app.list_dead_letters(&acme.caller, acme.org, DeadLetterFilter::default(), page).await.unwrap();
        assert_eq!(letters.items.len(), 1, "{:?}", letters.items);
        nothing_is_held(&app).await;

        // And the slot serves the next.
        PANICS.store(0, Ordering::SeqCst);
        let next = begin(&app, &acme, workflow).await;
        comes_to(&app, &acme, next, RunStatus::Succeeded).await;
        supervisor.shut_down(PATIENCE).await;
    }

    /// What was taken by a claim does not stand before who asks now. PostgreSQL's connections belong to the executor that opened them.
    async fn what_waited_in_the_queue_has_threads_of_its_own(app: TestApp) {
        metrics::set_global_recorder(Trap).ok();
        let acme = app.tenant("acme").await;
        let workflow = workflow(&app, &acme).await;
        let ended = async |run: RunId| {
            let now = async || app.app.show_run(&acme.caller, acme.org, run).await.unwrap().run.status;
            assert!(until_async(PATIENCE, async || now().await == RunStatus::Succeeded).await, "{:?}", now().await);
        };
        // Nobody works yet.
        let waited = begin(&app, &acme, workflow).await;
        let supervisor = Supervisor::new();
        let config = WorkerConfig { name: "one".into(), slots: Slots::default(), heartbeat: None };
        app.app.start_worker(config, &supervisor).await.unwrap();
        ended(waited).await;
        // Nothing waits any more.
        let begun = begin(&app, &acme, workflow).await;
        ended(begun).await;
        assert!(supervisor.shut_down(PATIENCE).await);
        let threads = THREADS.lock().unwrap().clone();
        let of_the_queue: Vec<bool> = threads.iter().map(|name| name == "queue").collect();
        assert_eq!(of_the_queue, [!app.store.is_postgres(), false], "{threads:?}");
    }
}
