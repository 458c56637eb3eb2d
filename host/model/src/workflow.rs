//! What a workflow is: a JSON document, read once into a checked form that a run interprets.
//!
//! [`Definition::parse`] keeps the text byte for byte, collects *every* problem with its JSON pointer, and answers with
//! notes: warnings, and conversions of older names. The document's shape is published as JSON Schema
//! (`docs/schemas/workflow.json`, [`json_schema`]); the guide is `docs/guides/workflows.md`.
//!
//! In schema 1 the steps form a graph without cycles, so each step runs at most once and every run ends.

pub(crate) mod json;

mod check;
mod concurrency;
mod convert;
mod duration;
mod graph;
mod name;
mod read;
#[cfg(test)]
pub(crate) mod tests;
mod trigger;
mod variable;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::condition::Condition;
use crate::id::InstallationId;
use crate::limits::ContributionKind;
use crate::name::{ContributionName, PluginName};
use crate::template::Template;

pub use concurrency::{CONCURRENCY_MAX, Concurrency};
pub use json::JSON_DEPTH_MAX;
pub use name::{StepId, TriggerId, VariableName};
pub use trigger::{Considered, Trigger, TriggerKind, TriggerMatch, schedule_payload, trigger_payload};
pub use variable::{SECRET_PLACEHOLDER_PREFIX, Variable, VariableType};
pub use wire::json_schema;

/// The version of the definition language that this build reads and writes.
pub const SCHEMA: u64 = 1;
/// Steps in one workflow. Source: the workflow specification's quotas.
pub const STEPS_MAX: usize = 200;
pub const TRIGGERS_MAX: usize = 20;
pub const VARIABLES_MAX: usize = 100;
/// Cases of one `switch`.
pub const CASES_MAX: usize = 50;
/// Regular expressions in all conditions of one workflow.
pub const PATTERNS_MAX: usize = 100;
/// Bytes of a definition's text.
pub const TEXT_BYTES_MAX: usize = 1024 * 1024;
/// Characters of a workflow's name, and of a step's title.
pub const NAME_CHARS_MAX: usize = 120;
/// Characters of any description.
pub const DESCRIPTION_CHARS_MAX: usize = 2000;
/// The longest wait: a leap year.
pub const DELAY_MAX: Duration = Duration::from_hours(366 * 24);
pub const ATTEMPTS_MAX: u32 = 100;
/// The longest pause between two attempts that a definition may ask for: a day.
pub const BACKOFF_MAX_MS: u64 = 24 * 3600 * 1000;
/// A step's time limit: at least this, and at most the platform's ceiling for one call (`limits.rs`).
pub const TIMEOUT_MIN_MS: u64 = 100;
pub const TIMEOUT_MAX_MS: u64 = 60_000;

/// A checked workflow.
#[derive(Clone, Debug)]
pub struct Definition {
    text: Arc<str>,
    pub name: String,
    pub description: String,
    pub variables: IndexMap<VariableName, Variable>,
    pub triggers: Vec<Trigger>,
    pub concurrency: Option<Concurrency>,
    pub start: StepId,
    pub steps: IndexMap<StepId, Step>,
}

/// Steps of a definition that [`Definition::is_light`].
const LIGHT_STEPS_MAX: usize = 32;
/// Cases of a switch in one.
const LIGHT_CASES_MAX: usize = 8;
/// Fields that a condition in one looks at.
const LIGHT_PATHS_MAX: usize = 32;

#[derive(Clone, Debug)]
pub struct Step {
    /// What people read instead of the id.
    pub title: Option<String>,
    pub kind: StepKind,
}

#[derive(Clone, Debug)]
pub enum StepKind {
    /// `action` and `notify`: a call of a plugin.
    Call(Box<CallStep>),
    Condition {
        test: Condition,
        then: Option<StepId>,
        otherwise: Option<StepId>,
    },
    /// The first case that holds decides.
    Switch {
        cases: Vec<Case>,
        otherwise: Option<StepId>,
    },
    Set {
        vars: Vec<(VariableName, Template)>,
        next: Option<StepId>,
    },
    Delay {
        until: Delay,
        next: Option<StepId>,
    },
    Stop {
        status: StopStatus,
        output: Option<Template>,
    },
}

#[derive(Clone, Debug)]
pub struct Case {
    pub test: Condition,
    pub then: Option<StepId>,
}

#[derive(Clone, Debug)]
pub enum Delay {
    For(Duration),
    /// A template that gives an RFC 3339 time or a date (its midnight UTC). A moment that has passed does not wait.
    Until(Template),
}

/// How a `stop` ends the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopStatus {
    #[default]
    Succeeded,
    Failed,
}

#[derive(Clone, Debug)]
pub struct CallStep {
    /// `Action` or `Channel`.
    pub kind: ContributionKind,
    pub plugin: PluginName,
    pub contribution: ContributionName,
    /// `None`: the organization's only installation of the plugin, so that a definition can be handed on.
    pub installation: Option<InstallationId>,
    pub with: Template,
    pub retry: Retry,
    /// `None`: the installation's own limit.
    pub timeout_ms: Option<u64>,
    /// The run goes on at `next` when the step finally fails.
    pub allow_failure: bool,
    /// The output that stands in for a failed step's. With it the run goes on.
    pub fallback: Option<Value>,
    /// Where the run goes on when the step finally fails; stronger than `next`.
    pub on_error: Option<StepId>,
    pub next: Option<StepId>,
}

