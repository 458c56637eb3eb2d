//! Checks a guest's JSON without building it: valid, not too deep, no string or list too long.

use std::fmt;

use bulkhead_model::limits::Limits;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// Why a result is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct OutputError(String);

impl OutputError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// Whether `text` is JSON within `json_depth`, `json_string_bytes` and `json_list_len`.
///
/// # Errors
/// A sentence with line and column.
pub(crate) fn check_json(text: &str, limits: &Limits) -> Result<(), OutputError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Check { limits, depth: 0 }
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end())
        .map_err(|error| OutputError(format!("the result is not acceptable JSON: {error}")))
}

#[derive(Clone, Copy)]
struct Check<'a> {
    limits: &'a Limits,
    depth: u32,
}

impl Check<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        let depth = self.depth + 1;
        if depth > self.limits.json_depth {
            return Err(E::custom(format_args!("nested deeper than {} (limit json_depth)", self.limits.json_depth)));
        }
        Ok(Self { depth, ..self })
    }

    fn count<E: serde::de::Error>(self, count: u64) -> Result<(), E> {
        if count > self.limits.json_list_len {
            let limit = self.limits.json_list_len;
            return Err(E::custom(format_args!(
                "a list or object of more than {limit} elements (limit json_list_len)"
            )));
        }
        Ok(())
    }

    fn string<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        if u64::try_from(text.len()).unwrap_or(u64::MAX) > self.limits.json_string_bytes {
            let limit = self.limits.json_string_bytes;
            return Err(E::custom(format_args!("a string of more than {limit} bytes (limit json_string_bytes)")));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Check<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Check<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<(), E> {
        if number.is_finite() { Ok(()) } else { Err(E::custom("a number that is not finite")) }
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.string(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        let mut count = 0;
        while list.next_element_seed(inner)?.is_some() {
            count += 1;
            self.count(count)?;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        let mut count = 0;
        while object.next_key_seed(Key(self))?.is_some() {
            object.next_value_seed(inner)?;
            count += 1;
            self.count(count)?;
        }
        Ok(())
    }
}

/// A key is a string like any other.
struct Key<'a>(Check<'a>);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        struct KeyVisitor<'a>(Check<'a>);
        impl Visitor<'_> for KeyVisitor<'_> {
            type Value = ();
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
                self.0.string(text)
            }
        }
        deserializer.deserialize_str(KeyVisitor(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::limits::ContributionKind;
    use proptest::prelude::*;

    fn small() -> Limits {
        Limits {
            json_depth: 3,
            json_string_bytes: 5,
            json_list_len: 4,
            ..Limits::default_for(ContributionKind::Action)
        }
    }

    #[test]
    fn bounds_are_exact() {
        for good in ["null", "[[[1]]]", r#""12345""#, "[1,2,3,4]", r#"{"a":1,"b":[],"c":"","d":-0.0}"#, " 1 "] {
            assert_eq!(check_json(good, &small()), Ok(()), "{good}");
        }
        for bad in [
            "",
            "nul",
            "[1,]",
            "1 2",
            "[[[[1]]]]",
            r#""123456""#,
            "[1,2,3,4,5]",
            r#"{"123456":1}"#,
            "NaN",
            "Infinity",
            "1e999",
            r#"{"a":1,"b":1,"c":1,"d":1,"e":1}"#,
            "\u{feff}1",
            "'a'",
        ] {
            assert!(check_json(bad, &small()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bomb_of_brackets_is_refused() {
        let limits = Limits::default_for(ContributionKind::Action);
        assert!(check_json(&"[".repeat(200_000), &limits).is_err());
        let deepest = format!("{}{}", "[".repeat(64), "]".repeat(64));
        assert_eq!(check_json(&deepest, &limits), Ok(()));
        assert!(check_json(&format!("[{deepest}]"), &limits).is_err());
    }

    proptest! {
        /// With room enough, exactly what serde_json accepts is accepted.
        #[test]
        fn agrees_with_the_parser(text in r#"[\[\]{}:,"a-c0-9.eE\- ntrufls\\]{0,24}"#) {
            let limits = Limits::default_for(ContributionKind::Action);
            prop_assert_eq!(check_json(&text, &limits).is_ok(), serde_json::from_str::<serde_json::Value>(&text).is_ok());
        }
    }
}
