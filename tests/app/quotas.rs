//! What an organization may hold: each quota refuses the first thing beyond it, says what to do, and lets it through afterwards.

use bulkhead_app::AppError;
use bulkhead_app::installation::InstallationPatch;
use bulkhead_app::quota::QuotaExceeded;
use bulkhead_app::run::StartByHand;
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::worker::{Slots, WorkerConfig};
use bulkhead_app::workflow::SaveWorkflow;
use bulkhead_model::id::{InstallationId, PluginId, WorkflowId};
use bulkhead_model::permission::Permission;
use bulkhead_model::quota::Quota;
use bulkhead_store::page::PageRequest;
use bulkhead_test_support::wait::until_async;
use serde_json::{Map, Value, json};

use crate::guests::{acme_echo, echo, logs, manifest, package};
use crate::support::{PATIENCE, Tenant, TestApp, conflict, problems};

#[track_caller]
fn exceeded<T: std::fmt::Debug>(result: Result<T, AppError>) -> QuotaExceeded {
    match result {
        Err(AppError::Quota(over)) => over,
        other => panic!("expected a quota, got {other:?}"),
    }
}

async fn used(app: &TestApp, tenant: &Tenant, quota: Quota) -> (Option<u64>, u64) {
    let shown = app.app.show_quotas(&tenant.caller, tenant.org).await.unwrap();
    shown.into_iter().find(|shown| shown.quota == quota).map(|shown| (shown.used, shown.limit)).unwrap()
}

async fn save(app: &TestApp, tenant: &Tenant, name: &str, step: &Value) -> WorkflowId {
    let definition = json!({
        "schema": 1, "name": name, "triggers": [{ "id": "api", "type": "api" }], "start": "it", "steps": { "it": step },
    });
    let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
    app.app.create_workflow(&tenant.caller, tenant.org, save).await.unwrap().workflow.id
}

fn echo_version(version: &str) -> Vec<u8> {
    package(&echo(), &manifest("acme/echo", version, |_| ()))
}

async fn uninstall(app: &TestApp, tenant: &Tenant, id: InstallationId) {
    app.app.uninstall(&tenant.caller, tenant.org, id, None).await.unwrap();
}

