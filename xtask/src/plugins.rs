//! `build-plugins`: packages of the first-party plugins and of the tests' guests.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use crate::{setup, tools};

#[derive(Debug, Default, Args)]
pub(crate) struct Arguments {
    /// Uses the release build of `bulkhead`.
    #[arg(long)]
    release: bool,
}

/// Builds `bulkhead`, then all plugins with it.
pub(crate) fn chore(arguments: &Arguments) -> Result<()> {
    setup::require()?;
    build_binary(arguments.release)?;
    build_all(&tools::built("bulkhead", arguments.release)?)
}

/// Builds the `bulkhead` binary.
pub(crate) fn build_binary(release: bool) -> Result<()> {
    let mut build = tools::cargo();
    build.args(["build", "--package", "bulkhead"]);
    if release {
        build.arg("--release");
    }
    tools::run(&mut build)
}

/// Builds every plugin with a built `bulkhead`. Those that did not change cost a look each.
pub(crate) fn build_all(bulkhead: &Path) -> Result<()> {
    let packages = with_manifest();
    for folder in &packages {
        tools::run(tools::program(bulkhead).args(["plugin", "build"]).arg(tools::from_root(folder)))?;
    }
    let guests = without_manifest();
    for folder in &guests {
        build_guest(folder)?;
    }
    eprintln!("{} plugins, {} guests without manifest", packages.len(), guests.len());
    Ok(())
}

/// Packages: what the product ships, and the tests' guests that are packages too.
fn with_manifest() -> Vec<PathBuf> {
    let shipped = tools::folders_with(&tools::root().join("plugins"), "plugin.toml");
    let guests = tools::folders_with(&tools::root().join("tests/plugins"), "plugin.toml");
    shipped.into_iter().chain(guests).collect()
}

/// Guests that tests package themselves, with manifests as hostile as they need.
fn without_manifest() -> Vec<PathBuf> {
    let mut guests = tools::folders_with(&tools::root().join("tests/plugins"), "Cargo.toml");
    guests.retain(|folder| !folder.join("plugin.toml").is_file());
    guests
}

/// In the target directory that `bulkhead plugin build` uses, for what they share; and, as a profile, `release`.
fn build_guest(folder: &Path) -> Result<()> {
    let target = tools::target_directory()?.join("plugins/cargo");
    let mut build = tools::cargo();
    build.args(["build", "--release", "--target", "wasm32-wasip2"]);
    build.arg("--manifest-path").arg(folder.join("Cargo.toml")).arg("--target-dir").arg(target);
    tools::run(&mut build)
}
