//! Which crate may name which: ARCHITECTURE.md's arrows, checked against the manifests.

use anyhow::{Context, Result};
use serde_json::Value;

use super::Finding;
use crate::tools;

/// What a crate must not depend on, tests aside, and why. A name ending in `*` stands for all that begin so.
const FORBIDDEN: [(&str, &[&str], &str); 10] = [
    (
        "bulkhead-model",
        &["bulkhead-*", "sqlx*", "wasmtime*", "axum*", "tower*", "hyper*", "tokio*", "fs4"],
        "the model is pure: no I/O, no runtime",
    ),
    (
        "bulkhead-audit",
        &["bulkhead*", "sqlx*", "wasmtime*", "axum*", "tower*", "hyper*", "tokio*", "fs4"],
        "a stranger's verifier needs nothing of the host",
    ),
    (
        "bulkhead-keys",
        &["bulkhead*", "sqlx*", "wasmtime*", "axum*", "tower*", "hyper*", "tokio*", "fs4"],
        "what is sealed can be judged without the host",
    ),
    (
        "bulkhead-store",
        &["axum*", "tower*", "hyper*", "wasmtime*", "bulkhead-runtime", "bulkhead-app", "bulkhead-http", "bulkhead"],
        "the store knows SQL and the model alone",
    ),
    (
        "bulkhead-runtime",
        &["sqlx*", "axum*", "tower*", "bulkhead-store", "bulkhead-app", "bulkhead-http", "bulkhead"],
        "the runtime knows WebAssembly and the model alone",
    ),
    (
        "bulkhead-app",
        &["axum*", "tower*", "sqlx*", "wasmtime*", "bulkhead-http", "bulkhead"],
        "use cases know no protocol, SQL or WebAssembly",
    ),
    (
        "bulkhead-http",
        &["sqlx*", "wasmtime*", "bulkhead-store", "bulkhead-runtime", "bulkhead"],
        "HTTP asks the app, which asks the rest",
    ),
    ("bulkhead-sdk", &["bulkhead*", "sqlx*", "wasmtime*", "axum*", "tokio*"], "plugin authors get nothing of the host"),
    (
        "xtask",
        &[
            "bulkhead",
            "bulkhead-model",
            "bulkhead-store",
            "bulkhead-runtime",
            "bulkhead-app",
            "bulkhead-http",
            "tokio*",
        ],
        "everyone's first command builds the chores",
    ),
    ("bulkhead-test-support", &["bulkhead*", "sqlx*", "wasmtime*", "axum*"], "every suite uses it, whatever it tests"),
];

/// What nobody may depend on directly, with what there is instead.
const FORBIDDEN_TO_ALL: [(&str, &str); 6] = [
    ("reqwest", "outbound bytes leave through host/runtime/src/egress.rs"),
    ("ureq", "outbound bytes leave through host/runtime/src/egress.rs"),
    ("openssl*", "TLS is rustls"),
    ("native-tls", "TLS is rustls"),
    ("lazy_static", "std::sync::LazyLock"),
    ("once_cell", "std::sync::OnceLock"),
];

/// Checks the packages of `cargo metadata --no-deps`.
pub(super) fn check(metadata: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in tools::rows(&metadata["packages"]) {
        let name = package["name"].as_str().unwrap_or_default();
        let place = format!("{name}'s Cargo.toml");
        // Tests may look from outside at what the crate itself must not know.
        let names = tools::rows(&package["dependencies"])
            .filter(|dependency| dependency["kind"] != "dev")
            .filter_map(|dependency| dependency["name"].as_str());
        for dependency in names {
            for (_, forbidden, why) in FORBIDDEN.iter().filter(|(crate_name, ..)| *crate_name == name) {
                if forbidden.iter().any(|pattern| matches(pattern, dependency)) {
                    findings.push(Finding::new(&place, format!("{name} must not depend on {dependency}: {why}")));
                }
            }
            for (pattern, instead) in FORBIDDEN_TO_ALL {
                if matches(pattern, dependency) {
                    findings.push(Finding::new(&place, format!("no crate depends on {dependency}: {instead}")));
                }
            }
        }
    }
    // A rule about a crate that was renamed would hold for ever.
    for (crate_name, ..) in FORBIDDEN {
        if !tools::rows(&metadata["packages"]).any(|package| package["name"] == crate_name) {
            let what =
                format!("there is no crate {crate_name} any more: mend the rules in xtask/src/tidy/dependencies.rs");
            findings.push(Finding::new("Cargo.toml", what));
        }
    }
    findings
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}

