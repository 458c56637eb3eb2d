//! The heartbeat of this process's worker, and the fence: a worker that could not renew it in time cancels every call in flight
//! and claims nothing, before another node takes its work over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bulkhead_model::id::WorkerId;
use bulkhead_model::permission::{SystemReason, SystemScope};
use bulkhead_store::{Store, StoreConfig, StoreError};

use crate::App;

/// A heartbeat lives this long (specification: "Durable jobs").
pub const LEASE_TTL: Duration = Duration::from_secs(4);
/// … is renewed this often …
const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// … and after this long without renewal the worker stops acting, before another takes over.
const FENCE_AFTER: Duration = Duration::from_secs(3);

const SCOPE: SystemScope = SystemScope::new(SystemReason::Jobs);

/// One worker's heartbeat.
pub(crate) struct Heartbeat {
    app: App,
    id: WorkerId,
    name: String,
    /// Set while the heartbeat is overdue: nothing is claimed.
    fenced: AtomicBool,
}

impl Heartbeat {
    pub(crate) fn new(app: App, id: WorkerId, name: String) -> Self {
        Self { app, id, name, fenced: AtomicBool::new(false) }
    }

    /// Whether it is overdue.
    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::SeqCst)
    }

    /// Renews the heartbeat. `Ok(false)` when the row had expired: it is registered anew, and everything that was held under
    /// the old one is lost.
    pub(crate) async fn renew(&self, store: &Store) -> Result<bool, StoreError> {
        let args = (self.id, self.name.clone(), self.app.ambient().clone());
        store
            .write_locked(&SCOPE, args, |tx, (id, name, ambient)| {
                Box::pin(async move {
                    if tx.renew_worker(*id, ambient.now(), LEASE_TTL).await? {
                        return Ok(true);
                    }
                    tx.delete_worker(*id).await?;
                    tx.insert_worker(*id, name, ambient.now(), LEASE_TTL).await?;
                    Ok(false)
                })
            })
            .await
    }

    async fn run(&self, config: StoreConfig) {
        let stop = self.app.in_flight().done().clone();
        let mut store: Option<Store> = None;
        let mut renewed = Instant::now();
        while !stop.is_cancelled() {
            match self.renew_on_own_connection(&config, &mut store).await {
                Ok(true) => {
                    renewed = Instant::now();
                    if self.fenced.swap(false, Ordering::SeqCst) {
                        tracing::info!("the heartbeat is back");
                    }
                }
                Ok(false) => self.fence("another node declared this worker dead"),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the heartbeat failed");
                    store = None;
                }
            }
            if renewed.elapsed() >= FENCE_AFTER {
                self.fence("the heartbeat could not be renewed in time");
            }
            tokio::select! {
                () = tokio::time::sleep(HEARTBEAT_EVERY) => {}
                () = stop.cancelled() => {}
            }
        }
        // Jobs are handed back by then, or their leases end with this row.
        if let Some(store) = store {
            let gone = store
                .write_locked(&SCOPE, self.id, |tx, id| Box::pin(async move { tx.delete_worker(*id).await }))
                .await;
            if let Err(error) = gone {
                tracing::debug!(error = &error as &dyn std::error::Error, "the heartbeat row stays until it expires");
            }
        }
    }

    async fn renew_on_own_connection(
        &self,
        config: &StoreConfig,
        store: &mut Option<Store>,
    ) -> Result<bool, StoreError> {
        let attempt = async {
            if store.is_none() {
                *store = Some(Store::open(config.clone()).await?);
            }
            let Some(store) = store.as_ref() else { return Err(StoreError::TimedOut) };
            self.renew(store).await
        };
        tokio::time::timeout(FENCE_AFTER, attempt).await.map_err(|_| StoreError::TimedOut)?
    }

    fn fence(&self, why: &str) {
        if !self.fenced.swap(true, Ordering::SeqCst) {
            tracing::error!(why, "fencing this worker: its calls in flight are cancelled");
            metrics::counter!("bulkhead_worker_fences_total").increment(1);
        }
        self.app.in_flight().hand_back_all();
    }
}

/// Renews the heartbeat on an OS thread with a connection of its own, so that neither a busy executor nor an exhausted pool
/// delays it.
pub(crate) fn spawn(heartbeat: Arc<Heartbeat>, store: StoreConfig) {
    let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(error = %error, "no heartbeat: the worker fences itself");
                heartbeat.fenced.store(true, Ordering::SeqCst);
                return;
            }
        };
        runtime.block_on(heartbeat.run(store));
    });
    if let Err(error) = thread {
        tracing::error!(error = %error, "no heartbeat thread");
    }
}
