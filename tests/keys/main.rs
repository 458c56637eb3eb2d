//! Encryption at rest: public vectors, ciphertexts that were moved, and the mistakes that others made.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, its helpers too")]

mod mistakes;
mod transplant;
mod vectors;
