//! Backup and restore: one archive for both databases, made while a server serves, restored into an empty place.
//!
//! A backup reads one snapshot from beside the server: on SQLite a reader of the write-ahead log, which needs no lock of the
//! directory; on PostgreSQL one REPEATABLE READ transaction of the application role, organization by organization, so that
//! row-level security needs no further door. Columns come from the database's own catalogue; [`TABLES`] says which tables and
//! in which order.
//!
//! A restore is one transaction: a database holds all of an archive or nothing of it.
//!
//! Both read and write their file where they stand, blocking: they are commands of their own, not part of a server.

mod archive;
mod checks;
mod rows;

use std::collections::BTreeMap;
use std::io::{Read, Seek, Write};

use bulkhead_audit::taxonomy::EventType;
use bulkhead_keys::{Envelope, KeyId, RootProvider as _};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{OrgId, WorkerId};
use bulkhead_model::permission::{Actor, SystemReason};
use serde_json::json;
use uuid::Uuid;

use self::archive::{ArchiveReader, ArchiveWriter, Cell, Frame, Kind, Whole};
pub use self::archive::{FORMAT, Header};
use self::checks::{enter, list_organizations, require_empty, require_schema};
use self::rows::{Inserter, Shape};
use crate::audit::AuditEvent;
use crate::error::StoreError;
use crate::migrations;
use crate::postgres;
use crate::seal::{RootId, RootKey, RootKeys, Sealer};
use crate::sqlite;
use crate::store::{Database, StoreConfig};
use crate::tx::{Conn, Tx};

/// What a backup holds, each table after those that its foreign keys lead to. A test compares it with the catalogues of both
/// databases.
pub const TABLES: &[&str] = &[
    "organization",
    "user_account",
    "member",
    "device",
    "user_link",
    "revoke_link",
    "sign_in_attempt",
    "mail",
    "totp",
    "backup_code",
    "passkey",
    "invitation",
    "sign_in_policy",
    "ip_allow_list",
    "org_key",
    "data_key",
    "key_rotation",
    "api_key",
    "key_block",
    "api_key_usage",
    "signature_nonce",
    "artifact",
    "plugin",
    "installation",
    "installation_grant",
    "secret",
    "workflow",
    "workflow_version",
    "hook",
    "schedule",
    "breaker",
    "run",
    "run_event",
    "step",
    "call",
    "event",
    "audit",
    "audit_waiting",
    "audit_log",
    "audit_entry",
    "audit_checkpoint",
    "audit_retention",
    "job",
    "retention",
    "history",
    "spent_key",
    "dead_letter",
    "dead_letter_task",
    "policy",
    "team",
    "team_member",
    "role",
    "role_assignment",
    "role_request",
];

/// Those of them whose rows belong to people rather than to an organization.
pub const TABLES_OF_PEOPLE: &[&str] = &[
    "user_account",
    "device",
    "user_link",
    "revoke_link",
    "sign_in_attempt",
    "mail",
    "totp",
    "backup_code",
    "passkey",
];

/// Tables that a backup leaves out.
pub const TABLES_LEFT_OUT: &[&str] = &[
    "session",      // whoever was signed in signs in again
    "token_family", // … and so do machines
    "refresh_token",
    "sign_in_step",
    "email_code",       // … and codes
    "passkey_ceremony", // challenges of the last minutes
    "throttle",         // who failed how often matters for a day
    "rate_limit",       // who asked how often matters for an hour
    "address_block",    // … and which addresses are shut out, for a day
    "probe",            // says whether writes succeed here and now
    "worker",           // processes that serve now; none of them serves what is restored
    "root_check",       // a restore keeps that of the root key that opened the archive
];

/// Why a backup could not be made, checked or restored. Before a restore has ended, nothing is written.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("this is no Bulkhead backup")]
    NotABackup,
    /// Bytes are missing or other than they were written.
    #[error("the backup is damaged (before byte {at}): {why}. Use another copy")]
    Damaged { at: u64, why: String },
    #[error("the backup is of format {format}, made by Bulkhead {product}; this version reads format {FORMAT}")]
    Format { format: u64, product: String },
    /// Made by a version with another schema.
    #[error(
        "the backup was made by Bulkhead {product}, whose schema is another ({theirs}; here {ours}): restore it with that version, \
         and upgrade then"
    )]
    Schema { product: String, theirs: String, ours: String },
    #[error("the backup was made under another root key: put the root.key of the server that made it in place")]
    WrongKey,
    /// Organization keys or values of people's in it are under another root key as well.
    #[error(
        "the backup needs the root key {0} as well, which is not among the server's root keys: restore it from your backup of the keys"
    )]
    MissingRoot(RootId),
    #[error(
        "the database holds data already, and a restore never mixes: give it an empty database or a new data directory"
    )]
    NotEmpty,
    /// The tables do not hold what the archive says.
    #[error(
        "the rows of {table} that were restored ({restored}) are not those of the backup ({rows}); nothing was kept"
    )]
    Count { table: String, restored: u64, rows: u64 },
    /// A row is larger than any limit of the product allows.
    #[error("a row is larger than a backup can hold")]
    TooLarge,
    #[error("the backup's file cannot be read or written")]
    Io(#[source] std::io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for BackupError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

impl From<sqlx::Error> for BackupError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// How far a backup or a restore is: told after each frame (about a megabyte) and at the end of each table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    pub table: &'a str,
    /// Of this table, so far.
    pub rows: u64,
}

