//! The worker of this process: claims jobs, carries them out in bounded slots per lane and recovers what dead workers left. While
//! its heartbeat is overdue ([`heartbeat`](crate::heartbeat)) it claims nothing.

mod slots;
mod threads;
mod upkeep;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use bulkhead_model::fault::Fault;
use bulkhead_model::id::{JobId, OrgId, WorkerId};
use bulkhead_model::job::{JobPayload, Lane};
use bulkhead_model::permission::{SystemReason, SystemScope};
use bulkhead_store::dead_letter::NewDeadLetter;
use bulkhead_store::installation::Installation;
use bulkhead_store::job::{Attempt, ClaimedJob, Turn, TurnEnd};
use bulkhead_store::node::NodeSlots;
use bulkhead_store::run::Run;
use bulkhead_store::{StoreConfig, StoreError};
use futures_util::FutureExt as _;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};

use crate::engine::ATTEMPT_DEADLINE;
use crate::heartbeat::{self, Heartbeat, LEASE_TTL};
use crate::in_flight::Leash;
use crate::run::FreshRun;
use crate::supervise::Supervisor;
use crate::turns::{Planned, Turns};
use crate::worker::slots::{LaneSlots, Slot};
use crate::worker::threads::QueueThreads;
use crate::{App, AppError};

/// Without a wake-up the queue is looked at this often.
const POLL_EVERY: Duration = Duration::from_millis(250);
/// Future jobs promoted in one statement.
const PROMOTE_MAX: u32 = 1_000;
/// Jobs claimed in one transaction.
const CLAIM_MAX: usize = 64;
/// Organizations with ready work that one look at the queue tells of; the next look goes on from there.
const LISTED_MAX: u32 = 2_000;
/// A job of a kind that this binary does not know is left for a newer node, and looked at again after this long.
const UNKNOWN_KIND_PAUSE: Duration = Duration::from_secs(30);

/// How many jobs of each lane run at once.
#[derive(Clone, Copy, Debug)]
pub struct Slots {
    pub system: usize,
    pub interactive: usize,
    pub bulk: usize,
}

impl Default for Slots {
    fn default() -> Self {
        Self { system: 8, interactive: 128, bulk: 16 }
    }
}

/// How the worker of a process runs.
pub struct WorkerConfig {
    /// Shown to operators: host name and process id.
    pub name: String,
    pub slots: Slots,
    /// PostgreSQL: how the heartbeat's thread opens a connection of its own. `None` on SQLite, whose directory lock stands in
    /// for heartbeats.
    pub heartbeat: Option<StoreConfig>,
}

/// How the rest of the process speaks to its worker: what there is to do, and whether a new job can be taken at once.
#[derive(Clone, Default)]
pub(crate) struct Wake(Arc<WakeState>);

#[derive(Default)]
struct WakeState {
    notify: Notify,
    /// Something may be ready of which no organization was told: look at the queue.
    look: AtomicBool,
    turns: Turns,
    /// Weak, since the worker holds the application.
    worker: OnceLock<Weak<Worker>>,
    /// From the first worker on, and as long as the application: what a job leaves behind on them may go on after the worker.
    queue: OnceLock<QueueThreads>,
}

impl Wake {
    /// There is work somewhere.
    pub(crate) fn wake(&self) {
        self.0.look.store(true, Ordering::SeqCst);
        self.0.notify.notify_one();
    }

    /// The organization has work in the lane.
    pub(crate) fn wake_org(&self, lane: Lane, org: OrgId) {
        self.0.turns.tell(lane, org);
        self.0.notify.notify_one();
    }

    /// The queue's threads, which are started here if they are not there yet.
    fn queue_threads(&self) -> std::io::Result<Handle> {
        if let Some(threads) = self.0.queue.get() {
            return Ok(threads.handle().clone());
        }
        let started = QueueThreads::start()?;
        Ok(self.0.queue.get_or_init(|| started).handle().clone())
    }

