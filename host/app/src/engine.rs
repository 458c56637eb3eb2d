//! Carries a run forward while its job is held: plan (pure), call (no transaction), commit (one transaction), again.
//!
//! One transaction holds a step's result, the pure steps around it, events, the run's new state and what becomes of the job.
//! It first proves that the lease is still held, that the run was not cancelled, and that the grants under which the plugin
//! ran are still in force; a call whose grants changed is recorded as `revoked` and its result dropped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_model::ambient::Ambient;
use bulkhead_model::call::{CallError, Outcome};
use bulkhead_model::fault::Fault;
use bulkhead_model::id::{InstallationId, RunId};
use bulkhead_model::job::{Lease, backoff};
use bulkhead_model::name::PluginName;
use bulkhead_model::permission::{OrgScope, SystemReason, SystemScope};
use bulkhead_model::retention::{RUN_FULL, RUN_HISTORY_BYTES_MAX};
use bulkhead_model::run::{
    self, Advance, CallResult, Next, PlannedCall, RunFacts, RunState, RunStatus, StepRecord, StepVerdict,
};
use bulkhead_model::time::Timestamp;
use bulkhead_model::workflow::{Definition, StepId};
use bulkhead_store::advance::{CalledStep, Told};
use bulkhead_store::call::Call;
use bulkhead_store::dead_letter::{self, NewDeadLetter};
use bulkhead_store::installation::{Installation, InstallationState};
use bulkhead_store::job::{Attempt, ClaimedJob};
use bulkhead_store::run::{Kept, Run};
use bulkhead_store::{StoreError, Tx, TxError};
use serde_json::{Value, json};

use crate::breaker::{self, Moved};
use crate::call::{Attempted, PluginCall, read_ahead, revoke};
use crate::in_flight::Leash;
use crate::planner::LIGHT_BYTES_MAX;
use crate::run::record::{
    letter_of, log_event, next_event, read_state, read_trigger, save_record, state_text, step_rows,
};
use crate::run::{FreshRun, read_first};
use crate::{App, AppError, quota};

/// How long one step's attempt may hold its job; renewed at each commit. Above the highest wall limit of a call (60 s) by the
/// time that permits, egress quotas and a slow disk may take.
pub(crate) const ATTEMPT_DEADLINE: Duration = Duration::from_secs(150);
/// A lease older than this is proved before a call goes out.
const PROVE_AFTER: Duration = Duration::from_secs(5);
/// A call is ended this long before its attempt's deadline, so that it never runs beside the next attempt.
const CALL_MARGIN: Duration = Duration::from_secs(10);
/// Pauses after the host's own failures (the store away, the compiler failing).
pub(crate) const FAULT_BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_mins(1));

/// A job that could not be handed back is tried again after this long.
const RELEASE_AGAIN: Duration = Duration::from_secs(1);

/// How the engine left a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The run ended, waits or was cancelled; the job is finished or released.
    Settled,
    /// Somebody else holds it now.
    Lost,
}

/// A run in memory between two commits.
struct Journey {
    scope: OrgScope,
    lease: Lease,
    /// When the lease was last proved; its attempt ends [`ATTEMPT_DEADLINE`] later.
    held_at: Instant,
    run: Run,
    trigger: Arc<Value>,
    definition: Arc<Definition>,
    state: RunState,
    /// The installation that the next call is of, as the commit before it read it, or the one that saved the run.
    installation: Option<Installation>,
}

/// What [`App::plan`] found.
struct Planned {
    /// What the finished call's result means.
    verdict: Option<StepVerdict>,
    advance: Advance,
    /// The moment that it was computed for.
    now: Timestamp,
}

/// What a commit writes. Built once; the closure that writes it may run again.
struct Commit {
    lease: Lease,
    run: Run,
    state: RunState,
    /// Steps done on the way, before the call's own.
    before: Vec<StepRecord>,
    call: Option<(Made, StepRecord)>,
    after: Vec<StepRecord>,
    then: Then,
    now: Timestamp,
}

/// What a commit answers.
struct Committed {
    run: Run,
    /// The installation that the next call is of, so that it need not be read on the way there.
    installation: Option<Installation>,
    /// What the run's end did to its workflow's breaker.
    moved: Option<Moved>,
}

