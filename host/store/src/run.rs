//! Runs and their steps: one current row each, and an append-only log per run with its own sequence.

use std::collections::BTreeSet;

use bulkhead_model::id::{CallId, RunId, WorkflowId};
use bulkhead_model::run::{RunStatus, StepStatus};
use bulkhead_model::time::Timestamp;
use uuid::Uuid;

use crate::advance::Standing;
use crate::call::CallBytes;
use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Bind, Row, binds, sql, sql_postgres};
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
    pub kept: Kept,
}

/// What a run takes up. Its row holds it, each commit raises it under the row's lock, so that nothing is added up at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Bytes of its trigger, its steps, its log and its calls, with what each takes beside its texts.
    pub held_bytes: i64,
    /// … of these, the logs of its calls.
    pub log_bytes: i64,
    /// It is on the list of dead letters; what is put there and taken away changes it.
    pub dead_letter: bool,
    /// The job that removes has begun with it.
    pub removing: bool,
}

/// Besides its texts a run's row takes about so many bytes, with the first entry of its log: columns, and entries of its indexes.
const ROW_BYTES: i64 = 640;
const STEP_BYTES: i64 = 192;
const EVENT_BYTES: i64 = 96;

fn bytes_of(text: &str) -> i64 {
    i64::try_from(text.len()).unwrap_or(i64::MAX)
}

fn bytes_of_some(text: Option<&String>) -> i64 {
    text.map_or(0, |text| bytes_of(text))
}

impl Kept {
    /// A run that begins with this trigger.
    #[must_use]
    pub fn begun(trigger: &str) -> Self {
        Self { held_bytes: ROW_BYTES + bytes_of(trigger), ..Self::default() }
    }

    pub fn add_event(&mut self, event: &RunEvent) {
        self.held_bytes = self.held_bytes.saturating_add(EVENT_BYTES + bytes_of(&event.detail));
    }

    /// A step is saved once for each attempt, into one row: its input counts with the first, its results with the last.
    pub fn add_step(&mut self, step: &Step) {
        let mut bytes = 0;
        if step.attempts <= 1 {
            bytes += STEP_BYTES + bytes_of_some(step.input.as_ref());
        }
        if step.status.is_final() {
            let results = [&step.output, &step.error, &step.usage];
            bytes += results.into_iter().map(|text| bytes_of_some(text.as_ref())).sum::<i64>();
        }
        self.held_bytes = self.held_bytes.saturating_add(bytes);
    }

    pub fn add_call(&mut self, call: CallBytes) {
        self.held_bytes = self.held_bytes.saturating_add(call.all);
        self.log_bytes = self.log_bytes.saturating_add(call.log);
    }

    /// What was removed while the run stays.
    pub fn take(&mut self, bytes: i64) {
        self.held_bytes = self.held_bytes.saturating_sub(bytes).max(0);
    }
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

/// Bytes of a step's input that a list of steps holds: a run has hundreds of steps, each with up to 1 MiB in and out.
pub const STEP_INPUT_LISTED_BYTES_MAX: i64 = 4 * 1024;
/// … and of its output.
pub const STEP_OUTPUT_LISTED_BYTES_MAX: i64 = 64 * 1024;

/// Bytes of a step's payloads, also of those that a list leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepSizes {
    pub input_bytes: Option<i64>,
    pub output_bytes: Option<i64>,
}

#[derive(Clone, Debug)]
pub struct RunEvent {
    pub seq: i64,
    pub kind: String,
    pub detail: String,
    pub created_at: Timestamp,
}

impl Run {
    /// What a run begins with beside its organization, in the order in which it is inserted: here and with its job
    /// ([`begin_run`](Tx::begin_run)).
    pub(crate) fn begun_values(&self) -> [Bind<'_>; 13] {
        [
            self.id.into(),
            self.workflow.into(),
            self.version.into(),
            self.status.as_str().into(),
            (&self.trigger_kind).into(),
            (&self.trigger_data).into(),
            (&self.state).into(),
            self.generation.into(),
            (&self.dedupe_key).into(),
            self.log_seq.into(),
            self.created_at.into(),
            self.updated_at.into(),
            self.kept.held_bytes.into(),
        ]
    }

