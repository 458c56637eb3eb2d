//! How long what has ended is kept.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bulkhead_app::data::Pass;
use bulkhead_app::retention::{PREVIEW_MAX, Removable, RetentionDetail};
use bulkhead_model::retention::{KEY_KEPT, RetentionPolicy};
use bulkhead_model::time::Timestamp;
use http::header;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::{IfMatch, Input, Tagged, etag};
use crate::problem::Problem;

/// For how many days after its end each is kept: 1 to 3650.
#[expect(clippy::struct_field_names, reason = "the names are those of the document's fields")]
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RetentionPolicy)]
pub(crate) struct PolicyView {
    /// Runs that succeeded or were cancelled, with their steps, their log and their calls.
    #[schema(minimum = 1, maximum = 3650)]
    succeeded_days: u32,
    /// Runs that failed.
    #[schema(minimum = 1, maximum = 3650)]
    failed_days: u32,
    /// Failed runs that wait on the list of dead letters; null: until somebody has seen to them.
    #[schema(minimum = 1, maximum = 3650)]
    dead_letter_days: Option<u32>,
    /// Calls that were made by hand.
    #[schema(minimum = 1, maximum = 3650)]
    calls_days: u32,
    /// Events.
    #[schema(minimum = 1, maximum = 3650)]
    events_days: u32,
}

impl From<RetentionPolicy> for PolicyView {
    fn from(policy: RetentionPolicy) -> Self {
        let RetentionPolicy { succeeded_days, failed_days, dead_letter_days, calls_days, events_days } = policy;
        Self { succeeded_days, failed_days, dead_letter_days, calls_days, events_days }
    }
}

impl From<PolicyView> for RetentionPolicy {
    fn from(view: PolicyView) -> Self {
        let PolicyView { succeeded_days, failed_days, dead_letter_days, calls_days, events_days } = view;
        Self { succeeded_days, failed_days, dead_letter_days, calls_days, events_days }
    }
}

impl Tagged for PolicyView {
    const WHAT: &'static str = "retention policy";
}

/// The last pass that removed something.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RetentionPass)]
pub(crate) struct PassView {
    #[schema(value_type = String, format = DateTime)]
    began_at: Timestamp,
    /// Null while it goes on.
    #[schema(value_type = Option<String>, format = DateTime)]
    ended_at: Option<Timestamp>,
    runs: i64,
    /// Calls that were made by hand; those of runs go with their runs.
    calls: i64,
    events: i64,
    /// What the runs and calls took up.
    bytes: i64,
    /// Runs and calls among them that went before their time, oldest first, since the quota of the history was used up.
    evicted: i64,
}

impl From<Pass> for PassView {
    fn from(pass: Pass) -> Self {
        let Pass { began_at, ended_at, runs, calls, events, bytes, evicted } = pass;
        Self { began_at, ended_at, runs, calls, events, bytes, evicted }
    }
}

/// An organization's policy, and what came of it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Retention)]
pub(crate) struct RetentionView {
    policy: PolicyView,
    /// Whether it is the platform's default, which nobody has changed.
    is_default: bool,
    /// A key that makes a start safe to repeat is remembered as long as its run, and at least for so many days after the start.
    idempotency_key_days: u64,
    /// When what has ended was last looked through.
    #[schema(value_type = Option<String>, format = DateTime)]
    looked_at: Option<Timestamp>,
    last_pass: Option<PassView>,
}

/// What a policy would remove now. Each count ends at 10000, which means "or more".
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RetentionPreview)]
pub(crate) struct RemovableView {
    succeeded_runs: i64,
    cancelled_runs: i64,
    /// Dead letters included, where the policy names a time for them.
    failed_runs: i64,
    calls: i64,
    events: i64,
    /// What the counted runs and calls take up.
    bytes: i64,
    /// Whether a count ended at 10000.
    is_at_least: bool,
}

impl From<Removable> for RemovableView {
    fn from(removable: Removable) -> Self {
        let Removable { succeeded, cancelled, failed, calls, events, bytes } = removable;
        let is_at_least =
            [succeeded, cancelled, failed, calls, events].iter().any(|count| *count >= i64::from(PREVIEW_MAX));
        Self {
            succeeded_runs: succeeded,
            cancelled_runs: cancelled,
            failed_runs: failed,
            calls,
            events,
            bytes,
            is_at_least,
        }
    }
}

fn tagged(detail: RetentionDetail) -> Response {
    let RetentionDetail { policy, revision, history } = detail;
    let view = RetentionView {
        policy: policy.into(),
        is_default: revision == 0,
        idempotency_key_days: KEY_KEPT.as_secs() / (24 * 60 * 60),
        looked_at: history.as_ref().map(|history| history.looked_at),
        last_pass: history.and_then(|history| history.pass).map(PassView::from),
    };
    ([(header::ETAG, etag(revision))], Json(view)).into_response()
}

/// Shows how long what has ended is kept, and what was last removed.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/retention",
    tag = "organizations",
    responses((status = 200, body = RetentionView, headers(("etag" = String)))),
)]
pub(crate) async fn show_retention(at: OrgCaller, State(state): State<HttpState>) -> Result<Response, Problem> {
    Ok(tagged(state.app.show_retention(&at.caller, at.org).await?))
}

/// Replaces the policy as a whole. What is not to be kept any longer is removed soon after, in small steps, and is gone for good.
#[utoipa::path(
    put,
    path = "/api/v1/orgs/{org}/retention",
    tag = "organizations",
    params(("if-match" = String, Header, description = "The `etag` that was read last.", example = "\"v7\"")),
    request_body = PolicyView,
    responses((status = 200, body = RetentionView, headers(("etag" = String)))),
    extensions(("x-bulkhead-problems" = json!(["invalid-retention"]))),
)]
pub(crate) async fn replace_retention(
    at: OrgCaller,
    seen: IfMatch<PolicyView>,
    State(state): State<HttpState>,
    Input(policy): Input<PolicyView>,
) -> Result<Response, Problem> {
    Ok(tagged(state.app.replace_retention(&at.caller, at.org, seen.version, policy.into()).await?))
}

/// Counts what a policy would remove if it were in force now, and changes nothing.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/retention/preview",
    tag = "organizations",
    request_body = PolicyView,
    responses((status = 200, body = RemovableView)),
    extensions(("x-bulkhead-problems" = json!(["invalid-retention"]))),
)]
pub(crate) async fn preview_retention(
    at: OrgCaller,
    State(state): State<HttpState>,
    Input(policy): Input<PolicyView>,
) -> Result<Json<RemovableView>, Problem> {
    Ok(Json(state.app.preview_retention(&at.caller, at.org, policy.into()).await?.into()))
}
