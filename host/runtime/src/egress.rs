//! The only way out of the machine: every request of a plugin, and every other one that the platform sends, goes through an
//! [`EgressGuard`].
//!
//! The order is the security argument: parse once (with the parser whose result is sent), match the grant, check headers, put
//! secrets in where their rule says, take a quota, resolve, drop every address that is not public, connect to an address
//! that was checked, and read a bounded answer. There is no second lookup, no proxy, no redirect, no shared connection.
//!
//! | question | file |
//! | --- | --- |
//! | which secrets does a call hold, and where did one leak? | `vault` |
//! | in which forms may a secret stand somewhere? | `dress` |
//! | where is a placeholder swapped for its value? | `inject` |
//! | which headers may a plugin send? | `headers` |
//! | where does a name lead, and which addresses count? | `resolve`, `connect` |
//! | how is the request sent and the answer read? | `exchange` |
//! | how much may one installation send? | `quota` |

mod connect;
mod dress;
mod error;
mod exchange;
mod headers;
mod inject;
mod quota;
mod resolve;
#[cfg(test)]
mod tests;
mod vault;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_model::call::EgressRecord;
use bulkhead_model::grant::{EffectiveGrants, Loopback, RefusalReason};
use bytes::Bytes;
use http::{HeaderMap, Method, Response};
use rustls::pki_types::CertificateDer;
use tokio::sync::Semaphore;
use url::Url;

pub use self::connect::{Dial, DialFuture, TcpDial};
pub use self::error::{EgressError, EgressSetupError, SecretPlace};
pub use self::quota::Quotas;
pub use self::resolve::{Resolve, ResolveError, ResolveFuture, SystemResolver};
pub use self::vault::{PLACEHOLDER_PREFIX, SECRET_BYTES_PER_CALL_MAX, SECRETS_PER_CALL_MAX, SecretVault};
use crate::registry::blocking;

/// Bytes of a URL; browsers and servers agree on about this much.
pub const URL_BYTES_MAX: usize = 8 * 1024;
/// Bytes that a search for secrets may look at on the thread of everybody's requests, counted once for each thing that is searched
/// for: some milliseconds even for the worst text. A longer search runs on a thread that may block.
const SEARCH_BYTES_INLINE_MAX: usize = 4 * 1024 * 1024;
/// Bytes of a path that a record keeps.
const RECORD_PATH_BYTES_MAX: usize = 1_024;

/// How the guard works. [`EgressConfig::new`] has the platform's values.
#[derive(Clone)]
pub struct EgressConfig {
    /// Hosts and ports of this machine that may be reached when a grant covers them too. For development and tests alone.
    pub allow_loopback: Vec<Loopback>,
    pub resolver: Arc<dyn Resolve>,
    /// Opens connections to addresses that were checked.
    pub dial: Arc<dyn Dial>,
    /// Lookup, connection and TLS handshake together.
    pub connect_ms: u64,
    /// From the connection until the head of the response.
    pub first_byte_ms: u64,
    /// The whole request, until the last byte of the body.
    pub total_ms: u64,
    pub request_body_bytes_max: usize,
    pub request_headers_max: usize,
    /// Names and values of all request headers together, before secrets are put in.
    pub request_header_bytes_max: usize,
    pub response_headers_max: usize,
    /// The head of a response; at least 8 KiB.
    pub response_header_bytes_max: usize,
    pub quotas: Quotas,
    /// Trusted beside the public roots (an enterprise's own, a test's).
    pub extra_roots: Vec<CertificateDer<'static>>,
}

impl EgressConfig {
    /// The platform's limits, nothing of this machine, the public roots.
    #[must_use]
    pub fn new(resolver: Arc<dyn Resolve>) -> Self {
        Self {
            allow_loopback: Vec::new(),
            resolver,
            dial: Arc::new(TcpDial),
            connect_ms: 5_000,
            first_byte_ms: 15_000,
            total_ms: 30_000,
            request_body_bytes_max: 4 * 1024 * 1024,
            request_headers_max: 64,
            request_header_bytes_max: 32 * 1024,
            response_headers_max: 100,
            response_header_bytes_max: 64 * 1024,
            quotas: Quotas::default(),
            extra_roots: Vec::new(),
        }
    }
}

