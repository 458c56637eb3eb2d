//! What a sealed value is bound to: pairs of names and values in one canonical form.

use crate::envelope::{FORMAT, KeyId};

/// What a key or value is sealed for: a ciphertext made for one purpose opens for no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A field of a row.
    Field,
    /// An organization's key, wrapped by a root key.
    OrganizationKey,
    /// A data key, wrapped by an organization key.
    DataKey,
    /// Looking up an encrypted field by equality.
    BlindIndex,
}

impl Purpose {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Field => "field",
            Self::OrganizationKey => "organization-key",
            Self::DataKey => "data-key",
            Self::BlindIndex => "blind-index",
        }
    }
}

/// Where a sealed value belongs. Whoever opens one says it from what it asked for, never from what it found beside the value.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The organization's id.
    pub organization: &'a [u8],
    pub table: &'a str,
    pub column: &'a str,
    /// The row's id.
    pub row: &'a [u8],
    pub purpose: Purpose,
}

impl Context<'_> {
    /// The canonical bytes of this place under that key.
    pub(crate) fn bytes(&self, key: KeyId) -> Vec<u8> {
        let version = key.to_string();
        canonical(&mut [
            ("fmt", FORMAT.as_bytes()),
            ("tenant", self.organization),
            ("table", self.table.as_bytes()),
            ("column", self.column.as_bytes()),
            ("row_id", self.row),
            ("key_version", version.as_bytes()),
            ("purpose", self.purpose.as_str().as_bytes()),
        ])
    }
}

/// Pairs as bytes: how many, then for each, sorted by name, the name's length, the name, the value's length, the value. Lengths and
/// the count have two bytes, the larger first (the serialization of encryption contexts in the AWS Encryption SDK's specification).
///
/// # Panics
/// When a name or a value has more than 65,535 bytes: names and ids of rows are far below.
#[must_use]
pub fn canonical(pairs: &mut [(&str, &[u8])]) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).expect("names and ids are far below 65,536 bytes").to_be_bytes();
    pairs.sort_unstable();
    let mut bytes = Vec::with_capacity(192);
    bytes.extend_from_slice(&length(pairs.len()));
    for (name, value) in pairs {
        bytes.extend_from_slice(&length(name.len()));
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(&length(value.len()));
        bytes.extend_from_slice(value);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_form_is_what_is_written_down() {
        let bytes = canonical(&mut [("b", b"xy"), ("a", b"")]);
        assert_eq!(bytes, [0, 2, 0, 1, b'a', 0, 0, 0, 1, b'b', 0, 2, b'x', b'y']);
        // What has once been sealed has to open for ever: these bytes never change.
        let context = Context { organization: &[1], table: "t", column: "c", row: &[2], purpose: Purpose::Field };
        let text = b"\0\x07\0\x06column\0\x01c\0\x03fmt\0\x06enc:v1\0\x0bkey_version\0\x02d7\0\x07purpose\0\x05field\
            \0\x06row_id\0\x01\x02\0\x05table\0\x01t\0\x06tenant\0\x01\x01";
        assert_eq!(context.bytes(KeyId::Data(7)), text);
    }

    proptest! {
        /// Nothing can be moved from one value to its neighbour.
        #[test]
        fn two_places_never_have_the_same_bytes(a in "[a-c]{0,3}", b in "[a-c]{0,3}", c in "[a-c]{0,3}", d in "[a-c]{0,3}") {
            let place = |table, column| Context { organization: &[1], table, column, row: &[2], purpose: Purpose::Field };
            let (one, other) = (place(&a, &b).bytes(KeyId::Data(1)), place(&c, &d).bytes(KeyId::Data(1)));
            prop_assert_eq!(one == other, (&a, &b) == (&c, &d));
        }

        #[test]
        fn the_order_in_which_pairs_are_named_does_not_matter(mut values in proptest::collection::vec("[a-z]{0,4}", 4)) {
            let names = ["w", "x", "y", "z"];
            let mut pairs: Vec<(&str, &[u8])> = names.iter().copied().zip(values.iter().map(String::as_bytes)).collect();
            let forward = canonical(&mut pairs);
            pairs.reverse();
            prop_assert_eq!(&canonical(&mut pairs), &forward);
            values[0].push('!');
            let mut other: Vec<(&str, &[u8])> = names.iter().copied().zip(values.iter().map(String::as_bytes)).collect();
            prop_assert_ne!(canonical(&mut other), forward);
        }
    }
}
