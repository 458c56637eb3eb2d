//! How often somebody may ask, on all nodes together.
//!
//! Each process counts what it lets pass itself, in memory: whoever asks too often of one node is refused there without a word to the
//! database. What passes there is taken from the shared bucket (PostgreSQL), for all requests of a node in one question at a time; who asks
//! often takes several tokens at once. On SQLite there is one process, and what it counted is written down from time to time, so that a
//! restart forgives little.
//!
//! When the database does not answer, reads pass (and are counted here all the same), and what is sensitive gets a quarter of its burst
//! from each node.

mod memory;
mod presented;
mod shared;

use std::fmt;
use std::time::Duration;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{ApiKeyId, OrgId, UserId};
use bulkhead_model::network::Network;
use bulkhead_model::permission::{SystemReason, SystemScope};
use bulkhead_model::rate::{Policy, Rate, RateLimits, RouteClass, Share};
use bulkhead_store::rate::{BucketKey, Taking, TokenAsk};
use bulkhead_store::{Store, StoreError};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use tokio_util::sync::CancellationToken;

use self::memory::{Begun, Level, Memory};
use self::presented::Credentials;
pub use self::presented::{Holder, Known, Presented};
use self::shared::Shared;
use crate::supervise::Supervisor;
use crate::{App, AppError};

/// Buckets that a process keeps in memory, at some 200 bytes each; those beyond share one for each policy and part of the memory.
const BUCKETS_MAX: usize = 200_000;
/// Where the database does not answer, what is sensitive is told to come back after this.
const COME_BACK_AFTER: Duration = Duration::from_secs(1);
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
    shared: Shared,
    credentials: Credentials,
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

impl Open {
    fn ask(&self) -> TokenAsk {
        TokenAsk { key: self.key, share: self.share, least: self.share.cost(self.cost), most: self.most }
    }
}

impl Limiter {
    /// `digest_key` is the same on every node: buckets are named by digests under it.
    #[must_use]
    pub fn new(limits: RateLimits, digest_key: [u8; 32]) -> Self {
        Self {
            limits,
            memory: Memory::new(BUCKETS_MAX),
            digest_key,
            shared: Shared::new(),
            credentials: Credentials::default(),
        }
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
        let (mut passed, mut open) = (Vec::with_capacity(asks.len()), Vec::new());
        for Ask { policy, counted, cost } in asks.iter().copied() {
            let (key, rate) = (self.key(policy, counted), self.limits.rate(policy));
            let share = rate.share();
            let ask = Open { key, policy, rate, share, cost, most: 0 };
            let begun = self.memory.with(&key, (policy, rate), now, |entry| {
                if is_shared {
                    return entry.begin(cost, share, now);
                }
                entry.take(cost, now).map_or_else(Begun::Refused, Begun::Passed)
            });
            match begun {
                Begun::Passed(level) => passed.push((ask, level)),
                Begun::Refused(wait) => {
                    // What is refused takes nothing from anybody.
                    for (other, _) in &passed {
                        self.memory.with(&other.key, (other.policy, other.rate), now, |entry| {
                            entry.undo(other.cost, other.share, is_shared);
                        });
                    }
                    self.undo(&open, now);
                    return Err(Self::refuse(policy, rate, wait, RefusedFor::Quota));
                }
                Begun::Ask { most } => open.push(Open { most, ..ask }),
            }
        }
        let mut meters: Vec<_> = passed.iter().map(|(ask, level)| Self::meter(ask.policy, ask.rate, *level)).collect();
        if open.is_empty() {
            return Ok(meters);
        }
        let asked = open.iter().map(Open::ask).collect();
        let Some(takings) = self.shared.take(asked).await else {
            for ask in &open {
                meters.push(self.do_without(ask, is_sensitive, now)?);
            }
            return Ok(meters);
        };
        // What the answer took is time that the tokens have left less of.
        let later = ambient.now().as_micros();
        let is_refused = takings.iter().any(|taking| taking.taken.is_none());
        let mut refusal = None;
        for (ask, taking) in open.iter().zip(takings) {
            match (taking.taken, is_refused) {
                (Some(taken), false) => meters.push(self.pass(ask, taking, taken, now, later)),
                (Some(taken), true) => self.keep(ask, taking, taken, now, later),
                (None, _) => {
                    let refused = self.hear_refusal(ask, taking, later);
                    refusal.get_or_insert(refused);
                }
            }
        }
        refusal.map_or(Ok(meters), Err)
    }

    /// Gives back what was only begun here.
    fn undo(&self, open: &[Open], now: i64) {
        for ask in open {
            self.memory.with(&ask.key, (ask.policy, ask.rate), now, |entry| entry.give_back(ask.cost));
        }
    }

    /// Carries asks to the database (PostgreSQL) until it is told to stop. Without it each node counts for itself.
    pub async fn serve(&self, store: &Store, stop: &CancellationToken) {
        self.shared.serve(store, stop).await;
    }

    fn pass(&self, ask: &Open, taking: Taking, taken: u32, asked: i64, now: i64) -> Meter {
        let level = self.memory.with(&ask.key, (ask.policy, ask.rate), now, |entry| {
            entry.passed(ask.cost, taken, taking.full_in(), ask.share, asked, now)
        });
        Self::meter(ask.policy, ask.rate, level)
    }