    /// A free slot for a job that the organization is about to make, unless it has something that waits already.
    pub(crate) fn reserve(&self, lane: Lane, org: OrgId) -> Option<Reserved> {
        let worker = self.0.worker.get()?.upgrade()?;
        let is_idle = self.0.turns.is_idle_beside(lane, org)?;
        // A fence from here on ends what is begun, whenever the answer comes that it may begin.
        let hold = Hold::new(&worker.app);
        let stops = worker.supervisor.stop_token().is_cancelled();
        if worker.heartbeat.is_fenced() || stops || worker.app.node().missing_root().is_some() {
            return None;
        }
        let slot = worker.slots(lane)?.take_for_start(org, is_idle)?;
        Some(Reserved { worker, lane, slot, hold })
    }
}

/// What a job is carried out under, from before the transaction that takes it.
struct Hold {
    leash: Leash,
    since: Instant,
}

impl Hold {
    fn new(app: &App) -> Self {
        Self { leash: app.in_flight().leash(), since: Instant::now() }
    }

    /// One more for the same transaction.
    fn another(&self) -> Self {
        Self { leash: self.leash.another(), since: self.since }
    }
}

/// A slot of this process's worker, kept for one job.
pub(crate) struct Reserved {
    worker: Arc<Worker>,
    lane: Lane,
    slot: Slot,
    hold: Hold,
}

impl Reserved {
    pub(crate) fn worker(&self) -> WorkerId {
        self.worker.id
    }

    /// Saves a run, and its job with it, by `save`, and begins the job where the worker holds it then, with the installation that its first
    /// call is of. Whoever asked may go away: once it is saved it begins all the same, and nobody need find out that it did not.
    ///
    /// # Errors
    /// Those of `save`; the store's when the process ends first.
    pub(crate) async fn begin<T, S>(self, org: OrgId, run: Run, save: S) -> Result<T, AppError>
    where
        T: Send + 'static,
        S: Future<Output = Result<(T, Option<(ClaimedJob, Option<Installation>)>), AppError>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.worker.supervisor.clone().spawn("job", async move {
            let (saved, held) = match save.await {
                Ok((saved, held)) => (Ok(saved), held),
                Err(error) => (Err(error), None),
            };
            let Self { worker, lane, slot, hold } = self;
            let is_queued = saved.is_ok() && held.is_none();
            // Who no longer listens loses only the answer.
            drop(reply.send(saved));
            // On PostgreSQL a claim that met this start passed its organization by.
            let wake = &worker.app.wake().0;
            if worker.app.store().is_postgres() && wake.turns.is_idle_beside(lane, org).is_none() {
                wake.notify.notify_one();
            }
            if let Some((job, installation)) = held {
                let begun = Box::new(FreshRun { run, installation });
                return worker.carry(lane, job, slot, hold, Some(begun)).await;
            }
            drop((slot, hold));
            if is_queued {
                worker.app.wake_org(lane, org);
            }
        });
        answer.await.unwrap_or_else(|_| Err(AppError::Store(StoreError::TimedOut)))
    }
}

struct Worker {
    app: App,
    id: WorkerId,
    lanes: Vec<(Lane, LaneSlots)>,
    heartbeat: Arc<Heartbeat>,
    /// Whether a thread of its own renews the heartbeat; without one the recovery loop does.
    has_heartbeat_thread: bool,
    supervisor: Supervisor,
    /// The jobs under way, with their fences.
    held: Mutex<HashSet<(JobId, i64)>>,
    /// Where runs, and what is done in bulk, are carried out that a claim took. `None` on PostgreSQL: a connection wakes whoever waits for it
    /// by the executor that opened it, so that one opened over there, whose threads are busy, would make everybody wait.
    queue: Option<Handle>,
}

/// Of what a worker does for all organizations.
const SCOPE: SystemScope = SystemScope::new(SystemReason::Jobs);

