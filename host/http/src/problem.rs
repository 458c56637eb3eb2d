//! How failures leave: RFC 9457 problem documents. The only file that turns a failure into a status code.
//!
//! 404 hides from those who may not know, 403 admits, 401 is only about credentials. A failure of the host is logged here,
//! once, with its whole chain; the caller is told no more than that it happened, and the request's id to ask about it.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bulkhead_app::AppError;
use bulkhead_app::data::StoreError;
use bulkhead_app::limits::RateRefused;
use bulkhead_app::quota::QuotaExceeded;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

pub(crate) use self::catalog::{Kind, kind_of, type_of};

mod catalog;

/// Every problem type's address is this and its slug. The addresses name, they need not answer.
pub(crate) const TYPE_BASE: &str = "https://bulkhead.dev/problems/";
pub(crate) const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");
/// When the database is away: long enough for a restart, short enough for a person who waits.
const RETRY_AFTER_UNAVAILABLE_S: u64 = 2;
/// How to ask for a signature (RFC 9421, section 5).
const ACCEPT_SIGNATURE: &str = "sig=(\"@method\" \"@target-uri\" \"content-digest\");created;tag=\"bulkhead\"";
/// Errors in one document; a body with a thousand mistakes is answered with the first of them.
const ERRORS_MAX: usize = 100;

/// One thing that is wrong with the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = FieldError)]
pub(crate) struct FieldError {
    /// JSON pointer into the body (empty for the whole); `?name` for a query parameter.
    pub(crate) path: String,
    /// Stable, for programs.
    pub(crate) code: String,
    /// For people: what is wrong, and what would be right.
    pub(crate) message: String,
}

/// A failure on its way out. The request's id is added where the response leaves (`edge.rs`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    status: StatusCode,
    slug: &'static str,
    title: &'static str,
    detail: String,
    errors: Vec<FieldError>,
    retry_after_s: Option<u64>,
    /// Boxed, since every fallible function carries the problem.
    quota: Option<Box<ExceededQuota>>,
    /// The rate limit that was passed.
    limited: Option<Box<RateRefused>>,
}

/// The quota that stands against a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = ExceededQuota)]
pub(crate) struct ExceededQuota {
    /// As `GET quotas` names it.
    name: &'static str,
    unit: &'static str,
    /// What is held, or what was asked for where the quota is of one thing.
    used: u64,
    limit: u64,
    /// What to do about it.
    hint: &'static str,
}

/// The document as sent.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Problem)]
pub(crate) struct Document {
    /// `https://bulkhead.dev/problems/` and a stable slug.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The same for every problem of the type.
    pub(crate) title: &'static str,
    pub(crate) status: u16,
    /// What happened this time, for people.
    pub(crate) detail: String,
    /// The request's id, as in the header `x-request-id`; name it when asking for help.
    pub(crate) request_id: String,
    /// What is wrong with the input, and where. Empty when it is not about the input.
    pub(crate) errors: Vec<FieldError>,
    /// With `quota-exceeded` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) quota: Option<ExceededQuota>,
    /// With the problem types of rate limits only: the policies, as the field `ratelimit-policy` names them.
    #[serde(rename = "violated-policies", skip_serializing_if = "Vec::is_empty")]
    pub(crate) violated_policies: Vec<&'static str>,
}

impl Problem {
    /// A problem of a type that the catalogue knows.
    pub(crate) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let entry = kind.entry();
        Self {
            status: entry.status,
            slug: entry.slug,
            title: entry.title,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after_s: None,
            quota: None,
            limited: None,
        }
    }

    /// Because of a rate limit: come back after so many seconds.
    pub(crate) fn by_policy(mut self, refused: RateRefused, retry_after_s: u64) -> Self {
        self.retry_after_s = Some(retry_after_s);
        self.limited = Some(Box::new(refused));
        self
    }

    pub(crate) fn is(&self, kind: Kind) -> bool {
        self.slug == kind.entry().slug
    }

    /// With one error at a place in the input.
    pub(crate) fn at(mut self, path: impl Into<String>, code: impl Into<String>, message: impl Into<String>) -> Self {
        self.errors.push(FieldError { path: path.into(), code: code.into(), message: message.into() });
        self
    }

    pub(crate) fn too_large(what: &str, limit_bytes: u64) -> Self {
        Self::new(Kind::TooLarge, format!("the {what} is larger than {limit_bytes} bytes"))
    }

    /// A failure of the host that the caller can do nothing about. The chain is logged here and nowhere else.
    pub(crate) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = chain(error), "the request failed");
        Self::new(Kind::Internal, "something failed on our side; it has been recorded under this request's id")
    }

    fn unavailable(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = chain(error), "the database is unavailable");
        let mut problem = Self::new(Kind::Unavailable, "the database does not answer at the moment: try again soon");
        problem.retry_after_s = Some(RETRY_AFTER_UNAVAILABLE_S);
        problem
    }

    #[cfg(test)]
    pub(crate) fn slug(&self) -> &'static str {
        self.slug
    }

    #[cfg(test)]
    pub(crate) fn errors(&self) -> &[FieldError] {
        &self.errors
    }

    /// The document's bytes.
    pub(crate) fn render(&self, request_id: &str) -> Vec<u8> {
        let document = Document {
            kind: type_of(self.slug),
            title: self.title,
            status: self.status.as_u16(),
            detail: self.detail.clone(),
            request_id: request_id.to_owned(),
            errors: self.errors.clone(),
            quota: self.quota.as_deref().cloned(),
            violated_policies: self.limited.iter().map(|refused| refused.policy.as_str()).collect(),
        };
        serde_json::to_vec(&document).expect("text and numbers are always written as JSON")
    }
}

