//! The handle that ends a running call: revocation, cancellation, the deadline.
//!
//! One atomic holds the first reason. A guest that waits is ended by waking its future, which sees the reason and is dropped;
//! one that computes sees it at the next epoch tick; a host call sees it before it has any effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;

/// Why a call is ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Its wall time is over.
    Deadline,
    /// The installation's grants, settings or state changed.
    Revoked,
    /// Somebody wants it to end, or nobody waits for it any more.
    Cancelled,
    /// It used up something that is counted outside of its own thread; holds the field's name in
    /// [`Limits`](bulkhead_model::limits::Limits).
    Limit(&'static str),
}

/// The limits that may end a call from outside.
const OUTSIDE_LIMITS: [&str; 2] = ["requests", "host_bytes_per_call"];
/// Codes from here on are places in [`OUTSIDE_LIMITS`].
const FIRST_LIMIT: u8 = 10;

impl Stop {
    fn code(self) -> u8 {
        match self {
            Self::Deadline => 1,
            Self::Revoked => 2,
            Self::Cancelled => 3,
            Self::Limit(name) => {
                let place = OUTSIDE_LIMITS.iter().position(|known| *known == name).unwrap_or(0);
                FIRST_LIMIT + u8::try_from(place).unwrap_or(0)
            }
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Deadline),
            2 => Some(Self::Revoked),
            3 => Some(Self::Cancelled),
            code => {
                let place = usize::from(code.checked_sub(FIRST_LIMIT)?);
                OUTSIDE_LIMITS.get(place).copied().map(Self::Limit)
            }
        }
    }
}

/// Until when this process may act: the right behind its calls. It ends by itself, at a moment of the monotonic
/// clock, so that a process that was stopped and goes on knows before its first effect, without a thread that tells it.
#[derive(Clone)]
pub struct Validity {
    inner: Arc<ValidityInner>,
}

struct ValidityInner {
    born: Instant,
    /// Microseconds after `born`; `u64::MAX` has no end.
    ends_micros: AtomicU64,
    /// Somebody saw it ended. It stays so until it is renewed.
    lapsed: AtomicBool,
}

impl Default for Validity {
    /// Without an end.
    fn default() -> Self {
        let (ends_micros, lapsed) = (AtomicU64::new(u64::MAX), AtomicBool::new(false));
        Self { inner: Arc::new(ValidityInner { born: Instant::now(), ends_micros, lapsed }) }
    }
}

impl Validity {
    /// Valid (again) until `duration` after `from`.
    pub fn renew(&self, from: Instant, duration: Duration) {
        let ends = from.saturating_duration_since(self.inner.born).saturating_add(duration);
        let ends_micros = u64::try_from(ends.as_micros()).unwrap_or(u64::MAX);
        self.inner.ends_micros.store(ends_micros, Ordering::SeqCst);
        self.inner.lapsed.store(false, Ordering::SeqCst);
    }

    /// Ends it now.
    pub fn end(&self) {
        self.inner.lapsed.store(true, Ordering::SeqCst);
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        if self.inner.lapsed.load(Ordering::Acquire) {
            return true;
        }
        let ends_micros = self.inner.ends_micros.load(Ordering::Acquire);
        let ended = ends_micros != u64::MAX && self.inner.born.elapsed() >= Duration::from_micros(ends_micros);
        if ended {
            self.inner.lapsed.store(true, Ordering::SeqCst);
        }
        ended
    }
}

impl std::fmt::Debug for Validity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Validity").field("has_ended", &self.has_ended()).finish()
    }
}

#[derive(Default)]
struct Inner {
    /// 0 while the call may go on.
    stop: AtomicU8,
    waker: AtomicWaker,
    validity: Option<Validity>,
}

/// Ends one call. Clones are the same handle; it may be used before, during and after the call.
#[derive(Clone, Default)]
pub struct CallControl {
    inner: Arc<Inner>,
}

