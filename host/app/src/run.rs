//! Runs: started, shown, cancelled, begun again from a step.

pub(crate) mod record;

use std::sync::Arc;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{DeadLetterId, InstallationId, OrgId, RunId, WorkerId, WorkflowId};
use bulkhead_model::job::{JobPayload, Lane};
use bulkhead_model::name::PluginName;
use bulkhead_model::permission::{Actor, Caller, OrgScope, Permission};
use bulkhead_model::retention::{RUN_FULL, RUN_HISTORY_BYTES_MAX};
use bulkhead_model::run::{self, RunState, RunStatus};
use bulkhead_model::time::Timestamp;
use bulkhead_model::workflow::{Definition, StepId, StepKind, TriggerKind, trigger_payload};
use bulkhead_store::advance::Begun;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::dead_letter::{self, DeadLetter};
use bulkhead_store::installation::Installation;
use bulkhead_store::job::{ClaimedJob, JobGroup, NewJob};
use bulkhead_store::page::{Page, PageRequest};
use bulkhead_store::run::{Kept, Run, RunEvent, RunSummary, Step, StepSizes};
use bulkhead_store::{StoreError, Tx};
use serde_json::{Map, Value, json};
use tokio::sync::OwnedSemaphorePermit;

use self::record::{log_event, read_state, read_trigger, save_record, state_text};
use crate::admission::Place;
use crate::call::read_ahead;
use crate::engine::ATTEMPT_DEADLINE;
use crate::planner::{LIGHT_BYTES_MAX, is_small};
use crate::worker::Reserved;
use crate::{App, AppError, Problem};

/// A run's job is given up after this many attempts that ended with its worker's death or the store's failure: it may be what
/// kills. (A step's own retries are the definition's and are not counted here.)
const JOB_ATTEMPTS_MAX: u32 = 25;
/// Of a run's job; those of the organization with a lower number are taken up first.
pub(crate) const PRIORITY: i64 = 100;
/// … of one that is resumed with many others, which new ones must not wait for.
pub(crate) const PRIORITY_RESUMED: i64 = 200;
/// Characters of an `Idempotency-Key`.
const IDEMPOTENCY_KEY_LEN_MAX: usize = 255;
/// Log entries in one page.
pub const EVENTS_LIMIT_MAX: u32 = 1_000;

/// What a new run is made from.
pub(crate) struct StartRun {
    pub(crate) workflow: WorkflowId,
    pub(crate) version: i64,
    pub(crate) definition: Arc<Definition>,
    pub(crate) kind: TriggerKind,
    /// The `trigger` that conditions and templates see.
    pub(crate) payload: Value,
    pub(crate) variables: Map<String, Value>,
    /// A second start with the same key answers the first one's run.
    pub(crate) dedupe_key: Option<String>,
}

/// A run with its steps.
#[derive(Clone, Debug)]
pub struct RunDetail {
    pub run: Run,
    /// Without payloads that are too large for a list.
    pub steps: Vec<Step>,
    /// In the same order.
    pub sizes: Vec<StepSizes>,
    /// Where it failed and waits for a decision.
    pub dead_letter: Option<DeadLetter>,
}

/// How to begin a run by hand.
#[derive(Clone, Debug, Default)]
pub struct StartByHand {
    pub input: Value,
    pub variables: Map<String, Value>,
    pub idempotency_key: Option<String>,
}

/// Where to begin again.
#[derive(Clone, Debug, Default)]
pub struct RetryRun {
    /// The step to begin with; without one, the step whose failure or cancellation ended the run.
    pub from_step: Option<String>,
    /// Makes effects again that may have happened already: steps get new idempotency keys.
    pub new_generation: bool,
}

/// `group` bounds how many of the workflow's runs are carried at once.
pub(crate) fn advance_job(run: RunId, run_at: Timestamp, group: Option<JobGroup>) -> NewJob {
    NewJob {
        payload: JobPayload::AdvanceRun { run },
        priority: PRIORITY,
        run_at,
        dedupe_key: Some(run.to_string()),
        attempts_max: JOB_ATTEMPTS_MAX,
        group,
    }
}

/// What came of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Started {
    Anew(RunId),
    /// The dedupe key was used before; that run stands.
    Before(RunId),
}

impl Started {
    pub(crate) fn run(self) -> RunId {
        match self {
            Self::Anew(run) | Self::Before(run) => run,
        }
    }
}

