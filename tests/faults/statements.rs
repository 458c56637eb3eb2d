//! The first statement fails, the second, the third … until everything passes untouched: in each way that a run may go.

use std::time::Duration;

use bulkhead_app::AppError;
use bulkhead_app::run::RetryRun;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::grant::Grants;
use bulkhead_model::id::RunId;
use bulkhead_model::job::JobPayload;
use bulkhead_model::permission::{SystemReason, SystemScope};
use bulkhead_model::run::RunStatus;
use bulkhead_store::StoreError;
use bulkhead_store::job::NewJob;
use bulkhead_store::run::Run;
use bulkhead_test_support::http_sink::Reply;
use bulkhead_test_support::tcp_proxy::Direction;
use bulkhead_test_support::wait::until_async;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::bench::{Bench, PATIENCE, Place, sink};

/// Benches side by side: most of a trial is waiting.
const BENCHES: i64 = 4;
/// A scenario with more statements than this never passes untouched.
const STATEMENTS_MAX: i64 = 400;
/// Longer than what interrupts a call takes.
const LONG: Duration = Duration::from_secs(30);
/// From one cut of the line to the next, in bytes. Prime, so that cuts fall everywhere.
const CUT_EVERY_BYTES: i64 = 1_009;

/// How one run went, and what may be expected of it.
struct Trial {
    run: RunId,
    status: RunStatus,
    steps: &'static [&'static str],
    /// Requests without a fault; one fault repeats at most one of them.
    requests: usize,
    dead: usize,
}

/// What breaks.
#[derive(Clone, Copy, Debug)]
enum Break {
    Statement,
    Line(Direction),
}

impl Break {
    fn arm(self, bench: &Bench, number: i64) {
        match self {
            Self::Statement => bench.store.fault_hook().arm(number),
            Self::Line(direction) => {
                let bytes = u64::try_from((number - 1) * CUT_EVERY_BYTES).unwrap();
                bench.proxy.as_ref().unwrap().cut_after(direction, bytes);
            }
        }
    }

    /// Whether it broke. Nothing breaks from now on.
    fn disarm(self, bench: &Bench) -> bool {
        match self {
            Self::Statement => {
                let spent = bench.store.fault_hook().is_spent();
                bench.store.fault_hook().arm(0);
                spent
            }
            Self::Line(_) => !bench.proxy.as_ref().unwrap().disarm(),
        }
    }
}

pub(crate) fn call(step: &str, next: &str, attempts: u32) -> Value {
    json!({
        "type": "action", "use": "bulkhead/webhook#webhook", "next": next, "timeout_ms": 40_000,
        "with": { "url": "{{ trigger.body.url }}", "body": { "run": "{{ run.id }}", "step": step } },
        "retry": { "max_attempts": attempts, "backoff_ms": 1, "backoff_max_ms": 2 },
    })
}

pub(crate) fn workflow(steps: &Value) -> Value {
    json!({
        "schema": 1, "name": "it", "triggers": [{ "id": "hook", "type": "webhook" }], "start": "one", "steps": steps,
    })
}

/// Two calls with something pure between them.
pub(crate) fn two_calls(attempts: u32) -> Value {
    let condition = json!({
        "type": "condition", "if": { "field": "steps.one.output.status", "op": "eq", "value": 200 },
        "then": "two", "else": "end",
    });
    let end = json!({ "type": "stop" });
    workflow(
        &json!({ "one": call("one", "choose", attempts), "choose": condition, "two": call("two", "end", 3), "end": end }),
    )
}

