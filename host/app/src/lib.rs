//! Use cases: permission, order of steps, transactions; and the workers that carry runs forward.
//!
//! **Invariants:**
//! - Every use case that a person reaches takes a [`Caller`](bulkhead_model::permission::Caller) and asks the permission rule
//!   first; what it gets, an `OrgScope`, is what the store demands.
//! - No plugin call and no outbound call happens inside a transaction.
//! - Every mutation writes its audit entry in its own transaction.
//! - After commit only: the runtime is told what changed ([`live`]), workers are woken ([`worker`]).

pub mod api_key;
pub mod audit;
pub mod auth;
pub mod error;
pub mod event;
pub mod job;
pub mod org;
pub mod supervise;

use std::sync::Arc;

use bulkhead_model::ambient::Ambient;
use bulkhead_store::Store;
use bulkhead_store::seal::Sealer;

pub use error::{AppError, Problem};

/// What the application needs to run.
pub struct AppParts {
    pub store: Store,
    pub sealer: Sealer,
    pub ambient: Ambient,
}

/// The application. Cheap to clone.
#[derive(Clone)]
pub struct App {
    inner: Arc<AppParts>,
}

impl App {
    #[must_use]
    pub fn new(parts: AppParts) -> Self {
        Self { inner: Arc::new(parts) }
    }

    #[must_use]
    pub fn ambient(&self) -> &Ambient {
        &self.inner.ambient
    }

    pub(crate) fn store(&self) -> &Store {
        &self.inner.store
    }

    pub(crate) fn sealer(&self) -> &Sealer {
        &self.inner.sealer
    }
}
