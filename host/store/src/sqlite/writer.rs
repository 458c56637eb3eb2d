//! The one writer, with group commit.
//!
//! Writes wait in a line for each organization, and the lines are served in turns. It takes the first, opens one immediate
//! transaction, runs every write that waits (bounded), commits once and only then answers all callers. The first member runs without a
//! savepoint, each further one in its own.
//!
//! An I/O or full-disk error inside a savepoint ends the *whole* transaction, and what followed would run in autocommit. So
//! each statement asks first whether the transaction is still open ([`Tx`] does), and so does the writer after each member: if
//! it is not, nobody is answered, the connection is replaced, and the members run again one by one.

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hash;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::connection::{Access, SqliteConnection};
use crate::error::StoreError;
use crate::fair::Queue;
use crate::store::{FaultHook, TxError, WRITE_TIME_MAX, WriterStats, in_transaction};
use crate::tx::{Conn, Tx, TxContext};

/// Writes in one commit.
const BATCH_MAX: usize = 128;
/// A batch takes no further member after this long.
const BATCH_TIME_MAX: Duration = Duration::from_millis(10);
/// The same for a batch of several organizations: nobody's commit waits for long for what others write. At most so many times as long as a
/// commit takes, which is what a batch saves …
const MIXED_BATCH_COMMITS: u32 = 2;
/// … and never longer than this …
const MIXED_BATCH_TIME_MAX: Duration = Duration::from_millis(2);
/// … nor shorter.
const MIXED_BATCH_TIME_MIN: Duration = Duration::from_micros(250);
/// Of what commits take each new one makes this part …
const COMMIT_SHARE: u32 = 8;
/// … and counts no more than so many times as long as they do: one that carried out a checkpoint says nothing about the next ones. A disk
/// that has become slower is believed after some commits.
const COMMIT_LONGEST: u32 = 4;

/// The way to the writer.
pub(super) struct Writes {
    queue: Arc<Queue<Member>>,
    counters: Arc<Counters>,
    /// Nothing is sent; it ends with the writer's thread.
    ended: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

#[derive(Default)]
struct Counters {
    writes: AtomicU64,
    commits: AtomicU64,
    replacements: AtomicU64,
    reruns: AtomicU64,
}

/// How a closure's run ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Commit,
    Rollback,
}

/// A caller's write with its types erased. It may run several times; it answers once.
trait Write: Send {
    fn context(&self) -> TxContext;
    fn run<'t>(&'t mut self, tx: &'t mut Tx) -> BoxFuture<'t, Verdict>;
    /// Sends what the last run ended with.
    fn answer(self: Box<Self>);
    fn fail(self: Box<Self>, error: StoreError);
    /// Nobody waits for the answer any more.
    fn is_gone(&self) -> bool;
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
                Err(_) => (Err(StoreError::TimedOut.into()), Verdict::Rollback),
            };
            self.result = Some(result);
            verdict
        })
    }

    fn answer(self: Box<Self>) {
        let result =
            self.result.unwrap_or_else(|| Err(StoreError::Misuse("a write was answered before it ran").into()));
        // What the write held is given back before its caller goes on.
        drop((self.args, self.closure));
        // A caller who no longer listens (a closed connection) loses only the answer.
        drop(self.reply.send(result));
    }

    fn fail(self: Box<Self>, error: StoreError) {
        drop((self.args, self.closure));
        drop(self.reply.send(Err(error.into())));
    }

    fn is_gone(&self) -> bool {
        self.reply.is_closed()
    }
}

impl Writes {
    /// Starts the writer on a thread of its own. It holds the directory's `lock` until it has closed the file.
    pub(super) fn start(path: PathBuf, lock: File, fault: FaultHook, opened_at: Instant) -> Result<Self, StoreError> {
        let refused = |error: std::io::Error| StoreError::Refused(format!("cannot start the writer's thread: {error}"));
        let counters = Arc::new(Counters::default());
        let queue = Arc::new(Queue::<Member>::new(|write| write.is_gone()));
        let (running, ended) = mpsc::channel(1);
        let mut writer = Writer {
            path,
            open: None,
            disk_full: false,
            usual_commit: MIXED_BATCH_TIME_MAX,
            fault,
            opened_at,
            counters: counters.clone(),
            _lock: lock,
        };
        writer.connect()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(refused)?;
        let serving = Serving { queue: Arc::clone(&queue), _running: running };
        std::thread::Builder::new()
            .name("sqlite-writer".into())
            .spawn(move || runtime.block_on(writer.serve(serving)))
            .map_err(refused)?;
        Ok(Self { queue, counters, ended: tokio::sync::Mutex::new(ended) })
    }

