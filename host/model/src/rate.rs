//! How often somebody may ask: token buckets, the policies that say how large each is, and the classes of routes.
//!
//! A bucket is kept as one number, the moment at which it will be full again: the further away that is, the fewer tokens are left. Time
//! brings tokens back by itself, and a bucket that is full needs no row and no memory.
//!
//! Nodes share a bucket in the database. One that is asked often takes several tokens at once and holds them for a moment; the shared
//! bucket is smaller by what comes back in that moment, so that all nodes together never let more pass than the policy says, in any
//! stretch of time.

use std::time::Duration;

use crate::permission::Permission;

/// So many in a window, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub quota: u32,
    pub window_s: u32,
    /// Tokens that a full bucket holds.
    pub burst: u32,
}

/// The largest quota and burst that can be configured: a token comes back in a whole number of microseconds.
pub const QUOTA_MAX: u32 = 10_000_000;
/// The longest window: a day.
const WINDOW_S_MAX: u32 = 86_400;
const MICROS: i64 = 1_000_000;

impl Rate {
    #[must_use]
    pub const fn per_minute(quota: u32, burst: u32) -> Self {
        Self { quota, window_s: 60, burst }
    }

    #[must_use]
    pub const fn per_hour(quota: u32, burst: u32) -> Self {
        Self { quota, window_s: 3_600, burst }
    }

    /// Twice as many, at once and in all.
    #[must_use]
    pub const fn doubled(self) -> Self {
        Self { quota: self.quota.saturating_mul(2), window_s: self.window_s, burst: self.burst.saturating_mul(2) }
    }

    /// Whether each figure is at least 1 and at most what the arithmetic is made for.
    #[must_use]
    pub fn is_allowed(self) -> bool {
        let figure = 1..=QUOTA_MAX;
        figure.contains(&self.quota) && figure.contains(&self.burst) && (1..=WINDOW_S_MAX).contains(&self.window_s)
    }

    /// How long one token takes to come back, in microseconds; rounded up, so that never more come back than the quota.
    #[must_use]
    pub fn token_micros(self) -> i64 {
        let (window, quota) = (i64::from(self.window_s) * MICROS, i64::from(self.quota.max(1)));
        (window + quota - 1) / quota
    }

    /// How long an empty bucket takes to fill, in microseconds.
    #[must_use]
    pub fn full_micros(self) -> i64 {
        i64::from(self.burst) * self.token_micros()
    }

    /// What is taken for something of this cost: never more than a full bucket holds, or it would never pass.
    #[must_use]
    pub fn cost(self, cost: u32) -> u32 {
        cost.min(self.burst)
    }

    /// The bucket as nodes share it.
    #[must_use]
    pub fn share(self) -> Share {
        let (token_micros, full_micros) = (self.token_micros(), self.full_micros());
        // Where little comes back in that moment, tokens are taken one by one, and the bucket has its whole size.
        if full_micros < 4 * HELD_MICROS || token_micros * 2 > HELD_MICROS {
            return Share { token_micros, full_micros, batch_max: 1 };
        }
        let batch_max = u32::try_from(HELD_MICROS / token_micros).unwrap_or(u32::MAX);
        Share { token_micros, full_micros: full_micros - HELD_MICROS, batch_max }
    }
}

/// A bucket: the moment at which it is full, in microseconds of whatever clock it is kept by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub full_at_micros: i64,
}

fn tokens(micros: i64, token_micros: i64) -> u32 {
    u32::try_from((micros / token_micros).max(0)).unwrap_or(u32::MAX)
}

fn duration(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}

impl Bucket {
    pub const FULL: Self = Self { full_at_micros: i64::MIN };

    /// When it is full as seen from now. A clock that was set back, and a policy that became smaller, leave it empty at worst.
    fn full_at(self, full_micros: i64, now: i64) -> i64 {
        self.full_at_micros.clamp(now, now + full_micros)
    }

    /// Tokens that are there.
    #[must_use]
    pub fn left(self, rate: Rate, now_micros: i64) -> u32 {
        let full = rate.full_micros();
        tokens(now_micros + full - self.full_at(full, now_micros), rate.token_micros())
    }

    #[must_use]
    pub fn full_in(self, rate: Rate, now_micros: i64) -> Duration {
        duration(self.full_at(rate.full_micros(), now_micros) - now_micros)
    }

