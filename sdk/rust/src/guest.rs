//! The host as a guest sees it: generated bindings and their use.

#![expect(clippy::disallowed_methods, reason = "in a guest the standard clock is the host's")]
#![expect(clippy::same_length_and_capacity, reason = "written by wit-bindgen")]

use std::time::{SystemTime, UNIX_EPOCH};

use crate::exports::{Contributions, LeadFacts, Scoring};
use crate::http::{Error as HttpError, Request, Response};
use crate::log::Level;
use crate::secret::Error as SecretError;
use crate::{Context, Failure};

use self::imports::bulkhead::plugin::{secrets, types as plugin_types};
use self::imports::wasi::config::store;
use self::imports::wasi::http::outgoing_handler;
use self::imports::wasi::http::types::{
    ErrorCode, Fields, IncomingBody, IncomingResponse, Method, OutgoingBody, OutgoingRequest, RequestOptions, Scheme,
};
use self::imports::wasi::io::streams::StreamError;
use self::imports::wasi::logging::logging;

pub use self::action::exports::bulkhead::plugin::action::Guest as ActionGuest;
pub use self::channel::exports::bulkhead::plugin::channel::Guest as ChannelGuest;
pub use self::factor::exports::bulkhead::plugin::factor::{
    Contribution as WitContribution, Guest as FactorGuest, LeadFacts as WitLeadFacts,
};
pub use self::plugin_types::{CallContext, Failure as WitFailure};

/// Bytes read from a response at once.
const READ_BYTES: u64 = 64 * 1024;

pub mod imports {
    wit_bindgen::generate!({ path: "../../wit/0.1.0", world: "plugin-imports", generate_all });
}

pub mod action {
    wit_bindgen::generate!({
        path: "../../wit/0.1.0",
        world: "action-plugin",
        pub_export_macro: true,
        export_macro_name: "export_action",
        with: {
            "bulkhead:plugin/types@0.1.0": super::imports::bulkhead::plugin::types,
            "bulkhead:plugin/secrets@0.1.0": super::imports::bulkhead::plugin::secrets,
            "wasi:logging/logging@0.1.0-draft": super::imports::wasi::logging::logging,
            "wasi:config/store@0.2.0-rc.1": super::imports::wasi::config::store,
            "wasi:io/error@0.2.12": super::imports::wasi::io::error,
            "wasi:io/poll@0.2.12": super::imports::wasi::io::poll,
            "wasi:io/streams@0.2.12": super::imports::wasi::io::streams,
            "wasi:clocks/monotonic-clock@0.2.12": super::imports::wasi::clocks::monotonic_clock,
            "wasi:http/types@0.2.12": super::imports::wasi::http::types,
            "wasi:http/outgoing-handler@0.2.12": super::imports::wasi::http::outgoing_handler,
        },
    });
}

pub mod channel {
    wit_bindgen::generate!({
        path: "../../wit/0.1.0",
        world: "channel-plugin",
        pub_export_macro: true,
        export_macro_name: "export_channel",
        with: {
            "bulkhead:plugin/types@0.1.0": super::imports::bulkhead::plugin::types,
            "bulkhead:plugin/secrets@0.1.0": super::imports::bulkhead::plugin::secrets,
            "wasi:logging/logging@0.1.0-draft": super::imports::wasi::logging::logging,
            "wasi:config/store@0.2.0-rc.1": super::imports::wasi::config::store,
            "wasi:io/error@0.2.12": super::imports::wasi::io::error,
            "wasi:io/poll@0.2.12": super::imports::wasi::io::poll,
            "wasi:io/streams@0.2.12": super::imports::wasi::io::streams,
            "wasi:clocks/monotonic-clock@0.2.12": super::imports::wasi::clocks::monotonic_clock,
            "wasi:http/types@0.2.12": super::imports::wasi::http::types,
            "wasi:http/outgoing-handler@0.2.12": super::imports::wasi::http::outgoing_handler,
        },
    });
}

pub mod factor {
    wit_bindgen::generate!({
        path: "../../wit/0.1.0",
        world: "factor-plugin",
        pub_export_macro: true,
        export_macro_name: "export_factor",
        with: {
            "bulkhead:plugin/types@0.1.0": super::imports::bulkhead::plugin::types,
            "wasi:logging/logging@0.1.0-draft": super::imports::wasi::logging::logging,
        },
    });
}

