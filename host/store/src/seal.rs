//! Encryption at rest, as rows use it: a value is sealed in the transaction that stores it, under the organization's data key, and
//! bound to its place. What a sealed text looks like and how keys wrap keys is `bulkhead_keys`'; the keys' rows are in `key.rs`.
//!
//! No key is kept between transactions: each is unwrapped for one use and overwritten after it.

use std::sync::Arc;

use bulkhead_keys::record::{self, Random};
use bulkhead_keys::{Context, Envelope, Key, KeyError, KeyId, Purpose, RootProvider, wrap};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::OrgId;
use uuid::Uuid;
use zeroize::Zeroizing;

pub use bulkhead_keys::{RootId, RootKey, RootKeys, RootKeysError, RootStanding};

/// The only version of the key that seals what belongs to people.
pub const KEY_VERSION: i64 = 1;

/// Where a ciphertext belongs.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub table: &'a str,
    pub column: &'a str,
    pub org: OrgId,
    pub row: Uuid,
}

impl<'a> Place<'a> {
    /// Of what belongs to a person rather than to an organization: for [`Sealer::seal`] and [`Sealer::open`] alone.
    #[must_use]
    pub fn of_person(table: &'a str, column: &'a str, row: Uuid) -> Self {
        Self { table, column, org: OrgId::from_uuid(Uuid::nil()), row }
    }
}

/// Which root key the host's other secrets come from. Neither part says anything about the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootCheck {
    pub id: RootId,
    /// Hexadecimal.
    pub value: String,
}

/// Seals and opens, with the operator's root keys. Cheap to clone.
#[derive(Clone)]
pub struct Sealer {
    roots: Arc<dyn RootProvider>,
    ambient: Ambient,
}

impl Sealer {
    /// With one root key.
    #[must_use]
    pub fn new(root: &RootKey, ambient: Ambient) -> Self {
        Self::with_roots(Arc::new(RootKeys::single(root.clone())), ambient)
    }

    #[must_use]
    pub fn with_roots(roots: Arc<dyn RootProvider>, ambient: Ambient) -> Self {
        Self { roots, ambient }
    }

    /// The root key that wraps organization keys now.
    #[must_use]
    pub fn root(&self) -> RootId {
        self.roots.current()
    }

    /// Whether the operator's keys hold this one.
    #[must_use]
    pub fn knows_root(&self, id: RootId) -> bool {
        self.roots.knows(id)
    }

    /// The root keys under which things stay: the one that wraps now, and those that other nodes may wrap with already. A node that was not
    /// told yet that another one wraps takes nothing back.
    #[must_use]
    pub fn settled_roots(&self) -> Vec<RootId> {
        let settled = |standing: &RootStanding| match standing {
            RootStanding::Active | RootStanding::Next => true,
            RootStanding::DecryptOnly => false,
        };
        self.roots.standings().into_iter().filter(|(_, standing)| settled(standing)).map(|(id, _)| id).collect()
    }

    /// The root keys with where they stand, as a node tells the others.
    #[must_use]
    pub fn root_standings(&self) -> Vec<(RootId, RootStanding)> {
        self.roots.standings()
    }

    /// Whether what is under this key stays there.
    pub(crate) fn is_settled(&self, kid: KeyId) -> bool {
        self.settled_roots().into_iter().any(|root| KeyId::Root(root) == kid)
    }

    /// The root key that what is not wrapped comes from, and its check value.
    #[must_use]
    pub fn base_check(&self) -> RootCheck {
        let (id, value) = self.roots.base_check();
        RootCheck { id, value: hex::encode(value) }
    }

    /// Seals what belongs to a person: under a key of the root key that wraps now, since a person has no organization's keys.
    ///
    /// # Panics
    /// Above a mebibyte: a person's values are short.
    #[must_use]
    pub fn seal(&self, place: &Place<'_>, plain: &[u8]) -> Vec<u8> {
        let kid = self.roots.current();
        let key = self.roots.people(kid).expect("the root key that wraps is there");
        let random = Random { salt: self.ambient.random(), nonce: self.ambient.random() };
        let sealed = field_place(place, |context| record::seal(&key, KeyId::Root(kid), context, random, plain));
        sealed.expect("a person's values are short").into_bytes()
    }

    /// Opens what [`seal`](Self::seal) made for this place; `version` is [`KEY_VERSION`].
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn open(&self, place: &Place<'_>, version: i64, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let text = std::str::from_utf8(sealed).map_err(|_| KeyError::NotSealed)?;
        let envelope = Envelope::parse(text)?;
        match envelope.kid() {
            KeyId::Root(id) if version == KEY_VERSION => Self::open_with(&self.roots.people(id)?, place, &envelope),
            KeyId::Root(_) | KeyId::Organization(_) | KeyId::Data(_) => Err(KeyError::UnknownFormat),
        }
    }

    pub(crate) fn ambient(&self) -> &Ambient {
        &self.ambient
    }

    /// A new key.
    pub(crate) fn new_key(&self) -> Key {
        Key::new(self.ambient.random())
    }

    pub(crate) fn wrap_org_key(&self, org: OrgId, version: u32, key: &Key) -> String {
        key_place(org, version, KeyPurpose::Organization, |context| {
            self.roots.wrap(context, self.ambient.random(), key)
        })
    }

