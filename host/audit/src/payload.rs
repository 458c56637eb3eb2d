//! What an entry says that may have to be forgotten, and the commitment that stays.
//!
//! `commitment = SHA-256("bulkhead audit payload v1\n" ‖ salt ‖ canonical payload)`. The salt (256 random bits for each entry) is kept
//! and forgotten together with the payload: a bare hash of personal data could be guessed back, this one cannot.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use subtle::ConstantTimeEq as _;

use crate::hash::Hash;

const DOMAIN: &[u8] = b"bulkhead audit payload v1\n";

/// 32 random bytes of one entry; as text 64 lower-case hexadecimal characters.
#[derive(Clone, PartialEq, Eq)]
pub struct Salt([u8; 32]);

impl Salt {
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt(…)")
    }
}

impl FromStr for Salt {
    type Err = crate::hash::HashError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<Hash>().map(|bytes| Self(*bytes.as_bytes()))
    }
}

impl Serialize for Salt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Salt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Commits to a payload's exact bytes.
#[must_use]
pub fn commitment(salt: &Salt, payload: &str) -> Hash {
    Hash::of(&[DOMAIN, &salt.0, payload.as_bytes()])
}

/// Whether a payload is the one that was committed to.
#[must_use]
pub fn opens(committed: Hash, salt: &Salt, payload: &str) -> bool {
    commitment(salt, payload).as_bytes().ct_eq(committed.as_bytes()).into()
}
