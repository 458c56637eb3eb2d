//! The audit log as it is proven: entries get their place, checkpoints are signed, bundles are written and verified.
//!
//! An entry is written in the transaction that it describes and waits there. The sealer (one loop on each node; the log's row lock lets
//! one of them write) gives the waiting entries their numbers, so an act never waits for a signature. The rows that wait *are* the
//! durable queue: what a crash interrupts is still waiting.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bulkhead_audit::chain::{Chain, Entry, origin};
use bulkhead_audit::checkpoint::Checkpoint;
use bulkhead_audit::hash::Hash;
use bulkhead_audit::key::{SignerKey, VerifierKey};
use bulkhead_audit::merkle::{self, Edge, Node, Plan};
use bulkhead_audit::note::Note;
use bulkhead_audit::payload::{Salt, commitment};
use bulkhead_audit::record::{Actor, Disposal, Draft, Event, Moment, Target, Token, UNKNOWN_TYPE, genesis};
use bulkhead_audit::taxonomy::{ActorKind, EventType};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::OrgId;
use bulkhead_model::permission::{Actor as ModelActor, Caller, OrgScope, Permission, SystemReason, SystemScope};
use bulkhead_model::time::Timestamp;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::audit_log::{AuditBacklog, AuditLog, SealedAudit, WaitingAudit};
use bulkhead_store::seal::{Place, Sealer};
use bulkhead_store::{StoreError, Tx};
use serde_json::json;
use zeroize::Zeroizing;

use crate::{App, AppError};

mod bundle;
mod dispose;
mod select;
mod signing;
mod verify;

pub use self::bundle::AuditBundle;
pub use self::dispose::{AuditRetentionDetail, ErasedAudit, ErasureOf};
pub use self::select::{AuditConsistency, AuditSelection, AuditSheet};
pub use self::signing::AuditKey;

/// Entries that get their place in one transaction: some tens of milliseconds of signatures.
const SEALED_AT_ONCE_MAX: u32 = 256;
/// A checkpoint is signed when so many entries are under none …
const CHECKPOINT_ENTRIES: u64 = 1000;
/// … or when the last one is so old and there are any (spec: each 60 s or 1,000 entries).
const CHECKPOINT_EVERY: Duration = Duration::from_mins(1);
/// Organizations that one look takes on; the next look goes on behind the last of them, and round again.
const ORGS_AT_ONCE_MAX: u32 = 500;
/// Transactions for one organization in one look: some thousand entries. However much it writes, the others have their turn.
const TURNS_MAX: u32 = 16;
/// Entries whose rows are read at once: with the largest payloads some megabytes.
const PAGE: u32 = 100;

/// Looks up an organization's newest checkpoint that is kept outside of the database, as a signed note.
pub type KeptCheckpoint = Arc<dyn Fn(OrgId) -> std::io::Result<Option<String>> + Send + Sync>;

/// A checkpoint that was just signed, to be kept outside of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCheckpoint {
    pub org: OrgId,
    /// How many entries it covers.
    pub size: u64,
    /// The signed note.
    pub note: String,
}

/// What one transaction of the sealer came to.
#[derive(Clone, Debug)]
struct Sealed {
    entries: u64,
    /// Rows that could not be read; they wait on.
    unreadable: u32,
    /// As many as fit: there may be more.
    more: bool,
    checkpoint: Option<NewCheckpoint>,
}

fn place(org: OrgId) -> Place<'static> {
    Place { table: "audit_log", column: "signing_key", org, row: org.uuid() }
}

fn token_of(org: OrgId) -> Token {
    Token::from_any(&org.to_string())
}

fn corrupt(what: &'static str, why: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt { what, why: why.to_string() }
}

async fn signer(tx: &mut Tx, log: &AuditLog, org: OrgId, sealer: &Sealer) -> Result<SignerKey, StoreError> {
    let seed = tx.open_sealed(sealer, &place(org), &log.signing_key).await?;
    let seed: &[u8; 32] =
        seed.as_slice().try_into().map_err(|_| corrupt("the audit log's signing key", "not 32 bytes"))?;
    SignerKey::from_seed(&origin(&token_of(org)), seed).map_err(|error| corrupt("the audit log's signing key", error))
}