#[derive(Clone, Debug)]
enum Then {
    /// The next call follows under the same lease.
    Continue {
        plugin: PluginName,
        installation: Option<InstallationId>,
    },
    Wait {
        until: Timestamp,
    },
    Finish {
        status: RunStatus,
        output: Value,
        error: Option<run::StepError>,
    },
}

/// Why a commit was rolled back.
#[derive(Debug)]
enum NotCommitted {
    /// The grants changed since the call began.
    Revoked,
    /// The run ended meanwhile (cancelled).
    RunEnded,
    Failed(AppError),
}

impl From<StoreError> for NotCommitted {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<AppError> for NotCommitted {
    fn from(error: AppError) -> Self {
        Self::Failed(error)
    }
}

impl TxError for NotCommitted {
    fn store(&self) -> Option<&StoreError> {
        match self {
            Self::Failed(error) => error.store(),
            Self::Revoked | Self::RunEnded => None,
        }
    }
}

/// What came of a step's call.
#[derive(Clone, Debug)]
enum Made {
    /// It was made; its record is to be committed.
    Call(Box<Call>),
    /// It could not be made: the installation is gone, disabled, or takes no such input.
    Not(CallError),
}

impl Made {
    fn result(&self) -> CallResult {
        match self {
            Self::Call(call) => CallResult {
                outcome: call.report.outcome,
                output: call.report.output.clone(),
                error: call.report.error.clone(),
            },
            Self::Not(error) => CallResult { outcome: Outcome::Refused, output: None, error: Some(error.clone()) },
        }
    }
}

impl App {
    /// Carries a run forward until it ends, waits or fails. The leash ends its calls early. The job was taken up no earlier than `since`;
    /// `begun` is the run as it was just saved, where that is known.
    pub(crate) async fn advance_run(
        &self,
        job: &ClaimedJob,
        id: RunId,
        leash: &Leash,
        since: Instant,
        begun: Option<Box<FreshRun>>,
    ) -> Left {
        let lease = &job.lease;
        if lease.attempt > job.attempts_max {
            return self.give_up(lease, id, "its worker died, or lost hold of it, at every attempt").await;
        }
        match Box::pin(self.travel(lease, id, leash, since, begun)).await {
            Ok(left) => left,
            Err(AppError::Store(StoreError::LostLease)) => Left::Lost,
            Err(AppError::Busy { retry_after_ms, .. } | AppError::TooMany { retry_after_ms, .. }) => {
                self.release(lease, Duration::from_millis(retry_after_ms), Attempt::DoesNotCount, None).await
            }
            Err(error) => self.give_back(job, id, &error).await,
        }
    }

    /// After a failure of the host's: again later, or to the dead letters when it cannot get better or did not for long.
    async fn give_back(&self, job: &ClaimedJob, id: RunId, error: &AppError) -> Left {
        let hopeless = matches!(error, AppError::Store(StoreError::Corrupt { .. }) | AppError::NotFound { .. })
            || job.lease.attempt >= job.attempts_max;
        tracing::error!(run = %id, error = error as &dyn std::error::Error, hopeless, "a run could not be carried forward");
        if hopeless {
            return self.give_up(&job.lease, id, &error.to_string()).await;
        }
        let pause = self.fault_pause(job.lease.attempt);
        self.release(&job.lease, pause, Attempt::Counts, Some(error.to_string())).await
    }

    /// How long a job waits whose attempt failed by the host's fault.
    pub(crate) fn fault_pause(&self, attempt: u32) -> Duration {
        backoff(attempt, FAULT_BACKOFF.0, FAULT_BACKOFF.1, self.ambient())
    }

