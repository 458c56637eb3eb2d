//! The three layers and what is left of them: asks ∩ grants ∩ ceiling.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;

use super::scope::{Budget, TooComplex, covers_list, lists_meet, meet_lists};
use super::{CapabilityGrant, Grant, Grants, HttpRule, Method, OriginPattern, PathPrefix, Scheme, SecretRule, climbs};
use crate::manifest::{CapabilityAsk, Inject, Manifest, OriginAsk};
use crate::name::SecretName;
use crate::time::Timestamp;

impl HttpRule {
    /// Whether every request that `other` lets out is let out by this rule as well. One-sided: a false answer may be wrong
    /// for rules that only several members cover together.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        covers_list(&self.origins, &other.origins)
            && covers_list(&self.methods, &other.methods)
            && covers_list(&self.paths, &other.paths)
    }

    /// The requests that both rules let out.
    ///
    /// # Errors
    /// [`TooComplex`] when the budget is spent.
    pub fn meet(&self, other: &Self, budget: &mut Budget) -> Result<Option<Self>, TooComplex> {
        let origins = meet_lists(&self.origins, &other.origins, budget)?;
        if origins.is_empty() {
            return Ok(None);
        }
        let methods = meet_lists(&self.methods, &other.methods, budget)?;
        let paths = meet_lists(&self.paths, &other.paths, budget)?;
        Ok((!methods.is_empty() && !paths.is_empty()).then_some(Self { origins, methods, paths }))
    }

    /// Whether some request is let out by both.
    fn meets(&self, other: &Self) -> bool {
        lists_meet(&self.origins, &other.origins)
            && lists_meet(&self.methods, &other.methods)
            && lists_meet(&self.paths, &other.paths)
    }

    fn entries(&self) -> usize {
        self.origins.len() + self.methods.len() + self.paths.len()
    }

    /// Comparisons that [`covers`](Self::covers) takes at most.
    fn comparisons(&self, other: &Self) -> usize {
        self.origins.len() * other.origins.len()
            + self.methods.len() * other.methods.len()
            + self.paths.len() * other.paths.len()
    }

    /// Whether this request is let out. Allocates nothing.
    #[must_use]
    pub fn matches(&self, method: &str, url: &Url) -> bool {
        Asked::of(method, url).is_ok_and(|asked| asked.matched(self) == Matched::All)
    }
}

impl Inject<OriginPattern> {
    /// The places that both allow.
    ///
    /// # Errors
    /// [`TooComplex`] when the budget is spent.
    pub fn meet(&self, other: &Self, budget: &mut Budget) -> Result<Self, TooComplex> {
        let mut headers: Vec<String> = self.headers.iter().filter(|h| other.headers.contains(h)).cloned().collect();
        headers.sort();
        headers.dedup();
        Ok(Self {
            origins: meet_lists(&self.origins, &other.origins, budget)?,
            headers,
            path: self.path.clone().filter(|path| other.path.as_ref() == Some(path)),
            body: self.body && other.body,
        })
    }
}

/// Origins, methods and paths that all rules in force may have together: each request of a plugin is compared with them.
/// The largest manifest, granted as it asks, has 3,584.
const ENTRIES_MAX: usize = 4_096;

/// The same over two lists of rules, each the union of its members: pair by pair, sorted, without what another rule covers.
fn meet_rules(left: &[HttpRule], right: &[HttpRule], budget: &mut Budget) -> Result<Vec<HttpRule>, TooComplex> {
    let mut common: Vec<HttpRule> = Vec::new();
    for (l, r) in left.iter().flat_map(|l| right.iter().map(move |r| (l, r))) {
        let Some(rule) = l.meet(r, budget)? else { continue };
        budget.spend(common.iter().map(|kept| 2 * kept.comparisons(&rule)).sum())?;
        if !common.iter().any(|kept| kept.covers(&rule)) {
            common.retain(|kept| !rule.covers(kept));
            common.push(rule);
        }
    }
    if common.iter().map(HttpRule::entries).sum::<usize>() > ENTRIES_MAX {
        return Err(TooComplex);
    }
    common.sort();
    Ok(common)
}

/// What the operator lets any plugin do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ceiling {
    pub http: Vec<HttpRule>,
    /// Addresses of this machine that plugins may reach, for development: never any by default. A grant must name the
    /// same host and port.
    pub loopbacks: Vec<Loopback>,
    /// `None` takes secrets away from every plugin.
    pub secrets: Option<SecretCeiling>,
}

/// Where values of secrets may go at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretCeiling {
    pub headers: bool,
    pub path: bool,
    pub body: bool,
}

