//! Workflows: saved as versions, activated, deactivated; and the addresses of their webhook triggers.

use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::response::{IntoResponse, Response};
use bulkhead_app::AppError;
use bulkhead_app::data::{Workflow, WorkflowVersion, WorkflowVersionSummary};
use bulkhead_app::workflow::{HOOK_GRACE_DEFAULT, HookAddress, SaveWorkflow, WorkflowDetail};
use bulkhead_model::id::WorkflowId;
use bulkhead_model::time::Timestamp;
use bulkhead_model::workflow::{Note, NoteKind, TriggerId};
use http::request::Parts;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::{OrgCaller, path_param};
use crate::breaker::BreakerView;
use crate::extract::{IfMatch, In, Input, NoInput, etag};
use crate::page::{ListOf, NoFilter, PageParams, Paging};
use crate::problem::Problem;
use crate::schedule::{PreviewView, UpcomingView};
use crate::view::{Stored, text};

/// A definition to save.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SaveWorkflow)]
pub(crate) struct SaveWorkflowInput {
    /// The workflow, in the published schema. It is kept byte for byte.
    #[schema(value_type = Object)]
    definition: Box<RawValue>,
    /// What changed, for the list of versions. At most 500 characters.
    #[serde(default, deserialize_with = "text")]
    summary: String,
}

impl From<SaveWorkflowInput> for SaveWorkflow {
    fn from(input: SaveWorkflowInput) -> Self {
        Self { definition: input.definition.get().to_owned(), summary: input.summary }
    }
}

/// A workflow without its definition.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkflowSummary)]
pub(crate) struct WorkflowSummaryView {
    #[schema(value_type = String, example = "wf_01h455vb4pex5vsknk084sn02q")]
    id: WorkflowId,
    name: String,
    /// Whether triggers start runs.
    active: bool,
    /// The version that new runs use.
    version: i64,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl From<Workflow> for WorkflowSummaryView {
    fn from(workflow: Workflow) -> Self {
        Self {
            id: workflow.id,
            name: workflow.name,
            active: workflow.active,
            version: workflow.current_version,
            created_at: workflow.created_at,
            updated_at: workflow.updated_at,
        }
    }
}

/// A workflow with one of its versions.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Workflow)]
pub(crate) struct WorkflowView {
    #[serde(flatten)]
    workflow: WorkflowSummaryView,
    #[schema(value_type = Object)]
    definition: Stored,
    /// What the author of this version said about it.
    summary: String,
    /// Addresses of webhook triggers; shown to those who may activate, empty for others.
    hooks: Vec<HookView>,
    /// What the author should know; filled in the answer to a save.
    notes: Vec<NoteView>,
    /// Versions whose new runs wait because so many before them failed alike; empty when all is well.
    breakers: Vec<BreakerView>,
}

/// A webhook trigger's address.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Hook)]
pub(crate) struct HookView {
    /// The trigger's id in the definition.
    trigger: String,
    /// Whoever knows it may start runs.
    url: String,
}

/// A remark about a definition that does not stand in the way of saving it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Note)]
pub(crate) struct NoteView {
    #[schema(value_type = String)]
    kind: NoteKind,
    /// JSON pointer into the definition.
    path: String,
    code: String,
    message: String,
}

/// One saved version.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkflowVersion)]
pub(crate) struct VersionView {
    version: i64,
    summary: String,
    /// Who saved it.
    author: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = Object)]
    definition: Stored,
}

/// One saved version without its definition.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkflowVersionSummary)]
pub(crate) struct VersionSummaryView {
    version: i64,
    summary: String,
    /// Who saved it.
    author: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Bytes of the definition's text.
    definition_bytes: i64,
}

/// The remarks about a definition that was not saved.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Validation)]
pub(crate) struct ValidationView {
    notes: Vec<NoteView>,
    /// When its schedule triggers would fire if the workflow were activated now.
    schedules: Vec<PreviewView>,
}

impl From<Note> for NoteView {
    fn from(note: Note) -> Self {
        Self { kind: note.kind, path: note.path, code: note.code, message: note.message }
    }
}

impl From<WorkflowVersion> for VersionView {
    fn from(version: WorkflowVersion) -> Self {
        Self {
            version: version.version,
            summary: version.summary,
            author: version.author,
            created_at: version.created_at,
            definition: version.definition.into(),
        }
    }
}

impl From<WorkflowVersionSummary> for VersionSummaryView {
    fn from(version: WorkflowVersionSummary) -> Self {
        Self {
            version: version.version,
            summary: version.summary,
            author: version.author,
            created_at: version.created_at,
            definition_bytes: version.definition_bytes,
        }
    }
}

