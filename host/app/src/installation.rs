//! Installations: a plugin set up in an organization. Every change raises the version that calls are checked against.
//!
//! What an installation may do is decided by its grants, which only [`grants`](crate::grants) and the first install set. A
//! change of version carries them over and never widens what is in force: what the new version asks for beyond it waits for
//! consent and is named in the answer. A required permission that is not granted does not keep an installation from being
//! enabled; its calls end as `refused` before any guest code runs, until the permission is granted.

use bulkhead_model::audit::AuditEvent;
use bulkhead_model::grant::{
    AskView, CapabilityGrant, GRANTS_MAX, Grant, GrantVersion, Grants, HttpRule, Layers, SecretRule, Share, resolve_ask,
};
use bulkhead_model::id::{InstallationId, OrgId};
use bulkhead_model::manifest::{Manifest, PermissionAsk};
use bulkhead_model::name::PluginName;
use bulkhead_model::permission::{Actor, Caller, Permission};
use bulkhead_model::workflow::{Definition, StepKind};
use bulkhead_runtime::Digest;
use bulkhead_store::installation::{Installation, InstallationState};
use bulkhead_store::page::{PAGE_LIMIT_MAX, Page, PageRequest};
use bulkhead_store::plugin::Plugin;
use bulkhead_store::{StoreError, Tx};
use serde_json::{Value, json};

use crate::plugin::contract::Contract;
use crate::{App, AppError, Problem};

/// Bytes of an installation's settings as JSON text.
pub const SETTINGS_BYTES_MAX: usize = 64 * 1024;

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
    /// Names of active workflows that used it; their steps fail from now on.
    pub used_by: Vec<String>,
}

impl App {
    pub(crate) fn detail(&self, installation: Installation, plugin: Plugin) -> InstallationDetail {
        let now = self.ambient().now();
        let ceiling = &self.sandbox().ceiling;
        let layers = Layers::of(&plugin.manifest, &installation.grants, ceiling, &installation.settings, now);
        InstallationDetail { installation, plugin, layers }
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
        let plugin = found.ok_or_else(|| unknown_version(&new.plugin, &new.version))?;
        check_settings(&plugin, &new.settings)?;
        check_grants(&plugin.manifest, &new.grants)?;
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
            action: "installation.created",
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
                        tx.insert_installation(installation).await?;
                        let (id, version) = (installation.id, installation.grant_version);
                        tx.record_grants(id, version, &installation.grants, &event.actor, installation.created_at)
                            .await?;
                        Ok::<_, AppError>(tx.record_audit(event, ambient).await?)
                    })
                },
            )
            .await?;
        Ok(self.detail(installation, plugin))
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
        let items = page.items.into_iter().map(|(installation, plugin)| self.detail(installation, plugin)).collect();
        Ok(Page { items, next: page.next })
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
        Ok(self.detail(installation, plugin))
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
                let (installation, plugin) = app
                    .store()
                    .write(&scope, (id, seen, patch, scope.actor().clone(), app.ambient().clone()), |tx, args| {
                        let (id, seen, patch, actor, ambient) = args;
                        Box::pin(async move {
                            let before = require_at(tx, *id, *seen).await?;
                            let (mut next, plugin) = patched(tx, &before, patch).await?;
                            if is_same(&before.0, &next) {
                                return Ok(before);
                            }
                            next.updated_at = ambient.now();
                            let version = save(tx, &before.0, &mut next, actor).await?;
                            tx.record_audit(&updated_event(&before, (&next, &plugin), version, actor), ambient).await?;
                            Ok::<_, AppError>((next, plugin))
                        })
                    })
                    .await?;
                app.installation_changed(org, id, installation.grant_version);
                Ok(app.detail(installation, plugin))
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
                let (used_by, version) = app
                    .store()
                    .write(&scope, (id, seen, scope.actor().clone(), app.ambient().clone()), |tx, args| {
                        let (id, seen, actor, ambient) = args;
                        Box::pin(async move {
                            let (before, plugin) = require(tx, *id).await?;
                            if seen.is_some_and(|seen| seen != before.grant_version) {
                                return Err(AppError::StaleVersion);
                            }
                            let used_by = used_by(tx, &before, &plugin).await?;
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
                                action: "installation.uninstalled",
                                target: id.to_string(),
                                actor: actor.clone(),
                                detail: json!({
                                    "plugin": plugin.name,
                                    "version": plugin.version,
                                    "digest": Digest(plugin.digest),
                                    "grants": { "before": before.grants, "after": next.grants },
                                    "secrets_deleted": secrets,
                                    "used_by": used_by,
                                }),
                            };
                            tx.record_audit(&event, ambient).await?;
                            Ok((used_by, version))
                        })
                    })
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

