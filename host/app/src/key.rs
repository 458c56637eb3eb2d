//! Keys of an organization: shown, replaced, and what follows a replacement.
//!
//! A rotation replaces a key in one transaction; from then on new values are under the new key, and all others open as before. What was
//! under the old one follows in the background: the organization's `tend_keys` job goes batch by batch, each a transaction that proves
//! the job's lease. What is left to do is read from the rows, so whoever goes on after a crash needs to know nothing. A key is retired, and its
//! bytes destroyed, when a count finds no reference to it.

mod roots;

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

pub use self::roots::{
    RootAct, RootDeed, RootMismatch, check_roots, count_root_uses, keep_root_check, look_before_opening,
};
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

/// What an organization's keys and rotations look like.
struct Looked {
    keys: Vec<StoredKey>,
    running: Vec<KeyRotation>,
    /// The newest rotation of data keys that has ended …
    ended: Option<KeyRotation>,
    /// … and of the root key.
    ended_root: Option<KeyRotation>,
}

impl Looked {
    async fn load(tx: &mut Tx) -> Result<Self, StoreError> {
        Ok(Self {
            keys: tx.list_keys().await?,
            running: tx.list_running_key_rotations().await?,
            ended: tx.load_ended_key_rotation(Level::Data).await?,
            ended_root: tx.load_ended_key_rotation(Level::Root).await?,
        })
    }

    /// Whether a rotation has seen to all that opens under this data key: what is left under it opens for nobody.
    fn is_seen_to(&self, key: &StoredKey) -> bool {
        match (key.id, self.ended.as_ref().and_then(|ended| KeyId::parse(&ended.to_key))) {
            (KeyId::Data(version), Some(KeyId::Data(to))) => version < to,
            _ => false,
        }
    }

    /// How many organization keys the last rotation to this root key had to leave as they are.
    fn left_by_root(&self, root: RootId) -> u64 {
        let to = KeyId::Root(root).to_string();
        self.ended_root.as_ref().filter(|ended| ended.to_key == to).map_or(0, |ended| ended.broken)
    }
}

/// Rotations that are due, the outer level first.
fn due(looked: &Looked, sealer: &Sealer, now: Timestamp) -> Vec<Due> {
    let Looked { keys, running, .. } = looked;
    let is_running = |level| running.iter().any(|rotation| rotation.level == level);
    let active = |purpose| keys.iter().find(|key| key.purpose == purpose && key.state == KeyState::Active);
    let mut due = Vec::new();
    let settled = sealer.settled_roots();
    let under_another_root = |key: &&StoredKey| {
        let stays = |by| settled.iter().any(|root| KeyId::Root(*root) == by);
        key.purpose == KeyPurpose::Organization && key.wrapped_by.is_some_and(|by| !stays(by))
    };
    if keys.iter().filter(under_another_root).count() as u64 > looked.left_by_root(sealer.root()) {
        // The operator did it, in the server's configuration.
        due.push(Due { replaced: true, ..Due::new(Level::Root, RotationReason::Root) });
    }
    if active(KeyPurpose::Organization).is_some_and(|key| now.since(key.created_at) >= ORGANIZATION_KEY_AGE_MAX) {
        due.push(Due::new(Level::Organization, RotationReason::Age));
    }
    if let Some(key) = active(KeyPurpose::Field) {
        let (uses, age) = (key.uses.unwrap_or(0), now.since(key.created_at));
        let only_opens = |key: &StoredKey| {
            key.purpose == KeyPurpose::Field && key.state == KeyState::DecryptOnly && !looked.is_seen_to(key)
        };
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
    let before = key_in_use(tx, level).await?;
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
        broken: 0,
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
        detail: json!({
            "level": level.as_str(),
            "reason": reason.as_str(),
            // Where a transaction or the operator replaced it already, what was before is known no more.
            "from": before.filter(|before| *before != to_key).map(|before| before.to_string()),
            "to": to_key.to_string(),
            "rotation": rotation.id,
        }),
    };
    tx.record_audit(&event, ambient).await?;
    metrics::counter!("bulkhead_key_rotations_total", "level" => level.as_str(), "reason" => reason.as_str())
        .increment(1);
    Ok(Some(rotation))
}

