//! What can go wrong in the store, sorted by what the caller may do next.

/// A store failure. The outer text never repeats the source; the chain is logged once, where it is handled.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The row is not there (or belongs to another organization).
    #[error("{what} not found")]
    NotFound { what: &'static str },
    /// A unique rule or a foreign key of the named constraint says no.
    #[error("the change conflicts with what is stored ({constraint})")]
    Conflict { constraint: String },
    /// The worker no longer holds this job: it must stop and write nothing.
    #[error("the lease is lost")]
    LostLease,
    /// Concurrent writers; running the closure again may succeed. Callers see it only after all retries.
    #[error("the database is busy with concurrent changes")]
    Contended(#[source] sqlx::Error),
    /// The database cannot be reached, is full or failed.
    #[error("the database is unavailable")]
    Unavailable(#[source] sqlx::Error),
    /// The write took longer than its time cap, or the queue of writes is full.
    #[error("the database did not answer in time")]
    TimedOut,
    /// What is stored does not decode: nothing is trusted because it was stored.
    #[error("stored data of {what} is not valid: {why}")]
    Corrupt { what: &'static str, why: String },
    /// A write inside a write, or a statement after a failed one.
    #[error("{0}")]
    Misuse(&'static str),
    /// Start-up: the database is not as it must be.
    #[error("{0}")]
    Refused(String),
}

impl StoreError {
    /// Whether running the same closure again may succeed.
    #[must_use]
    pub fn is_contention(&self) -> bool {
        matches!(self, Self::Contended(_))
    }

    pub(crate) fn corrupt(what: &'static str, why: impl std::fmt::Display) -> Self {
        Self::Corrupt { what, why: why.to_string() }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if matches!(error, sqlx::Error::PoolTimedOut) {
            return Self::TimedOut;
        }
        let Some(database) = error.as_database_error() else { return Self::Unavailable(error) };
        let code = database.code().unwrap_or_default().into_owned();
        if database.is_unique_violation() || database.is_foreign_key_violation() || database.is_check_violation() {
            let constraint = database.constraint().map_or_else(|| database.message().to_owned(), str::to_owned);
            return Self::Conflict { constraint };
        }
        match code.as_str() {
            // PostgreSQL: serialization_failure, deadlock_detected; SQLite: SQLITE_BUSY, SQLITE_BUSY_RECOVERY,
            // SQLITE_BUSY_SNAPSHOT.
            "40001" | "40P01" | "5" | "261" | "517" => Self::Contended(error),
            // PostgreSQL: query_canceled (statement_timeout), lock_not_available (lock_timeout): the wait was long enough.
            "57014" | "55P03" => Self::TimedOut,
            _ => Self::Unavailable(error),
        }
    }
}
