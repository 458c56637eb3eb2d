//! Workflows and runs.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{PATIENCE, PUBLIC_URL, Tenant, TestServer, ask, stops_at_once};

/// The run once it has ended.
pub(crate) async fn ended(server: &TestServer, tenant: &Tenant, run: &str) -> Value {
    let wait = async {
        loop {
            let view = server.get(tenant, &format!("runs/{run}")).await.json(200);
            if ["succeeded", "failed", "cancelled"].iter().any(|status| view["status"] == *status) {
                return view;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the run ends")
}

on_both! {
    async fn a_workflow_is_saved_in_versions_and_changed_with_its_tag(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let first = server.post(&tenant, "workflows", &json!({ "definition": stops_at_once("One"), "summary": "first" })).await;
        let view = first.json(201);
        let path = format!("workflows/{}", view["id"].as_str().unwrap());
        assert_eq!((&view["name"], &view["active"], &view["version"]), (&json!("One"), &json!(false), &json!(1)));
        assert_eq!(view["definition"], stops_at_once("One"));
        assert!(view["hooks"][0]["url"].as_str().unwrap().starts_with(&format!("{PUBLIC_URL}/hooks/")));
        assert_eq!(server.get(&tenant, &path).await.header("etag"), first.header("etag"));

        let put = |tag: Option<&str>, name: &str| {
            let ask = ask("PUT", tenant.at(&path)).key(&tenant.key).json(&json!({ "definition": stops_at_once(name) }));
            match tag {
                Some(tag) => ask.header("if-match", tag),
                None => ask,
            }
        };
        assert_eq!(server.send(put(None, "Two")).await.problem(428), "if-match-required");
        let second = server.send(put(Some(first.header("etag")), "Two")).await;
        assert_eq!((&second.json(200)["name"], &second.json(200)["version"]), (&json!("Two"), &json!(2)));
        assert_eq!(second.json(200)["hooks"], view["hooks"], "addresses stay");
        assert_eq!(server.send(put(Some(first.header("etag")), "Three")).await.problem(412), "stale-version");

        let page = server.get(&tenant, &format!("{path}/versions?limit=1")).await.json(200);
        assert_eq!(page["items"][0]["version"], 2);
        let cursor = page["next_cursor"].as_str().unwrap();
        let rest = server.get(&tenant, &format!("{path}/versions?limit=1&cursor={cursor}")).await.json(200);
        assert_eq!((&rest["items"][0]["version"], &rest["items"][0]["summary"], &rest["next_cursor"]), (&json!(1), &json!("first"), &Value::Null));
        assert_eq!(server.get(&tenant, &format!("{path}/versions/1")).await.json(200)["definition"]["name"], "One");
        for version in ["0", "3", "01", "-1", "x", "9999999999999999999999"] {
            assert_eq!(server.get(&tenant, &format!("{path}/versions/{version}")).await.problem(404), "not-found", "{version}");
        }
        assert_eq!(server.post(&tenant, "workflows", &json!({ "definition": stops_at_once("Two") })).await.problem(409), "workflow-exists");
    }

    async fn a_definition_is_kept_byte_for_byte(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let text = r#"{ "schema": 1,  "name": "Bytes", "triggers": [{"id":"api","type":"api"}], "start": "end",
            "steps": { "end": { "type": "stop", "output": {"n": 12345678901234567890.50, "z": 1, "a": 2} } } }"#;
        let body = format!("{{\"definition\": {text}}}");
        let answer = server.send(ask("POST", tenant.at("workflows")).key(&tenant.key).bytes("application/json", body)).await;
        assert_eq!(answer.status.as_u16(), 201, "{}", answer.text());
        assert!(answer.text().contains(text), "{}", answer.text());
    }

    async fn every_mistake_of_a_definition_is_told(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let mut definition = stops_at_once("Wrong");
        definition["start"] = json!("nowhere");
        definition["steps"]["a"] = json!({ "type": "set", "vars": {}, "next": "b" });
        definition["steps"]["b"] = json!({ "type": "set", "vars": {}, "next": "a" });
        let body = json!({ "definition": definition });
        for path in ["workflows", "workflows/validate"] {
            let answer = server.post(&tenant, path, &body).await;
            assert_eq!(answer.problem(422), "invalid-workflow");
            let problems = answer.json(422)["errors"].as_array().unwrap().clone();
            assert!(problems.len() >= 2, "{problems:?}");
            assert!(problems.iter().all(|problem| problem["path"].as_str().unwrap().starts_with("/definition")), "{problems:?}");
        }
        let steps: serde_json::Map<String, Value> =
            (0..10_000).map(|at| (format!("s{at}"), json!({ "type": "stop" }))).collect();
        let mut many = stops_at_once("Many");
        many["steps"] = Value::Object(steps);
        assert_eq!(server.post(&tenant, "workflows", &json!({ "definition": many })).await.problem(422), "invalid-workflow");
        let mut deep = json!({ "field": "trigger.body.x", "op": "eq", "value": 1 });
        for _ in 0..100 {
            deep = json!({ "not": deep });
        }
        let mut conditions = stops_at_once("Deep");
        conditions["triggers"][0]["when"] = deep;
        let answer = server.post(&tenant, "workflows", &json!({ "definition": conditions })).await;
        assert!([400, 422].contains(&answer.status.as_u16()), "{}", answer.text());
        for (body, status, slug) in [
            (json!({ "definition": "text" }), 422, "invalid-workflow"),
            (json!({ "definition": stops_at_once("N\u{0}UL") }), 422, "invalid-workflow"),
            (json!({}), 422, "invalid-body"),
            (json!({ "definition": stops_at_once("X"), "summary": "x".repeat(501) }), 422, "invalid-summary"),
            (json!({ "definition": stops_at_once("X"), "summary": "a\u{0}b" }), 422, "invalid-body"),
        ] {
            let answer = server.post(&tenant, "workflows", &body).await;
            assert_eq!(answer.status.as_u16(), status, "{body}: {}", answer.text());
            assert_eq!(answer.problem(status), slug, "{body}");
        }
        assert_eq!(server.get(&tenant, "workflows").await.json(200)["items"], json!([]), "nothing was saved");
        let fine = server.post(&tenant, "workflows/validate", &json!({ "definition": stops_at_once("Fine") })).await;
        assert!(fine.json(200)["notes"].is_array());
    }

    async fn a_run_is_started_watched_and_begun_again(server: TestServer) {
        let tenant = server.tenant("acme").await;
        server.work().await;
        let workflow = server.save(&tenant, &stops_at_once("Echo")).await;
        let runs = format!("workflows/{}/runs", workflow["id"].as_str().unwrap());
        let start = || ask("POST", tenant.at(&runs)).key(&tenant.key).header("idempotency-key", "once");
        let started = server.send(start().json(&json!({ "input": { "a": [1] } }))).await;
        let run = started.json(202)["run"].as_str().unwrap().to_owned();
        assert!(started.header("location").ends_with(&run));
        assert_eq!(server.send(start().json(&json!({ "input": "other" }))).await.json(202)["run"], json!(run));

        let view = ended(&server, &tenant, &run).await;
        assert_eq!((&view["status"], &view["output"], &view["error"]), (&json!("succeeded"), &json!({ "a": [1] }), &Value::Null), "{view}");
        assert_eq!(view["workflow"], workflow["id"]);
        let step = &view["steps"][0];
        assert_eq!((&step["id"], &step["status"]), (&json!("end"), &json!("succeeded")), "{view}");
        for field in ["outcome", "attempts", "usage", "output", "error"] {
            assert!(step.get(field).is_some(), "{field}");
        }
        let list = server.get(&tenant, &format!("runs?status=succeeded&workflow={}", workflow["id"].as_str().unwrap())).await;
        assert_eq!(list.json(200)["items"][0]["id"], json!(run));
        assert_eq!(server.get(&tenant, "runs?status=failed").await.json(200)["items"], json!([]));

        let events = server.get(&tenant, &format!("runs/{run}/events?limit=1")).await.json(200);
        assert_eq!((&events["items"][0]["seq"], &events["items"][0]["kind"]), (&json!(1), &json!("queued")));
        let cursor = events["next_cursor"].as_str().unwrap();
        let later = server.get(&tenant, &format!("runs/{run}/events?cursor={cursor}")).await.json(200);
        assert_eq!(later["items"][0]["seq"], 2);

        assert_eq!(server.send(ask("POST", tenant.at(&format!("runs/{run}/cancel"))).key(&tenant.key)).await.problem(409), "run-finished");
        let retry = format!("runs/{run}/retry");
        assert_eq!(server.post(&tenant, &retry, &json!({ "from_step": "nowhere" })).await.problem(422), "unknown-step");
        assert_eq!(server.post(&tenant, &retry, &json!({ "step": "end" })).await.problem(422), "invalid-body");
        assert_eq!(server.post(&tenant, &retry, &json!({ "from_step": "end" })).await.json(202)["run"], json!(run));
        assert_eq!(ended(&server, &tenant, &run).await["status"], "succeeded");
    }

    async fn a_waiting_run_is_cancelled(server: TestServer) {
        let tenant = server.tenant("acme").await;
        server.work().await;
        let mut definition = stops_at_once("Waits");
        definition["start"] = json!("wait");
        definition["steps"]["wait"] = json!({ "type": "delay", "for": "1h", "next": "end" });
        let workflow = server.save(&tenant, &definition).await;
        let started = server.post(&tenant, &format!("workflows/{}/runs", workflow["id"].as_str().unwrap()), &json!({})).await;
        let run = started.json(202)["run"].as_str().unwrap().to_owned();
        let retry = server.post(&tenant, &format!("runs/{run}/retry"), &json!({})).await;
        assert_eq!(retry.problem(409), "run-not-finished");
        let cancel = || ask("POST", tenant.at(&format!("runs/{run}/cancel"))).key(&tenant.key);
        let body = server.send(cancel().json(&json!({ "why": "x" }))).await;
        assert_eq!(body.problem(422), "invalid-body");
        assert_eq!(server.send(cancel()).await.json(202)["run"], json!(run));
        assert_eq!(ended(&server, &tenant, &run).await["status"], "cancelled");
        let log = server.get(&tenant, &format!("audit?action=run.cancelled&target={run}")).await.json(200);
        assert_eq!(log["items"].as_array().unwrap().len(), 1);
    }
}
