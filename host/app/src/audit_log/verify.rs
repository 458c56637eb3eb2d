//! Verifying the log as the database holds it, with what is shown and searched beside it.

use std::collections::VecDeque;

use bulkhead_audit::bundle::Line;
use bulkhead_audit::hash::Hash;
use bulkhead_audit::key::VerifierKey;
use bulkhead_audit::merkle::Edge;
use bulkhead_audit::record::{Record, Token, genesis, leaf_hash};
use bulkhead_audit::taxonomy::EventType;
use bulkhead_audit::verify::{Expectation, Report, Verifier};
use bulkhead_model::id::OrgId;
use bulkhead_model::permission::{OrgScope, SystemReason, SystemScope};
use bulkhead_store::StoreError;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::audit_log::{AuditLog, AuditRow, SealedAudit, WaitingAudit};
use serde_json::json;

use super::bundle::{Disposals, header, line};
use super::{actor_of, token_of};
use crate::{App, AppError};

/// Checkpoints that are read at once.
const CHECKPOINTS_PAGE: u32 = 100;
/// Rows of which it is looked at once whether they have their place.
const PLACES_PAGE: u32 = 500;

/// What is searched and shown of an entry must be what its record says.
fn differing(sealed: &SealedAudit, waiting: &WaitingAudit) -> Option<&'static str> {
    let record = Record::from_canonical(&sealed.record).ok()?;
    let same = [
        ("its id", record.id.as_str() == waiting.id.to_string()),
        ("its action", record.event == Token::from_any(&waiting.action)),
        ("its target", record.target.id == Token::from_any(&waiting.target)),
        ("its actor", record.actor == actor_of(&waiting.actor)),
        ("its correlation id", record.correlation == waiting.correlation.as_deref().map(Token::from_any)),
        ("its time", record.ts.as_str() == waiting.created_at.to_string()),
        ("its number", record.seq == sealed.seq),
        ("its leaf hash", leaf_hash(&sealed.record) == sealed.leaf),
    ];
    same.into_iter().find(|(_, same)| !same).map(|(what, _)| what)
}

/// One entry, whatever its row says.
fn look_at(verifier: &mut Verifier, disposals: &Disposals, AuditRow { seq, row }: &AuditRow) {
    let (sealed, waiting) = match row {
        Ok(row) => row,
        Err(error) => return verifier.unreadable_entry(*seq, error),
    };
    match line(sealed, waiting, disposals) {
        Ok(line) => verifier.line(&Line::Entry(line).to_text()),
        Err(error) => verifier.unreadable_entry(*seq, &error),
    }
    if let Some(what) = differing(sealed, waiting) {
        verifier.differs(*seq, what);
    }
}

/// The tree as the entries make it. What the database keeps of it beside them is what proofs are made of, and where sealing goes on.
struct Tree {
    edge: Edge,
    last: Hash,
    /// An entry was missing or another one: that is named, and behind it there is nothing to compare with.
    is_broken: bool,
}

impl Tree {
    fn new(org: OrgId) -> Self {
        Self { edge: Edge::new(), last: genesis(&token_of(org)), is_broken: false }
    }

    fn look_at(&mut self, verifier: &mut Verifier, AuditRow { seq, row }: &AuditRow) {
        match row {
            Ok((sealed, _))
                if !self.is_broken && *seq == self.edge.size() && leaf_hash(&sealed.record) == sealed.leaf =>
            {
                self.last = sealed.leaf;
                if self.edge.append(sealed.leaf) != sealed.completed {
                    verifier.differs(*seq, "the roots that it completed");
                }
            }
            Ok(_) | Err(_) => self.is_broken = true,
        }
    }

    /// Compares where the log says that it stands, once as many entries were looked at.
    fn look_at_end(&self, verifier: &mut Verifier, log: &AuditLog) {
        if self.is_broken || self.edge.size() != log.size {
            return;
        }
        if self.edge.roots() != log.edge {
            verifier.differs(log.size, "the edge of the tree that is grown on");
        }
        if self.last != log.last {
            verifier.differs(log.size, "the entry that the next one follows");
        }
    }
}

/// The log's checkpoints one after the other, a page in memory.
struct Checkpoints {
    page: VecDeque<(u64, String)>,
    /// Up to which size they were read.
    read: u64,
    last: u64,
}

impl Checkpoints {
    /// The next one, if it covers no more than so many entries.
    async fn next_up_to(&mut self, app: &App, scope: &OrgScope, size: u64) -> Result<Option<String>, AppError> {
        if self.page.is_empty() && self.read < self.last {
            let args = (self.read, self.last);
            let page = app.store().read(scope, args, |tx, (read, last)| {
                Box::pin(async move { tx.list_audit_checkpoints(*read, *last, CHECKPOINTS_PAGE).await })
            });
            self.page = page.await?.into();
            self.read = self.page.back().map_or(self.last, |(size, _)| *size);
        }
        let is_next = self.page.front().is_some_and(|(next, _)| *next <= size);
        Ok(if is_next { self.page.pop_front().map(|(_, note)| note) } else { None })
    }
}

