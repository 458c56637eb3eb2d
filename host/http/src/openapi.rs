//! The OpenAPI document: put together from the handlers, finished here with what follows from the rules of this crate: path
//! parameters, credentials, and the problem types that each operation can answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use bulkhead_model::rate::RouteClass;
use http::header;
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use crate::access::{PERMISSION_KEY, PERSONAL_KEY, PUBLIC_KEY, STEP_UP_KEY};
use crate::limit::CLASS_KEY;
use crate::problem::{Document, FieldError, Kind, kind_of, type_of};

/// In the document: the slugs of the problem types that an operation can answer.
pub(crate) const PROBLEMS_KEY: &str = "x-bulkhead-problems";

const DESCRIPTION: &str = "\
Paths name an organization by id or short name; `Authorization: Bearer` takes an API key of it or a member's access token, and the cookie that \
`POST /api/v1/auth/login` sets a member's session, with which changes need an `origin` of this server's own. Input is JSON, and unknown \
fields and parameters are refused. Lists answer `items` and `next_cursor`; `limit` is at most 200. What can be changed by \
several people carries an `etag`, which a change must name as `if-match`. Failures are problem documents (RFC 9457) whose \
`type` is stable; `x-bulkhead-problems` lists the types of each operation, `x-bulkhead-permission` the permission that it \
needs, `x-bulkhead-rate-class` what it is counted with: every answer says in `ratelimit` how much is left.";

#[derive(OpenApi)]
#[openapi(components(schemas(Document, FieldError)))]
struct Base;

/// The document that routes are added to.
pub(crate) fn base() -> utoipa::openapi::OpenApi {
    let mut base = Base::openapi();
    "Bulkhead".clone_into(&mut base.info.title);
    base.info.description = Some(DESCRIPTION.to_owned());
    // The description's own version: it changes with the API, not with each build.
    "1".clone_into(&mut base.info.version);
    base.info.license = None;
    base.info.contact = None;
    base
}

/// The finished document, in OpenAPI 3.1. Always the same for the same code.
#[must_use]
pub fn document() -> Value {
    let mut document =
        serde_json::to_value(crate::routes().into_openapi()).expect("utoipa's document is written as JSON");
    let operations = document["paths"].as_object_mut().into_iter().flatten().flat_map(|(path, item)| {
        item.as_object_mut()
            .into_iter()
            .flatten()
            .map(move |(method, operation)| (path.clone(), method.clone(), operation))
    });
    for (path, method, operation) in operations {
        if let Some(operation) = operation.as_object_mut() {
            finish(&path, &method, operation);
        }
    }
    document["components"]["securitySchemes"] = json!({
        "api_key": { "type": "http", "scheme": "bearer", "description": "An API key of the organization in the path, or an access token (JWT) of a member." },
        "session": {
            "type": "apiKey", "in": "cookie", "name": "__Host-bulkhead_session",
            "description": "A person's session; changes need an `origin` (or `sec-fetch-site`) of this server's own pages.",
        },
    });
    document["components"]["headers"] = json!({
        "retry-after": { "description": "Seconds after which to come back.", "schema": { "type": "integer" } },
        "ratelimit": {
            "description": "What is left of each policy (`r`), and in how many seconds all of it is back (`t`): a list of structured fields. With every answer.",
            "schema": { "type": "string" }, "example": "\"api-key\";r=42;t=17",
        },
        "ratelimit-policy": {
            "description": "How many (`q`) in how many seconds (`w`) each policy allows: a list of structured fields. With every answer.",
            "schema": { "type": "string" }, "example": "\"api-key\";q=1200;w=60",
        },
    });
    sort_extensions(&mut document);
    document
}

/// Adds what follows from the path, the permission and the body.
fn finish(path: &str, method: &str, operation: &mut Map<String, Value>) {
    let mut parameters: Vec<Value> = path_parameters(path).collect();
    if let Some(Value::Array(declared)) = operation.remove("parameters") {
        parameters.extend(declared);
    }
    let guarded = operation.get(PERMISSION_KEY).is_some_and(Value::is_string);
    let mut problems: BTreeSet<String> =
        operation.remove(PROBLEMS_KEY).and_then(|declared| serde_json::from_value(declared).ok()).unwrap_or_default();
    let mut add = |kinds: &[Kind]| problems.extend(kinds.iter().map(|kind| kind.entry().slug.to_owned()));
    // What a proxy of ours wrote could not be read, or the body's digest: before any route.
    add(&[Kind::Internal, Kind::TimedOut, Kind::InvalidHeader, Kind::DigestMismatch]);
    let class = operation.get(CLASS_KEY).and_then(Value::as_str).and_then(RouteClass::parse);
    if class.is_none_or(|class| class != RouteClass::Starts) {
        add(&[Kind::RateLimited, Kind::Blocked]);
    }
    if class.is_some_and(RouteClass::is_sensitive) {
        add(&[Kind::ReducedCapacity]);
    }
    if guarded {
        operation.insert("security".to_owned(), json!([{ "api_key": [] }, { "session": [] }]));
        add(&[Kind::Unauthenticated, Kind::Forbidden, Kind::NotFound, Kind::Unavailable, Kind::InvalidQuery]);
        add(&[
            Kind::MfaRequired,
            Kind::AddressRefused,
            Kind::KeyAddressRefused,
            Kind::SignatureRequired,
            Kind::InvalidSignature,
        ]);
        if operation.contains_key(STEP_UP_KEY) {
            add(&[Kind::StepUpRequired, Kind::SessionNeeded]);
        }
    }
    let personal = operation.contains_key(PERSONAL_KEY);
    if personal {
        operation.insert("security".to_owned(), json!([{ "session": [] }]));
        add(&[Kind::Unauthenticated, Kind::Unavailable, Kind::InvalidQuery]);
    }
    if (guarded || personal) && !matches!(method, "get" | "head") {
        add(&[Kind::ForeignOrigin]);
    }
    if operation.contains_key("requestBody") {
        add(&[Kind::InvalidJson, Kind::InvalidBody, Kind::TooLarge, Kind::UnsupportedMediaType, Kind::BodyTimeout]);
        add(&[Kind::InvalidRequest]);
    }
    if parameters.iter().any(|parameter| parameter["in"] == "query" && parameter["name"] == "cursor") {
        add(&[Kind::InvalidCursor]);
    }
    if parameters.iter().any(|parameter| parameter["name"] == "if-match") {
        add(&[Kind::IfMatchRequired, Kind::Stale]);
    }
    describe_successes(operation);
    add_responses(operation, &problems);
    operation.insert(PROBLEMS_KEY.to_owned(), json!(problems));
    if !parameters.is_empty() {
        operation.insert("parameters".to_owned(), Value::Array(parameters));
    }
    debug_assert!(operation.contains_key(PERMISSION_KEY), "{method} {path} declares no permission");
    let kinds = [guarded, personal, operation.contains_key(PUBLIC_KEY)];
    debug_assert!(
        kinds.iter().filter(|kind| **kind).count() == 1,
        "{method} {path} is not one of guarded, personal and public"
    );
}

