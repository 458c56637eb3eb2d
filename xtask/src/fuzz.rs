//! `fuzz`: schemathesis, an independent client that reads the OpenAPI document, against a running server: no fault of ours, no answer that
//! the document does not have, no door that opens without a key.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use bulkhead_test_support::free_port;
use clap::Args;

use crate::{plugins, setup, tools};

const REQUIREMENTS: &str = "tests/fuzz/requirements.txt";
/// Tried for each operation and kind of input; the rest of the time goes into sequences of operations.
const EXAMPLES: &str = "8";
/// As a part of the tests: requests are made up for so long …
const IN_TESTS_S: u32 = 150;
/// … of the kinds that end by themselves before that: how far sequences of operations come depends on the machine.
const PHASES_IN_TESTS: &str = "examples,coverage,fuzzing";
pub(crate) const ALL_PHASES: &str = "examples,coverage,fuzzing,stateful";
/// … and a client that has not ended this long after its time hangs.
const GRACE: Duration = Duration::from_mins(1);
/// Packages that have not come by then do not come: whoever waits for the lock goes on.
const INSTALL_TIME: Duration = Duration::from_mins(5);
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
/// The server speaks no TLS: with such an address, and no proxy named, it does not know where requests come from. So the guesses that are made
/// up here shut nobody out (blocks, pauses after wrong passwords), and what has no credentials is answered 401 to the end, not 429.
const PUBLIC_URL: &str = "https://fuzz.test";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How long requests are made up, beside the start of the server.
    #[arg(long, default_value_t = 150)]
    pub(crate) seconds: u32,
    /// What random choices follow from.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Which kinds of requests, by schemathesis' names.
    #[arg(long, default_value = ALL_PHASES)]
    pub(crate) phases: String,
}

/// The server; it ends with what it was started for.
struct Demo {
    child: Child,
    /// Where it listens.
    url: String,
}

impl Drop for Demo {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What came of the part of the tests.
pub(crate) enum Outcome {
    Green,
    Failed(anyhow::Error),
    /// The client is not there, and why.
    LeftOut(anyhow::Error),
}

pub(crate) fn chore(arguments: &Arguments) -> Result<()> {
    setup::require()?;
    let environment = environment()?;
    // As the tests are built, so that nothing is built twice.
    tools::run(tools::cargo().args(["build", "--workspace", "--lib", "--bins", "--tests", "--examples"]))?;
    plugins::build_all(&tools::built("bulkhead", false)?)?;
    against_demo(arguments, &environment)
}

/// The part of the tests, less than three minutes of them; server and plugins are built.
pub(crate) fn in_tests() -> Outcome {
    match environment() {
        Ok(environment) => match against_demo(
            &Arguments { seconds: IN_TESTS_S, seed: 1, phases: PHASES_IN_TESTS.to_owned() },
            &environment,
        ) {
            Ok(()) => Outcome::Green,
            Err(error) => Outcome::Failed(error),
        },
        Err(error) => Outcome::LeftOut(error),
    }
}

fn against_demo(arguments: &Arguments, environment: &Path) -> Result<()> {
    let bulkhead = tools::built("bulkhead", false)?;
    let place = tempfile::tempdir().context("cannot make a temporary folder")?;
    let (data, log) = (place.path().join("data"), place.path().join("server.log"));
    let demo = start(&bulkhead, &data, &log)?;
    let configuration = place.path().join("schemathesis.toml");
    let prepared = tools::run(
        tools::program(environment.join("bin/python"))
            .arg("tests/fuzz/prepare.py")
            .args([&data.join("demo.json"), &configuration])
            .arg(&demo.url),
    );
    let outcome = prepared.and_then(|()| run(arguments, environment, &configuration, &demo.url));
    if outcome.is_err() {
        show_faults(&log);
    }
    outcome
}

/// Python's packages for this and nothing else, in the target folder, which may outlive the clone.
fn environment() -> Result<PathBuf> {
    let target = tools::target_directory()?;
    std::fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
    // Clones that share the folder make it one after another.
    let lock = target.join("schemathesis.lock");
    let lock = std::fs::File::create(&lock).with_context(|| format!("cannot make {}", lock.display()))?;
    lock.lock().context("cannot lock the folder of Python's packages")?;
    let folder = target.join("schemathesis");
    let (wanted, installed) = (tools::root().join(REQUIREMENTS), folder.join("requirements.txt"));
    let wanted_text = std::fs::read_to_string(&wanted).with_context(|| format!("cannot read {}", wanted.display()))?;
    let python = folder.join("bin/python");
    // A Python that was replaced meanwhile leaves an environment behind that does not start.
    if std::fs::read_to_string(&installed).is_ok_and(|text| text == wanted_text)
        && tools::output(tools::program(&python).args(["-c", "import schemathesis"])).is_ok()
    {
        return Ok(folder);
    }
    tools::run(tools::program("python3").args(["-m", "venv", "--clear"]).arg(&folder))
        .context("Python 3.10 or newer with `venv` is needed: `apt-get install python3-venv`")?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "2", "--requirement"];
    tools::run_within(tools::program(python).args(pip).arg(REQUIREMENTS), INSTALL_TIME)
        .context("Python's packages cannot be installed")?;
    std::fs::write(&installed, wanted_text).with_context(|| format!("cannot write {}", installed.display()))?;
    Ok(folder)
}

fn start(bulkhead: &Path, data: &Path, log: &Path) -> Result<Demo> {
    let log = std::fs::File::create(log).context("cannot make the server's log")?;
    let address = format!("127.0.0.1:{}", free_port());
    let mut command = tools::program(bulkhead);
    command.args(["demo", "--bare", "--listen", &address]).arg("--data-dir").arg(data);
    for limit in LIMITS {
        command.env(format!("BULKHEAD_LIMITS__{limit}"), LIMIT);
    }
    command.env("BULKHEAD_SERVER__PUBLIC_URL", PUBLIC_URL).env("BULKHEAD_SERVER__TRUSTED_PROXIES", "[]");
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    eprintln!("$ {}", tools::shown(&command));
    Ok(Demo { child: command.spawn().context("cannot start the demo")?, url: format!("http://{address}") })
}

fn run(arguments: &Arguments, environment: &Path, configuration: &Path, url: &str) -> Result<()> {
    let mut command = tools::program(environment.join("bin/schemathesis"));
    // What it remembers of one run is no matter of the next, nor of the repository.
    command.current_dir(configuration.parent().context("the configuration lies in no folder")?);
    command.arg("--config-file").arg(configuration).args(["run", &format!("{url}/api/openapi.json")]);
    command.args(["--phases", &arguments.phases]);
    command.args(["--max-time", &arguments.seconds.to_string(), "--seed", &arguments.seed.to_string()]);
    command.args(["--max-examples", EXAMPLES, "--continue-on-failure", "--no-shrink", "--warnings", "off"]);
    tools::run_within(&mut command, Duration::from_secs(arguments.seconds.into()) + GRACE)
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
    fn no_limit_is_left_that_would_answer_429() {
        let text = std::fs::read_to_string(tools::root().join("docs/bulkhead.example.toml")).unwrap();
        let (_, limits) = text.split_once("[limits]").unwrap();
        let (limits, _) = limits.split_once("\n[").unwrap();
        let keys = limits.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(" = "));
        let keys: Vec<String> = keys.map(|(key, _)| key.to_uppercase()).collect();
        assert_eq!(keys, LIMITS, "the limits that a server has, in their order");
    }

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
