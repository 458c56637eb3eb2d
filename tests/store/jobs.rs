//! The durable queue: leases and their fences, attempts, dedupe keys, recovery.

use std::collections::BTreeSet;
use std::time::Duration;

use bulkhead_model::id::{JobId, OrgId, RunId, WorkerId};
use bulkhead_model::job::{JobPayload, Lane, Lease};
use bulkhead_model::time::Timestamp;
use bulkhead_store::job::{Attempt, ClaimedJob, Job, JobGroup, NewJob, Turn, TurnEnd};
use bulkhead_store::page::PageRequest;
use bulkhead_store::{Store, StoreError};

use crate::support::{JOBS, Tenant, TestStore, claim_any};

const MINUTE: Duration = Duration::from_mins(1);

/// A queue in one organization, with the moves that tests make.
struct Queue {
    test: TestStore,
    tenant: Tenant,
    worker: WorkerId,
}

fn keyed(key: Option<&str>, run_at: Timestamp) -> NewJob {
    let payload = JobPayload::AdvanceRun { run: RunId::from_uuid(uuid::Uuid::from_u128(7)) };
    NewJob { payload, priority: 0, run_at, dedupe_key: key.map(str::to_owned), attempts_max: 2, group: None }
}

impl Queue {
    async fn new(test: TestStore) -> Self {
        let tenant = test.tenant("acme").await;
        let worker = test.worker().await;
        let queue = Self { test, tenant, worker };
        for claimed in queue.claim(9).await {
            queue.finish(&claimed.lease).await.unwrap();
        }
        queue
    }

    fn now(&self) -> Timestamp {
        self.test.ambient.now()
    }

    async fn enqueue(&self, job: NewJob) -> Option<JobId> {
        let (test, ambient) = (&self.test, self.test.ambient.clone());
        tx!(test.write, &self.tenant.scope(), [job, ambient], |tx| tx.enqueue(job, ambient).await).unwrap()
    }

    async fn claim(&self, limit: u32) -> Vec<ClaimedJob> {
        self.claim_as(self.worker, limit, MINUTE).await
    }

    async fn claim_as(&self, worker: WorkerId, limit: u32, deadline: Duration) -> Vec<ClaimedJob> {
        claim(&self.test.store, worker, limit, self.now(), deadline).await
    }

    async fn claim_one(&self) -> Lease {
        let mut claimed = self.claim(9).await;
        assert_eq!(claimed.len(), 1, "{claimed:?}");
        claimed.remove(0).lease
    }

    async fn finish(&self, lease: &Lease) -> Result<(), StoreError> {
        let (test, now) = (&self.test, self.now());
        tx!(test.write_locked, &self.tenant.scope(), [lease, now], |tx| tx.finish_job(lease, *now).await)
    }

    async fn release(&self, lease: &Lease, run_at: Timestamp, count: Attempt) -> Result<(), StoreError> {
        let (test, now) = (&self.test, self.now());
        tx!(test.write_locked, &self.tenant.scope(), [lease, run_at, count, now], |tx| {
            tx.release_job(lease, *run_at, *count, Some("later"), *now).await
        })
    }

    async fn bury(&self, lease: &Lease) -> Result<(), StoreError> {
        let (test, ambient) = (&self.test, self.test.ambient.clone());
        tx!(test.write_locked, &self.tenant.scope(), [lease, ambient], |tx| tx.bury_job(lease, "broken", ambient).await)
    }

    async fn hold(&self, lease: &Lease, deadline: Duration) -> Result<(), StoreError> {
        let (test, now) = (&self.test, self.now());
        tx!(test.write_locked, &self.tenant.scope(), [lease, deadline, now], |tx| tx
            .hold_lease(lease, *deadline, *now)
            .await)
    }

    /// Sets the organization's share.
    async fn share(&self, weight: u32, jobs_max: u32) {
        let (test, org) = (&self.test, self.tenant.org);
        let admin = bulkhead_model::permission::SystemScope::new(bulkhead_model::permission::SystemReason::Admin);
        let found = tx!(test.write, &admin, [org, weight, jobs_max], |tx| {
            tx.set_queue_share(*org, *weight, *jobs_max).await
        });
        assert!(found.unwrap());
    }

