//! What can be said in an audit log: closed lists, so that a filter, a rule or a retention period misses nothing.

use serde::{Deserialize, Serialize};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)* }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// Reads what [`as_str`](Self::as_str) writes.
            #[must_use]
            pub fn from_name(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)* _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// What an entry is about. Retention is set for each of them.
    Category {
        /// Who signed in, with what, and what became of it.
        Authentication = "authentication",
        /// Who may do what: roles, assignments, refusals.
        Authorization = "authorization",
        /// Who saw or took out data.
        DataAccess = "data_access",
        /// Keys and machines that call the API.
        Api = "api",
        /// How the organization is set up: plugins, grants, secrets, workflows.
        Configuration = "configuration",
        /// What threatens or protects: alerts, blocks, keys at rest.
        Security = "security",
        /// What law and policy ask for: retention, erasure.
        Compliance = "compliance",
        /// What the host does by itself.
        System = "system",
    }
}

words! {
    /// How much attention an entry deserves, least first.
    Severity {
        Info = "info",
        Notice = "notice",
        Warning = "warning",
        Error = "error",
        Critical = "critical",
    }
}

words! {
    /// What became of the act.
    Outcome {
        Success = "success",
        /// The actor was not allowed to.
        Denied = "denied",
        /// It was allowed and did not work.
        Failed = "failed",
    }
}

words! {
    /// Who acts.
    ActorKind {
        User = "user",
        /// An API key.
        Key = "key",
        Plugin = "plugin",
        /// The host itself, or its operator at the console.
        System = "system",
        /// Nobody who is known: a sign-in that was refused.
        Unknown = "unknown",
    }
}

words! {
    /// What kind of act an event is, whatever it acts on.
    Action {
        Create = "create",
        Read = "read",
        Update = "update",
        Delete = "delete",
        Grant = "grant",
        Revoke = "revoke",
        Execute = "execute",
        SignIn = "sign_in",
        Refuse = "refuse",
        Detect = "detect",
        Attest = "attest",
    }
}

macro_rules! events {
    ($($variant:ident = $text:literal: $category:ident, $action:ident, $severity:ident;)*) => {
        words! {
            /// What happened: a noun and a participle. The list only grows; a name never changes its meaning.
            EventType { $($variant = $text,)* }
        }

        impl EventType {
            #[must_use]
            pub const fn category(self) -> Category {
                match self { $(Self::$variant => Category::$category,)* }
            }

            #[must_use]
            pub const fn action(self) -> Action {
                match self { $(Self::$variant => Action::$action,)* }
            }

            /// What became of it: of what was refused, that the actor was not allowed to. Whoever refuses somebody else a role did so.
            #[must_use]
            pub fn outcome(self) -> Outcome {
                match self.action() {
                    Action::Refuse if self != Self::RoleRefused => Outcome::Denied,
                    Action::Refuse
                    | Action::Create
                    | Action::Read
                    | Action::Update
                    | Action::Delete
                    | Action::Grant
                    | Action::Revoke
                    | Action::Execute
                    | Action::SignIn
                    | Action::Detect
                    | Action::Attest => Outcome::Success,
                }
            }

            /// The severity unless the entry has a reason for another: a refusal is at least a warning.
            #[must_use]
            pub const fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity,)* }
            }
        }
    };
}

