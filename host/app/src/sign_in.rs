//! Signing in with a password, and what follows from it: sessions.
//!
//! Every refusal reads the same and takes the same time, whoever is meant and whatever is wrong. An attempt is counted before its
//! password is looked at.

use std::net::IpAddr;
use std::time::Duration;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::account::Email;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{DeviceId, SessionId, SignInAttemptId, SignInStepId, UserId};
use bulkhead_model::letter::Notice;
use bulkhead_model::mfa::{AMR_PASSWORD, is_mfa};
use bulkhead_model::password::Password;
use bulkhead_model::permission::{AccountScope, Caller};
use bulkhead_model::session::{BrowserToken, STEP_UP_WINDOW, SessionLimits, SessionTimes};
use bulkhead_model::throttle::Guarded;
use bulkhead_model::time::Timestamp;
use bulkhead_model::token::SecretHash;
use bulkhead_store::Tx;
use bulkhead_store::account::User;
use bulkhead_store::member::Membership;
use bulkhead_store::mfa::SignInStep;
use bulkhead_store::page::PageRequest;
use bulkhead_store::session::{Device, Session};
use bulkhead_store::throttle::SignInAttempt;
use serde_json::json;

use crate::access::administers;
use crate::account::{Attempt, Verdict, end_everything, read_new_password, tell_organizations, tell_person};
use crate::auth::OrgRef;
use crate::mfa::Proof;
use crate::{App, AppError};

/// Browsers that are remembered for each person.
const DEVICES_MAX: u32 = 10;
/// Characters of a browser's own name that are kept.
const AGENT_LEN_MAX: usize = 200;

/// Where a request comes from.
#[derive(Clone, Debug, Default)]
pub struct Client {
    pub address: Option<IpAddr>,
    /// What the browser calls itself.
    pub agent: String,
    /// What it presents as a browser that somebody signed in with before.
    pub device: Option<BrowserToken>,
}

impl Client {
    fn agent(&self) -> String {
        self.agent.chars().filter(|letter| !letter.is_control()).take(AGENT_LEN_MAX).collect()
    }

    fn address(&self) -> String {
        self.address.map(|address| address.to_string()).unwrap_or_default()
    }
}

/// Somebody with a live session.
#[derive(Clone, Debug)]
pub struct SignedIn {
    pub user: User,
    pub session: Session,
}

impl SignedIn {
    /// Asks for a proof of the last ten minutes: for what changes credentials, gives rights or takes data out.
    ///
    /// # Errors
    /// [`AppError::StepUp`].
    pub fn require_fresh(&self, now: Timestamp) -> Result<(), AppError> {
        if self.session.times.is_stepped_up(now) {
            return Ok(());
        }
        Err(AppError::StepUp { max_age_s: STEP_UP_WINDOW.as_secs() })
    }
}

/// A session that was just begun or renewed, with the tokens that are shown once.
pub struct Opened {
    pub signed_in: SignedIn,
    pub token: BrowserToken,
    /// The browser's own, which stays when the session ends.
    pub device: Option<BrowserToken>,
}

/// A sign-in that waits for a second factor.
pub struct Waiting {
    pub token: BrowserToken,
    pub expires_at: Timestamp,
}

/// What a right password leads to.
pub enum SignInOutcome {
    Opened(Box<Opened>),
    SecondFactor(Waiting),
}

/// How long a sign-in waits for its second factor.
const STEP_LIVES: Duration = Duration::from_mins(5);

/// The random parts of a session that is about to begin, made beforehand, since a transaction may run again.
#[derive(Clone)]
pub(crate) struct NewSession {
    token: BrowserToken,
    id: SessionId,
    device_token: BrowserToken,
    device: DeviceId,
}

impl NewSession {
    pub(crate) fn generate(ambient: &Ambient) -> Self {
        let (token, device_token) = (BrowserToken::generate(ambient), BrowserToken::generate(ambient));
        Self { token, id: SessionId::new(ambient), device_token, device: DeviceId::new(ambient) }
    }

    fn step(&self, user: &User, device: Option<DeviceId>, now: Timestamp) -> SignInStep {
        SignInStep {
            id: SignInStepId::from_uuid(self.id.uuid()),
            user: user.id,
            token_hash: self.token.hash(),
            epoch: user.epoch,
            device,
            created_at: now,
            expires_at: now.plus(STEP_LIVES),
        }
    }