    /// The states of all jobs, sorted.
    async fn states(&self) -> Vec<String> {
        let mut states: Vec<String> = self.jobs().await.into_iter().map(|job| job.state).collect();
        states.sort();
        states
    }

    async fn promote(&self) -> u64 {
        let (test, now) = (&self.test, self.now());
        tx!(test.write_locked, &JOBS, [now], |tx| tx.promote_jobs(*now, 100).await).unwrap()
    }

    async fn recover(&self, me: WorkerId) -> u64 {
        let (test, now) = (&self.test, self.now());
        tx!(test.write_locked, &JOBS, [me, now], |tx| tx.recover_jobs(*me, *now).await).unwrap()
    }

    async fn free_stuck(&self) -> u64 {
        let (test, now) = (&self.test, self.now());
        tx!(test.write_locked, &JOBS, [now], |tx| tx.free_stuck_jobs(*now).await).unwrap()
    }

    async fn jobs(&self) -> Vec<Job> {
        let test = &self.test;
        let page = PageRequest::default();
        tx!(test.read, &self.tenant.scope(), [page], |tx| tx.list_jobs(None, *page).await).unwrap().items
    }

    /// State and attempt of the only job.
    async fn only(&self) -> (String, i64) {
        let jobs = self.jobs().await;
        assert_eq!(jobs.len(), 1, "{jobs:?}");
        (jobs[0].state.clone(), jobs[0].attempt)
    }

    /// Makes a worker look dead: on PostgreSQL its heartbeat runs out, on SQLite any other worker is dead.
    async fn declare_dead(&self, worker: WorkerId) {
        if self.test.store.is_postgres() {
            let mut conn = self.test.raw_postgres().await;
            let sql = "update worker set expires_at = clock_timestamp() - interval '1 second' where id = $1";
            sqlx::query(sql).bind(worker.uuid()).execute(&mut conn).await.unwrap();
        }
    }
}

async fn claim(store: &Store, worker: WorkerId, limit: u32, now: Timestamp, deadline: Duration) -> Vec<ClaimedJob> {
    let args = (worker, limit, now, deadline);
    let result: Result<_, StoreError> = store
        .write_locked(&JOBS, args, |tx, (worker, limit, now, deadline)| {
            Box::pin(async move { claim_any(tx, *worker, Lane::Interactive, *limit, *now, *deadline).await })
        })
        .await;
    result.unwrap()
}

fn state(name: &str, attempt: i64) -> (String, i64) {
    (name.to_owned(), attempt)
}

