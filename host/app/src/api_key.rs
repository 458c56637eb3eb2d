//! API keys: made, listed, revoked. The secret is shown once.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::allow_list::AllowList;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{ApiKeyId, OrgId};
use bulkhead_model::permission::{
    AccountScope, Actor, Caller, OrgScope, Permission, PermissionSet, SessionProof, SystemReason, SystemScope,
};
use bulkhead_model::role::assignment::{Hold, Within};
use bulkhead_model::signature::{PublicKey, Required};
use bulkhead_model::time::Timestamp;
use bulkhead_model::token::{SecretHash, Token};
use bulkhead_store::api_key::{ApiKey, Signing, SigningKey};
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::page::{Page, PageRequest};
use bulkhead_store::seal::{Place, Sealer};
use bulkhead_store::{StoreError, Tx};
use serde_json::json;
use zeroize::Zeroizing;

use crate::access::Rights;
use crate::sign_in::require_proof;
use crate::{App, AppError};

/// Keys end by default after this many days.
pub const EXPIRY_DAYS_DEFAULT: u32 = 90;
/// … and may live at most so long.
pub const EXPIRY_DAYS_MAX: u32 = 366;
const NAME_LEN_MAX: usize = 100;
/// A secret that was replaced is good for so long by default …
pub const SECRET_GRACE_DEFAULT: Duration = Duration::from_hours(24);
/// … and at most.
pub const SECRET_GRACE_MAX: Duration = Duration::from_hours(7 * 24);
/// Keys of an organization that are valid at once: enough for each of its machines, and few enough to look through.
pub const KEYS_MAX: u32 = 1_000;

/// What a new key is to be.
#[derive(Clone, Debug)]
pub struct NewApiKey {
    pub name: String,
    pub permissions: PermissionSet,
    /// Days until it ends; `None` is the default.
    pub expires_in_days: Option<u32>,
    /// How requests by it are signed, if they are.
    pub signing: Option<NewSigning>,
    /// The networks that it may be used from; none for those of its maker.
    pub networks: Vec<String>,
}

impl NewApiKey {
    /// One whose requests are not signed.
    #[must_use]
    pub fn new(name: impl Into<String>, permissions: PermissionSet, expires_in_days: Option<u32>) -> Self {
        Self { name: name.into(), permissions, expires_in_days, signing: None, networks: Vec::new() }
    }
}

/// How requests by a new key are to be signed.
#[derive(Clone, Debug)]
pub struct NewSigning {
    pub key: NewSigningKey,
    pub required: Required,
}

#[derive(Clone, Debug)]
pub enum NewSigningKey {
    /// The public key, as people have it.
    Ed25519(String),
    /// The shared secret is made here, and shown once.
    HmacSha256,
}

/// Whoever makes a credential, and by what they are known.
struct Maker {
    actor: Actor,
    /// The session of a person.
    proof: Option<SessionProof>,
    ambient: Ambient,
}

impl Maker {
    fn new(scope: &OrgScope, proof: Option<SessionProof>, ambient: &Ambient) -> Self {
        Self { actor: scope.actor().clone(), proof, ambient: ambient.clone() }
    }

    /// What they hold, by what the rows say in the transaction that stores the credential: the request that asks for it may be as old as
    /// its body was slow. Whoever takes something away at this moment is either before this, or sees the credential.
    async fn rights(&self, tx: &mut Tx) -> Result<(Rights, Timestamp), AppError> {
        tx.begin_policy_epoch(self.ambient.now()).await?;
        let now = self.ambient.now();
        if let (Actor::User(user), Some(proof)) = (&self.actor, self.proof) {
            require_proof(tx, *user, proof, now).await?;
        }
        let rights = Rights::load(tx, &self.actor, now).await?;
        rights.require(Permission::ApiKeysWrite, Within::Organization)?;
        Ok((rights, now))
    }
}

/// What a new key's requests will be checked with, before it is sealed.
enum CheckedWith {
    Ed25519(PublicKey),
    HmacSha256(Zeroizing<[u8; 32]>),
}

/// A key in the making.
struct Making {
    new: NewApiKey,
    id: ApiKeyId,
    secret_hash: SecretHash,
    signing: Option<(CheckedWith, Required)>,
    networks: AllowList,
    maker: Maker,
    sealer: Sealer,
}

pub(crate) fn signing_place(org: OrgId, id: ApiKeyId) -> Place<'static> {
    Place { table: "api_key", column: "signing_secret", org, row: id.uuid() }
}