/// A run as it was just saved, or read, by the process that carries it forward.
pub(crate) struct FreshRun {
    pub(crate) run: Run,
    /// Of the first step's call, as the same transaction read it.
    pub(crate) installation: Option<Installation>,
}

/// Which installation a run of the definition calls first, where it begins with a call: the named one, or the plugin's only one.
fn first_call(definition: &Definition) -> Option<(&PluginName, Option<InstallationId>)> {
    match &definition.step(&definition.start)?.kind {
        StepKind::Call(call) => Some((&call.plugin, call.installation)),
        StepKind::Condition { .. }
        | StepKind::Switch { .. }
        | StepKind::Set { .. }
        | StepKind::Delay { .. }
        | StepKind::Stop { .. } => None,
    }
}

/// The installation that a run of the definition calls first, so that it need not be looked up on the way there.
pub(crate) async fn read_first(tx: &mut Tx, definition: &Definition) -> Result<Option<Installation>, StoreError> {
    match first_call(definition) {
        Some((plugin, named)) => read_ahead(tx, plugin, named).await,
        None => Ok(None),
    }
}

/// The group that the definition puts a run in.
pub(crate) fn run_group(definition: &Definition, workflow: WorkflowId, trigger: &Value) -> Option<JobGroup> {
    let bound = definition.concurrency.as_ref()?;
    Some(JobGroup { key: bound.group(workflow, trigger), limit: bound.limit })
}

/// A run that is about to begin in `state`.
pub(crate) fn new_run(start: StartRun, state: &RunState, ambient: &Ambient) -> Result<Run, AppError> {
    let now = ambient.now();
    let trigger_data = start.payload.to_string();
    let kept = Kept::begun(&trigger_data);
    Ok(Run {
        id: RunId::new(ambient),
        workflow: start.workflow,
        version: start.version,
        status: RunStatus::Queued,
        trigger_kind: start.kind.as_str().to_owned(),
        trigger_data,
        state: state_text(state)?,
        generation: i64::from(state.generation),
        output: None,
        error: None,
        dedupe_key: start.dedupe_key,
        log_seq: 1,
        waiting_until: None,
        created_at: now,
        updated_at: now,
        finished_at: None,
        kept,
    })
}

/// Inserts a run, the first entry of its log and its job, unless its dedupe key started one before. The job is answered where
/// `worker` holds it from the start. With `held_for` it waits until that breaker lets it go.
pub(crate) async fn insert_started(
    tx: &mut Tx,
    run: &Run,
    group: Option<&JobGroup>,
    worker: Option<WorkerId>,
    held_for: Option<&str>,
    ambient: &Ambient,
) -> Result<(Started, Option<ClaimedJob>), AppError> {
    let detail = json!({ "trigger": run.trigger_kind }).to_string();
    let event = RunEvent { seq: 1, kind: "queued".into(), detail, created_at: run.created_at };
    let job = advance_job(run.id, run.created_at, group.cloned());
    // Whether a group has room is for a claim to find out.
    let begun = match (worker, group, held_for) {
        (Some(worker), None, None) => tx.begin_run(run, &event, &job, worker, ATTEMPT_DEADLINE, ambient).await?,
        _ if !tx.insert_run(run).await? => Begun::Before,
        _ => {
            tx.record_run_event(run.id, &event).await?;
            match held_for {
                Some(name) => tx.enqueue_paused(&job, name, ambient).await.map(drop)?,
                None => tx.enqueue(&job, ambient).await.map(drop)?,
            }
            Begun::Queued
        }
    };
    match begun {
        Begun::Held(job) => Ok((Started::Anew(run.id), Some(job))),
        Begun::Queued => Ok((Started::Anew(run.id), None)),
        Begun::Before => {
            let key = run.dedupe_key.as_deref().unwrap_or_default();
            let first = tx.load_run_by_dedupe_key(run.workflow, key).await?;
            let lost = || AppError::Store(StoreError::Conflict { constraint: "run_dedupe".into() });
            Ok((Started::Before(first.ok_or_else(lost)?), None))
        }
    }
}

