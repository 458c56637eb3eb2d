//! The handle that ends a running call: revocation, cancellation, the deadline.
//!
//! One atomic holds the first reason. A guest that waits is ended by waking its future, which sees the reason and is dropped;
//! one that computes sees it at the next epoch tick; a host call sees it before it has any effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

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

#[derive(Default)]
struct Inner {
    /// 0 while the call may go on.
    stop: AtomicU8,
    waker: AtomicWaker,
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
        Stop::from_code(self.inner.stop.load(Ordering::Acquire))
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
