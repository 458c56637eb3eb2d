//! What organizations take for a second factor: which methods, and whether a trusted browser stands for one.

use std::time::Duration;

use bulkhead_model::mfa::{Method, MfaPolicy, SignInPolicy};
use bulkhead_model::permission::{SystemReason, SystemScope};
use serde_json::{Value, json};

use crate::mfa::Enrolled;
use crate::people::{Browser, PASSWORD};
use crate::support::TestServer;

const BO: &str = "bo@example.com";
const SECOND: &str = "/api/v1/auth/second-factor";

impl TestServer {
    /// What Acme takes from now on.
    async fn take(&self, methods: &[Method], trusts_devices: bool) {
        let acme = self.app.find_org("acme".parse().unwrap()).await.unwrap().unwrap();
        let policy = SignInPolicy::new(MfaPolicy::All, methods.to_vec(), trusts_devices).unwrap();
        let scope = SystemScope::new(SystemReason::Admin).for_org(acme.id);
        let saved = self.store.write(&scope, (policy, self.ambient.now()), |tx, (policy, now)| {
            Box::pin(async move {
                tx.begin_policy_epoch(*now).await?;
                tx.save_sign_in_policy(policy, *now).await
            })
        });
        saved.await.unwrap();
    }

    /// A member with an authenticator app, who asked that this browser be trusted.
    async fn trusting(&self, role: &str) -> Enrolled {
        self.first_person().await;
        let person = self.person(BO, Some(("acme", role))).await;
        let mut bo = self.enrol(person).await;
        bo.browser.sign_in(self, BO, PASSWORD).await.json(202);
        let proof = json!({ "code": self.next_code(&bo.app), "trust_browser": true });
        let answer = self.say(&bo.browser, SECOND, &proof).await;
        answer.json(200);
        bo.browser.keep(&answer);
        bo
    }

    async fn trusted_until(&self, browser: &Browser) -> Value {
        let listed = self.send(browser.ask("GET", "/api/v1/me/devices")).await.json(200);
        let current = listed["items"].as_array().unwrap().iter().find(|device| device["current"] == true).unwrap();
        current["trusted_until"].clone()
    }
}