impl App {
    /// A version's checked definition, from the cache: versions never change.
    pub(crate) async fn definition(
        &self,
        scope: &OrgScope,
        workflow: WorkflowId,
        version: i64,
    ) -> Result<Arc<Definition>, AppError> {
        let key = (scope.org(), workflow, version);
        if let Some((found, _)) = self.definitions().get(&key) {
            return Ok(found);
        }
        let stored = self
            .store()
            .read(scope, (workflow, version), |tx, (workflow, version)| {
                Box::pin(async move {
                    tx.load_workflow_version(*workflow, *version)
                        .await?
                        .ok_or(AppError::NotFound { what: "workflow version" })
                })
            })
            .await?;
        let text = stored.definition;
        // Steps, expressions and compiled patterns take a multiple of their text.
        let bytes = u32::try_from(text.len().saturating_mul(16).saturating_add(1_024)).unwrap_or(u32::MAX);
        let parsed = self.planner().run(scope.org(), move || Definition::parse(&text)).await?;
        let (definition, _) = parsed
            .map_err(|error| AppError::Store(StoreError::Corrupt { what: "workflow", why: error.to_string() }))?;
        let definition = Arc::new(definition);
        self.definitions().insert(key, (Arc::clone(&definition), bytes));
        Ok(definition)
    }

    /// Saves a new run and its job in one transaction; with a dedupe key that was used before, answers that run.
    pub(crate) async fn start_run_in(
        &self,
        scope: &OrgScope,
        place: &Arc<Place>,
        start: StartRun,
    ) -> Result<RunId, AppError> {
        let state = run::begin(&start.definition, &start.variables).map_err(|error| {
            let problems = error
                .problems
                .iter()
                .map(|problem| {
                    Problem::new(format!("/variables/{}", problem.name), problem.code.clone(), problem.message.clone())
                })
                .collect();
            AppError::Invalid { code: "invalid-variables", message: error.to_string(), problems }
        })?;
        let group = run_group(&start.definition, start.workflow, &start.payload);
        let definition = Arc::clone(&start.definition);
        let mut run = new_run(start, &state, self.ambient())?;
        if let Err(refused) = self.require_room_for_start(scope, run.trigger_data.len()).await {
            // What was accepted before is answered for, whatever room there is now.
            return self.started_before(scope, &run).await?.ok_or(refused);
        }
        // A hook's deliveries are told by the run itself; what a person starts is told with who it was.
        let audited = match scope.actor() {
            Actor::ApiKey(_) | Actor::User(_) => Some(AuditEvent {
                action: EventType::RunStarted,
                target: run.id.to_string(),
                actor: scope.actor().clone(),
                detail: json!({ "workflow": run.workflow, "version": run.version, "trigger": run.trigger_kind }),
            }),
            Actor::System(_) => None,
        };
        // Where nobody waits, this process takes the run up in the transaction that saves it: no claim, no commit for one.
        let held_for = self.hold_name(scope.org(), run.workflow, run.version);
        if let Some(name) = &held_for
            && let Err(refused) = self.admit_held(scope, place, (run.workflow, run.version), name).await
        {
            return self.started_before(scope, &run).await?.ok_or(refused);
        }
        let reserved = if held_for.is_none() { self.wake().reserve(Lane::Interactive, scope.org()) } else { None };
        let worker = reserved.as_ref().map(Reserved::worker);
        if worker.is_some() && group.is_none() {
            // Its first step's commit need not move it from one status to another.
            run.status = RunStatus::Running;
        }
        let args = (run.clone(), group, audited, worker, held_for, definition, self.ambient().clone());
        let (store, saving, place) = (self.store().clone(), scope.clone(), Arc::clone(place));
        let save = async move {
            // Two starts with one dedupe key are ordered by its unique index.
            let write = place.write(
                &store,
                &saving,
                args,
                |tx, (run, group, audited, worker, held_for, definition, ambient)| {
                    Box::pin(async move {
                        let (started, held) =
                            insert_started(tx, run, group.as_ref(), *worker, held_for.as_deref(), ambient).await?;
                        // One that was started before has its entry.
                        if let (Some(event), Started::Anew(_)) = (audited, started) {
                            tx.record_audit(event, ambient).await?;
                        }
                        let Some(job) = held else { return Ok((started, None)) };
                        // It goes on in this process, and at once.
                        Ok::<_, AppError>((started, Some((job, read_first(tx, definition).await?))))
                    })
                },
            );
            write.await
        };
        let started = if let Some(reserved) = reserved {
            reserved.begin(scope.org(), run, save).await?
        } else {
            let (started, _) = save.await?;
            self.wake_org(Lane::Interactive, scope.org());
            started
        };
        Ok(started.run())
    }

