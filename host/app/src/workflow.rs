//! Workflows: saved as versions, activated, deactivated; and the webhook addresses of their triggers.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_keys::KeyError;
use bulkhead_model::id::{HookId, OrgId, WorkflowId};
use bulkhead_model::permission::{Caller, OrgScope, Permission};
use bulkhead_model::token::{SecretHash, Token};
use bulkhead_model::workflow::{Definition, Note, NoteKind, StepKind, TriggerId, TriggerKind};
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::breaker::BreakerState;
use bulkhead_store::hook::Hook;
use bulkhead_store::page::{Page, PageRequest};
use bulkhead_store::seal::{Place, Sealer};
use bulkhead_store::workflow::{Workflow, WorkflowVersion, WorkflowVersionSummary};
use bulkhead_store::{StoreError, Tx};
use serde_json::json;

use crate::breaker::breakers_shown;
use crate::quota::check_active_workflows;
use crate::schedule::{self, Upcoming};
use crate::{App, AppError, Problem};

/// After a rotation the old address stays valid for this long, unless another time is asked for.
pub const HOOK_GRACE_DEFAULT: Duration = Duration::from_hours(24);
/// … and at most this long.
pub const HOOK_GRACE_MAX: Duration = Duration::from_hours(30 * 24);
/// Characters of a change summary.
const SUMMARY_LEN_MAX: usize = 500;
/// Versions in one page, and one more, by which a caller knows that there is a next page.
const VERSIONS_LIMIT_MAX: u32 = 201;

/// A workflow with the version that was asked for.
#[derive(Clone, Debug)]
pub struct WorkflowDetail {
    pub workflow: Workflow,
    pub version: WorkflowVersion,
    /// Webhook triggers and their addresses' tokens; none for those who may not activate.
    pub hooks: Vec<HookAddress>,
    /// What the author should know; filled when a definition was just read.
    pub notes: Vec<Note>,
    /// By version, where runs wait because so many before them failed.
    pub breakers: Vec<BreakerState>,
}

/// A webhook trigger's address.
#[derive(Clone, Debug)]
pub struct HookAddress {
    pub trigger: String,
    /// The last part of the address; whoever knows it may start runs.
    pub token: String,
}

/// What there is to say of a definition that could be saved.
#[derive(Clone, Debug)]
pub struct Validation {
    pub notes: Vec<Note>,
    /// By schedule trigger, its next ticks, as if the workflow were activated now. The spread's offset is not in them.
    pub schedules: Vec<(TriggerId, Vec<Upcoming>)>,
}

/// What to save.
#[derive(Clone, Debug)]
pub struct SaveWorkflow {
    /// JSON text; it is kept byte for byte.
    pub definition: String,
    pub summary: String,
}

/// A webhook's address that is not stored yet: its row, and what the row will hold sealed.
#[derive(Clone)]
struct NewHook {
    hook: Hook,
    token: String,
}

impl NewHook {
    fn shown(self) -> HookAddress {
        HookAddress { trigger: self.hook.trigger, token: self.token }
    }
}

fn hook_place(org: OrgId, row: HookId) -> Place<'static> {
    Place { table: "hook", column: "ciphertext", org, row: row.uuid() }
}

async fn insert_hook(tx: &mut Tx, sealer: &Sealer, new: &NewHook) -> Result<(), StoreError> {
    let place = hook_place(tx.org()?, new.hook.id);
    let ciphertext = tx.seal(sealer, &place, new.token.as_bytes()).await?;
    tx.insert_hook(&Hook { ciphertext, ..new.hook.clone() }).await
}

async fn reveal_hook(tx: &mut Tx, sealer: &Sealer, hook: &Hook) -> Result<HookAddress, StoreError> {
    let plain = tx.open_sealed(sealer, &hook_place(tx.org()?, hook.id), &hook.ciphertext).await?;
    let token =
        String::from_utf8(plain.to_vec()).map_err(|_| StoreError::Corrupt { what: "hook", why: "not text".into() })?;
    Ok(HookAddress { trigger: hook.trigger.clone(), token })
}

