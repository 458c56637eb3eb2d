//! `wasi:http`: requests of a guest, each through the egress guard. A refusal reaches the guest as the error code
//! `HTTP-request-denied` and the admin as a line of the call's record.

mod weighed;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_model::call::EgressRecord;
use bytes::Bytes;
use http::uri::Scheme;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use wasmtime::component::Linker;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

use crate::control::Stop;
use crate::egress::{EgressContext, EgressError, EgressRequest, Timeouts};
use crate::guest::Guest;
use crate::scope::Scope;

/// How long after the call's own end a request would end by itself. The call ends first, so that its outcome is the passed
/// deadline and not whatever the guest makes of a request that timed out in the same moment; its end drops the request.
const AFTER_THE_CALL: Duration = Duration::from_secs(1);

/// Names and values of one set of headers in the host's memory.
const FIELDS_BYTES_MAX: usize = 64 * 1024;

/// Bytes of one chunk of a body on its way from the guest, and how many chunks wait for the host to take them. Both are small
/// because a guest may write bodies that it never sends.
const BODY_CHUNK_BYTES: usize = 16 * 1024;
const BODY_BUFFER_CHUNKS: usize = 1;

type Ended = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sent = Box<dyn Future<Output = Result<(http::Response<WasiBody>, Ended), Error>> + Send>;

/// What `wasi:http` keeps for one call.
pub(crate) struct State {
    context: WasiHttpCtx,
    hooks: Hooks,
}

struct Hooks {
    scope: Arc<Scope>,
}

impl State {
    pub(crate) fn new(scope: Arc<Scope>) -> Self {
        let mut context = WasiHttpCtx::new();
        context.set_field_size_limit(FIELDS_BYTES_MAX);
        Self { context, hooks: Hooks { scope } }
    }
}

pub(crate) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    weighed::link(linker)
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.http.hooks, table: &mut self.table, ctx: &mut self.http.context }
    }
}

impl WasiHttpHooks for Hooks {
    fn is_supported_scheme(&mut self, _: &Scheme) -> bool {
        // The grant decides, and its refusal is recorded.
        true
    }

    fn set_host_header(&mut self) -> bool {
        false
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        BODY_BUFFER_CHUNKS
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES
    }

    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Sent {
        let scope = Arc::clone(&self.scope);
        let options = options.unwrap_or_default();
        let timeouts = Timeouts {
            connect: options.connect_timeout,
            first_byte: options.first_byte_timeout,
            between_bytes: options.between_bytes_timeout,
        };
        Box::new(async move {
            let response = send(&scope, request, timeouts).await?;
            let response = response.map(|body| Full::new(body).map_err(|never| match never {}).boxed_unsync());
            let nothing_left: Ended = Box::new(std::future::ready(Ok(())));
            Ok((response, nothing_left))
        })
    }
}

async fn send(
    scope: &Arc<Scope>,
    request: http::Request<WasiBody>,
    timeouts: Timeouts,
) -> Result<http::Response<Bytes>, Error> {
    let begun = EgressRecord {
        method: request.method().as_str().chars().take(32).collect(),
        origin: origin(request.uri()),
        path: scope.vault.redact(request.uri().path()).chars().take(1_024).collect(),
        status: None,
        request_bytes: 0,
        response_bytes: 0,
        duration_ms: 0,
        error: Some("the call ended before an answer came".to_owned()),
    };
    let Some(place) = scope.begin_request(begun.clone()) else {
        scope.control.stop(Stop::Limit("requests"));
        return Err(Error::ConnectionLimitReached);
    };
    let (result, record) = send_counted(scope, request, timeouts, begun).await;
    scope.end_request(place, record);
    result
}

