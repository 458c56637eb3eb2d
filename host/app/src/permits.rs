//! How many plugin calls may run at once: a share for each organization, and within it one for each installation.
//!
//! Whoever finds no place waits a bounded time in a bounded queue and is told to come back: the engine hands its job back, the
//! API answers 429. Counters live in memory only, so they cannot leak past a process's end.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulkhead_model::id::{InstallationId, OrgId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::AppError;

/// What the caller is told to wait when there was no place.
const RETRY_AFTER_MS: u64 = 1_000;
/// For each place, this many callers may wait; further ones are sent back at once.
const WAITING_PER_PLACE: usize = 4;

/// Places for plugin calls. Defaults and ceilings are the last row of the specification's table of limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallConcurrency {
    pub per_org: u32,
    pub per_installation: u32,
    /// How long a call waits for its places together.
    pub wait_ms: u64,
}

impl CallConcurrency {
    pub const PER_ORG_MAX: u32 = 256;
    pub const PER_INSTALLATION_MAX: u32 = 64;
    pub const WAIT_MS_MAX: u64 = 30_000;

    /// The same, cut at the platform's ceiling; at least one place each.
    #[must_use]
    pub fn bounded(self) -> Self {
        Self {
            per_org: self.per_org.clamp(1, Self::PER_ORG_MAX),
            per_installation: self.per_installation.clamp(1, Self::PER_INSTALLATION_MAX),
            wait_ms: self.wait_ms.min(Self::WAIT_MS_MAX),
        }
    }
}

impl Default for CallConcurrency {
    fn default() -> Self {
        Self { per_org: 32, per_installation: 8, wait_ms: 2_000 }
    }
}

/// The places of one organization or installation.
struct Gate {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Places that are held or waited for; changed under the map's lock alone.
    present: AtomicUsize,
}

/// The gates that somebody uses or waits at; the last one to leave takes the gate away.
struct Gates<K: Eq + Hash + Copy> {
    what: &'static str,
    places: usize,
    open: Mutex<HashMap<K, Arc<Gate>>>,
}

/// A place that is held, or about to be.
struct Place<K: Eq + Hash + Copy> {
    gates: Arc<Gates<K>>,
    key: K,
    gate: Arc<Gate>,
    permit: Option<OwnedSemaphorePermit>,
}

impl<K: Eq + Hash + Copy> Gates<K> {
    fn new(what: &'static str, places: u32) -> Arc<Self> {
        let places = usize::try_from(places).unwrap_or(1);
        Arc::new(Self { what, places, open: Mutex::default() })
    }

    fn busy(&self) -> AppError {
        metrics::counter!("bulkhead_plugin_calls_busy_total", "share" => self.what).increment(1);
        AppError::Busy { what: self.what, retry_after_ms: RETRY_AFTER_MS }
    }

    async fn enter(self: &Arc<Self>, key: K, until: Instant) -> Result<Place<K>, AppError> {
        let gate = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Gate {
                places: Arc::new(Semaphore::new(self.places)),
                waiting: AtomicUsize::new(0),
                present: AtomicUsize::new(0),
            };
            let gate = Arc::clone(open.entry(key).or_insert_with(|| Arc::new(new())));
            gate.present.fetch_add(1, Ordering::SeqCst);
            gate
        };
        // From here on the drop takes the gate away when nobody else is there.
        let mut place = Place { gates: Arc::clone(self), key, gate, permit: None };
        let places = Arc::clone(&place.gate.places);
        if let Ok(permit) = Arc::clone(&places).try_acquire_owned() {
            place.permit = Some(permit);
            return Ok(place);
        }
        let waiting = Waiting::begin(&place.gate);
        if waiting.before >= self.places * WAITING_PER_PLACE {
            return Err(self.busy());
        }
        match tokio::time::timeout_at(until, places.acquire_owned()).await {
            Ok(permit) => place.permit = Some(permit.expect("a gate's semaphore is never closed")),
            Err(_) => return Err(self.busy()),
        }
        drop(waiting);
        Ok(place)
    }
}

impl<K: Eq + Hash + Copy> Drop for Place<K> {
    fn drop(&mut self) {
        self.permit = None;
        let mut open = self.gates.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Counted under the lock, and not by the gate's references: those end only after this, when two places that leave
        // at once have both seen the other.
        if self.gate.present.fetch_sub(1, Ordering::SeqCst) == 1 {
            open.remove(&self.key);
        }
    }
}

/// Counts one caller as waiting while it lives, whichever way the wait ends.
struct Waiting {
    gate: Arc<Gate>,
    before: usize,
}

