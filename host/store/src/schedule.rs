//! Where the schedule triggers of workflows stand: the next tick, and what became of those before it.

use bulkhead_model::id::{OrgId, RunId, WorkflowId};
use bulkhead_model::permission::SystemReason;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::sql::{Row, binds, sql, sql_postgres};
use crate::tx::Tx;

/// A schedule trigger's standing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleState {
    pub workflow: WorkflowId,
    pub trigger: String,
    /// Time zone and cron expression, as [`Schedule::rule`](bulkhead_model::schedule::Schedule::rule) writes them.
    pub rule: String,
    /// The first tick that is not settled; `None` while the workflow is inactive, or when no tick is left.
    pub next_tick: Option<Timestamp>,
    /// The newest settled tick.
    pub last_tick: Option<Timestamp>,
    /// When a run was last started …
    pub last_fired_at: Option<Timestamp>,
    /// … and which.
    pub last_run: Option<RunId>,
    /// Runs started.
    pub fired_count: i64,
    /// … of them later than the grace allows.
    pub late_count: i64,
    /// Ticks that the misfire policy dropped.
    pub missed_count: i64,
    /// Ticks at which the trigger's conditions did not hold.
    pub unmatched_count: i64,
    pub updated_at: Timestamp,
}

fn read(row: &Row) -> Result<ScheduleState, StoreError> {
    Ok(ScheduleState {
        workflow: row.get("workflow_id")?,
        trigger: row.get("trigger_id")?,
        rule: row.get("rule")?,
        next_tick: row.get("next_tick")?,
        last_tick: row.get("last_tick")?,
        last_fired_at: row.get("last_fired_at")?,
        last_run: row.get("last_run_id")?,
        fired_count: row.get("fired_count")?,
        late_count: row.get("late_count")?,
        missed_count: row.get("missed_count")?,
        unmatched_count: row.get("unmatched_count")?,
        updated_at: row.get("updated_at")?,
    })
}

impl Tx {
    /// Inserts or replaces.
    pub async fn save_schedule(&mut self, state: &ScheduleState) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into schedule (org_id, workflow_id, trigger_id, rule, next_tick, last_tick, last_fired_at, last_run_id,
                 fired_count, late_count, missed_count, unmatched_count, updated_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
             on conflict (org_id, workflow_id, trigger_id) do update set rule = excluded.rule, next_tick = excluded.next_tick,
                 last_tick = excluded.last_tick, last_fired_at = excluded.last_fired_at, last_run_id = excluded.last_run_id,
                 fired_count = excluded.fired_count, late_count = excluded.late_count, missed_count = excluded.missed_count,
                 unmatched_count = excluded.unmatched_count, updated_at = excluded.updated_at"
        );
        let org = self.org()?;
        let values = binds![
            org,
            state.workflow,
            &state.trigger,
            &state.rule,
            state.next_tick,
            state.last_tick,
            state.last_fired_at,
            state.last_run,
            state.fired_count,
            state.late_count,
            state.missed_count,
            state.unmatched_count,
            state.updated_at
        ];
        self.execute(sql, values).await.map(drop)
    }

    pub async fn load_schedule(
        &mut self,
        workflow: WorkflowId,
        trigger: &str,
    ) -> Result<Option<ScheduleState>, StoreError> {
        let sql = sql!(
            "select workflow_id, trigger_id, rule, next_tick, last_tick, last_fired_at, last_run_id, fired_count, late_count,
                 missed_count, unmatched_count, updated_at
             from schedule where org_id = $1 and workflow_id = $2 and trigger_id = $3"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, workflow, trigger]).await?.map(|row| read(&row)).transpose()
    }

    /// The schedule with its row locked until the transaction ends: a firing is ordered against saves, activations and
    /// deactivations of its workflow, which write the row too, so that what it reads after this is what they left.
    pub async fn lock_schedule(
        &mut self,
        workflow: WorkflowId,
        trigger: &str,
    ) -> Result<Option<ScheduleState>, StoreError> {
        if self.is_postgres() {
            // SQLite has one writer and needs no lock.
            let sql = sql_postgres!(
                "select trigger_id from schedule where org_id = $1 and workflow_id = $2 and trigger_id = $3 for update"
            );
            let org = self.org()?;
            self.fetch(sql, binds![org, workflow, trigger]).await?;
        }
        self.load_schedule(workflow, trigger).await
    }

    /// Every schedule that the workflow has or had while it was active, by trigger.
    pub async fn list_schedules(&mut self, workflow: WorkflowId) -> Result<Vec<ScheduleState>, StoreError> {
        let sql = sql!(
            "select workflow_id, trigger_id, rule, next_tick, last_tick, last_fired_at, last_run_id, fired_count, late_count,
                 missed_count, unmatched_count, updated_at
             from schedule where org_id = $1 and workflow_id = $2 order by trigger_id"
        );
        let org = self.org()?;
        self.fetch(sql, binds![org, workflow]).await?.iter().map(read).collect()
    }

    /// Schedules of whatever organization whose next tick is before the moment, after the one given; each with its organization.
    /// Needs the scope of `SystemReason::Jobs`.
    pub async fn list_overdue_schedules(
        &mut self,
        before: Timestamp,
        after: Option<&(OrgId, ScheduleState)>,
        limit: u32,
    ) -> Result<Vec<(OrgId, ScheduleState)>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!(
            "select org_id, workflow_id, trigger_id, rule, next_tick, last_tick, last_fired_at, last_run_id, fired_count, late_count,
                 missed_count, unmatched_count, updated_at
             from schedule
             where next_tick is not null and next_tick < $1 and (next_tick, org_id, workflow_id, trigger_id) > ($2, $3, $4, $5)
             order by next_tick, org_id, workflow_id, trigger_id limit $6"
        );
        let nil = uuid::Uuid::nil();
        let (tick, org, workflow, trigger) = match after {
            Some((org, state)) => {
                let tick = state.next_tick.unwrap_or(before);
                (tick, org.uuid(), state.workflow.uuid(), state.trigger.as_str())
            }
            None => (Timestamp::from_micros(0), nil, nil, ""),
        };
        let rows = self.fetch(sql, binds![before, tick, org, workflow, trigger, i64::from(limit)]).await?;
        rows.iter().map(|row| Ok((row.get("org_id")?, read(row)?))).collect()
    }

    pub async fn delete_schedule(&mut self, workflow: WorkflowId, trigger: &str) -> Result<bool, StoreError> {
        let sql = sql!("delete from schedule where org_id = $1 and workflow_id = $2 and trigger_id = $3");
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, workflow, trigger]).await? > 0)
    }
}
