//! The only file that may read the ambient clock and ambient randomness (`clippy.toml` forbids both elsewhere).
//!
//! Everything else takes an [`Ambient`]; tests hand in one whose clock stands still until it is moved and whose
//! generator is seeded, so that snapshots hold real ids and times.

#![expect(clippy::disallowed_methods, reason = "this is the one file that the ban points to")]

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::rngs::{StdRng, SysRng};
use rand::{Rng as _, SeedableRng as _, TryRng as _};

use crate::time::Timestamp;

/// The clock and the generator that the host runs with. Cheap to clone; clones share both.
#[derive(Clone)]
pub struct Ambient {
    inner: Arc<Inner>,
}

enum Inner {
    System {
        /// How wrong the machine's clock is made to be. For tests.
        ahead_micros: i64,
        born: Instant,
        /// What a shared clock said at `born`; [`NOT_FOLLOWING`] until there was one to follow.
        shared_micros: AtomicI64,
    },
    Manual {
        now_micros: AtomicI64,
        /// `None` for the operating system's generator.
        rng: Option<Mutex<Box<StdRng>>>,
    },
}

/// The machine's own clock holds.
const NOT_FOLLOWING: i64 = i64::MIN;
/// A shared clock is read over a network: a smaller difference is not corrected, so that time does not jitter.
const FOLLOW_FROM: Duration = Duration::from_millis(50);

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl Ambient {
    /// The machine's clock and the operating system's generator.
    #[must_use]
    pub fn system() -> Self {
        Self::system_ahead_by(0)
    }

    /// As [`system`](Self::system) on a machine whose clock is wrong by so many microseconds. For tests.
    #[must_use]
    pub fn system_ahead_by(ahead_micros: i64) -> Self {
        let shared_micros = AtomicI64::new(NOT_FOLLOWING);
        Self { inner: Arc::new(Inner::System { ahead_micros, born: Instant::now(), shared_micros }) }
    }

    /// A clock that moves only by [`advance`](Self::advance) and a generator seeded with `seed`. For tests.
    #[must_use]
    pub fn manual(start: Timestamp, seed: u64) -> Self {
        let rng = Some(Mutex::new(Box::new(StdRng::seed_from_u64(seed))));
        Self { inner: Arc::new(Inner::Manual { now_micros: AtomicI64::new(start.as_micros()), rng }) }
    }

    /// A clock that moves only by [`advance`](Self::advance), and the operating system's generator. For the demo, whose organization has
    /// a past.
    #[must_use]
    pub fn standing(start: Timestamp) -> Self {
        Self { inner: Arc::new(Inner::Manual { now_micros: AtomicI64::new(start.as_micros()), rng: None }) }
    }

    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &*self.inner {
            Inner::System { born, shared_micros, .. } => match shared_micros.load(Ordering::SeqCst) {
                NOT_FOLLOWING => self.machine_now(),
                shared => Timestamp::from_micros(shared).plus(born.elapsed()),
            },
            Inner::Manual { now_micros, .. } => Timestamp::from_micros(now_micros.load(Ordering::SeqCst)),
        }
    }

    /// What the machine's own clock says, whatever clock is followed.
    #[must_use]
    pub fn machine_now(&self) -> Timestamp {
        match &*self.inner {
            Inner::System { ahead_micros, .. } => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
                Timestamp::from_micros(micros(since).saturating_add(*ahead_micros))
            }
            Inner::Manual { now_micros, .. } => Timestamp::from_micros(now_micros.load(Ordering::SeqCst)),
        }
    }

    /// Follows a clock that several machines share and that says `shared` now: from here on [`now`](Self::now) is that
    /// moment and the time since by the monotonic clock, so that a jump of the machine's clock moves nothing. A manual clock
    /// ignores it.
    pub fn follow(&self, shared: Timestamp) {
        if let Inner::System { born, shared_micros, .. } = &*self.inner {
            let known = shared_micros.load(Ordering::SeqCst);
            let off = shared.as_micros().saturating_sub(self.now().as_micros()).unsigned_abs();
            if known == NOT_FOLLOWING || u128::from(off) >= FOLLOW_FROM.as_micros() {
                shared_micros.store(shared.minus(born.elapsed()).as_micros(), Ordering::SeqCst);
            }
        }
    }

    /// Moves a manual clock forward; a system clock ignores it.
    pub fn advance(&self, by: Duration) {
        if let Inner::Manual { now_micros, .. } = &*self.inner {
            now_micros.fetch_add(micros(by), Ordering::SeqCst);
        }
    }

    /// Sets a manual clock back, as an operator or a time server may do with a machine's; a system clock ignores it.
    pub fn set_back(&self, by: Duration) {
        if let Inner::Manual { now_micros, .. } = &*self.inner {
            now_micros.fetch_sub(i64::try_from(by.as_micros()).unwrap_or(i64::MAX), Ordering::SeqCst);
        }
    }

    /// Fills `bytes` from a cryptographic generator.
    pub fn fill(&self, bytes: &mut [u8]) {
        match &*self.inner {
            Inner::System { .. } | Inner::Manual { rng: None, .. } => {
                SysRng.try_fill_bytes(bytes).expect("the operating system's generator answers");
            }
            Inner::Manual { rng: Some(rng), .. } => {
                rng.lock().unwrap_or_else(std::sync::PoisonError::into_inner).fill_bytes(bytes);
            }
        }
    }

    /// `N` random bytes.
    #[must_use]
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    /// A random number in `0..bound` (0 when `bound` is 0), for jitter; the bias below 2⁻³² does not matter there.
    #[must_use]
    pub fn below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { u64::from_le_bytes(self.random()) % bound }
    }
}

