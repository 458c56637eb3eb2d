//! The same seeded sequence of operations on both databases: each answer must agree, and every row of every table at each
//! checkpoint.
//!
//! Two workers claim, commit, release, lose their leases and are rescued; runs are started, cancelled and retried; the clock
//! moves. `BULKHEAD_TEST_OPERATIONS` and `BULKHEAD_TEST_SEED` (`cargo xtask soak`) make it longer and another one.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::grant::GrantVersion;
use bulkhead_model::id::{OrgId, RunId, WorkerId};
use bulkhead_model::job::{JobPayload, Lane, Lease};
use bulkhead_model::permission::OrgScope;
use bulkhead_model::run::RunStatus;
use bulkhead_model::time::Timestamp;
use bulkhead_store::StoreError;
use bulkhead_store::job::{Attempt, NewJob};
use bulkhead_store::page::PageRequest;
use bulkhead_store::run::RunEvent;

use crate::support::{JOBS, Tenant, TestStore, call, job, run, step};

/// Operations in the suite. The long run is the soak's.
const OPERATIONS: u32 = 10_000;
/// Between two comparisons of everything that is stored.
const CHECKPOINT_EVERY: u32 = 1_000;
/// What was done before two answers differed, shown with them.
const HISTORY: usize = 20;
/// Long enough never to pass during a test.
const DEADLINE: Duration = Duration::from_hours(1);

/// A number from the runner.
#[expect(
    clippy::disallowed_methods,
    reason = "test processes have no configuration file; the runner speaks by environment"
)]
fn told_by_runner<T: std::str::FromStr>(name: &str, otherwise: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// One database under the sequence. Both draw from generators of the same seed, so they see the same ids and times.
struct Subject {
    test: TestStore,
    tenants: Vec<Tenant>,
    workers: [WorkerId; 2],
    /// Leases with the run that their job is about. Old ones stay among them.
    leases: Vec<(Lease, RunId)>,
    runs: Vec<(usize, RunId)>,
}

/// What an operation answered, in words that both databases share.
fn told<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        // The constraint's name differs between the databases.
        Err(StoreError::Conflict { .. }) => "conflict".to_owned(),
        Err(error @ (StoreError::NotFound { .. } | StoreError::LostLease | StoreError::Misuse(_))) => {
            format!("{error:?}")
        }
        Err(other) => panic!("{other:?}"),
    }
}

impl Subject {
    async fn new(test: TestStore) -> Self {
        let tenants = vec![test.tenant("a").await, test.tenant("b").await];
        let runs = tenants.iter().enumerate().map(|(n, tenant)| (n, tenant.run.id)).collect();
        let workers = [test.worker().await, test.worker().await];
        Self { test, tenants, workers, leases: Vec::new(), runs }
    }

    /// Does one operation, chosen by `dice`.
    async fn step(&mut self, dice: &Ambient) -> String {
        let pick = |bound: usize| usize::try_from(dice.below(bound as u64)).unwrap();
        let org = pick(self.tenants.len());
        let scope = self.tenants[org].scope();
        match pick(16) {
            0 | 1 => self.start_run(org, pick(40)).await,
            2 => self.enqueue(&scope, dice).await,
            3..=5 => self.claim(pick(2), u32::try_from(pick(5)).unwrap()).await,
            6..=9 if !self.leases.is_empty() => {
                // Now and then one that was used before, or the wrong organization's scope.
                let at = pick(self.leases.len());
                let used = if pick(4) == 0 { self.leases[at].clone() } else { self.leases.remove(at) };
                let scope = if pick(8) == 0 { scope } else { crate::support::scope(used.0.org) };
                if pick(3) == 0 {
                    self.leave(&used.0, &scope, pick(5), dice).await
                } else {
                    self.commit_step(&used, &scope, pick(3), dice).await
                }
            }
            10 => {
                // Now and then past everything that waits.
                let seconds = if pick(20) == 0 { 7_200 } else { dice.below(40) };
                self.test.ambient.advance(Duration::from_secs(seconds));
                self.housekeeping(pick(6), pick(2)).await
            }
            11 => self.change_installation(org, i64::try_from(pick(3)).unwrap()).await,
            12 => {
                let (_, run) = self.runs[pick(self.runs.len())];
                self.save_step(&scope, run, pick(3)).await
            }
            13 => {
                let (_, run) = self.runs[pick(self.runs.len())];
                self.end_run(&scope, run, pick(3)).await
            }
            14 => {
                let (_, run) = self.runs[pick(self.runs.len())];
                self.nudge(&scope, run, pick(3)).await
            }
            _ => self.look(&scope, org, pick(4)).await,
        }
    }

