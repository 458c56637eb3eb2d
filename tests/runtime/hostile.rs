//! Every guest of `tests/plugins` ends as its file says, inside its bound, and harms nobody.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulkhead_model::call::{CallReport, Outcome};
use bulkhead_model::limits::{ContributionKind, Limits};
use bulkhead_runtime::embed_manifest;
use serde_json::{Value, json};

use crate::support::{ALLOCATOR, RUN, action_that, answers, assert_ended, component, host, manifest, request, within};

/// What a file's comments say.
struct Case {
    name: String,
    text: String,
    outcome: Outcome,
    limit: Option<String>,
    limits: Limits,
    /// The kind of permission in its manifest.
    asks: Option<String>,
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/plugins")
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<_> = std::fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wat"))
        .map(|path| read(&path))
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases
}

fn read(path: &Path) -> Case {
    let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
    let text = std::fs::read_to_string(path).unwrap();
    let line = |key: &str| text.lines().find_map(|line| line.strip_prefix(&format!(";; {key}: ")).map(str::to_owned));
    let outcome = Outcome::parse(&line("expect").unwrap_or_else(|| panic!("{name} expects nothing"))).unwrap();
    let mut limits = serde_json::to_value(Limits::default_for(ContributionKind::Action)).unwrap();
    for setting in line("set").unwrap_or_default().split_whitespace() {
        let (key, value) = setting.split_once('=').unwrap();
        assert!(limits.get(key).is_some(), "{name}: {key}");
        limits[key] = json!(value.parse::<u64>().unwrap());
    }
    let (answer, _) = answers("null");
    let null = answer.replace("2048", "1024");
    let expanded = text.replace("$ALLOCATOR", ALLOCATOR).replace("$RUN", RUN).replace("$NULL", &null);
    Case {
        outcome,
        limit: line("limit"),
        limits: serde_json::from_value(limits).unwrap(),
        asks: line("asks"),
        text: expanded,
        name,
    }
}

fn check(case: &Case, report: &CallReport, took: Duration) -> Result<(), String> {
    let limit = report.error.as_ref().and_then(|error| error.limit.clone());
    let problem = if report.outcome != case.outcome {
        "ended otherwise"
    } else if limit != case.limit {
        "names another limit"
    } else if report.output.is_some() != (case.outcome == Outcome::Returned) {
        "has the wrong output"
    } else if report.usage.memory_peak_bytes > case.limits.memory_bytes {
        "had too much memory"
    } else if report.usage.table_elements > case.limits.table_elements {
        "had too many table elements"
    } else if report.log.len() > case.limits.log_lines as usize || report.usage.log_bytes > case.limits.log_bytes {
        "logged too much"
    } else if report
        .error
        .as_ref()
        .is_some_and(|error| error.message.len() > 8 * 1024 || error.message.contains('\u{1b}'))
    {
        "has a message that is too long or not harmless"
    } else if took > Duration::from_millis(case.limits.wall_ms) + Duration::from_secs(20) {
        "took far too long"
    } else {
        return Ok(());
    };
    let expected = (case.outcome, &case.limit);
    Err(format!(
        "{}: {problem} after {took:?}; expected {expected:?}, got {:?} {:?} {:?}",
        case.name, report.outcome, report.error, report.usage
    ))
}

fn asks(case: &Case) -> Value {
    match case.asks.as_deref() {
        None => json!([]),
        Some("secret") => json!([{
            "kind": "secret", "reason": "To steal it", "required": true, "name": "bot_token",
            "inject": { "headers": ["authorization"], "origins": ["https://slack.com"] },
        }]),
        Some("http") => json!([{
            "kind": "http", "reason": "To keep what is never sent", "required": false,
            "origins": ["https://slack.com"], "methods": ["POST"], "paths": ["/"],
        }]),
        Some(other) => panic!("{} asks for {other}", case.name),
    }
}

#[tokio::test]
async fn every_hostile_guest_ends_as_it_must_and_harms_nobody() {
    let cases = cases();
    assert!(cases.len() >= 50, "{} cases", cases.len());
    let neighbour = host().prepare(&crate::support::package(ContributionKind::Action, &action_that("", "", ""))).await;
    let mut problems = Vec::new();
    for case in &cases {
        let guest = component("action-plugin", &case.text);
        let permissions = asks(case);
        let package = embed_manifest(&guest, &manifest(ContributionKind::Action, &permissions)).unwrap();
        let prepared = host().prepare(&package).await;
        let mut hostile = request(ContributionKind::Action);
        hostile.limits = case.limits.clone();
        let mut other = request(ContributionKind::Action);
        other.context.org = "org_2".to_owned();
        let began = Instant::now();
        let (report, beside) = within(async {
            tokio::join!(host().runtime.call(&prepared, hostile), host().runtime.call(&neighbour, other))
        })
        .await;
        problems.extend(check(case, &report, began.elapsed()).err());
        assert_ended(&beside, Outcome::Returned, None);
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[tokio::test]
async fn floods_are_cut_and_marked() {
    for (name, lines) in [("log_flood", 1_000), ("stdout_flood", 1)] {
        let case = read(&directory().join(format!("{name}.wat")));
        let report = host().run(ContributionKind::Action, &component("action-plugin", &case.text)).await;
        assert!(report.log_truncated, "{name}");
        assert_eq!(report.log.len(), lines, "{name}");
        assert!(report.usage.log_bytes <= report.limits.log_bytes, "{name}");
    }
}
