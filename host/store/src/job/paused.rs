//! Jobs out of the claim path because a breaker is open: `paused` until somebody lets them go.

use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{JobId, OrgId};
use bulkhead_model::job::Lease;
use bulkhead_model::permission::SystemReason;
use bulkhead_model::time::Timestamp;

use super::NewJob;
use crate::error::StoreError;
use crate::sql::{Row, binds, sql, sql_postgres};
use crate::tx::Tx;

impl Tx {
    /// As [`enqueue`](Self::enqueue), but the job waits, under the name `held_for`, until somebody lets it go, whatever its time is: a
    /// clock that steps back leaves one that is due in the future.
    pub async fn enqueue_paused(
        &mut self,
        job: &NewJob,
        held_for: &str,
        ambient: &Ambient,
    ) -> Result<Option<JobId>, StoreError> {
        let Some(id) = self.enqueue(job, ambient).await? else { return Ok(None) };
        let sql = sql!(
            "update job set state = 'paused', held_for = $3 where org_id = $1 and id = $2 and state in ('ready', 'future')"
        );
        let org = self.org()?;
        self.execute(sql, binds![org, id, held_for]).await?;
        Ok(Some(id))
    }

    /// Puts a held job aside, under the name `held_for`, until somebody lets it go. The attempt does not count.
    ///
    /// # Errors
    /// [`StoreError::LostLease`].
    pub async fn pause_job(&mut self, lease: &Lease, held_for: &str, now: Timestamp) -> Result<(), StoreError> {
        let sql = sql!(
            "update job set state = 'paused', held_for = $5, attempt = $6, rerun_at = null, worker_id = null, deadline_at = null,
                 updated_at = $7
             where org_id = $1 and id = $2 and worker_id is not distinct from $3 and fence = $4 and state = 'leased'
             returning group_key"
        );
        let org = self.lease_org(lease)?;
        let attempt = i64::from(lease.attempt.saturating_sub(1));
        let values = binds![org, lease.job, lease.worker, lease.fence, held_for, attempt, now];
        let paused = self.fetch_optional(sql, values).await?.ok_or(StoreError::LostLease)?;
        self.admit_next(org, paused.get("group_key")?, now).await
    }

    /// Lets the first `jobs` of those that wait under the name `held_for` go; answers their dedupe keys.
    /// Their places in the line stay; since when they are ready is told by `updated_at`.
    pub async fn resume_paused_jobs(
        &mut self,
        held_for: &str,
        jobs: u32,
        now: Timestamp,
    ) -> Result<Vec<String>, StoreError> {
        let (org, jobs) = (self.org()?, i64::from(jobs));
        let rows = if self.is_postgres() {
            // `for update skip locked`: another node may let the same ones go. Materialized, since a plan that chose for each row
            // anew would let more go than asked.
            let sql = sql_postgres!(
                "with picked as materialized (select id as paused_id from job
                     where org_id = $1 and held_for = $2 and state = 'paused' order by priority, run_at, id limit $3
                     for update skip locked)
                 update job set state = 'ready', held_for = null, updated_at = $4 from picked where org_id = $1 and id = paused_id
                 returning dedupe_key"
            );
            self.fetch(sql, binds![org, held_for, jobs, now]).await?
        } else {
            let sql = sql!(
                "update job set state = 'ready', held_for = null, updated_at = $4 where org_id = $1 and id in (select id from job
                     where org_id = $1 and held_for = $2 and state = 'paused' order by priority, run_at, id limit $3)
                 returning dedupe_key"
            );
            self.fetch(sql, binds![org, held_for, jobs, now]).await?
        };
        rows.iter().map(|row| Ok(row.get::<Option<String>>("dedupe_key")?.unwrap_or_default())).collect()
    }

    /// How many jobs of the organization wait under the name `held_for`, or under any without one; counts up to `most`.
    pub async fn count_paused_runs(&mut self, held_for: Option<&str>, most: u32) -> Result<u32, StoreError> {
        let org = self.org()?;
        let row = if let Some(held_for) = held_for {
            let sql = sql!(
                "select count(*) as paused from (select 1 as one from job
                     where org_id = $1 and held_for = $2 and state = 'paused' limit $3) as found"
            );
            self.fetch_optional(sql, binds![org, held_for, most]).await?
        } else {
            let sql = sql!(
                "select count(*) as paused from (select 1 as one from job where org_id = $1 and state = 'paused' limit $2) as found"
            );
            self.fetch_optional(sql, binds![org, most]).await?
        };
        let paused: i64 = row.ok_or(StoreError::NotFound { what: "count" })?.get("paused")?;
        Ok(u32::try_from(paused).unwrap_or(u32::MAX))
    }

    /// The names after `after` under which jobs wait, with their organizations, however many jobs each has. Needs the scope of
    /// `SystemReason::Jobs`.
    pub async fn list_paused_names(
        &mut self,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<(OrgId, String)>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        // The recursive part finds the next name by a search of the index, not by reading past the jobs of the last one.
        let sql = sql!(
            "with recursive found (held_for) as (
                 select (select held_for from job where state = 'paused' and held_for > $1 order by held_for limit 1)
                 union all
                 select (select held_for from job where state = 'paused' and held_for > found.held_for order by held_for limit 1)
                 from found where found.held_for is not null
             )
             select held_for, (select job.org_id from job where job.state = 'paused' and job.held_for = found.held_for limit 1) as org_id
             from found where held_for is not null limit $2"
        );
        let rows = self.fetch(sql, binds![after.unwrap_or_default(), limit]).await?;
        let read = |row: &Row| Ok((row.get("org_id")?, row.get("held_for")?));
        rows.iter().map(read).collect()
    }
}
