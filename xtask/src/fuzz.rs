//! `fuzz`: schemathesis, an independent client that reads the OpenAPI document, against a running server: no fault of ours, no answer that
//! the document does not have, no door that opens without a key.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use bulkhead_test_support::free_port;
use clap::Args;

use crate::{plugins, setup, tools};

const REQUIREMENTS: &str = "tests/fuzz/requirements.txt";
/// Tried for each operation and kind of input; the rest of the time goes into sequences of operations.
const EXAMPLES: &str = "8";
/// Nobody counts here how often one client asks.
const LIMITS: [&str; 12] = [
    "ANONYMOUS_PER_MINUTE",
    "ANONYMOUS_BURST",
    "SIGN_IN_PER_MINUTE",
    "FAILED_CREDENTIALS_PER_MINUTE",
    "USER_PER_MINUTE",
    "USER_BURST",
    "KEY_PER_MINUTE",
    "KEY_BURST",
    "ORGANIZATION_PER_MINUTE",
    "ORGANIZATION_BURST",
    "STRICT_PER_MINUTE",
    "EXPORTS_PER_HOUR",
];
const LIMIT: &str = "1000000";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How long requests are made up, beside the start of the server.
    #[arg(long, default_value_t = 150)]
    pub(crate) seconds: u32,
    /// What random choices follow from.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

/// The server; it ends with what it was started for.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

pub(crate) fn chore(arguments: &Arguments) -> Result<()> {
    setup::require()?;
    let environment = environment()?;
    // As the tests are built, so that nothing is built twice.
    tools::run(tools::cargo().args(["build", "--workspace", "--lib", "--bins", "--tests", "--examples"]))?;
    let bulkhead = tools::built("bulkhead", false)?;
    plugins::build_all(&bulkhead)?;
    let place = tempfile::tempdir().context("cannot make a temporary folder")?;
    let (data, log) = (place.path().join("data"), place.path().join("server.log"));
    let _demo = start(&bulkhead, &data, &log)?;
    let configuration = place.path().join("schemathesis.toml");
    let prepared = tools::run(
        tools::program(environment.join("bin/python"))
            .arg("tests/fuzz/prepare.py")
            .args([&data.join("demo.json"), &configuration]),
    );
    let outcome = prepared.and_then(|()| run(arguments, &environment, &configuration, &data));
    if outcome.is_err() {
        show_faults(&log);
    }
    outcome
}

/// Python's packages for this and nothing else, in the target folder.
fn environment() -> Result<PathBuf> {
    let folder = tools::target_directory()?.join("schemathesis");
    let (wanted, installed) = (tools::root().join(REQUIREMENTS), folder.join("requirements.txt"));
    let wanted_text = std::fs::read_to_string(&wanted).with_context(|| format!("cannot read {}", wanted.display()))?;
    if std::fs::read_to_string(&installed).is_ok_and(|text| text == wanted_text) {
        return Ok(folder);
    }
    tools::run(tools::program("python3").args(["-m", "venv", "--clear"]).arg(&folder))
        .context("Python 3.10 or newer with `venv` is needed: `apt-get install python3-venv`")?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", REQUIREMENTS];
    tools::run(tools::program(folder.join("bin/python")).args(pip))?;
    std::fs::write(&installed, wanted_text).with_context(|| format!("cannot write {}", installed.display()))?;
    Ok(folder)
}

fn start(bulkhead: &Path, data: &Path, log: &Path) -> Result<Demo> {
    let log = std::fs::File::create(log).context("cannot make the server's log")?;
    let mut command = tools::program(bulkhead);
    command.args(["demo", "--bare", "--listen", &format!("127.0.0.1:{}", free_port())]).arg("--data-dir").arg(data);
    for limit in LIMITS {
        command.env(format!("BULKHEAD_LIMITS__{limit}"), LIMIT);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    eprintln!("$ {}", tools::shown(&command));
    Ok(Demo(command.spawn().context("cannot start the demo")?))
}

fn run(arguments: &Arguments, environment: &Path, configuration: &Path, data: &Path) -> Result<()> {
    let demo = std::fs::read_to_string(data.join("demo.json")).context("cannot read what the demo says of itself")?;
    let demo: serde_json::Value = serde_json::from_str(&demo).context("the demo says no JSON")?;
    let url = demo["url"].as_str().context("the demo names no address")?;
    let mut command = tools::program(environment.join("bin/schemathesis"));
    // What it remembers of one run is no matter of the next, nor of the repository.
    command.current_dir(configuration.parent().context("the configuration lies in no folder")?);
    command.arg("--config-file").arg(configuration).args(["run", &format!("{url}/api/openapi.json")]);
    command.args(["--max-time", &arguments.seconds.to_string(), "--seed", &arguments.seed.to_string()]);
    command.args(["--max-examples", EXAMPLES, "--continue-on-failure", "--no-shrink", "--warnings", "off"]);
    tools::run(&mut command)
}

/// The lines of the server's log that are about faults of ours.
fn show_faults(log: &Path) {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    for line in text.lines().filter(|line| ["ERROR", "panicked"].iter().any(|word| line.contains(word))).take(50) {
        eprintln!("server: {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_has_one_version() {
        let text = std::fs::read_to_string(tools::root().join(REQUIREMENTS)).unwrap();
        let packages: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(packages.iter().any(|line| line.starts_with("schemathesis==")), "{packages:?}");
        for line in packages {
            assert!(
                line.split_once("==").is_some_and(|(name, version)| !name.is_empty() && !version.is_empty()),
                "{line}"
            );
        }
    }
}
