//! Who may do what in an organization: worked out from roles and assignments, and kept until the policy's epoch rises.
//!
//! What is kept holds windows of time, not answers: each use asks the clock, so that a role ends by itself. Each use also reads the
//! epoch, so that what was taken away is gone with the commit that took it, on every node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_model::allow_list::AllowList;
use bulkhead_model::id::{ApiKeyId, OrgId, RoleId, TeamId, UserId};
use bulkhead_model::mfa::SignInPolicy;
use bulkhead_model::permission::{Actor, Caller, Permission, PermissionSet, SessionProof, SystemReason, SystemScope};
use bulkhead_model::role::assignment::{Explanation, Hold, Standing, Within};
use bulkhead_model::role::{RoleRef, Roles};
use bulkhead_model::session::SessionLimits;
use bulkhead_model::time::Timestamp;
use bulkhead_store::Tx;
use bulkhead_store::api_key::ApiKey;
use bulkhead_store::member::Membership;
use bulkhead_store::policy::PolicyEpoch;
use bulkhead_store::role::Role;

use crate::sign_in::SignedIn;
use crate::{App, AppError};

/// Questions that are answered at once. Source: identity.md.
pub const QUESTIONS_MAX: usize = 100;
/// Memory for members' standings, of all organizations and of old epochs until they are pushed out, by estimates.
const STANDINGS_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// … and for the roles that they were worked out from: once for each organization, whoever of it is asked about.
const ROLES_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// What is kept is worked out anew after this time, however well it is thought of.
const KEPT_FOR: Duration = Duration::from_mins(10);
/// Estimates of what a standing, an assignment in it and a role take, in bytes; a role with parents and permissions.
const STANDING_BYTES: usize = 256;
const ASSIGNMENT_BYTES: usize = 192;
const ROLE_BYTES: usize = 640;

/// What somebody who has signed in presents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Credential {
    Session,
    /// An access token: a machine, which goes on while nobody uses the session that it came from.
    Token,
}

/// Whose right is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AccessSubject {
    User(UserId),
    ApiKey(ApiKeyId),
}

impl std::str::FromStr for AccessSubject {
    type Err = AppError;

    fn from_str(text: &str) -> Result<Self, AppError> {
        let user = text.parse().map(Self::User);
        user.or_else(|_| text.parse().map(Self::ApiKey)).map_err(|_| AppError::NotFound { what: "user or API key" })
    }
}

/// May this subject do that, there?
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub subject: AccessSubject,
    pub permission: Permission,
    pub within: Within,
}

/// What came of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    Refused,
    /// The organization has no such team: refused as well.
    NoSuchTeam,
}

/// A member's standing with the roles that it was worked out from, all of one moment.
#[derive(Debug)]
pub struct Known {
    pub epoch: i64,
    /// What the organization asks of its members besides a password.
    pub policy: SignInPolicy,
    pub roles: Arc<Roles>,
    pub standing: Standing,
    /// The names of the organization's own roles.
    pub names: Arc<BTreeMap<RoleId, String>>,
}

impl Known {
    /// What roles that were given for single teams add on those teams' things.
    fn teams(&self, now: Timestamp) -> Vec<(TeamId, PermissionSet)> {
        let mut teams: Vec<TeamId> = self.standing.assignments().filter_map(|given| given.team).collect();
        teams.sort_unstable();
        teams.dedup();
        let of = |team| (team, self.standing.permissions(Within::Team(team), now));
        teams.into_iter().map(of).collect()
    }
}

/// Why somebody may not.
#[derive(Clone, Debug)]
pub struct AccessExplanation {
    pub known: Arc<Known>,
    pub explanation: Explanation,
}

/// What a caller may, and why.
#[derive(Clone, Debug)]
pub struct OwnAccess {
    pub actor: Actor,
    pub permissions: PermissionSet,
    pub teams: Vec<(TeamId, PermissionSet)>,
    /// Of a member; an API key's permissions are its own.
    pub known: Option<Arc<Known>>,
    pub at: Timestamp,
}

