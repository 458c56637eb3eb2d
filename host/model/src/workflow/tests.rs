use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::condition::tests::{any_condition, any_json};
use crate::schedule::{Firing, Misfire};
use crate::time::Timestamp;

pub(crate) const INSTALLATION: &str = "inst_01h455vb4pex5vsknk084sn02q";

/// The example of the specification, with a real installation's id.
pub(crate) fn github_to_slack() -> String {
    r##"{ "schema": 1, "name": "GitHub issue to Slack",
  "variables": { "channel": { "type": "string", "default": "#support", "required": true } },
  "triggers": [ { "id": "github", "type": "webhook", "priority": 10, "when": { "field": "trigger.body.action", "op": "eq", "value": "opened" } } ],
  "start": "urgent",
  "steps": {
    "urgent": { "type": "condition",
      "if": { "any": [ { "field": "trigger.body.issue.labels[*].name", "op": "in", "value": ["bug", "urgent"] },
                       { "not": { "field": "trigger.body.issue.comments", "op": "lt", "value": 5 } } ] },
      "then": "tell", "else": "end" },
    "tell": { "type": "notify", "use": "acme/slack#slack", "installation": "INSTALLATION",
      "with": { "channel": "{{ vars.channel }}", "text": "New issue: {{ trigger.body.issue.title }}" },
      "retry": { "max_attempts": 5, "backoff_ms": 1000, "backoff_max_ms": 60000 }, "timeout_ms": 10000, "allow_failure": false, "next": "end" },
    "end": { "type": "stop" } } }"##
        .replace("INSTALLATION", INSTALLATION)
}

pub(crate) fn parse(document: &Value) -> Definition {
    Definition::parse(&document.to_string()).unwrap_or_else(|error| panic!("{:#?}", error.problems)).0
}

/// A definition with these steps; the first one starts.
pub(crate) fn with_steps(steps: &Value) -> Value {
    let start = steps.as_object().unwrap().keys().next().unwrap().clone();
    json!({ "schema": 1, "name": "Test", "start": start, "steps": steps,
        "variables": { "n": { "type": "number", "default": 0 }, "s": { "type": "string", "default": "" },
            "j": { "type": "json" }, "key": { "type": "secret" } } })
}

fn problems(document: &Value) -> Vec<(String, String)> {
    let error = Definition::parse(&document.to_string()).expect_err("the definition is refused");
    error.problems.into_iter().map(|problem| (problem.path, problem.code)).collect()
}

fn problem_of(steps: &Value) -> (String, String) {
    let found = problems(&with_steps(steps));
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

#[test]
fn the_example_is_read() {
    let text = github_to_slack();
    let (definition, notes) = Definition::parse(&text).unwrap();
    assert_eq!(definition.text(), text);
    assert_eq!(notes, []);
    assert_eq!(definition.name, "GitHub issue to Slack");
    assert_eq!(definition.start.as_str(), "urgent");
    let StepKind::Call(tell) = &definition.step(&"tell".parse().unwrap()).unwrap().kind else { panic!("a call") };
    assert_eq!(tell.kind, ContributionKind::Channel);
    assert_eq!((tell.plugin.as_str(), tell.contribution.as_str()), ("acme/slack", "slack"));
    assert_eq!(tell.installation.unwrap().to_string(), INSTALLATION);
    assert_eq!(tell.retry, Retry { max_attempts: 5, backoff_ms: 1000, backoff_max_ms: 60_000 });
    assert_eq!((tell.timeout_ms, tell.allow_failure), (Some(10_000), false));
    assert_eq!(definition.plugins(), [&"acme/slack".parse().unwrap()]);
}

#[test]
fn a_definition_may_be_shared_between_threads() {
    fn assert_shared<T: Send + Sync + 'static>() {}
    assert_shared::<Definition>();
}

#[test]
fn the_guide_tells_the_truth() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guides/workflows.md");
    let guide = std::fs::read_to_string(path).unwrap();
    let example = guide.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert_eq!(Definition::parse(example).unwrap().1, []);
    let has_word =
        |word: &str| guide.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|found| found == word);
    let ops = crate::condition::Op::ALL.map(crate::condition::Op::as_str);
    for word in crate::template::FILTERS.iter().chain(&crate::template::TESTS).chain(&ops) {
        assert!(has_word(word), "`{word}` is not in the guide");
    }
}

