//! Access tokens and the refresh tokens that they come from.

use std::time::Duration;

use serde_json::{Value, json};

use crate::people::{Browser, PASSWORD};
use crate::support::{Answer, TestServer, ask};

async fn issue(server: &TestServer, by: &Browser) -> Value {
    server.send(by.ask("POST", "/api/v1/me/tokens")).await.json(201)
}

async fn refresh(server: &TestServer, tokens: &Value) -> Answer {
    server.send(ask("POST", "/api/v1/auth/refresh").json(&json!({ "refresh_token": tokens["refresh_token"] }))).await
}

async fn call(server: &TestServer, tokens: &Value, path: &str) -> Answer {
    server.send(ask("GET", path).key(tokens["access_token"].as_str().unwrap())).await
}

on_both! {
    async fn an_access_token_opens_the_organization_for_ten_minutes(server: TestServer) {
        let ada = server.first_person().await;
        server.tenant("other").await;
        let tokens = issue(&server, &ada).await;
        assert_eq!(call(&server, &tokens, "/api/v1/orgs/acme").await.json(200)["slug"], "acme");
        for path in ["/api/v1/orgs/other", "/api/v1/orgs/NOBODY"] {
            assert_eq!(call(&server, &tokens, path).await.problem(404), "not-found");
        }
        assert_eq!(call(&server, &tokens, "/api/v1/me").await.problem(401), "unauthenticated", "it changes no credentials");
        let jwks = server.send(ask("GET", "/.well-known/jwks.json")).await.json(200);
        assert_eq!((&jwks["keys"][0]["crv"], jwks["keys"][0].get("d")), (&json!("Ed25519"), None));
        server.ambient.advance(Duration::from_mins(10));
        assert_eq!(call(&server, &tokens, "/api/v1/orgs/acme").await.problem(401), "unauthenticated");
        let next = refresh(&server, &tokens).await.json(200);
        call(&server, &next, "/api/v1/orgs/acme").await.json(200);
        server.ambient.advance(Duration::from_mins(1));
        assert_eq!(server.send(ada.ask("POST", "/api/v1/me/tokens")).await.problem(401), "step-up-required");
    }

    async fn a_refresh_token_that_is_used_twice_ends_its_family(server: TestServer) {
        let ada = server.first_person().await;
        let first = issue(&server, &ada).await;
        let other = issue(&server, &ada).await;
        let second = refresh(&server, &first).await.json(200);
        // A second copy of the same request is refused and no theft.
        assert_eq!(refresh(&server, &first).await.problem(401), "unauthenticated");
        let third = refresh(&server, &second).await.json(200);
        server.ambient.advance(Duration::from_secs(6));
        assert_eq!(refresh(&server, &first).await.problem(401), "unauthenticated");
        assert_eq!(refresh(&server, &third).await.problem(401), "unauthenticated", "whoever has it now");
        refresh(&server, &other).await.json(200);
        let log = server.send(ada.ask("GET", "/api/v1/orgs/acme/audit?action=token.reused")).await.json(200);
        assert_eq!(log["items"].as_array().unwrap().len(), 1);
        for bad in ["", "x", &"0".repeat(64)] {
            assert_eq!(refresh(&server, &json!({ "refresh_token": bad })).await.problem(401), "unauthenticated");
        }
    }

    async fn of_many_refreshes_at_once_one_succeeds(server: TestServer) {
        let ada = server.first_person().await;
        let tokens = issue(&server, &ada).await;
        let answers = futures_util::future::join_all((0..10).map(|_| refresh(&server, &tokens))).await;
        let next: Vec<Value> = answers.iter().filter(|answer| answer.status.as_u16() == 200).map(|answer| answer.json(200)).collect();
        assert_eq!(next.len(), 1);
        refresh(&server, &next[0]).await.json(200);
    }

    /// authentik CVE-2025-53942: somebody who was disabled went on by another way.
    async fn tokens_end_with_the_session_the_password_and_the_person(server: TestServer) {
        let ada = server.first_person().await;
        let ends = |tokens: Value, why: &'static str| {
            let server = &server;
            async move {
                assert_eq!(call(server, &tokens, "/api/v1/orgs/acme").await.problem(401), "unauthenticated", "{why}");
                assert_eq!(refresh(server, &tokens).await.problem(401), "unauthenticated", "{why}");
            }
        };
        let bo = server.person("bo@example.com", Some(("acme", "viewer"))).await;
        let tokens = issue(&server, &bo).await;
        call(&server, &tokens, "/api/v1/orgs/acme").await.json(200);
        let me = server.send(bo.ask("GET", "/api/v1/me")).await.json(200);
        assert_eq!(server.send(bo.ask("POST", "/api/v1/auth/logout")).await.status.as_u16(), 204);
        ends(tokens, "the session ended").await;

        let mut bo = Browser::default();
        bo.sign_in(&server, "bo@example.com", PASSWORD).await.json(200);
        let tokens = issue(&server, &bo).await;
        let body = json!({ "password": PASSWORD, "new_password": "quiet marble lantern" });
        let changed = server.send(bo.ask("PUT", "/api/v1/me/password").json(&body)).await;
        bo.keep(&changed);
        ends(tokens, "the password changed").await;

        let tokens = issue(&server, &bo).await;
        call(&server, &tokens, "/api/v1/orgs/acme").await.json(200);
        let state = format!("/api/v1/orgs/acme/members/{}/state", me["user"]["id"].as_str().unwrap());
        server.send(ada.ask("PUT", &state).json(&json!({ "state": "disabled" }))).await.json(200);
        ends(tokens, "the person was disabled").await;
    }

    async fn a_token_can_be_given_back(server: TestServer) {
        let ada = server.first_person().await;
        let tokens = issue(&server, &ada).await;
        let back = ask("POST", "/api/v1/auth/revoke").json(&json!({ "refresh_token": tokens["refresh_token"] }));
        assert_eq!(server.send(back).await.status.as_u16(), 204);
        assert_eq!(refresh(&server, &tokens).await.problem(401), "unauthenticated");
        let unknown = ask("POST", "/api/v1/auth/revoke").json(&json!({ "refresh_token": "x" }));
        assert_eq!(server.send(unknown).await.status.as_u16(), 204);
    }
}
