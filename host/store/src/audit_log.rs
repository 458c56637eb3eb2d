//! The audit log as it is proven: entries with their place in the chain, the growing edge of the tree, checkpoints.
//!
//! An audit entry is written with what it is about and waits (`audit_waiting`). Whoever holds the lock of the organization's log gives the
//! waiting ones their numbers (`audit_entry`), so numbers have no gaps and no two histories are written. Nothing of it is ever updated
//! but the log's own row, and payloads with their salts, which are emptied when they are disposed of.

use crate::audit::AuditEvent;
use bulkhead_audit::hash::Hash;
use bulkhead_audit::key::{KeyId, SIGNATURE_BYTES};
use bulkhead_audit::payload::Salt;
use bulkhead_audit::retention::PayloadRetention;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{AuditId, OrgId};
use bulkhead_model::permission::SystemReason;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::sql::{Row, binds, sql, sql_postgres};
use crate::tx::Tx;

/// An organization's log: its end, and the key that signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditLog {
    /// How many entries have their place.
    pub size: u64,
    /// The leaf hash of the last one.
    pub last: Hash,
    /// Roots of the tree's full subtrees, largest first.
    pub edge: Vec<Hash>,
    /// The verifier key in force.
    pub verifier_key: String,
    /// The signing key's seed, sealed.
    pub signing_key: String,
    /// How many entries the last checkpoint covers; 0 before the first one.
    pub checkpoint_size: u64,
    pub checkpoint_at: Timestamp,
}

/// An entry that has no place yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingAudit {
    pub id: AuditId,
    pub action: String,
    pub target: String,
    pub actor: String,
    /// The id of the request that it was written in.
    pub correlation: Option<String>,
    /// The payload's exact bytes.
    pub detail: String,
    pub created_at: Timestamp,
}

/// An entry's place and proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedAudit {
    pub seq: u64,
    pub id: AuditId,
    /// The record's canonical bytes.
    pub record: String,
    pub leaf: Hash,
    pub key_id: KeyId,
    pub signature: [u8; SIGNATURE_BYTES],
    pub endorsement: Option<[u8; SIGNATURE_BYTES]>,
    /// Roots of the subtrees that the entry made full, from level 1 up.
    pub completed: Vec<Hash>,
    /// All zeros once the payload was disposed of.
    pub salt: Salt,
    /// The number of the entry that says under what the payload was disposed of.
    pub disposed_by: Option<u64>,
}

/// An entry whose payload is still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAudit {
    pub seq: u64,
    pub id: AuditId,
    /// The record's canonical bytes.
    pub record: String,
}

/// An organization's own times for payloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAuditRetention {
    pub policy: PayloadRetention,
    /// Rises with every change.
    pub revision: i64,
}

/// Entries that wait for their place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditBacklog {
    /// Oldest first.
    pub entries: Vec<WaitingAudit>,
    /// Rows that cannot be read, which hold up none of the others.
    pub unreadable: u32,
}

/// An entry's place as it is read back.
#[derive(Debug)]
pub struct AuditRow {
    pub seq: u64,
    /// What the row says. What should have a fixed length and has another is all zeros: that is never what was signed, and so it is found
    /// with the entry that it belongs to.
    pub row: Result<(SealedAudit, WaitingAudit), StoreError>,
}

/// Whether what is shown has a place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditPlace {
    pub id: AuditId,
    pub seq: Option<u64>,
    /// Whether it waits for a place, or for a checkpoint.
    pub waits: bool,
}

fn number(row: &Row, name: &'static str) -> Result<u64, StoreError> {
    let value: i64 = row.get(name)?;
    u64::try_from(value).map_err(|error| StoreError::corrupt(name, error))
}

fn bound(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn fixed<const N: usize>(bytes: Vec<u8>, name: &'static str) -> Result<[u8; N], StoreError> {
    let length = bytes.len();
    bytes.try_into().map_err(|_| StoreError::corrupt(name, format_args!("{length} bytes instead of {N}")))
}

/// As [`fixed`], all zeros for another length.
fn fixed_or_zeros<const N: usize>(row: &Row, name: &'static str) -> Result<[u8; N], StoreError> {
    let bytes: Vec<u8> = row.get(name)?;
    Ok(bytes.try_into().unwrap_or([0; N]))
}

fn hash(row: &Row, name: &'static str) -> Result<Hash, StoreError> {
    fixed(row.get(name)?, name).map(Hash::from_bytes)
}

fn hashes(row: &Row, name: &'static str) -> Result<Vec<Hash>, StoreError> {
    let bytes: Vec<u8> = row.get(name)?;
    let (whole, rest) = bytes.as_chunks::<32>();
    if rest.is_empty() {
        Ok(whole.iter().copied().map(Hash::from_bytes).collect())
    } else {
        Err(StoreError::corrupt(name, "not a whole number of hashes"))
    }
}

fn joined(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| *hash.as_bytes()).collect()
}

