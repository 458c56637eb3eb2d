//! Rate limits at the door: an address is counted before anybody looks at credentials, and whoever they turn out to belong to after that.
//!
//! | field | says |
//! | --- | --- |
//! | `ratelimit-policy` | how many (`q`) in how many seconds (`w`) each policy allows that the request fell under |
//! | `ratelimit` | how many are left now (`r`), and in how many seconds (`t`) all of them are back |
//! | `retry-after` | of a refusal: when to come back |
//!
//! The fields are those of draft-ietf-httpapi-ratelimit-headers-10.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bulkhead_app::AppError;
use bulkhead_app::limits::{Ask, Counted, Holder, Known, Meter, Presented, RateRefused, RefusedFor};
use bulkhead_model::id::UserId;
use bulkhead_model::network::Network;
use bulkhead_model::permission::Caller;
use bulkhead_model::rate::{Asker, Policy, RouteClass};
use bulkhead_model::session::BrowserToken;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method};
use utoipa::openapi::OpenApi;
use utoipa::openapi::path::PathItem;

use crate::HttpState;
use crate::access::{PERMISSION_KEY, PERSONAL_KEY};
use crate::extract::discard_small;
use crate::problem::{Kind, Problem};
use crate::session::{ClientAddress, browser, credentials, is_foreign_page};

/// In the OpenAPI document: the class of routes that an operation is counted with.
pub(crate) const CLASS_KEY: &str = "x-bulkhead-rate-class";
pub(crate) const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(crate) const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// How requests of a route are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Declared {
    class: RouteClass,
    /// Credentials are looked at there. Elsewhere anything could be written into the header, and would be nobody's.
    needs_caller: bool,
}

