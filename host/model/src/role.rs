//! Roles: the six that every organization has, and those of its own, which may inherit from others.
//!
//! A role is a set of permissions and nothing else; who has it, where and when is an [`assignment`]; who asks for one for some hours,
//! and who lets him, an [`activation`]. Rights hang on ids, never on names: two roles may look alike to a person, but none is taken
//! for another.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::RoleId;
use crate::permission::{Permission, PermissionSet};

pub mod activation;
pub mod assignment;
#[cfg(test)]
mod tests;

/// A role that inherits from nothing has the depth 1. Source: Keto's default for the depth of its rewrites.
pub const DEPTH_MAX: usize = 5;
/// Roles that one role inherits from directly.
pub const PARENTS_MAX: usize = 10;
/// Roles of an organization's own. Source: Keto's default width.
pub const ROLES_MAX: usize = 100;
/// Characters of a name.
pub const NAME_LEN_MAX: usize = 60;
/// Characters of a description.
pub const DESCRIPTION_LEN_MAX: usize = 500;

macro_rules! built_in {
    ($($name:ident = $text:literal, $title:literal, $says:literal;)*) => {
        /// A role that every organization has and nobody can change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum BuiltIn { $(#[doc = $says] $name,)* }

        impl BuiltIn {
            pub const ALL: [Self; 6] = [$(Self::$name,)*];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Its name for people.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }

            /// What it is for, as a sentence for people.
            #[must_use]
            pub const fn says(self) -> &'static str {
                match self { $(Self::$name => $says,)* }
            }

            /// Reads exactly what [`as_str`](Self::as_str) writes.
            #[must_use]
            pub fn from_name(text: &str) -> Option<Self> {
                Self::ALL.into_iter().find(|role| role.as_str() == text)
            }
        }
    };
}

built_in! {
    SuperAdmin = "super_admin", "Super admin", "Everything on the platform. It belongs to no organization and cannot be given in one.";
    Admin = "admin", "Admin", "Everything in the organization: members, roles, plugins and grants, settings, keys, compliance, audit.";
    Manager = "manager", "Manager", "Teams, records, workflows, campaigns and incidents; installs plugins without granting anything new.";
    Analyst = "analyst", "Analyst", "Reads records, runs workflows; makes reports, scoring models and exports.";
    Viewer = "viewer", "Viewer", "Reads what field permissions show, and changes nothing.";
    ApiUser = "api_user", "API user", "Nothing by itself: its keys' scopes say what it may.";
}

impl BuiltIn {
    #[must_use]
    pub fn permissions(self) -> PermissionSet {
        Permission::ALL.iter().copied().filter(|p| p.is_held_by(self)).collect()
    }

    /// Whether it can be given, asked for and inherited inside an organization.
    #[must_use]
    pub const fn is_of_organization(self) -> bool {
        match self {
            Self::SuperAdmin => false,
            Self::Admin | Self::Manager | Self::Analyst | Self::Viewer | Self::ApiUser => true,
        }
    }
}

impl fmt::Display for BuiltIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which role: a built-in one by its name, one of the organization's own by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RoleRef {
    BuiltIn(BuiltIn),
    Own(RoleId),
}

/// The text names no role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a role: `admin`, `manager`, `analyst`, `viewer`, `api_user`, or the id of an own role")]
pub struct NotARole;

impl fmt::Display for RoleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn(role) => role.fmt(f),
            Self::Own(id) => id.fmt(f),
        }
    }
}

impl FromStr for RoleRef {
    type Err = NotARole;

    fn from_str(text: &str) -> Result<Self, NotARole> {
        match BuiltIn::from_name(text) {
            Some(role) => Ok(Self::BuiltIn(role)),
            None => text.parse().map(Self::Own).map_err(|_| NotARole),
        }
    }
}

impl Serialize for RoleRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RoleRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What people call a role of the organization's own, or a team: letters and digits of any script, single spaces, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleName(String);

/// Why a name was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoleNameError {
    #[error(
        "a role's name has 1 to {NAME_LEN_MAX} letters, digits, single spaces, `-` and `_`, and begins and ends with a letter or digit"
    )]
    Form,
    /// It reads like a built-in role's.
    #[error("this name belongs to the built-in role {0}")]
    BuiltIn(BuiltIn),
}

/// What two names must differ in: letters and digits alone, in lower case.
fn name_key(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

impl RoleName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What no two roles of an organization share: `Sales lead`, `sales-lead` and `SALES_LEAD` are one name.
    #[must_use]
    pub fn key(&self) -> String {
        name_key(&self.0)
    }
}

