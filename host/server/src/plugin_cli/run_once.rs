//! One call under the real limits, with the permissions given on the command line and no others.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use bulkhead_model::call::{CallReport, Outcome};
use bulkhead_model::grant::{Ceiling, EffectiveGrants, Grants, Loopback};
use bulkhead_model::limits::ContributionKind;
use bulkhead_model::manifest::{Manifest, schema};
use bulkhead_runtime::CompilerCommand;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::local::{self, Call, GivenSecrets, Local};
use super::{package_of, report};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A package, or a project's folder (which is built first)
    file: PathBuf,
    /// The contribution's name; may be left out when there is only one
    #[arg(long, value_name = "NAME")]
    contribution: Option<String>,
    /// JSON, @file, or - for stdin. A factor takes {"leads": [{"id": …, "fields": {…}}]}
    #[arg(long, value_name = "JSON", default_value = "{}")]
    input: String,
    /// The installation's settings: JSON or @file
    #[arg(long, value_name = "JSON", default_value = "{}")]
    settings: String,
    /// A secret's value, or @file with it; may be repeated
    #[arg(long = "secret", value_name = "NAME=VALUE")]
    secrets: Vec<String>,
    /// An address of this machine that the plugin may reach if a grant covers it; may be repeated
    #[arg(long, value_name = "HOST:PORT")]
    allow_egress: Vec<Loopback>,
    /// Grant everything that the manifest asks for
    #[arg(long, conflicts_with = "grants")]
    grant_all: bool,
    /// Grants as the API takes them, {"permissions": […]}: JSON or @file
    #[arg(long, value_name = "JSON")]
    grants: Option<String>,
    /// In place of a random one
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Print the whole report as one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, compiler: CompilerCommand) -> anyhow::Result<bool> {
    let settings = json_argument("--settings", &args.settings)?;
    ensure!(settings.is_object(), "--settings is a JSON object");
    let input = json_argument("--input", &args.input)?;
    let secrets = secrets(&args.secrets)?;
    let file = package_of(&args.file)?;
    let local = Local::start(compiler, &args.allow_egress)?;
    let loaded = local.load(&file)?;
    let manifest = &loaded.info.manifest;
    let name = contribution_name(manifest, args.contribution.as_deref())?;
    let (kind, contribution) = local::contribution(manifest, name)?;
    require_valid("the settings", contribution.settings.as_ref(), &settings)?;
    if kind != ContributionKind::Factor {
        require_valid("the input", contribution.input.as_ref(), &input)?;
    }
    let grants = grants(args, manifest, &settings)?;
    let ceiling = Ceiling::with_loopbacks(args.allow_egress.clone());
    let effective = EffectiveGrants::compute(manifest, &grants, &ceiling, &settings, local.ambient().now());
    let call = Call {
        kind,
        contribution: name,
        settings: settings.to_string(),
        input: input.to_string(),
        grants: Arc::new(effective),
        secrets: Arc::new(GivenSecrets(secrets)),
        idempotency_key: args.idempotency_key.clone(),
    };
    let report = local.call(&loaded, call);
    if args.json {
        report::print_json(&json!(report));
    } else {
        report::print_call(&report);
        hint(args, &report);
    }
    if report.outcome == Outcome::Returned {
        require_valid_output(contribution.output.as_ref(), report.output.as_deref())?;
    }
    Ok(report.outcome == Outcome::Returned)
}

fn contribution_name<'a>(manifest: &'a Manifest, asked: Option<&'a str>) -> anyhow::Result<&'a str> {
    if let Some(name) = asked {
        return Ok(name);
    }
    let names: Vec<&str> = manifest.contributions().map(|(_, contribution)| contribution.name.as_str()).collect();
    match names.as_slice() {
        [name] => Ok(name),
        _ => bail!("name one with --contribution: {}", names.join(", ")),
    }
}

fn grants(args: &Args, manifest: &Manifest, settings: &Value) -> anyhow::Result<Grants> {
    if args.grant_all {
        return Ok(Grants::everything_asked(manifest, settings));
    }
    let Some(text) = &args.grants else { return Ok(Grants::default()) };
    let grants = Grants::parse(text_argument("--grants", text)?.as_bytes()).context("--grants")?;
    grants.validate(manifest).context("--grants")?;
    Ok(grants)
}

fn secrets(given: &[String]) -> anyhow::Result<BTreeMap<String, Zeroizing<String>>> {
    given
        .iter()
        .map(|pair| {
            let (name, value) = pair.split_once('=').context("--secret is written NAME=VALUE or NAME=@file")?;
            let value = match value.strip_prefix('@') {
                Some(file) => {
                    let text = fs::read_to_string(file).with_context(|| format!("--secret {name}: {file}"))?;
                    text.trim_end_matches(['\r', '\n']).to_owned()
                }
                None => value.to_owned(),
            };
            Ok((name.to_owned(), Zeroizing::new(value)))
        })
        .collect()
}

fn text_argument(option: &str, text: &str) -> anyhow::Result<String> {
    if text == "-" {
        let mut read = String::new();
        std::io::stdin().read_to_string(&mut read).with_context(|| format!("{option} from stdin"))?;
        return Ok(read);
    }
    match text.strip_prefix('@') {
        Some(file) => fs::read_to_string(file).with_context(|| format!("{option}: {file} cannot be read")),
        None => Ok(text.to_owned()),
    }
}

fn json_argument(option: &str, text: &str) -> anyhow::Result<Value> {
    let text = text_argument(option, text)?;
    serde_json::from_str(&text).with_context(|| format!("{option} is not JSON"))
}

/// What the platform checks before a call.
fn require_valid(what: &str, schema: Option<&Value>, value: &Value) -> anyhow::Result<()> {
    let Some(schema) = schema else { return Ok(()) };
    let validator = schema::compile(schema)?;
    if let Some(error) = validator.iter_errors(value).next() {
        bail!("{what} do not fit the schema, at {}/: {error}", error.instance_path());
    }
    Ok(())
}

fn require_valid_output(schema: Option<&Value>, output: Option<&str>) -> anyhow::Result<()> {
    let (Some(schema), Some(output)) = (schema, output) else { return Ok(()) };
    let output: Value = serde_json::from_str(output).context("the output is not JSON")?;
    require_valid("parts of the output", Some(schema), &output)
}

fn hint(args: &Args, report: &CallReport) {
    if report.refusals.is_empty() && report.outcome != Outcome::Refused {
        return;
    }
    println!();
    if !args.grant_all && args.grants.is_none() {
        println!("hint: nothing was granted; --grant-all grants what the manifest asks for");
    } else {
        println!("hint: a grant, a secret (--secret) or an address of this machine (--allow-egress) is missing");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_come_from_the_command_line_or_a_file() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), "from-file\n").expect("writable");
        let given = [String::from("a=x=y"), format!("b=@{}", file.path().display())];
        let secrets = secrets(&given).expect("well formed");
        assert_eq!((secrets["a"].as_str(), secrets["b"].as_str()), ("x=y", "from-file"));
        assert!(super::secrets(&["novalue".into()]).is_err());
    }

    #[test]
    fn what_does_not_fit_is_named_with_its_place() {
        let schema = json!({ "type": "object", "properties": { "n": { "type": "integer" } } });
        let error = require_valid("the input", Some(&schema), &json!({ "n": "x" })).expect_err("a string");
        assert!(error.to_string().contains("/n"), "{error}");
    }
}
