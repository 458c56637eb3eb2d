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
    /// When it was taken out of use. What is left of it names it in the history.
    pub deleted_at: Option<Timestamp>,
}

/// What an organization holds of plugins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PluginCount {
    /// Versions in use …
    pub versions: u64,
    /// … and the bytes of their packages.
    pub bytes: u64,
    /// Versions that were deleted, whose names are kept.
    pub deleted: u64,
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
        deleted_at: row.get("deleted_at")?,
    })
}

impl Tx {
    /// Stores a package's bytes; the same bytes again are no change, or come back where they were deleted.
    pub async fn insert_artifact(
        &mut self,
        digest: &[u8; 32],
        package: &[u8],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into artifact (org_id, digest, package, created_at) values ($1, $2, $3, $4)
             on conflict (org_id, digest) do update set package = excluded.package where octet_length(artifact.package) = 0"
        );
        let org = self.org()?;
        self.execute(sql, binds![org, digest, package, now]).await.map(drop)
    }

    pub async fn load_artifact(&mut self, digest: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = sql!("select package from artifact where org_id = $1 and digest = $2 and octet_length(package) > 0");
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

    /// Also one that was deleted.
    pub async fn load_plugin(&mut self, id: PluginId) -> Result<Option<Plugin>, StoreError> {
        let sql = sql!(
            "select id, name, version, digest, manifest, size_bytes, created_at, deleted_at from plugin where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id]).await?.map(|row| read(&row)).transpose()
    }

    /// Also one that was deleted.
    pub async fn load_plugin_version(&mut self, name: &str, version: &str) -> Result<Option<Plugin>, StoreError> {
        let sql = sql!(
            "select id, name, version, digest, manifest, size_bytes, created_at, deleted_at from plugin
             where org_id = $1 and name = $2 and version = $3"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, name, version]).await?.map(|row| read(&row)).transpose()
    }

    /// How many versions the organization holds, and the bytes of their packages together; of a deleted one its manifest stays.
    pub async fn count_plugins(&mut self) -> Result<PluginCount, StoreError> {
        let sql = sql!(
            "select count(*) as versions, count(deleted_at) as deleted,
                 cast(coalesce(sum(case when deleted_at is null then size_bytes else octet_length(manifest) end), 0) as bigint) as size_bytes
             from plugin where org_id = $1"
        );
        let org = self.org()?;
        let row = self.fetch_optional(sql, binds![org]).await?;
        let row = row.ok_or_else(|| StoreError::corrupt("plugin", "a count without a row"))?;
        let count = |name| Ok::<_, StoreError>(u64::try_from(row.get::<i64>(name)?).unwrap_or(0));
        let deleted = count("deleted")?;
        Ok(PluginCount { versions: count("versions")?.saturating_sub(deleted), bytes: count("size_bytes")?, deleted })
    }

    /// Whether an installation that is not uninstalled has this version.
    pub async fn is_plugin_installed(&mut self, id: PluginId) -> Result<bool, StoreError> {
        let sql = sql!(
            "select 1 as one from installation where org_id = $1 and plugin_id = $2 and state <> 'uninstalled' limit 1"
        );
        let org = self.org()?;
        Ok(self.fetch_optional(sql, binds![org, id]).await?.is_some())
    }

    /// Takes a version out of use: its package goes unless another version has the same, its name stays for the history. `false` when
    /// it is not there, or not any more.
    pub async fn delete_plugin(&mut self, id: PluginId, now: Timestamp) -> Result<bool, StoreError> {
        let org = self.org()?;
        let sql = sql!(
            "update plugin set deleted_at = $3 where org_id = $1 and id = $2 and deleted_at is null returning digest"
        );
        let Some(deleted) = self.fetch_optional(sql, binds![org, id, now]).await? else { return Ok(false) };
        let digest: [u8; 32] = deleted.get("digest")?;
        let sql = sql!(
            "update artifact set package = $3 where org_id = $1 and digest = $2 and not exists (
                 select 1 from plugin where plugin.org_id = $1 and plugin.digest = $2 and plugin.deleted_at is null)"
        );
        let nothing: &[u8] = &[];
        self.execute(sql, binds![org, &digest, nothing]).await?;
        Ok(true)
    }

    /// Takes a deleted version into use again: `false` when it is not there, or is in use. Its package is to be stored first.
    pub async fn restore_plugin(&mut self, id: PluginId) -> Result<bool, StoreError> {
        let sql = sql!("update plugin set deleted_at = null where org_id = $1 and id = $2 and deleted_at is not null");
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, id]).await? > 0)
    }

    /// Newest first; `name` narrows when given.
    pub async fn list_plugins(&mut self, name: Option<&str>, page: PageRequest) -> Result<Page<Plugin>, StoreError> {
        let sql = sql!(
            "select id, name, version, digest, manifest, size_bytes, created_at, deleted_at from plugin
             where org_id = $1 and id < $2 and deleted_at is null and (cast($3 as text) is null or name = $3) order by id desc limit $4"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, page.bound(), name, page.fetch()]).await?;
        let plugins = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(plugins, |plugin| plugin.id.uuid()))
    }
}
