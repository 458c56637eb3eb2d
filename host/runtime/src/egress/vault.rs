//! The secrets of one call: guests hold placeholders, the vault holds the values.
//!
//! A placeholder is random and means nothing outside its call. Values leave only through `inject`; whatever else goes out or
//! comes back is searched for them.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::name::SecretName;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Response};
use sha2::Sha256;
use zeroize::Zeroizing;

/// How every placeholder begins; 32 hexadecimal digits follow.
pub const PLACEHOLDER_PREFIX: &str = "bhs_";
/// How a key for signatures is written: <https://github.com/standard-webhooks/standard-webhooks>.
const STANDARD_WEBHOOKS_PREFIX: &str = "whsec_";
/// Shorter values are not searched for in outputs and logs: they would be found everywhere.
const SEARCHED_BYTES_MIN: usize = 4;
/// Fewer digits of base64 would be found by chance.
const BASE64_DIGITS_MIN: usize = 6;
/// Shorter values are not searched for in requests and responses, where a false find breaks a call.
const WIRE_BYTES_MIN: usize = 8;

/// The secrets that one call has used so far. Clones share them; they are wiped when the last one is dropped.
#[derive(Clone)]
pub struct SecretVault {
    ambient: Ambient,
    held: Arc<Mutex<Vec<Arc<Held>>>>,
}

/// One secret of the call.
pub(super) struct Held {
    pub(super) name: SecretName,
    pub(super) placeholder: String,
    pub(super) value: Zeroizing<String>,
    /// What gives the value away in text: see [`needles`].
    needles: Vec<Needle>,
}

struct Needle {
    bytes: Zeroizing<Vec<u8>>,
    kind: NeedleKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum NeedleKind {
    Exact,
    /// Letters of either case.
    Hex,
    /// `+/` or `-_`.
    Base64,
}

impl SecretVault {
    /// An empty vault for a new call.
    #[must_use]
    pub fn new(ambient: Ambient) -> Self {
        Self { ambient, held: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the list, so that nobody searches while holding the lock.
    pub(super) fn held(&self) -> Vec<Arc<Held>> {
        self.lock().clone()
    }

    /// Takes a secret's value in and gives its placeholder; the same name gives the same one for the whole call. Whether
    /// the secret was granted is the caller's to check, first.
    pub fn hold(&self, name: &SecretName, value: Zeroizing<String>) -> String {
        let mut held = self.lock();
        if let Some(known) = held.iter().find(|known| known.name == *name) {
            return known.placeholder.clone();
        }
        let placeholder = format!("{PLACEHOLDER_PREFIX}{}", hex::encode(self.ambient.random::<16>()));
        let needles = needles(&value, &placeholder);
        held.push(Arc::new(Held { name: name.clone(), placeholder: placeholder.clone(), value, needles }));
        placeholder
    }

    /// The placeholder of a secret that the call holds already.
    #[must_use]
    pub fn placeholder(&self, name: &str) -> Option<String> {
        self.lock().iter().find(|held| held.name.as_str() == name).map(|held| held.placeholder.clone())
    }

    /// HMAC-SHA-256 of `data` under the value of a secret that the call holds; `None` when it holds none of that name.
    ///
    /// A value `whsec_…` is a key in base64, as Standard Webhooks writes it; any other value is used as its bytes.
    #[must_use]
    pub fn hmac_sha256(&self, name: &str, data: &[u8]) -> Option<[u8; 32]> {
        let held = self.lock().iter().find(|held| held.name.as_str() == name).cloned()?;
        let encoded = held.value.strip_prefix(STANDARD_WEBHOOKS_PREFIX).map(|digits| digits.trim_end_matches('='));
        // A prefix with nothing behind it is no key: signing with an empty one would sign nothing.
        let decoded = encoded
            .and_then(|digits| STANDARD_NO_PAD.decode(digits).ok())
            .filter(|key| !key.is_empty())
            .map(Zeroizing::new);
        let key = decoded.as_ref().map_or(held.value.as_bytes(), |key| key.as_slice());
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        mac.update(data);
        Some(mac.finalize().into_bytes().into())
    }

    /// Whether the call used no secret: then nothing needs searching.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Whether `text` gives away a value or a placeholder: as it is, or in hexadecimal, base64, percent or JSON escapes.
    #[must_use]
    pub fn scan(&self, text: &str) -> bool {
        self.find(text).is_some()
    }

    /// [`scan`](Self::scan), with the name of the first secret found.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<SecretName> {
        let held = self.held();
        if held.is_empty() {
            return None;
        }
        let plain = [text.as_bytes().to_vec(), percent_decoded(text.as_bytes()), json_unescaped(text.as_bytes())];
        let lower = text.to_ascii_lowercase().into_bytes();
        let base64: Vec<u8> = json_unescaped(text.as_bytes()).into_iter().map(standard_base64).collect();
        let gives_away = |needle: &Needle| match needle.kind {
            NeedleKind::Exact => plain.iter().any(|text| position(text, &needle.bytes).is_some()),
            NeedleKind::Hex => position(&lower, &needle.bytes).is_some(),
            NeedleKind::Base64 => position(&base64, &needle.bytes).is_some(),
        };
        held.iter().find(|held| held.needles.iter().any(gives_away)).map(|held| held.name.clone())
    }

    /// The text with values and placeholders blacked out. Text in which a secret hides in some escaped form is blacked out
    /// as a whole.
    #[must_use]
    pub fn redact<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut shown = self.redact_values(text);
        for held in self.held() {
            if shown.contains(&held.placeholder) {
                shown = Cow::Owned(shown.replace(&held.placeholder, &format!("[secret {}]", held.name)));
            }
        }
        match self.find(&shown) {
            None => shown,
            Some(name) => Cow::Owned(format!("[text with the secret {name}]")),
        }
    }

