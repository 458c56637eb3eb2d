//! When a `schedule` trigger fires: cron ticks in a time zone, what becomes of missed ones, and the spread between
//! organizations. No clock: every moment is passed in.
//!
//! A **tick** is the moment that the cron expression names. It *fires* at the tick plus the workflow's own offset within
//! `spread_s`; the offset delays every tick alike, so it never changes which ticks there are.
//!
//! ## When the clocks change
//! The rule is Vixie cron's (`cron(8)`, "local time changes of less than three hours"):
//!
//! | | minute and hour without `*` | with `*` in the minute or the hour |
//! | --- | --- | --- |
//! | times that a clock going forward leaves out | one tick, right after | no tick |
//! | times that a clock going back repeats | one tick, at the first of the two | a tick at both |

use std::collections::VecDeque;
use std::time::Duration;

use chrono::{
    DateTime, Datelike, LocalResult, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeDelta, TimeZone, Timelike,
};
use chrono_tz::{GapInfo, Tz};
use croner::CronPattern;
use croner::parser::{CronParser, Year};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::id::{OrgId, WorkflowId};
use crate::time::Timestamp;

/// Bytes of a cron expression; every minute of an hour written out takes 169.
pub const CRON_BYTES_MAX: usize = 250;
/// The widest spread: an hour.
pub const SPREAD_MAX_S: u32 = 3600;
/// Missed ticks that `all` makes up for at once, at most and unless said otherwise.
pub const MISFIRE_MAX: u32 = 100;
/// A tick that fires so much later or more was missed, and the misfire policy decides. Below it a busy queue or a quick restart
/// goes unnoticed. It is the shortest distance between two ticks, so at most one of several overdue ones is in time.
pub const MISFIRE_GRACE: Duration = Duration::from_mins(1);
/// Ticks that one round of [`Schedule::settle`] counts: two weeks of minutes.
const ROUND_TICKS_MAX: u64 = 20_000;
/// How far ahead a tick is looked for: 50 years. The rarest that ever comes, 29 February on a given weekday around a year
/// like 2100, comes after 40.
const HORIZON_DAYS: u32 = 50 * 366;
/// Where the check at save begins to look for a tick; with the horizon it leads past 2100. 2026-01-01T00:00:00Z.
const CHECKED_FROM: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);
/// `UTC` for definitions that name no zone.
pub const ZONE_DEFAULT: &str = "UTC";

/// What becomes of ticks that could not fire at their time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Misfire {
    /// Nothing: the next tick is the next firing.
    Skip,
    /// However many were missed, one firing, for the newest.
    #[default]
    Once,
    /// A firing for each, the newest `misfire_max` of them.
    All,
}

impl Misfire {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Once => "once",
            Self::All => "all",
        }
    }
}

/// A schedule that cannot be. The message says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error("{0}")]
    Cron(String),
    #[error(
        "a schedule fires at most once a minute: give five fields, or write the seconds (the first of six) as one number"
    )]
    TooFrequent,
    #[error("no day, or no time of day in this zone, is ever like this: the schedule would never fire")]
    NeverFires,
    #[error("{0:?} is no time zone: give a name of the IANA database such as `Europe/Berlin`, or `UTC`")]
    Zone(String),
}

/// The ticks: a cron expression read in a time zone.
#[derive(Clone, Debug)]
pub struct Ticks {
    cron: String,
    zone: Tz,
    days: CronPattern,
    /// Times of day, sorted: hours, minutes, and the second.
    hours: Vec<u32>,
    minutes: Vec<u32>,
    second: u32,
    /// Neither minute nor hour has a `*`: the job is one of fixed times of day when clocks change.
    fixed: bool,
}

impl Ticks {
    /// Reads five fields (minute, hour, day of month, month, weekday) or six (with the second first), or `@hourly`, `@daily`,
    /// `@weekly`, `@monthly`, `@yearly`.
    ///
    /// # Errors
    /// Says what is wrong and what to write instead.
    pub fn parse(cron: &str, zone: &str) -> Result<Self, ScheduleError> {
        let zone: Tz = zone.parse().map_err(|_| ScheduleError::Zone(zone.chars().take(64).collect()))?;
        if cron.len() > CRON_BYTES_MAX {
            return Err(ScheduleError::Cron(format!("a cron expression has at most {CRON_BYTES_MAX} bytes")));
        }
        let parser = CronParser::builder().year(Year::Disallowed).build();
        let pattern = parser.parse(cron).map_err(|error| {
            ScheduleError::Cron(format!(
                "{cron:?} is no cron expression ({error}): write minute, hour, day of month, month and weekday, with the \
                 second before them if there are six, such as `30 2 * * MON-FRI`"
            ))
        })?;
        let days = pattern.pattern;
        let of = |part: &croner::CronComponent| part.values().into_iter().map(u32::from).collect::<Vec<_>>();
        let (hours, minutes, seconds) = (of(&days.hours), of(&days.minutes), of(&days.seconds));
        let [second] = seconds[..] else {
            return Err(if seconds.is_empty() { ScheduleError::NeverFires } else { ScheduleError::TooFrequent });
        };
        let fixed = !days.hours.from_wildcard && !days.minutes.from_wildcard;
        let ticks = Self { cron: cron.to_owned(), zone, days, hours, minutes, second, fixed };
        if ticks.next_after(CHECKED_FROM).is_none() {
            return Err(ScheduleError::NeverFires);
        }
        Ok(ticks)
    }

