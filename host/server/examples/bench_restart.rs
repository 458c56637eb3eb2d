//! Performance row 14: a restart with 100 installed plugins, from the sealed cache: start until ready, first calls, idle memory.
//!
//! Starts the real `bulkhead serve` that was built beside this program, on a directory of its own (SQLite). Prints one JSON object a line:
//! `{row, what, ours, reference, ratio, target, unit, conditions}`. The reference of a first call is a later call of the same plugin.

#[path = "../../../tests/app/guests.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "guests of the test suite, of which this uses one")]
mod guests;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bulkhead_test_support::free_port;
use serde_json::{Value, json};

const PLUGINS: usize = 100;
const RESTARTS: usize = 5;
/// A first start on an empty directory, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);
/// What the process still does after it is ready has come to rest by then.
const IDLE_AFTER: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The server's binary: this program is in the folder `examples` beside it.
fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().and_then(Path::parent).context("this program lies in a folder")?;
    let binary = folder.join("bulkhead");
    ensure!(binary.is_file(), "{} is not built: cargo build --release --bins", binary.display());
    Ok(binary)
}

struct Site {
    binary: PathBuf,
    dir: PathBuf,
}

struct Server {
    child: Child,
    url: String,
    ready_ms: f64,
}

impl Site {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env("BULKHEAD_SERVER__DATA_DIR", &self.dir).env("BULKHEAD_LOG__LEVEL", "warn");
        command
    }

    fn admin(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Starts the server and waits until it is ready.
    fn serve(&self) -> Result<Server> {
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = self.command(&["serve"]);
        command
            .env("BULKHEAD_LIMITS__ANONYMOUS_PER_MINUTE", "1000000")
            .env("BULKHEAD_LIMITS__ANONYMOUS_BURST", "1000000");
        command.env("BULKHEAD_SERVER__LISTEN", &address).stdin(Stdio::null()).stdout(Stdio::null());
        let (url, began) = (format!("http://{address}"), Instant::now());
        let mut child = command.spawn()?;
        while ureq::get(&format!("{url}/readyz")).call().is_err() {
            ensure!(child.try_wait()?.is_none() && began.elapsed() < PATIENCE, "the server does not become ready");
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(Server { child, url, ready_ms: began.elapsed().as_secs_f64() * 1_000.0 })
    }
}

impl Server {
    fn stop(mut self) -> Result<()> {
        Command::new("kill").arg(self.child.id().to_string()).status()?;
        self.child.wait()?;
        Ok(())
    }

    /// Resident memory, in MiB.
    fn resident_mib(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process has resident memory")?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib / 1_024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After `stop` there is nothing left to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Api {
    agent: ureq::Agent,
    key: String,
}

impl Api {
    fn post(&self, server: &Server, path: &str, body: &Value) -> Result<Value> {
        let url = format!("{}/api/v1/orgs/acme/{path}", server.url);
        let mut answer = self.agent.post(&url).header("authorization", &self.key).send_json(body)?;
        Ok(answer.body_mut().read_json()?)
    }

    fn upload(&self, server: &Server, package: &[u8]) -> Result<()> {
        let url = format!("{}/api/v1/orgs/acme/plugins", server.url);
        let ask = self.agent.post(&url).header("authorization", &self.key).header("content-type", "application/wasm");
        ask.send(package)?;
        Ok(())
    }

    /// Calls a plugin; how long it took, in milliseconds.
    fn call(&self, server: &Server, installation: &str) -> Result<f64> {
        let began = Instant::now();
        let answer = self.post(
            server,
            &format!("installations/{installation}/calls"),
            &json!({ "contribution": "it", "input": 7 }),
        )?;
        let took_ms = began.elapsed().as_secs_f64() * 1_000.0;
        ensure!(answer["outcome"] == "returned", "{answer}");
        Ok(took_ms)
    }
}

/// The value below which this share of the sorted values lies.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place in a short list"
    )]
    let at = ((values.len() as f64 - 1.0) * share).round() as usize;
    values.get(at).copied().unwrap_or(f64::NAN)
}

fn figure(what: &str, ours: f64, target: &str, unit: &str, reference: Option<f64>) {
    let conditions = format!("{PLUGINS} plugins of one component each, SQLite, over HTTP on one connection");
    let ratio = reference.map(|reference| ours / reference);
    let line = json!({
        "row": 14, "what": what, "ours": ours, "reference": reference, "ratio": ratio, "target": target, "unit": unit,
        "conditions": conditions,
    });
    println!("{line}");
}

fn measure() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let site = Site { binary: binary()?, dir: dir.path().join("data") };
    site.admin(&["admin", "create-org", "acme"])?;
    let made: Value = serde_json::from_str(&site.admin(&["admin", "create-key", "acme", "--name", "b", "--json"])?)?;
    let key = made["key"].as_str().context("a key was made")?;
    let api = Api { agent: ureq::Agent::new_with_defaults(), key: format!("Bearer {key}") };
    let server = site.serve()?;
    let component = guests::echo();
    let mut installations = Vec::new();
    for n in 0..PLUGINS {
        // Another manifest makes another package, of another digest: nothing is shared in the cache.
        let name = format!("acme/many-{n}");
        api.upload(&server, &guests::package(&component, &guests::manifest(&name, "1.0.0", |_| ())))?;
        let made = api.post(&server, "installations", &json!({ "plugin": name, "version": "1.0.0" }))?;
        installations.push(made["id"].as_str().context("an installation has an id")?.to_owned());
    }
    server.stop()?;
    println!("{PLUGINS} plugins are installed and compiled; {RESTARTS} restarts follow");
    let (mut ready, mut idle, mut loaded) = (Vec::new(), Vec::new(), Vec::new());
    let (mut first, mut later) = (Vec::new(), Vec::new());
    for _ in 0..RESTARTS {
        let server = site.serve()?;
        ready.push(server.ready_ms);
        std::thread::sleep(IDLE_AFTER);
        idle.push(server.resident_mib()?);
        // The connection and the key's look-up are not the plugin's.
        for times in [&mut first, &mut later] {
            for installation in &installations {
                times.push(api.call(&server, installation)?);
            }
        }
        loaded.push(server.resident_mib()?);
        server.stop()?;
    }
    figure("restart with 100 plugins: process start to ready", quantile(&mut ready, 0.5), "≤ 500", "ms", None);
    let warm = quantile(&mut later, 0.5);
    figure("first call of a plugin after a restart, p50", quantile(&mut first, 0.5), "≤ 2", "ms", Some(warm));
    let warm = quantile(&mut later, 0.99);
    figure("first call of a plugin after a restart, p99", quantile(&mut first, 0.99), "", "ms", Some(warm));
    figure("resident memory, idle after a restart", quantile(&mut idle, 0.5), "≤ 150", "MiB", None);
    figure("resident memory, all 100 plugins called", quantile(&mut loaded, 0.5), "", "MiB", None);
    Ok(())
}
