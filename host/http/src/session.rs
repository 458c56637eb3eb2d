//! How a browser's request says who it is: the session's cookie, and the proof that one of our own pages sent it.
//!
//! A cookie goes with requests that other sites make a browser send, so one that changes something counts only when the browser says
//! that the page is ours (`Sec-Fetch-Site`, or `Origin`). What does not parse is a refusal.

use std::net::IpAddr;

use axum::extract::FromRequestParts;
use bulkhead_app::AppError;
use bulkhead_app::sign_in::{Client, Opened, SignedIn};
use bulkhead_model::session::BrowserToken;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::HttpState;
use crate::limit::limit_person;
use crate::page::{NoFilter, filter};
use crate::problem::{Kind, Problem};

const SESSION: &str = "__Host-bulkhead_session";
const DEVICE: &str = "__Host-bulkhead_device";
/// A sign-in that waits for its second factor.
const SIGN_IN: &str = "__Host-bulkhead_sign_in";
const SIGN_IN_AGE_S: u64 = 300;
/// A browser is remembered for this long without a sign-in.
const DEVICE_AGE_S: u64 = 30 * 86_400;
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Where a request comes from. Whoever accepts connections puts the peer's address into each request; `edge.rs` puts that of the client in its
/// place, or none where it cannot be known.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub IpAddr);

/// What the request holds under a cookie's name.
#[derive(Debug, PartialEq, Eq)]
enum Cookie {
    Absent,
    /// Twice, or of another form.
    Malformed,
    Token(BrowserToken),
}

fn cookie(headers: &HeaderMap, name: &str) -> Cookie {
    let mut found = None;
    for value in headers.get_all(header::COOKIE) {
        let Ok(text) = value.to_str() else { return Cookie::Malformed };
        for pair in text.split(';') {
            let Some((key, value)) = pair.trim().split_once('=') else { continue };
            if key == name && found.replace(value).is_some() {
                return Cookie::Malformed;
            }
        }
    }
    match found {
        None => Cookie::Absent,
        Some(text) => BrowserToken::parse(text).map_or(Cookie::Malformed, Cookie::Token),
    }
}

/// Whether the request has a session's cookie, a good one or not.
pub(crate) fn has_session(headers: &HeaderMap) -> bool {
    cookie(headers, SESSION) != Cookie::Absent
}

/// What the request would prove somebody with, good or not: the header's values and the session's token.
pub(crate) fn credentials(headers: &HeaderMap) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    for value in headers.get_all(header::AUTHORIZATION) {
        all.push(b'a');
        all.extend_from_slice(value.as_bytes());
        all.push(0);
    }
    match cookie(headers, SESSION) {
        Cookie::Absent => {}
        Cookie::Malformed => all.push(b'm'),
        Cookie::Token(token) => {
            all.push(b's');
            all.extend_from_slice(&token.hash().0);
        }
    }
    (!all.is_empty()).then_some(all)
}

/// What the request presents as a browser that somebody signed in with before.
pub(crate) fn browser(headers: &HeaderMap) -> Option<BrowserToken> {
    match cookie(headers, DEVICE) {
        Cookie::Token(token) => Some(token),
        // Nobody's device: it is counted with the strangers'.
        Cookie::Absent | Cookie::Malformed => None,
    }
}

/// Whether one of our own pages sent the request.
fn is_own_page(headers: &HeaderMap, public_url: &str) -> bool {
    let mut sites = headers.get_all(FETCH_SITE).iter();
    if let Some(site) = sites.next() {
        return site == "same-origin" && sites.next().is_none();
    }
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let (Some(origin), None) = (origins.next(), origins.next()) else { return false };
    // `public_url` has a path only where a proxy adds one; an origin never has.
    let ours = public_url.splitn(4, '/').take(3).collect::<Vec<_>>().join("/");
    origin.to_str().is_ok_and(|origin| origin.eq_ignore_ascii_case(&ours))
}

