//! Letters that wait to be sent: put down in the transaction that is their reason, sent by whichever node claims them first.

use bulkhead_model::account::Email;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::MailId;
use bulkhead_model::letter::Letter;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

/// A letter that this node sends now.
#[derive(Clone, Debug)]
pub struct Mail {
    pub id: MailId,
    pub recipient: Email,
    /// None: a newer version wrote it, and this one does not know the kind.
    pub letter: Option<Letter>,
    /// This one included.
    pub attempts: u32,
    pub created_at: Timestamp,
}

fn read(row: &Row) -> Result<Mail, StoreError> {
    let letter: String = row.get("letter")?;
    Ok(Mail {
        id: row.get("id")?,
        recipient: row.parsed("recipient", |text| text.parse().ok())?,
        letter: serde_json::from_str(&letter).ok(),
        attempts: row.get("attempts")?,
        created_at: row.get("created_at")?,
    })
}

impl Tx {
    /// Puts a letter down: it is sent exactly if the transaction commits.
    pub async fn enqueue_mail(&mut self, to: &Email, letter: &Letter, ambient: &Ambient) -> Result<MailId, StoreError> {
        self.require_people()?;
        let (id, now) = (MailId::new(ambient), ambient.now());
        let letter = serde_json::to_string(letter).map_err(|error| StoreError::corrupt("letter", error))?;
        let sql = sql!(
            "insert into mail (id, recipient, letter, state, attempts, next_at, created_at) values ($1, $2, $3, 'waiting', 0, $4, $4)"
        );
        self.execute(sql, binds![id, to.as_str(), &letter, now]).await?;
        Ok(id)
    }

    /// Whether at least so many letters wait.
    pub async fn is_mail_full(&mut self, letters_max: u32) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("select id from mail where state = 'waiting' order by next_at, id limit 1 offset $1");
        Ok(self.fetch_optional(sql, binds![letters_max.saturating_sub(1)]).await?.is_some())
    }

    /// Takes the letter that has been due for longest, until `until`: nobody else takes it before.
    pub async fn claim_mail(&mut self, now: Timestamp, until: Timestamp) -> Result<Option<Mail>, StoreError> {
        self.require_people()?;
        // Due is asked for twice: of two that find the same letter, the second one finds it taken.
        let sql = sql!(
            "update mail set next_at = $2, attempts = attempts + 1
             where state = 'waiting' and next_at <= $1
               and id = (select id from mail where state = 'waiting' and next_at <= $1 order by next_at, id limit 1)
             returning id, recipient, letter, attempts, created_at"
        );
        self.fetch_optional(sql, binds![now, until]).await?.map(|row| read(&row)).transpose()
    }

    /// The letter is with the relay, or needs not be sent.
    pub async fn finish_mail(&mut self, id: MailId) -> Result<bool, StoreError> {
        self.require_people()?;
        Ok(self.execute(sql!("delete from mail where id = $1"), binds![id]).await? > 0)
    }

    /// The letter could not be sent: it is tried again at `next_at`, or given up without one.
    pub async fn fail_mail(&mut self, id: MailId, error: &str, next_at: Option<Timestamp>) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update mail set state = $3, next_at = coalesce($4, next_at), error = $2 where id = $1");
        let state = if next_at.is_some() { "waiting" } else { "failed" };
        Ok(self.execute(sql, binds![id, error, state, next_at]).await? > 0)
    }

    /// Forgets letters that were given up and were put down before.
    pub async fn remove_failed_mail(&mut self, before: MailId) -> Result<u64, StoreError> {
        self.require_people()?;
        self.execute(sql!("delete from mail where state = 'failed' and id < $1"), binds![before]).await
    }
}
