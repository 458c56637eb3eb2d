//! The queue monitor over HTTP, and why a run stands where it stands.

use bulkhead_model::permission::Permission;
use serde_json::{Value, json};

use crate::support::{Tenant, TestServer, ask, stops_at_once};
use crate::workflows::ended;

async fn start(server: &TestServer, tenant: &Tenant, workflow: &Value) -> String {
    let path = format!("workflows/{}/runs", workflow["id"].as_str().unwrap());
    server.post(tenant, &path, &json!({})).await.json(202)["run"].as_str().unwrap().to_owned()
}

fn state<'a>(lane: &'a Value, name: &str) -> &'a Value {
    lane["states"].as_array().unwrap().iter().find(|state| state["state"] == name).unwrap()
}

fn codes(explanation: &Value) -> Vec<&str> {
    explanation["reasons"].as_array().unwrap().iter().map(|reason| reason["code"].as_str().unwrap()).collect()
}

on_both! {
    async fn the_queue_and_its_runs_are_explained(server: TestServer) {
        let (tenant, other) = (server.tenant("acme").await, server.tenant("other").await);
        let workflow = server.save(&tenant, &stops_at_once("One")).await;
        let first = start(&server, &tenant, &workflow).await;
        server.ambient.advance(std::time::Duration::from_secs(5));
        let second = start(&server, &tenant, &workflow).await;

        // Nobody works yet.
        let queue = server.get(&tenant, "queue").await.json(200);
        let lanes: Vec<&str> = queue["lanes"].as_array().unwrap().iter().map(|lane| lane["lane"].as_str().unwrap()).collect();
        assert_eq!(lanes, ["system", "interactive", "bulk"]);
        let lane = &queue["lanes"][1];
        let ready = json!({ "state": "ready", "count": 2, "more": false, "kinds": [{ "kind": "advance_run", "count": 2 }] });
        assert_eq!(state(lane, "ready"), &ready);
        for name in ["leased", "blocked", "paused", "future", "dead"] {
            assert_eq!(state(lane, name), &json!({ "state": name, "count": 0, "more": false, "kinds": [] }));
        }
        assert_eq!((&lane["lag_ms"], &lane["oldest_ready_at"]), (&json!(5000), &json!("2026-11-21T08:00:00.000000Z")));
        assert_eq!((&lane["next_due_at"], &lane["holders"], &queue["blocked_groups"]), (&Value::Null, &json!([]), &json!([])));
        let none = server.get(&other, "queue").await.json(200);
        assert_eq!((&state(&none["lanes"][1], "ready")["count"], &none["lanes"][1]["lag_ms"]), (&json!(0), &json!(0)));

        let explained = server.get(&tenant, &format!("runs/{first}/explain")).await.json(200);
        assert_eq!((codes(&explained), &explained["status"]), (vec!["no-node"], &json!("queued")));
        assert!(explained["reasons"][0]["next"].as_str().unwrap().contains("bulkhead serve"));
        let reader = server.key(&tenant, &[Permission::JobsRead]).await;
        let refused = server.send(ask("GET", tenant.at(&format!("runs/{first}/explain"))).key(&reader)).await;
        assert_eq!(refused.problem(403), "forbidden");
        assert_eq!(server.get(&other, &format!("runs/{first}/explain")).await.problem(404), "not-found");

        server.work().await;
        for run in [&first, &second] {
            assert_eq!(ended(&server, &tenant, run).await["status"], "succeeded");
        }
        let explained = server.get(&tenant, &format!("runs/{second}/explain")).await.json(200);
        assert_eq!((codes(&explained), &explained["status"]), (vec!["succeeded"], &json!("succeeded")));
    }

    async fn a_run_that_waits_or_failed_says_why(server: TestServer) {
        let tenant = server.tenant("acme").await;
        server.work().await;
        let definition = json!({
            "schema": 1, "name": "Waits", "triggers": [{ "id": "hand", "type": "manual" }], "start": "wait",
            "steps": { "wait": { "type": "delay", "for": "1h" } },
        });
        let workflow = server.save(&tenant, &definition).await;
        let run = start(&server, &tenant, &workflow).await;
        let explain = async |run: &str| server.get(&tenant, &format!("runs/{run}/explain")).await.json(200);
        let waits = bulkhead_test_support::wait::until_async(crate::support::PATIENCE, async || explain(&run).await["status"] == "waiting");
        assert!(waits.await);
        let explained = explain(&run).await;
        assert_eq!(codes(&explained), ["not-due"]);
        assert!(explained["reasons"][0]["message"].as_str().unwrap().contains("2026-11-21T09:00:00"), "{explained}");
        let queue = server.get(&tenant, "queue").await.json(200);
        let lane = &queue["lanes"][1];
        assert_eq!((&state(lane, "future")["count"], &lane["next_due_at"]), (&json!(1), &json!("2026-11-21T09:00:00.000000Z")));

        let definition = json!({
            "schema": 1, "name": "Fails", "triggers": [{ "id": "hand", "type": "manual" }], "start": "send",
            "steps": { "send": { "type": "action", "use": "acme/none#it", "with": {} } },
        });
        let workflow = server.save(&tenant, &definition).await;
        let run = start(&server, &tenant, &workflow).await;
        assert_eq!(ended(&server, &tenant, &run).await["status"], "failed");
        let explained = explain(&run).await;
        assert_eq!(codes(&explained), ["dead-letter"]);
        let letter = server.get(&tenant, &format!("runs/{run}")).await.json(200)["dead_letter"]["id"].clone();
        assert!(explained["reasons"][0]["message"].as_str().unwrap().contains(letter.as_str().unwrap()), "{explained}");
    }
}
