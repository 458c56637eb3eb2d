//! Schedule triggers: armed and disarmed with their workflow, fired by their job.
//!
//! A schedule's row says which tick is next. Its job only wakes up: one transaction proves the lease, inserts the due runs with
//! their jobs, moves the row on, and puts the job off until the next tick. So a tick is settled once, whatever crashes and
//! however many nodes there are, and a run's dedupe key (trigger and tick) stands behind it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::fault::Fault;
use bulkhead_model::id::{DeadLetterId, OrgId, RunId, WorkflowId};
use bulkhead_model::job::{JobPayload, Lease};
use bulkhead_model::permission::{Caller, OrgScope, Permission, SystemReason, SystemScope};
use bulkhead_model::run;
use bulkhead_model::schedule::{Schedule, Settlement, Ticks};
use bulkhead_model::time::Timestamp;
use bulkhead_model::workflow::{Definition, TriggerId, TriggerKind, schedule_payload};
use bulkhead_store::dead_letter::NewDeadLetter;
use bulkhead_store::job::{Attempt, ClaimedJob, JobGroup, NewJob};
use bulkhead_store::run::Run;
use bulkhead_store::schedule::ScheduleState;
use bulkhead_store::workflow::Workflow;
use bulkhead_store::{StoreError, Tx};
use serde_json::Map;

use crate::engine::Left;
use crate::quota::NO_ROOM_PAUSE_MS;
use crate::run::{StartRun, Started, insert_started, new_run, run_group};
use crate::{App, AppError};

/// Ticks that a view shows ahead.
const AHEAD: usize = 3;
/// After this many deaths of workers that held it the schedule counts as stalled; nothing else counts as an attempt.
const JOB_ATTEMPTS_MAX: u32 = 25;
/// After a failure of the host's (the store away, say) the job comes again after this long, however often.
const FAULT_PAUSE: Duration = Duration::from_secs(10);
/// A schedule that changes under a firing is looked at again so often at once, then a little later.
const PLANS_MAX: u32 = 5;
const STALE_PAUSE_MS: u64 = 250;
pub(crate) const JOB_KIND: &str = "fire_schedule";
/// A schedule that cannot fire (its definition does not decode, its workers die of it) comes again after this long.
const STALLED_PAUSE: Duration = Duration::from_mins(15);
/// A schedule whose tick is so long past and that has no job gets another one.
const LOST_AFTER: Duration = Duration::from_mins(1);
/// Overdue schedules looked at in one transaction.
const OVERDUE_MAX: u32 = 500;

fn job_key(workflow: WorkflowId, trigger: &str) -> String {
    format!("{workflow}:{trigger}")
}

fn fire_job(workflow: WorkflowId, trigger: &TriggerId, run_at: Timestamp) -> NewJob {
    NewJob {
        payload: JobPayload::FireSchedule { workflow, trigger: trigger.clone() },
        priority: 100,
        run_at,
        dedupe_key: Some(job_key(workflow, trigger.as_str())),
        attempts_max: JOB_ATTEMPTS_MAX,
        group: None,
    }
}