fn chain(log: &AuditLog, org: OrgId) -> Result<Chain, StoreError> {
    if log.size == 0 {
        return Ok(Chain::new(token_of(org)));
    }
    let edge = Edge::from_roots(log.size, log.edge.clone())
        .ok_or_else(|| corrupt("the audit log", "its edge does not fit to its size"))?;
    let key: VerifierKey = log.verifier_key.parse().map_err(|error| corrupt("the audit log's key", error))?;
    Ok(Chain::resume(token_of(org), log.last, edge, key))
}

/// What kind of thing an id names: its prefix.
fn kind_of(id: &str) -> &str {
    match id.split_once(['_', ':']) {
        Some((kind, _)) if !kind.is_empty() && kind.bytes().all(|byte| byte.is_ascii_lowercase()) => kind,
        Some(_) | None => "name",
    }
}

fn actor_of(text: &str) -> Actor {
    let kind = match kind_of(text) {
        "key" => ActorKind::Key,
        "usr" | "user" => ActorKind::User,
        "inst" | "plug" => ActorKind::Plugin,
        "system" => ActorKind::System,
        _ => ActorKind::Unknown,
    };
    Actor { kind, id: Token::from_any(text), via: None, impersonator: None }
}

/// What the chain is to say of an entry. Whatever stands in its row, it gets its place: an entry that has none can still be changed, and
/// one that held up the others would leave all of them so.
fn draft(waiting: &WaitingAudit, salt: &Salt, key: Option<String>, now: Timestamp) -> Result<Draft, StoreError> {
    let written = waiting.created_at.to_string().parse::<Moment>();
    let event = Event::named(&waiting.action);
    let is_the_logs_own = [EventType::LogOpened, EventType::LogKeyRotated].iter().any(|own| event == (*own).into());
    let (event, reason) = match &event {
        // Nobody but the log says this about itself, and nobody acts beyond all calendars: the host did not write the row.
        _ if written.is_err() || (is_the_logs_own && key.is_none()) => {
            (EventType::RowRefused.into(), Some(Token::from_any("not_written_by_the_host")))
        }
        Event::Known(_) => (event, None),
        Event::Unknown(_) => (event, Some(Token::from_any(UNKNOWN_TYPE))),
    };
    let sealed_at = || now.to_string().parse::<Moment>().map_err(|error| corrupt("the clock", error));
    Ok(Draft {
        id: Token::from_any(&waiting.id.to_string()),
        ts: written.or_else(|_| sealed_at())?,
        severity: event.severity(),
        actor: actor_of(&waiting.actor),
        target: Target { kind: Token::from_any(kind_of(&waiting.target)), id: Token::from_any(&waiting.target) },
        outcome: event.outcome(),
        event,
        reason,
        session: None,
        correlation: waiting.correlation.as_deref().map(Token::from_any),
        causation: None,
        payload_commit: commitment(salt, &waiting.detail),
        key,
        disposal: None,
    })
}

async fn put(tx: &mut Tx, waiting: &WaitingAudit, entry: Entry, salt: Salt) -> Result<(), StoreError> {
    let Entry { record, text, leaf, key_id, signature, endorsement, completed } = entry;
    let sealed = SealedAudit {
        seq: record.seq,
        id: waiting.id,
        record: text,
        leaf,
        key_id,
        signature,
        endorsement,
        completed,
        salt,
        disposed_by: None,
    };
    tx.insert_audit_entry(&sealed).await
}

