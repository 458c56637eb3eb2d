//! The only file that may read the ambient clock and ambient randomness (`clippy.toml` forbids both elsewhere).
//!
//! Everything else takes an [`Ambient`]; tests hand in one whose clock stands still until it is moved and whose
//! generator is seeded, so that snapshots hold real ids and times.

#![expect(clippy::disallowed_methods, reason = "this is the one file that the ban points to")]

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::rngs::{StdRng, SysRng};
use rand::{Rng as _, SeedableRng as _, TryRng as _};

use crate::time::Timestamp;

/// The clock and the generator that the host runs with. Cheap to clone; clones share both.
#[derive(Clone)]
pub struct Ambient {
    inner: Arc<Inner>,
}

enum Inner {
    System,
    Manual { now_micros: AtomicI64, rng: Mutex<Box<StdRng>> },
}

impl Ambient {
    /// The machine's clock and the operating system's generator.
    #[must_use]
    pub fn system() -> Self {
        Self { inner: Arc::new(Inner::System) }
    }

    /// A clock that moves only by [`advance`](Self::advance) and a generator seeded with `seed`. For tests.
    #[must_use]
    pub fn manual(start: Timestamp, seed: u64) -> Self {
        let rng = Mutex::new(Box::new(StdRng::seed_from_u64(seed)));
        Self { inner: Arc::new(Inner::Manual { now_micros: AtomicI64::new(start.as_micros()), rng }) }
    }

    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &*self.inner {
            Inner::System => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
                Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
            }
            Inner::Manual { now_micros, .. } => Timestamp::from_micros(now_micros.load(Ordering::SeqCst)),
        }
    }

    /// Moves a manual clock forward; a system clock ignores it.
    pub fn advance(&self, by: Duration) {
        if let Inner::Manual { now_micros, .. } = &*self.inner {
            now_micros.fetch_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX), Ordering::SeqCst);
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
            Inner::System => SysRng.try_fill_bytes(bytes).expect("the operating system's generator answers"),
            Inner::Manual { rng, .. } => {
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
            Inner::System => "system",
            Inner::Manual { .. } => "manual",
        };
        write!(f, "Ambient({kind})")
    }
}
