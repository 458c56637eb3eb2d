//! What an organization may hold, and what it holds.

use axum::Json;
use axum::extract::State;
use bulkhead_app::quota::QuotaUse;
use serde::Serialize;
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::OrgCaller;
use crate::page::ListOf;
use crate::problem::Problem;

/// A quota, which the operator sets.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Quota)]
pub(crate) struct QuotaView {
    /// `active_workflows`, `payload_bytes` (of what starts a run), `history_bytes` (of what has ended and is kept), `log_bytes` (of the
    /// plugins of one run), `plugin_versions`, `plugin_bytes`.
    name: &'static str,
    unit: &'static str,
    limit: u64,
    /// Null for a quota of one run. The history is counted some minutes after the fact.
    used: Option<u64>,
}

impl From<QuotaUse> for QuotaView {
    fn from(shown: QuotaUse) -> Self {
        Self { name: shown.quota.as_str(), unit: shown.quota.unit(), limit: shown.limit, used: shown.used }
    }
}

/// Lists the organization's quotas with what it holds of each.
#[utoipa::path(get, path = "/api/v1/orgs/{org}/quotas", tag = "organizations", responses((status = 200, body = ListOf<QuotaView>)))]
pub(crate) async fn list_quotas(
    at: OrgCaller,
    State(state): State<HttpState>,
) -> Result<Json<ListOf<QuotaView>>, Problem> {
    let quotas = state.app.show_quotas(&at.caller, at.org).await?;
    Ok(Json(ListOf { items: quotas.into_iter().map(QuotaView::from).collect(), next_cursor: None }))
}
