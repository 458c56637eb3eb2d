//! The Rust SDK and the contract, carried inside the binary: a new project works without this repository and without
//! a published crate.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

/// Where a project keeps them. The SDK finds the contract by the same relative path as in this repository.
pub(super) const FOLDER: &str = ".bulkhead";

macro_rules! files {
    ($($path:literal),+ $(,)?) => {
        &[$(($path, include_str!(concat!("../../../../", $path)))),+]
    };
}

/// Path in the repository, and text. A test compares the list with the folders.
const FILES: &[(&str, &str)] = files![
    "sdk/rust/src/clock.rs",
    "sdk/rust/src/context.rs",
    "sdk/rust/src/exports.rs",
    "sdk/rust/src/factor.rs",
    "sdk/rust/src/failure.rs",
    "sdk/rust/src/guest.rs",
    "sdk/rust/src/http.rs",
    "sdk/rust/src/lib.rs",
    "sdk/rust/src/log.rs",
    "sdk/rust/src/secret.rs",
    "sdk/rust/src/testing.rs",
    "sdk/rust/src/testing/fixture.rs",
    "wit/0.1.0/action.wit",
    "wit/0.1.0/channel.wit",
    "wit/0.1.0/factor.wit",
    "wit/0.1.0/secrets.wit",
    "wit/0.1.0/types.wit",
    "wit/0.1.0/worlds.wit",
    "wit/0.1.0/deps/cli.wit",
    "wit/0.1.0/deps/clocks.wit",
    "wit/0.1.0/deps/config.wit",
    "wit/0.1.0/deps/filesystem.wit",
    "wit/0.1.0/deps/http.wit",
    "wit/0.1.0/deps/io.wit",
    "wit/0.1.0/deps/logging.wit",
    "wit/0.1.0/deps/random.wit",
    "wit/0.1.0/deps/sockets.wit",
];

const SDK_MANIFEST: &str = include_str!("../../../../sdk/rust/Cargo.toml");
const WORKSPACE_MANIFEST: &str = include_str!("../../../../Cargo.toml");

const README: &str = "Written by `bulkhead plugin new`: the SDK and the contract that this project is built against.\n\
    Keep it under version control; changes belong to Bulkhead, not here.\n";

/// Writes everything under `.bulkhead/` of the project.
pub(super) fn write(project: &Path) -> anyhow::Result<()> {
    let folder = project.join(FOLDER);
    for (path, text) in FILES {
        put(&folder.join(path), text)?;
    }
    put(&folder.join("sdk/rust/Cargo.toml"), &standalone_manifest())?;
    put(&folder.join("README.md"), README)
}

pub(super) fn put(file: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    fs::write(file, text).with_context(|| format!("{} cannot be written", file.display()))
}

/// A dependency as this repository pins it, to stand in another manifest: `{ features = […], version = "1" }`.
pub(super) fn dependency(name: &str) -> String {
    let workspace: toml::Table = WORKSPACE_MANIFEST.parse().expect("cargo reads the same file");
    workspace["workspace"]["dependencies"][name].to_string()
}

/// The SDK's manifest with everything that it inherits from this workspace written out.
fn standalone_manifest() -> String {
    let mut sdk: toml::Table = SDK_MANIFEST.parse().expect("cargo reads the same file");
    let workspace: toml::Table = WORKSPACE_MANIFEST.parse().expect("cargo reads the same file");
    let workspace = &workspace["workspace"];
    sdk.remove("lints");
    inherit(&mut sdk["package"], &workspace["package"]);
    inherit(&mut sdk["dependencies"], &workspace["dependencies"]);
    for (_, target) in sdk["target"].as_table_mut().expect("a table of targets") {
        inherit(&mut target["dependencies"], &workspace["dependencies"]);
    }
    toml::to_string(&sdk).expect("a table that was read can be written")
}

fn inherit(table: &mut toml::Value, from: &toml::Value) {
    for (key, value) in table.as_table_mut().expect("a table in the manifest") {
        if value.get("workspace").and_then(toml::Value::as_bool) == Some(true) {
            *value = from[key.as_str()].clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    fn files_below(root: &Path, folder: &str, into: &mut BTreeSet<String>) {
        for entry in fs::read_dir(root.join(folder)).expect("a folder of this repository") {
            let entry = entry.expect("readable");
            let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                files_below(root, &path, into);
            } else {
                into.insert(path);
            }
        }
    }

    #[test]
    fn the_list_is_what_the_folders_hold() {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut found = BTreeSet::new();
        files_below(&root, "sdk/rust/src", &mut found);
        files_below(&root, "wit/0.1.0", &mut found);
        let listed: BTreeSet<String> = FILES.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(listed, found);
    }

    #[test]
    fn nothing_is_inherited_in_a_standalone_manifest() {
        let manifest = standalone_manifest();
        assert!(!manifest.contains("workspace"), "{manifest}");
        assert!(manifest.contains("wit-bindgen"), "{manifest}");
    }
}
