//! Installations: a plugin set up in an organization. Every change raises the version that calls are checked against.
//!
//! What an installation may do is decided by its grants, which only [`grants`](crate::grants) and the first install set. A
//! change of version carries them over and never widens what is in force: what the new version asks for beyond it waits for
//! consent and is named in the answer. A required permission that is not granted does not keep an installation from being
//! enabled; its calls end as `refused` before any guest code runs, until the permission is granted.

use std::sync::Arc;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::grant::{
    AskView, Budget, CapabilityGrant, Ceiling, EffectiveGrants, GRANTS_MAX, Grant, GrantVersion, Grants, HttpRule,
    Layers, SecretRule, Share, TooComplex, resolve_ask, secrets_asked,
};
use bulkhead_model::id::{InstallationId, OrgId};
use bulkhead_model::manifest::{CapabilityAsk, METHODS_MAX, Manifest, ORIGINS_MAX, PATHS_MAX, PermissionAsk};
use bulkhead_model::name::PluginName;
use bulkhead_model::permission::{Actor, Caller, OrgScope, Permission};
use bulkhead_model::time::Timestamp;
use bulkhead_model::workflow::StepKind;
use bulkhead_runtime::Digest;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::installation::{Installation, InstallationState};
use bulkhead_store::page::{PAGE_LIMIT_MAX, Page, PageRequest};
use bulkhead_store::plugin::Plugin;
use bulkhead_store::{StoreError, Tx};
use serde_json::{Value, json};

use crate::plugin::contract::Contract;
use crate::plugin::require_in_use;
use crate::{App, AppError, Problem};

/// Bytes of an installation's settings as JSON text.
pub const SETTINGS_BYTES_MAX: usize = 64 * 1024;
/// Active workflows that are read to tell who used an installation which ends: a definition has up to 1 MiB.
pub const USED_BY_LOOKED_AT_MAX: usize = 200;

/// What to install.
#[derive(Clone, Debug)]
pub struct NewInstallation {
    pub plugin: PluginName,
    pub version: String,
    /// A JSON object.
    pub settings: Value,
    pub grants: Grants,
}

/// What to change; absent parts stay.
#[derive(Clone, Debug, Default)]
pub struct InstallationPatch {
    pub settings: Option<Value>,
    /// Switches it on or off.
    pub enabled: Option<bool>,
    /// Another version of the same plugin, newer or older.
    pub version: Option<String>,
}

/// An installation with its plugin and the layers of its rights.
#[derive(Clone, Debug)]
pub struct InstallationDetail {
    pub installation: Installation,
    pub plugin: Plugin,
    pub layers: Layers,
}

impl InstallationDetail {
    /// Required asks of which nothing is in force: calls are refused until they are granted.
    pub fn missing_required(&self) -> impl Iterator<Item = &AskView> {
        let settings = &self.installation.settings;
        self.layers.asks.iter().filter(move |view| is_missing(view, settings))
    }

    /// Asks that are not wholly in force: what an admin may still grant.
    pub fn needs_consent(&self) -> impl Iterator<Item = &AskView> {
        let asks_for_something =
            |view: &&AskView| resolve_ask(&view.ask.capability, &self.installation.settings).is_some();
        self.layers.asks.iter().filter(|view| view.effective != Share::Whole).filter(asks_for_something)
    }
}

/// A required ask of which nothing is in force. One that takes its origin from a setting which is empty asks for nothing.
pub(crate) fn is_missing(view: &AskView, settings: &Value) -> bool {
    view.ask.required && view.effective == Share::None && resolve_ask(&view.ask.capability, settings).is_some()
}

/// What is left of an installation after its end.
#[derive(Clone, Debug)]
pub struct Uninstalled {
    /// Names of active workflows that used it, among the newest [`USED_BY_LOOKED_AT_MAX`]; their steps fail from now on.
    pub used_by: Vec<String>,
}

