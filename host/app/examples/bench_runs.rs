//! Performance row 6: three-step durable runs on SQLite, every step durable before the next, beside the disk's own rate.
//!
//! Each run makes three calls of a plugin in the real sandbox; its start, its claim and each step are commits of their own.
//! Prints one JSON object a line: `{row, what, ours, reference, ratio, target, unit, conditions}`. The reference is an append of
//! 4 KiB and `fdatasync`, alone, on the same file system.

#[path = "../../../tests/app/guests.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "guests of the test suite, of which this uses one")]
mod guests;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bulkhead_app::api_key::NewApiKey;
use bulkhead_app::installation::NewInstallation;
use bulkhead_app::run::StartByHand;
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::worker::{Slots, WorkerConfig};
use bulkhead_app::workflow::SaveWorkflow;
use bulkhead_app::{App, AppParts, CallConcurrency, SandboxParts, compiler_main};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::grant::{Ceiling, Grants};
use bulkhead_model::id::{OrgId, WorkflowId};
use bulkhead_model::permission::{Caller, PermissionSet};
use bulkhead_model::run::RunStatus;
use bulkhead_runtime::egress::{EgressConfig, SystemResolver};
use bulkhead_runtime::{CompilerCommand, Runtime, RuntimeConfig};
use bulkhead_store::page::PageRequest;
use bulkhead_store::seal::{RootKey, Sealer};
use bulkhead_store::{Database, Store, StoreConfig};
use serde_json::{Map, json};

