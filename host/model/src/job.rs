//! The durable queue's vocabulary: kinds, lanes, and what becomes of a job.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ambient::Ambient;
use crate::id::{DeadLetterTaskId, OrgId, RunId, WorkflowId};
use crate::workflow::TriggerId;

/// What a job does. The payload is stored as JSON; one that no longer decodes goes to the dead letters, others go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum JobPayload {
    /// Carries a run forward until it ends, waits or fails.
    AdvanceRun { run: RunId },
    /// Fires the ticks of a workflow's schedule that are due, and waits for the next one.
    FireSchedule { workflow: WorkflowId, trigger: TriggerId },
    /// Counts what of the organization's runs and calls has ended, and removes what is not to be kept any longer.
    PruneHistory,
    /// Resumes or discards many dead letters, batch by batch.
    WorkDeadLetters { task: DeadLetterTaskId },
    /// Replaces the organization's keys that are due, and puts what was under the old ones under the new ones.
    TendKeys,
}

impl JobPayload {
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::AdvanceRun { .. } => "advance_run",
            Self::FireSchedule { .. } => "fire_schedule",
            Self::PruneHistory => "prune_history",
            Self::WorkDeadLetters { .. } => "work_dead_letters",
            Self::TendKeys => "tend_keys",
        }
    }

    /// Whether this version can do jobs of the kind.
    #[must_use]
    pub fn is_known_kind(kind: &str) -> bool {
        Self::KINDS.contains(&kind)
    }

    /// Every kind, as [`kind`](Self::kind) names it.
    pub const KINDS: &'static [&'static str] =
        &["advance_run", "fire_schedule", "prune_history", "work_dead_letters", "tend_keys"];

    #[must_use]
    pub fn lane(&self) -> Lane {
        match self {
            Self::AdvanceRun { .. } => Lane::Interactive,
            // A moment's work, which a crowd of runs must not delay.
            Self::FireSchedule { .. } => Lane::System,
            Self::PruneHistory | Self::WorkDeadLetters { .. } | Self::TendKeys => Lane::Bulk,
        }
    }
}

/// Lanes have slots of their own, so that a flooded one delays no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    System,
    Interactive,
    Bulk,
}

impl Lane {
    pub const ALL: [Self; 3] = [Self::System, Self::Interactive, Self::Bulk];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Interactive => "interactive",
            Self::Bulk => "bulk",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.as_str() == text)
    }
}

/// A job that this worker holds. Every later write names the fence; a worker that lost its lease writes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub org: OrgId,
    pub job: crate::id::JobId,
    pub worker: crate::id::WorkerId,
    /// Rises at every claim of this job.
    pub fence: i64,
    /// Attempts so far, this one included.
    pub attempt: u32,
}

/// Exponential back-off with full jitter: a uniform draw from `0..=min(max, base × 2^(attempt-1))`.
///
/// Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("full jitter").
#[must_use]
pub fn backoff(attempt: u32, base: Duration, max: Duration, ambient: &Ambient) -> Duration {
    let factor = 1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
    let cap = base.saturating_mul(factor).min(max);
    let micros = u64::try_from(cap.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(ambient.below(micros.saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn backoff_stays_below_its_cap(attempt in 0_u32..200, base_ms in 0_u64..10_000, max_ms in 0_u64..100_000, seed: u64) {
            let ambient = Ambient::manual(Timestamp::from_micros(0), seed);
            let (base, max) = (Duration::from_millis(base_ms), Duration::from_millis(max_ms));
            prop_assert!(backoff(attempt, base, max, &ambient) <= max);
            prop_assert!(backoff(1, base, max, &ambient) <= base);
        }
    }
}
