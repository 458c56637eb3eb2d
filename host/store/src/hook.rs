//! Webhook addresses: the secret's hash for checking, the sealed address for showing it again to those who may manage it.

use bulkhead_model::id::{HookId, WorkflowId};
use bulkhead_model::time::Timestamp;
use bulkhead_model::token::SecretHash;

use crate::error::StoreError;
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

#[derive(Clone, Debug)]
pub struct Hook {
    pub id: HookId,
    pub workflow: WorkflowId,
    pub trigger: String,
    pub secret_hash: SecretHash,
    /// The sealed address.
    pub ciphertext: String,
    pub created_at: Timestamp,
    /// A rotated address lives on until then.
    pub expires_at: Option<Timestamp>,
}

fn read(row: &Row) -> Result<Hook, StoreError> {
    Ok(Hook {
        id: row.get("id")?,
        workflow: row.get("workflow_id")?,
        trigger: row.get("trigger_id")?,
        secret_hash: SecretHash(row.get("secret_hash")?),
        ciphertext: row.get("ciphertext")?,
        created_at: row.get("created_at")?,
        expires_at: row.get("expires_at")?,
    })
}

impl Tx {
    pub async fn insert_hook(&mut self, hook: &Hook) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into hook (org_id, id, workflow_id, trigger_id, secret_hash, ciphertext, created_at, expires_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8)"
        );
        let org = self.org()?;
        let values = binds![
            org,
            hook.id,
            hook.workflow,
            &hook.trigger,
            &hook.secret_hash.0,
            &hook.ciphertext,
            hook.created_at,
            hook.expires_at
        ];
        self.execute(sql, values).await.map(drop)
    }

    pub async fn load_hook(&mut self, id: HookId) -> Result<Option<Hook>, StoreError> {
        let sql = sql!(
            "select id, workflow_id, trigger_id, secret_hash, ciphertext, created_at, expires_at
             from hook where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id]).await?.map(|row| read(&row)).transpose()
    }

    /// The addresses that do not expire, one per trigger.
    pub async fn list_hooks(&mut self, workflow: WorkflowId) -> Result<Vec<Hook>, StoreError> {
        let sql = sql!(
            "select id, workflow_id, trigger_id, secret_hash, ciphertext, created_at, expires_at
             from hook where org_id = $1 and workflow_id = $2 and expires_at is null order by trigger_id, id"
        );
        let org = self.org()?;
        self.fetch(sql, binds![org, workflow]).await?.iter().map(read).collect()
    }

    /// Removes a workflow's addresses whose time is over; answers how many.
    pub async fn remove_expired_hooks(&mut self, workflow: WorkflowId, now: Timestamp) -> Result<u64, StoreError> {
        let sql = sql!("delete from hook where org_id = $1 and workflow_id = $2 and expires_at <= $3");
        let org = self.org()?;
        self.execute(sql, binds![org, workflow, now]).await
    }

    /// Lets the current addresses of a trigger end at `at`.
    pub async fn expire_hooks(
        &mut self,
        workflow: WorkflowId,
        trigger: &str,
        at: Timestamp,
    ) -> Result<u64, StoreError> {
        let sql = sql!(
            "update hook set expires_at = $4 where org_id = $1 and workflow_id = $2 and trigger_id = $3 and expires_at is null"
        );
        let org = self.org()?;
        self.execute(sql, binds![org, workflow, trigger, at]).await
    }
}
