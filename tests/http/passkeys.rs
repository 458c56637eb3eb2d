//! Passkeys, with an authenticator and a browser's part of others (`passkey-authenticator`, `passkey-client`).

use std::time::Duration;

use bulkhead_model::mfa::MfaPolicy;
use passkey_authenticator::{Authenticator, UiHint, UserCheck, UserValidationMethod};
use passkey_client::{Client, DefaultClientData};
use passkey_crypto::rust_crypto::RustCryptoBackend;
use passkey_types::Passkey;
use passkey_types::ctap2::{Aaguid, Ctap2Error};
use serde_json::{Value, json};

use crate::people::{Browser, PASSWORD};
use crate::support::{Answer, TestServer};

/// Where the suite's pages are, as a browser sees it.
pub(crate) const ORIGIN: &str = "https://bulkhead.test";
const ADA: &str = "ada@example.com";

/// Whoever holds the authenticator: there, and verified when that is asked for.
struct Holder;

#[async_trait::async_trait]
impl UserValidationMethod for Holder {
    type PasskeyItem = Passkey;

    async fn check_user<'a>(
        &self,
        _: UiHint<'a, Passkey>,
        _: bool,
        verification: bool,
    ) -> Result<UserCheck, Ctap2Error> {
        Ok(UserCheck { presence: true, verification })
    }

    fn is_presence_enabled(&self) -> bool {
        true
    }

    fn is_verification_enabled(&self) -> Option<bool> {
        Some(true)
    }
}

/// A machine with at most one passkey on it.
#[derive(Clone, Default)]
pub(crate) struct Machine {
    passkey: Option<Passkey>,
}

impl Machine {
    fn authenticator(&self) -> Authenticator<Option<Passkey>, Holder, RustCryptoBackend> {
        let store = self.passkey.clone();
        let mut authenticator = Authenticator::new(Aaguid::new_empty(), store, Holder, RustCryptoBackend);
        // As security keys count; passkeys that are synchronised do not.
        authenticator.set_make_credentials_with_signature_counter(true);
        authenticator
    }

    pub(crate) async fn make(&mut self, origin: &str, options: &Value) -> Value {
        let request = serde_json::from_value(json!({ "publicKey": options })).unwrap();
        let mut client = Client::new(self.authenticator());
        let made = client.register(&origin.parse().unwrap(), request, DefaultClientData).await.unwrap();
        self.passkey.clone_from(client.authenticator().store());
        serde_json::to_value(made).unwrap()
    }

    async fn answer_at(&mut self, origin: &str, options: &Value) -> Value {
        let request = serde_json::from_value(json!({ "publicKey": options })).unwrap();
        let mut client = Client::new(self.authenticator());
        let answer = client.authenticate(&origin.parse().unwrap(), request, DefaultClientData).await.unwrap();
        self.passkey.clone_from(client.authenticator().store());
        serde_json::to_value(answer).unwrap()
    }

    pub(crate) async fn answer(&mut self, options: &Value) -> Value {
        self.answer_at(ORIGIN, options).await
    }
}

impl TestServer {
    async fn challenge(&self, browser: &mut Browser, path: &str) -> Value {
        let answer = self.send(browser.ask("POST", &format!("/api/v1/{path}/challenge"))).await;
        assert_eq!(answer.header("cache-control"), "no-store");
        browser.keep(&answer);
        answer.json(201)["options"].clone()
    }

    async fn say_credential(&self, browser: &mut Browser, path: &str, credential: &Value) -> Answer {
        let said = browser.ask("POST", &format!("/api/v1/{path}")).json(&json!({ "credential": credential }));
        let answer = self.send(said).await;
        browser.keep(&answer);
        answer
    }

    async fn add(&self, browser: &mut Browser, name: &str, credential: &Value) -> Answer {
        let body = json!({ "name": name, "credential": credential });
        let answer = self.send(browser.ask("POST", "/api/v1/me/passkeys").json(&body)).await;
        browser.keep(&answer);
        answer
    }

    /// A machine whose passkey is the person's.
    pub(crate) async fn with_passkey(&self, browser: &mut Browser, name: &str) -> Machine {
        let mut machine = Machine::default();
        let options = self.challenge(browser, "me/passkeys").await;
        let credential = machine.make(ORIGIN, &options).await;
        self.add(browser, name, &credential).await.json(201);
        machine
    }

