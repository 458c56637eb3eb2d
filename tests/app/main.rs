//! Use cases against a real store (SQLite and PostgreSQL) and the real sandbox: packages are compiled in the child process and
//! run under the real limits.
//!
//! Each test has one body and runs as `name::sqlite` and `name::postgres`.

#[macro_use]
mod support;

mod calls;
mod grants;
mod guests;
mod installations;
mod secrets;
mod uploads;