#[test]
fn triggers_answer_by_priority_and_say_why() {
    let mut document: Value = serde_json::from_str(&github_to_slack()).unwrap();
    document["triggers"] = json!([
        { "id": "low", "type": "webhook", "priority": 1 },
        { "id": "closed", "type": "webhook", "priority": 5, "when": { "field": "trigger.body.action", "op": "eq", "value": "closed" } },
        { "id": "opened", "type": "webhook", "priority": 10, "when": { "field": "trigger.body.action", "op": "eq", "value": "opened" } },
        { "id": "hand", "type": "manual" },
    ]);
    let definition = parse(&document);
    let payload =
        |action: &str| trigger_payload(TriggerKind::Webhook, json!({ "action": action }), json!({}), json!({}));
    let matched = |action: &str| definition.matching_trigger(TriggerKind::Webhook, None, &payload(action));
    assert_eq!(matched("opened").trigger.unwrap().as_str(), "opened");
    assert_eq!(matched("closed").trigger.unwrap().as_str(), "closed");
    let other = matched("edited");
    assert_eq!(other.trigger.unwrap().as_str(), "low");
    let asked: Vec<&str> = other.considered.iter().map(|c| c.trigger.as_str()).collect();
    assert_eq!(asked, ["opened", "closed", "low"]);
    assert_eq!(other.considered[0].explanation.as_ref().unwrap().actual, Some(json!("edited")));

    let closed =
        definition.matching_trigger(TriggerKind::Webhook, Some(&"closed".parse().unwrap()), &payload("opened"));
    assert_eq!(closed.trigger, None);
    assert_eq!(closed.reason().unwrap(), "the conditions of closed do not hold");
    let api = definition.matching_trigger(TriggerKind::Api, None, &payload("opened"));
    assert_eq!(api.reason().unwrap(), "the workflow has no trigger of this kind");
    assert_eq!(definition.matching_trigger(TriggerKind::Manual, None, &json!({})).trigger.unwrap().as_str(), "hand");
}

fn with_trigger(trigger: &Value) -> Value {
    let mut document = with_steps(&json!({ "a": { "type": "stop" } }));
    document["triggers"] = json!([trigger]);
    document
}

#[test]
fn a_schedule_is_read_with_its_policy() {
    let nightly = json!({ "id": "nightly", "type": "schedule", "cron": "0 2 * * *", "time_zone": "Europe/Berlin",
        "misfire": "all", "misfire_max": 7, "spread_s": 600, "when": { "field": "trigger.late", "op": "eq", "value": false } });
    let definition = parse(&with_trigger(&nightly.clone()));
    let (trigger, schedule) = definition.schedules().next().unwrap();
    assert_eq!(
        (trigger.as_str(), schedule.ticks.cron(), schedule.ticks.zone()),
        ("nightly", "0 2 * * *", "Europe/Berlin")
    );
    assert_eq!((schedule.misfire, schedule.misfire_max, schedule.spread_s), (Misfire::All, 7, 600));
    let firing = |late| Firing { tick: Timestamp::parse("2026-11-21T01:00:00Z").unwrap(), late };
    let now = Timestamp::parse("2026-11-21T01:04:00Z").unwrap();
    let payload = schedule_payload(trigger, schedule, &firing(false), now);
    assert_eq!(
        payload,
        json!({ "type": "schedule", "body": null, "headers": {}, "query": {}, "id": "nightly",
            "scheduled_for": "2026-11-21T01:00:00.000000Z", "scheduled_for_local": "2026-11-21T02:00:00+01:00",
            "fired_at": "2026-11-21T01:04:00.000000Z", "late": false })
    );
    let answers = |late| {
        let payload = schedule_payload(trigger, schedule, &firing(late), now);
        definition.matching_trigger(TriggerKind::Schedule, Some(trigger), &payload).trigger.is_some()
    };
    assert!(answers(false) && !answers(true));

    let least = parse(&with_trigger(&json!({ "id": "t", "type": "schedule", "cron": "@hourly" })));
    let (_, schedule) = least.schedules().next().unwrap();
    assert_eq!(
        (schedule.ticks.zone(), schedule.misfire, schedule.misfire_max, schedule.spread_s),
        ("UTC", Misfire::Once, 100, 0)
    );
    let validator = jsonschema::validator_for(&json_schema()).unwrap();
    assert!(validator.is_valid(&with_trigger(&nightly.clone())));

    for (field, value, path, code) in [
        ("cron", json!("0 25 * * *"), "/triggers/0/cron", "cron"),
        ("cron", json!("* * * * * *"), "/triggers/0/cron", "too-frequent"),
        ("cron", json!("0 0 31 2 *"), "/triggers/0/cron", "never-fires"),
        ("cron", json!(5), "/triggers/0/cron", "shape"),
        ("cron", json!("x".repeat(300)), "/triggers/0/cron", "cron"),
        ("time_zone", json!("Berlin"), "/triggers/0/time_zone", "time-zone"),
        ("misfire", json!("never"), "/triggers/0/misfire", "shape"),
        ("misfire_max", json!(0), "/triggers/0/misfire_max", "out-of-range"),
        ("misfire_max", json!(101), "/triggers/0/misfire_max", "out-of-range"),
        ("spread_s", json!(3601), "/triggers/0/spread_s", "out-of-range"),
        ("spread_s", json!(-1), "/triggers/0/spread_s", "shape"),
        ("at", json!("noon"), "/triggers/0/at", "shape"),
    ] {
        let mut broken = nightly.clone();
        broken[field] = value;
        assert_eq!(problems(&with_trigger(&broken)), [(path.to_owned(), code.to_owned())]);
    }
    let without = json!({ "id": "t", "type": "schedule" });
    assert_eq!(problems(&with_trigger(&without)), [("/triggers/0".to_owned(), "shape".to_owned())]);
    let other = json!({ "id": "t", "type": "webhook", "cron": "@hourly" });
    assert_eq!(problems(&with_trigger(&other)), [("/triggers/0/cron".to_owned(), "shape".to_owned())]);
}

