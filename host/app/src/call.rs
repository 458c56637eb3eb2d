//! One plugin call: a short read, a permit, the sandbox, and for single calls the transaction that records it.
//!
//! No transaction is open while a guest runs. A call is bound to the grant version that it read: it is registered with the
//! calls in flight, so that a change ends it, and whoever commits its result rechecks the version in the same transaction.

pub(crate) mod rights;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::call::{CallError, CallReport, Outcome};
use bulkhead_model::grant::Ceiling;
use bulkhead_model::id::{CallId, InstallationId, OrgId, RunId};
use bulkhead_model::limits::{ContributionKind, Limits, Usage};
use bulkhead_model::name::{ContributionName, PluginName};
use bulkhead_model::permission::{Caller, OrgScope, Permission};
use bulkhead_runtime::{CallContext, CallControl, CallRequest, Digest, LoadError, Prepared, Validity};
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::call::{Call, CallSummary};
use bulkhead_store::installation::{Installation, InstallationState};
use bulkhead_store::page::{Page, PageRequest};
use bulkhead_store::{StoreError, Tx};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::rights::Rights;
use crate::installation::require_plugin;
use crate::plugin::contract::{self, Contract, Which};
use crate::{App, AppError, Problem};

/// A call that a workflow's step makes.
#[derive(Clone, Debug)]
pub(crate) struct PluginCall {
    pub(crate) plugin: PluginName,
    /// `None`: the organization's only installation of the plugin.
    pub(crate) installation: Option<InstallationId>,
    /// That installation, where a transaction read it that was committed just before; what the transaction of its result rechecks.
    pub(crate) read: Option<Installation>,
    pub(crate) contribution: ContributionName,
    pub(crate) kind: ContributionKind,
    pub(crate) input: Value,
    pub(crate) run: Option<RunId>,
    pub(crate) step: Option<String>,
    /// From 1.
    pub(crate) attempt: u32,
    pub(crate) idempotency_key: String,
    /// Below the installation's own wall time; `None` leaves that.
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) cancel: CancellationToken,
    pub(crate) validity: Validity,
}

/// What came of a step's call.
#[derive(Clone, Debug)]
pub(crate) enum Attempted {
    /// It ran to an outcome. Not recorded yet: its result counts if its grant version is still in force at commit.
    Made(Box<Call>),
    /// It was not made, and trying again changes nothing: the installation is gone, disabled, or takes no such input.
    NotMade(CallError),
}

/// Which installation is meant.
#[derive(Clone)]
enum Target {
    Installation(InstallationId),
    Plugin(PluginName, Option<InstallationId>),
}

/// A call as both ways of making one ask for it.
struct Asked {
    target: Target,
    /// The installation, if it was read just now.
    read: Option<Installation>,
    contribution: String,
    /// `None`: whatever the manifest says.
    kind: Option<ContributionKind>,
    input: Value,
    run: Option<RunId>,
    step: Option<String>,
    attempt: u32,
    /// `None`: the call's own id.
    idempotency_key: Option<String>,
    timeout_ms: Option<u64>,
    cancel: CancellationToken,
    validity: Validity,
}

/// What the short read gives (or the commit just before), and what follows from it.
struct Ready {
    installation: Installation,
    contract: Arc<Contract>,
    /// The contribution's place in the manifest.
    at: usize,
    kind: ContributionKind,
    limits: Limits,
    rights: Arc<Rights>,
}

