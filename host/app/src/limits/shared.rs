//! What this node asks of the buckets that nodes share: one question at a time. What is asked for meanwhile waits and goes with the next, all
//! in one transaction and one round trip, so that however many requests come, the database sees one connection of them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use bulkhead_store::rate::{BucketKey, Taking, TokenAsk};
use bulkhead_store::{Store, StoreError};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::LIMITS;

/// Requests that may wait for an answer; whoever finds no room is counted by this node alone.
const WAITING_MAX: usize = 4_096;
/// Requests whose asks go together.
const TOGETHER_MAX: usize = 256;
/// A database that takes longer does not answer, as far as requests that wait for it go.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// One that failed is not asked again for so long.
const AWAY_FOR: Duration = Duration::from_secs(1);

/// A request's asks, each of another bucket.
struct Waiting {
    asks: Vec<TokenAsk>,
    answer: oneshot::Sender<Vec<Taking>>,
}

pub(super) struct Shared {
    sender: mpsc::Sender<Waiting>,
    receiver: Mutex<mpsc::Receiver<Waiting>>,
    /// Whether somebody carries asks.
    is_served: watch::Sender<bool>,
}

/// Somebody carries asks for as long as this is there, however it ends.
struct Serving<'a>(&'a watch::Sender<bool>);

impl<'a> Serving<'a> {
    fn begin(is_served: &'a watch::Sender<bool>) -> Self {
        is_served.send_replace(true);
        Self(is_served)
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

impl Shared {
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        Self { sender, receiver: Mutex::new(receiver), is_served: watch::Sender::new(false) }
    }

    /// Waits until somebody carries asks.
    pub(super) async fn wait_until_served(&self) {
        // The sender is there as long as this is.
        self.is_served.subscribe().wait_for(|is_served| *is_served).await.ok();
    }

    /// Takes tokens; `None` where the database does not answer in time, or too many wait already.
    pub(super) async fn take(&self, asks: Vec<TokenAsk>) -> Option<Vec<Taking>> {
        if !*self.is_served.borrow() {
            // Nobody carries asks: it begins, or has ended.
            return None;
        }
        let (answer, answered) = oneshot::channel();
        self.sender.try_send(Waiting { asks, answer }).ok()?;
        tokio::time::timeout(ANSWER_MAX, answered).await.ok()?.ok()
    }

    /// Carries asks to the database until it is told to stop.
    pub(super) async fn serve(&self, store: &Store, stop: &CancellationToken) {
        let mut receiver = self.receiver.lock().await;
        let _serving = Serving::begin(&self.is_served);
        let mut waiting = Vec::with_capacity(TOGETHER_MAX);
        loop {
            tokio::select! {
                _ = receiver.recv_many(&mut waiting, TOGETHER_MAX) => {}
                () = stop.cancelled() => return,
            }
            // Whoever went away meanwhile takes nothing.
            waiting.retain(|waiting| !waiting.answer.is_closed());
            let asks = together(waiting.iter().map(|waiting| &waiting.asks));
            if asks.is_empty() {
                continue;
            }
            match ask(store, asks.clone()).await {
                Ok(takings) => answer(&asks, takings, waiting.drain(..)),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "shared rate limits cannot be counted");
                    waiting.clear();
                    // Those who ask meanwhile are told at once that nobody answers.
                    let until = tokio::time::Instant::now() + AWAY_FOR;
                    while tokio::time::timeout_at(until, receiver.recv()).await.is_ok_and(|it| it.is_some()) {}
                }
            }
        }
    }
}

async fn ask(store: &Store, asks: Vec<TokenAsk>) -> Result<Vec<Taking>, StoreError> {
    metrics::counter!("bulkhead_rate_limit_shared_total").increment(1);
    let taking = store.write_locked(&LIMITS, asks, |tx, asks| Box::pin(async move { tx.take_tokens(asks).await }));
    taking.await
}

