//! API keys: only the SHA-256 of the secret is stored.

use bulkhead_model::allow_list::AllowList;
use bulkhead_model::id::{ApiKeyId, UserId};
use bulkhead_model::permission::{Permission, PermissionSet};
use bulkhead_model::signature::{Algorithm, PublicKey, Required};
use bulkhead_model::time::Timestamp;
use bulkhead_model::token::SecretHash;

use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

/// What a key's requests are signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SigningKey {
    Ed25519(PublicKey),
    /// The shared secret, sealed for the key's own row.
    HmacSha256(String),
}

impl SigningKey {
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Ed25519(_) => Algorithm::Ed25519,
            Self::HmacSha256(_) => Algorithm::HmacSha256,
        }
    }
}

/// How a key's requests are signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signing {
    pub key: SigningKey,
    pub required: Required,
}

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
    /// None for keys whose requests are not signed.
    pub signing: Option<Signing>,
    /// Where it may be used from; everywhere if it is empty.
    pub networks: AllowList,
    /// To the minute, and a minute late.
    pub last_used_at: Option<Timestamp>,
}

/// Requests by a key on one day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyUsage {
    /// Days since 1970, in UTC.
    pub day: i64,
    pub requests: u64,
}

/// What does not read back as a list is an error: a key never becomes one that may be used from everywhere.
fn read_networks(row: &Row) -> Result<AllowList, StoreError> {
    let Some(text) = row.get::<Option<String>>("networks")? else { return Ok(AllowList::default()) };
    let texts: Vec<String> = serde_json::from_str(&text).map_err(|e| StoreError::corrupt("networks", e))?;
    let networks = AllowList::read(&texts).map_err(|e| StoreError::corrupt("networks", e))?;
    if networks.is_empty() {
        Err(StoreError::corrupt("networks", "an empty list is stored as null"))
    } else {
        Ok(networks)
    }
}

