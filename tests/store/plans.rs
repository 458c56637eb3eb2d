//! How both databases carry out each statement that touches a large table, kept beside this file (`plans/`): cost must grow with the
//! work at hand, not with history.
//!
//! Each statement of `STATEMENT_SOURCES` is explained over [`rows`] rows in each large table. PostgreSQL plans with statistics
//! (`analyze`) and with values as the store would bind them; SQLite has none, as in production, so that its plans depend on the
//! schema alone. The suite uses fewer rows than the million that `cargo xtask soak --plan-rows 1000000` uses; both are compared
//! with the same files. `cargo xtask plans` writes them anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bulkhead_store::STATEMENT_SOURCES;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};

use crate::statements::statements;
use crate::support::TestStore;

/// Tables that grow with use.
const LARGE: &[&str] = &["audit", "call", "dead_letter", "event", "job", "run", "run_event", "step"];
/// Organizations among which the rows are spread. They are few, and so are workflows and kinds: what is picked from is large even where
/// the rows are fewer than a million.
const ORGS: u32 = 5;
/// The version whose plans are kept; those of another are only held to the rules.
const POSTGRES_MAJOR: &str = "15";

/// Statements that read a large table from end to end, or an index of it, and why they may: `(file, how it begins, reason)`.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "job/look",
        "select lane, kind, count(*) as jobs from (select lane, kind from job where state = ",
        "ends at its cap, by an index of that state alone",
    ),
    (
        "job/look",
        "select lane, worker_id, count(*) as jobs from job where state = 'leased'",
        "jobs that are held now: as many as workers have slots",
    ),
    (
        "job/look",
        "select lane, worker_id, count(*) as jobs from job where org_id = $1 and lane = $2 and state = 'leased'",
        "jobs that are held now: as many as workers have slots",
    ),
    (
        "job/look",
        "select lane, kind, count(*) as jobs from (select lane, kind from job where org_id = $1 and lane = $2 and state = 'future'",
        "ends at its cap; at worst it reads what sleeps in all organizations, when an administrator looks",
    ),
    (
        "job/look",
        "select lane, kind, count(*) as jobs from job where org_id = $1 and lane = $2 and state = 'leased'",
        "jobs that are held now: as many as workers have slots",
    ),
    (
        "node",
        "with recursive found (org_id) as ( select (select org_id from run order by org_id limit 1)",
        "the index's first entry",
    ),
    ("job/claim", "select run_at from job where state = 'future' order by run_at limit 1", "the index's first entry"),
    (
        "job/claim",
        "update job set state = 'ready', error = coalesce",
        "jobs that are held now: as many as workers have slots",
    ),
    (
        "job/claim",
        "update job set state = 'ready', error = 'the attempt passed",
        "jobs that are held now: as many as workers have slots",
    ),
    (
        "audit_log",
        "with recursive found (action) as ( select (select action from audit",
        "each action's first entry, by the index",
    ),
    (
        "run",
        "select dedupe_key from job where coalesce(org_id, org_id) = $1",
        "jobs that are held now: as many as workers have slots",
    ),
];

#[expect(clippy::disallowed_methods, reason = "the runner speaks by environment")]
fn told(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// In each large table.
fn rows() -> u32 {
    told("BULKHEAD_TEST_PLAN_ROWS").and_then(|text| text.parse().ok()).unwrap_or(60_000)
}

/// Which of the two a text is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    fn folder(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }

    /// The id with this number.
    fn id(self, of: &str) -> String {
        match self {
            Self::Sqlite => format!("unhex(printf('%032x', {of}))"),
            Self::Postgres => format!("cast(lpad(to_hex({of}), 32, '0') as uuid)"),
        }
    }

    /// A moment so many seconds after the epoch.
    fn time(self, seconds: &str) -> String {
        match self {
            Self::Sqlite => format!("({seconds}) * 1000000"),
            Self::Postgres => format!("to_timestamp({seconds})"),
        }
    }
}

