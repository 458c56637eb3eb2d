//! From where a run stands to the next thing that must be done for it.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::{
    Advance, Context, Ended, Next, PlannedCall, RunFacts, RunState, RunStatus, STATE_BYTES_MAX, StartError, StepError,
    StepRecord, StepState, StepStatus, VariableProblem, complete, idempotency_key,
};
use crate::condition::{self, Explanation};
use crate::template::{Template, TemplateError};
use crate::time::Timestamp;
use crate::workflow::{
    CallStep, DELAY_MAX, Definition, Delay, Step, StepId, StepKind, StopStatus, VariableName, VariableType, json,
};

/// After this long the pure steps pause and the answer is to ask again at once, so that one run of a hostile or very
/// large definition does not keep a worker from the others.
pub const PURE_TIME_MAX: Duration = Duration::from_millis(250);

/// The state in which a run of this definition begins, with the variables given.
///
/// # Errors
/// Everything that is wrong with the variables: missing ones, wrong types, unknown names.
pub fn begin(definition: &Definition, given: &Map<String, Value>) -> Result<RunState, StartError> {
    let mut problems = Vec::new();
    let mut problem = |name: &str, code: &str, message: String| {
        problems.push(VariableProblem { name: name.to_owned(), code: code.to_owned(), message });
    };
    for name in given.keys().filter(|name| !definition.variables.contains_key(name.as_str())) {
        problem(name, "unknown", format!("the workflow has no variable `{name}`"));
    }
    let mut vars = Map::new();
    for (name, variable) in &definition.variables {
        let value = given.get(name.as_str()).or(variable.default.as_ref());
        let absent = value.is_none_or(|value| value.is_null() && variable.kind != VariableType::Json);
        match value {
            _ if absent && variable.required => {
                problem(name.as_str(), "missing", format!("the variable `{name}` is required"));
            }
            Some(value) if !absent && !variable.kind.admits(value) => {
                problem(name.as_str(), "wrong-type", format!("the variable `{name}` is no {}", variable.kind.as_str()));
            }
            Some(value) if json::depth(value) >= json::JSON_DEPTH_MAX => {
                problem(name.as_str(), "too-large", format!("the variable `{name}` is nested too deep"));
            }
            // A variable without a value is null, not undefined, so that templates may ask for it.
            value => {
                vars.insert(name.to_string(), value.cloned().unwrap_or(Value::Null));
            }
        }
    }
    if json::encoded_len(&Value::Object(vars.clone())) > super::OUTPUT_BYTES_MAX {
        problem("", "too-large", format!("the variables are larger than {} bytes", super::OUTPUT_BYTES_MAX));
    }
    if !problems.is_empty() {
        return Err(StartError { problems });
    }
    Ok(RunState {
        given: vars.clone(),
        vars,
        steps: indexmap::IndexMap::new(),
        cursor: Some(definition.start.clone()),
        attempt: 1,
        wait_until: None,
        generation: 0,
        ended: None,
        closed: false,
    })
}

/// Does the pure steps that come next, and says what must be done then.
///
/// `trigger` is the run's trigger payload (see [`crate::workflow::trigger_payload`]). Nothing but `state` changes, and
/// asking again with the same arguments gives the same `next` without records.
#[must_use]
pub fn advance(
    definition: &Definition,
    state: &mut RunState,
    trigger: &Value,
    facts: &RunFacts,
    now: Timestamp,
) -> Advance {
    let mut records = Vec::new();
    let began = Instant::now();
    // One round per step that is passed, one for the end. A checked definition has no cycles, so this never runs out.
    for _ in 0..=definition.steps.len() {
        if state.is_ended() {
            break;
        }
        let Some(id) = state.cursor.clone() else {
            finish(state, RunStatus::Succeeded, Value::Null, None);
            break;
        };
        if began.elapsed() > PURE_TIME_MAX && !records.is_empty() {
            return Advance { records, next: Next::Wait { step: id, until: now } };
        }
        let Some(step) = definition.step(&id) else {
            let message = format!("the definition has no step `{id}`");
            complete::fail(state, StepError { step: Some(id), code: "unknown-step".to_owned(), message });
            break;
        };
        if let Some(next) = advance_step(&id, step, definition, state, trigger, facts, now, &mut records) {
            return Advance { records, next };
        }
    }
    if !state.is_ended() {
        let message = "the run took more steps than its definition has".to_owned();
        complete::fail(state, StepError { step: state.cursor.clone(), code: "loop".to_owned(), message });
    }
    if !state.closed {
        records.extend(skipped(definition, state));
        state.closed = true;
    }
    let ended = state.ended.clone().unwrap_or(Ended { status: RunStatus::Failed, output: Value::Null, error: None });
    Advance { records, next: Next::Finish { status: ended.status, output: ended.output, error: ended.error } }
}

pub(super) fn finish(state: &mut RunState, status: RunStatus, output: Value, error: Option<StepError>) {
    state.cursor = None;
    state.wait_until = None;
    state.ended = Some(Ended { status, output, error });
}

