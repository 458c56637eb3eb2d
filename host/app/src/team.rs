//! Teams: who works together, and on whose things a role may be given apart.

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::id::{OrgId, TeamId, UserId};
use bulkhead_model::permission::{Caller, Permission};
use bulkhead_model::role::assignment::Within;
use bulkhead_model::role::{RoleName, RoleNameError};
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::page::{Page, PageRequest};
use bulkhead_store::team::{Team, TeamMember};
use serde_json::json;

use crate::{App, AppError};

/// Teams of an organization.
pub const TEAMS_MAX: i64 = 500;
/// Members of a team.
pub const TEAM_MEMBERS_MAX: i64 = 1000;

fn parse(name: &str) -> Result<RoleName, AppError> {
    name.parse().map_err(|error: RoleNameError| AppError::invalid("invalid-name", "/name", error.to_string()))
}

fn taken(name: &RoleName) -> AppError {
    AppError::conflict("team-exists", format!("there is a team that is called {} already", name.as_str()))
}

impl App {
    /// # Errors
    /// [`AppError::Invalid`] `invalid-name`; [`AppError::Conflict`] `team-exists`, `too-many-teams`.
    pub async fn create_team(&self, caller: &Caller, org: OrgId, name: &str) -> Result<Team, AppError> {
        let scope = caller.authorize(org, Permission::TeamsWrite)?;
        let args = (parse(name)?, scope.actor().clone(), self.ambient().clone());
        self.store()
            .write(&scope, args, |tx, (name, actor, ambient)| {
                Box::pin(async move {
                    let now = ambient.now();
                    if tx.count_teams().await? >= TEAMS_MAX {
                        let message = format!("an organization has at most {TEAMS_MAX} teams");
                        return Err(AppError::conflict("too-many-teams", message));
                    }
                    let (id, name) = (TeamId::new(ambient), name.clone());
                    let team = Team { id, name, revision: 1, created_at: now, updated_at: now };
                    if !tx.insert_team(&team).await? {
                        return Err(taken(&team.name));
                    }
                    let event = AuditEvent {
                        action: EventType::TeamCreated,
                        target: team.id.to_string(),
                        actor: actor.clone(),
                        detail: json!({ "name": team.name.as_str() }),
                    };
                    tx.record_audit(&event, ambient).await?;
                    Ok(team)
                })
            })
            .await
    }

    /// Renames a team, if it is still as the caller saw it. Whoever holds the right for this team alone may, too.
    ///
    /// # Errors
    /// As [`create_team`](Self::create_team); [`AppError::NotFound`], [`AppError::StaleVersion`].
    pub async fn rename_team(
        &self,
        caller: &Caller,
        org: OrgId,
        id: TeamId,
        seen: i64,
        name: &str,
    ) -> Result<Team, AppError> {
        let scope = caller.authorize_within(org, Permission::TeamsWrite, Within::Team(id))?;
        let args = (id, seen, parse(name)?, scope.actor().clone(), self.ambient().clone());
        self.store()
            .write(&scope, args, |tx, (id, seen, name, actor, ambient)| {
                Box::pin(async move {
                    let before = tx.load_team(*id).await?.ok_or(AppError::NotFound { what: "team" })?;
                    if before.revision != *seen {
                        return Err(AppError::StaleVersion);
                    }
                    if tx.load_team_by_name(name).await?.is_some_and(|other| other.id != *id) {
                        return Err(taken(name));
                    }
                    let revision = before.revision + 1;
                    let team = Team { name: name.clone(), revision, updated_at: ambient.now(), ..before.clone() };
                    if !tx.update_team(&team, *seen).await? {
                        return Err(AppError::StaleVersion);
                    }
                    let event = AuditEvent {
                        action: EventType::TeamUpdated,
                        target: id.to_string(),
                        actor: actor.clone(),
                        detail: json!({ "before": { "name": before.name.as_str() }, "after": { "name": name.as_str() } }),
                    };
                    tx.record_audit(&event, ambient).await?;
                    Ok(team)
                })
            })
            .await
    }

    /// Deletes a team for which nobody has a role any more.
    ///
    /// # Errors
    /// [`AppError::NotFound`], [`AppError::StaleVersion`]; [`AppError::Conflict`] `team-in-use`.
    pub async fn delete_team(&self, caller: &Caller, org: OrgId, id: TeamId, seen: i64) -> Result<(), AppError> {
        let scope = caller.authorize(org, Permission::TeamsWrite)?;
        let args = (id, seen, scope.actor().clone(), self.ambient().clone());
        self.store()
            .write(&scope, args, |tx, (id, seen, actor, ambient)| {
                Box::pin(async move {
                    // A role may be given for the team at the same moment.
                    tx.begin_policy_epoch(ambient.now()).await?;
                    let now = ambient.now();
                    let before = tx.load_team(*id).await?.ok_or(AppError::NotFound { what: "team" })?;
                    if before.revision != *seen {
                        return Err(AppError::StaleVersion);
                    }
                    if tx.count_assignments_of_team(*id, now).await? > 0 {
                        let message = "members have roles for this team: take them away first";
                        return Err(AppError::conflict("team-in-use", message));
                    }
                    tx.delete_ended_assignments_of_team(*id, now).await?;
                    tx.delete_team(*id).await?;
                    let event = AuditEvent {
                        action: EventType::TeamDeleted,
                        target: id.to_string(),
                        actor: actor.clone(),
                        detail: json!({ "before": { "name": before.name.as_str() } }),
                    };
                    Ok(tx.record_audit(&event, ambient).await?)
                })
            })
            .await
    }

