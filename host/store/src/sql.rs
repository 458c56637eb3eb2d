//! Values on their way into and out of either database.

use bulkhead_model::time::Timestamp;
use rusqlite::types::Value;
use sqlx::postgres::PgRow;
use sqlx::{Postgres, Row as _};
use uuid::Uuid;

use crate::error::StoreError;
use crate::sqlite::connection::SqliteRow;

/// A statement. `sql!` is its only constructor, so that a test finds and prepares every one on both databases.
#[derive(Clone, Copy)]
pub(crate) struct Sql(pub(crate) &'static str);

macro_rules! sql {
    ($text:literal) => {
        $crate::sql::Sql($text)
    };
}
pub(crate) use sql;

/// A statement that only PostgreSQL runs (row locks); its use says why.
macro_rules! sql_postgres {
    ($text:literal) => {
        $crate::sql::Sql($text)
    };
}
pub(crate) use sql_postgres;

/// The sources that hold statements: the statement-prepare test reads each `sql!("…")` out of them.
pub const STATEMENT_SOURCES: &[(&str, &str)] = &[
    ("account", include_str!("account.rs")),
    ("advance", include_str!("advance.rs")),
    ("allow_list", include_str!("allow_list.rs")),
    ("api_key", include_str!("api_key.rs")),
    ("audit", include_str!("audit.rs")),
    ("audit_log", include_str!("audit_log.rs")),
    ("backup/checks", include_str!("backup/checks.rs")),
    ("block", include_str!("block.rs")),
    ("breaker", include_str!("breaker.rs")),
    ("call", include_str!("call.rs")),
    ("dead_letter", include_str!("dead_letter.rs")),
    ("dead_letter/task", include_str!("dead_letter/task.rs")),
    ("event", include_str!("event.rs")),
    ("hook", include_str!("hook.rs")),
    ("installation", include_str!("installation.rs")),
    ("invitation", include_str!("invitation.rs")),
    ("job", include_str!("job.rs")),
    ("node", include_str!("node.rs")),
    ("job/claim", include_str!("job/claim.rs")),
    ("job/paused", include_str!("job/paused.rs")),
    ("job/look", include_str!("job/look.rs")),
    ("key", include_str!("key.rs")),
    ("key/roots", include_str!("key/roots.rs")),
    ("key/rotation", include_str!("key/rotation.rs")),
    ("key/sealed", include_str!("key/sealed.rs")),
    ("link", include_str!("link.rs")),
    ("mail", include_str!("mail.rs")),
    ("member", include_str!("member.rs")),
    ("mfa", include_str!("mfa.rs")),
    ("org", include_str!("org.rs")),
    ("passkey", include_str!("passkey.rs")),
    ("plugin", include_str!("plugin.rs")),
    ("policy", include_str!("policy.rs")),
    ("probe", include_str!("probe.rs")),
    ("prune", include_str!("prune.rs")),
    ("rate", include_str!("rate.rs")),
    ("retention", include_str!("retention.rs")),
    ("role", include_str!("role.rs")),
    ("role/assignment", include_str!("role/assignment.rs")),
    ("role/request", include_str!("role/request.rs")),
    ("run", include_str!("run.rs")),
    ("schedule", include_str!("schedule.rs")),
    ("secret", include_str!("secret.rs")),
    ("session", include_str!("session.rs")),
    ("throttle", include_str!("throttle.rs")),
    ("token", include_str!("token.rs")),
    ("team", include_str!("team.rs")),
    ("workflow", include_str!("workflow.rs")),
];

/// One bound value. Each variant knows its type even when it is null, as PostgreSQL demands.
#[derive(Clone, Debug)]
pub(crate) enum Bind<'a> {
    Text(Option<&'a str>),
    Int(Option<i64>),
    Uuid(Option<Uuid>),
    Time(Option<Timestamp>),
    Bytes(Option<&'a [u8]>),
}

macro_rules! bind_from {
    ($($source:ty => |$value:ident| $bind:expr;)*) => {$(
        impl<'a> From<$source> for Bind<'a> {
            fn from($value: $source) -> Self { $bind }
        }
    )*};
}

bind_from! {
    &'a str => |value| Bind::Text(Some(value));
    Option<&'a str> => |value| Bind::Text(value);
    &'a String => |value| Bind::Text(Some(value));
    &'a Option<String> => |value| Bind::Text(value.as_deref());
    i64 => |value| Bind::Int(Some(value));
    Option<i64> => |value| Bind::Int(value);
    u32 => |value| Bind::Int(Some(i64::from(value)));
    Uuid => |value| Bind::Uuid(Some(value));
    Option<Uuid> => |value| Bind::Uuid(value);
    Timestamp => |value| Bind::Time(Some(value));
    Option<Timestamp> => |value| Bind::Time(value);
    &'a [u8] => |value| Bind::Bytes(Some(value));
    Option<&'a [u8]> => |value| Bind::Bytes(value);
    &'a Vec<u8> => |value| Bind::Bytes(Some(value));
    &'a [u8; 32] => |value| Bind::Bytes(Some(value));
}

macro_rules! bind_ids {
    ($($id:ident),*) => {$(
        impl From<bulkhead_model::id::$id> for Bind<'_> {
            fn from(id: bulkhead_model::id::$id) -> Self { Bind::Uuid(Some(id.uuid())) }
        }
        impl From<Option<bulkhead_model::id::$id>> for Bind<'_> {
            fn from(id: Option<bulkhead_model::id::$id>) -> Self { Bind::Uuid(id.map(|id| id.uuid())) }
        }
        impl Column for bulkhead_model::id::$id {
            fn read(row: &Row, name: &'static str) -> Result<Self, StoreError> {
                Uuid::read(row, name).map(Self::from_uuid)
            }
        }
        impl Column for Option<bulkhead_model::id::$id> {
            fn read(row: &Row, name: &'static str) -> Result<Self, StoreError> {
                Ok(Option::<Uuid>::read(row, name)?.map(bulkhead_model::id::$id::from_uuid))
            }
        }
    )*};
}
bind_ids!(
    OrgId,
    ApiKeyId,
    PluginId,
    InstallationId,
    CallId,
    WorkflowId,
    HookId,
    RunId,
    JobId,
    EventId,
    AuditId,
    WorkerId,
    SecretId,
    DeadLetterId,
    DeadLetterTaskId,
    UserId,
    SessionId,
    DeviceId,
    LinkId,
    InvitationId,
    MailId,
    SignInAttemptId,
    TokenFamilyId,
    TotpId,
    PasskeyId,
    SignInStepId,
    RoleId,
    AssignmentId,
    RoleRequestId,
    TeamId,
    KeyRotationId
);

