//! Row 11: how long small tenants' runs wait for their first step, alone and beside one with a long queue.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bulkhead_app::worker::Slots;
use bulkhead_test_support::measure::{Figure, Processors, disk_rate, quantile, wants_sqlite};
use bulkhead_test_support::postgres::Server;

use crate::site::{Ground, Site, Tenant, counts};

/// Small tenants, and how many runs they start in all, one after each pause.
const SMALL: usize = 10;
const RUNS: usize = 500;
const PAUSE: Duration = Duration::from_millis(10);
/// Runs that the large one has queued.
const LARGE_RUNS: u64 = 50_000;
const CALLERS: u64 = 32;

pub(crate) async fn measure(server: Option<&'static Server>) -> Result<()> {
    let dir = tempfile::tempdir_in(std::env::current_dir()?)?;
    let disk = disk_rate(dir.path())?;
    if wants_sqlite() {
        let (alone, beside) = (dir.path().join("alone"), dir.path().join("beside"));
        let grounds = [Ground::sqlite(&alone), Ground::sqlite(&beside)];
        compare("SQLite", dir.path(), grounds, Processors::own(), disk).await?;
    }
    if let Some(server) = server {
        let (alone, beside) = (server.create_database()?, server.create_database()?);
        let processors = Processors::with_server(&alone);
        let grounds = [Ground::postgres(alone.url()), Ground::postgres(beside.url())];
        compare("PostgreSQL", dir.path(), grounds, processors, disk).await?;
    }
    Ok(())
}

async fn compare(name: &str, dir: &Path, grounds: [Ground; 2], processors: Processors, disk: f64) -> Result<()> {
    let [alone, beside] = grounds;
    let site = Site::open(dir, alone).await?;
    let small = small_tenants(&site).await?;
    site.start_worker(Slots::default()).await?;
    let mut alone_ms = waits_ms(&site, &small).await?;
    site.close().await;

    let site = Site::open(dir, beside).await?;
    let small = small_tenants(&site).await?;
    let large = site.echo_tenant("large", 3).await?;
    // Without a worker they wait.
    site.start_runs(&large, CALLERS, LARGE_RUNS).await?;
    let (before, used) = (counts().ended(), processors.used());
    site.start_worker(Slots::default()).await?;
    let mut beside_ms = waits_ms(&site, &small).await?;
    let ended = counts().ended() - before;
    let cpu_s = processors.used().saturating_sub(used).as_secs_f64() / f64::from(u32::try_from(ended)?);
    site.close().await;

    let left = LARGE_RUNS.saturating_sub(ended);
    let median_ms = (quantile(&mut alone_ms, 0.5), quantile(&mut beside_ms, 0.5));
    Figure::new(11, format!("small tenants' wait beside a long queue, p95, {name}"), quantile(&mut beside_ms, 0.95), "ms")
        .beside(quantile(&mut alone_ms, 0.95))
        .target("<= 1.5 x")
        .disk(disk)
        .cpu_s(cpu_s)
        .conditions(format!(
            "{SMALL} tenants, {RUNS} runs, one each {} ms; one tenant with {LARGE_RUNS} queued runs, of which {left} were left at the end; \
             from the request to the first step's call; medians {:.2} and {:.2} ms",
            PAUSE.as_millis(),
            median_ms.1,
            median_ms.0
        ))
        .print()?;
    Ok(())
}

async fn small_tenants(site: &Site) -> Result<Vec<Tenant>> {
    let mut tenants = Vec::new();
    for number in 0..SMALL {
        tenants.push(site.echo_tenant(&format!("small-{number}"), 3).await?);
    }
    Ok(tenants)
}

/// For each run, how long after its request its first call began.
async fn waits_ms(site: &Site, tenants: &[Tenant]) -> Result<Vec<f64>> {
    let mut runs = Vec::new();
    let mut tick = tokio::time::interval(PAUSE);
    for tenant in tenants.iter().cycle().take(RUNS) {
        tick.tick().await;
        runs.push((tenant, site.start_run(tenant).await?));
    }
    let mut waits_ms = Vec::new();
    for (tenant, run) in runs {
        let shown = loop {
            let shown = site.app.show_run(&tenant.caller, tenant.org, run).await?;
            if shown.run.status.is_final() {
                break shown;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        let began = shown.steps.first().and_then(|step| step.started_at).context("a run without a step")?;
        waits_ms.push(began.since(shown.run.created_at).as_secs_f64() * 1000.0);
    }
    Ok(waits_ms)
}
