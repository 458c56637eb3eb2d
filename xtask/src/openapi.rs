//! `openapi`: the snapshots of the OpenAPI document and of the matrix of permissions.

use anyhow::Result;

use crate::tools;

/// Runs the test that compares the document with its snapshot in the mode that writes it. The same test without the
/// mode fails on a stale snapshot, so `test` needs no chore for that.
pub(crate) fn chore() -> Result<()> {
    let mut test = tools::cargo();
    test.args(["test", "--workspace", "--test", "http", "--", "openapi_snapshot", "isolation"])
        .env("UPDATE_SNAPSHOTS", "1");
    tools::run(&mut test)?;
    tools::run(tools::program("git").args([
        "status",
        "--short",
        "--",
        "docs/openapi.json",
        "docs/permissions.md",
        "tests/http",
    ]))
}