impl App {
    /// Installations with the layers of their rights, computed away from the threads that serve requests: each ask is compared
    /// with each grant.
    pub(crate) async fn details(
        &self,
        org: OrgId,
        found: Vec<(Installation, Plugin)>,
    ) -> Result<Vec<InstallationDetail>, AppError> {
        let (ceiling, now) = (Arc::clone(&self.sandbox().ceiling), self.ambient().now());
        let detail = move |(installation, plugin): (Installation, Plugin)| {
            let layers = Layers::of(&plugin.manifest, &installation.grants, &ceiling, &installation.settings, now);
            InstallationDetail { installation, plugin, layers }
        };
        self.planner().run(org, move || found.into_iter().map(detail).collect()).await
    }

    pub(crate) async fn detail(
        &self,
        org: OrgId,
        installation: Installation,
        plugin: Plugin,
    ) -> Result<InstallationDetail, AppError> {
        let details = self.details(org, vec![(installation, plugin)]).await?;
        Ok(details.into_iter().next().expect("one went in"))
    }

    /// Runs a check of grants and settings where it keeps nobody waiting and no transaction open.
    pub(crate) async fn checked<T: Send + 'static>(
        &self,
        org: OrgId,
        check: impl FnOnce(&Ceiling, Timestamp) -> Result<T, AppError> + Send + 'static,
    ) -> Result<T, AppError> {
        let (ceiling, now) = (Arc::clone(&self.sandbox().ceiling), self.ambient().now());
        self.planner().run(org, move || check(&ceiling, now)).await?
    }

    /// Installs a plugin version, enabled. Grants are taken as given and have to answer the manifest's asks.
    ///
    /// # Errors
    /// A refusal (`plugins.install`, and `plugins.grant` when something is granted); [`AppError::Invalid`]
    /// `invalid-installation` for an unknown plugin, settings or grants that do not fit.
    pub async fn install(
        &self,
        caller: &Caller,
        org: OrgId,
        new: NewInstallation,
    ) -> Result<InstallationDetail, AppError> {
        let scope = caller.authorize(org, Permission::PluginsInstall)?;
        if !new.grants.permissions.is_empty() {
            caller.authorize(org, Permission::PluginsGrant)?;
        }
        let found = self
            .store()
            .read(&scope, (new.plugin.clone(), new.version.clone()), |tx, (name, version)| {
                Box::pin(async move { Ok::<_, AppError>(tx.load_plugin_version(name.as_str(), version).await?) })
            })
            .await?;
        let plugin = found
            .filter(|plugin| plugin.deleted_at.is_none())
            .ok_or_else(|| unknown_version(&new.plugin, &new.version))?;
        let check = move |ceiling: &Ceiling, now| {
            check_settings(&plugin, &new.settings)?;
            check_grants(&plugin.manifest, &new.grants, ceiling, &new.settings, now)?;
            Ok((plugin, new))
        };
        let (plugin, new) = self.checked(org, check).await?;
        let now = self.ambient().now();
        let installation = Installation {
            id: InstallationId::new(self.ambient()),
            plugin: plugin.id,
            state: InstallationState::Enabled,
            settings: new.settings,
            grants: new.grants,
            grant_version: GrantVersion(1),
            created_at: now,
            updated_at: now,
        };
        let event = AuditEvent {
            action: EventType::InstallationCreated,
            target: installation.id.to_string(),
            actor: scope.actor().clone(),
            detail: json!({
                "plugin": plugin.name,
                "version": plugin.version,
                "digest": Digest(plugin.digest),
                "grants": installation.grants,
            }),
        };
        self.store()
            .write(
                &scope,
                (installation.clone(), event, self.ambient().clone()),
                |tx, (installation, event, ambient)| {
                    Box::pin(async move {
                        require_in_use(tx, installation.plugin).await?;
                        tx.insert_installation(installation).await?;
                        let (id, version) = (installation.id, installation.grant_version);
                        tx.record_grants(id, version, &installation.grants, &event.actor, installation.created_at)
                            .await?;
                        Ok::<_, AppError>(tx.record_audit(event, ambient).await?)
                    })
                },
            )
            .await?;
        self.detail(org, installation, plugin).await
    }

    /// Newest first, without uninstalled ones.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_installations(
        &self,
        caller: &Caller,
        org: OrgId,
        page: PageRequest,
    ) -> Result<Page<InstallationDetail>, AppError> {
        let scope = caller.authorize(org, Permission::PluginsRead)?;
        let page = self
            .store()
            .read(&scope, page, |tx, page| {
                Box::pin(async move {
                    let page = tx.list_installations(*page).await?;
                    let mut items = Vec::with_capacity(page.items.len());
                    for installation in page.items {
                        let plugin = require_plugin(tx, &installation).await?;
                        items.push((installation, plugin));
                    }
                    Ok::<_, AppError>(Page { items, next: page.next })
                })
            })
            .await?;
        Ok(Page { items: self.details(org, page.items).await?, next: page.next })
    }

    /// One installation.
    ///
    /// # Errors
    /// [`AppError::NotFound`], also for one that was uninstalled.
    pub async fn get_installation(
        &self,
        caller: &Caller,
        org: OrgId,
        id: InstallationId,
    ) -> Result<InstallationDetail, AppError> {
        let scope = caller.authorize(org, Permission::PluginsRead)?;
        let (installation, plugin) =
            self.store().read(&scope, id, |tx, id| Box::pin(async move { require(tx, *id).await })).await?;
        self.detail(org, installation, plugin).await
    }

    /// Changes settings, state or version, if the installation is still at the version that the caller saw. Calls that run
    /// are ended. Nothing to change is no change.
    ///
    /// # Errors
    /// [`AppError::StaleVersion`]; [`AppError::Invalid`] `invalid-installation`; [`AppError::NotFound`].
    pub async fn update_installation(
        &self,
        caller: &Caller,
        org: OrgId,
        id: InstallationId,
        seen: GrantVersion,
        patch: InstallationPatch,
    ) -> Result<InstallationDetail, AppError> {
        let scope = caller.authorize(org, Permission::PluginsInstall)?;
        let app = self.clone();
        self.to_the_end(
            "update installation",
            Box::pin(async move {
                let args = (id, seen, patch.version.clone());
                let (before, other) = app
                    .store()
                    .read(&scope, args, |tx, (id, seen, version)| {
                        Box::pin(async move {
                            let before = require_at(tx, *id, *seen).await?;
                            let other = match version {
                                Some(version) if *version != before.1.version => {
                                    let other = tx.load_plugin_version(before.1.name.as_str(), version).await?;
                                    let other = other.filter(|plugin| plugin.deleted_at.is_none());
                                    Some(other.ok_or_else(|| unknown_version(&before.1.name, version))?)
                                }
                                Some(_) | None => None,
                            };
                            Ok::<_, AppError>((before, other))
                        })
                    })
                    .await?;
                let patched = move |ceiling: &Ceiling, now| {
                    let (next, plugin) = patched(&before, other, &patch, ceiling, now)?;
                    Ok((before, next, plugin))
                };
                let (before, next, plugin) = app.checked(org, patched).await?;
                if is_same(&before.0, &next) {
                    return app.detail(org, before.0, before.1).await;
                }
                let args = (before, next, plugin, scope.actor().clone(), app.ambient().clone());
                let (installation, plugin) = app
                    .store()
                    .write(&scope, args, |tx, (before, next, plugin, actor, ambient)| {
                        Box::pin(async move {
                            // What was computed holds for the version that it was computed from.
                            require_at(tx, before.0.id, before.0.grant_version).await?;
                            require_in_use(tx, next.plugin).await?;
                            let mut next = Installation { updated_at: ambient.now(), ..next.clone() };
                            let version = save(tx, &before.0, &mut next, actor).await?;
                            tx.record_audit(&updated_event(before, (&next, plugin), version, actor), ambient).await?;
                            Ok::<_, AppError>((next, plugin.clone()))
                        })
                    })
                    .await?;
                app.installation_changed(org, id, installation.grant_version);
                app.detail(org, installation, plugin).await
            }),
        )
        .await
    }

    /// Ends an installation: its settings, grants and secrets are gone, its calls are ended; its record and its calls' stay.
    ///
    /// # Errors
    /// [`AppError::NotFound`]; [`AppError::StaleVersion`] when `seen` is given and not the current version.
    pub async fn uninstall(
        &self,
        caller: &Caller,
        org: OrgId,
        id: InstallationId,
        seen: Option<GrantVersion>,
    ) -> Result<Uninstalled, AppError> {
        let scope = caller.authorize(org, Permission::PluginsInstall)?;
        let app = self.clone();
        self.to_the_end(
            "uninstall",
            Box::pin(async move {
                let used_by = app.used_by(&scope, id).await?;
                let version = app
                    .store()
                    .write(
                        &scope,
                        (id, seen, used_by.clone(), scope.actor().clone(), app.ambient().clone()),
                        |tx, args| {
                            let (id, seen, used_by, actor, ambient) = args;
                            Box::pin(async move {
                                let (before, plugin) = require(tx, *id).await?;
                                if seen.is_some_and(|seen| seen != before.grant_version) {
                                    return Err(AppError::StaleVersion);
                                }
                                let mut next = Installation {
                                    state: InstallationState::Uninstalled,
                                    settings: json!({}),
                                    grants: Grants::default(),
                                    updated_at: ambient.now(),
                                    ..before.clone()
                                };
                                let secrets = tx.delete_secrets(*id).await?;
                                let version = save(tx, &before, &mut next, actor).await?;
                                let event = AuditEvent {
                                    action: EventType::InstallationUninstalled,
                                    target: id.to_string(),
                                    actor: actor.clone(),
                                    detail: json!({
                                        "plugin": plugin.name,
                                        "version": plugin.version,
                                        "digest": Digest(plugin.digest),
                                        "state": { "before": before.state.as_str(), "after": next.state.as_str() },
                                        "grants": { "before": before.grants, "after": next.grants },
                                        "secrets_deleted": secrets,
                                        "used_by": used_by,
                                    }),
                                };
                                tx.record_audit(&event, ambient).await?;
                                Ok(version)
                            })
                        },
                    )
                    .await?;
                app.installation_changed(org, id, version);
                Ok(Uninstalled { used_by })
            }),
        )
        .await
    }
}

