//! A role for some hours: asked for with a reason, let by somebody else, ended by the clock.

use std::time::Duration;

use super::assignment::Window;
use crate::id::UserId;
use crate::time::Timestamp;

/// How long an activation lasts when nobody says. Source: identity.md.
pub const DURATION_DEFAULT: Duration = Duration::from_hours(4);
/// … at least,
pub const DURATION_MIN: Duration = Duration::from_mins(5);
/// … and at most. Source: identity.md.
pub const DURATION_MAX: Duration = Duration::from_hours(8);
/// A request that nobody answers is over after this time.
pub const REQUEST_LIVES: Duration = Duration::from_hours(24);
/// Characters of a reason.
pub const REASON_LEN_MIN: usize = 10;
pub const REASON_LEN_MAX: usize = 500;
/// Requests of one member that may wait at once.
pub const WAITING_MAX: u64 = 5;

/// Where a request stands, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestState {
    Waiting,
    Approved,
    Refused,
    /// By the one who asked.
    Withdrawn,
}

impl RequestState {
    pub const ALL: [Self; 4] = [Self::Waiting, Self::Approved, Self::Refused, Self::Withdrawn];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Approved => "approved",
            Self::Refused => "refused",
            Self::Withdrawn => "withdrawn",
        }
    }

    #[must_use]
    pub fn from_name(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// What may be done with a request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Approve,
    Refuse,
    Withdraw,
}

/// Why a request cannot be made or answered so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("say in {REASON_LEN_MIN} to {REASON_LEN_MAX} characters what the role is needed for")]
    Reason,
    #[error("a role is asked for for 5 minutes to 8 hours")]
    Duration,
    #[error("it has been answered already")]
    Answered,
    /// Nobody answered it within [`REQUEST_LIVES`].
    #[error("nobody answered it within a day: ask again")]
    Lapsed,
    #[error("somebody else has to answer it")]
    OwnRequest,
    #[error("only the one who asked can withdraw it")]
    NotOwnRequest,
}

/// Checks what a request says. The reason is counted without the space around it.
///
/// # Errors
/// [`RequestError::Reason`], [`RequestError::Duration`].
pub fn check_request(reason: &str, duration: Duration) -> Result<(), RequestError> {
    if !(REASON_LEN_MIN..=REASON_LEN_MAX).contains(&reason.trim().chars().count()) {
        return Err(RequestError::Reason);
    }
    if !(DURATION_MIN..=DURATION_MAX).contains(&duration) {
        return Err(RequestError::Duration);
    }
    Ok(())
}

/// A request, as far as the rules look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub asked_by: UserId,
    pub asked_at: Timestamp,
    pub duration: Duration,
    pub state: RequestState,
}

impl Request {
    /// Whether it can still be answered.
    #[must_use]
    pub fn is_open(&self, now: Timestamp) -> bool {
        match self.state {
            RequestState::Waiting => now < self.asked_at.plus(REQUEST_LIVES),
            RequestState::Approved | RequestState::Refused | RequestState::Withdrawn => false,
        }
    }

    /// What it becomes when `by` answers it now.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn answer(&self, answer: Answer, by: UserId, now: Timestamp) -> Result<RequestState, RequestError> {
        if self.state != RequestState::Waiting {
            return Err(RequestError::Answered);
        }
        if !self.is_open(now) {
            return Err(RequestError::Lapsed);
        }
        match (answer, by == self.asked_by) {
            (Answer::Approve | Answer::Refuse, true) => Err(RequestError::OwnRequest),
            (Answer::Withdraw, false) => Err(RequestError::NotOwnRequest),
            (Answer::Approve, false) => Ok(RequestState::Approved),
            (Answer::Refuse, false) => Ok(RequestState::Refused),
            (Answer::Withdraw, true) => Ok(RequestState::Withdrawn),
        }
    }

    /// From when until when the role is had if it is let now.
    #[must_use]
    pub fn window(&self, now: Timestamp) -> Window {
        Window { from: Some(now), until: Some(now.plus(self.duration)) }
    }
}
