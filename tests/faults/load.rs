//! Senders that behave as honest ones do: they repeat a delivery, under the same id, until it is accepted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::site::{Client, Site};

/// Between two deliveries of one sender.
const PAUSE: Duration = Duration::from_millis(25);
/// Between two tries of one delivery.
const PAUSE_AGAIN: Duration = Duration::from_millis(40);
/// Runs that may be under way: beyond them senders wait, so that a slow machine falls behind by a bounded amount.
const UNDER_WAY_MAX: usize = 80;
/// A delivery that nobody accepts in this time is a finding.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(90);

struct Shared {
    client: Client,
    hooks: Vec<String>,
    stop: AtomicBool,
    next: AtomicU64,
    finished: AtomicUsize,
    accepted: Mutex<BTreeMap<String, String>>,
    findings: Mutex<Vec<String>>,
    tries: AtomicU64,
}

/// Senders at work.
pub(crate) struct Load {
    shared: Arc<Shared>,
    senders: Vec<JoinHandle<()>>,
}

/// What became of the deliveries.
pub(crate) struct Sent {
    /// The run of each delivery.
    pub(crate) runs: BTreeMap<String, String>,
    pub(crate) findings: Vec<String>,
    pub(crate) tries: u64,
}

impl Load {
    pub(crate) fn start(site: &Site, senders: usize) -> Self {
        let shared = Arc::new(Shared {
            client: site.client.clone(),
            hooks: site.nodes.iter().map(|node| node.url(&site.hook)).collect(),
            stop: AtomicBool::new(false),
            next: AtomicU64::new(0),
            finished: AtomicUsize::new(0),
            accepted: Mutex::default(),
            findings: Mutex::default(),
            tries: AtomicU64::new(0),
        });
        let senders = (0..senders)
            .map(|_| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.send())
            })
            .collect();
        Self { shared, senders }
    }

    /// Tells the senders how many runs have come to their last step.
    pub(crate) fn finished(&self, runs: usize) {
        self.shared.finished.store(runs, Ordering::Relaxed);
    }

    /// Lets each sender bring its last delivery to its end.
    pub(crate) fn stop(self) -> Sent {
        self.shared.stop.store(true, Ordering::Relaxed);
        for sender in self.senders {
            sender.join().unwrap();
        }
        let runs = std::mem::take(&mut *self.shared.accepted.lock().unwrap());
        let findings = std::mem::take(&mut *self.shared.findings.lock().unwrap());
        Sent { runs, findings, tries: self.shared.tries.load(Ordering::Relaxed) }
    }
}

impl Shared {
    fn send(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(PAUSE);
            let accepted = self.accepted.lock().unwrap().len();
            if accepted.saturating_sub(self.finished.load(Ordering::Relaxed)) >= UNDER_WAY_MAX {
                continue;
            }
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(run) = self.deliver(number) else { return };
            // Senders repeat what was accepted too, when the answer got lost: now and then this one does for no reason.
            if number.is_multiple_of(7)
                && let Some(again) = self.deliver(number)
                && again != run
            {
                self.finding(format!("delivery {number} is run {run} and run {again}"));
            }
            self.accepted.lock().unwrap().insert(format!("d-{number}"), run);
        }
    }

    fn finding(&self, text: String) {
        self.findings.lock().unwrap().push(text);
    }

    fn deliver(&self, number: u64) -> Option<String> {
        let body = json!({ "n": number });
        let began = Instant::now();
        for turn in number.. {
            let hook = &self.hooks[usize::try_from(turn).unwrap() % self.hooks.len()];
            self.tries.fetch_add(1, Ordering::Relaxed);
            match self.shared_answer(hook, number, &body) {
                Ok(Some(run)) => return Some(run),
                Ok(None) if began.elapsed() < ACCEPTED_WITHIN => std::thread::sleep(PAUSE_AGAIN),
                Ok(None) => {
                    self.finding(format!("delivery {number} was not accepted within {ACCEPTED_WITHIN:?}"));
                    return None;
                }
                Err(finding) => {
                    self.finding(finding);
                    return None;
                }
            }
        }
        None
    }

    /// The run that the delivery began; `None` when it is to be tried again.
    fn shared_answer(&self, hook: &str, number: u64, body: &serde_json::Value) -> Result<Option<String>, String> {
        let Some(answer) = self.client.deliver(hook, &format!("d-{number}"), body) else { return Ok(None) };
        match (answer.status, answer.body["run"].as_str()) {
            (202, Some(run)) => Ok(Some(run.to_owned())),
            (429 | 500 | 502 | 503 | 504, _) => Ok(None),
            (status, _) => Err(format!("delivery {number} was answered {status}: {:#}", answer.body)),
        }
    }
}
