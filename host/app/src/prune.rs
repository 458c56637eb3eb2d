//! The job of each organization that counts what has ended and removes what is not to be kept any longer.
//!
//! Each batch is a transaction of its own, which proves the job's lease and moves the history's row on: whatever is killed, the next
//! holder goes on from there, and no two nodes remove at the same time. What may go is decided outside, from a reader, and looked at
//! again where it is removed. What is over the quota goes oldest first, before its time
//! (`docs/decisions/0010-the-oldest-history-makes-room.md`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{CallId, EventId, OrgId};
use bulkhead_model::job::{JobPayload, Lane, Lease};
use bulkhead_model::permission::{OrgScope, SystemReason, SystemScope};
use bulkhead_model::retention::{
    EVICTION_AGE_MIN, Ended, EndedRun, Growth, LOOK_PAUSE_MAX, RECOUNT_EVERY, RetentionPolicy, excess, look_pause,
};
use bulkhead_model::time::Timestamp;
use bulkhead_store::job::{Attempt, NewJob};
use bulkhead_store::prune::{EndedPlace, EndedRow, Removal};
use bulkhead_store::retention::{History, Pass};
use bulkhead_store::{StoreError, Tx};
use serde_json::json;

use crate::engine::{ATTEMPT_DEADLINE, Left};
use crate::in_flight::Leash;
use crate::{App, AppError};

/// The job is given up after this many deaths of workers that held it, and made anew some minutes later.
const JOB_ATTEMPTS_MAX: u32 = 25;
const JOB_KIND: &str = "prune_history";
const JOB_KEY: &str = "history";
/// After a failure of the host's the job comes again after this long.
const FAULT_PAUSE: Duration = Duration::from_secs(30);
/// A claim that could only put keys aside comes again when their runs may go.
const KEYS_PAUSE: Duration = Duration::from_secs(30);
/// For so long one organization's job goes on before others of its lane have their turn.
const SLICE: Duration = Duration::from_secs(5);
/// The lease is proved this often while only reading goes on.
const PROVE_EVERY: Duration = Duration::from_secs(30);
/// Rows read at once: places of an index to count, and rows that may go.
const COUNT_PAGE: u32 = 5_000;
const LINE_PAGE: u32 = 200;
/// Runs and calls removed in one transaction: so many that it takes about as long as a usual commit.
const BATCH_MAX: usize = 100;
const BATCH_FIRST: usize = 10;
const BATCH_SHORT: Duration = Duration::from_millis(8);
const BATCH_LONG: Duration = Duration::from_millis(30);
/// … and about so many bytes; a run that takes up more goes in parts.
pub(crate) const BATCH_BYTES: i64 = 4 << 20;
/// Events and keys removed in one transaction.
const EVENTS_BATCH: u32 = 500;
/// … and tasks, which may each name a thousand entries.
const TASKS_BATCH: u32 = 50;
/// Runs that ended within this time are not counted yet: their commits may still come. Above [`ATTEMPT_DEADLINE`].
const RUNS_LAG: Duration = Duration::from_mins(3);
/// As much for calls by hand, which are named when they begin.
const CALLS_LAG: Duration = Duration::from_mins(5);
/// Free pages that SQLite keeps for what is written next (64 MiB); more go back to the file system.
const PAGES_RESERVE: u32 = 16 * 1024;
/// Organizations looked at in one read for jobs that are missing.
const ORGS_PAGE: u32 = 500;

fn prune_job(run_at: Timestamp) -> NewJob {
    NewJob {
        payload: JobPayload::PruneHistory,
        priority: 100,
        run_at,
        dedupe_key: Some(JOB_KEY.to_owned()),
        attempts_max: JOB_ATTEMPTS_MAX,
        group: None,
    }
}

/// Lets the transaction's organization be looked at as soon as a worker is free.
pub(crate) async fn look_now(tx: &mut Tx, ambient: &Ambient) -> Result<(), StoreError> {
    tx.remove_waiting_job(JOB_KIND, JOB_KEY).await?;
    tx.enqueue(&prune_job(ambient.now()), ambient).await.map(drop)
}

/// Lets it look when what ends now can be counted, unless it looks before: `true` if it would have been later.
pub(crate) async fn look_soon(tx: &mut Tx, now: Timestamp) -> Result<bool, StoreError> {
    tx.bring_job_forward(JOB_KIND, JOB_KEY, now.plus(RUNS_LAG)).await
}

