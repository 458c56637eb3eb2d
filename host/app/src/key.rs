//! Keys of an organization: shown, replaced, and what follows a replacement.
//!
//! A rotation replaces a key in one transaction; from then on new values are under the new key, and all others open as before. What was
//! under the old one follows in the background: the organization's `tend_keys` job goes batch by batch, each a transaction that proves
//! the job's lease. What is left to do is read from the rows, so whoever goes on after a crash needs to know nothing. A key is retired, and its
//! bytes destroyed, when a count finds no reference to it.

use std::time::{Duration, Instant};

use bulkhead_audit::taxonomy::EventType;
use bulkhead_keys::life::{DATA_KEY_AGE_MAX, ORGANIZATION_KEY_AGE_MAX, USES_WARN};
use bulkhead_keys::{KeyId, KeyState, Level, RootId};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{KeyRotationId, OrgId};
use bulkhead_model::job::{JobPayload, Lane, Lease};
use bulkhead_model::name::Slug;
use bulkhead_model::permission::{Actor, Caller, OrgScope, Permission, SystemReason, SystemScope};
use bulkhead_model::time::Timestamp;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::job::{Attempt, NewJob};
use bulkhead_store::key::rotation::{KeyRotation, KeyWork, RotationReason};
use bulkhead_store::key::{StoredKey, TendFrom, Tended};
use bulkhead_store::page::{Page, PageRequest};
use bulkhead_store::seal::{KeyPurpose, Sealer};
use bulkhead_store::{Store, StoreError, Tx};
use serde_json::json;

use crate::engine::{ATTEMPT_DEADLINE, Left};
use crate::in_flight::Leash;
use crate::{App, AppError};

const JOB_KIND: &str = "tend_keys";
const JOB_KEY: &str = "keys";
/// The job is given up after this many deaths of workers that held it, and made anew some minutes later.
const JOB_ATTEMPTS_MAX: u32 = 25;
/// After a failure of the host's the job comes again after this long.
const FAULT_PAUSE: Duration = Duration::from_secs(30);
/// Keys and values put under another key in one transaction …
const BATCH: u32 = 20;
/// … and the pause after it: at most 400 a second of one organization, so that others' writes are not held up.
const BATCH_PAUSE: Duration = Duration::from_millis(50);
/// For so long one organization's job goes on before others of its lane have their turn.
const SLICE: Duration = Duration::from_secs(5);
/// Organizations looked at in one read for keys that are due.
const ORGS_PAGE: u32 = 500;

fn tend_job(now: Timestamp) -> NewJob {
    NewJob {
        payload: JobPayload::TendKeys,
        priority: 100,
        run_at: now,
        dedupe_key: Some(JOB_KEY.to_owned()),
        attempts_max: JOB_ATTEMPTS_MAX,
        group: None,
    }
}

/// The organization's keys and the rotations that go on.
#[derive(Clone, Debug)]
pub struct KeysDetail {
    pub keys: Vec<StoredKey>,
    pub running: Vec<KeyRotation>,
}

/// A rotation that is due, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Due {
    level: Level,
    reason: RotationReason,
    /// The key was replaced already: only what follows is left.
    replaced: bool,
}

impl Due {
    fn new(level: Level, reason: RotationReason) -> Self {
        Self { level, reason, replaced: false }
    }
}

