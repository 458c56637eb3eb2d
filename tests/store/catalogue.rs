//! What the schema promises, read from the databases' own catalogues.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::Row as _;

use crate::support::{TABLES_OF_PEOPLE, TestStore, global_tables};

/// A table's shape, as far as tenancy goes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Table {
    /// Columns in order, with whether they may be null.
    columns: Vec<(String, bool)>,
    primary_key: Vec<String>,
    /// Each foreign key: the table that it leads to, and the columns here that make it.
    foreign_keys: BTreeSet<(String, Vec<String>)>,
    /// Columns of the unique indexes besides the primary key.
    unique: BTreeSet<Vec<String>>,
}

async fn sqlite_tables(test: &TestStore) -> BTreeMap<String, Table> {
    let mut conn = test.raw_sqlite().await;
    let names: Vec<String> = sqlx::query_scalar(
        "select name from sqlite_schema where type = 'table' and name not like 'sqlite_%' and name <> '_sqlx_migrations'",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    let mut tables = BTreeMap::new();
    for name in names {
        let mut table = Table::default();
        let mut key = BTreeMap::new();
        let columns = "select name, \"notnull\", pk from pragma_table_info($1) order by cid";
        for row in sqlx::query(columns).bind(&name).fetch_all(&mut conn).await.unwrap() {
            let (column, not_null, place): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
            if place > 0 {
                key.insert(place, column.clone());
            }
            table.columns.push((column, not_null == 0));
        }
        table.primary_key = key.into_values().collect();
        let mut foreign: BTreeMap<i64, (String, Vec<String>)> = BTreeMap::new();
        let keys = "select id, \"table\", \"from\" from pragma_foreign_key_list($1) order by id, seq";
        for row in sqlx::query(keys).bind(&name).fetch_all(&mut conn).await.unwrap() {
            foreign.entry(row.get(0)).or_insert_with(|| (row.get(1), Vec::new())).1.push(row.get(2));
        }
        table.foreign_keys = foreign.into_values().collect();
        let unique = "select l.name from pragma_index_list($1) l where l.\"unique\" = 1 and l.origin <> 'pk'";
        let indexes: Vec<String> = sqlx::query_scalar(unique).bind(&name).fetch_all(&mut conn).await.unwrap();
        for index in indexes {
            let columns = "select name from pragma_index_info($1) order by seqno";
            table.unique.insert(sqlx::query_scalar(columns).bind(index).fetch_all(&mut conn).await.unwrap());
        }
        tables.insert(name, table);
    }
    tables
}

async fn postgres_tables(test: &TestStore) -> BTreeMap<String, Table> {
    let mut conn = test.raw_postgres().await;
    let mut tables: BTreeMap<String, Table> = BTreeMap::new();
    let columns = "select c.relname::text, a.attname::text, not a.attnotnull from pg_class c
         join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
         where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p')
           and c.relname <> '_sqlx_migrations' order by c.relname, a.attnum";
    for row in sqlx::query(columns).fetch_all(&mut conn).await.unwrap() {
        let table: String = row.get(0);
        tables.entry(table).or_default().columns.push((row.get(1), row.get(2)));
    }
    let constraints = "select c.relname::text, k.contype::text, coalesce(f.relname::text, ''),
             (select array_agg(a.attname::text order by u.place) from unnest(k.conkey) with ordinality u (number, place)
              join pg_attribute a on a.attrelid = c.oid and a.attnum = u.number)
         from pg_constraint k join pg_class c on c.oid = k.conrelid left join pg_class f on f.oid = k.confrelid
         where c.relnamespace = current_schema()::regnamespace and k.contype in ('p', 'f') and c.relname <> '_sqlx_migrations'";
    for row in sqlx::query(constraints).fetch_all(&mut conn).await.unwrap() {
        let (table, kind, target): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let columns: Vec<String> = row.get(3);
        let table = tables.entry(table).or_default();
        if kind == "p" {
            table.primary_key = columns;
        } else {
            table.foreign_keys.insert((target, columns));
        }
    }
    let unique = "select c.relname::text,
             (select array_agg(a.attname::text order by u.place) from unnest(i.indkey) with ordinality u (number, place)
              join pg_attribute a on a.attrelid = c.oid and a.attnum = u.number)
         from pg_index i join pg_class c on c.oid = i.indrelid
         where c.relnamespace = current_schema()::regnamespace and i.indisunique and not i.indisprimary
           and c.relname <> '_sqlx_migrations'";
    for row in sqlx::query(unique).fetch_all(&mut conn).await.unwrap() {
        let table: String = row.get(0);
        tables.entry(table).or_default().unique.insert(row.get(1));
    }
    tables
}

/// Itself or by a parent of the same organization: where one does, a second key would only lock the organization's row each time.
fn leads_to_organization(tables: &BTreeMap<String, Table>, table: &Table) -> bool {
    table.foreign_keys.iter().any(|(target, columns)| {
        let own = columns[0] == "org_id";
        let parent = &tables[target];
        own && (target == "organization" || !std::ptr::eq(parent, table) && leads_to_organization(tables, parent))
    })
}

fn assert_organization_leads(tables: &BTreeMap<String, Table>) {
    assert!(tables.len() >= 18, "the catalogue was read: {:?}", tables.keys());
    for (name, table) in tables {
        assert!(!table.primary_key.is_empty(), "{name} has no primary key");
        for (target, columns) in &table.foreign_keys {
            if TABLES_OF_PEOPLE.contains(&target.as_str()) {
                continue;
            }
            assert!(columns.iter().any(|column| column == "org_id"), "{name}: the key to {target} lacks org_id");
        }
        if global_tables().any(|global| global == name) {
            continue;
        }
        assert_eq!(table.primary_key[0], "org_id", "{name}: org_id leads the primary key");
        assert!(table.columns.contains(&("org_id".to_owned(), false)), "{name}: org_id is never null");
        assert!(leads_to_organization(tables, table), "{name} leads to its organization");
        for columns in &table.unique {
            assert_eq!(columns[0], "org_id", "{name}: org_id leads each unique rule: {columns:?}");
        }
    }
    let global: Vec<_> = global_tables().filter(|name| !tables.contains_key(*name)).collect();
    assert!(global.is_empty(), "exceptions without a table: {global:?}");
}

#[tokio::test]
async fn the_organization_leads_every_key_on_sqlite() {
    assert_organization_leads(&sqlite_tables(&TestStore::sqlite().await).await);
}

#[tokio::test]
async fn the_organization_leads_every_key_on_postgres() {
    let Some(test) = TestStore::postgres().await else { return };
    assert_organization_leads(&postgres_tables(&test).await);
}

/// The migrations are written twice; what they make must be one schema.
#[tokio::test]
async fn both_databases_have_the_same_tables() {
    let Some(postgres) = TestStore::postgres().await else { return };
    let (sqlite, postgres) = (sqlite_tables(&TestStore::sqlite().await).await, postgres_tables(&postgres).await);
    assert_eq!(sqlite.keys().collect::<Vec<_>>(), postgres.keys().collect::<Vec<_>>());
    for (name, table) in &sqlite {
        assert_eq!(table, &postgres[name], "{name}");
    }
}

#[tokio::test]
async fn text_that_is_compared_sorts_by_bytes_on_postgres() {
    let Some(test) = TestStore::postgres().await else { return };
    let mut conn = test.raw_postgres().await;
    let wrong: Vec<String> = sqlx::query_scalar(
        "select distinct c.relname || '.' || a.attname from pg_index i join pg_class c on c.oid = i.indrelid
         cross join unnest(i.indkey) key join pg_attribute a on a.attrelid = c.oid and a.attnum = key
         where c.relnamespace = current_schema()::regnamespace and c.relname <> '_sqlx_migrations'
           and a.atttypid = 'text'::regtype and a.attcollation <> (select oid from pg_collation where collname = 'C')
         order by 1",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    // Statuses are compared for equality only.
    assert_eq!(wrong, ["run.status"]);
}

#[test]
fn migrations_have_the_same_names() {
    let names = |database: &str| {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations").join(database);
        let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names("sqlite"), names("postgres"));
    let embedded = include_str!("../../host/store/src/migrations.rs");
    for name in names("sqlite") {
        assert!(embedded.contains(name.to_str().unwrap()), "{name:?} is not embedded");
    }
}
