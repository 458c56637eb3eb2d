//! Members of an organization, their sessions, and invitations.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bulkhead_app::data::{Invitation, Member};
use bulkhead_app::member::NewInvitation;
use bulkhead_model::id::{InvitationId, SessionId, UserId};
use bulkhead_model::time::Timestamp;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::OrgCaller;
use crate::account::SessionsView;
use crate::extract::{In, Input};
use crate::page::{ListOf, NoFilter, PageParams, Paging};
use crate::problem::Problem;

/// A person in the organization.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Member)]
pub(crate) struct MemberView {
    #[schema(value_type = String, example = "user_01h455vb4pex5vsknk084sn02q")]
    user: UserId,
    email: String,
    name: String,
    /// The role that they joined with; what they have now is in `role-assignments`.
    role: String,
    /// `active` or `disabled` in this organization.
    state: &'static str,
    /// Whether the person can sign in at all.
    can_sign_in: bool,
    #[schema(value_type = String, format = DateTime)]
    joined_at: Timestamp,
}

impl From<Member> for MemberView {
    fn from(member: Member) -> Self {
        Self {
            user: member.user,
            email: member.email.to_string(),
            name: member.name,
            role: member.role,
            state: if member.is_active { "active" } else { "disabled" },
            can_sign_in: member.is_active && member.is_user_active,
            joined_at: member.created_at,
        }
    }
}

/// Lists the members, newest first.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/members",
    tag = "members",
    params(PageParams),
    responses((status = 200, body = ListOf<MemberView>)),
)]
pub(crate) async fn list_members(
    at: OrgCaller,
    State(state): State<HttpState>,
    paging: Paging<NoFilter>,
) -> Result<Json<ListOf<MemberView>>, Problem> {
    let page = state.app.list_members(&at.caller, at.org, paging.request()?).await?;
    Ok(Json(paging.answer(page, MemberView::from)))
}

/// Shows a member.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/members/{user}",
    tag = "members",
    responses((status = 200, body = MemberView)),
)]
pub(crate) async fn show_member(
    at: OrgCaller,
    In(user): In<UserId>,
    State(state): State<HttpState>,
) -> Result<Json<MemberView>, Problem> {
    Ok(Json(state.app.show_member(&at.caller, at.org, user).await?.into()))
}

/// What is to become of a member.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MemberState {
    Active,
    Disabled,
}

/// A member's state.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SetMemberState)]
pub(crate) struct MemberStateInput {
    state: MemberState,
}

/// Disables a member, which ends their keys and their sessions and tokens with this organization in front at once, or enables them again.
#[utoipa::path(
    put,
    path = "/api/v1/orgs/{org}/members/{user}/state",
    tag = "members",
    request_body = MemberStateInput,
    responses((status = 200, body = MemberView)),
    extensions(("x-bulkhead-problems" = json!(["own-membership", "last-admin"]))),
)]
pub(crate) async fn set_member_state(
    at: OrgCaller,
    In(user): In<UserId>,
    State(state): State<HttpState>,
    Input(input): Input<MemberStateInput>,
) -> Result<Json<MemberView>, Problem> {
    let is_active = match input.state {
        MemberState::Active => true,
        MemberState::Disabled => false,
    };
    Ok(Json(state.app.set_member_state(&at.caller, at.org, user, is_active).await?.into()))
}

/// Takes somebody out of the organization, which ends their keys and their sessions and tokens with it in front at once.
#[utoipa::path(
    delete,
    path = "/api/v1/orgs/{org}/members/{user}",
    tag = "members",
    responses((status = 204)),
    extensions(("x-bulkhead-problems" = json!(["own-membership", "last-admin"]))),
)]
pub(crate) async fn remove_member(
    at: OrgCaller,
    In(user): In<UserId>,
    State(state): State<HttpState>,
) -> Result<StatusCode, Problem> {
    state.app.remove_member(&at.caller, at.org, user).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists where a member is signed in with this organization, or none, in front.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/members/{user}/sessions",
    tag = "members",
    responses((status = 200, body = SessionsView)),
)]
pub(crate) async fn list_member_sessions(
    at: OrgCaller,
    In(user): In<UserId>,
    State(state): State<HttpState>,
) -> Result<Json<SessionsView>, Problem> {
    let sessions = state.app.list_member_sessions(&at.caller, at.org, user).await?;
    Ok(Json(SessionsView::new(sessions, None)))
}

