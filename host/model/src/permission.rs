//! The permission rule: the only place that turns "who asks" into the right to touch an organization's rows.
//!
//! [`OrgScope`]'s constructor is private to this file. Holding one *is* the proof that [`Caller::authorize`] said yes, and
//! the store takes nothing less.

use std::fmt;

use crate::id::{ApiKeyId, OrgId, SessionId, TeamId, UserId};
use crate::role::assignment::Within;
use crate::time::Timestamp;

pub use self::catalogue::{Category, Permission, PermissionSet, UnknownPermission};

mod catalogue;

/// Who acts: shown in audit entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    ApiKey(ApiKeyId),
    /// A person, by a session or by a token that one gave.
    User(UserId),
    /// The host itself, with the reason of its [`SystemScope`].
    System(SystemReason),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApiKey(id) => write!(f, "{id}"),
            Self::User(id) => write!(f, "{id}"),
            Self::System(reason) => write!(f, "system:{}", reason.as_str()),
        }
    }
}

/// The text names nobody who acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody who acts is called so")]
pub struct ActorError;

impl std::str::FromStr for Actor {
    type Err = ActorError;

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<Self, ActorError> {
        if let Some(reason) = text.strip_prefix("system:") {
            let found = SystemReason::ALL.into_iter().find(|known| known.as_str() == reason);
            return found.map(Self::System).ok_or(ActorError);
        }
        let user = text.parse().map(Self::User);
        user.or_else(|_| text.parse().map(Self::ApiKey)).map_err(|_| ActorError)
    }
}

/// Who stands behind a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Key(ApiKeyId),
    Member(UserId),
}

/// An authenticated caller in one organization: an API key of it or a member, with the permissions that are held now.
#[derive(Clone, Debug)]
pub struct Caller {
    org: OrgId,
    subject: Subject,
    /// In the organization as a whole.
    permissions: PermissionSet,
    /// What is held beside them on what belongs to single teams.
    teams: Vec<(TeamId, PermissionSet)>,
    /// What a person proved it by.
    proof: Option<SessionProof>,
}

/// The session that a person was known by, and their epoch then: what is made in their name is made only while both still are as they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionProof {
    pub session: SessionId,
    pub epoch: i64,
}

/// Why a caller may not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The organization is another one: answered as "not found", since the caller may not know that it exists.
    #[error("no such organization")]
    OtherOrg,
    #[error("this needs the permission {0}")]
    Lacks(Permission),
}