/// Lets each thing in turn fail once while `scenario` goes its way.
async fn fail_each(place: Place, what: Break, definition: Value, scenario: impl AsyncFn(&mut Bench, &str) -> Trial) {
    let made = (0..BENCHES).map(|_| Bench::new(place, &definition, Ambient::system()));
    let benches: Option<Vec<Bench>> = join_all(made).await.into_iter().collect();
    let Some(benches) = benches else { return };
    let scenario = &scenario;
    let runs = benches.into_iter().zip(1_i64..).map(|(mut bench, first)| async move {
        for number in (first..).step_by(usize::try_from(BENCHES).unwrap()) {
            assert!(number < STATEMENTS_MAX, "it never passes untouched");
            let label = format!("{place:?}-{number}-{}", bench.workflow);
            what.arm(&bench, number);
            let trial = scenario(&mut bench, &label).await;
            let detail = bench.ended(trial.run).await;
            let broke = what.disarm(&bench);
            assert_eq!(detail.run.status, trial.status, "{label}: {:?} {:?}", detail.run.error, detail.steps);
            bench.assert_idle(trial.dead).await;
            let requests_max = trial.requests + usize::from(broke);
            bench.assert_effects(&label, trial.run, trial.steps, requests_max).await;
            if trial.dead > 0 {
                clear_dead_letter(&bench, trial.run).await;
            }
            if !broke {
                assert!(bench.supervisor.shut_down(PATIENCE).await, "the worker ends");
                return (number, Some(bench));
            }
        }
        (0, None)
    });
    // All end before the first is taken down: that waits in place for PostgreSQL to drop the database, which waits for each backend that
    // begins; and whoever opens a line here, on this very task, would not be polled meanwhile (seen: 60 s, `authentication_timeout`).
    let (untouched, benches): (Vec<_>, Vec<_>) = join_all(runs).await.into_iter().unzip();
    drop(benches);
    println!("{place:?}, {what:?}: untouched from {:?} on", untouched.iter().min());
    // A scenario that never was in danger proves nothing.
    assert!(untouched.iter().all(|number| *number > 8), "{untouched:?}");
}

async fn begins_and_goes_on(bench: &mut Bench, label: &str) -> Trial {
    let run = bench.begin(label).await;
    Trial { run, status: RunStatus::Succeeded, steps: &["one", "two"], requests: 2, dead: 0 }
}

async fn tries_again(bench: &mut Bench, label: &str) -> Trial {
    sink().script_for(&format!("/{label}"), Reply::status(503));
    let trial = begins_and_goes_on(bench, label).await;
    Trial { requests: 3, ..trial }
}

async fn is_cancelled(bench: &mut Bench, label: &str) -> Trial {
    sink().script_for(&format!("/{label}"), Reply::status(200).after(LONG));
    let run = bench.begin(label).await;
    Bench::called(label).await;
    let cancelled = until_async(PATIENCE, async || bench.app.cancel_run(&bench.caller, bench.org, run).await.is_ok());
    assert!(cancelled.await, "the run cannot be cancelled");
    Trial { run, status: RunStatus::Cancelled, steps: &["one"], requests: 1, dead: 0 }
}

async fn fails_and_is_retried(bench: &mut Bench, label: &str) -> Trial {
    sink().script_for(&format!("/{label}"), Reply::status(400));
    let run = bench.begin(label).await;
    // Where the refusal's commit failed, the call was made again, and then it was not refused.
    if bench.ended(run).await.run.status == RunStatus::Failed {
        let retried = until_async(PATIENCE, async || {
            let retry = RetryRun { from_step: Some("one".into()), new_generation: false };
            match bench.app.retry_run(&bench.caller, bench.org, run, retry).await {
                Ok(()) => true,
                Err(AppError::Store(_) | AppError::Conflict { code: "run-not-finished", .. }) => false,
                Err(other) => panic!("{other:?}"),
            }
        });
        assert!(retried.await, "the run cannot be retried");
    }
    Trial { run, status: RunStatus::Succeeded, steps: &["one", "two"], requests: 3, dead: 0 }
}

async fn loses_its_grants(bench: &mut Bench, label: &str) -> Trial {
    bench.grant(&bench.grants).await;
    sink().script_for(&format!("/{label}"), Reply::status(200).after(LONG));
    let run = bench.begin(label).await;
    Bench::called(label).await;
    bench.grant(&Grants::default()).await;
    Trial { run, status: RunStatus::Failed, steps: &["one"], requests: 1, dead: 0 }
}

