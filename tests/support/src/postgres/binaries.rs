//! Finding the installed programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{MAJOR_VERSION_MIN, Unavailable};

/// The programs of one installation, all in one directory.
#[derive(Debug, Clone)]
pub(super) struct Binaries {
    pub(super) directory: PathBuf,
    /// As the program says it, such as `15.18`.
    pub(super) version: String,
}

/// Folders whose children are versions, newest wins: Debian, Fedora's PGDG packages, Alpine, Homebrew on both kinds of Mac.
const VERSIONED_PLACES: [(&str, &str); 5] = [
    ("/usr/lib/postgresql", "bin"),
    ("/usr", "bin"),
    ("/usr/libexec", ""),
    ("/opt/homebrew/opt", "bin"),
    ("/usr/local/opt", "bin"),
];

impl Binaries {
    /// The first new enough installation: those on `PATH` first, then the usual places, newest first.
    pub(super) fn find() -> Result<Self, Unavailable> {
        let mut too_old = None;
        for directory in places() {
            let Some(version) = version_in(&directory) else { continue };
            let found = Self { directory, version };
            if found.major() >= MAJOR_VERSION_MIN {
                return Ok(found);
            }
            too_old.get_or_insert(found);
        }
        Err(match too_old {
            Some(old) => Unavailable::TooOld { directory: old.directory.display().to_string(), version: old.version },
            None => Unavailable::NotInstalled { searched: "PATH, /usr/lib/postgresql, /usr/pgsql-*, Homebrew".into() },
        })
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn major(&self) -> u32 {
        leading_number(&self.version)
    }
}

/// Candidate directories, best first, each with all the programs needed.
fn places() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut consider = |directory: PathBuf| {
        // A link on PATH (Debian's wrappers, a hand-made one) leads to the directory where the rest lies.
        let real = directory.join("initdb").canonicalize().ok();
        let Some(directory) = real.as_deref().and_then(Path::parent) else { return };
        let complete = ["postgres", "initdb", "pg_ctl", "psql"].iter().all(|name| directory.join(name).is_file());
        if complete && !found.contains(&directory.to_path_buf()) {
            found.push(directory.to_path_buf());
        }
    };
    for directory in path_directories() {
        consider(directory);
    }
    for (parent, below) in VERSIONED_PLACES {
        let mut children: Vec<_> = std::fs::read_dir(parent)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with("postgresql") || name.starts_with("pgsql-") || leading_number(&name) > 0
            })
            .collect();
        children.sort_by_key(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            std::cmp::Reverse(leading_number(name.trim_start_matches(|c: char| !c.is_ascii_digit())))
        });
        for child in children {
            consider(child.join(below));
        }
    }
    found
}

#[expect(clippy::disallowed_methods, reason = "finding programs is what PATH is for")]
fn path_directories() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// `15.18` of `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn version_in(directory: &Path) -> Option<String> {
    let output = Command::new(directory.join("postgres")).arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

fn parse_version(text: &str) -> Option<String> {
    let version = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    Some(version.to_owned())
}

/// 15 of `15.18`, 18 of `18beta1`, 0 of `postgresql`.
fn leading_number(text: &str) -> u32 {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_distributions_write_them() {
        let debian = parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n").unwrap();
        assert_eq!((debian.as_str(), leading_number(&debian)), ("15.18", 15));
        let beta = parse_version("postgres (PostgreSQL) 18beta1").unwrap();
        assert_eq!((beta.as_str(), leading_number(&beta)), ("18beta1", 18));
        let ancient = parse_version("postgres (PostgreSQL) 9.6.24").unwrap();
        assert!(leading_number(&ancient) < MAJOR_VERSION_MIN);
        assert_eq!(parse_version("no such thing"), None);
    }
}
