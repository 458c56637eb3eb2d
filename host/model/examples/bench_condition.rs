//! Performance row 3: a condition tree of 20 nodes, beside the same decision written in Rust by hand.
//!
//! Every node is evaluated (no group can stop early). Prints one line of JSON; run it with `--release`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bulkhead_model::condition::Condition;
use serde_json::{Value, json};

/// Rounds per measurement, and measurements; the median counts.
const ROUNDS: u32 = 20_000;
const SAMPLES: usize = 21;

fn payload() -> Value {
    let labels: Vec<Value> =
        ["ui", "docs", "api", "urgent"].map(|name| json!({ "name": name, "color": "ff0000" })).into();
    json!({ "trigger": { "type": "webhook", "query": {}, "headers": { "x-github-event": "issues" }, "body": {
        "action": "opened", "repository": { "name": "bulkhead", "private": false, "stars": 1200 },
        "sender": { "login": "octocat", "type": "User" },
        "issue": { "title": "It crashes at start", "number": 4711, "comments": 7, "state": "open", "locked": false,
            "labels": labels, "assignee": null, "created_at": "2026-11-21T08:00:00Z",
            "body": "A longer text that says what happened, with a stack trace in it and a number 42." } } } })
}

fn condition() -> Value {
    let test =
        |field: &str, op: &str, value: Value| json!({ "field": format!("trigger.{field}"), "op": op, "value": value });
    json!({ "all": [
        test("body.action", "eq", json!("opened")),
        test("headers.x-github-event", "eq", json!("issues")),
        test("body.repository.private", "eq", json!(false)),
        test("body.repository.stars", "gte", json!(1000)),
        { "any": [
            test("body.issue.labels[*].name", "eq", json!("blocker")),
            { "not": test("body.issue.comments", "gte", json!(5)) },
            { "all": [
                test("body.issue.number", "between", json!([1, 10_000])),
                test("body.issue.title", "contains", json!("crash")),
                test("body.issue.labels[*].name", "in", json!(["bug", "urgent"])),
            ] },
        ] },
        test("body.issue.state", "ne", json!("closed")),
        test("body.issue.assignee", "eq", json!(null)),
        test("body.sender.type", "not_in", json!(["Bot", "Mannequin"])),
        { "not": { "field": "trigger.body.issue.pull_request", "op": "exists" } },
        test("body.sender.login", "matches", json!("^[a-z]+$")),
        test("body.issue.title", "startswith", json!("It")),
    ] })
}

fn nodes(tree: &Value) -> usize {
    let inner = |list: &Value| list.as_array().map_or(0, |list| list.iter().map(nodes).sum());
    1 + inner(&tree["all"]) + inner(&tree["any"]) + tree.get("not").map_or(0, nodes)
}

fn by_hand(root: &Value, login: &regex::Regex) -> bool {
    let trigger = &root["trigger"];
    let body = &trigger["body"];
    let issue = &body["issue"];
    let labels = || issue["labels"].as_array().into_iter().flatten().filter_map(|label| label["name"].as_str());
    let title = issue["title"].as_str().unwrap_or_default();
    body["action"] == "opened"
        && trigger["headers"]["x-github-event"] == "issues"
        && body["repository"]["private"] == false
        && body["repository"]["stars"].as_i64().is_some_and(|stars| stars >= 1000)
        && (labels().any(|name| name == "blocker")
            || issue["comments"].as_i64().is_none_or(|comments| comments < 5)
            || (issue["number"].as_i64().is_some_and(|number| (1..=10_000).contains(&number))
                && title.contains("crash")
                && labels().any(|name| matches!(name, "bug" | "urgent"))))
        && issue["state"] != "closed"
        && issue.get("assignee").is_some_and(Value::is_null)
        && body["sender"]["type"].as_str().is_none_or(|kind| !matches!(kind, "Bot" | "Mannequin"))
        && issue.get("pull_request").is_none()
        && body["sender"]["login"].as_str().is_some_and(|text| login.is_match(text))
        && title.starts_with("It")
}

fn median(mut decide: impl FnMut() -> bool) -> f64 {
    let mut samples: Vec<Duration> = (0..SAMPLES)
        .map(|_| {
            let began = Instant::now();
            for _ in 0..ROUNDS {
                assert!(black_box(decide()));
            }
            began.elapsed()
        })
        .collect();
    samples.sort();
    samples[SAMPLES / 2].as_secs_f64() * 1e6 / f64::from(ROUNDS)
}

fn main() {
    let tree = condition();
    assert_eq!(nodes(&tree), 20);
    let condition = Condition::parse(&tree).expect("the condition is well formed");
    let login = regex::Regex::new("^[a-z]+$").expect("the pattern is well formed");
    let root = payload();
    let ours = median(|| black_box(&condition).eval(black_box(&root)));
    let reference = median(|| by_hand(black_box(&root), black_box(&login)));
    let conditions =
        if cfg!(debug_assertions) { "debug build: not comparable" } else { "every node evaluated, one thread" };
    println!(
        "{}",
        json!({ "row": 3, "what": "condition tree of 20 nodes", "ours": ours, "reference": reference,
            "ratio": ours / reference, "target": "≤ 5 µs", "unit": "µs", "conditions": conditions })
    );
}
