//! The three parts of a rule about requests: origin, method and path. Each is checked once, when it is parsed, and each can
//! say what it covers and what it has in common with another.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

use super::address::may_be_public;

/// Bytes of an origin's text; a host name has at most 253.
pub const ORIGIN_BYTES_MAX: usize = 300;
/// Bytes of a method.
pub const METHOD_BYTES_MAX: usize = 32;
/// Bytes of a path prefix.
pub const PATH_BYTES_MAX: usize = 1_024;

/// Why an origin, a method or a path was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: {rule}")]
pub struct ScopeError {
    pub text: String,
    pub what: &'static str,
    pub rule: &'static str,
}

impl ScopeError {
    fn new(text: &str, what: &'static str, rule: &'static str) -> Self {
        Self { text: text.chars().take(80).collect(), what, rule }
    }
}

/// A set that is compared with others of its kind.
pub(crate) trait Scope: Sized + Ord {
    /// Whether everything in `other` is in `self`.
    fn covers(&self, other: &Self) -> bool;
    /// What both have in common.
    fn meet(&self, other: &Self) -> Option<Self>;
}

/// Comparisons that one computation of rights may take. The largest manifest, granted as it asks, takes about half of them;
/// lists of wildcards that cross each other (`host:*` with `*:port`) would take a thousand times as many.
pub const COMPARISONS_MAX: usize = 32_000_000;

/// The rights cannot be computed in bounded time: lists of wildcards cross each other in too many ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("origins and paths overlap in too many ways: name fewer of them")]
pub struct TooComplex;

/// What is left of [`COMPARISONS_MAX`].
#[derive(Clone, Debug)]
pub struct Budget(usize);

impl Default for Budget {
    fn default() -> Self {
        Self(COMPARISONS_MAX)
    }
}

impl Budget {
    pub(crate) fn spend(&mut self, comparisons: usize) -> Result<(), TooComplex> {
        self.0 = self.0.checked_sub(comparisons).ok_or(TooComplex)?;
        Ok(())
    }
}

/// What two lists, each the union of its members, have in common: sorted, and without members that another one covers.
pub(crate) fn meet_lists<T: Scope>(left: &[T], right: &[T], budget: &mut Budget) -> Result<Vec<T>, TooComplex> {
    let mut common: Vec<T> = Vec::new();
    for l in left {
        budget.spend(right.len())?;
        for item in right.iter().filter_map(|r| l.meet(r)) {
            budget.spend(2 * common.len())?;
            if !common.iter().any(|kept| kept.covers(&item)) {
                common.retain(|kept| !item.covers(kept));
                common.push(item);
            }
        }
    }
    common.sort();
    Ok(common)
}

/// Whether two such lists have anything in common.
pub(crate) fn lists_meet<T: Scope>(left: &[T], right: &[T]) -> bool {
    left.iter().any(|l| right.iter().any(|r| l.meet(r).is_some()))
}

/// Whether the union of `outer` covers each member of `inner` by a single member.
pub(crate) fn covers_list<T: Scope>(outer: &[T], inner: &[T]) -> bool {
    inner.iter().all(|i| outer.iter().any(|o| o.covers(i)))
}

macro_rules! as_text {
    ($name:ident, $description:literal) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "\"{self}\"")
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $description })
            }
        }
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    #[must_use]
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }

    /// Reads `http` or `https` in lower case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "http" => Some(Self::Http),
            "https" => Some(Self::Https),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum HostPattern {
    /// `*`: any host that may be public.
    AnyPublic,
    /// `*.example.com` holds `example.com`: every name below it, never itself.
    Below(Box<str>),
    /// As the `url` crate writes it: lower case, IDNA, canonical addresses, IPv6 in brackets.
    Exact(Box<str>),
}

