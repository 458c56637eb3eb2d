//! Dead letters: faults with what they affect, their entries, and what is decided about one or many.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bulkhead_app::data::{DeadLetter, DeadLetterAction, DeadLetterFilter, DeadLetterTask, FAULT_COUNT_MAX, TaskState};
use bulkhead_app::dead_letter::{Fault, Selection};
use bulkhead_app::run::RetryRun;
use bulkhead_model::fault::Fingerprint;
use bulkhead_model::id::{DeadLetterId, DeadLetterTaskId, JobId, RunId, WorkflowId};
use bulkhead_model::time::Timestamp;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::{In, Input, NoInput};
use crate::page::{ListOf, NoFilter, PageParams, Paging};
use crate::problem::Problem;
use crate::run::RetryInput;
use crate::view::{self, Stored};

/// Something that went wrong for good and waits for a decision.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeadLetter)]
pub(crate) struct DeadLetterView {
    #[schema(value_type = String, example = "dl_01h455vb4pex5vsknk084sn02q")]
    id: DeadLetterId,
    /// The same for every entry of one fault, whatever ids and numbers its message holds.
    #[schema(value_type = String, example = "9f3c1a2b4d5e6f70")]
    fingerprint: Fingerprint,
    /// `run` for a failed run; else the kind of the job that was given up or cannot do its work (`fire_schedule`, …).
    kind: String,
    #[schema(value_type = Option<String>)]
    workflow: Option<WorkflowId>,
    #[schema(value_type = Option<String>)]
    run: Option<RunId>,
    /// The job that was given up with it.
    #[schema(value_type = Option<String>)]
    job: Option<JobId>,
    /// The step at which the run failed; of a schedule its trigger.
    step: Option<String>,
    /// The error's stable code.
    code: String,
    message: String,
    /// How often it went wrong since the entry was made …
    times: i64,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// … and when last.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl From<DeadLetter> for DeadLetterView {
    fn from(letter: DeadLetter) -> Self {
        let new = letter.new;
        Self {
            id: letter.id,
            fingerprint: new.fingerprint,
            kind: new.kind,
            workflow: new.workflow,
            run: new.run,
            job: new.job,
            step: new.step,
            code: new.code,
            message: new.message,
            times: letter.times,
            created_at: letter.created_at,
            updated_at: letter.updated_at,
        }
    }
}

/// The entries of one fault.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Fault)]
pub(crate) struct FaultView {
    #[schema(value_type = String, example = "9f3c1a2b4d5e6f70")]
    fingerprint: Fingerprint,
    kind: String,
    code: String,
    step: Option<String>,
    /// Of the newest entry.
    message: String,
    /// Entries, counted up to 1000.
    #[schema(maximum = 1000)]
    count: i64,
    /// Whether there are more than were counted.
    more: bool,
    #[schema(value_type = String, format = DateTime)]
    first_seen_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    last_seen_at: Timestamp,
    /// Workflows of its newest entries, at most twenty.
    #[schema(value_type = Vec<String>)]
    workflows: Vec<WorkflowId>,
}

impl From<Fault> for FaultView {
    fn from(fault: Fault) -> Self {
        let (newest, count) = (fault.group.newest, fault.group.count);
        Self {
            fingerprint: newest.new.fingerprint,
            kind: newest.new.kind,
            code: newest.new.code,
            step: newest.new.step,
            message: newest.new.message,
            count: count.min(FAULT_COUNT_MAX),
            more: count > FAULT_COUNT_MAX,
            first_seen_at: fault.group.first_seen_at,
            last_seen_at: newest.updated_at,
            workflows: fault.workflows,
        }
    }
}

/// Lists what goes wrong, by fault. Pages follow the fingerprints, so that none is missed or shown twice while more goes wrong; within
/// a page the fault that was seen last comes first.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/faults",
    tag = "dead letters",
    params(PageParams),
    responses((status = 200, body = ListOf<FaultView>)),
)]
pub(crate) async fn list_faults(
    at: OrgCaller,
    State(state): State<HttpState>,
    paging: Paging<NoFilter>,
) -> Result<Json<ListOf<FaultView>>, Problem> {
    let after = paging.after_number()?.map(Fingerprint::from_number);
    let faults = state.app.list_faults(&at.caller, at.org, after, paging.limit + 1).await?;
    let number = |fault: &Fault| fault.group.newest.new.fingerprint.to_number();
    let mut list = paging.answer_by_number(faults, number, FaultView::from);
    list.items.sort_by_key(|fault| std::cmp::Reverse(fault.last_seen_at));
    Ok(Json(list))
}

