//! Breakers of workflows: shown with the workflow, closed by hand.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bulkhead_app::data::BreakerState;
use bulkhead_model::breaker::Stand;
use bulkhead_model::id::{RunId, WorkflowId};
use bulkhead_model::time::Timestamp;
use http::header;
use serde::Serialize;
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::{In, NoInput, etag};
use crate::problem::Problem;
use crate::view::Stored;
use crate::workflow::WorkflowSummaryView;

/// Why new runs of a workflow's version wait.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Breaker)]
pub(crate) struct BreakerView {
    /// Runs of this version wait; those of others do not.
    version: i64,
    /// `open`: new runs wait. `probing`: one of them was let go to see whether it goes better.
    state: &'static str,
    /// How many runs failed alike, one after the other, before it opened.
    failures: u32,
    #[schema(value_type = String, format = DateTime)]
    opened_at: Timestamp,
    /// Runs that were let go since, and failed as well.
    probes: u32,
    /// When the next one may be let go.
    #[schema(value_type = String, format = DateTime)]
    next_probe_at: Timestamp,
    /// The run that was let go and is not over.
    #[schema(value_type = Option<String>)]
    probe_run: Option<RunId>,
    /// The last failure, as its run shows it; its message only for those who may read runs.
    #[schema(value_type = serde_json::Value)]
    error: Option<Stored>,
}

impl BreakerView {
    /// `None` for one that is closed.
    pub(crate) fn of(state: BreakerState) -> Option<Self> {
        let (name, opened_at, next_probe_at) = match state.breaker.stand {
            Stand::Closed => return None,
            Stand::Open { opened_at, probe_at } => ("open", opened_at, probe_at),
            Stand::Probing { opened_at, until, .. } => ("probing", opened_at, until),
        };
        Some(Self {
            version: state.version,
            state: name,
            failures: state.breaker.failures,
            opened_at,
            probes: state.breaker.probes,
            next_probe_at,
            probe_run: state.breaker.probe(),
            error: state.error.map(Stored::from),
        })
    }
}

/// Closes a workflow's breakers, of all versions: runs that wait go on. Doing it twice is no error. If they fail again, it opens again.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/workflows/{workflow}/breaker/close",
    tag = "workflows",
    responses((status = 200, body = WorkflowSummaryView, headers(("etag" = String)))),
)]
pub(crate) async fn close_breaker(
    at: OrgCaller,
    In(id): In<WorkflowId>,
    State(state): State<HttpState>,
    _: NoInput,
) -> Result<Response, Problem> {
    let workflow = state.app.close_breaker(&at.caller, at.org, id).await?;
    Ok(([(header::ETAG, etag(workflow.revision))], Json(WorkflowSummaryView::from(workflow))).into_response())
}
