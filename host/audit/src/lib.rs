//! The audit log as something that a stranger can verify: what an entry says, how entries are chained, and how they are proven.
//!
//! Each organization has a log of its own. An entry's [`Record`](record::Record) is canonical JSON (RFC 8785); it names the leaf hash
//! of the entry before it, and the log's key signs its own. Over the entries stands a Merkle tree (RFC 6962), whose root a
//! [`Checkpoint`](checkpoint::Checkpoint) states in the C2SP format, so that other tools can read, witness and keep it. What may have
//! to be forgotten (addresses, values before and after, free text) is in the entry's [payload](payload), which the record only
//! commits to: without it every proof still holds.
//!
//! The crate is pure and depends on none of the host's crates: [`verify`] is the whole of what an auditor needs.
//!
//! What is proven: to whoever holds the log's public key, that each entry was signed by the log; to whoever kept a checkpoint, that
//! nothing below it was changed, removed or added since. Without a kept checkpoint, whoever holds the log's signing key can write
//! another history.

pub mod bundle;
pub mod canonical;
pub mod cell;
pub mod chain;
pub mod checkpoint;
pub mod hash;
pub mod key;
pub mod merkle;
pub mod note;
pub mod payload;
pub mod record;
pub mod retention;
pub mod taxonomy;
pub mod verify;
