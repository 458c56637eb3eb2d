//! Links that do one thing once: when they end and whether they were used. Their text is computed (`bulkhead_model::link`).

use bulkhead_model::account::Email;
use bulkhead_model::id::{LinkId, UserId};
use bulkhead_model::link::Purpose;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub id: LinkId,
    pub purpose: Purpose,
    pub user: Option<UserId>,
    /// The address that using it proves.
    pub email: Option<Email>,
    /// The person's when it was made. Whoever uses the link compares it with the person's own.
    pub epoch: Option<i64>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub used_at: Option<Timestamp>,
}

/// A link in a letter that tells of something: it ends everything of the account, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokeLink {
    pub id: LinkId,
    pub user: UserId,
    /// Where the letter went.
    pub email: Email,
    /// What was added to the account from then on is taken away.
    pub since: Timestamp,
    pub expires_at: Timestamp,
}

fn read(row: &Row) -> Result<Link, StoreError> {
    let email: Option<String> = row.get("email")?;
    let email =
        email.map(|text| text.parse::<Email>().map_err(|error| StoreError::corrupt("email", error))).transpose()?;
    Ok(Link {
        id: row.get("id")?,
        purpose: row.parsed("purpose", Purpose::parse)?,
        user: row.get("user_id")?,
        email,
        epoch: row.get("epoch")?,
        created_at: row.get("created_at")?,
        expires_at: row.get("expires_at")?,
        used_at: row.get("used_at")?,
    })
}

impl Tx {
    pub async fn insert_link(&mut self, link: &Link) -> Result<(), StoreError> {
        self.require_people()?;
        let sql = sql!(
            "insert into user_link (id, purpose, user_id, email, epoch, created_at, expires_at, used_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8)"
        );
        let email = link.email.as_ref().map(Email::as_str);
        let values = binds![
            link.id,
            link.purpose.as_str(),
            link.user,
            email,
            link.epoch,
            link.created_at,
            link.expires_at,
            link.used_at
        ];
        self.execute(sql, values).await.map(drop)
    }

    /// Uses a link: it was never used, and its time is not over. `None`: it is of no use.
    pub async fn use_link(&mut self, id: LinkId, purpose: Purpose, now: Timestamp) -> Result<Option<Link>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "update user_link set used_at = $3 where id = $1 and purpose = $2 and used_at is null and expires_at > $3
             returning id, purpose, user_id, email, epoch, created_at, expires_at, used_at"
        );
        self.fetch_optional(sql, binds![id, purpose.as_str(), now]).await?.map(|row| read(&row)).transpose()
    }

    /// A link that could be used now.
    pub async fn load_usable_link(
        &mut self,
        id: LinkId,
        purpose: Purpose,
        now: Timestamp,
    ) -> Result<Option<Link>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select id, purpose, user_id, email, epoch, created_at, expires_at, used_at from user_link
             where id = $1 and purpose = $2 and used_at is null and expires_at > $3"
        );
        self.fetch_optional(sql, binds![id, purpose.as_str(), now]).await?.map(|row| read(&row)).transpose()
    }

    /// The newest set-up link that could be used now.
    pub async fn load_set_up_link(&mut self, now: Timestamp) -> Result<Option<Link>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select id, purpose, user_id, email, epoch, created_at, expires_at, used_at from user_link
             where purpose = 'set_up' and used_at is null and expires_at > $1 order by id desc limit 1"
        );
        self.fetch_optional(sql, binds![now]).await?.map(|row| read(&row)).transpose()
    }

    /// Makes the person's unused links of a purpose useless.
    pub async fn void_links(&mut self, user: UserId, purpose: Purpose, now: Timestamp) -> Result<u64, StoreError> {
        self.require_people()?;
        let sql = sql!("update user_link set used_at = $3 where user_id = $1 and purpose = $2 and used_at is null");
        self.execute(sql, binds![user, purpose.as_str(), now]).await
    }

    /// Removes links whose time is over, used or not.
    pub async fn remove_expired_links(&mut self, now: Timestamp) -> Result<u64, StoreError> {
        self.require_people()?;
        self.execute(sql!("delete from user_link where expires_at <= $1"), binds![now]).await
    }

    pub async fn insert_revoke_link(&mut self, link: &RevokeLink) -> Result<(), StoreError> {
        self.require_people()?;
        let sql = sql!("insert into revoke_link (id, user_id, email, since, expires_at) values ($1, $2, $3, $4, $5)");
        let values = binds![link.id, link.user, link.email.as_str(), link.since, link.expires_at];
        self.execute(sql, values).await.map(drop)
    }

    /// Uses a link once, while its time is not over.
    pub async fn use_revoke_link(&mut self, id: LinkId, now: Timestamp) -> Result<Option<RevokeLink>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "delete from revoke_link where id = $1 and expires_at > $2 returning id, user_id, email, since, expires_at"
        );
        let read = |row: Row| {
            Ok(RevokeLink {
                id: row.get("id")?,
                user: row.get("user_id")?,
                email: row.parsed("email", |text| text.parse().ok())?,
                since: row.get("since")?,
                expires_at: row.get("expires_at")?,
            })
        };
        self.fetch_optional(sql, binds![id, now]).await?.map(read).transpose()
    }

    /// Removes such links whose time is over.
    pub async fn remove_expired_revoke_links(&mut self, now: Timestamp) -> Result<u64, StoreError> {
        self.require_people()?;
        self.execute(sql!("delete from revoke_link where expires_at <= $1"), binds![now]).await
    }
}
