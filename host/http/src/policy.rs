//! What somebody may do, and why: one's own, others' by up to a hundred questions at once, and the catalogue of permissions.

use axum::Json;
use axum::extract::State;
use bulkhead_app::access::{AccessExplanation, AccessSubject, Known, OwnAccess, QUESTIONS_MAX, Question, Verdict};
use bulkhead_model::id::{AssignmentId, TeamId, UserId};
use bulkhead_model::permission::{Permission, PermissionSet};
use bulkhead_model::role::assignment::{Assignment, Phase, Reason, Within};
use bulkhead_model::role::{BuiltIn, RoleRef};
use bulkhead_model::time::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::Input;
use crate::page::{ListOf, QueryOf};
use crate::problem::{Kind, Problem};

/// A permission of the catalogue.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Permission)]
pub(crate) struct PermissionView {
    #[schema(value_type = String, example = "leads.read")]
    permission: Permission,
    category: &'static str,
    category_title: &'static str,
    /// What it lets people do.
    description: &'static str,
    /// The built-in roles that hold it.
    built_in_roles: Vec<&'static str>,
    /// Whether it is the platform's: nobody can give it in an organization.
    is_of_platform: bool,
}

impl From<Permission> for PermissionView {
    fn from(permission: Permission) -> Self {
        let category = permission.category();
        let holders = BuiltIn::ALL.into_iter().filter(|role| permission.is_held_by(*role));
        Self {
            permission,
            category: category.as_str(),
            category_title: category.title(),
            description: permission.says(),
            built_in_roles: holders.map(BuiltIn::as_str).collect(),
            is_of_platform: permission.is_of_platform(),
        }
    }
}

/// Lists every permission that there is.
#[utoipa::path(get, path = "/api/v1/permissions", tag = "access", responses((status = 200, body = ListOf<PermissionView>)))]
pub(crate) async fn list_permissions() -> Json<ListOf<PermissionView>> {
    let items = Permission::ALL.iter().copied().map(PermissionView::from).collect();
    Json(ListOf { items, next_cursor: None })
}

/// A role on the way to a permission.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RoleOnTheWay)]
pub(crate) struct StepView {
    #[schema(value_type = String)]
    role: RoleRef,
    name: String,
}

/// A role that a member has.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HeldRole)]
pub(crate) struct HeldRoleView {
    #[schema(value_type = String)]
    assignment: AssignmentId,
    #[schema(value_type = String)]
    role: RoleRef,
    name: String,
    #[schema(value_type = Option<String>)]
    team: Option<TeamId>,
    #[schema(value_type = Option<String>, format = DateTime)]
    valid_from: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    valid_until: Option<Timestamp>,
    /// `not_yet`, `now`, `over`.
    state: &'static str,
}

/// One assignment's part in a decision.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AccessReason)]
pub(crate) struct ReasonView {
    #[schema(value_type = String)]
    assignment: AssignmentId,
    #[schema(value_type = Option<String>)]
    team: Option<TeamId>,
    #[schema(value_type = Option<String>, format = DateTime)]
    valid_from: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    valid_until: Option<Timestamp>,
    /// From the role that was given to the one that holds the permission by itself.
    path: Vec<StepView>,
    /// `counts`, `not_yet`, `over`, `other_team`.
    verdict: &'static str,
}

fn name_of(role: RoleRef, known: &Known) -> String {
    match role {
        RoleRef::BuiltIn(role) => role.title().to_owned(),
        RoleRef::Own(id) => known.names.get(&id).cloned().unwrap_or_else(|| id.to_string()),
    }
}

fn step(role: RoleRef, known: &Known) -> StepView {
    StepView { role, name: name_of(role, known) }
}

fn reason(reason: &Reason, known: &Known) -> ReasonView {
    let given = &reason.assignment;
    ReasonView {
        assignment: given.id,
        team: given.team,
        valid_from: given.window.from,
        valid_until: given.window.until,
        path: reason.way.iter().map(|role| step(*role, known)).collect(),
        verdict: reason.verdict.as_str(),
    }
}

