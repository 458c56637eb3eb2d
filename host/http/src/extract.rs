//! How a request's parts become values: bodies with a limit, typed ids, entity tags.

use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, OptionalFromRequestParts, Request};
use bulkhead_app::AppError;
use bulkhead_model::id::{
    ApiKeyId, AssignmentId, CallId, DeadLetterId, DeadLetterTaskId, DeviceId, InstallationId, InvitationId,
    KeyRotationId, PasskeyId, PluginId, RoleId, RoleRequestId, RunId, SessionId, TeamId, UserId, WorkflowId,
};
use bulkhead_model::name::SecretName;
use bulkhead_model::workflow::{StepId, TriggerId};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;

use crate::HttpState;
use crate::access::path_param;
use crate::json;
use crate::problem::{Kind, Problem};
use crate::signed::{is_mismatch, mismatch};

/// Bytes of a JSON body. Source: the call input's limit (plugins.md) and the workflow definition's.
pub(crate) const JSON_BYTES_MAX: u64 = 1024 * 1024;
/// A JSON body arrives within this time, however slow the client.
pub(crate) const JSON_BODY_TIME: Duration = Duration::from_secs(20);

/// How much of a body that is too large is read away before the answer, and for how long.
const DISCARD_BYTES_MAX: usize = 64 * 1024 * 1024;
const DISCARD_TIME_MAX: Duration = Duration::from_secs(3);

/// How large the client says that its body is.
fn announced_bytes(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
}

/// Reads the whole body, up to a limit of bytes and time.
///
/// # Errors
/// `too-large` with the limit, `body-timeout`, `digest-mismatch`, `invalid-request` when it breaks off.
pub(crate) async fn read_body(
    request: Request,
    what: &str,
    bytes_max: u64,
    time_max: Duration,
) -> Result<Bytes, Problem> {
    read_body_while(request, what, bytes_max, time_max, |_| Ok(())).await
}

/// As [`read_body`]; `grow` is told how many bytes there are before they are kept, and may refuse them.
///
/// # Errors
/// As [`read_body`], and what `grow` says.
pub(crate) async fn read_body_while(
    request: Request,
    what: &str,
    bytes_max: u64,
    time_max: Duration,
    grow: impl FnMut(u64) -> Result<(), AppError> + Send,
) -> Result<Bytes, Problem> {
    let announced = announced_bytes(request.headers());
    let too_large = announced.is_some_and(|bytes| bytes > bytes_max);
    // A client that asks first has sent nothing yet.
    if too_large && request.headers().contains_key(header::EXPECT) {
        return Err(Problem::too_large(what, bytes_max));
    }
    let mut body = request.into_body();
    match tokio::time::timeout(time_max, collect(&mut body, if too_large { 0 } else { bytes_max }, grow)).await {
        Ok(Ok(Collected::Whole(bytes))) => Ok(bytes),
        Ok(Ok(Collected::TooLarge)) => {
            read_away(body).await;
            Err(Problem::too_large(what, bytes_max))
        }
        Ok(Ok(Collected::Refused(refused))) => {
            read_away(body).await;
            Err(refused.into())
        }
        Ok(Err(error)) if is_mismatch(&error) => Err(mismatch()),
        Ok(Err(_)) => Err(Problem::new(Kind::InvalidRequest, format!("the {what} broke off before its end"))),
        Err(_) => {
            let detail = format!("the {what} did not arrive within {} seconds", time_max.as_secs());
            Err(Problem::new(Kind::BodyTimeout, detail))
        }
    }
}

enum Collected {
    Whole(Bytes),
    TooLarge,
    Refused(AppError),
}

/// The whole body, unless it is larger than `bytes_max` or `grow` refuses it.
async fn collect(
    body: &mut Body,
    bytes_max: u64,
    mut grow: impl FnMut(u64) -> Result<(), AppError>,
) -> Result<Collected, axum::Error> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let length = (bytes.len() + data.len()) as u64;
        if length > bytes_max {
            return Ok(Collected::TooLarge);
        }
        if let Err(refused) = grow(length) {
            return Ok(Collected::Refused(refused));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Collected::Whole(bytes.into()))
}

