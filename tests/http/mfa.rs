//! Second factors, with an authenticator of the suite's own.

use std::time::Duration;

use bulkhead_model::mfa::MfaPolicy;
use bulkhead_test_support::authenticator::Authenticator;
use serde_json::{Value, json};

use crate::openapi::operations;
use crate::people::{Browser, PASSWORD};
use crate::support::{Answer, TestServer, ask};

const STEP: Duration = Duration::from_secs(30);

/// A person with an authenticator app that counts.
pub(crate) struct Enrolled {
    pub(crate) browser: Browser,
    pub(crate) app: Authenticator,
    pub(crate) codes: Vec<String>,
}

impl TestServer {
    fn unix_s(&self) -> u64 {
        u64::try_from(self.ambient.now().as_micros() / 1_000_000).unwrap()
    }

    /// What the app shows now, of a step that was not used yet.
    pub(crate) fn next_code(&self, app: &Authenticator) -> String {
        self.ambient.advance(STEP);
        app.code(self.unix_s())
    }

    /// Walks the set-up from its beginning to its end.
    pub(crate) async fn enrol(&self, mut browser: Browser) -> Enrolled {
        let shown = self.send(browser.ask("POST", "/api/v1/me/mfa/totp")).await.json(201);
        let app = Authenticator::scan(shown["uri"].as_str().unwrap());
        let verified =
            self.say(&browser, "/api/v1/me/mfa/totp/verify", &json!({ "code": app.code(self.unix_s()) })).await;
        let codes = verified.json(200)["codes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|code| code.as_str().unwrap().to_owned())
            .collect();
        let active = self.send(browser.ask("POST", "/api/v1/me/mfa/totp/activate")).await;
        active.json(200);
        browser.keep(&active);
        Enrolled { browser, app, codes }
    }

    pub(crate) async fn say(&self, browser: &Browser, path: &str, body: &Value) -> Answer {
        self.send(browser.ask("POST", path).json(body)).await
    }

    /// A browser whose password was right.
    pub(crate) async fn half_way(&self, email: &str) -> Browser {
        let mut browser = Browser::default();
        let answer = browser.sign_in(self, email, PASSWORD).await;
        assert_eq!(answer.json(202)["methods"], json!(["code", "backup_code"]));
        assert_eq!(browser.session(), None, "a right password alone opens nothing");
        browser
    }

    pub(crate) async fn second(&self, browser: &mut Browser, proof: Value) -> Answer {
        let answer = self.say(browser, "/api/v1/auth/second-factor", &proof).await;
        browser.keep(&answer);
        answer
    }
}

const ADA: &str = "ada@example.com";

on_both! {
    async fn the_set_up_is_walked_from_end_to_end(server: TestServer) {
        let mut ada = server.first_person_who_is_asked_for_mfa().await;
        // The organization asks its admins for more; their own account is theirs all the same.
        assert_eq!(server.send(ada.ask("GET", "/api/v1/orgs/acme")).await.problem(403), "mfa-required");
        let status = server.send(ada.ask("GET", "/api/v1/me/mfa")).await.json(200);
        assert_eq!(status, json!({ "active": false, "active_since": null, "locked": false, "backup_codes_left": 0, "passkeys": 0, "set_up": null }));
        let mut elsewhere = Browser::default();
        elsewhere.sign_in(&server, ADA, PASSWORD).await.json(200);

        let nothing = server.say(&ada, "/api/v1/me/mfa/totp/verify", &json!({ "code": "123456" })).await;
        assert_eq!(nothing.problem(409), "no-set-up");
        let shown = server.send(ada.ask("POST", "/api/v1/me/mfa/totp")).await;
        assert_eq!(shown.header("cache-control"), "no-store");
        let shown = shown.json(201);
        assert!(shown["qr_svg"].as_str().unwrap().contains("<svg"));
        let app = Authenticator::scan(shown["uri"].as_str().unwrap());
        let typed = Authenticator::type_in(shown["secret"].as_str().unwrap());
        let code = app.code(server.unix_s());
        assert_eq!(typed.code(server.unix_s()), code);
        for wrong in [format!(" {code}"), format!("{} {}", &code[..3], &code[3..]), String::new(), app.code(server.unix_s() - 90)] {
            let refused = server.say(&ada, "/api/v1/me/mfa/totp/verify", &json!({ "code": wrong })).await;
            assert_eq!(refused.problem(422), "wrong-code", "{wrong:?}");
        }
        assert_eq!(server.send(ada.ask("POST", "/api/v1/me/mfa/totp/activate")).await.problem(409), "no-set-up", "not verified yet");
        let verified = server.say(&ada, "/api/v1/me/mfa/totp/verify", &json!({ "code": code })).await;
        assert_eq!(verified.header("cache-control"), "no-store");
        let verified = verified.json(200);
        assert_eq!(verified["codes"].as_array().unwrap().len(), 10);
        assert!(verified["text"].as_str().unwrap().contains(verified["codes"][9].as_str().unwrap()));
        let status = server.send(ada.ask("GET", "/api/v1/me/mfa")).await.json(200);
        assert_eq!((&status["active"], &status["set_up"]["state"]), (&json!(false), &json!("verified")));
        assert!(!status.to_string().contains(shown["secret"].as_str().unwrap()), "the secret is shown once");
        Browser::default().sign_in(&server, ADA, PASSWORD).await.json(200);

        let old = ada.clone();
        let active = server.send(ada.ask("POST", "/api/v1/me/mfa/totp/activate")).await;
        assert_eq!(active.json(200)["session"]["methods"], json!(["pwd", "otp", "mfa"]));
        ada.keep(&active);
        for ended in [&old, &elsewhere] {
            assert_eq!(server.send(ended.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated", "other sessions end");
        }
        server.send(ada.ask("GET", "/api/v1/orgs/acme")).await.json(200);

        // From here on the password is half of it.
        let mut again = server.half_way(ADA).await;
        let replayed = server.second(&mut again, json!({ "code": code })).await;
        assert_eq!(replayed.problem(422), "wrong-code", "its step was used in the set-up");
        let next = server.next_code(&app);
        let me = server.second(&mut again, json!({ "code": next })).await.json(200);
        assert_eq!(me["session"]["methods"], json!(["pwd", "otp", "mfa"]));
        server.send(again.ask("GET", "/api/v1/orgs/acme")).await.json(200);
        let over = server.say(&again, "/api/v1/auth/second-factor", &json!({ "code": next })).await;
        assert_eq!(over.problem(401), "unauthenticated", "the sign-in waits no more");
        let ledger = server.send(again.ask("GET", "/api/v1/me/sign-ins")).await.json(200);
        let newest = &ledger["items"][0];
        assert_eq!((&newest["method"], &newest["passed"]), (&json!("otp"), &json!(true)));
        let log = server.send(again.ask("GET", "/api/v1/orgs/acme/audit?limit=200")).await.json(200).to_string();
        for told in ["mfa.enrolled", "mfa.passed", "mfa.refused", "backup_codes.made"] {
            assert!(log.contains(told), "{told}");
        }
        assert!(!log.contains(shown["secret"].as_str().unwrap()) && !log.contains(verified["codes"][0].as_str().unwrap()));
    }

    async fn browsers_are_listed_and_forgotten(server: TestServer) {
        let mut ada = server.first_person().await;
        let mut other = Browser::default();
        other.sign_in(&server, ADA, PASSWORD).await.json(200);
        let listed = server.send(ada.ask("GET", "/api/v1/me/devices")).await.json(200);
        let items = listed["items"].as_array().unwrap();
        let current: Vec<&Value> = items.iter().filter(|device| device["current"] == true).collect();
        assert_eq!((items.len(), current.len(), &items[0]["agent"]), (2, 1, &json!("Suite/1.0")));
        let foreign = items.iter().find(|device| device["current"] == false).unwrap()["id"].as_str().unwrap();
        let bo = server.person("bo@example.com", Some(("acme", "viewer"))).await;
        let path = format!("/api/v1/me/devices/{foreign}");
        assert_eq!(server.send(bo.ask("DELETE", &path)).await.problem(404), "not-found", "somebody else's");
        assert_eq!(server.send(ada.ask("DELETE", &path)).await.status.as_u16(), 204);
        assert_eq!(server.send(ada.ask("DELETE", &path)).await.problem(404), "not-found");
        assert_eq!(server.send(other.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated", "its session ended");
        // Another password: no browser is known any more but that of whoever changed it, under a new token.
        let body = json!({ "password": PASSWORD, "new_password": "quiet marble lantern" });
        let changed = server.send(ada.ask("PUT", "/api/v1/me/password").json(&body)).await;
        changed.json(200);
        ada.keep(&changed);
        let left = server.send(ada.ask("GET", "/api/v1/me/devices")).await.json(200);
        assert_eq!((left["items"].as_array().unwrap().len(), &left["items"][0]["current"]), (1, &json!(true)));
    }

    /// OpenBao CVE-2025-6014, Kratos, Logto: a code that is still right a second time.
    async fn of_fifty_requests_with_one_code_one_succeeds(server: TestServer) {
        let ada = server.enrol(server.first_person().await).await;
        // Ten browsers that are known, each of which may try five times.
        let mut known = Vec::new();
        for _ in 0..10 {
            let mut browser = server.half_way(ADA).await;
            server.second(&mut browser, json!({ "code": server.next_code(&ada.app) })).await.json(200);
            known.push(browser);
        }
        for proof in [json!({ "code": server.next_code(&ada.app) }), json!({ "backup_code": ada.codes[0] })] {
            for browser in &mut known {
                browser.sign_in(&server, ADA, PASSWORD).await.json(202);
            }
            let asks = (0..50).map(|n| server.say(&known[n % 10], "/api/v1/auth/second-factor", &proof));
            let answers = futures_util::future::join_all(asks).await;
            let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status.as_u16()).collect();
            for (browser, answer) in answers.iter().enumerate().map(|(n, answer)| (n % 10, answer)) {
                known[browser].keep(answer);
            }
            assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
            // Of the one whose sign-in went on the others come too late; all others were judged.
            statuses.retain(|status| *status == 422);
            assert!((45..50).contains(&statuses.len()), "{} were judged", statuses.len() + 1);
        }
    }

    /// The second of two requests with one waiting sign-in spends nothing.
    async fn a_code_that_came_too_late_is_not_spent(server: TestServer) {
        let ada = server.enrol(server.first_person().await).await;
        let browser = server.half_way(ADA).await;
        let (code, backup) = (json!({ "code": server.next_code(&ada.app) }), json!({ "backup_code": ada.codes[0] }));
        let path = "/api/v1/auth/second-factor";
        let (by_code, by_backup) = tokio::join!(server.say(&browser, path, &code), server.say(&browser, path, &backup));
        let passed = [&by_code, &by_backup].map(|answer| answer.status.as_u16() == 200);
        assert_ne!(passed[0], passed[1], "{} {}", by_code.text(), by_backup.text());
        let mut browser = browser;
        browser.keep(if passed[0] { &by_code } else { &by_backup });
        let left = server.send(browser.ask("GET", "/api/v1/me/mfa")).await.json(200)["backup_codes_left"].clone();
        assert_eq!(left, json!(if passed[0] { 10 } else { 9 }));
    }

    async fn a_backup_code_is_known_by_its_form(server: TestServer) {
        let ada = server.enrol(server.first_person().await).await;
        let mut browser = server.half_way(ADA).await;
        server.second(&mut browser, json!({ "code": ada.codes[0] })).await.json(200);
        let proven = json!({ "password": PASSWORD, "code": ada.codes[1].to_lowercase() });
        let proven = server.say(&browser, "/api/v1/auth/step-up", &proven).await;
        assert_eq!(proven.json(200)["session"]["methods"], json!(["pwd", "otp", "mfa"]));
        browser.keep(&proven);
        let status = server.send(browser.ask("GET", "/api/v1/me/mfa")).await.json(200);
        assert_eq!(status["backup_codes_left"], 8);
    }

    /// Codes of a set-up that was never ended made a second factor of nothing.
    async fn codes_of_a_set_up_are_worth_nothing_until_it_counts(server: TestServer) {
        let ada = server.first_person_who_is_asked_for_mfa().await;
        let shown = server.send(ada.ask("POST", "/api/v1/me/mfa/totp")).await.json(201);
        let app = Authenticator::scan(shown["uri"].as_str().unwrap());
        let code = json!({ "code": app.code(server.unix_s()) });
        let verified = server.say(&ada, "/api/v1/me/mfa/totp/verify", &code).await.json(200);
        let proof = json!({ "password": PASSWORD, "backup_code": verified["codes"][0] });
        assert_eq!(server.say(&ada, "/api/v1/auth/step-up", &proof).await.problem(422), "wrong-code");
        assert_eq!(server.send(ada.ask("GET", "/api/v1/orgs/acme")).await.problem(403), "mfa-required");
        server.ambient.advance(Duration::from_mins(10));
        server.app.tidy_people().await.unwrap();
        let status = server.send(ada.ask("GET", "/api/v1/me/mfa")).await.json(200);
        assert_eq!((&status["backup_codes_left"], &status["set_up"]), (&json!(0), &Value::Null));
        assert_eq!(server.say(&ada, "/api/v1/auth/step-up", &proof).await.problem(422), "wrong-code");
    }

    /// A stolen session ended the owner's, and became the proven one.
    async fn only_the_session_that_began_a_set_up_goes_on_with_it(server: TestServer) {
        let mut ada = server.first_person().await;
        let mut fresh = Browser::default();
        let stolen = ada.clone();
        server.ambient.advance(Duration::from_mins(11));
        ada.sign_in(&server, ADA, PASSWORD).await.json(200);
        fresh.sign_in(&server, ADA, PASSWORD).await.json(200);
        let shown = server.send(ada.ask("POST", "/api/v1/me/mfa/totp")).await.json(201);
        let app = Authenticator::scan(shown["uri"].as_str().unwrap());
        server.ambient.advance(Duration::from_mins(1));
        let code = json!({ "code": app.code(server.unix_s()) });
        assert_eq!(server.say(&fresh, "/api/v1/me/mfa/totp/verify", &code).await.problem(409), "no-set-up");
        server.say(&ada, "/api/v1/me/mfa/totp/verify", &code).await.json(200);
        for (other, status, slug) in [(&stolen, 401, "step-up-required"), (&fresh, 409, "no-set-up")] {
            assert_eq!(server.send(other.ask("POST", "/api/v1/me/mfa/totp/activate")).await.problem(status), slug);
            let seen = server.send(other.ask("GET", "/api/v1/me/mfa")).await.json(200);
            assert_eq!(seen["set_up"], Value::Null, "{slug}");
        }
        let waits = server.send(ada.ask("GET", "/api/v1/me/mfa")).await.json(200);
        assert_eq!(waits["set_up"]["state"], "verified");
        let before = server.send(ada.ask("GET", "/api/v1/me")).await.json(200);
        server.ambient.advance(Duration::from_mins(1));
        let active = server.send(ada.ask("POST", "/api/v1/me/mfa/totp/activate")).await.json(200);
        assert_eq!(active["session"]["authenticated_at"], before["session"]["authenticated_at"], "it proves nothing anew");
        assert_eq!(active["session"]["methods"], json!(["pwd", "otp", "mfa"]));
        assert_eq!(server.send(fresh.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated");
    }

    async fn a_backup_code_works_once_and_opens_what_was_locked(server: TestServer) {
        let ada = server.enrol(server.first_person().await).await;
        let mut browser = server.half_way(ADA).await;
        assert_eq!(server.second(&mut browser, json!({ "backup_code": "00000-00000" })).await.problem(422), "wrong-code");
        assert_eq!(server.second(&mut browser, json!({ "backup_code": "?" })).await.problem(422), "wrong-code");
        assert_eq!(server.second(&mut browser, json!({})).await.problem(422), "wrong-code");
        let both = json!({ "code": "123456", "backup_code": ada.codes[0] });
        assert_eq!(server.second(&mut browser, both).await.problem(422), "wrong-code");
        let spoken = ada.codes[0].to_lowercase().replace('-', "");
        server.second(&mut browser, json!({ "backup_code": spoken })).await.json(200);
        let mut browser = server.half_way(ADA).await;
        assert_eq!(server.second(&mut browser, json!({ "backup_code": ada.codes[0] })).await.problem(422), "wrong-code");

        // Ten wrong codes in a row, however slowly: then no code of the app counts.
        for _ in 0..10 {
            server.ambient.advance(Duration::from_mins(16));
            let mut browser = server.half_way(ADA).await;
            assert_eq!(server.second(&mut browser, json!({ "code": "000000" })).await.problem(422), "wrong-code");
        }
        server.ambient.advance(Duration::from_mins(16));
        let mut browser = server.half_way(ADA).await;
        assert_eq!(server.second(&mut browser, json!({ "code": server.next_code(&ada.app) })).await.problem(422), "wrong-code");
        server.second(&mut browser, json!({ "backup_code": ada.codes[1] })).await.json(200);
        let status = server.send(browser.ask("GET", "/api/v1/me/mfa")).await.json(200);
        assert_eq!((&status["locked"], &status["backup_codes_left"]), (&json!(false), &json!(8)));
        let mut browser = server.half_way(ADA).await;
        server.ambient.advance(Duration::from_mins(4));
        server.second(&mut browser, json!({ "code": server.next_code(&ada.app) })).await.json(200);

        let renewed = server.send(browser.ask("POST", "/api/v1/me/mfa/backup-codes")).await.json(201);
        assert_eq!(renewed["codes"].as_array().unwrap().len(), 10);
        let mut browser = server.half_way(ADA).await;
        assert_eq!(server.second(&mut browser, json!({ "backup_code": ada.codes[2] })).await.problem(422), "wrong-code", "the set is void");
        let spare = renewed["codes"][0].clone();
        server.second(&mut browser, json!({ "backup_code": spare })).await.json(200);
    }

    async fn few_backup_codes_are_told_of(server: TestServer) {
        let ada = server.enrol(server.first_person().await).await;
        server.letters().await;
        for (left, code) in (3..10).rev().zip(&ada.codes) {
            let mut browser = server.half_way(ADA).await;
            server.second(&mut browser, json!({ "backup_code": code })).await.json(200);
            let letters = server.letters().await;
            let subjects: Vec<&str> = letters.iter().map(|letter| letter.subject.as_str()).collect();
            let expected = if left == 3 { "Few backup codes are left" } else { "A backup code was used" };
            assert!(subjects.contains(&expected), "{left} left: {subjects:?}");
        }
    }

    /// Keycloak CVE-2026-9798: a limit at the beginning of a flow, and none where it is redeemed.
    async fn wrong_codes_have_to_wait(server: TestServer) {
        server.enrol(server.first_person().await).await;
        let mut browser = server.half_way(ADA).await;
        let mut refused = 0;
        while refused < 8 {
            let answer = server.second(&mut browser, json!({ "code": "000000" })).await;
            if answer.status.as_u16() == 429 {
                assert_eq!(answer.problem(429), "too-many-attempts");
                break;
            }
            assert_eq!(answer.problem(422), "wrong-code");
            refused += 1;
        }
        assert_eq!(refused, 5, "five, and then a wait");
        // The password's counter is another one: the way in is not shut for who has a backup code.
        server.half_way(ADA).await;
    }

    async fn a_sign_in_waits_for_five_minutes(server: TestServer) {
        let ada = server.enrol(server.first_person().await).await;
        let mut browser = server.half_way(ADA).await;
        server.ambient.advance(Duration::from_mins(5));
        let late = server.second(&mut browser, json!({ "code": server.next_code(&ada.app) })).await;
        assert_eq!(late.problem(401), "unauthenticated");
        let none = server.send(ask("POST", "/api/v1/auth/second-factor").json(&json!({ "code": "123456" }))).await;
        assert_eq!(none.problem(401), "unauthenticated");
    }

    async fn a_set_up_ends_after_ten_minutes_and_needs_a_fresh_proof(server: TestServer) {
        let ada = server.first_person().await;
        let shown = server.send(ada.ask("POST", "/api/v1/me/mfa/totp")).await.json(201);
        let app = Authenticator::scan(shown["uri"].as_str().unwrap());
        server.ambient.advance(Duration::from_mins(10));
        let late = json!({ "code": app.code(server.unix_s()) });
        for path in ["/api/v1/me/mfa/totp", "/api/v1/me/mfa/totp/activate"] {
            assert_eq!(server.send(ada.ask("POST", path)).await.problem(401), "step-up-required");
        }
        let refused = server.say(&ada, "/api/v1/me/mfa/totp/verify", &late).await;
        assert_eq!(refused.problem(401), "step-up-required");
        let proven = server.say(&ada, "/api/v1/auth/step-up", &json!({ "password": PASSWORD })).await;
        let mut ada = ada;
        ada.keep(&proven);
        let refused = server.say(&ada, "/api/v1/me/mfa/totp/verify", &late).await;
        assert_eq!(refused.problem(409), "no-set-up");
        let status = server.send(ada.ask("GET", "/api/v1/me/mfa")).await.json(200);
        assert_eq!(status["set_up"], Value::Null);
    }

    /// Keycloak GHSA-8g9r-9wjw-37j4: a second factor that the account's own API took away.
    async fn who_is_asked_for_a_second_factor_cannot_take_it_away(server: TestServer) {
        let ada = server.enrol(server.first_person().await).await;
        let stays = server.send(ada.browser.ask("DELETE", "/api/v1/me/mfa")).await;
        assert_eq!(stays.problem(409), "second-factor-stays", "who administers the platform keeps it");
        let bo = server.enrol(server.person("bo@example.com", Some(("acme", "viewer"))).await).await;
        let acme = server.app.find_org("acme".parse().unwrap()).await.unwrap().unwrap().id;
        server.ask_for_mfa(acme, MfaPolicy::All).await;
        assert_eq!(server.send(bo.browser.ask("DELETE", "/api/v1/me/mfa")).await.problem(409), "second-factor-stays");
        server.ask_for_mfa(acme, MfaPolicy::Admins).await;
        server.ambient.advance(Duration::from_mins(10));
        assert_eq!(server.send(bo.browser.ask("DELETE", "/api/v1/me/mfa")).await.problem(401), "step-up-required");
        let path = "/api/v1/auth/step-up";
        let half = server.say(&bo.browser, path, &json!({ "password": PASSWORD })).await;
        assert_eq!(half.problem(422), "second-factor-required", "a proof is of every factor");
        let wrong = server.say(&bo.browser, path, &json!({ "password": PASSWORD, "code": "000000" })).await;
        assert_eq!(wrong.problem(422), "wrong-code");
        let code = server.next_code(&bo.app);
        let mut browser = bo.browser;
        let proven = server.say(&browser, path, &json!({ "password": PASSWORD, "code": code })).await;
        proven.json(200);
        browser.keep(&proven);
        let replayed = server.say(&browser, path, &json!({ "password": PASSWORD, "code": code })).await;
        assert_eq!(replayed.problem(422), "wrong-code");
        let off = server.send(browser.ask("DELETE", "/api/v1/me/mfa")).await;
        assert_eq!(off.json(200)["session"]["methods"], json!(["pwd"]));
        browser.keep(&off);
        assert_eq!(server.send(browser.ask("DELETE", "/api/v1/me/mfa")).await.problem(404), "not-found");
        Browser::default().sign_in(&server, "bo@example.com", PASSWORD).await.json(200);
    }

    async fn an_organization_says_whom_it_asks(server: TestServer) {
        let ada = server.enrol(server.first_person().await).await;
        let bo = server.person("bo@example.com", Some(("acme", "viewer"))).await;
        let tokens = server.send(bo.ask("POST", "/api/v1/me/tokens")).await.json(201);
        let by_token = || server.send(ask("GET", "/api/v1/orgs/acme").key(tokens["access_token"].as_str().unwrap()));
        let path = "/api/v1/orgs/acme/sign-in-policy";
        assert_eq!(server.send(bo.ask("GET", path)).await.problem(403), "forbidden");
        server.send(bo.ask("GET", "/api/v1/orgs/acme")).await.json(200);
        by_token().await.json(200);
        assert_eq!(server.send(ada.browser.ask("GET", path)).await.json(200)["mfa"], "optional");
        let all = ada.browser.ask("PUT", path).json(&json!({ "mfa": "all" }));
        assert_eq!(server.send(all).await.json(200)["mfa"], "all");
        let nonsense = ada.browser.ask("PUT", path).json(&json!({ "mfa": "none" }));
        assert_eq!(server.send(nonsense).await.problem(422), "invalid-body");
        assert_eq!(server.send(bo.ask("GET", "/api/v1/orgs/acme")).await.problem(403), "mfa-required", "from the next request on");
        assert_eq!(by_token().await.problem(403), "mfa-required");
        server.send(ada.browser.ask("GET", "/api/v1/orgs/acme")).await.json(200);
        let admins = ada.browser.ask("PUT", path).json(&json!({ "mfa": "admins" }));
        server.send(admins).await.json(200);
        server.send(bo.ask("GET", "/api/v1/orgs/acme")).await.json(200);
        // What gives rights or takes data out needs a proof of the last ten minutes, of every factor.
        server.ambient.advance(Duration::from_mins(10));
        let mut asked = Vec::new();
        for (method, path, operation) in operations(&bulkhead_http::openapi()) {
            if operation["x-bulkhead-step-up"] != true {
                continue;
            }
            let fill = |part: &str| if part.starts_with('{') { "x".to_owned() } else { part.to_owned() };
            let path = path.replace("{org}", "acme").split('/').map(fill).collect::<Vec<_>>().join("/");
            let stale = server.send(ada.browser.ask(&method, &path).json(&json!({}))).await;
            assert_eq!(stale.problem(401), "step-up-required", "{path}");
            assert!(stale.header("www-authenticate").contains("insufficient_user_authentication"));
            asked.push(operation["operationId"].as_str().unwrap().to_owned());
        }
        for id in [
            "replace_sign_in_policy", "create_api_key", "invite", "rotate_hook", "put_secret", "unassign_role", "set_member_state",
            "remove_member",
        ] {
            assert!(asked.iter().any(|asked| asked == id), "{id}: {asked:?}");
        }
    }

    async fn a_right_password_of_before_is_worth_nothing_after_a_change(server: TestServer) {
        let ada = server.enrol(server.first_person().await).await;
        let mut waits = server.half_way(ADA).await;
        let link = server.app.unlock_user_as_operator(ADA).await.unwrap();
        let code = server.next_code(&ada.app);
        assert_eq!(server.second(&mut waits, json!({ "code": code })).await.problem(401), "unauthenticated");
        let body = json!({ "token": link, "password": "quiet marble lantern" });
        let chosen = server.send(ask("POST", "/api/v1/auth/choose-password").json(&body)).await;
        assert_eq!(chosen.status.as_u16(), 204, "{}", chosen.text());
        let mut browser = Browser::default();
        let answer = browser.sign_in(&server, ADA, "quiet marble lantern").await;
        answer.json(202);
        let code = server.next_code(&ada.app);
        server.second(&mut browser, json!({ "code": code })).await.json(200);
        // The operator's way for who has lost the app and the codes.
        server.app.reset_mfa_as_operator(ADA).await.unwrap();
        assert_eq!(server.send(browser.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated");
        browser.sign_in(&server, ADA, "quiet marble lantern").await.json(200);
    }
}
