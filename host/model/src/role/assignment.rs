//! Who has which role, where and when; what follows from it at an instant, and why.
//!
//! Times are looked at when the right is used, never by a job: a role ends by the clock, whoever sleeps.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{BuiltIn, RoleRef, Roles};
use crate::id::{AssignmentId, TeamId, UserId};
use crate::permission::{Permission, PermissionSet};
use crate::time::Timestamp;

/// Roles that one member has at most; what is over is not counted, and removed when the next one is given.
pub const ASSIGNMENTS_MAX: usize = 50;

/// From when until when; a missing end is none. The beginning belongs to it, the end does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    pub from: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

/// How a moment lies to a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    NotYet,
    Now,
    Over,
}

/// A window that is no window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    #[error("it would end before it begins")]
    Backwards,
    #[error("it would be over already")]
    Over,
}

impl Window {
    pub const ALWAYS: Self = Self { from: None, until: None };

    #[must_use]
    pub fn at(self, now: Timestamp) -> Phase {
        if self.until.is_some_and(|until| until <= now) {
            Phase::Over
        } else if self.from.is_some_and(|from| from > now) {
            Phase::NotYet
        } else {
            Phase::Now
        }
    }

    /// Whether a new assignment may have it.
    ///
    /// # Errors
    /// [`WindowError`].
    pub fn check(self, now: Timestamp) -> Result<(), WindowError> {
        match (self.from, self.until) {
            (Some(from), Some(until)) if until <= from => Err(WindowError::Backwards),
            (_, Some(until)) if until <= now => Err(WindowError::Over),
            (_, Some(_) | None) => Ok(()),
        }
    }
}

/// Where a right is used: in the organization as a whole, or on what belongs to one team.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    Organization,
    Team(TeamId),
}

impl Within {
    /// A role that was given here reaches there: one of the organization everywhere, one of a team on that team alone.
    #[must_use]
    pub fn reaches(given: Option<TeamId>, used: Self) -> bool {
        match (given, used) {
            (None, Self::Organization | Self::Team(_)) => true,
            (Some(given), Self::Team(used)) => given == used,
            (Some(_), Self::Organization) => false,
        }
    }
}

/// A member has a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub id: AssignmentId,
    pub user: UserId,
    pub role: RoleRef,
    /// The team on whose things alone it counts.
    pub team: Option<TeamId>,
    pub window: Window,
}

impl Assignment {
    /// Whether it makes its user an admin on whom the organization can rely: of the whole of it, now, and without an end.
    #[must_use]
    pub fn is_lasting_admin(&self, now: Timestamp) -> bool {
        self.role == RoleRef::BuiltIn(BuiltIn::Admin)
            && self.team.is_none()
            && self.window.until.is_none()
            && self.window.at(now) == Phase::Now
    }
}

/// The organization would have nobody left who can set it right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an organization keeps one admin without a time limit: make another one first")]
pub struct LastAdmin;

/// The last admin rule: users with a lasting admin's role before and after a change. An organization that never had one (keys alone)
/// loses none.
///
/// # Errors
/// [`LastAdmin`].
pub fn keep_an_admin(before: u64, after: u64) -> Result<(), LastAdmin> {
    if before > 0 && after == 0 { Err(LastAdmin) } else { Ok(()) }
}

/// How long somebody holds all that is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// These not, now.
    Lacks(PermissionSet),
    /// Without interruption until then.
    Until(Timestamp),
    Forever,
}

/// Why somebody may not give what he is about to give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantRefused {
    #[error("nobody gives or takes what he does not hold himself, and this holds more: {}", names(.0))]
    Lacks(PermissionSet),
    /// Otherwise a right for an hour would become one for ever.
    #[error("nobody gives anything for longer than he holds it himself: until {0} at most")]
    Outlives(Timestamp),
}

fn names(set: &PermissionSet) -> String {
    set.iter().map(Permission::as_str).collect::<Vec<_>>().join(", ")
}

impl Hold {
    /// The grant rule: one gives only what one holds, where one holds it, and for no longer.
    ///
    /// # Errors
    /// [`GrantRefused`].
    pub fn may_give(self, until: Option<Timestamp>) -> Result<(), GrantRefused> {
        match self {
            Self::Lacks(missing) => Err(GrantRefused::Lacks(missing)),
            Self::Until(end) if until.is_none_or(|until| until > end) => Err(GrantRefused::Outlives(end)),
            Self::Until(_) | Self::Forever => Ok(()),
        }
    }

