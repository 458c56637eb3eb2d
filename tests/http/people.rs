//! People: the first of them, signing in, sessions, and what a session opens.

use std::time::Duration;

use bulkhead_app::account::NewUser;
use bulkhead_model::mfa::MfaPolicy;
use serde_json::{Value, json};

use crate::support::{Answer, Ask, PUBLIC_URL, TestServer, ask};

pub(crate) const PASSWORD: &str = "violet cement orbit";

/// A browser: its cookies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Browser {
    cookies: Vec<(String, String)>,
}

impl Browser {
    /// The request as this browser's own page sends it.
    pub(crate) fn ask(&self, method: &str, path: &str) -> Ask {
        self.from(ask(method, path), "same-origin")
    }

    /// … as a page of that site makes it send it.
    fn from(&self, ask: Ask, site: &str) -> Ask {
        let cookies: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let ask = if cookies.is_empty() { ask } else { ask.header("cookie", &cookies.join("; ")) };
        ask.header("sec-fetch-site", site).header("user-agent", "Suite/1.0")
    }

    /// Keeps what an answer sets.
    pub(crate) fn keep(&mut self, answer: &Answer) {
        for value in answer.headers.get_all("set-cookie") {
            let text = value.to_str().unwrap();
            assert!(text.starts_with("__Host-") && text.contains("; Path=/; Secure; HttpOnly; SameSite=Lax"), "{text}");
            let (name, rest) = text.split_once('=').unwrap();
            let value = rest.split(';').next().unwrap();
            self.cookies.retain(|(kept, _)| kept != name);
            if !value.is_empty() {
                self.cookies.push((name.to_owned(), value.to_owned()));
            }
        }
    }

    pub(crate) fn session(&self) -> Option<&str> {
        self.cookies.iter().find(|(name, _)| name == "__Host-bulkhead_session").map(|(_, value)| value.as_str())
    }

    pub(crate) async fn sign_in(&mut self, server: &TestServer, email: &str, password: &str) -> Answer {
        let answer = server
            .send(self.ask("POST", "/api/v1/auth/login").json(&json!({ "email": email, "password": password })))
            .await;
        self.keep(&answer);
        answer
    }
}

impl TestServer {
    pub(crate) fn set_up_body(token: &str, email: &str) -> Value {
        json!({
            "token": token, "email": email, "name": "Ada Lovelace", "password": PASSWORD,
            "organization": { "slug": "acme", "name": "Acme Inc." },
        })
    }

    /// Lets people work in Acme without a second factor.
    pub(crate) async fn ask_nobody_for_mfa(&self) {
        let acme = self.app.find_org("acme".parse().unwrap()).await.unwrap().unwrap();
        self.ask_for_mfa(acme.id, MfaPolicy::Optional).await;
    }

    /// A first person with an organization that asks nobody for a second factor; a browser that is signed in as them.
    pub(crate) async fn first_person(&self) -> Browser {
        let browser = self.first_person_who_is_asked_for_mfa().await;
        self.ask_nobody_for_mfa().await;
        browser
    }

    /// … in an organization as set-up makes it.
    pub(crate) async fn first_person_who_is_asked_for_mfa(&self) -> Browser {
        let token = self.app.offer_set_up().await.unwrap().unwrap();
        self.send(ask("POST", "/api/v1/setup").json(&Self::set_up_body(&token, "ada@example.com"))).await.json(201);
        let mut browser = Browser::default();
        browser.sign_in(self, "ada@example.com", PASSWORD).await.json(200);
        browser
    }

    /// Another person, who belongs to these organizations.
    pub(crate) async fn person(&self, email: &str, member_of: Option<(&str, &str)>) -> Browser {
        let member_of = match member_of {
            Some((slug, role)) => {
                Some((self.app.find_org(slug.parse().unwrap()).await.unwrap().unwrap().id, role.to_owned()))
            }
            None => None,
        };
        let new = NewUser { email: email.to_owned(), name: "Bo Other".to_owned(), is_super_admin: false, member_of };
        let (_, token) = self.app.create_user_as_operator(new).await.unwrap();
        let body = json!({ "token": token, "password": PASSWORD });
        let chosen = self.send(ask("POST", "/api/v1/auth/choose-password").json(&body)).await;
        assert_eq!(chosen.status.as_u16(), 204, "{}", chosen.text());
        let mut browser = Browser::default();
        browser.sign_in(self, email, PASSWORD).await.json(200);
        browser
    }
}

