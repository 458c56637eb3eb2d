//! Guests that behave.

use bulkhead_model::call::Outcome;
use bulkhead_model::limits::ContributionKind;

use crate::support::{RUN, SEND, action_that, answers, assert_ended, component, host, module};

#[tokio::test]
async fn an_action_returns_its_json() {
    let (answer, data) = answers(r#"{"sent": true}"#);
    let guest = component("action-plugin", &module("", &format!("{data} {RUN} {answer})")));
    let report = host().run(ContributionKind::Action, &guest).await;
    assert_ended(&report, Outcome::Returned, None);
    assert_eq!(report.output.as_deref(), Some(r#"{"sent": true}"#));
    assert!(report.usage.fuel > 0 && report.usage.fuel < 10_000, "{:?}", report.usage);
    assert_eq!(report.usage.memory_peak_bytes, 2 * 65_536);
    assert_eq!(report.usage.output_bytes, 14);
}

#[tokio::test]
async fn nothing_is_left_in_memory_for_the_next_call() {
    // Answers with a trap when the byte that it writes is already there.
    let guest = action_that(
        "",
        "",
        "(if (i32.load8_u (i32.const 70000)) (then unreachable)) (i32.store8 (i32.const 70000) (i32.const 1))",
    );
    for _ in 0..20 {
        assert_ended(&host().run(ContributionKind::Action, &guest).await, Outcome::Returned, None);
    }
}

/// The settings are there whole and one by one: the guest answers with the value of the key in its data.
#[tokio::test]
async fn settings_are_read_by_name() {
    let imports = r#"(import "wasi:config/store@0.2.0-rc.1" "get" (func $get (param i32 i32 i32)))"#;
    for (key, expected) in [("name", "12"), ("flag", "true"), ("settings", r#"{"name":"12","flag":true}"#)] {
        // result<option<string>, error>: a tag, and from the fourth byte the option's tag, pointer and length.
        let body = format!(
            r#"(data (i32.const 2048) "{key}") {RUN}
            (call $get (i32.const 2048) (i32.const {}) (i32.const 64))
            (if (i32.load8_u (i32.const 64)) (then unreachable))
            (if (i32.eqz (i32.load8_u (i32.const 68))) (then unreachable))
            (i32.store (i32.const 24) (i32.load (i32.const 72)))
            (i32.store (i32.const 28) (i32.load (i32.const 76)))
            (i32.const 16))"#,
            key.len()
        );
        let guest = component("action-plugin", &module(imports, &body));
        let report = host()
            .run_with(ContributionKind::Action, &guest, |request| {
                request.settings = r#"{"name":"12","flag":true}"#.to_owned();
            })
            .await;
        assert_eq!(report.output.as_deref(), Some(expected), "{report:?}");
    }
}

#[tokio::test]
async fn a_channel_gives_its_receipt() {
    let (answer, data) = answers(r#"{"id":"m1"}"#);
    let guest = component("channel-plugin", &module("", &format!("{data} {SEND} {answer})")));
    let report = host().run(ContributionKind::Channel, &guest).await;
    assert_ended(&report, Outcome::Returned, None);
    assert_eq!(report.output.as_deref(), Some(r#"{"id":"m1"}"#));
}

/// Each case of a failure keeps its meaning.
#[tokio::test]
async fn failures_keep_their_meaning() {
    for (case, outcome, code, retryable) in [
        (0, Outcome::PluginError, "invalid-input", false),
        (1, Outcome::PluginError, "transient", true),
        (2, Outcome::PluginError, "permanent", false),
        (3, Outcome::Refused, "refused", false),
    ] {
        let body = format!(
            "{RUN} (i32.store8 (i32.const 16) (i32.const 1)) (i32.store8 (i32.const 24) (i32.const {case}))
            (i32.store (i32.const 32) (i32.const 1024)) (i32.store (i32.const 36) (i32.const 4))
            (i32.store8 (i32.const 40) (i32.const 1)) (i64.store (i32.const 48) (i64.const 1500))
            (i32.const 16))"
        );
        let report = host().run(ContributionKind::Action, &component("action-plugin", &module("", &body))).await;
        assert_ended(&report, outcome, None);
        let error = report.error.unwrap();
        assert_eq!((error.code.as_str(), error.message.as_str(), error.retryable), (code, "null", retryable));
        assert_eq!(error.retry_after_ms, (case == 1).then_some(1_500));
    }
}

#[tokio::test]
async fn a_contribution_that_is_not_there_is_the_hosts_fault() {
    let guest = action_that("", "", "");
    let report =
        host().run_with(ContributionKind::Action, &guest, |request| request.contribution = "other".to_owned()).await;
    assert_ended(&report, Outcome::HostFault, None);
}
