//! Each file with SQL is read by the test that prepares every statement on both databases.

use std::path::Path;

use anyhow::{Context, Result};

use super::Finding;

/// The file that lists the others.
const LIST: &str = "host/store/src/sql.rs";

/// Checks the list in the store's `sql.rs`.
pub(super) fn check_list(root: &Path) -> Result<Vec<Finding>> {
    let list = std::fs::read_to_string(root.join(LIST)).with_context(|| format!("cannot read {LIST}"))?;
    let mut files = Vec::new();
    super::collect(&root.join("host/store/src"), &mut files)?;
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| !file.ends_with(LIST)) {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let below = file.strip_prefix(root.join("host/store/src")).unwrap_or(file).to_string_lossy().into_owned();
        findings.extend(check(&list, &below, &text));
    }
    Ok(findings)
}

fn check(list: &str, file: &str, text: &str) -> Option<Finding> {
    let has_statements = text.contains("sql!(") || text.contains("sql_postgres!(");
    let is_listed = list.contains(&format!("include_str!(\"{file}\")"));
    let what = format!("has statements that no test prepares: add it to `STATEMENT_SOURCES` in {LIST}");
    (has_statements && !is_listed).then(|| Finding::new(format!("host/store/src/{file}"), what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_statements_must_be_listed() {
        let list = "(\"run\", include_str!(\"run.rs\")),";
        assert_eq!(check(list, "run.rs", "sql!(\"select 1\")"), None);
        assert_eq!(check(list, "page.rs", "struct Page;"), None);
        assert!(check(list, "lead.rs", "sql!(\"select 1\")").is_some());
        assert!(check(list, "lead.rs", "sql_postgres!(\"select 1\")").is_some());
    }
}
