//! Dead letters over HTTP.

use bulkhead_model::permission::Permission;
use serde_json::{Value, json};

use crate::guests::acme_echo;
use crate::support::{PATIENCE, Tenant, TestServer, ask};
use crate::workflows::ended;

/// A workflow whose one step fails until its plugin is installed.
fn fragile(name: &str) -> Value {
    json!({
        "schema": 1, "name": name, "triggers": [{ "id": "hand", "type": "manual" }], "start": "send",
        "steps": { "send": { "type": "action", "use": "acme/echo#it", "with": { "seen": 1 } } },
    })
}

async fn failed(server: &TestServer, tenant: &Tenant, workflow: &Value) -> String {
    // Ids of one millisecond have no order.
    server.ambient.advance(std::time::Duration::from_millis(1));
    let path = format!("workflows/{}/runs", workflow["id"].as_str().unwrap());
    let run = server.post(tenant, &path, &json!({})).await.json(202)["run"].as_str().unwrap().to_owned();
    assert_eq!(ended(server, tenant, &run).await["status"], "failed");
    run
}

async fn install_echo(server: &TestServer, tenant: &Tenant) {
    server.upload(tenant, acme_echo()).await;
    let body = json!({ "plugin": "acme/echo", "version": "1.0.0" });
    server.post(tenant, "installations", &body).await.json(201);
}

