//! Roles for some hours: asked for, let or refused by somebody else.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bulkhead_app::data::RoleRequest;
use bulkhead_app::role_request::NewRoleRequest;
use bulkhead_model::id::{AssignmentId, RoleRequestId, TeamId, UserId};
use bulkhead_model::role::RoleRef;
use bulkhead_model::role::activation::{Answer, DURATION_DEFAULT};
use bulkhead_model::time::Timestamp;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::{In, Input, NoInput};
use crate::page::{ListOf, NoFilter, PageParams, Paging};
use crate::problem::Problem;
use crate::view::text;

/// What is asked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewRoleRequest)]
pub(crate) struct RoleRequestInput {
    /// A built-in role's name or an own role's id.
    #[schema(value_type = String, example = "admin")]
    role: RoleRef,
    /// Only on what belongs to this team.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    team: Option<TeamId>,
    /// What it is needed for. 10 to 500 characters.
    #[serde(deserialize_with = "text")]
    reason: String,
    /// For how long from its approval on: 5 to 480; 240 when left out.
    #[serde(default)]
    #[schema(minimum = 5, maximum = 480, default = 240)]
    duration_minutes: Option<u32>,
}

/// What whoever answers says to it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RoleRequestAnswer)]
pub(crate) struct AnswerInput {
    /// At most 500 characters.
    #[serde(default, deserialize_with = "text")]
    reason: String,
}

/// Somebody asks for a role for some hours.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RoleRequest)]
pub(crate) struct RoleRequestView {
    #[schema(value_type = String, example = "rreq_01h455vb4pex5vsknk084sn02q")]
    id: RoleRequestId,
    /// Who asks.
    #[schema(value_type = String)]
    user: UserId,
    #[schema(value_type = String)]
    role: RoleRef,
    #[schema(value_type = Option<String>)]
    team: Option<TeamId>,
    reason: String,
    duration_minutes: u64,
    /// `waiting`, `approved`, `refused`, `withdrawn`. One that waits for more than a day can no longer be answered.
    state: &'static str,
    #[schema(value_type = String, format = DateTime)]
    asked_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    answered_at: Option<Timestamp>,
    #[schema(value_type = Option<String>)]
    answered_by: Option<UserId>,
    answer: Option<String>,
    /// What came of it; it ends by the clock.
    #[schema(value_type = Option<String>)]
    assignment: Option<AssignmentId>,
}

impl From<RoleRequest> for RoleRequestView {
    fn from(asked: RoleRequest) -> Self {
        Self {
            id: asked.id,
            user: asked.request.asked_by,
            role: asked.role,
            team: asked.team,
            reason: asked.reason,
            duration_minutes: asked.request.duration.as_secs() / 60,
            state: asked.request.state.as_str(),
            asked_at: asked.request.asked_at,
            answered_at: asked.answered_at,
            answered_by: asked.answered_by,
            answer: asked.answer,
            assignment: asked.assignment,
        }
    }
}

/// Asks for a role for some hours. Only members ask, and somebody else answers.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/role-requests",
    tag = "roles",
    request_body = RoleRequestInput,
    responses((status = 201, body = RoleRequestView)),
    extensions(("x-bulkhead-problems" = json!([
        "unknown-role", "unknown-team", "invalid-reason", "invalid-duration", "people-only", "too-many-requests",
    ]))),
)]
pub(crate) async fn request_role(
    at: OrgCaller,
    State(state): State<HttpState>,
    Input(input): Input<RoleRequestInput>,
) -> Result<Response, Problem> {
    let minutes = |minutes: u32| Duration::from_secs(60 * u64::from(minutes));
    let new = NewRoleRequest {
        role: input.role,
        team: input.team,
        reason: input.reason,
        duration: input.duration_minutes.map_or(DURATION_DEFAULT, minutes),
    };
    let asked = state.app.request_role(&at.caller, at.org, new).await?;
    let location = format!("/api/v1/orgs/{}/role-requests/{}", at.org, asked.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(RoleRequestView::from(asked))).into_response())
}

/// Lists requests, newest first.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/role-requests",
    tag = "roles",
    params(PageParams),
    responses((status = 200, body = ListOf<RoleRequestView>)),
)]
pub(crate) async fn list_role_requests(
    at: OrgCaller,
    State(state): State<HttpState>,
    paging: Paging<NoFilter>,
) -> Result<Json<ListOf<RoleRequestView>>, Problem> {
    let page = state.app.list_role_requests(&at.caller, at.org, paging.request()?).await?;
    Ok(Json(paging.answer(page, RoleRequestView::from)))
}

/// Shows a request and what became of it.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/role-requests/{role_request}",
    tag = "roles",
    responses((status = 200, body = RoleRequestView)),
)]
pub(crate) async fn show_role_request(
    at: OrgCaller,
    In(id): In<RoleRequestId>,
    State(state): State<HttpState>,
) -> Result<Json<RoleRequestView>, Problem> {
    Ok(Json(state.app.show_role_request(&at.caller, at.org, id).await?.into()))
}

/// Lets a member have the role from now on for the time asked for. Somebody else does it, who holds as much for as long.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/role-requests/{role_request}/approve",
    tag = "roles",
    request_body = AnswerInput,
    responses((status = 200, body = RoleRequestView)),
    extensions(("x-bulkhead-problems" = json!([
        "unknown-user", "unknown-role", "unknown-team", "invalid-reason", "exceeds-own-rights", "people-only", "own-request", "request-answered",
        "request-lapsed", "too-many-roles",
    ]))),
)]
pub(crate) async fn approve_role_request(
    at: OrgCaller,
    In(id): In<RoleRequestId>,
    State(state): State<HttpState>,
    Input(input): Input<AnswerInput>,
) -> Result<Json<RoleRequestView>, Problem> {
    let answer = (Answer::Approve, Some(input.reason));
    Ok(Json(state.app.answer_role_request(&at.caller, at.org, id, answer).await?.into()))
}

/// Refuses a request.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/role-requests/{role_request}/refuse",
    tag = "roles",
    request_body = AnswerInput,
    responses((status = 200, body = RoleRequestView)),
    extensions(("x-bulkhead-problems" = json!([
        "invalid-reason", "people-only", "own-request", "request-answered", "request-lapsed",
    ]))),
)]
pub(crate) async fn refuse_role_request(
    at: OrgCaller,
    In(id): In<RoleRequestId>,
    State(state): State<HttpState>,
    Input(input): Input<AnswerInput>,
) -> Result<Json<RoleRequestView>, Problem> {
    let answer = (Answer::Refuse, Some(input.reason));
    Ok(Json(state.app.answer_role_request(&at.caller, at.org, id, answer).await?.into()))
}

/// Withdraws a request of one's own.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/role-requests/{role_request}/withdraw",
    tag = "roles",
    responses((status = 200, body = RoleRequestView)),
    extensions(("x-bulkhead-problems" = json!([
        "people-only", "not-own-request", "request-answered", "request-lapsed",
    ]))),
)]
pub(crate) async fn withdraw_role_request(
    at: OrgCaller,
    In(id): In<RoleRequestId>,
    State(state): State<HttpState>,
    _: NoInput,
) -> Result<Json<RoleRequestView>, Problem> {
    Ok(Json(state.app.answer_role_request(&at.caller, at.org, id, (Answer::Withdraw, None)).await?.into()))
}
