//! A thousand organizations, one of which has fifty thousand runs in the queue before anybody else comes: the others hardly notice.
//!
//! Proven by order, not by time: beside the large one a small one's run is behind only as many others as it would be alone, and the few
//! of the large one that come before it are counted here.

use std::sync::Arc;

use bulkhead_app::App;
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::worker::{Slots, WorkerConfig};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{OrgId, RunId, WorkflowId};
use bulkhead_model::job::JobPayload;
use bulkhead_model::permission::{OrgScope, SystemReason, SystemScope};
use bulkhead_model::run::{self, RunStatus};
use bulkhead_model::time::Timestamp;
use bulkhead_model::workflow::Definition;
use bulkhead_store::StoreError;
use bulkhead_store::job::NewJob;
use bulkhead_store::page::PageRequest;
use bulkhead_store::run::Run;
use bulkhead_store::workflow::{Workflow, WorkflowVersion};
use bulkhead_test_support::wait::until_async;
use futures_util::stream::{self, StreamExt as _};
use serde_json::Map;

use crate::support::{PATIENCE, TestApp};

const SMALL: u32 = 999;
const RUNS_OF_SMALL: u32 = 2;
const RUNS_OF_LARGE: u32 = 50_000;
/// Runs inserted in one transaction.
const AT_ONCE: u32 = 500;
/// Transactions at once: as many as PostgreSQL has connections here.
const WRITERS: usize = 6;
/// Slots of the worker: far fewer than organizations that have work.
const SLOTS: u32 = 16;
/// What the large one may hold at once.
const HELD_MAX: u32 = 3;

const DEFINITION: &str = r#"{"schema":1,"name":"at once","triggers":[{"id":"api","type":"api"}],"start":"end","steps":{"end":{"type":"stop"}}}"#;

fn scope(org: OrgId) -> OrgScope {
    SystemScope::new(SystemReason::Worker).for_org(org)
}

/// Puts runs and their jobs into the queue, with their workflow if there is none yet.
async fn enqueue(app: &TestApp, ambient: &Ambient, org: OrgId, workflow: WorkflowId, runs: u32, is_new: bool) {
    let (definition, _) = Definition::parse(DEFINITION).unwrap();
    let state = serde_json::to_string(&run::begin(&definition, &Map::new()).unwrap()).unwrap();
    let args = (ambient.clone(), workflow, Arc::new(state), runs, is_new);
    let scope = scope(org);
    let written = app.store.write_locked(&scope, args, |tx, (ambient, workflow, state, runs, is_new)| {
        Box::pin(async move {
            let now = ambient.now();
            if *is_new {
                let row = Workflow {
                    id: *workflow,
                    name: "at once".into(),
                    active: true,
                    current_version: 1,
                    revision: 1,
                    created_at: now,
                    updated_at: now,
                };
                tx.insert_workflow(&row).await?;
                let version = WorkflowVersion {
                    version: 1,
                    definition: DEFINITION.into(),
                    summary: String::new(),
                    author: "test".into(),
                    created_at: now,
                };
                tx.insert_workflow_version(*workflow, &version).await?;
            }
            for _ in 0..*runs {
                let run = Run {
                    id: RunId::new(ambient),
                    workflow: *workflow,
                    version: 1,
                    status: RunStatus::Queued,
                    trigger_kind: "api".into(),
                    trigger_data: "{}".into(),
                    state: state.to_string(),
                    generation: 0,
                    output: None,
                    error: None,
                    dedupe_key: None,
                    log_seq: 1,
                    kept: bulkhead_store::run::Kept::default(),
                    waiting_until: None,
                    created_at: now,
                    updated_at: now,
                    finished_at: None,
                };
                tx.insert_run(&run).await?;
                let job = NewJob {
                    payload: JobPayload::AdvanceRun { run: run.id },
                    priority: 100,
                    run_at: now,
                    dedupe_key: Some(run.id.to_string()),
                    attempts_max: 3,
                    group: None,
                };
                tx.enqueue(&job, ambient).await?;
            }
            Ok::<_, StoreError>(())
        })
    });
    written.await.unwrap();
}

