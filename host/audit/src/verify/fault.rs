//! What can be wrong, in words that name the place.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::checkpoint::CheckpointError;
use crate::key::KeyId;
use crate::note::NoteError;
use crate::record::RecordError;

/// The longest text about one fault, in characters: the parser's words hold what stands in the file, which may be long.
const TEXT_CHARS_MAX: usize = 400;

/// A fault's words as they may be shown: what stands in a bundle is whoever's who wrote it, and may try to lead a terminal.
fn shown(text: &impl fmt::Display) -> String {
    let text = text.to_string();
    let mut shown = String::new();
    for (at, letter) in text.chars().enumerate() {
        if at == TEXT_CHARS_MAX {
            shown.push_str(" …");
            break;
        }
        match letter {
            '\\' => shown.push_str("\\\\"),
            ' '..='~' => shown.push(letter),
            other => shown.extend(other.escape_unicode()),
        }
    }
    shown
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The line of the bundle, from 1.
    pub line: u64,
    /// The number of the entry that it is about, where it is about one.
    pub entry: Option<u64>,
    pub kind: FaultKind,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry {
            Some(entry) => write!(f, "entry {entry} (line {}): {}", self.line, shown(&self.kind)),
            None => write!(f, "line {}: {}", self.line, shown(&self.kind)),
        }
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    #[error("not a line of a bundle: {0}")]
    Malformed(String),
    #[error("the line is written in another way than bundles are")]
    Spelling,
    #[error("{0}")]
    Header(&'static str),
    #[error("it is another organization's log than the one asked for")]
    OtherLog,
    #[error("it does not go on where the earlier verification ended")]
    Resume,
    #[error("{0}")]
    Record(RecordError),
    #[error("the entry belongs to another organization's log")]
    OtherOrg,
    #[error("entries {from} to {to} are missing")]
    Missing { from: u64, to: u64 },
    #[error("it stands in the wrong place: entry {expected} was expected")]
    OutOfPlace { expected: u64 },
    #[error("the entry before it is not the one that it was chained to")]
    Link,
    #[error("it is signed with the key {0}, which was not in force")]
    Key(KeyId),
    #[error("its signature is wrong: it was changed, or the log never wrote it")]
    Signature,
    #[error("the key that it brings in did not sign it")]
    Endorsement,
    #[error("a log's first entry opens it, and no other does")]
    Opening,
    #[error("its category is not that of its type")]
    Category,
    #[error("its payload is not the one that it was recorded with")]
    Payload,
    #[error("its payload is gone, and entry {by} does not say that it was disposed of under this policy")]
    Unexplained { by: u64 },
    #[error("its path does not lead to the checkpoint's root")]
    Path,
    #[error("the checkpoint is not the log's: {0}")]
    Checkpoint(CheckpointError),
    #[error("a checkpoint over {size} entries stands behind {entries}")]
    CheckpointPlace { size: u64, entries: u64 },
    #[error("a second checkpoint over {size} entries")]
    CheckpointTwice { size: u64 },
    #[error(
        "the checkpoint over {size} entries has another root: something between entry {agreed} and it was changed, added or removed"
    )]
    Root { size: u64, agreed: u64 },
    #[error("the proof from {from} to {to} entries is not about the last checkpoint")]
    Consistency { from: u64, to: u64 },
    #[error("a kept checkpoint cannot be read: {0}")]
    KeptUnread(CheckpointError),
    #[error(
        "history was rewritten: the kept checkpoint over {size} entries has another root; they agreed up to {agreed}"
    )]
    KeptFork { size: u64, agreed: u64 },
    #[error("the log was cut off: a kept checkpoint covers {size} entries, and there are {entries}")]
    KeptAhead { size: u64, entries: u64 },
    #[error("nothing shows that the kept checkpoint over {size} entries is the beginning of this log")]
    KeptUnproven { size: u64 },
    #[error("the signature over the whole file is wrong: {0}")]
    EndSignature(NoteError),
    #[error("the file is not the one that was signed")]
    EndDigest,
    #[error("the last line is missing: the file was cut off")]
    EndMissing,
    #[error("there is something behind the last line")]
    BehindTheEnd,
    #[error("entries {from} to {to} (without the last) are under no checkpoint")]
    Uncovered { from: u64, to: u64 },
    #[error("its row cannot be read: {why}")]
    Unreadable { why: String },
    #[error("{id} is shown and searched, has no place in the log, and does not wait for one")]
    Unplaced { id: String },
    #[error("no key that was known beforehand signed anything here")]
    KeyUnknown,
    #[error("what is searched ({what}) is not what the entry says")]
    Index { what: &'static str },
}

impl Serialize for FaultKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&shown(self))
    }
}
