//! What an entry says that may have to be forgotten, and the commitment that stays.
//!
//! `commitment = SHA-256("bulkhead audit payload v1\n" ‖ salt ‖ canonical payload)`. The salt (256 random bits for each entry) is kept
//! and forgotten together with the payload: a bare hash of personal data could be guessed back, this one cannot.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use subtle::ConstantTimeEq as _;

use crate::canonical::{self, NotCanonical};
use crate::hash::Hash;

/// The largest payload, in bytes of its canonical text: a quarter of a bundle's line, and what a page of 200 entries still fits into
/// memory with.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// Of a payload that is larger, each part that is no larger than this stays, in bytes.
const PART_BYTES_MAX: usize = 2 * 1024;
/// How deep a payload is looked into for such parts: `{"grants": {"before": …, "after": …}}`.
const PARTS_DEEP: usize = 2;

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

/// The payload's canonical text, which is what is committed to, kept and shown: at most [`PAYLOAD_BYTES_MAX`] bytes. Of a larger one the
/// large parts are said by their size and SHA-256, so that what was recorded can still be compared with what somebody has.
///
/// # Errors
/// When the value has no canonical text.
pub fn bounded_text(value: serde_json::Value) -> Result<String, NotCanonical> {
    let value = canonical::exact(value);
    let text = canonical::text(&value)?;
    if text.len() <= PAYLOAD_BYTES_MAX {
        return Ok(text);
    }
    let parts = canonical::text(&with_small_parts(value, PARTS_DEEP)?)?;
    if parts.len() <= PAYLOAD_BYTES_MAX { Ok(parts) } else { canonical::text(&digest(&text)) }
}

fn digest(text: &str) -> serde_json::Value {
    serde_json::json!({ "bytes": text.len(), "sha256": Hash::of(&[text.as_bytes()]) })
}

fn with_small_parts(value: serde_json::Value, deep: usize) -> Result<serde_json::Value, NotCanonical> {
    let text = canonical::text(&value)?;
    match value {
        small if text.len() <= PART_BYTES_MAX => Ok(small),
        serde_json::Value::Object(fields) if deep > 0 => {
            fields.into_iter().map(|(key, part)| Ok((key, with_small_parts(part, deep - 1)?))).collect()
        }
        _ => Ok(digest(&text)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_large_payload_is_said_by_the_digests_of_its_large_parts() {
        let small = json!({ "grants": { "before": ["a"], "after": [] }, "n": u64::MAX });
        let text = bounded_text(small).unwrap();
        assert_eq!(text, r#"{"grants":{"after":[],"before":["a"]},"n":"18446744073709551615"}"#, "canonical as ever");
        let many = vec!["x".repeat(1000); 300];
        let large = json!({ "version": "1.0.0", "grants": { "before": { "permissions": many }, "after": { "permissions": [] } } });
        let told: serde_json::Value = serde_json::from_str(&bounded_text(large.clone()).unwrap()).unwrap();
        let part = canonical::text(&large["grants"]["before"]).unwrap();
        assert_eq!(told["grants"]["before"], digest(&part));
        assert_eq!((&told["version"], &told["grants"]["after"]), (&json!("1.0.0"), &json!({ "permissions": [] })));
        // Many small parts are large as well, and so are long names of parts.
        for hostile in [
            json!((0..100_000).map(|at| (format!("{at}"), at)).collect::<std::collections::BTreeMap<_, _>>()),
            json!({ "x".repeat(1 << 20): 1 }),
            json!("x".repeat(1 << 20)),
            json!([many, many]),
        ] {
            let text = bounded_text(hostile).unwrap();
            assert!(text.len() <= PAYLOAD_BYTES_MAX && text.contains("sha256"), "{} bytes", text.len());
        }
        let just = json!("x".repeat(PAYLOAD_BYTES_MAX - 2));
        assert_eq!(bounded_text(just.clone()).unwrap(), canonical::text(&just).unwrap());
    }
}
