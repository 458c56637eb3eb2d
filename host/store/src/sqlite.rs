//! What only SQLite needs: the directory lock, pragmas, and one writer with group commit.
//!
//! The writer takes the first waiting write, opens one immediate transaction, runs every write that waits (bounded), commits
//! once and only then answers all callers. The first member runs without a savepoint, each further one in its own.
//!
//! An I/O or full-disk error inside a savepoint ends the *whole* transaction, and what followed would run in autocommit. So
//! the connection tells of every rollback and asks before every commit ([`Gate`]): a transaction that was lost is noticed
//! before and after each member, and a commit that the writer did not call for is turned down. Then nobody is answered, the
//! connection is replaced, and the members run again one by one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, SqlSafeStr as _, Sqlite, SqliteConnection,
};
use tokio::sync::{mpsc, oneshot};

use crate::error::StoreError;
use crate::migrations;
use crate::store::{FaultHook, TxError, WRITE_TIME_MAX, WriterStats, in_transaction};
use crate::tx::{Conn, Tx, TxContext};

/// The database in the data directory.
const FILE: &str = "bulkhead.sqlite";
/// A process that was killed still holds its lock for a moment.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// Writes that may wait before a further one is refused.
const QUEUE_MAX: usize = 4_096;
/// Writes in one commit.
const BATCH_MAX: usize = 128;
/// A batch takes no further member after this long.
const BATCH_TIME_MAX: Duration = Duration::from_millis(10);
/// How many steps of SQLite's machine pass between two looks at whether to give up: a fraction of a millisecond.
const STEPS_PER_LOOK: i32 = 10_000;

pub(crate) struct SqliteBackend {
    writes: mpsc::Sender<Message>,
    readers: SqlitePool,
    counters: Arc<Counters>,
}

enum Message {
    Write(Box<dyn Write>),
    Close(oneshot::Sender<()>),
}

#[derive(Default)]
struct Counters {
    writes: AtomicU64,
    commits: AtomicU64,
    replacements: AtomicU64,
    reruns: AtomicU64,
}

/// What the writer's connection tells and asks while it works. One per connection.
#[derive(Default)]
struct Gate {
    /// The writer has called for a commit. Any other (a statement that found itself in autocommit, the release of a savepoint
    /// that had become the outermost) is turned down.
    may_commit: AtomicBool,
    /// The transaction was rolled back, by whomever.
    lost: AtomicBool,
    /// A statement that runs is to be given up.
    interrupt: AtomicBool,
}

/// How a closure's run ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Commit,
    Rollback,
    /// A statement may still be running: give it up and replace the connection.
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
            // The closure is called inside, since it may panic before it has a future to give.
            let work = async { (self.closure)(tx, &self.args).await };
            let work = in_transaction(std::panic::AssertUnwindSafe(work).catch_unwind());
            let (result, verdict) = match tokio::time::timeout(WRITE_TIME_MAX, work).await {
                Ok(Ok(Ok(_))) if tx.poisoned => {
                    (Err(StoreError::Misuse("a failed statement was passed over").into()), Verdict::Rollback)
                }
                Ok(Ok(Ok(value))) => (Ok(value), Verdict::Commit),
                Ok(Ok(Err(error))) => (Err(error), Verdict::Rollback),
                Ok(Err(_)) => (Err(StoreError::Misuse("the write panicked").into()), Verdict::Rollback),
                Err(_) => (Err(StoreError::TimedOut.into()), Verdict::Abandon),
            };
            self.result = Some(result);
            verdict
        })
    }

    fn answer(self: Box<Self>) {
        let result =
            self.result.unwrap_or_else(|| Err(StoreError::Misuse("a write was answered before it ran").into()));
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
    pub(crate) async fn open(
        dir: &Path,
        readers_max: u32,
        fault: FaultHook,
        opened_at: Instant,
    ) -> Result<Self, StoreError> {
        let (path, lock) = prepare(dir).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(readers_max)
            .acquire_timeout(Duration::from_secs(10))
            // A file does not go away between two reads as a server does.
            .test_before_acquire(false)
            .connect_with(options(&path).pragma("query_only", "on"))
            .await?;
        let counters = Arc::new(Counters::default());
        let (writes, queue) = mpsc::channel(QUEUE_MAX);
        let mut writer = Writer { path, open: None, fault, opened_at, counters: counters.clone(), _lock: lock };
        writer.connect().await?;
        spawn_writer(writer, queue);
        Ok(Self { writes, readers, counters })
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
        self.writes.try_send(Message::Write(write)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::TimedOut,
            mpsc::error::TrySendError::Closed(_) => closed(),
        })?;
        answer.await.map_err(|_| closed())?
    }

    pub(crate) async fn begin_read(&self) -> Result<Conn, StoreError> {
        Ok(Conn::SqliteReader(self.readers.begin_with("begin deferred").await?))
    }

    pub(crate) async fn check_statement(&self, sql: &str) -> Result<(), StoreError> {
        let mut conn = self.readers.acquire().await?;
        conn.prepare(AssertSqlSafe(sql.to_owned()).into_sql_str()).await?;
        Ok(())
    }

    pub(crate) fn stats(&self) -> WriterStats {
        let Counters { writes, commits, replacements, reruns } = &*self.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        WriterStats {
            writes: read(writes),
            commits: read(commits),
            replacements: read(replacements),
            reruns: read(reruns),
        }
    }

    pub(crate) async fn close(&self) {
        self.readers.close().await;
        let (done, closed) = oneshot::channel();
        if self.writes.send(Message::Close(done)).await.is_ok() {
            // The writer answers after the writes that were queued before, and without its lock.
            drop(closed.await);
        }
    }
}

