//! Which outcomes are tried again, and when.

use std::time::Duration;

use crate::ambient::Ambient;
use crate::call::{CallError, Outcome};
use crate::job;
use crate::workflow::Retry;

/// The longest pause that a `Retry-After` may ask for: a day. Beyond it the step would better fail and say so.
pub const RETRY_AFTER_MAX: Duration = Duration::from_hours(24);

/// Whether another attempt may end differently.
///
/// | outcome | again? | why |
/// | --- | --- | --- |
/// | `returned` | no | it is done |
/// | `plugin_error` | as the plugin says | `transient` yes; `invalid-input` and `permanent` no |
/// | `refused` | no | the grant is still missing |
/// | `trapped`, `out_of_fuel`, `out_of_memory`, `limit_exceeded`, `invalid_output` | no | the same input meets the same bug or limit |
/// | `deadline_passed` | yes | what it waited for may answer in time |
/// | `revoked` | yes | grants changed under way; the next attempt runs under the new ones |
/// | `cancelled` | no | somebody wanted it to end |
/// | `host_fault` | yes | our bug or a broken machine, not the plugin's |
#[must_use]
pub fn is_retryable(outcome: Outcome, error: Option<&CallError>) -> bool {
    match outcome {
        Outcome::PluginError => error.is_some_and(|error| error.retryable),
        Outcome::DeadlinePassed | Outcome::Revoked | Outcome::HostFault => true,
        Outcome::Returned
        | Outcome::Refused
        | Outcome::Trapped
        | Outcome::OutOfFuel
        | Outcome::OutOfMemory
        | Outcome::LimitExceeded
        | Outcome::InvalidOutput
        | Outcome::Cancelled => false,
    }
}

/// The pause before the attempt after `attempt`: full jitter, and never shorter than `Retry-After` asks.
pub(super) fn pause(retry: Retry, attempt: u32, error: Option<&CallError>, ambient: &Ambient) -> Duration {
    let base = Duration::from_millis(retry.backoff_ms);
    let jittered = job::backoff(attempt, base, Duration::from_millis(retry.backoff_max_ms), ambient);
    let asked = error.and_then(|error| error.retry_after_ms).map_or(Duration::ZERO, Duration::from_millis);
    jittered.max(asked.min(RETRY_AFTER_MAX))
}
