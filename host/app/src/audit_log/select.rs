//! Taking chosen entries out: each with its own proof, or as a sheet for people. And the proof between two sizes of the log.

use std::collections::BTreeSet;

use bulkhead_audit::bundle::{Coverage, EntryLine, Header, Line, VERSION, Writer};
use bulkhead_audit::cell;
use bulkhead_audit::chain::origin;
use bulkhead_audit::hash::Hash;
use bulkhead_audit::key::SignerKey;
use bulkhead_audit::merkle::Plan;
use bulkhead_audit::record::{Event, genesis};
use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::id::OrgId;
use bulkhead_model::permission::{Caller, OrgScope, Permission};
use bulkhead_store::StoreError;
use bulkhead_store::audit::{AuditEntry, AuditEvent, AuditFilter};
use bulkhead_store::audit_log::AuditRow;
use bulkhead_store::page::{PAGE_LIMIT_MAX, PageRequest};
use serde_json::{Value, json};

use super::bundle::{Disposals, bare_line, line};
use super::signing::keys;
use super::{consistency, corrupt, proof, read_checkpoint, signer, token_of};
use crate::{App, AppError};

/// Entries in one selection at most: each is read by itself, with its path.
const SELECTED_MAX: usize = 1000;
/// Entries in one sheet at most.
const SHEET_ENTRIES_MAX: u64 = 100_000;
/// Entries whose lines are written at once: with the largest payloads some megabytes.
const SELECTED_AT_ONCE: usize = 50;

/// What shows that the log over `from` entries is the beginning of the log over `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditConsistency {
    pub from: u64,
    pub to: u64,
    /// RFC 9162, 2.1.4.
    pub path: Vec<Hash>,
    /// The checkpoint over `to` entries as a signed note, where there is one.
    pub checkpoint: Option<String>,
}

/// A selection that is being written.
pub struct AuditSelection {
    app: App,
    scope: OrgScope,
    key: SignerKey,
    /// The first lines, until they are handed out.
    head: Option<String>,
    /// None when the last line was handed out.
    writer: Option<Writer>,
    /// Those that were asked for. The others are there to explain them, and show no payload.
    asked: BTreeSet<u64>,
    /// Numbers of the entries that come next.
    left: std::vec::IntoIter<u64>,
    /// How many entries the checkpoint covers.
    size: u64,
    disposals: Disposals,
}

