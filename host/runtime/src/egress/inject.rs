//! Where placeholders become values: only in the places, and toward the origins, that the secret's rule names. A placeholder or
//! a value anywhere else stops the request.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bulkhead_model::grant::{EffectiveGrants, OriginPattern, climbs};
use bulkhead_model::manifest::{Inject, SECRET_IN_PATH};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use url::Url;
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::dress::percent_decoded;
use super::vault::{Held, SecretVault, json_escaped, path_escaped, replaced};
use super::{EgressError, SecretPlace};

/// Bytes of one header's value once its secrets stand in it: the longest secret, twice.
const HEADER_BYTES_MAX: usize = 32 * 1024;

/// A request on its way out.
pub(super) struct Outgoing {
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Swaps every placeholder of the call, or says where one stands that must not.
pub(super) fn inject(
    mut outgoing: Outgoing,
    secrets: &SecretVault,
    grants: &EffectiveGrants,
    body_bytes_max: usize,
) -> Result<Outgoing, EgressError> {
    let held = secrets.held();
    // All checks come before the first swap: a value may hold what looks like another secret.
    for held in &held {
        check(held, &outgoing)?;
    }
    let origin = outgoing.url.clone();
    for held in &held {
        let rule = grants.secret(held.name.as_str()).map(|rule| &rule.inject);
        let rule = rule.filter(|rule| rule.origins.iter().any(|pattern| pattern.matches_url(&origin)));
        swap(held, rule, &mut outgoing, body_bytes_max)?;
    }
    Ok(outgoing)
}

fn leak(held: &Held, place: SecretPlace) -> EgressError {
    EgressError::SecretLeak { name: held.name.clone(), place }
}

fn unusable(held: &Held, place: SecretPlace) -> EgressError {
    EgressError::SecretUnusable { name: held.name.clone(), place }
}

/// Refuses what no rule can allow: the value itself anywhere (some server has echoed it), the placeholder in host, query
/// or a header's name.
fn check(held: &Held, outgoing: &Outgoing) -> Result<(), EgressError> {
    let in_any = |bytes: &[u8]| {
        let decoded = percent_decoded(bytes);
        let value = held.value_in(bytes) || held.value_in(&decoded);
        (value, value || held.placeholder_in(bytes) || held.placeholder_in(&decoded))
    };
    let host = outgoing.url.host_str().unwrap_or_default();
    let query = outgoing.url.query().unwrap_or_default();
    if in_any(host.as_bytes()).1 {
        return Err(leak(held, SecretPlace::Host));
    }
    if in_any(query.as_bytes()).1 {
        return Err(leak(held, SecretPlace::Query));
    }
    if in_any(outgoing.url.path().as_bytes()).0 {
        return Err(leak(held, SecretPlace::Path));
    }
    for (name, value) in &outgoing.headers {
        if in_any(name.as_str().as_bytes()).1 {
            return Err(leak(held, SecretPlace::HeaderName));
        }
        if in_any(value.as_bytes()).0 {
            return Err(leak(held, SecretPlace::Header));
        }
    }
    if held.value_in(&outgoing.body) {
        return Err(leak(held, SecretPlace::Body));
    }
    Ok(())
}

/// `rule` is absent when the secret was not granted, or not toward this origin.
fn swap(
    held: &Arc<Held>,
    rule: Option<&Inject<OriginPattern>>,
    outgoing: &mut Outgoing,
    body_bytes_max: usize,
) -> Result<(), EgressError> {
    swap_path(held, rule, &mut outgoing.url)?;
    swap_headers(held, rule, &mut outgoing.headers)?;
    swap_body(held, rule, outgoing, body_bytes_max)
}

fn swap_path(held: &Held, rule: Option<&Inject<OriginPattern>>, url: &mut Url) -> Result<(), EgressError> {
    let path = url.path();
    if !held.placeholder_in(&percent_decoded(path.as_bytes())) {
        return Ok(());
    }
    let template = rule.and_then(|rule| rule.path.as_deref()).ok_or_else(|| leak(held, SecretPlace::Path))?;
    let filled = template.replacen(SECRET_IN_PATH, &held.placeholder, 1);
    let rest = path.strip_prefix(&filled).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let Some(rest) = rest.filter(|rest| !held.placeholder_in(&percent_decoded(rest.as_bytes()))) else {
        return Err(leak(held, SecretPlace::Path));
    };
    let value = Zeroizing::new(path_escaped(&held.value));
    let empty_segment = value.split('/').any(|segment| segment.is_empty() || segment == "." || segment == "..");
    if empty_segment || climbs(&value) {
        return Err(unusable(held, SecretPlace::Path));
    }
    let target = format!("{}{rest}", template.replacen(SECRET_IN_PATH, &value, 1));
    url.set_path(&target);
    if url.path() != target {
        return Err(unusable(held, SecretPlace::Path));
    }
    Ok(())
}

fn swap_headers(held: &Held, rule: Option<&Inject<OriginPattern>>, headers: &mut HeaderMap) -> Result<(), EgressError> {
    let allowed = |name: &str| rule.is_some_and(|rule| rule.headers.iter().any(|header| header == name));
    let placeholder = held.placeholder.as_bytes();
    for (name, value) in headers.iter_mut() {
        let filled = if held.placeholder_in(value.as_bytes()) {
            replaced(value.as_bytes(), placeholder, held.value.as_bytes(), HEADER_BYTES_MAX)
        } else if *name == AUTHORIZATION {
            // Basic authentication hides the placeholder in base64, as every client library writes it.
            let pair = basic(value).unwrap_or_default();
            replaced(&pair, placeholder, held.value.as_bytes(), HEADER_BYTES_MAX).map(|pair| {
                pair.map(Zeroizing::new).map(|pair| format!("Basic {}", STANDARD.encode(&*pair)).into_bytes())
            })
        } else {
            Ok(None)
        };
        if matches!(filled, Ok(None)) {
            continue;
        }
        if !allowed(name.as_str()) {
            return Err(leak(held, SecretPlace::Header));
        }
        let filled = Zeroizing::new(filled.map_err(|_| unusable(held, SecretPlace::Header))?.unwrap_or_default());
        *value = HeaderValue::from_bytes(&filled).map_err(|_| unusable(held, SecretPlace::Header))?;
        value.set_sensitive(true);
    }
    Ok(())
}

/// `user:password` of a Basic authorization.
fn basic(value: &HeaderValue) -> Option<Vec<u8>> {
    let (scheme, digits) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    STANDARD.decode(digits.trim()).ok()
}

fn swap_body(
    held: &Held,
    rule: Option<&Inject<OriginPattern>>,
    outgoing: &mut Outgoing,
    bytes_max: usize,
) -> Result<(), EgressError> {
    if !held.placeholder_in(&outgoing.body) {
        return Ok(());
    }
    if !rule.is_some_and(|rule| rule.body) || outgoing.headers.contains_key(CONTENT_ENCODING) {
        return Err(leak(held, SecretPlace::Body));
    }
    let kind = outgoing.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let value = match BodyKind::of(kind).ok_or_else(|| leak(held, SecretPlace::Body))? {
        BodyKind::Json => Zeroizing::new(json_escaped(&held.value)),
        BodyKind::Form => Zeroizing::new(form_urlencoded::byte_serialize(held.value.as_bytes()).collect()),
        BodyKind::Plain => held.value.clone(),
    };
    // A short placeholder may stand for a long value, and as often as it fits.
    let filled = replaced(&outgoing.body, held.placeholder.as_bytes(), value.as_bytes(), bytes_max)
        .map_err(|_| EgressError::RequestTooLarge { bytes_max })?;
    if let Some(filled) = filled {
        outgoing.body = filled.into();
        outgoing.headers.insert(CONTENT_LENGTH, HeaderValue::from(outgoing.body.len()));
    }
    Ok(())
}

/// Bodies in which a value can be written so that it stays one value.
enum BodyKind {
    Json,
    Form,
    Plain,
}

impl BodyKind {
    fn of(content_type: &str) -> Option<Self> {
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" => Some(Self::Json),
            "application/x-www-form-urlencoded" => Some(Self::Form),
            "text/plain" => Some(Self::Plain),
            other if other.ends_with("+json") => Some(Self::Json),
            _ => None,
        }
    }
}
