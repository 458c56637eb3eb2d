//! Two nodes on one PostgreSQL database, each with connections of its own: they tell each other, find out without being told, and
//! keep the database's time.

use std::time::Duration;

use bulkhead_app::App;
use bulkhead_app::installation::InstallationPatch;
use bulkhead_app::node::Notifications;
use bulkhead_app::queue::look_at_queue;
use bulkhead_app::run::StartByHand;
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::worker::{Slots, WorkerConfig};
use bulkhead_app::workflow::SaveWorkflow;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{RunId, WorkflowId};
use bulkhead_model::job::Lane;
use bulkhead_model::run::RunStatus;
use bulkhead_store::StoreConfig;
use bulkhead_store::page::PageRequest;
use bulkhead_store::seal::{RootKey, RootKeys};
use bulkhead_test_support::tcp_proxy::TcpProxy;
use bulkhead_test_support::wait::until_async;
use serde_json::{Map, Value, json};

use crate::guests::{acme_echo, manifest, package, waits};
use crate::support::{Options, PATIENCE, Tenant, TestApp};

/// A node with a worker.
struct Node {
    app: App,
    supervisor: Supervisor,
}

const ON: Notifications = Notifications::On { url: None };

impl Node {
    /// `heartbeat`: on a thread of its own, over these connections.
    async fn start(app: App, notifications: Notifications, heartbeat: Option<StoreConfig>) -> Self {
        let supervisor = Supervisor::new();
        app.start_node(notifications).await.unwrap();
        let config = WorkerConfig { name: "test".into(), slots: Slots::default(), heartbeat };
        app.start_worker(config, &supervisor).await.unwrap();
        Self { app, supervisor }
    }

    async fn stop(self) {
        self.app.stop_worker(&self.supervisor, Duration::from_millis(50)).await;
    }
}

async fn save(app: &App, tenant: &Tenant, steps: Value) -> WorkflowId {
    let definition = json!({
        "schema": 1, "name": "it", "triggers": [{ "id": "by-hand", "type": "api" }], "start": "it", "steps": steps,
    });
    let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
    app.create_workflow(&tenant.caller, tenant.org, save).await.unwrap().workflow.id
}

async fn begin(app: &App, tenant: &Tenant, workflow: WorkflowId) -> RunId {
    let start = StartByHand { input: json!({ "n": 7 }), variables: Map::new(), idempotency_key: None };
    app.start_run(&tenant.caller, tenant.org, workflow, start).await.unwrap()
}

async fn reaches(app: &App, tenant: &Tenant, run: RunId, status: RunStatus) {
    let mut last = None;
    let reached = until_async(PATIENCE, async || {
        last = Some(app.show_run(&tenant.caller, tenant.org, run).await.unwrap());
        last.as_ref().is_some_and(|detail| detail.run.status == status)
    });
    assert!(reached.await, "{last:?}");
}

/// A workflow whose only step waits until it is ended, and the installation that it uses.
async fn patient(test: &TestApp, tenant: &Tenant) -> (WorkflowId, bulkhead_app::installation::InstallationDetail) {
    let patient = manifest("acme/patient", "1.0.0", |manifest| manifest["limits"] = json!({ "wall_ms": 60_000 }));
    let made = test.install(tenant, package(&waits(), &patient), json!({})).await;
    let steps = json!({ "it": { "type": "action", "use": "acme/patient#it", "with": {}, "timeout_ms": 60_000,
        "retry": { "max_attempts": 1 } } });
    (save(&test.app, tenant, steps).await, made)
}

