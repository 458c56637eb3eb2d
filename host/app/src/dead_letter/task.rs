//! Many dead letters at once: a job goes through them from the newest down, a batch in each transaction. What failed again after the
//! task began is newer than the task, and not touched by it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::fault::Fingerprint;
use bulkhead_model::id::{DeadLetterId, DeadLetterTaskId, OrgId, WorkflowId};
use bulkhead_model::job::{JobPayload, Lane, Lease, backoff};
use bulkhead_model::permission::{Caller, OrgScope, Permission, SystemReason, SystemScope};
use bulkhead_model::time::Timestamp;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::dead_letter::task::{DeadLetterAction, DeadLetterTask, TaskState};
use bulkhead_store::dead_letter::{DeadLetter, DeadLetterFilter, id_after};
use bulkhead_store::job::{Attempt, ClaimedJob, NewJob};
use bulkhead_store::page::{Page, PageRequest};
use bulkhead_store::{StoreError, Tx};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Decided, Decision, check_reason, count, decide, why_left};
use crate::engine::{ATTEMPT_DEADLINE, FAULT_BACKOFF, Left};
use crate::in_flight::Leash;
use crate::prune::{BATCH_BYTES, batch_after};
use crate::quota::NO_ROOM_PAUSE_MS;
use crate::run::{PRIORITY_RESUMED, RetryRun};
use crate::{App, AppError};

/// Entries that one task may name by id.
pub const IDS_MAX: usize = 1_000;
/// Tasks of one organization that go on at once; each is a job, and they would only wait for each other.
pub const TASKS_RUNNING_MAX: u32 = 10;
/// Entries decided in one transaction: so many that it takes about as long as a usual commit, whatever their runs take up.
const BATCH_MAX: usize = 20;
const BATCH_FIRST: usize = 4;
/// After so many batches the job lets others of its lane go first.
const BATCHES_MAX: u32 = 50;
/// The job is given up after this many attempts that ended badly; what was done is done.
const JOB_ATTEMPTS_MAX: u32 = 25;

/// Which entries, and how. Stored with the task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<WorkflowId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// These and no others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<DeadLetterId>,
    /// For resuming: the step to begin with; without one, the step whose failure ended each run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_step: Option<String>,
    /// For resuming: makes effects again that may have happened already.
    #[serde(default)]
    pub new_generation: bool,
    /// For discarding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Selection {
    fn filter(&self) -> DeadLetterFilter {
        DeadLetterFilter {
            fingerprint: self.fingerprint.clone(),
            workflow: self.workflow,
            kind: self.kind.clone(),
            since: self.since,
            until: self.until,
        }
    }

    /// # Errors
    /// `invalid-selection`, `invalid-reason`.
    fn check(&self, action: DeadLetterAction) -> Result<(), AppError> {
        let has_filter = self.filter() != DeadLetterFilter::default();
        if has_filter != self.ids.is_empty() {
            let message = "say which ones: either by `ids` or by at least one of `fingerprint`, `workflow`, `kind`, `since`, `until`";
            return Err(AppError::invalid("invalid-selection", "", message));
        }
        if self.ids.len() > IDS_MAX {
            let message = format!("at most {IDS_MAX} ids: select more by a filter");
            return Err(AppError::invalid("invalid-selection", "/ids", message));
        }
        if action == DeadLetterAction::Discard {
            check_reason(self.reason.as_deref().unwrap_or_default())?;
            if self.from_step.is_some() || self.new_generation {
                let message = "`from_step` and `new_generation` are for resuming";
                return Err(AppError::invalid("invalid-selection", "", message));
            }
        } else if self.reason.is_some() {
            return Err(AppError::invalid("invalid-selection", "/reason", "a reason is for discarding"));
        }
        Ok(())
    }
}

/// A batch as it was read.
struct Batch {
    task: DeadLetterTask,
    selection: Arc<Selection>,
    letters: Vec<DeadLetter>,
    /// Ids of the selection that this batch looks at, also of those that are gone.
    looked_at: i64,
}

/// What a batch's transaction works with.
struct BatchWrite {
    lease: Lease,
    /// The task as it was when the batch was read.
    seen: DeadLetterTask,
    prepared: Vec<Prepared>,
    cursor: Option<DeadLetterId>,
    looked_at: i64,
    ambient: Ambient,
}

