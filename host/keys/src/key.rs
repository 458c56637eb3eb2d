//! A key, and how using one fails.

use zeroize::Zeroizing;

use crate::envelope::KeyId;
use crate::root::RootId;

/// Bytes of every key here: AES-256, HMAC-SHA-256.
pub const KEY_BYTES: usize = 32;

/// A key's bytes. They are overwritten when it is dropped, and it never shows them.
#[derive(Clone)]
pub struct Key(Zeroizing<[u8; KEY_BYTES]>);

impl Key {
    #[must_use]
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// # Errors
    /// [`KeyError::DoesNotOpen`] unless there are 32 bytes.
    pub(crate) fn from_slice(bytes: &[u8]) -> Result<Self, KeyError> {
        bytes.try_into().map(Self::new).map_err(|_| KeyError::DoesNotOpen)
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Why something could not be sealed or opened. None says anything about what is inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is no sealed value at all. It is never taken for one that need not be opened.
    #[error("the value is not sealed")]
    NotSealed,
    /// A sealed value of a format, an algorithm or a kind of key that this version does not know.
    #[error("the value is sealed in a way that is not known here")]
    UnknownFormat,
    /// Another key, another place, or changed bytes: which of them is not said.
    #[error("the ciphertext does not open with this key in this place")]
    DoesNotOpen,
    #[error("a sealed value has at most {} bytes", crate::record::PLAIN_BYTES_MAX)]
    TooLarge,
    /// The operator's keys lack the one that this was wrapped with. Nothing is written over it.
    #[error("the root key {0} is not among the server's root keys: restore it from your backup of the keys")]
    UnknownRoot(RootId),
    /// The key's bytes were destroyed when nothing referred to it any longer.
    #[error("the key {0} is retired")]
    Retired(KeyId),
    #[error("the key {0} is not there")]
    Missing(KeyId),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_never_printed() {
        let key = Key::new([0xab; 32]);
        let shown = format!("{key:?} {:?}", std::slice::from_ref(&key));
        assert!(!shown.contains("ab") && !shown.contains("171"), "{shown}");
    }
}