    pub(crate) fn unwrap_org_key(&self, org: OrgId, version: u32, wrapped: &str) -> Result<Key, KeyError> {
        let envelope = Envelope::parse(wrapped)?;
        key_place(org, version, KeyPurpose::Organization, |context| self.roots.unwrap(context, &envelope))
    }

    /// Wraps a data key under the organization key `by`.
    pub(crate) fn wrap_data_key(
        &self,
        org: OrgId,
        (version, purpose): (u32, KeyPurpose),
        by: (u32, &Key),
        key: &Key,
    ) -> String {
        let (kid, salt) = (KeyId::Organization(by.0), self.ambient.random());
        key_place(org, version, purpose, |context| wrap::wrap(by.1, kid, context, salt, key))
    }

    pub(crate) fn unwrap_data_key(
        org: OrgId,
        (version, purpose): (u32, KeyPurpose),
        by: (u32, &Key),
        wrapped: &str,
    ) -> Result<Key, KeyError> {
        let envelope = Envelope::parse(wrapped)?;
        if envelope.kid() != KeyId::Organization(by.0) {
            return Err(KeyError::DoesNotOpen);
        }
        key_place(org, version, purpose, |context| wrap::unwrap(by.1, context, &envelope))
    }

    pub(crate) fn seal_with(
        &self,
        version: u32,
        key: &Key,
        place: &Place<'_>,
        plain: &[u8],
    ) -> Result<String, KeyError> {
        let random = Random { salt: self.ambient.random(), nonce: self.ambient.random() };
        field_place(place, |context| record::seal(key, KeyId::Data(version), context, random, plain))
    }

    pub(crate) fn open_with(key: &Key, place: &Place<'_>, envelope: &Envelope) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        field_place(place, |context| record::open(key, context, envelope))
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(…)")
    }
}

/// What a stored key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyPurpose {
    /// Wraps data keys.
    Organization,
    /// Seals fields.
    Field,
    /// Makes entries of blind indexes. It is not replaced by itself: every entry would have to be made anew.
    Index,
}

impl KeyPurpose {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Organization => "organization",
            Self::Field => "field",
            Self::Index => "index",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Organization, Self::Field, Self::Index].into_iter().find(|purpose| purpose.as_str() == text)
    }
}

/// The place of a wrapped key.
fn key_place<T>(org: OrgId, version: u32, purpose: KeyPurpose, with: impl FnOnce(&Context<'_>) -> T) -> T {
    let (organization, row) = (org.uuid(), version.to_be_bytes());
    let (table, purpose) = match purpose {
        KeyPurpose::Organization => ("org_key", Purpose::OrganizationKey),
        KeyPurpose::Field => ("data_key", Purpose::DataKey),
        KeyPurpose::Index => ("data_key", Purpose::BlindIndex),
    };
    with(&Context { organization: organization.as_bytes(), table, column: "wrapped", row: &row, purpose })
}

fn field_place<T>(place: &Place<'_>, with: impl FnOnce(&Context<'_>) -> T) -> T {
    let (organization, row) = (place.org.uuid(), place.row);
    with(&Context {
        organization: organization.as_bytes(),
        table: place.table,
        column: place.column,
        row: row.as_bytes(),
        purpose: Purpose::Field,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::time::Timestamp;

    #[test]
    fn what_belongs_to_a_person_opens_only_where_it_was_sealed() {
        let ambient = Ambient::manual(Timestamp::from_micros(0), 7);
        let sealer = |byte| Sealer::new(&RootKey::new([byte; 32]), ambient.clone());
        let (mine, row) = (sealer(1), Uuid::from_u128(5));
        let place = Place::of_person("totp", "secret", row);
        let sealed = mine.seal(&place, b"secret");
        assert_eq!(mine.open(&place, KEY_VERSION, &sealed).unwrap().as_slice(), b"secret");
        for elsewhere in [
            Place { row: Uuid::from_u128(6), ..place },
            Place { org: OrgId::new(&ambient), ..place },
            Place { column: "name", ..place },
            Place { table: "hook", ..place },
        ] {
            assert_eq!(mine.open(&elsewhere, KEY_VERSION, &sealed), Err(KeyError::DoesNotOpen));
        }
        let lost = KeyError::UnknownRoot(mine.root());
        assert_eq!(sealer(2).open(&place, KEY_VERSION, &sealed), Err(lost));
        assert!(mine.open(&place, KEY_VERSION + 1, &sealed).is_err());
        // Once another root key wraps, what is sealed is under that one, and what was sealed before opens.
        let both = RootKeys::single(RootKey::new([1; 32])).with_next(RootKey::new([2; 32])).unwrap();
        let both = Sealer::with_roots(Arc::new(both.with_next_in_use().unwrap()), ambient.clone());
        assert_eq!(both.open(&place, KEY_VERSION, &sealed).unwrap().as_slice(), b"secret");
        let anew = both.seal(&place, b"secret");
        assert!(anew.starts_with(KeyId::Root(both.root()).prefix().as_bytes()));
        assert_eq!(sealer(2).open(&place, KEY_VERSION, &anew).unwrap().as_slice(), b"secret");
        assert_eq!(mine.open(&place, KEY_VERSION, &anew), Err(KeyError::UnknownRoot(both.root())));
        for at in 0..sealed.len() {
            let mut broken = sealed.clone();
            broken[at] ^= 1;
            assert!(mine.open(&place, KEY_VERSION, &broken).is_err());
            assert!(mine.open(&place, KEY_VERSION, &sealed[..at]).is_err());
        }
    }
}
