//! The permission rule: the only place that turns "who asks" into the right to touch an organization's rows.
//!
//! [`OrgScope`]'s constructor is private to this file. Holding one *is* the proof that [`Caller::authorize`] said yes, and
//! the store takes nothing less.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{ApiKeyId, OrgId};
use crate::time::Timestamp;

macro_rules! permissions {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What a caller may do inside one organization. The text form is what API keys, the API and the audit log show.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Permission { $($(#[$doc])* $name,)* }

        impl Permission {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

permissions! {
    OrgRead = "org.read",
    ApiKeysRead = "api_keys.read",
    ApiKeysWrite = "api_keys.write",
    PluginsRead = "plugins.read",
    /// Uploads packages.
    PluginsUpload = "plugins.upload",
    /// Installs, configures, disables and removes.
    PluginsInstall = "plugins.install",
    /// Decides what an installation may do.
    PluginsGrant = "plugins.grant",
    /// Makes single calls by hand.
    PluginsCall = "plugins.call",
    CallsRead = "calls.read",
    /// Stores and removes secrets (nobody reads them).
    SecretsWrite = "secrets.write",
    WorkflowsRead = "workflows.read",
    WorkflowsWrite = "workflows.write",
    /// Activates, deactivates, rotates hooks.
    WorkflowsActivate = "workflows.activate",
    RunsRead = "runs.read",
    RunsStart = "runs.start",
    /// Cancels and retries.
    RunsControl = "runs.control",
    JobsRead = "jobs.read",
    EventsRead = "events.read",
    AuditRead = "audit.read",
    /// Decides how long what has ended is kept.
    RetentionWrite = "retention.write",
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Permission {
    type Err = UnknownPermission;

    fn from_str(text: &str) -> Result<Self, UnknownPermission> {
        Self::ALL.iter().copied().find(|p| p.as_str() == text).ok_or_else(|| UnknownPermission(text.to_owned()))
    }
}

impl Serialize for Permission {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Permission {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// No permission has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown permission {0:?}")]
pub struct UnknownPermission(pub String);

/// A set of permissions, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PermissionSet(u64);

impl PermissionSet {
    pub const EMPTY: Self = Self(0);

    #[must_use]
    pub fn all() -> Self {
        Permission::ALL.iter().copied().collect()
    }

    #[must_use]
    pub const fn contains(self, permission: Permission) -> bool {
        self.0 & (1 << permission as u8) != 0
    }

    #[must_use]
    pub const fn is_subset_of(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL.iter().copied().filter(move |p| self.contains(*p))
    }
}

impl FromIterator<Permission> for PermissionSet {
    fn from_iter<T: IntoIterator<Item = Permission>>(permissions: T) -> Self {
        Self(permissions.into_iter().fold(0, |bits, p| bits | (1 << p as u8)))
    }
}

/// Who acts: shown in audit entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    ApiKey(ApiKeyId),
    /// The host itself, with the reason of its [`SystemScope`].
    System(SystemReason),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApiKey(id) => write!(f, "{id}"),
            Self::System(reason) => write!(f, "system:{}", reason.as_str()),
        }
    }
}

/// An authenticated caller: one API key of one organization, with the permissions that the key holds now.
#[derive(Clone, Debug)]
pub struct Caller {
    org: OrgId,
    key: ApiKeyId,
    permissions: PermissionSet,
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
        Ok(Self { org, key, permissions })
    }

    #[must_use]
    pub fn org(&self) -> OrgId {
        self.org
    }

    #[must_use]
    pub fn key(&self) -> ApiKeyId {
        self.key
    }

    #[must_use]
    pub fn permissions(&self) -> PermissionSet {
        self.permissions
    }

    /// The permission rule.
    ///
    /// # Errors
    /// [`Refused`] when the organization is not the caller's or the permission is missing.
    pub fn authorize(&self, org: OrgId, permission: Permission) -> Result<OrgScope, Refused> {
        if org != self.org {
            return Err(Refused::OtherOrg);
        }
        if !self.permissions.contains(permission) {
            return Err(Refused::Lacks(permission));
        }
        Ok(OrgScope { org, actor: Actor::ApiKey(self.key) })
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
}

impl SystemReason {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SignIn => "sign-in",
            Self::Jobs => "jobs",
            Self::Admin => "admin",
            Self::Worker => "worker",
            Self::Hook => "hook",
            Self::Nodes => "nodes",
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
        fn exactly_the_held_permissions_pass(bits: u64) {
            let held: PermissionSet = Permission::ALL.iter().copied().filter(|p| bits & (1 << *p as u8) != 0).collect();
            let caller = caller(held);
            for permission in Permission::ALL {
                prop_assert_eq!(caller.authorize(caller.org(), *permission).is_ok(), held.contains(*permission));
            }
            prop_assert_eq!(held.iter().collect::<PermissionSet>(), held);
        }
    }
}
