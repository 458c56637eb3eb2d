//! The catalogue: every permission with its category, what it lets people do, and which built-in roles hold it.
//!
//! One line a permission. Its columns are admin, manager, analyst and viewer, and the compiler asks for an answer in each of them. The
//! super admin holds all; an API user holds none (its keys' scopes say what it may). What no admin holds is the platform's: it
//! cannot be given inside an organization, by role or by key.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::role::BuiltIn;

macro_rules! held {
    (y) => {
        true
    };
    (n) => {
        false
    };
}

macro_rules! permissions {
    ($($name:ident = $text:literal, $category:ident, [$admin:ident $manager:ident $analyst:ident $viewer:ident], $says:literal;)*) => {
        /// What a caller may do inside one organization, or on the platform. The text form is what roles, API keys, the API and
        /// the audit log show.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Permission { $(#[doc = $says] $name,)* }

        impl Permission {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            #[must_use]
            pub const fn category(self) -> Category {
                match self { $(Self::$name => Category::$category,)* }
            }

            /// What it lets people do, as a sentence for them.
            #[must_use]
            pub const fn says(self) -> &'static str {
                match self { $(Self::$name => $says,)* }
            }

            #[must_use]
            pub const fn is_held_by(self, role: BuiltIn) -> bool {
                let [admin, manager, analyst, viewer] = match self {
                    $(Self::$name => [held!($admin), held!($manager), held!($analyst), held!($viewer)],)*
                };
                match role {
                    BuiltIn::SuperAdmin => true,
                    BuiltIn::Admin => admin,
                    BuiltIn::Manager => manager,
                    BuiltIn::Analyst => analyst,
                    BuiltIn::Viewer => viewer,
                    BuiltIn::ApiUser => false,
                }
            }
        }
    };
}

