//! How much one installation may send: requests at once, and requests per minute with a burst; and how much its whole
//! organization may, so that one with many installations leaves room for the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::EgressError;

/// Idle installations are forgotten once this many are known.
const KNOWN_MAX: usize = 4_096;

/// Bounds on requests. All must be at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Requests of one installation under way at once.
    pub connections_max: u32,
    /// Requests of all of an organization's installations under way at once: an eighth of everybody's.
    pub connections_org_max: u32,
    /// Requests of one installation per minute; as many may come in one burst.
    pub requests_per_minute: u32,
    /// Requests of everybody under way at once: each holds a file descriptor.
    pub connections_total_max: u32,
}

impl Default for Quotas {
    fn default() -> Self {
        Self { connections_max: 16, connections_org_max: 64, requests_per_minute: 600, connections_total_max: 512 }
    }
}

/// Who has how many requests under way.
#[derive(Clone)]
pub(super) struct Ledger {
    quotas: Quotas,
    book: Arc<Mutex<Book>>,
}

#[derive(Default)]
struct Book {
    open: u32,
    /// Organizations with a request under way, and how many.
    orgs: HashMap<String, u32>,
    accounts: HashMap<String, Account>,
}

struct Account {
    open: u32,
    /// Requests that may begin now; grows with time up to a minute's worth.
    left: f64,
    counted: Instant,
}

/// A request under way; its place is free again when this is dropped.
pub(super) struct Permit {
    book: Arc<Mutex<Book>>,
    org: String,
    installation: String,
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    pub(super) fn new(quotas: Quotas) -> Self {
        Self { quotas, book: Arc::default() }
    }

    /// Begins a request, or says why it must wait. Never waits itself.
    pub(super) fn take(&self, org: &str, installation: &str) -> Result<Permit, EgressError> {
        let now = Instant::now();
        let full = f64::from(self.quotas.requests_per_minute);
        let per_second = full / 60.0;
        let mut book = lock(&self.book);
        if book.open >= self.quotas.connections_total_max {
            return Err(EgressError::Busy);
        }
        if book.orgs.get(org).is_some_and(|open| *open >= self.quotas.connections_org_max) {
            return Err(EgressError::OrgBusy { connections_max: self.quotas.connections_org_max });
        }
        if book.accounts.len() >= KNOWN_MAX {
            book.accounts.retain(|_, account| {
                account.open > 0 || account.left + now.duration_since(account.counted).as_secs_f64() * per_second < full
            });
        }
        let account =
            book.accounts.entry(installation.to_owned()).or_insert(Account { open: 0, left: full, counted: now });
        account.left = full.min(account.left + now.duration_since(account.counted).as_secs_f64() * per_second);
        account.counted = now;
        if account.open >= self.quotas.connections_max {
            return Err(EgressError::TooManyConnections { connections_max: self.quotas.connections_max });
        }
        if account.left < 1.0 {
            let wait = std::time::Duration::from_secs_f64((1.0 - account.left) / per_second);
            return Err(EgressError::RateLimited {
                retry_after_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) + 1,
            });
        }
        account.left -= 1.0;
        account.open += 1;
        book.open += 1;
        *book.orgs.entry(org.to_owned()).or_default() += 1;
        Ok(Permit { book: Arc::clone(&self.book), org: org.to_owned(), installation: installation.to_owned() })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut book = lock(&self.book);
        book.open = book.open.saturating_sub(1);
        if let Some(open) = book.orgs.get_mut(&self.org) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                book.orgs.remove(&self.org);
            }
        }
        if let Some(account) = book.accounts.get_mut(&self.installation) {
            account.open = account.open.saturating_sub(1);
        }
    }
}
