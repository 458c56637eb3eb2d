//! Blocks: of addresses, which belong to nobody (the scopes of `SystemReason::Limits` and `SystemReason::Admin`), and of an organization's API
//! keys.

use bulkhead_model::block::Block;
use bulkhead_model::id::{ApiKeyId, OrgId};
use bulkhead_model::permission::SystemReason;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

/// A block of an organization's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyBlock {
    pub org: OrgId,
    pub key: ApiKeyId,
    pub block: Block,
}

fn read(row: &Row) -> Result<Block, StoreError> {
    Ok(Block { level: row.get("level")?, placed_at: row.get("placed_at")?, ends_at: row.get("ends_at")? })
}

fn read_of_key(row: &Row) -> Result<KeyBlock, StoreError> {
    Ok(KeyBlock { org: row.get("org_id")?, key: row.get("api_key_id")?, block: read(row)? })
}

impl Tx {
    fn require_blocks(&self) -> Result<(), StoreError> {
        match self.context.system {
            Some(SystemReason::Limits | SystemReason::Admin) if self.context.org.is_none() => Ok(()),
            Some(_) | None => Err(StoreError::Misuse("this statement needs the scope of limits")),
        }
    }

    /// The last block of a network (as `bulkhead_model::network::Network` writes it), in force or over.
    pub async fn load_address_block(&mut self, network: &str) -> Result<Option<Block>, StoreError> {
        self.require_blocks()?;
        let sql = sql!("select level, placed_at, ends_at from address_block where network = $1");
        self.fetch_optional(sql, binds![network]).await?.map(|row| read(&row)).transpose()
    }

    pub async fn save_address_block(&mut self, network: &str, block: &Block) -> Result<(), StoreError> {
        self.require_blocks()?;
        let sql = sql!(
            "insert into address_block (network, level, placed_at, ends_at) values ($1, $2, $3, $4)
             on conflict (network) do update set
                 level = excluded.level, placed_at = excluded.placed_at, ends_at = excluded.ends_at"
        );
        self.execute(sql, binds![network, block.level, block.placed_at, block.ends_at]).await.map(drop)
    }

    /// Forgets a network's blocks; answers whether there was one.
    pub async fn delete_address_block(&mut self, network: &str) -> Result<bool, StoreError> {
        self.require_blocks()?;
        Ok(self.execute(sql!("delete from address_block where network = $1"), binds![network]).await? > 0)
    }

    /// Blocks of networks that end after `now`, those that end last first.
    pub async fn list_address_blocks(&mut self, now: Timestamp, most: u32) -> Result<Vec<(String, Block)>, StoreError> {
        self.require_blocks()?;
        let sql = sql!(
            "select network, level, placed_at, ends_at from address_block where ends_at > $1 order by ends_at desc, network limit $2"
        );
        let rows = self.fetch(sql, binds![now, most]).await?;
        rows.iter().map(|row| Ok((row.get("network")?, read(row)?))).collect()
    }

    /// Removes blocks of networks that ended before then.
    pub async fn remove_address_blocks(&mut self, before: Timestamp) -> Result<u64, StoreError> {
        self.require_blocks()?;
        self.execute(sql!("delete from address_block where ends_at < $1"), binds![before]).await
    }

    /// Blocks of keys of all organizations that end after `now`. Needs the scope of `SystemReason::Limits`.
    pub async fn list_all_key_blocks(&mut self, now: Timestamp, most: u32) -> Result<Vec<KeyBlock>, StoreError> {
        self.require_reason(SystemReason::Limits)?;
        let sql = sql!(
            "select org_id, api_key_id, level, placed_at, ends_at from key_block where ends_at > $1 order by ends_at desc limit $2"
        );
        self.fetch(sql, binds![now, most]).await?.iter().map(read_of_key).collect()
    }

    /// The last block of a key, in force or over.
    pub async fn load_key_block(&mut self, key: ApiKeyId) -> Result<Option<KeyBlock>, StoreError> {
        let sql = sql!(
            "select org_id, api_key_id, level, placed_at, ends_at from key_block where org_id = $1 and api_key_id = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, key]).await?.map(|row| read_of_key(&row)).transpose()
    }

    pub async fn save_key_block(&mut self, key: ApiKeyId, block: &Block) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into key_block (org_id, api_key_id, level, placed_at, ends_at) values ($1, $2, $3, $4, $5)
             on conflict (org_id, api_key_id) do update set
                 level = excluded.level, placed_at = excluded.placed_at, ends_at = excluded.ends_at"
        );
        let org = self.org()?;
        self.execute(sql, binds![org, key, block.level, block.placed_at, block.ends_at]).await.map(drop)
    }

    /// Forgets a key's blocks; answers whether there was one.
    pub async fn delete_key_block(&mut self, key: ApiKeyId) -> Result<bool, StoreError> {
        let sql = sql!("delete from key_block where org_id = $1 and api_key_id = $2");
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, key]).await? > 0)
    }

    /// Blocks of the organization's keys that end after `now`, those that end last first.
    pub async fn list_key_blocks(&mut self, now: Timestamp, most: u32) -> Result<Vec<KeyBlock>, StoreError> {
        let sql = sql!(
            "select org_id, api_key_id, level, placed_at, ends_at from key_block where org_id = $1 and ends_at > $2
             order by ends_at desc, api_key_id limit $3"
        );
        let org = self.org()?;
        self.fetch(sql, binds![org, now, most]).await?.iter().map(read_of_key).collect()
    }
}
