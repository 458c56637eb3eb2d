//! Plugins: packages that an organization uploads, checked and compiled before anything is stored.

pub(crate) mod contract;

use std::sync::Arc;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::id::{OrgId, PluginId};
use bulkhead_model::limits::PackageLimits;
use bulkhead_model::permission::{Caller, OrgScope, Permission};
use bulkhead_model::quota::{Quota, Quotas};
use bulkhead_runtime::compiler::CompileError;
use bulkhead_runtime::{Digest, LoadError, PackageError, PackageInfo, PrepareError, Prepared};
use bulkhead_store::Tx;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::page::{Page, PageRequest};
use bulkhead_store::plugin::{Plugin, PluginCount};
use bytes::Bytes;
use serde_json::json;

use crate::quota::QuotaExceeded;
use crate::sandbox::FIRST_PARTY_PUBLISHER;
use crate::{App, AppError, Problem};

/// Names of deleted versions that are kept for each version that an organization may hold: they stand in its history, and keep a
/// version from meaning other bytes.
const DELETED_PER_VERSION_MAX: u64 = 10;

/// A package's place in the organization.
#[derive(Clone, Debug)]
pub struct Uploaded {
    pub plugin: Plugin,
    /// `false` when the same bytes were there already.
    pub created: bool,
}

impl App {
    /// Takes a package: looks into it, compiles it in a child process, stores it. The same bytes again answer what is there.
    ///
    /// # Errors
    /// [`AppError::TooLarge`]; [`AppError::Invalid`] `invalid-package` with what is wrong and where, `compile-failed` or
    /// `compile-timeout`; [`AppError::Conflict`] `version-exists` for other bytes under the same name and version,
    /// [`AppError::Quota`] when the organization holds as many versions, or bytes of them, as it may;
    /// [`AppError::Runtime`] when the compiler cannot be started. None of them changes anything.
    pub async fn upload_plugin(&self, caller: &Caller, org: OrgId, package: Bytes) -> Result<Uploaded, AppError> {
        let scope = caller.authorize(org, Permission::PluginsUpload)?;
        let limit_bytes = PackageLimits::platform().package_bytes;
        if package.len() as u64 > limit_bytes {
            return Err(AppError::TooLarge { what: "package", limit_bytes });
        }
        let info = self.inspect(package.clone()).await?;
        let (name, version) = (info.manifest.name.clone(), info.manifest.version.to_string());
        let (slug, held, known) = self
            .store()
            .read(&scope, (name.clone(), version.clone()), |tx, (name, version)| {
                Box::pin(async move {
                    let slug = tx.require_org().await?.slug;
                    let held = (tx.count_plugins().await?, tx.load_quotas().await?);
                    Ok::<_, AppError>((slug, held, tx.load_plugin_version(name.as_str(), version).await?))
                })
            })
            .await?;
        self.check_publisher(&info, slug.as_str())?;
        if let Some(known) = known {
            let known = same_or_conflict(known, info.digest)?;
            if known.plugin.deleted_at.is_none() {
                return Ok(known);
            }
        }
        // Before it is compiled, which costs most; and again when it is stored.
        check_quota(held.0, &held.1, info.size_bytes)?;
        let bytes = package.clone();
        self.prepare(info.digest, async move { Ok(bytes.to_vec()) }).await.map_err(|error| not_compiled(&error))?;
        let plugin = Plugin {
            id: PluginId::new(self.ambient()),
            name,
            version,
            digest: info.digest.0,
            manifest: info.manifest,
            size_bytes: i64::try_from(info.size_bytes).unwrap_or(i64::MAX),
            created_at: self.ambient().now(),
            deleted_at: None,
        };
        self.insert_plugin(&scope, plugin, package).await
    }