impl AuditSelection {
    /// The next lines, with their line breaks; `None` when all were handed out.
    ///
    /// # Errors
    /// The store's.
    pub async fn next(&mut self) -> Result<Option<String>, AppError> {
        if let Some(head) = self.head.take() {
            return Ok(Some(head));
        }
        let Some(writer) = &mut self.writer else { return Ok(None) };
        let some: Vec<u64> = self.left.by_ref().take(SELECTED_AT_ONCE).collect();
        let mut text = String::new();
        if some.is_empty() {
            if let Some(writer) = self.writer.take() {
                text = writer.end(&self.key).map_err(|error| corrupt("the audit log", error))?;
            }
            return Ok(Some(text));
        }
        for seq in some {
            let row = self.app.audit_row(&self.scope, seq).await?;
            let AuditRow { row: Ok((sealed, waiting)), .. } = &row else { continue };
            // What was disposed of since is withheld: the entry that explains it is not in here.
            let is_explained = sealed.disposed_by.is_none_or(|by| self.disposals.named().any(|named| named == by));
            let entry = match line(sealed, waiting, &self.disposals) {
                Ok(entry) if is_explained && self.asked.contains(&seq) => entry,
                Ok(_) | Err(_) => bare_line(sealed)?,
            };
            let read = self.app.store().read(&self.scope, (seq, self.size), |tx, (seq, size)| {
                Box::pin(async move {
                    match Plan::inclusion(*seq, *size) {
                        Some(plan) => proof(tx, &plan).await.map(Some),
                        None => Ok(None),
                    }
                })
            });
            text.push_str(&writer.line(&Line::Entry(EntryLine { path: read.await?, ..entry })));
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

/// A sheet that is being written: entries as CSV, newest first. It is for people and proves nothing.
pub struct AuditSheet {
    app: App,
    scope: OrgScope,
    filter: AuditFilter,
    head: Option<String>,
    /// Which page comes next; none when all were handed out.
    next: Option<PageRequest>,
    written: u64,
}

const COLUMNS: [&str; 10] =
    ["seq", "id", "created_at", "action", "category", "severity", "actor", "target", "detail", "disposed_by"];

fn row(entry: &AuditEntry) -> String {
    let number = |number: Option<u64>| number.map_or_else(String::new, |number| number.to_string());
    let event = Event::named(&entry.action);
    // A payload that is gone is an empty cell.
    let detail = if entry.detail == Value::Null { String::new() } else { entry.detail.to_string() };
    let (seq, disposed_by) = (number(entry.seq), number(entry.disposed_by));
    let (id, at) = (entry.id.to_string(), entry.created_at.to_string());
    cell::line([
        seq.as_str(),
        &id,
        &at,
        &entry.action,
        event.category().as_str(),
        event.severity().as_str(),
        &entry.actor,
        &entry.target,
        &detail,
        &disposed_by,
    ])
}

impl AuditSheet {
    /// The next lines, with their line breaks; `None` when all were handed out.
    ///
    /// # Errors
    /// The store's.
    pub async fn next(&mut self) -> Result<Option<String>, AppError> {
        if let Some(head) = self.head.take() {
            return Ok(Some(head));
        }
        let Some(page) = self.next.take() else { return Ok(None) };
        let page = self.app.store().read(&self.scope, (self.filter.clone(), page), |tx, (filter, page)| {
            Box::pin(async move { tx.list_audit(filter, *page).await })
        });
        let page = page.await?;
        self.written += page.items.len() as u64;
        let more = page.next.filter(|_| self.written < SHEET_ENTRIES_MAX);
        self.next = more.map(|before| PageRequest { before: Some(before), limit: PAGE_LIMIT_MAX });
        Ok(Some(page.items.iter().map(row).collect()))
    }
}

impl App {
    async fn record_selection(&self, scope: &OrgScope, form: &'static str, what: Value) -> Result<(), AppError> {
        let args = (scope.org(), scope.actor().clone(), self.ambient().clone(), json!({ "form": form, "of": what }));
        self.store()
            .write(scope, args, |tx, (org, actor, ambient, detail)| {
                Box::pin(async move {
                    let (action, target) = (EventType::AuditExported, org.to_string());
                    let event = AuditEvent { action, target, actor: actor.clone(), detail: detail.clone() };
                    tx.record_audit(&event, ambient).await
                })
            })
            .await?;
        Ok(())
    }

    /// The newest 1,000 entries that the filter admits, each with its path to a checkpoint. The export is itself an entry, written first.
    ///
    /// # Errors
    /// A refusal; [`AppError::NotFound`] where there are none; the store's.
    pub async fn select_audit(
        &self,
        caller: &Caller,
        org: OrgId,
        filter: AuditFilter,
    ) -> Result<AuditSelection, AppError> {
        let scope = caller.authorize(org, Permission::AuditExport)?;
        self.seal_audit_log(org, false).await?;
        let (mut chosen, mut before) = (BTreeSet::new(), None);
        while chosen.len() < SELECTED_MAX {
            let page = PageRequest { before, limit: PAGE_LIMIT_MAX };
            let page = self.store().read(&scope, (filter.clone(), page), |tx, (filter, page)| {
                Box::pin(async move { tx.list_audit(filter, *page).await })
            });
            let page = page.await?;
            let left = SELECTED_MAX - chosen.len();
            chosen.extend(page.items.iter().filter_map(|entry| entry.seq).take(left));
            before = page.next;
            if before.is_none() {
                break;
            }
        }
        self.selection(scope, chosen, described(&filter)).await
    }

    /// One entry with its path to a checkpoint.
    ///
    /// # Errors
    /// As [`select_audit`](Self::select_audit).
    pub async fn prove_audit_entry(&self, caller: &Caller, org: OrgId, seq: u64) -> Result<AuditSelection, AppError> {
        let scope = caller.authorize(org, Permission::AuditExport)?;
        self.seal_audit_log(org, false).await?;
        let log = self.log_of(&scope).await?;
        let chosen = log.filter(|log| seq < log.size).map(|_| seq).into_iter().collect();
        self.selection(scope, chosen, json!({ "entry": seq })).await
    }

    async fn selection(&self, scope: OrgScope, asked: BTreeSet<u64>, what: Value) -> Result<AuditSelection, AppError> {
        let org = scope.org();
        let nothing = || AppError::NotFound { what: "audit entry" };
        let last = *asked.last().ok_or_else(nothing)?;
        self.record_selection(&scope, "selection", what).await?;
        let mut disposals = Disposals::default();
        for seq in &asked {
            disposals.learn(self, &scope, &[self.audit_row(&scope, *seq).await?]).await?;
        }
        // What explains a payload that is gone belongs to the selection.
        let mut chosen: BTreeSet<u64> = asked.iter().copied().chain(disposals.named()).collect();
        let last = chosen.last().copied().unwrap_or(last);
        let log = self.log_of(&scope).await?.ok_or_else(nothing)?;
        if log.checkpoint_size <= last {
            self.seal_audit_log(org, true).await?;
        }
        let (keys, key, size, note) = self
            .store()
            .read(&scope, (org, self.sealer().clone()), |tx, (org, sealer)| {
                Box::pin(async move {
                    let missing = || StoreError::NotFound { what: "audit checkpoint" };
                    let log = tx.load_audit_log().await?.ok_or_else(missing)?;
                    let (size, note) = tx.load_audit_checkpoint(log.size).await?.ok_or_else(missing)?;
                    let key = signer(tx, &log, *org, sealer).await?;
                    Ok::<_, StoreError>((keys(tx, &log).await?, key, size, note))
                })
            })
            .await?;
        // Whoever knows the newest key alone follows the others back from the checkpoint.
        if keys.len() > 1 {
            chosen.extend(keys.iter().map(|key| key.since));
        }
        chosen.retain(|seq| *seq < size);
        let header = selection_header(org, keys.into_iter().map(|key| key.verifier_key).collect());
        let (mut writer, mut head) = Writer::begin(header);
        head.push_str(&writer.line(&Line::Checkpoint(note)));
        let left = chosen.into_iter().collect::<Vec<_>>().into_iter();
        let (app, head, writer) = (self.clone(), Some(head), Some(writer));
        Ok(AuditSelection { app, scope, key, head, writer, asked, left, size, disposals })
    }

    /// Begins a sheet of the entries that the filter admits, newest first, at most 100,000. The export is itself an entry, written first.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn sheet_audit(&self, caller: &Caller, org: OrgId, filter: AuditFilter) -> Result<AuditSheet, AppError> {
        let scope = caller.authorize(org, Permission::AuditExport)?;
        self.record_selection(&scope, "csv", described(&filter)).await?;
        let head = Some(cell::line(COLUMNS));
        Ok(AuditSheet {
            app: self.clone(),
            scope,
            filter,
            head,
            next: Some(PageRequest { before: None, limit: PAGE_LIMIT_MAX }),
            written: 0,
        })
    }

    /// What shows that the log over `from` entries is the beginning of the log over `to` (of the newest checkpoint where none is said).
    ///
    /// # Errors
    /// A refusal; [`AppError::Invalid`] `invalid-consistency` unless 0 < from ≤ to ≤ the log's size; the store's.
    pub async fn audit_consistency(
        &self,
        caller: &Caller,
        org: OrgId,
        from: u64,
        to: Option<u64>,
    ) -> Result<AuditConsistency, AppError> {
        let scope = caller.authorize(org, Permission::AuditRead)?;
        let nothing = || AppError::NotFound { what: "audit checkpoint" };
        let log = self.log_of(&scope).await?.ok_or_else(nothing)?;
        let to = match to {
            Some(to) => to,
            None if log.checkpoint_size > 0 => log.checkpoint_size,
            None => return Err(nothing()),
        };
        if from == 0 || from > to || to > log.size {
            let message = format!("1 ≤ from ≤ to ≤ {}, the log's size", log.size);
            return Err(AppError::invalid("invalid-consistency", "?from", message));
        }
        self.store()
            .read(&scope, (from, to), |tx, (from, to)| {
                Box::pin(async move {
                    let path = consistency(tx, *from, *to).await?;
                    let checkpoint = tx.load_audit_checkpoint(*to).await?.filter(|(size, _)| size == to);
                    let checkpoint = checkpoint.map(|(_, note)| read_checkpoint(&note).map(|_| note)).transpose()?;
                    Ok(AuditConsistency { from: *from, to: *to, path, checkpoint })
                })
            })
            .await
    }
}

fn selection_header(org: OrgId, keys: Vec<String>) -> Header {
    let token = token_of(org);
    Header {
        v: VERSION,
        origin: origin(&token),
        prev: genesis(&token),
        org: token,
        coverage: Coverage::Selection,
        first: 0,
        edge: Vec::new(),
        keys,
    }
}

/// A filter as its entry says it.
fn described(filter: &AuditFilter) -> Value {
    let AuditFilter { action, target, actor, correlation, category, severity, from, to } = filter;
    let all = json!({
        "action": action, "target": target, "actor": actor, "correlation_id": correlation, "category": category, "severity": severity,
        "from": from, "to": to,
    });
    match all {
        Value::Object(fields) => fields.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::ambient::Ambient;
    use bulkhead_model::id::AuditId;
    use bulkhead_model::time::Timestamp;

    #[test]
    fn no_value_of_an_entry_becomes_a_formula_or_a_row() {
        let at = Timestamp::from_micros(1_795_248_000_000_000);
        let entry = AuditEntry {
            id: AuditId::new(&Ambient::manual(at, 1)),
            seq: Some(7),
            action: "=cmd|' /C calc'!A0".to_owned(),
            target: "+1\r\n2".to_owned(),
            actor: "@SUM(1)".to_owned(),
            correlation: None,
            detail: json!("-1"),
            created_at: at,
            disposed_by: None,
        };
        let line = row(&entry);
        assert!(line.ends_with("\r\n") && line.matches('\n').count() == 1, "{line:?}");
        for cell in ["\"'=cmd", "'+1\\u{d}\\u{a}2", "'@SUM(1)"] {
            assert!(line.contains(cell), "{cell} in {line:?}");
        }
        assert!(line.contains("system,warning"), "what nobody knows is the system's: {line:?}");
        let gone = AuditEntry { detail: Value::Null, disposed_by: Some(9), ..entry };
        assert!(row(&gone).ends_with(",\"\",9\r\n"), "{}", row(&gone));
    }
}
