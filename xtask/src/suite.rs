//! `test`: every test, on both databases, with nothing prepared by hand.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use bulkhead_test_support::postgres::{Cluster, SKIPPED_VARIABLE, Server, URL_VARIABLE};
use clap::Args;

use crate::{fuzz, plugins, setup, tools};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Builds only what the tests themselves are; those that need a plugin's package find the last one that was built.
    #[arg(long)]
    without_plugins: bool,
    /// Leaves out the two minutes in which an independent client makes up requests (`cargo xtask fuzz`).
    #[arg(long)]
    without_fuzz: bool,
    /// Handed to `cargo nextest run`, or to `cargo test` where nextest is not installed: filters, `-p crate`, `-E …`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FILTERS")]
    filters: Vec<String>,
}

/// What the runners counted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Where the tests find PostgreSQL.
enum Postgres {
    Own(Cluster),
    Given { url: String, version: String },
    Missing(String),
}

impl Postgres {
    /// The server that the caller names, or a cluster for this run.
    fn find() -> Self {
        if let Some(url) = tools::variable(URL_VARIABLE) {
            return match Server::at(&url) {
                Ok(server) => Self::Given { version: server.version().to_owned(), url },
                Err(reason) => Self::Missing(reason.to_string()),
            };
        }
        match Cluster::start() {
            Ok(cluster) => Self::Own(cluster),
            Err(reason) => Self::Missing(reason.to_string()),
        }
    }

    fn url(&self) -> Option<&str> {
        match self {
            Self::Own(cluster) => Some(cluster.url()),
            Self::Given { url, .. } => Some(url),
            Self::Missing(_) => None,
        }
    }

    /// For the last lines.
    fn described(&self) -> String {
        match self {
            Self::Own(cluster) => {
                let made = cluster.databases_made();
                format!("PostgreSQL {} (own cluster, {made} databases made in it)", cluster.version())
            }
            Self::Given { version, .. } => format!("PostgreSQL {version} (the one in {URL_VARIABLE})"),
            Self::Missing(_) => "NO PostgreSQL".to_owned(),
        }
    }
}

pub(crate) fn chore(arguments: &Arguments) -> Result<()> {
    setup::require()?;
    if !arguments.without_plugins {
        // One build for the plugins' tool and the tests: with `--tests` the features of tests are on, so that what is
        // built here is what the runner asks for afterwards.
        tools::run(tools::cargo().args(["build", "--workspace", "--lib", "--bins", "--tests", "--examples"]))?;
        plugins::build_all(&tools::built("bulkhead", false)?)?;
    }
    let postgres = Postgres::find();
    if let Postgres::Missing(reason) = &postgres {
        warn(reason);
    }
    let skipped = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    let (mut count, mut green) = run_tests(&arguments.filters, &postgres, skipped.path())?;
    // To the runner a test that returns early has passed.
    let left_out = left_out(&std::fs::read_to_string(skipped.path())?);
    count.passed = count.passed.saturating_sub(left_out);
    count.skipped += left_out;
    if arguments.filters.is_empty() {
        let (of_documents, documents_green) = run_documents(&postgres)?;
        count += of_documents;
        green &= documents_green;
    }
    let fuzzed =
        (arguments.filters.is_empty() && !arguments.without_fuzz && !arguments.without_plugins).then(fuzz::in_tests);
    match &fuzzed {
        Some(fuzz::Outcome::Green) => count.passed += 1,
        Some(fuzz::Outcome::Failed(error)) => {
            eprintln!("\nschemathesis: {error:#}");
            count.failed += 1;
            green = false;
        }
        Some(fuzz::Outcome::LeftOut(_)) => count.skipped += 1,
        None => {}
    }
    if let Postgres::Missing(reason) = &postgres {
        warn(reason);
    }
    if let Some(fuzz::Outcome::LeftOut(why)) = &fuzzed {
        warn_of(
            "WITHOUT SCHEMATHESIS: no independent client held the server to its OpenAPI document.",
            &format!("{why:#}"),
        );
    }
    println!("\ndatabases: SQLite {}, {}", sqlite_version()?, postgres.described());
    println!("{} passed, {} failed, {} skipped", count.passed, count.failed, count.skipped);
    if !green {
        bail!("tests failed");
    }
    if matches!(postgres, Postgres::Missing(_)) && tools::under_ci() {
        bail!("continuous integration must cover PostgreSQL");
    }
    Ok(())
}

