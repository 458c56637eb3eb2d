//! The same seeded sequence of operations on both databases: each answer and the state in the end must agree.

use std::fmt::Write as _;
use std::time::Duration;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::grant::GrantVersion;
use bulkhead_model::id::{JobId, RunId, WorkerId};
use bulkhead_model::job::{JobPayload, Lane, Lease};
use bulkhead_model::permission::OrgScope;
use bulkhead_model::run::RunStatus;
use bulkhead_store::StoreError;
use bulkhead_store::job::{Attempt, NewJob};
use bulkhead_store::page::PageRequest;

use crate::support::{JOBS, Tenant, TestStore, run, step};

/// Operations in one sequence. The long run is the soak's.
const OPERATIONS: u32 = 300;

/// One database under the sequence. Both draw from generators of the same seed, so they see the same ids and times.
struct Subject {
    test: TestStore,
    tenants: Vec<Tenant>,
    worker: WorkerId,
    leases: Vec<Lease>,
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
        let worker = test.worker().await;
        Self { test, tenants, worker, leases: Vec::new(), runs }
    }

    /// Does one operation, chosen by `dice`.
    async fn step(&mut self, dice: &Ambient) -> String {
        let pick = |bound: usize| usize::try_from(dice.below(bound as u64)).unwrap();
        let org = pick(self.tenants.len());
        let scope = self.tenants[org].scope();
        match pick(10) {
            0 => self.start_run(org, pick(5)).await,
            1 => self.enqueue(&scope, dice).await,
            2 => self.claim(u32::try_from(pick(4)).unwrap()).await,
            3 | 4 if !self.leases.is_empty() => {
                // Now and then one that was used before, or the wrong organization's scope.
                let at = pick(self.leases.len());
                let lease = if pick(4) == 0 { self.leases[at].clone() } else { self.leases.remove(at) };
                let scope = if pick(8) == 0 { scope } else { crate::support::scope(lease.org) };
                self.leave(&lease, &scope, pick(5), dice).await
            }
            5 => {
                self.test.ambient.advance(Duration::from_secs(dice.below(40)));
                self.housekeeping(pick(4)).await
            }
            6 => self.change_installation(org, i64::try_from(pick(3)).unwrap()).await,
            7 => {
                let (_, run) = self.runs[pick(self.runs.len())];
                self.save_step(&scope, run, pick(3)).await
            }
            8 => {
                let (_, run) = self.runs[pick(self.runs.len())];
                self.end_run(&scope, run).await
            }
            _ => self.look(&scope, org, pick(4)).await,
        }
    }

    async fn start_run(&mut self, org: usize, key: usize) -> String {
        let (test, tenant) = (&self.test, &self.tenants[org]);
        let new = run(&test.ambient, tenant.workflow.id, (key > 0).then(|| format!("key-{key}")).as_deref());
        let result = tx!(test.write, &tenant.scope(), [new], |tx| tx.insert_run(new).await);
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
        };
        told(tx!(test.write, scope, [job, ambient], |tx| tx.enqueue(job, ambient).await))
    }

    async fn claim(&mut self, limit: u32) -> String {
        let (test, worker, now) = (&self.test, self.worker, self.test.ambient.now());
        let claimed = tx!(test.write_locked, &JOBS, [worker, limit, now], |tx| {
            tx.promote_jobs(*now, 100).await?;
            tx.claim_jobs(*worker, Lane::Interactive, *limit, *now, Duration::from_hours(1)).await
        });
        self.leases.extend(claimed.as_ref().unwrap().iter().map(|job| job.lease.clone()));
        told(claimed)
    }

    async fn leave(&mut self, lease: &Lease, scope: &OrgScope, how: usize, dice: &Ambient) -> String {
        let (test, now) = (&self.test, self.test.ambient.now());
        let run_at = now.plus(Duration::from_secs(dice.below(3) * 20));
        let count =
            [Attempt::Counts, Attempt::DoesNotCount, Attempt::StartsAnew][usize::try_from(dice.below(3)).unwrap()];
        told(tx!(test.write_locked, scope, [lease, how, now, run_at, count], |tx| match how {
            0 | 1 => tx.finish_job(lease).await,
            2 => tx.release_job(lease, *run_at, *count, Some("again"), *now).await,
            3 => tx.bury_job(lease, "dead", *now).await,
            _ => tx.hold_lease(lease, Duration::from_hours(1), *now).await,
        }))
    }

    async fn housekeeping(&mut self, what: usize) -> String {
        let (test, now, old) = (&self.test, self.test.ambient.now(), self.worker);
        match what {
            0 => told(tx!(test.write_locked, &JOBS, [now], |tx| tx.promote_jobs(*now, 3).await)),
            1 => told(tx!(test.write_locked, &JOBS, [now], |tx| tx.free_stuck_jobs(*now).await)),
            2 => told(tx!(test.read, &JOBS, [], |tx| Ok((tx.next_job_at().await?, tx.count_ready_jobs().await?)))),
            _ => {
                // The worker ends without handing back; another takes over.
                self.worker = test.worker().await;
                let me = self.worker;
                told(tx!(test.write_locked, &JOBS, [me, old, now], |tx| {
                    tx.delete_worker(*old).await?;
                    tx.recover_jobs(*me, *now).await
                }))
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

    async fn end_run(&mut self, scope: &OrgScope, run: RunId) -> String {
        let (test, now) = (&self.test, self.test.ambient.now());
        told(tx!(test.write_locked, scope, [run, now], |tx| {
            let mut row = tx.lock_run(*run).await?;
            (row.status, row.finished_at, row.log_seq) = (RunStatus::Succeeded, Some(*now), row.log_seq + 1);
            tx.update_run(&row).await
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

    /// Everything that the organizations have, as text.
    async fn state(&self) -> String {
        let mut text = String::new();
        for tenant in &self.tenants {
            let test = &self.test;
            let page = PageRequest { before: None, limit: 200 };
            let id = tenant.installation.id;
            let rows = tx!(test.read, &tenant.scope(), [page, id], |tx| {
                let runs = tx.list_runs(None, None, *page).await?;
                let mut steps = Vec::new();
                for run in &runs.items {
                    steps.push((tx.load_run(run.id).await?, tx.list_steps(run.id).await?));
                }
                Ok((tx.list_jobs(None, *page).await?, runs, steps, tx.load_installation(*id).await?))
            });
            writeln!(text, "{:#?}", rows.unwrap()).unwrap();
        }
        text
    }
}

async fn compare(seed: u64) {
    let Some(postgres) = TestStore::postgres().await else { return };
    let mut subjects = [Subject::new(TestStore::sqlite().await).await, Subject::new(postgres).await];
    let start = subjects[0].test.ambient.now();
    let dice = [Ambient::manual(start, seed), Ambient::manual(start, seed)];
    let mut changed = 0;
    for n in 0..OPERATIONS {
        let [sqlite, postgres] = &mut subjects;
        let (one, two) = tokio::join!(sqlite.step(&dice[0]), postgres.step(&dice[1]));
        assert_eq!(one, two, "operation {n} of seed {seed}: SQLite on the left, PostgreSQL on the right");
        changed += u32::from(one != "[]");
    }
    let [sqlite, postgres] = &subjects;
    assert_eq!(sqlite.state().await, postgres.state().await, "the state after seed {seed}");
    assert!(changed > OPERATIONS / 2, "the sequence did something");
    assert!(
        sqlite.leases.iter().any(|lease| lease.job != JobId::from_uuid(uuid::Uuid::nil())) || sqlite.runs.len() > 2
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_databases_answer_alike() {
    for seed in [1, 2] {
        compare(seed).await;
    }
}
