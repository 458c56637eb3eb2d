//! What tells one fault from another: a fingerprint that stays the same while ids, numbers and values change.
//!
//! A thousand runs that fail because one channel was archived are one fault, not a thousand; people look at it once and resume all of
//! them together.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// Bytes of a message that are looked at; what follows tells no two faults apart.
const READ_BYTES_MAX: usize = 4_096;
/// Characters of a normalised message that count.
const SHAPE_CHARS_MAX: usize = 400;
/// Bytes of the hash that are shown, as hexadecimal digits. Two faults of one organization meet by chance at some four billion.
const HASH_BYTES: usize = 8;
/// Stands for whatever differs from one occurrence to the next.
const ANY: &str = "#";

/// Something that went wrong for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault<'f> {
    /// What it happened to: `run`, or the kind of a job.
    pub kind: &'f str,
    /// The error's stable code.
    pub code: &'f str,
    /// The step of the definition at which it happened. Not the workflow: where one cause fails many workflows, it is one fault.
    pub step: Option<&'f str>,
    /// For people; ids, numbers, hexadecimal digits, quoted values and addresses in it do not count.
    pub message: &'f str,
}

/// 16 hexadecimal digits that are the same for every occurrence of a fault.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(String);

/// The text is no fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is {} hexadecimal digits in lower case", HASH_BYTES * 2)]
pub struct FingerprintError;

impl Fault<'_> {
    /// Stable across versions of Bulkhead: stored ones are compared with new ones.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new_with_prefix(b"fault v1");
        for part in [self.kind, self.code, self.step.unwrap_or_default(), &shape(self.message)] {
            // Each with its length, so that no two divisions of a text are equal.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        Fingerprint(hex::encode(&hash.finalize()[..HASH_BYTES]))
    }
}

impl Fingerprint {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same as a number, for cursors.
    #[must_use]
    pub fn to_number(&self) -> i64 {
        let mut bytes = [0; HASH_BYTES];
        hex::decode_to_slice(&self.0, &mut bytes).expect("a fingerprint is made of hexadecimal digits");
        i64::from_be_bytes(bytes)
    }

