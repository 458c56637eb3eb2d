//! The buckets that this process knows, in bounded memory.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bulkhead_model::rate::{Bucket, Held, Policy, Rate, Share};
use bulkhead_store::rate::BucketKey;

/// Parts of the memory with locks of their own.
const SHARDS: usize = 16;
/// A part that is full is looked through for buckets that are full no more often than this.
const SWEEP_EVERY_MICROS: i64 = 1_000_000;

/// What is known of one bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    rate: Rate,
    /// What this process let pass, by its own clock.
    bucket: Bucket,
    /// Tokens of the shared bucket that were taken beforehand.
    held: Held,
    /// Until then the shared bucket is known to have too few.
    empty_until_micros: i64,
    /// When the shared bucket is full, by this process's clock.
    shared_full_at_micros: i64,
    /// Changed since it was last written down.
    changed: bool,
}

/// What is known of a bucket after somebody asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) left: u32,
    pub(super) full_in: Duration,
}

/// How an ask goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    Passed(Level),
    /// Not before this time is over.
    Refused(Duration),
    /// This process has no reason against it; the shared bucket is to be asked for so many tokens.
    Ask {
        most: u32,
    },
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl Entry {
    fn new(rate: Rate) -> Self {
        Self {
            rate,
            bucket: Bucket::FULL,
            held: Held::default(),
            empty_until_micros: i64::MIN,
            shared_full_at_micros: i64::MIN,
            changed: false,
        }
    }

    /// A clock that was put back leaves the bucket empty, and it fills from now on: not when the clock has come again to where it was.
    fn put_right(&mut self, now: i64) {
        self.bucket.full_at_micros = self.bucket.full_at_micros.min(now.saturating_add(self.rate.full_micros()));
    }

    fn own_level(&self, now: i64) -> Level {
        Level { left: self.bucket.left(self.rate, now), full_in: self.bucket.full_in(self.rate, now) }
    }

    fn shared_level(&self, share: Share, now: i64) -> Level {
        let left = share.left(self.shared_full_at_micros, now).saturating_add(self.held.left(now));
        let full_in = self.shared_full_at_micros.saturating_sub(now).clamp(0, share.full_micros);
        Level { left, full_in: Duration::from_micros(u64::try_from(full_in).unwrap_or_default()) }
    }

    /// Nothing is known that a new entry would not say.
    fn is_idle(&self, now: i64) -> bool {
        self.bucket.full_in(self.rate, now).is_zero() && self.held.left(now) == 0 && self.empty_until_micros <= now
    }

    /// Takes tokens where this process alone keeps the bucket.
    pub(super) fn take(&mut self, cost: u32, now: i64) -> Result<Level, Duration> {
        self.bucket.take(self.rate, cost, now)?;
        self.changed = true;
        Ok(self.own_level(now))
    }

    /// Takes tokens where nodes share the bucket, as far as that goes without asking.
    pub(super) fn begin(&mut self, cost: u32, share: Share, now: i64) -> Begun {
        // Bounded, in case the clock is set back meanwhile.
        let empty_for = self.empty_until_micros.saturating_sub(now);
        if (1..=share.full_micros.saturating_add(share.token_micros)).contains(&empty_for) {
            return Begun::Refused(Duration::from_micros(u64::try_from(empty_for).unwrap_or_default()));
        }
        if let Err(wait) = self.bucket.take(self.rate, cost, now) {
            return Begun::Refused(wait);
        }
        if self.held.spend(share.cost(cost), now) {
            return Begun::Passed(self.shared_level(share, now));
        }
        Begun::Ask { most: self.held.wanted(share.cost(cost), share) }
    }

    /// The shared bucket gave so many tokens, of which `cost` are used; `full_in`: until it is full.
    pub(super) fn passed(
        &mut self,
        cost: u32,
        taken: u32,
        full_in: Duration,
        share: Share,
        asked: i64,
        now: i64,
    ) -> Level {
        self.held.keep(taken.saturating_sub(share.cost(cost)), asked, now);
        self.shared_full_at_micros = now.saturating_add(micros(full_in));
        self.shared_level(share, now)
    }

    /// The shared bucket has too few tokens for so long.
    pub(super) fn refused(&mut self, cost: u32, wait: Duration, full_in: Duration, now: i64) {
        self.bucket.give_back(self.rate, cost);
        self.empty_until_micros = now.saturating_add(micros(wait));
        self.shared_full_at_micros = now.saturating_add(micros(full_in));
    }

    /// Whether, with the shared bucket out of reach, no more than a quarter of the burst passed here: several nodes may count alone now.
    pub(super) fn is_within_reserve(&self, now: i64) -> bool {
        let used = self.rate.burst.saturating_sub(self.bucket.left(self.rate, now));
        used <= self.rate.burst.div_ceil(4)
    }

    /// Takes one token here alone.
    pub(super) fn reserve(&mut self, now: i64) -> Result<(), Duration> {
        if let Some(wait) = self.empty_for(now) {
            return Err(wait);
        }
        self.bucket.take(self.rate, 1, now)
    }

    /// Gives back what passed, and what was held of the shared bucket for it.
    pub(super) fn undo(&mut self, cost: u32, share: Share, is_shared: bool) {
        self.give_back(cost);
        if is_shared {
            self.held.put_back(share.cost(cost));
        }
    }

    pub(super) fn give_back(&mut self, cost: u32) {
        self.bucket.give_back(self.rate, cost);
    }

    pub(super) fn level(&self, now: i64) -> Level {
        self.own_level(now)
    }

    /// How long nothing passes, if that is known without asking.
    pub(super) fn empty_for(&self, now: i64) -> Option<Duration> {
        let mut probe = *self;
        let own = probe.bucket.take(self.rate, 1, now).err();
        let known = self.empty_until_micros.saturating_sub(now).clamp(0, self.rate.full_micros());
        let shared = Duration::from_micros(u64::try_from(known).unwrap_or_default());
        own.into_iter().chain((!shared.is_zero()).then_some(shared)).max()
    }
}

