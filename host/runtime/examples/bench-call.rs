//! Performance row 1: one action call beside bare wasmtime doing the same instantiate and call, in one run.
//!
//! Prints one JSON object a line: `{row, what, ours, reference, ratio, target, unit}`; a line without a reference has `null` there.
//! The reference is wasmtime with the best settings: pool, copy-on-write, `pagemap_scan`, fuel and epochs compiled in, on an async stack (as any
//! host must that ends guests which wait), and nothing else of ours: no limiter, deadline, grants, log, checks. A second one shows what wasmtime costs
//! without any of this. Times are processor time of the whole process, so that threads which only hand over are paid for.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::call::Outcome;
use bulkhead_model::grant::EffectiveGrants;
use bulkhead_model::limits::{ContributionKind, Limits};
use bulkhead_model::manifest::Manifest;
use bulkhead_runtime::egress::{EgressConfig, SystemResolver};
use bulkhead_runtime::{
    CallContext, CallControl, CallRequest, CompilerCommand, Digest, NoSecrets, Prepared, Runtime, RuntimeConfig,
    compiler, embed_manifest,
};
use serde_json::json;
use wasmtime::component::{Component, ComponentType, InstancePre, Lift, Linker, Lower, TypedFunc};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store};

const CALLS: u32 = 100_000;
/// Callers at once in the measurement of throughput.
const CALLERS: u32 = 64;
const INPUT: &str = r#"{"lead":{"id":"lead_01","email":"ada@example.com","score":42},"message":"Hello, world"}"#;

/// Answers with its input, which lies at the end of the arguments.
const ECHO: &str = r#"(module
    (memory (export "memory") 2)
    (global $next (mut i32) (i32.const 65536))
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
        (local $at i32)
        (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
        (global.set $next (i32.add (local.get $at) (local.get 3)))
        (local.get $at))
    (func (export "bulkhead:plugin/action@0.1.0#run") (param $arguments i32) (result i32)
        (i32.store (i32.const 24) (i32.load offset=96 (local.get $arguments)))
        (i32.store (i32.const 28) (i32.load offset=100 (local.get $arguments)))
        (i32.const 16)))"#;

fn main() -> ExitCode {
    // The compiler process is this very binary.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "compile") {
        return compiler::worker_main();
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let component = component()?;
    let (bare, naked) = (bare_us(&component, true)?, bare_us(&component, false)?);
    let ours = Ours::start(&component)?;
    ours.run(1, 2_000, false)?;
    let (here, _) = ours.run(1, CALLS, true)?;
    let (single_cpu, single_wall) = ours.run(1, CALLS, false)?;
    let (many_cpu, many_wall) = ours.run(CALLERS, CALLS, false)?;
    // Again at the end, so that a machine that warms up or slows down shows.
    let bare = bare.min(bare_us(&component, true)?);
    let naked = naked.min(bare_us(&component, false)?);
    line("action call: processor time", here, Some(bare), "<= 1.3 x", "us");
    line("action call: calls per second and core", 1e6 / here, Some(1e6 / bare), ">= 30000", "1/s");
    line("action call beside wasmtime without fuel, epochs and async", here, Some(naked), "", "us");
    line(
        "action call on a guest thread, 64 callers: calls per second and core",
        1e6 / many_cpu,
        None,
        ">= 30000",
        "1/s",
    );
    line("action call on one guest thread, 64 callers: wall time", many_wall, None, "", "us");
    line("action call on a guest thread, 1 caller: processor time", single_cpu, None, "", "us");
    line("action call on a guest thread, 1 caller: latency", single_wall, None, "", "us");
    Ok(())
}

fn line(what: &str, ours: f64, reference: Option<f64>, target: &str, unit: &str) {
    let ratio = reference.map(|reference| ours / reference);
    println!(
        "{}",
        json!({
            "row": 1, "what": what, "ours": ours, "reference": reference, "ratio": ratio, "target": target, "unit": unit,
        })
    );
}

