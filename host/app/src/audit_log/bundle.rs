//! Taking the log out, with what proves it: a bundle is written as it is read, so that however much is in it, little of it is in memory.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use bulkhead_audit::bundle::{Coverage, EntryLine, Header, Line, Payload, SignatureBytes, Writer};
use bulkhead_audit::chain::origin;
use bulkhead_audit::key::SignerKey;
use bulkhead_audit::merkle::{self, Node};
use bulkhead_audit::record::{Record, Token, genesis};
use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::id::OrgId;
use bulkhead_model::permission::{Caller, OrgScope, Permission, SystemReason, SystemScope};
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::audit_log::{AuditLog, AuditRow, SealedAudit, WaitingAudit};
use bulkhead_store::{StoreError, Tx};
use serde_json::{Value, json};

use super::signing::key_at;
use super::{PAGE, consistency, corrupt, node, signer, token_of};
use crate::{App, AppError};

/// Entries in one bundle at most, unless its first checkpoint covers more: a bundle ends at one.
const EXPORTED_MAX: u64 = 5000;
/// A bundle that has grown to so many bytes ends at its next checkpoint.
const EXPORTED_BYTES: usize = 16 * 1024 * 1024;

/// What stands in a payload's place once it was disposed of.
pub(super) const DISPOSED: &str = "null";

/// Where a bundle begins, and the checkpoints at which it may end.
#[derive(Clone, Debug)]
struct Span {
    header: Header,
    checkpoints: Vec<(u64, String)>,
}

/// The line of an entry without its payload and its path.
pub(super) fn bare_line(sealed: &SealedAudit) -> Result<EntryLine, StoreError> {
    let line = EntryLine::new(&sealed.record, sealed.key_id, sealed.signature, Payload::Withheld);
    let line = line.map_err(|error| corrupt("an audit entry", error))?;
    Ok(EntryLine { endorsement: sealed.endorsement.map(SignatureBytes), ..line })
}

/// Under which policies payloads were disposed of, by the entries that say so.
#[derive(Default)]
pub(super) struct Disposals(BTreeMap<u64, Token>);

impl Disposals {
    /// Looks up those that these rows name.
    pub(super) async fn learn(&mut self, app: &App, scope: &OrgScope, rows: &[AuditRow]) -> Result<(), AppError> {
        let named = rows.iter().filter_map(|row| row.row.as_ref().ok()?.0.disposed_by);
        for by in named.collect::<BTreeSet<_>>() {
            if let Entry::Vacant(place) = self.0.entry(by) {
                // What is no disposal explains nothing, and the verifier says so.
                let said = match app.audit_row(scope, by).await {
                    Ok(AuditRow { row: Ok((sealed, _)), .. }) => Record::from_canonical(&sealed.record).ok(),
                    Ok(_) | Err(AppError::NotFound { .. }) => None,
                    Err(error) => return Err(error),
                };
                let policy = said.and_then(|record| record.disposal).map(|disposal| disposal.policy);
                place.insert(policy.unwrap_or_else(|| Token::from_any("unknown")));
            }
        }
        Ok(())
    }

    fn payload(&self, by: u64) -> Payload {
        let policy = self.0.get(&by).cloned().unwrap_or_else(|| Token::from_any("unknown"));
        Payload::Expired { policy, by }
    }

    /// The entries that were looked up.
    pub(super) fn named(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.keys().copied()
    }
}

pub(super) async fn header(tx: &mut Tx, org: OrgId, first: u64, log: &AuditLog) -> Result<Header, StoreError> {
    let mut edge = Vec::new();
    for wanted in merkle::edge(first) {
        edge.push(node(tx, wanted).await?);
    }
    let prev = match first.checked_sub(1) {
        None => genesis(&token_of(org)),
        Some(before) => node(tx, Node { level: 0, index: before }).await?,
    };
    let keys = if first == 0 { Vec::new() } else { vec![key_at(tx, first, log).await?] };
    let (token, coverage) = (token_of(org), Coverage::Range);
    Ok(Header { v: 1, origin: origin(&token), org: token, coverage, first, prev, edge, keys })
}

