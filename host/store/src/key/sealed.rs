//! What follows a rotation, a batch at a time: organization keys and data keys are wrapped anew, values sealed anew, and a key that
//! nothing refers to is retired. Where a batch stands is to be seen from the rows themselves: whoever goes on after a crash finds
//! what is left.

use bulkhead_keys::{Envelope, Key, KeyError, KeyId, KeyState};
use bulkhead_model::id::OrgId;
use uuid::Uuid;

use super::{TEND_BATCH_MAX, Wrapped, read_data_key, read_org_key};
use crate::error::StoreError;
use crate::seal::{KeyPurpose, Place, Sealer};
use crate::sql::{Sql, binds, sql};
use crate::tx::Tx;

/// Retired keys of each kind that are still listed: whoever finds one of them in a value can tell when it ended.
const RETIRED_KEPT: i64 = 100;
/// Rotations that are still listed.
const ROTATIONS_KEPT: i64 = 500;

/// A column of sealed values, and its statements. The row's id is what the values are bound to.
struct Column {
    table: &'static str,
    name: &'static str,
    /// Rows after an id whose value is not under one key.
    list: Sql,
    /// How many values are under one key.
    count: Sql,
    /// Puts a new text in the place of the one that was read.
    replace: Sql,
}

/// Every column that holds sealed values, as table and column. A test looks for such that are missing.
pub const SEALED: &[(&str, &str)] =
    &[("secret", "ciphertext"), ("hook", "ciphertext"), ("audit_log", "signing_key"), ("api_key", "signing_secret")];

static COLUMNS: [Column; 4] = [
    Column {
        table: "secret",
        name: "ciphertext",
        list: sql!(
            "select id, ciphertext as sealed from secret
             where org_id = $1 and id > $2 and (ciphertext < $3 or ciphertext >= $4) order by id limit $5"
        ),
        count: sql!("select count(*) as count from secret where org_id = $1 and ciphertext >= $2 and ciphertext < $3"),
        replace: sql!("update secret set ciphertext = $4 where org_id = $1 and id = $2 and ciphertext = $3"),
    },
    Column {
        table: "hook",
        name: "ciphertext",
        list: sql!(
            "select id, ciphertext as sealed from hook
             where org_id = $1 and id > $2 and (ciphertext < $3 or ciphertext >= $4) order by id limit $5"
        ),
        count: sql!("select count(*) as count from hook where org_id = $1 and ciphertext >= $2 and ciphertext < $3"),
        replace: sql!("update hook set ciphertext = $4 where org_id = $1 and id = $2 and ciphertext = $3"),
    },
    Column {
        table: "audit_log",
        name: "signing_key",
        list: sql!(
            "select org_id as id, signing_key as sealed from audit_log
             where org_id = $1 and org_id > $2 and (signing_key < $3 or signing_key >= $4) limit $5"
        ),
        count: sql!(
            "select count(*) as count from audit_log where org_id = $1 and signing_key >= $2 and signing_key < $3"
        ),
        replace: sql!("update audit_log set signing_key = $4 where org_id = $1 and org_id = $2 and signing_key = $3"),
    },
    Column {
        table: "api_key",
        name: "signing_secret",
        list: sql!(
            "select id, signing_secret as sealed from api_key
             where org_id = $1 and id > $2 and (signing_secret < $3 or signing_secret >= $4) order by id limit $5"
        ),
        count: sql!(
            "select count(*) as count from api_key where org_id = $1 and signing_secret >= $2 and signing_secret < $3"
        ),
        replace: sql!("update api_key set signing_secret = $4 where org_id = $1 and id = $2 and signing_secret = $3"),
    },
];

/// Where a pass over the organization's sealed values goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TendFrom {
    column: usize,
    after: Uuid,
}

impl TendFrom {
    pub const START: Self = Self { column: 0, after: Uuid::nil() };
}

