//! Schedule triggers carried out by real workers, with the clock moved by hand: each tick is fired, or dropped by the policy,
//! exactly once, whatever happens to clocks, workers and statements.

use std::collections::BTreeMap;
use std::time::Duration;

use bulkhead_app::heartbeat::LEASE_TTL;
use bulkhead_app::schedule::ScheduleDetail;
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::worker::{Slots, WorkerConfig};
use bulkhead_app::workflow::SaveWorkflow;
use bulkhead_app::{App, AppError};
use bulkhead_model::id::{WorkerId, WorkflowId};
use bulkhead_model::job::Lane;
use bulkhead_model::permission::{Permission, SystemReason, SystemScope};
use bulkhead_model::run::RunStatus;
use bulkhead_store::job::Turn;
use bulkhead_store::page::PageRequest;
use bulkhead_test_support::wait::until_async;
use serde_json::{Value, json};

use crate::support::{Options, PATIENCE, Tenant, TestApp, problems};

const HOUR: Duration = Duration::from_hours(1);
/// Within the grace: a tick that fires so late is in time.
const A_LITTLE: Duration = Duration::from_secs(5);

async fn work(app: &App) -> Supervisor {
    let supervisor = Supervisor::new();
    let config = WorkerConfig { name: "test".into(), slots: Slots::default(), heartbeat: None };
    app.start_worker(config, &supervisor).await.unwrap();
    supervisor
}

fn hourly() -> Value {
    json!({ "id": "tick", "type": "schedule", "cron": "0 * * * *" })
}

fn with(changes: &Value) -> Value {
    let mut trigger = hourly();
    trigger.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    trigger
}

fn definition(name: &str, triggers: &Value) -> SaveWorkflow {
    let definition = json!({
        "schema": 1, "name": name, "triggers": triggers, "start": "end",
        "steps": { "end": { "type": "stop", "output": "{{ trigger.scheduled_for }}" } },
    });
    SaveWorkflow { definition: definition.to_string(), summary: String::new() }
}

/// A workflow with one schedule, active.
async fn active(app: &TestApp, tenant: &Tenant, name: &str, trigger: &Value) -> WorkflowId {
    let save = definition(name, &json!([trigger]));
    let workflow = app.app.create_workflow(&tenant.caller, tenant.org, save).await.unwrap().workflow.id;
    app.app.set_workflow_active(&tenant.caller, tenant.org, workflow, true).await.unwrap();
    workflow
}

async fn update(app: &TestApp, tenant: &Tenant, workflow: WorkflowId, triggers: &Value) {
    let seen = app.app.show_workflow(&tenant.caller, tenant.org, workflow, None).await.unwrap().workflow;
    let save = definition(&seen.name, triggers);
    app.app.update_workflow(&tenant.caller, tenant.org, workflow, seen.revision, save).await.unwrap();
}

async fn try_show(app: &TestApp, tenant: &Tenant, workflow: WorkflowId) -> Result<ScheduleDetail, AppError> {
    Ok(app.app.list_schedules(&tenant.caller, tenant.org, workflow).await?.remove(0))
}

async fn show(app: &TestApp, tenant: &Tenant, workflow: WorkflowId) -> ScheduleDetail {
    try_show(app, tenant, workflow).await.unwrap()
}

/// The hour of the next tick, `09` say.
fn next_hour(schedule: &ScheduleDetail) -> String {
    schedule.next[0].tick.to_string()[11..13].to_owned()
}

/// Waits until every tick before this hour is settled.
async fn settled_until(app: &TestApp, tenant: &Tenant, workflow: WorkflowId, hour: &str) -> ScheduleDetail {
    let reached = until_async(PATIENCE, async || next_hour(&show(app, tenant, workflow).await) == hour).await;
    let found = show(app, tenant, workflow).await;
    assert!(reached, "{found:?}");
    found
}