fn unknown_version(name: &PluginName, version: &str) -> AppError {
    let message = format!("{name} {version} was not uploaded to this organization");
    AppError::Invalid {
        code: "invalid-installation",
        problems: vec![Problem::new("/version", "unknown-plugin", message.clone())],
        message,
    }
}

fn check_settings(plugin: &Plugin, settings: &Value) -> Result<(), AppError> {
    let invalid = |problems| AppError::Invalid {
        code: "invalid-installation",
        message: format!("the settings do not fit {} {}", plugin.name, plugin.version),
        problems,
    };
    let bytes = settings.to_string().len();
    if bytes > SETTINGS_BYTES_MAX {
        let message = format!("{bytes} bytes; at most {SETTINGS_BYTES_MAX} are allowed");
        return Err(invalid(vec![Problem::new("/settings", "too-large", message)]));
    }
    let problems = Contract::new(plugin.clone()).check_settings(settings)?;
    if problems.is_empty() { Ok(()) } else { Err(invalid(problems)) }
}

/// Whether grants answer the manifest's asks, and what they have in common with them can be asked at each request.
///
/// # Errors
/// [`AppError::Invalid`] `invalid-grants` with the first problem.
pub(crate) fn check_grants(
    manifest: &Manifest,
    grants: &Grants,
    ceiling: &Ceiling,
    settings: &Value,
    now: Timestamp,
) -> Result<(), AppError> {
    let problem = match grants.validate(manifest) {
        Err(error) => Problem::new(format!("/grants{}", error.path), "invalid-grant", error.problem),
        Ok(()) => match EffectiveGrants::try_compute(manifest, grants, ceiling, settings, now) {
            Err(error @ TooComplex) => Problem::new("/grants/permissions", "too-complex", error.to_string()),
            Ok(_) => return Ok(()),
        },
    };
    let message = format!("the grants do not fit {} {}", manifest.name, manifest.version);
    Err(AppError::Invalid { code: "invalid-grants", message, problems: vec![problem] })
}

