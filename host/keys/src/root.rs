//! Root keys: what the operator keeps outside of the database.
//!
//! Several can be there at once, as lines of one text. The first is the host's foundation: it also gives whatever else is derived
//! from a secret of the host's (the pepper of passwords, the seal of cursors and backups …), and stays. The last one without a
//! `next` before it wraps; all of them open, and those that wait as `next` stand behind it. So a new one is first made known to every
//! node, then used, then everything is wrapped anew, and only then is the old one taken away.

use std::fmt;

use zeroize::Zeroizing;

use crate::context::Context;
use crate::envelope::{Envelope, KeyId, SALT_BYTES};
use crate::key::{KEY_BYTES, Key, KeyError};
use crate::primitives::hkdf_sha256;
use crate::wrap;

/// A root key, from which every other secret of the host's is derived or by which it is wrapped.
#[derive(Clone)]
pub struct RootKey(Key);

impl RootKey {
    #[must_use]
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Key::new(bytes))
    }

    /// A key for one purpose (HKDF-SHA-256, one label for each).
    #[must_use]
    pub fn derive(&self, purpose: &str) -> [u8; KEY_BYTES] {
        let mut key = [0; KEY_BYTES];
        hkdf_sha256(b"bulkhead root key v1", self.0.bytes(), purpose.as_bytes(), &mut key)
            .expect("32 bytes are within HKDF's output");
        key
    }

    /// Tells root keys apart, and says nothing about them.
    #[must_use]
    pub fn id(&self) -> RootId {
        let derived = self.derive("root key id v1");
        let (id, _) = derived.split_first_chunk().expect("32 bytes begin with 8");
        RootId(*id)
    }

    fn wrapping(&self) -> Key {
        Key::new(self.derive("organization keys v1"))
    }

    /// What seals what belongs to people.
    fn of_people(&self) -> Key {
        Key::new(self.derive("values of people v1"))
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(…)")
    }
}

/// A root key's name: sixteen hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RootId([u8; 8]);

impl RootId {
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut id = [0; 8];
        hex::decode_to_slice(text, &mut id).ok()?;
        // Lower-case digits only: there is one text for each.
        Some(Self(id)).filter(|id| id.to_string() == text)
    }
}

impl fmt::Display for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What wraps organization keys: root keys that the server holds, or a service that holds them.
pub trait RootProvider: fmt::Debug + Send + Sync {
    /// The root key that wraps what is wrapped now.
    fn current(&self) -> RootId;

    /// Every root key with where it stands, in the order in which they wrap.
    fn standings(&self) -> Vec<(RootId, RootStanding)>;

    /// The root key that whatever is not wrapped comes from, and a value by which it can be told from every other, and which says
    /// nothing about it.
    fn base_check(&self) -> (RootId, [u8; KEY_BYTES]);

    /// What seals values that belong to people rather than to an organization, under this root key.
    ///
    /// # Errors
    /// [`KeyError::UnknownRoot`].
    fn people(&self, id: RootId) -> Result<Key, KeyError>;

    /// Whether this one can be used.
    fn knows(&self, id: RootId) -> bool;

    /// Wraps an organization's key under the current root key.
    fn wrap(&self, context: &Context<'_>, salt: [u8; SALT_BYTES], key: &Key) -> String;

    /// Unwraps one.
    ///
    /// # Errors
    /// [`KeyError::UnknownRoot`], [`KeyError::DoesNotOpen`].
    fn unwrap(&self, context: &Context<'_>, envelope: &Envelope) -> Result<Key, KeyError>;
}

/// Why a text of root keys cannot be used. It never repeats the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootKeysError {
    /// No key is there. There is no default.
    #[error("there is no root key")]
    None,
    #[error("line {line} is not 64 hexadecimal digits, alone or after `next`")]
    Line { line: usize },
    #[error("line {line} repeats a root key")]
    Repeated { line: usize },
    #[error("line {line} is all one byte, which is no key")]
    Constant { line: usize },
    /// The order of the lines is the order in which the keys wrap.
    #[error("line {line} wraps already and stands behind a key that waits as `next`: put those that wait last")]
    Order { line: usize },
    /// The first key is what everything else is derived from: it is used from the start, and stays.
    #[error(
        "the first root key cannot wait as `next`, and cannot be taken away: more than organization keys depends on it"
    )]
    First,
    #[error("there is no root key {0}")]
    Unknown(RootId),
    #[error("no root key waits as `next`")]
    NoNext,
    #[error("the root key {0} is the one that wraps: let another one wrap first")]
    Current(RootId),
}

