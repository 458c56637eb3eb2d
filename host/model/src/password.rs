//! Which passwords are good enough, and how their hashes are written down.
//!
//! Source: NIST SP 800-63B-4 §3.1.1 (length, blocklist, normalisation, no composition rules, no expiry).

mod common;

use unicode_normalization::UnicodeNormalization as _;
use zeroize::Zeroizing;

use crate::account::Email;

/// Characters (code points) when the password is the only factor.
pub const LEN_MIN_ALONE: usize = 15;
/// … and when there is always a second one.
pub const LEN_MIN_WITH_MFA: usize = 8;
/// Characters at most …
pub const LEN_MAX: usize = 128;
/// … and bytes, so that hashing cannot be made expensive.
pub const BYTES_MAX: usize = 1024;
/// A password that holds a name, an address or the product's own name must be this long without it.
const REST_MIN: usize = 8;
/// Shorter words are found everywhere.
const WORD_LEN_MIN: usize = 4;

/// A password in the form that is hashed: NFC. Prints nothing, and is wiped.
#[derive(Clone)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// Normalises; `None` for one that is too long to be anybody's.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        // NFC makes text at most three times as long.
        if text.len() > BYTES_MAX {
            return None;
        }
        let mut normal = Zeroizing::new(String::with_capacity(3 * text.len()));
        normal.extend(text.nfc());
        (normal.len() <= BYTES_MAX && normal.chars().count() <= LEN_MAX).then_some(Self(normal))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(…)")
    }
}

/// Why a password is refused; the text tells what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Weak {
    #[error("use at least {0} characters: a few words that do not belong together are easy to remember")]
    TooShort(usize),
    #[error("use at most 128 characters")]
    TooLong,
    #[error("this password is on lists that attackers try first: choose another one")]
    Common,
    #[error("this password is a few characters repeated or in a row: choose another one")]
    Pattern,
    #[error("this password is mostly your name, your address or the product's name: choose another one")]
    Personal,
    #[error("this password was stolen from somebody somewhere, and is tried first: choose another one")]
    Breached,
}

impl Weak {
    /// Stable, for programs.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::TooShort(_) => "too-short",
            Self::TooLong => "too-long",
            Self::Common => "common",
            Self::Pattern => "pattern",
            Self::Personal => "personal",
            Self::Breached => "breached",
        }
    }
}

/// Whether a person may choose this password.
///
/// # Errors
/// The reason why not.
pub fn check(password: &Password, len_min: usize, email: &Email, name: &str) -> Result<(), Weak> {
    let text = password.0.as_str();
    if text.chars().count() < len_min {
        return Err(Weak::TooShort(len_min));
    }
    let folded = Zeroizing::new(text.to_lowercase());
    if common::is_listed(&folded) {
        return Err(Weak::Common);
    }
    if is_pattern(&folded) {
        return Err(Weak::Pattern);
    }
    let mut rest = Zeroizing::new(folded.to_string());
    let domain = email.as_str().rsplit_once('@').map_or("", |(_, domain)| domain);
    let name = name.to_lowercase();
    let personal = [email.as_str(), email.local_part(), "bulkhead"]
        .into_iter()
        .chain(email.local_part().split(|letter: char| !letter.is_alphanumeric()))
        .chain(domain.split('.'))
        .chain(name.split(|letter: char| !letter.is_alphanumeric()));
    for word in personal.filter(|word| word.chars().count() >= WORD_LEN_MIN) {
        rest = Zeroizing::new(rest.replace(word, ""));
    }
    if rest.len() != folded.len() && rest.chars().filter(|letter| letter.is_alphanumeric()).count() < REST_MIN {
        return Err(Weak::Personal);
    }
    if common::is_made_of_listed(&folded) {
        return Err(Weak::Common);
    }
    Ok(())
}

/// Letters that people write as digits and signs.
fn unleet(letter: char) -> char {
    match letter {
        '0' => 'o',
        '1' | '!' => 'i',
        '3' => 'e',
        '4' | '@' => 'a',
        '5' | '$' => 's',
        '7' => 't',
        other => other,
    }
}

