//! How much keys are used: counted in memory, and written down each minute, so that no request waits for it.
//!
//! A crash forgets the last minute.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bulkhead_model::id::{ApiKeyId, OrgId};
use bulkhead_model::permission::{Caller, Permission, SystemReason, SystemScope};
use bulkhead_model::time::Timestamp;
use bulkhead_store::api_key::{ApiKey, KeyUsage};

use crate::supervise::Supervisor;
use crate::{App, AppError};

/// Counts are kept for so many days, and shown.
pub const USAGE_DAYS: u32 = 90;
/// How often what was counted is written down.
const SAVE_EVERY: Duration = Duration::from_mins(1);
/// Keys that are counted at once, between two writings; those beyond are used and not counted.
const COUNTED_MAX: usize = 100_000;
const DAY_MICROS: i64 = 86_400_000_000;

fn day_of(at: Timestamp) -> i64 {
    at.as_micros().div_euclid(DAY_MICROS)
}

/// The day as a moment, for who shows it.
#[must_use]
pub fn beginning_of(day: i64) -> Timestamp {
    Timestamp::from_micros(day.saturating_mul(DAY_MICROS))
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    requests: u64,
    last_at: Timestamp,
}

type Counts = HashMap<(OrgId, ApiKeyId, i64), Counted>;

/// What was counted since it was last written down.
#[derive(Default)]
pub(crate) struct KeyUses(Mutex<Counts>);

impl KeyUses {
    fn add(&self, (org, key): (OrgId, ApiKeyId), requests: u64, at: Timestamp) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = (org, key, day_of(at));
        if counts.len() >= COUNTED_MAX && !counts.contains_key(&of) {
            return;
        }
        let counted = counts.entry(of).or_insert(Counted { requests: 0, last_at: at });
        counted.requests += requests;
        counted.last_at = counted.last_at.max(at);
    }

    /// What there is, by organization; from then on counting begins anew.
    fn take(&self) -> BTreeMap<OrgId, Vec<(ApiKeyId, i64, Counted)>> {
        let counts = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut by_org: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for ((org, key, day), counted) in counts {
            by_org.entry(org).or_default().push((key, day, counted));
        }
        for keys in by_org.values_mut() {
            // Nodes that write at once take rows in one order.
            keys.sort_unstable_by_key(|(key, day, _)| (*key, *day));
        }
        by_org
    }
}

impl App {
    /// Counts a request by a key that was let in.
    pub fn count_key_use(&self, caller: &Caller) {
        if let Some(key) = caller.key() {
            self.key_uses().add((caller.org(), key), 1, self.ambient().now());
        }
    }

    /// Writes down what was counted. What cannot be written is counted on.
    ///
    /// # Errors
    /// The store's, of the last organization whose counts could not be written.
    pub async fn save_key_usage(&self) -> Result<(), AppError> {
        let mut outcome = Ok(());
        for (org, keys) in self.key_uses().take() {
            let scope = SystemScope::new(SystemReason::SignIn).for_org(org);
            // Each row is added to under its own lock, and taken in one order.
            let saving = self.store().write_locked(&scope, keys.clone(), |tx, keys| {
                Box::pin(async move {
                    for (key, day, counted) in keys {
                        let usage = KeyUsage { day: *day, requests: counted.requests };
                        tx.add_key_usage(*key, usage, counted.last_at).await?;
                        tx.remove_key_usage(*key, day.saturating_sub(i64::from(USAGE_DAYS))).await?;
                    }
                    Ok::<_, AppError>(())
                })
            });
            if let Err(error) = saving.await {
                for (key, _, counted) in keys {
                    self.key_uses().add((org, key), counted.requests, counted.last_at);
                }
                outcome = Err(error);
            }
        }
        outcome
    }

    /// Begins to write down how much keys are used, until shutdown.
    pub fn start_key_usage(&self, supervisor: &Supervisor) {
        let (app, stop) = (self.clone(), supervisor.stop_token());
        supervisor.spawn_loop("key usage", move || {
            let (app, stop) = (app.clone(), stop.clone());
            async move {
                loop {
                    let stopped = tokio::select! {
                        () = tokio::time::sleep(SAVE_EVERY) => false,
                        () = stop.cancelled() => true,
                    };
                    if let Err(error) = app.save_key_usage().await {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "the usage of keys was not written down"
                        );
                    }
                    if stopped {
                        return;
                    }
                }
            }
        });
    }

    /// How much a key was used, newest day first; what this node counted in the last minute is not in it yet.
    ///
    /// # Errors
    /// A refusal; [`AppError::NotFound`].
    pub async fn show_key_usage(
        &self,
        caller: &Caller,
        org: OrgId,
        id: ApiKeyId,
    ) -> Result<(ApiKey, Vec<KeyUsage>), AppError> {
        let scope = caller.authorize(org, Permission::ApiKeysRead)?;
        self.store()
            .read(&scope, id, |tx, id| {
                Box::pin(async move {
                    let key = tx.load_api_key(*id).await?.ok_or(AppError::NotFound { what: "API key" })?;
                    Ok((key, tx.list_key_usage(*id, USAGE_DAYS).await?))
                })
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::ambient::Ambient;

    #[test]
    fn requests_are_counted_by_their_day() {
        let (uses, ambient) = (KeyUses::default(), Ambient::manual(Timestamp::from_micros(5), 1));
        let (org, key) = (OrgId::new(&ambient), ApiKeyId::new(&ambient));
        for at in [DAY_MICROS - 1, DAY_MICROS, DAY_MICROS + 5, -1] {
            uses.add((org, key), 1, Timestamp::from_micros(at));
        }
        let taken = uses.take();
        let counted: Vec<_> = taken[&org].iter().map(|(_, day, counted)| (*day, counted.requests)).collect();
        assert_eq!(counted, [(-1, 1), (0, 1), (1, 2)]);
        assert_eq!(taken[&org][2].2.last_at, Timestamp::from_micros(DAY_MICROS + 5));
        assert!(uses.take().is_empty(), "taken once");
        assert_eq!(beginning_of(1), Timestamp::from_micros(DAY_MICROS));
    }
}
