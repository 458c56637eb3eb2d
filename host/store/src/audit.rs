//! Audit entries, written in the transaction that they describe. How they are proven is in `audit_log.rs`.

use bulkhead_audit::payload;
use bulkhead_audit::taxonomy::{Category, EventType, Severity};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::AuditId;
use bulkhead_model::permission::Actor;
use bulkhead_model::time::Timestamp;
use serde_json::Value;

use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql, sql_postgres};
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
    /// The id of the request that it was written in; none for what the host did by itself.
    pub correlation: Option<String>,
    /// Null once it was disposed of.
    pub detail: Value,
    pub created_at: Timestamp,
    /// The number of the entry that says under what the detail was disposed of.
    pub disposed_by: Option<u64>,
}

/// Which entries are asked for; what is absent admits all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    pub action: Option<String>,
    pub target: Option<String>,
    pub actor: Option<String>,
    pub correlation: Option<String>,
    pub category: Option<Category>,
    pub severity: Option<Severity>,
    /// From this moment on, to the millisecond …
    pub from: Option<Timestamp>,
    /// … and before this one.
    pub to: Option<Timestamp>,
}

impl AuditFilter {
    /// The actions that are admitted; `None`: whatever it is. Category and severity follow from the action.
    fn actions(&self) -> Option<Vec<&str>> {
        if self.category.is_none() && self.severity.is_none() {
            return self.action.as_deref().map(|action| vec![action]);
        }
        let admits = |event: &&EventType| {
            self.category.is_none_or(|category| category == event.category())
                && self.severity.is_none_or(|severity| severity == event.severity())
                && self.action.as_deref().is_none_or(|action| action == event.as_str())
        };
        Some(EventType::ALL.iter().filter(admits).map(|event| event.as_str()).collect())
    }
}

/// Which ids are asked for, newest first: `from` up to, without, `before`.
#[derive(Clone, Copy)]
struct Span {
    before: uuid::Uuid,
    from: uuid::Uuid,
    limit: i64,
}

impl Span {
    fn of(filter: &AuditFilter, page: PageRequest) -> Self {
        let to = filter.to.map_or(uuid::Uuid::max(), |to| AuditId::first_at(to).uuid());
        let from = filter.from.map_or(uuid::Uuid::nil(), |from| AuditId::first_at(from).uuid());
        Self { before: page.bound().min(to), from, limit: page.fetch() }
    }
}

fn read(row: &Row) -> Result<AuditEntry, StoreError> {
    Ok(AuditEntry {
        id: row.get("id")?,
        seq: row.get::<Option<i64>>("seq")?.and_then(|seq| u64::try_from(seq).ok()),
        action: row.get("action")?,
        target: row.get("target")?,
        actor: row.get("actor")?,
        correlation: row.get("correlation")?,
        detail: row.json("detail")?,
        created_at: row.get("created_at")?,
        disposed_by: row.get::<Option<i64>>("disposed_by")?.and_then(|seq| u64::try_from(seq).ok()),
    })
}

impl Tx {
    /// Appends an entry about this transaction. Its place in the chain it gets afterwards.
    pub async fn record_audit(&mut self, event: &AuditEvent, ambient: &Ambient) -> Result<(), StoreError> {
        self.insert_audit(event, ambient).await.map(drop)
    }

