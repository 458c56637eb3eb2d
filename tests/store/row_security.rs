//! PostgreSQL's own walls, tried with raw SQL past the store: each table, each command, each scope.

use std::collections::BTreeSet;

use bulkhead_model::id::OrgId;
use bulkhead_model::permission::SystemReason;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use crate::support::{APP_ROLE, TABLES_OF_PEOPLE, TestStore, global_tables};

/// Which system scopes see which tables besides an organization's own rows. May only shrink.
const ADMITTED: &[(&str, &str)] = &[
    ("accounts", "backup_code"),
    ("accounts", "device"),
    ("accounts", "email_code"),
    ("accounts", "mail"),
    ("accounts", "member"),
    ("accounts", "organization"),
    ("accounts", "passkey"),
    ("accounts", "passkey_ceremony"),
    ("accounts", "refresh_token"),
    ("accounts", "revoke_link"),
    ("accounts", "session"),
    ("accounts", "sign_in_attempt"),
    ("accounts", "sign_in_step"),
    ("accounts", "throttle"),
    ("accounts", "token_family"),
    ("accounts", "totp"),
    ("accounts", "user_account"),
    ("accounts", "user_link"),
    ("admin", "address_block"),
    ("admin", "backup_code"),
    ("admin", "device"),
    ("admin", "email_code"),
    ("admin", "mail"),
    ("admin", "org_key"),
    ("admin", "organization"),
    ("admin", "passkey"),
    ("admin", "passkey_ceremony"),
    ("admin", "refresh_token"),
    ("admin", "revoke_link"),
    ("admin", "session"),
    ("admin", "sign_in_attempt"),
    ("admin", "sign_in_step"),
    ("admin", "throttle"),
    ("admin", "token_family"),
    ("admin", "totp"),
    ("admin", "user_account"),
    ("admin", "user_link"),
    ("jobs", "breaker"),
    ("jobs", "audit_waiting"),
    ("jobs", "data_key"),
    ("jobs", "job"),
    ("jobs", "org_key"),
    ("jobs", "organization"),
    ("jobs", "schedule"),
    ("limits", "address_block"),
    ("limits", "key_block"),
    ("limits", "rate_limit"),
    ("nodes", "installation"),
    ("nodes", "run"),
];

/// The tables that hold organizations' rows.
async fn tables(conn: &mut PgConnection) -> Vec<String> {
    let mut tables = all_tables(conn).await;
    tables.retain(|table| !TABLES_OF_PEOPLE.contains(&table.as_str()));
    tables
}

async fn all_tables(conn: &mut PgConnection) -> Vec<String> {
    sqlx::query_scalar(
        "select relname::text from pg_class where relnamespace = current_schema()::regnamespace and relkind in ('r', 'p')
           and relname not in ('_sqlx_migrations', 'probe', 'root_check', 'worker') order by 1",
    )
    .fetch_all(conn)
    .await
    .unwrap()
}

fn org_column(table: &str) -> &'static str {
    if table == "organization" { "id" } else { "org_id" }
}

async fn execute(conn: &mut PgConnection, sql: String) -> Result<u64, sqlx::Error> {
    Ok(sqlx::query(AssertSqlSafe(sql)).execute(conn).await?.rows_affected())
}

async fn count(conn: &mut PgConnection, table: &str, filter: &str) -> i64 {
    let sql = format!("select count(*) from \"{table}\" where {filter}");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(conn).await.unwrap()
}

/// Begins a transaction in the given context, as the store does.
async fn begin(conn: &mut PgConnection, org: Option<OrgId>, scope: &str) {
    execute(conn, "begin".to_owned()).await.unwrap();
    let org = org.map(|org| org.uuid().to_string()).unwrap_or_default();
    execute(conn, format!("set local app.org_id = '{org}'")).await.unwrap();
    execute(conn, format!("set local app.scope = '{scope}'")).await.unwrap();
}

async fn end(conn: &mut PgConnection) {
    execute(conn, "rollback".to_owned()).await.unwrap();
}

