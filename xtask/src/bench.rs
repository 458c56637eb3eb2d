//! `bench`: every measurement, in release mode.
//!
//! A measurement is a binary or example of any package whose name begins with `bench`. It prints a JSON object in a line
//! for each figure: `{"row", "what", "ours", "reference", "ratio", "target", "unit", "fdatasync_per_s", "cpu_s", "conditions"}`,
//! of which `row` (in the table of targets), `what`, `ours` and `unit` are required. Other lines are for people.
//!
//! Its source's first line says which rows it is for: `//! Performance row 3: …`, `//! Performance rows 6, 7: …`. What it is asked
//! for it hears by its environment (`bulkhead_test_support::measure`).

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use bulkhead_test_support::measure::{DATABASE_VARIABLE, ROWS_VARIABLE};
use bulkhead_test_support::postgres::{Cluster, Options, URL_VARIABLE};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::{setup, tools};

/// The columns of the table, in order.
const COLUMNS: [&str; 9] = ["row", "what", "ours", "reference", "ratio", "target", "unit", "fdatasync_per_s", "cpu_s"];
/// Those that each figure must have.
const REQUIRED: [&str; 4] = ["row", "what", "ours", "unit"];

/// What `--help` shows at its end.
const EXAMPLES: &str = "\
Examples:
  cargo xtask bench                                everything, on both databases
  cargo xtask bench --row 6 --row 7                durable runs: SQLite beside the disk, PostgreSQL beside pgbench
  cargo xtask bench --row 9 --database sqlite      claims, on SQLite alone
  cargo xtask bench condition                      programs whose name contains \"condition\"

Columns: ratio is ours / reference, both of this run; fdatasync_per_s is what the disk does by itself; cpu_s is processor seconds of one
unit of work, the database's own included. What else a figure depends on is in its \"conditions\" in bench.json.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Only measurements whose name contains one of these.
    names: Vec<String>,
    /// Only this row of the table of targets; may be given several times.
    #[arg(long = "row", value_name = "N")]
    rows: Vec<u32>,
    /// The database of those rows that need one.
    #[arg(long, value_enum, default_value_t = Place::Both)]
    database: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Place {
    Sqlite,
    Postgres,
    Both,
}

impl Place {
    fn as_str(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
            Self::Both => "both",
        }
    }
}

impl Arguments {
    fn want(&self, measurement: &Measurement) -> bool {
        let by_name = self.names.is_empty() || self.names.iter().any(|name| measurement.name.contains(name));
        let by_row = self.rows.is_empty() || self.rows.iter().any(|row| measurement.rows.contains(row));
        by_name && by_row
    }
}

/// One binary that measures.
#[derive(Debug, Clone)]
struct Measurement {
    package: String,
    name: String,
    is_example: bool,
    features: Vec<String>,
    /// Of the table of targets.
    rows: Vec<u32>,
}

pub(crate) fn chore(arguments: &Arguments) -> Result<()> {
    setup::require()?;
    let mut measurements = found(&tools::metadata(false)?);
    measurements.retain(|one| arguments.want(one));
    if measurements.is_empty() {
        bail!("no measurement is named like that or has that row; `--help` shows examples");
    }
    build(&measurements)?;
    // Durable: a measurement of commits that do not reach the disk would flatter.
    let cluster = (arguments.database != Place::Sqlite).then(|| Cluster::start_with(Options { durable: true }));
    if let Some(Err(missing)) = &cluster {
        eprintln!("WITHOUT POSTGRESQL: measurements that need it are left out. {missing}");
    }
    let cluster = cluster.and_then(Result::ok);
    let (mut figures, mut failures) = (Vec::new(), Vec::new());
    for measurement in &measurements {
        match measure(measurement, arguments, cluster.as_ref()) {
            Ok(found) if found.is_empty() => failures.push(format!("{} printed no figure", measurement.name)),
            Ok(found) => figures.extend(found),
            Err(error) => failures.push(format!("{}: {error:#}", measurement.name)),
        }
    }
    figures.sort_by_key(|figure| (figure["row"].as_u64().unwrap_or(u64::MAX), text(&figure["row"])));
    print!("\n{}", table(&figures));
    let path = tools::target_directory()?.join("bench.json");
    let report = json!({ "machine": machine(), "figures": figures });
    std::fs::write(&path, format!("{report:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    println!("\nwritten to {}", path.display());
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("\n")) }
}

