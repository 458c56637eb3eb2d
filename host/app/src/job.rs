//! Reading the queue.

use bulkhead_model::id::OrgId;
use bulkhead_model::permission::{Caller, Permission};
use bulkhead_store::job::Job;
use bulkhead_store::page::{Page, PageRequest};

use crate::{App, AppError};

impl App {
    /// The organization's jobs, newest first; `state` narrows when given.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_jobs(
        &self,
        caller: &Caller,
        org: OrgId,
        state: Option<String>,
        page: PageRequest,
    ) -> Result<Page<Job>, AppError> {
        let scope = caller.authorize(org, Permission::JobsRead)?;
        self.store()
            .read(&scope, (state, page), |tx, (state, page)| {
                Box::pin(async move { Ok(tx.list_jobs(state.as_deref(), *page).await?) })
            })
            .await
    }
}