/// How the requests of each route are counted, by its path and method.
#[derive(Debug, Default)]
pub(crate) struct Classes(HashMap<String, HashMap<&'static str, Declared>>);

impl Classes {
    /// As the description of the routes declares them.
    pub(crate) fn of(document: &OpenApi) -> Self {
        let of_item = |item: &PathItem| {
            let operations = [
                ("GET", &item.get),
                ("POST", &item.post),
                ("PUT", &item.put),
                ("PATCH", &item.patch),
                ("DELETE", &item.delete),
            ];
            let declared = |operation: &utoipa::openapi::path::Operation| {
                let extensions = operation.extensions.as_ref()?;
                let class = RouteClass::parse(extensions.get(CLASS_KEY)?.as_str()?)?;
                let is_guarded = extensions.get(PERMISSION_KEY).is_some_and(|permission| !permission.is_null());
                Some(Declared { class, needs_caller: is_guarded || extensions.contains_key(PERSONAL_KEY) })
            };
            operations
                .into_iter()
                .filter_map(|(method, operation)| Some((method, declared(operation.as_ref()?)?)))
                .collect()
        };
        Self(document.paths.paths.iter().map(|(path, item)| (path.clone(), of_item(item))).collect())
    }

    /// `None` for what is no route: scanners' addresses as well.
    fn of_request(&self, request: &Request) -> Option<Declared> {
        let method = if request.method() == Method::HEAD { "GET" } else { request.method().as_str() };
        let path = request.extensions().get::<MatchedPath>()?;
        self.0.get(path.as_str())?.get(method).copied()
    }
}

/// What a request falls under: put into it at the door, and added to by whoever finds out who asks.
#[derive(Clone)]
pub(crate) struct Limited {
    class: RouteClass,
    found: Arc<Mutex<Found>>,
}

#[derive(Default)]
struct Found {
    meters: Vec<Meter>,
    holder: Option<Holder>,
}

impl Limited {
    fn new(class: RouteClass) -> Self {
        Self { class, found: Arc::default() }
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, more: Vec<Meter>) {
        self.found().meters.extend(more);
    }
}

/// The layer before authentication.
pub(crate) async fn limit(State(state): State<HttpState>, mut request: Request, next: Next) -> Response {
    let declared = state.classes.of_request(&request);
    let class = declared.map_or(RouteClass::Standard, |declared| declared.class);
    if class == RouteClass::Starts {
        return knock(&state, request, next).await;
    }
    let Some(by_address) = class.policy(Asker::Address) else { return next.run(request).await };
    let limited = Limited::new(class);
    request.extensions_mut().insert(limited.clone());
    // Where nobody knows the address, all clients would be one, and any of them could shut out the rest.
    let network = request.extensions().get::<ClientAddress>().map(|address| Network::of(address.0));
    let Some(network) = network else { return finish(next.run(request).await, &limited) };
    let credentials = credentials(request.headers());
    let by_caller = declared.is_some_and(|declared| declared.needs_caller);
    let answered = if let Some(credentials) = credentials.filter(|_| by_caller) {
        let presented = state.app.presented(network, &credentials);
        let guess = Guess { network, presented, known: state.app.known_credentials(presented) };
        match guess.begin(&state, class) {
            Ok(()) => {
                let response = next.run(request).await;
                guess.end(&state, &limited, is_failed(&response)).await;
                Ok(response)
            }
            Err(refused) => Err((refused, request)),
        }
    } else {
        // Pages of other sites are refused where somebody signs in; whoever looked at such a page has tried nothing.
        let is_foreign = class == RouteClass::SignIn && is_foreign_page(request.headers(), &state.config.public_url);
        // What belongs to nobody has its bucket. Who is shut out may go on with tokens of their own, which are told apart there.
        let may_be_shut_out = class == RouteClass::SignIn || by_caller || declared.is_none();
        // … and may sign in with a browser that is known.
        let browser = browser(request.headers()).filter(|_| class == RouteClass::SignIn);
        let ask = Ask { policy: by_address, counted: Counted::Network(network), cost: class.cost() };
        match enter(&state, ask, (class, network), (is_foreign, may_be_shut_out), browser).await {
            Ok(meters) => {
                limited.add(meters);
                let response = next.run(request).await;
                if class == RouteClass::SignIn && is_failed(&response) {
                    state.app.strike_address(network).await;
                }
                Ok(response)
            }
            Err(refused) => Err((refused, request)),
        }
    };
    match answered {
        Ok(response) => finish(response, &limited),
        Err((refused, request)) => refuse(request, &refused).await,
    }
}

async fn refuse(request: Request, refused: &RateRefused) -> Response {
    discard_small(request).await;
    with_fields(refusal(refused).into_response(), &[], Some(refused))
}

/// A delivery at a webhook's address. What is delivered counts elsewhere (`bulkhead_app::admission`); an address that there is not is a guess like
/// other credentials, so that nobody has the database looked through. One that was good lately is known, whatever else comes from its sender's
/// network, which many organizations may share: nothing is shut out for guesses of these.
async fn knock(state: &HttpState, mut request: Request, next: Next) -> Response {
    let network = request.extensions().get::<ClientAddress>().map(|address| Network::of(address.0));
    let Some(network) = network else { return next.run(request).await };
    let presented = state.app.presented(network, &[b"h".as_slice(), request.uri().path().as_bytes()].concat());
    let known = state.app.known_credentials(presented);
    if known == Some(Known::Bad) {
        // The same one again is no further guess, and costs neither a look nor anybody else's place.
        discard_small(request).await;
        return Problem::from(AppError::NotFound { what: "webhook" }).into_response();
    }
    let is_good = matches!(known, Some(Known::Good(_)));
    // Nothing is taken before it is known what comes of it: the first deliveries of a good sender come together.
    if !is_good && let Err(refused) = state.app.look_at_rate(Policy::Credentials, Counted::Network(network)) {
        return refuse(request, &refused).await;
    }
    let knock = Arc::new(Knock { network, presented, is_good, is_found: AtomicBool::new(false) });
    request.extensions_mut().insert(Arc::clone(&knock));
    let response = next.run(request).await;
    let is_unknown = response.extensions().get::<Arc<Problem>>().is_some_and(|problem| problem.is(Kind::NotFound));
    if is_unknown && !knock.is_found.load(Ordering::Relaxed) {
        let is_counted = state.app.begin_credentials(network).is_ok();
        state.app.remember_credentials(presented, Known::Bad);
        if is_counted {
            state.app.count_credentials(network, true).await;
        }
    }
    response
}

/// A delivery whose address may be none.
struct Knock {
    network: Network,
    presented: Presented,
    /// It was one lately.
    is_good: bool,
    is_found: AtomicBool,
}

/// Says that the webhook's address of this request is one.
pub(crate) fn find_hook(parts: &Parts, state: &HttpState) {
    let Some(knock) = parts.extensions.get::<Arc<Knock>>() else { return };
    if !knock.is_found.swap(true, Ordering::Relaxed) && !knock.is_good {
        let holder = Holder { counted: Counted::Network(knock.network), org: None };
        state.app.remember_credentials(knock.presented, Known::Good(holder));
    }
}

/// Counts a request by its address alone.
async fn enter(
    state: &HttpState,
    ask: Ask,
    (class, network): (RouteClass, Network),
    (is_foreign, may_be_shut_out): (bool, bool),
    browser: Option<BrowserToken>,
) -> Result<Vec<Meter>, RateRefused> {
    if is_foreign {
        return Ok(Vec::new());
    }
    if may_be_shut_out && let Some(wait) = state.app.address_blocked_for(network) {
        let is_known = match browser {
            Some(browser) => state.app.is_known_browser(network, &browser).await,
            None => false,
        };
        if !is_known {
            return Err(state.app.blocked(ask.policy, wait));
        }
    }
    let taken = state.app.take_rate(&[ask], class).await;
    if class == RouteClass::SignIn && taken.as_ref().is_err_and(|refused| refused.why == RefusedFor::Quota) {
        state.app.strike_address(network).await;
    }
    taken
}

/// Credentials on their way to who looks at them.
struct Guess {
    network: Network,
    presented: Presented,
    known: Option<Known>,
}

impl Guess {
    /// Lets them be looked at, unless it is known already that nothing would come of it.
    fn begin(&self, state: &HttpState, class: RouteClass) -> Result<(), RateRefused> {
        let Some(Known::Good(holder)) = self.known else { return state.app.begin_credentials(self.network) };
        let Some(policy) = asker(holder.counted).and_then(|asker| class.policy(asker)) else { return Ok(()) };
        if let (Counted::Key(key), Some(org)) = (holder.counted, holder.org)
            && let Some(wait) = state.app.key_blocked_for(org, key)
        {
            return Err(state.app.blocked(policy, wait));
        }
        state.app.look_at_rate(policy, holder.counted)
    }

    /// Remembers what came of them. The same ones again are no further guess.
    async fn end(&self, state: &HttpState, limited: &Limited, failed: bool) {
        let holder = limited.found().holder;
        match (self.known, failed) {
            // What they took of their address is gone; or they took nothing.
            (Some(Known::Bad), true) | (Some(Known::Good(_)), false) => {}
            (known, true) => {
                if known.is_some() {
                    state.app.begin_credentials(self.network).ok();
                }
                state.app.remember_credentials(self.presented, Known::Bad);
                state.app.count_credentials(self.network, true).await;
                state.app.strike_address(self.network).await;
            }
            (None | Some(Known::Bad), false) => {
                state.app.count_credentials(self.network, false).await;
                if let Some(holder) = holder {
                    state.app.remember_credentials(self.presented, Known::Good(holder));
                }
            }
        }
    }
}

fn asker(counted: Counted) -> Option<Asker> {
    match counted {
        Counted::User(_) => Some(Asker::User),
        Counted::Key(_) => Some(Asker::Key),
        Counted::Network(_) | Counted::Org(_) => None,
    }
}

fn finish(mut response: Response, limited: &Limited) -> Response {
    let refused = response.extensions_mut().remove::<RateRefused>();
    let meters = std::mem::take(&mut limited.found().meters);
    with_fields(response, &meters, refused.as_ref())
}

/// Whether credentials were refused, or good ones from where they are no good; that a fresher proof is asked for is no failure.
fn is_failed(response: &Response) -> bool {
    let refused = [
        Kind::Unauthenticated,
        // Who has a key's text alone has no more than a guess.
        Kind::SignatureRequired,
        Kind::InvalidSignature,
        Kind::AddressRefused,
        Kind::KeyAddressRefused,
    ];
    let problem = response.extensions().get::<Arc<Problem>>();
    problem.is_some_and(|problem| refused.into_iter().any(|kind| problem.is(kind)))
}

/// Counts a request by its caller and the caller's organization.
///
/// # Errors
/// `rate-limited`, `reduced-capacity`.
pub(crate) async fn limit_caller(parts: &Parts, state: &HttpState, caller: &Caller) -> Result<(), Problem> {
    let (asker, counted) = match (caller.user(), caller.key()) {
        (Some(user), _) => (Asker::User, Counted::User(user)),
        (None, Some(key)) => (Asker::Key, Counted::Key(key)),
        (None, None) => return Ok(()),
    };
    take(parts, state, (asker, counted), Some(Counted::Org(caller.org()))).await
}

/// Counts a request about a person's own account.
///
/// # Errors
/// As [`limit_caller`].
pub(crate) async fn limit_person(parts: &Parts, state: &HttpState, user: UserId) -> Result<(), Problem> {
    take(parts, state, (Asker::User, Counted::User(user)), None).await
}

async fn take(
    parts: &Parts,
    state: &HttpState,
    (asker, counted): (Asker, Counted),
    org: Option<Counted>,
) -> Result<(), Problem> {
    let limited = parts.extensions.get::<Limited>().cloned().unwrap_or_else(|| Limited::new(RouteClass::Standard));
    let holder_org = match org {
        Some(Counted::Org(org)) => Some(org),
        Some(Counted::Network(_) | Counted::User(_) | Counted::Key(_)) | None => None,
    };
    limited.found().holder = Some(Holder { counted, org: holder_org });
    let Some(policy) = limited.class.policy(asker) else { return Ok(()) };
    let cost = limited.class.cost();
    let of_org = org.map(|counted| Ask { policy: Policy::Organization, counted, cost });
    let asks: Vec<Ask> = std::iter::once(Ask { policy, counted, cost }).chain(of_org).collect();
    if let (Counted::Key(key), Some(Counted::Org(org))) = (counted, org)
        && let Some(wait) = state.app.key_blocked_for(org, key)
    {
        return Err(refusal(&state.app.blocked(policy, wait)));
    }
    match state.app.take_rate(&asks, limited.class).await {
        Ok(meters) => {
            limited.add(meters);
            Ok(())
        }
        Err(refused) => {
            // What others of the organization used up is not this key's doing.
            if let (Counted::Key(key), Some(Counted::Org(org))) = (counted, org)
                && refused.why == RefusedFor::Quota
                && refused.policy != Policy::Organization
            {
                state.app.strike_key(org, key).await;
            }
            Err(refusal(&refused))
        }
    }
}

fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

fn refusal(refused: &RateRefused) -> Problem {
    let wait_s = seconds(refused.wait).max(1);
    let (kind, detail) = match refused.why {
        RefusedFor::Quota => {
            let detail = format!(
                "the policy `{}` allows {} in {} seconds, {} of them at once: come back in {wait_s} seconds",
                refused.policy.as_str(),
                refused.rate.quota,
                refused.rate.window_s,
                refused.rate.burst
            );
            (Kind::RateLimited, detail)
        }
        RefusedFor::Block => {
            let detail = format!("too many requests were refused already: shut out for {wait_s} seconds");
            (Kind::Blocked, detail)
        }
        RefusedFor::ReducedCapacity => {
            let detail = format!("less than usual is let in at the moment: come back in {wait_s} seconds");
            (Kind::ReducedCapacity, detail)
        }
    };
    Problem::new(kind, detail).by_policy(*refused, wait_s)
}

/// The policies' field, as a list of structured fields (RFC 9651).
fn policies<'a>(rates: impl Iterator<Item = (Policy, &'a bulkhead_model::rate::Rate)>) -> String {
    let mut text = String::new();
    for (policy, rate) in rates {
        let comma = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{comma}\"{}\";q={};w={}", policy.as_str(), rate.quota, rate.window_s);
    }
    text
}

