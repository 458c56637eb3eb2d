//! Prepared packages: loaded when they are called, kept within their memory, the one that was used longest ago given up first.

use std::sync::Arc;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::call::Outcome;
use bulkhead_model::limits::ContributionKind;
use bulkhead_model::manifest::Manifest;
use bulkhead_runtime::{Digest, Prepared, PreparedStats, Runtime, RuntimeConfig, embed_manifest};
use serde_json::json;

use crate::support::{NOW, action_that, assert_ended, config, request, within};

const KIND: ContributionKind = ContributionKind::Action;

/// Packages that differ in a section that is not compiled.
fn packages(count: usize) -> Vec<Vec<u8>> {
    let component = action_that("", "", "");
    let package = |n: usize| {
        let manifest = json!({
            "name": "acme/many", "version": format!("1.0.{n}"), "wit": "bulkhead:plugin@0.1", "title": "Many",
            "actions": [{ "name": "it", "title": "It" }],
        });
        embed_manifest(&component, &Manifest::parse(manifest.to_string().as_bytes()).unwrap()).unwrap()
    };
    (0..count).map(package).collect()
}

fn start(config: RuntimeConfig) -> Runtime {
    Runtime::start(config, Ambient::manual(NOW, 7)).unwrap()
}

/// From memory or the sealed cache alone.
async fn lazily(runtime: &Runtime, package: &[u8]) -> Arc<Prepared> {
    let unreachable = async { Err("it was compiled before the restart".into()) };
    runtime.prepare(Digest::of(package), unreachable).await.unwrap()
}

#[tokio::test]
async fn more_plugins_than_memory_take_turns_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let packages = packages(6);
    let roomy = config(directory.path().join("cache"));
    let first = start(roomy.clone());
    let mut image_bytes = 0;
    for package in &packages {
        let bytes = package.clone();
        image_bytes = first.prepare(Digest::of(package), async { Ok(bytes) }).await.unwrap().image_bytes();
    }
    assert_eq!(first.prepared().packages, 6);
    drop(first);

    // After the restart there is room for three and a half.
    let runtime = start(RuntimeConfig { prepared_bytes_max: image_bytes * 7 / 2, ..roomy });
    assert_eq!(runtime.prepared(), PreparedStats::default(), "a start loads nothing");
    let there = || packages.iter().map(|package| runtime.is_prepared(&Digest::of(package))).collect::<Vec<_>>();
    for package in &packages[..3] {
        lazily(&runtime, package).await;
    }
    assert_eq!(there(), [true, true, true, false, false, false]);
    assert_eq!(runtime.prepared().packages, 3);
    // The first is used again, so the second is the one that was used longest ago.
    lazily(&runtime, &packages[0]).await;
    lazily(&runtime, &packages[3]).await;
    assert_eq!(there(), [true, false, true, true, false, false]);

    // One that is held stays callable while others take its place.
    let held = lazily(&runtime, &packages[2]).await;
    for package in [&packages[4], &packages[5], &packages[0], &packages[1]] {
        lazily(&runtime, package).await;
    }
    let stats = runtime.prepared();
    assert!(stats.packages == 3 && stats.bytes <= image_bytes * 7 / 2, "{stats:?}");
    let report = within(runtime.call(&held, request(KIND))).await;
    assert_ended(&report, Outcome::Returned, None);
    let gone = Arc::downgrade(&held);
    drop(held);
    // The cache's own hold on it ends soon after, with what is done in it meanwhile.
    within(async {
        while gone.upgrade().is_some() {
            lazily(&runtime, &packages[0]).await;
            runtime.forget(&Digest::of(&packages[0])).await;
        }
    })
    .await;

    // And whichever is asked for again comes back, without its package.
    for package in &packages {
        let report = within(runtime.call(&lazily(&runtime, package).await, request(KIND))).await;
        assert_ended(&report, Outcome::Returned, None);
    }
    assert_eq!(runtime.prepared().packages, 3);
    runtime.forget(&Digest::of(&packages[5])).await;
    assert_eq!(runtime.prepared().packages, 2);
}