/// A node works, another one, which does not, changes: whatever way they hear of each other.
async fn changes_elsewhere_end_calls(notifications: impl Fn(&TestApp) -> Notifications) {
    let Some(test) = TestApp::postgres().await else { return };
    let acme = test.tenant("acme").await;
    let (workflow, made) = patient(&test, &acme).await;
    let working = Node::start(test.node(&test.ambient).await, notifications(&test), None).await;
    let other = test.node(&test.ambient).await;
    other.start_node(notifications(&test)).await.unwrap();

    let run = begin(&other, &acme, workflow).await;
    assert!(until_async(PATIENCE, async || working.app.calls_in_flight() == 1).await, "it was not taken up");
    let (id, version) = (made.installation.id, made.installation.grant_version);
    let off = InstallationPatch { enabled: Some(false), ..InstallationPatch::default() };
    let now_off = other.update_installation(&acme.caller, acme.org, id, version, off).await.unwrap();
    reaches(&other, &acme, run, RunStatus::Failed).await;
    let detail = other.show_run(&acme.caller, acme.org, run).await.unwrap();
    assert_eq!(detail.steps[0].outcome.as_deref(), Some("revoked"), "{:?}", detail.steps[0]);
    assert_eq!(working.app.calls_in_flight(), 0);

    let on = InstallationPatch { enabled: Some(true), ..InstallationPatch::default() };
    other.update_installation(&acme.caller, acme.org, id, now_off.installation.grant_version, on).await.unwrap();
    let run = begin(&other, &acme, workflow).await;
    assert!(until_async(PATIENCE, async || working.app.calls_in_flight() == 1).await, "it was not taken up");
    other.cancel_run(&acme.caller, acme.org, run).await.unwrap();
    assert!(until_async(PATIENCE, async || working.app.calls_in_flight() == 0).await, "its call goes on");
    reaches(&other, &acme, run, RunStatus::Cancelled).await;
    working.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_on_another_node_ends_calls_here() {
    Box::pin(changes_elsewhere_end_calls(|_| ON)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_does_so_when_every_notification_is_lost() {
    Box::pin(changes_elsewhere_end_calls(|_| Notifications::Off)).await;
}

/// Words are by database, so one who listens at another database hears nothing, as behind a pooler in transaction mode.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_does_so_where_listening_hears_nothing() {
    Box::pin(changes_elsewhere_end_calls(|test| Notifications::On { url: Some(test.deaf_url()) })).await;
}

/// The listening line is cut while a change is made: what was missed is looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_was_cut_is_made_again_and_nothing_is_missed() {
    let Some(test) = TestApp::postgres().await else { return };
    let acme = test.tenant("acme").await;
    let (workflow, made) = patient(&test, &acme).await;
    let proxy = TcpProxy::start(test.postgres_address());
    let url = Some(test.url_through(proxy.address()));
    let working = Node::start(test.node(&test.ambient).await, Notifications::On { url }, None).await;
    let other = test.node(&test.ambient).await;
    other.start_node(ON).await.unwrap();
    assert!(until_async(PATIENCE, async || proxy.lines() == 1).await, "it does not listen");
    begin(&other, &acme, workflow).await;
    assert!(until_async(PATIENCE, async || working.app.calls_in_flight() == 1).await);
    proxy.refuse(true);
    proxy.cut();
    let (id, version) = (made.installation.id, made.installation.grant_version);
    let off = InstallationPatch { enabled: Some(false), ..InstallationPatch::default() };
    other.update_installation(&acme.caller, acme.org, id, version, off).await.unwrap();
    proxy.refuse(false);
    assert!(until_async(PATIENCE, async || working.app.calls_in_flight() == 0).await, "its call goes on");
    assert!(until_async(PATIENCE, async || proxy.lines() == 1).await, "it does not listen again");
    working.stop().await;
}

/// A clean end hands over: the row is gone, the job ready for the other, without waiting for a lease to end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_hands_over() {
    let Some(test) = TestApp::postgres().await else { return };
    let acme = test.tenant("acme").await;
    let (workflow, _) = patient(&test, &acme).await;
    let first = Node::start(test.node(&test.ambient).await, ON, Some(test.store_config(None))).await;
    let run = begin(&test.app, &acme, workflow).await;
    assert!(until_async(PATIENCE, async || first.app.calls_in_flight() == 1).await);
    let second = Node::start(test.node(&test.ambient).await, ON, Some(test.store_config(None))).await;
    assert_eq!(second.app.list_nodes().await.unwrap().len(), 2);
    first.stop().await;
    let nodes = second.app.list_nodes().await.unwrap();
    assert_eq!(nodes.len(), 1, "the row of a node that stopped is gone with it: {nodes:?}");
    assert!(until_async(PATIENCE, async || second.app.calls_in_flight() == 1).await, "nobody took it up");
    let jobs = test.app.list_jobs(&acme.caller, acme.org, None, PageRequest::default()).await.unwrap().items;
    assert_eq!(jobs.iter().map(|job| job.attempt).collect::<Vec<_>>(), [1], "handing over counts no attempt");
    test.app.cancel_run(&acme.caller, acme.org, run).await.unwrap();
    assert!(until_async(PATIENCE, async || second.app.calls_in_flight() == 0).await);
    second.stop().await;
}