impl CallControl {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The handle of a call that is cancelled when `validity` ends. A guest that waits is not woken by that: whoever keeps the
    /// validity cancels as well.
    #[must_use]
    pub fn under(validity: Validity) -> Self {
        Self { inner: Arc::new(Inner { validity: Some(validity), ..Inner::default() }) }
    }

    /// Ends the call because its grants changed.
    pub fn revoke(&self) {
        self.stop(Stop::Revoked);
    }

    /// Ends the call because its result is not wanted any more.
    pub fn cancel(&self) {
        self.stop(Stop::Cancelled);
    }

    /// Why the call has to end, if it has to. The first reason stays.
    #[must_use]
    pub fn stopped(&self) -> Option<Stop> {
        let stop = Stop::from_code(self.inner.stop.load(Ordering::Acquire));
        if stop.is_none() && self.inner.validity.as_ref().is_some_and(Validity::has_ended) {
            self.stop(Stop::Cancelled);
            return Stop::from_code(self.inner.stop.load(Ordering::Acquire));
        }
        stop
    }

    pub(crate) fn stop(&self, reason: Stop) {
        let first = self.inner.stop.compare_exchange(0, reason.code(), Ordering::AcqRel, Ordering::Acquire);
        if first.is_ok() {
            self.inner.waker.wake();
        }
    }

    /// Ready once the call has to end. Only one task may wait.
    pub(crate) fn poll_stopped(&self, context: &Context<'_>) -> Poll<Stop> {
        if let Some(stop) = self.stopped() {
            return Poll::Ready(stop);
        }
        self.inner.waker.register(context.waker());
        // The reason may have come between the first look and the registration.
        self.stopped().map_or(Poll::Pending, Poll::Ready)
    }
}

impl std::fmt::Debug for CallControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CallControl").field(&self.stopped()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stays() {
        let control = CallControl::new();
        assert_eq!(control.stopped(), None);
        control.revoke();
        control.cancel();
        control.stop(Stop::Deadline);
        assert_eq!(control.stopped(), Some(Stop::Revoked));
    }

    #[test]
    fn a_call_ends_with_the_right_that_it_is_made_under() {
        let validity = Validity::default();
        let control = CallControl::under(validity.clone());
        assert_eq!(control.stopped(), None);
        // Long over: a process that was stopped in between has told nobody.
        validity.renew(Instant::now(), Duration::ZERO);
        assert_eq!(control.stopped(), Some(Stop::Cancelled));
        validity.renew(Instant::now(), Duration::from_mins(10));
        assert!(!validity.has_ended());
        assert_eq!(control.stopped(), Some(Stop::Cancelled), "a new right is none for what began under the old one");
        assert_eq!(CallControl::under(validity.clone()).stopped(), None);
        validity.end();
        assert!(validity.has_ended());
    }

    #[test]
    fn every_reason_survives() {
        for stop in [
            Stop::Deadline,
            Stop::Revoked,
            Stop::Cancelled,
            Stop::Limit("requests"),
            Stop::Limit("host_bytes_per_call"),
        ] {
            let control = CallControl::new();
            control.stop(stop);
            assert_eq!(control.stopped(), Some(stop));
        }
    }

    #[test]
    fn a_waiting_task_is_woken() {
        let control = CallControl::new();
        let (waker, count) = counting_waker();
        let context = Context::from_waker(&waker);
        assert!(control.poll_stopped(&context).is_pending());
        control.clone().cancel();
        assert_eq!(count.load(Ordering::SeqCst), 1);
        assert_eq!(control.poll_stopped(&context), Poll::Ready(Stop::Cancelled));
    }

    fn counting_waker() -> (std::task::Waker, Arc<AtomicU8>) {
        struct Count(Arc<AtomicU8>);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let count = Arc::new(AtomicU8::new(0));
        (std::task::Waker::from(Arc::new(Count(Arc::clone(&count)))), count)
    }
}