    /// The text with plain values blacked out; placeholders stay, since they mean nothing to anybody.
    pub(super) fn redact_values<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut shown = Cow::Borrowed(text);
        for held in self.held() {
            if held.value.len() >= SEARCHED_BYTES_MIN && shown.contains(held.value.as_str()) {
                shown = Cow::Owned(shown.replace(held.value.as_str(), &format!("[secret {}]", held.name)));
            }
        }
        shown
    }

    /// Puts placeholders back where a server repeats a value, so that a guest cannot learn a secret from an echo.
    pub(super) fn conceal(&self, response: Response<Bytes>) -> Response<Bytes> {
        let held: Vec<Arc<Held>> = self.held().into_iter().filter(|held| held.is_searched_on_the_wire()).collect();
        if held.is_empty() {
            return response;
        }
        let (mut head, mut body) = response.into_parts();
        let body_bytes = body.len();
        for held in &held {
            for value in head.headers.values_mut() {
                if let Some(concealed) = replaced(value.as_bytes(), held.value.as_bytes(), held.placeholder.as_bytes())
                {
                    // A value without line breaks stays one; anything else cannot have arrived in a header.
                    *value = HeaderValue::from_bytes(&concealed).unwrap_or(HeaderValue::from_static("[secret]"));
                }
            }
            for form in held.plain_forms() {
                if let Some(concealed) = replaced(&body, form, held.placeholder.as_bytes()) {
                    body = concealed.into();
                }
            }
        }
        if body.len() != body_bytes && head.headers.contains_key(CONTENT_LENGTH) {
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        Response::from_parts(head, body)
    }
}

impl std::fmt::Debug for SecretVault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.held().iter().map(|held| held.name.clone())).finish()
    }
}

impl Held {
    pub(super) fn is_searched_on_the_wire(&self) -> bool {
        self.value.len() >= WIRE_BYTES_MIN
    }

    /// The value as it is and as JSON writes it.
    fn plain_forms(&self) -> impl Iterator<Item = &[u8]> {
        let exact = self.needles.iter().filter(|needle| needle.kind == NeedleKind::Exact);
        exact.map(|needle| needle.bytes.as_slice()).filter(|form| *form != self.placeholder.as_bytes())
    }

