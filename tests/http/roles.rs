//! Roles, assignments, requests, teams and questions about access, over HTTP.

use std::time::Duration;

use bulkhead_app::account::NewUser;
use bulkhead_app::assignment::NewAssignment;
use bulkhead_app::role_request::NewRoleRequest;
use bulkhead_model::id::UserId;
use bulkhead_model::permission::{Permission, PermissionSet};
use bulkhead_model::role::assignment::Window;
use bulkhead_model::role::{BuiltIn, RoleRef};
use serde_json::{Value, json};

use crate::support::{Tenant, TestServer, ask};

/// A new member who may nothing yet.
pub(crate) async fn person(server: &TestServer, tenant: &Tenant) -> UserId {
    let email = format!("{}@example.com", UserId::new(&server.ambient));
    let member_of = Some((tenant.org.parse().unwrap(), BuiltIn::ApiUser.as_str().to_owned()));
    let new = NewUser { email, name: "Somebody".to_owned(), is_super_admin: false, member_of };
    server.app.create_user_as_operator(new).await.unwrap().0
}

/// The assignment of a role in a list.
fn id_of(listed: &Value, role: &str) -> String {
    let items = listed["items"].as_array().unwrap();
    items.iter().find(|item| item["role"] == role).unwrap()["id"].as_str().unwrap().to_owned()
}

/// A member with a role, by the operator.
pub(crate) async fn member(server: &TestServer, tenant: &Tenant, role: RoleRef) -> UserId {
    let user = person(server, tenant).await;
    let new = NewAssignment { user, role, team: None, window: Window::ALWAYS, reason: String::new() };
    server.app.assign_role_as_operator(tenant.org.parse().unwrap(), new).await.unwrap();
    user
}

/// A request of his for a role; its id.
pub(crate) async fn request(server: &TestServer, tenant: &Tenant, user: UserId) -> String {
    let org = tenant.org.parse().unwrap();
    let by = server.app.member_caller(org, user).await.unwrap();
    let new = NewRoleRequest {
        role: RoleRef::BuiltIn(BuiltIn::Admin),
        team: None,
        reason: "because a customer waits".into(),
        duration: Duration::from_hours(4),
    };
    server.app.request_role(&by, org, new).await.unwrap().id.to_string()
}

/// An end that the tenant's key may give: it lives for ninety days.
const SOON: &str = "2026-12-01T00:00:00Z";

