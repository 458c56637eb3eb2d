//! Every statement of the store is one that both databases understand.

use std::path::Path;

use bulkhead_store::STATEMENT_SOURCES;

use crate::support::TestStore;

/// The files that may speak to a driver themselves, and why.
const RAW_SQL: &[&str] = &[
    "backup/rows.rs",          // statements over any table, made from the catalogue
    "postgres.rs",             // roles and transactions of PostgreSQL alone
    "postgres/connections.rs", // begins and ends transactions of PostgreSQL
    "sqlite.rs",               // asks which migrations there are, before there is a store
    "sqlite/connection.rs",    // runs what `sql!` made, and pragmas of SQLite alone
    "tx.rs",                   // runs what `sql!` made
];

/// The literals that follow `opening` in the sources: `(file, statement)`.
pub(crate) fn statements(opening: &str) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    for (file, text) in STATEMENT_SOURCES {
        for (at, _) in text.match_indices(opening) {
            // `sql_postgres!(` ends with none of `sql!(`, but a word before would make it another macro.
            if text[..at].ends_with(|letter: char| letter.is_alphanumeric() || letter == '_') {
                continue;
            }
            let rest = text[at + opening.len()..].trim_start();
            let rest = rest.strip_prefix('"').unwrap_or_else(|| panic!("{file}: {opening} takes a literal"));
            let end = rest.find('"').unwrap_or_else(|| panic!("{file}: an open literal"));
            assert!(!rest[..end].contains('\\'), "{file}: statements have no escapes");
            found.push((*file, rest[..end].to_owned()));
        }
    }
    found
}

on_both! {
    async fn every_common_statement_prepares(test: TestStore) {
        let statements = statements("sql!(");
        assert!(statements.len() > 60, "only {} were found", statements.len());
        for (file, sql) in statements {
            test.store.check_statement(&sql).await.unwrap_or_else(|error| panic!("{file}: {sql}\n{error:?}"));
        }
        let error = test.store.check_statement("select colour from run").await;
        assert!(error.is_err(), "the check can fail");
    }
}

#[tokio::test]
async fn every_statement_for_postgres_prepares() {
    let Some(test) = TestStore::postgres().await else { return };
    let statements = statements("sql_postgres!(");
    assert!(statements.len() >= 8, "only {} were found", statements.len());
    for (file, sql) in statements {
        test.store.check_statement(&sql).await.unwrap_or_else(|error| panic!("{file}: {sql}\n{error:?}"));
    }
}

#[test]
fn no_statement_goes_past_the_macros() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut folders) = (0, vec![folder.clone()]);
    let mut sources = Vec::new();
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { sources.push(path) }
        }
    }
    for path in sources {
        let name = path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        files += 1;
        let stem = name.trim_end_matches(".rs");
        if name != "sql.rs" {
            assert!(!text.contains("Sql("), "{name}: statements are made by sql! alone");
            let has_statements = text.contains("sql!(") || text.contains("sql_postgres!(");
            let is_listed = STATEMENT_SOURCES.iter().any(|(source, _)| *source == stem);
            assert_eq!(has_statements, is_listed, "{name}: STATEMENT_SOURCES lists the files with statements");
        }
        if !RAW_SQL.contains(&name.as_str()) {
            for raw in [
                "sqlx::query",
                "raw_sql",
                "AssertSqlSafe",
                "SqlStr::",
                ".prepare(",
                ".prepare_cached(",
                ".execute_batch(",
            ] {
                let is_migrations = name == "migrations.rs" && raw == "SqlStr::";
                assert!(is_migrations || !text.contains(raw), "{name}: {raw} goes past the macros");
            }
        }
    }
    assert!(files > 15, "the sources were read");
}
