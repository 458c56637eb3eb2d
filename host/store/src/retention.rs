//! How long an organization keeps what has ended (its policy), and what its job found and removed (the history's row).

use bulkhead_model::id::{CallId, OrgId};
use bulkhead_model::permission::SystemReason;
use bulkhead_model::retention::RetentionPolicy;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::sql::{binds, sql};
use crate::tx::Tx;

/// An organization's own policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPolicy {
    pub policy: RetentionPolicy,
    /// Rises with every change.
    pub revision: i64,
    pub updated_at: Timestamp,
}

/// What has ended and is still kept, as the job last counted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Runs that ended, and calls by hand.
    pub runs: i64,
    /// … and what they take up.
    pub bytes: i64,
    /// Runs that ended up to this moment are counted …
    pub runs_counted_to: Timestamp,
    /// … and calls by hand before this id.
    pub calls_counted_to: CallId,
    /// When everything was last counted from the beginning.
    pub recounted_at: Timestamp,
    /// Runs that were begun again so far, which [`note_retries`](Tx::note_retries) alone raises …
    pub retried: i64,
    /// … and how many of them the last count from the beginning knew of. A run that is begun again counts twice until the next one.
    pub retried_counted: i64,
    pub looked_at: Timestamp,
    /// Since when the quota is used up with nothing left that may go.
    pub full_since: Option<Timestamp>,
    /// The last pass that removed something.
    pub pass: Option<Pass>,
}

/// A pass that removed something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    pub began_at: Timestamp,
    /// `None`: it goes on.
    pub ended_at: Option<Timestamp>,
    pub runs: i64,
    pub calls: i64,
    pub events: i64,
    /// What the runs and calls took up.
    pub bytes: i64,
    /// Runs and calls that went before their time, for the quota's sake.
    pub evicted: i64,
}

impl Pass {
    #[must_use]
    pub fn begun(at: Timestamp) -> Self {
        Self { began_at: at, ended_at: None, runs: 0, calls: 0, events: 0, bytes: 0, evicted: 0 }
    }

    /// It goes on, and has taken something before its time.
    #[must_use]
    pub fn is_cutting(&self) -> bool {
        self.ended_at.is_none() && self.evicted > 0
    }
}

impl Tx {
    /// The organization's own policy; `None` while it has the platform's default.
    pub async fn load_retention(&mut self) -> Result<Option<StoredPolicy>, StoreError> {
        let sql = sql!("select policy, revision, updated_at from retention where org_id = $1");
        let org = self.org()?;
        let Some(row) = self.fetch_optional(sql, binds![org]).await? else { return Ok(None) };
        let policy: RetentionPolicy = row.json("policy")?;
        policy.check().map_err(|wrong| StoreError::corrupt("retention", format_args!("{wrong:?}")))?;
        Ok(Some(StoredPolicy { policy, revision: row.get("revision")?, updated_at: row.get("updated_at")? }))
    }

    /// Saves the organization's policy over the revision that was seen (0: the default): `false` if it is another one by now.
    pub async fn save_retention(
        &mut self,
        policy: &RetentionPolicy,
        seen: i64,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let policy = serde_json::to_string(policy).map_err(|error| StoreError::corrupt("retention", error))?;
        let org = self.org()?;
        let saved = if seen == 0 {
            let sql = sql!(
                "insert into retention (org_id, policy, revision, updated_at) values ($1, $2, 1, $3)
                 on conflict (org_id) do nothing"
            );
            self.execute(sql, binds![org, &policy, now]).await?
        } else {
            let sql = sql!(
                "update retention set policy = $2, revision = revision + 1, updated_at = $3
                 where org_id = $1 and revision = $4"
            );
            self.execute(sql, binds![org, &policy, now, seen]).await?
        };
        Ok(saved > 0)
    }

