//! What people do about their second factors.

use bulkhead_audit::taxonomy::EventType;
use bulkhead_test_support::authenticator::Authenticator;
use serde_json::{Value, json};

use super::Said::{Made, Removed};
use super::account::Person;
use super::{Story, text, told};
use crate::passkeys::{Machine, ORIGIN};
use crate::people::Browser;

pub(super) async fn app(story: &mut Story<'_>, bo: &mut Person) {
    let server = story.server;
    bo.browser = bo.elsewhere(server, 200).await;
    let id = bo.id.clone();
    let shown = story.does("begin_totp", bo.browser.ask("POST", "/api/v1/me/mfa/totp")).await.json(201);
    story.keep_secret(&shown["secret"]);
    story.left(&[told(EventType::MfaSetUpBegun, &id, &id, &[Made("/method")])]).await;
    let app = Authenticator::scan(shown["uri"].as_str().unwrap());
    let code = json!({ "code": server.next_code(&app) });
    let verified = story.does("verify_totp", bo.browser.ask("POST", "/api/v1/me/mfa/totp/verify").json(&code)).await;
    keep_codes(story, &verified.json(200));
    story.left(&[told(EventType::BackupCodesMade, &id, &id, &[Made("/count")])]).await;
    let active = story.does("activate_totp", bo.browser.ask("POST", "/api/v1/me/mfa/totp/activate")).await;
    bo.browser.keep(&active);
    story.left(&[told(EventType::MfaEnrolled, &id, &id, &[Made("/method")])]).await;

    let mut again = bo.elsewhere(server, 202).await;
    let code = json!({ "code": server.next_code(&app) });
    let second = story.does("sign_in_second", again.ask("POST", "/api/v1/auth/second-factor").json(&code)).await;
    again.keep(&second);
    let expected = [
        told(EventType::MfaPassed, &id, &id, &[Made("/method")]),
        told(EventType::SessionStarted, &id, &id, &[Made("/session")]),
    ];
    story.left(&expected).await;
    let made = story.does("renew_backup_codes", again.ask("POST", "/api/v1/me/mfa/backup-codes")).await;
    keep_codes(story, &made.json(201));
    story.left(&[told(EventType::BackupCodesMade, &id, &id, &[Made("/count")])]).await;
    let off = story.does("disable_mfa", again.ask("DELETE", "/api/v1/me/mfa")).await;
    again.keep(&off);
    story.left(&[told(EventType::MfaDisabled, &id, &id, &[Removed("/before/otp"), Removed("/before/passkeys")])]).await;
    bo.browser = again;
}

fn keep_codes(story: &mut Story<'_>, view: &Value) {
    for code in view["codes"].as_array().unwrap() {
        story.keep_secret(code);
    }
}

/// Asks for a challenge by that operation; its options.
async fn challenge(story: &mut Story<'_>, id: &str, browser: &mut Browser, path: &str) -> Value {
    let answer = story.does(id, browser.ask("POST", &format!("/api/v1/{path}/challenge"))).await;
    browser.keep(&answer);
    answer.json(201)["options"].clone()
}

/// Answers it by that operation.
async fn answers(story: &mut Story<'_>, id: &str, browser: &mut Browser, path: &str, credential: Value) {
    let ask = browser.ask("POST", &format!("/api/v1/{path}")).json(&json!({ "credential": credential }));
    let answer = story.does(id, ask).await;
    browser.keep(&answer);
}

pub(super) async fn passkeys(story: &mut Story<'_>, bo: &mut Person) {
    let server = story.server;
    let id = bo.id.clone();
    let options = challenge(story, "begin_passkey", &mut bo.browser, "me/passkeys").await;
    story.left(&[told(EventType::MfaSetUpBegun, &id, &id, &[Made("/method")])]).await;
    let mut machine = Machine::default();
    let credential = machine.make(ORIGIN, &options).await;
    let body = json!({ "name": "laptop", "credential": credential });
    let added = story.does("add_passkey", bo.browser.ask("POST", "/api/v1/me/passkeys").json(&body)).await;
    bo.browser.keep(&added);
    story.left(&[told(EventType::PasskeyAdded, &id, &id, &[Made("/passkey"), Made("/name")])]).await;
    let signed_in = [
        told(EventType::MfaPassed, &id, &id, &[Made("/passkey")]),
        told(EventType::SessionStarted, &id, &id, &[Made("/session")]),
    ];

    let mut alone = Browser::default();
    let options = challenge(story, "begin_passkey_sign_in", &mut alone, "auth/passkey").await;
    story.left_nothing().await;
    let credential = machine.answer(&options).await;
    answers(story, "sign_in_by_passkey", &mut alone, "auth/passkey", credential).await;
    story.left(&signed_in).await;

    let mut second = bo.elsewhere(server, 202).await;
    let options = challenge(story, "begin_passkey_second", &mut second, "auth/second-factor/passkey").await;
    story.left_nothing().await;
    let credential = machine.answer(&options).await;
    answers(story, "sign_in_second_by_passkey", &mut second, "auth/second-factor/passkey", credential).await;
    story.left(&signed_in).await;

    let options = challenge(story, "begin_passkey_step_up", &mut second, "auth/step-up/passkey").await;
    story.left_nothing().await;
    let credential = machine.answer(&options).await;
    answers(story, "step_up_by_passkey", &mut second, "auth/step-up/passkey", credential).await;
    let expected = [
        told(EventType::MfaPassed, &id, &id, &[Made("/passkey")]),
        told(EventType::StepUpPassed, &id, &id, &[Made("/session")]),
    ];
    story.left(&expected).await;

    let listed = server.send(second.ask("GET", "/api/v1/me/passkeys")).await.json(200);
    let path = format!("/api/v1/me/passkeys/{}", text(&listed["items"][0]["id"]));
    let removed = story.does("remove_passkey", second.ask("DELETE", &path)).await;
    second.keep(&removed);
    story.left(&[told(EventType::PasskeyRemoved, &id, &id, &[Removed("/before/name")])]).await;
    bo.browser = second;
}
