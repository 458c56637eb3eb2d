//! Reading JSON bodies: what is wrong and where, as a JSON pointer. Unknown fields and repeated keys are refused.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_path_to_error::Segment;

use crate::problem::{Kind, Problem};

/// Reads a body of the shape `T`, which is an object.
///
/// # Errors
/// `invalid-json` for text that is no JSON or nests deeper than serde_json follows (127 levels), `invalid-body` with a pointer
/// for JSON of another shape.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Problem::new(Kind::InvalidJson, "the body is empty: send JSON"));
    }
    // serde's derive also reads a struct from a list, field by field, which nobody means.
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        parse::<NoRepeatedKeys>(bytes)?;
        let message = "an object is expected";
        return Err(Problem::new(Kind::InvalidBody, message).at("", "wrong-type", message));
    }
    // First without a shape, since a repeated key inside free-form JSON would silently win over the one before it.
    parse::<NoRepeatedKeys>(bytes)?;
    parse(bytes)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let pointer = pointer(error.path());
        problem(&pointer, error.inner())
    })?;
    reader.end().map_err(|error| problem("", &error))?;
    Ok(value)
}

fn problem(pointer: &str, error: &serde_json::Error) -> Problem {
    let text = error.to_string();
    match error.classify() {
        Category::Syntax | Category::Eof | Category::Io => {
            let (code, message) = if text.starts_with("recursion limit exceeded") {
                ("too-deep", "the JSON nests deeper than 127 levels".to_owned())
            } else {
                ("syntax", text)
            };
            Problem::new(Kind::InvalidJson, format!("the body is not JSON that can be read: {message}"))
                .at("", code, message)
        }
        Category::Data => {
            let message = without_position(&text).to_owned();
            let detail = if pointer.is_empty() { message.clone() } else { format!("{pointer}: {message}") };
            Problem::new(Kind::InvalidBody, detail).at(pointer, code(&message), message)
        }
    }
}

/// A stable word for what serde says in prose. Its wording is part of serde's derive and has not changed in years; a test here
/// would notice.
pub(crate) fn code(message: &str) -> &'static str {
    const PREFIXES: &[(&str, &str)] = &[
        ("unknown field", "unknown-field"),
        ("missing field", "missing-field"),
        ("duplicate field", "repeated-key"),
        ("repeated key", "repeated-key"),
        ("unknown variant", "unknown-value"),
        ("invalid type", "wrong-type"),
        ("invalid length", "wrong-length"),
    ];
    PREFIXES.iter().find(|(prefix, _)| message.starts_with(prefix)).map_or("invalid-value", |(_, code)| code)
}

/// The position is of the bytes, which programs write; the pointer says more.
fn without_position(text: &str) -> &str {
    text.rfind(" at line ").map_or(text, |at| &text[..at])
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    let mut pointer = String::new();
    for segment in path {
        let part = match segment {
            Segment::Seq { index } => index.to_string(),
            Segment::Map { key } => key.replace('~', "~0").replace('/', "~1"),
            // A variant is a value, not a place.
            Segment::Enum { .. } | Segment::Unknown => continue,
        };
        pointer.push('/');
        pointer.push_str(&part);
    }
    pointer
}

/// Any JSON in which no object names a key twice.
struct NoRepeatedKeys;