on_both! {
    async fn active_workflows_are_counted(app: TestApp) {
        let acme = app.tenant("acme").await;
        let stop = json!({ "type": "stop" });
        let (first, second) = (save(&app, &acme, "a", &stop).await, save(&app, &acme, "b", &stop).await);
        app.app.set_quota(acme.org, Quota::ActiveWorkflows, 1).await.unwrap();
        let activate = async |id, active| app.app.set_workflow_active(&acme.caller, acme.org, id, active).await;
        activate(first, true).await.unwrap();
        let over = exceeded(activate(second, true).await);
        assert_eq!((over.quota, over.used, over.limit), (Quota::ActiveWorkflows, 1, 1));
        activate(first, true).await.unwrap();
        assert_eq!(used(&app, &acme, Quota::ActiveWorkflows).await, (Some(1), 1));
        activate(first, false).await.unwrap();
        activate(second, true).await.unwrap();
        // What is active stays so under a lower quota.
        app.app.set_quota(acme.org, Quota::ActiveWorkflows, 2).await.unwrap();
        activate(first, true).await.unwrap();
        app.app.set_quota(acme.org, Quota::ActiveWorkflows, 1).await.unwrap();
        assert_eq!(used(&app, &acme, Quota::ActiveWorkflows).await, (Some(2), 1));
    }

    async fn the_operator_sets_quotas_within_their_bounds(app: TestApp) {
        let acme = app.tenant("acme").await;
        for quota in Quota::ALL {
            let (min, max) = quota.bounds();
            for wrong in [min - 1, max + 1] {
                let path = format!("/{}", quota.as_str());
                let refused = app.app.set_quota(acme.org, *quota, wrong).await;
                assert_eq!(problems(refused, "invalid-quota"), [(path, "invalid-quota".to_owned())]);
            }
            app.app.set_quota(acme.org, *quota, min).await.unwrap();
            assert_eq!(used(&app, &acme, *quota).await.1, min);
        }
        let entries = app.audit(&acme, "org.quota_set").await;
        assert_eq!(entries.len(), Quota::ALL.len());
        let expected = json!({ "quota": "active_workflows", "before": 1_000, "after": 1 });
        assert!(entries.iter().any(|entry| entry.detail == expected), "{entries:?}");
        let nobody = acme.only(&[Permission::RunsRead]);
        assert!(matches!(app.app.show_quotas(&nobody, acme.org).await, Err(AppError::Forbidden(Permission::OrgRead))));
    }

    async fn a_payload_has_a_largest_size(app: TestApp) {
        let acme = app.tenant("acme").await;
        let id = save(&app, &acme, "a", &json!({ "type": "stop" })).await;
        let start = async |bytes: usize| {
            let start = StartByHand { input: json!("x".repeat(bytes)), variables: Map::new(), idempotency_key: None };
            app.app.start_run(&acme.caller, acme.org, id, start).await
        };
        start(900_000).await.unwrap();
        app.app.set_quota(acme.org, Quota::PayloadBytes, 1024).await.unwrap();
        start(1024).await.unwrap();
        let over = exceeded(start(100_000).await);
        assert_eq!((over.quota, over.limit), (Quota::PayloadBytes, 1024));
        assert!(over.used > 100_000, "{over:?}");
    }

    async fn logs_of_one_run_end_at_the_quota(app: TestApp) {
        let acme = app.tenant("acme").await;
        let talks = package(&logs(600), &manifest("acme/talks", "1.0.0", |_| ()));
        app.install(&acme, talks, json!({})).await;
        app.app.set_quota(acme.org, Quota::LogBytes, 1024).await.unwrap();
        let step = |next: Value| json!({ "type": "action", "use": "acme/talks#it", "with": {}, "next": next });
        let definition = json!({
            "schema": 1, "name": "talks", "triggers": [{ "id": "api", "type": "api" }], "start": "one",
            "steps": { "one": step(json!("two")), "two": step(Value::Null) },
        });
        let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
        let id = app.app.create_workflow(&acme.caller, acme.org, save).await.unwrap().workflow.id;
        let supervisor = Supervisor::new();
        let config = WorkerConfig { name: "test".into(), slots: Slots::default(), heartbeat: None };
        app.app.start_worker(config, &supervisor).await.unwrap();
        let start = StartByHand { input: json!({}), variables: Map::new(), idempotency_key: None };
        let run = app.app.start_run(&acme.caller, acme.org, id, start).await.unwrap();
        let show = async || app.app.show_run(&acme.caller, acme.org, run).await.unwrap();
        assert!(until_async(PATIENCE, async || show().await.run.status.is_final()).await);
        let mut told = Vec::new();
        for step in show().await.steps {
            let call = app.app.get_call(&acme.caller, acme.org, step.call.unwrap()).await.unwrap();
            told.push((call.report.log.len(), call.report.log_truncated));
        }
        assert_eq!(told, [(1, false), (0, true)], "the second line has no room any more");
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn a_version_that_nothing_uses_can_be_deleted(app: TestApp) {
        let acme = app.tenant("acme").await;
        let upload = async |bytes: Vec<u8>| app.app.upload_plugin(&acme.caller, acme.org, bytes.into()).await;
        let delete = async |id: PluginId| app.app.delete_plugin(&acme.caller, acme.org, id).await;
        let installed = app.install(&acme, acme_echo(), json!({})).await;
        let (inst, first) = (installed.installation.id, installed.plugin.id);
        let call = app.app.call_once(&acme.caller, acme.org, inst, "it".into(), json!("x")).await.unwrap();
        app.app.set_quota(acme.org, Quota::PluginVersions, 2).await.unwrap();
        let second = upload(echo_version("1.0.1")).await.unwrap().plugin.id;
        let over = exceeded(upload(echo_version("1.0.2")).await);
        assert_eq!((over.quota, over.used, over.limit), (Quota::PluginVersions, 2, 2));
        assert!(over.hint.contains("DELETE"), "{over:?}");

        assert_eq!(conflict(delete(first).await), "plugin-installed");
        delete(second).await.unwrap();
        assert!(matches!(delete(second).await, Err(AppError::NotFound { .. })));
        let listed = app.app.list_plugins(&acme.caller, acme.org, None, PageRequest::default()).await.unwrap();
        assert_eq!(listed.items.iter().map(|plugin| plugin.id).collect::<Vec<_>>(), [first]);
        let third = upload(echo_version("1.0.2")).await.unwrap().plugin.id;

        // What stands in the history keeps its name, and its version keeps its meaning.
        let patch = InstallationPatch { version: Some("1.0.2".into()), ..InstallationPatch::default() };
        let seen = installed.installation.grant_version;
        app.app.update_installation(&acme.caller, acme.org, inst, seen, patch).await.unwrap();
        delete(first).await.unwrap();
        let found = app.app.get_call(&acme.caller, acme.org, call.id).await.unwrap();
        let named = app.app.get_plugin(&acme.caller, acme.org, found.plugin).await.unwrap();
        assert!((named.id, named.version.as_str(), named.deleted_at.is_some()) == (first, "1.0.0", true));
        let other = package(&echo(), &manifest("acme/echo", "1.0.0", |manifest| manifest["title"] = json!("Other")));
        assert_eq!(conflict(upload(other).await), "version-exists");
        // A deleted version cannot be had.
        let seen = app.app.get_installation(&acme.caller, acme.org, inst).await.unwrap().installation.grant_version;
        let back = InstallationPatch { version: Some("1.0.0".into()), ..InstallationPatch::default() };
        problems(app.app.update_installation(&acme.caller, acme.org, inst, seen, back.clone()).await, "invalid-installation");
        // The same bytes come back as what they were.
        let again = upload(acme_echo()).await.unwrap();
        assert!((again.created, again.plugin.id, again.plugin.deleted_at) == (true, first, None));
        app.app.update_installation(&acme.caller, acme.org, inst, seen, back).await.unwrap();
        app.app.call_once(&acme.caller, acme.org, inst, "it".into(), json!("x")).await.unwrap();
        delete(third).await.unwrap();
        uninstall(&app, &acme, inst).await;
        delete(first).await.unwrap();
        assert_eq!(used(&app, &acme, Quota::PluginVersions).await, (Some(0), 2));
        let kept = used(&app, &acme, Quota::PluginBytes).await.0;
        assert!(matches!(kept, Some(1..=10_000)), "of three versions the manifests: {kept:?}");
        assert_eq!(app.audit(&acme, "plugin.deleted").await.len(), 4);
        let reader = acme.only(&[Permission::PluginsRead]);
        assert!(matches!(app.app.delete_plugin(&reader, acme.org, first).await, Err(AppError::Forbidden(_))));
    }
}
