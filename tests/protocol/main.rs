//! The queue's protocol — claim, renew, finish, rescue, resume — as a small model, of which every reachable state is looked at.
//!
//! The model says what `host/store/src/job.rs` says in SQL, without SQL: two nodes, one or two jobs, and whatever can go wrong
//! between them (a process dies, stalls until its heartbeat has expired and goes on, an answer of the database is lost).
//! ARCHITECTURE.md's promises are properties of the states; a rule taken away must show, or the model would prove nothing.
//!
//! Written by hand rather than with a model checker's crate: "from every state an end can be reached" is a property of the
//! whole graph, backwards, which those that look at paths one by one do not answer.

mod explore;
mod queue;

use std::collections::BTreeSet;

use explore::Graph;
use queue::{Budget, Entry, Place, Rules, State, Then};

/// More states than this are a mistake in the model: it must stay small enough to be looked at in each run of the tests.
const STATES_MAX: usize = 100_000;
const NOTHING: Budget = Budget { crashes: 0, lost_answers: 0, releases: 0, enqueues: 0 };

/// One job of three steps with a wait, and a process that dies.
fn a_crash() -> State {
    State::new(1, &[Then::Continue, Then::Wait, Then::Finish], Budget { crashes: 1, ..NOTHING })
}

/// The same, and an answer of the database that never comes.
fn a_lost_answer() -> State {
    State::new(1, &[Then::Continue, Then::Wait, Then::Finish], Budget { lost_answers: 1, ..NOTHING })
}

/// The same, and a job that is handed back and one that is asked for while it runs.
fn a_release_and_an_enqueue() -> State {
    State::new(1, &[Then::Finish], Budget { releases: 1, enqueues: 1, ..NOTHING })
}

/// Everything at once around a single step.
fn everything() -> State {
    State::new(1, &[Then::Finish], Budget { crashes: 1, lost_answers: 1, releases: 1, enqueues: 0 })
}

/// A run that is still to be started, on a node that may die or never hear that it was.
fn a_start() -> State {
    State::to_start(1, &[Then::Finish], Budget { crashes: 1, lost_answers: 1, ..NOTHING })
}

fn two_jobs() -> State {
    State::new(2, &[Then::Finish], NOTHING)
}

type Case = (&'static str, fn() -> State);

const CASES: [Case; 6] = [
    ("a crash", a_crash),
    ("a lost answer", a_lost_answer),
    ("a release and an enqueue", a_release_and_an_enqueue),
    ("everything", everything),
    ("a start", a_start),
    ("two jobs", two_jobs),
];

/// Every state that can be reached, or the first that breaks a rule with the way that leads there.
fn explore(start: State, rules: Rules) -> Result<Graph, String> {
    Graph::explore(start, STATES_MAX, |state| state.successors(rules))
}

/// The jobs of which some reachable state has no way to their end, and those that a node could hold for ever if it alone
/// decided.
fn without_end(graph: &Graph) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let jobs = graph.states[0].jobs.len();
    for job in 0..jobs {
        let ends = graph.can_reach(|state| state.jobs[job].is_over(), |_| true);
        if let Some(state) = ends.iter().position(|ends| !ends) {
            found.insert(format!("job {job} has no way to its end:\n{}", graph.path(state)));
        }
        for node in 0..2 {
            let is_held = |state: &State| state.jobs[job].holder_node() == Some(node);
            let let_go = graph.can_reach(|state| !is_held(state), |actor| actor != Some(node));
            let stuck = graph.states.iter().zip(&let_go).position(|(state, let_go)| is_held(state) && !let_go);
            if let Some(state) = stuck {
                found.insert(format!("node {node} may hold job {job} for ever:\n{}", graph.path(state)));
            }
        }
    }
    found
}

#[test]
fn nothing_is_committed_twice_or_without_a_lease_and_everything_ends() {
    for (name, start) in CASES {
        let graph = explore(start(), Rules::ALL).unwrap_or_else(|violation| panic!("{name}: {violation}"));
        println!("{name}: {} states, {} steps between them", graph.states.len(), graph.edges.len());
        assert_eq!(without_end(&graph), BTreeSet::new(), "{name}");
    }
}