    /// The run that a start with the same dedupe key made before.
    async fn started_before(&self, scope: &OrgScope, run: &Run) -> Result<Option<RunId>, AppError> {
        let Some(key) = run.dedupe_key.clone() else { return Ok(None) };
        self.started_with(scope, run.workflow, key).await
    }

    async fn started_with(
        &self,
        scope: &OrgScope,
        workflow: WorkflowId,
        key: String,
    ) -> Result<Option<RunId>, AppError> {
        self.store()
            .read(scope, (workflow, key), |tx, (workflow, key)| {
                Box::pin(async move { Ok(tx.load_run_by_dedupe_key(*workflow, key).await?) })
            })
            .await
    }

    /// The run that the first start with this key made, for a repetition that there is no room for; else the refusal. Of an organization
    /// only so many are looked up at once, by whoever has the right `looking`.
    ///
    /// # Errors
    /// `refused`, or the store's.
    pub(crate) async fn repeated_or(
        &self,
        scope: &OrgScope,
        workflow: WorkflowId,
        key: Option<String>,
        looking: Option<OwnedSemaphorePermit>,
        refused: AppError,
    ) -> Result<RunId, AppError> {
        let (AppError::TooMany { .. }, Some(key)) = (&refused, key) else { return Err(refused) };
        let Some(_looking) = looking.or_else(|| self.may_look_up(scope.org())) else { return Err(refused) };
        self.started_with(scope, workflow, key).await?.ok_or(refused)
    }

    /// Starts a run by hand (`POST workflows/{id}/runs`). The workflow need not be active: that is for triggers.
    ///
    /// # Errors
    /// [`AppError::Conflict`] `no-trigger` when the definition has neither a manual nor an API trigger whose conditions hold;
    /// [`AppError::Invalid`] for variables; [`AppError::TooMany`]; [`AppError::Quota`].
    pub async fn start_run(
        &self,
        caller: &Caller,
        org: OrgId,
        workflow: WorkflowId,
        start: StartByHand,
    ) -> Result<RunId, AppError> {
        let scope = caller.authorize(org, Permission::RunsStart)?;
        if start
            .idempotency_key
            .as_ref()
            .is_some_and(|key| key.is_empty() || key.chars().count() > IDEMPOTENCY_KEY_LEN_MAX)
        {
            let message = format!("an Idempotency-Key has 1 to {IDEMPOTENCY_KEY_LEN_MAX} characters");
            return Err(AppError::invalid("invalid-idempotency-key", "", message));
        }
        let dedupe_key = start.idempotency_key.map(|key| format!("api:{key}"));
        let place = match self.admit(&scope, None).await {
            Ok(place) => place,
            Err(refused) => return self.repeated_or(&scope, workflow, dedupe_key, None, refused).await,
        };
        let found = self
            .store()
            .read(&scope, workflow, |tx, id| {
                Box::pin(async move { Ok::<_, AppError>(tx.require_workflow(*id).await?) })
            })
            .await?;
        let definition = self.definition(&scope, workflow, found.current_version).await?;
        let mut refusals = Vec::new();
        for kind in [TriggerKind::Api, TriggerKind::Manual] {
            let payload = trigger_payload(kind, start.input.clone(), json!({}), json!({}));
            let asked = Arc::clone(&definition);
            let is_light = definition.is_light() && is_small(&payload, LIGHT_BYTES_MAX);
            let work = move || (asked.matching_trigger(kind, None, &payload), payload);
            let (matched, payload) = self.planner().run_where(is_light, org, work).await?;
            if matched.trigger.is_some() {
                let start = StartRun {
                    workflow,
                    version: found.current_version,
                    definition: Arc::clone(&definition),
                    kind,
                    payload,
                    variables: start.variables,
                    dedupe_key,
                };
                return self.start_run_in(&scope, &place, start).await;
            }
            refusals.push(format!("{}: {}", kind.as_str(), matched.reason().unwrap_or_default()));
        }
        Err(AppError::conflict("no-trigger", format!("no trigger starts this run by hand ({})", refusals.join("; "))))
    }

