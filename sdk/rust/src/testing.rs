//! Runs a plugin natively, with a fake in the host's place: ordinary unit tests, no WebAssembly.
//!
//! ```
//! use bulkhead_sdk::{Context, Failure, http, testing::Host};
//! use serde_json::{Value, json};
//!
//! fn ping(ctx: &Context, input: Value) -> Result<Value, Failure> {
//!     let url: String = ctx.setting("url")?.ok_or_else(|| Failure::invalid_input("no url"))?;
//!     let response = http::post(url).json(&input)?.send()?;
//!     Ok(json!({ "status": response.status }))
//! }
//!
//! let host = Host::new().settings(json!({ "url": "https://a.example/" })).reply(204, "");
//! let output = host.call(ping, json!({ "n": 1 })).expect("the scripted host answers");
//! assert_eq!(output, json!({ "status": 204 }));
//! assert_eq!(host.requests()[0].body, br#"{"n":1}"#);
//! ```
//!
//! Whole cases can be written down as JSON instead: see [`fixtures`] and [`factor_fixtures`].

mod fixture;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::rc::Rc;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::exports::{self, LeadFacts};
use crate::http::{Error as HttpError, Request, Response};
use crate::log::Level;
use crate::{Context, Failure, Score};

pub use fixture::{factor_fixtures, fixtures};

/// A host that answers as it was told to. Cheap to clone; clones share what they recorded.
#[derive(Clone, Debug, Default)]
pub struct Host {
    state: Rc<RefCell<State>>,
}

#[derive(Debug, Default)]
struct State {
    settings: Value,
    /// A secret without a value is granted but not set.
    secrets: BTreeMap<String, Option<String>>,
    now_unix_s: u64,
    replies: VecDeque<Result<Response, HttpError>>,
    requests: Vec<Request>,
    log: Vec<(Level, String)>,
}

thread_local! {
    static CURRENT: RefCell<Option<Host>> = const { RefCell::new(None) };
}

impl Host {
    /// No settings, no secrets, no replies; the clock stands at 2026-01-01T00:00:00Z.
    #[must_use]
    pub fn new() -> Self {
        let host = Self::default();
        host.state.borrow_mut().settings = json!({});
        host.state.borrow_mut().now_unix_s = 1_767_225_600;
        host
    }

    #[must_use]
    pub fn settings(self, settings: Value) -> Self {
        self.state.borrow_mut().settings = settings;
        self
    }

    /// Grants a secret and stores its value.
    #[must_use]
    pub fn secret(self, name: &str, value: &str) -> Self {
        self.state.borrow_mut().secrets.insert(name.to_owned(), Some(value.to_owned()));
        self
    }

    /// Grants a secret that has no value yet.
    #[must_use]
    pub fn secret_not_set(self, name: &str) -> Self {
        self.state.borrow_mut().secrets.insert(name.to_owned(), None);
        self
    }

    #[must_use]
    pub fn at_unix_s(self, now_unix_s: u64) -> Self {
        self.state.borrow_mut().now_unix_s = now_unix_s;
        self
    }

    /// Answers the next request that has no answer yet. Requests are answered in the order of the script.
    #[must_use]
    pub fn reply(self, status: u16, body: impl Into<Vec<u8>>) -> Self {
        self.reply_with(Response { status, headers: Vec::new(), body: body.into() })
    }

    #[must_use]
    pub fn reply_with(self, response: Response) -> Self {
        self.state.borrow_mut().replies.push_back(Ok(response));
        self
    }

    /// Lets the next request that has no answer yet fail.
    #[must_use]
    pub fn fail(self, error: HttpError) -> Self {
        self.state.borrow_mut().replies.push_back(Err(error));
        self
    }

    /// The requests so far, placeholders in place of secrets (see [`placeholder`]).
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.state.borrow().requests.clone()
    }

    /// The log lines so far.
    #[must_use]
    pub fn log(&self) -> Vec<(Level, String)> {
        self.state.borrow().log.clone()
    }

    /// Scripted answers that nobody asked for.
    #[must_use]
    pub fn unused_replies(&self) -> usize {
        self.state.borrow().replies.len()
    }

    /// Runs `body` with this host behind the capabilities of this thread.
    pub fn run<T>(&self, body: impl FnOnce(&Context) -> T) -> T {
        let _restore = Restore(CURRENT.replace(Some(self.clone())));
        body(&context())
    }

    /// Calls an action or a channel function as the host does, JSON in and out.
    #[expect(clippy::needless_pass_by_value, reason = "tests write `json!(…)` in its place")]
    pub fn call<I, O, E>(&self, function: impl Fn(&Context, I) -> Result<O, E>, input: Value) -> Result<Value, Failure>
    where
        I: DeserializeOwned,
        O: Serialize,
        E: Into<Failure>,
    {
        let output = self.run(|ctx| exports::respond(function, ctx, &input.to_string()))?;
        Ok(serde_json::from_str(&output).expect("the SDK wrote it"))
    }

    /// Calls a factor function as the host does, with one batch.
    pub fn score<S, F>(&self, function: impl Fn(&S, &F) -> Score, leads: &[Value]) -> Result<Vec<Score>, String>
    where
        S: DeserializeOwned,
        F: DeserializeOwned,
    {
        let settings = self.state.borrow().settings.to_string();
        self.run(|_| exports::score_batch(function, &settings, &lead_facts(leads)))
    }
}

