//! The audit log.

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bulkhead_app::AppError;
use bulkhead_app::audit_log::{AuditKey, AuditRetentionDetail, ErasedAudit, ErasureOf};
use bulkhead_app::data::{AuditCategory, AuditEntry, AuditFilter, AuditSeverity, PayloadRetention};
use bulkhead_model::id::AuditId;
use bulkhead_model::time::Timestamp;
use futures_util::{Stream, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::HttpState;
use crate::access::{OrgCaller, path_param};
use crate::extract::{IfMatch, Input, NoInput, Tagged, etag};
use crate::page::{ListOf, PageParams, Paging, QueryOf};
use crate::problem::Problem;
use crate::view::line_or_none;

/// Who did what to whom.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditEntry)]
pub(crate) struct AuditView {
    #[schema(value_type = String)]
    id: AuditId,
    /// Its number in the log; null while it waits for its place, some seconds. One that stays null was not written by the host:
    /// `bulkhead audit verify-database` names it.
    seq: Option<u64>,
    /// `plugin.uploaded`, `grants.changed`, …
    action: String,
    /// The id of what was acted on.
    target: String,
    /// A key's id, or `system:` and the reason.
    actor: String,
    /// The id of the request that it was written in (`x-request-id` of its answer, `correlation_id` in the server's log); null for what the host
    /// did by itself.
    correlation_id: Option<String>,
    /// Before and after, digests, reasons; depends on the action. Of more than 64 KiB, large parts are said by `bytes` and `sha256`. Null
    /// once it was disposed of.
    detail: Value,
    /// The number of the entry that says under what the detail was disposed of; null while it is kept.
    disposed_by: Option<u64>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<AuditEntry> for AuditView {
    fn from(entry: AuditEntry) -> Self {
        let AuditEntry { id, seq, action, target, actor, correlation, detail, created_at, disposed_by } = entry;
        Self { id, seq, action, target, actor, correlation_id: correlation, detail, disposed_by, created_at }
    }
}

/// Filters of the audit log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditFilterParams {
    /// Only this action.
    #[serde(default, deserialize_with = "line_or_none")]
    #[param(required = false)]
    action: Option<String>,
    /// Only what was done to this id.
    #[serde(default, deserialize_with = "line_or_none")]
    #[param(required = false)]
    target: Option<String>,
    /// Only what this actor did, as entries show it.
    #[serde(default, deserialize_with = "line_or_none")]
    #[param(required = false)]
    actor: Option<String>,
    /// Only what this request did.
    #[serde(default, deserialize_with = "line_or_none")]
    #[param(required = false)]
    correlation_id: Option<String>,
    /// Only this category: `authentication`, `authorization`, `data_access`, `api`, `configuration`, `security`, `compliance`, `system`.
    #[serde(default)]
    #[param(required = false, value_type = String)]
    category: Option<AuditCategory>,
    /// Only this severity: `info`, `notice`, `warning`, `error`, `critical`.
    #[serde(default)]
    #[param(required = false, value_type = String)]
    severity: Option<AuditSeverity>,
    /// Only from this moment on, to the millisecond.
    #[serde(default)]
    #[param(required = false, value_type = String, format = DateTime)]
    from: Option<Timestamp>,
    /// Only from before this moment.
    #[serde(default)]
    #[param(required = false, value_type = String, format = DateTime)]
    to: Option<Timestamp>,
}

impl AuditFilterParams {
    fn filter(&self) -> AuditFilter {
        let Self { action, target, actor, correlation_id, category, severity, from, to } = self;
        AuditFilter {
            action: action.clone(),
            target: target.clone(),
            actor: actor.clone(),
            correlation: correlation_id.clone(),
            category: *category,
            severity: *severity,
            from: *from,
            to: *to,
        }
    }
}

/// Lists the audit log, newest first.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/audit",
    tag = "audit",
    params(AuditFilterParams, PageParams),
    responses((status = 200, body = ListOf<AuditView>)),
)]
pub(crate) async fn list_audit(
    at: OrgCaller,
    State(state): State<HttpState>,
    paging: Paging<AuditFilterParams>,
) -> Result<Json<ListOf<AuditView>>, Problem> {
    let page = state.app.list_audit(&at.caller, at.org, paging.filter.filter(), paging.request()?).await?;
    Ok(Json(paging.answer(page, AuditView::from)))
}

/// An audit entry's number in the path.
pub(crate) struct EntryNumber(u64);

impl FromRequestParts<HttpState> for EntryNumber {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, Problem> {
        let text = path_param(parts, state, "number").await?;
        let number = text.parse().ok().filter(|number: &u64| number.to_string() == text);
        number.map(Self).ok_or_else(|| AppError::NotFound { what: "audit entry" }.into())
    }
}

