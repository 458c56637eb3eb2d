//! What a package says of itself: the JSON in its `bulkhead:manifest` section, made from the author's `plugin.toml`.
//!
//! [`Manifest::parse`] is the only way in for bytes that somebody else wrote. Its rules are in `manifest/check.rs`, those
//! for the JSON Schemas inside a manifest in [`schema`].

mod check;
pub mod schema;
#[cfg(test)]
mod tests;

pub(crate) use self::check::inject as check_inject;

use schemars::JsonSchema;
use semver::Version;
use serde::{Deserialize, Deserializer, Serialize};

use crate::grant::{Method, OriginPattern, PathPrefix};
use crate::limits::{ContributionKind, LimitsAsked, PackageLimits};
use crate::name::{ContributionName, PluginName, SecretName};

/// Name of the custom section of the component.
pub const MANIFEST_SECTION: &str = "bulkhead:manifest";
/// The contract versions that a manifest may name: this one, or a patch of it (`bulkhead:plugin@0.1.3`).
pub const CONTRACT: &str = "bulkhead:plugin@0.1";

/// Characters of a title.
pub const TITLE_CHARS_MAX: usize = 100;
/// Characters of a description.
pub const DESCRIPTION_CHARS_MAX: usize = 2_000;
/// Characters of the reason for a permission: what fits one line of the consent screen.
pub const REASON_CHARS_MAX: usize = 300;
/// Characters of a licence expression and of a homepage.
pub const LICENSE_CHARS_MAX: usize = 100;
pub const HOMEPAGE_CHARS_MAX: usize = 300;
/// Characters of a version.
pub const VERSION_CHARS_MAX: usize = 64;
/// Actions, channels and factors together.
pub const CONTRIBUTIONS_MAX: usize = 64;
/// Permissions asked for.
pub const PERMISSIONS_MAX: usize = 32;
/// Origins, methods, paths and headers in one permission.
pub const ORIGINS_MAX: usize = 32;
pub const METHODS_MAX: usize = 16;
pub const PATHS_MAX: usize = 64;
pub const HEADERS_MAX: usize = 16;
/// What stands in an injected path for the secret.
pub const SECRET_IN_PATH: &str = "{secret}";

/// A package's promises. Unknown keys are refused, every string and list is bounded ([`Manifest::parse`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub name: PluginName,
    #[schemars(with = "String")]
    pub version: Version,
    /// The contract that it was built against: `bulkhead:plugin@0.1`.
    pub wit: String,
    #[schemars(length(min = 1, max = TITLE_CHARS_MAX))]
    pub title: String,
    #[serde(default)]
    #[schemars(length(max = DESCRIPTION_CHARS_MAX))]
    pub description: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = LICENSE_CHARS_MAX))]
    pub license: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = HOMEPAGE_CHARS_MAX))]
    pub homepage: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = CONTRIBUTIONS_MAX))]
    pub actions: Vec<Contribution>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = CONTRIBUTIONS_MAX))]
    pub channels: Vec<Contribution>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = CONTRIBUTIONS_MAX))]
    pub factors: Vec<Contribution>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = PERMISSIONS_MAX))]
    pub permissions: Vec<PermissionAsk>,
    #[serde(default)]
    pub limits: LimitsAsked,
}

/// One action, channel or factor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Contribution {
    pub name: ContributionName,
    #[schemars(length(min = 1, max = TITLE_CHARS_MAX))]
    pub title: String,
    #[serde(default)]
    #[schemars(length(max = DESCRIPTION_CHARS_MAX))]
    pub description: String,
    /// JSON Schemas. In `plugin.toml` these are file names; the CLI puts the files' content in their place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<serde_json::Value>,
    /// The same idempotency key makes the effect once.
    #[serde(default)]
    pub idempotent: bool,
    #[serde(default)]
    pub effects: Effects,
}

/// What a contribution changes outside itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Effects {
    #[default]
    None,
    Crm,
    External,
}

/// One permission that the author asks for, with the reason that an admin reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct PermissionAsk {
    #[schemars(length(min = 1, max = REASON_CHARS_MAX))]
    pub reason: String,
    #[serde(default)]
    pub required: bool,
    #[serde(flatten)]
    pub capability: CapabilityAsk,
}

