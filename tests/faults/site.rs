//! An installation of the real binary: one node on SQLite, or several on a PostgreSQL of their own.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use bulkhead_test_support::http_sink::Sink;
use bulkhead_test_support::postgres::{Cluster, Options, Server, server_or_skip};
use bulkhead_test_support::{free_port, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;
use ureq::Agent;

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
/// A server that could not start is started again after this long.
const START_AGAIN: Duration = Duration::from_millis(200);
/// A request to a node that is stopped or dying is given up after this long.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// The steps of the workflow, each of which sends one web hook.
pub(crate) const STEPS: [&str; 3] = ["one", "two", "three"];

/// What a node answered.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

/// A client that gives up soon. `None`: nobody answered.
#[derive(Clone)]
pub(crate) struct Client {
    agent: Agent,
    key: String,
}

impl Client {
    pub(crate) fn new(key: &str) -> Self {
        let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(REQUEST_TIME)).build();
        Self { agent: config.new_agent(), key: format!("Bearer {key}") }
    }

    /// The same with connections of its own.
    pub(crate) fn alone(&self) -> Self {
        let key = self.key.strip_prefix("Bearer ").unwrap_or_default();
        Self::new(key)
    }

    fn read(sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Option<Answer> {
        let response = sent.ok()?;
        let status = response.status().as_u16();
        let text = response.into_body().read_to_string().ok()?;
        Some(Answer { status, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) })
    }

    pub(crate) fn get(&self, url: &str) -> Option<Answer> {
        Self::read(self.agent.get(url).header("authorization", &self.key).call())
    }

    pub(crate) fn post(&self, url: &str, body: &Value) -> Option<Answer> {
        Self::read(self.agent.post(url).header("authorization", &self.key).send_json(body))
    }

    /// Delivers to a webhook under an id of the sender's.
    pub(crate) fn deliver(&self, url: &str, delivery: &str, body: &Value) -> Option<Answer> {
        Self::read(self.agent.post(url).header("x-github-delivery", delivery).send_json(body))
    }
}

/// One process and where it keeps its things.
pub(crate) struct Node {
    dir: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Node {
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Memory that the process holds now, in KiB.
    pub(crate) fn memory_kib(&self) -> u64 {
        let pid = self.child.as_ref().unwrap().id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse().unwrap_or_default()
    }

    fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    fn spawn(&mut self, arguments: &[&str]) {
        let log = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command.args(arguments).current_dir(&self.dir).envs(PLENTY).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Starts the server and waits for nothing.
    pub(crate) fn start(&mut self) {
        self.spawn(&["--config", "bulkhead.toml", "serve"]);
    }

    fn is_ready(&self, client: &Client) -> bool {
        client.get(&self.url("/readyz")).is_some_and(|answer| answer.status == 200)
    }

    /// What a service manager does: a server that could not start, since the database was away, is started again.
    ///
    /// # Panics
    /// When it ended in another way.
    pub(crate) fn keep_up(&mut self) {
        let Some(ended) = self.child.as_mut().unwrap().try_wait().unwrap() else { return };
        assert_eq!(ended.code(), Some(2), "the server ended by itself:\n{}", self.log_text());
        std::thread::sleep(START_AGAIN);
        self.start();
    }

    pub(crate) fn wait_ready(&mut self, client: &Client) {
        let ready = wait_until(START_WITHIN, || {
            self.keep_up();
            self.is_ready(client)
        });
        assert!(ready, "the server is not ready:\n{}", self.log_text());
    }

    fn log_text(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        // The end says what happened; a soak's whole log would bury it.
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(200)..].join("\n")
    }

    fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// `kill -9`, and the process is gone when this returns.
    pub(crate) fn kill(&mut self) {
        self.keep_up();
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        let ended = child.wait().unwrap();
        // The other way is a start that failed at this very moment.
        assert!(ended.signal() == Some(9) || ended.code() == Some(2), "{ended}:\n{}", self.log_text());
    }

    /// SIGSTOP: the process is there and does nothing.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    /// SIGTERM; waits for the end.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal("-TERM");
        let mut child = self.child.take().unwrap();
        let ended = wait_until(Duration::from_mins(1), || child.try_wait().unwrap().is_some());
        if !ended {
            child.kill().unwrap();
        }
        assert!(ended, "the server does not stop:\n{}", self.log_text());
        child.wait().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() {
            eprintln!("the log of {}:\n{}", self.dir.display(), self.log_text());
        }
    }
}

