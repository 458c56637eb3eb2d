//! Breakers of workflows: what is known of them here, how a run's end moves them, and how waiting runs are let go.
//!
//! The database says which are open (`store/src/breaker.rs`); what a node remembers is a hint that is read anew each second. A run that
//! succeeds asks the memory alone, so that a healthy workflow pays nothing; one that fails counts in its own commit.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::breaker::{Failed, Stand, hold_key, parse_hold_key};
use bulkhead_model::fault::Fault;
use bulkhead_model::id::{OrgId, RunId, WorkflowId};
use bulkhead_model::job::{Lane, Lease};
use bulkhead_model::permission::{Actor, Caller, OrgScope, Permission, SystemReason, SystemScope};
use bulkhead_model::run::{RunStatus, StepError};
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::breaker::BreakerState;
use bulkhead_store::run::Run;
use bulkhead_store::{StoreError, Tx};
use serde_json::json;

use crate::{App, AppError};

/// Open breakers that a node remembers, of each organization and in all, in a fixed order. Those beyond hold nothing back: their runs are
/// carried, and fail, within the organization's share, until others before them have closed.
const KNOWN_OF_EACH_MAX: u32 = 100;
const KNOWN_MAX: u32 = 10_000;
/// Breakers that nobody asks of any more, which one look removes.
const REMOVED_MAX: usize = 100;
/// Names in the queue that one look asks for; the next look goes on from there.
const NAMES_MAX: u32 = 200;
/// Runs that one look lets go after a breaker closed: a long row comes back in parts.
const RESUMED_MAX: u32 = 1_000;
/// A `stop` step that says so ends a run as failed on purpose.
const STOPPED: &str = "stopped";

type Key = (OrgId, WorkflowId, i64);

/// What this node knows: the breakers that are not closed, with the run that each lets pass.
#[derive(Clone, Default)]
pub(crate) struct Breakers(Arc<RwLock<HashMap<Key, Option<RunId>>>>);

impl Breakers {
    fn with<T>(&self, work: impl FnOnce(&mut HashMap<Key, Option<RunId>>) -> T) -> T {
        work(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether it may be open.
    pub(crate) fn is_known(&self, key: Key) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains_key(&key)
    }

    /// Whether this run would have to wait, as far as is known.
    pub(crate) fn holds(&self, key: Key, run: RunId) -> bool {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&key).is_some_and(|probe| *probe != Some(run))
    }

    fn learn(&self, key: Key, state: Option<&BreakerState>) {
        self.with(|known| match state.filter(|state| state.breaker.is_open()) {
            Some(state) => known.insert(key, state.breaker.probe()),
            None => known.remove(&key),
        });
    }
}

/// Breakers for a caller who may see workflows: the text of an error, which may hold what a customer sent, is for those who may see runs.
pub(crate) fn breakers_shown(caller: &Caller, mut breakers: Vec<BreakerState>) -> Vec<BreakerState> {
    if caller.permissions().contains(Permission::RunsRead) {
        return breakers;
    }
    for state in &mut breakers {
        let error = state.error.as_deref().and_then(|text| serde_json::from_str::<StepError>(text).ok());
        state.error = error.map(|error| json!({ "code": error.code, "step": error.step }).to_string());
    }
    breakers
}

/// How a run's end moved its workflow's breaker, or what it found.
#[derive(Clone, Debug)]
pub(crate) struct Moved {
    key: Key,
    /// `None`: it closed.
    state: Option<BreakerState>,
    /// `None`: it did not move; another node moved it before.
    to: Option<&'static str>,
}

fn fact(state: &BreakerState) -> serde_json::Value {
    let breaker = &state.breaker;
    // The error's text may hold what a customer sent; who may read runs finds it there.
    json!({
        "version": state.version, "fingerprint": breaker.fingerprint, "failures": breaker.failures, "probes": breaker.probes,
    })
}

/// Writes down that a breaker opened or closed, for people and for whoever acts on events.
async fn tell(
    tx: &mut Tx,
    action: EventType,
    state: &BreakerState,
    actor: &Actor,
    ambient: &Ambient,
) -> Result<(), StoreError> {
    let (target, detail) = (state.workflow.to_string(), fact(state));
    tx.record_event(action.as_str(), &target, &detail, ambient).await?;
    let event = AuditEvent { action, target, actor: actor.clone(), detail };
    tx.record_audit(&event, ambient).await
}

/// Whether a `stop` step of the definition ended the run as failed: it came where it was to come, as one that succeeds.
pub(crate) fn is_stopped(error: &StepError) -> bool {
    error.code == STOPPED
}

