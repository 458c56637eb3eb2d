//! The cluster against the machine's own PostgreSQL.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bulkhead_test_support::postgres::{Cluster, Options, Server, server_or_skip};
use bulkhead_test_support::wait_until;

/// Set for the process that [`a_cluster_ends_with_a_killed_owner`] starts and kills: the file it reports to.
const OWNER_VARIABLE: &str = "BULKHEAD_TEST_CLUSTER_OWNER";

#[test]
fn a_database_is_empty_and_its_own_and_goes_with_its_value() {
    let Some(server) = server_or_skip() else { return };
    let one = server.create_database().unwrap();
    let two = server.create_database().unwrap();
    one.execute("create table t (a int)").unwrap();
    one.execute("insert into t values (1), (2)").unwrap();
    assert_eq!(one.execute("select a from t order by a").unwrap(), "1\n2");
    assert!(two.execute("select a from t").unwrap_err().to_string().contains("does not exist"));
    let name = one.name().to_owned();
    drop(one);
    let still_there = two.execute(&format!("select count(*) from pg_database where datname = '{name}'")).unwrap();
    assert_eq!(still_there, "0");
}

#[test]
fn the_owner_is_no_superuser_and_row_level_security_counts_for_it() {
    let Some(server) = server_or_skip() else { return };
    let database = server.create_database().unwrap();
    let role = "select rolsuper, rolbypassrls, rolcreatedb, rolcreaterole from pg_roles where rolname = current_user";
    assert_eq!(database.execute(role).unwrap(), "f|f|t|t");
    database.execute("create table t as select 1 as a").unwrap();
    database.execute("alter table t enable row level security").unwrap();
    database.execute("alter table t force row level security").unwrap();
    assert_eq!(database.execute("select count(*) from t").unwrap(), "0");
}

#[tokio::test]
async fn a_template_is_prepared_once_and_copied() {
    let Some(server) = server_or_skip() else { return };
    let prepared = AtomicU32::new(0);
    let key = format!("support_{}", std::process::id());
    let make = || {
        server.create_database_from(&key, async |url: &str| {
            prepared.fetch_add(1, Ordering::SeqCst);
            // Another name for the same database: what is written here must be in every copy.
            assert!(url.starts_with("postgres://"), "{url}");
            Server::at(url).unwrap();
            fill(url)
        })
    };
    let one = make().await.unwrap();
    let two = make().await.unwrap();
    assert_eq!(prepared.load(Ordering::SeqCst), 1);
    one.execute("insert into noun values (2)").unwrap();
    assert_eq!(one.execute("select count(*) from noun").unwrap(), "2");
    assert_eq!(two.execute("select count(*) from noun").unwrap(), "1");
    server.drop_template(&key).unwrap();
}

/// Runs in the database that `url` names.
fn fill(url: &str) -> Result<(), String> {
    let output = Command::new("psql")
        .args(["--no-psqlrc", "--quiet", url, "--command", "create table noun as select 1 as id"])
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[tokio::test]
async fn a_template_whose_preparation_fails_leaves_nothing() {
    let Some(server) = server_or_skip() else { return };
    let key = format!("broken_{}", std::process::id());
    let error = server.create_database_from(&key, async |_: &str| Err("no such migration")).await.unwrap_err();
    assert!(error.to_string().contains("no such migration"), "{error}");
    // Nothing by that name was left to copy: the second attempt prepares again.
    let error = server.create_database_from(&key, async |_: &str| Err("asked again")).await.unwrap_err();
    assert!(error.to_string().contains("asked again"), "{error}");
}

#[test]
fn cut_connections_end_sessions() {
    let Some(server) = server_or_skip() else { return };
    let database = server.create_database().unwrap();
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| database.execute("select pg_sleep(60)"));
        let sleeping = "select count(*) from pg_stat_activity where datname = current_database() and query like '%pg_sleep(60)' and pid <> pg_backend_pid()";
        assert!(wait_until(Duration::from_secs(20), || database.execute(sleeping).unwrap() == "1"));
        database.cut_connections().unwrap();
        let error = sleeper.join().unwrap().unwrap_err().to_string();
        assert!(error.contains("terminating connection"), "{error}");
    });
}

#[test]
fn a_durable_cluster_keeps_what_was_committed_before_a_crash_and_goes_when_dropped() {
    if server_or_skip().is_none() {
        return;
    }
    let cluster = Cluster::start_with(Options { durable: true }).unwrap();
    let server = Server::at(cluster.url()).unwrap();
    let directory = cluster.directory().to_owned();
    let database = server.create_database().unwrap();
    assert_eq!(database.execute("show fsync").unwrap(), "on");
    database.execute("create table t as select 7 as a").unwrap();
    cluster.crash_and_restart().unwrap();
    assert_eq!(database.execute("select a from t").unwrap(), "7");
    drop(database);
    assert_eq!(cluster.databases_made(), 1);
    assert!(directory.join("data/postmaster.pid").exists());
    drop(cluster);
    assert!(!directory.exists(), "{} is left", directory.display());
}

/// What the test below runs as another process. Run as a test of its own it has nothing to do.
#[test]
fn owner_of_a_cluster() {
    #[expect(clippy::disallowed_methods, reason = "the two processes of one test speak by environment")]
    let Some(report) = std::env::var_os(OWNER_VARIABLE) else { return };
    let cluster = Cluster::start().unwrap();
    std::fs::write(report, cluster.directory().to_str().unwrap()).unwrap();
    std::thread::sleep(Duration::from_mins(2));
}

#[test]
fn a_cluster_ends_with_a_killed_owner() {
    if server_or_skip().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("data-directory");
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "postgres::owner_of_a_cluster"])
        .env(OWNER_VARIABLE, &report)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let written = || std::fs::read_to_string(&report).ok().filter(|text| !text.is_empty());
    let started = wait_until(Duration::from_mins(1), || written().is_some());
    let pid_file = written().map(|base| PathBuf::from(base).join("data/postmaster.pid"));
    let was_running = pid_file.is_some_and(|file| file.exists());
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(started && was_running, "the owner did not start its cluster");
    let base = PathBuf::from(written().unwrap());
    assert!(wait_until(Duration::from_secs(40), || !base.exists()), "{} outlives its owner", base.display());
}