/// A row of either database.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    /// The column's value; [`StoreError::Corrupt`] if it is not of the type.
    pub(crate) fn get<T: Column>(&self, name: &'static str) -> Result<T, StoreError> {
        T::read(self, name)
    }

    /// The column read as JSON.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self, name: &'static str) -> Result<T, StoreError> {
        let text: String = self.get(name)?;
        serde_json::from_str(&text).map_err(|error| StoreError::corrupt(name, error))
    }

    /// The column read through `parse`, for enums and names stored as text.
    pub(crate) fn parsed<T>(&self, name: &'static str, parse: impl Fn(&str) -> Option<T>) -> Result<T, StoreError> {
        let text: String = self.get(name)?;
        parse(&text).ok_or_else(|| StoreError::corrupt(name, format_args!("unknown value {text:?}")))
    }
}

/// A type that a column may hold.
pub(crate) trait Column: Sized {
    fn read(row: &Row, name: &'static str) -> Result<Self, StoreError>;
}

/// A type of SQLite's that a column's value is read from; `None` for a value of another kind.
trait FromValue: Sized {
    fn from_value(value: &Value) -> Option<Self>;
}

impl FromValue for String {
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Text(text) = value { Some(text.clone()) } else { None }
    }
}

impl FromValue for i64 {
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Integer(int) = value { Some(*int) } else { None }
    }
}

impl FromValue for Vec<u8> {
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Blob(bytes) = value { Some(bytes.clone()) } else { None }
    }
}

impl FromValue for Uuid {
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Blob(bytes) = value { Self::from_slice(bytes).ok() } else { None }
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: &Value) -> Option<Self> {
        if matches!(value, Value::Null) { Some(None) } else { T::from_value(value).map(Some) }
    }
}