    /// Takes so many tokens, all or none.
    ///
    /// # Errors
    /// How long it is until there are so many.
    pub fn take(&mut self, rate: Rate, cost: u32, now_micros: i64) -> Result<(), Duration> {
        let full = rate.full_micros();
        let after = self.full_at(full, now_micros) + i64::from(rate.cost(cost)) * rate.token_micros();
        let late = after - (now_micros + full);
        if late > 0 {
            return Err(duration(late));
        }
        self.full_at_micros = after;
        Ok(())
    }

    /// Puts tokens back that were taken for nothing.
    pub fn give_back(&mut self, rate: Rate, cost: u32) {
        self.full_at_micros = self.full_at_micros.saturating_sub(i64::from(rate.cost(cost)) * rate.token_micros());
    }
}

/// For so long a node may use what it took from a bucket that nodes share, in microseconds.
pub const HELD_MICROS: i64 = MICROS;

/// A bucket that nodes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub token_micros: i64,
    pub full_micros: i64,
    /// Tokens that a node takes at once, at most.
    pub batch_max: u32,
}

impl Share {
    /// Takes as many tokens as there are, at least `least` and at most `most`; `None` where there are fewer than `least`. The statement in
    /// `host/store/src/rate.rs` does the same on the database's clock; a test holds them against each other.
    pub fn take(self, bucket: &mut Bucket, (least, most): (u32, u32), now_micros: i64) -> Option<u32> {
        let full_at = bucket.full_at(self.full_micros, now_micros);
        let there = tokens(now_micros + self.full_micros - full_at, self.token_micros);
        if there < least {
            return None;
        }
        let taken = there.min(most.max(least));
        bucket.full_at_micros = full_at + i64::from(taken) * self.token_micros;
        Some(taken)
    }

    /// What is taken for something of this cost.
    #[must_use]
    pub fn cost(self, cost: u32) -> u32 {
        cost.min(tokens(self.full_micros, self.token_micros))
    }

    /// Tokens that a bucket which is full then has now.
    #[must_use]
    pub fn left(self, full_at_micros: i64, now_micros: i64) -> u32 {
        tokens(now_micros + self.full_micros - full_at_micros.max(now_micros), self.token_micros)
    }

    /// How long it is until a bucket that is full then has so many tokens.
    #[must_use]
    pub fn wait(self, full_at_micros: i64, cost: u32, now_micros: i64) -> Duration {
        let after = full_at_micros.max(now_micros) + i64::from(cost) * self.token_micros;
        duration(after - (now_micros + self.full_micros))
    }
}

/// What a node holds of a bucket that nodes share, and how often it was asked for lately.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    tokens: u32,
    until_micros: i64,
    /// What was asked for in the second that began then, and in the one before.
    asked: u32,
    asked_before: u32,
    second_micros: i64,
}

impl Held {
    fn is_in_time(self, now: i64) -> bool {
        // Not before it was taken either: a clock may be set back.
        (self.until_micros - HELD_MICROS..self.until_micros).contains(&now)
    }

    /// Tokens that may be used now.
    #[must_use]
    pub fn left(self, now_micros: i64) -> u32 {
        if self.is_in_time(now_micros) { self.tokens } else { 0 }
    }

    /// Uses tokens that are held, if there are so many.
    pub fn spend(&mut self, cost: u32, now_micros: i64) -> bool {
        self.count(cost, now_micros);
        if self.left(now_micros) < cost {
            return false;
        }
        self.tokens -= cost;
        true
    }

    /// Holds again what was used for nothing.
    pub fn put_back(&mut self, cost: u32) {
        self.tokens = self.tokens.saturating_add(cost);
    }

    fn count(&mut self, cost: u32, now: i64) {
        let passed = now - self.second_micros;
        if !(0..HELD_MICROS).contains(&passed) {
            self.asked_before = if (HELD_MICROS..2 * HELD_MICROS).contains(&passed) { self.asked } else { 0 };
            (self.asked, self.second_micros) = (0, now);
        }
        self.asked = self.asked.saturating_add(cost);
    }

    /// How many to take at once: half of what is asked for in a second, so that what is taken is used.
    #[must_use]
    pub fn wanted(self, cost: u32, share: Share) -> u32 {
        (self.asked.max(self.asked_before) / 2).min(share.batch_max).max(cost)
    }

    /// Keeps tokens that were taken and not used at once. `asked_micros`: this node's clock before it asked.
    pub fn keep(&mut self, tokens: u32, asked_micros: i64, now_micros: i64) {
        let held = self.left(now_micros);
        let until = asked_micros + HELD_MICROS;
        self.until_micros = if held > 0 { self.until_micros.min(until) } else { until };
        self.tokens = held.saturating_add(tokens);
    }
}

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// Reads what [`as_str`](Self::as_str) writes.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|it| it.as_str() == text)
            }
        }
    };
}

