//! Tables that are no organization's.

/// Those that belong to the deployment: it and its organizations, not what is in them.
const TABLES_OF_THE_DEPLOYMENT: &[&str] = &["organization", "probe", "root_check", "worker"];
/// Those whose rows belong to people.
pub(crate) const TABLES_OF_PEOPLE: &[&str] = &[
    "user_account",
    "device",
    "session",
    "user_link",
    "throttle",
    "sign_in_attempt",
    "mail",
    "token_family",
    "refresh_token",
    "totp",
    "backup_code",
    "sign_in_step",
    "rate_limit",
    "address_block",
    "passkey",
    "passkey_ceremony",
    "revoke_link",
    "email_code",
];

/// The tables whose rows are no organization's: all others begin with `org_id`.
pub(crate) fn global_tables() -> impl Iterator<Item = &'static str> {
    TABLES_OF_THE_DEPLOYMENT.iter().chain(TABLES_OF_PEOPLE).copied()
}