/// Steps that the run will never come by.
fn skipped<'a>(definition: &'a Definition, state: &'a RunState) -> impl Iterator<Item = StepRecord> + 'a {
    definition
        .steps
        .iter()
        .filter(|(id, _)| !state.steps.contains_key(*id))
        .map(|(id, step)| record(id, step, StepStatus::Skipped, None))
}

pub(super) fn record(id: &StepId, step: &Step, status: StepStatus, next: Option<&StepId>) -> StepRecord {
    StepRecord {
        step: id.clone(),
        kind: step.kind.as_str().to_owned(),
        iteration: 0,
        attempt: 1,
        status,
        output: Value::Null,
        error: None,
        explain: Vec::new(),
        next: next.cloned(),
    }
}

/// Marks the step as done with this output and moves on.
pub(super) fn pass(state: &mut RunState, id: &StepId, output: Value, next: Option<&StepId>) {
    let done = StepState { status: StepStatus::Succeeded, output, error: Value::Null };
    state.steps.insert(id.clone(), done);
    move_on(state, next);
}

pub(super) fn move_on(state: &mut RunState, next: Option<&StepId>) {
    state.cursor = next.cloned();
    state.attempt = 1;
    state.wait_until = None;
}

#[expect(clippy::too_many_arguments, reason = "the arguments of `advance`, and where the records go")]
fn advance_step(
    id: &StepId,
    step: &Step,
    definition: &Definition,
    state: &mut RunState,
    trigger: &Value,
    facts: &RunFacts,
    now: Timestamp,
    records: &mut Vec<StepRecord>,
) -> Option<Next> {
    match &step.kind {
        StepKind::Call(call) => match plan_call(id, call, state, trigger, facts, now) {
            Ok(next) => Some(next),
            Err(error) => {
                let error = StepError { step: Some(id.clone()), code: "template".to_owned(), message: error };
                records.push(complete::settle_failure(id, step, call, state, error));
                None
            }
        },
        StepKind::Condition { test, then, otherwise } => {
            let explanation = test.explain(&Context::new(state, trigger, facts));
            let next = if explanation.result { then } else { otherwise };
            branch(id, step, state, vec![explanation], next.as_ref(), records);
            None
        }
        StepKind::Switch { cases, otherwise } => {
            let context = Context::new(state, trigger, facts);
            let mut explain = Vec::new();
            let mut next = otherwise.as_ref();
            for case in cases {
                explain.push(case.test.explain(&context));
                if explain.last().is_some_and(|explanation| explanation.result) {
                    next = case.then.as_ref();
                    break;
                }
            }
            branch(id, step, state, explain, next, records);
            None
        }
        StepKind::Set { vars, next } => {
            match set(definition, state, vars, &Context::new(state, trigger, facts)) {
                Ok(values) => {
                    state.vars.extend(values.clone());
                    let mut done = record(id, step, StepStatus::Succeeded, next.as_ref());
                    done.output = Value::Object(values.clone());
                    records.push(done);
                    pass(state, id, Value::Object(values), next.as_ref());
                }
                Err((code, message)) => records.push(fail_step(id, step, state, code, message)),
            }
            None
        }
        StepKind::Delay { until, next } => {
            let context = Context::new(state, trigger, facts);
            let until = match state.wait_until.map_or_else(|| wait_until(until, &context, now), Ok) {
                Ok(until) => until,
                Err((code, message)) => {
                    records.push(fail_step(id, step, state, code, message));
                    return None;
                }
            };
            let output = json!({ "until": until });
            if until > now {
                if state.wait_until.is_none() {
                    let mut waiting = record(id, step, StepStatus::Waiting, None);
                    waiting.output = output;
                    records.push(waiting);
                }
                state.wait_until = Some(until);
                state.steps.insert(id.clone(), waiting_state());
                return Some(Next::Wait { step: id.clone(), until });
            }
            let mut done = record(id, step, StepStatus::Succeeded, next.as_ref());
            done.output = output.clone();
            records.push(done);
            pass(state, id, output, next.as_ref());
            None
        }
        StepKind::Stop { status, output } => {
            stop(id, step, state, *status, output.as_ref(), (trigger, facts), records);
            None
        }
    }
}

fn waiting_state() -> StepState {
    StepState { status: StepStatus::Waiting, output: Value::Null, error: Value::Null }
}

fn branch(
    id: &StepId,
    step: &Step,
    state: &mut RunState,
    explain: Vec<Explanation>,
    next: Option<&StepId>,
    records: &mut Vec<StepRecord>,
) {
    let output = json!({ "result": explain.last().is_some_and(|explanation| explanation.result) });
    let mut done = record(id, step, StepStatus::Succeeded, next);
    done.output = output.clone();
    done.explain = explain;
    records.push(done);
    pass(state, id, output, next);
}