/// Opens a snapshot from beside the serving process, which goes on writing: its write-ahead log keeps what the snapshot needs.
pub(crate) async fn begin_snapshot(dir: &Path) -> Result<Conn, StoreError> {
    let path = dir.join(FILE);
    if !path.is_file() {
        return Err(StoreError::Refused(format!("there is no SQLite database {}", path.display())));
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(Duration::from_secs(5))
        // A row may be a package of many megabytes, so few of them wait.
        .row_buffer_size(2)
        .log_statements(tracing::log::LevelFilter::Trace);
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
    Ok(Conn::SqliteReader(pool.begin_with("begin deferred").await?))
}

/// Makes and migrates the database where it is not there, and begins to write, holding the directory's lock.
pub(crate) async fn begin_restore(dir: &Path) -> Result<(Conn, File), StoreError> {
    let (path, lock) = prepare(dir).await?;
    let mut conn = options(&path).connect().await?;
    sqlx::query::<Sqlite>("begin immediate").execute(&mut conn).await?;
    Ok((Conn::SqliteWriter(conn), lock))
}

/// Ends what [`begin_restore`] began.
pub(crate) async fn commit(mut conn: SqliteConnection) -> Result<(), StoreError> {
    sqlx::query::<Sqlite>("commit").execute(&mut conn).await?;
    conn.close().await?;
    Ok(())
}

/// Locks the directory (making it where it is not there) and brings its database to this version's schema.
async fn prepare(dir: &Path) -> Result<(PathBuf, File), StoreError> {
    std::fs::create_dir_all(dir)
        .map_err(|error| StoreError::Refused(format!("cannot create {}: {error}", dir.display())))?;
    let lock = lock_dir(dir).await?;
    let path = dir.join(FILE);
    let mut conn = options(&path).create_if_missing(true).connect().await?;
    migrations::sqlite()
        .run_direct(None, &mut conn, false)
        .await
        .map_err(|error| StoreError::Refused(format!("the migrations did not apply: {error}")))?;
    conn.close().await?;
    Ok((path, lock))
}

fn closed() -> StoreError {
    StoreError::Unavailable(sqlx::Error::PoolClosed)
}

/// One process serves a data directory. The lock goes with the process, however it ends; one that is just ending is waited for.
async fn lock_dir(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("bulkhead.lock");
    let refused = |why: String| StoreError::Refused(format!("cannot lock {}: {why}", path.display()));
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .read(true)
        .open(&path)
        .map_err(|e| refused(e.to_string()))?;
    let began = Instant::now();
    loop {
        match fs4::FileExt::try_lock(&file) {
            Ok(()) => return Ok(file),
            Err(fs4::TryLockError::WouldBlock) if began.elapsed() < LOCK_WAIT => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(fs4::TryLockError::WouldBlock) => {
                return Err(StoreError::Refused(format!(
                    "{} is in use by another Bulkhead process: stop it, or go through its API",
                    dir.display()
                )));
            }
            Err(fs4::TryLockError::Error(error)) => return Err(refused(error.to_string())),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the writer lives as long as the store; it ends when the last sender does"
)]
fn spawn_writer(writer: Writer, queue: mpsc::Receiver<Message>) {
    tokio::spawn(writer.serve(queue));
}

/// The writer's connection and what it tells.
struct Open {
    tx: Tx,
    gate: Arc<Gate>,
    /// The file may not grow: [`FaultHook::fill_disk`].
    disk_full: bool,
}

struct Writer {
    path: PathBuf,
    /// `None` while the connection is broken and a new one could not be opened yet.
    open: Option<Open>,
    fault: FaultHook,
    opened_at: Instant,
    counters: Arc<Counters>,
    _lock: File,
}

type Member = Box<dyn Write>;

impl Writer {
    async fn serve(mut self, mut queue: mpsc::Receiver<Message>) {
        while let Some(message) = queue.recv().await {
            let closing = match message {
                Message::Write(first) => self.batch(first, &mut queue).await,
                Message::Close(done) => Some(done),
            };
            if let Some(done) = closing {
                if let Some(Open { tx: Tx { conn: Conn::SqliteWriter(conn), .. }, .. }) = self.open.take()
                    && let Err(error) = conn.close().await
                {
                    tracing::warn!(error = %error, "closing the database failed");
                }
                drop((self, queue));
                done.send(()).ok();
                return;
            }
        }
    }

    /// Runs `first` and what waits behind it in one transaction. Answers the request to close, if one came along.
    async fn batch(&mut self, first: Member, queue: &mut mpsc::Receiver<Message>) -> Option<oneshot::Sender<()>> {
        let began = Instant::now();
        let mut first = first;
        if let Err(error) = self.begin().await {
            first.fail(error.into());
            return None;
        }
        let verdict = self.run(&mut first).await;
        if verdict != Verdict::Commit {
            self.roll_back(verdict).await;
            first.answer();
            return None;
        }
        let (mut members, mut rejected, mut closing) = (vec![first], Vec::new(), None);
        let mut whole = self.is_whole();
        while whole && members.len() + rejected.len() < BATCH_MAX && began.elapsed() < BATCH_TIME_MAX {
            let mut write = match queue.try_recv() {
                Ok(Message::Write(write)) => write,
                Ok(Message::Close(done)) => {
                    closing = Some(done);
                    break;
                }
                Err(_) => break,
            };
            let verdict = self.run_in_savepoint(&mut write).await;
            whole = self.is_whole();
            match verdict {
                Ok(Verdict::Commit) => members.push(write),
                Ok(Verdict::Rollback) => rejected.push(write),
                Ok(Verdict::Abandon) => {
                    // Its own answer is final; the others run again.
                    whole = false;
                    write.answer();
                }
                Err(_) => {
                    whole = false;
                    members.push(write);
                }
            }
        }
        metrics::histogram!("bulkhead_database_batch_writes")
            .record(f64::from(u32::try_from(members.len()).unwrap_or(u32::MAX)));
        if whole && self.commit().await.is_ok() {
            // A refusal may rest on what other members wrote, so it is told only when that is durable.
            members.into_iter().chain(rejected).for_each(|member| self.answer(member));
        } else {
            members.append(&mut rejected);
            self.one_by_one(members).await;
        }
        closing
    }

    /// After a transaction that was lost: each member alone, on a new connection.
    async fn one_by_one(&mut self, members: Vec<Member>) {
        tracing::warn!(writes = members.len(), "a group commit was lost; its writes run again one by one");
        metrics::counter!("bulkhead_database_groups_lost_total").increment(1);
        self.replace().await;
        for mut write in members {
            self.counters.reruns.fetch_add(1, Ordering::SeqCst);
            if let Err(error) = self.begin().await {
                write.fail(error.into());
                continue;
            }
            let verdict = self.run(&mut write).await;
            if verdict != Verdict::Commit {
                self.roll_back(verdict).await;
                write.answer();
            } else if let Err(error) = self.commit().await {
                self.replace().await;
                write.fail(error.into());
            } else {
                self.answer(write);
            }
        }
    }

    fn answer(&self, member: Member) {
        self.counters.writes.fetch_add(1, Ordering::SeqCst);
        member.answer();
    }

    /// The transaction that [`begin`](Self::begin) opened is still the one that is open.
    fn is_whole(&self) -> bool {
        self.open.as_ref().is_some_and(|open| !open.gate.lost.load(Ordering::SeqCst))
    }

    async fn begin(&mut self) -> Result<(), sqlx::Error> {
        if self.try_begin().await.is_err() {
            self.replace().await;
            return self.try_begin().await;
        }
        Ok(())
    }

    async fn try_begin(&mut self) -> Result<(), sqlx::Error> {
        if self.open.is_none() {
            self.connect().await?;
        }
        if let Some(open) = &self.open {
            open.gate.lost.store(false, Ordering::SeqCst);
        }
        self.statement("begin immediate").await
    }

    async fn run(&mut self, write: &mut Member) -> Verdict {
        self.apply_disk_fault().await;
        let Some(Open { tx, .. }) = &mut self.open else { return Verdict::Abandon };
        tx.context = write.context();
        (tx.poisoned, tx.contended) = (false, false);
        write.run(tx).await
    }

    /// Runs a further member. An error means that the transaction is lost.
    async fn run_in_savepoint(&mut self, write: &mut Member) -> Result<Verdict, sqlx::Error> {
        self.statement("savepoint member").await?;
        let verdict = self.run(write).await;
        match verdict {
            Verdict::Commit => self.statement("release member").await?,
            Verdict::Rollback => {
                self.statement("rollback to member").await?;
                self.statement("release member").await?;
            }
            Verdict::Abandon => {}
        }
        Ok(verdict)
    }

    async fn commit(&mut self) -> Result<(), sqlx::Error> {
        let Some(Open { gate, .. }) = &self.open else { return Err(sqlx::Error::WorkerCrashed) };
        let gate = gate.clone();
        gate.may_commit.store(true, Ordering::SeqCst);
        let result = self.statement("commit").await;
        gate.may_commit.store(false, Ordering::SeqCst);
        result?;
        self.counters.commits.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn roll_back(&mut self, verdict: Verdict) {
        if verdict == Verdict::Abandon || !self.is_whole() || self.statement("rollback").await.is_err() {
            self.replace().await;
        }
    }

    /// Runs a statement of the writer's own.
    async fn statement(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        let Some(Open { tx: Tx { conn: Conn::SqliteWriter(conn), .. }, .. }) = &mut self.open else {
            return Err(sqlx::Error::WorkerCrashed);
        };
        let result = sqlx::query::<Sqlite>(sql).execute(conn).await;
        result.map(drop).inspect_err(|error| tracing::warn!(sql, error = %error, "the writer's statement failed"))
    }

    /// Drops the connection (which rolls back what it had open) and opens another.
    async fn replace(&mut self) {
        self.counters.replacements.fetch_add(1, Ordering::SeqCst);
        if let Some(Open { tx: Tx { conn: Conn::SqliteWriter(conn), .. }, gate, .. }) = self.open.take() {
            gate.interrupt.store(true, Ordering::SeqCst);
            if let Err(error) = conn.close_hard().await {
                tracing::warn!(error = %error, "closing a broken connection failed");
            }
        }
        if let Err(error) = self.connect().await {
            tracing::error!(error = %error, "the database cannot be opened");
        }
    }

    async fn connect(&mut self) -> Result<(), sqlx::Error> {
        let mut conn = options(&self.path).connect().await?;
        let gate = Arc::new(Gate::default());
        let mut handle = conn.lock_handle().await?;
        let asked = gate.clone();
        handle.set_commit_hook(move || asked.may_commit.load(Ordering::SeqCst));
        let told = gate.clone();
        handle.set_rollback_hook(move || told.lost.store(true, Ordering::SeqCst));
        let looked = gate.clone();
        handle.set_progress_handler(STEPS_PER_LOOK, move || !looked.interrupt.load(Ordering::SeqCst));
        drop(handle);
        let context = TxContext { org: None, actor: None, system: None };
        let tx = Tx::new(Conn::SqliteWriter(conn), context, self.fault.clone(), self.opened_at);
        self.open = Some(Open { tx, gate, disk_full: false });
        Ok(())
    }

    async fn apply_disk_fault(&mut self) {
        let wanted = self.fault.disk_full();
        if self.open.as_ref().is_none_or(|open| open.disk_full == wanted) {
            return;
        }
        // SQLite raises the first to the pages that there are; the second is its own default.
        let applied = self
            .statement(if wanted { "pragma max_page_count = 1" } else { "pragma max_page_count = 4294967294" })
            .await;
        if let (Some(open), Ok(())) = (&mut self.open, applied) {
            open.disk_full = wanted;
        }
    }
}
