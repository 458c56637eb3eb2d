//! Organizations.

use axum::Json;
use axum::extract::State;
use bulkhead_app::data::Org;
use bulkhead_model::id::OrgId;
use bulkhead_model::time::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::OrgCaller;
use crate::problem::Problem;

/// A tenant.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Org)]
pub(crate) struct OrgView {
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q")]
    id: OrgId,
    /// The short name, which paths may use in place of the id.
    slug: String,
    name: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<Org> for OrgView {
    fn from(org: Org) -> Self {
        Self { id: org.id, slug: org.slug.to_string(), name: org.name, created_at: org.created_at }
    }
}

/// Shows the organization.
#[utoipa::path(get, path = "/api/v1/orgs/{org}", tag = "organizations", responses((status = 200, body = OrgView)))]
pub(crate) async fn show_org(at: OrgCaller, State(state): State<HttpState>) -> Result<Json<OrgView>, Problem> {
    Ok(Json(state.app.show_org(&at.caller, at.org).await?.into()))
}
