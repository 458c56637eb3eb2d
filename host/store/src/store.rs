//! The store's front door: opening, reading, writing.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use bulkhead_model::permission::{AccountScope, OrgScope, SystemReason, SystemScope};
use futures_util::future::BoxFuture;

use crate::error::{DatabaseError, StoreError};
use crate::postgres::{Listener, PostgresBackend};
use crate::sqlite::SqliteBackend;
use crate::tx::{Tx, TxContext};

/// Which database, and where.
#[derive(Clone)]
pub enum Database {
    /// A file in the data directory, which is locked by the one serving process.
    Sqlite { dir: PathBuf },
    Postgres {
        /// The application role's address; without it the owner's is used to create the role.
        url: Option<String>,
        /// The owner's address, for migrations.
        owner_url: Option<String>,
        /// Password of the application role that the store creates, derived from the root key.
        app_password: String,
    },
}

impl fmt::Debug for Database {
    /// Without addresses, which hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite { dir } => f.debug_struct("Sqlite").field("dir", dir).finish(),
            Self::Postgres { url, owner_url, .. } => {
                let (url, owner_url) = (url.is_some(), owner_url.is_some());
                f.debug_struct("Postgres").field("url", &url).field("owner_url", &owner_url).finish_non_exhaustive()
            }
        }
    }
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    pub database: Database,
    /// Read connections (SQLite) or all connections (PostgreSQL).
    pub connections_max: u32,
}

/// Makes the database fail, for fault tests. Cheap to clone; clones share their state.
#[derive(Clone, Debug, Default)]
pub struct FaultHook(Arc<Faults>);

#[derive(Debug, Default)]
struct Faults {
    /// Counts down at each statement; at zero the statement fails.
    statements: AtomicI64,
    disk_full: AtomicBool,
}

impl FaultHook {
    /// Lets `statements - 1` statements pass and fails the next one, once.
    pub fn arm(&self, statements: i64) {
        self.0.statements.store(statements, Ordering::SeqCst);
    }

    /// Whether the armed failure has happened (or none was armed).
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.0.statements.load(Ordering::SeqCst) <= 0
    }

    /// How many statements may pass before the armed failure.
    #[must_use]
    pub fn left(&self) -> i64 {
        self.0.statements.load(Ordering::SeqCst)
    }

    /// From the next write on, SQLite's file may not grow: the database itself then reports a full disk (`SQLITE_FULL`), with
    /// everything that this does to its transaction. `false` gives the space back.
    pub fn fill_disk(&self, full: bool) {
        self.0.disk_full.store(full, Ordering::SeqCst);
    }

    pub(crate) fn disk_full(&self) -> bool {
        self.0.disk_full.load(Ordering::SeqCst)
    }

    pub(crate) fn check(&self) -> Result<(), StoreError> {
        if self.0.statements.load(Ordering::Relaxed) > 0 && self.0.statements.fetch_sub(1, Ordering::SeqCst) == 1 {
            return Err(StoreError::Unavailable(DatabaseError::Injected));
        }
        Ok(())
    }
}

/// What SQLite's one writer has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriterStats {
    /// Writes that were answered after their commit.
    pub writes: u64,
    /// Commits that reached the database; group commit makes them fewer than the writes.
    pub commits: u64,
    /// Connections that were thrown away because their transaction was lost.
    pub replacements: u64,
    /// Writes that ran again alone after their group was lost.
    pub reruns: u64,
    /// Writes that wait to be begun.
    pub waiting: usize,
}

pub(crate) enum Backend {
    Sqlite(SqliteBackend),
    Postgres(Box<PostgresBackend>),
}

/// The database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    backend: Arc<Backend>,
    fault: FaultHook,
    opened_at: Instant,
}

/// A proof of the right to touch rows: [`OrgScope`], [`AccountScope`] or [`SystemScope`].
pub trait Scoped: Sync {
    #[doc(hidden)]
    fn context(&self) -> ScopeContext;
}

/// What a scope tells a transaction. Only this crate looks inside.
#[derive(Clone, Debug)]
pub struct ScopeContext(pub(crate) TxContext);

impl Scoped for OrgScope {
    fn context(&self) -> ScopeContext {
        ScopeContext(TxContext { org: Some(self.org()), system: None, correlation: None })
    }
}

impl Scoped for AccountScope {
    fn context(&self) -> ScopeContext {
        ScopeContext(TxContext { org: self.org(), system: Some(SystemReason::Accounts), correlation: None })
    }
}

impl Scoped for SystemScope {
    fn context(&self) -> ScopeContext {
        ScopeContext(TxContext { org: None, system: Some(self.reason()), correlation: None })
    }
}

/// An error that a write's closure may end with.
pub trait TxError: From<StoreError> + Send + 'static {
    /// The store's part of it, if that is what it is.
    fn store(&self) -> Option<&StoreError>;
}

