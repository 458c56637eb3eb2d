//! A project for a new plugin, complete with the SDK, a fixture and a test that passes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use bulkhead_model::name::PluginName;
use clap::ValueEnum;

use super::sdk_files::{self, FOLDER, dependency, put};

/// The publisher of a name without one.
const PUBLISHER_DEFAULT: &str = "example";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// publisher/name; the publisher is your organization's slug
    name: String,
    /// What the plugin contributes
    #[arg(long, value_enum)]
    kind: Kind,
    /// Where to make the project instead of ./<name>
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Something that a workflow's step makes happen
    Action,
    /// A way to tell somebody something
    Channel,
    /// One reason why a lead is worth more or less; pure
    Factor,
}

/// The files that differ between kinds.
struct Template {
    lib_rs: &'static str,
    plugin_toml: &'static str,
    fixture: &'static str,
    schemas: &'static [(&'static str, &'static str)],
}

macro_rules! template {
    ($kind:literal, $($schema:literal),+) => {
        Template {
            lib_rs: include_str!(concat!("template/", $kind, "/lib.rs.txt")),
            plugin_toml: include_str!(concat!("template/", $kind, "/plugin.toml")),
            fixture: include_str!(concat!("template/", $kind, "/fixture.json")),
            schemas: &[$((
                concat!("schemas/", $schema, ".json"),
                include_str!(concat!("template/", $kind, "/", $schema, ".json")),
            )),+],
        }
    };
}

impl Kind {
    fn template(self) -> Template {
        match self {
            Self::Action => template!("action", "settings", "input", "output"),
            Self::Channel => template!("channel", "settings", "notification", "receipt"),
            Self::Factor => template!("factor", "settings", "fields"),
        }
    }
}

const README: &str = include_str!("template/README.md");
const CARGO_TOML: &str = include_str!("template/Cargo.toml.txt");

pub(super) fn run(args: &Args) -> anyhow::Result<bool> {
    let name = if args.name.contains('/') { args.name.clone() } else { format!("{PUBLISHER_DEFAULT}/{}", args.name) };
    let name: PluginName = name.parse()?;
    let (_, plugin) = name.as_str().split_once('/').expect("a plugin's name has a publisher");
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(plugin));
    create(&dir, &name, args.kind)?;
    println!("{} is ready. Next:", dir.display());
    println!();
    println!("    cd {}", dir.display());
    println!("    cargo test                  # natively, against a fake host");
    println!("    bulkhead plugin build       # makes the package");
    println!("    bulkhead plugin check       # tries it under the real limits");
    Ok(true)
}

fn create(dir: &Path, name: &PluginName, kind: Kind) -> anyhow::Result<()> {
    let is_empty = match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", dir.display())),
    };
    ensure!(is_empty, "{} is not empty; choose another place with --dir", dir.display());
    let (_, plugin) = name.as_str().split_once('/').expect("a plugin's name has a publisher");
    let fill = |text: &str| {
        text.replace("{{name}}", name.as_str())
            .replace("{{plugin}}", plugin)
            .replace("{{title}}", &title(plugin))
            .replace("{{function}}", &plugin.replace('-', "_"))
            .replace("{{schemars}}", &dependency("schemars"))
            .replace("{{serde}}", &dependency("serde"))
            .replace("{{serde_json}}", &dependency("serde_json"))
    };
    let template = kind.template();
    put(&dir.join("Cargo.toml"), &fill(CARGO_TOML))?;
    put(&dir.join("plugin.toml"), &fill(template.plugin_toml))?;
    put(&dir.join("README.md"), &fill(README))?;
    put(&dir.join(".gitignore"), "/target\n")?;
    put(&dir.join("src/lib.rs"), &fill(template.lib_rs))?;
    put(&dir.join("fixtures/first.json"), &fill(template.fixture))?;
    for (file, text) in template.schemas {
        put(&dir.join(file), text)?;
    }
    sdk_files::write(dir).with_context(|| format!("{FOLDER} cannot be filled"))
}

/// `lead-phone` → `Lead phone`.
fn title(plugin: &str) -> String {
    let words = plugin.replace('-', " ");
    let mut chars = words.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin_cli::manifest_file;

    #[test]
    fn every_template_has_an_acceptable_manifest_and_nothing_left_to_fill() {
        for kind in [Kind::Action, Kind::Channel, Kind::Factor] {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let name = "acme/lead-phone".parse().expect("a name");
            create(dir.path(), &name, kind).expect("an empty folder is taken");
            let manifest = manifest_file::read(dir.path()).expect("the template is right");
            assert_eq!((manifest.name.as_str(), manifest.title.as_str()), ("acme/lead-phone", "Lead phone"));
            assert!(manifest.contribution("lead-phone").is_some());
            for file in ["Cargo.toml", "src/lib.rs", "README.md", "fixtures/first.json"] {
                let text = fs::read_to_string(dir.path().join(file)).expect("it was written");
                assert!(!text.contains("{{"), "{file}: {text}");
            }
            let again = create(dir.path(), &name, kind).expect_err("the folder is taken");
            assert!(again.to_string().contains("not empty"));
        }
    }
}