    /// Sends the job to the dead letters and ends its run as failed, together.
    async fn give_up(&self, lease: &Lease, id: RunId, why: &str) -> Left {
        let scope = SystemScope::new(SystemReason::Worker).for_org(lease.org);
        let run = self.store().read(&scope, id, |tx, id| Box::pin(async move { tx.load_run(*id).await })).await;
        // It may be what does not decode; the run ends all the same.
        let definition = match run {
            Ok(Some(run)) => self.definition(&scope, run.workflow, run.version).await.ok(),
            Ok(None) | Err(_) => None,
        };
        metrics::counter!("bulkhead_jobs_dead_total", "kind" => "advance_run").increment(1);
        let args = (lease.clone(), id, definition, why.to_owned(), self.ambient().clone());
        let buried = self
            .store()
            .write_locked(&scope, args, |tx, (lease, id, definition, why, ambient)| {
                Box::pin(async move {
                    let now = ambient.now();
                    tx.bury_job(lease, why, ambient).await?;
                    let mut run = match tx.lock_run(*id).await {
                        Ok(run) => run,
                        // A row that does not decode cannot be ended either; its job is kept with the reason.
                        Err(error @ (StoreError::NotFound { .. } | StoreError::Corrupt { .. })) => {
                            let is_there = matches!(error, StoreError::Corrupt { .. });
                            let letter = job_letter(lease, *id, is_there, why);
                            tx.record_dead_letter(&letter, ambient).await?;
                            return Ok(None);
                        }
                        Err(error) => return Err(error.into()),
                    };
                    if run.status.is_final() {
                        // It needs no job any more, and nobody's decision.
                        tx.delete_dead_job(lease.job).await?;
                        return Ok(None);
                    }
                    let mut step = None;
                    if let Ok(mut state) = read_state(&run) {
                        if let Some(record) = run::give_up(definition.as_deref(), &mut state, "host-fault", why) {
                            save_record(tx, &state, &mut run, &record, None, now).await?;
                            step = Some(record.step);
                        }
                        run.state = state_text(&state)?;
                    }
                    run.status = RunStatus::Failed;
                    run.error = Some(json!({ "code": "host-fault", "message": why }).to_string());
                    let error = run::StepError { step, code: "host-fault".to_owned(), message: why.clone() };
                    if let Some(letter) = letter_of(&run, &error) {
                        tx.record_dead_letter(&NewDeadLetter { job: Some(lease.job), ..letter }, ambient).await?;
                    }
                    run.waiting_until = None;
                    run.finished_at = Some(now);
                    run.updated_at = now;
                    log_event(tx, &mut run, "dead-lettered", &json!({ "error": why }), now).await?;
                    tx.update_run(&run).await?;
                    let detail = json!({ "workflow": run.workflow, "version": run.version });
                    tx.record_event("run.failed", &id.to_string(), &detail, ambient).await?;
                    Ok::<_, AppError>(breaker::run_failed(tx, lease.org, &run, &error, ambient).await?)
                })
            })
            .await;
        match buried {
            Ok(moved) => {
                if let Some(moved) = moved {
                    self.breaker_moved(&moved);
                }
                Left::Settled
            }
            Err(AppError::Store(StoreError::LostLease)) => Left::Lost,
            Err(error) => {
                tracing::error!(run = %id, error = &error as &dyn std::error::Error, "a job could not be buried; trying again");
                // The lease is still ours, and nobody else would take the job up before its deadline.
                self.release(lease, FAULT_BACKOFF.0, Attempt::Counts, Some(error.to_string())).await
            }
        }
    }

    pub(crate) async fn release(&self, lease: &Lease, pause: Duration, count: Attempt, error: Option<String>) -> Left {
        let scope = SystemScope::new(SystemReason::Worker).for_org(lease.org);
        let began = Instant::now();
        loop {
            let now = self.ambient().now();
            let args = (lease.clone(), now.plus(pause), count, error.clone(), now);
            let released = self
                .store()
                .write_locked(&scope, args, |tx, (lease, run_at, count, error, now)| {
                    Box::pin(async move { tx.release_job(lease, *run_at, *count, error.as_deref(), *now).await })
                })
                .await;
            match released {
                Ok(()) => return Left::Settled,
                // While the disk is full or the database away the lease is still ours, and nobody else would take the job up
                // before its deadline: so it is tried again until then.
                Err(error) if !matches!(error, StoreError::LostLease) && began.elapsed() < ATTEMPT_DEADLINE => {
                    tracing::warn!(job = %lease.job, error = &error as &dyn std::error::Error, "handing a job back failed; trying again");
                    tokio::time::sleep(RELEASE_AGAIN).await;
                }
                Err(error) => {
                    tracing::warn!(job = %lease.job, error = &error as &dyn std::error::Error, "a job could not be handed back");
                    return Left::Lost;
                }
            }
        }
    }