    /// As the app does: the run and its job in one transaction.
    async fn start_run(&mut self, org: usize, key: usize) -> String {
        let (test, tenant) = (&self.test, &self.tenants[org]);
        let new = run(&test.ambient, tenant.workflow.id, (key > 20).then(|| format!("key-{key}")).as_deref());
        let (queued, ambient) = (job(new.id, test.ambient.now()), test.ambient.clone());
        let result = tx!(test.write, &tenant.scope(), [new, queued, ambient], |tx| {
            let is_new = tx.insert_run(new).await?;
            if is_new {
                tx.record_run_event(new.id, &RunEvent { seq: 1, ..event("queued", new.created_at) }).await?;
                tx.enqueue(queued, ambient).await?;
            }
            Ok(is_new)
        });
        if matches!(result, Ok(true)) {
            self.runs.push((org, new.id));
        }
        told(result)
    }

    async fn enqueue(&mut self, scope: &OrgScope, dice: &Ambient) -> String {
        let (test, ambient) = (&self.test, self.test.ambient.clone());
        let job = NewJob {
            payload: JobPayload::AdvanceRun { run: self.runs[0].1 },
            priority: i64::try_from(dice.below(3)).unwrap(),
            run_at: ambient.now().plus(Duration::from_secs(dice.below(60))).minus(Duration::from_secs(30)),
            dedupe_key: (dice.below(3) > 0).then(|| format!("key-{}", dice.below(4))),
            attempts_max: 3,
            group: None,
        };
        told(tx!(test.write, scope, [job, ambient], |tx| tx.enqueue(job, ambient).await))
    }

    async fn claim(&mut self, worker: usize, limit: u32) -> String {
        let (test, worker, now) = (&self.test, self.workers[worker], self.test.ambient.now());
        let claimed = tx!(test.write_locked, &JOBS, [worker, limit, now], |tx| {
            tx.promote_jobs(*now, 100).await?;
            crate::support::claim_any(tx, *worker, Lane::Interactive, *limit, *now, DEADLINE).await
        });
        for job in claimed.as_ref().unwrap() {
            let JobPayload::AdvanceRun { run } = serde_json::from_str(&job.payload).unwrap() else {
                panic!("only runs are enqueued here: {job:?}");
            };
            self.leases.push((job.lease.clone(), run));
        }
        told(claimed)
    }

    /// A step's transaction, as the engine writes it: the lease is proved, then everything or nothing.
    async fn commit_step(&mut self, used: &(Lease, RunId), scope: &OrgScope, then: usize, dice: &Ambient) -> String {
        let (test, now, (lease, run)) = (&self.test, self.test.ambient.now(), used.clone());
        let (inst, plugin) = self
            .tenants
            .iter()
            .find(|tenant| tenant.org == lease.org)
            .map(|tenant| (tenant.installation.id, tenant.plugin.id))
            .unwrap();
        let call = call(&test.ambient, inst, plugin, Some(run));
        let until = now.plus(Duration::from_secs(dice.below(90)));
        let result = tx!(test.write_locked, scope, [lease, run, inst, call, then, until, now], |tx| {
            match then {
                0 => tx.hold_lease(lease, DEADLINE, *now).await?,
                1 => tx.release_job(lease, *until, Attempt::StartsAnew, None, *now).await?,
                _ => tx.finish_job(lease, *now).await?,
            }
            let mut row = tx.lock_run(*run).await?;
            if row.status.is_final() {
                // Rolled back, lease and all.
                return Err(StoreError::Misuse("the run ended meanwhile"));
            }
            tx.lock_installation_version(*inst).await?;
            tx.record_call(call).await?;
            tx.save_step(*run, &step("send", 1, *now)).await?;
            row.log_seq += 1;
            tx.record_run_event(*run, &RunEvent { seq: row.log_seq, ..event("step", *now) }).await?;
            row.status = [RunStatus::Running, RunStatus::Waiting, RunStatus::Succeeded][*then];
            row.updated_at = *now;
            tx.update_run(&row).await
        });
        if result.is_ok() && then == 0 {
            self.leases.push(used.clone());
        }
        told(result)
    }

