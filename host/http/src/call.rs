//! Calls of plugins: made by hand, listed, shown.

mod schema;

use axum::Json;
use axum::extract::State;
use bulkhead_app::data::{Call, CallSummary};
use bulkhead_model::call::{CallError, EgressRecord, LogLine, Outcome, Refusal};
use bulkhead_model::grant::GrantVersion;
use bulkhead_model::id::{CallId, InstallationId, PluginId, RunId};
use bulkhead_model::limits::{Limits, Usage};
use bulkhead_model::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use self::schema::{CallErrorSchema, EgressSchema, LimitsSchema, LogLineSchema, RefusalSchema, UsageSchema};
use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::{In, Input};
use crate::page::{ListOf, PageParams, Paging};
use crate::problem::Problem;
use crate::view::{Stored, line};

/// What to call, and with what.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewCall)]
pub(crate) struct NewCallInput {
    /// The name of one of the plugin's actions, channels or factors.
    #[serde(deserialize_with = "line")]
    contribution: String,
    /// As the contribution's input schema wants it.
    #[serde(default)]
    input: Value,
}

/// Everything that is recorded of a call.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Call)]
pub(crate) struct CallView {
    #[schema(value_type = String, example = "call_01h455vb4pex5vsknk084sn02q")]
    id: CallId,
    #[schema(value_type = String)]
    installation: InstallationId,
    #[schema(value_type = String)]
    plugin: PluginId,
    contribution: String,
    /// The run and the step that made it; null for a call by hand.
    #[schema(value_type = Option<String>)]
    run: Option<RunId>,
    step: Option<String>,
    /// Counts from 1 within the step.
    attempt: u32,
    /// The installation's version under which it ran.
    #[schema(value_type = i64)]
    grant_version: GrantVersion,
    /// How it ended: `returned`, `plugin_error`, `refused`, `trapped`, `out_of_fuel`, `out_of_memory`, `limit_exceeded`,
    /// `invalid_output`, `deadline_passed`, `revoked`, `cancelled`, `host_fault`.
    #[schema(value_type = String)]
    outcome: Outcome,
    #[schema(value_type = serde_json::Value)]
    input: Stored,
    /// What it returned, or null.
    #[schema(value_type = serde_json::Value)]
    output: Option<Stored>,
    /// Why it returned nothing.
    #[schema(value_type = Option<CallErrorSchema>)]
    error: Option<CallError>,
    #[schema(value_type = UsageSchema)]
    usage: Usage,
    #[schema(value_type = LimitsSchema)]
    limits: Limits,
    #[schema(value_type = Vec<LogLineSchema>)]
    log: Vec<LogLine>,
    /// The plugin wrote more than its limits let it keep.
    log_truncated: bool,
    /// Requests that left, without secrets.
    #[schema(value_type = Vec<EgressSchema>)]
    egress: Vec<EgressRecord>,
    /// What it asked the host for without a grant.
    #[schema(value_type = Vec<RefusalSchema>)]
    refusals: Vec<Refusal>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<Call> for CallView {
    fn from(call: Call) -> Self {
        let report = call.report;
        Self {
            id: call.id,
            installation: call.installation,
            plugin: call.plugin,
            contribution: call.contribution,
            run: call.run,
            step: call.step,
            attempt: call.attempt,
            grant_version: call.grant_version,
            outcome: report.outcome,
            input: call.input.into(),
            output: report.output.map(Stored::from),
            error: report.error,
            usage: report.usage,
            limits: report.limits,
            log: report.log,
            log_truncated: report.log_truncated,
            egress: report.egress,
            refusals: report.refusals,
            created_at: call.created_at,
        }
    }
}

/// A call in a list.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CallSummary)]
pub(crate) struct CallSummaryView {
    #[schema(value_type = String)]
    id: CallId,
    #[schema(value_type = String)]
    installation: InstallationId,
    #[schema(value_type = Option<String>)]
    run: Option<RunId>,
    step: Option<String>,
    contribution: String,
    #[schema(value_type = String)]
    outcome: Outcome,
    #[schema(value_type = UsageSchema)]
    usage: Usage,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<CallSummary> for CallSummaryView {
    fn from(call: CallSummary) -> Self {
        let CallSummary { id, installation, run, step, contribution, outcome, usage, created_at } = call;
        Self { id, installation, run, step, contribution, outcome, usage, created_at }
    }
}

/// Makes one call and answers how it ended.
///
/// However the plugin ends, the answer is 200 and `outcome` says how; problems are about the request. The call is recorded even
/// when the client goes away.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/installations/{installation}/calls",
    tag = "calls",
    request_body = NewCallInput,
    responses((status = 200, body = CallView)),
    extensions(("x-bulkhead-problems" = json!([
        "invalid-call", "installation-disabled", "plugin-unusable", "busy", "quota-exceeded"
    ]))),
)]
pub(crate) async fn make_call(
    at: OrgCaller,
    In(installation): In<InstallationId>,
    State(state): State<HttpState>,
    Input(input): Input<NewCallInput>,
) -> Result<Json<CallView>, Problem> {
    let call = state.app.call_once(&at.caller, at.org, installation, input.contribution, input.input).await?;
    Ok(Json(call.into()))
}

/// Filters of an installation's calls.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct CallFilter {
    /// Only calls that ended so.
    #[param(value_type = Option<String>)]
    outcome: Option<Outcome>,
}

/// Lists an installation's calls, newest first; also of one that was uninstalled.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/installations/{installation}/calls",
    tag = "calls",
    params(CallFilter, PageParams),
    responses((status = 200, body = ListOf<CallSummaryView>)),
)]
pub(crate) async fn list_calls(
    at: OrgCaller,
    In(installation): In<InstallationId>,
    State(state): State<HttpState>,
    paging: Paging<CallFilter>,
) -> Result<Json<ListOf<CallSummaryView>>, Problem> {
    let outcome = paging.filter.outcome;
    let page = state.app.list_calls(&at.caller, at.org, installation, outcome, paging.request()?).await?;
    Ok(Json(paging.answer(page, CallSummaryView::from)))
}

/// Shows everything that was recorded of a call.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/calls/{call}",
    tag = "calls",
    responses((status = 200, body = CallView)),
)]
pub(crate) async fn show_call(
    at: OrgCaller,
    In(id): In<CallId>,
    State(state): State<HttpState>,
) -> Result<Json<CallView>, Problem> {
    Ok(Json(state.app.get_call(&at.caller, at.org, id).await?.into()))
}
