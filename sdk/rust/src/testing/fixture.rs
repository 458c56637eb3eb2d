//! Cases written down as JSON files: input, what the host answers, what must come out.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Host, lead_facts};
use crate::Failure;
use crate::exports::{Contributions, Scoring};
use crate::http::{Error as HttpError, Request, Response};

/// One file of an action or a channel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    contribution: String,
    #[serde(default = "empty_object")]
    settings: Value,
    #[serde(default)]
    secrets: Map<String, Value>,
    #[serde(default)]
    now_unix_s: Option<u64>,
    input: Value,
    #[serde(default)]
    http: Vec<Exchange>,
    #[serde(default)]
    output: Option<Value>,
    #[serde(default)]
    failure: Option<ExpectedFailure>,
}

/// A request that must be made, in this order, and its answer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exchange {
    request: ExpectedRequest,
    response: ScriptedResponse,
}

/// What is left out is not compared.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedRequest {
    method: String,
    url: String,
    #[serde(default)]
    headers: Map<String, Value>,
    #[serde(default)]
    json: Option<Value>,
    #[serde(default)]
    text: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScriptedResponse {
    #[serde(default)]
    status: u16,
    #[serde(default)]
    headers: Map<String, Value>,
    #[serde(default)]
    json: Option<Value>,
    #[serde(default)]
    text: Option<String>,
    /// `denied`, `timeout` or `connection`, in place of an answer.
    #[serde(default)]
    error: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedFailure {
    /// As in WIT: `invalid-input`, `transient`, `permanent`, `refused`.
    kind: String,
    #[serde(default)]
    message_contains: Option<String>,
    #[serde(default)]
    retry_after_ms: Option<u64>,
}

/// One file of a factor.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FactorCase {
    contribution: String,
    #[serde(default = "empty_object")]
    settings: Value,
    /// The fields of each lead.
    leads: Vec<Value>,
    #[serde(default)]
    output: Option<Vec<ExpectedScore>>,
    #[serde(default)]
    failure: Option<ExpectedFailure>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedScore {
    points: f64,
    reason: String,
}

fn empty_object() -> Value {
    json!({})
}

/// Runs every `*.json` in `folder` against the actions or channels of a plugin: `fixtures::<Actions>("fixtures")`.
///
/// # Panics
/// With the file's name when a case does not end as written, when the folder has none, or when a contribution has no case.
pub fn fixtures<C: Contributions>(folder: impl AsRef<Path>) {
    let mut seen = Vec::new();
    for file in files(folder.as_ref()) {
        let case: Case = read(&file);
        run_case::<C>(&file, &case);
        seen.push(case.contribution);
    }
    require_all(C::NAMES, &seen);
}

/// Runs every `*.json` in `folder` against the factors of a plugin.
///
/// # Panics
/// As [`fixtures`] does.
pub fn factor_fixtures<S: Scoring>(folder: impl AsRef<Path>) {
    let mut seen = Vec::new();
    for file in files(folder.as_ref()) {
        let case: FactorCase = read(&file);
        run_factor_case::<S>(&file, &case);
        seen.push(case.contribution);
    }
    require_all(S::NAMES, &seen);
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap_or_else(|error| panic!("{}: {error}", folder.display())).path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no *.json", folder.display());
    files
}

fn read<T: serde::de::DeserializeOwned>(file: &Path) -> T {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn require_all(names: &[&str], seen: &[String]) {
    for name in names {
        assert!(seen.iter().any(|seen| seen == name), "{name} has no fixture");
    }
}

fn run_case<C: Contributions>(file: &Path, case: &Case) {
    let at = file.display();
    let mut host = Host::new().settings(case.settings.clone());
    for (name, value) in &case.secrets {
        host = match value.as_str() {
            Some(value) => host.secret(name, value),
            None => host.secret_not_set(name),
        };
    }
    if let Some(now_unix_s) = case.now_unix_s {
        host = host.at_unix_s(now_unix_s);
    }
    for exchange in &case.http {
        host = match answer(file, &exchange.response) {
            Ok(response) => host.reply_with(response),
            Err(error) => host.fail(error),
        };
    }
    let result = host.run(|ctx| C::call(&case.contribution, ctx, &case.input.to_string()));
    let requests = host.requests();
    for (exchange, request) in case.http.iter().zip(&requests) {
        compare_request(file, &exchange.request, request);
    }
    assert_eq!(requests.len(), case.http.len(), "{at}: number of requests");
    let result = result.map(|output| serde_json::from_str::<Value>(&output).expect("the SDK wrote it"));
    match (result, &case.output, &case.failure) {
        (Ok(output), Some(expected), None) => assert_eq!(&output, expected, "{at}: output"),
        (Err(failure), None, Some(expected)) => compare_failure(file, expected, &failure),
        (result, _, _) => {
            panic!("{at}: ended with {result:?}; the case expects {:?} or {:?}", case.output, case.failure)
        }
    }
}

fn answer(file: &Path, scripted: &ScriptedResponse) -> Result<Response, HttpError> {
    match scripted.error.as_deref() {
        Some("denied") => return Err(HttpError::Denied("not covered by a grant".into())),
        Some("timeout") => return Err(HttpError::Timeout("scripted".into())),
        Some("connection") => return Err(HttpError::Connection("scripted".into())),
        Some(other) => panic!("{}: unknown error {other:?}: denied, timeout or connection", file.display()),
        None => {}
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let headers = scripted.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), text(value))).collect();
    let body = match (&scripted.json, &scripted.text) {
        (Some(json), _) => json.to_string(),
        (None, Some(text)) => text.clone(),
        (None, None) => String::new(),
    };
    Ok(Response { status: scripted.status, headers, body: body.into_bytes() })
}

