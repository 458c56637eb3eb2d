//! What the outside world saw: each request of each step, by its idempotency key.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bulkhead_test_support::http_sink::{Request, Sink};
use serde_json::Value;

/// One request as it came to the receiver.
struct Arrival {
    key: String,
    body: Vec<u8>,
    at: Instant,
}

/// Requests by run and step. A receiver that heeds `Idempotency-Key` acts once for each key.
#[derive(Default)]
pub(crate) struct Tally {
    effects: BTreeMap<(String, String), Vec<Arrival>>,
    seen: usize,
}

impl Tally {
    /// Takes in what came since the last look.
    pub(crate) fn look(&mut self, sink: &Sink) {
        for request in sink.requests_since(self.seen) {
            self.seen += 1;
            self.add(&request);
        }
    }

    fn add(&mut self, request: &Request) {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let key = request.header("idempotency-key").unwrap_or_default().to_owned();
        let arrival = Arrival { key, body: request.body.clone(), at: request.at };
        self.effects.entry((text("run"), text("step"))).or_default().push(arrival);
    }

    /// How many runs have come to this step.
    pub(crate) fn reached(&self, step: &str) -> usize {
        self.effects.keys().filter(|(_, known)| known == step).count()
    }

    pub(crate) fn requests(&self) -> usize {
        self.seen
    }

    /// What is wrong: an effect that is missing, that belongs to nobody, that has two keys or contents, or a key of two effects.
    pub(crate) fn findings<'a>(&self, runs: impl IntoIterator<Item = &'a String>, steps: &[&str]) -> Vec<String> {
        let mut findings = Vec::new();
        let wanted: BTreeSet<(String, String)> =
            runs.into_iter().flat_map(|run| steps.iter().map(move |step| (run.clone(), (*step).to_owned()))).collect();
        for effect in wanted.iter().filter(|effect| !self.effects.contains_key(*effect)) {
            findings.push(format!("{effect:?} never came"));
        }
        let mut owners: BTreeMap<&str, &(String, String)> = BTreeMap::new();
        for (effect, arrivals) in &self.effects {
            if !wanted.contains(effect) {
                findings.push(format!("{effect:?} belongs to no accepted run"));
            }
            let keys: BTreeSet<&str> = arrivals.iter().map(|arrival| arrival.key.as_str()).collect();
            let bodies: BTreeSet<&[u8]> = arrivals.iter().map(|arrival| arrival.body.as_slice()).collect();
            if keys.len() != 1 || keys.contains("") {
                findings.push(format!("{effect:?} came under the keys {keys:?}"));
            }
            if bodies.len() != 1 {
                findings.push(format!("{effect:?} came with {} contents", bodies.len()));
            }
            for key in keys {
                if let Some(other) = owners.insert(key, effect) {
                    findings.push(format!("{effect:?} and {other:?} have the same key"));
                }
            }
        }
        findings
    }

    /// How often an effect was tried more than once.
    pub(crate) fn repeats(&self) -> usize {
        self.effects.values().map(|arrivals| arrivals.len() - 1).sum()
    }

    /// From a moment until anything came to the receiver.
    pub(crate) fn until_next(&self, moment: Instant) -> Option<Duration> {
        let later = self.effects.values().flatten().filter(|arrival| arrival.at > moment);
        later.map(|arrival| arrival.at - moment).min()
    }

    /// For each effect that was under way at one of these moments and came again: the time from the (last such) moment until
    /// then.
    pub(crate) fn until_again(&self, moments: &[Instant]) -> Vec<Duration> {
        let again = |pair: &[Arrival]| {
            let between = moments.iter().filter(|moment| pair[0].at < **moment && **moment <= pair[1].at).max()?;
            Some(pair[1].at - *between)
        };
        self.effects.values().flat_map(|arrivals| arrivals.windows(2).filter_map(again)).collect()
    }
}

/// `p50 … p90 … p99 … max …` in milliseconds.
pub(crate) fn distribution(mut times: Vec<Duration>) -> String {
    times.sort();
    let Some(last) = times.last() else { return "none".to_owned() };
    // Never out of range: the fraction is below one.
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_millis();
    format!(
        "p50 {} ms, p90 {} ms, p99 {} ms, max {} ms ({} of them)",
        at(50),
        at(90),
        at(99),
        last.as_millis(),
        times.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(key: &str, body: &str) -> Arrival {
        Arrival { key: key.into(), body: body.into(), at: Instant::now() }
    }

    /// A run, a step, and the keys and contents that came.
    type Effect = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

    fn tally(effects: &[Effect]) -> Vec<String> {
        let mut tally = Tally::default();
        for (run, step, arrivals) in effects {
            let arrivals = arrivals.iter().map(|(key, body)| arrival(key, body)).collect();
            tally.effects.insert(((*run).into(), (*step).into()), arrivals);
        }
        tally.findings(&["r".to_owned()], &["one", "two"])
    }

    #[test]
    fn what_is_wrong_is_told() {
        let good: Effect = ("r", "one", &[("a", "x"), ("a", "x")]);
        assert_eq!(tally(&[good, ("r", "two", &[("b", "x")])]), Vec::<String>::new());
        assert!(tally(&[good])[0].contains("never came"));
        assert!(tally(&[good, ("r", "two", &[("b", "x"), ("c", "x")])])[0].contains("keys"));
        assert!(tally(&[good, ("r", "two", &[("b", "x"), ("b", "y")])])[0].contains("2 contents"));
        assert!(tally(&[good, ("r", "two", &[("a", "x")])])[0].contains("the same key"));
        assert!(tally(&[good, ("r", "two", &[("", "x")])])[0].contains("keys"));
        let stranger: Effect = ("other", "one", &[("c", "x")]);
        assert!(tally(&[good, ("r", "two", &[("b", "x")]), stranger])[0].contains("no accepted run"));
    }

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        assert_eq!(distribution(Vec::new()), "none");
        let times = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(distribution(times), "p50 50 ms, p90 90 ms, p99 99 ms, max 100 ms (100 of them)");
    }
}
