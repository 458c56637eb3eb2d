//! Looking at the queue without changing it.

use std::time::Duration;

use bulkhead_model::id::{JobId, OrgId, RunId, WorkerId};
use bulkhead_model::job::Lane;
use bulkhead_model::permission::SystemReason;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::sql::{Row, binds, sql, sql_postgres};
use crate::tx::Tx;

/// Jobs of a lane and state are counted up to here; a longer queue is told of as "more".
pub const JOBS_COUNT_MAX: i64 = 10_000;
/// Jobs before another one, and those that wait for a group, are counted up to here.
pub const AHEAD_COUNT_MAX: i64 = 1_000;
/// Priorities of one organization's lane that are looked at for its oldest job.
const PRIORITIES_MAX: i64 = 20;

/// Jobs of a lane, state and kind, of at most [`JOBS_COUNT_MAX`] + 1 that were looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobCount {
    pub lane: String,
    pub kind: String,
    pub count: i64,
}

/// Jobs of a lane that a node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldCount {
    pub lane: String,
    pub worker: WorkerId,
    pub count: i64,
}

/// A group (of a workflow's `concurrency`) whose jobs wait for room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockedGroup {
    pub key: String,
    pub limit: i64,
    pub held: i64,
    /// At most [`AHEAD_COUNT_MAX`] + 1.
    pub waiting: i64,
}

/// The first ready job of an organization, lane and priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadySince {
    pub org: OrgId,
    pub priority: i64,
    /// Since when it could have been taken: it was due, and neither its group nor a breaker held it back.
    pub since: Timestamp,
}

/// An organization's use of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneUse {
    pub held: i64,
    pub jobs_max: i64,
}

/// A job that waits or is held.
#[derive(Clone, Debug)]
pub struct LiveJob {
    pub id: JobId,
    pub lane: String,
    /// `future`, `ready`, `blocked`, `paused`, `leased`.
    pub state: String,
    pub priority: i64,
    pub run_at: Timestamp,
    pub attempt: i64,
    pub attempts_max: i64,
    pub error: Option<String>,
    pub group_key: Option<String>,
    pub group_limit: Option<i64>,
    /// Who holds it …
    pub worker: Option<WorkerId>,
    /// … and how long its attempt still has; negative once that is over. On SQLite only the serving process can tell.
    pub deadline_in_ms: Option<i64>,
    /// For a held one: when it was claimed, or its holder last came forward; for a ready one, when it became so.
    pub updated_at: Timestamp,
}

impl Tx {
    /// Has PostgreSQL find rows by indexes in this transaction: it would rather read a table in its order until a cap is reached, and
    /// where the rows that count lie at the end that is the whole table. Does nothing on SQLite, which does not.
    pub async fn prefer_indexes(&mut self) -> Result<(), StoreError> {
        if self.is_postgres() {
            let sql = sql_postgres!(
                "select set_config('enable_seqscan', 'off', true) as seqscan, set_config('enable_bitmapscan', 'off', true) as bitmapscan"
            );
            self.fetch(sql, &[]).await?;
        }
        Ok(())
    }

