//! Root keys as the database knows them: what is under which of them, and the one that whatever is not wrapped comes from.

use std::collections::BTreeMap;

use bulkhead_keys::life::{DATA_KEY_AGE_MAX, ORGANIZATION_KEY_AGE_MAX, USES_WARN};
use bulkhead_keys::{KeyError, KeyId, RootId};
use bulkhead_model::id::{OrgId, TotpId};
use bulkhead_model::permission::SystemReason;
use bulkhead_model::time::Timestamp;
use uuid::Uuid;

use super::bound;
use crate::error::StoreError;
use crate::seal::{Place, RootCheck, Sealer};
use crate::sql::{Sql, binds, sql};
use crate::tx::Tx;

/// Bytes of a sealed text that name its root key: "enc:v1:r" and sixteen digits.
const NAMED_BYTES: usize = 24;

/// What needs a root key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootUse {
    pub id: RootId,
    /// Organization keys that are wrapped under it.
    pub org_keys: u64,
    /// Values of people's that are sealed under it.
    pub people: u64,
}

/// What one pass over people's values came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeopleTended {
    /// Sealed anew.
    pub values: u32,
    /// Such that do not open. They stay as they are.
    pub broken: u32,
    /// The last row that was looked at; `None` at the end.
    pub next: Option<TotpId>,
}

/// The root key that the beginning of a sealed text names.
fn root_of(begin: &[u8]) -> Option<RootId> {
    RootId::parse(std::str::from_utf8(begin).ok()?.strip_prefix("enc:v1:r")?)
}

/// The beginnings of what stays as it is, in one text that can be searched.
fn settled(sealer: &Sealer) -> String {
    sealer.settled_roots().into_iter().map(|root| KeyId::Root(root).prefix()).collect()
}