    #[must_use]
    pub fn from_number(number: i64) -> Self {
        Self(hex::encode(number.to_be_bytes()))
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == HASH_BYTES * 2 && text.bytes().all(is_digit) {
            Ok(Self(text.to_owned()))
        } else {
            Err(FingerprintError)
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What differs from one occurrence to the next. The first alternative that fits at a place is taken, so the order counts.
static VARYING: LazyLock<Regex> = LazyLock::new(|| {
    let alternatives = [
        // Addresses: URLs, mail, hosts with a port, IPv6. A host alone stays: it tells whose service failed.
        r#"[A-Za-z][A-Za-z0-9+.-]*://[^\s"'<>`]+"#,
        r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*",
        r"\[[0-9A-Fa-f]*:[0-9A-Fa-f:.]*\](?::\d+)?",
        r"\b[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+:\d+\b",
        // Quoted values. What stands in backticks is a name of the definition or of the code, and stays.
        r#""(?:[^"\\]|\\.)*""#,
        r"(?P<before>^|[\s(\[{=:,])'[^']*'",
        // The status of an answer says what is wrong.
        r"(?i:(?P<status>\b(?:http|status|answered|code)[ :=]{1,2}[1-5]\d\d\b))",
        // Moments, UUIDs, numbers with their units.
        r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d[\d:.]*(?:Z|[+-]\d\d:?\d\d)?",
        r"\b[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}\b",
        r"-?\b\d+(?:[.,:]\d+)*(?: ?(?:ns|us|µs|ms|s|min|h|d|B|kB|KB|MB|GB|KiB|MiB|GiB|bytes|%))?(?:\b|$)",
        // Words with a digit and letters, as ids and hashes are; and hashes that happen to have none.
        r"[\w-]*\d[\w-]*",
        r"\b[0-9A-Fa-f]{8,}\b",
    ];
    Regex::new(&alternatives.join("|")).expect("the pattern is a constant that a test compiles")
});

/// Several of them in a row: a list is the same fault whatever its length.
static SEVERAL: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"#(?:[,;]? ?#)+").expect("the pattern is a constant that a test compiles"));

/// The message with everything that differs from one occurrence to the next made equal.
#[must_use]
pub fn shape(message: &str) -> String {
    let head = &message[..message.floor_char_boundary(READ_BYTES_MAX)];
    let replaced = VARYING.replace_all(head, |found: &Captures<'_>| {
        if let Some(status) = found.name("status") {
            return status.as_str().to_owned();
        }
        let before = found.name("before").map_or("", |before| before.as_str());
        format!("{before}{ANY}")
    });
    let one_line = replaced.split_whitespace().collect::<Vec<_>>().join(" ");
    SEVERAL.replace_all(&one_line, ANY).chars().take(SHAPE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ambient::Ambient;
    use crate::id::RunId;
    use crate::time::Timestamp;

    fn of(message: &str) -> Fingerprint {
        Fault { kind: "run", code: "permanent", step: Some("send"), message }.fingerprint()
    }

    #[test]
    fn a_message_keeps_its_words() {
        for (message, expected) in [
            ("channel \"C0427\" is archived", "channel # is archived"),
            ("no user 'bob' here, don't ask", "no user # here, don't ask"),
            ("customer cus_N4x9Zk has 3 open orders", "customer # has # open orders"),
            ("took 1,234.5 ms of 1000ms", "took # of #"),
            ("https://api.example.com/v1/x?y=1 answered 404", "# answered 404"),
            ("the server answered 500 at 2026-11-21T08:00:00.123Z", "the server answered 500 at #"),
            ("bob@example.com and 10.0.0.1:8080, [::1]:80", "# and #"),
            ("missing [1, 2, 3] of `items`", "missing [#] of `items`"),
            ("commit deadbeef of 3f2a", "commit # of #"),
            ("run 0198d4a2-7c1e-7abc-8def-0123456789ab", "run #"),
            ("/items/12/name:  must\n be text", "/items/#/name: must be text"),
            ("", ""),
        ] {
            assert_eq!(shape(message), expected, "{message}");
        }
    }

    #[test]
    fn different_faults_have_different_fingerprints() {
        let fault = Fault { kind: "run", code: "permanent", step: Some("send"), message: "the channel is archived" };
        let faults = [
            fault,
            Fault { kind: "fire_schedule", ..fault },
            Fault { code: "transient", ..fault },
            Fault { step: Some("tell"), ..fault },
            Fault { step: None, ..fault },
            Fault { message: "the channel is private", ..fault },
            Fault { message: "the server answered 404", ..fault },
            Fault { message: "the server answered 500", ..fault },
            Fault { message: "`name` is missing", ..fault },
            Fault { message: "`mail` is missing", ..fault },
            Fault { message: "slack.com cannot be reached", ..fault },
            Fault { message: "github.com cannot be reached", ..fault },
        ];
        let mut found: Vec<Fingerprint> = faults.iter().map(Fault::fingerprint).collect();
        found.sort();
        found.dedup();
        assert_eq!(found.len(), faults.len());
    }

    /// What is stored is compared with what comes: a change here divides every fault in two.
    #[test]
    fn fingerprints_do_not_change() {
        assert_eq!(of("customer cus_N4x9Zk has 3 open orders").as_str(), "af26dc8235dcfe41");
    }

    #[test]
    fn only_a_fingerprint_is_read_as_one() {
        let fingerprint = of("x");
        assert_eq!(fingerprint.as_str().parse(), Ok(fingerprint.clone()));
        assert_eq!(Fingerprint::from_number(fingerprint.to_number()), fingerprint);
        for text in ["", "0123", "0123456789ABCDEF", "0123456789abcdeg", "0123456789abcdef0"] {
            assert_eq!(text.parse::<Fingerprint>(), Err(FingerprintError), "{text}");
        }
    }

    /// What a fault's message may hold that says nothing about the fault.
    fn varying() -> impl Strategy<Value = String> {
        let run = |(at, seed): (u32, u64)| {
            RunId::new(&Ambient::manual(Timestamp::from_micros(i64::from(at)), seed)).to_string()
        };
        prop_oneof![
            any::<(u32, u64)>().prop_map(run),
            any::<u128>().prop_map(|bits| uuid::Uuid::from_u128(bits).to_string()),
            any::<i64>().prop_map(|number| number.to_string()),
            (0_u32..1_000_000, 0_u32..1_000).prop_map(|(whole, part)| format!("{whole}.{part} ms")),
            "[0-9a-f]{8,40}",
            "0x[0-9a-f]{1,16}",
            "\"[^\"\\\\]{0,40}\"",
            "'[^']{0,40}'",
            "[a-z]{1,9}@[a-z]{1,9}\\.com",
            "https://[a-z]{1,9}\\.com(/[a-z0-9]{0,9}){0,3}",
            (any::<[u8; 4]>(), any::<u16>())
                .prop_map(|(a, port)| format!("{}.{}.{}.{}:{port}", a[0], a[1], a[2], a[3])),
            any::<[u8; 4]>().prop_map(|a| format!("{}.{}.{}.{}", a[0], a[1], a[2], a[3])),
        ]
    }

    proptest! {
        #[test]
        fn the_same_fault_with_other_values_has_the_same_fingerprint(
            words in prop::collection::vec("[A-Z][a-z]{2,6}", 2..8), first in varying(), second in varying(), at in 0_usize..8,
        ) {
            let with = |value: &str| {
                let mut words = words.clone();
                words.insert(at.min(words.len()), value.to_owned());
                words.join(" ")
            };
            prop_assert_eq!(of(&with(&first)), of(&with(&second)), "{:?} {:?}", shape(&with(&first)), shape(&with(&second)));
        }

        #[test]
        fn words_that_hold_no_value_stay(words in prop::collection::vec("[g-z]{1,9}", 1..9)) {
            let message = words.join(" ");
            prop_assert_eq!(shape(&message), message);
        }

        #[test]
        fn every_text_has_one(message in any::<String>()) {
            prop_assert_eq!(of(&message).as_str().len(), 16);
            prop_assert_eq!(shape(&shape(&message)).is_empty(), shape(&message).is_empty());
        }
    }
}
