//! What a transaction promises on both databases.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::grant::GrantVersion;
use bulkhead_store::audit::AuditFilter;
use bulkhead_store::page::PageRequest;
use bulkhead_store::{Store, StoreError, TxError};

use crate::support::{Tenant, TestStore, api_key, audit, scope};

/// A use case's own error, as the application has them.
#[derive(Debug)]
enum CaseError {
    Own,
    Store(StoreError),
}

impl From<StoreError> for CaseError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl TxError for CaseError {
    fn store(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            Self::Own => None,
        }
    }
}

/// How many keys and audit entries there are.
async fn counts(test: &TestStore, tenant: &Tenant) -> (usize, usize) {
    tx!(test.read, &tenant.scope(), [], |tx| {
        let keys = tx.list_api_keys(PageRequest::default()).await?.items.len();
        Ok((keys, tx.list_audit(&AuditFilter::default(), PageRequest::default()).await?.items.len()))
    })
    .unwrap()
}

/// What each way of beginning answers.
async fn nested(store: &Store, scope: &bulkhead_model::permission::OrgScope) -> [Result<(), StoreError>; 3] {
    [
        store.write(scope, (), |_, ()| Box::pin(async { Ok(()) })).await,
        store.write_locked(scope, (), |_, ()| Box::pin(async { Ok(()) })).await,
        store.read(scope, (), |_, ()| Box::pin(async { Ok(()) })).await,
    ]
}

