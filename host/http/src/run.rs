//! Runs: started, shown, cancelled, begun again.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bulkhead_app::data::{Run, RunEvent, RunSummary, Step, StepSizes};
use bulkhead_app::run::{RetryRun, RunDetail, StartByHand};
use bulkhead_model::id::{CallId, RunId, WorkflowId};
use bulkhead_model::run::{RunStatus, StepStatus};
use bulkhead_model::time::Timestamp;
use bulkhead_model::workflow::StepId;
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use crate::HttpState;
use crate::access::OrgCaller;
use crate::dead_letter::DeadLetterView;
use crate::extract::{In, Input, NoInput};
use crate::page::{ListOf, NoFilter, PageParams, Paging};
use crate::problem::{Kind, Problem};
use crate::view::Stored;

/// A run without its steps.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RunSummary)]
pub(crate) struct RunSummaryView {
    #[schema(value_type = String, example = "run_01h455vb4pex5vsknk084sn02q")]
    id: RunId,
    #[schema(value_type = String)]
    workflow: WorkflowId,
    /// The workflow's version that it runs on.
    version: i64,
    /// `queued`, `running`, `waiting`, `paused`, `succeeded`, `failed`, `cancelled`.
    #[schema(value_type = String)]
    status: RunStatus,
    /// What started it: `webhook`, `manual`, `api`, `schedule`.
    trigger: String,
    #[schema(value_type = serde_json::Value)]
    error: Option<Stored>,
    /// When a delay or a pause before another attempt ends.
    #[schema(value_type = Option<String>, format = DateTime)]
    waiting_until: Option<Timestamp>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    finished_at: Option<Timestamp>,
}

impl From<RunSummary> for RunSummaryView {
    fn from(run: RunSummary) -> Self {
        Self {
            id: run.id,
            workflow: run.workflow,
            version: run.version,
            status: run.status,
            trigger: run.trigger_kind,
            error: run.error.map(Stored::from),
            waiting_until: run.waiting_until,
            created_at: run.created_at,
            finished_at: run.finished_at,
        }
    }
}

/// A run and what became of each step.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Run)]
pub(crate) struct RunView {
    #[serde(flatten)]
    run: RunSummaryView,
    /// Rises when steps are begun again with new idempotency keys.
    generation: i64,
    /// What started it, as conditions and templates see it.
    #[schema(value_type = Object)]
    trigger_data: Stored,
    /// What the run's `stop` step said, or null.
    #[schema(value_type = serde_json::Value)]
    output: Option<Stored>,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// Its entry on the list of dead letters, while it failed and waits for a decision.
    dead_letter: Option<DeadLetterView>,
    /// In the order in which they were begun.
    steps: Vec<StepView>,
}

/// One step of a run.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Step)]
pub(crate) struct StepView {
    /// The step's id in the definition.
    id: String,
    /// `pending`, `running`, `waiting`, `succeeded`, `failed`, `skipped`, `cancelled`.
    #[schema(value_type = String)]
    status: StepStatus,
    /// How its last call ended; null for steps without one.
    outcome: Option<String>,
    attempts: i64,
    /// What its last call used, in the units of the limits.
    #[schema(value_type = serde_json::Value)]
    usage: Option<Stored>,
    /// What its last call was given. In a run's view null above 4 KiB: the step's own view has it.
    #[schema(value_type = serde_json::Value)]
    input: Option<Stored>,
    /// Bytes of the input, also where it is left out.
    input_bytes: Option<i64>,
    /// In a run's view null above 64 KiB: the step's own view has it.
    #[schema(value_type = serde_json::Value)]
    output: Option<Stored>,
    /// Bytes of the output, also where it is left out.
    output_bytes: Option<i64>,
    #[schema(value_type = serde_json::Value)]
    error: Option<Stored>,
    /// Its last call.
    #[schema(value_type = Option<String>)]
    call: Option<CallId>,
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    finished_at: Option<Timestamp>,
}

impl From<Step> for StepView {
    fn from(step: Step) -> Self {
        let bytes = |text: &Option<String>| text.as_ref().and_then(|text| i64::try_from(text.len()).ok());
        let sizes = StepSizes { input_bytes: bytes(&step.input), output_bytes: bytes(&step.output) };
        Self::new(step, sizes)
    }
}