on_both! {
    async fn the_desk_groups_resumes_and_discards(server: TestServer) {
        let tenant = server.tenant("acme").await;
        server.work().await;
        let workflow = server.save(&tenant, &fragile("One")).await;
        let (first, second) = (failed(&server, &tenant, &workflow).await, failed(&server, &tenant, &workflow).await);

        let faults = server.get(&tenant, "faults").await.json(200);
        let fault = &faults["items"][0];
        assert_eq!((faults["items"].as_array().unwrap().len(), &fault["count"], &fault["more"]), (1, &json!(2), &json!(false)));
        assert_eq!((&fault["kind"], &fault["step"], &fault["workflows"]), (&json!("run"), &json!("send"), &json!([workflow["id"]])));
        let fingerprint = fault["fingerprint"].as_str().unwrap();
        assert_eq!(fingerprint.len(), 16);

        let path = format!("dead-letters?fingerprint={fingerprint}&kind=run&workflow={}&limit=1", workflow["id"].as_str().unwrap());
        let page = server.get(&tenant, &path).await.json(200);
        let cursor = page["next_cursor"].as_str().unwrap();
        assert_eq!(page["items"][0]["run"], second, "newest first");
        let rest = server.get(&tenant, &format!("{path}&cursor={cursor}")).await.json(200);
        assert_eq!((&rest["items"][0]["run"], &rest["next_cursor"]), (&json!(first), &Value::Null));
        let view = rest["items"][0].clone();
        let letter = format!("dead-letters/{}", view["id"].as_str().unwrap());
        assert_eq!(server.get(&tenant, &letter).await.json(200), view);
        let shown = server.get(&tenant, &format!("runs/{first}")).await.json(200);
        assert_eq!(shown["dead_letter"], view, "a failed run says so");
        for (query, slug) in [("fingerprint=x", "invalid-query"), ("since=yesterday", "invalid-query"), ("colour=red", "invalid-query")] {
            assert_eq!(server.get(&tenant, &format!("dead-letters?{query}")).await.problem(400), slug, "{query}");
        }
        for (query, count) in [("since=2026-11-21T08:00:00Z", 2), ("until=2026-11-21T08:00:00Z", 0), ("kind=fire_schedule", 0)] {
            let found = server.get(&tenant, &format!("dead-letters?{query}")).await.json(200);
            assert_eq!(found["items"].as_array().unwrap().len(), count, "{query}");
        }

        let resume = format!("{letter}/resume");
        assert_eq!(server.post(&tenant, &resume, &json!({ "from_step": "nowhere" })).await.problem(422), "unknown-step");
        assert_eq!(server.post(&tenant, &format!("{letter}/discard"), &json!({ "reason": "" })).await.problem(422), "invalid-reason");
        let reader = server.key(&tenant, &[Permission::RunsRead]).await;
        let refused = server.send(ask("POST", tenant.at(&resume)).key(&reader).json(&json!({}))).await;
        assert_eq!(refused.problem(403), "forbidden");
        install_echo(&server, &tenant).await;
        assert_eq!(server.post(&tenant, &resume, &json!({})).await.status.as_u16(), 204);
        assert_eq!(ended(&server, &tenant, &first).await["status"], "succeeded");
        assert_eq!(server.post(&tenant, &resume, &json!({})).await.problem(404), "not-found", "it is decided once");
        assert_eq!(server.get(&tenant, &format!("runs/{first}")).await.json(200)["dead_letter"], Value::Null);

        let left = server.get(&tenant, "dead-letters").await.json(200);
        let letter = format!("dead-letters/{}", left["items"][0]["id"].as_str().unwrap());
        let discard = json!({ "reason": "the customer left" });
        assert_eq!(server.post(&tenant, &format!("{letter}/discard"), &discard).await.status.as_u16(), 204);
        assert_eq!(server.get(&tenant, &letter).await.problem(404), "not-found");
        assert_eq!(server.get(&tenant, "faults").await.json(200)["items"], json!([]));
        let audit = server.get(&tenant, "audit?action=dead_letter.discarded").await.json(200);
        assert_eq!(audit["items"][0]["detail"]["reason"], "the customer left");
    }

    async fn only_so_many_tasks_go_on_at_once(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let body = json!({ "action": "resume", "kind": "run" });
        for _ in 0..10 {
            server.post(&tenant, "dead-letter-tasks", &body).await.json(202);
        }
        assert_eq!(server.post(&tenant, "dead-letter-tasks", &body).await.problem(409), "too-many-tasks");
    }

    async fn many_are_resumed_by_a_task(server: TestServer) {
        let tenant = server.tenant("acme").await;
        server.work().await;
        let workflow = server.save(&tenant, &fragile("One")).await;
        let mut runs = Vec::new();
        for _ in 0..3 {
            runs.push(failed(&server, &tenant, &workflow).await);
        }
        for (body, slug) in [
            (json!({ "action": "resume" }), "invalid-selection"),
            (json!({ "action": "resume", "kind": "run", "reason": "x" }), "invalid-selection"),
            (json!({ "action": "discard", "kind": "run" }), "invalid-reason"),
            (json!({ "action": "forget", "kind": "run" }), "invalid-body"),
            (json!({ "action": "resume", "ids": ["run_01h455vb4pex5vsknk084sn02q"] }), "invalid-body"),
        ] {
            assert_eq!(server.post(&tenant, "dead-letter-tasks", &body).await.problem(422), slug, "{body}");
        }
        install_echo(&server, &tenant).await;
        let fingerprint = server.get(&tenant, "faults").await.json(200)["items"][0]["fingerprint"].clone();
        let body = json!({ "action": "resume", "fingerprint": fingerprint });
        let accepted = server.post(&tenant, "dead-letter-tasks", &body).await;
        let view = accepted.json(202);
        assert!(accepted.header("location").ends_with(view["id"].as_str().unwrap()));
        assert_eq!((&view["action"], &view["selection"]["fingerprint"]), (&json!("resume"), &fingerprint));
        let path = format!("dead-letter-tasks/{}", view["id"].as_str().unwrap());
        let wait = async {
            loop {
                let task = server.get(&tenant, &path).await.json(200);
                if task["state"] != "running" {
                    return task;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let task = tokio::time::timeout(PATIENCE, wait).await.expect("the task ends");
        assert_eq!((&task["state"], &task["seen"], &task["done"], &task["skipped"]), (&json!("done"), &json!(3), &json!(3), &json!(0)));
        assert!(task["finished_at"].is_string());
        for run in &runs {
            assert_eq!(ended(&server, &tenant, run).await["status"], "succeeded");
        }
        let listed = server.get(&tenant, "dead-letter-tasks").await.json(200);
        assert_eq!(listed["items"], json!([task]));
        let stop = ask("POST", tenant.at(&format!("{path}/stop"))).key(&tenant.key);
        assert_eq!(server.send(stop).await.problem(409), "task-finished");
    }
}