    /// Newest first; `status` and `workflow` narrow when given.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_runs(
        &self,
        caller: &Caller,
        org: OrgId,
        status: Option<RunStatus>,
        workflow: Option<WorkflowId>,
        page: PageRequest,
    ) -> Result<Page<RunSummary>, AppError> {
        let scope = caller.authorize(org, Permission::RunsRead)?;
        self.store()
            .read(&scope, (status, workflow, page), |tx, (status, workflow, page)| {
                Box::pin(async move { Ok(tx.list_runs(*status, *workflow, *page).await?) })
            })
            .await
    }

    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn show_run(&self, caller: &Caller, org: OrgId, id: RunId) -> Result<RunDetail, AppError> {
        let scope = caller.authorize(org, Permission::RunsRead)?;
        self.store()
            .read(&scope, id, |tx, id| {
                Box::pin(async move {
                    let mut run = tx.require_run(*id).await?;
                    // A run whose first step is under way has committed nothing yet; its job tells.
                    let may_be_held = matches!(run.status, RunStatus::Queued | RunStatus::Waiting);
                    if may_be_held && tx.is_job_held("advance_run", &id.to_string()).await? {
                        run.status = RunStatus::Running;
                        run.waiting_until = None;
                    }
                    let (steps, sizes) = tx.list_steps(*id).await?.into_iter().unzip();
                    let dead_letter = if run.status == RunStatus::Failed {
                        tx.load_dead_letter_of(dead_letter::RUN, &id.to_string()).await?
                    } else {
                        None
                    };
                    Ok::<_, AppError>(RunDetail { run, steps, sizes, dead_letter })
                })
            })
            .await
    }

    /// One step of a run, whole.
    ///
    /// # Errors
    /// [`AppError::NotFound`], also for a step that the run has not begun.
    pub async fn show_step(&self, caller: &Caller, org: OrgId, run: RunId, step: String) -> Result<Step, AppError> {
        let scope = caller.authorize(org, Permission::RunsRead)?;
        self.store()
            .read(&scope, (run, step), |tx, (run, step)| {
                Box::pin(async move { tx.load_step(*run, step).await?.ok_or(AppError::NotFound { what: "step" }) })
            })
            .await
    }

    /// The run's own log after `after`, oldest first.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn list_run_events(
        &self,
        caller: &Caller,
        org: OrgId,
        id: RunId,
        after: i64,
        limit: u32,
    ) -> Result<Vec<RunEvent>, AppError> {
        let scope = caller.authorize(org, Permission::RunsRead)?;
        self.store()
            .read(&scope, (id, after, limit.clamp(1, EVENTS_LIMIT_MAX)), |tx, (id, after, limit)| {
                Box::pin(async move {
                    tx.require_run(*id).await?;
                    Ok(tx.list_run_events(*id, *after, *limit).await?)
                })
            })
            .await
    }

    /// Ends a run now: a call in flight is cancelled, a wait is given up. What already left cannot be called back.
    ///
    /// # Errors
    /// [`AppError::Conflict`] `run-finished`.
    pub async fn cancel_run(&self, caller: &Caller, org: OrgId, id: RunId) -> Result<(), AppError> {
        let scope = caller.authorize(org, Permission::RunsControl)?;
        let run = self
            .store()
            .read(&scope, id, |tx, id| Box::pin(async move { Ok::<_, AppError>(tx.require_run(*id).await?) }))
            .await?;
        let definition = self.definition(&scope, run.workflow, run.version).await?;
        let args = (id, definition, scope.actor().clone(), self.ambient().clone());
        // The run's row lock orders this against the worker's commits and other cancellations.
        self.store()
            .write_locked(&scope, args, |tx, (id, definition, actor, ambient)| {
                Box::pin(async move {
                    tx.lock_job("advance_run", &id.to_string()).await?;
                    let mut run = tx.lock_run(*id).await?;
                    if run.status.is_final() {
                        let message = format!("the run has ended already ({})", run.status.as_str());
                        return Err(AppError::conflict("run-finished", message));
                    }
                    let (now, status_before) = (ambient.now(), run.status);
                    let mut state = read_state(&run)?;
                    if let Some(record) = run::cancel(definition, &mut state, &format!("cancelled by {actor}")) {
                        save_record(tx, &state, &mut run, &record, None, now).await?;
                    }
                    run.status = RunStatus::Cancelled;
                    run.state = state_text(&state)?;
                    run.waiting_until = None;
                    run.updated_at = now;
                    run.finished_at = Some(now);
                    log_event(tx, &mut run, "cancelled", &json!({ "by": actor.to_string() }), now).await?;
                    tx.update_run(&run).await?;
                    tx.remove_waiting_job("advance_run", &id.to_string()).await?;
                    // A job of it that was given up carries nothing on any more, and nobody is to decide about it.
                    if let Some(letter) = tx.load_dead_letter_of("advance_run", &id.to_string()).await? {
                        if let Some(job) = letter.new.job {
                            tx.delete_dead_job(job).await?;
                        }
                        tx.delete_dead_letter(letter.id).await?;
                    }
                    tx.record_event("run.cancelled", &id.to_string(), &json!({ "workflow": run.workflow }), ambient)
                        .await?;
                    let event = AuditEvent {
                        action: EventType::RunCancelled,
                        target: id.to_string(),
                        actor: actor.clone(),
                        detail: json!({ "workflow": run.workflow, "status_before": status_before.as_str() }),
                    };
                    Ok(tx.record_audit(&event, ambient).await?)
                })
            })
            .await?;
        self.in_flight().cancel_run(id);
        self.node().tell_run_ended(org, id);
        Ok(())
    }

    /// Begins an ended run again from a step; what came before it is kept.
    ///
    /// # Errors
    /// [`AppError::Conflict`] `run-not-finished`, `run-history-full`; [`AppError::Invalid`] `unknown-step`; [`AppError::TooMany`];
    /// [`AppError::Quota`]; [`AppError::NotFound`], also for a run that is being removed.
    pub async fn retry_run(&self, caller: &Caller, org: OrgId, id: RunId, retry: RetryRun) -> Result<(), AppError> {
        let scope = caller.authorize(org, Permission::RunsControl)?;
        let place = self.admit(&scope, None).await?;
        self.require_room(&scope).await?;
        let run = self
            .store()
            .read(&scope, id, |tx, id| Box::pin(async move { Ok::<_, AppError>(tx.require_run(*id).await?) }))
            .await?;
        let definition = self.definition(&scope, run.workflow, run.version).await?;
        let again = BeginAgain { run: id, retry, definition, letter: None, priority: PRIORITY };
        let args = (again, scope.actor().clone(), self.ambient().clone());
        // As above: the run's row lock.
        place
            .write(self.store(), &scope, args, |tx, (again, actor, ambient)| {
                Box::pin(async move {
                    let begun = begin_again(tx, again, &actor.to_string(), ambient).await?;
                    tx.record_audit(&retried(again.run, &begun, actor), ambient).await?;
                    Ok::<_, AppError>(tx.note_retries(1).await?)
                })
            })
            .await?;
        self.wake_org(Lane::Interactive, org);
        Ok(())
    }
}

