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
    pub(crate) async fn take(&self, methods: &[Method], trusts_devices: bool) {
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

    /// A member whose second factor is mail, half-way through a sign-in.
    async fn mailed(&self) -> Browser {
        self.first_person().await;
        let bo = self.person(BO, Some(("acme", "viewer"))).await;
        let prove = bo.ask("PUT", "/api/v1/me/email").json(&json!({ "email": BO }));
        assert_eq!(self.send(prove).await.status.as_u16(), 202);
        let token = json!({ "token": self.mailed_token("verify_email").await });
        let proven = self.send(crate::support::ask("POST", "/api/v1/auth/verify-email").json(&token)).await;
        assert_eq!(proven.status.as_u16(), 204);
        self.take(&Method::ALL, false).await;
        let mut browser = Browser::default();
        let waits = browser.sign_in(self, BO, PASSWORD).await.json(202);
        assert_eq!(waits["methods"], json!(["email"]));
        browser
    }

    async fn mailed_code(&self, browser: &Browser) -> String {
        self.letters().await;
        let asked = self.send(browser.ask("POST", "/api/v1/auth/second-factor/email")).await;
        assert_eq!(asked.status.as_u16(), 202, "{}", asked.text());
        let letters = self.letters().await;
        assert_eq!((letters.len(), letters[0].subject.as_str()), (1, "Your code"));
        let is_code = |line: &&str| line.len() == 11 && line.as_bytes()[5] == b'-';
        letters[0].body.lines().map(str::trim).find(is_code).unwrap().to_owned()
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
        server.take(&Method::DEFAULT, true).await;
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
        server.take(&Method::DEFAULT, false).await;
        assert_eq!(server.send(bo.browser.ask("GET", "/api/v1/orgs/acme")).await.problem(403), "mfa-required");
        bo.browser.sign_in(&server, BO, PASSWORD).await.json(202);
    }

    async fn nobody_trusts_a_browser_where_nobody_chose_that(server: TestServer) {
        let mut bo = server.trusting("viewer").await;
        assert_eq!(server.trusted_until(&bo.browser).await, Value::Null);
        server.take(&Method::DEFAULT, true).await;
        bo.browser.sign_in(&server, BO, PASSWORD).await.json(202);
    }

    /// NIST SP 800-63B-4 §5.1, and for admins without exception.
    async fn no_browser_stands_for_an_admins_factor(server: TestServer) {
        server.first_person().await;
        server.take(&Method::DEFAULT, true).await;
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
        server.take(&Method::DEFAULT, true).await;
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

    async fn a_mailed_code_is_a_factor_where_that_was_chosen(server: TestServer) {
        let mut bo = server.mailed().await;
        let code = server.mailed_code(&bo).await;
        for wrong in ["00000-00000", "", "123456"] {
            let refused = server.say(&bo, SECOND, &json!({ "email_code": wrong })).await;
            assert_eq!(refused.problem(422), "wrong-code", "{wrong:?}");
        }
        let both = server.say(&bo, SECOND, &json!({ "email_code": code, "code": "123456" })).await;
        assert_eq!(both.problem(422), "wrong-code");
        let as_another = server.say(&bo, SECOND, &json!({ "backup_code": code })).await;
        assert_eq!(as_another.problem(422), "wrong-code");
        let waiting = bo.clone();
        server.ambient.advance(Duration::from_secs(1));
        let me = server.second(&mut bo, json!({ "email_code": code.to_lowercase() })).await.json(200);
        assert_eq!(me["session"]["methods"], json!(["pwd", "email", "mfa"]));
        server.send(bo.ask("GET", "/api/v1/orgs/acme")).await.json(200);
        let again = server.say(&waiting, SECOND, &json!({ "email_code": code })).await;
        assert_eq!(again.problem(401), "unauthenticated", "once");
        let ledger = server.send(bo.ask("GET", "/api/v1/me/sign-ins")).await.json(200);
        assert_eq!((&ledger["items"][0]["method"], &ledger["items"][0]["passed"]), (&json!("email"), &json!(true)));
        // What the organization chose it can take back, and a sign-in asks for it no more.
        server.take(&Method::DEFAULT, false).await;
        assert_eq!(server.send(bo.ask("GET", "/api/v1/orgs/acme")).await.problem(403), "mfa-required");
        bo.sign_in(&server, BO, PASSWORD).await.json(200);
    }

    /// OneUptime GHSA-5cr8-vph4-3hrf: mailed codes without an end and without a limit.
    async fn a_mailed_code_has_an_end_and_a_limit_and_is_one_sign_ins(server: TestServer) {
        let mut bo = server.mailed().await;
        let code = server.mailed_code(&bo).await;
        for _ in 0..4 {
            server.say(&bo, SECOND, &json!({ "email_code": "00000-00000" })).await;
        }
        server.ambient.advance(Duration::from_secs(20));
        server.say(&bo, SECOND, &json!({ "email_code": "00000-00000" })).await;
        server.ambient.advance(Duration::from_mins(1));
        let spent = server.say(&bo, SECOND, &json!({ "email_code": code })).await;
        assert_eq!(spent.problem(422), "wrong-code", "five others were tried");
        server.ambient.advance(Duration::from_mins(30));
        bo.sign_in(&server, BO, PASSWORD).await.json(202);
        let first = server.mailed_code(&bo).await;
        let second = server.mailed_code(&bo).await;
        assert_eq!(server.say(&bo, SECOND, &json!({ "email_code": first })).await.problem(422), "wrong-code", "a newer one was mailed");
        server.ambient.advance(Duration::from_mins(1));
        let mut other = Browser::default();
        other.sign_in(&server, BO, PASSWORD).await.json(202);
        let moved = server.say(&other, SECOND, &json!({ "email_code": second })).await;
        assert_eq!(moved.problem(422), "wrong-code", "another sign-in's");
        server.ambient.advance(Duration::from_mins(5));
        assert_eq!(server.say(&bo, SECOND, &json!({ "email_code": second })).await.problem(401), "unauthenticated", "five minutes");
    }

    /// One mailbox chooses a password and gets the code: that is one factor.
    async fn mail_is_no_second_factor_of_a_password_that_mail_chose(server: TestServer) {
        let bo = server.mailed().await;
        drop(bo);
        let forgot = crate::support::ask("POST", "/api/v1/auth/password-reset").json(&json!({ "email": BO }));
        assert_eq!(server.send(forgot).await.status.as_u16(), 202);
        let token = server.mailed_token("choose_password").await;
        let chosen = json!({ "token": token, "password": "quiet marble lantern" });
        let chosen = server.send(crate::support::ask("POST", "/api/v1/auth/choose-password").json(&chosen)).await;
        assert_eq!(chosen.status.as_u16(), 204);
        let mut thief = Browser::default();
        let me = thief.sign_in(&server, BO, "quiet marble lantern").await.json(200);
        assert_eq!(me["session"]["methods"], json!(["pwd"]));
        assert_eq!(server.send(thief.ask("GET", "/api/v1/orgs/acme")).await.problem(403), "mfa-required");
        // Nor of another one, chosen in a session that proved nothing else.
        let body = json!({ "password": "quiet marble lantern", "new_password": PASSWORD });
        let changed = server.send(thief.ask("PUT", "/api/v1/me/password").json(&body)).await;
        changed.json(200);
        thief.sign_in(&server, BO, PASSWORD).await.json(200);
        assert_eq!(server.send(thief.ask("GET", "/api/v1/orgs/acme")).await.problem(403), "mfa-required");
    }

    async fn who_has_something_better_gets_no_code_by_mail(server: TestServer) {
        let mut bo = server.mailed().await;
        let code = server.mailed_code(&bo).await;
        server.second(&mut bo, json!({ "email_code": code })).await.json(200);
        let enrolled = server.enrol(bo).await;
        let half = server.half_way(BO).await;
        let asked = server.send(half.ask("POST", "/api/v1/auth/second-factor/email")).await;
        assert_eq!(asked.problem(409), "no-email-code");
        drop(enrolled);
        // And no admin does.
        server.person("cy@example.com", Some(("acme", "admin"))).await;
        let mut cy = Browser::default();
        let me = cy.sign_in(&server, "cy@example.com", PASSWORD).await.json(200);
        assert_eq!(me["session"]["methods"], json!(["pwd"]));
    }
}
