//! How long what has ended is kept, and what goes first when there is no more room.
//!
//! Only what has ended is ever removed: a run that is queued, running, waiting or paused stays, however old it is. A failed run that
//! waits on the list of dead letters stays until the policy names a time for those.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::run::RunStatus;
use crate::time::Timestamp;

/// The shortest and the longest time that a policy can name: a day, ten years.
pub const DAYS_MIN: u32 = 1;
pub const DAYS_MAX: u32 = 3_650;

/// A key that makes a start safe to repeat (`Idempotency-Key`, a sender's delivery id) is remembered for as long as its run is kept,
/// and at least for so long after the start. Source: GitHub delivers again for 3 days, Stripe tries for 3 days, and a person may
/// repeat a delivery by hand some days later.
pub const KEY_KEPT: Duration = Duration::from_hours(7 * 24);

/// Nothing that ended within this time is removed for the quota's sake: whoever still works on it (a call that ends late, a person
/// who looks) finds it.
pub const EVICTION_AGE_MIN: Duration = Duration::from_mins(10);

/// The pauses of the job that counts and removes: the shorter, the sooner the quota may be used up.
pub const LOOK_PAUSE_MIN: Duration = Duration::from_mins(1);
pub const LOOK_PAUSE_MAX: Duration = Duration::from_mins(15);
/// … where nothing ended since the last look.
pub const LOOK_PAUSE_IDLE: Duration = Duration::from_mins(30);

/// A run makes no further call once its trigger, its steps, its log and its calls take up so many bytes (256 MiB: two hundred calls of
/// the largest size): it ends as failed, with the code [`RUN_FULL`], and is not begun again.
pub const RUN_HISTORY_BYTES_MAX: i64 = 256 << 20;
/// The code of a run that ended so.
pub const RUN_FULL: &str = "run-history-full";

/// Runs of one organization that may sleep until a time; with more, none is started.
pub const SLEEPING_RUNS_MAX: u32 = 100_000;

/// When so many bytes of one organization's runs have ended on a node, the job looks at once (64 MiB).
pub const LOOK_AFTER_BYTES: i64 = 64 << 20;

/// What has ended is counted anew after this long, so that no mistake in counting lasts.
pub const RECOUNT_EVERY: Duration = Duration::from_hours(24);

/// Once over its quota, an organization's history is cut down to this many hundredths of it, so that the next run does not need
/// another cut.
const EVICT_DOWN_TO_PERCENT: i64 = 95;

/// Of what is kept, for how many days after it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionPolicy {
    /// Runs that succeeded or were cancelled, with their steps, their log and their calls.
    pub succeeded_days: u32,
    /// Runs that failed.
    pub failed_days: u32,
    /// Failed runs that wait on the list of dead letters. `None`: until somebody has seen to them.
    pub dead_letter_days: Option<u32>,
    /// Calls that were made by hand.
    pub calls_days: u32,
    /// Events: the facts that transactions told.
    pub events_days: u32,
}

impl Default for RetentionPolicy {
    fn default() -> Self {
        Self { succeeded_days: 30, failed_days: 90, dead_letter_days: Some(180), calls_days: 30, events_days: 30 }
    }
}

/// A time of a policy that is out of bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{days} days: 1 to 3650 are possible")]
pub struct DaysError {
    /// The policy's field.
    pub field: &'static str,
    pub days: u32,
}

/// What has ended, in classes that have a time of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A run, by how it ended.
    Run(EndedRun),
    /// A call by hand.
    Call,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedRun {
    Succeeded,
    Cancelled,
    Failed,
    /// Failed, and on the list of dead letters.
    DeadLetter,
}

impl EndedRun {
    pub const ALL: [Self; 4] = [Self::Succeeded, Self::Cancelled, Self::Failed, Self::DeadLetter];

    #[must_use]
    pub const fn status(self) -> RunStatus {
        match self {
            Self::Succeeded => RunStatus::Succeeded,
            Self::Cancelled => RunStatus::Cancelled,
            Self::Failed | Self::DeadLetter => RunStatus::Failed,
        }
    }

    #[must_use]
    pub const fn is_dead_letter(self) -> bool {
        matches!(self, Self::DeadLetter)
    }
}