/// OpenAPI 3.1 wants a sentence with each response; where the handler has none, the operation's own says it.
fn describe_successes(operation: &mut Map<String, Value>) {
    let summary = operation.get("summary").cloned().unwrap_or_default();
    let responses = operation.get_mut("responses").and_then(Value::as_object_mut);
    for response in responses.into_iter().flat_map(Map::values_mut).filter_map(Value::as_object_mut) {
        if response.get("description").is_none_or(|text| text == "") {
            response.insert("description".to_owned(), summary.clone());
        }
    }
}

/// One response per status, naming the types that have it.
fn add_responses(operation: &mut Map<String, Value>, problems: &BTreeSet<String>) {
    let mut by_status: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    for slug in problems {
        let entry = kind_of(slug).expect("a test checks that every declared type is in the catalogue");
        by_status.entry(entry.status.as_u16()).or_default().push(entry.slug);
    }
    let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) else { return };
    for (status, slugs) in by_status {
        let types = slugs.iter().map(|slug| format!("`{}`", type_of(slug))).collect::<Vec<_>>().join(", ");
        let response = responses.entry(status.to_string()).or_insert_with(|| {
            json!({
                "description": types,
                "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
            })
        });
        if slugs.contains(&Kind::RateLimited.entry().slug) {
            let field = |name: &str| json!({ "$ref": format!("#/components/headers/{name}") });
            response["headers"] = json!({
                "retry-after": field("retry-after"), "ratelimit": field("ratelimit"), "ratelimit-policy": field("ratelimit-policy"),
            });
        }
    }
}

/// The parameters that a route's path names.
fn path_parameters(path: &str) -> impl Iterator<Item = Value> + '_ {
    path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).map(|name| {
        let description = match name {
            "org" => "The organization, by id (`org_…`) or short name.",
            "api_key" => "A key's id (`key_…`).",
            "plugin" => "A plugin version's id (`plug_…`).",
            "installation" => "An installation's id (`inst_…`).",
            "call" => "A call's id (`call_…`).",
            "workflow" => "A workflow's id (`wf_…`).",
            "version" => "A version's number.",
            "number" => "The number of an entry of the audit log, from 0.",
            "run" => "A run's id (`run_…`).",
            "user" => "A person's id (`user_…`).",
            "invitation" => "An invitation's id (`inv_…`).",
            "device" => "A browser's id (`dev_…`).",
            "passkey" => "A passkey's id (`pkey_…`).",
            "session" => "A session's id (`ses_…`).",
            "step" => "A step's id in the definition.",
            "dead_letter" => "A dead letter's id (`dl_…`).",
            "task" => "A task's id (`dlt_…`).",
            "key_rotation" => "A key rotation's id (`krot_…`).",
            "role" => "A role's id (`role_…`).",
            "assignment" => "A role assignment's id (`asg_…`).",
            "role_request" => "A role request's id (`rreq_…`).",
            "team" => "A team's id (`team_…`).",
            "name" => "A secret's name, as the plugin's manifest asks for it.",
            "trigger" => "A webhook trigger's id in the definition.",
            "token" => "The last part of a webhook's address, which is its credential.",
            _ => "",
        };
        json!({ "name": name, "in": "path", "required": true, "description": description, "schema": { "type": "string" } })
    })
}

/// utoipa keeps extensions in a hash map; here they go to the end of their object, sorted.
fn sort_extensions(value: &mut Value) {
    match value {
        Value::Object(map) => {
            let mut extensions: Vec<(String, Value)> = Vec::new();
            let keys: Vec<String> = map.keys().filter(|key| key.starts_with("x-")).cloned().collect();
            for key in keys {
                extensions.extend(map.remove(&key).map(|value| (key, value)));
            }
            extensions.sort_by(|a, b| a.0.cmp(&b.0));
            map.extend(extensions);
            map.values_mut().for_each(sort_extensions);
        }
        Value::Array(items) => items.iter_mut().for_each(sort_extensions),
        _ => {}
    }
}

static DOCUMENT_TEXT: LazyLock<String> = LazyLock::new(|| document().to_string());

/// Shows this document.
#[utoipa::path(
    get,
    path = "/api/openapi.json",
    tag = "operations",
    responses((status = 200, body = serde_json::Value)),
)]
pub(crate) async fn show_openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT_TEXT.as_str()).into_response()
}
