//! The keys that a log has had, and how the next one takes over: under both signatures, as an entry of the log itself.

use std::collections::BTreeSet;

use bulkhead_audit::chain::origin;
use bulkhead_audit::key::SignerKey;
use bulkhead_audit::record::Record;
use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::id::OrgId;
use bulkhead_model::permission::{Caller, OrgScope, Permission};
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::audit_log::{AuditLog, AuditRow};
use bulkhead_store::{StoreError, Tx};
use serde_json::json;
use zeroize::Zeroizing;

use super::{Own, append_own, corrupt, leave, open, place, require_beginning, token_of};
use crate::{App, AppError};

/// Keys that one log has at most: one a day for almost three years.
const KEYS_MAX: u32 = 1000;

/// A key that signs, or signed, a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditKey {
    /// In the text form of C2SP `signed-note`.
    pub verifier_key: String,
    /// The number of the entry that brought it in.
    pub since: u64,
}

async fn brought_by(tx: &mut Tx, seq: u64) -> Result<AuditKey, StoreError> {
    let missing = || corrupt("the audit log", format_args!("entry {seq} brings in no key"));
    let row = tx.list_audit_entries(seq, 1).await?.into_iter().next().filter(|row| row.seq == seq);
    let Some(AuditRow { row: Ok((sealed, _)), .. }) = row else { return Err(missing()) };
    let record = Record::from_canonical(&sealed.record).map_err(|error| corrupt("an audit entry", error))?;
    Ok(AuditKey { verifier_key: record.key.ok_or_else(missing)?, since: seq })
}

/// Numbers of the entries that replaced the log's key. Rows that only say so by their action are sealed as refused ones.
async fn rotations(tx: &mut Tx) -> Result<BTreeSet<u64>, StoreError> {
    Ok(tx.list_audit_seqs(EventType::LogKeyRotated.as_str(), KEYS_MAX).await?.into_iter().collect())
}

/// The keys of a log, the first one first.
pub(super) async fn keys(tx: &mut Tx, log: &AuditLog) -> Result<Vec<AuditKey>, StoreError> {
    let rotations = rotations(tx).await?;
    if rotations.is_empty() {
        return Ok(vec![AuditKey { verifier_key: log.verifier_key.clone(), since: 0 }]);
    }
    let mut keys = vec![brought_by(tx, 0).await?];
    for seq in rotations {
        match brought_by(tx, seq).await {
            Ok(key) => keys.push(key),
            // Somebody wrote the row into the database: it brought in nothing.
            Err(StoreError::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(keys)
}

/// The key in force for the entry with the number `first`.
pub(super) async fn key_at(tx: &mut Tx, first: u64, log: &AuditLog) -> Result<String, StoreError> {
    let before = keys(tx, log).await?.into_iter().rfind(|key| key.since < first);
    Ok(before.map_or_else(|| log.verifier_key.clone(), |key| key.verifier_key))
}

impl App {
    pub(super) async fn audit_rotations(&self, scope: &OrgScope) -> Result<BTreeSet<u64>, AppError> {
        let keys = self.read_audit_keys(scope).await?;
        Ok(keys.into_iter().map(|key| key.since).filter(|since| *since > 0).collect())
    }

    async fn read_audit_keys(&self, scope: &OrgScope) -> Result<Vec<AuditKey>, AppError> {
        let read = self.store().read(scope, (), |tx, ()| {
            Box::pin(async move {
                let Some(log) = tx.load_audit_log().await? else { return Ok(Vec::new()) };
                keys(tx, &log).await
            })
        });
        Ok(read.await?)
    }

    /// The keys of the organization's log, the first one first; none before the log is open.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_audit_keys(&self, caller: &Caller, org: OrgId) -> Result<Vec<AuditKey>, AppError> {
        let scope = caller.authorize(org, Permission::AuditRead)?;
        self.read_audit_keys(&scope).await
    }

    /// Gives the log a new key. The entry that says so is signed by both, and the old key is destroyed: what it signed stays verifiable.
    ///
    /// # Errors
    /// [`AppError::Conflict`] `too-many-audit-keys`; a refusal; [`StoreError::Corrupt`] for a log that does not continue its kept checkpoint.
    pub async fn rotate_audit_key(&self, caller: &Caller, org: OrgId) -> Result<AuditKey, AppError> {
        let scope = caller.authorize(org, Permission::EncryptionRotate)?;
        let kept = self.kept_checkpoint(org)?;
        let args = (org, scope.actor().clone(), self.sealer().clone(), self.ambient().clone(), kept);
        self.store()
            // The log's row is locked, as for whoever seals.
            .write_locked(&scope, args, |tx, (org, actor, sealer, ambient, kept)| {
                Box::pin(async move {
                    let (mut log, key, mut chain) = open(tx, *org, sealer, ambient).await?;
                    if let Some(kept) = kept {
                        require_beginning(kept, &log, *org)?;
                    }
                    if rotations(tx).await?.len() + 1 >= KEYS_MAX as usize {
                        let message = "the log has had as many keys as it may".to_owned();
                        return Err(AppError::Conflict { code: "too-many-audit-keys", message });
                    }
                    let seed = Zeroizing::new(ambient.random::<32>());
                    let next = SignerKey::from_seed(&origin(&token_of(*org)), &seed)
                        .map_err(|error| corrupt("an organization's id", error))?;
                    let verifier_key = next.verifier().to_string();
                    let event = AuditEvent {
                        action: EventType::LogKeyRotated,
                        target: org.to_string(),
                        actor: actor.clone(),
                        detail: json!({ "before": log.verifier_key, "after": verifier_key }),
                    };
                    let own = Own { event, brings: Some(verifier_key.clone()), disposal: None };
                    let since = append_own(tx, &mut chain, (&key, Some(&next)), own, ambient).await?;
                    leave(tx, &mut log, &chain).await?;
                    let sealed = tx.seal(sealer, &place(*org), &*seed).await?;
                    tx.save_audit_log_key(&verifier_key, &sealed).await?;
                    Ok(AuditKey { verifier_key, since })
                })
            })
            .await
    }
}