/// How long the disk alone is measured.
const DISK_FOR: Duration = Duration::from_secs(3);
/// Commits of a sequential run that the target counts: its start and three steps.
const COMMITS: f64 = 4.0;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "compile") {
        return compiler_main();
    }
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(Box::pin(measure())));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Synced appends a second, one after the other.
fn disk_rate(dir: &Path) -> Result<f64> {
    let mut file = std::fs::File::create(dir.join("disk"))?;
    let (block, began) = ([7_u8; 4096], Instant::now());
    let mut count = 0_u32;
    while began.elapsed() < DISK_FOR {
        file.write_all(&block)?;
        file.sync_data()?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

#[derive(Clone)]
struct Bench {
    app: App,
    caller: Caller,
    org: OrgId,
    workflow: WorkflowId,
}

async fn set_up(dir: &Path) -> Result<(Bench, Supervisor)> {
    let ambient = Ambient::system();
    let database = Database::Sqlite { dir: dir.to_owned() };
    let store = Store::open(StoreConfig { database, connections_max: 8 }).await?;
    let runtime = Runtime::start(
        RuntimeConfig {
            cache_dir: dir.join("compiled"),
            seal_key: [1; 32],
            compiler: CompilerCommand { program: std::env::current_exe()?, args: vec!["compile".into()] },
            guest_threads: 2,
            prepared_bytes_max: 256 * 1024 * 1024,
            egress: EgressConfig::new(Arc::new(SystemResolver::from_system()?)),
        },
        ambient.clone(),
    )?;
    let supervisor = Supervisor::new();
    let concurrency = CallConcurrency { per_org: 256, per_installation: 64, wait_ms: 30_000 };
    let app = App::new(AppParts {
        store,
        sealer: Sealer::new(&RootKey::new([2; 32]), ambient.clone()),
        ambient,
        sandbox: SandboxParts {
            runtime,
            ceiling: Ceiling::default(),
            first_party: BTreeSet::new(),
            concurrency,
            supervisor: supervisor.clone(),
        },
    });
    let org = app.create_org("acme".parse()?, "Acme".into()).await?.id;
    let new = NewApiKey { name: "bench".into(), permissions: PermissionSet::all(), expires_in_days: None };
    let key = app.create_first_api_key(org, new).await?;
    let caller = app.authenticate(&key.secret_text).await?.caller;
    let plugin = app.upload_plugin(&caller, org, guests::acme_echo().into()).await?.plugin;
    let new = NewInstallation {
        plugin: plugin.name,
        version: plugin.version,
        settings: json!({}),
        grants: Grants::default(),
    };
    app.install(&caller, org, new).await?;
    let step = |next: Option<&str>| json!({ "type": "action", "use": "acme/echo#it", "with": { "n": "{{ trigger.body.n }}" }, "next": next });
    let definition = json!({
        "schema": 1, "name": "three steps", "triggers": [{ "id": "by-hand", "type": "api" }], "start": "one",
        "steps": { "one": step(Some("two")), "two": step(Some("three")), "three": step(None) },
    });
    let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
    let workflow = app.create_workflow(&caller, org, save).await?.workflow.id;
    let config = WorkerConfig { name: "bench".into(), slots: Slots::default(), heartbeat: None };
    app.start_worker(config, &supervisor).await?;
    Ok((Bench { app, caller, org, workflow }, supervisor))
}

impl Bench {
    async fn one_run(&self) -> Result<()> {
        let start = StartByHand { input: json!({ "n": 1 }), variables: Map::new(), idempotency_key: None };
        let run = self.app.start_run(&self.caller, self.org, self.workflow, start).await?;
        loop {
            let status = self.app.show_run(&self.caller, self.org, run).await?.run.status;
            if status.is_final() {
                ensure!(status == RunStatus::Succeeded, "a run ended as {}", status.as_str());
                return Ok(());
            }
            // A timer's grain is a millisecond, longer than what is measured.
            tokio::task::yield_now().await;
        }
    }

    /// Starts `runs` from `callers` tasks as fast as they are accepted; answers runs a second until the last one has ended.
    async fn throughput(&self, callers: usize, runs: usize) -> Result<f64> {
        ensure!(self.count_left().await? == 0, "jobs are left from before");
        let began = Instant::now();
        let starts = (0..callers).map(|_| {
            let bench = self.clone();
            async move {
                for _ in 0..runs / callers {
                    let start = StartByHand { input: json!({ "n": 1 }), variables: Map::new(), idempotency_key: None };
                    bench.app.start_run(&bench.caller, bench.org, bench.workflow, start).await?;
                }
                anyhow::Ok(())
            }
        });
        futures_util::future::try_join_all(starts).await?;
        while self.count_left().await? > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let done = u32::try_from(runs / callers * callers)?;
        Ok(f64::from(done) / began.elapsed().as_secs_f64())
    }

    /// Jobs that are not done (at most one page).
    async fn count_left(&self) -> Result<usize> {
        let page = PageRequest { before: None, limit: 1 };
        Ok(self.app.list_jobs(&self.caller, self.org, None, page).await?.items.len())
    }
}

async fn measure() -> Result<()> {
    let dir = tempfile::tempdir_in(std::env::current_dir()?)?;
    let disk = disk_rate(dir.path())?;
    let (bench, supervisor) = set_up(dir.path()).await?;
    let conditions =
        format!("SQLite WAL synchronous=FULL, {disk:.0} fdatasync/s, three calls of a WebAssembly echo a run");
    for _ in 0..20 {
        bench.one_run().await?;
    }
    let (count, began) = (200_u32, Instant::now());
    for _ in 0..count {
        bench.one_run().await?;
    }
    let sequential_ms = began.elapsed().as_secs_f64() * 1000.0 / f64::from(count);
    let reference_ms = COMMITS * 1000.0 / disk;
    println!(
        "{}",
        json!({
            "row": 6, "what": "three-step run, one after the other", "ours": sequential_ms, "reference": reference_ms,
            "ratio": sequential_ms / reference_ms, "target": "<= 1.2 x 4 synced appends", "unit": "ms/run",
            "conditions": format!("{conditions}; includes noticing the end by reading it again and again"),
        })
    );
    for (callers, runs) in [(32, 2_000), (128, 4_000)] {
        let rate = bench.throughput(callers, runs).await?;
        println!(
            "{}",
            json!({
                "row": 6, "what": format!("three-step runs, {callers} callers"), "ours": rate, "reference": disk, "ratio": rate / disk,
                "target": if callers == 128 { ">= 2000 runs/s" } else { "-" }, "unit": "runs/s", "conditions": conditions,
            })
        );
    }
    supervisor.shut_down(Duration::from_secs(10)).await;
    Ok(())
}
