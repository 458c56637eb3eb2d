//! Reading the events that left transactions.

use bulkhead_model::id::OrgId;
use bulkhead_model::permission::{Caller, Permission};
use bulkhead_store::event::Event;
use bulkhead_store::page::{Page, PageRequest};

use crate::{App, AppError};

impl App {
    /// Newest first; `kind` narrows when given.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_events(
        &self,
        caller: &Caller,
        org: OrgId,
        kind: Option<String>,
        page: PageRequest,
    ) -> Result<Page<Event>, AppError> {
        let scope = caller.authorize(org, Permission::EventsRead)?;
        self.store()
            .read(&scope, (kind, page), |tx, (kind, page)| {
                Box::pin(async move { Ok(tx.list_events(kind.as_deref(), *page).await?) })
            })
            .await
    }
}