permissions! {
    UsersRead = "users.read", Users, [y y y y], "Sees the members and their roles.";
    UsersInvite = "users.invite", Users, [y n n n], "Invites people into the organization.";
    UsersUpdate = "users.update", Users, [y n n n], "Changes what the organization keeps about a member.";
    UsersDisable = "users.disable", Users, [y n n n], "Disables members and enables them again.";
    UsersRemove = "users.remove", Users, [y n n n], "Removes members.";
    SessionsRead = "sessions.read", Users, [y n n n], "Sees where members are signed in.";
    SessionsRevoke = "sessions.revoke", Users, [y n n n], "Ends members' sessions.";

    OrgRead = "org.read", Organizations, [y y y y], "Sees the organization, its quotas and how long what has ended is kept.";
    OrgUpdate = "org.update", Organizations, [y n n n], "Changes the organization's name and address.";

    RolesRead = "roles.read", Roles, [y y y y], "Sees the roles and what they hold.";
    RolesWrite = "roles.write", Roles, [y n n n], "Makes, changes and deletes the organization's own roles.";
    RolesAssign = "roles.assign", Roles, [y n n n], "Gives roles to members and takes them away, as far as it holds what they hold.";
    RolesRequest = "roles.request", Roles, [y y y y], "Asks for a role for some hours.";
    RolesApprove = "roles.approve", Roles, [y n n n], "Approves and refuses what others ask for.";
    AccessCheck = "access.check", Roles, [y n n n], "Asks what other members may do, and why.";

    TeamsRead = "teams.read", Teams, [y y y y], "Sees the teams and who is in them.";
    TeamsWrite = "teams.write", Teams, [y y n n], "Makes, changes and deletes teams, and says who is in them.";

    LeadsRead = "leads.read", Leads, [y y y y], "Sees leads, as far as field permissions show them.";
    LeadsWrite = "leads.write", Leads, [y y n n], "Makes and changes leads.";
    LeadsDelete = "leads.delete", Leads, [y y n n], "Deletes leads.";
    ContactsRead = "contacts.read", Contacts, [y y y y], "Sees contacts, as far as field permissions show them.";
    ContactsWrite = "contacts.write", Contacts, [y y n n], "Makes and changes contacts.";
    ContactsDelete = "contacts.delete", Contacts, [y y n n], "Deletes contacts.";
    CompaniesRead = "companies.read", Companies, [y y y y], "Sees companies, as far as field permissions show them.";
    CompaniesWrite = "companies.write", Companies, [y y n n], "Makes and changes companies.";
    CompaniesDelete = "companies.delete", Companies, [y y n n], "Deletes companies.";
    DealsRead = "deals.read", Deals, [y y y y], "Sees deals, as far as field permissions show them.";
    DealsWrite = "deals.write", Deals, [y y n n], "Makes and changes deals, and moves them through their stages.";
    DealsDelete = "deals.delete", Deals, [y y n n], "Deletes deals.";
    NotesRead = "notes.read", Notes, [y y y y], "Sees notes on records.";
    NotesWrite = "notes.write", Notes, [y y n n], "Writes notes on records.";
    NotesDelete = "notes.delete", Notes, [y y n n], "Deletes notes.";
    CampaignsRead = "campaigns.read", Campaigns, [y y y y], "Sees campaigns.";
    CampaignsWrite = "campaigns.write", Campaigns, [y y n n], "Makes and changes campaigns.";
    CampaignsSend = "campaigns.send", Campaigns, [y y n n], "Sends campaigns out and stops them.";
    TasksRead = "tasks.read", Tasks, [y y y y], "Sees tasks.";
    TasksWrite = "tasks.write", Tasks, [y y n n], "Makes, assigns and completes tasks.";
    TasksDelete = "tasks.delete", Tasks, [y y n n], "Deletes tasks.";
    TicketsRead = "tickets.read", Tickets, [y y y y], "Sees tickets.";
    TicketsWrite = "tickets.write", Tickets, [y y n n], "Makes, changes and closes tickets.";
    TicketsDelete = "tickets.delete", Tickets, [y y n n], "Deletes tickets.";

    WorkflowsRead = "workflows.read", Workflows, [y y y y], "Sees workflows and their versions.";
    WorkflowsWrite = "workflows.write", Workflows, [y y n n], "Makes and changes workflows.";
    WorkflowsActivate = "workflows.activate", Workflows, [y y n n], "Activates and deactivates workflows, rotates their webhook addresses, closes their breakers.";

    RunsRead = "runs.read", Runs, [y y y n], "Sees runs with the data that they carry.";
    RunsStart = "runs.start", Runs, [y y y n], "Starts runs.";
    RunsControl = "runs.control", Runs, [y y n n], "Cancels, retries, resumes and discards runs.";
    CallsRead = "calls.read", Runs, [y y n n], "Sees single calls of plugins with their input and output.";
    JobsRead = "jobs.read", Runs, [y y y n], "Sees the queue.";
    EventsRead = "events.read", Runs, [y y y n], "Sees events.";

    PluginsRead = "plugins.read", Plugins, [y y y y], "Sees plugins and installations.";
    PluginsUpload = "plugins.upload", Plugins, [y n n n], "Uploads and deletes plugin versions.";
    PluginsInstall = "plugins.install", Plugins, [y y n n], "Installs, configures, disables and removes plugins, without granting anything new.";
    PluginsGrant = "plugins.grant", Plugins, [y n n n], "Decides what an installation may do.";
    PluginsCall = "plugins.call", Plugins, [y y n n], "Makes single calls of plugins by hand.";
    PluginsPublish = "plugins.publish", Plugins, [y n n n], "Publishes plugins to the marketplace in the organization's name.";
    PluginsReview = "plugins.review", Plugins, [n n n n], "Reviews what is published to the marketplace.";

    IncidentsRead = "incidents.read", Incidents, [y y y y], "Sees incidents and their timelines.";
    IncidentsWrite = "incidents.write", Incidents, [y y n n], "Opens, changes, assigns and closes incidents.";
    IncidentsRollback = "incidents.rollback", Incidents, [y y n n], "Carries out rollback procedures.";

    NotificationsRead = "notifications.read", Notifications, [y y y y], "Sees notification rules and what was delivered.";
    NotificationsWrite = "notifications.write", Notifications, [y y n n], "Changes notification rules and channels.";

    ScoringRead = "scoring.read", Scoring, [y y y y], "Sees scores, their explanation and the models.";
    ScoringWrite = "scoring.write", Scoring, [y n y n], "Changes scoring models and weights.";

    AnalyticsRead = "analytics.read", Analytics, [y y y y], "Sees reports and figures.";
    AnalyticsWrite = "analytics.write", Analytics, [y n y n], "Makes and changes reports.";

    ExportsRead = "exports.read", Exports, [y n y n], "Sees and downloads exports.";
    ExportsCreate = "exports.create", Exports, [y n y n], "Takes data out as exports.";

    AuditRead = "audit.read", Audit, [y n n n], "Reads the audit log, which notes the reading.";
    AuditExport = "audit.export", Audit, [y n n n], "Takes the audit log out with its proofs.";

    ApiKeysRead = "api_keys.read", ApiKeys, [y n n n], "Sees API keys, without their secrets.";
    ApiKeysWrite = "api_keys.write", ApiKeys, [y n n n], "Makes and revokes API keys.";

    SettingsRead = "settings.read", Settings, [y y n n], "Sees the organization's settings and feature flags.";
    SettingsWrite = "settings.write", Settings, [y n n n], "Changes the organization's settings and feature flags.";
    SecurityRead = "security.read", Settings, [y n n n], "Sees sign-in rules, address rules, blocks and alerts.";
    SecurityWrite = "security.write", Settings, [y n n n], "Changes sign-in rules and address rules, and lifts blocks.";

    RetentionWrite = "retention.write", Compliance, [y n n n], "Decides how long what has ended is kept.";
    ComplianceRead = "compliance.read", Compliance, [y n n n], "Sees the register of personal data, requests and holds.";
    ComplianceWrite = "compliance.write", Compliance, [y n n n], "Changes field permissions, masking, holds and the register of personal data.";
    ComplianceErase = "compliance.erase", Compliance, [y n n n], "Hands out and erases a person's data.";

    SecretsWrite = "secrets.write", Secrets, [y n n n], "Stores and removes secrets, which nobody reads.";
    EncryptionRead = "encryption.read", Secrets, [y n n n], "Sees the state of the organization's encryption keys.";
    EncryptionRotate = "encryption.rotate", Secrets, [y n n n], "Rotates the organization's encryption keys.";

    SystemRead = "system.read", System, [n n n n], "Sees the platform's health, nodes and organizations.";
    SystemWrite = "system.write", System, [n n n n], "Changes the platform's settings, quotas and ceilings.";
    SystemEnter = "system.enter", System, [n n n n], "Enters an organization, for a reason and a limited time, seen by that organization.";
}