/// A host and port of this machine, by name or address: `127.0.0.1:8080`, `localhost:8080`, `[::1]:8080`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Loopback {
    /// As the URL parser writes it.
    host: String,
    port: u16,
}

/// The text names no single host and port of this machine's network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a host and port such as 127.0.0.1:8080")]
pub struct LoopbackError(String);

impl Loopback {
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether a URL's host (as its parser writes it) and port are this pair.
    #[must_use]
    pub fn matches(&self, host: &str, port: u16) -> bool {
        self.port == port && self.host == host
    }
}

impl std::str::FromStr for Loopback {
    type Err = LoopbackError;

    fn from_str(text: &str) -> Result<Self, LoopbackError> {
        let refuse = || LoopbackError(text.chars().take(80).collect());
        let url = Url::parse(&format!("http://{text}/")).map_err(|_| refuse())?;
        let origin = OriginPattern::of_url(&url).ok_or_else(refuse)?;
        let written_port =
            text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port != 0));
        match origin.exact_host() {
            Some(host) if written_port && url.path() == "/" && !text.contains(['/', '\\', '?', '#', '@']) => {
                Ok(Self { host: host.to_owned(), port: url.port_or_known_default().ok_or_else(refuse)? })
            }
            _ => Err(refuse()),
        }
    }
}

impl TryFrom<String> for Loopback {
    type Error = LoopbackError;

    fn try_from(text: String) -> Result<Self, LoopbackError> {
        text.parse()
    }
}

impl From<Loopback> for String {
    fn from(pair: Loopback) -> Self {
        pair.to_string()
    }
}

impl std::fmt::Display for Loopback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Default for Ceiling {
    /// Any public host by https at its own port, secrets wherever a grant says, nothing of this machine.
    fn default() -> Self {
        Self {
            http: vec![HttpRule {
                origins: vec![OriginPattern::any_public(Scheme::Https, false)],
                methods: vec![Method::any()],
                paths: vec![PathPrefix::root()],
            }],
            loopbacks: Vec::new(),
            secrets: Some(SecretCeiling { headers: true, path: true, body: true }),
        }
    }
}

impl Ceiling {
    /// The default, with these pairs of this machine.
    #[must_use]
    pub fn with_loopbacks(loopbacks: Vec<Loopback>) -> Self {
        Self { loopbacks, ..Self::default() }
    }

    /// Every rule about requests, the loopback pairs among them (by http and https).
    #[must_use]
    pub fn http_rules(&self) -> Vec<HttpRule> {
        let pairs = self.loopbacks.iter().map(|pair| HttpRule {
            origins: [Scheme::Http, Scheme::Https]
                .iter()
                .filter_map(|scheme| format!("{}://{pair}", scheme.as_str()).parse().ok())
                .collect(),
            methods: vec![Method::any()],
            paths: vec![PathPrefix::root()],
        });
        self.http.iter().cloned().chain(pairs).collect()
    }
}

/// The origins of an ask, those from settings resolved. A setting that is empty or no URL stands for no origin.
#[must_use]
pub fn resolve_origins(asks: &[OriginAsk], settings: &Value) -> Vec<OriginPattern> {
    let resolve = |ask: &OriginAsk| match ask {
        OriginAsk::Pattern(pattern) => Some(pattern.clone()),
        OriginAsk::FromSetting { from_setting } => {
            OriginPattern::of_url(&Url::parse(settings.get(from_setting)?.as_str()?).ok()?)
        }
    };
    asks.iter().filter_map(resolve).collect()
}

/// An ask in the shape of a grant: origins resolved. `None` when nothing is left of it.
#[must_use]
pub fn resolve_ask(ask: &CapabilityAsk, settings: &Value) -> Option<CapabilityGrant> {
    Some(match ask {
        CapabilityAsk::Http { origins, methods, paths } => {
            let origins = resolve_origins(origins, settings);
            if origins.is_empty() {
                return None;
            }
            CapabilityGrant::Http(HttpRule { origins, methods: methods.clone(), paths: paths.clone() })
        }
        CapabilityAsk::Secret { name, inject } => CapabilityGrant::Secret(SecretRule {
            name: name.clone(),
            inject: Inject {
                origins: resolve_origins(&inject.origins, settings),
                headers: inject.headers.clone(),
                path: inject.path.clone(),
                body: inject.body,
            },
        }),
    })
}

impl Grants {
    /// Everything that the manifest asks for, without end: the form of "grant all as asked". What an ask takes from a
    /// setting is fixed to the setting's value now.
    #[must_use]
    pub fn everything_asked(manifest: &Manifest, settings: &Value) -> Self {
        let resolved = manifest.permissions.iter().filter_map(|ask| resolve_ask(&ask.capability, settings));
        Self { permissions: resolved.map(|capability| Grant { capability, expires_at: None }).collect() }
    }
}

