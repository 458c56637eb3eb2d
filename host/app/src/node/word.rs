//! What nodes tell each other: where to look, in a few bytes of JSON with a version.

use bulkhead_model::id::{InstallationId, OrgId, RunId};
use serde::{Deserialize, Serialize};

/// The version of this form. A reader that does not know it looks everywhere.
const VERSION: u32 = 1;
/// Keys of a kind in one word; more than that are "all". Two kinds of 40 are under 6 KiB, below PostgreSQL's 8,000 bytes.
const KEYS_MAX: usize = 40;

/// One word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Word {
    v: u32,
    /// Who says it; a node does not listen to itself.
    pub(super) node: u64,
    /// There is work.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) wake: bool,
    /// The node that says it has gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) left: bool,
    #[serde(default, skip_serializing_if = "Which::is_none")]
    pub(super) installations: Which<(OrgId, InstallationId)>,
    #[serde(default, skip_serializing_if = "Which::is_none")]
    pub(super) runs: Which<(OrgId, RunId)>,
}

/// Some, or all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Which<T> {
    All,
    These(Vec<T>),
}

impl<T> Default for Which<T> {
    fn default() -> Self {
        Self::These(Vec::new())
    }
}

impl<T: PartialEq> Which<T> {
    fn is_none(&self) -> bool {
        matches!(self, Self::These(keys) if keys.is_empty())
    }

    pub(super) fn add(&mut self, key: T) {
        let Self::These(keys) = self else { return };
        if keys.contains(&key) {
            return;
        }
        if keys.len() < KEYS_MAX {
            keys.push(key);
        } else {
            *self = Self::All;
        }
    }
}

impl Word {
    /// Says nothing, and comes back to who sent it.
    pub(super) fn probe() -> Self {
        Self::default()
    }

    pub(super) fn everything() -> Self {
        Self { wake: true, left: true, installations: Which::All, runs: Which::All, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.wake && !self.left && self.installations.is_none() && self.runs.is_none()
    }

    pub(super) fn to_text(&self) -> String {
        let word = Self { v: VERSION, ..self.clone() };
        serde_json::to_string(&word).expect("a word has no keys that are not text")
    }

    /// `None` when it is of another version or no word at all.
    pub(super) fn read(text: &str) -> Option<Self> {
        serde_json::from_str::<Self>(text).ok().filter(|word| word.v == VERSION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::ambient::Ambient;
    use bulkhead_model::time::Timestamp;

    fn full(keys: usize) -> Word {
        let ambient = Ambient::manual(Timestamp::from_micros(i64::MAX / 2), 5);
        let mut word = Word { node: u64::MAX, wake: true, left: true, ..Word::default() };
        for _ in 0..keys {
            word.installations.add((OrgId::new(&ambient), InstallationId::new(&ambient)));
            word.runs.add((OrgId::new(&ambient), RunId::new(&ambient)));
        }
        word
    }

    #[test]
    fn a_word_is_read_as_it_was_said_and_is_never_too_long() {
        for keys in [0, 1, KEYS_MAX, KEYS_MAX + 1, 10_000] {
            let said = full(keys);
            let text = said.to_text();
            assert!(text.len() < 8_000, "{keys}: {}", text.len());
            assert_eq!(Word::read(&text), Some(Word { v: VERSION, ..said.clone() }));
            assert_eq!(said.runs == Which::All, keys > KEYS_MAX);
        }
    }

    #[test]
    fn the_same_key_is_told_once() {
        let mut word = Word::default();
        let ambient = Ambient::manual(Timestamp::from_micros(0), 5);
        let key = (OrgId::new(&ambient), RunId::new(&ambient));
        for _ in 0..3 {
            word.runs.add(key);
        }
        assert_eq!(word.runs, Which::These(vec![key]));
        assert!(!word.is_empty() && Word::probe().is_empty());
    }

    #[test]
    fn what_is_of_another_version_or_no_word_is_not_read() {
        for text in
            ["", "{}", "null", r#"{"v":2,"node":1,"wake":true}"#, r#"{"v":1,"node":1,"runs":{"these":[["x","y"]]}}"#]
        {
            assert_eq!(Word::read(text), None, "{text}");
        }
        let newer =
            Word::read(r#"{"v":1,"node":1,"wake":true,"weather":"fine"}"#).expect("what is added later is passed over");
        assert!(newer.wake && !newer.left);
        assert_eq!(Word::read(r#"{"v":1,"node":1,"runs":"all"}"#).expect("a word").runs, Which::All);
    }
}