/// What runs of the workflow were started for, in order: the hours of the ticks, and whether they were late.
async fn fired(app: &TestApp, tenant: &Tenant, workflow: WorkflowId) -> Vec<(String, bool)> {
    let page = PageRequest { limit: 200, ..PageRequest::default() };
    let runs = app.app.list_runs(&tenant.caller, tenant.org, None, Some(workflow), page).await.unwrap().items;
    let mut found = Vec::new();
    for run in runs {
        assert_eq!(run.trigger_kind, "schedule");
        let run = app.app.show_run(&tenant.caller, tenant.org, run.id).await.unwrap().run;
        let trigger: Value = serde_json::from_str(&run.trigger_data).unwrap();
        let at = trigger["scheduled_for"].as_str().unwrap();
        assert!(at.ends_with(":00:00.000000Z"), "{at}");
        found.push((at[8..13].to_owned(), trigger["late"].as_bool().unwrap()));
    }
    found.sort();
    found
}

fn tick(hour: &str, late: bool) -> (String, bool) {
    (format!("21T{hour}"), late)
}

async fn jobs(app: &TestApp, tenant: &Tenant) -> Vec<(String, String)> {
    let jobs = app.app.list_jobs(&tenant.caller, tenant.org, None, PageRequest::default()).await.unwrap().items;
    jobs.into_iter().map(|job| (job.kind, job.state)).collect()
}

