//! The clock of all calls: one OS thread that advances the engines' epochs and ends calls whose deadline has passed.
//!
//! It is a thread of its own so that no number of spinning guests can hold it up, and one thread for all calls so that a
//! call needs neither a timer nor a task. It sleeps while no call runs.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use wasmtime::Engine;

use crate::control::{CallControl, Stop};

/// Between two ticks: how late a deadline or a revocation may be noticed by a guest that computes.
pub(crate) const TICK: Duration = Duration::from_millis(2);
/// Ticks without any call after which the thread goes to sleep.
const IDLE_TICKS: u32 = 500;
/// Registrations are spread over this many locks.
const SHARDS: usize = 16;

#[derive(Default)]
struct Shard {
    slots: Vec<Option<(Instant, CallControl)>>,
    free: Vec<usize>,
}

struct Shared {
    shards: [Mutex<Shard>; SHARDS],
    next_shard: AtomicUsize,
    active: AtomicUsize,
    asleep: AtomicBool,
    ended: AtomicBool,
    thread: OnceLock<Thread>,
}

/// The thread and its registry.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// One registered call; dropping it ends the registration.
pub(crate) struct Registration {
    shared: Arc<Shared>,
    shard: usize,
    slot: usize,
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ticker {
    pub(crate) fn start(engines: Vec<Engine>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            shards: std::array::from_fn(|_| Mutex::default()),
            next_shard: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            thread: OnceLock::new(),
        });
        let thread = std::thread::Builder::new().name("guest-ticker".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.run(&engines)
        })?;
        shared.thread.get_or_init(|| thread.thread().clone());
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Ends `control` with [`Stop::Deadline`] once `deadline` has passed, unless the registration is dropped before.
    pub(crate) fn register(&self, deadline: Instant, control: CallControl) -> Registration {
        let shard = self.shared.next_shard.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let slot = {
            let mut shard = lock(&self.shared.shards[shard]);
            if let Some(slot) = shard.free.pop() {
                shard.slots[slot] = Some((deadline, control));
                slot
            } else {
                shard.slots.push(Some((deadline, control)));
                shard.slots.len() - 1
            }
        };
        self.shared.active.fetch_add(1, Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::SeqCst)
            && let Some(thread) = self.shared.thread.get()
        {
            thread.unpark();
        }
        Registration { shared: Arc::clone(&self.shared), shard, slot }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic in the thread has been reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut shard = lock(&self.shared.shards[self.shard]);
        shard.slots[self.slot] = None;
        shard.free.push(self.slot);
        drop(shard);
        self.shared.active.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    fn run(&self, engines: &[Engine]) {
        let mut idle = 0;
        while !self.ended.load(Ordering::SeqCst) {
            std::thread::sleep(TICK);
            for engine in engines {
                engine.increment_epoch();
            }
            if self.active.load(Ordering::SeqCst) > 0 {
                idle = 0;
                self.end_overdue(Instant::now());
            } else {
                idle += 1;
            }
            if idle >= IDLE_TICKS {
                idle = 0;
                self.sleep();
            }
        }
    }

    /// A registration counts itself first and looks at `asleep` second; this does the opposite, so one of the two notices.
    fn sleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        while self.active.load(Ordering::SeqCst) == 0 && !self.ended.load(Ordering::SeqCst) {
            std::thread::park();
        }
        self.asleep.store(false, Ordering::SeqCst);
    }

    fn end_overdue(&self, now: Instant) {
        for shard in &self.shards {
            for (deadline, control) in lock(shard).slots.iter().flatten() {
                if *deadline <= now {
                    control.stop(Stop::Deadline);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_until(what: impl Fn() -> bool) {
        let patience = Instant::now() + Duration::from_secs(20);
        while !what() {
            assert!(Instant::now() < patience, "did not happen");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn only_overdue_calls_end() {
        let ticker = Ticker::start(Vec::new()).unwrap();
        let (late, early) = (CallControl::new(), CallControl::new());
        let _late = ticker.register(Instant::now() + Duration::from_mins(10), late.clone());
        let _early = ticker.register(Instant::now(), early.clone());
        wait_until(|| early.stopped() == Some(Stop::Deadline));
        assert_eq!(late.stopped(), None);
    }

    #[test]
    fn a_sleeping_thread_wakes_for_a_call() {
        let ticker = Ticker::start(Vec::new()).unwrap();
        wait_until(|| ticker.shared.asleep.load(Ordering::SeqCst));
        let control = CallControl::new();
        let registration = ticker.register(Instant::now(), control.clone());
        wait_until(|| control.stopped().is_some());
        drop(registration);
        assert_eq!(ticker.shared.active.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn slots_are_used_again() {
        let ticker = Ticker::start(Vec::new()).unwrap();
        for _ in 0..1_000 {
            drop(ticker.register(Instant::now() + Duration::from_mins(10), CallControl::new()));
        }
        assert!(ticker.shared.shards.iter().all(|shard| lock(shard).slots.len() <= 1));
    }
}