impl Waiting {
    fn begin(gate: &Arc<Gate>) -> Self {
        let before = gate.waiting.fetch_add(1, Ordering::SeqCst);
        Self { gate: Arc::clone(gate), before }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.gate.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The places of all.
pub(crate) struct Permits {
    installations: Arc<Gates<(OrgId, InstallationId)>>,
    orgs: Arc<Gates<OrgId>>,
    wait: Duration,
}

/// The right to run one call; dropping it makes room.
pub(crate) struct Permit {
    _org: Place<OrgId>,
    _installation: Place<(OrgId, InstallationId)>,
    _counted: Counted,
}

/// One place in the gauge of places that are taken, while it lives.
struct Counted;

impl Counted {
    fn begin() -> Self {
        metrics::gauge!("bulkhead_plugin_calls_in_flight").increment(1.0);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!("bulkhead_plugin_calls_in_flight").decrement(1.0);
    }
}

impl Permits {
    pub(crate) fn new(concurrency: CallConcurrency) -> Self {
        let bounded = concurrency.bounded();
        Self {
            installations: Gates::new("the installation", bounded.per_installation),
            orgs: Gates::new("the organization", bounded.per_org),
            wait: Duration::from_millis(bounded.wait_ms),
        }
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// [`AppError::Busy`] when there was none in time, or too many wait already.
    pub(crate) async fn acquire(&self, org: OrgId, installation: InstallationId) -> Result<Permit, AppError> {
        let until = Instant::now() + self.wait;
        // The narrower share first: a crowd before one installation takes no places from the organization's other ones.
        let place = self.installations.enter((org, installation), until).await?;
        Ok(Permit { _org: self.orgs.enter(org, until).await?, _installation: place, _counted: Counted::begin() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::ambient::Ambient;
    use bulkhead_model::time::Timestamp;

    fn ids() -> (OrgId, InstallationId, InstallationId) {
        let ambient = Ambient::manual(Timestamp::from_micros(0), 3);
        (OrgId::new(&ambient), InstallationId::new(&ambient), InstallationId::new(&ambient))
    }

    fn permits(per_org: u32, per_installation: u32, wait_ms: u64) -> Permits {
        Permits::new(CallConcurrency { per_org, per_installation, wait_ms })
    }

    #[tokio::test]
    async fn a_full_installation_sends_back_and_leaves_the_others_their_places() {
        let (org, first, second) = ids();
        let permits = permits(3, 2, 0);
        let held = (permits.acquire(org, first).await.unwrap(), permits.acquire(org, first).await.unwrap());
        let refused = permits.acquire(org, first).await.err();
        assert!(matches!(refused, Some(AppError::Busy { what: "the installation", .. })), "{refused:?}");
        let third = permits.acquire(org, second).await.unwrap();
        let refused = permits.acquire(org, second).await.err();
        assert!(matches!(refused, Some(AppError::Busy { what: "the organization", .. })), "{refused:?}");
        drop(third);
        drop(held.0);
        assert!(permits.acquire(org, first).await.is_ok());
    }

    #[tokio::test]
    async fn a_place_that_becomes_free_in_time_is_taken() {
        let (org, installation, _) = ids();
        let permits = permits(1, 1, 20_000);
        let held = permits.acquire(org, installation).await.unwrap();
        let (waited, ()) = tokio::join!(permits.acquire(org, installation), async {
            tokio::task::yield_now().await;
            drop(held);
        });
        assert!(waited.is_ok());
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_gates_do_not_pile_up() {
        let (org, installation, _) = ids();
        let permits = permits(1, 1, 20_000);
        let held = permits.acquire(org, installation).await.unwrap();
        let mut waiting: Vec<_> =
            (0..WAITING_PER_PLACE).map(|_| Box::pin(permits.acquire(org, installation))).collect();
        for wait in &mut waiting {
            assert!(futures_util::poll!(wait.as_mut()).is_pending());
        }
        assert!(matches!(permits.acquire(org, installation).await, Err(AppError::Busy { .. })));
        drop(waiting);
        drop(held);
        assert!(permits.installations.open.lock().unwrap().is_empty());
        assert!(permits.orgs.open.lock().unwrap().is_empty());
    }

    #[test]
    fn places_that_are_left_at_once_leave_no_gate() {
        let (org, installation, _) = ids();
        let permits = permits(2, 2, 20_000);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        for _ in 0..2_000 {
            let take = || runtime.block_on(permits.acquire(org, installation)).unwrap();
            let (one, other) = (take(), take());
            let start = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    start.wait();
                    drop(one);
                });
                start.wait();
                drop(other);
            });
            assert!(permits.installations.open.lock().unwrap().is_empty());
            assert!(permits.orgs.open.lock().unwrap().is_empty());
        }
    }

    #[test]
    fn nobody_gets_past_the_ceiling() {
        let bounded = CallConcurrency { per_org: 10_000, per_installation: 0, wait_ms: u64::MAX }.bounded();
        assert_eq!(bounded, CallConcurrency { per_org: 256, per_installation: 1, wait_ms: 30_000 });
    }
}
