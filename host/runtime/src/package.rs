//! Looks into a package without compiling or running anything: is it a valid component, small enough, honest about what it
//! exports and imports, and what does its manifest say?

mod interface;
mod manifest_section;
mod shape;

use bulkhead_model::limits::{ContributionKind, PackageLimits};
use bulkhead_model::manifest::{CapabilityAsk, Manifest};
use serde::{Deserialize, Serialize};
use wasmparser::Validator;

use crate::bindings::CONTRACTS;
use crate::digest::Digest;
use crate::engine::wasm_features;
use interface::{Export, Import};
pub use manifest_section::{EmbedError, embed_manifest};
pub use shape::Counts;

/// What a package is and promises.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PackageInfo {
    pub manifest: Manifest,
    pub digest: Digest,
    /// Every import of the component, baseline included, in the order of the file.
    pub imports: Vec<String>,
    /// Factors only: imports nothing but the baseline and logging, so that a result is a function of its input.
    pub pure: bool,
    pub size_bytes: u64,
    /// What one instance of the component is made of.
    pub counts: Counts,
}

/// Why a package is refused. Each message says what is wrong and where.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    #[error("the package is {bytes} bytes long; at most {limit} are allowed")]
    TooLarge { bytes: u64, limit: u64 },
    #[error("not a WebAssembly component{hint}")]
    NotAComponent { hint: &'static str },
    #[error("not a valid component, at byte {offset}: {message}")]
    Invalid { offset: u64, message: String },
    #[error("{what}: {count}; at most {limit} are allowed")]
    TooMany { what: &'static str, count: u64, limit: u64 },
    #[error("the function at byte {offset} is {bytes} bytes long; at most {limit} are allowed")]
    FunctionTooLarge { offset: u64, bytes: u64, limit: u64 },
    #[error("at byte {offset}: {what}, which this platform does not run")]
    Unsupported { offset: u64, what: &'static str },
    #[error("the custom section `bulkhead:manifest` is missing; build the package with `bulkhead plugin build`")]
    ManifestMissing,
    #[error("there are {0} sections `bulkhead:manifest`; a package has one")]
    ManifestRepeated(usize),
    #[error("the manifest is {bytes} bytes long; at most {limit} are allowed")]
    ManifestTooLarge { bytes: u64, limit: u64 },
    #[error("the manifest is not acceptable: {0}")]
    Manifest(String),
    #[error("the manifest names the contract `{found}`; this platform serves {}", CONTRACTS.join(", "))]
    Contract { found: String },
    #[error("the manifest lists {kind} contributions, but the component does not export `bulkhead:plugin/{kind}`")]
    ExportMissing { kind: &'static str },
    #[error("the component exports `{export}`, but the manifest lists no {kind} contribution")]
    ExportUnlisted { export: String, kind: &'static str },
    #[error("the component exports `{export}`, which is not part of a contract that this platform serves")]
    ExportUnknown { export: String },
    #[error("the component imports `{import}`, which this platform does not offer")]
    ImportUnknown { import: String },
    #[error("the component imports `{import}`; the manifest has to ask for a permission of kind `{permission}`")]
    ImportUndeclared { import: String, permission: &'static str },
    #[error("the component imports `{import}`; a package of factors is pure and imports only the baseline and logging")]
    NotPure { import: String },
}

impl PackageError {
    fn invalid(error: &wasmparser::BinaryReaderError) -> Self {
        Self::Invalid { offset: offset(error.offset()), message: error.message().to_owned() }
    }
}

fn offset(offset: impl TryInto<u64>) -> u64 {
    offset.try_into().unwrap_or(u64::MAX)
}

/// Inspects the bytes of a package.
///
/// # Errors
/// The first thing that is wrong.
pub fn inspect(package: &[u8]) -> Result<PackageInfo, PackageError> {
    let limits = PackageLimits::platform();
    let size_bytes = offset(package.len());
    check_size(size_bytes, limits.package_bytes)?;
    let shape = shape::read(package, &limits)?;
    Validator::new_with_features(wasm_features())
        .validate_all(package)
        .map_err(|error| PackageError::invalid(&error))?;
    shape.counts.check(&limits)?;
    let manifest = manifest_section::parse(&shape.manifests, &limits)?;
    if !CONTRACTS.contains(&manifest.wit.as_str()) {
        return Err(PackageError::Contract { found: manifest.wit });
    }
    check_exports(&shape.exports, &manifest)?;
    check_imports(&shape.imports, &manifest)?;
    let pure = manifest.is_pure();
    if pure {
        check_size(size_bytes, PackageLimits::factor().package_bytes)?;
    }
    let digest = Digest::of(package);
    Ok(PackageInfo { manifest, digest, imports: shape.imports, pure, size_bytes, counts: shape.counts })
}

fn check_size(bytes: u64, limit: u64) -> Result<(), PackageError> {
    if bytes > limit { Err(PackageError::TooLarge { bytes, limit }) } else { Ok(()) }
}

/// What the component exports and what the manifest lists are the same.
fn check_exports(exports: &[String], manifest: &Manifest) -> Result<(), PackageError> {
    let mut exported = Vec::new();
    for export in exports {
        match interface::export(export) {
            Export::Contribution(kind) => {
                if !manifest.contributions().any(|(listed, _)| listed == kind) {
                    return Err(PackageError::ExportUnlisted { export: export.clone(), kind: kind.as_str() });
                }
                exported.push(kind);
            }
            Export::Ignored => {}
            Export::Unknown => return Err(PackageError::ExportUnknown { export: export.clone() }),
        }
    }
    for kind in [ContributionKind::Action, ContributionKind::Channel, ContributionKind::Factor] {
        if manifest.contributions().any(|(listed, _)| listed == kind) && !exported.contains(&kind) {
            return Err(PackageError::ExportMissing { kind: kind.as_str() });
        }
    }
    Ok(())
}

/// Imports ⊆ baseline ∪ what the manifest asks for.
fn check_imports(imports: &[String], manifest: &Manifest) -> Result<(), PackageError> {
    let asks = |matches: fn(&CapabilityAsk) -> bool| manifest.permissions.iter().any(|ask| matches(&ask.capability));
    let pure = manifest.is_pure();
    for import in imports {
        let permission = match interface::import(import) {
            Import::Baseline => continue,
            Import::Effectful if !pure => continue,
            Import::Http if !pure => ("http", asks(|ask| matches!(ask, CapabilityAsk::Http { .. }))),
            Import::Secrets if !pure => ("secret", asks(|ask| matches!(ask, CapabilityAsk::Secret { .. }))),
            Import::Effectful | Import::Http | Import::Secrets => {
                return Err(PackageError::NotPure { import: import.clone() });
            }
            Import::Unknown => return Err(PackageError::ImportUnknown { import: import.clone() }),
        };
        if let (permission, false) = permission {
            return Err(PackageError::ImportUndeclared { import: import.clone(), permission });
        }
    }
    Ok(())
}
