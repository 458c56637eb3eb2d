//! Buckets belong to nobody, and no scope but that of limits reaches them; lists of networks belong to their organization.

use bulkhead_model::allow_list::AllowList;
use bulkhead_model::block::Block;
use bulkhead_model::permission::{SystemReason, SystemScope};
use bulkhead_model::rate::Rate;
use bulkhead_store::StoreError;
use bulkhead_store::rate::TokenAsk;

use crate::support::LIMITS;

on_both! {
    async fn buckets_need_the_scope_of_limits(test: TestStore) {
        let org = test.org("a").await;
        let at = test.ambient.now();
        let block = Block::next(None, at).unwrap();
        let (key, now) = ([7_u8; 16], test.ambient.now().as_micros());
        let ask = TokenAsk { key, share: Rate::per_minute(60, 30).share(), least: 1, most: 1 };
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
                        refused!(tx!(test.write, $scope, [ask], |tx| tx.take_tokens(&[*ask]).await.map(drop)));
                        refused!(tx!(test.write, $scope, [key, now], |tx| tx.save_bucket(key, *now, *now).await));
                        refused!(tx!(test.write, $scope, [now], |tx| tx.list_buckets(*now, 9).await.map(drop)));
                        refused!(tx!(test.write, $scope, [now], |tx| tx.remove_full_buckets(*now, 0).await.map(drop)));
                    };
                }
                if within {
                    each!(&own);
                } else {
                    each!(&system);
                }
                macro_rules! each_block {
                    ($scope:expr) => {
                        refused!(tx!(test.write, $scope, [], |tx| tx.load_address_block("192.0.2.1").await.map(drop)));
                        refused!(tx!(test.write, $scope, [block], |tx| tx.save_address_block("192.0.2.1", block).await));
                        refused!(tx!(test.write, $scope, [], |tx| tx.delete_address_block("192.0.2.1").await.map(drop)));
                        refused!(tx!(test.write, $scope, [at], |tx| tx.list_address_blocks(*at, 9).await.map(drop)));
                        refused!(tx!(test.write, $scope, [at], |tx| tx.remove_address_blocks(*at).await.map(drop)));
                    };
                }
                refused!(tx!(test.write, &system, [at], |tx| tx.list_all_key_blocks(*at, 9).await.map(drop)));
                refused!(tx!(test.write, &own, [at], |tx| tx.list_all_key_blocks(*at, 9).await.map(drop)));
                if within {
                    each_block!(&own);
                } else if reason != SystemReason::Admin {
                    each_block!(&system);
                }
            }
        }
        let there = tx!(test.read, &LIMITS, [now], |tx| tx.list_buckets(*now, 9).await);
        assert!(there.unwrap().is_empty(), "and nothing was made");
    }
}

on_both! {
    async fn blocks_of_keys_are_their_organizations_own(test: TestStore) {
        let (a, b) = (test.tenant("a").await, test.org("b").await);
        let (of_b, now, key) = (crate::support::scope(b), test.ambient.now(), a.api_key.id);
        tx!(test.write, &of_b, [now, key], |tx| {
            assert!(tx.load_key_block(*key).await?.is_none());
            assert!(tx.list_key_blocks(*now, 9).await?.is_empty());
            assert!(!tx.delete_key_block(*key).await?);
            Ok(())
        })
        .unwrap();
        let block = Block::next(None, now).unwrap();
        let foreign = tx!(test.write, &of_b, [key, block], |tx| tx.save_key_block(*key, block).await);
        assert!(super::refused(&foreign), "{foreign:?}");
        let all = tx!(test.read, &LIMITS, [now], |tx| tx.list_all_key_blocks(*now, 9).await).unwrap();
        assert_eq!((all.len(), all[0].org, all[0].key, all[0].block), (1, a.org, key, block));
    }

    async fn a_list_of_networks_is_its_organizations_own(test: TestStore) {
        let (a, b) = (test.tenant("a").await, test.org("b").await);
        let (of_b, now, list) = (crate::support::scope(b), test.ambient.now(), AllowList::read(&["10.0.0.0/8"]).unwrap());
        let seen = tx!(test.write, &of_b, [now, list], |tx| {
            let before = tx.load_allow_list().await?;
            assert_eq!(tx.clear_allow_list(*now).await?, None);
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
