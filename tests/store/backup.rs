//! Backups: what was there is there again, in a database of either kind; one moment, all of it or nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bulkhead_model::id::OrgId;
use bulkhead_model::job::Lane;
use bulkhead_model::permission::SystemReason;
use bulkhead_model::time::Timestamp;
use bulkhead_store::audit::AuditFilter;
use bulkhead_store::backup::{self, BackupError, RestoredKeys, Summary, TABLES, TABLES_LEFT_OUT, TABLES_OF_PEOPLE};
use bulkhead_store::page::PageRequest;
use bulkhead_store::seal::{RootKey, RootKeys};
use bulkhead_store::{Store, StoreConfig, StoreError};
use serde_json::json;
use sqlx::{AssertSqlSafe, Row as _};

use crate::support::{JOBS, TestStore, app_url, job, postgres_config, postgres_database, run, scope, sqlite_config};

fn root() -> RootKey {
    RootKey::new([5; 32])
}

/// The one that seals archives, and the one that the fixtures' organizations have.
fn roots() -> RootKeys {
    RootKeys::single(root()).with_next(crate::keys::root(1)).unwrap()
}

pub(crate) fn config(test: &TestStore) -> StoreConfig {
    if test.store.is_postgres() {
        postgres_config(Some(app_url(test.database().url())), None)
    } else {
        sqlite_config(test.dir())
    }
}

async fn create(test: &TestStore) -> Result<(Vec<u8>, Summary), BackupError> {
    backup::create(&config(test), &root(), &test.ambient, "0.1.0", Vec::new(), &mut |_| {}).await
}

async fn restore(config: &StoreConfig, archive: &[u8]) -> Result<Summary, BackupError> {
    backup::restore(config, &roots(), &crate::support::ambient(), Cursor::new(archive), &mut |_| {}).await
}

/// Every table's rows as text, the same words on both databases; not read by the code under test.
async fn dump(test: &TestStore, orgs: &[OrgId]) -> BTreeMap<String, BTreeSet<String>> {
    let mut tables = BTreeMap::new();
    for table in TABLES {
        let rows: BTreeSet<String> = if test.store.is_postgres() {
            postgres_rows(test, table, orgs).await
        } else {
            sqlite_rows(test, table).await
        };
        tables.insert((*table).to_owned(), rows);
    }
    tables
}

async fn sqlite_rows(test: &TestStore, table: &str) -> BTreeSet<String> {
    let mut conn = test.raw_sqlite().await;
    let columns: Vec<String> = sqlx::query_scalar("select name from pragma_table_info($1) order by name")
        .bind(table)
        .fetch_all(&mut conn)
        .await
        .unwrap();
    let text = |name: &String| {
        format!(
            "'{name}=' || coalesce(case typeof(\"{name}\") when 'blob' then lower(hex(\"{name}\")) else \"{name}\" end, '-')"
        )
    };
    let sql = format!("select {} from \"{table}\"", columns.iter().map(text).collect::<Vec<_>>().join(" || ' ' || "));
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut conn).await.unwrap().into_iter().collect()
}

async fn postgres_rows(test: &TestStore, table: &str, orgs: &[OrgId]) -> BTreeSet<String> {
    let mut conn = test.raw_postgres().await;
    let columns = sqlx::query(
        "select attname::text, format_type(atttypid, null) from pg_attribute
         where attrelid = format('%I', $1::text)::regclass and attnum > 0 and not attisdropped order by attname collate \"C\"",
    )
    .bind(table)
    .fetch_all(&mut conn)
    .await
    .unwrap();
    let text = |row: &sqlx::postgres::PgRow| {
        let (name, kind): (String, String) = (row.get(0), row.get(1));
        let value = match kind.as_str() {
            "uuid" => format!("replace(\"{name}\"::text, '-', '')"),
            "bytea" => format!("encode(\"{name}\", 'hex')"),
            "timestamp with time zone" => format!("(extract(epoch from \"{name}\") * 1000000)::bigint::text"),
            _ => format!("\"{name}\"::text"),
        };
        format!("'{name}=' || coalesce({value}, '-')")
    };
    let text = columns.iter().map(text).collect::<Vec<_>>().join(" || ' ' || ");
    let sql = format!("select {text} from \"{table}\"");
    let mut rows = BTreeSet::new();
    if TABLES_OF_PEOPLE.contains(&table) {
        sqlx::query("select set_config('app.scope', 'admin', false)").execute(&mut conn).await.unwrap();
    }
    for org in orgs {
        let org = org.uuid().to_string();
        sqlx::query("select set_config('app.org_id', $1, false)").bind(org).fetch_one(&mut conn).await.unwrap();
        let of_org: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_all(&mut conn).await.unwrap();
        rows.extend(of_org);
    }
    rows
}

