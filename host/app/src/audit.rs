//! Reading the audit log.

use bulkhead_model::id::OrgId;
use bulkhead_model::permission::{Caller, Permission};
use bulkhead_store::audit::AuditEntry;
use bulkhead_store::page::{Page, PageRequest};

use crate::{App, AppError};

impl App {
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
        self.store()
            .read(&scope, (action, target, page), |tx, (action, target, page)| {
                Box::pin(async move { Ok(tx.list_audit(action.as_deref(), target.as_deref(), *page).await?) })
            })
            .await
    }
}