fn read_log(row: &Row) -> Result<AuditLog, StoreError> {
    Ok(AuditLog {
        size: number(row, "size")?,
        last: hash(row, "last_leaf")?,
        edge: hashes(row, "edge")?,
        verifier_key: row.get("verifier_key")?,
        signing_key: row.get("signing_key")?,
        checkpoint_size: number(row, "checkpoint_size")?,
        checkpoint_at: row.get("checkpoint_at")?,
    })
}

fn read_waiting(row: &Row) -> Result<WaitingAudit, StoreError> {
    Ok(WaitingAudit {
        id: row.get("id")?,
        action: row.get("action")?,
        target: row.get("target")?,
        actor: row.get("actor")?,
        correlation: row.get("correlation")?,
        detail: row.get("detail")?,
        created_at: row.get("created_at")?,
    })
}

fn read_sealed(row: &Row) -> Result<SealedAudit, StoreError> {
    let endorsement: Option<Vec<u8>> = row.get("endorsement")?;
    Ok(SealedAudit {
        seq: number(row, "seq")?,
        id: row.get("id")?,
        record: row.get("record")?,
        leaf: Hash::from_bytes(fixed_or_zeros(row, "leaf")?),
        key_id: KeyId::from_bytes(fixed_or_zeros(row, "key_id")?),
        signature: fixed_or_zeros(row, "signature")?,
        endorsement: endorsement.map(|bytes| bytes.try_into().unwrap_or([0; SIGNATURE_BYTES])),
        completed: hashes(row, "completed").unwrap_or_default(),
        salt: Salt::from_bytes(fixed_or_zeros(row, "salt")?),
        disposed_by: row.get::<Option<i64>>("disposed_by")?.and_then(|seq| u64::try_from(seq).ok()),
    })
}

fn read_kept(row: &Row) -> Result<KeptAudit, StoreError> {
    Ok(KeptAudit { seq: number(row, "seq")?, id: row.get("id")?, record: row.get("record")? })
}