/// Two organizations with rows in every table, nulls, the ends of the range, a package of several frames and many events.
async fn filled(test: &TestStore) -> Vec<OrgId> {
    let mut orgs = Vec::new();
    for slug in ["acme", "zeta"] {
        let tenant = test.tenant(slug).await;
        orgs.push(tenant.org);
        let package: Vec<u8> = (0..1_200_000_u32).map(|n| n.to_le_bytes()[usize::from(n % 3 == 0)]).collect();
        let (digest, mut late) = ([9_u8; 32], run(&test.ambient, tenant.workflow.id, Some("déjà \"vu\"\n\\")));
        late.waiting_until = Some(Timestamp::from_micros(-1));
        late.finished_at = Some(Timestamp::from_micros(4_102_444_800_000_001));
        late.log_seq = i64::MAX;
        let ambient = test.ambient.clone();
        tx!(test.write, &tenant.scope(), [package, digest, late, ambient], |tx| {
            tx.insert_artifact(digest, package, ambient.now()).await?;
            tx.insert_run(late).await?;
            for n in 0..150 {
                tx.record_event("counted", "run_1", &json!({ "n": n }), ambient).await?;
            }
            Ok(())
        })
        .unwrap();
    }
    // An organization without anything.
    orgs.push(test.org("empty").await);
    orgs
}

async fn assert_round_trip(
    target: &TestStore,
    archive: &[u8],
    before: &BTreeMap<String, BTreeSet<String>>,
    orgs: &[OrgId],
) {
    target.store.close().await;
    let summary = restore(&config(target), archive).await.unwrap();
    let counts: BTreeMap<String, u64> = before.iter().map(|(table, rows)| (table.clone(), rows.len() as u64)).collect();
    assert_eq!(summary.rows.unwrap(), counts);
    let after = dump(target, orgs).await;
    for (table, rows) in before {
        assert!(!rows.is_empty(), "{table}: the test needs a row");
        assert_eq!(&after[table], rows, "{table}");
    }
    // A store opens on it, and finds the rows through its own statements.
    let store = Store::open(config(target)).await.unwrap();
    let found: Result<_, StoreError> =
        store.read(&scope(orgs[1]), (), |tx, ()| Box::pin(async move { tx.require_org().await })).await;
    assert_eq!(found.unwrap().slug.as_str(), "zeta");
    let error = restore(&config(target), archive).await.unwrap_err();
    if store.is_postgres() {
        assert!(matches!(error, BackupError::NotEmpty), "{error:?}");
    } else {
        assert!(error.to_string().contains("in use"), "{error:?}");
    }
    store.close().await;
}

