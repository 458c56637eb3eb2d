//! The protocol: what a node or the world may do in a state, and what comes of it.

use std::collections::{BTreeMap, BTreeSet};

/// What follows a step's commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Then {
    /// The next step under the same lease.
    Continue,
    /// The job is released for a later time and counts its attempts anew.
    Wait,
    Finish,
}

/// The steps of every job's run.
pub(crate) type Plan = &'static [Then];

/// A job that was claimed so often without success goes to the dead letters at its rescue.
const ATTEMPTS_MAX: u8 = 2;

/// A process: the node and how often that was started. A new process has a new identity; one that stalled keeps its own.
pub(crate) type Worker = (usize, u8);

/// Which rules hold. All of them do; a test takes one away to see that it is missed.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each rule holds or does not, whatever the others do")]
pub(crate) struct Rules {
    /// A write about a job names the fence of its lease.
    pub(crate) fence_checked: bool,
    /// … and the worker that holds it.
    pub(crate) holder_checked: bool,
    /// A heartbeat that is not renewed expires, and the worker's jobs are taken up.
    pub(crate) heartbeats_expire: bool,
    /// An attempt that takes too long is taken away from a worker that lives.
    pub(crate) deadlines: bool,
    /// A held job that is enqueued again runs again after it ends.
    pub(crate) reruns: bool,
    /// A worker that never heard what became of its commit gives the job back and lets the database tell where the run stands.
    pub(crate) unheard_gives_back: bool,
    /// A start holds its job only where its worker's heartbeat is fresh when it is saved.
    pub(crate) starts_look: bool,
}

impl Rules {
    pub(crate) const ALL: Self = Self {
        fence_checked: true,
        holder_checked: true,
        heartbeats_expire: true,
        deadlines: true,
        reruns: true,
        unheard_gives_back: true,
        starts_look: true,
    };
}

/// How often that may happen which would otherwise make the model infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) crashes: u8,
    /// The database did it, and the process never heard.
    pub(crate) lost_answers: u8,
    /// Releases without a need: a shutdown's, a full house's, a failure's of the host's own.
    pub(crate) releases: u8,
    pub(crate) enqueues: u8,
}

/// Where a job's row stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// Nobody has started the run yet.
    Absent,
    Future,
    Ready,
    Leased(Worker),
    /// The row is gone.
    Done,
    Dead,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Job {
    pub(crate) place: Place,
    fence: u8,
    attempt: u8,
    /// Steps committed.
    step: u8,
    rerun: bool,
    /// Seen from above, not in the database: whom the lease was given to last and not taken from since.
    holder: Option<(Worker, u8)>,
    /// Seen from above: somebody asked for it since it was claimed last.
    is_owed: bool,
}

impl Job {
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.place, Place::Done | Place::Dead)
    }

    /// The node whose lease lies on the job.
    pub(crate) fn holder_node(&self) -> Option<usize> {
        if let Place::Leased((node, _)) = self.place { Some(node) } else { None }
    }

    /// Takes the job away from whoever has it.
    fn rescue(&mut self) {
        self.place = if self.attempt >= ATTEMPTS_MAX { Place::Dead } else { Place::Ready };
        self.rerun = false;
        self.holder = None;
    }
}

/// What a process does about a job: it plans a step under a lease, calls a plugin, and has a result to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Task {
    pub(crate) job: usize,
    fence: u8,
    attempt: u8,
    /// The step that it works on.
    step: u8,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Phase {
    Calls,
    HasResult,
    /// All that is left to do is to release the job.
    GivesBack,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) is_up: bool,
    started: u8,
    pub(crate) tasks: BTreeSet<Task>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    plan: Plan,
    pub(crate) jobs: Vec<Job>,
    pub(crate) nodes: [Node; 2],
    /// Heartbeat rows: whether they are fresh. Nobody is told when one expires.
    rows: BTreeMap<Worker, bool>,
    budget: Budget,
    pub(crate) violation: Option<&'static str>,
}

/// What happened. The fields are for those who read a path.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "fields are printed in the path that leads to a violation")]
pub(crate) enum Entry {
    Claim {
        node: usize,
        job: usize,
        heard: bool,
    },
    /// A run is saved, and its job with it, which the node holds from the start where it may.
    Begin {
        node: usize,
        job: usize,
        held: bool,
        heard: bool,
    },
    /// The plugin's call is over: the outside world has seen it.
    Return {
        node: usize,
        task: Task,
    },
    Commit {
        node: usize,
        task: Task,
        held: bool,
        heard: bool,
    },
    Release {
        node: usize,
        task: Task,
        counts: bool,
        held: bool,
    },
    /// A process that stalls, is stopped or is dead: for the others it is all the same.
    Expire {
        worker: Worker,
    },
    /// Finds its own heartbeat expired or gone, and registers anew under its old name. What it has under way goes on for a moment.
    Renew {
        node: usize,
    },
    Recover {
        node: usize,
    },
    Crash {
        node: usize,
    },
    Start {
        node: usize,
    },
    FreeStuck {
        node: usize,
        job: usize,
    },
    Promote {
        node: usize,
        job: usize,
    },
    Enqueue {
        job: usize,
    },
}

