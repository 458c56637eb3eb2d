//! The places of one lane: how many jobs of it this node carries out at once, and how many of them are each organization's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_model::id::OrgId;
use bulkhead_model::job::Lane;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of a lane in which starts take places without a claim, this part is left to them: a long queue must not hold all of it, or whoever
/// starts a run beside it waits until one of the queue's ends.
const LEFT_TO_STARTS_PART: usize = 8;

pub(super) struct LaneSlots {
    free: Arc<Semaphore>,
    count: usize,
    left_to_starts: usize,
    held: Arc<Held>,
}

#[derive(Default)]
struct Held(Mutex<HashMap<OrgId, usize>>);

/// A place that an organization's job holds, until it is dropped.
pub(super) struct Slot {
    held: Arc<Held>,
    org: OrgId,
    _permit: OwnedSemaphorePermit,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, HashMap<OrgId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = self.held.lock();
        if let Some(count) = held.get_mut(&self.org) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                held.remove(&self.org);
            }
        }
    }
}

impl LaneSlots {
    pub(super) fn new(lane: Lane, count: usize) -> Self {
        let left_to_starts = match lane {
            Lane::Interactive => count / LEFT_TO_STARTS_PART,
            Lane::System | Lane::Bulk => 0,
        };
        Self { free: Arc::new(Semaphore::new(count)), count, left_to_starts, held: Arc::default() }
    }

    /// What each of so many may hold, at least one.
    pub(super) fn of_each(&self, parties: usize) -> usize {
        (self.count / parties.max(1)).max(1)
    }

    /// A place for the organization, if it holds less than `share` and one is free.
    pub(super) fn try_take(&self, org: OrgId, share: usize) -> Option<Slot> {
        if self.held.lock().get(&org).is_some_and(|held| *held >= share) {
            return None;
        }
        let permit = Arc::clone(&self.free).try_acquire_owned().ok()?;
        Some(self.given_to(org, permit))
    }

    /// Free places for a claim, at most `most`; how many they are.
    pub(super) fn take_for_claim(&self, most: usize) -> Option<(OwnedSemaphorePermit, u32)> {
        let free = self.free.available_permits().saturating_sub(self.left_to_starts).min(most);
        let free = u32::try_from(free).ok().filter(|free| *free > 0)?;
        Some((Arc::clone(&self.free).try_acquire_many_owned(free).ok()?, free))
    }

    pub(super) fn given_to(&self, org: OrgId, permit: OwnedSemaphorePermit) -> Slot {
        *self.held.lock().entry(org).or_default() += 1;
        Slot { held: Arc::clone(&self.held), org, _permit: permit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn org(n: u128) -> OrgId {
        OrgId::from_uuid(uuid::Uuid::from_u128(n))
    }

    #[test]
    fn a_long_queue_leaves_places_to_starts() {
        let slots = LaneSlots::new(Lane::Interactive, 16);
        let (permit, free) = slots.take_for_claim(64).unwrap();
        assert_eq!(free, 14);
        assert!(slots.take_for_claim(64).is_none());
        let taken: Vec<_> = std::iter::from_fn(|| slots.try_take(org(1), usize::MAX)).collect();
        assert_eq!(taken.len(), 2);
        drop(permit);
        drop(taken);
        assert_eq!(slots.take_for_claim(4).unwrap().1, 4);
        assert_eq!(LaneSlots::new(Lane::Bulk, 16).take_for_claim(64).unwrap().1, 16);
        assert_eq!(LaneSlots::new(Lane::Interactive, 1).take_for_claim(64).unwrap().1, 1);
    }

    #[test]
    fn an_organization_takes_its_share_and_gives_it_back() {
        let slots = LaneSlots::new(Lane::Interactive, 8);
        assert_eq!((slots.of_each(2), slots.of_each(100)), (4, 1));
        let mut taken: Vec<_> = std::iter::from_fn(|| slots.try_take(org(1), 4)).collect();
        assert_eq!(taken.len(), 4);
        let other = slots.try_take(org(2), 4).unwrap();
        drop(taken.pop());
        assert!(slots.try_take(org(1), 4).is_some());
        drop((taken, other));
        assert!(slots.held.lock().is_empty());
    }
}
