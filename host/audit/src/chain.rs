//! Giving entries their place: number, link, signature, leaf.

use crate::canonical::INTEGER_MAX;
use crate::checkpoint::Checkpoint;
use crate::hash::Hash;
use crate::key::{KeyError, KeyId, SIGNATURE_BYTES, SignerKey, VerifierKey};
use crate::merkle::Edge;
use crate::record::{Draft, Record, Token, VERSION, genesis, leaf_hash};
use crate::taxonomy::EventType;

/// What comes before the leaf hash in what a log's key signs for an entry, so that no signature stands for anything else.
const ENTRY_DOMAIN: &[u8] = b"bulkhead audit entry v1\n";

/// What is signed for the entry with this leaf hash.
#[must_use]
pub fn signed_bytes(leaf: Hash) -> Vec<u8> {
    [ENTRY_DOMAIN, leaf.as_bytes()].concat()
}

/// The origin of an organization's log: the name of its keys and the first line of its checkpoints.
#[must_use]
pub fn origin(org: &Token) -> String {
    format!("bulkhead/audit/{org}")
}

/// An entry that has its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub record: Record,
    /// The record's canonical bytes, as they were hashed.
    pub text: String,
    pub leaf: Hash,
    pub key_id: KeyId,
    pub signature: [u8; SIGNATURE_BYTES],
    /// The signature of the key that the entry brings in, if it does.
    pub endorsement: Option<[u8; SIGNATURE_BYTES]>,
    /// Roots of the subtrees that the entry made full, from level 1 up.
    pub completed: Vec<Hash>,
}

/// Why an entry gets no place. Each is a defect of the caller: nothing is appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("a log begins with the entry that opens it, and has one")]
    Opening,
    #[error("an entry that opens a log or rotates its key says the next key, and no other does")]
    NextKey,
    #[error("the key that signs is not this log's key")]
    Key,
    #[error("the log is full")]
    Full,
}

impl From<KeyError> for ChainError {
    fn from(_: KeyError) -> Self {
        Self::Key
    }
}

/// The end of a log, to which entries are appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    org: Token,
    last: Hash,
    edge: Edge,
    /// Whose signature the next entry must have. None before the log is opened.
    key: Option<VerifierKey>,
}

impl Chain {
    /// A log without entries.
    #[must_use]
    pub fn new(org: Token) -> Self {
        Self { last: genesis(&org), org, edge: Edge::new(), key: None }
    }

    /// A log as it was left: the last entry's leaf hash, the tree's edge, the key in force.
    #[must_use]
    pub fn resume(org: Token, last: Hash, edge: Edge, key: VerifierKey) -> Self {
        Self { org, last, edge, key: Some(key) }
    }

    #[must_use]
    pub fn size(&self) -> u64 {
        self.edge.size()
    }

    #[must_use]
    pub const fn last(&self) -> Hash {
        self.last
    }

    #[must_use]
    pub const fn edge(&self) -> &Edge {
        &self.edge
    }

    /// The key in force.
    #[must_use]
    pub const fn key(&self) -> Option<&VerifierKey> {
        self.key.as_ref()
    }

    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint { origin: origin(&self.org), size: self.size(), root: self.edge.root() }
    }

    /// Appends an entry, signed with the key in force; `next` signs as well where the entry brings it in.
    ///
    /// # Errors
    /// When the entry cannot stand there; the chain is as it was.
    pub fn append(&mut self, draft: Draft, key: &SignerKey, next: Option<&SignerKey>) -> Result<Entry, ChainError> {
        let opens = draft.event == EventType::LogOpened.into();
        let brings_key = opens || draft.event == EventType::LogKeyRotated.into();
        if opens != (self.size() == 0) {
            return Err(ChainError::Opening);
        }
        // What opens a log is signed by the key that it brings in.
        let next = if opens { Some(key) } else { next };
        let said = draft.key.as_deref().map(str::parse::<VerifierKey>).transpose()?;
        if brings_key != said.is_some() || said != next.map(SignerKey::verifier) {
            return Err(ChainError::NextKey);
        }
        let signer = key.verifier();
        let log = origin(&self.org);
        let in_force = self.key.as_ref().is_none_or(|known| *known == signer);
        if !in_force || signer.name() != log || next.is_some_and(|next| next.name() != log) {
            return Err(ChainError::Key);
        }
        if self.size() > INTEGER_MAX {
            return Err(ChainError::Full);
        }
        let Draft { id, ts, event, severity, actor, target, outcome, reason, session, correlation, causation, .. } =
            draft;
        let record = Record {
            v: VERSION,
            org: self.org.clone(),
            seq: self.size(),
            id,
            ts,
            event: event.name(),
            category: event.category(),
            severity,
            actor,
            target,
            outcome,
            reason,
            session,
            correlation,
            causation,
            payload_commit: draft.payload_commit,
            prev: self.last,
            key: draft.key,
            disposal: draft.disposal,
        };
        let text = record.to_canonical();
        let leaf = leaf_hash(&text);
        let message = signed_bytes(leaf);
        let completed = self.edge.append(leaf);
        self.last = leaf;
        self.key = next.map(SignerKey::verifier).or(self.key.take());
        Ok(Entry {
            record,
            text,
            leaf,
            key_id: signer.id(),
            signature: key.sign(&message),
            endorsement: next.map(|next| next.sign(&message)),
            completed,
        })
    }
}
