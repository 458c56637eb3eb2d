//! Audit entries, written in the transaction that they describe. How they are proven is in `audit_log.rs`.

use bulkhead_audit::payload;
use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::AuditId;
use bulkhead_model::permission::Actor;
use bulkhead_model::time::Timestamp;
use serde_json::Value;

use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

/// One audited act, written in the transaction that does it.
#[derive(Clone, Debug)]
pub struct AuditEvent {
    pub action: EventType,
    /// The id of what was acted on.
    pub target: String,
    pub actor: Actor,
    /// Before and after, digests, reasons. Never a secret's value. Of more than
    /// [`PAYLOAD_BYTES_MAX`](bulkhead_audit::payload::PAYLOAD_BYTES_MAX) large parts are kept as their digests.
    pub detail: Value,
}

#[derive(Clone, Debug)]
pub struct AuditEntry {
    pub id: AuditId,
    /// Its number in the log; none while it waits for its place.
    pub seq: Option<u64>,
    pub action: String,
    pub target: String,
    pub actor: String,
    pub detail: Value,
    pub created_at: Timestamp,
}

fn read(row: &Row) -> Result<AuditEntry, StoreError> {
    Ok(AuditEntry {
        id: row.get("id")?,
        seq: row.get::<Option<i64>>("seq")?.and_then(|seq| u64::try_from(seq).ok()),
        action: row.get("action")?,
        target: row.get("target")?,
        actor: row.get("actor")?,
        detail: row.json("detail")?,
        created_at: row.get("created_at")?,
    })
}

impl Tx {
    /// Appends an entry about this transaction. Its place in the chain it gets afterwards.
    pub async fn record_audit(&mut self, event: &AuditEvent, ambient: &Ambient) -> Result<(), StoreError> {
        let (id, _, _) = self.insert_audit(event, ambient).await?;
        let sql = sql!("insert into audit_waiting (org_id, id) values ($1, $2)");
        let org = self.org()?;
        self.execute(sql, binds![org, id]).await.map(drop)
    }

    /// Writes an entry and answers the exact bytes of its payload, and its time.
    pub(crate) async fn insert_audit(
        &mut self,
        event: &AuditEvent,
        ambient: &Ambient,
    ) -> Result<(AuditId, String, Timestamp), StoreError> {
        let sql = sql!(
            "insert into audit (org_id, id, action, target, actor, detail, created_at) values ($1, $2, $3, $4, $5, $6, $7)"
        );
        let (org, id, now) = (self.org()?, AuditId::new(ambient), ambient.now());
        let actor = event.actor.to_string();
        // Bounded: what is longer than a bundle's line could never be taken out and verified.
        let detail =
            payload::bounded_text(event.detail.clone()).map_err(|error| StoreError::corrupt("detail", error))?;
        let values = binds![org, id, event.action.as_str(), &event.target, &actor, &detail, now];
        self.execute(sql, values).await?;
        Ok((id, detail, now))
    }

    /// Newest first; `action` and `target` narrow when given.
    pub async fn list_audit(
        &mut self,
        action: Option<&str>,
        target: Option<&str>,
        page: PageRequest,
    ) -> Result<Page<AuditEntry>, StoreError> {
        let (org, before, limit) = (self.org()?, page.bound(), page.fetch());
        // A statement for each filter, each with an index of its own: a rare action is found without reading all others.
        let rows = match (action, target) {
            (None, None) => {
                let sql = sql!(
                    "select id, action, target, actor, detail, created_at,
                         (select e.seq from audit_entry e where e.org_id = audit.org_id and e.id = audit.id) as seq from audit
                     where org_id = $1 and id < $2 order by id desc limit $3"
                );
                self.fetch(sql, binds![org, before, limit]).await?
            }
            (Some(action), None) => {
                let sql = sql!(
                    "select id, action, target, actor, detail, created_at,
                         (select e.seq from audit_entry e where e.org_id = audit.org_id and e.id = audit.id) as seq from audit
                     where org_id = $1 and action = $2 and id < $3 order by id desc limit $4"
                );
                self.fetch(sql, binds![org, action, before, limit]).await?
            }
            (None, Some(target)) => {
                let sql = sql!(
                    "select id, action, target, actor, detail, created_at,
                         (select e.seq from audit_entry e where e.org_id = audit.org_id and e.id = audit.id) as seq from audit
                     where org_id = $1 and target = $2 and id < $3 order by id desc limit $4"
                );
                self.fetch(sql, binds![org, target, before, limit]).await?
            }
            (Some(action), Some(target)) => {
                let sql = sql!(
                    "select id, action, target, actor, detail, created_at,
                         (select e.seq from audit_entry e where e.org_id = audit.org_id and e.id = audit.id) as seq from audit
                     where org_id = $1 and target = $2 and action = $3 and id < $4 order by id desc limit $5"
                );
                self.fetch(sql, binds![org, target, action, before, limit]).await?
            }
        };
        let entries = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(entries, |entry| entry.id.uuid()))
    }
}