impl Making {
    async fn signing(&self, tx: &mut Tx) -> Result<Option<Signing>, AppError> {
        let Some((with, required)) = &self.signing else { return Ok(None) };
        let key = match with {
            CheckedWith::Ed25519(key) => SigningKey::Ed25519(*key),
            CheckedWith::HmacSha256(secret) => {
                let place = signing_place(tx.org()?, self.id);
                SigningKey::HmacSha256(tx.seal(&self.sealer, &place, secret.as_slice()).await?)
            }
        };
        Ok(Some(Signing { key, required: *required }))
    }
}

async fn make_key(tx: &mut Tx, making: &Making) -> Result<ApiKey, AppError> {
    let Making { new, maker, .. } = making;
    let (rights, now) = maker.rights(tx).await?;
    let end = match rights.hold(new.permissions, Within::Organization) {
        Hold::Lacks(_) => {
            let message = "a key cannot hold a permission that its maker does not hold";
            return Err(AppError::invalid("invalid-permissions", "/permissions", message));
        }
        Hold::Until(end) => Some(end),
        Hold::Forever => None,
    };
    if tx.count_valid_api_keys(now, KEYS_MAX).await? >= KEYS_MAX as usize {
        let message = format!("the organization has {KEYS_MAX} valid API keys: revoke some that nobody uses");
        return Err(AppError::conflict("too-many-keys", message));
    }
    let days = new.expires_in_days.unwrap_or(EXPIRY_DAYS_DEFAULT);
    let wanted = now.plus(Duration::from_secs(u64::from(days) * 86_400));
    // Otherwise whoever got hold of a key for an hour could keep what it may do for a year.
    let expires_at = end.map_or(wanted, |end| wanted.min(end));
    if new.expires_in_days.is_some() && expires_at < wanted {
        let message = "a key cannot outlive what its maker holds: ask for fewer days, or leave them out";
        return Err(AppError::invalid("invalid-expiry", "/expires_in_days", message));
    }
    // Otherwise a key that is good in one place only could make itself one that is good everywhere.
    let networks = match rights.networks() {
        Some(own) if making.networks.is_empty() => own.clone(),
        Some(own) if !own.covers(&making.networks) => {
            let message = "a key cannot be used from where the key that makes it cannot";
            return Err(AppError::invalid("invalid-networks", "/networks", message));
        }
        Some(_) | None => making.networks.clone(),
    };
    // A key that a key makes is its maker's owner's.
    let (owner, made_by) = rights.maker();
    let key = ApiKey {
        id: making.id,
        name: new.name.clone(),
        secret_hash: making.secret_hash,
        permissions: new.permissions,
        created_at: now,
        expires_at: Some(expires_at),
        revoked_at: None,
        owner,
        made_by,
        previous: None,
        signing: making.signing(tx).await?,
        networks,
        last_used_at: None,
    };
    tx.insert_api_key(&key).await?;
    let event = AuditEvent {
        action: EventType::ApiKeyCreated,
        target: key.id.to_string(),
        actor: maker.actor.clone(),
        detail: json!({
            "name": key.name,
            "permissions": key.permissions.iter().collect::<Vec<_>>(),
            "expires_at": key.expires_at,
            "made_by": key.made_by,
            "networks": key.networks.entries(),
            "signing": key.signing.as_ref().map(|signing| json!({
                "algorithm": signing.key.algorithm().as_str(),
                "required": signing.required.as_str(),
            })),
        }),
    };
    tx.record_audit(&event, &maker.ambient).await?;
    Ok(key)
}

