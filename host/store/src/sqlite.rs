//! What only SQLite needs: the directory lock, pragmas, and one writer with group commit.
//!
//! The writer takes the first waiting write, opens one immediate transaction, runs every write that waits (bounded), commits
//! once and only then answers all callers. The first member runs without a savepoint, each further one in its own.
//!
//! An I/O or full-disk error inside a savepoint ends the *whole* transaction; what followed would run in autocommit. Two rules
//! keep that harmless: after a failed statement a transaction runs nothing more (`Tx::poisoned`), and a savepoint that cannot
//! be released or rolled back means that the transaction is gone: nobody is answered, the connection is replaced, and the
//! members run again one by one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, SqlSafeStr as _, Sqlite, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use crate::error::StoreError;
use crate::migrations;
use crate::store::{FaultHook, TxError, in_transaction};
use crate::tx::{Conn, Tx, TxContext};

/// Writes that may wait before a further one is refused.
const QUEUE_MAX: usize = 4_096;
/// Writes in one commit.
const BATCH_MAX: usize = 128;
/// A batch takes no further member after this long.
const BATCH_TIME_MAX: Duration = Duration::from_millis(10);
/// One closure may take this long.
const WRITE_TIME_MAX: Duration = Duration::from_secs(10);

pub(crate) struct SqliteBackend {
    writes: mpsc::Sender<Message>,
    readers: SqlitePool,
    _lock: File,
}

enum Message {
    Write(Box<dyn Write>),
    Close(oneshot::Sender<()>),
}

/// How a closure's run ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Commit,
    Rollback,
    /// The connection's state is unknown (time cap, panic): replace it.
    Abandon,
}

/// A caller's write with its types erased. It may run several times; it answers once.
trait Write: Send {
    fn context(&self) -> TxContext;
    fn run<'t>(&'t mut self, tx: &'t mut Tx) -> BoxFuture<'t, Verdict>;
    /// Sends what the last run ended with.
    fn answer(self: Box<Self>);
    fn fail(self: Box<Self>, error: StoreError);
}

struct TypedWrite<A, T, E, F> {
    context: TxContext,
    args: A,
    closure: F,
    result: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<A, T, E, F> Write for TypedWrite<A, T, E, F>
where
    A: Send + Sync + 'static,
    T: Send + 'static,
    E: TxError,
    F: for<'t> Fn(&'t mut Tx, &'t A) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
{
    fn context(&self) -> TxContext {
        self.context.clone()
    }

    fn run<'t>(&'t mut self, tx: &'t mut Tx) -> BoxFuture<'t, Verdict> {
        Box::pin(async move {
            let future = in_transaction((self.closure)(tx, &self.args));
            let future = tokio::time::timeout(WRITE_TIME_MAX, std::panic::AssertUnwindSafe(future).catch_unwind());
            let (result, verdict) = match future.await {
                Ok(Ok(Ok(_))) if tx.poisoned => {
                    (Err(StoreError::Misuse("a failed statement was passed over").into()), Verdict::Rollback)
                }
                Ok(Ok(Ok(value))) => (Ok(value), Verdict::Commit),
                Ok(Ok(Err(error))) => (Err(error), Verdict::Rollback),
                Ok(Err(_)) => (Err(StoreError::Misuse("the write panicked").into()), Verdict::Abandon),
                Err(_) => (Err(StoreError::TimedOut.into()), Verdict::Abandon),
            };
            self.result = Some(result);
            verdict
        })
    }

    fn answer(self: Box<Self>) {
        let result = self.result.unwrap_or_else(|| Err(StoreError::Misuse("a write was answered before it ran").into()));
        // A caller who no longer listens (a closed connection) loses only the answer.
        drop(self.reply.send(result));
    }

    fn fail(self: Box<Self>, error: StoreError) {
        drop(self.reply.send(Err(error.into())));
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5))
        .pragma("journal_size_limit", "67108864")
        .pragma("temp_store", "memory")
        .pragma("cache_size", "-65536")
        .statement_cache_capacity(512)
        .log_statements(tracing::log::LevelFilter::Trace)
}