/// What a call may do: computed once, asked at each host call. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EffectiveGrants {
    http: Vec<HttpRule>,
    secrets: Vec<SecretRule>,
    /// When the first of the grants behind it ends: from then on it must be computed again.
    expires_at: Option<Timestamp>,
}

/// Why a request may not leave. Ordered by how close it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    #[error("the URL is neither http nor https, or names no host")]
    NotHttp,
    #[error("the URL carries a user or a password")]
    UserInfo,
    #[error("the installation has no grant for requests")]
    NoGrant,
    #[error("no grant covers this origin")]
    Origin,
    #[error("no grant for this origin covers the method")]
    Method,
    #[error("no grant for this origin and method covers the path")]
    Path,
}

impl RefusalReason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotHttp => "not_http",
            Self::UserInfo => "user_info",
            Self::NoGrant => "no_grant",
            Self::Origin => "origin",
            Self::Method => "method",
            Self::Path => "path",
        }
    }
}

/// How much of a rule a request matched.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Matched {
    Nothing,
    Origin,
    Method,
    All,
}

/// A request, taken apart once for all rules.
struct Asked<'a> {
    scheme: Scheme,
    host: &'a str,
    port: u16,
    method: &'a str,
    path: &'a str,
    /// The path leaves its prefix for some reader, so that only `/` covers it.
    climbs: bool,
}

impl<'a> Asked<'a> {
    fn of(method: &'a str, url: &'a Url) -> Result<Self, RefusalReason> {
        let scheme = Scheme::parse(url.scheme()).ok_or(RefusalReason::NotHttp)?;
        let host = url.host_str().ok_or(RefusalReason::NotHttp)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(RefusalReason::UserInfo);
        }
        let port = url.port().unwrap_or(scheme.default_port());
        let path = url.path();
        Ok(Self { scheme, host, port, method, path, climbs: climbs(path) })
    }

    fn matched(&self, rule: &HttpRule) -> Matched {
        if !rule.origins.iter().any(|origin| origin.matches(self.scheme, self.host, self.port)) {
            Matched::Nothing
        } else if !rule.methods.iter().any(|method| method.matches(self.method)) {
            Matched::Origin
        } else if !rule.paths.iter().any(|prefix| prefix.matches_parsed(self.path, self.climbs)) {
            Matched::Method
        } else {
            Matched::All
        }
    }
}

impl EffectiveGrants {
    /// The intersection of the three layers at `now`. Expired grants count as absent; an origin from a setting is that of
    /// the URL which the setting holds. Nothing is in force when they are [`TooComplex`]: [`try_compute`](Self::try_compute)
    /// tells before such grants are saved.
    #[must_use]
    pub fn compute(manifest: &Manifest, grants: &Grants, ceiling: &Ceiling, settings: &Value, now: Timestamp) -> Self {
        Self::try_compute(manifest, grants, ceiling, settings, now).unwrap_or_default()
    }

    /// The same for grants that are about to be saved.
    ///
    /// # Errors
    /// [`TooComplex`] when the three together cannot be compared in bounded time, or leave more than can be asked at each
    /// request.
    pub fn try_compute(
        manifest: &Manifest,
        grants: &Grants,
        ceiling: &Ceiling,
        settings: &Value,
        now: Timestamp,
    ) -> Result<Self, TooComplex> {
        let budget = &mut Budget::default();
        let asks: Vec<CapabilityGrant> =
            manifest.permissions.iter().filter_map(|ask| resolve_ask(&ask.capability, settings)).collect();
        let live: Vec<&Grant> =
            grants.permissions.iter().filter(|grant| grant.expires_at.is_none_or(|at| at > now)).collect();
        let granted: Vec<CapabilityGrant> = live.iter().map(|grant| grant.capability.clone()).collect();
        let ceiling_rules = ceiling.http_rules();
        let asked_and_granted = meet_rules(&http_rules(&asks), &http_rules(&granted), budget)?;
        let http = meet_rules(&asked_and_granted, &ceiling_rules, budget)?;
        let ceiling_origins: Vec<OriginPattern> =
            ceiling_rules.iter().flat_map(|rule| rule.origins.iter().cloned()).collect();
        let mut secrets = Vec::new();
        if let Some(places) = ceiling.secrets {
            let granted = secret_rules(&granted);
            for ask in secret_rules(&asks) {
                let Some(grant) = granted.iter().find(|grant| grant.name == ask.name) else { continue };
                let of_ceiling = Inject {
                    origins: ceiling_origins.clone(),
                    headers: if places.headers { ask.inject.headers.clone() } else { Vec::new() },
                    path: ask.inject.path.clone().filter(|_| places.path),
                    body: places.body,
                };
                let inject = ask.inject.meet(&grant.inject, budget)?.meet(&of_ceiling, budget)?;
                secrets.push(SecretRule { name: ask.name, inject });
            }
        }
        Ok(Self { http, secrets, expires_at: live.iter().filter_map(|grant| grant.expires_at).min() })
    }

