//! A workflow's variables: declared with a type, given when a run starts, changed by `set`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::condition::moment;

/// A `secret` variable's value inside a run is a reference that begins so, never the secret itself; whoever starts the
/// run stores the secret and hands in the reference.
pub const SECRET_PLACEHOLDER_PREFIX: &str = "bulkhead-secret:";

#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    pub kind: VariableType,
    /// A run cannot start without it (a default counts as given).
    pub required: bool,
    pub default: Option<Value>,
    pub description: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VariableType {
    String,
    Number,
    Boolean,
    /// RFC 3339 time, or a date alone.
    Date,
    Json,
    Secret,
}

impl VariableType {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::Date => "date",
            Self::Json => "json",
            Self::Secret => "secret",
        }
    }

    /// Whether a value may be stored in a variable of this type. `null` is a value only for `json`.
    #[must_use]
    pub fn admits(self, value: &Value) -> bool {
        match self {
            Self::String => value.is_string(),
            Self::Number => value.is_number(),
            Self::Boolean => value.is_boolean(),
            Self::Date => value.as_str().is_some_and(|text| moment(text).is_some()),
            Self::Json => true,
            Self::Secret => value.as_str().is_some_and(|text| text.starts_with(SECRET_PLACEHOLDER_PREFIX)),
        }
    }
}