    /// One takes away only what one holds oneself; for how long does not matter.
    ///
    /// # Errors
    /// [`GrantRefused::Lacks`].
    pub fn may_take(self) -> Result<(), GrantRefused> {
        match self {
            Self::Lacks(missing) => Err(GrantRefused::Lacks(missing)),
            Self::Until(_) | Self::Forever => Ok(()),
        }
    }
}

/// What one member of an organization has: assignments with all that their roles give. Computed once per state of the policy; the
/// clock is asked at each use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing(Vec<(Assignment, PermissionSet)>);

/// One assignment's part in a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    pub assignment: Assignment,
    /// From the assigned role to the one that gives the permission by itself.
    pub way: Vec<RoleRef>,
    pub verdict: Verdict,
}

/// Whether an assignment that holds the permission counts here and now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Counts,
    NotYet,
    Over,
    /// It was given for a team's things, and this is not about them.
    OtherTeam,
}

impl Verdict {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counts => "counts",
            Self::NotYet => "not_yet",
            Self::Over => "over",
            Self::OtherTeam => "other_team",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a member may or may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub permission: Permission,
    pub is_allowed: bool,
    /// The member's assignments whose role holds the permission, those that count first.
    pub reasons: Vec<Reason>,
    /// The roles that hold it: what somebody who lacks it may ask for.
    pub holders: Vec<RoleRef>,
}

impl Standing {
    #[must_use]
    pub fn new(assignments: impl IntoIterator<Item = Assignment>, roles: &Roles) -> Self {
        Self(assignments.into_iter().map(|given| (given, roles.permissions_of(given.role))).collect())
    }

    pub fn assignments(&self) -> impl Iterator<Item = &Assignment> {
        self.0.iter().map(|(given, _)| given)
    }

    /// What the member may there at that moment.
    #[must_use]
    pub fn permissions(&self, within: Within, now: Timestamp) -> PermissionSet {
        self.0
            .iter()
            .filter(|(given, _)| Within::reaches(given.team, within) && given.window.at(now) == Phase::Now)
            .fold(PermissionSet::EMPTY, |set, (_, gives)| set.union(*gives))
    }

    /// Whether the member gives others rights in the organization, now or later without anybody's doing: what makes an administrator of
    /// somebody, whatever the role is called.
    #[must_use]
    pub fn administers(&self, now: Timestamp) -> bool {
        let gives_rights = |gives: PermissionSet| gives.contains(Permission::RolesAssign);
        self.0.iter().any(|(given, gives)| gives_rights(*gives) && given.window.at(now) != Phase::Over)
    }

    /// How long the member holds all of `wanted` there, from `now` on and without interruption.
    #[must_use]
    pub fn hold(&self, wanted: PermissionSet, within: Within, now: Timestamp) -> Hold {
        let missing = wanted.without(self.permissions(within, now));
        if !missing.is_empty() {
            return Hold::Lacks(missing);
        }
        let ends = wanted.iter().filter_map(|permission| self.end_of(permission, within, now));
        ends.min().map_or(Hold::Forever, Hold::Until)
    }

    /// When a permission that is held now is no longer; `None`: never. One window may take over from another.
    fn end_of(&self, permission: Permission, within: Within, now: Timestamp) -> Option<Timestamp> {
        let mut reached = now;
        loop {
            let mut further = reached;
            for (given, gives) in &self.0 {
                let counts = gives.contains(permission) && Within::reaches(given.team, within);
                if counts && given.window.at(reached) == Phase::Now {
                    further = further.max(given.window.until?);
                }
            }
            if further == reached {
                return Some(reached);
            }
            reached = further;
        }
    }

    /// Why the member may or may not. Agrees with [`permissions`](Self::permissions) always.
    #[must_use]
    pub fn explain(&self, roles: &Roles, permission: Permission, within: Within, now: Timestamp) -> Explanation {
        let mut reasons: Vec<Reason> = self
            .assignments()
            .filter_map(|given| {
                let way = roles.way_to(given.role, permission)?;
                let verdict = match (given.window.at(now), Within::reaches(given.team, within)) {
                    (Phase::Now, true) => Verdict::Counts,
                    (Phase::Over, true | false) => Verdict::Over,
                    (Phase::NotYet | Phase::Now, false) => Verdict::OtherTeam,
                    (Phase::NotYet, true) => Verdict::NotYet,
                };
                Some(Reason { assignment: *given, way, verdict })
            })
            .collect();
        reasons.sort_by_key(|reason| (reason.verdict != Verdict::Counts, reason.assignment.id));
        let is_allowed = reasons.iter().any(|reason| reason.verdict == Verdict::Counts);
        Explanation { permission, is_allowed, reasons, holders: roles.holders_of(permission) }
    }
}
