//! A transaction of either database: what the closures of [`Store::write`](crate::Store::write) work with.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_model::id::OrgId;
use bulkhead_model::job::Lease;
use bulkhead_model::permission::SystemReason;
use bulkhead_model::time::Timestamp;
use sqlx::Postgres;

use crate::error::{DatabaseError, StoreError};
use crate::postgres::PgTransaction;
use crate::sql::{Bind, PgTime, Row, Sql, bind_all};
use crate::sqlite::connection::SqliteConnection;
use crate::store::FaultHook;

pub(crate) enum Conn {
    /// The writer's or a reader's.
    Sqlite(SqliteConnection),
    Postgres(PgTransaction),
}

/// Whose rows a transaction may touch.
#[derive(Clone, Debug)]
pub(crate) struct TxContext {
    pub(crate) org: Option<OrgId>,
    pub(crate) system: Option<SystemReason>,
    /// What the transaction is a part of.
    pub(crate) correlation: Option<Arc<str>>,
}

/// An open transaction. After the first failed (or abandoned) statement it runs nothing more and will be rolled back, on both
/// databases.
pub struct Tx {
    pub(crate) conn: Conn,
    pub(crate) context: TxContext,
    /// A statement failed, or its future was dropped before it ended.
    pub(crate) poisoned: bool,
    /// The failure was a lost race: the closure runs again, whatever it made of the error.
    pub(crate) contended: bool,
    pub(crate) fault: FaultHook,
    /// SQLite's clock for deadlines: monotonic, of this process.
    pub(crate) opened_at: Instant,
}

impl Tx {
    pub(crate) fn new(conn: Conn, context: TxContext, fault: FaultHook, opened_at: Instant) -> Self {
        Self { conn, context, poisoned: false, contended: false, fault, opened_at }
    }

    /// A transaction of a command that stands beside the server: a backup or a restore.
    pub(crate) fn beside(conn: Conn) -> Self {
        let context = TxContext { org: None, system: None, correlation: None };
        Self::new(conn, context, FaultHook::default(), Instant::now())
    }

    /// Makes the connection ready for another closure's transaction.
    pub(crate) fn renew(&mut self, context: TxContext) {
        self.context = context;
        (self.poisoned, self.contended) = (false, false);
    }

    /// Begins, ends or divides SQLite's transaction: the writer's and the readers' business.
    pub(crate) fn sqlite_control(&mut self, sql: &'static str) -> rusqlite::Result<()> {
        match &self.conn {
            Conn::Sqlite(conn) => conn.control(sql),
            Conn::Postgres(_) => Err(rusqlite::Error::InvalidQuery),
        }
    }

    /// Whether SQLite's transaction is still open.
    pub(crate) fn is_in_sqlite_transaction(&self) -> bool {
        matches!(&self.conn, Conn::Sqlite(conn) if conn.is_in_transaction())
    }

    /// The organization that this transaction works for.
    ///
    /// # Errors
    /// [`StoreError::Misuse`] in a system transaction that named none.
    pub fn org(&self) -> Result<OrgId, StoreError> {
        self.context.org.ok_or(StoreError::Misuse("this statement needs an organization's scope"))
    }

    /// Refuses statements across organizations to every scope but the one that names `reason`. On PostgreSQL row-level security
    /// stands behind it; SQLite has only this.
    pub(crate) fn require_reason(&self, reason: SystemReason) -> Result<(), StoreError> {
        if self.context.system == Some(reason) {
            return Ok(());
        }
        Err(StoreError::Misuse("this statement needs the system scope of its reason"))
    }

    /// The organization of a lease, which must be the scope's own unless the scope is the queue's.
    pub(crate) fn lease_org(&self, lease: &Lease) -> Result<OrgId, StoreError> {
        match (self.context.org, self.context.system) {
            (Some(org), _) if org == lease.org => Ok(org),
            (None, Some(SystemReason::Jobs)) => Ok(lease.org),
            (Some(_) | None, _) => Err(StoreError::LostLease),
        }
    }