/// How an ended run begins again.
pub(crate) struct BeginAgain {
    pub(crate) run: RunId,
    pub(crate) retry: RetryRun,
    pub(crate) definition: Arc<Definition>,
    /// Only while this entry stands for it.
    pub(crate) letter: Option<DeadLetterId>,
    pub(crate) priority: i64,
}

/// How it began.
pub(crate) struct BegunAgain {
    step: StepId,
    generation: u32,
    status_before: RunStatus,
}

pub(crate) fn retried(run: RunId, begun: &BegunAgain, actor: &Actor) -> AuditEvent {
    let BegunAgain { step, generation, status_before } = begun;
    AuditEvent {
        action: EventType::RunRetried,
        target: run.to_string(),
        actor: actor.clone(),
        detail: json!({ "from_step": step, "status_before": status_before.as_str(), "generation": generation }),
    }
}

/// Begins an ended run again, in that transaction, and takes it off the list of dead letters. A refusal comes before anything is
/// written, so that the transaction may go on with another run. The run's row lock orders it against whoever else does the same. Its
/// caller notes it with [`Tx::note_retries`], last of all.
pub(crate) async fn begin_again(
    tx: &mut Tx,
    again: &BeginAgain,
    by: &str,
    ambient: &Ambient,
) -> Result<BegunAgain, AppError> {
    let BeginAgain { run: id, retry, definition, letter, priority } = again;
    let key = id.to_string();
    tx.lock_job("advance_run", &key).await?;
    let mut run = tx.lock_run(*id).await?;
    if let Some(letter) = letter
        && tx.load_dead_letter(*letter).await?.is_none()
    {
        return Err(AppError::NotFound { what: "dead letter" });
    }
    if !run.status.is_final() {
        let message = format!("the run has not ended yet ({}): cancel it first", run.status.as_str());
        return Err(AppError::conflict("run-not-finished", message));
    }
    if run.kept.removing {
        return Err(AppError::NotFound { what: "run" });
    }
    if run.kept.held_bytes >= RUN_HISTORY_BYTES_MAX {
        let held = run.kept.held_bytes;
        let message = format!("the run's history takes up {held} of {RUN_HISTORY_BYTES_MAX} bytes: start another run");
        return Err(AppError::conflict(RUN_FULL, message));
    }
    let before = read_state(&run)?;
    let step = retry_step(retry, &before)?;
    let state = run::rewind(definition, &before, &step, retry.new_generation)
        .map_err(|error| AppError::invalid("unknown-step", "/from_step", error.to_string()))?;
    if tx.is_job_held("advance_run", &key).await? {
        let message = "a worker still holds the run: try again in a moment";
        return Err(AppError::conflict("run-not-finished", message));
    }
    // A trigger may be a megabyte: read only where the group depends on it.
    let group = match &definition.concurrency {
        Some(_) => run_group(definition, run.workflow, &read_trigger(&run)?),
        None => None,
    };
    let state_text = state_text(&state)?;
    let now = ambient.now();
    let status_before = run.status;
    run.status = RunStatus::Queued;
    run.generation = i64::from(state.generation);
    run.state = state_text;
    run.output = None;
    run.error = None;
    run.waiting_until = None;
    run.updated_at = now;
    run.finished_at = None;
    let detail = json!({ "by": by, "from_step": step, "generation": state.generation });
    log_event(tx, &mut run, "retried", &detail, now).await?;
    // Rows of what is forgotten would tell of the generation before; their calls and the log stay.
    let gone = tx.delete_steps(*id, i64::try_from(state.steps.len()).unwrap_or(i64::MAX)).await?;
    run.kept.take(gone);
    tx.update_run(&run).await?;
    tx.remove_waiting_job("advance_run", &key).await?;
    tx.delete_dead_letter_of(dead_letter::RUN, &key).await?;
    let job = NewJob { priority: *priority, ..advance_job(*id, now, group) };
    if tx.enqueue(&job, ambient).await?.is_none() {
        // Under the run's lock nobody else makes or takes its job.
        return Err(AppError::Store(StoreError::Conflict { constraint: "job_dedupe".into() }));
    }
    Ok(BegunAgain { step, generation: state.generation, status_before })
}