on_both! {
    async fn audit_is_written_with_the_change_or_not_at_all(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let before = counts(&test, &tenant).await;
        let key = api_key(&test.ambient, "second");
        let args = (key.clone(), audit(EventType::ApiKeyCreated, "x"), test.ambient.clone());
        let result: Result<(), CaseError> = test
            .store
            .write(&tenant.scope(), args.clone(), |tx, (key, event, ambient)| {
                Box::pin(async move {
                    tx.insert_api_key(key).await?;
                    tx.record_audit(event, ambient).await?;
                    Err(CaseError::Own)
                })
            })
            .await;
        assert!(matches!(result, Err(CaseError::Own)));
        assert_eq!(counts(&test, &tenant).await, before);

        let result: Result<(), CaseError> = test
            .store
            .write(&tenant.scope(), args, |tx, (key, event, ambient)| {
                Box::pin(async move {
                    tx.insert_api_key(key).await?;
                    Ok(tx.record_audit(event, ambient).await?)
                })
            })
            .await;
        result.unwrap();
        assert_eq!(counts(&test, &tenant).await, (before.0 + 1, before.1 + 1));
    }

    async fn a_failed_statement_that_is_passed_over_commits_nothing(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let before = counts(&test, &tenant).await;
        let (twin, other) = (tenant.api_key.clone(), api_key(&test.ambient, "other"));
        let result = tx!(test.write, &tenant.scope(), [twin, other], |tx| {
            tx.insert_api_key(other).await?;
            assert!(matches!(tx.insert_api_key(twin).await, Err(StoreError::Conflict { .. })));
            Ok(())
        });
        assert!(matches!(result, Err(StoreError::Misuse(_))), "{result:?}");
        let result = tx!(test.write, &tenant.scope(), [twin, other], |tx| {
            assert!(tx.insert_api_key(twin).await.is_err());
            tx.insert_api_key(other).await
        });
        assert!(matches!(result, Err(StoreError::Misuse(_))), "{result:?}");
        assert_eq!(counts(&test, &tenant).await, before);
    }

    async fn a_statement_whose_future_is_dropped_commits_nothing(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let before = counts(&test, &tenant).await;
        let (one, other) = (api_key(&test.ambient, "one"), api_key(&test.ambient, "other"));
        let result = tx!(test.write, &tenant.scope(), [one, other], |tx| {
            // Polled once: the statement is on its way, and then forgotten.
            let forgotten = tokio::time::timeout(Duration::ZERO, tx.insert_api_key(one)).await;
            assert!(forgotten.is_err(), "the database answered at once, so this test shows nothing");
            tx.insert_api_key(other).await
        });
        assert!(matches!(result, Err(StoreError::Misuse(_))), "{result:?}");
        assert_eq!(counts(&test, &tenant).await, before);
    }

    async fn a_panic_rolls_back_and_hurts_nobody(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let before = counts(&test, &tenant).await;
        let key = api_key(&test.ambient, "second");
        let inside = tx!(test.write, &tenant.scope(), [key], |tx| {
            tx.insert_api_key(key).await?;
            assert!(key.name.is_empty(), "panics on purpose");
            Ok(())
        });
        assert!(matches!(inside, Err(StoreError::Misuse("the write panicked"))), "{inside:?}");
        let before_its_future: Result<(), StoreError> =
            test.store.write(&tenant.scope(), (), |_, ()| panic!("panics on purpose")).await;
        assert!(matches!(before_its_future, Err(StoreError::Misuse("the write panicked"))), "{before_its_future:?}");
        assert_eq!(counts(&test, &tenant).await, before);
        tx!(test.write, &tenant.scope(), [key], |tx| tx.insert_api_key(key).await).unwrap();
        assert_eq!(counts(&test, &tenant).await, (before.0 + 1, before.1));
    }

    async fn a_transaction_inside_a_transaction_is_a_typed_error(test: TestStore) {
        let scope = scope(test.org("acme").await);
        let store = test.store.clone();
        let in_write = tx!(test.write, &scope, [store, scope], |_tx| Ok(nested(store, scope).await)).unwrap();
        let in_read = tx!(test.read, &scope, [store, scope], |_tx| Ok(nested(store, scope).await)).unwrap();
        for result in in_write.into_iter().chain(in_read) {
            assert!(matches!(result, Err(StoreError::Misuse("a transaction inside a transaction"))), "{result:?}");
        }
        for result in nested(&store, &scope).await {
            result.unwrap();
        }
    }

    async fn a_read_changes_nothing(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let before = counts(&test, &tenant).await;
        let key = api_key(&test.ambient, "second");
        assert!(tx!(test.read, &tenant.scope(), [key], |tx| tx.insert_api_key(key).await).is_err());
        assert_eq!(counts(&test, &tenant).await, before);
    }

    async fn a_read_sees_one_moment(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (store, scope, key) = (test.store.clone(), tenant.scope(), api_key(&test.ambient, "second"));
        let (first, second) = tx!(test.read, &tenant.scope(), [store, scope, key], |tx| {
            let first = tx.list_api_keys(PageRequest::default()).await?.items.len();
            // Another task commits in between.
            let (store, scope, key) = (store.clone(), scope.clone(), key.clone());
            let other = async move {
                store.write(&scope, key, |tx, key| Box::pin(async move { tx.insert_api_key(key).await })).await
            };
            tokio::task::JoinSet::from_iter([other]).join_next().await.unwrap().unwrap()?;
            Ok((first, tx.list_api_keys(PageRequest::default()).await?.items.len()))
        })
        .unwrap();
        assert_eq!((first, second), (1, 1));
        assert_eq!(counts(&test, &tenant).await.0, 2);
    }

    async fn nothing_is_lost_between_writers_of_one_row(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let mut writers = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (store, tenant) = (test.store.clone(), tenant.clone());
            writers.spawn(async move {
                let id = tenant.installation.id;
                let result: Result<bool, StoreError> = store
                    .write(&tenant.scope(), id, |tx, id| {
                        Box::pin(async move {
                            let seen = tx.require_installation(*id).await?;
                            tx.update_installation(&seen, seen.grant_version).await
                        })
                    })
                    .await;
                result
            });
        }
        let (mut saved, mut contended) = (0, 0);
        while let Some(result) = writers.join_next().await {
            match result.unwrap() {
                Ok(true) => saved += 1,
                // Told, after all retries: the caller knows that nothing happened.
                Err(StoreError::Contended(_)) => contended += 1,
                other => panic!("{other:?}"),
            }
        }
        let id = tenant.installation.id;
        let found = tx!(test.read, &tenant.scope(), [id], |tx| tx.require_installation(*id).await).unwrap();
        assert_eq!(found.grant_version, GrantVersion(1 + saved));
        assert_eq!(saved + contended, 8);
        assert!(saved >= 4, "only {saved} of 8 got through");
    }

    async fn a_closed_store_says_so(test: TestStore) {
        let scope = scope(test.org("acme").await);
        test.store.close().await;
        let write = tx!(test.write, &scope, [], |_tx| Ok(()));
        let read = tx!(test.read, &scope, [], |_tx| Ok(()));
        for result in [write, read] {
            assert!(matches!(result, Err(StoreError::Unavailable(_))), "{result:?}");
        }
        test.store.close().await;
    }

    async fn writes_before_a_close_are_kept(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let runs = Arc::new(AtomicU32::new(0));
        let mut writers = tokio::task::JoinSet::new();
        for n in 0..20 {
            let (store, scope, key) = (test.store.clone(), tenant.scope(), api_key(&test.ambient, &n.to_string()));
            let runs = runs.clone();
            writers.spawn(async move {
                let result: Result<(), StoreError> =
                    store.write(&scope, key, |tx, key| Box::pin(async move { tx.insert_api_key(key).await })).await;
                if result.is_ok() {
                    runs.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut test = test;
        test.reopen().await;
        writers.join_all().await;
        let expected = usize::try_from(runs.load(Ordering::SeqCst)).unwrap() + 1;
        assert_eq!(counts(&test, &tenant).await.0, expected);
    }

    async fn a_closure_that_takes_too_long_is_given_up(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let before = counts(&test, &tenant).await;
        let key = api_key(&test.ambient, "second");
        let result = tx!(test.write, &tenant.scope(), [key], |tx| {
            tx.insert_api_key(key).await?;
            // The cap is ten seconds.
            tokio::time::sleep(Duration::from_mins(1)).await;
            Ok(())
        });
        assert!(matches!(result, Err(StoreError::TimedOut)), "{result:?}");
        assert_eq!(counts(&test, &tenant).await, before);
        tx!(test.write, &tenant.scope(), [key], |tx| tx.insert_api_key(key).await).unwrap();
    }
}
