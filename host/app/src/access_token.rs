//! Tokens for machines: an access token that lives ten minutes, and a refresh token that changes with each use and betrays its thief.

use std::time::Duration;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::access_token::{Bearer, LIFETIME};
use bulkhead_model::id::{SessionId, TokenFamilyId, UserId};
use bulkhead_model::permission::{AccountScope, Caller};
use bulkhead_model::session::BrowserToken;
use bulkhead_model::time::Timestamp;
use bulkhead_store::Tx;
use bulkhead_store::token::TokenFamily;
use serde_json::{Value, json};

use crate::access::Credential;
use crate::account::tell_organizations;
use crate::auth::OrgRef;
use crate::sign_in::{SignedIn, require_live};
use crate::{App, AppError};

/// From the first token of a family to the end of the last.
const FAMILY_LIVES: Duration = Duration::from_hours(16);
/// A token that was used so recently may be a second copy of the same request: it is refused, and its family lives on.
const GRACE: Duration = Duration::from_secs(5);
/// Families that one session may have at once.
const FAMILIES_MAX: u32 = 20;

/// Tokens that are shown once.
pub struct Tokens {
    pub access: String,
    pub access_lives: Duration,
    pub refresh: BrowserToken,
}

/// What a token says of the person whom it stands for.
struct Said {
    user: UserId,
    session: SessionId,
    epoch: i64,
    amr: String,
    auth_at: Timestamp,
}

/// The session of a token, which machines may go on from when nobody uses it, and the person if the epoch is still theirs. What was proven is
/// what the token says: nothing that the person proves later in a browser makes more of it.
async fn bearer(tx: &mut Tx, said: Said, now: Timestamp) -> Result<Option<SignedIn>, AppError> {
    let Said { user, session, epoch, amr, auth_at } = said;
    let user = tx.load_user(user).await?.filter(|user| user.is_active && user.epoch == epoch);
    let Some(user) = user else { return Ok(None) };
    let session = tx.load_session(user.id, session).await?.filter(|found| now < found.times.expires_at);
    Ok(session.map(|mut session| {
        session.amr = amr;
        session.times.auth_at = auth_at;
        SignedIn { user, session }
    }))
}

impl App {
    /// The public key that access tokens are checked with, as a JWK Set.
    #[must_use]
    pub fn jwks(&self) -> Value {
        self.accounts().tokens.jwks()
    }

    fn access_token(&self, signed_in: &SignedIn) -> String {
        let SignedIn { user, session } = signed_in;
        let (jti, now) = (self.ambient().random(), self.ambient().now());
        let (auth_at, amr) = (session.times.auth_at, session.amr.as_str());
        let bearer = Bearer { user: user.id, session: session.id, epoch: user.epoch, auth_at, amr };
        self.accounts().tokens.issue(&bearer, &jti, now)
    }

    /// Hands out tokens that stand for the person and end with the session at the latest.
    ///
    /// # Errors
    /// [`AppError::StepUp`]; [`AppError::Conflict`] `too-many-tokens`; [`AppError::Unauthenticated`] when the session has ended meanwhile.
    pub async fn issue_tokens(&self, signed_in: &SignedIn) -> Result<Tokens, AppError> {
        let now = self.ambient().now();
        signed_in.require_fresh(now)?;
        let refresh = BrowserToken::generate(self.ambient());
        let family = TokenFamily {
            id: TokenFamilyId::new(self.ambient()),
            user: signed_in.user.id,
            session: signed_in.session.id,
            epoch: signed_in.user.epoch,
            amr: signed_in.session.amr.clone(),
            auth_at: signed_in.session.times.auth_at,
            created_at: now,
            expires_at: now.plus(FAMILY_LIVES).min(signed_in.session.times.expires_at),
        };
        self.store()
            .write(
                &AccountScope::OWN,
                (family, refresh.hash(), signed_in.clone(), self.ambient().clone()),
                |tx, (family, hash, signed_in, ambient)| {
                    Box::pin(async move {
                        require_live(tx, signed_in, ambient.now()).await?;
                        if tx.count_token_families(family.session, FAMILIES_MAX).await? >= FAMILIES_MAX as usize {
                            let message =
                                format!("this session has {FAMILIES_MAX} refresh tokens already: revoke some first");
                            return Err(AppError::conflict("too-many-tokens", message));
                        }
                        tx.insert_token_family(family).await?;
                        tx.insert_refresh_token(hash, family.id, family.created_at).await?;
                        let memberships = tx.list_memberships(family.user).await?;
                        let detail = json!({ "family": family.id, "session": family.session });
                        tell_organizations(tx, &memberships, family.user, EventType::TokenIssued, &detail, ambient)
                            .await
                    })
                },
            )
            .await?;
        Ok(Tokens { access: self.access_token(signed_in), access_lives: LIFETIME, refresh })
    }

