//! Places in the pools of instances, shared by all calls: as many as an instance takes, and of one organization never more than its share, so that
//! guests which hold their places leave some to the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::engine::SLOTS;

/// Places that one organization's calls may hold at once: a quarter of all.
const ORG_SLOTS_MAX: u32 = SLOTS / 4;
/// Organizations without a call are forgotten once this many are known.
const KNOWN_MAX: usize = 1_024;

/// What is free.
pub(crate) struct Places {
    all: Arc<Semaphore>,
    /// Kept while nobody is in: an organization that calls one after the other finds its share there.
    orgs: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// Held by a call from before its instance is made until after it is gone.
pub(crate) struct Place {
    _all: OwnedSemaphorePermit,
    _org: OwnedSemaphorePermit,
}

fn semaphore(slots: u32) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(usize::try_from(slots).unwrap_or(Semaphore::MAX_PERMITS)))
}

impl Places {
    pub(crate) fn new() -> Self {
        Self { all: semaphore(SLOTS), orgs: Mutex::default() }
    }

    fn org(&self, org: &str) -> Arc<Semaphore> {
        let mut orgs = self.orgs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = orgs.get(org) {
            return Arc::clone(known);
        }
        if orgs.len() >= KNOWN_MAX {
            // Whoever holds a place or waits for one has another reference.
            orgs.retain(|_, known| Arc::strong_count(known) > 1);
        }
        let new = semaphore(ORG_SLOTS_MAX);
        orgs.insert(org.to_owned(), Arc::clone(&new));
        new
    }

    /// So many places if they are free now, without a timer or a queue. Nobody who waits is passed by: what is given back goes to
    /// them first.
    pub(crate) fn take_free(&self, org: &str, slots: u32) -> Option<Place> {
        let org = self.org(org).try_acquire_many_owned(slots.min(ORG_SLOTS_MAX)).ok()?;
        let all = Arc::clone(&self.all).try_acquire_many_owned(slots.min(SLOTS)).ok()?;
        Some(Place { _all: all, _org: org })
    }

    /// Waits for so many places, first among the organization's own calls and then among all. Who waits longest is first.
    pub(crate) async fn take(&self, org: &str, slots: u32) -> Place {
        let share = self.org(org);
        let never = "the semaphore is never closed";
        let org = share.acquire_many_owned(slots.min(ORG_SLOTS_MAX)).await.expect(never);
        let all = Arc::clone(&self.all).acquire_many_owned(slots.min(SLOTS)).await.expect(never);
        Place { _all: all, _org: org }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn take(places: &Places, org: &str, slots: u32) -> Option<Place> {
        places.take(org, slots).now_or_never()
    }

    #[test]
    fn an_organization_has_its_share_by_weight() {
        let places = Places::new();
        let held: Vec<_> = (0..15).map(|_| take(&places, "org_1", 16).expect("within the share")).collect();
        assert!(take(&places, "org_1", 16).is_none(), "15 times 16 are held of 250");
        let rest = take(&places, "org_1", 10).expect("what is left of the share");
        assert!(take(&places, "org_1", 1).is_none());
        assert!(take(&places, "org_2", 16).is_some(), "another organization has a share of its own");
        drop(held);
        assert!(take(&places, "org_1", 16).is_some());
        drop(rest);
    }

    #[test]
    fn all_together_have_no_more_than_there_is() {
        let places = Places::new();
        let held: Vec<_> =
            (0..4).map(|n| take(&places, &format!("org_{n}"), ORG_SLOTS_MAX).expect("a quarter each")).collect();
        assert!(take(&places, "org_5", 1).is_none());
        drop(held);
        assert!(take(&places, "org_5", 1).is_some());
    }

    #[test]
    fn who_waits_is_not_passed_by() {
        let places = Places::new();
        let held = take(&places, "org_1", ORG_SLOTS_MAX - 1).expect("nearly all of its share");
        let mut waits = Box::pin(places.take("org_1", 16));
        assert!(waits.as_mut().now_or_never().is_none());
        assert!(places.take_free("org_1", 1).is_none(), "the one that is free is kept for who waits");
        assert!(places.take_free("org_2", 1).is_some());
        drop(held);
        assert!(waits.as_mut().now_or_never().is_some());
    }

    #[test]
    fn organizations_without_a_call_are_forgotten() {
        let places = Places::new();
        for n in 0..KNOWN_MAX * 2 {
            drop(take(&places, &format!("org_{n}"), 1));
        }
        assert!(places.orgs.lock().unwrap_or_else(PoisonError::into_inner).len() <= KNOWN_MAX);
    }
}
