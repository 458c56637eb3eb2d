//! Who may do what: every operation of the OpenAPI document, driven as nobody, as another organization, and as a key of each
//! single permission. The whole matrix is a text file that reviews see change.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use bulkhead_app::account::NewUser;
use bulkhead_model::permission::Permission;
use bulkhead_model::role::{BuiltIn, RoleRef};
use serde_json::{Value, json};

use crate::guests::{asks_for_secret, manifest, package, signs};
use crate::openapi::{compare_with_file, operations};
use crate::people::Browser;
use crate::support::{Answer, Ask, Tenant, TestServer, ask, stops_at_once};

/// Ids of one organization's things, by the path parameter that takes them.
struct Things {
    values: Vec<(&'static str, String)>,
}

impl Things {
    /// One of everything.
    async fn of(server: &TestServer, tenant: &Tenant) -> Self {
        let id = |view: &Value| view["id"].as_str().unwrap().to_owned();
        let name = format!("{}/signer", tenant.slug);
        let plugin = server.upload(tenant, package(&signs(), &manifest(&name, "1.0.0", asks_for_secret(false)))).await;
        let body = json!({ "plugin": name, "version": "1.0.0" });
        let installation = id(&server.post(tenant, "installations", &body).await.json(201));
        let secret =
            ask("PUT", tenant.at(&format!("installations/{installation}/secrets/signing_key"))).key(&tenant.key);
        assert_eq!(server.send(secret.json(&json!({ "value": "canary" }))).await.status.as_u16(), 204);
        let call = json!({ "contribution": "it", "input": "x" });
        let call = id(&server.post(tenant, &format!("installations/{installation}/calls"), &call).await.json(200));
        let workflow = id(&server.save(tenant, &stops_at_once("Private")).await);
        let run = server.post(tenant, &format!("workflows/{workflow}/runs"), &json!({})).await.json(202);
        server.step(tenant, run["run"].as_str().unwrap(), "end", "{}").await;
        let key = server.post(tenant, "api-keys", &json!({ "name": "k", "permissions": ["org.read"] })).await.json(201);
        let member = NewUser {
            email: format!("{}@example.com", tenant.slug),
            name: "Private".to_owned(),
            is_super_admin: false,
            member_of: Some((tenant.org.parse().unwrap(), "viewer".to_owned())),
        };
        let (member, _) = server.app.create_user_as_operator(member).await.unwrap();
        // The key ends in ninety days, and gives nothing for longer.
        let invited =
            json!({ "email": "invited@example.com", "role": "viewer", "valid_until": "2026-12-01T00:00:00Z" });
        let invitation = id(&server.post(tenant, "invitations", &invited).await.json(201));
        let role = json!({ "name": "Private", "permissions": ["leads.read"] });
        let role = server.post(tenant, "roles", &role).await.json(201)["role"].as_str().unwrap().to_owned();
        let team = id(&server.post(tenant, "teams", &json!({ "name": "Private" })).await.json(201));
        let user = crate::roles::member(server, tenant, RoleRef::BuiltIn(BuiltIn::Admin)).await;
        let assignments = server.get(tenant, &format!("role-assignments?user={user}")).await.json(200);
        let assignment = id(&assignments["items"][0]);
        let request = crate::roles::request(server, tenant, user).await;
        let values = vec![
            ("user", member.to_string()),
            ("invitation", invitation),
            ("plugin", id(&plugin)),
            ("installation", installation),
            ("name", "signing_key".to_owned()),
            ("call", call),
            ("workflow", workflow),
            ("version", "1".to_owned()),
            ("number", "1000000".to_owned()),
            ("trigger", "hook".to_owned()),
            ("run", run["run"].as_str().unwrap().to_owned()),
            ("step", "end".to_owned()),
            ("session", "ses_01h455vb4pex5vsknk084sn02q".to_owned()),
            ("device", "dev_01h455vb4pex5vsknk084sn02q".to_owned()),
            ("passkey", "pkey_01h455vb4pex5vsknk084sn02q".to_owned()),
            ("api_key", id(&key)),
            ("role", role),
            ("assignment", assignment),
            ("role_request", request),
            ("team", team),
            ("key_rotation", id(&server.post(tenant, "key-rotations", &json!({ "level": "data" })).await.json(202))),
            ("dead_letter", server.dead_letter(tenant, run["run"].as_str().unwrap()).await),
            (
                "task",
                id(&server
                    .post(tenant, "dead-letter-tasks", &json!({ "action": "resume", "kind": "none" }))
                    .await
                    .json(202)),
            ),
        ];
        Self { values }
    }