impl App {
    /// Recovers what a dead process left, then works until shutdown.
    ///
    /// # Errors
    /// The store's, when the worker cannot be registered; a refusal, when the system gives no thread.
    pub async fn start_worker(&self, config: WorkerConfig, supervisor: &Supervisor) -> Result<WorkerId, StoreError> {
        let refused = |error: std::io::Error| StoreError::Refused(format!("cannot start the queue's threads: {error}"));
        let queue = if self.store().is_postgres() { None } else { Some(self.wake().queue_threads().map_err(refused)?) };
        let (id, registering) = (WorkerId::new(self.ambient()), Instant::now());
        // Only told, for those who ask why a run waits: nothing rests on it.
        let slots = |slots: usize| i64::try_from(slots).unwrap_or(i64::MAX);
        let told = NodeSlots {
            system: slots(config.slots.system),
            interactive: slots(config.slots.interactive),
            bulk: slots(config.slots.bulk),
        };
        let args = (id, config.name.clone(), told, self.sealer().root_standings(), self.ambient().clone());
        let recovered = self
            .store()
            .write_locked(&SCOPE, args, |tx, (id, name, told, roots, ambient)| {
                Box::pin(async move {
                    tx.insert_worker(*id, name, ambient.now(), LEASE_TTL).await?;
                    tx.update_node_slots(*id, *told).await?;
                    tx.update_node_roots(*id, roots).await?;
                    tx.recover_jobs(*id, ambient.now()).await
                })
            })
            .await?;
        if recovered > 0 {
            tracing::info!(jobs = recovered, "took up the work of a process that ended");
        }
        let lanes = [
            (Lane::System, config.slots.system),
            (Lane::Interactive, config.slots.interactive),
            (Lane::Bulk, config.slots.bulk),
        ];
        let worker = Arc::new(Worker {
            app: self.clone(),
            id,
            lanes: lanes.into_iter().map(|(lane, slots)| (lane, LaneSlots::new(lane, slots))).collect(),
            heartbeat: Arc::new(Heartbeat::new(self.clone(), id, config.name, told)),
            has_heartbeat_thread: config.heartbeat.is_some(),
            supervisor: supervisor.clone(),
            held: Mutex::default(),
            queue,
        });
        if let Some(store) = config.heartbeat {
            self.node().has_heartbeat(heartbeat::spawn(Arc::clone(&worker.heartbeat), store, registering));
        }
        // Before the first claim, so that no run of an open one is taken up; under a heartbeat, since there may be many.
        if let Err(error) = self.tend_breakers(None).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "breakers were not looked at");
        }
        self.wake().0.worker.set(Arc::downgrade(&worker)).ok();
        let claiming = Arc::clone(&worker);
        supervisor.spawn_loop("claim", move || Arc::clone(&claiming).claim_loop());
        upkeep::start(&worker, supervisor);
        self.measure_queue(supervisor);
        self.node().works_as(id);
        Ok(id)
    }
}

/// A job under way, told of until it ends, by a panic as well: what is left then is handed back as a stray.
struct Holding {
    worker: Arc<Worker>,
    held: (JobId, i64),
}

impl Holding {
    fn new(worker: &Arc<Worker>, held: (JobId, i64)) -> Self {
        worker.held().insert(held);
        Self { worker: Arc::clone(worker), held }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.worker.held().remove(&self.held);
    }
}

/// How far the look at the queue has come.
struct Look {
    at: Option<Instant>,
    /// When the next job is due.
    due: Option<Instant>,
    /// For each lane, after which organization the next look goes on.
    after: [Option<OrgId>; 3],
}

impl Look {
    /// Whether it is time for the next one.
    fn is_due(&self) -> bool {
        self.at.is_none_or(|at| at.elapsed() >= POLL_EVERY) || self.due.is_some_and(|due| due <= Instant::now())
    }
}

impl Worker {
    fn held(&self) -> std::sync::MutexGuard<'_, HashSet<(JobId, i64)>> {
        self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn slots(&self, lane: Lane) -> Option<&LaneSlots> {
        self.lanes.iter().find(|(name, _)| *name == lane).map(|(_, slots)| slots)
    }