    pub(crate) fn opened(self, signed_in: SignedIn) -> Opened {
        Opened { signed_in, token: self.token, device: Some(self.device_token) }
    }
}

/// Begins a session of somebody who has proven all that is asked for, in the transaction that found it right.
pub(crate) async fn begin_session(
    tx: &mut Tx,
    app: &App,
    user: User,
    client: &Client,
    known: Option<DeviceId>,
    fresh: &NewSession,
    amr: &str,
) -> Result<SignedIn, AppError> {
    let now = app.ambient().now();
    let memberships = tx.list_memberships(user.id).await?;
    let device_hash = fresh.device_token.hash();
    let device = match known {
        Some(device) if tx.renew_device(device, &device_hash, now).await? => device,
        // Forgotten meanwhile, or never known.
        Some(_) | None => {
            // The first browser of all is no news.
            if app.sends_mail() && tx.has_devices(user.id).await? {
                tell_person(tx, &user.email, Notice::NewDevice, app.ambient()).await?;
            }
            let row = Device {
                id: fresh.device,
                user: user.id,
                token_hash: device_hash,
                agent: client.agent(),
                created_at: now,
                seen_at: now,
            };
            tx.insert_device(&row).await?;
            tx.forget_devices(user.id, DEVICES_MAX).await?;
            row.id
        }
    };
    let limits = limits(tx, &user, &memberships, now).await?;
    let row = Session {
        id: fresh.id,
        user: user.id,
        token_hash: fresh.token.hash(),
        device: Some(device),
        active_org: memberships.iter().find(|membership| membership.is_active).map(|first| first.org),
        amr: amr.to_owned(),
        address: client.address(),
        agent: client.agent(),
        times: SessionTimes::begin(limits, now),
        created_at: now,
    };
    tx.insert_session(&row).await?;
    let detail = json!({ "session": row.id, "method": row.amr, "address": row.address, "agent": row.agent });
    tell_organizations(tx, &memberships, user.id, EventType::SessionStarted, &detail, app.ambient()).await?;
    Ok(SignedIn { user, session: row })
}

/// What an attempt to sign in found.
struct Found {
    user: Option<User>,
    device: Option<DeviceId>,
    attempt: Attempt,
}

/// The ledger's row for an attempt that was judged.
pub(crate) fn ledger(
    app: &App,
    attempt: &Attempt,
    user: Option<UserId>,
    device: Option<DeviceId>,
    passed: bool,
    client: &Client,
    method: &str,
) -> SignInAttempt {
    SignInAttempt {
        id: SignInAttemptId::new(app.ambient()),
        user,
        identifier: attempt.identifier,
        method: method.to_owned(),
        passed,
        device,
        address: client.address(),
        agent: client.agent(),
        created_at: app.ambient().now(),
    }
}

/// The device that was presented, if the person signed in with it before.
pub(crate) async fn known_device(
    tx: &mut Tx,
    hash: Option<SecretHash>,
    user: Option<UserId>,
) -> Result<Option<Device>, AppError> {
    let Some(hash) = hash else { return Ok(None) };
    Ok(tx.load_device_by_token(&hash).await?.filter(|device| Some(device.user) == user))
}

/// By what the person's assignments give, not by what their roles are called.
async fn limits(
    tx: &mut Tx,
    user: &User,
    memberships: &[Membership],
    now: Timestamp,
) -> Result<SessionLimits, AppError> {
    let is_admin = user.is_super_admin || administers(tx, user.id, memberships, now).await?;
    Ok(if is_admin { SessionLimits::ADMIN } else { SessionLimits::MEMBER })
}

impl App {
    /// Asks for a proof of the last ten minutes, by this server's clock.
    ///
    /// # Errors
    /// [`AppError::StepUp`].
    pub fn require_fresh(&self, signed_in: &SignedIn) -> Result<(), AppError> {
        signed_in.require_fresh(self.ambient().now())
    }

