//! Webhook deliveries.

use bulkhead_app::StartLimits;
use bulkhead_test_support::wait::until_async;
use serde_json::{Value, json};

use crate::support::{Ask, PATIENCE, PUBLIC_URL, Tenant, TestServer, ask, stops_at_once};
use crate::workflows::ended;

/// An active workflow, and the path of its webhook.
async fn active(server: &TestServer, tenant: &Tenant, definition: &Value) -> (String, String) {
    let view = server.save(tenant, definition).await;
    let id = view["id"].as_str().unwrap().to_owned();
    let activated = server.send(ask("POST", tenant.at(&format!("workflows/{id}/activate"))).key(&tenant.key)).await;
    assert_eq!(activated.json(200)["active"], true);
    let url = view["hooks"][0]["url"].as_str().unwrap();
    (id, url.strip_prefix(PUBLIC_URL).unwrap().to_owned())
}

fn deliver(path: &str, body: &Value) -> Ask {
    ask("POST", path).json(body)
}

on_both! {
    async fn a_delivery_starts_a_run_and_its_repetition_does_not(server: TestServer) {
        let tenant = server.tenant("acme").await;
        server.work().await;
        let (_, path) = active(&server, &tenant, &stops_at_once("Hook")).await;
        let body = json!({ "action": "opened", "n": 1 });
        let first = server.send(deliver(&path, &body).header("x-github-delivery", "d-1")).await.json(202);
        let run = first["run"].as_str().unwrap().to_owned();
        assert!(run.starts_with("run_"), "{first}");
        for (name, id, same) in [
            ("x-github-delivery", "d-1", true), ("idempotency-key", "d-1", true), ("webhook-id", "d-1", true),
            ("x-github-delivery", "d-2", false),
        ] {
            let again = server.send(deliver(&path, &body).header(name, id)).await.json(202);
            assert_eq!(again["run"] == json!(run), same, "{name} {id}");
        }
        let (a, b) = (server.send(deliver(&path, &body)).await.json(202), server.send(deliver(&path, &body)).await.json(202));
        assert_ne!(a["run"], b["run"], "without an id each delivery is its own");
        let view = ended(&server, &tenant, &run).await;
        assert_eq!((&view["output"], &view["trigger"]), (&body, &json!("webhook")));
        assert_eq!(view["trigger_data"]["headers"]["x-github-delivery"], "d-1");
        assert!(view["trigger_data"]["headers"].get("authorization").is_none());
    }

    async fn a_form_with_a_payload_is_what_github_sends_by_default(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let (_, path) = active(&server, &tenant, &stops_at_once("Form")).await;
        let form = |body: &str| ask("POST", &*path).bytes("application/x-www-form-urlencoded", body.to_owned());
        let run = server.send(form("payload=%7B%22a%22%3A+%22b%26c%22%7D")).await.json(202);
        let view = server.get(&tenant, &format!("runs/{}", run["run"].as_str().unwrap())).await.json(200);
        assert_eq!(view["trigger_data"]["body"], json!({ "a": "b&c" }));
        assert_eq!(server.send(form("a=b")).await.problem(415), "unsupported-media-type");
        assert_eq!(server.send(form("payload=%7B")).await.problem(400), "invalid-json");
    }

    async fn deliveries_that_cannot_be_taken_say_why_and_leave_nothing(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let (id, path) = active(&server, &tenant, &stops_at_once("Hook")).await;
        let raw = |body: Vec<u8>| ask("POST", &*path).bytes("application/json", body);
        assert_eq!(server.send(raw(b"{".to_vec())).await.problem(400), "invalid-json");
        let nested = format!("{}{}", "[".repeat(200), "]".repeat(200)).into_bytes();
        assert_eq!(server.send(raw(nested)).await.problem(400), "invalid-json");
        let large = server.send(raw(vec![b' '; 10 * 1024 * 1024])).await;
        assert_eq!(large.problem(413), "too-large");
        assert!(large.text().contains("1048576"));
        assert_eq!(server.send(ask("POST", &*path).bytes("text/xml", "<a/>")).await.problem(415), "unsupported-media-type");
        let long = deliver(&path, &json!({})).header("idempotency-key", &"x".repeat(256));
        assert_eq!(server.send(long).await.problem(422), "invalid-delivery-id");

        let mut forged = path.clone();
        forged.pop();
        forged.push(if path.ends_with('0') { '1' } else { '0' });
        let unknown = server.send(deliver("/hooks/nothing", &json!({})).header("x-request-id", "same")).await;
        let wrong = server.send(deliver(&forged, &json!({})).header("x-request-id", "same")).await;
        assert_eq!((unknown.problem(404).as_str(), wrong.problem(404).as_str()), ("not-found", "not-found"));
        assert_eq!(unknown.text(), wrong.text());
        server.send(ask("POST", tenant.at(&format!("workflows/{id}/deactivate"))).key(&tenant.key)).await.json(200);
        assert_eq!(server.send(deliver(&path, &json!({}))).await.problem(409), "workflow-inactive");
        assert_eq!(server.get(&tenant, "runs").await.json(200)["items"], json!([]));
        assert_eq!(server.get(&tenant, "jobs").await.json(200)["items"], json!([]));
    }

    async fn a_delivery_that_there_is_no_room_for_is_told_when_to_come_back(server: TestServer) {
        let mut server = server;
        server.limit_starts(StartLimits { waiting_max: 2, ..StartLimits::default() });
        let (tenant, other) = (server.tenant("acme").await, server.tenant("other").await);
        let (id, path) = active(&server, &tenant, &stops_at_once("Hook")).await;
        let (_, elsewhere) = active(&server, &other, &stops_at_once("Hook")).await;
        let named = |id: &str| deliver(&path, &json!({})).header("x-github-delivery", id);
        let first = server.send(named("d-1")).await.json(202);
        server.send(deliver(&path, &json!({}))).await.json(202);
        // The second refusal may come from memory; it says the same.
        for _ in 0..2 {
            let full = server.send(deliver(&path, &json!({}))).await;
            assert_eq!(full.problem(429), "too-many-waiting");
            assert_eq!(full.header("retry-after"), "5");
            assert!(full.json(429)["detail"].as_str().unwrap().starts_with("2 runs of the organization wait already"));
            assert_eq!(server.send(named("d-2")).await.problem(429), "too-many-waiting");
            assert_eq!(server.send(named("d-1")).await.json(202), first, "what was accepted is answered for");
        }
        let by_hand = server.post(&tenant, &format!("workflows/{id}/runs"), &json!({})).await;
        assert_eq!((by_hand.problem(429).as_str(), by_hand.header("retry-after")), ("too-many-waiting", "5"));
        server.send(deliver(&elsewhere, &json!({}))).await.json(202);
        assert_eq!(server.get(&tenant, "jobs").await.json(200)["items"].as_array().unwrap().len(), 2);
        server.work().await;
        let taken = until_async(PATIENCE, async || server.send(deliver(&path, &json!({}))).await.status == 202);
        assert!(taken.await);

        server.limit_starts(StartLimits { per_minute_max: 6, ..StartLimits::default() });
        server.send(deliver(&path, &json!({}))).await.json(202);
        let fast = server.send(deliver(&path, &json!({}))).await;
        assert_eq!(fast.problem(429), "runs-per-minute");
        assert!((1..=10).contains(&fast.header("retry-after").parse::<u32>().unwrap()));
        assert_eq!(server.send(deliver("/hooks/nothing", &json!({}))).await.problem(404), "not-found");
        // One body always fits.
        server.limit_starts(StartLimits { body_bytes_max: 1, at_once_max: 1, ..StartLimits::default() });
        server.send(deliver(&path, &json!({}))).await.json(202);
    }

    async fn when_no_condition_holds_no_run_begins_and_the_reason_is_told(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let mut definition = stops_at_once("Picky");
        definition["triggers"][0]["when"] = json!({ "field": "trigger.body.action", "op": "eq", "value": "opened" });
        let (_, path) = active(&server, &tenant, &definition).await;
        let passed = server.send(deliver(&path, &json!({ "action": "closed" }))).await.json(202);
        assert_eq!(passed["run"], Value::Null);
        assert!(passed["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{passed}");
        assert!(server.send(deliver(&path, &json!({ "action": "opened" }))).await.json(202)["run"].is_string());
    }

    async fn a_rotated_address_lives_on_for_its_grace_and_no_longer(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let (id, old) = active(&server, &tenant, &stops_at_once("Rotates")).await;
        let rotate = format!("workflows/{id}/hooks/hook/rotate");
        let fresh = server.post(&tenant, &rotate, &json!({ "grace_s": 60 })).await.json(200);
        let new = fresh["url"].as_str().unwrap().strip_prefix(PUBLIC_URL).unwrap().to_owned();
        assert_ne!(new, old);
        for path in [&old, &new] {
            server.send(deliver(path, &json!({}))).await.json(202);
        }
        server.ambient.advance(std::time::Duration::from_mins(1));
        assert_eq!(server.send(deliver(&old, &json!({}))).await.problem(404), "not-found");
        server.send(deliver(&new, &json!({}))).await.json(202);
        assert_eq!(server.post(&tenant, &rotate, &json!({ "grace_s": 2_592_001 })).await.problem(422), "invalid-grace");
        assert_eq!(server.post(&tenant, &format!("workflows/{id}/hooks/hand/rotate"), &json!({})).await.problem(404), "not-found");
        assert_eq!(server.post(&tenant, &format!("workflows/{id}/hooks/a%00b/rotate"), &json!({})).await.problem(404), "not-found");
        assert_eq!(server.get(&tenant, &format!("workflows/{id}")).await.json(200)["hooks"], json!([fresh]));
    }

    async fn addresses_are_shown_to_those_who_may_activate(server: TestServer) {
        use bulkhead_model::permission::Permission;
        let tenant = server.tenant("acme").await;
        let (id, path) = active(&server, &tenant, &stops_at_once("Hook")).await;
        let reader = server.key(&tenant, &[Permission::WorkflowsRead]).await;
        let shown = server.send(ask("GET", tenant.at(&format!("workflows/{id}"))).key(&reader)).await;
        assert_eq!(shown.json(200)["hooks"], json!([]));
        assert!(!shown.text().contains(&path));
    }

    async fn genuine_github_deliveries_are_taken(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let (_, path) = active(&server, &tenant, &stops_at_once("GitHub")).await;
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/github-webhooks.json");
        let deliveries: Vec<Value> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert!(deliveries.len() > 50);
        for (at, delivery) in deliveries.iter().enumerate() {
            let event = delivery["event"].as_str().unwrap();
            let ask = deliver(&path, &delivery["payload"])
                .header("x-github-event", event)
                .header("x-github-delivery", &format!("delivery-{at}"));
            let answer = server.send(ask).await;
            assert!(answer.json(202)["run"].is_string(), "{event}: {}", answer.text());
        }
    }
}
