//! The log's Ed25519 keys, in the text form of C2SP `signed-note`.
//!
//! Format: <https://github.com/C2SP/C2SP/blob/main/signed-note.md> (version 1.0): a verifier key is `name+id+base64(0x01 ‖ key)`, its
//! id the first four bytes of SHA-256(name ‖ 0x0A ‖ 0x01 ‖ key).

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signer as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::hash::Hash;

/// The signature type of plain Ed25519 (signed-note, "Signature types").
const ED25519: u8 = 1;
/// Bytes of an Ed25519 signature.
pub const SIGNATURE_BYTES: usize = 64;

/// The first four bytes of the hash over a key and its name; as text 8 lower-case hexadecimal characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 4]);

impl KeyId {
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub const fn as_bytes(self) -> [u8; 4] {
        self.0
    }

    fn of(name: &str, key: &[u8; 32]) -> Self {
        let [a, b, c, d, ..] = *Hash::of(&[name.as_bytes(), b"\n", &[ED25519], key]).as_bytes();
        Self([a, b, c, d])
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let mut bytes = [0; 4];
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) || hex::decode_to_slice(text, &mut bytes).is_err() {
            return Err(KeyError::Id);
        }
        Ok(Self(bytes))
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("a verifier key is written as name+id+key")]
    Form,
    #[error("a key's name is text without spaces, control characters and `+`")]
    Name,
    #[error("the key's id is not that of the key and its name")]
    Id,
    #[error("only Ed25519 keys are known (type 1, 32 bytes, a point of the curve)")]
    Key,
}

/// Whether a text may name a key.
#[must_use]
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|letter: char| letter.is_whitespace() || letter.is_control() || letter == '+')
}

/// The key that checks a log's signatures.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    id: KeyId,
    key: ed25519_dalek::VerifyingKey,
}

impl VerifierKey {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// Checks a signature strictly: small-order points and other encodings of the same signature are refused (RFC 8032, 5.1.7).
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(signature) = ed25519_dalek::Signature::from_slice(signature) else { return false };
        self.key.verify_strict(message, &signature).is_ok()
    }

    /// A key from its 32 bytes.
    ///
    /// # Errors
    /// When the name cannot be one, or the bytes are no point of the curve or one of small order.
    pub fn from_bytes(name: &str, bytes: &[u8; 32]) -> Result<Self, KeyError> {
        if !is_name(name) {
            return Err(KeyError::Name);
        }
        let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Key)?;
        if key.is_weak() {
            return Err(KeyError::Key);
        }
        Ok(Self { name: name.to_owned(), id: KeyId::of(name, bytes), key })
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![ED25519];
        bytes.extend_from_slice(self.key.as_bytes());
        write!(f, "{}+{}+{}", self.name, self.id, STANDARD.encode(bytes))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for VerifierKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        // The key's base64 may itself have `+` in it; the name may not.
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(KeyError::Form);
        };
        let id: KeyId = id.parse()?;
        let bytes = STANDARD.decode(key).map_err(|_| KeyError::Key)?;
        let Some((&ED25519, key)) = bytes.split_first() else { return Err(KeyError::Key) };
        let key = Self::from_bytes(name, key.try_into().map_err(|_| KeyError::Key)?)?;
        if key.id == id { Ok(key) } else { Err(KeyError::Id) }
    }
}

/// The key that signs for a log. It is wiped when dropped and never printed.
pub struct SignerKey {
    name: String,
    key: ed25519_dalek::SigningKey,
}

impl SignerKey {
    /// A key from 32 random bytes.
    ///
    /// # Errors
    /// When the name cannot be a key's.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, KeyError> {
        if !is_name(name) {
            return Err(KeyError::Name);
        }
        Ok(Self { name: name.to_owned(), key: ed25519_dalek::SigningKey::from_bytes(seed) })
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn verifier(&self) -> VerifierKey {
        let key = self.key.verifying_key();
        VerifierKey { name: self.name.clone(), id: KeyId::of(&self.name, key.as_bytes()), key }
    }

    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.key.sign(message).to_bytes()
    }
}

impl fmt::Debug for SignerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignerKey({}, …)", self.name)
    }
}