    pub(super) async fn write<A, T, E, F>(&self, context: TxContext, args: A, closure: F) -> Result<T, E>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        E: TxError,
        F: for<'t> Fn(&'t mut Tx, &'t A) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let write = Box::new(TypedWrite { context, args, closure, result: None, reply });
        let party = write.context.org;
        self.queue.push(party, write)?;
        answer.await.map_err(|_| StoreError::closed())?
    }

    pub(super) fn stats(&self) -> WriterStats {
        let Counters { writes, commits, replacements, reruns } = &*self.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        WriterStats {
            writes: read(writes),
            commits: read(commits),
            replacements: read(replacements),
            reruns: read(reruns),
            waiting: self.queue.len(),
        }
    }

    /// Waits until the writes that were queued before are answered and the file is closed.
    pub(super) async fn close(&self) {
        self.queue.close();
        self.ended.lock().await.recv().await;
    }
}

impl Drop for Writes {
    /// Without a close the writer finishes what waits, and ends.
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// The writer's end of the queue. However its thread ends, nobody waits for it any more.
struct Serving {
    queue: Arc<Queue<Member>>,
    _running: mpsc::Sender<()>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.queue.abandon();
    }
}

struct Writer {
    path: PathBuf,
    /// `None` while the connection is broken and a new one could not be opened yet.
    open: Option<Tx>,
    /// The file may not grow: [`FaultHook::fill_disk`].
    disk_full: bool,
    /// What a commit took of late.
    usual_commit: Duration,
    fault: FaultHook,
    opened_at: Instant,
    counters: Arc<Counters>,
    _lock: File,
}

type Member = Box<dyn Write>;

/// In the order in which they are answered: those of whom there are few before those of whom there are many, since whoever is answered
/// first goes on first.
fn seldom_first<T, P: Eq + Hash + Copy>(mut members: Vec<T>, party: impl Fn(&T) -> P) -> Vec<T> {
    let mut counts: HashMap<P, usize> = HashMap::new();
    for member in &members {
        *counts.entry(party(member)).or_default() += 1;
    }
    if counts.len() > 1 {
        members.sort_by_cached_key(|member| counts.get(&party(member)).copied().unwrap_or_default());
    }
    members
}

/// What a commit takes of late, after one that took so long.
fn usual_after(usual: Duration, took: Duration) -> Duration {
    (usual * (COMMIT_SHARE - 1) + took.min(usual.max(MIXED_BATCH_TIME_MIN) * COMMIT_LONGEST)) / COMMIT_SHARE
}

impl Writer {
    async fn serve(mut self, serving: Serving) {
        while let Some(first) = serving.queue.next().await {
            self.batch(first, &serving.queue).await;
        }
        // The file is closed before whoever asked for it hears so.
        drop(self);
        drop(serving);
    }

    /// Runs `first` and what waits behind it in one transaction.
    async fn batch(&mut self, mut first: Member, queue: &Queue<Member>) {
        let began = Instant::now();
        if let Err(error) = self.begin() {
            first.fail(error.into());
            return;
        }
        if self.run(&mut first).await == Verdict::Rollback {
            self.roll_back();
            first.answer();
            return;
        }
        let (party, mut is_mixed) = (first.context().org, false);
        let (mut members, mut rejected) = (vec![first], Vec::new());
        let mut whole = self.is_whole();
        let mixed_max = (self.usual_commit * MIXED_BATCH_COMMITS).clamp(MIXED_BATCH_TIME_MIN, MIXED_BATCH_TIME_MAX);
        while whole && members.len() + rejected.len() < BATCH_MAX {
            if began.elapsed() >= if is_mixed { mixed_max } else { BATCH_TIME_MAX } {
                break;
            }
            let Some(mut write) = queue.try_pop() else { break };
            is_mixed = is_mixed || write.context().org != party;
            match self.run_in_savepoint(&mut write).await {
                Ok(Verdict::Commit) => members.push(write),
                Ok(Verdict::Rollback) => rejected.push(write),
                Err(_) => {
                    whole = false;
                    members.push(write);
                }
            }
            whole = whole && self.is_whole();
        }
        metrics::histogram!("bulkhead_database_batch_writes")
            .record(f64::from(u32::try_from(members.len()).unwrap_or(u32::MAX)));
        if whole && self.commit().is_ok() {
            // A refusal may rest on what other members wrote, so it is told only when that is durable.
            members.append(&mut rejected);
            for member in seldom_first(members, |member| member.context().org) {
                self.answer(member);
            }
        } else {
            members.append(&mut rejected);
            self.one_by_one(members).await;
        }
    }