    async fn insert_plugin(&self, scope: &OrgScope, plugin: Plugin, package: Bytes) -> Result<Uploaded, AppError> {
        let event = AuditEvent {
            action: EventType::PluginUploaded,
            target: plugin.id.to_string(),
            actor: scope.actor().clone(),
            detail: json!({
                "name": plugin.name,
                "version": plugin.version,
                "digest": Digest(plugin.digest),
                "size_bytes": plugin.size_bytes,
            }),
        };
        self.store()
            .write(scope, (plugin, package, event, self.ambient().clone()), |tx, (plugin, package, event, ambient)| {
                Box::pin(async move {
                    let held = tx.count_plugins().await?;
                    tx.insert_artifact(&plugin.digest, package, plugin.created_at).await?;
                    if tx.insert_plugin(plugin).await? {
                        check_quota(held, &tx.load_quotas().await?, package.len() as u64)?;
                        tx.record_audit(event, ambient).await?;
                        return Ok(Uploaded { plugin: plugin.clone(), created: true });
                    }
                    // Somebody else was quicker, or it was there before and was deleted.
                    let stored = tx.load_plugin_version(plugin.name.as_str(), &plugin.version).await?;
                    let stored = stored.ok_or(AppError::NotFound { what: "plugin" })?;
                    let known = same_or_conflict(stored, Digest(plugin.digest))?;
                    if !tx.restore_plugin(known.plugin.id).await? {
                        return Ok(known);
                    }
                    check_quota(held, &tx.load_quotas().await?, package.len() as u64)?;
                    let event = AuditEvent { target: known.plugin.id.to_string(), ..event.clone() };
                    tx.record_audit(&event, ambient).await?;
                    Ok(Uploaded { plugin: Plugin { deleted_at: None, ..known.plugin }, created: true })
                })
            })
            .await
    }

    /// Takes a version out of use: its package is gone, its name stays for the history and for the same bytes, should they be uploaded
    /// again.
    ///
    /// # Errors
    /// [`AppError::NotFound`]; [`AppError::Conflict`] `plugin-installed`.
    pub async fn delete_plugin(&self, caller: &Caller, org: OrgId, id: PluginId) -> Result<(), AppError> {
        let scope = caller.authorize(org, Permission::PluginsUpload)?;
        // What is prepared of it stays: another organization may use the same package, and use alone says what goes.
        self.store()
            .write(&scope, (id, scope.actor().clone(), self.ambient().clone()), |tx, (id, actor, ambient)| {
                Box::pin(async move {
                    let plugin = require_in_use(tx, *id).await?;
                    if tx.is_plugin_installed(*id).await? {
                        let message = format!(
                            "{} {} is installed: uninstall it, or move the installation to another version, first",
                            plugin.name, plugin.version
                        );
                        return Err(AppError::conflict("plugin-installed", message));
                    }
                    tx.delete_plugin(*id, ambient.now()).await?;
                    let event = AuditEvent {
                        action: EventType::PluginDeleted,
                        target: id.to_string(),
                        actor: actor.clone(),
                        detail: json!({
                            "name": plugin.name,
                            "version": plugin.version,
                            "digest": Digest(plugin.digest),
                            "size_bytes": plugin.size_bytes,
                        }),
                    };
                    Ok::<_, AppError>(tx.record_audit(&event, ambient).await?)
                })
            })
            .await
    }

    /// Looks into a package on a thread that may block.
    async fn inspect(&self, package: Bytes) -> Result<PackageInfo, AppError> {
        let runtime = self.sandbox().runtime.clone();
        let inspected = tokio::task::spawn_blocking(move || runtime.inspect(&package)).await;
        inspected.map_err(|error| AppError::Runtime(Box::new(error)))?.map_err(|error| not_acceptable(&error))
    }

