//! The heartbeat of this process's worker, and the fence: a worker that could not renew it in time cancels every call in flight
//! and claims nothing, before another node takes its work over.
//!
//! A lease runs from some moment between a renewal's request and its answer, so the fence counts from the request. It does not
//! wait for the thread here: what jobs are carried out under ([`Validity`]) ends by the monotonic clock, so that a process
//! that was stopped and goes on refuses its first host call, whichever thread wakes first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bulkhead_model::id::WorkerId;
use bulkhead_model::permission::{SystemReason, SystemScope};
use bulkhead_runtime::Validity;
use bulkhead_store::node::NodeSlots;
use bulkhead_store::{Store, StoreConfig, StoreError};
use tokio_util::sync::CancellationToken;

use crate::App;

/// A heartbeat lives this long (specification: "Durable jobs").
pub const LEASE_TTL: Duration = Duration::from_secs(4);
/// … is renewed this often …
const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// … and after this long without renewal the worker stops acting, before another takes over.
const FENCE_AFTER: Duration = Duration::from_secs(3);
/// One attempt to renew takes no longer, so that there is time for another on a new connection.
const ATTEMPT_MAX: Duration = Duration::from_millis(1_200);
/// Between a failed attempt and the next.
const RETRY_AFTER: Duration = Duration::from_millis(200);

const SCOPE: SystemScope = SystemScope::new(SystemReason::Jobs);

/// One worker's heartbeat.
pub(crate) struct Heartbeat {
    app: App,
    id: WorkerId,
    name: String,
    slots: NodeSlots,
    /// The fence was told of.
    fenced: AtomicBool,
}

impl Heartbeat {
    pub(crate) fn new(app: App, id: WorkerId, name: String, slots: NodeSlots) -> Self {
        Self { app, id, name, slots, fenced: AtomicBool::new(false) }
    }

    fn validity(&self) -> &Validity {
        self.app.in_flight().validity()
    }

    /// Whether it is overdue: nothing may be claimed.
    pub(crate) fn is_fenced(&self) -> bool {
        self.validity().has_ended()
    }

    /// Renews the heartbeat. `Ok(false)` when the row had expired: it is registered anew, and everything that was held under
    /// the old one is lost.
    pub(crate) async fn renew(&self, store: &Store) -> Result<bool, StoreError> {
        let roots = self.app.sealer().root_standings();
        let args = (self.id, self.name.clone(), self.slots, roots, self.app.ambient().clone());
        store
            .write_locked(&SCOPE, args, |tx, (id, name, slots, roots, ambient)| {
                Box::pin(async move {
                    if tx.renew_worker(*id, ambient.now(), LEASE_TTL).await? {
                        return Ok(true);
                    }
                    tx.delete_worker(*id).await?;
                    tx.insert_worker(*id, name, ambient.now(), LEASE_TTL).await?;
                    tx.update_node_slots(*id, *slots).await?;
                    tx.update_node_roots(*id, roots).await?;
                    Ok(false)
                })
            })
            .await
    }

    /// Renews until the process has stopped acting; then removes the row, so that others need not wait for its end.
    async fn run(&self, config: StoreConfig, registered: Instant) {
        let stop = self.app.in_flight().done().clone();
        let mut store: Option<Store> = None;
        let mut renewed = registered;
        while !stop.is_cancelled() {
            // Before anything else: the thread may have been stopped since.
            if self.validity().has_ended() {
                self.fence("the heartbeat could not be renewed in time");
            }
            let began = Instant::now();
            let left = FENCE_AFTER.saturating_sub(renewed.elapsed());
            let patience = if left.is_zero() { ATTEMPT_MAX } else { left.min(ATTEMPT_MAX) };
            let pause = match self.renew_on_own_connection(&config, &mut store, patience).await {
                Ok(true) => {
                    // What saw the end in between hands its job back, and with it everything that began before.
                    if self.validity().has_ended() {
                        self.app.in_flight().hand_back_all();
                    }
                    if self.fenced.swap(false, Ordering::SeqCst) {
                        tracing::info!("the heartbeat is back");
                    }
                    renewed = began;
                    self.validity().renew(began, FENCE_AFTER);
                    HEARTBEAT_EVERY.saturating_sub(began.elapsed())
                }
                Ok(false) => {
                    self.fence("another node may have declared this worker dead");
                    Duration::ZERO
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the heartbeat failed");
                    store = None;
                    if self.fenced.load(Ordering::SeqCst) { HEARTBEAT_EVERY } else { RETRY_AFTER }
                }
            };
            let until_fence = FENCE_AFTER.checked_sub(renewed.elapsed()).unwrap_or(pause);
            tokio::select! {
                () = tokio::time::sleep(pause.min(until_fence)) => {}
                () = stop.cancelled() => {}
            }
        }
        // Jobs are handed back by then, or their leases end with this row.
        if let Some(store) = store {
            let delete =
                store.write_locked(&SCOPE, self.id, |tx, id| Box::pin(async move { tx.delete_worker(*id).await }));
            let gone = tokio::time::timeout(ATTEMPT_MAX, delete).await.unwrap_or(Err(StoreError::TimedOut));
            if let Err(error) = gone {
                tracing::debug!(error = &error as &dyn std::error::Error, "the heartbeat row stays until it expires");
            }
        }
    }

    async fn renew_on_own_connection(
        &self,
        config: &StoreConfig,
        store: &mut Option<Store>,
        patience: Duration,
    ) -> Result<bool, StoreError> {
        let attempt = async {
            if store.is_none() {
                *store = Some(Store::open(config.clone()).await?);
            }
            let Some(store) = store.as_ref() else { return Err(StoreError::TimedOut) };
            self.renew(store).await
        };
        tokio::time::timeout(patience, attempt).await.map_err(|_| StoreError::TimedOut)?
    }

    fn fence(&self, why: &str) {
        self.validity().end();
        if !self.fenced.swap(true, Ordering::SeqCst) {
            tracing::error!(why, "fencing this worker: its calls in flight are cancelled");
            metrics::counter!("bulkhead_worker_fences_total").increment(1);
        }
        self.app.in_flight().hand_back_all();
    }
}

/// Renews the heartbeat, which was `registered` at that moment or later, on an OS thread with a connection of its own, so that
/// neither a busy executor nor an exhausted pool delays it. Without the thread the right to act ends like any that is not
/// renewed. The token fires when the thread has ended.
pub(crate) fn spawn(heartbeat: Arc<Heartbeat>, store: StoreConfig, registered: Instant) -> CancellationToken {
    let ended = CancellationToken::new();
    heartbeat.validity().renew(registered, FENCE_AFTER);
    let guard = ended.clone().drop_guard();
    let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
        let _guard = guard;
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(error = %error, "no heartbeat: the worker fences itself");
                return;
            }
        };
        runtime.block_on(heartbeat.run(store, registered));
    });
    if let Err(error) = thread {
        tracing::error!(error = %error, "no heartbeat thread: the worker fences itself");
    }
    ended
}
