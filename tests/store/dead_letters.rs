//! The list of dead letters: groups by fault, filters, one entry for each subject, tasks, and jobs brought back.

use std::time::Duration;

use bulkhead_model::fault::Fault;
use bulkhead_model::id::{DeadLetterId, WorkflowId};
use bulkhead_store::dead_letter::task::TaskState;
use bulkhead_store::dead_letter::{COUNT_MAX, DeadLetter, DeadLetterFilter, FaultGroup, NewDeadLetter};
use bulkhead_store::page::PageRequest;

use crate::support::{self, Tenant, TestStore};

const SECOND: Duration = Duration::from_secs(1);

/// An entry that is no run's.
fn of_job(key: &str, workflow: WorkflowId, message: &str) -> NewDeadLetter {
    let fault = Fault { kind: "fire_schedule", code: "worker-died", step: Some("nightly"), message };
    NewDeadLetter {
        fingerprint: fault.fingerprint(),
        kind: "fire_schedule".to_owned(),
        subject: key.to_owned(),
        workflow: Some(workflow),
        run: None,
        job: None,
        step: Some("nightly".to_owned()),
        code: "worker-died".to_owned(),
        message: message.to_owned(),
    }
}

async fn record(test: &TestStore, tenant: &Tenant, letters: Vec<NewDeadLetter>) {
    let ambient = test.ambient.clone();
    tx!(test.write, &tenant.scope(), [letters, ambient], |tx| {
        for letter in letters {
            tx.record_dead_letter(letter, ambient).await?;
        }
        Ok(())
    })
    .unwrap();
}

async fn list(test: &TestStore, tenant: &Tenant, filter: DeadLetterFilter, page: PageRequest) -> Vec<DeadLetter> {
    tx!(test.read, &tenant.scope(), [filter, page], |tx| tx.list_dead_letters(filter, *page).await).unwrap().items
}

async fn faults(test: &TestStore, tenant: &Tenant) -> Vec<FaultGroup> {
    tx!(test.read, &tenant.scope(), [], |tx| tx.list_faults(None, 9).await).unwrap()
}

fn subjects(letters: &[DeadLetter]) -> Vec<&str> {
    letters.iter().map(|letter| letter.new.subject.as_str()).collect()
}

