//! Who is shut out for a while because of what was refused to them again and again: addresses and API keys.
//!
//! Refusals are counted by each process; a block counts on all of them, and each knows all blocks in force, so that no request waits for the
//! database to be refused. A blocked address may still prove itself: whoever comes from there with credentials that are good is let in, and may
//! sign in with a browser that is known, so that one guest's guessing shuts nobody else of a shared address out who was there before.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::block::{ADDRESS_STRIKES, Block, KEY_STRIKES, REMEMBERED_FOR, STRIKES_WITHIN};
use bulkhead_model::id::{ApiKeyId, OrgId};
use bulkhead_model::network::Network;
use bulkhead_model::permission::{Actor, Caller, OrgScope, Permission, SystemReason, SystemScope};
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::block::KeyBlock;
use bulkhead_store::{StoreError, Tx};
use serde_json::json;

use crate::limits::LIMITS;
use crate::supervise::Supervisor;
use crate::{App, AppError};

/// Blocks that a node knows, of each kind; those beyond end without having begun.
const BLOCKS_MAX: u32 = 10_000;
/// Whose refusals are counted; beyond, whoever was refused longest ago is forgotten.
const STRUCK_MAX: u64 = 50_000;
/// Nodes of one PostgreSQL database look this often what the others did.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Blocks that nothing remembers are removed every so many looks.
const REMOVE_EVERY_LOOKS: u32 = 600;
/// Blocks in one list.
const LISTED_MAX: u32 = 200;

const OPERATOR: SystemScope = SystemScope::new(SystemReason::Admin);

/// Whose refusals are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Struck {
    Address(Network),
    Key(OrgId, ApiKeyId),
}

#[derive(Default)]
struct InForce {
    addresses: HashMap<String, Block>,
    keys: HashMap<(OrgId, ApiKeyId), Block>,
}

/// What a node knows of blocks.
#[derive(Clone)]
pub(crate) struct Blocks {
    in_force: Arc<RwLock<InForce>>,
    strikes: moka::sync::Cache<Struck, Arc<AtomicU32>>,
}

impl Default for Blocks {
    fn default() -> Self {
        let strikes = moka::sync::Cache::builder()
            .max_capacity(STRUCK_MAX)
            .eviction_policy(moka::policy::EvictionPolicy::lru())
            .time_to_live(STRIKES_WITHIN)
            .build();
        Self { in_force: Arc::default(), strikes }
    }
}

impl Blocks {
    /// Counts a refusal; whether it is the one too many. Counting begins anew then.
    fn strike(&self, struck: Struck, most: u32) -> bool {
        let count = self.strikes.get_with(struck, Arc::default);
        if count.fetch_add(1, Ordering::Relaxed) + 1 < most {
            return false;
        }
        // Of many at once one places the block.
        self.strikes.remove(&struck).is_some()
    }

