//! One request and one answer over a connection of its own, everything about the answer bounded.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bulkhead_model::call::EgressRecord;
use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, HeaderName, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::connect::Stream;
use super::inject::Outgoing;
use super::{EgressConfig, EgressContext, EgressError, Timeouts, shorter};

/// What says something about one connection only, and nothing to the plugin.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authenticate"),
];

/// Sends `outgoing` and reads the whole answer. What arrived so far is in `record` even when it fails.
pub(super) async fn exchange(
    stream: Box<dyn Stream>,
    config: &EgressConfig,
    method: &Method,
    outgoing: Outgoing,
    context: &EgressContext,
    timeouts: Timeouts,
    record: &mut EgressRecord,
) -> Result<Response<Bytes>, EgressError> {
    let mut builder = http1::Builder::new();
    builder.max_headers(config.response_headers_max);
    // hyper refuses less than 8 KiB.
    builder.max_buf_size(config.response_header_bytes_max.max(8 * 1024));
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(EgressError::of_exchange)?;
    let request = request(method, outgoing)?;
    let first_byte = shorter(config.first_byte_ms, timeouts.first_byte);
    let talk = async {
        let response = tokio::time::timeout(first_byte, sender.send_request(request))
            .await
            .map_err(|_| EgressError::FirstByteTimeout)?
            .map_err(EgressError::of_exchange)?;
        read(response, method, context.response_bytes_max, timeouts.between_bytes, record).await
    };
    // The connection is driven here rather than by a task of its own: it ends with this future, whatever the reason.
    let (mut talk, mut connection) = (pin!(talk), pin!(connection));
    let mut connection_ended = false;
    poll_fn(|cx| {
        if !connection_ended && connection.as_mut().poll(cx).is_ready() {
            connection_ended = true;
        }
        match talk.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            ready @ Poll::Ready(_) => ready,
        }
    })
    .await
}

fn request(method: &Method, outgoing: Outgoing) -> Result<Request<Full<Bytes>>, EgressError> {
    let Outgoing { url, headers, body } = outgoing;
    let target = match url.query() {
        None => url.path().to_owned(),
        Some(query) => format!("{}?{query}", url.path()),
    };
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method.clone();
    *request.uri_mut() = target.parse().map_err(|_| EgressError::BadUrl { why: "its path cannot be sent" })?;
    *request.headers_mut() = headers;
    Ok(request)
}

async fn read(
    response: Response<Incoming>,
    method: &Method,
    bytes_max: u64,
    between_bytes: Option<Duration>,
    record: &mut EgressRecord,
) -> Result<Response<Bytes>, EgressError> {
    let (mut head, mut body) = response.into_parts();
    record.status = Some(head.status.as_u16());
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(EgressError::Upgraded);
    }
    let encoded = |value: &HeaderValue| !value.is_empty() && !value.as_bytes().eq_ignore_ascii_case(b"identity");
    let has_body = *method != Method::HEAD && !matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if has_body && head.headers.get_all(CONTENT_ENCODING).iter().any(encoded) {
        return Err(EgressError::Encoded);
    }
    let announced = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if has_body && announced.is_some_and(|bytes| bytes > bytes_max) {
        return Err(EgressError::ResponseTooLarge { bytes_max });
    }
    let mut read = BytesMut::new();
    loop {
        // Without a wish of the plugin's a pause lasts as long as the whole request may.
        let frame = match between_bytes {
            None => body.frame().await,
            Some(pause) => {
                tokio::time::timeout(pause, body.frame()).await.map_err(|_| EgressError::BetweenBytesTimeout)?
            }
        };
        let Some(frame) = frame else { break };
        let Ok(data) = frame.map_err(EgressError::of_exchange)?.into_data() else { continue };
        record.response_bytes += data.len() as u64;
        if record.response_bytes > bytes_max {
            return Err(EgressError::ResponseTooLarge { bytes_max });
        }
        read.extend_from_slice(&data);
    }
    for name in &HOP_BY_HOP {
        head.headers.remove(name);
    }
    Ok(Response::from_parts(head, read.freeze()))
}
