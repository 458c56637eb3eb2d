//! Rate limits as processes keep them: four on one PostgreSQL database, one on SQLite through a restart, and without a database.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bulkhead_app::limits::{Ask, Counted, Limiter, RefusedFor};
use bulkhead_app::supervise::Supervisor;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::OrgId;
use bulkhead_model::network::Network;
use bulkhead_model::permission::{SystemReason, SystemScope};
use bulkhead_model::rate::{Policy, Rate, RateLimits, RouteClass};
use bulkhead_store::{Store, StoreError};
use bulkhead_test_support::wait::until_async;
use tokio_util::sync::CancellationToken;

use crate::support::{PATIENCE, TestApp};

const KEY: [u8; 32] = [3; 32];

fn ask(policy: Policy, counted: Counted) -> Ask {
    Ask { policy, counted, cost: 1 }
}

fn address(text: &str) -> Counted {
    Counted::Network(Network::of(text.parse().unwrap()))
}

#[expect(clippy::disallowed_methods, reason = "a test waits for its tasks itself")]
fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    tokio::spawn(future)
}

/// Lets the limiter ask the database, until it is told to stop; it does when this ends, since what is asked before is counted by one node alone.
async fn serve(limiter: &Arc<Limiter>, (store, ambient): (&Store, &Ambient), stop: &CancellationToken) {
    let serving = (Arc::clone(limiter), store.clone(), stop.clone());
    drop(spawn(async move { serving.0.serve(&serving.1, &serving.2).await }));
    if !store.is_postgres() {
        return;
    }
    // Each node has a probe of its own, whose bucket comes to be in the database.
    let scope = SystemScope::new(SystemReason::Limits);
    let buckets = async || {
        let listed = store.read(&scope, (), |tx, ()| Box::pin(async move { tx.list_buckets(0, 1_000).await }));
        let listed: Result<Vec<_>, StoreError> = listed.await;
        listed.unwrap().len()
    };
    let (before, probe) = (buckets().await, Counted::Org(OrgId::new(&Ambient::system())));
    let served = until_async(PATIENCE, async || {
        limiter.take((store, ambient), &[ask(Policy::Export, probe)], false).await.ok();
        buckets().await > before
    });
    assert!(served.await);
}

