//! What every request passes on its way in and out: its id, its span, the measurements, the panic guard, the headers, and the
//! body of a problem document.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bulkhead_app::correlated;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tracing::Instrument as _;

use crate::HttpState;
use crate::problem::{Kind, Problem};
use crate::session::ClientAddress;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// A request id that somebody else chose holds at most this many characters.
const REQUEST_ID_LEN_MAX: usize = 128;
/// The route label of requests that no route matches, so that scanners make no new time series.
const NO_ROUTE: &str = "unmatched";
/// Bytes of a part of an address that nobody serves, in the log: credentials are longer.
const PART_LEN_MAX: usize = 24;
const PARTS_MAX: usize = 20;

/// Counts a request as under way for as long as it lives, even when the client goes away.
struct InFlight;

impl InFlight {
    fn begin() -> Self {
        metrics::gauge!("bulkhead_http_requests_in_flight").increment(1.0);
        Self
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        metrics::gauge!("bulkhead_http_requests_in_flight").decrement(1.0);
    }
}

/// An address that nobody serves, without those of its parts that are long enough to be somebody's credential.
fn without_credentials(path: &str) -> String {
    let shown = |part| if str::len(part) > PART_LEN_MAX { "…" } else { part };
    path.split('/').map(shown).take(PARTS_MAX).collect::<Vec<_>>().join("/")
}

/// The outermost layer.
pub(crate) async fn edge(State(state): State<HttpState>, mut request: Request, next: Next) -> Response {
    let (began, _in_flight) = (Instant::now(), InFlight::begin());
    let id = request_id(request.headers(), &state);
    let method = method_label(request.method());
    let route =
        request.extensions().get::<MatchedPath>().map_or_else(|| NO_ROUTE.to_owned(), |path| path.as_str().to_owned());
    // A hook's address holds its credential, which no log may show, however its sender misspells it.
    let path = match route.as_str() {
        NO_ROUTE => without_credentials(request.uri().path()),
        route if route.starts_with("/hooks/") => route.to_owned(),
        _ => request.uri().path().to_owned(),
    };
    let span = tracing::info_span!(
        "request",
        correlation_id = %id,
        method,
        path,
        trace_id = trace_id(request.headers()),
        org_id = tracing::field::Empty,
        user_id = tracing::field::Empty,
    );
    let response = match place_client(&mut request, &state) {
        Ok(()) => correlated(&id, next.run(request)).instrument(span.clone()).await,
        Err(unreadable) => span.in_scope(|| unreadable.into_response()),
    };
    let status = response.status();
    let elapsed = began.elapsed();
    metrics::histogram!(
        "bulkhead_http_request_duration_seconds",
        "method" => method,
        "route" => route,
        "status" => status.as_str().to_owned(),
    )
    .record(elapsed.as_secs_f64());
    let latency_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    span.in_scope(|| tracing::info!(status_code = status.as_u16(), latency_ms, "answered"));
    finish(response, &id, state.config.public_url.starts_with("https://"))
}

/// Puts the client's address in the place of the peer's.
fn place_client(request: &mut Request, state: &HttpState) -> Result<(), Problem> {
    let Some(ClientAddress(peer)) = request.extensions_mut().remove::<ClientAddress>() else { return Ok(()) };
    let proxies = &state.config.trusted_proxies;
    // This server speaks no TLS: with an https address every peer is a proxy, and which client it speaks for is not known.
    if proxies.is_empty() && state.config.public_url.starts_with("https://") {
        return Ok(());
    }
    let values = |name: HeaderName| -> Vec<&[u8]> {
        request.headers().get_all(name).iter().map(HeaderValue::as_bytes).collect()
    };
    let client = proxies.client(peer, &values(header::FORWARDED), &values(FORWARDED_FOR));
    let client = client.map_err(|unreadable| Problem::new(Kind::InvalidHeader, unreadable.to_string()))?;
    request.extensions_mut().insert(ClientAddress(client));
    Ok(())
}