/// Counts a run that failed, in the transaction that ends it.
pub(crate) async fn run_failed(
    tx: &mut Tx,
    org: OrgId,
    run: &Run,
    error: &StepError,
    ambient: &Ambient,
) -> Result<Option<Moved>, StoreError> {
    if is_stopped(error) {
        return Ok(None);
    }
    let (now, key) = (ambient.now(), (org, run.workflow, run.version));
    let step = error.step.as_ref().map(ToString::to_string);
    let fault = Fault { kind: "run", code: &error.code, step: step.as_deref(), message: &error.message };
    let mut state = tx.begin_breaker(run.workflow, run.version, now).await?;
    let failed = state.breaker.failed(run.id, &fault.fingerprint(), now);
    if failed == Failed::Late {
        // This node did not know: it opened elsewhere a moment ago.
        return Ok(Some(Moved { key, state: Some(state), to: None }));
    }
    state.error = Some(json!(error).to_string());
    let to = match failed {
        Failed::Counted | Failed::Late => None,
        // Nothing opened: the one that was let go to see has failed as the others.
        Failed::StaysOpen => Some("stays-open"),
        Failed::Suspicious => {
            if tx.has_succeeded_since(run.workflow, run.version, state.breaker.since).await? {
                state.breaker.interrupt(now);
                None
            } else {
                state.breaker.open(now);
                tell(tx, EventType::BreakerOpened, &state, &Actor::System(SystemReason::Worker), ambient).await?;
                Some("open")
            }
        }
    };
    tx.save_breaker(&state, now).await?;
    Ok(to.map(|to| Moved { key, state: Some(state), to: Some(to) }))
}

/// Closes the breaker of a run that ended well, in the transaction that ends it.
pub(crate) async fn run_succeeded(
    tx: &mut Tx,
    org: OrgId,
    run: &Run,
    ambient: &Ambient,
) -> Result<Option<Moved>, StoreError> {
    let Some(state) = tx.lock_breaker(run.workflow, run.version).await? else { return Ok(None) };
    if !state.breaker.is_open() {
        return Ok(None);
    }
    close(tx, &state, ambient).await?;
    Ok(Some(Moved { key: (org, run.workflow, run.version), state: None, to: Some("closed") }))
}

async fn close(tx: &mut Tx, state: &BreakerState, ambient: &Ambient) -> Result<(), StoreError> {
    tx.delete_breaker(state.workflow, state.version).await?;
    tell(tx, EventType::BreakerClosed, state, &Actor::System(SystemReason::Worker), ambient).await
}

/// How a probe stands.
enum Probe {
    UnderWay,
    EndedWell,
    Failed,
    /// It was cancelled, or is not there any more, or cannot be read.
    Nothing,
}

async fn look_at_probe(tx: &mut Tx, probe: RunId) -> Result<Probe, StoreError> {
    let run = match tx.load_run(probe).await {
        Ok(run) => run,
        Err(StoreError::Corrupt { .. }) => None,
        Err(error) => return Err(error),
    };
    let Some(run) = run else { return Ok(Probe::Nothing) };
    Ok(match run.status {
        RunStatus::Queued | RunStatus::Running | RunStatus::Waiting | RunStatus::Paused => Probe::UnderWay,
        RunStatus::Succeeded => Probe::EndedWell,
        RunStatus::Failed => {
            let error = run.error.as_deref().and_then(|text| serde_json::from_str::<StepError>(text).ok());
            if error.as_ref().is_some_and(is_stopped) { Probe::EndedWell } else { Probe::Failed }
        }
        RunStatus::Cancelled => Probe::Nothing,
    })
}

/// What a look at a name in the queue came to.
enum Tended {
    /// So many runs may go on.
    LetGo { runs: usize, state: Option<BreakerState> },
    /// It is not time yet.
    Waits(BreakerState),
}