impl App {
    /// Verifies the organization's whole log as the database holds it, against checkpoints that were kept elsewhere: each entry with what
    /// is shown of it, and whether anything is shown that has no place. What waits for its place is counted. The verification is itself
    /// an entry.
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
        let log = self.log_of(&scope).await?.ok_or(AppError::NotFound { what: "audit log" })?;
        let expectation = Expectation { keys, kept, org: Some(token_of(org)), ..Expectation::default() };
        let mut verifier = Verifier::new(expectation);
        let first = self
            .store()
            .read(&scope, (org, log.clone()), |tx, (org, log)| Box::pin(async move { header(tx, *org, 0, log).await }))
            .await?;
        verifier.line(&Line::Log(first).to_text());
        let mut checkpoints = Checkpoints { page: VecDeque::new(), read: 0, last: log.size };
        let (mut next, mut disposals, mut tree) = (0, Disposals::default(), Tree::new(org));
        loop {
            let page = match self.audit_page(&scope, next, u64::MAX).await {
                Ok(page) => page,
                // One row that the database cannot hand out spoils a page: then they are read one by one.
                Err(AppError::Store(StoreError::Corrupt { .. })) => vec![self.audit_row(&scope, next).await?],
                Err(error) => return Err(error),
            };
            let Some(last) = page.last() else { break };
            let behind = last.seq.saturating_add(1);
            disposals.learn(self, &scope, &page).await?;
            for row in &page {
                look_at(&mut verifier, &disposals, row);
                tree.look_at(&mut verifier, row);
                tree.look_at_end(&mut verifier, &log);
                while let Some(note) = checkpoints.next_up_to(self, &scope, row.seq.saturating_add(1)).await? {
                    verifier.line(&Line::Checkpoint(note).to_text());
                }
            }
            next = behind;
        }
        while let Some(note) = checkpoints.next_up_to(self, &scope, u64::MAX).await? {
            verifier.line(&Line::Checkpoint(note).to_text());
        }
        verifier.ends_at(log.size);
        if !verifier.has_key(&log.verifier_key) {
            verifier.differs(log.size, "the key that signs from here on");
        }
        // Others may have gone on sealing meanwhile.
        let size = self.log_of(&scope).await?.map_or(0, |log| log.size);
        if next > size {
            verifier.differs(size, "where the log ends");
        }
        self.look_for_strangers(&scope, &mut verifier).await?;
        let report = verifier.finish();
        self.record_verification(&scope, &report).await;
        Ok(report)
    }

    pub(super) async fn log_of(&self, scope: &OrgScope) -> Result<Option<AuditLog>, AppError> {
        self.store().read(scope, (), |tx, ()| Box::pin(async move { Ok(tx.load_audit_log().await?) })).await
    }

    pub(super) async fn audit_row(&self, scope: &OrgScope, seq: u64) -> Result<AuditRow, AppError> {
        let read = self.store().read(scope, seq, |tx, seq| {
            Box::pin(async move { Ok::<_, AppError>(tx.list_audit_entries(*seq, 1).await?) })
        });
        match read.await {
            Ok(rows) => rows.into_iter().next().ok_or(AppError::NotFound { what: "audit entry" }),
            Err(AppError::Store(error @ StoreError::Corrupt { .. })) => Ok(AuditRow { seq, row: Err(error) }),
            Err(error) => Err(error),
        }
    }

    /// What is shown and was written by nobody of ours.
    async fn look_for_strangers(&self, scope: &OrgScope, verifier: &mut Verifier) -> Result<(), AppError> {
        let mut after = None;
        loop {
            let places = self.store().read(scope, after, |tx, after| {
                Box::pin(async move { tx.list_audit_places(*after, PLACES_PAGE).await })
            });
            let places = places.await?;
            let Some(last) = places.last() else { return Ok(()) };
            after = Some(last.id);
            for place in places.iter().filter(|place| place.seq.is_none()) {
                if place.waits { verifier.waits() } else { verifier.unplaced(&place.id) }
            }
        }
    }

    /// The report is worth more than the entry about it: a database that takes none is told, and the report given all the same.
    async fn record_verification(&self, scope: &OrgScope, report: &Report) {
        let event = AuditEvent {
            action: EventType::AuditVerified,
            target: scope.org().to_string(),
            actor: scope.actor().clone(),
            detail: json!({
                "sound": report.is_sound(),
                "entries": report.entries,
                "faults": report.faults_total,
                "first_bad_entry": report.first_bad_entry(),
            }),
        };
        let written = self.store().write(scope, (event, self.ambient().clone()), |tx, (event, ambient)| {
            Box::pin(async move { tx.record_audit(event, ambient).await })
        });
        if let Err(error) = written.await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "that the audit log was verified could not be recorded"
            );
        }
    }
}