on_both! {
    async fn entries_are_listed_by_each_filter(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let other = WorkflowId::new(&test.ambient);
        let began = test.ambient.now();
        test.ambient.advance(SECOND);
        record(&test, &tenant, vec![of_job("a", other, "took 5 ms")]).await;
        test.ambient.advance(SECOND);
        let middle = test.ambient.now();
        record(&test, &tenant, vec![of_job("b", other, "took 7 ms")]).await;
        test.ambient.advance(SECOND);
        record(&test, &tenant, vec![of_job("c", tenant.workflow.id, "broke")]).await;

        let run = tenant.run.id.to_string();
        let all = DeadLetterFilter::default;
        let page = PageRequest::default();
        let listed = list(&test, &tenant, all(), page).await;
        assert_eq!(subjects(&listed), ["c", "b", "a", &run], "newest first");
        assert_eq!(listed[3].new, tenant.dead_letter);
        let of = async |filter: DeadLetterFilter| {
            let found = list(&test, &tenant, filter, page).await;
            found.into_iter().map(|letter| letter.new.subject).collect::<Vec<_>>()
        };
        let fingerprint = listed[2].new.fingerprint.clone();
        assert_eq!(of(DeadLetterFilter { fingerprint: Some(fingerprint.clone()), ..all() }).await, ["b", "a"]);
        assert_eq!(of(DeadLetterFilter { workflow: Some(tenant.workflow.id), ..all() }).await, ["c", &run]);
        assert_eq!(of(DeadLetterFilter { kind: Some("run".into()), ..all() }).await, [run.as_str()]);
        let both = DeadLetterFilter { workflow: Some(tenant.workflow.id), kind: Some("fire_schedule".into()), ..all() };
        assert_eq!(of(both).await, ["c"]);
        let crossed = DeadLetterFilter { workflow: Some(tenant.workflow.id), fingerprint: Some(fingerprint.clone()), ..all() };
        assert!(of(crossed).await.is_empty());
        let crossed = DeadLetterFilter { workflow: Some(other), fingerprint: Some(fingerprint.clone()), ..all() };
        assert_eq!(of(crossed.clone()).await, ["b", "a"]);
        assert_eq!(of(DeadLetterFilter { since: Some(middle), ..crossed.clone() }).await, ["b"]);
        assert!(of(DeadLetterFilter { kind: Some("run".into()), ..crossed }).await.is_empty());
        assert_eq!(of(DeadLetterFilter { since: Some(middle), ..all() }).await, ["c", "b"]);
        assert_eq!(of(DeadLetterFilter { until: Some(middle), ..all() }).await, ["a", &run]);
        let during = DeadLetterFilter { since: Some(began.plus(SECOND)), until: Some(middle), fingerprint: Some(fingerprint), ..all() };
        assert_eq!(of(during).await, ["a"]);
        let first = list(&test, &tenant, all(), PageRequest { before: None, limit: 2 }).await;
        let rest = list(&test, &tenant, all(), PageRequest { before: Some(first[1].id.uuid()), limit: 2 }).await;
        assert_eq!((subjects(&first), subjects(&rest)), (vec!["c", "b"], vec!["a", run.as_str()]));
    }

    async fn a_fault_is_told_once_however_often_it_happens(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (began, other) = (test.ambient.now(), WorkflowId::new(&test.ambient));
        test.ambient.advance(SECOND);
        record(&test, &tenant, vec![of_job("a", other, "took 5 ms"), of_job("b", tenant.workflow.id, "took 7 ms")]).await;
        test.ambient.advance(SECOND);
        record(&test, &tenant, vec![of_job("a", other, "took 9 ms")]).await;

        let groups = faults(&test, &tenant).await;
        assert_eq!(groups.len(), 2);
        let of_jobs = groups.iter().find(|group| group.newest.new.kind == "fire_schedule").unwrap();
        assert_eq!((of_jobs.count, of_jobs.first_seen_at), (2, began.plus(SECOND)));
        let of_run = groups.iter().find(|group| group.newest.new.kind == "run").unwrap();
        assert_eq!((of_run.count, of_run.first_seen_at, of_run.newest.times), (1, began, 1));
        let fingerprint = of_jobs.newest.new.fingerprint.clone();
        let mut expected = [other, tenant.workflow.id];
        expected.sort_by_key(|workflow| workflow.uuid());
        let workflows = tx!(test.read, &tenant.scope(), [fingerprint], |tx| tx.list_fault_workflows(fingerprint).await);
        assert_eq!(workflows.unwrap(), expected);

        // One entry stands for a subject and tells how often, and of the last time.
        let again = tx!(test.read, &tenant.scope(), [], |tx| tx.load_dead_letter_of("fire_schedule", "a").await).unwrap().unwrap();
        assert_eq!((again.times, again.new.message.as_str()), (2, "took 9 ms"));
        assert_eq!((again.created_at, again.updated_at), (began.plus(SECOND), began.plus(SECOND * 2)));

        // The next page begins after the last fault of this one.
        let first = groups[0].newest.new.fingerprint.clone();
        let rest = tx!(test.read, &tenant.scope(), [first], |tx| tx.list_faults(Some(first), 9).await).unwrap();
        assert_eq!(rest.len(), 1);
        assert_eq!(rest[0].newest.id, groups[1].newest.id);
    }

    async fn entries_are_counted_up_to_a_bound(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let many = COUNT_MAX + 5;
        let letters = (0..many).map(|n| of_job(&format!("job {n}"), tenant.workflow.id, "broke")).collect();
        record(&test, &tenant, letters).await;
        let groups = faults(&test, &tenant).await;
        let mut counts: Vec<i64> = groups.iter().map(|group| group.count).collect();
        counts.sort_unstable();
        assert_eq!(counts, [1, COUNT_MAX + 1]);
    }

    async fn an_entry_leaves_the_list_once(test: TestStore) {
        let tenant = test.tenant("acme").await;
        record(&test, &tenant, vec![of_job("a", tenant.workflow.id, "broke")]).await;
        let listed = list(&test, &tenant, DeadLetterFilter::default(), PageRequest::default()).await;
        // Ids of one millisecond have no order.
        let first = listed.iter().find(|letter| letter.new.subject == "a").unwrap();
        let id = first.id;
        let found = tx!(test.read, &tenant.scope(), [id], |tx| tx.load_dead_letter(*id).await).unwrap();
        assert_eq!(found.as_ref(), Some(first));
        let left = tx!(test.write, &tenant.scope(), [id], |tx| {
            Ok((tx.lock_dead_letter(*id).await?.is_some(), tx.delete_dead_letter(*id).await?, tx.delete_dead_letter(*id).await?))
        });
        assert_eq!(left.unwrap(), (true, true, false));
        let subject = tenant.run.id.to_string();
        let left = tx!(test.write, &tenant.scope(), [subject], |tx| {
            Ok((tx.delete_dead_letter_of("run", subject).await?, tx.delete_dead_letter_of("run", subject).await?))
        });
        assert_eq!(left.unwrap(), (true, false));
        assert!(faults(&test, &tenant).await.is_empty());
    }

    /// Its foreign key is the run's: nobody is asked to decide about what is not there.
    async fn an_entry_names_a_run_that_is_there(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let nobody = support::run(&test.ambient, tenant.workflow.id, None);
        let letter = support::dead_letter(&nobody, "gone");
        let ambient = test.ambient.clone();
        let refused = tx!(test.write, &tenant.scope(), [letter, ambient], |tx| tx.record_dead_letter(letter, ambient).await);
        assert!(refused.is_err());
    }

    /// Whatever a plugin says, its run can be ended.
    async fn a_message_may_hold_anything(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let mut letter = of_job("a", tenant.workflow.id, &format!("\0{}", "ä".repeat(5_000)));
        "a\0b".clone_into(&mut letter.code);
        record(&test, &tenant, vec![letter]).await;
        let found = tx!(test.read, &tenant.scope(), [], |tx| tx.load_dead_letter_of("fire_schedule", "a").await).unwrap().unwrap();
        assert_eq!((found.new.code.as_str(), found.new.message.chars().count()), ("a\u{fffd}b", 2_000));
        assert!(found.new.message.starts_with("\u{fffd}ä"));
    }

    async fn a_task_is_kept_and_goes_on(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let mut task = tenant.dead_letter_task.clone();
        let id = task.id;
        let found = tx!(test.read, &tenant.scope(), [id], |tx| tx.load_dead_letter_task(*id).await).unwrap();
        assert_eq!(found.as_ref(), Some(&task));
        (task.seen, task.done, task.skipped) = (20, 19, 1);
        task.skipped_why = Some("the run has not ended yet".into());
        task.cursor = DeadLetterId::new(&test.ambient);
        (task.state, task.finished_at) = (TaskState::Stopped, Some(test.ambient.now()));
        let listed = tx!(test.write, &tenant.scope(), [task], |tx| {
            tx.update_dead_letter_task(task).await?;
            assert_eq!(tx.lock_dead_letter_task(task.id).await?.as_ref(), Some(task));
            tx.list_dead_letter_tasks(PageRequest::default()).await
        });
        assert_eq!(listed.unwrap().items, [task]);
    }

    async fn tasks_that_go_on_are_counted_and_those_that_ended_go_by_age(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let mut gone = Vec::new();
        for _ in 0..3 {
            let mut task = support::dead_letter_task(&test.ambient);
            (task.state, task.finished_at) = (TaskState::Done, Some(test.ambient.now()));
            gone.push(task);
            test.ambient.advance(SECOND);
        }
        let (more, last) = (support::dead_letter_task(&test.ambient), gone[2].clone());
        let (before, own) = (gone[2].finished_at.unwrap(), tenant.dead_letter_task.id);
        tx!(test.write, &tenant.scope(), [gone, more, last, before, own], |tx| {
            tx.insert_dead_letter_task(more).await?;
            for task in gone {
                tx.insert_dead_letter_task(task).await?;
            }
            assert_eq!([tx.count_running_dead_letter_tasks(9).await?, tx.count_running_dead_letter_tasks(1).await?], [2, 1]);
            let removed = [tx.remove_dead_letter_tasks(*before, 1).await?, tx.remove_dead_letter_tasks(*before, 9).await?];
            assert_eq!(removed, [1, 1]);
            let left = tx.list_dead_letter_tasks(PageRequest::default()).await?.items;
            assert!(left.iter().any(|task| task.id == last.id) && left.iter().any(|task| task.id == *own), "{left:?}");
            assert_eq!(left.len(), 3, "one of that moment, and those that go on");
            Ok(())
        })
        .unwrap();
    }
}