on_both! {
    async fn from_the_set_up_link_to_the_organization_and_out(server: TestServer) {
        let token = server.app.offer_set_up().await.unwrap().unwrap();
        assert_eq!(server.app.offer_set_up().await.unwrap().unwrap(), token, "a restart says the same link");
        let made = server.send(ask("POST", "/api/v1/setup").json(&TestServer::set_up_body(&token, "Ada@Example.com"))).await.json(201);
        assert_eq!(made["user"]["email"], "ada@example.com");
        assert_eq!(made["user"]["super_admin"], true);
        assert_eq!(server.app.offer_set_up().await.unwrap(), None, "there is somebody now");
        let again = server.send(ask("POST", "/api/v1/setup").json(&TestServer::set_up_body(&token, "eve@example.com"))).await;
        assert_eq!(again.problem(422), "invalid-link");

        let mut browser = Browser::default();
        let answer = browser.sign_in(&server, "ADA@example.com", PASSWORD).await;
        let me = answer.json(200);
        assert_eq!((me["organizations"][0]["slug"].as_str(), me["organizations"][0]["role"].as_str()), (Some("acme"), Some("admin")));
        assert!(!answer.text().contains(browser.session().unwrap()), "the token is in the cookie alone");
        assert_eq!(server.send(browser.ask("GET", "/api/v1/me")).await.json(200), me);
        server.ask_nobody_for_mfa().await;
        let org = server.send(browser.ask("GET", "/api/v1/orgs/acme")).await.json(200);
        assert_eq!(org["name"], "Acme Inc.");

        // What a person does is told with who it was, and a key that a person makes works.
        let body = json!({ "name": "ci", "permissions": ["audit.read"] });
        let key = server.send(browser.ask("POST", "/api/v1/orgs/acme/api-keys").json(&body)).await.json(201);
        let log = server.send(ask("GET", "/api/v1/orgs/acme/audit").key(key["secret"].as_str().unwrap())).await.json(200);
        let told: Vec<(&str, &str)> = log["items"].as_array().unwrap().iter()
            .map(|entry| (entry["action"].as_str().unwrap(), entry["actor"].as_str().unwrap())).collect();
        let ada = made["user"]["id"].as_str().unwrap();
        for action in ["org.created", "user.joined", "session.started", "api_key.created"] {
            assert!(told.contains(&(action, ada)), "{action}: {told:?}");
        }

        let out = server.send(browser.ask("POST", "/api/v1/auth/logout")).await;
        assert_eq!(out.status.as_u16(), 204);
        let old = browser.clone();
        browser.keep(&out);
        assert_eq!(browser.session(), None);
        assert_eq!(server.send(old.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated", "the token is worth nothing");
        assert_eq!(server.send(old.ask("GET", "/api/v1/orgs/acme")).await.problem(401), "unauthenticated");
    }

    /// A key that keeps what its owner has lost is a way round every demotion.
    async fn a_key_may_what_its_owner_may_now(server: TestServer) {
        let ada = server.first_person().await;
        let cy = server.person("cy@example.com", Some(("acme", "admin"))).await;
        let make = json!({ "name": "all", "permissions": ["org.read", "audit.read", "api_keys.write", "access.check"] });
        let made = server.send(cy.ask("POST", "/api/v1/orgs/acme/api-keys").json(&make)).await.json(201);
        let key = made["secret"].as_str().unwrap();
        let of_key = json!({ "name": "of a key", "permissions": ["org.read", "audit.read"] });
        let second = server.send(ask("POST", "/api/v1/orgs/acme/api-keys").key(key).json(&of_key)).await.json(201);
        let second = second["secret"].as_str().unwrap();
        let audit = |key: &str| server.send(ask("GET", "/api/v1/orgs/acme/audit").key(key));
        audit(key).await.json(200);
        audit(second).await.json(200);
        let me = server.send(cy.ask("GET", "/api/v1/me")).await.json(200)["user"]["id"].as_str().unwrap().to_owned();
        let path = "/api/v1/orgs/acme/role-assignments";
        let listed = server.send(ada.ask("GET", &format!("{path}?user={me}"))).await.json(200);
        let of_admin = listed["items"][0]["id"].as_str().unwrap();
        let viewer = json!({ "user": me, "role": "viewer" });
        server.send(ada.ask("POST", path).json(&viewer)).await.json(201);
        assert_eq!(server.send(ada.ask("DELETE", &format!("{path}/{of_admin}"))).await.status.as_u16(), 204);
        for key in [key, second] {
            assert_eq!(audit(key).await.problem(403), "forbidden", "the owner reads no log any more");
            server.send(ask("GET", "/api/v1/orgs/acme").key(key)).await.json(200);
        }
        let checks = json!({ "checks": [{ "subject": made["id"], "permission": "audit.read" }, { "subject": made["id"], "permission": "org.read" }] });
        let checked = server.send(ada.ask("POST", "/api/v1/orgs/acme/access/check").json(&checks)).await;
        let allowed: Vec<bool> = checked.json(200)["decisions"].as_array().unwrap().iter().map(|one| one["is_allowed"].as_bool().unwrap()).collect();
        assert_eq!(allowed, [false, true]);
        server.send(ada.ask("POST", path).json(&json!({ "user": me, "role": "admin" }))).await.json(201);
        audit(key).await.json(200);
        let disable = ada.ask("PUT", &format!("/api/v1/orgs/acme/members/{me}/state")).json(&json!({ "state": "disabled" }));
        server.send(disable).await.json(200);
        for key in [key, second] {
            assert_eq!(audit(key).await.problem(401), "unauthenticated");
        }
    }

    /// OneUptime GHSA-3qqq-hprx-g2jw: two at once both became the first admin.
    async fn of_two_first_sign_ups_at_once_one_succeeds(server: TestServer) {
        let token = server.app.offer_set_up().await.unwrap().unwrap();
        let bodies: Vec<Value> = (0..6).map(|n| TestServer::set_up_body(&token, &format!("first{n}@example.com"))).collect();
        let answers = futures_util::future::join_all(
            bodies.iter().map(|body| server.send(ask("POST", "/api/v1/setup").json(body)))).await;
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status.as_u16()).collect();
        assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
        assert!(statuses.iter().all(|status| [201, 409, 422].contains(status)), "{statuses:?}");
        let mut signed_in = 0;
        for n in 0..6 {
            let answer = Browser::default().sign_in(&server, &format!("first{n}@example.com"), PASSWORD).await;
            signed_in += usize::from(answer.status.as_u16() == 200);
        }
        assert_eq!(signed_in, 1);
    }

    /// Keycloak CVE-2026-18963, authentik CVE-2025-64708: a link is looked at when it is used, not by a job that cleans up.
    async fn a_set_up_link_is_over_after_a_day(server: TestServer) {
        let token = server.app.offer_set_up().await.unwrap().unwrap();
        server.ambient.advance(Duration::from_hours(24));
        let late = server.send(ask("POST", "/api/v1/setup").json(&TestServer::set_up_body(&token, "ada@example.com"))).await;
        assert_eq!(late.problem(422), "invalid-link");
        let fresh = server.app.offer_set_up().await.unwrap().unwrap();
        assert_ne!(fresh, token);
        for forged in ["", "x", &token.replace('_', ""), &format!("{}0", &fresh[..fresh.len() - 1])] {
            if forged != fresh {
                let answer = server.send(ask("POST", "/api/v1/setup").json(&TestServer::set_up_body(forged, "ada@example.com"))).await;
                assert_eq!(answer.problem(422), "invalid-link", "{forged}");
            }
        }
    }

    /// Errors are constant: nobody learns who exists.
    async fn every_refusal_to_sign_in_reads_the_same(server: TestServer) {
        server.first_person().await;
        let mut documents = Vec::new();
        for (email, password) in [
            ("ada@example.com", "violet cement orbiT"), ("nobody@example.com", PASSWORD), ("no address", PASSWORD), ("", ""),
            ("ada@example.com", ""), ("ada@example.com", &*"x".repeat(5_000)),
        ] {
            let body = json!({ "email": email, "password": password });
            let answer = server.send(ask("POST", "/api/v1/auth/login").header("x-request-id", "same").json(&body)).await;
            assert_eq!(answer.problem(401), "unauthenticated", "{email}");
            assert!(answer.headers.get("set-cookie").is_none());
            documents.push(answer.text());
        }
        documents.dedup();
        assert_eq!(documents.len(), 1, "{documents:?}");
    }

    /// Vault CVE-2025-6011: who exists was told by the time. Here the same statements and the same hashes stand for it.
    async fn a_refusal_costs_the_same_whoever_is_meant(server: TestServer) {
        let ada = server.first_person().await;
        server.person("bo@example.com", Some(("acme", "viewer"))).await;
        server.app.set_user_state_as_operator("bo@example.com", false).await.unwrap();
        let mut costs = Vec::new();
        for email in ["ada@example.com", "nobody@example.com", "bo@example.com"] {
            server.store.fault_hook().arm(1_000_000);
            assert_eq!(Browser::default().sign_in(&server, email, "wrong wrong wrong").await.problem(401), "unauthenticated");
            costs.push(1_000_000 - server.store.fault_hook().left());
            server.store.fault_hook().arm(0);
        }
        assert!(costs[0] > 0 && costs.iter().all(|cost| *cost == costs[0]), "{costs:?}");
        // The organization is told afterwards.
        let refused = async || {
            let log = server.send(ada.ask("GET", "/api/v1/orgs/acme/audit?action=session.refused")).await.json(200);
            log["items"].as_array().unwrap().len()
        };
        assert_eq!(refused().await, 0);
        assert_eq!(server.app.tell_refused_attempts().await.unwrap(), 3);
        assert_eq!(server.app.tell_refused_attempts().await.unwrap(), 0);
        assert_eq!(refused().await, 2, "once for each of those who work there");
        // … and the person, of many.
        server.letters().await;
        let mut known = ada.clone();
        for n in 2..14 {
            server.ambient.advance(Duration::from_mins(16));
            assert_eq!(known.sign_in(&server, "ada@example.com", "wrong wrong wrong").await.problem(401), "unauthenticated", "{n}");
            server.app.tell_refused_attempts().await.unwrap();
        }
        let letters = server.letters().await;
        assert_eq!(letters.iter().map(|letter| letter.subject.as_str()).collect::<Vec<_>>(), ["Many sign-ins were refused"]);
    }

    async fn guessing_slows_down_and_a_known_browser_does_not(server: TestServer) {
        let mut known = server.first_person().await;
        let mut stranger = Browser::default();
        for _ in 0..5 {
            assert_eq!(stranger.sign_in(&server, "ada@example.com", "wrong wrong wrong").await.problem(401), "unauthenticated");
        }
        let waits = stranger.sign_in(&server, "ada@example.com", PASSWORD).await;
        assert_eq!(waits.problem(429), "too-many-attempts", "even the right one: nobody learns that it is");
        assert_eq!(waits.header("retry-after"), "1");
        // Vault CVE-2025-6004: another way of writing the name is no way around.
        assert_eq!(stranger.sign_in(&server, "ADA@EXAMPLE.com", PASSWORD).await.problem(429), "too-many-attempts");
        // Somebody who does not exist waits as well.
        for _ in 0..5 {
            stranger.sign_in(&server, "nobody@example.com", "wrong wrong wrong").await;
        }
        assert_eq!(stranger.sign_in(&server, "nobody@example.com", "x").await.problem(429), "too-many-attempts");
        // The owner, in a browser of theirs, is not locked out by what a stranger does.
        known.sign_in(&server, "ada@example.com", PASSWORD).await.json(200);
        server.ambient.advance(Duration::from_secs(1));
        stranger.sign_in(&server, "ada@example.com", PASSWORD).await.json(200);
    }

    /// Counted before it is judged: many at once get no more tries than one after another.
    async fn fifty_guesses_at_once_are_five(server: TestServer) {
        server.first_person().await;
        let body = json!({ "email": "ada@example.com", "password": "wrong wrong wrong" });
        let answers = futures_util::future::join_all(
            (0..50).map(|_| server.send(ask("POST", "/api/v1/auth/login").json(&body)))).await;
        let judged = answers.iter().filter(|answer| answer.status.as_u16() == 401).count();
        assert_eq!(judged, 5, "{:?}", answers.iter().map(|answer| answer.status.as_u16()).collect::<Vec<_>>());
    }

    async fn a_session_ends_by_its_limits(server: TestServer) {
        let mut browser = server.first_person().await;
        let me = |browser: &Browser| server.send(browser.ask("GET", "/api/v1/me"));
        for _ in 0..2 {
            server.ambient.advance(Duration::from_mins(14));
            me(&browser).await.json(200);
        }
        server.ambient.advance(Duration::from_mins(15));
        assert_eq!(me(&browser).await.problem(401), "unauthenticated", "a quarter of an hour without use");
        browser.sign_in(&server, "ada@example.com", PASSWORD).await.json(200);
        for _ in 0..43 {
            server.ambient.advance(Duration::from_mins(11));
            me(&browser).await.json(200);
        }
        server.ambient.advance(Duration::from_mins(7));
        assert_eq!(me(&browser).await.problem(401), "unauthenticated", "eight hours, however busy");
    }

    /// Whoever became an administrator meanwhile has an administrator's limits.
    async fn limits_follow_the_person(server: TestServer) {
        let ada = server.first_person().await;
        let bo = server.person("bo@example.com", Some(("acme", "viewer"))).await;
        server.ambient.advance(Duration::from_mins(14));
        let id = server.send(bo.ask("GET", "/api/v1/me")).await.json(200)["user"]["id"].clone();
        server.send(ada.ask("GET", "/api/v1/me")).await.json(200);
        server.ambient.advance(Duration::from_mins(9));
        let proven = server.send(ada.ask("POST", "/api/v1/auth/step-up").json(&json!({ "password": PASSWORD }))).await;
        let mut ada = ada;
        ada.keep(&proven);
        server.ambient.advance(Duration::from_mins(9));
        server.send(bo.ask("GET", "/api/v1/orgs/acme")).await.json(200);
        let give = ada.ask("POST", "/api/v1/orgs/acme/role-assignments").json(&json!({ "user": id, "role": "admin" }));
        server.send(give).await.json(201);
        server.ambient.advance(Duration::from_mins(16));
        assert_eq!(server.send(bo.ask("GET", "/api/v1/orgs/acme")).await.problem(401), "unauthenticated");
        assert_eq!(server.send(bo.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated", "it has ended");
    }

    /// A cookie goes with what other sites make the browser send: that changes nothing.
    async fn pages_of_other_sites_change_nothing(server: TestServer) {
        let browser = server.first_person().await;
        let path = "/api/v1/orgs/acme/api-keys";
        let body = json!({ "name": "x", "permissions": ["org.read"] });
        for site in ["cross-site", "same-site", "none", "", "same-origin, cross-site"] {
            let answer = server.send(browser.from(ask("POST", path), site).json(&body)).await;
            assert_eq!(answer.problem(403), "foreign-origin", "{site}");
        }
        let cookie = format!("__Host-bulkhead_session={}", browser.session().unwrap());
        let with = |ask: Ask| ask.header("cookie", &cookie).json(&body);
        assert_eq!(server.send(with(ask("POST", path))).await.problem(403), "foreign-origin", "who says nothing");
        for origin in ["null", "http://evil.test", "http://bulkhead.test.evil.test", "https://bulkhead.test"] {
            let answer = server.send(with(ask("POST", path)).header("origin", origin)).await;
            assert_eq!(answer.problem(403), "foreign-origin", "{origin}");
        }
        server.send(with(ask("POST", path)).header("origin", PUBLIC_URL)).await.json(201);
        server.send(ask("GET", "/api/v1/me").header("cookie", &cookie).header("sec-fetch-site", "cross-site")).await.json(200);
        let signs_in = json!({ "email": "ada@example.com", "password": PASSWORD });
        let forced = ask("POST", "/api/v1/auth/login").header("origin", "http://evil.test").json(&signs_in);
        assert_eq!(server.send(forced).await.problem(403), "foreign-origin");
    }

    async fn a_session_is_no_key_and_a_key_no_session(server: TestServer) {
        let (browser, tenant) = (server.first_person().await, server.tenant("other").await);
        assert_eq!(server.send(ask("GET", "/api/v1/me").key(&tenant.key)).await.problem(401), "unauthenticated");
        let both = browser.ask("GET", "/api/v1/orgs/acme").key(&tenant.key);
        assert_eq!(server.send(both).await.problem(401), "unauthenticated");
        let both = browser.ask("GET", "/api/v1/me").key(&tenant.key);
        assert_eq!(server.send(both).await.problem(401), "unauthenticated");
        let bearer = ask("GET", "/api/v1/orgs/acme").key(browser.session().unwrap());
        assert_eq!(server.send(bearer).await.problem(401), "unauthenticated");
        for bad in ["", "x", &"0".repeat(64), &browser.session().unwrap().to_uppercase()] {
            let cookie = format!("__Host-bulkhead_session={bad}");
            for path in ["/api/v1/me", "/api/v1/orgs/acme", "/api/v1/orgs/NOBODY"] {
                assert_eq!(server.send(ask("GET", path).header("cookie", &cookie)).await.problem(401), "unauthenticated");
            }
        }
        // Another organization looks like none.
        for path in ["/api/v1/orgs/other", "/api/v1/orgs/nobody", "/api/v1/orgs/NOBODY"] {
            assert_eq!(server.send(browser.ask("GET", path)).await.problem(404), "not-found", "{path}");
        }
    }

    async fn sessions_are_listed_and_ended_one_by_one_or_all(server: TestServer) {
        let one = server.first_person().await;
        server.ambient.advance(Duration::from_secs(1));
        let mut two = Browser::default();
        two.sign_in(&server, "ada@example.com", PASSWORD).await.json(200);
        server.ambient.advance(Duration::from_secs(1));
        let mut three = Browser::default();
        three.sign_in(&server, "ada@example.com", PASSWORD).await.json(200);
        let listed = server.send(one.ask("GET", "/api/v1/me/sessions")).await;
        let items = listed.json(200)["items"].as_array().unwrap().clone();
        assert_eq!(items.len(), 3);
        assert_eq!(items.iter().filter(|item| item["current"] == true).count(), 1);
        assert_eq!(items[2]["current"], true);
        assert!(!listed.text().contains(one.session().unwrap()));
        let end = format!("/api/v1/me/sessions/{}", items[1]["id"].as_str().unwrap());
        assert_eq!(server.send(one.ask("DELETE", &end)).await.status.as_u16(), 204);
        assert_eq!(server.send(one.ask("DELETE", &end)).await.problem(404), "not-found");
        assert_eq!(server.send(two.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated");
        // Somebody else's is none.
        let bo = server.person("bo@example.com", None).await;
        let others = format!("/api/v1/me/sessions/{}", items[0]["id"].as_str().unwrap());
        assert_eq!(server.send(bo.ask("DELETE", &others)).await.problem(404), "not-found");
        assert_eq!(server.send(one.ask("DELETE", "/api/v1/me/sessions")).await.status.as_u16(), 204);
        assert_eq!(server.send(three.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated");
        server.send(one.ask("GET", "/api/v1/me")).await.json(200);
    }

    async fn another_password_ends_other_sessions_and_changes_the_token(server: TestServer) {
        let mut one = server.first_person().await;
        let mut two = Browser::default();
        two.sign_in(&server, "ada@example.com", PASSWORD).await.json(200);
        let change = |password: &str, new: &str| json!({ "password": password, "new_password": new });
        for (body, slug) in [
            (change("wrong wrong wrong", "quiet marble lantern"), "wrong-password"),
            (change(PASSWORD, "short"), "invalid-password"),
            (change(PASSWORD, "passwordpassword"), "invalid-password"),
            (change(PASSWORD, "ada@example.com.ada"), "invalid-password"),
        ] {
            assert_eq!(server.send(one.ask("PUT", "/api/v1/me/password").json(&body)).await.problem(422), slug, "{body}");
        }
        let weak = server.send(one.ask("PUT", "/api/v1/me/password").json(&change(PASSWORD, "passwordpassword"))).await;
        assert_eq!(weak.error(422), ("/new_password".to_owned(), "common".to_owned()), "the reason is said");
        let before = one.clone();
        let changed = server.send(one.ask("PUT", "/api/v1/me/password").json(&change(PASSWORD, "quiet marble lantern"))).await;
        changed.json(200);
        one.keep(&changed);
        assert_ne!(one.session(), before.session());
        for dead in [&before, &two] {
            assert_eq!(server.send(dead.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated");
        }
        server.send(one.ask("GET", "/api/v1/me")).await.json(200);
        assert_eq!(Browser::default().sign_in(&server, "ada@example.com", PASSWORD).await.problem(401), "unauthenticated");
        Browser::default().sign_in(&server, "ada@example.com", "quiet marble lantern").await.json(200);
    }

    /// Keycloak CVE-2026-7507: a token that was there before the proof is worth nothing after it.
    async fn a_new_proof_is_a_new_token(server: TestServer) {
        let mut browser = server.first_person().await;
        server.ambient.advance(Duration::from_mins(11));
        let before = browser.clone();
        let wrong = server.send(browser.ask("POST", "/api/v1/auth/step-up").json(&json!({ "password": "wrong wrong wrong" }))).await;
        assert_eq!(wrong.problem(422), "wrong-password");
        let proven = server.send(browser.ask("POST", "/api/v1/auth/step-up").json(&json!({ "password": PASSWORD }))).await;
        let me = proven.json(200);
        browser.keep(&proven);
        assert_ne!(browser.session(), before.session());
        assert_ne!(me["session"]["authenticated_at"], me["session"]["created_at"]);
        assert_eq!(server.send(before.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated");
        server.send(browser.ask("GET", "/api/v1/me")).await.json(200);
        // A wrong one is counted like a sign-in's.
        for _ in 0..4 {
            server.send(browser.ask("POST", "/api/v1/auth/step-up").json(&json!({ "password": "wrong wrong wrong" }))).await;
        }
        let fifth = server.send(browser.ask("POST", "/api/v1/auth/step-up").json(&json!({ "password": "wrong wrong wrong" }))).await;
        assert_eq!(fifth.problem(422), "wrong-password");
        let sixth = server.send(browser.ask("POST", "/api/v1/auth/step-up").json(&json!({ "password": PASSWORD }))).await;
        assert_eq!(sixth.problem(429), "too-many-attempts");
    }

    async fn the_operator_lets_somebody_in_again(server: TestServer) {
        let browser = server.first_person().await;
        for _ in 0..6 {
            Browser::default().sign_in(&server, "ada@example.com", "wrong wrong wrong").await;
        }
        let first = server.app.unlock_user_as_operator("ada@example.com").await.unwrap();
        let token = server.app.unlock_user_as_operator("Ada@example.com").await.unwrap();
        assert_eq!(server.send(browser.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated");
        let choose = |token: &str, password: &str| ask("POST", "/api/v1/auth/choose-password").json(&json!({ "token": token, "password": password }));
        assert_eq!(server.send(choose(&first, "quiet marble lantern")).await.problem(422), "invalid-link", "a newer one was made");
        assert_eq!(server.send(choose(&token, "short")).await.problem(422), "invalid-password");
        assert_eq!(server.send(choose(&token, "quiet marble lantern")).await.status.as_u16(), 204);
        assert_eq!(server.send(choose(&token, "another marble lantern")).await.problem(422), "invalid-link", "used");
        Browser::default().sign_in(&server, "ada@example.com", "quiet marble lantern").await.json(200);
        let late = server.app.unlock_user_as_operator("ada@example.com").await.unwrap();
        server.ambient.advance(Duration::from_hours(1));
        assert_eq!(server.send(choose(&late, "another marble lantern")).await.problem(422), "invalid-link", "over");
        assert!(server.app.unlock_user_as_operator("nobody@example.com").await.is_err());
    }

    /// "Disabling ends everything at once": sessions, keys, and the way back in.
    async fn whoever_is_disabled_has_nothing_left(server: TestServer) {
        let ada = server.first_person().await;
        assert!(server.app.set_user_state_as_operator("ada@example.com", false).await.is_err(), "the platform's last administrator");
        let bo = server.person("bo@example.com", Some(("acme", "admin"))).await;
        let body = json!({ "name": "ci", "permissions": ["org.read", "api_keys.write"] });
        let key = server.send(bo.ask("POST", "/api/v1/orgs/acme/api-keys").json(&body)).await.json(201);
        let key = key["secret"].as_str().unwrap().to_owned();
        let made = ask("POST", "/api/v1/orgs/acme/api-keys").key(&key).json(&json!({ "name": "x", "permissions": ["org.read"] }));
        let second = server.send(made).await.json(201);
        let second = second["secret"].as_str().unwrap().to_owned();
        let of_ada = server.send(ada.ask("POST", "/api/v1/orgs/acme/api-keys").json(&body)).await.json(201);
        server.app.set_user_state_as_operator("bo@example.com", false).await.unwrap();
        for key in [&key, &second] {
            assert_eq!(server.send(ask("GET", "/api/v1/orgs/acme").key(key)).await.problem(401), "unauthenticated");
        }
        assert_eq!(server.send(bo.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated");
        assert_eq!(Browser::default().sign_in(&server, "bo@example.com", PASSWORD).await.problem(401), "unauthenticated");
        server.send(ask("GET", "/api/v1/orgs/acme").key(of_ada["secret"].as_str().unwrap())).await.json(200);
        server.app.set_user_state_as_operator("bo@example.com", true).await.unwrap();
        Browser::default().sign_in(&server, "bo@example.com", PASSWORD).await.json(200);
        assert_eq!(server.send(ask("GET", "/api/v1/orgs/acme").key(&key)).await.problem(401), "unauthenticated", "keys stay ended");
    }

    async fn a_person_sees_who_tried_to_be_them(server: TestServer) {
        let ada = server.first_person().await;
        server.ambient.advance(Duration::from_secs(1));
        Browser::default().sign_in(&server, "ada@example.com", "wrong wrong wrong").await;
        let tried = server.send(ada.ask("GET", "/api/v1/me/sign-ins")).await.json(200);
        let passed: Vec<bool> = tried["items"].as_array().unwrap().iter().map(|item| item["passed"].as_bool().unwrap()).collect();
        assert_eq!(passed, [false, true]);
    }

    async fn links_lead_to_a_page_that_runs_no_script_but_ours(server: TestServer) {
        let page = server.send(ask("GET", "/link")).await;
        assert_eq!((page.status.as_u16(), page.header("content-type")), (200, "text/html; charset=utf-8"));
        let policy = page.header("content-security-policy").to_owned();
        assert!(policy.contains("script-src 'self'") && policy.contains("default-src 'none'"), "{policy}");
        assert!(page.text().matches("<script").count() == 1 && page.text().contains("<script src=\"/link.js\" defer></script>"));
        let script = server.send(ask("GET", "/link.js")).await;
        assert_eq!((script.status.as_u16(), script.header("content-type")), (200, "text/javascript; charset=utf-8"));
        // Each way that a link can be used is one that there is.
        for line in script.text().lines().filter(|line| line.contains("\"/api/v1/")) {
            let path = line.rsplit("\"/api").next().unwrap().split('"').next().unwrap();
            let answer = server.send(ask("POST", format!("/api{path}")).json(&json!({}))).await;
            assert_eq!(answer.problem(422), "invalid-body", "{path}");
        }
    }

    async fn a_person_works_in_several_organizations(server: TestServer) {
        server.first_person().await;
        server.tenant("other").await;
        let bo = server.person("bo@example.com", Some(("other", "viewer"))).await;
        let me = server.send(bo.ask("GET", "/api/v1/me")).await.json(200);
        assert_eq!(me["organizations"].as_array().unwrap().len(), 1);
        assert_eq!(server.send(bo.ask("GET", "/api/v1/orgs/acme")).await.problem(404), "not-found");
        let switch = |name: &str| bo.ask("PUT", "/api/v1/me/active-organization").json(&json!({ "organization": name }));
        assert_eq!(server.send(switch("other")).await.json(200)["role"], "viewer");
        assert_eq!(server.send(switch("acme")).await.problem(404), "not-found");
        assert_eq!(server.send(switch("NOBODY")).await.problem(404), "not-found");
        let me = server.send(bo.ask("GET", "/api/v1/me")).await.json(200);
        assert_eq!(me["session"]["active_org"], me["organizations"][0]["org"]);
    }
}