impl TxError for StoreError {
    fn store(&self) -> Option<&StoreError> {
        Some(self)
    }
}

/// One closure may take this long, on either database.
pub(crate) const WRITE_TIME_MAX: Duration = Duration::from_secs(10);

tokio::task_local! {
    static IN_TRANSACTION: ();
    static CORRELATION: Arc<str>;
}

/// Runs `future` as a part of what `id` names, a request: entries of the audit log that its transactions write say so.
pub async fn correlated<T>(id: &str, future: impl Future<Output = T>) -> T {
    CORRELATION.scope(Arc::from(id), future).await
}

/// How strictly PostgreSQL isolates a write; SQLite's single writer is serializable always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    Serializable,
    /// With explicit row locks: the hot paths.
    ReadCommitted,
}

impl Store {
    /// Opens (and, where it may, creates and migrates) the database.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when the data directory is in use, migrations are missing, or PostgreSQL's row-level security
    /// is not as it must be; [`StoreError::Unavailable`] when it cannot be reached.
    pub async fn open(config: StoreConfig) -> Result<Self, StoreError> {
        let (fault, opened_at) = (FaultHook::default(), Instant::now());
        let backend = match config.database {
            Database::Sqlite { dir } => {
                Backend::Sqlite(SqliteBackend::open(&dir, config.connections_max, fault.clone(), opened_at).await?)
            }
            Database::Postgres { url, owner_url, app_password } => {
                let backend = PostgresBackend::open(url, owner_url, &app_password, config.connections_max).await?;
                Backend::Postgres(Box::new(backend))
            }
        };
        Ok(Self { backend: Arc::new(backend), fault, opened_at })
    }

    /// Opens the database to look at it beside whoever serves it: nothing is made, migrated or locked, and nothing can be written.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when there is no database, or its schema is another one than this version's;
    /// [`StoreError::Unavailable`] when it cannot be reached (on PostgreSQL also before the first start of a server, which makes the
    /// application role).
    pub async fn look(config: StoreConfig) -> Result<Self, StoreError> {
        let (fault, opened_at) = (FaultHook::default(), Instant::now());
        let backend = match config.database {
            Database::Sqlite { dir } => {
                Backend::Sqlite(SqliteBackend::look(&dir, config.connections_max, &fault, opened_at)?)
            }
            Database::Postgres { url, owner_url, app_password } => {
                let looked =
                    PostgresBackend::look(url.as_deref(), owner_url.as_deref(), &app_password, config.connections_max);
                Backend::Postgres(Box::new(looked.await?))
            }
        };
        Ok(Self { backend: Arc::new(backend), fault, opened_at })
    }

    /// Opens the database to look at it before [`open`](Self::open) brings it up to date (and, on PostgreSQL with the owner's address, gives the
    /// application's role its password): nothing is made, changed or locked. `None` where an opening does neither (PostgreSQL without an owner's
    /// address), and where nothing is there yet to look at.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it cannot be reached; [`StoreError::Refused`] for an address that is none.
    pub async fn look_before_opening(config: &StoreConfig) -> Result<Option<Self>, StoreError> {
        let (fault, opened_at) = (FaultHook::default(), Instant::now());
        let backend = match &config.database {
            Database::Sqlite { dir } => {
                SqliteBackend::look_before_opening(dir, &fault, opened_at)?.map(Backend::Sqlite)
            }
            Database::Postgres { owner_url: Some(owner_url), .. } => {
                PostgresBackend::look_as_owner(owner_url).await?.map(|backend| Backend::Postgres(Box::new(backend)))
            }
            Database::Postgres { owner_url: None, .. } => None,
        };
        Ok(backend.map(|backend| Self { backend: Arc::new(backend), fault, opened_at }))
    }