impl Ended {
    pub const ALL: [Self; 5] = [
        Self::Run(EndedRun::Succeeded),
        Self::Run(EndedRun::Cancelled),
        Self::Run(EndedRun::Failed),
        Self::Run(EndedRun::DeadLetter),
        Self::Call,
    ];

    /// Whether it may go before its time, for the quota's sake: a dead letter waits for somebody.
    #[must_use]
    pub const fn may_make_room(self) -> bool {
        !matches!(self, Self::Run(EndedRun::DeadLetter))
    }
}

fn days_before(now: Timestamp, days: u32) -> Timestamp {
    now.minus(Duration::from_hours(24 * u64::from(days)))
}

impl RetentionPolicy {
    /// Checks each time against its bounds.
    ///
    /// # Errors
    /// Each one that is out of them.
    pub fn check(&self) -> Result<(), Vec<DaysError>> {
        let fields = [
            ("succeeded_days", Some(self.succeeded_days)),
            ("failed_days", Some(self.failed_days)),
            ("dead_letter_days", self.dead_letter_days),
            ("calls_days", Some(self.calls_days)),
            ("events_days", Some(self.events_days)),
        ];
        let wrong: Vec<DaysError> = fields
            .into_iter()
            .filter_map(|(field, days)| days.map(|days| DaysError { field, days }))
            .filter(|error| !(DAYS_MIN..=DAYS_MAX).contains(&error.days))
            .collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// What ended before this moment may go.
    #[must_use]
    pub fn ended_before(&self, what: Ended, now: Timestamp) -> Timestamp {
        let days = match what {
            Ended::Run(EndedRun::Succeeded | EndedRun::Cancelled) => self.succeeded_days,
            Ended::Run(EndedRun::Failed) => self.failed_days,
            Ended::Run(EndedRun::DeadLetter) => {
                return self.dead_letters_before(now).unwrap_or(Timestamp::from_micros(0));
            }
            Ended::Call => self.calls_days,
        };
        days_before(now, days)
    }

    /// Failed runs on the dead-letter list that ended before this moment may go; `None`: none of them.
    #[must_use]
    pub fn dead_letters_before(&self, now: Timestamp) -> Option<Timestamp> {
        self.dead_letter_days.map(|days| days_before(now, days))
    }

    /// Events from before this moment may go.
    #[must_use]
    pub fn events_before(&self, now: Timestamp) -> Timestamp {
        days_before(now, self.events_days)
    }
}

/// Until when the key of a run that started at `started_at` must be remembered.
#[must_use]
pub fn key_kept_until(started_at: Timestamp) -> Timestamp {
    started_at.plus(KEY_KEPT)
}

/// Bytes that must go before their time, for a history of `bytes` under a quota of `bytes_max`. Zero within it, unless a cut is under
/// way (`cutting`): that ends a little below the quota, in however many batches.
#[must_use]
pub fn excess(bytes: i64, bytes_max: i64, cutting: bool) -> i64 {
    if bytes <= bytes_max && !cutting {
        return 0;
    }
    let wanted = bytes_max / 100 * EVICT_DOWN_TO_PERCENT + bytes_max % 100 * EVICT_DOWN_TO_PERCENT / 100;
    bytes.saturating_sub(wanted).max(0)
}

/// How the history grew between two looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    pub bytes: i64,
    pub within: Duration,
}

