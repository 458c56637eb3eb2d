//! What somebody tries who has a part of what it takes: an address in common, a stolen session, a link, a right that ends soon.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bulkhead_app::HashingLimits;
use bulkhead_model::password::Cost;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::members::{invite, join, token_in};
use crate::people::{Browser, PASSWORD};
use crate::support::{Answer, Ask, PROXY, PUBLIC_URL, TestServer, ask};

const ADA: &str = "ada@example.com";
const BO: &str = "bo@example.com";
const WRONG: &str = "wrong wrong wrong";

/// A sign-in through the proxy, which writes down this client.
fn through_proxy(browser: &Browser, email: &str, password: &str, client: &str) -> Ask {
    let body = json!({ "email": email, "password": password });
    browser.ask("POST", "/api/v1/auth/login").json(&body).peer(PROXY).header("x-forwarded-for", client)
}

/// Steps up with the password.
async fn step_up(server: &TestServer, browser: &mut Browser) {
    let body = json!({ "password": PASSWORD });
    let proven = server.send(browser.ask("POST", "/api/v1/auth/step-up").json(&body)).await;
    proven.json(200);
    browser.keep(&proven);
}

async fn id_of(server: &TestServer, browser: &Browser) -> String {
    server.send(browser.ask("GET", "/api/v1/me")).await.json(200)["user"]["id"].as_str().unwrap().to_owned()
}

async fn make_key(server: &TestServer, browser: &Browser, org: &str) -> String {
    let body = json!({ "name": "nightly", "permissions": ["org.read"], "expires_in_days": 5 });
    let made = server.send(browser.ask("POST", &format!("/api/v1/orgs/{org}/api-keys")).json(&body)).await;
    made.json(201)["secret"].as_str().unwrap().to_owned()
}

async fn choose_by_mail(server: &TestServer, email: &str, password: &str) -> Answer {
    let forgot = json!({ "email": email });
    assert_eq!(server.send(ask("POST", "/api/v1/auth/password-reset").json(&forgot)).await.status.as_u16(), 202);
    let token = server.mailed_token("choose_password").await;
    let chosen = json!({ "token": token, "password": password });
    let chosen = server.send(ask("POST", "/api/v1/auth/choose-password").json(&chosen)).await;
    assert_eq!(chosen.status.as_u16(), 204, "{}", chosen.text());
    chosen
}

/// A body of which nothing comes before it is told to; and the news that somebody waits for it.
fn held(text: &str) -> (Body, oneshot::Receiver<()>, oneshot::Sender<()>) {
    let (asked, is_asked) = oneshot::channel();
    let (let_go, is_let_go) = oneshot::channel::<()>();
    let text = Bytes::from(text.to_owned());
    let stream = futures_util::stream::once(async move {
        let _ = asked.send(());
        let _ = is_let_go.await;
        Ok::<_, Infallible>(text)
    });
    (Body::from_stream(stream), is_asked, let_go)
}

/// Sends a request whose body comes after `meanwhile`.
async fn held_open(server: &TestServer, request: Ask, body: &str, meanwhile: impl Future<Output = ()>) -> Answer {
    let (body, is_asked, let_go) = held(body);
    let request = request.bytes("application/json", body);
    let ends = async {
        is_asked.await.expect("the request is let in and its body is read");
        meanwhile.await;
        let_go.send(()).unwrap();
    };
    tokio::join!(server.send(request), ends).0
}