/// Brings the schedules of a workflow that was saved or activated in line with its definition, in that transaction.
///
/// A schedule whose rule stayed the same goes on where it was, due ticks included; a new or changed one begins with the first
/// tick after now, and never with one that fired already, even if the clock was set back.
pub(crate) async fn arm(
    tx: &mut Tx,
    workflow: &Workflow,
    definition: &Definition,
    ambient: &Ambient,
) -> Result<(), StoreError> {
    let (org, now) = (tx.org()?, ambient.now());
    let present = tx.list_schedules(workflow.id).await?;
    let mut present: BTreeMap<String, ScheduleState> =
        present.into_iter().map(|state| (state.trigger.clone(), state)).collect();
    for (trigger, schedule) in definition.schedules() {
        let before = present.remove(trigger.as_str());
        if !workflow.active && before.is_none() {
            continue;
        }
        let rule = schedule.rule();
        let mut state = before.unwrap_or_else(|| unused(workflow.id, trigger, now));
        state.next_tick = match state.next_tick {
            _ if !workflow.active => None,
            Some(next) if state.rule == rule => Some(next),
            _ => schedule.ticks.next_after(state.last_tick.map_or(now, |last| last.max(now))),
        };
        state.rule = rule;
        state.updated_at = now;
        tx.save_schedule(&state).await?;
        let key = job_key(workflow.id, trigger.as_str());
        tx.remove_waiting_job(JOB_KIND, &key).await?;
        // Whatever kept it from firing may be mended by this.
        tx.delete_dead_letter_of(JOB_KIND, &key).await?;
        if let Some(next) = state.next_tick {
            let offset = schedule.offset(org, workflow.id, trigger.as_str());
            tx.enqueue(&fire_job(workflow.id, trigger, next.plus(offset)), ambient).await?;
        }
    }
    for trigger in present.into_keys() {
        tx.remove_waiting_job(JOB_KIND, &job_key(workflow.id, &trigger)).await?;
        tx.delete_dead_letter_of(JOB_KIND, &job_key(workflow.id, &trigger)).await?;
        tx.delete_schedule(workflow.id, &trigger).await?;
    }
    Ok(())
}

fn unused(workflow: WorkflowId, trigger: &TriggerId, now: Timestamp) -> ScheduleState {
    ScheduleState {
        workflow,
        trigger: trigger.to_string(),
        rule: String::new(),
        next_tick: None,
        last_tick: None,
        last_fired_at: None,
        last_run: None,
        fired_count: 0,
        late_count: 0,
        missed_count: 0,
        unmatched_count: 0,
        updated_at: now,
    }
}

/// Stops the schedules of a workflow that is deactivated, in that transaction. What fired stays on record; a job that a worker
/// holds right now finds nothing to fire.
pub(crate) async fn disarm(tx: &mut Tx, workflow: WorkflowId, ambient: &Ambient) -> Result<(), StoreError> {
    for mut state in tx.list_schedules(workflow).await? {
        tx.remove_waiting_job(JOB_KIND, &job_key(workflow, &state.trigger)).await?;
        tx.delete_dead_letter_of(JOB_KIND, &job_key(workflow, &state.trigger)).await?;
        state.next_tick = None;
        state.updated_at = ambient.now();
        tx.save_schedule(&state).await?;
    }
    Ok(())
}

/// Lets a schedule fire now what is due of it: its waiting job is hastened, or it gets one.
pub(crate) async fn rearm(tx: &mut Tx, workflow: WorkflowId, trigger: &str, ambient: &Ambient) -> Result<(), AppError> {
    let Some(state) = tx.lock_schedule(workflow, trigger).await? else { return Ok(()) };
    if state.next_tick.is_none() || tx.hasten_job(JOB_KIND, &job_key(workflow, trigger), ambient.now()).await? {
        return Ok(());
    }
    let trigger = parse_trigger(trigger)?;
    Ok(tx.enqueue(&fire_job(workflow, &trigger, ambient.now()), ambient).await.map(drop)?)
}

fn parse_trigger(text: &str) -> Result<TriggerId, AppError> {
    let corrupt = || StoreError::Corrupt { what: "schedule", why: format!("{text:?} is no trigger's id") };
    text.parse().map_err(|_| corrupt().into())
}

/// What keeps a schedule from firing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Its entry on the list of dead letters; resuming that lets it try at once.
    pub dead_letter: DeadLetterId,
    pub message: String,
    /// When it could not fire for the first time …
    pub since: Timestamp,
    /// … and how often since.
    pub times: i64,
    /// When it tries again by itself.
    pub next_attempt_at: Option<Timestamp>,
}

