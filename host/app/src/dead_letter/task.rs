//! Many dead letters at once: a job goes through them from the newest down, a batch in each transaction. What failed again after the
//! task began is newer than the task, and not touched by it.

use std::sync::Arc;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::audit::{AuditEvent, EventType};
use bulkhead_model::fault::Fingerprint;
use bulkhead_model::id::{DeadLetterId, DeadLetterTaskId, OrgId, WorkflowId};
use bulkhead_model::job::{JobPayload, Lane, Lease, backoff};
use bulkhead_model::permission::{Caller, OrgScope, Permission, SystemReason, SystemScope};
use bulkhead_model::time::Timestamp;
use bulkhead_store::dead_letter::task::{DeadLetterAction, DeadLetterTask, TaskState};
use bulkhead_store::dead_letter::{DeadLetter, DeadLetterFilter, id_after};
use bulkhead_store::job::{Attempt, ClaimedJob, NewJob};
use bulkhead_store::page::{Page, PageRequest};
use bulkhead_store::{StoreError, Tx};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Decision, check_reason, count, decide, why_left};
use crate::engine::{ATTEMPT_DEADLINE, FAULT_BACKOFF, Left};
use crate::in_flight::Leash;
use crate::run::{PRIORITY_RESUMED, RetryRun};
use crate::{App, AppError};

/// Entries that one task may name by id.
pub const IDS_MAX: usize = 1_000;
/// Entries decided in one transaction.
const BATCH: u32 = 20;
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

/// One entry and what is to become of it; or why nothing can.
#[derive(Clone)]
enum Prepared {
    Decide(Box<DeadLetter>, Decision),
    Leave(String),
}

/// How a batch ended.
enum BatchEnd {
    More(u64),
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

async fn write_batch(
    tx: &mut Tx,
    lease: &Lease,
    seen: &DeadLetterTask,
    prepared: &[Prepared],
    cursor: Option<DeadLetterId>,
    looked_at: i64,
    ambient: &Ambient,
) -> Result<BatchEnd, AppError> {
    let now = ambient.now();
    let Some(mut task) = tx.lock_dead_letter_task(seen.id).await?.filter(|task| task.state == TaskState::Running)
    else {
        tx.finish_job(lease).await?;
        return Ok(BatchEnd::Over);
    };
    if looked_at == 0 {
        tx.finish_job(lease).await?;
        end_task(tx, &mut task, TaskState::Done, ambient).await?;
        return Ok(BatchEnd::Over);
    }
    tx.hold_lease(lease, ATTEMPT_DEADLINE, now).await?;
    let (mut done, mut skipped) = (0, looked_at - i64::try_from(prepared.len()).unwrap_or(0));
    if skipped > 0 {
        task.skipped_why = Some("somebody else decided already".to_owned());
    }
    for each in prepared {
        let why = match each {
            Prepared::Leave(why) => why.clone(),
            Prepared::Decide(letter, decision) => {
                match decide(tx, letter, decision, (&task.actor, PRIORITY_RESUMED), ambient).await {
                    Ok(_) => {
                        done += 1;
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
    task.cursor = cursor.unwrap_or(task.cursor);
    task.updated_at = now;
    tx.update_dead_letter_task(&task).await?;
    Ok(BatchEnd::More(done.unsigned_abs()))
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
    /// [`AppError::Invalid`] `invalid-selection`, `invalid-reason`.
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
            .write_locked(&scope, args, |tx, (task, event, ambient)| {
                Box::pin(async move {
                    tx.insert_dead_letter_task(task).await?;
                    tx.enqueue(&task_job(task.id, task.created_at), ambient).await?;
                    Ok::<_, AppError>(tx.record_audit(event, ambient).await?)
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
                        detail: json!({ "seen": task.seen, "done": task.done }),
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
        for _ in 0..BATCHES_MAX {
            if leash.hand_back() {
                return self.release(lease, std::time::Duration::ZERO, Attempt::DoesNotCount, None).await;
            }
            match self.work_batch(&scope, lease, id).await {
                Ok(BatchEnd::More(_)) => {}
                Ok(BatchEnd::Over) => return Left::Settled,
                Err(AppError::Store(StoreError::LostLease)) => return Left::Lost,
                // The organization's work waits already: the rest comes when there is room.
                Err(AppError::Busy { retry_after_ms, .. } | AppError::TooMany { retry_after_ms, .. }) => {
                    let pause = std::time::Duration::from_millis(retry_after_ms);
                    return self.release(lease, pause, Attempt::DoesNotCount, None).await;
                }
                Err(error) => {
                    tracing::error!(task = %id, error = &error as &dyn std::error::Error, "a batch of dead letters failed; trying again");
                    let pause = backoff(lease.attempt, FAULT_BACKOFF.0, FAULT_BACKOFF.1, self.ambient());
                    return self.release(lease, pause, Attempt::Counts, Some(error.to_string())).await;
                }
            }
        }
        self.release(lease, std::time::Duration::ZERO, Attempt::StartsAnew, None).await
    }

    async fn work_batch(&self, scope: &OrgScope, lease: &Lease, id: DeadLetterTaskId) -> Result<BatchEnd, AppError> {
        let read = self.store().read(scope, id, |tx, id| Box::pin(async move { read_batch(tx, *id).await })).await?;
        let Some(Batch { task, selection, letters, looked_at }) = read else {
            let lease = lease.clone();
            self.store()
                .write_locked(scope, lease, |tx, lease| Box::pin(async move { tx.finish_job(lease).await }))
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
        let action = task.action.as_str();
        let args = (lease.clone(), task, prepared, cursor, looked_at, self.ambient().clone());
        // Each entry's own lock orders this against whoever else decides on it.
        let end = self
            .store()
            .write_locked(scope, args, |tx, (lease, task, prepared, cursor, looked_at, ambient)| {
                Box::pin(async move { write_batch(tx, lease, task, prepared, *cursor, *looked_at, ambient).await })
            })
            .await?;
        drop(place);
        if let BatchEnd::More(done) = end {
            count(action, done);
            self.wake_org(Lane::Interactive, scope.org());
        }
        Ok(end)
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
                    tx.finish_job(lease).await?;
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

/// `None` when there is nothing to do any more.
async fn read_batch(tx: &mut Tx, id: DeadLetterTaskId) -> Result<Option<Batch>, AppError> {
    let Some(task) = tx.load_dead_letter_task(id).await?.filter(|task| task.state == TaskState::Running) else {
        return Ok(None);
    };
    let selection: Selection = serde_json::from_str(&task.request)
        .map_err(|error| StoreError::Corrupt { what: "dead letter task", why: error.to_string() })?;
    let (letters, looked_at) = if selection.ids.is_empty() {
        let page = PageRequest { before: Some(task.cursor.uuid()), limit: BATCH };
        let letters = tx.list_dead_letters(&selection.filter(), page).await?.items;
        let looked_at = letters.len();
        (letters, looked_at)
    } else {
        let from = usize::try_from(task.seen).unwrap_or(usize::MAX).min(selection.ids.len());
        let ids = &selection.ids[from..selection.ids.len().min(from + BATCH as usize)];
        let mut letters = Vec::with_capacity(ids.len());
        for id in ids {
            letters.extend(tx.load_dead_letter(*id).await?);
        }
        (letters, ids.len())
    };
    let looked_at = i64::try_from(looked_at).unwrap_or(i64::MAX);
    Ok(Some(Batch { task, selection: Arc::new(selection), letters, looked_at }))
}
