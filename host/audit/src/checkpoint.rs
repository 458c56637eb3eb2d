//! Checkpoints: what the whole log was at one size, signed.
//!
//! Format: <https://github.com/C2SP/C2SP/blob/main/tlog-checkpoint.md> (version 1.0): the log's origin, the number of entries, the
//! root in base64, each on a line of its own, as a signed note whose key is named like the origin.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::canonical::INTEGER_MAX;
use crate::hash::Hash;
use crate::key::{SignerKey, VerifierKey};
use crate::merkle;
use crate::note::{Note, NoteError};

/// A log's size and root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub origin: String,
    /// How many entries it covers.
    pub size: u64,
    pub root: Hash,
}

/// Why a checkpoint is not believed, or not signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    #[error(transparent)]
    Note(#[from] NoteError),
    #[error("it is not a checkpoint: origin, size and root, each on a line")]
    Malformed,
    #[error("it is of another log")]
    Origin,
    #[error("the tree that was signed before is not the beginning of this one")]
    Inconsistent,
}

impl Checkpoint {
    /// The text that is signed.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root.as_bytes()))
    }

    /// Reads a checkpoint's text. Extension lines, which the format allows others to add, are passed over.
    ///
    /// # Errors
    /// When it is not one.
    pub fn from_text(text: &str) -> Result<Self, CheckpointError> {
        let mut lines = text.strip_suffix('\n').ok_or(CheckpointError::Malformed)?.split('\n');
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
            return Err(CheckpointError::Malformed);
        };
        let one_way = size == "0" || !size.starts_with(['0', '+']);
        let size = size.parse().ok().filter(|size| one_way && *size <= INTEGER_MAX);
        let root = STANDARD.decode(root).ok().and_then(|bytes| Hash::from_slice(&bytes));
        match (size, root) {
            (Some(size), Some(root)) if !origin.is_empty() && lines.all(|line| !line.is_empty()) => {
                Ok(Self { origin: origin.to_owned(), size, root })
            }
            _ => Err(CheckpointError::Malformed),
        }
    }

    /// Signs the checkpoint that follows `previous`, which its proof must show to be the beginning of this one: a log that signs two
    /// histories has lost its worth.
    ///
    /// # Errors
    /// When the proof does not hold, or the origins differ.
    pub fn sign_after(
        &self,
        previous: Option<&Self>,
        proof: &[Hash],
        key: &SignerKey,
    ) -> Result<Note, CheckpointError> {
        if let Some(previous) = previous.filter(|previous| previous.size > 0) {
            if previous.origin != self.origin {
                return Err(CheckpointError::Origin);
            }
            merkle::verify_consistency(previous.size, self.size, previous.root, self.root, proof)
                .map_err(|_| CheckpointError::Inconsistent)?;
        }
        if key.name() != self.origin {
            return Err(CheckpointError::Origin);
        }
        Ok(Note::sign(self.text(), key)?)
    }

    /// Reads and believes a checkpoint that one of the keys signed under the origin's name.
    ///
    /// # Errors
    /// When it is not a checkpoint, not of this origin, or not signed by one of the keys.
    pub fn open(note: &str, origin: &str, keys: &[VerifierKey]) -> Result<Self, CheckpointError> {
        Self::open_by(note, origin, keys).map(|(checkpoint, _)| checkpoint)
    }

    /// As [`open`](Self::open), with the key that signed it.
    ///
    /// # Errors
    /// As there.
    pub fn open_by<'a>(
        note: &str,
        origin: &str,
        keys: &'a [VerifierKey],
    ) -> Result<(Self, &'a VerifierKey), CheckpointError> {
        let note = Note::parse(note)?;
        let key = note.verify(keys)?;
        let checkpoint = Self::from_text(note.text())?;
        let is_its = checkpoint.origin == origin && key.name() == origin;
        if is_its { Ok((checkpoint, key)) } else { Err(CheckpointError::Origin) }
    }
}