fn warn(reason: &str) {
    warn_of("WITHOUT POSTGRESQL: every test that needs it is left out.", reason);
}

fn warn_of(what: &str, reason: &str) {
    let line = "!".repeat(100);
    eprintln!("\n{line}\n{what}\n{reason}\n{line}\n");
}

/// How many tests said that they were left out; one may say so more than once.
fn left_out(lines: &str) -> u64 {
    lines.lines().collect::<BTreeSet<_>>().len() as u64
}

fn run_tests(filters: &[String], postgres: &Postgres, skipped: &Path) -> Result<(Count, bool)> {
    let with_nextest = tools::has_cargo_command("nextest");
    let mut command = tools::cargo();
    if with_nextest {
        command.args(["nextest", "run", "--no-fail-fast"]);
        if tools::under_ci() {
            // Logs of continuous integration are cut: a thousand lines of what passed would push out why one did not.
            command.args([
                "--status-level",
                "slow",
                "--final-status-level",
                "slow",
                "--failure-output",
                "immediate-final",
            ]);
        }
    } else {
        eprintln!("nextest is not installed: `cargo test` runs the suites one after another");
        command.args(["test", "--no-fail-fast", "--lib", "--bins", "--tests", "--examples"]);
    }
    // Someone who names a package means that one.
    let names_package = filters.iter().any(|word| word == "-p" || word.starts_with("--package"));
    if !names_package {
        command.arg("--workspace");
    }
    command.args(filters).env(SKIPPED_VARIABLE, skipped);
    counted(&mut command, postgres, if with_nextest { of_nextest_line } else { of_libtest_line })
}

/// Examples in documentation, which nextest does not run.
fn run_documents(postgres: &Postgres) -> Result<(Count, bool)> {
    counted(
        tools::cargo().args(["test", "--workspace", "--doc", "--no-fail-fast", "--quiet"]),
        postgres,
        of_libtest_line,
    )
}

/// Runs a test runner, shows its output as it comes, and adds up the lines in which it counts.
fn counted(command: &mut Command, postgres: &Postgres, count_in: fn(&str) -> Option<Count>) -> Result<(Count, bool)> {
    if let Some(url) = postgres.url() {
        command.env(URL_VARIABLE, url);
    }
    if std::io::stderr().is_terminal() {
        // The runner sees a pipe, and would think that nobody looks.
        command.env("CARGO_TERM_COLOR", "always");
    }
    eprintln!("$ {}", tools::shown(command));
    // Both runners count in one of the two streams, and people read them as one.
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot start {}", tools::shown(command)))?;
    // The command holds the pipe's other end, which must close with the child's.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut count = Count::default();
    let mut out = std::io::stderr().lock();
    let mut lines = BufReader::new(reader);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        out.write_all(&line)?;
        if let Some(found) = count_in(&without_colors(&String::from_utf8_lossy(&line))) {
            count += found;
        }
        line.clear();
    }
    let status = child.wait()?;
    Ok((count, status.success()))
}

/// `Summary [   0.034s] 30 tests run: 28 passed (1 slow), 1 failed, 1 timed out, 5 skipped`.
fn of_nextest_line(line: &str) -> Option<Count> {
    let (_, counts) = line.trim_start().strip_prefix("Summary [")?.split_once("run: ")?;
    let mut count = Count::default();
    for part in counts.split(", ") {
        let Some((number, what)) = part.trim().split_once(' ') else { continue };
        // Remarks in parentheses have numbers of their own, of tests that were counted before.
        let number = number.parse::<u64>().unwrap_or(0);
        match what.split_whitespace().next() {
            Some("passed") => count.passed += number,
            Some("failed" | "timed" | "exec") => count.failed += number,
            Some("skipped") => count.skipped += number,
            _ => {}
        }
    }
    Some(count)
}

