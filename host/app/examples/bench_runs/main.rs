//! Performance rows 6, 7, 10, 11: durable three-step runs on both databases, what a kill costs them, and what one tenant costs others.
//!
//! Each run makes three calls of a plugin in the real sandbox; its start and each step are commits of their own. Prints one JSON
//! object a line (`bulkhead_test_support::measure`).

#![expect(clippy::unwrap_used, reason = "guests of the test suite")]

mod fair;
#[path = "../../../../tests/app/guests.rs"]
#[expect(dead_code, reason = "guests of the test suite, of which this uses two")]
mod guests;
mod kill;
mod rate;
mod site;

use std::process::ExitCode;

use anyhow::Result;
use bulkhead_app::compiler_main;
use bulkhead_test_support::measure;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|argument| argument == "compile") {
        return compiler_main();
    }
    let done = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from).and_then(
        |runtime| {
            runtime.block_on(Box::pin(async {
                match arguments.first().map(String::as_str) {
                    Some("node") => kill::node(&arguments[1..]).await,
                    Some(_) | None => measure_all().await,
                }
            }))
        },
    );
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure_all() -> Result<()> {
    let server = measure::wanted_postgres();
    if measure::wants_row(6) && measure::wants_sqlite() {
        rate::sqlite().await?;
    }
    if let Some(server) = server.filter(|_| measure::wants_row(7)) {
        rate::postgres(server).await?;
    }
    if measure::wants_row(10) {
        kill::measure(server).await?;
    }
    if measure::wants_row(11) {
        fair::measure(server).await?;
    }
    Ok(())
}
