//! Nodes on one database: who is there, whose clock holds, what changed elsewhere, words between them, and versions that do not fit.

use std::time::Duration;

use bulkhead_model::grant::GrantVersion;
use bulkhead_model::id::{InstallationId, RunId, WorkerId};
use bulkhead_model::job::{JobPayload, Lane};
use bulkhead_model::permission::{SystemReason, SystemScope};
use bulkhead_model::run::RunStatus;
use bulkhead_store::installation::Installation;
use bulkhead_store::job::NewJob;
use bulkhead_store::run::Run;
use bulkhead_store::{Store, StoreError};

use crate::support::{JOBS, TestStore, app_url, claim_any, postgres_config, sqlite_config};

const NODES: SystemScope = SystemScope::new(SystemReason::Nodes);
const PATIENCE: Duration = Duration::from_mins(1);

on_both! {
    async fn a_node_says_how_it_is(test: TestStore) {
        let (worker, now) = (test.worker().await, test.ambient.now());
        let list = async || tx!(test.read, &NODES, [], |tx| tx.list_nodes().await).unwrap();
        let nodes = list().await;
        assert_eq!(nodes.len(), 1);
        let node = &nodes[0];
        assert_eq!((node.id, node.name.as_str(), node.draining, node.alive), (worker, "node", false, true));
        assert_eq!((node.version.as_str(), node.schema_version > 0), (env!("CARGO_PKG_VERSION"), true));
        tx!(test.write_locked, &NODES, [worker], |tx| tx.update_node(*worker, true, -7).await).unwrap();
        let node = list().await.remove(0);
        assert_eq!((node.draining, node.clock_ahead_micros), (true, -7));
        // One that registers anew is not draining.
        tx!(test.write_locked, &JOBS, [worker, now], |tx| {
            tx.delete_worker(*worker).await?;
            tx.insert_worker(*worker, "again", *now, Duration::from_mins(1)).await
        })
        .unwrap();
        assert_eq!(list().await.iter().map(|node| (node.name.as_str(), node.draining)).collect::<Vec<_>>(), [("again", false)]);
    }

    async fn what_changed_and_what_ended_is_seen_across_organizations(test: TestStore) {
        let (a, b) = (test.tenant("a").await, test.tenant("b").await);
        let gone = (InstallationId::new(&test.ambient), RunId::new(&test.ambient));
        let changed = Installation { grant_version: GrantVersion(2), ..b.installation.clone() };
        let ended = Run { status: RunStatus::Cancelled, ..b.run.clone() };
        tx!(test.write, &b.scope(), [changed, ended], |tx| {
            assert!(tx.update_installation(changed, GrantVersion(1)).await?);
            tx.update_run(ended).await
        })
        .unwrap();
        let keys = vec![(a.org, a.installation.id), (b.org, b.installation.id), (a.org, b.installation.id), (a.org, gone.0)];
        let mut versions = tx!(test.read, &NODES, [keys], |tx| tx.list_grant_versions(keys).await).unwrap();
        versions.sort_by_key(|(_, _, version)| version.0);
        assert_eq!(
            versions,
            [(a.org, a.installation.id, GrantVersion(1)), (b.org, b.installation.id, GrantVersion(2))],
            "each under its own organization, and what is not there is left out"
        );
        let keys = vec![(a.org, a.run.id), (b.org, b.run.id), (a.org, gone.1)];
        let ended = tx!(test.read, &NODES, [keys], |tx| tx.list_ended_runs(keys).await).unwrap();
        assert_eq!(ended, [b.run.id, gone.1]);
        let none = tx!(test.read, &NODES, [], |tx| {
            Ok((tx.list_grant_versions(&[]).await?, tx.list_ended_runs(&[]).await?))
        });
        assert_eq!(none.unwrap(), (Vec::new(), Vec::new()));
    }
}

#[tokio::test]
async fn the_shared_clock_is_the_databases() {
    let sqlite = TestStore::sqlite().await;
    assert_eq!(tx!(sqlite.read, &NODES, [], |tx| tx.load_shared_clock().await).unwrap(), None);
    let Some(test) = TestStore::postgres().await else { return };
    let shared = tx!(test.read, &NODES, [], |tx| tx.load_shared_clock().await).unwrap().unwrap();
    let machine = bulkhead_model::ambient::Ambient::system().now();
    let off = shared.as_micros().abs_diff(machine.as_micros());
    assert!(off < 60_000_000, "the test's database runs on this machine: {off}");
}