    /// Runs the migrations with the owner's address and stops.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn migrate(config: StoreConfig) -> Result<(), StoreError> {
        Self::open(config).await?.close().await;
        Ok(())
    }

    /// `SQLite` or `PostgreSQL`.
    #[must_use]
    pub fn database_name(&self) -> &'static str {
        match &*self.backend {
            Backend::Sqlite(_) => "SQLite",
            Backend::Postgres(_) => "PostgreSQL",
        }
    }

    #[must_use]
    pub fn is_postgres(&self) -> bool {
        matches!(&*self.backend, Backend::Postgres(_))
    }

    /// The hook that fails the Nth statement. For fault tests.
    #[must_use]
    pub fn fault_hook(&self) -> &FaultHook {
        &self.fault
    }

    /// Writes: `Ok` commits, `Err` rolls back. The closure may run more than once and must have no effect outside. On
    /// PostgreSQL the transaction is serializable and repeated (a bounded number of times) when it lost a race.
    ///
    /// # Errors
    /// What the closure ends with, or the store's own failure.
    pub async fn write<A, T, E, F>(&self, scope: &impl Scoped, args: A, closure: F) -> Result<T, E>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        E: TxError,
        F: for<'t> Fn(&'t mut Tx, &'t A) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        self.write_with(Isolation::Serializable, scope, args, closure).await
    }

    /// As [`write`](Self::write), but READ COMMITTED on PostgreSQL: for hot paths whose closures take explicit row locks and
    /// name the invariant that each lock keeps.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_locked<A, T, E, F>(&self, scope: &impl Scoped, args: A, closure: F) -> Result<T, E>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        E: TxError,
        F: for<'t> Fn(&'t mut Tx, &'t A) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        self.write_with(Isolation::ReadCommitted, scope, args, closure).await
    }

    async fn write_with<A, T, E, F>(
        &self,
        isolation: Isolation,
        scope: &impl Scoped,
        args: A,
        closure: F,
    ) -> Result<T, E>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        E: TxError,
        F: for<'t> Fn(&'t mut Tx, &'t A) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        if IN_TRANSACTION.try_with(|()| ()).is_ok() {
            return Err(StoreError::Misuse("a transaction inside a transaction").into());
        }
        let mut context = scope.context().0;
        context.correlation = CORRELATION.try_with(Arc::clone).ok();
        match &*self.backend {
            Backend::Sqlite(sqlite) => sqlite.write(context, args, closure).await,
            Backend::Postgres(postgres) => {
                let begin = |conn| Tx::new(conn, context.clone(), self.fault.clone(), self.opened_at);
                IN_TRANSACTION.scope((), postgres.write(isolation, &context, begin, args, closure)).await
            }
        }
    }

    /// Reads from one consistent snapshot. A closure that tries to change something fails.
    ///
    /// # Errors
    /// What the closure ends with, or the store's own failure.
    pub async fn read<A, T, E, F>(&self, scope: &impl Scoped, args: A, closure: F) -> Result<T, E>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        E: TxError,
        F: for<'t> Fn(&'t mut Tx, &'t A) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        if IN_TRANSACTION.try_with(|()| ()).is_ok() {
            return Err(StoreError::Misuse("a transaction inside a transaction").into());
        }
        let context = scope.context().0;
        match &*self.backend {
            Backend::Sqlite(sqlite) => sqlite.read(context, args, closure).await,
            Backend::Postgres(postgres) => {
                let begin = |conn| Tx::new(conn, context.clone(), self.fault.clone(), self.opened_at);
                IN_TRANSACTION.scope((), postgres.read(&context, begin, args, closure)).await
            }
        }
    }

    /// Listens to what other nodes of this PostgreSQL database say; `url` leads to it past a pooler. `None` on SQLite, which has
    /// one process.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`].
    pub async fn listen(&self, url: Option<&str>) -> Result<Option<Listener>, StoreError> {
        match &*self.backend {
            Backend::Sqlite(_) => Ok(None),
            Backend::Postgres(postgres) => postgres.listen(url).await.map(Some),
        }
    }

    /// Tells the nodes that listen, in a transaction of its own. It may be lost. Does nothing on SQLite.
    ///
    /// # Errors
    /// The store's; [`StoreError::Misuse`] for a text of 8,000 bytes or more.
    pub async fn notify(&self, text: &str) -> Result<(), StoreError> {
        match &*self.backend {
            Backend::Sqlite(_) => Ok(()),
            Backend::Postgres(postgres) => postgres.notify(text).await,
        }
    }

    /// Whether somebody serves the database, as far as that is known from outside: on SQLite a process holds the directory's lock.
    /// On PostgreSQL the heartbeats tell, and this answers `true`.
    #[must_use]
    pub fn is_served(&self) -> bool {
        match &*self.backend {
            Backend::Sqlite(sqlite) => sqlite.is_served(),
            Backend::Postgres(_) => true,
        }
    }

    /// What SQLite's writer has done; `None` on PostgreSQL.
    #[must_use]
    pub fn writer_stats(&self) -> Option<WriterStats> {
        match &*self.backend {
            Backend::Sqlite(sqlite) => Some(sqlite.stats()),
            Backend::Postgres(_) => None,
        }
    }

    /// Waits for writes under way, closes every connection and gives the data directory free.
    pub async fn close(&self) {
        match &*self.backend {
            Backend::Sqlite(sqlite) => sqlite.close().await,
            Backend::Postgres(postgres) => postgres.close().await,
        }
    }

    /// Prepares a statement without running it. For the statement-prepare test.
    ///
    /// # Errors
    /// When the database refuses it.
    pub async fn check_statement(&self, sql: &str) -> Result<(), StoreError> {
        match &*self.backend {
            Backend::Sqlite(sqlite) => sqlite.check_statement(sql).await,
            Backend::Postgres(postgres) => postgres.check_statement(sql).await,
        }
    }
}

/// Marks the task as inside a transaction while `future` runs.
pub(crate) async fn in_transaction<T>(future: impl Future<Output = T>) -> T {
    IN_TRANSACTION.scope((), future).await
}
