//! The audit log as it is proven: entries get their place, checkpoints are signed, bundles are written and verified.
//!
//! An entry is written in the transaction that it describes and waits there. The sealer (one loop on each node; the log's row lock lets
//! one of them write) gives the waiting entries their numbers, so an act never waits for a signature. The rows that wait *are* the
//! durable queue: what a crash interrupts is still waiting.

use std::time::Duration;

use bulkhead_audit::bundle::{Coverage, EntryLine, Header, Line, Payload, SignatureBytes, Writer};
use bulkhead_audit::chain::{Chain, Entry, origin};
use bulkhead_audit::checkpoint::Checkpoint;
use bulkhead_audit::hash::Hash;
use bulkhead_audit::key::{SignerKey, VerifierKey};
use bulkhead_audit::merkle::{self, Edge, Node, Plan};
use bulkhead_audit::note::Note;
use bulkhead_audit::payload::{Salt, commitment};
use bulkhead_audit::record::{Actor, Draft, Record, Target, Token, genesis};
use bulkhead_audit::taxonomy::EventType;
use bulkhead_audit::taxonomy::{ActorKind, Outcome};
use bulkhead_audit::verify::{Expectation, Report, Verifier};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::OrgId;
use bulkhead_model::permission::{Actor as ModelActor, Caller, OrgScope, Permission, SystemReason, SystemScope};
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::audit_log::{AuditLog, SealedAudit, WaitingAudit};
use bulkhead_store::seal::{Place, Sealer};
use bulkhead_store::{StoreError, Tx};
use serde_json::json;
use zeroize::Zeroizing;

use crate::{App, AppError};

/// Entries that get their place in one transaction: some tens of milliseconds of signatures.
const SEALED_AT_ONCE_MAX: u32 = 256;
/// A checkpoint is signed when so many entries are under none …
const CHECKPOINT_ENTRIES: u64 = 1000;
/// … or when the last one is so old and there are any (spec: each 60 s or 1,000 entries).
const CHECKPOINT_EVERY: Duration = Duration::from_mins(1);
/// Organizations that one look takes on; the rest have their turn at the next.
const ORGS_AT_ONCE_MAX: u32 = 500;
/// Entries in one exported bundle at most, and in one page that is read. More than two checkpoints are apart.
pub const EXPORTED_MAX: u64 = 5000;
const PAGE: u32 = 500;

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
    /// As many as fit: there may be more.
    more: bool,
    checkpoint: Option<NewCheckpoint>,
}