/// A column as the catalogue tells it.
struct Column {
    name: String,
    kind: String,
    nullable: bool,
}

/// The state of the job number `n`: most are done with or wait, few are held.
const JOB_STATE: &str = "(case when n % 1000 = 0 then 'leased' when n % 10 < 4 then 'ready' when n % 10 < 7 then 'future' \
     when n % 10 < 8 then 'blocked' when n % 10 < 9 then 'paused' else 'dead' end)";

/// The column's value in the row number `n`.
#[expect(clippy::match_same_arms, reason = "a line for each column")]
fn value(dialect: Dialect, table: &str, column: &Column) -> String {
    let org = format!("n % {ORGS}");
    // Three rows of a run follow each other.
    let run = if matches!(table, "run" | "dead_letter") { "n" } else { "n / 3" };
    let when = |condition: &str, value: &str| format!("case when {condition} then {value} end");
    match (table, column.name.as_str()) {
        ("organization", "id") => dialect.id("n"),
        (_, "org_id") if matches!(table, "step" | "run_event" | "call") => dialect.id(&format!("(n / 3) % {ORGS}")),
        (_, "org_id") => dialect.id(&org),
        (_, "run_id") => dialect.id(run),
        (_, "workflow_id") => dialect.id("n % 10"),
        ("call", "installation_id" | "plugin_id") => dialect.id("(n / 3) % 5"),
        (_, "id") => dialect.id("n"),
        (_, "seq") => "n % 3 + 1".into(),
        (_, "step_id") => "'s' || (n % 3)".into(),
        (_, "iteration") => "0".into(),
        ("run", "status") => {
            "case when n % 1000 = 0 then 'running' when n % 1000 = 1 then 'queued' when n % 100 = 2 then 'waiting' \
             when n / 10 % 4 = 0 then 'failed' else 'succeeded' end"
                .into()
        }
        ("run", "dead_letter" | "removing") => "0".into(),
        ("step", "status") => "'succeeded'".into(),
        ("run", "dedupe_key") => when("n % 2 = 0", "'key-' || n"),
        ("job", "dedupe_key") => "'run_' || n".into(),
        ("job", "kind") => "'advance_run'".into(),
        ("job", "lane") => "case when n % 7 = 0 then 'bulk' else 'interactive' end".into(),
        ("job", "state") => JOB_STATE.into(),
        ("job", "group_key") => when(&format!("{JOB_STATE} = 'blocked'"), "'wf_' || (n % 10)"),
        ("job", "group_limit") => when(&format!("{JOB_STATE} = 'blocked'"), "1"),
        ("job", "held_for") => when(&format!("{JOB_STATE} = 'paused'"), "'wf_' || (n % 10)"),
        ("job", "worker_id") => when(&format!("{JOB_STATE} = 'leased'"), &dialect.id("n % 3")),
        ("job", "deadline_at") => when(&format!("{JOB_STATE} = 'leased'"), &dialect.time("2000000000 + n")),
        ("job", "priority") => "100".into(),
        ("job", "rerun_at") => "null".into(),
        ("event", "kind") => "'run.' || (case n % 5 when 0 then 'failed' else 'succeeded' end)".into(),
        // One cause may fail everybody: few faults, and many entries of each.
        ("dead_letter", "fingerprint") => "'fault-' || (n / 10 % 7)".into(),
        ("dead_letter", "kind") => "case when n % 50 = 3 then 'fire_schedule' else 'run' end".into(),
        ("dead_letter", "subject") => "'run_' || n".into(),
        ("call", "outcome") => "case n % 4 when 0 then 'failed' else 'returned' end".into(),
        ("audit", "action") => "'action.' || (n / 10 % 3)".into(),
        ("audit", "actor") => "'key_' || (n / 10 % 7)".into(),
        ("audit", "target") => "'wf_' || (n % 10)".into(),
        ("audit", "correlation") => "'req_' || n".into(),
        (_, "slug" | "name") => "'name-' || n".into(),
        (_, "queue_weight") => "1".into(),
        (_, "jobs_max") => "64".into(),
        _ if column.nullable => "null".into(),
        _ => match column.kind.as_str() {
            "text" => "'x'".into(),
            "uuid" => dialect.id("n"),
            "timestamp with time zone" => dialect.time("1700000000 + n"),
            "bytea" => "'\\x00'::bytea".into(),
            "blob" => "x'00'".into(),
            _ => "n".into(),
        },
    }
}

