//! Who calls: an API key becomes a [`Caller`].

use std::net::IpAddr;

use bulkhead_model::allow_list::AllowList;
use bulkhead_model::id::{ApiKeyId, OrgId};
use bulkhead_model::name::Slug;
use bulkhead_model::permission::{Caller, SystemReason, SystemScope};
use bulkhead_model::role::assignment::Within;
use bulkhead_model::signature::{Required, VerifyKey};
use bulkhead_model::token::Token;
use bulkhead_store::Tx;
use bulkhead_store::api_key::{ApiKey, SigningKey};
use bulkhead_store::org::Org;
use bulkhead_store::seal::Sealer;
use zeroize::Zeroizing;

use crate::access::known;
use crate::api_key::signing_place;
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
    /// What the key's requests are signed with; the caller is who it says only once that is checked
    /// ([`check_signature`](App::check_signature)).
    pub signing: Option<KeySigning>,
    /// Where the key may be used from ([`require_network`](App::require_network)).
    pub networks: AllowList,
}

/// How requests by a key are checked.
#[derive(Clone, Debug)]
pub struct KeySigning {
    pub(crate) key: VerifyKey,
    pub(crate) required: Required,
}

async fn load_signing(tx: &mut Tx, key: &ApiKey, sealer: &Sealer) -> Result<Option<KeySigning>, AppError> {
    let Some(signing) = &key.signing else { return Ok(None) };
    let with = match &signing.key {
        SigningKey::Ed25519(key) => VerifyKey::Ed25519(*key),
        SigningKey::HmacSha256(sealed) => {
            VerifyKey::HmacSha256(tx.open_sealed(sealer, &signing_place(tx.org()?, key.id), sealed).await?)
        }
    };
    Ok(Some(KeySigning { key: with, required: signing.required }))
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
        let now = self.ambient().now();
        let args = (token.row, Zeroizing::new(token.secret), self.standings().clone(), self.sealer().clone(), now);
        let (key, org, signing) = self
            .store()
            .read(&scope, args, |tx, (id, secret, kept, sealer, now)| {
                Box::pin(async move {
                    let Some(mut key) = tx.load_api_key(*id).await? else { return Ok::<_, AppError>(None) };
                    // Nothing is opened for somebody who has but the key's id.
                    let signing = if key.matches(secret, *now) { load_signing(tx, &key, sealer).await? } else { None };
                    if let Some(owner) = key.owner {
                        let standing = &known(tx, owner, kept).await?.standing;
                        let held = standing.permissions(Within::Organization, *now);
                        key.permissions = key.permissions.intersection(held);
                    }
                    Ok(Some((key, tx.require_org().await?, signing)))
                })
            })
            .await?
            .ok_or(AppError::Unauthenticated)?;
        let refused = |refusal| {
            self.record_refused_key(org.id, key.id, refusal);
            AppError::Unauthenticated
        };
        if !key.matches(&token.secret, now) {
            return Err(refused(KeyRefusal::Secret));
        }
        let caller = Caller::from_verified_key(org.id, key.id, key.permissions, key.expires_at, key.revoked_at, now)
            .map_err(|_| refused(if key.revoked_at.is_some() { KeyRefusal::Revoked } else { KeyRefusal::Expired }))?;
        Ok(Identity { caller, org, signing, networks: key.networks })
    }

    /// Lets a key in if it may be used from there.
    ///
    /// # Errors
    /// [`AppError::KeyAddressRefused`]; also from nobody knows where, if the key has a list.
    pub fn require_network(&self, identity: &Identity, address: Option<IpAddr>) -> Result<(), AppError> {
        if identity.networks.allows(address) {
            return Ok(());
        }
        metrics::counter!("bulkhead_addresses_refused_total").increment(1);
        if let Some(key) = identity.caller.key() {
            self.record_refused_key(identity.org.id, key, KeyRefusal::Address(address));
        }
        Err(AppError::KeyAddressRefused)
    }
}
