//! Credentials, organizations, keys, and the logs that tell of them.

use std::time::Duration;

use bulkhead_app::BreachedPasswords;
use bulkhead_app::account::NewUser;
use bulkhead_model::permission::Permission;
use serde_json::json;

use crate::people::{Browser, PASSWORD};
use crate::support::ask;

on_both! {
    async fn only_a_valid_key_is_somebody(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let path = tenant.at("audit");
        let mut forged = tenant.key.clone();
        forged.pop();
        forged.push(if tenant.key.ends_with('0') { '1' } else { '0' });
        let mut refused = vec![ask("GET", &*path), ask("GET", &*path).key(""), ask("GET", &*path).key("x"), ask("GET", &*path).key(&forged)];
        refused.push(ask("GET", &*path).header("authorization", &format!("Basic {}", tenant.key)));
        refused.push(ask("GET", &*path).header("authorization", &tenant.key));
        refused.push(ask("GET", &*path).key(&tenant.key).key(&tenant.key));
        refused.push(ask("GET", format!("{path}?access_token={}", tenant.key)));
        let mut documents = Vec::new();
        for request in refused {
            let answer = server.send(request.header("x-request-id", "same")).await;
            assert_eq!(answer.problem(401), "unauthenticated");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
            documents.push(answer.text());
        }
        documents.dedup();
        assert_eq!(documents.len(), 1, "every bad credential is answered in the same words: {documents:?}");
        assert_eq!(server.get(&tenant, "audit").await.status.as_u16(), 200);
    }

    async fn a_key_ends_at_its_time_and_when_it_is_revoked(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let made = server
            .post(&tenant, "api-keys", &json!({ "name": "ci", "permissions": ["org.read"], "expires_in_days": 1 }))
            .await;
        let view = made.json(201);
        assert!(made.header("location").ends_with(view["id"].as_str().unwrap()));
        assert_eq!(view["permissions"], json!(["org.read"]));
        assert_eq!(view["expires_at"], "2026-11-22T08:00:00.000000Z");
        let secret = view["secret"].as_str().unwrap();
        let show = || ask("GET", format!("/api/v1/orgs/{}", tenant.org)).key(secret);
        let org = server.send(show()).await.json(200);
        assert_eq!((&org["id"], &org["slug"], &org["name"]), (&json!(tenant.org), &json!("acme"), &json!("ACME")));

        server.ambient.advance(Duration::from_hours(24));
        assert_eq!(server.send(show()).await.problem(401), "unauthenticated");

        let other = server.post(&tenant, "api-keys", &json!({ "name": "b", "permissions": ["org.read"] })).await.json(201);
        let revoke = format!("api-keys/{}", other["id"].as_str().unwrap());
        for _ in 0..2 {
            assert_eq!(server.delete(&tenant, &revoke).await.status.as_u16(), 204);
        }
        let by_revoked = ask("GET", format!("/api/v1/orgs/{}", tenant.org)).key(other["secret"].as_str().unwrap());
        assert_eq!(server.send(by_revoked).await.problem(401), "unauthenticated");
        let listed = server.get(&tenant, "api-keys").await;
        assert!(!listed.text().contains(secret) && !listed.text().contains("\"secret\""), "a list shows no secret");
        let list = listed.json(200);
        assert_eq!(list["items"][0]["id"], other["id"]);
        assert!(list["items"][0]["revoked_at"].is_string());
        assert_eq!(list["items"].as_array().unwrap().len(), 3);
    }

    async fn a_key_gives_no_more_than_it_has_and_does_not_saw_off_its_branch(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let narrow = server.key(&tenant, &[Permission::ApiKeysWrite, Permission::ApiKeysRead]).await;
        let more = json!({ "name": "x", "permissions": ["api_keys.read", "audit.read"] });
        let answer = server.send(ask("POST", tenant.at("api-keys")).key(&narrow).json(&more)).await;
        assert_eq!(answer.problem(422), "invalid-permissions");
        assert_eq!(answer.error(422).0, "/permissions");
        let keys = server.get(&tenant, "api-keys").await.json(200);
        let first = keys["items"].as_array().unwrap().iter().find(|key| key["name"] == "all").unwrap();
        let own = server.delete(&tenant, &format!("api-keys/{}", first["id"].as_str().unwrap())).await;
        assert_eq!(own.problem(409), "own-key");
        for (body, slug) in [
            (json!({ "name": " ", "permissions": ["org.read"] }), "invalid-name"),
            (json!({ "name": "x".repeat(101), "permissions": ["org.read"] }), "invalid-name"),
            (json!({ "name": "x", "permissions": [] }), "invalid-permissions"),
            (json!({ "name": "x", "permissions": ["org.read"], "expires_in_days": 0 }), "invalid-expiry"),
            (json!({ "name": "x", "permissions": ["org.read"], "expires_in_days": 367 }), "invalid-expiry"),
            (json!({ "name": "x", "permissions": ["org.reed"] }), "invalid-body"),
            (json!({ "name": "x\u{0}y", "permissions": ["org.read"] }), "invalid-body"),
            (json!({ "name": "x", "permissions": ["org.read"], "expires_in_days": -1 }), "invalid-body"),
        ] {
            assert_eq!(server.post(&tenant, "api-keys", &body).await.problem(422), slug, "{body}");
        }
        assert_eq!(server.get(&tenant, "api-keys").await.json(200)["items"], keys["items"], "nothing changed");
    }

    async fn a_key_does_not_outlive_the_one_that_made_it(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let brief = json!({ "name": "brief", "permissions": ["api_keys.write", "org.read"], "expires_in_days": 1 });
        let brief = server.post(&tenant, "api-keys", &brief).await.json(201);
        let make = |body: &serde_json::Value| ask("POST", tenant.at("api-keys")).key(brief["secret"].as_str().unwrap()).json(body);
        let longer = server.send(make(&json!({ "name": "x", "permissions": ["org.read"], "expires_in_days": 2 }))).await;
        assert_eq!((longer.problem(422), longer.error(422).0), ("invalid-expiry".to_owned(), "/expires_in_days".to_owned()));
        let by_default = server.send(make(&json!({ "name": "x", "permissions": ["org.read"] }))).await.json(201);
        assert_eq!(by_default["expires_at"], brief["expires_at"]);
        server.send(make(&json!({ "name": "x", "permissions": ["org.read"], "expires_in_days": 1 }))).await.json(201);
    }

    async fn an_organization_answers_to_its_id_and_its_name(server: TestServer) {
        let (acme, other) = (server.tenant("acme").await, server.tenant("other").await);
        for name in [&acme.org, &acme.slug] {
            let answer = server.send(ask("GET", format!("/api/v1/orgs/{name}")).key(&acme.key)).await;
            assert_eq!(answer.json(200)["id"], json!(acme.org));
        }
        let unknown = server.send(ask("GET", "/api/v1/orgs/nobody").key(&acme.key).header("x-request-id", "same")).await;
        for name in [&*other.org, &*other.slug, "NOBODY", "a%00b", "%ff", "org_0"] {
            let answer = server.send(ask("GET", format!("/api/v1/orgs/{name}")).key(&acme.key).header("x-request-id", "same")).await;
            assert_eq!(answer.problem(404), "not-found", "{name}");
            if name != "%ff" {
                assert_eq!(answer.text(), unknown.text(), "one that exists looks like one that does not");
            }
        }
    }

    async fn the_audit_log_is_taken_away_with_its_proof(server: TestServer) {
        let tenant = server.tenant("acme").await;
        assert_eq!(server.get(&tenant, "audit/checkpoint").await.problem(404), "not-found");
        let answer = server.get(&tenant, "audit/bundles/0").await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "application/jsonl"));
        let bundle = answer.text();
        assert!(bundle.starts_with("{\"log\":{") && bundle.ends_with("}\n"), "{bundle}");
        assert!(bundle.contains("audit.log_opened"), "{bundle}");
        let shown = server.get(&tenant, "audit/checkpoint").await.json(200);
        assert!(bundle.contains(&shown["checkpoint"].to_string()), "the newest checkpoint ends the bundle");
        assert!(shown["verifier_key"].as_str().unwrap().starts_with(&format!("bulkhead/audit/{}+", tenant.org)));
        for number in ["1000000", "00", "-1", "x", "99999999999999999999"] {
            assert_eq!(server.get(&tenant, &format!("audit/bundles/{number}")).await.problem(404), "not-found", "{number}");
        }
        let again = server.get(&tenant, "audit/bundles/0").await.text();
        assert_eq!(again.matches("audit.exported").count(), 2, "each export is an entry, and what was not there left none");
        let reader = server.key(&tenant, &[Permission::AuditRead]).await;
        let refused = server.send(ask("GET", tenant.at("audit/bundles/0")).key(&reader)).await;
        assert_eq!(refused.problem(403), "forbidden");
    }

    async fn what_was_refused_is_in_the_audit_log(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let reader = server.key(&tenant, &[Permission::AuditRead]).await;
        for _ in 0..3 {
            let roles = json!({ "name": "x", "permissions": ["org.read"] });
            let refused = server.send(ask("POST", tenant.at("roles")).key(&reader).json(&roles)).await;
            assert_eq!(refused.problem(403), "forbidden");
        }
        let log = server.get(&tenant, "audit?action=access.refused").await.json(200);
        let items = log["items"].as_array().unwrap();
        assert_eq!(items.len(), 1, "once an hour: {log}");
        assert_eq!(items[0]["detail"], json!({
            "permission": "roles.write", "team": null, "operation": "POST /api/v1/orgs/{org}/roles",
        }));
        assert!(items[0]["actor"].as_str().unwrap().starts_with("key_") && items[0]["seq"].is_null());
    }

    async fn what_was_done_is_in_the_audit_log(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let made = server.post(&tenant, "api-keys", &json!({ "name": "ci", "permissions": ["org.read"] })).await.json(201);
        let id = made["id"].as_str().unwrap();
        server.delete(&tenant, &format!("api-keys/{id}")).await;
        let log = server.get(&tenant, &format!("audit?target={id}")).await.json(200);
        let actions: Vec<&str> = log["items"].as_array().unwrap().iter().map(|entry| entry["action"].as_str().unwrap()).collect();
        assert_eq!(actions, ["api_key.revoked", "api_key.created"]);
        assert!(log["items"][0]["actor"].as_str().unwrap().starts_with("key_"));
        let by_action = server.get(&tenant, &format!("audit?action=api_key.created&target={id}")).await.json(200);
        assert_eq!(by_action["items"].as_array().unwrap().len(), 1);
        assert!(!log.to_string().contains(made["secret"].as_str().unwrap()));
        assert_eq!(server.get(&tenant, "audit?action=a%00b").await.problem(400), "invalid-query");
    }

    /// Whoever has such a password goes on with it, and nobody chooses one.
    async fn a_password_that_was_stolen_somewhere_is_nobodys(server: TestServer) {
        const STOLEN: &str = "quiet marble lantern";
        let mut ada = server.first_person().await;
        // SHA-1 of both, in the order of their digits.
        let lines = ["421D27FD27E1FA3F2A9CA52DA4353DC279E87D8C:12", "80FC3F81FC55708618FC405433F55B6C32E18A76:1"];
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines.join("\r\n")).unwrap();
        let server = server.with_breached_passwords(BreachedPasswords::open(file.path()).unwrap());
        assert_eq!(ada.sign_in(&server, "ada@example.com", PASSWORD).await.status.as_u16(), 200);
        let change = |browser: &Browser, new: &str| {
            browser.ask("PUT", "/api/v1/me/password").json(&json!({ "password": PASSWORD, "new_password": new }))
        };
        let refused = server.send(change(&ada, STOLEN)).await;
        assert_eq!(refused.error(422), ("/new_password".to_owned(), "breached".to_owned()));
        let new = NewUser { email: "bo@example.com".to_owned(), name: "Bo".to_owned(), is_super_admin: false, member_of: None };
        let (_, token) = server.app.create_user_as_operator(new).await.unwrap();
        let choose = |password: &str| {
            ask("POST", "/api/v1/auth/choose-password").json(&json!({ "token": token, "password": password }))
        };
        let refused = server.send(choose(STOLEN)).await;
        assert_eq!((refused.problem(422), refused.error(422).1), ("invalid-password".to_owned(), "breached".to_owned()));
        assert_eq!(server.send(choose("another copper kettle")).await.status.as_u16(), 204, "the link is good all the same");
        server.send(change(&ada, "another copper kettle")).await.json(200);
    }
}
