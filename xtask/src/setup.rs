//! `setup`: what the machine has, what it lacks, and how to get it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use bulkhead_test_support::postgres::{self, Unavailable};
use clap::Args;

use crate::tools;

/// What plugins are compiled to (`wasm32-wasip2`), and what the tests' hand-made guests are (`wasm32-unknown-unknown`).
const TARGETS: [&str; 2] = ["wasm32-wasip2", "wasm32-unknown-unknown"];

#[derive(Debug, Default, Args)]
pub(crate) struct Arguments {
    /// Installs PostgreSQL where it is missing; on Debian and Ubuntu, as root.
    #[arg(long)]
    install: bool,
}

/// The whole report, for people. Fails when something is missing without which nothing builds.
pub(crate) fn chore(arguments: &Arguments) -> Result<()> {
    eprintln!("rust        {}", require_rust()?);
    require_targets()?;
    eprintln!("targets     {}", TARGETS.join(", "));
    eprintln!("C compiler  {}", require_c_compiler()?);
    let mut server = postgres::installed_version();
    if server.is_err() && arguments.install {
        install_postgres()?;
        server = postgres::installed_version();
    }
    match server {
        Ok(version) => eprintln!("PostgreSQL  {version} (for tests; the product runs on SQLite without it)"),
        Err(missing) => eprintln!("PostgreSQL  missing: only tests need it.\n            {missing}{}", hint(&missing)),
    }
    let has_python = tools::output(tools::program("python3").args(["-c", "import ensurepip, venv"])).is_ok();
    let python = if has_python {
        "installed, with venv"
    } else {
        "missing, or without venv: the tests leave schemathesis out. Debian, Ubuntu: `apt-get install python3-venv`"
    };
    eprintln!("Python      {python}");
    let has_nextest = tools::has_cargo_command("nextest");
    let nextest = if has_nextest { "installed" } else { "missing: `cargo test` is used instead, which is slower" };
    eprintln!("nextest     {nextest}");
    let has_deny = tools::has_cargo_command("deny");
    let deny = if has_deny {
        "installed"
    } else {
        "missing: `check` leaves out licences and advisories. `cargo install cargo-deny --locked`"
    };
    eprintln!("cargo-deny  {deny}");
    Ok(())
}

/// Everything without which nothing builds, quietly; the other chores begin with it.
pub(crate) fn require() -> Result<()> {
    require_rust()?;
    require_targets()?;
    require_c_compiler().map(drop)
}

fn require_rust() -> Result<String> {
    let line = tools::output(tools::program("rustc").arg("--version"))
        .context("Rust is not installed: see https://rustup.rs")?;
    let needed = env!("CARGO_PKG_RUST_VERSION");
    let found = line.split_whitespace().nth(1).unwrap_or_default();
    if parsed(found) < parsed(needed) {
        bail!("Rust {needed} or newer is needed, {found} is installed: `rustup update stable`");
    }
    Ok(line)
}

/// Major and minor; what follows does not matter here.
fn parsed(version: &str) -> (u32, u32) {
    let mut numbers = version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Adds the targets that are missing.
fn require_targets() -> Result<()> {
    let missing: Vec<_> = TARGETS.into_iter().filter(|target| !has_target(target)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    tools::run(tools::program("rustup").args(["target", "add"]).args(&missing)).with_context(|| {
        let missing = missing.join(" ");
        format!(
            "plugins are compiled to WebAssembly, and the Rust targets {missing} are not installed. With rustup: `rustup \
             target add {missing}`; where Rust comes from a distribution, install its package of these targets"
        )
    })
}

/// Whether the compiler has the target's standard library, whoever installed it.
fn has_target(target: &str) -> bool {
    tools::output(tools::program("rustc").args(["--print", "target-libdir", "--target", target]))
        .is_ok_and(|directory| Path::new(&directory).is_dir())
}

fn require_c_compiler() -> Result<String> {
    let named = tools::variable("CC");
    let candidates = named.as_deref().into_iter().chain(["cc", "gcc", "clang"]);
    for candidate in candidates {
        if let Ok(text) = tools::output(tools::program(candidate).arg("--version")) {
            return Ok(text.lines().next().unwrap_or(candidate).to_owned());
        }
    }
    bail!(
        "SQLite is compiled from its C source, and there is no C compiler. Debian, Ubuntu: `apt-get install \
         build-essential`; Fedora: `dnf install gcc`; Alpine: `apk add build-base`; macOS: `xcode-select --install`"
    )
}

fn hint(missing: &Unavailable) -> &'static str {
    if matches!(missing, Unavailable::NotInstalled { .. }) && can_install() {
        "\n            Here: `cargo xtask setup --install`"
    } else {
        ""
    }
}

/// Debian's package tool, and the right to use it.
fn can_install() -> bool {
    Path::new("/usr/bin/apt-get").exists()
        && tools::output(tools::program("id").arg("-u")).is_ok_and(|user_id| user_id == "0")
}

fn install_postgres() -> Result<()> {
    if !can_install() {
        bail!(
            "--install works on Debian and Ubuntu, as root. Elsewhere: {}",
            postgres::installed_version().err().map_or_else(String::new, |missing| missing.to_string())
        );
    }
    let apt_get = || {
        let mut command = tools::program("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    tools::run(apt_get().args(["update", "--quiet"]))?;
    tools::run(apt_get().args(["install", "--quiet", "--yes", "--no-install-recommends", "postgresql"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(parsed("1.100.0") > parsed("1.95"));
        assert!(parsed("1.94.1-nightly") < parsed("1.95"));
        assert_eq!(parsed("1.95.0"), parsed("1.95"));
    }

    #[test]
    fn a_target_that_does_not_exist_is_missing() {
        assert!(!has_target("wasm32-nowhere"));
    }
}