/// A file that is written as it is read. Where that fails its end is missing, and a verifier says so.
fn file<F>(name: &str, kind: &'static str, lines: F) -> Response
where
    F: Stream<Item = Result<String, AppError>> + Send + 'static,
{
    let lines = lines.inspect_err(|error| {
        tracing::error!(error = error as &dyn std::error::Error, "a file of audit entries was broken off");
    });
    let disposition = format!("attachment; filename=\"{name}\"");
    let headers = [(header::CONTENT_TYPE, kind.to_owned()), (header::CONTENT_DISPOSITION, disposition)];
    (headers, Body::from_stream(lines)).into_response()
}

const JSON_LINES: &str = "application/jsonl";

/// Exports entries of the audit log as a bundle that proves itself, from a number on.
///
/// At most 5,000 entries or about 16 MiB, up to a checkpoint; the next bundle begins behind the last one's. `bulkhead audit verify`
/// checks it anywhere. The export is itself an entry.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/audit/bundles/{number}",
    tag = "audit",
    responses((status = 200, body = String, content_type = "application/jsonl")),
)]
pub(crate) async fn export_audit(
    at: OrgCaller,
    EntryNumber(first): EntryNumber,
    State(state): State<HttpState>,
) -> Result<Response, Problem> {
    let bundle = state.app.export_audit(&at.caller, at.org, first, None).await?;
    let lines = stream::try_unfold(bundle, |mut bundle| async move {
        Ok::<_, AppError>(bundle.next().await?.map(|lines| (lines, bundle)))
    });
    Ok(file(&format!("audit-{first}.jsonl"), JSON_LINES, lines))
}

/// Exports one entry with its path to a signed checkpoint: a bundle that `bulkhead audit verify` checks anywhere.
///
/// It holds no other entry but those without which it cannot be checked. The export is itself an entry.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/audit/entries/{number}/proof",
    tag = "audit",
    responses((status = 200, body = String, content_type = "application/jsonl")),
)]
pub(crate) async fn prove_audit_entry(
    at: OrgCaller,
    EntryNumber(seq): EntryNumber,
    State(state): State<HttpState>,
) -> Result<Response, Problem> {
    let selection = state.app.prove_audit_entry(&at.caller, at.org, seq).await?;
    let lines = stream::try_unfold(selection, |mut selection| async move {
        Ok::<_, AppError>(selection.next().await?.map(|lines| (lines, selection)))
    });
    Ok(file(&format!("audit-entry-{seq}.jsonl"), JSON_LINES, lines))
}

/// Exports the newest entries that the filters admit, at most 1,000, each with its path to a signed checkpoint.
///
/// `bulkhead audit verify` checks the bundle anywhere. For older ones say `to`. The export is itself an entry.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/audit/selection",
    tag = "audit",
    params(AuditFilterParams),
    responses((status = 200, body = String, content_type = "application/jsonl")),
)]
pub(crate) async fn select_audit(
    at: OrgCaller,
    State(state): State<HttpState>,
    QueryOf(filter): QueryOf<AuditFilterParams>,
) -> Result<Response, Problem> {
    let selection = state.app.select_audit(&at.caller, at.org, filter.filter()).await?;
    let lines = stream::try_unfold(selection, |mut selection| async move {
        Ok::<_, AppError>(selection.next().await?.map(|lines| (lines, selection)))
    });
    Ok(file("audit-selection.jsonl", JSON_LINES, lines))
}

/// Exports the entries that the filters admit as CSV, newest first, at most 100,000.
///
/// No cell is one that a spreadsheet takes for a formula. It is for people and proves nothing: `selection` with the same filters does.
/// The export is itself an entry.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/audit/sheet",
    tag = "audit",
    params(AuditFilterParams),
    responses((status = 200, body = String, content_type = "text/csv")),
)]
pub(crate) async fn sheet_audit(
    at: OrgCaller,
    State(state): State<HttpState>,
    QueryOf(filter): QueryOf<AuditFilterParams>,
) -> Result<Response, Problem> {
    let sheet = state.app.sheet_audit(&at.caller, at.org, filter.filter()).await?;
    let lines = stream::try_unfold(sheet, |mut sheet| async move {
        Ok::<_, AppError>(sheet.next().await?.map(|lines| (lines, sheet)))
    });
    Ok(file("audit.csv", "text/csv; charset=utf-8; header=present", lines))
}

/// Which two sizes of the log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ConsistencyParams {
    /// How many entries the older checkpoint covers.
    #[param(minimum = 1)]
    from: u64,
    /// How many the newer one covers; without it, the newest checkpoint.
    #[serde(default)]
    #[param(required = false, minimum = 1)]
    to: Option<u64>,
}

