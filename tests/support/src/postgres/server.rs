//! Databases on the run's server.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::binaries::Binaries;
use super::cluster::random_hex;
use super::{Cluster, SKIPPED_VARIABLE, URL_VARIABLE, Unavailable, psql};
use crate::wait::wait_until;

/// A server on which this process may create databases.
#[derive(Debug)]
pub struct Server {
    url: String,
    version: String,
    psql: PathBuf,
    /// Ends with the process, not before: statics are never dropped, the cluster's guard notices.
    _cluster: Option<Cluster>,
}

/// Why a database could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {detail}")]
pub struct DatabaseError {
    what: &'static str,
    detail: String,
}

/// The server of this test run: the one that [`URL_VARIABLE`] names, or one that this process starts at the first call
/// and keeps until it ends.
///
/// # Errors
/// The same ones at every call of the process.
pub fn server() -> Result<&'static Server, Unavailable> {
    static SERVER: OnceLock<Result<Server, Unavailable>> = OnceLock::new();
    SERVER.get_or_init(Server::for_this_run).as_ref().map_err(Clone::clone)
}

/// The same for a test that can be left out where there is no PostgreSQL: it returns early at `None`, after this has
/// said so loudly.
///
/// # Panics
/// Under continuous integration (`CI` is set and neither empty nor `false`), where a run without PostgreSQL must fail.
pub fn server_or_skip() -> Option<&'static Server> {
    match server() {
        Ok(server) => Some(server),
        Err(unavailable) => {
            assert!(!under_ci(), "this run must cover PostgreSQL, and cannot: {unavailable}");
            eprintln!("\n*** SKIPPED ON POSTGRESQL: {unavailable} ***\n");
            record_skip();
            None
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "test processes have no configuration file; the runner speaks by environment"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Tells the runner, if there is one that asked.
fn record_skip() {
    let Some(path) = variable(SKIPPED_VARIABLE) else { return };
    let program = std::env::current_exe().unwrap_or_default();
    // Test harnesses name a test's thread after the test.
    let test = std::thread::current().name().unwrap_or("unnamed").to_owned();
    let mut file = OpenOptions::new().append(true).create(true).open(&path).expect("the runner made the file's folder");
    // One write: lines of processes that run at the same time do not mix.
    file.write_all(format!("{} {test}\n", program.display()).as_bytes()).expect("the runner's file can be written");
}

fn under_ci() -> bool {
    variable("CI").is_some_and(|value| value != "false")
}

impl Server {
    fn for_this_run() -> Result<Self, Unavailable> {
        match variable(URL_VARIABLE) {
            Some(url) => Self::at(&url),
            None => Cluster::start().map(Self::own),
        }
    }

    /// The server at an owner's address. It must answer.
    pub fn at(url: &str) -> Result<Self, Unavailable> {
        let psql = Binaries::find()?.program("psql");
        let version =
            psql::run(&psql, url, &["show server_version"]).map_err(|detail| Unavailable::Unreachable { detail })?;
        let version = version.split_whitespace().next().unwrap_or_default().to_owned();
        Ok(Self { url: url.to_owned(), version, psql, _cluster: None })
    }

    /// A server made of a cluster, which lives as long as the server does.
    pub fn own(cluster: Cluster) -> Self {
        let psql = cluster.psql();
        Self { url: cluster.url().to_owned(), version: cluster.version().to_owned(), psql, _cluster: Some(cluster) }
    }

    /// The owner's address, leading to the server's maintenance database.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Such as `15.18`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A new empty database of the owner's.
    pub fn create_database(&self) -> Result<Database<'_>, DatabaseError> {
        let name = unique_name("test");
        self.execute("creating a database", &format!("create database \"{name}\""))?;
        Ok(self.database(name))
    }

    /// A new database with what `prepare` puts into it, migrations for instance. That is done once for each `key` in the
    /// run, by whoever comes first, and copied afterwards: name in the key all that it depends on, such as a checksum
    /// of the migrations. `key` is up to 40 ASCII letters, digits and `_`.
    ///
    /// `prepare` gets the address of the database to fill, and must close its connections. Whatever it creates outside
    /// the database (roles) must be fit to exist already, since processes that start at the same time may both run it.
    pub async fn create_database_from<E: std::fmt::Display>(
        &self,
        key: &str,
        prepare: impl AsyncFnOnce(&str) -> Result<(), E>,
    ) -> Result<Database<'_>, DatabaseError> {
        let template = template_name(key);
        let name = unique_name("test");
        let copy = format!("create database \"{name}\" template \"{template}\"");
        match self.execute("copying the template", &copy) {
            Err(error) if error.detail.contains("does not exist") => {
                self.build_template(&template, prepare).await?;
                self.execute("copying the template", &copy)?;
            }
            other => other?,
        }
        Ok(self.database(name))
    }

    /// Removes a template of [`Self::create_database_from`]; the next call prepares it again.
    pub fn drop_template(&self, key: &str) -> Result<(), DatabaseError> {
        self.execute("dropping a template", &format!("drop database if exists \"{}\"", template_name(key)))
    }

    async fn build_template<E: std::fmt::Display>(
        &self,
        template: &str,
        prepare: impl AsyncFnOnce(&str) -> Result<(), E>,
    ) -> Result<(), DatabaseError> {
        let name = unique_name("draft");
        self.execute("creating a template", &format!("create database \"{name}\""))?;
        let draft = self.database(name);
        prepare(draft.url())
            .await
            .map_err(|error| DatabaseError { what: "preparing a template", detail: error.to_string() })?;
        // The name appears only when the content is complete: nobody copies half a template, and no lock is needed.
        let end_sessions = format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{}' and pid <> pg_backend_pid()",
            draft.name
        );
        let rename = format!("alter database \"{}\" rename to \"{template}\"", draft.name);
        let mut outcome = Ok(());
        wait_until(Duration::from_secs(10), || {
            outcome = psql::run(&self.psql, &self.url, &[&end_sessions, &rename]).map(drop);
            // A session takes a moment to end. Someone else's finished template is as good as ours.
            !outcome.as_ref().is_err_and(|detail| detail.contains("being accessed by other users"))
        });
        match outcome {
            Err(detail) if !detail.contains("already exists") => {
                Err(DatabaseError { what: "naming the template", detail })
            }
            // Ours, renamed: dropping it by its old name does nothing. Someone else's: ours is not needed.
            _ => Ok(()),
        }
    }

    fn database(&self, name: String) -> Database<'_> {
        Database { url: psql::with_database(&self.url, &name), name, server: self }
    }

    fn execute(&self, what: &'static str, statement: &str) -> Result<(), DatabaseError> {
        psql::run(&self.psql, &self.url, &[statement]).map(drop).map_err(|detail| DatabaseError { what, detail })
    }
}

