//! What only PostgreSQL can do to a transaction: lost races, time-outs, lost connections.

use std::net::ToSocketAddrs as _;
use std::time::Duration;

use bulkhead_model::permission::OrgScope;
use bulkhead_model::time::Timestamp;
use bulkhead_store::api_key::ApiKey;
use bulkhead_store::page::PageRequest;
use bulkhead_store::{Store, StoreConfig, StoreError};
use bulkhead_test_support::tcp_proxy::TcpProxy;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::support::{Tenant, TestStore, api_key, job, postgres_config, run};

/// Inserts a key if there are fewer than `limit`: right only if nobody else does the same at the same time.
async fn insert_below(
    store: Store,
    scope: OrgScope,
    key: bulkhead_store::api_key::ApiKey,
    limit: usize,
) -> Result<bool, StoreError> {
    store
        .write(&scope, (key, limit), |tx, (key, limit)| {
            Box::pin(async move {
                let there = tx.list_api_keys(PageRequest::default()).await?.items.len();
                // Time for the other to read the same.
                tokio::time::sleep(Duration::from_millis(20)).await;
                if there >= *limit {
                    return Ok(false);
                }
                tx.insert_api_key(key).await?;
                Ok(true)
            })
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_race_are_serialized_by_running_again() {
    let Some(test) = TestStore::postgres().await else { return };
    let tenant = test.tenant("acme").await;
    let mut writers = tokio::task::JoinSet::new();
    for n in 0..4 {
        let key = api_key(&test.ambient, &n.to_string());
        writers.spawn(insert_below(test.store.clone(), tenant.scope(), key, 3));
    }
    let results = writers.join_all().await;
    let inserted = results.iter().filter(|result| matches!(result, Ok(true))).count();
    for result in &results {
        assert!(matches!(result, Ok(_) | Err(StoreError::Contended(_))), "{result:?}");
    }
    let keys = tx!(test.read, &tenant.scope(), [], |tx| tx.list_api_keys(PageRequest::default()).await).unwrap();
    assert_eq!(keys.items.len(), 1 + inserted);
    assert!(keys.items.len() <= 3, "the rule that each transaction checked holds: {}", keys.items.len());
    assert!(inserted >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_start_the_same_run_both_end_well() {
    let Some(test) = TestStore::postgres().await else { return };
    let tenant = test.tenant("acme").await;
    for n in 0..5 {
        let key = format!("delivery-{n}");
        let mut starters = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (store, scope) = (test.store.clone(), tenant.scope());
            let new = run(&test.ambient, tenant.workflow.id, Some(&key));
            let (queued, ambient) = (job(new.id, test.ambient.now()), test.ambient.clone());
            starters.spawn(async move {
                let result: Result<bool, StoreError> = store
                    .write(&scope, (new, queued, ambient), |tx, (new, queued, ambient)| {
                        Box::pin(async move {
                            let started = tx.insert_run(new).await?;
                            if started {
                                tx.enqueue(queued, ambient).await?;
                            }
                            Ok(started)
                        })
                    })
                    .await;
                result.unwrap()
            });
        }
        let started = starters.join_all().await;
        assert_eq!(started.iter().filter(|started| **started).count(), 1, "{started:?}");
    }
}

/// Holds a lock on a row from outside, so that a statement of the store's has to wait.
async fn lock_row(test: &TestStore, scope: &OrgScope) -> PgConnection {
    let mut conn = test.raw_postgres().await;
    for sql in [
        "begin".to_owned(),
        format!("set local app.org_id = '{}'", scope.org().uuid()),
        "select 1 from run for update".to_owned(),
    ] {
        sqlx::query(AssertSqlSafe(sql)).execute(&mut conn).await.unwrap();
    }
    conn
}

/// The waits' bounds are the feature: a statement that cannot go on is an answer after them, never a hang.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_waited_for_only_so_long() {
    let Some(test) = TestStore::postgres().await else { return };
    let tenant = test.tenant("acme").await;
    let blocker = lock_row(&test, &tenant.scope()).await;
    let id = tenant.run.id;
    let waited = std::time::Instant::now();
    let lock = async { tx!(test.write_locked, &tenant.scope(), [id], |tx| tx.lock_run(*id).await.map(drop)) };
    let result = tokio::time::timeout(Duration::from_mins(1), lock).await.expect("an answer");
    assert!(matches!(result, Err(StoreError::TimedOut)), "{result:?}");
    assert!(waited.elapsed() >= Duration::from_secs(4), "it did wait");
    blocker.close().await.unwrap();
    tx!(test.write_locked, &tenant.scope(), [id], |tx| tx.lock_run(*id).await.map(drop)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_is_a_typed_error_and_the_next_transaction_works() {
    let Some(test) = TestStore::postgres().await else { return };
    let tenant = test.tenant("acme").await;
    let id = tenant.run.id;
    // Idle connections die in the pool: nobody notices.
    for _ in 0..3 {
        test.database().cut_connections().unwrap();
        tx!(test.read, &tenant.scope(), [id], |tx| tx.require_run(*id).await.map(drop)).unwrap();
        test.database().cut_connections().unwrap();
        tx!(test.write, &tenant.scope(), [id], |tx| tx.lock_run(*id).await.map(drop)).unwrap();
    }
    // In the middle of a transaction: unavailable, and nothing of it is there.
    let url = test.database().url().to_owned();
    let key = api_key(&test.ambient, "cut");
    let result = tx!(test.write, &tenant.scope(), [url, key], |tx| {
        tx.insert_api_key(key).await?;
        let mut owner = PgConnection::connect(url).await.map_err(StoreError::from)?;
        sqlx::query("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
            .execute(&mut owner)
            .await
            .map_err(StoreError::from)?;
        tx.list_api_keys(PageRequest::default()).await.map(drop)
    });
    assert!(matches!(result, Err(StoreError::Unavailable(_))), "{result:?}");
    let keys = tx!(test.read, &tenant.scope(), [], |tx| tx.list_api_keys(PageRequest::default()).await).unwrap();
    assert_eq!(keys.items.len(), 1);
    tx!(test.write, &tenant.scope(), [key], |tx| tx.insert_api_key(key).await).unwrap();
}

#[tokio::test]
async fn every_moment_survives_the_trip() {
    let Some(test) = TestStore::postgres().await else { return };
    let scope = crate::support::scope(test.org("acme").await);
    for micros in [i64::MAX, i64::MAX - 1, 0, -1, 1, -62_135_596_800_000_000, 253_402_300_800_000_000] {
        let mut key = api_key(&test.ambient, "k");
        key.created_at = Timestamp::from_micros(micros);
        key.expires_at = Some(Timestamp::from_micros(micros));
        let id = key.id;
        tx!(test.write, &scope, [key], |tx| tx.insert_api_key(key).await).unwrap();
        let found = tx!(test.read, &scope, [id], |tx| tx.load_api_key(*id).await).unwrap().unwrap();
        assert_eq!((found.created_at, found.expires_at), (key.created_at, key.expires_at));
    }
    // And the database means the same by it.
    let mut conn = test.raw_postgres().await;
    sqlx::query(AssertSqlSafe(format!("set app.org_id = '{}'", scope.org().uuid()))).execute(&mut conn).await.unwrap();
    let epoch: i64 =
        sqlx::query_scalar("select count(*) from api_key where created_at = timestamptz '1970-01-01T00:00:00Z'")
            .fetch_one(&mut conn)
            .await
            .unwrap();
    assert_eq!(epoch, 1);
}

/// A store whose line to the database can be held up.
async fn behind_a_proxy(test: &TestStore, connections_max: u32) -> (Store, TcpProxy) {
    let url = crate::support::app_url(test.database().url());
    let (start, rest) = url.rsplit_once('@').unwrap();
    let (server, name) = rest.split_once('/').unwrap();
    let proxy = TcpProxy::start(server.to_socket_addrs().unwrap().next().unwrap());
    let config = postgres_config(Some(format!("{start}@{}/{name}", proxy.address())), None);
    (Store::open(StoreConfig { connections_max, ..config }).await.unwrap(), proxy)
}

async fn write_a_key(store: &Store, tenant: &Tenant, key: ApiKey) -> Result<(), StoreError> {
    store.write(&tenant.scope(), key, |tx, key| Box::pin(async move { tx.insert_api_key(key).await })).await
}

/// A database that is gone without a word: whoever waits on it hears so, and once it is back nobody has to wait for what was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_has_gone_silent_keeps_no_place() {
    let Some(test) = TestStore::postgres().await else { return };
    let tenant = test.tenant("acme").await;
    let (store, proxy) = behind_a_proxy(&test, 2).await;
    for _ in 0..2 {
        write_a_key(&store, &tenant, api_key(&test.ambient, "before")).await.unwrap();
    }
    proxy.stall(true);
    let mut asking = tokio::task::JoinSet::new();
    for n in 0..6 {
        let (store, tenant, key) = (store.clone(), tenant.clone(), api_key(&test.ambient, "lost"));
        asking.spawn(async move {
            if n % 2 == 0 {
                return write_a_key(&store, &tenant, key).await;
            }
            let scope = tenant.scope();
            let read = store
                .read(&scope, (), |tx, ()| Box::pin(async move { tx.list_api_keys(PageRequest::default()).await }));
            read.await.map(drop)
        });
    }
    let results = tokio::time::timeout(Duration::from_mins(2), asking.join_all()).await.expect("each has an answer");
    for result in results {
        assert!(matches!(result, Err(StoreError::TimedOut | StoreError::Unavailable(_))), "{result:?}");
    }
    // The lines that went silent stay so; others can be made.
    proxy.cut();
    proxy.stall(false);
    write_a_key(&store, &tenant, api_key(&test.ambient, "after")).await.unwrap();
    let names = tx!(test.read, &tenant.scope(), [], |tx| tx.list_api_keys(PageRequest::default()).await).unwrap();
    let names: Vec<_> = names.items.into_iter().map(|key| key.name).collect();
    assert_eq!(names.iter().filter(|name| *name == "before").count(), 2);
    assert!(names.contains(&"after".to_owned()) && !names.contains(&"lost".to_owned()), "{names:?}");
    store.close().await;
}

/// A caller that goes away in mid-statement leaves neither a place nor a transaction behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_away_leaves_nothing_open() {
    let Some(test) = TestStore::postgres().await else { return };
    let tenant = test.tenant("acme").await;
    let (store, _proxy) = behind_a_proxy(&test, 1).await;
    for _ in 0..5 {
        let key = api_key(&test.ambient, "gone");
        let scope = tenant.scope();
        let write = store.write(&scope, key, |tx, key| {
            Box::pin(async move {
                tx.insert_api_key(key).await?;
                std::future::pending::<Result<(), StoreError>>().await
            })
        });
        assert!(tokio::time::timeout(Duration::from_millis(50), write).await.is_err());
    }
    write_a_key(&store, &tenant, api_key(&test.ambient, "stays")).await.unwrap();
    let keys = tx!(test.read, &tenant.scope(), [], |tx| tx.list_api_keys(PageRequest::default()).await).unwrap();
    assert!(keys.items.iter().all(|key| key.name != "gone"));
    store.close().await;
}