/// Filters of the dead letters.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LetterFilter {
    /// Only entries of this fault.
    #[param(value_type = Option<String>)]
    fingerprint: Option<Fingerprint>,
    /// Only entries of this workflow.
    #[param(value_type = Option<String>)]
    workflow: Option<WorkflowId>,
    /// Only entries of this kind: `run`, `fire_schedule`, …
    kind: Option<String>,
    /// Only entries made at this moment or later (to the millisecond) …
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// … and before this one.
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
}

/// Lists dead letters, newest first.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/dead-letters",
    tag = "dead letters",
    params(LetterFilter, PageParams),
    responses((status = 200, body = ListOf<DeadLetterView>)),
)]
pub(crate) async fn list_dead_letters(
    at: OrgCaller,
    State(state): State<HttpState>,
    paging: Paging<LetterFilter>,
) -> Result<Json<ListOf<DeadLetterView>>, Problem> {
    let LetterFilter { fingerprint, workflow, kind, since, until } = &paging.filter;
    let filter = DeadLetterFilter {
        fingerprint: fingerprint.clone(),
        workflow: *workflow,
        kind: kind.clone(),
        since: *since,
        until: *until,
    };
    let page = state.app.list_dead_letters(&at.caller, at.org, filter, paging.request()?).await?;
    Ok(Json(paging.answer(page, DeadLetterView::from)))
}

/// Shows a dead letter.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/dead-letters/{dead_letter}",
    tag = "dead letters",
    responses((status = 200, body = DeadLetterView)),
)]
pub(crate) async fn show_dead_letter(
    at: OrgCaller,
    In(id): In<DeadLetterId>,
    State(state): State<HttpState>,
) -> Result<Json<DeadLetterView>, Problem> {
    Ok(Json(state.app.show_dead_letter(&at.caller, at.org, id).await?.into()))
}

/// Resumes one: a failed run begins again, a job that was given up is ready again. It leaves the list.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/dead-letters/{dead_letter}/resume",
    tag = "dead letters",
    request_body = RetryInput,
    responses((status = 204)),
    extensions(("x-bulkhead-problems" = json!([
        "run-not-finished", "run-history-full", "unknown-step", "quota-exceeded", "too-many-starts", "too-many-waiting", "runs-per-minute"
    ]))),
)]
pub(crate) async fn resume_dead_letter(
    at: OrgCaller,
    In(id): In<DeadLetterId>,
    State(state): State<HttpState>,
    Input(input): Input<RetryInput>,
) -> Result<StatusCode, Problem> {
    let retry = RetryRun { from_step: input.from_step, new_generation: input.new_generation };
    state.app.resume_dead_letter(&at.caller, at.org, id, retry).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Why something is taken off the list.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DiscardDeadLetter)]
pub(crate) struct DiscardInput {
    /// 1 to 500 characters, for those who ask later.
    #[serde(deserialize_with = "view::line")]
    reason: String,
}

/// Takes one off the list for good. A failed run stays failed and tells why in its log.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/dead-letters/{dead_letter}/discard",
    tag = "dead letters",
    request_body = DiscardInput,
    responses((status = 204)),
    extensions(("x-bulkhead-problems" = json!(["invalid-reason"]))),
)]
pub(crate) async fn discard_dead_letter(
    at: OrgCaller,
    In(id): In<DeadLetterId>,
    State(state): State<HttpState>,
    Input(input): Input<DiscardInput>,
) -> Result<StatusCode, Problem> {
    state.app.discard_dead_letter(&at.caller, at.org, id, input.reason).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What becomes of them.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = DeadLetterAction)]
pub(crate) enum ActionInput {
    Resume,
    Discard,
}

/// Which dead letters, and what becomes of them: either `ids`, or at least one of the filters.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = StartDeadLetterTask)]
pub(crate) struct TaskInput {
    action: ActionInput,
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    fingerprint: Option<Fingerprint>,
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    workflow: Option<WorkflowId>,
    /// `run`, `fire_schedule`, …
    #[serde(default, deserialize_with = "view::line_or_none")]
    kind: Option<String>,
    /// Made at this moment or later …
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// … and before this one.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// These and no others; at most 1000.
    #[serde(default)]
    #[schema(value_type = Vec<String>, max_items = 1000)]
    ids: Vec<DeadLetterId>,
    /// For `resume`: the step to begin with; left out, each run begins with the step whose failure ended it.
    #[serde(default, deserialize_with = "view::line_or_none")]
    from_step: Option<String>,
    /// For `resume`: makes effects again that may have happened already: steps get new idempotency keys.
    #[serde(default)]
    new_generation: bool,
    /// For `discard`, which needs it: 1 to 500 characters.
    #[serde(default, deserialize_with = "view::line_or_none")]
    reason: Option<String>,
}