    /// A manifest's publisher is the organization that uploads it; the platform's own name is for the packages that it ships.
    fn check_publisher(&self, info: &PackageInfo, slug: &str) -> Result<(), AppError> {
        let publisher = info.manifest.name.publisher();
        let message = if publisher == FIRST_PARTY_PUBLISHER {
            if self.sandbox().first_party.contains(&info.digest) {
                return Ok(());
            }
            format!(
                "the publisher {publisher} is reserved for the packages that the platform ships; this is none of them"
            )
        } else if publisher == slug {
            return Ok(());
        } else {
            format!(
                "the publisher {publisher} is not this organization: name the plugin {slug}/{}",
                info.manifest.name.plugin()
            )
        };
        Err(invalid_package(Problem::new("/manifest/name", "foreign-publisher", message)))
    }

    /// The package of this digest, ready to be called.
    pub(crate) async fn prepare<L>(&self, digest: Digest, load: L) -> Result<Arc<Prepared>, Arc<PrepareError>>
    where
        L: Future<Output = Result<Vec<u8>, LoadError>> + Send,
    {
        // On the heap: compiling takes a large future, and it is rarely needed.
        Box::pin(self.sandbox().runtime.prepare(digest, load)).await
    }

    /// Newest first; `name` narrows when given.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_plugins(
        &self,
        caller: &Caller,
        org: OrgId,
        name: Option<String>,
        page: PageRequest,
    ) -> Result<Page<Plugin>, AppError> {
        let scope = caller.authorize(org, Permission::PluginsRead)?;
        self.store()
            .read(&scope, (name, page), |tx, (name, page)| {
                Box::pin(async move { Ok(tx.list_plugins(name.as_deref(), *page).await?) })
            })
            .await
    }

    /// One plugin version.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn get_plugin(&self, caller: &Caller, org: OrgId, id: PluginId) -> Result<Plugin, AppError> {
        let scope = caller.authorize(org, Permission::PluginsRead)?;
        self.store()
            .read(&scope, id, |tx, id| {
                Box::pin(async move { tx.load_plugin(*id).await?.ok_or(AppError::NotFound { what: "plugin" }) })
            })
            .await
    }
}

/// A version that is not deleted.
pub(crate) async fn require_in_use(tx: &mut Tx, id: PluginId) -> Result<Plugin, AppError> {
    let found = tx.load_plugin(id).await?.filter(|plugin| plugin.deleted_at.is_none());
    found.ok_or(AppError::NotFound { what: "plugin" })
}

/// Whether one more package of this size has a place beside what the organization holds.
fn check_quota(held: PluginCount, quotas: &Quotas, size_bytes: u64) -> Result<(), AppError> {
    const HINT: &str =
        "delete versions that are not installed (DELETE plugins/{plugin}), or ask the operator for a higher quota";
    let over = |quota, used, hint| {
        let limit = quotas.get(quota);
        Err(AppError::Quota(QuotaExceeded { quota, used, limit, hint }))
    };
    if held.versions >= quotas.plugin_versions_max {
        return over(Quota::PluginVersions, held.versions, HINT);
    }
    let bytes = held.bytes.saturating_add(size_bytes);
    if bytes > quotas.plugin_bytes_max {
        return over(Quota::PluginBytes, bytes, HINT);
    }
    if held.versions + held.deleted >= quotas.plugin_versions_max.saturating_mul(DELETED_PER_VERSION_MAX + 1) {
        let hint =
            "the names of ten times as many deleted versions are kept already: ask the operator for a higher quota";
        return over(Quota::PluginVersions, held.versions, hint);
    }
    Ok(())
}

fn same_or_conflict(stored: Plugin, digest: Digest) -> Result<Uploaded, AppError> {
    if stored.digest == digest.0 {
        return Ok(Uploaded { plugin: stored, created: false });
    }
    let message = format!(
        "{} {} is there already with other bytes (digest {}); a version never changes: raise it",
        stored.name,
        stored.version,
        Digest(stored.digest)
    );
    Err(AppError::conflict("version-exists", message))
}

fn invalid_package(problem: Problem) -> AppError {
    let message = "the package is not acceptable".to_owned();
    AppError::Invalid { code: "invalid-package", message, problems: vec![problem] }
}