/// Everything after the request was counted. The record that comes back says what became of it, however that ended.
async fn send_counted(
    scope: &Arc<Scope>,
    request: http::Request<WasiBody>,
    timeouts: Timeouts,
    begun: EgressRecord,
) -> (Result<http::Response<Bytes>, Error>, EgressRecord) {
    let (head, body) = request.into_parts();
    let because = |why: String| EgressRecord { error: Some(why), ..begun.clone() };
    let expired = || {
        let why = "the grants have expired";
        scope.refuse("http", &format!("{} {}{}", begun.method, begun.origin, head.uri.path()), why);
        (Err(Error::HttpRequestDenied), because(why.to_owned()))
    };
    let Some(grants) = scope.live_grants() else { return expired() };
    let context = EgressContext {
        org: scope.org.clone(),
        installation: scope.installation.clone(),
        grants: Arc::clone(grants),
        secrets: scope.vault.clone(),
        response_bytes_max: scope.limits.response_bytes,
        deadline: scope.deadline() + AFTER_THE_CALL,
    };
    let url = head.uri.to_string();
    // What is not granted is not read either: the guard refuses it without its body.
    let body = if context.grants_request(&head.method, &url) {
        match collect(scope, body).await {
            Ok(body) => body,
            Err(error) => {
                let record = because(error.to_string());
                return (Err(error), record);
            }
        }
    } else {
        Bytes::new()
    };
    // The guest may have taken its time with the body.
    if scope.live_grants().is_none() {
        return expired();
    }
    let request = EgressRequest { method: head.method, url, headers: head.headers, body, timeouts };
    let guard = scope.guard.clone();
    let sent = scope.outside(Box::pin(async move { guard.send(&context, request).await })).await;
    let (result, record) = match sent {
        Ok(sent) => sent,
        Err(message) => return (Err(Error::InternalError(Some(message.clone()))), because(message)),
    };
    let result = result.map_err(|error| {
        if error.is_refusal() {
            let target = format!("{} {}{}", record.method, record.origin, record.path);
            scope.refuse("http", &target, &error.to_string());
        }
        told(&error)
    });
    (result, record)
}

/// Scheme, host and port for the record, without a user.
fn origin(uri: &http::Uri) -> String {
    let host: String = uri.host().unwrap_or_default().chars().take(255).collect();
    let scheme = uri.scheme_str().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(if scheme == "http" { 80 } else { 443 });
    format!("{scheme}://{host}:{port}")
}

/// The whole body, counted against the budget of what the host copies.
async fn collect(scope: &Scope, mut body: WasiBody) -> Result<Bytes, Error> {
    let limit = usize::try_from(scope.limits.host_bytes_per_host_call).unwrap_or(usize::MAX);
    let mut limited = Limited::new(Pin::new(&mut body), limit);
    let mut chunks = Vec::new();
    while let Some(frame) = limited.frame().await {
        let frame = frame.map_err(|error| match error.downcast::<LengthLimitError>() {
            Ok(_) => Error::HttpRequestBodySize(u64::try_from(limit).ok()),
            Err(_) => Error::InternalError(Some("the request's body broke off".to_owned())),
        })?;
        if let Ok(data) = frame.into_data() {
            if scope.host_call(data.len()).is_err() {
                scope.control.stop(Stop::Limit("host_bytes_per_call"));
                return Err(Error::HttpRequestBodySize(None));
            }
            chunks.extend_from_slice(&data);
        }
    }
    Ok(chunks.into())
}

/// What the guest learns of a failure.
fn told(error: &EgressError) -> Error {
    match error {
        EgressError::Refused(_) | EgressError::SecretLeak { .. } => Error::HttpRequestDenied,
        EgressError::NonPublic(_) => Error::DestinationIpProhibited,
        EgressError::BadUrl { .. } => Error::HttpRequestUriInvalid,
        EgressError::Header { .. } | EgressError::SecretUnusable { .. } => {
            Error::InternalError(Some(error.to_string()))
        }
        EgressError::RequestTooLarge { bytes_max } => Error::HttpRequestBodySize(u64::try_from(*bytes_max).ok()),
        EgressError::TooManyConnections { .. }
        | EgressError::OrgBusy { .. }
        | EgressError::RateLimited { .. }
        | EgressError::Busy => Error::ConnectionLimitReached,
        EgressError::Resolve(_) => Error::DnsError { rcode: None, info_code: None },
        EgressError::NoAddress => Error::DestinationNotFound,
        EgressError::ConnectTimeout => Error::ConnectionTimeout,
        EgressError::Connect(_) => Error::ConnectionRefused,
        EgressError::Tls(_) => Error::TlsProtocolError,
        EgressError::FirstByteTimeout | EgressError::Deadline => Error::HttpResponseTimeout,
        EgressError::BetweenBytesTimeout => Error::ConnectionReadTimeout,
        EgressError::Broken(_) => Error::HttpResponseIncomplete,
        EgressError::Protocol(_) => Error::HttpProtocolError,
        EgressError::Upgraded => Error::HttpUpgradeFailed,
        EgressError::Encoded => Error::HttpResponseContentCoding(None),
        EgressError::ResponseTooLarge { bytes_max } => Error::HttpResponseBodySize(Some(*bytes_max)),
    }
}
