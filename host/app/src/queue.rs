//! The queue monitor: what waits, what is held and by whom, and for how long, of one organization or of all. Whatever the queue's
//! length, a look ends at its caps.

mod explain;

use std::collections::BTreeMap;
use std::time::Duration;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::OrgId;
use bulkhead_model::job::Lane;
use bulkhead_model::permission::{Caller, Permission, SystemReason, SystemScope};
use bulkhead_model::time::Timestamp;
use bulkhead_store::job::look::{BlockedGroup, HeldCount, JOBS_COUNT_MAX, JobCount};
use bulkhead_store::node::Node;
use bulkhead_store::{Store, StoreError, Tx};

pub use self::explain::{ExplainedRun, explain_run_as_operator};
use crate::supervise::Supervisor;
use crate::{App, AppError};

/// Blocked groups that one answer names.
const GROUPS_MAX: u32 = 50;
/// Organizations with ready work (by priority) that are looked at for the oldest.
const READY_LOOKED_AT_MAX: u32 = 2_000;
/// Organizations that the operator is told of by name.
const ORGS_TOLD_MAX: usize = 20;
/// The gauges are set this often.
const MEASURE_EVERY: Duration = Duration::from_secs(15);

const JOBS: SystemScope = SystemScope::new(SystemReason::Jobs);
const NODES: SystemScope = SystemScope::new(SystemReason::Nodes);

/// Where a job may stand, in the order in which it is told.
pub const STATES: [&str; 6] = ["ready", "leased", "blocked", "paused", "future", "dead"];

/// Jobs of a lane in one state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateCount {
    pub state: &'static str,
    /// At most ten thousand.
    pub count: i64,
    /// There are more than were counted; the kinds are of those that were.
    pub more: bool,
    pub kinds: Vec<(String, i64)>,
}

/// One lane of an organization's queue.
#[derive(Clone, Debug)]
pub struct LaneQueue {
    pub lane: Lane,
    /// One for each of [`STATES`].
    pub states: Vec<StateCount>,
    /// Since when the first ready job could have been taken: time for which it was held back on purpose does not count.
    pub oldest_ready_at: Option<Timestamp>,
    /// How long that is.
    pub lag: Duration,
    /// When the next job is due.
    pub next_due_at: Option<Timestamp>,
    /// Jobs that may be held at once, on all nodes together.
    pub held_max: i64,
    pub holders: Vec<HeldCount>,
}

/// An organization's queue.
#[derive(Clone, Debug)]
pub struct OrgQueue {
    pub lanes: Vec<LaneQueue>,
    /// At most fifty.
    pub blocked_groups: Vec<BlockedGroup>,
}

/// An organization with ready work.
#[derive(Clone, Debug)]
pub struct WaitingOrg {
    pub org: OrgId,
    pub slug: String,
    pub lane: Lane,
    pub oldest_ready_at: Timestamp,
    pub lag: Duration,
    /// Ready jobs; at most ten thousand and one.
    pub ready: i64,
}

/// One lane of everybody's queue.
#[derive(Clone, Debug)]
pub struct LaneTotal {
    pub lane: Lane,
    pub states: Vec<StateCount>,
    pub oldest_ready_at: Option<Timestamp>,
    pub lag: Duration,
    /// Organizations with ready work, of the first two thousand.
    pub waiting_orgs: usize,
    /// Slots of the nodes that serve.
    pub slots: i64,
}

/// Everybody's queue, for the operator.
#[derive(Clone, Debug)]
pub struct WholeQueue {
    pub lanes: Vec<LaneTotal>,
    pub nodes: Vec<(Node, Vec<HeldCount>)>,
    /// Those that wait longest first; at most twenty.
    pub waiting: Vec<WaitingOrg>,
}

/// `counts` are of at most [`JOBS_COUNT_MAX`] + 1 jobs, perhaps of several lanes.
fn state_count(state: &'static str, lane: Lane, counts: &[JobCount]) -> StateCount {
    let looked_at: i64 = counts.iter().map(|count| count.count).sum();
    let of_lane = counts.iter().filter(|count| count.lane == lane.as_str());
    let kinds: Vec<(String, i64)> = of_lane.map(|count| (count.kind.clone(), count.count)).collect();
    let count: i64 = kinds.iter().map(|(_, count)| count).sum();
    StateCount { state, count: count.min(JOBS_COUNT_MAX), more: looked_at > JOBS_COUNT_MAX, kinds }
}