#[test]
fn a_schedule_needs_no_value_that_nobody_gives() {
    let mut document = with_trigger(&json!({ "id": "t", "type": "schedule", "cron": "@daily" }));
    document["variables"]["who"] = json!({ "type": "string", "required": true });
    document["variables"]["fine"] = json!({ "type": "string", "required": true, "default": "x" });
    assert_eq!(problems(&document), [("/variables/who".to_owned(), "required-by-schedule".to_owned())]);
    document["triggers"][0] = json!({ "id": "t", "type": "api" });
    parse(&document);
}

#[test]
fn all_problems_are_collected() {
    let document = json!({
        "schema": 1, "name": " ", "start": "nowhere",
        "variables": { "a": { "type": "number", "default": "x" }, "k": { "type": "secret", "default": "hunter2" }, "9": { "type": "json" } },
        "triggers": [ { "id": "t", "type": "event" }, { "id": "w", "type": "webhook", "when": { "field": "vars.a", "op": "exists" } } ],
        "steps": {
            "one": { "type": "action", "use": "acme", "with": { "x": "{{ oops" }, "timeout_ms": 5, "retry": { "max_attempts": 0 } },
            "two": { "type": "delay", "for": "1y" },
            "three": { "type": "condition", "if": { "field": "a", "op": "approximately", "value": 1 } },
            "four": { "type": "delay", "for_ms": 1, "until": "2026-01-01" },
            "five": { "type": "parallel" },
            "six": { "type": "stop", "nxt": "one" },
        },
    });
    let found = problems(&document);
    let expected = [
        ("/name", "length"),
        ("/variables/a/default", "wrong-type"),
        ("/variables/k/default", "secret-default"),
        ("/variables/9", "name"),
        ("/triggers/0/type", "not-available"),
        ("/steps/one/use", "use"),
        ("/steps/one/with/x", "template"),
        ("/steps/one/retry/max_attempts", "out-of-range"),
        ("/steps/one/timeout_ms", "out-of-range"),
        ("/steps/two/for", "duration"),
        ("/steps/three/if/op", "condition"),
        ("/steps/four", "shape"),
        ("/steps/five/type", "not-available"),
        ("/steps/six/nxt", "shape"),
    ];
    for (path, code) in expected {
        assert!(found.contains(&(path.to_owned(), code.to_owned())), "{path} {code} is not in {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn the_whole_is_checked() {
    for (steps, expected) in [
        (json!({ "a": { "type": "set", "vars": { "n": 1 }, "next": "b" } }), ("/steps/a/next", "unknown-step")),
        (
            json!({ "a": { "type": "set", "vars": { "n": 1 }, "next": "b" }, "b": { "type": "delay", "for": "1d", "next": "a" } }),
            ("/steps/a", "cycle"),
        ),
        (json!({ "a": { "type": "set", "vars": { "n": 1 }, "next": "a" } }), ("/steps/a", "cycle")),
        (json!({ "a": { "type": "set", "vars": { "missing": 1 } } }), ("/steps/a/vars/missing", "unknown-variable")),
        (json!({ "a": { "type": "set", "vars": { "key": "x" } } }), ("/steps/a/vars/key", "secret")),
        (
            json!({ "a": { "type": "set", "vars": { "s": "{{ vars.oops }}" } } }),
            ("/steps/a/vars/s", "unknown-variable"),
        ),
        (json!({ "a": { "type": "set", "vars": { "s": "{{ body.x }}" } } }), ("/steps/a/vars/s", "unknown-reference")),
        (json!({ "a": { "type": "stop", "output": ["{{ steps.b.output }}"] } }), ("/steps/a/output/0", "unknown-step")),
        (
            json!({ "a": { "type": "stop", "output": "{{ steps.a.output }}" } }),
            ("/steps/a/output", "unknown-reference"),
        ),
        (
            json!({ "a": { "type": "set", "vars": { "n": 1 }, "next": "b" }, "b": { "type": "stop", "output": "{{ steps.a.result }}" } }),
            ("/steps/b/output", "unknown-reference"),
        ),
        (
            json!({ "a": { "type": "condition", "if": { "not": { "field": "vars.key", "op": "exists" } } } }),
            ("/steps/a/if/not/field", "secret"),
        ),
        (
            json!({ "a": { "type": "switch", "cases": [{ "if": { "field": "env.x", "op": "exists" } }] } }),
            ("/steps/a/cases/0/if/field", "unknown-reference"),
        ),
        (json!({ "a": { "type": "delay", "until": "tomorrow" } }), ("/steps/a/until", "time")),
        (json!({ "a": { "type": "delay", "for": "367d" } }), ("/steps/a/for", "out-of-range")),
        (json!({ "a": { "type": "delay", "for_ms": 0 } }), ("/steps/a/for_ms", "out-of-range")),
        (json!({ "a b": { "type": "stop" } }), ("/start", "name")),
        (json!({ "a": { "type": "stop", "status": "maybe" } }), ("/steps/a/status", "shape")),
        (json!({ "a": { "type": "action", "use": "a/b#c", "installation": "x" } }), ("/steps/a/installation", "id")),
        (
            json!({ "a": { "type": "action", "use": "a/b#c", "retry": { "backoff_ms": 10, "backoff_max_ms": 5 } } }),
            ("/steps/a/retry/backoff_max_ms", "out-of-range"),
        ),
    ] {
        let found = problems(&with_steps(&steps));
        assert!(found.contains(&(expected.0.to_owned(), expected.1.to_owned())), "{expected:?} is not in {found:?}");
    }
    let found = problem_of(&json!({ "a": { "type": "dance" } }));
    assert_eq!(found, ("/steps/a/type".to_owned(), "unknown-type".to_owned()));
}

#[test]
fn unreachable_steps_are_only_warned_of() {
    let document = with_steps(&json!({ "a": { "type": "stop" }, "b": { "type": "stop" } }));
    let (_, notes) = Definition::parse(&document.to_string()).unwrap();
    assert_eq!(notes.len(), 1);
    assert_eq!(
        (notes[0].kind, notes[0].path.as_str(), notes[0].code.as_str()),
        (NoteKind::Warning, "/steps/b", "unreachable")
    );
}

#[test]
fn oversized_documents_are_refused_at_once() {
    let steps = |count: usize| {
        let steps = (0..count)
            .map(|i| (format!("s{i}"), json!({ "type": "delay", "for": "1s", "next": format!("s{}", i + 1) })));
        with_steps(&Value::Object(steps.chain([(format!("s{count}"), json!({ "type": "stop" }))]).collect()))
    };
    assert_eq!(parse(&steps(STEPS_MAX - 1)).steps.len(), STEPS_MAX);
    let began = std::time::Instant::now();
    assert_eq!(problems(&steps(10_000)), [("/steps".to_owned(), "too-many-steps".to_owned())]);
    // Text, since a value so deep could not be built without filling the stack itself.
    let deep = |open: &str, close: &str, levels: usize| {
        format!(
            r#"{{"schema":1,"name":"x","start":"a","steps":{{"a":{{"type":"condition","if":{}{{"field":"run.id","op":"exists"}}{}}}}}}}"#,
            open.repeat(levels),
            close.repeat(levels)
        )
    };
    assert!(Definition::parse(&deep(r#"{"not":"#, "}", 19)).is_ok());
    for (text, path, code) in [
        (deep(r#"{"not":"#, "}", 50), format!("/steps/a/if{}", "/not".repeat(20)), "condition"),
        (deep(r#"{"not":"#, "}", 100), String::new(), "too-deep"),
        (deep(r#"{"all":["#, "]}", 100), String::new(), "too-deep"),
        (deep("[", "]", 100_000), String::new(), "too-deep"),
        (" ".repeat(TEXT_BYTES_MAX + 1), String::new(), "too-large"),
        (r#"{"schema":1,"schema":1}"#.to_owned(), String::new(), "not-json"),
        (String::new(), String::new(), "not-json"),
        ("[]".to_owned(), String::new(), "shape"),
    ] {
        let found = Definition::parse(&text).unwrap_err().problems;
        assert_eq!((found[0].path.clone(), found[0].code.as_str()), (path, code), "{found:?}");
        assert_eq!(found.len(), 1, "{found:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(20), "refusing takes no time to speak of");
}

#[test]
fn regular_expressions_are_counted_over_the_whole() {
    let pattern = json!({ "field": "run.id", "op": "matches", "value": "x" });
    let document = |steps: usize| {
        let step = |i: usize| (format!("s{i}"), json!({ "type": "condition", "if": { "any": vec![&pattern; 20] } }));
        with_steps(&Value::Object((0..steps).map(step).collect()))
    };
    parse(&document(PATTERNS_MAX / 20));
    let found = problems(&document(PATTERNS_MAX / 20 + 3));
    assert_eq!(found, [(format!("/steps/s{}/if", PATTERNS_MAX / 20), "too-many-patterns".to_owned())]);
}

#[test]
fn refused_regular_expressions_are_not_compiled_without_end() {
    let pattern = json!({ "field": "run.id", "op": "matches", "value": r"[\w\s]{30}|(\pL+\d){20}" });
    let step = |i: usize| (format!("s{i}"), json!({ "type": "condition", "if": { "any": vec![&pattern; 20] } }));
    let found = problems(&with_steps(&Value::Object((0..190).map(step).collect())));
    // As many as are reported at most, and not the 3,800 that the document holds.
    assert_eq!(found.len(), 200);
    assert_eq!(found[199].0, "/steps/s9/if/any/19/value");
}

#[test]
fn a_doubled_key_is_refused() {
    let text = r#"{"schema":1,"name":"x","start":"a","steps":{"a":{"type":"stop"},"a":{"type":"stop"}}}"#;
    let found = Definition::parse(text).unwrap_err().problems;
    assert!(found[0].message.contains("`a` appears twice"), "{found:?}");
}

#[test]
fn older_names_are_converted_and_said_so() {
    let document = json!({
        "schema": 1, "name": "Older",
        "variables": { "limit": { "type": "number", "default_value": 7 } },
        "triggers": [{ "id": "w", "type": "webhook", "when": { "and": [
            { "field_name": "trigger.body.kind", "operator": "equals", "value": "paid" },
            { "condition_type": "field_contains", "field": "trigger.body.tags", "value": "vip" } ] } }],
        "steps": [
            { "condition_type": "field_equals", "field_name": "trigger.body.amount", "operator": "greater_than", "value": 5,
              "next_step_on_true": 2, "next_step_on_false": 3 },
            { "type": "call_webhook", "url": "https://example.com/{{ vars.limit }}", "method": "POST", "body": { "a": 1 }, "next_step": 3 },
            { "type": "stop" },
        ],
    });
    let text = document.to_string();
    let (definition, notes) = Definition::parse(&text).unwrap();
    assert_eq!(definition.text(), text, "the original stays as it was");
    let ids: Vec<&str> = definition.steps.keys().map(StepId::as_str).collect();
    assert_eq!(ids, ["step-1", "step-2", "step-3"]);
    assert_eq!(definition.start.as_str(), "step-1");
    assert_eq!(definition.variables["limit"].default, Some(json!(7)));
    let StepKind::Condition { test, then, otherwise } = &definition.steps["step-1"].kind else { panic!("a condition") };
    assert_eq!((then.as_ref().unwrap().as_str(), otherwise.as_ref().unwrap().as_str()), ("step-2", "step-3"));
    assert!(test.eval(&json!({ "trigger": { "body": { "amount": 6 } } })));
    assert!(!test.eval(&json!({ "trigger": { "body": { "amount": 5 } } })));
    let StepKind::Call(call) = &definition.steps["step-2"].kind else { panic!("a call") };
    assert_eq!((call.plugin.as_str(), call.kind), ("bulkhead/webhook", ContributionKind::Action));
    let with = call.with.render(&json!({ "vars": { "limit": 7 } })).unwrap();
    assert_eq!(with, json!({ "url": "https://example.com/7", "method": "POST", "body": { "a": 1 } }));
    let said: Vec<&str> = notes.iter().map(|note| note.message.as_str()).collect();
    for part in
        ["`default_value`", "`call_webhook`", "`greater_than`", "`field_contains`", "`next_step_on_true`", "`and`"]
    {
        assert!(said.iter().any(|message| message.contains(part)), "{part} is not in {said:#?}");
    }
    assert!(notes.iter().all(|note| note.kind == NoteKind::Conversion));
    let payload = json!({ "body": { "kind": "paid", "tags": ["vip"] } });
    assert!(definition.matching_trigger(TriggerKind::Webhook, None, &payload).trigger.is_some());
}

#[test]
fn older_and_present_name_together_are_refused() {
    let mut document = with_steps(&json!({ "a": { "type": "stop" } }));
    document["variables"]["n"] = json!({ "type": "number", "default": 1, "default_value": 2 });
    assert_eq!(problems(&document), [("/variables/n/default_value".to_owned(), "shape".to_owned())]);
    document["variables"] = json!({});
    document["steps"] = json!([{ "id": "a", "type": "stop" }, { "id": "a", "type": "stop" }]);
    assert_eq!(problems(&document), [("/steps".to_owned(), "shape".to_owned())]);
}

#[test]
fn the_published_schema_is_that_of_the_code() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schemas/workflow.json");
    let now = format!("{}\n", serde_json::to_string_pretty(&json_schema()).unwrap());
    let published = std::fs::read_to_string(&path).unwrap_or_default();
    if published != now {
        let fresh = path.with_extension("json.new");
        std::fs::write(&fresh, &now).unwrap();
        panic!(
            "docs/schemas/workflow.json is not what the code says; the present schema was written beside it: {}",
            fresh.display()
        );
    }
}

#[test]
fn the_schema_accepts_what_the_parser_accepts_and_refuses_other_shapes() {
    let validator = jsonschema::validator_for(&json_schema()).unwrap();
    let example: Value = serde_json::from_str(&github_to_slack()).unwrap();
    assert!(
        validator.is_valid(&example),
        "{:?}",
        validator.iter_errors(&example).map(|e| e.to_string()).collect::<Vec<_>>()
    );
    let every = with_steps(&json!({
        "a": { "type": "action", "use": "a/b#c", "fallback": null, "on_error": "e", "ui": { "x": 1 }, "next": "b" },
        "b": { "type": "set", "vars": { "n": 1 }, "next": "c" },
        "c": { "type": "delay", "for": "1d", "next": "d" },
        "d": { "type": "switch", "cases": [{ "if": { "field": "vars.n", "op": "exists" }, "then": "e" }], "else": "e" },
        "e": { "type": "stop", "status": "failed", "output": { "x": 1 } },
    }));
    parse(&every);
    assert!(
        validator.is_valid(&every),
        "{:?}",
        validator.iter_errors(&every).map(|e| e.to_string()).collect::<Vec<_>>()
    );
    for (pointer, value) in [
        ("/steps/a/type", json!("dance")),
        ("/steps/a/use", json!("acme")),
        ("/steps/a/nxt", json!("b")),
        ("/steps/d/cases/0/if/op", json!("approximately")),
        ("/name", json!("")),
    ] {
        let mut broken = every.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        broken.pointer_mut(parent).unwrap()[key] = value;
        assert!(!validator.is_valid(&broken), "{pointer}");
        assert!(Definition::parse(&broken.to_string()).is_err(), "{pointer}");
    }
}

fn any_document() -> impl Strategy<Value = Value> {
    let name = || "[a-c]";
    let text = || prop_oneof!["[a-c ]{0,4}", "\\{\\{ (vars|trigger|steps)\\.[a-c] \\}\\}", "\\{\\{ [a-c.|]{0,6}"];
    let step = prop_oneof![
        (any_condition(), name(), name())
            .prop_map(|(test, then, or)| json!({ "type": "condition", "if": test, "then": then, "else": or })),
        (text(), name())
            .prop_map(|(text, next)| json!({ "type": "action", "use": "a/b#c", "with": { "t": text }, "next": next })),
        (name(), any_json(), name())
            .prop_map(|(var, value, next)| json!({ "type": "set", "vars": { var: value }, "next": next })),
        (any::<u32>(), name()).prop_map(|(ms, next)| json!({ "type": "delay", "for_ms": ms, "next": next })),
        any_json().prop_map(|output| json!({ "type": "stop", "output": output })),
        (any_condition(), any::<u8>())
            .prop_map(|(test, to)| json!({ "condition_type": "field_equals", "if": test, "next_step_on_true": to })),
        any_json(),
    ];
    let steps = proptest::collection::vec((name(), step), 0..4);
    (steps, any_json(), any_json(), any::<bool>()).prop_map(|(steps, triggers, variables, list)| {
        let steps = if list {
            Value::Array(steps.into_iter().map(|(_, step)| step).collect())
        } else {
            Value::Object(steps.into_iter().collect())
        };
        json!({ "schema": 1, "name": "x", "start": "a", "steps": steps, "triggers": [triggers], "variables": variables })
    })
}

proptest! {
    #[test]
    fn any_document_is_read_or_refused_with_reasons(document in prop_oneof![any_document(), any_json()]) {
        let text = document.to_string();
        match Definition::parse(&text) {
            Ok((definition, _)) => prop_assert_eq!(definition.text(), text),
            Err(error) => prop_assert!(!error.problems.is_empty()),
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,80}|[\\[\\]{}\":,a1 \\\\]{0,80}") {
        let _ = json::text_depth(&text);
        prop_assert!(Definition::parse(&text).is_err());
    }

    #[test]
    fn the_depth_of_text_is_that_of_its_value(value in any_json()) {
        let text = value.to_string();
        prop_assert_eq!(json::text_depth(&text), json::depth(&value));
        prop_assert_eq!(json::encoded_len(&value), text.len());
        prop_assert_eq!(json::parse_strict(&text).unwrap().to_string(), text);
    }
}

#[test]
fn a_bound_on_runs_is_read_and_checked() {
    let with = |concurrency: Value| {
        let mut document = with_steps(&json!({ "a": { "type": "stop" } }));
        document["concurrency"] = concurrency;
        document
    };
    let bound = parse(&with(json!({ "limit": 5, "key": "trigger.body.customer" }))).concurrency.unwrap();
    assert_eq!((bound.limit, bound.key.unwrap().as_str()), (5, "trigger.body.customer"));
    assert!(parse(&with(json!({ "limit": 1 }))).concurrency.unwrap().key.is_none());
    for (broken, path, code) in [
        (json!({ "limit": 0 }), "/concurrency/limit", "out-of-bounds"),
        (json!({ "limit": 1_001 }), "/concurrency/limit", "out-of-bounds"),
        (json!({ "limit": 1, "key": "vars.x" }), "/concurrency/key", "path"),
        (json!({ "limit": 1, "key": "trigger.body.items[*].id" }), "/concurrency/key", "path"),
        (json!({ "limit": 1, "key": "" }), "/concurrency/key", "path"),
        (json!({ "limit": 1, "per": "x" }), "/concurrency/per", "shape"),
    ] {
        assert_eq!(problems(&with(broken)), [(path.to_owned(), code.to_owned())]);
    }
}
