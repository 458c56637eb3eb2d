//! Waiting with a deadline, and ports.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

/// How long between two looks at a condition. Short beside any test, long beside a look.
const PAUSE: Duration = Duration::from_millis(5);

/// Blocks until `condition` holds; answers whether it did before `within` had passed. It looks at least once.
///
/// For use outside async code; inside a runtime use `until_async`, which lets other tasks run.
pub fn wait_until(within: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if started.elapsed() >= within {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
}

/// The same for async code: awaits `condition` again and again until it holds; answers whether it did before `within`
/// had passed. It uses the machine's clock even where a test has paused the runtime's.
#[cfg(feature = "tokio")]
pub async fn until_async(within: Duration, mut condition: impl AsyncFnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if condition().await {
            return true;
        }
        if started.elapsed() >= within {
            return false;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A TCP port of 127.0.0.1 that was free a moment ago.
///
/// Another process may take it before the caller does: bind port 0 where the code under test allows it, and be ready to
/// try again where it does not.
///
/// # Panics
/// When the machine has no loopback port left.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a machine that runs tests has a free loopback port")
        .port()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_comes_true_is_seen() {
        let mut looks = 0;
        assert!(wait_until(Duration::from_secs(10), || {
            looks += 1;
            looks == 3
        }));
        assert_eq!(looks, 3);
    }

    #[test]
    fn a_condition_that_never_holds_is_looked_at_once_and_given_up() {
        let mut looks = 0;
        assert!(!wait_until(Duration::ZERO, || {
            looks += 1;
            false
        }));
        assert_eq!(looks, 1);
    }

    #[cfg(feature = "tokio")]
    #[tokio::test]
    async fn waiting_lets_other_tasks_of_the_same_thread_run() {
        let flag = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let setter = flag.clone();
        let set = async move {
            tokio::task::yield_now().await;
            setter.store(true, std::sync::atomic::Ordering::SeqCst);
        };
        let wait = until_async(Duration::from_secs(10), async || flag.load(std::sync::atomic::Ordering::SeqCst));
        let ((), came) = tokio::join!(set, wait);
        assert!(came);
    }

    #[test]
    fn a_free_port_can_be_bound() {
        TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).unwrap();
    }
}
