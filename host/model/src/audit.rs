//! What the audit log records. Chaining, signatures and proofs are built on these entries by `bulkhead-audit`.

use serde_json::Value;

use crate::permission::Actor;

pub mod taxonomy;

pub use taxonomy::EventType;

/// One audited act, written in the transaction that does it.
#[derive(Clone, Debug)]
pub struct AuditEvent {
    pub action: EventType,
    /// The id of what was acted on.
    pub target: String,
    pub actor: Actor,
    /// Before and after, digests, reasons. Never a secret's value.
    pub detail: Value,
}
