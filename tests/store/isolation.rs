//! No method reaches into another organization: with B's scope, A's rows are not there.

use std::collections::BTreeSet;
use std::time::Duration;

use bulkhead_audit::retention::PayloadRetention;
use bulkhead_audit::taxonomy::{Category, EventType};
use bulkhead_model::grant::{GrantVersion, Grants};
use bulkhead_model::id::{AuditId, CallId, DeadLetterId, EventId, MailId, RunId};
use bulkhead_model::job::{JobPayload, Lane};
use bulkhead_model::letter::Letter;
use bulkhead_model::mfa::{Method, MfaPolicy, SignInPolicy};
use bulkhead_model::permission::{AccountScope, Actor, OrgScope, SystemReason};
use bulkhead_model::quota::{Quota, Quotas};
use bulkhead_model::retention::{EndedRun, RetentionPolicy};
use bulkhead_model::run::RunStatus;
use bulkhead_model::throttle::Failures;
use bulkhead_model::time::Timestamp;
use bulkhead_store::advance::Told;
use bulkhead_store::api_key::KeyUsage;
use bulkhead_store::audit::AuditFilter;
use bulkhead_store::audit_log::{AuditBacklog, AuditLog};
use bulkhead_store::call::CallBytes;
use bulkhead_store::dead_letter::task::TaskState;
use bulkhead_store::dead_letter::{DeadLetterFilter, NewDeadLetter};
use bulkhead_store::job::Attempt;
use bulkhead_store::job::look::LiveJob;
use bulkhead_store::mfa::StoredBackupCode;
use bulkhead_store::node::NodeSlots;
use bulkhead_store::page::PageRequest;
use bulkhead_store::plugin::PluginCount;
use bulkhead_store::prune::{EndedPlace, EndedRow, Removal};
use bulkhead_store::run::RunEvent;
use bulkhead_store::{STATEMENT_SOURCES, StoreError};
use serde_json::json;

use crate::support::{JOBS, PEOPLE, Tenant, TestStore, ambient, sealed_audit};

mod access;
mod keys;
mod rates;

/// Methods that name no row of a tenant's, or are the queue's and the operator's own (their scope is checked in
/// `the_queues_own_methods_need_the_queues_scope`). May only shrink.
const WITHOUT_ROWS: &[&str] = &[
    "admit_blocked_jobs",
    "list_audit_waiting_orgs",
    "list_orgs_by_id",
    "list_orgs_with_key_work",
    "count_root_uses",
    "load_root_check",
    "record_root_check",
    "tend_people",
    "claim_jobs",
    "list_held_jobs",
    "list_ready_orgs",
    "count_blocked_jobs",
    "count_dead_jobs",
    "count_paused_jobs",
    "count_future_jobs",
    "count_ready_jobs",
    "is_job_live",
    "find_org_of_run",
    "list_holders",
    "load_queue_slug",
    "update_node_slots",
    "update_node_roots",
    "list_ready_since",
    "list_overdue_schedules",
    "delete_worker",
    "free_stuck_jobs",
    "insert_org",
    "insert_worker",
    "list_ended_runs",
    "list_open_breakers",
    "list_paused_names",
    "list_grant_versions",
    "list_nodes",
    "list_orgs_without_pruning",
    "load_org_by_slug",
    "load_shared_clock",
    "next_heartbeat_end",
    "next_job_at",
    "prefer_indexes",
    "promote_jobs",
    "record_probe",
    "recover_jobs",
    "renew_worker",
    "update_node",
];

/// What an organization's rows look like from inside.
async fn picture(test: &TestStore, tenant: &Tenant) -> String {
    let scope = tenant.scope();
    let tenant = tenant.clone();
    tx!(test.read, &scope, [tenant], |tx| {
        let page = PageRequest::default();
        let mut rows = Vec::new();
        rows.push(format!("{:?}", tx.require_org().await?));
        rows.push(format!("{:?}", tx.list_api_keys(page).await?));
        rows.push(format!("{:?}", tx.list_invitations(page).await?));
        rows.push(format!("{:?}", tx.load_artifact(&tenant.digest).await?));
        rows.push(format!("{:?}", tx.list_plugins(None, page).await?));
        rows.push(format!("{:?}", tx.load_installation(tenant.installation.id).await?));
        rows.push(format!("{:?}", tx.list_secrets(tenant.installation.id).await?));
        rows.push(format!("{:?}", tx.list_workflows(page).await?));
        rows.push(format!("{:?}", tx.list_workflow_versions(tenant.workflow.id, None, 9).await?));
        rows.push(format!("{:?}", tx.list_hooks(tenant.workflow.id).await?));
        rows.push(format!("{:?}", tx.list_schedules(tenant.workflow.id).await?));
        rows.push(format!("{:?}", tx.list_breakers(tenant.workflow.id).await?));
        rows.push(format!("{:?}", tx.load_run(tenant.run.id).await?));
        rows.push(format!("{:?}", tx.list_steps(tenant.run.id).await?));
        rows.push(format!("{:?}", tx.list_run_events(tenant.run.id, 0, 9).await?));
        rows.push(format!("{:?}", tx.load_call(tenant.call.id).await?));
        rows.push(format!("{:?}", tx.list_jobs(None, page).await?));
        rows.push(format!("{:?}", tx.list_dead_letters(&DeadLetterFilter::default(), page).await?));
        rows.push(format!("{:?}", tx.list_dead_letter_tasks(page).await?));
        rows.push(format!("{:?}", tx.list_events(None, page).await?));
        rows.push(format!("{:?}", tx.list_audit(&AuditFilter::default(), page).await?));
        rows.push(format!("{:?}", tx.load_retention().await?));
        rows.push(format!("{:?}", tx.load_history().await?));
        rows.push(format!("{:?}", tx.load_run_by_dedupe_key(tenant.workflow.id, "spent").await?));
        rows.push(format!("{:?}", tx.load_quotas().await?));
        rows.push(format!("{:?}", tx.load_audit_log().await?));
        rows.push(format!("{:?}", tx.list_audit_waiting(9).await?));
        rows.push(format!("{:?}", tx.list_audit_entries(0, 9).await?));
        rows.push(format!("{:?}", tx.list_audit_checkpoints(0, 9, 9).await?));
        rows.push(format!("{:?}", tx.load_audit_retention().await?));
        rows.push(format!("{:?}", tx.list_audit_places(None, 9).await?));
        rows.push(tenant.access.picture(tx).await?);
        rows.push(crate::keys::KeyRows::picture(tx).await?);
        Ok(rows.join("\n"))
    })
    .unwrap()
}

