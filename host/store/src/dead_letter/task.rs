//! Tasks that resume or discard many dead letters, batch by batch. The row says how far one has come, so that it goes on after
//! whatever ended its process.

use bulkhead_model::id::{DeadLetterId, DeadLetterTaskId};
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql, sql_postgres};
use crate::tx::Tx;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadLetterAction {
    Resume,
    Discard,
}

impl DeadLetterAction {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Resume => "resume",
            Self::Discard => "discard",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Resume, Self::Discard].into_iter().find(|action| action.as_str() == text)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    Running,
    Done,
    /// Somebody stopped it.
    Stopped,
}

impl TaskState {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Stopped => "stopped",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Running, Self::Done, Self::Stopped].into_iter().find(|state| state.as_str() == text)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterTask {
    pub id: DeadLetterTaskId,
    pub action: DeadLetterAction,
    /// JSON text: which entries, and how.
    pub request: String,
    /// Who asked for it.
    pub actor: String,
    pub state: TaskState,
    /// Entries from this id on have been looked at, from the newest down.
    pub cursor: DeadLetterId,
    /// Entries looked at …
    pub seen: i64,
    /// … of them resumed or discarded …
    pub done: i64,
    /// … and of them left where they are.
    pub skipped: i64,
    /// Why the last of those was left.
    pub skipped_why: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub finished_at: Option<Timestamp>,
}

fn read(row: &Row) -> Result<DeadLetterTask, StoreError> {
    Ok(DeadLetterTask {
        id: row.get("id")?,
        action: row.parsed("action", DeadLetterAction::parse)?,
        request: row.get("request")?,
        actor: row.get("actor")?,
        state: row.parsed("state", TaskState::parse)?,
        cursor: row.get("cursor_id")?,
        seen: row.get("seen_count")?,
        done: row.get("done_count")?,
        skipped: row.get("skipped_count")?,
        skipped_why: row.get("skipped_why")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
        finished_at: row.get("finished_at")?,
    })
}

impl Tx {
    pub async fn insert_dead_letter_task(&mut self, task: &DeadLetterTask) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into dead_letter_task (org_id, id, action, request, actor, state, cursor_id, seen_count, done_count,
                 skipped_count, skipped_why, created_at, updated_at, finished_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
        );
        let org = self.org()?;
        let values = binds![
            org,
            task.id,
            task.action.as_str(),
            &task.request,
            &task.actor,
            task.state.as_str(),
            task.cursor,
            task.seen,
            task.done,
            task.skipped,
            &task.skipped_why,
            task.created_at,
            task.updated_at,
            task.finished_at
        ];
        self.execute(sql, values).await.map(drop)
    }

    pub async fn load_dead_letter_task(&mut self, id: DeadLetterTaskId) -> Result<Option<DeadLetterTask>, StoreError> {
        let sql = sql!(
            "select id, action, request, actor, state, cursor_id, seen_count, done_count, skipped_count, skipped_why, created_at,
                 updated_at, finished_at
             from dead_letter_task where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id]).await?.map(|row| read(&row)).transpose()
    }

    /// How many tasks of the organization go on; counts up to `most`.
    pub async fn count_running_dead_letter_tasks(&mut self, most: u32) -> Result<u32, StoreError> {
        let sql = sql!(
            "select count(*) as running from (select 1 as one from dead_letter_task
                 where org_id = $1 and state = 'running' limit $2) as found"
        );
        let org = self.org()?;
        let row = self.fetch_optional(sql, binds![org, i64::from(most)]).await?;
        let running: i64 = row.ok_or(StoreError::NotFound { what: "count" })?.get("running")?;
        Ok(u32::try_from(running).unwrap_or(u32::MAX))
    }

    /// Removes tasks that ended before a moment: at most `limit`. Answers how many.
    pub async fn remove_dead_letter_tasks(&mut self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let sql = sql!(
            "delete from dead_letter_task where org_id = $1 and id in (
                 select id from dead_letter_task where org_id = $1 and finished_at < $2 order by finished_at limit $3)"
        );
        let org = self.org()?;
        self.execute(sql, binds![org, before, i64::from(limit)]).await
    }

    /// The task with its row locked until the transaction ends: a batch is ordered against whoever stops the task.
    pub async fn lock_dead_letter_task(&mut self, id: DeadLetterTaskId) -> Result<Option<DeadLetterTask>, StoreError> {
        if self.is_postgres() {
            // SQLite has one writer.
            let sql = sql_postgres!("select id from dead_letter_task where org_id = $1 and id = $2 for update");
            let org = self.org()?;
            self.fetch(sql, binds![org, id]).await?;
        }
        self.load_dead_letter_task(id).await
    }

    /// Newest first.
    pub async fn list_dead_letter_tasks(&mut self, page: PageRequest) -> Result<Page<DeadLetterTask>, StoreError> {
        let sql = sql!(
            "select id, action, request, actor, state, cursor_id, seen_count, done_count, skipped_count, skipped_why, created_at,
                 updated_at, finished_at
             from dead_letter_task where org_id = $1 and id < $2 order by id desc limit $3"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, page.bound(), page.fetch()]).await?;
        let tasks = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(tasks, |task| task.id.uuid()))
    }

    /// Saves how far a task has come.
    pub async fn update_dead_letter_task(&mut self, task: &DeadLetterTask) -> Result<(), StoreError> {
        let sql = sql!(
            "update dead_letter_task set state = $3, cursor_id = $4, seen_count = $5, done_count = $6, skipped_count = $7,
                 skipped_why = $8, updated_at = $9, finished_at = $10
             where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        let values = binds![
            org,
            task.id,
            task.state.as_str(),
            task.cursor,
            task.seen,
            task.done,
            task.skipped,
            &task.skipped_why,
            task.updated_at,
            task.finished_at
        ];
        self.execute(sql, values).await.map(drop)
    }
}