named! {
    /// What a bucket is for, by the name that clients see.
    Policy {
        /// An address without credentials.
        Anonymous = "anonymous",
        AnonymousRelaxed = "anonymous-relaxed",
        /// An address that tries passwords, codes and links.
        SignIn = "sign-in",
        /// An address whose credentials were refused.
        Credentials = "failed-credentials",
        User = "user",
        UserRelaxed = "user-relaxed",
        Key = "api-key",
        KeyRelaxed = "api-key-relaxed",
        /// Whoever changes keys, secrets, grants or their own second factor.
        Strict = "strict",
        /// Whoever takes data out.
        Export = "export",
        /// All callers of an organization together.
        Organization = "organization",
    }
}

/// The figures of all policies. Source of the defaults: identity.md, "Rate limits, blocks, IP rules".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    pub anonymous: Rate,
    pub sign_in: Rate,
    pub credentials: Rate,
    pub user: Rate,
    pub key: Rate,
    pub strict: Rate,
    pub export: Rate,
    pub organization: Rate,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            anonymous: Rate::per_minute(60, 30),
            sign_in: Rate::per_minute(10, 10),
            credentials: Rate::per_minute(60, 30),
            user: Rate::per_minute(600, 100),
            key: Rate::per_minute(1_200, 200),
            strict: Rate::per_minute(10, 10),
            export: Rate::per_hour(10, 10),
            // Ten keys at their full rate.
            organization: Rate::per_minute(12_000, 2_000),
        }
    }
}

impl RateLimits {
    /// The same for all policies: for tests and measurements of something else.
    #[must_use]
    pub const fn all(rate: Rate) -> Self {
        Self {
            anonymous: rate,
            sign_in: rate,
            credentials: rate,
            user: rate,
            key: rate,
            strict: rate,
            export: rate,
            organization: rate,
        }
    }

    #[must_use]
    pub const fn rate(&self, policy: Policy) -> Rate {
        match policy {
            Policy::Anonymous => self.anonymous,
            Policy::AnonymousRelaxed => self.anonymous.doubled(),
            Policy::SignIn => self.sign_in,
            Policy::Credentials => self.credentials,
            Policy::User => self.user,
            Policy::UserRelaxed => self.user.doubled(),
            Policy::Key => self.key,
            Policy::KeyRelaxed => self.key.doubled(),
            Policy::Strict => self.strict,
            Policy::Export => self.export,
            Policy::Organization => self.organization,
        }
    }
}

named! {
    /// Routes that are counted together, and how.
    RouteClass {
        Standard = "standard",
        /// As standard, at ten times the cost: it compiles.
        Heavy = "heavy",
        /// Twice the caller's rate: health, and reads of small fixed lists.
        Relaxed = "relaxed",
        /// Changes of keys, secrets, grants and second factors.
        Strict = "strict",
        /// Where passwords, codes, links and tokens are tried.
        SignIn = "sign-in",
        /// Takes data out.
        Export = "export",
        /// What comes in by webhook: starts have limits of their own, and a sender is one address for many organizations.
        Starts = "starts",
        /// Whether the process is well: refused, a probe has it killed, and strangers may come from where probes do.
        Probe = "probe",
    }
}

/// Who asks, as far as rates go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// An address, before anybody looks at credentials.
    Address,
    User,
    Key,
}

impl RouteClass {
    /// The class of a route that needs this permission.
    #[must_use]
    pub fn of(permission: Permission) -> Self {
        let strict = [
            Permission::ApiKeysWrite,
            Permission::SecretsWrite,
            Permission::PluginsGrant,
            Permission::RolesAssign,
            Permission::RolesApprove,
            Permission::SecurityWrite,
            Permission::EncryptionRotate,
        ];
        if strict.contains(&permission) {
            Self::Strict
        } else if [Permission::AuditExport, Permission::ExportsCreate].contains(&permission) {
            Self::Export
        } else if permission == Permission::PluginsUpload {
            Self::Heavy
        } else if permission == Permission::OrgRead {
            Self::Relaxed
        } else {
            Self::Standard
        }
    }

    /// Tokens that one request takes.
    #[must_use]
    pub const fn cost(self) -> u32 {
        match self {
            Self::Heavy => 10,
            Self::Standard
            | Self::Relaxed
            | Self::Strict
            | Self::SignIn
            | Self::Export
            | Self::Starts
            | Self::Probe => 1,
        }
    }