fn letter_filters(letter: &NewDeadLetter) -> [DeadLetterFilter; 5] {
    let all = DeadLetterFilter::default;
    let (fingerprint, workflow) = (Some(letter.fingerprint.clone()), letter.workflow);
    [
        DeadLetterFilter { fingerprint, workflow, ..all() },
        DeadLetterFilter { workflow, kind: Some(letter.kind.clone()), ..all() },
        DeadLetterFilter { fingerprint: Some(letter.fingerprint.clone()), ..all() },
        DeadLetterFilter { workflow: letter.workflow, ..all() },
        DeadLetterFilter { kind: Some(letter.kind.clone()), ..all() },
    ]
}

/// Rows that another organization's breakers, runs and tasks would be found by: a breaker that is open, a job that waits for it, a run
/// that succeeded, one of which a part is removed, and a task that ended.
async fn hold_back(test: &TestStore, tenant: &Tenant) {
    let (scope, ambient) = (tenant.scope(), test.ambient.clone());
    let mut ended = crate::support::run(&ambient, tenant.workflow.id, None);
    (ended.status, ended.finished_at) = (RunStatus::Succeeded, Some(ambient.now()));
    let waits = crate::support::job(RunId::new(&ambient), ambient.now());
    let mut half = crate::support::run(&ambient, tenant.workflow.id, None);
    (half.status, half.finished_at) = (RunStatus::Succeeded, Some(ambient.now()));
    let mut task = crate::support::dead_letter_task(&ambient);
    (task.state, task.finished_at) = (TaskState::Done, Some(ambient.now()));
    tx!(test.write, &scope, [tenant, ambient, ended, waits, half, task], |tx| {
        let now = ambient.now();
        tx.insert_dead_letter_task(task).await?;
        tx.insert_run(half).await?;
        tx.save_step(half.id, &tenant.step).await?;
        tx.update_run(half).await?;
        let place = EndedPlace { at: now, run: half.id };
        let row = EndedRow { place, workflow: half.workflow, dedupe_key: None, created_at: now, bytes: 5 << 20 };
        assert!(matches!(tx.remove_run(&row, now).await?, Removal::Part { .. }));
        // Another moment than the one that the other organization tries to save.
        tx.save_breaker(&tenant.breaker(now.plus(Duration::from_mins(1))), now).await?;
        tx.enqueue_paused(waits, &tenant.hold_name(), ambient).await?;
        tx.insert_run(ended).await?;
        tx.update_run(ended).await
    })
    .unwrap();
}

fn refused(result: &Result<(), StoreError>) -> bool {
    matches!(result, Err(StoreError::Conflict { .. } | StoreError::NotFound { .. } | StoreError::LostLease))
}

/// Whatever is asked for is refused to every scope but those of people. In several tests, since a debug build keeps room on the stack for
/// each of them.
macro_rules! refused_without_people {
    ($test:ident, $org:ident, [$($arg:ident),*], |$tx:ident| $call:expr) => {
        for reason in [SystemReason::SignIn, SystemReason::Jobs, SystemReason::Worker, SystemReason::Hook, SystemReason::Nodes] {
            let system = bulkhead_model::permission::SystemScope::new(reason);
            let alone = tx!($test.write, &system, [$($arg),*], |$tx| {
                let _ = ($($arg,)*);
                $call.map(drop)
            });
            assert!(matches!(alone, Err(StoreError::Misuse(_))), "{alone:?}");
            let within = system.for_org($org);
            let within = tx!($test.write, &within, [$($arg),*], |$tx| {
                let _ = ($($arg,)*);
                $call.map(drop)
            });
            assert!(matches!(within, Err(StoreError::Misuse(_))), "{within:?}");
        }
    };
}

/// What names a parent of A's is refused by the foreign key, which the organization is part of. Apart, for its room on the stack.
async fn parents_are_out_of_reach(test: &TestStore, scope: &OrgScope, a: &Tenant) {
    let (actor, now, ambient) = (Actor::System(SystemReason::Worker), test.ambient.now(), test.ambient.clone());
    let plugin = tx!(test.write, scope, [a], |tx| tx.insert_plugin(&a.plugin).await.map(drop));
    let installation = tx!(test.write, scope, [a], |tx| tx.insert_installation(&a.installation).await);
    let grants = tx!(test.write, scope, [a, actor, now], |tx| {
        tx.record_grants(a.installation.id, GrantVersion(5), &Grants::default(), actor, *now).await
    });
    let secret = tx!(test.write, scope, [a], |tx| tx.insert_secret(&a.secret).await);
    let version = tx!(test.write, scope, [a], |tx| tx.insert_workflow_version(a.workflow.id, &a.version).await);
    let hook = tx!(test.write, scope, [a], |tx| tx.insert_hook(&a.hook).await);
    let schedule = tx!(test.write, scope, [a], |tx| tx.save_schedule(&a.schedule).await);
    let breaker = tx!(test.write, scope, [a, now], |tx| tx.begin_breaker(a.workflow.id, 1, *now).await.map(drop));
    let run = tx!(test.write, scope, [a], |tx| tx.insert_run(&a.run).await.map(drop));
    tx!(test.write, scope, [a], |tx| tx.requeue_run(a.run.id).await).unwrap();
    let step = tx!(test.write, scope, [a], |tx| tx.save_step(a.run.id, &a.step).await);
    let event = tx!(test.write, scope, [a], |tx| tx.record_run_event(a.run.id, &a.run_event).await);
    let call = tx!(test.write, scope, [a], |tx| tx.record_call(&a.call).await.map(drop));
    let spent = tx!(test.write, scope, [a, now], |tx| {
        tx.spend_key(a.run.id, a.workflow.id, "mine", *now, *now).await.map(drop)
    });
    let called = tx!(test.write, scope, [a], |tx| tx.record_called_step(&mut a.run.clone(), a.called()).await);
    let name = a.plugin.name.clone();
    let stride = tx!(test.write, scope, [a, name], |tx| {
        tx.save_stride(&mut a.run.clone(), a.called(), (name, None)).await.map(drop)
    });
    let end = tx!(test.write, scope, [a, ambient], |tx| {
        let told = Told { kind: "x", subject: "y", detail: &json!({}) };
        tx.save_end(&a.run, &a.run_event, told, ambient).await
    });
    let last_stride = tx!(test.write, scope, [a, ambient], |tx| {
        let last = RunEvent { seq: 2, ..a.run_event.clone() };
        let told = Told { kind: "x", subject: "y", detail: &json!({}) };
        tx.save_last_stride(&mut a.run.clone(), a.called(), &last, told, ambient).await
    });
    let own_worker = test.worker().await;
    let begun = tx!(test.write, scope, [a, own_worker, ambient], |tx| {
        let minute = Duration::from_mins(1);
        tx.begin_run(&a.run, &a.run_event, &a.job, *own_worker, minute, ambient).await.map(drop)
    });
    let letter = tx!(test.write, scope, [a, ambient], |tx| tx.record_dead_letter(&a.dead_letter, ambient).await);
    for result in [
        plugin,
        installation,
        grants,
        secret,
        version,
        hook,
        schedule,
        breaker,
        run,
        step,
        event,
        call,
        spent,
        called,
        stride,
        end,
        last_stride,
        begun,
        letter,
    ] {
        assert!(refused(&result), "{result:?}");
    }
}

