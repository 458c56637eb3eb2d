//! What one organization may start: so many in a minute on this node, and no more than so many that wait.
//!
//! What waits is counted in the database, never kept in a counter of its own that could drift from it. To look at each start would
//! cost more than the start; so a count says how many starts may follow before the next one.

use std::time::Duration;

/// A node that was told of much room counts again after this long all the same: other nodes start runs too.
const COUNT_HOLDS: Duration = Duration::from_secs(2);
/// While the organization is at its bound it is looked at again after this long.
const FULL_HOLDS: Duration = Duration::from_millis(500);
/// Of the room that a count found, one node uses this part before it counts again: eight nodes that count at the same moment stay within
/// the bound together.
const ROOM_PART: u32 = 8;
/// … but at least this part of the bound, so that counts stay rare close to it.
const BOUND_PART: u32 = 1_000;

/// Starts in a minute: a bucket of tokens that holds ten seconds' worth.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    per_minute: u32,
    tokens: f64,
    at: Duration,
}

impl Pace {
    pub(super) fn new(per_minute: u32, now: Duration) -> Self {
        Self { per_minute, tokens: Self::capacity(per_minute), at: now }
    }

    fn capacity(per_minute: u32) -> f64 {
        (f64::from(per_minute) / 6.0).max(1.0)
    }

    /// How long until there is a token; zero when there is one.
    pub(super) fn wait(&mut self, now: Duration) -> Duration {
        let per_second = f64::from(self.per_minute) / 60.0;
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * per_second).min(Self::capacity(self.per_minute));
        self.at = self.at.max(now);
        if self.tokens >= 1.0 { Duration::ZERO } else { Duration::from_secs_f64((1.0 - self.tokens) / per_second) }
    }

    /// Takes a token, or says how long it is until there is one.
    pub(super) fn take(&mut self, now: Duration) -> Result<(), Duration> {
        let wait = self.wait(now);
        if !wait.is_zero() {
            return Err(wait);
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

/// What is to be done about a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// There is room; a place of it is taken.
    Yes,
    /// There is none.
    No,
    /// Nobody knows: count.
    Count,
}

/// How much room an organization has for work that waits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waiting {
    counted_at: Option<Duration>,
    /// Starts that may follow the last count.
    left: u32,
    full: bool,
    /// Starts that were let in and whose commit no count need have seen.
    under_way: u32,
}

impl Waiting {
    /// Whether the bound is known to be reached, by a count that still holds.
    pub(super) fn is_full(&self, now: Duration) -> bool {
        self.full && self.counted_at.is_some_and(|at| now.saturating_sub(at) < FULL_HOLDS)
    }

    pub(super) fn ask(&mut self, now: Duration) -> Room {
        if self.is_full(now) {
            return Room::No;
        }
        let holds = self.counted_at.is_some_and(|at| now.saturating_sub(at) < COUNT_HOLDS);
        if self.full || !holds || self.left == 0 {
            return Room::Count;
        }
        self.left -= 1;
        self.under_way += 1;
        Room::Yes
    }

    /// Starts that were let in and are not over: a count that begins now may not see them.
    pub(super) fn under_way(self) -> u32 {
        self.under_way
    }

    /// So many waited in the database, of which `most` may; `under_way` were so when the count began, at `now`.
    pub(super) fn counted(&mut self, waiting: u32, under_way: u32, most: u32, now: Duration) {
        let room = most.saturating_sub(waiting).saturating_sub(under_way);
        self.full = room == 0;
        self.left = (room / ROOM_PART).max(most / BOUND_PART).max(1).min(room);
        self.counted_at = Some(now);
    }

    /// A start that was let in is over, well or not.
    pub(super) fn done(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_minute_brings_so_many_and_a_burst_ten_seconds_worth() {
        let mut pace = Pace::new(60, ms(0));
        assert_eq!((0..100).filter(|_| pace.take(ms(0)).is_ok()).count(), 10);
        assert_eq!(pace.take(ms(0)), Err(ms(1_000)));
        assert!(pace.take(ms(999)).is_err());
        assert_eq!(pace.take(ms(1_001)), Ok(()));
        let later = (0..60_000).filter(|at| pace.take(ms(2_000 + at)).is_ok()).count();
        assert!((59..=61).contains(&later), "{later}");
        let mut slow = Pace::new(1, ms(0));
        assert_eq!(slow.take(ms(0)), Ok(()));
        assert_eq!(slow.take(ms(0)).map_err(|wait| wait.as_secs_f64().round()), Err(60.0));
    }

    #[test]
    fn a_count_is_used_for_a_while_and_a_full_queue_is_looked_at_again() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.ask(ms(0)), Room::Count);
        waiting.counted(0, 0, 80, ms(0));
        assert_eq!((0..20).take_while(|_| waiting.ask(ms(1)) == Room::Yes).count(), 10);
        assert_eq!(waiting.ask(ms(1)), Room::Count);
        waiting.counted(80, 0, 80, ms(10));
        assert!(waiting.is_full(ms(10)));
        assert_eq!(waiting.ask(ms(509)), Room::No);
        assert_eq!(waiting.ask(ms(510)), Room::Count);
        waiting.counted(0, 0, 80, ms(510));
        assert_eq!(waiting.ask(ms(2_509)), Room::Yes);
        assert_eq!(waiting.ask(ms(2_510)), Room::Count);
    }

    proptest! {
        /// One node alone never lets the bound be passed, whatever was committed when it counted, and starts again when there is room.
        #[test]
        fn the_bound_holds(most in 1_u32..500, moves in prop::collection::vec(0_u8..4, 1..2_000)) {
            let (mut waiting, mut now) = (Waiting::default(), ms(0));
            // What waits in the database; what was let in and is not committed.
            let (mut queued, mut under_way) = (0_u32, 0_u32);
            for step in moves {
                now += ms(7);
                match step {
                    0 | 1 => {
                        let mut room = waiting.ask(now);
                        if room == Room::Count {
                            waiting.counted(queued, waiting.under_way(), most, now);
                            room = waiting.ask(now);
                        }
                        prop_assert_ne!(room, Room::Count);
                        under_way += u32::from(room == Room::Yes);
                    }
                    2 if under_way > 0 => {
                        (queued, under_way) = (queued + 1, under_way - 1);
                        waiting.done();
                    }
                    3 if queued > 0 => queued -= 1,
                    _ => {}
                }
                prop_assert!(queued + under_way <= most, "{queued} + {under_way} of {most}");
            }
            for _ in 0..under_way {
                waiting.done();
            }
            now += FULL_HOLDS;
            if waiting.ask(now) == Room::Count {
                waiting.counted(0, 0, most, now);
                prop_assert_eq!(waiting.ask(now), Room::Yes);
            }
        }
    }
}