/// What one batch came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tended {
    /// Organization keys that were wrapped anew under the current root key.
    pub org_keys: u32,
    /// Data keys that were wrapped anew under the active organization key.
    pub data_keys: u32,
    /// Values that were sealed anew under the active data key.
    pub values: u32,
    /// Values that do not open with their own key. They stay as they are, and so does their key.
    pub broken: u32,
    /// Organization keys that cannot be unwrapped …
    pub broken_org_keys: u32,
    /// … and data keys. They stay as they are, too.
    pub broken_data_keys: u32,
    /// Keys that nothing referred to any longer.
    pub retired: Vec<KeyId>,
    /// Where the next batch goes on; `None` at the end of the pass.
    pub next: Option<TendFrom>,
}

/// What is left to do at each level, as counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyWork {
    /// Organization keys under a root key under which they do not stay.
    pub org_keys: u64,
    pub data_keys: u64,
    pub values: u64,
}

/// Whether the value is at fault, or the key that it names: what else is stored can go on.
fn is_values_own(error: KeyError) -> bool {
    match error {
        KeyError::DoesNotOpen
        | KeyError::NotSealed
        | KeyError::UnknownFormat
        | KeyError::TooLarge
        | KeyError::Retired(_)
        | KeyError::Missing(_) => true,
        KeyError::UnknownRoot(_) => false,
    }
}

impl Tx {
    /// Wraps and seals anew, at most `batch` keys and values, what is not under the current root key (or one that comes after it: another
    /// node was told of that already), the active organization key and the active data key. At the end of a pass it retires keys that a count
    /// finds no reference to. A key or a value that does not open is counted and left.
    ///
    /// # Errors
    /// [`StoreError::Keys`] when a root key is missing, or the active organization or data key does not open.
    pub async fn tend_keys(&mut self, sealer: &Sealer, from: TendFrom, batch: u32) -> Result<Tended, StoreError> {
        let (mut tended, batch) = (Tended::default(), batch.clamp(1, TEND_BATCH_MAX));
        let Some(active) = self.lock_active_org_key().await? else { return Ok(tended) };
        self.rewrap_org_keys(sealer, &mut tended).await?;
        self.rewrap_data_keys(sealer, active, batch, &mut tended).await?;
        if tended.data_keys >= batch {
            tended.next = Some(from);
            return Ok(tended);
        }
        tended.next = self.reseal(sealer, from, batch - tended.data_keys, &mut tended).await?;
        if tended.next.is_none() {
            self.retire_keys(sealer, &mut tended).await?;
            self.forget_old_keys().await?;
        }
        Ok(tended)
    }

    async fn list_org_keys_in_use(&mut self) -> Result<Vec<Wrapped>, StoreError> {
        let sql = sql!(
            "select version, state, wrapped from org_key where org_id = $1 and state <> 'retired' order by version"
        );
        let org = self.org()?;
        self.fetch(sql, binds![org]).await?.iter().map(read_org_key).collect()
    }

    async fn list_data_keys_in_use(&mut self) -> Result<Vec<Wrapped>, StoreError> {
        let sql = sql!(
            "select version, purpose, state, org_key_version, wrapped from data_key
             where org_id = $1 and state <> 'retired' order by version"
        );
        let org = self.org()?;
        self.fetch(sql, binds![org]).await?.iter().map(read_data_key).collect()
    }

