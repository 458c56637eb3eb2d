//! The HTTP layer: the real router on the real application, store and sandbox, one request at a time.
//!
//! Each test that touches data has one body and runs as `name::sqlite` and `name::postgres`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, its helpers too")]

#[macro_use]
mod support;

#[path = "../app/guests.rs"]
#[expect(dead_code, reason = "the suite of use cases needs more guests than this one")]
mod guests;

mod accounts;
mod allow_list;
mod api_keys;
mod audit;
mod blocks;
mod breakers;
mod dead_letters;
mod deeds;
mod devices;
mod edge;
mod hooks;
mod input;
mod intruders;
mod isolation;
mod key_bounds;
mod keys;
mod limits;
mod lists;
mod members;
mod mfa;
mod openapi;
mod passkeys;
mod people;
mod plugins;
mod queue;
mod quotas;
mod retention;
mod revoke;
mod roles;
mod schedules;
mod signed;
mod stuffing;
mod tokens;
mod workflows;
