//! Buckets belong to nobody, and no scope but that of limits reaches them; lists of networks belong to their organization.

use bulkhead_model::allow_list::AllowList;
use bulkhead_model::permission::{SystemReason, SystemScope};
use bulkhead_model::rate::Rate;
use bulkhead_store::StoreError;

use crate::support::{LIMITS, TestStore};

on_both! {
    async fn buckets_need_the_scope_of_limits(test: TestStore) {
        let org = test.org("a").await;
        let (key, now, share) = ([7_u8; 16], test.ambient.now().as_micros(), Rate::per_minute(60, 30).share());
        for reason in [SystemReason::SignIn, SystemReason::Jobs, SystemReason::Admin, SystemReason::Worker, SystemReason::Accounts] {
            for within in [false, true] {
                let (system, own) = (SystemScope::new(reason), SystemScope::new(reason).for_org(org));
                macro_rules! refused {
                    ($call:expr) => {{
                        let result: Result<(), StoreError> = $call;
                        assert!(matches!(result, Err(StoreError::Misuse(_))), "{reason:?}: {result:?}");
                    }};
                }
                macro_rules! each {
                    ($scope:expr) => {
                        refused!(tx!(test.write, $scope, [key, share], |tx| tx.take_tokens(key, *share, (1, 1)).await.map(drop)));
                        refused!(tx!(test.write, $scope, [key, now], |tx| tx.save_bucket(key, *now, *now).await));
                        refused!(tx!(test.write, $scope, [now], |tx| tx.list_buckets(*now, 9).await.map(drop)));
                        refused!(tx!(test.write, $scope, [now], |tx| tx.remove_full_buckets(*now).await.map(drop)));
                    };
                }
                if within {
                    each!(&own);
                } else {
                    each!(&system);
                }
            }
        }
        let there = tx!(test.read, &LIMITS, [now], |tx| tx.list_buckets(*now, 9).await);
        assert!(there.unwrap().is_empty(), "and nothing was made");
    }
}

on_both! {
    async fn a_list_of_networks_is_its_organizations_own(test: TestStore) {
        let (a, b) = (test.tenant("a").await, test.org("b").await);
        let (of_b, now, list) = (crate::support::scope(b), test.ambient.now(), AllowList::read(&["10.0.0.0/8"]).unwrap());
        let seen = tx!(test.write, &of_b, [now, list], |tx| {
            let before = tx.load_allow_list().await?;
            // A's revision is no revision of B's.
            assert!(!tx.save_allow_list(list, 1, *now).await?);
            assert!(tx.save_allow_list(list, 0, *now).await?);
            assert!(!tx.save_allow_list(list, 0, *now).await?, "somebody else was first");
            Ok((before.revision, before.list.is_empty(), tx.load_allow_list().await?.revision))
        });
        assert_eq!(seen.unwrap(), (0, true, 1));
        let of_a = tx!(test.read, &a.scope(), [], |tx| tx.load_allow_list().await).unwrap();
        assert_eq!((of_a.list.entries(), of_a.revision), (vec!["192.0.2.0/24".to_owned()], 1));
    }
}
