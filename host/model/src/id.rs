//! Typed ids: a UUIDv7 inside, TypeID text outside (`run_01jd…`), one Rust type per kind.
//!
//! Text form: <https://github.com/jetify-com/typeid/tree/main/spec> (version 0.3): a prefix, `_`, then the 128 bits as
//! 26 characters of Crockford's base 32 in lower case.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::ambient::Ambient;
use crate::time::Timestamp;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Length of the base 32 part.
pub const SUFFIX_LEN: usize = 26;

/// The text is not an id of the expected kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an id of the form {prefix}_ followed by 26 characters")]
pub struct IdError {
    pub prefix: &'static str,
}

/// Writes 128 bits as 26 characters of lower-case Crockford base 32.
#[must_use]
pub fn encode_suffix(id: Uuid) -> String {
    let value = id.as_u128();
    (0..SUFFIX_LEN).rev().map(|i| char::from(ALPHABET[usize::try_from((value >> (5 * i)) & 31).unwrap_or(0)])).collect()
}

/// Reads what [`encode_suffix`] wrote; anything else, upper case included, is `None`.
#[must_use]
pub fn decode_suffix(text: &str) -> Option<Uuid> {
    let bytes = text.as_bytes();
    if bytes.len() != SUFFIX_LEN || bytes[0] > b'7' {
        return None;
    }
    let mut value: u128 = 0;
    for byte in bytes {
        let digit = ALPHABET.iter().position(|letter| letter == byte)?;
        value = (value << 5) | u128::try_from(digit).ok()?;
    }
    Some(Uuid::from_u128(value))
}

fn new_v7(ambient: &Ambient) -> Uuid {
    uuid::Builder::from_unix_timestamp_millis(ambient.now().as_millis(), &ambient.random()).into_uuid()
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            pub const PREFIX: &'static str = $prefix;

            /// A new UUIDv7 from the passed clock and generator.
            #[must_use]
            pub fn new(ambient: &Ambient) -> Self {
                Self(new_v7(ambient))
            }

            /// The smallest id that can have been made at this moment (to the millisecond) or later.
            #[must_use]
            pub fn first_at(at: Timestamp) -> Self {
                Self(Uuid::from_u128(u128::from(at.as_millis()) << 80))
            }

            /// The moment at which the id was made, to the millisecond.
            #[must_use]
            pub fn made_at(self) -> Timestamp {
                let millis = i64::try_from(self.0.as_u128() >> 80).unwrap_or(i64::MAX / 1000);
                Timestamp::from_micros(millis.saturating_mul(1000))
            }

            #[must_use]
            pub const fn from_uuid(id: Uuid) -> Self {
                Self(id)
            }

            #[must_use]
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}_{}", $prefix, encode_suffix(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                text.strip_prefix($prefix)
                    .and_then(|rest| rest.strip_prefix('_'))
                    .and_then(decode_suffix)
                    .map(Self)
                    .ok_or(IdError { prefix: $prefix })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

ids! {
    /// An organization: the tenant.
    OrgId = "org";
    /// A role of an organization's own.
    RoleId = "role";
    /// A member's having a role.
    AssignmentId = "asg";
    /// A request to have a role for some hours.
    RoleRequestId = "rreq";
    /// A team inside an organization.
    TeamId = "team";
    /// An API key's row (never the secret).
    ApiKeyId = "key";
    /// A plugin version that an organization uploaded: name, version, digest.
    PluginId = "plug";
    /// A plugin installed in an organization, with settings and grants.
    InstallationId = "inst";
    /// One call of a plugin.
    CallId = "call";
    /// A workflow (all its versions).
    WorkflowId = "wf";
    /// A webhook address of a workflow's trigger.
    HookId = "hook";
    /// One run of a workflow.
    RunId = "run";
    /// A job in the durable queue.
    JobId = "job";
    /// An event that left a transaction.
    EventId = "evt";
    /// An audit entry.
    AuditId = "aud";
    /// A serving process that claims jobs.
    WorkerId = "wrk";
    /// A stored secret's row.
    SecretId = "sec";
    /// Something that went wrong for good and waits for a decision.
    DeadLetterId = "dl";
    /// The resuming or discarding of many of them.
    DeadLetterTaskId = "dlt";
    /// A key's taking another's place, with what follows it.
    KeyRotationId = "krot";
    /// A person.
    UserId = "user";
    /// A person's signed-in browser.
    SessionId = "ses";
    /// A browser that a person signed in with before.
    DeviceId = "dev";
    /// A link that does one thing once.
    LinkId = "link";
    /// An invitation into an organization.
    InvitationId = "inv";
    /// A letter on its way.
    MailId = "mail";
    /// An attempt to sign in.
    SignInAttemptId = "att";
    /// Refresh tokens that follow from one sign-in.
    TokenFamilyId = "tok";
    /// An authenticator app of a person.
    TotpId = "totp";
    /// A passkey of a person.
    PasskeyId = "pkey";
    /// A sign-in that waits for a second factor.
    SignInStepId = "step";
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Vectors of the TypeID specification's `valid.yml`.
    #[test]
    fn suffix_agrees_with_the_specification() {
        for (text, uuid) in [
            ("00000000000000000000000000", "00000000-0000-0000-0000-000000000000"),
            ("00000000000000000000000001", "00000000-0000-0000-0000-000000000001"),
            ("0000000000000000000000000g", "00000000-0000-0000-0000-000000000010"),
            ("7zzzzzzzzzzzzzzzzzzzzzzzzz", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
            ("0123456789abcdefghjkmnpqrs", "0110c853-1d09-52d8-d73e-1194e95b5f19"),
            ("01h455vb4pex5vsknk084sn02q", "01890a5d-ac96-774b-bcce-b302099a8057"),
        ] {
            let id: Uuid = uuid.parse().unwrap();
            assert_eq!(encode_suffix(id), text);
            assert_eq!(decode_suffix(text), Some(id));
        }
    }

    #[test]
    fn foreign_text_is_refused() {
        for text in [
            "",
            "run",
            "run_",
            "org_01h455vb4pex5vsknk084sn02q",
            "run_01H455VB4PEX5VSKNK084SN02Q",
            "run_81h455vb4pex5vsknk084sn02q",
            "run_01h455vb4pex5vsknk084sn02",
            "run_01h455vb4pex5vsknk084sn02l",
        ] {
            assert!(text.parse::<RunId>().is_err(), "{text}");
        }
    }

    #[test]
    fn ids_are_divided_by_the_moment_at_which_they_were_made() {
        let at = Timestamp::from_micros(1_795_248_000_000_000);
        let made = RunId::new(&Ambient::manual(at, 1));
        assert!(RunId::first_at(at) <= made);
        assert_eq!(made.made_at(), at);
        assert!(made < RunId::first_at(at.plus(std::time::Duration::from_millis(1))));
    }

    proptest! {
        #[test]
        fn text_round_trips(value: u128) {
            let id = RunId::from_uuid(Uuid::from_u128(value));
            prop_assert_eq!(id.to_string().parse::<RunId>(), Ok(id));
        }
    }
}