/// Whether the request says that a page sent it, and not one of our own.
pub(crate) fn is_foreign_page(headers: &HeaderMap, public_url: &str) -> bool {
    let says_whence = headers.contains_key(FETCH_SITE) || headers.contains_key(header::ORIGIN);
    says_whence && !is_own_page(headers, public_url)
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// The session's token, if the request may use it.
///
/// # Errors
/// `unauthenticated` without a cookie of the right form; `foreign-origin` for a change that a page of another site asks for.
pub(crate) fn session_token(parts: &Parts, state: &HttpState) -> Result<BrowserToken, Problem> {
    let Cookie::Token(token) = cookie(&parts.headers, SESSION) else {
        return Err(AppError::Unauthenticated.into());
    };
    if !is_safe(&parts.method) && !is_own_page(&parts.headers, &state.config.public_url) {
        return Err(foreign_origin());
    }
    Ok(token)
}

fn foreign_origin() -> Problem {
    let detail =
        "with a session, changes are accepted from this server's own pages only: send `origin` with its address";
    Problem::new(Kind::ForeignOrigin, detail)
}

/// The address that the request comes from, where that is known.
pub(crate) fn client_address(parts: &Parts) -> Option<IpAddr> {
    parts.extensions.get::<ClientAddress>().map(|address| address.0)
}

/// Where the request comes from.
fn client(parts: &Parts) -> Client {
    Client {
        address: client_address(parts),
        agent: parts
            .headers
            .get(header::USER_AGENT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned(),
        device: browser(&parts.headers),
    }
}

/// Somebody who is not signed in yet. Pages of other sites can make nobody sign in here, under an attacker's name for example.
pub(crate) struct Visitor(pub(crate) Client);

impl FromRequestParts<HttpState> for Visitor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, Problem> {
        if is_foreign_page(&parts.headers, &state.config.public_url) {
            return Err(foreign_origin());
        }
        filter::<NoFilter>(parts.uri.query().unwrap_or_default())?;
        Ok(Self(client(parts)))
    }
}

/// Somebody who is to go on with a sign-in: to prove a second factor, or to answer by a passkey.
pub(crate) struct Waits {
    pub(crate) token: BrowserToken,
    pub(crate) client: Client,
}

impl FromRequestParts<HttpState> for Waits {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, Problem> {
        let Visitor(client) = Visitor::from_request_parts(parts, state).await?;
        let Cookie::Token(token) = cookie(&parts.headers, SIGN_IN) else {
            return Err(AppError::Unauthenticated.into());
        };
        Ok(Self { token, client })
    }
}

/// A person with a live session. The first argument of every handler of what people do with their own accounts.
pub(crate) struct Person {
    pub(crate) signed_in: SignedIn,
    pub(crate) client: Client,
}

impl FromRequestParts<HttpState> for Person {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, Problem> {
        // Two credentials at once would leave open whose request it is.
        if parts.headers.contains_key(header::AUTHORIZATION) {
            return Err(AppError::Unauthenticated.into());
        }
        let token = session_token(parts, state)?;
        let (signed_in, _) = state.app.resume(&token, None).await?;
        limit_person(parts, state, signed_in.user.id).await?;
        tracing::Span::current().record("user_id", tracing::field::display(signed_in.user.id));
        filter::<NoFilter>(parts.uri.query().unwrap_or_default())?;
        Ok(Self { signed_in, client: client(parts) })
    }
}

/// Somebody who is signed in or not. A cookie that is there and no good is refused all the same.
pub(crate) struct MaybePerson(pub(crate) Option<Person>);

impl FromRequestParts<HttpState> for MaybePerson {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, Problem> {
        if has_session(&parts.headers) {
            return Person::from_request_parts(parts, state).await.map(|person| Self(Some(person)));
        }
        Visitor::from_request_parts(parts, state).await.map(|_| Self(None))
    }
}

fn set_cookie(name: &str, value: &str, age_s: Option<u64>) -> HeaderValue {
    let age = age_s.map(|age_s| format!("; Max-Age={age_s}")).unwrap_or_default();
    let text = format!("{name}={value}; Path=/; Secure; HttpOnly; SameSite=Lax{age}");
    HeaderValue::from_str(&text).expect("a token is hexadecimal")
}

/// The cookies of a session that was just begun or renewed. Without an age of its own: it ends with the browser, if not before.
pub(crate) fn session_cookies(opened: &Opened) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.append(header::SET_COOKIE, set_cookie(SESSION, &opened.token.reveal(), None));
    if let Some(device) = &opened.device {
        headers.append(header::SET_COOKIE, set_cookie(DEVICE, &device.reveal(), Some(DEVICE_AGE_S)));
    }
    headers
}

