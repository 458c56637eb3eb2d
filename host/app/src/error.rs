//! How a use case fails. Variants answer *what now?*; only `http/src/problem.rs` turns them into status codes.

use bulkhead_model::permission::{Permission, Refused};
use bulkhead_store::{StoreError, TxError};
use serde::Serialize;

use crate::quota::QuotaExceeded;

/// One thing that is wrong with an input, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// JSON pointer into the input (`""` for the whole).
    pub path: String,
    /// Stable, for programs: `unknown-step`, `out-of-range`, …
    pub code: String,
    /// For people: what is wrong and what to do.
    pub message: String,
}

impl Problem {
    #[must_use]
    pub fn new(path: impl Into<String>, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), code: code.into(), message: message.into() }
    }
}

/// A use case's failure.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// No valid credentials. Constant text, whatever the reason.
    #[error("the credentials are missing or not valid")]
    Unauthenticated,
    /// The key's requests have to be signed.
    #[error(
        "requests by this key have to be signed: send `signature-input` and `signature` (RFC 9421) that cover `@method`, `@target-uri` and, with a body, `content-digest`"
    )]
    SignatureRequired,
    /// Constant text, whatever the reason.
    #[error("the request's signature does not hold, or was used before")]
    InvalidSignature,
    /// Who it is was proven too long ago for this (RFC 9470).
    #[error("prove again who you are: this needs a proof from the last {max_age_s} seconds")]
    StepUp { max_age_s: u64 },
    /// The organization asks its members for a second factor, and the session proved none.
    #[error(
        "this organization asks for a second factor: set one up under `me/mfa`, or sign in with the one that you have"
    )]
    MfaRequired,
    /// The caller may know that it exists, but may not do this.
    #[error("this needs the permission {0}")]
    Forbidden(Permission),
    /// The organization may not be reached from where the request comes.
    #[error("this organization is reached from certain addresses only, and yours is not among them")]
    AddressRefused,
    /// The key may not be used from where the request comes.
    #[error("this key may be used from certain addresses only, and yours is not among them")]
    KeyAddressRefused,
    /// Not there, or not to be known by this caller.
    #[error("{what} not found")]
    NotFound { what: &'static str },
    /// The input is not valid; nothing was changed. `code` is the problem type's slug.
    #[error("{message}")]
    Invalid { code: &'static str, message: String, problems: Vec<Problem> },
    /// What is stored stands against it (`workflow-inactive`, `version-exists`, …).
    #[error("{message}")]
    Conflict { code: &'static str, message: String },
    /// The organization holds as much as it may.
    #[error("{0}")]
    Quota(QuotaExceeded),
    /// The entity tag that the caller saw is no longer the current one.
    #[error("it was changed since you read it: read it again")]
    StaleVersion,
    /// The input is larger than its limit.
    #[error("the {what} is larger than {limit_bytes} bytes")]
    TooLarge { what: &'static str, limit_bytes: u64 },
    /// Too much at once: come back after the time given.
    #[error("{what} is busy: try again later")]
    Busy { what: &'static str, retry_after_ms: u64 },
    /// More would only wait: nothing was stored, come back after the time given. `code` is the problem type's slug.
    #[error("{message}")]
    TooMany { code: &'static str, message: String, retry_after_ms: u64 },
    /// The sandbox or compiler failed on our side.
    #[error("the plugin runtime failed")]
    Runtime(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the store failed")]
    Store(#[source] StoreError),
}

impl AppError {
    /// Invalid input with one problem.
    #[must_use]
    pub fn invalid(code: &'static str, path: impl Into<String>, message: impl Into<String>) -> Self {
        let message = message.into();
        Self::Invalid { code, problems: vec![Problem::new(path, code, message.clone())], message }
    }

    #[must_use]
    pub fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self::Conflict { code, message: message.into() }
    }
}

impl From<StoreError> for AppError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound { what } => Self::NotFound { what },
            other => Self::Store(other),
        }
    }
}

impl From<Refused> for AppError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::OtherOrg => Self::NotFound { what: "organization" },
            Refused::Lacks(permission) => Self::Forbidden(permission),
        }
    }
}

impl TxError for AppError {
    fn store(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}
