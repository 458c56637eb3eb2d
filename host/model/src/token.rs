//! API keys and hook tokens: text that names its own row, so that it is looked up in the right organization's context, and
//! carries a secret of which only the SHA-256 is stored.
//!
//! `bh_live_<organization><row>_<secret>_<crc>` for keys, `<organization><row>_<secret>` for hooks; ids as 26 characters
//! of base 32, the secret as 64 hexadecimal digits (256 bits), the CRC-32 over everything before it, so that a mistyped key
//! is told from a wrong one without a look-up and secret scanners can be sure.

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::ambient::Ambient;
use crate::id::{ApiKeyId, HookId, OrgId, SUFFIX_LEN, decode_suffix, encode_suffix};

const KEY_PREFIX: &str = "bh_live_";

/// SHA-256 of a token's secret, as stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SecretHash(pub [u8; 32]);

impl SecretHash {
    #[must_use]
    pub fn of(secret: &[u8; 32]) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// Compares in constant time.
    #[must_use]
    pub fn matches(&self, secret: &[u8; 32]) -> bool {
        bool::from(self.0.ct_eq(&Self::of(secret).0))
    }
}

impl std::fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretHash(…)")
    }
}

/// A token taken apart: which row, and the secret to check against it.
#[derive(Clone)]
pub struct Token<Id> {
    pub org: OrgId,
    pub row: Id,
    pub secret: [u8; 32],
}

fn parse_body(text: &str) -> Option<(OrgId, uuid::Uuid, [u8; 32])> {
    let (ids, secret) = text.split_once('_')?;
    if ids.len() != 2 * SUFFIX_LEN || !ids.is_ascii() || secret.len() != 64 {
        return None;
    }
    let (org, row) = ids.split_at(SUFFIX_LEN);
    if secret.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    let mut bytes = [0; 32];
    hex::decode_to_slice(secret, &mut bytes).ok()?;
    Some((OrgId::from_uuid(decode_suffix(org)?), decode_suffix(row)?, bytes))
}

impl Token<ApiKeyId> {
    #[must_use]
    pub fn generate(org: OrgId, row: ApiKeyId, ambient: &Ambient) -> Self {
        Self { org, row, secret: ambient.random() }
    }

    /// The text that is shown once.
    #[must_use]
    pub fn reveal(&self) -> String {
        let ids = format!("{}{}", encode_suffix(self.org.uuid()), encode_suffix(self.row.uuid()));
        let body = format!("{KEY_PREFIX}{ids}_{}", hex::encode(self.secret));
        let crc = crc32fast::hash(body.as_bytes());
        format!("{body}_{crc:08x}")
    }

    /// Takes a presented key apart; `None` for anything that is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (body, crc) = text.rsplit_once('_')?;
        if crc != format!("{:08x}", crc32fast::hash(body.as_bytes())) {
            return None;
        }
        let (org, row, secret) = parse_body(body.strip_prefix(KEY_PREFIX)?)?;
        Some(Self { org, row: ApiKeyId::from_uuid(row), secret })
    }
}

impl Token<HookId> {
    #[must_use]
    pub fn generate(org: OrgId, row: HookId, ambient: &Ambient) -> Self {
        Self { org, row, secret: ambient.random() }
    }

    /// The last segment of the webhook's address.
    #[must_use]
    pub fn reveal(&self) -> String {
        let ids = format!("{}{}", encode_suffix(self.org.uuid()), encode_suffix(self.row.uuid()));
        format!("{ids}_{}", hex::encode(self.secret))
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (org, row, secret) = parse_body(text)?;
        Some(Self { org, row: HookId::from_uuid(row), secret })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_round_trip_and_every_changed_character_is_refused(seed: u64, at in 0_usize..134) {
            let ambient = Ambient::manual(Timestamp::from_micros(1_000_000), seed);
            let token = Token::<ApiKeyId>::generate(OrgId::new(&ambient), ApiKeyId::new(&ambient), &ambient);
            let text = token.reveal();
            let back = Token::<ApiKeyId>::parse(&text).unwrap();
            prop_assert_eq!((back.org, back.row, back.secret), (token.org, token.row, token.secret));
            let mut broken = text.into_bytes();
            broken[at] = if broken[at] == b'0' { b'1' } else { b'0' };
            prop_assert!(Token::<ApiKeyId>::parse(std::str::from_utf8(&broken).unwrap()).is_none());
        }

        #[test]
        fn any_text_is_parsed_without_panic(text: String) {
            let _ = Token::<ApiKeyId>::parse(&text);
            let _ = Token::<HookId>::parse(&text);
        }
    }
}
