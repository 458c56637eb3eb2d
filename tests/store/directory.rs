//! The data directory belongs to one process.

use std::process::{Command, Stdio};
use std::time::Duration;

use bulkhead_store::{Store, StoreError};
use bulkhead_test_support::wait_until;

use crate::support::{TestStore, scope, sqlite_config};

/// Set for the child of [`the_lock_goes_with_a_killed_process`]: the directory that it opens and holds.
const HOLD_VARIABLE: &str = "BULKHEAD_TEST_STORE_HOLD";

#[track_caller]
fn assert_in_use(result: Result<Store, StoreError>) {
    match result {
        Err(StoreError::Refused(text)) => {
            assert!(text.contains("is in use by another Bulkhead process: stop it, or go through its API"), "{text}");
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("two stores on one directory"),
    }
}

#[tokio::test]
async fn a_second_store_on_the_directory_is_refused_until_the_first_is_closed() {
    let test = TestStore::sqlite().await;
    assert_in_use(Store::open(sqlite_config(test.dir())).await);
    let org = test.org("acme").await;
    test.store.close().await;
    let again = Store::open(sqlite_config(test.dir())).await.unwrap();
    let found: Result<_, StoreError> =
        again.read(&scope(org), (), |tx, ()| Box::pin(async move { tx.require_org().await })).await;
    assert_eq!(found.unwrap().slug.as_str(), "acme");
    assert_in_use(Store::open(sqlite_config(test.dir())).await);
    // Dropped without a close: the writer finishes and lets go.
    drop(again);
    let mut opened = None;
    for _ in 0..500 {
        match Store::open(sqlite_config(test.dir())).await {
            Ok(store) => {
                opened = Some(store);
                break;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    opened.expect("the lock is given back").close().await;
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let Err(StoreError::Refused(text)) = Store::open(sqlite_config(&file.join("data"))).await else {
        panic!("it opened")
    };
    assert!(text.contains("cannot create") && text.contains("file/data"), "{text}");
}

#[tokio::test]
async fn a_changed_migration_is_refused() {
    let test = TestStore::sqlite().await;
    test.store.close().await;
    let mut conn = test.raw_sqlite().await;
    sqlx::query("update _sqlx_migrations set checksum = x'00'").execute(&mut conn).await.unwrap();
    drop(conn);
    let Err(StoreError::Refused(text)) = Store::open(sqlite_config(test.dir())).await else { panic!("it opened") };
    assert!(text.contains("the migrations did not apply"), "{text}");
}

/// Not a test of its own: what the child of the next one runs.
#[tokio::test]
async fn holds_the_directory_that_the_environment_names() {
    #[expect(clippy::disallowed_methods, reason = "the parent test speaks to its child by environment")]
    let Ok(dir) = std::env::var(HOLD_VARIABLE) else { return };
    let dir = std::path::PathBuf::from(dir);
    let store = Store::open(sqlite_config(&dir)).await.unwrap();
    let test_org = bulkhead_store::org::Org {
        id: bulkhead_model::id::OrgId::from_uuid(uuid::Uuid::from_u128(1)),
        slug: "acme".parse().unwrap(),
        name: "Acme".to_owned(),
        created_at: bulkhead_model::time::Timestamp::from_micros(0),
    };
    let written: Result<(), StoreError> = store
        .write(&crate::support::ADMIN, test_org, |tx, org| Box::pin(async move { tx.insert_org(org).await }))
        .await;
    written.unwrap();
    std::fs::write(dir.join("ready"), "").unwrap();
    tokio::time::sleep(Duration::from_mins(2)).await;
}

#[tokio::test]
async fn the_lock_goes_with_a_killed_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "directory::holds_the_directory_that_the_environment_names"])
        .env(HOLD_VARIABLE, dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ready = wait_until(Duration::from_mins(1), || dir.path().join("ready").exists());
    let while_held = Store::open(sqlite_config(dir.path())).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ready, "the child opened its store");
    assert_in_use(while_held);
    let store = Store::open(sqlite_config(dir.path())).await.unwrap();
    let org = bulkhead_model::id::OrgId::from_uuid(uuid::Uuid::from_u128(1));
    let found: Result<_, StoreError> =
        store.read(&scope(org), (), |tx, ()| Box::pin(async move { tx.require_org().await })).await;
    assert_eq!(found.unwrap().name, "Acme", "what was answered before the kill is there");
}
