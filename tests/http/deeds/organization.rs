//! What is done to an organization: its members, its settings, its keys, its log.

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::block::Block;
use bulkhead_model::id::ApiKeyId;
use bulkhead_model::permission::{SystemReason, SystemScope};
use serde_json::json;

use super::Said::{Changed, Hidden, Made, Removed};
use super::{Cast, Story, text, told};
use crate::support::ask;

pub(super) async fn members(story: &mut Story<'_>, cast: &Cast) {
    let server = story.server;
    let cy = cast.member(server, "cy@example.com").await;
    let sessions = format!("members/{cy}/sessions");
    let listed = server.get(&cast.acme, &sessions).await.json(200);
    let one = format!("{sessions}/{}", text(&listed["items"][0]["id"]));
    story.does("end_member_session", cast.ask("DELETE", &one)).await;
    let ended = [Removed("/session"), Removed("/ended")];
    story.left(&[told(EventType::SessionRevoked, &cast.key, &cy, &ended)]).await;
    story.does("end_member_sessions", cast.ask("DELETE", &sessions)).await;
    story.left(&[told(EventType::SessionRevoked, &cast.key, &cy, &[Removed("/ended")])]).await;
    let state = cast.ask("PUT", &format!("members/{cy}/state")).json(&json!({ "state": "disabled" }));
    story.does("set_member_state", state).await;
    let change = [Changed("/state/before", "/state/after")];
    story.left(&[told(EventType::UserDisabled, &cast.key, &cy, &change)]).await;
    story.does("remove_member", cast.ask("DELETE", &format!("members/{cy}"))).await;
    let gone = [Removed("/before/role"), Removed("/before/roles/0"), Removed("/before/joined_at")];
    story.left(&[told(EventType::UserRemoved, &cast.key, &cy, &gone)]).await;
}

pub(super) async fn settings(story: &mut Story<'_>, cast: &Cast) {
    let server = story.server;
    let policy = cast.ask("PUT", "sign-in-policy").json(&json!({ "mfa": "admins" }));
    story.does("replace_sign_in_policy", policy).await;
    let change = [Changed("/before/mfa", "/after/mfa")];
    story.left(&[told(EventType::SettingsChanged, &cast.key, "sign_in_policy", &change)]).await;
    server.ask_nobody_for_mfa().await;

    let office = "192.0.2.7";
    let list = |entries: &[&str]| cast.ask("PUT", "ip-allow-list").peer(office).json(&json!({ "entries": entries }));
    story.does("replace_ip_allow_list", list(&["192.0.2.0/24"]).header("if-match", "\"v0\"")).await;
    let change = [Changed("/before", "/after")];
    story.left(&[told(EventType::IpRulesChanged, &cast.key, "ip_allow_list", &change)]).await;
    // Most of what follows comes from nobody knows where.
    server.send(list(&[]).header("if-match", "\"v1\"")).await.json(200);

    let shown = server.get(&cast.acme, "retention").await;
    let mut policy = shown.json(200)["policy"].clone();
    policy["succeeded_days"] = json!(5);
    story.does("preview_retention", cast.ask("POST", "retention/preview").json(&policy)).await;
    story.left_nothing().await;
    let replace = cast.ask("PUT", "retention").header("if-match", shown.header("etag")).json(&policy);
    story.does("replace_retention", replace).await;
    let change = [Changed("/before/succeeded_days", "/after/succeeded_days")];
    story.left(&[told(EventType::HistoryRetentionChanged, &cast.key, &cast.acme.org, &change)]).await;
}