/// What shows that the log of one size is the beginning of the log of another.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditConsistency)]
pub(crate) struct ConsistencyView {
    from: u64,
    to: u64,
    /// The proof of RFC 9162, 2.1.4: SHA-256 hashes in hexadecimal.
    path: Vec<String>,
    /// The signed checkpoint over `to` entries, where there is one.
    checkpoint: Option<String>,
}

/// Shows that the log over `from` entries is the beginning of the log over `to`.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/audit/consistency",
    tag = "audit",
    params(ConsistencyParams),
    responses((status = 200, body = ConsistencyView)),
    extensions(("x-bulkhead-problems" = json!(["invalid-consistency"]))),
)]
pub(crate) async fn show_audit_consistency(
    at: OrgCaller,
    State(state): State<HttpState>,
    QueryOf(asked): QueryOf<ConsistencyParams>,
) -> Result<Json<ConsistencyView>, Problem> {
    let found = state.app.audit_consistency(&at.caller, at.org, asked.from, asked.to).await?;
    let path = found.path.iter().map(ToString::to_string).collect();
    Ok(Json(ConsistencyView { from: found.from, to: found.to, path, checkpoint: found.checkpoint }))
}

/// A key that signs, or signed, the log.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditKey)]
pub(crate) struct AuditKeyView {
    /// As other tools take it (C2SP `signed-note`).
    verifier_key: String,
    /// The number of the entry that brought it in.
    since: u64,
}

impl From<AuditKey> for AuditKeyView {
    fn from(AuditKey { verifier_key, since }: AuditKey) -> Self {
        Self { verifier_key, since }
    }
}

/// The keys of a log.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditKeys)]
pub(crate) struct AuditKeysView {
    /// The first one first; the last one signs.
    keys: Vec<AuditKeyView>,
}

/// Lists the keys that the audit log has had.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/audit/keys",
    tag = "audit",
    responses((status = 200, body = AuditKeysView)),
)]
pub(crate) async fn list_audit_keys(
    at: OrgCaller,
    State(state): State<HttpState>,
) -> Result<Json<AuditKeysView>, Problem> {
    let keys = state.app.list_audit_keys(&at.caller, at.org).await?;
    Ok(Json(AuditKeysView { keys: keys.into_iter().map(AuditKeyView::from).collect() }))
}

/// Gives the audit log a new key to sign with.
///
/// The entry that says so is signed by both keys. The old one is destroyed; what it signed stays verifiable: a bundle of a range
/// leads from either key to the other, a selection begins at the newest. Give the new one to whoever verifies.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/audit/keys",
    tag = "audit",
    responses((status = 201, body = AuditKeyView)),
    extensions(("x-bulkhead-problems" = json!(["too-many-audit-keys"]))),
)]
pub(crate) async fn rotate_audit_key(
    at: OrgCaller,
    State(state): State<HttpState>,
    _: NoInput,
) -> Result<Response, Problem> {
    let key = state.app.rotate_audit_key(&at.caller, at.org).await?;
    Ok((StatusCode::CREATED, Json(AuditKeyView::from(key))).into_response())
}

/// For how many days after the act the details of entries are kept, by category: 30 to 3650.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AuditRetentionPolicy)]
pub(crate) struct RetentionView {
    #[schema(minimum = 30, maximum = 3650)]
    authentication: u32,
    #[schema(minimum = 30, maximum = 3650)]
    authorization: u32,
    /// Who read and took out what.
    #[schema(minimum = 30, maximum = 3650)]
    data_access: u32,
    #[schema(minimum = 30, maximum = 3650)]
    api: u32,
    #[schema(minimum = 30, maximum = 3650)]
    configuration: u32,
    #[schema(minimum = 30, maximum = 3650)]
    security: u32,
    #[schema(minimum = 30, maximum = 3650)]
    compliance: u32,
    #[schema(minimum = 30, maximum = 3650)]
    system: u32,
}

impl Tagged for RetentionView {
    const WHAT: &'static str = "retention policy of the audit log";
}

impl From<PayloadRetention> for RetentionView {
    fn from(policy: PayloadRetention) -> Self {
        let PayloadRetention {
            authentication,
            authorization,
            data_access,
            api,
            configuration,
            security,
            compliance,
            system,
        } = policy;
        Self { authentication, authorization, data_access, api, configuration, security, compliance, system }
    }
}

impl From<RetentionView> for PayloadRetention {
    fn from(view: RetentionView) -> Self {
        let RetentionView {
            authentication,
            authorization,
            data_access,
            api,
            configuration,
            security,
            compliance,
            system,
        } = view;
        Self { authentication, authorization, data_access, api, configuration, security, compliance, system }
    }
}

fn tagged(detail: &AuditRetentionDetail) -> Response {
    ([(header::ETAG, etag(detail.revision))], Json(RetentionView::from(detail.policy))).into_response()
}

