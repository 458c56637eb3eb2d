//! Signed notes: text with signatures under it that other tools can read.
//!
//! Format: <https://github.com/C2SP/C2SP/blob/main/signed-note.md> (version 1.0). The text ends with a line break; a blank line follows,
//! then one line for each signature: `— name base64(key id ‖ signature)`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::key::{KeyId, SIGNATURE_BYTES, SignerKey, VerifierKey, is_name};

/// How many signatures a note has at most (the reference implementation's bound).
const SIGNATURES_MAX: usize = 100;
/// The longest note that is read, in bytes.
const NOTE_BYTES_MAX: usize = 64 * 1024;
const SIGNATURE_START: &str = "\u{2014} ";

/// One signature line; whose key it is is not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    pub name: String,
    pub key_id: KeyId,
    /// Ed25519 signatures have 64 bytes; other types may have more.
    pub bytes: Vec<u8>,
}

/// A text and its signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<Signature>,
}

/// Why a note is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    #[error("it is not a signed note")]
    Malformed,
    #[error("a signature of a known key is wrong")]
    Signature,
    #[error("none of its signatures is of a known key")]
    Unknown,
}

fn is_text(text: &str) -> bool {
    text.ends_with('\n') && !text.contains(|letter: char| letter < ' ' && letter != '\n')
}

impl Note {
    /// Signs a text, which ends with a line break and has no other control characters.
    ///
    /// # Errors
    /// When the text cannot be a note's.
    pub fn sign(text: String, key: &SignerKey) -> Result<Self, NoteError> {
        if !is_text(&text) {
            return Err(NoteError::Malformed);
        }
        let bytes = key.sign(text.as_bytes()).to_vec();
        let signature = Signature { name: key.name().to_owned(), key_id: key.verifier().id(), bytes };
        Ok(Self { text, signatures: vec![signature] })
    }

    /// Reads a note. Nothing is believed before [`verify`](Self::verify).
    ///
    /// # Errors
    /// When it is not one.
    pub fn parse(note: &str) -> Result<Self, NoteError> {
        if note.len() > NOTE_BYTES_MAX {
            return Err(NoteError::Malformed);
        }
        // The last blank line: a text may have blank lines of its own.
        let (text, lines) = note.rsplit_once("\n\n").ok_or(NoteError::Malformed)?;
        let text = format!("{text}\n");
        let lines = lines.strip_suffix('\n').ok_or(NoteError::Malformed)?;
        if !is_text(&text) || lines.split('\n').count() > SIGNATURES_MAX {
            return Err(NoteError::Malformed);
        }
        let signatures =
            lines.split('\n').map(parse_signature).collect::<Option<Vec<_>>>().ok_or(NoteError::Malformed)?;
        Ok(Self { text, signatures })
    }

    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    #[must_use]
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Adds another's signature: a witness's, or the next key's.
    ///
    /// # Errors
    /// When the note would have too many.
    pub fn add(&mut self, key: &SignerKey) -> Result<(), NoteError> {
        let own = Self::sign(self.text.clone(), key)?;
        if self.signatures.len() >= SIGNATURES_MAX {
            return Err(NoteError::Malformed);
        }
        self.signatures.extend(own.signatures);
        Ok(())
    }

    /// Checks the signatures of the keys that are known and returns the first of these. Signatures of unknown keys are passed over.
    ///
    /// # Errors
    /// When one of a known key is wrong, or none is of a known key.
    pub fn verify<'a>(&self, keys: &'a [VerifierKey]) -> Result<&'a VerifierKey, NoteError> {
        let mut first = None;
        for signature in &self.signatures {
            let of_signature = |key: &&VerifierKey| key.name() == signature.name && key.id() == signature.key_id;
            let Some(key) = keys.iter().find(of_signature) else { continue };
            if !key.verifies(self.text.as_bytes(), &signature.bytes) {
                return Err(NoteError::Signature);
            }
            first = first.or(Some(key));
        }
        first.ok_or(NoteError::Unknown)
    }
}

fn parse_signature(line: &str) -> Option<Signature> {
    let (name, encoded) = line.strip_prefix(SIGNATURE_START)?.split_once(' ')?;
    let bytes = STANDARD.decode(encoded).ok()?;
    let (key_id, bytes) = bytes.split_first_chunk::<4>()?;
    (is_name(name) && !bytes.is_empty()).then(|| Signature {
        name: name.to_owned(),
        key_id: KeyId::from_bytes(*key_id),
        bytes: bytes.to_vec(),
    })
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for Signature { name, key_id, bytes } in &self.signatures {
            let mut all = Vec::with_capacity(4 + SIGNATURE_BYTES);
            all.extend_from_slice(&key_id.as_bytes());
            all.extend_from_slice(bytes);
            writeln!(f, "{SIGNATURE_START}{name} {}", STANDARD.encode(all))?;
        }
        Ok(())
    }
}
