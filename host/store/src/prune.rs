//! What has ended: counted, listed oldest first, removed.
//!
//! Everything here goes by the index of what has ended (`run_ended`, `call_by_hand`), so that it costs what is counted or removed, and
//! not what is kept. A run that has not ended is in none of them.

use std::time::Duration;

use bulkhead_model::id::{CallId, EventId, RunId, WorkflowId};
use bulkhead_model::retention::{EndedRun, key_kept_until};
use bulkhead_model::time::Timestamp;
use uuid::Uuid;

use crate::error::StoreError;
use crate::sql::{Row, binds, sql, sql_postgres};
use crate::tx::Tx;

/// A key is spent for so long before its run goes: a start that began before it was spent has ended by then, and has found the run.
/// Above the time that a write may take.
const KEY_SPENT_BEFORE: Duration = Duration::from_secs(30);

/// Of one run, so many bytes and rows are removed in one transaction, so that it takes about as long as a usual commit.
const PIECE_BYTES: i64 = 4 << 20;
const PIECE_ROWS: u32 = 500;

/// A place among the runs that ended in one way: the order in which they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndedPlace {
    pub at: Timestamp,
    pub run: RunId,
}

impl EndedPlace {
    /// Before all of them.
    pub const FIRST: Self = Self { at: Timestamp::from_micros(0), run: RunId::from_uuid(Uuid::nil()) };

    /// After all that ended up to this moment.
    #[must_use]
    pub const fn after_all(at: Timestamp) -> Self {
        Self { at, run: RunId::from_uuid(Uuid::max()) }
    }
}

/// A run that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedRow {
    pub place: EndedPlace,
    pub workflow: WorkflowId,
    pub dedupe_key: Option<String>,
    pub created_at: Timestamp,
    /// What it takes up, with its steps, its log and its calls.
    pub bytes: i64,
}

/// Some of what has ended, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted<P> {
    pub rows: i64,
    pub bytes: i64,
    /// The last one; `None` when there was none.
    pub last: Option<P>,
}

/// What became of a run that was to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    Removed,
    /// Its key must be remembered for longer, which is seen to now: it can go with a later pass.
    KeySpent,
    /// It was begun again, or somebody changes it at this moment.
    Changed,
    /// A part of a large one is gone; so many bytes are left for the next transactions.
    Part {
        left: i64,
    },
}

fn add_up<P>(rows: &[Row], place: impl Fn(&Row) -> Result<P, StoreError>) -> Result<Counted<P>, StoreError> {
    let mut counted = Counted { rows: 0, bytes: 0, last: None };
    for row in rows {
        counted.rows += 1;
        counted.bytes += row.get::<i64>("bytes")?;
    }
    counted.last = rows.last().map(place).transpose()?;
    Ok(counted)
}

/// The last of the first rows that together take up a piece, and what they take up.
fn piece(rows: &[Row]) -> Result<Option<(&Row, i64)>, StoreError> {
    let (mut bytes, mut last) = (0, None);
    for row in rows {
        if bytes >= PIECE_BYTES {
            break;
        }
        bytes += row.get::<i64>("bytes")?;
        last = Some(row);
    }
    Ok(last.map(|last| (last, bytes)))
}

fn read_place(row: &Row) -> Result<EndedPlace, StoreError> {
    Ok(EndedPlace { at: row.get("finished_at")?, run: row.get("id")? })
}

fn read_ended(row: &Row) -> Result<EndedRow, StoreError> {
    Ok(EndedRow {
        place: read_place(row)?,
        workflow: row.get("workflow_id")?,
        dedupe_key: row.get("dedupe_key")?,
        created_at: row.get("created_at")?,
        bytes: row.get("history_bytes")?,
    })
}