/// Reads on for a while without keeping anything: a client that is still sending when the connection closes would see a broken
/// connection in place of the answer.
async fn read_away(mut body: Body) {
    let read = async {
        let mut bytes = 0_usize;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.into_data().map_or(0, |data| data.len());
            if bytes > DISCARD_BYTES_MAX {
                return;
            }
        }
    };
    // Not all of it arrived in time: the client learns less, which is its own affair.
    drop(tokio::time::timeout(DISCARD_TIME_MAX, read).await);
}

/// Reads a body that nobody wants; one that the client has yet to begin is left alone.
pub(crate) async fn discard(request: Request) {
    if !request.headers().contains_key(header::EXPECT) {
        read_away(request.into_body()).await;
    }
}

/// Bytes of a body that nobody wants and that are read away all the same, so that its sender sees the answer: no more for somebody who
/// asks too often.
const DISCARD_SMALL_BYTES_MAX: u64 = 64 * 1024;

/// As [`discard`], if the body says that it is small.
pub(crate) async fn discard_small(request: Request) {
    if announced_bytes(request.headers()).is_some_and(|bytes| (1..=DISCARD_SMALL_BYTES_MAX).contains(&bytes)) {
        discard(request).await;
    }
}

/// The media type without its parameters, in lower case.
pub(crate) fn media_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(text.split(';').next()?.trim().to_ascii_lowercase())
}

pub(crate) fn is_json(media_type: &str) -> bool {
    media_type == "application/json" || (media_type.starts_with("application/") && media_type.ends_with("+json"))
}

/// A JSON body of at most a mebibyte, with no field that `T` does not name.
pub(crate) struct Input<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<HttpState> for Input<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &HttpState) -> Result<Self, Problem> {
        if !media_type(request.headers()).is_some_and(|kind| is_json(&kind)) {
            let detail = "send JSON, and say so with the header `content-type: application/json`";
            return Err(Problem::new(Kind::UnsupportedMediaType, detail));
        }
        require_plain(request.headers())?;
        let bytes = read_body(request, "body", JSON_BYTES_MAX, JSON_BODY_TIME).await?;
        Ok(Self(json::read(&bytes)?))
    }
}

/// Who reads a body in another coding than whoever looked at it on its way would read another body (RFC 9110, 8.4: 415).
fn require_plain(headers: &HeaderMap) -> Result<(), Problem> {
    let is_identity = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().all(is_identity) {
        return Ok(());
    }
    Err(Problem::new(Kind::UnsupportedMediaType, "send the body as it is, without `content-encoding`"))
}

/// No body, or an empty one: for operations that take none.
pub(crate) struct NoInput;

impl FromRequest<HttpState> for NoInput {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &HttpState) -> Result<Self, Problem> {
        let bytes = read_body(request, "body", JSON_BYTES_MAX, JSON_BODY_TIME).await?;
        if bytes.is_empty() || json::read::<Empty>(&bytes).is_ok() {
            return Ok(Self);
        }
        Err(Problem::new(Kind::InvalidBody, "this operation takes no input: send no body, or `{}`"))
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

/// A part of the path with a form of its own. Text of another form names nothing: 404, as for an id that is not there.
pub(crate) trait PathPart: FromStr {
    /// The parameter in the route.
    const NAME: &'static str;
    /// What is not found.
    const WHAT: &'static str;
}

macro_rules! path_parts {
    ($($kind:ty = $name:literal, $what:literal;)*) => {$(
        impl PathPart for $kind {
            const NAME: &'static str = $name;
            const WHAT: &'static str = $what;
        }
    )*};
}

path_parts! {
    ApiKeyId = "api_key", "API key";
    PluginId = "plugin", "plugin";
    InstallationId = "installation", "installation";
    CallId = "call", "call";
    WorkflowId = "workflow", "workflow";
    DeadLetterId = "dead_letter", "dead letter";
    DeadLetterTaskId = "task", "task";
    KeyRotationId = "key_rotation", "key rotation";
    RunId = "run", "run";
    SessionId = "session", "session";
    DeviceId = "device", "device";
    PasskeyId = "passkey", "passkey";
    UserId = "user", "member";
    InvitationId = "invitation", "invitation";
    StepId = "step", "step";
    RoleId = "role", "role";
    AssignmentId = "assignment", "role assignment";
    RoleRequestId = "role_request", "role request";
    TeamId = "team", "team";
    SecretName = "name", "secret";
    TriggerId = "trigger", "webhook trigger";
}

/// A typed part of the path.
pub(crate) struct In<T>(pub(crate) T);

impl<T: PathPart> FromRequestParts<HttpState> for In<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, Problem> {
        let text = path_param(parts, state, T::NAME).await?;
        text.parse().map(Self).map_err(|_| AppError::NotFound { what: T::WHAT }.into())
    }
}

