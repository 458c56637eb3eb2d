//! What people do about their own accounts.

use bulkhead_app::api_key::NewApiKey;
use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::mfa::Method;
use bulkhead_model::permission::PermissionSet;
use serde_json::json;

use super::Said::{Changed, Hidden, Made, Removed};
use super::{Cast, Story, text, told};
use crate::members::token_in;
use crate::people::{Browser, PASSWORD};
use crate::support::{Tenant, TestServer, ask};

/// A member who joined by a letter.
pub(super) struct Person {
    pub(super) browser: Browser,
    pub(super) id: String,
    pub(super) email: &'static str,
    pub(super) password: &'static str,
}

impl Person {
    /// Another browser, in which the password was right.
    pub(super) async fn elsewhere(&self, server: &TestServer, status: u16) -> Browser {
        let mut browser = Browser::default();
        browser.sign_in(server, self.email, self.password).await.json(status);
        browser
    }
}

const BO: &str = "bo@example.com";
const BO_ELSEWHERE: &str = "bo@other.example.com";
const CY: &str = "cy@example.com";
const SECOND_PASSWORD: &str = "quiet marble lantern";
const THIRD_PASSWORD: &str = "another marble lantern";
const NO_PASSWORD: super::Said = Hidden("no password is told, nor anything that follows from it");

pub(super) async fn set_up(story: &mut Story<'_>) -> Cast {
    let server = story.server;
    for password in [PASSWORD, SECOND_PASSWORD, THIRD_PASSWORD] {
        story.secrets.push(password.to_owned());
    }
    let token = server.app.offer_set_up().await.unwrap().unwrap();
    story.secrets.push(token.clone());
    let body = TestServer::set_up_body(&token, "ada@example.com");
    let made = story.does("set_up", ask("POST", "/api/v1/setup").json(&body)).await.json(201);
    let ada = text(&made["user"]["id"]);
    let org = server.app.find_org("acme".parse().unwrap()).await.unwrap().unwrap();
    story.org = Some(org.id);
    let org_id = org.id.to_string();
    let expected = [
        told(EventType::OrgCreated, &ada, &org_id, &[Made("/slug"), Made("/name")]),
        told(EventType::RoleAssigned, &ada, "asg_", &[Made("/role"), Made("/user")]),
        told(EventType::UserJoined, &ada, &ada, &[Made("/role")]),
    ];
    story.left(&expected).await;
    server.ask_nobody_for_mfa().await;

    let mut browser = Browser::default();
    let body = json!({ "email": "ada@example.com", "password": PASSWORD });
    let signed_in = story.does("sign_in", browser.ask("POST", "/api/v1/auth/login").json(&body)).await;
    browser.keep(&signed_in);
    story.left(&[told(EventType::SessionStarted, &ada, &ada, &[Made("/session"), Made("/method")])]).await;
    let new = NewApiKey::new("all", PermissionSet::all(), None);
    let created = server.app.create_first_api_key(org.id, new).await.unwrap();
    story.secrets.push(created.secret_text.clone());
    let acme = Tenant { org: org_id, slug: "acme".to_owned(), key: created.secret_text };
    Cast { acme, key: created.key.id.to_string(), ada: browser, ada_id: ada }
}

pub(super) async fn join(story: &mut Story<'_>, cast: &Cast) -> Person {
    let server = story.server;
    let invite = |email: &str| {
        cast.ada.ask("POST", "/api/v1/orgs/acme/invitations").json(&json!({ "email": email, "role": "viewer" }))
    };
    let invited = story.does("invite", invite(BO)).await.json(201);
    let id = text(&invited["id"]);
    story.left(&[told(EventType::UserInvited, &cast.ada_id, &id, &[Made("/email"), Made("/role")])]).await;
    let token = server.mailed_token("join").await;
    story.secrets.push(token.clone());
    let body = json!({ "token": token, "name": "Bo Other", "password": PASSWORD });
    story.does("join", ask("POST", "/api/v1/auth/join").json(&body)).await;
    let bo = cast.member(server, BO).await;
    let expected = [
        told(EventType::RoleAssigned, &cast.ada_id, "asg_", &[Made("/role")]),
        told(EventType::UserJoined, &bo, &bo, &[Made("/invitation")]),
    ];
    story.left(&expected).await;

    let other = server.send(invite("nobody@example.com")).await.json(201);
    let id = text(&other["id"]);
    story.does("revoke_invitation", cast.ask("DELETE", &format!("invitations/{id}"))).await;
    let gone = [Removed("/before/email"), Removed("/before/role")];
    story.left(&[told(EventType::InvitationRevoked, &cast.key, &id, &gone)]).await;
    // That letter leads nowhere any more.
    server.letters().await;
    let mut browser = Browser::default();
    browser.sign_in(server, BO, PASSWORD).await.json(200);
    Person { browser, id: bo, email: BO, password: PASSWORD }
}