/// The resuming or discarding of many dead letters, and how far it has come.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeadLetterTask)]
pub(crate) struct TaskView {
    #[schema(value_type = String, example = "dlt_01h455vb4pex5vsknk084sn02q")]
    id: DeadLetterTaskId,
    /// `resume`, `discard`.
    action: &'static str,
    /// What it was asked for.
    #[schema(value_type = Object)]
    selection: Stored,
    /// Who asked for it.
    asked_by: String,
    /// `running`, `done`, `stopped`.
    state: &'static str,
    /// Entries looked at …
    seen: i64,
    /// … of them resumed or discarded …
    done: i64,
    /// … and of them left on the list, or decided by somebody else before.
    skipped: i64,
    /// Why the last of those was left.
    skipped_why: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    finished_at: Option<Timestamp>,
}

impl From<DeadLetterTask> for TaskView {
    fn from(task: DeadLetterTask) -> Self {
        Self {
            id: task.id,
            action: task.action.as_str(),
            selection: task.request.into(),
            asked_by: task.actor,
            state: TaskState::as_str(task.state),
            seen: task.seen,
            done: task.done,
            skipped: task.skipped,
            skipped_why: task.skipped_why,
            created_at: task.created_at,
            updated_at: task.updated_at,
            finished_at: task.finished_at,
        }
    }
}

/// Resumes or discards many, in the background. What goes wrong after this is not touched.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/dead-letter-tasks",
    tag = "dead letters",
    request_body = TaskInput,
    responses((status = 202, body = TaskView)),
    extensions(("x-bulkhead-problems" = json!(["invalid-selection", "invalid-reason", "too-many-tasks"]))),
)]
pub(crate) async fn start_dead_letter_task(
    at: OrgCaller,
    State(state): State<HttpState>,
    Input(input): Input<TaskInput>,
) -> Result<Response, Problem> {
    let action = match input.action {
        ActionInput::Resume => DeadLetterAction::Resume,
        ActionInput::Discard => DeadLetterAction::Discard,
    };
    let selection = Selection {
        fingerprint: input.fingerprint,
        workflow: input.workflow,
        kind: input.kind,
        since: input.since,
        until: input.until,
        ids: input.ids,
        from_step: input.from_step,
        new_generation: input.new_generation,
        reason: input.reason,
    };
    let task = state.app.start_dead_letter_task(&at.caller, at.org, action, selection).await?;
    let location = format!("/api/v1/orgs/{}/dead-letter-tasks/{}", at.org, task.id);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(TaskView::from(task))).into_response())
}

/// Lists tasks, newest first.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/dead-letter-tasks",
    tag = "dead letters",
    params(PageParams),
    responses((status = 200, body = ListOf<TaskView>)),
)]
pub(crate) async fn list_dead_letter_tasks(
    at: OrgCaller,
    State(state): State<HttpState>,
    paging: Paging<NoFilter>,
) -> Result<Json<ListOf<TaskView>>, Problem> {
    let page = state.app.list_dead_letter_tasks(&at.caller, at.org, paging.request()?).await?;
    Ok(Json(paging.answer(page, TaskView::from)))
}

/// Shows a task and how far it has come.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/dead-letter-tasks/{task}",
    tag = "dead letters",
    responses((status = 200, body = TaskView)),
)]
pub(crate) async fn show_dead_letter_task(
    at: OrgCaller,
    In(id): In<DeadLetterTaskId>,
    State(state): State<HttpState>,
) -> Result<Json<TaskView>, Problem> {
    Ok(Json(state.app.show_dead_letter_task(&at.caller, at.org, id).await?.into()))
}

/// Stops a task after the batch that it is at. What it did stays done.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/dead-letter-tasks/{task}/stop",
    tag = "dead letters",
    responses((status = 200, body = TaskView)),
    extensions(("x-bulkhead-problems" = json!(["task-finished"]))),
)]
pub(crate) async fn stop_dead_letter_task(
    at: OrgCaller,
    In(id): In<DeadLetterTaskId>,
    State(state): State<HttpState>,
    _: NoInput,
) -> Result<Json<TaskView>, Problem> {
    Ok(Json(state.app.stop_dead_letter_task(&at.caller, at.org, id).await?.into()))
}
