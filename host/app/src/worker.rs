//! The worker of this process: claims jobs, carries them out in bounded slots per lane and recovers what dead workers left. While
//! its heartbeat is overdue ([`heartbeat`](crate::heartbeat)) it claims nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_model::id::WorkerId;
use bulkhead_model::job::{JobPayload, Lane};
use bulkhead_model::permission::{SystemReason, SystemScope};
use bulkhead_store::job::ClaimedJob;
use bulkhead_store::{StoreConfig, StoreError};
use tokio::sync::{Notify, Semaphore};

use crate::App;
use crate::engine::ATTEMPT_DEADLINE;
use crate::heartbeat::{self, Heartbeat, LEASE_TTL};
use crate::supervise::Supervisor;

/// Without a wake-up the queue is looked at this often.
const POLL_EVERY: Duration = Duration::from_millis(250);
/// Dead workers and stuck jobs are looked for this often.
const RECOVER_EVERY: Duration = Duration::from_secs(1);
/// Future jobs promoted in one statement.
const PROMOTE_MAX: u32 = 1_000;
/// Jobs claimed in one statement.
const CLAIM_MAX: u32 = 64;

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

/// Wakes the claim loop of this process. Other nodes are told by [`node`](crate::node).
#[derive(Clone, Default)]
pub(crate) struct Wake(Arc<Notify>);

impl Wake {
    pub(crate) fn wake(&self) {
        self.0.notify_one();
    }
}

struct Worker {
    app: App,
    id: WorkerId,
    lanes: Vec<(Lane, Arc<Semaphore>)>,
    heartbeat: Arc<Heartbeat>,
    /// Whether a thread of its own renews the heartbeat; without one the recovery loop does.
    has_heartbeat_thread: bool,
    supervisor: Supervisor,
}

const SCOPE: SystemScope = SystemScope::new(SystemReason::Jobs);

