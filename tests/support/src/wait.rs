//! Waiting with a deadline, and ports.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};
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

/// Ports from which [`free_port`] chooses: below those that systems give to outgoing connections (Linux from 32768, IANA from 49152), of
/// which a suite makes thousands while a server starts.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// A TCP port of 127.0.0.1 for a server that must be told its port. No other process that asks here gets it while this one lives, and
/// no outgoing connection does. Bind port 0 where the code under test allows it.
///
/// # Panics
/// When the machine has no such port left.
pub fn free_port() -> u16 {
    static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = std::env::temp_dir().join("bulkhead-test-ports");
    std::fs::create_dir_all(&folder).expect("a machine that runs tests has a folder for temporary files");
    // Spread, so that processes that start together do not try the same ones.
    let (first, count) = (std::process::id().wrapping_mul(7_919), u32::from(PORTS.end - PORTS.start));
    for number in 0..count {
        let Ok(offset) = u16::try_from(first.wrapping_add(number) % count) else { continue };
        let port = PORTS.start + offset;
        let Ok(lock) = File::create(folder.join(port.to_string())) else { continue };
        if lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            held.push(lock);
            return port;
        }
    }
    panic!("none of the ports {PORTS:?} is free");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once() {
        let mut ports: Vec<u16> = (0..50).map(|_| free_port()).collect();
        assert!(ports.iter().all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()));
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 50);
    }

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
