//! Who has which role, where and when.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bulkhead_app::assignment::NewAssignment;
use bulkhead_app::data::StoredAssignment;
use bulkhead_model::id::{AssignmentId, TeamId, UserId};
use bulkhead_model::role::RoleRef;
use bulkhead_model::role::assignment::Window;
use bulkhead_model::time::Timestamp;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::{In, Input};
use crate::page::{ListOf, PageParams, Paging};
use crate::problem::Problem;
use crate::view::text;

/// Who is to have which role.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewRoleAssignment)]
pub(crate) struct AssignmentInput {
    #[schema(value_type = String, example = "user_01h455vb4pex5vsknk084sn02q")]
    user: UserId,
    /// A built-in role's name or an own role's id.
    #[schema(value_type = String, example = "analyst")]
    role: RoleRef,
    /// Only on what belongs to this team; left out: everywhere in the organization.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    team: Option<TeamId>,
    /// From when on; at once when left out.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    valid_from: Option<Timestamp>,
    /// Until when, this instant not included; without an end when left out.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    valid_until: Option<Timestamp>,
    /// For the audit log. At most 500 characters.
    #[serde(default, deserialize_with = "text")]
    reason: String,
}

/// A member has a role.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RoleAssignment)]
pub(crate) struct AssignmentView {
    #[schema(value_type = String, example = "asg_01h455vb4pex5vsknk084sn02q")]
    id: AssignmentId,
    #[schema(value_type = String)]
    user: UserId,
    #[schema(value_type = String)]
    role: RoleRef,
    #[schema(value_type = Option<String>)]
    team: Option<TeamId>,
    #[schema(value_type = Option<String>, format = DateTime)]
    valid_from: Option<Timestamp>,
    /// What is over gives nothing and stays on the list until somebody removes it.
    #[schema(value_type = Option<String>, format = DateTime)]
    valid_until: Option<Timestamp>,
    /// A member's or a key's id, or `system:` and the reason.
    granted_by: String,
    reason: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<StoredAssignment> for AssignmentView {
    fn from(stored: StoredAssignment) -> Self {
        let StoredAssignment { given, granted_by, reason, created_at } = stored;
        Self {
            id: given.id,
            user: given.user,
            role: given.role,
            team: given.team,
            valid_from: given.window.from,
            valid_until: given.window.until,
            granted_by,
            reason,
            created_at,
        }
    }
}

/// Filters of the list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AssignmentFilter {
    /// Only this member's.
    #[serde(default)]
    #[param(required = false, value_type = Option<String>)]
    user: Option<UserId>,
}

/// Lists who has which role, newest first, ended and future ones included.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/role-assignments",
    tag = "roles",
    params(AssignmentFilter, PageParams),
    responses((status = 200, body = ListOf<AssignmentView>)),
)]
pub(crate) async fn list_assignments(
    at: OrgCaller,
    State(state): State<HttpState>,
    paging: Paging<AssignmentFilter>,
) -> Result<Json<ListOf<AssignmentView>>, Problem> {
    let page = state.app.list_assignments(&at.caller, at.org, paging.filter.user, paging.request()?).await?;
    Ok(Json(paging.answer(page, AssignmentView::from)))
}

/// Gives a member a role: nothing that the giver does not hold, where he holds it, and for no longer. Nobody gives himself one.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/role-assignments",
    tag = "roles",
    request_body = AssignmentInput,
    responses((status = 201, body = AssignmentView)),
    extensions(("x-bulkhead-problems" = json!([
        "unknown-user", "unknown-role", "unknown-team", "invalid-window", "invalid-reason", "exceeds-own-rights", "own-role", "too-many-roles",
    ]))),
)]
pub(crate) async fn assign_role(
    at: OrgCaller,
    State(state): State<HttpState>,
    Input(input): Input<AssignmentInput>,
) -> Result<Response, Problem> {
    let new = NewAssignment {
        user: input.user,
        role: input.role,
        team: input.team,
        window: Window { from: input.valid_from, until: input.valid_until },
        reason: input.reason,
    };
    let given = state.app.assign_role(&at.caller, at.org, new).await?;
    let location = format!("/api/v1/orgs/{}/role-assignments/{}", at.org, given.given.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(AssignmentView::from(given))).into_response())
}

/// Takes a role away, from the member's next request on. Not one's own, not the last admin's, and nothing that one does not hold.
#[utoipa::path(
    delete,
    path = "/api/v1/orgs/{org}/role-assignments/{assignment}",
    tag = "roles",
    responses((status = 204)),
    extensions(("x-bulkhead-problems" = json!(["exceeds-own-rights", "last-admin", "own-role"]))),
)]
pub(crate) async fn unassign_role(
    at: OrgCaller,
    In(id): In<AssignmentId>,
    State(state): State<HttpState>,
) -> Result<StatusCode, Problem> {
    state.app.unassign_role(&at.caller, at.org, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
