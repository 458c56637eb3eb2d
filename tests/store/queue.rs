//! Looking at the queue: counts, waits and holders of one organization and of all; and a store that only looks.

use std::time::Duration;

use bulkhead_model::id::{RunId, WorkerId};
use bulkhead_model::job::{JobPayload, Lane};
use bulkhead_model::permission::{SystemReason, SystemScope};
use bulkhead_store::job::look::{BlockedGroup, HeldCount, JobCount, LaneUse, ReadySince};
use bulkhead_store::job::{JobGroup, NewJob};
use bulkhead_store::node::NodeSlots;
use bulkhead_store::{Store, StoreError};

use crate::support::{self, JOBS, Tenant, TestStore};

const MINUTE: Duration = Duration::from_mins(1);
const NODES: SystemScope = SystemScope::new(SystemReason::Nodes);

async fn enqueue(test: &TestStore, tenant: &Tenant, job: NewJob) {
    let ambient = test.ambient.clone();
    tx!(test.write, &tenant.scope(), [job, ambient], |tx| tx.enqueue(job, ambient).await).unwrap().unwrap();
}

/// A job of a run that comes after those of others with a lower priority.
fn job(test: &TestStore, priority: i64, after: Duration, group: Option<&str>) -> NewJob {
    let run = RunId::new(&test.ambient);
    let group = group.map(|key| JobGroup { key: key.to_owned(), limit: 1 });
    NewJob { priority, group, ..support::job(run, test.ambient.now().plus(after)) }
}

fn count(lane: &str, kind: &str, count: i64) -> JobCount {
    JobCount { lane: lane.to_owned(), kind: kind.to_owned(), count }
}

async fn claim(test: &TestStore, lane: Lane) -> (WorkerId, usize) {
    let (worker, now) = (test.worker().await, test.ambient.now());
    let claimed = tx!(test.write_locked, &JOBS, [worker, lane, now], |tx| {
        crate::support::claim_any(tx, *worker, *lane, 9, *now, MINUTE).await
    });
    (worker, claimed.unwrap().len())
}