/// What the properties rest on is there: states in which it gets difficult.
#[test]
fn the_model_reaches_what_it_is_about() {
    type Wanted = (&'static str, fn(&State) -> bool);
    let wanted: [Wanted; 7] = [
        ("the job is done", |state| state.jobs[0].place == Place::Done),
        ("the job is dead", |state| state.jobs[0].place == Place::Dead),
        ("the run waits", |state| state.jobs[0].place == Place::Future),
        ("both nodes believe that they hold the job", |state| state.nodes.iter().all(|node| !node.tasks.is_empty())),
        ("one node has an old and a new lease of the job", |state| state.nodes.iter().any(|node| node.tasks.len() > 1)),
        ("a lease is held that its node does not know of", |state| {
            state.jobs[0].holder_node().is_some_and(|node| state.nodes[node].tasks.is_empty())
        }),
        ("a dead process's lease lies there", |state| {
            state.jobs[0].holder_node().is_some_and(|node| !state.nodes[node].is_up)
        }),
    ];
    let graphs = [explore(a_crash(), Rules::ALL).unwrap(), explore(a_lost_answer(), Rules::ALL).unwrap()];
    for (what, condition) in wanted {
        let reached = graphs.iter().flat_map(|graph| &graph.states).any(condition);
        assert!(reached, "no state in which {what}");
    }
}

/// The first way to a violation when these rules hold.
#[track_caller]
fn violation(start: fn() -> State, rules: Rules, words: &str) {
    let found = explore(start(), rules).err().expect("a violation is found");
    assert!(found.starts_with(words), "{found}");
}

#[test]
fn without_the_fence_a_worker_with_an_old_lease_writes() {
    violation(a_crash, Rules { fence_checked: false, ..Rules::ALL }, "a commit by one who does not hold the lease");
    let neither = Rules { fence_checked: false, holder_checked: false, ..Rules::ALL };
    violation(two_jobs, neither, "a commit by one who does not hold the lease");
    violation(everything, neither, "a release by one who does not hold the lease");
}

/// Fences are counted by job, so they alone tell workers apart too; the worker's name in the statement is a second wall.
#[test]
fn the_fence_alone_is_enough() {
    explore(a_crash(), Rules { holder_checked: false, ..Rules::ALL }).unwrap();
}

/// A node that was declared dead and does not know it yet saves a run and holds its job, if it does not look at its heartbeat: the job is
/// another's in a moment, and what the first does under it is refused. That it looks is a second wall.
#[test]
fn a_start_by_a_node_that_was_declared_dead_is_taken_from_it() {
    let careless = Rules { starts_look: false, ..Rules::ALL };
    let graph = explore(a_start(), careless).unwrap();
    assert_eq!(without_end(&graph), BTreeSet::new());
    violation(a_start, Rules { fence_checked: false, ..careless }, "a commit by one who does not hold the lease");
    violation(a_start, Rules { fence_checked: false, ..Rules::ALL }, "a commit by one who does not hold the lease");
}

#[test]
fn a_commit_that_was_never_heard_of_and_is_repeated_is_made_twice() {
    violation(a_lost_answer, Rules { unheard_gives_back: false, ..Rules::ALL }, "a second commit of the same step");
}

#[test]
fn an_enqueue_that_is_not_remembered_is_lost() {
    violation(a_release_and_an_enqueue, Rules { reruns: false, ..Rules::ALL }, "a job ended that was asked for again");
}

#[test]
fn without_rescue_the_job_of_a_dead_process_has_no_end() {
    let graph = explore(a_crash(), Rules { heartbeats_expire: false, deadlines: false, ..Rules::ALL }).unwrap();
    let found = without_end(&graph);
    assert!(found.iter().any(|text| text.contains("no way to its end")), "{found:?}");
    assert!(found.iter().any(|text| text.contains("for ever")), "{found:?}");
}

/// A claim that the database made and its worker never heard of: the worker lives and renews, so only the second detector helps.
#[test]
fn a_lease_that_its_living_worker_does_not_know_of_ends_by_its_deadline() {
    let ends_by_itself = |rules: Rules| {
        let graph = explore(a_lost_answer(), rules).unwrap();
        let quiet = |entry: &Entry| !matches!(entry, Entry::Expire { .. });
        graph.can_reach_by(|state| state.jobs[0].is_over(), quiet).iter().all(|ends| *ends)
    };
    assert!(ends_by_itself(Rules::ALL));
    assert!(!ends_by_itself(Rules { deadlines: false, ..Rules::ALL }));
}