/// Rotations that are due, the outer level first.
fn due(keys: &[StoredKey], running: &[KeyRotation], root: RootId, now: Timestamp) -> Vec<Due> {
    let is_running = |level| running.iter().any(|rotation| rotation.level == level);
    let active = |purpose| keys.iter().find(|key| key.purpose == purpose && key.state == KeyState::Active);
    let mut due = Vec::new();
    let under_another_root = |key: &StoredKey| {
        key.purpose == KeyPurpose::Organization && key.wrapped_by.is_some_and(|by| by != KeyId::Root(root))
    };
    if keys.iter().any(under_another_root) {
        // The operator did it, in the server's configuration.
        due.push(Due { replaced: true, ..Due::new(Level::Root, RotationReason::Root) });
    }
    if active(KeyPurpose::Organization).is_some_and(|key| now.since(key.created_at) >= ORGANIZATION_KEY_AGE_MAX) {
        due.push(Due::new(Level::Organization, RotationReason::Age));
    }
    if let Some(key) = active(KeyPurpose::Field) {
        let (uses, age) = (key.uses.unwrap_or(0), now.since(key.created_at));
        let only_opens = |key: &StoredKey| key.purpose == KeyPurpose::Field && key.state == KeyState::DecryptOnly;
        if keys.iter().any(only_opens) && !is_running(Level::Data) {
            // A transaction used it up, and replaced it there and then.
            due.push(Due { replaced: true, ..Due::new(Level::Data, RotationReason::Uses) });
        } else if uses >= USES_WARN {
            due.push(Due::new(Level::Data, RotationReason::Uses));
        } else if age >= DATA_KEY_AGE_MAX {
            due.push(Due::new(Level::Data, RotationReason::Age));
        }
    }
    due.retain(|due| !is_running(due.level));
    due
}

/// Replaces the level's key, writes down that and why, and sees that what was under the old one follows. `None` while another rotation
/// of the level goes on.
async fn begin_rotation(
    tx: &mut Tx,
    Due { level, reason, replaced }: Due,
    actor: &Actor,
    sealer: &Sealer,
    ambient: &Ambient,
) -> Result<Option<KeyRotation>, StoreError> {
    let (now, org) = (ambient.now(), tx.org()?);
    if tx.list_running_key_rotations().await?.iter().any(|rotation| rotation.level == level) {
        return Ok(None);
    }
    let to_key = match level {
        // The operator replaced it already, in the server's configuration.
        Level::Root => KeyId::Root(sealer.root()),
        Level::Organization => tx.replace_org_key(sealer).await?,
        Level::Data if replaced => active_data_key(tx).await?,
        Level::Data => tx.replace_data_key(sealer).await?,
    };
    let rotation = KeyRotation {
        id: KeyRotationId::new(ambient),
        level,
        reason,
        actor: actor.to_string(),
        to_key: to_key.to_string(),
        done: 0,
        left: left_of(level, &tx.count_key_work(sealer).await?),
        created_at: now,
        updated_at: now,
        finished_at: None,
    };
    if !tx.insert_key_rotation(&rotation).await? {
        return Err(StoreError::Conflict { constraint: "key_rotation_running".to_owned() });
    }
    let event = AuditEvent {
        action: EventType::KeyRotated,
        target: org.to_string(),
        actor: actor.clone(),
        detail: json!({ "level": level.as_str(), "reason": reason.as_str(), "to": to_key.to_string(), "rotation": rotation.id }),
    };
    tx.record_audit(&event, ambient).await?;
    metrics::counter!("bulkhead_key_rotations_total", "level" => level.as_str(), "reason" => reason.as_str())
        .increment(1);
    Ok(Some(rotation))
}

async fn active_data_key(tx: &mut Tx) -> Result<KeyId, StoreError> {
    let keys = tx.list_keys().await?;
    let active = keys.iter().find(|key| key.purpose == KeyPurpose::Field && key.state == KeyState::Active);
    active.map(|key| key.id).ok_or(StoreError::NotFound { what: "active data key" })
}

fn left_of(level: Level, work: &KeyWork) -> u64 {
    match level {
        Level::Root => work.org_keys,
        Level::Organization => work.data_keys,
        Level::Data => work.values,
    }
}

fn done_of(level: Level, tended: &Tended) -> u64 {
    u64::from(match level {
        Level::Root => tended.org_keys,
        Level::Organization => tended.data_keys,
        Level::Data => tended.values,
    })
}