on_both! {
    /// Four ways: from each database into each.
    async fn what_was_there_is_there_again_on_either_database(test: TestStore) {
        let orgs = filled(&test).await;
        let before = dump(&test, &orgs).await;
        let (archive, made) = create(&test).await.unwrap();
        assert_eq!(made, backup::verify(Cursor::new(&archive), Some(&roots())).unwrap());
        assert_eq!(made.header.database, test.store.database_name());
        assert_round_trip(&TestStore::sqlite().await, &archive, &before, &orgs).await;
        if let Some(target) = TestStore::postgres().await {
            assert_round_trip(&target, &archive, &before, &orgs).await;
        }
        assert_eq!(dump(&test, &orgs).await, before, "a backup changes nothing");
    }

    async fn a_stopped_servers_database_can_be_backed_up(test: TestStore) {
        let org = test.org("acme").await;
        test.store.close().await;
        let (archive, _) = create(&test).await.unwrap();
        let target = TestStore::sqlite().await;
        target.store.close().await;
        restore(&config(&target), &archive).await.unwrap();
        assert_eq!(dump(&target, &[org]).await["organization"].len(), 1);
    }

    async fn jobs_that_were_held_are_free_again(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (worker, now) = (test.worker().await, test.ambient.now());
        let (lane, minute) = (Lane::Interactive, Duration::from_mins(1));
        let held = tx!(test.write, &JOBS, [worker, lane, now, minute], |tx| {
            crate::support::claim_any(tx, *worker, *lane, 9, *now, *minute).await
        });
        assert_eq!(held.unwrap().len(), 1);
        let (archive, _) = create(&test).await.unwrap();
        for mut target in [Some(TestStore::sqlite().await), TestStore::postgres().await].into_iter().flatten() {
            target.store.close().await;
            restore(&config(&target), &archive).await.unwrap();
            target.reopen().await;
            let jobs = tx!(target.read, &tenant.scope(), [], |tx| tx.list_jobs(None, PageRequest::default()).await).unwrap();
            let told: Vec<_> = jobs.items.iter().map(|job| (job.state.as_str(), job.attempt)).collect();
            assert_eq!(told, [("ready", 1)], "the attempt that was under way counts");
            let worker = target.worker().await;
            let again = tx!(target.write, &JOBS, [worker, lane, now, minute], |tx| {
                crate::support::claim_any(tx, *worker, *lane, 9, *now, *minute).await
            });
            let again = again.unwrap();
            assert_eq!(again.len(), 1);
            assert!(again[0].lease.fence > 1, "a lease of before is over");
            target.store.close().await;
        }
    }

    /// Each write puts a run and its job in together: no backup may hold one without the other.
    async fn a_backup_while_writes_go_on_is_one_moment(test: TestStore) {
        let tenant = Arc::new(test.tenant("acme").await);
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = tokio::task::JoinSet::new();
        for _ in 0..3 {
            let (store, ambient, tenant, stop) = (test.store.clone(), test.ambient.clone(), tenant.clone(), stop.clone());
            writers.spawn(async move {
                let mut written = 0_u64;
                while !stop.load(Ordering::SeqCst) {
                    let new = run(&ambient, tenant.workflow.id, None);
                    let job = job(new.id, ambient.now());
                    let done: Result<(), StoreError> = store
                        .write_locked(&tenant.scope(), (new, job, ambient.clone()), |tx, (new, job, ambient)| {
                            Box::pin(async move {
                                tx.enqueue(job, ambient).await?;
                                tx.insert_run(new).await.map(drop)
                            })
                        })
                        .await;
                    done.unwrap();
                    written += 1;
                }
                written
            });
        }
        let mut sizes = Vec::new();
        let mut archives = Vec::new();
        while archives.len() < 5 || sizes.first() == sizes.last() {
            let (archive, summary) = create(&test).await.unwrap();
            let rows = summary.rows.unwrap();
            assert_eq!(rows["run"], rows["job"], "each run with its job");
            sizes.push(rows["run"]);
            archives.push(archive);
        }
        stop.store(true, Ordering::SeqCst);
        let written: u64 = writers.join_all().await.into_iter().sum();
        assert!(sizes.is_sorted() && *sizes.last().unwrap() <= written + 1, "{sizes:?} of {written}");
        let target = TestStore::sqlite().await;
        target.store.close().await;
        restore(&config(&target), archives.last().unwrap()).await.unwrap();
        let mut conn = target.raw_sqlite().await;
        let broken: Vec<String> =
            sqlx::query_scalar("select \"table\" from pragma_foreign_key_check").fetch_all(&mut conn).await.unwrap();
        assert_eq!(broken, Vec::<String>::new());
        let payloads: Vec<String> = sqlx::query_scalar("select payload from job").fetch_all(&mut conn).await.unwrap();
        let runs = dump(&target, &[tenant.org]).await["run"].len();
        assert_eq!(payloads.iter().collect::<BTreeSet<_>>().len(), runs);
    }

    async fn a_database_with_data_is_left_as_it_is(test: TestStore) {
        let orgs = filled(&test).await;
        let before = dump(&test, &orgs).await;
        let (archive, _) = create(&test).await.unwrap();
        test.store.close().await;
        let error = restore(&config(&test), &archive).await.unwrap_err();
        assert!(matches!(error, BackupError::NotEmpty), "{error:?}");
        assert!(error.to_string().contains("a new data directory"), "{error}");
        assert_eq!(dump(&test, &orgs).await, before);
    }

    async fn a_restore_that_fails_midway_keeps_nothing(test: TestStore) {
        let source = TestStore::sqlite().await;
        let org = source.tenant("acme").await.org;
        // A job that PostgreSQL and SQLite refuse alike, but only in a schema that still has its rules.
        let mut conn = source.raw_sqlite().await;
        for sql in ["pragma ignore_check_constraints = on", "update job set state = 'nonsense'"] {
            sqlx::query(sql).execute(&mut conn).await.unwrap();
        }
        let (archive, _) = create(&source).await.unwrap();
        test.store.close().await;
        let error = restore(&config(&test), &archive).await.unwrap_err();
        assert!(matches!(error, BackupError::Store(StoreError::Conflict { .. })), "{error:?}");
        let after = dump(&test, &[org]).await;
        assert!(after.values().all(BTreeSet::is_empty), "{after:?}");
        // Nothing stands in the way of the next one.
        sqlx::query("update job set state = 'ready'").execute(&mut conn).await.unwrap();
        let (archive, _) = create(&source).await.unwrap();
        restore(&config(&test), &archive).await.unwrap();
        assert_eq!(dump(&test, &[org]).await["job"].len(), 1);
    }

    async fn a_table_that_a_backup_would_lack_is_refused(test: TestStore) {
        test.org("acme").await;
        if test.store.is_postgres() {
            test.database().execute("create table forgotten (id int)").unwrap();
        } else {
            sqlx::query("create table forgotten (id integer)").execute(&mut test.raw_sqlite().await).await.unwrap();
        }
        let error = create(&test).await.unwrap_err().to_string();
        assert!(error.contains("forgotten"), "{error}");
    }

    /// What the catalogues of both databases hold, a backup holds or leaves out by decision.
    async fn every_table_is_listed_behind_those_it_leads_to(test: TestStore) {
        let (names, keys) = if test.store.is_postgres() {
            let mut conn = test.raw_postgres().await;
            let names = "select relname::text from pg_class where relnamespace = current_schema()::regnamespace
                and relkind in ('r', 'p') and relname <> '_sqlx_migrations'";
            let keys = "select c.relname::text, f.relname::text from pg_constraint k join pg_class c on c.oid = k.conrelid
                join pg_class f on f.oid = k.confrelid where k.contype = 'f'";
            let names: Vec<String> = sqlx::query_scalar(names).fetch_all(&mut conn).await.unwrap();
            let keys: Vec<(String, String)> = sqlx::query_as(keys).fetch_all(&mut conn).await.unwrap();
            (names, keys)
        } else {
            let mut conn = test.raw_sqlite().await;
            let names = "select name from sqlite_schema where type = 'table' and name not like 'sqlite_%' and name <> '_sqlx_migrations'";
            let keys = "select t.name, k.\"table\" from sqlite_schema t join pragma_foreign_key_list(t.name) k where t.type = 'table'";
            let names: Vec<String> = sqlx::query_scalar(names).fetch_all(&mut conn).await.unwrap();
            let keys: Vec<(String, String)> = sqlx::query_as(keys).fetch_all(&mut conn).await.unwrap();
            (names, keys)
        };
        let there: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let listed: BTreeSet<&str> = TABLES.iter().chain(TABLES_LEFT_OUT).copied().collect();
        assert_eq!(there, listed, "host/store/src/backup.rs lists every table");
        assert_eq!(listed.len(), TABLES.len() + TABLES_LEFT_OUT.len(), "once");
        let place = |table: &str| TABLES.iter().position(|listed| *listed == table);
        assert!(keys.len() > 20, "the foreign keys were read");
        for (from, to) in &keys {
            // What is left out may lead to what is left out as well.
            let is_ordered = from == to || place(from).is_none_or(|from| place(to).is_some_and(|to| to < from));
            assert!(is_ordered, "{from} leads to {to}, which must stand before it");
        }
    }
}