/// The heartbeat's line goes silent, nothing else: the node ends its calls by itself, and the other one takes them up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_heartbeat_stalls_fences_itself_and_comes_back() {
    let Some(test) = TestApp::postgres().await else { return };
    let acme = test.tenant("acme").await;
    let (workflow, _) = patient(&test, &acme).await;
    let proxy = TcpProxy::start(test.postgres_address());
    let stalling =
        Node::start(test.node(&test.ambient).await, ON, Some(test.store_config(Some(proxy.address())))).await;
    let run = begin(&test.app, &acme, workflow).await;
    assert!(until_async(PATIENCE, async || stalling.app.calls_in_flight() == 1).await);
    let other = Node::start(test.node(&test.ambient).await, ON, Some(test.store_config(None))).await;
    proxy.stall(true);
    assert!(until_async(PATIENCE, async || stalling.app.calls_in_flight() == 0).await, "it goes on acting");
    assert!(until_async(PATIENCE, async || other.app.calls_in_flight() == 1).await, "nobody took it up");
    assert_eq!(stalling.app.calls_in_flight(), 0);
    test.app.cancel_run(&acme.caller, acme.org, run).await.unwrap();
    reaches(&test.app, &acme, run, RunStatus::Cancelled).await;
    other.stop().await;
    // The line is back: so is the node, and it does work again.
    proxy.stall(false);
    let run = begin(&test.app, &acme, workflow).await;
    assert!(until_async(PATIENCE, async || stalling.app.calls_in_flight() == 1).await, "it does not come back");
    test.app.cancel_run(&acme.caller, acme.org, run).await.unwrap();
    stalling.stop().await;
}

/// A start whose commit is answered only after the node was declared dead: its job is another's by then, and the answer that it holds the
/// job must not make it act.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_hears_of_its_lease_after_a_fence_does_not_act() {
    let Some(test) = TestApp::postgres().await else { return };
    let acme = test.tenant("acme").await;
    let (workflow, _) = patient(&test, &acme).await;
    let (work, heartbeat) = (TcpProxy::start(test.postgres_address()), TcpProxy::start(test.postgres_address()));
    let late = test.node_through(&test.ambient, work.address()).await;
    let late = Node::start(late, ON, Some(test.store_config(Some(heartbeat.address())))).await;
    work.catch(b"with begun as", b"COMMIT");
    let start = begin(&late.app, &acme, workflow);
    let watch = async {
        assert!(until_async(PATIENCE, async || work.has_caught()).await, "no start was committed");
        heartbeat.stall(true);
        let other = Node::start(test.node(&test.ambient).await, ON, Some(test.store_config(None))).await;
        assert!(until_async(PATIENCE, async || other.app.calls_in_flight() == 1).await, "nobody took it up");
        heartbeat.stall(false);
        let is_back = async || other.app.list_nodes().await.unwrap().iter().filter(|node| node.alive).count() == 2;
        assert!(until_async(PATIENCE, is_back).await, "it does not come back");
        work.let_go();
        other
    };
    let (run, other) = tokio::join!(start, watch);
    assert!(!until_async(Duration::from_millis(500), async || late.app.calls_in_flight() > 0).await, "two act at once");
    assert_eq!(other.app.calls_in_flight(), 1);
    test.app.cancel_run(&acme.caller, acme.org, run).await.unwrap();
    reaches(&test.app, &acme, run, RunStatus::Cancelled).await;
    late.stop().await;
    other.stop().await;
}

/// A machine whose clock is an hour off, either way, works beside one whose clock is right: a wait of an hour is an hour for
/// both, and neither begins the other's an hour early.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_an_hour_off_moves_nothing() {
    const HOUR_MICROS: i64 = 3_600_000_000;
    let Some(test) = TestApp::postgres().await else { return };
    let acme = test.tenant("acme").await;
    test.install(&acme, acme_echo(), json!({})).await;
    let echo = json!({ "type": "action", "use": "acme/echo#it", "with": {} });
    let long =
        save(&test.app, &acme, json!({ "it": { "type": "delay", "for": "30m", "next": "tell" }, "tell": echo })).await;
    let right = Ambient::system();
    for ahead in [HOUR_MICROS, -HOUR_MICROS] {
        let wrong =
            Node::start(test.node(&Ambient::system_ahead_by(ahead)).await, ON, Some(test.store_config(None))).await;
        let off = wrong.app.ambient().now().as_micros() - right.now().as_micros();
        assert!(off.abs() < 60_000_000, "it goes by the database's clock: {off}");
        let run = begin(&wrong.app, &acme, long).await;
        reaches(&wrong.app, &acme, run, RunStatus::Waiting).await;
        let until = wrong.app.show_run(&acme.caller, acme.org, run).await.unwrap().run.waiting_until.unwrap();
        let wait = until.as_micros() - right.now().as_micros();
        assert!((HOUR_MICROS / 4..=HOUR_MICROS / 2 + 60_000_000).contains(&wait), "half an hour for everybody: {wait}");
        let seen = until_async(PATIENCE, async || {
            let nodes = wrong.app.list_nodes().await.unwrap();
            nodes.iter().any(|node| (node.clock_ahead_micros - ahead).abs() < 60_000_000)
        });
        assert!(seen.await, "the others can see whose clock is off");
        // Another look at the queue by the node whose clock is off: the job is still to come.
        let jobs = test.app.list_jobs(&acme.caller, acme.org, None, PageRequest::default()).await.unwrap().items;
        assert!(jobs.iter().all(|job| job.state == "future"), "{jobs:?}");
        wrong.stop().await;
        test.app.cancel_run(&acme.caller, acme.org, run).await.unwrap();
    }
}

