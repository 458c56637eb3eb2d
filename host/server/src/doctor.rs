//! `bulkhead doctor`: checks that the server can run here, one line per check, and says what to do; `bulkhead doctor run` says why a run
//! does not go on. It looks at the database beside whoever serves it, and changes nothing there.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bulkhead_app::key::check_roots;
use bulkhead_app::node::CLOCK_OFF_MAX;
use bulkhead_app::queue::explain_run_as_operator;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::RunId;
use bulkhead_model::permission::{SystemReason, SystemScope};
use bulkhead_runtime::CompilerCommand;
use bulkhead_store::Store;
use bulkhead_store::node::Node;
use bulkhead_store::seal::Sealer;
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;

use crate::config::Config;
use crate::host::store_config;
use crate::keys;

const NODES: SystemScope = SystemScope::new(SystemReason::Nodes);
/// The compiler's probe may take this long, on a busy machine.
const COMPILE_TIME: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Say why a run does not go on, and what to do
    #[command(after_help = "Example:\n  bulkhead doctor run run_01h455vb4pex5vsknk084sn02q")]
    Run {
        /// `run_…`
        id: String,
    },
}

#[derive(Serialize)]
struct Finding {
    check: &'static str,
    ok: bool,
    detail: String,
}

fn finding(check: &'static str, result: Result<String, String>) -> Finding {
    let ok = result.is_ok();
    Finding { check, ok, detail: result.unwrap_or_else(|why| why) }
}

/// The store to look at; whoever serves it is not disturbed.
pub(crate) async fn look(config: &Config) -> Result<Store> {
    let roots = keys::load(config, false, &Ambient::system())?;
    Store::look(store_config(config, roots.base())).await.context("the database cannot be looked at")
}