impl App {
    /// Recovers what a dead process left, then works until shutdown.
    ///
    /// # Errors
    /// The store's, when the worker cannot be registered.
    pub async fn start_worker(&self, config: WorkerConfig, supervisor: &Supervisor) -> Result<WorkerId, StoreError> {
        let (id, registering) = (WorkerId::new(self.ambient()), Instant::now());
        let args = (id, config.name.clone(), self.ambient().clone());
        let recovered = self
            .store()
            .write_locked(&SCOPE, args, |tx, (id, name, ambient)| {
                Box::pin(async move {
                    tx.insert_worker(*id, name, ambient.now(), LEASE_TTL).await?;
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
            lanes: lanes.into_iter().map(|(lane, slots)| (lane, Arc::new(Semaphore::new(slots)))).collect(),
            heartbeat: Arc::new(Heartbeat::new(self.clone(), id, config.name)),
            has_heartbeat_thread: config.heartbeat.is_some(),
            supervisor: supervisor.clone(),
        });
        if let Some(store) = config.heartbeat {
            self.node().has_heartbeat(heartbeat::spawn(Arc::clone(&worker.heartbeat), store, registering));
        }
        let claiming = Arc::clone(&worker);
        supervisor.spawn_loop("claim", move || Arc::clone(&claiming).claim_loop());
        let recovering = Arc::clone(&worker);
        supervisor.spawn_loop("recover", move || Arc::clone(&recovering).recover_loop());
        self.node().works_as(id);
        Ok(id)
    }
}

impl Worker {
    async fn claim_loop(self: Arc<Self>) {
        let stop = self.supervisor.stop_token();
        let wake = Arc::clone(&self.app.wake().0);
        while !stop.is_cancelled() {
            let claimed = match self.claim().await {
                Ok(claimed) => claimed,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "claiming failed; trying again");
                    tokio::time::sleep(POLL_EVERY).await;
                    continue;
                }
            };
            if claimed > 0 {
                continue;
            }
            tokio::select! {
                () = wake.notified() => {}
                () = tokio::time::sleep(POLL_EVERY) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Promotes what is due and fills free slots; answers how many jobs were taken.
    async fn claim(self: &Arc<Self>) -> Result<usize, StoreError> {
        if self.heartbeat.is_fenced() {
            return Ok(0);
        }
        let free: Vec<(Lane, u32)> = self
            .lanes
            .iter()
            .filter_map(|(lane, slots)| {
                let free = u32::try_from(slots.available_permits()).unwrap_or(u32::MAX).min(CLAIM_MAX);
                (free > 0).then_some((*lane, free))
            })
            .collect();
        if free.is_empty() {
            return Ok(0);
        }
        // Looked at from a reader first, so that an idle process does not trouble the writer.
        let (due, wanted) = self
            .app
            .store()
            .read(&SCOPE, (free, self.app.ambient().clone()), |tx, (free, ambient)| {
                Box::pin(async move {
                    let due = tx.next_job_at().await?.is_some_and(|at| at <= ambient.now());
                    let mut wanted = Vec::new();
                    for (lane, limit) in free {
                        if due || tx.has_ready_jobs(*lane).await? {
                            wanted.push((*lane, *limit));
                        }
                    }
                    Ok::<_, StoreError>((due, wanted))
                })
            })
            .await?;
        if wanted.is_empty() {
            return Ok(0);
        }
        let args = (self.id, wanted, due, self.app.ambient().clone());
        let jobs = self
            .app
            .store()
            .write_locked(&SCOPE, args, |tx, (worker, wanted, due, ambient)| {
                Box::pin(async move {
                    let now = ambient.now();
                    if *due {
                        tx.promote_jobs(now, PROMOTE_MAX).await?;
                    }
                    let mut jobs = Vec::new();
                    for (lane, limit) in wanted {
                        let claimed = tx.claim_jobs(*worker, *lane, *limit, now, ATTEMPT_DEADLINE).await?;
                        jobs.extend(claimed.into_iter().map(|job| (*lane, job)));
                    }
                    Ok::<_, StoreError>(jobs)
                })
            })
            .await?;
        let taken = jobs.len();
        for (lane, job) in jobs {
            self.start(lane, job);
        }
        Ok(taken)
    }

    fn start(self: &Arc<Self>, lane: Lane, job: ClaimedJob) {
        metrics::counter!("bulkhead_jobs_claimed_total", "kind" => job.kind.clone()).increment(1);
        let Some((_, slots)) = self.lanes.iter().find(|(name, _)| *name == lane) else { return };
        let slot = Arc::clone(slots).try_acquire_owned();
        let worker = Arc::clone(self);
        self.supervisor.spawn("job", async move {
            // Slots were counted before the claim by the only claimer, so one is free.
            let _slot = slot;
            worker.work(job).await;
            worker.app.wake().wake();
        });
    }

    async fn work(&self, job: ClaimedJob) {
        match serde_json::from_str::<JobPayload>(&job.payload) {
            Ok(JobPayload::AdvanceRun { run }) => {
                let leash = self.app.in_flight().leash(job.lease.org, run);
                let left = self.app.advance_run(&job.lease, run, &leash).await;
                tracing::debug!(job = %job.lease.job, run = %run, ?left, "left a job");
            }
            Ok(JobPayload::FireSchedule { workflow, trigger }) => {
                let left = self.app.fire_schedule(&job.lease, workflow, &trigger).await;
                tracing::debug!(job = %job.lease.job, %workflow, %trigger, ?left, "left a job");
            }
            Err(error) => self.bury(&job, format!("the payload does not decode: {error}")).await,
        }
    }

    async fn bury(&self, job: &ClaimedJob, error: String) {
        tracing::error!(job = %job.lease.job, kind = %job.kind, error = %error, "a job goes to the dead letters");
        let scope = SystemScope::new(SystemReason::Worker).for_org(job.lease.org);
        let args = (job.lease.clone(), error, self.app.ambient().clone());
        let buried = self
            .app
            .store()
            .write_locked(&scope, args, |tx, (lease, error, ambient)| {
                Box::pin(async move { tx.bury_job(lease, error, ambient.now()).await })
            })
            .await;
        if let Err(error) = buried {
            tracing::warn!(job = %job.lease.job, error = &error as &dyn std::error::Error, "a job could not be buried");
        }
    }

    async fn recover_loop(self: Arc<Self>) {
        let stop = self.supervisor.stop_token();
        while !stop.is_cancelled() {
            tokio::select! {
                () = tokio::time::sleep(RECOVER_EVERY) => {}
                () = stop.cancelled() => return,
            }
            if !self.has_heartbeat_thread {
                match self.heartbeat.renew(self.app.store()).await {
                    Ok(true) => {}
                    Ok(false) => self.app.in_flight().hand_back_all(),
                    Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "the heartbeat failed"),
                }
            }
            if self.heartbeat.is_fenced() {
                continue;
            }
            let args = (self.id, self.app.ambient().clone());
            let recovered = self
                .app
                .store()
                .write_locked(&SCOPE, args, |tx, (id, ambient)| {
                    Box::pin(async move {
                        let now = ambient.now();
                        Ok::<_, StoreError>(tx.recover_jobs(*id, now).await? + tx.free_stuck_jobs(now).await?)
                    })
                })
                .await;
            match recovered {
                Ok(0) => {}
                Ok(jobs) => {
                    tracing::info!(jobs, "took up jobs of dead or stuck workers");
                    self.app.wake_workers();
                }
                Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "recovery failed; trying again"),
            }
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
