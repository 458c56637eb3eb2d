//! API keys: made, listed, revoked. The secret is shown once.

use std::time::Duration;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::id::{ApiKeyId, OrgId, UserId};
use bulkhead_model::permission::{Caller, OrgScope, Permission, PermissionSet, SystemReason, SystemScope};
use bulkhead_model::time::Timestamp;
use bulkhead_model::token::{SecretHash, Token};
use bulkhead_store::api_key::ApiKey;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::page::{Page, PageRequest};
use serde_json::json;

use crate::{App, AppError};

/// Keys end by default after this many days.
pub const EXPIRY_DAYS_DEFAULT: u32 = 90;
/// … and may live at most so long.
pub const EXPIRY_DAYS_MAX: u32 = 366;
const NAME_LEN_MAX: usize = 100;

/// What a new key is to be.
#[derive(Clone, Debug)]
pub struct NewApiKey {
    pub name: String,
    pub permissions: PermissionSet,
    /// Days until it ends; `None` is the default.
    pub expires_in_days: Option<u32>,
}

/// A key that was just made, with the text that is shown once.
pub struct CreatedApiKey {
    pub key: ApiKey,
    pub secret_text: String,
}

impl App {
    /// Makes a key with at most the caller's own permissions, which ends no later than the caller's own. Without an expiry it
    /// ends after 90 days or with the caller's own, whichever is first.
    ///
    /// # Errors
    /// [`AppError::Invalid`] when it asks for more than the caller holds, for nothing, or for too long a life.
    pub async fn create_api_key(&self, caller: &Caller, org: OrgId, new: NewApiKey) -> Result<CreatedApiKey, AppError> {
        let scope = caller.authorize(org, Permission::ApiKeysWrite)?;
        if !new.permissions.is_subset_of(caller.permissions()) {
            return Err(AppError::invalid(
                "invalid-permissions",
                "/permissions",
                "a key cannot hold a permission that its maker does not hold",
            ));
        }
        self.insert_api_key(&scope, new, caller.key(), caller.user()).await
    }

    /// Makes an organization's first key, with every permission. For the operator only.
    ///
    /// # Errors
    /// As [`create_api_key`](Self::create_api_key).
    pub async fn create_first_api_key(&self, org: OrgId, new: NewApiKey) -> Result<CreatedApiKey, AppError> {
        self.insert_api_key(&SystemScope::new(SystemReason::Admin).for_org(org), new, None, None).await
    }

    async fn insert_api_key(
        &self,
        scope: &OrgScope,
        new: NewApiKey,
        maker: Option<ApiKeyId>,
        owner: Option<UserId>,
    ) -> Result<CreatedApiKey, AppError> {
        if new.name.trim().is_empty() || new.name.chars().count() > NAME_LEN_MAX {
            return Err(AppError::invalid(
                "invalid-name",
                "/name",
                format!("a name has 1 to {NAME_LEN_MAX} characters"),
            ));
        }
        if new.permissions == PermissionSet::EMPTY {
            return Err(AppError::invalid(
                "invalid-permissions",
                "/permissions",
                "a key needs at least one permission",
            ));
        }
        if let Some(foreign) = new.permissions.without(PermissionSet::all()).iter().next() {
            let message = format!("{foreign} is the platform's: no key of an organization holds it");
            return Err(AppError::invalid("invalid-permissions", "/permissions", message));
        }
        let days = new.expires_in_days.unwrap_or(EXPIRY_DAYS_DEFAULT);
        if !(1..=EXPIRY_DAYS_MAX).contains(&days) {
            let message = format!("a key lives 1 to {EXPIRY_DAYS_MAX} days");
            return Err(AppError::invalid("invalid-expiry", "/expires_in_days", message));
        }
        let (ambient, now) = (self.ambient(), self.ambient().now());
        let wanted = now.plus(Duration::from_secs(u64::from(days) * 86_400));
        let (maker_ends, maker_owner) = match maker {
            Some(maker) => self.maker(scope, maker).await?,
            None => (None, None),
        };
        // Otherwise whoever got hold of a key for an hour could keep what it may do for a year.
        let expires_at = maker_ends.map_or(wanted, |end| wanted.min(end));
        if new.expires_in_days.is_some() && expires_at < wanted {
            let message = "a key cannot outlive the key that makes it: ask for fewer days, or leave them out";
            return Err(AppError::invalid("invalid-expiry", "/expires_in_days", message));
        }
        let token = Token::<ApiKeyId>::generate(scope.org(), ApiKeyId::new(ambient), ambient);
        let key = ApiKey {
            id: token.row,
            name: new.name,
            secret_hash: SecretHash::of(&token.secret),
            permissions: new.permissions,
            created_at: now,
            expires_at: Some(expires_at),
            revoked_at: None,
            // A key that a key makes is its maker's owner's.
            owner: owner.or(maker_owner),
        };
        let event = AuditEvent {
            action: EventType::ApiKeyCreated,
            target: key.id.to_string(),
            actor: scope.actor().clone(),
            detail: json!({
                "name": key.name,
                "permissions": key.permissions.iter().collect::<Vec<_>>(),
                "expires_at": key.expires_at,
            }),
        };
        self.store()
            .write(scope, (key.clone(), event, ambient.clone()), |tx, (key, event, ambient)| {
                Box::pin(async move {
                    tx.insert_api_key(key).await?;
                    Ok::<_, AppError>(tx.record_audit(event, ambient).await?)
                })
            })
            .await?;
        Ok(CreatedApiKey { key, secret_text: token.reveal() })
    }

