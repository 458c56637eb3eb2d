//! How many transactions are under way at once: as many as the database carries out rather than lets wait for each other.
//!
//! Beyond that number nothing is done sooner: each only takes longer, and what an organization with much to do has under way stands in
//! the way of one that asks for little, where no turns can help (on the database's processors). The first statement of each transaction
//! is the probe, since it is the same for all and does nothing: what it takes longer than at its shortest, it waited.
//!
//! Source: L. Brakmo, S. O'Malley, L. Peterson, "TCP Vegas: New Techniques for Congestion Detection and Avoidance", SIGCOMM 1994. A
//! database far away answers late whatever is asked of it, which is its shortest time, and is given as much as before.

use std::time::{Duration, Instant};

/// Fewer places than this are not left, whatever the database says: some transactions wait for something else than for processors.
const LEAST: usize = 6;
/// With less than this many waiting in the database one place is added; Vegas' α …
const WAITING_LOW: f64 = 2.0;
/// … and with more than this many one is taken away; Vegas' β.
const WAITING_HIGH: f64 = 4.0;
/// The shortest answer of this time and of the same time before counts: machines and ways to them change.
const WINDOW: Duration = Duration::from_secs(10);
/// So much longer than the shortest an answer may take without anything waiting: a part of it, which is the way's unsteadiness, and
/// some time, which is the machine's.
const UNSTEADY: f64 = 1.5;
const UNSTEADY_S: f64 = 0.000_2;
/// Of the usual answer each new one makes this part, and counts no more than so many times as long: one that waited for a checkpoint says
/// nothing about the others.
const SHARE: f64 = 1.0 / 16.0;
const LONGEST: f64 = 4.0;
/// Nobody was let in for so long, and somebody waits: what is under way waits for something else, and keeps others from what they could do.
const STALLED: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Pace {
    most: usize,
    limit: usize,
    /// In seconds: of the present window and the one before.
    shortest: (f64, f64),
    window: Instant,
    /// In seconds.
    usual: f64,
    /// Answers since the limit was looked at.
    heard: usize,
    last: Instant,
}

impl Pace {
    pub(super) fn new(most: usize, now: Instant) -> Self {
        let shortest = (f64::INFINITY, f64::INFINITY);
        Self { most, limit: most, shortest, window: now, usual: 0.0, heard: 0, last: now }
    }

    /// A transaction's first statement was answered; `is_short` when somebody waits for a place. Answers how many there are to be.
    pub(super) fn hear(&mut self, now: Instant, took: Duration, is_short: bool) -> usize {
        let took = took.as_secs_f64();
        if now.saturating_duration_since(self.window) >= WINDOW {
            self.shortest = (f64::INFINITY, self.shortest.0);
            self.window = now;
        }
        self.shortest.0 = self.shortest.0.min(took);
        self.usual =
            if self.usual > 0.0 { self.usual + (took.min(self.usual * LONGEST) - self.usual) * SHARE } else { took };
        (self.heard, self.last) = (self.heard + 1, now);
        // Once for all that are under way, so that a change is heard before the next one.
        if self.heard >= self.limit {
            self.heard = 0;
            let shortest = self.shortest.0.min(self.shortest.1);
            let limit = f64::from(u32::try_from(self.limit).unwrap_or(u32::MAX));
            let steady = shortest.mul_add(UNSTEADY, UNSTEADY_S);
            let waiting = limit * (1.0 - (steady / self.usual).min(1.0));
            if waiting > WAITING_HIGH {
                self.limit = (self.limit - 1).max(LEAST.min(self.most));
            } else if waiting < WAITING_LOW && is_short {
                self.limit = (self.limit + 1).min(self.most);
            }
        }
        self.limit
    }

    /// Somebody has to wait for a place. Answers how many there are to be.
    pub(super) fn wait(&mut self, now: Instant) -> usize {
        if now.saturating_duration_since(self.last) >= STALLED {
            self.limit = (self.limit + 1).min(self.most);
            self.last = now;
        }
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_micros(200);

    /// What a database of so many processors answers when so many transactions are under way.
    fn answer(processors: usize, places: usize, way: Duration) -> Duration {
        way + IDLE * u32::try_from(places.div_ceil(processors)).unwrap()
    }

    /// How many places there are after so many transactions a millisecond apart, all of which found somebody waiting.
    fn settles(pace: &mut Pace, from: Instant, answers: u32, answer: impl Fn(usize) -> Duration) -> usize {
        let mut limit = pace.limit;
        for n in 0..answers {
            // Now and then one is alone.
            let took = if n % 50 == 0 { answer(1) } else { answer(limit) };
            limit = pace.hear(from + Duration::from_millis(u64::from(n)), took, true);
        }
        limit
    }

    #[test]
    fn a_busy_database_is_given_what_it_can_do_at_once() {
        let start = Instant::now();
        let near = Duration::ZERO;
        let mut pace = Pace::new(32, start);
        let few = settles(&mut pace, start, 20_000, |places| answer(2, places, near));
        assert!((LEAST..=8).contains(&few), "{few}");
        // Of a machine with more processors more.
        let mut pace = Pace::new(32, start);
        let more = settles(&mut pace, start, 20_000, |places| answer(8, places, near));
        assert!((12..=32).contains(&more), "{more}");
        let mut pace = Pace::new(32, start);
        assert_eq!(settles(&mut pace, start, 20_000, |places| answer(32, places, near)), 32);
        // Far away: what it takes longer is small beside the way.
        let mut pace = Pace::new(32, start);
        assert_eq!(settles(&mut pace, start, 20_000, |places| answer(8, places, Duration::from_millis(20))), 32);
    }

    #[test]
    fn places_come_back_when_the_database_does() {
        let start = Instant::now();
        let mut pace = Pace::new(32, start);
        let few = settles(&mut pace, start, 20_000, |places| answer(2, places, Duration::ZERO));
        assert!(few < 10, "{few}");
        let later = start + Duration::from_secs(30);
        assert_eq!(settles(&mut pace, later, 20_000, |places| answer(32, places, Duration::ZERO)), 32);
    }

    #[test]
    fn what_waits_for_something_else_does_not_keep_all_places() {
        let start = Instant::now();
        let mut pace = Pace::new(32, start);
        let few = settles(&mut pace, start, 20_000, |places| answer(1, places, Duration::ZERO));
        assert_eq!(few, LEAST);
        let last = start + Duration::from_millis(19_999);
        assert_eq!(pace.wait(last + STALLED / 2), few);
        let limits: Vec<_> = (1..=40).map(|n| pace.wait(last + STALLED * n)).collect();
        assert_eq!((limits[0], limits[39]), (few + 1, 32));
    }

    #[test]
    fn a_small_pool_keeps_its_places() {
        let start = Instant::now();
        for most in 1..=LEAST {
            let mut pace = Pace::new(most, start);
            assert_eq!(settles(&mut pace, start, 5_000, |places| answer(1, places, Duration::ZERO)), most);
        }
    }
}