impl Entry {
    /// The node that acts; none when it is the world.
    pub(crate) fn actor(&self) -> Option<usize> {
        match self {
            Self::Claim { node, .. }
            | Self::Begin { node, .. }
            | Self::Return { node, .. }
            | Self::Commit { node, .. }
            | Self::Release { node, .. }
            | Self::Renew { node }
            | Self::Recover { node }
            | Self::Start { node }
            | Self::FreeStuck { node, .. }
            | Self::Promote { node, .. } => Some(*node),
            Self::Expire { .. } | Self::Crash { .. } | Self::Enqueue { .. } => None,
        }
    }
}

impl State {
    /// Two nodes that have just started, and jobs that are ready.
    pub(crate) fn new(jobs: usize, plan: Plan, budget: Budget) -> Self {
        let job =
            Job { place: Place::Ready, fence: 0, attempt: 0, step: 0, rerun: false, holder: None, is_owed: false };
        let node = Node { is_up: true, started: 1, tasks: BTreeSet::new() };
        Self {
            plan,
            jobs: vec![job; jobs],
            nodes: [node.clone(), node],
            rows: BTreeMap::from([((0, 1), true), ((1, 1), true)]),
            budget,
            violation: None,
        }
    }

    /// The same, of runs that are still to be started.
    pub(crate) fn to_start(jobs: usize, plan: Plan, budget: Budget) -> Self {
        let mut state = Self::new(jobs, plan, budget);
        for job in &mut state.jobs {
            job.place = Place::Absent;
        }
        state
    }

    fn worker(&self, node: usize) -> Worker {
        (node, self.nodes[node].started)
    }

    /// Whether the database takes a write about the task's job.
    fn admits(&self, node: usize, task: Task, rules: Rules) -> bool {
        let job = &self.jobs[task.job];
        let Place::Leased(holder) = job.place else { return false };
        (!rules.holder_checked || holder == self.worker(node)) && (!rules.fence_checked || job.fence == task.fence)
    }

    /// Everything that may happen next.
    pub(crate) fn successors(&self, rules: Rules) -> Vec<(Entry, Self)> {
        let mut found = Vec::new();
        let mut add = |entry: Entry, change: &dyn Fn(&mut Self)| {
            let mut next = self.clone();
            change(&mut next);
            if next != *self {
                found.push((entry, next));
            }
        };
        for node in 0..2 {
            if !self.nodes[node].is_up {
                add(Entry::Start { node }, &|next| next.start(node));
                continue;
            }
            if self.budget.crashes > 0 {
                add(Entry::Crash { node }, &|next| next.crash(node));
            }
            add(Entry::Renew { node }, &|next| next.renew(node));
            if rules.heartbeats_expire {
                add(Entry::Recover { node }, &|next| next.recover(node));
            }
            for job in 0..self.jobs.len() {
                if self.may_claim(node, job) {
                    add(Entry::Claim { node, job, heard: true }, &|next| next.claim(node, job, true));
                    if self.budget.lost_answers > 0 {
                        add(Entry::Claim { node, job, heard: false }, &|next| next.claim(node, job, false));
                    }
                }
                if self.jobs[job].place == Place::Absent {
                    let held = !rules.starts_look || self.is_fresh(node);
                    add(Entry::Begin { node, job, held, heard: true }, &|next| next.begin(node, job, held, true));
                    if self.budget.lost_answers > 0 {
                        add(Entry::Begin { node, job, held, heard: false }, &|next| next.begin(node, job, held, false));
                    }
                }
                if self.jobs[job].place == Place::Future {
                    add(Entry::Promote { node, job }, &|next| next.jobs[job].place = Place::Ready);
                }
                if rules.deadlines && matches!(self.jobs[job].place, Place::Leased(_)) {
                    add(Entry::FreeStuck { node, job }, &|next| next.jobs[job].rescue());
                }
            }
            for task in self.nodes[node].tasks.iter().copied() {
                let held = self.admits(node, task, rules);
                match task.phase {
                    Phase::Calls => {
                        add(Entry::Return { node, task }, &|next| next.turn(node, task, Phase::HasResult));
                    }
                    Phase::HasResult => {
                        let commit = |heard| Entry::Commit { node, task, held, heard };
                        add(commit(true), &|next| next.commit(node, task, held, None));
                        if self.budget.lost_answers > 0 {
                            let then = if rules.unheard_gives_back { Phase::GivesBack } else { Phase::HasResult };
                            add(commit(false), &|next| next.commit(node, task, held, Some(then)));
                        }
                    }
                    Phase::GivesBack => {}
                }
                let release = |counts| Entry::Release { node, task, counts, held };
                if task.phase == Phase::GivesBack {
                    add(release(true), &|next| next.release(node, task, held, true));
                } else if self.budget.releases > 0 {
                    for counts in [true, false] {
                        add(release(counts), &|next| {
                            next.budget.releases -= 1;
                            next.release(node, task, held, counts);
                        });
                    }
                }
            }
        }
        for (worker, fresh) in &self.rows {
            if *fresh && rules.heartbeats_expire {
                add(Entry::Expire { worker: *worker }, &|next| next.expire(*worker));
            }
        }
        if self.budget.enqueues > 0 {
            for job in 0..self.jobs.len() {
                if matches!(self.jobs[job].place, Place::Leased(_)) {
                    add(Entry::Enqueue { job }, &|next| next.enqueue(job, rules));
                }
            }
        }
        found
    }

