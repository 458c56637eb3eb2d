//! Dead letters: what went wrong for good and waits for a person's decision.
//!
//! An entry is there from the moment that its run failed (or its job was given up) until somebody resumes or discards it. Whoever
//! takes one away holds the lock of what it is about, so that two who press at once resume it once.

pub mod task;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::fault::Fingerprint;
use bulkhead_model::id::{DeadLetterId, JobId, RunId, WorkflowId};
use bulkhead_model::time::Timestamp;
use uuid::Uuid;

use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql, sql_postgres};
use crate::tx::Tx;

/// The kind of entries that are failed runs; others have the kind of their job.
pub const RUN: &str = "run";
/// Entries of one fault are counted up to here.
pub const COUNT_MAX: i64 = 1_000;
/// Characters of a message that are kept; the run has the whole.
const MESSAGE_CHARS_MAX: usize = 2_000;
/// Workflows that are named with a fault, of those that its newest entries are of.
const WORKFLOWS_MAX: i64 = 20;

/// What is to be put on the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDeadLetter {
    pub fingerprint: Fingerprint,
    /// [`RUN`], or the kind of a job.
    pub kind: String,
    /// The run's id or the job's key. Of one kind and subject there is one entry at a time.
    pub subject: String,
    pub workflow: Option<WorkflowId>,
    pub run: Option<RunId>,
    /// The job that was given up with it.
    pub job: Option<JobId>,
    /// A step of the definition; of a schedule its trigger.
    pub step: Option<String>,
    pub code: String,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    pub id: DeadLetterId,
    pub new: NewDeadLetter,
    /// How often it went wrong since the entry was made …
    pub times: i64,
    pub created_at: Timestamp,
    /// … and when last.
    pub updated_at: Timestamp,
}

/// Which entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    pub fingerprint: Option<Fingerprint>,
    pub workflow: Option<WorkflowId>,
    pub kind: Option<String>,
    /// Those that were made at this moment or later …
    pub since: Option<Timestamp>,
    /// … and before this one. Both to the millisecond, as ids tell it.
    pub until: Option<Timestamp>,
}

/// The entries of one fault.
#[derive(Clone, Debug)]
pub struct FaultGroup {
    /// At most [`COUNT_MAX`] + 1.
    pub count: i64,
    pub first_seen_at: Timestamp,
    pub newest: DeadLetter,
}

