//! Calls that are ended from outside: revoked, cancelled, abandoned; and what they leave behind.

use std::time::{Duration, Instant};

use bulkhead_model::call::Outcome;
use bulkhead_model::limits::{ContributionKind, Limits};
use bulkhead_runtime::CallControl;

use crate::support::{action_that, assert_ended, host, package, request, within};

const ACTION: ContributionKind = ContributionKind::Action;
/// The promise is 50 ms on a machine with nothing else to do; a test machine is busy.
const PROMPT: Duration = Duration::from_secs(5);

fn computes() -> Vec<u8> {
    action_that("", "", "(loop $again (br $again))")
}

fn computes_in_start() -> Vec<u8> {
    action_that("", "(func $begin (loop $again (br $again))) (start $begin)", "")
}

fn waits() -> Vec<u8> {
    action_that(
        r#"(import "wasi:clocks/monotonic-clock@0.2.12" "subscribe-duration" (func $subscribe (param i64) (result i32)))
           (import "wasi:io/poll@0.2.12" "[method]pollable.block" (func $block (param i32)))"#,
        "",
        "(call $block (call $subscribe (i64.const 3600000000000)))",
    )
}

/// Calls `guest`, ends it after it has certainly begun, and says how it ended and how long that took.
async fn ended_by(guest: &[u8], end: impl Fn(&CallControl), expected: Outcome) {
    let prepared = host().prepare(&package(ACTION, guest)).await;
    let mut request = request(ACTION);
    request.limits = Limits { fuel: u64::MAX / 2, wall_ms: 50_000, ..Limits::default_for(ACTION) };
    let control = request.control.clone();
    let call = host().runtime.call(&prepared, request);
    let (report, took) = within(async {
        tokio::join!(call, async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            end(&control);
            Instant::now()
        })
    })
    .await;
    let took = took.elapsed();
    assert_ended(&report, expected, None);
    assert!(took < PROMPT, "{took:?}");
    println!("ended as {expected:?} after {took:?}");
}

#[tokio::test]
async fn revocation_ends_a_guest_that_computes() {
    ended_by(&computes(), CallControl::revoke, Outcome::Revoked).await;
}

#[tokio::test]
async fn revocation_ends_a_guest_that_begins() {
    ended_by(&computes_in_start(), CallControl::revoke, Outcome::Revoked).await;
}

#[tokio::test]
async fn revocation_ends_a_guest_that_waits() {
    ended_by(&waits(), CallControl::revoke, Outcome::Revoked).await;
}

#[tokio::test]
async fn cancellation_ends_both() {
    ended_by(&computes(), CallControl::cancel, Outcome::Cancelled).await;
    ended_by(&waits(), CallControl::cancel, Outcome::Cancelled).await;
}

#[tokio::test]
async fn a_call_that_was_revoked_before_never_begins() {
    let prepared = host().prepare(&package(ACTION, &action_that("", "", ""))).await;
    let request = request(ACTION);
    request.control.revoke();
    let report = within(host().runtime.call(&prepared, request)).await;
    assert_ended(&report, Outcome::Revoked, None);
    assert_eq!(report.usage.fuel, 0);
}

/// A caller that goes away leaves no guest behind: its control says so, and every guest thread is free again.
#[tokio::test]
async fn an_abandoned_call_is_cancelled() {
    let prepared = host().prepare(&package(ACTION, &computes())).await;
    for _ in 0..8 {
        let mut request = request(ACTION);
        request.limits = Limits { fuel: u64::MAX / 2, wall_ms: 50_000, ..Limits::default_for(ACTION) };
        let control = request.control.clone();
        let patience = Duration::from_millis(20);
        assert!(tokio::time::timeout(patience, host().runtime.call(&prepared, request)).await.is_err());
        assert!(control.stopped().is_some());
    }
    assert_ended(&host().run(ACTION, &action_that("", "", "")).await, Outcome::Returned, None);
}

