//! Words that have one home, or none.

use super::Finding;

/// Longer than this, a file holds more than one idea. An exception is a decision, and is listed with its reason.
const LINES_MAX: usize = 900;
const LONG_BY_DECISION: [(&str, &str); 0] = [];

/// A word that may stand in a few places alone.
struct Rule {
    word: &'static str,
    /// Files or folders, by the start of their path.
    homes: &'static [&'static str],
    /// Where the rule holds, by the start of the path; everywhere when empty.
    within: &'static [&'static str],
    /// Whether tests are bound as well.
    in_tests: bool,
    instead: &'static str,
}

/// The SDK is not among them: a guest's clock and randomness are what the host gives it.
const PRODUCT: &[&str] = &["host/", "plugins/"];
const EGRESS: &str = "outbound bytes leave through host/runtime/src/egress.rs";
const CLOCK: &str = "time and randomness are passed in: host/model/src/ambient.rs";

/// What clippy does not see (methods of types that a crate does not name, macros under `cfg`, crates of other lints) or
/// says less clearly.
const RULES: [Rule; 20] = [
    Rule {
        word: "SystemTime::now",
        homes: &["host/model/src/ambient.rs"],
        within: PRODUCT,
        in_tests: false,
        instead: CLOCK,
    },
    Rule { word: "Utc::now", homes: &["host/model/src/ambient.rs"], within: PRODUCT, in_tests: true, instead: CLOCK },
    Rule { word: "Local::now", homes: &["host/model/src/ambient.rs"], within: PRODUCT, in_tests: true, instead: CLOCK },
    Rule { word: "Uuid::now_v7", homes: &["host/model/src/"], within: PRODUCT, in_tests: true, instead: CLOCK },
    Rule { word: "Uuid::new_v4", homes: &["host/model/src/"], within: PRODUCT, in_tests: true, instead: CLOCK },
    Rule { word: "rand::rng(", homes: &["host/model/src/ambient.rs"], within: PRODUCT, in_tests: true, instead: CLOCK },
    Rule {
        word: "getrandom::",
        homes: &["host/model/src/ambient.rs"],
        within: PRODUCT,
        in_tests: false,
        instead: CLOCK,
    },
    Rule { word: "OsRng", homes: &["host/model/src/ambient.rs"], within: PRODUCT, in_tests: false, instead: CLOCK },
    Rule {
        word: "Engine::new(",
        homes: &[
            "host/runtime/src/engine.rs",
            "host/runtime/src/bin/bench",
            "host/runtime/src/bench",
            "host/runtime/examples/bench",
        ],
        within: &["host/"],
        in_tests: true,
        instead: "host/runtime/src/engine.rs builds every engine; a measurement may build a bare one to compare with",
    },
    Rule {
        word: "hyper::client",
        homes: &["host/runtime/src/egress"],
        within: &["host/"],
        in_tests: false,
        instead: EGRESS,
    },
    Rule {
        word: "hyper_util::client",
        homes: &["host/runtime/src/egress"],
        within: &["host/"],
        in_tests: false,
        instead: EGRESS,
    },
    Rule {
        word: "TcpStream::connect",
        homes: &["host/runtime/src/egress"],
        within: &["host/"],
        in_tests: false,
        instead: EGRESS,
    },
    Rule {
        word: "sqlx::",
        homes: &["host/store/"],
        within: &["host/"],
        in_tests: false,
        instead: "SQL lives in host/store",
    },
    Rule {
        word: "StatusCode::",
        homes: &["host/http/"],
        within: &["host/app/", "host/store/", "host/model/"],
        in_tests: true,
        instead: "status codes live in host/http/src/problem.rs",
    },
    Rule { word: "#[ignore", homes: &[], within: &[], in_tests: true, instead: "a test runs or is deleted" },
    Rule { word: "#[allow(", homes: &[], within: &[], in_tests: true, instead: "`#[expect(lint, reason = \"…\")]`" },
    Rule {
        word: "#![allow(", homes: &[], within: &[], in_tests: true, instead: "`#![expect(lint, reason = \"…\")]`"
    },
    Rule { word: "todo!(", homes: &[], within: &[], in_tests: true, instead: "finish it, or leave it out" },
    Rule { word: "unimplemented!(", homes: &[], within: &[], in_tests: true, instead: "finish it, or leave it out" },
    Rule {
        word: ".unwrap()",
        homes: &[],
        within: &[],
        in_tests: false,
        instead: "`expect(\"why it cannot fail\")`, or an error",
    },
];