/// A database of a test's own; dropped, sessions and all, with this value.
#[derive(Debug)]
pub struct Database<'server> {
    server: &'server Server,
    name: String,
    url: String,
}

impl Database<'_> {
    /// The owner's address of this database.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its name: ASCII letters, digits and `_`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a statement as the owner, through `psql`; answers what it prints, a line for each row.
    pub fn execute(&self, statement: &str) -> Result<String, DatabaseError> {
        psql::run(&self.server.psql, &self.url, &[statement])
            .map_err(|detail| DatabaseError { what: "running a statement", detail })
    }

    /// Ends every other session in this database, as a network that goes down would.
    pub fn cut_connections(&self) -> Result<(), DatabaseError> {
        let statement =
            format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{}'", self.name);
        self.server.execute("ending sessions", &statement)
    }
}

impl Drop for Database<'_> {
    fn drop(&mut self) {
        let statement = format!("drop database if exists \"{}\" with (force)", self.name);
        if let Err(error) = self.server.execute("dropping a test's database", &statement) {
            // Not a reason to fail a test, and during a panic it must not be one.
            eprintln!("{error}");
        }
    }
}

fn template_name(key: &str) -> String {
    assert!(
        !key.is_empty() && key.len() <= 40 && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'),
        "{key:?} is no key for a template"
    );
    format!("bulkhead_template_{}", key.to_ascii_lowercase())
}

/// Unique on the server: process ids come again on one that outlives a run, so a random word tells processes apart.
fn unique_name(kind: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    static PROCESS: OnceLock<String> = OnceLock::new();
    let process = PROCESS.get_or_init(|| random_hex().expect("every Unix has /dev/urandom"));
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("bulkhead_{kind}_{process}_{number}")
}
