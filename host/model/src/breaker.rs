//! A breaker for each version of a workflow: one whose runs all fail in the same way is not carried on and on.
//!
//! It opens after [`FAILURES_MAX`] failures with the same fingerprint within [`WINDOW`] and no success between them. New runs then wait;
//! now and then one of them is let go as a probe, at growing distances. A run that succeeds closes it.
//!
//! ```text
//!            so many alike, no success                probe_at
//!   Closed ───────────────────────────► Open ◄──────────────────────► Probing
//!     ▲                                  │      failed, or not over       │
//!     └──────────────────────────────────┴────────────────────────────────┘
//!                        a run succeeds, or somebody closes it
//! ```

use std::time::Duration;

use crate::fault::Fingerprint;
use crate::id::{RunId, WorkflowId};
use crate::time::Timestamp;

/// Failures alike that open it.
pub const FAILURES_MAX: u32 = 20;
/// They have to come within this time: a workflow that fails once an hour is no storm.
pub const WINDOW: Duration = Duration::from_mins(10);
/// From the opening to the first probe; each probe that fails doubles the distance …
pub const PROBE_FIRST: Duration = Duration::from_secs(30);
/// … up to this.
pub const PROBE_LAST: Duration = Duration::from_mins(30);
/// A probe that is not over after this long (it waits for something, or was cancelled) does not keep the next one back.
pub const PROBE_TIME_MAX: Duration = Duration::from_mins(15);

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// Runs are carried; failures are counted.
    Closed,
    /// New runs wait, the first probe of them until `probe_at`.
    Open { opened_at: Timestamp, probe_at: Timestamp },
    /// `run` was let go to see whether it goes better; another one may follow at `until`.
    Probing { opened_at: Timestamp, run: RunId, until: Timestamp },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    pub stand: Stand,
    /// What the failures in a row have in common.
    pub fingerprint: Option<Fingerprint>,
    pub failures: u32,
    /// When the first of them happened.
    pub since: Timestamp,
    /// Probes that failed since it opened, or were not over in time.
    pub probes: u32,
}

/// What a failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    Counted,
    /// It is to open, if no run succeeded since [`Breaker::since`]: ask, then call [`Breaker::open`] or [`Breaker::interrupt`].
    Suspicious,
    /// The probe failed: it stays open.
    StaysOpen,
    /// It is open, and the run began before.
    Late,
}

/// The name under which runs of a workflow's version wait in the queue.
#[must_use]
pub fn hold_key(workflow: WorkflowId, version: i64) -> String {
    format!("{workflow}.{version}")
}

/// The workflow and the version that a [`hold_key`] names.
#[must_use]
pub fn parse_hold_key(key: &str) -> Option<(WorkflowId, i64)> {
    let (workflow, version) = key.rsplit_once('.')?;
    Some((workflow.parse().ok()?, version.parse().ok()?))
}

/// From a probe that failed (or the opening, for 0) to the next one.
#[must_use]
pub fn distance(probes: u32) -> Duration {
    let factor = 1_u32.checked_shl(probes).unwrap_or(u32::MAX);
    PROBE_FIRST.saturating_mul(factor).min(PROBE_LAST)
}