fn read_sqlite<T: FromValue>(row: &SqliteRow, name: &'static str) -> Result<T, StoreError> {
    let value = row.value(name).ok_or_else(|| StoreError::corrupt(name, "no such column"))?;
    T::from_value(value).ok_or_else(|| StoreError::corrupt(name, format_args!("a value of type {}", value.data_type())))
}

macro_rules! plain_columns {
    ($($kind:ty),*) => {$(
        impl Column for $kind {
            fn read(row: &Row, name: &'static str) -> Result<Self, StoreError> {
                match row {
                    Row::Sqlite(row) => read_sqlite(row, name),
                    Row::Postgres(row) => row.try_get(name).map_err(|error| StoreError::corrupt(name, error)),
                }
            }
        }
    )*};
}
plain_columns!(String, Option<String>, i64, Option<i64>, Vec<u8>, Option<Vec<u8>>, Uuid, Option<Uuid>);

/// Microseconds from the Unix epoch to PostgreSQL's, 2000-01-01T00:00:00Z.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A [`Timestamp`] as `timestamptz`: the whole range goes over, where a calendar type would end early.
pub(crate) struct PgTime(pub(crate) Timestamp);

impl sqlx::Type<Postgres> for PgTime {
    fn type_info() -> sqlx::postgres::PgTypeInfo {
        <chrono::DateTime<chrono::Utc> as sqlx::Type<Postgres>>::type_info()
    }
}

impl sqlx::Encode<'_, Postgres> for PgTime {
    fn encode_by_ref(
        &self,
        buffer: &mut sqlx::postgres::PgArgumentBuffer,
    ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
        let micros = self.0.as_micros().saturating_sub(POSTGRES_EPOCH_MICROS);
        sqlx::Encode::<Postgres>::encode_by_ref(&micros, buffer)
    }
}

impl sqlx::Decode<'_, Postgres> for PgTime {
    fn decode(value: sqlx::postgres::PgValueRef<'_>) -> Result<Self, sqlx::error::BoxDynError> {
        // Statements with bound values answer in the binary format.
        let bytes: [u8; 8] = value.as_bytes()?.try_into()?;
        Ok(Self(Timestamp::from_micros(i64::from_be_bytes(bytes).saturating_add(POSTGRES_EPOCH_MICROS))))
    }
}

impl Column for Option<Timestamp> {
    fn read(row: &Row, name: &'static str) -> Result<Self, StoreError> {
        match row {
            Row::Sqlite(row) => read_sqlite::<Option<i64>>(row, name).map(|at| at.map(Timestamp::from_micros)),
            Row::Postgres(row) => row
                .try_get::<Option<PgTime>, _>(name)
                .map(|at| at.map(|at| at.0))
                .map_err(|error| StoreError::corrupt(name, error)),
        }
    }
}

impl Column for Timestamp {
    fn read(row: &Row, name: &'static str) -> Result<Self, StoreError> {
        Option::<Timestamp>::read(row, name)?.ok_or_else(|| StoreError::corrupt(name, "null"))
    }
}

impl Column for [u8; 32] {
    fn read(row: &Row, name: &'static str) -> Result<Self, StoreError> {
        Vec::<u8>::read(row, name)?.try_into().map_err(|_| StoreError::corrupt(name, "not 32 bytes"))
    }
}

impl Column for u32 {
    fn read(row: &Row, name: &'static str) -> Result<Self, StoreError> {
        Self::try_from(i64::read(row, name)?).map_err(|error| StoreError::corrupt(name, error))
    }
}

/// Binds `values` to a query of PostgreSQL.
macro_rules! bind_all {
    ($query:expr, $values:expr, $time:expr) => {{
        let mut query = $query;
        for value in $values {
            query = match value {
                Bind::Text(value) => query.bind(*value),
                Bind::Int(value) => query.bind(*value),
                Bind::Uuid(value) => query.bind(*value),
                Bind::Bytes(value) => query.bind(*value),
                Bind::Time(value) => query.bind(value.map($time)),
            };
        }
        query
    }};
}
pub(crate) use bind_all;

/// `binds![a, b]`: values for a statement, in order.
macro_rules! binds {
    ($($value:expr),* $(,)?) => { &[$($crate::sql::Bind::from($value)),*] };
}
pub(crate) use binds;
