//! Performance row 9: claiming 200,000 ready jobs behind 100,000 future and 100,000 blocked ones, beside the same without those.
//!
//! Both queues lie beside each other and are claimed from in turns, so that a machine that slows down slows both. Prints one JSON
//! object a line (`bulkhead_test_support::measure`).

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{OrgId, WorkerId};
use bulkhead_model::job::{Lane, Lease};
use bulkhead_model::permission::{SystemReason, SystemScope};
use bulkhead_store::job::{Claim, Turn};
use bulkhead_store::{Database, Store, StoreConfig, StoreError};
use bulkhead_test_support::measure::{self, Figure, Processors, disk_rate};

/// Organizations, among which all jobs are spread.
const ORGS: u32 = 100;
const READY: u32 = 200_000;
/// Of each kind.
const IN_THE_WAY: u32 = 100_000;
/// Organizations in one claim, and jobs of each: what a worker with 64 free slots asks for.
const TURNS: usize = 32;
const QUOTA: u32 = 2;
/// Claims of one turn of a queue, and turns of each.
const CLAIMS: u32 = 50;
const ROUNDS: u32 = 8;

type Failure = Box<dyn std::error::Error>;

const JOBS: SystemScope = SystemScope::new(SystemReason::Jobs);

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(run())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Failure> {
    let dir = tempfile::tempdir_in(std::env::current_dir()?)?;
    let disk = disk_rate(dir.path())?;
    if measure::wants_sqlite() {
        let mut queues = Vec::new();
        for (name, in_the_way) in [("with", IN_THE_WAY), ("without", 0)] {
            let dir = dir.path().join(name);
            let database = Database::Sqlite { dir: dir.clone() };
            let open = || Store::open(StoreConfig { database: database.clone(), connections_max: 2 });
            open().await?.close().await;
            fill_sqlite(&dir, in_the_way)?;
            queues.push(Queue::new(open().await?).await?);
        }
        compare("SQLite", &mut queues, &Processors::own(), disk).await?;
    }
    if let Some(server) = measure::wanted_postgres() {
        let databases = [server.create_database()?, server.create_database()?];
        let mut queues = Vec::new();
        for (database, in_the_way) in databases.iter().zip([IN_THE_WAY, 0]) {
            let owner_url = Some(database.url().to_owned());
            let config = Database::Postgres { url: None, owner_url, app_password: "measured".into() };
            let store = Store::open(StoreConfig { database: config, connections_max: 4 }).await?;
            for statement in postgres_rows(in_the_way) {
                database.execute(&statement)?;
            }
            queues.push(Queue::new(store).await?);
        }
        compare("PostgreSQL", &mut queues, &Processors::with_server(&databases[0]), disk).await?;
    }
    Ok(())
}

fn org(number: u32) -> OrgId {
    OrgId::from_uuid(uuid::Uuid::from_u128(u128::from(number)))
}

/// Ids of jobs follow each other over all states.
fn states(in_the_way: u32) -> [(&'static str, u32, u32); 3] {
    [("ready", 0, READY), ("future", READY, in_the_way), ("blocked", READY + in_the_way, in_the_way)]
}

fn fill_sqlite(dir: &Path, in_the_way: u32) -> Result<(), rusqlite::Error> {
    let conn = rusqlite::Connection::open(dir.join("bulkhead.sqlite"))?;
    let mut text = String::from("begin;");
    write!(
        text,
        "with recursive n (n) as (select 0 union all select n + 1 from n where n + 1 < {ORGS})
         insert into organization (id, slug, name, created_at, jobs_max) select unhex(printf('%032x', n)), 'org-' || n, 'Org', 0, 10000 from n;"
    )
    .expect("a string takes everything");
    for (state, first, count) in states(in_the_way).into_iter().filter(|(_, _, count)| *count > 0) {
        write!(
            text,
            "with recursive n (n) as (select {first} union all select n + 1 from n where n + 1 < {first} + {count})
             insert into job (org_id, id, kind, lane, state, payload, priority, run_at, group_key, group_limit, dedupe_key, attempt,
                 attempts_max, fence, created_at, updated_at)
             select unhex(printf('%032x', n % {ORGS})), unhex(printf('%032x', n)), 'advance_run', 'interactive', '{state}',
                 '{{\"kind\":\"advance_run\"}}', 100, case when '{state}' = 'future' then 4000000000000000 else n end,
                 case when '{state}' = 'blocked' then 'wf_' || (n % 1000) end, case when '{state}' = 'blocked' then 1 end,
                 'run_' || n, 0, 25, 0, 0, 0 from n;"
        )
        .expect("a string takes everything");
    }
    conn.execute_batch(&(text + "commit;"))
}

fn postgres_rows(in_the_way: u32) -> Vec<String> {
    let id = |of: &str| format!("cast(lpad(to_hex({of}), 32, '0') as uuid)");
    let mut statements = vec![format!(
        "set app.scope = 'admin'; insert into organization (id, slug, name, created_at, jobs_max)
             select {}, 'org-' || n, 'Org', now(), 10000 from generate_series(0, {ORGS} - 1) as n",
        id("n")
    )];
    for (state, first, count) in states(in_the_way).into_iter().filter(|(_, _, count)| *count > 0) {
        statements.push(format!(
            "set app.scope = 'jobs'; insert into job (org_id, id, kind, lane, state, payload, priority, run_at, group_key, group_limit,
                 dedupe_key, attempt, attempts_max, fence, created_at, updated_at)
             select {}, {}, 'advance_run', 'interactive', '{state}', '{{\"kind\":\"advance_run\"}}', 100,
                 case when '{state}' = 'future' then now() + interval '1 year' else now() - interval '1 day' + n * interval '1 millisecond' end,
                 case when '{state}' = 'blocked' then 'wf_' || (n % 1000) end, case when '{state}' = 'blocked' then 1 end,
                 'run_' || n, 0, 25, 0, now(), now()
             from generate_series({first}, {first} + {count} - 1) as n",
            id(&format!("n % {ORGS}")),
            id("n")
        ));
    }
    // What autovacuum does after so many rows.
    statements.push("vacuum analyze job".to_owned());
    statements
}