    /// When the key that makes another one ends, and whose it is.
    async fn maker(&self, scope: &OrgScope, id: ApiKeyId) -> Result<(Option<Timestamp>, Option<UserId>), AppError> {
        let key = self
            .store()
            .read(scope, id, |tx, id| Box::pin(async move { Ok::<_, AppError>(tx.load_api_key(*id).await?) }))
            .await?;
        let key = key.ok_or(AppError::Unauthenticated)?;
        Ok((key.expires_at, key.owner))
    }

    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_api_keys(
        &self,
        caller: &Caller,
        org: OrgId,
        page: PageRequest,
    ) -> Result<Page<ApiKey>, AppError> {
        let scope = caller.authorize(org, Permission::ApiKeysRead)?;
        self.store().read(&scope, page, |tx, page| Box::pin(async move { Ok(tx.list_api_keys(*page).await?) })).await
    }

    /// Revokes a key; a second time is no error. The caller's own key is refused, since that locks him out in mid-work.
    ///
    /// # Errors
    /// [`AppError::NotFound`]; [`AppError::Conflict`] `own-key`.
    pub async fn revoke_api_key(&self, caller: &Caller, org: OrgId, id: ApiKeyId) -> Result<(), AppError> {
        let scope = caller.authorize(org, Permission::ApiKeysWrite)?;
        if caller.key() == Some(id) {
            return Err(AppError::conflict("own-key", "a key cannot revoke itself: use another one"));
        }
        self.revoke_key_in(&scope, id).await
    }

    /// As [`revoke_api_key`](Self::revoke_api_key), by the operator.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn revoke_api_key_as_operator(&self, org: OrgId, id: ApiKeyId) -> Result<(), AppError> {
        self.revoke_key_in(&SystemScope::new(SystemReason::Admin).for_org(org), id).await
    }

    async fn revoke_key_in(&self, scope: &OrgScope, id: ApiKeyId) -> Result<(), AppError> {
        let event = AuditEvent {
            action: EventType::ApiKeyRevoked,
            target: id.to_string(),
            actor: scope.actor().clone(),
            detail: json!({}),
        };
        self.store()
            .write(scope, (id, event, self.ambient().clone()), |tx, (id, event, ambient)| {
                Box::pin(async move {
                    if tx.load_api_key(*id).await?.is_none() {
                        return Err(AppError::NotFound { what: "API key" });
                    }
                    if tx.revoke_api_key(*id, ambient.now()).await? {
                        tx.record_audit(event, ambient).await?;
                    }
                    Ok(())
                })
            })
            .await
    }
}
