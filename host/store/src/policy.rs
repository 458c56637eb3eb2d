//! The epoch of an organization's policy: it rises with each change to who may do what, in the change's transaction, so that whatever
//! was worked out before is known to be old.

use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::sql::{binds, sql};
use crate::tx::Tx;

impl Tx {
    /// The current epoch; 0 while nothing was ever changed.
    pub async fn load_policy_epoch(&mut self) -> Result<i64, StoreError> {
        let sql = sql!("select epoch from policy where org_id = $1");
        let org = self.org()?;
        self.fetch_optional(sql, binds![org]).await?.map_or(Ok(0), |row| row.get("epoch"))
    }

    /// Begins the next epoch; two changes at once are ordered by this row, so that rules that look at several rows (the last admin, the
    /// depth of inheritance) look at what the other one left. Called first in each change.
    pub async fn begin_policy_epoch(&mut self, now: Timestamp) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into policy (org_id, epoch, changed_at) values ($1, 1, $2)
             on conflict (org_id) do update set epoch = policy.epoch + 1, changed_at = excluded.changed_at"
        );
        let org = self.org()?;
        self.execute(sql, binds![org, now]).await.map(drop)
    }
}