/// Whether a caller is shown addresses: whoever knows one may start runs.
fn sees_hooks(caller: &Caller) -> bool {
    caller.permissions().contains(Permission::WorkflowsActivate)
}

/// The addresses in the store, opened in the transaction that reads them: in a later one a rotation may have sealed them anew and
/// removed the key that these texts need. None for a caller who does not see them.
async fn hooks_in_store(
    tx: &mut Tx,
    sealer: &Sealer,
    id: WorkflowId,
    sees: bool,
) -> Result<Vec<HookAddress>, StoreError> {
    let mut shown = Vec::new();
    if sees {
        for hook in tx.list_hooks(id).await? {
            match reveal_hook(tx, sealer, &hook).await {
                Ok(address) => shown.push(address),
                // A damaged one is left out: rotating it gives the trigger another, and the workflow can be saved meanwhile.
                Err(StoreError::Keys(
                    error @ (KeyError::DoesNotOpen | KeyError::NotSealed | KeyError::UnknownFormat),
                )) => {
                    tracing::error!(workflow = %id, hook = %hook.id, %error, "a webhook address cannot be shown");
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(shown)
}

/// Those in the store, and those that were made with them; none for a caller who does not see them.
fn shown_with(caller: &Caller, mut present: Vec<HookAddress>, new: Vec<NewHook>) -> Vec<HookAddress> {
    if sees_hooks(caller) {
        present.extend(new.into_iter().map(NewHook::shown));
    }
    present
}

struct Checked {
    definition: Definition,
    notes: Vec<Note>,
}

/// Reads a definition away from the threads that serve requests; hands what was to be saved back.
async fn parse(app: &App, org: OrgId, save: SaveWorkflow) -> Result<(SaveWorkflow, Checked), AppError> {
    let (save, checked) = app
        .planner()
        .run(org, move || {
            let checked = parse_here(&save);
            (save, checked)
        })
        .await?;
    Ok((save, checked?))
}

fn parse_here(save: &SaveWorkflow) -> Result<Checked, AppError> {
    if save.summary.chars().count() > SUMMARY_LEN_MAX {
        let message = format!("a summary has at most {SUMMARY_LEN_MAX} characters");
        return Err(AppError::invalid("invalid-summary", "/summary", message));
    }
    match Definition::parse(&save.definition) {
        Ok((definition, notes)) => Ok(Checked { definition, notes }),
        Err(error) => {
            let problems = error
                .problems
                .into_iter()
                .map(|problem| Problem::new(format!("/definition{}", problem.path), problem.code, problem.message))
                .collect();
            Err(AppError::Invalid { code: "invalid-workflow", message: "the definition has problems".into(), problems })
        }
    }
}

/// Checks every plugin that the definition calls against what the organization has installed.
async fn missing_uses(tx: &mut Tx, definition: &Definition) -> Result<Vec<Problem>, StoreError> {
    let mut problems = Vec::new();
    for (id, step) in &definition.steps {
        let StepKind::Call(call) = &step.kind else { continue };
        let path = format!("/definition/steps/{id}");
        let installation = tx.load_installation_for(&call.plugin, call.installation).await?;
        let Some((_, plugin)) = installation else {
            let (path, message) = match call.installation {
                Some(installation) => (
                    format!("{path}/installation"),
                    format!("{installation} is no installation of {} here", call.plugin),
                ),
                None => (
                    format!("{path}/use"),
                    format!("{} is not installed, or more than once: name one with `installation`", call.plugin),
                ),
            };
            problems.push(Problem::new(path, "unknown-installation", message));
            continue;
        };
        match plugin.manifest.contribution(call.contribution.as_str()) {
            Some((kind, _)) if kind == call.kind => {}
            Some((kind, _)) => problems.push(Problem::new(
                format!("{path}/use"),
                "wrong-contribution",
                format!(
                    "{} of {} is a {}, not a {}",
                    call.contribution,
                    plugin.name,
                    kind.as_str(),
                    call.kind.as_str()
                ),
            )),
            None => problems.push(Problem::new(
                format!("{path}/use"),
                "unknown-contribution",
                format!("{} {} has no contribution {}", plugin.name, plugin.version, call.contribution),
            )),
        }
    }
    Ok(problems)
}

/// Problems of a workflow that is not active are warnings: the plugin may be installed later. An installation that is named
/// must exist in any case.
fn sort_missing(problems: Vec<Problem>, active: bool, notes: &mut Vec<Note>) -> Result<(), AppError> {
    let (hard, soft): (Vec<_>, Vec<_>) =
        problems.into_iter().partition(|problem| active || problem.path.ends_with("/installation"));
    if !hard.is_empty() {
        let message = "the definition uses plugins that are not there".into();
        return Err(AppError::Invalid { code: "invalid-workflow", message, problems: hard });
    }
    notes.extend(soft.into_iter().map(|problem| Note {
        kind: NoteKind::Warning,
        path: problem.path,
        code: problem.code,
        message: problem.message,
    }));
    Ok(())
}

impl App {
    fn new_hook(&self, org: OrgId, workflow: WorkflowId, trigger: &str) -> NewHook {
        let id = HookId::new(self.ambient());
        let token = Token::<HookId>::generate(org, id, self.ambient());
        let hook = Hook {
            id,
            workflow,
            trigger: trigger.to_owned(),
            secret_hash: SecretHash::of(&token.secret),
            // Sealed by the transaction that stores it.
            ciphertext: String::new(),
            created_at: self.ambient().now(),
            expires_at: None,
        };
        NewHook { hook, token: token.reveal().clone() }
    }

    /// New addresses for webhook triggers that have none.
    fn missing_hooks(
        &self,
        org: OrgId,
        workflow: WorkflowId,
        definition: &Definition,
        present: &[Hook],
    ) -> Vec<NewHook> {
        definition
            .triggers
            .iter()
            .filter(|trigger| trigger.kind == TriggerKind::Webhook)
            .filter(|trigger| !present.iter().any(|hook| hook.trigger == trigger.id.as_str()))
            .map(|trigger| self.new_hook(org, workflow, trigger.id.as_str()))
            .collect()
    }

    /// Saves a new workflow, inactive, as version 1.
    ///
    /// # Errors
    /// [`AppError::Invalid`] with every problem of the definition; [`AppError::Conflict`] `workflow-exists`.
    pub async fn create_workflow(
        &self,
        caller: &Caller,
        org: OrgId,
        save: SaveWorkflow,
    ) -> Result<WorkflowDetail, AppError> {
        let scope = caller.authorize(org, Permission::WorkflowsWrite)?;
        let (save, checked) = parse(self, org, save).await?;
        let now = self.ambient().now();
        let workflow = Workflow {
            id: WorkflowId::new(self.ambient()),
            name: checked.definition.name.clone(),
            active: false,
            current_version: 1,
            revision: 1,
            created_at: now,
            updated_at: now,
        };
        let version = WorkflowVersion {
            version: 1,
            definition: save.definition,
            summary: save.summary,
            author: scope.actor().to_string(),
            created_at: now,
        };
        let hooks = self.missing_hooks(org, workflow.id, &checked.definition, &[]);
        let event = AuditEvent {
            action: EventType::WorkflowCreated,
            target: workflow.id.to_string(),
            actor: scope.actor().clone(),
            detail: json!({ "name": workflow.name, "version": 1, "digest": crate::digest_hex(&version.definition) }),
        };
        let args = (
            workflow.clone(),
            version.clone(),
            hooks.clone(),
            Arc::new(checked.definition),
            event,
            self.sealer().clone(),
            self.ambient().clone(),
        );
        let problems = self
            .store()
            .write(&scope, args, |tx, (workflow, version, hooks, definition, event, sealer, ambient)| {
                Box::pin(async move {
                    let problems = missing_uses(tx, definition).await?;
                    sort_missing(problems.clone(), false, &mut Vec::new())?;
                    if !tx.insert_workflow(workflow).await? {
                        let message =
                            format!("there is a workflow named {:?} already: choose another name", workflow.name);
                        return Err(AppError::conflict("workflow-exists", message));
                    }
                    tx.insert_workflow_version(workflow.id, version).await?;
                    for hook in hooks {
                        insert_hook(tx, sealer, hook).await?;
                    }
                    tx.record_audit(event, ambient).await?;
                    Ok(problems)
                })
            })
            .await?;
        let mut notes = checked.notes;
        sort_missing(problems, false, &mut notes)?;
        let hooks = shown_with(caller, Vec::new(), hooks);
        Ok(WorkflowDetail { workflow, version, hooks, notes, breakers: Vec::new() })
    }

    /// Saves a new version, if the workflow is still at the revision that the caller saw. Runs under way end on the version that
    /// they began with; an active workflow begins new runs with this one.
    ///
    /// # Errors
    /// [`AppError::Invalid`]; [`AppError::StaleVersion`]; [`AppError::Conflict`] `workflow-exists` for a name that is taken.
    pub async fn update_workflow(
        &self,
        caller: &Caller,
        org: OrgId,
        id: WorkflowId,
        seen: i64,
        save: SaveWorkflow,
    ) -> Result<WorkflowDetail, AppError> {
        let scope = caller.authorize(org, Permission::WorkflowsWrite)?;
        let (save, checked) = parse(self, org, save).await?;
        let (present, breakers) = self.present_of(&scope, id).await?;
        let new_hooks = self.missing_hooks(org, id, &checked.definition, &present);
        let now = self.ambient().now();
        let (author, actor) = (scope.actor().to_string(), scope.actor().clone());
        let args = (
            id,
            seen,
            save,
            Arc::new(checked.definition),
            new_hooks.clone(),
            author,
            actor,
            (now, sees_hooks(caller)),
            self.sealer().clone(),
            self.ambient().clone(),
        );
        let (workflow, version, problems, present) = self
            .store()
            .write(
                &scope,
                args,
                |tx, (id, seen, save, definition, hooks, author, actor, (now, sees), sealer, ambient)| {
                    Box::pin(async move {
                        let before = tx.require_workflow(*id).await?;
                        if before.revision != *seen {
                            return Err(AppError::StaleVersion);
                        }
                        let present = hooks_in_store(tx, sealer, *id, *sees).await?;
                        if let Some(other) = tx.load_workflow_by_name(&definition.name).await?
                            && other.id != *id
                        {
                            let message =
                                format!("there is a workflow named {:?} already: choose another name", definition.name);
                            return Err(AppError::conflict("workflow-exists", message));
                        }
                        let problems = missing_uses(tx, definition).await?;
                        sort_missing(problems.clone(), before.active, &mut Vec::new())?;
                        let version = WorkflowVersion {
                            version: before.current_version + 1,
                            definition: save.definition.clone(),
                            summary: save.summary.clone(),
                            author: author.clone(),
                            created_at: *now,
                        };
                        tx.insert_workflow_version(*id, &version).await?;
                        for hook in hooks {
                            insert_hook(tx, sealer, hook).await?;
                        }
                        let next = Workflow {
                            name: definition.name.clone(),
                            current_version: version.version,
                            revision: seen + 1,
                            updated_at: *now,
                            ..before.clone()
                        };
                        if !tx.update_workflow(&next, *seen).await? {
                            return Err(AppError::StaleVersion);
                        }
                        let event = AuditEvent {
                            action: EventType::WorkflowUpdated,
                            target: id.to_string(),
                            actor: actor.clone(),
                            detail: json!({
                                "name": { "before": before.name, "after": next.name },
                                "version": { "before": before.current_version, "after": next.current_version },
                                "digest": crate::digest_hex(&save.definition),
                            }),
                        };
                        tx.record_audit(&event, ambient).await?;
                        schedule::arm(tx, &next, definition, ambient).await?;
                        Ok((next, version, problems, present))
                    })
                },
            )
            .await?;
        let mut notes = checked.notes;
        sort_missing(problems, workflow.active, &mut notes)?;
        let hooks = shown_with(caller, present, new_hooks);
        Ok(WorkflowDetail { workflow, version, hooks, notes, breakers: breakers_shown(caller, breakers) })
    }

    async fn present_of(&self, scope: &OrgScope, id: WorkflowId) -> Result<(Vec<Hook>, Vec<BreakerState>), AppError> {
        self.store()
            .read(scope, id, |tx, id| {
                Box::pin(async move {
                    tx.require_workflow(*id).await?;
                    Ok((tx.list_hooks(*id).await?, tx.list_breakers(*id).await?))
                })
            })
            .await
    }

    /// Reads definitions without saving anything: what the editor asks while one types.
    ///
    /// # Errors
    /// A refusal; [`AppError::Invalid`] with every problem.
    pub async fn validate_workflow(
        &self,
        caller: &Caller,
        org: OrgId,
        save: SaveWorkflow,
    ) -> Result<Validation, AppError> {
        let scope = caller.authorize(org, Permission::WorkflowsRead)?;
        let (_, checked) = parse(self, org, save).await?;
        let definition = Arc::new(checked.definition);
        let problems = self
            .store()
            .read(&scope, Arc::clone(&definition), |tx, definition| {
                Box::pin(async move { Ok::<_, AppError>(missing_uses(tx, definition).await?) })
            })
            .await?;
        let mut notes = checked.notes;
        sort_missing(problems, false, &mut notes)?;
        let now = self.ambient().now();
        let schedules = self.planner().run(org, move || schedule::preview(&definition, now)).await?;
        Ok(Validation { notes, schedules })
    }

    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_workflows(
        &self,
        caller: &Caller,
        org: OrgId,
        page: PageRequest,
    ) -> Result<Page<Workflow>, AppError> {
        let scope = caller.authorize(org, Permission::WorkflowsRead)?;
        self.store().read(&scope, page, |tx, page| Box::pin(async move { Ok(tx.list_workflows(*page).await?) })).await
    }

    /// The workflow with its current version, or the one asked for. Addresses are shown to those who may activate.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn show_workflow(
        &self,
        caller: &Caller,
        org: OrgId,
        id: WorkflowId,
        version: Option<i64>,
    ) -> Result<WorkflowDetail, AppError> {
        let scope = caller.authorize(org, Permission::WorkflowsRead)?;
        let args = (id, version, sees_hooks(caller), self.sealer().clone());
        let (workflow, version, hooks, breakers) = self
            .store()
            .read(&scope, args, |tx, (id, version, sees, sealer)| {
                Box::pin(async move {
                    let workflow = tx.require_workflow(*id).await?;
                    let number = version.unwrap_or(workflow.current_version);
                    let version = tx
                        .load_workflow_version(*id, number)
                        .await?
                        .ok_or(AppError::NotFound { what: "workflow version" })?;
                    let hooks = hooks_in_store(tx, sealer, *id, *sees).await?;
                    let breakers = tx.list_breakers(*id).await?;
                    Ok::<_, AppError>((workflow, version, hooks, breakers))
                })
            })
            .await?;
        Ok(WorkflowDetail { workflow, version, hooks, notes: Vec::new(), breakers: breakers_shown(caller, breakers) })
    }

    /// Versions without their definitions, newest first, below `before` when given.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn list_workflow_versions(
        &self,
        caller: &Caller,
        org: OrgId,
        id: WorkflowId,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<WorkflowVersionSummary>, AppError> {
        let scope = caller.authorize(org, Permission::WorkflowsRead)?;
        self.store()
            .read(&scope, (id, before, limit.clamp(1, VERSIONS_LIMIT_MAX)), |tx, (id, before, limit)| {
                Box::pin(async move {
                    tx.require_workflow(*id).await?;
                    Ok(tx.list_workflow_versions(*id, *before, *limit).await?)
                })
            })
            .await
    }

    /// Lets triggers start runs, or stops them; runs under way go on. Doing it twice is no error.
    ///
    /// # Errors
    /// [`AppError::Invalid`] when a plugin that it uses is not installed; [`AppError::NotFound`]; [`AppError::StaleVersion`]
    /// when somebody saved another version meanwhile.
    pub async fn set_workflow_active(
        &self,
        caller: &Caller,
        org: OrgId,
        id: WorkflowId,
        active: bool,
    ) -> Result<Workflow, AppError> {
        let scope = caller.authorize(org, Permission::WorkflowsActivate)?;
        let found = self
            .store()
            .read(&scope, id, |tx, id| Box::pin(async move { Ok::<_, AppError>(tx.require_workflow(*id).await?) }))
            .await?;
        // Read outside of the transaction: a large definition takes its time.
        let definition = if active && !found.active {
            Some((found.current_version, self.definition(&scope, id, found.current_version).await?))
        } else {
            None
        };
        let args = (id, active, definition, scope.actor().clone(), self.ambient().clone());
        self.store()
            .write(&scope, args, |tx, (id, active, definition, actor, ambient)| {
                Box::pin(async move {
                    let before = tx.require_workflow(*id).await?;
                    if before.active == *active {
                        return Ok(before);
                    }
                    let mut activated = None;
                    if *active {
                        let Some((version, definition)) = definition else { return Err(AppError::StaleVersion) };
                        if *version != before.current_version {
                            return Err(AppError::StaleVersion);
                        }
                        let problems = missing_uses(tx, definition).await?;
                        sort_missing(problems, true, &mut Vec::new())?;
                        check_active_workflows(tx).await?;
                        activated = Some(definition);
                    }
                    let next = Workflow {
                        active: *active,
                        revision: before.revision + 1,
                        updated_at: ambient.now(),
                        ..before.clone()
                    };
                    if !tx.update_workflow(&next, before.revision).await? {
                        return Err(AppError::StaleVersion);
                    }
                    let event = AuditEvent {
                        action: if *active { EventType::WorkflowActivated } else { EventType::WorkflowDeactivated },
                        target: id.to_string(),
                        actor: actor.clone(),
                        detail: json!({
                            "version": next.current_version,
                            "active": { "before": before.active, "after": next.active },
                        }),
                    };
                    tx.record_audit(&event, ambient).await?;
                    match &activated {
                        Some(definition) => schedule::arm(tx, &next, definition, ambient).await?,
                        None => schedule::disarm(tx, *id, ambient).await?,
                    }
                    Ok(next)
                })
            })
            .await
    }

    /// Gives a webhook trigger a new address; the old one stays valid for `grace`.
    ///
    /// # Errors
    /// [`AppError::NotFound`] for a trigger that has no address.
    pub async fn rotate_hook(
        &self,
        caller: &Caller,
        org: OrgId,
        id: WorkflowId,
        trigger: String,
        grace: Duration,
    ) -> Result<HookAddress, AppError> {
        let scope = caller.authorize(org, Permission::WorkflowsActivate)?;
        if grace > HOOK_GRACE_MAX {
            let message = format!("an old address lives on for at most {} seconds", HOOK_GRACE_MAX.as_secs());
            return Err(AppError::invalid("invalid-grace", "/grace_s", message));
        }
        let hook = self.new_hook(org, id, &trigger);
        let event = AuditEvent {
            action: EventType::HookRotated,
            target: id.to_string(),
            actor: scope.actor().clone(),
            detail: json!({ "trigger": trigger, "grace_s": grace.as_secs() }),
        };
        let ends_at = self.ambient().now().plus(grace);
        let args = (id, hook.clone(), ends_at, event, self.sealer().clone(), self.ambient().clone());
        self.store()
            .write(&scope, args, |tx, (id, hook, ends_at, event, sealer, ambient)| {
                Box::pin(async move {
                    tx.require_workflow(*id).await?;
                    // Those of earlier rotations: nobody is let in by them, and each costs every rotation of keys a seal.
                    tx.remove_expired_hooks(*id, ambient.now()).await?;
                    if tx.expire_hooks(*id, &hook.hook.trigger, *ends_at).await? == 0 {
                        return Err(AppError::NotFound { what: "webhook trigger" });
                    }
                    insert_hook(tx, sealer, hook).await?;
                    Ok(tx.record_audit(event, ambient).await?)
                })
            })
            .await?;
        Ok(hook.shown())
    }
}
