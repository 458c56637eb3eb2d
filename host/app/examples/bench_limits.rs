//! Performance row 0: what a rate limit costs each request: one process's memory, and a bucket that nodes share (PostgreSQL), asked seldom
//! and often. It is in no row of the table of targets, and so in row 0.
//!
//! Prints one JSON object a line (`bulkhead_test_support::measure`).

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use bulkhead_app::limits::{Ask, Counted, Limiter};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{ApiKeyId, OrgId};
use bulkhead_model::rate::{Policy, Rate, RateLimits};
use bulkhead_store::{Database, Store, StoreConfig};
use bulkhead_test_support::measure::{self, Figure};

const ASKS: usize = 200_000;
/// Fewer where each may be a transaction.
const SHARED_ASKS: usize = 5_000;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(Box::pin(run()))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    if !measure::wants_row(0) {
        return Ok(());
    }
    if measure::wants_sqlite() {
        let dir = tempfile::tempdir_in(std::env::current_dir()?)?;
        let database = Database::Sqlite { dir: dir.path().join("data") };
        let store = Store::open(StoreConfig { database, connections_max: 4 }).await?;
        let took = measure_asks(&store, ASKS, 1, Duration::ZERO).await?;
        print("in memory (SQLite)", took)?;
        let took = measure_asks(&store, ASKS, 10_000, Duration::ZERO).await?;
        print("in memory (SQLite), 10,000 keys in turn", took)?;
        store.close().await;
    }
    let Some(server) = measure::wanted_postgres() else { return Ok(()) };
    let database = server.create_database()?;
    let config = Database::Postgres {
        url: None,
        owner_url: Some(database.url().to_owned()),
        app_password: "bench_limits".to_owned(),
    };
    let store = Store::open(StoreConfig { database: config, connections_max: 4 }).await?;
    print(
        "shared (PostgreSQL), one key asked as fast as it goes",
        measure_asks(&store, SHARED_ASKS, 1, Duration::ZERO).await?,
    )?;
    print("shared (PostgreSQL), 1,000 keys in turn", measure_asks(&store, SHARED_ASKS, 1_000, Duration::ZERO).await?)?;
    let pause = Duration::from_millis(50);
    print("shared (PostgreSQL), one key asked 20 times a second", measure_asks(&store, 100, 1, pause).await?)?;
    store.close().await;
    Ok(())
}

/// Microseconds of each ask by a key and its organization.
async fn measure_asks(store: &Store, asks: usize, keys: usize, pause: Duration) -> Result<Vec<f64>> {
    let ambient = Ambient::system();
    let limiter = Limiter::new(RateLimits::all(Rate::per_minute(5_000_000, 1_000_000)), [1; 32]);
    let org = Counted::Org(OrgId::new(&ambient));
    let keys: Vec<_> = (0..keys).map(|_| Counted::Key(ApiKeyId::new(&ambient))).collect();
    let mut micros = Vec::with_capacity(asks);
    for n in 0..asks {
        let counted = keys[n % keys.len()];
        let asked = [
            Ask { policy: Policy::Key, counted, cost: 1 },
            Ask { policy: Policy::Organization, counted: org, cost: 1 },
        ];
        let began = Instant::now();
        let meters = limiter.take((store, &ambient), &asked, false).await;
        micros.push(began.elapsed().as_secs_f64() * 1e6);
        black_box(meters.map_err(|refused| anyhow::anyhow!("{refused:?}"))?);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
    Ok(micros)
}

fn print(what: &str, mut micros: Vec<f64>) -> Result<()> {
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        let value = measure::quantile(&mut micros, quantile);
        Figure::new(0, format!("a request's rate limit, key and organization, {what}, {name}"), value, "µs").print()?;
    }
    Ok(())
}
