//! Performance rows 12, 16: lists read over HTTP at a fixed rate, sign-ins without what argon2id takes, and 200 people who sign in at once.
//!
//! Starts the real `bulkhead serve` that was built beside this program, on directories and databases of its own. Prints one JSON object a line
//! (`bulkhead_test_support::measure`).

mod client;
mod load;
mod reads;
mod sign_ins;
mod site;

use std::process::ExitCode;

use anyhow::Result;
use bulkhead_test_support::measure;

use self::site::Ground;

fn main() -> ExitCode {
    match measure_all() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure_all() -> Result<()> {
    let mut grounds = Vec::new();
    if measure::wants_sqlite() {
        grounds.push(Ground::Sqlite);
    }
    grounds.extend(measure::wanted_postgres().map(Ground::Postgres));
    for ground in grounds {
        if measure::wants_row(12) {
            reads::measure(ground)?;
        }
        if measure::wants_row(16) {
            sign_ins::measure(ground)?;
        }
    }
    Ok(())
}
