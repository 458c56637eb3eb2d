//! Root keys and the database: whether they fit, before anything is served or written.

use bulkhead_model::ambient::Ambient;
use bulkhead_model::permission::{AccountScope, SystemReason, SystemScope};
use bulkhead_store::key::RootUse;
use bulkhead_store::seal::{RootId, Sealer};
use bulkhead_store::{Store, StoreConfig, StoreError};

use super::{BATCH, BATCH_PAUSE};
use crate::App;

const ADMIN: SystemScope = SystemScope::new(SystemReason::Admin);

/// Why root keys and database do not fit.
#[derive(Debug, thiserror::Error)]
pub enum RootMismatch {
    /// The database holds what only a root key opens which is not there. Nothing was changed.
    #[error(
        "{keys} organization keys and {people} values of people in the database are under the root key {id}, which is not among the \
         server's root keys: restore it from your backup of the keys. Nothing was changed"
    )]
    Missing { id: RootId, keys: u64, people: u64 },
    /// The first root key is another one than at the first start. Nothing was changed.
    #[error(
        "the root key {found} stands first, but passwords, links, sign-ins, cursors and backups of this database come from {id}: put that \
         one in the first line again. Nothing was changed"
    )]
    First { id: RootId, found: RootId },
    #[error("the database cannot be looked at")]
    Store(#[source] StoreError),
}

/// Counts what each root key is needed for, over all organizations and people. For the operator only.
///
/// # Errors
/// The store's.
pub async fn count_root_uses(store: &Store) -> Result<Vec<RootUse>, StoreError> {
    store.read(&ADMIN, (), |tx, ()| Box::pin(async move { tx.count_root_uses().await })).await
}

/// Refuses root keys that lack one which the database needs, or whose first one is another than at the first start. It only looks.
///
/// # Errors
/// [`RootMismatch`].
pub async fn check_roots(store: &Store, sealer: &Sealer) -> Result<(), RootMismatch> {
    let looked = store.read(&ADMIN, (), |tx, ()| {
        Box::pin(async move { Ok((tx.count_root_uses().await?, tx.load_root_check().await?)) })
    });
    let (uses, first) = looked.await.map_err(RootMismatch::Store)?;
    if let Some(uses) = uses.into_iter().find(|uses| !sealer.knows_root(uses.id)) {
        return Err(RootMismatch::Missing { id: uses.id, keys: uses.org_keys, people: uses.people });
    }
    let found = sealer.base_check();
    match first {
        Some(first) if first != found => Err(RootMismatch::First { id: first.id, found: found.id }),
        Some(_) | None => Ok(()),
    }
}

/// As [`check_roots`], before the database is opened: an opening brings the schema up to date, and on PostgreSQL with the owner's address it
/// gives the application's role a password that follows from the first root key, which would lock every other node out.
///
/// # Errors
/// [`RootMismatch`].
pub async fn look_before_opening(config: &StoreConfig, sealer: &Sealer) -> Result<(), RootMismatch> {
    let Some(store) = Store::look_before_opening(config).await.map_err(RootMismatch::Store)? else { return Ok(()) };
    let checked = check_roots(&store, sealer).await;
    store.close().await;
    checked
}

/// Keeps which root key stands first, at the first start.
///
/// # Errors
/// The store's.
pub async fn keep_root_check(store: &Store, sealer: &Sealer, ambient: &Ambient) -> Result<(), StoreError> {
    let args = (sealer.base_check(), ambient.now());
    store.write(&ADMIN, args, |tx, (check, now)| Box::pin(async move { tx.record_root_check(check, *now).await })).await
}

impl App {
    /// Seals what belongs to people anew where it is under a root key that no longer wraps: a person has no organization whose job could do
    /// it. Two nodes at once do no harm, since a value is replaced only if it is the one that was read. Answers how many were.
    ///
    /// # Errors
    /// The store's.
    pub async fn tend_people(&self) -> Result<u64, StoreError> {
        let (mut after, mut values) = (None, 0);
        loop {
            let args = (self.sealer().clone(), after);
            let tended = self.store().write_locked(&AccountScope::OWN, args, |tx, (sealer, after)| {
                Box::pin(async move { tx.tend_people(sealer, *after, BATCH).await })
            });
            let tended = tended.await?;
            values += u64::from(tended.values);
            for (what, count) in [("person", tended.values), ("broken", tended.broken)] {
                metrics::counter!("bulkhead_keys_tended_total", "what" => what).increment(u64::from(count));
            }
            match tended.next {
                Some(next) => after = Some(next),
                None => return Ok(values),
            }
            tokio::time::sleep(BATCH_PAUSE).await;
        }
    }
}