/// Everybody asks as fast as they can for some time; how many passed, and how long it took.
async fn storm(stores: &[Store], limits: RateLimits, counted: Counted, policy: Policy) -> (u32, Duration) {
    let passed = Arc::new(AtomicU32::new(0));
    let began = Instant::now();
    let (mut tasks, stop) = (Vec::new(), CancellationToken::new());
    for (node, store) in stores.iter().enumerate() {
        // Each node has a clock of its own, minutes away from the others'.
        let ambient = Ambient::system_ahead_by(i64::try_from(node).unwrap() * 180_000_000 - 240_000_000);
        let limiter = Arc::new(Limiter::new(limits, KEY));
        serve(&limiter, (store, &ambient), &stop).await;
        for _ in 0..4 {
            let (store, ambient, limiter, passed) =
                (store.clone(), ambient.clone(), Arc::clone(&limiter), Arc::clone(&passed));
            tasks.push(spawn(async move {
                while began.elapsed() < Duration::from_secs(3) {
                    match limiter.take((&store, &ambient), &[ask(policy, counted)], false).await {
                        Ok(_) => {
                            passed.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(refused) => {
                            assert_eq!(refused.why, RefusedFor::Quota);
                            tokio::time::sleep(refused.wait.min(Duration::from_millis(2))).await;
                        }
                    }
                }
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    stop.cancel();
    (passed.load(Ordering::SeqCst), began.elapsed())
}

/// The whole of it: never more than burst + rate × time over four nodes, each with connections and a clock of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_nodes_let_no_more_pass_than_one_would() {
    let Some(test) = TestApp::postgres().await else { return };
    let mut stores = Vec::new();
    for _ in 0..4 {
        stores.push(Store::open(test.store_config(None)).await.unwrap());
    }
    let org = Counted::Org(OrgId::new(&test.ambient));
    for (policy, rate) in
        [(Policy::Organization, Rate::per_minute(3_000, 400)), (Policy::Strict, Rate::per_minute(600, 7))]
    {
        let (passed, took) = storm(&stores, RateLimits::all(rate), org, policy).await;
        let most = f64::from(rate.burst) + f64::from(rate.quota) / 60.0 * took.as_secs_f64();
        assert!(f64::from(passed) <= most, "{passed} passed of {most:.1}, {rate:?}");
        // What nodes held beyond their second went to nobody; the burst was there for somebody.
        assert!(passed >= rate.burst * 7 / 10, "{passed} passed of {most:.1}, {rate:?}");
    }
    for store in stores {
        store.close().await;
    }
}

on_both! {
    async fn each_is_counted_apart_and_all_of_an_organization_together(app: TestApp) {
        let limits = RateLimits {
            key: Rate::per_hour(60, 3), organization: Rate::per_hour(60, 5), ..RateLimits::default()
        };
        let (limiter, stop) = (Arc::new(Limiter::new(limits, KEY)), CancellationToken::new());
        serve(&limiter, (&app.store, &app.ambient), &stop).await;
        let (org, other) = (OrgId::new(&app.ambient), OrgId::new(&app.ambient));
        let keys: Vec<_> = (0..3).map(|_| bulkhead_model::id::ApiKeyId::new(&app.ambient)).collect();
        let asks = |n: usize, org| [ask(Policy::Key, Counted::Key(keys[n])), ask(Policy::Organization, Counted::Org(org))];
        let at = (&app.store, &app.ambient);
        for _ in 0..3 {
            limiter.take(at, &asks(0, org), false).await.unwrap();
        }
        assert_eq!(limiter.take(at, &asks(0, org), false).await.unwrap_err().policy, Policy::Key);
        let meters = limiter.take(at, &asks(1, org), false).await.unwrap();
        assert_eq!((meters[0].policy, meters[0].left), (Policy::Key, 2));
        assert_eq!((meters[1].policy, meters[1].left), (Policy::Organization, 1));
        limiter.take(at, &asks(1, org), false).await.unwrap();
        assert_eq!(limiter.take(at, &asks(2, org), false).await.unwrap_err().policy, Policy::Organization);
        limiter.take(at, &asks(2, other), false).await.unwrap();
        // One /64 is one client, and an IPv4 address is itself however it is written.
        for _ in 0..30 {
            limiter.take(at, &[ask(Policy::Anonymous, address("2001:db8::1"))], false).await.unwrap();
        }
        let refused = limiter.take(at, &[ask(Policy::Anonymous, address("2001:db8::ffff"))], false).await.unwrap_err();
        assert!(refused.wait <= Duration::from_secs(1) && refused.wait > Duration::ZERO);
        limiter.take(at, &[ask(Policy::Anonymous, address("2001:db8:0:1::1"))], false).await.unwrap();
        stop.cancel();
    }

    /// A key over its limit asks for its organization's tokens too; what it does not get is not lost to the others.
    async fn what_is_refused_takes_nothing_from_the_organization(app: TestApp) {
        let limits = RateLimits {
            key: Rate::per_hour(60, 3), organization: Rate::per_hour(60, 8), ..RateLimits::default()
        };
        let (org, key) = (OrgId::new(&app.ambient), bulkhead_model::id::ApiKeyId::new(&app.ambient));
        let (at, stop) = ((&app.store, &app.ambient), CancellationToken::new());
        let asks = |key| [ask(Policy::Key, Counted::Key(key)), ask(Policy::Organization, Counted::Org(org))];
        let limiters: Vec<_> = (0..2).map(|_| Arc::new(Limiter::new(limits, KEY))).collect();
        for limiter in &limiters {
            serve(limiter, at, &stop).await;
        }
        // Two nodes where there can be two, so that the second hears of the refusal from the database alone.
        let nodes = if app.store.is_postgres() { 2 } else { 1 };
        for limiter in &limiters[..nodes] {
            for _ in 0..20 {
                drop(limiter.take(at, &asks(key), false).await);
            }
        }
        let other = bulkhead_model::id::ApiKeyId::new(&app.ambient);
        let mut passed = 0;
        for _ in 0..3 {
            passed += u32::from(limiters[0].take(at, &asks(other), false).await.is_ok());
        }
        assert_eq!(passed, 3, "three of eight were used");
        stop.cancel();
    }

    /// Section e: requests while the store fails.
    async fn without_a_database_reads_pass_and_what_is_sensitive_gets_a_quarter(app: TestApp) {
        let (limiter, stop) = (Arc::new(Limiter::new(RateLimits::all(Rate::per_minute(10, 8)), KEY)), CancellationToken::new());
        serve(&limiter, (&app.store, &app.ambient), &stop).await;
        let at = (&app.store, &app.ambient);
        app.store.close().await;
        let count = async |policy: Policy, is_sensitive: bool| {
            let mut passed = 0;
            for _ in 0..20 {
                match limiter.take(at, &[ask(policy, address("192.0.2.1"))], is_sensitive).await {
                    Ok(_) => passed += 1,
                    Err(refused) if app.store.is_postgres() && is_sensitive => assert_eq!(refused.why, RefusedFor::ReducedCapacity),
                    Err(refused) => assert_eq!(refused.why, RefusedFor::Quota),
                }
            }
            passed
        };
        // On SQLite the process's memory is what counts, and no database is needed.
        let sensitive = if app.store.is_postgres() { 2 } else { 8 };
        assert_eq!(count(Policy::Strict, true).await, sensitive);
        assert_eq!(count(Policy::User, false).await, 8, "what one node alone would refuse is refused all the same");
    }
}

#[tokio::test]
async fn a_restart_on_sqlite_forgives_nothing_that_was_written_down() {
    let app = TestApp::sqlite().await;
    let (limits, at) = (RateLimits::default(), (&app.store, &app.ambient));
    let sign_in = [ask(Policy::SignIn, address("192.0.2.1"))];
    let before = Limiter::new(limits, KEY);
    for _ in 0..10 {
        before.take(at, &sign_in, true).await.unwrap();
    }
    assert_eq!(before.save(&app.store, &app.ambient).await.unwrap(), 1);
    assert_eq!(before.save(&app.store, &app.ambient).await.unwrap(), 0, "what did not change is not written again");
    let after = Limiter::new(limits, KEY);
    after.remember(&app.store, &app.ambient).await.unwrap();
    assert_eq!(after.take(at, &sign_in, true).await.unwrap_err().wait, Duration::from_secs(6));
    assert!(after.take(at, &[ask(Policy::SignIn, address("192.0.2.2"))], true).await.is_ok());
    app.ambient.advance(Duration::from_secs(6));
    assert!(after.take(at, &sign_in, true).await.is_ok());
    // A minute after it was full, the row goes.
    app.ambient.advance(Duration::from_mins(3));
    assert_eq!(after.remove_full(&app.store, &app.ambient).await.unwrap(), 1);
    // Buckets are named by digests under a key: another key finds nothing.
    let other = Limiter::new(limits, [4; 32]);
    assert!(other.look(&app.ambient, Policy::SignIn, address("192.0.2.1")).is_ok());
}

/// The first moments of a process: what is asked of it is counted with what was asked of all others.
#[tokio::test]
async fn once_limits_have_begun_all_nodes_count_together() {
    let Some(test) = TestApp::postgres().await else { return };
    let limits = RateLimits { sign_in: Rate::per_hour(4, 4), ..RateLimits::default() };
    let (supervisor, sign_in) = (Supervisor::new(), [ask(Policy::SignIn, address("192.0.2.77"))]);
    let mut passed = 0;
    for _ in 0..3 {
        let node = test.node(&test.ambient).await.with_rate_limits(limits);
        node.start_limits(&supervisor).await.unwrap();
        for _ in 0..3 {
            passed += u32::from(node.take_rate(&sign_in, RouteClass::SignIn).await.is_ok());
        }
    }
    assert_eq!(passed, 4);
    assert!(supervisor.shut_down(PATIENCE).await);
}
