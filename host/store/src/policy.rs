//! The epoch of an organization's policy: it rises with each change to who may do what, in the change's transaction, so that whatever
//! was worked out before is known to be old.

use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::sql::{binds, sql};
use crate::tx::Tx;

/// The state of an organization's policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyEpoch {
    /// 0 while nothing was ever changed.
    pub number: i64,
    /// When it began. Where the database lost its last commits (it failed over to a replica that lagged behind), a number is given a second
    /// time; the moment tells the two apart.
    pub began_at: Option<Timestamp>,
}

impl Tx {
    /// The current epoch.
    pub async fn load_policy_epoch(&mut self) -> Result<PolicyEpoch, StoreError> {
        let sql = sql!("select epoch, changed_at from policy where org_id = $1");
        let org = self.org()?;
        match self.fetch_optional(sql, binds![org]).await? {
            Some(row) => Ok(PolicyEpoch { number: row.get("epoch")?, began_at: row.get("changed_at")? }),
            None => Ok(PolicyEpoch { number: 0, began_at: None }),
        }
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
