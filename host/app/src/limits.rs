//! How often somebody may ask, on all nodes together.
//!
//! Each process counts what it lets pass itself, in memory: whoever asks too often of one node is refused there without a word to the
//! database. What passes there is taken from the shared bucket (PostgreSQL); who asks often takes several tokens at once. On SQLite there
//! is one process, and what it counted is written down from time to time, so that a restart forgives little.
//!
//! When the database does not answer, reads pass (and are counted here all the same), and what is sensitive gets a quarter of its burst
//! from each node.

mod memory;

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{ApiKeyId, OrgId, UserId};
use bulkhead_model::network::Network;
use bulkhead_model::permission::{SystemReason, SystemScope};
use bulkhead_model::rate::{Policy, Rate, RateLimits, RouteClass, Share};
use bulkhead_store::rate::{BucketKey, Taking};
use bulkhead_store::{Store, StoreError};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use self::memory::{Begun, Level, Memory};
use crate::supervise::Supervisor;
use crate::{App, AppError};

/// Buckets that a process keeps in memory, at some 200 bytes each; those beyond share one for each policy and part of the memory.
const BUCKETS_MAX: usize = 200_000;
/// A database that takes longer for a bucket does not answer, as far as requests that wait for it go.
const SHARED_TIME_MAX: Duration = Duration::from_millis(500);
/// … and is not asked again for so long.
const AWAY_FOR: Duration = Duration::from_secs(1);
/// On SQLite, what changed is written down this often, …
const SAVE_EVERY: Duration = Duration::from_secs(10);
/// … so much of it in one transaction.
const SAVED_MAX: usize = 1_000;
/// Buckets that a restart reads.
const REMEMBERED_MAX: u32 = 100_000;
/// Buckets in the database are full for so long before they are removed: clocks of nodes differ a little.
const FULL_FOR: Duration = Duration::from_mins(1);
/// … and are looked for every so many turns of the loop.
const REMOVE_EVERY_TURNS: u32 = 60;

/// The right to count.
pub(crate) const LIMITS: SystemScope = SystemScope::new(SystemReason::Limits);

/// Who is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    Network(Network),
    User(UserId),
    Key(ApiKeyId),
    Org(OrgId),
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => write!(f, "network {network}"),
            Self::User(id) => write!(f, "{id}"),
            Self::Key(id) => write!(f, "{id}"),
            Self::Org(id) => write!(f, "{id}"),
        }
    }
}

/// Tokens that a request takes from one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    pub policy: Policy,
    pub counted: Counted,
    pub cost: u32,
}

/// How full a bucket is, as far as this node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meter {
    pub policy: Policy,
    pub rate: Rate,
    pub left: u32,
    pub full_in: Duration,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedFor {
    /// The bucket has too few tokens.
    Quota,
    /// The database does not answer, and each node lets only a part pass.
    ReducedCapacity,
    /// It was refused so often that it is shut out for a while.
    Block,
}

/// A refusal: come back after `wait`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateRefused {
    pub policy: Policy,
    pub rate: Rate,
    pub wait: Duration,
    pub why: RefusedFor,
}

/// Counts requests.
pub struct Limiter {
    limits: RateLimits,
    memory: Memory,
    digest_key: [u8; 32],
    /// Until then the database is taken for away, by this process's clock.
    away_until_micros: AtomicI64,
}

/// An ask that the shared bucket is to answer.
#[derive(Clone, Copy, Debug)]
struct Open {
    key: BucketKey,
    policy: Policy,
    rate: Rate,
    share: Share,
    cost: u32,
    most: u32,
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl Limiter {
    /// `digest_key` is the same on every node: buckets are named by digests under it.
    #[must_use]
    pub fn new(limits: RateLimits, digest_key: [u8; 32]) -> Self {
        Self { limits, memory: Memory::new(BUCKETS_MAX), digest_key, away_until_micros: AtomicI64::new(i64::MIN) }
    }

    fn key(&self, policy: Policy, counted: Counted) -> BucketKey {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.digest_key).expect("HMAC takes keys of every length");
        mac.update(b"rate limit v1\0");
        mac.update(policy.as_str().as_bytes());
        mac.update(b"\0");
        mac.update(counted.to_string().as_bytes());
        let digest: [u8; 32] = mac.finalize().into_bytes().into();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        key
    }

    fn meter(policy: Policy, rate: Rate, level: Level) -> Meter {
        Meter { policy, rate, left: level.left, full_in: level.full_in }
    }

    fn refuse(policy: Policy, rate: Rate, wait: Duration, why: RefusedFor) -> RateRefused {
        metrics::counter!("bulkhead_rate_limit_refused_total", "policy" => policy.as_str()).increment(1);
        RateRefused { policy, rate, wait, why }
    }