/// A tick that is to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upcoming {
    pub tick: Timestamp,
    /// The tick as the schedule's clocks show it, with their distance from UTC.
    pub local: String,
    /// The tick and the workflow's own offset.
    pub fires_at: Timestamp,
}

fn upcoming(ticks: &Ticks, first: Option<Timestamp>, offset: Duration) -> Vec<Upcoming> {
    std::iter::successors(first, |tick| ticks.next_after(*tick))
        .take(AHEAD)
        .map(|tick| Upcoming { tick, local: ticks.local_text(tick), fires_at: tick.plus(offset) })
        .collect()
}

/// The next ticks of each schedule after a moment.
pub(crate) fn preview(definition: &Definition, now: Timestamp) -> Vec<(TriggerId, Vec<Upcoming>)> {
    let of = |schedule: &Schedule| upcoming(&schedule.ticks, schedule.ticks.next_after(now), Duration::ZERO);
    definition.schedules().map(|(trigger, schedule)| (trigger.clone(), of(schedule))).collect()
}

/// A schedule trigger of a workflow's current version, and where it stands.
#[derive(Clone, Debug)]
pub struct ScheduleDetail {
    pub trigger: TriggerId,
    pub schedule: Schedule,
    /// How long after its ticks it fires.
    pub offset: Duration,
    /// Whether it fires: its workflow is active.
    pub armed: bool,
    /// The next ticks; of a schedule that is not armed, those that it would have.
    pub next: Vec<Upcoming>,
    pub last_fired_at: Option<Timestamp>,
    pub last_run: Option<RunId>,
    /// Runs started; … of them late; ticks dropped by the misfire policy; ticks at which the conditions did not hold.
    pub fired: i64,
    pub late: i64,
    pub missed: i64,
    pub unmatched: i64,
    /// `None` while it fires.
    pub trouble: Option<Trouble>,
}

async fn trouble_of(tx: &mut Tx, state: &ScheduleState) -> Result<Option<Trouble>, StoreError> {
    let key = job_key(state.workflow, &state.trigger);
    let Some(letter) = tx.load_dead_letter_of(JOB_KIND, &key).await? else { return Ok(None) };
    let job = tx.load_live_job(JOB_KIND, &key).await?;
    Ok(Some(Trouble {
        dead_letter: letter.id,
        message: letter.new.message,
        since: letter.created_at,
        times: letter.times,
        next_attempt_at: job.map(|job| job.run_at),
    }))
}

fn detail(
    org: OrgId,
    workflow: WorkflowId,
    (trigger, schedule): (&TriggerId, &Schedule),
    stored: Option<&(ScheduleState, Option<Trouble>)>,
    now: Timestamp,
) -> ScheduleDetail {
    let state = stored.map(|(state, _)| state);
    let offset = schedule.offset(org, workflow, trigger.as_str());
    let armed_for = state.and_then(|state| state.next_tick);
    let count = |of: fn(&ScheduleState) -> i64| state.map_or(0, of);
    ScheduleDetail {
        trigger: trigger.clone(),
        schedule: schedule.clone(),
        offset,
        armed: armed_for.is_some(),
        next: upcoming(&schedule.ticks, armed_for.or_else(|| schedule.ticks.next_after(now)), offset),
        last_fired_at: state.and_then(|state| state.last_fired_at),
        last_run: state.and_then(|state| state.last_run),
        fired: count(|state| state.fired_count),
        late: count(|state| state.late_count),
        missed: count(|state| state.missed_count),
        unmatched: count(|state| state.unmatched_count),
        trouble: stored.and_then(|(_, trouble)| trouble.clone()),
    }
}

/// A schedule that is to fire, as a transaction found it.
#[derive(Clone, Debug)]
struct Standing {
    state: ScheduleState,
    next_tick: Timestamp,
    /// The workflow's current version.
    version: i64,
}