fn hook_view(state: &HttpState, hook: HookAddress) -> HookView {
    HookView { trigger: hook.trigger, url: format!("{}/hooks/{}", state.config.public_url, hook.token) }
}

fn detail_view(state: &HttpState, detail: WorkflowDetail) -> WorkflowView {
    WorkflowView {
        workflow: detail.workflow.into(),
        definition: detail.version.definition.into(),
        summary: detail.version.summary,
        hooks: detail.hooks.into_iter().map(|hook| hook_view(state, hook)).collect(),
        notes: detail.notes.into_iter().map(NoteView::from).collect(),
        breakers: detail.breakers.into_iter().filter_map(BreakerView::of).collect(),
    }
}

/// Saves a new workflow, inactive, as version 1.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/workflows",
    tag = "workflows",
    request_body = SaveWorkflowInput,
    responses((status = 201, body = WorkflowView, headers(("etag" = String)))),
    extensions(("x-bulkhead-problems" = json!(["invalid-workflow", "invalid-summary", "workflow-exists"]))),
)]
pub(crate) async fn create_workflow(
    at: OrgCaller,
    State(state): State<HttpState>,
    Input(input): Input<SaveWorkflowInput>,
) -> Result<Response, Problem> {
    let detail = state.app.create_workflow(&at.caller, at.org, input.into()).await?;
    let headers =
        [(header::ETAG, etag(detail.workflow.revision)), (header::LOCATION, location(&at, detail.workflow.id))];
    Ok((StatusCode::CREATED, headers, Json(detail_view(&state, detail))).into_response())
}

fn location(at: &OrgCaller, id: WorkflowId) -> http::HeaderValue {
    http::HeaderValue::from_str(&format!("/api/v1/orgs/{}/workflows/{id}", at.org)).expect("ids are a header value")
}

/// Lists the workflows, newest first.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/workflows",
    tag = "workflows",
    params(PageParams),
    responses((status = 200, body = ListOf<WorkflowSummaryView>)),
)]
pub(crate) async fn list_workflows(
    at: OrgCaller,
    State(state): State<HttpState>,
    paging: Paging<NoFilter>,
) -> Result<Json<ListOf<WorkflowSummaryView>>, Problem> {
    let page = state.app.list_workflows(&at.caller, at.org, paging.request()?).await?;
    Ok(Json(paging.answer(page, WorkflowSummaryView::from)))
}

/// Checks a definition without saving it.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/workflows/validate",
    tag = "workflows",
    request_body = SaveWorkflowInput,
    responses((status = 200, body = ValidationView)),
    extensions(("x-bulkhead-problems" = json!(["invalid-workflow", "invalid-summary"]))),
)]
pub(crate) async fn validate_workflow(
    at: OrgCaller,
    State(state): State<HttpState>,
    Input(input): Input<SaveWorkflowInput>,
) -> Result<Json<ValidationView>, Problem> {
    let found = state.app.validate_workflow(&at.caller, at.org, input.into()).await?;
    let previews = found.schedules.into_iter().map(|(trigger, next)| PreviewView {
        trigger: trigger.to_string(),
        next: next.into_iter().map(UpcomingView::from).collect(),
    });
    Ok(Json(ValidationView {
        notes: found.notes.into_iter().map(NoteView::from).collect(),
        schedules: previews.collect(),
    }))
}

/// Shows a workflow with its current version.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/workflows/{workflow}",
    tag = "workflows",
    responses((status = 200, body = WorkflowView, headers(("etag" = String)))),
)]
pub(crate) async fn show_workflow(
    at: OrgCaller,
    In(id): In<WorkflowId>,
    State(state): State<HttpState>,
) -> Result<Response, Problem> {
    let detail = state.app.show_workflow(&at.caller, at.org, id, None).await?;
    let tag = [(header::ETAG, etag(detail.workflow.revision))];
    Ok((tag, Json(detail_view(&state, detail))).into_response())
}

/// Saves a new version. Runs under way end on the version that they began with.
#[utoipa::path(
    put,
    path = "/api/v1/orgs/{org}/workflows/{workflow}",
    tag = "workflows",
    params(("if-match" = String, Header, description = "The `etag` that was read last.", example = "\"v7\"")),
    request_body = SaveWorkflowInput,
    responses((status = 200, body = WorkflowView, headers(("etag" = String)))),
    extensions(("x-bulkhead-problems" = json!(["invalid-workflow", "invalid-summary", "workflow-exists"]))),
)]
pub(crate) async fn update_workflow(
    at: OrgCaller,
    In(id): In<WorkflowId>,
    seen: IfMatch<WorkflowId>,
    State(state): State<HttpState>,
    Input(input): Input<SaveWorkflowInput>,
) -> Result<Response, Problem> {
    let detail = state.app.update_workflow(&at.caller, at.org, id, seen.version, input.into()).await?;
    let tag = [(header::ETAG, etag(detail.workflow.revision))];
    Ok((tag, Json(detail_view(&state, detail))).into_response())
}

