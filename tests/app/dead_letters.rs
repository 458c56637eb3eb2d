//! Dead letters: what fails for good is listed by fault, and resumed or discarded, one by one or many at once, each once.

use std::collections::BTreeMap;
use std::time::Duration;

use bulkhead_app::data::{DeadLetter, DeadLetterAction, DeadLetterFilter, DeadLetterTask, TaskState};
use bulkhead_app::dead_letter::{Fault, IDS_MAX, Selection, TASKS_RUNNING_MAX};
use bulkhead_app::run::{RetryRun, StartByHand};
use bulkhead_app::schedule::ScheduleDetail;
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::worker::{Slots, WorkerConfig};
use bulkhead_app::workflow::SaveWorkflow;
use bulkhead_app::{App, AppError};
use bulkhead_model::id::{DeadLetterTaskId, RunId, WorkflowId};
use bulkhead_model::job::JobPayload;
use bulkhead_model::permission::{Permission, SystemReason, SystemScope};
use bulkhead_model::quota::Quota;
use bulkhead_model::retention::RetentionPolicy;
use bulkhead_model::run::RunStatus;
use bulkhead_store::job::NewJob;
use bulkhead_store::page::PageRequest;
use bulkhead_test_support::wait::until_async;
use serde_json::{Map, Value, json};

use crate::guests::acme_echo;
use crate::support::{PATIENCE, Tenant, TestApp, conflict, problems};

async fn work(app: &App) -> Supervisor {
    let supervisor = Supervisor::new();
    let config = WorkerConfig { name: "test".into(), slots: Slots::default(), heartbeat: None };
    app.start_worker(config, &supervisor).await.unwrap();
    supervisor
}

/// A workflow that fails until its plugin is installed.
async fn fragile(app: &TestApp, tenant: &Tenant, name: &str, extra_trigger: Option<Value>) -> WorkflowId {
    let mut triggers = vec![json!({ "id": "by-hand", "type": "api" })];
    triggers.extend(extra_trigger);
    let definition = json!({
        "schema": 1, "name": name, "triggers": triggers, "start": "first",
        "steps": {
            "first": { "type": "condition", "if": { "field": "trigger.body.n", "op": "gt", "value": 0 }, "then": "send" },
            "send": { "type": "action", "use": "acme/echo#it", "with": { "seen": 1 } },
        },
    });
    let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
    app.app.create_workflow(&tenant.caller, tenant.org, save).await.unwrap().workflow.id
}

async fn begin(app: &TestApp, tenant: &Tenant, workflow: WorkflowId) -> RunId {
    let start = StartByHand { input: json!({ "n": 7 }), variables: Map::new(), idempotency_key: None };
    app.app.start_run(&tenant.caller, tenant.org, workflow, start).await.unwrap()
}

/// Runs of several workflows, so that none of them fails too often at once.
async fn begin_many(app: &TestApp, tenant: &Tenant, workflows: usize, runs_each: usize) -> Vec<RunId> {
    let mut runs = Vec::new();
    for number in 0..workflows {
        let workflow = fragile(app, tenant, &format!("number {number}"), None).await;
        for _ in 0..runs_each {
            runs.push(begin(app, tenant, workflow).await);
        }
    }
    runs
}

async fn until_status(app: &TestApp, tenant: &Tenant, run: RunId, status: RunStatus) {
    let reached = until_async(PATIENCE, async || {
        app.app.show_run(&tenant.caller, tenant.org, run).await.unwrap().run.status == status
    });
    assert!(reached.await, "{run} does not come to be {status:?}");
}

async fn letters(app: &TestApp, tenant: &Tenant) -> Vec<DeadLetter> {
    let page = PageRequest { before: None, limit: 200 };
    let filter = DeadLetterFilter::default();
    app.app.list_dead_letters(&tenant.caller, tenant.org, filter, page).await.unwrap().items
}