    async fn leave(&mut self, lease: &Lease, scope: &OrgScope, how: usize, dice: &Ambient) -> String {
        let (test, now) = (&self.test, self.test.ambient.now());
        let run_at = now.plus(Duration::from_secs(dice.below(3) * 20));
        let count =
            [Attempt::Counts, Attempt::DoesNotCount, Attempt::StartsAnew][usize::try_from(dice.below(3)).unwrap()];
        let ambient = test.ambient.clone();
        told(tx!(test.write_locked, scope, [lease, how, now, run_at, count, ambient], |tx| match how {
            0 | 1 => tx.finish_job(lease, *now).await,
            2 => tx.release_job(lease, *run_at, *count, Some("again"), *now).await,
            3 => tx.bury_job(lease, "dead", ambient).await,
            _ => tx.hold_lease(lease, Duration::from_hours(1), *now).await,
        }))
    }

    async fn housekeeping(&mut self, what: usize, worker: usize) -> String {
        let (test, now, old) = (&self.test, self.test.ambient.now(), self.workers[worker]);
        match what {
            0 => told(tx!(test.write_locked, &JOBS, [now], |tx| tx.promote_jobs(*now, 3).await)),
            1 => told(tx!(test.write_locked, &JOBS, [now], |tx| tx.free_stuck_jobs(*now).await)),
            2 => told(tx!(test.read, &JOBS, [], |tx| {
                let ready = tx.list_ready_orgs(Lane::Interactive, None, 100).await?;
                Ok((tx.next_job_at().await?, ready))
            })),
            3 | 4 if !self.leases.is_empty() => {
                // An attempt takes longer than it may: it is freed, and its worker's lease is an old one from then on.
                let lease = self.leases[0].0.clone();
                let held = tx!(test.write_locked, &JOBS, [lease, now], |tx| {
                    tx.hold_lease(lease, Duration::ZERO, *now).await
                });
                let freed = tx!(test.write_locked, &JOBS, [now], |tx| tx.free_stuck_jobs(*now).await);
                format!("{} {}", told(held), told(freed))
            }
            _ => {
                // One worker ends without handing back; the other takes over, and a new one comes in its place.
                let me = self.workers[1 - worker];
                let rescued = tx!(test.write_locked, &JOBS, [me, old, now], |tx| {
                    tx.delete_worker(*old).await?;
                    tx.recover_jobs(*me, *now).await
                });
                self.workers[worker] = test.worker().await;
                told(rescued)
            }
        }
    }

    async fn change_installation(&mut self, org: usize, behind: i64) -> String {
        let (test, tenant) = (&self.test, &self.tenants[org]);
        let (id, now) = (tenant.installation.id, test.ambient.now());
        told(tx!(test.write, &tenant.scope(), [id, behind, now], |tx| {
            let mut next = tx.require_installation(*id).await?;
            let seen = GrantVersion(next.grant_version.0 - behind);
            next.updated_at = *now;
            tx.update_installation(&next, seen).await
        }))
    }

    /// Of the organization's own run or, as often, of another's.
    async fn save_step(&mut self, scope: &OrgScope, run: RunId, which: usize) -> String {
        let test = &self.test;
        let mut row = step(["one", "Two", "\u{e9}"][which], 1, test.ambient.now());
        row.attempts = i64::try_from(which).unwrap();
        told(tx!(test.write, scope, [run, row], |tx| tx.save_step(*run, row).await))
    }

    /// Ends a run, or begins an ended one again.
    async fn end_run(&mut self, scope: &OrgScope, run: RunId, how: usize) -> String {
        let (test, now, ambient) = (&self.test, self.test.ambient.now(), self.test.ambient.clone());
        let again = job(run, now);
        told(tx!(test.write_locked, scope, [run, now, how, again, ambient], |tx| {
            let mut row = tx.lock_run(*run).await?;
            let retries = row.status.is_final();
            row.status = match how {
                _ if retries => RunStatus::Queued,
                0 => RunStatus::Cancelled,
                _ => RunStatus::Failed,
            };
            row.finished_at = (!retries).then_some(*now);
            row.log_seq += 1;
            tx.update_run(&row).await?;
            tx.remove_waiting_job("advance_run", &run.to_string()).await?;
            if retries && tx.enqueue(again, ambient).await?.is_none() {
                return Err(StoreError::Misuse("a worker still holds the run"));
            }
            Ok(())
        }))
    }

