//! Forgetting payloads: when their time is over, or because somebody has them erased. An entry of the log says under what, first, in the
//! same transaction; records, chain and proofs stay as they are.

use std::collections::BTreeMap;
use std::time::Duration;

use bulkhead_audit::checkpoint::Checkpoint;
use bulkhead_audit::record::{DISPOSED_MAX, Event, Moment, Record, Token};
use bulkhead_audit::retention::{DAYS_MAX, DAYS_MIN, PayloadRetention, erasure, expiry};
use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{AuditId, OrgId};
use bulkhead_model::permission::{Actor, Caller, Permission, SystemReason, SystemScope};
use bulkhead_model::time::Timestamp;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::audit_log::{AuditRow, KeptAudit};
use bulkhead_store::seal::Sealer;
use bulkhead_store::{StoreError, Tx};
use serde_json::json;

use super::{Own, append_own, corrupt, leave, open, require_beginning};
use crate::{App, AppError, Problem};

/// Payloads that one transaction forgets: some tens of milliseconds.
const DISPOSED_AT_ONCE_MAX: u32 = 250;
/// Transactions for one organization in one look.
const TURNS_MAX: u32 = 40;
/// Organizations that are read at once.
const ORGS_PAGE: u32 = 200;
const DAY_MICROS: i64 = 86_400_000_000;
const DAY: Duration = Duration::from_hours(24);

/// An organization's times for payloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRetentionDetail {
    pub policy: PayloadRetention,
    /// Rises with every change; 0 while the organization has the operator's times.
    pub revision: i64,
}

/// Whose payloads are to be erased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErasureOf {
    /// Of exactly these entries, at most 1,000.
    Entries(Vec<u64>),
    /// Of entries that this id did, or that were done to it.
    Subject(String),
}

/// What an erasure came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErasedAudit {
    /// Payloads that are gone now.
    pub payloads: u64,
    /// The entry that says so; `None` where there was nothing to erase.
    pub by: Option<u64>,
    /// There are more than one erasure takes: ask again.
    pub more: bool,
}

/// Disposals that were said in this look: by days, the entry and the moment that it names.
type Said = BTreeMap<u32, (u64, Timestamp)>;

struct Disposed {
    payloads: u64,
    said: Said,
    more: bool,
}

/// The day's beginning, UTC: one entry says what a day makes due, however often and on however many nodes somebody looks.
fn today(ambient: &Ambient) -> Timestamp {
    Timestamp::from_micros(ambient.now().as_micros().div_euclid(DAY_MICROS).saturating_mul(DAY_MICROS))
}

fn moment(at: Timestamp) -> Result<Moment, StoreError> {
    at.to_string().parse().map_err(|error| corrupt("a moment of the retention", error))
}

/// Payloads whose time is over, by the days that they were kept; at most so many. True: there may be more.
async fn due(
    tx: &mut Tx,
    policy: &PayloadRetention,
    said: &Said,
    today: Timestamp,
) -> Result<(BTreeMap<u32, Vec<KeptAudit>>, bool), StoreError> {
    let before_of = |days: u32| said.get(&days).map_or_else(|| today.minus(DAY * days), |(_, before)| *before);
    let (mut due, mut left): (BTreeMap<u32, Vec<KeptAudit>>, _) = (BTreeMap::new(), DISPOSED_AT_ONCE_MAX);
    for action in tx.list_audit_actions().await? {
        // Its record says all that its payload says, and forgetting it would have to be said again, for ever.
        if action == EventType::PayloadsExpired.as_str() {
            continue;
        }
        let before = before_of(policy.days(Event::named(&action).category()));
        for kept in tx.list_kept_audit(&action, AuditId::first_at(before), left).await? {
            // What was signed decides, as for the verifier. What cannot be read is for it to name.
            let Ok(record) = Record::from_canonical(&kept.record) else { continue };
            let days = policy.days(record.category);
            if record.ts < moment(before_of(days))? {
                due.entry(days).or_default().push(kept);
                left = left.saturating_sub(1);
            }
        }
        if left == 0 {
            return Ok((due, true));
        }
    }
    Ok((due, false))
}