#[tokio::test]
async fn a_damaged_file_is_refused_before_anything_is_made() {
    let source = TestStore::sqlite().await;
    source.tenant("acme").await;
    let (archive, _) = create(&source).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let refused = async |bytes: &[u8], data: &Path| {
        let error = restore(&sqlite_config(data), bytes).await.unwrap_err();
        assert!(!data.exists(), "{error}: nothing was made");
        error
    };
    let mut changed = archive.clone();
    changed[archive.len() / 2] ^= 4;
    assert!(matches!(refused(&changed, &data).await, BackupError::Damaged { .. }));
    assert!(matches!(refused(&archive[..archive.len() - 1], &data).await, BackupError::Damaged { .. }));
    assert!(matches!(refused(b"PK\x03\x04", &data).await, BackupError::NotABackup));
    assert!(matches!(refused(b"", &data).await, BackupError::NotABackup));
    let other = RootKey::new([6; 32]);
    let error = backup::restore(
        &sqlite_config(&data),
        &RootKeys::single(other),
        &source.ambient,
        Cursor::new(&archive),
        &mut |_| {},
    )
    .await;
    assert!(matches!(error, Err(BackupError::WrongKey)));
    assert!(!data.exists());
    restore(&sqlite_config(&data), &archive).await.unwrap();
}