impl HostPattern {
    fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => **name == *host,
            Self::Below(parent) => is_below(host, parent),
            Self::AnyPublic => may_be_public(host),
        }
    }

    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Exact(name)) => self.matches(name),
            (Self::AnyPublic, Self::AnyPublic | Self::Below(_)) => true,
            (Self::Below(outer), Self::Below(inner)) => outer == inner || is_below(inner, outer),
            (Self::Below(_) | Self::Exact(_), Self::AnyPublic) | (Self::Exact(_), Self::Below(_)) => false,
        }
    }
}

fn is_below(host: &str, parent: &str) -> bool {
    host.strip_suffix(parent).and_then(|rest| rest.strip_suffix('.')).is_some_and(|label| !label.is_empty())
}

/// Origins that a rule covers: scheme, host and port.
///
/// `https://slack.com`, `https://*.example.com:8443`, `https://*` (any public host). The port is the scheme's own unless
/// written; `:*` is any port. Text goes through the parser of the HTTP client, so that both see the same host.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OriginPattern {
    scheme: Scheme,
    host: HostPattern,
    /// `None` is any port.
    port: Option<u16>,
}

const ORIGIN: &str = "an origin";
const ORIGIN_RULE: &str = "write scheme (http or https), host and port alone, such as https://api.example.com, \
                           https://*.example.com:8443 or https://*";

impl OriginPattern {
    /// Exactly this URL's origin. `None` when its scheme is neither http nor https, when it carries user information or
    /// when its host is no name or address.
    #[must_use]
    pub fn of_url(url: &Url) -> Option<Self> {
        let scheme = Scheme::parse(url.scheme())?;
        let host = url.host_str()?;
        if !url.username().is_empty() || url.password().is_some() || !is_plain_host(host) {
            return None;
        }
        Some(Self { scheme, host: HostPattern::Exact(host.into()), port: Some(url.port_or_known_default()?) })
    }

    /// Any public host by this scheme, at its own port or at any.
    #[must_use]
    pub fn any_public(scheme: Scheme, any_port: bool) -> Self {
        Self { scheme, host: HostPattern::AnyPublic, port: (!any_port).then(|| scheme.default_port()) }
    }

    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host, when the pattern names exactly one.
    #[must_use]
    pub fn exact_host(&self) -> Option<&str> {
        match &self.host {
            HostPattern::Exact(host) => Some(host),
            HostPattern::AnyPublic | HostPattern::Below(_) => None,
        }
    }

    /// Whether it covers any public host.
    #[must_use]
    pub fn is_any_public(&self) -> bool {
        self.host == HostPattern::AnyPublic
    }

    /// Whether it names one host that is an address or a name of a private network.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.exact_host().is_some_and(|host| !may_be_public(host))
    }

    /// Whether a URL of this scheme, host and port is covered. Allocates nothing.
    #[must_use]
    pub fn matches(&self, scheme: Scheme, host: &str, port: u16) -> bool {
        self.scheme == scheme && self.port.is_none_or(|p| p == port) && self.host.matches(host)
    }

    /// [`matches`](Self::matches) for a parsed URL.
    #[must_use]
    pub fn matches_url(&self, url: &Url) -> bool {
        match (Scheme::parse(url.scheme()), url.host_str(), url.port_or_known_default()) {
            (Some(scheme), Some(host), Some(port)) => self.matches(scheme, host, port),
            _ => false,
        }
    }
}

impl Scope for OriginPattern {
    fn covers(&self, other: &Self) -> bool {
        self.scheme == other.scheme && (self.port.is_none() || self.port == other.port) && self.host.covers(&other.host)
    }

    fn meet(&self, other: &Self) -> Option<Self> {
        if self.scheme != other.scheme {
            return None;
        }
        let port = match (self.port, other.port) {
            (Some(left), Some(right)) if left != right => return None,
            (left, right) => left.or(right),
        };
        let host = if self.host.covers(&other.host) {
            &other.host
        } else if other.host.covers(&self.host) {
            &self.host
        } else {
            return None;
        };
        Some(Self { scheme: self.scheme, host: host.clone(), port })
    }
}

/// A host that stands for itself alone, as the parser wrote it.
fn is_plain_host(host: &str) -> bool {
    !host.is_empty() && !host.contains('*') && !host.starts_with('.') && !host.ends_with('.') && !host.contains("..")
}

