//! The text that is stored: `enc:v1:<kid>:<base64url>`. It says by itself what it is and which key it needs, and nothing more.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::key::KeyError;
use crate::root::RootId;

/// What every sealed value begins with.
pub const FORMAT: &str = "enc:v1";
/// A value's own salt, from which its key comes (128 bits, random).
pub const SALT_BYTES: usize = 16;
/// What the value commits to its key with, looked at before anything is decrypted.
pub const COMMITMENT_BYTES: usize = 32;

/// How a value is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// HKDF-SHA-256, then AES-256-GCM with a 96-bit nonce and a 128-bit tag.
    Record,
    /// HKDF-SHA-256, then AES-256-KW (NIST SP 800-38F).
    Wrap,
}

impl Algorithm {
    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::Record => 1,
            Self::Wrap => 2,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Record, Self::Wrap].into_iter().find(|algorithm| algorithm.byte() == byte)
    }
}

/// Which key an envelope needs. Numbers of organization and data keys are the organization's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyId {
    /// `r` and the root key's id.
    Root(RootId),
    /// `o` and a number.
    Organization(u32),
    /// `d` and a number.
    Data(u32),
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(id) => write!(f, "r{id}"),
            Self::Organization(version) => write!(f, "o{version}"),
            Self::Data(version) => write!(f, "d{version}"),
        }
    }
}

impl KeyId {
    /// Reads what [`Display`](fmt::Display) writes, and nothing else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let number = |digits: &str| digits.parse::<u32>().ok().filter(|number| number.to_string() == digits);
        match text.split_at_checked(1)? {
            ("r", id) => RootId::parse(id).map(Self::Root),
            ("o", version) => number(version).map(Self::Organization),
            ("d", version) => number(version).map(Self::Data),
            _ => None,
        }
    }

    /// What the text of every value under this key begins with.
    #[must_use]
    pub fn prefix(self) -> String {
        format!("{FORMAT}:{self}:")
    }

    /// The first text, byte by byte, after all those that begin with [`prefix`](Self::prefix).
    #[must_use]
    pub fn prefix_end(self) -> String {
        // ';' follows ':'.
        format!("{FORMAT}:{self};")
    }
}

/// A sealed value, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    kid: KeyId,
    pub(crate) algorithm: Algorithm,
    pub(crate) salt: [u8; SALT_BYTES],
    pub(crate) commitment: [u8; COMMITMENT_BYTES],
    pub(crate) body: Vec<u8>,
}

impl Envelope {
    pub(crate) fn new(
        kid: KeyId,
        algorithm: Algorithm,
        salt: [u8; SALT_BYTES],
        commitment: [u8; COMMITMENT_BYTES],
        body: Vec<u8>,
    ) -> Self {
        Self { kid, algorithm, salt, commitment, body }
    }

    /// The key that it needs.
    #[must_use]
    pub fn kid(&self) -> KeyId {
        self.kid
    }

    /// # Errors
    /// [`KeyError::NotSealed`] for a text that is no sealed value, [`KeyError::UnknownFormat`] for one of another version,
    /// [`KeyError::DoesNotOpen`] for one that is cut off or not in its canonical form.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let rest = text.strip_prefix("enc:").ok_or(KeyError::NotSealed)?;
        let rest = rest.strip_prefix("v1:").ok_or(KeyError::UnknownFormat)?;
        let (kid, body) = rest.split_once(':').ok_or(KeyError::DoesNotOpen)?;
        let kid = KeyId::parse(kid).ok_or(KeyError::UnknownFormat)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| KeyError::DoesNotOpen)?;
        let (algorithm, rest) = bytes.split_first().ok_or(KeyError::DoesNotOpen)?;
        let algorithm = Algorithm::from_byte(*algorithm).ok_or(KeyError::UnknownFormat)?;
        let (salt, rest) = rest.split_first_chunk().ok_or(KeyError::DoesNotOpen)?;
        let (commitment, body) = rest.split_first_chunk().ok_or(KeyError::DoesNotOpen)?;
        Ok(Self { kid, algorithm, salt: *salt, commitment: *commitment, body: body.to_vec() })
    }

    /// The text form.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut bytes = Vec::with_capacity(1 + SALT_BYTES + COMMITMENT_BYTES + self.body.len());
        bytes.push(self.algorithm.byte());
        bytes.extend_from_slice(&self.salt);
        bytes.extend_from_slice(&self.commitment);
        bytes.extend_from_slice(&self.body);
        let mut text = self.kid.prefix();
        URL_SAFE_NO_PAD.encode_string(&bytes, &mut text);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_what_is_written_is_read() {
        for text in ["d0", "d1", "o4294967295", "r0123456789abcdef"] {
            assert_eq!(KeyId::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "d", "d01", "d+1", "d-1", "d4294967296", "x1", "o 1", "r0123456789ABCDEF", "r0", "é1"] {
            assert_eq!(KeyId::parse(text), None, "{text}");
        }
        let whole = Envelope::new(KeyId::Data(3), Algorithm::Record, [1; 16], [2; 32], vec![3; 28]).to_text();
        assert_eq!(Envelope::parse(&whole).unwrap().to_text(), whole);
        for (text, error) in [
            ("", KeyError::NotSealed),
            ("hunter2", KeyError::NotSealed),
            ("ENC:v1:d1:AQ", KeyError::NotSealed),
            ("enc:v2:d1:AQ", KeyError::UnknownFormat),
            ("enc:v1:noop:AQ", KeyError::UnknownFormat),
            ("enc:v1:d1", KeyError::DoesNotOpen),
            ("enc:v1:d1:", KeyError::DoesNotOpen),
            ("enc:v1:d1:AA", KeyError::UnknownFormat),
            ("enc:v1:d1:AQ==", KeyError::DoesNotOpen),
            (&format!("{whole}="), KeyError::DoesNotOpen),
            (&format!(" {whole}"), KeyError::NotSealed),
        ] {
            assert_eq!(Envelope::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_keys_values_are_one_range_of_texts() {
        for (kid, other) in [(KeyId::Data(1), KeyId::Data(10)), (KeyId::Data(2), KeyId::Organization(2))] {
            let text = Envelope::new(kid, Algorithm::Record, [255; 16], [255; 32], vec![255; 9]).to_text();
            let within = |kid: KeyId| text >= kid.prefix() && text < kid.prefix_end();
            assert!(within(kid) && !within(other));
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_fail_but_by_an_error(text in ".{0,80}", tail in "[A-Za-z0-9_-]{0,90}") {
            let _ = Envelope::parse(&text);
            let sealed = format!("enc:v1:d1:{tail}");
            if let Ok(envelope) = Envelope::parse(&sealed) {
                prop_assert_eq!(envelope.to_text(), sealed, "there is one text for each envelope");
            }
        }
    }
}