/// A heartbeat's end goes by the database, so a node whose clock is wrong neither outlives nor kills another.
#[tokio::test]
async fn a_dead_nodes_row_says_so() {
    let Some(test) = TestStore::postgres().await else { return };
    let (worker, now) = (WorkerId::new(&test.ambient), test.ambient.now());
    tx!(test.write_locked, &JOBS, [worker, now], |tx| tx.insert_worker(*worker, "x", *now, Duration::ZERO).await)
        .unwrap();
    let nodes = tx!(test.read, &NODES, [], |tx| tx.list_nodes().await).unwrap();
    assert_eq!(nodes.iter().map(|node| node.alive).collect::<Vec<_>>(), [false]);
    let (other, minute) = (WorkerId::new(&test.ambient), Duration::from_mins(1));
    let ends_in = async |me: WorkerId| tx!(test.read, &JOBS, [me], |tx| tx.next_heartbeat_end(*me).await).unwrap();
    assert_eq!(ends_in(other).await, Some(Duration::ZERO), "one has ended");
    assert_eq!(ends_in(worker).await, None, "nobody else is there");
    tx!(test.write_locked, &JOBS, [other, now, minute], |tx| tx.insert_worker(*other, "y", *now, *minute).await)
        .unwrap();
    assert!(ends_in(worker).await.is_some_and(|left| !left.is_zero() && left <= minute));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_reach_every_listening_node_in_order() {
    let Some(test) = TestStore::postgres().await else { return };
    let other = test.another_node().await;
    let mut here = test.store.listen(None).await.unwrap().unwrap();
    let mut there = other.listen(Some(&app_url(test.database().url()))).await.unwrap().unwrap();
    for text in ["one", "two"] {
        test.store.notify(text).await.unwrap();
    }
    for listener in [&mut here, &mut there] {
        for text in ["one", "two"] {
            let heard = tokio::time::timeout(PATIENCE, listener.next()).await.expect("a word");
            assert_eq!(heard.as_deref(), Some(text));
        }
    }
    let longest = "x".repeat(7_999);
    test.store.notify(&longest).await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, here.next()).await.expect("a word"), Some(longest));
    assert!(matches!(test.store.notify(&"x".repeat(8_000)).await, Err(StoreError::Misuse(_))));
    // A lost connection is told, not passed over.
    test.database().cut_connections().unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, here.next()).await.expect("an end"), None);
    let mut again = test.store.listen(None).await.unwrap().unwrap();
    test.store.notify("three").await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, again.next()).await.expect("a word").as_deref(), Some("three"));
}

#[tokio::test]
async fn sqlite_has_nobody_to_tell() {
    let test = TestStore::sqlite().await;
    assert!(test.store.listen(None).await.unwrap().is_none());
    test.store.notify("x").await.unwrap();
}

fn refusal(result: Result<Store, StoreError>) -> Option<String> {
    match result {
        Ok(_) => None,
        Err(StoreError::Refused(text)) => Some(text),
        Err(other) => panic!("{other:?}"),
    }
}

/// As a newer version would have left it: a migration that this binary does not know.
fn newer(name: &str) -> String {
    format!(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
         values (9999, '{name}', true, '', 1)"
    )
}

#[tokio::test]
async fn an_older_binary_starts_beside_what_says_so_and_nothing_else_on_postgres() {
    let Some(test) = TestStore::postgres().await else { return };
    let url = test.database().url().to_owned();
    let as_role = async || Store::open(postgres_config(Some(app_url(&url)), None)).await;
    let as_owner = async || Store::open(postgres_config(Some(app_url(&url)), Some(url.clone()))).await;
    test.database().execute(&newer("9999_scores_beside_0001")).unwrap();
    assert_eq!((refusal(as_role().await), refusal(as_owner().await)), (None, None));
    test.database().execute("update _sqlx_migrations set description = '9999_drops' where version = 9999").unwrap();
    for refused in [refusal(as_role().await), refusal(as_owner().await)] {
        let text = refused.expect("it does not start");
        assert!(text.contains("9999_drops") && text.contains("newer version"), "{text}");
    }
}

#[tokio::test]
async fn an_older_binary_starts_beside_what_says_so_and_nothing_else_on_sqlite() {
    let test = TestStore::sqlite().await;
    test.store.close().await;
    let change = async |sql: String| {
        let mut conn = test.raw_sqlite().await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut conn).await.unwrap();
        sqlx::Connection::close(conn).await.unwrap();
    };
    change(newer("9999_scores_beside_0001")).await;
    let store = Store::open(sqlite_config(test.dir())).await.unwrap();
    store.close().await;
    change("update _sqlx_migrations set description = '9999_drops' where version = 9999".to_owned()).await;
    let text = refusal(Store::open(sqlite_config(test.dir())).await).expect("it does not start");
    assert!(text.contains("9999_drops"), "{text}");
}

/// A node that was stopped inside a transaction holds rows until the database ends it: the rest of its work must not wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_nodes_open_transaction_holds_up_only_its_own_row() {
    let Some(test) = TestStore::postgres().await else { return };
    let tenant = test.tenant("acme").await;
    let (stopped, now) = (test.worker().await, test.ambient.now());
    for key in ["one", "two"] {
        let payload = JobPayload::AdvanceRun { run: tenant.run.id };
        let dedupe_key = Some(key.to_owned());
        let job = NewJob { payload, priority: 0, run_at: now, dedupe_key, attempts_max: 2, group: None };
        let ambient = test.ambient.clone();
        tx!(test.write, &tenant.scope(), [job, ambient], |tx| tx.enqueue(job, ambient).await).unwrap();
    }
    let held = tx!(test.write_locked, &JOBS, [stopped, now], |tx| {
        claim_any(tx, *stopped, Lane::Interactive, 9, *now, Duration::from_mins(1)).await
    })
    .unwrap();
    let mut conn = test.raw_postgres().await;
    sqlx::query("update worker set expires_at = clock_timestamp() - interval '1 second' where id = $1")
        .bind(stopped.uuid())
        .execute(&mut conn)
        .await
        .unwrap();
    sqlx::query("begin").execute(&mut conn).await.unwrap();
    let org = sqlx::query("select set_config('app.org_id', $1, true)").bind(tenant.org.uuid().to_string());
    org.execute(&mut conn).await.unwrap();
    let locking = sqlx::query("select id from job where id = $1 for update").bind(held[0].lease.job.uuid());
    assert_eq!(locking.fetch_all(&mut conn).await.unwrap().len(), 1);

    let me = WorkerId::new(&test.ambient);
    let recover = async || tx!(test.write_locked, &JOBS, [me, now], |tx| tx.recover_jobs(*me, *now).await).unwrap();
    assert_eq!(recover().await, held.len() as u64 - 1);
    sqlx::query("rollback").execute(&mut conn).await.unwrap();
    assert_eq!(recover().await, 1, "what was held up is taken by the next look");
}