/// Where a bundle begins and ends.
#[derive(Clone, Debug)]
struct Span {
    first: u64,
    header: Header,
    /// Checkpoints within, the last of which ends the bundle.
    checkpoints: Vec<(u64, String)>,
    /// The way from the checkpoint that the reader has kept.
    since: Option<Line>,
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

/// What the chain is to say of an entry.
fn draft(waiting: &WaitingAudit, salt: &Salt, key: Option<String>) -> Result<Draft, StoreError> {
    let event = EventType::from_name(&waiting.action)
        .ok_or_else(|| corrupt("an audit entry", format_args!("unknown action {}", waiting.action)))?;
    Ok(Draft {
        id: Token::from_any(&waiting.id.to_string()),
        ts: waiting.created_at.to_string().parse().map_err(|error| corrupt("an audit entry", error))?,
        event,
        severity: event.severity(),
        actor: actor_of(&waiting.actor),
        target: Target { kind: Token::from_any(kind_of(&waiting.target)), id: Token::from_any(&waiting.target) },
        outcome: Outcome::Success,
        reason: None,
        session: None,
        correlation: None,
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
    let opening = tx.record_audit_opening(&event, ambient).await?;
    let (mut chain, salt) = (Chain::new(token_of(org)), Salt::from_bytes(ambient.random()));
    let draft = draft(&opening, &salt, Some(verifier_key))?;
    let entry = chain.append(draft, &key, None).map_err(|error| corrupt("the audit log", error))?;
    put(tx, &opening, entry, salt).await?;
    log.size = chain.size();
    Ok((log, key, chain))
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

/// Gives waiting entries their places, and signs a checkpoint when one is due or asked for.
async fn seal(
    tx: &mut Tx,
    org: OrgId,
    sealer: &Sealer,
    ambient: &Ambient,
    want_checkpoint: bool,
) -> Result<Sealed, StoreError> {
    let (mut log, key, mut chain) = open(tx, org, sealer, ambient).await?;
    let waiting = tx.list_audit_waiting(SEALED_AT_ONCE_MAX).await?;
    let more = waiting.len() == SEALED_AT_ONCE_MAX as usize;
    for waiting in &waiting {
        let salt = Salt::from_bytes(ambient.random());
        let draft = draft(waiting, &salt, None)?;
        let entry = chain.append(draft, &key, None).map_err(|error| corrupt("the audit log", error))?;
        put(tx, waiting, entry, salt).await?;
    }
    (log.size, log.last, log.edge) = (chain.size(), chain.last(), chain.edge().roots().to_vec());
    let (uncovered, now) = (log.size - log.checkpoint_size, ambient.now());
    let due = log.checkpoint_size == 0
        || uncovered >= CHECKPOINT_ENTRIES
        || now.since(log.checkpoint_at) >= CHECKPOINT_EVERY
        || want_checkpoint;
    let mut checkpoint = None;
    if uncovered > 0 && due && !more {
        let next = chain.checkpoint();
        // Never a second history: the last one must be the beginning of this one, by its own proof.
        let previous = match tx.load_audit_checkpoint(log.checkpoint_size).await? {
            Some((_, note)) => Some(read_checkpoint(&note)?),
            None => None,
        };
        let way = consistency(tx, log.checkpoint_size, next.size).await?;
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
    Ok(Sealed { entries: waiting.len() as u64, more, checkpoint })
}

/// An entry's line. It says what the row says, whether or not that is true.
fn line(sealed: &SealedAudit, waiting: &WaitingAudit) -> Result<Line, StoreError> {
    let not_json = |error: serde_json::Error| corrupt("an audit entry", error);
    let payload = Payload::shown(sealed.salt.clone(), &waiting.detail).map_err(not_json)?;
    let line = EntryLine::new(&sealed.record, sealed.key_id, sealed.signature, payload).map_err(not_json)?;
    Ok(Line::Entry(EntryLine { endorsement: sealed.endorsement.map(SignatureBytes), ..line }))
}

/// What is searched and shown of an entry must be what its record says.
fn differing(sealed: &SealedAudit, waiting: &WaitingAudit) -> Option<&'static str> {
    let record = Record::from_canonical(&sealed.record).ok()?;
    let same = [
        ("its id", record.id.as_str() == waiting.id.to_string()),
        ("its action", record.event.as_str() == waiting.action),
        ("its target", record.target.id == Token::from_any(&waiting.target)),
        ("its actor", record.actor == actor_of(&waiting.actor)),
        ("its time", record.ts.as_str() == waiting.created_at.to_string()),
        ("its number", record.seq == sealed.seq),
        ("its leaf hash", bulkhead_audit::record::leaf_hash(&sealed.record) == sealed.leaf),
    ];
    same.into_iter().find(|(_, same)| !same).map(|(what, _)| what)
}

async fn header(tx: &mut Tx, org: OrgId, first: u64, log: &AuditLog) -> Result<Header, StoreError> {
    let mut edge = Vec::new();
    for wanted in merkle::edge(first) {
        edge.push(node(tx, wanted).await?);
    }
    let prev = match first.checked_sub(1) {
        None => genesis(&token_of(org)),
        Some(before) => node(tx, Node { level: 0, index: before }).await?,
    };
    let keys = if first == 0 { Vec::new() } else { vec![log.verifier_key.clone()] };
    let (token, coverage) = (token_of(org), Coverage::Range);
    Ok(Header { v: 1, origin: origin(&token), org: token, coverage, first, prev, edge, keys })
}

async fn span(tx: &mut Tx, org: OrgId, first: u64, since: Option<u64>) -> Result<Option<(Span, AuditLog)>, StoreError> {
    let Some(log) = tx.load_audit_log().await? else { return Ok(None) };
    let end = tx.load_audit_checkpoint(first.saturating_add(EXPORTED_MAX)).await?;
    let Some((end, _)) = end.filter(|(size, _)| *size > first) else { return Ok(None) };
    let since = match since.filter(|since| (1..=end).contains(since)) {
        Some(from) => Some(Line::Consistency { from, to: end, path: consistency(tx, from, end).await? }),
        None => None,
    };
    let checkpoints = tx.list_audit_checkpoints(first, end).await?;
    Ok(Some((Span { first, header: header(tx, org, first, &log).await?, checkpoints, since }, log)))
}

impl App {
    /// Gives every waiting entry its place, in each organization where one waits, and answers the checkpoints that were signed.
    ///
    /// # Errors
    /// The store's; what was sealed before stays so, the rest waits on.
    pub async fn seal_audit_logs(&self) -> Result<Vec<NewCheckpoint>, AppError> {
        let orgs = self
            .store()
            .read(&SystemScope::new(SystemReason::Jobs), (), |tx, ()| {
                Box::pin(async move { tx.list_audit_waiting_orgs(ORGS_AT_ONCE_MAX).await })
            })
            .await?;
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

    /// Gives the organization's waiting entries their places; `want_checkpoint` signs one over them even if none is due.
    ///
    /// # Errors
    /// The store's.
    pub async fn seal_audit_log(&self, org: OrgId, want_checkpoint: bool) -> Result<Vec<NewCheckpoint>, AppError> {
        let scope = SystemScope::new(SystemReason::Worker).for_org(org);
        let mut signed = Vec::new();
        loop {
            let args = (org, self.sealer().clone(), self.ambient().clone(), want_checkpoint);
            let sealed = self
                .store()
                // The log's row is locked: of several nodes one numbers the entries.
                .write_locked(&scope, args, |tx, (org, sealer, ambient, want_checkpoint)| {
                    Box::pin(async move { seal(tx, *org, sealer, ambient, *want_checkpoint).await })
                })
                .await?;
            metrics::counter!("bulkhead_audit_entries_sealed_total").increment(sealed.entries);
            if sealed.checkpoint.is_some() {
                metrics::counter!("bulkhead_audit_checkpoints_total").increment(1);
            }
            signed.extend(sealed.checkpoint);
            if !sealed.more {
                return Ok(signed);
            }
        }
    }

    /// The organization's newest checkpoint as a signed note, with its verifier key; `None` before the first one.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn audit_checkpoint(&self, caller: &Caller, org: OrgId) -> Result<Option<(String, String)>, AppError> {
        let scope = caller.authorize(org, Permission::AuditRead)?;
        self.newest_checkpoint(&scope).await
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

    /// Writes a bundle of the entries from number `first` on, at most [`EXPORTED_MAX`]; `since` is the size of a checkpoint that the
    /// reader has kept. The export is itself an entry, written first: without it nothing is handed out.
    ///
    /// # Errors
    /// A refusal; [`AppError::NotFound`] when there is no entry from `first` on; the store's.
    pub async fn export_audit(
        &self,
        caller: &Caller,
        org: OrgId,
        first: u64,
        since: Option<u64>,
    ) -> Result<String, AppError> {
        self.export(&caller.authorize(org, Permission::AuditRead)?, first, since).await
    }

    /// As [`export_audit`](Self::export_audit), for the operator at the console.
    ///
    /// # Errors
    /// As there.
    pub async fn export_audit_as_operator(
        &self,
        org: OrgId,
        first: u64,
        since: Option<u64>,
    ) -> Result<String, AppError> {
        self.export(&SystemScope::new(SystemReason::Admin).for_org(org), first, since).await
    }

    async fn export(&self, scope: &OrgScope, first: u64, since: Option<u64>) -> Result<String, AppError> {
        let org = scope.org();
        let args = (org, first, scope.actor().clone(), self.ambient().clone());
        self.store()
            .write(scope, args, |tx, (org, first, actor, ambient)| {
                Box::pin(async move {
                    let event = AuditEvent {
                        action: EventType::AuditExported,
                        target: org.to_string(),
                        actor: actor.clone(),
                        detail: json!({ "first": first }),
                    };
                    tx.record_audit(&event, ambient).await
                })
            })
            .await?;
        self.seal_audit_log(org, true).await?;
        let (span, key) = self
            .store()
            .read(scope, (org, first, since, self.sealer().clone()), |tx, (org, first, since, sealer)| {
                Box::pin(async move {
                    let Some((span, log)) = span(tx, *org, *first, *since).await? else { return Ok(None) };
                    let key = signer(tx, &log, *org, sealer).await?;
                    Ok::<_, StoreError>(Some((span, key)))
                })
            })
            .await?
            .ok_or(AppError::NotFound { what: "audit entry" })?;
        let (mut writer, mut text) = Writer::begin(span.header);
        let mut next = span.first;
        for (size, note) in span.checkpoints {
            while next < size {
                let page = self.audit_page(scope, next, size).await?;
                // What is missing in the middle is for the reader to find, not to be passed over here.
                next = page.last().map_or(size, |(sealed, _)| sealed.seq + 1);
                for (sealed, waiting) in &page {
                    text.push_str(&writer.line(&line(sealed, waiting)?));
                }
            }
            text.push_str(&writer.line(&Line::Checkpoint(note)));
        }
        if let Some(since) = &span.since {
            text.push_str(&writer.line(since));
        }
        text.push_str(&writer.end(&key).map_err(|error| corrupt("the audit log", error))?);
        Ok(text)
    }

    /// Entries from `from` up to, without, `to`, as many as a page holds.
    async fn audit_page(
        &self,
        scope: &OrgScope,
        from: u64,
        to: u64,
    ) -> Result<Vec<(SealedAudit, WaitingAudit)>, AppError> {
        let mut page = self
            .store()
            .read(scope, from, |tx, from| Box::pin(async move { tx.list_audit_entries(*from, PAGE).await }))
            .await?;
        page.retain(|(sealed, _)| sealed.seq < to);
        Ok(page)
    }

    /// Verifies the organization's whole log as the database holds it: what is sealed first, and against checkpoints that were kept
    /// elsewhere.
    ///
    /// # Errors
    /// The store's. What is wrong with the log is in the report.
    pub async fn verify_audit_as_operator(
        &self,
        org: OrgId,
        keys: Vec<VerifierKey>,
        kept: Vec<String>,
    ) -> Result<Report, AppError> {
        let scope = SystemScope::new(SystemReason::Admin).for_org(org);
        let log = self.store().read(&scope, (), |tx, ()| Box::pin(async move { tx.load_audit_log().await })).await?;
        let log = log.ok_or(AppError::NotFound { what: "audit log" })?;
        let expectation = Expectation { keys, kept, org: Some(token_of(org)), ..Expectation::default() };
        let mut verifier = Verifier::new(expectation);
        let first = self
            .store()
            .read(&scope, (org, log.clone()), |tx, (org, log)| Box::pin(async move { header(tx, *org, 0, log).await }))
            .await?;
        verifier.line(&Line::Log(first).to_text());
        let checkpoints = self
            .store()
            .read(&scope, log.size, |tx, size| Box::pin(async move { tx.list_audit_checkpoints(0, *size).await }))
            .await?;
        let (mut next, mut checkpoints) = (0, checkpoints.into_iter().peekable());
        while next < log.size {
            let page = self.audit_page(&scope, next, log.size).await?;
            if page.is_empty() {
                break;
            }
            for (sealed, waiting) in &page {
                verifier.line(&line(sealed, waiting)?.to_text());
                if let Some(what) = differing(sealed, waiting) {
                    verifier.differs(sealed.seq, what);
                }
                next = sealed.seq + 1;
                while let Some((_, note)) = checkpoints.next_if(|(size, _)| *size <= next) {
                    verifier.line(&Line::Checkpoint(note).to_text());
                }
            }
        }
        for (_, note) in checkpoints {
            verifier.line(&Line::Checkpoint(note).to_text());
        }
        verifier.ends_at(log.size);
        Ok(verifier.finish())
    }
}