/// Something that has ended and may go.
#[derive(Clone, Debug)]
pub(crate) enum Candidate {
    Run { row: EndedRow, due: bool },
    Call { id: CallId, bytes: i64, due: bool },
}

impl Candidate {
    fn at(&self) -> Timestamp {
        match self {
            Self::Run { row, .. } => row.place.at,
            Self::Call { id, .. } => id.made_at(),
        }
    }

    pub(crate) fn bytes(&self) -> i64 {
        match self {
            Self::Run { row, .. } => row.bytes,
            Self::Call { bytes, .. } => *bytes,
        }
    }

    /// What is left of it after its first part went: that goes whatever its time is.
    fn with_bytes(&self, left: i64) -> Self {
        match self {
            Self::Run { row, .. } => Self::Run { row: EndedRow { bytes: left, ..row.clone() }, due: true },
            Self::Call { id, .. } => Self::Call { id: *id, bytes: left, due: true },
        }
    }

    /// Whether its time is over; else it may go for the quota's sake.
    fn is_due(&self) -> bool {
        match self {
            Self::Run { due, .. } | Self::Call { due, .. } => *due,
        }
    }
}

/// What has ended in one way, oldest first, read page by page.
pub(crate) struct Line {
    ended: Ended,
    waiting: VecDeque<Candidate>,
    runs_after: EndedPlace,
    calls_after: CallId,
    at_end: bool,
}

impl Line {
    pub(crate) fn new(ended: Ended) -> Self {
        let first = CallId::first_at(Timestamp::from_micros(0));
        Self { ended, waiting: VecDeque::new(), runs_after: EndedPlace::FIRST, calls_after: first, at_end: false }
    }

    pub(crate) fn take(&mut self) -> Option<Candidate> {
        self.waiting.pop_front()
    }
}

/// What one claim of the job works with.
struct Work {
    scope: OrgScope,
    lease: Lease,
    policy: RetentionPolicy,
    history_bytes_max: i64,
    history: History,
    /// The quota was passed, and the history is cut down to a little below it.
    cutting: bool,
    growth: Growth,
    /// What runs take up whose keys were put aside in this pass: they go with the next one.
    promised_bytes: i64,
    /// Whether this claim removed anything.
    removed: bool,
    began: Instant,
    proved: Instant,
}

impl Work {
    /// Bytes that have to go for the quota's sake.
    fn over(&self) -> i64 {
        self.excess(self.cutting)
    }

    fn excess(&self, cutting: bool) -> i64 {
        excess(self.history.bytes, self.history_bytes_max, cutting).saturating_sub(self.promised_bytes).max(0)
    }
}

/// How far a claim came.
enum Came {
    /// There is more; others have their turn.
    OutOfTime,
    HandBack,
    Through,
}

fn unseen(now: Timestamp) -> History {
    History {
        runs: 0,
        bytes: 0,
        runs_counted_to: Timestamp::from_micros(0),
        calls_counted_to: CallId::first_at(Timestamp::from_micros(0)),
        recounted_at: now,
        retried: 0,
        retried_counted: 0,
        looked_at: now,
        full_since: None,
        pass: None,
    }
}

impl App {
    /// Puts the job into the queue for organizations where it is missing. Answers for how many.
    pub(crate) async fn arm_pruning(&self) -> Result<usize, StoreError> {
        let (mut after, mut armed) = (None, 0);
        loop {
            let listed = self
                .store()
                .read(&SystemScope::new(SystemReason::Jobs), after, |tx, after| {
                    Box::pin(async move { tx.list_orgs_without_pruning(*after, ORGS_PAGE).await })
                })
                .await?;
            for org in &listed {
                let scope = SystemScope::new(SystemReason::Worker).for_org(*org);
                let job = prune_job(self.ambient().now().plus(spread(*org)));
                self.store()
                    .write_locked(&scope, (job, self.ambient().clone()), |tx, (job, ambient)| {
                        Box::pin(async move { tx.enqueue(job, ambient).await })
                    })
                    .await?;
            }
            armed += listed.len();
            if listed.len() < ORGS_PAGE as usize {
                return Ok(armed);
            }
            after = listed.last().copied();
        }
    }

