//! Roles of an organization's own: made, changed, deleted. The built-in ones are listed beside them and stay as they are.

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::id::{OrgId, RoleId};
use bulkhead_model::permission::{Actor, Caller, Permission, PermissionSet};
use bulkhead_model::role::assignment::{GrantRefused, Within};
use bulkhead_model::role::{DESCRIPTION_LEN_MAX, Gives, RoleError, RoleName, RoleRef, Roles};
use bulkhead_model::time::Timestamp;
use bulkhead_store::Tx;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::role::Role;
use serde_json::{Value, json};

use crate::access::{Rights, is_assigned, roles_of};
use crate::{App, AppError};

/// What a role is to be.
#[derive(Clone, Debug)]
pub struct NewRole {
    pub name: String,
    pub description: String,
    pub gives: Gives,
}

/// A role with all that it gives.
#[derive(Clone, Debug)]
pub struct RoleDetail {
    pub role: Role,
    /// What it gives and inherits.
    pub all: PermissionSet,
}

fn detail(role: Role, roles: &Roles) -> RoleDetail {
    RoleDetail { all: roles.permissions_of(RoleRef::Own(role.id)), role }
}

fn wrong(error: &RoleError) -> AppError {
    let path = match error {
        RoleError::Empty | RoleError::OfPlatform(_) => "/permissions",
        RoleError::NotInheritable(_)
        | RoleError::Unknown(_)
        | RoleError::Repeated(_)
        | RoleError::TooManyParents
        | RoleError::Cycle(_)
        | RoleError::TooDeep(_) => "/inherits",
        RoleError::TooManyRoles => "",
    };
    AppError::invalid("invalid-role", path, error.to_string())
}

/// What the grant rule says, as a problem of the input at `path`.
pub(crate) fn exceeds(refused: &GrantRefused, path: &'static str) -> AppError {
    AppError::invalid("exceeds-own-rights", path, refused.to_string())
}

fn names(set: PermissionSet) -> Vec<&'static str> {
    set.iter().map(Permission::as_str).collect()
}

fn told(role: &Role) -> Value {
    json!({
        "name": role.name.as_str(),
        "description": role.description,
        "permissions": names(role.gives.permissions),
        "inherits": role.gives.inherits,
    })
}

fn parse(new: &NewRole) -> Result<RoleName, AppError> {
    if new.description.chars().count() > DESCRIPTION_LEN_MAX {
        let message = format!("a description has at most {DESCRIPTION_LEN_MAX} characters");
        return Err(AppError::invalid("invalid-role", "/description", message));
    }
    new.name.parse().map_err(|error: bulkhead_model::role::RoleNameError| {
        AppError::invalid("invalid-name", "/name", error.to_string())
    })
}

fn require_free(stored: &[Role], name: &RoleName, besides: Option<RoleId>) -> Result<(), AppError> {
    let key = name.key();
    if stored.iter().any(|role| Some(role.id) != besides && role.name.key() == key) {
        return Err(AppError::conflict(
            "role-exists",
            format!("there is a role that is called {} already", name.as_str()),
        ));
    }
    Ok(())
}

/// Whoever changes what a role gives holds what the change adds or takes. Where somebody has the role, he holds the addition without
/// an end: it would be theirs without one.
async fn require_hold(
    tx: &mut Tx,
    actor: &Actor,
    change: (PermissionSet, PermissionSet),
    reaches_somebody: bool,
    now: Timestamp,
) -> Result<(), AppError> {
    let (before, after) = change;
    let refused = |refused: GrantRefused| exceeds(&refused, "/permissions");
    let rights = Rights::load(tx, actor, now).await?;
    rights.require(Permission::RolesWrite, Within::Organization)?;
    rights.hold(before.without(after), Within::Organization).may_take().map_err(refused)?;
    let added = after.without(before);
    let hold = rights.hold(added, Within::Organization);
    if reaches_somebody && !added.is_empty() { hold.may_give(None) } else { hold.may_take() }.map_err(refused)
}