/// What is asked for. The other kinds of the specification (`kv`, `files`, `crm`, `mail`, `notify`, `events`) arrive with
/// their capabilities; until then a manifest that names one is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CapabilityAsk {
    Http {
        #[schemars(length(min = 1, max = ORIGINS_MAX))]
        origins: Vec<OriginAsk>,
        #[schemars(length(min = 1, max = METHODS_MAX))]
        methods: Vec<Method>,
        #[schemars(length(min = 1, max = PATHS_MAX))]
        paths: Vec<PathPrefix>,
    },
    Secret {
        name: SecretName,
        #[serde(default)]
        inject: Inject<OriginAsk>,
    },
}

impl CapabilityAsk {
    /// `http`, `secret`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Http { .. } => "http",
            Self::Secret { .. } => "secret",
        }
    }
}

/// An origin in a manifest: written down, or taken from a setting that the admin fills in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum OriginAsk {
    Pattern(OriginPattern),
    /// The origin of the URL in this setting of the installation.
    FromSetting {
        from_setting: String,
    },
}

/// Where the egress guard may swap a secret's placeholder for its value. Nothing named is nowhere: such a secret can sign
/// (`hmac-sha256`) and no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, bound(deserialize = "O: Deserialize<'de>"))]
pub struct Inject<O> {
    #[serde(default)]
    #[schemars(length(max = ORIGINS_MAX))]
    pub origins: Vec<O>,
    /// Names of request headers, lower case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = HEADERS_MAX))]
    pub headers: Vec<String>,
    /// A path that holds `{secret}` once, in one segment, such as `/services/{secret}` or `/bot{secret}/send`; further
    /// segments may follow it. Never a query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// In text bodies (JSON, form, plain).
    #[serde(default)]
    pub body: bool,
}

impl<O> Inject<O> {
    /// Whether the value can reach no request at all.
    #[must_use]
    pub fn is_nowhere(&self) -> bool {
        self.origins.is_empty() || (self.headers.is_empty() && self.path.is_none() && !self.body)
    }
}

impl<O> Default for Inject<O> {
    fn default() -> Self {
        Self { origins: Vec::new(), headers: Vec::new(), path: None, body: false }
    }
}

/// Why a manifest was refused: where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest has {bytes} bytes; at most {bytes_max} are allowed")]
    TooLarge { bytes: usize, bytes_max: u64 },
    #[error("the manifest is not JSON: {message}")]
    NotJson { message: String },
    /// `path` is a JSON pointer into the manifest; empty for the whole.
    #[error("{}: {problem}", if path.is_empty() { "manifest" } else { path.as_str() })]
    Invalid { path: String, problem: String },
}

impl Manifest {
    /// Reads and checks what somebody else wrote.
    ///
    /// # Errors
    /// The first problem found, with its place.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let bytes_max = PackageLimits::platform().manifest_bytes;
        if bytes.len() as u64 > bytes_max {
            return Err(ManifestError::TooLarge { bytes: bytes.len(), bytes_max });
        }
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|error| ManifestError::NotJson { message: error.to_string() })?;
        check::kinds_available(&value)?;
        // From the bytes again, since a parsed value has already swallowed repeated keys.
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let manifest: Self = serde_path_to_error::deserialize(&mut json).map_err(|error| ManifestError::Invalid {
            path: json_pointer(error.path()),
            problem: strip_position(&error.inner().to_string()),
        })?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The rules beyond the shape, for a manifest that was put together in memory.
    ///
    /// # Errors
    /// The first problem found, with its place.
    pub fn check(&self) -> Result<(), ManifestError> {
        check::manifest(self)
    }

    /// The JSON Schema of a manifest, as published for authors.
    #[must_use]
    pub fn json_schema() -> serde_json::Value {
        schemars::schema_for!(Manifest).to_value()
    }

    /// Every contribution with its kind.
    pub fn contributions(&self) -> impl Iterator<Item = (ContributionKind, &Contribution)> {
        let actions = self.actions.iter().map(|c| (ContributionKind::Action, c));
        let channels = self.channels.iter().map(|c| (ContributionKind::Channel, c));
        let factors = self.factors.iter().map(|c| (ContributionKind::Factor, c));
        actions.chain(channels).chain(factors)
    }

    /// The contribution of this name (names are unique across kinds).
    #[must_use]
    pub fn contribution(&self, name: &str) -> Option<(ContributionKind, &Contribution)> {
        self.contributions().find(|(_, c)| c.name.as_str() == name)
    }

    /// Whether the package is pure: factors only.
    #[must_use]
    pub fn is_pure(&self) -> bool {
        self.actions.is_empty() && self.channels.is_empty() && !self.factors.is_empty()
    }
}

