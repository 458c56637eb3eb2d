//! Which request headers leave: the plugin's own, without what frames the message or steers the connection.

use bulkhead_model::grant::{EffectiveGrants, is_host_owned_header};
use http::header::{ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use url::Url;

use super::{EgressConfig, EgressError};

/// Bytes of one header's value.
const VALUE_BYTES_MAX: usize = 8 * 1024;
/// What a request calls itself when the plugin says nothing.
const AGENT: &str = concat!("bulkhead/", env!("CARGO_PKG_VERSION"));

fn refuse(name: &HeaderName, why: &'static str) -> EgressError {
    EgressError::Header { name: name.as_str().chars().take(64).collect(), why }
}

/// The headers to send, or the first that may not be sent.
///
/// Headers that client libraries set by habit are taken over by the platform when they say nothing else than the platform
/// would; with any other content they are an attempt to confuse whoever reads the request next.
pub(super) fn checked(
    headers: &HeaderMap,
    method: &Method,
    url: &Url,
    body_bytes: usize,
    grants: &EffectiveGrants,
    config: &EgressConfig,
) -> Result<HeaderMap, EgressError> {
    let too_many =
        || EgressError::Header { name: "*".to_owned(), why: "there are too many headers, or they are too long" };
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if headers.len() > config.request_headers_max || bytes > config.request_header_bytes_max {
        return Err(too_many());
    }
    let mut kept = HeaderMap::with_capacity(headers.len() + 5);
    for (name, value) in headers {
        if value.len() > VALUE_BYTES_MAX {
            return Err(refuse(name, "its value is too long"));
        }
        // Some servers read `_` as `-`.
        let plain = name.as_str().replace('_', "-");
        match plain.as_str() {
            "host" if name == HOST => {
                if headers.get_all(HOST).iter().count() > 1 || !is_own_host(value, url) {
                    return Err(refuse(name, "it must be the URL's host"));
                }
            }
            "content-length" if name == CONTENT_LENGTH => {
                let own = value.as_bytes() == body_bytes.to_string().as_bytes();
                if headers.get_all(CONTENT_LENGTH).iter().count() > 1 || !own {
                    return Err(refuse(name, "it must be the body's length, once"));
                }
            }
            "connection" if name == CONNECTION => {
                if !(value.as_bytes().eq_ignore_ascii_case(b"close")
                    || value.as_bytes().eq_ignore_ascii_case(b"keep-alive"))
                {
                    return Err(refuse(name, "it belongs to the platform"));
                }
            }
            "accept-encoding" if name == ACCEPT_ENCODING => {}
            owned if is_host_owned_header(owned) => return Err(refuse(name, "it belongs to the platform")),
            "x-http-method-override" | "x-http-method" | "x-method-override" => {
                let other = value.to_str().map_err(|_| refuse(name, "it is no method"))?;
                grants.http(other, url).map_err(EgressError::Refused)?;
                kept.append(name.clone(), value.clone());
            }
            "x-original-url" | "x-rewrite-url" => {
                return Err(refuse(name, "it would change the path that was granted"));
            }
            _ => {
                kept.append(name.clone(), value.clone());
            }
        }
    }
    let host = host_of(url).ok_or(EgressError::BadUrl { why: "its host cannot be written into a header" })?;
    kept.insert(HOST, host);
    kept.insert(CONNECTION, HeaderValue::from_static("close"));
    kept.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if !kept.contains_key(USER_AGENT) {
        kept.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    }
    if body_bytes > 0 || !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE) {
        kept.insert(CONTENT_LENGTH, HeaderValue::from(body_bytes));
    }
    Ok(kept)
}

/// `host` or `host:port`, the port only when it is not the scheme's own.
fn host_of(url: &Url) -> Option<HeaderValue> {
    let host = url.host_str()?;
    match url.port() {
        None => HeaderValue::from_str(host).ok(),
        Some(port) => HeaderValue::try_from(format!("{host}:{port}")).ok(),
    }
}

fn is_own_host(value: &HeaderValue, url: &Url) -> bool {
    let with_port = || {
        let port = url.port_or_known_default()?;
        HeaderValue::try_from(format!("{}:{port}", url.host_str()?)).ok()
    };
    let same = |own: HeaderValue| value.as_bytes().eq_ignore_ascii_case(own.as_bytes());
    host_of(url).is_some_and(same) || with_port().is_some_and(same)
}