/// One ask for each bucket, whoever wants something of it: at least what the most modest needs, at most what all want.
fn together<'a>(requests: impl Iterator<Item = &'a Vec<TokenAsk>>) -> Vec<TokenAsk> {
    let mut buckets: BTreeMap<BucketKey, TokenAsk> = BTreeMap::new();
    for ask in requests.flatten() {
        let most = ask.most.max(ask.least);
        match buckets.entry(ask.key) {
            Entry::Vacant(entry) => {
                entry.insert(TokenAsk { most, ..*ask });
            }
            Entry::Occupied(mut entry) => {
                let of_bucket = entry.get_mut();
                of_bucket.least = of_bucket.least.min(ask.least);
                of_bucket.most = of_bucket.most.saturating_add(most);
            }
        }
    }
    buckets.into_values().collect()
}

/// Deals what was taken out: first to each in order what it needs, then to each what it would like to hold.
fn deal(taken: u32, asks: &[TokenAsk]) -> Vec<Option<u32>> {
    let mut left = taken;
    let mut dealt: Vec<Option<u32>> = Vec::with_capacity(asks.len());
    for ask in asks {
        let given = (left >= ask.least).then_some(ask.least);
        left -= given.unwrap_or_default();
        dealt.push(given);
    }
    for (given, ask) in dealt.iter_mut().zip(asks) {
        if let Some(given) = given {
            let more = ask.most.saturating_sub(ask.least).min(left);
            *given += more;
            left -= more;
        }
    }
    dealt
}

fn answer(asks: &[TokenAsk], takings: Vec<Taking>, waiting: impl Iterator<Item = Waiting>) {
    let waiting: Vec<Waiting> = waiting.collect();
    let mut of_bucket: BTreeMap<BucketKey, (Taking, std::vec::IntoIter<Option<u32>>)> = BTreeMap::new();
    for (ask, taking) in asks.iter().zip(takings) {
        let wanted: Vec<TokenAsk> =
            waiting.iter().flat_map(|waiting| &waiting.asks).filter(|it| it.key == ask.key).copied().collect();
        let dealt = deal(taking.taken.unwrap_or_default(), &wanted);
        of_bucket.insert(ask.key, (taking, dealt.into_iter()));
    }
    for Waiting { asks, answer } in waiting {
        let takings: Option<Vec<Taking>> = asks
            .iter()
            .map(|ask| {
                let (taking, dealt) = of_bucket.get_mut(&ask.key)?;
                Some(Taking { taken: dealt.next().flatten(), ..*taking })
            })
            .collect();
        // Who went away has taken what nobody uses: less passes than might, for a second.
        if let Some(takings) = takings {
            answer.send(takings).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_model::rate::Rate;
    use proptest::prelude::*;

    use super::*;

    fn ask_of(bucket: u8, least: u32, most: u32) -> TokenAsk {
        TokenAsk { key: [bucket; 16], share: Rate::per_minute(600, 100).share(), least, most }
    }

    #[test]
    fn each_bucket_is_asked_for_once_in_the_order_of_keys() {
        let requests = [vec![ask_of(9, 1, 3), ask_of(2, 1, 1)], vec![ask_of(2, 2, 5)], vec![ask_of(9, 10, 1)]];
        assert_eq!(together(requests.iter()), [ask_of(2, 1, 6), ask_of(9, 1, 13)]);
    }

    proptest! {
        #[test]
        fn no_more_is_dealt_than_was_taken_and_nobody_gets_half(
            taken in 0_u32..50, wanted in proptest::collection::vec((1_u32..10, 0_u32..20), 0..12),
        ) {
            let asks: Vec<_> = wanted.iter().map(|(least, most)| ask_of(1, *least, *most)).collect();
            let dealt = deal(taken, &asks);
            prop_assert_eq!(dealt.len(), asks.len());
            prop_assert!(dealt.iter().flatten().sum::<u32>() <= taken);
            for (given, ask) in dealt.iter().zip(&asks) {
                prop_assert!(given.is_none_or(|given| given >= ask.least && given <= ask.most.max(ask.least)));
            }
            // Where all needs can be met they are.
            if asks.iter().map(|ask| ask.least).sum::<u32>() <= taken {
                prop_assert!(dealt.iter().all(Option::is_some));
            }
        }
    }
}
