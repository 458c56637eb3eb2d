//! What an admin reads before granting: one plain sentence and a risk per permission, and the layers side by side.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

use super::effective::resolve_ask;
use super::{CapabilityGrant, Ceiling, EffectiveGrants, Grants, Method, OriginPattern, PathPrefix, Scheme};
use crate::manifest::{CapabilityAsk, Inject, Manifest, OriginAsk, PermissionAsk};
use crate::time::Timestamp;

/// How bad it is when the plugin abuses the permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Risk {
    Low,
    Medium,
    High,
}

/// A permission in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Consent {
    pub sentence: String,
    pub risk: Risk,
}

/// How much of an ask is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    None,
    Part,
    Whole,
}

/// One ask of the manifest, in words and beside what is left of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AskView {
    #[serde(flatten)]
    pub ask: PermissionAsk,
    #[serde(flatten)]
    pub consent: Consent,
    /// How much of it is in force now.
    pub effective: Share,
}

/// The three layers and their result, as the API and the screen show them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Layers {
    pub asks: Vec<AskView>,
    pub grants: Grants,
    pub ceiling: Ceiling,
    pub effective: EffectiveGrants,
}

impl Layers {
    /// All layers of an installation at `now`.
    #[must_use]
    pub fn of(manifest: &Manifest, grants: &Grants, ceiling: &Ceiling, settings: &Value, now: Timestamp) -> Self {
        let effective = EffectiveGrants::compute(manifest, grants, ceiling, settings, now);
        let view = |ask: &PermissionAsk| AskView {
            ask: ask.clone(),
            consent: Consent::of_ask(&ask.capability),
            effective: resolve_ask(&ask.capability, settings).map_or(Share::None, |asked| effective.share_of(&asked)),
        };
        let asks = manifest.permissions.iter().map(view).collect();
        Self { asks, grants: grants.clone(), ceiling: ceiling.clone(), effective }
    }
}

impl Consent {
    /// An ask in words.
    #[must_use]
    pub fn of_ask(ask: &CapabilityAsk) -> Self {
        match ask {
            CapabilityAsk::Http { origins, methods, paths } => {
                http(&origins.iter().map(Place::of_ask).collect::<Vec<_>>(), methods, paths)
            }
            CapabilityAsk::Secret { name, inject } => {
                secret(name.as_str(), inject, &inject.origins.iter().map(Place::of_ask).collect::<Vec<_>>())
            }
        }
    }

    /// A grant in words.
    #[must_use]
    pub fn of_grant(grant: &CapabilityGrant) -> Self {
        match grant {
            CapabilityGrant::Http(rule) => {
                http(&rule.origins.iter().map(Place::of_pattern).collect::<Vec<_>>(), &rule.methods, &rule.paths)
            }
            CapabilityGrant::Secret(rule) => {
                let places: Vec<Place> = rule.inject.origins.iter().map(Place::of_pattern).collect();
                secret(rule.name.as_str(), &rule.inject, &places)
            }
        }
    }
}

/// An origin in words.
struct Place {
    words: String,
    risk: Risk,
}

impl Place {
    fn of_ask(origin: &OriginAsk) -> Self {
        match origin {
            OriginAsk::Pattern(pattern) => Self::of_pattern(pattern),
            OriginAsk::FromSetting { from_setting } => {
                Self { words: format!("the address in the setting {from_setting}"), risk: Risk::Low }
            }
        }
    }

    fn of_pattern(pattern: &OriginPattern) -> Self {
        let clear = pattern.scheme() == Scheme::Http;
        let words = match (pattern.is_any_public(), clear) {
            (true, true) => "any public host, unencrypted".to_owned(),
            (true, false) => "any public host".to_owned(),
            (false, true) => format!("{pattern} (unencrypted)"),
            (false, false) => pattern.to_string(),
        };
        let risk = if pattern.is_any_public() || pattern.is_private() {
            Risk::High
        } else if clear || pattern.exact_host().is_none() {
            Risk::Medium
        } else {
            Risk::Low
        };
        Self { words, risk }
    }
}

fn http(places: &[Place], methods: &[Method], paths: &[PathPrefix]) -> Consent {
    if places.is_empty() || methods.is_empty() || paths.is_empty() {
        return Consent { sentence: "Send no requests.".to_owned(), risk: Risk::Low };
    }
    let reads_only = methods.iter().all(|method| matches!(method.as_str(), "GET" | "HEAD" | "OPTIONS"));
    let mut sentence = if methods.iter().any(Method::is_any) {
        "Send requests of every kind".to_owned()
    } else {
        format!("Send {} requests", join(methods.iter().map(Method::as_str)))
    };
    let _ = write!(sentence, " to {}", join(places.iter().map(|place| place.words.as_str())));
    if !paths.iter().any(|path| path.as_str() == "/") {
        let _ = write!(sentence, ", only under {}", join(paths.iter().map(PathPrefix::as_str)));
    }
    sentence.push('.');
    // Whatever leaves can carry data of the organization; a request that also changes something weighs more.
    let by_method = if reads_only { Risk::Low } else { Risk::Medium };
    let risk = places.iter().map(|place| place.risk).max().unwrap_or(Risk::Low).max(by_method);
    Consent { sentence, risk }
}

fn secret<O>(name: &str, inject: &Inject<O>, places: &[Place]) -> Consent {
    if inject.is_nowhere() {
        let sentence = format!("Sign data with the secret {name}, without ever seeing it and without sending it.");
        return Consent { sentence, risk: Risk::Low };
    }
    let mut parts = Vec::new();
    if !inject.headers.is_empty() {
        let noun = if inject.headers.len() == 1 { "header" } else { "headers" };
        parts.push(format!("in the {noun} {}", join(inject.headers.iter().map(String::as_str))));
    }
    if let Some(path) = &inject.path {
        parts.push(format!("in the path {path}"));
    }
    if inject.body {
        parts.push("in the body of requests".to_owned());
    }
    let sentence = format!(
        "Have the secret {name} sent to {}, {}, without seeing it.",
        join(places.iter().map(|place| place.words.as_str())),
        join(parts.iter().map(String::as_str)),
    );
    // A body is often stored or shown by whoever receives it.
    let by_place = if inject.body { Risk::High } else { Risk::Medium };
    Consent { sentence, risk: places.iter().map(|place| place.risk).max().unwrap_or(Risk::Low).max(by_place) }
}

/// `a`, `a and b`, `a, b and c`.
fn join<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<&str> = words.collect();
    match words.split_last() {
        None => String::new(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}