impl std::fmt::Debug for EgressConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EgressConfig").field("allow_loopback", &self.allow_loopback).finish_non_exhaustive()
    }
}

/// On whose behalf a request is sent, and within what.
#[derive(Clone)]
pub struct EgressContext {
    /// Counts for the quotas: the organization's id, or a name for the platform's own requests.
    pub org: String,
    /// Counts for the quotas: the installation's id, or a name for the platform's own requests.
    pub installation: String,
    pub grants: Arc<EffectiveGrants>,
    /// The secrets of this call.
    pub secrets: SecretVault,
    /// Bytes of the response's body.
    pub response_bytes_max: u64,
    /// The call's own end; the guard's times are cut at it.
    pub deadline: Instant,
}

/// A request as the plugin wrote it.
#[derive(Clone, Debug)]
pub struct EgressRequest {
    pub method: Method,
    /// As the guest wrote it; the guard parses it, and nothing else does.
    pub url: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub timeouts: Timeouts,
}

/// How long a plugin wants to wait. The guard's own times stay in force: of both, the shorter one counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Option<Duration>,
    /// From the connection until the head of the response.
    pub first_byte: Option<Duration>,
    /// Between two pieces of the response's body.
    pub between_bytes: Option<Duration>,
}

/// The shorter of the platform's time and the plugin's.
fn shorter(platform_ms: u64, asked: Option<Duration>) -> Duration {
    let platform = Duration::from_millis(platform_ms);
    asked.map_or(platform, |asked| asked.min(platform))
}

impl EgressContext {
    /// Whether a request of this method to this URL is covered by a grant. [`EgressGuard::send`] decides this for itself; whoever
    /// asks before may save the work of making a body.
    #[must_use]
    pub fn grants_request(&self, method: &Method, url: &str) -> bool {
        parse(url).is_ok_and(|url| self.grants.http(method.as_str(), &url).is_ok())
    }
}

/// The one outbound client. Clones share quotas and roots.
#[derive(Clone)]
pub struct EgressGuard {
    shared: Arc<Shared>,
}

struct Shared {
    config: EgressConfig,
    connector: connect::Connector,
    ledger: quota::Ledger,
    /// Long searches for secrets at once: they compute, so one for each core.
    searches: Semaphore,
}

impl EgressGuard {
    /// Prepares the guard; sends nothing.
    ///
    /// # Errors
    /// When an extra root is no certificate.
    pub fn new(config: EgressConfig) -> Result<Self, EgressSetupError> {
        let connector = connect::Connector::new(&config)?;
        let ledger = quota::Ledger::new(config.quotas);
        let searches = Semaphore::new(std::thread::available_parallelism().map_or(1, NonZeroUsize::get));
        Ok(Self { shared: Arc::new(Shared { config, connector, ledger, searches }) })
    }

    /// Sends one request and reads the whole answer. Redirects come back as they are.
    ///
    /// Must be polled on an executor with I/O and time. Dropping the future ends the request at once. A record is made
    /// whatever happens.
    pub async fn send(
        &self,
        context: &EgressContext,
        request: EgressRequest,
    ) -> (Result<Response<Bytes>, EgressError>, EgressRecord) {
        let begun = Instant::now();
        let mut record = EgressRecord {
            method: request.method.as_str().chars().take(32).collect(),
            origin: String::new(),
            path: String::new(),
            status: None,
            request_bytes: request.body.len() as u64,
            response_bytes: 0,
            duration_ms: 0,
            error: None,
        };
        let result = self.send_recorded(context, request, begun, &mut record).await;
        record.duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        match &result {
            Ok(response) => record.status = Some(response.status().as_u16()),
            Err(error) => record.error = Some(context.secrets.redact(&error.to_string()).into_owned()),
        }
        let outcome = result.as_ref().err().map_or("answered", EgressError::code);
        metrics::counter!("bulkhead_egress_requests_total", "outcome" => outcome).increment(1);
        (result, record)
    }

