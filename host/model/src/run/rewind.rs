//! Beginning again from a step that a run has come by.

use serde_json::Value;

use super::{RunState, StepStatus};
use crate::workflow::{Definition, StepId, StepKind};

/// Why a run cannot begin again there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewindError {
    /// The step is not part of the definition.
    #[error("the workflow has no such step")]
    UnknownStep,
    /// The run never came by, so that nothing is known of what would stand before it.
    #[error("the run never reached this step")]
    NotReached,
    /// The step's call is under way; cancel the run first.
    #[error("the run is under way; cancel it first")]
    UnderWay,
}

/// The state in which the run stood before it came to `to_step`: later steps and their changes to variables forgotten.
///
/// With `new_generation` effects are made again: every idempotency key of the steps from here on is new. Without it a
/// receiver that honours the keys makes none of them twice.
///
/// # Errors
/// See [`RewindError`].
pub fn rewind(
    definition: &Definition,
    state: &RunState,
    to_step: &StepId,
    new_generation: bool,
) -> Result<RunState, RewindError> {
    if !definition.steps.contains_key(to_step) {
        return Err(RewindError::UnknownStep);
    }
    let at_cursor = state.cursor.as_ref() == Some(to_step);
    let reached = match state.steps.get_index_of(to_step) {
        Some(place) => place,
        None if at_cursor => state.steps.len(),
        None => return Err(RewindError::NotReached),
    };
    if !state.is_ended() && state.steps.values().any(|step| step.status == StepStatus::Running) {
        return Err(RewindError::UnderWay);
    }
    let mut rewound = state.clone();
    rewound.steps.truncate(reached);
    rewound.vars.clone_from(&state.given);
    for (id, step) in &rewound.steps {
        let sets = definition.step(id).is_some_and(|step| matches!(step.kind, StepKind::Set { .. }));
        if let (true, Value::Object(values)) = (sets, &step.output) {
            rewound.vars.extend(values.clone());
        }
    }
    rewound.cursor = Some(to_step.clone());
    rewound.attempt = 1;
    rewound.wait_until = None;
    rewound.ended = None;
    rewound.closed = false;
    if new_generation {
        rewound.generation = rewound.generation.saturating_add(1);
    }
    Ok(rewound)
}