fn lead_facts(leads: &[Value]) -> Vec<LeadFacts> {
    let lead = |(index, fields): (usize, &Value)| LeadFacts { id: format!("lead_{index}"), fields: fields.to_string() };
    leads.iter().enumerate().map(lead).collect()
}

/// Puts the host of an outer [`Host::run`] back, also when the plugin panics.
struct Restore(Option<Host>);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

/// The context that tests see: fixed ids, first attempt.
#[must_use]
pub fn context() -> Context {
    Context {
        org: "org_01jg2q6zrpe5pabgfd5c4rhy8z".into(),
        installation: "inst_01jg2q6zrpe5pabgfd5c4rhy8z".into(),
        call: "call_01jg2q6zrpe5pabgfd5c4rhy8z".into(),
        run: Some("run_01jg2q6zrpe5pabgfd5c4rhy8z".into()),
        step: Some("step".into()),
        attempt: 1,
        idempotency_key: "test-key-1".into(),
        deadline_ms: 10_000,
        locale: None,
    }
}

/// What stands for this secret in the requests of a test.
#[must_use]
pub fn placeholder(name: &str) -> String {
    format!("bhs_test_{name}")
}

/// Checks that the file holds the JSON Schema of `T`, so that types and manifest cannot drift apart.
///
/// With `BULKHEAD_UPDATE=1` in the environment it writes the file instead.
///
/// # Panics
/// When the file is missing or differs.
pub fn assert_schema<T: JsonSchema>(path: impl AsRef<Path>) {
    let path = path.as_ref();
    let schema = schemars::schema_for!(T).to_value();
    let mut text = serde_json::to_string_pretty(&schema).expect("a schema is JSON");
    text.push('\n');
    if update_wanted() {
        std::fs::write(path, &text).unwrap_or_else(|error| panic!("{} cannot be written: {error}", path.display()));
        return;
    }
    let found = std::fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("{}: {error}; BULKHEAD_UPDATE=1 cargo test writes it", path.display()));
    // As JSON: the order of keys depends on other crates' features.
    assert!(
        serde_json::from_str::<Value>(&found).is_ok_and(|found| found == schema),
        "{} does not match the type; BULKHEAD_UPDATE=1 cargo test writes it. The type's schema:\n{text}",
        path.display()
    );
}

#[expect(clippy::disallowed_methods, reason = "a switch for people at a terminal, read in tests only")]
fn update_wanted() -> bool {
    std::env::var_os("BULKHEAD_UPDATE").is_some_and(|value| value == "1")
}

/// The fake's side of the capabilities.
pub(crate) mod platform {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD_NO_PAD;
    use hmac::{Hmac, KeyInit as _, Mac as _};
    use serde_json::Value;
    use sha2::Sha256;

    use super::{CURRENT, State};
    use crate::http::{Error as HttpError, Request, Response};
    use crate::log::Level;
    use crate::secret::Error as SecretError;

    fn with<T>(body: impl FnOnce(&mut State) -> T) -> T {
        let host = CURRENT.with_borrow(Clone::clone);
        let host = host.expect("a capability was used outside of testing::Host::run");
        body(&mut host.state.borrow_mut())
    }

    pub(crate) fn now_unix_s() -> u64 {
        with(|state| state.now_unix_s)
    }

    pub(crate) fn log(level: Level, message: &str) {
        with(|state| state.log.push((level, message.to_owned())));
    }