on_both! {
    async fn reads_find_nothing_of_another_organization(test: TestStore) {
        let (a, b) = (test.tenant("a").await, test.org("b").await);
        crate::prune::end_everything(&test, &a).await;
        hold_back(&test, &a).await;
        let scope = crate::support::scope(b);
        let key = a.run.id.to_string();
        let own = tx!(test.read, &a.scope(), [key], |tx| tx.load_live_job("advance_run", key).await).unwrap().unwrap();
        let (last, ambient) = (LiveJob { priority: i64::MAX, ..own }, test.ambient.clone());
        tx!(test.read, &scope, [a, last, ambient], |tx| {
            let page = PageRequest::default();
            let (inst, wf, run) = (a.installation.id, a.workflow.id, a.run.id);
            assert!(tx.load_api_key(a.api_key.id).await?.is_none());
            assert_eq!(tx.list_key_usage(a.api_key.id, 9).await?, []);
            assert!(tx.list_api_keys(page).await?.items.is_empty());
            assert_eq!(tx.count_valid_api_keys(ambient.now(), 9).await?, 0);
            assert!(tx.load_invitation(a.invitation.id).await?.is_none());
            assert!(tx.list_invitations(page).await?.items.is_empty());
            assert_eq!(tx.count_open_invitations(a.invitation.created_at, 9).await?, 0);
            assert!(tx.load_artifact(&a.digest).await?.is_none());
            assert!(tx.load_plugin(a.plugin.id).await?.is_none());
            assert!(tx.load_plugin_version(a.plugin.name.as_str(), &a.plugin.version).await?.is_none());
            assert!(tx.list_plugins(None, page).await?.items.is_empty());
            assert_eq!(tx.count_plugins().await?, PluginCount::default());
            assert!(!tx.is_plugin_installed(a.plugin.id).await?);
            assert_eq!(tx.count_active_workflows().await?, 0);
            assert_eq!(tx.load_log_use(run).await?.0, 0);
            assert!(tx.load_installation(inst).await?.is_none());
            assert!(matches!(tx.require_installation(inst).await, Err(StoreError::NotFound { .. })));
            assert!(tx.load_installation_of(&a.plugin.name, None).await?.is_none());
            assert!(tx.load_installation_of(&a.plugin.name, Some(inst)).await?.is_none());
            assert!(tx.load_installation_for(&a.plugin.name, None).await?.is_none());
            assert!(tx.load_installation_for(&a.plugin.name, Some(inst)).await?.is_none());
            assert!(tx.list_installations(page).await?.items.is_empty());
            assert!(tx.list_secrets(inst).await?.is_empty());
            assert!(tx.load_secret(inst, &a.secret.name).await?.is_none());
            assert!(tx.load_workflow(wf).await?.is_none());
            assert!(matches!(tx.require_workflow(wf).await, Err(StoreError::NotFound { .. })));
            assert!(tx.load_workflow_by_name(&a.workflow.name).await?.is_none());
            assert!(tx.list_workflows(page).await?.items.is_empty());
            assert!(tx.load_workflow_version(wf, 1).await?.is_none());
            assert!(tx.list_workflow_versions(wf, None, 9).await?.is_empty());
            assert!(tx.load_hook(a.hook.id).await?.is_none());
            assert!(tx.list_hooks(wf).await?.is_empty());
            assert!(tx.load_schedule(wf, &a.schedule.trigger).await?.is_none());
            assert!(tx.list_schedules(wf).await?.is_empty());
            assert!(tx.list_breakers(wf).await?.is_empty());
            assert!(!tx.has_succeeded_since(wf, 1, a.run.created_at).await?);
            assert!(tx.load_run(run).await?.is_none());
            assert!(matches!(tx.require_run(run).await, Err(StoreError::NotFound { .. })));
            assert!(tx.load_run_by_dedupe_key(wf, "none").await?.is_none());
            assert!(tx.list_runs(None, None, page).await?.items.is_empty());
            assert!(tx.list_runs(None, Some(wf), page).await?.items.is_empty());
            assert!(tx.list_runs(Some(a.run.status), None, page).await?.items.is_empty());
            assert!(tx.list_steps(run).await?.is_empty());
            assert!(tx.load_step(run, &a.step.step).await?.is_none());
            assert!(tx.list_run_events(run, 0, 9).await?.is_empty());
            assert!(tx.load_call(a.call.id).await?.is_none());
            assert!(tx.list_calls(inst, None, page).await?.items.is_empty());
            assert!(tx.list_jobs(None, page).await?.items.is_empty());
            assert_eq!(tx.count_waiting_runs(9).await?, 0);
            assert!(tx.load_run_summary(run).await?.is_none());
            assert!(tx.load_run_bytes(run).await?.is_none());
            assert!(tx.load_live_job("advance_run", &run.to_string()).await?.is_none());
            assert!(tx.count_ready_jobs_of_org(Lane::Interactive).await?.is_empty());
            assert!(tx.count_future_jobs_of_org(Lane::Interactive).await?.is_empty());
            assert!(tx.count_blocked_jobs_of_org().await?.is_empty());
            assert!(tx.count_paused_jobs_of_org().await?.is_empty());
            assert!(tx.count_leased_jobs_of_org(Lane::Interactive).await?.is_empty());
            assert!(tx.count_dead_jobs_of_org(Lane::Interactive).await?.is_empty());
            assert!(tx.list_holders_of_org(Lane::Interactive).await?.is_empty());
            assert!(tx.load_ready_since(Lane::Interactive).await?.is_none());
            assert!(tx.load_next_due(Lane::Interactive).await?.is_none());
            assert!(tx.list_blocked_groups(9).await?.is_empty());
            assert!(tx.list_group_runs(&wf.to_string(), 9).await?.is_empty());
            assert_eq!(tx.count_group_held(&wf.to_string()).await?, 0);
            assert_eq!(tx.count_jobs_ahead(Lane::Interactive, last).await?, 0);
            assert_eq!(tx.load_lane_use(Lane::Interactive).await?.held, 0);
            let (letter, task) = (&a.dead_letter, a.dead_letter_task.id);
            assert!(tx.list_dead_letters(&DeadLetterFilter::default(), page).await?.items.is_empty());
            for filter in letter_filters(letter) {
                assert!(tx.list_dead_letters(&filter, page).await?.items.is_empty(), "{filter:?}");
            }
            assert!(tx.load_dead_letter_of(&letter.kind, &letter.subject).await?.is_none());
            assert!(tx.list_faults(None, 9).await?.is_empty());
            assert!(tx.list_fault_workflows(&letter.fingerprint).await?.is_empty());
            assert!(tx.load_dead_letter_task(task).await?.is_none());
            assert!(tx.list_dead_letter_tasks(page).await?.items.is_empty());
            assert_eq!(tx.count_running_dead_letter_tasks(9).await?, 0);
            assert_eq!(tx.count_paused_runs(None, 9).await?, 0);
            assert_eq!(tx.count_paused_runs(Some(&a.hold_name()), 9).await?, 0);
            assert_eq!(tx.count_sleeping_runs(9).await?, (0, 0));
            assert!(tx.list_events(None, page).await?.items.is_empty());
            for category in [None, Some(Category::Configuration)] {
                let filter = AuditFilter { category, ..AuditFilter::default() };
                assert!(tx.list_audit(&filter, page).await?.items.is_empty());
            }
            assert!(tx.load_retention().await?.is_none());
            assert!(tx.load_history().await?.is_none());
            let (ended, until) = (EndedRun::Failed, a.run.created_at.plus(Duration::from_hours(24)));
            let (first, last) = (CallId::first_at(Timestamp::from_micros(0)), CallId::first_at(until));
            assert_eq!(tx.count_ended_runs(ended, EndedPlace::FIRST, until, 9).await?.rows, 0);
            assert!(tx.list_removable_runs(ended, EndedPlace::FIRST, until, 9).await?.is_empty());
            assert!(tx.list_half_removed_runs(9).await?.is_empty());
            assert_eq!(tx.count_calls_by_hand(first, last, 9).await?.rows, 0);
            assert!(tx.list_calls_by_hand(first, last, 9).await?.is_empty());
            assert_eq!(tx.count_events(EventId::first_at(until), 9).await?, 0);
            assert!(!tx.is_dead_letter(run).await?);
            assert!(tx.load_run_by_dedupe_key(wf, "spent").await?.is_none());
            assert_eq!(tx.load_quotas().await?, Quotas::default());
            assert!(tx.load_audit_log().await?.is_none());
            assert_eq!(tx.list_audit_waiting(9).await?, AuditBacklog::default());
            assert!(tx.list_audit_places(None, 9).await?.is_empty());
            assert!(tx.list_audit_entries(0, 9).await?.is_empty());
            assert!(tx.load_audit_node(0).await?.is_none());
            assert!(tx.load_audit_checkpoint(9).await?.is_none());
            assert!(tx.list_audit_checkpoints(0, 9, 9).await?.is_empty());
            assert!(tx.list_audit_actions().await?.is_empty());
            assert!(tx.list_kept_audit(a.audit.action.as_str(), AuditId::from_uuid(uuid::Uuid::max()), 9).await?.is_empty());
            assert!(tx.list_kept_audit_about(&a.audit.target, 9).await?.is_empty());
            assert!(tx.list_audit_seqs(a.audit.action.as_str(), 9).await?.is_empty());
            assert!(tx.load_audit_retention().await?.is_none());
            a.access.is_not_there(tx).await?;
            a.keys.is_not_there(tx, ambient).await?;
            assert_eq!(tx.require_org().await?.slug.as_str(), "b");
            Ok(())
        })
        .unwrap();
    }

    async fn writes_leave_another_organization_as_it_was(test: TestStore) {
        let (a, b) = (test.tenant("a").await, test.org("b").await);
        let ended = crate::prune::end_everything(&test, &a).await;
        hold_back(&test, &a).await;
        let before = picture(&test, &a).await;
        let (scope, ambient, now) = (crate::support::scope(b), test.ambient.clone(), test.ambient.now());
        let (ended, by_hand) = ended;
        let own_entry = tx!(test.read, &a.scope(), [], |tx| {
            tx.list_kept_audit(EventType::PluginUploaded.as_str(), AuditId::from_uuid(uuid::Uuid::max()), 9).await
        });
        let own_entry = own_entry.unwrap().remove(0);
        tx!(test.write, &scope, [own_entry], |tx| tx.dispose_of_audit(own_entry.seq, own_entry.id, 1).await.map(|done| assert!(!done))).unwrap();
        let (own_letter, own_job) = tx!(test.read, &a.scope(), [], |tx| {
            let page = PageRequest::default();
            let letters = tx.list_dead_letters(&DeadLetterFilter::default(), page).await?.items;
            let jobs = tx.list_jobs(None, page).await?.items;
            Ok((letters.iter().map(|l| l.id).collect::<Vec<_>>(), jobs.iter().map(|job| job.id).collect::<Vec<_>>()))
        })
        .unwrap();
        assert_eq!((own_letter.len(), own_job.len()), (1, 2));
        tx!(test.write, &scope, [a, now, ended, by_hand, own_letter, own_job], |tx| {
            let (inst, wf, key) = (a.installation.id, a.workflow.id, a.run.id.to_string());
            assert_eq!(tx.revoke_api_key(a.api_key.id, *now).await?, []);
            assert!(!tx.replace_api_key_secret(a.api_key.id, &a.api_key.secret_hash, *now).await?);
            assert_eq!(tx.remove_nonces(now.plus(Duration::from_hours(1))).await?, 0);
            assert_eq!(tx.remove_key_usage(a.api_key.id, 99_999).await?, 0);
            assert!(tx.revoke_keys_of(a.person.user.id, *now).await?.is_empty());
            assert!(!tx.accept_invitation(a.invitation.id, *now).await?);
            assert!(!tx.revoke_invitation(a.invitation.id, *now).await?);
            assert_eq!(tx.revoke_invitations_to(&a.invitation.email, *now).await?, 0);
            assert_eq!(tx.revoke_invitations_by(&a.invitation.invited_by, *now).await?, 0);
            assert!(!tx.update_installation(&a.installation, GrantVersion(1)).await?);
            assert!(tx.lock_installation_version(inst).await?.is_none());
            tx.update_secret(&a.secret).await?;
            assert!(!tx.delete_secret(inst, &a.secret.name).await?);
            assert_eq!(tx.delete_secrets(inst).await?, 0);
            assert!(!tx.update_workflow(&a.workflow, 1).await?);
            assert_eq!(tx.expire_hooks(wf, &a.hook.trigger, *now).await?, 0);
            assert_eq!(tx.remove_expired_hooks(wf, *now).await?, 0);
            assert!(tx.lock_schedule(wf, &a.schedule.trigger).await?.is_none());
            assert!(!tx.delete_schedule(wf, &a.schedule.trigger).await?);
            assert!(tx.lock_breaker(wf, 1).await?.is_none());
            tx.save_breaker(&a.breaker(*now), *now).await?;
            assert!(!tx.delete_breaker(wf, 1).await?);
            assert!(tx.resume_paused_jobs(&a.hold_name(), 9, *now).await?.is_empty());
            assert!(matches!(tx.lock_run(a.run.id).await, Err(StoreError::NotFound { .. })));
            tx.update_run(&a.run).await?;
            assert_eq!(tx.delete_steps(a.run.id, 0).await?, 0);
            tx.raise_run_bytes(a.run.id, CallBytes { all: 9, log: 9 }).await?;
            tx.note_retries(1).await?;
            assert!(!tx.bring_job_forward("advance_run", &key, Timestamp::from_micros(0)).await?);
            assert!(!tx.hasten_job("advance_run", &key, *now).await?);
            assert!(!tx.remove_waiting_job("advance_run", &key).await?);
            assert!(!tx.is_job_held("advance_run", &key).await?);
            assert_eq!(tx.remove_run(ended, *now).await?, Removal::Changed);
            assert!(!tx.remove_call_by_hand(*by_hand).await?);
            let end = now.plus(Duration::from_hours(24 * 30));
            assert_eq!(tx.remove_events(EventId::first_at(end), 9).await?, 0);
            assert_eq!(tx.remove_spent_keys(end, 9).await?, 0);
            assert_eq!(tx.remove_dead_letter_tasks(end, 9).await?, 0);
            assert!(!tx.save_retention(&RetentionPolicy::default(), 1, *now).await?);
            tx.give_back_space(0).await?;
            assert!(!tx.delete_plugin(a.plugin.id, *now).await?);
            assert!(!tx.restore_plugin(a.plugin.id).await?);
            let letter = DeadLetterId::from_uuid(uuid::Uuid::max());
            for id in own_letter.iter().copied().chain([letter]) {
                assert!(tx.load_dead_letter(id).await?.is_none());
                assert!(tx.lock_dead_letter(id).await?.is_none());
                assert!(!tx.delete_dead_letter(id).await?);
            }
            assert!(!tx.delete_dead_letter_of(&a.dead_letter.kind, &a.dead_letter.subject).await?);
            assert!(tx.lock_dead_letter_task(a.dead_letter_task.id).await?.is_none());
            tx.update_dead_letter_task(&a.dead_letter_task).await?;
            for job in own_job {
                assert!(!tx.revive_job(*job, *now).await?);
                assert!(!tx.delete_dead_job(*job).await?);
            }
            assert!(tx.revoke_all_api_keys(*now).await?.is_empty());
            a.access.cannot_be_changed(tx).await?;
            Ok(())
        })
        .unwrap();

        Box::pin(parents_are_out_of_reach(&test, &scope, &a)).await;
        access::parents_are_out_of_reach(&test, &scope, &a.access).await;

        // The same ids, keys and bytes may exist in B on their own: nothing of A shows through a conflict.
        tx!(test.write, &scope, [a, ambient, now], |tx| {
            tx.insert_api_key(&a.api_key).await?;
            assert!(tx.take_nonce(a.api_key.id, &[7; 32], *now).await?);
            tx.add_key_usage(a.api_key.id, KeyUsage { day: 20_000, requests: 1 }, *now).await?;
            assert_eq!(tx.list_key_usage(a.api_key.id, 9).await?, [KeyUsage { day: 20_000, requests: 1 }]);
            tx.insert_invitation(&a.invitation).await?;
            tx.insert_artifact(&a.digest, b"other bytes", *now).await?;
            assert!(tx.insert_plugin(&a.plugin).await?);
            assert!(tx.insert_workflow(&a.workflow).await?);
            assert!(tx.enqueue(&a.job, ambient).await?.is_some());
            tx.record_event("x", "y", &json!({}), ambient).await?;
            assert!(tx.save_retention(&RetentionPolicy::default(), 0, *now).await?);
            tx.save_history(&crate::support::history(*now)).await?;
            tx.insert_dead_letter_task(&a.dead_letter_task).await?;
            assert!(tx.lock_audit_log().await?.is_none());
            tx.save_audit_log(&AuditLog { size: 9, ..a.audit_log.clone() }).await?;
            tx.save_audit_log_key("another", "key").await?;
            assert!(tx.save_audit_retention(&PayloadRetention::of(31, 31), 0, *now).await?);
            assert_eq!(tx.settle_audit_waiting(None).await?, 0);
            assert!(tx.insert_audit_log(&AuditLog { size: 7, ..a.audit_log.clone() }).await?);
            tx.record_audit_checkpoint(1, "another", *now).await?;
            let opening = tx.record_placed_audit(&a.audit, ambient).await?;
            tx.insert_audit_entry(&sealed_audit(0, opening.id)).await?;
            a.access.insert_beside(tx, ambient).await?;
            a.keys.insert_beside(tx, ambient).await?;
            tx.record_audit(&a.audit, ambient).await
        })
        .unwrap();
        assert_eq!(picture(&test, &a).await, before);
    }

    async fn a_lease_is_worth_nothing_in_another_organization(test: TestStore) {
        let (a, b) = (test.tenant("a").await, test.org("b").await);
        let (worker, now, minute) = (test.worker().await, test.ambient.now(), Duration::from_mins(1));
        let claimed = tx!(test.write_locked, &JOBS, [worker, now, minute], |tx| {
            crate::support::claim_any(tx, *worker, Lane::Interactive, 9, *now, *minute).await
        });
        let lease = claimed.unwrap().remove(0).lease;
        assert_eq!(lease.org, a.org);
        let scope = crate::support::scope(b);
        let key = a.run.id.to_string();
        let seen = tx!(test.read, &scope, [key], |tx| tx.is_job_held("advance_run", key).await);
        assert!(!seen.unwrap());
        let place = a.run.id;
        let foreign = tx!(test.write, &scope, [place], |tx| tx.lock_run_place(*place).await);
        assert!(matches!(foreign, Err(StoreError::NotFound { .. })), "{foreign:?}");
        let foreign = tx!(test.write, &scope, [place], |tx| tx.lock_standing(*place, None).await);
        assert!(matches!(foreign, Err(StoreError::NotFound { .. })), "{foreign:?}");
        let installation = Some(a.installation.id);
        let foreign = tx!(test.write, &scope, [place, installation], |tx| tx.lock_standing(*place, *installation).await);
        assert!(matches!(foreign, Err(StoreError::NotFound { .. })), "{foreign:?}");
        let standing = tx!(test.write, &scope, [lease, minute, now, place, installation], |tx| {
            tx.hold_standing(lease, *minute, *now, *place, *installation).await.map(drop)
        });
        tx!(test.write, &scope, [key], |tx| tx.lock_job("advance_run", key).await).unwrap();
        let keep = tx!(test.write, &scope, [lease, minute, now], |tx| tx.keep_lease(lease, *minute, *now).await);
        let hold = tx!(test.write, &scope, [lease, minute, now], |tx| tx.hold_lease(lease, *minute, *now).await);
        let release = tx!(test.write, &scope, [lease, now], |tx| {
            tx.release_job(lease, *now, Attempt::Counts, None, *now).await
        });
        let clock = test.ambient.clone();
        let bury = tx!(test.write, &scope, [lease, clock], |tx| tx.bury_job(lease, "no", clock).await);
        let finish = tx!(test.write, &scope, [lease, now], |tx| tx.finish_job(lease, *now).await);
        let finish_standing = tx!(test.write, &scope, [lease, now, place, installation], |tx| {
            tx.finish_standing(lease, *now, *place, *installation).await.map(drop)
        });
        let pause = tx!(test.write, &scope, [lease, now], |tx| tx.pause_job(lease, "x", *now).await);
        for result in [keep, hold, standing, release, bury, finish, finish_standing, pause] {
            assert!(matches!(result, Err(StoreError::LostLease)), "{result:?}");
        }
        // What another organization makes is its own, by whatever worker.
        let (job, ambient) = (a.job.clone(), test.ambient.clone());
        let made = tx!(test.write, &scope, [job, worker, minute, ambient], |tx| {
            tx.enqueue_held(job, *worker, *minute, ambient).await
        });
        assert!(made.unwrap().is_none_or(|made| made.lease.org == b));
        let paused = tx!(test.write, &scope, [job, ambient], |tx| tx.enqueue_paused(job, "x", ambient).await);
        assert!(paused.unwrap().is_none(), "its key is taken in this organization, by the job above");
        tx!(test.write, &a.scope(), [lease, now], |tx| tx.finish_job(lease, *now).await).unwrap();
    }

    async fn members_of_another_organization_are_nobody_here(test: TestStore) {
        let (a, b) = (test.tenant("a").await, test.org("b").await);
        let (scope, now, user) = (crate::support::scope(b), test.ambient.now(), a.person.user.id);
        let within = AccountScope::within(&scope);
        tx!(test.write, &within, [a, user, now], |tx| {
            assert!(tx.load_member(*user).await?.is_none());
            assert!(tx.list_members(PageRequest::default()).await?.items.is_empty());
            assert!(!tx.is_active_member(*user).await?);
            assert!(!tx.update_member_state(*user, false, *now).await?);
            assert!(!tx.update_member_user_state(*user, false).await?);
            assert!(!tx.delete_member(*user).await?);
            assert!(tx.load_membership(*user, tx.org()?).await?.is_none());
            assert_eq!(tx.list_memberships(*user).await?.len(), 1, "what the person may see of themselves");
            assert!(tx.load_membership_by_slug(*user, &"b".parse().unwrap()).await?.is_none());
            assert!(tx.insert_member(*user, "viewer", *now).await?, "a person may work in several");
            assert_eq!(tx.load_member(*user).await?.unwrap().role, "viewer");
            assert!(tx.list_memberships(*user).await?.iter().any(|membership| membership.org == a.org));
            Ok(())
        })
        .unwrap();
        let of_a = tx!(test.read, &AccountScope::within(&a.scope()), [user], |tx| tx.load_member(*user).await);
        assert_eq!(of_a.unwrap().unwrap().role, "admin");
    }

    async fn what_belongs_to_people_needs_their_scope(test: TestStore) {
        let (a, b) = (test.tenant("a").await, test.org("b").await);
        let (p, now, of_a) = (a.person.clone(), test.ambient.now(), a.org);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.insert_user(&p.user).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_user(p.user.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_user_by_email(&p.user.email).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.has_users().await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.lock_users().await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.count_super_admins().await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.update_user_password(p.user.id, p.user.password.as_ref().unwrap(), *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.replace_user_hash(p.user.id, p.user.password.as_ref().unwrap(), p.user.password.as_ref().unwrap()).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.verify_user_email(p.user.id, &p.user.email, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.update_user_email(p.user.id, &p.user.email, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.update_user_name(p.user.id, "x", *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.update_user_state(p.user.id, false, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.raise_user_epoch(p.user.id, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.mark_first_sign_in(p.user.id, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.enter_org(*of_a).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.insert_link(&p.link).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.use_link(p.link.id, p.link.purpose, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_usable_link(p.link.id, p.link.purpose, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_set_up_link(*now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.void_links(p.user.id, p.link.purpose, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.remove_expired_links(*now).await);
        let there = tx!(test.read, &PEOPLE, [p], |tx| tx.list_sessions(p.user.id).await);
        assert_eq!(there.unwrap().len(), 1, "and nothing was changed");
    }

    async fn sessions_and_counters_need_the_scope_of_people(test: TestStore) {
        let (a, b) = (test.tenant("a").await, test.org("b").await);
        let (p, now, of_a) = (a.person.clone(), test.ambient.now(), a.org);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.insert_session(&p.session).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_session_by_token(&p.session.token_hash).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_session(p.user.id, p.session.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.list_sessions(p.user.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.touch_session(p.session.id, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.renew_session(&p.session.token_hash, &p.session).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_session(p.user.id, p.session.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.list_sessions_here(p.user.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.delete_sessions_here(p.user.id, None).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.set_session_device(p.session.id, p.device.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.set_active_org(p.session.id, *of_a).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.delete_session(p.user.id, p.session.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.delete_sessions(p.user.id, None).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.remove_expired_sessions(*now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.insert_device(&p.device).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_device_by_token(&p.device.token_hash).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.renew_device(p.device.id, &p.device.token_hash, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.forget_devices(p.user.id, 0).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.list_devices(p.user.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.delete_device(p.user.id, p.device.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.trust_device(p.user.id, p.device.id, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.is_device_trusted(p.user.id, p.device.id, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.lock_failures(&p.attempt.identifier).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.save_failures(&p.attempt.identifier, Failures::NONE).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.remove_quiet_failures(*now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.record_sign_in_attempt(&p.attempt).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.list_sign_in_attempts(p.user.id, PageRequest::default()).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_untold_attempt().await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.mark_attempt_told(p.attempt.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.count_refused_attempts(p.user.id, p.attempt.id, 9).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.count_names_that_failed("192.0.2.1", p.attempt.id, 9).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.forget_names_that_failed("192.0.2.1").await);
        let there = tx!(test.read, &PEOPLE, [p], |tx| tx.list_sessions(p.user.id).await);
        assert_eq!(there.unwrap().len(), 1, "and nothing was changed");
    }

    async fn letters_tokens_and_memberships_need_the_scope_of_people(test: TestStore) {
        let (a, b) = (test.tenant("a").await, test.org("b").await);
        let (p, now, of_a) = (a.person.clone(), test.ambient.now(), a.org);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.remove_sign_in_attempts(p.attempt.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.enqueue_mail(&p.user.email, &Letter::ResetPassword, &ambient()).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.claim_mail(*now, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.is_mail_full(1).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.finish_mail(MailId::from_uuid(p.user.id.uuid())).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.fail_mail(MailId::from_uuid(p.user.id.uuid()), "x", None).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.remove_failed_mail(MailId::first_at(*now)).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.insert_token_family(&p.family).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.insert_refresh_token(&p.session.token_hash, p.family.id, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_refresh_token(&p.session.token_hash).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.use_refresh_token(&p.session.token_hash, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.delete_token_family(p.family.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.count_token_families(p.session.id, 9).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.list_token_sessions(p.user.id, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.remove_expired_tokens(*now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.list_memberships(p.user.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_membership(p.user.id, *of_a).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_membership_by_slug(p.user.id, &"a".parse().unwrap()).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_member(p.user.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.list_members(PageRequest::default()).await);
        let there = tx!(test.read, &PEOPLE, [p], |tx| tx.list_sessions(p.user.id).await);
        assert_eq!(there.unwrap().len(), 1, "and nothing was changed");
    }

    async fn second_factors_need_the_scope_of_people(test: TestStore) {
        let (a, b) = (test.tenant("a").await, test.org("b").await);
        let (p, now, of_a) = (a.person.clone(), test.ambient.now(), a.org);
        let code = StoredBackupCode { position: 0, hash: p.codes[0].clone() };
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.replace_totp_set_up(&p.totp).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_totp(p.user.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_totp_set_up(p.user.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.use_totp_step(p.totp.id, 9).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.fail_totp(p.totp.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.forgive_totp(p.user.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.verify_totp(p.totp.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.activate_totp(p.user.id, p.totp.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.delete_second_factors(p.user.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.replace_backup_codes(p.totp.id, &p.codes, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.delete_totp_set_up(p.user.id, None).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.list_backup_codes(p.user.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.insert_sign_in_step(&p.step).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_sign_in_step(&p.step.token_hash).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.use_sign_in_step(p.step.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.remove_expired_steps(*now).await);
        refused_without_people!(test, b, [p, now, code], |tx| tx.use_backup_code(p.user.id, code, *now).await);
        let there = tx!(test.read, &PEOPLE, [p], |tx| tx.load_totp(p.user.id).await);
        assert_eq!((there.unwrap().unwrap().id, of_a), (p.totp.id, a.org), "and nothing was changed");
    }

    async fn passkeys_need_the_scope_of_people(test: TestStore) {
        let (a, b) = (test.tenant("a").await, test.org("b").await);
        let (p, now, of_a) = (a.person.clone(), test.ambient.now(), a.org);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.insert_passkey(&p.passkey).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.list_passkeys(p.user.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_passkey_by_credential(&p.passkey.credential_id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.update_passkey(p.passkey.id, "{}", *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.delete_passkey(p.user.id, p.passkey.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.delete_passkeys(p.user.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_factors(p.user.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.has_sign_in_step(p.step.id, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.replace_email_code(p.step.id, &p.codes[0], *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.load_email_code(p.step.id, 5).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.fail_email_code(p.step.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.set_password_by_mail(p.user.id, false).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.is_password_by_mail(p.user.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.insert_revoke_link(&p.revoke).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.use_revoke_link(p.revoke.id, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.remove_expired_revoke_links(*now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.clear_user_password(p.user.id, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.delete_factors_since(p.user.id, *now).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.replace_ceremony(&p.ceremony).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.use_ceremony(&p.step.token_hash, p.ceremony.purpose).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.delete_ceremonies(p.user.id).await);
        refused_without_people!(test, b, [p, now, of_a], |tx| tx.remove_expired_ceremonies(*now).await);
        let there = tx!(test.read, &PEOPLE, [p], |tx| tx.list_passkeys(p.user.id).await);
        assert_eq!((there.unwrap()[0].id, of_a), (p.passkey.id, a.org), "and nothing was changed");
    }

    async fn another_organizations_sign_in_policy_is_not_ours(test: TestStore) {
        let (a, b, now) = (test.tenant("a").await, test.org("b").await, test.ambient.now());
        let scope = crate::support::scope(b);
        let ours = tx!(test.write, &scope, [now], |tx| {
            let before = tx.load_sign_in_policy().await?;
            let policy = SignInPolicy::new(MfaPolicy::Optional, vec![Method::Passkey], true).unwrap();
            tx.save_sign_in_policy(&policy, *now).await?;
            assert_eq!(tx.load_sign_in_policy().await?, policy);
            tx.save_mfa_policy(MfaPolicy::All, *now).await?;
            assert_eq!(tx.load_sign_in_policy().await?, policy.with_mfa(MfaPolicy::All));
            Ok(before)
        });
        assert_eq!(ours.unwrap(), SignInPolicy::default());
        let theirs = tx!(test.read, &a.scope(), [], |tx| tx.load_sign_in_policy().await);
        assert_eq!(theirs.unwrap(), SignInPolicy::default().with_mfa(MfaPolicy::All));
    }

    async fn the_queues_own_methods_need_the_queues_scope(test: TestStore) {
        let (a, worker, now) = (test.tenant("a").await, test.worker().await, test.ambient.now());
        let (own, sealer) = (a.org, crate::keys::sealer(&test.ambient));
        let minute = Duration::from_mins(1);
        for reason in [SystemReason::SignIn, SystemReason::Admin, SystemReason::Worker, SystemReason::Hook] {
            let system = bulkhead_model::permission::SystemScope::new(reason);
            macro_rules! refused {
                ($scope:expr, [$($arg:ident),*], |$tx:ident| $call:expr) => {
                    let result = tx!(test.write, $scope, [$($arg),*], |$tx| $call.map(drop));
                    assert!(matches!(result, Err(StoreError::Misuse(_))), "{result:?}");
                };
            }
            macro_rules! each_refused {
                ($scope:expr) => {
                    refused!($scope, [worker, now, minute], |tx| tx.claim_jobs(*worker, Lane::Interactive, &[], *now, *minute).await);
                    refused!($scope, [], |tx| tx.list_ready_orgs(Lane::Interactive, None, 9).await);
                    refused!($scope, [], |tx| tx.list_audit_waiting_orgs(None, 9).await);
                    refused!($scope, [], |tx| tx.list_orgs_by_id(None, 9).await);
                    refused!($scope, [now], |tx| tx.admit_blocked_jobs(None, *now).await);
                    refused!($scope, [], |tx| tx.list_open_breakers(9, 9).await);
                    refused!($scope, [], |tx| tx.list_paused_names(None, 9).await);
                    refused!($scope, [worker], |tx| tx.list_held_jobs(*worker).await);
                    if reason != SystemReason::Admin {
                        refused!($scope, [own], |tx| tx.set_queue_share(*own, 1, 1).await);
                        refused!($scope, [own], |tx| tx.load_queue_share(*own).await);
                        refused!($scope, [own], |tx| tx.set_quota(*own, Quota::LogBytes, 9_999).await);
                    }
                    refused!($scope, [now], |tx| tx.promote_jobs(*now, 9).await);
                    refused!($scope, [], |tx| tx.next_job_at().await);
                    refused!($scope, [now], |tx| tx.list_overdue_schedules(*now, None, 9).await);
                    refused!($scope, [], |tx| tx.count_ready_jobs(Lane::Interactive).await);
                    refused!($scope, [], |tx| tx.count_future_jobs().await);
                    refused!($scope, [], |tx| tx.count_blocked_jobs().await);
                    refused!($scope, [], |tx| tx.count_dead_jobs().await);
                    refused!($scope, [], |tx| tx.count_paused_jobs().await);
                    refused!($scope, [], |tx| tx.list_holders().await);
                    refused!($scope, [own], |tx| tx.load_queue_slug(*own).await);
                    refused!($scope, [a], |tx| tx.find_org_of_run(a.run.id).await);
                    refused!($scope, [worker], |tx| tx.update_node_slots(*worker, NodeSlots::default()).await);
                    refused!($scope, [worker], |tx| tx.update_node_roots(*worker, &[]).await);
                    refused!($scope, [], |tx| tx.list_ready_since(Lane::Interactive, 9).await);
                    refused!($scope, [own], |tx| tx.is_job_live(*own, "advance_run", "x").await);
                    refused!($scope, [now], |tx| tx.record_probe(*now).await);
                    refused!($scope, [worker, now, minute], |tx| tx.insert_worker(*worker, "x", *now, *minute).await);
                    refused!($scope, [worker, now, minute], |tx| tx.renew_worker(*worker, *now, *minute).await);
                    refused!($scope, [worker], |tx| tx.delete_worker(*worker).await);
                    refused!($scope, [worker, now], |tx| tx.recover_jobs(*worker, *now).await);
                    refused!($scope, [worker], |tx| tx.next_heartbeat_end(*worker).await);
                    refused!($scope, [now], |tx| tx.free_stuck_jobs(*now).await);
                    refused!($scope, [], |tx| tx.list_orgs_without_pruning(None, 9).await);
                    refused!($scope, [], |tx| tx.list_nodes().await);
                    refused!($scope, [sealer, now], |tx| tx.list_orgs_with_key_work(sealer, *now, None, 9).await);
                    if reason != SystemReason::Admin {
                        refused!($scope, [], |tx| tx.count_root_uses().await);
                        refused!($scope, [], |tx| tx.load_root_check().await);
                        refused!($scope, [sealer, now], |tx| tx.record_root_check(&sealer.base_check(), *now).await);
                        refused!($scope, [sealer], |tx| tx.tend_people(sealer, None, 9).await);
                    }
                    refused!($scope, [], |tx| tx.load_shared_clock().await);
                    refused!($scope, [worker], |tx| tx.update_node(*worker, true, 0).await);
                    refused!($scope, [a], |tx| tx.list_grant_versions(&[(a.org, a.installation.id)]).await);
                    refused!($scope, [a], |tx| tx.list_ended_runs(&[(a.org, a.run.id)]).await);
                };
            }
            each_refused!(&system);
            each_refused!(&system.for_org(a.org));
            // A system scope has no organization's rows at all.
            refused!(&system, [], |tx| tx.list_jobs(None, PageRequest::default()).await);
        }
        let ready = tx!(test.read, &JOBS, [], |tx| tx.list_ready_orgs(Lane::Interactive, None, 9).await).unwrap();
        assert_eq!(ready, [(a.org, 1)]);
        let payload = JobPayload::AdvanceRun { run: a.run.id };
        assert_eq!(payload.lane(), Lane::Interactive);
    }
}

#[test]
fn every_method_is_tried_from_another_organization() {
    let tried = [
        include_str!("isolation.rs"),
        include_str!("isolation/access.rs"),
        include_str!("isolation/keys.rs"),
        include_str!("isolation/rates.rs"),
    ]
    .concat();
    let methods: BTreeSet<&str> = STATEMENT_SOURCES
        .iter()
        .flat_map(|(_, text)| text.split("pub async fn ").skip(1))
        .map(|rest| rest.split(['(', '<']).next().unwrap())
        .collect();
    assert!(methods.len() > 50, "the sources hold the methods: {methods:?}");
    let missing: Vec<_> =
        methods.iter().filter(|name| !WITHOUT_ROWS.contains(name) && !tried.contains(&format!("tx.{name}("))).collect();
    assert!(missing.is_empty(), "no test tries these from another organization: {missing:?}");
    let stale: Vec<_> = WITHOUT_ROWS.iter().filter(|name| !methods.contains(*name)).collect();
    assert!(stale.is_empty(), "exceptions without a method: {stale:?}");
}