/// The shortest part that the text is made of by repetition, if that is not the whole.
fn unit(text: &str) -> Option<Zeroizing<String>> {
    let letters: Zeroizing<Vec<char>> = Zeroizing::new(text.chars().collect());
    (1..=letters.len() / 2)
        .find(|length| letters.iter().zip(letters.iter().skip(*length)).all(|(one, next)| one == next))
        .map(|length| Zeroizing::new(letters[..length].iter().collect()))
}

/// Rows that fingers run along.
const ROWS: [&str; 4] = ["qwertyuiop", "asdfghjkl", "zxcvbnm", "1234567890"];

/// Whether two letters follow each other in the alphabet, among the digits, or on a keyboard, in either direction.
fn is_step(one: char, next: char) -> bool {
    let alphabet = u32::from(one).abs_diff(u32::from(next)) == 1 && one.is_alphanumeric() && next.is_alphanumeric();
    let row = ROWS.iter().any(|row| {
        let place = |letter| row.chars().position(|other| other == letter);
        place(one).zip(place(next)).is_some_and(|(one, next)| one.abs_diff(next) == 1)
    });
    one == next || alphabet || row
}

/// Whether nearly all of it is repetition or rows: what is neither is fewer than eight characters.
fn is_pattern(folded: &str) -> bool {
    let count = folded.chars().count();
    if unit(folded).is_some_and(|unit| unit.chars().count() < REST_MIN.min(count / 2 + 1)) {
        return true;
    }
    let free = 1 + folded.chars().zip(folded.chars().skip(1)).filter(|(one, next)| !is_step(*one, *next)).count();
    free < (REST_MIN - 2).min(count)
}

/// How expensive argon2id is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    pub memory_kib: u32,
    pub passes: u32,
    pub lanes: u32,
}

impl Cost {
    /// 64 MiB, three passes. Source: RFC 9106 §4, second recommended option, on one lane.
    pub const DEFAULT: Self = Self { memory_kib: 65_536, passes: 3, lanes: 1 };
    /// Below this nothing starts. Source: OWASP Password Storage Cheat Sheet; ASVS 5.0 appendix C.
    pub const FLOOR: Self = Self { memory_kib: 19_456, passes: 2, lanes: 1 };
    /// 1 GiB: what is configured by mistake must not take the machine.
    const MEMORY_KIB_MAX: u32 = 1_048_576;

    /// Whether passwords may be hashed so.
    #[must_use]
    pub fn is_allowed(self) -> bool {
        let Self { memory_kib, passes, lanes } = self;
        (Self::FLOOR.memory_kib..=Self::MEMORY_KIB_MAX).contains(&memory_kib)
            && (Self::FLOOR.passes..=16).contains(&passes)
            && (Self::FLOOR.lanes..=16).contains(&lanes)
    }

    /// Whether a hash of this cost is to be made anew now that `wanted` is asked for.
    #[must_use]
    pub fn is_below(self, wanted: Self) -> bool {
        self.memory_kib < wanted.memory_kib || self.passes < wanted.passes || self.lanes != wanted.lanes
    }
}

/// The version of the pepper that new hashes are keyed with.
pub const PEPPER_VERSION: u32 = 1;

/// A hash as stored: argon2id's output, keyed with the pepper, and what it takes to compute it again.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredPassword {
    pub cost: Cost,
    pub pepper_version: u32,
    pub salt: [u8; 16],
    /// HMAC-SHA-256 of argon2id's output under the pepper.
    pub tag: [u8; 32],
}

impl std::fmt::Display for StoredPassword {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Cost { memory_kib, passes, lanes } = self.cost;
        let (salt, tag) = (hex::encode(self.salt), hex::encode(self.tag));
        write!(f, "argon2id,19,{memory_kib},{passes},{lanes},{},{salt},{tag}", self.pepper_version)
    }
}

impl std::fmt::Debug for StoredPassword {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoredPassword(…)")
    }
}