pub(crate) async fn require_plugin(tx: &mut Tx, installation: &Installation) -> Result<Plugin, AppError> {
    let missing = || StoreError::Corrupt { what: "installation", why: "its plugin is not there".into() };
    Ok(tx.load_plugin(installation.plugin).await?.ok_or_else(missing)?)
}

/// An installation that was not uninstalled, with its plugin.
pub(crate) async fn require(tx: &mut Tx, id: InstallationId) -> Result<(Installation, Plugin), AppError> {
    let installation = tx.require_installation(id).await?;
    let plugin = require_plugin(tx, &installation).await?;
    Ok((installation, plugin))
}

/// The same, if it is still at the version that somebody saw.
pub(crate) async fn require_at(
    tx: &mut Tx,
    id: InstallationId,
    seen: GrantVersion,
) -> Result<(Installation, Plugin), AppError> {
    let found = require(tx, id).await?;
    if found.0.grant_version == seen { Ok(found) } else { Err(AppError::StaleVersion) }
}

/// Saves an installation that was at `before`, raises its version, and keeps the grants for history when they differ.
pub(crate) async fn save(
    tx: &mut Tx,
    before: &Installation,
    next: &mut Installation,
    actor: &Actor,
) -> Result<GrantVersion, AppError> {
    if !tx.update_installation(next, before.grant_version).await? {
        return Err(AppError::StaleVersion);
    }
    next.grant_version = GrantVersion(before.grant_version.0 + 1);
    if next.grants != before.grants {
        tx.record_grants(next.id, next.grant_version, &next.grants, actor, next.updated_at).await?;
    }
    Ok(next.grant_version)
}

