//! Encryption at rest: AES-256-GCM under a key derived from the root key, bound to the row by its associated data, so that a
//! ciphertext moved to another row, column or organization does not open.

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::OrgId;
use hkdf::Hkdf;
use sha2::Sha256;
use uuid::Uuid;
use zeroize::Zeroizing;

/// Bytes of the nonce that stands before the ciphertext (96 bits, NIST SP 800-38D §8.2.2: random).
const NONCE_BYTES: usize = 12;
/// The version of the key that new ciphertexts are made with.
pub const KEY_VERSION: i64 = 1;

/// The host's root key, from which every other is derived (HKDF-SHA-256, one label per purpose).
#[derive(Clone)]
pub struct RootKey(Zeroizing<[u8; 32]>);

impl RootKey {
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A key for one purpose.
    #[must_use]
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        let mut key = [0; 32];
        Hkdf::<Sha256>::new(Some(b"bulkhead root key v1"), &*self.0)
            .expand(purpose.as_bytes(), &mut key)
            .expect("32 bytes are within HKDF's output");
        key
    }
}

impl std::fmt::Debug for RootKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RootKey(…)")
    }
}

/// The ciphertext does not open: another key, another row, or changed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ciphertext does not open with this key in this place")]
pub struct SealError;

/// Where a ciphertext belongs.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub table: &'a str,
    pub column: &'a str,
    pub org: OrgId,
    pub row: Uuid,
}

impl<'a> Place<'a> {
    /// Of what belongs to a person rather than to an organization.
    #[must_use]
    pub fn of_person(table: &'a str, column: &'a str, row: Uuid) -> Self {
        Self { table, column, org: OrgId::from_uuid(Uuid::nil()), row }
    }

    fn associated_data(&self, key_version: i64) -> Vec<u8> {
        let mut data = Vec::with_capacity(96);
        for part in [self.table.as_bytes(), self.column.as_bytes(), self.org.uuid().as_bytes(), self.row.as_bytes()] {
            data.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            data.extend_from_slice(part);
        }
        data.extend_from_slice(&key_version.to_be_bytes());
        data
    }
}

/// Seals and opens fields.
#[derive(Clone)]
pub struct Sealer {
    cipher: Aes256Gcm,
    ambient: Ambient,
}

impl Sealer {
    #[must_use]
    pub fn new(root: &RootKey, ambient: Ambient) -> Self {
        let key = Zeroizing::new(root.derive("field encryption v1"));
        let cipher = Aes256Gcm::new_from_slice(&*key).expect("the key has 32 bytes");
        Self { cipher, ambient }
    }

    /// Nonce and ciphertext with tag.
    #[must_use]
    pub fn seal(&self, place: &Place<'_>, plain: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_BYTES] = self.ambient.random();
        let payload = Payload { msg: plain, aad: &place.associated_data(KEY_VERSION) };
        let sealed = self.cipher.encrypt(&Nonce::from(nonce), payload).expect("fields are far below AES-GCM's 64 GiB");
        [nonce.as_slice(), &sealed].concat()
    }

    /// # Errors
    /// [`SealError`] when the bytes were not sealed for this place with this key.
    pub fn open(&self, place: &Place<'_>, key_version: i64, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (nonce, body) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(SealError)?;
        let payload = Payload { msg: body, aad: &place.associated_data(key_version) };
        self.cipher.decrypt(&Nonce::from(*nonce), payload).map(Zeroizing::new).map_err(|_| SealError)
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::time::Timestamp;

    #[test]
    fn opens_only_where_it_was_sealed() {
        let ambient = Ambient::manual(Timestamp::from_micros(0), 7);
        let sealer = Sealer::new(&RootKey::new([1; 32]), ambient.clone());
        let (org, row) = (OrgId::new(&ambient), Uuid::from_u128(5));
        let place = Place { table: "secret", column: "ciphertext", org, row };
        let sealed = sealer.seal(&place, b"xoxb-1");
        assert_eq!(sealer.open(&place, KEY_VERSION, &sealed).unwrap().as_slice(), b"xoxb-1");
        for elsewhere in [
            Place { row: Uuid::from_u128(6), ..place },
            Place { org: OrgId::new(&ambient), ..place },
            Place { column: "name", ..place },
            Place { table: "hook", ..place },
        ] {
            assert!(sealer.open(&elsewhere, KEY_VERSION, &sealed).is_err());
        }
        assert!(sealer.open(&place, KEY_VERSION + 1, &sealed).is_err());
        for at in 0..sealed.len() {
            let mut broken = sealed.clone();
            broken[at] ^= 1;
            assert!(sealer.open(&place, KEY_VERSION, &broken).is_err());
            assert!(sealer.open(&place, KEY_VERSION, &sealed[..at]).is_err());
        }
        let other = Sealer::new(&RootKey::new([2; 32]), ambient);
        assert!(other.open(&place, KEY_VERSION, &sealed).is_err());
    }
}