    /// Takes what a request costs from each of the buckets, in their order, which is to be the same wherever some of them come together.
    /// `is_sensitive`: it stays limited when the database does not answer.
    ///
    /// # Errors
    /// [`RateRefused`] by the first bucket with too few tokens.
    pub async fn take(
        &self,
        (store, ambient): (&Store, &Ambient),
        asks: &[Ask],
        is_sensitive: bool,
    ) -> Result<Vec<Meter>, RateRefused> {
        let (now, is_shared) = (ambient.now().as_micros(), store.is_postgres());
        let (mut meters, mut open) = (Vec::with_capacity(asks.len()), Vec::new());
        for Ask { policy, counted, cost } in asks.iter().copied() {
            let (key, rate) = (self.key(policy, counted), self.limits.rate(policy));
            let share = rate.share();
            let begun = self.memory.with(&key, (policy, rate), now, |entry| {
                if is_shared {
                    return entry.begin(cost, share, now);
                }
                entry.take(cost, now).map_or_else(Begun::Refused, Begun::Passed)
            });
            match begun {
                Begun::Passed(level) => meters.push(Self::meter(policy, rate, level)),
                Begun::Refused(wait) => return Err(Self::refuse(policy, rate, wait, RefusedFor::Quota)),
                Begun::Ask { most } => open.push(Open { key, policy, rate, share, cost, most }),
            }
        }
        if open.is_empty() {
            return Ok(meters);
        }
        match self.take_shared(store, &open, now).await {
            Some(takings) => {
                // What the answer took is time that the tokens have left less of.
                let later = ambient.now().as_micros();
                for (open, taking) in open.iter().zip(takings) {
                    meters.push(self.settle(open, taking, now, later)?);
                }
            }
            None => {
                for open in &open {
                    meters.push(self.do_without(open, is_sensitive, now)?);
                }
            }
        }
        Ok(meters)
    }

    /// Asks the database for all of them in one transaction; `None` where it does not answer.
    async fn take_shared(&self, store: &Store, open: &[Open], now: i64) -> Option<Vec<Taking>> {
        let away_for = self.away_until_micros.load(Ordering::Relaxed).saturating_sub(now);
        if (1..=micros(AWAY_FOR)).contains(&away_for) {
            return None;
        }
        let asked: Vec<_> =
            open.iter().map(|open| (open.key, open.share, open.share.cost(open.cost), open.most)).collect();
        let taking = store.write_locked(&LIMITS, asked, |tx, asked| {
            Box::pin(async move {
                let mut takings = Vec::with_capacity(asked.len());
                for (key, share, least, most) in asked {
                    takings.push(tx.take_tokens(key, *share, (*least, *most)).await?);
                }
                Ok::<_, StoreError>(takings)
            })
        });
        metrics::counter!("bulkhead_rate_limit_shared_total").increment(1);
        match tokio::time::timeout(SHARED_TIME_MAX, taking).await {
            Ok(Ok(takings)) => return Some(takings),
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "shared rate limits cannot be counted");
            }
            Err(_) => tracing::warn!("the database takes too long to count rate limits"),
        }
        self.away_until_micros.store(now.saturating_add(micros(AWAY_FOR)), Ordering::Relaxed);
        None
    }

    fn settle(&self, open: &Open, taking: Taking, asked: i64, now: i64) -> Result<Meter, RateRefused> {
        let Open { key, policy, rate, share, cost, .. } = *open;
        let full_in = u64::try_from(taking.full_at_micros.saturating_sub(taking.now_micros)).unwrap_or_default();
        let full_in = Duration::from_micros(full_in);
        if let Some(taken) = taking.taken {
            let level = self
                .memory
                .with(&key, (policy, rate), now, |entry| entry.passed(cost, taken, full_in, share, asked, now));
            return Ok(Self::meter(policy, rate, level));
        }
        let wait = share.wait(taking.full_at_micros, share.cost(cost), taking.now_micros);
        self.memory.with(&key, (policy, rate), now, |entry| entry.refused(cost, wait, full_in, now));
        Err(Self::refuse(policy, rate, wait, RefusedFor::Quota))
    }

    /// The database does not answer.
    fn do_without(&self, open: &Open, is_sensitive: bool, now: i64) -> Result<Meter, RateRefused> {
        let Open { key, policy, rate, cost, .. } = *open;
        let answer = if is_sensitive { "counted-here" } else { "passed" };
        metrics::counter!("bulkhead_rate_limit_store_failures_total", "answer" => answer).increment(1);
        let level = self.memory.with(&key, (policy, rate), now, |entry| {
            if is_sensitive && !entry.is_within_reserve(now) {
                entry.give_back(cost);
                return None;
            }
            Some(entry.level(now))
        });
        match level {
            Some(level) => Ok(Self::meter(policy, rate, level)),
            None => Err(Self::refuse(policy, rate, AWAY_FOR, RefusedFor::ReducedCapacity)),
        }
    }

    /// Whether a bucket is known to be empty, without taking anything.
    ///
    /// # Errors
    /// [`RateRefused`].
    pub fn look(&self, ambient: &Ambient, policy: Policy, counted: Counted) -> Result<(), RateRefused> {
        let (now, rate) = (ambient.now().as_micros(), self.limits.rate(policy));
        let empty_for = self.memory.look(&self.key(policy, counted), |entry| entry.empty_for(now)).flatten();
        match empty_for {
            Some(wait) => Err(Self::refuse(policy, rate, wait, RefusedFor::Quota)),
            None => Ok(()),
        }
    }

    /// Reads what an earlier process of this SQLite database counted.
    ///
    /// # Errors
    /// The store's.
    pub async fn remember(&self, store: &Store, ambient: &Ambient) -> Result<(), StoreError> {
        if store.is_postgres() {
            return Ok(());
        }
        let listed = store.read(&LIMITS, ambient.now().as_micros(), |tx, now| {
            Box::pin(async move { tx.list_buckets(*now, REMEMBERED_MAX).await })
        });
        for (key, full_at_micros) in listed.await? {
            self.memory.remember(key, full_at_micros);
        }
        Ok(())
    }

    /// On SQLite, writes down what changed; answers how many buckets.
    ///
    /// # Errors
    /// The store's.
    pub async fn save(&self, store: &Store, ambient: &Ambient) -> Result<usize, StoreError> {
        if store.is_postgres() {
            return Ok(0);
        }
        let mut saved = 0;
        loop {
            let now = ambient.now().as_micros();
            let changed = self.memory.changed(now, SAVED_MAX);
            let count = changed.len();
            if count > 0 {
                let saving = store.write(&LIMITS, (changed, now), |tx, (changed, now)| {
                    Box::pin(async move {
                        for (key, full_at_micros) in changed {
                            tx.save_bucket(key, *now, *full_at_micros).await?;
                        }
                        Ok::<_, StoreError>(())
                    })
                });
                saving.await?;
            }
            saved += count;
            if count < SAVED_MAX {
                return Ok(saved);
            }
        }
    }

    /// Removes buckets from the database that have been full for a while.
    ///
    /// # Errors
    /// The store's.
    pub async fn remove_full(&self, store: &Store, ambient: &Ambient) -> Result<u64, StoreError> {
        let before = ambient.now().minus(FULL_FOR).as_micros();
        let removing = store
            .write_locked(&LIMITS, before, |tx, before| Box::pin(async move { tx.remove_full_buckets(*before).await }));
        removing.await
    }
}

