//! A demo server as a child process on a directory of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bulkhead_test_support::http_sink::Sink;
use bulkhead_test_support::postgres::{self, Database};
use bulkhead_test_support::{free_port, wait_until};
use serde_json::Value;
use tempfile::TempDir;

use crate::api::Api;

/// Rate limits that no test comes near, except one that is about them.
const PLENTY: [(&str, &str); 8] = [
    ("BULKHEAD_LIMITS__ANONYMOUS_PER_MINUTE", "1000000"),
    ("BULKHEAD_LIMITS__ANONYMOUS_BURST", "1000000"),
    ("BULKHEAD_LIMITS__SIGN_IN_PER_MINUTE", "1000000"),
    ("BULKHEAD_LIMITS__KEY_PER_MINUTE", "1000000"),
    ("BULKHEAD_LIMITS__KEY_BURST", "1000000"),
    ("BULKHEAD_LIMITS__ORGANIZATION_PER_MINUTE", "1000000"),
    ("BULKHEAD_LIMITS__ORGANIZATION_BURST", "1000000"),
    ("BULKHEAD_LIMITS__STRICT_PER_MINUTE", "1000000"),
];

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

    /// Another node on the same PostgreSQL database: `bulkhead serve` with a directory of its own and the same root key.
    pub(crate) fn start_node(&self, name: &str, demo: &Value, sink: &Sink) -> Server<'_> {
        let data = self.node_dir(name);
        let port = free_port();
        let mut command = self.node_command(&data);
        command.arg("serve").env("BULKHEAD_SERVER__LISTEN", format!("127.0.0.1:{port}"));
        command.env("BULKHEAD_EGRESS__ALLOW_LOOPBACK", format!("[\"{}\"]", sink.address()));
        let child = self.spawn(command, port);
        let text = demo.to_string().replace(demo["url"].as_str().unwrap(), &format!("http://127.0.0.1:{port}"));
        let demo: Value = serde_json::from_str(&text).unwrap();
        Server { place: self, child, api: Api::new(&demo), demo }
    }

    /// Where PostgreSQL listens.
    pub(crate) fn database_address(&self) -> SocketAddr {
        let (_, rest) = self.database_url().unwrap().rsplit_once('@').unwrap();
        rest.split_once('/').unwrap().0.parse().unwrap()
    }

    /// Another node, which finds PostgreSQL at `database`; it may not get ready. It ends with what is answered.
    pub(crate) fn start_node_behind(&self, database: SocketAddr, name: &str) -> impl Drop + use<> {
        struct Node(Child);
        impl Drop for Node {
            fn drop(&mut self) {
                drop(self.0.kill());
                drop(self.0.wait());
            }
        }
        let data = self.node_dir(name);
        let url = self.database_url().unwrap().replace(&self.database_address().to_string(), &database.to_string());
        let log = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = self.node_command(&data);
        command.arg("serve").env("BULKHEAD_SERVER__LISTEN", "127.0.0.1:0").env("BULKHEAD_DATABASE__OWNER_URL", url);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Node(command.spawn().unwrap())
    }

    /// A node's own directory, with the root key of the first.
    fn node_dir(&self, name: &str) -> PathBuf {
        let data = self.dir.path().join(name);
        if !data.exists() {
            std::fs::create_dir(&data).unwrap();
            std::fs::copy(self.dir.path().join("data/root.key"), data.join("root.key")).unwrap();
        }
        data
    }

    /// A command as one node's operator gives it.
    fn node_command(&self, data: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command.envs(PLENTY).env("BULKHEAD_SERVER__DATA_DIR", data);
        command.env("BULKHEAD_DATABASE__OWNER_URL", self.database.as_ref().unwrap().url());
        command
    }

    /// What a command of the operator's prints as JSON; `Err` with what it said when it did not succeed.
    pub(crate) fn operate(&self, args: &[&str]) -> Result<Value, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command.args(args).env("BULKHEAD_SERVER__DATA_DIR", self.data_dir());
        if let Some(url) = self.database_url() {
            command.env("BULKHEAD_DATABASE__OWNER_URL", url);
        }
        let output = command.output().unwrap();
        if output.status.success() {
            Ok(serde_json::from_slice(&output.stdout).unwrap())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// What `bulkhead doctor` finds about nodes.
    pub(crate) fn doctor_nodes(&self) -> Vec<Value> {
        let mut command = self.node_command(&self.dir.path().join("data"));
        command.args(["doctor", "--json"]).env("BULKHEAD_SERVER__LISTEN", "127.0.0.1:0");
        let findings: Vec<Value> = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        findings.into_iter().filter(|finding| finding["check"] == "node").collect()
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    /// A demo without people and without a past.
    pub(crate) fn command(&self, sink: &str) -> Command {
        let mut command = self.whole_command(sink);
        command.arg("--bare");
        command
    }

    /// … as a newcomer starts it.
    fn whole_command(&self, sink: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command.envs(PLENTY).arg("demo").arg("--data-dir").arg(self.dir.path().join("data"));
        command.arg("--listen").arg(format!("127.0.0.1:{}", self.port)).arg("--sink").arg(sink);
        command.arg("--plugins").arg(packages());
        if let Some(database) = &self.database {
            command.arg("--database-url").arg(database.url());
        }
        command
    }

    /// Starts the demo and waits until it is ready.
    pub(crate) fn start(&self, sink: &Sink) -> Server<'_> {
        self.start_with(sink, &[])
    }

    /// … with these settings in its environment.
    pub(crate) fn start_with(&self, sink: &Sink, settings: &[(&str, String)]) -> Server<'_> {
        self.start_by(self.command(&sink.url("/hook")), settings)
    }

    /// … with its admin and the day that went by.
    pub(crate) fn start_whole(&self, sink: &Sink) -> Server<'_> {
        // A day has a dozen passwords in it.
        let settings = [("BULKHEAD_ACCOUNTS__HASH_MEMORY_KIB", "19456".to_owned())];
        self.start_by(self.whole_command(&sink.url("/hook")), &settings)
    }

    fn start_by(&self, mut command: Command, settings: &[(&str, String)]) -> Server<'_> {
        command.envs(settings.iter().map(|(name, value)| (*name, value)));
        let child = self.spawn(command, self.port);
        let file = std::fs::read_to_string(self.dir.path().join("data/demo.json")).unwrap();
        let demo: Value = serde_json::from_str(&file).unwrap();
        Server { place: self, child, api: Api::new(&demo), demo }
    }

    /// Runs a server until it is ready on this port.
    fn spawn(&self, mut command: Command, port: u16) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        let health = format!("http://127.0.0.1:{port}/readyz");
        let up = wait_until(START_WITHIN, || {
            assert!(child.try_wait().unwrap().is_none(), "the server ended:\n{}", self.log_text());
            ureq::get(&health).call().is_ok()
        });
        assert!(up, "the server is not ready:\n{}", self.log_text());
        child
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

    /// `-STOP`, `-CONT`, …
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Bytes that a crash may leave in a file, as far as the process could allow it.
    pub(crate) fn core_bytes_max(&self) -> String {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", self.child.id())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        line.split_whitespace().nth(5).unwrap().to_owned()
    }

    /// SIGTERM; answers the exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        self.signal("-TERM");
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