impl App {
    /// Makes a step's call. The caller records it, in the transaction that rechecks its grant version.
    ///
    /// # Errors
    /// [`AppError::Busy`] when there was no place in time; [`AppError::Store`] and [`AppError::Runtime`] for faults of the host
    /// after which the same call may be tried again.
    pub(crate) async fn run_plugin(&self, scope: &OrgScope, call: PluginCall) -> Result<Attempted, AppError> {
        let asked = Asked {
            target: Target::Plugin(call.plugin, call.installation),
            read: call.read,
            contribution: call.contribution.to_string(),
            kind: Some(call.kind),
            input: call.input,
            run: call.run,
            step: call.step,
            attempt: call.attempt,
            idempotency_key: Some(call.idempotency_key),
            timeout_ms: call.timeout_ms,
            cancel: call.cancel,
            validity: call.validity,
        };
        // On the heap: a run's own future holds this one.
        match Box::pin(self.perform(scope, asked)).await {
            Ok(call) => Ok(Attempted::Made(Box::new(call))),
            Err(error) => not_made(error).map(Attempted::NotMade),
        }
    }

    /// Makes one call by hand and records it. It runs to its end and is recorded even when the caller goes away.
    ///
    /// # Errors
    /// [`AppError::NotFound`]; [`AppError::Conflict`] `installation-disabled`, `plugin-unusable`; [`AppError::Invalid`]
    /// `invalid-call` for an unknown contribution or an input that does not fit; [`AppError::Busy`]; [`AppError::Quota`]. However the call
    /// itself ends, that is an outcome.
    pub async fn call_once(
        &self,
        caller: &Caller,
        org: OrgId,
        installation: InstallationId,
        contribution: String,
        input: Value,
    ) -> Result<Call, AppError> {
        let scope = caller.authorize(org, Permission::PluginsCall)?;
        let app = self.clone();
        self.to_the_end(
            "plugin call",
            Box::pin(async move {
                app.require_room(&scope).await?;
                let asked = Asked {
                    target: Target::Installation(installation),
                    read: None,
                    contribution,
                    kind: None,
                    input,
                    run: None,
                    step: None,
                    attempt: 1,
                    idempotency_key: None,
                    timeout_ms: None,
                    cancel: CancellationToken::new(),
                    // Somebody waits for it here; no other node would make it.
                    validity: Validity::default(),
                };
                let call = app.perform(&scope, asked).await?;
                app.record_single_call(&scope, call).await
            }),
        )
        .await
    }

    /// Records a call, or what is left of it when its grants are no longer in force.
    async fn record_single_call(&self, scope: &OrgScope, call: Call) -> Result<Call, AppError> {
        let args = (call, scope.actor().clone(), self.ambient().clone());
        // The invariant that the row lock keeps: no change of the installation commits between the recheck and this commit.
        self.store()
            .write_locked(scope, args, |tx, (call, actor, ambient)| {
                Box::pin(async move {
                    let mut call = call.clone();
                    let in_force = tx.lock_installation_version(call.installation).await?;
                    if in_force != Some((call.grant_version, InstallationState::Enabled)) {
                        revoke_result(&mut call.report);
                    }
                    tx.record_call(&call).await?;
                    let event = AuditEvent {
                        action: EventType::PluginCalled,
                        target: call.installation.to_string(),
                        actor: actor.clone(),
                        detail: json!({
                            "call": call.id,
                            "contribution": call.contribution,
                            "outcome": call.report.outcome,
                            "grant_version": call.grant_version,
                        }),
                    };
                    tx.record_audit(&event, ambient).await?;
                    Ok::<_, AppError>(call)
                })
            })
            .await
    }

    /// The calls of an installation, also of one that was uninstalled, newest first; `outcome` narrows when given.
    ///
    /// # Errors
    /// [`AppError::NotFound`], or a refusal.
    pub async fn list_calls(
        &self,
        caller: &Caller,
        org: OrgId,
        installation: InstallationId,
        outcome: Option<Outcome>,
        page: PageRequest,
    ) -> Result<Page<CallSummary>, AppError> {
        let scope = caller.authorize(org, Permission::CallsRead)?;
        self.store()
            .read(&scope, (installation, outcome, page), |tx, (installation, outcome, page)| {
                Box::pin(async move {
                    if tx.load_installation(*installation).await?.is_none() {
                        return Err(AppError::NotFound { what: "installation" });
                    }
                    Ok(tx.list_calls(*installation, *outcome, *page).await?)
                })
            })
            .await
    }

