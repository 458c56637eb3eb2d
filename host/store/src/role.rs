//! Roles of an organization's own. At most a hundred, so lists are whole.

use bulkhead_model::id::RoleId;
use bulkhead_model::permission::{Permission, PermissionSet};
use bulkhead_model::role::{Gives, RoleName, RoleRef};
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

pub mod assignment;
pub mod request;

/// A role of the organization's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    pub id: RoleId,
    pub name: RoleName,
    pub description: String,
    pub gives: Gives,
    /// Rises with every change.
    pub revision: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

fn read(row: &Row) -> Result<Role, StoreError> {
    let permissions: Vec<String> = row.json("permissions")?;
    let inherits: Vec<String> = row.json("inherits")?;
    Ok(Role {
        id: row.get("id")?,
        name: row.parsed("name", |text| text.parse().ok())?,
        description: row.get("description")?,
        gives: Gives {
            // What this version does not know gives nothing.
            permissions: permissions
                .iter()
                .filter_map(|text| text.parse::<Permission>().ok())
                .collect::<PermissionSet>(),
            inherits: inherits.iter().filter_map(|text| text.parse::<RoleRef>().ok()).collect(),
        },
        revision: row.get("revision")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

/// The columns that hold what a role gives.
fn columns(gives: &Gives) -> Result<(String, String), StoreError> {
    let permissions: Vec<&str> = gives.permissions.iter().map(Permission::as_str).collect();
    let text = |result: serde_json::Result<String>| result.map_err(|error| StoreError::corrupt("role", error));
    Ok((text(serde_json::to_string(&permissions))?, text(serde_json::to_string(&gives.inherits))?))
}

impl Tx {
    /// Inserts a role; `false` if its name is taken.
    pub async fn insert_role(&mut self, role: &Role) -> Result<bool, StoreError> {
        let sql = sql!(
            "insert into role (org_id, id, name, name_key, description, permissions, inherits, revision, created_at, updated_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) on conflict (org_id, name_key) do nothing"
        );
        let (org, key) = (self.org()?, role.name.key());
        let (permissions, inherits) = columns(&role.gives)?;
        let values = binds![
            org,
            role.id,
            role.name.as_str(),
            &key,
            &role.description,
            &permissions,
            &inherits,
            role.revision,
            role.created_at,
            role.updated_at
        ];
        Ok(self.execute(sql, values).await? > 0)
    }

    /// Saves a role over the revision that was seen; `false` if it is another one by now.
    pub async fn update_role(&mut self, role: &Role, seen: i64) -> Result<bool, StoreError> {
        let sql = sql!(
            "update role set name = $4, name_key = $5, description = $6, permissions = $7, inherits = $8, revision = $9, updated_at = $10
             where org_id = $1 and id = $2 and revision = $3"
        );
        let (org, key) = (self.org()?, role.name.key());
        let (permissions, inherits) = columns(&role.gives)?;
        let values = binds![
            org,
            role.id,
            seen,
            role.name.as_str(),
            &key,
            &role.description,
            &permissions,
            &inherits,
            role.revision,
            role.updated_at
        ];
        Ok(self.execute(sql, values).await? > 0)
    }

    /// Deletes a role that nobody has any more.
    pub async fn delete_role(&mut self, id: RoleId) -> Result<bool, StoreError> {
        let sql = sql!("delete from role where org_id = $1 and id = $2");
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, id]).await? > 0)
    }

    /// All roles of the organization's own, by name.
    pub async fn list_roles(&mut self) -> Result<Vec<Role>, StoreError> {
        let sql = sql!(
            "select id, name, description, permissions, inherits, revision, created_at, updated_at
             from role where org_id = $1 order by name_key, id"
        );
        let org = self.org()?;
        self.fetch(sql, binds![org]).await?.iter().map(read).collect()
    }
}
