//! The threads on which jobs that a claim took are carried out.
//!
//! An executor serves its tasks in the order in which they woke, whoever's they are; it knows no turns. On the threads that serve requests,
//! what a long queue has under way would stand before whoever asks now. So the queue has an executor of its own. A run that begins with its
//! own start stays on the threads where it was asked for.

use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Handle, Runtime};

/// The queue computes on all cores but so many, which are left to who asks now and to the database's own threads. It needs no more: on these
/// threads a run only plans and hands over, a third of the processor's time that it takes (an estimate from its parts); the rest are
/// the writer's commits, of which there is one at a time, and the guests.
const CORES_LEFT: usize = 1;

/// Ends with whoever holds it last; what is under way then is dropped. Each job holds the application, which holds this.
pub(super) struct QueueThreads {
    /// `None` only in its drop.
    runtime: Option<Runtime>,
    handle: Handle,
}

impl QueueThreads {
    /// # Errors
    /// The system's, when it gives no thread.
    pub(super) fn start() -> std::io::Result<Self> {
        let cores = available_parallelism().map_or(1, NonZeroUsize::get);
        let runtime = Builder::new_multi_thread()
            .worker_threads(cores.saturating_sub(CORES_LEFT).max(1))
            .thread_name("queue")
            .enable_all()
            .build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for QueueThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Not waited for: the last one may be dropped on a thread of an executor, of this very one as well, which must not block.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    #[test]
    fn who_holds_them_last_may_be_one_of_them() {
        let threads = Arc::new(QueueThreads::start().unwrap());
        let handle = threads.handle().clone();
        let (sender, receiver) = mpsc::channel();
        let (go_on, may_go_on) = tokio::sync::oneshot::channel();
        let last = Arc::clone(&threads);
        handle.spawn(async move {
            may_go_on.await.unwrap();
            let name = std::thread::current().name().map(str::to_owned);
            drop(last);
            sender.send(name).unwrap();
        });
        drop(threads);
        go_on.send(()).unwrap();
        assert_eq!(receiver.recv().unwrap().as_deref(), Some("queue"));
    }
}