    /// Everything that was recorded of one call.
    ///
    /// # Errors
    /// [`AppError::NotFound`], or a refusal.
    pub async fn get_call(&self, caller: &Caller, org: OrgId, id: CallId) -> Result<Call, AppError> {
        let scope = caller.authorize(org, Permission::CallsRead)?;
        self.store()
            .read(&scope, id, |tx, id| {
                Box::pin(async move { tx.load_call(*id).await?.ok_or(AppError::NotFound { what: "call" }) })
            })
            .await
    }

    async fn perform(&self, scope: &OrgScope, asked: Asked) -> Result<Call, AppError> {
        let ready = self.ready(scope, &asked).await?;
        let id = CallId::new(self.ambient());
        let created_at = self.ambient().now();
        let input = asked.input.to_string();
        let began = Instant::now();
        let report = self.report(scope, &ready, &asked, id, &input).await?;
        count(ready.kind, &report, began.elapsed());
        Ok(Call {
            id,
            installation: ready.installation.id,
            plugin: ready.contract.plugin.id,
            run: asked.run,
            step: asked.step,
            attempt: asked.attempt,
            contribution: asked.contribution,
            grant_version: ready.installation.grant_version,
            input,
            report,
            created_at,
        })
    }

    /// The short read, and everything that can be said without running anything.
    async fn ready(&self, scope: &OrgScope, asked: &Asked) -> Result<Ready, AppError> {
        let sandbox = self.sandbox();
        let (org, now) = (scope.org(), self.ambient().now());
        let known = asked.read.as_ref().and_then(|read| {
            let contract = sandbox.contracts.get(&(org, read.plugin))?;
            Some((read.clone(), contract))
        });
        let (installation, contract) = match known {
            Some(known) => known,
            None => self.read_target(scope, &asked.target).await?,
        };
        if installation.state != InstallationState::Enabled {
            let message =
                format!("the installation {} is {}: enable it first", installation.id, installation.state.as_str());
            return Err(AppError::conflict("installation-disabled", message));
        }
        let contract = sandbox.contracts.get_with((org, installation.plugin), || contract);
        let manifest = &contract.plugin.manifest;
        let (at, kind, contribution) =
            contract.find(&asked.contribution).ok_or_else(|| unknown_contribution(&contract, &asked.contribution))?;
        if asked.kind.is_some_and(|asked| asked != kind) {
            return Err(unknown_contribution(&contract, contribution.name.as_str()));
        }
        let mut limits = Limits::resolve(kind, &manifest.limits);
        limits.wall_ms = asked.timeout_ms.unwrap_or(limits.wall_ms).min(limits.wall_ms).max(1);
        let key = (org, installation.id);
        let known = sandbox
            .rights
            .get(&key)
            .filter(|(version, rights)| *version == installation.grant_version && !rights.has_ended(now));
        let rights = if let Some((_, rights)) = known {
            rights
        } else {
            let (of, held) = (Arc::clone(&contract), installation.clone());
            let compute = move |ceiling: &Ceiling, now| Ok(Rights::compute(&of.plugin, &held, ceiling, now));
            let rights = Arc::new(self.checked(org, compute).await?);
            sandbox.rights.insert(key, (installation.grant_version, Arc::clone(&rights)));
            rights
        };
        Ok(Ready { installation, contract, at, kind, limits, rights })
    }

