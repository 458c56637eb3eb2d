//! Reading the audit log.

use std::time::Duration;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::id::OrgId;
use bulkhead_model::permission::{Caller, OrgScope, Permission};
use bulkhead_store::audit::AuditEntry;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::page::{Page, PageRequest};
use serde_json::json;

use crate::{App, AppError};

/// A reader's reads within this time are one entry.
const READ_RECORDED_EVERY: Duration = Duration::from_hours(1);

impl App {
    /// Writes that somebody reads the log: once an hour for each reader, so that one who polls does not fill it.
    pub(crate) async fn record_audit_read(&self, scope: &OrgScope) -> Result<(), AppError> {
        let who = (scope.org(), scope.actor().to_string());
        let now = self.ambient().now();
        if self.audit_reads().get(&who).is_some_and(|last| now.since(last) < READ_RECORDED_EVERY) {
            return Ok(());
        }
        self.store()
            .write(scope, (scope.actor().clone(), self.ambient().clone()), |tx, (actor, ambient)| {
                Box::pin(async move {
                    let event = AuditEvent {
                        action: EventType::AuditRead,
                        target: tx.org()?.to_string(),
                        actor: actor.clone(),
                        detail: json!({}),
                    };
                    tx.record_audit(&event, ambient).await
                })
            })
            .await?;
        self.audit_reads().insert(who, now);
        Ok(())
    }

    /// Newest first; `action` and `target` narrow when given.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_audit(
        &self,
        caller: &Caller,
        org: OrgId,
        action: Option<String>,
        target: Option<String>,
        page: PageRequest,
    ) -> Result<Page<AuditEntry>, AppError> {
        let scope = caller.authorize(org, Permission::AuditRead)?;
        self.record_audit_read(&scope).await?;
        self.store()
            .read(&scope, (action, target, page), |tx, (action, target, page)| {
                Box::pin(async move { Ok(tx.list_audit(action.as_deref(), target.as_deref(), *page).await?) })
            })
            .await
    }
}
