//! Workflows and their versions.

use bulkhead_model::id::WorkflowId;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

#[derive(Clone, Debug)]
pub struct Workflow {
    pub id: WorkflowId,
    pub name: String,
    pub active: bool,
    /// The version that new runs use.
    pub current_version: i64,
    /// Rises with every change: the entity tag.
    pub revision: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Clone, Debug)]
pub struct WorkflowVersion {
    pub version: i64,
    /// JSON text as it was sent.
    pub definition: String,
    pub summary: String,
    pub author: String,
    pub created_at: Timestamp,
}

/// A version without its definition, for lists.
#[derive(Clone, Debug)]
pub struct WorkflowVersionSummary {
    pub version: i64,
    pub definition_bytes: i64,
    pub summary: String,
    pub author: String,
    pub created_at: Timestamp,
}

fn read(row: &Row) -> Result<Workflow, StoreError> {
    Ok(Workflow {
        id: row.get("id")?,
        name: row.get("name")?,
        active: row.get::<String>("state")? == "active",
        current_version: row.get("current_version")?,
        revision: row.get("revision")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

fn read_version(row: &Row) -> Result<WorkflowVersion, StoreError> {
    Ok(WorkflowVersion {
        version: row.get("version")?,
        definition: row.get("definition")?,
        summary: row.get("summary")?,
        author: row.get("author")?,
        created_at: row.get("created_at")?,
    })
}

const fn state(active: bool) -> &'static str {
    if active { "active" } else { "inactive" }
}

impl Tx {
    /// Inserts a workflow; answers `false` when the name is taken.
    pub async fn insert_workflow(&mut self, workflow: &Workflow) -> Result<bool, StoreError> {
        let sql = sql!(
            "insert into workflow (org_id, id, name, state, current_version, revision, created_at, updated_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict (org_id, name) do nothing"
        );
        let org = self.org()?;
        let values = binds![
            org,
            workflow.id,
            &workflow.name,
            state(workflow.active),
            workflow.current_version,
            workflow.revision,
            workflow.created_at,
            workflow.updated_at
        ];
        Ok(self.execute(sql, values).await? > 0)
    }

    pub async fn insert_workflow_version(
        &mut self,
        id: WorkflowId,
        version: &WorkflowVersion,
    ) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into workflow_version (org_id, workflow_id, version, definition, summary, author, created_at)
             values ($1, $2, $3, $4, $5, $6, $7)"
        );
        let org = self.org()?;
        let values = binds![
            org,
            id,
            version.version,
            &version.definition,
            &version.summary,
            &version.author,
            version.created_at
        ];
        self.execute(sql, values).await.map(drop)
    }

    pub async fn load_workflow(&mut self, id: WorkflowId) -> Result<Option<Workflow>, StoreError> {
        let sql = sql!(
            "select id, name, state, current_version, revision, created_at, updated_at from workflow where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id]).await?.map(|row| read(&row)).transpose()
    }

    pub async fn require_workflow(&mut self, id: WorkflowId) -> Result<Workflow, StoreError> {
        self.load_workflow(id).await?.ok_or(StoreError::NotFound { what: "workflow" })
    }

    pub async fn load_workflow_by_name(&mut self, name: &str) -> Result<Option<Workflow>, StoreError> {
        let sql = sql!(
            "select id, name, state, current_version, revision, created_at, updated_at from workflow where org_id = $1 and name = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, name]).await?.map(|row| read(&row)).transpose()
    }

    /// How many workflows are active.
    pub async fn count_active_workflows(&mut self) -> Result<u64, StoreError> {
        let sql = sql!("select count(*) as active from workflow where org_id = $1 and state = 'active'");
        let org = self.org()?;
        let row = self.fetch_optional(sql, binds![org]).await?;
        let row = row.ok_or_else(|| StoreError::corrupt("workflow", "a count without a row"))?;
        Ok(u64::try_from(row.get::<i64>("active")?).unwrap_or(0))
    }

    pub async fn list_workflows(&mut self, page: PageRequest) -> Result<Page<Workflow>, StoreError> {
        let sql = sql!(
            "select id, name, state, current_version, revision, created_at, updated_at from workflow
             where org_id = $1 and id < $2 order by id desc limit $3"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, page.bound(), page.fetch()]).await?;
        let workflows = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(workflows, |workflow| workflow.id.uuid()))
    }

    /// Saves name, state and current version if the revision is still `seen`, and raises it by one. Answers `false` when
    /// somebody else was quicker.
    pub async fn update_workflow(&mut self, next: &Workflow, seen: i64) -> Result<bool, StoreError> {
        let sql = sql!(
            "update workflow set name = $4, state = $5, current_version = $6, revision = $3 + 1, updated_at = $7
             where org_id = $1 and id = $2 and revision = $3"
        );
        let org = self.org()?;
        let values = binds![org, next.id, seen, &next.name, state(next.active), next.current_version, next.updated_at];
        Ok(self.execute(sql, values).await? > 0)
    }

    pub async fn load_workflow_version(
        &mut self,
        id: WorkflowId,
        version: i64,
    ) -> Result<Option<WorkflowVersion>, StoreError> {
        let sql = sql!(
            "select version, definition, summary, author, created_at from workflow_version
             where org_id = $1 and workflow_id = $2 and version = $3"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id, version]).await?.map(|row| read_version(&row)).transpose()
    }

    /// Newest first, below `before` when given.
    pub async fn list_workflow_versions(
        &mut self,
        id: WorkflowId,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<WorkflowVersionSummary>, StoreError> {
        let sql = sql!(
            "select version, cast(octet_length(definition) as bigint) as definition_bytes, summary, author, created_at
             from workflow_version
             where org_id = $1 and workflow_id = $2 and version < $3 order by version desc limit $4"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, id, before.unwrap_or(i64::MAX), i64::from(limit)]).await?;
        rows.iter()
            .map(|row| {
                Ok(WorkflowVersionSummary {
                    version: row.get("version")?,
                    definition_bytes: row.get("definition_bytes")?,
                    summary: row.get("summary")?,
                    author: row.get("author")?,
                    created_at: row.get("created_at")?,
                })
            })
            .collect()
    }
}
