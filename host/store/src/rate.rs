//! Token buckets: shared by nodes on PostgreSQL; on SQLite, whose one process keeps them in memory, what a restart begins with. They belong
//! to nobody: every method needs the scope of `SystemReason::Limits`.

use std::collections::HashMap;
use std::time::Duration;

use bulkhead_model::permission::SystemReason;
use bulkhead_model::rate::Share;
use serde_json::{Value, json};

use crate::error::StoreError;
use crate::sql::{binds, sql, sql_postgres};
use crate::tx::Tx;

/// Names a bucket: a digest, so that neither names nor addresses are stored.
pub type BucketKey = [u8; 16];

/// What came of taking tokens, by the database's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taking {
    /// `None` where there were too few.
    pub taken: Option<u32>,
    pub now_micros: i64,
    pub full_at_micros: i64,
}

impl Taking {
    /// How long it is until the bucket is full.
    #[must_use]
    pub fn full_in(&self) -> Duration {
        Duration::from_micros(u64::try_from(self.full_at_micros.saturating_sub(self.now_micros)).unwrap_or_default())
    }
}

/// Tokens that a node takes from a bucket: at least and at most so many, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenAsk {
    pub key: BucketKey,
    pub share: Share,
    pub least: u32,
    pub most: u32,
}

impl Tx {
    /// Takes tokens from several buckets, each of which is asked for once, by the rule of [`Share::take`]; answers in the order of the asks.
    /// PostgreSQL only.
    ///
    /// # Errors
    /// [`StoreError::Misuse`] on SQLite.
    pub async fn take_tokens(&mut self, asks: &[TokenAsk]) -> Result<Vec<Taking>, StoreError> {
        self.require_reason(SystemReason::Limits)?;
        if !self.is_postgres() {
            return Err(StoreError::Misuse("buckets are shared on PostgreSQL alone"));
        }
        let asked: Vec<_> = asks
            .iter()
            .map(|ask| {
                json!({
                    "key": hex::encode(ask.key), "token": ask.share.token_micros, "full": ask.share.full_micros,
                    "least": ask.least, "most": ask.most.max(ask.least),
                })
            })
            .collect();
        // A function, so that a node's asks are one round trip, and no two nodes see the same tokens: see the migration.
        let sql = sql_postgres!("select key, taken, at_micros, full_at_micros from take_tokens(cast($1 as jsonb))");
        let (asked, mut takings) = (Value::from(asked).to_string(), HashMap::with_capacity(asks.len()));
        for row in self.fetch(sql, binds![&asked]).await? {
            let taken: Option<i64> = row.get("taken")?;
            let taken = taken.map(|taken| u32::try_from(taken).map_err(|_| StoreError::corrupt("taken", taken)));
            let taking = Taking {
                taken: taken.transpose()?,
                now_micros: row.get("at_micros")?,
                full_at_micros: row.get("full_at_micros")?,
            };
            takings.insert(row.get::<Vec<u8>>("key")?, taking);
        }
        let of_ask = |ask: &TokenAsk| takings.get(&ask.key[..]).copied().ok_or(StoreError::NotFound { what: "bucket" });
        asks.iter().map(of_ask).collect()
    }

    /// Writes down when a bucket is full.
    pub async fn save_bucket(
        &mut self,
        key: &BucketKey,
        now_micros: i64,
        full_at_micros: i64,
    ) -> Result<(), StoreError> {
        self.require_reason(SystemReason::Limits)?;
        let sql = sql!(
            "insert into rate_limit (key, at_micros, taken, full_at_micros) values ($1, $2, 0, $3)
             on conflict (key) do update set at_micros = excluded.at_micros, full_at_micros = excluded.full_at_micros"
        );
        self.execute(sql, binds![&key[..], now_micros, full_at_micros]).await.map(drop)
    }

    /// The buckets that are not full, emptiest first, at most so many.
    pub async fn list_buckets(&mut self, now_micros: i64, most: u32) -> Result<Vec<(BucketKey, i64)>, StoreError> {
        self.require_reason(SystemReason::Limits)?;
        let sql = sql!(
            "select key, full_at_micros from rate_limit where full_at_micros > $1 order by full_at_micros desc limit $2"
        );
        let rows = self.fetch(sql, binds![now_micros, most]).await?;
        rows.iter()
            .map(|row| {
                let key: Vec<u8> = row.get("key")?;
                let key = key.try_into().map_err(|_| StoreError::corrupt("key", "not 16 bytes"))?;
                Ok((key, row.get("full_at_micros")?))
            })
            .collect()
    }

    /// Removes buckets that have been full for so long; answers how many. `now_micros` is the clock that SQLite's rows were written by;
    /// PostgreSQL's live by the database's own, which a node that runs ahead must not cut short.
    pub async fn remove_full_buckets(&mut self, now_micros: i64, full_for_micros: i64) -> Result<u64, StoreError> {
        self.require_reason(SystemReason::Limits)?;
        if self.is_postgres() {
            let sql = sql_postgres!(
                "delete from rate_limit
                 where full_at_micros < cast(extract(epoch from clock_timestamp()) * 1000000 as bigint) - $1"
            );
            return self.execute(sql, binds![full_for_micros]).await;
        }
        self.execute(sql!("delete from rate_limit where full_at_micros < $1"), binds![now_micros - full_for_micros])
            .await
    }
}
