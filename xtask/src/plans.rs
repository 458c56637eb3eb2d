//! `plans`: how both databases carry out the store's statements, kept in `tests/store/plans`.

use anyhow::Result;

use crate::tools;

/// Runs the test that compares plans with those that are kept, in the mode that writes them. PostgreSQL is needed.
pub(crate) fn chore() -> Result<()> {
    let mut test = tools::cargo();
    test.args(["test", "--workspace", "--test", "store", "--", "plans::"]).env("UPDATE_SNAPSHOTS", "1");
    tools::run(&mut test)?;
    tools::run(tools::program("git").args(["status", "--short", "--", "tests/store/plans"]))
}