impl Breaker {
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self { stand: Stand::Closed, fingerprint: None, failures: 0, since: now, probes: 0 }
    }

    #[must_use]
    pub fn is_open(&self) -> bool {
        self.stand != Stand::Closed
    }

    /// The run that may go on although it is open.
    #[must_use]
    pub fn probe(&self) -> Option<RunId> {
        match self.stand {
            Stand::Probing { run, .. } => Some(run),
            Stand::Closed | Stand::Open { .. } => None,
        }
    }

    /// When a run that waits may be let go.
    fn due_at(&self) -> Option<Timestamp> {
        match self.stand {
            Stand::Closed => None,
            Stand::Open { probe_at, .. } => Some(probe_at),
            Stand::Probing { until, .. } => Some(until),
        }
    }

    /// Whether a run that waits may be let go now. A time further ahead than the longest distance was set by a clock that was ahead.
    #[must_use]
    pub fn is_probe_due(&self, now: Timestamp) -> bool {
        self.due_at().is_some_and(|at| at <= now || at.since(now) > PROBE_LAST)
    }

    /// Whether a run could have been let go for as long as the longest distance: if none waits, nobody starts any, and what is known of
    /// the last ones says little.
    #[must_use]
    pub fn is_stale(&self, now: Timestamp) -> bool {
        self.due_at().is_some_and(|at| now.since(at) >= PROBE_LAST)
    }

    /// A run failed.
    pub fn failed(&mut self, run: RunId, fingerprint: &Fingerprint, now: Timestamp) -> Failed {
        match self.stand {
            Stand::Open { .. } => Failed::Late,
            Stand::Probing { run: probe, .. } if probe != run => Failed::Late,
            Stand::Probing { opened_at, .. } => {
                self.probes = self.probes.saturating_add(1);
                self.fingerprint = Some(fingerprint.clone());
                self.stand = Stand::Open { opened_at, probe_at: now.plus(distance(self.probes)) };
                Failed::StaysOpen
            }
            Stand::Closed => {
                let goes_on = self.fingerprint.as_ref() == Some(fingerprint) && now.since(self.since) <= WINDOW;
                if goes_on {
                    self.failures = self.failures.saturating_add(1);
                } else {
                    self.fingerprint = Some(fingerprint.clone());
                    (self.failures, self.since) = (1, now);
                }
                if self.failures >= FAILURES_MAX { Failed::Suspicious } else { Failed::Counted }
            }
        }
    }

    /// Nothing succeeded among the failures: it opens.
    pub fn open(&mut self, now: Timestamp) {
        self.probes = 0;
        self.stand = Stand::Open { opened_at: now, probe_at: now.plus(distance(0)) };
    }

    /// Something succeeded among the failures: the last one begins a new row.
    pub fn interrupt(&mut self, now: Timestamp) {
        (self.failures, self.since) = (1, now);
    }

    /// Lets a run go to see whether it goes better; nothing happens while it is closed.
    pub fn let_go(&mut self, run: RunId, now: Timestamp) {
        let opened_at = match self.stand {
            Stand::Closed => return,
            Stand::Open { opened_at, .. } => opened_at,
            Stand::Probing { opened_at, .. } => {
                // The last one is not over: it told nothing, and those that follow come no faster than if it had failed.
                self.probes = self.probes.saturating_add(1);
                opened_at
            }
        };
        self.stand = Stand::Probing { opened_at, run, until: now.plus(PROBE_TIME_MAX.max(distance(self.probes))) };
    }

    /// The probe ended without telling anything (it was cancelled): the next one may be let go at once.
    pub fn forget_probe(&mut self, now: Timestamp) {
        if let Stand::Probing { opened_at, .. } = self.stand {
            self.stand = Stand::Open { opened_at, probe_at: now };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn run(n: u128) -> RunId {
        RunId::from_uuid(Uuid::from_u128(n))
    }

    fn print(n: u8) -> Fingerprint {
        format!("{n:016x}").parse().unwrap()
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(1_000_000).plus(Duration::from_secs(seconds))
    }

    /// As whoever stores it does: `succeeded` says whether a run succeeded since a moment.
    fn fail(breaker: &mut Breaker, n: u128, fingerprint: u8, now: Timestamp, succeeded: impl Fn(Timestamp) -> bool) {
        if breaker.failed(run(n), &print(fingerprint), now) == Failed::Suspicious {
            if succeeded(breaker.since) { breaker.interrupt(now) } else { breaker.open(now) }
        }
    }

    fn opened() -> Breaker {
        let mut breaker = Breaker::new(at(0));
        for n in 0..FAILURES_MAX {
            fail(&mut breaker, u128::from(n), 1, at(0), |_| false);
        }
        assert_eq!(breaker.stand, Stand::Open { opened_at: at(0), probe_at: at(30) });
        breaker
    }

    #[test]
    fn failures_alike_open_it_and_others_do_not() {
        let mut breaker = Breaker::new(at(0));
        for n in 0..FAILURES_MAX - 1 {
            fail(&mut breaker, u128::from(n), 1, at(u64::from(n)), |_| false);
        }
        let mut other = breaker.clone();
        fail(&mut other, 99, 2, at(20), |_| false);
        assert_eq!((other.is_open(), other.failures), (false, 1));
        let mut later = breaker.clone();
        fail(&mut later, 99, 1, at(601), |_| false);
        assert_eq!((later.is_open(), later.failures), (false, 1));
        let mut between = breaker.clone();
        fail(&mut between, 99, 1, at(20), |since| since <= at(10));
        assert_eq!((between.is_open(), between.failures), (false, 1));
        fail(&mut breaker, 99, 1, at(600), |_| false);
        assert!(breaker.is_open());
    }

    #[test]
    fn probes_come_at_growing_distances() {
        let (mut breaker, mut now) = (opened(), at(0));
        let mut distances = Vec::new();
        for n in 0..9 {
            let Stand::Open { probe_at, .. } = breaker.stand else { panic!("{breaker:?}") };
            assert!(!breaker.is_probe_due(now) && breaker.is_probe_due(probe_at));
            distances.push(probe_at.since(now).as_secs());
            now = probe_at;
            breaker.let_go(run(n), now);
            assert_eq!(breaker.probe(), Some(run(n)));
            assert_eq!(breaker.failed(run(77), &print(1), now), Failed::Late, "a run that began before says nothing");
            assert_eq!(breaker.failed(run(n), &print(1), now), Failed::StaysOpen);
        }
        assert_eq!(distances, [30, 60, 120, 240, 480, 960, 1_800, 1_800, 1_800]);
        assert_eq!(distance(u32::MAX), PROBE_LAST);
    }

    #[test]
    fn a_probe_that_says_nothing_is_followed_by_another() {
        let mut breaker = opened();
        breaker.let_go(run(1), at(30));
        assert!(!breaker.is_probe_due(at(30 + 899)) && breaker.is_probe_due(at(30 + 900)));
        breaker.forget_probe(at(40));
        assert_eq!(breaker.stand, Stand::Open { opened_at: at(0), probe_at: at(40) });
        breaker.let_go(run(2), at(40));
        assert_eq!(breaker.failed(run(1), &print(1), at(41)), Failed::Late);
        let mut closed = Breaker::new(at(0));
        closed.let_go(run(1), at(0));
        closed.forget_probe(at(0));
        assert_eq!(closed, Breaker::new(at(0)));
    }

    #[test]
    fn a_probe_that_is_not_over_in_time_lengthens_the_distance() {
        let (mut breaker, mut now) = (opened(), at(30));
        let mut distances = Vec::new();
        for n in 0..8 {
            breaker.let_go(run(n), now);
            let Stand::Probing { until, .. } = breaker.stand else { panic!("{breaker:?}") };
            distances.push(until.since(now).as_secs());
            now = until;
        }
        assert_eq!(distances, [900, 900, 900, 900, 900, 960, 1_800, 1_800]);
    }

    #[test]
    fn one_that_nobody_asks_of_is_stale_after_the_longest_distance() {
        let mut breaker = opened();
        assert!(!breaker.is_stale(at(0)) && !breaker.is_stale(at(30 + 1_799)) && breaker.is_stale(at(30 + 1_800)));
        breaker.let_go(run(1), at(30));
        assert!(!breaker.is_stale(at(930 + 1_799)) && breaker.is_stale(at(930 + 1_800)));
        assert!(!Breaker::new(at(0)).is_stale(at(9_999_999)));
    }

    #[test]
    fn a_clock_that_was_ahead_holds_nothing_for_long() {
        let mut breaker = opened();
        breaker.open(at(1_000_000));
        assert!(breaker.is_probe_due(at(0)) && !breaker.is_stale(at(0)));
        assert!(!breaker.is_probe_due(at(1_000_000)));
    }

    #[test]
    fn a_name_in_the_queue_tells_what_it_stands_for() {
        let workflow = WorkflowId::from_uuid(Uuid::from_u128(5));
        assert_eq!(parse_hold_key(&hold_key(workflow, 12)), Some((workflow, 12)));
        for bad in ["", "x", "wf_x.1", &format!("{workflow}"), &format!("{workflow}.x")] {
            assert_eq!(parse_hold_key(bad), None, "{bad}");
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Move {
        Fail(u8),
        Succeed,
        Wait(u64),
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let one = prop_oneof![
            6 => (0_u8..2).prop_map(Move::Fail),
            1 => Just(Move::Succeed),
            2 => (0_u64..200).prop_map(Move::Wait),
        ];
        prop::collection::vec(one, 0..400)
    }

    proptest! {
        /// It is open exactly if the last failures were so many, alike, close together and uninterrupted; and a storm costs no more than
        /// those and one run for each probe.
        #[test]
        fn it_opens_for_a_storm_and_for_nothing_else(moves in moves()) {
            let (mut breaker, mut now, mut carried) = (Breaker::new(at(0)), at(0), 0_u128);
            let mut successes: Vec<Timestamp> = Vec::new();
            // Failures of the present row, as one would write them down.
            let mut row: Vec<(u8, Timestamp)> = Vec::new();
            for step in moves {
                match step {
                    Move::Wait(seconds) => now = now.plus(Duration::from_secs(seconds)),
                    Move::Fail(fingerprint) => {
                        if breaker.is_open() {
                            if breaker.is_probe_due(now) {
                                carried += 1;
                                breaker.let_go(run(carried), now);
                                prop_assert_eq!(breaker.failed(run(carried), &print(fingerprint), now), Failed::StaysOpen);
                                prop_assert!(!breaker.is_probe_due(now));
                            }
                            continue;
                        }
                        carried += 1;
                        row.push((fingerprint, now));
                        fail(&mut breaker, carried, fingerprint, now, |since| successes.iter().any(|at| *at >= since));
                        if breaker.is_open() {
                            let last = &row[row.len() - FAILURES_MAX as usize..];
                            prop_assert!(last.iter().all(|(other, _)| *other == fingerprint));
                            prop_assert!(now.since(last[0].1) <= WINDOW);
                            prop_assert!(successes.iter().all(|at| *at < last[0].1));
                        }
                    }
                    Move::Succeed => {
                        // Of moments that are equal nobody knows the order.
                        now = now.plus(Duration::from_micros(1));
                        successes.push(now);
                        now = now.plus(Duration::from_micros(1));
                        if breaker.is_open() {
                            breaker = Breaker::new(now);
                            row.clear();
                        }
                    }
                }
            }
        }

        /// Failures alike and close together, with nothing between them, always open it.
        #[test]
        fn a_storm_always_opens_it(before in prop::collection::vec(0_u8..3, 0..60), gap_s in 0_u64..30) {
            let (mut breaker, mut now) = (Breaker::new(at(0)), at(0));
            for fingerprint in before {
                fail(&mut breaker, 1, fingerprint, now, |_| true);
            }
            for n in 0..2 * FAILURES_MAX {
                now = now.plus(Duration::from_secs(gap_s));
                fail(&mut breaker, u128::from(n), 7, now, |_| false);
            }
            prop_assert!(breaker.is_open());
        }
    }
}
