//! One row that is written to learn whether writes succeed.

use bulkhead_model::permission::SystemReason;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::sql::{binds, sql};
use crate::tx::Tx;

impl Tx {
    /// Writes the row. Needs the scope of `SystemReason::Jobs`.
    pub async fn record_probe(&mut self, now: Timestamp) -> Result<(), StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!(
            "insert into probe (id, written_at) values (1, $1) on conflict (id) do update set written_at = excluded.written_at"
        );
        self.execute(sql, binds![now]).await.map(drop)
    }
}
