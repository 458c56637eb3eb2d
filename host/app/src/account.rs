//! People: the first of them, their passwords, and the operator's way in for those who are locked out. Signing in is
//! [`sign_in`](crate::sign_in)'s.

mod attempts;
mod breached;
mod email;
mod hashing;
mod revoke;
mod set_up;

use std::sync::Arc;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::access_token::TokenKey;
use bulkhead_model::account::{Email, is_person_name};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{LinkId, OrgId, SessionId, UserId};
use bulkhead_model::letter::{Letter, Notice};
use bulkhead_model::link::{LinkKey, Purpose};
use bulkhead_model::passkey::RelyingParty;
use bulkhead_model::password::{LEN_MIN_ALONE, Password, StoredPassword, Weak, check};
use bulkhead_model::permission::{AccountScope, Actor, SystemReason, SystemScope};
use bulkhead_model::role::BuiltIn;
use bulkhead_model::role::assignment::Window;
use bulkhead_model::session::BrowserToken;
use bulkhead_store::Tx;
use bulkhead_store::account::User;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::link::Link;
use bulkhead_store::member::Membership;
use bulkhead_store::seal::RootKey;
use serde_json::{Value, json};
use webauthn_rs::Webauthn;

pub(crate) use self::attempts::{Attempt, Source, too_many};
pub use self::breached::{BreachedFileError, BreachedPasswords};
pub use self::hashing::HashingLimits;
pub(crate) use self::hashing::{Hasher, Verdict};
pub use self::set_up::SetUp;
use crate::assignment::join_as;
use crate::mail::Post;
use crate::member::state_of;
use crate::sign_in::{Client, NewDevice};
use crate::{App, AppError};

/// The role of those who administer an organization, as it is stored.
pub const ROLE_ADMIN: &str = BuiltIn::Admin.as_str();

/// A role that a member can have, by its name.
///
/// # Errors
/// [`AppError::Invalid`] `invalid-role`.
pub(crate) fn read_role(name: &str) -> Result<BuiltIn, AppError> {
    let of_organization = || BuiltIn::ALL.into_iter().filter(|role| role.is_of_organization());
    of_organization().find(|role| role.as_str() == name).ok_or_else(|| {
        let names: Vec<&str> = of_organization().map(BuiltIn::as_str).collect();
        AppError::invalid("invalid-role", "/role", format!("there is no role {name}; there are {}", names.join(", ")))
    })
}

/// What the application needs to know of how people prove who they are.
#[derive(Clone)]
pub struct AccountParts {
    pepper: [u8; 32],
    link_key: [u8; 32],
    counter_key: [u8; 32],
    token_seed: [u8; 32],
    hashing: HashingLimits,
    /// How people reach this server, without a trailing slash. Links begin with it and with nothing that a request says.
    public_url: String,
    post: Option<Arc<dyn Post>>,
    /// What passkeys are made for; none where there can be none.
    party: Option<RelyingParty>,
    breached: Option<BreachedPasswords>,
}

impl AccountParts {
    #[must_use]
    pub fn new(root: &RootKey, hashing: HashingLimits, public_url: String) -> Self {
        let party = RelyingParty::configured(&public_url, None, &[]).unwrap_or_default();
        Self {
            pepper: root.derive("password pepper v1"),
            link_key: root.derive("links v1"),
            counter_key: root.derive("failure counters v1"),
            token_seed: root.derive("access tokens v1"),
            hashing,
            public_url,
            post: None,
            party,
            breached: None,
        }
    }

    /// With a file of breached passwords, which nobody may choose.
    #[must_use]
    pub fn with_breached_passwords(self, breached: Option<BreachedPasswords>) -> Self {
        Self { breached, ..self }
    }

    /// With passkeys for another site than the public address's.
    #[must_use]
    pub fn with_passkeys(self, party: Option<RelyingParty>) -> Self {
        Self { party, ..self }
    }

    /// With a relay that letters are handed to.
    #[must_use]
    pub fn with_post(self, post: Option<Arc<dyn Post>>) -> Self {
        Self { post, ..self }
    }
}

