//! Facts that leave a transaction: written with the change that they tell of.

use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::EventId;
use bulkhead_model::time::Timestamp;
use serde_json::Value;

use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

#[derive(Clone, Debug)]
pub struct Event {
    pub id: EventId,
    /// `run.succeeded`, …
    pub kind: String,
    /// The id of what it is about.
    pub subject: String,
    pub detail: Value,
    pub created_at: Timestamp,
}

fn read(row: &Row) -> Result<Event, StoreError> {
    Ok(Event {
        id: row.get("id")?,
        kind: row.get("kind")?,
        subject: row.get("subject")?,
        detail: row.json("detail")?,
        created_at: row.get("created_at")?,
    })
}

impl Tx {
    pub async fn record_event(
        &mut self,
        kind: &str,
        subject: &str,
        detail: &Value,
        ambient: &Ambient,
    ) -> Result<(), StoreError> {
        let sql =
            sql!("insert into event (org_id, id, kind, subject, detail, created_at) values ($1, $2, $3, $4, $5, $6)");
        let (org, id, detail) = (self.org()?, EventId::new(ambient), detail.to_string());
        self.execute(sql, binds![org, id, kind, subject, &detail, ambient.now()]).await.map(drop)
    }

    /// Newest first; `kind` narrows when given.
    pub async fn list_events(&mut self, kind: Option<&str>, page: PageRequest) -> Result<Page<Event>, StoreError> {
        let (org, before, limit) = (self.org()?, page.bound(), page.fetch());
        let rows = if let Some(kind) = kind {
            let sql = sql!(
                "select id, kind, subject, detail, created_at from event
                 where org_id = $1 and kind = $2 and id < $3 order by id desc limit $4"
            );
            self.fetch(sql, binds![org, kind, before, limit]).await?
        } else {
            let sql = sql!(
                "select id, kind, subject, detail, created_at from event
                 where org_id = $1 and id < $2 order by id desc limit $3"
            );
            self.fetch(sql, binds![org, before, limit]).await?
        };
        let events = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(events, |event| event.id.uuid()))
    }
}