async fn span(tx: &mut Tx, org: OrgId, first: u64) -> Result<Option<(Span, AuditLog)>, StoreError> {
    let Some(log) = tx.load_audit_log().await? else { return Ok(None) };
    // Behind a backlog the next checkpoint may be farther away than a bundle is long: then it ends there.
    let within = tx.load_audit_checkpoint(first.saturating_add(EXPORTED_MAX)).await?;
    let last = match within.filter(|(size, _)| *size > first) {
        Some((size, _)) => size,
        None => match tx.list_audit_checkpoints(first, u64::MAX, 1).await?.first() {
            Some((size, _)) => *size,
            None => return Ok(None),
        },
    };
    let checkpoints = tx.list_audit_checkpoints(first, last, u32::MAX).await?;
    Ok(Some((Span { header: header(tx, org, first, &log).await?, checkpoints }, log)))
}

/// An entry's line. It says what the row says, whether or not that is true; none where the row says nothing that a line could hold.
pub(super) fn line(
    sealed: &SealedAudit,
    waiting: &WaitingAudit,
    disposals: &Disposals,
) -> Result<EntryLine, StoreError> {
    let bare = bare_line(sealed)?;
    // A row that says that it was disposed of and holds something all the same is no such row.
    let payload = match sealed.disposed_by {
        Some(by) if waiting.detail == DISPOSED => disposals.payload(by),
        // What is no JSON is shown as the text that it is: it opens no commitment, and so the entry is named.
        Some(_) | None => Payload::shown(sealed.salt.clone(), &waiting.detail)
            .or_else(|_| Payload::shown(sealed.salt.clone(), &Value::from(waiting.detail.as_str()).to_string()))
            .map_err(|error| corrupt("an audit entry", error))?,
    };
    Ok(EntryLine { payload, ..bare })
}

/// A bundle that is being written.
pub struct AuditBundle {
    app: App,
    scope: OrgScope,
    key: SignerKey,
    /// The first line, until it is handed out.
    head: Option<String>,
    /// None when the last line was handed out.
    writer: Option<Writer>,
    next: u64,
    checkpoints: std::vec::IntoIter<(u64, String)>,
    /// The checkpoint that comes next.
    ahead: Option<(u64, String)>,
    /// The size of a checkpoint that the reader has kept.
    since: Option<u64>,
    bytes: usize,
    disposals: Disposals,
}

impl AuditBundle {
    /// The next lines, with their line breaks; `None` when all were handed out. A bundle of which not all were is no whole one, and the
    /// verifier says so.
    ///
    /// # Errors
    /// The store's.
    pub async fn next(&mut self) -> Result<Option<String>, AppError> {
        if let Some(head) = self.head.take() {
            return Ok(Some(head));
        }
        let Some(writer) = &mut self.writer else { return Ok(None) };
        let (size, note) =
            self.ahead.clone().ok_or_else(|| corrupt("the audit log", "a bundle that ends at no checkpoint"))?;
        let mut text = String::new();
        if self.next < size {
            let page = self.app.audit_page(&self.scope, self.next, size).await?;
            // What is missing in the middle is for the reader to find, not to be passed over here.
            self.next = page.last().map_or(size, |row| row.seq + 1);
            self.disposals.learn(&self.app, &self.scope, &page).await?;
            for AuditRow { row, .. } in &page {
                let Ok((sealed, waiting)) = row else { continue };
                if let Ok(line) = line(sealed, waiting, &self.disposals) {
                    text.push_str(&writer.line(&Line::Entry(line)));
                }
            }
            self.bytes += text.len();
            return Ok(Some(text));
        }
        text.push_str(&writer.line(&Line::Checkpoint(note)));
        self.ahead = self.checkpoints.next().filter(|_| self.bytes < EXPORTED_BYTES);
        if self.ahead.is_none() {
            if let Some(from) = self.since.filter(|from| (1..=size).contains(from)) {
                let way = self.app.store().read(&self.scope, (from, size), |tx, (from, to)| {
                    Box::pin(async move { consistency(tx, *from, *to).await })
                });
                let path = way.await?;
                text.push_str(&writer.line(&Line::Consistency { from, to: size, path }));
            }
            // What is later than the bundle, and without which it cannot be read: keys that took over, and why payloads are gone.
            let mut later = self.app.audit_rotations(&self.scope).await?;
            later.extend(self.disposals.named());
            later.retain(|seq| *seq >= size);
            for seq in later {
                if let AuditRow { row: Ok((sealed, _)), .. } = self.app.audit_row(&self.scope, seq).await? {
                    text.push_str(&writer.line(&Line::Later(bare_line(&sealed)?)));
                }
            }
            if let Some(writer) = self.writer.take() {
                text.push_str(&writer.end(&self.key).map_err(|error| corrupt("the audit log", error))?);
            }
        }
        Ok(Some(text))
    }