impl Caller {
    /// The caller that a verified, unexpired, unrevoked key stands for. Only authentication calls this, with the row it read.
    ///
    /// # Errors
    /// [`KeyNotValid`] when the key is revoked or its time is over.
    pub fn from_verified_key(
        org: OrgId,
        key: ApiKeyId,
        permissions: PermissionSet,
        expires_at: Option<Timestamp>,
        revoked_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Self, KeyNotValid> {
        if revoked_at.is_some() || expires_at.is_some_and(|at| at <= now) {
            return Err(KeyNotValid);
        }
        Ok(Self { org, subject: Subject::Key(key), permissions, teams: Vec::new(), proof: None })
    }

    /// The caller that a member of the organization is who has just proven who they are. Only authentication calls this, with the
    /// permissions that follow from the rows it read.
    #[must_use]
    pub fn from_member(org: OrgId, user: UserId, permissions: PermissionSet) -> Self {
        Self { org, subject: Subject::Member(user), permissions, teams: Vec::new(), proof: None }
    }

    /// The same with what roles that were given for single teams add on those teams' things.
    #[must_use]
    pub fn with_teams(mut self, teams: Vec<(TeamId, PermissionSet)>) -> Self {
        self.teams = teams;
        self
    }

    /// The same with the session that the person was known by.
    #[must_use]
    pub fn with_proof(mut self, proof: SessionProof) -> Self {
        self.proof = Some(proof);
        self
    }

    /// The session that the person was known by, if one calls and came with a session.
    #[must_use]
    pub fn proof(&self) -> Option<SessionProof> {
        self.proof
    }

    #[must_use]
    pub fn org(&self) -> OrgId {
        self.org
    }

    /// The API key, if that is what calls.
    #[must_use]
    pub fn key(&self) -> Option<ApiKeyId> {
        match self.subject {
            Subject::Key(key) => Some(key),
            Subject::Member(_) => None,
        }
    }

    /// The person, if one calls.
    #[must_use]
    pub fn user(&self) -> Option<UserId> {
        match self.subject {
            Subject::Key(_) => None,
            Subject::Member(user) => Some(user),
        }
    }

    /// As audit entries name the caller.
    #[must_use]
    pub fn actor(&self) -> Actor {
        match self.subject {
            Subject::Key(key) => Actor::ApiKey(key),
            Subject::Member(user) => Actor::User(user),
        }
    }

    /// What the caller may in the organization as a whole.
    #[must_use]
    pub fn permissions(&self) -> PermissionSet {
        self.permissions
    }

    /// What the caller may there.
    #[must_use]
    pub fn permissions_within(&self, within: Within) -> PermissionSet {
        match within {
            Within::Organization => self.permissions,
            Within::Team(team) => {
                let of_team = self.teams.iter().filter(|(of, _)| *of == team);
                of_team.fold(self.permissions, |set, (_, more)| set.union(*more))
            }
        }
    }

    /// The permission rule.
    ///
    /// # Errors
    /// [`Refused`] when the organization is not the caller's or the permission is missing.
    pub fn authorize(&self, org: OrgId, permission: Permission) -> Result<OrgScope, Refused> {
        self.authorize_within(org, permission, Within::Organization)
    }

    /// The permission rule for what belongs to one team, where a role that was given for that team counts as well.
    ///
    /// # Errors
    /// As [`authorize`](Self::authorize).
    pub fn authorize_within(&self, org: OrgId, permission: Permission, within: Within) -> Result<OrgScope, Refused> {
        if org != self.org {
            return Err(Refused::OtherOrg);
        }
        if !self.permissions_within(within).contains(permission) {
            return Err(Refused::Lacks(permission));
        }
        Ok(OrgScope { org, actor: self.actor() })
    }
}

/// The key is revoked or expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the API key is not valid")]
pub struct KeyNotValid;

/// The right to read and write the rows of one organization.
#[derive(Clone, Debug)]
pub struct OrgScope {
    org: OrgId,
    actor: Actor,
}

impl OrgScope {
    #[must_use]
    pub fn org(&self) -> OrgId {
        self.org
    }

    #[must_use]
    pub fn actor(&self) -> &Actor {
        &self.actor
    }
}

/// The right to read and write what belongs to people, and the rows of one organization if it names one. An organization's own right
/// gives it to those use cases that deal with its members.
#[derive(Clone, Debug)]
pub struct AccountScope {
    org: Option<OrgId>,
}

impl AccountScope {
    /// For what people do with their own accounts.
    pub const OWN: Self = Self { org: None };

    /// Together with an organization's rows, as somebody who may deal with its members.
    #[must_use]
    pub fn within(scope: &OrgScope) -> Self {
        Self { org: Some(scope.org()) }
    }

    #[must_use]
    pub fn org(&self) -> Option<OrgId> {
        self.org
    }
}

/// Why the host acts on its own. Each reason admits only the tables that row-level security lists for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemReason {
    /// Looks up a key, hook or organization before anybody is known.
    SignIn,
    /// Claims, renews, recovers and finishes jobs.
    Jobs,
    /// Creates organizations and first keys (`bulkhead admin`, `bulkhead demo`).
    Admin,
    /// Works for one organization inside a claimed job.
    Worker,
    /// A webhook delivery, authenticated by its token.
    Hook,
    /// Looks whether what this node carries out was changed or ended on another one.
    Nodes,
    /// Finds out who signs in, and keeps what belongs to people rather than to an organization.
    Accounts,
    /// Counts how often somebody asks.
    Limits,
}