#[tokio::test]
async fn every_tenant_table_has_forced_security_and_a_policy() {
    let Some(test) = TestStore::postgres().await else { return };
    let mut conn = test.raw_postgres().await;
    let rows = sqlx::query(
        "select c.relname::text, c.relrowsecurity, c.relforcerowsecurity,
             (select count(*) from pg_policy p where p.polrelid = c.oid)
         from pg_class c where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p')
           and c.relname <> '_sqlx_migrations'",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    let mut open = BTreeSet::new();
    for row in &rows {
        let (table, enabled, forced, policies): (String, bool, bool, i64) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        if !(enabled && forced && policies > 0) {
            open.insert(table);
        }
    }
    assert!(rows.len() >= 18);
    assert_eq!(open, BTreeSet::from(["worker".to_owned()]), "only the table of serving processes has no tenant");
}

#[tokio::test]
async fn the_application_role_has_no_power_over_the_walls() {
    let Some(test) = TestStore::postgres().await else { return };
    let mut conn = test.raw_postgres().await;
    let role = sqlx::query(
        "select current_user::text, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb,
             exists (select 1 from pg_class where relowner = pg_roles.oid)
         from pg_roles where rolname = current_user",
    )
    .fetch_one(&mut conn)
    .await
    .unwrap();
    assert_eq!(role.get::<String, _>(0), APP_ROLE);
    for (at, what) in [(1, "superuser"), (2, "bypassrls"), (3, "createrole"), (4, "createdb"), (5, "owner")] {
        assert!(!role.get::<bool, _>(at), "{what}");
    }
    for forbidden in [
        "alter table run disable row level security",
        "alter table run no force row level security",
        "drop policy run_of_org on run",
        "create policy mine on run using (true)",
        "create or replace function app_org() returns uuid language sql stable return null",
        "truncate run",
        "drop table run",
        "delete from _sqlx_migrations",
        "set role bulkhead_owner",
    ] {
        assert!(execute(&mut conn, forbidden.to_owned()).await.is_err(), "{forbidden}");
    }
}

/// What was recorded, which the application's role can neither change nor delete.
const APPEND_ONLY: [&str; 3] = ["audit", "audit_checkpoint", "audit_entry"];

/// How many rows a statement changed or deleted.
async fn changed(conn: &mut PgConnection, table: &str, statement: String) -> u64 {
    let result = execute(conn, statement).await;
    if APPEND_ONLY.contains(&table) {
        assert!(result.is_err(), "{table}: {result:?}");
        return 0;
    }
    result.unwrap()
}

#[tokio::test]
async fn without_a_context_nothing_is_there() {
    let Some(test) = TestStore::postgres().await else { return };
    test.tenant("a").await;
    let mut conn = test.raw_postgres().await;
    let tables = tables(&mut conn).await;
    for table in &tables {
        assert_eq!(count(&mut conn, table, "true").await, 0, "{table}");
        let column = org_column(table);
        assert_eq!(
            changed(&mut conn, table, format!("update \"{table}\" set {column} = {column}")).await,
            0,
            "{table}"
        );
        assert_eq!(changed(&mut conn, table, format!("delete from \"{table}\"")).await, 0, "{table}");
    }
    // Context that is no organization at all is nobody's, not everybody's.
    begin(&mut conn, Some(OrgId::new(&test.ambient)), "").await;
    for table in &tables {
        assert_eq!(count(&mut conn, table, "true").await, 0, "{table}");
    }
    end(&mut conn).await;
}

#[tokio::test]
async fn with_one_organizations_context_anothers_rows_can_be_neither_read_nor_changed_nor_made() {
    let Some(test) = TestStore::postgres().await else { return };
    let (a, b) = (test.tenant("a").await, test.tenant("b").await);
    let mut conn = test.raw_postgres().await;
    let tables = tables(&mut conn).await;
    let is_global = |table: &&String| global_tables().any(|global| global == table.as_str());
    assert!(tables.len() >= 17 && tables.iter().filter(is_global).count() == 1);
    for table in &tables {
        let column = org_column(table);
        let of_b = format!("{column} = '{}'", b.org.uuid());
        begin(&mut conn, Some(a.org), "").await;
        assert!(count(&mut conn, table, "true").await >= 1, "{table}: the test needs a row of A's in each table");
        assert_eq!(count(&mut conn, table, &of_b).await, 0, "{table}: read");
        assert_eq!(
            count(&mut conn, table, &format!("{column} <> '{}'", a.org.uuid())).await,
            0,
            "{table}: read others"
        );
        let update = format!("update \"{table}\" set {column} = {column} where {of_b}");
        assert_eq!(changed(&mut conn, table, update).await, 0, "{table}: update");
        let delete = format!("delete from \"{table}\" where {of_b}");
        assert_eq!(changed(&mut conn, table, delete).await, 0, "{table}: delete");
        end(&mut conn).await;

        // A's own row, moved to B or copied for B.
        begin(&mut conn, Some(a.org), "").await;
        let steal = format!("update \"{table}\" set {column} = '{}'", b.org.uuid());
        let error = execute(&mut conn, steal).await.unwrap_err().to_string();
        let wall = if APPEND_ONLY.contains(&table.as_str()) { "permission denied" } else { "row-level security" };
        assert!(error.contains(wall), "{table}: move: {error}");
        end(&mut conn).await;
        begin(&mut conn, Some(a.org), "").await;
        let copy = format!(
            "insert into \"{table}\" select (jsonb_populate_record(t, jsonb_build_object('{column}', '{}'))).* from \"{table}\" t",
            b.org.uuid()
        );
        let error = execute(&mut conn, copy).await.unwrap_err().to_string();
        assert!(error.contains("row-level security"), "{table}: insert: {error}");
        end(&mut conn).await;

        begin(&mut conn, Some(b.org), "").await;
        assert!(count(&mut conn, table, "true").await >= 1, "{table}: B's rows are still there");
        end(&mut conn).await;
    }
}

#[tokio::test]
async fn system_scopes_open_the_listed_tables_and_no_other() {
    let Some(test) = TestStore::postgres().await else { return };
    test.tenant("a").await;
    let mut conn = test.raw_postgres().await;
    let tables = all_tables(&mut conn).await;
    let mut admitted = BTreeSet::new();
    let reasons = [
        SystemReason::SignIn,
        SystemReason::Jobs,
        SystemReason::Admin,
        SystemReason::Worker,
        SystemReason::Hook,
        SystemReason::Nodes,
        SystemReason::Accounts,
        SystemReason::Limits,
    ];
    for scope in reasons.map(SystemReason::as_str).into_iter().chain(["", "anything", "ADMIN", "jobs "]) {
        begin(&mut conn, None, scope).await;
        for table in &tables {
            if count(&mut conn, table, "true").await > 0 {
                admitted.insert((scope.to_owned(), table.clone()));
            }
        }
        end(&mut conn).await;
    }
    let listed = ADMITTED.iter().map(|(scope, table)| ((*scope).to_owned(), (*table).to_owned())).collect();
    assert_eq!(admitted, listed);
}

#[tokio::test]
async fn what_belongs_to_people_is_there_for_no_organization() {
    let Some(test) = TestStore::postgres().await else { return };
    let a = test.tenant("a").await;
    let mut conn = test.raw_postgres().await;
    for table in TABLES_OF_PEOPLE {
        for (org, scope) in [(None, ""), (Some(a.org), ""), (Some(a.org), "sign-in"), (Some(a.org), "worker")] {
            begin(&mut conn, org, scope).await;
            assert_eq!(count(&mut conn, table, "true").await, 0, "{table} in {scope:?}");
            assert_eq!(execute(&mut conn, format!("delete from {table}")).await.unwrap(), 0, "{table}");
            end(&mut conn).await;
        }
        begin(&mut conn, Some(a.org), "").await;
        let copy = format!("insert into {table} select * from {table}");
        assert_eq!(execute(&mut conn, copy).await.unwrap(), 0, "{table}");
        end(&mut conn).await;
    }
}

#[tokio::test]
async fn nodes_look_and_change_nothing() {
    let Some(test) = TestStore::postgres().await else { return };
    test.tenant("a").await;
    let mut conn = test.raw_postgres().await;
    for table in ["installation", "run"] {
        begin(&mut conn, None, "nodes").await;
        assert_eq!(count(&mut conn, table, "true").await, 1, "{table}");
        for statement in [format!("update {table} set org_id = org_id"), format!("delete from {table}")] {
            assert_eq!(execute(&mut conn, statement.clone()).await.unwrap(), 0, "{statement}");
        }
        end(&mut conn).await;
    }
}

#[tokio::test]
async fn a_context_ends_with_its_transaction() {
    let Some(test) = TestStore::postgres().await else { return };
    let a = test.tenant("a").await;
    let mut conn = test.raw_postgres().await;
    begin(&mut conn, Some(a.org), "jobs").await;
    assert_eq!(count(&mut conn, "run", "true").await, 1);
    execute(&mut conn, "commit".to_owned()).await.unwrap();
    assert_eq!(count(&mut conn, "run", "true").await, 0);
    assert_eq!(count(&mut conn, "job", "true").await, 0);
    conn.close().await.unwrap();

    // Through the store, on one pooled connection after another: each transaction sees its own and nothing of the last.
    let b = test.tenant("b").await;
    for n in 0..30 {
        let (mine, other) = if n % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let (own, foreign) = (mine.run.id, other.run.id);
        let seen = tx!(test.read, &mine.scope(), [own, foreign], |tx| {
            Ok((tx.load_run(*own).await?.is_some(), tx.load_run(*foreign).await?.is_some()))
        });
        assert_eq!(seen.unwrap(), (true, false));
        if n % 3 == 0 {
            let failed = tx!(test.write, &other.scope(), [], |_tx| Err::<(), _>(bulkhead_store::StoreError::LostLease));
            assert!(failed.is_err());
        }
    }
}

/// Which root key stands first is the operator's matter.
#[tokio::test]
async fn the_first_root_key_is_looked_at_by_the_operator_alone() {
    let Some(test) = TestStore::postgres().await else { return };
    let a = test.tenant("a").await;
    let (check, now) = (crate::keys::sealer(&test.ambient).base_check(), test.ambient.now());
    tx!(test.write, &crate::support::ADMIN, [check, now], |tx| tx.record_root_check(check, *now).await).unwrap();
    let mut conn = test.raw_postgres().await;
    for (scope, rows) in [("admin", 1), ("", 0), ("jobs", 0), ("accounts", 0), ("worker", 0)] {
        begin(&mut conn, Some(a.org), scope).await;
        assert_eq!(count(&mut conn, "root_check", "true").await, rows, "{scope:?}");
        let deleted = execute(&mut conn, "delete from root_check".to_owned()).await.unwrap();
        assert_eq!(deleted, u64::try_from(rows).unwrap(), "{scope:?}");
        end(&mut conn).await;
    }
}