pub(super) async fn sessions(story: &mut Story<'_>, bo: &mut Person) {
    let server = story.server;
    let body = json!({ "organization": "acme" });
    story.does("switch_org", bo.browser.ask("PUT", "/api/v1/me/active-organization").json(&body)).await;
    let why = Hidden("which one was in front before is another organization's business");
    story.left(&[told(EventType::SessionSwitched, &bo.id, &bo.id, &[Made("/session"), why])]).await;

    let tokens = story.does("issue_tokens", bo.browser.ask("POST", "/api/v1/me/tokens")).await.json(201);
    story.keep_secret(&tokens["refresh_token"]);
    story.keep_secret(&tokens["access_token"]);
    story.left(&[told(EventType::TokenIssued, &bo.id, &bo.id, &[Made("/family")])]).await;
    let body = json!({ "refresh_token": tokens["refresh_token"] });
    let tokens = story.does("refresh_tokens", ask("POST", "/api/v1/auth/refresh").json(&body)).await.json(200);
    story.left_nothing().await;
    let body = json!({ "refresh_token": tokens["refresh_token"] });
    story.does("revoke_tokens", ask("POST", "/api/v1/auth/revoke").json(&body)).await;
    story.left(&[told(EventType::TokenRevoked, &bo.id, &bo.id, &[Removed("/family")])]).await;

    let body = json!({ "password": bo.password });
    let proven = story.does("step_up", bo.browser.ask("POST", "/api/v1/auth/step-up").json(&body)).await;
    bo.browser.keep(&proven);
    story.left(&[told(EventType::StepUpPassed, &bo.id, &bo.id, &[Made("/session")])]).await;
    let body = json!({ "password": bo.password, "new_password": SECOND_PASSWORD });
    let changed = story.does("change_password", bo.browser.ask("PUT", "/api/v1/me/password").json(&body)).await;
    bo.browser.keep(&changed);
    bo.password = SECOND_PASSWORD;
    story.left(&[told(EventType::PasswordChanged, &bo.id, &bo.id, &[NO_PASSWORD])]).await;

    let other = bo.elsewhere(server, 200).await;
    let me = server.send(other.ask("GET", "/api/v1/me")).await.json(200);
    let path = format!("/api/v1/me/sessions/{}", text(&me["session"]["id"]));
    story.does("end_session", bo.browser.ask("DELETE", &path)).await;
    story.left(&[told(EventType::SessionEnded, &bo.id, &bo.id, &[Removed("/session")])]).await;
    bo.elsewhere(server, 200).await;
    story.does("end_other_sessions", bo.browser.ask("DELETE", "/api/v1/me/sessions")).await;
    story.left(&[told(EventType::SessionRevoked, &bo.id, &bo.id, &[Removed("/count")])]).await;
    let listed = server.send(bo.browser.ask("GET", "/api/v1/me/devices")).await.json(200);
    let foreign = listed["items"].as_array().unwrap().iter().find(|device| device["current"] == false).unwrap();
    let path = format!("/api/v1/me/devices/{}", text(&foreign["id"]));
    story.does("forget_device", bo.browser.ask("DELETE", &path)).await;
    story.left(&[told(EventType::DeviceRevoked, &bo.id, &bo.id, &[Removed("/device")])]).await;
}