fn is_same(before: &Installation, next: &Installation) -> bool {
    (before.plugin, before.state, &before.settings, &before.grants)
        == (next.plugin, next.state, &next.settings, &next.grants)
}

/// The installation with the patch applied, and the plugin version that it then is of: `other`, when the patch names one.
fn patched(
    before: &(Installation, Plugin),
    other: Option<Plugin>,
    patch: &InstallationPatch,
    ceiling: &Ceiling,
    now: Timestamp,
) -> Result<(Installation, Plugin), AppError> {
    let (mut next, mut plugin) = before.clone();
    if let Some(other) = other {
        plugin = other;
        next.plugin = plugin.id;
        next.grants = carried_over(&before.0, &before.1.manifest, &plugin.manifest)?;
    }
    if let Some(settings) = &patch.settings {
        next.settings = settings.clone();
    }
    if patch.settings.is_some() || next.plugin != before.0.plugin {
        check_settings(&plugin, &next.settings)?;
        // An origin may come from a setting.
        check_grants(&plugin.manifest, &next.grants, ceiling, &next.settings, now)?;
    }
    if let Some(enabled) = patch.enabled {
        next.state = if enabled { InstallationState::Enabled } else { InstallationState::Disabled };
    }
    Ok((next, plugin))
}

fn updated_event(
    before: &(Installation, Plugin),
    after: (&Installation, &Plugin),
    version: GrantVersion,
    actor: &Actor,
) -> AuditEvent {
    let mut detail = json!({ "grant_version": version, "settings_changed": before.0.settings != after.0.settings });
    if before.0.state != after.0.state {
        detail["state"] = json!({ "before": before.0.state.as_str(), "after": after.0.state.as_str() });
    }
    if before.1.id != after.1.id {
        detail["version"] = json!({ "before": before.1.version, "after": after.1.version });
        detail["digest"] = json!({ "before": Digest(before.1.digest), "after": Digest(after.1.digest) });
        detail["grants"] = json!({ "before": before.0.grants, "after": after.0.grants });
    }
    AuditEvent { action: EventType::InstallationUpdated, target: after.0.id.to_string(), actor: actor.clone(), detail }
}

