//! The audit log over HTTP: narrowed, taken out in each form, forgotten.

use bulkhead_audit::key::VerifierKey;
use bulkhead_audit::verify::{Expectation, Report, Verifier};
use bulkhead_model::permission::Permission;
use serde_json::{Value, json};

use crate::support::{Answer, Tenant, TestServer, ask};

fn verify(bundle: &str, key: &str) -> Report {
    let keys: Vec<VerifierKey> = vec![key.parse().unwrap()];
    let mut verifier = Verifier::new(Expectation { keys, end: true, ..Expectation::default() });
    bundle.lines().for_each(|line| verifier.line(line));
    verifier.finish()
}

async fn newest_key(server: &TestServer, tenant: &Tenant) -> String {
    let keys = server.get(tenant, "audit/keys").await.json(200)["keys"].clone();
    keys.as_array().unwrap().last().unwrap()["verifier_key"].as_str().unwrap().to_owned()
}

async fn put(server: &TestServer, tenant: &Tenant, seen: &str, policy: &Value) -> Answer {
    server.send(ask("PUT", tenant.at("audit/retention")).key(&tenant.key).header("if-match", seen).json(policy)).await
}

on_both! {
    async fn entries_are_narrowed_and_taken_out_with_their_proofs(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let made = server.post(&tenant, "api-keys", &json!({ "name": "=1+1", "permissions": ["org.read"] })).await.json(201);
        let target = made["api_key"]["id"].as_str().unwrap_or_else(|| made["id"].as_str().unwrap());
        let found = async |query: &str| {
            let items = server.get(&tenant, &format!("audit?{query}")).await.json(200)["items"].clone();
            items.as_array().unwrap().iter().map(|item| item["action"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(found(&format!("target={target}")).await, ["api_key.created"]);
        assert_eq!(found(&format!("category=api&target={target}&severity=notice")).await, ["api_key.created"]);
        assert_eq!(found(&format!("category=security&target={target}")).await, Vec::<String>::new());
        assert!(found("category=configuration").await.contains(&"org.created".to_owned()));
        assert_eq!(found("from=2100-01-01T00:00:00Z").await, Vec::<String>::new());
        assert!(!found("to=2100-01-01T00:00:00Z&actor=system:admin").await.is_empty());
        for wrong in ["category=none", "severity=loud", "from=today", "to=", "colour=red", "actor=a%0ab"] {
            assert_eq!(server.get(&tenant, &format!("audit?{wrong}")).await.problem(400), "invalid-query", "{wrong}");
        }

        let sheet = server.get(&tenant, &format!("audit/sheet?target={target}")).await;
        assert_eq!(sheet.status.as_u16(), 200);
        assert!(sheet.header("content-type").starts_with("text/csv"), "{}", sheet.header("content-type"));
        assert_eq!(sheet.header("content-disposition"), "attachment; filename=\"audit.csv\"");
        assert_eq!(sheet.text().lines().count(), 2, "{}", sheet.text());
        let proof = server.get(&tenant, "audit/entries/1/proof").await;
        assert_eq!(proof.status.as_u16(), 200);
        let key = newest_key(&server, &tenant).await;
        let report = verify(&proof.text(), &key);
        assert!(report.is_sound() && report.key_known && report.entries == 1, "{:?}", report.faults);
        let selection = server.get(&tenant, &format!("audit/selection?target={target}")).await;
        let report = verify(&selection.text(), &key);
        assert!(report.is_sound() && report.entries == 1, "{:?}", report.faults);
        for path in ["audit/entries/99999/proof", "audit/entries/01/proof", "audit/entries/x/proof", "audit/selection?target=x"] {
            assert_eq!(server.get(&tenant, path).await.problem(404), "not-found", "{path}");
        }
        let size = server.get(&tenant, "audit/consistency?from=1").await.json(200);
        assert!(size["checkpoint"].as_str().unwrap().starts_with("bulkhead/audit/org_") && size["to"].as_u64() > Some(2));
        assert_eq!(server.get(&tenant, "audit/consistency?from=0").await.problem(422), "invalid-consistency");
        assert_eq!(server.get(&tenant, "audit/consistency").await.problem(400), "invalid-query");

        let rotated = server.post(&tenant, "audit/keys", &json!({})).await.json(201);
        assert_eq!(newest_key(&server, &tenant).await, rotated["verifier_key"].as_str().unwrap());
        let bundle = server.get(&tenant, "audit/bundles/0").await.text();
        for key in [key.as_str(), rotated["verifier_key"].as_str().unwrap()] {
            assert!(verify(&bundle, key).is_sound());
        }
    }

    async fn what_one_request_did_is_found_by_its_id(server: TestServer) {
        let (tenant, other) = (server.tenant("acme").await, server.tenant("other").await);
        let make = async |id: &str, name: &str| {
            let team = ask("POST", tenant.at("teams")).key(&tenant.key).header("x-request-id", id);
            let made = server.send(team.json(&json!({ "name": name }))).await;
            made.json(201);
            made.header("x-request-id").to_owned()
        };
        let ids = [make("req-1.a", "One").await, make("req-2.b", "Two").await, make("two words", "Three").await];
        assert_eq!(ids[..2], ["req-1.a", "req-2.b"]);
        assert_ne!(ids[2], "two words", "what is no harmless text is another one");
        let found = async |tenant: &Tenant, query: &str| {
            server.get(tenant, &format!("audit?{query}")).await.json(200)["items"].as_array().unwrap().clone()
        };
        for id in &ids {
            let items = found(&tenant, &format!("correlation_id={id}")).await;
            assert_eq!(items.len(), 1, "{items:?}");
            assert_eq!((items[0]["action"].as_str(), items[0]["correlation_id"].as_str()), (Some("team.created"), Some(id.as_str())));
            assert_eq!(found(&tenant, &format!("correlation_id={id}&category=configuration&action=team.created")).await.len(), 1);
            assert!(found(&tenant, &format!("correlation_id={id}&category=security")).await.is_empty());
            assert!(found(&other, &format!("correlation_id={id}")).await.is_empty(), "another organization");
        }
        assert_eq!(found(&tenant, "action=org.created").await[0]["correlation_id"], Value::Null, "the operator made no request");
        assert_eq!(server.get(&tenant, "audit?correlation_id=a%0ab").await.problem(400), "invalid-query");
    }

    async fn times_are_set_and_details_erased(server: TestServer) {
        let (tenant, other) = (server.tenant("acme").await, server.tenant("other").await);
        let shown = server.get(&tenant, "audit/retention").await;
        let mut policy = shown.json(200);
        assert_eq!((&policy["security"], &policy["data_access"]), (&json!(400), &json!(90)));
        policy["api"] = json!(500);
        let replaced = put(&server, &tenant, shown.header("etag"), &policy).await;
        assert_eq!(replaced.json(200), policy);
        assert_eq!(put(&server, &tenant, shown.header("etag"), &policy).await.problem(412), "stale-version");
        policy["api"] = json!(29);
        let wrong = put(&server, &tenant, replaced.header("etag"), &policy).await;
        assert_eq!(wrong.problem(422), "invalid-retention");
        assert_eq!(wrong.error(422), ("/api".to_owned(), "out-of-range".to_owned()));
        let bare = ask("PUT", tenant.at("audit/retention")).key(&tenant.key).json(&policy);
        assert_eq!(server.send(bare).await.problem(428), "if-match-required");

        let erase = async |body: Value| server.post(&tenant, "audit/erasures", &body).await;
        for body in [
            json!({ "reference": "two words", "entries": [1] }),
            json!({ "reference": "x".repeat(101), "entries": [1] }),
            json!({ "reference": "r" }),
            json!({ "reference": "r", "entries": [1], "subject": "x" }),
            json!({ "reference": "r", "entries": [] }),
            json!({ "reference": "r", "entries": [99999] }),
        ] {
            assert_eq!(erase(body.clone()).await.problem(422), "invalid-erasure", "{body}");
        }
        assert_eq!(erase(json!({ "entries": [1] })).await.problem(422), "invalid-body");
        // What is made at the same moment stands in no order that could be known here.
        let seq = server.get(&tenant, "audit?action=org.created").await.json(200)["items"][0]["seq"].clone();
        let erased = erase(json!({ "reference": "dsr-17", "entries": [seq] })).await.json(200);
        assert_eq!((&erased["payloads"], &erased["more"]), (&json!(1), &json!(false)));
        let entry = server.get(&tenant, "audit?action=org.created").await.json(200)["items"][0].clone();
        assert_eq!((&entry["seq"], &entry["detail"], &entry["disposed_by"]), (&seq, &Value::Null, &erased["by"]));
        let said = server.get(&tenant, "audit?action=audit.payloads_erased").await.json(200)["items"][0].clone();
        assert_eq!((&said["seq"], &said["detail"]["reference"]), (&erased["by"], &json!("dsr-17")));
        let report = verify(&server.get(&tenant, "audit/bundles/0").await.text(), &newest_key(&server, &tenant).await);
        assert!(report.is_sound(), "{:?}", report.faults);
        assert_eq!(report.expired[0].policy.as_str(), "erasure:dsr-17");
        let reader = server.key(&tenant, &[Permission::AuditRead, Permission::AuditExport]).await;
        let body = json!({ "reference": "r", "entries": [1] });
        let refused = ask("POST", tenant.at("audit/erasures")).key(&reader).json(&body);
        assert_eq!(server.send(refused).await.problem(403), "forbidden");
        let foreign = ask("POST", tenant.at("audit/erasures")).key(&other.key).json(&body);
        assert_eq!(server.send(foreign).await.problem(404), "not-found");
    }
}