    /// The short read.
    async fn read_target(&self, scope: &OrgScope, target: &Target) -> Result<(Installation, Arc<Contract>), AppError> {
        let args = (target.clone(), self.sandbox().contracts.clone());
        self.store()
            .read(scope, args, |tx, (target, contracts)| {
                Box::pin(async move {
                    let installation = match target {
                        Target::Installation(id) => tx.require_installation(*id).await?,
                        Target::Plugin(name, named) => {
                            let found = tx.load_installation_of(name, *named).await?;
                            found.ok_or(AppError::NotFound { what: "installation" })?
                        }
                    };
                    if let Some(known) = contracts.get(&(tx.org()?, installation.plugin)) {
                        return Ok((installation, known));
                    }
                    let plugin = require_plugin(tx, &installation).await?;
                    Ok::<_, AppError>((installation, Arc::new(Contract::new(plugin))))
                })
            })
            .await
    }

    /// Runs the call to an outcome.
    async fn report(
        &self,
        scope: &OrgScope,
        ready: &Ready,
        asked: &Asked,
        id: CallId,
        input: &str,
    ) -> Result<CallReport, AppError> {
        if !ready.rights.missing.is_empty() {
            return Ok(refused(ready, input));
        }
        let (org, installation) = (scope.org(), ready.installation.id);
        let permit = tokio::select! {
            permit = self.sandbox().permits.acquire(org, installation) => permit?,
            () = asked.cancel.cancelled() => {
                return Ok(not_begun(Outcome::Cancelled, "cancelled", "the call was cancelled before it began", ready, input));
            }
        };
        // A longer input is a limit's matter, which the runtime reports.
        if input.len() as u64 <= ready.limits.input_bytes {
            check_input(ready, &asked.input, input.len()).await?;
        }
        let prepared = self.prepared(scope, ready).await?;
        let control = CallControl::under(asked.validity.clone());
        let version = ready.installation.grant_version;
        let registration = self.sandbox().live.register((org, installation), version, id, control.clone());
        let request = self.request(scope, ready, asked, id, input, control.clone());
        let mut report = self.run_in_sandbox(&prepared, request, ready, &asked.cancel, &control).await;
        drop(registration);
        drop(permit);
        check_output(ready, &mut report).await?;
        if ready.rights.has_ended(self.ambient().now()) {
            revoke_result(&mut report);
        }
        Ok(report)
    }