/// Grants for another version of the plugin: what the old version asked for of each grant, and nothing for which the new one
/// does not ask at all. A grant may be wider than the old version's ask, and would otherwise come into force unseen when the
/// new version asks for more.
fn carried_over(installation: &Installation, old: &Manifest, new: &Manifest) -> Result<Grants, AppError> {
    let too_many = || {
        let message =
            "the grants fall apart into too many when they are narrowed to what was asked: grant them anew first";
        AppError::conflict("too-many-grants", message)
    };
    let asked = |ask: &PermissionAsk| resolve_ask(&ask.capability, &installation.settings);
    let asks: Vec<CapabilityGrant> = old.permissions.iter().filter_map(asked).collect();
    let asks_for_requests = new.permissions.iter().any(|ask| matches!(ask.capability, CapabilityAsk::Http { .. }));
    let budget = &mut Budget::default();
    let mut carried = Vec::new();
    for grant in &installation.grants.permissions {
        let still_asked = match &grant.capability {
            CapabilityGrant::Http(_) => asks_for_requests,
            CapabilityGrant::Secret(rule) => secrets_asked(new).any(|name| *name == rule.name),
        };
        if !still_asked {
            continue;
        }
        for capability in narrowed(&grant.capability, &asks, budget).map_err(|TooComplex| too_many())? {
            let grant = Grant { capability, expires_at: grant.expires_at };
            if !carried.contains(&grant) {
                carried.push(grant);
            }
            if carried.len() > GRANTS_MAX {
                return Err(too_many());
            }
        }
    }
    let carried = Grants { permissions: carried };
    // A secret's places cannot be told apart into two grants: whoever narrowed them to too many is told.
    carried.check().map_err(|_| too_many())?;
    Ok(carried)
}

/// The parts of a grant that were in force under `asks`.
fn narrowed(
    grant: &CapabilityGrant,
    asks: &[CapabilityGrant],
    budget: &mut Budget,
) -> Result<Vec<CapabilityGrant>, TooComplex> {
    let mut parts = Vec::new();
    match grant {
        CapabilityGrant::Http(rule) => {
            let asked: Vec<&HttpRule> = asks
                .iter()
                .filter_map(|ask| if let CapabilityGrant::Http(ask) = ask { Some(ask) } else { None })
                .collect();
            if asked.iter().any(|ask| ask.covers(rule)) {
                return Ok(vec![grant.clone()]);
            }
            for ask in asked {
                if let Some(rule) = ask.meet(rule, budget)? {
                    parts.extend(in_bounds(&rule).map(CapabilityGrant::Http));
                }
            }
        }
        CapabilityGrant::Secret(rule) => {
            let asked = asks.iter().find_map(|ask| match ask {
                CapabilityGrant::Secret(ask) if ask.name == rule.name => Some(ask),
                CapabilityGrant::Secret(_) | CapabilityGrant::Http(_) => None,
            });
            if let Some(ask) = asked {
                let inject = ask.inject.meet(&rule.inject, budget)?;
                parts.push(CapabilityGrant::Secret(SecretRule { name: rule.name.clone(), inject }));
            }
        }
    }
    Ok(parts)
}

/// A rule as several that together let out the same and each hold no more than a grant may.
fn in_bounds(rule: &HttpRule) -> impl Iterator<Item = HttpRule> + '_ {
    rule.origins.chunks(ORIGINS_MAX).flat_map(move |origins| {
        rule.methods.chunks(METHODS_MAX).flat_map(move |methods| {
            rule.paths.chunks(PATHS_MAX).map(move |paths| HttpRule {
                origins: origins.to_vec(),
                methods: methods.to_vec(),
                paths: paths.to_vec(),
            })
        })
    })
}