impl App {
    /// The refusal of who is shut out for so long; `policy` is what the request would have fallen under.
    #[must_use]
    pub fn blocked(&self, policy: Policy, wait: Duration) -> RateRefused {
        Limiter::refuse(policy, self.limiter().limits.rate(policy), wait, RefusedFor::Block)
    }

    /// Counts a request by each of these; the first bucket with too few tokens refuses it.
    ///
    /// # Errors
    /// [`RateRefused`].
    pub async fn take_rate(&self, asks: &[Ask], class: RouteClass) -> Result<Vec<Meter>, RateRefused> {
        self.limiter().take((self.store(), self.ambient()), asks, class.is_sensitive()).await
    }

    /// Refuses an address whose credentials were refused too often, before anybody looks at its next ones.
    ///
    /// # Errors
    /// [`RateRefused`].
    pub fn look_at_failures(&self, network: Network) -> Result<(), RateRefused> {
        self.limiter().look(self.ambient(), Policy::Credentials, Counted::Network(network))
    }

    /// Counts refused credentials of an address.
    pub async fn count_failure(&self, network: Network) {
        let ask = Ask { policy: Policy::Credentials, counted: Counted::Network(network), cost: 1 };
        // That there are too many already says the next request's look.
        drop(self.limiter().take((self.store(), self.ambient()), &[ask], true).await);
    }

    /// Begins to keep rate limits: reads what was written down, and writes and tidies until shutdown.
    ///
    /// # Errors
    /// The store's.
    pub async fn start_limits(&self, supervisor: &Supervisor) -> Result<(), AppError> {
        self.limiter().remember(self.store(), self.ambient()).await?;
        let (app, stop) = (self.clone(), supervisor.stop_token());
        supervisor.spawn_loop("limits", move || {
            let (app, stop) = (app.clone(), stop.clone());
            async move {
                let mut turns = 0_u32;
                loop {
                    let stopped = tokio::select! {
                        () = tokio::time::sleep(SAVE_EVERY) => false,
                        () = stop.cancelled() => true,
                    };
                    app.tend_limits(turns.is_multiple_of(REMOVE_EVERY_TURNS)).await;
                    if stopped {
                        return;
                    }
                    turns = turns.wrapping_add(1);
                }
            }
        });
        Ok(())
    }

    async fn tend_limits(&self, removes: bool) {
        let limiter = self.limiter();
        let buckets = limiter.memory.tidy(self.ambient().now().as_micros());
        metrics::gauge!("bulkhead_rate_limit_buckets").set(f64::from(u32::try_from(buckets).unwrap_or(u32::MAX)));
        if let Err(error) = limiter.save(self.store(), self.ambient()).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "rate limits were not written down");
        }
        if removes && let Err(error) = limiter.remove_full(self.store(), self.ambient()).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "rate limits that are over were not removed");
        }
    }
}
