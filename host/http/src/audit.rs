//! The audit log.

use axum::Json;
use axum::extract::State;
use bulkhead_app::data::AuditEntry;
use bulkhead_model::id::AuditId;
use bulkhead_model::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::HttpState;
use crate::access::OrgCaller;
use crate::page::{ListOf, PageParams, Paging};
use crate::problem::Problem;
use crate::view::line_or_none;

/// Who did what to whom.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditEntry)]
pub(crate) struct AuditView {
    #[schema(value_type = String)]
    id: AuditId,
    /// `plugin.uploaded`, `grants.changed`, …
    action: String,
    /// The id of what was acted on.
    target: String,
    /// A key's id, or `system:` and the reason.
    actor: String,
    /// Before and after, digests, reasons; depends on the action.
    detail: Value,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<AuditEntry> for AuditView {
    fn from(entry: AuditEntry) -> Self {
        let AuditEntry { id, action, target, actor, detail, created_at } = entry;
        Self { id, action, target, actor, detail, created_at }
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
