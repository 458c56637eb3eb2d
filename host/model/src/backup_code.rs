//! Backup codes: ten for whoever lost their authenticator app, each good once.

use zeroize::Zeroizing;

use crate::ambient::Ambient;

/// Codes of one set.
pub const CODES: usize = 10;
/// Left over, from which on the person is told to make new ones.
pub const WARN_AT: usize = 3;
/// Crockford's base 32, without I, L, O and U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Five bits each: 50 bits. Source: NIST SP 800-63B-4 §3.1.2.2 asks for 20 bits, and for a password hash below 112.
const LETTERS: usize = 10;

/// A code in the one form that is hashed.
#[derive(Clone, PartialEq, Eq)]
pub struct BackupCode(Zeroizing<String>);

impl BackupCode {
    #[must_use]
    pub fn generate(ambient: &Ambient) -> Self {
        let bytes: [u8; LETTERS] = ambient.random();
        // 256 is a multiple of 32: every letter is as likely.
        Self(Zeroizing::new(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect()))
    }

    /// Reads what people type: in any case, with or without the hyphen, with the letters that are taken for digits. Anything else is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let (head, tail) = match bytes.len() {
            LETTERS => bytes.split_at(LETTERS / 2),
            11 if bytes[LETTERS / 2] == b'-' => (&bytes[..LETTERS / 2], &bytes[LETTERS / 2 + 1..]),
            _ => return None,
        };
        let mut code = Zeroizing::new(String::with_capacity(LETTERS));
        for byte in head.iter().chain(tail) {
            let letter = match byte.to_ascii_uppercase() {
                b'O' => b'0',
                b'I' | b'L' => b'1',
                other => other,
            };
            if !ALPHABET.contains(&letter) {
                return None;
            }
            code.push(char::from(letter));
        }
        Some(Self(code))
    }

    /// What is hashed.
    #[must_use]
    pub fn canonical(&self) -> &str {
        &self.0
    }

    /// As it is shown: `01234-ABCDE`.
    #[must_use]
    pub fn reveal(&self) -> String {
        let (head, tail) = self.0.split_at(LETTERS / 2);
        format!("{head}-{tail}")
    }
}

impl std::fmt::Debug for BackupCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BackupCode(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;
    use proptest::prelude::*;

    #[test]
    fn what_people_type_is_read() {
        let code = BackupCode::parse("01ABC-DEFGH").unwrap();
        for same in ["01ABCDEFGH", "o1abc-defgh", "OLABCDEFGH", "0iabcdefgh"] {
            assert_eq!(BackupCode::parse(same), Some(code.clone()), "{same}");
        }
        assert_eq!((code.canonical(), code.reveal().as_str()), ("01ABCDEFGH", "01ABC-DEFGH"));
        for bad in
            ["", "01ABC-DEFG", "01ABC DEFGH", "01ABCD-EFGH", "01ABCDEFGU", " 01ABCDEFGH", "01ABCDEFGHJ", "０1ABCDEFG"]
        {
            assert_eq!(BackupCode::parse(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read(seed: u64) {
            let code = BackupCode::generate(&Ambient::manual(Timestamp::from_micros(0), seed));
            prop_assert_eq!(BackupCode::parse(&code.reveal()), Some(code.clone()));
            prop_assert_eq!(BackupCode::parse(&code.reveal().to_lowercase()), Some(code));
        }

        #[test]
        fn any_text_is_looked_at_without_panic(text: String) {
            if let Some(code) = BackupCode::parse(&text) {
                prop_assert_eq!(code.canonical().len(), LETTERS);
            }
        }
    }
}