/// Checks one Rust file. `path` is as read from the top folder, with `/`.
pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if path.ends_with("/mod.rs") {
        findings.push(Finding::new(path, "`foo.rs` beside `foo/` instead of `foo/mod.rs`"));
    }
    let lines = text.lines().count();
    if lines > LINES_MAX && !LONG_BY_DECISION.iter().any(|(file, _)| *file == path) {
        findings.push(Finding::new(path, format!("{lines} lines, more than {LINES_MAX}: divide it by idea")));
    }
    let code = without_comments_and_strings(text);
    let tests_from = if is_test(path) { 0 } else { first_test_line(&code) };
    for (index, line) in code.lines().enumerate() {
        let place = || format!("{path}:{}", index + 1);
        for rule in &RULES {
            let bound = rule.in_tests || index < tests_from;
            if bound && rule.holds_in(path) && line.contains(rule.word) {
                findings
                    .push(Finding::new(place(), format!("`{}`: {}", rule.word.trim_end_matches('('), rule.instead)));
            }
        }
        if decides_rights(path) && index < tests_from && line.trim_start().starts_with("_ =>") {
            findings.push(Finding::new(place(), "a wildcard arm where rights are decided: name every case"));
        }
    }
    for (index, line) in text.lines().enumerate() {
        // In comments, where the words below would be hidden above. Written in two parts, or this file would not pass.
        if [concat!("FIX", "ME"), concat!("XX", "X:"), concat!("TO", "DO:")].iter().any(|word| line.contains(word)) {
            findings.push(Finding::new(format!("{path}:{}", index + 1), "finish it, or open an issue"));
        }
    }
    findings
}

/// Where it is decided who may do what: here a forgotten case is a hole (Kanidm, GHSA-xxwr-vvr3-2g9f).
fn decides_rights(path: &str) -> bool {
    let homes = ["host/model/src/permission", "host/model/src/role", "host/app/src/access", "host/http/src/access"];
    homes.iter().any(|home| path.starts_with(home))
}

impl Rule {
    fn holds_in(&self, path: &str) -> bool {
        (self.within.is_empty() || self.within.iter().any(|start| path.starts_with(start)))
            && !self.homes.iter().any(|home| path.starts_with(home))
    }
}

/// Whether the whole file is a test or serves tests.
fn is_test(path: &str) -> bool {
    path.starts_with("tests/")
        || path.ends_with("/tests.rs")
        || ["/tests/", "/benches/", "/fuzz/"].iter().any(|folder| path.contains(folder))
}

/// The index of the first line of a module of tests, which stands at a file's end by custom.
fn first_test_line(code: &str) -> usize {
    let lines: Vec<_> = code.lines().map(str::trim).collect();
    let starts =
        |index: &usize| lines[*index].starts_with("#[cfg(test)]") || lines[*index].starts_with("#[cfg(all(test");
    let is_module = |index: &usize| {
        let after = lines[index + 1..].iter().find(|line| !line.starts_with("#["));
        after.is_some_and(|line| {
            let line = line.strip_prefix("pub(super) ").unwrap_or(line);
            line.starts_with("mod ") && line.ends_with('{')
        })
    };
    (0..lines.len()).filter(starts).find(is_module).unwrap_or(lines.len())
}

/// The code alone: comments and the insides of literals become spaces, lines stay where they are.
fn without_comments_and_strings(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let previous = code.chars().next_back();
        let in_word = previous.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if first == '"' {
            string(rest)
        } else if first == 'r' && !in_word && raw_string(rest).is_some() {
            raw_string(rest).unwrap_or(1)
        } else if first == '\'' {
            character(rest)
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        code.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[length..];
    }
    code
}

