//! Connections of the application role: lent for one transaction each, in turns of the organizations, and kept while nothing speaks
//! against them.
//!
//! A pool of its own (decision 0017): a connection whose transaction did not end in order is closed at once, whatever its other end
//! does; so a line that has gone silent costs whoever waits on it their time, and nobody else a connection. And what is lent is not
//! asked anything before or after.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::time::timeout_at;

use super::pace::Pace;
use crate::error::{DatabaseError, StoreError};
use crate::fair::{Gate, Party, Place};

/// A transaction that has waited longer for its turn and a connection is not begun.
const ACQUIRE_WITHIN: Duration = Duration::from_secs(10);
/// The first statement, and a rollback, are answered within this time, or the line is taken for dead.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A commit is answered within this time; what came of it is unknown otherwise. It may wait for the disk, and for a standby.
const COMMIT_WITHIN: Duration = Duration::from_secs(10);
/// A database that refuses connections (it starts) is asked again after this pause, which doubles up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(300));
/// A connection is replaced after this time: what a backend holds of plans and catalogue grows.
const LIFE_MAX: Duration = Duration::from_mins(30);
/// One that nobody used for so long is closed.
const IDLE_MAX: Duration = Duration::from_mins(10);

/// Lends connections.
pub(super) struct Connections {
    /// In front of them all; each transaction has a place.
    gate: Gate,
    /// How many places there are; `None` once it is to be closed.
    pace: Mutex<Option<Pace>>,
    home: Arc<Home>,
    options: PgConnectOptions,
    max: usize,
}

/// Where connections are while nobody has them.
#[derive(Default)]
struct Home {
    idle: Mutex<Vec<Kept>>,
    is_closed: AtomicBool,
}

struct Kept {
    conn: PgConnection,
    made: Instant,
    since: Instant,
}

/// An open transaction on a connection of its own. Dropped before its end, the connection is closed, which rolls it back.
pub(crate) struct PgTransaction {
    /// `None` only in [`commit`](Self::commit) and [`roll_back`](Self::roll_back), which take `self`.
    conn: Option<PgConnection>,
    made: Instant,
    /// `None`: it was not lent.
    home: Option<Arc<Home>>,
    _place: Option<Place>,
}

/// Whether the connection is gone (rather than a statement refused).
fn is_broken(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        // Class 57P: admin_shutdown, crash_shutdown, cannot_connect_now; 25P03: idle_in_transaction_session_timeout.
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code.starts_with("57P") || code == "25P03"),
        _ => false,
    }
}

/// Whether the database may take a connection in a moment: nobody listens yet, or it is not ready (57P03: cannot_connect_now).
fn may_come(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        sqlx::Error::Database(error) => error.code().as_deref() == Some("57P03"),
        _ => false,
    }
}

/// A line that does not answer, as the driver would say it if the system had noticed.
fn silent() -> StoreError {
    DatabaseError::from(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())).into()
}

impl Home {
    fn idle(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that was used last, so that what is not needed grows old.
    fn take(&self) -> Option<Kept> {
        let mut idle = self.idle();
        let now = Instant::now();
        // Closing is a message and no wait.
        idle.retain(|kept| now - kept.since < IDLE_MAX && now - kept.made < LIFE_MAX);
        idle.pop()
    }

    fn keep(&self, conn: PgConnection, made: Instant) {
        if !self.is_closed.load(Ordering::SeqCst) {
            self.idle().push(Kept { conn, made, since: Instant::now() });
        }
    }
}

impl Connections {
    pub(super) fn new(options: PgConnectOptions, max: u32) -> Self {
        let max = max as usize;
        let pace = Mutex::new(Some(Pace::new(max, Instant::now())));
        Self { gate: Gate::new(max), pace, home: Arc::default(), options, max }
    }

    /// Lets the pace say how many places there are.
    fn keep_pace(&self, say: impl FnOnce(&mut Pace, Instant, bool) -> usize) {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pace) = pace.as_mut() else { return };
        let (limit, is_short) = self.gate.standing();
        let wanted = say(pace, Instant::now(), is_short);
        if wanted != limit {
            metrics::gauge!("bulkhead_database_transactions_max")
                .set(f64::from(u32::try_from(wanted).unwrap_or(u32::MAX)));
            self.gate.set_limit(wanted);
        }
    }

    fn require_open(&self) -> Result<(), StoreError> {
        if self.home.is_closed.load(Ordering::SeqCst) { Err(StoreError::closed()) } else { Ok(()) }
    }