/// What is left, in the same form.
fn left(meters: &[Meter], refused: Option<&RateRefused>) -> String {
    let mut text = String::new();
    let of_meters = meters.iter().map(|meter| (meter.policy, meter.left.min(meter.rate.quota), seconds(meter.full_in)));
    // Of a refusal the time is that of `retry-after`, which may not be earlier.
    let of_refusal = refused.map(|refused| (refused.policy, 0, seconds(refused.wait).max(1)));
    for (policy, left, full_in_s) in of_meters.chain(of_refusal) {
        let comma = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{comma}\"{}\";r={left};t={full_in_s}", policy.as_str());
    }
    text
}

/// Adds the fields to an answer.
fn with_fields(mut response: Response, meters: &[Meter], refused: Option<&RateRefused>) -> Response {
    let rates = meters.iter().map(|meter| (meter.policy, &meter.rate));
    let all = policies(rates.chain(refused.map(|refused| (refused.policy, &refused.rate))));
    for (name, text) in [(RATE_LIMIT_POLICY, all), (RATE_LIMIT, left(meters, refused))] {
        if !text.is_empty()
            && let Ok(value) = HeaderValue::from_str(&text)
        {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use bulkhead_model::rate::{Rate, RateLimits};
    use sfv::{BareItem, FieldType as _, Item, List, ListEntry, Parser};

    use super::*;

    fn item(entry: &ListEntry) -> &Item {
        let ListEntry::Item(item) = entry else { panic!("{entry:?}") };
        item
    }

    /// A list of names with whole numbers, as a client of the draft reads it.
    fn read(text: &str) -> Vec<(String, Vec<(String, i64)>)> {
        let list: List = Parser::new(text).parse().unwrap();
        let read = |entry| {
            let Item { bare_item, params } = item(entry);
            let name = match bare_item {
                BareItem::String(name) => name.as_str().to_owned(),
                other => panic!("{other:?}"),
            };
            let number = |value: &BareItem| match value {
                BareItem::Integer(number) => i64::from(*number),
                other => panic!("{other:?}"),
            };
            (name, params.iter().map(|(key, value)| (key.as_str().to_owned(), number(value))).collect())
        };
        list.iter().map(read).collect()
    }

    #[test]
    fn fields_are_read_by_another_implementation_of_structured_fields() {
        let limits = RateLimits::default();
        let meter =
            |policy, left| Meter { policy, rate: limits.rate(policy), left, full_in: Duration::from_millis(1_500) };
        let meters = [meter(Policy::Key, 199), meter(Policy::Organization, 1_999)];
        let response = with_fields(Response::default(), &meters, None);
        let of = |name: &HeaderName| response.headers()[name].to_str().unwrap().to_owned();
        let pair = |key: &str, value| (key.to_owned(), value);
        assert_eq!(
            read(&of(&RATE_LIMIT_POLICY)),
            [
                ("api-key".to_owned(), vec![pair("q", 1_200), pair("w", 60)]),
                ("organization".to_owned(), vec![pair("q", 12_000), pair("w", 60)]),
            ]
        );
        assert_eq!(
            read(&of(&RATE_LIMIT)),
            [
                ("api-key".to_owned(), vec![pair("r", 199), pair("t", 2)]),
                ("organization".to_owned(), vec![pair("r", 1_999), pair("t", 2)]),
            ]
        );
        // What another implementation writes of it is what we wrote.
        for name in [RATE_LIMIT, RATE_LIMIT_POLICY] {
            let list: List = Parser::new(&of(&name)).parse().unwrap();
            assert_eq!(list.serialize().unwrap(), of(&name));
        }
    }

    /// The draft's own examples (sections 3, 4 and appendix) are of the form that ours is read with.
    #[test]
    fn the_drafts_examples_are_of_the_same_form() {
        assert_eq!(
            read(r#""burst";q=100;w=60,"daily";q=1000;w=86400"#),
            [
                ("burst".to_owned(), vec![("q".to_owned(), 100), ("w".to_owned(), 60)]),
                ("daily".to_owned(), vec![("q".to_owned(), 1_000), ("w".to_owned(), 86_400)]),
            ]
        );
        assert_eq!(
            read(r#""default";r=50;t=30"#),
            [("default".to_owned(), vec![("r".to_owned(), 50), ("t".to_owned(), 30)])]
        );
        // Partition keys and units are for others to send.
        for example in [
            r#""permin";q=50;w=60,"perhr";q=1000;w=3600"#,
            r#""peruser";q=65535;qu="content-bytes";w=10;pk=:c2RmakxKVU8=:"#,
            r#""default";r=999;pk=:dHJpYWwxMjEzMjM=:"#,
            r#""problemPolicy";r=0;t=10"#,
            r#""sliding";q=100;w=60;burst=1000"#,
        ] {
            let list: List = Parser::new(example).parse().unwrap();
            assert!(list.iter().all(|entry| matches!(item(entry).bare_item, BareItem::String(_))), "{example}");
        }
    }

    #[test]
    fn a_refusal_says_which_policy_and_never_an_earlier_time_than_the_field() {
        let wait = Duration::from_millis(2_100);
        let refused =
            RateRefused { policy: Policy::Strict, rate: Rate::per_minute(10, 10), wait, why: RefusedFor::Quota };
        let response = with_fields(refusal(&refused).into_response(), &[], Some(&refused));
        assert_eq!(response.status().as_u16(), 429);
        assert_eq!(response.headers()["retry-after"], "3");
        assert_eq!(response.headers()[RATE_LIMIT], r#""strict";r=0;t=3"#);
        let document: serde_json::Value =
            serde_json::from_slice(&response.extensions().get::<Arc<Problem>>().unwrap().render("req")).unwrap();
        assert_eq!(document["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
        assert_eq!(document["violated-policies"], serde_json::json!(["strict"]));
        let reduced = RateRefused { why: RefusedFor::ReducedCapacity, ..refused };
        let response = refusal(&reduced).into_response();
        assert_eq!(response.status().as_u16(), 503);
        let document: serde_json::Value =
            serde_json::from_slice(&response.extensions().get::<Arc<Problem>>().unwrap().render("req")).unwrap();
        assert_eq!(document["type"], "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity");
    }

    #[test]
    fn every_operation_has_a_class() {
        let (_, document) = crate::routes().split_for_parts();
        let classes = Classes::of(&document);
        let of = |method: &str, path: &str| classes.0[path][method].class;
        assert_eq!(of("POST", "/api/v1/orgs/{org}/api-keys"), RouteClass::Strict);
        assert_eq!(of("GET", "/api/v1/orgs/{org}/api-keys"), RouteClass::Standard);
        assert_eq!(of("POST", "/api/v1/auth/login"), RouteClass::SignIn);
        assert_eq!(of("GET", "/readyz"), RouteClass::Probe);
        assert!(
            classes.0["/api/v1/orgs/{org}/api-keys"]["GET"].needs_caller && classes.0["/api/v1/me"]["GET"].needs_caller
        );
        assert!(!classes.0["/api/v1/auth/revoke"]["POST"].needs_caller && !classes.0["/metrics"]["GET"].needs_caller);
        let declared: usize = classes.0.values().map(HashMap::len).sum();
        let operations: usize = document
            .paths
            .paths
            .values()
            .map(|item| [&item.get, &item.post, &item.put, &item.patch, &item.delete].into_iter().flatten().count())
            .sum();
        assert_eq!(declared, operations);
    }

    /// Section e: MFA lifecycle routes without a bucket of their own.
    #[test]
    fn every_route_that_tries_or_changes_a_second_factor_is_strict_or_a_sign_in() {
        let (_, document) = crate::routes().split_for_parts();
        let classes = Classes::of(&document);
        let mut seen = 0;
        for (path, methods) in &classes.0 {
            if !path.starts_with("/api/v1/auth/") && !path.starts_with("/api/v1/me/mfa") {
                continue;
            }
            for (method, Declared { class, .. }) in methods.iter().filter(|(method, _)| **method != "GET") {
                seen += 1;
                // Nothing can be guessed there: 256 bits, and the end of what is the caller's own.
                let gives_nothing = ["/logout", "/refresh", "/revoke"].iter().any(|end| path.ends_with(end));
                assert!(
                    gives_nothing || matches!(class, RouteClass::Strict | RouteClass::SignIn),
                    "{method} {path}: {class:?}"
                );
            }
        }
        assert!(seen >= 8, "{seen}");
    }
}