/// The log, open and locked. The first time it is opened with a key of its own.
async fn open(
    tx: &mut Tx,
    org: OrgId,
    sealer: &Sealer,
    ambient: &Ambient,
) -> Result<(AuditLog, SignerKey, Chain), StoreError> {
    if let Some(log) = tx.lock_audit_log().await? {
        let (key, chain) = (signer(tx, &log, org, sealer).await?, chain(&log, org)?);
        return Ok((log, key, chain));
    }
    let seed = Zeroizing::new(ambient.random::<32>());
    let key =
        SignerKey::from_seed(&origin(&token_of(org)), &seed).map_err(|error| corrupt("an organization's id", error))?;
    let verifier_key = key.verifier().to_string();
    let mut log = AuditLog {
        size: 0,
        last: genesis(&token_of(org)),
        edge: Vec::new(),
        verifier_key: verifier_key.clone(),
        signing_key: tx.seal(sealer, &place(org), &*seed).await?,
        checkpoint_size: 0,
        checkpoint_at: ambient.now(),
    };
    if !tx.insert_audit_log(&log).await? {
        // Another node was first.
        let log = tx.lock_audit_log().await?.ok_or_else(|| corrupt("the audit log", "it is and is not there"))?;
        let (key, chain) = (signer(tx, &log, org, sealer).await?, chain(&log, org)?);
        return Ok((log, key, chain));
    }
    let event = AuditEvent {
        action: EventType::LogOpened,
        target: org.to_string(),
        actor: ModelActor::System(SystemReason::Worker),
        detail: json!({ "verifier_key": verifier_key }),
    };
    let mut chain = Chain::new(token_of(org));
    let own = Own { event, brings: Some(verifier_key), disposal: None };
    append_own(tx, &mut chain, (&key, None), own, ambient).await?;
    log.size = chain.size();
    Ok((log, key, chain))
}

/// What the log says of itself: it has its place in the transaction that does it.
struct Own {
    event: AuditEvent,
    /// The key that signs from here on.
    brings: Option<String>,
    disposal: Option<Disposal>,
}

/// Appends such an entry, signed by `key`, and by `next` where it brings that in. Answers its number.
async fn append_own(
    tx: &mut Tx,
    chain: &mut Chain,
    (key, next): (&SignerKey, Option<&SignerKey>),
    Own { event, brings, disposal }: Own,
    ambient: &Ambient,
) -> Result<u64, StoreError> {
    let written = tx.record_placed_audit(&event, ambient).await?;
    let salt = Salt::from_bytes(ambient.random());
    let draft = Draft { disposal, ..draft(&written, &salt, brings, ambient.now())? };
    let entry = chain.append(draft, key, next).map_err(|error| corrupt("the audit log", error))?;
    let seq = entry.record.seq;
    put(tx, &written, entry, salt).await?;
    Ok(seq)
}

/// Says where the log ends after entries of its own.
async fn leave(tx: &mut Tx, log: &mut AuditLog, chain: &Chain) -> Result<(), StoreError> {
    (log.size, log.last, log.edge) = (chain.size(), chain.last(), chain.edge().roots().to_vec());
    tx.save_audit_log(log).await
}

/// The hash of a full subtree, as its row says.
async fn node(tx: &mut Tx, node: Node) -> Result<Hash, StoreError> {
    let missing = || corrupt("the audit log", format_args!("entry {} is missing", node.row()));
    let (leaf, completed) = tx.load_audit_node(node.row()).await?.ok_or_else(missing)?;
    match node.level.checked_sub(1) {
        None => Ok(leaf),
        Some(at) => completed.get(at as usize).copied().ok_or_else(missing),
    }
}

async fn proof(tx: &mut Tx, plan: &Plan) -> Result<Vec<Hash>, StoreError> {
    let mut known = Vec::new();
    for wanted in plan.nodes() {
        known.push((wanted, node(tx, wanted).await?));
    }
    let look_up = |wanted| known.iter().find(|(node, _)| *node == wanted).map(|(_, hash)| *hash);
    plan.proof(look_up).ok_or_else(|| corrupt("the audit log", "a proof's node is missing"))
}