    /// What changes of a run while it goes on, and with its end what it takes up in all, in the order in which it is saved: here and with
    /// a call's results ([`save_stride`](Tx::save_stride), [`save_end`](Tx::save_end)).
    pub(crate) fn moved_values(&self) -> [Bind<'_>; 12] {
        let history_bytes = if self.finished_at.is_some() {
            let own = bytes_of(&self.state) + bytes_of_some(self.output.as_ref()) + bytes_of_some(self.error.as_ref());
            self.kept.held_bytes.saturating_add(own)
        } else {
            0
        };
        [
            self.status.as_str().into(),
            (&self.state).into(),
            self.generation.into(),
            (&self.output).into(),
            (&self.error).into(),
            self.log_seq.into(),
            self.waiting_until.into(),
            self.updated_at.into(),
            self.finished_at.into(),
            history_bytes.into(),
            self.kept.held_bytes.into(),
            self.kept.log_bytes.into(),
        ]
    }
}

impl Step {
    /// What a step's row holds beside its organization and run, in the order in which it is inserted: here and with its call
    /// ([`save_stride`](Tx::save_stride)).
    pub(crate) fn values(&self) -> [Bind<'_>; 13] {
        [
            (&self.step).into(),
            self.iteration.into(),
            self.position.into(),
            self.status.as_str().into(),
            (&self.outcome).into(),
            self.attempts.into(),
            (&self.input).into(),
            (&self.output).into(),
            (&self.error).into(),
            (&self.usage).into(),
            self.call.into(),
            self.started_at.into(),
            self.finished_at.into(),
        ]
    }
}

