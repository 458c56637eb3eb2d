//! What is asked for besides a password, and of whom.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a session's `amr` says when only a password was proven (RFC 8176).
pub const AMR_PASSWORD: &str = "pwd";
/// … and a one-time code as well: of an authenticator app, or a backup code.
pub const AMR_MFA: &str = "pwd otp mfa";

/// … and a passkey alone, which an authenticator used after it had verified who holds it: something one has, and something one knows or is.
pub const AMR_PASSKEY: &str = "pop mfa";
/// … and a password and a passkey.
pub const AMR_PASSWORD_AND_PASSKEY: &str = "pwd pop mfa";

/// … and a password, and a code that was mailed: for members whose organization takes that.
pub const AMR_EMAIL: &str = "pwd email mfa";

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
    /// A code by mail, for who has nothing better: where an organization takes it, and the mailbox is not what chose the password as well.
    pub email: bool,
}

impl Factors {
    /// Whether there is any.
    #[must_use]
    pub const fn any(self) -> bool {
        self.app || self.passkey || self.email
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
        if self.email {
            methods.push("email");
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

/// A kind of second factor, as an organization allows or forbids it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// An authenticator app, and its backup codes.
    App,
    Passkey,
    /// A code by mail: the weakest, since mail chooses passwords as well. Not taken unless an organization says so, and never of who gives others
    /// rights.
    Email,
}

impl Method {
    pub const ALL: [Self; 3] = [Self::App, Self::Passkey, Self::Email];
    /// What is taken unless an organization says otherwise.
    pub const DEFAULT: [Self; 2] = [Self::App, Self::Passkey];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Passkey => "passkey",
            Self::Email => "email",
        }
    }

    /// Whether it stands for a second factor of who gives others rights.
    #[must_use]
    pub const fn is_for_admins(self) -> bool {
        match self {
            Self::App | Self::Passkey => true,
            Self::Email => false,
        }
    }

    /// What a session says that has proven it (RFC 8176).
    #[must_use]
    pub const fn amr(self) -> &'static str {
        match self {
            Self::App => "otp",
            Self::Passkey => "pop",
            Self::Email => "email",
        }
    }
}

/// What a session says that began in a trusted browser, without a second factor.
const TRUSTED: &str = "device";
/// … and with a password.
pub const AMR_TRUSTED: &str = "pwd device";
/// How long a browser is trusted that somebody proved a second factor in. Source: identity.md.
pub const TRUST_LIVES: Duration = Duration::from_hours(30 * 24);

/// What an organization asks of its members besides a password, and what it takes for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignInPolicy {
    pub mfa: MfaPolicy,
    /// In order, each once; one at least.
    methods: Vec<Method>,
    /// Whether a browser in which somebody proved a second factor lately stands for it. Weaker than any standard allows (NIST SP 800-63B-4
    /// §5.1), hence never without somebody's saying so, and never for who gives others rights.
    pub trusts_devices: bool,
}

impl Default for SignInPolicy {
    fn default() -> Self {
        Self { mfa: MfaPolicy::default(), methods: Method::DEFAULT.to_vec(), trusts_devices: false }
    }
}

impl SignInPolicy {
    /// `None` without a method: what is asked for could be proven by nobody.
    #[must_use]
    pub fn new(mfa: MfaPolicy, mut methods: Vec<Method>, trusts_devices: bool) -> Option<Self> {
        methods.sort_unstable();
        methods.dedup();
        (!methods.is_empty()).then_some(Self { mfa, methods, trusts_devices })
    }

    /// The same for others.
    #[must_use]
    pub fn with_mfa(self, mfa: MfaPolicy) -> Self {
        Self { mfa, ..self }
    }

    #[must_use]
    pub fn methods(&self) -> &[Method] {
        &self.methods
    }