    /// Another bucket had too few: what was taken from this one serves the next request.
    fn keep(&self, ask: &Open, taking: Taking, taken: u32, asked: i64, now: i64) {
        self.memory.with(&ask.key, (ask.policy, ask.rate), now, |entry| {
            entry.give_back(ask.cost);
            entry.passed(0, taken, taking.full_in(), ask.share, asked, now);
        });
    }

    fn hear_refusal(&self, ask: &Open, taking: Taking, now: i64) -> RateRefused {
        let wait = ask.share.wait(taking.full_at_micros, ask.share.cost(ask.cost), taking.now_micros);
        self.memory.with(&ask.key, (ask.policy, ask.rate), now, |entry| {
            entry.refused(ask.cost, wait, taking.full_in(), now);
        });
        // Others of the same question may have had what was there.
        Self::refuse(ask.policy, ask.rate, wait.max(Duration::from_millis(1)), RefusedFor::Quota)
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
            None => Err(Self::refuse(policy, rate, COME_BACK_AFTER, RefusedFor::ReducedCapacity)),
        }
    }

    /// Takes one token in this process's memory alone, until it is known whether it has to be taken on all nodes.
    ///
    /// # Errors
    /// [`RateRefused`] where the bucket is known to be empty.
    pub fn reserve(&self, ambient: &Ambient, policy: Policy, counted: Counted) -> Result<(), RateRefused> {
        let (now, rate) = (ambient.now().as_micros(), self.limits.rate(policy));
        let reserved = self.memory.with(&self.key(policy, counted), (policy, rate), now, |entry| entry.reserve(now));
        reserved.map_err(|wait| Self::refuse(policy, rate, wait, RefusedFor::Quota))
    }

    /// Gives back what [`reserve`](Self::reserve) took.
    pub fn give_back(&self, ambient: &Ambient, policy: Policy, counted: Counted) {
        let (now, rate) = (ambient.now().as_micros(), self.limits.rate(policy));
        self.memory.with(&self.key(policy, counted), (policy, rate), now, |entry| entry.give_back(1));
    }

    /// Whether a bucket is known to be empty, without taking anything.
    ///
    /// # Errors
    /// [`RateRefused`].
    pub fn look(&self, ambient: &Ambient, policy: Policy, counted: Counted) -> Result<(), RateRefused> {
        let (now, rate) = (ambient.now().as_micros(), self.limits.rate(policy));
        let empty_for = self.memory.look(&self.key(policy, counted), now, |entry| entry.empty_for(now)).flatten();
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
                let saving = store.write(&LIMITS, (changed.clone(), now), |tx, (changed, now)| {
                    Box::pin(async move {
                        for (key, full_at_micros) in changed {
                            tx.save_bucket(key, *now, *full_at_micros).await?;
                        }
                        Ok::<_, StoreError>(())
                    })
                });
                let saving: Result<(), StoreError> = saving.await;
                if let Err(error) = saving {
                    self.memory.not_saved(&changed);
                    return Err(error);
                }
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
        let full_for = i64::try_from(FULL_FOR.as_micros()).unwrap_or(i64::MAX);
        let removing = store.write_locked(&LIMITS, (ambient.now().as_micros(), full_for), |tx, (now, full_for)| {
            Box::pin(async move { tx.remove_full_buckets(*now, *full_for).await })
        });
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

    /// Whether a bucket is known to be empty, without taking anything.
    ///
    /// # Errors
    /// [`RateRefused`].
    pub fn look_at_rate(&self, policy: Policy, counted: Counted) -> Result<(), RateRefused> {
        self.limiter().look(self.ambient(), policy, counted)
    }

    /// Lets an address present credentials of which nothing is known, until [`count_credentials`](Self::count_credentials) says what came of
    /// them: so many at once and no more, however many come before the first answer.
    ///
    /// # Errors
    /// [`RateRefused`].
    pub fn begin_credentials(&self, network: Network) -> Result<(), RateRefused> {
        self.limiter().reserve(self.ambient(), Policy::Credentials, Counted::Network(network))
    }

    /// The credentials were good, and count for nothing; or they failed, which counts on all nodes.
    pub async fn count_credentials(&self, network: Network, failed: bool) {
        let counted = Counted::Network(network);
        self.limiter().give_back(self.ambient(), Policy::Credentials, counted);
        if failed {
            let ask = Ask { policy: Policy::Credentials, counted, cost: 1 };
            // That there are too many already says the next one's begin.
            drop(self.limiter().take((self.store(), self.ambient()), &[ask], true).await);
        }
    }

    /// Begins to keep rate limits: reads what was written down, and writes and tidies until shutdown. When it answers, what is asked of this
    /// process is counted by all nodes together: whoever listens for requests begins after that.
    ///
    /// # Errors
    /// The store's.
    pub async fn start_limits(&self, supervisor: &Supervisor) -> Result<(), AppError> {
        self.limiter().remember(self.store(), self.ambient()).await?;
        let (app, stop) = (self.clone(), supervisor.stop_token());
        if self.store().is_postgres() {
            let (app, stop) = (app.clone(), stop.clone());
            supervisor.spawn_loop("shared limits", move || {
                let (app, stop) = (app.clone(), stop.clone());
                async move { app.serve_shared_limits(&stop).await }
            });
            let stopped = supervisor.stop_token();
            tokio::select! {
                () = self.limiter().shared.wait_until_served() => {}
                () = stopped.cancelled() => {}
            }
        }
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

    /// Asks the database for all of this process until it is told to stop.
    pub async fn serve_shared_limits(&self, stop: &CancellationToken) {
        self.limiter().serve(self.store(), stop).await;
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
