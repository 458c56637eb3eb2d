//! The support itself is held to account: a cluster that leaks or a sink that lies would spoil every other suite.
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod http_sink;
mod postgres;
mod tcp_proxy;