    async fn claim_loop(self: Arc<Self>) {
        let (stop, wake) = (self.supervisor.stop_token(), Arc::clone(&self.app.wake().0));
        let mut queue = Look { at: None, due: None, after: [None; 3] };
        while !stop.is_cancelled() {
            let pause = match self.work_through(&wake, &mut queue).await {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "claiming failed; trying again");
                    wake.look.store(true, Ordering::SeqCst);
                    tokio::time::sleep(POLL_EVERY).await;
                    continue;
                }
            };
            tokio::select! {
                () = wake.notify.notified() => {}
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Looks at the queue where it is time for it, and claims until there is nothing to claim or no slot for it. Answers after how
    /// long to look again if nobody wakes it.
    async fn work_through(self: &Arc<Self>, wake: &WakeState, queue: &mut Look) -> Result<Duration, StoreError> {
        if self.heartbeat.is_fenced() || self.app.node().missing_root().is_some() {
            return Ok(POLL_EVERY);
        }
        if wake.look.swap(false, Ordering::SeqCst) || queue.is_due() {
            queue.due = self.look(wake, queue).await?.map(|until| Instant::now() + until);
            queue.at = Some(Instant::now());
        }
        let stop = self.supervisor.stop_token();
        while self.claim(wake).await? {
            // A long queue must not hold up a shutdown or a fence, nor what becomes due meanwhile.
            if stop.is_cancelled() || self.heartbeat.is_fenced() {
                return Ok(POLL_EVERY);
            }
            if queue.is_due() {
                return Ok(Duration::ZERO);
            }
        }
        let until_due = queue.due.map(|due| due.saturating_duration_since(Instant::now()));
        Ok(until_due.map_or(POLL_EVERY, |until| until.min(POLL_EVERY)))
    }

    /// Promotes what is due and finds out who has ready work. Answers how long it is until the next job is due.
    async fn look(&self, wake: &WakeState, queue: &mut Look) -> Result<Option<Duration>, StoreError> {
        // From a reader, so that an idle process does not trouble the writer.
        let next_at =
            self.app.store().read(&SCOPE, (), |tx, ()| Box::pin(async move { tx.next_job_at().await })).await?;
        let now = self.app.ambient().now();
        let mut until = next_at.map(|at| at.since(now));
        if next_at.is_some_and(|at| at <= now) {
            let promoted = self
                .app
                .store()
                .write_locked(&SCOPE, now, |tx, now| Box::pin(async move { tx.promote_jobs(*now, PROMOTE_MAX).await }))
                .await?;
            // There may be more of them, and the next one is not known.
            until = (promoted > 0).then_some(Duration::ZERO);
        }
        let listed = self
            .app
            .store()
            .read(&SCOPE, queue.after, |tx, after| {
                Box::pin(async move {
                    let mut listed = Vec::new();
                    for (lane, after) in Lane::ALL.into_iter().zip(after) {
                        listed.push((lane, tx.list_ready_orgs(lane, *after, LISTED_MAX).await?));
                    }
                    Ok::<_, StoreError>(listed)
                })
            })
            .await?;
        for ((lane, orgs), after) in listed.into_iter().zip(&mut queue.after) {
            for (org, weight) in &orgs {
                wake.turns.tell(lane, *org);
                wake.turns.set_weight(lane, *org, *weight);
            }
            *after = if orgs.len() < LISTED_MAX as usize { None } else { orgs.last().map(|(org, _)| *org) };
        }
        Ok(until)
    }

    /// Fills free slots with the jobs whose turn it is; answers whether the line went on, so that others may stand first now.
    async fn claim(self: &Arc<Self>, wake: &WakeState) -> Result<bool, StoreError> {
        let mut turns: Vec<(Lane, OwnedSemaphorePermit, Vec<Planned>)> = Vec::new();
        for (lane, slots) in &self.lanes {
            if wake.turns.is_idle(*lane) {
                continue;
            }
            // Taken before the claim: starts take slots at the same time.
            let Some((permit, free)) = slots.take_for_claim(CLAIM_MAX) else { continue };
            let planned = wake.turns.plan(*lane, free);
            if !planned.is_empty() {
                turns.push((*lane, permit, planned));
            }
        }
        if turns.is_empty() {
            return Ok(false);
        }
        let wanted: Vec<(Lane, Vec<Turn>)> = turns
            .iter()
            .map(|(lane, _, planned)| (*lane, planned.iter().map(|planned| planned.turn).collect()))
            .collect();
        // A fence from here on ends what this claim takes as well.
        let before = Hold::new(&self.app);
        let claimed = self
            .app
            .store()
            .write_locked(&SCOPE, (self.id, wanted, self.app.ambient().clone()), |tx, (worker, wanted, ambient)| {
                Box::pin(async move {
                    let now = ambient.now();
                    let mut claims = Vec::with_capacity(wanted.len());
                    for (lane, turns) in wanted {
                        claims.push(tx.claim_jobs(*worker, *lane, turns, now, ATTEMPT_DEADLINE).await?);
                    }
                    Ok::<_, StoreError>(claims)
                })
            })
            .await;
        let claims = match claimed {
            Ok(claims) => claims,
            Err(error) => {
                // Nothing is known of what was ready.
                for (lane, _, planned) in &turns {
                    for planned in planned {
                        wake.turns.settle(*lane, planned, 0, TurnEnd::More);
                    }
                }
                return Err(error);
            }
        };
        let mut went_on = false;
        for ((lane, mut permit, planned), claim) in turns.into_iter().zip(claims) {
            for (planned, (org, end)) in planned.iter().zip(&claim.turns) {
                let taken = claim.jobs.iter().filter(|job| job.lease.org == *org).count();
                wake.turns.settle(lane, planned, u32::try_from(taken).unwrap_or(u32::MAX), *end);
                went_on |= taken > 0 || matches!(end, TurnEnd::Drained | TurnEnd::Full);
            }
            for job in claim.jobs {
                let Some(slot) = permit.split(1) else { break };
                self.start(lane, job, slot.into(), before.another());
            }
        }
        Ok(went_on)
    }

    fn start(self: &Arc<Self>, lane: Lane, job: ClaimedJob, slot: Slot, hold: Hold) {
        let work = Arc::clone(self).carry(lane, job, slot, hold, None);
        match (&self.queue, lane) {
            (Some(threads), Lane::Interactive | Lane::Bulk) => self.supervisor.spawn_on(threads, "job", work),
            // A moment's work, which a crowd of runs must not delay.
            (Some(_), Lane::System) | (None, _) => self.supervisor.spawn("job", work),
        }
    }

    /// Carries out a job that this worker holds. `begun` is the run as it was just saved, where that is known.
    async fn carry(self: Arc<Self>, lane: Lane, job: ClaimedJob, slot: Slot, hold: Hold, begun: Option<Box<FreshRun>>) {
        metrics::counter!("bulkhead_jobs_claimed_total", "kind" => job.kind.clone()).increment(1);
        let (org, held) = (job.lease.org, (job.lease.job, job.lease.fence));
        let holding = Holding::new(&self, held);
        let work = std::panic::AssertUnwindSafe(self.work(&job, hold, begun)).catch_unwind();
        if work.await.is_err() {
            self.hand_back_after_panic(&job).await;
        }
        drop((holding, slot));
        let wake = &self.app.wake().0;
        wake.turns.tell_room(lane, org);
        if !wake.turns.is_idle(lane) {
            wake.notify.notify_one();
        }
    }

    /// The attempt counts: what kills its task each time goes to the dead letters in the end.
    async fn hand_back_after_panic(&self, job: &ClaimedJob) {
        metrics::counter!("bulkhead_task_panics_total", "task" => "job").increment(1);
        tracing::error!(job = %job.lease.job, kind = %job.kind, "the task of a job panicked");
        let pause = self.app.fault_pause(job.lease.attempt);
        self.app.release(&job.lease, pause, Attempt::Counts, Some("its task panicked".to_owned())).await;
    }

    async fn work(&self, job: &ClaimedJob, hold: Hold, begun: Option<Box<FreshRun>>) {
        let Hold { mut leash, since } = hold;
        match serde_json::from_str::<JobPayload>(&job.payload) {
            Ok(JobPayload::AdvanceRun { run }) => {
                leash.hold(job.lease.org, run);
                let left = self.app.advance_run(job, run, &leash, since, begun).await;
                tracing::debug!(job = %job.lease.job, run = %run, ?left, "left a job");
            }
            Ok(JobPayload::FireSchedule { workflow, trigger }) => {
                let left = self.app.fire_schedule(job, workflow, &trigger).await;
                tracing::debug!(job = %job.lease.job, %workflow, %trigger, ?left, "left a job");
            }
            // It may be what kills its worker; it is made anew some minutes later.
            Ok(JobPayload::PruneHistory | JobPayload::TendKeys) if job.lease.attempt > job.attempts_max => {
                self.bury(job, "exhausted", "its worker died at every attempt".to_owned()).await;
            }
            Ok(JobPayload::PruneHistory) => {
                let left = self.app.prune_history(&job.lease, &leash).await;
                tracing::debug!(job = %job.lease.job, ?left, "left a job");
            }
            Ok(JobPayload::TendKeys) => {
                let left = self.app.tend_keys(&job.lease, &leash).await;
                tracing::debug!(job = %job.lease.job, ?left, "left a job");
            }
            Ok(JobPayload::WorkDeadLetters { task }) => {
                let left = self.app.work_dead_letters(job, task, &leash).await;
                tracing::debug!(job = %job.lease.job, %task, ?left, "left a job");
            }
            // A newer node's, during a rolling upgrade; or nobody's, which the attempts find out.
            Err(error) if !JobPayload::is_known_kind(&job.kind) && job.lease.attempt < job.attempts_max => {
                let why = format!("this version does not know jobs of the kind {}: {error}", job.kind);
                self.app.release(&job.lease, UNKNOWN_KIND_PAUSE, Attempt::Counts, Some(why)).await;
            }
            Err(error) => self.bury(job, "undecodable", format!("the payload does not decode: {error}")).await,
        }
    }

    async fn bury(&self, job: &ClaimedJob, code: &str, error: String) {
        tracing::error!(job = %job.lease.job, kind = %job.kind, error = %error, "a job goes to the dead letters");
        let scope = SystemScope::new(SystemReason::Worker).for_org(job.lease.org);
        let kind = job.kind.as_str();
        metrics::counter!("bulkhead_jobs_dead_total", "kind" => job.kind.clone()).increment(1);
        let letter = NewDeadLetter {
            fingerprint: Fault { kind, code, step: None, message: &error }.fingerprint(),
            kind: job.kind.clone(),
            subject: job.lease.job.to_string(),
            workflow: None,
            run: None,
            job: Some(job.lease.job),
            step: None,
            code: code.to_owned(),
            message: error,
        };
        let args = (job.lease.clone(), letter, self.app.ambient().clone());
        let buried = self
            .app
            .store()
            .write_locked(&scope, args, |tx, (lease, letter, ambient)| {
                Box::pin(async move {
                    tx.bury_job(lease, &letter.message, ambient).await?;
                    tx.record_dead_letter(letter, ambient).await
                })
            })
            .await;
        if let Err(error) = buried {
            tracing::warn!(job = %job.lease.job, error = &error as &dyn std::error::Error, "a job could not be buried; trying again later");
            self.app.release(&job.lease, UNKNOWN_KIND_PAUSE, Attempt::Counts, None).await;
        }
    }
}

impl App {
    /// Stops claiming, lets jobs under way finish for `patience`, then cancels their calls and hands the jobs back without
    /// counting an attempt.
    pub async fn stop_worker(&self, supervisor: &Supervisor, patience: Duration) {
        self.drain_node().await;
        if !supervisor.shut_down(patience).await {
            tracing::info!("handing back jobs that are still under way");
            self.in_flight().hand_back_all();
            supervisor.shut_down(Duration::from_secs(5)).await;
        }
        // Until here the heartbeat went on: without it another node would take the jobs up beside this one.
        self.in_flight().done().cancel();
        self.leave_node().await;
    }
}
