//! Why a run does not go on: what its row, its job, the nodes and its plugin say, put into words by
//! [`stuck`](bulkhead_model::stuck).

use std::sync::Arc;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::breaker::Stand;
use bulkhead_model::id::{OrgId, RunId};
use bulkhead_model::job::Lane;
use bulkhead_model::permission::{Caller, OrgScope, Permission, SystemReason, SystemScope};
use bulkhead_model::run::{RunStatus, StepError};
use bulkhead_model::stuck::{
    CallTrouble, Holder, HolderState, JobPlace, JobStanding, Nodes, Reason, Standing, Use, explain,
};
use bulkhead_model::workflow::{Definition, StepKind};
use bulkhead_store::breaker::BreakerState;
use bulkhead_store::dead_letter;
use bulkhead_store::installation::InstallationState;
use bulkhead_store::job::look::{AHEAD_COUNT_MAX, LaneUse, LiveJob};
use bulkhead_store::node::Node;
use bulkhead_store::run::Run;
use bulkhead_store::{Store, StoreError, Tx};
use serde_json::json;

use super::{JOBS, NODES, follow_nodes_clock, list_nodes};
use crate::run::record::read_state;
use crate::{App, AppError};

/// Runs of a full group that are named.
const GROUP_RUNS_MAX: u32 = 5;

/// Why a run stands where it stands.
#[derive(Clone, Debug)]
pub struct ExplainedRun {
    pub org: OrgId,
    pub run: RunId,
    pub status: RunStatus,
    /// The most important first; always at least one.
    pub reasons: Vec<Reason>,
}

/// What the organization's own rows say.
struct Found {
    run: Run,
    letter: Option<bulkhead_model::id::DeadLetterId>,
    job: Option<FoundJob>,
}

struct FoundJob {
    job: LiveJob,
    lane: Lane,
    lane_use: LaneUse,
    ahead: i64,
    group_runs: Vec<RunId>,
    group_held: i64,
    breaker: Option<BreakerState>,
}

async fn find(tx: &mut Tx, id: RunId) -> Result<Found, AppError> {
    let (run, key) = (tx.require_run(id).await?, id.to_string());
    let mut letter = tx.load_dead_letter_of(dead_letter::RUN, &key).await?;
    if letter.is_none() {
        letter = tx.load_dead_letter_of("advance_run", &key).await?;
    }
    let job = match tx.load_live_job("advance_run", &key).await? {
        Some(job) => {
            let lane = Lane::parse(&job.lane).unwrap_or(Lane::Interactive);
            tx.prefer_indexes().await?;
            let (lane_use, ahead) = (tx.load_lane_use(lane).await?, tx.count_jobs_ahead(lane, &job).await?);
            let (mut group_runs, mut group_held) = (Vec::new(), 0);
            if let Some(group) = job.group_key.as_deref().filter(|_| job.state == "blocked") {
                group_runs = tx.list_group_runs(group, GROUP_RUNS_MAX).await?;
                group_held = tx.count_group_held(group).await?;
            }
            let mut breaker = None;
            if job.state == "paused" {
                let open = tx.list_breakers(run.workflow).await?;
                breaker = open.into_iter().find(|breaker| breaker.version == run.version);
            }
            Some(FoundJob { job, lane, lane_use, ahead, group_runs, group_held, breaker })
        }
        None => None,
    };
    Ok(Found { run, letter: letter.map(|letter| letter.id), job })
}

/// What keeps the step's call from being made.
async fn call_trouble(tx: &mut Tx, run: &Run, definition: &Definition) -> Result<Option<CallTrouble>, AppError> {
    let state = read_state(run)?;
    let Some(step) = state.cursor.as_ref().and_then(|step| definition.step(step)) else { return Ok(None) };
    let StepKind::Call(call) = &step.kind else { return Ok(None) };
    let plugin = call.plugin.to_string();
    Ok(match tx.load_installation_of(&call.plugin, call.installation).await? {
        Some(found) if found.state == InstallationState::Enabled => None,
        Some(_) => Some(CallTrouble::Disabled { plugin }),
        None => Some(CallTrouble::Missing { plugin }),
    })
}

