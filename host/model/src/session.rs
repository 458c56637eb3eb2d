//! A person's session: an opaque token in a cookie, of which only the SHA-256 is stored. How long it lives is in its row and judged at
//! each use; the cookie's own expiry means nothing.

use std::time::Duration;

use crate::ambient::Ambient;
use crate::time::Timestamp;
use crate::token::SecretHash;

/// How long a session may be used.
///
/// Source: NIST SP 800-63B-4, AAL2 (at most 24 h overall, 1 h without use), made narrower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// From the sign-in to the end, whatever happens.
    pub overall: Duration,
    /// Without a request.
    pub idle: Duration,
}

impl SessionLimits {
    /// People who only work in organizations.
    pub const MEMBER: Self = Self { overall: Duration::from_hours(12), idle: Duration::from_mins(30) };
    /// People who administer one, or the platform.
    pub const ADMIN: Self = Self { overall: Duration::from_hours(8), idle: Duration::from_mins(15) };
}

/// A use within this time of the last one that was written down is not written down.
pub const SEEN_EVERY: Duration = Duration::from_mins(1);
/// How long after somebody proved who they are they may change credentials, give roles and the like.
pub const STEP_UP_WINDOW: Duration = Duration::from_mins(10);

/// When a session was begun and used, as its row has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionTimes {
    /// When the person last proved who they are with every factor that was asked for.
    pub auth_at: Timestamp,
    pub expires_at: Timestamp,
    pub idle: Duration,
    pub seen_at: Timestamp,
}

impl SessionTimes {
    #[must_use]
    pub fn begin(limits: SessionLimits, now: Timestamp) -> Self {
        Self { auth_at: now, expires_at: now.plus(limits.overall), idle: limits.idle, seen_at: now }
    }

    /// As of somebody who has not proven lately who they are.
    #[must_use]
    pub fn without_proof(self) -> Self {
        Self { auth_at: self.auth_at.minus(STEP_UP_WINDOW), ..self }
    }

    /// As narrow as these limits at least, for a session that began then.
    #[must_use]
    pub fn narrowed(self, limits: SessionLimits, began_at: Timestamp) -> Self {
        let expires_at = self.expires_at.min(began_at.plus(limits.overall));
        Self { expires_at, idle: self.idle.min(limits.idle), ..self }
    }

    /// Whether the session may be used now. A clock that was set back ends no session and lengthens none beyond its overall end.
    #[must_use]
    pub fn is_live(&self, now: Timestamp) -> bool {
        now < self.expires_at && now < self.seen_at.plus(self.idle)
    }

    /// Whether this use is to be written down.
    #[must_use]
    pub fn is_seen_due(&self, now: Timestamp) -> bool {
        now >= self.seen_at.plus(SEEN_EVERY)
    }

    /// Whether the person proved who they are within the last ten minutes.
    #[must_use]
    pub fn is_stepped_up(&self, now: Timestamp) -> bool {
        now < self.auth_at.plus(STEP_UP_WINDOW)
    }
}

/// A secret of 256 bits that a browser holds: a session's or a device's.
#[derive(Clone, PartialEq, Eq)]
pub struct BrowserToken([u8; 32]);

impl BrowserToken {
    #[must_use]
    pub fn generate(ambient: &Ambient) -> Self {
        Self(ambient.random())
    }

    /// What the cookie holds.
    #[must_use]
    pub fn reveal(&self) -> String {
        hex::encode(self.0)
    }

    /// Reads what [`reveal`](Self::reveal) wrote; anything else is no token.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 64 || text.bytes().any(|b| b.is_ascii_uppercase()) {
            return None;
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    #[must_use]
    pub fn hash(&self) -> SecretHash {
        SecretHash::of(&self.0)
    }
}

impl std::fmt::Debug for BrowserToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BrowserToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: Timestamp = Timestamp::from_micros(1_795_248_000_000_000);

    #[test]
    fn a_session_ends_by_its_overall_limit_however_busy_it_is() {
        let mut times = SessionTimes::begin(SessionLimits::MEMBER, START);
        let mut now = START;
        while now < times.expires_at {
            assert!(times.is_live(now));
            times.seen_at = now;
            now = now.plus(Duration::from_mins(20));
        }
        assert!(!times.is_live(times.expires_at));
        assert_eq!(times.expires_at, START.plus(Duration::from_hours(12)));
    }

    #[test]
    fn and_by_half_an_hour_without_use() {
        let times = SessionTimes::begin(SessionLimits::MEMBER, START);
        assert!(times.is_live(START.plus(Duration::from_secs(30 * 60 - 1))));
        assert!(!times.is_live(START.plus(Duration::from_mins(30))));
        let times = SessionTimes::begin(SessionLimits::ADMIN, START);
        assert!(!times.is_live(START.plus(Duration::from_mins(15))));
    }

    #[test]
    fn limits_follow_who_becomes_an_administrator() {
        let narrowed = SessionTimes::begin(SessionLimits::MEMBER, START).narrowed(SessionLimits::ADMIN, START);
        assert_eq!(narrowed, SessionTimes::begin(SessionLimits::ADMIN, START));
        assert_eq!(narrowed.narrowed(SessionLimits::MEMBER, START), narrowed, "and never get wider");
    }

    #[test]
    fn proof_is_fresh_for_ten_minutes() {
        let times = SessionTimes::begin(SessionLimits::MEMBER, START);
        assert!(times.is_stepped_up(START.plus(Duration::from_secs(599))));
        assert!(!times.is_stepped_up(START.plus(Duration::from_mins(10))));
        assert!(!times.without_proof().is_stepped_up(START));
    }

    proptest! {
        /// authentik CVE-2026-25748: a cookie that does not parse is no session.
        #[test]
        fn only_what_was_written_is_read(text in "\\PC{0,80}", seed: u64) {
            if let Some(token) = BrowserToken::parse(&text) {
                prop_assert_eq!(token.reveal(), text);
            }
            let token = BrowserToken::generate(&Ambient::manual(START, seed));
            prop_assert_eq!(BrowserToken::parse(&token.reveal()), Some(token.clone()));
            prop_assert_eq!(BrowserToken::parse(&token.reveal().to_uppercase()), None);
            let mut shorter = token.reveal();
            shorter.pop();
            prop_assert_eq!(BrowserToken::parse(&shorter), None);
        }
    }
}
