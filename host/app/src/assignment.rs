//! Roles given to members and taken away.

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{AssignmentId, OrgId, TeamId, UserId};
use bulkhead_model::permission::{Actor, Caller, OrgScope, Permission, SystemReason, SystemScope};
use bulkhead_model::role::assignment::{
    ASSIGNMENTS_MAX, Assignment, GrantRefused, Window, WindowError, Within, keep_an_admin,
};
use bulkhead_model::role::{BuiltIn, RoleRef};
use bulkhead_store::Tx;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::page::{Page, PageRequest};
use bulkhead_store::role::assignment::StoredAssignment;
use serde_json::{Value, json};

use crate::access::{Rights, load_roles};
use crate::role::exceeds;
use crate::{App, AppError};

/// Characters of the reason for which a role is given.
const REASON_LEN_MAX: usize = 500;

/// Who is to have which role.
#[derive(Clone, Debug)]
pub struct NewAssignment {
    pub user: UserId,
    pub role: RoleRef,
    /// Only on what belongs to this team.
    pub team: Option<TeamId>,
    pub window: Window,
    pub reason: String,
}

fn told(given: &Assignment) -> Value {
    json!({
        "user": given.user,
        "role": given.role,
        "team": given.team,
        "valid_from": given.window.from,
        "valid_until": given.window.until,
    })
}

fn place(team: Option<TeamId>) -> Within {
    team.map_or(Within::Organization, Within::Team)
}

/// Gives a role, in that transaction: the rules, the row, the audit entry.
pub(crate) async fn give(
    tx: &mut Tx,
    new: &NewAssignment,
    actor: &Actor,
    needed: Permission,
    ambient: &Ambient,
) -> Result<StoredAssignment, AppError> {
    tx.begin_policy_epoch(ambient.now()).await?;
    // Another change may have been waited for: what counts is the moment from which nothing changes any more.
    let now = ambient.now();
    let rights = Rights::load(tx, actor, now).await?;
    rights.require(needed, place(new.team))?;
    if *actor == Actor::User(new.user) {
        return Err(AppError::conflict("own-role", "nobody gives himself a role: somebody else has to do it"));
    }
    new.window.check(now).map_err(|error| {
        let path = match error {
            WindowError::Backwards | WindowError::Over => "/valid_until",
        };
        AppError::invalid("invalid-window", path, error.to_string())
    })?;
    let roles = load_roles(tx).await?;
    if !roles.contains(new.role) {
        return Err(AppError::invalid("unknown-role", "/role", format!("the organization has no role {}", new.role)));
    }
    if let Some(team) = new.team
        && tx.load_team(team).await?.is_none()
    {
        return Err(AppError::invalid("unknown-team", "/team", format!("the organization has no team {team}")));
    }
    if !tx.is_active_member(new.user).await? {
        let message = format!("{} is no member of the organization, or disabled", new.user);
        return Err(AppError::invalid("unknown-user", "/user", message));
    }
    // What is over gives nothing and stands in nobody's way.
    tx.delete_ended_assignments_of_user(new.user, now).await?;
    if tx.list_assignments_of(new.user).await?.len() >= ASSIGNMENTS_MAX {
        let message = format!("a member has at most {ASSIGNMENTS_MAX} roles: take one away first");
        return Err(AppError::conflict("too-many-roles", message));
    }
    let hold = rights.hold(roles.permissions_of(new.role), place(new.team));
    hold.may_give(new.window.until).map_err(|refused| {
        let path = match refused {
            GrantRefused::Lacks(_) => "/role",
            GrantRefused::Outlives(_) => "/valid_until",
        };
        exceeds(&refused, path)
    })?;
    let assignment = StoredAssignment {
        given: Assignment {
            id: AssignmentId::new(ambient),
            user: new.user,
            role: new.role,
            team: new.team,
            window: new.window,
        },
        granted_by: actor.to_string(),
        reason: new.reason.clone(),
        created_at: now,
    };
    tx.insert_assignment(&assignment).await?;
    let mut detail = told(&assignment.given);
    detail["reason"] = json!(assignment.reason);
    let target = assignment.given.id.to_string();
    let action = EventType::RoleAssigned;
    tx.record_audit(&AuditEvent { action, target, actor: actor.clone(), detail }, ambient).await?;
    Ok(assignment)
}