impl StoredPassword {
    /// Reads what `Display` wrote; `None` for anything else, and for a cost that would take the machine.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(',').collect();
        let ["argon2id", "19", memory, passes, lanes, pepper, salt, tag] = parts[..] else { return None };
        let cost = Cost { memory_kib: memory.parse().ok()?, passes: passes.parse().ok()?, lanes: lanes.parse().ok()? };
        let mut stored = Self { cost, pepper_version: pepper.parse().ok()?, salt: [0; 16], tag: [0; 32] };
        hex::decode_to_slice(salt, &mut stored.salt).ok()?;
        hex::decode_to_slice(tag, &mut stored.tag).ok()?;
        cost.is_allowed().then_some(stored)
    }

    /// Whether a new hash is to be made of the password that was just proven.
    #[must_use]
    pub fn is_outdated(&self, wanted: Cost) -> bool {
        self.cost.is_below(wanted) || self.pepper_version != PEPPER_VERSION
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn verdict(text: &str) -> Result<(), Weak> {
        let email = "ada.lovelace@engines.example".parse().unwrap();
        check(&Password::new(text).unwrap(), LEN_MIN_ALONE, &email, "Ada Lovelace")
    }

    #[test]
    fn words_that_do_not_belong_together_are_good() {
        for good in [
            "violet cement orbit",
            "Zm9vYmFyIGlzIG5pY2U",
            "drei Äpfel im Schrank",
            "我的密码是很长的一句话而且没有人知道",
            "qTz!81-mmKd_04xA",
            "ada likes marzipan on trains",
        ] {
            assert_eq!(verdict(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn the_reason_is_said() {
        for (bad, why) in [
            ("short", Weak::TooShort(15)),
            ("fourteen chars", Weak::TooShort(15)),
            ("passwordpassword", Weak::Common),
            ("password1234567", Weak::Common),
            ("P@ssw0rdP@ssw0rd", Weak::Common),
            ("!!!iloveyou!!!!!", Weak::Common),
            ("aaaaaaaaaaaaaaaa", Weak::Pattern),
            ("abababababababab", Weak::Pattern),
            ("123456789012345", Weak::Pattern),
            ("qwertyuiopasdfgh", Weak::Pattern),
            ("abcdefghijklmnop", Weak::Pattern),
            ("adalovelace-2026", Weak::Personal),
            ("Lovelace.Ada.1815", Weak::Personal),
            ("bulkheadbulkhead1", Weak::Personal),
            ("ada.lovelace@engines.example", Weak::Personal),
        ] {
            assert_eq!(verdict(bad), Err(why), "{bad}");
        }
    }

    #[test]
    fn characters_are_counted_not_bytes_and_after_normalising() {
        // Fourteen characters, each written as two.
        assert_eq!(verdict(&"e\u{301}x".repeat(7)), Err(Weak::TooShort(15)));
        assert_eq!(Password::new("cafe\u{301}").unwrap().as_bytes(), Password::new("caf\u{e9}").unwrap().as_bytes());
        assert!(Password::new(&"x".repeat(128)).is_some());
        assert!(Password::new(&"x".repeat(129)).is_none());
        assert!(Password::new(&"x".repeat(100_000)).is_none());
    }

    #[test]
    fn no_composition_is_asked_for() {
        assert_eq!(verdict("nothing but letters here"), Ok(()));
    }

    #[test]
    fn a_cost_below_the_floor_or_beyond_the_machine_is_refused() {
        assert!(Cost::DEFAULT.is_allowed() && Cost::FLOOR.is_allowed());
        for cost in [
            Cost { memory_kib: 19_455, ..Cost::FLOOR },
            Cost { passes: 1, ..Cost::FLOOR },
            Cost { lanes: 0, ..Cost::FLOOR },
            Cost { memory_kib: u32::MAX, ..Cost::FLOOR },
            Cost { passes: 1_000, ..Cost::FLOOR },
        ] {
            assert!(!cost.is_allowed(), "{cost:?}");
        }
        assert!(Cost::FLOOR.is_below(Cost::DEFAULT) && !Cost::DEFAULT.is_below(Cost::FLOOR));
    }

    proptest! {
        #[test]
        fn hashes_round_trip(salt: [u8; 16], tag: [u8; 32], memory_kib in 19_456_u32..1_048_576) {
            let stored = StoredPassword { cost: Cost { memory_kib, ..Cost::FLOOR }, pepper_version: 1, salt, tag };
            prop_assert_eq!(StoredPassword::parse(&stored.to_string()), Some(stored));
        }

        #[test]
        fn any_text_is_judged_without_panic(text in "\\PC{0,60}") {
            if let Some(password) = Password::new(&text) {
                let email = "ada@example.com".parse().unwrap();
                let _ = check(&password, LEN_MIN_WITH_MFA, &email, &text);
            }
            prop_assert_eq!(StoredPassword::parse(&text), None);
        }
    }
}