/// What does not read back as it was written is an error: a key whose requests have to be signed never becomes one whose need not.
fn read_signing(row: &Row) -> Result<Option<Signing>, StoreError> {
    let (algorithm, required) =
        (row.get::<Option<String>>("signing_algorithm")?, row.get::<Option<String>>("signing_required")?);
    let (Some(algorithm), Some(required)) = (&algorithm, &required) else {
        return if algorithm.is_none() && required.is_none() {
            Ok(None)
        } else {
            Err(StoreError::corrupt("signing_algorithm", "half of it is there"))
        };
    };
    let unknown = || StoreError::corrupt("signing_algorithm", "it is not known");
    let required = Required::parse(required).ok_or_else(unknown)?;
    let key = match Algorithm::parse(algorithm).ok_or_else(unknown)? {
        Algorithm::Ed25519 => {
            let bytes: [u8; 32] = row.get("signing_key")?;
            SigningKey::Ed25519(PublicKey::from_bytes(bytes).map_err(|e| StoreError::corrupt("signing_key", e))?)
        }
        Algorithm::HmacSha256 => SigningKey::HmacSha256(row.get("signing_secret")?),
    };
    Ok(Some(Signing { key, required }))
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
        signing: read_signing(row)?,
        networks: read_networks(row)?,
        last_used_at: row.get("last_used_at")?,
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
                 made_by, signing_algorithm, signing_required, signing_key, signing_secret, networks)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"
        );
        let networks = (!key.networks.is_empty()).then(|| serde_json::to_string(&key.networks.entries()));
        let networks = networks.transpose().map_err(|e| StoreError::corrupt("networks", e))?;
        let org = self.org()?;
        let signing = key.signing.as_ref();
        let (public_key, sealed) = match signing.map(|signing| &signing.key) {
            Some(SigningKey::Ed25519(public_key)) => (Some(public_key.as_bytes().as_slice()), None),
            Some(SigningKey::HmacSha256(sealed)) => (None, Some(sealed.as_str())),
            None => (None, None),
        };
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
            key.made_by,
            signing.map(|signing| signing.key.algorithm().as_str()),
            signing.map(|signing| signing.required.as_str()),
            public_key,
            sealed,
            &networks
        ];
        self.execute(sql, values).await.map(drop)
    }

    pub async fn load_api_key(&mut self, id: ApiKeyId) -> Result<Option<ApiKey>, StoreError> {
        let sql = sql!(
            "select id, name, secret_hash, permissions, created_at, expires_at, revoked_at, user_id, made_by, previous_hash,
                 previous_until, signing_algorithm, signing_required, signing_key, signing_secret, networks,
                 last_used_at
             from api_key where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id]).await?.map(|row| read(&row)).transpose()
    }

    pub async fn list_api_keys(&mut self, page: PageRequest) -> Result<Page<ApiKey>, StoreError> {
        let sql = sql!(
            "select id, name, secret_hash, permissions, created_at, expires_at, revoked_at, user_id, made_by, previous_hash,
                 previous_until, signing_algorithm, signing_required, signing_key, signing_secret, networks,
                 last_used_at
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

    /// Adds to what was counted of a key on a day, and says when it was last used.
    pub async fn add_key_usage(
        &mut self,
        key: ApiKeyId,
        usage: KeyUsage,
        last_at: Timestamp,
    ) -> Result<(), StoreError> {
        let org = self.org()?;
        let requests = i64::try_from(usage.requests).unwrap_or(i64::MAX);
        let sql = sql!(
            "insert into api_key_usage (org_id, api_key_id, day, requests) values ($1, $2, $3, $4)
             on conflict (org_id, api_key_id, day) do update set requests = api_key_usage.requests + excluded.requests"
        );
        self.execute(sql, binds![org, key, usage.day, requests]).await?;
        let sql = sql!(
            "update api_key set last_used_at = $3
             where org_id = $1 and id = $2 and (last_used_at is null or last_used_at < $3)"
        );
        self.execute(sql, binds![org, key, last_at]).await.map(drop)
    }

    /// What was counted of a key, newest first.
    pub async fn list_key_usage(&mut self, key: ApiKeyId, limit: u32) -> Result<Vec<KeyUsage>, StoreError> {
        let sql = sql!(
            "select day, requests from api_key_usage where org_id = $1 and api_key_id = $2 order by day desc limit $3"
        );
        let org = self.org()?;
        let read = |row: &Row| {
            let requests = row.get::<i64>("requests")?;
            let requests = u64::try_from(requests).map_err(|e| StoreError::corrupt("requests", e))?;
            Ok(KeyUsage { day: row.get("day")?, requests })
        };
        self.fetch(sql, binds![org, key, limit]).await?.iter().map(read).collect()
    }

    /// Removes what was counted of a key before a day.
    pub async fn remove_key_usage(&mut self, key: ApiKeyId, before_day: i64) -> Result<u64, StoreError> {
        let sql = sql!("delete from api_key_usage where org_id = $1 and api_key_id = $2 and day < $3");
        let org = self.org()?;
        self.execute(sql, binds![org, key, before_day]).await
    }

    /// Takes a signature's nonce, a digest, which nobody may use again before `good_until`. `false` when somebody did.
    pub async fn take_nonce(
        &mut self,
        key: ApiKeyId,
        nonce: &[u8; 32],
        good_until: Timestamp,
    ) -> Result<bool, StoreError> {
        let sql = sql!(
            "insert into signature_nonce (org_id, api_key_id, nonce, good_until) values ($1, $2, $3, $4)
             on conflict (org_id, api_key_id, nonce) do nothing"
        );
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, key, nonce, good_until]).await? > 0)
    }

    /// Forgets the organization's nonces that no signature is good with any longer.
    pub async fn remove_nonces(&mut self, before: Timestamp) -> Result<u64, StoreError> {
        let sql = sql!("delete from signature_nonce where org_id = $1 and good_until < $2");
        let org = self.org()?;
        self.execute(sql, binds![org, before]).await
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

    /// Revokes every key of a person's in this organization; answers which of them were not revoked before.
    pub async fn revoke_keys_of(&mut self, user: UserId, now: Timestamp) -> Result<Vec<ApiKeyId>, StoreError> {
        let sql = sql!(
            "update api_key set revoked_at = $3 where org_id = $1 and user_id = $2 and revoked_at is null returning id"
        );
        let org = self.org()?;
        let mut revoked: Vec<ApiKeyId> =
            self.fetch(sql, binds![org, user, now]).await?.iter().map(|row| row.get("id")).collect::<Result<_, _>>()?;
        revoked.sort_unstable();
        Ok(revoked)
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