/// Revokes a key and all that came of it, in the transaction that decided so. `action` is what is told of the key itself.
async fn revoke_family(
    tx: &mut Tx,
    id: ApiKeyId,
    action: EventType,
    actor: &Actor,
    ambient: &Ambient,
) -> Result<(), AppError> {
    for revoked in tx.revoke_api_key(id, ambient.now()).await? {
        // What cannot be read keeps no key alive.
        let before = match tx.load_api_key(revoked).await {
            Ok(key) => key.map(|key| {
                json!({
                    "name": key.name,
                    "permissions": key.permissions.iter().collect::<Vec<_>>(),
                    "expires_at": key.expires_at,
                })
            }),
            Err(StoreError::Corrupt { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let mut detail = json!({ "before": before });
        if revoked != id {
            detail["with"] = json!(id);
        }
        let action = if revoked == id { action } else { EventType::ApiKeyRevoked };
        let event = AuditEvent { action, target: revoked.to_string(), actor: actor.clone(), detail };
        tx.record_audit(&event, ambient).await?;
    }
    Ok(())
}

/// Whether this is a secret of the key's, and the key is not revoked.
fn is_good(key: &ApiKey, secret: &[u8; 32], now: Timestamp) -> bool {
    key.revoked_at.is_none() && key.matches(secret, now)
}

/// A secret in the making, for a key that is there.
struct Replacing {
    id: ApiKeyId,
    secret_hash: SecretHash,
    grace: Duration,
    maker: Maker,
}

/// Whoever is given a key's secret holds what the key holds: so it takes the same as to make such a key, and a person's key takes the person.
async fn replace_secret(tx: &mut Tx, replacing: &Replacing) -> Result<ApiKey, AppError> {
    let Replacing { id, maker, .. } = replacing;
    let (rights, now) = maker.rights(tx).await?;
    let is_valid = |key: &ApiKey| key.revoked_at.is_none() && key.expires_at.is_none_or(|end| now < end);
    let key = tx.load_api_key(*id).await?.filter(is_valid).ok_or(AppError::NotFound { what: "API key" })?;
    if key.owner.is_some() && key.owner != rights.maker().0 {
        return Err(AppError::conflict("not-own-key", "a person's key is that person's to renew: revoke it instead"));
    }
    let holds = match rights.hold(key.permissions, Within::Organization) {
        Hold::Lacks(_) => false,
        Hold::Until(end) => key.expires_at.is_some_and(|key_end| key_end <= end),
        Hold::Forever => true,
    };
    let holds = holds && rights.networks().is_none_or(|own| own.covers(&key.networks));
    if !holds {
        let message = "the key holds more than you do, or for longer: make another one, or revoke it";
        return Err(AppError::conflict("not-own-key", message));
    }
    let until = now.plus(replacing.grace);
    tx.replace_api_key_secret(*id, &replacing.secret_hash, until).await?;
    let event = AuditEvent {
        action: EventType::ApiKeyRotated,
        target: id.to_string(),
        actor: maker.actor.clone(),
        detail: json!({ "previous_until": until }),
    };
    tx.record_audit(&event, &maker.ambient).await?;
    Ok(ApiKey { secret_hash: replacing.secret_hash, previous: Some((key.secret_hash, until)), ..key })
}

/// A key that was just made, with the text that is shown once.
pub struct CreatedApiKey {
    pub key: ApiKey,
    pub secret_text: String,
    /// The shared secret of its signatures, as base64, where it has one.
    pub signing_secret: Option<Zeroizing<String>>,
}

impl App {
    /// Makes a key with at most the caller's own permissions, which ends no later than the caller's own. Without an expiry it
    /// ends after 90 days or with the caller's own, whichever is first.
    ///
    /// # Errors
    /// [`AppError::Invalid`] when it asks for more than the caller holds, for nothing, or for too long a life; [`AppError::Conflict`]
    /// `too-many-keys`; [`AppError::Unauthenticated`] when what the caller came with has ended since.
    pub async fn create_api_key(&self, caller: &Caller, org: OrgId, new: NewApiKey) -> Result<CreatedApiKey, AppError> {
        let scope = caller.authorize(org, Permission::ApiKeysWrite)?;
        if !new.permissions.is_subset_of(caller.permissions()) {
            return Err(AppError::invalid(
                "invalid-permissions",
                "/permissions",
                "a key cannot hold a permission that its maker does not hold",
            ));
        }
        self.insert_api_key(&scope, caller.proof(), new).await
    }

    /// Makes an organization's first key, with every permission. For the operator only.
    ///
    /// # Errors
    /// As [`create_api_key`](Self::create_api_key).
    pub async fn create_first_api_key(&self, org: OrgId, new: NewApiKey) -> Result<CreatedApiKey, AppError> {
        self.insert_api_key(&SystemScope::new(SystemReason::Admin).for_org(org), None, new).await
    }

    async fn insert_api_key(
        &self,
        scope: &OrgScope,
        proof: Option<SessionProof>,
        new: NewApiKey,
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
        if !(1..=EXPIRY_DAYS_MAX).contains(&new.expires_in_days.unwrap_or(EXPIRY_DAYS_DEFAULT)) {
            let message = format!("a key lives 1 to {EXPIRY_DAYS_MAX} days");
            return Err(AppError::invalid("invalid-expiry", "/expires_in_days", message));
        }
        let ambient = self.ambient();
        let signing = match &new.signing {
            Some(NewSigning { key: NewSigningKey::Ed25519(text), required }) => {
                let key = PublicKey::parse(text).map_err(|error| {
                    AppError::invalid("invalid-signing-key", "/signing/public_key", error.to_string())
                })?;
                Some((CheckedWith::Ed25519(key), *required))
            }
            Some(NewSigning { key: NewSigningKey::HmacSha256, required }) => {
                Some((CheckedWith::HmacSha256(Zeroizing::new(ambient.random())), *required))
            }
            None => None,
        };
        let signing_secret = match &signing {
            Some((CheckedWith::HmacSha256(secret), _)) => Some(Zeroizing::new(STANDARD.encode(secret.as_slice()))),
            Some((CheckedWith::Ed25519(_), _)) | None => None,
        };
        let networks = AllowList::read(&new.networks)
            .map_err(|wrong| AppError::invalid("invalid-networks", format!("/networks/{}", wrong.at), wrong.why))?;
        let token = Token::<ApiKeyId>::generate(scope.org(), ApiKeyId::new(ambient), ambient);
        let making = Making {
            new,
            id: token.row,
            secret_hash: SecretHash::of(&token.secret),
            signing,
            networks,
            maker: Maker::new(scope, proof, ambient),
            sealer: self.sealer().clone(),
        };
        let people = AccountScope::within(scope);
        let made = self.store().write(&people, making, |tx, making| Box::pin(make_key(tx, making)));
        let key = made.await?;
        Ok(CreatedApiKey { key, secret_text: token.reveal(), signing_secret })
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

    /// Gives a key another secret. The one before is good for `grace` more, at most [`SECRET_GRACE_MAX`], so that whoever uses the key has
    /// time to take the new one; its end stays.
    ///
    /// # Errors
    /// [`AppError::NotFound`] also for one that is not valid any more; [`AppError::Conflict`] `not-own-key` for somebody else's, or one that
    /// holds more than the caller; [`AppError::Invalid`] `invalid-grace`.
    pub async fn rotate_api_key(
        &self,
        caller: &Caller,
        org: OrgId,
        id: ApiKeyId,
        grace: Duration,
    ) -> Result<CreatedApiKey, AppError> {
        let scope = caller.authorize(org, Permission::ApiKeysWrite)?;
        if grace > SECRET_GRACE_MAX {
            let message = format!("an old secret lives on for at most {} seconds", SECRET_GRACE_MAX.as_secs());
            return Err(AppError::invalid("invalid-grace", "/grace_s", message));
        }
        let token = Token::<ApiKeyId>::generate(org, id, self.ambient());
        let replacing = Replacing {
            id,
            secret_hash: SecretHash::of(&token.secret),
            grace,
            maker: Maker::new(&scope, caller.proof(), self.ambient()),
        };
        let people = AccountScope::within(&scope);
        let replaced = self.store().write(&people, replacing, |tx, replacing| Box::pin(replace_secret(tx, replacing)));
        let key = replaced.await?;
        Ok(CreatedApiKey { key, secret_text: token.reveal(), signing_secret: None })
    }

    /// Revokes a key that somebody found where it does not belong, with all that came of it: whoever can say it may end it. What is no key, or
    /// none that is valid, is no error, and nothing is told about it.
    ///
    /// # Errors
    /// The store's.
    pub async fn report_leaked_key(&self, presented: &str) -> Result<(), AppError> {
        let Some(token) = Token::<ApiKeyId>::parse(presented) else { return Ok(()) };
        let scope = SystemScope::new(SystemReason::SignIn).for_org(token.org);
        let args = (token.row, Zeroizing::new(token.secret), self.ambient().clone());
        // Looked at first: what anybody may send must not keep the writer busy.
        let found = self.store().read(&scope, args.clone(), |tx, (id, secret, ambient)| {
            Box::pin(async move {
                let key = tx.load_api_key(*id).await?;
                Ok::<_, AppError>(key.is_some_and(|key| is_good(&key, secret, ambient.now())))
            })
        });
        if !found.await? {
            return Ok(());
        }
        self.store()
            .write(&scope, args, |tx, (id, secret, ambient)| {
                Box::pin(async move {
                    tx.begin_policy_epoch(ambient.now()).await?;
                    let now = ambient.now();
                    let key = tx.load_api_key(*id).await?.filter(|key| is_good(key, secret, now));
                    if key.is_none() {
                        return Ok(());
                    }
                    let actor = Actor::System(SystemReason::SignIn);
                    revoke_family(tx, *id, EventType::ApiKeyLeaked, &actor, ambient).await
                })
            })
            .await
    }

    /// Revokes a key and all that came of it, those that it made and those that they made; a second time is no error. The caller's own key is refused, since that locks him out in mid-work.
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
        self.store()
            .write(scope, (id, scope.actor().clone(), self.ambient().clone()), |tx, (id, actor, ambient)| {
                Box::pin(async move {
                    // Whoever makes a key with this one at this moment is either before this, or sees it.
                    tx.begin_policy_epoch(ambient.now()).await?;
                    if tx.load_api_key(*id).await?.is_none() {
                        return Err(AppError::NotFound { what: "API key" });
                    }
                    revoke_family(tx, *id, EventType::ApiKeyRevoked, actor, ambient).await
                })
            })
            .await
    }
}