    /// Changes a refresh token for the next one. One that was used before ends its whole family: somebody else has it.
    ///
    /// # Errors
    /// [`AppError::Unauthenticated`], whatever is wrong.
    pub async fn refresh_tokens(&self, presented: &BrowserToken) -> Result<Tokens, AppError> {
        let refresh = BrowserToken::generate(self.ambient());
        let args = (presented.hash(), refresh.hash(), self.ambient().clone());
        let refreshed = self
            .store()
            .write(&AccountScope::OWN, args, |tx, (presented, next, ambient)| {
                Box::pin(async move {
                    let now = ambient.now();
                    let Some(token) = tx.load_refresh_token(presented).await? else { return Ok(None) };
                    let family = token.family;
                    if let Some(used_at) = token.used_at {
                        if now.since(used_at) > GRACE {
                            tx.delete_token_family(family.id).await?;
                            let memberships = tx.list_memberships(family.user).await?;
                            let detail = json!({ "family": family.id, "session": family.session });
                            tell_organizations(tx, &memberships, family.user, EventType::TokenReused, &detail, ambient)
                                .await?;
                            metrics::counter!("bulkhead_refresh_tokens_reused_total").increment(1);
                        }
                        return Ok(None);
                    }
                    if now >= family.expires_at || !tx.use_refresh_token(presented, now).await? {
                        return Ok(None);
                    }
                    let (id, amr) = (family.id, family.amr);
                    let (session, epoch, auth_at) = (family.session, family.epoch, family.auth_at);
                    let said = Said { user: family.user, session, epoch, amr, auth_at };
                    let Some(signed_in) = bearer(tx, said, now).await? else { return Ok(None) };
                    tx.insert_refresh_token(next, id, now).await?;
                    Ok::<_, AppError>(Some(signed_in))
                })
            })
            .await?;
        let signed_in = refreshed.ok_or(AppError::Unauthenticated)?;
        Ok(Tokens { access: self.access_token(&signed_in), access_lives: LIFETIME, refresh })
    }

    /// Ends the family of a refresh token; one that is not known is no error (RFC 7009).
    ///
    /// # Errors
    /// The store's.
    pub async fn revoke_tokens(&self, presented: &BrowserToken) -> Result<(), AppError> {
        self.store()
            .write(&AccountScope::OWN, (presented.hash(), self.ambient().clone()), |tx, (presented, ambient)| {
                Box::pin(async move {
                    let Some(token) = tx.load_refresh_token(presented).await? else { return Ok(()) };
                    let family = token.family;
                    tx.delete_token_family(family.id).await?;
                    let memberships = tx.list_memberships(family.user).await?;
                    let detail = json!({ "family": family.id, "session": family.session });
                    tell_organizations(tx, &memberships, family.user, EventType::TokenRevoked, &detail, ambient).await
                })
            })
            .await
    }

    /// As whom an access token calls in the organization that is named.
    ///
    /// # Errors
    /// [`AppError::Unauthenticated`] for a token that is not ours, over, of a session that has ended or of an earlier epoch;
    /// [`AppError::NotFound`] for an organization that the person does not belong to; [`AppError::MfaRequired`].
    pub async fn authenticate_token(
        &self,
        text: &str,
        org: Option<OrgRef>,
    ) -> Result<(UserId, Result<Caller, AppError>), AppError> {
        let now = self.ambient().now();
        let claims = self.accounts().tokens.open(text, now).ok_or(AppError::Unauthenticated)?;
        let (signed_in, membership) = self
            .store()
            .read(&AccountScope::OWN, (claims, org, now), |tx, (claims, org, now)| {
                Box::pin(async move {
                    let said = Said {
                        user: claims.sub,
                        session: claims.sid,
                        epoch: claims.epoch,
                        amr: claims.amr.join(" "),
                        auth_at: Timestamp::from_micros(claims.auth_time.saturating_mul(1_000_000)),
                    };
                    let found = bearer(tx, said, *now).await?;
                    let signed_in = found.ok_or(AppError::Unauthenticated)?;
                    let user = signed_in.user.id;
                    let membership = match org {
                        Some(OrgRef::Id(id)) => tx.load_membership(user, *id).await?,
                        Some(OrgRef::Slug(slug)) => tx.load_membership_by_slug(user, slug).await?,
                        None => None,
                    };
                    Ok::<_, AppError>((signed_in, membership))
                })
            })
            .await?;
        let caller = match membership.filter(|membership| membership.is_active) {
            Some(membership) => self.session_caller(membership.org, &signed_in, Credential::Token).await,
            None => Err(AppError::NotFound { what: "organization" }),
        };
        Ok((signed_in.user.id, caller))
    }
}