/// The caller's id when it is harmless text, else a new one.
fn request_id(headers: &HeaderMap, state: &HttpState) -> String {
    let harmless = |text: &&str| {
        // It stays for good in logs: nobody's key does.
        !text.starts_with("bh_")
            && (1..=REQUEST_ID_LEN_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    match headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(harmless) {
        Some(given) => given.to_owned(),
        None => hex::encode(state.app.ambient().random::<16>()),
    }
}

/// The trace that the request belongs to, by W3C Trace Context (`version-trace-parent-flags`).
fn trace_id(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let trace = text.split('-').nth(1)?;
    let valid = trace.len() == 32
        && trace.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        && trace.bytes().any(|b| b != b'0');
    valid.then(|| trace.to_owned())
}

fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// Adds what every response carries, and writes a problem's body.
fn finish(mut response: Response, id: &str, behind_tls: bool) -> Response {
    if let Some(problem) = response.extensions_mut().remove::<Arc<Problem>>() {
        let body = problem.render(id);
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        *response.body_mut() = Body::from(body);
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, value);
    }
    let fixed = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if behind_tls {
        let year = HeaderValue::from_static("max-age=31536000; includeSubDomains");
        headers.insert(header::STRICT_TRANSPORT_SECURITY, year);
    }
    let defaults = [
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in defaults {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// A handler that panicked becomes an answer, and a line in the log.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands the payload over")]
pub(crate) fn panicked(payload: Box<dyn Any + Send + 'static>) -> Response {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without text".to_owned());
    metrics::counter!("bulkhead_http_panics_total").increment(1);
    Problem::internal(&Panicked(text)).into_response()
}

#[derive(Debug, thiserror::Error)]
#[error("a handler panicked: {0}")]
struct Panicked(String);

/// Ends a request that takes too long. The host's work under way is dropped where it waits; a write that was handed to the
/// store ends there either way.
pub(crate) async fn deadline(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    tokio::time::timeout(limit, next.run(request)).await.unwrap_or_else(|_| {
        let detail = format!("no answer within {} seconds: try again, and report it if it stays so", limit.as_secs());
        Problem::new(Kind::TimedOut, detail).into_response()
    })
}

/// No route has this path.
pub(crate) async fn no_route() -> Problem {
    Problem::new(Kind::NotFound, "there is nothing at this address; the API is described at /api/openapi.json")
}

/// The path exists, the method does not; axum adds `Allow`.
pub(crate) async fn no_method() -> Problem {
    Problem::new(Kind::MethodNotAllowed, "the header `allow` names the methods that this resource has")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_credential_is_logged_however_its_address_is_misspelt() {
        let token = "ab".repeat(32);
        for path in [format!("/hook/{token}"), format!("/hooks%2F{token}"), format!("/a/b/%68ooks/{token}/")] {
            assert!(!without_credentials(&path).contains(&token), "{path}");
        }
        assert_eq!(without_credentials("/api/v2/orgs/acme"), "/api/v2/orgs/acme");
    }

    #[test]
    fn only_well_formed_traces_are_followed() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", HeaderValue::from_static(text));
            trace_id(&headers)
        };
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(of(good).as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        for bad in [
            "",
            "00",
            "00-xyz-1-1",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-1-1",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_takes_too_long_is_given_up() {
        use axum::Router;
        use axum::routing::get;
        use http::StatusCode;
        use tower::ServiceExt as _;

        let limit = Duration::from_millis(20);
        let router: Router = Router::new()
            .route("/never", get(std::future::pending::<()>))
            .route("/soon", get(|| async { "here" }))
            .layer(axum::middleware::from_fn_with_state(limit, deadline));
        let ask = |path: &str| Request::builder().uri(path).body(Body::empty()).unwrap();
        let late = router.clone().oneshot(ask("/never")).await.unwrap();
        assert_eq!(late.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(late.extensions().get::<Arc<Problem>>().unwrap().slug(), "timed-out");
        assert_eq!(router.oneshot(ask("/soon")).await.unwrap().status(), StatusCode::OK);
    }
}
