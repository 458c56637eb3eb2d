//! A flood of webhooks from one sender: what was answered 202 is carried out once, the rest was answered 429 and left no trace, and
//! an organization that sends a little beside it is served all the while.
//!
//! In the suite the bounds are tiny, so that the flood surely meets them; `cargo xtask soak --storm 100000` uses the server's own.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bulkhead_test_support::wait_until;
use serde_json::{Value, json};

use crate::site::{Client, Site};
use crate::tally::distribution;

/// Bounds that a few thousand deliveries meet. Two slots make the queue longer than they allow.
const TINY: &str = "[starts]\nwaiting_max = 40\nat_once_max = 8\n[worker]\nslots_interactive = 2\n";
/// Senders of the flood; with the others fewer than one address may have connections.
const SENDERS: usize = 48;
/// Between two deliveries of the organization that sends a little.
const GENTLE_PAUSE: Duration = Duration::from_millis(50);
/// From the last delivery to the last run's end: some milliseconds for each, on a busy machine.
const SETTLED_WITHIN: Duration = Duration::from_mins(10);
/// Memory of a server of the development profile, all things included. A flood that were kept in memory would pass it.
const MEMORY_KIB_MAX: u64 = 1024 * 1024;

/// Deliveries in the suite; `cargo xtask soak --storm` says otherwise.
fn deliveries() -> u64 {
    crate::told("BULKHEAD_TEST_STORM", 3_000)
}

fn is_full_length() -> bool {
    deliveries() > 10_000
}

#[derive(Default)]
struct Came {
    accepted: Vec<String>,
    refused: u64,
    /// Kinds of the refusals.
    kinds: BTreeSet<String>,
    findings: Vec<String>,
    times: Vec<Duration>,
}

impl Came {
    fn take(&mut self, number: u64, sent: Instant, answer: Option<crate::site::Answer>) {
        let Some(answer) = answer else {
            self.findings.push(format!("delivery {number}: no answer"));
            return;
        };
        self.times.push(sent.elapsed());
        match (answer.status, answer.body["run"].as_str()) {
            (202, Some(run)) => self.accepted.push(run.to_owned()),
            (429, _) => {
                self.refused += 1;
                let kind = answer.body["type"].as_str().unwrap_or_default();
                self.kinds.insert(kind.rsplit('/').next().unwrap_or_default().to_owned());
                if answer.body["detail"].as_str().is_none_or(str::is_empty) {
                    self.findings.push(format!("delivery {number}: a refusal without a reason: {}", answer.body));
                }
            }
            (status, _) => self.findings.push(format!("delivery {number} was answered {status}: {}", answer.body)),
        }
    }

    fn join(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self::default();
        for part in parts {
            all.accepted.extend(part.accepted);
            all.refused += part.refused;
            all.kinds.extend(part.kinds);
            all.findings.extend(part.findings);
            all.times.extend(part.times);
        }
        all
    }
}

fn flood(client: &Client, hooks: &[String], next: &AtomicU64, most: u64) -> Came {
    let (client, mut came) = (client.alone(), Came::default());
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= most {
            return came;
        }
        let hook = &hooks[usize::try_from(number).unwrap() % hooks.len()];
        let sent = Instant::now();
        came.take(number, sent, client.deliver(hook, &format!("flood-{number}"), &json!({ "n": number })));
    }
}

fn gentle(client: &Client, hook: &str, stop: &AtomicBool) -> Came {
    let (client, mut came) = (client.alone(), Came::default());
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let sent = Instant::now();
        came.take(number, sent, client.deliver(hook, &format!("gentle-{number}"), &json!({ "n": number })));
        std::thread::sleep(GENTLE_PAUSE);
    }
    came
}

/// An active workflow that stops at once; its webhook's path.
fn make_workflow(client: &Client, node: &str, api: &str) -> String {
    let definition = json!({
        "schema": 1, "name": "At once", "triggers": [{ "id": "hook", "type": "webhook" }], "start": "end",
        "steps": { "end": { "type": "stop" } },
    });
    let post = |path: String, body: &Value| {
        let answer = client.post(&format!("{node}{api}{path}"), body).unwrap();
        assert!((200..300).contains(&answer.status), "{path}: {:#}", answer.body);
        answer.body
    };
    let made = post("/workflows".into(), &json!({ "definition": definition }));
    let hook = made["hooks"][0]["url"].as_str().unwrap().to_owned();
    post(format!("/workflows/{}/activate", made["id"].as_str().unwrap()), &json!({}));
    hook[hook.find("/hooks/").unwrap()..].to_owned()
}

/// Every item of a list.
fn list(client: &Client, url: &str) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let after = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        let page = client.get(&format!("{url}?limit=100{after}")).unwrap().body;
        items.extend(page["items"].as_array().unwrap().iter().cloned());
        let Some(next) = page["next_cursor"].as_str() else { return items };
        cursor = Some(next.to_owned());
    }
}