macro_rules! categories {
    ($($name:ident = $text:literal, $title:literal;)*) => {
        /// What a permission is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Category { $($name,)* }

        impl Category {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Its heading for people.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

categories! {
    Users = "users", "Members and sessions";
    Organizations = "organizations", "The organization";
    Roles = "roles", "Roles and access";
    Teams = "teams", "Teams";
    Leads = "leads", "Leads";
    Contacts = "contacts", "Contacts";
    Companies = "companies", "Companies";
    Deals = "deals", "Deals";
    Notes = "notes", "Notes";
    Campaigns = "campaigns", "Campaigns";
    Tasks = "tasks", "Tasks";
    Tickets = "tickets", "Tickets";
    Workflows = "workflows", "Workflows";
    Runs = "runs", "Runs, queue and events";
    Plugins = "plugins", "Plugins";
    Incidents = "incidents", "Incidents";
    Notifications = "notifications", "Notifications";
    Scoring = "scoring", "Scoring";
    Analytics = "analytics", "Analytics";
    Exports = "exports", "Exports";
    Audit = "audit", "Audit log";
    ApiKeys = "api_keys", "API keys";
    Settings = "settings", "Settings and security";
    Compliance = "compliance", "Compliance";
    Secrets = "secrets", "Secrets and encryption";
    System = "system", "The platform";
}

impl Permission {
    /// Whether it is about the platform as a whole: no admin of an organization holds it, and nobody can give it there.
    #[must_use]
    pub const fn is_of_platform(self) -> bool {
        !self.is_held_by(BuiltIn::Admin)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Permission {
    type Err = UnknownPermission;

    /// Exactly the name: no other case, no spaces, no wildcard.
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
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct PermissionSet(u128);

const _: () = assert!(Permission::ALL.len() <= 128, "a set has 128 bits");

impl PermissionSet {
    pub const EMPTY: Self = Self(0);

    /// Every permission that can be held inside an organization: what its admins have.
    #[must_use]
    pub fn all() -> Self {
        Permission::ALL.iter().copied().filter(|p| !p.is_of_platform()).collect()
    }

    #[must_use]
    pub const fn one(permission: Permission) -> Self {
        Self(1 << permission as u8)
    }

    #[must_use]
    pub const fn contains(self, permission: Permission) -> bool {
        self.0 & (1 << permission as u8) != 0
    }

    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[must_use]
    pub const fn is_subset_of(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// What either holds.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What both hold.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What this holds and the other does not.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    #[must_use]
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// In the catalogue's order.
    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL.iter().copied().filter(move |p| self.contains(*p))
    }
}

impl FromIterator<Permission> for PermissionSet {
    fn from_iter<T: IntoIterator<Item = Permission>>(permissions: T) -> Self {
        permissions.into_iter().fold(Self::EMPTY, |set, p| set.union(Self::one(p)))
    }
}

impl fmt::Debug for PermissionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Permission::as_str)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn there_are_enough_and_each_has_one_name_of_one_form() {
        assert!(Permission::ALL.len() >= 60);
        let names: BTreeSet<&str> = Permission::ALL.iter().map(|p| p.as_str()).collect();
        assert_eq!(names.len(), Permission::ALL.len());
        for permission in Permission::ALL {
            let parts: Vec<&str> = permission.as_str().split('.').collect();
            let word = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            assert!(parts.len() == 2 && parts.iter().all(word), "{permission}");
            assert!(permission.says().ends_with('.'), "{permission}");
            assert_eq!(permission.as_str().parse(), Ok(*permission));
            assert_eq!(PermissionSet::one(*permission).iter().collect::<Vec<_>>(), [*permission]);
        }
    }

    #[test]
    fn each_category_has_permissions_which_stand_together() {
        let mut order: Vec<Category> = Permission::ALL.iter().map(|p| p.category()).collect();
        order.dedup();
        let unique: BTreeSet<Category> = order.iter().copied().collect();
        assert_eq!(unique.len(), Category::ALL.len());
        assert_eq!(order.len(), unique.len(), "a category is divided: {order:?}");
    }

    /// Case folding and wildcards in names of rights have made others root (CVE-2025-5999, CVE-2025-64761, GHSA-59w7-v8rr-pr4p).
    #[test]
    fn a_name_in_another_form_is_no_permission() {
        for text in [
            "Org.Read",
            "ORG.READ",
            " org.read",
            "org.read ",
            "org.*",
            "*",
            "org",
            "org.",
            "",
            "org.read\0",
            "org.reａd",
        ] {
            assert!(text.parse::<Permission>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_the_platforms_is_nobodys_in_an_organization() {
        for permission in Permission::ALL {
            if permission.is_of_platform() {
                for role in BuiltIn::ALL {
                    assert_eq!(permission.is_held_by(role), role == BuiltIn::SuperAdmin, "{permission} of {role}");
                }
                assert!(!PermissionSet::all().contains(*permission));
            }
        }
        assert!(Permission::ALL.iter().any(|p| p.is_of_platform()));
    }
}
