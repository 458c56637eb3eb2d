//! Wrong input answers a problem document that says what and where, and changes nothing.

use bulkhead_test_support::http_sink::Sink;
use serde_json::{Value, json};

use crate::api::Answer;
use crate::on_both;
use crate::server::{Place, packages};

/// The answer is a problem document of this status whose text holds `words`.
fn assert_problem(answer: &Answer, status: u16, words: &str) {
    assert_eq!(answer.status, status, "{:#}", answer.body);
    assert!(answer.body["type"].is_string() && answer.body["title"].is_string(), "{:#}", answer.body);
    assert!(answer.body.to_string().contains(words), "{words:?} in {:#}", answer.body);
}

fn steps_of(count: usize) -> Value {
    let mut steps = serde_json::Map::new();
    for number in 0..count {
        steps.insert(format!("s{number}"), json!({ "type": "delay", "for_ms": 1, "next": format!("s{}", number + 1) }));
    }
    steps.insert(format!("s{count}"), json!({ "type": "stop" }));
    Value::Object(steps)
}

fn workflow(steps: &Value, start: &str) -> Value {
    let triggers = json!([{ "id": "by-hand", "type": "api" }]);
    json!({ "definition": { "schema": 1, "name": "t", "triggers": triggers, "start": start, "steps": steps } })
}

on_both! {
    fn wrong_input_is_named_and_changes_nothing(place: Place) {
        let sink = Sink::start();
        let server = place.start(&sink);
        let api = &server.api;
        let hook = server.hook();
        let before = ["plugins", "installations", "workflows", "runs"].map(|list| api.get(list).body);

        assert_problem(&api.upload(b"not a component"), 422, "component");
        assert_problem(&api.upload(b"\0asm\x01\0\0\0"), 422, "component");
        let webhook = std::fs::read_dir(packages()).unwrap().flatten().map(|entry| entry.path());
        let webhook = webhook.into_iter().find(|path| path.to_string_lossy().contains("bulkhead-webhook-")).unwrap();
        let mut other_bytes = std::fs::read(webhook).unwrap();
        // An empty custom section `x` behind it: a valid component with other bytes under the first party's name.
        other_bytes.extend_from_slice(&[0, 2, 1, b'x']);
        let refused = api.upload(&other_bytes);
        assert!(matches!(refused.status, 403 | 409 | 422), "{:#}", refused.body);

        let pass = |next: &str| json!({ "type": "delay", "for_ms": 1, "next": next });
        let cycle = json!({ "a": pass("b"), "b": pass("a") });
        assert_problem(&api.post("workflows", &workflow(&cycle, "a")), 422, "cycle");
        assert_problem(&api.post("workflows", &workflow(&json!({ "a": { "type": "stop" } }), "zzz")), 422, "zzz");
        assert_problem(&api.post("workflows", &workflow(&steps_of(10_000), "s0")), 422, "200");
        let mut deep = json!({ "field": "trigger.body.a", "op": "exists" });
        for _ in 0..100 {
            deep = json!({ "not": deep });
        }
        let steps = json!({ "a": { "type": "condition", "if": deep, "then": "b" }, "b": { "type": "stop" } });
        let answer = api.post("workflows", &workflow(&steps, "a"));
        assert!(matches!(answer.status, 400 | 422), "{:#}", answer.body);
        assert_problem(&api.post("workflows", &json!({ "definition": {}, "bogus": 1 })), 422, "bogus");

        assert_problem(&api.deliver(&hook, &[], &vec![b' '; 10 * 1024 * 1024]), 413, "1048576");
        assert_problem(&api.deliver(&hook, &[], b"{\"a\":"), 400, "JSON");
        let nested = format!("{}{}", "[".repeat(200), "]".repeat(200));
        assert_problem(&api.deliver(&hook, &[], nested.as_bytes()), 400, "JSON");
        assert_problem(&api.deliver(&format!("{}/hooks/nonsense", api.url), &[], b"{}"), 404, "webhook");

        assert_eq!(api.get("runs/run_00000000000000000000000000").status, 404);
        assert_eq!(api.get("runs/nonsense").status, 404);
        for wrong in ["Bearer nonsense", "Basic abc", "Bearer bh_live_x_y_z"] {
            assert_eq!(api.get_as("runs", wrong).status, 401, "{wrong}");
        }
        assert_eq!(api.get("runs?limit=100000").status, 400);
        assert_eq!(api.get("runs?colour=red").status, 400);
        assert_eq!(api.get("runs?cursor=AAAA").status, 400);

        let after = ["plugins", "installations", "workflows", "runs"].map(|list| api.get(list).body);
        assert_eq!(before, after, "nothing changed");
        assert_eq!(api.delete("installations/nonsense").status, 404);
        assert_eq!(sink.requests().len(), 0);
    }
}
