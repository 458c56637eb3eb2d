//! Secrets of installations: stored, replaced, removed. Nobody reads a value but the egress guard, when a call uses it.

use std::sync::Arc;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::grant::{GrantVersion, secrets_asked};
use bulkhead_model::id::{InstallationId, OrgId, SecretId};
use bulkhead_model::manifest::{CapabilityAsk, Manifest};
use bulkhead_model::name::SecretName;
use bulkhead_model::permission::{Caller, OrgScope, Permission};
use bulkhead_model::time::Timestamp;
use bulkhead_runtime::{SecretError, SecretSource};
use bulkhead_store::StoreError;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::installation::Installation;
use bulkhead_store::seal::Place;
use bulkhead_store::secret::Secret;
use futures_util::future::BoxFuture;
use serde_json::json;
use zeroize::Zeroizing;

use crate::installation::{require, save};
use crate::{App, AppError};

/// Bytes of a secret's value.
pub const SECRET_BYTES_MAX: usize = 16 * 1024;

/// A secret that a plugin asks for, or that is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretEntry {
    pub name: SecretName,
    /// The installed version asks for it.
    pub asked: bool,
    /// When its value was stored; `None` when there is none.
    pub stored_at: Option<Timestamp>,
}

/// What became of a stored secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredSecret {
    /// `false` when another value was replaced.
    pub created: bool,
    pub grant_version: GrantVersion,
}

fn place(org: OrgId, row: SecretId) -> Place<'static> {
    Place { table: "secret", column: "ciphertext", org, row: row.uuid() }
}

fn invalid_value(message: impl Into<String>) -> AppError {
    AppError::invalid("invalid-secret", "/value", message)
}

/// Whether a value can go where the manifest says: one with a line break would be refused in a header at each use.
fn check_value(manifest: &Manifest, name: &SecretName, value: &str) -> Result<(), AppError> {
    if !secrets_asked(manifest).any(|asked| asked == name) {
        let message = format!("{} {} asks for no secret named {name}", manifest.name, manifest.version);
        return Err(AppError::invalid("unknown-secret", "/name", message));
    }
    if value.is_empty() || value.len() > SECRET_BYTES_MAX {
        return Err(invalid_value(format!("a value has 1 to {SECRET_BYTES_MAX} bytes")));
    }
    let in_header = manifest.permissions.iter().any(|ask| match &ask.capability {
        CapabilityAsk::Secret { name: asked, inject } => asked == name && !inject.headers.is_empty(),
        CapabilityAsk::Http { .. } => false,
    });
    if in_header && value.chars().any(char::is_control) {
        return Err(invalid_value(
            "the value goes into a header and may hold no line breaks or other control characters",
        ));
    }
    Ok(())
}

impl App {
    /// Stores a secret's value, or replaces it. Calls that run are ended, so that none goes on with the old one.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `unknown-secret` for a name that the plugin does not ask for, `invalid-secret` for a value out of
    /// bounds; [`AppError::NotFound`].
    pub async fn put_secret(
        &self,
        caller: &Caller,
        org: OrgId,
        installation: InstallationId,
        name: SecretName,
        value: Zeroizing<String>,
    ) -> Result<StoredSecret, AppError> {
        let scope = caller.authorize(org, Permission::SecretsWrite)?;
        let app = self.clone();
        self.to_the_end("put secret", Box::pin(async move {
            let args = (installation, name, value, scope.actor().clone(), app.sealer().clone(), app.ambient().clone());
            let stored = app
                .store()
                .write(&scope, args, |tx, (installation, name, value, actor, sealer, ambient)| {
                    Box::pin(async move {
                        let (before, plugin) = require(tx, *installation).await?;
                        check_value(&plugin.manifest, name, value)?;
                        let (known, now) = (tx.load_secret(*installation, name).await?, ambient.now());
                        // The row keeps its id, since the ciphertext is bound to it.
                        let id = known.as_ref().map_or_else(|| SecretId::new(ambient), |known| known.id);
                        let secret = Secret {
                            id,
                            installation: *installation,
                            name: name.clone(),
                            ciphertext: tx.seal(sealer, &place(tx.org()?, id), value.as_bytes()).await?,
                            created_at: known.as_ref().map_or(now, |known| known.created_at),
                            updated_at: now,
                        };
                        match &known {
                            Some(_) => tx.update_secret(&secret).await?,
                            None => tx.insert_secret(&secret).await?,
                        }
                        let mut next = Installation { updated_at: now, ..before.clone() };
                        let grant_version = save(tx, &before, &mut next, actor).await?;
                        let event = AuditEvent {
                            action: EventType::SecretStored,
                            target: installation.to_string(),
                            actor: actor.clone(),
                            detail: json!({ "name": name, "replaced": known.is_some(), "grant_version": grant_version }),
                        };
                        tx.record_audit(&event, ambient).await?;
                        Ok::<_, AppError>(StoredSecret { created: known.is_none(), grant_version })
                    })
                })
                .await?;
            app.installation_changed(org, installation, stored.grant_version);
            Ok(stored)
        }))
        .await
    }

