//! One SQLite connection on the thread that owns it: each statement runs at once, without a hop to another thread.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{OpenFlags, Statement};

use crate::sql::Bind;

/// Prepared statements that a connection keeps: more than there are.
const STATEMENTS_MAX: usize = 512;
/// How many steps of SQLite's machine pass between two looks at the deadline: a fraction of a millisecond.
const STEPS_PER_LOOK: i32 = 10_000;
/// Gives some free pages back to the file system: 512 KiB are moved and cut off in one transaction.
const GIVE_BACK: &str = "pragma incremental_vacuum(128)";
/// What each connection is told first. `synchronous=full`: a commit is on the disk before it is answered.
/// `secure_delete=fast`: what is removed or replaced in a row, a retired key above all, is overwritten where that costs no further writes.
const PRAGMAS: &str = "pragma journal_mode = wal; pragma synchronous = full; pragma foreign_keys = on; \
     pragma secure_delete = fast; pragma journal_size_limit = 67108864; pragma wal_autocheckpoint = 4000; pragma temp_store = memory; pragma cache_size = -65536;";

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Write,
    /// Of the serving process, which may refresh the log's index.
    Read,
    /// Of another process beside it.
    ReadFile,
}

/// An open connection. Not for sharing: it moves with its [`Tx`](crate::Tx).
pub(crate) struct SqliteConnection {
    conn: rusqlite::Connection,
    shapes: HashMap<usize, Shape>,
    limit: Arc<TimeLimit>,
}

/// What a statement's text fixes once: which value goes where, and what its columns are called.
struct Shape {
    /// For each of SQLite's parameters (numbered by first use), the place of its value in ours (numbered as written).
    places: Box<[usize]>,
    columns: Columns,
}

type Columns = Arc<[Box<str>]>;

/// When the statements of a closure are to be given up.
struct TimeLimit {
    opened_at: Instant,
    /// Microseconds after `opened_at`; `u64::MAX` for never.
    deadline_us: AtomicU64,
}

/// A row, read out of its statement.
pub(crate) struct SqliteRow {
    columns: Columns,
    values: Vec<Value>,
}

impl SqliteRow {
    /// The column's value; `None` when the statement has no such column.
    pub(crate) fn value(&self, name: &str) -> Option<&Value> {
        self.columns.iter().position(|column| **column == *name).and_then(|at| self.values.get(at))
    }
}

impl SqliteConnection {
    /// Opens the file, which must exist.
    pub(crate) fn open(path: &Path, access: Access) -> rusqlite::Result<Self> {
        let mode = match access {
            Access::Write | Access::Read => OpenFlags::SQLITE_OPEN_READ_WRITE,
            Access::ReadFile => OpenFlags::SQLITE_OPEN_READ_ONLY,
        };
        let conn = rusqlite::Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        conn.busy_timeout(Duration::from_secs(5))?;
        if access != Access::ReadFile {
            conn.execute_batch(PRAGMAS)?;
        }
        if access == Access::Read {
            conn.execute_batch("pragma query_only = on")?;
        }
        conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        let limit = Arc::new(TimeLimit { opened_at: Instant::now(), deadline_us: AtomicU64::new(u64::MAX) });
        let looked = Arc::clone(&limit);
        conn.progress_handler(STEPS_PER_LOOK, Some(move || looked.is_over()))?;
        Ok(Self { conn, shapes: HashMap::new(), limit })
    }

    /// From now on statements are given up (`SQLITE_INTERRUPT`) after this long.
    pub(crate) fn give_up_after(&self, duration: Duration) {
        let deadline = self.limit.opened_at.elapsed().saturating_add(duration);
        let deadline_us = u64::try_from(deadline.as_micros()).unwrap_or(u64::MAX);
        self.limit.deadline_us.store(deadline_us, Ordering::Relaxed);
    }

    /// Whether a transaction is open. A full disk or an I/O error ends one without a word.
    pub(crate) fn is_in_transaction(&self) -> bool {
        !self.conn.is_autocommit()
    }

    /// Runs a statement without values that is not one of the store's own (`begin`, `commit`, a pragma).
    pub(crate) fn control(&self, sql: &'static str) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare_cached(sql)?;
        let mut rows = statement.raw_query();
        while rows.next()?.is_some() {}
        Ok(())
    }

    /// Cuts some of the free pages off the file when there are more than `reserve`; answers how many there were.
    pub(crate) fn give_back(&self, reserve: u32) -> rusqlite::Result<u32> {
        let free: u32 = self.conn.prepare_cached("pragma freelist_count")?.query_row([], |row| row.get(0))?;
        if free > reserve {
            self.control(GIVE_BACK)?;
        }
        Ok(free)
    }

