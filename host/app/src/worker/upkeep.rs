//! What a worker looks after beside its jobs, in three loops of their own so that none waits for another: what dead or stuck workers
//! left ([`recover_loop`](Worker::recover_loop)), what may go on again ([`tend_loop`](Worker::tend_loop)), and the jobs that remove
//! history and see to keys ([`arm_loop`](Worker::arm_loop)).

use std::collections::HashSet;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_model::id::JobId;
use bulkhead_store::StoreError;
use bulkhead_store::job::Attempt;

use super::{SCOPE, Worker};
use crate::supervise::Supervisor;

/// Dead workers, stuck jobs and breakers are looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A heartbeat is looked at so long after its end.
const RECOVER_MARGIN: Duration = Duration::from_millis(10);
/// Groups of blocked jobs are looked through this often, for room that no job's end told of.
const ADMIT_EVERY: Duration = Duration::from_secs(5);
/// Jobs that nobody here works on although this worker holds them are looked for this often.
const RELEASE_EVERY: Duration = Duration::from_secs(5);
/// Schedules that lost their job are looked for this often.
const REARM_EVERY: Duration = Duration::from_mins(1);
/// The jobs that see to each organization's history are looked for after a minute, then this often: where one is missing (a new
/// organization, one that was given up) it is made.
const ARM_EVERY: Duration = Duration::from_mins(10);
const ARM_FIRST: Duration = Duration::from_mins(1);

pub(super) fn start(worker: &Arc<Worker>, supervisor: &Supervisor) {
    let (recovering, tending, arming) = (Arc::clone(worker), Arc::clone(worker), Arc::clone(worker));
    supervisor.spawn_loop("recover", move || Arc::clone(&recovering).recover_loop());
    supervisor.spawn_loop("tend", move || Arc::clone(&tending).tend_loop());
    supervisor.spawn_loop("arm", move || Arc::clone(&arming).arm_loop());
}

/// Something that is done again and again.
struct Chore {
    every: Duration,
    done: Option<Instant>,
}

impl Chore {
    /// Due at once.
    fn new(every: Duration) -> Self {
        Self { every, done: None }
    }

    /// Due for the first time when one interval is over.
    fn later(every: Duration) -> Self {
        Self { every, done: Some(Instant::now()) }
    }

    /// Whether to do it now; whoever asks does.
    fn is_due(&mut self) -> bool {
        let is_due = self.done.is_none_or(|done| done.elapsed() >= self.every);
        if is_due {
            self.done = Some(Instant::now());
        }
        is_due
    }
}

impl Worker {
    /// Waits; `false` when the process stops.
    async fn pause(&self, pause: Duration) -> bool {
        let stop = self.supervisor.stop_token();
        tokio::select! {
            () = tokio::time::sleep(pause) => !stop.is_cancelled(),
            () = stop.cancelled() => false,
        }
    }

    async fn recover_loop(self: Arc<Self>) {
        let mut pause = LOOK_EVERY;
        while self.pause(std::mem::replace(&mut pause, LOOK_EVERY)).await {
            if !self.has_heartbeat_thread {
                match self.heartbeat.renew(self.app.store()).await {
                    Ok(true) => {}
                    Ok(false) => self.app.in_flight().hand_back_all(),
                    Err(error) => tracing::warn!(error = &error as &dyn Error, "the heartbeat failed"),
                }
            }
            if self.heartbeat.is_fenced() {
                continue;
            }
            match self.recover().await {
                // A node that died is noticed when its heartbeat ends, not up to a second later.
                Ok(ends_in) => pause = ends_in.map_or(pause, |ends_in| pause.min(ends_in + RECOVER_MARGIN)),
                Err(error) => tracing::warn!(error = &error as &dyn Error, "recovery failed; trying again"),
            }
        }
    }

    /// Takes up what dead and stuck workers left. Answers after how long the next heartbeat ends.
    async fn recover(&self) -> Result<Option<Duration>, StoreError> {
        let args = (self.id, self.app.ambient().clone());
        let (jobs, ends_in) = self
            .app
            .store()
            .write_locked(&SCOPE, args, |tx, (id, ambient)| {
                Box::pin(async move {
                    let now = ambient.now();
                    let jobs = tx.recover_jobs(*id, now).await? + tx.free_stuck_jobs(now).await?;
                    Ok::<_, StoreError>((jobs, tx.next_heartbeat_end(*id).await?))
                })
            })
            .await?;
        if jobs > 0 {
            tracing::info!(jobs, "took up jobs of dead or stuck workers");
            self.app.wake_workers();
        }
        Ok(ends_in)
    }