/// `test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.00s`.
fn of_libtest_line(line: &str) -> Option<Count> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number =
        |word: &str| counts.split("; ").find(|part| part.ends_with(word)).and_then(leading_number).unwrap_or(0);
    Some(Count {
        passed: number("passed"),
        failed: number("failed"),
        skipped: number("ignored") + number("filtered out"),
    })
}

fn leading_number(part: &str) -> Option<u64> {
    part.split_whitespace().next()?.parse().ok()
}

/// Takes out the escape sequences that colour a line.
fn without_colors(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(start) = rest.find("\u{1b}[") {
        plain.push_str(&rest[..start]);
        let sequence = &rest[start + 2..];
        rest = sequence.find(|c: char| c.is_ascii_alphabetic()).map_or("", |end| &sequence[end + 1..]);
    }
    plain + rest
}

/// The version of the SQLite that is compiled in, from the source that is compiled.
fn sqlite_version() -> Result<String> {
    let metadata = tools::metadata(true)?;
    let manifest = tools::rows(&metadata["packages"])
        .find(|package| package["name"] == "libsqlite3-sys")
        .and_then(|package| package["manifest_path"].as_str())
        .context("the workspace does not depend on libsqlite3-sys any more: where is SQLite?")?;
    let header = Path::new(manifest).with_file_name("sqlite3").join("sqlite3.h");
    let text = std::fs::read_to_string(&header).with_context(|| format!("cannot read {}", header.display()))?;
    let version = text.lines().find_map(|line| line.strip_prefix("#define SQLITE_VERSION "));
    let version = version.context("sqlite3.h names no version")?;
    Ok(version.trim().trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nextest_summaries_are_read() {
        let line =
            "     Summary [   0.034s] 30 tests run: 28 passed (1 slow, 1 flaky), 1 failed, 1 timed out, 5 skipped\n";
        assert_eq!(of_nextest_line(line), Some(Count { passed: 28, failed: 2, skipped: 5 }));
        let cut_short = "     Summary [   1.2s] 3/30 tests run: 2 passed, 1 failed, 0 skipped";
        assert_eq!(of_nextest_line(cut_short), Some(Count { passed: 2, failed: 1, skipped: 0 }));
        assert_eq!(of_nextest_line("        PASS [   0.005s] xtask suite::tests::run: 5 passed"), None);
    }

    #[test]
    fn libtest_results_are_read() {
        let line =
            "test result: FAILED. 5 passed; 2 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s\n";
        assert_eq!(of_libtest_line(line), Some(Count { passed: 5, failed: 2, skipped: 3 }));
        assert_eq!(of_libtest_line("test a_result ... ok"), None);
    }

    #[test]
    fn colours_hide_no_count() {
        let line = "\u{1b}[32;1m     Summary\u{1b}[0m [   0.034s] \u{1b}[1m1\u{1b}[0m test run: \u{1b}[1m1\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m, \u{1b}[1m0\u{1b}[0m \u{1b}[33;1mskipped\u{1b}[0m";
        assert_eq!(of_nextest_line(&without_colors(line)), Some(Count { passed: 1, failed: 0, skipped: 0 }));
    }

    #[test]
    fn a_test_that_is_left_out_twice_counts_once() {
        assert_eq!(left_out("suite a\nsuite b\nsuite a\nother a\n"), 3);
        assert_eq!(left_out(""), 0);
    }

    #[test]
    fn the_version_of_sqlite_is_found() {
        assert!(sqlite_version().unwrap().starts_with("3."));
    }
}
