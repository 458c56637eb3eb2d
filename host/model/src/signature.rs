//! Signed requests: HTTP message signatures (RFC 9421) over a request's method, its address and the digest of its body (RFC 9530), by the
//! key that belongs to an API key. A request that is read by others on its way can then neither be changed nor sent again.
//!
//! Stricter than the standard where it leaves the choice: one signature with our tag, each component once, `created`, `nonce`, `keyid` and
//! `tag` always there, and no parameters of components but `@query-param`'s name.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sfv::visitor::{DictionaryVisitor, EntryVisitor, Ignored};
use sfv::{BareItem, Dictionary, FieldType as _, InnerList, KeyRef, List, ListEntry, Parser};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::time::Timestamp;

pub mod digest;
mod message;
#[cfg(test)]
mod tests;

pub use message::{Message, Start};

/// What a signature for us says in `tag`; others beside it are for others.
pub const TAG: &str = "bulkhead";
/// A signature is good for so long after its `created`. Source: identity.md.
pub const WINDOW: Duration = Duration::from_mins(5);
/// How far a signer's clock may be ahead of ours.
pub const AHEAD_MAX: Duration = Duration::from_secs(30);
/// A nonce is remembered beyond its signature's end: clocks of nodes differ a little.
const REMEMBERED_FOR: Duration = Duration::from_mins(1);
/// Characters of a nonce: enough that nobody draws one twice.
pub const NONCE_LEN_MIN: usize = 16;
pub const NONCE_LEN_MAX: usize = 128;
/// Components that a signature may cover.
const COMPONENTS_MAX: usize = 50;
/// Without these anybody could send the same signature elsewhere.
const ALWAYS_COVERED: [&str; 2] = ["@method", "@target-uri"];
/// Covered by a request with a body.
const OF_BODY: &str = "content-digest";
/// Fields that change what a request does: nobody adds one to a request that somebody else signed.
const COVERED_IF_THERE: [&str; 2] = ["if-match", "idempotency-key"];

/// How requests are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Ed25519,
    HmacSha256,
}

impl Algorithm {
    /// The name in the standard's registry.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ed25519 => "ed25519",
            Self::HmacSha256 => "hmac-sha256",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Ed25519, Self::HmacSha256].into_iter().find(|algorithm| algorithm.as_str() == text)
    }
}

/// Which requests by a key have to be signed. A signature that is there is always checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Required {
    /// All of them.
    Always,
    /// Those for which a person would have to prove anew who they are.
    Sensitive,
}

impl Required {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Sensitive => "sensitive",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Always, Self::Sensitive].into_iter().find(|required| required.as_str() == text)
    }
}

/// An Ed25519 key that signatures are checked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

/// Why a text is no public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    #[error(
        "an Ed25519 public key is expected, as PEM (`openssl pkey -pubout` prints it) or as base64 of its 32 bytes"
    )]
    Form,
    #[error("anybody could sign with this key: it is one of the few that prove nothing")]
    Weak,
}

/// What stands before the key's 32 bytes in a `SubjectPublicKeyInfo` (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

impl PublicKey {
    /// Reads what people have: PEM, or base64 of the key's bytes, bare or as `SubjectPublicKeyInfo`.
    ///
    /// # Errors
    /// [`PublicKeyError`].
    pub fn parse(text: &str) -> Result<Self, PublicKeyError> {
        let text = text.trim();
        let body = match text.strip_prefix("-----BEGIN PUBLIC KEY-----") {
            Some(rest) => rest.strip_suffix("-----END PUBLIC KEY-----").ok_or(PublicKeyError::Form)?,
            None => text,
        };
        let body: String = body.split_ascii_whitespace().collect();
        let bytes = STANDARD.decode(body).map_err(|_| PublicKeyError::Form)?;
        let bytes = bytes.strip_prefix(&SPKI_PREFIX[..]).unwrap_or(&bytes);
        Self::from_bytes(bytes.try_into().map_err(|_| PublicKeyError::Form)?)
    }

    /// # Errors
    /// [`PublicKeyError`].
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, PublicKeyError> {
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| PublicKeyError::Form)?;
        if key.is_weak() { Err(PublicKeyError::Weak) } else { Ok(Self(bytes)) }
    }

    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// As it is shown: base64 of the 32 bytes.
    #[must_use]
    pub fn reveal(&self) -> String {
        STANDARD.encode(self.0)
    }
}

/// What signatures are checked with.
#[derive(Clone)]
pub enum VerifyKey {
    Ed25519(PublicKey),
    HmacSha256(Zeroizing<Vec<u8>>),
}

impl std::fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerifyKey({})", self.algorithm().as_str())
    }
}