    /// A run that somebody else saved. Of one that has not begun the same read tells what its first call is of, where its definition is
    /// known.
    async fn read_fresh(&self, scope: &OrgScope, id: RunId) -> Result<FreshRun, AppError> {
        self.store()
            .read(scope, (id, self.definitions().clone()), |tx, (id, definitions)| {
                Box::pin(async move {
                    let run = tx.require_run(*id).await?;
                    let mut installation = None;
                    if run.status == RunStatus::Queued
                        && let Some((definition, _)) = definitions.get(&(tx.org()?, run.workflow, run.version))
                    {
                        installation = read_first(tx, &definition).await?;
                    }
                    Ok(FreshRun { run, installation })
                })
            })
            .await
    }

    async fn travel(
        &self,
        lease: &Lease,
        id: RunId,
        leash: &Leash,
        held_at: Instant,
        begun: Option<Box<FreshRun>>,
    ) -> Result<Left, AppError> {
        let scope = SystemScope::new(SystemReason::Worker).for_org(lease.org);
        let FreshRun { run, installation } = match begun {
            Some(begun) => *begun,
            None => self.read_fresh(&scope, id).await?,
        };
        if run.status.is_final() {
            return self.finish(&scope, lease).await;
        }
        let definition = self.definition(&scope, run.workflow, run.version).await?;
        let trigger = Arc::new(read_trigger(&run)?);
        let state = read_state(&run)?;
        // Only a run that did nothing yet waits for its workflow's breaker; one that is under way goes on.
        if state.steps.is_empty() && self.pause_run(&scope, lease, &run).await? {
            return Ok(Left::Settled);
        }
        let mut journey =
            Journey { scope, lease: lease.clone(), held_at, run, trigger, definition, state, installation: None };
        let Planned { advance: Advance { mut records, mut next }, .. } = self.plan(&mut journey, None).await?;
        // Of the first step's call, and only while it is news: the way here may have been long.
        if let Next::Call(planned) = &next
            && planned.step == journey.definition.start
            && journey.held_at.elapsed() < PROVE_AFTER
        {
            journey.installation = installation;
        }
        loop {
            let Next::Call(planned) = next else {
                let commit = journey.commit(records, None, Vec::new(), then_of(&next), self.ambient().now());
                return match self.commit(&journey.scope, commit).await {
                    Ok(_) => Ok(Left::Settled),
                    Err(NotCommitted::Failed(error)) => Err(error),
                    Err(NotCommitted::Revoked | NotCommitted::RunEnded) => self.finish(&journey.scope, lease).await,
                };
            };
            if journey.run.kept.held_bytes >= RUN_HISTORY_BYTES_MAX {
                let (full, end) = journey.end_full();
                records.extend(full);
                next = end;
                continue;
            }
            if leash.hand_back() {
                return Ok(self.release(&journey.lease, Duration::ZERO, Attempt::DoesNotCount, None).await);
            }
            // The way here may have been long (a queue of plans): nobody else may hold the job by now.
            if journey.held_at.elapsed() >= PROVE_AFTER {
                self.prove(&mut journey).await?;
            }
            let Some(made) = self.call_in_time(&mut journey, &planned, leash).await? else {
                let why = "the attempt would have passed its deadline".to_owned();
                return Ok(self.release(&journey.lease, Duration::ZERO, Attempt::Counts, Some(why)).await);
            };
            if leash.hand_back() && made.result().outcome == Outcome::Cancelled {
                self.record_lost(&journey.scope, made).await;
                return Ok(self.release(&journey.lease, Duration::ZERO, Attempt::DoesNotCount, None).await);
            }
            match self.commit_step(&mut journey, &planned, records, made).await? {
                Some(following) => {
                    records = Vec::new();
                    next = following;
                }
                None => return Ok(Left::Settled),
            }
        }
    }