impl Tx {
    /// Organizations after `after`, by id, whose keys have something to be done: wrapped under a root key under which they do not stay, old,
    /// used much, or waiting to be retired. Needs the scope of `SystemReason::Jobs`.
    pub async fn list_orgs_with_key_work(
        &mut self,
        sealer: &Sealer,
        now: Timestamp,
        after: Option<OrgId>,
        limit: u32,
    ) -> Result<Vec<OrgId>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!(
            "select id from organization where id > $1 and (
                 exists (select 1 from org_key where org_key.org_id = organization.id and (org_key.state = 'decrypt_only'
                     or (org_key.state = 'active'
                         and (org_key.created_at < $2 or $3 not like '%' || substr(org_key.wrapped, 1, 25) || '%'))))
                 or exists (select 1 from data_key where data_key.org_id = organization.id and (data_key.state = 'decrypt_only'
                     or (data_key.state = 'active' and data_key.purpose = 'field'
                         and (data_key.created_at < $4 or data_key.uses >= $5)))))
             order by id limit $6"
        );
        let after = after.unwrap_or_else(|| OrgId::from_uuid(Uuid::nil()));
        let settled = settled(sealer);
        let values = binds![
            after,
            now.minus(ORGANIZATION_KEY_AGE_MAX),
            &settled,
            now.minus(DATA_KEY_AGE_MAX),
            bound(USES_WARN),
            limit
        ];
        self.fetch(sql, values).await?.iter().map(|row| row.get("id")).collect()
    }

    /// Counts what each root key is needed for, over all organizations and people. What names no root key is told and left out: it opens for
    /// nobody, and must not keep all others from starting. Needs the scope of `SystemReason::Admin`.
    pub async fn count_root_uses(&mut self) -> Result<Vec<RootUse>, StoreError> {
        self.require_reason(SystemReason::Admin)?;
        let mut uses: BTreeMap<String, RootUse> = BTreeMap::new();
        let org_keys = sql!(
            "select substr(wrapped, 1, 24) as kid, count(*) as count from org_key where state <> 'retired'
             group by substr(wrapped, 1, 24) order by 1"
        );
        for row in self.fetch(org_keys, binds![]).await? {
            let (kid, count): (String, i64) = (row.get("kid")?, row.get("count")?);
            count_use(&mut uses, "org_key", kid.as_bytes(), |uses| uses.org_keys = u64::try_from(count).unwrap_or(0));
        }
        let people = sql!(
            "select substr(secret, 1, 24) as kid, count(*) as count from totp group by substr(secret, 1, 24) order by 1"
        );
        for row in self.fetch(people, binds![]).await? {
            let (kid, count): (Vec<u8>, i64) = (row.get("kid")?, row.get("count")?);
            count_use(&mut uses, "totp", &kid, |uses| uses.people = u64::try_from(count).unwrap_or(0));
        }
        Ok(uses.into_values().collect())
    }

    /// Which root key the host's other secrets come from; `None` before the first start. Needs the scope of `SystemReason::Admin`.
    pub async fn load_root_check(&mut self) -> Result<Option<RootCheck>, StoreError> {
        self.require_reason(SystemReason::Admin)?;
        let sql = sql!("select root_id, check_value from root_check where id = 1");
        let Some(row) = self.fetch_optional(sql, binds![]).await? else { return Ok(None) };
        Ok(Some(RootCheck { id: row.parsed("root_id", RootId::parse)?, value: row.get("check_value")? }))
    }

    /// Keeps it; what is kept already stays. Needs the scope of `SystemReason::Admin`.
    pub async fn record_root_check(&mut self, check: &RootCheck, now: Timestamp) -> Result<(), StoreError> {
        self.require_reason(SystemReason::Admin)?;
        let sql = sql!(
            "insert into root_check (id, root_id, check_value, created_at) values (1, $1, $2, $3) on conflict (id) do nothing"
        );
        self.execute(sql, binds![&check.id.to_string(), &check.value, now]).await.map(drop)
    }

    /// Seals what belongs to people anew where it is under a root key under which it does not stay: at most `batch` rows after `after`.
    ///
    /// # Errors
    /// [`KeyError::UnknownRoot`]; a value that does not open is counted and left.
    pub async fn tend_people(
        &mut self,
        sealer: &Sealer,
        after: Option<TotpId>,
        batch: u32,
    ) -> Result<PeopleTended, StoreError> {
        self.require_people()?;
        let (list, replace): (Sql, Sql) = (
            sql!("select id, secret, key_version from totp where id > $1 order by id limit $2"),
            sql!("update totp set secret = $3 where id = $1 and secret = $2"),
        );
        let settled = settled(sealer);
        let after = after.map_or(Uuid::nil(), TotpId::uuid);
        let rows = self.fetch(list, binds![after, batch]).await?;
        let mut tended = PeopleTended::default();
        for row in &rows {
            let (id, sealed): (TotpId, Vec<u8>) = (row.get("id")?, row.get("secret")?);
            tended.next = Some(id);
            let begin = sealed.get(..=NAMED_BYTES).and_then(|begin| std::str::from_utf8(begin).ok());
            if begin.is_some_and(|begin| settled.contains(begin)) {
                continue;
            }
            let place = Place::of_person("totp", "secret", id.uuid());
            match sealer.open(&place, row.get::<i64>("key_version")?, &sealed) {
                Ok(plain) => {
                    let anew = sealer.seal(&place, &plain);
                    // One that somebody set up meanwhile is under the key that wraps.
                    tended.values += u32::from(self.execute(replace, binds![id, &sealed, &anew]).await? > 0);
                }
                Err(error @ KeyError::UnknownRoot(_)) => return Err(error.into()),
                Err(error) => {
                    tracing::error!(row = %id, %error, "what belongs to a person cannot be sealed anew");
                    tended.broken += 1;
                }
            }
        }
        if rows.len() < batch as usize {
            tended.next = None;
        }
        Ok(tended)
    }
}

fn count_use(uses: &mut BTreeMap<String, RootUse>, table: &str, begin: &[u8], count: impl FnOnce(&mut RootUse)) {
    if let Some(id) = root_of(begin) {
        count(uses.entry(id.to_string()).or_insert(RootUse { id, org_keys: 0, people: 0 }));
    } else {
        tracing::error!(table, "something is sealed under what is no root key: it cannot be opened");
    }
}
