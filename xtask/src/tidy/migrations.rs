//! Migrations in lock step: the same names for both databases, numbered without a gap.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

use super::Finding;

/// The file that embeds the migrations.
const EMBEDDING: &str = "host/store/src/migrations.rs";

/// Checks `migrations/sqlite` and `migrations/postgres`, and that each file in them is embedded.
pub(super) fn check_folders(root: &Path) -> Result<Vec<Finding>> {
    let (sqlite, postgres) = (names(&root.join("migrations/sqlite"))?, names(&root.join("migrations/postgres"))?);
    let embedding =
        std::fs::read_to_string(root.join(EMBEDDING)).with_context(|| format!("cannot read {EMBEDDING}"))?;
    let mut findings = check(&sqlite, &postgres);
    findings.extend(check_embedded(&embedding, "sqlite", &sqlite));
    findings.extend(check_embedded(&embedding, "postgres", &postgres));
    Ok(findings)
}

fn check_embedded(embedding: &str, folder: &str, names: &BTreeSet<String>) -> Vec<Finding> {
    let paths = names.iter().map(|name| format!("migrations/{folder}/{name}"));
    let forgotten = paths.filter(|path| !embedding.contains(path.as_str()));
    forgotten.map(|path| Finding::new(path, format!("not embedded: add it to {EMBEDDING}"))).collect()
}

fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn check(sqlite: &BTreeSet<String>, postgres: &BTreeSet<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (here, there, missing_in) in [(sqlite, postgres, "postgres"), (postgres, sqlite, "sqlite")] {
        for name in here.difference(there) {
            let what =
                "missing: each migration exists for both databases, if only as a comment that says why it is empty";
            findings.push(Finding::new(format!("migrations/{missing_in}/{name}"), what));
        }
    }
    let all: BTreeSet<_> = sqlite.union(postgres).collect();
    for (index, name) in all.into_iter().enumerate() {
        if number(name) != Some(index + 1) {
            let what = format!("expected `{:04}_name.sql`, the name in lower case with `_`", index + 1);
            findings.push(Finding::new(format!("migrations/*/{name}"), what));
        }
    }
    findings
}

/// 12 of `0012_leads.sql`; none of what is not named so.
fn number(file: &str) -> Option<usize> {
    let (number, name) = file.strip_suffix(".sql")?.split_once('_')?;
    let well_named =
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if number.len() == 4 && well_named { number.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(sqlite: &[&str], postgres: &[&str]) -> Vec<String> {
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        check(&set(sqlite), &set(postgres)).into_iter().map(|finding| finding.place).collect()
    }

    #[test]
    fn the_same_names_without_a_gap_are_fine() {
        let both = ["0001_foundation.sql", "0002_leads.sql"];
        assert!(places(&both, &both).is_empty());
    }

    #[test]
    fn a_migration_for_one_database_alone_is_found() {
        assert_eq!(places(&["0001_a.sql", "0002_b.sql"], &["0001_a.sql"]), ["migrations/postgres/0002_b.sql"]);
        assert_eq!(places(&[], &["0001_a.sql"]), ["migrations/sqlite/0001_a.sql"]);
    }

    #[test]
    fn a_migration_that_is_not_embedded_is_found() {
        let names = ["0001_a.sql", "0002_b.sql"].map(str::to_owned).into();
        let embedding = "include_str!(\"../../../migrations/sqlite/0001_a.sql\")";
        let findings = check_embedded(embedding, "sqlite", &names);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].place, "migrations/sqlite/0002_b.sql");
    }

    #[test]
    fn gaps_repetitions_and_odd_names_are_found() {
        for odd in [
            ["0001_a.sql", "0003_b.sql"],
            ["0001_a.sql", "0001_b.sql"],
            ["0001_a.sql", "2_b.sql"],
            ["0001_a.sql", "0002_B.sql"],
        ] {
            assert_eq!(places(&odd, &odd).len(), 1, "{odd:?}");
        }
    }
}