async fn explain(config: &Config, id: &str, json: bool) -> Result<ExitCode> {
    let run: RunId = id.parse().map_err(|error| anyhow::anyhow!("{id:?}: {error}"))?;
    let store = look(config).await?;
    let explained = explain_run_as_operator(&store, &Ambient::system(), run).await;
    store.close().await;
    let explained = explained.with_context(|| format!("{run} cannot be explained"))?;
    if json {
        println!("{}", serde_json::to_string_pretty(&explained.to_json())?);
    } else {
        println!("{} of {}: {}", explained.run, explained.org, explained.status.as_str());
        for reason in &explained.reasons {
            println!("\n{} ({})\n  {}", reason.message, reason.code, reason.next);
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn run(config: Config, args: Args) -> Result<ExitCode> {
    if let Some(What::Run { id }) = &args.what {
        return explain(&config, id, args.json).await;
    }
    let mut findings = vec![
        finding("data directory", data_dir(&config)),
        finding("memory", memory()),
        finding("listen address", listen(&config).await),
    ];
    findings.extend(database(&config).await);
    findings.push(finding("plugin compiler", compiler().await));
    if config.audit.webhook_url.is_some() {
        findings.push(finding("audit webhook", audit_webhook(&config).await));
    }
    let healthy = findings.iter().all(|finding| finding.ok);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        for finding in &findings {
            println!("{} {:<16} {}", if finding.ok { "ok  " } else { "FAIL" }, finding.check, finding.detail);
        }
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn data_dir(config: &Config) -> Result<String, String> {
    let dir = &config.server.data_dir;
    if !dir.exists() {
        return Ok(format!("{} will be made at the first start", dir.display()));
    }
    let probe = dir.join(".doctor");
    std::fs::write(&probe, b"x").and_then(|()| std::fs::remove_file(&probe)).map_err(|error| {
        format!("{} cannot be written ({error}): give it to the user that runs the server", dir.display())
    })?;
    Ok(format!("{} can be written", dir.display()))
}

/// Each call of a plugin may take 64 MiB by default, so a small machine should know.
fn memory() -> Result<String, String> {
    let text = std::fs::read_to_string("/proc/meminfo").map_err(|error| format!("cannot be read: {error}"))?;
    let available_kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .ok_or("MemAvailable is not told")?;
    let mib = available_kib / 1024;
    if mib < 512 {
        Err(format!("{mib} MiB are free: at least 512 are needed"))
    } else {
        Ok(format!("{mib} MiB are free"))
    }
}

/// Sends a signed `ping` to whoever is told checkpoints.
async fn audit_webhook(config: &Config) -> Result<String, String> {
    let made = crate::host::egress(config)
        .and_then(|egress| crate::anchor::Webhook::of(&config.audit, egress, Ambient::system()))
        .map_err(|error| format!("{error:#}"))?;
    let Some(webhook) = made else { return Ok("nobody is told checkpoints".into()) };
    webhook.ping().await.map_err(|why| format!("{why}: checkpoints are not told, and wait"))?;
    Ok("answers; checkpoints are told".into())
}

async fn listen(config: &Config) -> Result<String, String> {
    let address = config.server.listen;
    match tokio::net::TcpListener::bind(address).await {
        Ok(_) => Ok(format!("{address} is free")),
        Err(error) => Err(format!("{address}: {error} (no trouble if the server is running)")),
    }
}

async fn database(config: &Config) -> Vec<Finding> {
    let key = keys::load(config, false, &Ambient::system());
    let roots = match key {
        Ok(key) => key,
        Err(_) if !config.database.is_postgres() && !config.server.data_dir.join("bulkhead.sqlite").exists() => {
            return vec![finding("database", Ok("a new SQLite database will be made at the first start".into()))];
        }
        Err(error) => return vec![finding("root key", Err(format!("{error:#}")))],
    };
    let mut findings = vec![finding("root key", Ok(keys::described(config).into()))];
    match Store::look(store_config(config, roots.base())).await {
        Ok(store) => {
            let sealer = Sealer::with_roots(std::sync::Arc::new(roots), Ambient::system());
            let opens = check_roots(&store, &sealer).await.map_err(|error| error.to_string());
            findings.push(finding("root keys", opens.map(|()| "open every organization's keys".to_owned())));
            findings.push(finding(
                "database",
                Ok(format!("{} answers; its schema is this version's", store.database_name())),
            ));
            if store.is_postgres() {
                let ambient = Ambient::system();
                findings.push(finding("clock", clock(&store, &ambient).await));
                match store.read(&NODES, (), |tx, ()| Box::pin(async move { tx.list_nodes().await })).await {
                    Ok(nodes) if nodes.is_empty() => findings.push(finding("nodes", Ok("none serves".into()))),
                    Ok(nodes) => findings.extend(nodes.iter().map(|each| finding("node", node(each)))),
                    Err(error) => findings.push(finding("nodes", Err(error.to_string()))),
                }
            } else {
                let served = if store.is_served() { "a server is running" } else { "none serves" };
                findings.push(finding("nodes", Ok(served.into())));
            }
            store.close().await;
        }
        Err(error) => {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            findings.push(finding("database", Err(format!("{error}{source}"))));
        }
    }
    findings
}

/// Of this machine, against the one that all nodes share.
async fn clock(store: &Store, ambient: &Ambient) -> Result<String, String> {
    let shared = store.read(&NODES, (), |tx, ()| Box::pin(async move { tx.load_shared_clock().await })).await;
    let shared = shared.map_err(|error| error.to_string())?.ok_or("the database does not tell the time")?;
    off_by(ambient.machine_now().as_micros().saturating_sub(shared.as_micros()), "this machine's clock")
}

/// One row; a node with a wrong clock or without a heartbeat is a finding.
fn node(node: &Node) -> Result<String, String> {
    let state = match (node.alive, node.draining) {
        (false, _) => "dead",
        (true, true) => "draining",
        (true, false) => "serving",
    };
    let line = format!(
        "{}: {state}, version {}, schema {:04}, since {}",
        node.name, node.version, node.schema_version, node.started_at
    );
    if !node.alive {
        return Err(format!("{line}: its heartbeat is over; a serving node takes its work up"));
    }
    let clock = off_by(node.clock_ahead_micros, "its machine's clock").map_err(|why| format!("{line}; {why}"))?;
    Ok(format!("{line}; {clock}"))
}

fn off_by(ahead_micros: i64, whose: &str) -> Result<String, String> {
    let off = Duration::from_micros(ahead_micros.unsigned_abs());
    let way = if ahead_micros < 0 { "behind" } else { "ahead of" };
    let line = format!("{whose} is {:.3} s {way} the database's", off.as_secs_f64());
    if off > CLOCK_OFF_MAX { Err(format!("{line}, which holds: set it right")) } else { Ok(line) }
}

/// A component of nothing: the smallest package that compiles.
const EMPTY_COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// Has the compiler's child process compile the smallest component, under its own limits.
async fn compiler() -> Result<String, String> {
    let command = crate::compiler().map_err(|error| error.to_string())?;
    probe(command, COMPILE_TIME).await
}

async fn probe(command: CompilerCommand, patience: Duration) -> Result<String, String> {
    let mut child = tokio::process::Command::new(command.program)
        .args(command.args)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot be started: {error}"))?;
    let mut stdin = child.stdin.take().expect("stdin was asked for");
    let talk = async {
        // A child that ends early closes the pipe; its status says why.
        let _ = stdin.write_all(&[b"e", EMPTY_COMPONENT].concat()).await;
        drop(stdin);
        child.wait_with_output().await
    };
    let done = tokio::time::timeout(patience, talk).await;
    let output = done.map_err(|_| format!("gave no answer within {} s", patience.as_secs()))?;
    let output = output.map_err(|error| error.to_string())?;
    match (output.status.success(), output.stdout.len()) {
        (true, 0) => Err("answers nothing".into()),
        (true, bytes) => Ok(format!("compiles (an empty component to {bytes} bytes)")),
        (false, _) => Err(format!("ended by {}", output.status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_compiler_that_does_not_compile_is_found() {
        for program in ["false", "true", "no-such-program"] {
            let command = CompilerCommand { program: program.into(), args: Vec::new() };
            assert!(probe(command, COMPILE_TIME).await.is_err(), "{program}");
        }
        let patient = CompilerCommand { program: "sleep".into(), args: vec!["60".into()] };
        assert!(probe(patient, Duration::from_millis(10)).await.unwrap_err().contains("no answer"));
    }
}
