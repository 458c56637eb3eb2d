use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn slack() -> Value {
    json!({
        "name": "acme/slack",
        "version": "1.2.0",
        "wit": "bulkhead:plugin@0.1",
        "title": "Slack",
        "description": "Sends notifications to a Slack channel",
        "license": "Apache-2.0",
        "channels": [{
            "name": "slack",
            "title": "Slack message",
            "settings": { "type": "object", "properties": { "webhook_url": { "type": "string" } } },
            "input": { "type": "object" },
            "idempotent": false,
            "effects": "external"
        }],
        "permissions": [
            { "kind": "http", "reason": "Posts", "required": true,
              "origins": ["https://slack.com", { "from_setting": "webhook_url" }],
              "methods": ["POST"], "paths": ["/api/chat.postMessage"] },
            { "kind": "secret", "reason": "Signs in", "name": "bot_token",
              "inject": { "headers": ["authorization"], "origins": ["https://slack.com"] } }
        ],
        "limits": { "wall_ms": 5000 }
    })
}

fn parse(value: &Value) -> Result<Manifest, ManifestError> {
    Manifest::parse(value.to_string().as_bytes())
}

#[test]
fn a_manifest_survives_the_round_trip() {
    let manifest = parse(&slack()).expect("the example is right");
    assert_eq!(manifest.permissions.len(), 2);
    assert_eq!(manifest.contribution("slack").map(|(kind, _)| kind), Some(ContributionKind::Channel));
    let again = Manifest::parse(&serde_json::to_vec(&manifest).expect("it serializes")).expect("its own text parses");
    assert_eq!(again, manifest);
}

/// Replaces what stands at a JSON pointer; the last key is made when it is missing.
fn with(pointer: &str, value: Value) -> Value {
    let mut manifest = slack();
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    match manifest.pointer_mut(parent).expect("the parent exists") {
        Value::Object(map) => {
            map.insert(key.to_owned(), value);
        }
        Value::Array(list) => list[key.parse::<usize>().expect("an index")] = value,
        other => panic!("{other} has no members"),
    }
    manifest
}

