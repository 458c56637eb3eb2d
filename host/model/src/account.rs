//! People: the address that they sign in with, and what they are called.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use unicode_normalization::UnicodeNormalization as _;

/// Bytes of an address: RFC 5321 §4.5.3.1.3 allows a path of 256 with its brackets.
const EMAIL_BYTES_MAX: usize = 254;
/// Bytes of the part before the `@`: RFC 5321 §4.5.3.1.1.
const LOCAL_BYTES_MAX: usize = 64;
/// A person's name holds at most this many characters.
pub const NAME_LEN_MAX: usize = 100;

/// An email address in the one form that a person is found by: lower case, NFC, the domain in its ASCII form. Two addresses that reach
/// the same mailbox by case or by way of writing are one here, so that neither counts nor limits apart.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Email(String);

/// The text is no address that mail can be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an email address of the form name@example.com")]
pub struct EmailError;

impl Email {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands before the `@`.
    #[must_use]
    pub fn local_part(&self) -> &str {
        self.0.split_once('@').map_or("", |(local, _)| local)
    }
}

fn is_local_letter(letter: char) -> bool {
    letter.is_alphanumeric() || ".!#$%&'*+/=?^_`{|}~-".contains(letter)
}

impl FromStr for Email {
    type Err = EmailError;

    fn from_str(text: &str) -> Result<Self, EmailError> {
        // Normalising can make text longer; what is far too long is not looked at.
        if text.len() > 4 * EMAIL_BYTES_MAX {
            return Err(EmailError);
        }
        let (local, domain) = text.rsplit_once('@').ok_or(EmailError)?;
        let local: String = local.nfc().collect::<String>().to_lowercase().nfc().collect();
        let dots = local.starts_with('.') || local.ends_with('.') || local.contains("..");
        if local.is_empty() || local.len() > LOCAL_BYTES_MAX || dots || !local.chars().all(is_local_letter) {
            return Err(EmailError);
        }
        let Ok(url::Host::Domain(domain)) = url::Host::parse(domain) else { return Err(EmailError) };
        let labelled = domain.contains('.') && domain.split('.').all(|label| (1..=63).contains(&label.len()));
        if !labelled && domain != "localhost" {
            return Err(EmailError);
        }
        let whole = format!("{local}@{domain}");
        if whole.len() > EMAIL_BYTES_MAX { Err(EmailError) } else { Ok(Self(whole)) }
    }
}

impl fmt::Display for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for Email {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Email {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Whether a name can be shown: 1 to 100 characters, none of which controls a terminal or turns the text around.
#[must_use]
pub fn is_person_name(name: &str) -> bool {
    let odd = |letter: char| letter.is_control() || matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !name.trim().is_empty() && name.chars().count() <= NAME_LEN_MAX && !name.chars().any(odd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Option<String> {
        text.parse::<Email>().ok().map(|email| email.to_string())
    }

    /// CVE-2025-6004: a lockout that a capital letter or another way of writing leaves behind.
    #[test]
    fn ways_of_writing_one_address_are_one_person() {
        for text in ["ada@example.com", "Ada@Example.COM", "ADA@EXAMPLE.com"] {
            assert_eq!(read(text).as_deref(), Some("ada@example.com"), "{text}");
        }
        // Composed and decomposed, and a domain in both of its forms.
        assert_eq!(read("jos\u{e9}@b\u{fc}cher.example"), read("jose\u{301}@xn--bcher-kva.example"));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "ada",
            "@example.com",
            "ada@",
            "a b@example.com",
            "ada@exa mple.com",
            "ada@[127.0.0.1]",
            "ada@127.0.0.1",
            "ada@@example.com",
            ".ada@example.com",
            "ada.@example.com",
            "a..a@example.com",
            "\"a\"@example.com",
            "ada@example",
            "ada\r\nbcc: x@example.com",
            "ada\0@example.com",
            "ada@.example.com",
            "ada@example..com",
            "ada<x>@example.com",
            " ada@example.com",
        ] {
            assert_eq!(read(text), None, "{text:?}");
        }
        assert_eq!(read(&format!("{}@example.com", "a".repeat(65))), None);
        assert_eq!(read(&format!("a@{}.com", "a.".repeat(200))), None);
        assert!(read("first.last+tag@mail.example.org").is_some());
    }

    #[test]
    fn names_are_one_line_of_text() {
        for good in ["Ada Lovelace", "José", "李", "O'Neil-Smith"] {
            assert!(is_person_name(good), "{good}");
        }
        for bad in ["", "  ", "a\nb", "a\u{0}", "\u{202e}evil", &"x".repeat(101)] {
            assert!(!is_person_name(bad), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn reading_twice_changes_nothing(text in "\\PC{0,40}@\\PC{0,40}") {
            if let Some(once) = read(&text) {
                prop_assert_eq!(read(&once), Some(once));
            }
        }
    }
}
