//! A demo server as a child process on a directory of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bulkhead_test_support::http_sink::Sink;
use bulkhead_test_support::postgres::{self, Database};
use bulkhead_test_support::{free_port, wait_until};
use serde_json::Value;
use tempfile::TempDir;

use crate::api::Api;

/// A start includes compiling three plugins the first time, on a busy machine.
const START_WITHIN: Duration = Duration::from_mins(2);

/// Where a server keeps its things: outlives the server.
pub(crate) struct Place {
    dir: TempDir,
    database: Option<Database<'static>>,
    port: u16,
}

impl Place {
    pub(crate) fn sqlite() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), database: None, port: free_port() }
    }

    /// `None` (said loudly) where PostgreSQL is not installed.
    pub(crate) fn postgres() -> Option<Self> {
        let server = postgres::server_or_skip()?;
        let database = Some(server.create_database().unwrap());
        Some(Self { dir: tempfile::tempdir().unwrap(), database, port: free_port() })
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// PostgreSQL's owner; `None` with SQLite.
    pub(crate) fn database_url(&self) -> Option<&str> {
        self.database.as_ref().map(Database::url)
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    pub(crate) fn command(&self, sink: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command.arg("demo").arg("--data-dir").arg(self.dir.path().join("data"));
        command.arg("--listen").arg(format!("127.0.0.1:{}", self.port)).arg("--sink").arg(sink);
        command.arg("--plugins").arg(packages());
        if let Some(database) = &self.database {
            command.arg("--database-url").arg(database.url());
        }
        command
    }

    /// Starts the demo and waits until it is ready.
    pub(crate) fn start(&self, sink: &Sink) -> Server<'_> {
        let log = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = self.command(&sink.url("/hook"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        let health = format!("http://127.0.0.1:{}/readyz", self.port);
        let up = wait_until(START_WITHIN, || {
            assert!(child.try_wait().unwrap().is_none(), "the server ended:\n{}", self.log_text());
            ureq::get(&health).call().is_ok()
        });
        assert!(up, "the server is not ready:\n{}", self.log_text());
        let file = std::fs::read_to_string(self.dir.path().join("data/demo.json")).unwrap();
        let demo: Value = serde_json::from_str(&file).unwrap();
        Server { place: self, child, api: Api::new(&demo), demo }
    }

    pub(crate) fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }
}

/// The first-party packages: `cargo xtask build-plugins` makes them (and `cargo xtask test` calls it).
pub(crate) fn packages() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_bulkhead"));
    let dir = binary.parent().and_then(Path::parent).unwrap().join("plugins");
    assert!(dir.is_dir(), "{} is not there: run `cargo xtask build-plugins` first", dir.display());
    dir
}

pub(crate) struct Server<'p> {
    place: &'p Place,
    child: Child,
    pub(crate) api: Api,
    pub(crate) demo: Value,
}

impl Server<'_> {
    /// The only workflow's webhook address.
    pub(crate) fn hook(&self) -> String {
        self.workflow()["webhook_url"].as_str().unwrap().to_owned()
    }

    pub(crate) fn workflow(&self) -> &Value {
        &self.demo["workflows"]["GitHub issue to Slack"]
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; answers the exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let ended = wait_until(Duration::from_mins(1), || self.child.try_wait().unwrap().is_some());
        assert!(ended, "the server does not stop:\n{}", self.place.log_text());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.place.log_text());
        }
    }
}