    /// The whole, in memory.
    ///
    /// # Errors
    /// The store's.
    pub async fn into_text(mut self) -> Result<String, AppError> {
        let mut text = String::new();
        while let Some(lines) = self.next().await? {
            text.push_str(&lines);
        }
        Ok(text)
    }
}

impl App {
    /// Begins a bundle of the entries from number `first` on, of at most 5,000 entries or up to the next checkpoint; `since` is the
    /// size of a checkpoint that the reader has kept. The export is itself an entry, written first: without it nothing is handed out.
    ///
    /// # Errors
    /// A refusal; [`AppError::NotFound`] when there is no entry from `first` on; the store's.
    pub async fn export_audit(
        &self,
        caller: &Caller,
        org: OrgId,
        first: u64,
        since: Option<u64>,
    ) -> Result<AuditBundle, AppError> {
        self.export(caller.authorize(org, Permission::AuditExport)?, first, since).await
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
    ) -> Result<AuditBundle, AppError> {
        self.export(SystemScope::new(SystemReason::Admin).for_org(org), first, since).await
    }

    async fn export(&self, scope: OrgScope, first: u64, since: Option<u64>) -> Result<AuditBundle, AppError> {
        let org = scope.org();
        let nothing = || AppError::NotFound { what: "audit entry" };
        self.seal_audit_log(org, false).await?;
        let log = self.store().read(&scope, (), |tx, ()| Box::pin(async move { tx.load_audit_log().await })).await?;
        // Who asks for what is not there leaves nothing behind.
        let log = log.filter(|log| first < log.size).ok_or_else(nothing)?;
        let args = (org, first, scope.actor().clone(), self.ambient().clone());
        self.store()
            .write(&scope, args, |tx, (org, first, actor, ambient)| {
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
        // A checkpoint is signed for it where something that it could hold is under none.
        if log.checkpoint_size < log.size && log.checkpoint_size < first.saturating_add(EXPORTED_MAX) {
            self.seal_audit_log(org, true).await?;
        }
        let (span, key) = self
            .store()
            .read(&scope, (org, first, self.sealer().clone()), |tx, (org, first, sealer)| {
                Box::pin(async move {
                    let Some((span, log)) = span(tx, *org, *first).await? else { return Ok(None) };
                    let key = signer(tx, &log, *org, sealer).await?;
                    Ok::<_, StoreError>(Some((span, key)))
                })
            })
            .await?
            .ok_or_else(nothing)?;
        let (writer, head) = Writer::begin(span.header);
        let mut checkpoints = span.checkpoints.into_iter();
        let (app, head, writer, ahead) = (self.clone(), Some(head), Some(writer), checkpoints.next());
        Ok(AuditBundle {
            app,
            scope,
            key,
            head,
            writer,
            next: first,
            checkpoints,
            ahead,
            since,
            bytes: 0,
            disposals: Disposals::default(),
        })
    }

    /// Entries from `from` up to, without, `to`, as many as a page holds.
    pub(super) async fn audit_page(&self, scope: &OrgScope, from: u64, to: u64) -> Result<Vec<AuditRow>, AppError> {
        let mut page = self
            .store()
            .read(scope, from, |tx, from| {
                Box::pin(async move { Ok::<_, AppError>(tx.list_audit_entries(*from, PAGE).await?) })
            })
            .await?;
        page.retain(|row| row.seq < to);
        Ok(page)
    }
}