async fn consistency(tx: &mut Tx, from: u64, to: u64) -> Result<Vec<Hash>, StoreError> {
    match Plan::consistency(from, to) {
        Some(plan) => proof(tx, &plan).await,
        None => Ok(Vec::new()),
    }
}

fn read_checkpoint(note: &str) -> Result<Checkpoint, StoreError> {
    let note = Note::parse(note).map_err(|error| corrupt("a checkpoint", error))?;
    Checkpoint::from_text(note.text()).map_err(|error| corrupt("a checkpoint", error))
}

/// Refuses to go on with a log that is not the one of which a checkpoint is kept: it was cut off, opened anew, or is a restored backup.
/// What would be signed now would be a second history.
fn require_beginning(kept: &Checkpoint, log: &AuditLog, org: OrgId) -> Result<(), StoreError> {
    if kept.origin != origin(&token_of(org)) {
        return Err(corrupt("the kept checkpoint", "it is of another log"));
    }
    if kept.size > log.size {
        let why = format!("{} entries, and a checkpoint over {} was kept: it was cut off", log.size, kept.size);
        return Err(corrupt("the audit log", why));
    }
    Ok(())
}

/// What a turn of the sealer is to come to.
#[derive(Clone, Copy, Debug)]
struct Wish {
    /// A checkpoint is wanted over what waits now, even if none is due.
    checkpoint: bool,
    /// No turn follows, whatever waits.
    is_last: bool,
}

/// Gives waiting entries their places, and signs a checkpoint when one is due or asked for.
async fn seal(
    tx: &mut Tx,
    org: OrgId,
    (sealer, ambient): (&Sealer, &Ambient),
    kept: Option<&Checkpoint>,
    wish: Wish,
) -> Result<Sealed, StoreError> {
    let (mut log, key, mut chain) = open(tx, org, sealer, ambient).await?;
    if let Some(kept) = kept {
        require_beginning(kept, &log, org)?;
    }
    let AuditBacklog { entries: waiting, unreadable } = tx.list_audit_waiting(SEALED_AT_ONCE_MAX).await?;
    let more = waiting.len() + unreadable as usize == SEALED_AT_ONCE_MAX as usize;
    for waiting in &waiting {
        let salt = Salt::from_bytes(ambient.random());
        let draft = draft(waiting, &salt, None, ambient.now())?;
        let entry = chain.append(draft, &key, None).map_err(|error| corrupt("the audit log", error))?;
        put(tx, waiting, entry, salt).await?;
    }
    (log.size, log.last, log.edge) = (chain.size(), chain.last(), chain.edge().roots().to_vec());
    let (uncovered, now) = (log.size.saturating_sub(log.checkpoint_size), ambient.now());
    let is_due = uncovered >= CHECKPOINT_ENTRIES
        || (!more && (log.checkpoint_size == 0 || now.since(log.checkpoint_at) >= CHECKPOINT_EVERY))
        || (wish.checkpoint && (!more || wish.is_last));
    let mut checkpoint = None;
    if uncovered > 0 && is_due {
        let next = chain.checkpoint();
        // Never a second history: the last one, and the one that is kept elsewhere, must be the beginning of this one, by its own proof.
        let previous = match tx.load_audit_checkpoint(log.checkpoint_size).await? {
            Some((_, note)) => Some(read_checkpoint(&note)?),
            None => None,
        };
        if let Some(kept) = kept.filter(|kept| previous.as_ref() != Some(*kept)) {
            require_follows(tx, kept, &next).await?;
        }
        let way = consistency(tx, previous.as_ref().map_or(0, |previous| previous.size), next.size).await?;
        let note = next
            .sign_after(previous.as_ref(), &way, &key)
            .map_err(|error| corrupt("the audit log", error))?
            .to_string();
        tx.record_audit_checkpoint(next.size, &note, now).await?;
        (log.checkpoint_size, log.checkpoint_at) = (next.size, now);
        checkpoint = Some(NewCheckpoint { org, size: next.size, note });
    }
    let keep = if log.checkpoint_size == log.size { None } else { waiting.last().map(|waiting| waiting.id) };
    if keep.is_some() || log.checkpoint_size == log.size {
        tx.settle_audit_waiting(keep).await?;
    }
    tx.save_audit_log(&log).await?;
    Ok(Sealed { entries: waiting.len() as u64, unreadable, more, checkpoint })
}