fn lag(now: Timestamp, oldest: Option<Timestamp>) -> Duration {
    oldest.map_or(Duration::ZERO, |oldest| now.since(oldest))
}

async fn read_org_queue(tx: &mut Tx, now: Timestamp) -> Result<OrgQueue, StoreError> {
    tx.prefer_indexes().await?;
    let (blocked, paused) = (tx.count_blocked_jobs_of_org().await?, tx.count_paused_jobs_of_org().await?);
    let mut lanes = Vec::new();
    for lane in Lane::ALL {
        let leased = tx.count_leased_jobs_of_org(lane).await?;
        let states = vec![
            state_count("ready", lane, &tx.count_ready_jobs_of_org(lane).await?),
            // Counted whole: there are never more than the organization may hold.
            StateCount { more: false, ..state_count("leased", lane, &leased) },
            state_count("blocked", lane, &blocked),
            state_count("paused", lane, &paused),
            state_count("future", lane, &tx.count_future_jobs_of_org(lane).await?),
            state_count("dead", lane, &tx.count_dead_jobs_of_org(lane).await?),
        ];
        let oldest_ready_at = tx.load_ready_since(lane).await?;
        lanes.push(LaneQueue {
            lane,
            states,
            oldest_ready_at,
            lag: lag(now, oldest_ready_at),
            next_due_at: tx.load_next_due(lane).await?,
            held_max: tx.load_lane_use(lane).await?.jobs_max,
            holders: tx.list_holders_of_org(lane).await?,
        });
    }
    Ok(OrgQueue { lanes, blocked_groups: tx.list_blocked_groups(GROUPS_MAX).await? })
}

/// What the queue's own statements tell: totals, holders, and who waits since when.
struct Totals {
    lanes: Vec<LaneTotal>,
    holders: Vec<HeldCount>,
    waiting: Vec<(Lane, OrgId, Timestamp)>,
}

async fn read_totals(tx: &mut Tx, now: Timestamp) -> Result<Totals, StoreError> {
    tx.prefer_indexes().await?;
    let (future, blocked) = (tx.count_future_jobs().await?, tx.count_blocked_jobs().await?);
    let paused = tx.count_paused_jobs().await?;
    let (dead, holders) = (tx.count_dead_jobs().await?, tx.list_holders().await?);
    let (mut lanes, mut waiting) = (Vec::new(), Vec::new());
    for lane in Lane::ALL {
        let mut oldest: BTreeMap<OrgId, Timestamp> = BTreeMap::new();
        for since in tx.list_ready_since(lane, READY_LOOKED_AT_MAX).await? {
            let found = oldest.entry(since.org).or_insert(since.since);
            *found = (*found).min(since.since);
        }
        let oldest_ready_at = oldest.values().min().copied();
        let held = holders.iter().filter(|held| held.lane == lane.as_str()).map(|held| held.count).sum();
        let states = vec![
            state_count("ready", lane, &tx.count_ready_jobs(lane).await?),
            StateCount { state: "leased", count: held, more: false, kinds: Vec::new() },
            state_count("blocked", lane, &blocked),
            state_count("paused", lane, &paused),
            state_count("future", lane, &future),
            state_count("dead", lane, &dead),
        ];
        lanes.push(LaneTotal {
            lane,
            states,
            oldest_ready_at,
            lag: lag(now, oldest_ready_at),
            waiting_orgs: oldest.len(),
            slots: 0,
        });
        waiting.extend(oldest.into_iter().map(|(org, since)| (lane, org, since)));
    }
    waiting.sort_by_key(|(_, _, since)| *since);
    waiting.truncate(ORGS_TOLD_MAX);
    Ok(Totals { lanes, holders, waiting })
}

async fn load_totals(store: &Store, now: Timestamp) -> Result<Totals, StoreError> {
    store.read(&JOBS, now, |tx, now| Box::pin(async move { read_totals(tx, *now).await })).await
}