on_both! {
    async fn a_stranger_behind_the_same_proxy_shuts_nobody_out(server: TestServer) {
        let mut known = server.first_person().await;
        let stranger = |n: usize| {
            // One network, whatever address of it; few names, or it would be shut out for trying so many.
            through_proxy(&Browser::default(), &format!("guess{}@example.com", n % 10), WRONG, &format!("2001:db8:1:2::{n:x}"))
        };
        for n in 0..30 {
            assert_eq!(server.send(stranger(n)).await.problem(401), "unauthenticated");
        }
        assert_eq!(server.send(stranger(30)).await.problem(429), "too-many-attempts");
        for (n, pause_s) in [1, 2, 4].into_iter().enumerate() {
            server.ambient.advance(Duration::from_secs(pause_s));
            assert_eq!(server.send(stranger(31 + n)).await.problem(401), "unauthenticated");
        }
        server.ambient.advance(Duration::from_secs(1));
        let elsewhere = through_proxy(&Browser::default(), ADA, PASSWORD, "198.51.100.7, 203.0.113.5");
        server.send(elsewhere).await.json(200);
        server.ambient.advance(Duration::from_secs(1));
        // Even from the stranger's own network: a browser that is known is counted by itself.
        let answer = server.send(through_proxy(&known, ADA, PASSWORD, "2001:db8:1:2::30")).await;
        answer.json(200);
        known.keep(&answer);
        let unknown = through_proxy(&Browser::default(), ADA, PASSWORD, "2001:db8:1:2::30");
        assert_eq!(server.send(unknown).await.problem(429), "too-many-attempts");
        let tried = server.send(known.ask("GET", "/api/v1/me/sign-ins")).await.json(200);
        let addresses: Vec<&Value> = tried["items"].as_array().unwrap().iter().map(|item| &item["address"]).collect();
        assert_eq!(addresses[..2], [&json!("2001:db8:1:2::30"), &json!("203.0.113.5")], "the client's, not the proxy's");
    }

    async fn nobody_but_the_proxy_says_where_a_request_comes_from(server: TestServer) {
        let ada = server.first_person().await;
        let bare = |peer: &str| ada.ask("GET", "/api/v1/me").peer(peer);
        for header in ["x-forwarded-for", "forwarded"] {
            let unreadable = server.send(bare(PROXY).header(header, "unknown")).await;
            assert_eq!(unreadable.problem(400), "invalid-header");
            assert!(unreadable.header("x-request-id").len() > 8 && !unreadable.header("x-frame-options").is_empty());
            server.send(bare("198.51.100.7").header(header, "unknown")).await.json(200);
        }
        let two = bare(PROXY).header("forwarded", "for=192.0.2.1").header("x-forwarded-for", "192.0.2.2");
        assert_eq!(server.send(two).await.problem(400), "invalid-header");
        server.send(bare(PROXY)).await.json(200);
        server.ambient.advance(Duration::from_secs(1));
        let body = json!({ "email": ADA, "password": PASSWORD });
        let direct = Browser::default().ask("POST", "/api/v1/auth/login").json(&body).peer("::ffff:198.51.100.7");
        server.send(direct.header("x-forwarded-for", "192.0.2.1")).await.json(200);
        let tried = server.send(ada.ask("GET", "/api/v1/me/sign-ins")).await.json(200);
        assert_eq!(tried["items"][0]["address"], "198.51.100.7");
        server.ambient.advance(Duration::from_secs(1));
        // Where a proxy is not named every client has its address: nobody is counted by it.
        let config = bulkhead_http::HttpConfig {
            trusted_proxies: bulkhead_model::client_address::TrustedProxies::default(),
            public_url: "https://bulkhead.test".to_owned(),
            ..crate::support::config()
        };
        let router = bulkhead_http::router(server.app.clone(), config);
        let signs_in = ask("POST", "/api/v1/auth/login").json(&body).peer("192.0.2.9");
        signs_in.send(&router).await.json(200);
        let tried = server.send(ada.ask("GET", "/api/v1/me/sign-ins")).await.json(200);
        assert_eq!(tried["items"][0]["address"], "");
    }

    async fn a_clock_that_is_put_right_keeps_nobody_out(server: TestServer) {
        server.first_person().await;
        let from = |password: &str| through_proxy(&Browser::default(), ADA, password, "203.0.113.5");
        assert_eq!(server.send(from(WRONG)).await.problem(401), "unauthenticated");
        server.send(from(PASSWORD)).await.json(200);
        server.ambient.set_back(Duration::from_hours(1));
        // What is counted of the address seems to be used up, and comes back from then on.
        drop(server.send(from(PASSWORD)).await);
        server.ambient.advance(Duration::from_mins(1));
        server.send(from(PASSWORD)).await.json(200);
    }

    /// A request is let in, and its body comes when everything of the person has ended.
    async fn a_request_that_is_held_open_makes_nothing_afterwards(server: TestServer) {
        let enrolled = server.enrol(server.first_person().await).await;
        let bo = server.person(BO, Some(("acme", "viewer"))).await;
        server.letters().await;
        let ends_all = async || drop(server.app.unlock_user_as_operator(ADA).await.unwrap());
        let mut ada = enrolled.browser.clone();
        for (method, path, body) in [
            ("PUT", "/api/v1/me/email", "{\"email\":\"evil@example.com\"}"),
            ("POST", "/api/v1/me/mfa/backup-codes", "{}"),
            ("POST", "/api/v1/me/mfa/totp", "{}"),
            ("POST", "/api/v1/me/tokens", "{}"),
        ] {
            let late = Box::pin(held_open(&server, ada.ask(method, path), body, ends_all())).await;
            assert_eq!(late.problem(401), "unauthenticated", "{path}");
            ada = Browser::default();
            ada.sign_in(&server, ADA, PASSWORD).await.json(202);
            server.second(&mut ada, json!({ "code": server.next_code(&enrolled.app) })).await.json(200);
        }
        let letters = server.letters().await;
        assert!(letters.iter().all(|letter| letter.to.as_str() != "evil@example.com"), "{letters:?}");
        let status = server.send(ada.ask("GET", "/api/v1/me/mfa")).await.json(200);
        assert_eq!((&status["backup_codes_left"], &status["set_up"]), (&json!(10), &Value::Null));
        // What somebody may is looked at again as well.
        let id = id_of(&server, &bo).await;
        let path = "/api/v1/orgs/acme/role-assignments";
        let given = server.send(ada.ask("POST", path).json(&json!({ "user": id, "role": "admin" }))).await.json(201);
        let taken = format!("{path}/{}", given["id"].as_str().unwrap());
        let demote = async { assert_eq!(server.send(ada.ask("DELETE", &taken)).await.status.as_u16(), 204) };
        let invites = bo.ask("POST", "/api/v1/orgs/acme/invitations");
        let body = "{\"email\":\"bo2@example.com\",\"role\":\"viewer\"}";
        let late = Box::pin(held_open(&server, invites, body, demote)).await;
        assert_eq!(late.problem(403), "forbidden");
    }

    /// A right for some hours, or one that is about to be taken away, became one for ever by an invitation.
    async fn an_invitation_is_worth_what_its_inviter_still_holds(server: TestServer) {
        let ada = server.first_person().await;
        let bo = server.person(BO, Some(("acme", "viewer"))).await;
        let path = "/api/v1/orgs/acme/role-assignments";
        let soon = "2026-11-21T12:00:00Z";
        let bo_id = id_of(&server, &bo).await;
        let for_hours = json!({ "user": bo_id, "role": "admin", "valid_until": soon });
        server.send(ada.ask("POST", path).json(&for_hours)).await.json(201);
        let invites = async |email: &str, end: Value| {
            let body = json!({ "email": email, "role": "admin", "valid_until": end });
            server.send(bo.ask("POST", "/api/v1/orgs/acme/invitations").json(&body)).await
        };
        for longer in [Value::Null, json!("2026-11-21T12:00:01Z")] {
            let refused = invites("bo2@example.com", longer).await;
            assert_eq!(refused.error(422), ("/valid_until".to_owned(), "exceeds-own-rights".to_owned()));
        }
        assert_eq!(invites("bo2@example.com", json!("2026-11-21T07:00:00Z")).await.problem(422), "invalid-window");
        invites("bo2@example.com", json!(soon)).await.json(201);
        assert_eq!(join(&server, &server.mailed_token("join").await, "Bo Two").await.status.as_u16(), 204);
        let mut second = Browser::default();
        second.sign_in(&server, "bo2@example.com", PASSWORD).await.json(200);
        let id = id_of(&server, &second).await;
        let held = server.send(ada.ask("GET", &format!("{path}?user={id}"))).await.json(200);
        let held = &held["items"][0];
        assert_eq!((&held["role"], &held["valid_until"], &held["granted_by"]), (&json!("admin"), &json!("2026-11-21T12:00:00.000000Z"), &json!(bo_id)));

        // Demoted, and removed: what they invited to is worth nothing.
        let cy = server.person("cy@example.com", Some(("acme", "admin"))).await;
        let cy_id = id_of(&server, &cy).await;
        invite(&server, &cy, "eve@example.com", "admin").await.json(201);
        let eve = server.mailed_token("join").await;
        let listed = server.send(ada.ask("GET", &format!("{path}?user={cy_id}"))).await.json(200);
        let taken = format!("{path}/{}", listed["items"][0]["id"].as_str().unwrap());
        assert_eq!(server.send(ada.ask("DELETE", &taken)).await.status.as_u16(), 204);
        assert_eq!(join(&server, &eve, "Eve").await.problem(422), "invalid-link");
        server.send(ada.ask("POST", path).json(&json!({ "user": cy_id, "role": "admin" }))).await.json(201);
        invite(&server, &cy, "fay@example.com", "viewer").await.json(201);
        let fay = server.mailed_token("join").await;
        let member = format!("/api/v1/orgs/acme/members/{cy_id}");
        assert_eq!(server.send(ada.ask("DELETE", &member)).await.status.as_u16(), 204);
        assert_eq!(join(&server, &fay, "Fay").await.problem(422), "invalid-link");
        let listed = server.send(ada.ask("GET", "/api/v1/orgs/acme/invitations")).await.json(200);
        let of_fay = listed["items"].as_array().unwrap().iter().find(|item| item["email"] == "fay@example.com").unwrap();
        assert!(of_fay["revoked_at"].is_string());
    }

    /// A link that somebody with a stolen session asked for outlived all that should have thrown them out.
    async fn a_link_to_another_address_ends_with_everything_else(server: TestServer) {
        let mut ada = server.first_person().await;
        let change = |browser: &Browser| {
            browser.ask("PUT", "/api/v1/me/email").json(&json!({ "email": "evil@example.com" }))
        };
        let verify = |token: &str| ask("POST", "/api/v1/auth/verify-email").json(&json!({ "token": token }));
        assert_eq!(server.send(change(&ada)).await.status.as_u16(), 202);
        let letters = server.letters().await;
        let told = letters.iter().find(|letter| letter.to.as_str() == ADA).expect("the address of now is told");
        assert_eq!(told.subject, "Another address for your account");
        let link = letters.iter().find(|letter| letter.to.as_str() == "evil@example.com").unwrap();
        let token = token_in(link, "verify_email");
        choose_by_mail(&server, ADA, "quiet marble lantern").await;
        assert_eq!(server.send(verify(&token)).await.problem(422), "invalid-link");
        // So did a letter on its way.
        ada.sign_in(&server, ADA, "quiet marble lantern").await.json(200);
        assert_eq!(server.send(change(&ada)).await.status.as_u16(), 202);
        let body = json!({ "password": "quiet marble lantern", "new_password": PASSWORD });
        let changed = server.send(ada.ask("PUT", "/api/v1/me/password").json(&body)).await;
        changed.json(200);
        ada.keep(&changed);
        let letters = server.letters().await;
        assert!(letters.iter().all(|letter| letter.to.as_str() == ADA), "{letters:?}");
        let log = server.send(ada.ask("GET", "/api/v1/orgs/acme/audit?limit=200")).await.json(200).to_string();
        assert!(log.contains("email.change_requested") && log.contains("password.reset_requested"));
    }

    /// The proof that somebody gives in a browser is not that of a token on another machine.
    async fn an_access_token_proves_what_it_was_given_for_and_no_more(server: TestServer) {
        let mut ada = server.first_person().await;
        let tokens = server.send(ada.ask("POST", "/api/v1/me/tokens")).await.json(201);
        server.ambient.advance(Duration::from_mins(11));
        step_up(&server, &mut ada).await;
        let refresh = ask("POST", "/api/v1/auth/refresh").json(&json!({ "refresh_token": tokens["refresh_token"] }));
        let tokens = server.send(refresh).await.json(200);
        let token = tokens["access_token"].as_str().unwrap();
        server.send(ask("GET", "/api/v1/orgs/acme").key(token)).await.json(200);
        let key = json!({ "name": "x", "permissions": ["org.read"] });
        let refused = server.send(ask("POST", "/api/v1/orgs/acme/api-keys").key(token).json(&key)).await;
        assert_eq!(refused.problem(403), "session-needed");
        server.send(ada.ask("POST", "/api/v1/orgs/acme/api-keys").json(&key)).await.json(201);
        let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!(claims["amr"], json!(["pwd"]));
        assert_eq!(claims["iat"].as_i64().unwrap() - claims["auth_time"].as_i64().unwrap(), 660);
    }

    async fn granting_and_rotating_ask_for_a_fresh_proof(server: TestServer) {
        let ada = server.first_person().await;
        let tokens = server.send(ada.ask("POST", "/api/v1/me/tokens")).await.json(201);
        let token = tokens["access_token"].as_str().unwrap();
        let grants = json!({ "permissions": [{ "kind": "secret", "name": "signing_key", "inject": { "origins": [] } }] });
        let install = |grants: &Value| json!({ "plugin": "acme/signer", "version": "1.0.0", "grants": grants });
        let path = "/api/v1/orgs/acme/installations";
        let by_token = server.send(ask("POST", path).key(token).json(&install(&grants))).await;
        assert_eq!(by_token.problem(403), "session-needed");
        let fresh = server.send(ada.ask("POST", path).json(&install(&grants))).await;
        assert_eq!(fresh.problem(422), "invalid-installation", "there is no such plugin, which is looked at afterwards");
        server.ambient.advance(Duration::from_mins(10));
        let stale = server.send(ada.ask("POST", path).json(&install(&grants))).await;
        assert_eq!(stale.problem(401), "step-up-required");
        let without = server.send(ada.ask("POST", path).json(&install(&json!({ "permissions": [] })))).await;
        assert_eq!(without.problem(422), "invalid-installation");
        let rotate = ada.ask("POST", "/api/v1/orgs/acme/key-rotations").json(&json!({ "level": "data" }));
        assert_eq!(server.send(rotate).await.problem(401), "step-up-required");
    }

    /// An administrator of one organization ended keys and sessions of a person in all others, and saw which those are.
    async fn an_administrator_ends_what_is_of_his_organization_alone(server: TestServer) {
        let ada = server.first_person().await;
        let other = server.tenant("other").await;
        let mut bo = server.person(BO, Some(("acme", "admin"))).await;
        let id = id_of(&server, &bo).await;
        let of_acme = make_key(&server, &bo, "acme").await;
        let until = "2026-12-01T00:00:00Z";
        let lasting = json!({ "email": BO, "role": "admin" });
        let refused = server.post(&other, "invitations", &lasting).await;
        assert_eq!(refused.problem(422), "exceeds-own-rights", "a key gives nothing for longer than it lives");
        let invitation = json!({ "email": BO, "role": "admin", "valid_until": until });
        server.post(&other, "invitations", &invitation).await.json(201);
        let token = server.mailed_token("join").await;
        let joined = server.send(bo.ask("POST", "/api/v1/auth/join").json(&json!({ "token": token }))).await;
        assert_eq!(joined.status.as_u16(), 204, "{}", joined.text());
        let of_other = make_key(&server, &bo, "other").await;
        let here = bo.clone();
        bo = Browser::default();
        bo.sign_in(&server, BO, PASSWORD).await.json(200);
        let switch = bo.ask("PUT", "/api/v1/me/active-organization").json(&json!({ "organization": "other" }));
        server.send(switch).await.json(200);
        let sessions = format!("/api/v1/orgs/acme/members/{id}/sessions");
        let seen = server.send(ada.ask("GET", &sessions)).await.json(200);
        assert_eq!(seen["items"].as_array().unwrap().len(), 1);
        assert!(!seen.to_string().contains(&other.org), "{seen}");
        let elsewhere = server.send(bo.ask("GET", "/api/v1/me")).await.json(200)["session"]["id"].as_str().unwrap().to_owned();
        let end = server.send(ada.ask("DELETE", &format!("{sessions}/{elsewhere}"))).await;
        assert_eq!(end.problem(404), "not-found");
        let known = server.send(bo.ask("GET", "/api/v1/me/devices")).await.json(200);
        let state = ada.ask("PUT", &format!("/api/v1/orgs/acme/members/{id}/state"));
        server.send(state.json(&json!({ "state": "disabled" }))).await.json(200);
        let asks = async |org: &str, key: &str| server.send(ask("GET", format!("/api/v1/orgs/{org}")).key(key)).await;
        assert_eq!(asks("acme", &of_acme).await.problem(401), "unauthenticated");
        asks("other", &of_other).await.json(200);
        assert_eq!(server.send(here.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated");
        server.send(bo.ask("GET", "/api/v1/orgs/other")).await.json(200);
        assert_eq!(server.send(bo.ask("GET", "/api/v1/orgs/acme")).await.problem(404), "not-found");
        assert_eq!(server.send(bo.ask("GET", "/api/v1/me/devices")).await.json(200), known, "and every browser stays known");
    }

    /// Whoever changed a password because of a stranger was shut out by the stranger.
    async fn after_a_change_the_browser_that_made_it_is_known(server: TestServer) {
        let mut ada = server.first_person().await;
        let strangers = async |password: &str| {
            for _ in 0..6 {
                Browser::default().sign_in(&server, ADA, password).await;
            }
            let waits = Browser::default().sign_in(&server, ADA, password).await;
            assert_eq!(waits.problem(429), "too-many-attempts");
        };
        let body = json!({ "password": PASSWORD, "new_password": "quiet marble lantern" });
        let changed = server.send(ada.ask("PUT", "/api/v1/me/password").json(&body)).await;
        changed.json(200);
        ada.keep(&changed);
        strangers(WRONG).await;
        let out = server.send(ada.ask("POST", "/api/v1/auth/logout")).await;
        ada.keep(&out);
        ada.sign_in(&server, ADA, "quiet marble lantern").await.json(200);
        // In a live session what strangers try is nobody's affair, whether its browser is known or not.
        let listed = server.send(ada.ask("GET", "/api/v1/me/devices")).await.json(200);
        assert_eq!(listed["items"].as_array().unwrap().len(), 1);
        // Whoever chose a password by mail is known by it, and nobody else is.
        server.letters().await;
        let chosen = choose_by_mail(&server, ADA, PASSWORD).await;
        let mut by_mail = Browser::default();
        by_mail.keep(&chosen);
        by_mail.sign_in(&server, ADA, PASSWORD).await.json(200);
        server.letters().await;
        server.ambient.advance(Duration::from_hours(25));
        Browser::default().sign_in(&server, ADA, PASSWORD).await.json(200);
        let letters = server.letters().await;
        assert!(letters.iter().any(|letter| letter.subject == "A new sign-in"), "{letters:?}");
        assert!(letters[0].body.contains(PUBLIC_URL));
    }

    /// The first sign-in after everything was forgotten is the one to be told of.
    async fn a_strange_browser_after_a_change_is_news(server: TestServer) {
        let ada = server.first_person().await;
        server.app.unlock_user_as_operator(ADA).await.unwrap();
        assert_eq!(server.send(ada.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated");
        server.letters().await;
        Browser::default().sign_in(&server, ADA, PASSWORD).await.json(200);
        assert_eq!(server.letters().await[0].subject, "A new sign-in");
    }

    async fn tokens_of_a_session_that_nobody_uses_are_seen_and_ended(server: TestServer) {
        server.first_person().await;
        let bo = server.person(BO, Some(("acme", "viewer"))).await;
        let tokens = server.send(bo.ask("POST", "/api/v1/me/tokens")).await.json(201);
        server.ambient.advance(Duration::from_mins(31));
        assert_eq!(server.send(bo.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated");
        let mut later = Browser::default();
        later.sign_in(&server, BO, PASSWORD).await.json(200);
        let refresh = async |tokens: &Value| {
            let body = json!({ "refresh_token": tokens["refresh_token"] });
            server.send(ask("POST", "/api/v1/auth/refresh").json(&body)).await
        };
        let tokens = refresh(&tokens).await.json(200);
        let listed = server.send(later.ask("GET", "/api/v1/me/sessions")).await.json(200);
        let items = listed["items"].as_array().unwrap();
        let counts: Vec<&Value> = items.iter().map(|item| &item["tokens"]).collect();
        assert_eq!(counts, [&json!(0), &json!(1)], "{listed}");
        let end = format!("/api/v1/me/sessions/{}", items[1]["id"].as_str().unwrap());
        assert_eq!(server.send(later.ask("DELETE", &end)).await.status.as_u16(), 204);
        assert_eq!(refresh(&tokens).await.problem(401), "unauthenticated");
    }

    /// Whoever is sent away because too many sign in has tried nothing.
    async fn being_sent_away_is_no_attempt(server: TestServer) {
        let mut known = server.first_person().await;
        let limits = HashingLimits { cost: Cost::FLOOR, at_once_max: 1, waiting_max: 0 };
        let server = server.with_hashing(limits);
        let (stop, is_stopped) = tokio::sync::watch::channel(false);
        let crowd = async |name: usize| {
            let mut n = 0;
            while !*is_stopped.borrow() {
                Browser::default().sign_in(&server, &format!("crowd{name}-{n}@example.com"), WRONG).await;
                n += 1;
            }
        };
        let owner = async {
            let mut in_a_row = 0;
            for _ in 0..2_000 {
                let answer = known.sign_in(&server, ADA, PASSWORD).await;
                if answer.status.as_u16() == 200 {
                    in_a_row = 0;
                } else {
                    assert_eq!(answer.problem(429), "busy", "nothing else stands in the way");
                    in_a_row += 1;
                }
                if in_a_row == 7 {
                    break;
                }
            }
            stop.send(true).unwrap();
            in_a_row
        };
        let (in_a_row, ..) = tokio::join!(owner, crowd(0), crowd(1), crowd(2), crowd(3), crowd(4), crowd(5));
        assert_eq!(in_a_row, 7, "the crowd was never there first");
        known.sign_in(&server, ADA, PASSWORD).await.json(200);
    }

    async fn letters_that_others_are_sent_are_bounded(server: TestServer) {
        let ada = server.first_person().await;
        for _ in 0..3 {
            invite(&server, &ada, BO, "viewer").await.json(201);
        }
        assert_eq!(invite(&server, &ada, BO, "viewer").await.problem(429), "too-many-attempts");
        invite(&server, &ada, "cy@example.com", "viewer").await.json(201);
        let enrolled = server.enrol(ada).await;
        for _ in 0..3 {
            server.send(enrolled.browser.ask("POST", "/api/v1/me/mfa/backup-codes")).await.json(201);
        }
        let more = server.send(enrolled.browser.ask("POST", "/api/v1/me/mfa/backup-codes")).await;
        assert_eq!(more.problem(429), "too-many-attempts");
    }

    async fn what_people_do_is_told(server: TestServer) {
        let ada = server.first_person().await;
        let invited = invite(&server, &ada, BO, "viewer").await.json(201);
        let taken_back = format!("/api/v1/orgs/acme/invitations/{}", invited["id"].as_str().unwrap());
        assert_eq!(server.send(ada.ask("DELETE", &taken_back)).await.status.as_u16(), 204);
        server.letters().await;
        invite(&server, &ada, "cy@example.com", "viewer").await.json(201);
        assert_eq!(join(&server, &server.mailed_token("join").await, "Cy").await.status.as_u16(), 204);
        let tokens = server.send(ada.ask("POST", "/api/v1/me/tokens")).await.json(201);
        let back = ask("POST", "/api/v1/auth/revoke").json(&json!({ "refresh_token": tokens["refresh_token"] }));
        assert_eq!(server.send(back).await.status.as_u16(), 204);
        server.send(ada.ask("POST", "/api/v1/me/mfa/totp")).await.json(201);
        let switch = ada.ask("PUT", "/api/v1/me/active-organization").json(&json!({ "organization": "acme" }));
        server.send(switch).await.json(200);
        let log = server.send(ada.ask("GET", "/api/v1/orgs/acme/audit?limit=200")).await.json(200);
        let told: Vec<&str> = log["items"].as_array().unwrap().iter().map(|item| item["action"].as_str().unwrap()).collect();
        for action in [
            "user.invited", "invitation.revoked", "role.assigned", "token.issued", "token.revoked", "mfa.set_up_begun", "session.switched",
        ] {
            assert!(told.contains(&action), "{action}: {told:?}");
        }
    }
}
