//! What views have in common: stored JSON text shown as JSON.

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// JSON that was stored as text, shown as the value that it is, byte for byte; text that is no JSON is shown as a string.
#[derive(Debug)]
pub(crate) enum Stored {
    Json(Box<RawValue>),
    Text(String),
}

impl From<String> for Stored {
    fn from(text: String) -> Self {
        // `from_string` takes the text even when it fails, hence the copy.
        match RawValue::from_string(text.clone()) {
            Ok(raw) => Self::Json(raw),
            Err(_) => Self::Text(text),
        }
    }
}

impl Serialize for Stored {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Json(raw) => raw.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

/// Text of one line as people type it; control characters (which PostgreSQL refuses in part) are not text.
///
/// # Errors
/// What is wrong.
pub(crate) fn line<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = <String as serde::Deserialize>::deserialize(deserializer)?;
    if text.chars().any(char::is_control) {
        return Err(serde::de::Error::custom("control characters are not allowed here"));
    }
    Ok(text)
}

/// Text of any number of lines, without the one character that PostgreSQL cannot store.
///
/// # Errors
/// What is wrong.
pub(crate) fn text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = <String as serde::Deserialize>::deserialize(deserializer)?;
    if text.contains('\0') {
        return Err(serde::de::Error::custom("the character U+0000 is not allowed here"));
    }
    Ok(text)
}

/// As [`line`] for what may be left out.
///
/// # Errors
/// What is wrong.
pub(crate) fn line_or_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    line(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_text_is_shown_as_it_was_written() {
        let show = |text: &str| serde_json::to_string(&Stored::from(text.to_owned())).unwrap();
        assert_eq!(show(r#"{"b":1.50,"a":[null]}"#), r#"{"b":1.50,"a":[null]}"#);
        assert_eq!(show("99999999999999999999999"), "99999999999999999999999");
        assert_eq!(show("not json"), r#""not json""#);
        assert_eq!(show(""), r#""""#);
    }
}
