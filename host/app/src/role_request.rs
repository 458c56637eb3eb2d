//! A role for some hours: asked for with a reason, let by somebody else who holds it, ended by the clock.

use std::time::Duration;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::id::{OrgId, RoleRequestId, TeamId, UserId};
use bulkhead_model::permission::{Actor, Caller, Permission};
use bulkhead_model::role::RoleRef;
use bulkhead_model::role::activation::{
    Answer, REQUEST_LIVES, Request, RequestError, RequestState, WAITING_MAX, check_request,
};
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::page::{Page, PageRequest};
use bulkhead_store::role::request::RoleRequest;
use serde_json::{Value, json};

use crate::access::load_roles;
use crate::assignment::{NewAssignment, give};
use crate::{App, AppError};

/// Characters of what whoever answers says to it.
const ANSWER_LEN_MAX: usize = 500;

/// What somebody asks for.
#[derive(Clone, Debug)]
pub struct NewRoleRequest {
    pub role: RoleRef,
    pub team: Option<TeamId>,
    /// What it is needed for.
    pub reason: String,
    pub duration: Duration,
}

fn told(asked: &RoleRequest) -> Value {
    json!({
        "user": asked.request.asked_by,
        "role": asked.role,
        "team": asked.team,
        "duration_s": asked.request.duration.as_secs(),
        "reason": asked.reason,
    })
}

fn refused(error: RequestError) -> AppError {
    let message = error.to_string();
    match error {
        RequestError::Reason => AppError::invalid("invalid-reason", "/reason", message),
        RequestError::Duration => AppError::invalid("invalid-duration", "/duration_minutes", message),
        RequestError::Answered => AppError::conflict("request-answered", message),
        RequestError::Lapsed => AppError::conflict("request-lapsed", message),
        RequestError::OwnRequest => AppError::conflict("own-request", message),
        RequestError::NotOwnRequest => AppError::conflict("not-own-request", message),
    }
}

/// A key is nobody: who asks and who lets are people, or the two could be one.
fn person(caller: &Caller) -> Result<UserId, AppError> {
    caller.user().ok_or_else(people_only)
}

fn people_only() -> AppError {
    AppError::conflict("people-only", "only a signed-in member can do this, and no API key")
}

impl App {
    /// Asks for a role for some hours.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `unknown-role`, `unknown-team`, `invalid-reason`, `invalid-duration`; [`AppError::Conflict`] `people-only`,
    /// `too-many-requests`.
    pub async fn request_role(
        &self,
        caller: &Caller,
        org: OrgId,
        new: NewRoleRequest,
    ) -> Result<RoleRequest, AppError> {
        let scope = caller.authorize(org, Permission::RolesRequest)?;
        let user = person(caller)?;
        check_request(&new.reason, new.duration).map_err(refused)?;
        let args = (user, new, scope.actor().clone(), self.ambient().clone());
        self.store()
            .write(&scope, args, |tx, (user, new, actor, ambient)| {
                Box::pin(async move {
                    let now = ambient.now();
                    if !load_roles(tx).await?.contains(new.role) {
                        let message = format!("the organization has no role {}", new.role);
                        return Err(AppError::invalid("unknown-role", "/role", message));
                    }
                    if let Some(team) = new.team
                        && tx.load_team(team).await?.is_none()
                    {
                        let message = format!("the organization has no team {team}");
                        return Err(AppError::invalid("unknown-team", "/team", message));
                    }
                    if tx.count_waiting_requests(*user, now.minus(REQUEST_LIVES)).await? >= WAITING_MAX {
                        let message = format!("{WAITING_MAX} requests of yours wait for an answer already");
                        return Err(AppError::conflict("too-many-requests", message));
                    }
                    let state = RequestState::Waiting;
                    let asked = RoleRequest {
                        id: RoleRequestId::new(ambient),
                        role: new.role,
                        team: new.team,
                        reason: new.reason.trim().to_owned(),
                        request: Request { asked_by: *user, asked_at: now, duration: new.duration, state },
                        answered_at: None,
                        answered_by: None,
                        answer: None,
                        assignment: None,
                    };
                    tx.insert_role_request(&asked).await?;
                    let event = AuditEvent {
                        action: EventType::RoleRequested,
                        target: asked.id.to_string(),
                        actor: actor.clone(),
                        detail: told(&asked),
                    };
                    tx.record_audit(&event, ambient).await?;
                    tx.record_event("role.requested", &asked.id.to_string(), &told(&asked), ambient).await?;
                    Ok(asked)
                })
            })
            .await
    }

