//! What the audit log records. (Chaining, signatures and proofs are built on these entries by their own issue.)

use serde_json::Value;

use crate::permission::Actor;

/// One audited act, written in the transaction that does it.
#[derive(Clone, Debug)]
pub struct AuditEvent {
    /// `plugin.uploaded`, `grants.changed`, … (noun.participle).
    pub action: &'static str,
    /// The id of what was acted on.
    pub target: String,
    pub actor: Actor,
    /// Before and after, digests, reasons. Never a secret's value.
    pub detail: Value,
}