impl VerifyKey {
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Ed25519(_) => Algorithm::Ed25519,
            Self::HmacSha256(_) => Algorithm::HmacSha256,
        }
    }

    /// Whether this is a signature of that text.
    #[must_use]
    pub fn verifies(&self, text: &str, signature: &[u8]) -> bool {
        match self {
            Self::Ed25519(key) => {
                let (Ok(key), Ok(signature)) = (VerifyingKey::from_bytes(&key.0), Signature::from_slice(signature))
                else {
                    return false;
                };
                key.verify_strict(text.as_bytes(), &signature).is_ok()
            }
            Self::HmacSha256(secret) => {
                let mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
                mac.chain_update(text.as_bytes()).verify_slice(signature).is_ok()
            }
        }
    }
}

/// Why a signature does not count. For the operator and the audit log; the caller is told one sentence for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureRefusal {
    /// A field is no dictionary of structured fields, or names something twice.
    Malformed,
    /// Two signatures are for us.
    Several,
    /// A parameter is missing, or of another form.
    Parameter,
    /// Signed by another key, or another way.
    Key,
    /// The key has nothing that signatures could be checked with.
    NoKey,
    /// Something that has to be covered is not.
    NotCovered,
    /// Something that is covered is not in the request.
    Absent,
    /// A component of a kind that is not read here, or twice.
    Component,
    Old,
    /// `created` is in the future.
    Ahead,
    Expired,
    /// It is not what the key signed.
    Mismatch,
    /// The nonce was used before.
    Replayed,
}

impl SignatureRefusal {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "signature_malformed",
            Self::Several => "signature_several",
            Self::Parameter => "signature_parameter",
            Self::Key => "signature_key",
            Self::NoKey => "signature_no_key",
            Self::NotCovered => "signature_not_covered",
            Self::Absent => "signature_absent",
            Self::Component => "signature_component",
            Self::Old => "signature_old",
            Self::Ahead => "signature_ahead",
            Self::Expired => "signature_expired",
            Self::Mismatch => "signature_mismatch",
            Self::Replayed => "signature_replayed",
        }
    }
}

/// What the request and its key ask of a signature.
#[derive(Clone, Copy, Debug)]
pub struct Demands<'a> {
    pub key_id: &'a str,
    pub has_body: bool,
    pub now: Timestamp,
}

/// A signature that holds, as far as it can be seen from the request alone: its nonce still has to be new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    pub nonce: [u8; 32],
    /// From then on nothing with this nonce is accepted, and it need not be remembered.
    pub good_until: Timestamp,
}

/// A signature for us, as the request carries it.
#[derive(Clone, Debug)]
pub struct Signed {
    covered: InnerList,
    signature: Vec<u8>,
}

/// Looks for names that stand twice in a dictionary: the last would silently win.
#[derive(Default)]
struct Names(Vec<String>);

impl<'de> DictionaryVisitor<'de> for Names {
    type Out = Vec<String>;
    type Error = std::convert::Infallible;

    fn entry(&mut self, key: &'de KeyRef) -> Result<impl EntryVisitor<'de>, Self::Error> {
        self.0.push(key.as_str().to_owned());
        Ok(Ignored)
    }

    fn finish(self) -> Result<Self::Out, Self::Error> {
        Ok(self.0)
    }
}

/// Reads a dictionary that may stand in several lines.
fn dictionary(lines: &[&[u8]]) -> Option<Dictionary> {
    let text = lines.join(&b", "[..]);
    let names = Parser::new(&text).parse_dictionary_with_visitor(Names::default()).ok()?;
    let dictionary: Dictionary = Parser::new(&text).parse().ok()?;
    (names.len() == dictionary.len()).then_some(dictionary)
}

impl Signed {
    /// Finds the signature that is for us among those of the request; `None` if there is none. The arguments are the lines of the fields
    /// `signature-input` and `signature`.
    ///
    /// # Errors
    /// [`SignatureRefusal`] for fields that cannot be read, also where another signature is at fault.
    pub fn read(inputs: &[&[u8]], signatures: &[&[u8]]) -> Result<Option<Self>, SignatureRefusal> {
        if inputs.is_empty() && signatures.is_empty() {
            return Ok(None);
        }
        // Somebody took one of the two away.
        if inputs.is_empty() || signatures.is_empty() {
            return Err(SignatureRefusal::Malformed);
        }
        let inputs = dictionary(inputs).ok_or(SignatureRefusal::Malformed)?;
        let signatures = dictionary(signatures).ok_or(SignatureRefusal::Malformed)?;
        let mut ours = None;
        for (label, entry) in inputs {
            let ListEntry::InnerList(covered) = entry else { return Err(SignatureRefusal::Malformed) };
            if parameter(&covered, "tag").and_then(BareItem::as_string).is_none_or(|tag| tag.as_str() != TAG) {
                continue;
            }
            let signature = match signatures.get(&label) {
                Some(ListEntry::Item(item)) => item.bare_item.as_byte_sequence(),
                Some(ListEntry::InnerList(_)) | None => None,
            };
            let signature = signature.ok_or(SignatureRefusal::Malformed)?.to_vec();
            if ours.replace(Self { covered, signature }).is_some() {
                return Err(SignatureRefusal::Several);
            }
        }
        Ok(ours)
    }