fn fail_step(id: &StepId, step: &Step, state: &mut RunState, code: &'static str, message: String) -> StepRecord {
    let error = StepError { step: Some(id.clone()), code: code.to_owned(), message };
    let mut failed = record(id, step, StepStatus::Failed, None);
    failed.error = Some(error.clone());
    let error_value = complete::error_value(&error);
    state.steps.insert(id.clone(), StepState { status: StepStatus::Failed, output: Value::Null, error: error_value });
    complete::fail(state, error);
    failed
}

fn plan_call(
    id: &StepId,
    call: &CallStep,
    state: &mut RunState,
    trigger: &Value,
    facts: &RunFacts,
    now: Timestamp,
) -> Result<Next, String> {
    if let Some(until) = state.wait_until
        && until > now
    {
        return Ok(Next::Wait { step: id.clone(), until });
    }
    let input =
        call.with.render(&Context::new(state, trigger, facts)).map_err(|error| template_message("with", &error))?;
    state.wait_until = None;
    let running = StepState { status: StepStatus::Running, output: Value::Null, error: Value::Null };
    state.steps.insert(id.clone(), running);
    Ok(Next::Call(PlannedCall {
        step: id.clone(),
        kind: call.kind,
        plugin: call.plugin.clone(),
        contribution: call.contribution.clone(),
        installation: call.installation,
        input,
        timeout_ms: call.timeout_ms,
        retry: call.retry,
        iteration: 0,
        attempt: state.attempt,
        idempotency_key: idempotency_key(facts.run, id, 0, state.generation),
    }))
}

fn template_message(field: &str, error: &TemplateError) -> String {
    format!("{field}{}: {}", error.path, error.message)
}

type Failure = (&'static str, String);

/// The new values, all computed before any is set.
fn set(
    definition: &Definition,
    state: &RunState,
    vars: &[(VariableName, Template)],
    context: &Context<'_>,
) -> Result<Map<String, Value>, Failure> {
    let mut values = Map::new();
    for (name, template) in vars {
        let at = format!("vars/{name}");
        let value = template.render(context).map_err(|error| ("template", template_message(&at, &error)))?;
        let kind = definition.variables.get(name).map_or(VariableType::Json, |variable| variable.kind);
        if !kind.admits(&value) {
            return Err(("wrong-type", format!("the value for `{name}` is no {}", kind.as_str())));
        }
        values.insert(name.to_string(), value);
    }
    let values = Value::Object(values);
    // Once in the variables and once as the step's output.
    check_size(state, json::encoded_len(&values).saturating_mul(2))?;
    let Value::Object(values) = values else { return Ok(Map::new()) };
    Ok(values)
}

/// Whether so many bytes more fit into the run's state.
pub(super) fn check_size(state: &RunState, more: usize) -> Result<(), Failure> {
    let outputs: usize = state.steps.values().map(|step| json::encoded_len(&step.output)).sum();
    let vars: usize = state.vars.values().chain(state.given.values()).map(json::encoded_len).sum();
    if outputs + vars + more > STATE_BYTES_MAX {
        let message = format!("outputs and variables of the run together are larger than {STATE_BYTES_MAX} bytes");
        return Err(("state-too-large", message));
    }
    Ok(())
}

fn wait_until(delay: &Delay, context: &Context<'_>, now: Timestamp) -> Result<Timestamp, Failure> {
    let until = match delay {
        Delay::For(duration) => now.plus(*duration),
        Delay::Until(template) => {
            let value = template.render(context).map_err(|error| ("template", template_message("until", &error)))?;
            value
                .as_str()
                .and_then(condition::moment)
                .ok_or_else(|| ("wrong-type", "`until` gives no time such as 2026-11-21T08:00:00Z".to_owned()))?
        }
    };
    if until.since(now) > DELAY_MAX {
        return Err(("delay-too-long", format!("`until` is {until}, more than 366 days ahead")));
    }
    Ok(until)
}

fn stop(
    id: &StepId,
    step: &Step,
    state: &mut RunState,
    status: StopStatus,
    output: Option<&Template>,
    (trigger, facts): (&Value, &RunFacts),
    records: &mut Vec<StepRecord>,
) {
    let rendered = output.map_or(Ok(Value::Null), |output| {
        let rendered = output.render(&Context::new(state, trigger, facts));
        rendered.map_err(|error| ("template", template_message("output", &error)))
    });
    let rendered = rendered.and_then(|output| check_size(state, json::encoded_len(&output)).map(|()| output));
    match rendered {
        Ok(output) => {
            let mut done = record(id, step, StepStatus::Succeeded, None);
            done.output = output.clone();
            records.push(done);
            pass(state, id, Value::Null, None);
            match status {
                StopStatus::Succeeded => finish(state, RunStatus::Succeeded, output, None),
                StopStatus::Failed => {
                    let message = format!("the step `{id}` ends the run as failed");
                    let error = StepError { step: Some(id.clone()), code: "stopped".to_owned(), message };
                    finish(state, RunStatus::Failed, output, Some(error));
                }
            }
        }
        Err((code, message)) => records.push(fail_step(id, step, state, code, message)),
    }
}