/// `None`: nothing is to fire, now or later.
async fn standing(tx: &mut Tx, state: Option<ScheduleState>) -> Result<Option<Standing>, StoreError> {
    let Some(state) = state else { return Ok(None) };
    let Some(next_tick) = state.next_tick else { return Ok(None) };
    let workflow = tx.load_workflow(state.workflow).await?.filter(|workflow| workflow.active);
    Ok(workflow.map(|workflow| Standing { state, next_tick, version: workflow.current_version }))
}

/// What a firing writes. Worked out with no transaction open, and only good while the schedule stands as it was seen.
#[derive(Clone, Debug)]
struct Plan {
    seen_tick: Timestamp,
    seen_version: i64,
    settlement: Settlement,
    runs: Vec<PlannedRun>,
    unmatched: i64,
    offset: Duration,
    now: Timestamp,
}

#[derive(Clone, Debug)]
struct PlannedRun {
    run: Run,
    group: Option<JobGroup>,
    tick: Timestamp,
    late: bool,
}

/// What a firing came to.
enum Written {
    /// The ticks of the plan are settled.
    Settled(Vec<(PlannedRun, Started)>),
    /// No tick was due, or the schedule stopped.
    Nothing,
    /// The schedule changed since the plan was made.
    Stale,
}

fn plan(
    org: OrgId,
    standing: &Standing,
    definition: &Arc<Definition>,
    trigger: &TriggerId,
    ambient: &Ambient,
) -> Result<Option<Plan>, AppError> {
    let Some((_, schedule)) = definition.schedules().find(|(id, _)| *id == trigger) else { return Ok(None) };
    let (workflow, now) = (standing.state.workflow, ambient.now());
    let offset = schedule.offset(org, workflow, trigger.as_str());
    let settlement = schedule.settle(standing.next_tick, offset, now);
    let (mut runs, mut unmatched) = (Vec::new(), 0);
    for firing in &settlement.fire {
        let payload = schedule_payload(trigger, schedule, firing, now);
        if definition.matching_trigger(TriggerKind::Schedule, Some(trigger), &payload).trigger.is_none() {
            unmatched += 1;
            continue;
        }
        // A definition whose runs need values is refused when it is saved.
        let state = run::begin(definition, &Map::new())
            .map_err(|error| StoreError::Corrupt { what: "workflow", why: error.to_string() })?;
        let start = StartRun {
            workflow,
            version: standing.version,
            definition: Arc::clone(definition),
            kind: TriggerKind::Schedule,
            payload,
            variables: Map::new(),
            dedupe_key: Some(format!("schedule:{trigger}:{}", firing.tick)),
        };
        let group = run_group(&start.definition, start.workflow, &start.payload);
        runs.push(PlannedRun { run: new_run(start, &state, ambient)?, group, tick: firing.tick, late: firing.late });
    }
    let (seen_tick, seen_version) = (standing.next_tick, standing.version);
    Ok(Some(Plan { seen_tick, seen_version, settlement, runs, unmatched, offset, now }))
}

async fn write_firing(
    tx: &mut Tx,
    lease: &Lease,
    workflow: WorkflowId,
    trigger: &TriggerId,
    plan: Option<&Plan>,
    held_for: Option<&str>,
    ambient: &Ambient,
) -> Result<Written, AppError> {
    let state = tx.lock_schedule(workflow, trigger.as_str()).await?;
    let Some(Standing { mut state, next_tick, version }) = standing(tx, state).await? else {
        tx.finish_job(lease, ambient.now()).await?;
        return Ok(Written::Nothing);
    };
    let Some(plan) = plan.filter(|plan| plan.seen_tick == next_tick && plan.seen_version == version) else {
        return Ok(Written::Stale);
    };
    // Proves the lease: without it nothing of this is committed.
    match plan.settlement.next {
        Some(next) => tx.release_job(lease, next.plus(plan.offset), Attempt::StartsAnew, None, plan.now).await?,
        None => tx.finish_job(lease, plan.now).await?,
    }
    let Some(last) = plan.settlement.last else { return Ok(Written::Nothing) };
    let mut started = Vec::new();
    for planned in &plan.runs {
        let (came, _) = insert_started(tx, &planned.run, planned.group.as_ref(), None, held_for, ambient).await?;
        if matches!(came, Started::Anew(_)) {
            state.fired_count += 1;
            state.late_count += i64::from(planned.late);
            state.last_fired_at = Some(plan.now);
        }
        state.last_run = Some(came.run());
        started.push((planned.clone(), came));
    }
    state.missed_count += i64::try_from(plan.settlement.missed).unwrap_or(i64::MAX);
    state.unmatched_count += plan.unmatched;
    state.last_tick = Some(last);
    state.next_tick = plan.settlement.next;
    state.updated_at = plan.now;
    tx.save_schedule(&state).await?;
    tx.delete_dead_letter_of(JOB_KIND, &job_key(workflow, trigger.as_str())).await?;
    Ok(Written::Settled(started))
}