    /// Waits for the party's turn and begins a transaction with these statements.
    ///
    /// # Errors
    /// [`StoreError::TimedOut`] when there was no turn, or no answer, in time; [`StoreError::Unavailable`].
    pub(super) async fn begin(&self, party: Party, text: &str) -> Result<PgTransaction, StoreError> {
        self.require_open()?;
        let until = tokio::time::Instant::now() + ACQUIRE_WITHIN;
        if self.gate.standing().1 {
            self.keep_pace(|pace, now, _| pace.wait(now));
        }
        let place = timeout_at(until, self.gate.enter(party)).await.map_err(|_| StoreError::TimedOut)??;
        // One that died while it lay idle has done nothing; the next one is tried, and then a new one.
        while let Some(Kept { mut conn, made, .. }) = self.home.take() {
            let within = until.min(tokio::time::Instant::now() + ANSWER_WITHIN);
            let asked = Instant::now();
            match timeout_at(within, conn.execute(AssertSqlSafe(text))).await {
                Ok(Ok(_)) => {
                    self.keep_pace(|pace, now, is_short| pace.hear(now, now - asked, is_short));
                    return Ok(self.lent(conn, made, place));
                }
                Ok(Err(error)) if !is_broken(&error) => return Err(error.into()),
                Ok(Err(_)) | Err(_) => {}
            }
        }
        self.require_open()?;
        let (mut conn, made) = (self.connect(until).await?, Instant::now());
        timeout_at(until, conn.execute(AssertSqlSafe(text))).await.map_err(|_| StoreError::TimedOut)??;
        Ok(self.lent(conn, made, place))
    }

    fn lent(&self, conn: PgConnection, made: Instant, place: Place) -> PgTransaction {
        PgTransaction { conn: Some(conn), made, home: Some(Arc::clone(&self.home)), _place: Some(place) }
    }

    async fn connect(&self, until: tokio::time::Instant) -> Result<PgConnection, StoreError> {
        let mut pause = AGAIN.0;
        loop {
            let made = timeout_at(until, PgConnection::connect_with(&self.options)).await;
            match made.map_err(|_| StoreError::TimedOut)? {
                Ok(conn) => return Ok(conn),
                Err(error) if may_come(&error) && tokio::time::Instant::now() + pause < until => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(AGAIN.1);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A connection for statements outside of a transaction: not lent, closed when it is dropped.
    pub(super) async fn alone(&self) -> Result<PgConnection, StoreError> {
        self.require_open()?;
        self.connect(tokio::time::Instant::now() + ACQUIRE_WITHIN).await
    }

    /// Waits for the transactions under way and closes every connection.
    pub(super) async fn close(&self) {
        // All of them, so that whoever holds one has given it back.
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.gate.set_limit(self.max);
        let mut places = Vec::with_capacity(self.max);
        for _ in 0..self.max {
            places.extend(self.gate.enter(None).await.ok());
        }
        self.home.is_closed.store(true, Ordering::SeqCst);
        let idle = std::mem::take(&mut *self.home.idle());
        for kept in idle {
            // One that does not take the message is closed by being dropped.
            tokio::time::timeout(ANSWER_WITHIN, kept.conn.close()).await.ok();
        }
    }
}

impl PgTransaction {
    /// Begins a transaction on a connection that is closed after it.
    pub(super) async fn alone(options: &PgConnectOptions, begin: &'static str) -> Result<Self, StoreError> {
        let connect = tokio::time::timeout(ACQUIRE_WITHIN, PgConnection::connect_with(options));
        let mut conn = connect.await.map_err(|_| StoreError::TimedOut)??;
        conn.execute(begin).await?;
        Ok(Self { conn: Some(conn), made: Instant::now(), home: None, _place: None })
    }

    /// # Errors
    /// The database's. Without an answer nobody knows what came of it.
    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        // What is not lent is a backup's or a restore's, which may take its time.
        let within = self.home.as_ref().map(|_| COMMIT_WITHIN);
        self.end("commit", within).await
    }

    /// # Errors
    /// The database's; it is rolled back then as well, since its connection is closed.
    pub(crate) async fn roll_back(self) -> Result<(), StoreError> {
        self.end("rollback", Some(ANSWER_WITHIN)).await
    }

    async fn end(mut self, how: &'static str, within: Option<Duration>) -> Result<(), StoreError> {
        let Some(mut conn) = self.conn.take() else { return Ok(()) };
        let ended = conn.execute(how);
        match within {
            Some(within) => tokio::time::timeout(within, ended).await.map_err(|_| silent())??,
            None => ended.await?,
        };
        if let Some(home) = &self.home {
            home.keep(conn, self.made);
        }
        Ok(())
    }
}

impl Deref for PgTransaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.conn.as_ref().expect("only its end takes the connection, and itself with it")
    }
}

impl DerefMut for PgTransaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.conn.as_mut().expect("only its end takes the connection, and itself with it")
    }
}
