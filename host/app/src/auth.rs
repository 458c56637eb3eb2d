//! Who calls: an API key becomes a [`Caller`].

use bulkhead_model::id::{ApiKeyId, OrgId};
use bulkhead_model::name::Slug;
use bulkhead_model::permission::{Caller, SystemReason, SystemScope};
use bulkhead_model::role::assignment::Within;
use bulkhead_model::token::Token;
use bulkhead_store::org::Org;

use crate::access::known;
use crate::audit::KeyRefusal;
use crate::{App, AppError};

/// An organization as a path names it: `org_…` or its short name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrgRef {
    Id(OrgId),
    Slug(Slug),
}

impl std::str::FromStr for OrgRef {
    type Err = AppError;

    fn from_str(text: &str) -> Result<Self, AppError> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        text.parse().map(Self::Slug).map_err(|_| AppError::NotFound { what: "organization" })
    }
}

/// An authenticated caller and its organization.
#[derive(Clone, Debug)]
pub struct Identity {
    pub caller: Caller,
    pub org: Org,
}

impl Identity {
    /// The id of the organization that a path names, if it is the caller's own; anything else is "not found", since the caller
    /// may not know whether it exists.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub fn resolve(&self, named: &OrgRef) -> Result<OrgId, AppError> {
        let own = match named {
            OrgRef::Id(id) => *id == self.org.id,
            OrgRef::Slug(slug) => *slug == self.org.slug,
        };
        if own { Ok(self.org.id) } else { Err(AppError::NotFound { what: "organization" }) }
    }
}

impl App {
    /// Checks a presented API key against its row, in the key's own organization. A person's key holds what it was given as far as its owner
    /// holds it now: what the owner loses, the key loses with the same commit.
    ///
    /// # Errors
    /// [`AppError::Unauthenticated`] for every kind of bad key, in the same words.
    pub async fn authenticate(&self, presented: &str) -> Result<Identity, AppError> {
        let token = Token::<ApiKeyId>::parse(presented).ok_or(AppError::Unauthenticated)?;
        let scope = SystemScope::new(SystemReason::SignIn).for_org(token.org);
        let (key, org) = self
            .store()
            .read(&scope, (token.row, self.standings().clone(), self.ambient().now()), |tx, (id, kept, now)| {
                Box::pin(async move {
                    let Some(mut key) = tx.load_api_key(*id).await? else { return Ok::<_, AppError>(None) };
                    if let Some(owner) = key.owner {
                        let standing = &known(tx, owner, kept).await?.standing;
                        let held = standing.permissions(Within::Organization, *now);
                        key.permissions = key.permissions.intersection(held);
                    }
                    Ok(Some((key, tx.require_org().await?)))
                })
            })
            .await?
            .ok_or(AppError::Unauthenticated)?;
        let refused = |refusal| {
            self.record_refused_key(org.id, key.id, refusal);
            AppError::Unauthenticated
        };
        let now = self.ambient().now();
        if !key.matches(&token.secret, now) {
            return Err(refused(KeyRefusal::Secret));
        }
        let caller = Caller::from_verified_key(org.id, key.id, key.permissions, key.expires_at, key.revoked_at, now)
            .map_err(|_| refused(if key.revoked_at.is_some() { KeyRefusal::Revoked } else { KeyRefusal::Expired }))?;
        Ok(Identity { caller, org })
    }
}
