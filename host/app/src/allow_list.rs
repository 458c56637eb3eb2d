//! From where an organization may be reached, at each request of each caller.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::allow_list::AllowList;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::OrgId;
use bulkhead_model::permission::{Actor, Caller, OrgScope, Permission, SystemReason, SystemScope};
use bulkhead_store::allow_list::StoredAllowList;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::member::Membership;
use bulkhead_store::{StoreError, Tx};
use serde_json::json;

use crate::auth::OrgRef;
use crate::sign_in::SignedIn;
use crate::{App, AppError, Problem};

/// A list that was read holds for so long. A change counts at once where it was made, and within this time on other nodes.
const KEPT_FOR: Duration = Duration::from_secs(1);
/// Lists in memory, of at most 200 networks each.
const KEPT_MAX: u64 = 10_000;

pub(crate) type AllowLists = moka::future::Cache<OrgId, Arc<AllowList>>;

pub(crate) fn allow_lists() -> AllowLists {
    moka::future::Cache::builder().max_capacity(KEPT_MAX).time_to_live(KEPT_FOR).build()
}

/// What to replace a list with.
#[derive(Clone, Debug)]
pub struct NewAllowList {
    pub entries: Vec<String>,
    /// Also when it shuts out whoever asks.
    pub confirms_lock_out: bool,
}

fn read(entries: &[String]) -> Result<AllowList, AppError> {
    AllowList::read(entries).map_err(|wrong| {
        let problem = Problem::new(format!("/entries/{}", wrong.at), "invalid-allow-list", wrong.why.clone());
        AppError::Invalid { code: "invalid-allow-list", message: wrong.why, problems: vec![problem] }
    })
}