    /// Commits a call's result with what follows from it. Answers the next call under the same lease, or `None` when the job
    /// is settled.
    async fn commit_step(
        &self,
        journey: &mut Journey,
        planned: &PlannedCall,
        before: Vec<StepRecord>,
        mut made: Made,
    ) -> Result<Option<Next>, AppError> {
        let planned_state = journey.state.clone();
        // At most twice: with the call's own result and, if its grants changed meanwhile, once more as `revoked`.
        loop {
            journey.state = planned_state.clone();
            let finished = Some((planned.step.clone(), planned.attempt, made.result()));
            let Planned { verdict, advance, now } = self.plan(journey, finished).await?;
            let Some(StepVerdict::Done(record) | StepVerdict::Retry { record, .. }) = verdict else {
                return Err(AppError::Store(StoreError::Misuse("a call's result does not belong to the run's step")));
            };
            let Advance { records: after, next } = advance;
            let commit = journey.commit(before.clone(), Some((made.clone(), record)), after, then_of(&next), now);
            let began = Instant::now();
            match self.commit(&journey.scope, commit).await {
                Ok(Committed { run, installation, moved: _ }) => {
                    journey.run = run;
                    journey.installation = installation;
                    // The answer may have been long in coming.
                    journey.held_at = began;
                    // The commit counts attempts anew.
                    journey.lease.attempt = 1;
                    return Ok(matches!(next, Next::Call(_)).then_some(next));
                }
                // Nothing of it counts.
                Err(NotCommitted::Revoked) => {
                    if let Made::Call(call) = &mut made {
                        revoke(&mut call.report);
                    }
                }
                Err(NotCommitted::RunEnded) => {
                    self.record_lost(&journey.scope, made).await;
                    self.finish(&journey.scope, &journey.lease).await?;
                    return Ok(None);
                }
                Err(NotCommitted::Failed(error)) => return Err(error),
            }
        }
    }

    /// Applies a finished call's result (if there is one) and says what comes next; the templates and conditions on the way are
    /// computed on the planner.
    async fn plan(
        &self,
        journey: &mut Journey,
        finished: Option<(StepId, u32, CallResult)>,
    ) -> Result<Planned, AppError> {
        let (definition, trigger) = (Arc::clone(&journey.definition), Arc::clone(&journey.trigger));
        let facts = RunFacts {
            run: journey.run.id,
            workflow: journey.run.workflow,
            org: journey.lease.org,
            started_at: journey.run.created_at,
        };
        let read_bytes = journey.run.trigger_data.len() + journey.run.state.len();
        let is_light = read_bytes <= LIGHT_BYTES_MAX
            && definition.is_light()
            && finished.as_ref().is_none_or(|(_, _, result)| {
                result.output.as_ref().is_none_or(|output| output.len() <= LIGHT_BYTES_MAX)
            });
        let (mut state, ambient, now) = (journey.state.clone(), self.ambient().clone(), self.ambient().now());
        let work = move || {
            let verdict = finished.map(|(step, attempt, result)| {
                run::complete_call(&definition, &mut state, &step, attempt, &result, &ambient)
            });
            let advance = run::advance(&definition, &mut state, &trigger, &facts, now);
            (state, Planned { verdict, advance, now })
        };
        let planned;
        (journey.state, planned) = self.planner().run_where(is_light, journey.lease.org, work).await?;
        Ok(planned)
    }

    /// Proves that the lease is still held, for another [`ATTEMPT_DEADLINE`].
    async fn prove(&self, journey: &mut Journey) -> Result<(), AppError> {
        let (began, args) = (Instant::now(), (journey.lease.clone(), self.ambient().now()));
        self.store()
            .write_locked(&journey.scope, args, |tx, (lease, now)| {
                Box::pin(async move { tx.keep_lease(lease, ATTEMPT_DEADLINE, *now).await })
            })
            .await?;
        journey.held_at = began;
        Ok(())
    }

    /// Makes the step's call and ends it before the attempt's deadline: `None` then.
    async fn call_in_time(
        &self,
        journey: &mut Journey,
        planned: &PlannedCall,
        leash: &Leash,
    ) -> Result<Option<Made>, AppError> {
        let left = ATTEMPT_DEADLINE.saturating_sub(CALL_MARGIN).saturating_sub(journey.held_at.elapsed());
        let installation = journey.installation.take();
        let mut call = std::pin::pin!(self.call_step(journey, planned, installation, leash));
        if let Ok(made) = tokio::time::timeout(left, &mut call).await {
            return made.map(Some);
        }
        leash.cancel_token().cancel();
        // It ends soon, now that it is cancelled; what it still waits for elsewhere is let go with the future.
        if let Ok(Ok(made)) = tokio::time::timeout(CALL_MARGIN / 2, call).await {
            self.record_lost(&journey.scope, made).await;
        }
        Ok(None)
    }