/// What is in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub header: Header,
    /// Rows of each table; `None` when it was looked through without its key.
    pub rows: Option<BTreeMap<String, u64>>,
    pub bytes: u64,
    /// The digest that stands at its end, hexadecimal: what tells two archives apart.
    pub sha256: String,
}

/// Writes a backup of the database to `out`, from one snapshot of it.
///
/// # Errors
/// [`StoreError::Refused`] when there is no database of this version's schema; [`BackupError::Io`] when `out` takes no more.
pub async fn create<W: Write>(
    config: &StoreConfig,
    root: &RootKey,
    ambient: &Ambient,
    product: &str,
    out: W,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(W, Summary), BackupError> {
    let mut tx = begin_snapshot(config).await?;
    require_schema(&mut tx).await?;
    let shapes = known_shapes(&mut tx).await?;
    let orgs = list_organizations(&mut tx).await?;
    let database = if tx.is_postgres() { "PostgreSQL" } else { "SQLite" };
    let header = Header::new(root, ambient.random(), product, ambient.now(), database, migrations::fingerprints());
    let mut writer = ArchiveWriter::new(out, root, &header)?;
    for table in TABLES {
        let shape = require_shape(&shapes, table)?;
        writer.begin_table(table, shape.archived())?;
        let mut each = |cells: Vec<Cell>| {
            if writer.row(&cells)? {
                progress(Progress { table, rows: writer.table_rows() });
            }
            Ok(())
        };
        if shape.has_organization() {
            for org in &orgs {
                enter(&mut tx, Some(*org), SystemReason::Admin).await?;
                rows::read_all(&mut tx.conn, table, shape, Some(*org), &mut each).await?;
            }
        } else {
            enter(&mut tx, None, SystemReason::Admin).await?;
            rows::read_all(&mut tx.conn, table, shape, None, &mut each).await?;
        }
        progress(Progress { table, rows: writer.table_rows() });
    }
    end(tx.conn, End::RollBack).await?;
    let (out, rows, whole) = writer.finish()?;
    Ok((out, summary(header, Some(rows), whole)))
}

/// Reads a whole archive: nothing is missing, no byte is another. With the root key every frame is opened and every row read;
/// without it the checksum is compared.
///
/// # Errors
/// [`BackupError::NotABackup`], [`BackupError::Damaged`], [`BackupError::Format`], [`BackupError::WrongKey`], [`BackupError::MissingRoot`].
pub fn verify<R: Read + Seek>(mut input: R, roots: Option<&RootKeys>) -> Result<Summary, BackupError> {
    let whole = archive::scan(std::io::BufReader::new(&mut input))?;
    input.rewind().map_err(BackupError::Io)?;
    let Some(roots) = roots else {
        return Ok(summary(archive::read_header(input)?, None, whole));
    };
    let mut reader = ArchiveReader::open(std::io::BufReader::new(input), roots.base())?;
    let mut told = BTreeMap::new();
    while let Some(frame) = reader.next_frame()? {
        match frame {
            Frame::Rows { table, columns, rows } => require_roots(roots, &table, &columns, &rows)?,
            Frame::End(rows) => told = rows,
        }
    }
    Ok(summary(reader.header().clone(), Some(told), whole))
}

/// Refuses rows that only a root key opens which is not there: a server on them would not start.
fn require_roots(
    roots: &RootKeys,
    table: &str,
    columns: &[(String, Kind)],
    rows: &[Vec<Cell>],
) -> Result<(), BackupError> {
    let column = match table {
        "org_key" => "wrapped",
        "totp" => "secret",
        _ => return Ok(()),
    };
    let Some(at) = columns.iter().position(|(name, _)| name == column) else { return Ok(()) };
    for row in rows {
        let text = match row.get(at) {
            Some(Cell::Text(text)) => text.as_str(),
            Some(Cell::Bytes(bytes)) => std::str::from_utf8(bytes).unwrap_or_default(),
            Some(Cell::Null | Cell::Int(_)) | None => "",
        };
        // What is retired, or damaged, names none.
        if let Ok(KeyId::Root(id)) = Envelope::parse(text).map(|envelope| envelope.kid())
            && !roots.knows(id)
        {
            return Err(BackupError::MissingRoot(id));
        }
    }
    Ok(())
}

fn summary(header: Header, rows: Option<BTreeMap<String, u64>>, whole: Whole) -> Summary {
    Summary { header, rows, bytes: whole.bytes, sha256: whole.sha256 }
}

/// What becomes of API keys that a backup holds. One that was revoked since the backup was made is valid in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestoredKeys {
    #[default]
    AsTheyWere,
    /// All are revoked, with what tells so in each organization's audit log, in the same transaction.
    Revoked,
}