    fn text(&self, name: &str) -> Option<&str> {
        Some(parameter(&self.covered, name)?.as_string()?.as_str())
    }

    /// A moment in whole seconds; `None` when it is not there.
    fn moment(&self, name: &str) -> Result<Option<Timestamp>, SignatureRefusal> {
        let Some(value) = parameter(&self.covered, name) else { return Ok(None) };
        let seconds = value.as_integer().ok_or(SignatureRefusal::Parameter)?;
        let micros = i64::from(seconds).checked_mul(1_000_000).ok_or(SignatureRefusal::Parameter)?;
        Ok(Some(Timestamp::from_micros(micros)))
    }

    fn covers(&self, name: &str) -> bool {
        let is_it = |item: &sfv::Item| {
            item.params.is_empty() && item.bare_item.as_string().is_some_and(|of| of.as_str() == name)
        };
        self.covered.items.iter().any(is_it)
    }

    /// Checks the signature and all that it has to say.
    ///
    /// # Errors
    /// The first reason for which it does not count.
    pub fn verify(
        &self,
        key: &VerifyKey,
        message: &Message<'_>,
        demands: &Demands<'_>,
    ) -> Result<Verified, SignatureRefusal> {
        if self.text("keyid").ok_or(SignatureRefusal::Parameter)? != demands.key_id {
            return Err(SignatureRefusal::Key);
        }
        // Said or not, the algorithm is the key's.
        if parameter(&self.covered, "alg").is_some() && self.text("alg") != Some(key.algorithm().as_str()) {
            return Err(SignatureRefusal::Key);
        }
        let nonce = self.text("nonce").ok_or(SignatureRefusal::Parameter)?;
        if !(NONCE_LEN_MIN..=NONCE_LEN_MAX).contains(&nonce.len()) {
            return Err(SignatureRefusal::Parameter);
        }
        let created = self.moment("created")?.ok_or(SignatureRefusal::Parameter)?;
        let end = created.plus(WINDOW);
        if demands.now >= end {
            return Err(SignatureRefusal::Old);
        }
        if created > demands.now.plus(AHEAD_MAX) {
            return Err(SignatureRefusal::Ahead);
        }
        if self.moment("expires")?.is_some_and(|expires| demands.now >= expires || expires <= created) {
            return Err(SignatureRefusal::Expired);
        }
        let is_there = |name: &&str| message.has_field(name);
        let required = ALWAYS_COVERED.into_iter().chain(COVERED_IF_THERE.into_iter().filter(is_there));
        let of_body = demands.has_body.then_some(OF_BODY);
        if !required.chain(of_body).all(|name| self.covers(name)) {
            return Err(SignatureRefusal::NotCovered);
        }
        if !key.verifies(&self.base(message)?, &self.signature) {
            return Err(SignatureRefusal::Mismatch);
        }
        let nonce = Sha256::digest(nonce.as_bytes()).into();
        Ok(Verified { nonce, good_until: end.plus(REMEMBERED_FOR) })
    }

    /// The text that is signed (RFC 9421, section 2.5).
    fn base(&self, message: &Message<'_>) -> Result<String, SignatureRefusal> {
        if self.covered.items.len() > COMPONENTS_MAX {
            return Err(SignatureRefusal::Component);
        }
        let mut base = String::new();
        for (at, item) in self.covered.items.iter().enumerate() {
            if self.covered.items[..at].contains(item) {
                return Err(SignatureRefusal::Component);
            }
            base.push_str(&item.serialize());
            base.push_str(": ");
            base.push_str(&message.component(item)?);
            base.push('\n');
        }
        let params: List = vec![ListEntry::InnerList(self.covered.clone())];
        base.push_str("\"@signature-params\": ");
        base.push_str(&params.serialize().ok_or(SignatureRefusal::Malformed)?);
        Ok(base)
    }
}

fn parameter<'a>(covered: &'a InnerList, name: &str) -> Option<&'a BareItem> {
    covered.params.iter().find(|(key, _)| key.as_str() == name).map(|(_, value)| value)
}