on_both! {
    async fn a_schedule_fires_at_its_ticks_and_says_so(app: TestApp) {
        let acme = app.tenant("acme").await;
        let workflow = active(&app, &acme, "hourly", &hourly()).await;
        let before = show(&app, &acme, workflow).await;
        assert_eq!((before.armed, before.fired, before.last_run), (true, 0, None));
        let ticks: Vec<_> = before.next.iter().map(|next| next.tick.to_string()).collect();
        assert_eq!(ticks, ["2026-11-21T09:00:00.000000Z", "2026-11-21T10:00:00.000000Z", "2026-11-21T11:00:00.000000Z"]);
        assert_eq!(jobs(&app, &acme).await, [("fire_schedule".to_owned(), "future".to_owned())]);
        let supervisor = work(&app.app).await;
        app.ambient.advance(HOUR + A_LITTLE);
        let after = settled_until(&app, &acme, workflow, "10").await;
        assert_eq!((after.fired, after.late, after.missed, after.unmatched), (1, 0, 0, 0));
        assert_eq!(after.last_fired_at, Some(app.ambient.now()));
        let run = after.last_run.unwrap();
        let ended = until_async(PATIENCE, async || {
            app.app.show_run(&acme.caller, acme.org, run).await.unwrap().run.status == RunStatus::Succeeded
        });
        assert!(ended.await);
        let run = app.app.show_run(&acme.caller, acme.org, run).await.unwrap().run;
        assert_eq!(run.output.as_deref(), Some(r#""2026-11-21T09:00:00.000000Z""#));
        app.ambient.advance(HOUR);
        settled_until(&app, &acme, workflow, "11").await;
        assert_eq!(fired(&app, &acme, workflow).await, [tick("09", false), tick("10", false)]);
        let idle = until_async(PATIENCE, async || jobs(&app, &acme).await == [("fire_schedule".to_owned(), "future".to_owned())]);
        assert!(idle.await, "one job goes on for ever: {:?}", jobs(&app, &acme).await);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn missed_ticks_follow_the_policy_and_are_counted(app: TestApp) {
        let acme = app.tenant("acme").await;
        let mut workflows = BTreeMap::new();
        for policy in ["skip", "once", "all", "some"] {
            let misfire = if policy == "some" { "all" } else { policy };
            let max = if policy == "some" { 2 } else { 100 };
            let trigger = with(&json!({ "misfire": misfire, "misfire_max": max }));
            workflows.insert(policy, active(&app, &acme, policy, &trigger).await);
        }
        // Nobody works for more than three hours; the clock may as well have jumped.
        app.ambient.advance(3 * HOUR + Duration::from_mins(20));
        let supervisor = work(&app.app).await;
        let all: Vec<_> = ["09", "10", "11"].map(|hour| tick(hour, true)).into();
        for (policy, expected, missed) in [("skip", vec![], 3), ("once", all[2..].to_vec(), 2), ("all", all.clone(), 0), ("some", all[1..].to_vec(), 1)] {
            let found = settled_until(&app, &acme, workflows[policy], "12").await;
            let late = i64::try_from(expected.len()).unwrap();
            assert_eq!((found.fired, found.late, found.missed), (late, late, missed), "{policy}");
            assert_eq!(fired(&app, &acme, workflows[policy]).await, expected, "{policy}");
        }
        app.ambient.advance(Duration::from_mins(40));
        for (policy, workflow) in workflows {
            settled_until(&app, &acme, workflow, "13").await;
            assert_eq!(fired(&app, &acme, workflow).await.last(), Some(&tick("12", false)), "{policy}");
        }
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    /// On SQLite, where a worker takes every other one for dead, they even take each other's jobs away all the time.
    async fn two_workers_start_one_run_for_each_tick(app: TestApp) {
        let acme = app.tenant("acme").await;
        let other = app.again(Options::default());
        let (one, two) = (work(&app.app).await, work(&other).await);
        let mut workflows = Vec::new();
        for number in 0..12 {
            workflows.push(active(&app, &acme, &format!("workflow {number}"), &with(&json!({ "misfire": "all" }))).await);
        }
        for hour in ["10", "11", "12"] {
            app.ambient.advance(HOUR);
            for workflow in &workflows {
                settled_until(&app, &acme, *workflow, hour).await;
            }
        }
        for workflow in workflows {
            let hours: Vec<_> = fired(&app, &acme, workflow).await.into_iter().map(|(hour, _)| hour).collect();
            assert_eq!(hours, ["21T09", "21T10", "21T11"]);
            assert_eq!(show(&app, &acme, workflow).await.fired, 3);
        }
        assert!(one.shut_down(PATIENCE).await && two.shut_down(PATIENCE).await);
    }

    async fn a_worker_that_dies_with_the_job_delays_the_tick_and_doubles_nothing(app: TestApp) {
        let acme = app.tenant("acme").await;
        let workflow = active(&app, &acme, "hourly", &hourly()).await;
        app.ambient.advance(HOUR + A_LITTLE);
        let (jobs_scope, ghost, ambient) = (SystemScope::new(SystemReason::Jobs), WorkerId::new(&app.ambient), app.ambient.clone());
        let claimed = app
            .store
            .write_locked(&jobs_scope, (ghost, ambient), |tx, (ghost, ambient)| {
                Box::pin(async move {
                    let now = ambient.now();
                    tx.insert_worker(*ghost, "ghost", now, LEASE_TTL).await?;
                    tx.promote_jobs(now, 9).await?;
                    let orgs = tx.list_ready_orgs(Lane::System, None, 9).await?;
                    let turns: Vec<Turn> = orgs.into_iter().map(|(org, _)| Turn { org, quota: 9 }).collect();
                    let claimed = tx.claim_jobs(*ghost, Lane::System, &turns, now, Duration::from_mins(10)).await?.jobs;
                    tx.delete_worker(*ghost).await?;
                    Ok::<_, bulkhead_store::StoreError>(claimed.len())
                })
            })
            .await
            .unwrap();
        assert_eq!(claimed, 1);
        let supervisor = work(&app.app).await;
        settled_until(&app, &acme, workflow, "10").await;
        assert_eq!(fired(&app, &acme, workflow).await, [tick("09", false)]);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    /// Whichever statement fails, of the firing or around it, the ticks come one by one, each once.
    async fn a_failure_at_any_statement_doubles_and_loses_nothing(app: TestApp) {
        let acme = app.tenant("acme").await;
        let every = with(&json!({ "cron": "*/10 * * * *", "misfire": "all" }));
        let workflow = active(&app, &acme, "often", &every).await;
        let supervisor = work(&app.app).await;
        let rounds = 25_i64;
        for round in 1..=rounds {
            app.store.fault_hook().arm(round);
            app.ambient.advance(Duration::from_mins(10));
            // The pause after a failure goes by the clock, too; the tests's own questions may be what fails.
            let reached = until_async(PATIENCE, async || {
                app.ambient.advance(Duration::from_millis(100));
                try_show(&app, &acme, workflow).await.is_ok_and(|found| found.fired >= round)
            });
            assert!(reached.await, "round {round}: {:?} {:?}", show(&app, &acme, workflow).await, jobs(&app, &acme).await);
        }
        app.store.fault_hook().arm(0);
        let nothing_is_due = until_async(PATIENCE, async || {
            app.ambient.advance(Duration::from_millis(100));
            show(&app, &acme, workflow).await.next[0].tick > app.ambient.now()
        });
        assert!(nothing_is_due.await);
        let found = show(&app, &acme, workflow).await;
        assert_eq!(found.missed, 0);
        let page = PageRequest { limit: 200, ..PageRequest::default() };
        let runs = app.app.list_runs(&acme.caller, acme.org, None, Some(workflow), page).await.unwrap().items;
        let mut ticks = Vec::new();
        for run in runs {
            let run = app.app.show_run(&acme.caller, acme.org, run.id).await.unwrap().run;
            let trigger: Value = serde_json::from_str(&run.trigger_data).unwrap();
            ticks.push(trigger["scheduled_for"].as_str().unwrap().to_owned());
        }
        ticks.sort();
        let first = bulkhead_model::time::Timestamp::parse("2026-11-21T08:10:00Z").unwrap();
        let expected: Vec<_> = (0..u32::try_from(ticks.len()).unwrap())
            .map(|number| first.plus(number * Duration::from_mins(10)).to_string())
            .collect();
        assert_eq!(ticks, expected);
        assert_eq!(i64::try_from(ticks.len()).unwrap(), found.fired);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn a_deactivated_schedule_rests_and_begins_anew(app: TestApp) {
        let acme = app.tenant("acme").await;
        let (workflow, witness) = (active(&app, &acme, "rests", &hourly()).await, active(&app, &acme, "goes on", &hourly()).await);
        let set = async |on| app.app.set_workflow_active(&acme.caller, acme.org, workflow, on).await.unwrap();
        set(false).await;
        let resting = show(&app, &acme, workflow).await;
        assert!(!resting.armed);
        assert_eq!(next_hour(&resting), "09", "what it would be");
        assert_eq!(jobs(&app, &acme).await.len(), 1);
        let supervisor = work(&app.app).await;
        app.ambient.advance(HOUR + A_LITTLE);
        settled_until(&app, &acme, witness, "10").await;
        // A tick that passed while it rested was not missed.
        set(true).await;
        assert_eq!(next_hour(&show(&app, &acme, workflow).await), "10");
        app.ambient.advance(HOUR);
        let found = settled_until(&app, &acme, workflow, "11").await;
        assert_eq!((found.fired, found.missed), (1, 0));
        assert_eq!(fired(&app, &acme, workflow).await, [tick("10", false)]);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn a_new_version_keeps_what_it_did_not_change(app: TestApp) {
        let acme = app.tenant("acme").await;
        let nightly = json!({ "id": "nightly", "type": "schedule", "cron": "0 2 * * *" });
        let save = definition("two", &json!([hourly(), nightly]));
        let workflow = app.app.create_workflow(&acme.caller, acme.org, save).await.unwrap().workflow.id;
        assert_eq!(jobs(&app, &acme).await, [], "an inactive workflow has no job");
        app.app.set_workflow_active(&acme.caller, acme.org, workflow, true).await.unwrap();
        assert_eq!(jobs(&app, &acme).await.len(), 2);
        // The tick of nine is overdue when the new version is saved: it is not lost, and starts the new version.
        app.ambient.advance(HOUR + A_LITTLE);
        update(&app, &acme, workflow, &json!([with(&json!({ "misfire": "skip" }))])).await;
        assert_eq!(next_hour(&show(&app, &acme, workflow).await), "09");
        assert_eq!(jobs(&app, &acme).await.len(), 1, "the trigger that is gone has no job");
        let supervisor = work(&app.app).await;
        let found = settled_until(&app, &acme, workflow, "10").await;
        let run = app.app.show_run(&acme.caller, acme.org, found.last_run.unwrap()).await.unwrap().run;
        assert_eq!(run.version, 2);
        // Another rule begins with its first tick after the save.
        update(&app, &acme, workflow, &json!([with(&json!({ "cron": "30 * * * *" }))])).await;
        let found = show(&app, &acme, workflow).await;
        assert_eq!(found.next[0].tick.to_string(), "2026-11-21T09:30:00.000000Z");
        assert_eq!(found.fired, 1, "what fired stays on record");
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn a_clock_that_is_set_back_fires_no_tick_again(app: TestApp) {
        let acme = app.tenant("acme").await;
        let workflow = active(&app, &acme, "hourly", &hourly()).await;
        let supervisor = work(&app.app).await;
        app.ambient.advance(HOUR + A_LITTLE);
        settled_until(&app, &acme, workflow, "10").await;
        app.ambient.set_back(HOUR);
        // Not even when it is armed anew under the earlier time, nor when nine comes a second time.
        for on in [false, true] {
            app.app.set_workflow_active(&acme.caller, acme.org, workflow, on).await.unwrap();
        }
        assert_eq!(next_hour(&show(&app, &acme, workflow).await), "10");
        let witness = active(&app, &acme, "began under the earlier time", &hourly()).await;
        app.ambient.advance(HOUR);
        settled_until(&app, &acme, witness, "10").await;
        assert_eq!(fired(&app, &acme, workflow).await, [tick("09", false)]);
        // Forward by an hour and a half at once: the policy's business.
        app.ambient.advance(HOUR + HOUR / 2);
        let found = settled_until(&app, &acme, workflow, "11").await;
        assert_eq!((found.fired, found.late), (2, 1));
        assert_eq!(fired(&app, &acme, workflow).await, [tick("09", false), tick("10", true)]);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn ticks_at_which_the_conditions_do_not_hold_start_nothing(app: TestApp) {
        let acme = app.tenant("acme").await;
        let when = json!({ "when": { "field": "trigger.scheduled_for", "op": "contains", "value": "T10:" } });
        let workflow = active(&app, &acme, "at ten", &with(&when)).await;
        let supervisor = work(&app.app).await;
        app.ambient.advance(HOUR + A_LITTLE);
        let found = settled_until(&app, &acme, workflow, "10").await;
        assert_eq!((found.fired, found.unmatched, found.last_run), (0, 1, None));
        app.ambient.advance(HOUR);
        let found = settled_until(&app, &acme, workflow, "11").await;
        assert_eq!((found.fired, found.unmatched), (1, 1));
        assert_eq!(fired(&app, &acme, workflow).await, [tick("10", false)]);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn the_spread_sets_organizations_apart(app: TestApp) {
        let mut offsets = Vec::new();
        for slug in ["acme", "other"] {
            let tenant = app.tenant(slug).await;
            let workflow = active(&app, &tenant, "spread", &with(&json!({ "spread_s": 3600 }))).await;
            let found = show(&app, &tenant, workflow).await;
            assert!(found.offset < HOUR);
            let fires_at = found.next[0].fires_at;
            assert_eq!(fires_at, found.next[0].tick.plus(found.offset));
            let jobs = app.app.list_jobs(&tenant.caller, tenant.org, None, PageRequest::default()).await.unwrap().items;
            assert_eq!(jobs[0].run_at, fires_at);
            offsets.push(found.offset);
        }
        assert_ne!(offsets[0], offsets[1]);
    }

    async fn another_organization_sees_no_schedule(app: TestApp) {
        let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
        let workflow = active(&app, &acme, "hourly", &hourly()).await;
        let listed = app.app.list_schedules(&other.caller, other.org, workflow).await;
        assert!(matches!(listed, Err(AppError::NotFound { .. })));
        let listed = app.app.list_schedules(&other.caller, acme.org, workflow).await;
        assert!(matches!(listed, Err(AppError::NotFound { .. })));
        let lesser = acme.only(&[Permission::RunsRead]);
        let listed = app.app.list_schedules(&lesser, acme.org, workflow).await;
        assert!(matches!(listed, Err(AppError::Forbidden(Permission::WorkflowsRead))));
        let broken = definition("broken", &json!([with(&json!({ "cron": "0 0 31 2 *" }))]));
        let refused = app.app.create_workflow(&acme.caller, acme.org, broken).await;
        assert_eq!(problems(refused, "invalid-workflow"), [("/definition/triggers/0/cron".to_owned(), "never-fires".to_owned())]);
    }
}
