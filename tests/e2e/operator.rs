//! What the operator asks beside a running server, and after it was killed: nothing is disturbed by the question.

use std::time::Duration;

use bulkhead_test_support::http_sink::{Reply, Sink};
use bulkhead_test_support::wait_until;
use serde_json::Value;

use crate::demo::delivery;
use crate::on_both;
use crate::server::Place;

const WITHIN: Duration = Duration::from_mins(1);

fn code(explained: &Value) -> &str {
    explained["reasons"][0]["code"].as_str().unwrap()
}

on_both! {
    fn a_run_and_the_queue_are_explained_beside_the_server(place: Place) {
        let sink = Sink::start();
        // Slow answers, so that a call is under way while the operator looks.
        sink.otherwise(Reply::status(200).after(Duration::from_secs(3)));
        let server = place.start(&sink);
        let body = delivery("Slow").to_string();
        let accepted = server.api.deliver(&server.hook(), &[], body.as_bytes());
        let run = accepted.body["run"].as_str().unwrap().to_owned();
        let explain = || place.operate(&["doctor", "run", &run, "--json"]).unwrap();
        assert!(wait_until(WITHIN, || code(&explain()) == "carried"), "{:#}", explain());
        let queue = place.operate(&["admin", "queue", "--json"]).unwrap();
        assert_eq!(queue["lanes"][1]["lane"], "interactive");
        assert_eq!(queue["lanes"][1]["slots"], 128, "{queue:#}");
        assert_eq!((&queue["nodes"][0]["alive"], queue["nodes"].as_array().unwrap().len()), (&Value::Bool(true), 1));

        server.kill();
        // On PostgreSQL the heartbeat has to end first.
        assert!(wait_until(WITHIN, || code(&explain()) == "holder-dead"), "{:#}", explain());
        let queue = place.operate(&["admin", "queue", "--json"]).unwrap();
        assert_eq!((&queue["nodes"][0]["alive"], &queue["lanes"][1]["slots"]), (&Value::Bool(false), &Value::from(0)));

        let server = place.start(&sink);
        assert_eq!(server.api.wait_for_run(&run, WITHIN)["status"], "succeeded");
        assert_eq!(code(&explain()), "succeeded");
        assert!(place.operate(&["doctor", "run", "run_01h455vb4pex5vsknk084sn02q", "--json"]).is_err(), "nobody knows it");
        assert!(place.operate(&["doctor", "run", "it", "--json"]).is_err());
    }
}