/// The organization's own times, or the operator's.
async fn policy(tx: &mut Tx, default: &PayloadRetention) -> Result<PayloadRetention, StoreError> {
    Ok(tx.load_audit_retention().await?.map_or(*default, |stored| stored.policy))
}

async fn expire(
    tx: &mut Tx,
    org: OrgId,
    (sealer, ambient): (&Sealer, &Ambient),
    kept: Option<&Checkpoint>,
    default: &PayloadRetention,
    said: &Said,
) -> Result<Disposed, StoreError> {
    // Locked before anything is looked for: another node that finds the same waits, and then finds it gone.
    if tx.lock_audit_log().await?.is_none() {
        return Ok(Disposed { payloads: 0, said: said.clone(), more: false });
    }
    let (policy, today) = (policy(tx, default).await?, today(ambient));
    let (due, more) = due(tx, &policy, said, today).await?;
    let mut disposed = Disposed { payloads: 0, said: said.clone(), more };
    if due.is_empty() {
        return Ok(disposed);
    }
    let (mut log, key, mut chain) = open(tx, org, sealer, ambient).await?;
    if let Some(kept) = kept {
        require_beginning(kept, &log, org)?;
    }
    let mut groups = policy.groups();
    for (days, payloads) in due {
        let by = if let Some((by, _)) = disposed.said.get(&days) {
            *by
        } else {
            let before = today.minus(DAY * days);
            let categories = groups.remove(&days).unwrap_or_default();
            let event = AuditEvent {
                action: EventType::PayloadsExpired,
                target: org.to_string(),
                actor: Actor::System(SystemReason::Worker),
                detail: json!({ "days": days, "categories": categories, "before": before }),
            };
            let disposal = Some(expiry(days, categories, moment(before)?));
            let own = Own { event, brings: None, disposal };
            let by = append_own(tx, &mut chain, (&key, None), own, ambient).await?;
            disposed.said.insert(days, (by, before));
            by
        };
        for KeptAudit { seq, id, .. } in payloads {
            disposed.payloads += u64::from(tx.dispose_of_audit(seq, id, by).await?);
        }
    }
    leave(tx, &mut log, &chain).await?;
    Ok(disposed)
}

/// The entries that an erasure is about and that have a payload still, at most 1,000. True: there are more.
async fn chosen(tx: &mut Tx, of: &ErasureOf) -> Result<(Vec<KeptAudit>, bool), AppError> {
    match of {
        ErasureOf::Entries(entries) => {
            let mut chosen = Vec::new();
            for (at, seq) in entries.iter().enumerate() {
                let row = tx.list_audit_entries(*seq, 1).await?.into_iter().next().filter(|row| row.seq == *seq);
                let Some(AuditRow { row, .. }) = row else {
                    let message = format!("there is no entry {seq}");
                    return Err(AppError::invalid("invalid-erasure", format!("/entries/{at}"), message));
                };
                let (sealed, _) = row?;
                if sealed.disposed_by.is_none() {
                    chosen.push(KeptAudit { seq: sealed.seq, id: sealed.id, record: sealed.record });
                }
            }
            Ok((chosen, false))
        }
        ErasureOf::Subject(subject) => {
            let limit = u32::try_from(DISPOSED_MAX).unwrap_or(u32::MAX);
            let mut chosen = tx.list_kept_audit_about(subject, limit.saturating_add(1)).await?;
            let more = chosen.len() > DISPOSED_MAX;
            chosen.truncate(DISPOSED_MAX);
            Ok((chosen, more))
        }
    }
}

fn check_erasure(of: &ErasureOf) -> Result<(), AppError> {
    let wrong = |path: &str, message: String| Err(AppError::invalid("invalid-erasure", path, message));
    match of {
        ErasureOf::Entries(entries) if entries.is_empty() || entries.len() > DISPOSED_MAX => {
            wrong("/entries", format!("1 to {DISPOSED_MAX} entries can be named"))
        }
        ErasureOf::Entries(entries) if entries.windows(2).any(|pair| matches!(pair, [a, b] if a >= b)) => {
            wrong("/entries", "name each entry once, in rising order".to_owned())
        }
        ErasureOf::Subject(subject) if subject.parse::<Token>().is_err() => {
            wrong("/subject", "an id as entries show it in `actor` and `target`".to_owned())
        }
        ErasureOf::Entries(_) | ErasureOf::Subject(_) => Ok(()),
    }
}