impl std::fmt::Debug for Ambient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match &*self.inner {
            Inner::System { .. } => "system",
            Inner::Manual { .. } => "manual",
        };
        write!(f, "Ambient({kind})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000;
    const MINUTE: i64 = 60_000_000;

    #[test]
    fn a_machine_an_hour_off_tells_the_shared_time_once_it_follows() {
        let right = Ambient::system();
        for ahead in [HOUR, -HOUR] {
            let wrong = Ambient::system_ahead_by(ahead);
            let off = wrong.now().as_micros() - right.now().as_micros();
            assert!((off - ahead).abs() < MINUTE, "{off}");
            wrong.follow(right.now());
            let off = wrong.now().as_micros() - right.now().as_micros();
            assert!(off.abs() < MINUTE, "{off}");
            let machine = wrong.machine_now().as_micros() - right.now().as_micros();
            assert!((machine - ahead).abs() < MINUTE, "the machine's own clock is still wrong: {machine}");
        }
    }

    #[test]
    fn small_differences_do_not_make_time_jitter() {
        let ambient = Ambient::system();
        ambient.follow(Timestamp::from_micros(HOUR));
        let before = ambient.now();
        // Slower than the measured moment, as after a slow answer.
        ambient.follow(before.minus(Duration::from_millis(10)));
        assert!(ambient.now() >= before, "time does not run backwards for a trifle");
        ambient.follow(Timestamp::from_micros(3 * HOUR));
        assert!(ambient.now() >= Timestamp::from_micros(3 * HOUR));
    }

    #[test]
    fn a_standing_clock_moves_when_it_is_moved_and_guesses_nothing() {
        let (one, other) = (Ambient::standing(Timestamp::from_micros(7)), Ambient::standing(Timestamp::from_micros(7)));
        assert_ne!(one.random::<16>(), other.random::<16>(), "it has no seed");
        one.advance(Duration::from_micros(3));
        assert_eq!((one.now(), other.now()), (Timestamp::from_micros(10), Timestamp::from_micros(7)));
    }

    #[test]
    fn a_manual_clock_follows_nobody() {
        let ambient = Ambient::manual(Timestamp::from_micros(7), 1);
        ambient.follow(Timestamp::from_micros(HOUR));
        assert_eq!((ambient.now(), ambient.machine_now()), (Timestamp::from_micros(7), Timestamp::from_micros(7)));
    }
}
