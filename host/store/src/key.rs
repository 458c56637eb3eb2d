//! Rows of keys: an organization's own, wrapped under a root key; its data keys, wrapped under that one. And the use of them: values are
//! sealed and opened here, in the transaction that stores or reads them.
//!
//! Whoever seals counts the use in the data key's row, and so holds that row's lock until the commit: when a rotation has made the
//! key one that only opens, every value under it is committed and can be found.

mod roots;
pub mod rotation;
mod sealed;

use bulkhead_keys::index::FieldIndex;
use bulkhead_keys::life::USES_MAX;
use bulkhead_keys::{Envelope, Key, KeyError, KeyId, KeyState};
use bulkhead_model::time::Timestamp;
use zeroize::Zeroizing;

pub use self::roots::RootUse;
pub use self::sealed::{SEALED, TendFrom, Tended};
use crate::error::StoreError;
use crate::seal::{KeyPurpose, Place, Sealer};
use crate::sql::{Row, binds, sql, sql_postgres};
use crate::tx::Tx;

/// Keys and values that one batch of a rotation takes on at most.
pub const TEND_BATCH_MAX: u32 = 500;
/// How often making a key is tried before a seal: once for a missing one, once for one that another transaction used up meanwhile.
const TRIES: u32 = 3;

/// A key as the organization's people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredKey {
    pub id: KeyId,
    pub purpose: KeyPurpose,
    pub state: KeyState,
    /// Under which key it is wrapped; `None` once it is retired, or where the row is damaged.
    pub wrapped_by: Option<KeyId>,
    /// Values that it sealed; of data keys only.
    pub uses: Option<u64>,
    pub created_at: Timestamp,
    /// When another took its place.
    pub replaced_at: Option<Timestamp>,
    pub retired_at: Option<Timestamp>,
}

/// A row of `org_key` or `data_key` that is not retired.
#[derive(Clone, Debug)]
struct Wrapped {
    version: u32,
    purpose: KeyPurpose,
    state: KeyState,
    /// Of a data key, the organization key that it is wrapped under.
    org_key: u32,
    text: String,
}

fn read_org_key(row: &Row) -> Result<Wrapped, StoreError> {
    Ok(Wrapped {
        version: row.get("version")?,
        purpose: KeyPurpose::Organization,
        state: row.parsed("state", KeyState::parse)?,
        org_key: 0,
        text: row.get("wrapped")?,
    })
}

fn read_data_key(row: &Row) -> Result<Wrapped, StoreError> {
    Ok(Wrapped {
        version: row.get("version")?,
        purpose: row.parsed("purpose", KeyPurpose::parse)?,
        state: row.parsed("state", KeyState::parse)?,
        org_key: row.get("org_key_version")?,
        text: row.get("wrapped")?,
    })
}

fn read_stored(row: &Row, id: KeyId, purpose: KeyPurpose, uses: Option<u64>) -> Result<StoredKey, StoreError> {
    let wrapped: String = row.get("wrapped")?;
    // What cannot be read names no key; it is shown all the same, with the others.
    let wrapped_by = Envelope::parse(&wrapped).ok().map(|envelope| envelope.kid());
    Ok(StoredKey {
        id,
        purpose,
        state: row.parsed("state", KeyState::parse)?,
        wrapped_by,
        uses,
        created_at: row.get("created_at")?,
        replaced_at: row.get("replaced_at")?,
        retired_at: row.get("retired_at")?,
    })
}

