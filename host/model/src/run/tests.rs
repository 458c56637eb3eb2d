use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::ambient::Ambient;
use crate::condition::tests::any_json;
use crate::workflow::tests::{github_to_slack, parse, with_steps};
use crate::workflow::{Definition, TriggerKind, trigger_payload};

const START: Timestamp = Timestamp::from_micros(1_795_000_000_000_000);

fn facts() -> RunFacts {
    let id = uuid::Uuid::from_u128(0x0189_0a5d_ac96_774b_bcce_b302_099a_8057);
    RunFacts {
        run: RunId::from_uuid(id),
        workflow: WorkflowId::from_uuid(id),
        org: OrgId::from_uuid(id),
        started_at: START,
    }
}

fn given(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn id(text: &str) -> StepId {
    text.parse().unwrap()
}

fn returned(output: &Value) -> CallResult {
    CallResult { outcome: Outcome::Returned, output: Some(output.to_string()), error: None }
}

fn failed(outcome: Outcome, code: &str, retryable: bool, retry_after_ms: Option<u64>) -> CallResult {
    let error =
        CallError { code: code.to_owned(), message: "it broke".to_owned(), retryable, retry_after_ms, limit: None };
    CallResult { outcome, output: None, error: Some(error) }
}

/// A run with its surroundings.
struct Bench {
    definition: Definition,
    state: RunState,
    trigger: Value,
    ambient: Ambient,
    records: Vec<StepRecord>,
}

impl Bench {
    fn new(definition: Definition, trigger: Value, variables: &Value) -> Self {
        let state = begin(&definition, &given(variables)).unwrap();
        Self { definition, state, trigger, ambient: Ambient::manual(START, 7), records: Vec::new() }
    }

    fn steps(steps: &Value) -> Self {
        Self::new(parse(&with_steps(steps)), json!({ "body": {} }), &json!({}))
    }

    fn advance(&mut self) -> Next {
        let advanced = advance(&self.definition, &mut self.state, &self.trigger, &facts(), self.ambient.now());
        self.records.extend(advanced.records);
        // What is saved must be readable again, and asking twice must change nothing.
        let saved: RunState = serde_json::from_str(&serde_json::to_string(&self.state).unwrap()).unwrap();
        assert_eq!(saved, self.state);
        let again = advance(&self.definition, &mut self.state, &self.trigger, &facts(), self.ambient.now());
        assert_eq!(again.next, advanced.next);
        assert_eq!(again.records, []);
        assert_eq!(saved, self.state);
        advanced.next
    }

    fn call(&mut self) -> PlannedCall {
        match self.advance() {
            Next::Call(call) => call,
            other => panic!("a call was expected: {other:?}"),
        }
    }

    fn finish(&mut self) -> (RunStatus, Value, Option<StepError>) {
        match self.advance() {
            Next::Finish { status, output, error } => (status, output, error),
            other => panic!("the end was expected: {other:?}"),
        }
    }

    fn complete(&mut self, call: &PlannedCall, result: &CallResult) -> StepVerdict {
        let verdict = complete_call(&self.definition, &mut self.state, &call.step, call.attempt, result, &self.ambient);
        if let StepVerdict::Done(record) | StepVerdict::Retry { record, .. } = &verdict {
            self.records.push(record.clone());
        }
        verdict
    }

    fn log(&self) -> Vec<(&str, StepStatus)> {
        self.records.iter().map(|record| (record.step.as_str(), record.status)).collect()
    }
}

fn issue(labels: &[&str], comments: u32) -> Value {
    let labels: Vec<Value> = labels.iter().map(|name| json!({ "name": name })).collect();
    let body = json!({ "action": "opened", "issue": { "title": "Crash <b>", "labels": labels, "comments": comments } });
    trigger_payload(TriggerKind::Webhook, body, json!({ "x-github-event": "issues" }), json!({}))
}

fn example() -> Definition {
    Definition::parse(&github_to_slack()).unwrap().0
}

#[test]
fn the_example_tells_slack_of_an_urgent_issue() {
    let mut bench = Bench::new(example(), issue(&["ui", "bug"], 0), &json!({}));
    let call = bench.call();
    assert_eq!(call.input, json!({ "channel": "#support", "text": "New issue: Crash <b>" }));
    assert_eq!(
        (call.kind, call.plugin.as_str(), call.contribution.as_str()),
        (ContributionKind::Channel, "acme/slack", "slack")
    );
    assert_eq!((call.attempt, call.timeout_ms), (1, Some(10_000)));
    assert_eq!(call.idempotency_key, "run_01h455vb4pex5vsknk084sn02q.tell.0.0");
    assert!(matches!(bench.complete(&call, &returned(&json!({ "ts": "1" }))), StepVerdict::Done(_)));
    assert_eq!(bench.finish(), (RunStatus::Succeeded, Value::Null, None));
    assert_eq!(
        bench.log(),
        [("urgent", StepStatus::Succeeded), ("tell", StepStatus::Succeeded), ("end", StepStatus::Succeeded)]
    );
    let explain = &bench.records[0].explain[0];
    assert!(explain.result && explain.children[0].result);
    assert_eq!(explain.children[0].actual, Some(json!(["ui", "bug"])));
}

#[test]
fn the_example_passes_over_a_quiet_issue() {
    let mut bench = Bench::new(example(), issue(&["ui"], 4), &json!({ "channel": "#x" }));
    assert_eq!(bench.finish().0, RunStatus::Succeeded);
    assert_eq!(
        bench.log(),
        [("urgent", StepStatus::Succeeded), ("end", StepStatus::Succeeded), ("tell", StepStatus::Skipped)]
    );
}

#[test]
fn a_transient_failure_is_tried_again_with_the_same_key() {
    let mut bench = Bench::new(example(), issue(&["bug"], 0), &json!({}));
    let mut keys = Vec::new();
    for attempt in 1..=4 {
        let call = bench.call();
        assert_eq!(call.attempt, attempt);
        keys.push(call.idempotency_key.clone());
        let verdict = bench.complete(&call, &failed(Outcome::PluginError, "transient", true, Some(90_000)));
        let StepVerdict::Retry { after, until, record, .. } = verdict else { panic!("{verdict:?}") };
        assert!(after >= Duration::from_secs(90), "Retry-After is honoured beyond the back-off's own bound");
        assert_eq!((record.attempt, record.status), (attempt, StepStatus::Waiting));
        assert_eq!(bench.complete(&call, &returned(&json!(1))), StepVerdict::Stale, "the attempt is over");
        assert_eq!(bench.advance(), Next::Wait { step: id("tell"), until });
        bench.ambient.advance(after);
    }
    keys.dedup();
    assert_eq!(keys.len(), 1);
    let call = bench.call();
    assert!(matches!(
        bench.complete(&call, &failed(Outcome::PluginError, "transient", true, None)),
        StepVerdict::Done(_)
    ));
    let (status, _, error) = bench.finish();
    assert_eq!(status, RunStatus::Failed);
    let error = error.unwrap();
    assert_eq!((error.step, error.code.as_str()), (Some(id("tell")), "transient"));
    assert!(bench.log().contains(&("end", StepStatus::Skipped)));
}

#[test]
fn every_outcome_is_retried_or_not_as_the_table_says() {
    for outcome in Outcome::ALL {
        let steps = json!({ "a": { "type": "action", "use": "x/y#z" } });
        let mut bench = Bench::steps(&steps);
        let call = bench.call();
        let result = failed(outcome, "code", false, None);
        let verdict = bench.complete(&call, &result);
        let retried = matches!(verdict, StepVerdict::Retry { .. });
        let expected = matches!(outcome, Outcome::DeadlinePassed | Outcome::Revoked | Outcome::HostFault);
        assert_eq!(retried, expected, "{outcome:?}");
        assert_eq!(is_retryable(outcome, result.error.as_ref()), expected);
        if outcome == Outcome::Cancelled {
            assert_eq!(bench.finish().0, RunStatus::Cancelled);
        } else if outcome != Outcome::Returned && !retried {
            assert_eq!(bench.finish().0, RunStatus::Failed);
        }
    }
    let error = |retryable| CallError {
        code: String::new(),
        message: String::new(),
        retryable,
        retry_after_ms: None,
        limit: None,
    };
    assert!(is_retryable(Outcome::PluginError, Some(&error(true))));
    assert!(!is_retryable(Outcome::PluginError, None));
    assert!(!is_retryable(Outcome::Trapped, Some(&error(true))), "a trap stays a trap whatever the error says");
}

#[test]
fn a_failed_step_may_be_allowed_stood_in_for_or_handled() {
    let run = |extra: Value| {
        let mut call = json!({ "type": "action", "use": "x/y#z", "next": "b" });
        call.as_object_mut().unwrap().extend(given(&extra));
        let mut bench = Bench::steps(&json!({ "a": call,
            "b": { "type": "stop", "output": { "out": "{{ steps.a.output }}", "status": "{{ steps.a.status }}", "code": "{{ steps.a.error.code }}" } },
            "c": { "type": "stop", "status": "failed", "output": "handled {{ steps.a.error.message }}" } }));
        let call = bench.call();
        bench.complete(&call, &failed(Outcome::PluginError, "permanent", false, None));
        bench.finish()
    };
    let mut bare = Bench::steps(&json!({ "a": { "type": "action", "use": "x/y#z" } }));
    assert_eq!(bare.call().input, json!({}));
    let (status, _, error) = run(json!({ "on_error": null }));
    assert_eq!((status, error.unwrap().code.as_str()), (RunStatus::Failed, "permanent"));
    let (status, output, _) = run(json!({ "allow_failure": true }));
    assert_eq!(
        (status, output),
        (RunStatus::Succeeded, json!({ "out": null, "status": "failed", "code": "permanent" }))
    );
    let (status, output, _) = run(json!({ "fallback": { "n": 0 } }));
    assert_eq!(
        (status, output),
        (RunStatus::Succeeded, json!({ "out": { "n": 0 }, "status": "failed", "code": "permanent" }))
    );
    let (status, output, error) = run(json!({ "on_error": "c", "allow_failure": true }));
    assert_eq!((status, output), (RunStatus::Failed, json!("handled it broke")));
    assert_eq!(error.unwrap().code, "stopped");
}

#[test]
fn a_template_that_fails_fails_its_step() {
    let mut bench = Bench::steps(&json!({
        "a": { "type": "action", "use": "x/y#z", "with": { "t": "{{ trigger.body.gone }}" }, "on_error": "b" },
        "b": { "type": "set", "vars": { "n": "{{ trigger.body.gone | default('x') }}" } } }));
    let (status, _, error) = bench.finish();
    assert_eq!((status, error.unwrap().code.as_str()), (RunStatus::Failed, "wrong-type"));
    let first = bench.records[0].error.clone().unwrap();
    assert_eq!(first.code, "template");
    assert!(first.message.starts_with("with/t: `trigger.body.gone` is missing"), "{}", first.message);
}

#[test]
fn a_delay_waits_once_until_its_moment() {
    let mut bench = Bench::steps(&json!({ "a": { "type": "delay", "for": "3d", "next": "b" },
        "b": { "type": "delay", "until": "{{ trigger.body.at | default('2026-01-01') }}", "next": "c" }, "c": { "type": "stop" } }));
    let until = START.plus(Duration::from_hours(72));
    assert_eq!(bench.advance(), Next::Wait { step: id("a"), until });
    bench.ambient.advance(Duration::from_hours(1));
    assert_eq!(bench.advance(), Next::Wait { step: id("a"), until }, "waking early does not begin the wait anew");
    bench.ambient.advance(Duration::from_hours(72));
    assert_eq!(bench.finish().0, RunStatus::Succeeded, "a moment that has passed does not wait");
    assert_eq!(
        bench.log(),
        [
            ("a", StepStatus::Waiting),
            ("a", StepStatus::Succeeded),
            ("b", StepStatus::Succeeded),
            ("c", StepStatus::Succeeded)
        ]
    );
    let mut far = Bench::steps(&json!({ "a": { "type": "delay", "until": "2099-01-01" } }));
    assert_eq!(far.finish().2.unwrap().code, "delay-too-long");
    let mut never = Bench::steps(&json!({ "a": { "type": "delay", "until": "{{ run.id }}" } }));
    assert_eq!(never.finish().2.unwrap().code, "wrong-type");
}

#[test]
fn variables_and_switches_decide() {
    let steps = json!({
        "a": { "type": "set", "vars": { "n": "{{ vars.n | plus(1) }}", "s": "was {{ vars.n }}" }, "next": "b" },
        "b": { "type": "switch", "cases": [
            { "if": { "field": "vars.n", "op": "gt", "value": 5 }, "then": "x" },
            { "if": { "field": "vars.n", "op": "gt", "value": 1 }, "then": "y" },
            { "if": { "field": "steps.a.output.n", "op": "gt", "value": 0 } } ], "else": "x" },
        "x": { "type": "stop", "output": "x" },
        "y": { "type": "stop", "output": "{{ vars.s }}/{{ vars | tojson | length > 5 }}/{{ org.id }}" } });
    let mut bench = Bench::new(parse(&with_steps(&steps)), json!({}), &json!({ "n": 1 }));
    let (status, output, _) = bench.finish();
    assert_eq!((status, output), (RunStatus::Succeeded, json!("was 1/true/org_01h455vb4pex5vsknk084sn02q")));
    assert_eq!(bench.records[1].explain.len(), 2, "the cases after the one that held were not asked");
    let mut open_end = Bench::new(parse(&with_steps(&steps)), json!({}), &json!({ "n": 0 }));
    assert_eq!(open_end.finish(), (RunStatus::Succeeded, Value::Null, None), "a case without `then` ends the run");
}

#[test]
fn variables_are_checked_when_a_run_begins() {
    let mut document = with_steps(&json!({ "a": { "type": "stop" } }));
    document["variables"] = json!({ "who": { "type": "string", "required": true }, "n": { "type": "number" },
        "key": { "type": "secret" }, "day": { "type": "date" }, "j": { "type": "json" } });
    let definition = parse(&document);
    let codes = |variables: Value| -> Vec<(String, String)> {
        let problems = begin(&definition, &given(&variables)).map_or_else(|error| error.problems, |_| Vec::new());
        problems.into_iter().map(|problem| (problem.name, problem.code)).collect()
    };
    let pair = |name: &str, code: &str| (name.to_owned(), code.to_owned());
    assert_eq!(codes(json!({})), [pair("who", "missing")]);
    assert_eq!(codes(json!({ "who": null })), [pair("who", "missing")]);
    assert_eq!(codes(json!({ "who": 1, "x": 1 })), [pair("x", "unknown"), pair("who", "wrong-type")]);
    assert_eq!(
        codes(json!({ "who": "a", "key": "hunter2" })),
        [pair("key", "wrong-type")],
        "a secret never comes in the clear"
    );
    assert_eq!(
        codes(json!({ "who": "a", "key": "bulkhead-secret:abc", "day": "2026-11-21", "n": 1.5, "j": [null] })),
        []
    );
    assert_eq!(codes(json!({ "who": "a", "day": "soon" })), [pair("day", "wrong-type")]);
    assert_eq!(codes(json!({ "who": "a".repeat(OUTPUT_BYTES_MAX) })), [pair("", "too-large")]);
    let state = begin(&definition, &given(&json!({ "who": "a" }))).unwrap();
    assert_eq!(Value::Object(state.vars), json!({ "who": "a", "n": null, "key": null, "day": null, "j": null }));
}

#[test]
fn bad_and_oversized_outputs_are_failures() {
    for (output, code) in [
        ("{", "invalid-output".to_owned()),
        (&*format!("\"{}\"", "x".repeat(OUTPUT_BYTES_MAX)), "invalid-output".to_owned()),
        (&*format!("{}{}", "[".repeat(100), "]".repeat(100)), "invalid-output".to_owned()),
    ] {
        let mut bench = Bench::steps(&json!({ "a": { "type": "action", "use": "x/y#z" } }));
        let call = bench.call();
        let result = CallResult { outcome: Outcome::Returned, output: Some(output.to_owned()), error: None };
        assert!(matches!(bench.complete(&call, &result), StepVerdict::Done(_)));
        assert_eq!(bench.finish().2.unwrap().code, code);
    }
    let steps: Map<String, Value> = (0..6)
        .map(|i| (format!("s{i}"), json!({ "type": "action", "use": "x/y#z", "next": format!("s{}", i + 1) })))
        .chain([("s6".to_owned(), json!({ "type": "stop" }))])
        .collect();
    let mut bench = Bench::steps(&Value::Object(steps));
    let large = returned(&json!("x".repeat(OUTPUT_BYTES_MAX - 2)));
    for _ in 0..4 {
        let call = bench.call();
        bench.complete(&call, &large);
        if bench.state.is_ended() {
            break;
        }
    }
    assert_eq!(bench.finish().2.unwrap().code, "state-too-large");
}

#[test]
fn cancelling_ends_a_run_wherever_it_stands() {
    let steps =
        json!({ "a": { "type": "delay", "for": "1d", "next": "b" }, "b": { "type": "action", "use": "x/y#z" } });
    let mut waiting = Bench::steps(&steps);
    waiting.advance();
    let record = cancel(&waiting.definition, &mut waiting.state, "not wanted").unwrap();
    assert_eq!((record.step.as_str(), record.status), ("a", StepStatus::Cancelled));
    let (status, _, error) = waiting.finish();
    assert_eq!((status, error.unwrap().message.as_str()), (RunStatus::Cancelled, "not wanted"));
    assert_eq!(cancel(&waiting.definition, &mut waiting.state, "again"), None);

    let mut calling = Bench::steps(&steps);
    calling.advance();
    calling.ambient.advance(Duration::from_hours(25));
    let call = calling.call();
    cancel(&calling.definition, &mut calling.state, "not wanted").unwrap();
    assert_eq!(calling.complete(&call, &returned(&json!(1))), StepVerdict::Stale, "a late result changes nothing");
    let mut fresh = Bench::steps(&steps);
    let record = cancel(&fresh.definition, &mut fresh.state, "early").unwrap();
    assert_eq!(
        (record.step.as_str(), record.status),
        ("a", StepStatus::Cancelled),
        "where it stands, though nothing was saved of it"
    );
    assert_eq!(
        rewind(&fresh.definition, &fresh.state, &record.step, false).unwrap().cursor,
        Some(record.step),
        "and can begin again"
    );
    assert_eq!(fresh.finish().0, RunStatus::Cancelled);
}

#[test]
fn rewinding_forgets_what_came_after() {
    let mut bench = Bench::steps(&json!({
        "a": { "type": "set", "vars": { "n": 1 }, "next": "b" },
        "b": { "type": "action", "use": "x/y#z", "with": { "n": "{{ vars.n }}" }, "next": "c" },
        "c": { "type": "set", "vars": { "n": 2 }, "next": "d" },
        "d": { "type": "action", "use": "x/y#z", "with": { "n": "{{ vars.n }}", "b": "{{ steps.b.output }}" } } }));
    let first = bench.call();
    assert_eq!(rewind(&bench.definition, &bench.state, &id("a"), false), Err(RewindError::UnderWay));
    assert_eq!(rewind(&bench.definition, &bench.state, &id("zz"), false), Err(RewindError::UnknownStep));
    assert_eq!(rewind(&bench.definition, &bench.state, &id("d"), false), Err(RewindError::NotReached));
    bench.complete(&first, &returned(&json!("out")));
    let second = bench.call();
    assert_eq!(second.input, json!({ "n": 2, "b": "out" }));
    bench.complete(&second, &failed(Outcome::Trapped, "trap", false, None));
    assert_eq!(bench.finish().0, RunStatus::Failed);

    let ended = bench.state.clone();
    bench.state = rewind(&bench.definition, &ended, &id("d"), false).unwrap();
    let again = bench.call();
    assert_eq!(again, second, "the same call, with the same key");
    bench.state = rewind(&bench.definition, &ended, &id("b"), true).unwrap();
    let anew = bench.call();
    assert_eq!(anew.input, json!({ "n": 1 }), "the later change of the variable is forgotten");
    assert_eq!(anew.idempotency_key, first.idempotency_key.replace(".0.0", ".0.1"));
}

#[test]
fn names_of_statuses_round_trip() {
    for status in RunStatus::ALL {
        assert_eq!(RunStatus::parse(status.as_str()), Some(*status));
        assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
    }
    for status in StepStatus::ALL {
        assert_eq!(StepStatus::parse(status.as_str()), Some(*status));
        assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
    }
}

/// Definitions without cycles, since every step names later ones only, but with whatever else may go wrong.
fn any_definition() -> impl Strategy<Value = Value> {
    let count = 7_usize;
    let step = move |i: usize| {
        let later = move || {
            proptest::option::of(
                (i + 1..count + 1).prop_map(move |to| if to < count { json!(format!("s{to}")) } else { json!("end") }),
            )
        };
        let text = prop_oneof![
            Just("{{ trigger.a }}"),
            Just("{{ trigger.body.a.b }}"),
            Just("{{ vars.n }}"),
            Just("x {{ vars.j }} {{ trigger }}"),
            Just("{{ vars.n | plus(1) }}"),
            Just("{{ trigger.a | default(1) }}"),
            Just("{{ trigger | tojson }}"),
            Just("plain"),
            Just("{{ vars.j | first | default('') }}"),
            Just("2026-12-01"),
        ];
        let field = prop_oneof![Just("trigger.a"), Just("trigger.b[*].c"), Just("vars.n"), Just("vars.j[0]")];
        let op = proptest::sample::select(vec!["eq", "ne", "gt", "lt"]);
        let test = (field, op, 0..3).prop_map(|(field, op, value)| json!({ "field": field, "op": op, "value": value }));
        prop_oneof![
            (test.clone(), later(), later())
                .prop_map(|(test, then, or)| json!({ "type": "condition", "if": test, "then": then, "else": or })),
            (test, later(), later()).prop_map(
                |(test, then, or)| json!({ "type": "switch", "cases": [{ "if": test, "then": then }], "else": or })
            ),
            (proptest::sample::select(vec!["n", "s", "j"]), text.clone(), later())
                .prop_map(|(var, text, next)| json!({ "type": "set", "vars": { var: text }, "next": next })),
            (1..100_000_000_u64, later()).prop_map(|(ms, next)| json!({ "type": "delay", "for_ms": ms, "next": next })),
            (text.clone(), any::<bool>(), proptest::option::of(any_json()), later(), later(), 1..4).prop_map(
                |(text, allow, fallback, next, on_error, attempts)| {
                    let mut step = json!({ "type": "action", "use": "x/y#z", "with": [text], "allow_failure": allow,
                        "next": next, "on_error": on_error, "retry": { "max_attempts": attempts } });
                    if let Some(fallback) = fallback {
                        step["fallback"] = fallback;
                    }
                    step
                }
            ),
            text.prop_map(|text| json!({ "type": "stop", "output": [text] })),
        ]
    };
    let steps: Vec<_> = (0..count).map(step).collect();
    steps.prop_map(move |steps| {
        let steps = steps.into_iter().enumerate().map(|(i, step)| (format!("s{i}"), step));
        with_steps(&Value::Object(steps.chain([("end".to_owned(), json!({ "type": "stop" }))]).collect()))
    })
}

fn any_result() -> impl Strategy<Value = CallResult> {
    let outcome = proptest::sample::select(Outcome::ALL.to_vec());
    let output = proptest::option::of(prop_oneof![any_json().prop_map(|value| value.to_string()), "[\\[{\"a1]{0,5}"]);
    let error = proptest::option::of((any::<bool>(), proptest::option::of(any::<u64>())).prop_map(
        |(retryable, retry_after_ms)| CallError {
            code: "code".to_owned(),
            message: String::new(),
            retryable,
            retry_after_ms,
            limit: None,
        },
    ));
    (outcome, output, error).prop_map(|(outcome, output, error)| CallResult { outcome, output, error })
}

proptest! {
    #[test]
    fn every_run_ends_and_a_rewound_one_takes_the_same_way(
        document in any_definition(),
        trigger in any_json(),
        results in proptest::collection::vec(any_result(), 1..12),
        seed: u64,
    ) {
        let definition = parse(&document);
        let mut bench = Bench::new(definition, trigger, &json!({}));
        bench.ambient = Ambient::manual(START, seed);
        let mut results = results.iter().cycle();
        let mut calls = 0;
        let mut first_state = None;
        // Seven steps of at most three attempts, each with a wait before: far fewer than this.
        for round in 0.. {
            prop_assert!(round < 60, "the run does not end: {:?}", bench.state);
            if first_state.is_none() && !bench.state.steps.is_empty() {
                first_state = Some(bench.state.clone());
            }
            match bench.advance() {
                Next::Call(call) => {
                    calls += 1;
                    prop_assert!(calls <= 21);
                    let verdict = bench.complete(&call, results.next().unwrap());
                    prop_assert!(verdict != StepVerdict::Stale);
                }
                Next::Wait { until, .. } => {
                    prop_assert!(until > bench.ambient.now());
                    bench.ambient.advance(until.since(bench.ambient.now()));
                }
                Next::Finish { status, .. } => {
                    prop_assert!(status.is_final());
                    break;
                }
            }
        }
        // Every step has exactly one final record.
        for id in bench.definition.steps.keys() {
            let finals = bench.records.iter().filter(|record| record.step == *id && record.status.is_final()).count();
            prop_assert_eq!(finals, 1, "{}: {:?}", id, bench.log());
        }
        // Back to any step that it came by: the state before it, and from there the same next thing.
        let ended = bench.state.clone();
        for (place, step) in ended.steps.keys().enumerate() {
            let mut rewound = rewind(&bench.definition, &ended, step, false).unwrap();
            prop_assert_eq!(rewound.steps.len(), place);
            prop_assert_eq!(rewound.cursor.as_ref(), Some(step));
            let again = advance(&bench.definition, &mut rewound, &bench.trigger, &facts(), bench.ambient.now());
            let reached: Vec<&StepId> = rewound.steps.keys().collect();
            let before: Vec<&StepId> = ended.steps.keys().take(reached.len()).collect();
            prop_assert_eq!(reached, before, "{:?}", again.next);
        }
    }

    #[test]
    fn keys_are_equal_only_for_equal_parts(a in "[a-c_-]{0,3}", b in "[a-c_-]{0,3}", i in 0_u32..3, j in 0_u32..3, g in 0_u32..3, h in 0_u32..3) {
        let key = |step: &str, iteration, generation| idempotency_key(facts().run, &id(&format!("s{step}")), iteration, generation);
        prop_assert_eq!(key(&a, i, g) == key(&b, j, h), (&a, i, g) == (&b, j, h));
        prop_assert!(key(&a, i, g).len() <= 128);
    }
}