impl App {
    /// The same, with the operator's times for payloads, which organizations have until they choose their own.
    #[must_use]
    pub fn with_audit_retention(mut self, retention: PayloadRetention) -> Self {
        self.audit.retention = retention;
        self
    }

    /// Forgets payloads whose time is over, in each organization, and answers how many.
    ///
    /// # Errors
    /// The store's, where organizations cannot be listed; an organization's own are logged, and the others have their turn.
    pub async fn expire_audit_payloads(&self) -> Result<u64, AppError> {
        let (scope, mut after, mut payloads) = (SystemScope::new(SystemReason::Jobs), None, 0);
        loop {
            let orgs = self
                .store()
                .read(&scope, after, |tx, after| Box::pin(async move { tx.list_orgs_by_id(*after, ORGS_PAGE).await }));
            let orgs = orgs.await?;
            let Some(last) = orgs.last() else { return Ok(payloads) };
            after = Some(*last);
            for org in orgs {
                match self.expire_audit_payloads_of(org).await {
                    Ok(more) => payloads += more,
                    Err(error) => {
                        metrics::counter!("bulkhead_audit_expiry_failures_total").increment(1);
                        tracing::error!(%org, error = &error as &dyn std::error::Error, "audit payloads whose time is over were not forgotten; trying again");
                    }
                }
            }
        }
    }

    /// As [`expire_audit_payloads`](Self::expire_audit_payloads) for one organization: some ten thousand at once.
    ///
    /// # Errors
    /// The store's; [`StoreError::Corrupt`] for a log that does not continue its kept checkpoint.
    pub async fn expire_audit_payloads_of(&self, org: OrgId) -> Result<u64, AppError> {
        let scope = SystemScope::new(SystemReason::Worker).for_org(org);
        let args = (self.audit.retention, today(self.ambient()));
        let is_due = self.store().read(&scope, args, |tx, (default, today)| {
            Box::pin(async move {
                let policy = policy(tx, default).await?;
                Ok::<_, StoreError>(!due(tx, &policy, &Said::new(), *today).await?.0.is_empty())
            })
        });
        if !is_due.await? {
            return Ok(0);
        }
        let kept = self.kept_checkpoint(org)?;
        let (mut payloads, mut said) = (0, Said::new());
        for _ in 0..TURNS_MAX {
            let args =
                (org, self.sealer().clone(), self.ambient().clone(), kept.clone(), self.audit.retention, said.clone());
            let disposed = self
                .store()
                // The log's row is locked, as for whoever seals.
                .write_locked(&scope, args, |tx, (org, sealer, ambient, kept, default, said)| {
                    Box::pin(async move { expire(tx, *org, (sealer, ambient), kept.as_ref(), default, said).await })
                })
                .await?;
            metrics::counter!("bulkhead_audit_payloads_disposed_total", "why" => "retention")
                .increment(disposed.payloads);
            payloads += disposed.payloads;
            said = disposed.said;
            if !disposed.more {
                break;
            }
        }
        Ok(payloads)
    }