on_both! {
    async fn roles_are_listed_made_changed_and_deleted(server: TestServer) {
        let acme = server.tenant("acme").await;
        let built_in = server.get(&acme, "roles").await.json(200);
        let names: Vec<&str> = built_in["items"].as_array().unwrap().iter().map(|role| role["role"].as_str().unwrap()).collect();
        assert_eq!(names, ["admin", "manager", "analyst", "viewer", "api_user"], "the super admin is the platform's");
        assert_eq!(built_in["items"][0]["all_permissions"].as_array().unwrap().len(), PermissionSet::all().len() as usize);

        let body = json!({ "name": "Sales lead", "description": "sells", "permissions": ["leads.write"], "inherits": ["viewer"] });
        let made = server.post(&acme, "roles", &body).await;
        let view = made.json(201);
        let id = view["role"].as_str().unwrap().to_owned();
        assert!(made.header("location").ends_with(&id));
        assert_eq!(made.header("etag"), "\"v1\"");
        assert_eq!((&view["permissions"], &view["inherits"]), (&json!(["leads.write"]), &json!(["viewer"])));
        assert!(view["all_permissions"].as_array().unwrap().contains(&json!("deals.read")));
        let at = format!("roles/{id}");
        assert_eq!(server.get(&acme, &at).await.json(200), view);
        let put = |tag: &str, body: &Value| ask("PUT", acme.at(&at)).key(&acme.key).header("if-match", tag).json(body);
        let less = json!({ "name": "Sales lead", "permissions": ["leads.write"] });
        assert_eq!(server.send(put("\"v7\"", &less)).await.problem(412), "stale-version");
        let changed = server.send(put("\"v1\"", &less)).await;
        assert_eq!((changed.header("etag"), &changed.json(200)["all_permissions"]), ("\"v2\"", &json!(["leads.write"])));
        for (body, status, slug) in [
            (json!({ "name": "SALES-LEAD", "permissions": ["leads.read"] }), 409, "role-exists"),
            (json!({ "name": "admin", "permissions": ["leads.read"] }), 422, "invalid-name"),
            (json!({ "name": "x", "permissions": [] }), 422, "invalid-role"),
            (json!({ "name": "x", "permissions": ["system.enter"] }), 422, "invalid-role"),
            (json!({ "name": "x", "inherits": ["super_admin"] }), 422, "invalid-role"),
            (json!({ "name": "x", "inherits": ["viewer", "viewer"] }), 422, "invalid-role"),
            (json!({ "name": "x", "permissions": ["leads.*"] }), 422, "invalid-body"),
            (json!({ "name": "x", "permissions": ["Leads.Read"] }), 422, "invalid-body"),
            (json!({ "name": "x", "inherits": ["Viewer"] }), 422, "invalid-body"),
            (json!({ "name": "x", "permissions": ["leads.read"], "is_admin": true }), 422, "invalid-body"),
        ] {
            assert_eq!(server.post(&acme, "roles", &body).await.problem(status), slug, "{body}");
        }
        let delete = || ask("DELETE", acme.at(&at)).key(&acme.key).header("if-match", "\"v2\"");
        assert_eq!(server.delete(&acme, &at).await.problem(428), "if-match-required");
        assert_eq!(server.send(delete()).await.status.as_u16(), 204);
        assert_eq!(server.send(delete()).await.problem(404), "not-found");
    }

    async fn roles_are_given_and_taken(server: TestServer) {
        let acme = server.tenant("acme").await;
        let user = person(&server, &acme).await;
        let body = json!({ "user": user, "role": "analyst", "valid_until": SOON, "reason": "for the year's end" });
        let given = server.post(&acme, "role-assignments", &body).await;
        let view = given.json(201);
        assert!(given.header("location").ends_with(view["id"].as_str().unwrap()));
        assert_eq!((&view["role"], &view["user"], &view["team"]), (&json!("analyst"), &json!(user), &Value::Null));
        assert!(view["granted_by"].as_str().unwrap().starts_with("key_"));
        let listed = server.get(&acme, &format!("role-assignments?user={user}")).await.json(200);
        let listed = listed["items"].as_array().unwrap();
        assert!(listed.contains(&view) && listed.iter().any(|item| item["role"] == "api_user") && listed.len() == 2, "and what he joined with");
        assert_eq!(server.get(&acme, "role-assignments?user=nobody").await.problem(400), "invalid-query");
        let narrow = server.key(&acme, &[Permission::RolesAssign]).await;
        let by_narrow = ask("POST", acme.at("role-assignments")).key(&narrow).json(&body);
        assert_eq!(server.send(by_narrow).await.problem(422), "exceeds-own-rights");
        for (change, slug) in [
            (json!({ "role": "super_admin" }), "unknown-role"),
            (json!({ "role": "role_00000000000000000000000001" }), "unknown-role"),
            (json!({ "team": "team_00000000000000000000000001" }), "unknown-team"),
            (json!({ "valid_until": "2026-11-01T00:00:00Z" }), "invalid-window"),
            (json!({ "valid_from": "2026-12-01T00:00:00Z" }), "invalid-window"),
            (json!({ "valid_until": null }), "exceeds-own-rights"),
            (json!({ "reason": "x".repeat(501) }), "invalid-reason"),
            (json!({ "role": "ADMIN" }), "invalid-body"),
            (json!({ "user": "key_00000000000000000000000001" }), "invalid-body"),
        ] {
            let mut bad = body.clone();
            for (key, value) in change.as_object().unwrap() {
                bad[key] = value.clone();
            }
            assert_eq!(server.post(&acme, "role-assignments", &bad).await.problem(422), slug, "{change}");
        }
        let taken = format!("role-assignments/{}", view["id"].as_str().unwrap());
        assert_eq!(server.delete(&acme, &taken).await.status.as_u16(), 204);
        assert_eq!(server.delete(&acme, &taken).await.problem(404), "not-found");
        let audit = server.get(&acme, "audit?action=role.assigned").await.json(200);
        let reasons: Vec<&Value> = audit["items"].as_array().unwrap().iter().map(|entry| &entry["detail"]["reason"]).collect();
        assert!(reasons.contains(&&json!("for the year's end")) && reasons.contains(&&json!("joined")), "{reasons:?}");

        let only_admin = member(&server, &acme, RoleRef::BuiltIn(BuiltIn::Admin)).await;
        let listed = server.get(&acme, &format!("role-assignments?user={only_admin}")).await.json(200);
        let taken = format!("role-assignments/{}", id_of(&listed, "admin"));
        assert_eq!(server.delete(&acme, &taken).await.problem(409), "last-admin");
    }

    async fn one_sees_what_one_may(server: TestServer) {
        let acme = server.tenant("acme").await;
        let narrow = server.key(&acme, &[Permission::OrgRead, Permission::LeadsRead]).await;
        let own = server.send(ask("GET", acme.at("me/permissions")).key(&narrow)).await.json(200);
        let names: Vec<&str> =
            own["permissions"].as_array().unwrap().iter().map(|held| held["permission"].as_str().unwrap()).collect();
        assert_eq!(names, ["org.read", "leads.read"]);
        assert!(own["subject"].as_str().unwrap().starts_with("key_"));
        assert_eq!((&own["policy_epoch"], &own["roles"]), (&Value::Null, &json!([])));
        let catalogue = server.send(ask("GET", "/api/v1/permissions")).await.json(200);
        assert_eq!(catalogue["items"].as_array().unwrap().len(), Permission::ALL.len());
    }

    async fn questions_are_answered_one_by_one_and_what_cannot_be_read_is_refused(server: TestServer) {
        let acme = server.tenant("acme").await;
        let viewer = member(&server, &acme, RoleRef::BuiltIn(BuiltIn::Viewer)).await;
        let one = |subject: &str, permission: &str| json!({ "subject": subject, "permission": permission });
        let user = viewer.to_string();
        let mut of_nowhere = one(&user, "leads.read");
        of_nowhere["team"] = json!("team_00000000000000000000000001");
        let mut of_no_team = one(&user, "leads.read");
        of_no_team["team"] = json!("sales");
        let checks = [
            one(&user, "leads.read"),
            one(&user, "leads.write"),
            one(&user, "leads.*"),
            one("nobody", "leads.read"),
            one("user_00000000000000000000000001", "leads.read"),
            of_nowhere,
            of_no_team,
            one(&user, "deals.read"),
        ];
        let decided = server.post(&acme, "access/check", &json!({ "checks": checks })).await.json(200);
        let decisions = decided["decisions"].as_array().unwrap();
        let allowed: Vec<bool> = decisions.iter().map(|one| one["is_allowed"].as_bool().unwrap()).collect();
        assert_eq!(allowed, [true, false, false, false, false, false, false, true]);
        let said: Vec<bool> = decisions.iter().map(|one| one["error"].is_string()).collect();
        assert_eq!(said, [false, false, true, true, false, true, true, false]);
        let check = |checks: Vec<Value>| json!({ "checks": checks });
        assert_eq!(server.post(&acme, "access/check", &check(vec![])).await.problem(422), "invalid-checks");
        let many = check(vec![one(&user, "leads.read"); 101]);
        assert_eq!(server.post(&acme, "access/check", &many).await.problem(422), "invalid-checks");
        let hundred = check(vec![one(&user, "leads.read"); 100]);
        assert_eq!(server.post(&acme, "access/check", &hundred).await.json(200)["decisions"].as_array().unwrap().len(), 100);

        let why = |query: &str| format!("access/explain?{query}");
        let yes = server.get(&acme, &why(&format!("user={user}&permission=leads.read"))).await.json(200);
        assert_eq!((&yes["is_allowed"], &yes["reasons"][0]["verdict"]), (&json!(true), &json!("counts")));
        assert_eq!(yes["reasons"][0]["path"], json!([{ "role": "viewer", "name": "Viewer" }]));
        let no = server.get(&acme, &why(&format!("user={user}&permission=leads.write"))).await.json(200);
        assert_eq!((&no["is_allowed"], &no["reasons"]), (&json!(false), &json!([])));
        assert_eq!(no["held_by"][0], json!({ "role": "admin", "name": "Admin" }));
        assert_eq!(server.get(&acme, &why(&format!("user={user}"))).await.problem(400), "invalid-query");
        assert_eq!(server.get(&acme, &why(&format!("user={user}&permission=*"))).await.problem(400), "invalid-query");
    }

    async fn authzen_asks_as_everywhere(server: TestServer) {
        let acme = server.tenant("acme").await;
        let viewer = member(&server, &acme, RoleRef::BuiltIn(BuiltIn::Viewer)).await;
        let subject = json!({ "type": "user", "id": viewer, "properties": { "department": "Sales" } });
        let resource = json!({ "type": "organization", "id": acme.org });
        let action = |name: &str| json!({ "name": name });
        let one = |action: Value, resource: &Value| json!({ "subject": subject, "action": action, "resource": resource, "context": { "time": "now" } });
        let evaluate = |body: Value| { let (server, acme) = (&server, &acme); async move {
            server.post(acme, "access/v1/evaluation", &body).await.json(200)
        } };
        assert_eq!(evaluate(one(action("leads.read"), &resource)).await, json!({ "decision": true }));
        assert_eq!(evaluate(one(action("leads.write"), &resource)).await, json!({ "decision": false }));
        for (action, resource) in [
            (action("can_read"), resource.clone()),
            (action("leads.read"), json!({ "type": "organization", "id": "org_00000000000000000000000001" })),
            (action("leads.read"), json!({ "type": "lead", "id": "1" })),
            (action("leads.read"), json!({ "type": "team", "id": "team_00000000000000000000000001" })),
        ] {
            let refused = evaluate(one(action, &resource)).await;
            assert_eq!((&refused["decision"], &refused["context"]["error"]["status"]), (&json!(false), &json!(400)), "{refused}");
        }
        let mistaken = json!({ "subject": { "type": "api_key", "id": viewer }, "action": action("leads.read"), "resource": resource });
        assert_eq!(evaluate(mistaken).await["decision"], json!(false));
        let missing = json!({ "subject": subject, "action": action("leads.read") });
        assert_eq!(server.post(&acme, "access/v1/evaluation", &missing).await.problem(422), "invalid-body");

        let parts = json!([
            { "action": action("leads.read") },
            { "action": action("leads.write") },
            { "action": action("deals.read") },
            { "subject": { "type": "user", "id": "user_00000000000000000000000001" }, "action": action("leads.read") },
        ]);
        let many = |semantic: Option<&str>| {
            let mut body = json!({ "subject": subject, "resource": resource, "evaluations": parts });
            if let Some(semantic) = semantic {
                body["options"] = json!({ "evaluations_semantic": semantic });
            }
            let (server, acme) = (&server, &acme);
            async move {
                let answer = server.post(acme, "access/v1/evaluations", &body).await.json(200);
                let decisions = answer["evaluations"].as_array().unwrap().clone();
                decisions.iter().map(|one| one["decision"].as_bool().unwrap()).collect::<Vec<bool>>()
            }
        };
        assert_eq!(many(None).await, [true, false, true, false]);
        assert_eq!(many(Some("execute_all")).await, [true, false, true, false]);
        assert_eq!(many(Some("deny_on_first_deny")).await, [true, false]);
        assert_eq!(many(Some("permit_on_first_permit")).await, [true]);
        // Without parts it is one question; without anything it is none.
        let single = server.post(&acme, "access/v1/evaluations", &one(action("leads.read"), &resource)).await.json(200);
        assert_eq!(single, json!({ "decision": true }));
        let empty = server.post(&acme, "access/v1/evaluations", &json!({})).await.json(200);
        assert_eq!(empty["decision"], json!(false));
        let too_many: Vec<Value> = (0..101).map(|_| json!({ "action": action("leads.read") })).collect();
        let body = json!({ "subject": subject, "resource": resource, "evaluations": too_many });
        assert_eq!(server.post(&acme, "access/v1/evaluations", &body).await.problem(422), "invalid-checks");
    }

    async fn teams_are_kept(server: TestServer) {
        let acme = server.tenant("acme").await;
        let made = server.post(&acme, "teams", &json!({ "name": "Sales" })).await;
        let view = made.json(201);
        let at = format!("teams/{}", view["id"].as_str().unwrap());
        assert_eq!(made.header("etag"), "\"v1\"");
        assert_eq!(server.post(&acme, "teams", &json!({ "name": "SALES" })).await.problem(409), "team-exists");
        assert_eq!(server.post(&acme, "teams", &json!({ "name": "a\u{200b}b" })).await.problem(422), "invalid-name");
        let user = person(&server, &acme).await;
        let of_user = format!("{at}/members/{user}");
        for _ in 0..2 {
            assert_eq!(server.send(ask("PUT", acme.at(&of_user)).key(&acme.key)).await.status.as_u16(), 204);
        }
        let members = server.get(&acme, &format!("{at}/members")).await.json(200);
        assert_eq!(members["items"].as_array().unwrap().len(), 1);
        assert_eq!(members["items"][0]["user"], json!(user));
        let given = json!({ "user": user, "role": "manager", "team": view["id"], "valid_until": SOON });
        let given = server.post(&acme, "role-assignments", &given).await.json(201);
        let tagged = |method: &str, tag: &str| ask(method, acme.at(&at)).key(&acme.key).header("if-match", tag);
        assert_eq!(server.send(tagged("DELETE", "\"v1\"")).await.problem(409), "team-in-use");
        server.delete(&acme, &format!("role-assignments/{}", given["id"].as_str().unwrap())).await;
        let renamed = server.send(tagged("PUT", "\"v1\"").json(&json!({ "name": "Field sales" }))).await;
        assert_eq!((renamed.header("etag"), &renamed.json(200)["name"]), ("\"v2\"", &json!("Field sales")));
        assert_eq!(server.delete(&acme, &of_user).await.status.as_u16(), 204);
        assert_eq!(server.send(tagged("DELETE", "\"v1\"")).await.problem(412), "stale-version");
        assert_eq!(server.send(tagged("DELETE", "\"v2\"")).await.status.as_u16(), 204);
        assert_eq!(server.get(&acme, &at).await.problem(404), "not-found");
    }

    async fn a_key_asks_for_no_role_and_lets_nobody_have_one(server: TestServer) {
        let acme = server.tenant("acme").await;
        let body = json!({ "role": "admin", "reason": "because a customer waits" });
        assert_eq!(server.post(&acme, "role-requests", &body).await.problem(409), "people-only");
        let viewer = member(&server, &acme, RoleRef::BuiltIn(BuiltIn::Viewer)).await;
        let at = format!("role-requests/{}", request(&server, &acme, viewer).await);
        for verb in ["approve", "refuse"] {
            assert_eq!(server.post(&acme, &format!("{at}/{verb}"), &json!({})).await.problem(409), "people-only");
        }
        let withdraw = ask("POST", acme.at(&format!("{at}/withdraw"))).key(&acme.key);
        assert_eq!(server.send(withdraw).await.problem(409), "people-only");
        let view = server.get(&acme, &at).await.json(200);
        assert_eq!((&view["state"], &view["duration_minutes"], &view["user"]), (&json!("waiting"), &json!(240), &json!(viewer)));
        assert_eq!(server.get(&acme, "role-requests").await.json(200)["items"], json!([view]));
        for (body, slug) in [
            (json!({ "role": "admin", "reason": "short" }), "people-only"),
            (json!({ "role": "admin", "reason": "because a customer waits", "duration_minutes": -1 }), "invalid-body"),
            (json!({ "role": "root", "reason": "because a customer waits" }), "invalid-body"),
        ] {
            let status = if slug == "people-only" { 409 } else { 422 };
            assert_eq!(server.post(&acme, "role-requests", &body).await.problem(status), slug, "{body}");
        }
    }
}