/// The length of a block comment, which may hold others.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        if text.as_bytes()[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if text.as_bytes()[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of a string literal from its quotation mark.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a raw string literal from its `r`.
fn raw_string(text: &str) -> Option<usize> {
    let hashes = text[1..].bytes().take_while(|byte| *byte == b'#').count();
    let inside = text[1 + hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = inside.find(&end)?;
    Some(2 + hashes + length + end.len())
}

/// The length of a character literal; of a lifetime, only its mark.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((escape, _))) => text[escape + 1..].find('\'').map_or(1, |end| escape + 1 + end + 1),
        (Some(_), Some((end, '\''))) => end + 1,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(path: &str, text: &str) -> Vec<String> {
        check(path, text).into_iter().map(|finding| finding.place).collect()
    }

    #[test]
    fn an_unwrap_outside_tests_is_found_and_one_in_tests_is_not() {
        let text = "fn f() {\n    g().unwrap();\n}\n\n#[cfg(test)]\nmod tests {\n    fn t() {\n        g().unwrap();\n    }\n}\n";
        assert_eq!(places("host/app/src/a.rs", text), ["host/app/src/a.rs:2"]);
        assert_eq!(places("tests/http/a.rs", text), [""; 0]);
        assert_eq!(places("host/app/src/a/tests.rs", text), [""; 0]);
    }

    #[test]
    fn a_single_item_for_tests_does_not_free_what_follows() {
        let text = "#[cfg(test)]\nfn only_in_tests() {}\nfn f() { g().unwrap() }\n";
        assert_eq!(places("host/app/src/a.rs", text), ["host/app/src/a.rs:3"]);
    }

    #[test]
    fn words_in_comments_and_strings_are_not_code() {
        let text = "// .unwrap()\n/* .unwrap() /* nested */ .unwrap() */\nlet a = \"\\\".unwrap()\";\nlet b = r#\"\".unwrap()\"#;\nlet c = ('\"', '\\'', x.unwrap());\nfn f<'a>(x: &'a str) { x.unwrap() }\n";
        assert_eq!(places("host/app/src/a.rs", text), ["host/app/src/a.rs:5", "host/app/src/a.rs:6"]);
    }

    #[test]
    fn words_are_free_at_home() {
        assert_eq!(places("host/model/src/ambient.rs", "SystemTime::now()"), [""; 0]);
        assert_eq!(places("host/store/src/a.rs", "SystemTime::now()").len(), 1);
        assert_eq!(places("host/runtime/src/engine.rs", "Engine::new(&config)"), [""; 0]);
        assert_eq!(places("host/runtime/src/call.rs", "Engine::new(&config)").len(), 1);
        assert_eq!(places("host/runtime/src/egress/dial.rs", "TcpStream::connect(address)"), [""; 0]);
        assert_eq!(places("host/app/src/notify.rs", "TcpStream::connect(address)").len(), 1);
        assert_eq!(places("host/app/src/notify.rs", "sqlx::query(text)").len(), 1);
    }

    #[test]
    fn attributes_and_marks_of_unfinished_work_are_found_everywhere() {
        for text in
            ["#[ignore]", "#[ignore = \"slow\"]", "#[allow(dead_code)]", concat!("// FIX", "ME later"), "todo!()"]
        {
            assert_eq!(places("tests/http/a.rs", text).len(), 1, "{text}");
        }
    }

    #[test]
    fn the_permission_rule_names_every_case() {
        let text = "match role {\n    Role::Admin => true,\n    _ => false,\n}\n";
        assert_eq!(places("host/model/src/permission.rs", text), ["host/model/src/permission.rs:3"]);
        assert_eq!(places("host/model/src/name.rs", text), [""; 0]);
    }

    #[test]
    fn shapes_of_files_are_checked() {
        assert_eq!(places("host/app/src/run/mod.rs", ""), ["host/app/src/run/mod.rs"]);
        assert_eq!(places("host/app/src/run.rs", &"\n".repeat(LINES_MAX + 1)).len(), 1);
        assert_eq!(places("host/app/src/run.rs", &"\n".repeat(LINES_MAX)), [""; 0]);
    }
}
