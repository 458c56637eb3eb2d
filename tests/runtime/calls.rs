//! Guests that behave.

use bulkhead_model::call::Outcome;
use bulkhead_model::limits::ContributionKind;

use crate::support::{RUN, action_that, answers, assert_ended, component, host, module};

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