/// `insert … select` of so many rows.
fn fill(dialect: Dialect, table: &str, columns: &[Column], rows: u32) -> String {
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let values: Vec<String> = columns.iter().map(|column| value(dialect, table, column)).collect();
    let insert = format!("insert into {table} ({}) ", names.join(", "));
    let values = values.join(", ");
    match dialect {
        Dialect::Postgres => format!("{insert} select {values} from generate_series(0, {rows} - 1) as n"),
        Dialect::Sqlite => format!(
            "{insert} with recursive numbers (n) as (select 0 union all select n + 1 from numbers where n + 1 < {rows}) \
             select {values} from numbers"
        ),
    }
}

/// What the store would bind at `$number`, by the column that it is compared with, and else by its type.
#[expect(clippy::match_same_arms, reason = "a line for each column")]
fn bound(sql: &str, number: usize, kind: &str) -> String {
    let (org, some) = (Dialect::Postgres.id("2"), Dialect::Postgres.id("10007"));
    let marker = format!("${number}");
    let is_marker = |at: usize| !sql[at + marker.len()..].starts_with(|next: char| next.is_ascii_digit());
    let before = sql.match_indices(&marker).find(|(at, _)| is_marker(*at)).map(|(at, _)| sql[..at].trim_end());
    let before = before.unwrap_or_default();
    let column = before.trim_end_matches(['=', '<', '>', ' ']);
    let is_compared = column.len() < before.len();
    // `coalesce(org_id, org_id)`.
    let column = column.trim_end_matches(')');
    let column =
        column.rsplit(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').next().unwrap_or_default();
    match (is_compared, column, kind) {
        (true, "org_id", _) => org,
        // The first page of a list.
        (true, "id", "uuid") if before.ends_with('<') => "cast('ffffffff-ffff-ffff-ffff-ffffffffffff' as uuid)".into(),
        (true, "installation_id" | "workflow_id" | "plugin_id", _) => org,
        (true, "run_id", _) => Dialect::Postgres.id("3307"),
        (true, "worker_id", _) => Dialect::Postgres.id("1"),
        (true, "state", _) => "'ready'".into(),
        (true, "status", _) => "'failed'".into(),
        (true, "lane", _) => "'interactive'".into(),
        (true, "outcome", _) => "'failed'".into(),
        (true, "kind", _) if sql.contains("dead_letter") => "'run'".into(),
        (true, "subject", _) => "'run_10007'".into(),
        (true, "fingerprint", _) => "'fault-3'".into(),
        (true, "kind", _) if sql.contains("job") => "'advance_run'".into(),
        (true, "kind", _) => "'run.failed'".into(),
        (true, "action", _) => "'action.1'".into(),
        (true, "correlation", _) => "'req_10007'".into(),
        (true, "target" | "group_key", _) => "'wf_7'".into(),
        (true, "held_for", _) => "'wf_8'".into(),
        (true, "dedupe_key", _) => "'run_10007'".into(),
        // A filter that is not given.
        (false, _, "text") if before.ends_with("(cast(") => "null".into(),
        (_, _, "uuid") => some,
        (_, _, "text") => "''".into(),
        (_, _, "timestamp with time zone") => "to_timestamp(1700000100)".into(),
        (_, _, "bytea") => "'\\x00'::bytea".into(),
        // Lists of ids.
        (_, _, "jsonb") => format!("to_jsonb(array[{some}])"),
        _ => "51".into(),
    }
}

/// Statements that touch a large table and do more than put rows in.
fn looked_at() -> Vec<(&'static str, String, bool)> {
    let of = |opening, postgres| statements(opening).into_iter().map(move |(file, sql)| (file, sql, postgres));
    let all = of("sql!(", false).chain(of("sql_postgres!(", true));
    let spaced = |sql: &str| sql.split_whitespace().collect::<Vec<_>>().join(" ");
    let touches = |sql: &str| {
        let mut words = sql.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').peekable();
        let mut found = false;
        while let Some(word) = words.next() {
            let leads = matches!(word, "from" | "join" | "update" | "into");
            found |= leads && words.peek().is_some_and(|table| LARGE.contains(table));
        }
        found && !(sql.starts_with("insert into") && sql.contains("values ("))
    };
    let mut found: Vec<_> =
        all.map(|(file, sql, postgres)| (file, spaced(&sql), postgres)).filter(|(_, sql, _)| touches(sql)).collect();
    found.sort_by_key(|(file, _, _)| STATEMENT_SOURCES.iter().position(|(source, _)| source == file));
    found
}

/// A statement and how it is carried out.
struct Plan {
    file: &'static str,
    sql: String,
    lines: Vec<String>,
}

/// Lines that read all of a large table or of an index, or all of an organization's rows.
fn whole_scans(dialect: Dialect, lines: &[String]) -> Vec<&String> {
    let is_large = |name: &str| {
        LARGE.contains(&name.trim_matches(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_'))
    };
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let after = |word: &str| {
            words(line).iter().skip_while(|found| *found != word).nth(1).is_some_and(|name| is_large(name))
        };
        let whole = match dialect {
            // An index of its own for each primary key: with the organization alone it leads to all that the organization has.
            Dialect::Sqlite => {
                after("SCAN")
                    || (line.contains("INDEX sqlite_autoindex_") && line.ends_with("_1 (org_id=?)") && after("SEARCH"))
            }
            Dialect::Postgres => {
                let has_condition = lines.get(at + 1).is_some_and(|next| next.trim_start().starts_with("Index Cond"));
                let is_index = line.contains("Index Scan using") || line.contains("Index Only Scan using");
                let condition = lines.get(at + 1).map_or("", |next| next.trim());
                let by_org_alone = condition.starts_with("Index Cond: (org_id = ") && !condition.contains(" AND ");
                let is_bitmap = line.contains("Bitmap Index Scan on") && line.ends_with("_pkey");
                let of_key = is_bitmap || (is_index && line.contains("_pkey on"));
                (after("on") && (line.contains("Seq Scan on") || (is_index && !has_condition)))
                    || (of_key && by_org_alone && LARGE.iter().any(|table| line.contains(&format!("{table}_pkey"))))
            }
        };
        if whole {
            found.push(line);
        }
    }
    found
}

/// Compares with the files, or writes them.
fn settle(dialect: Dialect, header: &str, plans: &[Plan]) {
    let mut findings = String::new();
    for plan in plans {
        let scans = whole_scans(dialect, &plan.lines);
        let excepted = EXCEPTIONS.iter().any(|(file, begins, _)| *file == plan.file && plan.sql.starts_with(begins));
        if !scans.is_empty() && !excepted {
            write!(findings, "{}: {}\n    {scans:?}\n", plan.file, plan.sql).unwrap();
        }
    }
    assert!(
        findings.is_empty(),
        "these read all of a large table or index: give them an index, or say in EXCEPTIONS why they may.\n{findings}"
    );
    for (file, begins, _) in EXCEPTIONS {
        let known = plans.iter().any(|plan| plan.file == *file && plan.sql.starts_with(begins));
        assert!(known || dialect == Dialect::Sqlite, "{file}: no statement begins with {begins:?} any more");
    }
    let mut texts: BTreeMap<PathBuf, String> = BTreeMap::new();
    for plan in plans {
        let path = Path::new(dialect.folder()).join(format!("{}.txt", plan.file.replace('/', "-")));
        let text = texts.entry(path).or_insert_with(|| format!("{header}\n"));
        write!(text, "\n{}\n", plan.sql).unwrap();
        for line in &plan.lines {
            writeln!(text, "    {line}").unwrap();
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/store/plans");
    let writes = told("UPDATE_SNAPSHOTS").is_some();
    if writes {
        drop(std::fs::remove_dir_all(folder.join(dialect.folder())));
        std::fs::create_dir_all(folder.join(dialect.folder())).unwrap();
    }
    for (path, text) in &texts {
        let path = folder.join(path);
        if writes {
            std::fs::write(&path, text).unwrap();
            continue;
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(*text, kept, "{}: plans changed; look at them, then `cargo xtask plans`", path.display());
    }
    let kept = std::fs::read_dir(folder.join(dialect.folder())).unwrap().count();
    assert_eq!(kept, texts.len(), "files of plans without a source: `cargo xtask plans`");
}

#[tokio::test]
async fn sqlite_plans_are_those_that_are_kept() {
    let test = TestStore::sqlite().await;
    let mut conn = test.raw_sqlite().await;
    // Rows refer to rows that are not there.
    conn.execute("pragma foreign_keys = off").await.unwrap();
    conn.execute("pragma ignore_check_constraints = on").await.unwrap();
    for table in LARGE.iter().chain(&["organization"]) {
        let columns = sqlx::query(AssertSqlSafe(format!(
            "select name, lower(type), \"notnull\" from pragma_table_info('{table}')"
        )))
        .fetch_all(&mut conn)
        .await
        .unwrap();
        let read = |row: &sqlx::sqlite::SqliteRow| Column {
            name: row.get(0),
            kind: row.get(1),
            nullable: row.get::<i64, _>(2) == 0,
        };
        let columns: Vec<Column> = columns.iter().map(read).collect();
        let rows = if *table == "organization" { ORGS } else { rows() };
        conn.execute(AssertSqlSafe(fill(Dialect::Sqlite, table, &columns, rows)))
            .await
            .unwrap_or_else(|error| panic!("{table}: {error}"));
    }
    let mut plans = Vec::new();
    for (file, sql, _) in looked_at().into_iter().filter(|(_, _, postgres)| !postgres) {
        let found = sqlx::query(AssertSqlSafe(format!("explain query plan {sql}"))).fetch_all(&mut conn).await.unwrap();
        let mut depths: BTreeMap<i64, usize> = BTreeMap::new();
        let lines = found
            .iter()
            .map(|row| {
                let (id, parent): (i64, i64) = (row.get(0), row.get(1));
                let depth = depths.get(&parent).map_or(0, |depth| depth + 1);
                depths.insert(id, depth);
                format!("{}{}", "  ".repeat(depth), row.get::<String, _>(3))
            })
            .collect();
        plans.push(Plan { file, sql, lines });
    }
    let version: String = sqlx::query_scalar("select sqlite_version()").fetch_one(&mut conn).await.unwrap();
    settle(Dialect::Sqlite, &format!("SQLite {version}, without statistics"), &plans);
}

/// Fills the tables past everything that takes time and no part in plans.
async fn fill_postgres(conn: &mut PgConnection) {
    let run = async |conn: &mut PgConnection, text: String| {
        sqlx::raw_sql(AssertSqlSafe(text.clone()))
            .execute(conn)
            .await
            .unwrap_or_else(|error| panic!("{text}: {error}"));
    };
    let texts = async |conn: &mut PgConnection, text: &'static str| -> Vec<String> {
        sqlx::query_scalar(text).fetch_all(conn).await.unwrap()
    };
    let constraints = "select format('alter table %s drop constraint %I', conrelid::regclass, conname) from pg_constraint \
         where contype in ('f', 'c') and connamespace = 'public'::regnamespace";
    for text in texts(conn, constraints).await {
        run(conn, text).await;
    }
    let indexes = "select indexdef from pg_indexes left join pg_constraint on conname = indexname \
         where schemaname = 'public' and conname is null order by indexname";
    let defined = texts(conn, indexes).await;
    let dropped = "select format('drop index %I', indexname) from pg_indexes left join pg_constraint on conname = indexname \
         where schemaname = 'public' and conname is null";
    for text in texts(conn, dropped).await {
        run(conn, text).await;
    }
    for table in LARGE.iter().chain(&["organization"]) {
        let columns = sqlx::query(
            "select column_name::text, data_type::text, is_nullable = 'YES' from information_schema.columns \
             where table_schema = 'public' and table_name = $1 order by ordinal_position",
        )
        .bind(table)
        .fetch_all(&mut *conn)
        .await
        .unwrap();
        let read = |row: &sqlx::postgres::PgRow| Column { name: row.get(0), kind: row.get(1), nullable: row.get(2) };
        let columns: Vec<Column> = columns.iter().map(read).collect();
        let rows = if *table == "organization" { ORGS } else { rows() };
        // The owner is under row-level security too.
        run(conn, format!("alter table {table} no force row level security")).await;
        run(conn, fill(Dialect::Postgres, table, &columns, rows)).await;
        run(conn, format!("alter table {table} force row level security")).await;
    }
    for text in defined {
        run(conn, text).await;
    }
    // 300 rows are looked at for each of it, so all of them: a sample would let chance choose between plans that cost nearly the same.
    run(conn, "set default_statistics_target = 1000".to_owned()).await;
    for table in LARGE.iter().chain(&["organization"]) {
        run(conn, format!("vacuum analyze {table}")).await;
    }
}

#[tokio::test]
async fn postgres_plans_are_those_that_are_kept() {
    let Some(test) = TestStore::postgres().await else { return };
    let mut owner = PgConnection::connect(test.database().url()).await.unwrap();
    fill_postgres(&mut owner).await;
    // As the application, under the policies that it works under.
    let mut conn = test.raw_postgres().await;
    let settings = "set plan_cache_mode = force_custom_plan; set jit = off; set max_parallel_workers_per_gather = 0";
    conn.execute(AssertSqlSafe(format!(
        "{settings}; select set_config('app.org_id', ({})::text, false)",
        Dialect::Postgres.id("2")
    )))
    .await
    .unwrap();
    let mut plans = Vec::new();
    for (file, sql, _) in looked_at() {
        // What runs over all organizations has a reason instead of an organization.
        let scope = match file {
            _ if sql.contains("org_id = $") => "",
            "node" => "nodes",
            _ => "jobs",
        };
        conn.execute(AssertSqlSafe(format!("set app.scope = '{scope}'"))).await.unwrap();
        conn.execute(AssertSqlSafe(format!("prepare statement as {sql}")))
            .await
            .unwrap_or_else(|error| panic!("{file}: {sql}\n{error}"));
        let kinds: Vec<String> = sqlx::query_scalar(
            "select kind::text from pg_prepared_statements, unnest(parameter_types) with ordinality as of (kind, place) \
             where name = 'statement' order by place",
        )
        .fetch_all(&mut conn)
        .await
        .unwrap();
        let values: Vec<String> = kinds.iter().zip(1..).map(|(kind, number)| bound(&sql, number, kind)).collect();
        let values = if values.is_empty() { String::new() } else { format!("({})", values.join(", ")) };
        let text = format!("explain (costs off) execute statement{values}");
        let found = sqlx::raw_sql(AssertSqlSafe(text.clone()))
            .fetch_all(&mut conn)
            .await
            .unwrap_or_else(|error| panic!("{text}\n{error}"));
        conn.execute("deallocate statement").await.unwrap();
        plans.push(Plan { file, sql, lines: found.iter().map(|row| row.get::<String, _>(0)).collect() });
    }
    let version: String = sqlx::query_scalar("show server_version").fetch_one(&mut conn).await.unwrap();
    if version.starts_with(POSTGRES_MAJOR) {
        settle(Dialect::Postgres, &format!("PostgreSQL {POSTGRES_MAJOR}"), &plans);
    }
}
