//! How long a key lives, and when another takes its place.

use std::time::Duration;

/// Where a key stands. It only ever moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyState {
    /// Seals and opens. Of each kind an organization has one.
    Active,
    /// Opens what it once sealed.
    DecryptOnly,
    /// Nothing refers to it, and its bytes are destroyed.
    Retired,
}

impl KeyState {
    pub const ALL: [Self; 3] = [Self::Active, Self::DecryptOnly, Self::Retired];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::DecryptOnly => "decrypt_only",
            Self::Retired => "retired",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// Which key a rotation replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// The operator's: organization keys are wrapped anew.
    Root,
    /// The organization's: its data keys are wrapped anew.
    Organization,
    /// The data key: what it sealed is sealed anew.
    Data,
}

impl Level {
    pub const ALL: [Self; 3] = [Self::Root, Self::Organization, Self::Data];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Organization => "organization",
            Self::Data => "data",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.as_str() == text)
    }
}

/// Uses of a data key from which on another takes its place in the background. NIST SP 800-38D §8.3 allows 2^32 encryptions under
/// one key with random nonces; here every value has a key of its own, so that the bound is far away, and is kept all the same.
pub const USES_WARN: u64 = 1 << 30;
/// Uses of a data key after which it seals nothing more: another takes its place in the very transaction.
pub const USES_MAX: u64 = 1 << 31;
/// A data key is replaced after so long (90 days).
pub const DATA_KEY_AGE_MAX: Duration = Duration::from_hours(90 * 24);
/// An organization key is replaced after so long (365 days).
pub const ORGANIZATION_KEY_AGE_MAX: Duration = Duration::from_hours(365 * 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_states_move_forward() {
        for state in KeyState::ALL {
            assert_eq!(KeyState::parse(state.as_str()), Some(state));
        }
        for level in Level::ALL {
            assert_eq!(Level::parse(level.as_str()), Some(level));
        }
        assert_eq!((KeyState::parse("Active"), Level::parse("")), (None, None));
        assert!(KeyState::Active < KeyState::DecryptOnly && KeyState::DecryptOnly < KeyState::Retired);
        const { assert!(USES_WARN < USES_MAX && USES_MAX < 1 << 32) };
    }
}
