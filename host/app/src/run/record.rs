//! A run's row, its steps' rows and its own log: read and written the same way by whoever changes a run under its lock.

use bulkhead_model::fault::Fault;
use bulkhead_model::run::{RunState, StepError, StepRecord};
use bulkhead_model::time::Timestamp;
use bulkhead_store::advance::CalledStep;
use bulkhead_store::call::Call;
use bulkhead_store::dead_letter::{self, NewDeadLetter};
use bulkhead_store::run::{Run, RunEvent, Step};
use bulkhead_store::{StoreError, Tx};
use serde_json::{Value, json};

use crate::AppError;

/// The next entry of a run's own log, which takes its number and its room in the run.
pub(crate) fn next_event(run: &mut Run, kind: &str, detail: &Value, now: Timestamp) -> RunEvent {
    run.log_seq += 1;
    let event = RunEvent { seq: run.log_seq, kind: kind.to_owned(), detail: detail.to_string(), created_at: now };
    run.kept.add_event(&event);
    event
}

/// Appends to a run's own log; the caller holds the run's lock and saves the run afterwards.
pub(crate) async fn log_event(
    tx: &mut Tx,
    run: &mut Run,
    kind: &str,
    detail: &Value,
    now: Timestamp,
) -> Result<(), StoreError> {
    let event = next_event(run, kind, detail, now);
    tx.record_run_event(run.id, &event).await
}

pub(crate) fn state_text(state: &RunState) -> Result<String, AppError> {
    serde_json::to_string(state)
        .map_err(|error| AppError::Store(StoreError::Corrupt { what: "run state", why: error.to_string() }))
}

pub(crate) fn read_state(run: &Run) -> Result<RunState, AppError> {
    serde_json::from_str(&run.state)
        .map_err(|error| AppError::Store(StoreError::Corrupt { what: "run state", why: error.to_string() }))
}

/// The `trigger` that conditions and templates see.
pub(crate) fn read_trigger(run: &Run) -> Result<Value, AppError> {
    serde_json::from_str(&run.trigger_data)
        .map_err(|error| AppError::Store(StoreError::Corrupt { what: "run trigger", why: error.to_string() }))
}

/// A step's row and its line in the run's log, with the call that was made for it; what both take up is added to what the run holds.
pub(crate) fn step_rows(
    state: &RunState,
    run: &mut Run,
    record: &StepRecord,
    call: Option<&Call>,
    now: Timestamp,
) -> (Step, RunEvent) {
    let position = state.steps.get_index_of(&record.step).unwrap_or(state.steps.len());
    let waits = !record.status.is_final();
    let step = Step {
        step: record.step.to_string(),
        iteration: i64::from(record.iteration),
        position: i64::try_from(position).unwrap_or(i64::MAX),
        status: record.status,
        outcome: call.map(|call| call.report.outcome.as_str().to_owned()),
        attempts: i64::from(record.attempt),
        input: call.map(|call| call.input.clone()),
        output: (!record.output.is_null()).then(|| record.output.to_string()),
        error: record.error.as_ref().map(|error| json!(error).to_string()),
        usage: call.map(|call| json!(call.report.usage).to_string()),
        call: call.map(|call| call.id),
        started_at: Some(call.map_or(now, |call| call.created_at)),
        finished_at: (!waits).then_some(now),
    };
    let mut detail = json!(record);
    if let Some(call) = call {
        detail["call"] = json!(call.id);
        detail["outcome"] = json!(call.report.outcome);
    }
    // The step's row holds its output; the log stays small.
    if let Some(fields) = detail.as_object_mut() {
        fields.shift_remove("output");
    }
    run.kept.add_step(&step);
    let event = next_event(run, "step", &detail, now);
    (step, event)
}

/// Saves a step's row and its line in the run's log, with the call that was made for it.
pub(crate) async fn save_record(
    tx: &mut Tx,
    state: &RunState,
    run: &mut Run,
    record: &StepRecord,
    call: Option<&Call>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (step, event) = step_rows(state, run, record, call, now);
    if let Some(call) = call {
        return tx.record_called_step(run, CalledStep { call, step: &step, event: &event }).await;
    }
    tx.save_step(run.id, &step).await?;
    tx.record_run_event(run.id, &event).await
}

/// What a failed run puts on the list of dead letters; nothing where its definition ended it so (`stop` with `failed`), which no
/// second attempt would change.
pub(crate) fn letter_of(run: &Run, error: &StepError) -> Option<NewDeadLetter> {
    if error.code == "stopped" {
        return None;
    }
    let step = error.step.as_ref().map(ToString::to_string);
    let fault = Fault { kind: dead_letter::RUN, code: &error.code, step: step.as_deref(), message: &error.message };
    Some(NewDeadLetter {
        fingerprint: fault.fingerprint(),
        kind: dead_letter::RUN.to_owned(),
        subject: run.id.to_string(),
        workflow: Some(run.workflow),
        run: Some(run.id),
        job: None,
        step,
        code: error.code.clone(),
        message: error.message.clone(),
    })
}