/// More guests that compute than there are guest threads: others still have their turn, and so has the caller's executor.
#[tokio::test]
async fn spinning_guests_starve_nobody() {
    let spinning = host().prepare(&package(ACTION, &computes())).await;
    let quick = host().prepare(&package(ACTION, &action_that("", "", ""))).await;
    let controls: Vec<_> = (0..6).map(|_| CallControl::new()).collect();
    let spins = controls.iter().map(|control| {
        let mut request = request(ACTION);
        request.limits = Limits { fuel: u64::MAX / 2, wall_ms: 50_000, ..Limits::default_for(ACTION) };
        request.control = control.clone();
        host().runtime.call(&spinning, request)
    });
    let others = async {
        for _ in 0..10 {
            let report = host().runtime.call(&quick, request(ACTION)).await;
            assert_ended(&report, Outcome::Returned, None);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        controls.iter().for_each(CallControl::cancel);
    };
    let (reports, ()) = within(async { tokio::join!(futures_util::future::join_all(spins), others) }).await;
    for report in reports {
        assert_ended(&report, Outcome::Cancelled, None);
    }
}

/// Many more calls than there are places in the pool have their turn, one after the other.
#[tokio::test]
async fn more_calls_than_places_take_turns() {
    let prepared = host().prepare(&package(ACTION, &action_that("", "(memory 1) (memory 1) (memory 1)", ""))).await;
    let calls = (0..1_500).map(|_| {
        let mut request = request(ACTION);
        request.limits.wall_ms = 50_000;
        host().runtime.call(&prepared, request)
    });
    for report in within(futures_util::future::join_all(calls)).await {
        assert_ended(&report, Outcome::Returned, None);
    }
}

/// One organization's guests sleep in all the places that it may have. Its next call waits, and can be ended while it waits; it
/// gives up when it has waited for as long as it may run; and nobody else notices.
#[tokio::test]
async fn a_call_without_a_place_can_be_ended_and_gives_up() {
    let memories = "(memory 1)".repeat(7);
    let sleep = action_that(
        r#"(import "wasi:clocks/monotonic-clock@0.2.12" "subscribe-duration" (func $subscribe (param i64) (result i32)))
           (import "wasi:io/poll@0.2.12" "[method]pollable.block" (func $block (param i32)))"#,
        &memories,
        "(call $block (call $subscribe (i64.const 3600000000000)))",
    );
    let sleeping = host().prepare(&package(ACTION, &sleep)).await;
    let quick = host().prepare(&package(ACTION, &action_that("", &memories, ""))).await;
    let asked = |wall_ms: u64, control: &CallControl| {
        let mut request = request(ACTION);
        request.limits.wall_ms = wall_ms;
        request.control = control.clone();
        request
    };
    let sleepers: Vec<_> = (0..40)
        .map(|_| {
            let control = CallControl::new();
            (control.clone(), host().runtime.call(&sleeping, asked(59_000, &control)))
        })
        .collect();
    let (controls, sleeps): (Vec<_>, Vec<_>) = sleepers.into_iter().unzip();
    let others = async {
        let busy = loop {
            let report = host().runtime.call(&quick, asked(100, &CallControl::new())).await;
            if report.outcome != Outcome::Returned {
                break report;
            }
        };
        assert_ended(&busy, Outcome::HostFault, None);
        let error = busy.error.unwrap();
        assert_eq!((error.code.as_str(), error.retryable, error.retry_after_ms), ("busy", true, Some(1_000)));

        for (end, outcome) in [
            (CallControl::revoke as fn(&CallControl), Outcome::Revoked),
            (CallControl::cancel as fn(&CallControl), Outcome::Cancelled),
        ] {
            let control = CallControl::new();
            let (report, ()) = tokio::join!(host().runtime.call(&quick, asked(59_000, &control)), async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                end(&control);
            });
            assert_ended(&report, outcome, None);
            assert_eq!(report.usage.fuel, 0);
        }

        let mut stranger = asked(50_000, &CallControl::new());
        stranger.context.org = "org_2".to_owned();
        assert_ended(&host().runtime.call(&quick, stranger).await, Outcome::Returned, None);
        controls.iter().for_each(CallControl::cancel);
    };
    within(async { tokio::join!(futures_util::future::join_all(sleeps), others) }).await;
}
