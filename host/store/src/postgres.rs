//! What only PostgreSQL needs: roles, row-level security, isolation and retry, notifications.

mod connections;
mod pace;

use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _, SqlSafeStr as _,
};

use self::connections::Connections;
pub(crate) use self::connections::PgTransaction;
use crate::error::StoreError;
use crate::migrations;
use crate::store::{Isolation, TxError, WRITE_TIME_MAX};
use crate::tx::{Conn, Tx, TxContext};

/// A lost race is repeated this often before the caller hears of it.
const RETRIES_MAX: u32 = 16;
/// What the names of application roles begin with.
const APP_ROLE: &str = "bulkhead_app";
/// Bytes of a name in PostgreSQL (`NAMEDATALEN - 1`).
const NAME_BYTES_MAX: usize = 63;

/// The role that the server makes for itself when only the owner's address is given. Roles belong to the whole cluster, so the
/// name holds the database's: installations beside each other have a role, and a password, each.
#[must_use]
pub fn application_role(database: &str) -> String {
    let mut role = format!("{APP_ROLE}_{database}");
    if role.len() > NAME_BYTES_MAX {
        use sha2::Digest as _;
        role = format!("{APP_ROLE}_{}", &hex::encode(sha2::Sha256::digest(database.as_bytes()))[..32]);
    }
    role
}
/// No statement runs longer.
const STATEMENT_TIMEOUT: &str = "15s";
/// No lock is waited for longer.
const LOCK_TIMEOUT: &str = "5s";
/// A transaction whose client has gone silent holds its locks no longer than a lease lives: a node that was stopped in mid-write
/// must not keep another from taking its jobs up. Nothing in a transaction waits for anything but the database.
const IDLE_TIMEOUT: &str = "4s";
/// Serialises role creation between servers that start together (any fixed number).
const ROLE_LOCK: i64 = 0x6275_6c6b_6865_6164;

/// The channel of all nodes of a database.
const CHANNEL: &str = "bulkhead";
/// PostgreSQL refuses longer ones (`NOTIFY`: "must be shorter than 8000 bytes").
pub(crate) const PAYLOAD_BYTES_MAX: usize = 7_999;
/// A new connection for listening is there within this time.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// One read may take this long, from its first statement to its last.
const READ_TIME_MAX: Duration = Duration::from_secs(30);

pub(crate) struct PostgresBackend {
    connections: Connections,
    listen_options: PgConnectOptions,
}

fn refused(text: impl Into<String>) -> StoreError {
    StoreError::Refused(text.into())
}

fn parse(url: &str) -> Result<PgConnectOptions, StoreError> {
    let is_postgres = url.starts_with("postgres://") || url.starts_with("postgresql://");
    url.parse::<PgConnectOptions>()
        .ok()
        .filter(|_| is_postgres)
        .map(|options| options.log_statements(tracing::log::LevelFilter::Trace))
        .ok_or_else(|| refused("the database address is not of the form postgres://user:password@host:port/name"))
}

/// The application role's address.
fn app_options(url: Option<&str>, owner_url: Option<&str>, app_password: &str) -> Result<PgConnectOptions, StoreError> {
    match (url, owner_url) {
        (Some(url), _) => parse(url),
        (None, Some(owner)) => {
            let options = parse(owner)?;
            let role = application_role(options.get_database().unwrap_or(options.get_username()));
            Ok(options.username(&role).password(app_password))
        }
        (None, None) => Err(refused("set database.url (application role) or database.owner_url (owner)")),
    }
}

/// One long transaction of the application role, without the limits of time that the application works under.
async fn begin_long(options: PgConnectOptions, begin: &'static str) -> Result<Conn, StoreError> {
    let options = options.options([
        ("statement_timeout", "0"),
        ("lock_timeout", LOCK_TIMEOUT),
        ("idle_in_transaction_session_timeout", "0"),
    ]);
    Ok(Conn::Postgres(PgTransaction::alone(&options, begin).await?))
}