/// The first of a person's organizations that may be reached from there: the one that they have in front of them when they sign in.
pub(crate) async fn first_reachable(
    tx: &mut Tx,
    memberships: &[Membership],
    address: Option<IpAddr>,
) -> Result<Option<OrgId>, AppError> {
    for membership in memberships.iter().filter(|membership| membership.is_active) {
        tx.enter_org(membership.org).await?;
        match tx.load_allow_list().await {
            Ok(stored) if stored.list.allows(address) => return Ok(Some(membership.org)),
            // What cannot be read lets nobody in; the other organizations are none of its business.
            Ok(_) | Err(StoreError::Corrupt { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

async fn save(
    tx: &mut Tx,
    list: &AllowList,
    seen: i64,
    actor: &Actor,
    ambient: &Ambient,
) -> Result<StoredAllowList, AppError> {
    let before = tx.load_allow_list().await?;
    if seen != before.revision {
        return Err(AppError::StaleVersion);
    }
    if before.list == *list {
        return Ok(before);
    }
    if !tx.save_allow_list(list, before.revision, ambient.now()).await? {
        return Err(AppError::StaleVersion);
    }
    let event = AuditEvent {
        action: EventType::IpRulesChanged,
        target: "ip_allow_list".to_owned(),
        actor: actor.clone(),
        detail: json!({ "before": before.list.entries(), "after": list.entries() }),
    };
    tx.record_audit(&event, ambient).await?;
    Ok(StoredAllowList { list: list.clone(), revision: before.revision + 1 })
}

impl App {
    /// # Errors
    /// A refusal, or the store's.
    pub async fn show_allow_list(&self, caller: &Caller, org: OrgId) -> Result<StoredAllowList, AppError> {
        let scope = caller.authorize(org, Permission::SecurityRead)?;
        self.store().read(&scope, (), |tx, ()| Box::pin(async move { Ok(tx.load_allow_list().await?) })).await
    }

    /// Replaces the list. `address` is where the caller is.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `invalid-allow-list`; [`AppError::Conflict`] `would-lock-out` when the list shuts out the caller, who did not
    /// say that this is meant; [`AppError::StaleVersion`]; a refusal.
    pub async fn replace_allow_list(
        &self,
        caller: &Caller,
        org: OrgId,
        seen: i64,
        new: NewAllowList,
        address: Option<IpAddr>,
    ) -> Result<StoredAllowList, AppError> {
        let scope = caller.authorize(org, Permission::SecurityWrite)?;
        let list = read(&new.entries)?;
        if !list.allows(address) && !new.confirms_lock_out {
            let here = address.map_or_else(|| "unknown".to_owned(), |address| address.to_canonical().to_string());
            let message = format!(
                "you would be shut out yourself (your address is {here}): add it, or say `confirm_lock_out` if this is meant"
            );
            return Err(AppError::conflict("would-lock-out", message));
        }
        self.save_list(&scope, list, seen).await
    }

    /// Lets an organization be reached from everywhere again: the operator's way back for whoever is shut out.
    ///
    /// # Errors
    /// The store's.
    pub async fn clear_allow_list_as_operator(&self, org: OrgId) -> Result<(), AppError> {
        let scope = SystemScope::new(SystemReason::Admin).for_org(org);
        let cleared = self
            .store()
            .write(&scope, self.ambient().clone(), |tx, ambient| {
                Box::pin(async move {
                    let Some(before) = tx.clear_allow_list(ambient.now()).await? else { return Ok(()) };
                    let event = AuditEvent {
                        action: EventType::IpRulesChanged,
                        target: "ip_allow_list".to_owned(),
                        actor: Actor::System(SystemReason::Admin),
                        detail: json!({ "before": before, "after": [] }),
                    };
                    Ok::<_, AppError>(tx.record_audit(&event, ambient).await?)
                })
            })
            .await;
        self.allow_lists().invalidate(&org).await;
        cleared
    }

    async fn save_list(&self, scope: &OrgScope, list: AllowList, seen: i64) -> Result<StoredAllowList, AppError> {
        let args = (list, seen, scope.actor().clone(), self.ambient().clone());
        let saved = self
            .store()
            .write(scope, args, |tx, (list, seen, actor, ambient)| Box::pin(save(tx, list, *seen, actor, ambient)))
            .await;
        // Whatever came of it, the next request reads what is there.
        self.allow_lists().invalidate(&scope.org()).await;
        saved
    }

    async fn allow_list_of(&self, org: OrgId) -> Result<Arc<AllowList>, AppError> {
        let scope = SystemScope::new(SystemReason::SignIn).for_org(org);
        let load = async {
            let stored: StoredAllowList =
                self.store().read(&scope, (), |tx, ()| Box::pin(tx.load_allow_list())).await?;
            Ok(Arc::new(stored.list))
        };
        // Together: one that is invalidated while it is read is not kept.
        let read = self.allow_lists().try_get_with(org, load).await;
        read.map_err(|error: Arc<StoreError>| match Arc::try_unwrap(error) {
            Ok(error) => error.into(),
            // Somebody who waited for the same answer is told what it was.
            Err(_) => AppError::Busy { what: "allow-list", retry_after_ms: 1_000 },
        })
    }

    /// Lets a request in if the caller's organization may be reached from where it comes.
    ///
    /// # Errors
    /// [`AppError::AddressRefused`]; the store's, which lets nobody in either.
    pub async fn require_address(&self, caller: &Caller, address: Option<IpAddr>) -> Result<(), AppError> {
        if self.allow_list_of(caller.org()).await?.allows(address) {
            return Ok(());
        }
        metrics::counter!("bulkhead_addresses_refused_total").increment(1);
        self.record_refused_address(caller, address).await;
        Err(AppError::AddressRefused)
    }

    /// The same for a person who is about to work in one of their organizations. One that is none of theirs is somebody else's to refuse.
    ///
    /// # Errors
    /// As [`require_address`](Self::require_address).
    pub async fn require_address_to_enter(
        &self,
        signed_in: &SignedIn,
        org: &OrgRef,
        address: Option<IpAddr>,
    ) -> Result<(), AppError> {
        let is_meant = |id: OrgId, slug: &str| match org {
            OrgRef::Id(named) => *named == id,
            OrgRef::Slug(named) => named.as_str() == slug,
        };
        let memberships = self.list_own_memberships(signed_in).await?;
        for membership in memberships.iter().filter(|membership| membership.is_active) {
            if is_meant(membership.org, membership.slug.as_str())
                && !self.allow_list_of(membership.org).await?.allows(address)
            {
                return Err(AppError::AddressRefused);
            }
        }
        Ok(())
    }
}