/// … as the application holds it.
pub(crate) struct Accounts {
    pub(crate) hasher: Hasher,
    pub(crate) links: LinkKey,
    pub(crate) counter_key: [u8; 32],
    pub(crate) tokens: TokenKey,
    pub(crate) public_url: String,
    /// None: this server sends no mail.
    pub(crate) post: Option<Arc<dyn Post>>,
    /// None: this server is reached under no name that passkeys can be made for.
    pub(crate) passkeys: Option<Webauthn>,
    breached: Option<BreachedPasswords>,
}

impl Accounts {
    pub(crate) fn new(parts: AccountParts) -> Self {
        let AccountParts { pepper, link_key, counter_key, token_seed, hashing, public_url, post, party, breached } =
            parts;
        let tokens = TokenKey::new(&token_seed, &public_url);
        let (hasher, links) = (Hasher::new(hashing, pepper), LinkKey::new(link_key));
        let passkeys = party.as_ref().map(crate::passkey::site);
        Self { hasher, links, counter_key, tokens, public_url, post, passkeys, breached }
    }
}

/// A person that the operator makes.
#[derive(Clone, Debug)]
pub struct NewUser {
    pub email: String,
    pub name: String,
    pub is_super_admin: bool,
    /// An organization to belong to, and as what.
    pub member_of: Option<(OrgId, String)>,
}

pub(crate) fn read_email(text: &str) -> Result<Email, AppError> {
    text.parse().map_err(|error| AppError::invalid("invalid-email", "/email", format!("{error}")))
}

pub(crate) fn read_name(name: &str) -> Result<String, AppError> {
    if is_person_name(name) {
        return Ok(name.to_owned());
    }
    Err(AppError::invalid("invalid-name", "/name", "a name has 1 to 100 characters on one line"))
}

pub(crate) fn invalid_link() -> AppError {
    AppError::invalid("invalid-link", "/token", "the link is not valid, was used before, or its time is over")
}

/// A person's own act, told in each organization that they work in.
pub(crate) async fn tell_organizations(
    tx: &mut Tx,
    memberships: &[Membership],
    user: UserId,
    action: EventType,
    detail: &Value,
    ambient: &Ambient,
) -> Result<(), AppError> {
    tell_of(tx, memberships, (user, &Actor::User(user)), action, detail, ambient).await
}

/// What somebody did about a person, told in each organization that the person works in.
pub(crate) async fn tell_of(
    tx: &mut Tx,
    memberships: &[Membership],
    (user, actor): (UserId, &Actor),
    action: EventType,
    detail: &Value,
    ambient: &Ambient,
) -> Result<(), AppError> {
    for membership in memberships.iter().filter(|membership| membership.is_active) {
        tx.enter_org(membership.org).await?;
        let event = AuditEvent { action, target: user.to_string(), actor: actor.clone(), detail: detail.clone() };
        tx.record_audit(&event, ambient).await?;
    }
    Ok(())
}

impl App {
    /// A password that a person may have.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `invalid-password`, with the reason.
    pub(crate) async fn read_new_password(
        &self,
        text: &str,
        path: &str,
        email: &Email,
        name: &str,
    ) -> Result<Password, AppError> {
        let weak = |weak: Weak| AppError::Invalid {
            code: "invalid-password",
            message: weak.to_string(),
            problems: vec![crate::Problem::new(path, weak.code(), weak.to_string())],
        };
        let password = Password::new(text).ok_or_else(|| weak(Weak::TooLong))?;
        check(&password, LEN_MIN_ALONE, email, name).map_err(weak)?;
        if let Some(breached) = &self.accounts().breached
            && breached.contains(&password).await
        {
            return Err(weak(Weak::Breached));
        }
        Ok(password)
    }