impl Tx {
    /// Adds up the runs that ended so, after a place and up to a moment: the first `limit` of them. Reads an index alone.
    pub async fn count_ended_runs(
        &mut self,
        ended: EndedRun,
        after: EndedPlace,
        until: Timestamp,
        limit: u32,
    ) -> Result<Counted<EndedPlace>, StoreError> {
        let sql = sql!(
            "select finished_at, id, history_bytes as bytes from run
             where org_id = $1 and status = $2 and dead_letter = $7 and finished_at is not null and (finished_at, id) > ($3, $4)
                 and finished_at <= $5
             order by finished_at, id limit $6"
        );
        let org = self.org()?;
        let (status, dead) = (ended.status().as_str(), i64::from(ended.is_dead_letter()));
        let values = binds![org, status, after.at, after.run, until, i64::from(limit), dead];
        add_up(&self.fetch(sql, values).await?, read_place)
    }

    /// Adds up the calls by hand after one and before another: the first `limit` of them.
    pub async fn count_calls_by_hand(
        &mut self,
        after: CallId,
        before: CallId,
        limit: u32,
    ) -> Result<Counted<CallId>, StoreError> {
        let rows = self.fetch_calls_by_hand(after, before, limit).await?;
        add_up(&rows, |row| row.get("id"))
    }

    /// The calls by hand after one and before another, with what they take up, oldest first.
    pub async fn list_calls_by_hand(
        &mut self,
        after: CallId,
        before: CallId,
        limit: u32,
    ) -> Result<Vec<(CallId, i64)>, StoreError> {
        let rows = self.fetch_calls_by_hand(after, before, limit).await?;
        rows.iter().map(|row| Ok((row.get("id")?, row.get("bytes")?))).collect()
    }

