//! How long what has ended is kept: shown, changed, tried out. The job that acts on it is [`prune`](crate::prune).

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::id::{EventId, OrgId};
use bulkhead_model::permission::{Caller, Permission};
use bulkhead_model::retention::{Ended, EndedRun, RetentionPolicy};
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::retention::{History, StoredPolicy};
use serde_json::json;

use crate::prune::{self, Line};
use crate::{App, AppError, Problem};

/// Of each class a preview counts at most so many.
pub const PREVIEW_MAX: u32 = 10_000;

/// An organization's policy, and what came of it.
#[derive(Clone, Debug)]
pub struct RetentionDetail {
    pub policy: RetentionPolicy,
    /// Rises with every change; 0 while the organization has the platform's default.
    pub revision: i64,
    /// `None` until the job has looked for the first time.
    pub history: Option<History>,
}

/// What a policy would remove now. Counts that reach [`PREVIEW_MAX`] mean "or more".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removable {
    pub succeeded: i64,
    pub cancelled: i64,
    /// Dead letters included, where the policy names a time for them.
    pub failed: i64,
    pub calls: i64,
    pub events: i64,
    /// What the counted runs and calls take up.
    pub bytes: i64,
}

fn policy_of(stored: Option<StoredPolicy>) -> (RetentionPolicy, i64) {
    stored.map_or_else(|| (RetentionPolicy::default(), 0), |stored| (stored.policy, stored.revision))
}

fn check(policy: &RetentionPolicy) -> Result<(), AppError> {
    policy.check().map_err(|wrong| {
        let problems: Vec<Problem> = wrong
            .iter()
            .map(|error| Problem::new(format!("/{}", error.field), "out-of-range", error.to_string()))
            .collect();
        let message = "a time of the policy is out of its bounds".to_owned();
        AppError::Invalid { code: "invalid-retention", message, problems }
    })
}

impl App {
    /// The organization's policy, and what its job found and removed.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn show_retention(&self, caller: &Caller, org: OrgId) -> Result<RetentionDetail, AppError> {
        let scope = caller.authorize(org, Permission::OrgRead)?;
        self.store()
            .read(&scope, (), |tx, ()| {
                Box::pin(async move {
                    let (policy, revision) = policy_of(tx.load_retention().await?);
                    Ok(RetentionDetail { policy, revision, history: tx.load_history().await? })
                })
            })
            .await
    }

    /// Replaces the organization's policy, if it is still the one that the caller saw; the job that acts on it looks at once.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `invalid-retention`; [`AppError::StaleVersion`].
    pub async fn replace_retention(
        &self,
        caller: &Caller,
        org: OrgId,
        seen: i64,
        policy: RetentionPolicy,
    ) -> Result<RetentionDetail, AppError> {
        let scope = caller.authorize(org, Permission::RetentionWrite)?;
        check(&policy)?;
        let args = (policy, seen, scope.actor().clone(), self.ambient().clone());
        let detail = self
            .store()
            .write(&scope, args, |tx, (policy, seen, actor, ambient)| {
                Box::pin(async move {
                    let (before, revision) = policy_of(tx.load_retention().await?);
                    if revision != *seen {
                        return Err(AppError::StaleVersion);
                    }
                    let history = tx.load_history().await?;
                    if before == *policy && revision > 0 {
                        return Ok(RetentionDetail { policy: before, revision, history });
                    }
                    if !tx.save_retention(policy, revision, ambient.now()).await? {
                        return Err(AppError::StaleVersion);
                    }
                    let event = AuditEvent {
                        action: EventType::HistoryRetentionChanged,
                        target: tx.org()?.to_string(),
                        actor: actor.clone(),
                        detail: json!({ "before": before, "after": policy }),
                    };
                    tx.record_audit(&event, ambient).await?;
                    prune::look_now(tx, ambient).await?;
                    Ok(RetentionDetail { policy: policy.clone(), revision: revision + 1, history })
                })
            })
            .await?;
        self.wake_workers();
        Ok(detail)
    }

    /// What a policy would remove if it were in force and the job looked now. Changes nothing.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `invalid-retention`; a refusal; the store's.
    pub async fn preview_retention(
        &self,
        caller: &Caller,
        org: OrgId,
        policy: RetentionPolicy,
    ) -> Result<Removable, AppError> {
        let scope = caller.authorize(org, Permission::OrgRead)?;
        check(&policy)?;
        let now = self.ambient().now();
        let mut removable = Removable::default();
        for ended in Ended::ALL {
            let mut line = Line::new(ended);
            let mut rows = 0;
            while rows < i64::from(PREVIEW_MAX) && self.fill_line(&scope, &mut line, &policy, None, now).await? {
                while let Some(candidate) = line.take().filter(|_| rows < i64::from(PREVIEW_MAX)) {
                    rows += 1;
                    removable.bytes += candidate.bytes();
                }
            }
            match ended {
                Ended::Run(EndedRun::Succeeded) => removable.succeeded = rows,
                Ended::Run(EndedRun::Cancelled) => removable.cancelled = rows,
                Ended::Run(EndedRun::Failed | EndedRun::DeadLetter) => removable.failed += rows,
                Ended::Call => removable.calls = rows,
            }
        }
        let before = EventId::first_at(policy.events_before(now));
        removable.events = self
            .store()
            .read(&scope, before, |tx, before| {
                Box::pin(async move { Ok::<_, AppError>(tx.count_events(*before, PREVIEW_MAX).await?) })
            })
            .await?;
        Ok(removable)
    }
}