/// The role that somebody becomes a member with, in the transaction that makes him one. `actor` is who gives it.
pub(crate) async fn join_as(
    tx: &mut Tx,
    user: UserId,
    role: BuiltIn,
    window: Window,
    actor: &Actor,
    ambient: &Ambient,
) -> Result<(), AppError> {
    let now = ambient.now();
    tx.begin_policy_epoch(now).await?;
    let (role, team) = (RoleRef::BuiltIn(role), None);
    let assignment = StoredAssignment {
        given: Assignment { id: AssignmentId::new(ambient), user, role, team, window },
        granted_by: actor.to_string(),
        reason: "joined".to_owned(),
        created_at: now,
    };
    tx.insert_assignment(&assignment).await?;
    let mut detail = told(&assignment.given);
    detail["reason"] = json!(assignment.reason);
    let target = assignment.given.id.to_string();
    let action = EventType::RoleAssigned;
    Ok(tx.record_audit(&AuditEvent { action, target, actor: actor.clone(), detail }, ambient).await?)
}

impl App {
    /// Gives a member a role: nothing that the giver does not hold there, and for no longer than he holds it.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `unknown-user`, `unknown-role`, `unknown-team`, `invalid-window`, `invalid-reason`, `exceeds-own-rights`;
    /// [`AppError::Conflict`] `own-role`, `too-many-roles`.
    pub async fn assign_role(
        &self,
        caller: &Caller,
        org: OrgId,
        new: NewAssignment,
    ) -> Result<StoredAssignment, AppError> {
        let scope = caller.authorize_within(org, Permission::RolesAssign, place(new.team))?;
        self.assign_in(&scope, new).await
    }

    /// As [`assign_role`](Self::assign_role), by the operator: how an organization gets its first admin.
    ///
    /// # Errors
    /// As [`assign_role`](Self::assign_role).
    pub async fn assign_role_as_operator(&self, org: OrgId, new: NewAssignment) -> Result<StoredAssignment, AppError> {
        self.assign_in(&SystemScope::new(SystemReason::Admin).for_org(org), new).await
    }

    async fn assign_in(&self, scope: &OrgScope, new: NewAssignment) -> Result<StoredAssignment, AppError> {
        if new.reason.chars().count() > REASON_LEN_MAX {
            let message = format!("a reason has at most {REASON_LEN_MAX} characters");
            return Err(AppError::invalid("invalid-reason", "/reason", message));
        }
        let args = (new, scope.actor().clone(), self.ambient().clone());
        self.store()
            .write(scope, args, |tx, (new, actor, ambient)| {
                Box::pin(give(tx, new, actor, Permission::RolesAssign, ambient))
            })
            .await
    }

    /// Takes a role away, from the next request on: nothing that the taker does not hold, not his own, and not the last admin's.
    ///
    /// # Errors
    /// [`AppError::NotFound`]; [`AppError::Conflict`] `own-role`, `last-admin`; [`AppError::Invalid`] `exceeds-own-rights`.
    pub async fn unassign_role(&self, caller: &Caller, org: OrgId, id: AssignmentId) -> Result<(), AppError> {
        let scope = caller.authorize(org, Permission::RolesAssign)?;
        let args = (id, scope.actor().clone(), self.ambient().clone());
        self.store()
            .write(&scope, args, |tx, (id, actor, ambient)| {
                Box::pin(async move {
                    tx.begin_policy_epoch(ambient.now()).await?;
                    let now = ambient.now();
                    let stored =
                        tx.load_assignment(*id).await?.ok_or(AppError::NotFound { what: "role assignment" })?;
                    let given = stored.given;
                    if *actor == Actor::User(given.user) {
                        let message = "nobody takes away his own role: somebody else has to do it";
                        return Err(AppError::conflict("own-role", message));
                    }
                    let rights = Rights::load(tx, actor, now).await?;
                    rights.require(Permission::RolesAssign, Within::Organization)?;
                    let gives = load_roles(tx).await?.permissions_of(given.role);
                    let hold = rights.hold(gives, place(given.team));
                    hold.may_take().map_err(|refused| exceeds(&refused, ""))?;
                    let before = tx.count_lasting_admins(None, now).await?;
                    tx.delete_assignment(*id).await?;
                    let after = tx.count_lasting_admins(None, now).await?;
                    keep_an_admin(before, after)
                        .map_err(|error| AppError::conflict("last-admin", error.to_string()))?;
                    let event = AuditEvent {
                        action: EventType::RoleUnassigned,
                        target: id.to_string(),
                        actor: actor.clone(),
                        detail: json!({ "before": told(&given) }),
                    };
                    Ok(tx.record_audit(&event, ambient).await?)
                })
            })
            .await
    }

    /// Newest first; one user's where one is named.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_assignments(
        &self,
        caller: &Caller,
        org: OrgId,
        user: Option<UserId>,
        page: PageRequest,
    ) -> Result<Page<StoredAssignment>, AppError> {
        let scope = caller.authorize(org, Permission::RolesRead)?;
        self.store()
            .read(&scope, (user, page), |tx, (user, page)| {
                Box::pin(async move { Ok(tx.list_assignments(*user, *page).await?) })
            })
            .await
    }
}
