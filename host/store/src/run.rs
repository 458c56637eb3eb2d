//! Runs and their steps: one current row each, and an append-only log per run with its own sequence.

use bulkhead_model::id::{CallId, RunId, WorkflowId};
use bulkhead_model::run::{RunStatus, StepStatus};
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql, sql_postgres};
use crate::tx::Tx;

#[derive(Clone, Debug)]
pub struct Run {
    pub id: RunId,
    pub workflow: WorkflowId,
    /// The workflow's version that it began with, and ends with.
    pub version: i64,
    pub status: RunStatus,
    /// `webhook`, `manual`, `api`, `schedule`.
    pub trigger_kind: String,
    /// JSON text: what the trigger brought.
    pub trigger_data: String,
    /// JSON text of the interpreter's state.
    pub state: String,
    pub generation: i64,
    pub output: Option<String>,
    pub error: Option<String>,
    pub dedupe_key: Option<String>,
    /// Number of the newest log entry.
    pub log_seq: i64,
    pub waiting_until: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub finished_at: Option<Timestamp>,
}

/// A run without its payloads, for lists.
#[derive(Clone, Debug)]
pub struct RunSummary {
    pub id: RunId,
    pub workflow: WorkflowId,
    pub version: i64,
    pub status: RunStatus,
    pub trigger_kind: String,
    pub error: Option<String>,
    pub waiting_until: Option<Timestamp>,
    pub created_at: Timestamp,
    pub finished_at: Option<Timestamp>,
}

#[derive(Clone, Debug)]
pub struct Step {
    pub step: String,
    pub iteration: i64,
    pub position: i64,
    pub status: StepStatus,
    pub outcome: Option<String>,
    pub attempts: i64,
    pub input: Option<String>,
    pub output: Option<String>,
    pub error: Option<String>,
    pub usage: Option<String>,
    pub call: Option<CallId>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

#[derive(Clone, Debug)]
pub struct RunEvent {
    pub seq: i64,
    pub kind: String,
    pub detail: String,
    pub created_at: Timestamp,
}

fn read(row: &Row) -> Result<Run, StoreError> {
    Ok(Run {
        id: row.get("id")?,
        workflow: row.get("workflow_id")?,
        version: row.get("version")?,
        status: row.parsed("status", RunStatus::parse)?,
        trigger_kind: row.get("trigger_kind")?,
        trigger_data: row.get("trigger_data")?,
        state: row.get("state")?,
        generation: row.get("generation")?,
        output: row.get("output")?,
        error: row.get("error")?,
        dedupe_key: row.get("dedupe_key")?,
        log_seq: row.get("log_seq")?,
        waiting_until: row.get("waiting_until")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
        finished_at: row.get("finished_at")?,
    })
}

fn read_summary(row: &Row) -> Result<RunSummary, StoreError> {
    Ok(RunSummary {
        id: row.get("id")?,
        workflow: row.get("workflow_id")?,
        version: row.get("version")?,
        status: row.parsed("status", RunStatus::parse)?,
        trigger_kind: row.get("trigger_kind")?,
        error: row.get("error")?,
        waiting_until: row.get("waiting_until")?,
        created_at: row.get("created_at")?,
        finished_at: row.get("finished_at")?,
    })
}

fn read_step(row: &Row) -> Result<Step, StoreError> {
    Ok(Step {
        step: row.get("step_id")?,
        iteration: row.get("iteration")?,
        position: row.get("position")?,
        status: row.parsed("status", StepStatus::parse)?,
        outcome: row.get("outcome")?,
        attempts: row.get("attempts")?,
        input: row.get("input")?,
        output: row.get("output")?,
        error: row.get("error")?,
        usage: row.get("usage")?,
        call: row.get("call_id")?,
        started_at: row.get("started_at")?,
        finished_at: row.get("finished_at")?,
    })
}

impl Tx {
    /// Inserts a run; answers `false` when its dedupe key started one already.
    pub async fn insert_run(&mut self, run: &Run) -> Result<bool, StoreError> {
        let sql = sql!(
            "insert into run (org_id, id, workflow_id, version, status, trigger_kind, trigger_data, state, generation,
                 dedupe_key, log_seq, created_at, updated_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
             on conflict (org_id, workflow_id, dedupe_key) where dedupe_key is not null do nothing"
        );
        let org = self.org()?;
        let values = binds![
            org,
            run.id,
            run.workflow,
            run.version,
            run.status.as_str(),
            &run.trigger_kind,
            &run.trigger_data,
            &run.state,
            run.generation,
            &run.dedupe_key,
            run.log_seq,
            run.created_at,
            run.updated_at
        ];
        Ok(self.execute(sql, values).await? > 0)
    }