on_both! {
    async fn an_organizations_queue_is_counted(test: TestStore) {
        // One ready job of its run comes with each tenant.
        let (acme, other) = (test.tenant("acme").await, test.tenant("other").await);
        let begun = test.ambient.now();
        test.ambient.advance(MINUTE);
        enqueue(&test, &acme, job(&test, -5, Duration::ZERO, None)).await;
        enqueue(&test, &acme, job(&test, 0, MINUTE * 2, None)).await;
        enqueue(&test, &acme, job(&test, 0, MINUTE, None)).await;
        let schedule = NewJob {
            payload: JobPayload::FireSchedule { workflow: acme.workflow.id, trigger: "nightly".parse().unwrap() },
            dedupe_key: Some("nightly".into()),
            ..job(&test, 0, Duration::ZERO, None)
        };
        enqueue(&test, &acme, schedule).await;
        let seen = tx!(test.read, &acme.scope(), [], |tx| {
            tx.prefer_indexes().await?;
            let interactive = Lane::Interactive;
            assert_eq!(tx.count_ready_jobs_of_org(interactive).await?, [count("interactive", "advance_run", 2)]);
            assert_eq!(tx.count_ready_jobs_of_org(Lane::System).await?, [count("system", "fire_schedule", 1)]);
            assert_eq!(tx.count_ready_jobs_of_org(Lane::Bulk).await?, []);
            assert_eq!(tx.count_future_jobs_of_org(interactive).await?, [count("interactive", "advance_run", 2)]);
            assert_eq!(tx.count_leased_jobs_of_org(interactive).await?, []);
            assert_eq!(tx.count_dead_jobs_of_org(interactive).await?, []);
            assert_eq!(tx.load_ready_since(Lane::Bulk).await?, None);
            assert_eq!(tx.load_lane_use(interactive).await?, LaneUse { held: 0, jobs_max: 64 });
            Ok((tx.load_ready_since(interactive).await?, tx.load_next_due(interactive).await?))
        });
        // The oldest is not the first: another one has a lower priority number.
        assert_eq!(seen.unwrap(), (Some(begun), Some(begun.plus(MINUTE * 2))));
        let key = acme.run.id.to_string();
        let ahead = tx!(test.read, &acme.scope(), [key], |tx| {
            let job = tx.load_live_job("advance_run", key).await?.expect("it waits");
            tx.count_jobs_ahead(Lane::Interactive, &job).await
        });
        assert_eq!(ahead.unwrap(), 1);

        let all = tx!(test.read, &JOBS, [], |tx| {
            assert_eq!(tx.count_ready_jobs(Lane::Interactive).await?, [count("interactive", "advance_run", 3)]);
            assert_eq!(tx.count_future_jobs().await?, [count("interactive", "advance_run", 2)]);
            assert_eq!(tx.count_blocked_jobs().await?, []);
            assert_eq!(tx.count_dead_jobs().await?, []);
            assert_eq!(tx.list_ready_since(Lane::Interactive, 1).await?.len(), 1);
            tx.list_ready_since(Lane::Interactive, 9).await
        });
        let mut expected = vec![
            ReadySince { org: acme.org, priority: -5, since: begun.plus(MINUTE) },
            ReadySince { org: acme.org, priority: 0, since: begun },
            ReadySince { org: other.org, priority: 0, since: begun },
        ];
        expected.sort_by_key(|since| (since.org, since.priority));
        assert_eq!(all.unwrap(), expected);
        let org = acme.org;
        let slug = tx!(test.read, &JOBS, [org], |tx| tx.load_queue_slug(*org).await).unwrap();
        assert_eq!(slug.as_deref(), Some("acme"));
    }

    /// What its group or a breaker held back keeps its place in the line, and is ready since it was let go.
    async fn a_job_that_was_held_back_is_not_ready_since_it_was_due(test: TestStore) {
        let acme = test.tenant("acme").await;
        claim(&test, Lane::Interactive).await;
        let (worker, now) = (test.worker().await, test.ambient.now());
        for _ in 0..2 {
            enqueue(&test, &acme, job(&test, 0, Duration::ZERO, Some("g"))).await;
        }
        let claimed = tx!(test.write_locked, &JOBS, [worker, now], |tx| {
            crate::support::claim_any(tx, *worker, Lane::Interactive, 9, *now, MINUTE).await
        });
        let mut claimed = claimed.unwrap();
        assert_eq!(claimed.len(), 1, "the other one is blocked");
        let lease = claimed.remove(0).lease;
        let (paused, ambient, name) = (job(&test, 1, Duration::ZERO, None), test.ambient.clone(), acme.hold_name());
        tx!(test.write, &acme.scope(), [paused, ambient, name], |tx| tx.enqueue_paused(paused, name, ambient).await).unwrap();
        let ready_since = async || {
            let org = tx!(test.read, &acme.scope(), [], |tx| tx.load_ready_since(Lane::Interactive).await).unwrap();
            let all = tx!(test.read, &JOBS, [], |tx| tx.list_ready_since(Lane::Interactive, 9).await).unwrap();
            (org, all.into_iter().map(|ready| (ready.priority, ready.since)).collect::<Vec<_>>())
        };
        assert_eq!(ready_since().await, (None, vec![]), "one is held, one blocked, one paused");

        test.ambient.advance(MINUTE * 30);
        let admitted = test.ambient.now();
        tx!(test.write_locked, &acme.scope(), [lease, admitted], |tx| tx.finish_job(lease, *admitted).await).unwrap();
        assert_eq!(ready_since().await, (Some(admitted), vec![(0, admitted)]));
        test.ambient.advance(MINUTE);
        let resumed = test.ambient.now();
        tx!(test.write_locked, &acme.scope(), [name, resumed], |tx| tx.resume_paused_jobs(name, 9, *resumed).await).unwrap();
        assert_eq!(ready_since().await, (Some(admitted), vec![(0, admitted), (1, resumed)]));
    }

    async fn who_holds_what_is_told(test: TestStore) {
        let (acme, other) = (test.tenant("acme").await, test.tenant("other").await);
        for _ in 0..3 {
            enqueue(&test, &acme, job(&test, 0, Duration::ZERO, Some("g"))).await;
        }
        let (worker, taken) = claim(&test, Lane::Interactive).await;
        assert_eq!(taken, 3, "of the group one is taken, and each tenant's own");
        let (limit, held) = (1, 1);
        let found = tx!(test.read, &acme.scope(), [], |tx| {
            assert_eq!(tx.count_blocked_jobs_of_org().await?, [count("interactive", "advance_run", 2)]);
            assert_eq!(tx.count_leased_jobs_of_org(Lane::Interactive).await?, [count("interactive", "advance_run", 2)]);
            assert_eq!((tx.list_group_runs("g", 9).await?.len(), tx.count_group_held("g").await?), (1, 1));
            Ok((tx.list_holders_of_org(Lane::Interactive).await?, tx.list_blocked_groups(9).await?))
        });
        let holds = |count| HeldCount { lane: "interactive".into(), worker, count };
        let group = BlockedGroup { key: "g".into(), limit, held, waiting: 2 };
        assert_eq!(found.unwrap(), (vec![holds(2)], vec![group]));
        let all = tx!(test.read, &JOBS, [], |tx| Ok((tx.list_holders().await?, tx.count_blocked_jobs().await?)));
        assert_eq!(all.unwrap(), (vec![holds(3)], vec![count("interactive", "advance_run", 2)]));
        let none = tx!(test.read, &other.scope(), [], |tx| tx.list_blocked_groups(9).await).unwrap();
        assert_eq!(none, []);

        let slots = NodeSlots { system: 1, interactive: 2, bulk: 3 };
        tx!(test.write_locked, &JOBS, [worker, slots], |tx| tx.update_node_slots(*worker, *slots).await).unwrap();
        let nodes = tx!(test.read, &NODES, [], |tx| tx.list_nodes().await).unwrap();
        assert_eq!(nodes.iter().find(|node| node.id == worker).unwrap().slots, slots);
        assert_eq!([Lane::System, Lane::Interactive, Lane::Bulk].map(|lane| slots.of(lane)), [1, 2, 3]);
    }

    async fn the_organization_of_a_run_is_found(test: TestStore) {
        let (acme, other) = (test.tenant("acme").await, test.tenant("other").await);
        for tenant in [&acme, &other] {
            let run = tenant.run.id;
            let org = tx!(test.read, &NODES, [run], |tx| tx.find_org_of_run(*run).await).unwrap();
            assert_eq!(org, Some(tenant.org));
        }
        let nobody = RunId::new(&test.ambient);
        assert_eq!(tx!(test.read, &NODES, [nobody], |tx| tx.find_org_of_run(*nobody).await).unwrap(), None);
    }

    /// Beside the serving process, and without leaving a trace.
    async fn a_store_that_looks_changes_nothing(test: TestStore) {
        let acme = test.tenant("acme").await;
        let (looking, scope) = (test.look().await, acme.scope());
        assert!(looking.is_served());
        let run = acme.run.id;
        let found = looking.read(&scope, run, |tx, run| Box::pin(async move { tx.load_run(*run).await }));
        assert_eq!(found.await.unwrap().unwrap().id, run);
        let ambient = test.ambient.clone();
        let written = looking.write(&scope, ambient, |tx, ambient| {
            Box::pin(async move { tx.record_event("x", "y", &serde_json::json!({}), ambient).await })
        });
        assert!(written.await.is_err());
        // It sees what is written meanwhile.
        enqueue(&test, &acme, job(&test, 0, Duration::ZERO, None)).await;
        let ready = looking.read(&scope, (), |tx, ()| {
            Box::pin(async move { tx.count_ready_jobs_of_org(Lane::Interactive).await })
        });
        assert_eq!(ready.await.unwrap(), [count("interactive", "advance_run", 2)]);
        looking.close().await;
    }
}

#[tokio::test]
async fn nothing_is_made_by_looking() {
    let dir = tempfile::tempdir().unwrap();
    let looked = Store::look(support::sqlite_config(dir.path())).await;
    assert!(matches!(looked, Err(StoreError::Refused(_))));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "not even a lock");

    let store = Store::open(support::sqlite_config(dir.path())).await.unwrap();
    store.close().await;
    drop(store);
    let before = std::fs::read(dir.path().join("bulkhead.sqlite")).unwrap();
    let looking = Store::look(support::sqlite_config(dir.path())).await.unwrap();
    assert!(!looking.is_served(), "nobody holds the lock");
    looking.read(&NODES, (), |tx, ()| Box::pin(async move { tx.list_nodes().await })).await.unwrap();
    looking.close().await;
    assert_eq!(std::fs::read(dir.path().join("bulkhead.sqlite")).unwrap(), before);
    // Whoever serves next is not kept out.
    Store::open(support::sqlite_config(dir.path())).await.unwrap().close().await;
}