    /// The job of this kind and key that waits or is held.
    pub async fn load_live_job(&mut self, kind: &str, dedupe_key: &str) -> Result<Option<LiveJob>, StoreError> {
        let org = self.org()?;
        let row = if self.is_postgres() {
            // The deadline goes by the database's clock, never a node's.
            let sql = sql_postgres!(
                "select id, lane, state, priority, run_at, attempt, attempts_max, error, group_key, group_limit, worker_id, updated_at,
                     cast(extract(epoch from deadline_at - clock_timestamp()) * 1000 as bigint) as deadline_in_ms
                 from job where org_id = $1 and kind = $2 and dedupe_key = $3 and state <> 'dead'"
            );
            self.fetch_optional(sql, binds![org, kind, dedupe_key]).await?
        } else {
            let sql = sql!(
                "select id, lane, state, priority, run_at, attempt, attempts_max, error, group_key, group_limit, worker_id, updated_at,
                     (deadline_at - $4) / 1000 as deadline_in_ms
                 from job where org_id = $1 and kind = $2 and dedupe_key = $3 and state <> 'dead'"
            );
            let moment = self.monotonic_after(Duration::ZERO).as_micros();
            self.fetch_optional(sql, binds![org, kind, dedupe_key, moment]).await?
        };
        row.map(|row| {
            Ok(LiveJob {
                id: row.get("id")?,
                lane: row.get("lane")?,
                state: row.get("state")?,
                priority: row.get("priority")?,
                run_at: row.get("run_at")?,
                attempt: row.get("attempt")?,
                attempts_max: row.get("attempts_max")?,
                error: row.get("error")?,
                group_key: row.get("group_key")?,
                group_limit: row.get("group_limit")?,
                worker: row.get("worker_id")?,
                deadline_in_ms: row.get("deadline_in_ms")?,
                updated_at: row.get("updated_at")?,
            })
        })
        .transpose()
    }

