//! What a plugin may do: manifest asks ∩ organization grants ∩ platform ceiling. Empty means nothing, never everything.

pub mod address;
mod consent;
mod effective;
mod header;
mod scope;
#[cfg(test)]
mod tests;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

pub use self::consent::{AskView, Consent, Layers, Risk, Share};
pub use self::effective::{
    Ceiling, EffectiveGrants, Loopback, LoopbackError, RefusalReason, SecretCeiling, resolve_ask, resolve_origins,
    secrets_asked,
};
pub use self::header::{HEADER_NAME_BYTES_MAX, is_host_owned_header, is_lower_header_name};
pub use self::scope::{
    Budget, COMPARISONS_MAX, METHOD_BYTES_MAX, Method, ORIGIN_BYTES_MAX, OriginPattern, PATH_BYTES_MAX, PathPrefix,
    Scheme, ScopeError, TooComplex, climbs,
};
use crate::manifest::{
    CapabilityAsk, CapabilityKeys, CapabilityParts, Inject, METHODS_MAX, Manifest, ManifestError, ORIGINS_MAX,
    PATHS_MAX, check_inject, json_pointer, strip_position,
};
use crate::name::SecretName;
use crate::time::Timestamp;

/// Counts every change of an installation's grants, settings, secrets or state; a call records the version that it began with and
/// its step commits only if the version is still the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GrantVersion(pub i64);

/// What an admin granted to one installation. The API shows and takes this shape.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    pub permissions: Vec<Grant>,
}

/// One permission of a grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Grant {
    #[serde(flatten)]
    pub capability: CapabilityGrant,
    /// From this moment on the grant counts as absent.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub expires_at: Option<Timestamp>,
}

/// What is granted: the manifest's shape, with every origin written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CapabilityGrant {
    Http(HttpRule),
    Secret(SecretRule),
}

/// Requests that may leave: every part must match.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct HttpRule {
    pub origins: Vec<OriginPattern>,
    pub methods: Vec<Method>,
    pub paths: Vec<PathPrefix>,
}

/// A secret that may be used, and where its value may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SecretRule {
    pub name: SecretName,
    pub inject: Inject<OriginPattern>,
}

impl<'de> Deserialize<'de> for Grant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Keys {
            kind: String,
            #[serde(default)]
            expires_at: Option<Timestamp>,
            origins: Option<Vec<OriginPattern>>,
            methods: Option<Vec<Method>>,
            paths: Option<Vec<PathPrefix>>,
            name: Option<SecretName>,
            inject: Option<Inject<OriginPattern>>,
        }
        let Keys { kind, expires_at, origins, methods, paths, name, inject } = Keys::deserialize(deserializer)?;
        let capability = match (CapabilityKeys { kind, origins, methods, paths, name, inject }).sort()? {
            CapabilityParts::Http { origins, methods, paths } => {
                CapabilityGrant::Http(HttpRule { origins, methods, paths })
            }
            CapabilityParts::Secret { name, inject } => CapabilityGrant::Secret(SecretRule { name, inject }),
        };
        Ok(Self { capability, expires_at })
    }
}

/// Permissions in one grant.
pub const GRANTS_MAX: usize = 64;
/// Bytes of a grant's JSON.
pub const GRANTS_BYTES_MAX: usize = 256 * 1024;

/// Why a grant was refused; `path` is a JSON pointer into it, empty for the whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", if path.is_empty() { "grant" } else { path.as_str() })]
pub struct GrantError {
    pub path: String,
    pub problem: String,
}

impl Grants {
    /// Reads and checks the JSON of a grant. Whether it fits a manifest is for [`validate`](Self::validate).
    ///
    /// # Errors
    /// The first problem found, with its place.
    pub fn parse(bytes: &[u8]) -> Result<Self, GrantError> {
        if bytes.len() > GRANTS_BYTES_MAX {
            return refuse("", format!("{} bytes; at most {GRANTS_BYTES_MAX} are allowed", bytes.len()));
        }
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let grants: Self = serde_path_to_error::deserialize(&mut json).map_err(|error| GrantError {
            path: json_pointer(error.path()),
            problem: strip_position(&error.inner().to_string()),
        })?;
        json.end().map_err(|error| GrantError { path: String::new(), problem: strip_position(&error.to_string()) })?;
        grants.check()?;
        Ok(grants)
    }

    /// Sizes, and where secrets may go.
    ///
    /// # Errors
    /// The first problem found, with its place.
    ///
    /// # Panics
    /// Never: a grant consists of text and moments.
    pub fn check(&self) -> Result<(), GrantError> {
        let within = |path: String, count: usize, count_max: usize| {
            if count > count_max {
                return refuse(path, format!("{count} entries; at most {count_max} are allowed"));
            }
            Ok(())
        };
        within("/permissions".to_owned(), self.permissions.len(), GRANTS_MAX)?;
        let mut secrets: Vec<&SecretName> = Vec::new();
        for (at, grant) in self.permissions.iter().enumerate() {
            let path = format!("/permissions/{at}");
            match &grant.capability {
                CapabilityGrant::Http(rule) => {
                    within(format!("{path}/origins"), rule.origins.len(), ORIGINS_MAX)?;
                    within(format!("{path}/methods"), rule.methods.len(), METHODS_MAX)?;
                    within(format!("{path}/paths"), rule.paths.len(), PATHS_MAX)?;
                }
                CapabilityGrant::Secret(rule) => {
                    if secrets.contains(&&rule.name) {
                        return refuse(format!("{path}/name"), format!("the secret {} is granted twice", rule.name));
                    }
                    secrets.push(&rule.name);
                    check_inject(&format!("{path}/inject"), &rule.inject, Some)?;
                }
            }
        }
        // However it came: the parts are bounded one by one, and many large ones are more than a grant may be.
        let bytes = serde_json::to_vec(self).expect("a grant is text and moments").len();
        if bytes > GRANTS_BYTES_MAX {
            return refuse("", format!("{bytes} bytes; at most {GRANTS_BYTES_MAX} are allowed"));
        }
        Ok(())
    }

    /// Whether the grant answers the manifest's asks. A grant wider than its ask is no error, since only the intersection
    /// counts; a grant that nothing asks for is one, since the admin believes in it.
    ///
    /// # Errors
    /// The first problem found, with its place.
    pub fn validate(&self, manifest: &Manifest) -> Result<(), GrantError> {
        self.check()?;
        for (at, grant) in self.permissions.iter().enumerate() {
            match &grant.capability {
                CapabilityGrant::Http(_) => {
                    let asked =
                        manifest.permissions.iter().any(|ask| matches!(ask.capability, CapabilityAsk::Http { .. }));
                    if !asked {
                        let problem = format!("{} asks for no permission of kind http", manifest.name);
                        return refuse(format!("/permissions/{at}/kind"), problem);
                    }
                }
                CapabilityGrant::Secret(rule) => {
                    if !secrets_asked(manifest).any(|name| *name == rule.name) {
                        let problem = format!("{} asks for no secret named {}", manifest.name, rule.name);
                        return refuse(format!("/permissions/{at}/name"), problem);
                    }
                }
            }
        }
        Ok(())
    }
}

fn refuse<T>(path: impl Into<String>, problem: impl Into<String>) -> Result<T, GrantError> {
    Err(GrantError { path: path.into(), problem: problem.into() })
}

impl From<ManifestError> for GrantError {
    fn from(error: ManifestError) -> Self {
        match error {
            ManifestError::Invalid { path, problem } => Self { path, problem },
            whole => Self { path: String::new(), problem: whole.to_string() },
        }
    }
}