    /// Counts and removes while the organization's job is held.
    pub(crate) async fn prune_history(&self, lease: &Lease, leash: &Leash) -> Left {
        match self.prune(lease, leash).await {
            Ok(()) => Left::Settled,
            Err(AppError::Store(StoreError::LostLease)) => Left::Lost,
            Err(error) => {
                tracing::error!(org = %lease.org, error = &error as &dyn std::error::Error, "what has ended could not be removed; trying again");
                self.release(lease, FAULT_PAUSE, Attempt::DoesNotCount, Some(error.to_string())).await
            }
        }
    }

    async fn prune(&self, lease: &Lease, leash: &Leash) -> Result<(), AppError> {
        let scope = SystemScope::new(SystemReason::Worker).for_org(lease.org);
        let now = self.ambient().now();
        let (policy, quotas, history) = self
            .store()
            .read(&scope, (), |tx, ()| {
                Box::pin(async move {
                    let policy = tx.load_retention().await?.map(|stored| stored.policy).unwrap_or_default();
                    Ok::<_, AppError>((policy, tx.load_quotas().await?, tx.load_history().await?))
                })
            })
            .await?;
        let mut work = Work {
            scope,
            lease: lease.clone(),
            policy,
            history_bytes_max: i64::try_from(quotas.history_bytes_max).unwrap_or(i64::MAX),
            // A claim before this one may have begun to cut.
            cutting: history.as_ref().and_then(|history| history.pass.as_ref()).is_some_and(Pass::is_cutting),
            history: history.unwrap_or_else(|| unseen(now)),
            growth: Growth { bytes: 0, within: Duration::ZERO },
            promised_bytes: 0,
            removed: false,
            began: Instant::now(),
            proved: Instant::now(),
        };
        let anew = now.since(work.history.recounted_at) >= RECOUNT_EVERY;
        let mut came = self.count_ended(&mut work, leash, anew).await?;
        // A run that ended, was begun again and ended once more counts twice: nothing goes, and nobody is refused, for its sake.
        let twice = work.history.retried > work.history.retried_counted;
        if matches!(came, Came::Through) && twice && work.excess(false) > 0 {
            came = self.count_ended(&mut work, leash, true).await?;
        }
        work.cutting |= work.excess(false) > 0;
        if matches!(came, Came::Through) {
            came = self.remove_ended(&mut work, leash).await?;
        }
        self.leave_pruning(work, &came).await
    }

    /// Counts what ended since the last look; everything where it is counted `anew`.
    async fn count_ended(&self, work: &mut Work, leash: &Leash, anew: bool) -> Result<Came, AppError> {
        let now = self.ambient().now();
        let runs_until = work.history.runs_counted_to.max(now.minus(RUNS_LAG));
        let calls_until = work.history.calls_counted_to.max(CallId::first_at(now.minus(CALLS_LAG)));
        let (runs_from, calls_from) = if anew {
            (EndedPlace::FIRST, CallId::first_at(Timestamp::from_micros(0)))
        } else {
            (EndedPlace::after_all(work.history.runs_counted_to), work.history.calls_counted_to)
        };
        let (mut rows, mut bytes) = (0, 0);
        for ended in EndedRun::ALL {
            let mut after = runs_from;
            loop {
                let counted = self
                    .store()
                    .read(&work.scope, (ended, after, runs_until), |tx, (ended, after, until)| {
                        Box::pin(async move {
                            Ok::<_, AppError>(tx.count_ended_runs(*ended, *after, *until, COUNT_PAGE).await?)
                        })
                    })
                    .await?;
                rows += counted.rows;
                bytes += counted.bytes;
                let Some(last) = counted.last.filter(|_| counted.rows == i64::from(COUNT_PAGE)) else { break };
                after = last;
                if self.must_hand_back(work, leash).await? {
                    return Ok(Came::HandBack);
                }
            }
        }
        let mut after = calls_from;
        loop {
            let counted = self
                .store()
                .read(&work.scope, (after, calls_until), |tx, (after, until)| {
                    Box::pin(
                        async move { Ok::<_, AppError>(tx.count_calls_by_hand(*after, *until, COUNT_PAGE).await?) },
                    )
                })
                .await?;
            rows += counted.rows;
            bytes += counted.bytes;
            let Some(last) = counted.last.filter(|_| counted.rows == i64::from(COUNT_PAGE)) else { break };
            after = last;
            if self.must_hand_back(work, leash).await? {
                return Ok(Came::HandBack);
            }
        }
        let history = &mut work.history;
        let before = history.bytes;
        if anew {
            (history.runs, history.bytes, history.recounted_at) = (rows, bytes, now);
            // As many as were known before the count began.
            history.retried_counted = history.retried;
        } else {
            history.runs += rows;
            history.bytes += bytes;
        }
        work.growth = Growth { bytes: history.bytes.saturating_sub(before), within: now.since(history.looked_at) };
        (history.runs_counted_to, history.calls_counted_to) = (runs_until, calls_until);
        Ok(Came::Through)
    }

