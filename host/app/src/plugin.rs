//! Plugins: packages that an organization uploads, checked and compiled before anything is stored.

pub(crate) mod contract;

use std::sync::Arc;

use bulkhead_model::audit::AuditEvent;
use bulkhead_model::id::{OrgId, PluginId};
use bulkhead_model::limits::PackageLimits;
use bulkhead_model::permission::{Caller, OrgScope, Permission};
use bulkhead_runtime::compiler::CompileError;
use bulkhead_runtime::{Digest, LoadError, PackageError, PackageInfo, PrepareError, Prepared};
use bulkhead_store::page::{Page, PageRequest};
use bulkhead_store::plugin::Plugin;
use bytes::Bytes;
use serde_json::json;

use crate::sandbox::FIRST_PARTY_PUBLISHER;
use crate::{App, AppError, Problem};

/// Versions that an organization may hold.
pub const PLUGINS_MAX: u64 = 1_000;
/// … and the bytes of their packages together: 2 GiB.
pub const PLUGINS_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

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
    /// `quota-exceeded` when the organization holds [`PLUGINS_MAX`] versions or [`PLUGINS_BYTES_MAX`] already;
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
                    let held = tx.count_plugins().await?;
                    Ok::<_, AppError>((slug, held, tx.load_plugin_version(name.as_str(), version).await?))
                })
            })
            .await?;
        self.check_publisher(&info, slug.as_str())?;
        if let Some(known) = known {
            return same_or_conflict(known, info.digest);
        }
        // Before it is compiled, which costs most; and again when it is stored.
        check_quota(held, info.size_bytes)?;
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
        };
        self.insert_plugin(&scope, plugin, package).await
    }

    async fn insert_plugin(&self, scope: &OrgScope, plugin: Plugin, package: Bytes) -> Result<Uploaded, AppError> {
        let event = AuditEvent {
            action: "plugin.uploaded",
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
                    if !tx.insert_plugin(plugin).await? {
                        // Somebody else was quicker.
                        let stored = tx.load_plugin_version(plugin.name.as_str(), &plugin.version).await?;
                        return same_or_conflict(
                            stored.ok_or(AppError::NotFound { what: "plugin" })?,
                            Digest(plugin.digest),
                        );
                    }
                    check_quota(held, package.len() as u64)?;
                    tx.record_audit(event, ambient).await?;
                    Ok(Uploaded { plugin: plugin.clone(), created: true })
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

/// Whether one more package of this size has a place beside what the organization holds (versions, bytes).
fn check_quota((versions, bytes): (u64, u64), size_bytes: u64) -> Result<(), AppError> {
    if versions < PLUGINS_MAX && bytes.saturating_add(size_bytes) <= PLUGINS_BYTES_MAX {
        return Ok(());
    }
    let message = format!(
        "the organization holds {versions} plugin versions of {bytes} bytes together; at most {PLUGINS_MAX} and \
         {PLUGINS_BYTES_MAX} bytes are kept"
    );
    Err(AppError::conflict("quota-exceeded", message))
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
    fn the_quota_is_of_versions_and_of_bytes() {
        assert!(check_quota((PLUGINS_MAX - 1, 0), 1).is_ok());
        assert!(check_quota((1, PLUGINS_BYTES_MAX - 5), 5).is_ok());
        for (held, size_bytes) in [((PLUGINS_MAX, 0), 1), ((1, PLUGINS_BYTES_MAX - 5), 6), ((1, u64::MAX), u64::MAX)] {
            let refused = check_quota(held, size_bytes);
            assert!(matches!(refused, Err(AppError::Conflict { code: "quota-exceeded", .. })), "{held:?}");
        }
    }
}
