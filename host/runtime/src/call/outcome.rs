//! From what happened to how it is called: the closed set of outcomes.

use bulkhead_model::limits::KIB;
use wasmtime::component::ResourceTableError;
use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::FieldMapError;

use super::{CallError, Contribution, Failure, Guest, Limits, Outcome, Stop};
use crate::call_log::harmless;
use crate::egress::SecretVault;
use crate::engine::STACK_BYTES;
use crate::limiter::Refused;
use crate::output::{OutputError, check_json};
use crate::scope::Ended;

/// Bytes of a message that are kept: a guest may hand over as much as its memory holds.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;
/// When a call that found no place is tried again at the earliest.
const BUSY_RETRY_AFTER_MS: u64 = 1_000;
/// Frames of a guest's backtrace that are shown.
const FRAMES_MAX: usize = 20;

/// How a call ended.
pub(crate) struct Ending {
    pub(crate) outcome: Outcome,
    pub(crate) output: Option<String>,
    pub(crate) error: Option<CallError>,
}

impl Ending {
    fn error(outcome: Outcome, code: &str, message: &str, retryable: bool) -> Self {
        let error = CallError {
            code: code.to_owned(),
            message: bounded(message),
            retryable,
            retry_after_ms: None,
            limit: None,
        };
        Self { outcome, output: None, error: Some(error) }
    }

    fn with_limit(mut self, limit: &str) -> Self {
        if let Some(error) = &mut self.error {
            error.limit = Some(limit.to_owned());
        }
        self
    }

    pub(crate) fn host_fault(message: &str) -> Self {
        tracing::error!(message, "a plugin call failed through a fault of the host");
        Self::error(Outcome::HostFault, "host-fault", message, true)
    }

    /// No place in the pool came free while the call waited: nobody's bug, and it goes away.
    pub(crate) fn busy(limits: &Limits) -> Self {
        let message = format!("no place for the call came free within {} ms", limits.wall_ms);
        let mut ending = Self::error(Outcome::HostFault, "busy", &message, true);
        if let Some(error) = &mut ending.error {
            error.retry_after_ms = Some(BUSY_RETRY_AFTER_MS);
        }
        ending
    }

    /// `limit` is the field's name in [`Limits`], `what` a clause that says what happened.
    pub(crate) fn limit(limit: &'static str, what: &str, limits: &Limits) -> Self {
        let message = match value_of(limit, limits) {
            Some(value) => format!("{what}; the limit {limit} is {value}"),
            None => format!("{what}; the limit is {limit}"),
        };
        Self::error(Outcome::LimitExceeded, "limit", &message, false).with_limit(limit)
    }

    fn out_of_memory(refused: Refused, limits: &Limits) -> Self {
        let (limit, message) = match refused {
            Refused::Memory { wanted_bytes } => (
                "memory_bytes",
                format!(
                    "{wanted_bytes} bytes of memory were wanted; the limit memory_bytes is {}",
                    limits.memory_bytes
                ),
            ),
            Refused::Table { wanted_elements } => (
                "table_elements",
                format!(
                    "{wanted_elements} table elements were wanted; the limit table_elements is {}",
                    limits.table_elements
                ),
            ),
            Refused::Own => {
                ("memory_bytes", "a memory or table cannot grow past the maximum that the package declares".to_owned())
            }
        };
        Self::error(Outcome::OutOfMemory, "memory", &message, false).with_limit(limit)
    }

    pub(crate) fn stopped(stop: Stop, limits: &Limits) -> Self {
        match stop {
            Stop::Deadline => {
                let message = format!("the call took longer than its wall time of {} ms", limits.wall_ms);
                Self::error(Outcome::DeadlinePassed, "deadline", &message, true).with_limit("wall_ms")
            }
            Stop::Revoked => {
                Self::error(Outcome::Revoked, "revoked", "the installation's grants changed while the call ran", true)
            }
            Stop::Cancelled => Self::error(Outcome::Cancelled, "cancelled", "the call was cancelled", false),
            Stop::Limit(limit) => Self::limit(limit, "the host stopped the guest", limits),
        }
    }