    /// Whether any organization's job of this kind and key waits or is held. Needs the scope of `SystemReason::Jobs`.
    pub async fn is_job_live(&mut self, org: OrgId, kind: &str, dedupe_key: &str) -> Result<bool, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!("select id from job where org_id = $1 and kind = $2 and dedupe_key = $3 and state <> 'dead'");
        Ok(self.fetch_optional(sql, binds![org, kind, dedupe_key]).await?.is_some())
    }

    /// The organization's jobs of a lane that are ready, by kind. Here and for dead ones the order is that of an index, so that the planner of a large table
    /// does not hope to come upon enough of them in the table itself.
    pub async fn count_ready_jobs_of_org(&mut self, lane: Lane) -> Result<Vec<JobCount>, StoreError> {
        let sql = sql!(
            "select lane, kind, count(*) as jobs from (select lane, kind from job
                 where state = 'ready' and lane = $2 and org_id = $1 order by priority, run_at, id limit $3) as counted group by lane, kind order by lane, kind"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, lane.as_str(), JOBS_COUNT_MAX + 1]).await?;
        rows.iter().map(read_count).collect()
    }

    /// … whose time has not come.
    pub async fn count_future_jobs_of_org(&mut self, lane: Lane) -> Result<Vec<JobCount>, StoreError> {
        let sql = sql!(
            "select lane, kind, count(*) as jobs from (select lane, kind from job
                 where org_id = $1 and lane = $2 and state = 'future' limit $3) as counted group by lane, kind order by lane, kind"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, lane.as_str(), JOBS_COUNT_MAX + 1]).await?;
        rows.iter().map(read_count).collect()
    }

    /// … that were given up.
    pub async fn count_dead_jobs_of_org(&mut self, lane: Lane) -> Result<Vec<JobCount>, StoreError> {
        let sql = sql!(
            "select lane, kind, count(*) as jobs from (select lane, kind from job
                 where org_id = $1 and lane = $2 and state = 'dead' order by id limit $3) as counted group by lane, kind order by lane, kind"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, lane.as_str(), JOBS_COUNT_MAX + 1]).await?;
        rows.iter().map(read_count).collect()
    }

    /// The organization's jobs of all lanes that wait for room in their group.
    pub async fn count_blocked_jobs_of_org(&mut self) -> Result<Vec<JobCount>, StoreError> {
        let sql = sql!(
            "select lane, kind, count(*) as jobs from (select lane, kind from job
                 where org_id = $1 and state = 'blocked' limit $2) as counted group by lane, kind order by lane, kind"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, JOBS_COUNT_MAX + 1]).await?;
        rows.iter().map(read_count).collect()
    }

    /// … that wait for a breaker.
    pub async fn count_paused_jobs_of_org(&mut self) -> Result<Vec<JobCount>, StoreError> {
        let sql = sql!(
            "select lane, kind, count(*) as jobs from (select lane, kind from job
                 where org_id = $1 and state = 'paused' limit $2) as counted group by lane, kind order by lane, kind"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, JOBS_COUNT_MAX + 1]).await?;
        rows.iter().map(read_count).collect()
    }

    /// The organization's jobs that workers hold, by kind …
    pub async fn count_leased_jobs_of_org(&mut self, lane: Lane) -> Result<Vec<JobCount>, StoreError> {
        let sql = sql!(
            "select lane, kind, count(*) as jobs from job
             where org_id = $1 and lane = $2 and state = 'leased' group by lane, kind order by lane, kind"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, lane.as_str()]).await?;
        rows.iter().map(read_count).collect()
    }

    /// … and by who holds them.
    pub async fn list_holders_of_org(&mut self, lane: Lane) -> Result<Vec<HeldCount>, StoreError> {
        let sql = sql!(
            "select lane, worker_id, count(*) as jobs from job
             where org_id = $1 and lane = $2 and state = 'leased' group by lane, worker_id order by worker_id"
        );
        let org = self.org()?;
        self.fetch(sql, binds![org, lane.as_str()]).await?.iter().map(read_held).collect()
    }

    /// Since when the organization's first ready job of the lane, of whichever priority waits longest, could have been taken: it was
    /// due, and neither its group nor a breaker held it back.
    pub async fn load_ready_since(&mut self, lane: Lane) -> Result<Option<Timestamp>, StoreError> {
        // The index orders by priority first: the first of each priority, found by a search. What held it back has set `updated_at`.
        let sql = sql!(
            "with recursive found (priority) as (
                 select (select priority from job where state = 'ready' and lane = $2 and org_id = $1 order by priority limit 1)
                 union all
                 select (select priority from job where state = 'ready' and lane = $2 and org_id = $1 and priority > found.priority
                     order by priority limit 1)
                 from found where found.priority is not null
             )
             select (select case when updated_at > run_at then updated_at else run_at end as since from job
                 where state = 'ready' and lane = $2 and org_id = $1 and priority = found.priority order by job.run_at limit 1) as since
             from found where priority is not null limit $3"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, lane.as_str(), PRIORITIES_MAX]).await?;
        let found = rows.iter().map(|row| row.get::<Timestamp>("since")).collect::<Result<Vec<_>, _>>()?;
        Ok(found.into_iter().min())
    }

    /// When the organization's next job of the lane is due.
    pub async fn load_next_due(&mut self, lane: Lane) -> Result<Option<Timestamp>, StoreError> {
        let sql =
            sql!("select run_at from job where org_id = $1 and lane = $2 and state = 'future' order by run_at limit 1");
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, lane.as_str()]).await?.map(|row| row.get("run_at")).transpose()
    }

    /// The organization's groups whose jobs wait, by key.
    pub async fn list_blocked_groups(&mut self, limit: u32) -> Result<Vec<BlockedGroup>, StoreError> {
        let sql = sql!(
            "with recursive found (group_key) as (
                 select (select group_key from job where org_id = $1 and state = 'blocked' order by group_key limit 1)
                 union all
                 select (select group_key from job where org_id = $1 and state = 'blocked' and group_key > found.group_key
                     order by group_key limit 1)
                 from found where found.group_key is not null
             )
             select group_key,
                 (select count(*) from job as held
                     where held.org_id = $1 and held.group_key = found.group_key and held.state = 'leased') as held,
                 (select count(*) from (select 1 as one from job as waits
                     where waits.org_id = $1 and waits.group_key = found.group_key and waits.state = 'blocked' limit $2) as counted)
                     as waiting,
                 coalesce((select max(group_limit) from (select group_limit from job as first
                     where first.org_id = $1 and first.group_key = found.group_key and first.state = 'blocked' limit 1) as one), 0)
                     as group_limit
             from found where group_key is not null limit $3"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, AHEAD_COUNT_MAX + 1, i64::from(limit)]).await?;
        rows.iter()
            .map(|row| {
                Ok(BlockedGroup {
                    key: row.get("group_key")?,
                    limit: row.get("group_limit")?,
                    held: row.get("held")?,
                    waiting: row.get("waiting")?,
                })
            })
            .collect()
    }

    /// Runs that are carried now of those that count together; `limit` of them.
    pub async fn list_group_runs(&mut self, group: &str, limit: u32) -> Result<Vec<RunId>, StoreError> {
        let sql = sql!(
            "select dedupe_key from job
             where org_id = $1 and group_key = $2 and state = 'leased' and dedupe_key is not null limit $3"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, group, i64::from(limit)]).await?;
        let keys = rows.iter().map(|row| row.get::<String>("dedupe_key")).collect::<Result<Vec<_>, _>>()?;
        Ok(keys.into_iter().filter_map(|key| key.parse().ok()).collect())
    }

    /// How many of the group are held.
    pub async fn count_group_held(&mut self, group: &str) -> Result<i64, StoreError> {
        let sql = sql!("select count(*) as jobs from job where org_id = $1 and group_key = $2 and state = 'leased'");
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, group]).await?.map_or(Ok(0), |row| row.get("jobs"))
    }

    /// How many of the organization's ready jobs have their turn before this one; more than [`AHEAD_COUNT_MAX`] where there are more.
    pub async fn count_jobs_ahead(&mut self, lane: Lane, job: &LiveJob) -> Result<i64, StoreError> {
        // Three ranges of the index: as one comparison of rows SQLite would read past all that come after.
        let sql = sql!(
            "select (select count(*) from (select 1 as one from job
                     where state = 'ready' and lane = $2 and org_id = $1 and priority < $3 limit $6) as counted)
                 + (select count(*) from (select 1 as one from job
                     where state = 'ready' and lane = $2 and org_id = $1 and priority = $3 and run_at < $4 limit $6) as counted)
                 + (select count(*) from (select 1 as one from job
                     where state = 'ready' and lane = $2 and org_id = $1 and priority = $3 and run_at = $4 and id < $5 limit $6)
                     as counted) as jobs"
        );
        let org = self.org()?;
        let values = binds![org, lane.as_str(), job.priority, job.run_at, job.id, AHEAD_COUNT_MAX + 1];
        self.fetch_optional(sql, values).await?.map_or(Ok(0), |row| row.get("jobs"))
    }

    /// How many jobs of a lane the organization holds, and may.
    pub async fn load_lane_use(&mut self, lane: Lane) -> Result<LaneUse, StoreError> {
        let sql = sql!(
            "select jobs_max, (select count(*) from job where job.org_id = $1 and job.lane = $2 and job.state = 'leased') as held
             from organization where id = $1"
        );
        let org = self.org()?;
        let row = self.fetch_optional(sql, binds![org, lane.as_str()]).await?;
        let row = row.ok_or(StoreError::NotFound { what: "organization" })?;
        Ok(LaneUse { held: row.get("held")?, jobs_max: row.get("jobs_max")? })
    }

    /// All organizations' ready jobs of a lane, by kind. Needs the scope of `SystemReason::Jobs`, as all that follow.
    pub async fn count_ready_jobs(&mut self, lane: Lane) -> Result<Vec<JobCount>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!(
            "select lane, kind, count(*) as jobs from (select lane, kind from job
                 where state = 'ready' and lane = $1 limit $2) as counted group by lane, kind order by lane, kind"
        );
        let rows = self.fetch(sql, binds![lane.as_str(), JOBS_COUNT_MAX + 1]).await?;
        rows.iter().map(read_count).collect()
    }

    /// All organizations' jobs whose time has not come, of [`JOBS_COUNT_MAX`] + 1 of them.
    pub async fn count_future_jobs(&mut self) -> Result<Vec<JobCount>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!(
            "select lane, kind, count(*) as jobs from (select lane, kind from job
                 where state = 'future' limit $1) as counted group by lane, kind order by lane, kind"
        );
        self.fetch(sql, binds![JOBS_COUNT_MAX + 1]).await?.iter().map(read_count).collect()
    }

    /// … that wait for room in their group.
    pub async fn count_blocked_jobs(&mut self) -> Result<Vec<JobCount>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!(
            "select lane, kind, count(*) as jobs from (select lane, kind from job
                 where state = 'blocked' limit $1) as counted group by lane, kind order by lane, kind"
        );
        self.fetch(sql, binds![JOBS_COUNT_MAX + 1]).await?.iter().map(read_count).collect()
    }

    /// … that wait for a breaker.
    pub async fn count_paused_jobs(&mut self) -> Result<Vec<JobCount>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!(
            "select lane, kind, count(*) as jobs from (select lane, kind from job
                 where state = 'paused' limit $1) as counted group by lane, kind order by lane, kind"
        );
        self.fetch(sql, binds![JOBS_COUNT_MAX + 1]).await?.iter().map(read_count).collect()
    }

    /// … that were given up.
    pub async fn count_dead_jobs(&mut self) -> Result<Vec<JobCount>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!(
            "select lane, kind, count(*) as jobs from (select lane, kind from job
                 where state = 'dead' limit $1) as counted group by lane, kind order by lane, kind"
        );
        self.fetch(sql, binds![JOBS_COUNT_MAX + 1]).await?.iter().map(read_count).collect()
    }

    /// The short name of an organization that has jobs.
    pub async fn load_queue_slug(&mut self, org: OrgId) -> Result<Option<String>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!("select slug from organization where id = $1");
        self.fetch_optional(sql, binds![org]).await?.map(|row| row.get("slug")).transpose()
    }

    /// What each node holds; never more than nodes have slots.
    pub async fn list_holders(&mut self) -> Result<Vec<HeldCount>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!(
            "select lane, worker_id, count(*) as jobs from job
             where state = 'leased' group by lane, worker_id order by worker_id, lane"
        );
        self.fetch(sql, &[]).await?.iter().map(read_held).collect()
    }

    /// The first ready job of each organization and priority of the lane, of the first `limit` pairs. Each costs a few searches of the
    /// index, however long its queue is.
    pub async fn list_ready_since(&mut self, lane: Lane, limit: u32) -> Result<Vec<ReadySince>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!(
            "with recursive found (org_id, priority) as (
                 select (select org_id from job where state = 'ready' and lane = $1 order by org_id, priority limit 1),
                     (select priority from job where state = 'ready' and lane = $1 order by org_id, priority limit 1)
                 union all
                 select coalesce((select org_id from job where state = 'ready' and lane = $1 and org_id = found.org_id
                             and priority > found.priority order by priority limit 1),
                         (select org_id from job where state = 'ready' and lane = $1 and org_id > found.org_id
                             order by org_id limit 1)),
                     coalesce((select priority from job where state = 'ready' and lane = $1 and org_id = found.org_id
                             and priority > found.priority order by priority limit 1),
                         (select priority from job where state = 'ready' and lane = $1 and org_id > found.org_id
                             order by org_id, priority limit 1))
                 from found where found.org_id is not null
             )
             select org_id, priority, (select case when updated_at > run_at then updated_at else run_at end as since from job
                 where state = 'ready' and lane = $1 and org_id = found.org_id and priority = found.priority
                 order by job.run_at limit 1) as since
             from found where org_id is not null limit $2"
        );
        let rows = self.fetch(sql, binds![lane.as_str(), i64::from(limit)]).await?;
        let read = |row: &Row| {
            Ok(ReadySince { org: row.get("org_id")?, priority: row.get("priority")?, since: row.get("since")? })
        };
        rows.iter().map(read).collect()
    }
}

fn read_count(row: &Row) -> Result<JobCount, StoreError> {
    Ok(JobCount { lane: row.get("lane")?, kind: row.get("kind")?, count: row.get("jobs")? })
}

fn read_held(row: &Row) -> Result<HeldCount, StoreError> {
    Ok(HeldCount { lane: row.get("lane")?, worker: row.get("worker_id")?, count: row.get("jobs")? })
}