    pub async fn load_history(&mut self) -> Result<Option<History>, StoreError> {
        let sql = sql!(
            "select runs, bytes, runs_counted_to, calls_counted_to, recounted_at, looked_at, full_since, retried, retried_counted,
                 pass_began_at, pass_ended_at, pass_runs, pass_calls, pass_events, pass_bytes, pass_evicted
             from history where org_id = $1"
        );
        let org = self.org()?;
        let Some(row) = self.fetch_optional(sql, binds![org]).await? else { return Ok(None) };
        let pass = match row.get("pass_began_at")? {
            None => None,
            Some(began_at) => Some(Pass {
                began_at,
                ended_at: row.get("pass_ended_at")?,
                runs: row.get("pass_runs")?,
                calls: row.get("pass_calls")?,
                events: row.get("pass_events")?,
                bytes: row.get("pass_bytes")?,
                evicted: row.get("pass_evicted")?,
            }),
        };
        Ok(Some(History {
            runs: row.get("runs")?,
            bytes: row.get("bytes")?,
            runs_counted_to: row.get("runs_counted_to")?,
            calls_counted_to: row.get("calls_counted_to")?,
            recounted_at: row.get("recounted_at")?,
            retried: row.get("retried")?,
            retried_counted: row.get("retried_counted")?,
            looked_at: row.get("looked_at")?,
            full_since: row.get("full_since")?,
            pass,
        }))
    }

    /// Saves what the job found. Whoever calls this holds the job, whose lease orders all writers of the row.
    pub async fn save_history(&mut self, history: &History) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into history (org_id, runs, bytes, runs_counted_to, calls_counted_to, recounted_at, looked_at, full_since,
                 pass_began_at, pass_ended_at, pass_runs, pass_calls, pass_events, pass_bytes, pass_evicted,
                 retried_counted)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
             on conflict (org_id) do update set runs = excluded.runs, bytes = excluded.bytes,
                 runs_counted_to = excluded.runs_counted_to, calls_counted_to = excluded.calls_counted_to,
                 recounted_at = excluded.recounted_at, looked_at = excluded.looked_at, full_since = excluded.full_since,
                 pass_began_at = excluded.pass_began_at, pass_ended_at = excluded.pass_ended_at, pass_runs = excluded.pass_runs,
                 pass_calls = excluded.pass_calls, pass_events = excluded.pass_events, pass_bytes = excluded.pass_bytes,
                 pass_evicted = excluded.pass_evicted, retried_counted = excluded.retried_counted"
        );
        let (org, pass) = (self.org()?, history.pass.as_ref());
        let count = |of: fn(&Pass) -> i64| pass.map_or(0, of);
        let values = binds![
            org,
            history.runs,
            history.bytes,
            history.runs_counted_to,
            history.calls_counted_to,
            history.recounted_at,
            history.looked_at,
            history.full_since,
            pass.map(|pass| pass.began_at),
            pass.and_then(|pass| pass.ended_at),
            count(|pass| pass.runs),
            count(|pass| pass.calls),
            count(|pass| pass.events),
            count(|pass| pass.bytes),
            count(|pass| pass.evicted),
            history.retried_counted
        ];
        self.execute(sql, values).await.map(drop)
    }

    /// Notes that so many runs were begun again, which may have been counted as ones that ended. The last statement of its transaction:
    /// there is one such row, which others wait for.
    pub async fn note_retries(&mut self, runs: u32) -> Result<(), StoreError> {
        let sql = sql!("update history set retried = retried + $2 where org_id = $1");
        let org = self.org()?;
        self.execute(sql, binds![org, i64::from(runs)]).await.map(drop)
    }

    /// Organizations whose job that sees to their history is not in the queue (never was, or was given up), by id. Needs the scope of
    /// `SystemReason::Jobs`.
    pub async fn list_orgs_without_pruning(
        &mut self,
        after: Option<OrgId>,
        limit: u32,
    ) -> Result<Vec<OrgId>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        // A search of the index for each organization: an anti-join could be read as a look through all jobs.
        let sql = sql!(
            "select id from organization where id > $1 and (
                 select job.id from job where job.org_id = organization.id and job.kind = 'prune_history'
                     and job.dedupe_key = 'history' and job.state <> 'dead' limit 1) is null
             order by id limit $2"
        );
        let after = after.unwrap_or_else(|| OrgId::from_uuid(uuid::Uuid::nil()));
        let rows = self.fetch(sql, binds![after, i64::from(limit)]).await?;
        rows.iter().map(|row| row.get("id")).collect()
    }
}
