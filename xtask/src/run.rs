//! `run`: from a fresh clone to a running demo.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};
use clap::Args;

use crate::{plugins, setup, tools};

/// What the demo is started with unless the caller says otherwise.
const DEFAULTS: [(&str, &str); 2] = [("--data-dir", "demo-data"), ("--listen", "127.0.0.1:8080")];

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Builds with optimizations: a slower start of the first time, a faster server.
    #[arg(long)]
    release: bool,
    /// Handed to `bulkhead demo`; `--data-dir` and `--listen` replace the defaults `demo-data` and `127.0.0.1:8080`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "DEMO ARGUMENTS")]
    demo: Vec<OsString>,
}

pub(crate) fn chore(arguments: &Arguments) -> Result<()> {
    setup::require()?;
    plugins::build_binary(arguments.release)?;
    let bulkhead = tools::built("bulkhead", arguments.release)?;
    plugins::build_all(&bulkhead)?;
    let mut demo = tools::program(&bulkhead);
    demo.arg("demo").args(with_defaults(&arguments.demo));
    eprintln!("$ {}", tools::shown(&demo));
    // In place of this process: signals reach the server, and its status is the chore's.
    Err(demo.exec()).with_context(|| format!("cannot start {}", bulkhead.display()))
}

/// What the caller gave, behind the defaults of what they did not.
fn with_defaults(given: &[OsString]) -> Vec<OsString> {
    let gives = |name: &str| {
        given
            .iter()
            .filter_map(|word| word.to_str())
            .any(|word| word == name || word.strip_prefix(name).is_some_and(|rest| rest.starts_with('=')))
    };
    let missing = DEFAULTS.iter().filter(|(name, _)| !gives(name));
    let mut all: Vec<OsString> = missing.flat_map(|(name, value)| [(*name).into(), (*value).into()]).collect();
    all.extend(given.iter().cloned());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaulted(given: &[&str]) -> String {
        let given: Vec<OsString> = given.iter().map(Into::into).collect();
        let all = with_defaults(&given);
        all.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_the_caller_gives_wins() {
        assert_eq!(defaulted(&[]), "--data-dir demo-data --listen 127.0.0.1:8080");
        assert_eq!(defaulted(&["--listen", "[::1]:1"]), "--data-dir demo-data --listen [::1]:1");
        assert_eq!(defaulted(&["--data-dir=x", "--listen=y"]), "--data-dir=x --listen=y");
        // A longer name that begins alike is another flag.
        assert_eq!(defaulted(&["--listen-more"]), "--data-dir demo-data --listen 127.0.0.1:8080 --listen-more");
    }
}
