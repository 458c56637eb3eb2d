//! Members of an organization, and invitations into it.

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{InvitationId, OrgId, SessionId, UserId};
use bulkhead_model::letter::Letter;
use bulkhead_model::link::Purpose;
use bulkhead_model::permission::{AccountScope, Actor, Caller, Permission, SystemReason, SystemScope};
use bulkhead_model::role::assignment::{GrantRefused, Window, Within, keep_an_admin};
use bulkhead_model::throttle::Guarded;
use bulkhead_model::time::Timestamp;
use bulkhead_store::Tx;
use bulkhead_store::account::User;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::invitation::Invitation;
use bulkhead_store::member::Member;
use bulkhead_store::page::{Page, PageRequest};
use serde_json::json;

use crate::access::Rights;
use crate::account::{Source, end_here, invalid_link, read_email, read_name, read_role};
use crate::assignment::join_as;
use crate::role::exceeds;
use crate::sign_in::{ListedSession, SignedIn, list_live, require_live};
use crate::{App, AppError};

/// Invitations of an organization that can be accepted at once.
const OPEN_INVITATIONS_MAX: u32 = 200;

/// Somebody who is to join.
#[derive(Clone, Debug)]
pub struct NewInvitation {
    pub email: String,
    pub role: String,
    /// Until when the role is to be theirs; for ever if left out.
    pub valid_until: Option<Timestamp>,
}

/// Whoever invites holds what the invitation gives, and for as long: by the rows, when it is made and once more when it is accepted.
async fn require_giver(tx: &mut Tx, invitation: &Invitation, giver: &Actor, now: Timestamp) -> Result<(), AppError> {
    let rights = Rights::load(tx, giver, now).await?;
    rights.require(Permission::UsersInvite, Within::Organization)?;
    let hold = rights.hold(read_role(&invitation.role)?.permissions(), Within::Organization);
    hold.may_give(invitation.valid_until).map_err(|refused| {
        let path = match refused {
            GrantRefused::Lacks(_) => "/role",
            GrantRefused::Outlives(_) => "/valid_until",
        };
        exceeds(&refused, path)
    })
}

/// Takes back what this member invited others to, and what others invited them to.
async fn end_invitations(tx: &mut Tx, member: &Member, now: Timestamp) -> Result<u64, AppError> {
    let by = tx.revoke_invitations_by(&Actor::User(member.user).to_string(), now).await?;
    Ok(by + tx.revoke_invitations_to(&member.email, now).await?)
}

/// What an audit entry says of whether a member may do anything here.
pub(crate) const fn state_of(is_active: bool) -> &'static str {
    if is_active { "active" } else { "disabled" }
}

/// An invitation that was just made.
pub struct Invited {
    pub invitation: Invitation,
    /// The link, where this server sends no mail: whoever invites hands it over.
    pub link: Option<String>,
}

/// What somebody without an account says when they join.
#[derive(Clone)]
pub struct Newcomer {
    pub name: String,
    pub password: String,
}

fn no_member() -> AppError {
    AppError::NotFound { what: "member" }
}

/// Somebody administers the organization, whatever becomes of this person. Begins the policy's next epoch, since what the person may changes.
async fn require_another_admin(tx: &mut Tx, user: UserId, now: Timestamp) -> Result<(), AppError> {
    tx.begin_policy_epoch(now).await?;
    let (before, after) = (tx.count_lasting_admins(None, now).await?, tx.count_lasting_admins(Some(user), now).await?);
    keep_an_admin(before, after).map_err(|error| AppError::conflict("last-admin", error.to_string()))
}

impl App {
    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_members(&self, caller: &Caller, org: OrgId, page: PageRequest) -> Result<Page<Member>, AppError> {
        let scope = AccountScope::within(&caller.authorize(org, Permission::UsersRead)?);
        self.store().read(&scope, page, |tx, page| Box::pin(async move { Ok(tx.list_members(*page).await?) })).await
    }