/// Ends all of a member's sessions that are listed here.
#[utoipa::path(
    delete,
    path = "/api/v1/orgs/{org}/members/{user}/sessions",
    tag = "members",
    responses((status = 204)),
)]
pub(crate) async fn end_member_sessions(
    at: OrgCaller,
    In(user): In<UserId>,
    State(state): State<HttpState>,
) -> Result<StatusCode, Problem> {
    state.app.end_member_sessions(&at.caller, at.org, user, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends one of a member's sessions.
#[utoipa::path(
    delete,
    path = "/api/v1/orgs/{org}/members/{user}/sessions/{session}",
    tag = "members",
    responses((status = 204)),
)]
pub(crate) async fn end_member_session(
    at: OrgCaller,
    In(user): In<UserId>,
    In(session): In<SessionId>,
    State(state): State<HttpState>,
) -> Result<StatusCode, Problem> {
    state.app.end_member_sessions(&at.caller, at.org, user, Some(session)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Somebody who is to join.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewInvitation)]
pub(crate) struct NewInvitationInput {
    #[schema(example = "ada@example.com")]
    email: String,
    /// One whose permissions the inviter holds.
    #[schema(example = "viewer")]
    role: String,
    /// Until when the role is theirs; for ever if left out, which nobody can give who holds it for a time.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    valid_until: Option<Timestamp>,
}

/// An invitation.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Invitation)]
pub(crate) struct InvitationView {
    #[schema(value_type = String, example = "inv_01h455vb4pex5vsknk084sn02q")]
    id: InvitationId,
    email: String,
    role: String,
    /// A person's or a key's id.
    invited_by: String,
    /// Until when the role is given; null for ever.
    #[schema(value_type = Option<String>, format = DateTime)]
    valid_until: Option<Timestamp>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    accepted_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    revoked_at: Option<Timestamp>,
}

/// An invitation that was just made.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Invited)]
pub(crate) struct InvitedView {
    #[serde(flatten)]
    invitation: InvitationView,
    /// Where this server sends no mail: the link to hand over. Whoever has it joins.
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<String>,
}

impl From<Invitation> for InvitationView {
    fn from(invitation: Invitation) -> Self {
        Self {
            id: invitation.id,
            email: invitation.email.to_string(),
            role: invitation.role,
            invited_by: invitation.invited_by,
            valid_until: invitation.valid_until,
            created_at: invitation.created_at,
            expires_at: invitation.expires_at,
            accepted_at: invitation.accepted_at,
            revoked_at: invitation.revoked_at,
        }
    }
}

/// Invites somebody by mail, to what the inviter holds then and when it is accepted. An earlier invitation to the address is worth nothing from here on.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/invitations",
    tag = "members",
    request_body = NewInvitationInput,
    responses((status = 201, body = InvitedView)),
    extensions(("x-bulkhead-problems" = json!([
        "invalid-email", "invalid-role", "invalid-window", "exceeds-own-rights", "already-member", "too-many-invitations",
        "too-many-attempts",
    ]))),
)]
pub(crate) async fn invite(
    at: OrgCaller,
    State(state): State<HttpState>,
    Input(input): Input<NewInvitationInput>,
) -> Result<Response, Problem> {
    let new = NewInvitation { email: input.email, role: input.role, valid_until: input.valid_until };
    let invited = state.app.invite(&at.caller, at.org, new).await?;
    let location = format!("/api/v1/orgs/{}/invitations/{}", at.org, invited.invitation.id);
    let view = InvitedView { invitation: invited.invitation.into(), link: invited.link };
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(view)).into_response())
}

/// Lists the invitations, newest first, those that are over included.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/invitations",
    tag = "members",
    params(PageParams),
    responses((status = 200, body = ListOf<InvitationView>)),
)]
pub(crate) async fn list_invitations(
    at: OrgCaller,
    State(state): State<HttpState>,
    paging: Paging<NoFilter>,
) -> Result<Json<ListOf<InvitationView>>, Problem> {
    let page = state.app.list_invitations(&at.caller, at.org, paging.request()?).await?;
    Ok(Json(paging.answer(page, InvitationView::from)))
}

/// Takes an invitation back. Doing it twice is no error.
#[utoipa::path(
    delete,
    path = "/api/v1/orgs/{org}/invitations/{invitation}",
    tag = "members",
    responses((status = 204)),
)]
pub(crate) async fn revoke_invitation(
    at: OrgCaller,
    In(id): In<InvitationId>,
    State(state): State<HttpState>,
) -> Result<StatusCode, Problem> {
    state.app.revoke_invitation(&at.caller, at.org, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
