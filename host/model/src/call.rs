//! How a plugin call ends, and what is kept of it.

use serde::{Deserialize, Serialize};

use crate::limits::{Limits, Usage};

/// The closed set of ways in which a call ends. Only [`HostFault`](Self::HostFault) is our bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The guest returned a result that passed every check.
    Returned,
    /// The guest returned one of its own failures (invalid input, transient, permanent).
    PluginError,
    /// The guest gave up because it lacks a grant.
    Refused,
    Trapped,
    OutOfFuel,
    /// Memory or tables; also a trap that follows a refused growth.
    OutOfMemory,
    /// Another limit; [`CallError::limit`] says which.
    LimitExceeded,
    /// The result is not JSON, too deep, not finite, or does not fit the contribution's schema.
    InvalidOutput,
    DeadlinePassed,
    /// The installation's grants changed while it ran.
    Revoked,
    Cancelled,
    HostFault,
}

impl Outcome {
    pub const ALL: [Self; 12] = [
        Self::Returned,
        Self::PluginError,
        Self::Refused,
        Self::Trapped,
        Self::OutOfFuel,
        Self::OutOfMemory,
        Self::LimitExceeded,
        Self::InvalidOutput,
        Self::DeadlinePassed,
        Self::Revoked,
        Self::Cancelled,
        Self::HostFault,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Returned => "returned",
            Self::PluginError => "plugin_error",
            Self::Refused => "refused",
            Self::Trapped => "trapped",
            Self::OutOfFuel => "out_of_fuel",
            Self::OutOfMemory => "out_of_memory",
            Self::LimitExceeded => "limit_exceeded",
            Self::InvalidOutput => "invalid_output",
            Self::DeadlinePassed => "deadline_passed",
            Self::Revoked => "revoked",
            Self::Cancelled => "cancelled",
            Self::HostFault => "host_fault",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == text)
    }
}

/// Why a call did not return a result. `code` is stable, `message` is for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallError {
    /// `invalid-input`, `transient`, `permanent`, `refused`, `trap`, `fuel`, `memory`, `deadline`, …
    pub code: String,
    pub message: String,
    /// Trying again may help (a transient failure, a passed deadline, a host fault).
    #[serde(default)]
    pub retryable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Which limit was reached, by its field name in [`Limits`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
}

/// One line that the guest wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// `trace debug info warn error critical`, or `stdout`, `stderr`.
    pub level: String,
    pub message: String,
}

/// One outbound request of a call, without secrets: path has no query, and placeholders stay placeholders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressRecord {
    pub method: String,
    /// `https://host:port`
    pub origin: String,
    pub path: String,
    /// `None` when no response arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub duration_ms: u64,
    /// Why it was refused or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A host call that was refused for lack of a grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// `http`, `secret`, …
    pub kind: String,
    /// What was asked for: `POST https://slack.com/api/x`, `bot_token`.
    pub target: String,
    pub reason: String,
}

/// Everything that is recorded of one call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallReport {
    pub outcome: Outcome,
    /// JSON text, exactly as the guest returned it.
    pub output: Option<String>,
    pub error: Option<CallError>,
    pub usage: Usage,
    pub limits: Limits,
    pub log: Vec<LogLine>,
    pub log_truncated: bool,
    pub egress: Vec<EgressRecord>,
    pub refusals: Vec<Refusal>,
}
