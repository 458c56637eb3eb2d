//! The demo's promise: an empty directory, one delivery, a message.

use std::time::Duration;

use bulkhead_test_support::http_sink::{Request, Sink};
use serde_json::{Value, json};

use crate::on_both;
use crate::server::Place;

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
