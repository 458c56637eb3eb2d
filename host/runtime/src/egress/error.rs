//! Why a request was not answered. The variants say what to do next: a refusal is for the admin, anything else is for the
//! plugin, which learns it as an error code of `wasi:http` (`capability/http.rs`).

use std::error::Error as _;
use std::fmt;
use std::io::ErrorKind;

use bulkhead_model::grant::RefusalReason;
use bulkhead_model::grant::address::NonPublic;
use bulkhead_model::name::SecretName;

/// Where in a request a secret or its placeholder was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretPlace {
    Host,
    Path,
    Query,
    HeaderName,
    Header,
    Body,
}

impl fmt::Display for SecretPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host name",
            Self::Path => "path",
            Self::Query => "query",
            Self::HeaderName => "name of a header",
            Self::Header => "header",
            Self::Body => "body",
        })
    }
}

/// How a request failed.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    #[error("the URL cannot be used: {why}")]
    BadUrl { why: &'static str },
    #[error("{0}")]
    Refused(RefusalReason),
    #[error("the header {name} cannot be sent: {why}")]
    Header { name: String, why: &'static str },
    #[error("the request's body has more than {bytes_max} bytes")]
    RequestTooLarge { bytes_max: usize },
    /// A secret or placeholder stands where its grant does not allow it.
    #[error("the secret {name} may not be sent in the {place} of this request")]
    SecretLeak { name: SecretName, place: SecretPlace },
    /// The stored value does not fit its place: a line break in a header, `..` in a path.
    #[error("the value of the secret {name} cannot be written into the {place}")]
    SecretUnusable { name: SecretName, place: SecretPlace },
    #[error("the installation has {connections_max} requests under way already")]
    TooManyConnections { connections_max: u32 },
    #[error("the organization has {connections_max} requests under way already")]
    OrgBusy { connections_max: u32 },
    #[error("the installation sends too many requests; try again in {retry_after_ms} ms")]
    RateLimited { retry_after_ms: u64 },
    #[error("the platform has too many requests under way")]
    Busy,
    #[error("the host name cannot be resolved")]
    Resolve(#[source] super::ResolveError),
    #[error("the host name has no address")]
    NoAddress,
    /// Every address of the host is out of bounds; the class is that of the first.
    #[error("the host's address is not public ({0})")]
    NonPublic(NonPublic),
    #[error("no connection within the time allowed")]
    ConnectTimeout,
    #[error("the connection failed")]
    Connect(#[source] std::io::Error),
    #[error("the TLS handshake failed")]
    Tls(#[source] std::io::Error),
    #[error("no response within the time allowed")]
    FirstByteTimeout,
    #[error("the response paused for longer than allowed")]
    BetweenBytesTimeout,
    #[error("the request took longer than allowed")]
    Deadline,
    /// The server went away in the middle: trying again may help.
    #[error("the connection broke off before the response was complete")]
    Broken(#[source] hyper::Error),
    /// The answer is not HTTP/1.1, or its head is too large.
    #[error("the response cannot be read")]
    Protocol(#[source] hyper::Error),
    #[error("the server switched protocols")]
    Upgraded,
    /// Identity was asked for; a compressed body could grow without bound.
    #[error("the response is encoded although identity was asked for")]
    Encoded,
    #[error("the response's body has more than {bytes_max} bytes")]
    ResponseTooLarge { bytes_max: u64 },
}

impl EgressError {
    /// A stable word for records and metrics.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadUrl { .. } => "bad_url",
            Self::Refused(_) => "refused",
            Self::Header { .. } => "header",
            Self::RequestTooLarge { .. } => "request_too_large",
            Self::SecretLeak { .. } => "secret_leak",
            Self::SecretUnusable { .. } => "secret_unusable",
            Self::TooManyConnections { .. } => "too_many_connections",
            Self::OrgBusy { .. } => "org_busy",
            Self::RateLimited { .. } => "rate_limited",
            Self::Busy => "busy",
            Self::Resolve(_) => "resolve",
            Self::NoAddress => "no_address",
            Self::NonPublic(_) => "non_public",
            Self::ConnectTimeout => "connect_timeout",
            Self::Connect(_) => "connect",
            Self::Tls(_) => "tls",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::BetweenBytesTimeout => "between_bytes_timeout",
            Self::Deadline => "deadline",
            Self::Broken(_) => "broken",
            Self::Protocol(_) => "protocol",
            Self::Upgraded => "upgraded",
            Self::Encoded => "encoded",
            Self::ResponseTooLarge { .. } => "response_too_large",
        }
    }

    /// Whether the request was forbidden, rather than having failed: it belongs among the call's refusals.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::SecretLeak { .. } | Self::NonPublic(_))
    }

    /// What a failure of the HTTP client means: did the server go away, or did it say something that is no HTTP?
    pub(super) fn of_exchange(error: hyper::Error) -> Self {
        let io = error.source().and_then(|source| source.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
        // Chunks that are none are reported as bad input.
        let garbled = matches!(io, Some(ErrorKind::InvalidInput | ErrorKind::InvalidData));
        if garbled || error.is_parse() || error.is_parse_too_large() || error.is_user() {
            Self::Protocol(error)
        } else {
            Self::Broken(error)
        }
    }
}

/// Why a guard cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EgressSetupError {
    #[error("a root certificate cannot be used")]
    Root(#[source] rustls::Error),
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}