/// Lists the versions of a workflow, newest first.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/workflows/{workflow}/versions",
    tag = "workflows",
    params(PageParams),
    responses((status = 200, body = ListOf<VersionSummaryView>)),
)]
pub(crate) async fn list_workflow_versions(
    at: OrgCaller,
    In(id): In<WorkflowId>,
    State(state): State<HttpState>,
    paging: Paging<NoFilter>,
) -> Result<Json<ListOf<VersionSummaryView>>, Problem> {
    let before = paging.after_number()?;
    let versions = state.app.list_workflow_versions(&at.caller, at.org, id, before, paging.limit + 1).await?;
    Ok(Json(paging.answer_by_number(versions, |version| version.version, VersionSummaryView::from)))
}

/// A version's number in the path.
pub(crate) struct VersionNumber(i64);

impl FromRequestParts<HttpState> for VersionNumber {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, Problem> {
        let text = path_param(parts, state, "version").await?;
        let number = text.parse().ok().filter(|number: &i64| *number > 0 && number.to_string() == text);
        number.map(Self).ok_or_else(|| AppError::NotFound { what: "workflow version" }.into())
    }
}

/// Shows one version of a workflow.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/workflows/{workflow}/versions/{version}",
    tag = "workflows",
    responses((status = 200, body = VersionView)),
)]
pub(crate) async fn show_workflow_version(
    at: OrgCaller,
    In(id): In<WorkflowId>,
    VersionNumber(number): VersionNumber,
    State(state): State<HttpState>,
) -> Result<Json<VersionView>, Problem> {
    let detail = state.app.show_workflow(&at.caller, at.org, id, Some(number)).await?;
    Ok(Json(detail.version.into()))
}

/// Lets triggers start runs. Doing it twice is no error.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/workflows/{workflow}/activate",
    tag = "workflows",
    responses((status = 200, body = WorkflowSummaryView, headers(("etag" = String)))),
    extensions(("x-bulkhead-problems" = json!(["invalid-workflow", "stale-version", "quota-exceeded"]))),
)]
pub(crate) async fn activate_workflow(
    at: OrgCaller,
    In(id): In<WorkflowId>,
    State(state): State<HttpState>,
    _: NoInput,
) -> Result<Response, Problem> {
    set_active(&at, id, &state, true).await
}

/// Stops triggers from starting runs; runs under way go on. Doing it twice is no error.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/workflows/{workflow}/deactivate",
    tag = "workflows",
    responses((status = 200, body = WorkflowSummaryView, headers(("etag" = String)))),
    extensions(("x-bulkhead-problems" = json!(["stale-version"]))),
)]
pub(crate) async fn deactivate_workflow(
    at: OrgCaller,
    In(id): In<WorkflowId>,
    State(state): State<HttpState>,
    _: NoInput,
) -> Result<Response, Problem> {
    set_active(&at, id, &state, false).await
}

async fn set_active(at: &OrgCaller, id: WorkflowId, state: &HttpState, active: bool) -> Result<Response, Problem> {
    let workflow = state.app.set_workflow_active(&at.caller, at.org, id, active).await?;
    Ok(([(header::ETAG, etag(workflow.revision))], Json(WorkflowSummaryView::from(workflow))).into_response())
}

/// How to rotate an address.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RotateHook)]
pub(crate) struct RotateInput {
    /// Seconds for which the old address still works, at most 2592000 (30 days); 86400 when left out, 0 for a leaked one.
    #[serde(default)]
    grace_s: Option<u64>,
}

/// Gives a webhook trigger a new address.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/workflows/{workflow}/hooks/{trigger}/rotate",
    tag = "workflows",
    request_body = RotateInput,
    responses((status = 200, body = HookView)),
    extensions(("x-bulkhead-problems" = json!(["invalid-grace"]))),
)]
pub(crate) async fn rotate_hook(
    at: OrgCaller,
    In(id): In<WorkflowId>,
    In(trigger): In<TriggerId>,
    State(state): State<HttpState>,
    Input(input): Input<RotateInput>,
) -> Result<Json<HookView>, Problem> {
    let grace = input.grace_s.map_or(HOOK_GRACE_DEFAULT, Duration::from_secs);
    let hook = state.app.rotate_hook(&at.caller, at.org, id, trigger.to_string(), grace).await?;
    Ok(Json(hook_view(&state, hook)))
}
