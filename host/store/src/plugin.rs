//! Plugins: versions that an organization uploaded, and the packages' bytes.

use bulkhead_model::id::PluginId;
use bulkhead_model::manifest::Manifest;
use bulkhead_model::name::PluginName;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

/// A plugin version. Immutable.
#[derive(Clone, Debug)]
pub struct Plugin {
    pub id: PluginId,
    pub name: PluginName,
    pub version: String,
    /// SHA-256 of the package.
    pub digest: [u8; 32],
    pub manifest: Manifest,
    pub size_bytes: i64,
    pub created_at: Timestamp,
}

pub(crate) fn read(row: &Row) -> Result<Plugin, StoreError> {
    Ok(Plugin {
        id: row.get("id")?,
        name: row.parsed("name", |text| text.parse().ok())?,
        version: row.get("version")?,
        digest: row.get("digest")?,
        manifest: row.json("manifest")?,
        size_bytes: row.get("size_bytes")?,
        created_at: row.get("created_at")?,
    })
}

impl Tx {
    /// Stores a package's bytes; the same bytes again are no change.
    pub async fn insert_artifact(
        &mut self,
        digest: &[u8; 32],
        package: &[u8],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into artifact (org_id, digest, package, created_at) values ($1, $2, $3, $4)
             on conflict (org_id, digest) do nothing"
        );
        let org = self.org()?;
        self.execute(sql, binds![org, digest, package, now]).await.map(drop)
    }

    pub async fn load_artifact(&mut self, digest: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = sql!("select package from artifact where org_id = $1 and digest = $2");
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, digest]).await?.map(|row| row.get("package")).transpose()
    }

    /// Inserts a version; answers `false` when the name and version are taken.
    pub async fn insert_plugin(&mut self, plugin: &Plugin) -> Result<bool, StoreError> {
        let manifest = serde_json::to_string(&plugin.manifest).map_err(|e| StoreError::corrupt("manifest", e))?;
        let sql = sql!(
            "insert into plugin (org_id, id, name, version, digest, manifest, size_bytes, created_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict (org_id, name, version) do nothing"
        );
        let org = self.org()?;
        let values = binds![
            org,
            plugin.id,
            plugin.name.as_str(),
            &plugin.version,
            &plugin.digest,
            &manifest,
            plugin.size_bytes,
            plugin.created_at
        ];
        Ok(self.execute(sql, values).await? > 0)
    }

    pub async fn load_plugin(&mut self, id: PluginId) -> Result<Option<Plugin>, StoreError> {
        let sql = sql!(
            "select id, name, version, digest, manifest, size_bytes, created_at from plugin where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id]).await?.map(|row| read(&row)).transpose()
    }

    pub async fn load_plugin_version(&mut self, name: &str, version: &str) -> Result<Option<Plugin>, StoreError> {
        let sql = sql!(
            "select id, name, version, digest, manifest, size_bytes, created_at from plugin
             where org_id = $1 and name = $2 and version = $3"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, name, version]).await?.map(|row| read(&row)).transpose()
    }

    /// How many versions the organization has uploaded, and the bytes of their packages together.
    pub async fn count_plugins(&mut self) -> Result<(u64, u64), StoreError> {
        let sql = sql!(
            "select count(*) as versions, cast(coalesce(sum(size_bytes), 0) as bigint) as size_bytes from plugin where org_id = $1"
        );
        let org = self.org()?;
        let row = self.fetch_optional(sql, binds![org]).await?;
        let row = row.ok_or_else(|| StoreError::corrupt("plugin", "a count without a row"))?;
        let count = |name| Ok::<_, StoreError>(u64::try_from(row.get::<i64>(name)?).unwrap_or(0));
        Ok((count("versions")?, count("size_bytes")?))
    }

    /// Newest first; `name` narrows when given.
    pub async fn list_plugins(&mut self, name: Option<&str>, page: PageRequest) -> Result<Page<Plugin>, StoreError> {
        let sql = sql!(
            "select id, name, version, digest, manifest, size_bytes, created_at from plugin
             where org_id = $1 and id < $2 and (cast($3 as text) is null or name = $3) order by id desc limit $4"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, page.bound(), name, page.fetch()]).await?;
        let plugins = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(plugins, |plugin| plugin.id.uuid()))
    }
}
