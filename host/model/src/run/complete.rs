//! What a finished call means for its run.

use serde_json::{Value, json};

use super::advance::{check_size, finish, move_on, pass, record};
use super::{
    CallResult, OUTPUT_BYTES_MAX, RunState, RunStatus, StepError, StepRecord, StepState, StepStatus, StepVerdict, retry,
};
use crate::ambient::Ambient;
use crate::call::{CallError, Outcome};
use crate::workflow::{CallStep, Definition, Step, StepId, StepKind, json};

/// Takes a call's result into the run.
///
/// `step` and `attempt` are those of the [`super::PlannedCall`]; a result of another place or attempt is
/// [`StepVerdict::Stale`] and changes nothing. A result that says `returned` but whose output is no JSON, too large or
/// too deep counts as `invalid_output`. The clock and the generator decide the moment of another attempt.
///
/// A final failure goes on at `on_error`, else, with `allow_failure` or a `fallback`, at `next`; else the run has
/// failed. A `fallback` stands in for the output either way.
#[must_use]
pub fn complete_call(
    definition: &Definition,
    state: &mut RunState,
    step_id: &StepId,
    attempt: u32,
    result: &CallResult,
    ambient: &Ambient,
) -> StepVerdict {
    let at_this_call = !state.is_ended() && state.cursor.as_ref() == Some(step_id) && state.attempt == attempt;
    let under_way = state.steps.get(step_id).is_some_and(|step| step.status == StepStatus::Running);
    let Some(step) = definition.step(step_id) else { return StepVerdict::Stale };
    let StepKind::Call(call) = &step.kind else { return StepVerdict::Stale };
    if !at_this_call || !under_way {
        return StepVerdict::Stale;
    }
    match read_output(state, result) {
        Ok(output) => {
            let mut done = record(step_id, step, StepStatus::Succeeded, call.next.as_ref());
            done.attempt = attempt;
            done.output = output.clone();
            pass(state, step_id, output, call.next.as_ref());
            StepVerdict::Done(done)
        }
        Err((Outcome::Cancelled, error)) => {
            let error = StepError { step: Some(step_id.clone()), code: error.code, message: error.message };
            let mut cancelled = record(step_id, step, StepStatus::Cancelled, None);
            cancelled.attempt = attempt;
            cancelled.error = Some(error.clone());
            end_cancelled(state, step_id, error);
            StepVerdict::Done(cancelled)
        }
        Err((outcome, error)) => {
            let failure =
                StepError { step: Some(step_id.clone()), code: error.code.clone(), message: error.message.clone() };
            if attempt < call.retry.max_attempts && retry::is_retryable(outcome, Some(&error)) {
                return retry_later(step_id, step, call, state, &error, failure, ambient);
            }
            StepVerdict::Done(settle_failure(step_id, step, call, state, failure))
        }
    }
}

fn retry_later(
    step_id: &StepId,
    step: &Step,
    call: &CallStep,
    state: &mut RunState,
    error: &CallError,
    failure: StepError,
    ambient: &Ambient,
) -> StepVerdict {
    let attempt = state.attempt;
    let after = retry::pause(call.retry, attempt, Some(error), ambient);
    let until = ambient.now().plus(after);
    let mut waiting = record(step_id, step, StepStatus::Waiting, None);
    waiting.attempt = attempt;
    let error_value = error_value(&failure);
    state
        .steps
        .insert(step_id.clone(), StepState { status: StepStatus::Waiting, output: Value::Null, error: error_value });
    waiting.error = Some(failure);
    state.attempt = attempt + 1;
    state.wait_until = Some(until);
    let reason = format!("attempt {attempt} of {}: {}", call.retry.max_attempts, error.code);
    StepVerdict::Retry { record: waiting, after, until, reason }
}