/// One entry and what is to become of it; or why nothing can.
#[derive(Clone)]
enum Prepared {
    Decide(Box<DeadLetter>, Decision),
    Leave(String),
}

impl Prepared {
    fn begins_run(&self) -> bool {
        matches!(self, Self::Decide(_, Decision::Resume { again: Some(_), .. }))
    }
}

/// How a batch ended.
enum BatchEnd {
    /// There may be more; the transaction took so long, with its wait for others.
    More { took: Duration },
    /// Nothing is left to do, or somebody stopped it.
    Over,
}

fn task_job(task: DeadLetterTaskId, now: Timestamp) -> NewJob {
    NewJob {
        payload: JobPayload::WorkDeadLetters { task },
        priority: 100,
        run_at: now,
        dedupe_key: Some(task.to_string()),
        attempts_max: JOB_ATTEMPTS_MAX,
        group: None,
    }
}

/// How many of the entries, the first ones, go into one batch, by what their runs take up: at least one.
fn fitting(bytes: &[i64]) -> usize {
    let mut sum = 0_i64;
    let fits = |bytes: &&i64| {
        sum = sum.saturating_add(**bytes);
        sum <= BATCH_BYTES
    };
    bytes.iter().take_while(fits).count().max(1).min(bytes.len())
}

/// Each entry's own lock orders this against whoever else decides on it. Answers how many were decided; `None` when there is nothing
/// left to do, or somebody stopped the task.
fn write_batch<'t>(tx: &'t mut Tx, batch: &'t BatchWrite) -> BoxFuture<'t, Result<Option<u64>, AppError>> {
    Box::pin(decide_batch(tx, batch))
}

async fn decide_batch(tx: &mut Tx, batch: &BatchWrite) -> Result<Option<u64>, AppError> {
    let BatchWrite { lease, seen, prepared, cursor, looked_at, ambient } = batch;
    let (now, looked_at) = (ambient.now(), *looked_at);
    let Some(mut task) = tx.lock_dead_letter_task(seen.id).await?.filter(|task| task.state == TaskState::Running)
    else {
        tx.finish_job(lease, now).await?;
        return Ok(None);
    };
    if looked_at == 0 {
        tx.finish_job(lease, now).await?;
        end_task(tx, &mut task, TaskState::Done, ambient).await?;
        return Ok(None);
    }
    tx.hold_lease(lease, ATTEMPT_DEADLINE, now).await?;
    let (mut done, mut begun) = (0, 0);
    let mut skipped = looked_at - i64::try_from(prepared.len()).unwrap_or(0);
    if skipped > 0 {
        task.skipped_why = Some("somebody else decided already".to_owned());
    }
    for each in prepared {
        let why = match each {
            Prepared::Leave(why) => why.clone(),
            Prepared::Decide(letter, decision) => {
                match decide(tx, letter, decision, (&task.actor, PRIORITY_RESUMED), ambient).await {
                    Ok(decided) => {
                        done += 1;
                        begun += u32::from(matches!(decided, Decided::Run(..)));
                        continue;
                    }
                    Err(error) => {
                        let subject = &letter.new.subject;
                        why_left(&error).map(|why| format!("{subject}: {why}")).ok_or(error)?
                    }
                }
            }
        };
        skipped += 1;
        task.skipped_why = Some(why);
    }
    task.seen += looked_at;
    task.done += done;
    task.skipped += skipped;
    task.cursor = (*cursor).unwrap_or(task.cursor);
    task.updated_at = now;
    tx.update_dead_letter_task(&task).await?;
    if begun > 0 {
        tx.note_retries(begun).await?;
    }
    Ok(Some(done.unsigned_abs()))
}

/// Ends a task, with what came of it in the audit log and for those who listen.
async fn end_task(
    tx: &mut Tx,
    task: &mut DeadLetterTask,
    state: TaskState,
    ambient: &Ambient,
) -> Result<(), StoreError> {
    task.state = state;
    task.updated_at = ambient.now();
    task.finished_at = Some(ambient.now());
    tx.update_dead_letter_task(task).await?;
    let detail = json!({
        "action": task.action.as_str(), "state": state.as_str(), "asked_by": task.actor,
        "seen": task.seen, "done": task.done, "skipped": task.skipped,
    });
    tx.record_event("dead_letter_task.ended", &task.id.to_string(), &detail, ambient).await?;
    let event = AuditEvent {
        action: EventType::DeadLetterTaskEnded,
        target: task.id.to_string(),
        actor: bulkhead_model::permission::Actor::System(SystemReason::Worker),
        detail,
    };
    tx.record_audit(&event, ambient).await
}