impl StepView {
    fn new(step: Step, sizes: StepSizes) -> Self {
        Self {
            id: step.step,
            status: step.status,
            outcome: step.outcome,
            attempts: step.attempts,
            usage: step.usage.map(Stored::from),
            input: step.input.map(Stored::from),
            input_bytes: sizes.input_bytes,
            output: step.output.map(Stored::from),
            output_bytes: sizes.output_bytes,
            error: step.error.map(Stored::from),
            call: step.call,
            started_at: step.started_at,
            finished_at: step.finished_at,
        }
    }
}

impl From<RunDetail> for RunView {
    fn from(RunDetail { run, steps, sizes, dead_letter }: RunDetail) -> Self {
        let Run { id, workflow, version, status, trigger_kind, trigger_data, generation, output, error, .. } = run;
        Self {
            run: RunSummaryView {
                id,
                workflow,
                version,
                status,
                trigger: trigger_kind,
                error: error.map(Stored::from),
                waiting_until: run.waiting_until,
                created_at: run.created_at,
                finished_at: run.finished_at,
            },
            generation,
            trigger_data: trigger_data.into(),
            output: output.map(Stored::from),
            updated_at: run.updated_at,
            dead_letter: dead_letter.map(DeadLetterView::from),
            steps: steps.into_iter().zip(sizes).map(|(step, sizes)| StepView::new(step, sizes)).collect(),
        }
    }
}

/// One line of a run's own log.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RunEvent)]
pub(crate) struct RunEventView {
    /// Counts from 1 within the run.
    seq: i64,
    kind: String,
    #[schema(value_type = serde_json::Value)]
    detail: Stored,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<RunEvent> for RunEventView {
    fn from(event: RunEvent) -> Self {
        Self { seq: event.seq, kind: event.kind, detail: event.detail.into(), created_at: event.created_at }
    }
}

/// What a run begins with.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = StartRun)]
pub(crate) struct StartRunInput {
    /// Any JSON; conditions and templates see it as `trigger.body`.
    #[serde(default)]
    input: Value,
    /// Values of the workflow's variables.
    #[serde(default)]
    #[schema(value_type = Object)]
    variables: Map<String, Value>,
}

/// A run that was accepted; it goes on by itself.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StartedRun)]
pub(crate) struct StartedView {
    #[schema(value_type = String, example = "run_01h455vb4pex5vsknk084sn02q")]
    run: RunId,
}

/// 202, with the address where the run's progress can be read.
fn accepted(at: &OrgCaller, run: RunId) -> Response {
    let location = format!("/api/v1/orgs/{}/runs/{run}", at.org);
    (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(StartedView { run })).into_response()
}

/// Starts a run by hand. The workflow need not be active, but needs a manual or API trigger.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/workflows/{workflow}/runs",
    tag = "runs",
    params((
        "idempotency-key" = Option<String>,
        Header,
        description = "1 to 255 characters; a second start with the same key answers the first one's run.",
    )),
    request_body = StartRunInput,
    responses((status = 202, body = StartedView)),
    extensions(("x-bulkhead-problems" = json!([
        "no-trigger", "invalid-variables", "invalid-idempotency-key", "invalid-header", "quota-exceeded",
        "too-many-starts", "too-many-waiting", "too-many-held", "runs-per-minute"
    ]))),
)]
pub(crate) async fn start_run(
    at: OrgCaller,
    In(workflow): In<WorkflowId>,
    State(state): State<HttpState>,
    headers: HeaderMap,
    Input(input): Input<StartRunInput>,
) -> Result<Response, Problem> {
    let idempotency_key = match headers.get("idempotency-key").map(|value| value.to_str().map(str::to_owned)) {
        None => None,
        Some(Ok(key)) => Some(key),
        Some(Err(_)) => {
            return Err(Problem::new(Kind::InvalidHeader, "`idempotency-key` holds characters that are no text"));
        }
    };
    let start = StartByHand { input: input.input, variables: input.variables, idempotency_key };
    let run = state.app.start_run(&at.caller, at.org, workflow, start).await?;
    Ok(accepted(&at, run))
}