fn place(found: &FoundJob, nodes: &[Node], lane_held: i64) -> JobPlace {
    let job = &found.job;
    let serving = || nodes.iter().filter(|node| node.alive && !node.draining);
    match (job.state.as_str(), job.worker) {
        ("leased", Some(worker)) => {
            let node = nodes.iter().find(|node| node.id == worker);
            let state = match node {
                Some(node) if node.alive && node.draining => HolderState::Draining,
                Some(node) if node.alive => HolderState::Serving,
                Some(_) | None => HolderState::Dead,
            };
            let name = node.map_or_else(|| worker.to_string(), |node| node.name.clone());
            let deadline_in_ms = job.deadline_in_ms;
            JobPlace::Leased { holder: Holder { name, state }, since: job.updated_at, deadline_in_ms }
        }
        ("blocked", _) => JobPlace::Blocked {
            group: job.group_key.clone().unwrap_or_default(),
            limit: job.group_limit.unwrap_or_default(),
            by: found.group_runs.clone(),
            held: found.group_held,
        },
        ("paused", _) => JobPlace::Paused {
            failures: found.breaker.as_ref().map_or(0, |breaker| breaker.breaker.failures.into()),
            until: found.breaker.as_ref().and_then(|breaker| match breaker.breaker.stand {
                Stand::Open { probe_at, .. } => Some(probe_at),
                Stand::Probing { until, .. } => Some(until),
                Stand::Closed => None,
            }),
        },
        ("future", _) => JobPlace::Future,
        _ => JobPlace::Ready {
            ahead: found.ahead.min(AHEAD_COUNT_MAX),
            ahead_more: found.ahead > AHEAD_COUNT_MAX,
            lane: Use { held: lane_held, most: serving().map(|node| node.slots.of(found.lane)).sum() },
            organization: Use { held: found.lane_use.held, most: found.lane_use.jobs_max },
        },
    }
}

fn standing(
    found: &Found,
    nodes: &[Node],
    lane_held: i64,
    call: Option<CallTrouble>,
    now: bulkhead_model::time::Timestamp,
) -> Standing {
    let error = found.run.error.as_deref().map(|text| match serde_json::from_str::<StepError>(text) {
        Ok(error) => (error.code, error.message),
        Err(_) => ("unknown".to_owned(), text.to_owned()),
    });
    Standing {
        now,
        status: found.run.status,
        waiting_until: found.run.waiting_until,
        error,
        dead_letter: found.letter,
        job: found.job.as_ref().map(|found| JobStanding {
            state: place(found, nodes, lane_held),
            run_at: if found.job.state == "ready" {
                found.job.run_at.max(found.job.updated_at)
            } else {
                found.job.run_at
            },
            attempt: found.job.attempt,
            attempts_max: found.job.attempts_max,
            error: found.job.error.clone(),
        }),
        nodes: Nodes {
            serving: nodes.iter().filter(|node| node.alive && !node.draining).count(),
            draining: nodes.iter().filter(|node| node.alive && node.draining).count(),
            dead: nodes.iter().filter(|node| !node.alive).count(),
        },
        call,
    }
}

