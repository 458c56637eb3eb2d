//! The OpenAPI document: complete, current, and true.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use bulkhead_model::permission::{Category, Permission};
use bulkhead_model::role::BuiltIn;
use serde_json::Value;

use crate::support::{TestServer, ask};

/// Every operation: method, path, description.
pub(crate) fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            found.push((method.to_uppercase(), path.clone(), operation.clone()));
        }
    }
    found
}

/// Compares a text with its file, or writes the file when `UPDATE_SNAPSHOTS` is set (`cargo xtask openapi`).
#[expect(clippy::disallowed_methods, reason = "the variable is for whoever runs the tests")]
pub(crate) fn compare_with_file(text: &str, file: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "{file} is stale: run `cargo xtask openapi` and look at what changed");
}

#[test]
fn openapi_snapshot() {
    let mut text = serde_json::to_string_pretty(&bulkhead_http::openapi()).unwrap();
    text.push('\n');
    compare_with_file(&text, "docs/openapi.json");
}

/// Who holds what, for people who read no code, and how many operations ask for it.
#[test]
fn openapi_snapshot_of_permissions() {
    let mut asked: BTreeMap<String, usize> = BTreeMap::new();
    for (_, _, operation) in operations(&bulkhead_http::openapi()) {
        if let Some(permission) = operation["x-bulkhead-permission"].as_str() {
            *asked.entry(permission.to_owned()).or_default() += 1;
        }
    }
    let mut text = String::from(
        "# Who may do what\n\n\
         Written by `cargo xtask openapi`; a change to it is a change to who may do what.\n\n\
         A role is a set of permissions. These are the built-in ones; an organization makes further ones of its own, which hold what it ticks and \
         what the roles hold that they inherit from. The last column says how many operations of the API ask for the permission.\n\n",
    );
    for role in BuiltIn::ALL {
        writeln!(text, "- **{}** (`{role}`, {} permissions): {}", role.title(), role.permissions().len(), role.says())
            .unwrap();
    }
    for category in Category::ALL {
        writeln!(text, "\n## {}\n", category.title()).unwrap();
        let titles: Vec<&str> = BuiltIn::ALL.iter().map(|role| role.title()).collect();
        writeln!(text, "| Permission | What it lets people do | {} | Operations |", titles.join(" | ")).unwrap();
        writeln!(text, "| --- | --- |{} ---: |", " :-: |".repeat(titles.len())).unwrap();
        for permission in Permission::ALL.iter().filter(|permission| permission.category() == *category) {
            let held = |role: &BuiltIn| if permission.is_held_by(*role) { "yes" } else { "–" };
            let held: Vec<&str> = BuiltIn::ALL.iter().map(held).collect();
            let operations = asked.get(permission.as_str()).map_or_else(|| "none yet".to_owned(), usize::to_string);
            writeln!(text, "| `{permission}` | {} | {} | {operations} |", permission.says(), held.join(" | ")).unwrap();
        }
    }
    compare_with_file(&text, "docs/permissions.md");
}

#[test]
fn every_operation_declares_who_may_and_what_can_go_wrong() {
    let document = bulkhead_http::openapi();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let names: BTreeSet<&str> = Permission::ALL.iter().map(|permission| permission.as_str()).collect();
    let mut ids = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        let at = format!("{method} {path}");
        match &operation["x-bulkhead-permission"] {
            Value::String(permission) => {
                assert!(names.contains(permission.as_str()), "{at}: {permission}");
                assert!(path.starts_with("/api/v1/orgs/{org}"), "{at}");
                assert_eq!(operation["security"], serde_json::json!([{ "api_key": [] }, { "session": [] }]), "{at}");
            }
            Value::Null => {
                let why = |key: &str| operation[key].as_str().is_some_and(|why| !why.is_empty());
                let (public, personal) = (why("x-bulkhead-public"), why("x-bulkhead-personal"));
                assert!(public != personal, "{at}");
                if personal {
                    assert_eq!(operation["security"], serde_json::json!([{ "session": [] }]), "{at}");
                }
            }
            other => panic!("{at}: {other}"),
        }
        assert!(operation["x-bulkhead-problems"].as_array().is_some_and(|problems| !problems.is_empty()), "{at}");
        assert!(operation["summary"].as_str().is_some_and(|summary| summary.ends_with('.')), "{at} has no sentence");
        for (status, response) in operation["responses"].as_object().unwrap() {
            assert!(response["description"].as_str().is_some_and(|text| !text.is_empty()), "{at}: {status}");
        }
        assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{at}: the id is taken");
        for part in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
            let described = operation["parameters"].as_array().into_iter().flatten();
            let parameter =
                described.into_iter().find(|parameter| parameter["in"] == "path" && parameter["name"] == part);
            let text = parameter.and_then(|parameter| parameter["description"].as_str());
            assert!(text.is_some_and(|text| !text.is_empty()), "{at}: {part} is not described");
        }
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn visit(value: &Value, document: &Value) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    let pointer = reference.strip_prefix('#').unwrap();
                    assert!(document.pointer(pointer).is_some(), "{reference}");
                }
                map.values().for_each(|value| visit(value, document));
            }
            Value::Array(items) => items.iter().for_each(|value| visit(value, document)),
            _ => {}
        }
    }
    let document = bulkhead_http::openapi();
    visit(&document, &document);
}

on_both! {
    async fn the_served_document_is_this_one(server: TestServer) {
        assert_eq!(server.send(ask("GET", "/api/openapi.json")).await.json(200), bulkhead_http::openapi());
    }

    async fn the_shapes_of_documents_are_published(server: TestServer) {
        let workflow = server.send(ask("GET", "/api/schemas/workflow.json")).await;
        assert_eq!(workflow.json(200), bulkhead_model::workflow::json_schema());
        assert_eq!(workflow.header("content-type"), "application/schema+json");
        let manifest = server.send(ask("GET", "/api/schemas/manifest.json")).await;
        assert!(manifest.json(200)["properties"]["permissions"].is_object());
    }

    async fn every_operation_is_routed(server: TestServer) {
        check_routed(&server).await;
    }
}

async fn check_routed(server: &TestServer) {
    for (method, path, _) in operations(&bulkhead_http::openapi()) {
        let answer = server.send(ask(&method, path.replace(['{', '}'], "x"))).await;
        assert_ne!(answer.status.as_u16(), 405, "{method} {path}");
        assert!(!answer.text().contains("nothing at this address"), "{method} {path}");
    }
}
