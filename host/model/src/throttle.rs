//! How fast somebody may guess: one rule for every factor and every path, at the start of a flow as at the redemption of what it handed
//! out.
//!
//! An attempt is counted as a failure *before* its secret is looked at and given back when it was right, so that many at once pass no
//! more often than one after another. One that has to wait is not counted: it cannot lengthen the wait of others.
//!
//! Whoever comes from a device that the person signed in with before is counted by that device, whoever is signed in by that session, and by
//! nothing else; everybody else by the name that they gave and by their address: a stranger's failures never delay the owner.

use std::time::Duration;

use crate::time::Timestamp;

/// What is tried. Each has counters of its own, so that a wrong code costs no password attempt and the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Guarded {
    Password,
    /// A one-time code: authenticator app, mail.
    Code,
    BackupCode,
    /// An answer to a challenge. Nobody guesses one; whoever tries is slowed down all the same.
    Passkey,
    /// A link that was mailed or printed.
    Link,
    /// Asking for a letter.
    Mail,
}

impl Guarded {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Code => "code",
            Self::BackupCode => "backup-code",
            Self::Passkey => "passkey",
            Self::Link => "link",
            Self::Mail => "mail",
        }
    }
}

/// By what attempts are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CountedBy {
    /// The name given, whether anybody has it or not.
    Identifier,
    /// A device that this person signed in with before, or a session of theirs.
    Device,
    /// The client's network address.
    Address,
}

impl CountedBy {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Identifier => "identifier",
            Self::Device => "device",
            Self::Address => "address",
        }
    }
}

/// How long to wait after how many failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pace {
    /// The failure after which there is a first wait, of `first`; each further one doubles it.
    from: u32,
    first: Duration,
    longest: Duration,
    /// Without a failure for so long, everything is forgotten.
    forget: Duration,
}

const HOUR: Duration = Duration::from_hours(1);
const QUARTER: Duration = Duration::from_mins(15);

/// Source: NIST SP 800-63B-4 §3.2.2 allows at most 100 consecutive failures; at a quarter of an hour each, one that begins from the fifth
/// makes fewer than that in a day. From the fifth failure: reference/core-services.md, section a.3.
const fn pace(guarded: Guarded, by: CountedBy) -> Pace {
    match (guarded, by) {
        (
            Guarded::Password | Guarded::Code | Guarded::BackupCode | Guarded::Passkey | Guarded::Link,
            CountedBy::Identifier | CountedBy::Device,
        ) => Pace { from: 5, first: Duration::from_secs(1), longest: QUARTER, forget: Duration::from_hours(24) },
        // An office is one address.
        (
            Guarded::Password | Guarded::Code | Guarded::BackupCode | Guarded::Passkey | Guarded::Link,
            CountedBy::Address,
        ) => Pace { from: 30, first: Duration::from_secs(1), longest: QUARTER, forget: HOUR },
        // Nothing is guessed, but somebody's mailbox fills: three, and then one in twenty minutes at most.
        (Guarded::Mail, CountedBy::Identifier | CountedBy::Device) => {
            Pace { from: 3, first: Duration::from_mins(20), longest: HOUR, forget: HOUR }
        }
        (Guarded::Mail, CountedBy::Address) => {
            // Longer to forget than the longest wait, or each hour would begin afresh.
            Pace {
                from: 20,
                first: Duration::from_mins(1),
                longest: Duration::from_mins(30),
                forget: Duration::from_hours(6),
            }
        }
    }
}

/// A counter as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failures {
    pub count: u32,
    pub last_at: Timestamp,
}

impl Failures {
    pub const NONE: Self = Self { count: 0, last_at: Timestamp::from_micros(0) };

    /// With the attempt that is about to be made.
    #[must_use]
    pub fn and_one(self, guarded: Guarded, by: CountedBy, now: Timestamp) -> Self {
        let before = if now.since(self.last_at) >= pace(guarded, by).forget { 0 } else { self.count };
        Self { count: before.saturating_add(1), last_at: now }
    }

    /// Without the attempt that turned out right, where the counter is shared with others.
    #[must_use]
    pub fn less_one(self) -> Self {
        Self { count: self.count.saturating_sub(1), ..self }
    }

    /// How long after the last failure the next attempt may be made.
    #[must_use]
    pub fn pause(self, guarded: Guarded, by: CountedBy) -> Duration {
        let Pace { from, first, longest, .. } = pace(guarded, by);
        let Some(further) = self.count.checked_sub(from) else { return Duration::ZERO };
        let factor = 1_u32.checked_shl(further).unwrap_or(u32::MAX);
        first.saturating_mul(factor).min(longest)
    }