    /// What others do to a waiting job.
    async fn nudge(&mut self, scope: &OrgScope, run: RunId, what: usize) -> String {
        let (test, now, key) = (&self.test, self.test.ambient.now(), run.to_string());
        told(tx!(test.write, scope, [key, what, now], |tx| match what {
            0 => tx.hasten_job("advance_run", key, *now).await,
            1 => tx.remove_waiting_job("advance_run", key).await,
            _ => tx.is_job_held("advance_run", key).await,
        }))
    }

    async fn look(&mut self, scope: &OrgScope, org: usize, what: usize) -> String {
        let (test, page) = (&self.test, PageRequest { before: None, limit: 5 });
        let workflow = self.tenants[org].workflow.id;
        match what {
            0 => told(tx!(test.read, scope, [page], |tx| tx.list_jobs(None, *page).await)),
            1 => told(tx!(test.read, scope, [page], |tx| tx.list_jobs(Some("dead"), *page).await)),
            2 => told(tx!(test.read, scope, [page, workflow], |tx| tx.list_runs(None, Some(*workflow), *page).await)),
            _ => told(tx!(test.read, scope, [page], |tx| tx.list_runs(Some(RunStatus::Queued), None, *page).await)),
        }
    }

    /// Every row of the organizations' tables, column by column, in words that both databases share.
    async fn state(&self) -> BTreeMap<String, Vec<String>> {
        let mut state = BTreeMap::new();
        for tenant in &self.tenants {
            let rows = if self.test.store.is_postgres() {
                rows_of_postgres(&mut self.test.raw_postgres().await, tenant.org).await
            } else {
                rows_of_sqlite(&mut self.test.raw_sqlite().await, tenant.org).await
            };
            state.extend(rows.into_iter().map(|(table, rows)| (format!("{} {table}", tenant.org), rows)));
        }
        state
    }
}

fn event(kind: &str, at: Timestamp) -> RunEvent {
    RunEvent { seq: 0, kind: kind.to_owned(), detail: "{}".to_owned(), created_at: at }
}

/// A deadline goes by each database's own clock: only whether there is one can agree.
fn is_own_clock(table: &str, column: &str) -> bool {
    (table, column) == ("job", "deadline_at")
}

fn joined(table: &str, columns: &[(String, String)], text_of: impl Fn(&str, &str) -> String) -> String {
    let columns = columns.iter().map(|(column, kind)| {
        let text = if is_own_clock(table, column) { "'set'".to_owned() } else { text_of(column, kind) };
        format!("'{column}=' || case when \"{column}\" is null then 'null' else {text} end")
    });
    columns.collect::<Vec<_>>().join(" || ' ' || ")
}

fn column_of_org(columns: &[(String, String)], table: &str) -> Option<&'static str> {
    if table == "organization" {
        return Some("id");
    }
    columns.iter().any(|(column, _)| column == "org_id").then_some("org_id")
}

async fn rows_of_sqlite(conn: &mut sqlx::SqliteConnection, org: OrgId) -> BTreeMap<String, Vec<String>> {
    let tables = "select name from sqlite_master where type = 'table' and substr(name, 1, 1) <> '_' order by name";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut *conn).await.unwrap();
    let mut found = BTreeMap::new();
    for table in tables {
        let columns = "select name, type from pragma_table_info($1) order by name";
        let columns: Vec<(String, String)> = sqlx::query_as(columns).bind(&table).fetch_all(&mut *conn).await.unwrap();
        let Some(owner) = column_of_org(&columns, &table) else { continue };
        let text = joined(&table, &columns, |column, _| {
            format!(
                "case typeof(\"{column}\") when 'blob' then lower(hex(\"{column}\")) else cast(\"{column}\" as text) end"
            )
        });
        let sql = format!("select {text} from \"{table}\" where \"{owner}\" = $1");
        let rows = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(org.uuid()).fetch_all(&mut *conn).await;
        found.insert(table, sorted(rows.unwrap()));
    }
    found
}