    /// As it was written.
    #[must_use]
    pub fn cron(&self) -> &str {
        &self.cron
    }

    /// The zone's name in the IANA database.
    #[must_use]
    pub fn zone(&self) -> &'static str {
        self.zone.name()
    }

    /// The first tick after a moment; `None` when there is none within 50 years (or the calendar ends).
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let after_s = after.as_micros().div_euclid(1_000_000);
        let next_s = if self.fixed { self.next_fixed(after_s) } else { self.next_interval(after_s) }?;
        Some(Timestamp::from_micros(next_s.checked_mul(1_000_000)?))
    }

    /// Every wall clock time has one moment here: the first of two, and the end of the gap for one that was left out. That
    /// order is the wall clock's own, so the first time that leads past `after` is the answer.
    fn next_fixed(&self, after_s: i64) -> Option<i64> {
        let from = self.wall_clock(after_s)?;
        self.walls(from.checked_add_signed(TimeDelta::seconds(1))?).find_map(|wall| {
            let moment = match self.zone.from_local_datetime(&wall) {
                LocalResult::Single(moment) => Some(moment.timestamp()),
                LocalResult::Ambiguous(one, other) => Some(one.timestamp().min(other.timestamp())),
                LocalResult::None => GapInfo::new(&wall, &self.zone)?.end.map(|end| end.timestamp()),
            };
            moment.filter(|moment| *moment > after_s)
        })
    }

    /// Every moment whose wall clock time fits. Wall clock times after the present one come in order; those that the clock is
    /// yet to repeat lie before the present one and are looked for apart.
    fn next_interval(&self, after_s: i64) -> Option<i64> {
        let from = self.wall_clock(after_s)?;
        let moments = |wall: NaiveDateTime| match self.zone.from_local_datetime(&wall) {
            LocalResult::Single(moment) => [Some(moment.timestamp()), None],
            LocalResult::Ambiguous(one, other) => [Some(one.timestamp()), Some(other.timestamp())],
            LocalResult::None => [None, None],
        };
        let first = |wall: NaiveDateTime| moments(wall).into_iter().flatten().filter(|moment| *moment > after_s).min();
        let ahead = self.walls(from.checked_add_signed(TimeDelta::seconds(1))?).find_map(first);
        let repeated = self.repetition_begins(after_s).and_then(|wall| self.walls(wall).find_map(first));
        ahead.into_iter().chain(repeated).min()
    }

    /// For a moment whose wall clock time comes a second time: the wall clock time at which the repetition begins.
    fn repetition_begins(&self, at_s: i64) -> Option<NaiveDateTime> {
        let wall = self.wall_clock(at_s)?;
        let LocalResult::Ambiguous(one, other) = self.zone.from_local_datetime(&wall) else { return None };
        let (first, second) = (one.timestamp().min(other.timestamp()), one.timestamp().max(other.timestamp()));
        if at_s >= second {
            return None;
        }
        // The clock goes back once in between: the first second with the later offset.
        let (mut before, mut from) = (first, second);
        let later = self.offset_s(second)?;
        while from - before > 1 {
            let middle = before + (from - before) / 2;
            if self.offset_s(middle)? == later {
                from = middle;
            } else {
                before = middle;
            }
        }
        self.wall_clock(from)
    }

    fn offset_s(&self, at_s: i64) -> Option<i32> {
        let moment = DateTime::from_timestamp(at_s, 0)?;
        Some(self.zone.offset_from_utc_datetime(&moment.naive_utc()).fix().local_minus_utc())
    }

    fn wall_clock(&self, at_s: i64) -> Option<NaiveDateTime> {
        let moment = DateTime::from_timestamp(at_s, 0)?.naive_utc();
        let offset = self.zone.offset_from_utc_datetime(&moment).fix();
        moment.checked_add_offset(offset)
    }

    /// The wall clock times that the expression names, from `from` (included) to the horizon, in order.
    fn walls(&self, from: NaiveDateTime) -> impl Iterator<Item = NaiveDateTime> {
        from.date()
            .iter_days()
            .take(HORIZON_DAYS as usize)
            .filter(|day| self.is_day(*day))
            .flat_map(move |day| {
                let hour_min = if day == from.date() { from.hour() } else { 0 };
                self.times(hour_min).map(move |time| day.and_time(time))
            })
            .skip_while(move |wall| *wall < from)
    }

    /// The times of day in order, those of earlier hours left out.
    fn times(&self, hour_min: u32) -> impl Iterator<Item = NaiveTime> {
        let hours = &self.hours[self.hours.partition_point(|hour| *hour < hour_min)..];
        hours.iter().flat_map(move |hour| {
            self.minutes.iter().filter_map(move |minute| NaiveTime::from_hms_opt(*hour, *minute, self.second))
        })
    }

    fn is_day(&self, day: NaiveDate) -> bool {
        let weekday = croner::Weekday::from_days_from_sunday(day.weekday().num_days_from_sunday());
        self.days.month_match(day.month()).unwrap_or(false)
            && self.days.day_match(day.year(), day.month(), day.day(), weekday).unwrap_or(false)
    }

    /// A moment as the zone's clocks show it: `2026-11-21T02:00:00+01:00`.
    #[must_use]
    pub fn local_text(&self, at: Timestamp) -> String {
        let local = at.to_chrono().with_timezone(&self.zone);
        local.to_rfc3339_opts(chrono::SecondsFormat::Secs, false)
    }
}

