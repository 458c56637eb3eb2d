//! Calling other programs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The repository's top folder; every command runs there. Cargo says at each run where the package lies: several clones may share
/// a target folder, and this binary may have been built in another one.
pub(crate) fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let package = variable("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").to_owned());
        Path::new(&package).parent().expect("xtask lies in the repository's top folder").to_owned()
    })
}

#[expect(clippy::disallowed_methods, reason = "the chores are configured by the environment alone")]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether this is continuous integration, where a gap is a failure and not a remark.
pub(crate) fn under_ci() -> bool {
    variable("CI").is_some_and(|value| value != "false")
}

/// A program called from the top folder, without what `cargo run` told this process about itself: build scripts that
/// watch those variables would run again at each change between `cargo xtask` and plain `cargo`.
pub(crate) fn program(name: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(root());
    for (key, _) in std::env::vars_os() {
        if key.to_str().is_some_and(is_about_this_package) {
            command.env_remove(key);
        }
    }
    command
}

fn is_about_this_package(variable: &str) -> bool {
    variable.starts_with("CARGO_PKG_")
        || variable.starts_with("CARGO_MANIFEST_")
        || ["CARGO", "CARGO_CRATE_NAME", "CARGO_BIN_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"].contains(&variable)
}

/// The cargo that runs this.
pub(crate) fn cargo() -> Command {
    program(variable("CARGO").unwrap_or_else(|| "cargo".to_owned()))
}

/// Whether `cargo NAME` exists.
pub(crate) fn has_cargo_command(name: &str) -> bool {
    output(cargo().args([name, "--version"])).is_ok()
}

/// Shows the command, runs it with this process's terminal, and fails when it does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = shown(command);
    eprintln!("$ {line}");
    let status = command.status().with_context(|| format!("cannot start {line}"))?;
    if status.success() { Ok(()) } else { bail!("`{line}` failed ({status})") }
}

/// The same for a program that may hang: after this long it is ended, and that is a failure.
pub(crate) fn run_within(command: &mut Command, within: Duration) -> Result<()> {
    let line = shown(command);
    eprintln!("$ {line}");
    let mut child = command.spawn().with_context(|| format!("cannot start {line}"))?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() >= within {
            child.kill()?;
            child.wait()?;
            bail!("`{line}` did not end within {} seconds and was ended", within.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    if status.success() { Ok(()) } else { bail!("`{line}` failed ({status})") }
}

/// Runs quietly and answers standard output, trimmed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = shown(command);
    let output = command.output().with_context(|| format!("cannot start {line}"))?;
    if !output.status.success() {
        bail!("`{line}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The command as one would type it, the program by its name alone.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{word}'") }
}

/// What `cargo metadata` says, of the workspace alone or with all that it depends on.
pub(crate) fn metadata(with_dependencies: bool) -> Result<Value> {
    let mut command = cargo();
    command.args(["metadata", "--format-version", "1"]);
    if with_dependencies {
        // Other systems' dependencies would have to be downloaded to be described.
        let host = output(program("rustc").args(["--print", "host-tuple"]))?;
        command.args(["--filter-platform", &host]);
    } else {
        command.arg("--no-deps");
    }
    serde_json::from_str(&output(&mut command)?).context("`cargo metadata` printed no JSON")
}

/// Where cargo builds.
pub(crate) fn target_directory() -> Result<PathBuf> {
    let metadata = metadata(false)?;
    let directory = metadata["target_directory"].as_str().context("`cargo metadata` names no target directory")?;
    Ok(PathBuf::from(directory))
}

/// The binary of this name once it is built.
pub(crate) fn built(name: &str, release: bool) -> Result<PathBuf> {
    let profile = if release { "release" } else { "debug" };
    Ok(target_directory()?.join(profile).join(name))
}

/// The rows of an array in a JSON value; none when it is no array.
pub(crate) fn rows(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Folders directly below `parent` that hold a file of this name, in order.
pub(crate) fn folders_with(parent: &Path, file: &str) -> Vec<PathBuf> {
    let mut folders: Vec<_> = std::fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join(file).is_file())
        .collect();
    folders.sort();
    folders
}

/// A path as it reads from the top folder.
pub(crate) fn from_root(path: &Path) -> OsString {
    path.strip_prefix(root()).unwrap_or(path).as_os_str().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = Command::new("/somewhere/bin/cargo");
        command.args(["test", "-E", "test(a) & b", ""]);
        assert_eq!(shown(&command), "cargo test -E 'test(a) & b' ''");
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let within = |seconds: &str, within| run_within(Command::new("sleep").arg(seconds), within);
        let ended = within("600", Duration::from_millis(200)).unwrap_err().to_string();
        assert!(ended.contains("did not end"), "{ended}");
        within("0", Duration::from_mins(1)).unwrap();
        let failed = run_within(&mut Command::new("false"), Duration::from_mins(1)).unwrap_err().to_string();
        assert!(failed.contains("exit status: 1"), "{failed}");
    }

    #[test]
    fn only_what_cargo_says_about_this_package_is_hidden() {
        for hidden in ["CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "CARGO"] {
            assert!(is_about_this_package(hidden), "{hidden}");
        }
        for passed_on in ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_TERM_COLOR", "CARGO_NET_OFFLINE", "PATH"] {
            assert!(!is_about_this_package(passed_on), "{passed_on}");
        }
    }
}
