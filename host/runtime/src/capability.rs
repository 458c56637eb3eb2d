//! What the host offers to guests. Each file links its functions once, prepares its state for each call, and checks
//! the grant inside each function: a refusal is a value of the interface's own error type, never a trap.

pub(crate) mod baseline;
pub(crate) mod config;
pub(crate) mod http;
pub(crate) mod logging;
pub(crate) mod secrets;