fn component() -> Result<Vec<u8>> {
    let mut resolve = wit_parser::Resolve::default();
    let (package, _) = resolve.push_path(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../wit/0.1.0"))?;
    let world = resolve.select_world(&[package], Some("action-plugin"))?;
    let mut module = wat::parse_str(ECHO)?;
    wit_component::embed_component_metadata(&mut module, &resolve, world, wit_component::StringEncoding::UTF8)?;
    let component = wit_component::ComponentEncoder::default().module(&module)?.validate(true).encode()?;
    let manifest = json!({
        "name": "acme/echo", "version": "1.0.0", "wit": "bulkhead:plugin@0.1", "title": "Echo",
        "actions": [{ "name": "echo", "title": "Echo" }],
    });
    Ok(embed_manifest(&component, &Manifest::parse(manifest.to_string().as_bytes())?)?)
}

/// The contract's types, written by hand: the reference uses nothing of ours.
#[derive(Clone, ComponentType, Lower, Lift)]
#[component(record)]
struct Transient {
    message: String,
    #[component(name = "retry-after-ms")]
    retry_after_ms: Option<u64>,
}

#[derive(Clone, ComponentType, Lower, Lift)]
#[component(variant)]
enum Failure {
    #[component(name = "invalid-input")]
    InvalidInput(String),
    #[component(name = "transient")]
    Transient(Transient),
    #[component(name = "permanent")]
    Permanent(String),
    #[component(name = "refused")]
    Refused(String),
}

#[derive(Clone, ComponentType, Lower, Lift)]
#[component(record)]
struct Context {
    org: String,
    installation: String,
    call: String,
    run: Option<String>,
    step: Option<String>,
    attempt: u32,
    #[component(name = "idempotency-key")]
    idempotency_key: String,
    #[component(name = "deadline-ms")]
    deadline_ms: u64,
    locale: Option<String>,
}

type Run = TypedFunc<(String, Context, String), (Result<String, Failure>,)>;

#[expect(clippy::disallowed_methods, reason = "the reference has to have an engine of its own")]
fn bare_us(component: &[u8], metered: bool) -> Result<f64> {
    let mut pool = PoolingAllocationConfig::new();
    pool.linear_memory_keep_resident(512 * 1024).table_keep_resident(64 * 1024).pagemap_scan(Enabled::Auto);
    let mut config = Config::new();
    config
        .concurrency_support(false)
        .consume_fuel(metered)
        .epoch_interruption(metered)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    let engine = Engine::new(&config)?;
    let component = Component::new(&engine, component)?;
    let pre: InstancePre<()> = Linker::new(&engine).instantiate_pre(&component)?;
    let interface = component.get_export_index(None, "bulkhead:plugin/action@0.1.0").context("no export")?;
    let index = component.get_export_index(Some(&interface), "run").context("no function")?;
    let context = context();
    let context = Context {
        org: context.org,
        installation: context.installation,
        call: context.call,
        run: context.run,
        step: context.step,
        attempt: context.attempt,
        idempotency_key: context.idempotency_key,
        deadline_ms: 10_000,
        locale: context.locale,
    };
    let one = async || -> Result<()> {
        let mut store = Store::new(&engine, ());
        let arguments = ("echo".to_owned(), context.clone(), INPUT.to_owned());
        let (result,) = if metered {
            store.set_fuel(500_000_000)?;
            store.set_epoch_deadline(1_000_000);
            let instance = pre.instantiate_async(&mut store).await?;
            let run: Run = instance.get_typed_func(&mut store, index)?;
            run.call_async(&mut store, arguments).await?
        } else {
            let instance = pre.instantiate(&mut store)?;
            let run: Run = instance.get_typed_func(&mut store, index)?;
            run.call(&mut store, arguments)?
        };
        ensure!(result.is_ok_and(|output| output == INPUT), "the guest did not echo");
        Ok(())
    };
    tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
        for _ in 0..2_000 {
            one().await?;
        }
        let began = cpu()?;
        for _ in 0..CALLS {
            one().await?;
        }
        Ok(us(cpu()?.saturating_sub(began), CALLS))
    })
}

fn context() -> CallContext {
    CallContext {
        org: "org_01jd0000000000000000000000".to_owned(),
        installation: "inst_01jd0000000000000000000000".to_owned(),
        call: "call_01jd0000000000000000000000".to_owned(),
        run: Some("run_01jd0000000000000000000000".to_owned()),
        step: Some("notify".to_owned()),
        attempt: 1,
        idempotency_key: "run_01jd0000000000000000000000/notify".to_owned(),
        locale: None,
    }
}

/// The runtime as the server starts it, with one guest thread.
struct Ours {
    tokio: tokio::runtime::Runtime,
    runtime: Runtime,
    prepared: Arc<Prepared>,
    _directory: tempfile::TempDir,
}

impl Ours {
    fn start(component: &[u8]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let config = RuntimeConfig {
            cache_dir: directory.path().to_owned(),
            seal_key: [1; 32],
            compiler: CompilerCommand { program: std::env::current_exe()?, args: vec!["compile".into()] },
            guest_threads: 1,
            prepared_bytes_max: 64 * 1024 * 1024,
            egress: EgressConfig::new(Arc::new(SystemResolver::from_system()?)),
        };
        let runtime = Runtime::start(config, Ambient::system())?;
        let bytes = component.to_vec();
        let prepared = tokio.block_on(runtime.prepare(Digest::of(component), async { Ok(bytes) }))?;
        Ok(Self { tokio, runtime, prepared, _directory: directory })
    }

    /// Processor and wall time of one call, in microseconds.
    fn run(&self, callers: u32, calls: u32, here: bool) -> Result<(f64, f64)> {
        let each = calls / callers;
        let (began, clock) = (cpu()?, Instant::now());
        self.tokio.block_on(async {
            let work = (0..callers).map(|_| async {
                for _ in 0..each {
                    let report = if here {
                        self.runtime.call_here(&self.prepared, request()).await
                    } else {
                        self.runtime.call(&self.prepared, request()).await
                    };
                    ensure!(
                        report.outcome == Outcome::Returned && report.output.as_deref() == Some(INPUT),
                        "{report:?}"
                    );
                }
                Ok(())
            });
            futures_util::future::try_join_all(work).await
        })?;
        Ok((us(cpu()?.saturating_sub(began), each * callers), us(clock.elapsed(), each * callers)))
    }
}

fn request() -> CallRequest {
    CallRequest {
        kind: ContributionKind::Action,
        contribution: "echo".to_owned(),
        context: context(),
        settings: "{}".to_owned(),
        input: INPUT.to_owned(),
        grants: Arc::new(EffectiveGrants::default()),
        secrets: Arc::new(NoSecrets),
        limits: Limits::default_for(ContributionKind::Action),
        control: CallControl::new(),
    }
}

fn us(time: Duration, calls: u32) -> f64 {
    time.as_secs_f64() * 1e6 / f64::from(calls)
}

/// Processor time of this process so far: `utime` and `stime` of Linux's `/proc/self/stat`, in ticks of 10 ms.
fn cpu() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("processor time is read from /proc")?;
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|field| field.parse::<u64>().ok()).context("no number");
    Ok(Duration::from_millis((ticks()? + ticks()?) * 10))
}
