//! From a project to a package: compile, put the manifest in, look at the result as the platform would.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use bulkhead_model::manifest::Manifest;
use bulkhead_runtime::embed_manifest;
use bulkhead_runtime::package::{self, PackageInfo};
use serde::Deserialize;
use serde_json::json;
use wasm_encoder::{ComponentNameSection, ComponentSection as _, CustomSection};

use super::{manifest_file, report};

/// What Rust calls the components that the platform runs.
const TARGET: &str = "wasm32-wasip2";
const PROFILE: &str = "plugin";
/// The profile for projects that do not define one of this name: small, and a panic ends the instance.
const PROFILE_DEFAULT: [&str; 6] = [
    "profile.plugin.inherits='release'",
    "profile.plugin.opt-level='s'",
    "profile.plugin.lto='fat'",
    "profile.plugin.codegen-units=1",
    "profile.plugin.strip=true",
    "profile.plugin.panic='abort'",
];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The project's folder, the one with plugin.toml
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Where to write the package instead of target/plugins/
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Do not let cargo use the network
    #[arg(long)]
    offline: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) out: Option<PathBuf>,
    pub(super) offline: bool,
}

/// A package on disk.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) file: PathBuf,
    pub(super) info: PackageInfo,
}

pub(super) fn run(args: &Args) -> anyhow::Result<bool> {
    let built = package(&args.dir, &Options { out: args.out.clone(), offline: args.offline })?;
    let info = &built.info;
    if args.json {
        report::print_json(&json!({
            "file": built.file,
            "name": info.manifest.name,
            "version": info.manifest.version,
            "digest": info.digest.to_string(),
            "size_bytes": info.size_bytes,
            "pure": info.pure,
            "imports": info.imports,
        }));
    } else {
        println!("{}", built.file.display());
        println!("  {} {}, {}", info.manifest.name, info.manifest.version, report::bytes(info.size_bytes));
        println!("  sha256 {}", info.digest);
    }
    Ok(true)
}

/// Builds the project in `dir` and gives its package.
pub(super) fn package(dir: &Path, options: &Options) -> anyhow::Result<Built> {
    let manifest = manifest_file::read(dir)?;
    let project = Project::find(dir, options)?;
    let component = project.compile(options)?;
    let bytes = fs::read(&component).with_context(|| format!("{} cannot be read", component.display()))?;
    ensure!(
        bytes.starts_with(&[0, b'a', b's', b'm', 0x0d, 0, 1, 0]),
        "{} is a core module, not a component; build for {TARGET}",
        component.display()
    );
    let bytes = with_metadata(bytes, &manifest);
    let bytes = embed_manifest(&bytes, &manifest).context("the manifest cannot be put into the component")?;
    let info = package::inspect(&bytes).with_context(|| remedy(dir))?;
    let file = options.out.clone().unwrap_or_else(|| project.package_file(&manifest));
    write_whole(&file, &bytes).with_context(|| format!("{} cannot be written", file.display()))?;
    Ok(Built { file, info })
}

fn remedy(dir: &Path) -> String {
    format!(
        "the component does not fit {}: change the manifest, or the code that needs what it does not ask for",
        dir.join(manifest_file::FILE_NAME).display()
    )
}

/// What cargo knows of the project.
struct Project {
    dir: PathBuf,
    package_id: String,
    target_dir: PathBuf,
    workspace_root: PathBuf,
    has_profile: bool,
}