    async fn send_recorded(
        &self,
        context: &EgressContext,
        request: EgressRequest,
        begun: Instant,
        record: &mut EgressRecord,
    ) -> Result<Response<Bytes>, EgressError> {
        let end = context.deadline.min(begun + Duration::from_millis(self.shared.config.total_ms));
        let work = self.send_checked(context, request, end, record);
        tokio::time::timeout_at(end.into(), work).await.map_err(|_| EgressError::Deadline)?
    }

    async fn send_checked(
        &self,
        context: &EgressContext,
        request: EgressRequest,
        end: Instant,
        record: &mut EgressRecord,
    ) -> Result<Response<Bytes>, EgressError> {
        let config = &self.shared.config;
        let EgressRequest { method, url, headers, body, timeouts } = request;
        let url = parse(&url)?;
        (record.origin, record.path) = shown(&url, &context.secrets);
        context.grants.http(method.as_str(), &url).map_err(EgressError::Refused)?;
        if body.len() > config.request_body_bytes_max {
            return Err(EgressError::RequestTooLarge { bytes_max: config.request_body_bytes_max });
        }
        let headers = headers::checked(&headers, &method, &url, body.len(), &context.grants, config)?;
        let outgoing = inject::Outgoing { url, headers, body };
        let (secrets, grants, bytes_max) =
            (context.secrets.clone(), Arc::clone(&context.grants), config.request_body_bytes_max);
        let bytes = outgoing.body.len();
        let outgoing =
            self.search(context, bytes, move || inject::inject(outgoing, &secrets, &grants, bytes_max)).await?;
        // A path that now holds a secret is granted like any other.
        context.grants.http(method.as_str(), &outgoing.url).map_err(EgressError::Refused)?;

        let _permit = self.shared.ledger.take(&context.org, &context.installation)?;
        let connect = shorter(config.connect_ms, timeouts.connect);
        let stream = self.shared.connector.connect(config, &outgoing.url, connect, end).await?;
        let response = exchange::exchange(stream, config, &method, outgoing, context, timeouts, record).await?;
        let (secrets, bytes) = (context.secrets.clone(), response.body().len());
        Ok(self.search(context, bytes, move || secrets.conceal(response)).await)
    }

    /// Runs a search for the call's secrets in so many bytes: at once when it is short, otherwise where it holds up nobody.
    async fn search<T: Send + 'static>(
        &self,
        context: &EgressContext,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        if bytes.saturating_mul(context.secrets.searched_for()) <= SEARCH_BYTES_INLINE_MAX {
            return work();
        }
        let _turn = self.shared.searches.acquire().await.expect("the semaphore is never closed");
        blocking(work).await
    }
}

impl std::fmt::Debug for EgressGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EgressGuard").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

/// The one parse. What the parser would silently repair (spaces, line breaks, backslashes) is refused, since another reader of
/// the same text might repair it differently.
fn parse(text: &str) -> Result<Url, EgressError> {
    if text.len() > URL_BYTES_MAX {
        return Err(EgressError::BadUrl { why: "it is too long" });
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control() || c == '\\') {
        return Err(EgressError::BadUrl { why: "it holds spaces, control characters or backslashes" });
    }
    let mut url = Url::parse(text).map_err(|_| EgressError::BadUrl { why: "it is no absolute URL" })?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(EgressError::Refused(RefusalReason::NotHttp));
    }
    if url.port() == Some(0) {
        return Err(EgressError::BadUrl { why: "port 0 is no port" });
    }
    url.set_fragment(None);
    Ok(url)
}

/// Origin and path for the record: no user, no query, no secret.
fn shown(url: &Url, secrets: &SecretVault) -> (String, String) {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or_default();
    let path: String = secrets.redact_values(url.path()).chars().take(RECORD_PATH_BYTES_MAX).collect();
    (secrets.redact_values(&format!("{}://{host}:{port}", url.scheme())).into_owned(), path)
}