    pub(crate) fn new_user(&self, email: Email, name: String, password: Option<StoredPassword>) -> User {
        let now = self.ambient().now();
        User {
            id: UserId::new(self.ambient()),
            email,
            name,
            password_changed_at: password.as_ref().map(|_| now),
            password,
            email_verified_at: None,
            is_active: true,
            is_super_admin: false,
            epoch: 0,
            created_at: now,
            updated_at: now,
        }
    }

    pub(crate) fn new_link(&self, purpose: Purpose, user: Option<&User>, email: Option<Email>) -> Link {
        let now = self.ambient().now();
        Link {
            id: LinkId::new(self.ambient()),
            purpose,
            user: user.map(|user| user.id),
            email,
            epoch: user.map(|user| user.epoch),
            created_at: now,
            expires_at: now.plus(purpose.lives_for()),
            used_at: None,
        }
    }

    /// The text of a link's token.
    pub(crate) fn link_token(&self, link: &Link) -> String {
        self.accounts().links.reveal(link.purpose, &[&link.id.uuid()])
    }

    /// The link that a token's text names, unless it was not made here.
    pub(crate) fn open_link(&self, purpose: Purpose, token: &str) -> Result<LinkId, AppError> {
        let [id] = self.accounts().links.open::<1>(purpose, token).ok_or_else(invalid_link)?;
        Ok(LinkId::from_uuid(id))
    }

    /// Makes a person who can choose a password with the token that is answered. For the operator only: no route leads here.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `invalid-email`, `invalid-name`, `invalid-role`; [`AppError::Conflict`] `user-exists`.
    pub async fn create_user_as_operator(&self, new: NewUser) -> Result<(UserId, String), AppError> {
        let mut user = self.new_user(read_email(&new.email)?, read_name(&new.name)?, None);
        user.is_super_admin = new.is_super_admin;
        if let Some((_, role)) = &new.member_of {
            read_role(role)?;
        }
        let link = self.new_link(Purpose::ChoosePassword, Some(&user), None);
        let (id, token) = (user.id, self.link_token(&link));
        let args = (user, new.member_of, link, self.ambient().clone());
        self.store()
            .write(&SystemScope::new(SystemReason::Admin), args, |tx, (user, member_of, link, ambient)| {
                Box::pin(async move {
                    if tx.load_user_by_email(&user.email).await?.is_some() {
                        return Err(AppError::conflict("user-exists", "somebody has this address already"));
                    }
                    tx.insert_user(user).await?;
                    tx.insert_link(link).await?;
                    if let Some((org, role)) = member_of {
                        tx.enter_org(*org).await?;
                        tx.insert_member(user.id, role, user.created_at).await?;
                        let admin = Actor::System(SystemReason::Admin);
                        join_as(tx, user.id, read_role(role)?, Window::ALWAYS, &admin, ambient).await?;
                        let event = AuditEvent {
                            action: EventType::UserJoined,
                            target: user.id.to_string(),
                            actor: Actor::System(SystemReason::Admin),
                            detail: json!({ "role": role }),
                        };
                        tx.record_audit(&event, ambient).await?;
                    }
                    Ok(())
                })
            })
            .await?;
        Ok((id, token))
    }

    /// Lets a person who is locked out choose another password with the token that is answered: earlier links and every session end, and
    /// failures are forgotten. For the operator only: no route leads here.
    ///
    /// # Errors
    /// [`AppError::NotFound`]; [`AppError::Invalid`] `invalid-email`.
    pub async fn unlock_user_as_operator(&self, email: &str) -> Result<String, AppError> {
        let email = read_email(email)?;
        let link = self.new_link(Purpose::ChoosePassword, None, None);
        let token = self.link_token(&link);
        let counters = self.counters_of_identifier(email.as_str());
        let args = (email, link, counters, self.ambient().clone());
        self.store()
            .write(&AccountScope::OWN, args, |tx, (email, link, counters, ambient)| {
                Box::pin(async move {
                    let now = ambient.now();
                    let user = tx
                        .load_user_by_email(email)
                        .await?
                        .ok_or(AppError::NotFound { what: "person with this address" })?;
                    tx.void_links(user.id, Purpose::ChoosePassword, now).await?;
                    let memberships = end_everything(tx, user.id, None, ambient).await?;
                    let epoch = tx.load_user(user.id).await?.map(|user| user.epoch);
                    tx.insert_link(&Link { user: Some(user.id), epoch, ..link.clone() }).await?;
                    for key in counters {
                        tx.lock_failures(key).await?;
                        tx.save_failures(key, bulkhead_model::throttle::Failures::NONE).await?;
                    }
                    for membership in memberships {
                        tx.enter_org(membership.org).await?;
                        let event = AuditEvent {
                            action: EventType::PasswordResetRequested,
                            target: user.id.to_string(),
                            actor: Actor::System(SystemReason::Admin),
                            detail: json!({}),
                        };
                        tx.record_audit(&event, ambient).await?;
                    }
                    Ok::<_, AppError>(())
                })
            })
            .await?;
        Ok(token)
    }

