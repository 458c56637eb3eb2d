//! What an entry says for ever: the bytes that are hashed, chained and signed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::canonical::{self, INTEGER_MAX};
use crate::hash::Hash;
use crate::merkle;
use crate::taxonomy::{ActorKind, Category, EventType, Outcome, Severity};

/// The version of the record's format.
pub const VERSION: u8 = 1;
/// The longest id, name or token in a record, in bytes. What is longer belongs into the payload.
pub const TOKEN_BYTES_MAX: usize = 200;
/// How many entries one disposal names at most; a longer list is several disposals.
pub const DISPOSED_MAX: usize = 1000;
/// The longest record, in bytes.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;

/// The text is not what a record may hold there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    #[error("a moment is written like 2026-11-21T08:00:00.000000Z")]
    Moment,
    #[error("1 to 200 printable ASCII characters without spaces, quotes and backslashes")]
    Token,
}

/// A moment as `2026-11-21T08:00:00.000000Z`: UTC, always six digits, so that text sorts as time does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(String);

/// An id, name or reason code: printable ASCII of 1 to 200 bytes. Anything that people may have typed belongs into the payload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(String);

macro_rules! text {
    ($name:ident, $error:ident, $rule:ident) => {
        impl $name {
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = TextError;

            fn from_str(text: &str) -> Result<Self, TextError> {
                if $rule(text) { Ok(Self(text.to_owned())) } else { Err(TextError::$error) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

text!(Moment, Moment, is_moment);
text!(Token, Token, is_token);

fn is_moment(text: &str) -> bool {
    const SHAPE: &[u8; 27] = b"0000-00-00T00:00:00.000000Z";
    text.len() == SHAPE.len()
        && text.bytes().zip(SHAPE).all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            other => byte == *other,
        })
}

fn is_token(text: &str) -> bool {
    (1..=TOKEN_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
}

impl Token {
    /// The text as a token; what a token cannot hold is replaced by `~` and what is too long is cut.
    #[must_use]
    pub fn from_any(text: &str) -> Self {
        let fits = |letter: char| letter.is_ascii_graphic() && letter != '"' && letter != '\\';
        let token: String =
            text.chars().take(TOKEN_BYTES_MAX).map(|letter| if fits(letter) { letter } else { '~' }).collect();
        if token.is_empty() { Self("~".to_owned()) } else { Self(token) }
    }
}

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Actor {
    pub kind: ActorKind,
    pub id: Token,
    /// The session, key or plugin through which the actor acted, where that is somebody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Token>,
    /// Who acted in the actor's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impersonator: Option<Token>,
}

/// What was acted on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    pub kind: Token,
    pub id: Token,
}

/// Which payloads an entry of the compliance kind disposed of. It stays in the chain, so the gap explains itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disposal {
    /// Under what: `retention:400d`, or the request for erasure.
    pub policy: Token,
    /// Payloads of entries of these categories that happened before this moment …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Moment>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<Category>,
    /// … or, where no moment is said, of exactly these entries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<u64>,
}

impl Disposal {
    /// Whether it explains that this entry has no payload.
    #[must_use]
    pub fn covers(&self, record: &Record) -> bool {
        match &self.before {
            Some(before) => record.ts < *before && self.categories.contains(&record.category),
            None => self.entries.contains(&record.seq),
        }
    }
}

/// The reason code of an entry whose type the program that sealed it did not know. Its category is [`Category::System`], whatever a
/// program that knows the type says.
pub const UNKNOWN_TYPE: &str = "unknown_type";

/// What an entry is about: a type of the closed list, or a name that this program does not know. A newer program wrote such a one, and
/// it gets its place all the same: what has none can still be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Known(EventType),
    Unknown(Token),
}

impl From<EventType> for Event {
    fn from(event: EventType) -> Self {
        Self::Known(event)
    }
}

impl Event {
    /// The event with this name.
    #[must_use]
    pub fn named(name: &str) -> Self {
        EventType::from_name(name).map_or_else(|| Self::Unknown(Token::from_any(name)), Self::Known)
    }

    #[must_use]
    pub fn category(&self) -> Category {
        match self {
            Self::Known(event) => event.category(),
            Self::Unknown(_) => Category::System,
        }
    }

    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::Known(event) => event.severity(),
            Self::Unknown(_) => Severity::Warning,
        }
    }

    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Known(event) => event.outcome(),
            Self::Unknown(_) => Outcome::Success,
        }
    }

    pub(crate) fn name(&self) -> Token {
        match self {
            Self::Known(event) => Token::from_any(event.as_str()),
            Self::Unknown(name) => name.clone(),
        }
    }
}

/// What happened, before it has a place in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    pub id: Token,
    pub ts: Moment,
    pub event: Event,
    pub severity: Severity,
    pub actor: Actor,
    pub target: Target,
    pub outcome: Outcome,
    /// A code, never a sentence.
    pub reason: Option<Token>,
    pub session: Option<Token>,
    /// What belongs together: a request, a run.
    pub correlation: Option<Token>,
    /// What caused it: another entry's id, a job.
    pub causation: Option<Token>,
    pub payload_commit: Hash,
    /// The verifier key text that is in force from the next entry on, in an entry that opens a log or rotates its key.
    pub key: Option<String>,
    pub disposal: Option<Disposal>,
}

