//! The support itself is held to account: a cluster that leaks or a sink that lies would spoil every other suite.

mod postgres;
