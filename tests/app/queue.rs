//! The queue and its runs as people and the operator see them while real workers carry some and others wait.

use std::time::Duration;

use bulkhead_app::queue::{explain_run_as_operator, look_at_queue};
use bulkhead_app::run::StartByHand;
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::worker::{Slots, WorkerConfig};
use bulkhead_app::workflow::SaveWorkflow;
use bulkhead_app::{App, AppError};
use bulkhead_model::id::{RunId, WorkflowId};
use bulkhead_model::job::Lane;
use bulkhead_model::permission::Permission;
use bulkhead_test_support::wait::until_async;
use serde_json::{Map, Value, json};

use crate::guests::{manifest, package, waits};
use crate::support::{PATIENCE, Tenant, TestApp};

async fn work(app: &App) -> Supervisor {
    let supervisor = Supervisor::new();
    let config = WorkerConfig { name: "node one".into(), slots: Slots::default(), heartbeat: None };
    app.start_worker(config, &supervisor).await.unwrap();
    supervisor
}

/// A workflow whose runs take long, one at a time.
async fn patient(app: &TestApp, tenant: &Tenant) -> WorkflowId {
    let manifest = manifest("acme/patient", "1.0.0", |manifest| manifest["limits"] = json!({ "wall_ms": 60_000 }));
    app.install(tenant, package(&waits(), &manifest), json!({})).await;
    let definition = json!({
        "schema": 1, "name": "patient", "triggers": [{ "id": "by-hand", "type": "api" }], "start": "call",
        "concurrency": { "limit": 1 },
        "steps": { "call": { "type": "action", "use": "acme/patient#it", "with": {}, "timeout_ms": 60_000 } },
    });
    let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
    app.app.create_workflow(&tenant.caller, tenant.org, save).await.unwrap().workflow.id
}

async fn begin(app: &TestApp, tenant: &Tenant, workflow: WorkflowId) -> RunId {
    let start = StartByHand { input: Value::Null, variables: Map::new(), idempotency_key: None };
    app.app.start_run(&tenant.caller, tenant.org, workflow, start).await.unwrap()
}

async fn codes(app: &TestApp, tenant: &Tenant, run: RunId) -> Vec<&'static str> {
    let explained = app.app.explain_run(&tenant.caller, tenant.org, run).await.unwrap();
    explained.reasons.iter().map(|reason| reason.code).collect()
}

on_both! {
    async fn who_is_carried_and_who_waits_for_whom_is_told(app: TestApp) {
        let acme = app.tenant("acme").await;
        let workflow = patient(&app, &acme).await;
        let (first, second) = (begin(&app, &acme, workflow).await, begin(&app, &acme, workflow).await);
        assert_eq!(codes(&app, &acme, first).await, ["no-node"]);
        let supervisor = work(&app.app).await;
        let placed = async || (codes(&app, &acme, first).await, codes(&app, &acme, second).await);
        let expected = (vec!["carried"], vec!["group-full"]);
        assert!(until_async(PATIENCE, async || placed().await == expected).await, "{:?}", placed().await);
        let waits = app.app.explain_run(&acme.caller, acme.org, second).await.unwrap();
        assert!(waits.reasons[0].message.contains(&first.to_string()), "{waits:?}");

        // People of the organization are not told the machine's name; the operator is.
        let carried = app.app.explain_run(&acme.caller, acme.org, first).await.unwrap();
        assert!(!carried.reasons[0].message.contains("node one"), "{carried:?}");
        let told = explain_run_as_operator(&app.store, &app.ambient, first).await.unwrap();
        assert_eq!((told.org, told.run), (acme.org, first));
        assert!(told.reasons[0].message.contains("node one"), "{told:?}");
        let nobody = RunId::new(&app.ambient);
        assert!(matches!(explain_run_as_operator(&app.store, &app.ambient, nobody).await, Err(AppError::NotFound { .. })));

        let queue = app.app.show_queue(&acme.caller, acme.org).await.unwrap();
        let lane = queue.lanes.iter().find(|lane| lane.lane == Lane::Interactive).unwrap();
        let count = |state: &str| lane.states.iter().find(|count| count.state == state).unwrap().count;
        assert_eq!((count("leased"), count("blocked"), count("ready")), (1, 1, 0));
        assert_eq!((lane.holders.len(), lane.holders[0].count, lane.held_max), (1, 1, 64));
        assert_eq!((queue.blocked_groups.len(), queue.blocked_groups[0].waiting), (1, 1));
        assert_eq!(queue.blocked_groups[0].key, workflow.to_string());
        let whole = look_at_queue(&app.store, &app.ambient).await.unwrap();
        let lane = whole.lanes.iter().find(|lane| lane.lane == Lane::Interactive).unwrap();
        assert_eq!(lane.slots, 128);
        let (node, held) = &whole.nodes[0];
        let held = held.iter().find(|held| held.lane == "interactive").unwrap();
        assert_eq!((whole.nodes.len(), node.name.as_str(), held.count), (1, "node one", 1));

        let caller = acme.only(&[Permission::RunsRead]);
        assert!(matches!(app.app.show_queue(&caller, acme.org).await, Err(AppError::Forbidden(Permission::JobsRead))));
        let caller = acme.only(&[Permission::JobsRead]);
        assert!(matches!(app.app.explain_run(&caller, acme.org, first).await, Err(AppError::Forbidden(_))));
        for run in [first, second] {
            app.app.cancel_run(&acme.caller, acme.org, run).await.unwrap();
        }
        assert_eq!(codes(&app, &acme, first).await, ["cancelled"]);
        supervisor.shut_down(PATIENCE).await;
    }

    async fn the_operator_sees_who_waits_longest(app: TestApp) {
        let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
        for tenant in [&acme, &other] {
            let definition = json!({
                "schema": 1, "name": "ends", "triggers": [{ "id": "by-hand", "type": "api" }], "start": "end",
                "steps": { "end": { "type": "stop" } },
            });
            let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
            let saved = app.app.create_workflow(&tenant.caller, tenant.org, save).await.unwrap();
            begin(&app, tenant, saved.workflow.id).await;
            app.ambient.advance(Duration::from_secs(10));
        }
        let whole = look_at_queue(&app.store, &app.ambient).await.unwrap();
        let waiting: Vec<_> =
            whole.waiting.iter().map(|waiting| (waiting.slug.as_str(), waiting.ready, waiting.lag.as_secs())).collect();
        assert_eq!(waiting, [("acme", 1, 20), ("other", 1, 10)]);
        let lane = whole.lanes.iter().find(|lane| lane.lane == Lane::Interactive).unwrap();
        assert_eq!((lane.lag.as_secs(), lane.waiting_orgs, lane.slots), (20, 2, 0));
        assert!(whole.nodes.is_empty());
    }
}