impl Project {
    fn find(dir: &Path, options: &Options) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Metadata {
            packages: Vec<Package>,
            target_directory: PathBuf,
            workspace_root: PathBuf,
        }
        #[derive(Deserialize)]
        struct Package {
            id: String,
            manifest_path: PathBuf,
            targets: Vec<Target>,
        }
        #[derive(Deserialize)]
        struct Target {
            crate_types: Vec<String>,
        }
        let cargo_toml = dir.join("Cargo.toml");
        ensure!(cargo_toml.is_file(), "{} does not exist; so far, plugins are built from Rust", cargo_toml.display());
        let mut command = Command::new("cargo");
        command.args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"]).arg(&cargo_toml);
        if options.offline {
            command.arg("--offline");
        }
        let output = command.stderr(Stdio::inherit()).output().map_err(|error| no_cargo(&error))?;
        ensure!(output.status.success(), "cargo cannot read {} (see above)", cargo_toml.display());
        let metadata: Metadata =
            serde_json::from_slice(&output.stdout).context("cargo's metadata has another shape")?;
        let cargo_toml = cargo_toml.canonicalize()?;
        let package = metadata
            .packages
            .into_iter()
            .find(|package| package.manifest_path.canonicalize().is_ok_and(|path| path == cargo_toml))
            .with_context(|| format!("{} is a workspace, not a package", cargo_toml.display()))?;
        ensure!(
            package.targets.iter().any(|target| target.crate_types.iter().any(|kind| kind == "cdylib")),
            "{} builds no cdylib; add\n\n    [lib]\n    crate-type = [\"cdylib\", \"rlib\"]\n",
            cargo_toml.display()
        );
        let root = fs::read_to_string(metadata.workspace_root.join("Cargo.toml")).unwrap_or_default();
        let has_profile = root
            .parse::<toml::Table>()
            .is_ok_and(|root| root.get("profile").and_then(|profiles| profiles.get(PROFILE)).is_some());
        Ok(Self {
            dir: dir.to_owned(),
            package_id: package.id,
            target_dir: metadata.target_directory,
            workspace_root: metadata.workspace_root,
            has_profile,
        })
    }

    /// Compiles the library and gives the component's file.
    fn compile(&self, options: &Options) -> anyhow::Result<PathBuf> {
        require_target(&self.dir)?;
        let mut command = Command::new("cargo");
        command
            .args(["build", "--lib", "--target", TARGET, "--profile", PROFILE])
            .args(["--message-format", "json-render-diagnostics", "--manifest-path"])
            .arg(self.dir.join("Cargo.toml"))
            // A folder of its own, so that no other cargo holds the lock or has other flags.
            .env("CARGO_TARGET_DIR", self.target_dir.join("plugins/cargo"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command.args(["--config", &without_own_paths(&self.workspace_root)]);
        if !self.has_profile {
            command.args(PROFILE_DEFAULT.iter().flat_map(|setting| ["--config", setting]));
        }
        if options.offline {
            command.arg("--offline");
        }
        let mut child = command.spawn().map_err(|error| no_cargo(&error))?;
        let messages = BufReader::new(child.stdout.take().expect("stdout was asked for"));
        let mut component = None;
        for line in messages.lines() {
            component = component_in(&line.context("cargo stopped talking")?, &self.package_id).or(component);
        }
        ensure!(child.wait()?.success(), "the project does not compile (see above)");
        component.context("cargo built no .wasm file")
    }

    fn package_file(&self, manifest: &Manifest) -> PathBuf {
        let name = manifest.name.to_string().replace('/', "-");
        self.target_dir.join("plugins").join(format!("{name}-{}.wasm", manifest.version))
    }
}

/// The .wasm file that one of cargo's messages announces for this package.
fn component_in(line: &str, package_id: &str) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        reason: String,
        #[serde(default)]
        package_id: String,
        #[serde(default)]
        filenames: Vec<PathBuf>,
    }
    let message: Message = serde_json::from_str(line).ok()?;
    if message.reason != "compiler-artifact" || message.package_id != package_id {
        return None;
    }
    message.filenames.into_iter().find(|file| file.extension().is_some_and(|extension| extension == "wasm"))
}

fn no_cargo(error: &std::io::Error) -> anyhow::Error {
    anyhow::anyhow!("cargo cannot be started ({error}); install Rust from https://rustup.rs")
}

/// Panic messages name source files. With these flags they name them without the author's home, the same on every machine.
#[expect(clippy::disallowed_methods, reason = "cargo's own variable, which this command's cargo reads too")]
fn without_own_paths(workspace_root: &Path) -> String {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    let sources = [(Some(workspace_root), "/project"), (cargo_home.as_deref(), "/cargo")];
    let flags: Vec<toml::Value> = sources
        .into_iter()
        .filter_map(|(path, name)| Some(format!("--remap-path-prefix={}={name}", path?.display()).into()))
        .collect();
    format!("target.{TARGET}.rustflags={}", toml::Value::Array(flags))
}

/// Says how to install the target before cargo says something longer.
fn require_target(dir: &Path) -> anyhow::Result<()> {
    let output = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .current_dir(dir)
        .output()
        .map_err(|error| no_cargo(&error))?;
    let libraries = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if !output.status.success() || !libraries.is_dir() {
        bail!("the Rust target {TARGET} is not installed; run\n\n    rustup target add {TARGET}\n");
    }
    Ok(())
}

/// Fills the standard metadata sections, which other tools show.
fn with_metadata(mut component: Vec<u8>, manifest: &Manifest) -> Vec<u8> {
    let mut names = ComponentNameSection::new();
    names.component(manifest.name.as_str());
    names.as_custom().append_to_component(&mut component);
    let mut sections =
        BTreeMap::from([("version", manifest.version.to_string()), ("authors", manifest.name.publisher().to_owned())]);
    if !manifest.description.is_empty() {
        sections.insert("description", manifest.description.clone());
    }
    sections.extend(manifest.license.clone().map(|license| ("licenses", license)));
    sections.extend(manifest.homepage.clone().map(|homepage| ("homepage", homepage)));
    for (name, text) in sections {
        CustomSection { name: name.into(), data: text.as_bytes().into() }.append_to_component(&mut component);
    }
    component
}

/// Writes beside the place and renames, so that nobody reads half a package.
fn write_whole(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let temporary = file.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, file).inspect_err(|_| {
        // The first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_packages_own_component_is_taken() {
        let line = |id: &str, file: &str| {
            json!({ "reason": "compiler-artifact", "package_id": id, "filenames": ["/t/lib.rlib", file] }).to_string()
        };
        assert_eq!(component_in(&line("a", "/t/a.wasm"), "a"), Some(PathBuf::from("/t/a.wasm")));
        assert_eq!(component_in(&line("b", "/t/b.wasm"), "a"), None);
        assert_eq!(component_in(&line("a", "/t/a.so"), "a"), None);
        assert_eq!(component_in(r#"{"reason":"build-finished","success":true}"#, "a"), None);
        assert_eq!(component_in("not json", "a"), None);
    }
}