/// One batch, under the lease. At the end of a pass it ends the rotations that have nothing left, and the job.
async fn tend_batch(
    tx: &mut Tx,
    lease: &Lease,
    from: TendFrom,
    sealer: &Sealer,
    ambient: &Ambient,
) -> Result<Tended, StoreError> {
    let now = ambient.now();
    tx.hold_lease(lease, ATTEMPT_DEADLINE, now).await?;
    let system = Actor::System(SystemReason::Worker);
    if from == TendFrom::START {
        let (keys, running) = (tx.list_keys().await?, tx.list_running_key_rotations().await?);
        for due in due(&keys, &running, sealer.root(), now) {
            begin_rotation(tx, due, &system, sealer, ambient).await?;
        }
    }
    let tended = tx.tend_keys(sealer, from, BATCH).await?;
    let work = tx.count_key_work(sealer).await?;
    for mut rotation in tx.list_running_key_rotations().await? {
        rotation.done += done_of(rotation.level, &tended);
        rotation.left = left_of(rotation.level, &work);
        rotation.updated_at = now;
        rotation.finished_at = (tended.next.is_none() && rotation.left == 0).then_some(now);
        tx.update_key_rotation(&rotation).await?;
    }
    for key in &tended.retired {
        let event = AuditEvent {
            action: EventType::KeyRetired,
            target: tx.org()?.to_string(),
            actor: system.clone(),
            detail: json!({ "key": key.to_string() }),
        };
        tx.record_audit(&event, ambient).await?;
    }
    if tended.next.is_none() {
        tx.finish_job(lease, now).await?;
    }
    Ok(tended)
}

impl App {
    /// The organization's keys, without their bytes, and the rotations that go on.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn show_keys(&self, caller: &Caller, org: OrgId) -> Result<KeysDetail, AppError> {
        Ok(keys_in(self.store(), &caller.authorize(org, Permission::EncryptionRead)?).await?)
    }

    /// Replaces the organization key or the data key. What was under the old one follows in the background.
    ///
    /// # Errors
    /// [`AppError::Conflict`] `key-rotation-running`; [`AppError::Invalid`] `invalid-level` for the root key, which is the operator's.
    pub async fn rotate_key(&self, caller: &Caller, org: OrgId, level: Level) -> Result<KeyRotation, AppError> {
        self.rotate_in(caller.authorize(org, Permission::EncryptionRotate)?, level).await
    }

    /// As [`rotate_key`](Self::rotate_key), for the operator at the console.
    ///
    /// # Errors
    /// As there.
    pub async fn rotate_key_as_operator(&self, org: OrgId, level: Level) -> Result<KeyRotation, AppError> {
        self.rotate_in(SystemScope::new(SystemReason::Admin).for_org(org), level).await
    }

    async fn rotate_in(&self, scope: OrgScope, level: Level) -> Result<KeyRotation, AppError> {
        if level == Level::Root {
            let message = "the root key is the operator's: `organization` and `data` can be rotated here";
            return Err(AppError::invalid("invalid-level", "/level", message));
        }
        let args = (level, scope.actor().clone(), self.sealer().clone(), self.ambient().clone());
        let rotation = self
            .store()
            .write(&scope, args, |tx, (level, actor, sealer, ambient)| {
                Box::pin(async move {
                    let begun =
                        begin_rotation(tx, Due::new(*level, RotationReason::Asked), actor, sealer, ambient).await?;
                    let rotation = begun.ok_or_else(|| {
                        let message = "a rotation of this level goes on already: wait until it has ended";
                        AppError::conflict("key-rotation-running", message)
                    })?;
                    tx.enqueue(&tend_job(ambient.now()), ambient).await?;
                    Ok::<_, AppError>(rotation)
                })
            })
            .await?;
        self.wake_org(Lane::Bulk, scope.org());
        Ok(rotation)
    }

    /// Newest first.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_key_rotations(
        &self,
        caller: &Caller,
        org: OrgId,
        page: PageRequest,
    ) -> Result<Page<KeyRotation>, AppError> {
        let scope = caller.authorize(org, Permission::EncryptionRead)?;
        self.store()
            .read(&scope, page, |tx, page| Box::pin(async move { Ok(tx.list_key_rotations(*page).await?) }))
            .await
    }

    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn show_key_rotation(
        &self,
        caller: &Caller,
        org: OrgId,
        id: KeyRotationId,
    ) -> Result<KeyRotation, AppError> {
        let scope = caller.authorize(org, Permission::EncryptionRead)?;
        self.store()
            .read(&scope, id, |tx, id| {
                Box::pin(
                    async move { tx.load_key_rotation(*id).await?.ok_or(AppError::NotFound { what: "key rotation" }) },
                )
            })
            .await
    }

    /// Puts the job into the queue for organizations whose keys have something to be done. Answers for how many.
    pub(crate) async fn arm_key_work(&self) -> Result<usize, StoreError> {
        let (mut after, mut armed) = (None, 0);
        loop {
            let args = (self.sealer().root(), self.ambient().now(), after);
            let listed = self
                .store()
                .read(&SystemScope::new(SystemReason::Jobs), args, |tx, (root, now, after)| {
                    Box::pin(async move { tx.list_orgs_with_key_work(*root, *now, *after, ORGS_PAGE).await })
                })
                .await?;
            for org in &listed {
                let scope = SystemScope::new(SystemReason::Worker).for_org(*org);
                let args = (tend_job(self.ambient().now()), self.ambient().clone());
                self.store()
                    .write_locked(&scope, args, |tx, (job, ambient)| {
                        Box::pin(async move {
                            // One that a worker holds looks at everything anyway.
                            if tx.is_job_held(JOB_KIND, JOB_KEY).await? {
                                return Ok(());
                            }
                            tx.enqueue(job, ambient).await.map(drop)
                        })
                    })
                    .await?;
                self.wake_org(Lane::Bulk, *org);
            }
            armed += listed.len();
            if listed.len() < ORGS_PAGE as usize {
                return Ok(armed);
            }
            after = listed.last().copied();
        }
    }

    /// Sees to the organization's keys while its job is held.
    pub(crate) async fn tend_keys(&self, lease: &Lease, leash: &Leash) -> Left {
        let scope = SystemScope::new(SystemReason::Worker).for_org(lease.org);
        let (began, mut from) = (Instant::now(), TendFrom::START);
        loop {
            let args = (lease.clone(), from, self.sealer().clone(), self.ambient().clone());
            let tended = self
                .store()
                // Rows of keys are locked by whoever makes or uses one; a value is replaced only if it is the one that was read.
                .write_locked(&scope, args, |tx, (lease, from, sealer, ambient)| {
                    Box::pin(async move { tend_batch(tx, lease, *from, sealer, ambient).await })
                })
                .await;
            match tended {
                Ok(tended) => {
                    count(&tended);
                    let Some(next) = tended.next else { return Left::Settled };
                    from = next;
                }
                Err(StoreError::LostLease) => return Left::Lost,
                Err(error) => {
                    tracing::error!(org = %lease.org, error = &error as &dyn std::error::Error, "keys could not be seen to; trying again");
                    return self.release(lease, FAULT_PAUSE, Attempt::DoesNotCount, Some(error.to_string())).await;
                }
            }
            if leash.hand_back() {
                return self.release(lease, Duration::ZERO, Attempt::DoesNotCount, None).await;
            }
            if began.elapsed() >= SLICE {
                return self.release(lease, Duration::ZERO, Attempt::StartsAnew, None).await;
            }
            tokio::time::sleep(BATCH_PAUSE).await;
        }
    }
}

