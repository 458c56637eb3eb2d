//! The link in letters that tell of something: it ends everything of an account, and nothing else.

use std::time::Duration;

use serde_json::json;

use crate::members::token_in;
use crate::people::{Browser, PASSWORD};
use crate::support::{Answer, TestServer, ask};

const BO: &str = "bo@example.com";

async fn revoke(server: &TestServer, token: &str) -> Answer {
    server.send(ask("POST", "/api/v1/auth/revoke-account").json(&json!({ "token": token }))).await
}

/// The token in the one letter with this subject.
async fn told(server: &TestServer, subject: &str) -> String {
    let mut letters = server.letters().await;
    letters.retain(|letter| letter.subject == subject);
    assert_eq!(letters.len(), 1, "{letters:?}");
    token_in(&letters[0], "revoke")
}

on_both! {
    async fn whoever_it_was_not_ends_everything_with_the_letters_link(server: TestServer) {
        let ada = server.first_person().await;
        let mut bo = server.person(BO, Some(("acme", "admin"))).await;
        let key = json!({ "name": "k", "permissions": ["org.read"] });
        let key = server.send(bo.ask("POST", "/api/v1/orgs/acme/api-keys").json(&key)).await.json(201);
        server.letters().await;
        // Somebody has the password, and makes themselves at home.
        let mut thief = Browser::default();
        thief.sign_in(&server, BO, PASSWORD).await.json(200);
        let token = told(&server, "A new sign-in").await;
        let tokens = server.send(thief.ask("POST", "/api/v1/me/tokens")).await.json(201);
        let mut machine = server.with_passkey(&mut thief, "thief's").await;
        let answer = revoke(&server, &token).await;
        assert_eq!(answer.status.as_u16(), 204, "{}", answer.text());
        assert_eq!(answer.header("set-cookie"), "", "it signs nobody in");
        for browser in [&thief, &bo] {
            assert_eq!(server.send(browser.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated");
        }
        let by_key = ask("GET", "/api/v1/orgs/acme").key(key["secret"].as_str().unwrap());
        assert_eq!(server.send(by_key).await.problem(401), "unauthenticated");
        let refresh = ask("POST", "/api/v1/auth/refresh").json(&json!({ "refresh_token": tokens["refresh_token"] }));
        assert_eq!(server.send(refresh).await.problem(401), "unauthenticated");
        assert_eq!(server.by_passkey(&mut Browser::default(), &mut machine).await.problem(401), "unauthenticated", "added since");
        assert_eq!(thief.sign_in(&server, BO, PASSWORD).await.problem(401), "unauthenticated", "the password is worth nothing");
        // A letter to choose another one is on its way.
        let chosen = json!({ "token": server.mailed_token("choose_password").await, "password": "quiet marble lantern" });
        let chosen = server.send(ask("POST", "/api/v1/auth/choose-password").json(&chosen)).await;
        assert_eq!(chosen.status.as_u16(), 204);
        bo.sign_in(&server, BO, "quiet marble lantern").await.json(200);
        assert_eq!(revoke(&server, &token).await.problem(422), "invalid-link", "once");
        let log = server.send(ada.ask("GET", "/api/v1/orgs/acme/audit?action=session.revoked")).await.json(200);
        assert_eq!((&log["items"][0]["detail"]["by"], &log["items"][0]["detail"]["factors"]), (&json!("letter"), &json!(1)));
    }

    async fn what_was_there_before_stays_and_a_link_ends_with_its_time(server: TestServer) {
        server.first_person().await;
        let mut bo = server.person(BO, Some(("acme", "viewer"))).await;
        let mut machine = server.with_passkey(&mut bo, "mine").await;
        server.ambient.advance(Duration::from_hours(1));
        server.letters().await;
        let mut thief = Browser::default();
        server.by_passkey(&mut thief, &mut machine).await.json(200);
        let late = told(&server, "A new sign-in").await;
        server.ambient.advance(Duration::from_hours(24 * 7));
        assert_eq!(revoke(&server, &late).await.problem(422), "invalid-link", "a week");
        server.app.tidy_people().await.unwrap();
        server.by_passkey(&mut Browser::default(), &mut machine).await.json(200);
        let token = told(&server, "A new sign-in").await;
        assert_eq!(revoke(&server, &token).await.status.as_u16(), 204);
        server.by_passkey(&mut Browser::default(), &mut machine).await.json(200);
    }

    /// Whoever gets in changes the address first: the letter to choose a password would be theirs.
    async fn an_account_whose_address_was_taken_is_shut(server: TestServer) {
        server.first_person().await;
        let thief = server.person(BO, Some(("acme", "viewer"))).await;
        let change = thief.ask("PUT", "/api/v1/me/email").json(&json!({ "email": "thief@example.com" }));
        assert_eq!(server.send(change).await.status.as_u16(), 202);
        let verify = json!({ "token": server.mailed_token("verify_email").await });
        let verified = server.send(ask("POST", "/api/v1/auth/verify-email").json(&verify)).await;
        assert_eq!(verified.status.as_u16(), 204);
        let token = told(&server, "Your address was changed").await;
        let mut thief = Browser::default();
        thief.sign_in(&server, "thief@example.com", PASSWORD).await.json(200);
        // More changes end everything else, and not the link.
        let body = json!({ "password": PASSWORD, "new_password": "quiet marble lantern" });
        server.send(thief.ask("PUT", "/api/v1/me/password").json(&body)).await.json(200);
        server.letters().await;
        assert_eq!(revoke(&server, &token).await.status.as_u16(), 204);
        assert!(server.letters().await.iter().all(|letter| letter.subject != "Choose a new password"), "it would be the thief's");
        let refused = thief.sign_in(&server, "thief@example.com", "quiet marble lantern").await;
        assert_eq!(refused.problem(401), "unauthenticated");
        let forgot = ask("POST", "/api/v1/auth/password-reset").json(&json!({ "email": "thief@example.com" }));
        assert_eq!(server.send(forgot).await.status.as_u16(), 202);
        assert!(server.letters().await.is_empty(), "shut until the operator opens it");
    }

    async fn no_other_link_ends_anything_and_this_one_does_nothing_else(server: TestServer) {
        let ada = server.first_person().await;
        Browser::default().sign_in(&server, "ada@example.com", PASSWORD).await.json(200);
        let token = told(&server, "A new sign-in").await;
        for (path, body) in [
            ("choose-password", json!({ "token": token, "password": "quiet marble lantern" })),
            ("verify-email", json!({ "token": token })),
        ] {
            let used = server.send(ask("POST", format!("/api/v1/auth/{path}")).json(&body)).await;
            assert_eq!(used.problem(422), "invalid-link", "{path}");
        }
        let forgot = ask("POST", "/api/v1/auth/password-reset").json(&json!({ "email": "ada@example.com" }));
        server.send(forgot).await;
        let other = server.mailed_token("choose_password").await;
        for odd in [other.as_str(), "", "x", &token[1..]] {
            assert_eq!(revoke(&server, odd).await.problem(422), "invalid-link", "{odd}");
        }
        server.send(ada.ask("GET", "/api/v1/me")).await.json(200);
    }
}