    /// Whether bytes on their way out hold the value itself.
    pub(super) fn value_in(&self, bytes: &[u8]) -> bool {
        self.is_searched_on_the_wire() && self.plain_forms().any(|form| position(bytes, form).is_some())
    }

    /// Whether bytes hold the placeholder.
    pub(super) fn placeholder_in(&self, bytes: &[u8]) -> bool {
        position(bytes, self.placeholder.as_bytes()).is_some()
    }
}

/// Everything that is searched for: the placeholder, the value, the value inside JSON text, in hexadecimal, and those digits
/// of its base64 that do not depend on what stands before and after it.
fn needles(value: &str, placeholder: &str) -> Vec<Needle> {
    let needle = |bytes: Vec<u8>, kind| Needle { bytes: Zeroizing::new(bytes), kind };
    let mut needles = vec![needle(placeholder.as_bytes().to_vec(), NeedleKind::Exact)];
    if value.len() < SEARCHED_BYTES_MIN {
        return needles;
    }
    needles.push(needle(value.as_bytes().to_vec(), NeedleKind::Exact));
    let json = json_escaped(value);
    if json != value {
        needles.push(needle(json.into_bytes(), NeedleKind::Exact));
    }
    needles.push(needle(hex::encode(value).into_bytes(), NeedleKind::Hex));
    for before in 0..3_usize {
        let mut padded = vec![0; before];
        padded.extend_from_slice(value.as_bytes());
        let digits = STANDARD_NO_PAD.encode(&padded);
        // A digit carries six bits: those with bits of the neighbours are left out.
        let first = (before * 8).div_ceil(6);
        let last = padded.len() * 8 / 6;
        if last.saturating_sub(first) >= BASE64_DIGITS_MIN {
            needles.push(needle(digits.as_bytes()[first..last].to_vec(), NeedleKind::Base64));
        }
    }
    needles
}

/// The text as it stands between the quotes of a JSON string.
pub(super) fn json_escaped(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn standard_base64(byte: u8) -> u8 {
    match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => other,
    }
}

/// Where `needle` begins in `hay`.
fn position(hay: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(found) = hay.get(from..)?.iter().position(|byte| *byte == first) {
        let at = from + found;
        if hay[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// `hay` with every `needle` replaced; `None` when there is none.
pub(super) fn replaced(hay: &[u8], needle: &[u8], with: &[u8]) -> Option<Vec<u8>> {
    let mut at = position(hay, needle)?;
    let mut out = Vec::with_capacity(hay.len() + with.len());
    let mut rest = hay;
    loop {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(with);
        rest = &rest[at + needle.len()..];
        match position(rest, needle) {
            Some(next) => at = next,
            None => break,
        }
    }
    out.extend_from_slice(rest);
    Some(out)
}

/// One layer of percent escapes removed, `+` as a space.
pub(super) fn percent_decoded(bytes: &[u8]) -> Vec<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits are a byte"));
                at += 3;
            }
            (b'+', ..) => {
                out.push(b' ');
                at += 1;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// JSON's escapes removed wherever they stand; text that is no JSON is searched just the same.
fn json_unescaped(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'\\' || at + 1 == bytes.len() {
            out.push(bytes[at]);
            at += 1;
            continue;
        }
        let (byte, taken) = match bytes[at + 1] {
            b'n' => (Some(b'\n'), 2),
            b't' => (Some(b'\t'), 2),
            b'r' => (Some(b'\r'), 2),
            b'b' => (Some(8), 2),
            b'f' => (Some(12), 2),
            b'u' => (None, 6),
            other => (Some(other), 2),
        };
        if let Some(byte) = byte {
            out.push(byte);
        } else {
            let digits = bytes.get(at + 2..at + 6).and_then(|digits| std::str::from_utf8(digits).ok());
            match digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(char::from_u32) {
                Some(character) => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
                // Half of a pair of surrogates: kept apart, never joined to what follows.
                None => out.push(0),
            }
        }
        at += taken;
    }
    out
}

/// The text as a path writes it: what a path segment may hold stays, and `/` too; all else becomes percent escapes.
pub(super) fn path_escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("writing to a string does not fail");
        }
    }
    out
}