    /// Prepares a statement without running it.
    pub(crate) fn check(&self, sql: &str) -> rusqlite::Result<()> {
        self.conn.prepare(sql).map(drop)
    }

    /// Runs a statement and answers how many rows it changed.
    pub(crate) fn execute(&mut self, sql: &'static str, values: &[Bind<'_>]) -> rusqlite::Result<u64> {
        let mut statement = self.conn.prepare_cached(sql)?;
        let shape = shape(&mut self.shapes, sql, &statement)?;
        bind(&mut statement, &shape.places, values)?;
        statement.raw_execute().map(|rows| rows as u64)
    }

    /// Runs a statement and answers its rows.
    pub(crate) fn fetch(&mut self, sql: &'static str, values: &[Bind<'_>]) -> rusqlite::Result<Vec<SqliteRow>> {
        let mut statement = self.conn.prepare_cached(sql)?;
        let shape = shape(&mut self.shapes, sql, &statement)?;
        bind(&mut statement, &shape.places, values)?;
        let (mut rows, mut found) = (statement.raw_query(), Vec::new());
        while let Some(row) = rows.next()? {
            let values = (0..shape.columns.len()).map(|at| row.get::<_, Value>(at)).collect::<Result<_, _>>()?;
            found.push(SqliteRow { columns: Arc::clone(&shape.columns), values });
        }
        Ok(found)
    }

    /// Runs a statement made at run time and shows its rows one by one.
    pub(crate) fn for_each<E: From<rusqlite::Error>>(
        &mut self,
        sql: &str,
        values: &[Bind<'_>],
        mut each: impl FnMut(&rusqlite::Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut statement = self.conn.prepare_cached(sql)?;
        let places = places(sql, &statement)?;
        bind(&mut statement, &places, values)?;
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            each(row)?;
        }
        Ok(())
    }

    /// As [`execute`](Self::execute), for a statement made at run time.
    pub(crate) fn execute_made(&mut self, sql: &str, values: &[Bind<'_>]) -> rusqlite::Result<u64> {
        let mut statement = self.conn.prepare_cached(sql)?;
        let places = places(sql, &statement)?;
        bind(&mut statement, &places, values)?;
        statement.raw_execute().map(|rows| rows as u64)
    }
}

impl TimeLimit {
    fn is_over(&self) -> bool {
        self.opened_at.elapsed().as_micros() >= u128::from(self.deadline_us.load(Ordering::Relaxed))
    }
}

/// Looked up by the text's address: statements are literals.
fn shape<'s>(
    shapes: &'s mut HashMap<usize, Shape>,
    sql: &'static str,
    statement: &Statement<'_>,
) -> rusqlite::Result<&'s Shape> {
    use std::collections::hash_map::Entry;
    match shapes.entry(sql.as_ptr().addr()) {
        Entry::Occupied(known) => Ok(known.into_mut()),
        Entry::Vacant(unknown) => {
            let places = places(sql, statement)?;
            let columns = statement.column_names().into_iter().map(Box::from).collect();
            Ok(unknown.insert(Shape { places, columns }))
        }
    }
}

/// SQLite takes `$2` for a name and numbers it by its first use.
fn places(sql: &str, statement: &Statement<'_>) -> rusqlite::Result<Box<[usize]>> {
    let place = |at: usize| {
        let name = statement.parameter_name(at)?;
        name.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1)
    };
    (1..=statement.parameter_count())
        .map(|at| place(at).ok_or_else(|| rusqlite::Error::InvalidParameterName(sql.to_owned())))
        .collect()
}

fn bind(statement: &mut Statement<'_>, places: &[usize], values: &[Bind<'_>]) -> rusqlite::Result<()> {
    for (place, at) in places.iter().zip(1..) {
        let value = values.get(*place).ok_or(rusqlite::Error::InvalidParameterCount(values.len(), place + 1))?;
        let bytes;
        let value = match value {
            Bind::Text(Some(text)) => ValueRef::Text(text.as_bytes()),
            Bind::Int(Some(int)) => ValueRef::Integer(*int),
            Bind::Time(Some(time)) => ValueRef::Integer(time.as_micros()),
            Bind::Bytes(Some(bytes)) => ValueRef::Blob(bytes),
            Bind::Uuid(Some(uuid)) => {
                bytes = *uuid.as_bytes();
                ValueRef::Blob(&bytes)
            }
            Bind::Text(None) | Bind::Int(None) | Bind::Time(None) | Bind::Bytes(None) | Bind::Uuid(None) => {
                ValueRef::Null
            }
        };
        statement.raw_bind_parameter(at, ToSqlOutput::Borrowed(value))?;
    }
    Ok(())
}
