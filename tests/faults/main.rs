//! What may break while runs are under way, broken on purpose, again and again: processes are killed, stopped and continued, the
//! database is restarted, statements fail, lines are cut, disks fill up, clocks jump.
//!
//! After each: every accepted run ends well, none is lost and none begun twice; each step's effect has one idempotency key and
//! one content, however often it was tried; nothing is left in the queue, no place for a call is taken for good.
//!
//! In the suite these are short. `cargo xtask soak` runs them for as long as asked.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

mod bench;
mod clock;
mod disk;
mod kill;
mod load;
mod site;
mod statements;
mod storm;
mod tally;

use std::str::FromStr;

/// A number that `cargo xtask soak` hands over, or what the suite does without it.
#[expect(
    clippy::disallowed_methods,
    reason = "test processes have no configuration file; the runner speaks by environment"
)]
fn told<T: FromStr>(name: &str, otherwise: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// What random choices follow from; printed, so that a run can be repeated.
fn seed() -> u64 {
    told("BULKHEAD_TEST_SEED", 1)
}
