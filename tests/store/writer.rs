//! SQLite's one writer: group commit, and the trap in it.

use std::time::Duration;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::permission::OrgScope;
use bulkhead_store::audit::AuditFilter;
use bulkhead_store::page::PageRequest;
use bulkhead_store::{StoreError, WriterStats};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::{TestStore, api_key, audit, scope, spawn};

/// A gate that keeps the writer inside a transaction until it is opened, so that what is started meanwhile waits together.
struct Gate {
    open: oneshot::Sender<()>,
    held: JoinHandle<Result<(), StoreError>>,
}

impl Gate {
    async fn shut(test: &TestStore, scope: &OrgScope) -> Self {
        let (open, opened) = oneshot::channel::<()>();
        let (entered, inside) = oneshot::channel::<()>();
        let hands = std::sync::Mutex::new(Some((entered, opened)));
        let (store, scope) = (test.store.clone(), scope.clone());
        let held = spawn(async move {
            store
                .write(&scope, hands, |_, hands| {
                    Box::pin(async move {
                        let hands = hands.lock().unwrap().take();
                        if let Some((entered, opened)) = hands {
                            entered.send(()).unwrap();
                            opened.await.ok();
                        }
                        Ok(())
                    })
                })
                .await
        });
        inside.await.unwrap();
        Self { open, held }
    }

    async fn release(self) {
        self.open.send(()).unwrap();
        self.held.await.unwrap().unwrap();
    }
}

/// A write of a mark, which is another row each time that the closure commits, and a value of so many bytes.
fn insert(test: &TestStore, scope: &OrgScope, digest: u8, bytes: usize) -> JoinHandle<Result<(), StoreError>> {
    let (store, scope, ambient) = (test.store.clone(), scope.clone(), test.ambient.clone());
    spawn(async move {
        store
            .write(&scope, ambient, move |tx, ambient| {
                Box::pin(async move {
                    tx.record_audit(&audit(EventType::SecretStored, &digest.to_string()), ambient).await?;
                    tx.insert_artifact(&[digest; 32], &vec![digest; bytes], ambient.now()).await
                })
            })
            .await
    })
}

/// Which of the rows are there, after opening the file anew. Each must have one mark: it was committed exactly once.
async fn present(test: &mut TestStore, scope: &OrgScope, digests: std::ops::Range<u8>) -> Vec<u8> {
    test.reopen().await;
    let found = tx!(test.read, scope, [digests], |tx| {
        let mut found = Vec::new();
        for digest in digests.clone() {
            let value = tx.load_artifact(&[digest; 32]).await?;
            let (action, target) = (Some("secret.stored".to_owned()), Some(digest.to_string()));
            let filter = AuditFilter { action, target, ..AuditFilter::default() };
            let marks = tx.list_audit(&filter, PageRequest::default()).await?;
            found.push((digest, value.is_some(), marks.items.len()));
        }
        Ok(found)
    });
    let found = found.unwrap();
    for (digest, is_there, marks) in &found {
        assert_eq!(*marks, usize::from(*is_there), "value {digest} was committed {marks} times: {found:?}");
    }
    found.into_iter().filter(|(_, is_there, _)| *is_there).map(|(digest, ..)| digest).collect()
}

fn stats(test: &TestStore) -> WriterStats {
    test.store.writer_stats().expect("SQLite has a writer")
}

/// Lets spawned writes reach the queue in their order.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(30)).await;
}

