//! Organizations: the tenants.

use bulkhead_model::id::OrgId;
use bulkhead_model::name::Slug;
use bulkhead_model::permission::SystemReason;
use bulkhead_model::quota::{Quota, Quotas};
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::sql::{Row, binds, sql, sql_postgres};
use crate::tx::Tx;

#[derive(Clone, Debug)]
pub struct Org {
    pub id: OrgId,
    pub slug: Slug,
    pub name: String,
    pub created_at: Timestamp,
}

fn read(row: &Row) -> Result<Org, StoreError> {
    Ok(Org {
        id: row.get("id")?,
        slug: row.parsed("slug", |text| text.parse().ok())?,
        name: row.get("name")?,
        created_at: row.get("created_at")?,
    })
}

impl Tx {
    /// Inserts an organization, for which the transaction works from here on; needs the scope of `SystemReason::Admin`.
    pub async fn insert_org(&mut self, org: &Org) -> Result<(), StoreError> {
        self.require_reason(SystemReason::Admin)?;
        let sql = sql!("insert into organization (id, slug, name, created_at) values ($1, $2, $3, $4)");
        self.execute(sql, binds![org.id, org.slug.as_str(), &org.name, org.created_at]).await?;
        self.work_for(org.id).await
    }

    /// Lets an operator's transaction write the organization's own tables, its audit entries above all.
    pub(crate) async fn work_for(&mut self, org: OrgId) -> Result<(), StoreError> {
        if self.is_postgres() {
            // The row-level rules of the organization's own tables read it; SQLite has none.
            let sql = sql_postgres!("select set_config('app.org_id', $1, true)");
            self.fetch(sql, binds![&org.uuid().to_string()]).await?;
        }
        self.context.org = Some(org);
        Ok(())
    }

    /// The transaction's own organization.
    pub async fn require_org(&mut self) -> Result<Org, StoreError> {
        let id = self.org()?;
        let sql = sql!("select id, slug, name, created_at from organization where id = $1");
        let row = self.fetch_optional(sql, binds![id]).await?.ok_or(StoreError::NotFound { what: "organization" })?;
        read(&row)
    }

    /// Sets an organization's share of the workers: its weight beside others (1 to 100) and how many of its jobs of a lane may be
    /// held at once (1 to 10,000). `false` when there is no such organization; else the transaction works for it from here on. Needs
    /// the scope of `SystemReason::Admin`.
    pub async fn set_queue_share(&mut self, org: OrgId, weight: u32, jobs_max: u32) -> Result<bool, StoreError> {
        self.require_reason(SystemReason::Admin)?;
        let sql = sql!("update organization set queue_weight = $2, jobs_max = $3 where id = $1");
        if self.execute(sql, binds![org, weight, jobs_max]).await? == 0 {
            return Ok(false);
        }
        self.work_for(org).await?;
        Ok(true)
    }

    /// The organization's weight beside others, and how many jobs of a lane it may hold. Needs the scope of `SystemReason::Admin`.
    pub async fn load_queue_share(&mut self, org: OrgId) -> Result<Option<(u32, u32)>, StoreError> {
        self.require_reason(SystemReason::Admin)?;
        let sql = sql!("select queue_weight, jobs_max from organization where id = $1");
        let row = self.fetch_optional(sql, binds![org]).await?;
        row.map(|row| Ok((row.get("queue_weight")?, row.get("jobs_max")?))).transpose()
    }

    /// What the organization may hold.
    pub async fn load_quotas(&mut self) -> Result<Quotas, StoreError> {
        let sql = sql!(
            "select active_workflows_max, payload_bytes_max, history_bytes_max, log_bytes_max, plugin_versions_max, plugin_bytes_max
             from organization where id = $1"
        );
        let id = self.org()?;
        let row = self.fetch_optional(sql, binds![id]).await?.ok_or(StoreError::NotFound { what: "organization" })?;
        let value = |name| Ok::<_, StoreError>(u64::try_from(row.get::<i64>(name)?).unwrap_or(0));
        Ok(Quotas {
            active_workflows_max: value("active_workflows_max")?,
            payload_bytes_max: value("payload_bytes_max")?,
            history_bytes_max: value("history_bytes_max")?,
            log_bytes_max: value("log_bytes_max")?,
            plugin_versions_max: value("plugin_versions_max")?,
            plugin_bytes_max: value("plugin_bytes_max")?,
        })
    }

    /// Sets what an organization may hold; answers what it was before, `None` when there is no such organization; else the transaction
    /// works for it from here on. Needs the scope of `SystemReason::Admin`.
    pub async fn set_quota(&mut self, org: OrgId, quota: Quota, value: u64) -> Result<Option<Quotas>, StoreError> {
        self.require_reason(SystemReason::Admin)?;
        let there = sql!("select 1 as one from organization where id = $1");
        if self.fetch_optional(there, binds![org]).await?.is_none() {
            return Ok(None);
        }
        self.work_for(org).await?;
        let before = self.load_quotas().await?;
        let mut next = before.clone();
        next.set(quota, value).map_err(|_| StoreError::Misuse("a quota out of its bounds"))?;
        let sql = sql!(
            "update organization set active_workflows_max = $2, payload_bytes_max = $3, history_bytes_max = $4, log_bytes_max = $5,
                 plugin_versions_max = $6, plugin_bytes_max = $7
             where id = $1"
        );
        let value = |quota| i64::try_from(next.get(quota)).unwrap_or(i64::MAX);
        let values = binds![
            org,
            value(Quota::ActiveWorkflows),
            value(Quota::PayloadBytes),
            value(Quota::HistoryBytes),
            value(Quota::LogBytes),
            value(Quota::PluginVersions),
            value(Quota::PluginBytes)
        ];
        self.execute(sql, values).await?;
        Ok(Some(before))
    }

    /// Any organization by its short name; needs the scope of `SystemReason::Admin`.
    pub async fn load_org_by_slug(&mut self, slug: &Slug) -> Result<Option<Org>, StoreError> {
        self.require_reason(SystemReason::Admin)?;
        let sql = sql!("select id, slug, name, created_at from organization where slug = $1");
        self.fetch_optional(sql, binds![slug.as_str()]).await?.map(|row| read(&row)).transpose()
    }
}
