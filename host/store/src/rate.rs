//! Token buckets: shared by nodes on PostgreSQL; on SQLite, whose one process keeps them in memory, what a restart begins with. They belong
//! to nobody: every method needs the scope of `SystemReason::Limits`.

use bulkhead_model::permission::SystemReason;
use bulkhead_model::rate::Share;

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

impl Tx {
    /// Takes as many tokens as there are, at least `least` and at most `most`, by the rule of [`Share::take`]. PostgreSQL only.
    ///
    /// # Errors
    /// [`StoreError::Misuse`] on SQLite.
    pub async fn take_tokens(
        &mut self,
        key: &BucketKey,
        share: Share,
        (least, most): (u32, u32),
    ) -> Result<Taking, StoreError> {
        self.require_reason(SystemReason::Limits)?;
        if !self.is_postgres() {
            return Err(StoreError::Misuse("buckets are shared on PostgreSQL alone"));
        }
        // One statement, so that two nodes never see the same tokens; the database's clock is the one that they share. The time is read
        // before the row is locked: one that waited for it sees fewer tokens, never more.
        let sql = sql_postgres!(
            "insert into rate_limit as held (key, at_micros, taken, full_at_micros)
             select $1, clock.now, least(cast($5 as bigint), cast($3 as bigint) / cast($2 as bigint)),
                 clock.now + $2 * least($5, $3 / $2)
             from (select cast(extract(epoch from clock_timestamp()) * 1000000 as bigint) as now) clock
             on conflict (key) do update set
                 at_micros = excluded.at_micros,
                 taken = least($5, (excluded.at_micros + $3
                     - least(greatest(held.full_at_micros, excluded.at_micros), excluded.at_micros + $3)) / $2),
                 full_at_micros = least(greatest(held.full_at_micros, excluded.at_micros), excluded.at_micros + $3)
                     + $2 * least($5, (excluded.at_micros + $3
                     - least(greatest(held.full_at_micros, excluded.at_micros), excluded.at_micros + $3)) / $2)
             where excluded.at_micros + $3
                 - least(greatest(held.full_at_micros, excluded.at_micros), excluded.at_micros + $3) >= $2 * $4
             returning at_micros, taken, full_at_micros"
        );
        let values =
            binds![&key[..], share.token_micros, share.full_micros, i64::from(least), i64::from(most.max(least))];
        if let Some(row) = self.fetch_optional(sql, values).await? {
            return Ok(Taking {
                taken: Some(row.get("taken")?),
                now_micros: row.get("at_micros")?,
                full_at_micros: row.get("full_at_micros")?,
            });
        }
        // Too few. One that says it is full later than an empty one would be was left by another clock or a larger policy.
        let sql = sql_postgres!(
            "update rate_limit set
                 at_micros = clock.now, full_at_micros = least(greatest(full_at_micros, clock.now), clock.now + $2)
             from (select cast(extract(epoch from clock_timestamp()) * 1000000 as bigint) as now) clock
             where key = $1 returning at_micros, full_at_micros"
        );
        let row = self.fetch_optional(sql, binds![&key[..], share.full_micros]).await?;
        let row = row.ok_or(StoreError::NotFound { what: "bucket" })?;
        Ok(Taking { taken: None, now_micros: row.get("at_micros")?, full_at_micros: row.get("full_at_micros")? })
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

    /// Removes buckets that were full before then; answers how many.
    pub async fn remove_full_buckets(&mut self, before_micros: i64) -> Result<u64, StoreError> {
        self.require_reason(SystemReason::Limits)?;
        self.execute(sql!("delete from rate_limit where full_at_micros < $1"), binds![before_micros]).await
    }
}
