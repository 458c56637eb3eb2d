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
use crate::egress::{EgressContext, EgressError, EgressRequest};
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
        _: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Sent {
        let scope = Arc::clone(&self.scope);
        Box::new(async move {
            let response = send(&scope, request).await?;
            let response = response.map(|body| Full::new(body).map_err(|never| match never {}).boxed_unsync());
            let nothing_left: Ended = Box::new(std::future::ready(Ok(())));
            Ok((response, nothing_left))
        })
    }
}

async fn send(scope: &Arc<Scope>, request: http::Request<WasiBody>) -> Result<http::Response<Bytes>, Error> {
    let (head, body) = request.into_parts();
    let url = head.uri.to_string();
    let place = scope.begin_request(EgressRecord {
        method: head.method.as_str().chars().take(32).collect(),
        origin: origin(&head.uri),
        path: scope.vault.redact(head.uri.path()).chars().take(1_024).collect(),
        status: None,
        request_bytes: 0,
        response_bytes: 0,
        duration_ms: 0,
        error: Some("the call ended before an answer came".to_owned()),
    });
    let Some(place) = place else {
        scope.control.stop(Stop::Limit("requests"));
        return Err(Error::ConnectionLimitReached);
    };
    let body = collect(scope, body).await?;
    let Some(grants) = scope.live_grants() else {
        scope.refuse(
            "http",
            &format!("{} {}{}", head.method, origin(&head.uri), head.uri.path()),
            "the grants have expired",
        );
        return Err(Error::HttpRequestDenied);
    };
    let context = EgressContext {
        installation: scope.installation.clone(),
        grants: Arc::clone(grants),
        secrets: scope.vault.clone(),
        response_bytes_max: scope.limits.response_bytes,
        deadline: scope.deadline() + AFTER_THE_CALL,
    };
    let request = EgressRequest { method: head.method, url, headers: head.headers, body };
    let guard = scope.guard.clone();
    let sent = scope.outside(Box::pin(async move { guard.send(&context, request).await })).await;
    let (result, record) = sent.map_err(|message| Error::InternalError(Some(message)))?;
    let result = result.inspect_err(|error| {
        if error.is_refusal() {
            let target = format!("{} {}{}", record.method, record.origin, record.path);
            scope.refuse("http", &target, &error.to_string());
        }
    });
    scope.end_request(place, record);
    result.map_err(|error| told(&error))
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
        EgressError::TooManyConnections { .. } | EgressError::RateLimited { .. } | EgressError::Busy => {
            Error::ConnectionLimitReached
        }
        EgressError::Resolve(_) => Error::DnsError { rcode: None, info_code: None },
        EgressError::NoAddress => Error::DestinationNotFound,
        EgressError::ConnectTimeout => Error::ConnectionTimeout,
        EgressError::Connect(_) => Error::ConnectionRefused,
        EgressError::Tls(_) => Error::TlsProtocolError,
        EgressError::FirstByteTimeout | EgressError::Deadline => Error::HttpResponseTimeout,
        EgressError::Protocol(_) => Error::HttpProtocolError,
        EgressError::Upgraded => Error::HttpUpgradeFailed,
        EgressError::Encoded => Error::HttpResponseContentCoding(None),
        EgressError::ResponseTooLarge { bytes_max } => Error::HttpResponseBodySize(Some(*bytes_max)),
    }
}