impl SystemReason {
    pub const ALL: [Self; 7] =
        [Self::SignIn, Self::Jobs, Self::Admin, Self::Worker, Self::Hook, Self::Nodes, Self::Accounts];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SignIn => "sign-in",
            Self::Jobs => "jobs",
            Self::Admin => "admin",
            Self::Worker => "worker",
            Self::Hook => "hook",
            Self::Nodes => "nodes",
            Self::Accounts => "accounts",
            Self::Limits => "limits",
        }
    }
}

/// The host's own right, across organizations, for one named reason.
#[derive(Clone, Copy, Debug)]
pub struct SystemScope {
    reason: SystemReason,
}

impl SystemScope {
    #[must_use]
    pub const fn new(reason: SystemReason) -> Self {
        Self { reason }
    }

    #[must_use]
    pub const fn reason(self) -> SystemReason {
        self.reason
    }

    /// Narrows to one organization: what a worker does with a claimed job, or a hook with a verified token.
    #[must_use]
    pub fn for_org(self, org: OrgId) -> OrgScope {
        OrgScope { org, actor: Actor::System(self.reason) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ambient::Ambient;
    use proptest::prelude::*;

    fn caller(permissions: PermissionSet) -> Caller {
        let ambient = Ambient::manual(Timestamp::from_micros(0), 1);
        let now = ambient.now();
        Caller::from_verified_key(OrgId::new(&ambient), ApiKeyId::new(&ambient), permissions, None, None, now).unwrap()
    }

    #[test]
    fn another_organization_is_hidden_even_from_the_all_powerful() {
        let caller = caller(PermissionSet::all());
        let other = OrgId::new(&Ambient::manual(Timestamp::from_micros(0), 2));
        assert_eq!(caller.authorize(other, Permission::OrgRead).err(), Some(Refused::OtherOrg));
    }

    #[test]
    fn expired_and_revoked_keys_are_nobody() {
        let ambient = Ambient::manual(Timestamp::from_micros(10), 1);
        let (org, key, now) = (OrgId::new(&ambient), ApiKeyId::new(&ambient), ambient.now());
        let all = PermissionSet::all();
        assert!(Caller::from_verified_key(org, key, all, Some(now), None, now).is_err());
        assert!(Caller::from_verified_key(org, key, all, None, Some(now), now).is_err());
        assert!(Caller::from_verified_key(org, key, all, Some(Timestamp::from_micros(11)), None, now).is_ok());
    }

    proptest! {
        #[test]
        fn exactly_the_held_permissions_pass(bits: u128, more: u128) {
            let set = |bits: u128| -> PermissionSet {
                Permission::ALL.iter().copied().filter(|p| bits & (1 << *p as u8) != 0).collect()
            };
            let (held, more) = (set(bits), set(more));
            let key = caller(held);
            let ambient = Ambient::manual(Timestamp::from_micros(0), 3);
            let (user, team, other) = (UserId::new(&ambient), TeamId::new(&ambient), TeamId::new(&ambient));
            let member = Caller::from_member(key.org(), user, held).with_teams(vec![(team, more)]);
            for permission in Permission::ALL.iter().copied() {
                let holds = held.contains(permission);
                prop_assert_eq!(key.authorize(key.org(), permission).is_ok(), holds);
                prop_assert_eq!(member.authorize(key.org(), permission).is_ok(), holds);
                let within = |team| member.authorize_within(key.org(), permission, Within::Team(team)).is_ok();
                prop_assert_eq!(within(team), holds || more.contains(permission));
                prop_assert_eq!(within(other), holds);
            }
            for actor in [key.actor(), member.actor(), Actor::System(SystemReason::ALL[bits as usize % 7])] {
                prop_assert_eq!(actor.to_string().parse(), Ok(actor));
            }
            prop_assert_eq!(held.iter().collect::<PermissionSet>(), held);
            prop_assert_eq!(held.union(more).without(more), held.without(more));
            prop_assert!(held.intersection(more).is_subset_of(held) && held.is_subset_of(held.union(more)));
        }
    }
}