fn measure(plan: &Plan, started: &[(PlannedRun, Started)]) {
    let count = |result: &'static str, by: u64| {
        if by > 0 {
            metrics::counter!("bulkhead_schedule_firings_total", "result" => result).increment(by);
        }
    };
    for (planned, came) in started {
        match came {
            Started::Anew(_) => count(if planned.late { "late" } else { "started" }, 1),
            Started::Before(_) => count("repeated", 1),
        }
        let lag = plan.now.since(planned.tick.plus(plan.offset));
        metrics::histogram!("bulkhead_schedule_lag_seconds").record(lag.as_secs_f64());
    }
    count("missed", plan.settlement.missed);
    count("unmatched", plan.unmatched.unsigned_abs());
}

/// Nobody is there to be refused: the tick waits, and the policy for missed ones says what becomes of it.
fn without_room(error: AppError) -> AppError {
    match error {
        AppError::Quota(_) | AppError::TooMany { .. } => {
            AppError::Busy { what: "the history's quota", retry_after_ms: NO_ROOM_PAUSE_MS }
        }
        error => error,
    }
}

impl App {
    /// Fires what is due of a schedule while its job is held.
    pub(crate) async fn fire_schedule(&self, job: &ClaimedJob, workflow: WorkflowId, trigger: &TriggerId) -> Left {
        let lease = &job.lease;
        if lease.attempt > job.attempts_max {
            let why = "its worker died, or lost hold of it, at every attempt";
            return self.stall_schedule(lease, workflow, trigger, "worker-died", why).await;
        }
        match self.settle_schedule(lease, workflow, trigger).await {
            Ok(()) => Left::Settled,
            Err(AppError::Store(StoreError::LostLease)) => Left::Lost,
            Err(AppError::Busy { retry_after_ms, .. }) => {
                self.release(lease, Duration::from_millis(retry_after_ms), Attempt::DoesNotCount, None).await
            }
            // It does not get better by itself: somebody must know.
            Err(error @ (AppError::Store(StoreError::Corrupt { .. }) | AppError::NotFound { .. })) => {
                let why = error.to_string();
                tracing::error!(%workflow, %trigger, error = &error as &dyn std::error::Error, "a schedule cannot fire");
                let why = std::error::Error::source(&error).map_or(why, ToString::to_string);
                self.stall_schedule(lease, workflow, trigger, "host-fault", &why).await
            }
            Err(error) => {
                tracing::error!(%workflow, %trigger, error = &error as &dyn std::error::Error, "a schedule could not fire; trying again");
                self.release(lease, FAULT_PAUSE, Attempt::DoesNotCount, Some(error.to_string())).await
            }
        }
    }