    fn change<T>(&self, change: impl FnOnce(&mut InForce) -> T) -> T {
        change(&mut self.in_force.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn look<T>(&self, look: impl FnOnce(&InForce) -> T) -> T {
        look(&self.in_force.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The block in force, and whether it is a new one; `None` where there is no such key.
async fn place_on_key(tx: &mut Tx, key: ApiKeyId, ambient: &Ambient) -> Result<Option<(Block, bool)>, AppError> {
    if tx.load_api_key(key).await?.is_none() {
        return Ok(None);
    }
    let previous = tx.load_key_block(key).await?.map(|stored| stored.block);
    let Some(block) = Block::next(previous, ambient.now()) else { return Ok(previous.map(|block| (block, false))) };
    tx.save_key_block(key, &block).await?;
    let event = AuditEvent {
        action: EventType::BlockPlaced,
        target: key.to_string(),
        actor: Actor::System(SystemReason::Limits),
        detail: json!({ "reason": "rate_limits", "level": block.level, "ends_at": block.ends_at }),
    };
    tx.record_audit(&event, ambient).await?;
    Ok(Some((block, true)))
}

impl App {
    /// How long this address is shut out, if it is.
    #[must_use]
    pub fn address_blocked_for(&self, network: Network) -> Option<Duration> {
        let now = self.ambient().now();
        let of_network = |in_force: &InForce| {
            if in_force.addresses.is_empty() {
                return None;
            }
            in_force.addresses.get(&network.to_string()).copied()
        };
        self.blocks().look(of_network).filter(|block| block.is_in_force(now)).map(|block| block.ends_at.since(now))
    }

    /// How long this key is shut out, if it is.
    #[must_use]
    pub fn key_blocked_for(&self, org: OrgId, key: ApiKeyId) -> Option<Duration> {
        let now = self.ambient().now();
        let block = self.blocks().look(|in_force| in_force.keys.get(&(org, key)).copied());
        block.filter(|block| block.is_in_force(now)).map(|block| block.ends_at.since(now))
    }

    /// Counts a refusal of an address; the one too many shuts it out.
    pub async fn strike_address(&self, network: Network) {
        if self.blocks().strike(Struck::Address(network), ADDRESS_STRIKES) {
            self.shut_out(network, "refusals").await;
        }
    }

    /// Shuts an address out, on all nodes; for longer than the last time.
    pub(crate) async fn shut_out(&self, network: Network, because_of: &'static str) {
        let placing = self.store().write(&LIMITS, (network.to_string(), self.ambient().now()), |tx, (network, now)| {
            Box::pin(async move {
                let previous = tx.load_address_block(network).await?;
                let Some(block) = Block::next(previous, *now) else { return Ok(previous.map(|block| (block, false))) };
                tx.save_address_block(network, &block).await?;
                Ok::<_, StoreError>(Some((block, true)))
            })
        });
        match placing.await {
            Ok(Some((block, is_new))) => {
                if is_new {
                    metrics::counter!("bulkhead_blocks_placed_total", "of" => "address").increment(1);
                    // No organization's log is told: the address may ask any of them.
                    tracing::warn!(
                        network = %network, because_of, level = block.level, ends_at = %block.ends_at, "an address is shut out"
                    );
                }
                self.blocks().change(|in_force| {
                    if in_force.addresses.len() < BLOCKS_MAX as usize {
                        in_force.addresses.insert(network.to_string(), block);
                    }
                });
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "an address could not be shut out");
            }
        }
    }

    /// Counts a refusal of a key that proved itself; the one too many shuts it out.
    pub async fn strike_key(&self, org: OrgId, key: ApiKeyId) {
        if !self.blocks().strike(Struck::Key(org, key), KEY_STRIKES) {
            return;
        }
        let scope = SystemScope::new(SystemReason::Limits).for_org(org);
        let placing = self.store().write(&scope, (key, self.ambient().clone()), |tx, (key, ambient)| {
            Box::pin(async move { place_on_key(tx, *key, ambient).await })
        });
        match placing.await {
            Ok(Some((block, is_new))) => {
                if is_new {
                    metrics::counter!("bulkhead_blocks_placed_total", "of" => "key").increment(1);
                }
                self.blocks().change(|in_force| in_force.keys.insert((org, key), block));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "a key could not be shut out"),
        }
    }

    /// The organization's keys that are shut out, those that are so longest first; at most 200.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_key_blocks(&self, caller: &Caller, org: OrgId) -> Result<Vec<KeyBlock>, AppError> {
        let scope = caller.authorize(org, Permission::SecurityRead)?;
        self.store()
            .read(&scope, self.ambient().now(), |tx, now| {
                Box::pin(async move { Ok(tx.list_key_blocks(*now, LISTED_MAX).await?) })
            })
            .await
    }

    /// Lets a key in again; what came before is forgotten.
    ///
    /// # Errors
    /// [`AppError::NotFound`]; a refusal.
    pub async fn lift_key_block(&self, caller: &Caller, org: OrgId, key: ApiKeyId) -> Result<(), AppError> {
        let scope = caller.authorize(org, Permission::SecurityWrite)?;
        self.lift(&scope, key).await
    }

    async fn lift(&self, scope: &OrgScope, key: ApiKeyId) -> Result<(), AppError> {
        let args = (key, scope.actor().clone(), self.ambient().clone());
        let lifting = self.store().write(scope, args, |tx, (key, actor, ambient)| {
            Box::pin(async move {
                let found = tx.load_key_block(*key).await?.ok_or(AppError::NotFound { what: "block" })?;
                tx.delete_key_block(*key).await?;
                let Block { level, ends_at, .. } = found.block;
                let event = AuditEvent {
                    action: EventType::BlockLifted,
                    target: key.to_string(),
                    actor: actor.clone(),
                    detail: json!({ "before": { "level": level, "ends_at": ends_at } }),
                };
                Ok::<_, AppError>(tx.record_audit(&event, ambient).await?)
            })
        });
        lifting.await?;
        self.blocks().change(|in_force| in_force.keys.remove(&(scope.org(), key)));
        Ok(())
    }

    /// The networks that are shut out, as the operator sees them.
    ///
    /// # Errors
    /// The store's.
    pub async fn list_address_blocks_as_operator(&self) -> Result<Vec<(String, Block)>, AppError> {
        self.store()
            .read(&OPERATOR, self.ambient().now(), |tx, now| {
                Box::pin(async move { Ok(tx.list_address_blocks(*now, BLOCKS_MAX).await?) })
            })
            .await
    }

    /// Lets a network in again.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn lift_address_block_as_operator(&self, network: Network) -> Result<(), AppError> {
        let name = network.to_string();
        let lifting = self.store().write(&OPERATOR, name.clone(), |tx, network| {
            Box::pin(async move { Ok::<_, AppError>(tx.delete_address_block(network).await?) })
        });
        if !lifting.await? {
            return Err(AppError::NotFound { what: "block" });
        }
        self.blocks().change(|in_force| in_force.addresses.remove(&name));
        tracing::warn!(network = %network, "an address is let in again");
        Ok(())
    }

    /// Reads which blocks are in force.
    ///
    /// # Errors
    /// The store's.
    pub async fn look_at_blocks(&self) -> Result<(), AppError> {
        let read = self.store().read(&LIMITS, self.ambient().now(), |tx, now| {
            Box::pin(async move {
                let addresses = tx.list_address_blocks(*now, BLOCKS_MAX).await?;
                Ok::<_, AppError>((addresses, tx.list_all_key_blocks(*now, BLOCKS_MAX).await?))
            })
        });
        let (addresses, keys): (Vec<(String, Block)>, Vec<KeyBlock>) = read.await?;
        let keys = keys.into_iter().map(|stored| ((stored.org, stored.key), stored.block)).collect();
        self.blocks().change(|in_force| *in_force = InForce { addresses: addresses.into_iter().collect(), keys });
        Ok(())
    }

    /// Begins to know blocks: those that are in force, and on PostgreSQL what other nodes do, until shutdown.
    ///
    /// # Errors
    /// The store's.
    pub async fn start_blocks(&self, supervisor: &Supervisor) -> Result<(), AppError> {
        self.look_at_blocks().await?;
        let (app, stop) = (self.clone(), supervisor.stop_token());
        supervisor.spawn_loop("blocks", move || {
            let (app, stop) = (app.clone(), stop.clone());
            async move {
                let mut looks = 0_u32;
                loop {
                    tokio::select! {
                        () = tokio::time::sleep(LOOK_EVERY) => {}
                        () = stop.cancelled() => return,
                    }
                    // On SQLite this process places and lifts all of them itself.
                    if app.store().is_postgres()
                        && let Err(error) = app.look_at_blocks().await
                    {
                        tracing::debug!(error = &error as &dyn std::error::Error, "blocks could not be looked at");
                    }
                    if looks.is_multiple_of(REMOVE_EVERY_LOOKS) {
                        app.remove_old_blocks().await;
                    }
                    looks = looks.wrapping_add(1);
                }
            }
        });
        Ok(())
    }

    async fn remove_old_blocks(&self) {
        let now = self.ambient().now();
        self.blocks().change(|in_force| {
            in_force.addresses.retain(|_, block| block.is_in_force(now));
            in_force.keys.retain(|_, block| block.is_in_force(now));
        });
        let before = now.minus(REMEMBERED_FOR);
        let removing = self.store().write_locked(&LIMITS, before, |tx, before| {
            Box::pin(async move { tx.remove_address_blocks(*before).await })
        });
        let removed: Result<u64, StoreError> = removing.await;
        if let Err(error) = removed {
            tracing::warn!(error = &error as &dyn std::error::Error, "blocks that are over were not removed");
        }
    }
}