#[test]
fn every_rule_names_the_place() {
    let chain = |defs: &mut dyn Iterator<Item = u32>| {
        let defs: serde_json::Map<String, Value> =
            defs.map(|n| (format!("d{n}"), json!({ "$ref": format!("#/$defs/d{}", n + 1) }))).collect();
        let mut schema = json!({ "$defs": defs, "$ref": "#/$defs/d0" });
        schema["$defs"]["d1000"] = json!({});
        schema
    };
    let (upward, downward) = (chain(&mut (0..1000)), chain(&mut (0..1000).rev()));
    let nested = (0..40).fold(json!({}), |inner, _| json!({ "not": inner }));
    let bomb: Value = (0..14).fold(json!({ "$defs": { "d0": {} }, "$ref": "#/$defs/d14" }), |mut schema, n| {
        let twice = json!({ "$ref": format!("#/$defs/d{n}") });
        schema["$defs"][format!("d{}", n + 1)] = json!({ "allOf": [twice, twice] });
        schema
    });
    let cases = [
        (with("/surprise", json!(1)), "/surprise", "unknown field"),
        (with("/permissions/0/surprise", json!(1)), "/permissions/0/surprise", "unknown field"),
        (with("/permissions/1/inject/query", json!("x")), "/permissions/1/inject/query", "unknown field"),
        (with("/permissions/0/inject", json!({ "origins": [] })), "/permissions/0", "no `name` and no `inject`"),
        (with("/permissions/1/paths", json!(["/"])), "/permissions/1", "go into `inject`"),
        (with("/permissions/0/kind", json!("kv")), "/permissions/0/kind", "not available yet"),
        (with("/permissions/0/kind", json!("root")), "/permissions/0", "unknown variant"),
        (with("/permissions/0/origins/0", json!("https://u@x.com")), "/permissions/0/origins/0", "user or a password"),
        (with("/permissions/0/origins", json!([])), "/permissions/0/origins", "empty means nothing"),
        (with("/permissions/0/methods/0", json!("post")), "/permissions/0/methods/0", "upper case"),
        (with("/permissions/0/methods/0", json!("CONNECT")), "/permissions/0/methods/0", "never CONNECT"),
        (with("/permissions/0/paths/0", json!("/a/../b")), "/permissions/0/paths/0", "segments"),
        (
            with("/permissions/0/origins/1", json!({ "from_setting": "url" })),
            "/permissions/0/origins/1/from_setting",
            "no contribution",
        ),
        (with("/permissions/0/origins/1", json!({ "from": "url" })), "/permissions/0/origins/1/from", "unknown field"),
        (with("/permissions/0/reason", json!("ok \u{202e}evil")), "/permissions/0/reason", "writing direction"),
        (with("/permissions/0/reason", json!("x".repeat(301))), "/permissions/0/reason", "at most 300"),
        (with("/permissions/0/reason", json!("  ")), "/permissions/0/reason", "empty"),
        (
            with("/permissions/1/inject/headers", json!(["Authorization"])),
            "/permissions/1/inject/headers/0",
            "lower case",
        ),
        (
            with("/permissions/1/inject/headers", json!(["host"])),
            "/permissions/1/inject/headers/0",
            "belongs to the platform",
        ),
        (
            with("/permissions/1/inject/headers", json!(["transfer-encoding"])),
            "/permissions/1/inject/headers/0",
            "belongs",
        ),
        (with("/permissions/1/inject/headers", json!(["a b"])), "/permissions/1/inject/headers/0", "name of a header"),
        (
            with("/permissions/1/inject/origins", json!(["https://*"])),
            "/permissions/1/inject/origins/0",
            "never to any",
        ),
        (with("/permissions/1/inject/path", json!("/a")), "/permissions/1/inject/path", "exactly once"),
        (with("/permissions/1/inject/path", json!("/{secret}/{secret}")), "/permissions/1/inject/path", "exactly once"),
        (with("/permissions/1/inject/path", json!("/a?t={secret}")), "/permissions/1/inject/path", "no query"),
        (with("/permissions/1/inject/path", json!("/../{secret}")), "/permissions/1/inject/path", "path of a URL"),
        (with("/title", json!("")), "/title", "empty"),
        (with("/title", json!("two\nlines")), "/title", "one line"),
        (with("/version", json!("1.0.0+x")), "/version", "build metadata"),
        (with("/version", json!("one")), "/version", "unexpected character"),
        (with("/wit", json!("bulkhead:plugin@9.0")), "/wit", "speaks"),
        (with("/wit", json!("bulkhead:plugin@0.10")), "/wit", "speaks"),
        (with("/homepage", json!("javascript:alert(1)")), "/homepage", "https"),
        (with("/limits/wall_ms", json!(0)), "/limits/wall_ms", "default"),
        (with("/limits/threads", json!(1)), "/limits/threads", "unknown field"),
        (with("/name", json!("Slack")), "/name", "publisher/plugin"),
        (with("/channels", json!([])), "", "at least one"),
        (with("/actions", json!([{ "name": "slack", "title": "x" }])), "/channels/0/name", "two contributions"),
        (with("/factors", json!([{ "name": "f", "title": "x" }])), "/factors", "pure"),
        (with("/channels/0/input", json!(1)), "/channels/0/input", "object"),
        (with("/channels/0/input", json!({ "type": "strange" })), "/channels/0/input", ""),
        (with("/channels/0/input", nested), "/channels/0/input/not", "deeper"),
        (with("/channels/0/input", upward), "/channels/0/input", "one to the next"),
        (with("/channels/0/input", downward), "/channels/0/input", "one to the next"),
        (with("/channels/0/input", bomb), "/channels/0/input", "grows to more than"),
        (
            with("/channels/0/input", json!({ "$ref": "https://evil.example/s" })),
            "/channels/0/input/$ref",
            "inside the document",
        ),
        (with("/channels/0/input", json!({ "$ref": "#/nowhere" })), "/channels/0/input/$ref", "nowhere"),
        (with("/channels/0/input", json!({ "allOf": [{ "$ref": "#" }] })), "/channels/0/input/allOf/0/$ref", "circle"),
        (
            with(
                "/channels/0/input",
                json!({ "$defs": { "a": { "properties": { "x": { "$ref": "#/$defs/a" } } } }, "$ref": "#/$defs/a" }),
            ),
            "/channels/0/input",
            "circle",
        ),
        (with("/channels/0/input", json!({ "pattern": "(a+)+\\1" })), "/channels/0/input/pattern", "look-around"),
        (with("/channels/0/input", json!({ "pattern": "(a{1000}){1000}" })), "/channels/0/input/pattern", "too large"),
        (with("/channels/0/input", json!({ "$dynamicRef": "#a" })), "/channels/0/input/$dynamicRef", "written as"),
    ];
    for (manifest, place, words) in cases {
        match parse(&manifest) {
            Ok(_) => panic!("accepted although {place}: {words}"),
            Err(ManifestError::Invalid { path, problem }) => {
                assert!(path.starts_with(place), "{path} is not under {place} ({problem})");
                assert!(problem.contains(words), "{path}: {problem:?} does not say {words:?}");
            }
            Err(other) => panic!("{place}: {other}"),
        }
    }
}