/// Everything that a test needs: nodes, the sink that their plugins call, and a workflow to start.
pub(crate) struct Site {
    pub(crate) nodes: Vec<Node>,
    pub(crate) client: Client,
    pub(crate) sink: Sink,
    /// `/api/v1/orgs/…`
    pub(crate) api: String,
    /// The webhook's address without a node.
    pub(crate) hook: String,
    pub(crate) cluster: Option<Cluster>,
    _dir: TempDir,
}

fn packages() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_bulkhead"));
    let dir = binary.parent().and_then(Path::parent).unwrap().join("plugins");
    assert!(dir.is_dir(), "{} is not there: run `cargo xtask build-plugins` first", dir.display());
    dir
}

/// Three steps, each of which sends a web hook that says which run and step it is of.
fn workflow() -> Value {
    let step = |number: usize| {
        let next = STEPS.get(number + 1).copied().unwrap_or("end");
        json!({
            "type": "action", "use": "bulkhead/webhook#webhook", "next": next, "timeout_ms": 10_000,
            "with": { "body": { "run": "{{ run.id }}", "step": STEPS[number], "n": "{{ trigger.body.n }}" } },
            "retry": { "max_attempts": 5, "backoff_ms": 200, "backoff_max_ms": 2_000 },
        })
    };
    json!({
        "schema": 1, "name": "Three effects", "triggers": [{ "id": "hook", "type": "webhook" }], "start": STEPS[0],
        "steps": { "one": step(0), "two": step(1), "three": step(2), "end": { "type": "stop" } },
    })
}

impl Site {
    pub(crate) fn sqlite() -> Self {
        Self::new(1, None)
    }

    /// Nodes on a durable cluster of their own, which can be restarted without harm to other tests. `None` (said loudly) where
    /// PostgreSQL is not installed.
    pub(crate) fn postgres(nodes: usize) -> Option<Self> {
        server_or_skip()?;
        Some(Self::new(nodes, Some(Cluster::start_with(Options { durable: true }).unwrap())))
    }

    fn new(count: usize, cluster: Option<Cluster>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sink = Sink::start();
        let database_url = cluster.as_ref().map(|cluster| {
            let server = Server::at(cluster.url()).unwrap();
            let database = server.create_database().unwrap();
            let url = database.url().to_owned();
            // It goes with its cluster.
            std::mem::forget(database);
            url
        });
        let nodes: Vec<Node> = (0..count)
            .map(|number| {
                let dir = dir.path().join(format!("node-{number}"));
                std::fs::create_dir(&dir).unwrap();
                Node { dir, port: free_port(), child: None }
            })
            .collect();
        let mut site =
            Self { nodes, client: Client::new(""), sink, api: String::new(), hook: String::new(), cluster, _dir: dir };
        site.set_up(database_url.as_deref());
        site
    }