    /// Whatever goes wrong with one of these is said, and does not keep the others back.
    async fn tend_loop(self: Arc<Self>) {
        let (mut admit, mut release) = (Chore::later(ADMIT_EVERY), Chore::later(RELEASE_EVERY));
        let mut rearm = Chore::new(REARM_EVERY);
        let (mut tended_after, mut blocked_after, mut strays) = (None, None, HashSet::new());
        while self.pause(LOOK_EVERY).await {
            if self.heartbeat.is_fenced() {
                continue;
            }
            match self.app.tend_breakers(tended_after.take()).await {
                Ok(after) => tended_after = after,
                Err(error) => tracing::warn!(error = &error as &dyn Error, "breakers were not looked at"),
            }
            if admit.is_due() {
                match self.admit_blocked(blocked_after.take()).await {
                    Ok(after) => blocked_after = after,
                    Err(error) => tracing::warn!(error = &error as &dyn Error, "blocked jobs were not looked at"),
                }
            }
            if release.is_due() {
                strays = self.release_strays(&strays).await;
            }
            if rearm.is_due() {
                match self.app.rearm_lost_schedules().await {
                    Ok(0) => {}
                    Ok(_) => self.app.wake_workers(),
                    Err(error) => tracing::warn!(error = &error as &dyn Error, "lost schedules were not looked for"),
                }
            }
        }
    }

    /// `after` is the group that the last look ended with; answers the same for the next one.
    async fn admit_blocked(&self, after: Option<String>) -> Result<Option<String>, StoreError> {
        let args = (after, self.app.ambient().now());
        let admit = self.app.store().write_locked(&SCOPE, args, |tx, (after, now)| {
            Box::pin(async move { tx.admit_blocked_jobs(after.as_deref(), *now).await })
        });
        admit.await
    }

    /// Hands back jobs that this worker holds by the database and not by itself: a claim whose answer was lost. Only those that
    /// were so at the last look as well (`before`), since a claim may be under way. Answers what to look at next time.
    async fn release_strays(&self, before: &HashSet<(JobId, i64)>) -> HashSet<(JobId, i64)> {
        let listed = self
            .app
            .store()
            .read(&SCOPE, self.id, |tx, id| Box::pin(async move { tx.list_held_jobs(*id).await }))
            .await;
        let leases = match listed {
            Ok(leases) => leases,
            Err(error) => {
                tracing::warn!(error = &error as &dyn Error, "held jobs could not be listed");
                return HashSet::new();
            }
        };
        let (mut strays, mut to_release) = (HashSet::new(), Vec::new());
        for lease in leases {
            let key = (lease.job, lease.fence);
            if self.held().contains(&key) {
                continue;
            }
            if before.contains(&key) {
                to_release.push(lease);
            } else {
                strays.insert(key);
            }
        }
        for lease in to_release {
            tracing::warn!(job = %lease.job, "a claimed job was never begun: handing it back");
            self.app.release(&lease, Duration::ZERO, Attempt::DoesNotCount, None).await;
        }
        strays
    }

    /// With many new organizations it writes for a while.
    async fn arm_loop(self: Arc<Self>) {
        let mut pause = ARM_FIRST;
        while self.pause(std::mem::replace(&mut pause, ARM_EVERY)).await {
            if self.heartbeat.is_fenced() {
                pause = ARM_FIRST;
                continue;
            }
            let stop = self.supervisor.stop_token();
            let armed = tokio::select! {
                armed = self.app.arm_pruning() => armed,
                () = stop.cancelled() => return,
            };
            if let Err(error) = armed {
                tracing::warn!(error = &error as &dyn Error, "jobs that remove history could not be made");
            }
            let armed = tokio::select! {
                armed = self.app.arm_key_work() => armed,
                () = stop.cancelled() => return,
            };
            if let Err(error) = armed {
                tracing::warn!(error = &error as &dyn Error, "keys that are due could not be looked for");
            }
            let tended = tokio::select! {
                tended = self.app.tend_people() => tended,
                () = stop.cancelled() => return,
            };
            match tended {
                Ok(0) => {}
                Ok(values) => {
                    tracing::info!(values, "what belongs to people was sealed anew under the root key that wraps");
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn Error, "what belongs to people could not be sealed anew");
                }
            }
        }
    }
}
