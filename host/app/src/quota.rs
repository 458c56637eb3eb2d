//! What an organization may hold: shown with what it holds, set by the operator, asked before anything new is taken.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::id::OrgId;
use bulkhead_model::permission::{Actor, Caller, OrgScope, Permission, SystemReason, SystemScope};
use bulkhead_model::quota::{Quota, Quotas};
use bulkhead_model::retention::{LOOK_AFTER_BYTES, SLEEPING_RUNS_MAX};
use bulkhead_store::Tx;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::call::Call;
use serde_json::json;

use crate::{App, AppError, prune};

/// What is known of an organization's room is read again after this long.
const ROOM_KNOWN_FOR: Duration = Duration::from_secs(5);
/// Organizations whose room is known at once: some hundred bytes each.
const ROOMS_MAX: u64 = 10_000;
/// A schedule's tick that finds no room is tried again after this long.
pub(crate) const NO_ROOM_PAUSE_MS: u64 = 60_000;
/// The trigger's other parts (headers, query) beside the payload.
const TRIGGER_BESIDE_PAYLOAD_BYTES: u64 = 64 * 1024;

/// A quota is used up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaExceeded {
    pub quota: Quota,
    /// What is held, or what was asked for where the quota is of one thing.
    pub used: u64,
    pub limit: u64,
    /// What to do about it.
    pub hint: &'static str,
}

impl fmt::Display for QuotaExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { quota, used, limit, hint } = self;
        write!(f, "the quota {} is used up: {used} of {limit} {}; {hint}", quota.as_str(), quota.unit())
    }
}

/// A quota and what is held of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaUse {
    pub quota: Quota,
    pub limit: u64,
    /// `None` for a quota of one run.
    pub used: Option<u64>,
}

/// What an organization has room for, as it was a moment ago.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    payload_bytes_max: u64,
    /// The history's quota is used up, and nothing is left that may go; or runs that sleep hold as much.
    full: Option<QuotaExceeded>,
    /// As many runs sleep as may.
    too_many_sleep: bool,
}

impl Room {
    fn check(self) -> Result<(), AppError> {
        if let Some(full) = self.full {
            return Err(AppError::Quota(full));
        }
        if self.too_many_sleep {
            let message = format!(
                "{SLEEPING_RUNS_MAX} runs of the organization sleep until a time: cancel some, or start it when some have ended"
            );
            return Err(AppError::TooMany { code: "too-many-waiting", message, retry_after_ms: NO_ROOM_PAUSE_MS });
        }
        Ok(())
    }
}

/// Bytes of the runs that ended on this node since their organization's job was last told to look.
pub(crate) type EndedBytes = moka::sync::Cache<OrgId, Arc<AtomicI64>>;

pub(crate) fn ended_bytes() -> EndedBytes {
    moka::sync::Cache::new(ROOMS_MAX)
}

/// Rooms that are known, by organization.
pub(crate) type Rooms = moka::future::Cache<OrgId, Room>;

pub(crate) fn rooms() -> Rooms {
    moka::future::Cache::builder().max_capacity(ROOMS_MAX).time_to_live(ROOM_KNOWN_FOR).build()
}

impl App {
    /// Read by one of those who ask for an organization at the same time: with many sleeping runs it is a count of many rows.
    async fn room(&self, scope: &OrgScope) -> Result<Room, AppError> {
        match self.rooms().try_get_with(scope.org(), self.read_room(scope)).await {
            Ok(room) => Ok(room),
            // The error is of all who waited; it cannot be copied, so that each but the last asks for himself.
            Err(shared) => match Arc::try_unwrap(shared) {
                Ok(error) => Err(error),
                Err(_) => self.read_room(scope).await,
            },
        }
    }

