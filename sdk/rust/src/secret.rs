//! Secrets, used without being seen.

use std::fmt;

use crate::platform;

/// Why a secret cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Not asked for in the manifest, or not granted.
    NotGranted(String),
    /// Granted, but no value is stored.
    NotSet(String),
    /// The data to sign is longer than the host accepts.
    TooLarge,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotGranted(name) => write!(f, "the secret {name} is not granted"),
            Self::NotSet(name) => write!(f, "the secret {name} is granted but has no value yet"),
            Self::TooLarge => f.write_str("the data to sign is too large"),
        }
    }
}

impl std::error::Error for Error {}

/// Stands for a secret in this call's requests: in the headers, text bodies and paths that the manifest's `inject` names. The host puts the value in
/// its place on the way out and refuses the request when it stands anywhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placeholder(String);

impl Placeholder {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `Bearer …`, for the header `authorization`.
    #[must_use]
    pub fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl AsRef<str> for Placeholder {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Placeholder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The placeholder of the secret with this name. Permission `secret`.
pub fn secret(name: &str) -> Result<Placeholder, Error> {
    platform::placeholder(name).map(Placeholder)
}

/// HMAC-SHA256 over `data` with the secret's value as the key; a value `whsec_…` is the key in base64. Permission `secret`.
pub fn hmac_sha256(name: &str, data: &[u8]) -> Result<Vec<u8>, Error> {
    platform::hmac_sha256(name, data)
}
