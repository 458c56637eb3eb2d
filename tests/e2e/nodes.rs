//! Three real processes on one PostgreSQL: one is killed, one restarted in order, one stopped past its lease and continued.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bulkhead_test_support::http_sink::{Reply, Sink};
use bulkhead_test_support::tcp_proxy::TcpProxy;
use bulkhead_test_support::wait_until;

use crate::demo::delivery;
use crate::server::{Place, Server};

const WITHIN: Duration = Duration::from_mins(1);

fn deliver(to: &Server<'_>, what: &str, runs: &mut Vec<String>) {
    for number in 0..8 {
        let body = delivery(&format!("{what} {number}")).to_string();
        let accepted = to.api.deliver(&to.hook(), &[], body.as_bytes());
        assert_eq!(accepted.status, 202, "{:#}", accepted.body);
        runs.push(accepted.body["run"].as_str().unwrap().to_owned());
    }
}

/// Waits, by way of `node`, until every run has succeeded.
fn all_succeed(node: &Server<'_>, runs: &[String], what: &str) {
    let began = Instant::now();
    for run in runs {
        let run = node.api.wait_for_run(run, WITHIN);
        assert_eq!(run["status"], "succeeded", "{run:#}");
    }
    // For whoever reads the test's output: no time is asserted on a machine that may be busy.
    println!("{what}: all done after {:.1} s", began.elapsed().as_secs_f64());
}

#[test]
fn nodes_take_over_from_each_other_and_nothing_is_lost_or_twice() {
    let Some(place) = Place::postgres() else { return };
    let sink = Sink::start();
    // Slow answers, so that calls are under way whenever something happens.
    sink.otherwise(Reply::status(200).after(Duration::from_millis(700)));
    let first = place.start(&sink);
    let second = place.start_node("second", &first.demo, &sink);
    let third = place.start_node("third", &first.demo, &sink);
    let all_serve = || {
        let nodes = place.doctor_nodes();
        nodes.len() == 3
            && nodes.iter().all(|node| node["ok"] == true && node["detail"].as_str().unwrap().contains("serving"))
    };
    assert!(wait_until(WITHIN, all_serve), "{:#?}", place.doctor_nodes());
    let mut runs = Vec::new();

    deliver(&second, "killed", &mut runs);
    second.kill();
    all_succeed(&first, &runs, "a node was killed");

    let second = place.start_node("second", &first.demo, &sink);
    deliver(&third, "restarted", &mut runs);
    assert_eq!(third.stop(), Some(0));
    all_succeed(&second, &runs, "a node was stopped in order");
    let third = place.start_node("third", &first.demo, &sink);

    // Past its lease, with calls under way.
    deliver(&third, "stopped", &mut runs);
    third.signal("-STOP");
    all_succeed(&first, &runs, "a node was frozen");
    third.signal("-CONT");
    let noticed = || place.log_text().contains("fencing this worker");
    assert!(wait_until(WITHIN, noticed), "the node that went on did not notice");
    // It serves and works again.
    deliver(&third, "continued", &mut runs);
    all_succeed(&third, &runs, "the frozen node went on");
    let back = || place.log_text().contains("the heartbeat is back");
    assert!(wait_until(WITHIN, back), "the node that went on is not back");

    for run in &runs {
        let events = first.api.get(&format!("runs/{run}/events")).body;
        let ends = events["items"].as_array().unwrap().iter().filter(|event| event["kind"] == "succeeded").count();
        assert_eq!(ends, 1, "{events:#}");
    }
    // One effect by its key, whoever tried it how often, and under one key always the same.
    let mut effects: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for request in sink.requests() {
        let Some(key) = request.header("idempotency-key") else { continue };
        let body = effects.entry(key.to_owned()).or_insert_with(|| request.body.clone());
        assert_eq!(*body, request.body, "{key}");
    }
    assert_eq!(effects.len(), runs.len(), "one web hook call per run");
    let no_job = || first.api.get("jobs").body["items"].as_array().unwrap().is_empty();
    assert!(wait_until(WITHIN, no_job), "a job is left");
}

/// As when a machine with both comes up, or the database restarts while a node does.
#[test]
fn a_start_waits_for_a_database_that_is_away() {
    let Some(place) = Place::postgres() else { return };
    let sink = Sink::start();
    let first = place.start(&sink);
    let proxy = TcpProxy::start(place.database_address());
    proxy.refuse(true);
    let waiting = place.start_node_behind(proxy.address(), "second");
    let told = || place.log_text().contains("the database cannot be reached yet");
    assert!(wait_until(WITHIN, told), "it says nothing:\n{}", place.log_text());
    proxy.refuse(false);
    assert!(wait_until(WITHIN, || place.doctor_nodes().len() == 2), "{:#?}", place.doctor_nodes());
    drop((waiting, first));
}