    /// Signs in with address and password.
    ///
    /// # Errors
    /// [`AppError::Unauthenticated`] for every kind of wrong, in the same words and after the same work; [`AppError::TooMany`]
    /// `too-many-attempts`; [`AppError::Busy`] when too many sign in at once.
    pub async fn sign_in(&self, email: &str, password: &str, client: &Client) -> Result<SignInOutcome, AppError> {
        let email: Option<Email> = email.parse().ok();
        let found = self.begin_attempt(email.as_ref(), client).await?;
        let stored = found.user.as_ref().filter(|user| user.is_active).and_then(|user| user.password.clone());
        let presented = Password::new(password);
        let verdict = self.accounts().hasher.verify(presented.clone(), stored.as_ref()).await?;
        let (Some(user), Verdict::Right { is_outdated }) = (found.user.as_ref(), verdict) else {
            metrics::counter!("bulkhead_sign_ins_total", "outcome" => "refused").increment(1);
            self.tell_refusal(&found, client).await?;
            return Err(AppError::Unauthenticated);
        };
        if is_outdated && let (Some(presented), Some(before)) = (presented, &stored) {
            let after = self.accounts().hasher.hash(presented, self.ambient()).await?;
            let replaced = self.store().write(&AccountScope::OWN, (user.id, before.clone(), after), |tx, args| {
                Box::pin(async move { tx.replace_user_hash(args.0, &args.1, &args.2).await.map_err(AppError::from) })
            });
            replaced.await?;
        }
        let outcome = self.open_session(user, client, &found).await?;
        let name = match &outcome {
            SignInOutcome::Opened(_) => "passed",
            SignInOutcome::SecondFactor(_) => "second_factor",
        };
        metrics::counter!("bulkhead_sign_ins_total", "outcome" => name).increment(1);
        Ok(outcome)
    }

    /// Counts the attempt, and looks who is meant.
    async fn begin_attempt(&self, email: Option<&Email>, client: &Client) -> Result<Found, AppError> {
        let device_hash = client.device.as_ref().map(BrowserToken::hash);
        let args = (self.clone(), email.cloned(), device_hash, client.address);
        self.store()
            .write_locked(&AccountScope::OWN, args, |tx, (app, email, device_hash, address)| {
                Box::pin(async move {
                    let user = match email {
                        Some(email) => tx.load_user_by_email(email).await?,
                        None => None,
                    };
                    let device = known_device(tx, *device_hash, user.as_ref().map(|user| user.id)).await?;
                    let device = device.map(|device| device.id);
                    // What is no address is somebody as well, all of it together.
                    let identifier = email.as_ref().map_or("", Email::as_str);
                    let attempt = app.attempt(Guarded::Password, identifier, device, *address);
                    attempt.begin(tx, app.ambient()).await?;
                    Ok(Found { user, device, attempt })
                })
            })
            .await
    }

    /// Writes a refused attempt down, for nobody as well, and tells it where the person works. It is bounded: attempts have to wait.
    async fn tell_refusal(&self, found: &Found, client: &Client) -> Result<(), AppError> {
        let user = found.user.as_ref().map(|user| user.id);
        let row = ledger(self, &found.attempt, user, found.device, false, client, AMR_PASSWORD);
        self.store()
            .write(&AccountScope::OWN, (row, self.ambient().clone()), |tx, (row, ambient)| {
                Box::pin(async move {
                    tx.record_sign_in_attempt(row).await?;
                    let Some(user) = row.user else { return Ok(()) };
                    let memberships = tx.list_memberships(user).await?;
                    let detail = json!({ "method": row.method, "address": row.address });
                    tell_organizations(tx, &memberships, user, EventType::SessionRefused, &detail, ambient).await
                })
            })
            .await
    }

    /// Begins a session for somebody whose password was right, unless they have a second factor: then it waits for that.
    async fn open_session(&self, user: &User, client: &Client, found: &Found) -> Result<SignInOutcome, AppError> {
        let fresh = NewSession::generate(self.ambient());
        let row = ledger(self, &found.attempt, Some(user.id), found.device, true, client, AMR_PASSWORD);
        let args = (self.clone(), user.clone(), client.clone(), (found.attempt.clone(), row), fresh.clone());
        let outcome = self
            .store()
            .write(&AccountScope::OWN, args, |tx, (app, user, client, (attempt, row), fresh)| {
                Box::pin(async move {
                    let now = app.ambient().now();
                    // What was proven is worth nothing if the person was disabled or the password changed meanwhile.
                    let current =
                        tx.load_user(user.id).await?.filter(|current| current.is_active && current.epoch == user.epoch);
                    let user = current.ok_or(AppError::Unauthenticated)?;
                    attempt.succeed(tx).await?;
                    tx.record_sign_in_attempt(row).await?;
                    if tx.load_totp(user.id).await?.is_some() {
                        let step = fresh.step(&user, row.device, now);
                        tx.insert_sign_in_step(&step).await?;
                        return Ok(Err(step.expires_at));
                    }
                    begin_session(tx, app, user, client, row.device, fresh, AMR_PASSWORD).await.map(Ok)
                })
            })
            .await?;
        Ok(match outcome {
            Ok(signed_in) => SignInOutcome::Opened(Box::new(fresh.opened(signed_in))),
            Err(expires_at) => SignInOutcome::SecondFactor(Waiting { token: fresh.token, expires_at }),
        })
    }

