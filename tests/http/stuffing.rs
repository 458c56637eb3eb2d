//! Credential stuffing: many names from one address shut it out, no account, and nobody who was there before.

use std::time::Duration;

use bulkhead_app::HashingLimits;
use bulkhead_model::block::{STUFFED_NAMES, STUFFING_WITHIN};
use bulkhead_model::network::Network;
use bulkhead_model::password::Cost;
use serde_json::json;

use crate::people::{Browser, PASSWORD};
use crate::support::{Answer, Ask, TestServer, ask};

const EVE: &str = "198.51.100.7";
const BLOCKED: &str = "registered:abnormal-usage-detected";

fn name(n: u32) -> String {
    format!("name{n}@example.com")
}

fn login(ask: Ask, email: &str, password: &str, peer: &str) -> Ask {
    ask.json(&json!({ "email": email, "password": password })).peer(peer)
}

/// A try with what was stolen elsewhere, in no browser that anybody knows.
async fn guess(server: &TestServer, n: u32, peer: &str) -> Answer {
    server.send(login(ask("POST", "/api/v1/auth/login"), &name(n), "stolen elsewhere", peer)).await
}

/// Tries so many names; each is refused and nothing more.
async fn try_names(server: &TestServer, names: std::ops::Range<u32>, peer: &str) {
    for n in names {
        assert_eq!(guess(server, n, peer).await.problem(401), "unauthenticated", "{n}");
    }
}

/// The same server as another process of the same database, which remembers nothing.
fn anew(server: TestServer) -> TestServer {
    server.with_hashing(HashingLimits { cost: Cost::FLOOR, ..HashingLimits::default() })
}

on_both! {
    async fn many_names_shut_an_address_out_whichever_process_they_were_tried_at(server: TestServer) {
        try_names(&server, 0..STUFFED_NAMES - 1, EVE).await;
        // The same name again is no other one, however it is written.
        try_names(&server, 3..4, EVE).await;
        let again = login(ask("POST", "/api/v1/auth/login"), "NAME4@example.com", "stolen elsewhere", EVE);
        assert_eq!(server.send(again).await.status.as_u16(), 401);
        assert!(server.app.list_address_blocks_as_operator().await.unwrap().is_empty());
        let server = anew(server);
        try_names(&server, STUFFED_NAMES..STUFFED_NAMES + 1, EVE).await;
        let shut_out = guess(&server, 99, EVE).await;
        assert_eq!((shut_out.problem(429).as_str(), shut_out.header("retry-after")), (BLOCKED, "900"));
        // Each way to sign in, and nobody elsewhere.
        for path in ["auth/second-factor", "auth/password-reset", "auth/choose-password"] {
            let asked = ask("POST", format!("/api/v1/{path}")).json(&json!({})).peer(EVE);
            assert_eq!(server.send(asked).await.problem(429), BLOCKED, "{path}");
        }
        try_names(&server, 0..3, "198.51.100.8").await;
        // Let in, it begins anew. By then it is forgotten that guesses from there had to wait.
        server.app.lift_address_block_as_operator(Network::of(EVE.parse().unwrap())).await.unwrap();
        server.ambient.advance(Duration::from_hours(1));
        try_names(&server, 20..20 + STUFFED_NAMES, EVE).await;
        assert_eq!(guess(&server, 99, EVE).await.problem(429), BLOCKED);
    }

    async fn a_network_of_version_6_is_one_and_old_tries_are_forgotten(server: TestServer) {
        for n in 0..STUFFED_NAMES - 1 {
            try_names(&server, n..n + 1, &format!("2001:db8:1:2::{n:x}")).await;
        }
        server.ambient.advance(STUFFING_WITHIN + Duration::from_secs(1));
        try_names(&server, 50..51, "2001:db8:1:2::aaaa").await;
        try_names(&server, 60..60 + STUFFED_NAMES - 1, "2001:db8:1:2::bbbb").await;
        assert_eq!(guess(&server, 99, "2001:db8:1:2:ffff::1").await.problem(429), BLOCKED);
        try_names(&server, 0..1, "2001:db8:1:3::1").await;
    }

    /// An office is one address: whoever mistypes and then signs in is no name that failed.
    async fn who_signs_in_from_there_counts_for_nothing(server: TestServer) {
        server.first_person().await;
        try_names(&server, 0..STUFFED_NAMES - 2, EVE).await;
        let by_ada = |password: &'static str| {
            server.send(login(ask("POST", "/api/v1/auth/login"), "ada@example.com", password, EVE))
        };
        assert_eq!(by_ada("wrong wrong wrong").await.status.as_u16(), 401);
        assert_eq!(by_ada(PASSWORD).await.status.as_u16(), 200);
        try_names(&server, 80..81, EVE).await;
        assert!(server.app.list_address_blocks_as_operator().await.unwrap().is_empty(), "one fewer than it takes");
        try_names(&server, 81..82, EVE).await;
        assert_eq!(guess(&server, 99, EVE).await.problem(429), BLOCKED);
    }

    async fn others_of_the_address_go_on_with_what_they_had(server: TestServer) {
        let mut ada = server.first_person().await;
        let stranger = server.person("bo@example.com", Some(("acme", "viewer"))).await;
        let tenant = server.tenant("other").await;
        try_names(&server, 0..STUFFED_NAMES, EVE).await;
        assert_eq!(guess(&server, 99, EVE).await.problem(429), BLOCKED);
        // Sessions, keys, and a sign-in in a browser that is known.
        assert_eq!(server.send(ada.ask("GET", "/api/v1/me").peer(EVE)).await.status.as_u16(), 200);
        assert_eq!(server.send(ask("GET", tenant.at("audit")).key(&tenant.key).peer(EVE)).await.status.as_u16(), 200);
        let in_browser = |browser: &Browser, email: &str| {
            login(browser.ask("POST", "/api/v1/auth/login"), email, PASSWORD, EVE)
        };
        let answer = server.send(in_browser(&ada, "ada@example.com")).await;
        answer.json(200);
        ada.keep(&answer);
        // A browser of one's own is no way to try others' names, whether there is anybody of the name or not.
        for email in ["bo@example.com", "nobody@example.com"] {
            let refused = server.send(in_browser(&ada, email)).await;
            assert_eq!((refused.problem(429).as_str(), refused.header("retry-after")), ("too-many-attempts", "900"), "{email}");
        }
        // Nobody's browser is nobody's, also when it says so again, and one that was forgotten is.
        let made_up = || {
            let cookie = format!("__Host-bulkhead_device={}", "ab".repeat(32));
            login(ask("POST", "/api/v1/auth/login").header("cookie", &cookie), "ada@example.com", PASSWORD, EVE)
        };
        for _ in 0..2 {
            assert_eq!(server.send(made_up()).await.problem(429), BLOCKED);
        }
        let devices = server.send(stranger.ask("GET", "/api/v1/me/devices")).await.json(200);
        // One for the invitation, and one for the sign-in.
        for device in devices["items"].as_array().unwrap() {
            let path = format!("/api/v1/me/devices/{}", device["id"].as_str().unwrap());
            assert_eq!(server.send(stranger.ask("DELETE", &path)).await.status.as_u16(), 204);
        }
        assert_eq!(server.send(in_browser(&stranger, "bo@example.com")).await.problem(429), BLOCKED);
        // Nobody's account is shut: from elsewhere anybody signs in.
        let elsewhere = login(ask("POST", "/api/v1/auth/login"), "bo@example.com", PASSWORD, "198.51.100.8");
        assert_eq!(server.send(elsewhere).await.status.as_u16(), 200);
    }
}
