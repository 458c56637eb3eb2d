//! `bench`: every measurement, in release mode.
//!
//! A measurement is a binary or example of any package whose name begins with `bench`. It prints a JSON object in a line
//! for each figure: `{"row", "what", "ours", "reference", "ratio", "target", "unit", "conditions"}`, of which `row` (in
//! the table of targets), `what`, `ours` and `unit` are required. Other lines are for people.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use bulkhead_test_support::postgres::{Cluster, Options, URL_VARIABLE};
use clap::Args;
use serde_json::{Value, json};

use crate::{setup, tools};

/// The columns of the table, in order.
const COLUMNS: [&str; 7] = ["row", "what", "ours", "reference", "ratio", "target", "unit"];
/// Those that each figure must have.
const REQUIRED: [&str; 4] = ["row", "what", "ours", "unit"];

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only measurements whose name contains one of these.
    names: Vec<String>,
}

/// One binary that measures.
#[derive(Debug, Clone)]
struct Measurement {
    package: String,
    name: String,
    is_example: bool,
    features: Vec<String>,
}

pub(crate) fn chore(arguments: &Arguments) -> Result<()> {
    setup::require()?;
    let mut measurements = found(&tools::metadata(false)?);
    measurements.retain(|one| arguments.names.is_empty() || arguments.names.iter().any(|name| one.name.contains(name)));
    if measurements.is_empty() {
        bail!("no measurement is named like that");
    }
    build(&measurements)?;
    // Durable: a measurement of commits that do not reach the disk would flatter.
    let cluster = Cluster::start_with(Options { durable: true });
    if let Err(missing) = &cluster {
        eprintln!("WITHOUT POSTGRESQL: measurements that need it are left out. {missing}");
    }
    let (mut figures, mut failures) = (Vec::new(), Vec::new());
    for measurement in &measurements {
        match measure(measurement, cluster.as_ref().ok()) {
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
                found.push(Measurement { package: text(&package["name"]), name, is_example, features });
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
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
fn measure(measurement: &Measurement, cluster: Option<&Cluster>) -> Result<Vec<Value>> {
    let folder = tools::target_directory()?.join("release");
    let folder = if measurement.is_example { folder.join("examples") } else { folder };
    let mut command = tools::program(folder.join(&measurement.name));
    if let Some(cluster) = cluster {
        command.env(URL_VARIABLE, cluster.url());
    }
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
            "| row | what | ours | reference | ratio | target | unit |\n\
             | --- | ---- | ---- | --------- | ----- | ------ | ---- |\n\
             | 1   | call | 1235 |           | 1.235 |        | µs   |\n"
        );
    }
}