/// Filters of the runs.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct RunFilter {
    /// Only runs that stand so: `queued`, `running`, `waiting`, `paused`, `succeeded`, `failed`, `cancelled`.
    #[param(value_type = Option<String>)]
    status: Option<RunStatus>,
    /// Only runs of this workflow.
    #[param(value_type = Option<String>)]
    workflow: Option<WorkflowId>,
}

/// Lists runs, newest first.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/runs",
    tag = "runs",
    params(RunFilter, PageParams),
    responses((status = 200, body = ListOf<RunSummaryView>)),
)]
pub(crate) async fn list_runs(
    at: OrgCaller,
    State(state): State<HttpState>,
    paging: Paging<RunFilter>,
) -> Result<Json<ListOf<RunSummaryView>>, Problem> {
    let RunFilter { status, workflow } = paging.filter;
    let page = state.app.list_runs(&at.caller, at.org, status, workflow, paging.request()?).await?;
    Ok(Json(paging.answer(page, RunSummaryView::from)))
}

/// Shows a run with its steps.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/runs/{run}",
    tag = "runs",
    responses((status = 200, body = RunView)),
)]
pub(crate) async fn show_run(
    at: OrgCaller,
    In(id): In<RunId>,
    State(state): State<HttpState>,
) -> Result<Json<RunView>, Problem> {
    Ok(Json(state.app.show_run(&at.caller, at.org, id).await?.into()))
}

/// Shows one step of a run with all that it was given and said.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/runs/{run}/steps/{step}",
    tag = "runs",
    responses((status = 200, body = StepView)),
)]
pub(crate) async fn show_run_step(
    at: OrgCaller,
    In(run): In<RunId>,
    In(step): In<StepId>,
    State(state): State<HttpState>,
) -> Result<Json<StepView>, Problem> {
    Ok(Json(state.app.show_step(&at.caller, at.org, run, step.to_string()).await?.into()))
}

/// Lists what happened in a run, oldest first.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/runs/{run}/events",
    tag = "runs",
    params(PageParams),
    responses((status = 200, body = ListOf<RunEventView>)),
)]
pub(crate) async fn list_run_events(
    at: OrgCaller,
    In(id): In<RunId>,
    State(state): State<HttpState>,
    paging: Paging<NoFilter>,
) -> Result<Json<ListOf<RunEventView>>, Problem> {
    let after = paging.after_number()?.unwrap_or(0);
    let events = state.app.list_run_events(&at.caller, at.org, id, after, paging.limit + 1).await?;
    Ok(Json(paging.answer_by_number(events, |event| event.seq, RunEventView::from)))
}

/// Ends a run now. A call in flight is cancelled; what already left cannot be called back.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/runs/{run}/cancel",
    tag = "runs",
    responses((status = 202, body = StartedView)),
    extensions(("x-bulkhead-problems" = json!(["run-finished"]))),
)]
pub(crate) async fn cancel_run(
    at: OrgCaller,
    In(id): In<RunId>,
    State(state): State<HttpState>,
    _: NoInput,
) -> Result<Response, Problem> {
    state.app.cancel_run(&at.caller, at.org, id).await?;
    Ok(accepted(&at, id))
}

/// Where to begin again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RetryRun)]
pub(crate) struct RetryInput {
    /// The step to begin with; may be left out where one step's failure (or the cancellation at it) ended the run.
    #[serde(default)]
    pub(crate) from_step: Option<String>,
    /// Makes effects again that may have happened already: steps get new idempotency keys.
    #[serde(default)]
    pub(crate) new_generation: bool,
}

/// Begins an ended run again from a step; what came before it is kept.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/runs/{run}/retry",
    tag = "runs",
    request_body = RetryInput,
    responses((status = 202, body = StartedView)),
    extensions(("x-bulkhead-problems" = json!([
        "run-not-finished", "run-history-full", "unknown-step", "quota-exceeded", "too-many-starts", "too-many-waiting", "runs-per-minute"
    ]))),
)]
pub(crate) async fn retry_run(
    at: OrgCaller,
    In(id): In<RunId>,
    State(state): State<HttpState>,
    Input(input): Input<RetryInput>,
) -> Result<Response, Problem> {
    let retry = RetryRun { from_step: input.from_step, new_generation: input.new_generation };
    state.app.retry_run(&at.caller, at.org, id, retry).await?;
    Ok(accepted(&at, id))
}
