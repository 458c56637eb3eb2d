//! What the store refuses to start on.

use bulkhead_store::{Database, Store, StoreConfig, StoreError};
use bulkhead_test_support::postgres::{Cluster, Server, server_or_skip};
use sqlx::Connection as _;

use crate::support::{app_url, postgres_config, postgres_database, with_role};

#[track_caller]
fn refusal(result: Result<Store, StoreError>) -> String {
    match result {
        Err(StoreError::Refused(text)) => text,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it started"),
    }
}

#[tokio::test]
async fn an_empty_database_is_refused_without_the_owner() {
    let Some(server) = server_or_skip() else { return };
    let database = server.create_database().unwrap();
    // The role exists by now, or is made here.
    drop(postgres_database().await);
    let text = refusal(Store::open(postgres_config(Some(app_url(database.url())), None)).await);
    assert!(text.contains("empty") && text.contains("bulkhead migrate"), "{text}");
}

#[tokio::test]
async fn missing_migrations_are_refused() {
    let Some(database) = postgres_database().await else { return };
    database.execute("delete from _sqlx_migrations").unwrap();
    let text = refusal(Store::open(postgres_config(Some(app_url(database.url())), None)).await);
    assert!(text.contains("migrations are missing"), "{text}");
}

#[tokio::test]
async fn a_table_whose_walls_are_down_is_refused() {
    let Some(database) = postgres_database().await else { return };
    let open = async || Store::open(postgres_config(Some(app_url(database.url())), None)).await;
    open().await.unwrap().close().await;
    for (down, up) in [
        ("alter table run disable row level security", "alter table run enable row level security"),
        ("alter table run no force row level security", "alter table run force row level security"),
    ] {
        database.execute(down).unwrap();
        let text = refusal(open().await);
        assert!(text.contains("the table run has no forced row-level security"), "{text}");
        database.execute(up).unwrap();
    }
    open().await.unwrap().close().await;
    database.execute("create table forgotten (id int)").unwrap();
    let text = refusal(open().await);
    assert!(text.contains("forgotten"), "{text}");
}

#[tokio::test]
async fn the_owner_is_refused_as_application_role() {
    let Some(database) = postgres_database().await else { return };
    let text = refusal(Store::open(postgres_config(Some(database.url().to_owned()), None)).await);
    assert!(text.contains("owned by the application role"), "{text}");
}

#[tokio::test]
async fn no_address_and_a_senseless_one_are_refused() {
    let text = refusal(Store::open(postgres_config(None, None)).await);
    assert!(text.contains("database.url"), "{text}");
    let text = refusal(Store::open(postgres_config(Some("mysql://x:secret@y/z".to_owned()), None)).await);
    assert!(text.contains("postgres://") && !text.contains("secret"), "{text}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let url = format!("postgres://a:b@127.0.0.1:{}/x", bulkhead_test_support::free_port());
    let result = Store::open(postgres_config(Some(url), None)).await;
    assert!(matches!(result, Err(StoreError::Unavailable(_) | StoreError::TimedOut)), "it started");
}

/// On a cluster of its own, since these tests are about roles, which belong to the whole cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_on_a_cluster_of_ones_own() {
    if server_or_skip().is_none() {
        return;
    }
    let cluster = Cluster::start().unwrap();
    let superuser_url = cluster.superuser_url().to_owned();
    let server = Server::own(cluster);
    let database = server.create_database().unwrap();
    let superuser_url = format!("{}/{}", superuser_url.trim_end_matches("/postgres"), database.name());
    let config = |password: &str| StoreConfig {
        database: Database::Postgres {
            url: None,
            owner_url: Some(database.url().to_owned()),
            app_password: password.to_owned(),
        },
        connections_max: 2,
    };
    // Two servers that start together on an empty database: both come up.
    let (one, two) = tokio::join!(Store::open(config("first")), Store::open(config("first")));
    for store in [one, two] {
        store.unwrap().close().await;
    }
    let role = bulkhead_store::application_role(database.name());
    // The owner's address alone made the role, whose password follows the root key.
    let app = |password: &str| with_role(database.url(), &role, password);
    Store::open(postgres_config(Some(app("first")), None)).await.unwrap().close().await;
    // To look as the owner changes no password and makes nothing; where nothing is there, nothing is to be seen.
    let looked = Store::look_before_opening(&config("another")).await.unwrap().unwrap();
    let admin = bulkhead_model::permission::SystemScope::new(bulkhead_model::permission::SystemReason::Admin);
    let seen: Result<_, StoreError> =
        looked.read(&admin, (), |tx, ()| Box::pin(async move { tx.load_root_check().await })).await;
    assert_eq!(seen.unwrap(), None);
    let now = crate::support::ambient().now();
    let check = crate::keys::sealer(&crate::support::ambient()).base_check();
    let written: Result<_, StoreError> = looked
        .write(&admin, (check, now), |tx, (check, now)| {
            Box::pin(async move { tx.record_root_check(check, *now).await })
        })
        .await;
    assert!(written.is_err(), "it only looks");
    looked.close().await;
    Store::open(postgres_config(Some(app("first")), None)).await.unwrap().close().await;
    let empty = server.create_database().unwrap();
    let database =
        Database::Postgres { url: None, owner_url: Some(empty.url().to_owned()), app_password: "first".to_owned() };
    let nothing = Store::look_before_opening(&StoreConfig { database, connections_max: 1 }).await.unwrap();
    assert!(nothing.is_none());
    Store::open(config("it's new")).await.unwrap().close().await;
    assert!(Store::open(postgres_config(Some(app("first")), None)).await.is_err());

    let superuser = Store::open(postgres_config(Some(superuser_url.clone()), None)).await;
    let text = refusal(superuser);
    assert!(text.contains("superuser"), "{text}");

    let mut conn = sqlx::PgConnection::connect(&superuser_url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("alter role \"{role}\" bypassrls"))).execute(&mut conn).await.unwrap();
    let text = refusal(Store::open(config("x")).await);
    assert!(text.contains("BYPASSRLS"), "{text}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("alter role \"{role}\" nobypassrls"))).execute(&mut conn).await.unwrap();
    Store::open(config("x")).await.unwrap().close().await;

    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("grant bulkhead_owner to \"{role}\""))).execute(&mut conn).await.unwrap();
    let text = refusal(Store::open(config("x")).await);
    assert!(text.contains("may become"), "{text}");
}
