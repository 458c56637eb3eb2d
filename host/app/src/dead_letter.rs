//! Dead letters: what failed for good, in groups by fault, resumed or discarded one by one or many at once.
//!
//! Failed runs stand here beside jobs that were given up: to whoever decides they are the same, something that goes on only if
//! somebody says so. A run that its definition ended as failed (`stop`) does not.

mod task;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::fault::Fingerprint;
use bulkhead_model::id::{DeadLetterId, OrgId, RunId, WorkflowId};
use bulkhead_model::job::Lane;
use bulkhead_model::permission::{Actor, Caller, OrgScope, Permission};
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::dead_letter::{self, DeadLetter, DeadLetterFilter, FaultGroup};
use bulkhead_store::page::{Page, PageRequest};
use bulkhead_store::{StoreError, Tx};
use serde_json::json;

pub use self::task::{IDS_MAX, Selection, TASKS_RUNNING_MAX};
use crate::run::record::log_event;
use crate::run::{BeginAgain, PRIORITY, RetryRun, begin_again, retried};
use crate::schedule;
use crate::{App, AppError};

/// Characters of the reason for which something is discarded.
const REASON_LEN_MAX: usize = 500;

/// A fault with what it affects.
#[derive(Clone, Debug)]
pub struct Fault {
    pub group: FaultGroup,
    /// At most twenty, of its newest entries.
    pub workflows: Vec<WorkflowId>,
}

/// What is to become of an entry.
#[derive(Clone)]
enum Decision {
    Resume { again: Option<Box<BeginAgainArgs>>, retry: RetryRun },
    Discard { reason: String },
}

/// What beginning a run again needs that is read before the transaction.
#[derive(Clone)]
struct BeginAgainArgs {
    definition: std::sync::Arc<bulkhead_model::workflow::Definition>,
}

/// What became of one.
enum Decided {
    /// The run began again.
    Run(RunId, crate::run::BegunAgain),
    /// Another thing was resumed or discarded.
    Other,
}

fn check_reason(reason: &str) -> Result<(), AppError> {
    if reason.trim().is_empty() || reason.chars().count() > REASON_LEN_MAX {
        let message = format!("a reason has 1 to {REASON_LEN_MAX} characters");
        return Err(AppError::invalid("invalid-reason", "/reason", message));
    }
    Ok(())
}

/// Carries a decision out in that transaction. A refusal (not found, a conflict, invalid, a row that does not decode) comes before
/// anything is written, so that the transaction may go on with another entry.
async fn decide(
    tx: &mut Tx,
    letter: &DeadLetter,
    decision: &Decision,
    (by, priority): (&str, i64),
    ambient: &Ambient,
) -> Result<Decided, AppError> {
    let gone = || AppError::NotFound { what: "dead letter" };
    let new = &letter.new;
    match (decision, new.run.filter(|_| new.kind == dead_letter::RUN)) {
        (Decision::Resume { again, retry }, Some(run)) => {
            let args = again.as_ref().ok_or(AppError::NotFound { what: "workflow version" })?;
            let definition = std::sync::Arc::clone(&args.definition);
            let again = BeginAgain { run, retry: retry.clone(), definition, letter: Some(letter.id), priority };
            Ok(Decided::Run(run, begin_again(tx, &again, by, ambient).await?))
        }
        (Decision::Resume { .. }, None) => {
            let letter = lock_entry(tx, letter).await?.ok_or_else(gone)?;
            if let Some((workflow, trigger)) = schedule_of(&letter) {
                if let Some(job) = letter.new.job {
                    tx.delete_dead_job(job).await?;
                }
                schedule::rearm(tx, workflow, trigger, ambient).await?;
            } else if let Some(job) = letter.new.job {
                tx.revive_job(job, ambient.now()).await?;
            }
            tx.delete_dead_letter(letter.id).await?;
            Ok(Decided::Other)
        }
        (Decision::Discard { reason }, Some(id)) => {
            tx.lock_job("advance_run", &id.to_string()).await?;
            let mut run = tx.lock_run(id).await?;
            if !tx.delete_dead_letter(letter.id).await? {
                return Err(gone());
            }
            log_event(tx, &mut run, "discarded", &json!({ "by": by, "reason": reason }), ambient.now()).await?;
            tx.update_run(&run).await?;
            if let Some(job) = new.job {
                tx.delete_dead_job(job).await?;
            }
            Ok(Decided::Other)
        }
        (Decision::Discard { .. }, None) => {
            let letter = lock_entry(tx, letter).await?.ok_or_else(gone)?;
            if let Some(job) = letter.new.job {
                tx.delete_dead_job(job).await?;
            }
            tx.delete_dead_letter(letter.id).await?;
            Ok(Decided::Other)
        }
    }
}

