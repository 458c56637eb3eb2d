//! The three primitives, each in the one form that is used here. Public vectors run against these functions.

use aes_gcm::aead::{AeadInOut as _, KeyInit as _};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize as _, Zeroizing};

use crate::key::{KEY_BYTES, KeyError};

/// Bytes of AES-GCM's nonce (96 bits; NIST SP 800-38D §8.2).
pub const NONCE_BYTES: usize = 12;
/// Bytes of AES-GCM's tag (128 bits; no shorter one is made or taken).
pub const TAG_BYTES: usize = 16;
/// What AES-KW adds to a key: its integrity check.
pub const WRAP_BYTES: usize = 8;

/// AES-256-GCM: encrypts `buffer` in place and appends the tag.
///
/// # Errors
/// [`KeyError::TooLarge`] above the mode's 64 GiB.
pub fn gcm_seal(
    key: &[u8; KEY_BYTES],
    nonce: &[u8; NONCE_BYTES],
    data: &[u8],
    buffer: &mut Vec<u8>,
) -> Result<(), KeyError> {
    let cipher = Aes256Gcm::new(key.into());
    let tag = cipher
        .encrypt_inout_detached(&Nonce::from(*nonce), data, buffer.as_mut_slice().into())
        .map_err(|_| KeyError::TooLarge)?;
    buffer.extend_from_slice(&tag);
    Ok(())
}

/// AES-256-GCM: checks the tag at the end of `buffer`, takes it off and decrypts the rest in place. When it fails, `buffer` is
/// overwritten and empty: nobody reads what a failed decryption left (RUSTSEC-2023-0096).
///
/// # Errors
/// [`KeyError::DoesNotOpen`].
pub fn gcm_open(
    key: &[u8; KEY_BYTES],
    nonce: &[u8; NONCE_BYTES],
    data: &[u8],
    buffer: &mut Vec<u8>,
) -> Result<(), KeyError> {
    let opened = match buffer.split_last_chunk_mut::<TAG_BYTES>() {
        Some((body, tag)) => {
            let (cipher, tag) = (Aes256Gcm::new(key.into()), Tag::from(*tag));
            cipher
                .decrypt_inout_detached(&Nonce::from(*nonce), data, body.into(), &tag)
                .map_err(|_| KeyError::DoesNotOpen)
        }
        None => Err(KeyError::DoesNotOpen),
    };
    match opened {
        Ok(()) => buffer.truncate(buffer.len() - TAG_BYTES),
        // Overwrites the bytes, and leaves none.
        Err(_) => buffer.zeroize(),
    }
    opened
}

/// HKDF-SHA-256 (RFC 5869).
///
/// # Errors
/// [`KeyError::TooLarge`] when more than 255 times 32 bytes are asked for.
pub fn hkdf_sha256(salt: &[u8], key: &[u8], info: &[u8], out: &mut [u8]) -> Result<(), KeyError> {
    Hkdf::<Sha256>::new(Some(salt), key).expand(info, out).map_err(|_| KeyError::TooLarge)
}

/// AES-256-KW (NIST SP 800-38F §6.2, RFC 3394).
///
/// # Errors
/// [`KeyError::TooLarge`] for what is no key: fewer than 16 bytes, or not a multiple of 8.
pub fn kw_wrap(kek: &[u8; KEY_BYTES], key: &[u8]) -> Result<Vec<u8>, KeyError> {
    if key.len() < 16 {
        return Err(KeyError::TooLarge);
    }
    let mut wrapped = vec![0; key.len() + WRAP_BYTES];
    aes_kw::KwAes256::new(kek.into()).wrap_key(key, &mut wrapped).map_err(|_| KeyError::TooLarge)?;
    Ok(wrapped)
}

/// Undoes [`kw_wrap`].
///
/// # Errors
/// [`KeyError::DoesNotOpen`].
pub fn kw_unwrap(kek: &[u8; KEY_BYTES], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let length = wrapped.len().checked_sub(WRAP_BYTES).filter(|length| *length >= 16).ok_or(KeyError::DoesNotOpen)?;
    let mut key = Zeroizing::new(vec![0; length]);
    aes_kw::KwAes256::new(kek.into()).unwrap_key(wrapped, &mut key).map_err(|_| KeyError::DoesNotOpen)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_of_a_failed_decryption_is_not_read_rustsec_2023_0096() {
        let (key, nonce) = ([1; 32], [2; 12]);
        let mut sealed = b"the plain text".to_vec();
        gcm_seal(&key, &nonce, b"here", &mut sealed).unwrap();
        let mut whole = sealed.clone();
        gcm_open(&key, &nonce, b"here", &mut whole).unwrap();
        assert_eq!(whole, b"the plain text");
        for at in 0..sealed.len() {
            let mut broken = sealed.clone();
            broken[at] ^= 1;
            assert_eq!(gcm_open(&key, &nonce, b"here", &mut broken), Err(KeyError::DoesNotOpen));
            assert_eq!(broken, b"", "a byte at {at} changed");
            let mut short = sealed[..at].to_vec();
            assert_eq!(gcm_open(&key, &nonce, b"here", &mut short), Err(KeyError::DoesNotOpen));
            assert_eq!(short, b"");
        }
        assert_eq!(gcm_open(&key, &nonce, b"there", &mut sealed), Err(KeyError::DoesNotOpen));
        assert_eq!(sealed, b"");
    }
}
