//! The packages that the platform ships: where they lie, and which bytes may carry its name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use bulkhead_model::manifest::Manifest;
use bulkhead_runtime::{Digest, package};

/// The plugins that the platform ships.
const PLUGINS: [&str; 3] = ["webhook", "slack", "email-domain"];

/// A package on disk.
pub(crate) struct Package {
    pub(crate) digest: Digest,
    pub(crate) manifest: Manifest,
    pub(crate) bytes: Vec<u8>,
}

/// Where packages lie: as told, or beside the binary, or where the build puts them.
fn folder(told: Option<&Path>) -> Result<Option<PathBuf>> {
    if let Some(dir) = told {
        return Ok(Some(dir.to_owned()));
    }
    let binary = std::env::current_exe().context("the binary does not know where it is")?;
    let beside = binary.parent().map(|dir| dir.join("plugins"));
    let built = binary.parent().and_then(Path::parent).map(|target| target.join("plugins"));
    let here = Some(PathBuf::from("target/plugins"));
    Ok([beside, built, here].into_iter().flatten().find(|dir| holds_packages(dir)))
}

fn holds_packages(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("bulkhead-webhook-"))
    })
}

/// The packages in a folder, by their names.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let wanted = PLUGINS.iter().any(|plugin| name.starts_with(&format!("bulkhead-{plugin}-")));
        if wanted && path.extension().is_some_and(|extension| extension == "wasm") {
            found.push(path);
        }
    }
    Ok(found)
}

/// Digests of the packages that may carry the platform's own publisher name: those in the folder that was told, or where the
/// build or the release puts them; none where there is no such folder.
pub(crate) fn digests(told: Option<&Path>) -> Result<BTreeSet<Digest>> {
    let Some(dir) = folder(told)? else { return Ok(BTreeSet::new()) };
    let digest = |path: PathBuf| {
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Digest::of(&bytes))
    };
    files(&dir)?.into_iter().map(digest).collect()
}

/// Reads the newest version of each first-party package.
pub(crate) fn packages(told: Option<&Path>) -> Result<Vec<Package>> {
    let dir = folder(told)?.with_context(|| {
        "the first-party packages are not there: `cargo xtask build-plugins` makes them, or name their folder with --plugins"
    })?;
    let mut found: Vec<Package> = Vec::new();
    for path in files(&dir)? {
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let info = package::inspect(&bytes).with_context(|| format!("{} is no package", path.display()))?;
        let package = Package { digest: info.digest, manifest: info.manifest, bytes };
        match found.iter_mut().find(|other| other.manifest.name == package.manifest.name) {
            Some(other) if other.manifest.version >= package.manifest.version => {}
            Some(other) => *other = package,
            None => found.push(package),
        }
    }
    for plugin in PLUGINS {
        if !found.iter().any(|package| package.manifest.name.plugin() == plugin) {
            bail!("{} has no package of bulkhead/{plugin}: run `cargo xtask build-plugins`", dir.display());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packages_in_the_folder_are_the_platforms_own() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in
            [("bulkhead-slack-1.0.0.wasm", "a"), ("acme-slack-1.0.0.wasm", "b"), ("bulkhead-slack-1.0.0.txt", "c")]
        {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        assert_eq!(digests(Some(dir.path())).unwrap(), BTreeSet::from([Digest::of(b"a")]));
        assert!(digests(Some(&dir.path().join("none"))).is_err(), "a folder that was named is there");
    }
}