    /// Erases payloads for a request with this reference, which is said for good, as is who asked. What is asked for twice is erased once.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `invalid-erasure`; a refusal; the store's.
    pub async fn erase_audit_payloads(
        &self,
        caller: &Caller,
        org: OrgId,
        reference: Token,
        of: ErasureOf,
    ) -> Result<ErasedAudit, AppError> {
        let scope = caller.authorize(org, Permission::ComplianceErase)?;
        check_erasure(&of)?;
        // What waits for its place has none that an erasure could name.
        self.seal_audit_log(org, false).await?;
        let kept = self.kept_checkpoint(org)?;
        let args = (org, scope.actor().clone(), self.sealer().clone(), self.ambient().clone(), kept, reference, of);
        let erased = self
            .store()
            // The log's row is locked, as for whoever seals.
            .write_locked(&scope, args, |tx, (org, actor, sealer, ambient, kept, reference, of)| {
                Box::pin(async move {
                    let (mut log, key, mut chain) = open(tx, *org, sealer, ambient).await?;
                    if let Some(kept) = kept {
                        require_beginning(kept, &log, *org)?;
                    }
                    let (chosen, more) = chosen(tx, of).await?;
                    if chosen.is_empty() {
                        return Ok::<_, AppError>(ErasedAudit { payloads: 0, by: None, more: false });
                    }
                    let event = AuditEvent {
                        action: EventType::PayloadsErased,
                        target: org.to_string(),
                        actor: actor.clone(),
                        detail: json!({ "reference": reference, "payloads": chosen.len() }),
                    };
                    let entries = chosen.iter().map(|kept| kept.seq).collect();
                    let own = Own { event, brings: None, disposal: Some(erasure(reference, entries)) };
                    let by = append_own(tx, &mut chain, (&key, None), own, ambient).await?;
                    let mut payloads = 0;
                    for KeptAudit { seq, id, .. } in chosen {
                        payloads += u64::from(tx.dispose_of_audit(seq, id, by).await?);
                    }
                    leave(tx, &mut log, &chain).await?;
                    Ok(ErasedAudit { payloads, by: Some(by), more })
                })
            })
            .await?;
        metrics::counter!("bulkhead_audit_payloads_disposed_total", "why" => "erasure").increment(erased.payloads);
        Ok(erased)
    }

    /// For how long payloads are kept.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn show_audit_retention(&self, caller: &Caller, org: OrgId) -> Result<AuditRetentionDetail, AppError> {
        let scope = caller.authorize(org, Permission::AuditRead)?;
        let default = self.audit.retention;
        self.store()
            .read(&scope, default, |tx, default| {
                Box::pin(async move {
                    let stored = tx.load_audit_retention().await?;
                    Ok(stored.map_or(AuditRetentionDetail { policy: *default, revision: 0 }, |stored| {
                        AuditRetentionDetail { policy: stored.policy, revision: stored.revision }
                    }))
                })
            })
            .await
    }

    /// Replaces the times, if they are still those that the caller saw.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `invalid-retention`; [`AppError::StaleVersion`]; a refusal; the store's.
    pub async fn replace_audit_retention(
        &self,
        caller: &Caller,
        org: OrgId,
        seen: i64,
        policy: PayloadRetention,
    ) -> Result<AuditRetentionDetail, AppError> {
        let scope = caller.authorize(org, Permission::RetentionWrite)?;
        let problems: Vec<Problem> = policy
            .out_of_bounds()
            .into_iter()
            .map(|category| {
                let message = format!("{DAYS_MIN} to {DAYS_MAX} days are possible");
                Problem::new(format!("/{category}"), "out-of-range", message)
            })
            .collect();
        if !problems.is_empty() {
            let message = "a time of the policy is out of its bounds".to_owned();
            return Err(AppError::Invalid { code: "invalid-retention", message, problems });
        }
        let args = (policy, seen, scope.actor().clone(), self.ambient().clone(), self.audit.retention);
        self.store()
            .write(&scope, args, |tx, (policy, seen, actor, ambient, default)| {
                Box::pin(async move {
                    let stored = tx.load_audit_retention().await?;
                    let (before, revision) = stored.map_or((*default, 0), |stored| (stored.policy, stored.revision));
                    if revision != *seen {
                        return Err(AppError::StaleVersion);
                    }
                    if before == *policy && revision > 0 {
                        return Ok(AuditRetentionDetail { policy: before, revision });
                    }
                    if !tx.save_audit_retention(policy, revision, ambient.now()).await? {
                        return Err(AppError::StaleVersion);
                    }
                    let event = AuditEvent {
                        action: EventType::RetentionChanged,
                        target: tx.org()?.to_string(),
                        actor: actor.clone(),
                        detail: json!({ "before": before, "after": policy }),
                    };
                    tx.record_audit(&event, ambient).await?;
                    Ok(AuditRetentionDetail { policy: *policy, revision: revision + 1 })
                })
            })
            .await
    }
}
