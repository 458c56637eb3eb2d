//! House rules that no compiler knows. Each finding says where, and what to do instead.
//!
//! Clippy checks what it can (`clippy.toml`, `[workspace.lints]`); this checks that every crate is under those lints, and
//! the rest: which crate may name which, the files of migrations, and words that have one home.

mod asvs;
mod dependencies;
mod migrations;
mod source;
mod statements;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::tools;

/// One breach of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The file, and the line where there is one.
    place: String,
    what: String,
}

impl Finding {
    fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.place, self.what)
    }
}

/// Folders without source of ours.
const SKIPPED: [&str; 5] = ["target", "node_modules", "demo-data", ".git", ".bulkhead"];

/// Checks the whole repository and prints every finding.
pub(crate) fn check() -> Result<()> {
    let metadata = tools::metadata(false)?;
    let mut findings = dependencies::check(&metadata);
    findings.extend(dependencies::check_lints(&metadata)?);
    findings.extend(migrations::check_folders(tools::root())?);
    findings.extend(statements::check_list(tools::root())?);
    findings.extend(asvs::check_file(tools::root())?);
    let mut files = Vec::new();
    collect(tools::root(), &mut files)?;
    for file in &files {
        let path = tools::from_root(file).to_string_lossy().into_owned();
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {path}"))?;
        findings.extend(source::check(&path, &text));
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    eprintln!("house rules: {} Rust files, {} findings", files.len(), findings.len());
    if findings.is_empty() { Ok(()) } else { bail!("{} breaches of house rules", findings.len()) }
}

/// Every Rust file, in order.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut entries: Vec<_> = entries.collect::<std::io::Result<_>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let name = entry.file_name();
        // Not through links: one that leads upwards would never end.
        if entry.file_type()?.is_dir() {
            if !SKIPPED.iter().any(|skipped| name == *skipped) {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}
