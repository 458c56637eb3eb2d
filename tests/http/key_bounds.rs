//! Where keys may be used from, and how much they were.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Answer, PROXY, Tenant, TestServer, ask};

const OFFICE: &str = "192.0.2.7";
const ELSEWHERE: &str = "198.51.100.7";

async fn make(server: &TestServer, tenant: &Tenant, by: &str, networks: &Value) -> Answer {
    let body = json!({ "name": "bound", "permissions": ["org.read", "api_keys.write", "api_keys.read"], "networks": networks });
    server.send(ask("POST", tenant.at("api-keys")).key(by).peer(OFFICE).json(&body)).await
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

on_both! {
    async fn a_key_is_good_where_its_networks_are(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let made = make(&server, &tenant, &tenant.key, &json!(["192.0.2.0/24", "2001:db8:1::/48"])).await.json(201);
        assert_eq!(made["networks"], json!(["192.0.2.0/24", "2001:db8:1::/48"]));
        let secret = text(&made["secret"]);
        let from = |peer: &str| ask("GET", tenant.at("api-keys")).key(&secret).peer(peer);
        for peer in [OFFICE, "::ffff:192.0.2.200", "2001:db8:1:2::3"] {
            assert_eq!(server.send(from(peer)).await.status.as_u16(), 200, "{peer}");
        }
        for peer in [ELSEWHERE, "2001:db8:2::1", "::192.0.2.7"] {
            assert_eq!(server.send(from(peer)).await.problem(403), "key-address-refused", "{peer}");
        }
        // From nobody knows where, by one's own word, and by a proxy's.
        let nowhere = server.send(ask("GET", tenant.at("api-keys")).key(&secret)).await;
        assert_eq!(nowhere.problem(403), "key-address-refused");
        let spoofed = from(ELSEWHERE).header("x-forwarded-for", OFFICE).header("forwarded", "for=192.0.2.7");
        assert_eq!(server.send(spoofed).await.problem(403), "key-address-refused");
        assert_eq!(server.send(from(PROXY).header("x-forwarded-for", OFFICE)).await.status.as_u16(), 200);
        assert_eq!(server.send(from(PROXY).header("x-forwarded-for", ELSEWHERE)).await.problem(403), "key-address-refused");
        // A wrong secret is one from everywhere: the list tells strangers nothing.
        let (ids, _) = secret.rsplit_once('_').unwrap();
        let wrong = server.send(ask("GET", tenant.at("api-keys")).key(&format!("{ids}_00000000")).peer(ELSEWHERE)).await;
        assert_eq!(wrong.problem(401), "unauthenticated");
        assert_eq!(server.delete(&tenant, &format!("api-keys/{}", text(&made["id"]))).await.status.as_u16(), 204);
        assert_eq!(server.send(from(ELSEWHERE)).await.problem(401), "unauthenticated", "revoked");
        for (networks, at) in [(json!(["nowhere"]), "/networks/0"), (json!(["192.0.2.0/24", "192.0.2.9/24"]), "/networks/1")] {
            let answer = make(&server, &tenant, &tenant.key, &networks).await;
            assert_eq!((answer.problem(422).as_str(), answer.error(422).0.as_str()), ("invalid-networks", at));
        }
    }

    /// A key that is good in one place cannot make itself one that is good everywhere.
    async fn a_key_passes_its_networks_on(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let office = text(&make(&server, &tenant, &tenant.key, &json!(["192.0.2.0/24"])).await.json(201)["secret"]);
        assert_eq!(make(&server, &tenant, &office, &json!([])).await.json(201)["networks"], json!(["192.0.2.0/24"]));
        assert_eq!(make(&server, &tenant, &office, &json!(["192.0.2.7"])).await.json(201)["networks"], json!(["192.0.2.7/32"]));
        for wider in [json!(["192.0.2.0/23"]), json!(["192.0.2.7", "198.51.100.7"]), json!(["::/0"])] {
            assert_eq!(make(&server, &tenant, &office, &wider).await.problem(422), "invalid-networks", "{wider}");
        }
        // Nor give itself the secret of one that is.
        let free = make(&server, &tenant, &tenant.key, &json!([])).await.json(201);
        let rotate = |by: &str, id: &Value| {
            ask("POST", tenant.at(&format!("api-keys/{}/rotate", text(id)))).key(by).peer(OFFICE).json(&json!({}))
        };
        assert_eq!(server.send(rotate(&office, &free["id"])).await.problem(409), "not-own-key");
        server.send(rotate(&tenant.key, &free["id"])).await.json(200);
    }

    async fn what_a_key_was_used_is_counted_by_day(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let made = make(&server, &tenant, &tenant.key, &json!([])).await.json(201);
        let (id, secret) = (text(&made["id"]), text(&made["secret"]));
        let usage = async || server.get(&tenant, &format!("api-keys/{id}/usage")).await.json(200);
        assert_eq!((&made["last_used_at"], usage().await), (&Value::Null, json!({ "last_used_at": null, "days": [] })));
        let uses = async |rest: &str, status: u16| {
            let answer = server.send(ask("GET", tenant.at(rest)).key(&secret)).await;
            assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
        };
        uses("api-keys", 200).await;
        uses("api-keys?limit=1", 200).await;
        // Refused for what it lacks is let in as the key; a wrong secret is not.
        uses("runs", 403).await;
        assert_eq!(usage().await["days"], json!([]), "no request waits for a writing");
        server.app.save_key_usage().await.unwrap();
        assert_eq!(usage().await["days"], json!([{ "day": "2026-11-21", "requests": 3 }]));
        server.ambient.advance(Duration::from_hours(24));
        uses("api-keys", 200).await;
        let at = server.ambient.now();
        server.app.save_key_usage().await.unwrap();
        server.app.save_key_usage().await.unwrap();
        let shown = usage().await;
        assert_eq!(shown["days"], json!([{ "day": "2026-11-22", "requests": 1 }, { "day": "2026-11-21", "requests": 3 }]));
        assert_eq!(shown["last_used_at"], json!(at));
        let listed = server.get(&tenant, "api-keys").await.json(200);
        let in_list = listed["items"].as_array().unwrap().iter().find(|key| key["id"] == json!(id)).unwrap();
        assert_eq!(in_list["last_used_at"], json!(at));
        let other = server.tenant("other").await;
        let foreign = server.send(ask("GET", other.at(&format!("api-keys/{id}/usage"))).key(&other.key)).await;
        assert_eq!(foreign.problem(404), "not-found");
    }
}