    /// Rules that hold as they are, for callers without a manifest (the host's own requests) and tests.
    #[must_use]
    pub fn of_rules(http: Vec<HttpRule>, secrets: Vec<SecretRule>) -> Self {
        Self { http, secrets, expires_at: None }
    }

    /// Whether this request may leave. Allocates nothing.
    ///
    /// # Errors
    /// The reason of the rule that came closest.
    pub fn http(&self, method: &str, url: &Url) -> Result<(), RefusalReason> {
        let asked = Asked::of(method, url)?;
        let mut best = Matched::Nothing;
        for rule in &self.http {
            let matched = asked.matched(rule);
            if matched == Matched::All {
                return Ok(());
            }
            best = best.max(matched);
        }
        Err(match best {
            Matched::Nothing if self.http.is_empty() => RefusalReason::NoGrant,
            Matched::Nothing => RefusalReason::Origin,
            Matched::Origin => RefusalReason::Method,
            Matched::Method | Matched::All => RefusalReason::Path,
        })
    }

    /// Where this secret may go, if it was granted at all.
    #[must_use]
    pub fn secret(&self, name: &str) -> Option<&SecretRule> {
        self.secrets.iter().find(|rule| rule.name.as_str() == name)
    }

    /// The rules about requests that are in force.
    #[must_use]
    pub fn http_rules(&self) -> &[HttpRule] {
        &self.http
    }

    /// The secrets that are in force.
    #[must_use]
    pub fn secret_rules(&self) -> &[SecretRule] {
        &self.secrets
    }

    /// Origins, methods and paths together: what a request is compared with.
    #[must_use]
    pub fn entries(&self) -> usize {
        let places = |rule: &SecretRule| rule.inject.origins.len() + rule.inject.headers.len();
        self.http.iter().map(HttpRule::entries).sum::<usize>() + self.secrets.iter().map(places).sum::<usize>()
    }

    /// When it must be computed again because a grant ends.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// Whether nothing is allowed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.http.is_empty() && self.secrets.is_empty()
    }

    /// How much of `rule` is in force.
    pub(super) fn share_of(&self, capability: &CapabilityGrant) -> super::Share {
        use super::Share;
        match capability {
            CapabilityGrant::Http(rule) => {
                if self.http.iter().any(|held| held.covers(rule)) {
                    Share::Whole
                } else if self.http.iter().any(|held| held.meets(rule)) {
                    Share::Part
                } else {
                    Share::None
                }
            }
            CapabilityGrant::Secret(rule) => self.secret(rule.name.as_str()).map_or(Share::None, |held| {
                let (held, asked) = (&held.inject, &rule.inject);
                let whole = covers_list(&held.origins, &asked.origins)
                    && asked.headers.iter().all(|header| held.headers.contains(header))
                    && (asked.path.is_none() || asked.path == held.path)
                    && (held.body || !asked.body);
                if whole { Share::Whole } else { Share::Part }
            }),
        }
    }
}

fn http_rules(capabilities: &[CapabilityGrant]) -> Vec<HttpRule> {
    let rule = |capability: &CapabilityGrant| match capability {
        CapabilityGrant::Http(rule) => Some(rule.clone()),
        CapabilityGrant::Secret(_) => None,
    };
    capabilities.iter().filter_map(rule).collect()
}

fn secret_rules(capabilities: &[CapabilityGrant]) -> Vec<SecretRule> {
    let rule = |capability: &CapabilityGrant| match capability {
        CapabilityGrant::Secret(rule) => Some(rule.clone()),
        CapabilityGrant::Http(_) => None,
    };
    capabilities.iter().filter_map(rule).collect()
}

/// The names of the secrets that the manifest asks for.
pub fn secrets_asked(manifest: &Manifest) -> impl Iterator<Item = &SecretName> {
    manifest.permissions.iter().filter_map(|ask| match &ask.capability {
        CapabilityAsk::Secret { name, .. } => Some(name),
        CapabilityAsk::Http { .. } => None,
    })
}
