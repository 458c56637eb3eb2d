//! `check`: everything that is not a test.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::{setup, tidy, tools};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only these parts; all when none is named.
    parts: Vec<Part>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Part {
    Formatting,
    /// What `xtask/src/tidy.rs` knows.
    Rules,
    Clippy,
    /// Licences, advisories, bans and sources.
    Dependencies,
}

/// Runs the parts, also behind one that fails, and fails at the end if any did.
pub(crate) fn chore(arguments: &Arguments) -> Result<()> {
    setup::require()?;
    let parts = if arguments.parts.is_empty() { Part::value_variants() } else { &arguments.parts };
    let mut failed = Vec::new();
    for part in parts {
        let outcome = match part {
            Part::Formatting => formatting(),
            Part::Rules => tidy::check(),
            Part::Clippy => clippy(),
            Part::Dependencies => dependencies(),
        };
        if let Err(error) = outcome {
            eprintln!("{error:#}");
            failed.push(format!("{part:?}").to_lowercase());
        }
    }
    if failed.is_empty() {
        eprintln!("\ncheck: all good");
        Ok(())
    } else {
        bail!("check failed: {}", failed.join(", "))
    }
}

fn formatting() -> Result<()> {
    tools::run(tools::cargo().args(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    tools::run(tools::cargo().args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))
}

/// Licences, advisories, bans and sources, by `deny.toml`.
fn dependencies() -> Result<()> {
    if tools::has_cargo_command("deny") {
        return tools::run(tools::cargo().args(["deny", "--workspace", "check"]));
    }
    eprintln!(
        "NOT CHECKED: licences and advisories of dependencies, since cargo-deny is not installed (`cargo install cargo-deny \
         --locked`)"
    );
    Ok(())
}