async fn tend(
    tx: &mut Tx,
    name: &str,
    workflow: WorkflowId,
    version: i64,
    ambient: &Ambient,
) -> Result<Tended, StoreError> {
    let (state, now) = (tx.lock_breaker(workflow, version).await?, ambient.now());
    let mut state = state.filter(|state| state.breaker.is_open());
    // A probe moves the breaker in its own commit, unless the node that carried it did not know of it.
    if let Some(open) = &mut state
        && let Some(probe) = open.breaker.probe()
    {
        match look_at_probe(tx, probe).await? {
            Probe::UnderWay => {}
            Probe::EndedWell => {
                close(tx, open, ambient).await?;
                state = None;
            }
            Probe::Failed => {
                if let Some(fingerprint) = open.breaker.fingerprint.clone() {
                    open.breaker.failed(probe, &fingerprint, now);
                    tx.save_breaker(open, now).await?;
                }
            }
            Probe::Nothing => open.breaker.forget_probe(now),
        }
    }
    let Some(mut state) = state else {
        let runs = tx.resume_paused_jobs(name, RESUMED_MAX, now).await?.len();
        return Ok(Tended::LetGo { runs, state: None });
    };
    if !state.breaker.is_probe_due(now) {
        return Ok(Tended::Waits(state));
    }
    let resumed = tx.resume_paused_jobs(name, 1, now).await?;
    let Some(run) = resumed.first().and_then(|key| key.parse::<RunId>().ok()) else {
        return Ok(Tended::Waits(state));
    };
    state.breaker.let_go(run, now);
    tx.save_breaker(&state, now).await?;
    Ok(Tended::LetGo { runs: 1, state: Some(state) })
}

/// Removes a breaker for which nothing waits and nobody has started anything for long: `true` then.
async fn remove_stale(tx: &mut Tx, key: Key, ambient: &Ambient) -> Result<bool, StoreError> {
    let (_, workflow, version) = key;
    let Some(state) = tx.lock_breaker(workflow, version).await? else { return Ok(true) };
    if !state.breaker.is_stale(ambient.now()) || tx.count_paused_runs(Some(&hold_key(workflow, version)), 1).await? > 0
    {
        return Ok(false);
    }
    close(tx, &state, ambient).await?;
    Ok(true)
}

impl App {
    /// Takes in how a breaker moved, after the commit.
    pub(crate) fn breaker_moved(&self, moved: &Moved) {
        let (org, workflow, version) = moved.key;
        if let Some(to) = moved.to {
            metrics::counter!("bulkhead_breaker_moves_total", "to" => to).increment(1);
            if to == "open" {
                tracing::warn!(%org, %workflow, version, "runs fail alike: the workflow's breaker is open");
            } else {
                tracing::info!(%org, %workflow, version, to, "a workflow's breaker moved");
            }
        }
        self.breakers().learn(moved.key, moved.state.as_ref());
    }

    /// Under which name a new run of the workflow's version waits, if its breaker is known to be open.
    pub(crate) fn hold_name(&self, org: OrgId, workflow: WorkflowId, version: i64) -> Option<String> {
        self.breakers().is_known((org, workflow, version)).then(|| hold_key(workflow, version))
    }

    /// Puts a run that has not begun yet aside if its workflow's breaker is open and does not let it pass: `true` then.
    pub(crate) async fn pause_run(&self, scope: &OrgScope, lease: &Lease, run: &Run) -> Result<bool, AppError> {
        let key = (lease.org, run.workflow, run.version);
        if !self.breakers().holds(key, run.id) {
            return Ok(false);
        }
        let args = (lease.clone(), run.workflow, run.version, run.id, self.ambient().now());
        let (state, paused) = self
            .store()
            // The breaker's row lock orders this against the sweep that lets runs go.
            .write_locked(scope, args, |tx, (lease, workflow, version, run, now)| {
                Box::pin(async move {
                    let state = tx.lock_breaker(*workflow, *version).await?;
                    let holds = state
                        .as_ref()
                        .is_some_and(|state| state.breaker.is_open() && state.breaker.probe() != Some(*run));
                    if holds {
                        tx.pause_job(lease, &hold_key(*workflow, *version), *now).await?;
                    }
                    Ok::<_, AppError>((state, holds))
                })
            })
            .await?;
        self.breakers().learn(key, state.as_ref());
        if paused {
            metrics::counter!("bulkhead_runs_paused_total").increment(1);
        }
        Ok(paused)
    }

