//! Tries a package against valid, hostile and malformed inputs through the real runtime. Every permission is denied, so that nothing leaves
//! the machine and the plugin shows what it does without.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bulkhead_model::call::{CallReport, Outcome};
use bulkhead_model::grant::EffectiveGrants;
use bulkhead_model::limits::{ContributionKind, Limits, PackageLimits, Usage};
use bulkhead_model::manifest::{Contribution, Manifest};
use bulkhead_runtime::{CompilerCommand, NoSecrets, PackageInfo};
use serde_json::{Value, json};

use super::local::{Call, Loaded, Local};
use super::report::{self, HeadRoom, bytes};
use super::{package_of, sample};

/// Percent of a limit from which on the report warns.
const HEAD_ROOM_WARNING_PERCENT: u64 = 80;
/// Leads in the largest batch.
const LEADS: usize = 1_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A package, or a project's folder (which is built first)
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// One call to make.
struct Case {
    name: String,
    settings: String,
    input: String,
}

/// What became of one contribution's cases.
struct Findings<'m> {
    kind: ContributionKind,
    contribution: &'m Contribution,
    outcomes: BTreeMap<&'static str, usize>,
    failures: Vec<(String, CallReport)>,
    peak: Usage,
    limits: Limits,
    /// A schema for which no value could be made.
    without_sample: Vec<&'static str>,
}

pub(super) fn run(args: &Args, compiler: CompilerCommand) -> anyhow::Result<bool> {
    let file = package_of(&args.path)?;
    let local = Local::start(compiler, &[])?;
    let loaded = local.load(&file)?;
    let manifest = &loaded.info.manifest;
    let findings: Vec<Findings<'_>> = manifest
        .contributions()
        .map(|(kind, contribution)| try_contribution(&local, &loaded, manifest, kind, contribution))
        .collect();
    let passed = findings.iter().all(|findings| findings.failures.is_empty());
    if args.json {
        report::print_json(&json!({
            "file": file,
            "digest": loaded.info.digest.to_string(),
            "compile_ms": u64::try_from(loaded.compile_time.as_millis()).unwrap_or(u64::MAX),
            "package": package_rows(&loaded.info).iter().map(|(what, used, of)| json!({ "limit": what, "used": used, "of": of })).collect::<Vec<_>>(),
            "imports": loaded.info.imports,
            "pure": loaded.info.pure,
            "contributions": findings.iter().map(Findings::json).collect::<Vec<_>>(),
            "passed": passed,
        }));
    } else {
        print_package(&loaded);
        findings.iter().for_each(Findings::print);
        println!("{}", if passed { "passed" } else { "FAILED" });
    }
    Ok(passed)
}

fn try_contribution<'m>(
    local: &Local,
    loaded: &Loaded,
    manifest: &Manifest,
    kind: ContributionKind,
    contribution: &'m Contribution,
) -> Findings<'m> {
    let limits = Limits::resolve(kind, &manifest.limits);
    let mut findings = Findings {
        kind,
        contribution,
        outcomes: BTreeMap::new(),
        failures: Vec::new(),
        peak: Usage::default(),
        limits,
        without_sample: Vec::new(),
    };
    for case in findings.cases() {
        let report = local.call(
            loaded,
            Call {
                kind,
                contribution: contribution.name.as_str(),
                settings: case.settings,
                input: case.input,
                grants: Arc::new(EffectiveGrants::default()),
                secrets: Arc::new(NoSecrets),
                idempotency_key: None,
            },
        );
        *findings.outcomes.entry(report.outcome.as_str()).or_default() += 1;
        report::peak(&mut findings.peak, &report.usage);
        if !is_acceptable(report.outcome) {
            findings.failures.push((case.name, report));
        }
    }
    findings
}

/// A guest may return, fail in its own words, or say what it lacks. Whatever else ends a call is a fault.
fn is_acceptable(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Returned | Outcome::PluginError | Outcome::Refused => true,
        Outcome::Trapped
        | Outcome::OutOfFuel
        | Outcome::OutOfMemory
        | Outcome::LimitExceeded
        | Outcome::InvalidOutput
        | Outcome::DeadlinePassed
        | Outcome::Revoked
        | Outcome::Cancelled
        | Outcome::HostFault => false,
    }
}