fn bound(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Tx {
    /// Seals a value for its place under the organization's data key, which is made if there is none, and counts the use.
    ///
    /// # Errors
    /// [`StoreError::Keys`]; [`StoreError::Misuse`] for a place in another organization, or in a column that is not in [`SEALED`]: rotations
    /// would not find the value there, and destroy its key.
    pub async fn seal(&mut self, sealer: &Sealer, place: &Place<'_>, plain: &[u8]) -> Result<String, StoreError> {
        self.require_own(place)?;
        if !SEALED.contains(&(place.table, place.column)) {
            return Err(StoreError::Misuse("a value is sealed only where rotations of keys find it again"));
        }
        let (version, key) = self.take_data_key(sealer, 1).await?;
        Ok(sealer.seal_with(version, &key, place, plain)?)
    }

    /// Opens what was sealed for this place.
    ///
    /// # Errors
    /// [`StoreError::Keys`]; [`StoreError::Misuse`] for a place in another organization.
    pub async fn open_sealed(
        &mut self,
        sealer: &Sealer,
        place: &Place<'_>,
        text: &str,
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        self.require_own(place)?;
        let envelope = Envelope::parse(text)?;
        let KeyId::Data(version) = envelope.kid() else { return Err(KeyError::UnknownFormat.into()) };
        let key = self.data_key(sealer, version).await?;
        Ok(Sealer::open_with(&key, place, &envelope)?)
    }

    /// What makes the entries of a field's blind index in this organization. The first time it makes a key, and so has to write.
    ///
    /// # Errors
    /// [`StoreError::Keys`].
    pub async fn blind_index(&mut self, sealer: &Sealer, table: &str, column: &str) -> Result<FieldIndex, StoreError> {
        let org = self.org()?;
        let sql = sql!("select version from data_key where org_id = $1 and purpose = 'index' and state = 'active'");
        let version = match self.fetch_optional(sql, binds![org]).await? {
            Some(row) => row.get("version")?,
            None => self.make_data_key(sealer, KeyPurpose::Index, false).await?,
        };
        let key = self.data_key(sealer, version).await?;
        Ok(FieldIndex::new(&key, org.uuid().as_bytes(), table, column))
    }

    fn require_own(&self, place: &Place<'_>) -> Result<(), StoreError> {
        if self.org()? == place.org {
            Ok(())
        } else {
            Err(StoreError::Misuse("a value is sealed and opened in its own organization"))
        }
    }

    /// The data key that seals fields, for so many more uses, which are counted. One that is used up is replaced here and now.
    async fn take_data_key(&mut self, sealer: &Sealer, uses: u32) -> Result<(u32, Key), StoreError> {
        let org = self.org()?;
        let sql = sql!(
            "update data_key set uses = uses + $2
             where org_id = $1 and purpose = 'field' and state = 'active' and uses <= $3
             returning version, purpose, state, org_key_version, wrapped"
        );
        for _ in 0..TRIES {
            let room = bound(USES_MAX) - i64::from(uses);
            let found = self.fetch_optional(sql, binds![org, uses, room]).await?;
            let Some(found) = found else {
                self.make_data_key(sealer, KeyPurpose::Field, false).await?;
                continue;
            };
            let row = read_data_key(&found)?;
            let by = self.org_key(sealer, row.org_key).await?;
            let key = Sealer::unwrap_data_key(org, (row.version, row.purpose), (row.org_key, &by), &row.text)?;
            return Ok((row.version, key));
        }
        Err(StoreError::Misuse("no data key could be made"))
    }

    async fn load_org_key(&mut self, version: u32) -> Result<Wrapped, StoreError> {
        let sql = sql!("select version, state, wrapped from org_key where org_id = $1 and version = $2");
        let org = self.org()?;
        let row = self.fetch_optional(sql, binds![org, version]).await?;
        read_org_key(&row.ok_or(KeyError::Missing(KeyId::Organization(version)))?)
    }

    async fn org_key(&mut self, sealer: &Sealer, version: u32) -> Result<Key, StoreError> {
        let row = self.load_org_key(version).await?;
        if row.state == KeyState::Retired {
            return Err(KeyError::Retired(KeyId::Organization(version)).into());
        }
        Ok(sealer.unwrap_org_key(self.org()?, version, &row.text)?)
    }

    /// The data key of this number, for opening.
    async fn data_key(&mut self, sealer: &Sealer, version: u32) -> Result<Key, StoreError> {
        let sql = sql!(
            "select d.version, d.purpose, d.state, d.org_key_version, d.wrapped, o.wrapped as org_wrapped
             from data_key d join org_key o on o.org_id = d.org_id and o.version = d.org_key_version
             where d.org_id = $1 and d.version = $2"
        );
        let org = self.org()?;
        let found = self.fetch_optional(sql, binds![org, version]).await?;
        let found = found.ok_or(KeyError::Missing(KeyId::Data(version)))?;
        let row = read_data_key(&found)?;
        if row.state == KeyState::Retired {
            return Err(KeyError::Retired(KeyId::Data(version)).into());
        }
        let by = sealer.unwrap_org_key(org, row.org_key, &found.get::<String>("org_wrapped")?)?;
        Ok(Sealer::unwrap_data_key(org, (row.version, row.purpose), (row.org_key, &by), &row.text)?)
    }

    /// The active organization key, locked until the commit: whoever makes a key in this organization waits here. The first one is made.
    async fn lock_org_key(&mut self, sealer: &Sealer) -> Result<(u32, Key), StoreError> {
        for _ in 0..TRIES {
            if let Some(version) = self.lock_active_org_key().await? {
                let key = self.org_key(sealer, version).await?;
                return Ok((version, key));
            }
            // Another transaction may be first.
            self.insert_org_key(sealer, 1, &sealer.new_key()).await?;
        }
        Err(StoreError::Misuse("no organization key could be made"))
    }

    async fn lock_active_org_key(&mut self) -> Result<Option<u32>, StoreError> {
        let org = self.org()?;
        let active = sql!("select version from org_key where org_id = $1 and state = 'active'");
        if !self.is_postgres() {
            // SQLite has one writer and needs no lock.
            return self.fetch_optional(active, binds![org]).await?.map(|row| row.get("version")).transpose();
        }
        let lock = sql_postgres!("select version from org_key where org_id = $1 and state = 'active' for update");
        loop {
            if let Some(row) = self.fetch_optional(lock, binds![org]).await? {
                return row.get("version").map(Some);
            }
            // The row that was waited for was replaced meanwhile: then another one is there, which is not locked yet.
            if self.fetch_optional(active, binds![org]).await?.is_none() {
                return Ok(None);
            }
        }
    }

    async fn insert_org_key(&mut self, sealer: &Sealer, version: u32, key: &Key) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into org_key (org_id, version, state, wrapped, created_at) values ($1, $2, 'active', $3, $4)
             on conflict (org_id, version) do nothing"
        );
        let org = self.org()?;
        let wrapped = sealer.wrap_org_key(org, version, key);
        self.execute(sql, binds![org, version, &wrapped, sealer.ambient().now()]).await.map(drop)
    }

    /// Makes a data key that takes the active one's place. Unless `always`, only where none has room for another use.
    async fn make_data_key(&mut self, sealer: &Sealer, purpose: KeyPurpose, always: bool) -> Result<u32, StoreError> {
        let (org, now) = (self.org()?, sealer.ambient().now());
        let (by, org_key) = self.lock_org_key(sealer).await?;
        let active = sql!("select version, uses from data_key where org_id = $1 and purpose = $2 and state = 'active'");
        if let Some(active) = self.fetch_optional(active, binds![org, purpose.as_str()]).await? {
            let (version, uses): (u32, i64) = (active.get("version")?, active.get("uses")?);
            // As much room as a whole batch of a rotation takes at most.
            if !always && uses < bound(USES_MAX) - i64::from(TEND_BATCH_MAX) {
                // Another transaction was first, while this one waited for the lock.
                return Ok(version);
            }
            if !always {
                tracing::warn!(%org, key = %KeyId::Data(version), "a data key is used up; another takes its place");
                metrics::counter!("bulkhead_data_keys_used_up_total").increment(1);
            }
        }
        let replace = sql!(
            "update data_key set state = 'decrypt_only', replaced_at = $3
             where org_id = $1 and purpose = $2 and state = 'active'"
        );
        self.execute(replace, binds![org, purpose.as_str(), now]).await?;
        let newest = sql!("select coalesce(max(version), 0) as version from data_key where org_id = $1");
        let newest = self.fetch_optional(newest, binds![org]).await?.map_or(Ok(0), |row| row.get::<u32>("version"))?;
        let version = newest.saturating_add(1);
        let wrapped = sealer.wrap_data_key(org, (version, purpose), (by, &org_key), &sealer.new_key());
        let insert = sql!(
            "insert into data_key (org_id, version, purpose, state, org_key_version, wrapped, uses, created_at)
             values ($1, $2, $3, 'active', $4, $5, 0, $6)"
        );
        self.execute(insert, binds![org, version, purpose.as_str(), by, &wrapped, now]).await?;
        Ok(version)
    }

    /// Lets another data key take the place of the one that seals fields; answers it. What was sealed before opens as before.
    ///
    /// # Errors
    /// [`StoreError::Keys`].
    pub async fn replace_data_key(&mut self, sealer: &Sealer) -> Result<KeyId, StoreError> {
        self.make_data_key(sealer, KeyPurpose::Field, true).await.map(KeyId::Data)
    }

    /// Lets another organization key take the active one's place; answers it.
    ///
    /// # Errors
    /// [`StoreError::Keys`].
    pub async fn replace_org_key(&mut self, sealer: &Sealer) -> Result<KeyId, StoreError> {
        let (org, now) = (self.org()?, sealer.ambient().now());
        let (version, _) = self.lock_org_key(sealer).await?;
        let sql = sql!(
            "update org_key set state = 'decrypt_only', replaced_at = $3
             where org_id = $1 and version = $2 and state = 'active'"
        );
        self.execute(sql, binds![org, version, now]).await?;
        let next = version.saturating_add(1);
        self.insert_org_key(sealer, next, &sealer.new_key()).await?;
        Ok(KeyId::Organization(next))
    }

    /// All keys of the organization, organization keys first, newest first.
    pub async fn list_keys(&mut self) -> Result<Vec<StoredKey>, StoreError> {
        let org = self.org()?;
        let sql = sql!(
            "select version, state, wrapped, created_at, replaced_at, retired_at from org_key
             where org_id = $1 order by version desc"
        );
        let mut keys = Vec::new();
        for row in self.fetch(sql, binds![org]).await? {
            let id = KeyId::Organization(row.get("version")?);
            keys.push(read_stored(&row, id, KeyPurpose::Organization, None)?);
        }
        let sql = sql!(
            "select version, purpose, state, wrapped, uses, created_at, replaced_at, retired_at from data_key
             where org_id = $1 order by version desc"
        );
        for row in self.fetch(sql, binds![org]).await? {
            let (id, purpose) = (KeyId::Data(row.get("version")?), row.parsed("purpose", KeyPurpose::parse)?);
            let uses = u64::try_from(row.get::<i64>("uses")?).unwrap_or(0);
            keys.push(read_stored(&row, id, purpose, Some(uses))?);
        }
        Ok(keys)
    }
}