    /// Records a call whose result does not count: what left the sandbox is to be found all the same.
    async fn record_lost(&self, scope: &OrgScope, made: Made) {
        let Made::Call(call) = made else { return };
        let recorded = self
            .store()
            .write_locked(scope, call, |tx, call| Box::pin(async move { quota::record_call(tx, call).await }))
            .await;
        if let Err(error) = recorded {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a call whose result does not count was not recorded"
            );
        }
    }

    /// The run ended by other means: only the job is left to finish.
    async fn finish(&self, scope: &OrgScope, lease: &Lease) -> Result<Left, AppError> {
        self.store()
            .write_locked(scope, (lease.clone(), self.ambient().now()), |tx, (lease, now)| {
                Box::pin(async move { tx.finish_job(lease, *now).await })
            })
            .await?;
        Ok(Left::Settled)
    }

    async fn call_step(
        &self,
        journey: &Journey,
        planned: &PlannedCall,
        read: Option<Installation>,
        leash: &Leash,
    ) -> Result<Made, AppError> {
        let call = PluginCall {
            plugin: planned.plugin.clone(),
            installation: planned.installation,
            read,
            contribution: planned.contribution.clone(),
            kind: planned.kind,
            input: planned.input.clone(),
            run: Some(journey.run.id),
            step: Some(planned.step.to_string()),
            attempt: planned.attempt,
            idempotency_key: planned.idempotency_key.clone(),
            timeout_ms: planned.timeout_ms,
            cancel: leash.cancel_token(),
            validity: leash.validity(),
        };
        Ok(match self.run_plugin(&journey.scope, call).await? {
            Attempted::Made(call) => Made::Call(call),
            Attempted::NotMade(error) => {
                Made::Not(CallError { message: format!("{}: {}", planned.plugin, error.message), ..error })
            }
        })
    }

    async fn commit(&self, scope: &OrgScope, commit: Commit) -> Result<Committed, NotCommitted> {
        let letter = matches!(&commit.then, Then::Finish { status: RunStatus::Failed, error: Some(error), .. }
            if letter_of(&commit.run, error).is_some());
        // In memory alone: the commit of a healthy workflow's run asks nobody.
        let key = (scope.org(), commit.run.workflow, commit.run.version);
        let breaker = match (self.breakers().is_known(key), self.breakers().holds(key, commit.run.id)) {
            (false, _) => KnownBreaker::None,
            (true, true) => KnownBreaker::Open,
            (true, false) => KnownBreaker::Probes,
        };
        let args = (commit, breaker, self.ambient().clone());
        let committed = self
            .store()
            .write_locked(scope, args, |tx, (commit, breaker, ambient)| {
                Box::pin(async move { write_commit(tx, commit, *breaker, ambient).await })
            })
            .await?;
        if letter {
            metrics::counter!("bulkhead_dead_letters_total", "kind" => dead_letter::RUN).increment(1);
        }
        if let Some(moved) = &committed.moved {
            self.breaker_moved(moved);
        }
        let run = &committed.run;
        if run.status.is_final() {
            let (trigger, status) = (run.trigger_kind.clone(), run.status.as_str());
            metrics::counter!("bulkhead_workflow_runs_total", "trigger" => trigger, "status" => status).increment(1);
            self.note_ended_bytes(scope, run.kept.held_bytes).await;
        }
        Ok(committed)
    }
}

impl Journey {
    /// The run takes up as much as a run may: it makes no further call and fails where it stands.
    fn end_full(&mut self) -> (Option<StepRecord>, Next) {
        let held = self.run.kept.held_bytes;
        let why = format!("the history quota of the run is used up: {held} of {RUN_HISTORY_BYTES_MAX} bytes");
        let record = run::give_up(Some(&self.definition), &mut self.state, RUN_FULL, &why);
        let error = self.state.ended.as_ref().and_then(|ended| ended.error.clone());
        (record, Next::Finish { status: RunStatus::Failed, output: Value::Null, error })
    }