#[derive(Default)]
struct Shard {
    entries: HashMap<BucketKey, Entry>,
    /// For those that there is no room for: all of a policy together.
    beyond: HashMap<Policy, Entry>,
    swept_at_micros: i64,
}

/// The buckets that are not full.
pub(super) struct Memory {
    shards: Vec<Mutex<Shard>>,
    shard_max: usize,
}

impl Memory {
    /// Room for about so many buckets.
    pub(super) fn new(buckets_max: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, shard_max: (buckets_max / SHARDS).max(1) }
    }

    fn shard(&self, key: &BucketKey) -> MutexGuard<'_, Shard> {
        let place = usize::from(key[0]) % SHARDS;
        self.shards[place].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works with a bucket's entry; one that is not known is full.
    pub(super) fn with<T>(
        &self,
        key: &BucketKey,
        (policy, rate): (Policy, Rate),
        now: i64,
        work: impl FnOnce(&mut Entry) -> T,
    ) -> T {
        let mut shard = self.shard(key);
        let shard = &mut *shard;
        if shard.entries.len() >= self.shard_max && !shard.entries.contains_key(key) {
            if !(0..SWEEP_EVERY_MICROS).contains(&now.saturating_sub(shard.swept_at_micros)) {
                shard.swept_at_micros = now;
                shard.entries.retain(|_, entry| !entry.is_idle(now));
            }
            if shard.entries.len() >= self.shard_max {
                metrics::counter!("bulkhead_rate_limit_beyond_total").increment(1);
                return work(shard.beyond.entry(policy).or_insert_with(|| Entry::new(rate)));
            }
        }
        let entry = shard.entries.entry(*key).or_insert_with(|| Entry::new(rate));
        // Of one that a restart found, only this is not known.
        entry.rate = rate;
        entry.put_right(now);
        work(entry)
    }

    /// Looks at a bucket's entry, if there is one.
    pub(super) fn look<T>(&self, key: &BucketKey, now: i64, look: impl FnOnce(&Entry) -> T) -> Option<T> {
        let mut shard = self.shard(key);
        let entry = shard.entries.get_mut(key)?;
        entry.put_right(now);
        Some(look(entry))
    }

    /// Forgets buckets that are full; answers how many are left.
    pub(super) fn tidy(&self, now: i64) -> usize {
        let mut left = 0;
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.entries.retain(|_, entry| !entry.is_idle(now));
            shard.beyond.retain(|_, entry| !entry.is_idle(now));
            left += shard.entries.len();
        }
        left
    }

    /// Those that changed since the last time and are not full, with the moment at which they will be; at most so many.
    pub(super) fn changed(&self, now: i64, most: usize) -> Vec<(BucketKey, i64)> {
        let mut changed = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for (key, entry) in shard.entries.iter_mut().filter(|(_, entry)| entry.changed) {
                if changed.len() >= most {
                    return changed;
                }
                entry.changed = false;
                let full_in = entry.bucket.full_in(entry.rate, now);
                if !full_in.is_zero() {
                    changed.push((*key, now.saturating_add(micros(full_in))));
                }
            }
        }
        changed
    }

    /// They could not be written down, and are changed still.
    pub(super) fn not_saved(&self, changed: &[(BucketKey, i64)]) {
        for (key, _) in changed {
            if let Some(entry) = self.shard(key).entries.get_mut(key) {
                entry.changed = true;
            }
        }
    }

    /// What was written down of a bucket before this process began. How large it is says whoever asks next.
    pub(super) fn remember(&self, key: BucketKey, full_at_micros: i64) {
        let mut shard = self.shard(&key);
        if shard.entries.len() < self.shard_max {
            let mut entry = Entry::new(Rate { quota: 1, window_s: 1, burst: u32::MAX });
            entry.bucket = Bucket { full_at_micros };
            shard.entries.entry(key).or_insert(entry);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).entries.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate::per_minute(60, 2);
    const START: i64 = 1_795_248_000_000_000;

    fn key(n: u64) -> BucketKey {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&n.to_be_bytes());
        key[0] = u8::try_from(n % 256).unwrap();
        key
    }

    /// Section e: an unbounded map of keys.
    #[test]
    fn ten_thousand_newcomers_take_bounded_memory_and_share_what_is_left() {
        let memory = Memory::new(SHARDS * 10);
        let mut passed = 0;
        for n in 0..10_000 {
            passed += usize::from(
                memory.with(&key(n), (Policy::Anonymous, RATE), START, |entry| entry.take(1, START)).is_ok(),
            );
        }
        assert_eq!(memory.len(), SHARDS * 10);
        // Those with a place of their own, and the burst that the others share in each part.
        assert_eq!(passed, SHARDS * 10 + SHARDS * 2);
        // Who had a place is still counted by it.
        assert!(memory.with(&key(0), (Policy::Anonymous, RATE), START, |entry| entry.take(1, START)).is_ok());
        assert!(memory.with(&key(0), (Policy::Anonymous, RATE), START, |entry| entry.take(1, START)).is_err());
        // When buckets are full again there is room, without anybody tidying up.
        let later = START + 3_000_000;
        assert!(memory.with(&key(20_000), (Policy::Anonymous, RATE), later, |entry| entry.take(2, later)).is_ok());
        assert!(memory.look(&key(20_000), later, |entry| entry.level(later).left).is_some());
        assert_eq!(memory.tidy(later + 3_000_000), 0);
    }

    #[test]
    fn what_changed_is_told_once() {
        let memory = Memory::new(100);
        for n in 0..3 {
            memory.with(&key(n), (Policy::Key, RATE), START, |entry| entry.take(1, START)).unwrap();
        }
        assert_eq!(memory.changed(START, 2).len(), 2);
        let rest = memory.changed(START, 9);
        assert_eq!((rest.len(), rest[0].1), (1, START + 1_000_000));
        assert!(memory.changed(START, 9).is_empty());
    }

    #[test]
    fn what_a_shared_bucket_refused_is_refused_here_until_then() {
        let rate = Rate::per_minute(600, 100);
        let (share, mut entry) = (rate.share(), Entry::new(rate));
        assert_eq!(entry.begin(1, share, START), Begun::Ask { most: 1 });
        let tenth = Duration::from_millis(100);
        entry.refused(1, tenth, Duration::from_secs(9), START);
        assert_eq!(entry.begin(1, share, START + 1), Begun::Refused(Duration::from_micros(99_999)));
        assert_eq!(entry.empty_for(START + 1), Some(Duration::from_micros(99_999)));
        assert_eq!(entry.begin(1, share, START + 100_000), Begun::Ask { most: 1 });
        let level = entry.passed(1, 5, Duration::from_secs(8), share, START + 100_000, START + 100_000);
        assert_eq!(level, Level { left: 10 + 4, full_in: Duration::from_secs(8) });
        for _ in 0..4 {
            assert!(matches!(entry.begin(1, share, START + 100_001), Begun::Passed(_)));
        }
        assert!(matches!(entry.begin(1, share, START + 100_001), Begun::Ask { .. }));
    }

    /// Section e: clock skew.
    #[test]
    fn a_clock_that_is_put_back_empties_a_bucket_for_a_moment() {
        let (memory, hour) = (Memory::new(10), 3_600_000_000);
        let take = |now| memory.with(&key(1), (Policy::Key, RATE), now, |entry| entry.take(1, now).is_ok());
        assert!(take(START));
        let back = START - hour;
        assert!(!take(back));
        assert!(take(back + RATE.token_micros()));
        // Looking is enough, where nobody is let in to take.
        assert!(memory.look(&key(1), back - hour, |entry| entry.empty_for(back - hour)).unwrap().is_some());
        let later = back - hour + RATE.token_micros();
        assert!(memory.look(&key(1), later, |entry| entry.empty_for(later)).unwrap().is_none());
    }
}