impl FromStr for OriginPattern {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let refuse = |rule| ScopeError::new(text, ORIGIN, rule);
        if text.len() > ORIGIN_BYTES_MAX {
            return Err(refuse("it is too long"));
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(|| refuse(ORIGIN_RULE))?;
        let scheme = Scheme::parse(scheme).ok_or_else(|| refuse("the scheme is http or https, in lower case"))?;
        if rest.contains('@') {
            return Err(refuse("it must not carry a user or a password"));
        }
        if rest.contains(['/', '\\', '?', '#', '%']) || rest.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(refuse("it has no path, query or fragment, no escapes and no spaces; paths go into `paths`"));
        }
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (rest, None),
        };
        let port = match port {
            None => Some(scheme.default_port()),
            Some("*") => None,
            Some(digits) => {
                let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u16>().ok()).flatten();
                Some(number.filter(|n| *n != 0).ok_or_else(|| refuse("the port is 1 to 65535, or * for any"))?)
            }
        };
        let host = match host.strip_prefix("*.") {
            _ if host == "*" => HostPattern::AnyPublic,
            Some(parent) => {
                let parent = canonical_host(parent).ok_or_else(|| refuse(ORIGIN_RULE))?;
                if !parent.contains('.')
                    || !may_be_public(&parent)
                    || parent.bytes().all(|b| b.is_ascii_digit() || b == b'.')
                {
                    return Err(refuse(
                        "behind *. stands a public name of at least two labels; https://* is any public host",
                    ));
                }
                HostPattern::Below(parent.into())
            }
            None => HostPattern::Exact(canonical_host(host).ok_or_else(|| refuse(ORIGIN_RULE))?.into()),
        };
        Ok(Self { scheme, host, port })
    }
}

/// The host as the HTTP client's parser understands it.
fn canonical_host(host: &str) -> Option<String> {
    let url = Url::parse(&format!("https://{host}/")).ok()?;
    let canonical = url.host_str()?;
    (is_plain_host(canonical) && url.path() == "/" && url.port().is_none()).then(|| canonical.to_owned())
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme.as_str())?;
        match &self.host {
            HostPattern::AnyPublic => f.write_str("*")?,
            HostPattern::Below(parent) => write!(f, "*.{parent}")?,
            HostPattern::Exact(host) => f.write_str(host)?,
        }
        match self.port {
            None => f.write_str(":*"),
            Some(port) if port == self.scheme.default_port() => Ok(()),
            Some(port) => write!(f, ":{port}"),
        }
    }
}

as_text!(
    OriginPattern,
    "Scheme, host and port: https://api.example.com, https://*.example.com:8443, https://* (any public host)"
);

/// An HTTP method, or `*` for any that may be sent (never CONNECT, TRACE or TRACK).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Method(Box<str>);