    fn commit(
        &self,
        before: Vec<StepRecord>,
        call: Option<(Made, StepRecord)>,
        after: Vec<StepRecord>,
        then: Then,
        now: Timestamp,
    ) -> Commit {
        Commit {
            lease: self.lease.clone(),
            run: self.run.clone(),
            state: self.state.clone(),
            before,
            call,
            after,
            then,
            now,
        }
    }
}

fn then_of(next: &Next) -> Then {
    match next {
        Next::Call(call) => Then::Continue { plugin: call.plugin.clone(), installation: call.installation },
        Next::Wait { until, .. } => Then::Wait { until: *until },
        Next::Finish { status, output, error } => {
            Then::Finish { status: *status, output: output.clone(), error: error.clone() }
        }
    }
}

/// What stands on the list for a job whose run cannot be ended with it.
fn job_letter(lease: &Lease, id: RunId, is_there: bool, why: &str) -> NewDeadLetter {
    let (kind, code) = ("advance_run", "host-fault");
    NewDeadLetter {
        fingerprint: Fault { kind, code, step: None, message: why }.fingerprint(),
        kind: kind.to_owned(),
        subject: id.to_string(),
        workflow: None,
        run: is_there.then_some(id),
        job: Some(lease.job),
        step: None,
        code: code.to_owned(),
        message: why.to_owned(),
    }
}

/// What this node knows of the breaker of a run that is about to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KnownBreaker {
    /// Nothing: it is closed, or opened elsewhere a moment ago.
    None,
    /// It is open, and the run began before.
    Open,
    /// It is open, and this run is to tell whether it goes better.
    Probes,
}

/// `breaker` says whether the workflow's breaker may be open.
async fn write_commit(
    tx: &mut Tx,
    commit: &Commit,
    breaker: KnownBreaker,
    ambient: &Ambient,
) -> Result<Committed, NotCommitted> {
    let now = commit.now;
    let made = commit.call.as_ref();
    let call = made.and_then(|(made, _)| if let Made::Call(call) = made { Some(&**call) } else { None });
    // A call whose grants are known to have changed is recorded as such, whatever holds now.
    let bound = call.filter(|call| call.report.outcome != Outcome::Revoked);
    let (id, used) = (commit.run.id, bound.map(|call| call.installation));
    let standing = match &commit.then {
        Then::Continue { .. } => tx.hold_standing(&commit.lease, ATTEMPT_DEADLINE, now, id, used).await?,
        Then::Wait { until } => {
            tx.release_job(&commit.lease, *until, Attempt::StartsAnew, None, now).await?;
            tx.lock_standing(id, used).await?
        }
        Then::Finish { .. } => tx.finish_standing(&commit.lease, now, id, used).await?,
    };
    if standing.status.is_final() {
        return Err(NotCommitted::RunEnded);
    }
    if let Some(call) = bound
        && standing.installation != Some((call.grant_version, InstallationState::Enabled))
    {
        return Err(NotCommitted::Revoked);
    }
    let kept = Kept { held_bytes: standing.held_bytes, log_bytes: standing.log_bytes, ..commit.run.kept };
    let mut run = Run { log_seq: standing.log_seq, kept, ..commit.run.clone() };
    for record in &commit.before {
        save_record(tx, &commit.state, &mut run, record, None, now).await?;
    }
    let call = match call {
        Some(call) => Some(quota::within_log(tx, call).await?),
        None => None,
    };
    let called = call.as_deref().zip(made.map(|(_, record)| record));
    if let (Then::Continue { plugin, installation: used }, Some((call, record)), true) =
        (&commit.then, called, commit.after.is_empty())
    {
        let (step, event) = step_rows(&commit.state, &mut run, record, Some(call), now);
        moves_on(&mut run, commit, RunStatus::Running)?;
        let called = CalledStep { call, step: &step, event: &event };
        let installation = tx.save_stride(&mut run, called, (plugin, *used)).await?;
        return Ok(Committed { run, installation, moved: None });
    }
    if let (Then::Finish { status, output, error }, Some((call, record)), true) =
        (&commit.then, called, commit.after.is_empty())
    {
        let (step, event) = step_rows(&commit.state, &mut run, record, Some(call), now);
        ends(&mut run, commit, *status, output)?;
        let called = CalledStep { call, step: &step, event: &event };
        let moved = write_end(tx, commit, &mut run, Some(called), error.as_ref(), breaker, ambient).await?;
        return Ok(Committed { run, installation: None, moved });
    }
    if let Some((_, record)) = made {
        save_record(tx, &commit.state, &mut run, record, call.as_deref(), now).await?;
    }
    for record in &commit.after {
        save_record(tx, &commit.state, &mut run, record, None, now).await?;
    }
    let (mut installation, mut moved) = (None, None);
    match &commit.then {
        Then::Continue { plugin, installation: used } => {
            moves_on(&mut run, commit, RunStatus::Running)?;
            installation = read_ahead(tx, plugin, *used).await?;
            tx.update_run(&run).await?;
        }
        Then::Wait { until } => {
            moves_on(&mut run, commit, RunStatus::Waiting)?;
            run.waiting_until = Some(*until);
            log_event(tx, &mut run, "waiting", &json!({ "until": until }), now).await?;
            tx.update_run(&run).await?;
        }
        Then::Finish { status, output, error } => {
            ends(&mut run, commit, *status, output)?;
            moved = write_end(tx, commit, &mut run, None, error.as_ref(), breaker, ambient).await?;
        }
    }
    Ok(Committed { run, installation, moved })
}

