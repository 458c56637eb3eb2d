//! Bundles: a log, or a selection of it, as a file that proves itself. JSON Lines, one kind of thing a line.
//!
//! The first line says whose log it is and where it begins; entries and checkpoints follow; the last line is a signed note over all
//! bytes before it. A *range* holds every entry from one number up to a checkpoint, whose root is computed anew. A *selection* holds some
//! entries, each with its path to the root of the checkpoint that comes first. `docs/formats/audit-bundle.md` is the description for
//! others' programs.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::chain::Entry;
use crate::hash::Hash;
use crate::key::{KeyId, SIGNATURE_BYTES, SignerKey, VerifierKey};
use crate::note::{Note, NoteError};
use crate::payload::Salt;
use crate::record::{RECORD_BYTES_MAX, Token};

/// The version of the bundle's format.
pub const VERSION: u8 = 1;
/// The longest line, in bytes: a record, the largest payload ([`PAYLOAD_BYTES_MAX`](crate::payload::PAYLOAD_BYTES_MAX)), proofs.
pub const LINE_BYTES_MAX: usize = 4 * RECORD_BYTES_MAX;

/// An Ed25519 signature; as text base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignatureBytes(pub [u8; SIGNATURE_BYTES]);

/// The text is not 64 bytes in base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an Ed25519 signature in base64")]
pub struct SignatureError;

impl FromStr for SignatureBytes {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let bytes = STANDARD.decode(text).map_err(|_| SignatureError)?;
        Ok(Self(bytes.try_into().map_err(|_| SignatureError)?))
    }
}

impl fmt::Display for SignatureBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl Serialize for SignatureBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SignatureBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Which entries a bundle holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Coverage {
    /// Every entry from `first` up to the last checkpoint.
    Range,
    /// Some entries, each with its path.
    Selection,
}

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    pub v: u8,
    pub org: Token,
    pub origin: String,
    pub coverage: Coverage,
    /// A range's first entry; 0 for a selection.
    pub first: u64,
    /// The leaf hash of the entry before `first`.
    pub prev: Hash,
    /// The roots of the full subtrees over the entries before `first`, largest first.
    pub edge: Vec<Hash>,
    /// A range from later than 0: the verifier key in force at `first`. A selection: every key that the log has had.
    pub keys: Vec<String>,
}

/// An entry's payload, or why it is not there.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Payload {
    Shown {
        salt: Salt,
        /// The exact bytes that were committed to.
        value: Box<RawValue>,
    },
    /// Disposed of under a policy, as the entry with the number `by` says.
    Expired { policy: Token, by: u64 },
    /// There is one, which the reader of the bundle may not see.
    Withheld,
}

/// An entry with what proves it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntryLine {
    pub record: Box<RawValue>,
    pub key: KeyId,
    pub signature: SignatureBytes,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endorsement: Option<SignatureBytes>,
    pub payload: Payload,
    /// In a selection: the path to the checkpoint's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Vec<Hash>>,
}

impl EntryLine {
    /// The line of an entry with its record's canonical text.
    ///
    /// # Errors
    /// When the text is not JSON.
    pub fn new(text: &str, key: KeyId, signature: [u8; SIGNATURE_BYTES], payload: Payload) -> serde_json::Result<Self> {
        let record = RawValue::from_string(text.to_owned())?;
        Ok(Self { record, key, signature: SignatureBytes(signature), endorsement: None, payload, path: None })
    }

    /// The line of an entry that was just appended.
    ///
    /// # Errors
    /// When the entry's text is not JSON.
    pub fn of(entry: &Entry, payload: Payload) -> serde_json::Result<Self> {
        let line = Self::new(&entry.text, entry.key_id, entry.signature, payload)?;
        Ok(Self { endorsement: entry.endorsement.map(SignatureBytes), ..line })
    }
}

impl Payload {
    /// A payload that is shown, by its exact bytes.
    ///
    /// # Errors
    /// When the text is not JSON.
    pub fn shown(salt: Salt, value: &str) -> serde_json::Result<Self> {
        Ok(Self::Shown { salt, value: RawValue::from_string(value.to_owned())? })
    }
}

/// One line of a bundle.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Line {
    Log(Header),
    Entry(EntryLine),
    /// A checkpoint's signed note. In a range it stands behind the last entry that it covers.
    Checkpoint(String),
    /// Shows that the tree of `from` entries is the beginning of the tree of `to`, the checkpoint last seen.
    Consistency {
        from: u64,
        to: u64,
        path: Vec<Hash>,
    },
    /// In a range, behind its last checkpoint: a later entry of the log that something in the range needs. It says the key that signs now,
    /// or under what payloads of the range were disposed of. It is signed, and under no checkpoint of the range.
    Later(EntryLine),
    /// The signed note over everything before it.
    End(String),
}

impl Line {
    /// The line's one text, without its line break.
    ///
    /// # Panics
    /// Never: lines have text for keys and no numbers that JSON does not know.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("a line is text, integers and JSON that was read before")
    }
}

/// What the last line's note says: how many lines and bytes' hash come before it.
#[must_use]
pub fn end_text(origin: &str, lines: u64, digest: Hash) -> String {
    format!("{origin}/bundle\n{lines}\n{}\n", STANDARD.encode(digest.as_bytes()))
}

/// Reads the last line's note.
///
/// # Errors
/// When it is not signed by one of the keys under the origin's name.
pub fn open_end<'a>(note: &str, keys: &'a [VerifierKey]) -> Result<(String, &'a VerifierKey), NoteError> {
    let note = Note::parse(note)?;
    let key = note.verify(keys)?;
    Ok((note.text().to_owned(), key))
}

/// The hash over lines as they go by.
#[derive(Clone, Default)]
pub struct Running {
    lines: u64,
    hasher: Sha256,
}

impl Running {
    /// Takes in a line without its line break.
    pub fn add(&mut self, line: &str) {
        self.lines += 1;
        self.hasher.update(line.as_bytes());
        self.hasher.update(b"\n");
    }

    #[must_use]
    pub const fn lines(&self) -> u64 {
        self.lines
    }

    #[must_use]
    pub fn digest(&self) -> Hash {
        Hash::from_bytes(self.hasher.clone().finalize().into())
    }
}

/// Writes a bundle line by line.
pub struct Writer {
    origin: String,
    running: Running,
}

impl Writer {
    /// Begins a bundle; the text is its first line, with its line break.
    #[must_use]
    pub fn begin(header: Header) -> (Self, String) {
        let mut writer = Self { origin: header.origin.clone(), running: Running::default() };
        let text = writer.line(&Line::Log(header));
        (writer, text)
    }

    /// The next line's text with its line break.
    pub fn line(&mut self, line: &Line) -> String {
        let mut text = line.to_text();
        self.running.add(&text);
        text.push('\n');
        text
    }

    /// The last line's text with its line break.
    ///
    /// # Errors
    /// When the origin cannot stand in a note.
    pub fn end(self, key: &SignerKey) -> Result<String, NoteError> {
        let note = Note::sign(end_text(&self.origin, self.running.lines(), self.running.digest()), key)?;
        Ok(format!("{}\n", Line::End(note.to_string()).to_text()))
    }
}
