//! Installations: a plugin in an organization, with settings, grants and a version that rises with every change.

use bulkhead_model::grant::{GrantVersion, Grants};
use bulkhead_model::id::{InstallationId, PluginId};
use bulkhead_model::permission::Actor;
use bulkhead_model::time::Timestamp;
use serde_json::Value;

use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql, sql_postgres};
use crate::tx::Tx;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallationState {
    Enabled,
    Disabled,
    /// Kept for history; settings, grants and secrets are gone.
    Uninstalled,
}

impl InstallationState {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
            Self::Uninstalled => "uninstalled",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Enabled, Self::Disabled, Self::Uninstalled].into_iter().find(|state| state.as_str() == text)
    }
}

#[derive(Clone, Debug)]
pub struct Installation {
    pub id: InstallationId,
    pub plugin: PluginId,
    pub state: InstallationState,
    pub settings: Value,
    pub grants: Grants,
    pub grant_version: GrantVersion,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

pub(crate) fn read(row: &Row) -> Result<Installation, StoreError> {
    Ok(Installation {
        id: row.get("id")?,
        plugin: row.get("plugin_id")?,
        state: row.parsed("state", InstallationState::parse)?,
        settings: row.json("settings")?,
        grants: row.json("grants")?,
        grant_version: GrantVersion(row.get("grant_version")?),
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

fn grants_text(grants: &Grants) -> Result<String, StoreError> {
    serde_json::to_string(grants).map_err(|error| StoreError::corrupt("grants", error))
}

impl Tx {
    pub async fn insert_installation(&mut self, installation: &Installation) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into installation (org_id, id, plugin_id, state, settings, grants, grant_version, created_at, updated_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
        );
        let org = self.org()?;
        let (settings, grants) = (installation.settings.to_string(), grants_text(&installation.grants)?);
        let values = binds![
            org,
            installation.id,
            installation.plugin,
            installation.state.as_str(),
            &settings,
            &grants,
            installation.grant_version.0,
            installation.created_at,
            installation.updated_at
        ];
        self.execute(sql, values).await.map(drop)
    }

    pub async fn load_installation(&mut self, id: InstallationId) -> Result<Option<Installation>, StoreError> {
        let sql = sql!(
            "select id, plugin_id, state, settings, grants, grant_version, created_at, updated_at
             from installation where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id]).await?.map(|row| read(&row)).transpose()
    }

    /// The installation if it is not uninstalled.
    pub async fn require_installation(&mut self, id: InstallationId) -> Result<Installation, StoreError> {
        self.load_installation(id)
            .await?
            .filter(|installation| installation.state != InstallationState::Uninstalled)
            .ok_or(StoreError::NotFound { what: "installation" })
    }

    /// Newest first, without uninstalled ones.
    pub async fn list_installations(&mut self, page: PageRequest) -> Result<Page<Installation>, StoreError> {
        let sql = sql!(
            "select id, plugin_id, state, settings, grants, grant_version, created_at, updated_at from installation
             where org_id = $1 and id < $2 and state <> 'uninstalled' order by id desc limit $3"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, page.bound(), page.fetch()]).await?;
        let installations = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(installations, |installation| installation.id.uuid()))
    }

    /// Saves plugin, state, settings and grants if the version is still `seen`, and raises it by one. Answers `false` when
    /// somebody else was quicker.
    pub async fn update_installation(&mut self, next: &Installation, seen: GrantVersion) -> Result<bool, StoreError> {
        let sql = sql!(
            "update installation set plugin_id = $4, state = $5, settings = $6, grants = $7, grant_version = $3 + 1, updated_at = $8
             where org_id = $1 and id = $2 and grant_version = $3"
        );
        let org = self.org()?;
        let (settings, grants) = (next.settings.to_string(), grants_text(&next.grants)?);
        let values =
            binds![org, next.id, seen.0, next.plugin, next.state.as_str(), &settings, &grants, next.updated_at];
        Ok(self.execute(sql, values).await? > 0)
    }

    /// Keeps a set of grants for history and roll back.
    pub async fn record_grants(
        &mut self,
        id: InstallationId,
        version: GrantVersion,
        grants: &Grants,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into installation_grant (org_id, installation_id, version, grants, actor, created_at)
             values ($1, $2, $3, $4, $5, $6)"
        );
        let (org, grants, actor) = (self.org()?, grants_text(grants)?, actor.to_string());
        self.execute(sql, binds![org, id, version.0, &grants, &actor, now]).await.map(drop)
    }

    /// Locks the installation's row for this transaction and answers its version and state: with it, a step's transaction knows that the
    /// grants which its call ran under are still in force at commit.
    pub async fn lock_installation_version(
        &mut self,
        id: InstallationId,
    ) -> Result<Option<(GrantVersion, InstallationState)>, StoreError> {
        let org = self.org()?;
        let row = if self.is_postgres() {
            // `for share`: SQLite has one writer and no row locks.
            let sql =
                sql_postgres!("select grant_version, state from installation where org_id = $1 and id = $2 for share");
            self.fetch_optional(sql, binds![org, id]).await?
        } else {
            let sql = sql!("select grant_version, state from installation where org_id = $1 and id = $2");
            self.fetch_optional(sql, binds![org, id]).await?
        };
        row.map(|row| Ok((GrantVersion(row.get("grant_version")?), row.parsed("state", InstallationState::parse)?)))
            .transpose()
    }
}

impl Tx {
    /// The installation that a workflow's step means: the named one if it is of this plugin, or else the organization's only
    /// one. `None` when there is none, or the choice is not clear.
    pub async fn load_installation_of(
        &mut self,
        plugin: &bulkhead_model::name::PluginName,
        named: Option<InstallationId>,
    ) -> Result<Option<Installation>, StoreError> {
        let org = self.org()?;
        let rows = if let Some(id) = named {
            let sql = sql!(
                "select i.id, i.plugin_id, i.state, i.settings, i.grants, i.grant_version, i.created_at, i.updated_at
                 from installation i join plugin p on p.org_id = i.org_id and p.id = i.plugin_id
                 where i.org_id = $1 and i.id = $2 and p.name = $3 and i.state <> 'uninstalled'"
            );
            self.fetch(sql, binds![org, id, plugin.as_str()]).await?
        } else {
            // `cross join` keeps SQLite at this order: the plugin's few versions, then what is installed of each.
            let sql = sql!(
                "select i.id, i.plugin_id, i.state, i.settings, i.grants, i.grant_version, i.created_at, i.updated_at
                 from plugin p cross join installation i
                 where p.org_id = $1 and p.name = $2 and i.org_id = $1 and i.plugin_id = p.id and i.state <> 'uninstalled' limit 2"
            );
            self.fetch(sql, binds![org, plugin.as_str()]).await?
        };
        match rows.as_slice() {
            [only] => read(only).map(Some),
            _ => Ok(None),
        }
    }

    /// [`load_installation_of`](Self::load_installation_of) with its plugin.
    pub async fn load_installation_for(
        &mut self,
        plugin: &bulkhead_model::name::PluginName,
        named: Option<InstallationId>,
    ) -> Result<Option<(Installation, crate::plugin::Plugin)>, StoreError> {
        let Some(installation) = self.load_installation_of(plugin, named).await? else { return Ok(None) };
        let found = self.load_plugin(installation.plugin).await?;
        Ok(found.map(|found| (installation, found)))
    }
}