    /// Removes a secret's value. Calls that run are ended.
    ///
    /// # Errors
    /// [`AppError::NotFound`] when none is stored under the name.
    pub async fn delete_secret(
        &self,
        caller: &Caller,
        org: OrgId,
        installation: InstallationId,
        name: SecretName,
    ) -> Result<(), AppError> {
        let scope = caller.authorize(org, Permission::SecretsWrite)?;
        let app = self.clone();
        self.to_the_end(
            "delete secret",
            Box::pin(async move {
                let args = (installation, name, scope.actor().clone(), app.ambient().clone());
                let version = app
                    .store()
                    .write(&scope, args, |tx, (installation, name, actor, ambient)| {
                        Box::pin(async move {
                            let (before, _) = require(tx, *installation).await?;
                            if !tx.delete_secret(*installation, name).await? {
                                return Err(AppError::NotFound { what: "secret" });
                            }
                            let mut next = Installation { updated_at: ambient.now(), ..before.clone() };
                            let version = save(tx, &before, &mut next, actor).await?;
                            let event = AuditEvent {
                                action: EventType::SecretDeleted,
                                target: installation.to_string(),
                                actor: actor.clone(),
                                detail: json!({ "name": name, "grant_version": version }),
                            };
                            tx.record_audit(&event, ambient).await?;
                            Ok(version)
                        })
                    })
                    .await?;
                app.installation_changed(org, installation, version);
                Ok(())
            }),
        )
        .await
    }

    /// The names of the secrets that the plugin asks for or that are stored; never a value.
    ///
    /// # Errors
    /// [`AppError::NotFound`], or a refusal.
    pub async fn list_secrets(
        &self,
        caller: &Caller,
        org: OrgId,
        installation: InstallationId,
    ) -> Result<Vec<SecretEntry>, AppError> {
        let scope = caller.authorize(org, Permission::PluginsRead)?;
        self.store()
            .read(&scope, installation, |tx, installation| {
                Box::pin(async move {
                    let (_, plugin) = require(tx, *installation).await?;
                    let stored = tx.list_secrets(*installation).await?;
                    let mut entries: Vec<SecretEntry> = secrets_asked(&plugin.manifest)
                        .map(|name| SecretEntry { name: name.clone(), asked: true, stored_at: None })
                        .collect();
                    for secret in stored {
                        let stored_at = Some(secret.updated_at);
                        match entries.iter_mut().find(|entry| entry.name == secret.name) {
                            Some(entry) => entry.stored_at = stored_at,
                            None => entries.push(SecretEntry { name: secret.name, asked: false, stored_at }),
                        }
                    }
                    Ok::<_, AppError>(entries)
                })
            })
            .await
    }

    /// Where one call's secrets come from.
    pub(crate) fn secret_source(&self, scope: &OrgScope, installation: InstallationId) -> Arc<dyn SecretSource> {
        Arc::new(Source { app: self.clone(), scope: scope.clone(), installation })
    }
}

/// Loads and opens values when a call asks for them.
struct Source {
    app: App,
    scope: OrgScope,
    installation: InstallationId,
}

/// A stored value cannot be read, does not open or is no text.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a stored secret is no text")]
    NotText,
}

async fn open(
    app: App,
    scope: OrgScope,
    installation: InstallationId,
    name: SecretName,
) -> Result<Option<Zeroizing<String>>, OpenError> {
    let opened = app
        .store()
        .read(&scope, (installation, name, app.sealer().clone()), |tx, (installation, name, sealer)| {
            Box::pin(async move {
                let Some(secret) = tx.load_secret(*installation, name).await? else { return Ok(None) };
                let place = place(tx.org()?, secret.id);
                Ok::<_, StoreError>(Some(tx.open_sealed(sealer, &place, &secret.ciphertext).await?))
            })
        })
        .await?;
    let Some(plain) = opened else { return Ok(None) };
    let text = std::str::from_utf8(&plain).map_err(|_| OpenError::NotText)?;
    Ok(Some(Zeroizing::new(text.to_owned())))
}

impl SecretSource for Source {
    fn load(&self, name: SecretName) -> BoxFuture<'static, Result<Option<Zeroizing<String>>, SecretError>> {
        let opened = open(self.app.clone(), self.scope.clone(), self.installation, name);
        Box::pin(async move { opened.await.map_err(|error| SecretError(Box::new(error))) })
    }
}
