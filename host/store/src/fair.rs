//! Turns at what all organizations share: the writer, connections. Each organization has a line of its own, and the lines are served
//! one after the other, so that whoever asks seldom does not wait behind whoever asks a thousand times.
//!
//! Source: J. Nagle, "On Packet Switches with Infinite Storage", RFC 970 (1985): a queue for each source, served in turns.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_model::id::OrgId;
use tokio::sync::{Notify, oneshot};

use crate::error::StoreError;

/// What waits in all lines of one thing before a further one is refused.
const WAITING_MAX: usize = 4_096;
/// … and in the line of one organization, so that it cannot fill them all. The host's own line has no bound beside the first.
const LINE_MAX: usize = WAITING_MAX / 4;

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
    /// # Errors
    /// [`StoreError::TimedOut`] when too much waits, of the party or in all.
    pub(crate) fn push(&mut self, party: Party, item: T) -> Result<(), StoreError> {
        let own = self.of.get(&party).map_or(0, VecDeque::len);
        if self.len >= WAITING_MAX || (party.is_some() && own >= LINE_MAX) {
            return Err(StoreError::TimedOut);
        }
        let line = self.of.entry(party).or_default();
        if line.is_empty() {
            self.order.push_back(party);
        }
        line.push_back(item);
        self.len += 1;
        Ok(())
    }

    /// The next one for whom somebody still waits. Those who went away are dropped and use up nobody's turn.
    pub(crate) fn pop(&mut self, is_gone: impl Fn(&T) -> bool) -> Option<T> {
        loop {
            let party = self.order.pop_front()?;
            let line = self.of.get_mut(&party)?;
            let mut next = None;
            while let Some(item) = line.pop_front() {
                self.len -= 1;
                if !is_gone(&item) {
                    next = Some(item);
                    break;
                }
            }
            if line.is_empty() {
                self.of.remove(&party);
            } else {
                self.order.push_back(party);
            }
            if next.is_some() {
                return next;
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// Work for one or more threads, handed out in turns of the parties.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    state: Mutex<Queued<T>>,
    arrived: Notify,
    is_gone: fn(&T) -> bool,
}

#[derive(Debug)]
struct Queued<T> {
    lines: Lines<T>,
    is_closed: bool,
}

impl<T> Queue<T> {
    /// `is_gone` tells what nobody waits for any more: it is dropped before it begins.
    pub(crate) fn new(is_gone: fn(&T) -> bool) -> Self {
        let state = Mutex::new(Queued { lines: Lines::default(), is_closed: false });
        Self { state, arrived: Notify::new(), is_gone }
    }

    fn lock(&self) -> MutexGuard<'_, Queued<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// [`StoreError::TimedOut`] when too much waits; [`StoreError::Unavailable`] once it is closed.
    pub(crate) fn push(&self, party: Party, item: T) -> Result<(), StoreError> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(StoreError::closed());
        }
        state.lines.push(party, item)?;
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// The next one of those that wait now.
    pub(crate) fn try_pop(&self) -> Option<T> {
        self.lock().lines.pop(self.is_gone)
    }

    /// Waits for the next one; `None` when there will be none any more.
    pub(crate) async fn next(&self) -> Option<T> {
        loop {
            // In the line of those to be woken before the look, or what comes in between would wake nobody.
            let mut arrived = std::pin::pin!(self.arrived.notified());
            arrived.as_mut().enable();
            {
                let mut state = self.lock();
                if let Some(item) = state.lines.pop(self.is_gone) {
                    return Some(item);
                }
                if state.is_closed {
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// Nothing is taken in from now on; what waits is still handed out.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.arrived.notify_waiters();
    }

    /// Nobody hands out any more: what waits is dropped, and with it the hope of whoever waits for it.
    pub(crate) fn abandon(&self) {
        let left = {
            let mut state = self.lock();
            state.is_closed = true;
            std::mem::take(&mut state.lines)
        };
        drop(left);
        self.arrived.notify_waiters();
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().lines.len()
    }
}

#[derive(Debug)]
struct State {
    taken: usize,
    limit: usize,
    waiting: Lines<oneshot::Sender<Place>>,
}

/// A bounded number of places. The bound may change while they are taken.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<Mutex<State>>);

/// A place behind the gate, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Option<Gate>);

impl Gate {
    pub(crate) fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(State { taken: 0, limit: places, waiting: Lines::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place. Whoever gives up waiting loses nothing for others.
    ///
    /// # Errors
    /// [`StoreError::TimedOut`] when too many wait.
    pub(crate) async fn enter(&self, party: Party) -> Result<Place, StoreError> {
        let coming = {
            let mut state = self.lock();
            if state.taken < state.limit {
                state.taken += 1;
                return Ok(Place(Some(self.clone())));
            }
            let (sender, coming) = oneshot::channel();
            state.waiting.push(party, sender)?;
            coming
        };
        // The gate holds the sender for as long as somebody may enter, so an error has no meaning but that it is gone.
        Ok(coming.await.unwrap_or(Place(None)))
    }

    /// How many places there are from now on. Those that are taken beyond it stay until they are given back.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.lock().limit = limit;
        self.give();
    }

    /// How many there are, and whether somebody waits for one.
    pub(crate) fn standing(&self) -> (usize, bool) {
        let state = self.lock();
        (state.limit, state.waiting.len() > 0)
    }

    /// Gives what is free to those who are next.
    fn give(&self) {
        loop {
            let next = {
                let mut state = self.lock();
                if state.taken >= state.limit {
                    return;
                }
                let Some(next) = state.waiting.pop(oneshot::Sender::is_closed) else { return };
                state.taken += 1;
                next
            };
            // It waits no longer: the place is not to give itself away while others are given here.
            if let Err(mut place) = next.send(Place(Some(self.clone()))) {
                place.0 = None;
                self.lock().taken -= 1;
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(gate) = self.0.take() {
            gate.lock().taken -= 1;
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
            lines.push(Some(org(1)), (1, n)).unwrap();
        }
        lines.push(Some(org(2)), (2, 0)).unwrap();
        lines.push(None, (0, 0)).unwrap();
        lines.push(Some(org(2)), (2, 1)).unwrap();
        let first: Vec<_> = std::iter::from_fn(|| lines.pop(|_| false)).take(6).collect();
        assert_eq!(first, [(1, 0), (2, 0), (0, 0), (1, 1), (2, 1), (1, 2)]);
        assert_eq!(lines.len(), 97);
    }

    #[test]
    fn one_cannot_fill_the_lines_of_all() {
        let mut lines = Lines::default();
        while lines.push(Some(org(1)), ()).is_ok() {}
        assert_eq!(lines.len(), LINE_MAX);
        lines.push(Some(org(2)), ()).unwrap();
        while lines.push(None, ()).is_ok() {}
        assert_eq!(lines.len(), WAITING_MAX);
        assert!(matches!(lines.push(Some(org(2)), ()), Err(StoreError::TimedOut)));
        lines.pop(|()| false).unwrap();
        lines.push(Some(org(2)), ()).unwrap();
    }

    #[test]
    fn who_went_away_uses_up_no_turn() {
        let mut lines = Lines::default();
        for n in 0..100 {
            lines.push(Some(org(1)), n).unwrap();
            lines.push(Some(org(2)), 1_000 + n).unwrap();
        }
        // Of the first, ninety have gone; the next one alive has its turn all the same.
        let alive = |n: &i32| !(0..90).contains(n);
        let taken: Vec<_> = std::iter::from_fn(|| lines.pop(|n| !alive(n))).collect();
        assert_eq!(taken[..4], [90, 1_000, 91, 1_001]);
        assert_eq!((taken.len(), lines.len()), (110, 0));
        assert!(lines.of.is_empty() && lines.order.is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn everything_queued_is_handed_out_once_and_then_it_ends() {
        let queue = Arc::new(Queue::new(|_: &u32| false));
        let mut takers = tokio::task::JoinSet::new();
        for _ in 0..3 {
            let queue = Arc::clone(&queue);
            takers.spawn(async move {
                let mut taken = Vec::new();
                while let Some(item) = queue.next().await {
                    taken.push(item);
                    tokio::task::yield_now().await;
                }
                taken
            });
        }
        for n in 0..3_000 {
            while queue.push(Some(org(u128::from(n % 7))), n).is_err() {
                tokio::task::yield_now().await;
            }
        }
        queue.close();
        assert!(matches!(queue.push(None, 0), Err(StoreError::Unavailable(_))));
        let mut taken = takers.join_all().await.concat();
        taken.sort_unstable();
        assert_eq!(taken, (0..3_000).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_abandoned_is_dropped() {
        let queue = Queue::new(|_: &Arc<()>| false);
        let item = Arc::new(());
        queue.push(None, Arc::clone(&item)).unwrap();
        queue.abandon();
        assert_eq!((Arc::strong_count(&item), queue.len()), (1, 0));
        assert!(queue.push(None, item).is_err() && queue.try_pop().is_none());
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_each_keeps_its_order(parties in prop::collection::vec(0_u128..4, 0..200)) {
            let mut lines = Lines::default();
            for (n, party) in parties.iter().enumerate() {
                lines.push(Some(org(*party)), (*party, n)).unwrap();
            }
            let mut taken: Vec<_> = std::iter::from_fn(|| lines.pop(|_| false)).collect();
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
        let (first, second) = (gate.enter(Some(org(1))).await.unwrap(), gate.enter(Some(org(1))).await.unwrap());
        let mut third = Box::pin(gate.enter(Some(org(1))));
        let mut other = Box::pin(gate.enter(Some(org(2))));
        assert!(third.as_mut().now_or_never().is_none());
        assert!(other.as_mut().now_or_never().is_none());
        drop(first);
        let third = third.now_or_never().unwrap().unwrap();
        assert!(other.as_mut().now_or_never().is_none());
        drop((second, third));
        drop(other.now_or_never().unwrap().unwrap());
        assert_eq!(gate.lock().taken, 0);
    }

    #[tokio::test]
    async fn a_bound_that_changes_holds_for_those_who_come() {
        let gate = Gate::new(3);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(gate.enter(Some(org(1))).await.unwrap());
        }
        let mut waits: Vec<_> = (0..3).map(|n| Box::pin(gate.enter(Some(org(n))))).collect();
        assert!(waits.iter_mut().all(|wait| wait.as_mut().now_or_never().is_none()));
        gate.set_limit(1);
        held.truncate(1);
        assert!(
            waits.iter_mut().all(|wait| wait.as_mut().now_or_never().is_none()),
            "two were given back beyond the bound"
        );
        assert_eq!(gate.standing(), (1, true));
        gate.set_limit(3);
        let came: Vec<_> = waits.iter_mut().filter_map(|wait| wait.as_mut().now_or_never()).collect();
        assert_eq!((came.len(), gate.standing()), (2, (3, true)));
        drop((came, held, waits));
        assert_eq!(gate.lock().taken, 0);
        assert_eq!(gate.standing(), (3, false));
    }

    #[tokio::test]
    async fn whoever_gives_up_takes_no_place_along() {
        let gate = Gate::new(1);
        let held = gate.enter(None).await.unwrap();
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
        drop(late.now_or_never().unwrap().unwrap());
        assert_eq!(gate.lock().taken, 0);
    }
}
