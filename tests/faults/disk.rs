//! The disk fills up under load and is freed again: what was accepted is done, what was refused left nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use bulkhead_app::AppError;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::run::RunStatus;
use bulkhead_test_support::http_sink::Reply;

use crate::bench::{Bench, Place, sink};
use crate::statements::two_calls;

/// Fillings, each at another moment of the runs under way.
const ROUNDS: u64 = 4;
/// Runs that are begun in each round.
const RUNS: usize = 4;
/// Deliveries to a full disk in each round.
const UNDER_FULL: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing() {
    let bench = Bench::new(Place::Sqlite, &two_calls(3), Ambient::system()).await.unwrap();
    let (mut accepted, mut refused) = (BTreeMap::new(), 0);
    for round in 0..ROUNDS {
        for number in 0..RUNS {
            let label = format!("disk-{round}-{number}");
            sink().script_for(&format!("/{label}"), Reply::status(200).after(Duration::from_millis(30)));
            accepted.insert(label.clone(), bench.begin(&label).await);
        }
        // At the first call, and a little later each round.
        Bench::called(&format!("disk-{round}-0")).await;
        tokio::time::sleep(Duration::from_millis(17 * round)).await;
        bench.store.fault_hook().fill_disk(true);
        let labels: Vec<String> = (0..UNDER_FULL).map(|number| format!("disk-{round}-full-{number}")).collect();
        for label in &labels {
            match bench.deliver(label).await {
                // The database's file has some free pages left: a few writes may still fit.
                Ok(run) => {
                    accepted.insert(label.clone(), run.unwrap());
                }
                Err(AppError::Store(_)) => refused += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
        bench.store.fault_hook().fill_disk(false);
        for label in labels {
            // The sender tries again, and now it is taken, once.
            let run = bench.begin(&label).await;
            let before = accepted.insert(label, run);
            assert!(before.is_none_or(|before| before == run), "one delivery, one run");
        }
    }
    // Whether the writer lost its connection as well depends on which statement found no room; `store/writer.rs` forces that.
    assert!(refused > 0, "the disk was full for somebody");
    for (label, run) in &accepted {
        let detail = bench.ended(*run).await;
        assert_eq!(detail.run.status, RunStatus::Succeeded, "{label}: {:?}", detail.run.error);
        // Each filling may cut each call once.
        let requests_max = 2 + usize::try_from(ROUNDS).unwrap();
        bench.assert_effects(label, *run, &["one", "two"], requests_max).await;
    }
    bench.assert_idle(0).await;
    assert!(bench.supervisor.shut_down(crate::bench::PATIENCE).await);
}