/// When each of the organization's runs that ended so did so.
async fn ended(app: &TestApp, org: OrgId, status: RunStatus) -> Vec<Timestamp> {
    let scope = scope(org);
    let (mut found, mut page) = (Vec::new(), PageRequest { limit: 200, ..PageRequest::default() });
    loop {
        let listed = app
            .store
            .read(&scope, page, move |tx, page| Box::pin(async move { tx.list_runs(Some(status), None, *page).await }));
        let listed = listed.await.unwrap();
        found.extend(listed.items.iter().filter_map(|run| run.finished_at));
        let Some(next) = listed.next else { return found };
        page.before = Some(next);
    }
}

async fn count_leased(app: &TestApp, org: OrgId) -> usize {
    let page = PageRequest { limit: 200, ..PageRequest::default() };
    let scope = scope(org);
    let listed =
        app.store.read(&scope, page, |tx, page| Box::pin(async move { tx.list_jobs(Some("leased"), *page).await }));
    listed.await.unwrap().items.len()
}

async fn work(app: &App) -> Supervisor {
    let supervisor = Supervisor::new();
    let slots = Slots { system: 1, interactive: SLOTS as usize, bulk: 1 };
    app.start_worker(WorkerConfig { name: "test".into(), slots, heartbeat: None }, &supervisor).await.unwrap();
    supervisor
}

on_both! {
    async fn a_thousand_organizations_beside_a_large_one(app: TestApp) {
        // The machine's clock tells in which order runs ended.
        let ambient = Ambient::system();
        let node = app.with_clock(&ambient);
        let large = node.create_org("large".parse().unwrap(), "Large".into()).await.unwrap().id;
        node.set_queue_share(large, 1, HELD_MAX).await.unwrap();
        let workflow = WorkflowId::new(&ambient);
        enqueue(&app, &ambient, large, workflow, AT_ONCE, true).await;
        stream::iter(1..RUNS_OF_LARGE / AT_ONCE)
            .for_each_concurrent(WRITERS, |_| enqueue(&app, &ambient, large, workflow, AT_ONCE, false))
            .await;
        let small: Vec<OrgId> = stream::iter(0..SMALL)
            .map(async |number| {
                let org = node.create_org(format!("small-{number}").parse().unwrap(), "Small".into()).await.unwrap().id;
                enqueue(&app, &ambient, org, WorkflowId::new(&ambient), RUNS_OF_SMALL, true).await;
                org
            })
            .buffer_unordered(WRITERS)
            .collect()
            .await;

        let supervisor = work(&node).await;
        let (mut left, mut held_most) = (small.clone(), 0);
        let done = until_async(PATIENCE, async || {
            held_most = held_most.max(count_leased(&app, large).await);
            // One at a time, so that looking does not keep the queue from moving.
            while let Some(org) = left.last() {
                if ended(&app, *org, RunStatus::Succeeded).await.len() < RUNS_OF_SMALL as usize {
                    return false;
                }
                left.pop();
            }
            true
        });
        assert!(done.await, "{} small organizations still wait", left.len());
        assert!(supervisor.shut_down(PATIENCE).await);

        assert!(held_most <= HELD_MAX as usize, "{held_most} held at once");
        let of_large = ended(&app, large, RunStatus::Succeeded).await;
        let mut before: Vec<usize> = Vec::new();
        for org in &small {
            let last = ended(&app, *org, RunStatus::Succeeded).await.into_iter().max().unwrap();
            before.push(of_large.iter().filter(|at| **at < last).count());
            assert_eq!(count_leased(&app, *org).await, 0);
        }
        assert_eq!(count_leased(&app, large).await, 0, "nothing is held when nobody works");
        before.sort_unstable();
        // A round of the line gives each organization one turn: two rounds, and what the large one holds meanwhile.
        let most = (RUNS_OF_SMALL + 1 + HELD_MAX) as usize;
        let (p95, last) = (before[before.len() * 95 / 100], before[before.len() - 1]);
        println!("runs of the large one before a small one's last: p50 {}, p95 {p95}, max {last}", before[before.len() / 2]);
        assert!(p95 <= 2 * most, "{p95} runs of the large one came before");
        // Those whose turn is last share slots that nobody else needs any more.
        assert!(last <= SMALL as usize, "{last} runs of the large one came before");
    }
}