/// Puts an archive into an empty database, which is made and migrated where the configuration allows it. Everything or
/// nothing: one transaction. Jobs that a process held when the backup was made are free again.
///
/// # Errors
/// Those of [`verify`], all but [`BackupError::MissingRoot`] before the database is touched; [`BackupError::Schema`], [`BackupError::NotEmpty`],
/// [`BackupError::Count`]; [`StoreError::Refused`] when a server runs on the database.
pub async fn restore<R: Read + Seek>(
    config: &StoreConfig,
    roots: &RootKeys,
    ambient: &Ambient,
    input: R,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Summary, BackupError> {
    restore_with(config, roots, ambient, input, RestoredKeys::AsTheyWere, progress).await
}

/// As [`restore`], and says what becomes of API keys.
///
/// # Errors
/// As there.
pub async fn restore_with<R: Read + Seek>(
    config: &StoreConfig,
    roots: &RootKeys,
    ambient: &Ambient,
    mut input: R,
    keys: RestoredKeys,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Summary, BackupError> {
    let whole = archive::scan(std::io::BufReader::new(&mut input))?;
    input.rewind().map_err(BackupError::Io)?;
    let mut reader = ArchiveReader::open(std::io::BufReader::new(input), roots.base())?;
    require_same_schema(reader.header())?;
    // Held until the restore has ended.
    let (mut tx, _lock) = begin_restore(config).await?;
    enter(&mut tx, None, SystemReason::Admin).await?;
    require_empty(&mut tx).await?;
    let shapes = known_shapes(&mut tx).await?;
    let mut restored: BTreeMap<String, u64> = BTreeMap::new();
    let mut told = BTreeMap::new();
    while let Some(frame) = reader.next_frame()? {
        match frame {
            Frame::Rows { table, columns, rows } => {
                require_roots(roots, &table, &columns, &rows)?;
                let count = insert_all(&mut tx, &shapes, &table, &columns, &rows).await?;
                let so_far = restored.entry(table.clone()).or_default();
                *so_far += count;
                progress(Progress { table: &table, rows: *so_far });
            }
            Frame::End(rows) => told = rows,
        }
    }
    for (table, rows) in &told {
        let restored = restored.get(table).copied().unwrap_or_default();
        if restored != *rows {
            return Err(BackupError::Count { table: table.clone(), restored, rows: *rows });
        }
    }
    enter(&mut tx, None, SystemReason::Admin).await?;
    tx.record_root_check(&Sealer::new(roots.base(), ambient.clone()).base_check(), ambient.now()).await?;
    // No process holds them any more: the same as after one that died.
    enter(&mut tx, None, SystemReason::Jobs).await?;
    tx.recover_jobs(WorkerId::new(ambient), ambient.now()).await?;
    match keys {
        RestoredKeys::AsTheyWere => {}
        RestoredKeys::Revoked => revoke_keys(&mut tx, ambient).await?,
    }
    end(tx.conn, End::Commit).await?;
    Ok(summary(reader.header().clone(), Some(told), whole))
}

async fn revoke_keys(tx: &mut Tx, ambient: &Ambient) -> Result<(), StoreError> {
    for org in list_organizations(tx).await? {
        enter(tx, Some(org), SystemReason::Admin).await?;
        let revoked = tx.revoke_all_api_keys(ambient.now()).await?;
        let event = |action, target: String, detail| AuditEvent {
            action,
            target,
            actor: Actor::System(SystemReason::Admin),
            detail,
        };
        let restored = event(EventType::BackupRestored, org.to_string(), json!({ "keys_revoked": revoked.len() }));
        tx.record_audit(&restored, ambient).await?;
        for key in revoked {
            let told = event(EventType::ApiKeyRevoked, key.to_string(), json!({ "reason": "restore" }));
            tx.record_audit(&told, ambient).await?;
        }
    }
    Ok(())
}

fn require_same_schema(header: &Header) -> Result<(), BackupError> {
    let ours = migrations::fingerprints();
    if header.migrations == ours {
        return Ok(());
    }
    let name = |migrations: &[(String, String)]| match migrations.last() {
        Some((name, sha256)) => format!("{name} {}", sha256.get(..8).unwrap_or(sha256)),
        None => "none".to_owned(),
    };
    let (theirs, ours) = (name(&header.migrations), name(&ours));
    Err(BackupError::Schema { product: header.product.clone(), theirs, ours })
}

async fn begin_snapshot(config: &StoreConfig) -> Result<Tx, StoreError> {
    let conn = match &config.database {
        Database::Sqlite { dir } => sqlite::begin_snapshot(dir)?,
        Database::Postgres { url, owner_url, app_password } => {
            postgres::begin_snapshot(url.as_deref(), owner_url.as_deref(), app_password).await?
        }
    };
    Ok(Tx::beside(conn))
}

async fn begin_restore(config: &StoreConfig) -> Result<(Tx, Option<std::fs::File>), StoreError> {
    let (conn, lock) = match &config.database {
        Database::Sqlite { dir } => {
            let (conn, lock) = sqlite::begin_restore(dir).await?;
            (conn, Some(lock))
        }
        Database::Postgres { url, owner_url, app_password } => {
            let conn = postgres::begin_restore(url.clone(), owner_url.clone(), app_password).await?;
            (conn, None)
        }
    };
    Ok((Tx::beside(conn), lock))
}

enum End {
    Commit,
    RollBack,
}

async fn end(conn: Conn, how: End) -> Result<(), StoreError> {
    match (conn, how) {
        (Conn::Postgres(transaction), End::Commit) => transaction.commit().await?,
        (Conn::Postgres(transaction), End::RollBack) => transaction.roll_back().await?,
        (Conn::Sqlite(conn), End::Commit) => conn.control("commit")?,
        // Its transaction ends with it.
        (Conn::Sqlite(_), End::RollBack) => {}
    }
    Ok(())
}

/// The shapes of the tables, none of which may be unknown: a backup that lacks a table is none.
async fn known_shapes(tx: &mut Tx) -> Result<BTreeMap<String, Shape>, StoreError> {
    let shapes = rows::shapes(&mut tx.conn).await?;
    let is_known = |table: &str| TABLES.contains(&table) || TABLES_LEFT_OUT.contains(&table);
    match shapes.keys().find(|table| !is_known(table)) {
        None => Ok(shapes),
        Some(table) => Err(StoreError::Refused(format!("the database has a table that is not Bulkhead's: {table}"))),
    }
}

fn require_shape<'s>(shapes: &'s BTreeMap<String, Shape>, table: &str) -> Result<&'s Shape, StoreError> {
    shapes.get(table).ok_or_else(|| StoreError::Refused(format!("the database has no table {table}")))
}

