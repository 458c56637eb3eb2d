//! Whether this process can do its work now.

use bulkhead_model::permission::{SystemReason, SystemScope};

use bulkhead_keys::KeyError;
use bulkhead_store::StoreError;

use crate::{App, AppError};

impl App {
    /// Writes one small row to the database and commits: a disk that is full or gone shows before requests fail. Nothing is written where
    /// another node wraps with a root key that this process does not have: what is under it opens there.
    ///
    /// # Errors
    /// The store's.
    pub async fn check_database(&self) -> Result<(), AppError> {
        if let Some(root) = self.node().missing_root() {
            return Err(StoreError::from(KeyError::UnknownRoot(root)).into());
        }
        let scope = SystemScope::new(SystemReason::Jobs);
        self.store()
            .write_locked(&scope, self.ambient().now(), |tx, now| {
                Box::pin(async move { tx.record_probe(*now).await.map_err(AppError::from) })
            })
            .await
    }

    /// `SQLite` or `PostgreSQL`.
    #[must_use]
    pub fn database_name(&self) -> &'static str {
        self.store().database_name()
    }
}