fn count(tended: &Tended) {
    for (what, count) in [
        ("organization_key", tended.org_keys),
        ("data_key", tended.data_keys),
        ("value", tended.values),
        ("broken", tended.broken),
    ] {
        metrics::counter!("bulkhead_keys_tended_total", "what" => what).increment(u64::from(count));
    }
}

/// Why root keys and database do not fit.
#[derive(Debug, thiserror::Error)]
pub enum RootMismatch {
    /// The database holds keys that only a root key opens which is not there. Nothing was changed.
    #[error(
        "{keys} organization keys in the database are wrapped under the root key {id}, which is not among the server's root keys: \
         restore it from your backup of the keys. Nothing was changed"
    )]
    Missing { id: RootId, keys: u64 },
    #[error("the database cannot be looked at")]
    Store(#[source] StoreError),
}

async fn keys_in(store: &Store, scope: &OrgScope) -> Result<KeysDetail, StoreError> {
    store
        .read(scope, (), |tx, ()| {
            Box::pin(async move {
                Ok(KeysDetail { keys: tx.list_keys().await?, running: tx.list_running_key_rotations().await? })
            })
        })
        .await
}

/// The keys of the organization with this short name, beside a running server; `None` when there is none. For the operator only.
///
/// # Errors
/// The store's.
pub async fn look_at_keys(store: &Store, slug: Slug) -> Result<Option<KeysDetail>, StoreError> {
    let admin = SystemScope::new(SystemReason::Admin);
    let org = store.read(&admin, slug, |tx, slug| Box::pin(async move { tx.load_org_by_slug(slug).await })).await?;
    match org {
        Some(org) => keys_in(store, &admin.for_org(org.id)).await.map(Some),
        None => Ok(None),
    }
}

