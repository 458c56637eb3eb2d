//! Links that do one thing once: `<link's id>_<proof>`. The proof is an HMAC of the link's id under a key that only the host has, so
//! nothing that is stored (a row, a letter on its way) is enough to make one; that it is used once and in time is its row's matter,
//! looked at when it is used.

use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

use crate::id::{SUFFIX_LEN, decode_suffix, encode_suffix};

/// What a link is for. One of a purpose is of no use for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Makes the first person.
    SetUp,
    /// Lets a person choose a password.
    ChoosePassword,
    /// Proves that mail to an address arrives.
    VerifyEmail,
    /// Lets somebody join an organization.
    Join,
    /// Ends everything of an account that somebody else is in.
    Revoke,
}

impl Purpose {
    pub const ALL: [Self; 5] = [Self::SetUp, Self::ChoosePassword, Self::VerifyEmail, Self::Join, Self::Revoke];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SetUp => "set_up",
            Self::ChoosePassword => "choose_password",
            Self::VerifyEmail => "verify_email",
            Self::Join => "join",
            Self::Revoke => "revoke",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.as_str() == text)
    }

    /// How long a link of the purpose may be used.
    #[must_use]
    pub const fn lives_for(self) -> Duration {
        match self {
            Self::SetUp | Self::VerifyEmail => Duration::from_hours(24),
            Self::ChoosePassword => Duration::from_hours(1),
            Self::Join | Self::Revoke => Duration::from_hours(24 * 7),
        }
    }
}

/// The key that proofs are made with.
#[derive(Clone)]
pub struct LinkKey([u8; 32]);

impl LinkKey {
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    fn proof(&self, purpose: Purpose, place: &[&Uuid]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of every length");
        mac.update(b"bulkhead link v1\0");
        mac.update(purpose.as_str().as_bytes());
        mac.update(&[0]);
        for id in place {
            mac.update(id.as_bytes());
        }
        mac.finalize().into_bytes().into()
    }

    /// The text of a link whose row is found by these ids: of one row, or of an organization and a row of it.
    #[must_use]
    pub fn reveal(&self, purpose: Purpose, place: &[&Uuid]) -> String {
        let ids: String = place.iter().map(|id| encode_suffix(**id)).collect();
        format!("{ids}_{}", hex::encode(self.proof(purpose, place)))
    }

    /// The ids of a link of this purpose that was made with this key; `None` for anything else.
    #[must_use]
    pub fn open<const N: usize>(&self, purpose: Purpose, text: &str) -> Option<[Uuid; N]> {
        let (ids, proof) = text.split_once('_')?;
        if ids.len() != N * SUFFIX_LEN || !ids.is_ascii() || proof.len() != 64 {
            return None;
        }
        let mut place = [Uuid::nil(); N];
        for (at, id) in place.iter_mut().enumerate() {
            *id = decode_suffix(&ids[at * SUFFIX_LEN..(at + 1) * SUFFIX_LEN])?;
        }
        let mut presented = [0; 32];
        hex::decode_to_slice(proof, &mut presented).ok()?;
        let expected = self.proof(purpose, &place.each_ref());
        bool::from(expected.ct_eq(&presented)).then_some(place)
    }
}

impl std::fmt::Debug for LinkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LinkKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_link_opens_for_its_purpose_and_key_only(org: u128, row: u128, key: [u8; 32], at in 0_usize..117) {
            let (key, ids) = (LinkKey::new(key), [Uuid::from_u128(org), Uuid::from_u128(row)]);
            let text = key.reveal(Purpose::Join, &ids.each_ref());
            prop_assert_eq!(key.open::<2>(Purpose::Join, &text), Some(ids));
            prop_assert_eq!(key.open::<2>(Purpose::ChoosePassword, &text), None);
            prop_assert_eq!(key.open::<1>(Purpose::Join, &text), None);
            let other = LinkKey::new([0; 32]);
            if other.0 != key.0 {
                prop_assert_eq!(other.open::<2>(Purpose::Join, &text), None);
            }
            let mut broken = text.into_bytes();
            broken[at] = if broken[at] == b'0' { b'1' } else { b'0' };
            prop_assert_eq!(key.open::<2>(Purpose::Join, std::str::from_utf8(&broken).unwrap()), None);
        }

        #[test]
        fn any_text_is_looked_at_without_panic(text: String) {
            prop_assert_eq!(LinkKey::new([1; 32]).open::<1>(Purpose::SetUp, &text), None);
        }
    }
}
