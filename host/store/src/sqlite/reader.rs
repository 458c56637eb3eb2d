//! Readers: a few threads, each with a connection of its own. A read's closure travels to one of them and runs there whole. Reads wait in
//! a line for each organization, and the lines are served in turns.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::connection::{Access, SqliteConnection};
use crate::error::StoreError;
use crate::fair::Queue;
use crate::store::{FaultHook, TxError, in_transaction};
use crate::tx::{Conn, Tx, TxContext};

/// A read that waited longer for a reader is not begun.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// One read may take this long.
const READ_TIME_MAX: Duration = Duration::from_secs(30);

pub(crate) struct Readers {
    queue: Arc<Queue<Message>>,
    /// Nothing is sent; it ends with the last reader's thread.
    ended: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

enum Message {
    Read(Box<dyn Read>),
    Check(String, oneshot::Sender<rusqlite::Result<()>>),
}

impl Message {
    /// Nobody waits for the answer any more.
    fn is_gone(&self) -> bool {
        match self {
            Self::Read(read) => read.is_gone(),
            Self::Check(_, reply) => reply.is_closed(),
        }
    }
}

/// A caller's read with its types erased.
trait Read: Send {
    fn context(&self) -> TxContext;
    /// Runs the closure and answers its caller.
    fn run(self: Box<Self>, tx: &mut Tx) -> BoxFuture<'_, ()>;
    fn fail(self: Box<Self>, error: StoreError);
    fn is_gone(&self) -> bool;
    /// It waited too long itself.
    fn is_stale(&self) -> bool;
}

struct TypedRead<A, T, E, F> {
    context: TxContext,
    args: A,
    closure: F,
    queued_at: Instant,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<A, T, E, F> Read for TypedRead<A, T, E, F>
where
    A: Send + Sync + 'static,
    T: Send + 'static,
    E: TxError,
    F: for<'t> Fn(&'t mut Tx, &'t A) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
{
    fn context(&self) -> TxContext {
        self.context.clone()
    }

    fn run(self: Box<Self>, tx: &mut Tx) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Self { args, closure, reply, .. } = *self;
            // The closure is called inside, since it may panic before it has a future to give.
            let work = async { closure(tx, &args).await };
            let work = in_transaction(std::panic::AssertUnwindSafe(work).catch_unwind());
            let result = match tokio::time::timeout(READ_TIME_MAX, work).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(StoreError::Misuse("the read panicked").into()),
                Err(_) => Err(StoreError::TimedOut.into()),
            };
            drop(reply.send(result));
        })
    }

    fn fail(self: Box<Self>, error: StoreError) {
        drop(self.reply.send(Err(error.into())));
    }

    fn is_gone(&self) -> bool {
        self.reply.is_closed()
    }

    fn is_stale(&self) -> bool {
        self.queued_at.elapsed() > WAIT_MAX
    }
}

impl Readers {
    /// Starts `threads` readers of the file.
    pub(crate) fn start(
        path: &Path,
        access: Access,
        threads: u32,
        fault: &FaultHook,
        opened_at: Instant,
    ) -> Result<Self, StoreError> {
        let queue = Arc::new(Queue::new(Message::is_gone));
        let (running, ended) = mpsc::channel(1);
        let all = Arc::new(Serving(Arc::clone(&queue)));
        for _ in 0..threads {
            let (path, fault, all, running) = (path.to_owned(), fault.clone(), Arc::clone(&all), running.clone());
            std::thread::Builder::new()
                .name("sqlite-reader".into())
                .spawn(move || {
                    serve(&path, access, &all.0, &fault, opened_at);
                    drop((all, running));
                })
                .map_err(|error| StoreError::Refused(format!("cannot start a reader's thread: {error}")))?;
        }
        Ok(Self { queue, ended: tokio::sync::Mutex::new(ended) })
    }

    pub(crate) async fn read<A, T, E, F>(&self, context: TxContext, args: A, closure: F) -> Result<T, E>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        E: TxError,
        F: for<'t> Fn(&'t mut Tx, &'t A) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let read = TypedRead { context, args, closure, queued_at: Instant::now(), reply };
        let party = read.context.org;
        self.queue.push(party, Message::Read(Box::new(read)))?;
        answer.await.map_err(|_| StoreError::closed())?
    }

    pub(crate) async fn check(&self, sql: &str) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.queue.push(None, Message::Check(sql.to_owned(), reply))?;
        Ok(answer.await.map_err(|_| StoreError::closed())??)
    }

    /// Waits until each thread has closed its connection.
    pub(crate) async fn close(&self) {
        self.queue.close();
        self.ended.lock().await.recv().await;
    }
}

impl Drop for Readers {
    /// Without a close the readers finish what waits, and end.
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// All readers' end of the queue. When the last of them has ended, however that was, nobody waits for them any more.
struct Serving(Arc<Queue<Message>>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

fn serve(path: &Path, access: Access, queue: &Queue<Message>, fault: &FaultHook, opened_at: Instant) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(error = %error, "a reader's thread could not start");
            return;
        }
    };
    let mut open: Option<Tx> = None;
    while let Some(message) = runtime.block_on(queue.next()) {
        match message {
            Message::Check(sql, reply) => {
                let checked = SqliteConnection::open(path, access).and_then(|conn| conn.check(&sql));
                reply.send(checked).ok();
            }
            Message::Read(read) if read.is_stale() => read.fail(StoreError::TimedOut),
            Message::Read(read) => {
                let context = read.context();
                let ready = match open.take() {
                    Some(tx) => Ok(tx),
                    None => SqliteConnection::open(path, access)
                        .map(|conn| Tx::new(Conn::Sqlite(conn), context.clone(), fault.clone(), opened_at)),
                };
                let begun = ready.and_then(|mut tx| {
                    tx.renew(context);
                    tx.sqlite_control("begin deferred").map(|()| tx)
                });
                match begun {
                    Ok(mut tx) => {
                        if let Conn::Sqlite(conn) = &tx.conn {
                            conn.give_up_after(READ_TIME_MAX);
                        }
                        runtime.block_on(read.run(&mut tx));
                        // A connection that cannot end its transaction is thrown away.
                        open = tx.sqlite_control("rollback").is_ok().then_some(tx);
                    }
                    Err(error) => read.fail(error.into()),
                }
            }
        }
    }
}
