//! The audit log's proofs: public vectors, another implementation of the format, and every way to tamper that we could think of.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, its helpers too")]

mod interop;
mod support;
mod tamper;
mod vectors;
mod whole;
