//! A local HTTP server that records requests and answers by script.