    /// As it is stored: the methods' names, divided by spaces.
    #[must_use]
    pub fn methods_text(&self) -> String {
        self.methods.iter().map(|method| method.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// Reads what [`methods_text`](Self::methods_text) writes; a method of a newer version is none of ours.
    #[must_use]
    pub fn read_methods(text: &str) -> Vec<Method> {
        let known = |name: &str| Method::ALL.into_iter().find(|method| method.as_str() == name);
        text.split(' ').filter_map(known).collect()
    }

    /// Whether a session that has proven this much may act in the organization.
    #[must_use]
    pub fn admits(&self, is_admin: bool, amr: &str) -> bool {
        let has = |word: &str| amr.split(' ').any(|method| method == word);
        let counts = |method: &Method| has(method.amr()) && (!is_admin || method.is_for_admins());
        !self.mfa.asks(is_admin)
            || (is_mfa(amr) && self.methods.iter().any(counts))
            || (self.trusts_devices && !is_admin && has(TRUSTED))
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
        for bits in 0..8_u8 {
            let (app, passkey, email) = (bits & 1 > 0, bits & 2 > 0, bits & 4 > 0);
            let factors = Factors { app, passkey, email };
            assert_eq!(factors.any(), app || passkey || email);
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

    fn policy(mfa: MfaPolicy, methods: &[Method], trusts_devices: bool) -> SignInPolicy {
        SignInPolicy::new(mfa, methods.to_vec(), trusts_devices).unwrap()
    }

    #[test]
    fn a_method_that_is_not_allowed_is_none() {
        let passkeys = policy(MfaPolicy::All, &[Method::Passkey], false);
        assert!(passkeys.admits(false, AMR_PASSKEY) && passkeys.admits(true, AMR_PASSWORD_AND_PASSKEY));
        assert!(!passkeys.admits(false, AMR_MFA) && !passkeys.admits(false, AMR_PASSWORD));
        let apps = policy(MfaPolicy::All, &[Method::App], false);
        assert!(apps.admits(false, AMR_MFA) && !apps.admits(false, AMR_PASSKEY));
        assert!(SignInPolicy::new(MfaPolicy::All, Vec::new(), true).is_none());
        assert!(policy(MfaPolicy::Optional, &[Method::App], false).admits(true, AMR_PASSWORD));
    }

    /// NIST SP 800-63B-4 §5.1: a remembered browser is no factor.
    #[test]
    fn a_trusted_browser_stands_for_a_factor_only_where_somebody_chose_that_and_never_for_admins() {
        for mfa in MfaPolicy::ALL {
            for is_admin in [false, true] {
                let strict = policy(mfa, &Method::ALL, false);
                assert_eq!(
                    strict.admits(is_admin, AMR_TRUSTED),
                    strict.admits(is_admin, AMR_PASSWORD),
                    "{mfa:?} {is_admin}"
                );
                let trusting = policy(mfa, &Method::ALL, true);
                assert_eq!(trusting.admits(is_admin, AMR_TRUSTED), !is_admin || !mfa.asks(true), "{mfa:?} {is_admin}");
            }
        }
        assert!(!is_mfa(AMR_TRUSTED));
    }

    #[test]
    fn a_mailed_code_counts_where_that_was_chosen_and_never_for_admins() {
        assert!(is_mfa(AMR_EMAIL));
        let usual = SignInPolicy { mfa: MfaPolicy::All, ..SignInPolicy::default() };
        assert!(!usual.admits(false, AMR_EMAIL));
        let weak = policy(MfaPolicy::All, &[Method::App, Method::Email], false);
        assert!(weak.admits(false, AMR_EMAIL) && !weak.admits(true, AMR_EMAIL) && weak.admits(true, AMR_MFA));
    }

    #[test]
    fn methods_are_read_as_they_are_written() {
        for methods in [&[Method::App][..], &[Method::Passkey], &Method::ALL] {
            let policy = policy(MfaPolicy::All, methods, false);
            assert_eq!(SignInPolicy::read_methods(&policy.methods_text()), methods);
        }
        assert_eq!(SignInPolicy::read_methods("app retina  "), [Method::App]);
    }
}