on_both! {
    async fn a_trusted_browser_stands_for_a_factor_where_that_was_chosen(server: TestServer) {
        server.first_person().await;
        server.take(&Method::ALL, true).await;
        let person = server.person(BO, Some(("acme", "viewer"))).await;
        let mut bo = server.enrol(person).await;
        bo.browser.sign_in(&server, BO, PASSWORD).await.json(202);
        let proof = json!({ "code": server.next_code(&bo.app), "trust_browser": true });
        let answer = server.say(&bo.browser, SECOND, &proof).await;
        answer.json(200);
        bo.browser.keep(&answer);
        assert!(server.trusted_until(&bo.browser).await.is_string());

        let me = bo.browser.sign_in(&server, BO, PASSWORD).await.json(200);
        assert_eq!(me["session"]["methods"], json!(["pwd", "device"]));
        server.send(bo.browser.ask("GET", "/api/v1/orgs/acme")).await.json(200);
        // Nothing that asks for a fresh proof is to be had by it, a password least of all.
        let body = json!({ "password": PASSWORD, "new_password": "quiet marble lantern" });
        let password = bo.browser.ask("PUT", "/api/v1/me/password").json(&body);
        assert_eq!(server.send(password).await.problem(401), "step-up-required");
        for path in ["/api/v1/me/mfa/totp", "/api/v1/me/passkeys/challenge"] {
            assert_eq!(server.send(bo.browser.ask("POST", path)).await.problem(401), "step-up-required", "{path}");
        }
        let alone = server.say(&bo.browser, "/api/v1/auth/step-up", &json!({ "password": PASSWORD })).await;
        assert_eq!(alone.problem(422), "second-factor-required");
        // Another browser is another one.
        Browser::default().sign_in(&server, BO, PASSWORD).await.json(202);
        // What the organization chose it can take back, from the next request on.
        server.take(&Method::ALL, false).await;
        assert_eq!(server.send(bo.browser.ask("GET", "/api/v1/orgs/acme")).await.problem(403), "mfa-required");
        bo.browser.sign_in(&server, BO, PASSWORD).await.json(202);
    }

    async fn nobody_trusts_a_browser_where_nobody_chose_that(server: TestServer) {
        let mut bo = server.trusting("viewer").await;
        assert_eq!(server.trusted_until(&bo.browser).await, Value::Null);
        server.take(&Method::ALL, true).await;
        bo.browser.sign_in(&server, BO, PASSWORD).await.json(202);
    }

    /// NIST SP 800-63B-4 §5.1, and for admins without exception.
    async fn no_browser_stands_for_an_admins_factor(server: TestServer) {
        server.first_person().await;
        server.take(&Method::ALL, true).await;
        let person = server.person(BO, Some(("acme", "admin"))).await;
        let mut bo = server.enrol(person).await;
        bo.browser.sign_in(&server, BO, PASSWORD).await.json(202);
        let proof = json!({ "code": server.next_code(&bo.app), "trust_browser": true });
        let answer = server.say(&bo.browser, SECOND, &proof).await;
        answer.json(200);
        bo.browser.keep(&answer);
        assert_eq!(server.trusted_until(&bo.browser).await, Value::Null);
        bo.browser.sign_in(&server, BO, PASSWORD).await.json(202);
    }

    async fn trust_ends_with_time_with_the_browser_and_with_the_password(server: TestServer) {
        server.first_person().await;
        server.take(&Method::ALL, true).await;
        let person = server.person(BO, Some(("acme", "viewer"))).await;
        let mut bo = server.enrol(person).await;
        let trust = async |bo: &mut Enrolled| {
            bo.browser.sign_in(&server, BO, PASSWORD).await.json(202);
            let proof = json!({ "code": server.next_code(&bo.app), "trust_browser": true });
            let answer = server.say(&bo.browser, SECOND, &proof).await;
            answer.json(200);
            bo.browser.keep(&answer);
        };
        trust(&mut bo).await;
        server.ambient.advance(Duration::from_hours(30 * 24 - 1));
        bo.browser.sign_in(&server, BO, PASSWORD).await.json(200);
        server.ambient.advance(Duration::from_hours(1));
        bo.browser.sign_in(&server, BO, PASSWORD).await.json(202);

        trust(&mut bo).await;
        let listed = server.send(bo.browser.ask("GET", "/api/v1/me/devices")).await.json(200);
        let current = listed["items"].as_array().unwrap().iter().find(|device| device["current"] == true).unwrap();
        let path = format!("/api/v1/me/devices/{}", current["id"].as_str().unwrap());
        assert_eq!(server.send(bo.browser.ask("DELETE", &path)).await.status.as_u16(), 204);
        bo.browser.sign_in(&server, BO, PASSWORD).await.json(202);

        trust(&mut bo).await;
        let body = json!({ "password": PASSWORD, "new_password": "quiet marble lantern" });
        let changed = server.send(bo.browser.ask("PUT", "/api/v1/me/password").json(&body)).await;
        changed.json(200);
        bo.browser.keep(&changed);
        assert_eq!(server.trusted_until(&bo.browser).await, Value::Null);
        bo.browser.sign_in(&server, BO, "quiet marble lantern").await.json(202);
    }

    async fn an_organization_says_which_factors_it_takes(server: TestServer) {
        let ada = server.enrol(server.first_person().await).await;
        let person = server.person(BO, Some(("acme", "viewer"))).await;
        let bo = server.enrol(person).await;
        let path = "/api/v1/orgs/acme/sign-in-policy";
        let shown = server.send(ada.browser.ask("GET", path)).await.json(200);
        assert_eq!(shown, json!({ "mfa": "optional", "methods": ["app", "passkey"], "trusts_devices": false }));
        let put = |body: Value| ada.browser.ask("PUT", path).json(&body);
        assert_eq!(server.send(put(json!({ "mfa": "all", "methods": [] }))).await.problem(422), "invalid-methods");
        assert_eq!(server.send(put(json!({ "mfa": "all", "methods": ["sms"] }))).await.problem(422), "invalid-body");
        let policy = json!({ "mfa": "all", "methods": ["passkey"], "trusts_devices": false });
        assert_eq!(server.send(put(policy.clone())).await.json(200), policy);
        // From the next request on, for whoever changed it as well.
        for browser in [&bo.browser, &ada.browser] {
            assert_eq!(server.send(browser.ask("GET", "/api/v1/orgs/acme")).await.problem(403), "mfa-required");
        }
        server.ask_nobody_for_mfa().await;
        assert_eq!(server.send(ada.browser.ask("GET", path)).await.json(200)["methods"], json!(["passkey"]));
        let log = server.send(ada.browser.ask("GET", "/api/v1/orgs/acme/audit?action=settings.changed")).await.json(200);
        let entry = &log["items"][0]["detail"];
        assert_eq!((&entry["before"]["methods"], &entry["after"]["methods"]), (&json!(["app", "passkey"]), &json!(["passkey"])));
    }
}
