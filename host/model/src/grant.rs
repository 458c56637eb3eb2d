//! What a plugin may do: manifest asks ∩ organization grants ∩ platform ceiling. Empty means nothing, never everything.

pub mod address;
mod header;
mod scope;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

pub use self::header::{HEADER_NAME_BYTES_MAX, is_host_owned_header, is_lower_header_name};
pub use self::scope::{
    METHOD_BYTES_MAX, Method, ORIGIN_BYTES_MAX, OriginPattern, PATH_BYTES_MAX, PathPrefix, Scheme, ScopeError, climbs,
};
use crate::manifest::{CapabilityKeys, CapabilityParts, Inject};
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
