//! What can go wrong in the store, sorted by what the caller may do next.

use bulkhead_keys::KeyError;

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
    Contended(#[source] DatabaseError),
    /// The database cannot be reached, is full or failed.
    #[error("the database is unavailable")]
    Unavailable(#[source] DatabaseError),
    /// The write took longer than its time cap, or the queue of writes is full.
    #[error("the database did not answer in time")]
    TimedOut,
    /// What is stored does not decode: nothing is trusted because it was stored.
    #[error("stored data of {what} is not valid: {why}")]
    Corrupt { what: &'static str, why: String },
    /// A write inside a write, or a statement after a failed one.
    #[error("{0}")]
    Misuse(&'static str),
    /// A value could not be sealed or opened, or a key not unwrapped. Nothing was written over it.
    #[error("{0}")]
    Keys(KeyError),
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

    /// Whether the database itself could not be reached (it restarts, its network is down, it has no connection left), so that
    /// it may be there in a while.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::TimedOut | Self::Unavailable(DatabaseError::Postgres(sqlx::Error::Io(_))) => true,
            // Class 57P: admin_shutdown, crash_shutdown, cannot_connect_now; 53300: too_many_connections.
            Self::Unavailable(error @ DatabaseError::Postgres(_)) => {
                error.code().is_some_and(|code| code.starts_with("57P") || code == "53300")
            }
            _ => false,
        }
    }

    pub(crate) fn closed() -> Self {
        Self::Unavailable(DatabaseError::Closed)
    }

    pub(crate) fn corrupt(what: &'static str, why: impl std::fmt::Display) -> Self {
        Self::Corrupt { what, why: why.to_string() }
    }
}

impl From<KeyError> for StoreError {
    fn from(error: KeyError) -> Self {
        Self::Keys(error)
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        DatabaseError::from(error).into()
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        DatabaseError::from(error).into()
    }
}

impl From<DatabaseError> for StoreError {
    fn from(error: DatabaseError) -> Self {
        if matches!(error, DatabaseError::Postgres(sqlx::Error::PoolTimedOut)) {
            return Self::TimedOut;
        }
        if let Some(constraint) = error.constraint() {
            return Self::Conflict { constraint };
        }
        if let DatabaseError::Sqlite(rusqlite::Error::Utf8Error(at, why)) = &error {
            return Self::corrupt("text", format_args!("column {at}: {why}"));
        }
        match error.code().as_deref() {
            // PostgreSQL: serialization_failure, deadlock_detected; SQLite: SQLITE_BUSY, SQLITE_BUSY_RECOVERY,
            // SQLITE_BUSY_SNAPSHOT.
            Some("40001" | "40P01" | "5" | "261" | "517") => Self::Contended(error),
            // PostgreSQL: query_canceled (statement_timeout), lock_not_available (lock_timeout); SQLite: SQLITE_INTERRUPT. The
            // wait was long enough.
            Some("57014" | "55P03" | "9") => Self::TimedOut,
            _ => Self::Unavailable(error),
        }
    }
}

/// What a database's driver reports.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error(transparent)]
    Postgres(#[from] sqlx::Error),
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("the database was closed")]
    Closed,
    /// [`FaultHook`](crate::FaultHook) asked for it.
    #[error("injected fault")]
    Injected,
}

/// SQLite's extended codes of violated constraints: CHECK, FOREIGN KEY, PRIMARY KEY, UNIQUE, ROWID
/// (<https://www.sqlite.org/rescode.html>).
const SQLITE_CONSTRAINTS: [i32; 5] = [275, 787, 1555, 2067, 2579];

impl DatabaseError {
    /// The database's own code for it: a SQLSTATE, or SQLite's extended result code in decimal.
    #[must_use]
    pub fn code(&self) -> Option<String> {
        match self {
            Self::Postgres(error) => error.as_database_error()?.code().map(std::borrow::Cow::into_owned),
            Self::Sqlite(error) => Some(error.sqlite_error()?.extended_code.to_string()),
            Self::Closed | Self::Injected => None,
        }
    }

    /// The constraint that was violated, if that is what happened: its name, or SQLite's text about it.
    fn constraint(&self) -> Option<String> {
        match self {
            Self::Postgres(error) => {
                let error = error.as_database_error()?;
                let violated =
                    error.is_unique_violation() || error.is_foreign_key_violation() || error.is_check_violation();
                violated.then(|| error.constraint().map_or_else(|| error.message().to_owned(), str::to_owned))
            }
            Self::Sqlite(rusqlite::Error::SqliteFailure(failure, text)) => SQLITE_CONSTRAINTS
                .contains(&failure.extended_code)
                .then(|| text.clone().unwrap_or_else(|| failure.to_string())),
            Self::Sqlite(_) | Self::Closed | Self::Injected => None,
        }
    }
}
