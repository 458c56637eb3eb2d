//! Breakers of workflows: a row for each version whose runs failed, locked while it is changed, so that all nodes agree.

use bulkhead_model::breaker::{Breaker, Stand};
use bulkhead_model::id::{OrgId, RunId, WorkflowId};
use bulkhead_model::permission::SystemReason;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::sql::{Row, binds, sql, sql_postgres};
use crate::tx::Tx;

/// Of a workflow's newest runs that succeeded, and of those that failed, so many are looked at.
const ENDED_MAX: i64 = 50;
/// What the error of a run says, as it is stored, that a `stop` step ended as failed on purpose. Quotes inside of a message are escaped,
/// so that none can say so.
const STOPPED: &str = "%\"code\":\"stopped\"%";

/// A breaker with what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerState {
    pub workflow: WorkflowId,
    pub version: i64,
    pub breaker: Breaker,
    /// JSON text: the last failure's error, as a run shows it.
    pub error: Option<String>,
}

fn read(row: &Row) -> Result<BreakerState, StoreError> {
    let state: String = row.get("state")?;
    let corrupt = |why: &str| StoreError::corrupt("breaker", why);
    let opened_at = row.get::<Option<Timestamp>>("opened_at")?;
    let until = row.get::<Option<Timestamp>>("until_at")?;
    let stand = match (state.as_str(), opened_at, until, row.get::<Option<RunId>>("probe_run_id")?) {
        ("closed", None, None, None) => Stand::Closed,
        ("open", Some(opened_at), Some(probe_at), None) => Stand::Open { opened_at, probe_at },
        ("probing", Some(opened_at), Some(until), Some(run)) => Stand::Probing { opened_at, run, until },
        _ => return Err(corrupt("its state does not fit its columns")),
    };
    let fingerprint = row.get::<Option<String>>("fingerprint")?;
    let fingerprint =
        fingerprint.map(|text| text.parse()).transpose().map_err(|error| StoreError::corrupt("breaker", error))?;
    Ok(BreakerState {
        workflow: row.get("workflow_id")?,
        version: row.get("version")?,
        breaker: Breaker {
            stand,
            fingerprint,
            failures: row.get("failures")?,
            since: row.get("since_at")?,
            probes: row.get("probes")?,
        },
        error: row.get("error")?,
    })
}

impl Tx {
    /// The breaker of a workflow's version, its row locked until the transaction ends; a closed one is made where there is none.
    pub async fn begin_breaker(
        &mut self,
        workflow: WorkflowId,
        version: i64,
        now: Timestamp,
    ) -> Result<BreakerState, StoreError> {
        let sql = sql!(
            "insert into breaker (org_id, workflow_id, version, state, failures, since_at, probes, updated_at)
             values ($1, $2, $3, 'closed', 0, $4, 0, $4)
             on conflict (org_id, workflow_id, version) do update set updated_at = excluded.updated_at
             returning workflow_id, version, state, fingerprint, failures, since_at, opened_at, until_at, probe_run_id, probes, error"
        );
        let org = self.org()?;
        let row = self.fetch_optional(sql, binds![org, workflow, version, now]).await?;
        read(&row.ok_or(StoreError::NotFound { what: "breaker" })?)
    }

    /// The breaker of a workflow's version if there is one, its row locked until the transaction ends.
    pub async fn lock_breaker(
        &mut self,
        workflow: WorkflowId,
        version: i64,
    ) -> Result<Option<BreakerState>, StoreError> {
        let org = self.org()?;
        let row = if self.is_postgres() {
            // SQLite has one writer.
            let sql = sql_postgres!(
                "select workflow_id, version, state, fingerprint, failures, since_at, opened_at, until_at, probe_run_id, probes, error
                 from breaker where org_id = $1 and workflow_id = $2 and version = $3 for update"
            );
            self.fetch_optional(sql, binds![org, workflow, version]).await?
        } else {
            let sql = sql!(
                "select workflow_id, version, state, fingerprint, failures, since_at, opened_at, until_at, probe_run_id, probes, error
                 from breaker where org_id = $1 and workflow_id = $2 and version = $3"
            );
            self.fetch_optional(sql, binds![org, workflow, version]).await?
        };
        row.as_ref().map(read).transpose()
    }