/// Opens a snapshot from beside the serving processes. Nothing is migrated and no role made.
pub(crate) async fn begin_snapshot(
    url: Option<&str>,
    owner_url: Option<&str>,
    app_password: &str,
) -> Result<Conn, StoreError> {
    let options = app_options(url, owner_url, app_password)?;
    begin_long(options, "begin isolation level repeatable read read only").await
}

/// Brings the database to this version's schema, where the owner's address allows it, and begins to write.
pub(crate) async fn begin_restore(
    url: Option<String>,
    owner_url: Option<String>,
    app_password: &str,
) -> Result<Conn, StoreError> {
    let options = app_options(url.as_deref(), owner_url.as_deref(), app_password)?;
    PostgresBackend::open(url, owner_url, app_password, 1).await?.close().await;
    begin_long(options, "begin").await
}

/// Numbers and names of the migrations that the database has; none when it is empty.
async fn applied(conn: &mut PgConnection) -> Result<Vec<(i64, String)>, StoreError> {
    let there: bool =
        sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null").fetch_one(&mut *conn).await?;
    if !there {
        return Ok(Vec::new());
    }
    let rows =
        sqlx::query("select version, description from _sqlx_migrations order by version").fetch_all(conn).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

impl PostgresBackend {
    pub(crate) async fn open(
        url: Option<String>,
        owner_url: Option<String>,
        app_password: &str,
        connections_max: u32,
    ) -> Result<Self, StoreError> {
        let app_options = app_options(url.as_deref(), owner_url.as_deref(), app_password)?;
        if let Some(owner_url) = &owner_url {
            let mut owner = PgConnection::connect_with(&parse(owner_url)?).await?;
            migrations::check_newer(&applied(&mut owner).await?)?;
            migrations::postgres()
                .run_direct(None, &mut owner, false)
                .await
                .map_err(|error| refused(format!("the migrations did not apply: {error}")))?;
            // Whose password is right already is left alone: another node's may depend on it.
            let create = if url.is_some() || can_log_in(&app_options).await { None } else { Some(app_password) };
            prepare_role(&mut owner, app_options.get_username(), create).await?;
            owner.close().await?;
        }
        Self::connect(app_options, connections_max, &[]).await
    }

    /// Comes as the application role to look: nothing is migrated, no role made, and the database refuses what would write.
    pub(crate) async fn look(
        url: Option<&str>,
        owner_url: Option<&str>,
        app_password: &str,
        connections_max: u32,
    ) -> Result<Self, StoreError> {
        let options = app_options(url, owner_url, app_password)?;
        Self::connect(options, connections_max, &[("default_transaction_read_only", "on")]).await
    }

    /// Comes as the owner to look; `None` while nothing of ours is there. The database refuses what would write.
    pub(crate) async fn look_as_owner(owner_url: &str) -> Result<Option<Self>, StoreError> {
        let options = parse(owner_url)?;
        let mut conn = PgConnection::connect_with(&options).await?;
        let there: bool =
            sqlx::query_scalar("select to_regclass('root_check') is not null").fetch_one(&mut conn).await?;
        conn.close().await?;
        let read_only = options.clone().options([
            ("default_transaction_read_only", "on"),
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("lock_timeout", LOCK_TIMEOUT),
        ]);
        Ok(there.then(|| Self { connections: Connections::new(read_only, 1), listen_options: options }))
    }

    async fn connect(
        app_options: PgConnectOptions,
        connections_max: u32,
        further: &[(&str, &str)],
    ) -> Result<Self, StoreError> {
        let listen_options = app_options.clone();
        // For the application alone: a migration of a large table may take its time.
        let app_options = app_options.options([
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("lock_timeout", LOCK_TIMEOUT),
            ("idle_in_transaction_session_timeout", IDLE_TIMEOUT),
        ]);
        let app_options = app_options.options(further.iter().copied());
        let backend = Self { connections: Connections::new(app_options, connections_max), listen_options };
        if let Err(error) = backend.refuse_unsafe_role().await {
            backend.close().await;
            return Err(error);
        }
        Ok(backend)
    }

    /// The server does not start when row-level security would not hold.
    async fn refuse_unsafe_role(&self) -> Result<(), StoreError> {
        let mut conn = self.connections.alone().await?;
        let role = sqlx::query("select rolsuper, rolbypassrls from pg_roles where rolname = current_user")
            .fetch_one(&mut conn)
            .await?;
        if role.try_get::<bool, _>(0)? || role.try_get::<bool, _>(1)? {
            return Err(refused(
                "the database role of database.url is a superuser or has BYPASSRLS: give an ordinary role, or only \
                 database.owner_url and the server makes one",
            ));
        }
        let version: Option<i64> = sqlx::query_scalar("select max(version) from _sqlx_migrations where success")
            .fetch_one(&mut conn)
            .await
            .map_err(|_| refused("the database is empty: run `bulkhead migrate` with database.owner_url"))?;
        if version.unwrap_or(0) < migrations::newest() {
            return Err(refused("migrations are missing: run `bulkhead migrate` with database.owner_url"));
        }
        migrations::check_newer(&applied(&mut conn).await?)?;
        let unsafe_tables = sqlx::query(
            "select c.relname, pg_has_role(c.relowner, 'member') as owned from pg_class c \
             join pg_namespace n on n.oid = c.relnamespace \
             where n.nspname = current_schema() and c.relkind in ('r', 'p') and c.relname not in ('_sqlx_migrations', 'worker') \
             and (not c.relrowsecurity or not c.relforcerowsecurity or pg_has_role(c.relowner, 'member')) \
             order by 1",
        )
        .fetch_all(&mut conn)
        .await?;
        if let Some(row) = unsafe_tables.first() {
            let (table, owned): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
            let why = if owned {
                "is owned by the application role (or a role that it may become)"
            } else {
                "has no forced row-level security"
            };
            return Err(refused(format!("the table {table} {why}: the server does not start on it")));
        }
        Ok(())
    }

    pub(crate) async fn write<A, T, E, F>(
        &self,
        isolation: Isolation,
        context: &TxContext,
        new_tx: impl Fn(Conn) -> Tx + Sync,
        args: A,
        closure: F,
    ) -> Result<T, E>
    where
        E: TxError,
        F: for<'t> Fn(&'t mut Tx, &'t A) -> BoxFuture<'t, Result<T, E>> + Send + Sync,
    {
        let level = match isolation {
            Isolation::Serializable => "serializable",
            Isolation::ReadCommitted => "read committed",
        };
        let (begin, began) = (format!("begin isolation level {level}"), Instant::now());
        for attempt in 0_u32.. {
            let mut tx = new_tx(self.begin(&begin, context).await?);
            let result = run(&mut tx, &args, &closure).await;
            let contended = tx.contended;
            let Conn::Postgres(transaction) = tx.conn else { unreachable!("begun above as PostgreSQL") };
            let result = match result {
                Ok(value) => match transaction.commit().await {
                    Ok(()) => return Ok(value),
                    Err(error) => Err(E::from(error)),
                },
                Err(error) => {
                    // A rollback that fails ends the connection, and with it the transaction.
                    if let Err(rollback) = transaction.roll_back().await {
                        tracing::debug!(error = &rollback as &dyn std::error::Error, "rollback failed");
                    }
                    Err(error)
                }
            };
            // A lost race is repeated even if the closure made something else of the error.
            let lost_race =
                contended || matches!(&result, Err(error) if error.store().is_some_and(StoreError::is_contention));
            if !lost_race || attempt >= RETRIES_MAX {
                return result;
            }
            metrics::counter!("bulkhead_database_retries_total").increment(1);
            tokio::time::sleep(pause_before(attempt, began.elapsed())).await;
        }
        Err(StoreError::TimedOut.into())
    }

    /// Reads from one snapshot.
    pub(crate) async fn read<A, T, E, F>(
        &self,
        context: &TxContext,
        new_tx: impl FnOnce(Conn) -> Tx,
        args: A,
        closure: F,
    ) -> Result<T, E>
    where
        E: TxError,
        F: for<'t> Fn(&'t mut Tx, &'t A) -> BoxFuture<'t, Result<T, E>> + Send + Sync,
    {
        let mut tx = new_tx(self.begin("begin isolation level repeatable read read only", context).await?);
        let read = tokio::time::timeout(READ_TIME_MAX, closure(&mut tx, &args)).await;
        let Ok(result) = read else { return Err(StoreError::TimedOut.into()) };
        if let Conn::Postgres(transaction) = tx.conn
            && let Err(rollback) = transaction.roll_back().await
        {
            // What was read was read.
            tracing::debug!(error = &rollback as &dyn std::error::Error, "the end of a read failed");
        }
        result
    }

    /// Begins and names the organization and the reason in one round trip. Neither holds a quote: an id and a constant.
    async fn begin(&self, begin: &str, context: &TxContext) -> Result<Conn, StoreError> {
        let org = context.org.map(|org| org.uuid().to_string()).unwrap_or_default();
        let scope = context.system.map_or("", bulkhead_model::permission::SystemReason::as_str);
        let text = format!("{begin}; set local app.org_id = '{org}'; set local app.scope = '{scope}'");
        self.connections.begin(context.org, &text).await.map(Conn::Postgres)
    }

    pub(crate) async fn check_statement(&self, sql: &str) -> Result<(), StoreError> {
        let mut conn = self.connections.alone().await?;
        conn.prepare(AssertSqlSafe(sql.to_owned()).into_sql_str()).await?;
        Ok(())
    }

    pub(crate) async fn close(&self) {
        self.connections.close().await;
    }
}

// `LISTEN` and `NOTIFY`: how nodes tell each other that there is something to look at. Nothing rests on it: a word may be lost,
// and a pooler that hands connections out by the transaction loses every one.

/// Hears what nodes of this database say, on a connection of its own.
pub struct Listener {
    listener: PgListener,
}

impl Listener {
    /// The next word; `None` once the connection is lost: words may have been lost with it, and another listener is needed.
    /// May be given up and called again.
    pub async fn next(&mut self) -> Option<String> {
        match self.listener.try_recv().await {
            Ok(heard) => heard.map(|heard| heard.payload().to_owned()),
            Err(error) => {
                tracing::debug!(error = %error, "the listening connection failed");
                None
            }
        }
    }
}

impl PostgresBackend {
    /// `url` leads to the same database past a pooler; without it the application's own address is used.
    pub(crate) async fn listen(&self, url: Option<&str>) -> Result<Listener, StoreError> {
        let options = url.map_or_else(|| Ok(self.listen_options.clone()), parse)?;
        let connect = async {
            let pool = PgPoolOptions::new()
                .max_connections(1)
                .max_lifetime(None)
                .idle_timeout(None)
                .acquire_timeout(CONNECT_WITHIN)
                .connect_with(options)
                .await?;
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.eager_reconnect(false);
            listener.listen(CHANNEL).await?;
            Ok::<_, StoreError>(Listener { listener })
        };
        tokio::time::timeout(CONNECT_WITHIN, connect).await.map_err(|_| StoreError::TimedOut)?
    }

    /// Tells every listening node. In a transaction of its own, since the commit of one that notifies takes a lock of the whole
    /// instance; and without waiting for the disk, since there is nothing in it to lose.
    pub(crate) async fn notify(&self, text: &str) -> Result<(), StoreError> {
        if text.len() > PAYLOAD_BYTES_MAX {
            return Err(StoreError::Misuse("a notification is too long"));
        }
        let mut transaction = self.connections.begin(None, "begin; set local synchronous_commit = off").await?;
        sqlx::query("select pg_notify($1, $2)").bind(CHANNEL).bind(text).execute(&mut *transaction).await?;
        transaction.commit().await
    }
}

/// Before a closure runs again: 1 to 128 ms and up to as much again, so that two losers do not meet at once. What they differ in is how
/// long they have been at it, to the nanosecond.
fn pause_before(attempt: u32, elapsed: Duration) -> Duration {
    let whole = Duration::from_millis(1 << attempt.min(7));
    whole + whole * (elapsed.subsec_nanos() / 16 % 1_024) / 1_024
}

/// Runs the closure under its time cap; a panic and a failed statement that it passed over are errors.
async fn run<A, T, E, F>(tx: &mut Tx, args: &A, closure: &F) -> Result<T, E>
where
    E: TxError,
    F: for<'t> Fn(&'t mut Tx, &'t A) -> BoxFuture<'t, Result<T, E>> + Send + Sync,
{
    // The closure is called inside, since it may panic before it has a future to give.
    let work = std::panic::AssertUnwindSafe(async { closure(&mut *tx, args).await }).catch_unwind();
    match tokio::time::timeout(WRITE_TIME_MAX, work).await {
        Ok(Ok(Ok(_))) if tx.poisoned => Err(StoreError::Misuse("a failed statement was passed over").into()),
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(StoreError::Misuse("the write panicked").into()),
        Err(_) => Err(StoreError::TimedOut.into()),
    }
}

/// Whether the application role is there with its password.
async fn can_log_in(options: &PgConnectOptions) -> bool {
    match PgConnection::connect_with(options).await {
        Ok(conn) => {
            // That it ends badly says nothing about the password.
            drop(conn.close().await);
            true
        }
        Err(_) => false,
    }
}

/// Creates the application role where asked, and gives it what it needs: rows, but neither tables nor policies.
async fn prepare_role(owner: &mut PgConnection, role: &str, create_password: Option<&str>) -> Result<(), StoreError> {
    let quoted = format!("\"{}\"", role.replace('"', "\"\""));
    let mut transaction = owner.begin_with("begin").await?;
    sqlx::query("select pg_advisory_xact_lock($1)").bind(ROLE_LOCK).execute(&mut *transaction).await?;
    if let Some(password) = create_password {
        let exists: bool = sqlx::query_scalar("select exists (select 1 from pg_roles where rolname = $1)")
            .bind(role)
            .fetch_one(&mut *transaction)
            .await?;
        // What a new role may not do is the default; only a superuser could say it again of an existing one, and start-up
        // refuses one that has become too powerful.
        let verb = if exists { "alter" } else { "create" };
        let text = format!("{verb} role {quoted} login password '{}'", password.replace('\'', "''"));
        match sqlx::query(AssertSqlSafe(text)).execute(&mut *transaction).await {
            Ok(_) => {}
            // Another server (of another database in this cluster, whose advisory lock is its own) was quicker.
            Err(sqlx::Error::Database(error))
                if matches!(error.code().as_deref(), Some("42710" | "23505" | "XX000")) =>
            {
                transaction.rollback().await?;
                return Box::pin(prepare_role(owner, role, None)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let schema: String = sqlx::query_scalar("select current_schema()").fetch_one(&mut *transaction).await?;
    let schema = format!("\"{}\"", schema.replace('"', "\"\""));
    for text in [
        format!("grant usage on schema {schema} to {quoted}"),
        format!("grant select, insert, update, delete on all tables in schema {schema} to {quoted}"),
        format!("revoke insert, update, delete on _sqlx_migrations from {quoted}"),
        // What was recorded stays as it is. Payloads may be forgotten: policies of these tables let nothing be put in their place.
        format!("revoke update, delete on audit, audit_entry, audit_checkpoint from {quoted}"),
        format!("grant update (detail) on audit to {quoted}"),
        format!("grant update (salt, disposed_by) on audit_entry to {quoted}"),
    ] {
        sqlx::query(AssertSqlSafe(text)).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(())
}