events! {
    SessionStarted = "session.started": Authentication, SignIn, Info;
    SessionEnded = "session.ended": Authentication, SignIn, Info;
    SessionRefused = "session.refused": Authentication, Refuse, Warning;
    SessionRevoked = "session.revoked": Authentication, Revoke, Notice;
    TokenIssued = "token.issued": Authentication, SignIn, Info;
    TokenReused = "token.reused": Security, Detect, Critical;
    SessionSwitched = "session.switched": Authentication, Update, Info;
    TokenRevoked = "token.revoked": Authentication, Revoke, Notice;
    StepUpPassed = "step_up.passed": Authentication, SignIn, Info;
    StepUpRefused = "step_up.refused": Authentication, Refuse, Warning;
    MfaSetUpBegun = "mfa.set_up_begun": Authentication, Create, Info;
    MfaEnrolled = "mfa.enrolled": Authentication, Create, Notice;
    MfaPassed = "mfa.passed": Authentication, SignIn, Info;
    MfaRefused = "mfa.refused": Authentication, Refuse, Warning;
    MfaDisabled = "mfa.disabled": Authentication, Delete, Warning;
    MfaCodeMailed = "mfa.code_mailed": Authentication, Create, Info;
    BackupCodeUsed = "backup_code.used": Authentication, SignIn, Warning;
    BackupCodesMade = "backup_codes.made": Authentication, Create, Notice;
    PasskeyAdded = "passkey.added": Authentication, Create, Notice;
    PasskeyRemoved = "passkey.removed": Authentication, Delete, Notice;
    PasswordChanged = "password.changed": Authentication, Update, Notice;
    PasswordResetRequested = "password.reset_requested": Authentication, Update, Notice;
    PasswordReset = "password.reset": Authentication, Update, Warning;
    EmailChangeRequested = "email.change_requested": Authentication, Update, Notice;
    EmailChanged = "email.changed": Authentication, Update, Warning;
    EmailVerified = "email.verified": Authentication, Attest, Info;
    DeviceTrusted = "device.trusted": Authentication, Create, Notice;
    DeviceRevoked = "device.revoked": Authentication, Revoke, Notice;

    AccessRefused = "access.refused": Authorization, Refuse, Warning;
    RoleCreated = "role.created": Authorization, Create, Notice;
    RoleUpdated = "role.updated": Authorization, Update, Notice;
    RoleDeleted = "role.deleted": Authorization, Delete, Notice;
    RoleAssigned = "role.assigned": Authorization, Grant, Notice;
    RoleUnassigned = "role.unassigned": Authorization, Revoke, Notice;
    RoleRequested = "role.requested": Authorization, Create, Info;
    RoleApproved = "role.approved": Authorization, Grant, Notice;
    RoleRefused = "role.refused": Authorization, Refuse, Notice;
    RoleWithdrawn = "role.withdrawn": Authorization, Update, Info;
    OrgEntered = "org.entered": Authorization, Grant, Warning;

    RecordRead = "record.read": DataAccess, Read, Info;
    FieldRevealed = "field.revealed": DataAccess, Read, Notice;
    DataExported = "data.exported": DataAccess, Read, Notice;
    AuditRead = "audit.read": DataAccess, Read, Info;
    AuditExported = "audit.exported": DataAccess, Read, Notice;
    AuditVerified = "audit.verified": DataAccess, Read, Info;

    ApiKeyCreated = "api_key.created": Api, Create, Notice;
    ApiKeyUpdated = "api_key.updated": Api, Update, Notice;
    ApiKeyRotated = "api_key.rotated": Api, Update, Notice;
    ApiKeyRevoked = "api_key.revoked": Api, Revoke, Notice;
    ApiKeyLeaked = "api_key.leaked": Security, Detect, Critical;
    RequestRefused = "request.refused": Api, Refuse, Warning;
    RateLimitExceeded = "rate_limit.exceeded": Api, Refuse, Warning;

    OrgCreated = "org.created": Configuration, Create, Notice;
    OrgUpdated = "org.updated": Configuration, Update, Notice;
    OrgShareSet = "org.share_set": Configuration, Update, Notice;
    OrgQuotaSet = "org.quota_set": Configuration, Update, Notice;
    UserInvited = "user.invited": Configuration, Create, Notice;
    InvitationRevoked = "invitation.revoked": Configuration, Revoke, Notice;
    UserJoined = "user.joined": Configuration, Create, Notice;
    UserUpdated = "user.updated": Configuration, Update, Notice;
    UserDisabled = "user.disabled": Configuration, Revoke, Warning;
    UserEnabled = "user.enabled": Configuration, Grant, Notice;
    UserRemoved = "user.removed": Configuration, Delete, Warning;
    TeamCreated = "team.created": Configuration, Create, Notice;
    TeamUpdated = "team.updated": Configuration, Update, Notice;
    TeamDeleted = "team.deleted": Configuration, Delete, Notice;
    SettingsChanged = "settings.changed": Configuration, Update, Notice;
    PluginUploaded = "plugin.uploaded": Configuration, Create, Notice;
    PluginDeleted = "plugin.deleted": Configuration, Delete, Notice;
    InstallationCreated = "installation.created": Configuration, Create, Notice;
    InstallationUpdated = "installation.updated": Configuration, Update, Notice;
    InstallationUninstalled = "installation.uninstalled": Configuration, Delete, Notice;
    GrantsChanged = "grants.changed": Configuration, Grant, Warning;
    SecretStored = "secret.stored": Configuration, Update, Notice;
    SecretDeleted = "secret.deleted": Configuration, Delete, Notice;
    WorkflowCreated = "workflow.created": Configuration, Create, Notice;
    WorkflowUpdated = "workflow.updated": Configuration, Update, Notice;
    WorkflowActivated = "workflow.activated": Configuration, Update, Notice;
    WorkflowDeactivated = "workflow.deactivated": Configuration, Update, Notice;
    HookRotated = "hook.rotated": Configuration, Update, Notice;

    AlertRaised = "alert.raised": Security, Detect, Warning;
    BlockPlaced = "block.placed": Security, Revoke, Warning;
    BlockLifted = "block.lifted": Security, Grant, Notice;
    IpRulesChanged = "ip_rules.changed": Security, Update, Warning;
    KeyRotated = "key.rotated": Security, Update, Notice;
    RootKeyAdded = "root_key.added": Security, Create, Notice;
    RootKeyUsed = "root_key.used": Security, Update, Warning;
    RootKeyRemoved = "root_key.removed": Security, Delete, Warning;
    KeyRetired = "key.retired": Security, Delete, Notice;
    KeyRotationIncomplete = "key.rotation_incomplete": Security, Detect, Error;
    RowRefused = "audit.row_refused": Security, Detect, Critical;

    PayloadsExpired = "audit.payloads_expired": Compliance, Delete, Notice;
    PayloadsErased = "audit.payloads_erased": Compliance, Delete, Warning;
    RetentionChanged = "audit.retention_changed": Compliance, Update, Warning;
    HistoryRetentionChanged = "retention.changed": Compliance, Update, Warning;
    ErasureRequested = "erasure.requested": Compliance, Create, Notice;
    ErasureDone = "erasure.done": Compliance, Delete, Notice;

    LogOpened = "audit.log_opened": System, Create, Notice;
    LogKeyRotated = "audit.log_key_rotated": System, Update, Warning;
    LogAlive = "audit.log_alive": System, Attest, Info;
    RunStarted = "run.started": System, Execute, Info;
    RunCancelled = "run.cancelled": System, Execute, Notice;
    RunRetried = "run.retried": System, Execute, Notice;
    BreakerOpened = "workflow.breaker_opened": System, Detect, Warning;
    BreakerClosed = "workflow.breaker_closed": System, Update, Notice;
    PluginCalled = "plugin.called": System, Execute, Info;
    DeadLetterResumed = "dead_letter.resumed": System, Execute, Notice;
    DeadLetterDiscarded = "dead_letter.discarded": System, Delete, Notice;
    DeadLetterTaskStarted = "dead_letter_task.started": System, Execute, Notice;
    DeadLetterTaskStopped = "dead_letter_task.stopped": System, Update, Notice;
    DeadLetterTaskEnded = "dead_letter_task.ended": System, Execute, Info;
    BackupMade = "backup.made": System, Create, Notice;
    BackupRestored = "backup.restored": System, Update, Warning;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_category_says_something_and_each_name_is_read_back() {
        assert!(EventType::ALL.len() >= 30);
        assert_eq!(Category::ALL.len(), 8);
        for category in Category::ALL {
            assert!(EventType::ALL.iter().any(|event| event.category() == *category), "{category}");
        }
        for event in EventType::ALL {
            assert_eq!(EventType::from_name(event.as_str()), Some(*event));
            assert_eq!(serde_json::to_string(event).unwrap(), format!("\"{event}\""));
            let parts: Vec<_> = event.as_str().split('.').collect();
            assert!(parts.len() == 2 && parts.iter().all(|part| part.starts_with(char::is_alphabetic)), "{event}");
        }
        assert_eq!(EventType::from_name("session.Started"), None);
    }

    #[test]
    fn who_was_refused_was_denied() {
        for event in [EventType::AccessRefused, EventType::RequestRefused, EventType::SessionRefused] {
            assert_eq!(event.outcome(), Outcome::Denied, "{event}");
        }
        for event in [EventType::RoleRefused, EventType::RoleAssigned, EventType::AuditVerified] {
            assert_eq!(event.outcome(), Outcome::Success, "{event}");
        }
    }

    #[test]
    fn a_refusal_is_at_least_a_notice_and_what_was_detected_a_warning() {
        for event in EventType::ALL {
            let least = match event.action() {
                Action::Detect => Severity::Warning,
                Action::Refuse | Action::Delete | Action::Revoke | Action::Grant => Severity::Notice,
                Action::Create | Action::Read | Action::Update | Action::Execute | Action::SignIn | Action::Attest => {
                    Severity::Info
                }
            };
            assert!(event.severity() >= least, "{event}");
        }
        assert!(Severity::Critical > Severity::Error && Severity::Error > Severity::Warning);
    }
}
