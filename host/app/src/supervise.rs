//! The one place that starts background tasks: each has a name, and one that ends by panic is logged and, where asked, begun
//! again.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Starts and stops the host's background tasks.
#[derive(Clone, Default)]
pub struct Supervisor {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Supervisor {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Fires when the process shuts down: loops end at their next turn.
    #[must_use]
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs `future` in the background; a panic in it is logged.
    #[expect(clippy::disallowed_methods, reason = "this is the supervised helper that the ban points to")]
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = tokio::spawn(self.tracker.track_future(future));
        tokio::spawn(async move {
            if task.await.is_err_and(|error| error.is_panic()) {
                metrics::counter!("bulkhead_task_panics_total", "task" => name).increment(1);
                tracing::error!(task = name, "a background task panicked");
            }
        });
    }

    /// Runs the loop that `make` builds until shutdown; one that panics is begun again after a second.
    pub fn spawn_loop<M, F>(&self, name: &'static str, make: M)
    where
        M: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        self.spawn(name, async move {
            use futures_util::FutureExt as _;
            while !stop.is_cancelled() {
                if std::panic::AssertUnwindSafe(make()).catch_unwind().await.is_ok() {
                    return;
                }
                metrics::counter!("bulkhead_task_panics_total", "task" => name).increment(1);
                tracing::error!(task = name, "a background loop panicked and begins again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }

    /// Asks everything to stop and waits up to `patience`; answers whether all ended.
    pub async fn shut_down(&self, patience: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(patience, self.tracker.wait()).await.is_ok()
    }
}