fn held(given: &Assignment, known: &Known, now: Timestamp) -> HeldRoleView {
    HeldRoleView {
        assignment: given.id,
        role: given.role,
        name: name_of(given.role, known),
        team: given.team,
        valid_from: given.window.from,
        valid_until: given.window.until,
        state: match given.window.at(now) {
            Phase::NotYet => "not_yet",
            Phase::Now => "now",
            Phase::Over => "over",
        },
    }
}

/// A permission that one has, with where it comes from.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OwnPermission)]
pub(crate) struct OwnPermissionView {
    #[schema(value_type = String)]
    permission: Permission,
    category: &'static str,
    /// The assignments that give it now; empty for an API key, whose permissions are its own.
    reasons: Vec<ReasonView>,
}

/// What roles that were given for one team add on that team's things.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TeamPermissions)]
pub(crate) struct TeamPermissionsView {
    #[schema(value_type = String)]
    team: TeamId,
    /// Everything held there, what is held in the whole organization included.
    #[schema(value_type = Vec<String>)]
    permissions: Vec<Permission>,
}

/// What the caller may, and why.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OwnAccess)]
pub(crate) struct OwnAccessView {
    /// A member's id, or a key's.
    subject: String,
    /// At this moment, in the organization as a whole.
    permissions: Vec<OwnPermissionView>,
    teams: Vec<TeamPermissionsView>,
    /// All of the member's roles, future and ended ones included.
    roles: Vec<HeldRoleView>,
    /// The state of the organization's policy that this was worked out from; null for a key.
    policy_epoch: Option<i64>,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
}

impl From<OwnAccess> for OwnAccessView {
    fn from(own: OwnAccess) -> Self {
        let OwnAccess { actor, permissions, teams, known, at } = own;
        let why = |permission: Permission| {
            let known = known.as_deref()?;
            let explained = known.standing.explain(&known.roles, permission, Within::Organization, at);
            let counts =
                explained.reasons.iter().filter(|r| r.verdict == bulkhead_model::role::assignment::Verdict::Counts);
            Some(counts.map(|r| reason(r, known)).collect())
        };
        let list = |set: PermissionSet| set.iter().collect();
        Self {
            subject: actor.to_string(),
            permissions: permissions
                .iter()
                .map(|permission| OwnPermissionView {
                    permission,
                    category: permission.category().as_str(),
                    reasons: why(permission).unwrap_or_default(),
                })
                .collect(),
            teams: teams
                .into_iter()
                .map(|(team, permissions)| TeamPermissionsView { team, permissions: list(permissions) })
                .collect(),
            roles: known
                .as_deref()
                .map(|known| known.standing.assignments().map(|given| held(given, known, at)).collect())
                .unwrap_or_default(),
            policy_epoch: known.as_deref().map(|known| known.epoch),
            at,
        }
    }
}

/// Shows what the caller may at this moment, and through which roles.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/me/permissions",
    tag = "access",
    responses((status = 200, body = OwnAccessView)),
)]
pub(crate) async fn show_own_permissions(
    at: OrgCaller,
    State(state): State<HttpState>,
) -> Result<Json<OwnAccessView>, Problem> {
    Ok(Json(state.app.show_own_access(&at.caller, at.org).await?.into()))
}

/// One question.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AccessQuestion)]
pub(crate) struct QuestionInput {
    /// A member's id or an API key's.
    #[schema(example = "user_01h455vb4pex5vsknk084sn02q")]
    subject: String,
    #[schema(example = "leads.read")]
    permission: String,
    /// On what belongs to this team; left out: in the organization as a whole.
    #[serde(default)]
    team: Option<String>,
}

/// Up to a hundred questions.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AccessChecks)]
pub(crate) struct ChecksInput {
    checks: Vec<QuestionInput>,
}

