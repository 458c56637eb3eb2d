//! A workflow whose runs wait because so many before them failed alike.

use bulkhead_test_support::wait::until_async;
use serde_json::json;

use crate::support::{PATIENCE, ask};

on_both! {
    async fn an_open_breaker_is_shown_and_closed(server: TestServer) {
        let (tenant, other) = (server.tenant("acme").await, server.tenant("other").await);
        let definition = json!({
            "schema": 1, "name": "Poisoned", "triggers": [{ "id": "api", "type": "api" }], "start": "call",
            "steps": { "call": { "type": "action", "use": "acme/missing#it", "with": {} } },
        });
        let saved = server.save(&tenant, &definition).await;
        assert_eq!(saved["breakers"], json!([]));
        let id = saved["id"].as_str().unwrap().to_owned();
        server.work().await;
        for _ in 0..20 {
            server.post(&tenant, &format!("workflows/{id}/runs"), &json!({})).await.json(202);
        }
        let shown = async || server.get(&tenant, &format!("workflows/{id}")).await.json(200)["breakers"].clone();
        assert!(until_async(PATIENCE, async || shown().await != json!([])).await);
        let breaker = shown().await[0].clone();
        assert_eq!((&breaker["state"], &breaker["version"], &breaker["failures"]), (&json!("open"), &json!(1), &json!(20)));
        assert_eq!((&breaker["probes"], &breaker["probe_run"]), (&json!(0), &json!(null)));
        assert_eq!(breaker["error"]["code"], "unknown-installation");
        assert_eq!((&breaker["opened_at"], &breaker["next_probe_at"]), (&json!("2026-11-21T08:00:00.000000Z"), &json!("2026-11-21T08:00:30.000000Z")));
        server.post(&tenant, &format!("workflows/{id}/runs"), &json!({})).await.json(202);
        let waiting = async || server.get(&tenant, "jobs?state=paused").await.json(200)["items"].as_array().unwrap().len();
        assert!(until_async(PATIENCE, async || waiting().await == 1).await);

        let close = format!("workflows/{id}/breaker/close");
        let foreign = server.send(ask("POST", other.at(&close)).key(&other.key)).await;
        assert_eq!(foreign.problem(404), "not-found");
        let answer = server.send(ask("POST", tenant.at(&close)).key(&tenant.key)).await;
        assert_eq!(answer.json(200)["id"], json!(id));
        assert_eq!(answer.header("etag"), "\"v1\"");
        assert_eq!(shown().await, json!([]));
        assert!(until_async(PATIENCE, async || waiting().await == 0).await);
        let told = server.get(&tenant, "audit?action=workflow.breaker_closed").await.json(200);
        assert_eq!(told["items"].as_array().unwrap().len(), 1, "{told}");
    }
}