impl App {
    /// Begins to resume or discard many entries in the background.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `invalid-selection`, `invalid-reason`; [`AppError::Conflict`] `too-many-tasks`.
    pub async fn start_dead_letter_task(
        &self,
        caller: &Caller,
        org: OrgId,
        action: DeadLetterAction,
        selection: Selection,
    ) -> Result<DeadLetterTask, AppError> {
        let scope = caller.authorize(org, Permission::RunsControl)?;
        selection.check(action)?;
        let (id, now) = (DeadLetterTaskId::new(self.ambient()), self.ambient().now());
        let task = DeadLetterTask {
            id,
            action,
            request: json!(selection).to_string(),
            actor: scope.actor().to_string(),
            state: TaskState::Running,
            // The first batch is read before anything is resumed: what fails again is above whatever comes after.
            cursor: id_after(now),
            seen: 0,
            done: 0,
            skipped: 0,
            skipped_why: None,
            created_at: now,
            updated_at: now,
            finished_at: None,
        };
        let event = AuditEvent {
            action: EventType::DeadLetterTaskStarted,
            target: id.to_string(),
            actor: scope.actor().clone(),
            detail: json!({ "action": action.as_str(), "selection": selection }),
        };
        let args = (task.clone(), event, self.ambient().clone());
        self.store()
            // Serializable: two that start at once count each other.
            .write(&scope, args, |tx, (task, event, ambient)| {
                Box::pin(async move {
                    if tx.count_running_dead_letter_tasks(TASKS_RUNNING_MAX).await? >= TASKS_RUNNING_MAX {
                        let message =
                            format!("{TASKS_RUNNING_MAX} tasks go on already: wait until one has ended, or stop one");
                        return Err(AppError::conflict("too-many-tasks", message));
                    }
                    tx.insert_dead_letter_task(task).await?;
                    tx.enqueue(&task_job(task.id, task.created_at), ambient).await?;
                    Ok(tx.record_audit(event, ambient).await?)
                })
            })
            .await?;
        self.wake_org(Lane::Bulk, org);
        Ok(task)
    }

    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn show_dead_letter_task(
        &self,
        caller: &Caller,
        org: OrgId,
        id: DeadLetterTaskId,
    ) -> Result<DeadLetterTask, AppError> {
        let scope = caller.authorize(org, Permission::RunsRead)?;
        self.store()
            .read(&scope, id, |tx, id| {
                Box::pin(async move { tx.load_dead_letter_task(*id).await?.ok_or(AppError::NotFound { what: "task" }) })
            })
            .await
    }

