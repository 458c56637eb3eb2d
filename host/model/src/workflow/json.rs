//! Untrusted JSON: read without surprises, measured, and pointed into.

use std::fmt;
use std::io;

use serde::Serialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Levels of nesting in any JSON that a run keeps. Below serde_json's own limit of 128, since the state of a run wraps
/// such values in a few levels more and must be readable again.
pub const JSON_DEPTH_MAX: usize = 100;

/// How deep the text nests, counted before anything recurses into it; brackets inside strings do not count.
/// The text need not be valid JSON.
pub(crate) fn text_depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0_usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Levels of nesting; 0 for a scalar.
pub(crate) fn depth(value: &Value) -> usize {
    let mut deepest = 0;
    let mut open = vec![(value, 0_usize)];
    while let Some((value, level)) = open.pop() {
        deepest = deepest.max(level);
        match value {
            Value::Array(items) => {
                deepest = deepest.max(level + 1);
                open.extend(items.iter().map(|item| (item, level + 1)));
            }
            Value::Object(map) => {
                deepest = deepest.max(level + 1);
                open.extend(map.values().map(|item| (item, level + 1)));
            }
            _ => {}
        }
    }
    deepest
}

/// Bytes of the value as compact JSON.
pub(crate) fn encoded_len(value: &Value) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).expect("a JSON value is written as JSON");
    count.0
}

/// The value as compact JSON, refused as soon as it would be longer than `bytes_max`.
pub(crate) fn write_capped<T: Serialize>(value: &T, bytes_max: usize) -> Result<String, String> {
    struct Capped {
        out: Vec<u8>,
        bytes_max: usize,
    }
    impl io::Write for Capped {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.out.len() + bytes.len() > self.bytes_max {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            self.out.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut capped = Capped { out: Vec::new(), bytes_max };
    serde_json::to_writer(&mut capped, value).map_err(|error| {
        if error.is_io() {
            format!("the result is larger than {bytes_max} bytes")
        } else {
            "the result cannot be written as JSON".to_owned()
        }
    })?;
    String::from_utf8(capped.out).map_err(|_| "the result is not text".to_owned())
}

/// Appends `/key` to a JSON pointer (RFC 6901) and says how long it was before.
pub(crate) fn push_key(pointer: &mut String, key: &str) -> usize {
    let length = pointer.len();
    pointer.push('/');
    for c in key.chars() {
        match c {
            '~' => pointer.push_str("~0"),
            '/' => pointer.push_str("~1"),
            c => pointer.push(c),
        }
    }
    length
}

/// Appends `/index` to a JSON pointer and says how long it was before.
pub(crate) fn push_index(pointer: &mut String, index: usize) -> usize {
    let length = pointer.len();
    pointer.push('/');
    pointer.push_str(&index.to_string());
    length
}

/// Runs `inside` with the pointer one key further down.
pub(crate) fn at_key<T>(pointer: &mut String, key: &str, inside: impl FnOnce(&mut String) -> T) -> T {
    let length = push_key(pointer, key);
    let result = inside(pointer);
    pointer.truncate(length);
    result
}

/// Runs `inside` with the pointer one element further down.
pub(crate) fn at_index<T>(pointer: &mut String, index: usize, inside: impl FnOnce(&mut String) -> T) -> T {
    let length = push_index(pointer, index);
    let result = inside(pointer);
    pointer.truncate(length);
    result
}

/// Reads JSON and refuses an object that names a key twice: the second would silently replace the first, and a step or
/// a trigger would be gone.
///
/// # Errors
/// The reason, with line and column.
pub(crate) fn parse_strict(text: &str) -> Result<Value, String> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Strict.deserialize(&mut reader).map_err(|error| error.to_string())?;
    reader.end().map_err(|error| error.to_string())?;
    Ok(value)
}

struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(Strict)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = access.next_value_seed(Strict)?;
            if map.contains_key(&key) {
                let shown: String = key.chars().take(60).collect();
                return Err(serde::de::Error::custom(format!("the key `{shown}` appears twice in one object")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