impl RunEvent {
    /// As [`Step::values`].
    pub(crate) fn values(&self) -> [Bind<'_>; 4] {
        [self.seq.into(), (&self.kind).into(), (&self.detail).into(), self.created_at.into()]
    }
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
        kept: Kept {
            held_bytes: row.get("held_bytes")?,
            log_bytes: row.get("log_bytes")?,
            dead_letter: row.get::<i64>("dead_letter")? != 0,
            removing: row.get::<i64>("removing")? != 0,
        },
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
                 dedupe_key, log_seq, created_at, updated_at, held_bytes)
             select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14 where not exists (
                 select 1 from spent_key where org_id = $1 and workflow_id = $3 and dedupe_key = $10)
             on conflict (org_id, workflow_id, dedupe_key) where dedupe_key is not null do nothing"
        );
        let values = [&[Bind::from(self.org()?)][..], &run.begun_values()[..]].concat();
        Ok(self.execute(sql, &values).await? > 0)
    }

    /// A run that was to begin at once waits for its turn.
    pub async fn requeue_run(&mut self, run: RunId) -> Result<(), StoreError> {
        let sql = sql!("update run set status = 'queued' where org_id = $1 and id = $2 and status = 'running'");
        let org = self.org()?;
        self.execute(sql, binds![org, run]).await.map(drop)
    }

    pub async fn load_run_by_dedupe_key(
        &mut self,
        workflow: WorkflowId,
        key: &str,
    ) -> Result<Option<RunId>, StoreError> {
        // A run that is removed leaves its key behind for as long as the key must be remembered.
        let sql = sql!(
            "select id from run where org_id = $1 and workflow_id = $2 and dedupe_key = $3
             union all select run_id as id from spent_key where org_id = $1 and workflow_id = $2 and dedupe_key = $3 limit 1"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, workflow, key]).await?.map(|row| row.get("id")).transpose()
    }

    pub async fn load_run(&mut self, id: RunId) -> Result<Option<Run>, StoreError> {
        let sql = sql!(
            "select id, workflow_id, version, status, trigger_kind, trigger_data, state, generation, output, error, dedupe_key,
                 log_seq, waiting_until, created_at, updated_at, finished_at, held_bytes, log_bytes, dead_letter, removing
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

    /// Where the run stands, its row locked as by [`lock_run`](Self::lock_run): all that a worker's commit needs to know, which carries
    /// the rest itself.
    pub async fn lock_run_place(&mut self, id: RunId) -> Result<Standing, StoreError> {
        let org = self.org()?;
        let row = if self.is_postgres() {
            let sql = sql_postgres!(
                "select status, log_seq, held_bytes, log_bytes from run where org_id = $1 and id = $2 for update"
            );
            self.fetch_optional(sql, binds![org, id]).await?
        } else {
            let sql = sql!("select status, log_seq, held_bytes, log_bytes from run where org_id = $1 and id = $2");
            self.fetch_optional(sql, binds![org, id]).await?
        };
        let row = row.ok_or(StoreError::NotFound { what: "run" })?;
        Ok(Standing {
            status: row.parsed("status", RunStatus::parse)?,
            log_seq: row.get("log_seq")?,
            held_bytes: row.get("held_bytes")?,
            log_bytes: row.get("log_bytes")?,
            installation: None,
        })
    }

    /// Saves what changes while a run goes on, and with its end what it takes up in all. What it holds is the caller's to raise, who
    /// has its lock.
    pub async fn update_run(&mut self, run: &Run) -> Result<(), StoreError> {
        let sql = sql!(
            "update run set status = $3, state = $4, generation = $5, output = $6, error = $7, log_seq = $8, waiting_until = $9,
                 updated_at = $10, finished_at = $11, history_bytes = $12, held_bytes = $13, log_bytes = $14
             where org_id = $1 and id = $2"
        );
        let values = [&[Bind::from(self.org()?), run.id.into()][..], &run.moved_values()[..]].concat();
        self.execute(sql, &values).await.map(drop)
    }

    /// Adds a call to what a run holds that its worker has no hold of any more, ended or not.
    pub async fn raise_run_bytes(&mut self, run: RunId, call: CallBytes) -> Result<(), StoreError> {
        let sql = sql!(
            "update run set held_bytes = held_bytes + $3, log_bytes = log_bytes + $4,
                 history_bytes = case when finished_at is null then 0 else history_bytes + $3 end
             where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        self.execute(sql, binds![org, run, call.all, call.log]).await.map(drop)
    }

    /// What an ended run takes up in all; zero while it goes on.
    pub async fn load_run_bytes(&mut self, id: RunId) -> Result<Option<i64>, StoreError> {
        let sql = sql!("select history_bytes from run where org_id = $1 and id = $2");
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id]).await?.map(|row| row.get("history_bytes")).transpose()
    }

    /// The organization's runs that sleep until a time: how many, and what they hold. At most `limit` are counted.
    pub async fn count_sleeping_runs(&mut self, limit: u32) -> Result<(i64, i64), StoreError> {
        let sql = sql!(
            "select count(*) as runs, cast(coalesce(sum(held_bytes), 0) as bigint) as bytes from (
                 select held_bytes from run where org_id = $1 and status = 'waiting' limit $2) as sleeping"
        );
        let org = self.org()?;
        let row = self.fetch_optional(sql, binds![org, i64::from(limit)]).await?;
        row.map_or(Ok((0, 0)), |row| Ok((row.get("runs")?, row.get("bytes")?)))
    }

    /// Newest first; `status` and `workflow` narrow when given.
    ///
    /// A run whose first step is under way has committed nothing yet, so its row still says `queued` (or `waiting`, at the end of a
    /// wait); its job, which a worker holds, tells. Here it counts as running, as it does where a single run is shown.
    pub async fn list_runs(
        &mut self,
        status: Option<RunStatus>,
        workflow: Option<WorkflowId>,
        page: PageRequest,
    ) -> Result<Page<RunSummary>, StoreError> {
        let before_its_row = |run: &RunSummary| matches!(run.status, RunStatus::Queued | RunStatus::Waiting);
        // No statement for what a final status cannot need.
        let held =
            if status.is_none_or(|status| !status.is_final()) { self.held_runs().await? } else { BTreeSet::new() };
        // Held ones are left out below: as many more are read, so that the page is full.
        let limit = page.fetch() + i64::try_from(held.len()).unwrap_or(i64::MAX / 2);
        let mut runs = self.fetch_runs(status, workflow, page.bound(), limit).await?;
        match status {
            Some(RunStatus::Queued | RunStatus::Waiting) => runs.retain(|run| !held.contains(&run.id)),
            Some(RunStatus::Running) => {
                for id in held.iter().filter(|id| id.uuid() < page.bound()) {
                    let run = self.load_run_summary(*id).await?.filter(before_its_row);
                    runs.extend(run.filter(|run| workflow.is_none_or(|workflow| run.workflow == workflow)));
                }
                runs.sort_by_key(|run| std::cmp::Reverse(run.id.uuid()));
            }
            Some(RunStatus::Paused | RunStatus::Succeeded | RunStatus::Failed | RunStatus::Cancelled) | None => {}
        }
        for run in runs.iter_mut().filter(|run| held.contains(&run.id) && before_its_row(run)) {
            run.status = RunStatus::Running;
            run.waiting_until = None;
        }
        runs.truncate(usize::try_from(page.fetch()).unwrap_or(usize::MAX));
        Ok(page.page(runs, |run| run.id.uuid()))
    }

    /// The organization's runs whose jobs are held now; there are never more than workers have places.
    async fn held_runs(&mut self) -> Result<BTreeSet<RunId>, StoreError> {
        // `coalesce` keeps SQLite from reading all jobs of the organization: the few leased ones have an index of their own.
        let sql = sql!(
            "select dedupe_key from job
             where coalesce(org_id, org_id) = $1 and state = 'leased' and kind = 'advance_run' and dedupe_key is not null"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org]).await?;
        // A key that names no run hides none of the others.
        let keys = rows.iter().map(|row| row.get::<String>("dedupe_key")).collect::<Result<Vec<_>, _>>()?;
        Ok(keys.into_iter().filter_map(|key| key.parse().ok()).collect())
    }

    /// The run without its payloads.
    pub async fn load_run_summary(&mut self, id: RunId) -> Result<Option<RunSummary>, StoreError> {
        let sql = sql!(
            "select id, workflow_id, version, status, trigger_kind, error, waiting_until, created_at, finished_at from run
             where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id]).await?.map(|row| read_summary(&row)).transpose()
    }

    /// A statement for each filter, each with an index of its own.
    async fn fetch_runs(
        &mut self,
        status: Option<RunStatus>,
        workflow: Option<WorkflowId>,
        before: Uuid,
        limit: i64,
    ) -> Result<Vec<RunSummary>, StoreError> {
        let org = self.org()?;
        let rows = match (workflow, status) {
            (None, None) => {
                let sql = sql!(
                    "select id, workflow_id, version, status, trigger_kind, error, waiting_until, created_at, finished_at from run
                     where org_id = $1 and id < $2 order by id desc limit $3"
                );
                self.fetch(sql, binds![org, before, limit]).await?
            }
            (Some(workflow), None) => {
                let sql = sql!(
                    "select id, workflow_id, version, status, trigger_kind, error, waiting_until, created_at, finished_at from run
                     where org_id = $1 and workflow_id = $2 and id < $3 order by id desc limit $4"
                );
                self.fetch(sql, binds![org, workflow, before, limit]).await?
            }
            (None, Some(status)) => {
                let sql = sql!(
                    "select id, workflow_id, version, status, trigger_kind, error, waiting_until, created_at, finished_at from run
                     where org_id = $1 and status = $2 and id < $3 order by id desc limit $4"
                );
                self.fetch(sql, binds![org, status.as_str(), before, limit]).await?
            }
            (Some(workflow), Some(status)) => {
                let sql = sql!(
                    "select id, workflow_id, version, status, trigger_kind, error, waiting_until, created_at, finished_at from run
                     where org_id = $1 and workflow_id = $2 and status = $3 and id < $4 order by id desc limit $5"
                );
                self.fetch(sql, binds![org, workflow, status.as_str(), before, limit]).await?
            }
        };
        rows.iter().map(read_summary).collect()
    }

    /// Inserts a step's row or replaces it. Its position stays, and so does what is known of its last call when this change
    /// comes without one (a pause before another attempt, a cancellation).
    pub async fn save_step(&mut self, run: RunId, step: &Step) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into step (org_id, run_id, step_id, iteration, position, status, outcome, attempts, input, output, error,
                 usage, call_id, started_at, finished_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
             on conflict (org_id, run_id, step_id, iteration) do update set status = excluded.status,
                 outcome = coalesce(excluded.outcome, step.outcome), attempts = excluded.attempts,
                 input = coalesce(excluded.input, step.input), output = excluded.output, error = excluded.error,
                 usage = coalesce(excluded.usage, step.usage), call_id = coalesce(excluded.call_id, step.call_id),
                 started_at = coalesce(step.started_at, excluded.started_at), finished_at = excluded.finished_at"
        );
        let org = self.org()?;
        let values = [&[Bind::from(org), run.into()][..], &step.values()[..]].concat();
        self.execute(sql, &values).await.map(drop)
    }

    /// Removes the rows of steps at this position and after it: the run begins again there. Answers what they took up.
    pub async fn delete_steps(&mut self, run: RunId, position_min: i64) -> Result<i64, StoreError> {
        let sql = sql!(
            "select count(*) as steps, cast(coalesce(sum(coalesce(octet_length(input), 0) + coalesce(octet_length(output), 0)
                 + coalesce(octet_length(error), 0) + coalesce(octet_length(usage), 0)), 0) as bigint) as bytes
             from step where org_id = $1 and run_id = $2 and position >= $3"
        );
        let org = self.org()?;
        let row = self.fetch_optional(sql, binds![org, run, position_min]).await?;
        let taken = row.map_or(Ok(0), |row| {
            Ok::<_, StoreError>(row.get::<i64>("steps")? * STEP_BYTES + row.get::<i64>("bytes")?)
        })?;
        let sql = sql!("delete from step where org_id = $1 and run_id = $2 and position >= $3");
        self.execute(sql, binds![org, run, position_min]).await?;
        Ok(taken)
    }

    /// In the order in which they were begun. Inputs above [`STEP_INPUT_LISTED_BYTES_MAX`] and outputs above
    /// [`STEP_OUTPUT_LISTED_BYTES_MAX`] are left out; their sizes are there.
    pub async fn list_steps(&mut self, run: RunId) -> Result<Vec<(Step, StepSizes)>, StoreError> {
        let sql = sql!(
            "select step_id, iteration, position, status, outcome, attempts, error, usage, call_id, started_at, finished_at,
                 case when octet_length(input) <= $3 then input end as input,
                 case when octet_length(output) <= $4 then output end as output,
                 cast(octet_length(input) as bigint) as input_bytes, cast(octet_length(output) as bigint) as output_bytes
             from step where org_id = $1 and run_id = $2 order by position, step_id"
        );
        let org = self.org()?;
        let values = binds![org, run, STEP_INPUT_LISTED_BYTES_MAX, STEP_OUTPUT_LISTED_BYTES_MAX];
        let sizes = |row: &Row| {
            let (input_bytes, output_bytes) = (row.get("input_bytes")?, row.get("output_bytes")?);
            Ok::<_, StoreError>(StepSizes { input_bytes, output_bytes })
        };
        self.fetch(sql, values).await?.iter().map(|row| Ok((read_step(row)?, sizes(row)?))).collect()
    }

    /// A step with everything that it was given and said; its newest iteration.
    pub async fn load_step(&mut self, run: RunId, step: &str) -> Result<Option<Step>, StoreError> {
        let sql = sql!(
            "select step_id, iteration, position, status, outcome, attempts, input, output, error, usage, call_id, started_at,
                 finished_at
             from step where org_id = $1 and run_id = $2 and step_id = $3 order by iteration desc limit 1"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, run, step]).await?.map(|row| read_step(&row)).transpose()
    }

    /// Appends to the run's own log. `seq` is the number after [`Run::log_seq`], taken under the run's lock.
    pub async fn record_run_event(&mut self, run: RunId, event: &RunEvent) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into run_event (org_id, run_id, seq, kind, detail, created_at) values ($1, $2, $3, $4, $5, $6)"
        );
        let org = self.org()?;
        let values = [&[Bind::from(org), run.into()][..], &event.values()[..]].concat();
        self.execute(sql, &values).await.map(drop)
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
