//! Workflows and runs.

use std::time::Duration;

use bulkhead_model::permission::Permission;
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
        let unnamed = server.post(&tenant, &retry, &json!({})).await;
        assert_eq!((unnamed.problem(422), unnamed.error(422).0), ("unknown-step".to_owned(), "/from_step".to_owned()), "nothing failed");
        assert_eq!(server.post(&tenant, &retry, &json!({ "from_step": "end" })).await.json(202)["run"], json!(run));
        assert_eq!(ended(&server, &tenant, &run).await["status"], "succeeded");
    }

    async fn addresses_are_for_those_who_may_activate(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let writer = server.key(&tenant, &[Permission::WorkflowsRead, Permission::WorkflowsWrite]).await;
        let body = |name: &str| json!({ "definition": stops_at_once(name) });
        let made = server.send(ask("POST", tenant.at("workflows")).key(&writer).json(&body("One"))).await;
        let view = made.json(201);
        assert_eq!(view["hooks"], json!([]));
        let path = format!("workflows/{}", view["id"].as_str().unwrap());
        let put = ask("PUT", tenant.at(&path)).key(&writer).header("if-match", made.header("etag")).json(&body("Two"));
        assert_eq!(server.send(put).await.json(200)["hooks"], json!([]));
        assert_eq!(server.send(ask("GET", tenant.at(&path)).key(&writer)).await.json(200)["hooks"], json!([]));
        assert!(server.get(&tenant, &path).await.json(200)["hooks"][0]["url"].is_string(), "the address is there");
    }

    async fn what_is_large_is_shown_where_it_is_asked_for(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let workflow = server.save(&tenant, &stops_at_once("Echo")).await;
        let runs = format!("workflows/{}/runs", workflow["id"].as_str().unwrap());
        let run = server.post(&tenant, &runs, &json!({})).await.json(202)["run"].as_str().unwrap().to_owned();
        let output = json!("o".repeat(64 * 1024)).to_string();
        server.step(&tenant, &run, "end", &output).await;
        let step = server.get(&tenant, &format!("runs/{run}")).await.json(200)["steps"][0].clone();
        assert_eq!((&step["output"], &step["output_bytes"]), (&Value::Null, &json!(64 * 1024 + 2)));
        let whole = server.get(&tenant, &format!("runs/{run}/steps/end")).await.json(200);
        assert_eq!((whole["output"].to_string(), &whole["output_bytes"]), (output, &json!(64 * 1024 + 2)));
        for step in ["other", "a%00b", "A%20B"] {
            assert_eq!(server.get(&tenant, &format!("runs/{run}/steps/{step}")).await.problem(404), "not-found", "{step}");
        }
        let versions = server.get(&tenant, &format!("workflows/{}/versions", workflow["id"].as_str().unwrap())).await.json(200);
        assert!(versions["items"][0].get("definition").is_none());
        assert_eq!(versions["items"][0]["definition_bytes"], json!(stops_at_once("Echo").to_string().len()));
    }

    async fn who_started_a_run_is_on_record_once(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let workflow = server.save(&tenant, &stops_at_once("Echo")).await;
        let runs = tenant.at(&format!("workflows/{}/runs", workflow["id"].as_str().unwrap()));
        let start = || ask("POST", &*runs).key(&tenant.key).header("idempotency-key", "once").json(&json!({}));
        let run = server.send(start()).await.json(202)["run"].as_str().unwrap().to_owned();
        server.send(start()).await.json(202);
        let log = server.get(&tenant, "audit?action=run.started").await.json(200);
        let entries = log["items"].as_array().unwrap();
        assert_eq!(entries.len(), 1, "{log}");
        assert_eq!((&entries[0]["target"], &entries[0]["detail"]["workflow"]), (&json!(run), &workflow["id"]));
        assert!(entries[0]["actor"].as_str().unwrap().starts_with("key_"));
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
