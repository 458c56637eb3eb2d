//! What is asked for besides a password, and of whom.

use serde::{Deserialize, Serialize};

/// What a session's `amr` says when only a password was proven (RFC 8176).
pub const AMR_PASSWORD: &str = "pwd";
/// … and a one-time code as well: of an authenticator app, or a backup code.
pub const AMR_MFA: &str = "pwd otp mfa";

/// … and a passkey alone, which an authenticator used after it had verified who holds it: something one has, and something one knows or is.
pub const AMR_PASSKEY: &str = "pop mfa";
/// … and a password and a passkey.
pub const AMR_PASSWORD_AND_PASSKEY: &str = "pwd pop mfa";

/// What a session has proven that makes a passkey the person's.
#[must_use]
pub fn with_passkey(amr: &str) -> String {
    let mut methods: Vec<&str> = amr.split(' ').filter(|method| !matches!(*method, "" | "pop" | "mfa")).collect();
    methods.extend(["pop", "mfa"]);
    methods.join(" ")
}

/// What a session has proven once the person has no second factor any more.
#[must_use]
pub fn without_second_factor(amr: &str) -> &'static str {
    if amr.split(' ').any(|method| method == "pwd") { AMR_PASSWORD } else { "pop" }
}

/// What a person has besides a password. A sign-in by password waits for one of them, whichever it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Factors {
    /// An authenticator app, with backup codes.
    pub app: bool,
    pub passkey: bool,
}

impl Factors {
    /// Whether there is any.
    #[must_use]
    pub const fn any(self) -> bool {
        self.app || self.passkey
    }

    /// What can be said for them.
    #[must_use]
    pub fn methods(self) -> Vec<&'static str> {
        let mut methods = Vec::new();
        if self.app {
            methods.extend(["code", "backup_code"]);
        }
        if self.passkey {
            methods.push("passkey");
        }
        methods
    }
}

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
        assert!(is_mfa(AMR_MFA) && is_mfa(AMR_PASSKEY) && is_mfa(AMR_PASSWORD_AND_PASSKEY));
        for one in [AMR_PASSWORD, "", "pwd otp", "pwdmfa", "mfa2", "MFA"] {
            assert!(!is_mfa(one), "{one:?}");
        }
    }

    #[test]
    fn what_was_proven_comes_and_goes_with_the_factors() {
        for (before, with) in
            [(AMR_PASSWORD, AMR_PASSWORD_AND_PASSKEY), (AMR_PASSKEY, AMR_PASSKEY), (AMR_MFA, "pwd otp pop mfa")]
        {
            assert_eq!(with_passkey(before), with);
            assert_eq!(with_passkey(with), with);
        }
        for (before, without) in
            [(AMR_MFA, AMR_PASSWORD), (AMR_PASSWORD_AND_PASSKEY, AMR_PASSWORD), (AMR_PASSKEY, "pop")]
        {
            assert_eq!(without_second_factor(before), without);
            assert!(!is_mfa(without_second_factor(before)));
        }
    }

    /// Kratos GHSA-wc43-73w7-x2f5: one of the methods was not looked at.
    #[test]
    fn every_factor_is_a_factor() {
        for (app, passkey) in [(false, false), (false, true), (true, false), (true, true)] {
            let factors = Factors { app, passkey };
            assert_eq!(factors.any(), app || passkey);
            assert_eq!(factors.any(), !factors.methods().is_empty());
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