impl<'de> Deserialize<'de> for NoRepeatedKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk;

        impl<'de> Visitor<'de> for Walk {
            type Value = NoRepeatedKeys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_bool<E>(self, _: bool) -> Result<NoRepeatedKeys, E> {
                Ok(NoRepeatedKeys)
            }

            fn visit_i64<E>(self, _: i64) -> Result<NoRepeatedKeys, E> {
                Ok(NoRepeatedKeys)
            }

            fn visit_u64<E>(self, _: u64) -> Result<NoRepeatedKeys, E> {
                Ok(NoRepeatedKeys)
            }

            fn visit_f64<E>(self, _: f64) -> Result<NoRepeatedKeys, E> {
                Ok(NoRepeatedKeys)
            }

            fn visit_str<E>(self, _: &str) -> Result<NoRepeatedKeys, E> {
                Ok(NoRepeatedKeys)
            }

            fn visit_unit<E>(self) -> Result<NoRepeatedKeys, E> {
                Ok(NoRepeatedKeys)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<NoRepeatedKeys, A::Error> {
                while items.next_element::<NoRepeatedKeys>()?.is_some() {}
                Ok(NoRepeatedKeys)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<NoRepeatedKeys, A::Error> {
                let mut seen = HashSet::new();
                while let Some(key) = entries.next_key::<String>()? {
                    if seen.contains(&key) {
                        entries.next_value::<IgnoredAny>()?;
                        let shown: String = key.chars().take(60).collect();
                        return Err(A::Error::custom(format_args!("repeated key `{shown}`")));
                    }
                    seen.insert(key);
                    entries.next_value::<NoRepeatedKeys>()?;
                }
                Ok(NoRepeatedKeys)
            }
        }

        deserializer.deserialize_any(Walk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::value::RawValue;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape is read")]
    struct Outer {
        name: String,
        #[serde(default)]
        inner: Vec<Inner>,
        #[serde(default)]
        free: serde_json::Value,
        #[serde(default)]
        raw: Option<Box<RawValue>>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape is read")]
    struct Inner {
        count: u8,
    }

    fn refused(text: &str) -> (String, String, String) {
        let problem = read::<Outer>(text.as_bytes()).unwrap_err();
        let error = problem.errors().first().cloned();
        let (path, code) = error.map_or_else(Default::default, |error| (error.path, error.code));
        (problem.slug().to_owned(), path, code)
    }

    #[test]
    fn the_place_and_the_kind_of_each_mistake_are_told() {
        let cases = [
            (r#"{"name": "a", "nmae": 1}"#, "invalid-body", "/nmae", "unknown-field"),
            (
                r#"{"name": "a", "inner": [{"count": 1}, {"count": 1, "x/y": 2}]}"#,
                "invalid-body",
                "/inner/1/x~1y",
                "unknown-field",
            ),
            (r#"{"name": "a", "inner": [{"count": 300}]}"#, "invalid-body", "/inner/0/count", "invalid-value"),
            (r#"{"name": 5}"#, "invalid-body", "/name", "wrong-type"),
            (r#"{"inner": []}"#, "invalid-body", "", "missing-field"),
            (r#"["a"]"#, "invalid-body", "", "wrong-type"),
            ("7", "invalid-body", "", "wrong-type"),
            (r#"{"name": "a", "name": "b"}"#, "invalid-body", "", "repeated-key"),
            (r#"{"name": "a", "free": {"x": [{"k": 1, "k": 2}]}}"#, "invalid-body", "/free/x/0", "repeated-key"),
            (r#"{"name": "a""#, "invalid-json", "", "syntax"),
            (r#"{"name": "a"} trailing"#, "invalid-json", "", "syntax"),
            ("{\"name\": \"\u{1}\"}", "invalid-json", "", "syntax"),
        ];
        for (text, slug, path, code) in cases {
            assert_eq!(refused(text), (slug.to_owned(), path.to_owned(), code.to_owned()), "{text}");
        }
        assert_eq!(refused("  ").0, "invalid-json");
    }

    #[test]
    fn nesting_has_an_end_and_no_stack_is_harmed() {
        for levels in [200, 100_000] {
            let text = format!("{{\"name\": \"a\", \"free\": {}{}}}", "[".repeat(levels), "]".repeat(levels));
            assert_eq!(refused(&text), ("invalid-json".into(), String::new(), "too-deep".into()));
        }
        let text = format!("{{\"name\": \"a\", \"free\": {}{}}}", "[".repeat(120), "]".repeat(120));
        assert!(read::<Outer>(text.as_bytes()).is_ok());
    }

    #[test]
    fn raw_parts_keep_their_bytes() {
        let outer: Outer = read(br#"{"name": "a", "raw": { "z": 1.50, "a": 12345678901234567890123 }}"#).unwrap();
        assert_eq!(outer.raw.unwrap().get(), r#"{ "z": 1.50, "a": 12345678901234567890123 }"#);
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        let problem = read::<Outer>(b"{\"name\": \"\xff\"}").unwrap_err();
        assert_eq!(problem.slug(), "invalid-json");
    }
}
