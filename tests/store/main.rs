//! The store's contract, on both databases: each test has one body and runs as `name::sqlite` and `name::postgres`.

#[macro_use]
mod support;

mod catalogue;
mod differential;
mod directory;
mod faults;
mod isolation;
mod jobs;
mod nouns;
mod postgres;
mod row_security;
mod start;
mod statements;
mod transactions;
mod writer;
