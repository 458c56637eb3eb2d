//! Genuine GitHub deliveries: each is accepted or refused for a stated reason, and every `issues` delivery sends something.

use std::time::Duration;

use bulkhead_test_support::http_sink::Sink;
use serde_json::Value;

use crate::on_both;
use crate::server::Place;

on_both! {
    fn every_genuine_delivery_is_answered(place: Place) {
        let sink = Sink::start();
        let server = place.start(&sink);
        let deliveries: Vec<Value> =
            serde_json::from_str(include_str!("../fixtures/github-webhooks.json")).unwrap();
        let mut runs = Vec::new();
        for (number, delivery) in deliveries.iter().enumerate() {
            let event = delivery["event"].as_str().unwrap();
            let id = format!("delivery-{number}");
            let headers = [("x-github-event", event), ("x-github-delivery", id.as_str())];
            let answer = server.api.deliver(&server.hook(), &headers, delivery["payload"].to_string().as_bytes());
            assert_eq!(answer.status, 202, "{event}: {:#}", answer.body);
            if let Some(run) = answer.body["run"].as_str() {
                runs.push((event.to_owned(), run.to_owned()));
            } else {
                assert!(!answer.body["reason"].as_str().unwrap().is_empty(), "{event}");
                assert_ne!(event, "issues", "an issues delivery was refused: {:#}", answer.body);
            }
        }
        assert_eq!(runs.iter().filter(|(event, _)| event == "issues").count(), 29);
        for (event, run) in &runs {
            let run = server.api.wait_for_run(run, Duration::from_mins(1));
            assert_eq!(run["status"], "succeeded", "{event}: {run:#}");
        }
        assert_eq!(sink.requests().len(), 2 * runs.len(), "one Slack message and one web hook call for each");
    }
}