/// Whether grants answer the manifest's asks.
///
/// # Errors
/// [`AppError::Invalid`] `invalid-grants` with the first problem.
pub(crate) fn check_grants(manifest: &Manifest, grants: &Grants) -> Result<(), AppError> {
    grants.validate(manifest).map_err(|error| {
        let message = format!("the grants do not fit {} {}", manifest.name, manifest.version);
        let problem = Problem::new(format!("/grants{}", error.path), "invalid-grant", error.problem);
        AppError::Invalid { code: "invalid-grants", message, problems: vec![problem] }
    })
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

/// The installation with the patch applied, and the plugin version that it then is of.
async fn patched(
    tx: &mut Tx,
    before: &(Installation, Plugin),
    patch: &InstallationPatch,
) -> Result<(Installation, Plugin), AppError> {
    let (mut next, mut plugin) = before.clone();
    if let Some(version) = &patch.version
        && *version != plugin.version
    {
        let other = tx.load_plugin_version(plugin.name.as_str(), version).await?;
        plugin = other.ok_or_else(|| unknown_version(&before.1.name, version))?;
        next.plugin = plugin.id;
        next.grants = carried_over(&before.0, &before.1.manifest, &plugin.manifest)?;
    }
    if let Some(settings) = &patch.settings {
        next.settings = settings.clone();
    }
    if patch.settings.is_some() || next.plugin != before.0.plugin {
        check_settings(&plugin, &next.settings)?;
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
    AuditEvent { action: "installation.updated", target: after.0.id.to_string(), actor: actor.clone(), detail }
}

/// Grants for another version of the plugin: what the old version asked for of each grant, and nothing for which the new one
/// does not ask at all. A grant may be wider than the old version's ask, and would otherwise come into force unseen when the
/// new version asks for more.
fn carried_over(installation: &Installation, old: &Manifest, new: &Manifest) -> Result<Grants, AppError> {
    let asked = |ask: &PermissionAsk| resolve_ask(&ask.capability, &installation.settings);
    let asks: Vec<CapabilityGrant> = old.permissions.iter().filter_map(asked).collect();
    let mut carried = Vec::new();
    for grant in &installation.grants.permissions {
        for capability in narrowed(&grant.capability, &asks) {
            let grant = Grant { capability, expires_at: grant.expires_at };
            let still_asked = Grants { permissions: vec![grant.clone()] }.validate(new).is_ok();
            if still_asked && !carried.contains(&grant) {
                carried.push(grant);
            }
        }
    }
    if carried.len() > GRANTS_MAX {
        let message =
            "the grants fall apart into too many when they are narrowed to what was asked: grant them anew first";
        return Err(AppError::conflict("too-many-grants", message));
    }
    Ok(Grants { permissions: carried })
}

/// The parts of a grant that were in force under `asks`.
fn narrowed(grant: &CapabilityGrant, asks: &[CapabilityGrant]) -> Vec<CapabilityGrant> {
    match grant {
        CapabilityGrant::Http(rule) => {
            let asked: Vec<&HttpRule> = asks
                .iter()
                .filter_map(|ask| if let CapabilityGrant::Http(ask) = ask { Some(ask) } else { None })
                .collect();
            if asked.iter().any(|ask| ask.covers(rule)) {
                return vec![grant.clone()];
            }
            asked.iter().filter_map(|ask| ask.meet(rule)).map(CapabilityGrant::Http).collect()
        }
        CapabilityGrant::Secret(rule) => {
            let asked = asks.iter().find_map(|ask| match ask {
                CapabilityGrant::Secret(ask) if ask.name == rule.name => Some(ask),
                _ => None,
            });
            let narrow = |ask: &SecretRule| {
                CapabilityGrant::Secret(SecretRule { name: rule.name.clone(), inject: ask.inject.meet(&rule.inject) })
            };
            asked.map(narrow).into_iter().collect()
        }
    }
}

/// Names of the active workflows whose steps mean this installation.
async fn used_by(tx: &mut Tx, installation: &Installation, plugin: &Plugin) -> Result<Vec<String>, AppError> {
    let mut names = Vec::new();
    let mut page = PageRequest { before: None, limit: PAGE_LIMIT_MAX };
    loop {
        let found = tx.list_workflows(page).await?;
        for workflow in found.items.iter().filter(|workflow| workflow.active) {
            let Some(version) = tx.load_workflow_version(workflow.id, workflow.current_version).await? else {
                continue;
            };
            let Ok((definition, _)) = Definition::parse(&version.definition) else { continue };
            for step in definition.steps.values() {
                let StepKind::Call(call) = &step.kind else { continue };
                let means_it = match call.installation {
                    Some(named) => named == installation.id,
                    None if call.plugin == plugin.name => {
                        let only = tx.load_installation_for(&call.plugin, None).await?;
                        only.is_some_and(|(only, _)| only.id == installation.id)
                    }
                    None => false,
                };
                if means_it {
                    names.push(workflow.name.clone());
                    break;
                }
            }
        }
        match found.next {
            Some(before) => page.before = Some(before),
            None => return Ok(names),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::ambient::Ambient;
    use bulkhead_model::grant::{Ceiling, EffectiveGrants};
    use bulkhead_model::id::PluginId;
    use bulkhead_model::time::Timestamp;
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
        let secret = (some(ORIGINS), subsequence(vec!["authorization", "x-token"], 0..=2), any::<bool>());
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
            let installation = Installation {
                id: InstallationId::new(&ambient),
                plugin: PluginId::new(&ambient),
                state: InstallationState::Enabled,
                settings: json!({}),
                grants: serde_json::from_value(json!({ "permissions": granted })).unwrap(),
                grant_version: GrantVersion(1),
                created_at: now,
                updated_at: now,
            };
            let Ok(carried) = carried_over(&installation, &old, &new) else { return Ok(()) };
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
            if let Some(secret) = after.secret("token") {
                let held = before.secret("token");
                prop_assert!(held.is_some_and(|held| {
                    secret.inject.headers.iter().all(|header| held.inject.headers.contains(header))
                        && (held.inject.body || !secret.inject.body)
                        && secret.inject.meet(&held.inject).origins == secret.inject.meet(&secret.inject).origins
                }), "{secret:?} {held:?}");
            }
        }
    }
}