fn compare_request(file: &Path, expected: &ExpectedRequest, found: &Request) {
    let at = file.display();
    assert_eq!((&found.method, &found.url), (&expected.method, &expected.url), "{at}: request");
    for (name, value) in &expected.headers {
        let have =
            found.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str());
        assert_eq!(have, value.as_str(), "{at}: header {name}");
    }
    if let Some(expected) = &expected.json {
        let body: Value = serde_json::from_slice(&found.body).unwrap_or_else(|error| panic!("{at}: body: {error}"));
        assert_eq!(&body, expected, "{at}: body");
    }
    if let Some(expected) = &expected.text {
        assert_eq!(&String::from_utf8_lossy(&found.body), expected, "{at}: body");
    }
}

fn compare_failure(file: &Path, expected: &ExpectedFailure, found: &Failure) {
    let at = file.display();
    assert_eq!(found.kind(), expected.kind, "{at}: {found}");
    if let Some(part) = &expected.message_contains {
        assert!(found.message().contains(part.as_str()), "{at}: {part:?} is not in {:?}", found.message());
    }
    let retry_after_ms = match found {
        Failure::Transient { retry_after_ms, .. } => *retry_after_ms,
        _ => None,
    };
    assert_eq!(retry_after_ms, expected.retry_after_ms, "{at}: retry after");
}

fn run_factor_case<S: Scoring>(file: &Path, case: &FactorCase) {
    let at = file.display();
    let settings = case.settings.to_string();
    let scores = Host::new().run(|_| S::score(&case.contribution, &settings, &lead_facts(&case.leads)));
    match (scores, &case.output, &case.failure) {
        (Ok(scores), Some(expected), None) => {
            let scores: Vec<(f64, String)> = scores.into_iter().map(|score| (score.points, score.reason)).collect();
            let expected: Vec<(f64, String)> =
                expected.iter().map(|score| (score.points, score.reason.clone())).collect();
            assert_eq!(scores, expected, "{at}: output");
        }
        (Err(message), None, Some(expected)) => {
            let part = expected.message_contains.as_deref().unwrap_or_default();
            assert!(message.contains(part), "{at}: {part:?} is not in {message:?}");
        }
        (scores, _, _) => {
            panic!("{at}: ended with {scores:?}; the case expects {:?} or {:?}", case.output, case.failure)
        }
    }
}
