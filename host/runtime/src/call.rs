//! One call: a fresh instance, one exported function, one report.
//!
//! The guest's future is polled together with the call's control, so that a guest that waits ends as soon as somebody wants it to; one that
//! computes looks at each epoch tick. Instantiation runs inside the same limits as the call: a start function and an allocator are guest code too.

mod outcome;

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bulkhead_model::ambient::Ambient;
use bulkhead_model::call::{CallError, CallReport, Outcome};
use bulkhead_model::grant::EffectiveGrants;
use bulkhead_model::limits::{ContributionKind, Limits, Usage};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use wasmtime::Store;

use crate::bindings::bulkhead::plugin::types::{CallContext as WitContext, Failure};
use crate::bindings::exports::bulkhead::plugin::factor::{Contribution, LeadFacts};
use crate::capability::{baseline, config};
use crate::control::{CallControl, Stop};
use crate::egress::EgressGuard;
use crate::engine::EngineKind;
use crate::guest::{self, Guest};
use crate::places::{Place, Places};
use crate::registry::Prepared;
use crate::scope::{Parts, Scope};
use crate::secret_source::SecretSource;
use crate::ticker::Ticker;
use outcome::Ending;

/// Who calls, why, and under which key; the guest sees all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallContext {
    pub org: String,
    pub installation: String,
    pub call: String,
    pub run: Option<String>,
    pub step: Option<String>,
    /// Counts from 1.
    pub attempt: u32,
    pub idempotency_key: String,
    /// BCP 47 tag of the language for messages.
    pub locale: Option<String>,
}

/// One call of one contribution.
#[derive(Clone)]
pub struct CallRequest {
    pub kind: ContributionKind,
    /// The contribution's name in the manifest.
    pub contribution: String,
    pub context: CallContext,
    /// The installation's settings, a JSON object.
    pub settings: String,
    /// JSON: an action's input, a channel's notification, or `{"leads": [{"id": …, "fields": {…}}]}` for a factor, whose
    /// settings may stand beside the leads as `"settings"` and are [`settings`](Self::settings) otherwise.
    pub input: String,
    /// What the installation may do, as computed when the call began.
    pub grants: Arc<EffectiveGrants>,
    pub secrets: Arc<dyn SecretSource>,
    pub limits: Limits,
    pub control: CallControl,
}

/// What calls share.
pub(crate) struct Environment {
    pub(crate) guard: EgressGuard,
    pub(crate) ambient: Ambient,
    pub(crate) ticker: Ticker,
    pub(crate) places: Places,
}

/// A factor's input.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FactorInput<'a> {
    #[serde(borrow, default)]
    settings: Option<&'a RawValue>,
    #[serde(borrow)]
    leads: Vec<Lead<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lead<'a> {
    id: String,
    #[serde(borrow)]
    fields: &'a RawValue,
}

/// What is handed to the guest's function.
enum Arguments {
    Action(WitContext, String),
    Channel(WitContext, String),
    Factor { settings: String, leads: Vec<LeadFacts> },
}

/// What the guest's function gave back.
enum Answer {
    Json(Result<String, Failure>),
    Scores(Result<Vec<Contribution>, String>, usize),
}

/// Runs one call to its end on the current task. `io` runs what waits for the world outside.
pub(crate) async fn run(
    environment: Arc<Environment>,
    prepared: Arc<Prepared>,
    request: CallRequest,
    io: Handle,
) -> CallReport {
    let input_bytes = u64::try_from(request.input.len()).unwrap_or(u64::MAX);
    if input_bytes > request.limits.input_bytes {
        let message = format!("the input is {input_bytes} bytes long");
        let ending = Ending::limit("input_bytes", &message, &request.limits);
        return report_without_instance(ending, request.limits, input_bytes);
    }
    let place = match wait_for_place(&environment.places, &prepared, &request).await {
        Ok(place) => place,
        Err(ending) => return report_without_instance(*ending, request.limits, input_bytes),
    };
    let started = Instant::now();
    let wall = Duration::from_millis(request.limits.wall_ms);
    let registration = environment.ticker.register(started + wall, request.control.clone());
    let report = run_registered(&environment, &prepared, request, started, io).await;
    drop(registration);
    drop(place);
    report
}