impl SqliteBackend {
    pub(crate) async fn open(dir: &Path, readers_max: u32, fault: FaultHook) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(|error| StoreError::Refused(format!("cannot create {}: {error}", dir.display())))?;
        let lock = lock_dir(dir)?;
        let path = dir.join("bulkhead.sqlite");
        let mut conn = options(&path).create_if_missing(true).connect().await?;
        migrations::sqlite()
            .run_direct(None, &mut conn, false)
            .await
            .map_err(|error| StoreError::Refused(format!("the migrations did not apply: {error}")))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(readers_max)
            .acquire_timeout(Duration::from_secs(10))
            .connect_with(options(&path).pragma("query_only", "on"))
            .await?;
        let (writes, queue) = mpsc::channel(QUEUE_MAX);
        let writer = Writer { path, tx: Some(new_tx(conn, fault.clone())), fault };
        spawn_writer(writer, queue);
        Ok(Self { writes, readers, _lock: lock })
    }

    pub(crate) async fn write<A, T, E, F>(&self, context: TxContext, args: A, closure: F) -> Result<T, E>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        E: TxError,
        F: for<'t> Fn(&'t mut Tx, &'t A) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let write = Box::new(TypedWrite { context, args, closure, result: None, reply });
        self.writes.try_send(Message::Write(write)).map_err(|_| StoreError::TimedOut)?;
        answer.await.map_err(|_| StoreError::TimedOut)?
    }

    pub(crate) async fn begin_read(&self) -> Result<Conn, StoreError> {
        Ok(Conn::SqliteReader(self.readers.begin_with("begin deferred").await?))
    }

    pub(crate) async fn check_statement(&self, sql: &str) -> Result<(), StoreError> {
        let mut conn = self.readers.acquire().await?;
        conn.prepare(AssertSqlSafe(sql.to_owned()).into_sql_str()).await?;
        Ok(())
    }

    pub(crate) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.writes.send(Message::Close(done)).await.is_ok() {
            // The writer answers after the writes that were queued before.
            drop(closed.await);
        }
        self.readers.close().await;
    }
}

/// One process serves a data directory. The lock goes with the process, however it ends.
fn lock_dir(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("bulkhead.lock");
    let refused = |why: String| StoreError::Refused(format!("cannot lock {}: {why}", path.display()));
    let file = File::options().create(true).truncate(false).write(true).read(true).open(&path).map_err(|e| refused(e.to_string()))?;
    match fs4::FileExt::try_lock(&file) {
        Ok(()) => Ok(file),
        Err(fs4::TryLockError::WouldBlock) => Err(StoreError::Refused(format!(
            "{} is in use by another Bulkhead process: stop it, or go through its API",
            dir.display()
        ))),
        Err(fs4::TryLockError::Error(error)) => Err(refused(error.to_string())),
    }
}

fn new_tx(conn: SqliteConnection, fault: FaultHook) -> Tx {
    let context = TxContext { org: None, actor: None, system: None };
    Tx { conn: Conn::SqliteWriter(conn), context, poisoned: false, statements: 0, fault: Some(fault) }
}

#[expect(clippy::disallowed_methods, reason = "the writer lives as long as the store; it ends when the last sender does")]
fn spawn_writer(writer: Writer, queue: mpsc::Receiver<Message>) {
    tokio::spawn(writer.serve(queue));
}

struct Writer {
    path: PathBuf,
    /// `None` while the connection is broken and a new one could not be opened yet.
    tx: Option<Tx>,
    fault: FaultHook,
}

impl Writer {
    async fn serve(mut self, mut queue: mpsc::Receiver<Message>) {
        while let Some(message) = queue.recv().await {
            let closing = match message {
                Message::Write(first) => self.batch(first, &mut queue).await,
                Message::Close(done) => Some(done),
            };
            if let Some(done) = closing {
                if let Some(Tx { conn: Conn::SqliteWriter(conn), .. }) = self.tx.take() {
                    if let Err(error) = conn.close().await {
                        tracing::warn!(error = %error, "closing the database failed");
                    }
                }
                drop(done.send(()));
                return;
            }
        }
    }