/// Where a root key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootStanding {
    /// Wraps what is wrapped now.
    Active,
    /// Known, so that every node can open what others wrap, and not used yet.
    Next,
    /// Opens what is still wrapped under it.
    DecryptOnly,
}

impl RootStanding {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Next => "next",
            Self::DecryptOnly => "decrypt_only",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Active, Self::Next, Self::DecryptOnly].into_iter().find(|standing| standing.as_str() == text)
    }
}

/// The server's root keys.
#[derive(Clone)]
pub struct RootKeys {
    /// In the order of the text, at least one; with whether it waits as `next`.
    keys: Vec<(RootKey, bool)>,
}

impl RootKeys {
    #[must_use]
    pub fn single(key: RootKey) -> Self {
        Self { keys: vec![(key, false)] }
    }

    /// Reads lines of keys; empty lines and such that begin with `#` are passed over.
    ///
    /// # Errors
    /// [`RootKeysError`].
    pub fn parse(text: &str) -> Result<Self, RootKeysError> {
        let mut keys: Vec<(RootKey, bool)> = Vec::new();
        for (at, text) in text.lines().enumerate() {
            let (line, text) = (at + 1, text.trim());
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let next = text.strip_prefix("next ");
            let mut bytes = Zeroizing::new([0; KEY_BYTES]);
            hex::decode_to_slice(next.unwrap_or(text).trim(), &mut *bytes).map_err(|_| RootKeysError::Line { line })?;
            if bytes.iter().all(|byte| Some(byte) == bytes.first()) {
                return Err(RootKeysError::Constant { line });
            }
            let key = RootKey::new(*bytes);
            if keys.iter().any(|(known, _)| known.id() == key.id()) {
                return Err(RootKeysError::Repeated { line });
            }
            if keys.is_empty() && next.is_some() {
                return Err(RootKeysError::First);
            }
            if next.is_none() && keys.last().is_some_and(|(_, waits)| *waits) {
                return Err(RootKeysError::Order { line });
            }
            keys.push((key, next.is_some()));
        }
        if keys.is_empty() { Err(RootKeysError::None) } else { Ok(Self { keys }) }
    }

    /// The text that [`parse`](Self::parse) reads.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(self.keys.len() * 80));
        for (key, next) in &self.keys {
            text.push_str(if *next { "next " } else { "" });
            text.push_str(&Zeroizing::new(hex::encode(key.0.bytes())));
            text.push('\n');
        }
        text
    }

    /// What everything but organization keys is derived from.
    #[must_use]
    pub fn base(&self) -> &RootKey {
        &self.keys.first().expect("there is at least one").0
    }

    fn active(&self) -> &RootKey {
        &self.keys.iter().rev().find(|(_, next)| !next).expect("the first one never waits").0
    }

    /// Every root key with where it stands, in the order of the text.
    #[must_use]
    pub fn standings(&self) -> Vec<(RootId, RootStanding)> {
        let active = self.active().id();
        let standing = |id, next| {
            if next {
                RootStanding::Next
            } else if id == active {
                RootStanding::Active
            } else {
                RootStanding::DecryptOnly
            }
        };
        self.keys.iter().map(|(key, next)| (key.id(), standing(key.id(), *next))).collect()
    }

    /// The same with another key that opens and does not wrap yet.
    ///
    /// # Errors
    /// [`RootKeysError::Repeated`].
    pub fn with_next(&self, key: RootKey) -> Result<Self, RootKeysError> {
        if self.knows(key.id()) {
            return Err(RootKeysError::Repeated { line: self.keys.len() + 1 });
        }
        let mut keys = self.keys.clone();
        keys.push((key, true));
        Ok(Self { keys })
    }

    /// The same with the first key wrapping that waited as `next`.
    ///
    /// # Errors
    /// [`RootKeysError::NoNext`].
    pub fn with_next_in_use(&self) -> Result<Self, RootKeysError> {
        let mut keys = self.keys.clone();
        let (_, next) = keys.iter_mut().find(|(_, next)| *next).ok_or(RootKeysError::NoNext)?;
        *next = false;
        Ok(Self { keys })
    }

    /// The same without a key that only opens. Whether something still needs it is the caller's to count.
    ///
    /// # Errors
    /// [`RootKeysError::First`], [`RootKeysError::Current`], [`RootKeysError::Unknown`].
    pub fn without(&self, id: RootId) -> Result<Self, RootKeysError> {
        if !self.knows(id) {
            return Err(RootKeysError::Unknown(id));
        }
        if self.active().id() == id {
            return Err(RootKeysError::Current(id));
        }
        if self.base().id() == id {
            return Err(RootKeysError::First);
        }
        Ok(Self { keys: self.keys.iter().filter(|(key, _)| key.id() != id).cloned().collect() })
    }
}

