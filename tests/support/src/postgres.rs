//! PostgreSQL for tests: nothing prepared by hand, nothing left behind.
//!
//! A [`Cluster`] is made by `initdb` in a temporary directory from the binaries that the machine has, listens on
//! 127.0.0.1 with random passwords, and is removed when its owner ends, however it ends. A [`Server`] is a place where
//! databases can be made: the one that `cargo xtask test` started for the whole run (its address is in
//! [`URL_VARIABLE`]), or else one that this process starts when first asked. A [`Database`] is empty, or a copy of a
//! template that was migrated once, and is dropped with its value.
//!
//! Roles belong to the whole server, databases do not: suites that create `bulkhead_app` run beside one another and
//! must agree on its password, hence on the root key that it derives from.

mod binaries;
mod cluster;
mod psql;
mod server;

pub use cluster::{Cluster, Options};
pub use server::{Database, DatabaseError, Server, server, server_or_skip};

/// Names the owner's address of the server that tests use: `postgres://owner:password@host:port/database`.
///
/// The role must be allowed to create databases and roles, and should be no superuser, for whom row-level security does
/// not count.
pub const URL_VARIABLE: &str = "BULKHEAD_TEST_POSTGRES_URL";

/// Names a file in which a test that is left out for lack of PostgreSQL writes its name, a line for each, so that the
/// runner can count it as skipped rather than passed.
pub const SKIPPED_VARIABLE: &str = "BULKHEAD_TEST_SKIPPED_FILE";

/// The oldest PostgreSQL that the product runs on, by major version (api-and-operations: "PostgreSQL ≥ 15").
pub const MAJOR_VERSION_MIN: u32 = 15;

/// Why there is no PostgreSQL to test on, and what to do about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unavailable {
    /// No binaries were found.
    #[error("PostgreSQL is not installed (looked in {searched}). {}", how_to_install())]
    NotInstalled {
        /// The places, for people.
        searched: String,
    },
    /// Only older ones were found.
    #[error("PostgreSQL {version} in {directory} is older than {MAJOR_VERSION_MIN}. {}", how_to_install())]
    TooOld {
        /// Where the binaries lie.
        directory: String,
        /// What `postgres --version` says.
        version: String,
    },
    /// PostgreSQL refuses to run as root, and there is no one else.
    #[error(
        "PostgreSQL does not run as root, and this machine has neither a user `postgres` nor `nobody`. Create one: `useradd --system postgres`"
    )]
    NoUnprivilegedUser,
    /// The binaries are there but a step failed.
    #[error("{step} failed: {detail}")]
    Failed {
        /// Which step.
        step: &'static str,
        /// What the program said.
        detail: String,
    },
    /// The address in [`URL_VARIABLE`] does not answer.
    #[error("the server named by {URL_VARIABLE} cannot be used: {detail}")]
    Unreachable {
        /// What `psql` said.
        detail: String,
    },
}

/// The version of the installation that [`Cluster::start`] would use, such as `15.18`.
pub fn installed_version() -> Result<String, Unavailable> {
    binaries::Binaries::find().map(|found| found.version)
}

/// Where a program of that installation lies, such as `pgbench`.
pub fn installed_program(name: &str) -> Result<std::path::PathBuf, Unavailable> {
    let path = binaries::Binaries::find()?.program(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(Unavailable::Failed { step: "looking for a program", detail: format!("{} is not there", path.display()) })
}

/// One sentence for each family of systems.
fn how_to_install() -> String {
    format!(
        "Install version {MAJOR_VERSION_MIN} or newer (Debian, Ubuntu: `apt-get install postgresql`; Fedora: `dnf install \
         postgresql-server`; Alpine: `apk add postgresql`; macOS: `brew install postgresql@17`), or name a running server: \
         {URL_VARIABLE}=postgres://owner:password@host:port/database"
    )
}
