//! From where an organization may be reached: by keys, sessions and tokens, at each request.

use bulkhead_model::permission::Permission;
use serde_json::{Value, json};

use crate::people::{Browser, PASSWORD};
use crate::support::{Answer, Ask, ask};

const OFFICE: &str = "192.0.2.7";
const ELSEWHERE: &str = "198.51.100.7";

fn replace(ask: Ask, tag: &str, entries: &[&str], more: &Value) -> Ask {
    let mut body = json!({ "entries": entries });
    body.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    ask.header("if-match", tag).json(&body)
}

fn status(answer: &Answer) -> u16 {
    answer.status.as_u16()
}

on_both! {
    async fn a_key_is_let_in_from_where_the_list_says(server: TestServer) {
        let (acme, other) = (server.tenant("acme").await, server.tenant("other").await);
        let put = |peer: &str| ask("PUT", acme.at("ip-allow-list")).key(&acme.key).peer(peer);
        let read = |peer: &str| ask("GET", acme.at("runs")).key(&acme.key).peer(peer);
        let shown = server.send(ask("GET", acme.at("ip-allow-list")).key(&acme.key).peer("::ffff:192.0.2.7")).await;
        assert_eq!((shown.json(200), shown.header("etag")), (json!({ "entries": [], "your_address": OFFICE, "allows_you": true }), "\"v0\""));
        assert_eq!(status(&server.send(read(ELSEWHERE)).await), 200);

        let made = server.send(replace(put(OFFICE), "\"v0\"", &["192.0.2.9", "::ffff:192.0.2.0/120", "2001:db8:1::/48"], &json!({}))).await;
        assert_eq!(made.json(200)["entries"], json!(["192.0.2.0/24", "192.0.2.9/32", "2001:db8:1::/48"]));
        for peer in [OFFICE, "::ffff:192.0.2.200", "2001:db8:1:2::3"] {
            assert_eq!(status(&server.send(read(peer)).await), 200, "{peer}");
        }
        for peer in [ELSEWHERE, "2001:db8:2::1", "::192.0.2.7"] {
            assert_eq!(server.send(read(peer)).await.problem(403), "address-refused", "{peer}");
        }
        // Who comes from nobody knows where is not let in, and what a client writes about itself is not believed.
        assert_eq!(server.send(ask("GET", acme.at("runs")).key(&acme.key)).await.problem(403), "address-refused");
        let spoofed = read(ELSEWHERE).header("x-forwarded-for", OFFICE).header("x-real-ip", OFFICE);
        assert_eq!(server.send(spoofed).await.problem(403), "address-refused");
        // Other organizations have lists of their own, and a bad key is a bad key from everywhere.
        assert_eq!(status(&server.send(ask("GET", other.at("runs")).key(&other.key).peer(ELSEWHERE)).await), 200);
        assert_eq!(status(&server.send(ask("GET", acme.at("runs")).key("bad").peer(ELSEWHERE)).await), 401);
        let audit = server.send(ask("GET", acme.at("audit?action=ip_rules.changed")).key(&acme.key).peer(OFFICE)).await.json(200);
        assert_eq!(audit["items"].as_array().unwrap().len(), 1, "{audit}");
    }

    async fn nobody_shuts_himself_out_without_saying_so_and_the_operator_lets_him_in_again(server: TestServer) {
        let acme = server.tenant("acme").await;
        let put = || ask("PUT", acme.at("ip-allow-list")).key(&acme.key).peer(ELSEWHERE);
        let refused = server.send(replace(put(), "\"v0\"", &["192.0.2.0/24"], &json!({}))).await;
        assert_eq!(refused.problem(409), "would-lock-out");
        assert!(refused.text().contains(ELSEWHERE), "{}", refused.text());
        let wrong = server.send(replace(put(), "\"v0\"", &["192.0.2.0/24", "192.0.2.9/24"], &json!({ "confirm_lock_out": true }))).await;
        assert_eq!(wrong.error(422), ("/entries/1".to_owned(), "invalid-allow-list".to_owned()));
        assert_eq!(status(&server.send(put().json(&json!({ "entries": [] }))).await), 428);
        assert_eq!(status(&server.send(replace(put(), "\"v7\"", &[], &json!({}))).await), 412);
        let done = server.send(replace(put(), "\"v0\"", &["192.0.2.0/24"], &json!({ "confirm_lock_out": true }))).await;
        assert_eq!(done.json(200)["allows_you"], false);
        assert_eq!(server.send(replace(put(), "\"v1\"", &[], &json!({}))).await.problem(403), "address-refused");
        server.app.clear_allow_list_as_operator(acme.org.parse().unwrap()).await.unwrap();
        assert_eq!(server.send(replace(put(), "\"v2\"", &[], &json!({}))).await.json(200)["entries"], json!([]));
        // Reading and changing it takes the permissions for that.
        let reader = server.key(&acme, &[Permission::RunsRead]).await;
        assert_eq!(server.send(ask("GET", acme.at("ip-allow-list")).key(&reader)).await.problem(403), "forbidden");
        let looker = server.key(&acme, &[Permission::SecurityRead]).await;
        assert_eq!(server.send(replace(ask("PUT", acme.at("ip-allow-list")).key(&looker), "\"v2\"", &[], &json!({}))).await.problem(403), "forbidden");
    }

    async fn a_person_is_let_in_by_session_and_by_token_from_there_alone(server: TestServer) {
        let browser = server.first_person().await;
        let entries = ["192.0.2.0/24"];
        let put = browser.ask("PUT", "/api/v1/orgs/acme/ip-allow-list").peer(OFFICE);
        server.send(replace(put, "\"v0\"", &entries, &json!({}))).await.json(200);
        let token = server.send(browser.ask("POST", "/api/v1/me/tokens").json(&json!({})).peer(OFFICE)).await.json(201);
        let token = token["access_token"].as_str().unwrap().to_owned();
        let by_session = |peer: &str| browser.ask("GET", "/api/v1/orgs/acme").peer(peer);
        let by_token = |peer: &str| ask("GET", "/api/v1/orgs/acme").key(&token).peer(peer);
        assert_eq!((status(&server.send(by_session(OFFICE)).await), status(&server.send(by_token(OFFICE)).await)), (200, 200));
        assert_eq!(server.send(by_session(ELSEWHERE)).await.problem(403), "address-refused");
        assert_eq!(server.send(by_token(ELSEWHERE)).await.problem(403), "address-refused");
        // Their own account is theirs wherever they are; the organization is not entered from there.
        assert_eq!(status(&server.send(browser.ask("GET", "/api/v1/me").peer(ELSEWHERE)).await), 200);
        let switch = |browser: &Browser, peer: &str, org: &str| {
            browser.ask("PUT", "/api/v1/me/active-organization").json(&json!({ "organization": org })).peer(peer)
        };
        assert_eq!(server.send(switch(&browser, ELSEWHERE, "acme")).await.problem(403), "address-refused");
        assert_eq!(status(&server.send(switch(&browser, OFFICE, "acme")).await), 200);
        assert_eq!(status(&server.send(switch(&browser, ELSEWHERE, "nobodys")).await), 404);
    }
    /// What a person has in front of them when they sign in is what may be reached from there.
    async fn nobody_signs_in_to_an_organization_that_is_not_reached_from_there(server: TestServer) {
        let browser = server.first_person().await;
        let put = browser.ask("PUT", "/api/v1/orgs/acme/ip-allow-list").peer(OFFICE);
        server.send(replace(put, "\"v0\"", &["192.0.2.0/24"], &json!({}))).await.json(200);
        let acme = server.app.find_org("acme".parse().unwrap()).await.unwrap().unwrap().id.to_string();
        let sign_in = |peer: &'static str| {
            let body = json!({ "email": "ada@example.com", "password": PASSWORD });
            server.send(ask("POST", "/api/v1/auth/login").json(&body).peer(peer))
        };
        let inside = sign_in(OFFICE).await.json(200);
        assert_eq!(inside["session"]["active_org"], acme);
        let outside = sign_in(ELSEWHERE).await.json(200);
        assert_eq!(outside["session"]["active_org"], Value::Null);
        assert_eq!(outside["organizations"][0]["slug"], "acme", "it is theirs all the same");
    }
}
