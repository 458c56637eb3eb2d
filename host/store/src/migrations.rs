//! The migrations, embedded: the same names for both databases, applied in order, frozen by checksum.

use sha2::{Digest as _, Sha256};
use sqlx::SqlStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

use crate::error::StoreError;

/// Name, SQLite text, PostgreSQL text.
const ALL: &[(&str, &str, &str)] = &[
    (
        "0001_foundation",
        include_str!("../../../migrations/sqlite/0001_foundation.sql"),
        include_str!("../../../migrations/postgres/0001_foundation.sql"),
    ),
    (
        "0002_identity",
        include_str!("../../../migrations/sqlite/0002_identity.sql"),
        include_str!("../../../migrations/postgres/0002_identity.sql"),
    ),
    (
        "0003_keys",
        include_str!("../../../migrations/sqlite/0003_keys.sql"),
        include_str!("../../../migrations/postgres/0003_keys.sql"),
    ),
    (
        "0004_limits",
        include_str!("../../../migrations/sqlite/0004_limits.sql"),
        include_str!("../../../migrations/postgres/0004_limits.sql"),
    ),
    (
        "0005_devices",
        include_str!("../../../migrations/sqlite/0005_devices.sql"),
        include_str!("../../../migrations/postgres/0005_devices.sql"),
    ),
    (
        "0006_signatures",
        include_str!("../../../migrations/sqlite/0006_signatures.sql"),
        include_str!("../../../migrations/postgres/0006_signatures.sql"),
    ),
    (
        "0007_retention",
        include_str!("../../../migrations/sqlite/0007_retention.sql"),
        include_str!("../../../migrations/postgres/0007_retention.sql"),
    ),
    (
        "0008_watch",
        include_str!("../../../migrations/sqlite/0008_watch.sql"),
        include_str!("../../../migrations/postgres/0008_watch.sql"),
    ),
];

fn migrator(text: impl Fn(&(&'static str, &'static str, &'static str)) -> &'static str) -> Migrator {
    let migrations = ALL
        .iter()
        .zip(1_i64..)
        .map(|(entry, version)| {
            let sql = SqlStr::from_static(text(entry));
            Migration::new(version, entry.0.into(), MigrationType::Simple, sql, false)
        })
        .collect();
    let mut migrator = Migrator::with_migrations(migrations);
    // Newer ones are `check_newer`'s matter, which knows which of them this binary can live beside.
    migrator.set_ignore_missing(true);
    migrator
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

/// What stands in a migration's name before the number of the oldest binary's last migration that works beside it.
const BESIDE: &str = "_beside_";

/// The oldest schema whose binaries work beside the migration of this name: `0007_scores_beside_0005` says 5. `None`: it says
/// nothing, and only binaries that know it work with it.
fn beside(name: &str) -> Option<i64> {
    let (_, number) = name.rsplit_once(BESIDE)?;
    number.parse().ok()
}

/// Refuses a database that a newer version has changed so that this one could not work with it (docs/decisions/0006). `applied`
/// are numbers and names.
///
/// # Errors
/// [`StoreError::Refused`].
pub(crate) fn check_newer(applied: &[(i64, String)]) -> Result<(), StoreError> {
    check_newer_than(newest(), applied)
}

/// As [`check_newer`], for those who cannot migrate: refuses a database that lacks one of this version's migrations as well.
///
/// # Errors
/// [`StoreError::Refused`].
pub(crate) fn check_complete(applied: &[(i64, String)]) -> Result<(), StoreError> {
    check_newer(applied)?;
    let there = applied.iter().map(|(number, _)| *number).max().unwrap_or(0);
    if there < newest() {
        return Err(StoreError::Refused(format!(
            "the database has the schema {there:04}, and this version works with {:04}: start the server, or run `bulkhead migrate`",
            newest()
        )));
    }
    Ok(())
}

fn check_newer_than(known: i64, applied: &[(i64, String)]) -> Result<(), StoreError> {
    let newer = applied.iter().filter(|(number, _)| *number > known);
    for (_, name) in newer {
        if beside(name).is_none_or(|oldest| known < oldest) {
            return Err(StoreError::Refused(format!(
                "the database belongs to a newer version: it has the migration {name}, and this binary knows those up to \
                 {known:04}: start the newer version"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(names: &[&str]) -> Vec<(i64, String)> {
        names.iter().map(|name| (name[..4].parse().unwrap(), (*name).to_owned())).collect()
    }

    #[test]
    fn an_older_binary_works_beside_those_that_say_so() {
        let there = applied(&["0001_foundation", "0002_leads_beside_0001", "0003_scores_beside_0001"]);
        for known in 1..=4 {
            check_newer_than(known, &there).unwrap();
        }
        check_newer_than(1, &[]).unwrap();
    }

    #[test]
    fn and_refuses_all_others_by_name() {
        let there = applied(&["0001_foundation", "0002_leads_beside_0001", "0003_drops_beside_0002", "0004_renames"]);
        for (known, name) in [(1, "0003_drops_beside_0002"), (2, "0004_renames"), (3, "0004_renames")] {
            let text = check_newer_than(known, &there).unwrap_err().to_string();
            assert!(text.contains(name) && text.contains(&format!("{known:04}")), "{text}");
        }
        check_newer_than(4, &there).unwrap();
        // A mark that says nothing sensible is none.
        assert!(check_newer_than(1, &applied(&["0002_x_beside_all"])).is_err());
    }

    #[test]
    fn no_migration_claims_to_work_beside_itself_or_later_ones() {
        for ((name, _, _), number) in ALL.iter().zip(1_i64..) {
            assert!(beside(name).is_none_or(|oldest| (1..number).contains(&oldest)), "{name}");
        }
    }
}