#[tokio::test]
async fn on_sqlite_a_node_is_alone() {
    let test = TestApp::sqlite().await;
    test.app.start_node(ON).await.unwrap();
    assert!(test.app.list_nodes().await.unwrap().is_empty());
    let node = Node::start(test.again(Options::default()), ON, None).await;
    assert_eq!(node.app.list_nodes().await.unwrap().len(), 1);
    node.stop().await;
}

/// The operator's machine is ten minutes ahead: what is told goes by the clock that the nodes share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_reckons_by_the_nodes_clock() {
    let Some(test) = TestApp::postgres().await else { return };
    let node = test.node(&Ambient::system()).await;
    let tenant = test.tenant("acme").await;
    // Nobody works: it is ready from now on.
    let workflow = save(&node, &tenant, json!({ "it": { "type": "stop" } })).await;
    begin(&node, &tenant, workflow).await;
    let ahead = Ambient::system_ahead_by(600_000_000);
    let queue = look_at_queue(&test.store, &ahead).await.unwrap();
    let lane = queue.lanes.iter().find(|lane| lane.lane == Lane::Interactive).unwrap();
    assert!(lane.oldest_ready_at.is_some() && lane.lag < Duration::from_mins(5), "{lane:?}");
    assert!(queue.waiting.iter().all(|waiting| waiting.lag < Duration::from_mins(5)), "{:?}", queue.waiting);
}

/// A rotation of the root key that one node was not told of: what is under the new key opens elsewhere, and there the work is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lacks_a_root_key_that_another_one_wraps_with_takes_no_work() {
    let Some(test) = TestApp::postgres().await else { return };
    let acme = test.tenant("acme").await;
    let workflow = save(&test.app, &acme, json!({ "it": { "type": "stop" } })).await;
    let lacking = Node::start(test.node(&test.ambient).await, ON, None).await;
    reaches(&test.app, &acme, begin(&test.app, &acme, workflow).await, RunStatus::Succeeded).await;
    assert!(lacking.app.check_database().await.is_ok());
    let told = RootKeys::single(RootKey::new([7; 32])).with_next(RootKey::new([8; 32])).unwrap();
    // One that waits wraps nothing yet: nobody needs it.
    let waiting = Node::start(test.node_with_roots(told.clone()).await, ON, None).await;
    let knows = async || test.app.list_nodes().await.unwrap().iter().any(|node| node.roots.len() == 2);
    assert!(until_async(PATIENCE, knows).await);
    reaches(&test.app, &acme, begin(&test.app, &acme, workflow).await, RunStatus::Succeeded).await;
    assert!(lacking.app.check_database().await.is_ok());
    waiting.stop().await;

    // It wraps, and is a node that takes no work: nobody is left who does.
    let supervisor = Supervisor::new();
    let wraps = test.node_with_roots(told.with_next_in_use().unwrap()).await;
    wraps.start_node(ON).await.unwrap();
    let slots = Slots { system: 0, interactive: 0, bulk: 0 };
    wraps.start_worker(WorkerConfig { name: "new".into(), slots, heartbeat: None }, &supervisor).await.unwrap();
    assert!(
        until_async(PATIENCE, async || lacking.app.check_database().await.is_err()).await,
        "it says that it is not ready"
    );
    let run = begin(&lacking.app, &acme, workflow).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let shown = lacking.app.show_run(&acme.caller, acme.org, run).await.unwrap();
        assert_eq!(shown.run.status, RunStatus::Queued, "it was taken up");
    }
    // With the other one gone it goes on.
    wraps.stop_worker(&supervisor, Duration::from_millis(50)).await;
    reaches(&test.app, &acme, run, RunStatus::Succeeded).await;
    assert!(until_async(PATIENCE, async || lacking.app.check_database().await.is_ok()).await);
    lacking.stop().await;
}