/// What was revoked since the backup was made would be valid again.
#[tokio::test]
async fn keys_of_a_backup_are_revoked_where_that_is_asked_for() {
    let source = TestStore::sqlite().await;
    let (acme, other) = (source.tenant("acme").await, source.tenant("other").await);
    let (archive, _) = create(&source).await.unwrap();
    let target = TestStore::sqlite().await;
    target.store.close().await;
    let (config, ambient) = (config(&target), crate::support::ambient());
    let revoked = RestoredKeys::Revoked;
    backup::restore_with(&config, &roots(), &ambient, Cursor::new(&archive), revoked, &mut |_| {}).await.unwrap();
    let store = Store::open(config).await.unwrap();
    for tenant in [&acme, &other] {
        let page = PageRequest::default();
        let scope = tenant.scope();
        let read = store.read(&scope, page, |tx, page| {
            Box::pin(async move {
                let keys = tx.list_api_keys(*page).await?.items;
                Ok::<_, StoreError>((keys, tx.list_audit(&AuditFilter::default(), *page).await?.items))
            })
        });
        let (keys, told) = read.await.unwrap();
        assert!(!keys.is_empty() && keys.iter().all(|key| key.revoked_at.is_some()), "{keys:?}");
        let told: Vec<_> = told.iter().map(|entry| (entry.action.as_str(), entry.target.clone())).collect();
        assert!(told.contains(&("api_key.revoked", tenant.api_key.id.to_string())), "{told:?}");
        assert!(told.contains(&("backup.restored", tenant.org.to_string())), "{told:?}");
    }
    store.close().await;
}

/// Whoever holds the root key of the archive alone is told before the rest is in place, and not by a server that does not start.
#[tokio::test]
async fn a_backup_that_needs_another_root_key_is_not_restored_without_it() {
    let source = TestStore::sqlite().await;
    source.tenant("acme").await;
    let (archive, _) = create(&source).await.unwrap();
    let (alone, needed) = (RootKeys::single(root()), crate::keys::root(1).id());
    let is_told =
        |error: BackupError| assert!(matches!(error, BackupError::MissingRoot(id) if id == needed), "{error:?}");
    is_told(backup::verify(Cursor::new(&archive), Some(&alone)).unwrap_err());
    let target = TestStore::sqlite().await;
    target.store.close().await;
    let restored = backup::restore(&config(&target), &alone, &source.ambient, Cursor::new(&archive), &mut |_| {}).await;
    is_told(restored.unwrap_err());
    restore(&config(&target), &archive).await.unwrap();
}

#[tokio::test]
async fn a_place_without_a_database_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let ambient = crate::support::ambient();
    let error = backup::create(&sqlite_config(dir.path()), &root(), &ambient, "0", Vec::new(), &mut |_| {}).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("there is no SQLite database"), "{error}");
    let Some(server) = bulkhead_test_support::postgres::server_or_skip() else { return };
    drop(postgres_database().await);
    let database = server.create_database().unwrap();
    let config = postgres_config(Some(app_url(database.url())), None);
    let error = backup::create(&config, &root(), &ambient, "0", Vec::new(), &mut |_| {}).await.unwrap_err().to_string();
    assert!(error.contains("nothing to back up"), "{error}");
}

#[tokio::test]
async fn another_schema_is_not_backed_up() {
    let test = TestStore::sqlite().await;
    let mut conn = test.raw_sqlite().await;
    sqlx::query("update _sqlx_migrations set checksum = x'00'").execute(&mut conn).await.unwrap();
    let error = create(&test).await.unwrap_err().to_string();
    assert!(error.contains("schema is not this version's"), "{error}");
}

/// A node that lives would go on as if it knew the database.
#[tokio::test]
async fn nothing_is_restored_under_a_running_server() {
    let Some(test) = TestStore::postgres().await else { return };
    let source = TestStore::sqlite().await;
    source.org("acme").await;
    let (archive, _) = create(&source).await.unwrap();
    let worker = test.worker().await;
    let error = restore(&config(&test), &archive).await.unwrap_err().to_string();
    assert!(error.contains("a server is running on this database"), "{error}");
    tx!(test.write, &JOBS, [worker], |tx| tx.delete_worker(*worker).await).unwrap();
    restore(&config(&test), &archive).await.unwrap();
}

/// The application role makes the backup: no reason of the host's sees more than it did.
#[tokio::test]
async fn no_scope_was_opened_for_backups() {
    let Some(test) = TestStore::postgres().await else { return };
    test.tenant("acme").await;
    let mut conn = test.raw_postgres().await;
    for scope in ["backup", "restore", SystemReason::Admin.as_str()] {
        sqlx::query("select set_config('app.scope', $1, false)").bind(scope).fetch_one(&mut conn).await.unwrap();
        let rows: i64 = sqlx::query_scalar("select count(*) from secret").fetch_one(&mut conn).await.unwrap();
        assert_eq!(rows, 0, "{scope}");
    }
}
