//! Names that people give things, checked once and then carried in a type.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a name was refused. The message says what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {rule}")]
pub struct NameError {
    pub what: &'static str,
    pub rule: &'static str,
}

fn is_slug(text: &str, len_max: usize) -> bool {
    let bytes = text.as_bytes();
    (1..=len_max).contains(&bytes.len())
        && bytes[0].is_ascii_lowercase()
        && bytes[bytes.len() - 1] != b'-'
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && !text.contains("--")
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $check:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(NameError { what: stringify!($name), rule: $rule })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "description": $rule })
            }
        }
    };
}

text_type!(
    /// An organization's short name in addresses.
    Slug,
    |text| is_slug(text, 40),
    "1 to 40 lower-case letters, digits and single hyphens, beginning with a letter"
);
text_type!(
    /// `publisher/plugin`.
    PluginName,
    |text| text.split_once('/').is_some_and(|(publisher, plugin)| is_slug(publisher, 40) && is_slug(plugin, 60)),
    "publisher/plugin, each of lower-case letters, digits and single hyphens, beginning with a letter"
);
text_type!(
    /// One action, channel or factor inside a plugin.
    ContributionName,
    |text| is_slug(text, 60),
    "1 to 60 lower-case letters, digits and single hyphens, beginning with a letter"
);
text_type!(
    /// A secret's name inside an installation, or a setting's: `bot_token`.
    SecretName,
    |text| {
        let bytes = text.as_bytes();
        (1..=64).contains(&bytes.len())
            && bytes[0].is_ascii_lowercase()
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_')
    },
    "1 to 64 lower-case letters, digits and underscores, beginning with a letter"
);

impl PluginName {
    #[must_use]
    pub fn publisher(&self) -> &str {
        self.0.split_once('/').map_or("", |(publisher, _)| publisher)
    }

    #[must_use]
    pub fn plugin(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, plugin)| plugin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugin_names_have_exactly_two_slugs() {
        assert!("acme/slack".parse::<PluginName>().is_ok());
        for bad in [
            "acme",
            "/slack",
            "acme/",
            "acme/slack/x",
            "Acme/slack",
            "acme/sl ack",
            "a--b/c",
            "acme/-x",
            "acme/x-",
            "1a/b",
        ] {
            assert!(bad.parse::<PluginName>().is_err(), "{bad}");
        }
    }
}