/// The schedule that an entry is about.
fn schedule_of(letter: &DeadLetter) -> Option<(WorkflowId, &str)> {
    let new = &letter.new;
    new.workflow.zip(new.step.as_deref()).filter(|_| new.kind == schedule::JOB_KIND)
}

/// A job's entry as it stands; whoever else decides about it waits. Rows of a schedule are taken in one order, here as wherever it is
/// saved, fires or stalls: its own, its job's, its entry's.
async fn lock_entry(tx: &mut Tx, letter: &DeadLetter) -> Result<Option<DeadLetter>, StoreError> {
    if let Some((workflow, trigger)) = schedule_of(letter)
        && tx.lock_schedule(workflow, trigger).await?.is_some()
    {
        return tx.load_dead_letter(letter.id).await;
    }
    tx.lock_dead_letter(letter.id).await
}

fn count(what: &'static str, by: u64) {
    metrics::counter!("bulkhead_dead_letters_decided_total", "action" => what).increment(by);
}

impl App {
    /// The faults after `after`, by fingerprint, with what they affect.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_faults(
        &self,
        caller: &Caller,
        org: OrgId,
        after: Option<Fingerprint>,
        limit: u32,
    ) -> Result<Vec<Fault>, AppError> {
        let scope = caller.authorize(org, Permission::RunsRead)?;
        self.store()
            .read(&scope, (after, limit), |tx, (after, limit)| {
                Box::pin(async move {
                    let mut faults = Vec::new();
                    for group in tx.list_faults(after.as_ref(), *limit).await? {
                        let workflows = tx.list_fault_workflows(&group.newest.new.fingerprint).await?;
                        faults.push(Fault { group, workflows });
                    }
                    Ok(faults)
                })
            })
            .await
    }

    /// Newest first.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_dead_letters(
        &self,
        caller: &Caller,
        org: OrgId,
        filter: DeadLetterFilter,
        page: PageRequest,
    ) -> Result<Page<DeadLetter>, AppError> {
        let scope = caller.authorize(org, Permission::RunsRead)?;
        self.store()
            .read(&scope, (filter, page), |tx, (filter, page)| {
                Box::pin(async move { Ok(tx.list_dead_letters(filter, *page).await?) })
            })
            .await
    }

    /// # Errors
    /// [`AppError::NotFound`], also once it was resumed or discarded.
    pub async fn show_dead_letter(
        &self,
        caller: &Caller,
        org: OrgId,
        id: DeadLetterId,
    ) -> Result<DeadLetter, AppError> {
        let scope = caller.authorize(org, Permission::RunsRead)?;
        self.require_dead_letter(&scope, id).await
    }

    async fn require_dead_letter(&self, scope: &OrgScope, id: DeadLetterId) -> Result<DeadLetter, AppError> {
        self.store()
            .read(scope, id, |tx, id| {
                Box::pin(
                    async move { tx.load_dead_letter(*id).await?.ok_or(AppError::NotFound { what: "dead letter" }) },
                )
            })
            .await
    }

    /// The definition that a failed run is begun again with; `None` for an entry that is no run's.
    async fn definition_of(
        &self,
        scope: &OrgScope,
        letter: &DeadLetter,
    ) -> Result<Option<Box<BeginAgainArgs>>, AppError> {
        let Some(run) = letter.new.run.filter(|_| letter.new.kind == dead_letter::RUN) else { return Ok(None) };
        let found = self
            .store()
            .read(scope, run, |tx, run| Box::pin(async move { tx.load_run_summary(*run).await }))
            .await?
            .ok_or(AppError::NotFound { what: "run" })?;
        let definition = self.definition(scope, found.workflow, found.version).await?;
        Ok(Some(Box::new(BeginAgainArgs { definition })))
    }

    /// Resumes one: a failed run begins again from the step that ended it or the one named, a job that was given up is ready again.
    ///
    /// # Errors
    /// [`AppError::NotFound`] when somebody else decided already; [`AppError::Conflict`] `run-not-finished`, `run-history-full`;
    /// [`AppError::Invalid`] `unknown-step`; [`AppError::TooMany`]; [`AppError::Quota`].
    pub async fn resume_dead_letter(
        &self,
        caller: &Caller,
        org: OrgId,
        id: DeadLetterId,
        retry: RetryRun,
    ) -> Result<(), AppError> {
        let scope = caller.authorize(org, Permission::RunsControl)?;
        let place = self.admit(&scope, None).await?;
        let letter = self.require_dead_letter(&scope, id).await?;
        let again = self.definition_of(&scope, &letter).await?;
        if again.is_some() {
            self.require_room(&scope).await?;
        }
        let args = (letter, Decision::Resume { again, retry }, scope.actor().clone(), self.ambient().clone());
        place
            // The lock of what the entry is about orders this against others who decide.
            .write(self.store(), &scope, args, |tx, (letter, decision, actor, ambient)| {
                Box::pin(async move { write_decision(tx, letter, decision, actor, ambient).await })
            })
            .await?;
        count("resume", 1);
        self.wake_workers();
        self.wake_org(Lane::Interactive, org);
        Ok(())
    }

    /// Takes one off the list for good: what failed stays failed, and says why in its log.
    ///
    /// # Errors
    /// [`AppError::NotFound`] when somebody else decided already; [`AppError::Invalid`] `invalid-reason`.
    pub async fn discard_dead_letter(
        &self,
        caller: &Caller,
        org: OrgId,
        id: DeadLetterId,
        reason: String,
    ) -> Result<(), AppError> {
        let scope = caller.authorize(org, Permission::RunsControl)?;
        check_reason(&reason)?;
        let letter = self.require_dead_letter(&scope, id).await?;
        self.decide_one(&scope, letter, Decision::Discard { reason }).await?;
        count("discard", 1);
        Ok(())
    }

    async fn decide_one(&self, scope: &OrgScope, letter: DeadLetter, decision: Decision) -> Result<(), AppError> {
        let args = (letter, decision, scope.actor().clone(), self.ambient().clone());
        // The lock of what the entry is about orders this against others who decide.
        self.store()
            .write_locked(scope, args, |tx, (letter, decision, actor, ambient)| {
                Box::pin(async move { write_decision(tx, letter, decision, actor, ambient).await })
            })
            .await
    }
}