    /// Puts a schedule that cannot fire on the list of dead letters. It tries again later by itself, and fires what is due then as its
    /// misfire policy says.
    async fn stall_schedule(
        &self,
        lease: &Lease,
        workflow: WorkflowId,
        trigger: &TriggerId,
        code: &str,
        why: &str,
    ) -> Left {
        let scope = SystemScope::new(SystemReason::Worker).for_org(lease.org);
        let step = Some(trigger.as_str());
        let letter = NewDeadLetter {
            fingerprint: Fault { kind: JOB_KIND, code, step, message: why }.fingerprint(),
            kind: JOB_KIND.to_owned(),
            subject: job_key(workflow, trigger.as_str()),
            workflow: Some(workflow),
            run: None,
            job: None,
            step: step.map(str::to_owned),
            code: code.to_owned(),
            message: why.to_owned(),
        };
        metrics::counter!("bulkhead_dead_letters_total", "kind" => JOB_KIND).increment(1);
        let args = (lease.clone(), letter, self.ambient().clone());
        let stalled = self
            .store()
            .write_locked(&scope, args, |tx, (lease, letter, ambient)| {
                Box::pin(async move {
                    let (now, why) = (ambient.now(), Some(letter.message.as_str()));
                    tx.release_job(lease, now.plus(STALLED_PAUSE), Attempt::StartsAnew, why, now).await?;
                    tx.record_dead_letter(letter, ambient).await
                })
            })
            .await;
        match stalled {
            Ok(()) => Left::Settled,
            Err(StoreError::LostLease) => Left::Lost,
            Err(error) => self.release(lease, FAULT_PAUSE, Attempt::DoesNotCount, Some(error.to_string())).await,
        }
    }

    /// Gives schedules whose tick is past and that have no job (it was given up, say) another one; answers how many.
    pub(crate) async fn rearm_lost_schedules(&self) -> Result<usize, AppError> {
        let jobs = SystemScope::new(SystemReason::Jobs);
        let before = self.ambient().now().minus(LOST_AFTER);
        let (mut after, mut rearmed) = (None, 0);
        loop {
            let (lost, last) = self
                .store()
                .read(&jobs, (before, after.take()), |tx, (before, after)| {
                    Box::pin(async move {
                        let overdue = tx.list_overdue_schedules(*before, after.as_ref(), OVERDUE_MAX).await?;
                        let last = if overdue.len() < OVERDUE_MAX as usize { None } else { overdue.last().cloned() };
                        let mut lost = Vec::new();
                        for (org, state) in overdue {
                            let key = job_key(state.workflow, &state.trigger);
                            if !tx.is_job_live(org, JOB_KIND, &key).await? {
                                lost.push((org, state.workflow, state.trigger));
                            }
                        }
                        Ok::<_, AppError>((lost, last))
                    })
                })
                .await?;
            for (org, workflow, trigger) in lost {
                tracing::warn!(%org, %workflow, %trigger, "a schedule had lost its job and gets another");
                let scope = SystemScope::new(SystemReason::Worker).for_org(org);
                let args = (workflow, trigger, self.ambient().clone());
                // The schedule's row lock orders this against whoever saves or deactivates the workflow.
                self.store()
                    .write_locked(&scope, args, |tx, (workflow, trigger, ambient)| {
                        Box::pin(async move { rearm(tx, *workflow, trigger, ambient).await })
                    })
                    .await?;
                metrics::counter!("bulkhead_schedules_rearmed_total").increment(1);
                rearmed += 1;
            }
            if last.is_none() {
                return Ok(rearmed);
            }
            after = last;
        }
    }