/// The output, or the outcome and error that count.
fn read_output(state: &RunState, result: &CallResult) -> Result<Value, (Outcome, CallError)> {
    if result.outcome != Outcome::Returned {
        let error = result.error.clone().unwrap_or_else(|| CallError {
            code: result.outcome.as_str().replace('_', "-"),
            message: format!("the call ended as {}", result.outcome.as_str()),
            retryable: false,
            retry_after_ms: None,
            limit: None,
        });
        return Err((result.outcome, error));
    }
    let invalid = |message: String| {
        let code = "invalid-output".to_owned();
        let error = CallError { code, message, retryable: false, retry_after_ms: None, limit: None };
        (Outcome::InvalidOutput, error)
    };
    let Some(text) = result.output.as_deref() else { return Ok(Value::Null) };
    if text.len() > OUTPUT_BYTES_MAX {
        return Err(invalid(format!("the output is larger than {OUTPUT_BYTES_MAX} bytes")));
    }
    if json::text_depth(text) >= json::JSON_DEPTH_MAX {
        return Err(invalid(format!("the output is nested {} or more levels deep", json::JSON_DEPTH_MAX)));
    }
    let output: Value =
        serde_json::from_str(text).map_err(|error| invalid(format!("the output is not JSON: {error}")))?;
    check_size(state, json::encoded_len(&output)).map_err(|(code, message)| {
        let error = CallError { code: code.to_owned(), message, retryable: false, retry_after_ms: None, limit: None };
        (Outcome::LimitExceeded, error)
    })?;
    Ok(output)
}

pub(super) fn error_value(error: &StepError) -> Value {
    json!({ "code": error.code, "message": error.message })
}

/// Ends the run as failed.
pub(super) fn fail(state: &mut RunState, error: StepError) {
    finish(state, RunStatus::Failed, Value::Null, Some(error));
}

/// A call step failed for good: its `on_error`, `fallback` and `allow_failure` decide what follows.
pub(super) fn settle_failure(
    id: &StepId,
    step: &Step,
    call: &CallStep,
    state: &mut RunState,
    error: StepError,
) -> StepRecord {
    let attempt = state.attempt;
    let goes_on = call.on_error.is_some() || call.allow_failure || call.fallback.is_some();
    let next = if goes_on { call.on_error.as_ref().or(call.next.as_ref()) } else { None };
    let output = call.fallback.clone().unwrap_or(Value::Null);
    let mut failed = record(id, step, StepStatus::Failed, next);
    failed.attempt = attempt;
    failed.output = output.clone();
    failed.error = Some(error.clone());
    state.steps.insert(id.clone(), StepState { status: StepStatus::Failed, output, error: error_value(&error) });
    if goes_on {
        move_on(state, next);
    } else {
        fail(state, error);
    }
    failed
}

fn end_cancelled(state: &mut RunState, step_id: &StepId, error: StepError) {
    let error_value = error_value(&error);
    let cancelled = StepState { status: StepStatus::Cancelled, output: Value::Null, error: error_value };
    state.steps.insert(step_id.clone(), cancelled);
    finish(state, RunStatus::Cancelled, Value::Null, Some(error));
}

/// Ends a run because somebody wants it to end. The record is of the step that the run stands at (nothing is computed, so
/// pure steps that a worker may have passed since the last save are not told of); a run that has ended already stays as it is.
pub fn cancel(definition: &Definition, state: &mut RunState, reason: &str) -> Option<StepRecord> {
    if state.is_ended() {
        return None;
    }
    let id = state.cursor.clone();
    let error = StepError { step: id.clone(), code: "cancelled".to_owned(), message: reason.to_owned() };
    let record = id.as_ref().and_then(|id| definition.step(id).map(|step| (id, step))).map(|(id, step)| {
        let mut cancelled = record(id, step, StepStatus::Cancelled, None);
        cancelled.attempt = state.attempt;
        cancelled.error = Some(error.clone());
        cancelled
    });
    match (&record, id) {
        (Some(_), Some(id)) => end_cancelled(state, &id, error),
        _ => finish(state, RunStatus::Cancelled, Value::Null, Some(error)),
    }
    record
}

/// Ends a run because the host cannot carry it any further. Works without the definition, which may be what does not decode; the
/// step that it stands at is told of as failed, so that the run can be begun again from there. A run that has ended stays as it is.
pub fn give_up(definition: Option<&Definition>, state: &mut RunState, code: &str, message: &str) -> Option<StepRecord> {
    if state.is_ended() {
        return None;
    }
    let id = state.cursor.clone();
    let error = StepError { step: id.clone(), code: code.to_owned(), message: message.to_owned() };
    let step = id.as_ref().zip(definition).and_then(|(id, definition)| definition.step(id).map(|step| (id, step)));
    let record = step.map(|(id, step)| {
        let mut failed = record(id, step, StepStatus::Failed, None);
        failed.attempt = state.attempt;
        failed.error = Some(error.clone());
        failed
    });
    if let Some(id) = id {
        let error = error_value(&error);
        state.steps.insert(id, StepState { status: StepStatus::Failed, output: Value::Null, error });
    }
    fail(state, error);
    record
}