/// That one checkpoint's tree is the beginning of another one's, by the rows.
async fn require_follows(tx: &mut Tx, old: &Checkpoint, new: &Checkpoint) -> Result<(), StoreError> {
    let way = consistency(tx, old.size, new.size).await?;
    let follows = old.size == 0 || merkle::verify_consistency(old.size, new.size, old.root, new.root, &way).is_ok();
    if old.origin == new.origin && follows {
        return Ok(());
    }
    let why = format!("the checkpoint over {} entries that was kept is not its beginning: it was rewritten", old.size);
    Err(corrupt("the audit log", why))
}

impl App {
    /// The same, with checkpoints kept outside of the database: a log that does not continue the newest of its kept ones is not sealed any
    /// more, until somebody has looked.
    #[must_use]
    pub fn with_kept_checkpoints(mut self, kept: KeptCheckpoint) -> Self {
        self.audit.kept = Some(kept);
        self
    }

    fn kept_checkpoint(&self, org: OrgId) -> Result<Option<Checkpoint>, StoreError> {
        let Some(kept) = &self.audit.kept else { return Ok(None) };
        let note = kept(org).map_err(|error| corrupt("the kept checkpoint", error))?;
        note.as_deref().map(read_checkpoint).transpose()
    }

    /// Gives waiting entries their places, in each organization where some wait, and answers the checkpoints that were signed. Each
    /// organization has its turn, however many there are and however much one of them writes.
    ///
    /// # Errors
    /// The store's; what was sealed before stays so, the rest waits on.
    pub async fn seal_audit_logs(&self) -> Result<Vec<NewCheckpoint>, AppError> {
        self.seal_some_audit_logs(ORGS_AT_ONCE_MAX).await
    }

    /// As [`seal_audit_logs`](Self::seal_audit_logs) in at most so many organizations: the next call goes on behind the last of them.
    ///
    /// # Errors
    /// As there.
    pub async fn seal_some_audit_logs(&self, orgs_max: u32) -> Result<Vec<NewCheckpoint>, AppError> {
        let after = *self.audit.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let orgs = self
            .store()
            .read(&SystemScope::new(SystemReason::Jobs), (after, orgs_max), |tx, (after, orgs_max)| {
                Box::pin(async move { tx.list_audit_waiting_orgs(*after, *orgs_max).await })
            })
            .await?;
        let is_last_page = orgs.len() < orgs_max as usize;
        let next = if is_last_page { None } else { orgs.last().copied() };
        *self.audit.turn.lock().unwrap_or_else(PoisonError::into_inner) = next;
        let mut signed = Vec::new();
        for org in orgs {
            // One organization's broken log holds up no other's.
            match self.seal_audit_log(org, false).await {
                Ok(checkpoints) => signed.extend(checkpoints),
                Err(error) => {
                    metrics::counter!("bulkhead_audit_seal_failures_total").increment(1);
                    tracing::error!(%org, error = &error as &dyn std::error::Error, "the audit log could not be sealed; trying again");
                }
            }
        }
        Ok(signed)
    }

