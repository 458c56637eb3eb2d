//! A run as pure rules: what happens next, what a finished call means, and how to begin again from a step.
//!
//! The engine owns a [`RunState`] per run, saves it with every step, and asks two questions in turn:
//!
//! 1. [`advance`]: pure steps are done on the way (their records are returned); the answer is a call to make, a moment
//!    to wait for, or the end. Asking again without having done anything gives the same answer, so a crash between
//!    planning and doing costs nothing.
//! 2. [`complete_call`]: what a call's outcome means: the next step, another attempt later, or the failure's
//!    consequences. Then ask [`advance`] again, in the same transaction.
//!
//! A definition has no cycles, so every run ends after at most as many steps as its definition has.

mod advance;
mod complete;
mod context;
mod retry;
mod rewind;
mod status;
#[cfg(test)]
mod tests;

use std::time::Duration;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::call::{CallError, Outcome};
use crate::condition::Explanation;
use crate::id::{InstallationId, OrgId, RunId, WorkflowId};
use crate::limits::ContributionKind;
use crate::name::{ContributionName, PluginName};
use crate::time::Timestamp;
use crate::workflow::{Retry, StepId};

pub use advance::{PURE_TIME_MAX, advance, begin};
pub use complete::{cancel, complete_call, give_up};
pub use context::Context;
pub use retry::{RETRY_AFTER_MAX, is_retryable};
pub use rewind::{RewindError, rewind};
pub use status::{RunStatus, StepStatus};

/// Bytes of one step's output, as JSON. Source: payload limit of the workflow specification.
pub const OUTPUT_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of all outputs and variables that a run carries; the state is saved with every step, so it must stay small.
pub const STATE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Everything that a run knows between two steps. Persisted as JSON with the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// The variables as the run began, for [`rewind`].
    pub given: Map<String, Value>,
    pub vars: Map<String, Value>,
    /// Steps that were begun, in that order.
    pub steps: IndexMap<StepId, StepState>,
    /// The step that is next or under way; `None` when the run has ended.
    pub cursor: Option<StepId>,
    /// Number of the attempt that the cursor's call is at, from 1.
    pub attempt: u32,
    /// Until when the cursor's step waits: a delay, or the pause before another attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_until: Option<Timestamp>,
    /// Rises when somebody asks to make effects again (see [`rewind`]); part of every idempotency key.
    pub generation: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
    /// Whether [`advance`] has handed out the records of the steps that never ran.
    #[serde(default)]
    pub closed: bool,
}

/// What is kept of a step for later ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepState {
    pub status: StepStatus,
    /// `steps.<id>.output`; `null` for a step without one.
    #[serde(default)]
    pub output: Value,
    /// `steps.<id>.error`: `null`, or `{"code", "message"}`.
    #[serde(default)]
    pub error: Value,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    pub status: RunStatus,
    #[serde(default)]
    pub output: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<StepError>,
}

/// Why a step (and with it perhaps the run) failed. `code` is stable, `message` is for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepError {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepId>,
    /// A [`CallError`] code, or `template`, `wrong-type`, `delay-too-long`, `state-too-large`, `stopped`, `cancelled`.
    pub code: String,
    pub message: String,
}

/// One line of the run's log: what became of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    pub step: StepId,
    /// The step's type in the definition: `condition`, `set`, …
    pub kind: String,
    /// Always 0 in schema 1, where a step runs once.
    pub iteration: u32,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    pub status: StepStatus,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub output: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<StepError>,
    /// For a condition its explanation; for a switch one per case that was asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub explain: Vec<Explanation>,
    /// The step that follows; absent when the run ends here or the step is not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<StepId>,
}

/// What is true of the run whatever its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunFacts {
    pub run: RunId,
    pub workflow: WorkflowId,
    pub org: OrgId,
    pub started_at: Timestamp,
}

/// What the engine does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Make this call, then hand its result to [`complete_call`].
    Call(PlannedCall),
    /// Nothing to do before this moment (which may be now: see [`PURE_TIME_MAX`]).
    Wait { step: StepId, until: Timestamp },
    /// The run has ended.
    Finish { status: RunStatus, output: Value, error: Option<StepError> },
}

/// The answer of [`advance`].
#[derive(Clone, Debug, PartialEq)]
pub struct Advance {
    /// Steps that were done (or found failed, or skipped for good) on the way, in order.
    pub records: Vec<StepRecord>,
    pub next: Next,
}

/// One call of a plugin, ready to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedCall {
    pub step: StepId,
    /// `Action` or `Channel`.
    pub kind: ContributionKind,
    pub plugin: PluginName,
    pub contribution: ContributionName,
    /// `None`: the organization's only installation of the plugin.
    pub installation: Option<InstallationId>,
    /// `with`, rendered.
    pub input: Value,
    /// `None`: the installation's own limit.
    pub timeout_ms: Option<u64>,
    pub retry: Retry,
    pub iteration: u32,
    /// From 1; [`complete_call`] takes it back, so that a late result of an earlier attempt is noticed.
    pub attempt: u32,
    /// The same for every attempt of one generation.
    pub idempotency_key: String,
}

/// How a call ended, as the runtime reports it.
#[derive(Clone, Debug, PartialEq)]
pub struct CallResult {
    pub outcome: Outcome,
    /// JSON text; read only for [`Outcome::Returned`].
    pub output: Option<String>,
    pub error: Option<CallError>,
}

/// What a call's result means.
#[derive(Clone, Debug, PartialEq)]
pub enum StepVerdict {
    /// The step is over, well or badly; the state stands at what follows (perhaps the run's end). Ask [`advance`].
    Done(StepRecord),
    /// Another attempt, not before `until`; [`advance`] answers `Wait` before and `Call` after.
    Retry { record: StepRecord, after: Duration, until: Timestamp, reason: String },
    /// The result is of a step or an attempt that the run is no longer at; nothing changed.
    Stale,
}

/// Why a run could not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.iter().map(|p| p.message.as_str()).collect::<Vec<_>>().join("; "))]
pub struct StartError {
    pub problems: Vec<VariableProblem>,
}

/// One thing that is wrong with the variables given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VariableProblem {
    pub name: String,
    /// `missing`, `wrong-type`, `unknown`, `too-large`.
    pub code: String,
    pub message: String,
}

/// The key under which an effect is made once: the same for every automatic attempt of a step, another for every
/// generation. A run id has no dot and a step id neither, so two keys are equal only for equal parts.
#[must_use]
pub fn idempotency_key(run: RunId, step: &StepId, iteration: u32, generation: u32) -> String {
    format!("{run}.{step}.{iteration}.{generation}")
}

impl RunState {
    /// Whether the run has ended.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended.is_some()
    }
}