fn read(row: &Row) -> Result<DeadLetter, StoreError> {
    Ok(DeadLetter {
        id: row.get("id")?,
        new: NewDeadLetter {
            fingerprint: row.parsed("fingerprint", |text| text.parse().ok())?,
            kind: row.get("kind")?,
            subject: row.get("subject")?,
            workflow: row.get("workflow_id")?,
            run: row.get("run_id")?,
            job: row.get("job_id")?,
            step: row.get("step_id")?,
            code: row.get("code")?,
            message: row.get("message")?,
        },
        times: row.get("times")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

/// A plugin's words as a column of text can hold them.
fn told(text: &str) -> String {
    text.chars()
        .take(MESSAGE_CHARS_MAX)
        .map(|char| if char == '\0' { char::REPLACEMENT_CHARACTER } else { char })
        .collect()
}

/// The smallest id that is made at this moment: ids begin with their milliseconds.
fn first_id_at(at: Timestamp) -> Uuid {
    uuid::Builder::from_unix_timestamp_millis(at.as_millis(), &[0; 10]).into_uuid()
}

/// Above every id that was made up to this moment: ids begin with their milliseconds.
#[must_use]
pub fn id_after(moment: Timestamp) -> DeadLetterId {
    DeadLetterId::from_uuid(first_id_at(moment.plus(std::time::Duration::from_millis(1))))
}

impl DeadLetterFilter {
    /// Ids from the first one on …
    fn lowest(&self) -> Uuid {
        self.since.map_or(Uuid::nil(), first_id_at)
    }

    /// … and below the second.
    fn bound(&self, page: PageRequest) -> Uuid {
        self.until.map_or(page.bound(), |until| first_id_at(until).min(page.bound()))
    }
}

impl Tx {
    /// Puts an entry on the list. Where one of its kind and subject stands, that one tells of this time instead.
    pub async fn record_dead_letter(&mut self, new: &NewDeadLetter, ambient: &Ambient) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into dead_letter (org_id, id, fingerprint, kind, subject, workflow_id, run_id, job_id, step_id, code, message,
                 times, created_at, updated_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 1, $12, $12)
             on conflict (org_id, kind, subject) do update set fingerprint = excluded.fingerprint,
                 job_id = coalesce(excluded.job_id, dead_letter.job_id), step_id = excluded.step_id, code = excluded.code,
                 message = excluded.message, times = dead_letter.times + 1, updated_at = excluded.updated_at"
        );
        let (org, id) = (self.org()?, DeadLetterId::new(ambient));
        let (code, message) = (told(&new.code), told(&new.message));
        let values = binds![
            org,
            id,
            new.fingerprint.as_str(),
            &new.kind,
            &new.subject,
            new.workflow,
            new.run,
            new.job,
            &new.step,
            &code,
            &message,
            ambient.now()
        ];
        self.execute(sql, values).await?;
        let Some(run) = new.run else { return Ok(()) };
        // The run's row says so too: what may be removed is found without a look at the list.
        let sql = sql!("update run set dead_letter = 1 where org_id = $1 and id = $2");
        self.execute(sql, binds![org, run]).await.map(drop)
    }

    pub async fn load_dead_letter(&mut self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError> {
        let sql = sql!(
            "select id, fingerprint, kind, subject, workflow_id, run_id, job_id, step_id, code, message, times, created_at, updated_at
             from dead_letter where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id]).await?.map(|row| read(&row)).transpose()
    }

    /// The entry with its row locked until the transaction ends.
    pub async fn lock_dead_letter(&mut self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError> {
        if self.is_postgres() {
            // SQLite has one writer.
            let sql = sql_postgres!("select id from dead_letter where org_id = $1 and id = $2 for update");
            let org = self.org()?;
            self.fetch(sql, binds![org, id]).await?;
        }
        self.load_dead_letter(id).await
    }

    /// The entry that stands for a run ([`RUN`] and its id) or for a job (its kind and key).
    pub async fn load_dead_letter_of(&mut self, kind: &str, subject: &str) -> Result<Option<DeadLetter>, StoreError> {
        let sql = sql!(
            "select id, fingerprint, kind, subject, workflow_id, run_id, job_id, step_id, code, message, times, created_at, updated_at
             from dead_letter where org_id = $1 and kind = $2 and subject = $3"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, kind, subject]).await?.map(|row| read(&row)).transpose()
    }

    /// Newest first. A statement for each leading filter, each with an index of its own.
    pub async fn list_dead_letters(
        &mut self,
        filter: &DeadLetterFilter,
        page: PageRequest,
    ) -> Result<Page<DeadLetter>, StoreError> {
        let (org, limit) = (self.org()?, page.fetch());
        let (lowest, below) = (filter.lowest(), filter.bound(page));
        // A fingerprint is of one kind, which leaves all of its entries or none.
        let rows = if let (Some(fingerprint), Some(workflow)) = (&filter.fingerprint, filter.workflow) {
            let sql = sql!(
                "select id, fingerprint, kind, subject, workflow_id, run_id, job_id, step_id, code, message, times, created_at,
                     updated_at
                 from dead_letter where org_id = $1 and fingerprint = $2 and workflow_id = $3 and id >= $4 and id < $5
                     and (cast($6 as text) is null or kind = $6)
                 order by id desc limit $7"
            );
            let values = binds![org, fingerprint.as_str(), workflow, lowest, below, &filter.kind, limit];
            self.fetch(sql, values).await?
        } else if let Some(fingerprint) = &filter.fingerprint {
            let sql = sql!(
                "select id, fingerprint, kind, subject, workflow_id, run_id, job_id, step_id, code, message, times, created_at,
                     updated_at
                 from dead_letter where org_id = $1 and fingerprint = $2 and id >= $3 and id < $4
                     and (cast($5 as text) is null or kind = $5)
                 order by id desc limit $6"
            );
            let values = binds![org, fingerprint.as_str(), lowest, below, &filter.kind, limit];
            self.fetch(sql, values).await?
        } else if let (Some(workflow), Some(kind)) = (filter.workflow, &filter.kind) {
            let sql = sql!(
                "select id, fingerprint, kind, subject, workflow_id, run_id, job_id, step_id, code, message, times, created_at,
                     updated_at
                 from dead_letter where org_id = $1 and workflow_id = $2 and kind = $3 and id >= $4 and id < $5
                 order by id desc limit $6"
            );
            self.fetch(sql, binds![org, workflow, kind, lowest, below, limit]).await?
        } else if let Some(workflow) = filter.workflow {
            let sql = sql!(
                "select id, fingerprint, kind, subject, workflow_id, run_id, job_id, step_id, code, message, times, created_at,
                     updated_at
                 from dead_letter where org_id = $1 and workflow_id = $2 and id >= $3 and id < $4 order by id desc limit $5"
            );
            self.fetch(sql, binds![org, workflow, lowest, below, limit]).await?
        } else if let Some(kind) = &filter.kind {
            let sql = sql!(
                "select id, fingerprint, kind, subject, workflow_id, run_id, job_id, step_id, code, message, times, created_at,
                     updated_at
                 from dead_letter where org_id = $1 and kind = $2 and id >= $3 and id < $4 order by id desc limit $5"
            );
            self.fetch(sql, binds![org, kind, lowest, below, limit]).await?
        } else {
            let sql = sql!(
                "select id, fingerprint, kind, subject, workflow_id, run_id, job_id, step_id, code, message, times, created_at,
                     updated_at
                 from dead_letter where org_id = $1 and id >= $2 and id < $3 order by id desc limit $4"
            );
            self.fetch(sql, binds![org, lowest, below, limit]).await?
        };
        let letters = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(letters, |letter| letter.id.uuid()))
    }

    /// The faults after `after`, by fingerprint. Each costs a search of the index and a count that ends at [`COUNT_MAX`], however
    /// many entries it has.
    pub async fn list_faults(
        &mut self,
        after: Option<&Fingerprint>,
        limit: u32,
    ) -> Result<Vec<FaultGroup>, StoreError> {
        let sql = sql!(
            "with recursive found (fingerprint) as (
                 select (select fingerprint from dead_letter where org_id = $1 and fingerprint > $2 order by fingerprint limit 1)
                 union all
                 select (select fingerprint from dead_letter where org_id = $1 and fingerprint > found.fingerprint
                     order by fingerprint limit 1)
                 from found where found.fingerprint is not null
             ),
             picked as (
                 select
                     (select count(*) from (select 1 as one from dead_letter
                         where org_id = $1 and fingerprint = found.fingerprint limit $3) as counted) as entries,
                     (select created_at from dead_letter where org_id = $1 and fingerprint = found.fingerprint
                         order by id limit 1) as first_seen_at,
                     (select id from dead_letter where org_id = $1 and fingerprint = found.fingerprint
                         order by id desc limit 1) as newest
                 from found where fingerprint is not null limit $4
             )
             select entries, first_seen_at, id, fingerprint, kind, subject, workflow_id, run_id, job_id, step_id, code, message, times,
                 created_at, updated_at
             from picked join dead_letter on org_id = $1 and id = newest order by fingerprint"
        );
        let after = after.map_or("", Fingerprint::as_str);
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, after, COUNT_MAX + 1, i64::from(limit)]).await?;
        let read_group = |row: &Row| {
            Ok(FaultGroup { count: row.get("entries")?, first_seen_at: row.get("first_seen_at")?, newest: read(row)? })
        };
        rows.iter().map(read_group).collect()
    }

    /// Workflows that the fault's newest entries are of.
    pub async fn list_fault_workflows(&mut self, fingerprint: &Fingerprint) -> Result<Vec<WorkflowId>, StoreError> {
        let sql = sql!(
            "select distinct workflow_id from (select workflow_id from dead_letter where org_id = $1 and fingerprint = $2
                 order by id desc limit $3) as newest
             where workflow_id is not null order by workflow_id limit $4"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, fingerprint.as_str(), COUNT_MAX, WORKFLOWS_MAX]).await?;
        rows.iter().map(|row| row.get("workflow_id")).collect()
    }

    /// Takes an entry off the list: `true` if it was there.
    pub async fn delete_dead_letter(&mut self, id: DeadLetterId) -> Result<bool, StoreError> {
        let org = self.org()?;
        let sql = sql!(
            "update run set dead_letter = 0 where org_id = $1
                 and id = (select run_id from dead_letter where org_id = $1 and id = $2)"
        );
        self.execute(sql, binds![org, id]).await?;
        let sql = sql!("delete from dead_letter where org_id = $1 and id = $2");
        Ok(self.execute(sql, binds![org, id]).await? > 0)
    }

    /// Takes the entry off the list that stands for a run or a job: `true` if it was there.
    pub async fn delete_dead_letter_of(&mut self, kind: &str, subject: &str) -> Result<bool, StoreError> {
        let org = self.org()?;
        let sql = sql!(
            "update run set dead_letter = 0 where org_id = $1
                 and id = (select run_id from dead_letter where org_id = $1 and kind = $2 and subject = $3)"
        );
        self.execute(sql, binds![org, kind, subject]).await?;
        let sql = sql!("delete from dead_letter where org_id = $1 and kind = $2 and subject = $3");
        Ok(self.execute(sql, binds![org, kind, subject]).await? > 0)
    }
}
