//! The durable queue. Enqueueing is part of a business transaction; claiming, renewing and recovering are the worker's.
//!
//! Every write about a held job names its lease's fence: a worker that lost its lease writes nothing. On PostgreSQL a lease
//! lives as long as its worker's heartbeat row; on SQLite the data directory's lock proves at start that all old leases are dead.
//!
//! Statements say what an index needs to be usable (`state <> 'dead'` beside `state = 'future'`) and hide what must not be looked up
//! by: `worker_id is not distinct from` since one worker's index entries are many, dead ones of past leases among them.
//! `tests/store/plans` holds what comes of it.

mod claim;
pub mod look;
mod paused;

use std::time::Duration;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{JobId, OrgId, WorkerId};
use bulkhead_model::job::{JobPayload, Lease};
use bulkhead_model::permission::SystemReason;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::migrations;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql, sql_postgres};
use crate::tx::Tx;

/// Shown with each serving process.
const VERSION: &str = env!("CARGO_PKG_VERSION");

pub use self::claim::{Claim, Turn, TurnEnd};

/// What to put into the queue.
#[derive(Clone, Debug)]
pub struct NewJob {
    pub payload: JobPayload,
    /// Lower runs first within a lane.
    pub priority: i64,
    pub run_at: Timestamp,
    /// At most one waiting or held job of the kind has this key.
    pub dedupe_key: Option<String>,
    pub attempts_max: u32,
    /// Of the jobs of one group only so many are held at once.
    pub group: Option<JobGroup>,
}

/// Jobs that are held a few at a time: those of a workflow, or of one of its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobGroup {
    /// Begins with the id of what it limits, so that no two organizations have the same.
    pub key: String,
    pub limit: u32,
}

/// A job that this worker now holds.
#[derive(Clone, Debug)]
pub struct ClaimedJob {
    pub lease: Lease,
    /// JSON text; decoding it is the worker's, since a job that does not decode must go to the dead letters.
    pub payload: String,
    pub kind: String,
    pub attempts_max: u32,
}

#[derive(Clone, Debug)]
pub struct Job {
    pub id: JobId,
    pub kind: String,
    pub lane: String,
    pub state: String,
    pub payload: String,
    pub run_at: Timestamp,
    pub attempt: i64,
    pub attempts_max: i64,
    pub error: Option<String>,
    pub created_at: Timestamp,
}

fn read(row: &Row) -> Result<Job, StoreError> {
    Ok(Job {
        id: row.get("id")?,
        kind: row.get("kind")?,
        lane: row.get("lane")?,
        state: row.get("state")?,
        payload: row.get("payload")?,
        run_at: row.get("run_at")?,
        attempt: row.get("attempt")?,
        attempts_max: row.get("attempts_max")?,
        error: row.get("error")?,
        created_at: row.get("created_at")?,
    })
}

pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl Tx {
    /// Enqueues within this transaction: it will happen exactly if the transaction commits. With a dedupe key that a job
    /// already holds nothing is added, and `None` answered: a waiting one will do; one that a worker holds may have looked
    /// already, so it runs once more after it ends. A dead letter holds no key.
    pub async fn enqueue(&mut self, job: &NewJob, ambient: &Ambient) -> Result<Option<JobId>, StoreError> {
        let (org, id, now) = (self.org()?, JobId::new(ambient), ambient.now());
        let group = job.group.as_ref();
        let payload = serde_json::to_string(&job.payload).map_err(|error| StoreError::corrupt("payload", error))?;
        let state = if job.run_at > now { "future" } else { "ready" };
        let sql = sql!(
            "insert into job (org_id, id, kind, lane, state, payload, priority, run_at, dedupe_key, attempt, attempts_max, fence,
                 group_key, group_limit, created_at, updated_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, $10, 0, $12, $13, $11, $11)
             on conflict (org_id, kind, dedupe_key) where dedupe_key is not null and state <> 'dead'
             do update set rerun_at = case when job.rerun_at < excluded.run_at then job.rerun_at else excluded.run_at end
                 where job.state = 'leased'
             returning id"
        );
        let values = binds![
            org,
            id,
            job.payload.kind(),
            job.payload.lane().as_str(),
            state,
            &payload,
            job.priority,
            job.run_at,
            &job.dedupe_key,
            job.attempts_max,
            now,
            group.map(|group| group.key.as_str()),
            group.map(|group| i64::from(group.limit))
        ];
        let answered: Option<JobId> = self.fetch_optional(sql, values).await?.map(|row| row.get("id")).transpose()?;
        Ok(answered.filter(|answered| *answered == id))
    }

    /// Wakes the waiting job of this kind and key now: `true` if one was in the future.
    pub async fn hasten_job(&mut self, kind: &str, dedupe_key: &str, now: Timestamp) -> Result<bool, StoreError> {
        let sql = sql!(
            "update job set state = 'ready', run_at = $4, updated_at = $4
             where org_id = $1 and kind = $2 and dedupe_key = $3 and state = 'future' and state <> 'dead'"
        );
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, kind, dedupe_key, now]).await? > 0)
    }

    /// Brings the waiting job of this kind and key forward to a moment: `true` if it would have come later.
    pub async fn bring_job_forward(&mut self, kind: &str, dedupe_key: &str, at: Timestamp) -> Result<bool, StoreError> {
        let sql = sql!(
            "update job set run_at = $4
             where org_id = $1 and kind = $2 and dedupe_key = $3 and state = 'future' and state <> 'dead' and run_at > $4"
        );
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, kind, dedupe_key, at]).await? > 0)
    }

    /// Removes the job of this kind and key unless a worker holds it: `true` if there was one.
    pub async fn remove_waiting_job(&mut self, kind: &str, dedupe_key: &str) -> Result<bool, StoreError> {
        // Dead letters are in an index of their own.
        let sql = sql!(
            "delete from job where org_id = $1 and kind = $2 and dedupe_key = $3 and state <> 'dead' and state <> 'leased'"
        );
        let org = self.org()?;
        let waiting = self.execute(sql, binds![org, kind, dedupe_key]).await?;
        let sql = sql!("delete from job where org_id = $1 and kind = $2 and dedupe_key = $3 and state = 'dead'");
        Ok(waiting + self.execute(sql, binds![org, kind, dedupe_key]).await? > 0)
    }

    /// Proves in this transaction that the lease is still held, keeps it so until the commit, and gives the attempt `deadline`
    /// from now on. Whoever commits a step has come forward: attempts are counted anew, this one as the first.
    ///
    /// # Errors
    /// [`StoreError::LostLease`].
    pub async fn hold_lease(&mut self, lease: &Lease, deadline: Duration, now: Timestamp) -> Result<(), StoreError> {
        self.renew_lease(lease, 1, deadline, now).await
    }

    /// As [`hold_lease`](Self::hold_lease), by a worker that has not come forward yet: the attempts stay.
    ///
    /// # Errors
    /// [`StoreError::LostLease`].
    pub async fn keep_lease(&mut self, lease: &Lease, deadline: Duration, now: Timestamp) -> Result<(), StoreError> {
        self.renew_lease(lease, lease.attempt, deadline, now).await
    }

    async fn renew_lease(
        &mut self,
        lease: &Lease,
        attempt: u32,
        deadline: Duration,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let org = self.lease_org(lease)?;
        let held = if self.is_postgres() {
            // The deadline goes by the database's clock, never a node's.
            let sql = sql_postgres!(
                "update job set deadline_at = clock_timestamp() + $5 * interval '1 microsecond', attempt = $6, updated_at = $7
                 where org_id = $1 and id = $2 and worker_id is not distinct from $3 and fence = $4 and state = 'leased'"
            );
            let values = binds![org, lease.job, lease.worker, lease.fence, micros(deadline), attempt, now];
            self.execute(sql, values).await?
        } else {
            let sql = sql!(
                "update job set deadline_at = $5, attempt = $6, updated_at = $7
                 where org_id = $1 and id = $2 and worker_id is not distinct from $3 and fence = $4 and state = 'leased'"
            );
            let deadline_at = self.monotonic_after(deadline);
            self.execute(sql, binds![org, lease.job, lease.worker, lease.fence, deadline_at, attempt, now]).await?
        };
        if held == 0 { Err(StoreError::LostLease) } else { Ok(()) }
    }

    /// Ends a held job: its work is done. If somebody enqueued it again while it was held, it begins anew at that time.
    ///
    /// # Errors
    /// [`StoreError::LostLease`].
    pub async fn finish_job(&mut self, lease: &Lease, now: Timestamp) -> Result<(), StoreError> {
        let org = self.lease_org(lease)?;
        let sql = sql!(
            "delete from job where org_id = $1 and id = $2 and worker_id is not distinct from $3 and fence = $4 and state = 'leased'
                 and rerun_at is null returning group_key"
        );
        if let Some(ended) = self.fetch_optional(sql, binds![org, lease.job, lease.worker, lease.fence]).await? {
            return self.admit_next(org, ended.get("group_key")?, now).await;
        }
        let sql = sql!(
            "update job set state = 'future', run_at = rerun_at, rerun_at = null, attempt = 0, error = null, worker_id = null,
                 deadline_at = null, updated_at = $5
             where org_id = $1 and id = $2 and worker_id is not distinct from $3 and fence = $4 and state = 'leased' and rerun_at is not null
             returning group_key"
        );
        let ended = self.fetch_optional(sql, binds![org, lease.job, lease.worker, lease.fence, now]).await?;
        self.admit_next(org, ended.ok_or(StoreError::LostLease)?.get("group_key")?, now).await
    }

    /// Puts a held job back for `run_at`. `count` says whether the attempt counts: a shutdown's and a full house's do not, and a
    /// wait's begins a new count. If somebody enqueued it again meanwhile for an earlier time, that time holds.
    ///
    /// # Errors
    /// [`StoreError::LostLease`].
    pub async fn release_job(
        &mut self,
        lease: &Lease,
        run_at: Timestamp,
        count: Attempt,
        error: Option<&str>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let state = if run_at > now { "future" } else { "ready" };
        let attempt = match count {
            Attempt::Counts => i64::from(lease.attempt),
            Attempt::DoesNotCount => i64::from(lease.attempt.saturating_sub(1)),
            Attempt::StartsAnew => 0,
        };
        let sql = sql!(
            "update job set state = case when rerun_at < $6 then 'future' else $5 end,
                 run_at = case when rerun_at < $6 then rerun_at else $6 end, rerun_at = null, attempt = $7, error = $8,
                 worker_id = null, deadline_at = null, updated_at = $9
             where org_id = $1 and id = $2 and worker_id is not distinct from $3 and fence = $4 and state = 'leased'
             returning group_key"
        );
        let org = self.lease_org(lease)?;
        let values = binds![org, lease.job, lease.worker, lease.fence, state, run_at, attempt, error, now];
        let ended = self.fetch_optional(sql, values).await?.ok_or(StoreError::LostLease)?;
        self.admit_next(org, ended.get("group_key")?, now).await
    }

    /// Gives a held job up for good: it goes to the dead letters. If somebody enqueued it again while it was held, that is a job of
    /// its own from then on, with a new count of attempts.
    ///
    /// # Errors
    /// [`StoreError::LostLease`].
    pub async fn bury_job(&mut self, lease: &Lease, error: &str, ambient: &Ambient) -> Result<(), StoreError> {
        let (org, now, id) = (self.lease_org(lease)?, ambient.now(), JobId::new(ambient));
        let sql = sql!(
            "update job set state = 'dead', error = $5, worker_id = null, deadline_at = null, updated_at = $6
             where org_id = $1 and id = $2 and worker_id is not distinct from $3 and fence = $4 and state = 'leased'
             returning group_key, rerun_at"
        );
        let values = binds![org, lease.job, lease.worker, lease.fence, error, now];
        let ended = self.fetch_optional(sql, values).await?.ok_or(StoreError::LostLease)?;
        if ended.get::<Option<Timestamp>>("rerun_at")?.is_some() {
            let sql = sql!(
                "insert into job (org_id, id, kind, lane, state, payload, priority, run_at, dedupe_key, attempt, attempts_max, fence,
                     group_key, group_limit, created_at, updated_at)
                 select org_id, $3, kind, lane, 'future', payload, priority, rerun_at, dedupe_key, 0, attempts_max, 0, group_key,
                     group_limit, $4, $4
                 from job where org_id = $1 and id = $2"
            );
            self.execute(sql, binds![org, lease.job, id, now]).await?;
            let sql = sql!("update job set rerun_at = null where org_id = $1 and id = $2");
            self.execute(sql, binds![org, lease.job]).await?;
        }
        self.admit_next(org, ended.get("group_key")?, now).await
    }

    /// Makes a job that was given up ready again, its attempts counted anew; where another one of its kind and key waits or is held,
    /// that one will do, and the dead one goes. `true` if it was there.
    pub async fn revive_job(&mut self, id: JobId, now: Timestamp) -> Result<bool, StoreError> {
        let org = self.org()?;
        let sql = sql!(
            "update job set state = 'ready', run_at = $3, attempt = 0, error = null, updated_at = $3
             where org_id = $1 and id = $2 and state = 'dead' and not exists (select 1 from job as other
                 where other.org_id = $1 and other.kind = job.kind and other.dedupe_key = job.dedupe_key and other.state <> 'dead')"
        );
        if self.execute(sql, binds![org, id, now]).await? > 0 {
            return Ok(true);
        }
        self.delete_dead_job(id).await
    }

    /// Removes a job that was given up: `true` if it was there.
    pub async fn delete_dead_job(&mut self, id: JobId) -> Result<bool, StoreError> {
        let sql = sql!("delete from job where org_id = $1 and id = $2 and state = 'dead'");
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, id]).await? > 0)
    }

    /// Registers a serving process. Its heartbeat expires `ttl` after the database's clock.
    pub async fn insert_worker(
        &mut self,
        id: WorkerId,
        name: &str,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        if self.is_postgres() {
            // The lease's clock is the database's, never a node's.
            let sql = sql_postgres!(
                "insert into worker (id, name, version, schema_version, state, clock_ahead_micros, started_at, expires_at)
                 values ($1, $2, $3, $4, 'serving', 0, clock_timestamp(), clock_timestamp() + $5 * interval '1 microsecond')"
            );
            self.execute(sql, binds![id, name, VERSION, migrations::newest(), micros(ttl)]).await.map(drop)
        } else {
            let sql = sql!(
                "insert into worker (id, name, version, schema_version, state, clock_ahead_micros, started_at, expires_at)
                 values ($1, $2, $3, $4, 'serving', 0, $5, $6)"
            );
            self.execute(sql, binds![id, name, VERSION, migrations::newest(), now, now.plus(ttl)]).await.map(drop)
        }
    }

    /// Renews a heartbeat. `false` when the row is gone: another node declared this one dead, and it must fence itself.
    pub async fn renew_worker(&mut self, id: WorkerId, now: Timestamp, ttl: Duration) -> Result<bool, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        if self.is_postgres() {
            // The lease's clock is the database's, never a node's. An expired heartbeat is not revived: others may act on it.
            let sql = sql_postgres!(
                "update worker set expires_at = clock_timestamp() + $2 * interval '1 microsecond'
                 where id = $1 and expires_at > clock_timestamp()"
            );
            Ok(self.execute(sql, binds![id, micros(ttl)]).await? > 0)
        } else {
            let sql = sql!("update worker set expires_at = $2 where id = $1");
            Ok(self.execute(sql, binds![id, now.plus(ttl)]).await? > 0)
        }
    }

    /// Removes a worker that ends in order (after its jobs were handed back).
    pub async fn delete_worker(&mut self, id: WorkerId) -> Result<(), StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!("delete from worker where id = $1");
        self.execute(sql, binds![id]).await.map(drop)
    }

    /// How many runs of the organization wait for their turn, up to `most`; those that sleep until a time or wait for a breaker are not
    /// counted. Looks at no more than `most` rows of each state.
    pub async fn count_waiting_runs(&mut self, most: u32) -> Result<u32, StoreError> {
        let sql = sql!(
            "select (select count(*) from (select 1 as one from job
                     where org_id = $1 and lane = 'interactive' and state = 'ready' limit $2) as ready)
                 + (select count(*) from (select 1 as one from job where org_id = $1 and state = 'blocked' limit $2) as blocked)
                 as waiting"
        );
        let org = self.org()?;
        let row = self.fetch_optional(sql, binds![org, most]).await?;
        let waiting: i64 = row.ok_or(StoreError::NotFound { what: "count" })?.get("waiting")?;
        Ok(u32::try_from(waiting).unwrap_or(u32::MAX).min(most))
    }

    /// Locks the job of this kind and key, if there is one, until the transaction ends. Whoever changes a run and its job locks the
    /// job first, as a worker's commit does.
    pub async fn lock_job(&mut self, kind: &str, dedupe_key: &str) -> Result<(), StoreError> {
        let org = self.org()?;
        if self.is_postgres() {
            // SQLite has one writer.
            let sql = sql_postgres!(
                "select id from job where org_id = $1 and kind = $2 and dedupe_key = $3 and state <> 'dead' for update"
            );
            self.fetch(sql, binds![org, kind, dedupe_key]).await?;
        }
        Ok(())
    }

    /// Whether a worker holds the job of this kind and key now.
    pub async fn is_job_held(&mut self, kind: &str, dedupe_key: &str) -> Result<bool, StoreError> {
        let sql = sql!(
            "select id from job where org_id = $1 and kind = $2 and dedupe_key = $3 and state = 'leased' and state <> 'dead'"
        );
        let org = self.org()?;
        Ok(self.fetch_optional(sql, binds![org, kind, dedupe_key]).await?.is_some())
    }

    /// The organization's jobs, newest first; `state` narrows when given.
    pub async fn list_jobs(&mut self, state: Option<&str>, page: PageRequest) -> Result<Page<Job>, StoreError> {
        let sql = sql!(
            "select id, kind, lane, state, payload, run_at, attempt, attempts_max, error, created_at from job
             where org_id = $1 and id < $2 and (cast($3 as text) is null or state = $3) order by id desc limit $4"
        );
        let org: OrgId = self.org()?;
        let rows = self.fetch(sql, binds![org, page.bound(), state, page.fetch()]).await?;
        let jobs = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(jobs, |job| job.id.uuid()))
    }
}

/// Whether an attempt that ends in [`Tx::release_job`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    Counts,
    DoesNotCount,
    StartsAnew,
}