/// One queue and its worker.
struct Queue {
    store: Store,
    worker: WorkerId,
    ambient: Ambient,
    next_org: u32,
    claiming: Duration,
    jobs: usize,
}

impl Queue {
    async fn new(store: Store) -> Result<Self, StoreError> {
        let ambient = Ambient::system();
        let worker = WorkerId::new(&ambient);
        store
            .write_locked(&JOBS, (worker, ambient.now()), |tx, (worker, now)| {
                Box::pin(async move { tx.insert_worker(*worker, "bench", *now, Duration::from_hours(1)).await })
            })
            .await?;
        Ok(Self { store, worker, ambient, next_org: 0, claiming: Duration::ZERO, jobs: 0 })
    }

    async fn claim(&mut self) -> Result<(), StoreError> {
        let mut turns = Vec::with_capacity(TURNS);
        for _ in 0..TURNS {
            turns.push(Turn { org: org(self.next_org), quota: QUOTA });
            self.next_org = (self.next_org + 1) % ORGS;
        }
        let began = Instant::now();
        let args = (self.worker, turns, self.ambient.now());
        let claim: Claim = self
            .store
            .write_locked(&JOBS, args, |tx, (worker, turns, now)| {
                Box::pin(
                    async move { tx.claim_jobs(*worker, Lane::Interactive, turns, *now, Duration::from_mins(2)).await },
                )
            })
            .await?;
        self.claiming += began.elapsed();
        self.jobs += claim.jobs.len();
        // Done at once, so that what is held does not grow; not part of the figure.
        let leases: Vec<Lease> = claim.jobs.into_iter().map(|job| job.lease).collect();
        self.store
            .write_locked(&JOBS, (leases, self.ambient.now()), |tx, (leases, now)| {
                Box::pin(async move {
                    for lease in leases {
                        tx.finish_job(lease, *now).await?;
                    }
                    Ok::<_, StoreError>(())
                })
            })
            .await
    }

    /// Jobs claimed a second so far.
    fn rate(&self) -> f64 {
        f64::from(u32::try_from(self.jobs).unwrap_or(u32::MAX)) / self.claiming.as_secs_f64()
    }
}

async fn compare(name: &str, queues: &mut [Queue], processors: &Processors, disk: f64) -> Result<(), Failure> {
    let before = processors.used();
    for _ in 0..ROUNDS {
        for queue in &mut *queues {
            for _ in 0..CLAIMS {
                queue.claim().await?;
            }
        }
    }
    let jobs: usize = queues.iter().map(|queue| queue.jobs).sum();
    let cpu_s = processors.used().saturating_sub(before).as_secs_f64() / f64::from(u32::try_from(jobs)?);
    Figure::new(
        9,
        format!("claims of {READY} ready jobs behind {IN_THE_WAY} future and {IN_THE_WAY} blocked, {name}"),
        queues[0].rate(),
        "jobs/s",
    )
    .beside(queues[1].rate())
    .target("within 10 % of without")
    .disk(disk)
    .cpu_s(cpu_s)
    .conditions(format!(
        "{ORGS} organizations, {TURNS} in a claim, {QUOTA} jobs of each; {} and {} jobs",
        queues[0].jobs, queues[1].jobs
    ))
    .print()?;
    for queue in queues {
        queue.store.close().await;
    }
    Ok(())
}