/// An error with its sources, outermost first.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let _ = write!(text, ": {error}");
        source = error.source();
    }
    text
}

impl From<AppError> for Problem {
    fn from(error: AppError) -> Self {
        match error {
            AppError::Quota(QuotaExceeded { quota, used, limit, hint }) => {
                let mut problem = Self::new(Kind::QuotaExceeded, error.to_string());
                let exceeded = ExceededQuota { name: quota.as_str(), unit: quota.unit(), used, limit, hint };
                problem.quota = Some(Box::new(exceeded));
                problem
            }
            AppError::Unauthenticated => Self::new(Kind::Unauthenticated, error.to_string()),
            AppError::SignatureRequired => Self::new(Kind::SignatureRequired, error.to_string()),
            AppError::InvalidSignature => Self::new(Kind::InvalidSignature, error.to_string()),
            AppError::StepUp { .. } => Self::new(Kind::StepUpRequired, error.to_string()),
            AppError::MfaRequired => Self::new(Kind::MfaRequired, error.to_string()),
            AppError::KeyAddressRefused => Self::new(Kind::KeyAddressRefused, error.to_string()),
            AppError::AddressRefused => Self::new(Kind::AddressRefused, error.to_string()),
            AppError::Forbidden(_) => Self::new(Kind::Forbidden, error.to_string()),
            AppError::NotFound { .. } => Self::new(Kind::NotFound, error.to_string()),
            AppError::Invalid { code, message, problems } => {
                let (status, title) = kind_of(code)
                    .map_or((StatusCode::UNPROCESSABLE_ENTITY, "The input is not valid"), |entry| {
                        (entry.status, entry.title)
                    });
                let errors = problems
                    .into_iter()
                    .take(ERRORS_MAX)
                    .map(|problem| FieldError { path: problem.path, code: problem.code, message: problem.message })
                    .collect();
                Self {
                    status,
                    slug: code,
                    title,
                    detail: message,
                    errors,
                    retry_after_s: None,
                    quota: None,
                    limited: None,
                }
            }
            AppError::Conflict { code, message } => {
                let title = kind_of(code).map_or("The request conflicts with what is stored", |entry| entry.title);
                Self {
                    status: StatusCode::CONFLICT,
                    slug: code,
                    title,
                    detail: message,
                    errors: Vec::new(),
                    retry_after_s: None,
                    quota: None,
                    limited: None,
                }
            }
            AppError::StaleVersion => Self::new(Kind::Stale, error.to_string()),
            AppError::TooLarge { what, limit_bytes } => Self::too_large(what, limit_bytes),
            AppError::Busy { what, retry_after_ms } => {
                let mut problem = Self::new(Kind::Busy, format!("{what} is busy: try again later"));
                problem.retry_after_s = Some(retry_after_ms.div_ceil(1000).max(1));
                problem
            }
            AppError::TooMany { code, message, retry_after_ms } => {
                let mut problem = Self::new(Kind::Busy, message);
                if let Some(entry) = kind_of(code) {
                    (problem.slug, problem.title, problem.status) = (entry.slug, entry.title, entry.status);
                }
                problem.retry_after_s = Some(retry_after_ms.div_ceil(1000).max(1));
                problem
            }
            AppError::Runtime(_) => Self::internal(&error),
            AppError::Store(store) => store.into(),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound { .. } => Self::new(Kind::NotFound, error.to_string()),
            // Two requests did the same thing at once, and the other one was first.
            StoreError::Conflict { .. } => {
                Self::new(Kind::Conflict, "another request changed the same thing: read it again")
            }
            StoreError::Contended(_) | StoreError::Unavailable(_) | StoreError::TimedOut => Self::unavailable(&error),
            StoreError::LostLease
            | StoreError::Corrupt { .. }
            | StoreError::Keys(_)
            | StoreError::Misuse(_)
            | StoreError::Refused(_) => Self::internal(&error),
        }
    }
}

