//! A field's value under a data key: a key of its own, checked by its commitment before anything is decrypted, then AES-256-GCM.

use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::context::Context;
use crate::envelope::{Algorithm, COMMITMENT_BYTES, Envelope, KeyId, SALT_BYTES};
use crate::key::{KEY_BYTES, Key, KeyError};
use crate::primitives::{NONCE_BYTES, gcm_open, gcm_seal, hkdf_sha256};

/// Bytes of one value at most (1 MiB): what is larger is a file, not a field.
pub const PLAIN_BYTES_MAX: usize = 1 << 20;

/// The random bytes of one sealed value.
#[derive(Clone, Copy)]
pub struct Random {
    pub salt: [u8; SALT_BYTES],
    pub nonce: [u8; NONCE_BYTES],
}

/// A key that serves one envelope, with what the envelope commits to it by.
pub(crate) struct Derived {
    pub(crate) key: Zeroizing<[u8; KEY_BYTES]>,
    pub(crate) commitment: [u8; COMMITMENT_BYTES],
}

/// Derives an envelope's key. The place is part of it, so that even the key belongs to one place; the commitment is of both.
pub(crate) fn derive(key: &Key, algorithm: Algorithm, salt: &[u8; SALT_BYTES], place: &[u8]) -> Derived {
    let mut derived = Derived { key: Zeroizing::new([0; KEY_BYTES]), commitment: [0; COMMITMENT_BYTES] };
    let labels =
        [(&b"bulkhead enc:v1 encrypt"[..], &mut *derived.key), (b"bulkhead enc:v1 commit", &mut derived.commitment)];
    for (label, out) in labels {
        let info = [label, &[0, algorithm.byte()], place].concat();
        hkdf_sha256(salt, key.bytes(), &info, out).expect("32 bytes are within HKDF's output");
    }
    derived
}

/// Derives the key of an envelope that was read, if the envelope commits to it.
pub(crate) fn derive_committed(key: &Key, envelope: &Envelope, place: &[u8]) -> Result<Derived, KeyError> {
    let derived = derive(key, envelope.algorithm, &envelope.salt, place);
    if bool::from(derived.commitment.ct_eq(&envelope.commitment)) { Ok(derived) } else { Err(KeyError::DoesNotOpen) }
}

/// Seals a value for its place. `random` is used once.
///
/// # Errors
/// [`KeyError::TooLarge`].
pub fn seal(key: &Key, kid: KeyId, context: &Context<'_>, random: Random, plain: &[u8]) -> Result<String, KeyError> {
    if plain.len() > PLAIN_BYTES_MAX {
        return Err(KeyError::TooLarge);
    }
    let place = context.bytes(kid);
    let Derived { key, commitment } = derive(key, Algorithm::Record, &random.salt, &place);
    let mut buffer = Vec::with_capacity(plain.len() + crate::primitives::TAG_BYTES);
    buffer.extend_from_slice(plain);
    gcm_seal(&key, &random.nonce, &place, &mut buffer)?;
    let body = [random.nonce.as_slice(), &buffer].concat();
    Ok(Envelope::new(kid, Algorithm::Record, random.salt, commitment, body).to_text())
}

/// Opens what was sealed for this place with this key.
///
/// # Errors
/// [`KeyError::DoesNotOpen`]; [`KeyError::UnknownFormat`] for a wrapped key.
pub fn open(key: &Key, context: &Context<'_>, envelope: &Envelope) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    if envelope.algorithm != Algorithm::Record {
        return Err(KeyError::UnknownFormat);
    }
    let place = context.bytes(envelope.kid());
    let derived = derive_committed(key, envelope, &place)?;
    let (nonce, body) = envelope.body.split_first_chunk::<NONCE_BYTES>().ok_or(KeyError::DoesNotOpen)?;
    let mut buffer = Zeroizing::new(body.to_vec());
    gcm_open(&derived.key, nonce, &place, &mut buffer)?;
    Ok(buffer)
}
