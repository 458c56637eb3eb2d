//! Every problem type that the API can answer: slug, status, title. Clients build on the slugs, so none is ever renamed.

use http::StatusCode;

use super::TYPE_BASE;

/// One problem type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) slug: &'static str,
    pub(crate) status: StatusCode,
    pub(crate) title: &'static str,
}

macro_rules! kinds {
    ($($name:ident = $slug:literal, $status:ident, $title:literal;)*) => {
        /// The problem types, those that use cases name by slug included.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Kind { $($name,)* }

        impl Kind {
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name,)*];

            pub(crate) const fn entry(self) -> Entry {
                match self {
                    $(Self::$name => Entry { slug: $slug, status: StatusCode::$status, title: $title },)*
                }
            }
        }
    };
}

kinds! {
    // The request as such.
    InvalidJson = "invalid-json", BAD_REQUEST, "The body is not JSON";
    InvalidQuery = "invalid-query", BAD_REQUEST, "A query parameter is not valid";
    InvalidCursor = "invalid-cursor", BAD_REQUEST, "The cursor is not valid";
    InvalidHeader = "invalid-header", BAD_REQUEST, "A header is not valid";
    InvalidRequest = "invalid-request", BAD_REQUEST, "The request cannot be read";
    Unauthenticated = "unauthenticated", UNAUTHORIZED, "Credentials are needed";
    SignatureRequired = "signature-required", UNAUTHORIZED, "The request has to be signed";
    InvalidSignature = "invalid-signature", UNAUTHORIZED, "The request's signature does not hold";
    DigestMismatch = "digest-mismatch", BAD_REQUEST, "The body is not the one that its digest is of";
    StepUpRequired = "step-up-required", UNAUTHORIZED, "A fresh proof of who you are is needed";
    SessionNeeded = "session-needed", FORBIDDEN, "Only a signed-in browser can do this";
    ForeignOrigin = "foreign-origin", FORBIDDEN, "The request does not come from one of our pages";
    MfaRequired = "mfa-required", FORBIDDEN, "The organization asks for a second factor";
    Forbidden = "forbidden", FORBIDDEN, "The credentials do not permit this";
    KeyAddressRefused = "key-address-refused", FORBIDDEN, "The key may not be used from this address";
    AddressRefused = "address-refused", FORBIDDEN, "The organization is not reached from this address";
    NotFound = "not-found", NOT_FOUND, "Not found";
    MethodNotAllowed = "method-not-allowed", METHOD_NOT_ALLOWED, "The resource does not have this method";
    BodyTimeout = "body-timeout", REQUEST_TIMEOUT, "The body did not arrive in time";
    Conflict = "conflict", CONFLICT, "The request conflicts with another one";
    Stale = "stale-version", PRECONDITION_FAILED, "It was changed since it was read";
    TooLarge = "too-large", PAYLOAD_TOO_LARGE, "The body is too large";
    UnsupportedMediaType = "unsupported-media-type", UNSUPPORTED_MEDIA_TYPE, "The body's type is not one that is read here";
    InvalidBody = "invalid-body", UNPROCESSABLE_ENTITY, "The body does not have the expected shape";
    IfMatchRequired = "if-match-required", PRECONDITION_REQUIRED, "If-Match is required";
    TooManyAttempts = "too-many-attempts", TOO_MANY_REQUESTS, "Too many attempts";
    Busy = "busy", TOO_MANY_REQUESTS, "Too much at once";
    TooManyStarts = "too-many-starts", TOO_MANY_REQUESTS, "Too many starts at once";
    TooManyWaiting = "too-many-waiting", TOO_MANY_REQUESTS, "Too many runs wait already";
    TooManyHeld = "too-many-held", TOO_MANY_REQUESTS, "Too many runs of the workflow wait for its breaker";
    RunsPerMinute = "runs-per-minute", TOO_MANY_REQUESTS, "Too many runs in a minute";
    RateLimited = "rate-limited", TOO_MANY_REQUESTS, "Request cannot be satisfied as assigned quota has been exceeded";
    Blocked = "blocked", TOO_MANY_REQUESTS, "Request not satisfied due to detection of abnormal request pattern";
    ReducedCapacity = "reduced-capacity", SERVICE_UNAVAILABLE, "Request cannot be satisfied due to temporary server capacity constraints";
    Internal = "internal", INTERNAL_SERVER_ERROR, "Something failed on our side";
    Unavailable = "unavailable", SERVICE_UNAVAILABLE, "Temporarily unavailable";
    TimedOut = "timed-out", SERVICE_UNAVAILABLE, "The answer took too long";

    // What use cases find in the input.
    InvalidName = "invalid-name", UNPROCESSABLE_ENTITY, "A name is not valid";
    InvalidEmail = "invalid-email", UNPROCESSABLE_ENTITY, "The email address is not valid";
    InvalidPassword = "invalid-password", UNPROCESSABLE_ENTITY, "The password cannot be chosen";
    WrongPassword = "wrong-password", UNPROCESSABLE_ENTITY, "The password is not the current one";
    WrongCode = "wrong-code", UNPROCESSABLE_ENTITY, "The code does not count";
    InvalidMethods = "invalid-methods", UNPROCESSABLE_ENTITY, "The methods leave nothing to prove";
    InvalidPasskey = "invalid-passkey", UNPROCESSABLE_ENTITY, "The passkey's answer does not count";
    SecondFactorRequired = "second-factor-required", UNPROCESSABLE_ENTITY, "A second factor is needed as well";
    InvalidLink = "invalid-link", UNPROCESSABLE_ENTITY, "The link is of no use";
    InvalidAllowList = "invalid-allow-list", UNPROCESSABLE_ENTITY, "The list of networks is not valid";
    InvalidShare = "invalid-share", UNPROCESSABLE_ENTITY, "The share of the workers is not valid";
    InvalidRetention = "invalid-retention", UNPROCESSABLE_ENTITY, "A time of the policy is out of its bounds";
    InvalidErasure = "invalid-erasure", UNPROCESSABLE_ENTITY, "What is to be erased is not said";
    InvalidConsistency = "invalid-consistency", UNPROCESSABLE_ENTITY, "The log has not had these sizes";
    TooManyAuditKeys = "too-many-audit-keys", CONFLICT, "The log has had as many keys as it may";
    InvalidQuota = "invalid-quota", UNPROCESSABLE_ENTITY, "The quota's value is not valid";
    InvalidPermissions = "invalid-permissions", UNPROCESSABLE_ENTITY, "The permissions cannot be given";
    InvalidNetworks = "invalid-networks", UNPROCESSABLE_ENTITY, "The networks cannot be those of the key";
    InvalidSigningKey = "invalid-signing-key", UNPROCESSABLE_ENTITY, "No signature can be checked with this key";
    InvalidExpiry = "invalid-expiry", UNPROCESSABLE_ENTITY, "The time of expiry is not valid";
    InvalidRole = "invalid-role", UNPROCESSABLE_ENTITY, "The role cannot be as it is asked to be";
    UnknownRole = "unknown-role", UNPROCESSABLE_ENTITY, "The organization has no such role";
    UnknownUser = "unknown-user", UNPROCESSABLE_ENTITY, "The organization has no such member";
    UnknownTeam = "unknown-team", UNPROCESSABLE_ENTITY, "The organization has no such team";
    InvalidWindow = "invalid-window", UNPROCESSABLE_ENTITY, "The time is no window";
    InvalidDuration = "invalid-duration", UNPROCESSABLE_ENTITY, "The duration is out of its bounds";
    InvalidChecks = "invalid-checks", UNPROCESSABLE_ENTITY, "There are no questions, or too many";
    ExceedsOwnRights = "exceeds-own-rights", UNPROCESSABLE_ENTITY, "Nobody gives or takes what he does not hold himself";
    InvalidSummary = "invalid-summary", UNPROCESSABLE_ENTITY, "The summary is not valid";
    InvalidWorkflow = "invalid-workflow", UNPROCESSABLE_ENTITY, "The definition has problems";
    InvalidGrace = "invalid-grace", UNPROCESSABLE_ENTITY, "The time of grace is not valid";
    InvalidDeliveryId = "invalid-delivery-id", UNPROCESSABLE_ENTITY, "The delivery id is not valid";
    InvalidVariables = "invalid-variables", UNPROCESSABLE_ENTITY, "The variables do not fit the workflow";
    InvalidIdempotencyKey = "invalid-idempotency-key", UNPROCESSABLE_ENTITY, "The idempotency key is not valid";
    InvalidReason = "invalid-reason", UNPROCESSABLE_ENTITY, "The reason is not valid";
    InvalidLevel = "invalid-level", UNPROCESSABLE_ENTITY, "No key of this level can be rotated here";
    InvalidSelection = "invalid-selection", UNPROCESSABLE_ENTITY, "The selection is not valid";
    UnknownStep = "unknown-step", UNPROCESSABLE_ENTITY, "The definition has no such step";
    InvalidPackage = "invalid-package", UNPROCESSABLE_ENTITY, "The package is not acceptable";
    CompileFailed = "compile-failed", UNPROCESSABLE_ENTITY, "The package does not compile";
    CompileTimeout = "compile-timeout", UNPROCESSABLE_ENTITY, "The package takes too long to compile";
    InvalidInstallation = "invalid-installation", UNPROCESSABLE_ENTITY, "The installation is not valid";
    InvalidGrants = "invalid-grants", UNPROCESSABLE_ENTITY, "The grants do not fit the plugin";
    InvalidSecret = "invalid-secret", UNPROCESSABLE_ENTITY, "The value cannot be stored";
    UnknownSecret = "unknown-secret", UNPROCESSABLE_ENTITY, "The plugin asks for no such secret";
    InvalidCall = "invalid-call", UNPROCESSABLE_ENTITY, "The call does not fit the plugin";

    // What stands against it.
    AlreadySetUp = "already-set-up", CONFLICT, "The server is set up already";
    NoSetUp = "no-set-up", CONFLICT, "No set-up waits for this";
    NoEmailCode = "no-email-code", CONFLICT, "Mail is no second factor here";
    NoPasskeys = "no-passkeys", CONFLICT, "There are no passkeys here";
    TooManyPasskeys = "too-many-passkeys", CONFLICT, "The person has as many passkeys as a person may";
    SecondFactorStays = "second-factor-stays", CONFLICT, "The second factor is asked for";
    NoMail = "no-mail", CONFLICT, "This server sends no mail";
    SignInFirst = "sign-in-first", CONFLICT, "The invitation is to somebody with an account";
    AlreadyMember = "already-member", CONFLICT, "The person is a member already";
    WouldLockOut = "would-lock-out", CONFLICT, "The list would shut out whoever sends it";
    OwnMembership = "own-membership", CONFLICT, "Nobody does this to themselves";
    TooManyTokens = "too-many-tokens", CONFLICT, "The session has as many tokens as it may";
    TooManyKeys = "too-many-keys", CONFLICT, "The organization has as many API keys as it may";
    TooManyInvitations = "too-many-invitations", CONFLICT, "Too many invitations wait";
    UserExists = "user-exists", CONFLICT, "Somebody has this address already";
    OrgExists = "org-exists", CONFLICT, "The organization's name is taken";
    NotOwnKey = "not-own-key", CONFLICT, "The key is not yours to renew";
    OwnKey = "own-key", CONFLICT, "A key cannot revoke itself";
    RoleExists = "role-exists", CONFLICT, "The role's name is taken";
    RoleInUse = "role-in-use", CONFLICT, "Somebody has the role, or a role inherits from it";
    OwnRole = "own-role", CONFLICT, "Nobody changes his own roles";
    LastAdmin = "last-admin", CONFLICT, "The last admin stays";
    TooManyRoles = "too-many-roles", CONFLICT, "The member has as many roles as a member may";
    PeopleOnly = "people-only", CONFLICT, "Only a signed-in member can do this";
    OwnRequest = "own-request", CONFLICT, "Somebody else has to answer the request";
    NotOwnRequest = "not-own-request", CONFLICT, "The request is somebody else's";
    RequestAnswered = "request-answered", CONFLICT, "The request has been answered";
    RequestLapsed = "request-lapsed", CONFLICT, "Nobody answered the request in time";
    TooManyRequests = "too-many-requests", CONFLICT, "Too many requests wait for an answer";
    TeamExists = "team-exists", CONFLICT, "The team's name is taken";
    TeamInUse = "team-in-use", CONFLICT, "Members have roles for the team";
    TeamFull = "team-full", CONFLICT, "The team has as many members as a team may";
    TooManyTeams = "too-many-teams", CONFLICT, "The organization has as many teams as it may";
    VersionExists = "version-exists", CONFLICT, "This version exists with other bytes";
    WorkflowExists = "workflow-exists", CONFLICT, "The workflow's name is taken";
    RunFinished = "run-finished", CONFLICT, "The run has ended already";
    RunNotFinished = "run-not-finished", CONFLICT, "The run has not ended yet";
    TaskFinished = "task-finished", CONFLICT, "The task has ended already";
    KeyRotationRunning = "key-rotation-running", CONFLICT, "A rotation of this level goes on already";
    TooManyTasks = "too-many-tasks", CONFLICT, "Too many tasks go on already";
    RunHistoryFull = "run-history-full", CONFLICT, "The run takes up as much as a run may";
    NoTrigger = "no-trigger", CONFLICT, "No trigger starts this run";
    TooManyGrants = "too-many-grants", CONFLICT, "The installation would have too many grants";
    InstallationDisabled = "installation-disabled", CONFLICT, "The installation is not enabled";
    PluginUnusable = "plugin-unusable", CONFLICT, "The plugin can no longer be run";
    PluginInstalled = "plugin-installed", CONFLICT, "The plugin version is installed";
    QuotaExceeded = "quota-exceeded", CONFLICT, "The organization holds as much as it may";
    WorkflowInactive = "workflow-inactive", CONFLICT, "The workflow is not active";
}