/// Answers an action or a channel call.
pub fn answer<C: Contributions>(name: &str, ctx: CallContext, input: &str) -> Result<String, WitFailure> {
    let ctx = Context {
        org: ctx.org,
        installation: ctx.installation,
        call: ctx.call,
        run: ctx.run,
        step: ctx.step,
        attempt: ctx.attempt,
        idempotency_key: ctx.idempotency_key,
        deadline_ms: ctx.deadline_ms,
        locale: ctx.locale,
    };
    C::call(name, &ctx, input).map_err(|failure| match failure {
        Failure::InvalidInput(message) => WitFailure::InvalidInput(message),
        Failure::Transient { message, retry_after_ms } => {
            WitFailure::Transient(plugin_types::Transient { message, retry_after_ms })
        }
        Failure::Permanent(message) => WitFailure::Permanent(message),
        Failure::Refused(message) => WitFailure::Refused(message),
    })
}

/// Answers a factor call.
pub fn answer_batch<S: Scoring>(
    name: &str,
    settings: &str,
    leads: Vec<WitLeadFacts>,
) -> Result<Vec<WitContribution>, String> {
    let leads: Vec<LeadFacts> = leads.into_iter().map(|lead| LeadFacts { id: lead.id, fields: lead.fields }).collect();
    let scores = S::score(name, settings, &leads)?;
    Ok(scores.into_iter().map(|score| WitContribution { points: score.points, reason: score.reason }).collect())
}

pub(crate) fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pub(crate) fn log(level: Level, message: &str) {
    let level = match level {
        Level::Trace => logging::Level::Trace,
        Level::Debug => logging::Level::Debug,
        Level::Info => logging::Level::Info,
        Level::Warn => logging::Level::Warn,
        Level::Error => logging::Level::Error,
        Level::Critical => logging::Level::Critical,
    };
    logging::log(level, "", message);
}

pub(crate) fn setting(name: &str) -> Result<Option<String>, String> {
    store::get(name).map_err(|error| match error {
        store::Error::Upstream(message) | store::Error::Io(message) => message,
    })
}

pub(crate) fn placeholder(name: &str) -> Result<String, SecretError> {
    secrets::placeholder(name).map_err(secret_error)
}

pub(crate) fn hmac_sha256(name: &str, data: &[u8]) -> Result<Vec<u8>, SecretError> {
    secrets::hmac_sha256(name, data).map_err(secret_error)
}

fn secret_error(error: secrets::SecretError) -> SecretError {
    match error {
        secrets::SecretError::NotGranted(name) => SecretError::NotGranted(name),
        secrets::SecretError::NotSet(name) => SecretError::NotSet(name),
        secrets::SecretError::TooLarge => SecretError::TooLarge,
    }
}

pub(crate) fn send(request: &Request) -> Result<Response, HttpError> {
    let outgoing = head(request)?;
    let body = outgoing.body().map_err(|()| HttpError::Failed("the request has no body".into()))?;
    let options = request.first_byte_timeout_ms.map(|timeout_ms| {
        let options = RequestOptions::new();
        // A host that does not know the option keeps its own cap.
        let _ = options.set_first_byte_timeout(Some(timeout_ms.saturating_mul(1_000_000)));
        options
    });
    // The head goes first: the body's stream flows only once somebody reads it.
    let pending = outgoing_handler::handle(outgoing, options).map_err(|code| http_error(request, code))?;
    let written = write_body(&body, &request.body)
        .and_then(|()| OutgoingBody::finish(body, None).map_err(|code| http_error(request, code)));
    pending.subscribe().block();
    let answer = pending
        .get()
        .ok_or_else(|| HttpError::Failed("the answer was announced but is not there".into()))?
        .map_err(|()| HttpError::Failed("the answer was taken already".into()))?;
    match (answer, written) {
        (Ok(response), _) => read(request, &response),
        // The host's word on the request says more than a closed body stream.
        (Err(code), _) => Err(http_error(request, code)),
    }
}

/// Everything of the request but its body.
fn head(request: &Request) -> Result<OutgoingRequest, HttpError> {
    let target = request.target()?;
    let invalid = |what: &str| HttpError::Invalid(format!("{what} in {}", request.label()));
    let headers = Fields::new();
    for (name, value) in &request.headers {
        headers.append(name, value.as_bytes()).map_err(|error| invalid(&format!("header {name}: {error}")))?;
    }
    let outgoing = OutgoingRequest::new(headers);
    let method = match request.method.as_str() {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "OPTIONS" => Method::Options,
        "PATCH" => Method::Patch,
        other => Method::Other(other.to_owned()),
    };
    outgoing.set_method(&method).map_err(|()| invalid("the method"))?;
    let scheme = if target.tls { Scheme::Https } else { Scheme::Http };
    outgoing.set_scheme(Some(&scheme)).map_err(|()| invalid("the scheme"))?;
    outgoing.set_authority(Some(target.authority)).map_err(|()| invalid("the host"))?;
    outgoing.set_path_with_query(Some(&target.path_with_query)).map_err(|()| invalid("the path"))?;
    Ok(outgoing)
}

