//! host/app
