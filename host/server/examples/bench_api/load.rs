//! Requests at a fixed rate, however long each takes: a slow answer delays no other request, and what one waits for its sender counts.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use bulkhead_test_support::measure::quantile;

use crate::client::Client;

/// Connections: so many requests are under way at once before one waits for another. With 200 people beside them they are fewer than a server
/// takes of one address where it may open 1,024 files.
const SENDERS: u32 = 32;

/// What is asked for again and again.
pub(crate) struct Asked<'a> {
    pub(crate) url: &'a str,
    pub(crate) path: &'a str,
    /// A header's name and value.
    pub(crate) header: (&'a str, &'a str),
}

/// How long answers took, in milliseconds from when each request was due.
pub(crate) struct Took(Vec<f64>);

impl Took {
    pub(crate) fn quantile(&mut self, share: f64) -> f64 {
        quantile(&mut self.0, share)
    }
}

/// Asks so often a second for so long. Every answer is a 200, or this is an error.
pub(crate) fn ask(asked: &Asked<'_>, per_s: u32, lasts_s: u32) -> Result<Took> {
    let (next, ready) = (AtomicU32::new(0), Barrier::new(SENDERS as usize));
    let parts: Vec<Result<Vec<f64>>> = std::thread::scope(|scope| {
        let send = || send(asked, per_s, per_s * lasts_s, &next, &ready);
        let senders: Vec<_> = (0..SENDERS).map(|_| scope.spawn(send)).collect();
        senders.into_iter().map(|sender| sender.join().unwrap_or_else(|_| bail!("a sender panicked"))).collect()
    });
    let mut all = Vec::new();
    for part in parts {
        all.extend(part?);
    }
    ensure!(!all.is_empty(), "nothing was asked");
    Ok(Took(all))
}

fn send(asked: &Asked<'_>, per_s: u32, total: u32, next: &AtomicU32, ready: &Barrier) -> Result<Vec<f64>> {
    let client = Client::new(asked.url);
    // Connecting is not what is measured. Whatever comes of it, the others wait here for everybody.
    let connected = client.get(asked.path, asked.header);
    ready.wait();
    connected?;
    let (began, mut took_ms) = (Instant::now(), Vec::new());
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= total {
            return Ok(took_ms);
        }
        let due = began + Duration::from_secs(1) * number / per_s;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        client.get(asked.path, asked.header)?;
        took_ms.push(due.elapsed().as_secs_f64() * 1e3);
    }
}
