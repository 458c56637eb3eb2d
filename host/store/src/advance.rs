//! What a worker's commit reads and writes, in as few round trips as the database allows: on PostgreSQL each statement of a transaction
//! is one, with the run's and the job's rows locked meanwhile. SQLite's statements run in place; there they are simply called.

use std::time::Duration;

use bulkhead_model::grant::GrantVersion;
use bulkhead_model::id::{InstallationId, RunId};
use bulkhead_model::job::Lease;
use bulkhead_model::run::RunStatus;
use bulkhead_model::time::Timestamp;

use crate::call::{Call, CallBytes, CallTexts};
use crate::error::StoreError;
use crate::installation::InstallationState;
use crate::job::micros;
use crate::run::{RunEvent, Step};
use crate::sql::{Bind, Row, binds, sql_postgres};
use crate::tx::Tx;

/// Where a run and the installation of its call stand, both rows locked until the transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub status: RunStatus,
    /// The number of the run's newest log entry.
    pub log_seq: i64,
    /// As in [`Kept`](crate::run::Kept).
    pub held_bytes: i64,
    pub log_bytes: i64,
    /// `None`: not asked for, or not there.
    pub installation: Option<(GrantVersion, InstallationState)>,
}

fn read_standing(row: &Row) -> Result<Standing, StoreError> {
    let version: Option<i64> = row.get("grant_version")?;
    let state: Option<String> = row.get("state")?;
    let installation = version.zip(state).map(|(version, state)| {
        let known = InstallationState::parse(&state);
        known.map(|state| (GrantVersion(version), state)).ok_or_else(|| StoreError::corrupt("state", "unknown value"))
    });
    Ok(Standing {
        status: row.parsed("status", RunStatus::parse)?,
        log_seq: row.get("log_seq")?,
        held_bytes: row.get("held_bytes")?,
        log_bytes: row.get("log_bytes")?,
        installation: installation.transpose()?,
    })
}

impl Tx {
    /// [`hold_lease`](Self::hold_lease), then [`lock_standing`](Self::lock_standing).
    ///
    /// # Errors
    /// [`StoreError::LostLease`]; [`StoreError::NotFound`] when the run is gone.
    pub async fn hold_standing(
        &mut self,
        lease: &Lease,
        deadline: Duration,
        now: Timestamp,
        run: RunId,
        installation: Option<InstallationId>,
    ) -> Result<Standing, StoreError> {
        if !self.is_postgres() {
            self.hold_lease(lease, deadline, now).await?;
            return self.lock_standing(run, installation).await;
        }
        let org = self.lease_org(lease)?;
        // One round trip for three. The job's row is locked first, since the run's row is read through it; both are read as they are
        // once their locks are there. The deadline goes by the database's clock, never a node's.
        let sql = sql_postgres!(
            "with held as (
                 update job set deadline_at = clock_timestamp() + $5 * interval '1 microsecond', attempt = 1, updated_at = $6
                 where org_id = $1 and id = $2 and worker_id is not distinct from $3 and fence = $4 and state = 'leased' returning id),
             of_call as materialized (
                 select grant_version, state from installation where org_id = $1 and id = $8 and (select count(*) from held) = 1 for share)
             select status, log_seq, held_bytes, log_bytes, (select grant_version from of_call) as grant_version, (select state from of_call) as state
             from run where org_id = $1 and id = $7 and (select count(*) from held) = 1 for update"
        );
        let values = binds![org, lease.job, lease.worker, lease.fence, micros(deadline), now, run, installation];
        match self.fetch_optional(sql, values).await? {
            Some(row) => read_standing(&row),
            // Either the lease or the run is gone.
            None => self.lock_run_place(run).await.and(Err(StoreError::LostLease)),
        }
    }

    /// [`lock_run_place`](Self::lock_run_place) and [`lock_installation_version`](Self::lock_installation_version).
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the run is gone.
    pub async fn lock_standing(
        &mut self,
        run: RunId,
        installation: Option<InstallationId>,
    ) -> Result<Standing, StoreError> {
        if let (true, Some(installation)) = (self.is_postgres(), installation) {
            let org = self.org()?;
            // One round trip for two.
            let sql = sql_postgres!(
                "with of_call as materialized (
                     select grant_version, state from installation where org_id = $1 and id = $3 for share)
                 select status, log_seq, held_bytes, log_bytes, (select grant_version from of_call) as grant_version, (select state from of_call) as state
                 from run where org_id = $1 and id = $2 for update"
            );
            let row = self.fetch_optional(sql, binds![org, run, installation]).await?;
            return read_standing(&row.ok_or(StoreError::NotFound { what: "run" })?);
        }
        let standing = self.lock_run_place(run).await?;
        let installation = match installation {
            Some(installation) => self.lock_installation_version(installation).await?,
            None => None,
        };
        Ok(Standing { installation, ..standing })
    }

    /// A finished call, its step's row and its line in the run's log: [`record_call`](Self::record_call),
    /// [`save_step`](Self::save_step), [`record_run_event`](Self::record_run_event). Answers what the call takes up.
    pub async fn record_called_step(
        &mut self,
        run: RunId,
        call: &Call,
        step: &Step,
        event: &RunEvent,
    ) -> Result<CallBytes, StoreError> {
        if !self.is_postgres() {
            let bytes = self.record_call(call).await?;
            self.save_step(run, step).await?;
            self.record_run_event(run, event).await?;
            return Ok(bytes);
        }
        let texts = CallTexts::of(call)?;
        // One round trip for three; the rows do not see each other, and need not. A test holds the columns to those of the three.
        let sql = sql_postgres!(
            "with called as (
                 insert into call (org_id, id, installation_id, plugin_id, run_id, step_id, attempt, contribution, grant_version, outcome,
                     input, output, error, usage, limits, log, egress, refusals, created_at)
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)),
             saved as (
                 insert into step (org_id, run_id, step_id, iteration, position, status, outcome, attempts, input, output, error, usage,
                     call_id, started_at, finished_at)
                 values ($1, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33)
                 on conflict (org_id, run_id, step_id, iteration) do update set status = excluded.status,
                     outcome = coalesce(excluded.outcome, step.outcome), attempts = excluded.attempts,
                     input = coalesce(excluded.input, step.input), output = excluded.output, error = excluded.error,
                     usage = coalesce(excluded.usage, step.usage), call_id = coalesce(excluded.call_id, step.call_id),
                     started_at = coalesce(step.started_at, excluded.started_at), finished_at = excluded.finished_at)
             insert into run_event (org_id, run_id, seq, kind, detail, created_at) values ($1, $20, $34, $35, $36, $37)"
        );
        let org = self.org()?;
        let values = [
            &[Bind::from(org)][..],
            &texts.values(call)[..],
            &[run.into()][..],
            &step.values()[..],
            &event.values()[..],
        ]
        .concat();
        self.execute(sql, &values).await?;
        Ok(texts.bytes(call))
    }
}