/// What is wrong with a package, and where in it.
fn not_acceptable(error: &PackageError) -> AppError {
    let (path, code) = match error {
        PackageError::TooLarge { .. } => ("", "too-large"),
        PackageError::NotAComponent { .. } => ("", "not-a-component"),
        PackageError::Invalid { .. } => ("", "invalid-component"),
        PackageError::TooMany { .. } => ("", "too-many"),
        PackageError::FunctionTooLarge { .. } => ("", "function-too-large"),
        PackageError::Unsupported { .. } => ("", "unsupported"),
        PackageError::ManifestMissing => ("/manifest", "manifest-missing"),
        PackageError::ManifestRepeated(_) => ("/manifest", "manifest-repeated"),
        PackageError::ManifestTooLarge { .. } => ("/manifest", "manifest-too-large"),
        PackageError::Manifest(_) => ("/manifest", "invalid-manifest"),
        PackageError::Contract { .. } => ("/manifest/wit", "unknown-contract"),
        PackageError::ExportMissing { .. } => ("/manifest", "export-missing"),
        PackageError::ExportUnlisted { .. } => ("/manifest", "export-unlisted"),
        PackageError::ExportUnknown { .. } => ("", "export-unknown"),
        PackageError::ImportUnknown { .. } => ("", "import-unknown"),
        PackageError::ImportUndeclared { .. } => ("/manifest/permissions", "import-undeclared"),
        PackageError::NotPure { .. } => ("", "not-pure"),
    };
    // A manifest's problem names its place first: `/actions/0/name: …`.
    let inner = match error {
        PackageError::Manifest(problem) => problem.split_once(": ").map(|(at, _)| at).filter(|at| at.starts_with('/')),
        _ => None,
    };
    invalid_package(Problem::new(format!("{path}{}", inner.unwrap_or_default()), code, error.to_string()))
}

fn not_compiled(error: &Arc<PrepareError>) -> AppError {
    let (code, message) = match &**error {
        PrepareError::Package(package) => return not_acceptable(package),
        PrepareError::Compile(CompileError::TooSlow { .. }) => ("compile-timeout", chain(error)),
        PrepareError::Compile(
            CompileError::Refused(_) | CompileError::TooLarge { .. } | CompileError::Crashed { .. },
        )
        | PrepareError::Link(_) => ("compile-failed", chain(error)),
        PrepareError::Compile(CompileError::Unavailable(_)) | PrepareError::Load(_) | PrepareError::Replaced { .. } => {
            return AppError::Runtime(Box::new(Arc::clone(error)));
        }
    };
    AppError::invalid(code, "", message)
}

/// The innermost reason: the outer ones only say at which stage it came up.
fn chain(error: &Arc<PrepareError>) -> String {
    let outer: &dyn std::error::Error = &**error;
    outer.source().map_or_else(|| outer.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_is_of_versions_of_bytes_and_of_deleted_names() {
        let quotas = Quotas { plugin_versions_max: 5, plugin_bytes_max: 100, ..Quotas::default() };
        let held = |versions, bytes, deleted| PluginCount { versions, bytes, deleted };
        for (held, size_bytes) in [(held(4, 0, 0), 1), (held(1, 95, 0), 5), (held(4, 0, 50), 1)] {
            assert!(check_quota(held, &quotas, size_bytes).is_ok(), "{held:?}");
        }
        for (held, size_bytes, quota) in [
            (held(5, 0, 0), 1, Quota::PluginVersions),
            (held(1, 95, 0), 6, Quota::PluginBytes),
            (held(1, u64::MAX, 0), u64::MAX, Quota::PluginBytes),
            (held(4, 0, 51), 1, Quota::PluginVersions),
        ] {
            let refused = check_quota(held, &quotas, size_bytes);
            assert!(matches!(&refused, Err(AppError::Quota(over)) if over.quota == quota), "{held:?}: {refused:?}");
        }
    }
}
