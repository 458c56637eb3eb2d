//! Rows of any table, as the database's own catalogue describes it: what a backup reads and a restore inserts.
//!
//! The statements are made here from names of the catalogue, so that a new column needs no line anywhere.

use std::collections::BTreeMap;

use bulkhead_model::id::OrgId;
use bulkhead_model::time::Timestamp;
use futures_util::TryStreamExt as _;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Postgres, Row as _};
use uuid::Uuid;

use super::BackupError;
use super::archive::{Cell, Kind};
use crate::error::StoreError;
use crate::sql::{Bind, PgTime, bind_all};
use crate::tx::Conn;

/// Rows in one INSERT: a round trip for many, with fewer values than either database binds (SQLite 32,766, PostgreSQL 65,535).
const INSERT_ROWS: usize = 64;

/// How a database stores a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ColumnType {
    Text,
    Int,
    Bytes,
    /// PostgreSQL's `uuid`; bytes elsewhere.
    Uuid,
    /// PostgreSQL's `timestamptz`; microseconds elsewhere.
    Time,
}

impl ColumnType {
    fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "text" => Self::Text,
            "integer" | "bigint" => Self::Int,
            "blob" | "bytea" => Self::Bytes,
            "uuid" => Self::Uuid,
            "timestamp with time zone" => Self::Time,
            _ => return None,
        })
    }

    fn kind(self) -> Kind {
        match self {
            Self::Text => Kind::Text,
            Self::Int | Self::Time => Kind::Int,
            Self::Bytes | Self::Uuid => Kind::Bytes,
        }
    }
}

/// A table's columns in order, and those of its primary key.
#[derive(Debug, Default)]
pub(super) struct Shape {
    columns: Vec<(String, ColumnType)>,
    key: Vec<String>,
}

impl Shape {
    /// The columns as an archive tells them.
    pub(super) fn archived(&self) -> Vec<(String, Kind)> {
        self.columns.iter().map(|(name, kind)| (name.clone(), kind.kind())).collect()
    }

    pub(super) fn has_organization(&self) -> bool {
        self.columns.iter().any(|(name, _)| name == "org_id")
    }
}