    async fn run_in_sandbox(
        &self,
        prepared: &Arc<Prepared>,
        request: CallRequest,
        ready: &Ready,
        cancel: &CancellationToken,
        control: &CallControl,
    ) -> CallReport {
        let now = self.ambient().now();
        let ends_in = ready.rights.effective.expires_at().map(|at| at.since(now));
        // Only a call that a grant could end under gets a timer.
        let ends_in = ends_in.filter(|left| *left <= Duration::from_millis(ready.limits.wall_ms));
        let grants_end = async {
            match ends_in {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        let mut call = std::pin::pin!(self.sandbox().runtime.call(prepared, request));
        tokio::select! {
            report = &mut call => return report,
            () = cancel.cancelled() => control.cancel(),
            () = grants_end => control.revoke(),
        }
        call.await
    }

    fn request(
        &self,
        scope: &OrgScope,
        ready: &Ready,
        asked: &Asked,
        id: CallId,
        input: &str,
        control: CallControl,
    ) -> CallRequest {
        CallRequest {
            kind: ready.kind,
            contribution: asked.contribution.clone(),
            context: CallContext {
                org: scope.org().to_string(),
                installation: ready.installation.id.to_string(),
                call: id.to_string(),
                run: asked.run.map(|run| run.to_string()),
                step: asked.step.clone(),
                attempt: asked.attempt,
                idempotency_key: asked.idempotency_key.clone().unwrap_or_else(|| id.to_string()),
                locale: None,
            },
            settings: ready.installation.settings.to_string(),
            input: input.to_owned(),
            grants: Arc::clone(&ready.rights.effective),
            secrets: self.secret_source(scope, ready.installation.id),
            limits: ready.limits.clone(),
            control,
        }
    }

    /// The compiled package; its bytes are only loaded when neither memory nor the compile cache has it.
    async fn prepared(&self, scope: &OrgScope, ready: &Ready) -> Result<Arc<Prepared>, AppError> {
        let digest = ready.contract.plugin.digest;
        let load = async {
            let found =
                self.store().read(scope, digest, |tx, digest| Box::pin(async move { tx.load_artifact(digest).await }));
            match found.await {
                Ok(Some(package)) => Ok(package),
                Ok(None) => {
                    Err(Box::new(StoreError::Corrupt { what: "plugin", why: "its package is not there".into() })
                        as LoadError)
                }
                Err(error) => Err(Box::new(error) as LoadError),
            }
        };
        self.prepare(Digest(digest), load).await.map_err(|error| {
            if error.is_retryable() {
                return AppError::Runtime(Box::new(error));
            }
            let plugin = &ready.contract.plugin;
            tracing::error!(plugin = %plugin.name, version = plugin.version, error = &error as &dyn std::error::Error,
                "an installed package cannot be used");
            AppError::conflict("plugin-unusable", format!("{} {} cannot be run: {error}", plugin.name, plugin.version))
        })
    }
}

/// The installation that the next call of a run means, read by a transaction that is committed before that call. `None` also where it cannot
/// be read: what is wrong with it is for the call to say.
///
/// # Errors
/// The store's.
pub(crate) async fn read_ahead(
    tx: &mut Tx,
    plugin: &PluginName,
    named: Option<InstallationId>,
) -> Result<Option<Installation>, StoreError> {
    match tx.load_installation_of(plugin, named).await {
        Err(StoreError::Corrupt { .. }) => Ok(None),
        found => found,
    }
}

/// What a step hears of a call that was not made; faults of the host stay errors.
fn not_made(error: AppError) -> Result<CallError, AppError> {
    let (code, message) = match error {
        AppError::NotFound { what } => ("unknown-installation", format!("{what} not found")),
        AppError::Conflict { code, message } => (code, message),
        AppError::Invalid { code, message, problems } => {
            let problems: Vec<String> =
                problems.iter().map(|problem| format!("{}: {}", problem.path, problem.message)).collect();
            (code, format!("{message}: {}", problems.join("; ")))
        }
        fault @ (AppError::Unauthenticated
        | AppError::StepUp { .. }
        | AppError::MfaRequired
        | AppError::SignatureRequired
        | AppError::InvalidSignature
        | AppError::AddressRefused
        | AppError::KeyAddressRefused
        | AppError::Forbidden(_)
        | AppError::Quota(_)
        | AppError::StaleVersion
        | AppError::TooLarge { .. }
        | AppError::Busy { .. }
        | AppError::TooMany { .. }
        | AppError::Runtime(_)
        | AppError::Store(_)) => return Err(fault),
    };
    Ok(CallError { code: code.to_owned(), message, retryable: false, retry_after_ms: None, limit: None })
}

fn unknown_contribution(contract: &Contract, name: &str) -> AppError {
    let plugin = &contract.plugin;
    let names: Vec<String> =
        plugin.manifest.contributions().map(|(kind, found)| format!("the {} {}", kind.as_str(), found.name)).collect();
    let message =
        format!("{} {} has no such contribution as {name:?}; it has {}", plugin.name, plugin.version, names.join(", "));
    AppError::Invalid {
        code: "invalid-call",
        problems: vec![Problem::new("/contribution", "unknown-contribution", message.clone())],
        message,
    }
}

fn invalid_input(ready: &Ready, problems: Vec<Problem>) -> Result<(), AppError> {
    if problems.is_empty() {
        return Ok(());
    }
    let message = format!("the input does not fit {}", ready.contract.plugin.name);
    Err(AppError::Invalid { code: "invalid-call", message, problems })
}

/// An action's and a channel's input fits its schema; a factor's is a batch whose leads' fields do.
async fn check_input(ready: &Ready, input: &Value, bytes: usize) -> Result<(), AppError> {
    let values = if ready.kind == ContributionKind::Factor {
        match batch(input, ready.limits.json_list_len) {
            Ok(leads) => leads,
            Err(problem) => return invalid_input(ready, vec![problem]),
        }
    } else {
        vec![("/input".to_owned(), input.clone())]
    };
    let Some(validator) = ready.contract.validator(ready.at, Which::Input)? else { return Ok(()) };
    invalid_input(ready, contract::check(validator, values, bytes).await)
}

/// The fields of each lead in `{"leads": [{"id": …, "fields": {…}}]}`, with where they are.
fn batch(input: &Value, leads_max: u64) -> Result<Vec<(String, Value)>, Problem> {
    let shape = |path: String, message: &str| Problem::new(path, "not-a-batch", message);
    let known_only = |value: &Value, keys: &[&str]| {
        value.as_object().is_some_and(|map| map.keys().all(|key| keys.contains(&key.as_str())))
    };
    let Some(leads) = input.get("leads").and_then(Value::as_array).filter(|_| known_only(input, &["leads"])) else {
        return Err(shape(
            "/input".into(),
            "a factor's input is {\"leads\": [{\"id\": …, \"fields\": {…}}]} and nothing else",
        ));
    };
    if leads.len() as u64 > leads_max {
        return Err(shape("/input/leads".into(), &format!("{} leads; at most {leads_max} in one batch", leads.len())));
    }
    let fields = |(at, lead): (usize, &Value)| {
        let is_lead = known_only(lead, &["id", "fields"]) && lead.get("id").is_some_and(Value::is_string);
        match lead.get("fields").filter(|fields| is_lead && fields.is_object()) {
            Some(fields) => Ok((format!("/input/leads/{at}/fields"), fields.clone())),
            None => Err(shape(format!("/input/leads/{at}"), "a lead has an `id` (text) and `fields` (an object)")),
        }
    };
    leads.iter().enumerate().map(fields).collect()
}

/// A result that does not fit the contribution's schema is none. What a factor returns is fixed by the contract.
async fn check_output(ready: &Ready, report: &mut CallReport) -> Result<(), AppError> {
    if report.outcome != Outcome::Returned || ready.kind == ContributionKind::Factor {
        return Ok(());
    }
    let Some(validator) = ready.contract.validator(ready.at, Which::Output)? else { return Ok(()) };
    let text = report.output.as_deref().unwrap_or("null");
    let problems = match serde_json::from_str(text) {
        Ok(value) => contract::check(validator, vec![(String::new(), value)], text.len()).await,
        Err(error) => vec![Problem::new("", "not-json", error.to_string())],
    };
    if let Some(first) = problems.first() {
        let message = format!("the result does not fit its schema: {}: {}", first.path, first.message);
        end(report, Outcome::InvalidOutput, "invalid-output", &message);
    }
    Ok(())
}

/// Puts another end to a call: its result is dropped.
fn end(report: &mut CallReport, outcome: Outcome, code: &str, message: &str) {
    report.outcome = outcome;
    report.output = None;
    report.error = Some(CallError {
        code: code.to_owned(),
        message: message.to_owned(),
        retryable: false,
        retry_after_ms: None,
        limit: None,
    });
}

/// The rights that a call ran under are no longer in force: nothing of it counts, however it ended.
pub(crate) fn revoke(report: &mut CallReport) {
    let message = "the installation's grants, settings or state changed while the call ran";
    end(report, Outcome::Revoked, "revoked", message);
}

/// As [`revoke`]; but how it failed, if it did, stays on record.
fn revoke_result(report: &mut CallReport) {
    if report.outcome == Outcome::Returned {
        revoke(report);
    }
}

/// The report of a call before which no guest code ran.
fn not_begun(outcome: Outcome, code: &str, message: &str, ready: &Ready, input: &str) -> CallReport {
    let mut report = CallReport {
        outcome,
        output: None,
        error: None,
        usage: Usage { input_bytes: input.len() as u64, ..Usage::default() },
        limits: ready.limits.clone(),
        log: Vec::new(),
        log_truncated: false,
        egress: Vec::new(),
        refusals: Vec::new(),
    };
    end(&mut report, outcome, code, message);
    report
}

fn refused(ready: &Ready, input: &str) -> CallReport {
    let missing: Vec<String> =
        ready.rights.missing.iter().map(|refusal| format!("{} ({})", refusal.kind, refusal.target)).collect();
    let message = format!("the plugin requires what is not granted: {}", missing.join(", "));
    let mut report = not_begun(Outcome::Refused, "refused", &message, ready, input);
    report.refusals.clone_from(&ready.rights.missing);
    report
}

fn count(kind: ContributionKind, report: &CallReport, took: Duration) {
    let (kind, outcome) = (kind.as_str(), report.outcome.as_str());
    metrics::counter!("bulkhead_plugin_calls_total", "kind" => kind, "outcome" => outcome).increment(1);
    metrics::histogram!("bulkhead_plugin_call_duration_seconds", "kind" => kind).record(took.as_secs_f64());
    // Fuel is far below 2^53, from which on a float would round it.
    #[expect(clippy::cast_precision_loss, reason = "fuel has a ceiling of 5 G")]
    metrics::histogram!("bulkhead_plugin_call_fuel", "kind" => kind).record(report.usage.fuel as f64);
    for refusal in &report.refusals {
        metrics::counter!("bulkhead_plugin_refusals_total", "kind" => refusal.kind.clone()).increment(1);
    }
    for request in &report.egress {
        let result = if request.status.is_some() && request.error.is_none() { "answered" } else { "failed" };
        metrics::counter!("bulkhead_egress_requests_total", "result" => result).increment(1);
    }
    if report.outcome == Outcome::HostFault {
        let reason = report.error.as_ref().map_or("", |error| &error.message);
        tracing::error!(kind, reason, "a plugin call failed by a fault of the host");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_taken_apart_or_refused_with_its_place() {
        let good = json!({ "leads": [{ "id": "lead_1", "fields": { "a": 1 } }, { "id": "lead_2", "fields": {} }] });
        let leads = batch(&good, 2).unwrap();
        assert_eq!(leads[0], ("/input/leads/0/fields".to_owned(), json!({ "a": 1 })));
        assert_eq!(leads[1].0, "/input/leads/1/fields");
        for (bad, path) in [
            (json!([]), "/input"),
            (json!({}), "/input"),
            (json!({ "leads": {} }), "/input"),
            (json!({ "leads": [], "settings": {} }), "/input"),
            (json!({ "leads": [{ "id": "a", "fields": {} }, { "id": 1, "fields": {} }] }), "/input/leads/1"),
            (json!({ "leads": [{ "id": "a", "fields": [] }] }), "/input/leads/0"),
            (json!({ "leads": [{ "id": "a" }] }), "/input/leads/0"),
            (json!({ "leads": [{ "id": "a", "fields": {}, "more": 1 }] }), "/input/leads/0"),
            (json!({ "leads": vec![json!({ "id": "a", "fields": {} }); 3] }), "/input/leads"),
        ] {
            assert_eq!(batch(&bad, 2).unwrap_err().path, path, "{bad}");
        }
    }

    #[test]
    fn only_the_hosts_own_faults_are_tried_again() {
        let not_made = |error| not_made(error).map(|error| (error.code, error.retryable));
        assert_eq!(
            not_made(AppError::NotFound { what: "installation" }).unwrap(),
            ("unknown-installation".to_owned(), false)
        );
        assert_eq!(not_made(AppError::conflict("installation-disabled", "off")).unwrap().0, "installation-disabled");
        assert!(matches!(not_made(AppError::Busy { what: "x", retry_after_ms: 1 }), Err(AppError::Busy { .. })));
        let unavailable = AppError::Store(StoreError::TimedOut);
        assert!(matches!(not_made(unavailable), Err(AppError::Store(_))));
    }
}