    async fn read_room(&self, scope: &OrgScope) -> Result<Room, AppError> {
        self.store()
            .read(scope, (), |tx, ()| {
                Box::pin(async move {
                    let (quotas, history) = (tx.load_quotas().await?, tx.load_history().await?);
                    let limit = quotas.history_bytes_max;
                    let used = history.as_ref().map_or(0, |history| history.bytes.unsigned_abs());
                    let is_full = history.is_some_and(|history| history.full_since.is_some()) && used > limit;
                    let (sleeping, asleep) = tx.count_sleeping_runs(SLEEPING_RUNS_MAX).await?;
                    let asleep = asleep.unsigned_abs();
                    let full = is_full.then_some(QuotaExceeded {
                        quota: Quota::HistoryBytes,
                        used,
                        limit,
                        hint: "see to failed runs on the dead-letter list, or ask the operator for a higher quota; what ended \
                               some minutes ago makes room by itself",
                    });
                    let full = full.or_else(|| {
                        let hint = "runs that sleep until a time hold as much as the history may: cancel some of them, or ask the \
                                    operator for a higher quota";
                        (asleep > limit).then_some(QuotaExceeded { quota: Quota::HistoryBytes, used: asleep, limit, hint })
                    });
                    let too_many_sleep = sleeping >= i64::from(SLEEPING_RUNS_MAX);
                    Ok::<_, AppError>(Room { payload_bytes_max: quotas.payload_bytes_max, full, too_many_sleep })
                })
            })
            .await
    }

    /// Asks whether the organization's history has room for what is about to be recorded.
    ///
    /// # Errors
    /// [`AppError::Quota`] when its quota is used up and nothing is left that may go; [`AppError::TooMany`] when as many runs sleep as
    /// may.
    pub(crate) async fn require_room(&self, scope: &OrgScope) -> Result<(), AppError> {
        self.room(scope).await?.check()
    }

    /// Adds up what ended on this node, and lets the organization's job look sooner when it is much: it looks seldom where little
    /// ends.
    pub(crate) async fn note_ended_bytes(&self, scope: &OrgScope, bytes: i64) {
        let sum = self.ended_bytes().get_with(scope.org(), Arc::default);
        if sum.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) < LOOK_AFTER_BYTES {
            return;
        }
        sum.store(0, Ordering::Relaxed);
        let now = self.ambient().now();
        let hastened = self
            .store()
            .write_locked(scope, now, |tx, now| Box::pin(async move { prune::look_soon(tx, *now).await }))
            .await;
        match hastened {
            Ok(true) => self.wake_workers(),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the history's job was not told to look sooner"
                );
            }
        }
    }

    /// Asks whether a run may start with a trigger of so many bytes.
    ///
    /// # Errors
    /// [`AppError::Quota`], for the payload or the history.
    pub(crate) async fn require_room_for_start(&self, scope: &OrgScope, trigger_bytes: usize) -> Result<(), AppError> {
        let room = self.room(scope).await?;
        let payload_bytes_max = room.payload_bytes_max;
        let used = trigger_bytes as u64;
        if used > payload_bytes_max.saturating_add(TRIGGER_BESIDE_PAYLOAD_BYTES) {
            let hint = "send less, and let the workflow fetch the rest";
            let over = QuotaExceeded { quota: Quota::PayloadBytes, used, limit: payload_bytes_max, hint };
            return Err(AppError::Quota(over));
        }
        room.check()
    }

    /// Every quota of the organization with what is held of it.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn show_quotas(&self, caller: &Caller, org: OrgId) -> Result<Vec<QuotaUse>, AppError> {
        self.quotas_of(&caller.authorize(org, Permission::OrgRead)?).await
    }

    /// As [`show_quotas`](Self::show_quotas), for the operator.
    ///
    /// # Errors
    /// The store's.
    pub async fn show_quotas_as_operator(&self, org: OrgId) -> Result<Vec<QuotaUse>, AppError> {
        self.quotas_of(&SystemScope::new(SystemReason::Admin).for_org(org)).await
    }

    async fn quotas_of(&self, scope: &OrgScope) -> Result<Vec<QuotaUse>, AppError> {
        self.store()
            .read(scope, (), |tx, ()| {
                Box::pin(async move {
                    let quotas = tx.load_quotas().await?;
                    let history = tx.load_history().await?.map_or(0, |history| history.bytes.unsigned_abs());
                    let (plugins, workflows) = (tx.count_plugins().await?, tx.count_active_workflows().await?);
                    let used = |quota| match quota {
                        Quota::ActiveWorkflows => Some(workflows),
                        Quota::HistoryBytes => Some(history),
                        Quota::PluginVersions => Some(plugins.versions),
                        Quota::PluginBytes => Some(plugins.bytes),
                        Quota::PayloadBytes | Quota::LogBytes => None,
                    };
                    let all = Quota::ALL.iter().map(|quota| QuotaUse {
                        quota: *quota,
                        limit: quotas.get(*quota),
                        used: used(*quota),
                    });
                    Ok(all.collect())
                })
            })
            .await
    }

    /// Sets one quota of an organization; answers all of them. For the operator only.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `invalid-quota` for a value out of its bounds; [`AppError::NotFound`].
    pub async fn set_quota(&self, org: OrgId, quota: Quota, value: u64) -> Result<Quotas, AppError> {
        Quotas::default()
            .set(quota, value)
            .map_err(|error| AppError::invalid("invalid-quota", format!("/{}", quota.as_str()), error.to_string()))?;
        let admin = SystemScope::new(SystemReason::Admin);
        let quotas = self
            .store()
            .write(&admin, (org, quota, value, self.ambient().clone()), |tx, (org, quota, value, ambient)| {
                Box::pin(async move {
                    let before = tx.set_quota(*org, *quota, *value).await?;
                    let before = before.ok_or(AppError::NotFound { what: "organization" })?;
                    let event = AuditEvent {
                        action: EventType::OrgQuotaSet,
                        target: org.to_string(),
                        actor: Actor::System(SystemReason::Admin),
                        detail: json!({ "quota": quota.as_str(), "before": before.get(*quota), "after": value }),
                    };
                    tx.record_audit(&event, ambient).await?;
                    if *quota == Quota::HistoryBytes {
                        prune::look_now(tx, ambient).await?;
                    }
                    Ok::<_, AppError>(tx.load_quotas().await?)
                })
            })
            .await?;
        self.rooms().invalidate(&org).await;
        self.wake_workers();
        Ok(quotas)
    }
}