impl FromStr for RoleName {
    type Err = RoleNameError;

    fn from_str(text: &str) -> Result<Self, RoleNameError> {
        let is_joint = |c: char| matches!(c, ' ' | '-' | '_');
        let length = text.chars().count();
        let ends_well = text.chars().next().is_some_and(char::is_alphanumeric)
            && text.chars().next_back().is_some_and(char::is_alphanumeric);
        let doubled = text.chars().zip(text.chars().skip(1)).any(|(a, b)| is_joint(a) && is_joint(b));
        let foreign = text.chars().any(|c| !c.is_alphanumeric() && !is_joint(c));
        if !(1..=NAME_LEN_MAX).contains(&length) || !ends_well || doubled || foreign {
            return Err(RoleNameError::Form);
        }
        let key = name_key(text);
        match BuiltIn::ALL.into_iter().find(|role| name_key(role.as_str()) == key) {
            Some(role) => Err(RoleNameError::BuiltIn(role)),
            None => Ok(Self(text.to_owned())),
        }
    }
}

/// What a role of the organization's own gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gives {
    /// By itself.
    pub permissions: PermissionSet,
    /// What these give, it gives as well.
    pub inherits: Vec<RoleRef>,
}

/// Why a role cannot be as it is asked to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    #[error("a role gives at least one permission, or inherits from a role")]
    Empty,
    #[error("{0} is the platform's, and cannot be given in an organization")]
    OfPlatform(Permission),
    #[error("{0} is the platform's, and no role inherits from it")]
    NotInheritable(BuiltIn),
    #[error("there is no role {0} to inherit from")]
    Unknown(RoleRef),
    #[error("it inherits from {0} twice")]
    Repeated(RoleRef),
    #[error("a role inherits from at most {PARENTS_MAX} roles")]
    TooManyParents,
    #[error("an organization has at most {ROLES_MAX} roles of its own")]
    TooManyRoles,
    /// The roles on the way round, the first of them again at the end.
    #[error("it would inherit from itself: {}", path(.0))]
    Cycle(Vec<RoleRef>),
    #[error("{0} would inherit over more than {DEPTH_MAX} levels")]
    TooDeep(RoleRef),
}

fn path(roles: &[RoleRef]) -> String {
    roles.iter().map(RoleRef::to_string).collect::<Vec<_>>().join(" → ")
}

/// The roles of one organization, as they stand at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles(BTreeMap<RoleId, Gives>);

impl FromIterator<(RoleId, Gives)> for Roles {
    fn from_iter<T: IntoIterator<Item = (RoleId, Gives)>>(roles: T) -> Self {
        Self(roles.into_iter().collect())
    }
}

impl Roles {
    /// With a role added, or in place of the one with this id.
    #[must_use]
    pub fn with(mut self, id: RoleId, gives: Gives) -> Self {
        self.0.insert(id, gives);
        self
    }

    #[must_use]
    pub fn contains(&self, role: RoleRef) -> bool {
        match role {
            RoleRef::BuiltIn(role) => role.is_of_organization(),
            RoleRef::Own(id) => self.0.contains_key(&id),
        }
    }

    /// What the role gives by itself. Nothing for one that is not there, and nothing of the platform's, whatever is stored.
    fn own(&self, role: RoleRef) -> PermissionSet {
        match role {
            RoleRef::BuiltIn(role) => role.permissions().intersection(PermissionSet::all()),
            RoleRef::Own(id) => self
                .0
                .get(&id)
                .map_or(PermissionSet::EMPTY, |gives| gives.permissions.intersection(PermissionSet::all())),
        }
    }

    fn parents(&self, role: RoleRef) -> &[RoleRef] {
        match role {
            RoleRef::BuiltIn(_) => &[],
            RoleRef::Own(id) => self.0.get(&id).map_or(&[], |gives| &gives.inherits),
        }
    }

    /// The role and all that it inherits from, nearest first, each once, with the way to it. Ends after [`DEPTH_MAX`] levels even if
    /// what is stored does not.
    fn reached(&self, role: RoleRef) -> Vec<Vec<RoleRef>> {
        let mut ways = Vec::new();
        // The super admin's right is nothing that an organization can give.
        let given = |role: &RoleRef| !matches!(role, RoleRef::BuiltIn(BuiltIn::SuperAdmin));
        let mut seen = BTreeSet::from([role]);
        let mut next: VecDeque<Vec<RoleRef>> = [vec![role]].into_iter().filter(|_| given(&role)).collect();
        while let Some(way) = next.pop_front() {
            let last = way.last().copied().unwrap_or(role);
            if way.len() < DEPTH_MAX {
                for parent in self.parents(last).iter().filter(|parent| given(parent)) {
                    if seen.insert(*parent) {
                        next.push_back(way.iter().copied().chain([*parent]).collect());
                    }
                }
            }
            ways.push(way);
        }
        ways
    }

