//! A transaction of either database: what the closures of [`Store::write`](crate::Store::write) work with.

use bulkhead_model::id::OrgId;
use bulkhead_model::permission::{Actor, SystemReason};
use sqlx::{Postgres, Sqlite, SqliteConnection, Transaction};

use crate::error::StoreError;
use crate::sql::{Bind, Row, Sql, bind_all};

pub(crate) enum Conn {
    /// The one writer's connection.
    SqliteWriter(SqliteConnection),
    /// A reader's.
    SqliteReader(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// Whose rows a transaction may touch.
#[derive(Clone, Debug)]
pub(crate) struct TxContext {
    pub(crate) org: Option<OrgId>,
    pub(crate) actor: Option<Actor>,
    pub(crate) system: Option<SystemReason>,
}

/// An open transaction. After the first failed statement it runs nothing more and will be rolled back, on both databases.
pub struct Tx {
    pub(crate) conn: Conn,
    pub(crate) context: TxContext,
    pub(crate) poisoned: bool,
    /// Statements run so far in this closure: what fault tests count.
    pub(crate) statements: u64,
    pub(crate) fault: Option<crate::store::FaultHook>,
}

impl Tx {
    /// The organization that this transaction works for.
    ///
    /// # Errors
    /// [`StoreError::Misuse`] in a system transaction that named none.
    pub fn org(&self) -> Result<OrgId, StoreError> {
        self.context.org.ok_or(StoreError::Misuse("this statement needs an organization's scope"))
    }

    /// Who acts.
    #[must_use]
    pub fn actor(&self) -> Actor {
        match (&self.context.actor, self.context.system) {
            (Some(actor), _) => actor.clone(),
            (None, Some(reason)) => Actor::System(reason),
            (None, None) => Actor::System(SystemReason::Worker),
        }
    }

    /// Whether the database is PostgreSQL: for the few statements that must differ.
    #[must_use]
    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self.conn, Conn::Postgres(_))
    }

    fn before_statement(&mut self) -> Result<(), StoreError> {
        if self.poisoned {
            return Err(StoreError::Misuse("a statement after a failed one in the same transaction"));
        }
        self.statements += 1;
        if let Some(fault) = &self.fault {
            fault.check().inspect_err(|_| self.poisoned = true)?;
        }
        Ok(())
    }

    /// Runs a statement and answers how many rows it changed.
    pub(crate) async fn execute(&mut self, sql: Sql, values: &[Bind<'_>]) -> Result<u64, StoreError> {
        self.before_statement()?;
        let result = match &mut self.conn {
            Conn::SqliteWriter(conn) => {
                bind_all!(sqlx::query::<Sqlite>(sql.0), values, |at| at.as_micros()).execute(conn).await.map(|r| r.rows_affected())
            }
            Conn::SqliteReader(conn) => {
                bind_all!(sqlx::query::<Sqlite>(sql.0), values, |at| at.as_micros()).execute(&mut **conn).await.map(|r| r.rows_affected())
            }
            Conn::Postgres(conn) => {
                bind_all!(sqlx::query::<Postgres>(sql.0), values, |at| at.to_chrono()).execute(&mut **conn).await.map(|r| r.rows_affected())
            }
        };
        self.poisoned |= result.is_err();
        Ok(result?)
    }

    /// Runs a statement and answers its rows.
    pub(crate) async fn fetch(&mut self, sql: Sql, values: &[Bind<'_>]) -> Result<Vec<Row>, StoreError> {
        self.before_statement()?;
        let result: Result<Vec<Row>, sqlx::Error> = match &mut self.conn {
            Conn::SqliteWriter(conn) => bind_all!(sqlx::query::<Sqlite>(sql.0), values, |at| at.as_micros())
                .fetch_all(conn)
                .await
                .map(|rows| rows.into_iter().map(Row::Sqlite).collect()),
            Conn::SqliteReader(conn) => bind_all!(sqlx::query::<Sqlite>(sql.0), values, |at| at.as_micros())
                .fetch_all(&mut **conn)
                .await
                .map(|rows| rows.into_iter().map(Row::Sqlite).collect()),
            Conn::Postgres(conn) => bind_all!(sqlx::query::<Postgres>(sql.0), values, |at| at.to_chrono())
                .fetch_all(&mut **conn)
                .await
                .map(|rows| rows.into_iter().map(Row::Postgres).collect()),
        };
        self.poisoned |= result.is_err();
        Ok(result?)
    }

    /// The first row, if there is one.
    pub(crate) async fn fetch_optional(&mut self, sql: Sql, values: &[Bind<'_>]) -> Result<Option<Row>, StoreError> {
        Ok(self.fetch(sql, values).await?.into_iter().next())
    }
}