/// A `schedule` trigger's rule.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub ticks: Ticks,
    pub misfire: Misfire,
    /// Missed ticks that `all` makes up for at once, 1 to [`MISFIRE_MAX`].
    pub misfire_max: u32,
    /// Ticks fire within so many seconds, 0 to [`SPREAD_MAX_S`].
    pub spread_s: u32,
}

/// A tick that fires now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Firing {
    pub tick: Timestamp,
    /// It fires [`MISFIRE_GRACE`] or more after its time.
    pub late: bool,
}

/// What is to be done about the ticks whose time has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// Oldest first.
    pub fire: Vec<Firing>,
    /// Ticks that never fire.
    pub missed: u64,
    /// The newest tick that was decided about.
    pub last: Option<Timestamp>,
    /// The first tick that is left. It may be due as well when more had piled up than one round counts.
    pub next: Option<Timestamp>,
}

impl Schedule {
    /// What identifies the ticks: while it stays the same, a new version of the workflow goes on where the old one was.
    #[must_use]
    pub fn rule(&self) -> String {
        format!("{} {}", self.ticks.zone(), self.ticks.cron())
    }

    /// How long after its ticks this trigger fires: below `spread_s`, always the same, and evenly spread over organizations,
    /// workflows and triggers. In whole milliseconds.
    #[must_use]
    pub fn offset(&self, org: OrgId, workflow: WorkflowId, trigger: &str) -> Duration {
        let width_ms = u64::from(self.spread_s) * 1000;
        if width_ms == 0 {
            return Duration::ZERO;
        }
        let mut hasher = Sha256::new();
        hasher.update(org.uuid().as_bytes());
        hasher.update(workflow.uuid().as_bytes());
        hasher.update(trigger.as_bytes());
        let digest: [u8; 32] = hasher.finalize().into();
        let (head, _) = digest.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
        Duration::from_millis(u64::from_be_bytes(*head) % width_ms)
    }

    /// Decides about the ticks from `first` (the first that was not settled yet) on which are due at `now`, under the misfire
    /// policy. Ticks fire `offset` after their time.
    #[must_use]
    pub fn settle(&self, first: Timestamp, offset: Duration, now: Timestamp) -> Settlement {
        let until = now.minus(offset);
        let keep = match self.misfire {
            Misfire::Skip | Misfire::Once => 1,
            Misfire::All => self.misfire_max.clamp(1, MISFIRE_MAX) as usize,
        };
        let mut newest = VecDeque::with_capacity(keep + 1);
        let (mut counted, mut dropped, mut next) = (0_u64, None, Some(first));
        while let Some(tick) = next.filter(|tick| *tick <= until) {
            if counted == ROUND_TICKS_MAX {
                // The newest are yet to come, so what was kept is put back: the next round decides.
                let (missed, next) = (counted - newest.len() as u64, newest.front().copied());
                return Settlement { fire: Vec::new(), missed, last: dropped, next };
            }
            counted += 1;
            newest.push_back(tick);
            if newest.len() > keep {
                dropped = newest.pop_front();
            }
            next = self.ticks.next_after(tick);
        }
        let last = newest.back().copied();
        let is_late = |tick: Timestamp| until.since(tick) >= MISFIRE_GRACE;
        let fire: Vec<Firing> = newest
            .into_iter()
            .map(|tick| Firing { tick, late: is_late(tick) })
            .filter(|firing| !firing.late || self.misfire != Misfire::Skip)
            .collect();
        Settlement { missed: counted - fire.len() as u64, fire, last, next }
    }
}

#[cfg(test)]
mod tests;