fn write_body(body: &OutgoingBody, mut bytes: &[u8]) -> Result<(), HttpError> {
    let closed = |error: StreamError| HttpError::Connection(format!("the request's body was not taken: {error}"));
    let stream = body.write().map_err(|()| HttpError::Failed("the request's body was taken already".into()))?;
    let ready = stream.subscribe();
    while !bytes.is_empty() {
        ready.block();
        let room = usize::try_from(stream.check_write().map_err(closed)?).unwrap_or(usize::MAX).min(bytes.len());
        let (now, later) = bytes.split_at(room);
        stream.write(now).map_err(closed)?;
        bytes = later;
    }
    stream.flush().map_err(closed)?;
    ready.block();
    stream.check_write().map_err(closed)?;
    Ok(())
}

fn read(request: &Request, response: &IncomingResponse) -> Result<Response, HttpError> {
    let status = response.status();
    let headers = response.headers().entries();
    let headers = headers
        .into_iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), String::from_utf8_lossy(&value).into_owned()))
        .collect();
    let incoming = response.consume().map_err(|()| HttpError::Failed("the answer has no body".into()))?;
    let body = read_body(request, &incoming)?;
    Ok(Response { status, headers, body })
}

fn read_body(request: &Request, incoming: &IncomingBody) -> Result<Vec<u8>, HttpError> {
    let stream = incoming.stream().map_err(|()| HttpError::Failed("the answer's body was taken already".into()))?;
    let mut body = Vec::new();
    loop {
        match stream.blocking_read(READ_BYTES) {
            Ok(chunk) => body.extend_from_slice(&chunk),
            Err(StreamError::Closed) => return Ok(body),
            Err(StreamError::LastOperationFailed(error)) => {
                return Err(match imports::wasi::http::types::http_error_code(&error) {
                    Some(code) => http_error(request, code),
                    None => {
                        HttpError::Connection(format!("{} broke off: {}", request.label(), error.to_debug_string()))
                    }
                });
            }
        }
    }
}

fn http_error(request: &Request, code: ErrorCode) -> HttpError {
    let label = request.label();
    match code {
        ErrorCode::HttpRequestDenied => HttpError::Denied(format!("{label} is not covered by a grant")),
        ErrorCode::DestinationIpProhibited => {
            HttpError::Denied(format!("{label} leads to an address that is not public"))
        }
        ErrorCode::DnsTimeout
        | ErrorCode::ConnectionTimeout
        | ErrorCode::ConnectionReadTimeout
        | ErrorCode::ConnectionWriteTimeout
        | ErrorCode::HttpResponseTimeout => HttpError::Timeout(format!("{label}: {code}")),
        ErrorCode::DnsError(_)
        | ErrorCode::DestinationNotFound
        | ErrorCode::DestinationUnavailable
        | ErrorCode::DestinationIpUnroutable
        | ErrorCode::ConnectionRefused
        | ErrorCode::ConnectionTerminated
        | ErrorCode::ConnectionLimitReached
        | ErrorCode::TlsProtocolError
        | ErrorCode::TlsCertificateError
        | ErrorCode::TlsAlertReceived(_)
        | ErrorCode::HttpResponseIncomplete => HttpError::Connection(format!("{label}: {code}")),
        ErrorCode::HttpRequestBodySize(_)
        | ErrorCode::HttpRequestUriTooLong
        | ErrorCode::HttpRequestHeaderSectionSize(_)
        | ErrorCode::HttpRequestHeaderSize(_)
        | ErrorCode::HttpResponseHeaderSectionSize(_)
        | ErrorCode::HttpResponseHeaderSize(_)
        | ErrorCode::HttpResponseBodySize(_) => HttpError::TooLarge(format!("{label}: {code}")),
        ErrorCode::HttpRequestMethodInvalid
        | ErrorCode::HttpRequestUriInvalid
        | ErrorCode::HttpRequestLengthRequired => HttpError::Invalid(format!("{label}: {code}")),
        ErrorCode::InternalError(Some(message)) => HttpError::Failed(format!("{label}: {message}")),
        other => HttpError::Failed(format!("{label}: {other}")),
    }
}