impl Tx {
    /// Organizations in whose log there is something to do, at most so many, by their ids from behind `after` on.
    ///
    /// # Errors
    /// [`StoreError::Misuse`] outside of the queue's scope.
    pub async fn list_audit_waiting_orgs(
        &mut self,
        after: Option<OrgId>,
        limit: u32,
    ) -> Result<Vec<OrgId>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!("select distinct org_id from audit_waiting where org_id > $1 order by org_id limit $2");
        // No organization has the nil id.
        let after = after.map_or(uuid::Uuid::nil(), OrgId::uuid);
        self.fetch(sql, binds![after, limit]).await?.iter().map(|row| row.get("org_id")).collect()
    }

    /// Opens the organization's log; `false` if it is open already.
    pub async fn insert_audit_log(&mut self, log: &AuditLog) -> Result<bool, StoreError> {
        let sql = sql!(
            "insert into audit_log (org_id, size, last_leaf, edge, verifier_key, signing_key, checkpoint_size, checkpoint_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict (org_id) do nothing"
        );
        let (org, edge) = (self.org()?, joined(&log.edge));
        let values = binds![
            org,
            bound(log.size),
            log.last.as_bytes(),
            &edge,
            &log.verifier_key,
            &log.signing_key,
            bound(log.checkpoint_size),
            log.checkpoint_at
        ];
        Ok(self.execute(sql, values).await? > 0)
    }

    pub async fn load_audit_log(&mut self) -> Result<Option<AuditLog>, StoreError> {
        let sql = sql!(
            "select size, last_leaf, edge, verifier_key, signing_key, checkpoint_size, checkpoint_at
             from audit_log where org_id = $1"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org]).await?.map(|row| read_log(&row)).transpose()
    }

    /// The log, locked until the commit: one at a time gives entries their places, on any number of nodes.
    pub async fn lock_audit_log(&mut self) -> Result<Option<AuditLog>, StoreError> {
        if self.is_postgres() {
            // SQLite has one writer and needs no lock.
            let sql = sql_postgres!("select size from audit_log where org_id = $1 for update");
            let org = self.org()?;
            self.fetch(sql, binds![org]).await?;
        }
        self.load_audit_log().await
    }

    /// Saves where the log ends now; its key stays.
    pub async fn save_audit_log(&mut self, log: &AuditLog) -> Result<(), StoreError> {
        let sql = sql!(
            "update audit_log set size = $2, last_leaf = $3, edge = $4, checkpoint_size = $5, checkpoint_at = $6
             where org_id = $1"
        );
        let (org, edge) = (self.org()?, joined(&log.edge));
        let values =
            binds![org, bound(log.size), log.last.as_bytes(), &edge, bound(log.checkpoint_size), log.checkpoint_at];
        self.execute(sql, values).await.map(drop)
    }

    /// Saves the key that signs from now on.
    pub async fn save_audit_log_key(&mut self, verifier_key: &str, signing_key: &str) -> Result<(), StoreError> {
        let sql = sql!("update audit_log set verifier_key = $2, signing_key = $3 where org_id = $1");
        let org = self.org()?;
        self.execute(sql, binds![org, verifier_key, signing_key]).await.map(drop)
    }

    /// Writes an entry that gets its place in this transaction. It waits for a checkpoint alone.
    pub async fn record_placed_audit(
        &mut self,
        event: &AuditEvent,
        ambient: &Ambient,
    ) -> Result<WaitingAudit, StoreError> {
        let (id, detail, created_at) = self.insert_audit(event, ambient).await?;
        Ok(WaitingAudit {
            id,
            action: event.action.as_str().to_owned(),
            target: event.target.clone(),
            actor: event.actor.to_string(),
            correlation: self.context.correlation.as_deref().map(str::to_owned),
            detail,
            created_at,
        })
    }

    /// Entries without a place.
    pub async fn list_audit_waiting(&mut self, limit: u32) -> Result<AuditBacklog, StoreError> {
        let sql = sql!(
            "select a.id, a.action, a.target, a.actor, a.correlation, a.detail, a.created_at
             from audit_waiting w join audit a on a.org_id = w.org_id and a.id = w.id
             where w.org_id = $1
               and not exists (select 1 from audit_entry e where e.org_id = w.org_id and e.id = w.id)
             order by w.id limit $2"
        );
        let org = self.org()?;
        let mut backlog = AuditBacklog::default();
        for row in self.fetch(sql, binds![org, limit]).await? {
            match read_waiting(&row) {
                Ok(entry) => backlog.entries.push(entry),
                Err(_) => backlog.unreadable += 1,
            }
        }
        Ok(backlog)
    }

    pub async fn insert_audit_entry(&mut self, entry: &SealedAudit) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into audit_entry (org_id, seq, id, record, leaf, key_id, signature, endorsement, completed, salt)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
        );
        let (org, completed, key_id) = (self.org()?, joined(&entry.completed), entry.key_id.as_bytes());
        let endorsement = entry.endorsement.as_ref().map(<[u8; SIGNATURE_BYTES]>::as_slice);
        let values = binds![
            org,
            bound(entry.seq),
            entry.id,
            &entry.record,
            entry.leaf.as_bytes(),
            key_id.as_slice(),
            entry.signature.as_slice(),
            crate::sql::Bind::Bytes(endorsement),
            &completed,
            entry.salt.as_bytes()
        ];
        self.execute(sql, values).await.map(drop)
    }

    /// Lets entries that have their place wait no longer, but for one that keeps the organization on the list of those with something
    /// to do: it is under no checkpoint yet.
    pub async fn settle_audit_waiting(&mut self, keep: Option<AuditId>) -> Result<u64, StoreError> {
        let sql = sql!(
            "delete from audit_waiting where org_id = $1 and id <> $2
               and exists (select 1 from audit_entry e where e.org_id = audit_waiting.org_id and e.id = audit_waiting.id)"
        );
        let org = self.org()?;
        // No entry has the nil id.
        self.execute(sql, binds![org, keep.map_or(uuid::Uuid::nil(), AuditId::uuid)]).await
    }

    /// Entries in the order of the chain, from a number on, each with what it was made from.
    pub async fn list_audit_entries(&mut self, from: u64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        let sql = sql!(
            "select e.seq, e.id, e.record, e.leaf, e.key_id, e.signature, e.endorsement, e.completed, e.salt, e.disposed_by,
                 a.action, a.target, a.actor, a.correlation, a.detail, a.created_at
             from audit_entry e join audit a on a.org_id = e.org_id and a.id = e.id
             where e.org_id = $1 and e.seq >= $2 order by e.seq limit $3"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, bound(from), limit]).await?;
        let read = |row: &Row| Ok((read_sealed(row)?, read_waiting(row)?));
        rows.iter().map(|row| Ok(AuditRow { seq: number(row, "seq")?, row: read(row) })).collect()
    }

    /// What is shown, by ids from behind `after` on, with its place. A row without one that does not wait was not written by the host.
    pub async fn list_audit_places(
        &mut self,
        after: Option<AuditId>,
        limit: u32,
    ) -> Result<Vec<AuditPlace>, StoreError> {
        let sql = sql!(
            "select id, (select e.seq from audit_entry e where e.org_id = audit.org_id and e.id = audit.id) as seq,
                 (select w.id from audit_waiting w where w.org_id = audit.org_id and w.id = audit.id) as waits
             from audit where org_id = $1 and id > $2 order by id limit $3"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, after.map_or(uuid::Uuid::nil(), AuditId::uuid), limit]).await?;
        let place = |row: &Row| {
            let seq: Option<i64> = row.get("seq")?;
            Ok(AuditPlace {
                id: row.get("id")?,
                seq: seq.and_then(|seq| u64::try_from(seq).ok()),
                waits: row.get::<Option<AuditId>>("waits")?.is_some(),
            })
        };
        rows.iter().map(place).collect()
    }

    /// The leaf hash of the entry with this number, and the roots that it completed.
    pub async fn load_audit_node(&mut self, seq: u64) -> Result<Option<(Hash, Vec<Hash>)>, StoreError> {
        let sql = sql!("select leaf, completed from audit_entry where org_id = $1 and seq = $2");
        let org = self.org()?;
        let row = self.fetch_optional(sql, binds![org, bound(seq)]).await?;
        row.map(|row| Ok((hash(&row, "leaf")?, hashes(&row, "completed")?))).transpose()
    }

    /// Keeps a checkpoint's signed note. Of one size there is one.
    pub async fn record_audit_checkpoint(&mut self, size: u64, note: &str, now: Timestamp) -> Result<(), StoreError> {
        let sql = sql!("insert into audit_checkpoint (org_id, size, note, created_at) values ($1, $2, $3, $4)");
        let org = self.org()?;
        self.execute(sql, binds![org, bound(size), note, now]).await.map(drop)
    }

    /// The largest checkpoint over at most so many entries: its size and signed note.
    pub async fn load_audit_checkpoint(&mut self, size_max: u64) -> Result<Option<(u64, String)>, StoreError> {
        let sql =
            sql!("select size, note from audit_checkpoint where org_id = $1 and size <= $2 order by size desc limit 1");
        let org = self.org()?;
        let row = self.fetch_optional(sql, binds![org, bound(size_max)]).await?;
        row.map(|row| Ok((number(&row, "size")?, row.get("note")?))).transpose()
    }

    /// Checkpoints over more than `above` and at most `size_max` entries, at most so many, smallest first: their sizes and signed notes.
    pub async fn list_audit_checkpoints(
        &mut self,
        above: u64,
        size_max: u64,
        limit: u32,
    ) -> Result<Vec<(u64, String)>, StoreError> {
        let sql = sql!(
            "select size, note from audit_checkpoint where org_id = $1 and size > $2 and size <= $3 order by size limit $4"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, bound(above), bound(size_max), limit]).await?;
        rows.iter().map(|row| Ok((number(row, "size")?, row.get("note")?))).collect()
    }

    /// What entries are about that the organization has, each once.
    pub async fn list_audit_actions(&mut self) -> Result<Vec<String>, StoreError> {
        // From each one to the next by the index: there are few of them, and many entries of each.
        let sql = sql!(
            "with recursive found (action) as (
                 select (select action from audit where org_id = $1 order by action limit 1)
                 union all
                 select (select a.action from audit a where a.org_id = $1 and a.action > found.action order by a.action limit 1)
                 from found where found.action is not null
             ) select action from found where action is not null"
        );
        let org = self.org()?;
        self.fetch(sql, binds![org]).await?.iter().map(|row| row.get("action")).collect()
    }

    /// Entries in their place with this action and from before this id whose payload is still there, oldest first.
    pub async fn list_kept_audit(
        &mut self,
        action: &str,
        before: AuditId,
        limit: u32,
    ) -> Result<Vec<KeptAudit>, StoreError> {
        let sql = sql!(
            "select e.seq, e.id, e.record from audit a join audit_entry e on e.org_id = a.org_id and e.id = a.id
             where a.org_id = $1 and a.action = $2 and a.id < $3 and a.detail <> 'null' and e.disposed_by is null order by a.id limit $4"
        );
        let org = self.org()?;
        self.fetch(sql, binds![org, action, before, limit]).await?.iter().map(read_kept).collect()
    }

    /// Entries in their place that this actor did or that were done to this target, whose payload is still there, oldest first; at most so
    /// many of each.
    pub async fn list_kept_audit_about(&mut self, subject: &str, limit: u32) -> Result<Vec<KeptAudit>, StoreError> {
        let by_target = sql!(
            "select e.seq, e.id, e.record from audit a join audit_entry e on e.org_id = a.org_id and e.id = a.id
             where a.org_id = $1 and a.target = $2 and a.detail <> 'null' and e.disposed_by is null order by a.id limit $3"
        );
        let by_actor = sql!(
            "select e.seq, e.id, e.record from audit a join audit_entry e on e.org_id = a.org_id and e.id = a.id
             where a.org_id = $1 and a.actor = $2 and a.detail <> 'null' and e.disposed_by is null order by a.id limit $3"
        );
        let org = self.org()?;
        let mut found = Vec::new();
        for sql in [by_target, by_actor] {
            for row in &self.fetch(sql, binds![org, subject, limit]).await? {
                found.push(read_kept(row)?);
            }
        }
        found.sort_unstable_by_key(|kept| kept.seq);
        found.dedup();
        Ok(found)
    }

    /// Empties an entry's payload and salt, and says which entry tells why; `false` if that was done before.
    pub async fn dispose_of_audit(&mut self, seq: u64, id: AuditId, by: u64) -> Result<bool, StoreError> {
        let org = self.org()?;
        let no_salt: &[u8] = &[];
        let entry = sql!(
            "update audit_entry set salt = $4, disposed_by = $5
             where org_id = $1 and seq = $2 and id = $3 and disposed_by is null"
        );
        if self.execute(entry, binds![org, bound(seq), id, no_salt, bound(by)]).await? == 0 {
            return Ok(false);
        }
        let payload = sql!("update audit set detail = 'null' where org_id = $1 and id = $2");
        self.execute(payload, binds![org, id]).await?;
        Ok(true)
    }

    /// Numbers of the entries with this action that have their place, in the order in which they were written; at most so many.
    pub async fn list_audit_seqs(&mut self, action: &str, limit: u32) -> Result<Vec<u64>, StoreError> {
        let sql = sql!(
            "select e.seq from audit a join audit_entry e on e.org_id = a.org_id and e.id = a.id
             where a.org_id = $1 and a.action = $2 order by a.id limit $3"
        );
        let org = self.org()?;
        self.fetch(sql, binds![org, action, limit]).await?.iter().map(|row| number(row, "seq")).collect()
    }

    /// The organization's own times for payloads; `None` while it has the operator's.
    pub async fn load_audit_retention(&mut self) -> Result<Option<StoredAuditRetention>, StoreError> {
        let sql = sql!("select policy, revision from audit_retention where org_id = $1");
        let org = self.org()?;
        let Some(row) = self.fetch_optional(sql, binds![org]).await? else { return Ok(None) };
        Ok(Some(StoredAuditRetention { policy: row.json("policy")?, revision: row.get("revision")? }))
    }

    /// Saves the organization's times over the revision that was seen (0: the operator's): `false` if it is another one by now.
    pub async fn save_audit_retention(
        &mut self,
        policy: &PayloadRetention,
        seen: i64,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let policy = serde_json::to_string(policy).map_err(|error| StoreError::corrupt("audit_retention", error))?;
        let org = self.org()?;
        let saved = if seen == 0 {
            let sql = sql!(
                "insert into audit_retention (org_id, policy, revision, updated_at) values ($1, $2, 1, $3)
                 on conflict (org_id) do nothing"
            );
            self.execute(sql, binds![org, &policy, now]).await?
        } else {
            let sql = sql!(
                "update audit_retention set policy = $2, revision = revision + 1, updated_at = $3
                 where org_id = $1 and revision = $4"
            );
            self.execute(sql, binds![org, &policy, now, seen]).await?
        };
        Ok(saved > 0)
    }

    /// Organizations, at most so many, by id from behind `after` on. Needs the scope of `SystemReason::Jobs`.
    pub async fn list_orgs_by_id(&mut self, after: Option<OrgId>, limit: u32) -> Result<Vec<OrgId>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!("select id from organization where id > $1 order by id limit $2");
        let after = after.map_or(uuid::Uuid::nil(), OrgId::uuid);
        self.fetch(sql, binds![after, limit]).await?.iter().map(|row| row.get("id")).collect()
    }
}
