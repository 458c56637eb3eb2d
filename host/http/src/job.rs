//! The durable queue, as far as the organization's own jobs go.

use axum::Json;
use axum::extract::State;
use bulkhead_app::data::Job;
use bulkhead_model::id::JobId;
use bulkhead_model::time::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::HttpState;
use crate::access::OrgCaller;
use crate::page::{ListOf, PageParams, Paging};
use crate::problem::Problem;
use crate::view::Stored;

/// A job that waits, runs or was given up.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Job)]
pub(crate) struct JobView {
    #[schema(value_type = String)]
    id: JobId,
    /// `advance_run`, …
    kind: String,
    /// `system`, `interactive`, `bulk`: lanes have slots of their own.
    lane: String,
    #[schema(value_type = JobState)]
    state: String,
    /// What it is about; depends on the kind.
    #[schema(value_type = serde_json::Value)]
    payload: Stored,
    #[schema(value_type = String, format = DateTime)]
    run_at: Timestamp,
    /// Attempts so far.
    attempt: i64,
    attempts_max: i64,
    /// Why the last attempt failed.
    error: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<Job> for JobView {
    fn from(job: Job) -> Self {
        Self {
            id: job.id,
            kind: job.kind,
            lane: job.lane,
            state: job.state,
            payload: job.payload.into(),
            run_at: job.run_at,
            attempt: job.attempt,
            attempts_max: job.attempts_max,
            error: job.error,
            created_at: job.created_at,
        }
    }
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum JobState {
    /// Its time has not come.
    Future,
    /// Waits for a worker.
    Ready,
    /// As many of its group are held as may be: it waits for one of them to end.
    Blocked,
    /// The breaker of its workflow is open.
    Paused,
    /// A worker holds it.
    Leased,
    /// Given up; an admin may resume it.
    Dead,
}

impl JobState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Future => "future",
            Self::Ready => "ready",
            Self::Blocked => "blocked",
            Self::Paused => "paused",
            Self::Leased => "leased",
            Self::Dead => "dead",
        }
    }
}

/// Filters of the jobs.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct JobFilter {
    /// Only jobs in this state.
    state: Option<JobState>,
}

/// Lists the organization's jobs, newest first. Jobs that were done are gone; what they did is in the runs.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/jobs",
    tag = "jobs",
    params(JobFilter, PageParams),
    responses((status = 200, body = ListOf<JobView>)),
)]
pub(crate) async fn list_jobs(
    at: OrgCaller,
    State(state): State<HttpState>,
    paging: Paging<JobFilter>,
) -> Result<Json<ListOf<JobView>>, Problem> {
    let wanted = paging.filter.state.map(|state| state.as_str().to_owned());
    let page = state.app.list_jobs(&at.caller, at.org, wanted, paging.request()?).await?;
    Ok(Json(paging.answer(page, JobView::from)))
}