/// The measurements of the workspace, by `cargo metadata`.
fn found(metadata: &Value) -> Vec<Measurement> {
    let mut found = Vec::new();
    for package in tools::rows(&metadata["packages"]) {
        for target in tools::rows(&package["targets"]) {
            let kinds: Vec<_> = tools::rows(&target["kind"]).filter_map(Value::as_str).collect();
            let (name, is_example) = (text(&target["name"]), kinds.contains(&"example"));
            if name.starts_with("bench") && (is_example || kinds.contains(&"bin")) {
                let features = tools::rows(&target["required-features"]).map(text).collect();
                let rows = rows_of(&text(&target["src_path"]));
                found.push(Measurement { package: text(&package["name"]), name, is_example, features, rows });
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// What the source's first line says: `//! Performance rows 6, 7: …`.
fn rows_of(path: &str) -> Vec<u32> {
    let source = std::fs::read_to_string(path).unwrap_or_default();
    let line = source.lines().next().and_then(|line| line.strip_prefix("//! Performance row"));
    let Some((rows, _)) = line.and_then(|line| line.split_once(':')) else { return Vec::new() };
    rows.trim_start_matches('s').split(',').filter_map(|row| row.trim().parse().ok()).collect()
}

/// One build for all, so that what they share is compiled once.
fn build(measurements: &[Measurement]) -> Result<()> {
    let mut command = tools::cargo();
    command.args(["build", "--release"]);
    for package in measurements.iter().map(|one| &one.package).collect::<BTreeSet<_>>() {
        command.args(["--package", package]);
    }
    // All binaries of those packages: a measurement may start one (the compiler's child, the server).
    command.arg("--bins");
    for one in measurements {
        if one.is_example {
            command.args(["--example", &one.name]);
        }
        for feature in &one.features {
            command.args(["--features", &format!("{}/{feature}", one.package)]);
        }
    }
    tools::run(&mut command)
}

/// Runs one to its end and answers its figures.
fn measure(measurement: &Measurement, arguments: &Arguments, cluster: Option<&Cluster>) -> Result<Vec<Value>> {
    let folder = tools::target_directory()?.join("release");
    let folder = if measurement.is_example { folder.join("examples") } else { folder };
    let mut command = tools::program(folder.join(&measurement.name));
    if let Some(cluster) = cluster {
        command.env(URL_VARIABLE, cluster.url());
    }
    let rows: Vec<String> = arguments.rows.iter().map(u32::to_string).collect();
    command.env(ROWS_VARIABLE, rows.join(",")).env(DATABASE_VARIABLE, arguments.database.as_str());
    eprintln!("$ {}", measurement.name);
    figures_of(&mut command)
}

fn figures_of(command: &mut Command) -> Result<Vec<Value>> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start it")?;
    let output = child.stdout.take().context("its output is piped")?;
    let mut figures = Vec::new();
    let mut problem = None;
    for line in BufReader::new(output).lines() {
        let line = line?;
        if !line.starts_with('{') {
            eprintln!("{line}");
            continue;
        }
        match figure(&line) {
            Ok(found) => figures.push(found),
            // The rest is read all the same: a full pipe would stop the measurement for ever.
            Err(error) => problem = Some(error),
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("it ended with {status}");
    }
    problem.map_or(Ok(figures), Err)
}

fn figure(line: &str) -> Result<Value> {
    let figure: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
    match REQUIRED.iter().find(|name| figure[**name].is_null()) {
        None => Ok(figure),
        Some(missing) => bail!("a figure without {missing:?}: {line}"),
    }
}

/// A table in Markdown, aligned for terminals.
fn table(figures: &[Value]) -> String {
    let header = COLUMNS.map(str::to_owned).to_vec();
    let mut lines = vec![header];
    lines.extend(figures.iter().map(|figure| COLUMNS.iter().map(|column| text(&figure[*column])).collect()));
    let widths: Vec<usize> = (0..COLUMNS.len())
        .map(|column| lines.iter().map(|cells: &Vec<String>| cells[column].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |cells: &[String]| {
        let padded: Vec<_> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("| {} |\n", padded.join(" | "))
    };
    let rule: Vec<_> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut table = line(&lines[0]) + &line(&rule);
    table.extend(lines[1..].iter().map(|cells| line(cells)));
    table
}

/// A cell: numbers short enough to read.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => {
            let number = number.as_f64().unwrap_or_default();
            if number.abs() >= 100.0 { format!("{number:.0}") } else { format!("{number:.3}") }
        }
        other => other.to_string(),
    }
}

/// What one must know to compare two files of figures.
fn machine() -> Value {
    let said = |program: &str, arguments: &[&str]| tools::output(tools::program(program).args(arguments)).ok();
    json!({
        "processors": std::thread::available_parallelism().ok().map(std::num::NonZero::get),
        "system": said("uname", &["-srm"]),
        "compiler": said("rustc", &["--version"]),
        "commit": said("git", &["describe", "--always", "--dirty"]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_are_found_by_name_and_kind() {
        let metadata = json!({ "packages": [
            { "name": "a", "targets": [
                { "name": "bench-call", "kind": ["bin"], "required-features": ["bench"] },
                { "name": "bench_condition", "kind": ["example"] },
                { "name": "benchmarks", "kind": ["test"] },
                { "name": "server", "kind": ["bin"] },
            ] },
        ] });
        let names: Vec<_> = found(&metadata).into_iter().map(|one| (one.name, one.is_example, one.features)).collect();
        assert_eq!(
            names,
            [("bench-call".into(), false, vec!["bench".to_owned()]), ("bench_condition".into(), true, vec![])]
        );
    }

    #[test]
    fn rows_are_read_from_the_first_line() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, b"//! Performance rows 6, 7, 10: runs\n").unwrap();
        assert_eq!(rows_of(file.path().to_str().unwrap()), [6, 7, 10]);
        assert_eq!(rows_of(concat!(env!("CARGO_MANIFEST_DIR"), "/../host/runtime/examples/bench-call.rs")), [1]);
        assert_eq!(rows_of("/nowhere"), Vec::<u32>::new());
    }

    #[test]
    fn figures_are_told_from_talk_and_must_be_whole() {
        let script = |text: &str| figures_of(Command::new("printf").args(["%b", text]));
        let figures = script("warming up\\n{\"row\":1,\"what\":\"call\",\"ours\":12.5,\"unit\":\"µs\"}\\n").unwrap();
        assert_eq!(figures.len(), 1);
        assert!(script("{\"row\":1,\"what\":\"call\"}\\n").unwrap_err().to_string().contains("\"ours\""));
        assert!(script("{broken\\n").unwrap_err().to_string().contains("not JSON"));
        assert!(figures_of(Command::new("false").arg("x")).unwrap_err().to_string().contains("exit status: 1"));
    }

    #[test]
    fn the_table_is_aligned() {
        let figures = [json!({ "row": 1, "what": "call", "ours": 1234.5678, "ratio": 1.23456, "unit": "µs" })];
        assert_eq!(
            table(&figures),
            "| row | what | ours | reference | ratio | target | unit | fdatasync_per_s | cpu_s |\n\
             | --- | ---- | ---- | --------- | ----- | ------ | ---- | --------------- | ----- |\n\
             | 1   | call | 1235 |           | 1.235 |        | µs   |                 |       |\n"
        );
    }
}