/// What was worked out, by the epoch that it was worked out under.
#[derive(Clone)]
pub(crate) struct Standings {
    members: moka::sync::Cache<(OrgId, UserId, PolicyEpoch), Arc<Known>>,
    roles: moka::sync::Cache<(OrgId, PolicyEpoch), NamedRoles>,
}

fn estimate(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

pub(crate) fn standings() -> Standings {
    let members = moka::sync::Cache::builder()
        .max_capacity(STANDINGS_BYTES_MAX)
        .weigher(|_: &(OrgId, UserId, PolicyEpoch), known: &Arc<Known>| {
            estimate(STANDING_BYTES + ASSIGNMENT_BYTES * known.standing.assignments().count())
        })
        .time_to_live(KEPT_FOR);
    let roles = moka::sync::Cache::builder()
        .max_capacity(ROLES_BYTES_MAX)
        .weigher(|_: &(OrgId, PolicyEpoch), (_, names): &NamedRoles| {
            estimate(STANDING_BYTES + names.values().map(|name| ROLE_BYTES + name.len()).sum::<usize>())
        })
        .time_to_live(KEPT_FOR);
    Standings { members: members.build(), roles: roles.build() }
}

pub(crate) fn roles_of(stored: &[Role]) -> Roles {
    stored.iter().map(|role| (role.id, role.gives.clone())).collect()
}

pub(crate) async fn load_roles(tx: &mut Tx) -> Result<Roles, AppError> {
    Ok(roles_of(&tx.list_roles().await?))
}

/// Nothing for somebody who is no member, or disabled, here or everywhere.
pub(crate) async fn load_standing(tx: &mut Tx, user: UserId, roles: &Roles) -> Result<Standing, AppError> {
    if !tx.is_active_member(user).await? {
        return Ok(Standing::default());
    }
    let given = tx.list_assignments_of(user).await?;
    Ok(Standing::new(given.into_iter().map(|stored| stored.given), roles))
}

/// Whether somebody administers one of these organizations. Of a transaction about people; it may have entered another organization
/// afterwards.
pub(crate) async fn administers(
    tx: &mut Tx,
    user: UserId,
    memberships: &[Membership],
    now: Timestamp,
) -> Result<bool, AppError> {
    for membership in memberships.iter().filter(|membership| membership.is_active) {
        tx.enter_org(membership.org).await?;
        let roles = load_roles(tx).await?;
        if load_standing(tx, user, &roles).await?.administers(now) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The roles of an organization, and what its own ones are called.
type NamedRoles = (Arc<Roles>, Arc<BTreeMap<RoleId, String>>);

/// The policy as one transaction sees it: the epoch is read once.
struct Snapshot {
    epoch: PolicyEpoch,
}

impl Snapshot {
    async fn open(tx: &mut Tx) -> Result<Self, AppError> {
        Ok(Self { epoch: tx.load_policy_epoch().await? })
    }

    /// The roles, once in memory for all members of the organization.
    async fn roles(&self, tx: &mut Tx, kept: &Standings) -> Result<NamedRoles, AppError> {
        let key = (tx.org()?, self.epoch);
        if let Some(roles) = kept.roles.get(&key) {
            return Ok(roles);
        }
        let stored = tx.list_roles().await?;
        let roles = Arc::new(roles_of(&stored));
        let names = stored.into_iter().map(|role| (role.id, role.name.as_str().to_owned())).collect();
        let named = (roles, Arc::new(names));
        kept.roles.insert(key, named.clone());
        Ok(named)
    }

    /// From memory if it is of this epoch, else from the rows.
    async fn known(&self, tx: &mut Tx, user: UserId, kept: &Standings) -> Result<Arc<Known>, AppError> {
        let key = (tx.org()?, user, self.epoch);
        if let Some(known) = kept.members.get(&key) {
            return Ok(known);
        }
        let (roles, names) = self.roles(tx, kept).await?;
        let standing = load_standing(tx, user, &roles).await?;
        let policy = tx.load_sign_in_policy().await?;
        let known = Arc::new(Known { epoch: self.epoch.number, policy, roles, standing, names });
        kept.members.insert(key, Arc::clone(&known));
        Ok(known)
    }
}

pub(crate) async fn known(tx: &mut Tx, user: UserId, kept: &Standings) -> Result<Arc<Known>, AppError> {
    Snapshot::open(tx).await?.known(tx, user, kept).await
}

/// What whoever acts holds, as the rows say in the transaction that gives something away because of it: never from memory, and not as
/// it was when the request was let in.
pub(crate) struct Rights {
    of: RightsOf,
    now: Timestamp,
}

enum RightsOf {
    Member(UserId, Standing),
    /// With what its owner holds, if a person made it.
    Key(Box<ApiKey>, Option<Standing>),
    /// The operator at the console, and the host on his behalf.
    Host,
}

impl Rights {
    pub(crate) async fn load(tx: &mut Tx, actor: &Actor, now: Timestamp) -> Result<Self, AppError> {
        let of = match actor {
            Actor::User(user) => {
                let roles = load_roles(tx).await?;
                RightsOf::Member(*user, load_standing(tx, *user, &roles).await?)
            }
            Actor::ApiKey(id) => {
                let is_valid = |key: &ApiKey| key.revoked_at.is_none() && key.expires_at.is_none_or(|end| now < end);
                let key = tx.load_api_key(*id).await?.filter(is_valid);
                let key = key.ok_or(AppError::Unauthenticated)?;
                let owner = match key.owner {
                    Some(owner) => {
                        let roles = load_roles(tx).await?;
                        Some(load_standing(tx, owner, &roles).await?)
                    }
                    None => None,
                };
                RightsOf::Key(Box::new(key), owner)
            }
            Actor::System(_) => RightsOf::Host,
        };
        Ok(Self { of, now })
    }

    /// Whose a key is that is made by these rights, and the key that makes it.
    pub(crate) fn maker(&self) -> (Option<UserId>, Option<ApiKeyId>) {
        match &self.of {
            RightsOf::Member(user, _) => (Some(*user), None),
            RightsOf::Key(key, _) => (key.owner, Some(key.id)),
            RightsOf::Host => (None, None),
        }
    }

    /// How long all of `wanted` is held there.
    pub(crate) fn hold(&self, wanted: PermissionSet, within: Within) -> Hold {
        match &self.of {
            RightsOf::Member(_, standing) => standing.hold(wanted, within, self.now),
            RightsOf::Key(key, owner) => {
                let missing = wanted.without(key.permissions);
                if !missing.is_empty() {
                    return Hold::Lacks(missing);
                }
                // As a key is used: its owner's roles in single teams do not count.
                let of_owner = |owner: &Standing| owner.hold(wanted, Within::Organization, self.now);
                let by_owner = owner.as_ref().map_or(Hold::Forever, of_owner);
                match (by_owner, key.expires_at) {
                    (Hold::Lacks(missing), _) => Hold::Lacks(missing),
                    (Hold::Until(end), Some(key_end)) => Hold::Until(end.min(key_end)),
                    (Hold::Until(end), None) | (Hold::Forever, Some(end)) => Hold::Until(end),
                    (Hold::Forever, None) => Hold::Forever,
                }
            }
            RightsOf::Host => Hold::Forever,
        }
    }

    /// Where the key that acts may be used from; `None` where nothing bounds it.
    pub(crate) fn networks(&self) -> Option<&AllowList> {
        match &self.of {
            RightsOf::Key(key, _) => Some(&key.networks).filter(|networks| !networks.is_empty()),
            RightsOf::Member(_, _) | RightsOf::Host => None,
        }
    }

    /// # Errors
    /// [`AppError::Forbidden`] when the permission is not held there, any more.
    pub(crate) fn require(&self, permission: Permission, within: Within) -> Result<(), AppError> {
        match self.hold(PermissionSet::one(permission), within) {
            Hold::Lacks(_) => Err(AppError::Forbidden(permission)),
            Hold::Until(_) | Hold::Forever => Ok(()),
        }
    }
}

/// Whether what a role gives by a change reaches members who have it: it or a role that inherits from it is assigned.
pub(crate) async fn is_assigned(tx: &mut Tx, roles: &Roles, id: RoleId, now: Timestamp) -> Result<bool, AppError> {
    let mut looked = BTreeSet::new();
    let mut next = vec![id];
    while let Some(id) = next.pop() {
        if !looked.insert(id) {
            continue;
        }
        if tx.count_assignments_of_role(id, now).await? > 0 {
            return Ok(true);
        }
        next.extend(roles.heirs_of(RoleRef::Own(id)));
    }
    Ok(false)
}

async fn answer(
    tx: &mut Tx,
    question: Question,
    (policy, kept): (&Snapshot, &Standings),
    teams: &mut BTreeMap<TeamId, bool>,
    now: Timestamp,
) -> Result<Verdict, AppError> {
    if let Within::Team(team) = question.within {
        let exists = match teams.get(&team) {
            Some(exists) => *exists,
            None => tx.load_team(team).await?.is_some(),
        };
        teams.insert(team, exists);
        if !exists {
            return Ok(Verdict::NoSuchTeam);
        }
    }
    let held = match question.subject {
        AccessSubject::User(user) => policy.known(tx, user, kept).await?.standing.permissions(question.within, now),
        AccessSubject::ApiKey(id) => match tx.load_api_key(id).await? {
            Some(key) if key.revoked_at.is_none() && key.expires_at.is_none_or(|end| now < end) => match key.owner {
                Some(owner) => {
                    // As a key is used: its owner's roles in single teams do not count.
                    let standing = &policy.known(tx, owner, kept).await?.standing;
                    let held = standing.permissions(Within::Organization, now);
                    key.permissions.intersection(held)
                }
                None => key.permissions,
            },
            Some(_) | None => PermissionSet::EMPTY,
        },
    };
    Ok(if held.contains(question.permission) { Verdict::Allowed } else { Verdict::Refused })
}

impl App {
    /// A member's right in an organization, at this moment. What authentication makes of a session.
    ///
    /// # Errors
    /// The store's. Somebody without a role, or who is no member, is a caller without a permission.
    pub async fn member_caller(&self, org: OrgId, user: UserId) -> Result<Caller, AppError> {
        let known = self.known_member(org, user).await?;
        Ok(self.caller_of(org, user, &known))
    }

    async fn known_member(&self, org: OrgId, user: UserId) -> Result<Arc<Known>, AppError> {
        let scope = SystemScope::new(SystemReason::SignIn).for_org(org);
        self.store()
            .read(&scope, (user, self.standings().clone()), |tx, (user, kept)| Box::pin(known(tx, *user, kept)))
            .await
    }

    fn caller_of(&self, org: OrgId, user: UserId, known: &Known) -> Caller {
        let now = self.ambient().now();
        let permissions = known.standing.permissions(Within::Organization, now);
        Caller::from_member(org, user, permissions).with_teams(known.teams(now))
    }

    /// As [`member_caller`](Self::member_caller), for who has signed in: with a second factor, where the organization asks for one, and
    /// within an administrator's limits, also if they became one after the session began.
    ///
    /// # Errors
    /// [`AppError::MfaRequired`]; [`AppError::Unauthenticated`] when the session is past the limits of what the person is by now; the
    /// store's.
    pub(crate) async fn session_caller(
        &self,
        org: OrgId,
        signed_in: &SignedIn,
        credential: Credential,
    ) -> Result<Caller, AppError> {
        let (user, session) = (&signed_in.user, &signed_in.session);
        let known = self.known_member(org, user.id).await?;
        let now = self.ambient().now();
        let is_admin = user.is_super_admin || known.standing.administers(now);
        if is_admin {
            let times = session.times.narrowed(SessionLimits::ADMIN, session.created_at);
            let lives = match credential {
                Credential::Session => times.is_live(now),
                Credential::Token => now < times.expires_at,
            };
            if !lives {
                return Err(AppError::Unauthenticated);
            }
        }
        if !known.policy.admits(is_admin, &signed_in.session.amr) {
            return Err(AppError::MfaRequired);
        }
        let proof = SessionProof { session: signed_in.session.id, epoch: user.epoch };
        Ok(self.caller_of(org, user.id, &known).with_proof(proof))
    }

    /// Answers up to [`QUESTIONS_MAX`] questions in their order, all at one state of the policy and at one moment.
    ///
    /// # Errors
    /// A refusal; [`AppError::Invalid`] `invalid-checks` for none or too many.
    pub async fn check_access(
        &self,
        caller: &Caller,
        org: OrgId,
        questions: Vec<Question>,
    ) -> Result<Vec<Verdict>, AppError> {
        let scope = caller.authorize(org, Permission::AccessCheck)?;
        // Nothing asked is nothing allowed, and no answer either: somebody made a mistake.
        if questions.is_empty() || questions.len() > QUESTIONS_MAX {
            let message = format!("ask 1 to {QUESTIONS_MAX} questions at once");
            return Err(AppError::invalid("invalid-checks", "/checks", message));
        }
        let args = (questions, self.standings().clone(), self.ambient().now());
        let verdicts: Vec<Verdict> = self
            .store()
            .read(&scope, args, |tx, (questions, kept, now)| {
                Box::pin(async move {
                    let mut verdicts = Vec::with_capacity(questions.len());
                    let policy = Snapshot::open(tx).await?;
                    let mut teams = BTreeMap::new();
                    for question in questions {
                        verdicts.push(answer(tx, *question, (&policy, kept), &mut teams, *now).await?);
                    }
                    Ok::<_, AppError>(verdicts)
                })
            })
            .await?;
        let allowed = verdicts.iter().filter(|verdict| **verdict == Verdict::Allowed).count();
        for (decision, count) in [("allowed", allowed), ("refused", verdicts.len() - allowed)] {
            metrics::counter!("bulkhead_access_decisions_total", "decision" => decision).increment(count as u64);
        }
        Ok(verdicts)
    }

    /// Why a member may or may not do something.
    ///
    /// # Errors
    /// A refusal; [`AppError::NotFound`] for a team that is not there.
    pub async fn explain_access(
        &self,
        caller: &Caller,
        org: OrgId,
        user: UserId,
        permission: Permission,
        within: Within,
    ) -> Result<AccessExplanation, AppError> {
        let scope = caller.authorize(org, Permission::AccessCheck)?;
        let known = self
            .store()
            .read(&scope, (user, within, self.standings().clone()), |tx, (user, within, kept)| {
                Box::pin(async move {
                    if let Within::Team(team) = within {
                        tx.load_team(*team).await?.ok_or(AppError::NotFound { what: "team" })?;
                    }
                    known(tx, *user, kept).await
                })
            })
            .await?;
        let explanation = known.standing.explain(&known.roles, permission, within, self.ambient().now());
        Ok(AccessExplanation { known, explanation })
    }

    /// What the caller may, and why.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn show_own_access(&self, caller: &Caller, org: OrgId) -> Result<OwnAccess, AppError> {
        let scope = caller.authorize(org, Permission::OrgRead)?;
        let at = self.ambient().now();
        let Some(user) = caller.user() else {
            let permissions = caller.permissions();
            return Ok(OwnAccess { actor: caller.actor(), permissions, teams: Vec::new(), known: None, at });
        };
        let known = self
            .store()
            .read(&scope, (user, self.standings().clone()), |tx, (user, kept)| Box::pin(known(tx, *user, kept)))
            .await?;
        let permissions = known.standing.permissions(Within::Organization, at);
        Ok(OwnAccess { actor: caller.actor(), permissions, teams: known.teams(at), known: Some(known), at })
    }
}