impl IntoResponse for Problem {
    /// The body is written by `edge.rs`, which knows the request's id.
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 9470 says how to ask for a fresher proof.
            let challenge = if self.slug == Kind::StepUpRequired.entry().slug {
                "Bearer error=\"insufficient_user_authentication\", max_age=600"
            } else {
                "Bearer"
            };
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
            if self.slug == Kind::SignatureRequired.entry().slug {
                headers.insert(HeaderName::from_static("accept-signature"), HeaderValue::from_static(ACCEPT_SIGNATURE));
            }
        }
        if let Some(retry_after_s) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
        }
        if self.slug == Kind::UnsupportedMediaType.entry().slug {
            headers.insert(HeaderName::from_static("accept-post"), HeaderValue::from_static("application/json"));
        }
        if let Some(refused) = self.limited.as_deref() {
            response.extensions_mut().insert(*refused);
        }
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::permission::Permission;

    fn status(error: AppError) -> u16 {
        Problem::from(error).into_response().status().as_u16()
    }

    #[test]
    fn each_failure_has_its_status() {
        assert_eq!(status(AppError::Unauthenticated), 401);
        assert_eq!(status(AppError::SignatureRequired), 401);
        assert_eq!(status(AppError::InvalidSignature), 401);
        assert_eq!(status(AppError::Forbidden(Permission::OrgRead)), 403);
        assert_eq!(status(AppError::NotFound { what: "run" }), 404);
        assert_eq!(status(AppError::invalid("invalid-name", "/name", "x")), 422);
        assert_eq!(status(AppError::invalid("invalid-json", "", "x")), 400);
        assert_eq!(status(AppError::conflict("version-exists", "x")), 409);
        assert_eq!(status(AppError::StaleVersion), 412);
        assert_eq!(status(AppError::TooLarge { what: "body", limit_bytes: 1 }), 413);
        assert_eq!(status(AppError::Busy { what: "x", retry_after_ms: 1 }), 429);
        assert_eq!(status(AppError::TooMany { code: "too-many-waiting", message: "x".into(), retry_after_ms: 1 }), 429);
        assert_eq!(status(AppError::Runtime("x".into())), 500);
        assert_eq!(status(AppError::Store(StoreError::TimedOut)), 503);
        assert_eq!(status(AppError::Store(StoreError::Misuse("x"))), 500);
        assert_eq!(status(AppError::Store(StoreError::Corrupt { what: "x", why: "y".into() })), 500);
    }

    #[test]
    fn credentials_and_waiting_are_said_in_headers() {
        let response = Problem::from(AppError::Unauthenticated).into_response();
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
        let response = Problem::from(AppError::SignatureRequired).into_response();
        let asked = response.headers()["accept-signature"].to_str().unwrap();
        assert!(asked.ends_with(&format!(";tag=\"{}\"", bulkhead_model::signature::TAG)), "{asked}");
        let response = Problem::from(AppError::Busy { what: "x", retry_after_ms: 1500 }).into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
    }

    #[test]
    fn the_hosts_failures_tell_nothing() {
        let problem =
            Problem::from(AppError::Store(StoreError::Corrupt { what: "secret", why: "password=hunter2".into() }));
        let text = String::from_utf8(problem.render("req")).unwrap();
        assert!(!text.contains("hunter2") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn a_document_holds_the_members_of_rfc_9457() {
        let problem = Problem::from(AppError::invalid("invalid-name", "/name", "too long"));
        let document: serde_json::Value = serde_json::from_slice(&problem.render("req-1")).unwrap();
        assert_eq!(
            document,
            serde_json::json!({
                "type": "https://bulkhead.dev/problems/invalid-name",
                "title": "A name is not valid",
                "status": 422,
                "detail": "too long",
                "request_id": "req-1",
                "errors": [{ "path": "/name", "code": "invalid-name", "message": "too long" }],
            })
        );
    }
}
