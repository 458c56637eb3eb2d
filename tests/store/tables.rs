//! Tables that are no organization's.

/// The tables that hold tenants' rows, by the catalogue of a freshly migrated SQLite database less the exceptions.
pub(crate) const GLOBAL_TABLES: &[&str] = &[
    "organization",
    "probe",
    "root_check",
    "worker",
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
    "passkey",
    "passkey_ceremony",
    "revoke_link",
    "email_code",
];
/// Those of them whose rows belong to people.
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
    "passkey",
    "passkey_ceremony",
    "revoke_link",
    "email_code",
];
