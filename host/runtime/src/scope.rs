//! What every host function of one call shares: may it still act, what may it do, and what has it done?

use std::future::Future;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_model::ambient::Ambient;
use bulkhead_model::call::{EgressRecord, Refusal};
use bulkhead_model::grant::EffectiveGrants;
use bulkhead_model::limits::Limits;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::call_log::{CallLog, harmless};
use crate::control::{CallControl, Stop};
use crate::egress::{EgressGuard, SecretVault};
use crate::secret_source::SecretSource;

/// Refusals that are kept of one call; a guest may ask in a loop.
const REFUSALS_MAX: usize = 100;

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
    pub(crate) org: String,
    pub(crate) installation: String,
    pub(crate) vault: SecretVault,
    pub(crate) secrets: Arc<dyn SecretSource>,
    pub(crate) guard: EgressGuard,
    pub(crate) ambient: Ambient,
    pub(crate) started: Instant,
    /// The caller's executor: whatever waits for the world outside runs there, never on a guest's thread.
    io: Handle,
    grants: Arc<EffectiveGrants>,
    host_calls: AtomicU32,
    host_bytes: AtomicU64,
    done: Mutex<Done>,
}

/// What a call is made of, apart from its guest.
pub(crate) struct Parts {
    pub(crate) control: CallControl,
    pub(crate) limits: Limits,
    pub(crate) org: String,
    pub(crate) installation: String,
    pub(crate) grants: Arc<EffectiveGrants>,
    pub(crate) secrets: Arc<dyn SecretSource>,
    pub(crate) guard: EgressGuard,
    pub(crate) ambient: Ambient,
    pub(crate) started: Instant,
    pub(crate) io: Handle,
}

/// What the call has done so far.
#[derive(Default)]
struct Done {
    egress: Vec<EgressRecord>,
    refusals: Vec<Refusal>,
}

impl Scope {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts { control, limits, org, installation, grants, secrets, guard, ambient, started, io } = parts;
        Arc::new(Self {
            log: CallLog::new(&limits),
            vault: SecretVault::new(ambient.clone()),
            host_calls: AtomicU32::new(0),
            host_bytes: AtomicU64::new(0),
            done: Mutex::default(),
            control,
            limits,
            org,
            installation,
            grants,
            secrets,
            guard,
            ambient,
            started,
            io,
        })
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

    /// Host calls so far, and the bytes that they copied.
    pub(crate) fn host_usage(&self) -> (u32, u64) {
        (self.host_calls.load(Ordering::Relaxed), self.host_bytes.load(Ordering::Relaxed))
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.started + Duration::from_millis(self.limits.wall_ms)
    }

    /// The grants, as long as none of them has ended and the call was not stopped.
    pub(crate) fn live_grants(&self) -> Option<&Arc<EffectiveGrants>> {
        let live = self.control.stopped().is_none()
            && self.grants.expires_at().is_none_or(|expires_at| self.ambient.now() < expires_at);
        live.then_some(&self.grants)
    }

    /// Runs work on the caller's executor; it ends when this future is dropped.
    pub(crate) async fn outside<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, String> {
        AbortOnDropHandle::new(self.io.spawn(work))
            .await
            .map_err(|error| format!("work for a guest broke down: {error}"))
    }

    fn done(&self) -> MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that something was refused for lack of a grant.
    pub(crate) fn refuse(&self, kind: &str, target: &str, reason: &str) {
        let target = harmless(&self.vault.redact(target));
        let refusal = Refusal { kind: kind.to_owned(), target, reason: reason.to_owned() };
        let mut done = self.done();
        if done.refusals.len() < REFUSALS_MAX && !done.refusals.contains(&refusal) {
            done.refusals.push(refusal);
        }
    }

    /// Counts a request and records it as unfinished; `None` when the call has none left.
    pub(crate) fn begin_request(&self, record: EgressRecord) -> Option<usize> {
        let mut done = self.done();
        if done.egress.len() >= usize::try_from(self.limits.requests).unwrap_or(usize::MAX) {
            return None;
        }
        done.egress.push(record);
        Some(done.egress.len() - 1)
    }

    /// Puts what became of a request in the place of its first record.
    pub(crate) fn end_request(&self, place: usize, record: EgressRecord) {
        if let Some(unfinished) = self.done().egress.get_mut(place) {
            *unfinished = record;
        }
    }

    /// Everything that was done. Called once, at the end.
    pub(crate) fn take_done(&self) -> (Vec<EgressRecord>, Vec<Refusal>) {
        let Done { egress, refusals } = std::mem::take(&mut *self.done());
        (egress, refusals)
    }
}