/// A place in the pool. The call waits for it no longer than it may run, and not at all once it was stopped: whatever revokes or
/// cancels calls reaches those that wait too.
async fn wait_for_place(places: &Places, prepared: &Prepared, request: &CallRequest) -> Result<Place, Box<Ending>> {
    if request.control.stopped().is_none()
        && let Some(place) = places.take_free(&request.context.org, prepared.slots)
    {
        return Ok(place);
    }
    let mut place = pin!(places.take(&request.context.org, prepared.slots));
    let raced = poll_fn(|context| {
        if let Poll::Ready(stop) = request.control.poll_stopped(context) {
            return Poll::Ready(Err(Box::new(Ending::stopped(stop, &request.limits))));
        }
        place.as_mut().poll(context).map(Ok)
    });
    let patience = Duration::from_millis(request.limits.wall_ms);
    tokio::time::timeout(patience, raced).await.unwrap_or_else(|_| Err(Box::new(Ending::busy(&request.limits))))
}

async fn run_registered(
    environment: &Environment,
    prepared: &Prepared,
    request: CallRequest,
    started: Instant,
    io: Handle,
) -> CallReport {
    let CallRequest { kind, contribution, context, settings, input, grants, secrets, limits, control } = request;
    let (org, installation) = (context.org.clone(), context.installation.clone());
    let input_bytes = u64::try_from(input.len()).unwrap_or(u64::MAX);
    let baseline = match prepared.kind {
        EngineKind::Effectful => baseline::State::effectful(),
        EngineKind::Pure => baseline::State::pure(Arc::from(input.as_str())),
    };
    let (arguments, settings) = match arguments(prepared, kind, &contribution, context, settings, input, &limits) {
        Ok(arguments) => arguments,
        Err(message) => return report_without_instance(Ending::host_fault(&message), limits, input_bytes),
    };
    let scope = Scope::new(Parts {
        control,
        limits,
        org,
        installation,
        grants,
        secrets,
        guard: environment.guard.clone(),
        ambient: environment.ambient.clone(),
        started,
        io,
    });
    let mut store = store(prepared, Guest::new(Arc::clone(&scope), baseline, config::State::new(settings)));
    let mut instantiated = false;
    let ended = {
        let mut guest = pin!(call_guest(&mut store, prepared, &contribution, arguments, &mut instantiated));
        poll_fn(|context| {
            // The control comes first, so that a guest which is stopped and ready at once has stopped.
            if let Poll::Ready(stop) = scope.control.poll_stopped(context) {
                return Poll::Ready(Err(stop));
            }
            guest.as_mut().poll(context).map(Ok)
        })
        .await
    };
    let ending = match ended {
        Err(stop) => Ending::stopped(stop, &scope.limits),
        Ok(Ok(answer)) => judge(answer, &scope.limits),
        Ok(Err(error)) => outcome::classify(&error, store.data(), instantiated),
    };
    report(ending, store, &scope, input_bytes)
}

fn store(prepared: &Prepared, guest: Guest) -> Store<Guest> {
    let limits = &guest.scope.limits;
    let fuel = limits.fuel;
    let hostcall_fuel = usize::try_from(limits.host_bytes_per_host_call).unwrap_or(usize::MAX);
    let handles = usize::try_from(limits.handles).unwrap_or(usize::MAX);
    let mut store = Store::new(prepared.pre.engine(), guest);
    store.limiter(|guest| &mut guest.limiter);
    store.set_fuel(fuel).expect("both engines count fuel");
    store.epoch_deadline_callback(|context| guest::at_tick(&context));
    store.set_epoch_deadline(1);
    store.set_hostcall_fuel(hostcall_fuel);
    store.set_max_component_handles(handles);
    store
}

/// Instantiates, calls, and sets `instantiated` in between.
async fn call_guest(
    store: &mut Store<Guest>,
    prepared: &Prepared,
    name: &str,
    arguments: Arguments,
    instantiated: &mut bool,
) -> wasmtime::Result<Answer> {
    let instance = prepared.pre.instantiate_async(&mut *store).await?;
    *instantiated = true;
    let absent = || wasmtime::Error::msg("the export is absent although the manifest lists it");
    match arguments {
        Arguments::Action(context, input) => {
            let action = prepared.action.as_ref().ok_or_else(absent)?.load(&mut *store, &instance)?;
            Ok(Answer::Json(action.call_run(store, name, &context, &input).await?))
        }
        Arguments::Channel(context, notification) => {
            let channel = prepared.channel.as_ref().ok_or_else(absent)?.load(&mut *store, &instance)?;
            Ok(Answer::Json(channel.call_send(store, name, &context, &notification).await?))
        }
        Arguments::Factor { settings, leads } => {
            let factor = prepared.factor.as_ref().ok_or_else(absent)?.load(&mut *store, &instance)?;
            let answer = factor.call_score(store, name, &settings, &leads).await?;
            Ok(Answer::Scores(answer, leads.len()))
        }
    }
}