pub(super) async fn api_keys(story: &mut Story<'_>, cast: &Cast) {
    let server = story.server;
    let body = json!({ "name": "ci", "permissions": ["org.read"] });
    let made = story.does("create_api_key", cast.ask("POST", "api-keys").json(&body)).await.json(201);
    story.keep_secret(&made["secret"]);
    let id = text(&made["id"]);
    let new = [Made("/name"), Made("/permissions"), Made("/expires_at")];
    story.left(&[told(EventType::ApiKeyCreated, &cast.key, &id, &new)]).await;
    let rotate = cast.ask("POST", &format!("api-keys/{id}/rotate")).json(&json!({}));
    let rotated = story.does("rotate_api_key", rotate).await.json(200);
    story.keep_secret(&rotated["secret"]);
    let why = Hidden("its secret is another one, and is told to nobody");
    story.left(&[told(EventType::ApiKeyRotated, &cast.key, &id, &[Made("/previous_until"), why])]).await;

    // It asked too often.
    let scope = SystemScope::new(SystemReason::Limits).for_org(cast.acme.org.parse().unwrap());
    let block = Block::next(None, server.ambient.now()).expect("nothing is in force");
    let args = (id.parse::<ApiKeyId>().unwrap(), block);
    let placed = server
        .store
        .write(&scope, args, |tx, (key, block)| Box::pin(async move { tx.save_key_block(*key, block).await }));
    placed.await.unwrap();
    story.does("lift_block", cast.ask("DELETE", &format!("blocks/{id}"))).await;
    let gone = [Removed("/before/level"), Removed("/before/ends_at")];
    story.left(&[told(EventType::BlockLifted, &cast.key, &id, &gone)]).await;

    story.does("revoke_api_key", cast.ask("DELETE", &format!("api-keys/{id}"))).await;
    let gone = [Removed("/before/name"), Removed("/before/permissions")];
    story.left(&[told(EventType::ApiKeyRevoked, &cast.key, &id, &gone)]).await;
}

pub(super) async fn questions(story: &mut Story<'_>, cast: &Cast) {
    let checks = json!({ "checks": [{ "subject": cast.ada_id, "permission": "org.read" }] });
    let question = json!({
        "subject": { "type": "user", "id": cast.ada_id }, "action": { "name": "org.read" },
        "resource": { "type": "organization", "id": cast.acme.org },
    });
    for (id, path, body) in [
        ("check_access", "access/check", &checks),
        ("evaluate_access", "access/v1/evaluation", &question),
        ("evaluate_accesses", "access/v1/evaluations", &question),
    ] {
        story.does(id, cast.ask("POST", path).json(body)).await;
        story.left_nothing().await;
    }
}

/// After something was sealed: there are keys to replace.
pub(super) async fn keys(story: &mut Story<'_>, cast: &Cast) {
    let rotate = cast.ask("POST", "key-rotations").json(&json!({ "level": "organization" }));
    story.does("rotate_key", rotate).await;
    let change = [Changed("/from", "/to"), Made("/rotation")];
    story.left(&[told(EventType::KeyRotated, &cast.key, &cast.acme.org, &change)]).await;
}

pub(super) async fn log(story: &mut Story<'_>, cast: &Cast) {
    let server = story.server;
    // Opens it, and gives what waits its place.
    server.app.seal_audit_logs().await.unwrap();
    story.does("rotate_audit_key", ask("POST", cast.acme.at("audit/keys")).key(&cast.acme.key)).await;
    let change = [Changed("/before", "/after")];
    story.left(&[told(EventType::LogKeyRotated, &cast.key, &cast.acme.org, &change)]).await;
    let shown = server.get(&cast.acme, "audit/retention").await;
    let mut policy = shown.json(200);
    policy["api"] = json!(500);
    let replace = cast.ask("PUT", "audit/retention").header("if-match", shown.header("etag")).json(&policy);
    story.does("replace_audit_retention", replace).await;
    let change = [Changed("/before/api", "/after/api")];
    story.left(&[told(EventType::RetentionChanged, &cast.key, &cast.acme.org, &change)]).await;
    let erase = cast.ask("POST", "audit/erasures").json(&json!({ "reference": "dsr-17", "entries": [1] }));
    story.does("erase_audit", erase).await;
    let gone = [Removed("/payloads"), Made("/reference")];
    story.left(&[told(EventType::PayloadsErased, &cast.key, &cast.acme.org, &gone)]).await;
}
