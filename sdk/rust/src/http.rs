//! Outbound HTTP. Permission `http`: origin, method and path must match one grant.
//!
//! ```
//! use bulkhead_sdk::{Failure, http, secret};
//!
//! # fn example() -> Result<(), Failure> {
//! let response = http::post("https://slack.com/api/chat.postMessage")
//!     .header("authorization", secret("bot_token")?.bearer())
//!     .json(&serde_json::json!({ "channel": "#ops", "text": "hello" }))?
//!     .send()?;
//! if response.is_success() {
//!     let answer: serde_json::Value = response.json()?;
//! }
//! # Ok(())
//! # }
//! ```

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::platform;

/// A request under construction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Upper case.
    pub method: String,
    pub url: String,
    /// In the order in which they were added.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Milliseconds until the first byte of the answer; `None` is the host's own cap.
    pub first_byte_timeout_ms: Option<u64>,
}

/// The answer to a request. Any status is an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// No grant covers the request, or it would have carried a secret to the wrong place. Nothing was sent.
    Denied(String),
    /// The request itself is malformed.
    Invalid(String),
    Timeout(String),
    /// No connection, or it broke.
    Connection(String),
    /// Request or response are over a limit.
    TooLarge(String),
    /// Anything else.
    Failed(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(what) => write!(f, "the request was denied: {what}"),
            Self::Invalid(what) => write!(f, "the request is invalid: {what}"),
            Self::Timeout(what) => write!(f, "no answer in time: {what}"),
            Self::Connection(what) => write!(f, "no connection: {what}"),
            Self::TooLarge(what) => write!(f, "too large: {what}"),
            Self::Failed(what) => write!(f, "the request failed: {what}"),
        }
    }
}

impl std::error::Error for Error {}

/// Begins a request with this method.
pub fn request(method: impl Into<String>, url: impl Into<String>) -> Request {
    let mut method = method.into();
    method.make_ascii_uppercase();
    Request { method, url: url.into(), headers: Vec::new(), body: Vec::new(), first_byte_timeout_ms: None }
}

pub fn get(url: impl Into<String>) -> Request {
    request("GET", url)
}

pub fn post(url: impl Into<String>) -> Request {
    request("POST", url)
}

pub fn put(url: impl Into<String>) -> Request {
    request("PUT", url)
}

impl Request {
    /// Adds a header. A [`Placeholder`](crate::secret::Placeholder) may stand in the value where the manifest's `inject` names the header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl AsRef<str>) -> Self {
        self.headers.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Sets the body, and `content-type: application/json` unless there is one already.
    pub fn json<T: Serialize + ?Sized>(mut self, value: &T) -> Result<Self, serde_json::Error> {
        self.body = serde_json::to_vec(value)?;
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            self.headers.push(("content-type".into(), "application/json".into()));
        }
        Ok(self)
    }

    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    #[must_use]
    pub fn first_byte_timeout_ms(mut self, timeout_ms: u64) -> Self {
        self.first_byte_timeout_ms = Some(timeout_ms);
        self
    }

    /// Sends the request and waits for the whole answer. Redirects come back as they are.
    pub fn send(self) -> Result<Response, Error> {
        platform::send(&self)
    }

    /// The parts of the URL as they go over the wire: scheme, authority, path with query.
    pub(crate) fn target(&self) -> Result<Target<'_>, Error> {
        Target::parse(&self.url)
            .ok_or_else(|| Error::Invalid(format!("{:?} is not an http or https URL", self.label())))
    }

    /// Method and URL for messages, without the query, which may hold personal data.
    pub(crate) fn label(&self) -> String {
        let end = self.url.find(['?', '#']).unwrap_or(self.url.len());
        format!("{} {}", self.method, &self.url[..end])
    }
}

/// A URL, cut but not decoded: the host parses it once more, with the parser that decides.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    pub(crate) tls: bool,
    pub(crate) authority: &'a str,
    pub(crate) path_with_query: String,
}

impl<'a> Target<'a> {
    pub(crate) fn parse(url: &'a str) -> Option<Self> {
        let (scheme, rest) = url.trim().split_once("://")?;
        let tls = if scheme.eq_ignore_ascii_case("https") {
            true
        } else if scheme.eq_ignore_ascii_case("http") {
            false
        } else {
            return None;
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.is_empty() {
            return None;
        }
        let path_with_query = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Some(Self { tls, authority, path_with_query })
    }
}

impl Response {
    #[must_use]
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The first header of this name, in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as text; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }

    /// Milliseconds of a `Retry-After` in seconds; a date is not read, since the clock may be coarse.
    #[must_use]
    pub fn retry_after_ms(&self) -> Option<u64> {
        let seconds: u64 = self.header("retry-after")?.trim().parse().ok()?;
        seconds.checked_mul(1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_cut_into_their_parts() {
        let target = |url| Target::parse(url).map(|t| (t.tls, t.authority.to_owned(), t.path_with_query));
        assert_eq!(target("https://a.example/b?c=d#e"), Some((true, "a.example".into(), "/b?c=d".into())));
        assert_eq!(target("HTTP://a.example:8080"), Some((false, "a.example:8080".into(), "/".into())));
        assert_eq!(target("https://a.example?q"), Some((true, "a.example".into(), "/?q".into())));
        assert_eq!(target("https://u@a.example/"), Some((true, "u@a.example".into(), "/".into())));
        assert_eq!(target("ftp://a.example/"), None);
        assert_eq!(target("https:///path"), None);
        assert_eq!(target("a.example/path"), None);
    }

    #[test]
    fn messages_do_not_show_the_query() {
        assert_eq!(get("https://a.example/b?token=1").label(), "GET https://a.example/b");
    }

    #[test]
    fn retry_after_is_read_in_seconds() {
        let response = |value: &str| Response {
            status: 429,
            headers: vec![("retry-after".into(), value.into())],
            body: Vec::new(),
        };
        assert_eq!(response(" 7 ").retry_after_ms(), Some(7_000));
        assert_eq!(response("Wed, 21 Oct 2026 07:28:00 GMT").retry_after_ms(), None);
        assert_eq!(response("18446744073709551615").retry_after_ms(), None);
    }

    #[test]
    fn a_content_type_of_ones_own_is_kept() {
        let request = post("https://a.example/").header("Content-Type", "application/cloudevents+json");
        let request = request.json(&1).expect("a number is JSON");
        assert_eq!(request.headers, [("Content-Type".to_owned(), "application/cloudevents+json".to_owned())]);
    }
}