    /// Saves a breaker whose row is there.
    pub async fn save_breaker(&mut self, state: &BreakerState, now: Timestamp) -> Result<(), StoreError> {
        let sql = sql!(
            "update breaker set state = $4, fingerprint = $5, failures = $6, since_at = $7, opened_at = $8, until_at = $9,
                 probe_run_id = $10, probes = $11, error = $12, updated_at = $13
             where org_id = $1 and workflow_id = $2 and version = $3"
        );
        let org = self.org()?;
        let breaker = &state.breaker;
        let (name, opened_at, until, probe) = match breaker.stand {
            Stand::Closed => ("closed", None, None, None),
            Stand::Open { opened_at, probe_at } => ("open", Some(opened_at), Some(probe_at), None),
            Stand::Probing { opened_at, run, until } => ("probing", Some(opened_at), Some(until), Some(run)),
        };
        let values = binds![
            org,
            state.workflow,
            state.version,
            name,
            breaker.fingerprint.as_ref().map(bulkhead_model::fault::Fingerprint::as_str),
            breaker.failures,
            breaker.since,
            opened_at,
            until,
            probe,
            breaker.probes,
            &state.error,
            now
        ];
        self.execute(sql, values).await.map(drop)
    }

    /// Forgets a breaker with its failures: `true` if there was one.
    pub async fn delete_breaker(&mut self, workflow: WorkflowId, version: i64) -> Result<bool, StoreError> {
        let sql = sql!("delete from breaker where org_id = $1 and workflow_id = $2 and version = $3");
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, workflow, version]).await? > 0)
    }

    /// The breakers of a workflow that are not closed, oldest version first.
    pub async fn list_breakers(&mut self, workflow: WorkflowId) -> Result<Vec<BreakerState>, StoreError> {
        let sql = sql!(
            "select workflow_id, version, state, fingerprint, failures, since_at, opened_at, until_at, probe_run_id, probes, error
             from breaker where org_id = $1 and workflow_id = $2 and state <> 'closed' order by version"
        );
        let org = self.org()?;
        self.fetch(sql, binds![org, workflow]).await?.iter().map(read).collect()
    }

    /// The breakers that are not closed, of each organization up to `of_each` and in all up to `limit`. The order is fixed, and an
    /// organization's first comes before another's second. Needs the scope of `SystemReason::Jobs`.
    pub async fn list_open_breakers(
        &mut self,
        of_each: u32,
        limit: u32,
    ) -> Result<Vec<(OrgId, BreakerState)>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!(
            "select org_id, workflow_id, version, state, fingerprint, failures, since_at, opened_at, until_at, probe_run_id, probes, error
             from (select org_id, workflow_id, version, state, fingerprint, failures, since_at, opened_at, until_at, probe_run_id, probes,
                     error, row_number() over (partition by org_id order by workflow_id, version) as place
                 from breaker where state <> 'closed') as placed
             where place <= $1 order by place, org_id limit $2"
        );
        let rows = self.fetch(sql, binds![of_each, limit]).await?;
        rows.iter().map(|row| Ok((row.get("org_id")?, read(row)?))).collect()
    }

    /// Whether one of the newest runs of a workflow's version that ended well did so at `since` or after: it succeeded, or a `stop`
    /// step ended it as failed on purpose.
    pub async fn has_succeeded_since(
        &mut self,
        workflow: WorkflowId,
        version: i64,
        since: Timestamp,
    ) -> Result<bool, StoreError> {
        let sql = sql!(
            "select version from (select version, finished_at from run
                 where org_id = $1 and workflow_id = $2 and status = 'succeeded' order by id desc limit $5) as newest
             where version = $3 and finished_at >= $4 limit 1"
        );
        let org = self.org()?;
        if self.fetch_optional(sql, binds![org, workflow, version, since, ENDED_MAX]).await?.is_some() {
            return Ok(true);
        }
        let sql = sql!(
            "select version from (select version, finished_at, error from run
                 where org_id = $1 and workflow_id = $2 and status = 'failed' order by id desc limit $5) as newest
             where version = $3 and finished_at >= $4 and error like $6 limit 1"
        );
        Ok(self.fetch_optional(sql, binds![org, workflow, version, since, ENDED_MAX, STOPPED]).await?.is_some())
    }
}