    /// After a transaction that was lost: each member alone, on a new connection.
    async fn one_by_one(&mut self, members: Vec<Member>) {
        tracing::warn!(writes = members.len(), "a group commit was lost; its writes run again one by one");
        metrics::counter!("bulkhead_database_groups_lost_total").increment(1);
        self.replace();
        for mut write in members {
            self.counters.reruns.fetch_add(1, Ordering::SeqCst);
            if let Err(error) = self.begin() {
                write.fail(error.into());
            } else if self.run(&mut write).await == Verdict::Rollback {
                self.roll_back();
                write.answer();
            } else if let Err(error) = self.commit() {
                self.replace();
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

    /// The transaction that [`begin`](Self::begin) opened is still open: only a commit or a rollback of the writer's ends one
    /// in order.
    fn is_whole(&self) -> bool {
        self.open.as_ref().is_some_and(Tx::is_in_sqlite_transaction)
    }

    fn begin(&mut self) -> rusqlite::Result<()> {
        if self.try_begin().is_err() {
            self.replace();
            return self.try_begin();
        }
        Ok(())
    }

    fn try_begin(&mut self) -> rusqlite::Result<()> {
        if self.open.is_none() {
            self.connect()?;
        }
        self.apply_disk_fault()?;
        self.control("begin immediate")
    }

    async fn run(&mut self, write: &mut Member) -> Verdict {
        let Some(tx) = &mut self.open else { return Verdict::Rollback };
        tx.renew(write.context());
        if let Conn::Sqlite(conn) = &tx.conn {
            conn.give_up_after(WRITE_TIME_MAX);
        }
        write.run(tx).await
    }

    /// Runs a further member. An error means that the transaction is lost.
    async fn run_in_savepoint(&mut self, write: &mut Member) -> rusqlite::Result<Verdict> {
        self.control("savepoint member")?;
        let verdict = self.run(write).await;
        if verdict == Verdict::Rollback {
            self.control("rollback to member")?;
        }
        self.control("release member")?;
        Ok(verdict)
    }

    fn commit(&mut self) -> rusqlite::Result<()> {
        let began = Instant::now();
        self.control("commit")?;
        self.usual_commit = usual_after(self.usual_commit, began.elapsed());
        self.counters.commits.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn roll_back(&mut self) {
        if !self.is_whole() || self.control("rollback").is_err() {
            self.replace();
        }
    }

    /// Runs a statement of the writer's own.
    fn control(&mut self, sql: &'static str) -> rusqlite::Result<()> {
        let Some(tx) = &mut self.open else { return Err(rusqlite::Error::InvalidQuery) };
        tx.sqlite_control(sql).inspect_err(|error| tracing::warn!(sql, error = %error, "the writer's statement failed"))
    }

    /// Drops the connection (which rolls back what it had open) and opens another.
    fn replace(&mut self) {
        self.counters.replacements.fetch_add(1, Ordering::SeqCst);
        self.open = None;
        if let Err(error) = self.connect() {
            tracing::error!(error = %error, "the database cannot be opened");
        }
    }

    fn connect(&mut self) -> rusqlite::Result<()> {
        let conn = SqliteConnection::open(&self.path, Access::Write)?;
        let context = TxContext { org: None, system: None, correlation: None };
        self.open = Some(Tx::new(Conn::Sqlite(conn), context, self.fault.clone(), self.opened_at));
        self.disk_full = false;
        Ok(())
    }

    fn apply_disk_fault(&mut self) -> rusqlite::Result<()> {
        let wanted = self.fault.disk_full();
        if self.disk_full != wanted {
            // SQLite raises the first to the pages that there are; the second is its own default.
            self.control(if wanted { "pragma max_page_count = 1" } else { "pragma max_page_count = 4294967294" })?;
            self.disk_full = wanted;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_commit_says_little_about_the_next_and_many_say_all() {
        let (usual, checkpoint) = (Duration::from_micros(600), Duration::from_millis(12));
        let after = usual_after(usual, checkpoint);
        assert_eq!(after, Duration::from_micros(825), "seven parts of 600 and one of 2,400");
        let soon = (0..8).fold(after, |usual, _| usual_after(usual, Duration::from_micros(600)));
        assert!(soon < Duration::from_micros(700), "{soon:?}");
        let slower = (0..40).fold(usual, |usual, _| usual_after(usual, checkpoint));
        assert!(slower > Duration::from_millis(11) && slower <= checkpoint, "{slower:?}");
    }

    #[test]
    fn who_has_few_is_answered_before_who_has_many() {
        let members = vec![(1, 'a'), (1, 'b'), (2, 'c'), (1, 'd'), (3, 'e'), (3, 'f')];
        let order: String = seldom_first(members, |(party, _)| *party).into_iter().map(|(_, name)| name).collect();
        assert_eq!(order, "cefabd");
        let alone = vec![(1, 'a'), (1, 'b')];
        assert_eq!(seldom_first(alone.clone(), |(party, _)| *party), alone);
    }
}
