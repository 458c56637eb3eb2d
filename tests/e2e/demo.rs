//! The demo's promise: an empty directory, one delivery, a message; an admin, and a day to look at.

use std::time::Duration;

use bulkhead_model::ambient::Ambient;
use bulkhead_test_support::authenticator::Authenticator;
use bulkhead_test_support::http_sink::{Request, Sink};
use bulkhead_test_support::wait_until;
use serde_json::{Value, json};

use crate::audit::verify;
use crate::on_both;
use crate::server::{Place, Server};

const WITHIN: Duration = Duration::from_secs(30);

fn text(request: &Request) -> String {
    String::from_utf8_lossy(&request.body).into_owned()
}

pub(crate) fn delivery(title: &str) -> Value {
    json!({
        "action": "opened",
        "issue": {
            "number": 7, "title": title, "html_url": "https://github.com/acme/app/issues/7", "body": null,
            "labels": [{ "name": "bug" }],
        },
        "repository": { "full_name": "acme/app" },
        "sender": { "login": "ada" },
    })
}

on_both! {
    fn a_delivery_reaches_slack_and_the_web_hook(place: Place) {
        let sink = Sink::start();
        let server = place.start(&sink);
        let body = delivery("Crash on start").to_string();
        let accepted = server.api.deliver(&server.hook(), &[("x-github-delivery", "d-1")], body.as_bytes());
        assert_eq!(accepted.status, 202, "{:#}", accepted.body);
        let run_id = accepted.body["run"].as_str().unwrap().to_owned();
        let run = server.api.wait_for_run(&run_id, WITHIN);
        assert_eq!(run["status"], "succeeded", "{run:#}");
        let steps: Vec<(&str, &str)> = run["steps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|step| (step["id"].as_str().unwrap(), step["status"].as_str().unwrap()))
            .filter(|(_, status)| *status != "skipped")
            .collect();
        let expected = ["urgent", "tell_urgent", "forward", "end"].map(|id| (id, "succeeded"));
        assert_eq!(steps, expected, "{run:#}");
        let called = run["steps"].as_array().unwrap().iter().find(|step| step["id"] == "tell_urgent").unwrap();
        assert_eq!(called["outcome"], "returned");
        assert!(called["usage"]["fuel"].as_u64().unwrap() > 0);
        let requests = sink.wait_for(2, WITHIN);
        assert_eq!(requests.len(), 2);
        assert!(text(&requests[0]).contains("Urgent: Crash on start"), "{}", text(&requests[0]));
        let forwarded: Value = serde_json::from_str(&text(&requests[1])).unwrap();
        assert_eq!(forwarded["number"], 7, "a reference keeps its type");
        assert_eq!(forwarded["run"], run_id.as_str());

        // The same delivery again is the same run, and sends nothing.
        let again = server.api.deliver(&server.hook(), &[("x-github-delivery", "d-1")], body.as_bytes());
        assert_eq!((again.status, again.body["run"].as_str()), (202, Some(run_id.as_str())));
        // A delivery that no trigger takes is told why.
        let ping = server.api.deliver(&server.hook(), &[], br#"{"zen":"Keep it logically awesome."}"#);
        assert_eq!(ping.status, 202);
        assert!(ping.body["run"].is_null() && ping.body["reason"].as_str().unwrap().contains("github"), "{:#}", ping.body);
        assert_eq!(sink.requests().len(), 2);

        // What happened is on record.
        let slack = server.api.installation("bulkhead/slack");
        let calls = server.api.get(&format!("installations/{}/calls", slack["id"].as_str().unwrap())).body;
        assert_eq!(calls["items"].as_array().unwrap().len(), 1, "{calls:#}");
        let call = server.api.get(&format!("calls/{}", calls["items"][0]["id"].as_str().unwrap())).body;
        assert_eq!(call["egress"][0]["status"], 200, "{call:#}");
        let audit = server.api.get("audit?action=workflow.activated").body;
        assert_eq!(audit["items"].as_array().unwrap().len(), 1, "{audit:#}");
        assert_eq!(server.stop(), Some(0));
    }
}

on_both! {
    fn started_again_it_continues(place: Place) {
        let sink = Sink::start();
        let first = place.start(&sink);
        let (hook, file) = (first.hook(), first.demo.clone());
        assert_eq!(first.stop(), Some(0));
        let second = place.start(&sink);
        assert_eq!(second.demo, file, "the same organization, key and addresses");
        let accepted = second.api.deliver(&hook, &[], delivery("Nothing much").to_string().as_bytes());
        let run = second.api.wait_for_run(accepted.body["run"].as_str().unwrap(), WITHIN);
        assert_eq!(run["status"], "succeeded", "{run:#}");
    }
}

on_both! {
    fn revoked_grants_stop_the_plugin(place: Place) {
        let sink = Sink::start();
        let server = place.start(&sink);
        let slack = server.api.installation("bulkhead/slack");
        let path = format!("installations/{}/grants", slack["id"].as_str().unwrap());
        let shown = server.api.get(&path);
        assert_eq!(shown.status, 200);
        let saved = server.api.put(&path, &shown.etag.unwrap(), &json!({ "permissions": [] }));
        assert_eq!(saved.status, 200, "{:#}", saved.body);
        let accepted = server.api.deliver(&server.hook(), &[], delivery("Crash").to_string().as_bytes());
        let run = server.api.wait_for_run(accepted.body["run"].as_str().unwrap(), WITHIN);
        assert_eq!(run["status"], "failed", "{run:#}");
        assert_eq!(sink.requests().len(), 0, "nothing left");
        let audit = server.api.get("audit?action=grants.changed").body;
        assert_eq!(audit["items"].as_array().unwrap().len(), 1, "{audit:#}");
    }
}

/// The answer to a second factor of the demo's admin, and the session that it opens.
fn second(server: &Server<'_>, proof: &Value) -> (u16, String) {
    let admin = &server.demo["admin"];
    let body = json!({ "email": admin["email"], "password": admin["password"] });
    let (waits, waiting) = server.api.page("POST", "/api/v1/auth/login", "", &body);
    assert_eq!((waits.status, &waits.body["methods"]), (202, &json!(["code", "backup_code"])), "{:#}", waits.body);
    let (answer, session) = server.api.page("POST", "/api/v1/auth/second-factor", &waiting, proof);
    (answer.status, session)
}

/// Every entry of the log, newest first.
fn log(server: &Server<'_>) -> Vec<Value> {
    let (mut all, mut path) = (Vec::new(), "audit?limit=200".to_owned());
    loop {
        let page = server.api.get(&path).body;
        all.extend(page["items"].as_array().unwrap().iter().cloned());
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("audit?limit=200&cursor={cursor}"),
            None => return all,
        }
    }
}

on_both! {
    fn an_admin_and_a_day_are_there_to_look_at(place: Place) {
        let sink = Sink::start();
        let server = place.start_whole(&sink);
        // A newcomer reads it on the terminal, once; what is no terminal is a log.
        let printed = place.log_text();
        assert!(printed.contains("password, authenticator and backup codes are in"), "{printed}");
        let admin = server.demo["admin"].clone();
        let uri = admin["totp_uri"].as_str().unwrap().to_owned();
        let codes: Vec<&str> = admin["backup_codes"].as_array().unwrap().iter().map(|code| code.as_str().unwrap()).collect();
        assert_eq!(codes.len(), 10);
        for secret in codes.iter().copied().chain([uri.as_str(), admin["password"].as_str().unwrap()]) {
            assert_eq!(printed.matches(secret).count(), 0, "in no log");
        }
        let app = Authenticator::scan(&uri);
        let now_s = u64::try_from(Ambient::system().now().as_micros() / 1_000_000).unwrap();
        let (status, session) = second(&server, &json!({ "code": app.code(now_s) }));
        assert_eq!(status, 200);
        let org = server.api.page("GET", "/api/v1/orgs/demo", &session, &json!(null)).0;
        assert_eq!((org.status, &org.body["slug"]), (200, &json!("demo")), "{:#}", org.body);
        assert_eq!(second(&server, &json!({ "code": "no code" })).0, 422);
        assert_eq!(second(&server, &json!({ "backup_code": codes[0] })).0, 200);

        let entries = log(&server);
        for told in [
            "org.created", "user.joined", "session.started", "session.refused", "session.ended", "mfa.enrolled", "mfa.refused",
            "mfa.passed", "user.invited", "role.assigned", "role.unassigned", "plugin.uploaded", "installation.created",
            "workflow.activated", "api_key.created", "request.refused", "api_key.rotated", "grants.changed", "key.rotated",
        ] {
            assert!(entries.iter().any(|entry| entry["action"] == told), "{told}");
        }
        for secret in codes.iter().copied().chain([admin["password"].as_str().unwrap()]) {
            assert!(!entries.iter().any(|entry| entry.to_string().contains(secret)), "no secret is in the log");
        }
        let hours_ago = |hours: u64| Ambient::system().now().minus(Duration::from_secs(hours * 3_600)).to_string();
        let between = |from: u64, to: u64| {
            let path = format!("audit?limit=200&from={}&to={}", hours_ago(from), hours_ago(to));
            let page = server.api.get(&path).body;
            page["items"].as_array().unwrap_or_else(|| panic!("{page:#}")).len()
        };
        assert!(between(25, 22) > 3 && between(22, 16) > 3 && between(16, 8) > 3, "a day went by, and nothing was written at once");

        // It is proven, to somebody who has nothing but the files.
        let checkpoint = || server.api.get("audit/checkpoint");
        assert!(wait_until(WITHIN, || checkpoint().status == 200));
        let kept = checkpoint().body;
        let Value::String(bundle) = server.api.get("audit/bundles/0").body else { panic!("a bundle is no JSON document") };
        let elsewhere = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &Value| std::fs::write(elsewhere.path().join(name), text.as_str().unwrap()).unwrap();
        write("demo.jsonl", &Value::String(bundle));
        write("demo.key", &kept["verifier_key"]);
        write("demo.checkpoint", &kept["checkpoint"]);
        let sound = verify(elsewhere.path(), &["demo.jsonl", "--key-file", "demo.key", "--checkpoint", "demo.checkpoint", "--json"]);
        assert_eq!(sound.status.code(), Some(0), "{sound:?}");
        let report: Value = serde_json::from_slice(&sound.stdout).unwrap();
        assert_eq!((&report["key_known"], &report["faults_total"]), (&json!(true), &json!(0)), "{report:#}");

        // Deliveries are taken as in a demo without a past, and a second start continues.
        let accepted = server.api.deliver(&server.hook(), &[], delivery("Crash on start").to_string().as_bytes());
        let run = server.api.wait_for_run(accepted.body["run"].as_str().unwrap(), WITHIN);
        assert_eq!(run["status"], "succeeded", "{run:#}");
        let file = server.demo.clone();
        assert_eq!(server.stop(), Some(0));
        let again = place.start_whole(&sink);
        assert_eq!(again.demo, file);
        assert_eq!(place.log_text().matches(&uri).count(), 0, "in no log");
        assert_eq!(second(&again, &json!({ "backup_code": codes[1] })).0, 200);
    }
}