/// What came of one question.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AccessDecision)]
pub(crate) struct DecisionView {
    is_allowed: bool,
    /// Why it could not be asked so; such a question is refused, and the others are answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// The answers, in the order of the questions.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AccessDecisions)]
pub(crate) struct DecisionsView {
    decisions: Vec<DecisionView>,
}

/// What cannot be read is no question, and nothing is allowed by it.
pub(crate) fn question(subject: &str, permission: &str, team: Option<&str>) -> Result<Question, String> {
    let subject: AccessSubject =
        subject.parse().map_err(|_| "the subject is neither a member's id nor an API key's".to_owned())?;
    let permission: Permission =
        permission.parse().map_err(|error: bulkhead_model::permission::UnknownPermission| error.to_string())?;
    let within = match team {
        None => Within::Organization,
        Some(team) => Within::Team(team.parse().map_err(|_| "the team is not a team's id".to_owned())?),
    };
    Ok(Question { subject, permission, within })
}

/// Asks what can be asked, and puts the answers where the questions stood.
pub(crate) async fn decide(
    at: &OrgCaller,
    state: &HttpState,
    questions: Vec<Result<Question, String>>,
) -> Result<Vec<Result<bool, String>>, Problem> {
    if questions.is_empty() || questions.len() > QUESTIONS_MAX {
        let message = format!("ask 1 to {QUESTIONS_MAX} questions at once");
        return Err(Problem::new(Kind::InvalidChecks, message.clone()).at("", "out-of-range", message));
    }
    let readable: Vec<Question> = questions.iter().filter_map(|question| question.as_ref().ok().copied()).collect();
    let verdicts =
        if readable.is_empty() { Vec::new() } else { state.app.check_access(&at.caller, at.org, readable).await? };
    let mut verdicts = verdicts.into_iter();
    let decided = questions.into_iter().map(|question| {
        question?;
        match verdicts.next() {
            Some(Verdict::Allowed) => Ok(true),
            Some(Verdict::NoSuchTeam) => Err("the organization has no such team".to_owned()),
            Some(Verdict::Refused) | None => Ok(false),
        }
    });
    Ok(decided.collect())
}

/// Answers up to a hundred questions about members and keys, all at one state of the policy.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/access/check",
    tag = "access",
    request_body = ChecksInput,
    responses((status = 200, body = DecisionsView)),
    extensions(("x-bulkhead-problems" = json!(["invalid-checks"]))),
)]
pub(crate) async fn check_access(
    at: OrgCaller,
    State(state): State<HttpState>,
    Input(input): Input<ChecksInput>,
) -> Result<Json<DecisionsView>, Problem> {
    let questions = input.checks.iter().map(|one| question(&one.subject, &one.permission, one.team.as_deref()));
    let decided = decide(&at, &state, questions.collect()).await?;
    let view = |one: Result<bool, String>| match one {
        Ok(is_allowed) => DecisionView { is_allowed, error: None },
        Err(error) => DecisionView { is_allowed: false, error: Some(error) },
    };
    Ok(Json(DecisionsView { decisions: decided.into_iter().map(view).collect() }))
}

/// What is asked about.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ExplainQuery {
    /// The member.
    #[param(value_type = String)]
    user: UserId,
    #[param(value_type = String)]
    permission: Permission,
    /// On what belongs to this team.
    #[serde(default)]
    #[param(required = false, value_type = Option<String>)]
    team: Option<TeamId>,
}

/// Why a member may or may not.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AccessExplanation)]
pub(crate) struct ExplanationView {
    is_allowed: bool,
    /// The member's assignments whose role holds the permission, those that count first.
    reasons: Vec<ReasonView>,
    /// The roles that hold it: what to ask for.
    held_by: Vec<StepView>,
    policy_epoch: i64,
}

impl From<AccessExplanation> for ExplanationView {
    fn from(explained: AccessExplanation) -> Self {
        let AccessExplanation { known, explanation } = explained;
        Self {
            is_allowed: explanation.is_allowed,
            reasons: explanation.reasons.iter().map(|one| reason(one, &known)).collect(),
            held_by: explanation.holders.iter().map(|role| step(*role, &known)).collect(),
            policy_epoch: known.epoch,
        }
    }
}

/// Explains why a member may or may not do something: through which roles, on which way, in which window of time.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/access/explain",
    tag = "access",
    params(ExplainQuery),
    responses((status = 200, body = ExplanationView)),
)]
pub(crate) async fn explain_access(
    at: OrgCaller,
    State(state): State<HttpState>,
    QueryOf(query): QueryOf<ExplainQuery>,
) -> Result<Json<ExplanationView>, Problem> {
    let within = query.team.map_or(Within::Organization, Within::Team);
    let explained = state.app.explain_access(&at.caller, at.org, query.user, query.permission, within).await?;
    Ok(Json(explained.into()))
}