    /// # Errors
    /// A refusal; [`AppError::NotFound`].
    pub async fn show_team(&self, caller: &Caller, org: OrgId, id: TeamId) -> Result<Team, AppError> {
        let scope = caller.authorize_within(org, Permission::TeamsRead, Within::Team(id))?;
        let team = self
            .store()
            .read(&scope, id, |tx, id| Box::pin(async move { Ok::<_, AppError>(tx.load_team(*id).await?) }))
            .await?;
        team.ok_or(AppError::NotFound { what: "team" })
    }

    /// Newest first.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_teams(&self, caller: &Caller, org: OrgId, page: PageRequest) -> Result<Page<Team>, AppError> {
        let scope = caller.authorize(org, Permission::TeamsRead)?;
        self.store().read(&scope, page, |tx, page| Box::pin(async move { Ok(tx.list_teams(*page).await?) })).await
    }

    /// Who is in a team.
    ///
    /// # Errors
    /// A refusal; [`AppError::NotFound`].
    pub async fn list_team_members(
        &self,
        caller: &Caller,
        org: OrgId,
        id: TeamId,
        page: PageRequest,
    ) -> Result<Page<TeamMember>, AppError> {
        let scope = caller.authorize_within(org, Permission::TeamsRead, Within::Team(id))?;
        self.store()
            .read(&scope, (id, page), |tx, (id, page)| {
                Box::pin(async move {
                    tx.load_team(*id).await?.ok_or(AppError::NotFound { what: "team" })?;
                    Ok(tx.list_team_members(*id, *page).await?)
                })
            })
            .await
    }

    /// Puts a member into a team; twice is no error. Being in a team gives no right by itself.
    ///
    /// # Errors
    /// A refusal; [`AppError::NotFound`]; [`AppError::Invalid`] `unknown-user`; [`AppError::Conflict`] `team-full`.
    pub async fn add_team_member(&self, caller: &Caller, org: OrgId, id: TeamId, user: UserId) -> Result<(), AppError> {
        let scope = caller.authorize_within(org, Permission::TeamsWrite, Within::Team(id))?;
        let args = (id, user, scope.actor().clone(), self.ambient().clone());
        self.store()
            .write(&scope, args, |tx, (id, user, actor, ambient)| {
                Box::pin(async move {
                    tx.load_team(*id).await?.ok_or(AppError::NotFound { what: "team" })?;
                    if !tx.is_active_member(*user).await? {
                        let message = format!("{user} is no member of the organization, or disabled");
                        return Err(AppError::invalid("unknown-user", "", message));
                    }
                    if !tx.insert_team_member(*id, *user, ambient.now()).await? {
                        return Ok(());
                    }
                    if tx.count_team_members(*id).await? > TEAM_MEMBERS_MAX {
                        let message = format!("a team has at most {TEAM_MEMBERS_MAX} members");
                        return Err(AppError::conflict("team-full", message));
                    }
                    let event = AuditEvent {
                        action: EventType::TeamUpdated,
                        target: id.to_string(),
                        actor: actor.clone(),
                        detail: json!({ "added": user }),
                    };
                    Ok(tx.record_audit(&event, ambient).await?)
                })
            })
            .await
    }

    /// Takes a member out of a team; one who is not in it is no error.
    ///
    /// # Errors
    /// A refusal; [`AppError::NotFound`].
    pub async fn remove_team_member(
        &self,
        caller: &Caller,
        org: OrgId,
        id: TeamId,
        user: UserId,
    ) -> Result<(), AppError> {
        let scope = caller.authorize_within(org, Permission::TeamsWrite, Within::Team(id))?;
        let args = (id, user, scope.actor().clone(), self.ambient().clone());
        self.store()
            .write(&scope, args, |tx, (id, user, actor, ambient)| {
                Box::pin(async move {
                    tx.load_team(*id).await?.ok_or(AppError::NotFound { what: "team" })?;
                    if tx.delete_team_member(*id, *user).await? {
                        let event = AuditEvent {
                            action: EventType::TeamUpdated,
                            target: id.to_string(),
                            actor: actor.clone(),
                            detail: json!({ "removed": user }),
                        };
                        tx.record_audit(&event, ambient).await?;
                    }
                    Ok(())
                })
            })
            .await
    }
}