/// Reads the catalogue: every table but that of the migrations.
///
/// # Errors
/// [`StoreError::Refused`] when a column is of a type that an archive does not know.
pub(super) async fn shapes(conn: &mut Conn) -> Result<BTreeMap<String, Shape>, StoreError> {
    // Table, column, type, and the place in the primary key (at or below zero: none, on SQLite; null: none, on PostgreSQL).
    let columns: Vec<(String, String, String, Option<i64>)> = match conn {
        Conn::Postgres(transaction) => {
            sqlx::query_as(
                "select c.relname::text, a.attname::text, format_type(a.atttypid, null),
                     array_position(i.indkey::int2[], a.attnum)::bigint
                 from pg_class c
                 join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
                 left join pg_index i on i.indrelid = c.oid and i.indisprimary
                 where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p')
                   and c.relname <> '_sqlx_migrations' order by c.relname, a.attnum",
            )
            .fetch_all(&mut **transaction)
            .await?
        }
        Conn::Sqlite(conn) => {
            let sql = "select t.name, c.name, c.type, nullif(c.pk, 0) from sqlite_schema t join pragma_table_xinfo(t.name) c
                 where t.type = 'table' and t.name not like 'sqlite\\_%' escape '\\' and t.name <> '_sqlx_migrations'
                   and c.hidden = 0 order by t.name, c.cid";
            let mut columns = Vec::new();
            conn.for_each::<rusqlite::Error>(sql, &[], |row| {
                columns.push((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
                Ok(())
            })?;
            columns
        }
    };
    let mut shapes: BTreeMap<String, Shape> = BTreeMap::new();
    let mut keys: BTreeMap<String, BTreeMap<i64, String>> = BTreeMap::new();
    for (table, column, declared, place) in columns {
        let Some(kind) = ColumnType::parse(&declared) else {
            let why = format!("{table}.{column} is of type {declared}, which a backup does not know");
            return Err(StoreError::Refused(why));
        };
        if let Some(place) = place {
            keys.entry(table.clone()).or_default().insert(place, column.clone());
        }
        shapes.entry(table).or_default().columns.push((column, kind));
    }
    for (table, key) in keys {
        if let Some(shape) = shapes.get_mut(&table) {
            shape.key = key.into_values().collect();
        }
    }
    Ok(shapes)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
}

/// Reads a table's rows in the order of its key, one at a time: those of `org`, or all of them.
pub(super) async fn read_all(
    conn: &mut Conn,
    table: &str,
    shape: &Shape,
    org: Option<OrgId>,
    each: &mut impl FnMut(Vec<Cell>) -> Result<(), BackupError>,
) -> Result<(), BackupError> {
    let columns = list(shape.columns.iter().map(|(name, _)| name));
    let of_org = if org.is_some() { " where \"org_id\" = $1" } else { "" };
    let text = format!("select {columns} from {}{of_org} order by {}", quoted(table), list(shape.key.iter()));
    let values: Vec<Bind<'_>> = org.map(Bind::from).into_iter().collect();
    match conn {
        Conn::Postgres(transaction) => {
            let query = bind_all!(sqlx::query::<Postgres>(AssertSqlSafe(text)), &values, PgTime);
            let mut rows = query.fetch(&mut **transaction);
            while let Some(row) = rows.try_next().await? {
                let cells = shape.columns.iter().enumerate().map(|(at, (_, kind))| postgres_cell(&row, at, *kind));
                each(cells.collect::<Result<_, _>>()?)?;
            }
        }
        Conn::Sqlite(conn) => conn.for_each::<BackupError>(&text, &values, |row| {
            let cells = shape.columns.iter().enumerate().map(|(at, (_, kind))| sqlite_cell(row, at, *kind));
            each(cells.collect::<Result<_, _>>()?)
        })?,
    }
    Ok(())
}

fn sqlite_cell(row: &rusqlite::Row<'_>, at: usize, kind: ColumnType) -> Result<Cell, rusqlite::Error> {
    Ok(match kind {
        ColumnType::Text => row.get::<_, Option<String>>(at)?.map_or(Cell::Null, Cell::Text),
        ColumnType::Int | ColumnType::Time => row.get::<_, Option<i64>>(at)?.map_or(Cell::Null, Cell::Int),
        ColumnType::Bytes | ColumnType::Uuid => row.get::<_, Option<Vec<u8>>>(at)?.map_or(Cell::Null, Cell::Bytes),
    })
}

fn postgres_cell(row: &PgRow, at: usize, kind: ColumnType) -> Result<Cell, sqlx::Error> {
    Ok(match kind {
        ColumnType::Text => row.try_get::<Option<String>, _>(at)?.map_or(Cell::Null, Cell::Text),
        ColumnType::Int => row.try_get::<Option<i64>, _>(at)?.map_or(Cell::Null, Cell::Int),
        ColumnType::Bytes => row.try_get::<Option<Vec<u8>>, _>(at)?.map_or(Cell::Null, Cell::Bytes),
        ColumnType::Uuid => {
            row.try_get::<Option<Uuid>, _>(at)?.map_or(Cell::Null, |id| Cell::Bytes(id.as_bytes().to_vec()))
        }
        ColumnType::Time => {
            row.try_get::<Option<PgTime>, _>(at)?.map_or(Cell::Null, |time| Cell::Int(time.0.as_micros()))
        }
    })
}

/// Inserts rows of one table.
pub(super) struct Inserter {
    /// `insert into … values `.
    opening: String,
    types: Vec<ColumnType>,
}

impl Inserter {
    /// `columns` are the archive's; each must be one of the table's, and none missing.
    pub(super) fn new(table: &str, shape: &Shape, columns: &[(String, Kind)]) -> Result<Self, String> {
        if columns.len() != shape.columns.len() {
            return Err(format!("{table} has other columns there"));
        }
        let mut types = Vec::with_capacity(columns.len());
        for (name, kind) in columns {
            match shape.columns.iter().find(|(known, _)| known == name) {
                Some((_, there)) if there.kind() == *kind => types.push(*there),
                Some(_) => return Err(format!("{table}.{name} is of another type there")),
                None => return Err(format!("{table} has a column {name} there")),
            }
        }
        let names = list(columns.iter().map(|(name, _)| name));
        Ok(Self { opening: format!("insert into {} ({names}) values ", quoted(table)), types })
    }

    fn text(&self, rows: usize) -> String {
        let mut text = self.opening.clone();
        let mut number = 0;
        for row in 0..rows {
            text.push_str(if row == 0 { "(" } else { ", (" });
            for column in 0..self.types.len() {
                number += 1;
                text.push_str(if column == 0 { "$" } else { ", $" });
                text.push_str(&number.to_string());
            }
            text.push(')');
        }
        text
    }

    /// Answers how many rows the database took.
    pub(super) async fn insert(&self, conn: &mut Conn, rows: &[Vec<Cell>]) -> Result<u64, BackupError> {
        let mut inserted = 0;
        for chunk in rows.chunks(INSERT_ROWS) {
            let text = self.text(chunk.len());
            let mut values = Vec::with_capacity(chunk.len() * self.types.len());
            for row in chunk {
                for (cell, kind) in row.iter().zip(&self.types) {
                    values.push(bind(cell, *kind)?);
                }
            }
            // Prepared and kept only when it comes again and again.
            let keep = chunk.len() == INSERT_ROWS;
            inserted += match conn {
                Conn::Postgres(transaction) => {
                    let query =
                        bind_all!(sqlx::query::<Postgres>(AssertSqlSafe(text)).persistent(keep), &values, PgTime);
                    query.execute(&mut **transaction).await?.rows_affected()
                }
                Conn::Sqlite(conn) => conn.execute_made(&text, &values)?,
            };
        }
        Ok(inserted)
    }
}

fn bind(cell: &Cell, kind: ColumnType) -> Result<Bind<'_>, StoreError> {
    let other = || StoreError::corrupt("the backup", "a value is of another type than its column");
    Ok(match (cell, kind) {
        (Cell::Null, ColumnType::Text) => Bind::Text(None),
        (Cell::Null, ColumnType::Int) => Bind::Int(None),
        (Cell::Null, ColumnType::Bytes) => Bind::Bytes(None),
        (Cell::Null, ColumnType::Uuid) => Bind::Uuid(None),
        (Cell::Null, ColumnType::Time) => Bind::Time(None),
        (Cell::Text(text), ColumnType::Text) => Bind::Text(Some(text)),
        (Cell::Int(value), ColumnType::Int) => Bind::Int(Some(*value)),
        (Cell::Int(micros), ColumnType::Time) => Bind::Time(Some(Timestamp::from_micros(*micros))),
        (Cell::Bytes(bytes), ColumnType::Bytes) => Bind::Bytes(Some(bytes)),
        (Cell::Bytes(bytes), ColumnType::Uuid) => Bind::Uuid(Some(Uuid::from_slice(bytes).map_err(|_| other())?)),
        _ => return Err(other()),
    })
}