    /// Disables a person everywhere, or enables them again. Disabling ends everything that they were given before. For the operator only.
    ///
    /// # Errors
    /// [`AppError::NotFound`]; [`AppError::Invalid`] `invalid-email`; [`AppError::Conflict`] `last-admin` for the platform's last
    /// administrator.
    pub async fn set_user_state_as_operator(&self, email: &str, is_active: bool) -> Result<(), AppError> {
        let args = (read_email(email)?, is_active, self.ambient().clone());
        self.store()
            .write(&AccountScope::OWN, args, |tx, (email, is_active, ambient)| {
                Box::pin(async move {
                    let user = tx
                        .load_user_by_email(email)
                        .await?
                        .ok_or(AppError::NotFound { what: "person with this address" })?;
                    if !is_active && user.is_active && user.is_super_admin && tx.count_super_admins().await? < 2 {
                        let message = "this is the platform's last administrator: make another one first";
                        return Err(AppError::conflict("last-admin", message));
                    }
                    if !tx.update_user_state(user.id, *is_active, ambient.now()).await? {
                        return Ok(());
                    }
                    let memberships = if *is_active {
                        tx.list_memberships(user.id).await?
                    } else {
                        end_everything(tx, user.id, None, ambient).await?
                    };
                    for membership in memberships {
                        tx.enter_org(membership.org).await?;
                        // What was worked out of their rights is worth nothing from here on, on every node.
                        tx.begin_policy_epoch(ambient.now()).await?;
                        tx.update_member_user_state(user.id, *is_active).await?;
                        let event = AuditEvent {
                            action: if *is_active { EventType::UserEnabled } else { EventType::UserDisabled },
                            target: user.id.to_string(),
                            actor: Actor::System(SystemReason::Admin),
                            detail: json!({
                                "everywhere": true,
                                "state": { "before": state_of(user.is_active), "after": state_of(*is_active) },
                            }),
                        };
                        tx.record_audit(&event, ambient).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// Chooses a password by a link. Every session of the person ends, and so does every other link. Answers what the browser is known by from
    /// now on: whoever has the link proved more than a name, and what strangers try does not keep them out.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `invalid-link`, `invalid-password`; [`AppError::Busy`].
    pub async fn choose_password(
        &self,
        token: &str,
        password: &str,
        client: &Client,
    ) -> Result<BrowserToken, AppError> {
        let id = self.open_link(Purpose::ChoosePassword, token)?;
        let user = self
            .store()
            .read(&AccountScope::OWN, (id, self.ambient().now()), |tx, (id, now)| {
                Box::pin(async move {
                    let link = tx.load_usable_link(*id, Purpose::ChoosePassword, *now).await?;
                    let Some((link, user)) = link.and_then(|link| link.user.map(|user| (link, user))) else {
                        return Ok::<_, AppError>(None);
                    };
                    Ok(tx.load_user(user).await?.filter(|user| user.is_active && link.epoch == Some(user.epoch)))
                })
            })
            .await?
            .ok_or_else(invalid_link)?;
        let password = self.read_new_password(password, "/password", &user.email, &user.name).await?;
        let stored = self.accounts().hasher.hash(password, self.ambient()).await?;
        let fresh = NewDevice::generate(self.ambient());
        self.store()
            .write(
                &AccountScope::OWN,
                (id, stored, (fresh.clone(), client.clone()), self.sends_mail(), self.ambient().clone()),
                |tx, (id, stored, (fresh, client), sends_mail, ambient)| {
                    Box::pin(async move {
                        let now = ambient.now();
                        let link = tx.use_link(*id, Purpose::ChoosePassword, now).await?.ok_or_else(invalid_link)?;
                        let user = link.user.ok_or_else(invalid_link)?;
                        let is_theirs = |user: &User| user.is_active && link.epoch == Some(user.epoch);
                        let user = tx.load_user(user).await?.filter(is_theirs).ok_or_else(invalid_link)?;
                        tx.update_user_password(user.id, stored, now).await?;
                        tx.set_password_by_mail(user.id, link.email.is_some()).await?;
                        let memberships = end_everything(tx, user.id, None, ambient).await?;
                        tx.insert_device(&fresh.row(user.id, client.agent(), now)).await?;
                        // It came by mail to this very address.
                        if let Some(email) = &link.email {
                            tx.verify_user_email(user.id, email, now).await?;
                        }
                        if *sends_mail {
                            tell_person(tx, &user, Notice::PasswordChanged, ambient).await?;
                        }
                        tell_organizations(tx, &memberships, user.id, EventType::PasswordReset, &json!({}), ambient)
                            .await
                    })
                },
            )
            .await?;
        Ok(fresh.into_token())
    }
}

/// Puts down a letter that tells a person of something about their account.
pub(crate) async fn tell_person(tx: &mut Tx, to: &User, notice: Notice, ambient: &Ambient) -> Result<(), AppError> {
    let letter = Letter::Notice { notice, at: ambient.now().to_string(), user: Some(to.id) };
    tx.enqueue_mail(&to.email, &letter, ambient).await?;
    Ok(())
}

/// Ends what a person was given before, wherever they work: sessions with their tokens, keys, set-ups of second factors, and whatever looks
/// at the epoch, as links and letters on their way do. No browser of theirs is known any more.
pub(crate) async fn end_everything(
    tx: &mut Tx,
    user: UserId,
    keep: Option<SessionId>,
    ambient: &Ambient,
) -> Result<Vec<Membership>, AppError> {
    let now = ambient.now();
    tx.delete_sessions(user, keep).await?;
    tx.delete_totp_set_up(user, keep).await?;
    tx.delete_ceremonies(user).await?;
    tx.forget_devices(user, 0).await?;
    tx.raise_user_epoch(user, now).await?;
    let memberships = tx.list_memberships(user).await?;
    for membership in &memberships {
        tx.enter_org(membership.org).await?;
        end_keys(tx, user, ambient).await?;
    }
    Ok(memberships)
}

/// Ends what a member was given in the transaction's organization: keys, and the sessions that have it (or none) in front, with their tokens.
/// What they have elsewhere is none of its business.
pub(crate) async fn end_here(tx: &mut Tx, user: UserId, ambient: &Ambient) -> Result<(), AppError> {
    tx.delete_sessions_here(user, None).await?;
    end_keys(tx, user, ambient).await
}

/// Ends a person's keys in the transaction's organization.
pub(crate) async fn end_keys(tx: &mut Tx, user: UserId, ambient: &Ambient) -> Result<(), AppError> {
    // Whoever makes a key at this moment is either before this, or sees it.
    tx.begin_policy_epoch(ambient.now()).await?;
    let keys = tx.revoke_keys_of(user, ambient.now()).await?;
    if !keys.is_empty() {
        let event = AuditEvent {
            action: EventType::ApiKeyRevoked,
            target: user.to_string(),
            actor: Actor::System(SystemReason::Accounts),
            detail: json!({ "count": keys.len(), "owner": user, "keys": keys }),
        };
        tx.record_audit(&event, ambient).await?;
    }
    Ok(())
}