async fn faults(app: &TestApp, tenant: &Tenant) -> Vec<Fault> {
    app.app.list_faults(&tenant.caller, tenant.org, None, 50).await.unwrap()
}

async fn task_ended(app: &TestApp, tenant: &Tenant, id: DeadLetterTaskId) -> DeadLetterTask {
    let show = async || app.app.show_dead_letter_task(&tenant.caller, tenant.org, id).await.unwrap();
    let ended = until_async(PATIENCE, async || show().await.state != TaskState::Running).await;
    let task = show().await;
    assert!(ended, "{task:?}");
    task
}

/// The kinds of the run's log, counted.
async fn log(app: &TestApp, tenant: &Tenant, run: RunId) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for event in app.app.list_run_events(&tenant.caller, tenant.org, run, 0, 1_000).await.unwrap() {
        *kinds.entry(event.kind).or_default() += 1;
    }
    kinds
}

async fn install_echo(app: &TestApp, tenant: &Tenant) {
    app.install(tenant, acme_echo(), json!({})).await;
}

fn by_kind(kind: &str) -> Selection {
    Selection { kind: Some(kind.to_owned()), ..Selection::default() }
}

on_both! {
    async fn a_failed_run_is_listed_resumed_and_discarded(app: TestApp) {
        let acme = app.tenant("acme").await;
        let supervisor = work(&app.app).await;
        let (one, two) = (fragile(&app, &acme, "one", None).await, fragile(&app, &acme, "two", None).await);
        let (first, second) = (begin(&app, &acme, one).await, begin(&app, &acme, two).await);
        for run in [first, second] {
            until_status(&app, &acme, run, RunStatus::Failed).await;
        }
        let listed = letters(&app, &acme).await;
        assert_eq!(listed.len(), 2);
        let of = |run: RunId| listed.iter().find(|letter| letter.new.run == Some(run)).unwrap().clone();
        assert_eq!((of(first).new.step.as_deref(), of(first).new.workflow), (Some("send"), Some(one)));
        let shown = app.app.show_run(&acme.caller, acme.org, first).await.unwrap();
        assert_eq!(shown.dead_letter.as_ref(), Some(&of(first)), "a failed run says so");
        let found = faults(&app, &acme).await;
        assert_eq!((found.len(), found[0].group.count), (1, 2), "one cause is one fault, however many workflows it fails");
        let mut workflows = [one, two];
        workflows.sort_by_key(|workflow| workflow.uuid());
        assert_eq!(found[0].workflows, workflows);

        // Nobody resumes without the right to, and a refusal leaves everything as it is.
        let reader = acme.only(&[Permission::RunsRead]);
        let retry = RetryRun::default;
        let (org, id) = (acme.org, of(first).id);
        assert!(matches!(app.app.resume_dead_letter(&reader, org, id, retry()).await, Err(AppError::Forbidden(Permission::RunsControl))));
        assert!(matches!(app.app.discard_dead_letter(&reader, org, id, "x".into()).await, Err(AppError::Forbidden(_))));
        let nowhere = RetryRun { from_step: Some("nowhere".into()), new_generation: false };
        problems(app.app.resume_dead_letter(&acme.caller, org, id, nowhere).await, "unknown-step");
        problems(app.app.discard_dead_letter(&acme.caller, org, id, " ".into()).await, "invalid-reason");
        assert_eq!(letters(&app, &acme).await, listed);

        install_echo(&app, &acme).await;
        app.app.resume_dead_letter(&acme.caller, org, id, retry()).await.unwrap();
        until_status(&app, &acme, first, RunStatus::Succeeded).await;
        assert!(matches!(app.app.resume_dead_letter(&acme.caller, org, id, retry()).await, Err(AppError::NotFound { .. })));
        assert_eq!(letters(&app, &acme).await, [of(second)]);
        assert_eq!(app.audit(&acme, "run.retried").await.len(), 1);

        app.app.discard_dead_letter(&acme.caller, org, of(second).id, "the customer left".into()).await.unwrap();
        assert!(letters(&app, &acme).await.is_empty() && faults(&app, &acme).await.is_empty());
        let shown = app.app.show_run(&acme.caller, org, second).await.unwrap();
        assert_eq!((shown.run.status, shown.dead_letter), (RunStatus::Failed, None));
        assert_eq!(log(&app, &acme, second).await["discarded"], 1);
        let audited = app.audit(&acme, "dead_letter.discarded").await;
        assert_eq!(audited[0].detail["reason"], "the customer left");
        assert!(matches!(app.app.discard_dead_letter(&acme.caller, org, of(second).id, "x".into()).await, Err(AppError::NotFound { .. })));

        // A retry from the run itself takes it off the list as well.
        let third = begin(&app, &acme, one).await;
        until_status(&app, &acme, third, RunStatus::Succeeded).await;
        app.app.retry_run(&acme.caller, org, second, retry()).await.unwrap();
        until_status(&app, &acme, second, RunStatus::Succeeded).await;
        supervisor.shut_down(PATIENCE).await;
    }

    /// Its job was given up while it could not be ended; somebody cancels it then. Nothing is left to be decided, or to stay for ever.
    async fn a_cancelled_run_leaves_no_entry(app: TestApp) {
        let acme = app.tenant("acme").await;
        let workflow = fragile(&app, &acme, "one", None).await;
        let run = begin(&app, &acme, workflow).await;
        let scope = SystemScope::new(SystemReason::Worker).for_org(acme.org);
        let letter = bulkhead_store::dead_letter::NewDeadLetter {
            fingerprint: "0123456789abcdef".parse().unwrap(),
            kind: "advance_run".to_owned(),
            subject: run.to_string(),
            workflow: None,
            run: Some(run),
            job: None,
            step: None,
            code: "host-fault".to_owned(),
            message: "its row did not decode".to_owned(),
        };
        let recorded = app.store.write_locked(&scope, (letter, app.ambient.clone()), |tx, (letter, ambient)| {
            Box::pin(async move { tx.record_dead_letter(letter, ambient).await })
        });
        recorded.await.unwrap();
        app.app.cancel_run(&acme.caller, acme.org, run).await.unwrap();
        assert!(letters(&app, &acme).await.is_empty());
        let kept = app.store.read(&scope, run, |tx, run| Box::pin(async move { tx.require_run(*run).await })).await.unwrap().kept;
        assert!(!kept.dead_letter, "it goes when the time of cancelled runs is over");
    }

    /// What its definition ends as failed waits for nobody.
    async fn a_run_that_was_meant_to_fail_is_not_listed(app: TestApp) {
        let acme = app.tenant("acme").await;
        let supervisor = work(&app.app).await;
        let definition = json!({
            "schema": 1, "name": "refuses", "triggers": [{ "id": "by-hand", "type": "api" }], "start": "end",
            "steps": { "end": { "type": "stop", "status": "failed" } },
        });
        let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
        let workflow = app.app.create_workflow(&acme.caller, acme.org, save).await.unwrap().workflow.id;
        let run = begin(&app, &acme, workflow).await;
        until_status(&app, &acme, run, RunStatus::Failed).await;
        assert!(letters(&app, &acme).await.is_empty());
        supervisor.shut_down(PATIENCE).await;
    }

    async fn two_who_resume_all_at_once_resume_each_run_once(app: TestApp) {
        let acme = app.tenant("acme").await;
        let supervisor = work(&app.app).await;
        let runs = begin_many(&app, &acme, 3, 15).await;
        for run in &runs {
            until_status(&app, &acme, *run, RunStatus::Failed).await;
        }
        install_echo(&app, &acme).await;
        let fingerprint = faults(&app, &acme).await[0].group.newest.new.fingerprint.clone();
        let by_fault = Selection { fingerprint: Some(fingerprint), ..Selection::default() };
        let ids = letters(&app, &acme).await.iter().map(|letter| letter.id).collect();
        let by_id = Selection { ids, from_step: Some("first".into()), ..Selection::default() };
        let start = |selection| app.app.start_dead_letter_task(&acme.caller, acme.org, DeadLetterAction::Resume, selection);
        let (one, two) = tokio::join!(start(by_fault), start(by_id));
        let (one, two) = (task_ended(&app, &acme, one.unwrap().id).await, task_ended(&app, &acme, two.unwrap().id).await);
        assert_eq!((one.state, two.state, one.done + two.done), (TaskState::Done, TaskState::Done, 45), "{one:?} {two:?}");
        assert_eq!((two.seen, two.seen - two.done), (45, two.skipped), "{two:?}");
        for run in &runs {
            until_status(&app, &acme, *run, RunStatus::Succeeded).await;
            assert_eq!(log(&app, &acme, *run).await["retried"], 1);
        }
        assert!(letters(&app, &acme).await.is_empty());
        let started = app.audit(&acme, "dead_letter_task.started").await;
        assert_eq!((started.len(), app.audit(&acme, "dead_letter_task.ended").await.len()), (2, 2));
        let listed = app.app.list_dead_letter_tasks(&acme.caller, acme.org, PageRequest::default()).await.unwrap().items;
        assert_eq!(listed.len(), 2);
        assert_eq!(conflict(app.app.stop_dead_letter_task(&acme.caller, acme.org, one.id).await), "task-finished");
        supervisor.shut_down(PATIENCE).await;
    }

    /// What fails again while a task goes on is newer than the task: it is not resumed for ever.
    async fn a_task_touches_nothing_that_fails_after_it_began(app: TestApp) {
        let acme = app.tenant("acme").await;
        let supervisor = work(&app.app).await;
        let runs = begin_many(&app, &acme, 5, 5).await;
        for run in &runs {
            until_status(&app, &acme, *run, RunStatus::Failed).await;
        }
        app.ambient.advance(Duration::from_secs(1));
        let start = app.app.start_dead_letter_task(&acme.caller, acme.org, DeadLetterAction::Resume, by_kind("run"));
        let id = start.await.unwrap().id;
        app.ambient.advance(Duration::from_secs(1));
        let task = task_ended(&app, &acme, id).await;
        assert_eq!((task.seen, task.done, task.skipped), (25, 25, 0), "{task:?}");
        let again = until_async(PATIENCE, async || letters(&app, &acme).await.len() == 25).await;
        assert!(again, "they fail again, and are listed again");
        for run in &runs {
            assert_eq!(log(&app, &acme, *run).await["retried"], 1);
        }
        supervisor.shut_down(PATIENCE).await;
    }

    async fn many_are_discarded_and_a_task_is_stopped(app: TestApp) {
        let acme = app.tenant("acme").await;
        let supervisor = work(&app.app).await;
        let workflow = fragile(&app, &acme, "one", None).await;
        let (first, second) = (begin(&app, &acme, workflow).await, begin(&app, &acme, workflow).await);
        for run in [first, second] {
            until_status(&app, &acme, run, RunStatus::Failed).await;
        }
        let unknown = Selection { from_step: Some("nowhere".into()), ..by_kind("run") };
        let start = |action, selection| app.app.start_dead_letter_task(&acme.caller, acme.org, action, selection);
        let left = start(DeadLetterAction::Resume, unknown).await.unwrap();
        let left = task_ended(&app, &acme, left.id).await;
        assert_eq!((left.done, left.skipped), (0, 2));
        assert!(left.skipped_why.unwrap().contains("no such step"));
        assert_eq!(letters(&app, &acme).await.len(), 2, "what cannot be resumed stays on the list");

        let reason = Some("not needed any more".to_owned());
        let task = start(DeadLetterAction::Discard, Selection { reason, ..by_kind("run") }).await.unwrap();
        let task = task_ended(&app, &acme, task.id).await;
        assert_eq!((task.state, task.done), (TaskState::Done, 2));
        assert!(letters(&app, &acme).await.is_empty());
        assert_eq!(log(&app, &acme, first).await["discarded"], 1);
        supervisor.shut_down(PATIENCE).await;

        // Nobody works: the task waits, and is stopped before it begins.
        let waits = start(DeadLetterAction::Resume, by_kind("run")).await.unwrap();
        let stopped = app.app.stop_dead_letter_task(&acme.caller, acme.org, waits.id).await.unwrap();
        assert_eq!((stopped.state, stopped.seen), (TaskState::Stopped, 0));
        let jobs = app.app.list_jobs(&acme.caller, acme.org, None, PageRequest::default()).await.unwrap().items;
        assert!(jobs.iter().all(|job| job.kind != "work_dead_letters"), "{jobs:?}");
    }

    /// What sleeps holds as much as the history may: nothing is begun again then, one by one or many at once, and nothing is given up.
    async fn resuming_needs_room(app: TestApp) {
        let acme = app.tenant("acme").await;
        let supervisor = work(&app.app).await;
        let workflow = fragile(&app, &acme, "one", None).await;
        let runs = [begin(&app, &acme, workflow).await, begin(&app, &acme, workflow).await];
        for run in runs {
            until_status(&app, &acme, run, RunStatus::Failed).await;
        }
        let definition = json!({
            "schema": 1, "name": "sleeps", "triggers": [{ "id": "by-hand", "type": "api" }], "start": "wait",
            "steps": { "wait": { "type": "delay", "for": "9d" } },
        });
        let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
        let sleeps = app.app.create_workflow(&acme.caller, acme.org, save).await.unwrap().workflow.id;
        for _ in 0..3 {
            let input = json!({ "big": "x".repeat(400 * 1024) });
            let start = StartByHand { input, variables: Map::new(), idempotency_key: None };
            let run = app.app.start_run(&acme.caller, acme.org, sleeps, start).await.unwrap();
            until_status(&app, &acme, run, RunStatus::Waiting).await;
        }
        app.app.set_quota(acme.org, Quota::HistoryBytes, 1024 * 1024).await.unwrap();
        install_echo(&app, &acme).await;
        let id = letters(&app, &acme).await[0].id;
        let refused = app.app.resume_dead_letter(&acme.caller, acme.org, id, RetryRun::default()).await;
        assert!(matches!(&refused, Err(AppError::Quota(over)) if over.quota == Quota::HistoryBytes), "{refused:?}");

        let task = app.app.start_dead_letter_task(&acme.caller, acme.org, DeadLetterAction::Resume, by_kind("run")).await.unwrap();
        let job = async || {
            let jobs = app.app.list_jobs(&acme.caller, acme.org, None, PageRequest::default()).await.unwrap().items;
            jobs.into_iter().find(|job| job.kind == "work_dead_letters")
        };
        // It comes back each minute, however often, and no attempt is counted.
        for _ in 0..3 {
            let paused = until_async(PATIENCE, async || job().await.is_some_and(|job| job.state == "future")).await;
            let found = job().await;
            assert!(paused, "{found:?}");
            assert_eq!(found.unwrap().attempt, 0);
            let task = app.app.show_dead_letter_task(&acme.caller, acme.org, task.id).await.unwrap();
            assert_eq!((task.state, task.seen), (TaskState::Running, 0));
            app.ambient.advance(Duration::from_secs(61));
        }
        app.app.set_quota(acme.org, Quota::HistoryBytes, 2 * 1024 * 1024).await.unwrap();
        app.ambient.advance(Duration::from_secs(61));
        let task = task_ended(&app, &acme, task.id).await;
        assert_eq!((task.state, task.done), (TaskState::Done, 2), "{task:?}");
        for run in runs {
            until_status(&app, &acme, run, RunStatus::Succeeded).await;
        }
        supervisor.shut_down(PATIENCE).await;
    }

    async fn so_many_tasks_go_on_at_once_and_ended_ones_go_with_the_events(app: TestApp) {
        let acme = app.tenant("acme").await;
        let other = app.tenant("other").await;
        let start = async |tenant: &Tenant| {
            app.app.start_dead_letter_task(&tenant.caller, tenant.org, DeadLetterAction::Resume, by_kind("run")).await
        };
        let mut tasks = Vec::new();
        for _ in 0..TASKS_RUNNING_MAX {
            tasks.push(start(&acme).await.unwrap().id);
        }
        assert_eq!(conflict(start(&acme).await), "too-many-tasks");
        start(&other).await.unwrap();
        app.app.stop_dead_letter_task(&acme.caller, acme.org, tasks[0]).await.unwrap();
        tasks.push(start(&acme).await.unwrap().id);
        let supervisor = work(&app.app).await;
        for task in &tasks {
            task_ended(&app, &acme, *task).await;
        }
        let list = async || app.app.list_dead_letter_tasks(&acme.caller, acme.org, PageRequest::default()).await.unwrap().items;
        assert_eq!(list().await.len(), tasks.len());
        // Events are kept for thirty days.
        app.ambient.advance(Duration::from_hours(31 * 24));
        // The job that removes looks at once where the policy changed.
        let policy = RetentionPolicy { succeeded_days: 7, ..RetentionPolicy::default() };
        app.app.replace_retention(&acme.caller, acme.org, 0, policy).await.unwrap();
        assert!(until_async(PATIENCE, async || list().await.is_empty()).await, "{:?}", list().await);
        supervisor.shut_down(PATIENCE).await;
    }

    async fn a_selection_says_what_it_means(app: TestApp) {
        let acme = app.tenant("acme").await;
        let start = |action, selection| app.app.start_dead_letter_task(&acme.caller, acme.org, action, selection);
        let id = bulkhead_model::id::DeadLetterId::new(&app.ambient);
        let ids = |count| Selection { ids: vec![id; count], ..Selection::default() };
        for selection in [Selection::default(), Selection { ids: vec![id], ..by_kind("run") }, ids(IDS_MAX + 1)] {
            problems(start(DeadLetterAction::Resume, selection).await, "invalid-selection");
        }
        let reason = Some("x".to_owned());
        problems(start(DeadLetterAction::Resume, Selection { reason: reason.clone(), ..ids(1) }).await, "invalid-selection");
        let with_step = Selection { reason, from_step: Some("send".into()), ..ids(1) };
        problems(start(DeadLetterAction::Discard, with_step).await, "invalid-selection");
        problems(start(DeadLetterAction::Discard, ids(1)).await, "invalid-reason");
        let reader = acme.only(&[Permission::RunsRead]);
        let refused = app.app.start_dead_letter_task(&reader, acme.org, DeadLetterAction::Resume, by_kind("run")).await;
        assert!(matches!(refused, Err(AppError::Forbidden(Permission::RunsControl))));
    }

    /// A schedule whose workers die of it, or whose job is gone, says so and comes back by itself.
    async fn a_schedule_never_stops_without_a_word(app: TestApp) {
        let acme = app.tenant("acme").await;
        install_echo(&app, &acme).await;
        let hourly = json!({ "id": "tick", "type": "schedule", "cron": "0 * * * *" });
        let workflow = fragile(&app, &acme, "hourly", Some(hourly)).await;
        app.app.set_workflow_active(&acme.caller, acme.org, workflow, true).await.unwrap();
        let show = async || -> ScheduleDetail {
            app.app.list_schedules(&acme.caller, acme.org, workflow).await.unwrap().remove(0)
        };
        // Its job as it stands after too many deaths.
        let scope = SystemScope::new(SystemReason::Worker).for_org(acme.org);
        let key = format!("{workflow}:tick");
        let job = NewJob {
            payload: JobPayload::FireSchedule { workflow, trigger: "tick".parse().unwrap() },
            priority: 100,
            run_at: app.ambient.now(),
            dedupe_key: Some(key.clone()),
            attempts_max: 0,
            group: None,
        };
        let args = (key.clone(), job, app.ambient.clone());
        let replaced = app.store.write_locked(&scope, args, |tx, (key, job, ambient)| {
            Box::pin(async move {
                assert!(tx.remove_waiting_job("fire_schedule", key).await?);
                tx.enqueue(job, ambient).await
            })
        });
        replaced.await.unwrap().unwrap();
        let supervisor = work(&app.app).await;
        assert!(until_async(PATIENCE, async || show().await.trouble.is_some()).await);
        let stalled = show().await;
        let trouble = stalled.trouble.unwrap();
        assert!(stalled.armed && trouble.message.contains("worker died"), "{trouble:?}");
        assert_eq!(trouble.next_attempt_at, Some(app.ambient.now().plus(Duration::from_mins(15))));
        let listed = letters(&app, &acme).await;
        assert_eq!((listed.len(), listed[0].id, listed[0].new.kind.as_str()), (1, trouble.dead_letter, "fire_schedule"));
        supervisor.shut_down(PATIENCE).await;

        // Its job is lost altogether; the next tick is fired all the same, and the trouble is over.
        let removed = app.store.write_locked(&scope, key, |tx, key| {
            Box::pin(async move { tx.remove_waiting_job("fire_schedule", key).await })
        });
        assert!(removed.await.unwrap());
        app.ambient.advance(Duration::from_mins(62));
        let supervisor = work(&app.app).await;
        assert!(until_async(PATIENCE, async || show().await.fired == 1).await, "{:?}", show().await);
        assert_eq!(show().await.trouble, None);
        let kinds: Vec<String> = letters(&app, &acme).await.into_iter().map(|letter| letter.new.kind).collect();
        assert!(!kinds.contains(&"fire_schedule".to_owned()), "{kinds:?}");
        supervisor.shut_down(PATIENCE).await;
    }

    /// Resuming a stalled schedule lets it fire at once.
    async fn a_stalled_schedule_is_resumed(app: TestApp) {
        let acme = app.tenant("acme").await;
        install_echo(&app, &acme).await;
        let hourly = json!({ "id": "tick", "type": "schedule", "cron": "0 * * * *" });
        let workflow = fragile(&app, &acme, "hourly", Some(hourly)).await;
        app.app.set_workflow_active(&acme.caller, acme.org, workflow, true).await.unwrap();
        let scope = SystemScope::new(SystemReason::Worker).for_org(acme.org);
        let letter = bulkhead_store::dead_letter::NewDeadLetter {
            fingerprint: "0123456789abcdef".parse().unwrap(),
            kind: "fire_schedule".to_owned(),
            subject: format!("{workflow}:tick"),
            workflow: Some(workflow),
            run: None,
            job: None,
            step: Some("tick".to_owned()),
            code: "worker-died".to_owned(),
            message: "its worker died".to_owned(),
        };
        let args = (letter, app.ambient.clone());
        let recorded = app.store.write_locked(&scope, args, |tx, (letter, ambient)| {
            Box::pin(async move { tx.record_dead_letter(letter, ambient).await })
        });
        recorded.await.unwrap();
        let before = app.app.list_jobs(&acme.caller, acme.org, None, PageRequest::default()).await.unwrap().items;
        assert_eq!((before.len(), before[0].state.as_str()), (1, "future"));
        let id = letters(&app, &acme).await[0].id;
        app.app.resume_dead_letter(&acme.caller, acme.org, id, RetryRun::default()).await.unwrap();
        let after = app.app.list_jobs(&acme.caller, acme.org, None, PageRequest::default()).await.unwrap().items;
        assert_eq!((after[0].id, after[0].state.as_str()), (before[0].id, "ready"));
        assert!(letters(&app, &acme).await.is_empty());
        assert_eq!(app.audit(&acme, "dead_letter.resumed").await.len(), 1);
        // Deactivating a workflow takes what its schedules put on the list with it.
        app.app.set_workflow_active(&acme.caller, acme.org, workflow, false).await.unwrap();
    }
}
