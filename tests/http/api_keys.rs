//! API keys that are made while what makes them ends, and what is revoked with them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bulkhead_model::permission::Permission;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::people::{Browser, PASSWORD};
use crate::support::{Answer, Ask, Tenant, TestServer, ask};

/// Sends a request whose head is let in, and its body only once `meanwhile` is over.
async fn held_back(server: &TestServer, ask: Ask, body: &Value, meanwhile: impl Future<Output = ()>) -> Answer {
    let (began, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (inside, text) = ((Arc::clone(&began), Arc::clone(&release)), Bytes::from(body.to_string()));
    let stream = futures_util::stream::once(async move {
        // Somebody reads the body: who asks was found out before.
        inside.0.notify_one();
        inside.1.notified().await;
        Ok::<_, Infallible>(text)
    });
    let ask = ask.bytes("application/json", Body::from_stream(stream));
    let meanwhile = async {
        began.notified().await;
        meanwhile.await;
        release.notify_one();
    };
    let (answer, ()) = tokio::join!(Box::pin(server.send(ask)), Box::pin(meanwhile));
    answer
}

fn wanted() -> Value {
    json!({ "name": "late", "permissions": ["org.read"] })
}

/// The names of the keys that there are.
async fn names(server: &TestServer, tenant: &Tenant) -> Vec<String> {
    let listed = server.get(tenant, "api-keys").await.json(200);
    listed["items"].as_array().unwrap().iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect()
}

async fn is_refused(server: &TestServer, tenant: &Tenant, answer: &Answer, what: &str) {
    assert_eq!(answer.problem(401), "unauthenticated", "{what}");
    assert!(!names(server, tenant).await.contains(&"late".to_owned()), "{what}");
}

async fn tries(server: &TestServer, secret: &str) -> u16 {
    server.send(ask("GET", "/api/v1/orgs/acme").key(secret)).await.status.as_u16()
}

on_both! {
    async fn a_key_that_ends_while_it_makes_another_makes_none(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let body = json!({ "name": "leaked", "permissions": ["org.read", "api_keys.write"], "expires_in_days": 2 });
        let make = |secret: &str| ask("POST", tenant.at("api-keys")).key(secret);
        let leaked = server.post(&tenant, "api-keys", &body).await.json(201);
        let (id, secret) = (leaked["id"].as_str().unwrap().to_owned(), leaked["secret"].as_str().unwrap().to_owned());
        let revoke = async {
            assert_eq!(server.delete(&tenant, &format!("api-keys/{id}")).await.status.as_u16(), 204);
        };
        let answer = held_back(&server, make(&secret), &wanted(), revoke).await;
        is_refused(&server, &tenant, &answer, "revoked").await;
        // … and one whose time is over.
        let brief = server.post(&tenant, "api-keys", &body).await.json(201);
        let secret = brief["secret"].as_str().unwrap().to_owned();
        let later = async { server.ambient.advance(Duration::from_hours(49)) };
        let answer = held_back(&server, make(&secret), &wanted(), later).await;
        is_refused(&server, &tenant, &answer, "over").await;
        // What is held back and stays valid is made.
        let answer = held_back(&server, make(&tenant.key), &wanted(), async {}).await;
        let made = answer.json(201);
        assert_eq!(tries(&server, made["secret"].as_str().unwrap()).await, 200);
    }

    async fn a_person_who_is_shut_out_meanwhile_makes_no_key(server: TestServer) {
        server.first_person().await;
        let acme = server.app.find_org("acme".parse().unwrap()).await.unwrap().unwrap();
        let by_operator = bulkhead_app::api_key::NewApiKey::new("watch", bulkhead_model::permission::PermissionSet::all(), None);
        let key = server.app.create_first_api_key(acme.id, by_operator).await.unwrap().secret_text;
        let tenant = Tenant { org: acme.id.to_string(), slug: "acme".into(), key };
        let make = |who: &Browser| who.ask("POST", "/api/v1/orgs/acme/api-keys");

        let bo = server.person("bo@example.com", Some(("acme", "admin"))).await;
        let disable = async { server.app.set_user_state_as_operator("bo@example.com", false).await.unwrap() };
        let answer = held_back(&server, make(&bo), &wanted(), disable).await;
        is_refused(&server, &tenant, &answer, "disabled everywhere").await;

        let cy = server.person("cy@example.com", Some(("acme", "admin"))).await;
        let change = async { drop(server.app.unlock_user_as_operator("cy@example.com").await.unwrap()) };
        let answer = held_back(&server, make(&cy), &wanted(), change).await;
        is_refused(&server, &tenant, &answer, "everything ended").await;

        let di = server.person("di@example.com", Some(("acme", "admin"))).await;
        let out = async {
            assert!(server.send(di.ask("POST", "/api/v1/auth/logout")).await.status.is_success());
        };
        let answer = held_back(&server, make(&di), &wanted(), out).await;
        is_refused(&server, &tenant, &answer, "signed out").await;
    }

    /// A right that is taken away meanwhile is not in the key.
    async fn a_key_holds_what_its_maker_holds_when_it_is_made(server: TestServer) {
        let ada = server.first_person().await;
        let bo = server.person("bo@example.com", Some(("acme", "admin"))).await;
        let given = server.send(ada.ask("GET", "/api/v1/orgs/acme/role-assignments")).await.json(200);
        let members = server.send(ada.ask("GET", "/api/v1/orgs/acme/members")).await.json(200);
        let bo_id = members["items"].as_array().unwrap().iter().find(|of| of["email"] == "bo@example.com").unwrap();
        let bo_id = bo_id["user"].as_str().unwrap().to_owned();
        let of_bo = given["items"].as_array().unwrap().iter().find(|of| of["user"] == json!(bo_id)).unwrap();
        let path = format!("/api/v1/orgs/acme/role-assignments/{}", of_bo["id"].as_str().unwrap());
        let take = async { assert_eq!(server.send(ada.ask("DELETE", &path)).await.status.as_u16(), 204) };
        let answer = held_back(&server, bo.ask("POST", "/api/v1/orgs/acme/api-keys"), &wanted(), take).await;
        assert_eq!(answer.problem(403), "forbidden");
    }

    /// A person's keys end with the person, also those that were made beside it.
    async fn a_disabled_person_holds_nothing_in_any_organization(server: TestServer) {
        server.first_person().await;
        let bo = server.person("bo@example.com", Some(("acme", "admin"))).await;
        let made = server.send(bo.ask("POST", "/api/v1/orgs/acme/api-keys").json(&wanted())).await.json(201);
        let (key, secret) = (made["id"].as_str().unwrap(), made["secret"].as_str().unwrap());
        assert_eq!(tries(&server, secret).await, 200);
        let user = made["owner"].as_str().unwrap().parse().unwrap();
        server.app.set_user_state_as_operator("bo@example.com", false).await.unwrap();
        // Whatever became of the row itself.
        let acme = server.app.find_org("acme".parse().unwrap()).await.unwrap().unwrap().id;
        assert!(server.app.member_caller(acme, user).await.unwrap().permissions().is_empty());
        server.app.set_user_state_as_operator("bo@example.com", true).await.unwrap();
        assert!(!server.app.member_caller(acme, user).await.unwrap().permissions().is_empty());
        assert_eq!(tries(&server, secret).await, 401, "{key} stays ended");
        Browser::default().sign_in(&server, "bo@example.com", PASSWORD).await.json(200);
    }

    async fn a_key_is_revoked_with_all_that_came_of_it(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let permissions = [Permission::OrgRead, Permission::ApiKeysWrite].map(Permission::as_str);
        let make = async |secret: &str, name: &str| {
            let body = json!({ "name": name, "permissions": permissions });
            server.send(ask("POST", tenant.at("api-keys")).key(secret).json(&body)).await.json(201)
        };
        let secret = |made: &Value| made["secret"].as_str().unwrap().to_owned();
        let first = make(&tenant.key, "first").await;
        let second = make(&secret(&first), "second").await;
        let third = make(&secret(&second), "third").await;
        let beside = make(&tenant.key, "beside").await;
        assert_eq!((&second["made_by"], &third["made_by"]), (&first["id"], &second["id"]));
        assert_eq!((&third["owner"], &first["owner"]), (&Value::Null, &Value::Null));
        for made in [&first, &second, &third, &beside] {
            assert_eq!(tries(&server, &secret(made)).await, 200);
        }
        let revoke = async || server.delete(&tenant, &format!("api-keys/{}", first["id"].as_str().unwrap())).await;
        assert_eq!(revoke().await.status.as_u16(), 204);
        for made in [&first, &second, &third] {
            assert_eq!(tries(&server, &secret(made)).await, 401, "{}", made["name"]);
        }
        assert_eq!(tries(&server, &secret(&beside)).await, 200);
        assert_eq!(revoke().await.status.as_u16(), 204);
        let log = server.get(&tenant, "audit?action=api_key.revoked").await.json(200);
        let mut told: Vec<_> = log["items"].as_array().unwrap().iter().map(|entry| entry["target"].as_str().unwrap()).collect();
        let mut expected: Vec<_> = [&first, &second, &third].iter().map(|made| made["id"].as_str().unwrap()).collect();
        told.sort_unstable();
        expected.sort_unstable();
        assert_eq!(told, expected);
    }

    /// Two secrets are good while one takes the other's place; revoking the key ends both.
    async fn a_secret_is_replaced_while_the_one_before_is_good(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let body = json!({ "name": "ci", "permissions": ["org.read"] });
        let made = server.post(&tenant, "api-keys", &body).await.json(201);
        let (id, first) = (made["id"].as_str().unwrap().to_owned(), made["secret"].as_str().unwrap().to_owned());
        let rotate = async |body: &Value| server.post(&tenant, &format!("api-keys/{id}/rotate"), body).await;
        assert_eq!(rotate(&json!({ "grace_s": 7 * 86_400 + 1 })).await.problem(422), "invalid-grace");
        let second = rotate(&json!({ "grace_s": 60 })).await.json(200);
        assert_eq!((&second["id"], &second["expires_at"], &second["permissions"]), (&made["id"], &made["expires_at"], &made["permissions"]));
        let second = second["secret"].as_str().unwrap().to_owned();
        assert_ne!(first, second);
        assert_eq!((tries(&server, &first).await, tries(&server, &second).await), (200, 200));
        server.ambient.advance(Duration::from_mins(1));
        assert_eq!((tries(&server, &first).await, tries(&server, &second).await), (401, 200));
        // Two at most: the one before the one before is over at once.
        let third = rotate(&json!({})).await.json(200)["secret"].as_str().unwrap().to_owned();
        let fourth = rotate(&json!({})).await.json(200)["secret"].as_str().unwrap().to_owned();
        let good = [tries(&server, &second).await, tries(&server, &third).await, tries(&server, &fourth).await];
        assert_eq!(good, [401, 200, 200]);
        assert_eq!(server.delete(&tenant, &format!("api-keys/{id}")).await.status.as_u16(), 204);
        assert_eq!((tries(&server, &third).await, tries(&server, &fourth).await), (401, 401));
        assert_eq!(rotate(&json!({})).await.problem(404), "not-found");
    }

    /// Whoever has a key's secret holds what the key holds.
    async fn a_secret_is_given_to_nobody_who_holds_less_than_the_key(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let strong = server.key(&tenant, &[Permission::OrgRead, Permission::AuditRead]).await;
        assert_eq!(tries(&server, &strong).await, 200);
        let listed = server.get(&tenant, "api-keys").await.json(200);
        let strong_id = listed["items"].as_array().unwrap().iter().find(|key| key["name"] == "narrow").unwrap();
        let strong_id = strong_id["id"].as_str().unwrap().to_owned();
        let weak = server.key(&tenant, &[Permission::ApiKeysWrite, Permission::OrgRead]).await;
        let rotate = |secret: &str, id: &str| ask("POST", tenant.at(&format!("api-keys/{id}/rotate"))).key(secret).json(&json!({}));
        assert_eq!(server.send(rotate(&weak, &strong_id)).await.problem(409), "not-own-key");
        // One that lives longer than the one that asks, too.
        let brief = json!({ "name": "brief", "permissions": ["api_keys.write", "org.read", "audit.read"], "expires_in_days": 1 });
        let brief = server.post(&tenant, "api-keys", &brief).await.json(201)["secret"].as_str().unwrap().to_owned();
        assert_eq!(server.send(rotate(&brief, &strong_id)).await.problem(409), "not-own-key");
        server.send(rotate(&tenant.key, &strong_id)).await.json(200);
        assert_eq!(tries(&server, &strong).await, 200, "for a day");
    }

    async fn a_persons_key_is_renewed_by_that_person(server: TestServer) {
        let ada = server.first_person().await;
        let bo = server.person("bo@example.com", Some(("acme", "admin"))).await;
        let made = server.send(bo.ask("POST", "/api/v1/orgs/acme/api-keys").json(&wanted())).await.json(201);
        let path = format!("/api/v1/orgs/acme/api-keys/{}/rotate", made["id"].as_str().unwrap());
        let by_ada = server.send(ada.ask("POST", &path).json(&json!({}))).await;
        assert_eq!(by_ada.problem(409), "not-own-key");
        let out = async {
            assert!(server.send(bo.ask("POST", "/api/v1/auth/logout")).await.status.is_success());
        };
        let late = held_back(&server, bo.ask("POST", &path), &json!({}), out).await;
        assert_eq!(late.problem(401), "unauthenticated");
        let mut bo = bo;
        bo.sign_in(&server, "bo@example.com", PASSWORD).await.json(200);
        let renewed = server.send(bo.ask("POST", &path).json(&json!({}))).await.json(200);
        assert_eq!(tries(&server, renewed["secret"].as_str().unwrap()).await, 200);
    }

    /// Whoever can say a key may end it; about any other text nothing is told.
    async fn a_key_that_was_found_is_ended_by_whoever_found_it(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let body = json!({ "name": "leaked", "permissions": ["org.read", "api_keys.write"] });
        let made = server.post(&tenant, "api-keys", &body).await.json(201);
        let (id, secret) = (made["id"].as_str().unwrap().to_owned(), made["secret"].as_str().unwrap().to_owned());
        let child = server.send(ask("POST", tenant.at("api-keys")).key(&secret).json(&wanted())).await.json(201);
        let report = async |key: &str| {
            let answer = server.send(ask("POST", "/api/v1/leaked-api-keys").json(&json!({ "key": key }))).await;
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (204, ""), "{key}");
        };
        // The same ids with another secret, whose checksum fits.
        let renewed = server.post(&tenant, &format!("api-keys/{id}/rotate"), &json!({ "grace_s": 0 })).await.json(200);
        report(&secret).await;
        for other in ["", "x", &secret[..40]] {
            report(other).await;
        }
        let now = renewed["secret"].as_str().unwrap();
        assert_eq!((tries(&server, now).await, tries(&server, child["secret"].as_str().unwrap()).await), (200, 200));
        report(now).await;
        report(now).await;
        assert_eq!((tries(&server, now).await, tries(&server, child["secret"].as_str().unwrap()).await), (401, 401));
        assert_eq!(tries(&server, &tenant.key).await, 200);
        let log = server.get(&tenant, &format!("audit?action=api_key.leaked&target={id}")).await.json(200);
        assert_eq!(log["items"].as_array().unwrap().len(), 1);
    }
}