    async fn settle_schedule(&self, lease: &Lease, workflow: WorkflowId, trigger: &TriggerId) -> Result<(), AppError> {
        let scope = SystemScope::new(SystemReason::Worker).for_org(lease.org);
        self.require_room(&scope).await.map_err(without_room)?;
        // No bound on starts is asked: ticks are few by definition, and putting one off could lose it to the policy for missed ones.
        for _ in 0..PLANS_MAX {
            let plan = self.plan_firing(&scope, workflow, trigger).await?.map(Arc::new);
            let held_for = plan.as_ref().and_then(|plan| self.hold_name(lease.org, workflow, plan.seen_version));
            let args = (lease.clone(), workflow, trigger.clone(), plan.clone(), held_for, self.ambient().clone());
            let written = self
                .store()
                // The schedule's row lock orders this against whoever saves, activates or deactivates the workflow.
                .write_locked(&scope, args, |tx, (lease, workflow, trigger, plan, held_for, ambient)| {
                    Box::pin(async move {
                        write_firing(tx, lease, *workflow, trigger, plan.as_deref(), held_for.as_deref(), ambient).await
                    })
                })
                .await?;
            let started = match written {
                Written::Stale => continue,
                Written::Nothing => return Ok(()),
                Written::Settled(started) => started,
            };
            if let Some(plan) = &plan {
                measure(plan, &started);
            }
            if !started.is_empty() {
                self.wake_workers();
            }
            return Ok(());
        }
        Err(AppError::Busy { what: "the schedule", retry_after_ms: STALE_PAUSE_MS })
    }

    /// Works out what is due, on the planner. `None`: nothing, now or later.
    async fn plan_firing(
        &self,
        scope: &OrgScope,
        workflow: WorkflowId,
        trigger: &TriggerId,
    ) -> Result<Option<Plan>, AppError> {
        let found = self
            .store()
            .read(scope, (workflow, trigger.clone()), |tx, (workflow, trigger)| {
                Box::pin(async move {
                    let state = tx.load_schedule(*workflow, trigger.as_str()).await?;
                    Ok::<_, AppError>(standing(tx, state).await?)
                })
            })
            .await?;
        let Some(standing) = found else { return Ok(None) };
        let definition = self.definition(scope, workflow, standing.version).await?;
        let (org, trigger, ambient) = (scope.org(), trigger.clone(), self.ambient().clone());
        self.planner().run(org, move || plan(org, &standing, &definition, &trigger, &ambient)).await?
    }

    /// The schedule triggers of a workflow's current version: what comes next, and what became of the ticks so far.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn list_schedules(
        &self,
        caller: &Caller,
        org: OrgId,
        id: WorkflowId,
    ) -> Result<Vec<ScheduleDetail>, AppError> {
        let scope = caller.authorize(org, Permission::WorkflowsRead)?;
        let (workflow, states) = self
            .store()
            .read(&scope, id, |tx, id| {
                Box::pin(async move {
                    let workflow = tx.require_workflow(*id).await?;
                    let mut states = Vec::new();
                    for state in tx.list_schedules(*id).await? {
                        let trouble = trouble_of(tx, &state).await?;
                        states.push((state, trouble));
                    }
                    Ok::<_, AppError>((workflow, states))
                })
            })
            .await?;
        let definition = self.definition(&scope, id, workflow.current_version).await?;
        let now = self.ambient().now();
        let show = move || {
            let state_of = |trigger: &TriggerId| states.iter().find(|(state, _)| state.trigger == trigger.as_str());
            let schedules = definition.schedules();
            schedules.map(|found| detail(org, id, found, state_of(found.0), now)).collect::<Vec<_>>()
        };
        self.planner().run(org, show).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_waits_where_there_is_no_room_and_fails_where_the_host_does() {
        use crate::quota::QuotaExceeded;
        use bulkhead_model::quota::Quota;
        let full = QuotaExceeded { quota: Quota::HistoryBytes, used: 2, limit: 1, hint: "wait" };
        let asleep = AppError::TooMany { code: "too-many-waiting", message: "they sleep".into(), retry_after_ms: 5 };
        for refused in [AppError::Quota(full), asleep] {
            let told = without_room(refused);
            assert!(matches!(told, AppError::Busy { retry_after_ms: NO_ROOM_PAUSE_MS, .. }), "{told:?}");
        }
        let failed = without_room(AppError::Store(StoreError::LostLease));
        assert!(matches!(failed, AppError::Store(StoreError::LostLease)), "{failed:?}");
    }
}