    fn may_claim(&self, node: usize, job: usize) -> bool {
        self.jobs[job].place == Place::Ready && self.is_fresh(node)
    }

    /// The node's heartbeat, by its row.
    fn is_fresh(&self, node: usize) -> bool {
        self.rows.get(&self.worker(node)) == Some(&true)
    }

    /// A start: the job appears, held or ready. A sender that never hears of it asks again, and is answered with the same run.
    fn begin(&mut self, node: usize, job: usize, held: bool, heard: bool) {
        if held {
            self.claim(node, job, heard);
        } else {
            self.jobs[job].place = Place::Ready;
            self.budget.lost_answers -= u8::from(!heard);
        }
    }

    fn claim(&mut self, node: usize, job: usize, heard: bool) {
        let worker = self.worker(node);
        let row = &mut self.jobs[job];
        row.place = Place::Leased(worker);
        row.fence += 1;
        row.attempt += 1;
        row.holder = Some((worker, row.fence));
        row.is_owed = false;
        let task = Task { job, fence: row.fence, attempt: row.attempt, step: row.step, phase: Phase::Calls };
        if heard {
            self.nodes[node].tasks.insert(task);
        } else {
            self.budget.lost_answers -= 1;
        }
    }

    fn turn(&mut self, node: usize, task: Task, phase: Phase) {
        self.nodes[node].tasks.remove(&task);
        self.nodes[node].tasks.insert(Task { phase, ..task });
    }

    /// A step's transaction: it proves the lease, writes the step and says what becomes of the job. `unheard` is how a worker
    /// goes on that never hears of it.
    fn commit(&mut self, node: usize, task: Task, held: bool, unheard: Option<Phase>) {
        self.nodes[node].tasks.remove(&task);
        let worker = self.worker(node);
        if held {
            let job = &mut self.jobs[task.job];
            if job.holder != Some((worker, task.fence)) {
                self.violation = Some("a commit by one who does not hold the lease");
                return;
            }
            if job.step != task.step {
                self.violation = Some("a second commit of the same step");
                return;
            }
            let then = self.plan[usize::from(job.step)];
            job.step += 1;
            match then {
                Then::Continue if unheard.is_none() => {
                    self.nodes[node].tasks.insert(Task { step: job.step, phase: Phase::Calls, ..task });
                }
                Then::Continue => {}
                Then::Wait => (job.place, job.attempt, job.rerun, job.holder) = (Place::Future, 0, false, None),
                Then::Finish if job.rerun => {
                    (job.place, job.attempt, job.rerun, job.holder) = (Place::Future, 0, false, None);
                    job.step = 0;
                }
                Then::Finish => {
                    (job.place, job.holder) = (Place::Done, None);
                    if job.is_owed {
                        self.violation = Some("a job ended that was asked for again");
                    }
                }
            }
        }
        if let Some(phase) = unheard {
            self.budget.lost_answers -= 1;
            self.nodes[node].tasks.insert(Task { phase, ..task });
        }
    }

    fn release(&mut self, node: usize, task: Task, held: bool, counts: bool) {
        self.nodes[node].tasks.remove(&task);
        if held {
            if self.jobs[task.job].holder != Some((self.worker(node), task.fence)) {
                self.violation = Some("a release by one who does not hold the lease, as bad as a commit");
                return;
            }
            let job = &mut self.jobs[task.job];
            job.attempt = if counts { task.attempt } else { task.attempt - 1 };
            (job.place, job.rerun, job.holder) = (Place::Ready, false, None);
        }
    }

    fn expire(&mut self, worker: Worker) {
        self.rows.insert(worker, false);
    }

    fn renew(&mut self, node: usize) {
        // A fresh heartbeat stays one. An expired or deleted one is registered anew, under the same identity.
        self.rows.insert(self.worker(node), true);
    }

    fn recover(&mut self, node: usize) {
        let me = self.worker(node);
        self.rows.retain(|worker, fresh| *fresh || *worker == me);
        for job in &mut self.jobs {
            if matches!(job.place, Place::Leased(holder) if !self.rows.contains_key(&holder)) {
                job.rescue();
            }
        }
    }

    fn crash(&mut self, node: usize) {
        self.budget.crashes -= 1;
        self.nodes[node].is_up = false;
        self.nodes[node].tasks.clear();
    }

    fn start(&mut self, node: usize) {
        self.nodes[node].is_up = true;
        self.nodes[node].started += 1;
        self.rows.insert(self.worker(node), true);
        self.recover(node);
    }

    fn enqueue(&mut self, job: usize, rules: Rules) {
        self.budget.enqueues -= 1;
        self.jobs[job].rerun = rules.reruns;
        self.jobs[job].is_owed = true;
    }
}
