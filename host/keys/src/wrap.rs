//! A key under another key: AES-256-KW with a key that is derived for the place, since KW itself binds to nothing.

use crate::context::Context;
use crate::envelope::{Algorithm, Envelope, KeyId, SALT_BYTES};
use crate::key::{Key, KeyError};
use crate::primitives::{kw_unwrap, kw_wrap};
use crate::record::{Derived, derive, derive_committed};

/// Wraps `key` under `by`, whose id is `kid`, for its place. `salt` is used once.
#[must_use]
pub fn wrap(by: &Key, kid: KeyId, context: &Context<'_>, salt: [u8; SALT_BYTES], key: &Key) -> String {
    let Derived { key: kek, commitment } = derive(by, Algorithm::Wrap, &salt, &context.bytes(kid));
    let body = kw_wrap(&kek, key.bytes()).expect("a key has 32 bytes");
    Envelope::new(kid, Algorithm::Wrap, salt, commitment, body).to_text()
}

/// Unwraps a key that was wrapped for this place under `by`.
///
/// # Errors
/// [`KeyError::DoesNotOpen`]; [`KeyError::UnknownFormat`] for a value that is no wrapped key.
pub fn unwrap(by: &Key, context: &Context<'_>, envelope: &Envelope) -> Result<Key, KeyError> {
    if envelope.algorithm != Algorithm::Wrap {
        return Err(KeyError::UnknownFormat);
    }
    let derived = derive_committed(by, envelope, &context.bytes(envelope.kid()))?;
    Key::from_slice(&kw_unwrap(&derived.key, &envelope.body)?)
}