/// The first process hands the run back; the next one goes on with it.
async fn is_handed_back(bench: &mut Bench, label: &str) -> Trial {
    sink().script_for(&format!("/{label}"), Reply::status(200).after(LONG));
    let run = bench.begin(label).await;
    Bench::called(label).await;
    bench.app.stop_worker(&bench.supervisor, Duration::from_millis(20)).await;
    bench.start_again().await;
    Trial { run, status: RunStatus::Succeeded, steps: &["one", "two"], requests: 3, dead: 0 }
}

/// A run whose state cannot be read goes to the dead letters.
async fn cannot_be_read(bench: &mut Bench, _: &str) -> Trial {
    let now = bench.ambient.now();
    let id = RunId::new(&bench.ambient);
    let run = Run {
        id,
        workflow: bench.workflow,
        version: 1,
        status: RunStatus::Queued,
        trigger_kind: "webhook".to_owned(),
        trigger_data: "{}".to_owned(),
        state: "no state".to_owned(),
        generation: 0,
        output: None,
        error: None,
        dedupe_key: None,
        log_seq: 0,
        kept: bulkhead_store::run::Kept::default(),
        waiting_until: None,
        created_at: now,
        updated_at: now,
        finished_at: None,
    };
    let payload = JobPayload::AdvanceRun { run: id };
    let job =
        NewJob { payload, priority: 0, run_at: now, dedupe_key: Some(id.to_string()), attempts_max: 5, group: None };
    let scope = SystemScope::new(SystemReason::Worker).for_org(bench.org);
    let stored = until_async(PATIENCE, async || {
        let args = (run.clone(), job.clone(), bench.ambient.clone());
        let write = bench.store.write(&scope, args, |tx, (run, job, ambient)| {
            Box::pin(async move {
                tx.insert_run(run).await?;
                tx.enqueue(job, ambient).await?;
                Ok::<_, StoreError>(())
            })
        });
        write.await.is_ok()
    });
    assert!(stored.await);
    Trial { run: id, status: RunStatus::Failed, steps: &[], requests: 0, dead: 1 }
}

async fn clear_dead_letter(bench: &Bench, run: RunId) {
    let scope = SystemScope::new(SystemReason::Worker).for_org(bench.org);
    let removed: Result<bool, StoreError> = bench
        .store
        .write(&scope, run.to_string(), |tx, key| {
            Box::pin(async move { tx.remove_waiting_job("advance_run", key).await })
        })
        .await;
    assert!(removed.unwrap());
}

/// Generates `name::sqlite` and `name::postgres`.
macro_rules! fail_each_statement {
    ($($name:ident: $definition:expr;)*) => {$(
        mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                Box::pin(fail_each(Place::Sqlite, Break::Statement, $definition, super::$name)).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                Box::pin(fail_each(Place::Postgres, Break::Statement, $definition, super::$name)).await;
            }
        }
    )*};
}

async fn waits_and_goes_on(bench: &mut Bench, label: &str) -> Trial {
    begins_and_goes_on(bench, label).await
}

/// It ends with a call: its commit is the run's last.
fn a_wait() -> Value {
    let wait = json!({ "type": "delay", "for_ms": 20, "next": "two" });
    let mut last = call("two", "", 3);
    last["next"] = Value::Null;
    workflow(&json!({ "one": call("one", "wait", 3), "wait": wait, "two": last }))
}

fail_each_statement! {
    begins_and_goes_on: two_calls(3);
    tries_again: two_calls(3);
    waits_and_goes_on: a_wait();
    is_cancelled: two_calls(3);
    fails_and_is_retried: two_calls(1);
    loses_its_grants: two_calls(1);
    is_handed_back: two_calls(3);
    cannot_be_read: two_calls(3);
}

/// The server never hears the whole of what was asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_cut_in_mid_statement_loses_nothing() {
    let what = Break::Line(Direction::ToServer);
    Box::pin(fail_each(Place::PostgresByProxy, what, two_calls(3), begins_and_goes_on)).await;
}

/// The server has done what was asked, a commit for instance, and nobody hears of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_cut_in_mid_answer_does_nothing_twice() {
    let what = Break::Line(Direction::ToClient);
    Box::pin(fail_each(Place::PostgresByProxy, what, two_calls(3), begins_and_goes_on)).await;
}
