//! Canonical JSON: one text for each value (RFC 8785).

use serde::Serialize;
use serde_json::Value;

/// The largest integer that a double holds exactly, and so the largest that canonical JSON can say: 2^53 − 1 (RFC 8785, 3.2.2.3).
pub const INTEGER_MAX: u64 = (1 << 53) - 1;

/// The value has no canonical text: a key that is not text, or a number that JSON does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the value has no canonical JSON text")]
pub struct NotCanonical;

/// The canonical text of a value whose integers are within ±2^53.
///
/// # Errors
/// When the value cannot be written as JSON.
pub fn text(value: &impl Serialize) -> Result<String, NotCanonical> {
    serde_json_canonicalizer::to_string(value).map_err(|_| NotCanonical)
}

/// Makes a value exact: integers that a double cannot hold become text.
///
/// Canonical JSON writes every number as a double. Two integers beyond 2^53 could get the same text, and so the same hash.
#[must_use]
pub fn exact(value: Value) -> Value {
    match value {
        Value::Number(number) => {
            let fits = match (number.as_u64(), number.as_i64()) {
                (Some(positive), _) => positive <= INTEGER_MAX,
                (None, Some(negative)) => negative.unsigned_abs() <= INTEGER_MAX,
                (None, None) => true, // a double already
            };
            if fits { Value::Number(number) } else { Value::String(number.to_string()) }
        }
        Value::Array(items) => Value::Array(items.into_iter().map(exact).collect()),
        Value::Object(fields) => Value::Object(fields.into_iter().map(|(key, value)| (key, exact(value))).collect()),
        Value::Null | Value::Bool(_) | Value::String(_) => value,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn integers_that_a_double_cannot_hold_become_text() {
        let value =
            json!({"a": [u64::MAX, i64::MIN, INTEGER_MAX, -9_007_199_254_740_991_i64, 1.5], "b": INTEGER_MAX + 1});
        let canonical = text(&exact(value)).unwrap();
        assert_eq!(
            canonical,
            r#"{"a":["18446744073709551615","-9223372036854775808",9007199254740991,-9007199254740991,1.5],"b":"9007199254740992"}"#
        );
    }
}
