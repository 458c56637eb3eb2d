//! What a backup and a restore ask of the database besides its rows.

use bulkhead_model::id::OrgId;
use bulkhead_model::permission::SystemReason;

use super::BackupError;
use crate::error::{DatabaseError, StoreError};
use crate::migrations;
use crate::sql::{binds, sql, sql_postgres};
use crate::tx::Tx;

/// Says whose rows the next statements are about.
pub(super) async fn enter(tx: &mut Tx, org: Option<OrgId>, reason: SystemReason) -> Result<(), StoreError> {
    (tx.context.org, tx.context.system) = (org, Some(reason));
    if tx.is_postgres() {
        let text = org.map(|org| org.uuid().to_string()).unwrap_or_default();
        // Row-level security reads both; SQLite has neither settings nor walls.
        let sql = sql_postgres!(
            "select set_config('app.org_id', $1, true) as org, set_config('app.scope', $2, true) as scope"
        );
        tx.fetch(sql, binds![&text, reason.as_str()]).await?;
    }
    Ok(())
}

/// A backup of a schema that this binary does not know would be one that nobody can restore.
pub(super) async fn require_schema(tx: &mut Tx) -> Result<(), StoreError> {
    let sql = sql!("select version, checksum from _sqlx_migrations order by version");
    let rows = tx.fetch(sql, &[]).await.map_err(|error| match error {
        // The table is not there.
        StoreError::Unavailable(DatabaseError::Postgres(sqlx::Error::Database(_)) | DatabaseError::Sqlite(_)) => {
            StoreError::Refused("the database is empty: there is nothing to back up".to_owned())
        }
        other => other,
    })?;
    let mut applied = Vec::with_capacity(rows.len());
    for row in &rows {
        applied.push((row.get::<i64>("version")?, row.get::<Vec<u8>>("checksum")?));
    }
    let migrator = if tx.is_postgres() { migrations::postgres() } else { migrations::sqlite() };
    let ours: Vec<(i64, Vec<u8>)> =
        migrator.iter().map(|migration| (migration.version, migration.checksum.to_vec())).collect();
    if applied == ours {
        return Ok(());
    }
    Err(StoreError::Refused(
        "the database's schema is not this version's: make the backup with the version that serves it, or run `bulkhead migrate`"
            .to_owned(),
    ))
}

pub(super) async fn list_organizations(tx: &mut Tx) -> Result<Vec<OrgId>, StoreError> {
    enter(tx, None, SystemReason::Admin).await?;
    let sql = sql!("select id from organization order by id");
    tx.fetch(sql, &[]).await?.iter().map(|row| row.get("id")).collect()
}

/// Every row belongs to an organization or to a person, so without them there is none that counts.
pub(super) async fn require_empty(tx: &mut Tx) -> Result<(), BackupError> {
    if tx.is_postgres() {
        // Two restores, or one beside `admin create-org`, come one after the other. SQLite's directory is locked already.
        tx.execute(sql_postgres!("lock table organization in share row exclusive mode"), &[]).await?;
        // Only a node of several can run beside; leases go by the database's clock.
        let sql = sql_postgres!("select id from worker where expires_at > clock_timestamp() limit 1");
        if tx.fetch_optional(sql, &[]).await?.is_some() {
            let why = "a server is running on this database: stop it (one that died is forgotten after some seconds)";
            return Err(StoreError::Refused(why.to_owned()).into());
        }
    }
    let sql = sql!("select id from organization union all select id from user_account limit 1");
    if tx.fetch_optional(sql, &[]).await?.is_some() { Err(BackupError::NotEmpty) } else { Ok(()) }
}