    /// Newest first.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_dead_letter_tasks(
        &self,
        caller: &Caller,
        org: OrgId,
        page: PageRequest,
    ) -> Result<Page<DeadLetterTask>, AppError> {
        let scope = caller.authorize(org, Permission::RunsRead)?;
        self.store()
            .read(&scope, page, |tx, page| Box::pin(async move { Ok(tx.list_dead_letter_tasks(*page).await?) }))
            .await
    }

    /// Stops a task after the batch that it is at. What it did stays done.
    ///
    /// # Errors
    /// [`AppError::NotFound`]; [`AppError::Conflict`] `task-finished`.
    pub async fn stop_dead_letter_task(
        &self,
        caller: &Caller,
        org: OrgId,
        id: DeadLetterTaskId,
    ) -> Result<DeadLetterTask, AppError> {
        let scope = caller.authorize(org, Permission::RunsControl)?;
        let args = (id, scope.actor().clone(), self.ambient().clone());
        self.store()
            .write_locked(&scope, args, |tx, (id, actor, ambient)| {
                Box::pin(async move {
                    let found = tx.lock_dead_letter_task(*id).await?;
                    let mut task = found.ok_or(AppError::NotFound { what: "task" })?;
                    if task.state != TaskState::Running {
                        return Err(AppError::conflict("task-finished", "the task has ended already"));
                    }
                    end_task(tx, &mut task, TaskState::Stopped, ambient).await?;
                    tx.remove_waiting_job("work_dead_letters", &id.to_string()).await?;
                    let event = AuditEvent {
                        action: EventType::DeadLetterTaskStopped,
                        target: id.to_string(),
                        actor: actor.clone(),
                        detail: json!({
                            "state": { "before": TaskState::Running.as_str(), "after": task.state.as_str() },
                            "seen": task.seen,
                            "done": task.done,
                        }),
                    };
                    tx.record_audit(&event, ambient).await?;
                    Ok(task)
                })
            })
            .await
    }

    /// Goes through a task's entries while its job is held.
    pub(crate) async fn work_dead_letters(&self, job: &ClaimedJob, id: DeadLetterTaskId, leash: &Leash) -> Left {
        let lease = &job.lease;
        let scope = SystemScope::new(SystemReason::Worker).for_org(lease.org);
        if lease.attempt > job.attempts_max {
            let why = "its worker died, or the store failed, at every attempt".to_owned();
            return self.give_up_task(&scope, lease, id, why).await;
        }
        // What failed may have been too much for one transaction.
        let mut batch_max = if lease.attempt > 1 { 1 } else { BATCH_FIRST };
        for _ in 0..BATCHES_MAX {
            if leash.hand_back() {
                return self.release(lease, Duration::ZERO, Attempt::DoesNotCount, None).await;
            }
            match self.work_batch(&scope, lease, id, batch_max).await {
                Ok(BatchEnd::More { took }) => batch_max = batch_after(took, batch_max, BATCH_MAX),
                Ok(BatchEnd::Over) => return Left::Settled,
                Err(AppError::Store(StoreError::LostLease)) => return Left::Lost,
                // The organization's work waits already, or its history is full: the rest comes when there is room.
                Err(error @ (AppError::Busy { .. } | AppError::TooMany { .. } | AppError::Quota(_))) => {
                    let pause_ms = match &error {
                        AppError::Busy { retry_after_ms, .. } | AppError::TooMany { retry_after_ms, .. } => {
                            *retry_after_ms
                        }
                        _ => NO_ROOM_PAUSE_MS,
                    };
                    let pause = Duration::from_millis(pause_ms);
                    return self.release(lease, pause, Attempt::DoesNotCount, Some(error.to_string())).await;
                }
                Err(error) => {
                    tracing::error!(task = %id, error = &error as &dyn std::error::Error, "a batch of dead letters failed; trying again");
                    let pause = backoff(lease.attempt, FAULT_BACKOFF.0, FAULT_BACKOFF.1, self.ambient());
                    return self.release(lease, pause, Attempt::Counts, Some(error.to_string())).await;
                }
            }
        }
        self.release(lease, Duration::ZERO, Attempt::StartsAnew, None).await
    }

    /// Decides on the next entries, at most `batch_max`.
    async fn work_batch(
        &self,
        scope: &OrgScope,
        lease: &Lease,
        id: DeadLetterTaskId,
        batch_max: usize,
    ) -> Result<BatchEnd, AppError> {
        let read = self
            .store()
            .read(scope, (id, batch_max), |tx, (id, batch_max)| {
                Box::pin(async move { read_batch(tx, *id, *batch_max).await })
            })
            .await?;
        let Some(Batch { task, selection, letters, looked_at }) = read else {
            let args = (lease.clone(), self.ambient().now());
            self.store()
                .write_locked(scope, args, |tx, (lease, now)| Box::pin(async move { tx.finish_job(lease, *now).await }))
                .await?;
            return Ok(BatchEnd::Over);
        };
        // Runs that begin again are starts as well; a batch counts as one.
        let place = if task.action == DeadLetterAction::Resume { Some(self.admit(scope, None).await?) } else { None };
        let cursor = letters.last().filter(|_| selection.ids.is_empty()).map(|letter| letter.id);
        let mut prepared = Vec::with_capacity(letters.len());
        for letter in letters {
            prepared.push(self.prepare_decision(scope, task.action, &selection, letter).await?);
        }
        if prepared.iter().any(Prepared::begins_run) {
            self.require_room(scope).await?;
        }
        let (action, ambient) = (task.action.as_str(), self.ambient().clone());
        let batch = BatchWrite { lease: lease.clone(), seen: task, prepared, cursor, looked_at, ambient };
        let began = Instant::now();
        let written = match &place {
            Some(place) => place.write(self.store(), scope, batch, write_batch).await?,
            // Each entry's own lock orders this against whoever else decides on it.
            None => self.store().write_locked(scope, batch, write_batch).await?,
        };
        let Some(done) = written else { return Ok(BatchEnd::Over) };
        count(action, done);
        self.wake_org(Lane::Interactive, scope.org());
        Ok(BatchEnd::More { took: began.elapsed() })
    }

    async fn prepare_decision(
        &self,
        scope: &OrgScope,
        action: DeadLetterAction,
        selection: &Selection,
        letter: DeadLetter,
    ) -> Result<Prepared, AppError> {
        let decision = match action {
            DeadLetterAction::Discard => Decision::Discard { reason: selection.reason.clone().unwrap_or_default() },
            DeadLetterAction::Resume => {
                let retry =
                    RetryRun { from_step: selection.from_step.clone(), new_generation: selection.new_generation };
                match self.definition_of(scope, &letter).await {
                    Ok(again) => Decision::Resume { again, retry },
                    Err(error) => {
                        let subject = &letter.new.subject;
                        let why = why_left(&error).map(|why| format!("{subject}: {why}")).ok_or(error)?;
                        return Ok(Prepared::Leave(why));
                    }
                }
            }
        };
        Ok(Prepared::Decide(Box::new(letter), decision))
    }

    async fn give_up_task(&self, scope: &OrgScope, lease: &Lease, id: DeadLetterTaskId, why: String) -> Left {
        let args = (lease.clone(), id, why, self.ambient().clone());
        let given_up = self
            .store()
            .write_locked(scope, args, |tx, (lease, id, why, ambient)| {
                Box::pin(async move {
                    tx.finish_job(lease, ambient.now()).await?;
                    let Some(mut task) = tx.lock_dead_letter_task(*id).await? else { return Ok(()) };
                    if task.state == TaskState::Running {
                        task.skipped_why = Some(why.clone());
                        end_task(tx, &mut task, TaskState::Stopped, ambient).await?;
                    }
                    Ok::<_, AppError>(())
                })
            })
            .await;
        match given_up {
            Ok(()) => Left::Settled,
            Err(AppError::Store(StoreError::LostLease)) => Left::Lost,
            Err(error) => self.release(lease, FAULT_BACKOFF.1, Attempt::Counts, Some(error.to_string())).await,
        }
    }
}

