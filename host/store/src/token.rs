//! Refresh tokens: families that end with the session that they came from, and every token that was ever handed out in one.

use bulkhead_model::id::{SessionId, TokenFamilyId, UserId};
use bulkhead_model::time::Timestamp;
use bulkhead_model::token::SecretHash;

use crate::error::StoreError;
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

/// Tokens that follow from one another.
#[derive(Clone, Debug)]
pub struct TokenFamily {
    pub id: TokenFamilyId,
    pub user: UserId,
    pub session: SessionId,
    /// The person's epoch when it began.
    pub epoch: i64,
    /// What the session had proven then, divided by spaces …
    pub amr: String,
    /// … and when.
    pub auth_at: Timestamp,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
}

/// A token that was presented: its family, and whether it was used before.
#[derive(Clone, Debug)]
pub struct RefreshToken {
    pub family: TokenFamily,
    pub used_at: Option<Timestamp>,
}

fn read(row: &Row) -> Result<RefreshToken, StoreError> {
    let family = TokenFamily {
        id: row.get("id")?,
        user: row.get("user_id")?,
        session: row.get("session_id")?,
        epoch: row.get("epoch")?,
        amr: row.get("amr")?,
        auth_at: row.get("auth_at")?,
        created_at: row.get("created_at")?,
        expires_at: row.get("expires_at")?,
    };
    Ok(RefreshToken { family, used_at: row.get("used_at")? })
}

impl Tx {
    pub async fn insert_token_family(&mut self, family: &TokenFamily) -> Result<(), StoreError> {
        self.require_people()?;
        let sql = sql!(
            "insert into token_family (id, user_id, session_id, epoch, amr, auth_at, created_at, expires_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8)"
        );
        let values = binds![
            family.id,
            family.user,
            family.session,
            family.epoch,
            &family.amr,
            family.auth_at,
            family.created_at,
            family.expires_at
        ];
        self.execute(sql, values).await.map(drop)
    }

    pub async fn insert_refresh_token(
        &mut self,
        hash: &SecretHash,
        family: TokenFamilyId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.require_people()?;
        let sql = sql!("insert into refresh_token (token_hash, family_id, created_at) values ($1, $2, $3)");
        self.execute(sql, binds![&hash.0, family, now]).await.map(drop)
    }

    /// The token of this hash, whether it was used or not.
    pub async fn load_refresh_token(&mut self, hash: &SecretHash) -> Result<Option<RefreshToken>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select f.id, f.user_id, f.session_id, f.epoch, f.amr, f.auth_at, f.created_at, f.expires_at, t.used_at
             from refresh_token t join token_family f on f.id = t.family_id where t.token_hash = $1"
        );
        self.fetch_optional(sql, binds![&hash.0]).await?.map(|row| read(&row)).transpose()
    }

    /// Uses a token: nobody did before.
    pub async fn use_refresh_token(&mut self, hash: &SecretHash, now: Timestamp) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update refresh_token set used_at = $2 where token_hash = $1 and used_at is null");
        Ok(self.execute(sql, binds![&hash.0, now]).await? > 0)
    }

    /// Ends a family: none of its tokens is worth anything any more.
    pub async fn delete_token_family(&mut self, id: TokenFamilyId) -> Result<bool, StoreError> {
        self.require_people()?;
        Ok(self.execute(sql!("delete from token_family where id = $1"), binds![id]).await? > 0)
    }

    /// How many families a session has, up to the cap.
    pub async fn count_token_families(&mut self, session: SessionId, cap: u32) -> Result<usize, StoreError> {
        self.require_people()?;
        let sql = sql!("select id from token_family where session_id = $1 limit $2");
        Ok(self.fetch(sql, binds![session, cap]).await?.len())
    }

    /// The sessions of a person from which tokens go on, and how many families each has.
    pub async fn list_token_sessions(
        &mut self,
        user: UserId,
        now: Timestamp,
    ) -> Result<Vec<(SessionId, u32)>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select session_id, count(*) as families from token_family where user_id = $1 and expires_at > $2 group by session_id"
        );
        let read = |row: &Row| Ok((row.get("session_id")?, row.get("families")?));
        self.fetch(sql, binds![user, now]).await?.iter().map(read).collect()
    }

    /// Removes families that are over.
    pub async fn remove_expired_tokens(&mut self, now: Timestamp) -> Result<u64, StoreError> {
        self.require_people()?;
        self.execute(sql!("delete from token_family where expires_at <= $1"), binds![now]).await
    }
}