    /// Looks at the breakers: learns which are open, lets probes go when it is time, and the rest when a breaker has closed. `after` is
    /// the name that the last look ended with; answers the same for the next one.
    pub(crate) async fn tend_breakers(&self, after: Option<String>) -> Result<Option<String>, StoreError> {
        let jobs = SystemScope::new(SystemReason::Jobs);
        let (open, names) = self
            .store()
            .read(&jobs, after, |tx, after| {
                Box::pin(async move {
                    let open = tx.list_open_breakers(KNOWN_OF_EACH_MAX, KNOWN_MAX).await?;
                    Ok::<_, StoreError>((open, tx.list_paused_names(after.as_deref(), NAMES_MAX).await?))
                })
            })
            .await?;
        metrics::gauge!("bulkhead_breakers_open").set(f64::from(u32::try_from(open.len()).unwrap_or(u32::MAX)));
        let now = self.ambient().now();
        // Those whose next probe is not due need no transaction.
        let mut wait: HashMap<Key, bool> = HashMap::new();
        self.breakers().with(|known| {
            known.clear();
            for (org, state) in &open {
                let key = (*org, state.workflow, state.version);
                known.insert(key, state.breaker.probe());
                let is_probing = matches!(state.breaker.stand, Stand::Probing { .. });
                wait.insert(key, !is_probing && !state.breaker.is_probe_due(now));
            }
        });
        self.remove_stale_breakers(&open).await;
        let next = if names.len() < NAMES_MAX as usize { None } else { names.last().map(|(_, name)| name.clone()) };
        for (org, name) in names {
            let Some((workflow, version)) = parse_hold_key(&name) else {
                tracing::error!(name, "runs wait under a name that means nothing");
                continue;
            };
            let key = (org, workflow, version);
            if wait.get(&key) != Some(&true) {
                // What is wrong with one must not keep the others back.
                if let Err(error) = self.tend_breaker(key, name).await {
                    tracing::warn!(%org, %workflow, error = &error as &dyn std::error::Error, "a breaker was not looked at");
                }
            }
        }
        Ok(next)
    }

    /// Ends those that would stay open for ever: nobody starts a run that could tell whether it goes better.
    async fn remove_stale_breakers(&self, open: &[(OrgId, BreakerState)]) {
        let now = self.ambient().now();
        for (org, state) in open.iter().filter(|(_, state)| state.breaker.is_stale(now)).take(REMOVED_MAX) {
            let key = (*org, state.workflow, state.version);
            let scope = SystemScope::new(SystemReason::Worker).for_org(*org);
            let removed = self
                .store()
                // The breaker's row lock orders this against a run's end and against other nodes.
                .write_locked(&scope, (key, self.ambient().clone()), |tx, (key, ambient)| {
                    Box::pin(async move { remove_stale(tx, *key, ambient).await })
                })
                .await;
            match removed {
                Ok(true) => self.breaker_moved(&Moved { key, state: None, to: Some("closed") }),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%org, workflow = %state.workflow, error = &error as &dyn std::error::Error, "a breaker was not looked at");
                }
            }
        }
    }

    async fn tend_breaker(&self, key: Key, name: String) -> Result<(), StoreError> {
        let (org, workflow, version) = key;
        let scope = SystemScope::new(SystemReason::Worker).for_org(org);
        let tended = self
            .store()
            // The breaker's row lock orders this against other nodes, which look as well.
            .write_locked(
                &scope,
                (name, workflow, version, self.ambient().clone()),
                |tx, (name, workflow, version, ambient)| {
                    Box::pin(async move { tend(tx, name, *workflow, *version, ambient).await })
                },
            )
            .await?;
        match tended {
            Tended::LetGo { runs, state } => {
                self.breakers().learn(key, state.as_ref());
                if state.is_some() {
                    metrics::counter!("bulkhead_breaker_moves_total", "to" => "probing").increment(1);
                }
                if runs > 0 {
                    self.wake_org(Lane::Interactive, org);
                }
            }
            Tended::Waits(state) => self.breakers().learn(key, Some(&state)),
        }
        Ok(())
    }

    /// Closes a workflow's breakers by hand: runs that wait go on, the first within a second or two and a thousand in each
    /// second. Doing it twice is no error.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn close_breaker(
        &self,
        caller: &Caller,
        org: OrgId,
        id: WorkflowId,
    ) -> Result<bulkhead_store::workflow::Workflow, AppError> {
        let scope = caller.authorize(org, Permission::WorkflowsActivate)?;
        let (workflow, closed) = self
            .store()
            .write(&scope, (id, scope.actor().clone(), self.ambient().clone()), |tx, (id, actor, ambient)| {
                Box::pin(async move {
                    let workflow = tx.require_workflow(*id).await?;
                    let open = tx.list_breakers(*id).await?;
                    for state in &open {
                        tx.delete_breaker(*id, state.version).await?;
                        tell(tx, EventType::BreakerClosed, state, actor, ambient).await?;
                    }
                    Ok::<_, AppError>((workflow, open))
                })
            })
            .await?;
        for state in closed {
            let key = (org, id, state.version);
            self.breaker_moved(&Moved { key, state: None, to: Some("closed") });
        }
        Ok(workflow)
    }
}
