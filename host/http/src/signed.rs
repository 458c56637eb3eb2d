//! What a request says about itself so that nobody changes it on its way: the digest of its body, which is checked for whoever gives one,
//! and the signature of a key's owner over it ([`bulkhead_model::signature`]).

use axum::body::{Body, HttpBody as _};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bulkhead_app::auth::Identity;
use bulkhead_app::signed::SignedRequest;
use bulkhead_model::signature::digest::{Comparing, ContentDigest};
use bulkhead_model::signature::{Message, Signed, Start, Verified};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName};
use http_body_util::BodyExt as _;

use crate::HttpState;
use crate::problem::{Kind, Problem};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");
const SIGNATURE: HeaderName = HeaderName::from_static("signature");

/// What was found out about a request's body before anybody read it.
#[derive(Clone, Copy, Debug)]
struct Sent {
    has_body: bool,
    /// The whole of it is compared with a digest that the request gives.
    is_compared: bool,
}

/// A body ended, and was not the one that its digest is of. What reads it gets this in place of the end.
#[derive(Debug, thiserror::Error)]
#[error("the body is not the one that `content-digest` is of")]
struct DigestMismatch;

/// Whether reading a body failed because it was another one.
pub(crate) fn is_mismatch(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<DigestMismatch>() {
            return true;
        }
        next = error.source();
    }
    false
}

pub(crate) fn mismatch() -> Problem {
    Problem::new(Kind::DigestMismatch, DigestMismatch.to_string())
}

fn lines(headers: &HeaderMap, name: HeaderName) -> Vec<&[u8]> {
    headers.get_all(name).iter().map(http::HeaderValue::as_bytes).collect()
}

/// The layer around every route: a body whose digest is given is compared as it is read.
pub(crate) async fn compare(mut request: Request, next: Next) -> Response {
    let digest = match ContentDigest::read(&lines(request.headers(), CONTENT_DIGEST)) {
        Ok(digest) => digest,
        Err(malformed) => return Problem::new(Kind::InvalidHeader, malformed.to_string()).into_response(),
    };
    let has_body = !request.body().is_end_stream();
    request.extensions_mut().insert(Sent { has_body, is_compared: digest.is_some() });
    let Some(digest) = digest else { return next.run(request).await };
    if !has_body {
        // Whoever took the body away left its digest.
        return if digest.begin().matches() { next.run(request).await } else { mismatch().into_response() };
    }
    next.run(request.map(|body| compared(body, digest.begin()))).await
}

fn compared(body: Body, comparing: Comparing) -> Body {
    Body::from_stream(futures_util::stream::try_unfold((body, comparing), |(mut body, mut comparing)| async move {
        loop {
            match body.frame().await {
                None => return if comparing.matches() { Ok(None) } else { Err(axum::Error::new(DigestMismatch)) },
                Some(frame) => {
                    // Trailers are nobody's here.
                    let Ok(data) = frame?.into_data() else { continue };
                    comparing.update(&data);
                    return Ok::<Option<(Bytes, _)>, axum::Error>(Some((data, (body, comparing))));
                }
            }
        }
    }))
}

/// Checks the signature of a request by a key, but for whether it came before.
///
/// # Errors
/// `signature-required`, `invalid-signature`.
pub(crate) fn check(
    parts: &Parts,
    state: &HttpState,
    identity: &Identity,
    is_sensitive: bool,
) -> Result<Option<Verified>, Problem> {
    // Without the layer around it nothing is known of the body, so there is one that was compared with nothing.
    let sent = parts.extensions.get::<Sent>().copied().unwrap_or(Sent { has_body: true, is_compared: false });
    // The address as clients know it. What `host` says, or a proxy in front, is not asked: a signature for another server would
    // hold for this one.
    let url = &state.config.public_url;
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let (authority, prefix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = format!("{prefix}{}", parts.uri.path());
    let start =
        Start::Request { method: parts.method.as_str(), scheme, authority, path: &path, query: parts.uri.query() };
    let fields = parts
        .headers
        .iter()
        // A digest that nothing was compared with proves nothing, so that it counts as absent.
        .filter(|(name, _)| sent.is_compared || **name != CONTENT_DIGEST)
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    let request = SignedRequest {
        signed: Signed::read(&lines(&parts.headers, SIGNATURE_INPUT), &lines(&parts.headers, SIGNATURE)),
        message: Message { start, fields },
        has_body: sent.has_body,
        is_sensitive,
    };
    Ok(state.app.check_signature(identity, request)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(body: &'static str, digest_of: &'static str) -> Result<Bytes, axum::Error> {
        let digest = ContentDigest::read(&[digest_of.as_bytes()]).unwrap().unwrap();
        compared(Body::from(body), digest.begin()).collect().await.map(http_body_util::Collected::to_bytes)
    }

    #[tokio::test]
    async fn a_body_that_is_another_one_does_not_end() {
        let empty = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";
        let hello = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:";
        assert_eq!(read("{\"hello\": \"world\"}\n", hello).await.unwrap(), "{\"hello\": \"world\"}\n");
        assert_eq!(read("", empty).await.unwrap(), "");
        for (body, digest) in [("{\"hello\": \"world\"}", hello), ("x", empty), ("", hello)] {
            let error = read(body, digest).await.unwrap_err();
            assert!(is_mismatch(&error), "{error:?}");
        }
        assert!(!is_mismatch(&axum::Error::new(std::io::Error::other("cut"))));
    }
}