/// What happened, at its place in the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub v: u8,
    pub org: Token,
    /// From 0, without gaps.
    pub seq: u64,
    pub id: Token,
    pub ts: Moment,
    /// An [`EventType`]'s name. A verifier that is older than the log may not know it.
    #[serde(rename = "type")]
    pub event: Token,
    pub category: Category,
    pub severity: Severity,
    pub actor: Actor,
    pub target: Target,
    pub outcome: Outcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Token>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Token>,
    #[serde(rename = "corr", default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<Token>,
    #[serde(rename = "cause", default, skip_serializing_if = "Option::is_none")]
    pub causation: Option<Token>,
    pub payload_commit: Hash,
    /// The leaf hash of the entry before it; of the first one, [`genesis`].
    pub prev: Hash,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disposal: Option<Disposal>,
}

/// Why bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("it is not a record: {0}")]
    Malformed(String),
    #[error("it is not written in the canonical form")]
    NotCanonical,
    #[error("its format is version {0}, which this program does not know")]
    Version(u8),
    #[error("it is longer than {RECORD_BYTES_MAX} bytes")]
    TooLong,
}

impl Record {
    /// The bytes that are hashed.
    ///
    /// # Panics
    /// Never: a record consists of text and integers below 2^53.
    #[must_use]
    pub fn to_canonical(&self) -> String {
        canonical::text(self).expect("a record consists of text and small integers")
    }

    /// Reads a record; only its canonical bytes are accepted.
    ///
    /// # Errors
    /// When the text is not a record of this version in its one canonical form.
    pub fn from_canonical(text: &str) -> Result<Self, RecordError> {
        if text.len() > RECORD_BYTES_MAX {
            return Err(RecordError::TooLong);
        }
        let record: Self = serde_json::from_str(text).map_err(|error| RecordError::Malformed(error.to_string()))?;
        if record.v != VERSION {
            return Err(RecordError::Version(record.v));
        }
        let numbers_fit = record.seq <= INTEGER_MAX
            && record.disposal.iter().flat_map(|disposal| &disposal.entries).all(|seq| *seq <= INTEGER_MAX);
        if !numbers_fit || record.to_canonical() != text {
            return Err(RecordError::NotCanonical);
        }
        Ok(record)
    }

    /// Whether whoever sealed it did not know its type.
    #[must_use]
    pub fn is_of_unknown_type(&self) -> bool {
        self.category == Category::System && self.reason.as_ref().is_some_and(|reason| reason.as_str() == UNKNOWN_TYPE)
    }

    /// What happened, where this program knows it.
    #[must_use]
    pub fn event_type(&self) -> Option<EventType> {
        EventType::from_name(self.event.as_str())
    }
}

/// The leaf hash of a record's canonical bytes: what the chain links and the tree holds.
#[must_use]
pub fn leaf_hash(canonical: &str) -> Hash {
    merkle::leaf(canonical.as_bytes())
}

/// What the first entry of an organization's log names as the one before it.
#[must_use]
pub fn genesis(org: &Token) -> Hash {
    Hash::of(&[b"bulkhead audit genesis v1\n", org.as_str().as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_have_one_form() {
        assert!("2026-11-21T08:00:00.123456Z".parse::<Moment>().is_ok());
        for text in ["2026-11-21T08:00:00Z", "2026-11-21 08:00:00.123456Z", "2026-11-21T08:00:00.123456+00:00", ""] {
            assert_eq!(text.parse::<Moment>(), Err(TextError::Moment), "{text}");
        }
    }

    #[test]
    fn tokens_hold_no_text_of_people() {
        for text in ["", "a b", "a\"b", "a\\b", "a\nb", "é", &"a".repeat(201)] {
            assert_eq!(text.parse::<Token>(), Err(TextError::Token), "{text}");
            assert!(is_token(Token::from_any(text).as_str()));
        }
        assert_eq!(Token::from_any("system:console run").as_str(), "system:console~run");
    }

    #[test]
    fn a_disposal_covers_what_it_names() {
        let disposal = Disposal {
            policy: "retention:90d".parse().unwrap(),
            before: Some("2026-01-01T00:00:00.000000Z".parse().unwrap()),
            categories: vec![Category::DataAccess],
            entries: vec![],
        };
        let named = Disposal { before: None, categories: vec![], entries: vec![7], ..disposal.clone() };
        let mut record = Record {
            v: VERSION,
            org: "org_1".parse().unwrap(),
            seq: 3,
            id: "aud_1".parse().unwrap(),
            ts: "2025-12-31T23:59:59.999999Z".parse().unwrap(),
            event: "audit.read".parse().unwrap(),
            category: Category::DataAccess,
            severity: Severity::Info,
            actor: Actor { kind: ActorKind::User, id: "usr_1".parse().unwrap(), via: None, impersonator: None },
            target: Target { kind: "audit".parse().unwrap(), id: "org_1".parse().unwrap() },
            outcome: Outcome::Success,
            reason: None,
            session: None,
            correlation: None,
            causation: None,
            payload_commit: Hash::of(&[]),
            prev: Hash::of(&[]),
            key: None,
            disposal: None,
        };
        assert!(disposal.covers(&record));
        record.category = Category::Security;
        assert!(!disposal.covers(&record) && !named.covers(&record));
        record.seq = 7;
        assert!(!disposal.covers(&record) && named.covers(&record));
        record.seq = 3;
        record.category = Category::DataAccess;
        record.ts = "2026-01-01T00:00:00.000000Z".parse().unwrap();
        assert!(!disposal.covers(&record));
        assert_eq!(Record::from_canonical(&record.to_canonical()), Ok(record.clone()));
        let spaced = record.to_canonical().replacen(',', ", ", 1);
        assert_eq!(Record::from_canonical(&spaced), Err(RecordError::NotCanonical));
        record.v = 2;
        assert_eq!(Record::from_canonical(&record.to_canonical()), Err(RecordError::Version(2)));
    }
}