/// The cookie by which a browser is known.
pub(crate) fn device_cookie(device: &BrowserToken) -> HeaderMap {
    HeaderMap::from_iter([(header::SET_COOKIE, set_cookie(DEVICE, &device.reveal(), Some(DEVICE_AGE_S)))])
}

/// The cookie of a sign-in that waits for a second factor, or for a passkey's answer.
pub(crate) fn waiting_cookie(token: &BrowserToken) -> HeaderMap {
    HeaderMap::from_iter([(header::SET_COOKIE, set_cookie(SIGN_IN, &token.reveal(), Some(SIGN_IN_AGE_S)))])
}

/// Takes the cookie of a sign-in back that has gone on.
pub(crate) fn no_waiting_cookie() -> HeaderValue {
    set_cookie(SIGN_IN, "", Some(0))
}

/// Takes the session's cookie back.
pub(crate) fn no_session_cookie() -> HeaderMap {
    HeaderMap::from_iter([(header::SET_COOKIE, set_cookie(SESSION, "", Some(0)))])
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://bulkhead.example.com";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn one_cookie_of_the_right_form_counts_and_nothing_else() {
        let token = "ab".repeat(32);
        let of = |text: &str| cookie(&headers(&[("cookie", text)]), SESSION);
        let good = Cookie::Token(BrowserToken::parse(&token).unwrap());
        assert_eq!(of(&format!("a=b; {SESSION}={token}")), good);
        assert_eq!(of(&format!("{SESSION}={token};c=d")), good);
        assert_eq!(of("a=b"), Cookie::Absent);
        assert_eq!(of(&format!("x{SESSION}={token}")), Cookie::Absent);
        // authentik CVE-2026-25748: what does not parse is no session.
        for bad in [
            format!("{SESSION}="),
            format!("{SESSION}={token}0"),
            format!("{SESSION}=\"{token}\""),
            format!("{SESSION}={}", token.to_uppercase()),
            format!("{SESSION}={token}; {SESSION}={token}"),
        ] {
            assert_eq!(of(&bad), Cookie::Malformed, "{bad}");
        }
        let twice = headers(&[("cookie", &format!("{SESSION}={token}")), ("cookie", &format!("{SESSION}={token}"))]);
        assert_eq!(cookie(&twice, SESSION), Cookie::Malformed);
    }

    #[test]
    fn only_our_own_pages_change_anything() {
        for good in [
            &[("origin", URL)][..],
            &[("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "same-origin"), ("origin", "http://localhost:8080")],
        ] {
            assert!(is_own_page(&headers(good), URL), "{good:?}");
        }
        for bad in [
            &[][..],
            &[("origin", "null")],
            &[("origin", "http://bulkhead.example.com")],
            &[("origin", "https://bulkhead.example.com.evil.test")],
            &[("origin", "https://bulkhead.example.com"), ("origin", "https://evil.test")],
            &[("sec-fetch-site", "cross-site"), ("origin", URL)],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "none")],
            &[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "SAME-ORIGIN ")],
        ] {
            assert!(!is_own_page(&headers(bad), URL), "{bad:?}");
        }
        assert!(is_own_page(&headers(&[("origin", "https://h.test")]), "https://h.test/behind/a/proxy"));
    }

    #[test]
    fn cookies_are_bound_to_this_host() {
        let cookie = set_cookie(SESSION, "ab", None);
        assert_eq!(cookie, "__Host-bulkhead_session=ab; Path=/; Secure; HttpOnly; SameSite=Lax");
    }
}
