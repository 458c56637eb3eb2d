//! Root keys and the database: whether they fit, before anything is served or written.

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::permission::{AccountScope, Actor, SystemReason, SystemScope};
use bulkhead_model::time::Timestamp;
use bulkhead_store::audit::{AuditEvent, AuditFilter};
use bulkhead_store::key::RootUse;
use bulkhead_store::page::{PAGE_LIMIT_MAX, PageRequest};
use bulkhead_store::seal::{RootId, Sealer};
use bulkhead_store::{Store, StoreConfig, StoreError, Tx};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{BATCH, BATCH_PAUSE, ORGS_PAGE};
use crate::App;

const ADMIN: SystemScope = SystemScope::new(SystemReason::Admin);

/// Why root keys and database do not fit.
#[derive(Debug, thiserror::Error)]
pub enum RootMismatch {
    /// The database holds what only a root key opens which is not there. Nothing was changed.
    #[error(
        "{keys} organization keys and {people} values of people in the database are under the root key {id}, which is not among the \
         server's root keys: restore it from your backup of the keys. Nothing was changed"
    )]
    Missing { id: RootId, keys: u64, people: u64 },
    /// The first root key is another one than at the first start. Nothing was changed.
    #[error(
        "the root key {found} stands first, but passwords, links, sign-ins, cursors and backups of this database come from {id}: put that \
         one in the first line again. Nothing was changed"
    )]
    First { id: RootId, found: RootId },
    #[error("the database cannot be looked at")]
    Store(#[source] StoreError),
}

/// What the operator can do to a root key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootDeed {
    /// It opens, and wraps nothing yet.
    Added,
    /// It wraps, instead of another.
    Used,
    Removed,
}

impl RootDeed {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Used => "used",
            Self::Removed => "removed",
        }
    }

    const fn event(self) -> EventType {
        match self {
            Self::Added => EventType::RootKeyAdded,
            Self::Used => EventType::RootKeyUsed,
            Self::Removed => EventType::RootKeyRemoved,
        }
    }
}

/// Something that the operator did to a root key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootAct {
    /// Tells it apart: however often it is told, a log says it once.
    pub id: String,
    pub what: RootDeed,
    /// The root key's id.
    pub root: String,
    /// Where it stood, if it was there …
    pub was: Option<String>,
    /// … and stands, if it is.
    pub is: Option<String>,
    /// The root key that wrapped until then, of one that does from then on.
    pub instead_of: Option<String>,
    /// By the clock of the machine on which it was done.
    pub at: Timestamp,
}

/// Writes an act into the transaction's organization's log; `false` if it is there already.
async fn record_root_act(tx: &mut Tx, act: &RootAct, ambient: &Ambient) -> Result<bool, StoreError> {
    let action = act.what.event();
    let filter = AuditFilter {
        action: Some(action.as_str().to_owned()),
        target: Some(act.root.clone()),
        ..AuditFilter::default()
    };
    let known = tx.list_audit(&filter, PageRequest { before: None, limit: PAGE_LIMIT_MAX }).await?;
    if known.items.iter().any(|entry| entry.detail["act"] == act.id.as_str()) {
        return Ok(false);
    }
    let event = AuditEvent {
        action,
        target: act.root.clone(),
        actor: Actor::System(SystemReason::Admin),
        detail: json!({
            "act": act.id,
            "at": act.at,
            "state": { "before": act.was, "after": act.is },
            "instead_of": act.instead_of,
        }),
    };
    tx.record_audit(&event, ambient).await?;
    Ok(true)
}

/// Counts what each root key is needed for, over all organizations and people. For the operator only.
///
/// # Errors
/// The store's.
pub async fn count_root_uses(store: &Store) -> Result<Vec<RootUse>, StoreError> {
    store.read(&ADMIN, (), |tx, ()| Box::pin(async move { tx.count_root_uses().await })).await
}