    /// # Errors
    /// A refusal, [`AppError::NotFound`].
    pub async fn show_member(&self, caller: &Caller, org: OrgId, user: UserId) -> Result<Member, AppError> {
        let scope = AccountScope::within(&caller.authorize(org, Permission::UsersRead)?);
        let found = self
            .store()
            .read(&scope, user, |tx, user| Box::pin(async move { Ok::<_, AppError>(tx.load_member(*user).await?) }));
        found.await?.ok_or_else(no_member)
    }

    /// Disables a member or enables them again. Disabling ends what the person was given here: keys, invitations, and sessions with this
    /// organization in front. What they have in others is theirs.
    ///
    /// # Errors
    /// A refusal; [`AppError::NotFound`]; [`AppError::Conflict`] `own-membership`, `last-admin`.
    pub async fn set_member_state(
        &self,
        caller: &Caller,
        org: OrgId,
        user: UserId,
        is_active: bool,
    ) -> Result<Member, AppError> {
        let scope = caller.authorize(org, Permission::UsersDisable)?;
        if caller.user() == Some(user) {
            return Err(AppError::conflict("own-membership", "you cannot disable yourself: ask another administrator"));
        }
        let actor = scope.actor().clone();
        let args = (user, is_active, actor, self.ambient().clone());
        self.store()
            .write(&AccountScope::within(&scope), args, |tx, (user, is_active, actor, ambient)| {
                Box::pin(async move {
                    let now = ambient.now();
                    let member = tx.load_member(*user).await?.ok_or_else(no_member)?;
                    if *is_active {
                        tx.begin_policy_epoch(now).await?;
                    } else {
                        require_another_admin(tx, *user, now).await?;
                    }
                    if tx.update_member_state(*user, *is_active, now).await? {
                        let mut detail = json!({
                            "role": member.role,
                            "state": { "before": state_of(member.is_active), "after": state_of(*is_active) },
                        });
                        if !is_active {
                            end_here(tx, *user, ambient).await?;
                            detail["invitations_revoked"] = json!(end_invitations(tx, &member, now).await?);
                        }
                        let event = AuditEvent {
                            action: if *is_active { EventType::UserEnabled } else { EventType::UserDisabled },
                            target: user.to_string(),
                            actor: actor.clone(),
                            detail,
                        };
                        tx.record_audit(&event, ambient).await?;
                    }
                    tx.load_member(*user).await?.ok_or_else(no_member)
                })
            })
            .await
    }

    /// Takes somebody out of the organization. What they were given here ends, as with who is disabled.
    ///
    /// # Errors
    /// A refusal; [`AppError::NotFound`]; [`AppError::Conflict`] `own-membership`, `last-admin`.
    pub async fn remove_member(&self, caller: &Caller, org: OrgId, user: UserId) -> Result<(), AppError> {
        let scope = caller.authorize(org, Permission::UsersRemove)?;
        if caller.user() == Some(user) {
            return Err(AppError::conflict("own-membership", "you cannot remove yourself: ask another administrator"));
        }
        let actor = scope.actor().clone();
        self.store()
            .write(
                &AccountScope::within(&scope),
                (user, actor, self.ambient().clone()),
                |tx, (user, actor, ambient)| {
                    Box::pin(async move {
                        let member = tx.load_member(*user).await?.ok_or_else(no_member)?;
                        require_another_admin(tx, *user, ambient.now()).await?;
                        end_here(tx, *user, ambient).await?;
                        let invitations = end_invitations(tx, &member, ambient.now()).await?;
                        let roles: Vec<_> =
                            tx.list_assignments_of(*user).await?.into_iter().map(|held| held.given.role).collect();
                        tx.delete_member(*user).await?;
                        let event = AuditEvent {
                            action: EventType::UserRemoved,
                            target: user.to_string(),
                            actor: actor.clone(),
                            detail: json!({
                                "before": {
                                    "role": member.role,
                                    "roles": roles,
                                    "state": state_of(member.is_active),
                                    "joined_at": member.created_at,
                                },
                                "invitations_revoked": invitations,
                            }),
                        };
                        Ok(tx.record_audit(&event, ambient).await?)
                    })
                },
            )
            .await
    }

