//! The machine's clock jumps by an hour, forward and back, under runs: leases do not notice, waits go by the clock.

use std::time::Duration;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::run::RunStatus;
use bulkhead_model::time::Timestamp;
use bulkhead_test_support::http_sink::Reply;
use bulkhead_test_support::wait::until_async;
use serde_json::{Value, json};

use crate::bench::{Bench, PATIENCE, Place, sink};
use crate::statements::{call, workflow};

const HOUR: Duration = Duration::from_hours(1);
/// 2026-11-21T08:00:00Z.
const START_MICROS: i64 = 1_795_248_000_000_000;

/// A call, a wait of ten minutes, another call.
fn with_a_wait() -> Value {
    let wait = json!({ "type": "delay", "for_ms": 600_000, "next": "two" });
    let end = json!({ "type": "stop" });
    workflow(&json!({ "one": call("one", "wait", 3), "wait": wait, "two": call("two", "end", 3), "end": end }))
}

async fn is_waiting(bench: &Bench, run: bulkhead_model::id::RunId) {
    let waiting = async || bench.show(run).await.is_some_and(|it| it.run.status == RunStatus::Waiting);
    assert!(until_async(PATIENCE, waiting).await, "the run waits: {:?}", bench.show(run).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_ends_no_lease_and_repeats_nothing() {
    let ambient = Ambient::manual(Timestamp::from_micros(START_MICROS), 7);
    let bench = Bench::new(Place::Sqlite, &with_a_wait(), ambient.clone()).await.unwrap();
    for (label, back) in [("forward", false), ("back", true)] {
        // The jump falls into the first call, under a lease.
        sink().script_for(&format!("/{label}"), Reply::status(200).after(Duration::from_millis(2_500)));
        let run = bench.begin(label).await;
        Bench::called(label).await;
        if back {
            ambient.set_back(HOUR);
        } else {
            ambient.advance(HOUR);
        }
        is_waiting(&bench, run).await;
        assert_eq!(
            Bench::requests(label).len(),
            1,
            "{label}: the lease outlived the jump, so the call is not made again"
        );
        // Another jump, into the wait: forward it is over, back it is not lost.
        if back {
            ambient.set_back(HOUR);
            is_waiting(&bench, run).await;
            ambient.advance(HOUR);
        }
        ambient.advance(HOUR);
        assert_eq!(bench.ended(run).await.run.status, RunStatus::Succeeded);
        bench.assert_effects(label, run, &["one", "two"], 2).await;
        bench.assert_idle(0).await;
    }
    // A run that begins under a clock that was set back begins at once.
    ambient.set_back(3 * HOUR);
    let run = bench.begin("early").await;
    is_waiting(&bench, run).await;
    ambient.advance(HOUR);
    assert_eq!(bench.ended(run).await.run.status, RunStatus::Succeeded);
    assert!(bench.supervisor.shut_down(PATIENCE).await);
}