/// When to look again: at a quarter of the time that is left until the quota is used up, if the history goes on growing as it did.
#[must_use]
pub fn look_pause(growth: Growth, bytes: i64, bytes_max: i64) -> Duration {
    let left = bytes_max.saturating_sub(bytes);
    if left <= 0 {
        return LOOK_PAUSE_MIN;
    }
    if growth.bytes <= 0 {
        return LOOK_PAUSE_IDLE;
    }
    let within_ms = growth.within.as_millis().max(1);
    let left_ms = within_ms.saturating_mul(left.unsigned_abs().into()) / u128::from(growth.bytes.unsigned_abs());
    let pause = Duration::from_millis(u64::try_from(left_ms / 4).unwrap_or(u64::MAX));
    pause.clamp(LOOK_PAUSE_MIN, LOOK_PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_hours(24);

    #[test]
    fn a_policy_keeps_within_its_bounds() {
        assert_eq!(RetentionPolicy::default().check(), Ok(()));
        let policy = RetentionPolicy {
            succeeded_days: 0,
            failed_days: 3_651,
            dead_letter_days: Some(0),
            ..RetentionPolicy::default()
        };
        let fields: Vec<_> = policy.check().unwrap_err().into_iter().map(|error| (error.field, error.days)).collect();
        assert_eq!(fields, [("succeeded_days", 0), ("failed_days", 3_651), ("dead_letter_days", 0)]);
    }

    #[test]
    fn each_class_has_its_time() {
        let policy = RetentionPolicy {
            succeeded_days: 1,
            failed_days: 2,
            dead_letter_days: Some(3),
            calls_days: 4,
            events_days: 5,
        };
        let now = Timestamp::from_micros(1_795_000_000_000_000);
        let age = |before: Timestamp| now.since(before);
        assert_eq!(age(policy.ended_before(Ended::Run(EndedRun::Succeeded), now)), DAY);
        assert_eq!(age(policy.ended_before(Ended::Run(EndedRun::Cancelled), now)), DAY);
        assert_eq!(age(policy.ended_before(Ended::Run(EndedRun::Failed), now)), 2 * DAY);
        assert_eq!(policy.dead_letters_before(now).map(age), Some(3 * DAY));
        assert_eq!(age(policy.ended_before(Ended::Run(EndedRun::DeadLetter), now)), 3 * DAY);
        assert_eq!(age(policy.ended_before(Ended::Call, now)), 4 * DAY);
        assert_eq!(age(policy.events_before(now)), 5 * DAY);
        let kept = RetentionPolicy { dead_letter_days: None, ..RetentionPolicy::default() };
        assert_eq!(kept.dead_letters_before(now), None);
        assert_eq!(kept.ended_before(Ended::Run(EndedRun::DeadLetter), now), Timestamp::from_micros(0));
        assert!(Ended::ALL.iter().all(|ended| ended.may_make_room() != (*ended == Ended::Run(EndedRun::DeadLetter))));
    }

    #[test]
    fn every_final_status_is_a_class_and_no_other_is() {
        let classes: Vec<RunStatus> = EndedRun::ALL.iter().map(|ended| ended.status()).collect();
        for status in RunStatus::ALL {
            assert_eq!(classes.contains(status), status.is_final(), "{status:?}");
        }
    }

    #[test]
    fn the_pause_is_short_where_the_quota_is_near() {
        let growth = |bytes| Growth { bytes, within: Duration::from_mins(10) };
        assert_eq!(look_pause(growth(0), 0, 1_000), LOOK_PAUSE_IDLE);
        assert_eq!(look_pause(growth(0), 1_000, 1_000), LOOK_PAUSE_MIN);
        assert_eq!(look_pause(growth(100), 800, 1_000), Duration::from_mins(5), "full in 20 minutes");
        assert_eq!(look_pause(growth(100), 990, 1_000), LOOK_PAUSE_MIN);
        assert_eq!(look_pause(growth(1), 0, 1_000_000), LOOK_PAUSE_MAX);
    }

    proptest! {
        #[test]
        fn a_cut_ends_a_little_below_the_quota(bytes in 0_i64..1 << 50, bytes_max in 0_i64..1 << 50) {
            let cut = excess(bytes, bytes_max, false);
            prop_assert!(cut >= 0 && cut <= bytes);
            prop_assert_eq!(cut > 0, bytes > bytes_max);
            prop_assert!(bytes - cut <= bytes_max);
            if cut > 0 {
                prop_assert!((bytes - cut) >= bytes_max / 100 * 95);
            }
        }

        #[test]
        fn a_cut_in_parts_ends_where_a_cut_at_once_does(
            bytes in 1_i64..1 << 50, bytes_max in 0_i64..1 << 50, part in 1_i64..1 << 50,
        ) {
            let cut = excess(bytes, bytes_max, false);
            prop_assume!(cut > 0);
            let gone = part.min(cut);
            prop_assert_eq!(excess(bytes - gone, bytes_max, true), cut - gone);
            prop_assert_eq!(excess(bytes - cut, bytes_max, true), 0);
        }

        #[test]
        fn pauses_stay_within_their_bounds(grown: i64, within_ms: u64, bytes: i64, bytes_max: i64) {
            let growth = Growth { bytes: grown, within: Duration::from_millis(within_ms) };
            let pause = look_pause(growth, bytes, bytes_max);
            prop_assert!(pause >= LOOK_PAUSE_MIN && pause <= LOOK_PAUSE_IDLE);
        }
    }
}