/// The run as the commit leaves it.
fn moves_on(run: &mut Run, commit: &Commit, status: RunStatus) -> Result<(), AppError> {
    run.status = status;
    run.state = state_text(&commit.state)?;
    run.updated_at = commit.now;
    run.waiting_until = None;
    Ok(())
}

/// The run as its last commit leaves it.
fn ends(run: &mut Run, commit: &Commit, status: RunStatus, output: &Value) -> Result<(), AppError> {
    moves_on(run, commit, status)?;
    (run.output, run.finished_at) = (Some(output.to_string()), Some(commit.now));
    Ok(())
}

/// What the end of a run brings with it: its last call's step where that is not written yet, its log's last line, a dead letter where
/// it failed, the event, the run itself, and what the breaker learns.
async fn write_end(
    tx: &mut Tx,
    commit: &Commit,
    run: &mut Run,
    called: Option<CalledStep<'_>>,
    error: Option<&run::StepError>,
    breaker: KnownBreaker,
    ambient: &Ambient,
) -> Result<Option<Moved>, StoreError> {
    let status = run.status;
    run.error = error.map(|error| json!(error).to_string());
    let last = next_event(run, status.as_str(), &json!({ "error": error }), commit.now);
    if let Some(error) = error.filter(|_| status == RunStatus::Failed)
        && let Some(letter) = letter_of(run, error)
    {
        tx.record_dead_letter(&letter, ambient).await?;
    }
    let (kind, subject) = (format!("run.{}", status.as_str()), run.id.to_string());
    let detail = json!({ "workflow": run.workflow, "version": run.version });
    let told = Told { kind: &kind, subject: &subject, detail: &detail };
    match called {
        Some(called) => tx.save_last_stride(run, called, &last, told, ambient).await?,
        None => tx.save_end(run, &last, told, ambient).await?,
    }
    let org = commit.lease.org;
    match (status, error, breaker) {
        // It began before the breaker opened; nobody need wait for the row to learn that it says nothing.
        (RunStatus::Failed, Some(error), KnownBreaker::Open) if !breaker::is_stopped(error) => Ok(None),
        (RunStatus::Failed, Some(error), _) if !breaker::is_stopped(error) => {
            breaker::run_failed(tx, org, run, error, ambient).await
        }
        (RunStatus::Succeeded, ..) | (RunStatus::Failed, Some(_), _) => match breaker {
            KnownBreaker::None => Ok(None),
            KnownBreaker::Open | KnownBreaker::Probes => breaker::run_succeeded(tx, org, run, ambient).await,
        },
        _ => Ok(None),
    }
}