    /// Where a member is signed in with this organization, or none, in front. Where they work otherwise is told to nobody here.
    ///
    /// # Errors
    /// A refusal; [`AppError::NotFound`].
    pub async fn list_member_sessions(
        &self,
        caller: &Caller,
        org: OrgId,
        user: UserId,
    ) -> Result<Vec<ListedSession>, AppError> {
        let scope = AccountScope::within(&caller.authorize(org, Permission::SessionsRead)?);
        let now = self.ambient().now();
        self.store()
            .read(&scope, (user, now), |tx, (user, now)| {
                Box::pin(async move {
                    tx.load_member(*user).await?.ok_or_else(no_member)?;
                    let sessions = tx.list_sessions_here(*user).await?;
                    list_live(tx, *user, sessions, *now).await
                })
            })
            .await
    }

    /// Ends a member's session, or all of them that are shown here.
    ///
    /// # Errors
    /// A refusal; [`AppError::NotFound`].
    pub async fn end_member_sessions(
        &self,
        caller: &Caller,
        org: OrgId,
        user: UserId,
        session: Option<SessionId>,
    ) -> Result<(), AppError> {
        let scope = caller.authorize(org, Permission::SessionsRevoke)?;
        let args = (user, session, scope.actor().clone(), self.ambient().clone());
        self.store()
            .write(&AccountScope::within(&scope), args, |tx, (user, session, actor, ambient)| {
                Box::pin(async move {
                    tx.load_member(*user).await?.ok_or_else(no_member)?;
                    let ended = tx.delete_sessions_here(*user, *session).await?;
                    if session.is_some() && ended == 0 {
                        return Err(AppError::NotFound { what: "session" });
                    }
                    let event = AuditEvent {
                        action: EventType::SessionRevoked,
                        target: user.to_string(),
                        actor: actor.clone(),
                        detail: json!({ "session": session, "ended": ended }),
                    };
                    Ok(tx.record_audit(&event, ambient).await?)
                })
            })
            .await
    }

    /// Invites somebody: to nothing that the inviter does not hold, and for no longer. What was sent to the address before is worth nothing from
    /// here on. An address gets three letters in an hour, and then one in twenty minutes.
    ///
    /// # Errors
    /// A refusal; [`AppError::Invalid`] `invalid-email`, `invalid-role`, `invalid-window`, `exceeds-own-rights`; [`AppError::Conflict`]
    /// `already-member`, `too-many-invitations`; [`AppError::TooMany`] `too-many-attempts`.
    pub async fn invite(&self, caller: &Caller, org: OrgId, new: NewInvitation) -> Result<Invited, AppError> {
        let scope = caller.authorize(org, Permission::UsersInvite)?;
        let email = read_email(&new.email)?;
        read_role(&new.role)?;
        let (now, is_mailed) = (self.ambient().now(), self.sends_mail());
        let invitation = Invitation {
            id: InvitationId::new(self.ambient()),
            email,
            role: new.role,
            invited_by: scope.actor().to_string(),
            is_mailed,
            valid_until: new.valid_until,
            created_at: now,
            expires_at: now.plus(Purpose::Join.lives_for()),
            accepted_at: None,
            revoked_at: None,
        };
        if new.valid_until.is_some_and(|end| end <= now) {
            return Err(AppError::invalid("invalid-window", "/valid_until", "the time is over already"));
        }
        let who = format!("invitation to {} into {org}", invitation.email);
        let attempt = self.attempt(Guarded::Mail, &who, Source::Stranger(None));
        let args = (invitation.clone(), attempt, caller.user(), scope.actor().clone(), self.ambient().clone());
        self.store()
            .write(&AccountScope::within(&scope), args, |tx, (invitation, attempt, inviter, actor, ambient)| {
                Box::pin(async move {
                    let now = ambient.now();
                    require_giver(tx, invitation, actor, now).await?;
                    if let Some(user) = tx.load_user_by_email(&invitation.email).await?
                        && tx.load_member(user.id).await?.is_some()
                    {
                        return Err(AppError::conflict("already-member", "this person is a member already"));
                    }
                    let replaced = tx.revoke_invitations_to(&invitation.email, now).await?;
                    if tx.count_open_invitations(now, OPEN_INVITATIONS_MAX).await? >= OPEN_INVITATIONS_MAX as usize {
                        let message = format!("{OPEN_INVITATIONS_MAX} invitations wait already: take some back first");
                        return Err(AppError::conflict("too-many-invitations", message));
                    }
                    tx.insert_invitation(invitation).await?;
                    if invitation.is_mailed {
                        attempt.begin(tx, ambient).await?;
                        let inviter = match inviter {
                            Some(inviter) => tx.load_user(*inviter).await?.map(|user| user.name),
                            None => None,
                        };
                        let org = tx.require_org().await?;
                        let letter = Letter::Invitation {
                            org: org.id,
                            invitation: invitation.id,
                            org_name: org.name,
                            inviter: inviter.unwrap_or_else(|| "An administrator".to_owned()),
                        };
                        tx.enqueue_mail(&invitation.email, &letter, ambient).await?;
                    }
                    let event = AuditEvent {
                        action: EventType::UserInvited,
                        target: invitation.id.to_string(),
                        actor: actor.clone(),
                        detail: json!({
                            "email": invitation.email,
                            "role": invitation.role,
                            "valid_until": invitation.valid_until,
                            "replaced": replaced,
                        }),
                    };
                    Ok(tx.record_audit(&event, ambient).await?)
                })
            })
            .await?;
        let link = (!is_mailed).then(|| {
            let token = self.accounts().links.reveal(Purpose::Join, &[&org.uuid(), &invitation.id.uuid()]);
            self.link_url(Purpose::Join, &token)
        });
        Ok(Invited { invitation, link })
    }

    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_invitations(
        &self,
        caller: &Caller,
        org: OrgId,
        page: PageRequest,
    ) -> Result<Page<Invitation>, AppError> {
        let scope = caller.authorize(org, Permission::UsersRead)?;
        self.store().read(&scope, page, |tx, page| Box::pin(async move { Ok(tx.list_invitations(*page).await?) })).await
    }

