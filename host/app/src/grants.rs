//! What an installation may do: shown in layers, changed as a whole, in force at once.

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::grant::{Ceiling, GrantVersion, Grants};
use bulkhead_model::id::{InstallationId, OrgId};
use bulkhead_model::permission::{Caller, Permission};
use bulkhead_runtime::Digest;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::installation::Installation;
use serde_json::json;

use crate::installation::{InstallationDetail, check_grants, require_at, save};
use crate::{App, AppError};

impl App {
    /// The three layers of an installation's rights and their result.
    ///
    /// # Errors
    /// [`AppError::NotFound`], or a refusal.
    pub async fn show_grants(
        &self,
        caller: &Caller,
        org: OrgId,
        id: InstallationId,
    ) -> Result<InstallationDetail, AppError> {
        self.get_installation(caller, org, id).await
    }

    /// Replaces an installation's grants, if it is still at the version that the caller saw. From the moment of the commit no
    /// call that began under the old grants commits anything; those that run are ended.
    ///
    /// # Errors
    /// [`AppError::StaleVersion`]; [`AppError::Invalid`] `invalid-grants`; [`AppError::NotFound`].
    pub async fn replace_grants(
        &self,
        caller: &Caller,
        org: OrgId,
        id: InstallationId,
        seen: GrantVersion,
        grants: Grants,
    ) -> Result<InstallationDetail, AppError> {
        let scope = caller.authorize(org, Permission::PluginsGrant)?;
        let app = self.clone();
        self.to_the_end(
            "replace grants",
            Box::pin(async move {
                let found = app
                    .store()
                    .read(&scope, (id, seen), |tx, (id, seen)| {
                        Box::pin(async move { require_at(tx, *id, *seen).await })
                    })
                    .await?;
                let check = move |ceiling: &Ceiling, now| {
                    let (installation, plugin) = &found;
                    check_grants(&plugin.manifest, &grants, ceiling, &installation.settings, now)?;
                    Ok(grants)
                };
                let grants = app.checked(org, check).await?;
                let (installation, plugin) = app
                    .store()
                    .write(&scope, (id, seen, grants, scope.actor().clone(), app.ambient().clone()), |tx, args| {
                        let (id, seen, grants, actor, ambient) = args;
                        Box::pin(async move {
                            // The grants were checked against this very version of the installation.
                            let (before, plugin) = require_at(tx, *id, *seen).await?;
                            let mut next =
                                Installation { grants: grants.clone(), updated_at: ambient.now(), ..before.clone() };
                            if next.grants == before.grants {
                                return Ok((before, plugin));
                            }
                            let version = save(tx, &before, &mut next, actor).await?;
                            let event = AuditEvent {
                                action: EventType::GrantsChanged,
                                target: id.to_string(),
                                actor: actor.clone(),
                                detail: json!({
                                    "plugin": plugin.name,
                                    "version": plugin.version,
                                    "digest": Digest(plugin.digest),
                                    "grant_version": { "before": seen, "after": version },
                                    "grants": { "before": before.grants, "after": next.grants },
                                }),
                            };
                            tx.record_audit(&event, ambient).await?;
                            Ok::<_, AppError>((next, plugin))
                        })
                    })
                    .await?;
                app.installation_changed(org, id, installation.grant_version);
                app.detail(org, installation, plugin).await
            }),
        )
        .await
    }
}
