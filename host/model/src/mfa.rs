//! What is asked for besides a password, and of whom.

use serde::{Deserialize, Serialize};

/// What a session's `amr` says when only a password was proven (RFC 8176).
pub const AMR_PASSWORD: &str = "pwd";
/// … and a one-time code as well: of an authenticator app, or a backup code.
pub const AMR_MFA: &str = "pwd otp mfa";

/// Whether two factors were proven.
#[must_use]
pub fn is_mfa(amr: &str) -> bool {
    amr.split(' ').any(|method| method == "mfa")
}

/// What an organization asks of its members. Whoever lacks it may do everything about their own account, and nothing in the organization.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MfaPolicy {
    /// Nobody has to.
    Optional,
    /// Those who give others rights have to.
    #[default]
    Admins,
    /// Everybody has to.
    All,
}

impl MfaPolicy {
    pub const ALL: [Self; 3] = [Self::Optional, Self::Admins, Self::All];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Optional => "optional",
            Self::Admins => "admins",
            Self::All => "all",
        }
    }

    /// Reads what [`as_str`](Self::as_str) writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == text)
    }

    /// Whether a member has to prove a second factor.
    #[must_use]
    pub const fn asks(self, is_admin: bool) -> bool {
        match self {
            Self::Optional => false,
            Self::Admins => is_admin,
            Self::All => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_factors_are_two_factors() {
        assert!(is_mfa(AMR_MFA));
        for one in [AMR_PASSWORD, "", "pwd otp", "pwdmfa", "mfa2", "MFA"] {
            assert!(!is_mfa(one), "{one:?}");
        }
    }

    #[test]
    fn who_is_asked() {
        assert_eq!(MfaPolicy::default(), MfaPolicy::Admins);
        let asks = MfaPolicy::ALL.map(|policy| (policy.asks(false), policy.asks(true)));
        assert_eq!(asks, [(false, false), (false, true), (true, true)]);
        for policy in MfaPolicy::ALL {
            assert_eq!(MfaPolicy::parse(policy.as_str()), Some(policy));
        }
        assert_eq!(MfaPolicy::parse("none"), None);
    }
}
