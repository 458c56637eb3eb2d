//! The audit log.

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use bulkhead_app::AppError;
use bulkhead_app::data::AuditEntry;
use bulkhead_model::id::AuditId;
use bulkhead_model::time::Timestamp;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::HttpState;
use crate::access::{OrgCaller, path_param};
use crate::page::{ListOf, PageParams, Paging};
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
    /// Before and after, digests, reasons; depends on the action. Of more than 64 KiB, large parts are said by `bytes` and `sha256`.
    detail: Value,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<AuditEntry> for AuditView {
    fn from(entry: AuditEntry) -> Self {
        let AuditEntry { id, seq, action, target, actor, detail, created_at } = entry;
        Self { id, seq, action, target, actor, detail, created_at }
    }
}

/// Filters of the audit log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditFilter {
    /// Only this action.
    #[serde(default, deserialize_with = "line_or_none")]
    #[param(required = false)]
    action: Option<String>,
    /// Only what was done to this id.
    #[serde(default, deserialize_with = "line_or_none")]
    #[param(required = false)]
    target: Option<String>,
}

/// Lists the audit log, newest first.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/audit",
    tag = "audit",
    params(AuditFilter, PageParams),
    responses((status = 200, body = ListOf<AuditView>)),
)]
pub(crate) async fn list_audit(
    at: OrgCaller,
    State(state): State<HttpState>,
    paging: Paging<AuditFilter>,
) -> Result<Json<ListOf<AuditView>>, Problem> {
    let AuditFilter { action, target } = &paging.filter;
    let page = state.app.list_audit(&at.caller, at.org, action.clone(), target.clone(), paging.request()?).await?;
    Ok(Json(paging.answer(page, AuditView::from)))
}

/// An audit entry's number in the path.
pub(crate) struct EntryNumber(u64);

impl FromRequestParts<HttpState> for EntryNumber {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, Problem> {
        let text = path_param(parts, state, "first").await?;
        let number = text.parse().ok().filter(|number: &u64| number.to_string() == text);
        number.map(Self).ok_or_else(|| AppError::NotFound { what: "audit entry" }.into())
    }
}

/// Exports entries of the audit log as a bundle that proves itself, from a number on.
///
/// At most 5,000 entries or about 16 MiB, up to a checkpoint; the next bundle begins behind the last one's. `bulkhead audit verify`
/// checks it anywhere. The export is itself an entry.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/audit/bundles/{first}",
    tag = "audit",
    responses((status = 200, body = String, content_type = "application/jsonl")),
)]
pub(crate) async fn export_audit(
    at: OrgCaller,
    EntryNumber(first): EntryNumber,
    State(state): State<HttpState>,
) -> Result<Response, Problem> {
    let bundle = state.app.export_audit(&at.caller, at.org, first, None).await?;
    // It is written as it is read. Where that fails the last line is missing, and the verifier says so.
    let lines = stream::try_unfold(bundle, |mut bundle| async move {
        let lines = bundle.next().await.inspect_err(|error| {
            tracing::error!(error = error as &dyn std::error::Error, "an audit bundle was broken off");
        })?;
        Ok::<_, AppError>(lines.map(|lines| (lines, bundle)))
    });
    let disposition = format!("attachment; filename=\"audit-{first}.jsonl\"");
    let headers = [(header::CONTENT_TYPE, "application/jsonl".to_owned()), (header::CONTENT_DISPOSITION, disposition)];
    Ok((headers, Body::from_stream(lines)).into_response())
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