    pub(crate) fn setting(name: &str) -> Result<Option<String>, String> {
        with(|state| {
            if name == "settings" {
                return Ok(Some(state.settings.to_string()));
            }
            Ok(state.settings.get(name).map(|value| match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            }))
        })
    }

    fn value(name: &str) -> Result<String, SecretError> {
        with(|state| match state.secrets.get(name) {
            Some(Some(value)) => Ok(value.clone()),
            Some(None) => Err(SecretError::NotSet(name.to_owned())),
            None => Err(SecretError::NotGranted(name.to_owned())),
        })
    }

    pub(crate) fn placeholder(name: &str) -> Result<String, SecretError> {
        value(name)?;
        Ok(super::placeholder(name))
    }

    pub(crate) fn hmac_sha256(name: &str, data: &[u8]) -> Result<Vec<u8>, SecretError> {
        let value = value(name)?;
        let key = match value.strip_prefix("whsec_") {
            Some(encoded) => {
                STANDARD_NO_PAD.decode(encoded.trim_end_matches('=')).unwrap_or_else(|_| value.clone().into_bytes())
            }
            None => value.into_bytes(),
        };
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("HMAC takes a key of any length");
        mac.update(data);
        Ok(mac.finalize().into_bytes().to_vec())
    }

    pub(crate) fn send(request: &Request) -> Result<Response, HttpError> {
        request.target()?;
        with(|state| {
            state.requests.push(request.clone());
            let query = request.url.split_once('?').map_or("", |(_, query)| query);
            if state.secrets.keys().any(|name| query.contains(&super::placeholder(name))) {
                return Err(HttpError::Denied(format!("{} would carry a secret in its query", request.label())));
            }
            state.replies.pop_front().unwrap_or_else(|| panic!("no reply is scripted for {}", request.label()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{http, log, secret};

    fn fetch(_: &Context, url: String) -> Result<u16, Failure> {
        log::info!("fetching {url}");
        Ok(http::get(url).header("authorization", secret("token")?.bearer()).send()?.status)
    }

    #[test]
    fn requests_and_log_are_recorded() {
        let host = Host::new().secret("token", "hunter22").reply(200, "");
        assert_eq!(host.call(fetch, json!("https://a.example/x")), Ok(json!(200)));
        let requests = host.requests();
        assert_eq!(requests[0].headers, [("authorization".to_owned(), "Bearer bhs_test_token".to_owned())]);
        assert_eq!(host.log(), [(Level::Info, "fetching https://a.example/x".to_owned())]);
        assert_eq!(host.unused_replies(), 0);
    }

    #[test]
    fn a_secret_that_was_not_granted_is_a_refusal() {
        let failure = Host::new().call(fetch, json!("https://a.example/x")).expect_err("no grant");
        assert_eq!(failure, Failure::refused("the secret token is not granted"));
        let failure = Host::new().secret_not_set("token").call(fetch, json!("https://a.example/x"));
        assert_eq!(failure.expect_err("no value").kind(), "refused");
    }

    #[test]
    fn a_secret_in_a_query_is_denied_as_by_the_real_host() {
        let leak = |_: &Context, _: Value| -> Result<u16, Failure> {
            Ok(http::get(format!("https://a.example/?t={}", secret("token")?)).send()?.status)
        };
        let failure = Host::new().secret("token", "hunter22").call(leak, json!(null)).expect_err("a leak");
        assert_eq!(failure.kind(), "refused");
    }

    #[test]
    fn signatures_use_the_decoded_key_of_a_standard_webhooks_secret() {
        let sign = |host: Host| host.run(|_| secret::hmac_sha256("key", b"data")).expect("granted");
        let plain = sign(Host::new().secret("key", "abc"));
        let encoded = sign(Host::new().secret("key", "whsec_YWJj"));
        assert_eq!(plain, encoded);
        assert_ne!(plain, sign(Host::new().secret("key", "whsec_YWJk")));
        // printf data | openssl dgst -sha256 -hmac abc
        let hex = plain.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        assert_eq!(hex, "6301399be2e1b1473cc7cc3899381d94ac3b2df84c931879b3b4071af7c52629");
    }

    #[test]
    fn a_wrong_input_names_what_is_wrong() {
        let failure = Host::new().call(fetch, json!(7)).expect_err("not a string");
        assert_eq!(failure.kind(), "invalid-input");
        assert!(failure.message().contains("expected a string"), "{failure}");
        let number = |_: &Context, number: u32| -> Result<u32, Failure> { Ok(number) };
        let failure = Host::new().call(number, json!("x".repeat(100_000))).expect_err("not a number");
        assert!(failure.message().len() < 400, "a message does not repeat the whole input");
    }

    #[test]
    fn an_unreadable_lead_costs_nobody_else_a_score() {
        let factor = |points: &f64, name: &String| Score::new(*points, format!("hello {name}"));
        let scores = Host::new().settings(json!(3.5)).score(factor, &[json!("ada"), json!(1)]).expect("settings fit");
        assert_eq!(scores[0], Score::new(3.5, "hello ada"));
        assert!(scores[1].points == 0.0 && scores[1].reason.contains("could not be read"), "{:?}", scores[1]);
        let long = Host::new().settings(json!(1.0)).score(factor, &[json!({ "a": "x".repeat(100_000) })]);
        assert!(long.expect("settings fit")[0].reason.len() < 400);
        assert!(Host::new().settings(json!("x")).score(factor, &[]).expect_err("no number").contains("settings"));
    }
}
