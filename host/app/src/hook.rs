//! Webhook deliveries: the address's token is the credential, the sender's delivery id makes repeated ones the same run.

use std::sync::Arc;

use bulkhead_model::id::{HookId, RunId};
use bulkhead_model::permission::{OrgScope, SystemReason, SystemScope};
use bulkhead_model::token::Token;
use bulkhead_model::workflow::{TriggerId, TriggerKind, trigger_payload};
use bulkhead_store::hook::Hook;
use bulkhead_store::workflow::Workflow;
use serde_json::{Map, Value};

use crate::admission::BodyPlace;
use crate::planner::LIGHT_BYTES_MAX;
use crate::run::StartRun;
use crate::{App, AppError};

/// Bytes of a delivery's body.
pub const BODY_BYTES_MAX: u64 = 1024 * 1024;
/// What a wrong token is told, whatever is wrong with it.
const UNKNOWN: AppError = AppError::NotFound { what: "webhook" };
/// Characters of a delivery id.
const DELIVERY_ID_LEN_MAX: usize = 255;

/// What an address answers before anything of the delivery is read.
pub enum Door {
    Open(Box<OpenHook>),
    /// There is no room, but the delivery was accepted before: its run.
    Repeated(RunId),
}

/// A webhook's address that was found and may be delivered to: proof that the token was right.
pub struct OpenHook {
    scope: OrgScope,
    hook: Hook,
    workflow: Workflow,
}

/// A delivery as it arrived.
pub struct Delivery {
    pub body: Vec<u8>,
    /// The headers that a workflow may see, names in lower case.
    pub headers: Map<String, Value>,
    pub query: Map<String, Value>,
    /// `Idempotency-Key`, `X-GitHub-Delivery` or `webhook-id`.
    pub delivery_id: Option<String>,
}

/// What became of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// `None` when no trigger's conditions hold.
    pub run: Option<RunId>,
    pub reason: Option<String>,
}