    fn invalid_output(message: &str) -> Self {
        Self::error(Outcome::InvalidOutput, "invalid-output", message, false)
    }

    /// A result that the guest calls a success.
    pub(crate) fn output(json: String, limits: &Limits) -> Self {
        let bytes = u64::try_from(json.len()).unwrap_or(u64::MAX);
        if bytes > limits.output_bytes {
            return Self::limit("output_bytes", &format!("the result is {bytes} bytes long"), limits);
        }
        match check_json(&json, limits) {
            Ok(()) => Self { outcome: Outcome::Returned, output: Some(json), error: None },
            Err(error) => Self::invalid_output(&error.to_string()),
        }
    }

    pub(crate) fn failure(failure: Failure) -> Self {
        let error = |code, message: &str| Self::error(Outcome::PluginError, code, message, false);
        match failure {
            Failure::InvalidInput(message) => error("invalid-input", &message),
            Failure::Permanent(message) => error("permanent", &message),
            Failure::Refused(message) => Self::error(Outcome::Refused, "refused", &message, false),
            Failure::Transient(transient) => {
                let mut ending = Self::error(Outcome::PluginError, "transient", &transient.message, true);
                if let Some(error) = &mut ending.error {
                    error.retry_after_ms = transient.retry_after_ms;
                }
                ending
            }
        }
    }

    /// A factor's result, written as `[{"points":…,"reason":…}]`.
    pub(crate) fn scores(scores: &[Contribution], leads: usize, limits: &Limits) -> Self {
        match scores_json(scores, leads, limits) {
            Ok(json) => Self::output(json, limits),
            Err(error) => Self::invalid_output(&error.to_string()),
        }
    }

    /// What a secret's value or placeholder would leave the call in: a result is refused, words are blacked out.
    pub(crate) fn without_secrets(mut self, vault: &SecretVault) -> Self {
        if vault.is_empty() {
            return self;
        }
        if let Some(name) = self.output.as_deref().and_then(|output| vault.find(output)) {
            let message = format!("the result holds the secret {name} or its placeholder");
            return Self::error(Outcome::InvalidOutput, "secret-in-output", &message, false);
        }
        if let Some(error) = &mut self.error {
            error.message = vault.redact(&error.message).into_owned();
        }
        self
    }

    pub(crate) fn output_bytes(&self) -> u64 {
        self.output.as_ref().map_or(0, |output| u64::try_from(output.len()).unwrap_or(u64::MAX))
    }
}

fn scores_json(scores: &[Contribution], leads: usize, limits: &Limits) -> Result<String, OutputError> {
    #[derive(serde::Serialize)]
    struct Row<'a> {
        points: f64,
        reason: &'a str,
    }
    if scores.len() != leads {
        return Err(OutputError::new(format!("{} contributions were returned for {leads} leads", scores.len())));
    }
    for (index, score) in scores.iter().enumerate() {
        if !score.points.is_finite() {
            return Err(OutputError::new(format!("the points of lead {index} are not a finite number")));
        }
        if u64::try_from(score.reason.len()).unwrap_or(u64::MAX) > limits.json_string_bytes {
            return Err(OutputError::new(format!("the reason of lead {index} is too long (limit json_string_bytes)")));
        }
    }
    let rows: Vec<_> = scores.iter().map(|score| Row { points: score.points, reason: &score.reason }).collect();
    serde_json::to_string(&rows).map_err(|error| OutputError::new(error.to_string()))
}