#[test]
fn data_in_a_schema_is_no_reference() {
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "properties": { "$ref": { "type": "string" }, "const": { "const": { "$ref": "https://x" } } },
        "default": { "$ref": "x" },
        "$defs": { "p": { "type": "string", "pattern": "^[a-z]+$" } },
        "allOf": [{ "properties": { "p": { "$ref": "#/$defs/p" } } }]
    });
    let validator = schema::compile(&schema).expect("it is a plain schema");
    assert!(validator.is_valid(&json!({ "p": "abc" })));
    assert!(!validator.is_valid(&json!({ "p": "ABC" })));
}

#[test]
fn factors_are_pure() {
    let mut manifest = slack();
    let map = manifest.as_object_mut().expect("an object");
    map.remove("channels");
    map.insert("factors".to_owned(), json!([{ "name": "f", "title": "F" }]));
    let refused = parse(&manifest).expect_err("a pure package has no permissions");
    assert_eq!(refused.to_string(), "/permissions/0/kind: a factor is pure and cannot have the permission http");
    manifest["permissions"] = json!([]);
    assert!(parse(&manifest).expect("a factor").is_pure());
}

#[test]
fn sizes_and_repeated_keys_are_refused() {
    let large = vec![b' '; 300 * 1024];
    assert!(matches!(Manifest::parse(&large), Err(ManifestError::TooLarge { .. })));
    assert!(matches!(Manifest::parse(b"{"), Err(ManifestError::NotJson { .. })));
    assert!(matches!(Manifest::parse(&[b'['; 5_000]), Err(ManifestError::NotJson { .. })));
    let twice = slack().to_string().replacen('{', "{\"title\":\"a\",", 1);
    let error = Manifest::parse(twice.as_bytes()).expect_err("a key stands twice").to_string();
    assert!(error.contains("duplicate field"), "{error}");
}

#[test]
fn the_published_schema_accepts_the_example_and_refuses_unknown_keys() {
    let validator = jsonschema::validator_for(&Manifest::json_schema()).expect("our own schema is right");
    assert!(validator.is_valid(&slack()), "{:?}", validator.validate(&slack()).map_err(|e| e.to_string()));
    assert!(!validator.is_valid(&with("/surprise", json!(1))));
    assert!(!validator.is_valid(&with("/permissions/0/surprise", json!(1))));
    assert!(!validator.is_valid(&with("/permissions/1/inject/query", json!("x"))));
}

/// Small JSON of every type, with words that mean something in a manifest.
fn any_json() -> impl Strategy<Value = Value> {
    let words = [
        "http",
        "secret",
        "$ref",
        "#/$defs/a",
        "https://*",
        "{secret}",
        "/",
        "pattern",
        "allOf",
        "properties",
        "name",
        "(",
        "é",
    ];
    let word = proptest::sample::select(words.to_vec());
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        word.clone().prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((word.clone(), inner), 0..4)
                .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn bytes_never_break_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Manifest::parse(&bytes);
    }

    /// Whatever stands anywhere in a manifest: it is refused with its place, or it survives the round trip.
    #[test]
    fn json_never_breaks_the_parser(value in any_json(), place in proptest::sample::select(vec![
        "/permissions/0/origins/0", "/permissions/0", "/permissions/1/inject", "/permissions/1/inject/path", "/channels/0/input",
        "/channels/0/settings", "/limits", "/name", "/permissions",
    ])) {
        match parse(&with(place, value)) {
            Ok(manifest) => {
                let again = Manifest::parse(&serde_json::to_vec(&manifest).expect("it serializes"));
                prop_assert_eq!(again, Ok(manifest));
            }
            Err(ManifestError::Invalid { problem, .. }) => prop_assert!(!problem.is_empty()),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