/// The keys of every kind of permission. Which of them belong to a kind is decided in one place, for asks and for grants.
#[derive(Debug)]
pub(crate) struct CapabilityKeys<O> {
    pub(crate) kind: String,
    pub(crate) origins: Option<Vec<O>>,
    pub(crate) methods: Option<Vec<Method>>,
    pub(crate) paths: Option<Vec<PathPrefix>>,
    pub(crate) name: Option<SecretName>,
    pub(crate) inject: Option<Inject<O>>,
}

/// [`CapabilityKeys`] that belong together.
pub(crate) enum CapabilityParts<O> {
    Http { origins: Vec<O>, methods: Vec<Method>, paths: Vec<PathPrefix> },
    Secret { name: SecretName, inject: Inject<O> },
}

impl<O> CapabilityKeys<O> {
    pub(crate) fn sort<E: serde::de::Error>(self) -> Result<CapabilityParts<O>, E> {
        match self.kind.as_str() {
            "http" => {
                if self.name.is_some() || self.inject.is_some() {
                    return Err(E::custom("a permission of kind http has no `name` and no `inject`"));
                }
                Ok(CapabilityParts::Http {
                    origins: self.origins.ok_or_else(|| E::missing_field("origins"))?,
                    methods: self.methods.ok_or_else(|| E::missing_field("methods"))?,
                    paths: self.paths.ok_or_else(|| E::missing_field("paths"))?,
                })
            }
            "secret" => {
                if self.origins.is_some() || self.methods.is_some() || self.paths.is_some() {
                    return Err(E::custom(
                        "a permission of kind secret has no `origins`, `methods` or `paths`; its origins go into `inject`",
                    ));
                }
                let name = self.name.ok_or_else(|| E::missing_field("name"))?;
                Ok(CapabilityParts::Secret { name, inject: self.inject.unwrap_or_default() })
            }
            other => Err(E::unknown_variant(other, KINDS)),
        }
    }
}

/// The kinds of permission that exist so far.
pub(crate) const KINDS: &[&str] = &["http", "secret"];

impl<'de> Deserialize<'de> for PermissionAsk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Keys {
            kind: String,
            reason: String,
            #[serde(default)]
            required: bool,
            origins: Option<Vec<OriginAsk>>,
            methods: Option<Vec<Method>>,
            paths: Option<Vec<PathPrefix>>,
            name: Option<SecretName>,
            inject: Option<Inject<OriginAsk>>,
        }
        let Keys { kind, reason, required, origins, methods, paths, name, inject } = Keys::deserialize(deserializer)?;
        let capability = match (CapabilityKeys { kind, origins, methods, paths, name, inject }).sort()? {
            CapabilityParts::Http { origins, methods, paths } => CapabilityAsk::Http { origins, methods, paths },
            CapabilityParts::Secret { name, inject } => CapabilityAsk::Secret { name, inject },
        };
        Ok(Self { reason, required, capability })
    }
}

impl<'de> Deserialize<'de> for OriginAsk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = OriginAsk;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an origin such as \"https://api.example.com\" or {\"from_setting\": \"name\"}")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<OriginAsk, E> {
                text.parse().map(OriginAsk::Pattern).map_err(E::custom)
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<OriginAsk, A::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Setting {
                    from_setting: String,
                }
                let Setting { from_setting } = Setting::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(OriginAsk::FromSetting { from_setting })
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// Where an error happened, as a JSON pointer.
pub(crate) fn json_pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut pointer = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => push_pointer(&mut pointer, &index.to_string()),
            Segment::Map { key } => push_pointer(&mut pointer, key),
            Segment::Enum { variant } => push_pointer(&mut pointer, variant),
            Segment::Unknown => {}
        }
    }
    pointer
}

/// Adds one key to a JSON pointer (RFC 6901).
pub(crate) fn push_pointer(pointer: &mut String, key: &str) {
    pointer.push('/');
    pointer.push_str(&key.replace('~', "~0").replace('/', "~1"));
}

/// Line and column mean nothing in a generated file.
pub(crate) fn strip_position(message: &str) -> String {
    message.rfind(" at line ").map_or(message, |at| &message[..at]).to_owned()
}