/// Counts what each root key wraps, over all organizations. For the operator only.
///
/// # Errors
/// The store's.
pub async fn count_root_uses(store: &Store) -> Result<Vec<(RootId, u64)>, StoreError> {
    store
        .read(&SystemScope::new(SystemReason::Admin), (), |tx, ()| Box::pin(async move { tx.count_root_uses().await }))
        .await
}

/// Refuses root keys that lack one which the database needs: looked at before anything is served or written.
///
/// # Errors
/// [`RootMismatch`].
pub async fn check_roots(store: &Store, sealer: &Sealer) -> Result<(), RootMismatch> {
    let uses = count_root_uses(store).await.map_err(RootMismatch::Store)?;
    match uses.into_iter().find(|(id, _)| !sealer.knows_root(*id)) {
        Some((id, keys)) => Err(RootMismatch::Missing { id, keys }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_keys::RootKey;

    fn key(id: KeyId, purpose: KeyPurpose, uses: u64) -> StoredKey {
        StoredKey {
            id,
            purpose,
            state: KeyState::Active,
            wrapped_by: Some(KeyId::Organization(1)),
            uses: Some(uses),
            created_at: Timestamp::from_micros(0),
            replaced_at: None,
            retired_at: None,
        }
    }

    #[test]
    fn keys_are_due_by_age_by_use_and_when_the_root_is_another() {
        let root = RootKey::new([1; 32]).id();
        let org = StoredKey {
            wrapped_by: Some(KeyId::Root(root)),
            ..key(KeyId::Organization(1), KeyPurpose::Organization, 0)
        };
        let field = |uses| key(KeyId::Data(1), KeyPurpose::Field, uses);
        let index = key(KeyId::Data(2), KeyPurpose::Index, 0);
        let at = |days: u64| Timestamp::from_micros(0).plus(Duration::from_hours(24 * days));
        let due_at = |uses, days| due(&[org.clone(), field(uses), index.clone()], &[], root, at(days));
        assert_eq!(due_at(0, 89), []);
        assert_eq!(due_at(0, 90), [Due::new(Level::Data, RotationReason::Age)]);
        assert_eq!(due_at(USES_WARN - 1, 1), []);
        assert_eq!(due_at(USES_WARN, 1), [Due::new(Level::Data, RotationReason::Uses)]);
        let both = [Due::new(Level::Organization, RotationReason::Age), Due::new(Level::Data, RotationReason::Age)];
        assert_eq!(due_at(0, 365), both);
        let used_up = StoredKey { state: KeyState::DecryptOnly, ..field(USES_WARN) };
        let follows = Due { replaced: true, ..Due::new(Level::Data, RotationReason::Uses) };
        assert_eq!(due(&[used_up, field(0)], &[], root, at(1)), [follows]);
        let other = RootKey::new([2; 32]).id();
        assert_eq!(
            due(std::slice::from_ref(&org), &[], other, at(0)),
            [Due { replaced: true, ..Due::new(Level::Root, RotationReason::Root) }]
        );
        let retired = StoredKey { wrapped_by: None, state: KeyState::Retired, ..org.clone() };
        assert_eq!(due(&[retired], &[], other, at(900)), [], "what is retired is nobody's work");
        let running = KeyRotation {
            id: KeyRotationId::from_uuid(uuid::Uuid::nil()),
            level: Level::Data,
            reason: RotationReason::Asked,
            actor: String::new(),
            to_key: String::new(),
            done: 0,
            left: 1,
            created_at: at(0),
            updated_at: at(0),
            finished_at: None,
        };
        assert_eq!(due(&[org, field(USES_WARN)], &[running], root, at(1)), []);
    }
}
