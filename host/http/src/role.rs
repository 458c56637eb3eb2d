//! Roles, built-in and of the organization's own, with what they give.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bulkhead_app::role::{NewRole, RoleDetail};
use bulkhead_model::id::RoleId;
use bulkhead_model::permission::{Permission, PermissionSet};
use bulkhead_model::role::{BuiltIn, Gives, RoleRef};
use bulkhead_model::time::Timestamp;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::{IfMatch, In, Input, etag};
use crate::page::ListOf;
use crate::problem::Problem;
use crate::view::{line, text};

/// What a role is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewRole)]
pub(crate) struct RoleInput {
    /// 1 to 60 letters, digits, single spaces, `-` and `_`. No two roles' names may differ in case and joints alone.
    #[serde(deserialize_with = "line")]
    name: String,
    /// For people. At most 500 characters.
    #[serde(default, deserialize_with = "text")]
    description: String,
    /// What it gives by itself: at most what its maker holds.
    #[serde(default)]
    #[schema(value_type = Vec<String>, example = json!(["leads.read", "leads.write"]))]
    permissions: Vec<Permission>,
    /// What these roles give it gives as well: built-in ones by name, own ones by id. At most ten, over at most five levels.
    #[serde(default)]
    #[schema(value_type = Vec<String>, example = json!(["viewer"]))]
    inherits: Vec<RoleRef>,
}

impl From<RoleInput> for NewRole {
    fn from(input: RoleInput) -> Self {
        let gives = Gives { permissions: input.permissions.into_iter().collect(), inherits: input.inherits };
        Self { name: input.name, description: input.description, gives }
    }
}

/// A role.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Role)]
pub(crate) struct RoleView {
    /// What assignments name: a built-in role's name, or an id.
    #[schema(value_type = String, example = "role_01h455vb4pex5vsknk084sn02q")]
    role: RoleRef,
    name: String,
    description: String,
    /// Whether every organization has it as it is.
    is_built_in: bool,
    /// What it gives by itself …
    #[schema(value_type = Vec<String>)]
    permissions: Vec<Permission>,
    #[schema(value_type = Vec<String>)]
    inherits: Vec<RoleRef>,
    /// … and with what it inherits.
    #[schema(value_type = Vec<String>)]
    all_permissions: Vec<Permission>,
    /// Null for built-in roles.
    #[schema(value_type = Option<String>, format = DateTime)]
    created_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    updated_at: Option<Timestamp>,
}

fn list(set: PermissionSet) -> Vec<Permission> {
    set.iter().collect()
}

impl From<BuiltIn> for RoleView {
    fn from(role: BuiltIn) -> Self {
        Self {
            role: RoleRef::BuiltIn(role),
            name: role.title().to_owned(),
            description: role.says().to_owned(),
            is_built_in: true,
            permissions: list(role.permissions()),
            inherits: Vec::new(),
            all_permissions: list(role.permissions()),
            created_at: None,
            updated_at: None,
        }
    }
}

impl From<RoleDetail> for RoleView {
    fn from(detail: RoleDetail) -> Self {
        let RoleDetail { role, all } = detail;
        Self {
            role: RoleRef::Own(role.id),
            name: role.name.as_str().to_owned(),
            description: role.description,
            is_built_in: false,
            permissions: list(role.gives.permissions),
            inherits: role.gives.inherits,
            all_permissions: list(all),
            created_at: Some(role.created_at),
            updated_at: Some(role.updated_at),
        }
    }
}

fn tagged(status: StatusCode, detail: RoleDetail) -> Response {
    let tag = etag(detail.role.revision);
    (status, [(header::ETAG, tag)], Json(RoleView::from(detail))).into_response()
}

/// Lists the built-in roles that an organization can give, then its own by name. There is one page.
#[utoipa::path(get, path = "/api/v1/orgs/{org}/roles", tag = "roles", responses((status = 200, body = ListOf<RoleView>)))]
pub(crate) async fn list_roles(
    at: OrgCaller,
    State(state): State<HttpState>,
) -> Result<Json<ListOf<RoleView>>, Problem> {
    let own = state.app.list_roles(&at.caller, at.org).await?;
    let built_in = BuiltIn::ALL.into_iter().filter(|role| role.is_of_organization()).map(RoleView::from);
    Ok(Json(ListOf { items: built_in.chain(own.into_iter().map(RoleView::from)).collect(), next_cursor: None }))
}

/// Makes a role that gives no more than its maker holds.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/roles",
    tag = "roles",
    request_body = RoleInput,
    responses((status = 201, body = RoleView, headers(("etag" = String)))),
    extensions(("x-bulkhead-problems" = json!(["invalid-name", "invalid-role", "exceeds-own-rights", "role-exists"]))),
)]
pub(crate) async fn create_role(
    at: OrgCaller,
    State(state): State<HttpState>,
    Input(input): Input<RoleInput>,
) -> Result<Response, Problem> {
    let detail = state.app.create_role(&at.caller, at.org, input.into()).await?;
    let location = format!("/api/v1/orgs/{}/roles/{}", at.org, detail.role.id);
    let mut response = tagged(StatusCode::CREATED, detail);
    if let Ok(location) = location.parse() {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Shows one of the organization's own roles.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/roles/{role}",
    tag = "roles",
    responses((status = 200, body = RoleView, headers(("etag" = String)))),
)]
pub(crate) async fn show_role(
    at: OrgCaller,
    In(id): In<RoleId>,
    State(state): State<HttpState>,
) -> Result<Response, Problem> {
    Ok(tagged(StatusCode::OK, state.app.show_role(&at.caller, at.org, id).await?))
}

/// Replaces a role as a whole. Members who have it, or a role that inherits from it, have what it gives from their next request on.
#[utoipa::path(
    put,
    path = "/api/v1/orgs/{org}/roles/{role}",
    tag = "roles",
    params(("if-match" = String, Header, description = "The `etag` that was read last.", example = "\"v7\"")),
    request_body = RoleInput,
    responses((status = 200, body = RoleView, headers(("etag" = String)))),
    extensions(("x-bulkhead-problems" = json!(["invalid-name", "invalid-role", "exceeds-own-rights", "role-exists"]))),
)]
pub(crate) async fn replace_role(
    at: OrgCaller,
    In(id): In<RoleId>,
    seen: IfMatch<RoleId>,
    State(state): State<HttpState>,
    Input(input): Input<RoleInput>,
) -> Result<Response, Problem> {
    Ok(tagged(StatusCode::OK, state.app.update_role(&at.caller, at.org, id, seen.version, input.into()).await?))
}

/// Deletes a role that nobody has and no other role inherits from.
#[utoipa::path(
    delete,
    path = "/api/v1/orgs/{org}/roles/{role}",
    tag = "roles",
    params(("if-match" = String, Header, description = "The `etag` that was read last.", example = "\"v7\"")),
    responses((status = 204)),
    extensions(("x-bulkhead-problems" = json!(["exceeds-own-rights", "role-in-use"]))),
)]
pub(crate) async fn delete_role(
    at: OrgCaller,
    In(id): In<RoleId>,
    seen: IfMatch<RoleId>,
    State(state): State<HttpState>,
) -> Result<StatusCode, Problem> {
    state.app.delete_role(&at.caller, at.org, id, seen.version).await?;
    Ok(StatusCode::NO_CONTENT)
}
