//! `docs/asvs.md`: each requirement of the standard has a row, and each test that a row names exists.

use std::collections::BTreeMap;
use std::path::Path;

use super::Finding;

const FILE: &str = "docs/asvs.md";

/// The requirements of level 1 and 2 in chapters V6 to V9 of ASVS 5.0.0, each with its level. Source: the standard's own list
/// (github.com/OWASP/ASVS, tag v5.0.0).
const REQUIREMENTS: [(&str, u8); 67] = [
    ("V6.1.1", 1),
    ("V6.1.2", 2),
    ("V6.1.3", 2),
    ("V6.2.1", 1),
    ("V6.2.2", 1),
    ("V6.2.3", 1),
    ("V6.2.4", 1),
    ("V6.2.5", 1),
    ("V6.2.6", 1),
    ("V6.2.7", 1),
    ("V6.2.8", 1),
    ("V6.2.9", 2),
    ("V6.2.10", 2),
    ("V6.2.11", 2),
    ("V6.2.12", 2),
    ("V6.3.1", 1),
    ("V6.3.2", 1),
    ("V6.3.3", 2),
    ("V6.3.4", 2),
    ("V6.4.1", 1),
    ("V6.4.2", 1),
    ("V6.4.3", 2),
    ("V6.4.4", 2),
    ("V6.5.1", 2),
    ("V6.5.2", 2),
    ("V6.5.3", 2),
    ("V6.5.4", 2),
    ("V6.5.5", 2),
    ("V6.6.1", 2),
    ("V6.6.2", 2),
    ("V6.6.3", 2),
    ("V6.8.1", 2),
    ("V6.8.2", 2),
    ("V6.8.3", 2),
    ("V6.8.4", 2),
    ("V7.1.1", 2),
    ("V7.1.2", 2),
    ("V7.1.3", 2),
    ("V7.2.1", 1),
    ("V7.2.2", 1),
    ("V7.2.3", 1),
    ("V7.2.4", 1),
    ("V7.3.1", 2),
    ("V7.3.2", 2),
    ("V7.4.1", 1),
    ("V7.4.2", 1),
    ("V7.4.3", 2),
    ("V7.4.4", 2),
    ("V7.4.5", 2),
    ("V7.5.1", 2),
    ("V7.5.2", 2),
    ("V7.6.1", 2),
    ("V7.6.2", 2),
    ("V8.1.1", 1),
    ("V8.1.2", 2),
    ("V8.2.1", 1),
    ("V8.2.2", 1),
    ("V8.2.3", 2),
    ("V8.3.1", 1),
    ("V8.4.1", 2),
    ("V9.1.1", 1),
    ("V9.1.2", 1),
    ("V9.1.3", 1),
    ("V9.2.1", 1),
    ("V9.2.2", 2),
    ("V9.2.3", 2),
    ("V9.2.4", 2),
];

/// Words that begin a reason for which there is no test.
const REASONS: [&str; 4] = ["Documented: ", "By construction: ", "Not here: ", "Open: "];

/// Tests that a row names: a file and a function.
fn tests_of(answer: &str) -> impl Iterator<Item = (&str, &str)> {
    // Between back quotes: every second piece.
    answer.split('`').skip(1).step_by(2).filter_map(|quoted| quoted.split_once("::"))
}

fn has_reason(answer: &str) -> bool {
    REASONS.iter().any(|word| {
        answer.find(word).is_some_and(|at| answer[at + word.len()..].chars().next().is_some_and(char::is_alphanumeric))
    })
}

pub(super) fn check_file(root: &Path) -> anyhow::Result<Vec<Finding>> {
    let text = std::fs::read_to_string(root.join(FILE))?;
    Ok(check(&text, |file| std::fs::read_to_string(root.join(file)).ok()))
}

/// `read` answers a file of the repository.
fn check(text: &str, read: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut rows: BTreeMap<&str, u32> = BTreeMap::new();
    for (line, number) in text.lines().zip(1..) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", id, level, asks, answer, ""] = cells[..] else { continue };
        if !id.starts_with('V') {
            continue;
        }
        let mut find = |what: String| findings.push(Finding::new(format!("{FILE}:{number}"), what));
        *rows.entry(id).or_default() += 1;
        match REQUIREMENTS.iter().find(|(known, _)| *known == id) {
            None => find(format!("{id} is not one of the standard's numbers of level 1 and 2 in V6 to V9")),
            Some((_, known)) if level != known.to_string() => find(format!("{id} is of level {known}")),
            Some(_) => {}
        }
        if asks.is_empty() {
            find(format!("say in some words what {id} asks"));
        }
        for (file, test) in tests_of(answer) {
            let exists = read(file).is_some_and(|source| source.contains(&format!("fn {test}(")));
            if !exists {
                find(format!("{id} names a test that is not there: {file}::{test}"));
            }
        }
        if tests_of(answer).next().is_none() && !has_reason(answer) {
            find(format!("{id} needs a test, or one of {REASONS:?} with a reason"));
        }
    }
    for (id, _) in REQUIREMENTS {
        match rows.get(id) {
            Some(1) => {}
            Some(_) => findings.push(Finding::new(FILE, format!("{id} has more than one row"))),
            None => findings.push(Finding::new(FILE, format!("{id} has no row"))),
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of all requirements, whose first row is answered by this.
    fn table(first: &str) -> String {
        let rows = REQUIREMENTS.iter().enumerate().map(|(at, (id, level))| {
            let answer = if at == 0 { first } else { "Open: later" };
            format!("| {id} | {level} | something | {answer} |\n")
        });
        rows.collect()
    }

    fn findings(text: &str) -> Vec<String> {
        let read = |file: &str| (file == "tests/a.rs").then(|| "fn there(".to_owned());
        check(text, read).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_row_needs_a_test_that_exists_or_a_reason() {
        for good in ["`tests/a.rs::there`", "Not here: no SAML", "Documented: here. `tests/a.rs::there`"] {
            assert_eq!(findings(&table(good)), Vec::<String>::new(), "{good}");
        }
        for (bad, says) in [
            ("", "needs a test"),
            ("Open: ", "needs a test"),
            ("surely", "needs a test"),
            ("`tests/a.rs`", "needs a test"),
            ("`tests/a.rs::gone`", "not there: tests/a.rs::gone"),
            ("`tests/b.rs::there`", "not there: tests/b.rs::there"),
            ("Open: later `tests/a.rs::gone`", "not there"),
        ] {
            let found = findings(&table(bad));
            assert!(found.len() == 1 && found[0].contains(says), "{bad}: {found:?}");
        }
    }

    #[test]
    fn every_requirement_has_one_row() {
        let whole = table("Open: later");
        let (_, without) = whole.split_once('\n').unwrap();
        assert_eq!(findings(without), ["docs/asvs.md: V6.1.1 has no row"]);
        let twice = format!("{whole}| V6.1.1 | 1 | again | Open: later |\n");
        assert_eq!(findings(&twice), ["docs/asvs.md: V6.1.1 has more than one row"]);
        let strange = format!("{whole}| V6.9.9 | 1 | what | Open: later |\n");
        assert!(findings(&strange)[0].contains("V6.9.9 is not one"));
        assert!(findings(&whole.replacen("| V6.1.1 | 1 |", "| V6.1.1 | 2 |", 1))[0].contains("of level 1"));
    }
}
