//! What every host function of one call shares: may it still act, and what has it used?

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::limits::Limits;

use crate::call_log::CallLog;
use crate::control::{CallControl, Stop};

/// Why the host ended a guest inside a host function or at an epoch tick. It travels as the cause of the trap.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ended {
    #[error("the call was ended from outside")]
    Stopped(Stop),
    /// The field's name in [`Limits`].
    #[error("the limit {0} is reached")]
    Limit(&'static str),
    #[error("{0}")]
    HostFault(String),
}

/// One call's shared part.
pub(crate) struct Scope {
    pub(crate) control: CallControl,
    pub(crate) log: CallLog,
    pub(crate) limits: Limits,
    pub(crate) ambient: Ambient,
    pub(crate) started: Instant,
    pub(crate) host_calls: AtomicU32,
    pub(crate) host_bytes: AtomicU64,
}

impl Scope {
    pub(crate) fn new(control: CallControl, limits: Limits, ambient: Ambient, started: Instant) -> Arc<Self> {
        let log = CallLog::new(&limits);
        let (host_calls, host_bytes) = Default::default();
        Arc::new(Self { control, log, limits, ambient, started, host_calls, host_bytes })
    }

    /// Begins a host call that copies `bytes` from the guest: refused once the call was stopped or its budget is used up.
    pub(crate) fn host_call(&self, bytes: usize) -> Result<(), Ended> {
        self.host_calls.fetch_add(1, Ordering::Relaxed);
        if let Some(stop) = self.control.stopped() {
            return Err(Ended::Stopped(stop));
        }
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let used = self.host_bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if used > self.limits.host_bytes_per_call {
            return Err(Ended::Limit("host_bytes_per_call"));
        }
        Ok(())
    }
}