    /// Answers a request: approved, the role is had from now on for the time asked for. Whoever approves is another person, who holds
    /// the role's permissions there for as long.
    ///
    /// # Errors
    /// [`AppError::NotFound`]; [`AppError::Conflict`] `people-only`, `own-request`, `not-own-request`, `request-answered`,
    /// `request-lapsed`; as [`assign_role`](Self::assign_role).
    pub async fn answer_role_request(
        &self,
        caller: &Caller,
        org: OrgId,
        id: RoleRequestId,
        (answer, said): (Answer, Option<String>),
    ) -> Result<RoleRequest, AppError> {
        let needed = match answer {
            Answer::Approve | Answer::Refuse => Permission::RolesApprove,
            Answer::Withdraw => Permission::RolesRequest,
        };
        let scope = caller.authorize(org, needed)?;
        if said.as_ref().is_some_and(|said| said.chars().count() > ANSWER_LEN_MAX) {
            let message = format!("a reason has at most {ANSWER_LEN_MAX} characters");
            return Err(AppError::invalid("invalid-reason", "/reason", message));
        }
        let args = (id, answer, said, caller.user(), self.ambient().clone());
        let answered: RoleRequest = self
            .store()
            .write(&scope, args, |tx, (id, answer, said, by, ambient)| {
                Box::pin(async move {
                    let now = ambient.now();
                    let mut asked =
                        tx.load_role_request(*id).await?.ok_or(AppError::NotFound { what: "role request" })?;
                    // Whoever may not know of it learns no more than that it is not there.
                    let by = by.ok_or_else(people_only)?;
                    let actor = Actor::User(by);
                    let before = asked.request.state;
                    asked.request.state = asked.request.answer(*answer, by, now).map_err(refused)?;
                    let action = match answer {
                        Answer::Approve => {
                            let new = NewAssignment {
                                user: asked.request.asked_by,
                                role: asked.role,
                                team: asked.team,
                                window: asked.request.window(now),
                                reason: asked.reason.clone(),
                            };
                            asked.assignment =
                                Some(give(tx, &new, &actor, Permission::RolesApprove, ambient).await?.given.id);
                            EventType::RoleApproved
                        }
                        Answer::Refuse => EventType::RoleRefused,
                        Answer::Withdraw => EventType::RoleWithdrawn,
                    };
                    (asked.answered_at, asked.answered_by, asked.answer) = (Some(now), Some(by), said.clone());
                    if !tx.answer_role_request(&asked).await? {
                        return Err(refused(RequestError::Answered));
                    }
                    let mut detail = told(&asked);
                    detail["state"] = json!({ "before": before.as_str(), "after": asked.request.state.as_str() });
                    detail["assignment"] = json!(asked.assignment);
                    detail["answer"] = json!(said);
                    let event = AuditEvent { action, target: id.to_string(), actor, detail: detail.clone() };
                    tx.record_audit(&event, ambient).await?;
                    tx.record_event(action.as_str(), &id.to_string(), &detail, ambient).await?;
                    Ok::<_, AppError>(asked)
                })
            })
            .await?;
        let state = answered.request.state.as_str();
        metrics::counter!("bulkhead_role_requests_answered_total", "state" => state).increment(1);
        Ok(answered)
    }

    /// # Errors
    /// A refusal; [`AppError::NotFound`].
    pub async fn show_role_request(
        &self,
        caller: &Caller,
        org: OrgId,
        id: RoleRequestId,
    ) -> Result<RoleRequest, AppError> {
        let scope = caller.authorize(org, Permission::RolesRead)?;
        let asked = self
            .store()
            .read(&scope, id, |tx, id| Box::pin(async move { Ok::<_, AppError>(tx.load_role_request(*id).await?) }))
            .await?;
        asked.ok_or(AppError::NotFound { what: "role request" })
    }

    /// Newest first.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_role_requests(
        &self,
        caller: &Caller,
        org: OrgId,
        page: PageRequest,
    ) -> Result<Page<RoleRequest>, AppError> {
        let scope = caller.authorize(org, Permission::RolesRead)?;
        self.store()
            .read(&scope, page, |tx, page| Box::pin(async move { Ok(tx.list_role_requests(*page).await?) }))
            .await
    }
}
