//! Turns at what all organizations share: the writer, connections. Each organization has a line of its own, and the lines are served
//! one after the other, so that whoever asks seldom does not wait behind whoever asks a thousand times.
//!
//! Source: J. Nagle, "On Packet Switches with Infinite Storage", RFC 970 (1985): a queue for each source, served in turns.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_model::id::OrgId;
use tokio::sync::oneshot;

/// Who asks: an organization, or the host in its own matters.
pub(crate) type Party = Option<OrgId>;

/// What waits, taken out in turns of the parties and in order within each.
#[derive(Debug)]
pub(crate) struct Lines<T> {
    of: HashMap<Party, VecDeque<T>>,
    /// Parties with something in their line, the next one first.
    order: VecDeque<Party>,
    len: usize,
}

impl<T> Default for Lines<T> {
    fn default() -> Self {
        Self { of: HashMap::new(), order: VecDeque::new(), len: 0 }
    }
}

impl<T> Lines<T> {
    pub(crate) fn push(&mut self, party: Party, item: T) {
        let line = self.of.entry(party).or_default();
        if line.is_empty() {
            self.order.push_back(party);
        }
        line.push_back(item);
        self.len += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        let party = self.order.pop_front()?;
        let line = self.of.get_mut(&party)?;
        let item = line.pop_front()?;
        if line.is_empty() {
            self.of.remove(&party);
        } else {
            self.order.push_back(party);
        }
        self.len -= 1;
        Some(item)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[derive(Debug)]
struct State {
    free: usize,
    waiting: Lines<oneshot::Sender<Place>>,
}

/// A bounded number of places.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<Mutex<State>>);

/// A place behind the gate, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Option<Gate>);

impl Gate {
    pub(crate) fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(State { free: places, waiting: Lines::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place. Whoever gives up waiting loses nothing for others.
    pub(crate) async fn enter(&self, party: Party) -> Place {
        let coming = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Place(Some(self.clone()));
            }
            let (sender, coming) = oneshot::channel();
            state.waiting.push(party, sender);
            coming
        };
        // The gate holds the sender for as long as somebody may enter, so an error has no meaning but that it is gone.
        coming.await.unwrap_or(Place(None))
    }

    /// Gives a place to whoever is next.
    fn give(&self) {
        loop {
            let next = {
                let mut state = self.lock();
                let Some(next) = state.waiting.pop() else {
                    state.free += 1;
                    return;
                };
                next
            };
            match next.send(Place(Some(self.clone()))) {
                Ok(()) => return,
                // It waits no longer; the place is not to give itself away again.
                Err(mut place) => place.0 = None,
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(gate) = self.0.take() {
            gate.give();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    fn org(n: u128) -> OrgId {
        OrgId::from_uuid(uuid::Uuid::from_u128(n))
    }

    #[test]
    fn one_with_much_does_not_keep_the_others_waiting() {
        let mut lines = Lines::default();
        for n in 0..100 {
            lines.push(Some(org(1)), (1, n));
        }
        lines.push(Some(org(2)), (2, 0));
        lines.push(None, (0, 0));
        lines.push(Some(org(2)), (2, 1));
        let first: Vec<_> = std::iter::from_fn(|| lines.pop()).take(6).collect();
        assert_eq!(first, [(1, 0), (2, 0), (0, 0), (1, 1), (2, 1), (1, 2)]);
        assert_eq!(lines.len(), 97);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_each_keeps_its_order(parties in prop::collection::vec(0_u128..4, 0..200)) {
            let mut lines = Lines::default();
            for (n, party) in parties.iter().enumerate() {
                lines.push(Some(org(*party)), (*party, n));
            }
            let mut taken: Vec<_> = std::iter::from_fn(|| lines.pop()).collect();
            prop_assert!(lines.len() == 0 && lines.of.is_empty() && lines.order.is_empty());
            for party in 0..4 {
                let own: Vec<_> = taken.iter().filter(|(of, _)| *of == party).collect();
                prop_assert!(own.is_sorted());
            }
            taken.sort_by_key(|(_, n)| *n);
            prop_assert_eq!(taken, parties.into_iter().enumerate().map(|(n, party)| (party, n)).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    async fn places_are_bounded_and_come_back() {
        let gate = Gate::new(2);
        let (first, second) = (gate.enter(Some(org(1))).await, gate.enter(Some(org(1))).await);
        let mut third = Box::pin(gate.enter(Some(org(1))));
        let mut other = Box::pin(gate.enter(Some(org(2))));
        assert!(third.as_mut().now_or_never().is_none());
        assert!(other.as_mut().now_or_never().is_none());
        drop(first);
        let third = third.now_or_never().unwrap();
        assert!(other.as_mut().now_or_never().is_none());
        drop((second, third));
        drop(other.now_or_never().unwrap());
        assert_eq!(gate.lock().free, 2);
    }

    #[tokio::test]
    async fn whoever_gives_up_takes_no_place_along() {
        let gate = Gate::new(1);
        let held = gate.enter(None).await;
        let mut gone = Box::pin(gate.enter(Some(org(1))));
        assert!(gone.as_mut().now_or_never().is_none());
        let mut stays = Box::pin(gate.enter(Some(org(2))));
        assert!(stays.as_mut().now_or_never().is_none());
        drop(gone);
        drop(held);
        // One that gets its place and does not look at it any more gives it back as well.
        let mut late = Box::pin(gate.enter(Some(org(3))));
        assert!(late.as_mut().now_or_never().is_none());
        drop(stays);
        drop(late.now_or_never().unwrap());
        assert_eq!(gate.lock().free, 1);
    }
}
