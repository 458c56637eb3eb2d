//! Rows 6 and 7: runs one after the other and many at once, beside the disk (SQLite) and the same writes by `pgbench` (PostgreSQL).

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context as _, Result};
use bulkhead_app::worker::Slots;
use bulkhead_test_support::measure::{Figure, Processors, disk_rate, pgbench_rate, quantile};
use bulkhead_test_support::postgres::{Database, Server};

use crate::site::{CONNECTIONS, Ground, Site, Tenant, counts};

/// Commits of a run that the target counts: its start and three steps.
const COMMITS: f64 = 4.0;
/// Runs one after the other.
const SEQUENTIAL: u32 = 300;
/// Callers and runs.
const CROWDS: [(u64, u64); 2] = [(32, 3_000), (128, 6_000)];
/// How long the reference runs for each number of clients.
const REFERENCE_S: u32 = 5;

/// Times of one place.
struct Measured {
    /// Milliseconds and processor seconds of a run.
    sequential: (f64, f64),
    median_ms: f64,
    /// Runs a second and processor seconds of a run, for each crowd.
    crowds: Vec<(f64, f64)>,
}

async fn measured(site: &Site, tenant: &Tenant, processors: &Processors) -> Result<Measured> {
    let mut target = counts().ended();
    for _ in 0..30 {
        site.start_run(tenant).await?;
        target += 1;
        counts().wait_ended(target).await?;
    }
    let (began, before) = (Instant::now(), processors.used());
    let mut each_ms = Vec::new();
    for _ in 0..SEQUENTIAL {
        let began = Instant::now();
        site.start_run(tenant).await?;
        target += 1;
        counts().wait_ended(target).await?;
        each_ms.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    let cpu_s = processors.used().saturating_sub(before).as_secs_f64() / f64::from(SEQUENTIAL);
    let sequential = (began.elapsed().as_secs_f64() * 1000.0 / f64::from(SEQUENTIAL), cpu_s);
    let mut crowds = Vec::new();
    for (callers, runs) in CROWDS {
        let (began, before) = (Instant::now(), processors.used());
        site.start_runs(tenant, callers, runs).await?;
        target += runs;
        counts().wait_ended(target).await?;
        let runs = f64::from(u32::try_from(runs)?);
        let cpu_s = processors.used().saturating_sub(before).as_secs_f64() / runs;
        crowds.push((runs / began.elapsed().as_secs_f64(), cpu_s));
    }
    Ok(Measured { sequential, median_ms: quantile(&mut each_ms, 0.5), crowds })
}

pub(crate) async fn sqlite() -> Result<()> {
    let dir = tempfile::tempdir_in(std::env::current_dir()?)?;
    let disk_before = disk_rate(dir.path())?;
    let site = Site::open(dir.path(), Ground::sqlite(dir.path())).await?;
    let tenant = site.echo_tenant("acme", 3).await?;
    site.app.set_queue_share(tenant.org, 1, 1_000).await?;
    site.start_worker(Slots::default()).await?;
    let found = measured(&site, &tenant, &Processors::own()).await?;
    let stats = site.store.writer_stats().context("SQLite has a writer")?;
    site.close().await;
    // Again at the end: a disk that others use changes its mind.
    let disk_after = disk_rate(dir.path())?;
    let disk = disk_before.midpoint(disk_after);
    let conditions = format!(
        "SQLite WAL synchronous=FULL, disk {disk_before:.0} then {disk_after:.0} fdatasync/s, three calls of a WebAssembly echo a run; \
         {} writes in {} commits in all",
        stats.writes, stats.commits
    );
    let reference_ms = COMMITS * 1000.0 / disk;
    Figure::new(6, "three-step run, one after the other", found.sequential.0, "ms/run")
        .beside(reference_ms)
        .target("<= 1.2 x 4 synced appends")
        .disk(disk)
        .cpu_s(found.sequential.1)
        .conditions(format!("{conditions}; median {:.3} ms", found.median_ms))
        .print()?;
    for ((callers, _), (rate, cpu_s)) in CROWDS.into_iter().zip(found.crowds) {
        Figure::new(6, format!("three-step runs, {callers} callers"), rate, "runs/s")
            .beside(disk)
            .target(if callers == 128 { ">= 2000 runs/s" } else { "-" })
            .disk(disk)
            .cpu_s(cpu_s)
            .conditions(conditions.as_str())
            .print()?;
    }
    Ok(())
}

pub(crate) async fn postgres(server: &'static Server) -> Result<()> {
    let dir = tempfile::tempdir_in(std::env::current_dir()?)?;
    let disk = disk_rate(dir.path())?;
    let database = server.create_database()?;
    let site = Site::open(dir.path(), Ground::postgres(database.url())).await?;
    let tenant = site.echo_tenant("acme", 3).await?;
    site.app.set_queue_share(tenant.org, 1, 1_000).await?;
    site.start_worker(Slots::default()).await?;
    let processors = Processors::with_server(&database);
    let found = measured(&site, &tenant, &processors).await?;
    site.close().await;
    let script = reference(&database, &tenant)?;
    // The owner is under row-level security as well.
    let settings = format!("-c app.org_id={}", tenant.org.uuid());
    let alone = pgbench_rate(&database, &settings, &script, 1, REFERENCE_S)?;
    let conditions = format!(
        "PostgreSQL {}, fsync on, {CONNECTIONS} connections; the reference is pgbench with the same rows in four transactions a run; the \
         machine's disk {disk:.0} fdatasync/s",
        server.version()
    );
    Figure::new(7, "three-step runs, one after the other", 1000.0 / found.sequential.0, "runs/s")
        .beside(alone)
        .target(">= 0.7 x")
        .disk(disk)
        .cpu_s(found.sequential.1)
        .conditions(format!("{conditions}; one client; median {:.3} ms", found.median_ms))
        .print()?;
    for ((callers, _), (rate, cpu_s)) in CROWDS.into_iter().zip(found.crowds) {
        let reference = pgbench_rate(&database, &settings, &script, CONNECTIONS, REFERENCE_S)?;
        Figure::new(7, format!("three-step runs, {callers} callers"), rate, "runs/s")
            .beside(reference)
            .target(">= 0.7 x")
            .disk(disk)
            .cpu_s(cpu_s)
            .conditions(conditions.as_str())
            .print()?;
    }
    Ok(())
}

/// A script for `pgbench` that writes the rows of one run, as large as those that our last run left, in its four transactions: no
/// reads, no claim, no row-level security's context, no plugin.
fn reference(database: &Database<'_>, tenant: &Tenant) -> Result<String> {
    let org = format!("'{}'", tenant.org.uuid());
    // `pgbench` reads `:name` as a variable, in literals too.
    let literal = |of: &str| -> Result<String> {
        let query = format!("set app.org_id = {org}; select {of} limit 1");
        let printed = database.execute(&query)?;
        let text = printed.lines().last().unwrap_or_default();
        Ok(format!("'{}'", text.replace('\'', "''").replace(':', ": ")))
    };
    let (trigger, state) = (literal("trigger_data from run")?, literal("state from run order by id desc")?);
    let (usage, limits, input) =
        (literal("usage from call")?, literal("limits from call")?, literal("input from call")?);
    let detail = literal("detail from run_event where kind = 'step'")?;
    let (installation, plugin) = (literal("installation_id from call")?, literal("plugin_id from call")?);
    let workflow = format!("'{}'", tenant.workflow.uuid());
    let id = |number: u32| format!("cast(lpad(to_hex(cast(:r as bigint) + {number}), 32, '0') as uuid)");
    let (run, job) = (id(0), id(0));
    let event = |seq: u32, kind: &str, detail: &str| {
        format!(
            "insert into run_event (org_id, run_id, seq, kind, detail, created_at) values ({org}, {run}, {seq}, '{kind}', {detail}, now());\n"
        )
    };
    let mut script = format!(
        "\\set r random(1, 1000000000000000) * 8\n\
         begin;\n\
         insert into run (org_id, id, workflow_id, version, status, trigger_kind, trigger_data, state, generation, log_seq, created_at, updated_at) \
             values ({org}, {run}, {workflow}, 1, 'queued', 'api', {trigger}, {state}, 0, 1, now(), now());\n\
         {}\
         insert into job (org_id, id, kind, lane, state, payload, priority, run_at, dedupe_key, attempt, attempts_max, fence, worker_id, \
             deadline_at, created_at, updated_at) values ({org}, {job}, 'advance_run', 'interactive', 'leased', '{{}}', 100, now(), \
             cast({run} as text), 1, 25, 1, {run}, now(), now(), now());\n\
         commit;\n",
        event(1, "queued", "'{}'")
    );
    for step in 1..=3 {
        let call = id(step);
        let job_statement = if step < 3 {
            format!(
                "update job set deadline_at = now(), attempt = 1, updated_at = now() where org_id = {org} and id = {job} and fence = 1;\n"
            )
        } else {
            format!("delete from job where org_id = {org} and id = {job} and fence = 1;\n")
        };
        write!(
            script,
            "begin;\n{job_statement}\
             insert into call (org_id, id, installation_id, plugin_id, run_id, step_id, attempt, contribution, grant_version, outcome, input, \
                 output, usage, limits, log, egress, refusals, created_at) values ({org}, {call}, {installation}, {plugin}, {run}, 's{step}', 1, \
                 'it', 1, 'returned', {input}, {input}, {usage}, {limits}, '[false, []]', '[]', '[]', now());\n\
             insert into step (org_id, run_id, step_id, iteration, position, status, outcome, attempts, input, output, usage, call_id, \
                 started_at, finished_at) values ({org}, {run}, 's{step}', 0, {step}, 'succeeded', 'returned', 1, {input}, {input}, {usage}, \
                 {call}, now(), now());\n{}",
            event(step + 1, "step", &detail)
        )
        .expect("a string takes everything");
        if step == 3 {
            script += &event(5, "succeeded", "'{}'");
            writeln!(
                script,
                "insert into event (org_id, id, kind, subject, detail, created_at) values ({org}, {run}, 'run.succeeded', cast({run} as text), \
                 '{{}}', now());"
            )
            .expect("a string takes everything");
        }
        let status = if step == 3 { "succeeded" } else { "running" };
        write!(
            script,
            "update run set status = '{status}', state = {state}, log_seq = {step}, updated_at = now() where org_id = {org} and id = {run};\n\
             commit;\n"
        )
        .expect("a string takes everything");
    }
    Ok(script)
}