    /// The demo makes organization, key and installations; then it ends, and its directory is that of the first node.
    fn set_up(&mut self, database_url: Option<&str>) {
        let (sink_url, packages) = (self.sink.url("/hook"), packages());
        let sink = self.sink.address();
        let first = &mut self.nodes[0];
        let listen = format!("127.0.0.1:{}", first.port);
        let mut arguments = vec!["demo", "--bare", "--data-dir", "data", "--listen", &listen, "--sink", &sink_url];
        arguments.push("--plugins");
        arguments.push(packages.to_str().unwrap());
        arguments.extend(database_url.iter().flat_map(|url| ["--database-url", *url]));
        first.spawn(&arguments);
        first.wait_ready(&self.client);
        let file = std::fs::read_to_string(first.dir.join("data/demo.json")).unwrap();
        let demo: Value = serde_json::from_str(&file).unwrap();
        self.client = Client::new(demo["api_key"].as_str().unwrap());
        self.api = format!("/api/v1/orgs/{}", demo["org"].as_str().unwrap());
        let post = |path: &str, body: &Value| {
            let answer = self.client.post(&first.url(&format!("{}{path}", self.api)), body).unwrap();
            assert!((200..300).contains(&answer.status), "{path}: {:#}", answer.body);
            answer.body
        };
        let made = post("/workflows", &json!({ "definition": workflow(), "summary": "" }));
        let active = post(&format!("/workflows/{}/activate", made["id"].as_str().unwrap()), &json!({}));
        let hook = active["hooks"][0]["url"].as_str().or(made["hooks"][0]["url"].as_str());
        let hook = hook.unwrap_or_else(|| panic!("no webhook in {active:#}"));
        hook[hook.find("/hooks/").unwrap()..].clone_into(&mut self.hook);
        assert_eq!(first.stop().code(), Some(0));
        let from = first.dir.join("data");
        for node in &self.nodes {
            let to = node.dir.join("data");
            if !to.exists() {
                // The root key, above all; and what is compiled already.
                assert!(Command::new("cp").arg("-a").args([&from, &to]).status().unwrap().success());
            }
            let database = database_url.map(|url| format!("[database]\nowner_url = \"{url}\"\n")).unwrap_or_default();
            let text = format!(
                "[server]\nlisten = \"127.0.0.1:{}\"\ndata_dir = \"data\"\n{database}[egress]\nallow_loopback = [\"{sink}\"]\n\
                 [log]\nlevel = \"info,bulkhead_http=warn,sqlx=error\"\nformat = \"text\"\n",
                node.port
            );
            std::fs::write(node.dir.join("bulkhead.toml"), text).unwrap();
        }
    }

    /// Adds to every node's configuration, before it starts.
    pub(crate) fn configure(&self, text: &str) {
        for node in &self.nodes {
            let mut file = std::fs::File::options().append(true).open(node.dir.join("bulkhead.toml")).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }
    }

    /// Makes an organization, before the nodes start; its key.
    pub(crate) fn make_org(&self, slug: &str) -> (String, String) {
        let admin = |arguments: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
            command.args(["--config", "bulkhead.toml", "admin"]).args(arguments).arg("--json");
            let done = command.current_dir(&self.nodes[0].dir).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            serde_json::from_slice::<Value>(&done.stdout).unwrap()
        };
        let made = admin(&["create-org", slug]);
        let key = admin(&["create-key", slug, "--name", "all"]);
        (made["id"].as_str().unwrap().to_owned(), key["key"].as_str().unwrap().to_owned())
    }

    pub(crate) fn start_all(&mut self) {
        self.nodes.iter_mut().for_each(Node::start);
        for node in &mut self.nodes {
            node.wait_ready(&self.client);
        }
    }

    /// Asks the nodes in turn until one answers with success.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.nodes.iter().find_map(|node| {
            let answer = self.client.get(&node.url(&format!("{}{path}", self.api)))?;
            (answer.status == 200).then_some(answer.body)
        })
    }

    /// Every item of a list.
    pub(crate) fn list(&self, path: &str) -> Vec<Value> {
        let mut items = Vec::new();
        let mut cursor = None::<String>;
        loop {
            let after = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
            let page = self.get(&format!("{path}limit=100{after}")).expect("a node answers");
            items.extend(page["items"].as_array().unwrap().iter().cloned());
            let Some(next) = page["next_cursor"].as_str() else { return items };
            cursor = Some(next.to_owned());
        }
    }
}