fn storm(mut site: Site) {
    let deliveries = deliveries();
    let (beta, beta_key) = site.make_org("beta");
    if !is_full_length() {
        site.configure(TINY);
    }
    site.start_all();
    let node = site.nodes[0].url("");
    let (alpha_client, beta_client) = (site.client.clone(), Client::new(&beta_key));
    let (alpha_api, beta_api) = (site.api.clone(), format!("/api/v1/orgs/{beta}"));
    let alpha_hook = make_workflow(&alpha_client, &node, &alpha_api);
    let beta_hook = format!("{node}{}", make_workflow(&beta_client, &node, &beta_api));
    let hooks: Arc<Vec<String>> = Arc::new(site.nodes.iter().map(|node| node.url(&alpha_hook)).collect());
    let memory_before: Vec<u64> = site.nodes.iter().map(crate::site::Node::memory_kib).collect();

    let (next, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let began = Instant::now();
    let memory = Mutex::new(memory_before.clone());
    let (flooded, asked) = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                let (client, hooks, next) = (&alpha_client, Arc::clone(&hooks), Arc::clone(&next));
                scope.spawn(move || flood(client, &hooks, &next, deliveries))
            })
            .collect();
        let asking = scope.spawn(|| gentle(&beta_client, &beta_hook, &stop));
        let watching = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let mut memory = memory.lock().unwrap();
                for (node, most) in site.nodes.iter().zip(memory.iter_mut()) {
                    *most = (*most).max(node.memory_kib());
                }
                drop(memory);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let flooded = Came::join(senders.into_iter().map(|sender| sender.join().unwrap()));
        stop.store(true, Ordering::Relaxed);
        watching.join().unwrap();
        (flooded, asking.join().unwrap())
    });
    let lasted = began.elapsed();

    assert_eq!(flooded.findings, Vec::<String>::new());
    assert_eq!(asked.findings, Vec::<String>::new());
    assert_eq!(asked.refused, 0, "who sends a little is always served: {:?}", asked.kinds);
    assert!(is_full_length() || flooded.refused > 0, "the bounds were never met");
    let idle = || {
        [(&alpha_client, &alpha_api), (&beta_client, &beta_api)].iter().all(|(client, api)| {
            // The host's own jobs stay: they see to history and keys from the first minute on.
            let jobs = client.get(&format!("{node}{api}/jobs?limit=100"));
            let jobs = jobs.as_ref().and_then(|jobs| jobs.body["items"].as_array());
            jobs.is_some_and(|jobs| jobs.iter().all(|job| job["kind"] != "advance_run"))
        })
    };
    assert!(wait_until(SETTLED_WITHIN, idle), "the queue does not empty");
    let settled = began.elapsed();
    for (client, api, came) in [(&alpha_client, &alpha_api, &flooded), (&beta_client, &beta_api, &asked)] {
        let runs = list(client, &format!("{node}{api}/runs"));
        let unlike: Vec<&Value> = runs.iter().filter(|run| run["status"] != "succeeded").collect();
        assert_eq!(unlike, Vec::<&Value>::new(), "every run succeeds");
        let known: BTreeSet<&str> = runs.iter().map(|run| run["id"].as_str().unwrap()).collect();
        let accepted: BTreeSet<&str> = came.accepted.iter().map(String::as_str).collect();
        assert_eq!(accepted.len(), came.accepted.len(), "each delivery is a run of its own");
        assert_eq!(known, accepted, "what was accepted is done, and nothing else");
    }
    let memory = memory.into_inner().unwrap();
    println!(
        "{deliveries} deliveries in {:.1} s on {} node(s): {} accepted, {} refused {:?}; the last run ended {:.1} s after the first delivery",
        lasted.as_secs_f64(),
        site.nodes.len(),
        flooded.accepted.len(),
        flooded.refused,
        flooded.kinds,
        settled.as_secs_f64(),
    );
    println!("  answers to the flood: {}", distribution(flooded.times));
    println!("  answers to who sends a little ({} accepted): {}", asked.accepted.len(), distribution(asked.times));
    for (before, most) in memory_before.iter().zip(&memory) {
        println!("  memory: {} MiB before, at most {} MiB", before / 1024, most / 1024);
        assert!(*most < MEMORY_KIB_MAX, "{most} KiB");
    }
    for node in &mut site.nodes {
        assert_eq!(node.stop().code(), Some(0));
    }
}

#[test]
fn one_node_on_sqlite_takes_what_it_can_carry() {
    storm(Site::sqlite());
}

#[test]
fn two_nodes_on_postgres_take_what_they_can_carry() {
    if let Some(site) = Site::postgres(2) {
        storm(site);
    }
}
