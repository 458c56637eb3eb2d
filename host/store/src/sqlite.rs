//! What only SQLite needs: the directory lock, readers and one writer, each on threads of their own.
//!
//! Every closure travels whole to the thread that owns a connection and runs its statements there, so that a transaction costs one
//! hop, whatever its length (`docs/decisions/0005-sqlite-closures-travel.md`).

pub(crate) mod connection;
mod reader;
mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode};
use sqlx::{ConnectOptions as _, Connection as _};

use self::connection::{Access, SqliteConnection};
use self::reader::Readers;
use self::writer::Writes;
use crate::error::StoreError;
use crate::migrations;
use crate::store::{FaultHook, TxError, WriterStats};
use crate::tx::{Conn, Tx, TxContext};

/// The database in the data directory.
const FILE: &str = "bulkhead.sqlite";
/// Locked by the process that serves the directory.
const LOCK: &str = "bulkhead.lock";
/// A process that was killed still holds its lock for a moment.
const LOCK_WAIT: Duration = Duration::from_secs(2);

pub(crate) struct SqliteBackend {
    /// `None` for one that only looks.
    writes: Option<Writes>,
    /// Of one that only looks: where the serving process's lock is.
    beside: Option<PathBuf>,
    readers: Readers,
}

impl SqliteBackend {
    pub(crate) async fn open(
        dir: &Path,
        readers: u32,
        fault: FaultHook,
        opened_at: Instant,
    ) -> Result<Self, StoreError> {
        let (path, lock) = prepare(dir).await?;
        let readers = Readers::start(&path, Access::Read, readers, &fault, opened_at)?;
        let writes = Writes::start(path, lock, fault, opened_at)?;
        Ok(Self { writes: Some(writes), beside: None, readers })
    }

    /// Opens readers beside the serving process, if there is one. Its lock is not asked for.
    pub(crate) fn look(dir: &Path, readers: u32, fault: &FaultHook, opened_at: Instant) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        if !path.is_file() {
            return Err(StoreError::Refused(format!("there is no SQLite database {}", path.display())));
        }
        let mut conn = SqliteConnection::open(&path, Access::ReadFile)?;
        let mut applied = Vec::new();
        let sql = "select version, description from _sqlx_migrations order by version";
        conn.for_each(sql, &[], |row| {
            applied.push((row.get(0)?, row.get(1)?));
            Ok::<_, rusqlite::Error>(())
        })?;
        migrations::check_complete(&applied)?;
        let readers = Readers::start(&path, Access::ReadFile, readers, fault, opened_at)?;
        Ok(Self { writes: None, beside: Some(dir.join(LOCK)), readers })
    }

    /// As [`look`](Self::look), of a database that this version may have to bring up to date first; `None` where there is none, or none with
    /// a root key's check value yet.
    pub(crate) fn look_before_opening(
        dir: &Path,
        fault: &FaultHook,
        opened_at: Instant,
    ) -> Result<Option<Self>, StoreError> {
        let path = dir.join(FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let mut conn = SqliteConnection::open(&path, Access::ReadFile)?;
        let mut there = 0_i64;
        let sql =
            "select count(*) from sqlite_schema where type = 'table' and name in ('root_check', 'org_key', 'totp')";
        conn.for_each(sql, &[], |row| {
            there = row.get(0)?;
            Ok::<_, rusqlite::Error>(())
        })?;
        // Before these tables no root key was kept, and nothing was wrapped.
        if there < 3 {
            return Ok(None);
        }
        let readers = Readers::start(&path, Access::ReadFile, 1, fault, opened_at)?;
        Ok(Some(Self { writes: None, beside: Some(dir.join(LOCK)), readers }))
    }

    pub(crate) async fn write<A, T, E, F>(&self, context: TxContext, args: A, closure: F) -> Result<T, E>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        E: TxError,
        F: for<'t> Fn(&'t mut Tx, &'t A) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        let Some(writes) = &self.writes else {
            return Err(StoreError::Misuse("a store that only looks writes nothing").into());
        };
        writes.write(context, args, closure).await
    }

    pub(crate) async fn read<A, T, E, F>(&self, context: TxContext, args: A, closure: F) -> Result<T, E>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        E: TxError,
        F: for<'t> Fn(&'t mut Tx, &'t A) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        self.readers.read(context, args, closure).await
    }

    pub(crate) async fn check_statement(&self, sql: &str) -> Result<(), StoreError> {
        self.readers.check(sql).await
    }

    /// Whether a process serves the directory.
    pub(crate) fn is_served(&self) -> bool {
        let Some(lock) = &self.beside else { return true };
        // Asked for and given back at once; one that starts at this moment waits longer than that.
        File::open(lock)
            .is_ok_and(|file| matches!(fs4::FileExt::try_lock_shared(&file), Err(fs4::TryLockError::WouldBlock)))
    }

    pub(crate) fn stats(&self) -> WriterStats {
        self.writes.as_ref().map(Writes::stats).unwrap_or_default()
    }

    pub(crate) async fn close(&self) {
        self.readers.close().await;
        if let Some(writes) = &self.writes {
            writes.close().await;
        }
    }
}

/// Opens a snapshot from beside the serving process, which goes on writing: its write-ahead log keeps what the snapshot needs.
pub(crate) fn begin_snapshot(dir: &Path) -> Result<Conn, StoreError> {
    let path = dir.join(FILE);
    if !path.is_file() {
        return Err(StoreError::Refused(format!("there is no SQLite database {}", path.display())));
    }
    let conn = SqliteConnection::open(&path, Access::ReadFile)?;
    conn.control("begin deferred")?;
    Ok(Conn::Sqlite(conn))
}

/// Makes and migrates the database where it is not there, and begins to write, holding the directory's lock.
pub(crate) async fn begin_restore(dir: &Path) -> Result<(Conn, File), StoreError> {
    let (path, lock) = prepare(dir).await?;
    let conn = SqliteConnection::open(&path, Access::Write)?;
    conn.control("begin immediate")?;
    Ok((Conn::Sqlite(conn), lock))
}

/// Locks the directory (making it where it is not there) and brings its database to this version's schema.
async fn prepare(dir: &Path) -> Result<(PathBuf, File), StoreError> {
    std::fs::create_dir_all(dir)
        .map_err(|error| StoreError::Refused(format!("cannot create {}: {error}", dir.display())))?;
    let lock = lock_dir(dir).await?;
    let path = dir.join(FILE);
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .journal_mode(SqliteJournalMode::Wal)
        // Of a new file: what retention frees can go back to the file system, a little at a time.
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5))
        .log_statements(tracing::log::LevelFilter::Trace);
    let mut conn = options.create_if_missing(true).connect().await?;
    migrations::check_newer(&applied(&mut conn).await?)?;
    migrations::sqlite()
        .run_direct(None, &mut conn, false)
        .await
        .map_err(|error| StoreError::Refused(format!("the migrations did not apply: {error}")))?;
    conn.close().await?;
    Ok((path, lock))
}

/// Numbers and names of the migrations that the database has; none when it is empty.
async fn applied(conn: &mut sqlx::SqliteConnection) -> Result<Vec<(i64, String)>, StoreError> {
    let there: i64 = sqlx::query_scalar("select count(*) from sqlite_schema where name = '_sqlx_migrations'")
        .fetch_one(&mut *conn)
        .await?;
    if there == 0 {
        return Ok(Vec::new());
    }
    Ok(sqlx::query_as("select version, description from _sqlx_migrations order by version").fetch_all(conn).await?)
}

/// One process serves a data directory. The lock goes with the process, however it ends; one that is just ending is waited for.
async fn lock_dir(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(LOCK);
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
