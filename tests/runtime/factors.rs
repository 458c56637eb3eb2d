//! Factors: batches, bad numbers, and results that follow from the input alone.

use bulkhead_model::call::{CallReport, Outcome};
use bulkhead_model::limits::{ContributionKind, Limits};
use bulkhead_runtime::{PackageError, package as rules};
use serde_json::{Value, json};

use crate::support::{SCORE, assert_ended, component, host, module, package};

const FACTOR: ContributionKind = ContributionKind::Factor;

/// A factor that answers `ok` with `count` contributions at 4096, each made by `points` (an f64), with the reason `null`.
fn factor(imports: &str, count: &str, points: &str) -> Vec<u8> {
    // Parameters: name, settings, leads; 4 and 5 are the list's pointer and length.
    component(
        "factor-plugin",
        &module(
            imports,
            &format!(
                "{SCORE} (local $n i32) (local $at i32)
                (local.set $at (i32.const 4096))
                (block $end (loop $again
                    (br_if $end (i32.ge_u (local.get $n) {count}))
                    (f64.store (local.get $at) {points})
                    (i32.store offset=8 (local.get $at) (i32.const 1024))
                    (i32.store offset=12 (local.get $at) (i32.const 4))
                    (local.set $at (i32.add (local.get $at) (i32.const 16)))
                    (local.set $n (i32.add (local.get $n) (i32.const 1)))
                    (br $again)))
                (i32.store8 (i32.const 16) (i32.const 0))
                (i32.store (i32.const 20) (i32.const 4096))
                (i32.store (i32.const 24) {count})
                (i32.const 16))"
            ),
        ),
    )
}

fn batch(leads: u32) -> String {
    let leads: Vec<Value> = (0..leads).map(|n| json!({ "id": format!("lead_{n}"), "fields": { "n": n } })).collect();
    json!({ "leads": leads }).to_string()
}

async fn score(guest: &[u8], leads: u32) -> CallReport {
    host().run_with(FACTOR, guest, |request| request.input = batch(leads)).await
}

#[tokio::test]
async fn a_batch_is_scored_in_order() {
    // The points are the length of the fields' text: `{"n":1}` has 7 bytes, `{"n":10}` has 8.
    let points =
        "(f64.convert_i32_u (i32.load offset=12 (i32.add (local.get 4) (i32.mul (local.get $n) (i32.const 16)))))";
    let report = score(&factor("", "(local.get 5)", points), 11).await;
    assert_ended(&report, Outcome::Returned, None);
    let scores: Value = serde_json::from_str(report.output.as_deref().unwrap()).unwrap();
    let points: Vec<_> = scores.as_array().unwrap().iter().map(|score| score["points"].as_f64().unwrap()).collect();
    assert_eq!(points, [7.0, 7.0, 7.0, 7.0, 7.0, 7.0, 7.0, 7.0, 7.0, 7.0, 8.0]);
    assert_eq!(scores[0]["reason"], "null");
}

#[tokio::test]
async fn numbers_that_are_none_are_refused() {
    for points in ["nan", "inf", "-inf", "nan:0x8000000000001"] {
        let report = score(&factor("", "(local.get 5)", &format!("(f64.const {points})")), 2).await;
        assert_ended(&report, Outcome::InvalidOutput, None);
    }
    let report = score(&factor("", "(local.get 5)", "(f64.const -0.0)"), 1).await;
    assert_ended(&report, Outcome::Returned, None);
}

#[tokio::test]
async fn a_wrong_number_of_rows_is_refused() {
    for count in ["(i32.const 0)", "(i32.const 3)"] {
        assert_ended(&score(&factor("", count, "(f64.const 1)"), 2).await, Outcome::InvalidOutput, None);
    }
    // A list that claims more than the host copies in one call.
    let report = score(&factor("", "(i32.const 7000)", "(f64.const 1)"), 2).await;
    assert!(matches!(report.outcome, Outcome::InvalidOutput | Outcome::LimitExceeded), "{report:?}");
}

#[tokio::test]
async fn a_factors_own_error_is_an_error_of_the_plugin() {
    let text = module(
        "",
        &format!(
            "{SCORE} (i32.store8 (i32.const 16) (i32.const 1)) (i32.store (i32.const 20) (i32.const 1024)) (i32.store (i32.const 24) (i32.const 4)) (i32.const 16))"
        ),
    );
    let report = score(&component("factor-plugin", &text), 1).await;
    assert_ended(&report, Outcome::PluginError, None);
    assert_eq!(report.error.unwrap().code, "permanent");
}

#[tokio::test]
async fn input_in_another_shape_is_the_hosts_fault() {
    let guest = factor("", "(local.get 5)", "(f64.const 1)");
    for input in ["", "[]", r#"{"leads":[{"id":"x"}]}"#, r#"{"leads":[],"more":1}"#] {
        let report = host().run_with(FACTOR, &guest, |request| request.input = input.to_owned()).await;
        assert_ended(&report, Outcome::HostFault, None);
    }
}

/// Clocks, random numbers and the bits of a NaN depend on the input only.
#[tokio::test]
async fn a_result_is_a_function_of_the_input() {
    let imports = r#"(import "wasi:random/random@0.2.12" "get-random-u64" (func $random (result i64)))
        (import "wasi:clocks/monotonic-clock@0.2.12" "now" (func $now (result i64)))"#;
    let nan = "(f64.div (f64.const 0) (f64.const 0))";
    let points = format!(
        "(f64.add (f64.convert_i64_u (i64.shr_u (call $random) (i64.const 40)))
            (f64.add (f64.convert_i64_u (call $now)) (f64.convert_i64_u (i64.shr_u (i64.reinterpret_f64 {nan}) (i64.const 44)))))"
    );
    let guest = factor(imports, "(local.get 5)", &points);
    let first = score(&guest, 3).await;
    assert_ended(&first, Outcome::Returned, None);
    for _ in 0..5 {
        assert_eq!(score(&guest, 3).await.output, first.output);
    }
    assert_ne!(score(&guest, 2).await.output, first.output);
}

#[tokio::test]
async fn factors_are_limited_by_their_own_table() {
    let guest = factor("", "(local.get 5)", "(f64.const 1)");
    let limits = Limits { input_bytes: 100, ..Limits::default_for(FACTOR) };
    let report = host()
        .run_with(FACTOR, &guest, |request| {
            request.input = batch(50);
            request.limits = limits;
        })
        .await;
    assert_ended(&report, Outcome::LimitExceeded, Some("input_bytes"));
}

/// Settings of effectful plugins, secrets and the network are not for factors: a factor that asks is refused by name.
#[test]
fn a_package_of_factors_is_pure() {
    for (import, name) in [
        (r#"(import "wasi:http/types@0.2.12" "[constructor]fields" (func (result i32)))"#, "wasi:http/types@0.2.12"),
        (r#"(import "wasi:config/store@0.2.0-rc.1" "get-all" (func (param i32)))"#, "wasi:config/store@0.2.0-rc.1"),
    ] {
        let text = module(import, &format!("{SCORE} unreachable)"));
        let guest = crate::support::component_in(
            "factor-plugin",
            &text,
            "import wasi:http/types@0.2.12; import wasi:config/store@0.2.0-rc.1;",
        );
        let error = rules::inspect(&package(FACTOR, &guest)).expect_err(name);
        assert!(matches!(&error, PackageError::NotPure { import } if import == name), "{error}");
    }
}