/// The guest function's arguments, and the settings that `wasi:config` serves.
///
/// # Errors
/// What the caller did wrong: a contribution that the package does not have, a factor's input in another shape.
fn arguments(
    prepared: &Prepared,
    kind: ContributionKind,
    contribution: &str,
    context: CallContext,
    settings: String,
    input: String,
    limits: &Limits,
) -> Result<(Arguments, String), String> {
    if prepared.info.manifest.contribution(contribution).is_none_or(|(listed, _)| listed != kind) {
        return Err(format!("the package has no {} named {contribution}", kind.as_str()));
    }
    let context = WitContext {
        org: context.org,
        installation: context.installation,
        call: context.call,
        run: context.run,
        step: context.step,
        attempt: context.attempt,
        idempotency_key: context.idempotency_key,
        deadline_ms: limits.wall_ms,
        locale: context.locale,
    };
    match kind {
        ContributionKind::Action => Ok((Arguments::Action(context, input), settings)),
        ContributionKind::Channel => Ok((Arguments::Channel(context, input), settings)),
        ContributionKind::Factor => {
            let batch: FactorInput<'_> =
                serde_json::from_str(&input).map_err(|error| format!("not a batch of leads: {error}"))?;
            let settings = batch.settings.map_or(settings, |raw| raw.get().to_owned());
            let leads = batch.leads.into_iter();
            let leads = leads.map(|lead| LeadFacts { id: lead.id, fields: lead.fields.get().to_owned() }).collect();
            Ok((Arguments::Factor { settings, leads }, String::new()))
        }
    }
}

/// Whether an answer is acceptable, and what it means.
fn judge(answer: Answer, limits: &Limits) -> Ending {
    match answer {
        Answer::Json(Ok(json)) => Ending::output(json, limits),
        Answer::Json(Err(failure)) => Ending::failure(failure),
        Answer::Scores(Ok(scores), leads) => Ending::scores(&scores, leads, limits),
        Answer::Scores(Err(message), _) => Ending::failure(Failure::Permanent(message)),
    }
}

fn report(ending: Ending, store: Store<Guest>, scope: &Scope, input_bytes: u64) -> CallReport {
    let ending = ending.without_secrets(&scope.vault);
    let fuel = scope.limits.fuel - store.get_fuel().unwrap_or(0).min(scope.limits.fuel);
    let mut guest = store.into_data();
    let (mut log, log_truncated, log_bytes) = scope.log.finish();
    if !scope.vault.is_empty() {
        for line in &mut log {
            line.message = scope.vault.redact(&line.message).into_owned();
        }
    }
    let (egress, refusals) = scope.take_done();
    let (host_calls, host_bytes) = scope.host_usage();
    let usage = Usage {
        fuel,
        wall_ms: u64::try_from(scope.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        memory_peak_bytes: guest.limiter.memory_peak_bytes(),
        table_elements: guest.limiter.table_peak_elements(),
        input_bytes,
        output_bytes: ending.output_bytes(),
        log_lines: u32::try_from(log.len()).unwrap_or(u32::MAX),
        log_bytes,
        host_calls,
        host_bytes,
        requests: u32::try_from(egress.len()).unwrap_or(u32::MAX),
        response_bytes: egress.iter().map(|record| record.response_bytes).sum(),
    };
    CallReport {
        outcome: ending.outcome,
        output: ending.output,
        error: ending.error,
        usage,
        limits: scope.limits.clone(),
        log,
        log_truncated,
        egress,
        refusals,
    }
}

/// For calls that end before there is an instance.
pub(crate) fn report_without_instance(ending: Ending, limits: Limits, input_bytes: u64) -> CallReport {
    CallReport {
        outcome: ending.outcome,
        output: None,
        error: ending.error,
        usage: Usage { input_bytes, ..Usage::default() },
        limits,
        log: Vec::new(),
        log_truncated: false,
        egress: Vec::new(),
        refusals: Vec::new(),
    }
}

/// The report of a call whose task broke down: our bug.
pub(crate) fn host_fault(message: &str, limits: Limits) -> CallReport {
    report_without_instance(Ending::host_fault(message), limits, 0)
}