/// The strong entity tag of a version.
pub(crate) fn etag(version: i64) -> HeaderValue {
    HeaderValue::from_str(&format!("\"v{version}\"")).expect("digits and quotes are a header value")
}

/// `If-Match` with the one tag that the caller read last. `T` is what changes, for the texts.
pub(crate) struct IfMatch<T> {
    pub(crate) version: i64,
    of: PhantomData<T>,
}

/// What has an entity tag.
pub(crate) trait Tagged {
    const WHAT: &'static str;
}

impl<T: PathPart> Tagged for T {
    const WHAT: &'static str = <T as PathPart>::WHAT;
}

impl<T: Tagged> FromRequestParts<HttpState> for IfMatch<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &HttpState) -> Result<Self, Problem> {
        let version = if_match(&parts.headers, T::WHAT)?;
        Ok(Self { version, of: PhantomData })
    }
}

impl<T: Tagged> OptionalFromRequestParts<HttpState> for IfMatch<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &HttpState) -> Result<Option<Self>, Problem> {
        if !parts.headers.contains_key(header::IF_MATCH) {
            return Ok(None);
        }
        let version = if_match(&parts.headers, T::WHAT)?;
        Ok(Some(Self { version, of: PhantomData }))
    }
}

fn if_match(headers: &HeaderMap, what: &str) -> Result<i64, Problem> {
    let mut values = headers.get_all(header::IF_MATCH).iter();
    let Some(value) = values.next() else {
        let detail = format!("name the version of the {what} that you saw: send its `etag` as `if-match`");
        return Err(Problem::new(Kind::IfMatchRequired, detail));
    };
    let text = value.to_str().unwrap_or_default().trim();
    let one_strong_tag = values.next().is_none()
        && text.len() >= 2
        && text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).is_some_and(|tag| !tag.contains('"'));
    if !one_strong_tag {
        let detail = "`if-match` takes one strong tag, as the answer's `etag` has it: \"v7\"";
        return Err(Problem::new(Kind::InvalidHeader, detail));
    }
    // A tag that was never ours is of no version that could be current.
    let version = text.trim_matches('"').strip_prefix('v').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    version.and_then(|digits| digits.parse().ok()).ok_or_else(|| AppError::StaleVersion.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_comes_back_as_its_version_and_nothing_else_does() {
        let with = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::IF_MATCH, HeaderValue::from_static(value));
            }
            if_match(&headers, "workflow").map_err(|problem| problem.slug())
        };
        assert_eq!(with(&["\"v7\""]), Ok(7));
        assert_eq!(if_match(&HeaderMap::from_iter([(header::IF_MATCH, etag(41))]), "x").unwrap(), 41);
        assert_eq!(with(&[]), Err("if-match-required"));
        for odd in [&["*"][..], &["v7"], &["W/\"v7\""], &["\"v7\", \"v8\""], &["\"v7\"", "\"v8\""], &[""], &["\""]] {
            assert_eq!(with(odd), Err("invalid-header"), "{odd:?}");
        }
        for foreign in ["\"7\"", "\"\"", "\"v\"", "\"v-1\"", "\"v+1\"", "\"v99999999999999999999\"", "\"abc\""] {
            assert_eq!(with(&[foreign]), Err("stale-version"), "{foreign}");
        }
    }

    #[test]
    fn json_has_several_names() {
        for (text, json) in [
            ("application/json", true),
            ("application/problem+json", true),
            ("text/json", false),
            ("application/jsonx", false),
        ] {
            assert_eq!(is_json(text), json, "{text}");
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_arrive_is_given_up() {
        let never = futures_util::stream::pending::<Result<Bytes, std::convert::Infallible>>();
        let request = Request::builder().body(Body::from_stream(never)).unwrap();
        let problem = read_body(request, "body", 10, Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(problem.slug(), "body-timeout");
        let broken = futures_util::stream::once(async { Err::<Bytes, _>(std::io::Error::other("cut")) });
        let request = Request::builder().body(Body::from_stream(broken)).unwrap();
        let problem = read_body(request, "body", 10, JSON_BODY_TIME).await.unwrap_err();
        assert_eq!(problem.slug(), "invalid-request");
    }
}