    pub(crate) async fn by_passkey(&self, browser: &mut Browser, machine: &mut Machine) -> Answer {
        let options = self.challenge(browser, "auth/passkey").await;
        let credential = machine.answer(&options).await;
        self.say_credential(browser, "auth/passkey", &credential).await
    }
}

on_both! {
    async fn a_passkey_is_made_and_signs_in_alone(server: TestServer) {
        let mut ada = server.first_person_who_is_asked_for_mfa().await;
        let mut elsewhere = Browser::default();
        elsewhere.sign_in(&server, ADA, PASSWORD).await.json(200);
        assert_eq!(server.send(ada.ask("GET", "/api/v1/orgs/acme")).await.problem(403), "mfa-required");
        let old = ada.clone();
        let options = server.challenge(&mut ada, "me/passkeys").await;
        assert_eq!(options["rp"]["id"], "bulkhead.test");
        assert_eq!(options["authenticatorSelection"]["userVerification"], "required");
        let mut machine = Machine::default();
        let credential = machine.make(ORIGIN, &options).await;
        assert_eq!(server.add(&mut ada, "a\u{202e}b", &credential).await.problem(422), "invalid-name");
        let me = server.add(&mut ada, "laptop", &credential).await.json(201);
        assert_eq!(me["session"]["methods"], json!(["pwd", "pop", "mfa"]));
        for ended in [&old, &elsewhere] {
            assert_eq!(server.send(ended.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated", "other sessions end");
        }
        server.send(ada.ask("GET", "/api/v1/orgs/acme")).await.json(200);
        assert!(server.letters().await.iter().any(|letter| letter.subject == "A passkey was added"));

        server.ambient.advance(Duration::from_secs(1));
        let mut again = Browser::default();
        let me = server.by_passkey(&mut again, &mut machine).await.json(200);
        assert_eq!((&me["user"]["email"], &me["session"]["methods"]), (&json!(ADA), &json!(["pop", "mfa"])));
        server.send(again.ask("GET", "/api/v1/orgs/acme")).await.json(200);
        let listed = server.send(again.ask("GET", "/api/v1/me/passkeys")).await.json(200);
        assert_eq!((listed["items"].as_array().unwrap().len(), &listed["items"][0]["name"]), (1, &json!("laptop")));
        assert!(listed["items"][0]["last_used_at"].is_string());
        let status = server.send(again.ask("GET", "/api/v1/me/mfa")).await.json(200);
        assert_eq!((&status["active"], &status["passkeys"]), (&json!(true), &json!(1)));
        let ledger = server.send(again.ask("GET", "/api/v1/me/sign-ins")).await.json(200);
        assert_eq!((&ledger["items"][0]["method"], &ledger["items"][0]["passed"]), (&json!("pop"), &json!(true)));
        let log = server.send(again.ask("GET", "/api/v1/orgs/acme/audit?limit=200")).await.json(200).to_string();
        for told in ["passkey.added", "mfa.passed", "mfa.set_up_begun"] {
            assert!(log.contains(told), "{told}");
        }
    }

    /// Kratos GHSA-wc43-73w7-x2f5: of several methods one was not looked at, and the password alone was enough.
    async fn with_a_passkey_a_password_alone_opens_nothing(server: TestServer) {
        let mut ada = server.first_person().await;
        let mut machine = server.with_passkey(&mut ada, "key").await;
        let mut browser = Browser::default();
        let waits = browser.sign_in(&server, ADA, PASSWORD).await.json(202);
        assert_eq!(waits["methods"], json!(["passkey"]));
        assert_eq!(browser.session(), None);
        let coded = browser.ask("POST", "/api/v1/auth/second-factor").json(&json!({ "code": "123456" }));
        assert_eq!(server.send(coded).await.problem(422), "wrong-code");
        let options = server.challenge(&mut browser, "auth/second-factor/passkey").await;
        assert_eq!(options["allowCredentials"].as_array().unwrap().len(), 1);
        let credential = machine.answer(&options).await;
        let me = server.say_credential(&mut browser, "auth/second-factor/passkey", &credential).await.json(200);
        assert_eq!(me["session"]["methods"], json!(["pwd", "pop", "mfa"]));

        // And a password alone proves nothing anew.
        let alone = browser.ask("POST", "/api/v1/auth/step-up").json(&json!({ "password": PASSWORD }));
        assert_eq!(server.send(alone).await.problem(422), "second-factor-required");
        server.ambient.advance(Duration::from_mins(11));
        let stale = server.send(browser.ask("POST", "/api/v1/me/passkeys/challenge")).await;
        assert_eq!(stale.problem(401), "step-up-required");
        let options = server.challenge(&mut browser, "auth/step-up/passkey").await;
        let credential = machine.answer(&options).await;
        let before = browser.session().unwrap().to_owned();
        server.say_credential(&mut browser, "auth/step-up/passkey", &credential).await.json(200);
        assert_ne!(browser.session().unwrap(), before, "the token changes with the proof");
        server.challenge(&mut browser, "me/passkeys").await;
    }

    /// webauthn: a state that a browser holds can be played back.
    async fn a_challenge_is_answered_once_and_in_time(server: TestServer) {
        let mut ada = server.first_person().await;
        let mut machine = server.with_passkey(&mut ada, "key").await;
        let mut browser = Browser::default();
        let options = server.challenge(&mut browser, "auth/passkey").await;
        let waiting = browser.clone();
        let credential = machine.answer(&options).await;
        server.say_credential(&mut browser, "auth/passkey", &credential).await.json(200);
        let again = server.say_credential(&mut waiting.clone(), "auth/passkey", &credential).await;
        assert_eq!(again.problem(401), "unauthenticated", "played back");

        let options = server.challenge(&mut browser, "auth/passkey").await;
        let fresh = machine.answer(&options).await;
        let other = server.say_credential(&mut browser.clone(), "auth/passkey", &credential).await;
        assert_eq!(other.problem(401), "unauthenticated", "the answer to another challenge");
        let late = server.say_credential(&mut browser, "auth/passkey", &fresh).await;
        assert_eq!(late.problem(401), "unauthenticated", "a wrong answer took the challenge along");

        let options = server.challenge(&mut browser, "auth/passkey").await;
        let credential = machine.answer(&options).await;
        server.ambient.advance(Duration::from_mins(5));
        let late = server.say_credential(&mut browser, "auth/passkey", &credential).await;
        assert_eq!(late.problem(401), "unauthenticated", "five minutes");

        // One for a purpose is none for another.
        let options = server.challenge(&mut browser, "auth/passkey").await;
        let credential = machine.answer(&options).await;
        let mut half = Browser::default();
        half.sign_in(&server, ADA, PASSWORD).await.json(202);
        let moved = server.say_credential(&mut half, "auth/second-factor/passkey", &credential).await;
        assert_eq!(moved.problem(422), "invalid-passkey");
    }

    /// Of fifty requests with one answer one signs in.
    async fn of_many_at_once_with_one_answer_one_signs_in(server: TestServer) {
        let mut ada = server.first_person().await;
        let mut machine = server.with_passkey(&mut ada, "key").await;
        let mut browser = Browser::default();
        let options = server.challenge(&mut browser, "auth/passkey").await;
        let credential = machine.answer(&options).await;
        let body = json!({ "credential": credential });
        let asks = (0..50).map(|_| server.send(browser.ask("POST", "/api/v1/auth/passkey").json(&body)));
        let answers = futures_util::future::join_all(asks).await;
        let passed = answers.iter().filter(|answer| answer.status.as_u16() == 200).count();
        assert_eq!(passed, 1, "{:?}", answers.iter().map(|answer| answer.status.as_u16()).collect::<Vec<_>>());
    }

    /// WebAuthn §7.2 step 22: a counter that does not grow says that there may be two of it.
    async fn a_copied_passkey_is_refused_and_told(server: TestServer) {
        let mut ada = server.first_person().await;
        let mut machine = server.with_passkey(&mut ada, "key").await;
        let mut copy = machine.clone();
        let mut browser = Browser::default();
        server.by_passkey(&mut browser, &mut machine).await.json(200);
        server.letters().await;
        server.ambient.advance(Duration::from_secs(1));
        let refused = server.by_passkey(&mut Browser::default(), &mut copy).await;
        assert_eq!(refused.problem(401), "unauthenticated");
        assert!(server.letters().await.iter().any(|letter| letter.subject == "A passkey was refused"));
        let ledger = server.send(browser.ask("GET", "/api/v1/me/sign-ins")).await.json(200);
        assert_eq!((&ledger["items"][0]["method"], &ledger["items"][0]["passed"]), (&json!("pop"), &json!(false)));
        let log = server.send(browser.ask("GET", "/api/v1/orgs/acme/audit?action=mfa.refused")).await.json(200);
        assert_eq!(log["items"][0]["detail"]["counter_seen_before"], true, "{log}");
        // The one that is ahead goes on.
        server.by_passkey(&mut Browser::default(), &mut machine).await.json(200);
    }

    async fn an_answer_from_another_site_or_of_an_unverified_holder_is_none(server: TestServer) {
        let mut ada = server.first_person().await;
        let mut machine = server.with_passkey(&mut ada, "key").await;
        let mut browser = Browser::default();
        for (change, origin) in [
            (json!({ "userVerification": "discouraged" }), ORIGIN),
            (json!({ "rpId": "evil.test" }), "https://evil.test"),
            (json!({}), "https://other.bulkhead.test"),
            (json!({}), "https://bulkhead.test:8443"),
        ] {
            let mut options = server.challenge(&mut browser, "auth/passkey").await;
            for (name, value) in change.as_object().unwrap() {
                options[name] = value.clone();
            }
            let credential = machine.answer_at(origin, &options).await;
            let refused = server.say_credential(&mut browser, "auth/passkey", &credential).await;
            assert_eq!(refused.problem(401), "unauthenticated", "{change} at {origin}");
        }
        let mut options = server.challenge(&mut ada, "me/passkeys").await;
        options["excludeCredentials"] = json!([]);
        options["authenticatorSelection"]["userVerification"] = json!("discouraged");
        let credential = Machine::default().make(ORIGIN, &options).await;
        assert_eq!(server.add(&mut ada, "x", &credential).await.problem(422), "invalid-passkey");
        assert_eq!(server.add(&mut ada, "x", &credential).await.problem(409), "no-set-up", "answered once, wrong or not");
    }

    async fn what_is_no_answer_is_refused(server: TestServer) {
        let mut ada = server.first_person().await;
        let mut machine = server.with_passkey(&mut ada, "key").await;
        let mut browser = Browser::default();
        let nobody = browser.ask("POST", "/api/v1/auth/passkey").json(&json!({ "credential": {} }));
        assert_eq!(server.send(nobody).await.problem(401), "unauthenticated", "without a cookie");
        let options = server.challenge(&mut browser, "auth/passkey").await;
        let good = machine.answer(&options).await;
        for (pointer, odd) in [
            ("/rawId", json!("AAAA")),
            ("/response/signature", json!("")),
            ("/response/signature", json!("AAAA")),
            ("/response/clientDataJSON", json!("e30")),
            ("/response/authenticatorData", json!("AA")),
            ("/response/userHandle", json!(null)),
            ("/response/userHandle", json!("AAAAAAAAAAAAAAAAAAAAAA")),
            ("/response", json!(7)),
        ] {
            server.challenge(&mut browser, "auth/passkey").await;
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = odd;
            let refused = server.say_credential(&mut browser, "auth/passkey", &bad).await;
            assert_eq!(refused.problem(401), "unauthenticated", "{pointer}");
        }
        for odd in [json!(null), json!("x"), json!([]), json!({})] {
            server.challenge(&mut ada, "me/passkeys").await;
            assert_eq!(server.add(&mut ada, "x", &odd).await.problem(422), "invalid-passkey", "{odd}");
        }
    }

    /// Whoever says that somebody else's passkey is theirs signs in as nobody, and keeps nobody out.
    async fn a_passkey_is_one_persons(server: TestServer) {
        let mut ada = server.first_person().await;
        let mut machine = server.with_passkey(&mut ada, "key").await;
        let mut bo = server.person("bo@example.com", Some(("acme", "viewer"))).await;
        let mut bos = server.with_passkey(&mut bo, "bo's").await;
        // Bo's second step, answered by Ada's passkey.
        let mut half = Browser::default();
        half.sign_in(&server, "bo@example.com", PASSWORD).await.json(202);
        let mut options = server.challenge(&mut half, "auth/second-factor/passkey").await;
        options.as_object_mut().unwrap().remove("allowCredentials");
        let credential = machine.answer(&options).await;
        let refused = server.say_credential(&mut half, "auth/second-factor/passkey", &credential).await;
        assert_eq!(refused.problem(422), "invalid-passkey");
        // A session's challenge is that session's.
        let options = server.challenge(&mut ada, "me/passkeys").await;
        let made = Machine::default().make(ORIGIN, &options).await;
        assert_eq!(server.add(&mut bo, "x", &made).await.problem(409), "no-set-up");
        let listed = server.send(bo.ask("GET", "/api/v1/me/passkeys")).await.json(200);
        let path = format!("/api/v1/me/passkeys/{}", listed["items"][0]["id"].as_str().unwrap());
        assert_eq!(server.send(ada.ask("DELETE", &path)).await.problem(404), "not-found");
        server.by_passkey(&mut Browser::default(), &mut machine).await.json(200);
        server.by_passkey(&mut Browser::default(), &mut bos).await.json(200);
    }

    /// Keycloak GHSA-8g9r-9wjw-37j4: a factor that is asked for was deleted through the account's own API.
    async fn the_last_factor_stays_where_one_is_asked_for(server: TestServer) {
        server.first_person().await;
        let mut bo = server.person("bo@example.com", Some(("acme", "viewer"))).await;
        let first = server.with_passkey(&mut bo, "one").await;
        // The one machine is not asked for a second passkey of the same person.
        let options = server.challenge(&mut bo, "me/passkeys").await;
        assert_eq!(options["excludeCredentials"].as_array().unwrap().len(), 1);
        let mut second = Machine::default();
        let credential = second.make(ORIGIN, &options).await;
        server.add(&mut bo, "two", &credential).await.json(201);
        assert_eq!(first.passkey.unwrap().user_handle, second.passkey.clone().unwrap().user_handle, "one person, one handle");
        let listed = server.send(bo.ask("GET", "/api/v1/me/passkeys")).await.json(200);
        let paths: Vec<String> =
            listed["items"].as_array().unwrap().iter().map(|item| format!("/api/v1/me/passkeys/{}", item["id"].as_str().unwrap())).collect();
        let acme = server.app.find_org("acme".parse().unwrap()).await.unwrap().unwrap();
        server.ask_for_mfa(acme.id, MfaPolicy::All).await;
        server.ambient.advance(Duration::from_mins(11));
        assert_eq!(server.send(bo.ask("DELETE", &paths[0])).await.problem(401), "step-up-required");
        let options = server.challenge(&mut bo, "auth/step-up/passkey").await;
        let credential = second.answer(&options).await;
        server.say_credential(&mut bo, "auth/step-up/passkey", &credential).await.json(200);
        let removed = server.send(bo.ask("DELETE", &paths[0])).await;
        removed.json(200);
        bo.keep(&removed);
        assert_eq!(server.send(bo.ask("DELETE", &paths[0])).await.problem(404), "not-found");
        assert_eq!(server.send(bo.ask("DELETE", &paths[1])).await.problem(409), "second-factor-stays");
        server.ask_for_mfa(acme.id, MfaPolicy::Optional).await;
        let removed = server.send(bo.ask("DELETE", &paths[1])).await;
        assert_eq!(removed.json(200)["session"]["methods"], json!(["pop"]));
        bo.keep(&removed);
        Browser::default().sign_in(&server, "bo@example.com", PASSWORD).await.json(200);
        assert_eq!(server.by_passkey(&mut Browser::default(), &mut second).await.problem(401), "unauthenticated");
        assert!(server.letters().await.iter().any(|letter| letter.subject == "A passkey was removed"));
    }

    async fn a_person_who_is_disabled_has_no_passkey(server: TestServer) {
        server.first_person().await;
        let mut bo = server.person("bo@example.com", Some(("acme", "viewer"))).await;
        let mut machine = server.with_passkey(&mut bo, "key").await;
        let mut browser = Browser::default();
        let options = server.challenge(&mut browser, "auth/passkey").await;
        let credential = machine.answer(&options).await;
        server.app.set_user_state_as_operator("bo@example.com", false).await.unwrap();
        let refused = server.say_credential(&mut browser, "auth/passkey", &credential).await;
        assert_eq!(refused.problem(401), "unauthenticated");
        server.app.set_user_state_as_operator("bo@example.com", true).await.unwrap();
        server.app.reset_mfa_as_operator("bo@example.com").await.unwrap();
        assert_eq!(server.by_passkey(&mut browser, &mut machine).await.problem(401), "unauthenticated");
        browser.sign_in(&server, "bo@example.com", PASSWORD).await.json(200);
    }
}
