//! Rotations of keys: what was asked for or fell due, and how far it has come.

use bulkhead_keys::Level;
use bulkhead_model::id::KeyRotationId;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

pub use super::sealed::KeyWork;

/// Why a key takes another's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationReason {
    /// Somebody asked for it.
    Asked,
    /// The key is as old as it may become.
    Age,
    /// It has sealed as much as it may.
    Uses,
    /// The operator's root key is another one.
    Root,
}

impl RotationReason {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Age => "age",
            Self::Uses => "uses",
            Self::Root => "root",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Asked, Self::Age, Self::Uses, Self::Root].into_iter().find(|reason| reason.as_str() == text)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRotation {
    pub id: KeyRotationId,
    pub level: Level,
    pub reason: RotationReason,
    /// Who asked for it, or the host itself.
    pub actor: String,
    /// The key that what follows is put under.
    pub to_key: String,
    /// Keys wrapped or values sealed anew so far.
    pub done: u64,
    /// Those that are left, as last counted.
    pub left: u64,
    /// Those of them that do not open with the key that they name, and stay as they are.
    pub broken: u64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// `None` while it goes on.
    pub finished_at: Option<Timestamp>,
}

impl KeyRotation {
    fn state(&self) -> &'static str {
        if self.finished_at.is_some() { "done" } else { "running" }
    }
}

fn read(row: &Row) -> Result<KeyRotation, StoreError> {
    let count = |name| Ok::<_, StoreError>(u64::try_from(row.get::<i64>(name)?).unwrap_or(0));
    Ok(KeyRotation {
        id: row.get("id")?,
        level: row.parsed("level", Level::parse)?,
        reason: row.parsed("reason", RotationReason::parse)?,
        actor: row.get("actor")?,
        to_key: row.get("to_key")?,
        done: count("done_count")?,
        left: count("left_count")?,
        broken: count("broken_count")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
        finished_at: row.get("finished_at")?,
    })
}

impl Tx {
    /// Begins one; `false` while another of its level goes on.
    pub async fn insert_key_rotation(&mut self, rotation: &KeyRotation) -> Result<bool, StoreError> {
        let sql = sql!(
            "insert into key_rotation (org_id, id, level, state, reason, actor, to_key, done_count, left_count, created_at, updated_at,
                 finished_at, broken_count)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
             on conflict (org_id, level) where state = 'running' do nothing"
        );
        let org = self.org()?;
        let values = binds![
            org,
            rotation.id,
            rotation.level.as_str(),
            rotation.state(),
            rotation.reason.as_str(),
            &rotation.actor,
            &rotation.to_key,
            super::bound(rotation.done),
            super::bound(rotation.left),
            rotation.created_at,
            rotation.updated_at,
            rotation.finished_at,
            super::bound(rotation.broken)
        ];
        Ok(self.execute(sql, values).await? > 0)
    }

    /// Saves how far it has come.
    pub async fn update_key_rotation(&mut self, rotation: &KeyRotation) -> Result<(), StoreError> {
        let sql = sql!(
            "update key_rotation set state = $3, done_count = $4, left_count = $5, updated_at = $6, finished_at = $7,
                 broken_count = $8
             where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        let values = binds![
            org,
            rotation.id,
            rotation.state(),
            super::bound(rotation.done),
            super::bound(rotation.left),
            rotation.updated_at,
            rotation.finished_at,
            super::bound(rotation.broken)
        ];
        self.execute(sql, values).await.map(drop)
    }

    pub async fn load_key_rotation(&mut self, id: KeyRotationId) -> Result<Option<KeyRotation>, StoreError> {
        let sql = sql!(
            "select id, level, reason, actor, to_key, done_count, left_count, broken_count, created_at, updated_at,
                 finished_at
             from key_rotation where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id]).await?.map(|row| read(&row)).transpose()
    }

    /// Those that go on, at most one of each level.
    pub async fn list_running_key_rotations(&mut self) -> Result<Vec<KeyRotation>, StoreError> {
        let sql = sql!(
            "select id, level, reason, actor, to_key, done_count, left_count, broken_count, created_at, updated_at,
                 finished_at
             from key_rotation where org_id = $1 and state = 'running' order by id"
        );
        let org = self.org()?;
        self.fetch(sql, binds![org]).await?.iter().map(read).collect()
    }

    /// The newest of a level that has ended.
    pub async fn load_ended_key_rotation(&mut self, level: Level) -> Result<Option<KeyRotation>, StoreError> {
        let sql = sql!(
            "select id, level, reason, actor, to_key, done_count, left_count, broken_count, created_at, updated_at,
                 finished_at
             from key_rotation where org_id = $1 and level = $2 and state = 'done' order by id desc limit 1"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, level.as_str()]).await?.map(|row| read(&row)).transpose()
    }

    /// Newest first.
    pub async fn list_key_rotations(&mut self, page: PageRequest) -> Result<Page<KeyRotation>, StoreError> {
        let sql = sql!(
            "select id, level, reason, actor, to_key, done_count, left_count, broken_count, created_at, updated_at,
                 finished_at
             from key_rotation where org_id = $1 and id < $2 order by id desc limit $3"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, page.bound(), page.fetch()]).await?;
        let rotations: Vec<_> = rows.iter().map(read).collect::<Result<_, _>>()?;
        Ok(page.page(rotations, |rotation| rotation.id.uuid()))
    }
}