pub(super) async fn mail(story: &mut Story<'_>, cast: &Cast, bo: &mut Person) {
    let server = story.server;
    let body = json!({ "email": BO_ELSEWHERE });
    story.does("ask_to_verify", bo.browser.ask("PUT", "/api/v1/me/email").json(&body)).await;
    let moves = [Changed("/before", "/after")];
    story.left(&[told(EventType::EmailChangeRequested, &bo.id, &bo.id, &moves)]).await;
    let token = server.mailed_token("verify_email").await;
    story.secrets.push(token.clone());
    let verify = ask("POST", "/api/v1/auth/verify-email").json(&json!({ "token": token }));
    story.does("verify_email", verify).await;
    story.left(&[told(EventType::EmailChanged, &bo.id, &bo.id, &moves)]).await;

    let forgot = ask("POST", "/api/v1/auth/password-reset").json(&json!({ "email": BO_ELSEWHERE }));
    story.does("ask_for_reset", forgot).await;
    // Who is meant is looked at when the letter is written.
    let token = server.mailed_token("choose_password").await;
    let why = [Hidden("nothing is changed yet")];
    story.left(&[told(EventType::PasswordResetRequested, "system:accounts", &bo.id, &why)]).await;
    story.secrets.push(token.clone());
    let body = json!({ "token": token, "password": THIRD_PASSWORD });
    story.does("choose_password", ask("POST", "/api/v1/auth/choose-password").json(&body)).await;
    story.left(&[told(EventType::PasswordReset, &bo.id, &bo.id, &[NO_PASSWORD])]).await;
    (bo.email, bo.password) = (BO_ELSEWHERE, THIRD_PASSWORD);

    // Mail proves its address, and is then taken for a second factor where an organization says so.
    let cy = server.person(CY, Some(("acme", "viewer"))).await;
    let cy_id = cast.member(server, CY).await;
    let prove = cy.ask("PUT", "/api/v1/me/email").json(&json!({ "email": CY }));
    assert_eq!(server.send(prove).await.status.as_u16(), 202);
    let token = json!({ "token": server.mailed_token("verify_email").await });
    story.does("verify_email", ask("POST", "/api/v1/auth/verify-email").json(&token)).await;
    story.left(&[told(EventType::EmailVerified, &cy_id, &cy_id, &[])]).await;
    server.take(&Method::ALL, false).await;
    let mut half_way = Browser::default();
    half_way.sign_in(server, CY, PASSWORD).await.json(202);
    story.does("mail_sign_in_code", half_way.ask("POST", "/api/v1/auth/second-factor/email")).await;
    story.left(&[told(EventType::MfaCodeMailed, &cy_id, &cy_id, &[])]).await;
    server.ask_nobody_for_mfa().await;
}

pub(super) async fn end(story: &mut Story<'_>, cast: &Cast, bo: &Person) {
    let server = story.server;
    server.letters().await;
    let other = bo.elsewhere(server, 200).await;
    let letters = server.letters().await;
    let letter = letters.iter().find(|letter| letter.subject == "A new sign-in").unwrap();
    let token = token_in(letter, "revoke");
    story.secrets.push(token.clone());
    story.does("sign_out", other.ask("POST", "/api/v1/auth/logout")).await;
    story.left(&[told(EventType::SessionEnded, &bo.id, &bo.id, &[Removed("/session")])]).await;
    let revoke = ask("POST", "/api/v1/auth/revoke-account").json(&json!({ "token": token }));
    story.does("revoke_account", revoke).await;
    let gone = [Made("/by"), Removed("/factors")];
    story.left(&[told(EventType::SessionRevoked, &bo.id, &bo.id, &gone)]).await;

    let body = json!({ "name": "leaked", "permissions": ["org.read"] });
    let key = server.post(&cast.acme, "api-keys", &body).await.json(201);
    story.keep_secret(&key["secret"]);
    let report = ask("POST", "/api/v1/leaked-api-keys").json(&json!({ "key": key["secret"] }));
    story.does("report_leaked_key", report).await;
    let gone = [Removed("/before/name"), Removed("/before/permissions")];
    story.left(&[told(EventType::ApiKeyLeaked, "system:sign-in", &text(&key["id"]), &gone)]).await;
}
