//! What is done to roles, to who has them, and to teams.

use bulkhead_audit::taxonomy::EventType;
use serde_json::{Value, json};

use super::Said::{Changed, Made, Removed};
use super::{Cast, SOON, Said, Story, text, told};

const DEE: &str = "dee@example.com";
/// A request waited, and does so no more.
const ANSWERED: Said = Said::Changed("/state/before", "/state/after");

pub(super) async fn roles(story: &mut Story<'_>, cast: &Cast) {
    let body = json!({ "name": "Sales", "permissions": ["leads.read"] });
    let made = story.does("create_role", cast.ask("POST", "roles").json(&body)).await;
    let id = text(&made.json(201)["role"]);
    story.left(&[told(EventType::RoleCreated, &cast.key, &id, &[Made("/name")])]).await;
    let body = json!({ "name": "Sales lead", "permissions": ["leads.read", "leads.write"] });
    let replace = cast.ask("PUT", &format!("roles/{id}")).header("if-match", made.header("etag")).json(&body);
    let replaced = story.does("replace_role", replace).await;
    let change = [Changed("/before", "/after"), Changed("/before/name", "/after/name")];
    story.left(&[told(EventType::RoleUpdated, &cast.key, &id, &change)]).await;
    let delete = cast.ask("DELETE", &format!("roles/{id}")).header("if-match", replaced.header("etag"));
    story.does("delete_role", delete).await;
    story.left(&[told(EventType::RoleDeleted, &cast.key, &id, &[Removed("/before/name")])]).await;

    story.server.person(DEE, Some(("acme", "viewer"))).await;
    let dee = cast.member(story.server, DEE).await;
    let body = json!({ "user": dee, "role": "analyst", "valid_until": SOON, "reason": "for the year's end" });
    let given = story.does("assign_role", cast.ask("POST", "role-assignments").json(&body)).await.json(201);
    let id = text(&given["id"]);
    let new = [Made("/user"), Made("/role"), Made("/valid_until"), Made("/reason")];
    story.left(&[told(EventType::RoleAssigned, &cast.key, &id, &new)]).await;
    story.does("unassign_role", cast.ask("DELETE", &format!("role-assignments/{id}"))).await;
    let gone = [Removed("/before/user"), Removed("/before/role")];
    story.left(&[told(EventType::RoleUnassigned, &cast.key, &id, &gone)]).await;
}

pub(super) async fn requests(story: &mut Story<'_>, cast: &Cast) {
    let server = story.server;
    let mut dee = crate::people::Browser::default();
    dee.sign_in(server, DEE, crate::people::PASSWORD).await.json(200);
    let dee_id = cast.member(server, DEE).await;
    let path = "/api/v1/orgs/acme/role-requests";
    for (verb, role) in [("approve", "manager"), ("refuse", "analyst"), ("withdraw", "analyst")] {
        let body = json!({ "role": role, "reason": "because a customer waits" });
        let asked = story.does("request_role", dee.ask("POST", path).json(&body)).await.json(201);
        let id = text(&asked["id"]);
        let new = [Made("/user"), Made("/role"), Made("/reason")];
        story.left(&[told(EventType::RoleRequested, &dee_id, &id, &new)]).await;
        let (operation, at) = (format!("{verb}_role_request"), format!("{path}/{id}/{verb}"));
        let ask = if verb == "withdraw" {
            dee.ask("POST", &at)
        } else {
            cast.ada.ask("POST", &at).json(&json!({ "reason": "as discussed" }))
        };
        story.does(&operation, ask).await;
        match verb {
            "approve" => {
                let expected = [
                    told(EventType::RoleAssigned, &cast.ada_id, "asg_", &[Made("/role"), Made("/valid_until")]),
                    told(EventType::RoleApproved, &cast.ada_id, &id, &[ANSWERED, Made("/assignment"), Made("/answer")]),
                ];
                story.left(&expected).await;
            }
            "refuse" => {
                let expected = [told(EventType::RoleRefused, &cast.ada_id, &id, &[ANSWERED, Made("/answer")])];
                story.left(&expected).await;
            }
            _ => story.left(&[told(EventType::RoleWithdrawn, &dee_id, &id, &[ANSWERED])]).await,
        }
    }
}

pub(super) async fn teams(story: &mut Story<'_>, cast: &Cast) {
    let server = story.server;
    let made = story.does("create_team", cast.ask("POST", "teams").json(&json!({ "name": "Sales" }))).await;
    let view: Value = made.json(201);
    let (id, at) = (text(&view["id"]), format!("teams/{}", text(&view["id"])));
    story.left(&[told(EventType::TeamCreated, &cast.key, &id, &[Made("/name")])]).await;
    let rename = cast.ask("PUT", &at).header("if-match", made.header("etag")).json(&json!({ "name": "Field sales" }));
    story.does("rename_team", rename).await;
    let change = [Changed("/before/name", "/after/name")];
    story.left(&[told(EventType::TeamUpdated, &cast.key, &id, &change)]).await;
    let member = format!("{at}/members/{}", cast.member(server, DEE).await);
    story.does("add_team_member", cast.ask("PUT", &member)).await;
    story.left(&[told(EventType::TeamUpdated, &cast.key, &id, &[Made("/added")])]).await;
    story.does("remove_team_member", cast.ask("DELETE", &member)).await;
    story.left(&[told(EventType::TeamUpdated, &cast.key, &id, &[Removed("/removed")])]).await;
    let tag = cast.tag(server, &at).await;
    story.does("delete_team", cast.ask("DELETE", &at).header("if-match", &tag)).await;
    story.left(&[told(EventType::TeamDeleted, &cast.key, &id, &[Removed("/before/name")])]).await;
}