    async fn rewrap_org_keys(&mut self, sealer: &Sealer, tended: &mut Tended) -> Result<(), StoreError> {
        let org = self.org()?;
        let sql = sql!("update org_key set wrapped = $4 where org_id = $1 and version = $2 and wrapped = $3");
        for row in self.list_org_keys_in_use().await? {
            if Envelope::parse(&row.text).is_ok_and(|wrapped| sealer.is_settled(wrapped.kid())) {
                continue;
            }
            let key = match sealer.unwrap_org_key(org, row.version, &row.text) {
                Ok(key) => key,
                Err(error) if is_values_own(error) => {
                    tracing::error!(%org, key = %KeyId::Organization(row.version), %error, "a key cannot be unwrapped");
                    tended.broken_org_keys += 1;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let wrapped = sealer.wrap_org_key(org, row.version, &key);
            self.execute(sql, binds![org, row.version, &row.text, &wrapped]).await?;
            tended.org_keys += 1;
        }
        Ok(())
    }

    async fn rewrap_data_keys(
        &mut self,
        sealer: &Sealer,
        active: u32,
        batch: u32,
        tended: &mut Tended,
    ) -> Result<(), StoreError> {
        let org = self.org()?;
        let sql = sql!(
            "update data_key set org_key_version = $4, wrapped = $5 where org_id = $1 and version = $2 and wrapped = $3"
        );
        let mut by: Option<Key> = None;
        for row in self.list_data_keys_in_use().await? {
            if row.org_key == active || tended.data_keys >= batch {
                continue;
            }
            let key = match self.org_key(sealer, row.org_key).await {
                Ok(before) => {
                    Sealer::unwrap_data_key(org, (row.version, row.purpose), (row.org_key, &before), &row.text)
                        .map_err(StoreError::from)
                }
                Err(error) => Err(error),
            };
            let key = match key {
                Ok(key) => key,
                Err(StoreError::Keys(error)) if is_values_own(error) => {
                    tracing::error!(%org, key = %KeyId::Data(row.version), %error, "a key cannot be unwrapped");
                    tended.broken_data_keys += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if by.is_none() {
                by = Some(self.org_key(sealer, active).await?);
            }
            let Some(by) = &by else { continue };
            let wrapped = sealer.wrap_data_key(org, (row.version, row.purpose), (active, by), &key);
            self.execute(sql, binds![org, row.version, &row.text, active, &wrapped]).await?;
            tended.data_keys += 1;
        }
        Ok(())
    }

    /// Answers where the next batch goes on.
    async fn reseal(
        &mut self,
        sealer: &Sealer,
        from: TendFrom,
        batch: u32,
        tended: &mut Tended,
    ) -> Result<Option<TendFrom>, StoreError> {
        let org = self.org()?;
        let active = sql!("select version from data_key where org_id = $1 and purpose = 'field' and state = 'active'");
        let Some(active) = self.fetch_optional(active, binds![org]).await? else { return Ok(None) };
        let kid = KeyId::Data(active.get("version")?);
        let (prefix, end) = (kid.prefix(), kid.prefix_end());
        let (mut from, mut room) = (from, batch);
        while let Some(Column { table, name: column, list, replace, .. }) = COLUMNS.get(from.column) {
            let values = binds![org, from.after, &prefix, &end, room];
            let rows = self.fetch(*list, values).await?;
            let listed = u32::try_from(rows.len()).unwrap_or(u32::MAX);
            if listed > 0 {
                // The data key's row is locked before those of values, as whoever stores a value does it.
                let (version, key) = self.take_data_key(sealer, listed).await?;
                for row in &rows {
                    let (id, text): (Uuid, String) = (row.get("id")?, row.get("sealed")?);
                    from.after = id;
                    let place = Place { table, column, org, row: id };
                    match self.open_sealed(sealer, &place, &text).await {
                        Ok(plain) => {
                            let sealed = sealer.seal_with(version, &key, &place, &plain)?;
                            // One that somebody stored meanwhile is under the active key.
                            let replaced = self.execute(*replace, binds![org, id, &text, &sealed]).await?;
                            tended.values += u32::from(replaced > 0);
                        }
                        Err(StoreError::Keys(error)) if is_values_own(error) => {
                            tracing::error!(%org, table, row = %id, %error, "a stored value cannot be sealed anew");
                            tended.broken += 1;
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            room -= listed.min(room);
            if room == 0 {
                return Ok(Some(from));
            }
            from = TendFrom { column: from.column + 1, after: Uuid::nil() };
        }
        Ok(None)
    }

    /// How many values are sealed under a data key.
    async fn count_values_under(&mut self, org: OrgId, key: KeyId) -> Result<u64, StoreError> {
        let (prefix, end) = (key.prefix(), key.prefix_end());
        let mut count = 0;
        for column in &COLUMNS {
            let row = self.fetch_optional(column.count, binds![org, &prefix, &end]).await?;
            count += u64::try_from(row.map_or(Ok(0), |row| row.get::<i64>("count"))?).unwrap_or(0);
        }
        Ok(count)
    }

    async fn retire_keys(&mut self, sealer: &Sealer, tended: &mut Tended) -> Result<(), StoreError> {
        let (org, now) = (self.org()?, sealer.ambient().now());
        let data = sql!(
            "update data_key set state = 'retired', wrapped = '', retired_at = $3
             where org_id = $1 and version = $2 and state = 'decrypt_only'"
        );
        for row in self.list_data_keys_in_use().await? {
            let kid = KeyId::Data(row.version);
            // Its row was locked by whoever sealed under it, up to their commits: since it only opens, all of them are counted.
            if row.state == KeyState::DecryptOnly && self.count_values_under(org, kid).await? == 0 {
                self.execute(data, binds![org, row.version, now]).await?;
                tended.retired.push(kid);
            }
        }
        let wrapped = self.list_data_keys_in_use().await?;
        let organization = sql!(
            "update org_key set state = 'retired', wrapped = '', retired_at = $3
             where org_id = $1 and version = $2 and state = 'decrypt_only'"
        );
        for row in self.list_org_keys_in_use().await? {
            if row.state == KeyState::DecryptOnly && wrapped.iter().all(|key| key.org_key != row.version) {
                self.execute(organization, binds![org, row.version, now]).await?;
                tended.retired.push(KeyId::Organization(row.version));
            }
        }
        Ok(())
    }

    /// Removes the rows of keys that were retired long ago, and of rotations: somebody may replace keys in a loop.
    async fn forget_old_keys(&mut self) -> Result<(), StoreError> {
        let org = self.org()?;
        let data = sql!(
            "delete from data_key where org_id = $1 and state = 'retired'
               and version < (select max(newest.version) - $2 from data_key newest where newest.org_id = $1)"
        );
        self.execute(data, binds![org, RETIRED_KEPT]).await?;
        let organization = sql!(
            "delete from org_key where org_id = $1 and state = 'retired'
               and version < (select max(newest.version) - $2 from org_key newest where newest.org_id = $1)
               and not exists (select 1 from data_key where data_key.org_id = $1 and data_key.org_key_version = org_key.version)"
        );
        self.execute(organization, binds![org, RETIRED_KEPT]).await?;
        let rotations = sql!(
            "delete from key_rotation where org_id = $1 and state = 'done'
               and id not in (select id from key_rotation where org_id = $1 order by id desc limit $2)"
        );
        self.execute(rotations, binds![org, ROTATIONS_KEPT]).await.map(drop)
    }

    /// Counts what is not yet where it stays: under the current root key or one after it, the active organization key, the active data key.
    pub async fn count_key_work(&mut self, sealer: &Sealer) -> Result<KeyWork, StoreError> {
        let (org, mut work) = (self.org()?, KeyWork::default());
        let mut active = None;
        for row in self.list_org_keys_in_use().await? {
            work.org_keys +=
                u64::from(!Envelope::parse(&row.text).is_ok_and(|wrapped| sealer.is_settled(wrapped.kid())));
            active = active.or((row.state == KeyState::Active).then_some(row.version));
        }
        for row in self.list_data_keys_in_use().await? {
            work.data_keys += u64::from(Some(row.org_key) != active);
            if row.purpose == KeyPurpose::Field && row.state == KeyState::DecryptOnly {
                work.values += self.count_values_under(org, KeyId::Data(row.version)).await?;
            }
        }
        Ok(work)
    }
}