/// What an error of wasmtime means. The order matters: what the host did on purpose comes first, then what is recognized
/// by its type, then what followed a refused growth.
pub(crate) fn classify(error: &wasmtime::Error, guest: &Guest, instantiated: bool) -> Ending {
    let limits = &guest.scope.limits;
    if let Some(ended) = error.downcast_ref::<Ended>() {
        return match ended {
            Ended::Stopped(stop) => Ending::stopped(*stop, limits),
            Ended::Limit(limit) => Ending::limit(limit, "the host stopped the guest", limits),
            Ended::HostFault(message) => Ending::host_fault(message),
        };
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => {
            let message = format!("all {} units of fuel are used up", limits.fuel);
            return Ending::error(Outcome::OutOfFuel, "fuel", &message, false).with_limit("fuel");
        }
        Some(Trap::StackOverflow) => {
            let what =
                format!("the guest's calls are nested too deeply for a stack of {} KiB", STACK_BYTES as u64 / KIB);
            return Ending::limit("stack_bytes", &what, limits);
        }
        _ => {}
    }
    if let Some(refused) = guest.limiter.refused() {
        return Ending::out_of_memory(refused, limits);
    }
    if error.is::<PoolConcurrencyLimitError>() {
        return Ending::host_fault(&format!("the pool of instances is exhausted: {error}"));
    }
    if let Some(ending) = untyped_limit(error, limits) {
        return ending;
    }
    if let Some(exit) = error.downcast_ref::<I32Exit>() {
        let message = format!("the guest ended itself with exit code {}", exit.0);
        return Ending::error(Outcome::Trapped, "exit", &message, false);
    }
    // The allocator's answer for the arguments, which the host reads before there is any result.
    if error.root_cause().to_string().starts_with("realloc return") {
        return Ending::error(
            Outcome::Trapped,
            "trap",
            "the guest's allocator returned an address outside of its memory",
            false,
        );
    }
    // Without guest frames on the stack it was reading the result that failed: bad UTF-8, a pointer outside of memory.
    if instantiated && error.downcast_ref::<WasmBacktrace>().is_none() {
        return Ending::invalid_output(&format!("the result cannot be read: {}", error.root_cause()));
    }
    Ending::error(Outcome::Trapped, "trap", &trap_message(error), false)
}

/// Limits that wasmtime reports in words only.
fn untyped_limit(error: &wasmtime::Error, limits: &Limits) -> Option<Ending> {
    if matches!(error.downcast_ref::<ResourceTableError>(), Some(ResourceTableError::Full)) {
        return Some(Ending::limit("handles", "too many handles are alive", limits));
    }
    if let Some(FieldMapError::TotalSizeTooBig | FieldMapError::TooManyFields) = error.downcast_ref::<FieldMapError>() {
        return Some(Ending::limit("header_bytes", "a set of headers is too large", limits));
    }
    let words = error.root_cause().to_string();
    if words.contains("handle limit exceeded") {
        return Some(Ending::limit("handles", "too many handles are alive", limits));
    }
    if words.contains("fuel allocated for hostcalls has been exhausted") {
        let in_host_call = error.downcast_ref::<WasmBacktrace>().is_some();
        return Some(if in_host_call {
            Ending::limit("host_bytes_per_host_call", "one host call would copy too much", limits)
        } else {
            Ending::limit("output_bytes", "the result is too large to be copied", limits)
        });
    }
    for (sign, limit) in [
        ("resource limit exceeded: instance", "core_instances"),
        ("resource limit exceeded: memory", "memories"),
        ("resource limit exceeded: table", "tables"),
    ] {
        if words.contains(sign) {
            return Some(Ending::limit(limit, "the package instantiates too much", limits));
        }
    }
    None
}

fn trap_message(error: &wasmtime::Error) -> String {
    let mut message = error.root_cause().to_string();
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        for frame in backtrace.frames().iter().take(FRAMES_MAX) {
            message.push_str("\n  in ");
            let number = || std::borrow::Cow::Owned(format!("function {}", frame.func_index()));
            message.push_str(&frame.func_name().map_or_else(number, std::borrow::Cow::Borrowed));
        }
    }
    message
}

/// Text of a guest, short enough to keep and safe to show.
fn bounded(message: &str) -> String {
    let lines: Vec<_> = cut(message).split('\n').map(harmless).collect();
    let text = lines.join("\n");
    let mut shown = cut(&text).to_owned();
    if shown.len() < message.len() && shown.len() + 4 > MESSAGE_BYTES_MAX {
        shown.push('…');
    }
    shown
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The limit's value in its own unit.
fn value_of(limit: &str, limits: &Limits) -> Option<u64> {
    let value = serde_json::to_value(limits).ok()?;
    value.get(limit)?.as_u64()
}
