//! The places of one lane: how many jobs of it this node carries out at once, and how many of them are each organization's.
//!
//! Most of them are shared. The rest is left to starts, which take places without a claim: a long queue must not hold all of them, or
//! whoever starts a run beside it waits until one of the queue's ends; nor must starts hold all, or the queue waits for ever.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_model::id::OrgId;
use bulkhead_model::job::Lane;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// This part of the interactive lane is left to starts.
const LEFT_TO_STARTS_PART: usize = 8;

pub(super) struct LaneSlots {
    shared: Arc<Semaphore>,
    left: Arc<Semaphore>,
    left_count: usize,
    /// What organizations hold of what is left to starts.
    starts: Arc<Starts>,
}

#[derive(Default)]
struct Starts(Mutex<HashMap<OrgId, usize>>);

/// A place that a job holds, until it is dropped.
pub(super) struct Slot {
    /// Whose it is, where it is one of those left to starts.
    start_of: Option<(Arc<Starts>, OrgId)>,
    _permit: OwnedSemaphorePermit,
}

impl Starts {
    fn lock(&self) -> MutexGuard<'_, HashMap<OrgId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some((starts, org)) = self.start_of.take() else { return };
        let mut held = starts.lock();
        if let Some(count) = held.get_mut(&org) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                held.remove(&org);
            }
        }
    }
}

impl LaneSlots {
    pub(super) fn new(lane: Lane, count: usize) -> Self {
        let left_count = match lane {
            Lane::Interactive => count / LEFT_TO_STARTS_PART,
            Lane::System | Lane::Bulk => 0,
        };
        Self {
            shared: Arc::new(Semaphore::new(count - left_count)),
            left: Arc::new(Semaphore::new(left_count)),
            left_count,
            starts: Arc::default(),
        }
    }

    /// A place for a start of the organization, if there is one: of the shared ones only where nobody waits for them (`is_idle`).
    pub(super) fn take_for_start(&self, org: OrgId, is_idle: bool) -> Option<Slot> {
        if is_idle && let Ok(permit) = Arc::clone(&self.shared).try_acquire_owned() {
            return Some(Slot { start_of: None, _permit: permit });
        }
        let mut held = self.starts.lock();
        // As if one organization more were here: there is nearly always a place for the next one.
        let own = held.get(&org).copied().unwrap_or_default();
        let here = held.len() + usize::from(own == 0);
        if own >= (self.left_count / (here + 1)).max(1) {
            return None;
        }
        let permit = Arc::clone(&self.left).try_acquire_owned().ok()?;
        *held.entry(org).or_default() += 1;
        Some(Slot { start_of: Some((Arc::clone(&self.starts), org)), _permit: permit })
    }

    /// Shared places for a claim, at most `most`; how many they are.
    pub(super) fn take_for_claim(&self, most: usize) -> Option<(OwnedSemaphorePermit, u32)> {
        let free = u32::try_from(self.shared.available_permits().min(most)).ok().filter(|free| *free > 0)?;
        Some((Arc::clone(&self.shared).try_acquire_many_owned(free).ok()?, free))
    }
}

impl From<OwnedSemaphorePermit> for Slot {
    /// One of the places that a claim took.
    fn from(permit: OwnedSemaphorePermit) -> Self {
        Self { start_of: None, _permit: permit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn org(n: u128) -> OrgId {
        OrgId::from_uuid(uuid::Uuid::from_u128(n))
    }

    fn all(slots: &LaneSlots, n: u128, is_idle: bool) -> Vec<Slot> {
        std::iter::from_fn(|| slots.take_for_start(org(n), is_idle)).collect()
    }

    #[test]
    fn a_long_queue_leaves_places_to_starts() {
        let slots = LaneSlots::new(Lane::Interactive, 32);
        let (permit, free) = slots.take_for_claim(64).unwrap();
        assert_eq!(free, 28);
        assert!(slots.take_for_claim(64).is_none());
        // Of four: two for the first, one for the second, and one is left.
        let (first, second) = (all(&slots, 1, false), all(&slots, 2, true));
        assert_eq!((first.len(), second.len()), (2, 1));
        let third = all(&slots, 3, false);
        assert_eq!((third.len(), all(&slots, 4, false).len()), (1, 0));
        drop(permit);
        assert_eq!(slots.take_for_claim(4).unwrap().1, 4);
        drop((first, second, third));
        assert!(slots.starts.lock().is_empty());
    }

    #[test]
    fn starts_leave_the_queue_its_places() {
        let slots = LaneSlots::new(Lane::Interactive, 16);
        let (first, second) = (all(&slots, 1, true), all(&slots, 2, true));
        assert_eq!((first.len(), second.len()), (14 + 1, 1));
        // Somebody waits: what comes free of the shared places is the claim's, however many starts come.
        drop(first);
        assert_eq!(all(&slots, 1, false).len(), 1);
        assert_eq!(slots.take_for_claim(64).unwrap().1, 14);
    }

    #[test]
    fn small_lanes_and_those_without_starts_are_shared_whole() {
        assert_eq!(LaneSlots::new(Lane::Bulk, 16).take_for_claim(64).unwrap().1, 16);
        let one = LaneSlots::new(Lane::Interactive, 1);
        assert!(one.take_for_start(org(1), false).is_none());
        let start = one.take_for_start(org(1), true).unwrap();
        assert!(one.take_for_claim(64).is_none());
        drop(start);
        assert_eq!(one.take_for_claim(64).unwrap().1, 1);
    }
}