/// Types that are registered for everybody (draft-ietf-httpapi-ratelimit-headers-10), by our slugs.
const REGISTERED: &[(&str, &str)] = &[
    ("rate-limited", "https://iana.org/assignments/http-problem-types#quota-exceeded"),
    ("blocked", "https://iana.org/assignments/http-problem-types#abnormal-usage-detected"),
    ("reduced-capacity", "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"),
];

/// The address that names the type with this slug.
pub(crate) fn type_of(slug: &str) -> String {
    let registered = REGISTERED.iter().find(|(ours, _)| *ours == slug);
    registered.map_or_else(|| format!("{TYPE_BASE}{slug}"), |(_, theirs)| (*theirs).to_owned())
}

/// The type with this slug.
pub(crate) fn kind_of(slug: &str) -> Option<Entry> {
    Kind::ALL.iter().map(|kind| kind.entry()).find(|entry| entry.slug == slug)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn slugs_are_unique_and_of_one_form() {
        let slugs: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.entry().slug).collect();
        assert_eq!(slugs.len(), Kind::ALL.len());
        for slug in slugs {
            assert!(slug.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{slug}");
        }
    }

    /// A use case's new code needs a title and a status here before clients meet it.
    #[test]
    fn every_code_that_a_use_case_names_is_listed() {
        fn visit(dir: &std::path::Path, found: &mut BTreeSet<String>) {
            for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if path.is_dir() {
                    visit(&path, found);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    for marker in [
                        "AppError::invalid(",
                        "AppError::conflict(",
                        "AppError::Invalid {",
                        "AppError::Conflict {",
                        "AppError::TooMany {",
                    ] {
                        for (at, _) in text.match_indices(marker) {
                            let rest = text[at + marker.len()..].trim_start().trim_start_matches("code: ");
                            if let Some((code, _)) = rest.strip_prefix('"').and_then(|rest| rest.split_once('"')) {
                                found.insert(code.to_owned());
                            }
                        }
                    }
                }
            }
        }
        let mut found = BTreeSet::new();
        visit(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../app/src"), &mut found);
        assert!(found.contains("own-key"), "the search finds nothing: {found:?}");
        let unlisted: Vec<&String> = found.iter().filter(|code| kind_of(code).is_none()).collect();
        assert!(unlisted.is_empty(), "add to problem/catalog.rs: {unlisted:?}");
    }
}