/// The next entries, at most `batch_max` and no more than their runs leave room for. `None` when there is nothing to do any more.
async fn read_batch(tx: &mut Tx, id: DeadLetterTaskId, batch_max: usize) -> Result<Option<Batch>, AppError> {
    let Some(task) = tx.load_dead_letter_task(id).await?.filter(|task| task.state == TaskState::Running) else {
        return Ok(None);
    };
    let selection: Selection = serde_json::from_str(&task.request)
        .map_err(|error| StoreError::Corrupt { what: "dead letter task", why: error.to_string() })?;
    // Also places of entries that are gone.
    let mut found: Vec<Option<DeadLetter>> = Vec::with_capacity(batch_max);
    if selection.ids.is_empty() {
        let page =
            PageRequest { before: Some(task.cursor.uuid()), limit: u32::try_from(batch_max).unwrap_or(u32::MAX) };
        found.extend(tx.list_dead_letters(&selection.filter(), page).await?.items.into_iter().map(Some));
    } else {
        let from = usize::try_from(task.seen).unwrap_or(usize::MAX);
        for id in selection.ids.iter().skip(from).take(batch_max) {
            found.push(tx.load_dead_letter(*id).await?);
        }
    }
    let mut bytes = Vec::with_capacity(found.len());
    for letter in &found {
        bytes.push(match letter.as_ref().and_then(|letter| letter.new.run) {
            Some(run) => tx.load_run_bytes(run).await?.unwrap_or_default(),
            None => 0,
        });
    }
    found.truncate(fitting(&bytes));
    let looked_at = i64::try_from(found.len()).unwrap_or(i64::MAX);
    let letters = found.into_iter().flatten().collect();
    Ok(Some(Batch { task, selection: Arc::new(selection), letters, looked_at }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_bounded_by_what_its_runs_take_up_and_never_empty() {
        let large = BATCH_BYTES;
        assert_eq!(fitting(&[]), 0);
        assert_eq!(fitting(&[1; 20]), 20);
        assert_eq!(fitting(&[large, 1, 1]), 1);
        assert_eq!(fitting(&[large * 50, 1]), 1, "one that is larger goes alone");
        assert_eq!(fitting(&[large / 2, large / 2, 0, 1]), 3);
        assert_eq!(fitting(&[i64::MAX, i64::MAX]), 1);
    }
}
