//! The store's contract, on both databases: each test has one body and runs as `name::sqlite` and `name::postgres`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, its helpers too")]
#![expect(clippy::large_futures, reason = "a test's future is polled where it stands, and once")]

#[macro_use]
mod support;

mod advance;
mod audit_log;
mod backup;
mod breakers;
mod catalogue;
mod dead_letters;
mod differential;
mod directory;
mod faults;
mod isolation;
mod jobs;
mod keys;
mod mfa;
mod nodes;
mod nouns;
mod passkeys;
mod people;
mod plans;
mod postgres;
mod prune;
mod queue;
mod rates;
mod roles;
mod roots;
mod row_security;
mod schedules;
mod start;
mod statements;
mod tables;
mod transactions;
mod writer;
