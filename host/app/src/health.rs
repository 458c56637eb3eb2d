//! Whether this process can do its work now.

use bulkhead_model::permission::{SystemReason, SystemScope};

use crate::{App, AppError};

impl App {
    /// Reads from the database, as every request does.
    ///
    /// # Errors
    /// The store's.
    pub async fn check_database(&self) -> Result<(), AppError> {
        let scope = SystemScope::new(SystemReason::Jobs);
        self.store()
            .read(&scope, (), |tx, ()| {
                Box::pin(async move { tx.next_job_at().await.map(drop).map_err(AppError::from) })
            })
            .await
    }

    /// `SQLite` or `PostgreSQL`.
    #[must_use]
    pub fn database_name(&self) -> &'static str {
        self.store().database_name()
    }
}