    /// How long the next attempt has to wait from now on. Never longer than the pause itself: a failure of the future is one of a clock that
    /// was put right since, or of another node's.
    #[must_use]
    pub fn wait(self, guarded: Guarded, by: CountedBy, now: Timestamp) -> Duration {
        let pause = self.pause(guarded, by);
        self.last_at.plus(pause).since(now).min(pause)
    }
}

/// **The** decision: how long the next attempt has to wait, given each counter that it falls under; `None` when it may be made.
#[must_use]
pub fn wait(guarded: Guarded, counters: &[(CountedBy, Failures)], now: Timestamp) -> Option<Duration> {
    counters.iter().map(|(by, failures)| failures.wait(guarded, *by, now)).max().filter(|wait| !wait.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: Timestamp = Timestamp::from_micros(1_795_248_000_000_000);

    /// Failures one after another, each as soon as it may be made; how long each had to wait, in seconds.
    fn waits(guarded: Guarded, by: CountedBy, attempts: usize) -> Vec<u64> {
        let (mut now, mut failures, mut waits) = (START, Failures::NONE, Vec::new());
        for _ in 0..attempts {
            let pause = wait(guarded, &[(by, failures)], now).unwrap_or_default();
            waits.push(pause.as_secs());
            now = now.plus(pause);
            failures = failures.and_one(guarded, by, now);
        }
        waits
    }

    #[test]
    fn the_wait_begins_with_the_fifth_failure_and_ends_at_a_quarter_of_an_hour() {
        let waited = waits(Guarded::Password, CountedBy::Identifier, 20);
        assert_eq!(waited[..8], [0, 0, 0, 0, 0, 1, 2, 4]);
        assert_eq!(waited[14..], [512, 900, 900, 900, 900, 900]);
    }

    /// Zitadel CVE-2024-32868: a factor without a limit of its own.
    #[test]
    fn every_factor_and_every_counter_has_a_limit() {
        for guarded in
            [Guarded::Password, Guarded::Code, Guarded::BackupCode, Guarded::Passkey, Guarded::Link, Guarded::Mail]
        {
            for by in [CountedBy::Identifier, CountedBy::Device, CountedBy::Address] {
                let in_a_day = {
                    let (mut now, mut failures, mut made) = (START, Failures::NONE, 0);
                    while now < START.plus(Duration::from_hours(24)) {
                        now = now.plus(wait(guarded, &[(by, failures)], now).unwrap_or_default());
                        failures = failures.and_one(guarded, by, now);
                        made += 1;
                    }
                    made
                };
                assert!(in_a_day <= 150, "{guarded:?} by {by:?}: {in_a_day} attempts in a day");
            }
        }
    }

    #[test]
    fn a_device_that_is_known_does_not_wait_for_what_strangers_did() {
        let strangers = Failures { count: 1_000, last_at: START };
        assert!(wait(Guarded::Password, &[(CountedBy::Identifier, strangers)], START).is_some());
        assert_eq!(wait(Guarded::Password, &[(CountedBy::Device, Failures::NONE)], START), None);
    }

    #[test]
    fn the_longest_of_the_waits_counts() {
        let by_name = Failures { count: 6, last_at: START };
        let by_address = Failures { count: 36, last_at: START };
        let both = [(CountedBy::Identifier, by_name), (CountedBy::Address, by_address)];
        assert_eq!(wait(Guarded::Password, &both, START), Some(Duration::from_secs(64)));
    }

    proptest! {
        #[test]
        fn more_failures_never_wait_less(count in 0_u32..2_000) {
            let wait = |count| Failures { count, last_at: START }.wait(Guarded::Password, CountedBy::Identifier, START);
            prop_assert!(wait(count) <= wait(count + 1));
            prop_assert!(wait(count) <= QUARTER);
        }

        /// A clock that was put right, or another node's that is ahead, locks nobody out.
        #[test]
        fn a_failure_of_the_future_waits_no_longer_than_one_of_now(count in 0_u32..2_000, ahead_s in 0_u64..1_000_000) {
            let failures = |last_at| [(CountedBy::Address, Failures { count, last_at })];
            let ahead = START.plus(Duration::from_secs(ahead_s));
            prop_assert_eq!(
                wait(Guarded::Password, &failures(ahead), START),
                wait(Guarded::Password, &failures(START), START)
            );
        }

        #[test]
        fn a_quiet_day_forgets(count in 0_u32..2_000) {
            let later = START.plus(Duration::from_hours(24));
            let next = Failures { count, last_at: START }.and_one(Guarded::Password, CountedBy::Device, later);
            prop_assert_eq!(next.count, 1);
        }
    }
}