    pub async fn load_run_by_dedupe_key(
        &mut self,
        workflow: WorkflowId,
        key: &str,
    ) -> Result<Option<RunId>, StoreError> {
        let sql = sql!("select id from run where org_id = $1 and workflow_id = $2 and dedupe_key = $3");
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, workflow, key]).await?.map(|row| row.get("id")).transpose()
    }

    pub async fn load_run(&mut self, id: RunId) -> Result<Option<Run>, StoreError> {
        let sql = sql!(
            "select id, workflow_id, version, status, trigger_kind, trigger_data, state, generation, output, error, dedupe_key,
                 log_seq, waiting_until, created_at, updated_at, finished_at
             from run where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id]).await?.map(|row| read(&row)).transpose()
    }

    pub async fn require_run(&mut self, id: RunId) -> Result<Run, StoreError> {
        self.load_run(id).await?.ok_or(StoreError::NotFound { what: "run" })
    }

    /// The run with its row locked until the transaction ends: a run is changed by one transaction at a time (a step's commit, a
    /// cancellation, a retry), so that its log sequence has no gap and no two of them decide its status.
    pub async fn lock_run(&mut self, id: RunId) -> Result<Run, StoreError> {
        if self.is_postgres() {
            let sql = sql_postgres!("select id from run where org_id = $1 and id = $2 for update");
            let org = self.org()?;
            self.fetch(sql, binds![org, id]).await?;
        }
        self.require_run(id).await
    }

    /// Saves what changes while a run goes on.
    pub async fn update_run(&mut self, run: &Run) -> Result<(), StoreError> {
        let sql = sql!(
            "update run set status = $3, state = $4, generation = $5, output = $6, error = $7, log_seq = $8, waiting_until = $9,
                 updated_at = $10, finished_at = $11
             where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        let values = binds![
            org,
            run.id,
            run.status.as_str(),
            &run.state,
            run.generation,
            &run.output,
            &run.error,
            run.log_seq,
            run.waiting_until,
            run.updated_at,
            run.finished_at
        ];
        self.execute(sql, values).await.map(drop)
    }

    /// Newest first; `status` and `workflow` narrow when given.
    pub async fn list_runs(
        &mut self,
        status: Option<RunStatus>,
        workflow: Option<WorkflowId>,
        page: PageRequest,
    ) -> Result<Page<RunSummary>, StoreError> {
        let (org, status) = (self.org()?, status.map(RunStatus::as_str));
        let rows = if let Some(workflow) = workflow {
            let sql = sql!(
                "select id, workflow_id, version, status, trigger_kind, error, waiting_until, created_at, finished_at from run
                 where org_id = $1 and workflow_id = $2 and id < $3 and (cast($4 as text) is null or status = $4)
                 order by id desc limit $5"
            );
            self.fetch(sql, binds![org, workflow, page.bound(), status, page.fetch()]).await?
        } else if let Some(status) = status {
            let sql = sql!(
                "select id, workflow_id, version, status, trigger_kind, error, waiting_until, created_at, finished_at from run
                 where org_id = $1 and status = $2 and id < $3 order by id desc limit $4"
            );
            self.fetch(sql, binds![org, status, page.bound(), page.fetch()]).await?
        } else {
            let sql = sql!(
                "select id, workflow_id, version, status, trigger_kind, error, waiting_until, created_at, finished_at from run
                 where org_id = $1 and id < $2 order by id desc limit $3"
            );
            self.fetch(sql, binds![org, page.bound(), page.fetch()]).await?
        };
        let runs = rows.iter().map(read_summary).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(runs, |run| run.id.uuid()))
    }

    /// Inserts a step's row or replaces it (its position stays).
    pub async fn save_step(&mut self, run: RunId, step: &Step) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into step (org_id, run_id, step_id, iteration, position, status, outcome, attempts, input, output, error,
                 usage, call_id, started_at, finished_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
             on conflict (org_id, run_id, step_id, iteration) do update set status = excluded.status, outcome = excluded.outcome,
                 attempts = excluded.attempts, input = excluded.input, output = excluded.output, error = excluded.error,
                 usage = excluded.usage, call_id = excluded.call_id,
                 started_at = coalesce(step.started_at, excluded.started_at), finished_at = excluded.finished_at"
        );
        let org = self.org()?;
        let values = binds![
            org,
            run,
            &step.step,
            step.iteration,
            step.position,
            step.status.as_str(),
            &step.outcome,
            step.attempts,
            &step.input,
            &step.output,
            &step.error,
            &step.usage,
            step.call,
            step.started_at,
            step.finished_at
        ];
        self.execute(sql, values).await.map(drop)
    }

    pub async fn list_steps(&mut self, run: RunId) -> Result<Vec<Step>, StoreError> {
        let sql = sql!(
            "select step_id, iteration, position, status, outcome, attempts, input, output, error, usage, call_id, started_at,
                 finished_at
             from step where org_id = $1 and run_id = $2 order by position, step_id"
        );
        let org = self.org()?;
        self.fetch(sql, binds![org, run]).await?.iter().map(read_step).collect()
    }

    /// Appends to the run's own log. `seq` is the number after [`Run::log_seq`], taken under the run's lock.
    pub async fn record_run_event(&mut self, run: RunId, event: &RunEvent) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into run_event (org_id, run_id, seq, kind, detail, created_at) values ($1, $2, $3, $4, $5, $6)"
        );
        let org = self.org()?;
        self.execute(sql, binds![org, run, event.seq, &event.kind, &event.detail, event.created_at]).await.map(drop)
    }

    /// The log after `after`, oldest first.
    pub async fn list_run_events(&mut self, run: RunId, after: i64, limit: u32) -> Result<Vec<RunEvent>, StoreError> {
        let sql = sql!(
            "select seq, kind, detail, created_at from run_event
             where org_id = $1 and run_id = $2 and seq > $3 order by seq limit $4"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, run, after, i64::from(limit)]).await?;
        rows.iter()
            .map(|row| {
                Ok(RunEvent {
                    seq: row.get("seq")?,
                    kind: row.get("kind")?,
                    detail: row.get("detail")?,
                    created_at: row.get("created_at")?,
                })
            })
            .collect()
    }
}