/// Which headers reach workflows: what webhook senders describe their delivery with. Credentials and signatures stay out.
#[must_use]
pub fn is_visible_header(name: &str) -> bool {
    const EXACT: &[&str] = &["content-type", "user-agent", "webhook-id", "webhook-timestamp"];
    const PREFIXES: &[&str] = &["x-github-", "x-gitlab-", "x-event", "x-webhook-", "ce-"];
    EXACT.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn is_delivery_id(id: &str) -> bool {
    !id.is_empty() && id.chars().count() <= DELIVERY_ID_LEN_MAX
}

/// What makes a repeated delivery to the address the same run.
fn dedupe_key(hook: &Hook, delivery_id: &str) -> String {
    format!("webhook:{}:{delivery_id}", hook.trigger)
}

fn parse_body(body: &[u8]) -> Result<Value, AppError> {
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(body).map_err(|error| {
        let message = format!("the body is not JSON of at most 127 levels: {error}");
        AppError::invalid("invalid-json", "", message)
    })
}

impl App {
    /// Looks a token up, before anything of the delivery is read. With a delivery id, a repetition is answered even when there is no room.
    ///
    /// # Errors
    /// [`AppError::NotFound`] for an unknown, expired or forged token; [`AppError::Conflict`] `workflow-inactive`;
    /// [`AppError::TooMany`] when a delivery would be refused now.
    pub async fn open_hook(&self, token: &str, delivery_id: Option<&str>) -> Result<Door, AppError> {
        let delivery_id = delivery_id.filter(|id| is_delivery_id(id));
        // Only an address that was good a moment ago is remembered.
        let looking = self.recall_hook(token, delivery_id.is_some())?;
        let text = token;
        let token = Token::<HookId>::parse(token).ok_or(UNKNOWN)?;
        let scope = SystemScope::new(SystemReason::Hook).for_org(token.org);
        let found = self
            .store()
            .read(&scope, token.row, |tx, id| {
                Box::pin(async move {
                    let Some(hook) = tx.load_hook(*id).await? else { return Ok::<_, AppError>(None) };
                    let workflow = tx.require_workflow(hook.workflow).await?;
                    Ok(Some((hook, workflow)))
                })
            })
            .await?;
        let (hook, workflow) = found.ok_or(UNKNOWN)?;
        if !hook.secret_hash.matches(&token.secret) || hook.expires_at.is_some_and(|at| at <= self.ambient().now()) {
            return Err(UNKNOWN);
        }
        if !workflow.active {
            return Err(AppError::conflict("workflow-inactive", "the workflow is not active: activate it first"));
        }
        if let Err(refused) = self.look_ahead(text, scope.org()) {
            let key = delivery_id.map(|id| dedupe_key(&hook, id));
            return self.repeated_or(&scope, workflow.id, key, looking, refused).await.map(Door::Repeated);
        }
        Ok(Door::Open(Box::new(OpenHook { scope, hook, workflow })))
    }

    /// Keeps memory for a delivery's body: a little to begin with, and more as it arrives.
    ///
    /// # Errors
    /// [`AppError::TooMany`].
    pub fn keep_room_for_body(&self, open: &OpenHook) -> Result<BodyPlace, AppError> {
        self.keep_body(open.scope.org())
    }

    /// Takes a delivery: a run begins, or the reason is told why none does. What its body holds is given back when the run is stored.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `invalid-json`, `invalid-delivery-id`; [`AppError::TooLarge`]; [`AppError::TooMany`];
    /// [`AppError::Quota`].
    pub async fn receive_delivery(
        &self,
        open: OpenHook,
        delivery: Delivery,
        kept: BodyPlace,
    ) -> Result<Accepted, AppError> {
        let OpenHook { scope, hook, workflow } = open;
        if delivery.body.len() as u64 > BODY_BYTES_MAX {
            return Err(AppError::TooLarge { what: "body", limit_bytes: BODY_BYTES_MAX });
        }
        if delivery.delivery_id.as_ref().is_some_and(|id| !is_delivery_id(id)) {
            let message = format!("a delivery id has 1 to {DELIVERY_ID_LEN_MAX} characters");
            return Err(AppError::invalid("invalid-delivery-id", "", message));
        }
        let dedupe_key = delivery.delivery_id.map(|id| dedupe_key(&hook, &id));
        let place = match self.admit(&scope, Some(kept)).await {
            Ok(place) => place,
            Err(refused) => {
                let run = self.repeated_or(&scope, workflow.id, dedupe_key, None, refused).await?;
                return Ok(Accepted { run: Some(run), reason: None });
            }
        };
        let body = parse_body(&delivery.body)?;
        let payload = trigger_payload(TriggerKind::Webhook, body, delivery.headers.into(), delivery.query.into());
        let definition = self.definition(&scope, workflow.id, workflow.current_version).await?;
        let Ok(trigger) = hook.trigger.parse::<TriggerId>() else { return Err(UNKNOWN) };
        let asked = Arc::clone(&definition);
        let match_it = move || (asked.matching_trigger(TriggerKind::Webhook, Some(&trigger), &payload), payload);
        let is_light = delivery.body.len() <= LIGHT_BYTES_MAX && definition.is_light();
        let (matched, payload) = self.planner().run_where(is_light, scope.org(), match_it).await?;
        if matched.trigger.is_none() {
            metrics::counter!("bulkhead_hook_deliveries_total", "result" => "no-match").increment(1);
            return Ok(Accepted { run: None, reason: matched.reason() });
        }
        let start = StartRun {
            workflow: workflow.id,
            version: workflow.current_version,
            definition: Arc::clone(&definition),
            kind: TriggerKind::Webhook,
            payload,
            variables: Map::new(),
            dedupe_key,
        };
        let run = self.start_run_in(&scope, &place, start).await?;
        metrics::counter!("bulkhead_hook_deliveries_total", "result" => "accepted").increment(1);
        Ok(Accepted { run: Some(run), reason: None })
    }
}