    /// Who a session's token stands for, and as whom they call in the organization that is named.
    ///
    /// # Errors
    /// [`AppError::Unauthenticated`] for a token of no live session or of a person who is disabled; [`AppError::NotFound`] for an
    /// organization that the person does not belong to, whether it exists or not; [`AppError::MfaRequired`] where the organization asks for
    /// more than was proven.
    pub async fn resume(
        &self,
        token: &BrowserToken,
        org: Option<OrgRef>,
    ) -> Result<(SignedIn, Option<Caller>), AppError> {
        let now = self.ambient().now();
        let (signed_in, membership) = self
            .store()
            .read(&AccountScope::OWN, (token.hash(), org.clone(), now), |tx, (hash, org, now)| {
                Box::pin(async move {
                    let session = tx.load_session_by_token(hash).await?.filter(|session| session.times.is_live(*now));
                    let session = session.ok_or(AppError::Unauthenticated)?;
                    let user = tx.load_user(session.user).await?.filter(|user| user.is_active);
                    let user = user.ok_or(AppError::Unauthenticated)?;
                    let membership = match org {
                        Some(OrgRef::Id(id)) => tx.load_membership(user.id, *id).await?,
                        Some(OrgRef::Slug(slug)) => tx.load_membership_by_slug(user.id, slug).await?,
                        None => None,
                    };
                    Ok::<_, AppError>((SignedIn { user, session }, membership))
                })
            })
            .await?;
        if signed_in.session.times.is_seen_due(now) {
            let touched =
                self.store().write_locked(&AccountScope::OWN, (signed_in.session.id, now), |tx, (id, now)| {
                    Box::pin(async move { tx.touch_session(*id, *now).await.map_err(AppError::from) })
                });
            touched.await?;
        }
        if org.is_none() {
            return Ok((signed_in, None));
        }
        let membership =
            membership.filter(|membership| membership.is_active).ok_or(AppError::NotFound { what: "organization" })?;
        let caller = self.session_caller(membership.org, &signed_in).await?;
        Ok((signed_in, Some(caller)))
    }

    /// Ends the session.
    ///
    /// # Errors
    /// The store's.
    pub async fn sign_out(&self, signed_in: &SignedIn) -> Result<(), AppError> {
        self.end_session(signed_in.user.id, signed_in.session.id).await.map(drop)
    }

    /// Ends one of the person's own sessions; `false` when there is none of this id.
    ///
    /// # Errors
    /// The store's.
    pub async fn end_session(&self, user: UserId, session: SessionId) -> Result<bool, AppError> {
        self.store()
            .write(&AccountScope::OWN, (user, session, self.ambient().clone()), |tx, (user, session, ambient)| {
                Box::pin(async move {
                    if !tx.delete_session(*user, *session).await? {
                        return Ok(false);
                    }
                    let memberships = tx.list_memberships(*user).await?;
                    let detail = json!({ "session": session });
                    tell_organizations(tx, &memberships, *user, EventType::SessionEnded, &detail, ambient).await?;
                    Ok(true)
                })
            })
            .await
    }

    /// Ends all of the person's sessions but the one that asks; answers how many.
    ///
    /// # Errors
    /// The store's.
    pub async fn end_other_sessions(&self, signed_in: &SignedIn) -> Result<u64, AppError> {
        let args = (signed_in.user.id, signed_in.session.id, self.ambient().clone());
        self.store()
            .write(&AccountScope::OWN, args, |tx, (user, keep, ambient)| {
                Box::pin(async move {
                    let ended = tx.delete_sessions(*user, Some(*keep)).await?;
                    let memberships = tx.list_memberships(*user).await?;
                    let detail = json!({ "count": ended });
                    tell_organizations(tx, &memberships, *user, EventType::SessionRevoked, &detail, ambient).await?;
                    Ok(ended)
                })
            })
            .await
    }