/// The serving processes. On SQLite a row may be left by one that was killed.
async fn list_nodes(store: &Store) -> Result<Vec<Node>, StoreError> {
    let mut nodes = store.read(&NODES, (), |tx, ()| Box::pin(async move { tx.list_nodes().await })).await?;
    if !store.is_served() {
        for node in &mut nodes {
            node.alive = false;
        }
    }
    Ok(nodes)
}

/// Has an operator's clock tell the time that the nodes go by, whatever the machine's says. (A node's does by itself; SQLite's one process
/// has its own.)
async fn follow_nodes_clock(store: &Store, ambient: &Ambient) -> Result<(), StoreError> {
    let shared = store.read(&NODES, (), |tx, ()| Box::pin(async move { tx.load_shared_clock().await })).await?;
    if let Some(shared) = shared {
        ambient.follow(shared);
    }
    Ok(())
}

/// Everybody's queue, at the time of the clock that nodes share, which `ambient` follows. For the operator: no route leads here.
///
/// # Errors
/// The store's.
pub async fn look_at_queue(store: &Store, ambient: &Ambient) -> Result<WholeQueue, StoreError> {
    follow_nodes_clock(store, ambient).await?;
    let now = ambient.now();
    let Totals { mut lanes, holders, waiting } = load_totals(store, now).await?;
    let nodes = list_nodes(store).await?;
    for total in &mut lanes {
        total.slots =
            nodes.iter().filter(|node| node.alive && !node.draining).map(|node| node.slots.of(total.lane)).sum();
    }
    let nodes = nodes
        .into_iter()
        .map(|node| {
            let held = holders.iter().filter(|held| held.worker == node.id).cloned().collect();
            (node, held)
        })
        .collect();
    let mut told = Vec::new();
    for (lane, org, oldest_ready_at) in waiting {
        let slug = store
            .read(&JOBS, org, |tx, org| Box::pin(async move { tx.load_queue_slug(*org).await }))
            .await?
            .unwrap_or_default();
        let scope = SystemScope::new(SystemReason::Worker).for_org(org);
        let ready = store
            .read(&scope, lane, |tx, lane| Box::pin(async move { tx.count_ready_jobs_of_org(*lane).await }))
            .await?;
        let ready = ready.iter().map(|count| count.count).sum();
        told.push(WaitingOrg { org, slug, lane, oldest_ready_at, lag: lag(now, Some(oldest_ready_at)), ready });
    }
    Ok(WholeQueue { lanes, nodes, waiting: told })
}

impl App {
    /// The organization's queue.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn show_queue(&self, caller: &Caller, org: OrgId) -> Result<OrgQueue, AppError> {
        let scope = caller.authorize(org, Permission::JobsRead)?;
        let now = self.ambient().now();
        self.store().read(&scope, now, |tx, now| Box::pin(async move { Ok(read_org_queue(tx, *now).await?) })).await
    }

    /// Sets the queue's gauges again and again, until shutdown.
    pub(crate) fn measure_queue(&self, supervisor: &Supervisor) {
        let (app, stop) = (self.clone(), supervisor.stop_token());
        supervisor.spawn_loop("measure queue", move || {
            let (app, stop) = (app.clone(), stop.clone());
            async move {
                while !stop.is_cancelled() {
                    match load_totals(app.store(), app.ambient().now()).await {
                        Ok(totals) => set_gauges(&totals.lanes),
                        Err(error) => {
                            tracing::debug!(error = &error as &dyn std::error::Error, "the queue was not measured");
                        }
                    }
                    tokio::select! {
                        () = tokio::time::sleep(MEASURE_EVERY) => {}
                        () = stop.cancelled() => return,
                    }
                }
            }
        });
    }
}

fn set_gauges(lanes: &[LaneTotal]) {
    for total in lanes {
        let lane = total.lane.as_str();
        for state in &total.states {
            // At most ten thousand: exact.
            let count = f64::from(u32::try_from(state.count).unwrap_or(u32::MAX));
            metrics::gauge!("bulkhead_queue_jobs", "lane" => lane, "state" => state.state).set(count);
        }
        metrics::gauge!("bulkhead_queue_lag_seconds", "lane" => lane).set(total.lag.as_secs_f64());
        let waiting = f64::from(u32::try_from(total.waiting_orgs).unwrap_or(u32::MAX));
        metrics::gauge!("bulkhead_queue_waiting_organizations", "lane" => lane).set(waiting);
    }
}
