//! The schedule triggers of a workflow: what comes next, and what became of the ticks so far.

use axum::Json;
use axum::extract::State;
use bulkhead_app::schedule::{ScheduleDetail, Trouble, Upcoming};
use bulkhead_model::id::{DeadLetterId, RunId, WorkflowId};
use bulkhead_model::schedule::Misfire;
use bulkhead_model::time::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::In;
use crate::page::ListOf;
use crate::problem::Problem;

/// A tick that is to come.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UpcomingTick)]
pub(crate) struct UpcomingView {
    /// The moment that the cron expression names.
    #[schema(value_type = String, format = DateTime)]
    scheduled_for: Timestamp,
    /// The same as the clocks of the time zone show it.
    #[schema(format = DateTime)]
    scheduled_for_local: String,
    /// When the run starts: the tick and the trigger's own offset.
    #[schema(value_type = String, format = DateTime)]
    fires_at: Timestamp,
}

impl From<Upcoming> for UpcomingView {
    fn from(upcoming: Upcoming) -> Self {
        Self { scheduled_for: upcoming.tick, scheduled_for_local: upcoming.local, fires_at: upcoming.fires_at }
    }
}

/// The next ticks of a schedule that is not saved yet.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SchedulePreview)]
pub(crate) struct PreviewView {
    /// The trigger's id in the definition.
    pub(crate) trigger: String,
    /// At most three.
    pub(crate) next: Vec<UpcomingView>,
}

/// A schedule trigger of the workflow's current version.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Schedule)]
pub(crate) struct ScheduleView {
    /// The trigger's id in the definition.
    trigger: String,
    cron: String,
    time_zone: String,
    /// What becomes of missed ticks: `skip`, `once`, `all`.
    #[schema(value_type = String)]
    misfire: Misfire,
    misfire_max: u32,
    spread_s: u32,
    /// How long after its ticks this trigger fires, within `spread_s`; it never changes.
    offset_ms: u64,
    /// Whether it fires: its workflow is active.
    armed: bool,
    /// At most three; of a schedule that is not armed, those that it would have.
    next: Vec<UpcomingView>,
    /// When it last started a run …
    #[schema(value_type = Option<String>, format = DateTime)]
    last_fired_at: Option<Timestamp>,
    /// … and which.
    #[schema(value_type = Option<String>)]
    last_run: Option<RunId>,
    /// Runs that it started.
    fired: i64,
    /// … of them a minute or more after their time.
    late: i64,
    /// Ticks that the misfire policy dropped.
    missed: i64,
    /// Ticks at which the trigger's conditions did not hold.
    unmatched: i64,
    /// What keeps it from firing; null while it fires.
    trouble: Option<TroubleView>,
}

/// A schedule that cannot fire. It tries again by itself.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ScheduleTrouble)]
pub(crate) struct TroubleView {
    /// Its entry on the list of dead letters: resuming that lets it try at once.
    #[schema(value_type = String)]
    dead_letter: DeadLetterId,
    message: String,
    /// When it could not fire for the first time …
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// … and how often since.
    times: i64,
    #[schema(value_type = Option<String>, format = DateTime)]
    next_attempt_at: Option<Timestamp>,
}

impl From<Trouble> for TroubleView {
    fn from(trouble: Trouble) -> Self {
        let Trouble { dead_letter, message, since, times, next_attempt_at } = trouble;
        Self { dead_letter, message, since, times, next_attempt_at }
    }
}

impl From<ScheduleDetail> for ScheduleView {
    fn from(detail: ScheduleDetail) -> Self {
        let schedule = detail.schedule;
        Self {
            trigger: detail.trigger.to_string(),
            cron: schedule.ticks.cron().to_owned(),
            time_zone: schedule.ticks.zone().to_owned(),
            misfire: schedule.misfire,
            misfire_max: schedule.misfire_max,
            spread_s: schedule.spread_s,
            offset_ms: u64::try_from(detail.offset.as_millis()).unwrap_or(u64::MAX),
            armed: detail.armed,
            next: detail.next.into_iter().map(UpcomingView::from).collect(),
            last_fired_at: detail.last_fired_at,
            last_run: detail.last_run,
            fired: detail.fired,
            late: detail.late,
            missed: detail.missed,
            unmatched: detail.unmatched,
            trouble: detail.trouble.map(TroubleView::from),
        }
    }
}

/// Lists the schedule triggers of a workflow's current version, with their next ticks.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/workflows/{workflow}/schedule",
    tag = "workflows",
    responses((status = 200, body = ListOf<ScheduleView>)),
)]
pub(crate) async fn list_schedules(
    at: OrgCaller,
    In(id): In<WorkflowId>,
    State(state): State<HttpState>,
) -> Result<Json<ListOf<ScheduleView>>, Problem> {
    let schedules = state.app.list_schedules(&at.caller, at.org, id).await?;
    // A definition has at most 20 triggers: one page always.
    Ok(Json(ListOf { items: schedules.into_iter().map(ScheduleView::from).collect(), next_cursor: None }))
}