    /// Writes an entry that waits from now on, and answers the exact bytes of its payload, and its time.
    pub(crate) async fn insert_audit(
        &mut self,
        event: &AuditEvent,
        ambient: &Ambient,
    ) -> Result<(AuditId, String, Timestamp), StoreError> {
        let (org, id, now) = (self.org()?, AuditId::new(ambient), ambient.now());
        let correlation = self.context.correlation.clone();
        let actor = event.actor.to_string();
        // Bounded: what is longer than a bundle's line could never be taken out and verified.
        let detail =
            payload::bounded_text(event.detail.clone()).map_err(|error| StoreError::corrupt("detail", error))?;
        let values =
            binds![org, id, event.action.as_str(), &event.target, &actor, correlation.as_deref(), &detail, now];
        if self.is_postgres() {
            // One round trip for two; that the entry is there for the one that waits is asked when both are.
            let sql = sql_postgres!(
                "with entered as (
                     insert into audit (org_id, id, action, target, actor, correlation, detail, created_at)
                     values ($1, $2, $3, $4, $5, $6, $7, $8))
                 insert into audit_waiting (org_id, id) values ($1, $2)"
            );
            self.execute(sql, values).await?;
            return Ok((id, detail, now));
        }
        let sql = sql!(
            "insert into audit (org_id, id, action, target, actor, correlation, detail, created_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8)"
        );
        self.execute(sql, values).await?;
        let sql = sql!("insert into audit_waiting (org_id, id) values ($1, $2)");
        self.execute(sql, binds![org, id]).await?;
        Ok((id, detail, now))
    }

    /// Newest first, what the filter admits.
    pub async fn list_audit(
        &mut self,
        filter: &AuditFilter,
        page: PageRequest,
    ) -> Result<Page<AuditEntry>, StoreError> {
        let mut span = Span::of(filter, page);
        let entries = match filter.actions() {
            None => self.audit_span(None, filter, span).await?,
            Some(actions) => {
                // Each by its index, newest first; what is older than enough others is not read.
                let (mut found, enough) = (Vec::new(), usize::try_from(page.fetch()).unwrap_or(usize::MAX));
                for action in &actions {
                    found.extend(self.audit_span(Some(action), filter, span).await?);
                    found.sort_unstable_by_key(|entry: &AuditEntry| std::cmp::Reverse(entry.id.uuid()));
                    found.truncate(enough);
                    if let (true, Some(last)) = (found.len() == enough, found.last()) {
                        span.from = last.id.uuid();
                    }
                }
                found
            }
        };
        Ok(page.page(entries, |entry| entry.id.uuid()))
    }

    /// A statement for each pair of filters that has an index of its own: a rare action is found without reading all others.
    async fn audit_span(
        &mut self,
        action: Option<&str>,
        filter: &AuditFilter,
        span: Span,
    ) -> Result<Vec<AuditEntry>, StoreError> {
        let Span { before, from, limit } = span;
        let (org, actor) = (self.org()?, &filter.actor);
        if let Some(correlation) = &filter.correlation {
            // Of one request there are few.
            let sql = sql!(
                "select id, action, target, actor, correlation, detail, created_at,
                     (select e.seq from audit_entry e where e.org_id = audit.org_id and e.id = audit.id) as seq,
                     (select e.disposed_by from audit_entry e where e.org_id = audit.org_id and e.id = audit.id) as disposed_by
                 from audit where org_id = $1 and correlation = $2 and id < $3 and id >= $4
                     and coalesce($5, action) = action and coalesce($6, target) = target and coalesce($7, actor) = actor
                 order by id desc limit $8"
            );
            let values = binds![org, correlation, before, from, action, &filter.target, actor, limit];
            return self.fetch(sql, values).await?.iter().map(read).collect();
        }
        let rows = match (action, &filter.target, actor) {
            (None, None, None) => {
                let sql = sql!(
                    "select id, action, target, actor, correlation, detail, created_at,
                         (select e.seq from audit_entry e where e.org_id = audit.org_id and e.id = audit.id) as seq,
                         (select e.disposed_by from audit_entry e where e.org_id = audit.org_id and e.id = audit.id) as disposed_by
                     from audit where org_id = $1 and id < $2 and id >= $3 order by id desc limit $4"
                );
                self.fetch(sql, binds![org, before, from, limit]).await?
            }
            (None, None, Some(actor)) => {
                let sql = sql!(
                    "select id, action, target, actor, correlation, detail, created_at,
                         (select e.seq from audit_entry e where e.org_id = audit.org_id and e.id = audit.id) as seq,
                         (select e.disposed_by from audit_entry e where e.org_id = audit.org_id and e.id = audit.id) as disposed_by
                     from audit where org_id = $1 and actor = $2 and id < $3 and id >= $4 order by id desc limit $5"
                );
                self.fetch(sql, binds![org, actor, before, from, limit]).await?
            }
            (Some(action), None, actor) => {
                let sql = sql!(
                    "select id, action, target, actor, correlation, detail, created_at,
                         (select e.seq from audit_entry e where e.org_id = audit.org_id and e.id = audit.id) as seq,
                         (select e.disposed_by from audit_entry e where e.org_id = audit.org_id and e.id = audit.id) as disposed_by
                     from audit where org_id = $1 and action = $2 and id < $3 and id >= $4 and coalesce($5, actor) = actor
                     order by id desc limit $6"
                );
                self.fetch(sql, binds![org, action, before, from, actor, limit]).await?
            }
            (None, Some(target), actor) => {
                let sql = sql!(
                    "select id, action, target, actor, correlation, detail, created_at,
                         (select e.seq from audit_entry e where e.org_id = audit.org_id and e.id = audit.id) as seq,
                         (select e.disposed_by from audit_entry e where e.org_id = audit.org_id and e.id = audit.id) as disposed_by
                     from audit where org_id = $1 and target = $2 and id < $3 and id >= $4 and coalesce($5, actor) = actor
                     order by id desc limit $6"
                );
                self.fetch(sql, binds![org, target, before, from, actor, limit]).await?
            }
            (Some(action), Some(target), actor) => {
                let sql = sql!(
                    "select id, action, target, actor, correlation, detail, created_at,
                         (select e.seq from audit_entry e where e.org_id = audit.org_id and e.id = audit.id) as seq,
                         (select e.disposed_by from audit_entry e where e.org_id = audit.org_id and e.id = audit.id) as disposed_by
                     from audit where org_id = $1 and target = $2 and action = $3 and id < $4 and id >= $5
                         and coalesce($6, actor) = actor
                     order by id desc limit $7"
                );
                self.fetch(sql, binds![org, target, action, before, from, actor, limit]).await?
            }
        };
        rows.iter().map(read).collect()
    }
}
