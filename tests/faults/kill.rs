//! Processes killed at random moments while load goes on; on PostgreSQL also nodes that stall and a database that is restarted.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bulkhead_model::ambient::Ambient;
use bulkhead_model::time::Timestamp;
use bulkhead_test_support::http_sink::Reply;
use bulkhead_test_support::wait_until;
use serde_json::Value;

use crate::load::Load;
use crate::site::{Node, STEPS, Site};
use crate::tally::{Tally, distribution};

/// The receiver takes its time, so that kills fall into calls.
const SINK_DELAY: Duration = Duration::from_millis(60);
/// A node is stopped for longer than its lease (4 s) lasts.
const FROZEN: Duration = Duration::from_secs(6);
/// From the last fault to the last run's end (specification: "taken up within 5 s"; the rest is work and a busy machine).
const SETTLED_WITHIN: Duration = Duration::from_mins(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Kill,
    DatabaseRestart,
    Freeze,
}

struct World {
    site: Site,
    dice: Ambient,
    load: Option<Load>,
    tally: Tally,
    faults: Vec<(Fault, Instant)>,
}

impl World {
    fn start(mut site: Site) -> Self {
        site.sink.otherwise(Reply::json("{}").after(SINK_DELAY));
        site.start_all();
        let load = Some(Load::start(&site, 2));
        let dice = Ambient::manual(Timestamp::from_micros(0), crate::seed());
        Self { site, dice, load, tally: Tally::default(), faults: Vec::new() }
    }

    fn look(&mut self) {
        self.tally.look(&self.site.sink);
        if let Some(load) = &self.load {
            load.finished(self.tally.reached(STEPS[STEPS.len() - 1]));
        }
    }

    /// Lets the load go on for a while.
    fn go_on(&mut self, during: Duration) {
        let until = Instant::now() + during;
        while Instant::now() < until {
            self.look();
            self.site.nodes.iter_mut().for_each(Node::keep_up);
            std::thread::sleep(Duration::from_millis(50).min(until.saturating_duration_since(Instant::now())));
        }
    }

    fn fault(&mut self, fault: Fault) {
        self.faults.push((fault, Instant::now()));
    }

    fn a_node(&self) -> usize {
        usize::try_from(self.dice.below(self.site.nodes.len() as u64)).unwrap()
    }

    fn break_things(&mut self, kills: u32) {
        for number in 0..kills {
            self.go_on(Duration::from_millis(700 + self.dice.below(1_800)));
            let node = self.a_node();
            self.fault(Fault::Kill);
            self.site.nodes[node].kill();
            self.site.nodes[node].start();
            if self.site.cluster.is_none() {
                continue;
            }
            if number % 10 == 1 {
                self.fault(Fault::DatabaseRestart);
                self.site.cluster.as_ref().unwrap().crash_and_restart().unwrap();
            }
            if number % 10 == 2 {
                let node = self.a_node();
                // One that is starting has nothing to lose.
                self.site.nodes[node].wait_ready(&self.site.client);
                self.go_on(Duration::from_secs(1));
                self.fault(Fault::Freeze);
                self.site.nodes[node].freeze();
                self.go_on(FROZEN);
                self.site.nodes[node].thaw();
            }
        }
        self.go_on(Duration::from_millis(500));
    }

    /// Whether nothing is under way any more, by the API.
    fn is_settled(&self) -> bool {
        let none =
            |path: &str| self.site.get(path).is_some_and(|page| page["items"].as_array().is_some_and(Vec::is_empty));
        none("/jobs") && ["queued", "running", "waiting"].iter().all(|status| none(&format!("/runs?status={status}")))
    }

    /// Every node stops in order, with nothing left in hand.
    fn stop(&mut self) {
        for node in &mut self.site.nodes {
            let metrics = self.site.client.get(&node.url("/metrics")).unwrap().body;
            let metrics = metrics.as_str().unwrap();
            let calls = metrics.lines().find(|line| line.starts_with("bulkhead_plugin_calls_in_flight"));
            assert_eq!(calls.unwrap_or("bulkhead_plugin_calls_in_flight 0"), "bulkhead_plugin_calls_in_flight 0");
            // This very request is one.
            let requests = metrics.lines().find(|line| line.starts_with("bulkhead_http_requests_in_flight"));
            assert_eq!(requests, Some("bulkhead_http_requests_in_flight 1"));
            assert_eq!(node.stop().code(), Some(0));
        }
    }

    fn report(&self, runs: usize, tries: u64) {
        let (requests, repeats) = (self.tally.requests(), self.tally.repeats());
        println!(
            "{runs} runs from {tries} deliveries; {requests} requests, {repeats} of them repeated under their key"
        );
        for kind in [Fault::Kill, Fault::DatabaseRestart, Fault::Freeze] {
            let of_kind = self.faults.iter().filter(|(fault, _)| *fault == kind);
            let moments: Vec<Instant> = of_kind.map(|(_, at)| *at).collect();
            if !moments.is_empty() {
                let next = moments.iter().filter_map(|moment| self.tally.until_next(*moment)).collect();
                println!("  {kind:?}: until anything moves: {}", distribution(next));
                let again = self.tally.until_again(&moments);
                println!("  {kind:?}: until a call that it cut is made again: {}", distribution(again));
            }
        }
    }
}

fn kill_loop(site: Site, kills: u32) {
    println!("{} node(s), {kills} kills, seed {}", site.nodes.len(), crate::seed());
    let mut world = World::start(site);
    world.break_things(kills);
    let sent = world.load.take().unwrap().stop();
    for node in &mut world.site.nodes {
        node.wait_ready(&world.site.client);
    }
    let since_the_last = world.faults.last().unwrap().1.elapsed();
    let settled = wait_until(SETTLED_WITHIN.saturating_sub(since_the_last), || world.is_settled());
    let jobs = world.site.list("/jobs?");
    assert!(settled, "not settled in time: {jobs:#?}");
    world.look();

    assert_eq!(sent.findings, Vec::<String>::new());
    let listed = world.site.list("/runs?");
    let runs: BTreeSet<String> = sent.runs.values().cloned().collect();
    assert_eq!(runs.len(), sent.runs.len(), "each delivery is a run of its own");
    let known: BTreeSet<String> = listed.iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(known, runs, "no run is lost, none was begun twice");
    let unlike: Vec<&Value> = listed.iter().filter(|run| run["status"] != "succeeded").collect();
    assert_eq!(unlike, Vec::<&Value>::new(), "every run succeeds");
    assert_eq!(world.tally.findings(&runs, &STEPS), Vec::<String>::new());
    assert_eq!(jobs, Vec::<Value>::new(), "the queue is empty");
    world.stop();
    world.report(runs.len(), sent.tries);
}

/// Kills in the suite; `cargo xtask soak --kills` says otherwise.
fn kills() -> u32 {
    crate::told("BULKHEAD_TEST_KILLS", 3)
}

#[test]
fn one_node_on_sqlite_loses_nothing() {
    kill_loop(Site::sqlite(), kills());
}

#[test]
fn three_nodes_on_postgres_lose_nothing() {
    if let Some(site) = Site::postgres(3) {
        kill_loop(site, kills());
    }
}
