//! The sandbox as an application meets it: real packages, compiled in the real child process, under the real limits.
//!
//! Guests are written as core modules in WebAssembly text, wrapped into components here: the shortest way to misbehave exactly.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, its helpers too")]

mod calls;
mod endings;
mod factors;
mod hostile;
mod packages;
mod prepared;
mod requests;
mod support;