    /// Whether a request has to stay limited when the database does not answer; others pass then.
    #[must_use]
    pub const fn is_sensitive(self) -> bool {
        match self {
            Self::Strict | Self::SignIn | Self::Export => true,
            Self::Standard | Self::Heavy | Self::Relaxed | Self::Starts | Self::Probe => false,
        }
    }

    /// The policy that a request falls under; none where it is limited elsewhere.
    #[must_use]
    pub const fn policy(self, asker: Asker) -> Option<Policy> {
        Some(match (self, asker) {
            (Self::Starts | Self::Probe, _) => return None,
            // Whoever names nobody is refused there before anything is done.
            (Self::Standard | Self::Heavy | Self::Strict | Self::Export, Asker::Address) => Policy::Anonymous,
            (Self::Standard | Self::Heavy, Asker::User) => Policy::User,
            (Self::Standard | Self::Heavy, Asker::Key) => Policy::Key,
            (Self::Relaxed, Asker::Address) => Policy::AnonymousRelaxed,
            (Self::Relaxed, Asker::User) => Policy::UserRelaxed,
            (Self::Relaxed, Asker::Key) => Policy::KeyRelaxed,
            (Self::SignIn, Asker::Address) => Policy::SignIn,
            (Self::Strict | Self::SignIn, Asker::User | Asker::Key) => Policy::Strict,
            (Self::Export, Asker::User | Asker::Key) => Policy::Export,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 2026-11-21T08:00:00Z.
    const START: i64 = 1_795_248_000_000_000;

    #[test]
    fn a_bucket_lets_a_burst_pass_and_then_the_rate() {
        let (rate, mut bucket) = (Rate::per_minute(60, 30), Bucket::FULL);
        assert_eq!((0..100).filter(|_| bucket.take(rate, 1, START).is_ok()).count(), 30);
        assert_eq!(bucket.take(rate, 1, START), Err(Duration::from_secs(1)));
        assert_eq!(bucket.take(rate, 5, START), Err(Duration::from_secs(5)));
        assert_eq!((bucket.left(rate, START), bucket.full_in(rate, START)), (0, Duration::from_secs(30)));
        assert!(bucket.take(rate, 1, START + MICROS - 1).is_err());
        assert!(bucket.take(rate, 1, START + MICROS).is_ok());
        // An hour brings a bucket's worth and no more.
        assert_eq!(bucket.left(rate, START + 3_600 * MICROS), 30);
    }

    #[test]
    fn what_costs_more_than_the_burst_takes_all_of_it() {
        let (rate, mut bucket) = (Rate::per_minute(60, 3), Bucket::FULL);
        assert!(bucket.take(rate, 10, START).is_ok());
        assert_eq!(bucket.left(rate, START), 0);
        bucket.give_back(rate, 10);
        assert_eq!(bucket.left(rate, START), 3);
    }

    /// Section e: clock skew.
    #[test]
    fn a_clock_that_is_set_back_leaves_a_bucket_empty_at_worst() {
        let (rate, mut bucket) = (Rate::per_minute(60, 30), Bucket::FULL);
        assert!(bucket.take(rate, 1, START).is_ok());
        let back = START - 86_400 * MICROS;
        assert_eq!(bucket.take(rate, 1, back), Err(Duration::from_secs(1)));
        assert_eq!(bucket.full_in(rate, back), Duration::from_secs(30));
    }

    #[test]
    fn every_class_has_a_limit_for_everybody_but_what_is_limited_elsewhere() {
        let limits = RateLimits::default();
        for class in RouteClass::ALL {
            assert_eq!(RouteClass::parse(class.as_str()), Some(*class));
            for asker in [Asker::Address, Asker::User, Asker::Key] {
                let rate = class.policy(asker).map(|policy| limits.rate(policy));
                let is_free = matches!(class, RouteClass::Starts | RouteClass::Probe);
                assert_eq!(rate.is_none(), is_free, "{class:?} {asker:?}");
                assert!(rate.is_none_or(Rate::is_allowed));
            }
        }
        for policy in Policy::ALL {
            assert_eq!(Policy::parse(policy.as_str()), Some(*policy));
        }
        assert_eq!(limits.rate(Policy::KeyRelaxed), Rate::per_minute(2_400, 400));
        assert!(!Rate::per_minute(0, 1).is_allowed() && !Rate::per_minute(1, 0).is_allowed());
        assert!(!Rate { quota: 1, window_s: 86_401, burst: 1 }.is_allowed());
    }

    #[test]
    fn what_gives_rights_or_takes_data_out_is_not_standard() {
        assert_eq!(RouteClass::of(Permission::ApiKeysWrite), RouteClass::Strict);
        assert_eq!(RouteClass::of(Permission::PluginsGrant), RouteClass::Strict);
        assert_eq!(RouteClass::of(Permission::AuditExport), RouteClass::Export);
        assert_eq!(RouteClass::of(Permission::RunsRead), RouteClass::Standard);
    }

    #[test]
    fn small_buckets_are_shared_token_by_token() {
        let share = Rate::per_minute(10, 10).share();
        assert_eq!((share.batch_max, share.full_micros), (1, Rate::per_minute(10, 10).full_micros()));
        let share = Rate::per_minute(600, 100).share();
        assert_eq!((share.batch_max, share.full_micros), (10, 9 * MICROS));
    }

    #[test]
    fn what_a_node_holds_ends_soon_and_is_half_of_what_it_is_asked_for() {
        let (share, mut held) = (Rate::per_minute(1_200, 200).share(), Held::default());
        assert!(!held.spend(1, START));
        assert_eq!(held.wanted(1, share), 1, "one that asks seldom takes one");
        for n in 1..30 {
            assert!(!held.spend(1, START + n));
        }
        assert_eq!(held.wanted(1, share), 15);
        held.keep(15, START + 30, START + 40);
        assert!(held.spend(1, START + 50));
        assert_eq!(held.left(START + 30 + HELD_MICROS - 1), 14);
        assert_eq!(held.left(START + 30 + HELD_MICROS), 0);
        assert_eq!(held.left(START - 1), 0, "nor before it was taken");
    }

    /// More than the burst and what comes back in any stretch of the time in which something passed.
    fn exceeds(rate: Rate, passed: &[(i64, u32)]) -> Option<(i64, i64, i64)> {
        for (n, (from, _)) in passed.iter().enumerate() {
            let mut cost = 0_i64;
            for (until, more) in &passed[n..] {
                cost += i64::from(*more);
                if cost * rate.token_micros() > rate.full_micros() + (until - from) {
                    return Some((*from, *until, cost));
                }
            }
        }
        None
    }

    proptest! {
        /// The reference model: tokens that come back one by one, counted.
        #[test]
        fn a_bucket_does_what_counting_tokens_does(
            quota in 1_u32..5_000, window_s in 1_u32..4_000, burst in 1_u32..200,
            steps in prop::collection::vec((0_i64..5_000_000, 1_u32..12), 1..300),
        ) {
            let rate = Rate { quota, window_s, burst };
            let (mut bucket, mut now, mut level, mut passed) = (Bucket::FULL, START, rate.full_micros(), Vec::new());
            for (pause, cost) in steps {
                now += pause;
                level = (level + pause).min(rate.full_micros());
                let price = i64::from(rate.cost(cost)) * rate.token_micros();
                let expected = level >= price;
                if expected {
                    level -= price;
                    passed.push((now, rate.cost(cost)));
                }
                let taken = bucket.take(rate, cost, now);
                prop_assert_eq!(taken.is_ok(), expected);
                if let Err(wait) = taken {
                    prop_assert_eq!(i64::try_from(wait.as_micros()).unwrap(), price - level);
                }
                prop_assert_eq!(i64::from(bucket.left(rate, now)), level / rate.token_micros());
            }
            prop_assert_eq!(exceeds(rate, &passed), None);
        }

        /// Nodes with clocks of their own, each with tokens that it took beforehand.
        #[test]
        fn nodes_together_never_let_more_pass(
            quota in 1_u32..5_000, window_s in 1_u32..120, burst in 1_u32..300,
            skews in prop::collection::vec(-3_600_000_000_i64..3_600_000_000, 1..6),
            steps in prop::collection::vec((0_usize..6, 0_i64..400_000, 1_u32..4), 1..400),
        ) {
            let rate = Rate { quota, window_s, burst };
            let (share, mut shared, mut now) = (rate.share(), Bucket::FULL, START);
            let mut nodes = vec![Held::default(); skews.len()];
            let mut passed = Vec::new();
            for (node, pause, cost) in steps {
                now += pause;
                let (node, cost) = (node % skews.len(), rate.cost(cost));
                let own = now + skews[node];
                let held = &mut nodes[node];
                let may = held.spend(cost, own) || {
                    let most = held.wanted(cost, share);
                    let taken = share.take(&mut shared, (cost, most), now);
                    if let Some(taken) = taken {
                        held.keep(taken - cost, own, own);
                    }
                    taken.is_some()
                };
                if may {
                    passed.push((now, cost));
                }
            }
            prop_assert_eq!(exceeds(rate, &passed), None);
        }
    }
}
