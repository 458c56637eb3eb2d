//! A blind index: finding an encrypted field by equality without opening it.
//!
//! What is stored is a keyed hash (HMAC-SHA-256), under a key of its own for each organization and field. Whoever has the database
//! sees which rows of one field are equal, and nothing across fields or organizations; without the key nobody can try values out,
//! as they could with an unkeyed hash of something short. It is for fields with many possible values, or whose readers may see them anyway.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::context::{Purpose, canonical};
use crate::key::{KEY_BYTES, Key};
use crate::primitives::hkdf_sha256;

/// Bytes of an entry.
pub const INDEX_BYTES: usize = 32;

/// What makes the entries of one field.
#[derive(Clone, Debug)]
pub struct FieldIndex(Key);

impl FieldIndex {
    /// From the organization's key for indexes.
    #[must_use]
    pub fn new(key: &Key, organization: &[u8], table: &str, column: &str) -> Self {
        let place = canonical(&mut [
            ("purpose", Purpose::BlindIndex.as_str().as_bytes()),
            ("tenant", organization),
            ("table", table.as_bytes()),
            ("column", column.as_bytes()),
        ]);
        let mut derived = [0; KEY_BYTES];
        hkdf_sha256(b"bulkhead blind index v1", key.bytes(), &place, &mut derived)
            .expect("32 bytes are within HKDF's output");
        Self(Key::new(derived))
    }

    /// The entry of a value, which the caller has brought into the form in which it is to be found (upper and lower case, spaces).
    #[must_use]
    pub fn entry(&self, normal: &str) -> [u8; INDEX_BYTES] {
        hmac_sha256(self.0.bytes(), normal.as_bytes())
    }
}

/// HMAC-SHA-256 (RFC 2104). Public vectors run against it.
#[must_use]
pub fn hmac_sha256(key: &[u8], text: &[u8]) -> [u8; INDEX_BYTES] {
    let mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.chain_update(text).finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_meet_only_within_one_field_of_one_organization() {
        let key = Key::new([3; 32]);
        let index = |key: &Key, org: u8, table: &str, column: &str| {
            FieldIndex::new(key, &[org], table, column).entry("ada@example.com")
        };
        let here = index(&key, 1, "contact", "email");
        assert_eq!(here, index(&key, 1, "contact", "email"));
        let elsewhere = [
            index(&key, 2, "contact", "email"),
            index(&key, 1, "lead", "email"),
            index(&key, 1, "contact", "phone"),
            index(&key, 1, "contac", "temail"),
            index(&Key::new([4; 32]), 1, "contact", "email"),
        ];
        assert!(!elsewhere.contains(&here));
        assert_ne!(here, FieldIndex::new(&key, &[1], "contact", "email").entry("bob@example.com"));
    }

    /// An index without a key can be searched through by whoever has the database (what Vault's second form of convergent encryption
    /// was replaced for).
    #[test]
    fn an_entry_says_nothing_to_whoever_lacks_the_key() {
        use sha2::Digest as _;
        let entry = FieldIndex::new(&Key::new([3; 32]), &[1], "contact", "email").entry("1");
        for guessed in
            [Sha256::digest(b"1").to_vec(), hmac_sha256(&[], b"1").to_vec(), hmac_sha256(&[0; 32], b"1").to_vec()]
        {
            assert_ne!(entry.to_vec(), guessed);
        }
    }
}
