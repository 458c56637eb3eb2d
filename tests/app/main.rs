//! Use cases against a real store (SQLite and PostgreSQL) and the real sandbox: packages are compiled in the child process and
//! run under the real limits.
//!
//! Each test has one body and runs as `name::sqlite` and `name::postgres`.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests")]

#[macro_use]
mod support;

mod admission;
mod audit_log;
mod audit_proofs;
mod breakers;
mod calls;
mod dead_letters;
mod fairness;
mod grants;
mod guests;
mod installations;
mod keys;
mod limits;
mod nodes;
mod panics;
mod queue;
mod quotas;
mod retention;
mod roles;
mod runs;
mod schedules;
mod secrets;
mod uploads;