/// Shows for how long the details of audit entries are kept. The entries themselves, and all proofs, are kept for good.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/audit/retention",
    tag = "audit",
    responses((status = 200, body = RetentionView, headers(("etag" = String)))),
)]
pub(crate) async fn show_audit_retention(at: OrgCaller, State(state): State<HttpState>) -> Result<Response, Problem> {
    Ok(tagged(&state.app.show_audit_retention(&at.caller, at.org).await?))
}

/// Replaces the times for the details of audit entries. What is over is disposed of within some minutes, for good, and an entry says so.
#[utoipa::path(
    put,
    path = "/api/v1/orgs/{org}/audit/retention",
    tag = "audit",
    params(("if-match" = String, Header, description = "The `etag` that was read last.", example = "\"v7\"")),
    request_body = RetentionView,
    responses((status = 200, body = RetentionView, headers(("etag" = String)))),
    extensions(("x-bulkhead-problems" = json!(["invalid-retention"]))),
)]
pub(crate) async fn replace_audit_retention(
    at: OrgCaller,
    seen: IfMatch<RetentionView>,
    State(state): State<HttpState>,
    Input(policy): Input<RetentionView>,
) -> Result<Response, Problem> {
    Ok(tagged(&state.app.replace_audit_retention(&at.caller, at.org, seen.version, policy.into()).await?))
}

/// Whose details to erase: exactly one of `entries` and `subject`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AuditErasureInput)]
pub(crate) struct ErasureInput {
    /// The request's number or name, which the log keeps for good: 1 to 100 printable ASCII characters without spaces, quotes and
    /// backslashes. Nothing personal.
    #[schema(min_length = 1, max_length = 100, example = "dsr-2026-17")]
    reference: String,
    /// Numbers of entries in rising order, at most 1,000.
    #[serde(default)]
    entries: Option<Vec<u64>>,
    /// An id as entries show it in `actor` and `target`.
    #[serde(default)]
    subject: Option<String>,
}

/// What was erased.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditErasure)]
pub(crate) struct ErasureView {
    /// Details that are gone.
    payloads: u64,
    /// The number of the entry that says so; null where there was nothing left to erase.
    by: Option<u64>,
    /// There are more than the 1,000 that one request takes: ask again.
    more: bool,
}

/// The longest reference of an erasure, in bytes: what stands before it in an entry fits beside it.
const REFERENCE_BYTES_MAX: usize = 100;

/// Erases the details of audit entries for good, and says so in the log. Entries, their order and all proofs stay.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/audit/erasures",
    tag = "audit",
    request_body = ErasureInput,
    responses((status = 200, body = ErasureView)),
    extensions(("x-bulkhead-problems" = json!(["invalid-erasure"]))),
)]
pub(crate) async fn erase_audit(
    at: OrgCaller,
    State(state): State<HttpState>,
    Input(input): Input<ErasureInput>,
) -> Result<Json<ErasureView>, Problem> {
    let wrong = |path: &str, message: &str| Problem::from(AppError::invalid("invalid-erasure", path, message));
    let ErasureInput { reference, entries, subject } = input;
    let reference = reference.parse().ok().filter(|_| reference.len() <= REFERENCE_BYTES_MAX);
    let reference =
        reference.ok_or_else(|| wrong("/reference", "1 to 100 printable characters without spaces and quotes"))?;
    let of = match (entries, subject) {
        (Some(entries), None) => ErasureOf::Entries(entries),
        (None, Some(subject)) => ErasureOf::Subject(subject),
        (Some(_), Some(_)) | (None, None) => return Err(wrong("", "say either `entries` or `subject`")),
    };
    let ErasedAudit { payloads, by, more } = state.app.erase_audit_payloads(&at.caller, at.org, reference, of).await?;
    Ok(Json(ErasureView { payloads, by, more }))
}

/// A signed statement of what the whole log was.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditCheckpoint)]
pub(crate) struct CheckpointView {
    /// A C2SP `tlog-checkpoint`: origin, number of entries and root, signed. Keep it: it shows later that nothing below was changed.
    checkpoint: String,
    /// The key that signed it, as other tools take it.
    verifier_key: String,
}

/// Shows the audit log's newest checkpoint.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/audit/checkpoint",
    tag = "audit",
    responses((status = 200, body = CheckpointView)),
)]
pub(crate) async fn show_audit_checkpoint(
    at: OrgCaller,
    State(state): State<HttpState>,
) -> Result<Json<CheckpointView>, Problem> {
    let found = state.app.audit_checkpoint(&at.caller, at.org).await?;
    let (checkpoint, verifier_key) = found.ok_or(AppError::NotFound { what: "audit checkpoint" })?;
    Ok(Json(CheckpointView { checkpoint, verifier_key }))
}
