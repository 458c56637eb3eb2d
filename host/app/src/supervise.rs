//! The one place that starts background tasks: each has a name, and one that ends by panic is logged and, where asked, begun
//! again.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::runtime::Handle;
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

    /// Runs `future` in the background, on the executor that this is called on; a panic in it is logged.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn_on(&Handle::current(), name, future);
    }

    /// As [`spawn`](Self::spawn), on the threads of another executor. A shutdown waits for it all the same.
    pub fn spawn_on<F>(&self, threads: &Handle, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let tracked = self.tracker.track_future(future);
        // In the task itself: a second one that waits for it costs each job another wake-up.
        threads.spawn(async move {
            if AssertUnwindSafe(tracked).catch_unwind().await.is_err() {
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
            while !stop.is_cancelled() {
                if AssertUnwindSafe(make()).catch_unwind().await.is_ok() {
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

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// Generous, because the machine may be busy.
    const PATIENCE: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn a_task_that_panics_is_over() {
        let supervisor = Supervisor::new();
        supervisor.spawn("test", async { panic!("a test's panic") });
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    #[tokio::test]
    async fn what_runs_on_other_threads_is_waited_for() {
        let supervisor = Supervisor::new();
        let elsewhere =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("elsewhere").build().unwrap();
        let (go_on, may_go_on) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel();
        supervisor.spawn_on(elsewhere.handle(), "test", async move {
            may_go_on.await.unwrap();
            tell.send(std::thread::current().name().map(str::to_owned)).unwrap();
            panic!("a test's panic");
        });
        assert!(!supervisor.shut_down(Duration::from_millis(10)).await);
        go_on.send(()).unwrap();
        assert!(supervisor.shut_down(PATIENCE).await);
        assert_eq!(told.await.unwrap().as_deref(), Some("elsewhere"));
        elsewhere.shutdown_background();
    }
}
