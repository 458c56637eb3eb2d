//! The Nth statement fails, for each N: a composite write is there as a whole or not at all.

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::run::{RunStatus, StepStatus};
use bulkhead_store::StoreError;
use bulkhead_store::audit::AuditFilter;
use bulkhead_store::page::PageRequest;
use serde_json::json;

use crate::support::{Tenant, TestStore, audit, job, run, scope, step};

/// Everything of the organization that the scenarios touch, as text.
async fn picture(test: &TestStore, tenant: &Tenant) -> String {
    let tenant_again = tenant.clone();
    tx!(test.read, &tenant.scope(), [tenant_again], |tx| {
        let page = PageRequest::default();
        let mut rows = Vec::new();
        rows.push(format!("{:?}", tx.list_runs(None, None, page).await?));
        for run in tx.list_runs(None, None, page).await?.items {
            rows.push(format!("{:?}", tx.list_steps(run.id).await?));
            rows.push(format!("{:?}", tx.list_run_events(run.id, 0, 99).await?));
        }
        rows.push(format!("{:?}", tx.list_jobs(None, page).await?));
        rows.push(format!("{:?}", tx.list_events(None, page).await?));
        rows.push(format!("{:?}", tx.list_audit(&AuditFilter::default(), page).await?));
        rows.push(format!("{:?}", tx.list_api_keys(page).await?));
        rows.push(format!("{:?}", tx.load_installation(tenant_again.installation.id).await?));
        Ok(rows.join("\n"))
    })
    .unwrap()
}

/// Runs `attempt` with the first, second, third … statement failing until it passes; after each failure nothing may have
/// changed, and after the success everything. Answers how many statements there were.
async fn fail_each_statement(
    test: &TestStore,
    tenant: &Tenant,
    attempt: impl AsyncFn() -> Result<(), StoreError>,
) -> i64 {
    let before = picture(test, tenant).await;
    for n in 1..200 {
        test.store.fault_hook().arm(n);
        let result = attempt().await;
        let spent = test.store.fault_hook().is_spent();
        test.store.fault_hook().arm(0);
        if !spent {
            result.unwrap();
            assert_ne!(picture(test, tenant).await, before);
            return n - 1;
        }
        assert!(matches!(result, Err(StoreError::Unavailable(_))), "{n}: {result:?}");
        assert_eq!(picture(test, tenant).await, before, "after statement {n} failed");
    }
    panic!("the scenario never passed");
}

on_both! {
    async fn starting_a_run_is_all_or_nothing(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let new = run(&test.ambient, tenant.workflow.id, Some("delivery"));
        let (first, queued) = (step("check", 0, test.ambient.now()), job(new.id, test.ambient.now()));
        let (entry, event, ambient) = (audit(EventType::RunStarted, "x"), tenant.run_event.clone(), test.ambient.clone());
        let (at, store) = (&tenant, &test);
        let statements = fail_each_statement(&test, &tenant, async || {
            tx!(store.write, &at.scope(), [new, first, queued, entry, event, ambient], |tx| {
                assert!(tx.insert_run(new).await?);
                tx.save_step(new.id, first).await?;
                tx.record_run_event(new.id, event).await?;
                assert!(tx.enqueue(queued, ambient).await?.is_some());
                tx.record_event("run.started", "x", &json!({}), ambient).await?;
                tx.record_audit(entry, ambient).await
            })
        })
        .await;
        // On PostgreSQL an audit entry is one statement.
        assert_eq!(statements, if test.store.is_postgres() { 6 } else { 7 });
    }

    async fn committing_a_step_under_its_lease_is_all_or_nothing(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (worker, now, minute) = (test.worker().await, test.ambient.now(), std::time::Duration::from_mins(1));
        let lease = tx!(test.write_locked, &crate::support::JOBS, [worker, now, minute], |tx| {
            crate::support::claim_any(tx, *worker, bulkhead_model::job::Lane::Interactive, 1, *now, *minute).await
        });
        let lease = lease.unwrap().remove(0).lease;
        let (run, inst) = (tenant.run.id, tenant.installation.id);
        let (store, at) = (&test, &tenant);
        let call = crate::support::call(&test.ambient, inst, tenant.plugin.id, Some(run));
        let mut done = tenant.step.clone();
        done.status = StepStatus::Succeeded;
        let mut event = tenant.run_event.clone();
        event.seq = 2;
        let statements = fail_each_statement(&test, &tenant, async || {
            tx!(store.write_locked, &at.scope(), [lease, run, inst, call, done, event, now, minute], |tx| {
                tx.hold_lease(lease, *minute, *now).await?;
                tx.lock_run_place(*run).await?;
                let mut row = tx.require_run(*run).await?;
                assert!(tx.lock_installation_version(*inst).await?.is_some());
                tx.record_call(call).await?;
                tx.save_step(*run, done).await?;
                tx.record_run_event(*run, event).await?;
                (row.status, row.log_seq) = (RunStatus::Succeeded, 2);
                tx.update_run(&row).await?;
                tx.finish_job(lease, *now).await
            })
        })
        .await;
        assert_eq!(statements, 9);
    }

    async fn a_fault_in_one_organization_is_not_felt_in_another(test: TestStore) {
        let (a, b) = (test.tenant("a").await, test.org("b").await);
        test.store.fault_hook().arm(1);
        let failed = tx!(test.read, &a.scope(), [], |tx| tx.require_org().await);
        assert!(matches!(failed, Err(StoreError::Unavailable(_))), "{failed:?}");
        assert_eq!(tx!(test.read, &scope(b), [], |tx| tx.require_org().await).unwrap().slug.as_str(), "b");
    }
}