    /// Runs `first` and what waits behind it in one transaction. Answers the request to close, if one came along.
    async fn batch(&mut self, first: Box<dyn Write>, queue: &mut mpsc::Receiver<Message>) -> Option<oneshot::Sender<()>> {
        let began = Instant::now();
        let mut closing = None;
        let mut members = vec![first];
        if !self.begin().await {
            members.pop()?.fail(StoreError::TimedOut);
            return None;
        }
        match self.run(&mut members[0]).await {
            Verdict::Commit => {}
            verdict => {
                self.roll_back(verdict).await;
                members.pop()?.answer();
                return None;
            }
        }
        let mut rejected = Vec::new();
        while members.len() < BATCH_MAX && began.elapsed() < BATCH_TIME_MAX {
            let mut write = match queue.try_recv() {
                Ok(Message::Write(write)) => write,
                Ok(Message::Close(done)) => {
                    closing = Some(done);
                    break;
                }
                Err(_) => break,
            };
            let whole = self.statement("savepoint member").await && {
                let verdict = self.run(&mut write).await;
                let kept = match verdict {
                    Verdict::Commit => self.statement("release member").await,
                    Verdict::Rollback => self.statement("rollback to member").await && self.statement("release member").await,
                    Verdict::Abandon => false,
                };
                if kept && verdict == Verdict::Rollback { rejected.push(write) } else { members.push(write) }
                kept
            };
            if !whole {
                members.append(&mut rejected);
                self.one_by_one(members).await;
                return closing;
            }
        }
        metrics::histogram!("bulkhead_database_batch_writes").record(f64::from(u32::try_from(members.len()).unwrap_or(u32::MAX)));
        if self.statement("commit").await {
            members.into_iter().for_each(Write::answer);
            // A refusal may rest on what other members wrote, so it is told only when that is durable.
            rejected.into_iter().for_each(Write::answer);
        } else {
            members.append(&mut rejected);
            self.one_by_one(members).await;
        }
        closing
    }

    /// After a transaction that was lost: each member alone, on a new connection.
    async fn one_by_one(&mut self, members: Vec<Box<dyn Write>>) {
        tracing::warn!(writes = members.len(), "a group commit was lost; its writes run again one by one");
        self.replace().await;
        for mut write in members {
            if !self.begin().await {
                write.fail(StoreError::Unavailable(sqlx::Error::Protocol("the database cannot be opened".into())));
                continue;
            }
            match self.run(&mut write).await {
                Verdict::Commit => {
                    if self.statement("commit").await {
                        write.answer();
                    } else {
                        self.replace().await;
                        write.fail(StoreError::Unavailable(sqlx::Error::Protocol("the commit failed".into())));
                    }
                }
                verdict => {
                    self.roll_back(verdict).await;
                    write.answer();
                }
            }
        }
    }

    async fn begin(&mut self) -> bool {
        if self.tx.is_none() {
            self.replace().await;
        }
        if self.statement("begin immediate").await {
            return true;
        }
        self.replace().await;
        self.statement("begin immediate").await
    }

    async fn run(&mut self, write: &mut Box<dyn Write>) -> Verdict {
        let Some(tx) = &mut self.tx else { return Verdict::Abandon };
        tx.context = write.context();
        tx.poisoned = false;
        tx.statements = 0;
        write.run(tx).await
    }

    async fn roll_back(&mut self, verdict: Verdict) {
        if verdict == Verdict::Abandon || !self.statement("rollback").await {
            self.replace().await;
        }
    }

    /// Runs a statement of the writer's own; `false` when it failed.
    async fn statement(&mut self, sql: &'static str) -> bool {
        let Some(Tx { conn: Conn::SqliteWriter(conn), .. }) = &mut self.tx else { return false };
        match sqlx::query::<Sqlite>(sql).execute(conn).await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(sql, error = %error, "the writer's statement failed");
                false
            }
        }
    }

    /// Drops the connection (which rolls back what it had open) and opens another.
    async fn replace(&mut self) {
        if let Some(Tx { conn: Conn::SqliteWriter(conn), .. }) = self.tx.take() {
            if let Err(error) = conn.close_hard().await {
                tracing::warn!(error = %error, "closing a broken connection failed");
            }
        }
        match options(&self.path).connect().await {
            Ok(conn) => self.tx = Some(new_tx(conn, self.fault.clone())),
            Err(error) => tracing::error!(error = %error, "the database cannot be opened"),
        }
    }
}