    /// Everything that the role gives: its own and what it inherits.
    #[must_use]
    pub fn permissions_of(&self, role: RoleRef) -> PermissionSet {
        let last = |way: &Vec<RoleRef>| way.last().copied().unwrap_or(role);
        self.reached(role).iter().fold(PermissionSet::EMPTY, |set, way| set.union(self.own(last(way))))
    }

    /// The shortest way from the role to the one that gives the permission by itself, both included; `None`: it does not give it.
    #[must_use]
    pub fn way_to(&self, role: RoleRef, permission: Permission) -> Option<Vec<RoleRef>> {
        self.reached(role).into_iter().find(|way| way.last().is_some_and(|last| self.own(*last).contains(permission)))
    }

    /// The roles that give the permission, built-in ones first.
    #[must_use]
    pub fn holders_of(&self, permission: Permission) -> Vec<RoleRef> {
        let built_in = BuiltIn::ALL.into_iter().map(RoleRef::BuiltIn);
        let own = self.0.keys().copied().map(RoleRef::Own);
        built_in.chain(own).filter(|role| self.permissions_of(*role).contains(permission)).collect()
    }

    /// The roles of the organization's own that inherit from this one directly.
    #[must_use]
    pub fn heirs_of(&self, role: RoleRef) -> Vec<RoleId> {
        self.0.iter().filter(|(_, gives)| gives.inherits.contains(&role)).map(|(id, _)| *id).collect()
    }

    /// Whether all of it is as it must be. Called with a change applied, before it is stored.
    ///
    /// # Errors
    /// The first [`RoleError`] found.
    pub fn check(&self) -> Result<(), RoleError> {
        if self.0.len() > ROLES_MAX {
            return Err(RoleError::TooManyRoles);
        }
        for gives in self.0.values() {
            self.check_one(gives)?;
        }
        let mut depths = BTreeMap::new();
        for id in self.0.keys() {
            self.depth(*id, &mut Vec::new(), &mut depths)?;
        }
        Ok(())
    }

    fn check_one(&self, gives: &Gives) -> Result<(), RoleError> {
        if gives.permissions.is_empty() && gives.inherits.is_empty() {
            return Err(RoleError::Empty);
        }
        if let Some(permission) = gives.permissions.without(PermissionSet::all()).iter().next() {
            return Err(RoleError::OfPlatform(permission));
        }
        if gives.inherits.len() > PARENTS_MAX {
            return Err(RoleError::TooManyParents);
        }
        let mut seen = BTreeSet::new();
        for parent in &gives.inherits {
            match parent {
                RoleRef::BuiltIn(role) if !role.is_of_organization() => return Err(RoleError::NotInheritable(*role)),
                RoleRef::BuiltIn(_) => {}
                RoleRef::Own(id) if self.0.contains_key(id) => {}
                RoleRef::Own(_) => return Err(RoleError::Unknown(*parent)),
            }
            if !seen.insert(*parent) {
                return Err(RoleError::Repeated(*parent));
            }
        }
        Ok(())
    }

    /// Levels from this role down to one that inherits from nothing, itself included.
    fn depth(
        &self,
        id: RoleId,
        way: &mut Vec<RoleRef>,
        known: &mut BTreeMap<RoleId, usize>,
    ) -> Result<usize, RoleError> {
        if let Some(depth) = known.get(&id) {
            return Ok(*depth);
        }
        let role = RoleRef::Own(id);
        if let Some(at) = way.iter().position(|passed| *passed == role) {
            return Err(RoleError::Cycle(way[at..].iter().copied().chain([role]).collect()));
        }
        way.push(role);
        let mut depth = 1;
        for parent in self.parents(role) {
            let below = match parent {
                RoleRef::BuiltIn(_) => 1,
                RoleRef::Own(parent) => self.depth(*parent, way, known)?,
            };
            depth = depth.max(below + 1);
        }
        way.pop();
        if depth > DEPTH_MAX {
            return Err(RoleError::TooDeep(role));
        }
        known.insert(id, depth);
        Ok(depth)
    }
}
