//! The house's chores. `cargo xtask` lists them; each says in its help what it does and needs.
//!
//! Chores call the programs that a person would call (cargo, rustup, the `bulkhead` binary), show what they call, and
//! end with the status that those had: nothing is swallowed.

mod bench;
mod check;
mod fuzz;
mod openapi;
mod plans;
mod plugins;
mod run;
mod setup;
mod soak;
mod suite;
mod tidy;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The chores of Bulkhead's repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version, about)]
struct Chores {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Looks for what the other chores need, adds the WebAssembly targets, and says what is missing and how to get it.
    Setup(setup::Arguments),
    /// Builds everything and starts the demo; what follows `--` goes to `bulkhead demo`.
    Run(run::Arguments),
    /// Runs every test on SQLite and on a PostgreSQL of its own; what follows goes to the test runner as filters.
    Test(suite::Arguments),
    /// Formatting, house rules, clippy, licences and advisories: everything that is not a test.
    Check(check::Arguments),
    /// Measures in release mode; prints a table and writes `bench.json` into the target directory.
    Bench(bench::Arguments),
    /// Builds and packages the first-party plugins and the tests' guests.
    BuildPlugins(plugins::Arguments),
    /// Kills servers again and again, and runs long sequences on both databases; prints how long recoveries took.
    Soak(soak::Arguments),
    /// Runs schemathesis against a running server: an independent client that holds us to our OpenAPI document.
    Fuzz(fuzz::Arguments),
    /// Writes the OpenAPI document's snapshot anew from the code.
    Openapi,
    /// Writes the kept plans of the store's statements anew, by both databases' `explain`.
    Plans,
}

fn main() -> ExitCode {
    let outcome = match Chores::parse().chore {
        Chore::Setup(arguments) => setup::chore(&arguments),
        Chore::Run(arguments) => run::chore(&arguments),
        Chore::Test(arguments) => suite::chore(&arguments),
        Chore::Check(arguments) => check::chore(&arguments),
        Chore::Bench(arguments) => bench::chore(&arguments),
        Chore::BuildPlugins(arguments) => plugins::chore(&arguments),
        Chore::Soak(arguments) => soak::chore(&arguments),
        Chore::Fuzz(arguments) => fuzz::chore(&arguments),
        Chore::Openapi => openapi::chore(),
        Chore::Plans => plans::chore(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