    /// The person's live sessions, newest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn list_own_sessions(&self, signed_in: &SignedIn) -> Result<Vec<Session>, AppError> {
        let listed = self.store().read(&AccountScope::OWN, signed_in.user.id, |tx, user| {
            Box::pin(async move { tx.list_sessions(*user).await.map_err(AppError::from) })
        });
        let now = self.ambient().now();
        Ok(listed.await?.into_iter().filter(|session| session.times.is_live(now)).collect())
    }

    /// The browsers that the person signed in with before, the one that was used last first.
    ///
    /// # Errors
    /// The store's.
    pub async fn list_own_devices(&self, signed_in: &SignedIn) -> Result<Vec<Device>, AppError> {
        let listed = self.store().read(&AccountScope::OWN, signed_in.user.id, |tx, user| {
            Box::pin(async move { tx.list_devices(*user).await.map_err(AppError::from) })
        });
        listed.await
    }

    /// Forgets one of them: its sessions end, and the next sign-in with it is told as a new one.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn forget_device(&self, signed_in: &SignedIn, id: DeviceId) -> Result<(), AppError> {
        let args = (signed_in.user.id, id, self.ambient().clone());
        self.store()
            .write(&AccountScope::OWN, args, |tx, (user, id, ambient)| {
                Box::pin(async move {
                    if !tx.delete_device(*user, *id).await? {
                        return Err(AppError::NotFound { what: "device" });
                    }
                    let memberships = tx.list_memberships(*user).await?;
                    let detail = json!({ "device": id });
                    tell_organizations(tx, &memberships, *user, EventType::DeviceRevoked, &detail, ambient).await
                })
            })
            .await
    }

    /// Attempts to be this person, newest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn list_own_attempts(&self, signed_in: &SignedIn) -> Result<Vec<SignInAttempt>, AppError> {
        let listed = self.store().read(&AccountScope::OWN, signed_in.user.id, |tx, user| {
            Box::pin(
                async move { tx.list_sign_in_attempts(*user, PageRequest::default()).await.map_err(AppError::from) },
            )
        });
        Ok(listed.await?.items)
    }

    /// The organizations that the person belongs to.
    ///
    /// # Errors
    /// The store's.
    pub async fn list_own_memberships(&self, signed_in: &SignedIn) -> Result<Vec<Membership>, AppError> {
        let listed = self.store().read(&AccountScope::OWN, signed_in.user.id, |tx, user| {
            Box::pin(async move { tx.list_memberships(*user).await.map_err(AppError::from) })
        });
        Ok(listed.await?.into_iter().filter(|membership| membership.is_active).collect())
    }

    /// Puts an organization in front of the person: the switcher.
    ///
    /// # Errors
    /// [`AppError::NotFound`] for one that they do not belong to.
    pub async fn switch_org(&self, signed_in: &SignedIn, org: OrgRef) -> Result<Membership, AppError> {
        self.store()
            .write(&AccountScope::OWN, (signed_in.user.id, signed_in.session.id, org), |tx, (user, session, org)| {
                Box::pin(async move {
                    let membership = match org {
                        OrgRef::Id(id) => tx.load_membership(*user, *id).await?,
                        OrgRef::Slug(slug) => tx.load_membership_by_slug(*user, slug).await?,
                    };
                    let membership = membership.filter(|membership| membership.is_active);
                    let membership = membership.ok_or(AppError::NotFound { what: "organization" })?;
                    tx.set_active_org(*session, membership.org).await?;
                    Ok(membership)
                })
            })
            .await
    }

    /// Judges the password of somebody who is signed in, under the same counters as a sign-in.
    async fn prove_password(&self, signed_in: &SignedIn, password: &str, client: &Client) -> Result<(), AppError> {
        let found = self.begin_attempt(Some(&signed_in.user.email), client).await?;
        let stored = found.user.as_ref().filter(|user| user.is_active).and_then(|user| user.password.as_ref());
        let verdict = self.accounts().hasher.verify(Password::new(password), stored).await?;
        let Verdict::Right { .. } = verdict else {
            self.tell_refusal(&found, client).await?;
            return Err(AppError::invalid("wrong-password", "/password", "this is not your password"));
        };
        let given_back = self.store().write_locked(&AccountScope::OWN, found.attempt.clone(), |tx, attempt| {
            Box::pin(async move { attempt.succeed(tx).await })
        });
        given_back.await
    }

    /// Proves again who it is, by the password and by the second factor if there is one; the session's token changes.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `wrong-password`, `second-factor-required`, `wrong-code`; [`AppError::TooMany`], [`AppError::Busy`]; [`AppError::Unauthenticated`] when the session has
    /// ended meanwhile.
    pub async fn step_up(
        &self,
        signed_in: &SignedIn,
        password: &str,
        proof: Option<&Proof>,
        client: &Client,
    ) -> Result<Opened, AppError> {
        self.prove_password(signed_in, password, client).await?;
        let amr = self.prove_second_factor(signed_in, proof, client).await?;
        let token = BrowserToken::generate(self.ambient());
        let args = (signed_in.clone(), token.hash(), amr, self.ambient().clone());
        let signed_in = self
            .store()
            .write(&AccountScope::OWN, args, |tx, (signed_in, hash, amr, ambient)| {
                Box::pin(async move {
                    let (now, session) = (ambient.now(), &signed_in.session);
                    if !tx.renew_session(session.id, &session.token_hash, hash, amr, now).await? {
                        return Err(AppError::Unauthenticated);
                    }
                    let mut renewed = signed_in.clone();
                    renewed.session.token_hash = *hash;
                    amr.clone_into(&mut renewed.session.amr);
                    (renewed.session.times.auth_at, renewed.session.times.seen_at) = (now, now);
                    let memberships = tx.list_memberships(signed_in.user.id).await?;
                    let detail = json!({ "session": session.id });
                    tell_organizations(tx, &memberships, signed_in.user.id, EventType::StepUpPassed, &detail, ambient)
                        .await?;
                    Ok(renewed)
                })
            })
            .await?;
        Ok(Opened { signed_in, token, device: None })
    }

    /// Changes the person's own password. Every other session ends, and this one's token changes. Whoever has a second factor has proven it
    /// lately as well.
    ///
    /// # Errors
    /// [`AppError::StepUp`]; [`AppError::Invalid`] `wrong-password`, `invalid-password`; [`AppError::TooMany`], [`AppError::Busy`];
    /// [`AppError::Unauthenticated`] when the session has ended meanwhile.
    pub async fn change_password(
        &self,
        signed_in: &SignedIn,
        current: &str,
        new: &str,
        client: &Client,
    ) -> Result<Opened, AppError> {
        let user = &signed_in.user;
        let password = read_new_password(new, "/new_password", &user.email, &user.name)?;
        if is_mfa(&signed_in.session.amr) {
            signed_in.require_fresh(self.ambient().now())?;
        }
        self.prove_password(signed_in, current, client).await?;
        let stored = self.accounts().hasher.hash(password, self.ambient()).await?;
        let token = BrowserToken::generate(self.ambient());
        let args = (signed_in.clone(), stored, token.hash(), self.sends_mail(), self.ambient().clone());
        let signed_in = self
            .store()
            .write(&AccountScope::OWN, args, |tx, (signed_in, stored, hash, sends_mail, ambient)| {
                Box::pin(async move {
                    let (now, session, user) = (ambient.now(), &signed_in.session, signed_in.user.id);
                    if !tx.renew_session(session.id, &session.token_hash, hash, &session.amr, now).await? {
                        return Err(AppError::Unauthenticated);
                    }
                    tx.update_user_password(user, stored, now).await?;
                    let memberships = end_everything(tx, user, Some(session.id), ambient).await?;
                    tx.void_links(user, bulkhead_model::link::Purpose::ChoosePassword, now).await?;
                    if *sends_mail {
                        tell_person(tx, &signed_in.user.email, Notice::PasswordChanged, ambient).await?;
                    }
                    tell_organizations(tx, &memberships, user, EventType::PasswordChanged, &json!({}), ambient).await?;
                    let mut renewed = signed_in.clone();
                    renewed.session.token_hash = *hash;
                    (renewed.session.times.auth_at, renewed.session.times.seen_at) = (now, now);
                    // By the password and by what ended with the old one.
                    renewed.user.epoch += 2;
                    Ok(renewed)
                })
            })
            .await?;
        Ok(Opened { signed_in, token, device: None })
    }
}