    /// Whether the process stops. Proves the lease now and then.
    async fn must_hand_back(&self, work: &mut Work, leash: &Leash) -> Result<bool, AppError> {
        if work.proved.elapsed() >= PROVE_EVERY {
            let began = Instant::now();
            self.store()
                .write_locked(&work.scope, (work.lease.clone(), self.ambient().now()), |tx, (lease, now)| {
                    Box::pin(async move { tx.keep_lease(lease, ATTEMPT_DEADLINE, *now).await })
                })
                .await?;
            work.proved = began;
        }
        Ok(leash.hand_back())
    }

    /// Reads a page on in a line that is used up; all that is in it may go. `false`: there is nothing more in it.
    pub(crate) async fn fill_line(
        &self,
        scope: &OrgScope,
        line: &mut Line,
        policy: &RetentionPolicy,
        evict_before: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<bool, AppError> {
        if !line.waiting.is_empty() || line.at_end {
            return Ok(!line.waiting.is_empty());
        }
        let due_before = policy.ended_before(line.ended, now);
        let evict_before = evict_before.filter(|_| line.ended.may_make_room());
        let before = due_before.max(evict_before.unwrap_or(due_before));
        match line.ended {
            Ended::Run(ended) => {
                let rows = self
                    .store()
                    .read(scope, (ended, line.runs_after, before), |tx, (ended, after, before)| {
                        Box::pin(async move {
                            Ok::<_, AppError>(tx.list_removable_runs(*ended, *after, *before, LINE_PAGE).await?)
                        })
                    })
                    .await?;
                line.at_end = rows.len() < LINE_PAGE as usize;
                for row in rows {
                    line.runs_after = row.place;
                    let due = row.place.at < due_before;
                    line.waiting.push_back(Candidate::Run { row, due });
                }
            }
            Ended::Call => {
                let calls = self
                    .store()
                    .read(scope, (line.calls_after, CallId::first_at(before)), |tx, (after, before)| {
                        Box::pin(
                            async move { Ok::<_, AppError>(tx.list_calls_by_hand(*after, *before, LINE_PAGE).await?) },
                        )
                    })
                    .await?;
                line.at_end = calls.len() < LINE_PAGE as usize;
                for (id, bytes) in calls {
                    line.calls_after = id;
                    line.waiting.push_back(Candidate::Call { id, bytes, due: id.made_at() < due_before });
                }
            }
        }
        Ok(!line.waiting.is_empty())
    }

    async fn remove_ended(&self, work: &mut Work, leash: &Leash) -> Result<Came, AppError> {
        let now = self.ambient().now();
        let evict_before = (work.over() > 0).then(|| now.minus(EVICTION_AGE_MIN));
        let mut lines = Ended::ALL.map(Line::new);
        let mut batch_max = BATCH_FIRST;
        // What is left of large runs goes on first, also where another claim began with it.
        let mut rest = self.half_removed(&work.scope).await?;
        loop {
            let mut batch: Vec<Candidate> = Vec::new();
            let (mut bytes, mut left) = (0_i64, work.over());
            while batch.len() < batch_max && bytes < BATCH_BYTES {
                let mut candidate = rest.pop_front();
                if candidate.is_none() {
                    for line in &mut lines {
                        self.fill_line(&work.scope, line, &work.policy, evict_before, now).await?;
                    }
                    candidate = next(&mut lines, left > 0);
                }
                let Some(candidate) = candidate else { break };
                left -= candidate.bytes();
                bytes = bytes.saturating_add(candidate.bytes());
                batch.push(candidate);
            }
            if batch.is_empty() {
                break;
            }
            let began = Instant::now();
            rest.extend(self.remove(work, batch).await?);
            batch_max = batch_after(began.elapsed(), batch_max, BATCH_MAX);
            if self.must_hand_back(work, leash).await? {
                return Ok(Came::HandBack);
            }
            if work.began.elapsed() >= SLICE {
                return Ok(Came::OutOfTime);
            }
        }
        loop {
            if self.remove_facts(work).await? < EVENTS_BATCH.into() {
                break;
            }
            if self.must_hand_back(work, leash).await? {
                return Ok(Came::HandBack);
            }
            if work.began.elapsed() >= SLICE {
                return Ok(Came::OutOfTime);
            }
        }
        // Where a pass is under way something became free.
        while work.history.pass.as_ref().is_some_and(|pass| pass.ended_at.is_none()) {
            let free = self
                .store()
                .write_locked(&work.scope, (), |tx, ()| {
                    Box::pin(async move { tx.give_back_space(PAGES_RESERVE).await })
                })
                .await?;
            if free <= PAGES_RESERVE || leash.hand_back() {
                break;
            }
            work.removed = true;
            if work.began.elapsed() >= SLICE {
                return Ok(Came::OutOfTime);
            }
        }
        let full = work.history.bytes.saturating_sub(work.promised_bytes) > work.history_bytes_max;
        work.history.full_since = full.then(|| work.history.full_since.unwrap_or(now));
        Ok(Came::Through)
    }

    async fn half_removed(&self, scope: &OrgScope) -> Result<VecDeque<Candidate>, AppError> {
        let rows = self
            .store()
            .read(scope, (), |tx, ()| {
                Box::pin(async move { Ok::<_, AppError>(tx.list_half_removed_runs(LINE_PAGE).await?) })
            })
            .await?;
        Ok(rows.into_iter().map(|row| Candidate::Run { row, due: true }).collect())
    }

    /// Removes a batch in one transaction, under the lease. Answers what is left of a large run.
    async fn remove(&self, work: &mut Work, batch: Vec<Candidate>) -> Result<Option<Candidate>, AppError> {
        let args = (work.lease.clone(), Arc::new(batch), work.history.clone(), self.ambient().clone());
        let (history, promised_bytes, rest, removed) = self
            .store()
            // The job's row orders this against other holders; each run's row lock against whoever begins it again.
            .write_locked(&work.scope, args, |tx, (lease, batch, history, ambient)| {
                Box::pin(async move {
                    let now = ambient.now();
                    tx.hold_lease(lease, ATTEMPT_DEADLINE, now).await?;
                    let (mut history, mut promised_bytes, mut rest) = (history.clone(), 0, None);
                    let mut removed = false;
                    for candidate in batch.iter() {
                        match remove_one(tx, candidate, &mut history, now).await? {
                            Removal::Removed => removed = true,
                            Removal::Changed => {}
                            Removal::KeySpent => promised_bytes += candidate.bytes(),
                            Removal::Part { left } => (removed, rest) = (true, Some(candidate.with_bytes(left))),
                        }
                    }
                    tx.save_history(&history).await?;
                    Ok::<_, AppError>((history, promised_bytes, rest, removed))
                })
            })
            .await?;
        (work.history, work.proved) = (history, Instant::now());
        work.promised_bytes += promised_bytes;
        work.removed |= removed;
        Ok(rest)
    }

    /// Removes events, keys and tasks whose time is over. Answers how many of the kind of which there were more.
    async fn remove_facts(&self, work: &mut Work) -> Result<u64, AppError> {
        let before = work.policy.events_before(self.ambient().now());
        let args = (work.lease.clone(), before, work.history.clone(), self.ambient().clone());
        let (removed, history) = self
            .store()
            .write_locked(&work.scope, args, |tx, (lease, before, history, ambient)| {
                Box::pin(async move {
                    let now = ambient.now();
                    tx.hold_lease(lease, ATTEMPT_DEADLINE, now).await?;
                    let keys = tx.remove_spent_keys(now, EVENTS_BATCH).await?;
                    // What is said of a task that ended is a fact as others.
                    let tasks = tx.remove_dead_letter_tasks(*before, TASKS_BATCH).await?;
                    let events = tx.remove_events(EventId::first_at(*before), EVENTS_BATCH).await?;
                    let mut history = history.clone();
                    if events > 0 {
                        pass_of(&mut history, now).events += i64::try_from(events).unwrap_or(i64::MAX);
                        tx.save_history(&history).await?;
                    }
                    // Where there are more of them, another round.
                    let full = if tasks < TASKS_BATCH.into() { 0 } else { EVENTS_BATCH.into() };
                    Ok::<_, AppError>((events.max(keys).max(full), history))
                })
            })
            .await?;
        (work.history, work.proved) = (history, Instant::now());
        work.removed |= removed > 0;
        Ok(removed)
    }

    /// Puts the job off until the next look, or back for others' turns, and ends the pass.
    async fn leave_pruning(&self, work: Work, came: &Came) -> Result<(), AppError> {
        let now = self.ambient().now();
        let Work { scope, lease, mut history, growth, history_bytes_max, removed, .. } = work;
        let through = matches!(came, Came::Through);
        let mut ended = None;
        if through {
            history.looked_at = now;
            if let Some(pass) = history.pass.as_mut().filter(|pass| pass.ended_at.is_none()) {
                pass.ended_at = Some(now);
                ended = Some(pass.clone());
            }
        }
        let pause = pause_after(came, removed, look_pause(growth, history.bytes, history_bytes_max));
        let (run_at, full) = (now.plus(pause), history.full_since.is_some());
        let count = if matches!(came, Came::HandBack) { Attempt::DoesNotCount } else { Attempt::StartsAnew };
        let args = (lease, run_at, count, history, ended.clone(), self.ambient().clone());
        self.store()
            .write_locked(&scope, args, |tx, (lease, run_at, count, history, ended, ambient)| {
                Box::pin(async move {
                    // Proves the lease: without it nothing of this is committed.
                    tx.release_job(lease, *run_at, *count, None, ambient.now()).await?;
                    if let Some(pass) = ended.as_ref().filter(|pass| pass.evicted > 0) {
                        let detail = json!({ "runs_and_calls": pass.evicted, "bytes": pass.bytes });
                        tx.record_event("history.trimmed", &lease.org.to_string(), &detail, ambient).await?;
                    }
                    Ok::<_, AppError>(tx.save_history(history).await?)
                })
            })
            .await?;
        self.rooms().invalidate(&scope.org()).await;
        if let Some(pass) = ended {
            tracing::info!(org = %scope.org(), ?pass, "removed what is not to be kept any longer");
            for (what, count) in [("runs", pass.runs), ("calls", pass.calls), ("events", pass.events)] {
                metrics::counter!("bulkhead_history_removed_total", "what" => what).increment(count.unsigned_abs());
            }
            metrics::counter!("bulkhead_history_evicted_total").increment(pass.evicted.unsigned_abs());
        }
        if full {
            tracing::warn!(org = %scope.org(), "the quota of the history is used up, and nothing is left that may go");
        }
        if !through {
            self.wake_org(Lane::Bulk, scope.org());
        }
        Ok(())
    }
}

/// When the job comes again that came so far. `look` is the pause until the next look at everything.
fn pause_after(came: &Came, removed: bool, look: Duration) -> Duration {
    match came {
        Came::Through => look,
        // It put keys aside and nothing else: walking the same ones again would remove nothing either.
        Came::OutOfTime if !removed => KEYS_PAUSE,
        Came::OutOfTime | Came::HandBack => Duration::ZERO,
    }
}

/// How many go into the next batch after one of `now` that took so long: about as many as a usual commit has time for.
pub(crate) fn batch_after(took: Duration, now: usize, most: usize) -> usize {
    match took {
        short if short < BATCH_SHORT => (now * 2).min(most),
        long if long > BATCH_LONG => (now / 2).max(1),
        _ => now,
    }
}

/// The organization's own moment within the longest pause, so that not all are looked at together.
fn spread(org: OrgId) -> Duration {
    let of = LOOK_PAUSE_MAX.as_micros();
    Duration::from_micros(u64::try_from(org.uuid().as_u128() % of).unwrap_or(0))
}

/// What goes next: what is due; then, over the quota, what is oldest.
fn next(lines: &mut [Line], over: bool) -> Option<Candidate> {
    let head = |line: &Line| line.waiting.front().cloned();
    let due = lines.iter().position(|line| head(line).is_some_and(|candidate| candidate.is_due()));
    let oldest = || {
        let heads = lines.iter().enumerate().filter_map(|(at, line)| head(line).map(|candidate| (candidate.at(), at)));
        heads.min().map(|(_, at)| at)
    };
    let at = due.or_else(|| if over { oldest() } else { None })?;
    lines.get_mut(at)?.take()
}

fn pass_of(history: &mut History, now: Timestamp) -> &mut Pass {
    let going = history.pass.take().filter(|pass| pass.ended_at.is_none());
    history.pass.insert(going.unwrap_or_else(|| Pass::begun(now)))
}

async fn remove_one(
    tx: &mut Tx,
    candidate: &Candidate,
    history: &mut History,
    now: Timestamp,
) -> Result<Removal, AppError> {
    let removal = match candidate {
        // Its job may have gone to the dead letters since: those stay.
        Candidate::Run { row, due: false } if tx.is_dead_letter(row.place.run).await? => Removal::Changed,
        Candidate::Run { row, .. } => tx.remove_run(row, now).await?,
        Candidate::Call { id, .. } if tx.remove_call_by_hand(*id).await? => Removal::Removed,
        Candidate::Call { .. } => Removal::Changed,
    };
    let (whole, bytes) = match removal {
        Removal::Removed => (true, candidate.bytes()),
        Removal::Part { left } => (false, candidate.bytes().saturating_sub(left)),
        Removal::KeySpent | Removal::Changed => return Ok(removal),
    };
    history.runs = history.runs.saturating_sub(i64::from(whole)).max(0);
    history.bytes = history.bytes.saturating_sub(bytes).max(0);
    let pass = pass_of(history, now);
    match candidate {
        Candidate::Run { .. } => pass.runs += i64::from(whole),
        Candidate::Call { .. } => pass.calls += i64::from(whole),
    }
    pass.bytes += bytes;
    // A large one with its first part: what is left of it counts as due.
    pass.evicted += i64::from(!candidate.is_due());
    Ok(removal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(at_s: i64, due: bool) -> Candidate {
        Candidate::Call { id: CallId::first_at(Timestamp::from_micros(at_s * 1_000_000)), bytes: 1, due }
    }

    fn lines(of: &[&[(i64, bool)]]) -> Vec<Line> {
        let line = |heads: &&[(i64, bool)]| {
            let mut line = Line::new(Ended::Call);
            line.waiting = heads.iter().map(|(at_s, due)| call(*at_s, *due)).collect();
            line
        };
        of.iter().map(line).collect()
    }

    fn order(mut lines: Vec<Line>, over: bool) -> Vec<i64> {
        std::iter::from_fn(|| next(&mut lines, over)).map(|taken| taken.at().as_micros() / 1_000_000).collect()
    }

    #[test]
    fn what_is_due_goes_first_and_then_what_is_oldest() {
        let ended: &[&[(i64, bool)]] = &[&[(10, false), (40, false)], &[(5, true), (30, false)], &[(20, false)], &[]];
        assert_eq!(order(lines(ended), true), [5, 10, 20, 30, 40]);
        assert_eq!(order(lines(ended), false), [5], "within the quota only what is due goes");
    }

    #[test]
    fn batches_grow_while_they_are_quick_and_never_end() {
        let after = |ms, now| batch_after(Duration::from_millis(ms), now, 20);
        assert_eq!([after(1, 4), after(1, 16), after(15, 7), after(31, 7), after(31, 1)], [8, 20, 7, 3, 1]);
    }

    #[test]
    fn what_could_only_put_keys_aside_waits_until_they_may_go() {
        let (look, now) = (Duration::from_mins(7), Duration::ZERO);
        for (came, removed, pause) in [
            (Came::Through, true, look),
            (Came::Through, false, look),
            (Came::OutOfTime, true, now),
            (Came::OutOfTime, false, KEYS_PAUSE),
            (Came::HandBack, false, now),
        ] {
            assert_eq!(pause_after(&came, removed, look), pause);
        }
    }

    #[test]
    fn what_is_left_of_a_run_goes_whatever_its_time_is() {
        let place = EndedPlace::FIRST;
        let workflow = bulkhead_model::id::WorkflowId::from_uuid(place.run.uuid());
        let row = EndedRow { place, workflow, dedupe_key: None, created_at: place.at, bytes: 9 };
        let rest = Candidate::Run { row, due: false }.with_bytes(4);
        assert!(rest.is_due() && rest.bytes() == 4);
    }

    #[test]
    fn organizations_are_looked_at_one_after_the_other() {
        let ambient = Ambient::manual(Timestamp::from_micros(0), 3);
        let spreads: std::collections::BTreeSet<_> = (0..100).map(|_| spread(OrgId::new(&ambient))).collect();
        assert!(spreads.len() > 90 && spreads.iter().all(|spread| *spread < LOOK_PAUSE_MAX));
    }
}
