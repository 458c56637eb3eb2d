//! The OpenID AuthZEN Authorization API 1.0 (<https://openid.net/specs/authorization-api-1_0.html>): other systems ask here as they
//! would ask any decision point. Subjects are members (`user`) and keys (`api_key`), actions are permissions, resources the organization or
//! a team of it. Another type of resource is unknown here, and what is unknown is refused.

use axum::Json;
use axum::extract::State;
use bulkhead_app::access::Question;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::Input;
use crate::policy::{decide, question};
use crate::problem::Problem;

/// Who would act, or on what.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AuthzenEntity)]
pub(crate) struct EntityInput {
    /// Of a subject `user` or `api_key`; of a resource `organization` or `team`.
    #[serde(rename = "type")]
    #[schema(example = "user")]
    kind: String,
    #[schema(example = "user_01h455vb4pex5vsknk084sn02q")]
    id: String,
    /// Not looked at.
    #[serde(default, rename = "properties")]
    #[schema(value_type = Option<Object>)]
    _properties: Option<Map<String, Value>>,
}

/// What would be done.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AuthzenAction)]
pub(crate) struct ActionInput {
    /// A permission's name.
    #[schema(example = "leads.read")]
    name: String,
    /// Not looked at.
    #[serde(default, rename = "properties")]
    #[schema(value_type = Option<Object>)]
    _properties: Option<Map<String, Value>>,
}

/// One question.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AuthzenEvaluation)]
pub(crate) struct EvaluationInput {
    subject: EntityInput,
    action: ActionInput,
    resource: EntityInput,
    /// Not looked at.
    #[serde(default, rename = "context")]
    #[schema(value_type = Option<Object>)]
    _context: Option<Map<String, Value>>,
}

/// One of several questions: what it leaves out is as the request says for all.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AuthzenPart)]
pub(crate) struct PartInput {
    #[serde(default)]
    subject: Option<EntityInput>,
    #[serde(default)]
    action: Option<ActionInput>,
    #[serde(default)]
    resource: Option<EntityInput>,
    /// Not looked at.
    #[serde(default, rename = "context")]
    #[schema(value_type = Option<Object>)]
    _context: Option<Map<String, Value>>,
}

/// When to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = AuthzenSemantic)]
pub(crate) enum Semantic {
    #[default]
    ExecuteAll,
    /// After the first refusal.
    DenyOnFirstDeny,
    /// After the first permission.
    PermitOnFirstPermit,
}

/// How the questions are answered.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AuthzenOptions)]
pub(crate) struct OptionsInput {
    #[serde(default)]
    evaluations_semantic: Semantic,
}

/// Several questions.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AuthzenEvaluations)]
pub(crate) struct EvaluationsInput {
    /// For all that name no other.
    #[serde(default)]
    subject: Option<EntityInput>,
    #[serde(default)]
    action: Option<ActionInput>,
    #[serde(default)]
    resource: Option<EntityInput>,
    /// Not looked at.
    #[serde(default, rename = "context")]
    #[schema(value_type = Option<Object>)]
    _context: Option<Map<String, Value>>,
    /// At most 100. Left out or empty, the request is one question.
    #[serde(default)]
    evaluations: Vec<PartInput>,
    #[serde(default)]
    options: OptionsInput,
}

/// Why a question could not be answered.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuthzenError)]
pub(crate) struct ErrorView {
    status: u16,
    message: String,
}

/// What goes with a decision.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuthzenContext)]
pub(crate) struct ContextView {
    error: ErrorView,
}

/// A decision.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuthzenDecision)]
pub(crate) struct DecisionView {
    decision: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<ContextView>,
}

/// The decisions, in the order of the questions; or one decision, where the request was one question.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = AuthzenDecisions)]
pub(crate) enum DecisionsView {
    Many { evaluations: Vec<DecisionView> },
    One(DecisionView),
}

fn asked(
    at: &OrgCaller,
    subject: Option<&EntityInput>,
    action: Option<&ActionInput>,
    resource: Option<&EntityInput>,
) -> Result<Question, String> {
    let (Some(subject), Some(action), Some(resource)) = (subject, action, resource) else {
        return Err("subject, action and resource are needed".to_owned());
    };
    // The type and the id have to say the same.
    let prefix = match subject.kind.as_str() {
        "user" => "user_",
        "api_key" => "key_",
        other => return Err(format!("subjects of the type {other:?} are unknown here")),
    };
    if !subject.id.starts_with(prefix) {
        return Err(format!("this is no id of a subject of the type {:?}", subject.kind));
    }
    match resource.kind.as_str() {
        "organization" if resource.id == at.org.to_string() => question(&subject.id, &action.name, None),
        "organization" => Err("the resource is not the organization that is asked".to_owned()),
        "team" => question(&subject.id, &action.name, Some(&resource.id)),
        other => Err(format!("resources of the type {other:?} are unknown here")),
    }
}

fn view(decided: Result<bool, String>) -> DecisionView {
    match decided {
        Ok(decision) => DecisionView { decision, context: None },
        Err(message) => {
            let error = ErrorView { status: 400, message };
            DecisionView { decision: false, context: Some(ContextView { error }) }
        }
    }
}

/// Answers one question of the AuthZEN API.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/access/v1/evaluation",
    tag = "access",
    request_body = EvaluationInput,
    responses((status = 200, body = DecisionView)),
    extensions(("x-bulkhead-problems" = json!(["invalid-checks"]))),
)]
pub(crate) async fn evaluate_access(
    at: OrgCaller,
    State(state): State<HttpState>,
    Input(input): Input<EvaluationInput>,
) -> Result<Json<DecisionView>, Problem> {
    let question = asked(&at, Some(&input.subject), Some(&input.action), Some(&input.resource));
    let decided = decide(&at, &state, vec![question]).await?;
    Ok(Json(decided.into_iter().map(view).next().unwrap_or_else(|| view(Ok(false)))))
}

/// Answers up to a hundred questions of the AuthZEN API, all at one state of the policy.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/access/v1/evaluations",
    tag = "access",
    request_body = EvaluationsInput,
    responses((status = 200, body = DecisionsView)),
    extensions(("x-bulkhead-problems" = json!(["invalid-checks"]))),
)]
pub(crate) async fn evaluate_accesses(
    at: OrgCaller,
    State(state): State<HttpState>,
    Input(input): Input<EvaluationsInput>,
) -> Result<Json<DecisionsView>, Problem> {
    let (subject, action, resource) = (input.subject.as_ref(), input.action.as_ref(), input.resource.as_ref());
    if input.evaluations.is_empty() {
        let decided = decide(&at, &state, vec![asked(&at, subject, action, resource)]).await?;
        let one = decided.into_iter().map(view).next().unwrap_or_else(|| view(Ok(false)));
        return Ok(Json(DecisionsView::One(one)));
    }
    let questions = input.evaluations.iter().map(|part| {
        asked(
            &at,
            part.subject.as_ref().or(subject),
            part.action.as_ref().or(action),
            part.resource.as_ref().or(resource),
        )
    });
    let decided: Vec<DecisionView> = decide(&at, &state, questions.collect()).await?.into_iter().map(view).collect();
    let stop = match input.options.evaluations_semantic {
        Semantic::ExecuteAll => None,
        Semantic::DenyOnFirstDeny => decided.iter().position(|one| !one.decision),
        Semantic::PermitOnFirstPermit => decided.iter().position(|one| one.decision),
    };
    let length = stop.map_or(decided.len(), |at| at + 1);
    Ok(Json(DecisionsView::Many { evaluations: decided.into_iter().take(length).collect() }))
}
