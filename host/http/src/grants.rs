//! What an installation may do: the layers side by side, and the one that an admin decides.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bulkhead_app::AppError;
use bulkhead_app::installation::InstallationDetail;
use bulkhead_model::grant::{GrantVersion, Grants, Layers};
use bulkhead_model::id::InstallationId;
use http::header;
use serde::Serialize;
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::{IfMatch, In, Input, etag};
use crate::problem::Problem;

/// The layers of an installation's rights; what counts is their intersection.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = GrantLayers)]
pub(crate) struct LayersView {
    #[schema(value_type = String)]
    installation: InstallationId,
    /// Rises with every change of the installation; the entity tag is made of it.
    #[schema(value_type = i64)]
    grant_version: GrantVersion,
    #[serde(flatten)]
    #[schema(value_type = LayersSchema)]
    layers: Layers,
}

/// The layers, as the document describes them.
#[derive(ToSchema)]
#[schema(as = Layers)]
#[expect(dead_code, reason = "only the document reads it")]
pub(crate) struct LayersSchema {
    /// What the manifest asks for, each in a plain sentence, with its risk and how much of it is in force.
    asks: Vec<serde_json::Value>,
    /// What an admin granted: `{"permissions": […]}`.
    #[schema(value_type = Object)]
    grants: (),
    /// What the operator allows at most.
    #[schema(value_type = Object)]
    ceiling: (),
    /// What is in force now.
    #[schema(value_type = Object)]
    effective: (),
}

fn tagged(detail: InstallationDetail) -> Response {
    let InstallationDetail { installation, layers, .. } = detail;
    let version = installation.grant_version;
    let view = LayersView { installation: installation.id, grant_version: version, layers };
    ([(header::ETAG, etag(version.0))], Json(view)).into_response()
}

/// Shows what the plugin asks for, what was granted, what the platform allows, and what is in force.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/installations/{installation}/grants",
    tag = "installations",
    responses((status = 200, body = LayersView, headers(("etag" = String)))),
)]
pub(crate) async fn show_grants(
    at: OrgCaller,
    In(id): In<InstallationId>,
    State(state): State<HttpState>,
) -> Result<Response, Problem> {
    Ok(tagged(state.app.show_grants(&at.caller, at.org, id).await?))
}

/// Replaces the grants as a whole. From then on no call that began under the old ones has any effect; those that run are ended.
#[utoipa::path(
    put,
    path = "/api/v1/orgs/{org}/installations/{installation}/grants",
    tag = "installations",
    params(("if-match" = String, Header, description = "The `etag` that was read last.", example = "\"v7\"")),
    request_body(content = Object, description = "`{\"permissions\": […]}`, in the shape that `grants` in the answer shows."),
    responses((status = 200, body = LayersView, headers(("etag" = String)))),
    extensions(("x-bulkhead-problems" = json!(["invalid-grants"]))),
)]
pub(crate) async fn replace_grants(
    at: OrgCaller,
    In(id): In<InstallationId>,
    seen: IfMatch<InstallationId>,
    State(state): State<HttpState>,
    Input(grants): Input<Grants>,
) -> Result<Response, Problem> {
    let replaced = state.app.replace_grants(&at.caller, at.org, id, GrantVersion(seen.version), grants).await;
    Ok(tagged(replaced.map_err(in_this_body)?))
}

/// The application points into an installation's body, of which the grants are a part; here they are the whole.
fn in_this_body(error: AppError) -> AppError {
    match error {
        AppError::Invalid { code, message, mut problems } => {
            for problem in &mut problems {
                if let Some(rest) = problem.path.strip_prefix("/grants") {
                    problem.path = rest.to_owned();
                }
            }
            AppError::Invalid { code, message, problems }
        }
        other => other,
    }
}
