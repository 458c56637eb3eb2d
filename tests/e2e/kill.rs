//! A server that is killed in the middle of runs finishes them after its restart.

use std::time::Duration;

use bulkhead_test_support::http_sink::{Reply, Sink};
use serde_json::Value;

use crate::demo::delivery;
use crate::on_both;
use crate::server::Place;

on_both! {
    fn runs_survive_kill_dash_nine(place: Place) {
        let sink = Sink::start();
        // Slow answers, so that the kill falls into calls under way.
        sink.otherwise(Reply::status(200).after(Duration::from_millis(400)));
        let mut server = place.start(&sink);
        let mut runs: Vec<String> = Vec::new();
        for round in 0..3 {
            for number in 0..6 {
                let body = delivery(&format!("Crash {round}-{number}")).to_string();
                let accepted = server.api.deliver(&server.hook(), &[], body.as_bytes());
                assert_eq!(accepted.status, 202, "{:#}", accepted.body);
                runs.push(accepted.body["run"].as_str().unwrap().to_owned());
            }
            std::thread::sleep(Duration::from_millis(150 * (round + 1)));
            server.kill();
            server = place.start(&sink);
        }
        for run in &runs {
            let run = server.api.wait_for_run(run, Duration::from_mins(1));
            assert_eq!(run["status"], "succeeded", "{run:#}");
        }
        // Each (run, step) has one idempotency key, however often it was tried: the receiver can tell repeats.
        let keys: Vec<String> = sink
            .requests()
            .iter()
            .filter_map(|request| request.header("idempotency-key").map(str::to_owned))
            .collect();
        let distinct: std::collections::BTreeSet<&String> = keys.iter().collect();
        assert_eq!(distinct.len(), runs.len(), "one web hook call per run, repeats under the same key: {keys:?}");
        let jobs: Value = server.api.get("jobs").body;
        assert_eq!(jobs["items"].as_array().unwrap().len(), 0, "no job is left: {jobs:#}");
    }
}