impl fmt::Debug for RootKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.standings()).finish()
    }
}

impl RootProvider for RootKeys {
    fn current(&self) -> RootId {
        self.active().id()
    }

    fn standings(&self) -> Vec<(RootId, RootStanding)> {
        Self::standings(self)
    }

    fn base_check(&self) -> (RootId, [u8; KEY_BYTES]) {
        (self.base().id(), self.base().derive("check value v1"))
    }

    fn people(&self, id: RootId) -> Result<Key, KeyError> {
        let known = self.keys.iter().find(|(key, _)| key.id() == id);
        known.map(|(key, _)| key.of_people()).ok_or(KeyError::UnknownRoot(id))
    }

    fn knows(&self, id: RootId) -> bool {
        self.keys.iter().any(|(key, _)| key.id() == id)
    }

    fn wrap(&self, context: &Context<'_>, salt: [u8; SALT_BYTES], key: &Key) -> String {
        let root = self.active();
        wrap::wrap(&root.wrapping(), KeyId::Root(root.id()), context, salt, key)
    }

    fn unwrap(&self, context: &Context<'_>, envelope: &Envelope) -> Result<Key, KeyError> {
        let KeyId::Root(id) = envelope.kid() else { return Err(KeyError::UnknownFormat) };
        let (root, _) = self.keys.iter().find(|(key, _)| key.id() == id).ok_or(KeyError::UnknownRoot(id))?;
        wrap::unwrap(&root.wrapping(), context, envelope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Purpose;

    fn text(last: u8) -> String {
        let mut bytes = [7; 32];
        bytes[31] = last;
        hex::encode(bytes)
    }

    fn key(last: u8) -> RootKey {
        RootKeys::parse(&text(last)).unwrap().base().clone()
    }

    fn place() -> Context<'static> {
        Context {
            organization: &[1; 16],
            table: "org_key",
            column: "wrapped",
            row: &[1],
            purpose: Purpose::OrganizationKey,
        }
    }

    #[test]
    fn a_new_key_is_known_first_then_used_and_the_old_one_is_taken_away_last() {
        let one = RootKeys::parse(&text(1)).unwrap();
        let two = one.with_next(key(9)).unwrap();
        let wrapped = two.wrap(&place(), [0; 16], &Key::new([5; 32]));
        assert_eq!(
            Envelope::parse(&wrapped).unwrap().kid(),
            KeyId::Root(one.current()),
            "the next one does not wrap yet"
        );
        let used = two.with_next_in_use().unwrap();
        let newer = used.wrap(&place(), [0; 16], &Key::new([5; 32]));
        let newer = Envelope::parse(&newer).unwrap();
        assert_ne!(newer.kid(), KeyId::Root(one.current()));
        // A node that was told of the next key opens what one that uses it has wrapped.
        for keys in [&two, &used] {
            assert_eq!(keys.unwrap(&place(), &newer).unwrap().bytes(), &[5; 32]);
        }
        assert_eq!(used.base().derive("x"), one.base().derive("x"), "what else is derived stays");
        let RootId(id) = used.current();
        assert_eq!(one.unwrap(&place(), &newer).unwrap_err(), KeyError::UnknownRoot(RootId(id)));
        let third = used.with_next(key(8)).unwrap().with_next_in_use().unwrap();
        let without = third.without(used.current()).unwrap();
        assert_eq!(without.unwrap(&place(), &newer).unwrap_err(), KeyError::UnknownRoot(used.current()));
        assert_eq!(third.without(third.current()).unwrap_err(), RootKeysError::Current(third.current()));
        assert_eq!(third.without(one.current()).unwrap_err(), RootKeysError::First);
        assert_eq!(one.with_next_in_use().unwrap_err(), RootKeysError::NoNext);
        // Of several that wait, the first one is used first: the text can always be read again.
        let waits = two.with_next(key(8)).unwrap();
        let first = waits.with_next_in_use().unwrap();
        let expected = [
            (key(1).id(), RootStanding::DecryptOnly),
            (key(9).id(), RootStanding::Active),
            (key(8).id(), RootStanding::Next),
        ];
        assert_eq!(first.standings(), expected);
        assert_eq!(RootKeys::parse(&first.to_text()).unwrap().standings(), first.standings());
        for keys in [one, two, used, third] {
            assert_eq!(RootKeys::parse(&keys.to_text()).unwrap().standings(), keys.standings());
        }
    }

    #[test]
    fn there_is_no_default_key_and_nothing_that_could_be_taken_for_one_ghsa_hgx2_28f8_6g2r() {
        let zeros = "00".repeat(32);
        let cases = [
            (String::new(), RootKeysError::None),
            ("# nothing\n\n".to_owned(), RootKeysError::None),
            ("secret".to_owned(), RootKeysError::Line { line: 1 }),
            (text(1)[2..].to_owned(), RootKeysError::Line { line: 1 }),
            (format!("{}00", text(1)), RootKeysError::Line { line: 1 }),
            (zeros, RootKeysError::Constant { line: 1 }),
            (format!("{}\n{}", text(1), "ff".repeat(32)), RootKeysError::Constant { line: 2 }),
            (format!("{}\n\n{}", text(1), text(1)), RootKeysError::Repeated { line: 3 }),
            (format!("next {}", text(1)), RootKeysError::First),
            (format!("{}\nnext {}\n{}", text(1), text(2), text(3)), RootKeysError::Order { line: 3 }),
        ];
        for (text, error) in cases {
            assert_eq!(RootKeys::parse(&text).unwrap_err(), error, "{error}");
        }
    }

    #[test]
    fn what_belongs_to_people_has_a_key_of_each_root_key() {
        let both = RootKeys::parse(&format!("{}\n{}", text(1), text(2))).unwrap();
        let of = |byte| both.people(key(byte).id()).unwrap();
        assert_ne!(of(1).bytes(), of(2).bytes());
        assert_eq!(of(1).bytes(), RootKeys::single(key(1)).people(key(1).id()).unwrap().bytes());
        assert_eq!(both.people(key(3).id()).unwrap_err(), KeyError::UnknownRoot(key(3).id()));
        let (id, check) = both.base_check();
        assert_eq!((id, check), RootKeys::single(key(1)).base_check());
        assert_ne!(check, RootKeys::single(key(2)).base_check().1);
    }

    #[test]
    fn no_root_key_is_ever_printed() {
        let keys = RootKeys::parse(&format!("{}\nnext {}", text(1), text(2))).unwrap();
        let shown = format!("{keys:?} {:?} {:?}", keys.base(), RootKeys::parse("07").unwrap_err());
        assert!(!shown.contains("0707"), "{shown}");
        assert_eq!(keys.base().id().to_string().len(), 16);
    }

    #[test]
    fn what_is_derived_is_what_it_was_before_there_were_several() {
        // Backups, cursors and passwords of earlier versions depend on it.
        let key = RootKey::new([1; 32]).derive("cursor v1");
        let (prk, mut expected) = (hkdf::Hkdf::<sha2::Sha256>::new(Some(b"bulkhead root key v1"), &[1; 32]), [0; 32]);
        prk.expand(b"cursor v1", &mut expected).unwrap();
        assert_eq!(key, expected);
    }
}