async fn rows_of_postgres(conn: &mut sqlx::PgConnection, org: OrgId) -> BTreeMap<String, Vec<String>> {
    let context = "select set_config('app.org_id', $1, false)";
    sqlx::query(context).bind(org.uuid().to_string()).execute(&mut *conn).await.unwrap();
    let tables = "select relname::text from pg_class where relnamespace = current_schema()::regnamespace
        and relkind in ('r', 'p') and left(relname, 1) <> '_' order by 1";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut *conn).await.unwrap();
    let mut found = BTreeMap::new();
    for table in tables {
        let columns = "select column_name::text, data_type::text from information_schema.columns
            where table_schema = current_schema() and table_name = $1 order by column_name collate \"C\"";
        let columns: Vec<(String, String)> = sqlx::query_as(columns).bind(&table).fetch_all(&mut *conn).await.unwrap();
        let Some(owner) = column_of_org(&columns, &table) else { continue };
        let text = joined(&table, &columns, |column, kind| match kind {
            "uuid" => format!("replace(\"{column}\"::text, '-', '')"),
            "bytea" => format!("encode(\"{column}\", 'hex')"),
            "timestamp with time zone" => format!("(extract(epoch from \"{column}\") * 1000000)::bigint::text"),
            "boolean" => format!("\"{column}\"::int::text"),
            _ => format!("\"{column}\"::text"),
        });
        let sql = format!("select {text} from \"{table}\" where \"{owner}\" = $1");
        let rows = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(org.uuid()).fetch_all(&mut *conn).await;
        found.insert(table, sorted(rows.unwrap()));
    }
    found
}

fn sorted(mut rows: Vec<String>) -> Vec<String> {
    rows.sort();
    rows
}

/// The rows that one has and the other has not.
async fn assert_same_rows(subjects: &[Subject; 2], moment: &str) -> usize {
    let [sqlite, postgres] = subjects;
    let (sqlite, postgres) = (sqlite.state().await, postgres.state().await);
    assert_eq!(sqlite.keys().collect::<Vec<_>>(), postgres.keys().collect::<Vec<_>>(), "the tables");
    for (table, left) in &sqlite {
        let right = &postgres[table];
        let only = |these: &[String], those: &[String]| -> Vec<String> {
            these.iter().filter(|row| those.binary_search(row).is_err()).cloned().collect()
        };
        let (left, right) = (only(left, right), only(right, left));
        assert_eq!(left, right, "{table} {moment}: only SQLite on the left, only PostgreSQL on the right");
        assert_eq!(sqlite[table].len(), postgres[table].len(), "{table} {moment}");
    }
    sqlite.values().map(Vec::len).sum()
}

async fn compare(seed: u64, operations: u32) {
    let Some(postgres) = TestStore::postgres().await else { return };
    let mut subjects = [Subject::new(TestStore::sqlite().await).await, Subject::new(postgres).await];
    let start = subjects[0].test.ambient.now();
    let dice = [Ambient::manual(start, seed), Ambient::manual(start, seed)];
    let mut history: VecDeque<String> = VecDeque::new();
    let mut answers: BTreeMap<&str, u32> = BTreeMap::new();
    for n in 0..operations {
        let [sqlite, postgres] = &mut subjects;
        let (one, two) = tokio::join!(sqlite.step(&dice[0]), postgres.step(&dice[1]));
        assert!(
            one == two,
            "operation {n} of seed {seed}\nSQLite:     {one}\nPostgreSQL: {two}\nbefore:\n{}",
            history.make_contiguous().join("\n")
        );
        let kind =
            ["LostLease", "conflict", "NotFound", "Misuse", "ClaimedJob"].into_iter().find(|kind| one.contains(kind));
        *answers.entry(kind.unwrap_or("other")).or_default() += 1;
        history.push_back(format!("{n}: {}", one.chars().take(300).collect::<String>()));
        if history.len() > HISTORY {
            history.pop_front();
        }
        if n % CHECKPOINT_EVERY == CHECKPOINT_EVERY - 1 {
            assert_same_rows(&subjects, &format!("after operation {n} of seed {seed}")).await;
        }
    }
    let rows = assert_same_rows(&subjects, &format!("after seed {seed}")).await;
    println!("seed {seed}: {operations} operations, {rows} rows; {answers:?}");
    // A sequence that does nothing agrees easily.
    assert!(rows > operations as usize / 10, "{rows} rows");
    for kind in ["LostLease", "Misuse", "ClaimedJob", "conflict"] {
        assert!(answers.get(kind).is_some_and(|count| *count > operations / 1_000), "{kind} in {answers:?}");
    }
}

/// Half of the operations: a runner has the two halves side by side.
async fn compare_half(half: u64) {
    let operations = told_by_runner("BULKHEAD_TEST_OPERATIONS", OPERATIONS);
    compare(2 * told_by_runner("BULKHEAD_TEST_SEED", 1) + half, operations / 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_databases_answer_alike() {
    compare_half(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_databases_answer_alike_to_another_sequence() {
    compare_half(1).await;
}