/// Decides on one entry, and says who did.
async fn write_decision(
    tx: &mut Tx,
    letter: &DeadLetter,
    decision: &Decision,
    actor: &Actor,
    ambient: &Ambient,
) -> Result<(), AppError> {
    let decided = decide(tx, letter, decision, (&actor.to_string(), PRIORITY), ambient).await?;
    tx.record_audit(&audit_of(letter, decision, &decided, actor), ambient).await?;
    if let Decided::Run(..) = decided {
        tx.note_retries(1).await?;
    }
    Ok(())
}

fn audit_of(letter: &DeadLetter, decision: &Decision, decided: &Decided, actor: &Actor) -> AuditEvent {
    if let Decided::Run(run, begun) = decided {
        return retried(*run, begun, actor);
    }
    let (action, reason) = match decision {
        Decision::Resume { .. } => (EventType::DeadLetterResumed, None),
        Decision::Discard { reason } => (EventType::DeadLetterDiscarded, Some(reason)),
    };
    AuditEvent {
        action,
        target: letter.id.to_string(),
        actor: actor.clone(),
        detail: json!({
            "kind": letter.new.kind, "subject": letter.new.subject, "fingerprint": letter.new.fingerprint, "reason": reason,
        }),
    }
}

/// Why an entry is left where it is; `None` where the store itself failed, which is not the entry's fault.
fn why_left(error: &AppError) -> Option<String> {
    match error {
        AppError::NotFound { .. } | AppError::Conflict { .. } | AppError::Invalid { .. } => Some(error.to_string()),
        AppError::Store(error @ StoreError::Corrupt { .. }) => Some(error.to_string()),
        _ => None,
    }
}