    fn fill(&self, path: &str, org: &str) -> String {
        let path = path.replace("{org}", org);
        self.values.iter().fold(path, |path, (name, value)| path.replace(&format!("{{{name}}}"), value))
    }
}

/// A request that would pass if the caller might. A new operation with a body needs a line here.
fn complete(ask: Ask, id: &str, operation: &Value) -> Ask {
    let of_match = |parameter: &Value| parameter["name"] == "if-match" && parameter["required"] == true;
    let tagged = operation["parameters"].as_array().is_some_and(|parameters| parameters.iter().any(of_match));
    let ask = if tagged { ask.header("if-match", "\"v1\"") } else { ask };
    if operation.get("requestBody").is_none() {
        return ask;
    }
    let body = match id {
        "create_api_key" => json!({ "name": "x", "permissions": ["org.read"] }),
        "install" => json!({ "plugin": "acme/signer", "version": "1.0.0" }),
        "update_installation" | "set_member_state" => json!({ "state": "disabled" }),
        "replace_grants" => json!({ "permissions": [] }),
        "put_secret" => json!({ "value": "x" }),
        "make_call" => json!({ "contribution": "it", "input": "x" }),
        "create_workflow" | "update_workflow" | "validate_workflow" => {
            json!({ "definition": stops_at_once("Taken over") })
        }
        "replace_retention" | "preview_retention" => json!({
            "succeeded_days": 1, "failed_days": 1, "dead_letter_days": 1, "calls_days": 1, "events_days": 1,
        }),
        "replace_audit_retention" => json!({
            "authentication": 400, "authorization": 400, "data_access": 90, "api": 400, "configuration": 400, "security": 400,
            "compliance": 400, "system": 400,
        }),
        "erase_audit" => json!({ "reference": "r", "entries": [0] }),
        "replace_ip_allow_list" => json!({ "entries": [] }),
        "step_up" => json!({ "password": "x" }),
        "change_password" => json!({ "password": "x", "new_password": "y" }),
        "add_passkey" => json!({ "name": "laptop", "credential": {} }),
        "step_up_by_passkey" => json!({ "credential": {} }),
        "verify_totp" => json!({ "code": "123456" }),
        "replace_sign_in_policy" => json!({ "mfa": "optional" }),
        "ask_to_verify" => json!({ "email": "x@example.com" }),
        "invite" => json!({ "email": "x@example.com", "role": "viewer" }),
        "switch_org" => json!({ "organization": "acme" }),
        "rotate_hook" | "rotate_api_key" | "start_run" | "retry_run" | "resume_dead_letter" => json!({}),
        "start_dead_letter_task" => json!({ "action": "resume", "kind": "run" }),
        "create_role" | "replace_role" => json!({ "name": "Taken over", "permissions": ["org.read"] }),
        "assign_role" => json!({ "user": "user_00000000000000000000000001", "role": "viewer" }),
        "request_role" => json!({ "role": "viewer", "reason": "to look at everything" }),
        "discard_dead_letter" | "approve_role_request" | "refuse_role_request" => json!({ "reason": "x" }),
        "create_team" | "rename_team" => json!({ "name": "Taken over" }),
        "rotate_key" => json!({ "level": "organization" }),
        "check_access" => {
            json!({ "checks": [{ "subject": "user_00000000000000000000000001", "permission": "org.read" }] })
        }
        "evaluate_access" | "evaluate_accesses" => json!({
            "subject": { "type": "user", "id": "user_00000000000000000000000001" },
            "action": { "name": "org.read" }, "resource": { "type": "organization", "id": "x" },
        }),
        "upload_plugin" => return ask.bytes("application/wasm", "no package"),
        other => panic!("say in tests/http/isolation.rs what `{other}` takes"),
    };
    ask.json(&body)
}

/// What an attacker with the other organization's ids must see: nothing.
fn assert_hidden(answer: &Answer, at: &str) {
    assert_eq!(answer.problem(404), "not-found", "{at}");
    assert!(!answer.text().contains("canary") && !answer.text().contains("Private"), "{at}: {}", answer.text());
}

on_both! {
    async fn every_operation_is_closed_to_all_others(server: TestServer) {
        let (victim, attacker) = (server.tenant("acme").await, server.tenant("other").await);
        let things = Things::of(&server, &victim).await;
        let before = snapshot(&server, &victim).await;
        let declared = declared();
        let mut keys = Vec::new();
        for permission in &declared {
            keys.push((permission.to_string(), server.key(&victim, &[*permission]).await));
        }
        // What no route asks for opens none.
        let of_organization = Permission::ALL.iter().copied().filter(|permission| !permission.is_of_platform());
        let others: Vec<Permission> = of_organization.filter(|permission| !declared.contains(permission)).collect();
        keys.push(("all others".to_owned(), server.key(&victim, &others).await));
        // … and as much as each built-in role holds (an API user's nothing makes no key).
        let mut roles = Vec::new();
        for role in ROLES {
            let held: Vec<Permission> = role.permissions().iter().collect();
            roles.push((role, server.key(&victim, &held).await));
        }
        let before_keys = server.get(&victim, "api-keys").await.json(200);
        let mut matrix = heading(&declared);
        let mut allowed = Vec::new();
        for (method, path, operation) in operations(&bulkhead_http::openapi()) {
            let at = format!("{method} {path}");
            let Some(permission) = operation["x-bulkhead-permission"].as_str() else {
                if let Some(why) = operation["x-bulkhead-public"].as_str() {
                    writeln!(matrix, "{method:<6} {path:<74} public: {why}").unwrap();
                    continue;
                }
                // Neither nobody nor a key is a person.
                let id = operation["operationId"].as_str().unwrap();
                let filled = things.fill(&path, &victim.org);
                let make = || complete(ask(&method, &*filled), id, &operation).header("sec-fetch-site", "same-origin");
                for request in [make(), make().key(&victim.key), make().header("cookie", "__Host-bulkhead_session=x")] {
                    assert_eq!(server.send(request).await.problem(401), "unauthenticated", "{at}");
                }
                let why = operation["x-bulkhead-personal"].as_str().unwrap();
                writeln!(matrix, "{method:<6} {path:<74} a person's session: {why}").unwrap();
                continue;
            };
            let id = operation["operationId"].as_str().unwrap();
            let make = |org: &str| complete(ask(&method, things.fill(&path, org)), id, &operation);

            let nobody = server.send(make(&victim.org)).await;
            assert_eq!(nobody.problem(401), "unauthenticated", "{at}");
            for org in [&victim.org, &victim.slug] {
                assert_hidden(&server.send(make(org).key(&attacker.key)).await, &at);
            }
            if path.matches('{').count() > 1 {
                assert_hidden(&server.send(make(&attacker.org).key(&attacker.key)).await, &at);
            }
            let mut row = String::new();
            for (held, key) in &keys {
                if held == permission {
                    row.push('x');
                    allowed.push((at.clone(), make(&victim.org).key(key)));
                    continue;
                }
                let refused = server.send(make(&victim.org).key(key)).await;
                assert_eq!(refused.problem(403), "forbidden", "{at} with {held} only");
                assert!(refused.text().contains(permission), "{at}: the permission is named: {}", refused.text());
                row.push('.');
            }
            row.push(' ');
            for (role, key) in &roles {
                if role.permissions().iter().any(|held| held.as_str() == permission) {
                    row.push(role.title().chars().next().unwrap());
                    continue;
                }
                let refused = server.send(make(&victim.org).key(key)).await;
                assert_eq!(refused.problem(403), "forbidden", "{at} as {role}");
                row.push('.');
            }
            writeln!(matrix, "{method:<6} {path:<74} {row}").unwrap();
        }
        assert_eq!(snapshot(&server, &victim).await, before, "nobody changed anything");
        assert_eq!(server.get(&victim, "api-keys").await.json(200), before_keys);
        compare_with_file(&matrix, "tests/http/matrix.txt");

        // The declared permission alone is enough. What comes of it depends on the order, so only the refusals are looked at.
        for (at, request) in allowed {
            let answer = server.send(request).await;
            assert!(![401, 403].contains(&answer.status.as_u16()), "{at}: {}", answer.text());
            assert!(answer.status.as_u16() < 500, "{at}: {}", answer.text());
        }
    }
}

on_both! {
    /// The same as for keys, by who signed in: each built-in role by session and by access token, and somebody of another organization.
    async fn sessions_and_tokens_are_refused_what_their_roles_lack(server: TestServer) {
        server.first_person().await;
        let (acme, other) = (server.tenant("works").await, server.tenant("other").await);
        let things = Things::of(&server, &acme).await;
        let stranger = server.person("stranger@example.com", Some((&other.slug, "admin"))).await;
        let mut people = Vec::new();
        for role in ROLES {
            let email = format!("{role}@example.com");
            let browser = server.person(&email, Some((&acme.slug, role.as_str()))).await;
            let tokens = server.send(browser.ask("POST", "/api/v1/me/tokens")).await.json(201);
            people.push((role, browser, tokens["access_token"].as_str().unwrap().to_owned()));
        }
        let before = snapshot(&server, &acme).await;
        let mut refused = 0;
        for (method, path, operation) in operations(&bulkhead_http::openapi()) {
            let Some(permission) = operation["x-bulkhead-permission"].as_str() else { continue };
            let (at, id) = (format!("{method} {path}"), operation["operationId"].as_str().unwrap());
            let filled = things.fill(&path, &acme.org);
            let by_session = |browser: &Browser| complete(browser.ask(&method, &filled), id, &operation);
            assert_hidden(&server.send(by_session(&stranger)).await, &at);
            for (role, browser, token) in &people {
                let by_token = server.send(complete(ask(&method, &*filled).key(token), id, &operation));
                if !role.permissions().iter().any(|held| held.as_str() == permission) {
                    for answer in [server.send(by_session(browser)).await, by_token.await] {
                        assert_eq!(answer.problem(403), "forbidden", "{at} as {role}");
                        assert!(answer.text().contains(permission), "{at} as {role}: {}", answer.text());
                        refused += 1;
                    }
                } else if operation["x-bulkhead-step-up"] == true {
                    assert_eq!(by_token.await.problem(403), "session-needed", "{at} as {role}");
                } else if method == "GET" {
                    for answer in [server.send(by_session(browser)).await, by_token.await] {
                        assert!(![401, 403].contains(&answer.status.as_u16()), "{at} as {role}: {}", answer.text());
                    }
                }
            }
        }
        assert!(refused > 200, "{refused}");
        assert_eq!(snapshot(&server, &acme).await, before, "nobody changed anything");
    }
}

/// What an organization has, as far as the other one could have changed it.
async fn snapshot(server: &TestServer, tenant: &Tenant) -> Vec<Value> {
    let mut found = Vec::new();
    for list in [
        "plugins",
        "installations",
        "workflows",
        "runs",
        "audit?action=plugin.called",
        "events",
        "jobs",
        "retention",
        "quotas",
        "dead-letters",
        "dead-letter-tasks",
        "members",
        "invitations",
        "roles",
        "role-assignments",
        "role-requests",
        "teams",
        "encryption-keys",
        "key-rotations",
    ] {
        found.push(server.get(tenant, list).await.json(200));
    }
    found
}

/// The built-in roles with something to lose: an admin may everything.
const ROLES: [BuiltIn; 4] = [BuiltIn::Admin, BuiltIn::Manager, BuiltIn::Analyst, BuiltIn::Viewer];

/// The permissions that routes ask for.
fn declared() -> BTreeSet<Permission> {
    let operations = operations(&bulkhead_http::openapi());
    let named = operations.iter().filter_map(|(_, _, operation)| operation["x-bulkhead-permission"].as_str());
    named.map(|name| name.parse().unwrap()).collect()
}

fn heading(declared: &BTreeSet<Permission>) -> String {
    let mut text = String::from(
        "Who may do what. One column per permission that a route asks for, in the order below, and one for a key of all others: `x` passes, \
         `.` is refused with 403.\n\
         Nobody gets 401 from each of these, and another organization's key 404. Behind it the built-in roles that may: Admin, Manager, Analyst, \
         Viewer.\n\n",
    );
    for (at, permission) in declared.iter().enumerate() {
        writeln!(text, "{:>3} {permission}", at + 1).unwrap();
    }
    writeln!(text, "{:>3} all others", declared.len() + 1).unwrap();
    text.push('\n');
    text
}