    async fn fetch_calls_by_hand(&mut self, after: CallId, before: CallId, limit: u32) -> Result<Vec<Row>, StoreError> {
        let sql = sql!(
            "select id, cast(256 + octet_length(input) + coalesce(octet_length(output), 0) + coalesce(octet_length(error), 0)
                 + octet_length(usage) + octet_length(limits) + octet_length(log) + octet_length(egress)
                 + octet_length(refusals) as bigint) as bytes
             from call where org_id = $1 and run_id is null and id > $2 and id < $3 order by id limit $4"
        );
        let org = self.org()?;
        self.fetch(sql, binds![org, after, before, i64::from(limit)]).await
    }

    /// Runs that ended so, after a place and before a moment, oldest first.
    pub async fn list_removable_runs(
        &mut self,
        ended: EndedRun,
        after: EndedPlace,
        before: Timestamp,
        limit: u32,
    ) -> Result<Vec<EndedRow>, StoreError> {
        let sql = sql!(
            "select finished_at, id, workflow_id, dedupe_key, created_at, history_bytes from run
             where org_id = $1 and status = $2 and dead_letter = $7 and finished_at is not null and (finished_at, id) > ($3, $4)
                 and finished_at < $5
             order by finished_at, id limit $6"
        );
        let org = self.org()?;
        let (status, dead) = (ended.status().as_str(), i64::from(ended.is_dead_letter()));
        let values = binds![org, status, after.at, after.run, before, i64::from(limit), dead];
        self.fetch(sql, values).await?.iter().map(read_ended).collect()
    }

    /// Runs of which a part is gone: they are not listed by their time, which may be far off, and go first. There is hardly ever more
    /// than one.
    pub async fn list_half_removed_runs(&mut self, limit: u32) -> Result<Vec<EndedRow>, StoreError> {
        let sql = sql!(
            "select finished_at, id, workflow_id, dedupe_key, created_at, history_bytes from run
             where org_id = $1 and removing = 1 and finished_at is not null order by id limit $2"
        );
        let org = self.org()?;
        self.fetch(sql, binds![org, i64::from(limit)]).await?.iter().map(read_ended).collect()
    }

    /// Whether the run, or its job, is on the list of dead letters.
    pub async fn is_dead_letter(&mut self, run: RunId) -> Result<bool, StoreError> {
        let sql = sql!("select 1 as one from dead_letter where org_id = $1 and run_id = $2 limit 1");
        let org = self.org()?;
        Ok(self.fetch_optional(sql, binds![org, run]).await?.is_some())
    }

    /// Removes a run that ended, with its steps, its log, its calls and its dead letter; unless it was changed since it was listed. A
    /// key of its that must be remembered for longer is kept apart first. A large one goes in parts, a transaction each, its row last;
    /// from the first part on it is not begun again.
    pub async fn remove_run(&mut self, row: &EndedRow, now: Timestamp) -> Result<Removal, StoreError> {
        let (org, run) = (self.org()?, row.place.run);
        let found = if self.is_postgres() {
            // A retry that is under way decides about the run; the job does not wait for it.
            let sql = sql_postgres!(
                "select id from run where org_id = $1 and id = $2 and finished_at = $3 for update skip locked"
            );
            self.fetch_optional(sql, binds![org, run, row.place.at]).await?
        } else {
            let sql = sql!("select id from run where org_id = $1 and id = $2 and finished_at = $3");
            self.fetch_optional(sql, binds![org, run, row.place.at]).await?
        };
        if found.is_none() {
            return Ok(Removal::Changed);
        }
        if let Some(key) = row.dedupe_key.as_ref().filter(|_| key_kept_until(row.created_at) > now)
            && !self.spend_key(run, row.workflow, key, row.created_at, now).await?
        {
            return Ok(Removal::KeySpent);
        }
        if row.bytes > PIECE_BYTES {
            let gone = self.remove_piece(run).await?;
            if gone > 0 {
                let left = row.bytes.saturating_sub(gone).max(0);
                let sql = sql!("update run set removing = 1, history_bytes = $3 where org_id = $1 and id = $2");
                self.execute(sql, binds![org, run, left]).await?;
                return Ok(Removal::Part { left });
            }
        }
        self.execute(sql!("delete from step where org_id = $1 and run_id = $2"), binds![org, run]).await?;
        self.execute(sql!("delete from run_event where org_id = $1 and run_id = $2"), binds![org, run]).await?;
        self.execute(sql!("delete from call where org_id = $1 and run_id = $2"), binds![org, run]).await?;
        let dead =
            sql!("delete from job where org_id = $1 and kind = 'advance_run' and dedupe_key = $2 and state = 'dead'");
        self.execute(dead, binds![org, &run.to_string()]).await?;
        self.execute(sql!("delete from run where org_id = $1 and id = $2"), binds![org, run]).await?;
        Ok(Removal::Removed)
    }

    /// Removes the first of a run's calls, or of its steps, or of its log. Answers what they took up: zero when nothing is left.
    async fn remove_piece(&mut self, run: RunId) -> Result<i64, StoreError> {
        let org = self.org()?;
        let sql = sql!(
            "select id, cast(256 + octet_length(input) + coalesce(octet_length(output), 0) + coalesce(octet_length(error), 0)
                 + octet_length(usage) + octet_length(limits) + octet_length(log) + octet_length(egress)
                 + octet_length(refusals) as bigint) as bytes
             from call where org_id = $1 and run_id = $2 order by id limit $3"
        );
        let rows = self.fetch(sql, binds![org, run, i64::from(PIECE_ROWS)]).await?;
        if let Some((last, bytes)) = piece(&rows)? {
            let sql = sql!("delete from call where org_id = $1 and run_id = $2 and id <= $3");
            self.execute(sql, binds![org, run, last.get::<CallId>("id")?]).await?;
            return Ok(bytes);
        }
        let sql = sql!(
            "select step_id, iteration, cast(192 + coalesce(octet_length(input), 0) + coalesce(octet_length(output), 0)
                 + coalesce(octet_length(error), 0) + coalesce(octet_length(usage), 0) as bigint) as bytes
             from step where org_id = $1 and run_id = $2 order by step_id, iteration limit $3"
        );
        let rows = self.fetch(sql, binds![org, run, i64::from(PIECE_ROWS)]).await?;
        if let Some((last, bytes)) = piece(&rows)? {
            let sql = sql!("delete from step where org_id = $1 and run_id = $2 and (step_id, iteration) <= ($3, $4)");
            let (step, iteration) = (last.get::<String>("step_id")?, last.get::<i64>("iteration")?);
            self.execute(sql, binds![org, run, &step, iteration]).await?;
            return Ok(bytes);
        }
        let sql = sql!(
            "select seq, cast(96 + octet_length(detail) as bigint) as bytes from run_event
             where org_id = $1 and run_id = $2 order by seq limit $3"
        );
        let rows = self.fetch(sql, binds![org, run, i64::from(PIECE_ROWS)]).await?;
        let Some((last, bytes)) = piece(&rows)? else { return Ok(0) };
        let sql = sql!("delete from run_event where org_id = $1 and run_id = $2 and seq <= $3");
        self.execute(sql, binds![org, run, last.get::<i64>("seq")?]).await?;
        Ok(bytes)
    }

    /// Remembers the key of a run that started at `started_at` beyond the run. `false`: only since now, so the run has to stay for a
    /// little.
    pub async fn spend_key(
        &mut self,
        run: RunId,
        workflow: WorkflowId,
        key: &str,
        started_at: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let org = self.org()?;
        let sql = sql!("select created_at from spent_key where org_id = $1 and workflow_id = $2 and dedupe_key = $3");
        if let Some(spent) = self.fetch_optional(sql, binds![org, workflow, key]).await? {
            return Ok(spent.get::<Timestamp>("created_at")?.plus(KEY_SPENT_BEFORE) <= now);
        }
        let sql = sql!(
            "insert into spent_key (org_id, workflow_id, dedupe_key, run_id, created_at, expires_at)
             values ($1, $2, $3, $4, $5, $6)"
        );
        self.execute(sql, binds![org, workflow, key, run, now, key_kept_until(started_at)]).await?;
        Ok(false)
    }

    /// Removes a call that was made by hand: `false` when it is not there.
    pub async fn remove_call_by_hand(&mut self, call: CallId) -> Result<bool, StoreError> {
        let sql = sql!("delete from call where org_id = $1 and id = $2 and run_id is null");
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, call]).await? > 0)
    }

    /// Removes the oldest events before one: at most `limit`. Answers how many.
    pub async fn remove_events(&mut self, before: EventId, limit: u32) -> Result<u64, StoreError> {
        let sql = sql!(
            "delete from event where org_id = $1 and id in (
                 select id from event where org_id = $1 and id < $2 order by id limit $3)"
        );
        let org = self.org()?;
        self.execute(sql, binds![org, before, i64::from(limit)]).await
    }

    /// How many events lie before one: at most `limit` are counted.
    pub async fn count_events(&mut self, before: EventId, limit: u32) -> Result<i64, StoreError> {
        let sql = sql!(
            "select count(*) as events from (select id from event where org_id = $1 and id < $2 order by id limit $3) as oldest"
        );
        let org = self.org()?;
        let row = self.fetch_optional(sql, binds![org, before, i64::from(limit)]).await?;
        row.map_or(Ok(0), |row| row.get("events"))
    }

    /// Forgets keys whose time is over: at most `limit`. Answers how many.
    pub async fn remove_spent_keys(&mut self, now: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let sql = sql!(
            "delete from spent_key where org_id = $1 and (workflow_id, dedupe_key) in (
                 select workflow_id, dedupe_key from spent_key where org_id = $1 and expires_at <= $2 order by expires_at limit $3)"
        );
        let org = self.org()?;
        self.execute(sql, binds![org, now, i64::from(limit)]).await
    }

    /// Gives up to so many of SQLite's free pages back to the file system, while more than `reserve` are free: these are taken first
    /// for what is written next. Answers how many pages were free. PostgreSQL's autovacuum sees to its own.
    #[expect(clippy::unused_async, reason = "as every other move of a transaction")]
    pub async fn give_back_space(&mut self, reserve: u32) -> Result<u32, StoreError> {
        self.give_back_pages(reserve)
    }
}