    /// Gives the organization's waiting entries their places, some thousands of them; `want_checkpoint` signs one over them even if none
    /// is due.
    ///
    /// # Errors
    /// The store's; [`StoreError::Corrupt`] for a log that does not continue its kept checkpoint.
    pub async fn seal_audit_log(&self, org: OrgId, want_checkpoint: bool) -> Result<Vec<NewCheckpoint>, AppError> {
        let scope = SystemScope::new(SystemReason::Worker).for_org(org);
        let kept = self.kept_checkpoint(org)?;
        let mut signed = Vec::new();
        for turn in 1..=TURNS_MAX {
            let wish = Wish { checkpoint: want_checkpoint, is_last: turn == TURNS_MAX };
            let args = (org, self.sealer().clone(), self.ambient().clone(), kept.clone(), wish);
            let sealed = self
                .store()
                // The log's row is locked: of several nodes one numbers the entries.
                .write_locked(&scope, args, |tx, (org, sealer, ambient, kept, wish)| {
                    Box::pin(async move { seal(tx, *org, (sealer, ambient), kept.as_ref(), *wish).await })
                })
                .await?;
            metrics::counter!("bulkhead_audit_entries_sealed_total").increment(sealed.entries);
            if sealed.unreadable > 0 {
                metrics::counter!("bulkhead_audit_seal_failures_total").increment(1);
                tracing::error!(%org, rows = sealed.unreadable, "audit entries cannot be read and get no place");
            }
            if sealed.checkpoint.is_some() {
                metrics::counter!("bulkhead_audit_checkpoints_total").increment(1);
            }
            signed.extend(sealed.checkpoint);
            if !sealed.more {
                break;
            }
        }
        Ok(signed)
    }

    /// Checks by the rows that one checkpoint continues another one: both as signed notes.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it does not; the store's.
    pub async fn check_audit_checkpoints(&self, org: OrgId, old: &str, new: &str) -> Result<(), AppError> {
        let scope = SystemScope::new(SystemReason::Worker).for_org(org);
        let args = (read_checkpoint(old)?, read_checkpoint(new)?);
        self.store()
            .read(&scope, args, |tx, (old, new)| Box::pin(async move { Ok(require_follows(tx, old, new).await?) }))
            .await
    }

    /// The organization's newest checkpoint as a signed note, with its verifier key; `None` before the first one.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn audit_checkpoint(&self, caller: &Caller, org: OrgId) -> Result<Option<(String, String)>, AppError> {
        let scope = caller.authorize(org, Permission::AuditRead)?;
        self.newest_checkpoint(&scope).await
    }

    /// The newest checkpoint of each log that has one, to be kept outside of the database.
    ///
    /// # Errors
    /// The store's.
    pub async fn newest_audit_checkpoints(&self) -> Result<Vec<NewCheckpoint>, AppError> {
        let (jobs, mut after, mut newest) = (SystemScope::new(SystemReason::Jobs), None, Vec::new());
        loop {
            let orgs = self.store().read(&jobs, after, |tx, after| {
                Box::pin(async move { tx.list_orgs_by_id(*after, ORGS_AT_ONCE_MAX).await })
            });
            let orgs = orgs.await?;
            let Some(last) = orgs.last() else { return Ok(newest) };
            after = Some(*last);
            for org in orgs {
                let scope = SystemScope::new(SystemReason::Worker).for_org(org);
                let found = self
                    .store()
                    .read(&scope, (), |tx, ()| Box::pin(async move { tx.load_audit_checkpoint(u64::MAX).await }));
                newest.extend(found.await?.map(|(size, note)| NewCheckpoint { org, size, note }));
            }
        }
    }

    /// As [`audit_checkpoint`](Self::audit_checkpoint), for the operator at the console.
    ///
    /// # Errors
    /// The store's.
    pub async fn audit_checkpoint_as_operator(&self, org: OrgId) -> Result<Option<(String, String)>, AppError> {
        self.newest_checkpoint(&SystemScope::new(SystemReason::Admin).for_org(org)).await
    }

    async fn newest_checkpoint(&self, scope: &OrgScope) -> Result<Option<(String, String)>, AppError> {
        self.store()
            .read(scope, (), |tx, ()| {
                Box::pin(async move {
                    let Some(log) = tx.load_audit_log().await? else { return Ok(None) };
                    let checkpoint = tx.load_audit_checkpoint(log.size).await?;
                    Ok(checkpoint.map(|(_, note)| (note, log.verifier_key)))
                })
            })
            .await
    }
}
