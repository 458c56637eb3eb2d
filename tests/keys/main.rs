//! Encryption at rest: public vectors, ciphertexts that were moved, and the mistakes that others made.

mod mistakes;
mod transplant;
mod vectors;