impl App {
    /// Names of active workflows whose steps mean this installation, for whoever ends it: it stands in nobody's way, so it is
    /// read before the transaction, and of the newest [`USED_BY_LOOKED_AT_MAX`] only.
    async fn used_by(&self, scope: &OrgScope, id: InstallationId) -> Result<Vec<String>, AppError> {
        let (plugin, is_only, workflows) = self
            .store()
            .read(scope, id, |tx, id| {
                Box::pin(async move {
                    let (_, plugin) = require(tx, *id).await?;
                    let only = tx.load_installation_of(&plugin.name, None).await?;
                    let is_only = only.is_some_and(|only| only.id == *id);
                    let mut active = Vec::new();
                    let mut page = PageRequest { before: None, limit: PAGE_LIMIT_MAX };
                    loop {
                        let found = tx.list_workflows(page).await?;
                        active.extend(found.items.into_iter().filter(|workflow| workflow.active));
                        match found.next {
                            Some(before) if active.len() < USED_BY_LOOKED_AT_MAX => page.before = Some(before),
                            Some(_) | None => break,
                        }
                    }
                    active.truncate(USED_BY_LOOKED_AT_MAX);
                    Ok::<_, AppError>((plugin.name, is_only, active))
                })
            })
            .await?;
        let mut names = Vec::new();
        for workflow in workflows {
            // One that this version cannot read uses nothing.
            let Ok(definition) = self.definition(scope, workflow.id, workflow.current_version).await else { continue };
            let means_it = definition.steps.values().any(|step| {
                let StepKind::Call(call) = &step.kind else { return false };
                call.installation.map_or(is_only && call.plugin == plugin, |named| named == id)
            });
            if means_it {
                names.push(workflow.name);
            }
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::ambient::Ambient;
    use bulkhead_model::id::PluginId;
    use bulkhead_model::manifest::Inject;
    use proptest::prelude::*;
    use proptest::sample::{select, subsequence};

    const ORIGINS: &[&str] = &["https://*", "https://*.example.com", "https://a.example.com", "https://b.example.net"];
    const METHODS: &[&str] = &["GET", "POST", "PUT"];
    const PATHS: &[&str] = &["/", "/in", "/in/deep", "/out"];

    /// One permission of either kind, in the shape that asks and grants share.
    fn permission() -> impl Strategy<Value = Value> {
        let some = |all: &'static [&'static str]| subsequence(all.to_vec(), 1..=all.len());
        let http = (some(ORIGINS), some(METHODS), some(PATHS));
        let http = http.prop_map(|(origins, methods, paths)| {
            json!({ "kind": "http", "origins": origins, "methods": methods, "paths": paths })
        });
        // A secret goes to named hosts, never to any.
        let secret = (some(&ORIGINS[1..]), subsequence(vec!["authorization", "x-token"], 0..=2), any::<bool>());
        let secret = secret.prop_map(|(origins, headers, body)| {
            json!({ "kind": "secret", "name": "token", "inject": { "origins": origins, "headers": headers, "body": body } })
        });
        prop_oneof![http, secret]
    }

    fn permissions() -> impl Strategy<Value = Vec<Value>> {
        let at_most_one_secret = |all: Vec<Value>| {
            let mut seen = false;
            all.into_iter().filter(|one| one["kind"] == "http" || !std::mem::replace(&mut seen, true)).collect()
        };
        prop::collection::vec(permission(), 0..4).prop_map(at_most_one_secret)
    }

    fn manifest(asks: &[Value]) -> Manifest {
        let with_reason = |ask: &Value| {
            let mut ask = ask.clone();
            ask["reason"] = json!("it needs it");
            ask
        };
        let asks: Vec<Value> = asks.iter().map(with_reason).collect();
        serde_json::from_value(json!({
            "name": "acme/it", "version": "1.0.0", "wit": "bulkhead:plugin@0.1", "title": "It", "permissions": asks,
        }))
        .unwrap()
    }

    fn holding(granted: &[Value], ambient: &Ambient) -> Installation {
        Installation {
            id: InstallationId::new(ambient),
            plugin: PluginId::new(ambient),
            state: InstallationState::Enabled,
            settings: json!({}),
            grants: serde_json::from_value(json!({ "permissions": granted })).unwrap(),
            grant_version: GrantVersion(1),
            created_at: ambient.now(),
            updated_at: ambient.now(),
        }
    }

    /// As many origins as a list may hold, each crossed with two others: what is left is longer than one grant may be.
    fn crossing(what: &Value) -> (Manifest, Installation) {
        let origins = |pattern: &dyn Fn(usize) -> String| (0..ORIGINS_MAX).map(pattern).collect::<Vec<_>>();
        let mut ask = what.clone();
        ask["origins"] = json!(origins(&|n| format!("https://h{n}.example.com:*")));
        let mut grant = what.clone();
        grant["origins"] = json!(["https://*.example.com:81", "https://*.example.com:82"]);
        if what["kind"] == "secret" {
            ask = json!({ "kind": "secret", "name": "token", "inject": { "body": true, "origins": ask["origins"] } });
            grant =
                json!({ "kind": "secret", "name": "token", "inject": { "body": true, "origins": grant["origins"] } });
        }
        (manifest(&[ask]), holding(&[grant], &Ambient::manual(Timestamp::from_micros(0), 1)))
    }

    #[test]
    fn a_grant_that_is_narrowed_to_many_origins_stays_in_force() {
        let (manifest, installation) = crossing(&json!({ "kind": "http", "methods": ["GET"], "paths": ["/"] }));
        let carried = carried_over(&installation, &manifest, &manifest).unwrap();
        assert_eq!(carried.permissions.len(), 2);
        carried.validate(&manifest).unwrap();
        let ceiling = Ceiling {
            http: vec![
                serde_json::from_value::<Grants>(json!({ "permissions": [
            { "kind": "http", "origins": ["https://*:*"], "methods": ["*"], "paths": ["/"] },
        ] }))
                .map(|grants| match &grants.permissions[0].capability {
                    CapabilityGrant::Http(rule) => rule.clone(),
                    CapabilityGrant::Secret(_) => panic!("it is a rule about requests"),
                })
                .unwrap(),
            ],
            ..Ceiling::default()
        };
        let now = Timestamp::from_micros(0);
        let effective = EffectiveGrants::compute(&manifest, &carried, &ceiling, &json!({}), now);
        for (host, port, allowed) in [(0, 81, true), (31, 82, true), (31, 83, false), (32, 81, false)] {
            let url = format!("https://h{host}.example.com:{port}/").parse().unwrap();
            assert_eq!(effective.http("GET", &url).is_ok(), allowed, "{url}");
        }
    }

    /// There is one grant for each secret, so its places cannot be told apart into two: the admin is asked.
    #[test]
    fn a_secret_with_too_many_places_is_not_dropped_silently() {
        let (manifest, installation) = crossing(&json!({ "kind": "secret" }));
        let refused = carried_over(&installation, &manifest, &manifest);
        assert!(matches!(refused, Err(AppError::Conflict { code: "too-many-grants", .. })), "{refused:?}");
    }

    proptest! {
        /// What a change of version leaves in force was in force before, whatever the admin granted and the new version asks.
        #[test]
        fn carrying_over_never_widens(
            (old, new, granted) in (permissions(), permissions(), permissions()),
            method in select(METHODS.to_vec()),
            host in select(vec!["a.example.com", "c.example.com", "b.example.net", "other.org"]),
            path in select(vec!["/", "/in", "/in/deep/x", "/out", "/else"]),
        ) {
            let (old, new) = (manifest(&old), manifest(&new));
            let now = Timestamp::from_micros(0);
            let ambient = Ambient::manual(now, 1);
            let installation = holding(&granted, &ambient);
            let carried = carried_over(&installation, &old, &new).unwrap();
            prop_assert!(carried.validate(&new).is_ok());
            let ceiling = Ceiling::default();
            let before = EffectiveGrants::compute(&old, &installation.grants, &ceiling, &json!({}), now);
            let after = EffectiveGrants::compute(&new, &carried, &ceiling, &json!({}), now);
            let url = format!("https://{host}{path}").parse().unwrap();
            prop_assert!(after.http(method, &url).is_err() || before.http(method, &url).is_ok(), "{carried:?}");
            // The same manifest once more changes nothing that is in force.
            let same = carried_over(&installation, &old, &old).unwrap();
            let same = EffectiveGrants::compute(&old, &same, &ceiling, &json!({}), now);
            prop_assert_eq!(same.http(method, &url).is_ok(), before.http(method, &url).is_ok());
            let common = |left: &Inject<_>, right| left.meet(right, &mut Budget::default()).unwrap().origins;
            if let Some(secret) = after.secret("token") {
                let held = before.secret("token");
                prop_assert!(held.is_some_and(|held| {
                    secret.inject.headers.iter().all(|header| held.inject.headers.contains(header))
                        && (held.inject.body || !secret.inject.body)
                        && common(&secret.inject, &held.inject) == common(&secret.inject, &secret.inject)
                }), "{secret:?} {held:?}");
            }
        }
    }
}