/// What the level's place is taken by: the root key that the organization's active key is under, that key, or the active data key.
async fn key_in_use(tx: &mut Tx, level: Level) -> Result<Option<KeyId>, StoreError> {
    let purpose = match level {
        Level::Root | Level::Organization => KeyPurpose::Organization,
        Level::Data => KeyPurpose::Field,
    };
    let keys = tx.list_keys().await?;
    let active = keys.iter().find(|key| key.purpose == purpose && key.state == KeyState::Active);
    Ok(match level {
        Level::Root => active.and_then(|key| key.wrapped_by),
        Level::Organization | Level::Data => active.map(|key| key.id),
    })
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

/// Where a pass over an organization's keys and values stands.
#[derive(Clone, Copy, Debug)]
struct Pass {
    from: TendFrom,
    /// Values that did not open, in this pass so far.
    broken: u64,
    /// Whether anything was done in it that is not done again by the next one.
    came_on: bool,
}

impl Pass {
    const START: Self = Self { from: TendFrom::START, broken: 0, came_on: false };

    fn broken_of(self, level: Level, tended: &Tended) -> u64 {
        match level {
            Level::Root => u64::from(tended.broken_org_keys),
            Level::Organization => u64::from(tended.broken_data_keys),
            Level::Data => self.broken + u64::from(tended.broken),
        }
    }
}

/// How far a rotation is after a batch. All is counted at the end of a pass alone, since it costs as much as there is; in between what was
/// done is taken off. It ends with a pass that left nothing but what does not open: that holds up neither it nor the next one.
fn advance(rotation: &mut KeyRotation, pass: Pass, tended: &Tended, work: Option<&KeyWork>, now: Timestamp) {
    let (done, broken) = (done_of(rotation.level, tended), pass.broken_of(rotation.level, tended));
    rotation.done += done;
    rotation.updated_at = now;
    match work {
        Some(work) => {
            rotation.left = left_of(rotation.level, work);
            if rotation.left <= broken {
                rotation.broken = rotation.left;
                rotation.finished_at = Some(now);
            }
        }
        None => rotation.left = rotation.left.saturating_sub(done),
    }
}

/// One batch, under the lease. At the end of a pass it ends the rotations that have nothing left that could follow, and the job.
async fn tend_batch(
    tx: &mut Tx,
    lease: &Lease,
    pass: Pass,
    sealer: &Sealer,
    ambient: &Ambient,
) -> Result<Tended, StoreError> {
    let now = ambient.now();
    tx.hold_lease(lease, ATTEMPT_DEADLINE, now).await?;
    let system = Actor::System(SystemReason::Worker);
    if pass.from == TendFrom::START {
        for due in due(&Looked::load(tx).await?, sealer, now) {
            begin_rotation(tx, due, &system, sealer, ambient).await?;
        }
    }
    let tended = tx.tend_keys(sealer, pass.from, BATCH).await?;
    let running = tx.list_running_key_rotations().await?;
    let work = if tended.next.is_none() && !running.is_empty() { Some(tx.count_key_work(sealer).await?) } else { None };
    for mut rotation in running {
        advance(&mut rotation, pass, &tended, work.as_ref(), now);
        tx.update_key_rotation(&rotation).await?;
        if rotation.broken > 0 {
            let event = AuditEvent {
                action: EventType::KeyRotationIncomplete,
                target: tx.org()?.to_string(),
                actor: system.clone(),
                detail: json!({
                    "rotation": rotation.id, "level": rotation.level.as_str(), "to": rotation.to_key, "broken": rotation.broken,
                }),
            };
            tx.record_audit(&event, ambient).await?;
        }
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
            let args = (self.sealer().clone(), self.ambient().now(), after);
            let listed = self
                .store()
                .read(&SystemScope::new(SystemReason::Jobs), args, |tx, (sealer, now, after)| {
                    Box::pin(async move { tx.list_orgs_with_key_work(sealer, *now, *after, ORGS_PAGE).await })
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
        let (began, mut pass) = (Instant::now(), Pass::START);
        loop {
            let args = (lease.clone(), pass, self.sealer().clone(), self.ambient().clone());
            let tended = self
                .store()
                // Rows of keys are locked by whoever makes or uses one; a value is replaced only if it is the one that was read.
                .write_locked(&scope, args, |tx, (lease, pass, sealer, ambient)| {
                    Box::pin(async move { tend_batch(tx, lease, *pass, sealer, ambient).await })
                })
                .await;
            match tended {
                Ok(tended) => {
                    count(&tended);
                    let Some(next) = tended.next else { return Left::Settled };
                    pass = Pass {
                        from: next,
                        broken: pass.broken + u64::from(tended.broken),
                        came_on: pass.came_on || tended.values + tended.data_keys + tended.org_keys > 0,
                    };
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
            // The next slice begins at the first value again: one that saw only such as do not open would begin there for ever.
            if pass.came_on && began.elapsed() >= SLICE {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use bulkhead_keys::{RootKey, RootKeys};

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
        let root = &RootKey::new([1; 32]);
        let org = StoredKey {
            wrapped_by: Some(KeyId::Root(root.id())),
            ..key(KeyId::Organization(1), KeyPurpose::Organization, 0)
        };
        let field = |uses| key(KeyId::Data(1), KeyPurpose::Field, uses);
        let index = key(KeyId::Data(2), KeyPurpose::Index, 0);
        let at = |days: u64| Timestamp::from_micros(0).plus(Duration::from_hours(24 * days));
        let looked = |keys: &[StoredKey], running: &[KeyRotation]| Looked {
            keys: keys.to_vec(),
            running: running.to_vec(),
            ended: None,
            ended_root: None,
        };
        let sealer = |roots: RootKeys| Sealer::with_roots(Arc::new(roots), Ambient::manual(at(0), 1));
        let due = |keys: &[StoredKey], running: &[KeyRotation], root: &RootKey, now| {
            super::due(&looked(keys, running), &sealer(RootKeys::single(root.clone())), now)
        };
        let due_at = |uses, days| due(&[org.clone(), field(uses), index.clone()], &[], root, at(days));
        assert_eq!(due_at(0, 89), []);
        assert_eq!(due_at(0, 90), [Due::new(Level::Data, RotationReason::Age)]);
        assert_eq!(due_at(USES_WARN - 1, 1), []);
        assert_eq!(due_at(USES_WARN, 1), [Due::new(Level::Data, RotationReason::Uses)]);
        let both = [Due::new(Level::Organization, RotationReason::Age), Due::new(Level::Data, RotationReason::Age)];
        assert_eq!(due_at(0, 365), both);
        let used_up = StoredKey { state: KeyState::DecryptOnly, ..field(USES_WARN) };
        let follows = Due { replaced: true, ..Due::new(Level::Data, RotationReason::Uses) };
        assert_eq!(due(&[used_up.clone(), field(0)], &[], root, at(1)), [follows]);
        let other = &RootKey::new([2; 32]);
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
            broken: 0,
            created_at: at(0),
            updated_at: at(0),
            finished_at: None,
        };
        assert_eq!(due(&[org.clone(), field(USES_WARN)], std::slice::from_ref(&running), root, at(1)), []);
        // What another node put under a root key that waits here stays there.
        let waits = sealer(RootKeys::single(other.clone()).with_next(root.clone()).unwrap());
        assert_eq!(super::due(&looked(std::slice::from_ref(&org), &[]), &waits, at(0)), []);
        // What no rotation could open is no reason for another one; the key of a later one is.
        let active = StoredKey { id: KeyId::Data(2), ..field(0) };
        let mut seen = looked(&[used_up.clone(), active.clone()], &[]);
        seen.ended = Some(KeyRotation { to_key: "d2".to_owned(), finished_at: Some(at(0)), ..running.clone() });
        let sealer = sealer(RootKeys::single(root.clone()));
        assert_eq!(super::due(&seen, &sealer, at(1)), []);
        let next = StoredKey { id: KeyId::Data(2), ..used_up };
        seen.keys = vec![next, StoredKey { id: KeyId::Data(3), ..active }];
        assert_eq!(super::due(&seen, &sealer, at(1)), [follows]);
        // The same of organization keys and the root key.
        let by_other = StoredKey { wrapped_by: Some(KeyId::Root(other.id())), ..org };
        seen.keys = vec![by_other.clone()];
        let to_key = KeyId::Root(root.id()).to_string();
        seen.ended_root =
            Some(KeyRotation { level: Level::Root, to_key, broken: 1, finished_at: Some(at(0)), ..running });
        assert_eq!(super::due(&seen, &sealer, at(1)), []);
        seen.keys.push(by_other);
        assert_eq!(super::due(&seen, &sealer, at(1)).len(), 1);
    }

    #[test]
    fn a_rotation_ends_when_nothing_is_left_that_opens() {
        let begun = KeyRotation {
            id: KeyRotationId::from_uuid(uuid::Uuid::nil()),
            level: Level::Data,
            reason: RotationReason::Asked,
            actor: String::new(),
            to_key: "d2".to_owned(),
            done: 0,
            left: 30,
            broken: 0,
            created_at: Timestamp::from_micros(0),
            updated_at: Timestamp::from_micros(0),
            finished_at: None,
        };
        let now = Timestamp::from_micros(9);
        let after = |pass: Pass, values, broken, left: Option<u64>| {
            let (mut rotation, tended) = (begun.clone(), Tended { values, broken, ..Tended::default() });
            let work = left.map(|values| KeyWork { values, ..KeyWork::default() });
            advance(&mut rotation, pass, &tended, work.as_ref(), now);
            (rotation.done, rotation.left, rotation.broken, rotation.finished_at.is_some())
        };
        let later = Pass { broken: 2, came_on: true, ..Pass::START };
        assert_eq!(after(Pass::START, 19, 1, None), (19, 11, 0, false), "in the middle of a pass");
        assert_eq!(after(Pass::START, 0, 0, Some(0)), (0, 0, 0, true));
        assert_eq!(after(later, 5, 1, Some(3)), (5, 3, 3, true), "what is left opens for nobody");
        assert_eq!(after(later, 5, 1, Some(4)), (5, 4, 0, false), "one came up meanwhile that opens");
        assert_eq!(after(later, 5, 1, Some(1)), (5, 1, 1, true), "some were mended or removed meanwhile");
    }
}
