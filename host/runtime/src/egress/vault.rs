//! The secrets of one call: guests hold placeholders, the vault holds the values.
//!
//! A placeholder is random and means nothing outside its call. Values leave only through `inject`; whatever else goes out or
//! comes back is searched for them.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::name::SecretName;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Response};
use memchr::memmem;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::dress::{Dress, Reading};

/// How every placeholder begins; 32 hexadecimal digits follow.
pub const PLACEHOLDER_PREFIX: &str = "bhs_";
/// How a key for signatures is written: <https://github.com/standard-webhooks/standard-webhooks>.
const STANDARD_WEBHOOKS_PREFIX: &str = "whsec_";
/// Secrets that one call may use: each is searched for in whatever leaves and arrives.
pub const SECRETS_PER_CALL_MAX: usize = 16;
/// Bytes of all values that one call may use; the longest single one has 16 KiB.
pub const SECRET_BYTES_PER_CALL_MAX: usize = 64 * 1024;
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

/// How a needle is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum NeedleKind {
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

    /// Whether the call may use one more secret of this length: [`SECRETS_PER_CALL_MAX`], [`SECRET_BYTES_PER_CALL_MAX`].
    #[must_use]
    pub fn has_room_for(&self, value_bytes: usize) -> bool {
        let held = self.lock();
        let bytes: usize = held.iter().map(|held| held.value.len()).sum();
        held.len() < SECRETS_PER_CALL_MAX && bytes.saturating_add(value_bytes) <= SECRET_BYTES_PER_CALL_MAX
    }

    /// How many things a search looks for.
    pub(super) fn searched_for(&self) -> usize {
        self.lock().iter().map(|held| held.needles.len()).sum()
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
        let readings: Vec<(Dress, Reading<'_>)> =
            Dress::ALL.into_iter().filter_map(|dress| Some((dress, dress.read(text.as_bytes())?))).collect();
        let gives_away = |needle: &Needle| {
            readings.iter().any(|(dress, reading)| dress.fits(needle.kind) && reading.find(&needle.bytes).is_some())
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
        for value in head.headers.values_mut() {
            if let Some(concealed) = concealed(value.as_bytes(), &held) {
                // A value without line breaks stays one; anything else cannot have arrived in a header.
                *value = HeaderValue::from_bytes(&concealed).unwrap_or(HeaderValue::from_static("[secret]"));
            }
        }
        if let Some(concealed) = concealed(&body, &held) {
            body = concealed.into();
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

/// The bytes with each secret in each of its dresses replaced by its placeholder; `None` when there is none.
fn concealed(bytes: &[u8], held: &[Arc<Held>]) -> Option<Vec<u8>> {
    let mut shown: Option<Vec<u8>> = None;
    for dress in Dress::ALL {
        let now = shown.as_deref().unwrap_or(bytes);
        let Some(reading) = dress.read(now) else { continue };
        let mut found: Vec<(Range<usize>, &str)> = Vec::new();
        for held in held {
            for needle in held.needles.iter().filter(|needle| dress.fits(needle.kind)) {
                if needle.bytes.as_slice() != held.placeholder.as_bytes() {
                    let places = reading.find_all(&needle.bytes);
                    found.extend(places.map(|range| (range, held.placeholder.as_str())));
                }
            }
        }
        if found.is_empty() {
            continue;
        }
        found.sort_by_key(|(range, _)| (range.start, std::cmp::Reverse(range.end)));
        let mut out = Vec::with_capacity(now.len());
        let mut from = 0;
        for (range, placeholder) in found {
            if range.start >= from {
                out.extend_from_slice(&now[from..range.start]);
                out.extend_from_slice(placeholder.as_bytes());
            }
            // Where two overlap, nothing of the second is left either.
            from = from.max(range.end);
        }
        out.extend_from_slice(&now[from..]);
        shown = Some(out);
    }
    shown
}

/// Where `needle` begins in `hay`, in time that grows with the length of both together, whatever they hold.
pub(super) fn position(hay: &[u8], needle: &[u8]) -> Option<usize> {
    // Preparing the search reads the needle: that is not worth it where it cannot stand.
    if needle.is_empty() || needle.len() > hay.len() { None } else { memmem::find(hay, needle) }
}

/// More bytes than allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// `hay` with every `needle` replaced; `None` when there is none.
pub(super) fn replaced(hay: &[u8], needle: &[u8], with: &[u8], bytes_max: usize) -> Result<Option<Vec<u8>>, TooLong> {
    if position(hay, needle).is_none() {
        return Ok(None);
    }
    let finder = memmem::Finder::new(needle);
    let count = finder.find_iter(hay).count();
    let bytes = hay.len() - count * needle.len() + count.saturating_mul(with.len());
    if bytes > bytes_max {
        return Err(TooLong);
    }
    let mut out = Vec::with_capacity(bytes);
    let mut from = 0;
    for at in finder.find_iter(hay) {
        out.extend_from_slice(&hay[from..at]);
        out.extend_from_slice(with);
        from = at + needle.len();
    }
    out.extend_from_slice(&hay[from..]);
    Ok(Some(out))
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