impl Findings<'_> {
    fn cases(&mut self) -> Vec<Case> {
        let mut settings = sample::valid(self.contribution.settings.as_ref());
        if settings.is_empty() {
            self.without_sample.push("settings");
            settings.push(json!({}));
        }
        let mut inputs = sample::valid(self.contribution.input.as_ref());
        if inputs.is_empty() {
            self.without_sample.push("input");
            inputs.push(json!({}));
        }
        if self.kind == ContributionKind::Factor {
            return factor_cases(&settings, &inputs, self.limits.input_bytes);
        }
        let mut cases = Vec::new();
        for (s, settings) in settings.iter().enumerate() {
            for (i, input) in inputs.iter().enumerate() {
                let name = format!("valid settings {} with valid input {}", s + 1, i + 1);
                cases.push(Case { name, settings: settings.to_string(), input: input.to_string() });
            }
        }
        for (name, input) in sample::malformed(self.limits.input_bytes) {
            cases.push(Case { name: format!("input: {name}"), settings: settings[0].to_string(), input });
        }
        for (name, settings) in odd_settings() {
            cases.push(Case { name: format!("settings: {name}"), settings, input: inputs[0].to_string() });
        }
        cases
    }

    fn json(&self) -> Value {
        let failure = |(case, report): &(String, CallReport)| json!({ "case": case, "outcome": report.outcome.as_str(), "error": report.error, "log": report.log });
        json!({
            "name": self.contribution.name.as_str(),
            "kind": self.kind.as_str(),
            "outcomes": self.outcomes,
            "failures": self.failures.iter().map(failure).collect::<Vec<_>>(),
            "without_sample": self.without_sample,
            "head_room": HeadRoom::of(&self.peak, &self.limits).iter().map(HeadRoom::json).collect::<Vec<_>>(),
        })
    }

    fn print(&self) {
        let calls: usize = self.outcomes.values().sum();
        let outcomes: Vec<String> = self.outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
        let mark = if self.failures.is_empty() { "ok" } else { "FAIL" };
        println!(
            "{mark:<5}{} {}: {calls} calls without any permission: {}",
            self.kind.as_str(),
            self.contribution.name,
            outcomes.join(", ")
        );
        for schema in &self.without_sample {
            println!(
                "     note: no value could be made for the {schema} schema; {{}} was used. `examples` in the schema help"
            );
        }
        for (case, report) in &self.failures {
            let error = report.error.as_ref().map_or("", |error| error.message.as_str());
            println!("     {case}: {} {error}", report.outcome.as_str());
            for line in report.log.iter().rev().take(5).rev() {
                println!("         {:<8} {}", line.level, line.message);
            }
        }
        println!("     head-room, the most that any call used:");
        for row in HeadRoom::of(&self.peak, &self.limits) {
            let warning =
                if row.percent() >= HEAD_ROOM_WARNING_PERCENT && row.limit != "input_bytes" { "  close!" } else { "" };
            println!("       {}{warning}", row.line());
        }
        println!();
    }
}

fn factor_cases(settings: &[Value], fields: &[Value], input_bytes_max: u64) -> Vec<Case> {
    let batch = |leads: Vec<String>| format!(r#"{{"leads":[{}]}}"#, leads.join(","));
    let lead = |index: usize, fields: &str| format!(r#"{{"id":"lead_{index}","fields":{fields}}}"#);
    let mut cases = Vec::new();
    for (s, settings) in settings.iter().enumerate() {
        let all = fields.iter().enumerate().map(|(index, fields)| lead(index, &fields.to_string())).collect();
        let name = format!("valid settings {} with every valid lead", s + 1);
        cases.push(Case { name, settings: settings.to_string(), input: batch(all) });
    }
    let first = settings[0].to_string();
    cases.push(Case { name: "no lead".into(), settings: first.clone(), input: batch(Vec::new()) });
    let many = (0..LEADS).map(|index| lead(index, &fields[index % fields.len()].to_string()));
    let mut room = usize::try_from(input_bytes_max).unwrap_or(usize::MAX).saturating_sub(64);
    let many = many.take_while(|lead| {
        let fits = lead.len() < room;
        room = room.saturating_sub(lead.len() + 1);
        fits
    });
    cases.push(Case { name: format!("{LEADS} leads"), settings: first.clone(), input: batch(many.collect()) });
    for (name, fields) in sample::malformed(64 * 1024) {
        // Fields come from the host: always JSON, of a depth that the host reads.
        if serde_json::from_str::<Value>(&fields).is_ok() {
            cases.push(Case {
                name: format!("fields: {name}"),
                settings: first.clone(),
                input: batch(vec![lead(0, &fields)]),
            });
        }
    }
    for (name, settings) in odd_settings() {
        let input = batch(vec![lead(0, &fields[0].to_string())]);
        cases.push(Case { name: format!("settings: {name}"), settings, input });
    }
    cases
}

/// Settings objects that no schema describes.
fn odd_settings() -> Vec<(&'static str, String)> {
    vec![
        ("empty", "{}".into()),
        ("unknown keys", r#"{"no-such-setting":[1,2,3],"settings":"own name"}"#.into()),
        ("all of the wrong type", r#"{"url":1,"headers":[],"points":"x"}"#.into()),
    ]
}

/// Size and contents of the package beside the limits.
fn package_rows(info: &PackageInfo) -> Vec<(&'static str, u64, u64)> {
    let limits = if info.pure { PackageLimits::factor() } else { PackageLimits::platform() };
    vec![
        ("package_bytes", info.size_bytes, limits.package_bytes),
        ("functions", info.counts.functions, u64::from(limits.functions)),
        ("core_instances", info.counts.core_instances, u64::from(limits.core_instances)),
        ("memories", info.counts.memories, u64::from(limits.memories)),
        ("tables", info.counts.tables, u64::from(limits.tables)),
        ("component_instances", info.counts.component_instances, u64::from(limits.component_instances)),
    ]
}

fn print_package(loaded: &Loaded) {
    let info = &loaded.info;
    println!("ok   package {} {}, {}", info.manifest.name, info.manifest.version, bytes(info.size_bytes));
    println!("     sha256 {}", info.digest);
    println!("     compiled in {} ms", loaded.compile_time.as_millis());
    for (what, used, of) in package_rows(info) {
        println!("     {what:<20} {used} of {of}");
    }
    println!("     imports: {}", info.imports.join(", "));
    if info.pure {
        println!("     pure: its results depend on its arguments alone");
    }
    for ask in &info.manifest.permissions {
        let need = if ask.required { "required" } else { "optional" };
        println!("     asks for {} ({need}): {}", ask.capability.kind(), ask.reason);
    }
    println!();
}
