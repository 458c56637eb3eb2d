//! Secrets of installations: sealed, and bound to their row. Nobody reads them but the egress guard.

use bulkhead_model::id::{InstallationId, SecretId};
use bulkhead_model::name::SecretName;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

#[derive(Clone, Debug)]
pub struct Secret {
    pub id: SecretId,
    pub installation: InstallationId,
    pub name: SecretName,
    /// The sealed value.
    pub ciphertext: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

fn read(row: &Row) -> Result<Secret, StoreError> {
    Ok(Secret {
        id: row.get("id")?,
        installation: row.get("installation_id")?,
        name: row.parsed("name", |text| text.parse().ok())?,
        ciphertext: row.get("ciphertext")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

impl Tx {
    pub async fn insert_secret(&mut self, secret: &Secret) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into secret (org_id, id, installation_id, name, ciphertext, created_at, updated_at)
             values ($1, $2, $3, $4, $5, $6, $7)"
        );
        let org = self.org()?;
        let values = binds![
            org,
            secret.id,
            secret.installation,
            secret.name.as_str(),
            &secret.ciphertext,
            secret.created_at,
            secret.updated_at
        ];
        self.execute(sql, values).await.map(drop)
    }

    /// Replaces the value of an existing row (its id, and so its binding, stays).
    pub async fn update_secret(&mut self, secret: &Secret) -> Result<(), StoreError> {
        let sql = sql!("update secret set ciphertext = $3, updated_at = $4 where org_id = $1 and id = $2");
        let org = self.org()?;
        let values = binds![org, secret.id, &secret.ciphertext, secret.updated_at];
        self.execute(sql, values).await.map(drop)
    }

    pub async fn list_secrets(&mut self, installation: InstallationId) -> Result<Vec<Secret>, StoreError> {
        let sql = sql!(
            "select id, installation_id, name, ciphertext, created_at, updated_at
             from secret where org_id = $1 and installation_id = $2 order by name"
        );
        let org = self.org()?;
        self.fetch(sql, binds![org, installation]).await?.iter().map(read).collect()
    }

    pub async fn load_secret(
        &mut self,
        installation: InstallationId,
        name: &SecretName,
    ) -> Result<Option<Secret>, StoreError> {
        let sql = sql!(
            "select id, installation_id, name, ciphertext, created_at, updated_at
             from secret where org_id = $1 and installation_id = $2 and name = $3"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, installation, name.as_str()]).await?.map(|row| read(&row)).transpose()
    }

    /// Deletes one secret; answers whether it was there.
    pub async fn delete_secret(&mut self, installation: InstallationId, name: &SecretName) -> Result<bool, StoreError> {
        let sql = sql!("delete from secret where org_id = $1 and installation_id = $2 and name = $3");
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, installation, name.as_str()]).await? > 0)
    }

    /// Deletes all secrets of an installation: part of uninstalling.
    pub async fn delete_secrets(&mut self, installation: InstallationId) -> Result<u64, StoreError> {
        let sql = sql!("delete from secret where org_id = $1 and installation_id = $2");
        let org = self.org()?;
        self.execute(sql, binds![org, installation]).await
    }
}
