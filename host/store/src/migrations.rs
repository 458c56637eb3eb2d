//! The migrations, embedded: the same names for both databases, applied in order, frozen by checksum.

use sha2::{Digest as _, Sha256};
use sqlx::SqlStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// Name, SQLite text, PostgreSQL text.
const ALL: &[(&str, &str, &str)] = &[(
    "0001_foundation",
    include_str!("../../../migrations/sqlite/0001_foundation.sql"),
    include_str!("../../../migrations/postgres/0001_foundation.sql"),
)];

fn migrator(text: impl Fn(&(&'static str, &'static str, &'static str)) -> &'static str) -> Migrator {
    let migrations = ALL
        .iter()
        .zip(1_i64..)
        .map(|(entry, version)| {
            let sql = SqlStr::from_static(text(entry));
            Migration::new(version, entry.0.into(), MigrationType::Simple, sql, false)
        })
        .collect();
    Migrator::with_migrations(migrations)
}

pub(crate) fn sqlite() -> Migrator {
    migrator(|entry| entry.1)
}

pub(crate) fn postgres() -> Migrator {
    migrator(|entry| entry.2)
}

/// Each migration's name and the SHA-256 of its texts for both databases: what tells one schema from another on either.
pub(crate) fn fingerprints() -> Vec<(String, String)> {
    let fingerprint = |(name, sqlite, postgres): &(&str, &str, &str)| {
        let digest = Sha256::new().chain_update(sqlite).chain_update([0]).chain_update(postgres).finalize();
        ((*name).to_owned(), hex::encode(digest))
    };
    ALL.iter().map(fingerprint).collect()
}

/// The version that this binary needs.
pub(crate) fn newest() -> i64 {
    i64::try_from(ALL.len()).unwrap_or(i64::MAX)
}
