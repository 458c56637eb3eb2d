//! API keys: only the SHA-256 of the secret is stored.

use bulkhead_model::id::{ApiKeyId, UserId};
use bulkhead_model::permission::{Permission, PermissionSet};
use bulkhead_model::time::Timestamp;
use bulkhead_model::token::SecretHash;

use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

#[derive(Clone, Debug)]
pub struct ApiKey {
    pub id: ApiKeyId,
    pub name: String,
    pub secret_hash: SecretHash,
    pub permissions: PermissionSet,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    /// Whose it is; none for those that the operator made, and for theirs.
    pub owner: Option<UserId>,
    /// The key that made it.
    pub made_by: Option<ApiKeyId>,
    /// The secret before this one, and until when it is good as well.
    pub previous: Option<(SecretHash, Timestamp)>,
}

fn read(row: &Row) -> Result<ApiKey, StoreError> {
    let permissions: Vec<String> = row.json("permissions")?;
    Ok(ApiKey {
        id: row.get("id")?,
        name: row.get("name")?,
        secret_hash: SecretHash(row.get("secret_hash")?),
        // A permission that this version no longer knows gives nothing, and one of the platform's neither.
        permissions: permissions
            .iter()
            .filter_map(|text| text.parse::<Permission>().ok())
            .collect::<PermissionSet>()
            .intersection(PermissionSet::all()),
        created_at: row.get("created_at")?,
        expires_at: row.get("expires_at")?,
        revoked_at: row.get("revoked_at")?,
        owner: row.get("user_id")?,
        made_by: row.get("made_by")?,
        previous: match (row.get::<Option<Vec<u8>>>("previous_hash")?, row.get("previous_until")?) {
            (Some(hash), Some(until)) => {
                let hash = hash.try_into().map_err(|_| StoreError::corrupt("previous_hash", "not 32 bytes"))?;
                Some((SecretHash(hash), until))
            }
            (None, _) | (_, None) => None,
        },
    })
}

impl ApiKey {
    /// Whether a presented secret is the key's, or the one before while that is good; in constant time for each.
    #[must_use]
    pub fn matches(&self, secret: &[u8; 32], now: Timestamp) -> bool {
        let before = self.previous.filter(|(_, until)| now < *until);
        let (is_this, is_before) =
            (self.secret_hash.matches(secret), before.is_some_and(|(hash, _)| hash.matches(secret)));
        is_this || is_before
    }
}

impl Tx {
    pub async fn insert_api_key(&mut self, key: &ApiKey) -> Result<(), StoreError> {
        let permissions: Vec<&str> = key.permissions.iter().map(Permission::as_str).collect();
        let permissions = serde_json::to_string(&permissions).map_err(|e| StoreError::corrupt("permissions", e))?;
        let sql = sql!(
            "insert into api_key (org_id, id, name, secret_hash, permissions, created_at, expires_at, revoked_at, user_id,
                 made_by)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
        );
        let org = self.org()?;
        let values = binds![
            org,
            key.id,
            &key.name,
            &key.secret_hash.0,
            &permissions,
            key.created_at,
            key.expires_at,
            key.revoked_at,
            key.owner,
            key.made_by
        ];
        self.execute(sql, values).await.map(drop)
    }

    pub async fn load_api_key(&mut self, id: ApiKeyId) -> Result<Option<ApiKey>, StoreError> {
        let sql = sql!(
            "select id, name, secret_hash, permissions, created_at, expires_at, revoked_at, user_id, made_by, previous_hash,
                 previous_until
             from api_key where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id]).await?.map(|row| read(&row)).transpose()
    }

    pub async fn list_api_keys(&mut self, page: PageRequest) -> Result<Page<ApiKey>, StoreError> {
        let sql = sql!(
            "select id, name, secret_hash, permissions, created_at, expires_at, revoked_at, user_id, made_by, previous_hash,
                 previous_until
             from api_key where org_id = $1 and id < $2 order by id desc limit $3"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, page.bound(), page.fetch()]).await?;
        let keys = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(keys, |key| key.id.uuid()))
    }

    /// Gives a valid key another secret; the one before is good until `until`, and the one before that no longer. `false` when it is revoked.
    pub async fn replace_api_key_secret(
        &mut self,
        id: ApiKeyId,
        secret_hash: &SecretHash,
        until: Timestamp,
    ) -> Result<bool, StoreError> {
        let sql = sql!(
            "update api_key set previous_hash = secret_hash, previous_until = $4, secret_hash = $3
             where org_id = $1 and id = $2 and revoked_at is null"
        );
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, id, &secret_hash.0, until]).await? > 0)
    }

    /// How many keys are valid, up to `limit`.
    pub async fn count_valid_api_keys(&mut self, now: Timestamp, limit: u32) -> Result<usize, StoreError> {
        let sql = sql!(
            "select id from api_key
             where org_id = $1 and revoked_at is null and (expires_at is null or expires_at > $2) limit $3"
        );
        let org = self.org()?;
        Ok(self.fetch(sql, binds![org, now, limit]).await?.len())
    }

    /// Revokes every key of a person's in this organization; answers how many were valid.
    pub async fn revoke_keys_of(&mut self, user: UserId, now: Timestamp) -> Result<u64, StoreError> {
        let sql = sql!("update api_key set revoked_at = $3 where org_id = $1 and user_id = $2 and revoked_at is null");
        let org = self.org()?;
        self.execute(sql, binds![org, user, now]).await
    }

    /// Revokes every key of the organization; answers which of them were not revoked before.
    pub async fn revoke_all_api_keys(&mut self, now: Timestamp) -> Result<Vec<ApiKeyId>, StoreError> {
        let sql = sql!("update api_key set revoked_at = $2 where org_id = $1 and revoked_at is null returning id");
        let org = self.org()?;
        self.fetch(sql, binds![org, now]).await?.iter().map(|row| row.get("id")).collect()
    }

    /// Revokes a key and all that came of it: those that it made, those that they made, and so on. Answers which of them were valid before.
    pub async fn revoke_api_key(&mut self, id: ApiKeyId, now: Timestamp) -> Result<Vec<ApiKeyId>, StoreError> {
        let sql = sql!(
            "with recursive family (id) as (
                 select id from api_key where org_id = $1 and id = $2
                 union
                 select made.id from family join api_key made on made.org_id = $1 and made.made_by = family.id
             )
             update api_key set revoked_at = $3
             where org_id = $1 and revoked_at is null and id in (select id from family) returning id"
        );
        let org = self.org()?;
        let mut revoked: Vec<ApiKeyId> =
            self.fetch(sql, binds![org, id, now]).await?.iter().map(|row| row.get("id")).collect::<Result<_, _>>()?;
        revoked.sort_unstable();
        Ok(revoked)
    }
}