/// Refuses root keys that lack one which the database needs, or whose first one is another than at the first start. It only looks.
///
/// # Errors
/// [`RootMismatch`].
pub async fn check_roots(store: &Store, sealer: &Sealer) -> Result<(), RootMismatch> {
    let looked = store.read(&ADMIN, (), |tx, ()| {
        Box::pin(async move { Ok((tx.count_root_uses().await?, tx.load_root_check().await?)) })
    });
    let (uses, first) = looked.await.map_err(RootMismatch::Store)?;
    if let Some(uses) = uses.into_iter().find(|uses| !sealer.knows_root(uses.id)) {
        return Err(RootMismatch::Missing { id: uses.id, keys: uses.org_keys, people: uses.people });
    }
    let found = sealer.base_check();
    match first {
        Some(first) if first != found => Err(RootMismatch::First { id: first.id, found: found.id }),
        Some(_) | None => Ok(()),
    }
}

/// As [`check_roots`], before the database is opened: an opening brings the schema up to date, and on PostgreSQL with the owner's address it
/// gives the application's role a password that follows from the first root key, which would lock every other node out.
///
/// # Errors
/// [`RootMismatch`].
pub async fn look_before_opening(config: &StoreConfig, sealer: &Sealer) -> Result<(), RootMismatch> {
    let Some(store) = Store::look_before_opening(config).await.map_err(RootMismatch::Store)? else { return Ok(()) };
    let checked = check_roots(&store, sealer).await;
    store.close().await;
    checked
}

/// Keeps which root key stands first, at the first start.
///
/// # Errors
/// The store's.
pub async fn keep_root_check(store: &Store, sealer: &Sealer, ambient: &Ambient) -> Result<(), StoreError> {
    let args = (sealer.base_check(), ambient.now());
    store.write(&ADMIN, args, |tx, (check, now)| Box::pin(async move { tx.record_root_check(check, *now).await })).await
}

impl App {
    /// Tells each organization what the operator did to a root key: its own key is wrapped under one. Answers in how many logs it was not
    /// yet; what was told before is not told again.
    ///
    /// # Errors
    /// The store's. Some may have been told.
    pub async fn tell_root_act(&self, act: &RootAct) -> Result<u64, StoreError> {
        let (mut after, mut told, jobs) = (None, 0, SystemScope::new(SystemReason::Jobs));
        let mut outcome = Ok(());
        loop {
            let listed = self
                .store()
                .read(&jobs, after, |tx, after| Box::pin(async move { tx.list_orgs_by_id(*after, ORGS_PAGE).await }));
            let listed = listed.await?;
            for org in &listed {
                let (scope, args) = (ADMIN.for_org(*org), (act.clone(), self.ambient().clone()));
                let written = self.store().write(&scope, args, |tx, (act, ambient)| {
                    Box::pin(async move { record_root_act(tx, act, ambient).await })
                });
                // A log that refuses keeps it from no other.
                match written.await {
                    Ok(is_new) => told += u64::from(is_new),
                    Err(error) => outcome = Err(error),
                }
            }
            match listed.last() {
                Some(last) if listed.len() == ORGS_PAGE as usize => after = Some(*last),
                Some(_) | None => return outcome.map(|()| told),
            }
        }
    }

    /// Seals what belongs to people anew where it is under a root key that no longer wraps: a person has no organization whose job could do
    /// it. Two nodes at once do no harm, since a value is replaced only if it is the one that was read. Answers how many were.
    ///
    /// # Errors
    /// The store's.
    pub async fn tend_people(&self) -> Result<u64, StoreError> {
        let (mut after, mut values) = (None, 0);
        loop {
            let args = (self.sealer().clone(), after);
            let tended = self.store().write_locked(&AccountScope::OWN, args, |tx, (sealer, after)| {
                Box::pin(async move { tx.tend_people(sealer, *after, BATCH).await })
            });
            let tended = tended.await?;
            values += u64::from(tended.values);
            for (what, count) in [("person", tended.values), ("broken", tended.broken)] {
                metrics::counter!("bulkhead_keys_tended_total", "what" => what).increment(u64::from(count));
            }
            match tended.next {
                Some(next) => after = Some(next),
                None => return Ok(values),
            }
            tokio::time::sleep(BATCH_PAUSE).await;
        }
    }
}
