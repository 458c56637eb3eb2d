//! Token buckets in the database: what is written down comes back, and the statement that nodes take tokens with does what the rule says.

use std::time::Duration;

use bulkhead_model::block::Block;
use bulkhead_model::rate::{Bucket, Rate, Share};
use bulkhead_store::StoreError;
use bulkhead_store::rate::{BucketKey, Taking, TokenAsk};

use crate::support::{LIMITS, TestStore};

async fn take(test: &TestStore, key: BucketKey, share: Share, (least, most): (u32, u32)) -> Taking {
    take_all(test, vec![TokenAsk { key, share, least, most }]).await[0]
}

async fn take_all(test: &TestStore, asks: Vec<TokenAsk>) -> Vec<Taking> {
    tx!(test.write_locked, &LIMITS, [asks], |tx| tx.take_tokens(asks).await).unwrap()
}

on_both! {
    async fn what_is_written_down_comes_back_until_it_is_full(test: TestStore) {
        let now = test.ambient.now().as_micros();
        tx!(test.write, &LIMITS, [now], |tx| {
            tx.save_bucket(&[1; 16], *now, *now + 10).await?;
            tx.save_bucket(&[2; 16], *now, *now + 30).await?;
            tx.save_bucket(&[3; 16], *now, *now + 20).await?;
            tx.save_bucket(&[1; 16], *now, *now + 5).await
        })
        .unwrap();
        let (listed, first, later) = tx!(test.read, &LIMITS, [now], |tx| {
            Ok((tx.list_buckets(*now, 9).await?, tx.list_buckets(*now, 1).await?, tx.list_buckets(*now + 5, 9).await?.len()))
        })
        .unwrap();
        assert_eq!(listed, [([2; 16], now + 30), ([3; 16], now + 20), ([1; 16], now + 5)]);
        assert_eq!((first.len(), later), (1, 2));
        let removed = tx!(test.write, &LIMITS, [now], |tx| tx.remove_full_buckets(*now + 50, 30).await);
        // PostgreSQL goes by its own clock, for which all of this is long ago.
        let expected = if test.store.is_postgres() { 3 } else { 1 };
        assert_eq!(removed.unwrap(), expected);
    }
}

on_both! {
    async fn blocks_come_back_until_they_end(test: TestStore) {
        let now = test.ambient.now();
        let (first, after) = (Block::next(None, now).unwrap(), now.plus(Duration::from_mins(15)));
        tx!(test.write, &LIMITS, [first, after], |tx| {
            tx.save_address_block("192.0.2.1", first).await?;
            tx.save_address_block("2001:db8::/64", &Block::next(None, *after).unwrap()).await
        })
        .unwrap();
        let second = Block::next(Some(first), after).unwrap();
        let (loaded, listed, later, removed, gone) = tx!(test.write, &LIMITS, [first, second, after], |tx| {
            let loaded = tx.load_address_block("192.0.2.1").await?;
            let listed = tx.list_address_blocks(first.placed_at, 9).await?.len();
            let later = tx.list_address_blocks(*after, 9).await?;
            tx.save_address_block("192.0.2.1", second).await?;
            let removed = tx.remove_address_blocks(second.ends_at).await?;
            Ok((loaded, listed, later, removed, tx.delete_address_block("192.0.2.1").await?))
        })
        .unwrap();
        assert_eq!((loaded, listed), (Some(first), 2));
        assert_eq!((later.len(), later[0].0.as_str()), (1, "2001:db8::/64"));
        assert_eq!((removed, gone), (1, true));
    }
}

#[tokio::test]
async fn a_process_alone_shares_no_bucket() {
    let test = TestStore::sqlite().await;
    let ask = TokenAsk { key: [1; 16], share: Rate::per_minute(60, 30).share(), least: 1, most: 1 };
    let result = tx!(test.write, &LIMITS, [ask], |tx| tx.take_tokens(&[*ask]).await);
    assert!(matches!(result, Err(StoreError::Misuse(_))), "{result:?}");
}

/// The statement against the rule, moment for moment by the database's clock.
#[tokio::test]
async fn the_statement_does_what_the_rule_says() {
    let Some(test) = TestStore::postgres().await else { return };
    for (n, rate) in [(1, Rate::per_minute(600, 100)), (2, Rate::per_minute(6_000, 5)), (3, Rate::per_hour(3, 3))] {
        let (key, share, mut model) = ([n; 16], rate.share(), Bucket::FULL);
        for turn in 0..60_u32 {
            let wanted = (share.cost(1 + turn % 4), 1 + turn % 13);
            let Taking { taken, now_micros, full_at_micros } = take(&test, key, share, wanted).await;
            assert_eq!(taken, share.take(&mut model, wanted, now_micros), "turn {turn} of {rate:?}");
            if taken.is_some() {
                assert_eq!(full_at_micros, model.full_at_micros, "turn {turn} of {rate:?}");
            } else {
                let wait = share.wait(full_at_micros, wanted.0, now_micros);
                assert!(wait > Duration::ZERO && wait <= Duration::from_micros(share.full_micros.unsigned_abs() * 2));
            }
            if turn % 10 == 9 {
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
        }
    }
}

/// What one bucket lacks takes nothing from another, and the answers are in the order of the asks.
#[tokio::test]
async fn several_buckets_are_asked_at_once() {
    let Some(test) = TestStore::postgres().await else { return };
    let share = Rate::per_hour(60, 5).share();
    let ask = |n: u8, least, most| TokenAsk { key: [n; 16], share, least, most };
    let takings = take_all(&test, vec![ask(7, 1, 2), ask(1, 5, 9), ask(4, 6, 6)]).await;
    assert_eq!(takings.iter().map(|taking| taking.taken).collect::<Vec<_>>(), [Some(2), Some(5), Some(5)]);
    let takings = take_all(&test, vec![ask(4, 1, 1), ask(7, 3, 9)]).await;
    assert_eq!(takings.iter().map(|taking| taking.taken).collect::<Vec<_>>(), [None, Some(3)]);
    assert!(take_all(&test, Vec::new()).await.is_empty());
    // What the database's clock says is full for long enough goes, whatever this node's clock says.
    let ahead = test.ambient.now().as_micros() + 86_400_000_000;
    let removed = tx!(test.write_locked, &LIMITS, [ahead], |tx| tx.remove_full_buckets(*ahead, 60_000_000).await);
    assert_eq!(removed.unwrap(), 0);
}

/// Section e: clock skew. What another clock or a larger policy left is an empty bucket, not one that is empty for a day.
#[tokio::test]
async fn a_row_from_the_future_is_an_empty_bucket() {
    let Some(test) = TestStore::postgres().await else { return };
    let (key, share) = ([9; 16], Rate { quota: 1_000, window_s: 1, burst: 10 }.share());
    tx!(test.write, &LIMITS, [key], |tx| tx.save_bucket(key, 0, i64::MAX / 2).await).unwrap();
    let Taking { taken, now_micros, full_at_micros } = take(&test, key, share, (1, 1)).await;
    assert_eq!((taken, full_at_micros), (None, now_micros + share.full_micros));
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(take(&test, key, share, (1, 1)).await.taken, Some(1));
}