/// The step to begin with: the one asked for, or the one whose failure (or cancellation) ended the run. A failure that the
/// definition allowed for ended nothing.
fn retry_step(retry: &RetryRun, state: &RunState) -> Result<StepId, AppError> {
    if let Some(text) = &retry.from_step {
        let unknown =
            || AppError::invalid("unknown-step", "/from_step", format!("the run's definition has no step {text:?}"));
        return text.parse().map_err(|_| unknown());
    }
    let ended_at = match &state.ended {
        // A `stop` that says "failed" is where the definition wanted to end: nothing there can go better.
        Some(ended) => {
            ended.error.as_ref().filter(|error| error.code != "stopped").and_then(|error| error.step.clone())
        }
        None => state.cursor.clone(),
    };
    ended_at.ok_or_else(|| {
        let message = "no step's failure ended the run: name the step to begin with";
        AppError::invalid("unknown-step", "/from_step", message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_start_that_is_a_call_says_what_is_called_first() {
        let named = "inst_01h455vb4pex5vsknk084sn02q";
        let first = |start: &str| {
            let definition = json!({
                "schema": 1, "name": "it", "triggers": [{ "id": "by-hand", "type": "api" }], "start": start,
                "steps": {
                    "pause": { "type": "delay", "for": "1d", "next": "call" },
                    "call": { "type": "action", "use": "acme/echo#it", "with": {}, "next": "end" },
                    "named": { "type": "action", "use": "acme/echo#it", "installation": named, "with": {}, "next": "end" },
                    "end": { "type": "stop" },
                },
            });
            let (definition, _) = Definition::parse(&definition.to_string()).unwrap();
            first_call(&definition).map(|(plugin, named)| (plugin.to_string(), named))
        };
        let echo = "acme/echo".to_owned();
        assert_eq!(first("call"), Some((echo.clone(), None)));
        assert_eq!(first("named"), Some((echo, Some(named.parse().unwrap()))));
        assert_eq!(first("end"), None);
        assert_eq!(first("pause"), None);
    }
}