#[tokio::test]
async fn many_writers_share_few_commits() {
    let test = TestStore::sqlite().await;
    let scope = scope(test.org("acme").await);
    let before = stats(&test);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..40 {
        let (store, scope, ambient) = (test.store.clone(), scope.clone(), test.ambient.clone());
        writers.spawn(async move {
            for n in 0..10 {
                let key = api_key(&ambient, &format!("{writer} {n}"));
                let result: Result<(), StoreError> =
                    store.write(&scope, key, |tx, key| Box::pin(async move { tx.insert_api_key(key).await })).await;
                result.unwrap();
            }
        });
    }
    writers.join_all().await;
    let after = stats(&test);
    assert_eq!(after.writes - before.writes, 400);
    let commits = after.commits - before.commits;
    assert!(commits <= 200, "400 writes of 40 callers took {commits} commits");
    assert_eq!((after.replacements, after.reruns), (0, 0));
    let mut rows = 0;
    let mut before = None;
    loop {
        let page = PageRequest { before, limit: 200 };
        let found = tx!(test.read, &scope, [page], |tx| tx.list_api_keys(*page).await).unwrap();
        rows += found.items.len();
        before = found.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(rows, 400);
}

#[tokio::test]
async fn a_member_that_fails_or_panics_takes_nobody_along() {
    let mut test = TestStore::sqlite().await;
    let scope = scope(test.org("acme").await);
    let before = stats(&test);
    let gate = Gate::shut(&test, &scope).await;
    let good = insert(&test, &scope, 1, 10);
    settle().await;
    let store = test.store.clone();
    let its_scope = scope.clone();
    let failing: JoinHandle<Result<(), StoreError>> = spawn(async move {
        store
            .write(&its_scope, (), |tx, ()| {
                Box::pin(async move {
                    tx.insert_artifact(&[2; 32], b"", bulkhead_model::time::Timestamp::from_micros(0)).await?;
                    // What an earlier member of the group wrote is seen, since it comes first in every order.
                    assert!(tx.load_artifact(&[1; 32]).await?.is_some());
                    Err(StoreError::LostLease)
                })
            })
            .await
    });
    settle().await;
    let store = test.store.clone();
    let its_scope = scope.clone();
    let panicking: JoinHandle<Result<(), StoreError>> = spawn(async move {
        store
            .write(&its_scope, (), |tx, ()| {
                Box::pin(async move {
                    tx.insert_artifact(&[3; 32], b"", bulkhead_model::time::Timestamp::from_micros(0)).await?;
                    panic!("panics on purpose")
                })
            })
            .await
    });
    settle().await;
    let last = insert(&test, &scope, 4, 10);
    settle().await;
    gate.release().await;
    good.await.unwrap().unwrap();
    assert!(matches!(failing.await.unwrap(), Err(StoreError::LostLease)));
    assert!(matches!(panicking.await.unwrap(), Err(StoreError::Misuse(_))));
    last.await.unwrap().unwrap();
    let after = stats(&test);
    // The gate's own commit, one for the group that waited behind it, and perhaps one more: telling of the panic may outlast the
    // time that a group takes further members for.
    let commits = after.commits - before.commits;
    assert!((2..=3).contains(&commits), "one group, not a commit for each: {commits}");
    assert_eq!(after.replacements, 0, "on one connection");
    assert_eq!(present(&mut test, &scope, 0..6).await, [1, 4]);
}

/// The trap: the database reports a full disk inside a savepoint, which ends the whole transaction. Nobody may be answered
/// `Ok` for a row that is not there, and nothing may run in autocommit.
#[tokio::test]
async fn a_full_disk_inside_a_savepoint_costs_only_the_write_that_was_too_large() {
    let mut test = TestStore::sqlite().await;
    let scope = scope(test.org("acme").await);
    let before = stats(&test);
    let gate = Gate::shut(&test, &scope).await;
    test.store.fault_hook().fill_disk(true);
    let mut writes = Vec::new();
    for (digest, bytes) in [(1, 10), (2, 10), (3, 1 << 20), (4, 10), (5, 1 << 20), (6, 10)] {
        writes.push((digest, insert(&test, &scope, digest, bytes)));
        settle().await;
    }
    gate.release().await;
    let mut kept = Vec::new();
    for (digest, write) in writes {
        match write.await.unwrap() {
            Ok(()) => kept.push(digest),
            Err(StoreError::Unavailable(error)) => {
                let code = error.code().unwrap_or_default();
                assert_eq!(code, "13", "SQLITE_FULL, from the database itself: {error}");
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    let after = stats(&test);
    assert_eq!(kept, [1, 2, 4, 6]);
    assert!(after.replacements > before.replacements, "the connection was replaced");
    assert!(after.reruns >= 3, "the group ran again one by one: {after:?}");
    assert_eq!(present(&mut test, &scope, 0..8).await, kept, "after opening the file anew");

    // Space again: everything goes on.
    insert(&test, &scope, 7, 1 << 20).await.unwrap().unwrap();
    assert_eq!(present(&mut test, &scope, 0..8).await, [1, 2, 4, 6, 7]);
}

/// The same when the closure passes the error over and says `Ok`.
#[tokio::test]
async fn a_full_disk_that_is_passed_over_commits_nothing_in_autocommit() {
    let mut test = TestStore::sqlite().await;
    let scope = scope(test.org("acme").await);
    let gate = Gate::shut(&test, &scope).await;
    test.store.fault_hook().fill_disk(true);
    let first = insert(&test, &scope, 1, 10);
    settle().await;
    let (store, its_scope) = (test.store.clone(), scope.clone());
    let careless: JoinHandle<Result<(), StoreError>> = spawn(async move {
        let now = bulkhead_model::time::Timestamp::from_micros(0);
        store
            .write(&its_scope, (), move |tx, ()| {
                Box::pin(async move {
                    assert!(tx.insert_artifact(&[2; 32], &vec![2; 1 << 20], now).await.is_err());
                    // Would be a commit of its own on a connection that lost its transaction.
                    tx.insert_artifact(&[3; 32], b"small", now).await.ok();
                    Ok(())
                })
            })
            .await
    });
    settle().await;
    gate.release().await;
    first.await.unwrap().unwrap();
    assert!(matches!(careless.await.unwrap(), Err(StoreError::Misuse(_))));
    assert_eq!(present(&mut test, &scope, 0..5).await, [1]);
}

#[tokio::test]
async fn a_closure_that_takes_too_long_is_given_up_and_the_others_are_kept() {
    let mut test = TestStore::sqlite().await;
    let scope = scope(test.org("acme").await);
    let gate = Gate::shut(&test, &scope).await;
    let first = insert(&test, &scope, 1, 10);
    settle().await;
    let (store, its_scope) = (test.store.clone(), scope.clone());
    let slow: JoinHandle<Result<(), StoreError>> = spawn(async move {
        store
            .write(&its_scope, (), |tx, ()| {
                Box::pin(async move {
                    tx.insert_artifact(&[2; 32], b"", bulkhead_model::time::Timestamp::from_micros(0)).await?;
                    // The cap is ten seconds.
                    tokio::time::sleep(Duration::from_mins(1)).await;
                    Ok(())
                })
            })
            .await
    });
    settle().await;
    let last = insert(&test, &scope, 3, 10);
    settle().await;
    gate.release().await;
    first.await.unwrap().unwrap();
    assert!(matches!(slow.await.unwrap(), Err(StoreError::TimedOut)));
    last.await.unwrap().unwrap();
    assert_eq!(present(&mut test, &scope, 0..5).await, [1, 3]);
}

#[tokio::test]
async fn readers_do_not_wait_for_the_writer() {
    let test = TestStore::sqlite().await;
    let scope = scope(test.org("acme").await);
    let gate = Gate::shut(&test, &scope).await;
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (store, scope) = (test.store.clone(), scope.clone());
        readers.spawn(async move {
            let org: Result<_, StoreError> =
                store.read(&scope, (), |tx, ()| Box::pin(async move { tx.require_org().await })).await;
            org.unwrap().slug.to_string()
        });
    }
    assert!(readers.join_all().await.iter().all(|slug| slug == "acme"));
    assert!(!gate.held.is_finished());
    gate.release().await;
}

#[tokio::test]
async fn a_queue_that_is_full_refuses_at_once() {
    let test = TestStore::sqlite().await;
    let scope = scope(test.org("acme").await);
    let other = crate::support::scope(test.org("other").await);
    let gate = Gate::shut(&test, &scope).await;
    let mut writes = Vec::new();
    for number in 0..1_200 {
        // The one with much does not keep the other out.
        let scope = if number < 1_100 { scope.clone() } else { other.clone() };
        let store = test.store.clone();
        writes.push(spawn(async move {
            let result: Result<(), StoreError> = store.write(&scope, (), |_, ()| Box::pin(async { Ok(()) })).await;
            result
        }));
    }
    settle().await;
    gate.release().await;
    let (mut done, mut refused) = (0, 0);
    for write in writes {
        match write.await.unwrap() {
            Ok(()) => done += 1,
            Err(StoreError::TimedOut) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!((done, refused), (1_024 + 100, 76));
}
