//! How long what has ended is kept, over HTTP.

use std::time::Duration;

use bulkhead_test_support::wait::until_async;
use serde_json::{Value, json};

use crate::support::{Answer, PATIENCE, Tenant, TestServer, ask, stops_at_once};

async fn put(server: &TestServer, tenant: &Tenant, seen: &str, policy: &Value) -> Answer {
    server.send(ask("PUT", tenant.at("retention")).key(&tenant.key).header("if-match", seen).json(policy)).await
}

fn policy() -> Value {
    json!({ "succeeded_days": 30, "failed_days": 90, "dead_letter_days": 180, "calls_days": 30, "events_days": 30 })
}

on_both! {
    async fn a_policy_is_shown_tried_and_replaced(server: TestServer) {
        let tenant = server.tenant("acme").await;
        server.work().await;
        let answer = server.get(&tenant, "retention").await;
        let shown = answer.json(200);
        assert_eq!((&shown["policy"], &shown["is_default"]), (&policy(), &json!(true)));
        assert_eq!((&shown["idempotency_key_days"], &shown["last_pass"]), (&json!(7), &Value::Null));
        let workflow = server.save(&tenant, &stops_at_once("It")).await["id"].as_str().unwrap().to_owned();
        let run = server.post(&tenant, &format!("workflows/{workflow}/runs"), &json!({})).await.json(202);
        let path = format!("runs/{}", run["run"].as_str().unwrap());
        let ended = async || server.get(&tenant, &path).await.json(200)["status"] == "succeeded";
        assert!(until_async(PATIENCE, ended).await);

        server.ambient.advance(Duration::from_hours(5 * 24));
        let mut short = policy();
        short["succeeded_days"] = json!(5);
        assert_eq!(server.post(&tenant, "retention/preview", &short).await.json(200)["succeeded_runs"], 0);
        server.ambient.advance(Duration::from_secs(1));
        let preview = server.post(&tenant, "retention/preview", &short).await.json(200);
        assert_eq!((&preview["succeeded_runs"], &preview["is_at_least"]), (&json!(1), &json!(false)));
        assert!(ended().await, "a preview removes nothing");

        let replaced = put(&server, &tenant, answer.header("etag"), &short).await;
        assert_eq!(replaced.json(200)["policy"], short);
        assert_ne!(replaced.header("etag"), answer.header("etag"));
        let gone = async || server.get(&tenant, &path).await.status.as_u16() == 404;
        assert!(until_async(PATIENCE, gone).await);
        let done = async || server.get(&tenant, "retention").await.json(200)["last_pass"]["ended_at"].is_string();
        assert!(until_async(PATIENCE, done).await);
        let pass = &server.get(&tenant, "retention").await.json(200)["last_pass"];
        assert_eq!((&pass["runs"], &pass["evicted"], &pass["bytes"]), (&json!(1), &json!(0), &preview["bytes"]));
        assert_eq!(put(&server, &tenant, answer.header("etag"), &short).await.problem(412), "stale-version");
    }

    async fn a_policy_out_of_its_bounds_is_refused(server: TestServer) {
        let tenant = server.tenant("acme").await;
        for (field, days) in [("succeeded_days", 0), ("failed_days", 3_651), ("dead_letter_days", 0)] {
            let mut wrong = policy();
            wrong[field] = json!(days);
            let answer = put(&server, &tenant, "\"v0\"", &wrong).await;
            assert_eq!(answer.problem(422), "invalid-retention");
            assert_eq!(answer.error(422), (format!("/{field}"), "out-of-range".to_owned()));
            assert_eq!(server.post(&tenant, "retention/preview", &wrong).await.problem(422), "invalid-retention");
        }
        let mut wrong = policy();
        wrong["events_days"] = json!(-1);
        assert_eq!(put(&server, &tenant, "\"v0\"", &wrong).await.problem(422), "invalid-body");
        wrong["events_days"] = json!(1);
        wrong["forever"] = json!(true);
        assert_eq!(put(&server, &tenant, "\"v0\"", &wrong).await.problem(422), "invalid-body");
        let bare = ask("PUT", tenant.at("retention")).key(&tenant.key).json(&policy());
        assert_eq!(server.send(bare).await.problem(428), "if-match-required");
        assert_eq!(server.get(&tenant, "retention").await.json(200)["is_default"], true);
    }
}
