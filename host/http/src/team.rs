//! Teams and who is in them.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bulkhead_app::data::{Team, TeamMember};
use bulkhead_model::id::{TeamId, UserId};
use bulkhead_model::time::Timestamp;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::{IfMatch, In, Input, NoInput, etag};
use crate::page::{ListOf, NoFilter, PageParams, Paging};
use crate::problem::Problem;
use crate::view::line;

/// What a team is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewTeam)]
pub(crate) struct TeamInput {
    /// 1 to 60 letters, digits, single spaces, `-` and `_`. No two teams' names may differ in case and joints alone.
    #[serde(deserialize_with = "line")]
    name: String,
}

/// A team.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Team)]
pub(crate) struct TeamView {
    #[schema(value_type = String, example = "team_01h455vb4pex5vsknk084sn02q")]
    id: TeamId,
    name: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl From<Team> for TeamView {
    fn from(team: Team) -> Self {
        let Team { id, name, revision: _, created_at, updated_at } = team;
        Self { id, name: name.as_str().to_owned(), created_at, updated_at }
    }
}

/// Somebody in a team.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TeamMember)]
pub(crate) struct TeamMemberView {
    #[schema(value_type = String)]
    user: UserId,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<TeamMember> for TeamMemberView {
    fn from(member: TeamMember) -> Self {
        let TeamMember { user, created_at } = member;
        Self { user, created_at }
    }
}

fn tagged(status: StatusCode, team: Team) -> Response {
    (status, [(header::ETAG, etag(team.revision))], Json(TeamView::from(team))).into_response()
}

/// Makes a team.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/teams",
    tag = "teams",
    request_body = TeamInput,
    responses((status = 201, body = TeamView, headers(("etag" = String)))),
    extensions(("x-bulkhead-problems" = json!(["invalid-name", "team-exists", "too-many-teams"]))),
)]
pub(crate) async fn create_team(
    at: OrgCaller,
    State(state): State<HttpState>,
    Input(input): Input<TeamInput>,
) -> Result<Response, Problem> {
    let team = state.app.create_team(&at.caller, at.org, &input.name).await?;
    let location = format!("/api/v1/orgs/{}/teams/{}", at.org, team.id);
    let mut response = tagged(StatusCode::CREATED, team);
    if let Ok(location) = location.parse() {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Lists the teams, newest first.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/teams",
    tag = "teams",
    params(PageParams),
    responses((status = 200, body = ListOf<TeamView>)),
)]
pub(crate) async fn list_teams(
    at: OrgCaller,
    State(state): State<HttpState>,
    paging: Paging<NoFilter>,
) -> Result<Json<ListOf<TeamView>>, Problem> {
    let page = state.app.list_teams(&at.caller, at.org, paging.request()?).await?;
    Ok(Json(paging.answer(page, TeamView::from)))
}

/// Shows a team.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/teams/{team}",
    tag = "teams",
    responses((status = 200, body = TeamView, headers(("etag" = String)))),
)]
pub(crate) async fn show_team(
    at: OrgCaller,
    In(id): In<TeamId>,
    State(state): State<HttpState>,
) -> Result<Response, Problem> {
    Ok(tagged(StatusCode::OK, state.app.show_team(&at.caller, at.org, id).await?))
}

/// Renames a team.
#[utoipa::path(
    put,
    path = "/api/v1/orgs/{org}/teams/{team}",
    tag = "teams",
    params(("if-match" = String, Header, description = "The `etag` that was read last.", example = "\"v7\"")),
    request_body = TeamInput,
    responses((status = 200, body = TeamView, headers(("etag" = String)))),
    extensions(("x-bulkhead-problems" = json!(["invalid-name", "team-exists"]))),
)]
pub(crate) async fn rename_team(
    at: OrgCaller,
    In(id): In<TeamId>,
    seen: IfMatch<TeamId>,
    State(state): State<HttpState>,
    Input(input): Input<TeamInput>,
) -> Result<Response, Problem> {
    let team = state.app.rename_team(&at.caller, at.org, id, seen.version, &input.name).await?;
    Ok(tagged(StatusCode::OK, team))
}

/// Deletes a team for which nobody has a role any more.
#[utoipa::path(
    delete,
    path = "/api/v1/orgs/{org}/teams/{team}",
    tag = "teams",
    params(("if-match" = String, Header, description = "The `etag` that was read last.", example = "\"v7\"")),
    responses((status = 204)),
    extensions(("x-bulkhead-problems" = json!(["team-in-use"]))),
)]
pub(crate) async fn delete_team(
    at: OrgCaller,
    In(id): In<TeamId>,
    seen: IfMatch<TeamId>,
    State(state): State<HttpState>,
) -> Result<StatusCode, Problem> {
    state.app.delete_team(&at.caller, at.org, id, seen.version).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists who is in a team.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/teams/{team}/members",
    tag = "teams",
    params(PageParams),
    responses((status = 200, body = ListOf<TeamMemberView>)),
)]
pub(crate) async fn list_team_members(
    at: OrgCaller,
    In(id): In<TeamId>,
    State(state): State<HttpState>,
    paging: Paging<NoFilter>,
) -> Result<Json<ListOf<TeamMemberView>>, Problem> {
    let page = state.app.list_team_members(&at.caller, at.org, id, paging.request()?).await?;
    Ok(Json(paging.answer(page, TeamMemberView::from)))
}

/// Puts a member into a team; twice is no error. Being in a team gives no right by itself.
#[utoipa::path(
    put,
    path = "/api/v1/orgs/{org}/teams/{team}/members/{user}",
    tag = "teams",
    responses((status = 204)),
    extensions(("x-bulkhead-problems" = json!(["team-full", "unknown-user"]))),
)]
pub(crate) async fn add_team_member(
    at: OrgCaller,
    In(id): In<TeamId>,
    In(user): In<UserId>,
    State(state): State<HttpState>,
    _: NoInput,
) -> Result<StatusCode, Problem> {
    state.app.add_team_member(&at.caller, at.org, id, user).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes a member out of a team; one who is not in it is no error.
#[utoipa::path(
    delete,
    path = "/api/v1/orgs/{org}/teams/{team}/members/{user}",
    tag = "teams",
    responses((status = 204)),
)]
pub(crate) async fn remove_team_member(
    at: OrgCaller,
    In(id): In<TeamId>,
    In(user): In<UserId>,
    State(state): State<HttpState>,
) -> Result<StatusCode, Problem> {
    state.app.remove_team_member(&at.caller, at.org, id, user).await?;
    Ok(StatusCode::NO_CONTENT)
}
