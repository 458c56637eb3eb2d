//! From where an organization may be reached.

use bulkhead_model::allow_list::AllowList;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::sql::{binds, sql};
use crate::tx::Tx;

/// A list as stored. Revision 0 is that of an organization that never had one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredAllowList {
    pub list: AllowList,
    pub revision: i64,
}

impl Tx {
    pub async fn load_allow_list(&mut self) -> Result<StoredAllowList, StoreError> {
        let sql = sql!("select entries, revision from ip_allow_list where org_id = $1");
        let org = self.org()?;
        let Some(row) = self.fetch_optional(sql, binds![org]).await? else { return Ok(StoredAllowList::default()) };
        let entries: Vec<String> = row.json("entries")?;
        // What cannot be read lets nobody in: the request ends with this error.
        let list = AllowList::read(&entries).map_err(|wrong| StoreError::corrupt("entries", wrong))?;
        Ok(StoredAllowList { list, revision: row.get("revision")? })
    }

    /// Lets the organization be reached from everywhere, whatever is stored, readable or not; `None` where nothing is. Answers what was there.
    pub async fn clear_allow_list(&mut self, now: Timestamp) -> Result<Option<String>, StoreError> {
        let org = self.org()?;
        let sql = sql!("select entries from ip_allow_list where org_id = $1");
        let Some(row) = self.fetch_optional(sql, binds![org]).await? else { return Ok(None) };
        let sql =
            sql!("update ip_allow_list set entries = '[]', revision = revision + 1, updated_at = $2 where org_id = $1");
        self.execute(sql, binds![org, now]).await?;
        row.get("entries").map(Some)
    }

    /// Saves the list over the revision that was seen: `false` if it is another one by now.
    pub async fn save_allow_list(&mut self, list: &AllowList, seen: i64, now: Timestamp) -> Result<bool, StoreError> {
        let entries = serde_json::to_string(&list.entries()).map_err(|error| StoreError::corrupt("entries", error))?;
        let org = self.org()?;
        let saved = if seen == 0 {
            let sql = sql!(
                "insert into ip_allow_list (org_id, entries, revision, updated_at) values ($1, $2, 1, $3)
                 on conflict (org_id) do nothing"
            );
            self.execute(sql, binds![org, &entries, now]).await?
        } else {
            let sql = sql!(
                "update ip_allow_list set entries = $2, revision = revision + 1, updated_at = $3
                 where org_id = $1 and revision = $4"
            );
            self.execute(sql, binds![org, &entries, now, seen]).await?
        };
        Ok(saved > 0)
    }
}