/// Attempts and the pauses between them: exponential with full jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all, the first one included.
    pub max_attempts: u32,
    pub backoff_ms: u64,
    pub backoff_max_ms: u64,
}

impl Default for Retry {
    fn default() -> Self {
        Self { max_attempts: 3, backoff_ms: 1_000, backoff_max_ms: 60_000 }
    }
}

/// One thing that is wrong with a definition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// JSON pointer (RFC 6901) into the document.
    pub path: String,
    /// Stable: `unknown-step`, `cycle`, `template`, `condition`, `shape`, …
    pub code: String,
    pub message: String,
}

impl Problem {
    pub(crate) fn new(path: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self { path: path.into(), code: code.to_owned(), message: message.into() }
    }
}

/// Something that the author should know of a definition that is accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub kind: NoteKind,
    pub path: String,
    pub code: String,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoteKind {
    /// Probably not what was meant.
    Warning,
    /// An older name was read as its present one.
    Conversion,
}

/// The definition was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the definition has {} problem(s); the first is at `{}`: {}", .problems.len(),
    .problems.first().map_or("", |p| p.path.as_str()), .problems.first().map_or("", |p| p.message.as_str()))]
pub struct DefinitionError {
    /// In document order as far as they were found; never empty.
    pub problems: Vec<Problem>,
}

impl Definition {
    /// Reads, converts, checks and compiles a definition.
    ///
    /// # Errors
    /// Every problem that was found.
    pub fn parse(text: &str) -> Result<(Self, Vec<Note>), DefinitionError> {
        read::read(text).map_err(|problems| DefinitionError { problems })
    }

    /// The document as it was written, byte for byte.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The step of this name.
    #[must_use]
    pub fn step(&self, id: &StepId) -> Option<&Step> {
        self.steps.get(id)
    }

    /// Whether planning a run takes no more than some microseconds for each kilobyte that it reads: few steps, templates that only
    /// name values, no regular expressions.
    #[must_use]
    pub fn is_light(&self) -> bool {
        let light = |test: &Condition| test.patterns() == 0 && test.paths().len() <= LIGHT_PATHS_MAX;
        let step = |step: &Step| match &step.kind {
            StepKind::Call(call) => call.with.only_names(),
            StepKind::Condition { test, .. } => light(test),
            StepKind::Switch { cases, .. } => {
                cases.len() <= LIGHT_CASES_MAX && cases.iter().all(|case| light(&case.test))
            }
            StepKind::Set { vars, .. } => vars.iter().all(|(_, value)| value.only_names()),
            StepKind::Delay { until: Delay::For(_), .. } => true,
            StepKind::Delay { until: Delay::Until(time), .. } => time.only_names(),
            StepKind::Stop { output, .. } => output.as_ref().is_none_or(Template::only_names),
        };
        self.steps.len() <= LIGHT_STEPS_MAX
            && self.steps.values().all(step)
            && self.triggers.iter().all(|trigger| trigger.when.as_ref().is_none_or(light))
    }

    /// Plugins that the steps use, each once, in order of first use.
    pub fn plugins(&self) -> Vec<&PluginName> {
        let mut found: Vec<&PluginName> = Vec::new();
        for step in self.steps.values() {
            if let StepKind::Call(call) = &step.kind
                && !found.contains(&&call.plugin)
            {
                found.push(&call.plugin);
            }
        }
        found
    }
}

impl StepKind {
    /// The name that definitions use.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Call(call) if call.kind == ContributionKind::Channel => "notify",
            Self::Call(_) => "action",
            Self::Condition { .. } => "condition",
            Self::Switch { .. } => "switch",
            Self::Set { .. } => "set",
            Self::Delay { .. } => "delay",
            Self::Stop { .. } => "stop",
        }
    }

    /// The steps that may follow, with the pointer to each mention, relative to the step.
    pub fn targets(&self) -> Vec<(String, &StepId)> {
        let mut found: Vec<(String, &StepId)> = Vec::new();
        match self {
            Self::Call(call) => {
                found.extend(call.next.iter().map(|id| ("/next".to_owned(), id)));
                found.extend(call.on_error.iter().map(|id| ("/on_error".to_owned(), id)));
            }
            Self::Condition { then, otherwise, .. } => {
                found.extend(then.iter().map(|id| ("/then".to_owned(), id)));
                found.extend(otherwise.iter().map(|id| ("/else".to_owned(), id)));
            }
            Self::Switch { cases, otherwise } => {
                for (index, case) in cases.iter().enumerate() {
                    found.extend(case.then.iter().map(|id| (format!("/cases/{index}/then"), id)));
                }
                found.extend(otherwise.iter().map(|id| ("/else".to_owned(), id)));
            }
            Self::Set { next, .. } | Self::Delay { next, .. } => {
                found.extend(next.iter().map(|id| ("/next".to_owned(), id)));
            }
            Self::Stop { .. } => {}
        }
        found
    }
}