/// Whether one more workflow may become active.
pub(crate) async fn check_active_workflows(tx: &mut Tx) -> Result<(), AppError> {
    let (used, limit) = (tx.count_active_workflows().await?, tx.load_quotas().await?.active_workflows_max);
    if used < limit {
        return Ok(());
    }
    let hint = "deactivate a workflow that is not needed, or ask the operator for a higher quota";
    Err(AppError::Quota(QuotaExceeded { quota: Quota::ActiveWorkflows, used, limit, hint }))
}

/// Records a call with as much of its log as the run's quota leaves.
pub(crate) async fn record_call(tx: &mut Tx, call: &Call) -> Result<(), AppError> {
    let call = within_log(tx, call).await?;
    let bytes = tx.record_call(&call).await?;
    if let Some(run) = call.run {
        tx.raise_run_bytes(run, bytes).await?;
    }
    Ok(())
}

/// The call with as much of its log as the run's quota leaves.
pub(crate) async fn within_log<'c>(tx: &mut Tx, call: &'c Call) -> Result<Cow<'c, Call>, AppError> {
    let Some(run) = call.run.filter(|_| !call.report.log.is_empty()) else { return Ok(Cow::Borrowed(call)) };
    let (used, limit) = tx.load_log_use(run).await?;
    let mut call = call.clone();
    let kept = lines_within(call.report.log.iter().map(|line| line.message.len()), limit.saturating_sub(used));
    call.report.log_truncated |= kept < call.report.log.len();
    call.report.log.truncate(kept);
    Ok(Cow::Owned(call))
}

/// How many lines fit into so many bytes, each with what it takes beside its text.
fn lines_within(lengths: impl Iterator<Item = usize>, bytes_max: u64) -> usize {
    const BESIDE: u64 = 32;
    let mut left = bytes_max;
    lengths
        .take_while(|length| {
            let fits = left.checked_sub(*length as u64 + BESIDE);
            left = fits.unwrap_or(0);
            fits.is_some()
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_up_to_the_first_that_does_not_fit() {
        let kept = |bytes_max| lines_within([10, 100, 0].into_iter(), bytes_max);
        assert_eq!([kept(0), kept(41), kept(42), kept(173), kept(174), kept(206)], [0, 0, 1, 1, 2, 3]);
        assert_eq!(lines_within([].into_iter(), 0), 0);
    }

    #[test]
    fn an_exceeded_quota_says_which_and_what_to_do() {
        let over = QuotaExceeded { quota: Quota::ActiveWorkflows, used: 7, limit: 7, hint: "deactivate one" };
        assert_eq!(over.to_string(), "the quota active_workflows is used up: 7 of 7 workflows; deactivate one");
    }
}
