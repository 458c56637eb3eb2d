//! What the test suites share, and nothing that a product crate may depend on outside its tests.
//!
//! - [`postgres`]: a private PostgreSQL cluster that vanishes with the process that started it, and databases in it;
//! - [`authenticator`]: an authenticator app of our own, to hold the host's against;
//! - [`http_sink`]: a local HTTP server that records requests and answers by script, good manners or bad;
//! - [`smtp_sink`]: a local mail relay that keeps what it is sent;
//! - [`tcp_proxy`]: a line between a client and a server that can be cut, held up and refused;
//! - [`measure`]: what measurements print, the disk's own rate, processor time;
//! - [`wait`]: waiting for a condition with a deadline, and free ports.
//!
//! Everything but `wait::until_async` is plain blocking `std`, so that the chores can use it without an async runtime.

pub mod authenticator;
pub mod http_sink;
pub mod measure;
pub mod postgres;
pub mod smtp_sink;
pub mod tcp_proxy;
pub mod wait;

pub use wait::{free_port, wait_until};