    /// Whether the database is PostgreSQL: for the few statements that must differ.
    #[must_use]
    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self.conn, Conn::Postgres(_))
    }

    /// Now plus `duration` by this process's monotonic clock: how SQLite keeps deadlines, which no clock jump may move.
    pub(crate) fn monotonic_after(&self, duration: Duration) -> Timestamp {
        let elapsed = i64::try_from(self.opened_at.elapsed().as_micros()).unwrap_or(i64::MAX);
        Timestamp::from_micros(elapsed).plus(duration)
    }

    /// What [`give_back_space`](Self::give_back_space) does: on PostgreSQL nothing.
    pub(crate) fn give_back_pages(&mut self, reserve: u32) -> Result<u32, StoreError> {
        self.before_statement(&[])?;
        let result = match &self.conn {
            Conn::Sqlite(conn) => conn.give_back(reserve).map_err(DatabaseError::from),
            Conn::Postgres(_) => Ok(0),
        };
        self.after_statement(result)
    }

    fn before_statement(&mut self, values: &[Bind<'_>]) -> Result<(), StoreError> {
        if self.poisoned {
            return Err(StoreError::Misuse("a statement after a failed one in the same transaction"));
        }
        // Until the statement ends well. A future that is dropped midway leaves it so.
        self.poisoned = true;
        // An I/O error or a full disk ended it: what came now would be a commit of its own.
        if matches!(&self.conn, Conn::Sqlite(conn) if !conn.is_in_transaction()) {
            return Err(StoreError::Misuse("a statement after its transaction was lost"));
        }
        // PostgreSQL's text cannot hold it; SQLite says no as well, so that both do the same.
        if values.iter().any(|value| matches!(value, Bind::Text(Some(text)) if text.contains('\0'))) {
            return Err(StoreError::Conflict { constraint: "text holds no NUL character".to_owned() });
        }
        self.fault.check()
    }

    fn after_statement<T>(&mut self, result: Result<T, DatabaseError>) -> Result<T, StoreError> {
        match result {
            Ok(value) => {
                self.poisoned = false;
                Ok(value)
            }
            Err(error) => {
                let error = StoreError::from(error);
                self.contended = error.is_contention();
                Err(error)
            }
        }
    }

    /// Runs a statement and answers how many rows it changed.
    pub(crate) async fn execute(&mut self, sql: Sql, values: &[Bind<'_>]) -> Result<u64, StoreError> {
        self.before_statement(values)?;
        let result = match &mut self.conn {
            Conn::Sqlite(conn) => conn.execute(sql.0, values).map_err(DatabaseError::from),
            Conn::Postgres(conn) => bind_all!(sqlx::query::<Postgres>(sql.0), values, PgTime)
                .execute(&mut **conn)
                .await
                .map(|done| done.rows_affected())
                .map_err(DatabaseError::from),
        };
        self.after_statement(result)
    }

    /// Runs a statement and answers its rows.
    pub(crate) async fn fetch(&mut self, sql: Sql, values: &[Bind<'_>]) -> Result<Vec<Row>, StoreError> {
        self.before_statement(values)?;
        let result = match &mut self.conn {
            Conn::Sqlite(conn) => conn
                .fetch(sql.0, values)
                .map(|rows| rows.into_iter().map(Row::Sqlite).collect())
                .map_err(DatabaseError::from),
            Conn::Postgres(conn) => bind_all!(sqlx::query::<Postgres>(sql.0), values, PgTime)
                .fetch_all(&mut **conn)
                .await
                .map(|rows| rows.into_iter().map(Row::Postgres).collect())
                .map_err(DatabaseError::from),
        };
        self.after_statement(result)
    }

    /// The first row, if there is one.
    pub(crate) async fn fetch_optional(&mut self, sql: Sql, values: &[Bind<'_>]) -> Result<Option<Row>, StoreError> {
        Ok(self.fetch(sql, values).await?.into_iter().next())
    }
}