/// Checks that every member is under the workspace's lints.
pub(super) fn check_lints(metadata: &Value) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for package in tools::rows(&metadata["packages"]) {
        let path = package["manifest_path"].as_str().context("a package without manifest")?;
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        if !inherits_lints(&text) {
            let place = tools::from_root(path.as_ref()).to_string_lossy().into_owned();
            findings.push(Finding::new(place, "add `[lints]` with `workspace = true`"));
        }
    }
    Ok(findings)
}

fn inherits_lints(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(|line| line.split('#').next().unwrap_or_default().replace(' ', ""));
    let in_section = lines.by_ref().any(|line| line == "[lints]")
        && lines.take_while(|line| !line.starts_with('[')).any(|line| line == "workspace=true");
    in_section || manifest.lines().any(|line| line.replace(' ', "") == "lints.workspace=true")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn workspace(name: &str, dependency: &str, kind: &Value) -> Value {
        let packages: Vec<_> = FORBIDDEN
            .iter()
            .map(|(crate_name, ..)| {
                let dependencies =
                    if *crate_name == name { json!([{ "name": dependency, "kind": kind }]) } else { json!([]) };
                json!({ "name": crate_name, "dependencies": dependencies })
            })
            .collect();
        json!({ "packages": packages })
    }

    #[test]
    fn the_arrows_of_the_architecture_hold() {
        let forbidden = [
            ("bulkhead-model", "tokio"),
            ("bulkhead-model", "bulkhead-store"),
            ("bulkhead-audit", "bulkhead-model"),
            ("bulkhead-store", "axum"),
            ("bulkhead-store", "wasmtime-wasi"),
            ("bulkhead-runtime", "sqlx"),
            ("bulkhead-runtime", "axum"),
            ("bulkhead-http", "sqlx"),
            ("bulkhead-http", "wasmtime"),
            ("bulkhead-app", "bulkhead-http"),
            ("xtask", "bulkhead-model"),
            ("bulkhead-app", "reqwest"),
        ];
        for (name, dependency) in forbidden {
            let findings = check(&workspace(name, dependency, &Value::Null));
            assert_eq!(findings.len(), 1, "{name} on {dependency}: {findings:?}");
            assert_eq!(check(&workspace(name, dependency, &json!("build"))).len(), 1);
            assert_eq!(check(&workspace(name, dependency, &json!("dev"))), []);
        }
        for (name, dependency) in
            [("bulkhead-store", "bulkhead-model"), ("bulkhead-http", "bulkhead-app"), ("bulkhead-runtime", "hyper")]
        {
            assert_eq!(check(&workspace(name, dependency, &Value::Null)), []);
        }
    }

    #[test]
    fn a_rule_without_its_crate_is_found() {
        assert_eq!(check(&json!({ "packages": [] })).len(), FORBIDDEN.len());
    }

    #[test]
    fn lints_are_inherited_in_either_spelling() {
        assert!(inherits_lints("[package]\nname = \"a\"\n\n[lints]\nworkspace = true # all\n"));
        assert!(inherits_lints("[package]\nlints.workspace = true\n"));
        assert!(!inherits_lints("[package]\nversion.workspace = true\n"));
        assert!(!inherits_lints("[lints]\n[package]\nworkspace = true\n"));
    }
}