impl App {
    /// The organization's own roles, by name.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_roles(&self, caller: &Caller, org: OrgId) -> Result<Vec<RoleDetail>, AppError> {
        let scope = caller.authorize(org, Permission::RolesRead)?;
        let stored: Vec<Role> = self
            .store()
            .read(&scope, (), |tx, ()| Box::pin(async move { Ok::<_, AppError>(tx.list_roles().await?) }))
            .await?;
        let roles = roles_of(&stored);
        Ok(stored.into_iter().map(|role| detail(role, &roles)).collect())
    }

    /// One of the organization's own roles.
    ///
    /// # Errors
    /// A refusal; [`AppError::NotFound`].
    pub async fn show_role(&self, caller: &Caller, org: OrgId, id: RoleId) -> Result<RoleDetail, AppError> {
        let all = self.list_roles(caller, org).await?;
        all.into_iter().find(|detail| detail.role.id == id).ok_or(AppError::NotFound { what: "role" })
    }

    /// Makes a role that gives no more than its maker holds.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `invalid-name`, `invalid-role`, `exceeds-own-rights`; [`AppError::Conflict`] `role-exists`.
    pub async fn create_role(&self, caller: &Caller, org: OrgId, new: NewRole) -> Result<RoleDetail, AppError> {
        let scope = caller.authorize(org, Permission::RolesWrite)?;
        let name = parse(&new)?;
        let args = (new, name, scope.actor().clone(), self.ambient().clone());
        self.store()
            .write(&scope, args, |tx, (new, name, actor, ambient)| {
                Box::pin(async move {
                    tx.begin_policy_epoch(ambient.now()).await?;
                    let now = ambient.now();
                    let stored = tx.list_roles().await?;
                    require_free(&stored, name, None)?;
                    let role = Role {
                        id: RoleId::new(ambient),
                        name: name.clone(),
                        description: new.description.clone(),
                        gives: new.gives.clone(),
                        revision: 1,
                        created_at: now,
                        updated_at: now,
                    };
                    let roles = roles_of(&stored).with(role.id, role.gives.clone());
                    roles.check().map_err(|error| wrong(&error))?;
                    let after = roles.permissions_of(RoleRef::Own(role.id));
                    require_hold(tx, actor, (PermissionSet::EMPTY, after), false, now).await?;
                    if !tx.insert_role(&role).await? {
                        return Err(AppError::conflict("role-exists", "there is a role of this name already"));
                    }
                    let event = AuditEvent {
                        action: EventType::RoleCreated,
                        target: role.id.to_string(),
                        actor: actor.clone(),
                        detail: told(&role),
                    };
                    tx.record_audit(&event, ambient).await?;
                    Ok(detail(role, &roles))
                })
            })
            .await
    }

    /// Changes a role as a whole, if it is still the one that the caller saw. Members who have it, or a role that inherits from it,
    /// have what it gives from the next request on.
    ///
    /// # Errors
    /// As [`create_role`](Self::create_role); [`AppError::NotFound`], [`AppError::StaleVersion`].
    pub async fn update_role(
        &self,
        caller: &Caller,
        org: OrgId,
        id: RoleId,
        seen: i64,
        new: NewRole,
    ) -> Result<RoleDetail, AppError> {
        let scope = caller.authorize(org, Permission::RolesWrite)?;
        let name = parse(&new)?;
        let args = (id, seen, new, name, scope.actor().clone(), self.ambient().clone());
        self.store()
            .write(&scope, args, |tx, (id, seen, new, name, actor, ambient)| {
                Box::pin(async move {
                    tx.begin_policy_epoch(ambient.now()).await?;
                    let now = ambient.now();
                    let stored = tx.list_roles().await?;
                    let before =
                        stored.iter().find(|role| role.id == *id).ok_or(AppError::NotFound { what: "role" })?;
                    if before.revision != *seen {
                        return Err(AppError::StaleVersion);
                    }
                    require_free(&stored, name, Some(*id))?;
                    let role = Role {
                        name: name.clone(),
                        description: new.description.clone(),
                        gives: new.gives.clone(),
                        revision: before.revision + 1,
                        updated_at: now,
                        ..before.clone()
                    };
                    let old = roles_of(&stored);
                    let roles = old.clone().with(role.id, role.gives.clone());
                    roles.check().map_err(|error| wrong(&error))?;
                    let change = (old.permissions_of(RoleRef::Own(*id)), roles.permissions_of(RoleRef::Own(*id)));
                    let reaches_somebody = is_assigned(tx, &roles, *id, now).await?;
                    require_hold(tx, actor, change, reaches_somebody, now).await?;
                    if !tx.update_role(&role, *seen).await? {
                        return Err(AppError::StaleVersion);
                    }
                    let event = AuditEvent {
                        action: EventType::RoleUpdated,
                        target: role.id.to_string(),
                        actor: actor.clone(),
                        detail: json!({ "before": told(before), "after": told(&role) }),
                    };
                    tx.record_audit(&event, ambient).await?;
                    Ok(detail(role, &roles))
                })
            })
            .await
    }

    /// Deletes a role that nobody has and none inherits from.
    ///
    /// # Errors
    /// [`AppError::NotFound`], [`AppError::StaleVersion`]; [`AppError::Conflict`] `role-in-use`; [`AppError::Invalid`]
    /// `exceeds-own-rights`.
    pub async fn delete_role(&self, caller: &Caller, org: OrgId, id: RoleId, seen: i64) -> Result<(), AppError> {
        let scope = caller.authorize(org, Permission::RolesWrite)?;
        let args = (id, seen, scope.actor().clone(), self.ambient().clone());
        self.store()
            .write(&scope, args, |tx, (id, seen, actor, ambient)| {
                Box::pin(async move {
                    tx.begin_policy_epoch(ambient.now()).await?;
                    let now = ambient.now();
                    let stored = tx.list_roles().await?;
                    let before =
                        stored.iter().find(|role| role.id == *id).ok_or(AppError::NotFound { what: "role" })?;
                    if before.revision != *seen {
                        return Err(AppError::StaleVersion);
                    }
                    let roles = roles_of(&stored);
                    let role = RoleRef::Own(*id);
                    if !roles.heirs_of(role).is_empty() {
                        return Err(AppError::conflict(
                            "role-in-use",
                            "another role inherits from it: change that one first",
                        ));
                    }
                    if tx.count_assignments_of_role(*id, now).await? > 0 {
                        return Err(AppError::conflict(
                            "role-in-use",
                            "members have this role: take it from them first",
                        ));
                    }
                    require_hold(tx, actor, (roles.permissions_of(role), PermissionSet::EMPTY), false, now).await?;
                    tx.delete_ended_assignments_of_role(*id, now).await?;
                    tx.delete_role(*id).await?;
                    let event = AuditEvent {
                        action: EventType::RoleDeleted,
                        target: id.to_string(),
                        actor: actor.clone(),
                        detail: json!({ "before": told(before) }),
                    };
                    Ok(tx.record_audit(&event, ambient).await?)
                })
            })
            .await
    }
}