/// `definition` is asked for only where it matters.
async fn explain_with<F>(
    store: &Store,
    scope: &OrgScope,
    id: RunId,
    ambient: &Ambient,
    names: NodeNames,
    definition: impl FnOnce(OrgScope, bulkhead_model::id::WorkflowId, i64) -> F,
) -> Result<ExplainedRun, AppError>
where
    F: Future<Output = Result<Arc<Definition>, AppError>>,
{
    let mut found = store.read(scope, id, |tx, id| Box::pin(async move { find(tx, *id).await })).await?;
    if names == NodeNames::Shown && !store.is_postgres() {
        // SQLite's deadlines go by the serving process's own clock, which nobody beside it reads.
        found.job.iter_mut().for_each(|found| found.job.deadline_in_ms = None);
    }
    let mut nodes = list_nodes(store).await?;
    if names == NodeNames::Hidden {
        // A host's name and address are the operator's matter.
        for node in &mut nodes {
            node.name = node.id.to_string();
        }
    }
    let mut lane_held = 0;
    if let Some(job) = found.job.as_ref().filter(|found| found.job.state == "ready") {
        let held = store.read(&JOBS, (), |tx, ()| Box::pin(async move { tx.list_holders().await })).await?;
        lane_held = held.iter().filter(|held| held.lane == job.lane.as_str()).map(|held| held.count).sum();
    }
    let mut call = None;
    if !found.run.status.is_final() {
        // A definition that does not decode is told of by the job's own failures.
        if let Ok(definition) = definition(scope.clone(), found.run.workflow, found.run.version).await {
            let args = (found.run.clone(), definition);
            call = store
                .read(scope, args, |tx, (run, definition)| {
                    Box::pin(async move { call_trouble(tx, run, definition).await })
                })
                .await
                .or_else(|error: AppError| match error {
                    AppError::Store(StoreError::Corrupt { .. }) => Ok(None),
                    other => Err(other),
                })?;
        }
    }
    let held = found.job.as_ref().is_some_and(|found| found.job.state == "leased");
    let mut status = found.run.status;
    if held && !status.is_final() {
        // Its first step may be under way without a commit yet.
        status = RunStatus::Running;
    }
    let standing = standing(&found, &nodes, lane_held, call, ambient.now());
    Ok(ExplainedRun { org: scope.org(), run: id, status, reasons: explain(&standing) })
}

/// Whether nodes are told of by their names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NodeNames {
    Shown,
    Hidden,
}

/// Why a run of whatever organization stands where it stands, at the time of the clock that nodes share, which `ambient` follows. For the
/// operator: no route leads here.
///
/// # Errors
/// [`AppError::NotFound`], the store's.
pub async fn explain_run_as_operator(store: &Store, ambient: &Ambient, id: RunId) -> Result<ExplainedRun, AppError> {
    follow_nodes_clock(store, ambient).await?;
    let org = store
        .read(&NODES, id, |tx, id| Box::pin(async move { tx.find_org_of_run(*id).await }))
        .await?
        .ok_or(AppError::NotFound { what: "run" })?;
    let scope = SystemScope::new(SystemReason::Worker).for_org(org);
    let parse = |scope: OrgScope, workflow, version| async move {
        let stored = store
            .read(&scope, (workflow, version), |tx, (workflow, version)| {
                Box::pin(async move { tx.load_workflow_version(*workflow, *version).await })
            })
            .await?
            .ok_or(AppError::NotFound { what: "workflow version" })?;
        let parsed = Definition::parse(&stored.definition);
        let corrupt = |error: &dyn std::fmt::Display| StoreError::Corrupt { what: "workflow", why: error.to_string() };
        parsed.map(|(definition, _)| Arc::new(definition)).map_err(|error| corrupt(&error).into())
    };
    explain_with(store, &scope, id, ambient, NodeNames::Shown, parse).await
}

impl App {
    /// Why a run stands where it stands, and what to do about it.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn explain_run(&self, caller: &Caller, org: OrgId, id: RunId) -> Result<ExplainedRun, AppError> {
        let scope = caller.authorize(org, Permission::RunsRead)?;
        let definition =
            |scope: OrgScope, workflow, version| async move { self.definition(&scope, workflow, version).await };
        explain_with(self.store(), &scope, id, self.ambient(), NodeNames::Hidden, definition).await
    }
}

impl ExplainedRun {
    /// For programs.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        json!({ "org": self.org, "run": self.run, "status": self.status.as_str(), "reasons": self.reasons })
    }
}