on_both! {
    async fn jobs_are_claimed_by_priority_and_age_once(test: TestStore) {
        let queue = Queue::new(test).await;
        let mut expected = Vec::new();
        for (priority, age_s) in [(1, 0), (0, 1), (0, 9), (5, 60), (0, 5)] {
            let job = NewJob { priority, ..keyed(None, queue.now().minus(Duration::from_secs(age_s))) };
            expected.push(((priority, -i64::try_from(age_s).unwrap()), queue.enqueue(job).await.unwrap()));
        }
        expected.sort();
        let expected: Vec<JobId> = expected.into_iter().map(|(_, id)| id).collect();
        let first: Vec<JobId> = queue.claim(2).await.into_iter().map(|job| job.lease.job).collect();
        let second: Vec<JobId> = queue.claim(9).await.into_iter().map(|job| job.lease.job).collect();
        assert_eq!([first, second].concat(), expected);
        assert!(queue.claim(9).await.is_empty());
        let test = &queue.test;
        let (worker, now) = (queue.worker, queue.now());
        let other_lane = tx!(test.write, &JOBS, [worker, now], |tx| claim_any(tx, *worker, Lane::Bulk, 9, *now, MINUTE).await);
        assert!(other_lane.unwrap().is_empty());
    }

    async fn a_claim_tells_all_that_a_worker_needs(test: TestStore) {
        let queue = Queue::new(test).await;
        let job = keyed(None, queue.now());
        let id = queue.enqueue(job.clone()).await.unwrap();
        let claimed = queue.claim(9).await.remove(0);
        let lease = Lease { org: queue.tenant.org, job: id, worker: queue.worker, fence: 1, attempt: 1 };
        assert_eq!(claimed.lease, lease);
        assert_eq!((claimed.kind.as_str(), claimed.attempts_max), ("advance_run", 2));
        assert_eq!(serde_json::from_str::<JobPayload>(&claimed.payload).unwrap(), job.payload);
    }

    async fn an_unregistered_worker_claims_nothing(test: TestStore) {
        let queue = Queue::new(test).await;
        queue.enqueue(keyed(None, queue.now())).await.unwrap();
        let stranger = WorkerId::new(&queue.test.ambient);
        assert!(queue.claim_as(stranger, 9, MINUTE).await.is_empty());
        let (test, worker) = (&queue.test, queue.worker);
        tx!(test.write, &JOBS, [worker], |tx| tx.delete_worker(*worker).await).unwrap();
        assert!(queue.claim(9).await.is_empty());
        assert_eq!(queue.only().await, state("ready", 0));
    }

    /// Each method that ends or keeps a lease, with a lease that is no longer the current one: nothing is written.
    async fn a_lost_lease_writes_nothing(test: TestStore) {
        let queue = Queue::new(test).await;
        queue.enqueue(keyed(None, queue.now())).await.unwrap();
        let old = queue.claim_one().await;
        queue.release(&old, queue.now(), Attempt::Counts).await.unwrap();
        let released = queue.only().await;
        for phase in ["ready", "leased"] {
            let current = if phase == "leased" { Some(queue.claim_one().await) } else { None };
            let before = queue.only().await;
            let mut stale = vec![old.clone()];
            if let Some(current) = &current {
                assert_eq!(current.fence, old.fence + 1);
                stale.push(Lease { worker: WorkerId::new(&queue.test.ambient), ..current.clone() });
                stale.push(Lease { fence: current.fence + 1, ..current.clone() });
                stale.push(Lease { job: JobId::new(&queue.test.ambient), ..current.clone() });
            }
            for lease in stale {
                let results = [
                    queue.hold(&lease, MINUTE).await,
                    queue.release(&lease, queue.now(), Attempt::StartsAnew).await,
                    queue.bury(&lease).await,
                    queue.finish(&lease).await,
                ];
                for result in results {
                    assert!(matches!(result, Err(StoreError::LostLease)), "{phase}: {result:?}");
                }
                assert_eq!(queue.only().await, before, "{phase}");
            }
            if let Some(current) = current {
                queue.hold(&current, MINUTE).await.unwrap();
                queue.finish(&current).await.unwrap();
                assert!(queue.jobs().await.is_empty());
            }
        }
        assert_eq!(released, state("ready", 1));
    }

    async fn what_counts_as_an_attempt(test: TestStore) {
        let queue = Queue::new(test).await;
        queue.enqueue(keyed(None, queue.now())).await.unwrap();
        let mut lease = queue.claim_one().await;
        for (count, expected, next) in
            [(Attempt::DoesNotCount, 0, 1), (Attempt::Counts, 1, 2), (Attempt::DoesNotCount, 1, 2), (Attempt::StartsAnew, 0, 1)]
        {
            queue.release(&lease, queue.now(), count).await.unwrap();
            assert_eq!(queue.only().await, state("ready", expected), "{count:?}");
            assert_eq!(queue.jobs().await[0].error.as_deref(), Some("later"));
            lease = queue.claim_one().await;
            assert_eq!(lease.attempt, next, "{count:?}");
        }
    }

    async fn future_jobs_are_promoted_when_their_time_comes(test: TestStore) {
        let queue = Queue::new(test).await;
        let due = queue.now().plus(MINUTE);
        queue.enqueue(keyed(None, due)).await.unwrap();
        queue.enqueue(keyed(None, due.plus(MINUTE))).await.unwrap();
        assert!(queue.claim(9).await.is_empty());
        let test = &queue.test;
        let next = async || tx!(test.read, &JOBS, [], |tx| tx.next_job_at().await).unwrap();
        assert_eq!(next().await, Some(due));
        assert_eq!(queue.promote().await, 0);
        queue.test.ambient.advance(MINUTE);
        assert_eq!(queue.promote().await, 1);
        assert_eq!(next().await, Some(due.plus(MINUTE)));
        let lease = queue.claim_one().await;
        queue.release(&lease, queue.now().plus(Duration::from_micros(1)), Attempt::StartsAnew).await.unwrap();
        assert!(queue.claim(9).await.is_empty());
        queue.test.ambient.advance(Duration::from_micros(1));
        assert_eq!(queue.promote().await, 1);
        queue.claim_one().await;
    }

    async fn a_key_holds_one_waiting_job_of_its_kind(test: TestStore) {
        let queue = Queue::new(test).await;
        let far = queue.now().plus(MINUTE);
        assert!(queue.enqueue(keyed(Some("k"), far)).await.is_some());
        assert!(queue.enqueue(keyed(Some("k"), queue.now())).await.is_none());
        assert!(queue.enqueue(keyed(Some("other"), far)).await.is_some());
        assert!(queue.enqueue(keyed(None, far)).await.is_some());
        assert!(queue.enqueue(keyed(None, far)).await.is_some());
        assert!(queue.claim(9).await.is_empty(), "the waiting one keeps its time");

        let (test, scope, now) = (&queue.test, queue.tenant.scope(), queue.now());
        let hasten = async || tx!(test.write, &scope, [now], |tx| tx.hasten_job("advance_run", "k", *now).await).unwrap();
        let remove = async |key: &'static str| {
            tx!(test.write, &scope, [key], |tx| tx.remove_waiting_job("advance_run", key).await).unwrap()
        };
        let held = async || tx!(test.read, &scope, [], |tx| tx.is_job_held("advance_run", "k").await).unwrap();
        let ready = async || {
            tx!(test.read, &JOBS, [], |tx| {
                let interactive = tx.list_ready_orgs(Lane::Interactive, None, 9).await?;
                Ok((!interactive.is_empty(), !tx.list_ready_orgs(Lane::Bulk, None, 9).await?.is_empty()))
            })
            .unwrap()
        };
        assert_eq!(ready().await, (false, false));
        assert!(hasten().await);
        assert!(!hasten().await, "it is no longer in the future");
        assert_eq!((ready().await, held().await), ((true, false), false));
        let lease = queue.claim_one().await;
        assert_eq!((ready().await, held().await), ((false, false), true));
        assert!(!hasten().await);
        assert!(!remove("k").await, "a held job is its worker's");
        queue.finish(&lease).await.unwrap();
        assert!(remove("other").await);
        assert!(!remove("other").await);
        assert_eq!(queue.jobs().await.len(), 2);
    }

    /// A worker that holds the job may have looked before the change that the second request tells of.
    async fn what_is_enqueued_while_held_runs_again(test: TestStore) {
        let queue = Queue::new(test).await;
        let first = queue.enqueue(keyed(Some("k"), queue.now())).await.unwrap();
        let lease = queue.claim_one().await;
        let (soon, later) = (queue.now().plus(Duration::from_secs(5)), queue.now().plus(MINUTE));
        assert_eq!(queue.enqueue(keyed(Some("k"), later)).await, None);
        assert_eq!(queue.enqueue(keyed(Some("k"), soon)).await, None);
        assert_eq!(queue.enqueue(keyed(Some("k"), later)).await, None);
        queue.hold(&lease, MINUTE).await.unwrap();
        queue.finish(&lease).await.unwrap();
        let jobs = queue.jobs().await;
        assert_eq!((jobs.len(), jobs[0].id, jobs[0].state.as_str(), jobs[0].run_at), (1, first, "future", soon));
        assert!(matches!(queue.finish(&lease).await, Err(StoreError::LostLease)));

        queue.test.ambient.advance(MINUTE);
        assert_eq!(queue.promote().await, 1);
        let lease = queue.claim_one().await;
        assert_eq!((lease.attempt, lease.fence), (1, 2), "a new count, a higher fence");
        // A wait gives way to what was asked for earlier.
        assert_eq!(queue.enqueue(keyed(Some("k"), queue.now())).await, None);
        let asked = queue.now();
        queue.release(&lease, queue.now().plus(MINUTE), Attempt::StartsAnew).await.unwrap();
        assert_eq!(queue.jobs().await[0].run_at, asked);
        queue.promote().await;
        let lease = queue.claim_one().await;
        queue.finish(&lease).await.unwrap();
        assert!(queue.jobs().await.is_empty(), "and then it is done");
    }

    async fn a_dead_letter_holds_no_key(test: TestStore) {
        let queue = Queue::new(test).await;
        queue.enqueue(keyed(Some("k"), queue.now())).await.unwrap();
        let lease = queue.claim_one().await;
        queue.bury(&lease).await.unwrap();
        assert_eq!(queue.only().await, state("dead", 1));
        assert_eq!(queue.jobs().await[0].error.as_deref(), Some("broken"));
        assert!(queue.claim(9).await.is_empty());
        assert!(queue.enqueue(keyed(Some("k"), queue.now())).await.is_some());
        assert_eq!(queue.jobs().await.len(), 2);
        let test = &queue.test;
        let page = PageRequest::default();
        let dead = tx!(test.read, &queue.tenant.scope(), [page], |tx| tx.list_jobs(Some("dead"), *page).await).unwrap();
        assert_eq!(dead.items.len(), 1);
    }

    async fn what_was_enqueued_again_outlives_the_job_that_is_given_up(test: TestStore) {
        let queue = Queue::new(test).await;
        let later = queue.now().plus(MINUTE);
        queue.enqueue(keyed(Some("k"), queue.now())).await.unwrap();
        let lease = queue.claim_one().await;
        assert_eq!(queue.enqueue(keyed(Some("k"), later)).await, None, "the held one will do");
        queue.bury(&lease).await.unwrap();
        assert_eq!(queue.states().await, ["dead", "future"]);
        let next = queue.jobs().await.into_iter().find(|job| job.state == "future").unwrap();
        assert_eq!((next.run_at, next.attempt, next.error.as_deref()), (later, 0, None));
        assert!(next.id != lease.job && next.payload.contains("advance_run"));
        // It is an ordinary job: its key is taken, it is claimed in time, and given up without leaving another one.
        assert_eq!(queue.enqueue(keyed(Some("k"), queue.now())).await, None);
        queue.test.ambient.advance(MINUTE);
        assert_eq!(queue.promote().await, 1);
        let lease = queue.claim_one().await;
        assert_eq!((lease.job, lease.attempt, lease.fence), (next.id, 1, 1));
        queue.bury(&lease).await.unwrap();
        assert_eq!(queue.states().await, ["dead", "dead"]);
    }

    async fn a_job_that_was_given_up_is_brought_back_once(test: TestStore) {
        let queue = Queue::new(test).await;
        let (test, scope) = (&queue.test, queue.tenant.scope());
        let revive = async |job: JobId| {
            let now = queue.now();
            tx!(test.write, &scope, [job, now], |tx| tx.revive_job(*job, *now).await).unwrap()
        };
        let id = queue.enqueue(keyed(Some("k"), queue.now())).await.unwrap();
        assert!(!revive(id).await, "it was not given up");
        let lease = queue.claim_one().await;
        queue.bury(&lease).await.unwrap();
        assert!(revive(id).await);
        assert!(!revive(id).await);
        assert_eq!(queue.only().await, state("ready", 0));
        let lease = queue.claim_one().await;
        assert_eq!((lease.job, lease.attempt, lease.fence), (id, 1, 2), "a new count, a higher fence");
        queue.bury(&lease).await.unwrap();
        // Another one of its key waits: that one will do.
        let other = queue.enqueue(keyed(Some("k"), queue.now())).await.unwrap();
        assert!(revive(id).await);
        assert_eq!(queue.jobs().await.iter().map(|job| job.id).collect::<Vec<_>>(), [other]);
        let lease = queue.claim_one().await;
        queue.bury(&lease).await.unwrap();
        let delete = async || tx!(test.write, &scope, [other], |tx| tx.delete_dead_job(*other).await).unwrap();
        assert!(delete().await);
        assert!(!delete().await);
        assert!(queue.jobs().await.is_empty());
    }

    async fn a_live_job_is_looked_at(test: TestStore) {
        let queue = Queue::new(test).await;
        let (test, scope, org) = (&queue.test, queue.tenant.scope(), queue.tenant.org);
        let look = async || {
            let live = tx!(test.read, &JOBS, [org], |tx| tx.is_job_live(*org, "advance_run", "k").await).unwrap();
            let job = tx!(test.read, &scope, [], |tx| tx.load_live_job("advance_run", "k").await).unwrap();
            assert_eq!(live, job.is_some());
            job
        };
        assert!(look().await.is_none());
        let id = queue.enqueue(keyed(Some("k"), queue.now())).await.unwrap();
        let ready = look().await.unwrap();
        assert_eq!((ready.id, ready.state.as_str(), ready.worker, ready.deadline_in_ms), (id, "ready", None, None));
        let lease = queue.claim_one().await;
        let held = look().await.unwrap();
        assert_eq!((held.state.as_str(), held.worker, held.attempt), ("leased", Some(queue.worker), 1));
        assert!(held.deadline_in_ms.is_some_and(|left| left > 0 && left <= 60_000), "{held:?}");
        queue.bury(&lease).await.unwrap();
        assert!(look().await.is_none());
    }

    async fn only_the_jobs_of_dead_workers_are_recovered(test: TestStore) {
        let queue = Queue::new(test).await;
        queue.enqueue(keyed(None, queue.now())).await.unwrap();
        let lease = queue.claim_one().await;
        assert_eq!(queue.recover(queue.worker).await, 0, "its own jobs are alive");
        let other = queue.test.worker().await;
        if queue.test.store.is_postgres() {
            assert_eq!(queue.recover(other).await, 0, "the heartbeat is fresh");
            queue.hold(&lease, MINUTE).await.unwrap();
        }
        queue.declare_dead(queue.worker).await;
        let (test, worker, now) = (&queue.test, queue.worker, queue.now());
        if queue.test.store.is_postgres() {
            let renewed = tx!(test.write, &JOBS, [worker, now], |tx| tx.renew_worker(*worker, *now, MINUTE).await);
            assert!(!renewed.unwrap(), "an expired heartbeat is not revived");
        }
        assert_eq!(queue.recover(other).await, 1);
        assert_eq!(queue.recover(other).await, 0);
        assert_eq!(queue.only().await, state("ready", 1), "the attempt counts: it may be what kills");
        assert!(matches!(queue.hold(&lease, MINUTE).await, Err(StoreError::LostLease)));
        assert!(queue.claim(9).await.is_empty(), "a worker that was declared dead claims nothing");
        let renewed = tx!(test.write, &JOBS, [worker, now], |tx| tx.renew_worker(*worker, *now, MINUTE).await);
        assert!(!renewed.unwrap());
        let renewed = tx!(test.write, &JOBS, [other, now], |tx| tx.renew_worker(*other, *now, MINUTE).await);
        assert!(renewed.unwrap());

        // The second death uses up its attempts: the next holder is told, and gives it up together with what it was for.
        assert_eq!(queue.claim_as(other, 9, MINUTE).await.len(), 1);
        let third = queue.test.worker().await;
        queue.declare_dead(other).await;
        assert_eq!(queue.recover(third).await, 1);
        assert_eq!(queue.only().await, state("ready", 2));
        let last = queue.claim_as(third, 9, MINUTE).await.remove(0);
        assert!(last.lease.attempt > last.attempts_max);
    }

    async fn an_attempt_past_its_deadline_is_freed(test: TestStore) {
        let queue = Queue::new(test).await;
        queue.enqueue(keyed(None, queue.now())).await.unwrap();
        let lease = queue.claim_one().await;
        // A jump of the injected clock is not a passed deadline.
        queue.test.ambient.advance(Duration::from_hours(8760));
        assert_eq!(queue.free_stuck().await, 0);
        queue.hold(&lease, Duration::ZERO).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(queue.free_stuck().await, 1);
        assert_eq!(queue.only().await, state("ready", 1));
        assert!(matches!(queue.finish(&lease).await, Err(StoreError::LostLease)));

        assert_eq!(queue.claim_as(queue.worker, 9, Duration::ZERO).await.len(), 1);
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(queue.free_stuck().await, 1);
        assert_eq!(queue.only().await, state("ready", 2));
    }

    async fn claimers_side_by_side_share_no_job(test: TestStore) {
        let queue = Queue::new(test).await;
        queue.share(1, 1_000).await;
        for _ in 0..120 {
            queue.enqueue(keyed(None, queue.now())).await.unwrap();
        }
        let mut nodes = vec![queue.test.store.clone()];
        if queue.test.store.is_postgres() {
            nodes.push(queue.test.another_node().await);
        }
        let mut claimers = tokio::task::JoinSet::new();
        for n in 0..6 {
            let (store, worker, now) = (nodes[n % nodes.len()].clone(), queue.test.worker().await, queue.now());
            claimers.spawn(async move {
                let mut claimed = Vec::new();
                loop {
                    let batch = claim(&store, worker, 7, now, MINUTE).await;
                    assert!(batch.len() <= 7, "more than asked: {}", batch.len());
                    let ready: Result<_, StoreError> = store
                        .read(&JOBS, (), |tx, ()| {
                            Box::pin(async move { tx.list_ready_orgs(Lane::Interactive, None, 1).await })
                        })
                        .await;
                    // A claimer that finds another one at it comes again.
                    if batch.is_empty() && ready.unwrap().is_empty() {
                        return claimed;
                    }
                    claimed.extend(batch.into_iter().map(|job| job.lease.job));
                }
            });
        }
        let claimed: Vec<JobId> = claimers.join_all().await.concat();
        assert_eq!(claimed.len(), 120);
        assert_eq!(claimed.iter().collect::<BTreeSet<_>>().len(), 120);
    }

    async fn an_organization_holds_no_more_than_it_may(test: TestStore) {
        let queue = Queue::new(test).await;
        queue.share(1, 3).await;
        for _ in 0..5 {
            queue.enqueue(keyed(None, queue.now())).await.unwrap();
        }
        let (test, worker, now, org) = (&queue.test, queue.worker, queue.now(), queue.tenant.org);
        let claim = async |quota| {
            let turns = vec![Turn { org, quota }];
            tx!(test.write_locked, &JOBS, [worker, turns, now], |tx| {
                tx.claim_jobs(*worker, Lane::Interactive, turns, *now, MINUTE).await
            })
            .unwrap()
        };
        let first = claim(2).await;
        assert_eq!((first.jobs.len(), &first.turns[..]), (2, &[(org, TurnEnd::More)][..]));
        let second = claim(2).await;
        assert_eq!((second.jobs.len(), &second.turns[..]), (1, &[(org, TurnEnd::Full)][..]));
        assert_eq!(claim(2).await.turns, [(org, TurnEnd::Full)]);
        queue.finish(&first.jobs[0].lease).await.unwrap();
        assert_eq!(claim(9).await.jobs.len(), 1);
        queue.share(1, 100).await;
        assert_eq!(claim(9).await.turns, [(org, TurnEnd::Drained)]);
        // A worker's death frees what it held: slots are counted, not kept.
        let other = queue.test.worker().await;
        queue.share(1, 3).await;
        queue.declare_dead(queue.worker).await;
        assert_eq!(queue.recover(other).await, 4);
        assert_eq!(queue.claim_as(other, 9, MINUTE).await.len(), 3);
    }

    /// Jobs of a group that is full are put aside, out of the claim path, and come back one by one as others of it end.
    async fn a_group_runs_a_few_at_a_time(test: TestStore) {
        let queue = Queue::new(test).await;
        let group = Some(JobGroup { key: queue.tenant.workflow.id.to_string(), limit: 2 });
        for _ in 0..4 {
            queue.enqueue(NewJob { group: group.clone(), ..keyed(None, queue.now()) }).await.unwrap();
        }
        let alone = queue.enqueue(keyed(None, queue.now())).await.unwrap();
        let first = queue.claim(9).await;
        assert_eq!(first.len(), 3, "two of the group, and the one without");
        assert_eq!(queue.states().await, ["blocked", "blocked", "leased", "leased", "leased"]);
        assert!(queue.claim(9).await.is_empty());
        let mut of_group = first.iter().filter(|job| job.lease.job != alone).map(|job| &job.lease);
        queue.finish(of_group.next().unwrap()).await.unwrap();
        assert_eq!(queue.states().await, ["blocked", "leased", "leased", "ready"]);
        // One that waits gives its place up as well.
        queue.release(of_group.next().unwrap(), queue.now().plus(MINUTE), Attempt::StartsAnew).await.unwrap();
        assert_eq!(queue.states().await, ["future", "leased", "ready", "ready"]);
        assert_eq!(queue.claim(9).await.len(), 2);
        // It comes back when its time has come, and waits for a place.
        queue.test.ambient.advance(MINUTE);
        assert_eq!(queue.promote().await, 1);
        assert!(queue.claim(9).await.is_empty());
        assert_eq!(queue.states().await, ["blocked", "leased", "leased", "leased"]);
        // After a death nobody ends a job of the group in order: the sweep finds the room.
        let other = queue.test.worker().await;
        queue.declare_dead(queue.worker).await;
        assert_eq!(queue.recover(other).await, 3);
        let claimed = queue.claim_as(other, 9, MINUTE).await;
        assert_eq!(claimed.len(), 3);
        let (test, now) = (&queue.test, queue.now());
        let sweep = async || tx!(test.write_locked, &JOBS, [now], |tx| tx.admit_blocked_jobs(None, *now).await).unwrap();
        assert_eq!(sweep().await, None);
        assert_eq!(queue.states().await.iter().filter(|state| *state == "blocked").count(), 1);
        for job in &claimed {
            queue.bury(&job.lease).await.unwrap();
        }
        assert_eq!(queue.claim_as(other, 9, MINUTE).await.len(), 1);
    }

    async fn organizations_with_work_are_found_one_by_one(test: TestStore) {
        let queue = Queue::new(test).await;
        let mut orgs = vec![queue.tenant.org];
        for n in 0..5 {
            orgs.push(queue.test.org(&format!("org-{n}")).await);
        }
        orgs.sort();
        for org in &orgs {
            let (test, ambient, job) = (&queue.test, queue.test.ambient.clone(), keyed(None, queue.now()));
            for _ in 0..3 {
                tx!(test.write, &crate::support::scope(*org), [job, ambient], |tx| tx.enqueue(job, ambient).await).unwrap();
            }
        }
        let test = &queue.test;
        let list = async |after: Option<OrgId>, limit: u32| {
            tx!(test.read, &JOBS, [after, limit], |tx| tx.list_ready_orgs(Lane::Interactive, *after, *limit).await).unwrap()
        };
        let heavy = orgs[2];
        assert!(tx!(test.write, &crate::support::ADMIN, [heavy], |tx| tx.set_queue_share(*heavy, 7, 64).await).unwrap());
        let weighed: Vec<_> = orgs.iter().map(|org| (*org, if *org == heavy { 7 } else { 1 })).collect();
        assert_eq!(list(None, 100).await, weighed);
        assert_eq!(list(Some(orgs[1]), 2).await, weighed[2..4]);
        assert!(list(orgs.last().copied(), 9).await.is_empty());
    }

    async fn a_job_can_be_held_from_the_start(test: TestStore) {
        let queue = Queue::new(test).await;
        queue.share(1, 2).await;
        let (test, scope, worker) = (&queue.test, queue.tenant.scope(), queue.worker);
        let (ambient, job) = (queue.test.ambient.clone(), keyed(None, queue.now()));
        let make = async || {
            tx!(test.write_locked, &scope, [job, worker, ambient], |tx| {
                tx.enqueue_held(job, *worker, MINUTE, ambient).await
            })
            .unwrap()
        };
        let first = make().await.unwrap();
        assert_eq!((first.lease.fence, first.lease.attempt), (1, 1));
        assert_eq!(serde_json::from_str::<JobPayload>(&first.payload).unwrap(), job.payload);
        assert!(queue.claim(9).await.is_empty());
        assert!(make().await.is_some());
        assert!(make().await.is_none(), "it holds as many as it may");
        queue.finish(&first.lease).await.unwrap();
        assert_eq!(queue.claim(9).await.len(), 1);
        let later = NewJob { run_at: queue.now().plus(MINUTE), ..job.clone() };
        let grouped = NewJob { group: Some(JobGroup { key: "k".to_owned(), limit: 1 }), ..job.clone() };
        let hold = async |new: NewJob| {
            tx!(test.write, &scope, [new, worker, ambient], |tx| tx.enqueue_held(new, *worker, MINUTE, ambient).await)
        };
        assert!(hold(later).await.unwrap().is_none(), "the clock may have been set back since it was made");
        assert!(matches!(hold(grouped).await, Err(StoreError::Misuse(_))));
    }

    async fn a_job_is_enqueued_with_its_transaction_or_not_at_all(test: TestStore) {
        let queue = Queue::new(test).await;
        let (test, job, ambient) = (&queue.test, keyed(None, queue.now()), queue.test.ambient.clone());
        let result = tx!(test.write, &queue.tenant.scope(), [job, ambient], |tx| {
            tx.enqueue(job, ambient).await?;
            Err::<(), _>(StoreError::LostLease)
        });
        assert!(result.is_err());
        assert!(queue.jobs().await.is_empty());
    }
}