impl Method {
    #[must_use]
    pub fn any() -> Self {
        Self("*".into())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn is_any(&self) -> bool {
        &*self.0 == "*"
    }

    /// Whether a request with this method is covered. Methods are compared byte for byte.
    #[must_use]
    pub fn matches(&self, method: &str) -> bool {
        *self.0 == *method || (self.is_any() && is_method(method))
    }
}

/// A method that a plugin may ever send: CONNECT would open a tunnel, TRACE and TRACK echo headers.
fn is_method(text: &str) -> bool {
    (1..=METHOD_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        && !matches!(text, "CONNECT" | "TRACE" | "TRACK")
}

impl Scope for Method {
    fn covers(&self, other: &Self) -> bool {
        self.is_any() || self == other
    }

    fn meet(&self, other: &Self) -> Option<Self> {
        if self.covers(other) { Some(other.clone()) } else { other.covers(self).then(|| self.clone()) }
    }
}

impl FromStr for Method {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        if text == "*" || is_method(text) {
            Ok(Self(text.into()))
        } else {
            Err(ScopeError::new(
                text,
                "a method",
                "upper case, such as GET or POST, or * for any; never CONNECT, TRACE or TRACK",
            ))
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

as_text!(Method, "An HTTP method in upper case, or * for any");

/// A prefix of paths, counted in whole segments: `/api` covers `/api` and `/api/x`, never `/apix`; `/` covers all.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathPrefix(Box<str>);

impl PathPrefix {
    /// Every path.
    #[must_use]
    pub fn root() -> Self {
        Self("/".into())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the path of a parsed URL (no query) is covered. Paths that some server could read as climbing out of the
    /// prefix ([`climbs`]) are covered by `/` alone.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        self.matches_parsed(path, climbs(path))
    }

    /// [`matches`](Self::matches) for a path of which `climbs` is known already.
    pub(crate) fn matches_parsed(&self, path: &str, climbs: bool) -> bool {
        &*self.0 == "/" || (!climbs && self.is_prefix_of(path))
    }

    fn is_prefix_of(&self, path: &str) -> bool {
        path.strip_prefix(&*self.0)
            .is_some_and(|rest| rest.is_empty() || self.0.ends_with('/') || rest.starts_with('/'))
    }
}

/// Whether a path holds a `..` segment for some reader: escaped once or more often, behind an escaped slash or a backslash,
/// or with parameters (`..;x`). The URL parser has removed the plain ones.
#[must_use]
pub fn climbs(path: &str) -> bool {
    // Two dots in any spelling need two of these; most paths hold none, and are done here.
    if !path.contains('%') && !path.contains("..") {
        return false;
    }
    let (mut dots, mut only_dots) = (0_u32, true);
    for byte in unescaped(path.as_bytes()) {
        match byte {
            b'/' | b'\\' | b';' => {
                if only_dots && dots == 2 {
                    return true;
                }
                // After `;` come parameters, which are no segment of their own.
                (dots, only_dots) = (0, byte != b';');
            }
            b'.' => dots += 1,
            _ => only_dots = false,
        }
    }
    only_dots && dots == 2
}

/// The bytes with every layer of percent escapes removed, also where removing one makes another: `%%32%65` is `%2e` is `.`.
///
/// One pass: an escape is removed as soon as its second digit is there. No two escapes overlap, so the order does not matter; and
/// dots and slashes are no part of an escape, so whoever removes fewer layers sees no segment that is not here too.
fn unescaped(bytes: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut out = Vec::with_capacity(bytes.len());
    for byte in bytes {
        out.push(*byte);
        while let [.., b'%', high, low] = out[..]
            && let (Some(high), Some(low)) = (digit(high), digit(low))
        {
            out.truncate(out.len() - 3);
            out.push(high * 16 + low);
        }
    }
    out
}

impl Scope for PathPrefix {
    fn covers(&self, other: &Self) -> bool {
        self.is_prefix_of(&other.0)
    }

    fn meet(&self, other: &Self) -> Option<Self> {
        if self.covers(other) { Some(other.clone()) } else { other.covers(self).then(|| self.clone()) }
    }
}

const PATH: &str = "a path prefix";

impl FromStr for PathPrefix {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let refuse = |rule| Err(ScopeError::new(text, PATH, rule));
        if text.len() > PATH_BYTES_MAX {
            return refuse("it is too long");
        }
        if !text.starts_with('/') {
            return refuse("it begins with /");
        }
        if text.contains('*') {
            return refuse("it is a prefix already and takes no *");
        }
        if text.contains(['?', '#', '\\']) || text.chars().any(char::is_control) {
            return refuse("it has no query, fragment, backslash or control character");
        }
        if climbs(text) || text.split('/').any(|segment| segment == ".") {
            return refuse("it must not hold the segments . and ..");
        }
        match Url::parse(&format!("https://h{text}")) {
            Ok(url) if url.host_str() == Some("h") => Ok(Self(url.path().into())),
            _ => refuse("it is not the path of a URL"),
        }
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

as_text!(PathPrefix, "A prefix of paths in whole segments: /api covers /api and /api/x; / covers all");
