//! The store: SQL for SQLite and PostgreSQL, transactions, migrations and the durable job queue.
//!
//! **Forbidden here:** axum and wasmtime. **Invariants:**
//! - Tenant rows are reached only through a transaction opened with an [`OrgScope`](bulkhead_model::permission::OrgScope)
//!   (or a [`SystemScope`](bulkhead_model::permission::SystemScope) with its reason); the organization of every statement
//!   comes from there.
//! - A statement is written once, in the dialect that both databases share, beside the method that uses it. What must
//!   differ is in `sqlite.rs` or `postgres.rs`, with the reason.
//! - A write is a closure that may run more than once: no effects outside, `Ok` commits, `Err` rolls back, and after the
//!   first failed statement a transaction runs nothing more.
//!
//! To add a noun: a migration in both folders, a file here with `impl Tx` methods (`load_x` → option, `require_x` → not
//! found, `list_x` pages, `record_x` appends), a test in `tests/store`.

pub mod account;
pub mod advance;
pub mod allow_list;
pub mod api_key;
pub mod audit;
pub mod audit_log;
pub mod backup;
pub mod block;
pub mod breaker;
pub mod call;
pub mod dead_letter;
pub mod error;
pub mod event;
mod fair;
pub mod hook;
pub mod installation;
pub mod invitation;
pub mod job;
pub mod key;
pub mod link;
pub mod mail;
pub mod member;
pub mod mfa;
mod migrations;
pub mod node;
pub mod org;
pub mod page;
pub mod passkey;
pub mod plugin;
pub mod policy;
mod postgres;
mod probe;
pub mod prune;
pub mod rate;
pub mod retention;
pub mod role;
pub mod run;
pub mod schedule;
pub mod seal;
pub mod secret;
pub mod session;
mod sql;
mod sqlite;
mod store;
pub mod team;
pub mod throttle;
pub mod token;
mod tx;
pub mod workflow;

pub use error::{DatabaseError, StoreError};
pub use postgres::{Listener, application_role};
pub use sql::STATEMENT_SOURCES;
pub use store::{Database, FaultHook, ScopeContext, Scoped, Store, StoreConfig, TxError, WriterStats, correlated};
pub use tx::Tx;