    /// Takes an invitation back; a second time is no error.
    ///
    /// # Errors
    /// A refusal; [`AppError::NotFound`].
    pub async fn revoke_invitation(&self, caller: &Caller, org: OrgId, id: InvitationId) -> Result<(), AppError> {
        let scope = caller.authorize(org, Permission::UsersInvite)?;
        let args = (id, scope.actor().clone(), self.ambient().clone());
        self.store()
            .write(&scope, args, |tx, (id, actor, ambient)| {
                Box::pin(async move {
                    let invitation = tx.load_invitation(*id).await?.ok_or(AppError::NotFound { what: "invitation" })?;
                    if tx.revoke_invitation(*id, ambient.now()).await? {
                        let event = AuditEvent {
                            action: EventType::InvitationRevoked,
                            target: id.to_string(),
                            actor: actor.clone(),
                            detail: json!({
                                "before": {
                                    "email": invitation.email,
                                    "role": invitation.role,
                                    "valid_until": invitation.valid_until,
                                },
                            }),
                        };
                        tx.record_audit(&event, ambient).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// Joins by an invitation: as the person who is signed in, if the invitation is to their address, or as somebody new. An address that
    /// somebody has is joined by that person alone, whoever has the link. An invitation is worth what its inviter could still give at this
    /// moment: nothing, once they may not invite or lack what it gives.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `invalid-link`, `invalid-name`, `invalid-password`; [`AppError::Conflict`] `sign-in-first`; [`AppError::Busy`];
    /// [`AppError::Unauthenticated`] when the session has ended meanwhile.
    pub async fn join(
        &self,
        token: &str,
        signed_in: Option<&SignedIn>,
        newcomer: Option<Newcomer>,
    ) -> Result<UserId, AppError> {
        let [org, id] = self.accounts().links.open::<2>(Purpose::Join, token).ok_or_else(invalid_link)?;
        let (org, id) = (OrgId::from_uuid(org), InvitationId::from_uuid(id));
        // The link names the organization, and only this server makes links.
        let scope = AccountScope::within(&SystemScope::new(SystemReason::Accounts).for_org(org));
        let (invitation, person) = self
            .store()
            .read(&scope, (id, self.ambient().now()), |tx, (id, now)| {
                Box::pin(async move {
                    let invitation = tx.load_invitation(*id).await?.filter(|invitation| invitation.is_open(*now));
                    let invitation = invitation.ok_or_else(invalid_link)?;
                    let person = tx.load_user_by_email(&invitation.email).await?;
                    Ok::<_, AppError>((invitation, person))
                })
            })
            .await?;
        let who = match (person, signed_in, newcomer) {
            (Some(person), Some(signed_in), _) if person.id == signed_in.user.id => {
                Joiner::Known(Box::new(signed_in.clone()))
            }
            (Some(_), _, _) | (None, Some(_), _) => {
                let message = "the invitation is to somebody with an account: sign in as them, then follow the link";
                return Err(AppError::conflict("sign-in-first", message));
            }
            (None, None, Some(newcomer)) => Joiner::New(Box::new(self.user_of(&invitation, newcomer).await?)),
            (None, None, None) => {
                return Err(AppError::invalid("invalid-name", "/name", "say your name, and a password to have"));
            }
        };
        let joining = Joining { id, invitation, who, ambient: self.ambient().clone() };
        self.store().write(&scope, joining, |tx, joining| Box::pin(accept(tx, joining))).await
    }

    /// The account of somebody who joins without one.
    async fn user_of(&self, invitation: &Invitation, newcomer: Newcomer) -> Result<User, AppError> {
        let name = read_name(&newcomer.name)?;
        let password = self.read_new_password(&newcomer.password, "/password", &invitation.email, &name).await?;
        let stored = self.accounts().hasher.hash(password, self.ambient()).await?;
        let mut user = self.new_user(invitation.email.clone(), name, Some(stored));
        // The link was in that mailbox and nowhere else.
        user.email_verified_at = invitation.is_mailed.then_some(user.created_at);
        Ok(user)
    }
}

/// Who joins.
enum Joiner {
    Known(Box<SignedIn>),
    New(Box<User>),
}

impl Joiner {
    fn id(&self) -> UserId {
        match self {
            Self::Known(signed_in) => signed_in.user.id,
            Self::New(user) => user.id,
        }
    }
}

/// A joining that goes on.
struct Joining {
    id: InvitationId,
    invitation: Invitation,
    who: Joiner,
    ambient: Ambient,
}

/// Makes them a member, by what the rows say at this moment of the invitation, of who invited, and of who joins.
async fn accept(tx: &mut Tx, joining: &Joining) -> Result<UserId, AppError> {
    let Joining { id, invitation, who, ambient } = joining;
    let (now, joins) = (ambient.now(), who.id());
    if let Joiner::Known(signed_in) = who {
        require_live(tx, signed_in, now).await?;
    }
    if !tx.accept_invitation(*id, now).await? {
        return Err(invalid_link());
    }
    let inviter: Actor = invitation.invited_by.parse().map_err(|_| invalid_link())?;
    match require_giver(tx, invitation, &inviter, now).await {
        Err(AppError::Store(error)) => return Err(AppError::Store(error)),
        Err(_) => return Err(invalid_link()),
        Ok(()) => {}
    }
    let window = Window { from: None, until: invitation.valid_until };
    if window.check(now).is_err() {
        return Err(invalid_link());
    }
    let holder = tx.load_user_by_email(&invitation.email).await?;
    match (who, holder) {
        (Joiner::New(user), None) => tx.insert_user(user).await?,
        (Joiner::Known(_), Some(holder)) if holder.id == joins && holder.is_active => {}
        // The address is somebody else's by now, or nobody's.
        (Joiner::New(_), Some(_)) | (Joiner::Known(_), _) => return Err(invalid_link()),
    }
    if tx.insert_member(joins, &invitation.role, now).await? {
        join_as(tx, joins, read_role(&invitation.role)?, window, &inviter, ambient).await?;
    }
    let event = AuditEvent {
        action: EventType::UserJoined,
        target: joins.to_string(),
        actor: Actor::User(joins),
        detail: json!({ "role": invitation.role, "invitation": id }),
    };
    tx.record_audit(&event, ambient).await?;
    Ok(joins)
}
