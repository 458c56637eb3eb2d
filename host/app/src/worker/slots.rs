//! The places of one lane: how many jobs of it this node carries out at once, and how many of them are each organization's.
//!
//! Most of them are shared. The rest is left to starts, which take places without a claim: a long queue must not hold all of them, or
//! whoever starts a run beside it waits until one of the queue's ends; nor must starts hold all, or the queue waits for ever. So of the
//! shared ones starts leave a part to the queue while somebody waits in it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_model::id::OrgId;
use bulkhead_model::job::Lane;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// This part of the interactive lane is left to starts.
const LEFT_TO_STARTS_PART: usize = 8;
/// While somebody waits, starts take shared places only as long as more than this part of them is free. Much is free where who waits holds as
/// much as one may (half of them, as organizations begin): then a start need not wait behind a queue that cannot use the places.
const LEFT_TO_QUEUE_PART: usize = 4;

pub(super) struct LaneSlots {
    shared: Arc<Semaphore>,
    shared_count: usize,
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
            shared_count: count - left_count,
            left: Arc::new(Semaphore::new(left_count)),
            left_count,
            starts: Arc::default(),
        }
    }

    /// A place for a start of the organization, if there is one: of the shared ones where nobody waits for them (`is_idle`), or while more
    /// than the queue's part of them is free.
    pub(super) fn take_for_start(&self, org: OrgId, is_idle: bool) -> Option<Slot> {
        // Before the look at what is free: starts that come together must not take the queue's part between them.
        let mut held = self.starts.lock();
        let of_queue = self.shared_count.div_ceil(LEFT_TO_QUEUE_PART);
        if (is_idle || self.shared.available_permits() > of_queue)
            && let Ok(permit) = Arc::clone(&self.shared).try_acquire_owned()
        {
            return Some(Slot { start_of: None, _permit: permit });
        }
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
        // No start takes one between the look and the taking: the claim would pass the lane by.
        let _starts = self.starts.lock();
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
        // Somebody waits: of the shared places that come free a quarter is the claim's, however many starts come.
        drop(first);
        let again = all(&slots, 1, false);
        assert_eq!((again.len(), all(&slots, 3, false).len()), (10 + 1, 0));
        let (claimed, free) = slots.take_for_claim(64).unwrap();
        assert_eq!(free, 4);
        // And the next claim finds as many.
        drop(again);
        let more = all(&slots, 1, false);
        assert_eq!(more.len(), 6 + 1);
        assert_eq!(slots.take_for_claim(64).unwrap().1, 4);
        drop((claimed, more, second));
        assert_eq!(slots.take_for_claim(64).unwrap().1, 14);
    }

    #[test]
    fn starts_take_what_a_queue_at_its_bound_cannot() {
        let slots = LaneSlots::new(Lane::Interactive, 128);
        // A large one holds as much as it may, and has more that waits.
        let (large, free) = slots.take_for_claim(64).unwrap();
        assert_eq!((free, slots.shared.available_permits()), (64, 48));
        // Ten others beside it, two runs each: of what is left to starts alone they had one each at the end.
        let begun: Vec<Slot> = (0..20).map(|n| slots.take_for_start(org(n % 10), false).unwrap()).collect();
        assert!(begun.iter().all(|slot| slot.start_of.is_none()));
        assert_eq!(slots.shared.available_permits(), 28);
        // The rest is the queue's, and starts have what is left to them.
        let next = slots.take_for_start(org(0), false).unwrap();
        assert!(next.start_of.is_some());
        assert_eq!(slots.take_for_claim(64).unwrap().1, 28);
        drop((large, begun, next));
        assert!(slots.starts.lock().is_empty());
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
