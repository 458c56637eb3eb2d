//! The queue monitor of an organization, and why a run stands where it stands.

use axum::Json;
use axum::extract::State;
use bulkhead_app::queue::{ExplainedRun, LaneQueue, OrgQueue, StateCount};
use bulkhead_model::id::{RunId, WorkerId, WorkflowId};
use bulkhead_model::run::RunStatus;
use bulkhead_model::stuck::Reason;
use bulkhead_model::time::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::In;
use crate::problem::Problem;

/// Jobs of one kind.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = QueueKind)]
pub(crate) struct KindView {
    kind: String,
    count: i64,
}

/// Jobs in one state.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = QueueState)]
pub(crate) struct StateView {
    /// `ready`, `leased`, `blocked`, `paused` (for a breaker), `future`, `dead`.
    state: &'static str,
    /// Counted up to 10000.
    #[schema(maximum = 10000)]
    count: i64,
    /// The count ended at its cap: there are more. `kinds` are of those that were counted.
    more: bool,
    kinds: Vec<KindView>,
}

impl From<StateCount> for StateView {
    fn from(count: StateCount) -> Self {
        Self {
            state: count.state,
            count: count.count,
            more: count.more,
            kinds: count.kinds.into_iter().map(|(kind, count)| KindView { kind, count }).collect(),
        }
    }
}

/// Jobs that one node holds.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = QueueHolder)]
pub(crate) struct HolderView {
    #[schema(value_type = String)]
    worker: WorkerId,
    count: i64,
}

/// One lane of the queue. Lanes have slots of their own, so that a flooded one delays no other.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = QueueLane)]
pub(crate) struct LaneView {
    /// `system`, `interactive`, `bulk`.
    lane: &'static str,
    states: Vec<StateView>,
    /// Since when the oldest ready job could have run; null when none is ready.
    #[schema(value_type = Option<String>, format = DateTime)]
    oldest_ready_at: Option<Timestamp>,
    /// How long that is; 0 when none is ready.
    lag_ms: u64,
    /// When the next job is due.
    #[schema(value_type = Option<String>, format = DateTime)]
    next_due_at: Option<Timestamp>,
    /// Jobs of the lane that the organization may hold at once, on all nodes together.
    held_max: i64,
    /// Who holds the leased ones.
    holders: Vec<HolderView>,
}

impl From<LaneQueue> for LaneView {
    fn from(queue: LaneQueue) -> Self {
        Self {
            lane: queue.lane.as_str(),
            states: queue.states.into_iter().map(StateView::from).collect(),
            oldest_ready_at: queue.oldest_ready_at,
            lag_ms: u64::try_from(queue.lag.as_millis()).unwrap_or(u64::MAX),
            next_due_at: queue.next_due_at,
            held_max: queue.held_max,
            holders: queue
                .holders
                .into_iter()
                .map(|held| HolderView { worker: held.worker, count: held.count })
                .collect(),
        }
    }
}

/// Runs that count together (a workflow's `concurrency`) and wait for room.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = QueueGroup)]
pub(crate) struct GroupView {
    /// The workflow, and the digest of the key's value if it has a key.
    group: String,
    #[schema(value_type = Option<String>)]
    workflow: Option<WorkflowId>,
    limit: i64,
    held: i64,
    /// Counted up to 1000.
    #[schema(maximum = 1000)]
    waiting: i64,
    /// There are more than were counted.
    more: bool,
}

/// An organization's queue.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Queue)]
pub(crate) struct QueueView {
    lanes: Vec<LaneView>,
    /// At most fifty.
    blocked_groups: Vec<GroupView>,
}

/// Groups are counted up to here.
const WAITING_MAX: i64 = 1_000;

impl From<OrgQueue> for QueueView {
    fn from(queue: OrgQueue) -> Self {
        let groups = queue.blocked_groups.into_iter().map(|group| GroupView {
            workflow: group.key.split(':').next().and_then(|id| id.parse().ok()),
            group: group.key,
            limit: group.limit,
            held: group.held,
            waiting: group.waiting.min(WAITING_MAX),
            more: group.waiting > WAITING_MAX,
        });
        Self { lanes: queue.lanes.into_iter().map(LaneView::from).collect(), blocked_groups: groups.collect() }
    }
}

/// Shows the organization's queue: what waits, what is held and by whom, and for how long. Costs the same however long it is.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/queue",
    tag = "jobs",
    responses((status = 200, body = QueueView)),
)]
pub(crate) async fn show_queue(at: OrgCaller, State(state): State<HttpState>) -> Result<Json<QueueView>, Problem> {
    Ok(Json(state.app.show_queue(&at.caller, at.org).await?.into()))
}

/// One thing that keeps a run from going on.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RunReason)]
pub(crate) struct ReasonView {
    /// Stable: `not-due`, `in-line`, `group-full`, `organization-full`, `lane-full`, `no-node`, `carried`, `holder-dead`, `stuck`,
    /// `not-taken`, `breaker-open`, `due`, `no-job`, `dead-letter`, `failed`, `succeeded`, `cancelled`, `installation-disabled`,
    /// `installation-missing`, `attempts-failed`.
    code: &'static str,
    /// In plain words.
    message: String,
    /// What to do now.
    next: String,
}

impl From<Reason> for ReasonView {
    fn from(reason: Reason) -> Self {
        Self { code: reason.code, message: reason.message, next: reason.next }
    }
}

/// Why a run stands where it stands.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RunExplanation)]
pub(crate) struct ExplanationView {
    #[schema(value_type = String)]
    run: RunId,
    #[schema(value_type = String)]
    status: RunStatus,
    /// The most important first; there is always one.
    reasons: Vec<ReasonView>,
}

impl From<ExplainedRun> for ExplanationView {
    fn from(explained: ExplainedRun) -> Self {
        Self {
            run: explained.run,
            status: explained.status,
            reasons: explained.reasons.into_iter().map(ReasonView::from).collect(),
        }
    }
}

/// Explains why a run stands where it stands, in plain words, and what to do about it.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/runs/{run}/explain",
    tag = "runs",
    responses((status = 200, body = ExplanationView)),
)]
pub(crate) async fn explain_run(
    at: OrgCaller,
    In(id): In<RunId>,
    State(state): State<HttpState>,
) -> Result<Json<ExplanationView>, Problem> {
    Ok(Json(state.app.explain_run(&at.caller, at.org, id).await?.into()))
}