/// Inserts a frame's rows; answers how many the database took.
async fn insert_all(
    tx: &mut Tx,
    shapes: &BTreeMap<String, Shape>,
    table: &str,
    columns: &[(String, Kind)],
    rows: &[Vec<Cell>],
) -> Result<u64, BackupError> {
    let malformed = |why: String| BackupError::Store(StoreError::Corrupt { what: "the backup", why });
    let table = TABLES
        .iter()
        .find(|known| **known == table)
        .ok_or_else(|| malformed(format!("it holds a table {table}, which is not known")))?;
    let inserter = Inserter::new(table, require_shape(shapes, table)?, columns).map_err(malformed)?;
    let org_at = columns.iter().position(|(name, _)| name == if *table == "organization" { "id" } else { "org_id" });
    let org_of = |row: &[Cell]| match org_at.and_then(|at| row.get(at)) {
        Some(Cell::Bytes(bytes)) => Uuid::from_slice(bytes).ok().map(OrgId::from_uuid),
        _ => None,
    };
    let mut inserted = 0;
    for rows in rows.chunk_by(|one, next| org_of(one) == org_of(next)) {
        let org = rows.first().and_then(|row| org_of(row));
        if org.is_none() && !TABLES_OF_PEOPLE.contains(table) {
            return Err(malformed(format!("a row of {table} names no organization")));
        }
        enter(tx, org, SystemReason::Admin).await?;
        inserted += inserter.insert(&mut tx.conn, rows).await?;
    }
    Ok(inserted)
}
