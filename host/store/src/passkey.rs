//! Passkeys, and the challenges that wait for an answer. What is stored of a passkey is no secret: it proves nothing but who answers.
//!
//! That a challenge is answered once is one delete: [`Tx::use_ceremony`].

use bulkhead_model::id::{PasskeyId, UserId};
use bulkhead_model::mfa::Factors;
use bulkhead_model::passkey::CeremonyPurpose;
use bulkhead_model::time::Timestamp;
use bulkhead_model::token::SecretHash;
use uuid::Uuid;

use crate::error::StoreError;
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

/// A person's passkey.
#[derive(Clone, Debug)]
pub struct StoredPasskey {
    pub id: PasskeyId,
    pub user: UserId,
    /// What authenticators know the person by: random, and the same for all of their passkeys.
    pub handle: Uuid,
    /// As the authenticator made it; nobody else's passkey has the same.
    pub credential_id: Vec<u8>,
    pub name: String,
    /// Public key, counter and flags: JSON of the library that judges answers.
    pub credential: String,
    pub created_at: Timestamp,
    pub used_at: Option<Timestamp>,
}

/// A challenge that waits for an answer.
#[derive(Clone, Debug)]
pub struct Ceremony {
    pub purpose: CeremonyPurpose,
    /// Of the cookie that has to come with the answer: a session's, or a sign-in's.
    pub token_hash: SecretHash,
    /// Who has to answer; none where the passkey says who it is.
    pub user: Option<UserId>,
    /// What a passkey that is being made will know the person by.
    pub handle: Option<Uuid>,
    /// JSON of the library that judges answers, the challenge above all.
    pub state: String,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
}

fn read(row: &Row) -> Result<StoredPasskey, StoreError> {
    Ok(StoredPasskey {
        id: row.get("id")?,
        user: row.get("user_id")?,
        handle: row.get("handle")?,
        credential_id: row.get("credential_id")?,
        name: row.get("name")?,
        credential: row.get("credential")?,
        created_at: row.get("created_at")?,
        used_at: row.get("used_at")?,
    })
}

fn read_ceremony(row: &Row) -> Result<Ceremony, StoreError> {
    Ok(Ceremony {
        purpose: row.parsed("purpose", CeremonyPurpose::parse)?,
        token_hash: SecretHash(row.get("token_hash")?),
        user: row.get("user_id")?,
        handle: row.get("handle")?,
        state: row.get("state")?,
        created_at: row.get("created_at")?,
        expires_at: row.get("expires_at")?,
    })
}

impl Tx {
    pub async fn insert_passkey(&mut self, passkey: &StoredPasskey) -> Result<(), StoreError> {
        self.require_people()?;
        let sql = sql!(
            "insert into passkey (id, user_id, handle, credential_id, name, credential, created_at, used_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8)"
        );
        let values = binds![
            passkey.id,
            passkey.user,
            passkey.handle,
            &passkey.credential_id,
            &passkey.name,
            &passkey.credential,
            passkey.created_at,
            passkey.used_at
        ];
        self.execute(sql, values).await.map(drop)
    }

    /// A person's passkeys, the oldest first.
    pub async fn list_passkeys(&mut self, user: UserId) -> Result<Vec<StoredPasskey>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select id, user_id, handle, credential_id, name, credential, created_at, used_at from passkey
             where user_id = $1 order by id limit 50"
        );
        self.fetch(sql, binds![user]).await?.iter().map(read).collect()
    }

    /// The passkey that an authenticator calls so, whoever's it is.
    pub async fn load_passkey_by_credential(
        &mut self,
        credential_id: &[u8],
    ) -> Result<Option<StoredPasskey>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select id, user_id, handle, credential_id, name, credential, created_at, used_at from passkey
             where credential_id = $1"
        );
        self.fetch_optional(sql, binds![credential_id]).await?.map(|row| read(&row)).transpose()
    }

    /// Writes down what an answer changed, its counter above all.
    pub async fn update_passkey(
        &mut self,
        id: PasskeyId,
        credential: &str,
        used_at: Timestamp,
    ) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update passkey set credential = $2, used_at = $3 where id = $1");
        Ok(self.execute(sql, binds![id, credential, used_at]).await? > 0)
    }

    /// Removes one of a person's passkeys.
    pub async fn delete_passkey(&mut self, user: UserId, id: PasskeyId) -> Result<bool, StoreError> {
        self.require_people()?;
        Ok(self.execute(sql!("delete from passkey where user_id = $1 and id = $2"), binds![user, id]).await? > 0)
    }

    /// Removes all of a person's passkeys.
    pub async fn delete_passkeys(&mut self, user: UserId) -> Result<u64, StoreError> {
        self.require_people()?;
        self.execute(sql!("delete from passkey where user_id = $1"), binds![user]).await
    }

    /// What a person has of their own besides a password: whether mail counts is for organizations to say.
    pub async fn load_factors(&mut self, user: UserId) -> Result<Factors, StoreError> {
        self.require_people()?;
        let app = self.load_totp(user).await?.is_some();
        let sql = sql!("select id from passkey where user_id = $1 limit 1");
        Ok(Factors { email: false, app, passkey: self.fetch_optional(sql, binds![user]).await?.is_some() })
    }

    /// Keeps a challenge; one before it, for the same purpose and with the same cookie, is worth nothing from here on.
    pub async fn replace_ceremony(&mut self, ceremony: &Ceremony) -> Result<(), StoreError> {
        self.require_people()?;
        let sql = sql!(
            "insert into passkey_ceremony (token_hash, purpose, user_id, handle, state, created_at, expires_at)
             values ($1, $2, $3, $4, $5, $6, $7)
             on conflict (token_hash, purpose) do update set user_id = excluded.user_id, handle = excluded.handle,
                 state = excluded.state, created_at = excluded.created_at, expires_at = excluded.expires_at"
        );
        let values = binds![
            &ceremony.token_hash.0,
            ceremony.purpose.as_str(),
            ceremony.user,
            ceremony.handle,
            &ceremony.state,
            ceremony.created_at,
            ceremony.expires_at
        ];
        self.execute(sql, values).await.map(drop)
    }

    /// Takes a challenge to judge an answer by it: once, whatever the answer is worth, and whether its time is over or not.
    pub async fn use_ceremony(
        &mut self,
        hash: &SecretHash,
        purpose: CeremonyPurpose,
    ) -> Result<Option<Ceremony>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "delete from passkey_ceremony where token_hash = $1 and purpose = $2
             returning token_hash, purpose, user_id, handle, state, created_at, expires_at"
        );
        self.fetch_optional(sql, binds![&hash.0, purpose.as_str()]).await?.map(|row| read_ceremony(&row)).transpose()
    }

    /// Ends the challenges that a person has to answer.
    pub async fn delete_ceremonies(&mut self, user: UserId) -> Result<u64, StoreError> {
        self.require_people()?;
        self.execute(sql!("delete from passkey_ceremony where user_id = $1"), binds![user]).await
    }

    /// Removes challenges that nobody answered.
    pub async fn remove_expired_ceremonies(&mut self, now: Timestamp) -> Result<u64, StoreError> {
        self.require_people()?;
        self.execute(sql!("delete from passkey_ceremony where expires_at <= $1"), binds![now]).await
    }
}
