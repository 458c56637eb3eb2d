//! Signing in with a password, and what follows from it: sessions.
//!
//! Every refusal reads the same and takes the same time, whoever is meant and whatever is wrong. An attempt is counted before its
//! password is looked at.

mod stuffing;

use std::net::IpAddr;
use std::time::Duration;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::account::Email;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{DeviceId, SessionId, SignInAttemptId, SignInStepId, UserId};
use bulkhead_model::letter::Notice;
use bulkhead_model::mfa::{AMR_PASSWORD, AMR_TRUSTED, Factors, TRUST_LIVES, is_mfa};
use bulkhead_model::password::{Password, StoredPassword};
use bulkhead_model::permission::{AccountScope, Caller, SessionProof};
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

use crate::access::{Credential, administers};
use crate::account::{Attempt, Source, Verdict, end_everything, tell_organizations, tell_person};
use crate::allow_list::first_reachable;
use crate::auth::OrgRef;
use crate::mfa::Proof;
use crate::{App, AppError};

/// Browsers that are remembered for each person.
const DEVICES_MAX: u32 = 10;
/// Refused attempts within a day of which the person is told.
const MANY: u32 = 10;
const MANY_WITHIN: Duration = Duration::from_hours(24);
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
    pub(crate) fn agent(&self) -> String {
        self.agent.chars().filter(|letter| !letter.is_control()).take(AGENT_LEN_MAX).collect()
    }

    pub(crate) fn address(&self) -> String {
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

    /// As the session is with another token, from now on.
    pub(crate) fn with_token(&self, hash: SecretHash, now: Timestamp) -> Self {
        let mut renewed = self.clone();
        renewed.session.token_hash = hash;
        renewed.session.times.seen_at = now;
        renewed
    }
}

/// Looks again whether the session lives that a request came with, in the transaction that hands something out because of it: the request may
/// have been let in long before the rest of it came, and everything that the person was given may have ended meanwhile.
///
/// # Errors
/// [`AppError::Unauthenticated`].
pub(crate) async fn require_proof(
    tx: &mut Tx,
    user: UserId,
    proof: SessionProof,
    now: Timestamp,
) -> Result<Session, AppError> {
    let person = tx.load_user(user).await?.filter(|person| person.is_active && person.epoch == proof.epoch);
    let session = tx.load_session(user, proof.session).await?.filter(|session| session.times.is_live(now));
    person.and(session).ok_or(AppError::Unauthenticated)
}

/// As [`require_proof`] for what a person does with their own account: with the session's token of then as well, which changes with each proof
/// of who they are.
///
/// # Errors
/// [`AppError::Unauthenticated`].
pub(crate) async fn require_live(tx: &mut Tx, signed_in: &SignedIn, now: Timestamp) -> Result<(), AppError> {
    let (user, session) = (&signed_in.user, &signed_in.session);
    let proof = SessionProof { session: session.id, epoch: user.epoch };
    let found = require_proof(tx, user.id, proof, now).await?;
    if found.token_hash == session.token_hash { Ok(()) } else { Err(AppError::Unauthenticated) }
}

/// A session as lists show it.
#[derive(Clone, Debug)]
pub struct ListedSession {
    pub session: Session,
    /// Families of refresh tokens that came from it and go on, also when nobody uses the session itself any more.
    pub tokens: u32,
}

/// Those of a person's sessions that can be used, or that tokens go on from.
pub(crate) async fn list_live(
    tx: &mut Tx,
    user: UserId,
    sessions: Vec<Session>,
    now: Timestamp,
) -> Result<Vec<ListedSession>, AppError> {
    let families = tx.list_token_sessions(user, now).await?;
    let tokens = |session: &Session| families.iter().find(|(id, _)| *id == session.id).map_or(0, |(_, count)| *count);
    let listed = sessions.into_iter().map(|session| ListedSession { tokens: tokens(&session), session });
    Ok(listed.filter(|listed| listed.session.times.is_live(now) || listed.tokens > 0).collect())
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
    /// What the person has to prove one.
    pub factors: Factors,
    pub expires_at: Timestamp,
}

/// What a right password leads to.
pub enum SignInOutcome {
    Opened(Box<Opened>),
    SecondFactor(Waiting),
}

/// How long a sign-in waits for its second factor.
const STEP_LIVES: Duration = Duration::from_mins(5);

/// The random parts of a browser that is about to be known, made beforehand, since a transaction may run again.
#[derive(Clone)]
pub(crate) struct NewDevice {
    token: BrowserToken,
    id: DeviceId,
}

impl NewDevice {
    pub(crate) fn generate(ambient: &Ambient) -> Self {
        Self { token: BrowserToken::generate(ambient), id: DeviceId::new(ambient) }
    }

    pub(crate) fn row(&self, user: UserId, agent: String, now: Timestamp) -> Device {
        Device {
            id: self.id,
            user,
            token_hash: self.token.hash(),
            agent,
            created_at: now,
            seen_at: now,
            trusted_until: None,
        }
    }

    pub(crate) fn into_token(self) -> BrowserToken {
        self.token
    }
}

/// Lets the browser of a session be known under a new token, after everything else of the person has ended.
pub(crate) async fn keep_browser(
    tx: &mut Tx,
    signed_in: &mut SignedIn,
    fresh: &NewDevice,
    now: Timestamp,
) -> Result<(), AppError> {
    let session = &mut signed_in.session;
    tx.insert_device(&fresh.row(session.user, session.agent.clone(), now)).await?;
    tx.set_session_device(session.id, fresh.id).await?;
    session.device = Some(fresh.id);
    Ok(())
}

/// … and of a session.
#[derive(Clone)]
pub(crate) struct NewSession {
    token: BrowserToken,
    id: SessionId,
    device: NewDevice,
}

impl NewSession {
    pub(crate) fn generate(ambient: &Ambient) -> Self {
        let token = BrowserToken::generate(ambient);
        Self { token, id: SessionId::new(ambient), device: NewDevice::generate(ambient) }
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
        Opened { signed_in, token: self.token, device: Some(self.device.into_token()) }
    }
}

/// What somebody proved who signs in.
#[derive(Clone, Copy)]
pub(crate) enum Proven<'a> {
    /// Everything that was asked for, just now.
    Now(&'a str),
    /// A password, in a browser in which a second factor was proven lately: not enough for what asks for a fresh proof.
    InTrustedBrowser,
}

/// Begins a session of somebody who has proven all that is asked for, in the transaction that found it right.
pub(crate) async fn begin_session(
    tx: &mut Tx,
    app: &App,
    user: User,
    client: &Client,
    known: Option<DeviceId>,
    fresh: &NewSession,
    proven: Proven<'_>,
) -> Result<SignedIn, AppError> {
    let now = app.ambient().now();
    let memberships = tx.list_memberships(user.id).await?;
    let is_first = tx.mark_first_sign_in(user.id, now).await?;
    let device = match known {
        Some(device) if tx.renew_device(device, &fresh.device.token.hash(), now).await? => device,
        // Forgotten meanwhile, or never known.
        Some(_) | None => {
            // The first browser of all is no news. One after everything was forgotten is.
            if app.sends_mail() && !is_first {
                tell_person(tx, &user, Notice::NewDevice, app.ambient()).await?;
            }
            let row = fresh.device.row(user.id, client.agent(), now);
            tx.insert_device(&row).await?;
            tx.forget_devices(user.id, DEVICES_MAX).await?;
            row.id
        }
    };
    let times = SessionTimes::begin(limits(tx, &user, &memberships, now).await?, now);
    let (amr, times) = match proven {
        Proven::Now(amr) => (amr, times),
        Proven::InTrustedBrowser => (AMR_TRUSTED, times.without_proof()),
    };
    let row = Session {
        id: fresh.id,
        user: user.id,
        token_hash: fresh.token.hash(),
        device: Some(device),
        active_org: first_reachable(tx, &memberships, client.address).await?,
        amr: amr.to_owned(),
        address: client.address(),
        agent: client.agent(),
        times,
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
    let counts = method == AMR_PASSWORD && (passed || attempt.is_of_stranger());
    SignInAttempt {
        id: SignInAttemptId::new(app.ambient()),
        user,
        identifier: attempt.identifier,
        method: method.to_owned(),
        passed,
        device,
        address: client.address(),
        agent: client.agent(),
        network: stuffing::counted_in(client.address, counts),
        created_at: app.ambient().now(),
        // A loop tells of what was refused to nobody knows whom, so that the refusal takes the same time whoever is meant.
        is_told: passed || method != AMR_PASSWORD,
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

/// Whether a browser may stand for the person's second factor: somewhere that they work that was chosen, and they give nobody rights.
async fn may_trust(tx: &mut Tx, user: &User, now: Timestamp) -> Result<bool, AppError> {
    let memberships = tx.list_memberships(user.id).await?;
    if user.is_super_admin || administers(tx, user.id, &memberships, now).await? {
        return Ok(false);
    }
    for membership in memberships.iter().filter(|membership| membership.is_active) {
        tx.enter_org(membership.org).await?;
        if tx.load_sign_in_policy().await?.trusts_devices {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Lets the browser of a session stand for the second factor that was just proven in it, where that may be.
pub(crate) async fn trust_browser(tx: &mut Tx, signed_in: &SignedIn, ambient: &Ambient) -> Result<(), AppError> {
    let (user, now) = (&signed_in.user, ambient.now());
    let Some(device) = signed_in.session.device else { return Ok(()) };
    if !may_trust(tx, user, now).await? {
        return Ok(());
    }
    let until = now.plus(TRUST_LIVES);
    tx.trust_device(user.id, device, until).await?;
    let memberships = tx.list_memberships(user.id).await?;
    let detail = json!({ "device": device, "until": until });
    tell_organizations(tx, &memberships, user.id, EventType::DeviceTrusted, &detail, ambient).await
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
        let verdict = self.accounts().hasher.verify(presented.clone(), stored.as_ref()).await;
        let verdict = self.judged(&found.attempt, verdict).await?;
        let (Some(user), Verdict::Right { is_outdated }) = (found.user.as_ref(), verdict) else {
            metrics::counter!("bulkhead_sign_ins_total", "outcome" => "refused").increment(1);
            self.record_refusal_of(&found, client).await?;
            return Err(AppError::Unauthenticated);
        };
        if is_outdated
            && let (Some(presented), Some(before)) = (presented, &stored)
            && let Err(error) = self.rehash(user.id, presented, before).await
        {
            // The password was right: a better hash of it can wait for the next time.
            tracing::debug!(error = &error as &dyn std::error::Error, "a password was not hashed anew");
        }
        let outcome = self.open_session(user, client, &found).await?;
        let name = match &outcome {
            SignInOutcome::Opened(_) => "passed",
            SignInOutcome::SecondFactor(_) => "second_factor",
        };
        metrics::counter!("bulkhead_sign_ins_total", "outcome" => name).increment(1);
        Ok(outcome)
    }

    async fn rehash(&self, user: UserId, password: Password, before: &StoredPassword) -> Result<bool, AppError> {
        let after = self.accounts().hasher.hash(password, self.ambient()).await?;
        let replaced = self.store().write(&AccountScope::OWN, (user, before.clone(), after), |tx, args| {
            Box::pin(async move { tx.replace_user_hash(args.0, &args.1, &args.2).await.map_err(AppError::from) })
        });
        replaced.await
    }

    /// Counts the attempt, and looks who is meant: the same statements whoever it is.
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
                    app.require_not_shut_out(*address, device.is_some())?;
                    // What is no address is somebody as well, all of it together.
                    let identifier = email.as_ref().map_or("", Email::as_str);
                    let attempt = app.attempt(Guarded::Password, identifier, Source::new(device, *address));
                    attempt.begin(tx, app.ambient()).await?;
                    Ok(Found { user, device, attempt })
                })
            })
            .await
    }

    /// Writes a refused attempt down, for nobody as well. It is bounded: attempts have to wait.
    async fn record_refusal_of(&self, found: &Found, client: &Client) -> Result<(), AppError> {
        let user = found.user.as_ref().map(|user| user.id);
        let row = ledger(self, &found.attempt, user, found.device, false, client, AMR_PASSWORD);
        let recorded =
            self.store().write_locked(&AccountScope::OWN, (row, self.ambient().clone()), |tx, (row, ambient)| {
                Box::pin(async move { stuffing::record_refused(tx, row, ambient).await })
            });
        if recorded.await? {
            self.stop_stuffing(client.address).await;
        }
        Ok(())
    }

    /// Tells of refused attempts where the person works whom somebody tried to be, and the person of many; answers of how many attempts. Not
    /// while they are refused: that would take longer for who exists, and works in many places.
    ///
    /// # Errors
    /// The store's.
    pub async fn tell_refused_attempts(&self) -> Result<usize, AppError> {
        let mut told = 0;
        loop {
            let untold = self.store().read(&AccountScope::OWN, (), |tx, ()| {
                Box::pin(async move { Ok::<_, AppError>(tx.load_untold_attempt().await?) })
            });
            let Some(row) = untold.await? else { return Ok(told) };
            let args = (row, self.sends_mail(), self.ambient().clone());
            let one = self.store().write(&AccountScope::OWN, args, |tx, (row, sends_mail, ambient)| {
                Box::pin(async move {
                    if !tx.mark_attempt_told(row.id).await? {
                        return Ok(());
                    }
                    let Some(user) = row.user else { return Ok(()) };
                    let memberships = tx.list_memberships(user).await?;
                    let detail = json!({ "method": row.method, "address": row.address, "at": row.created_at });
                    tell_organizations(tx, &memberships, user, EventType::SessionRefused, &detail, ambient).await?;
                    let since = SignInAttemptId::first_at(ambient.now().minus(MANY_WITHIN));
                    // At exactly so many: one letter for a storm of them.
                    if *sends_mail
                        && tx.count_refused_attempts(user, since, MANY + 1).await? == MANY as usize
                        && let Some(user) = tx.load_user(user).await?.filter(|user| user.is_active)
                    {
                        tell_person(tx, &user, Notice::ManyFailures, ambient).await?;
                    }
                    Ok::<_, AppError>(())
                })
            });
            one.await?;
            told += 1;
        }
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
                    let mut factors = tx.load_factors(user.id).await?;
                    if !factors.any() {
                        factors.email = app.may_mail_code(tx, &user, now).await?;
                    }
                    if factors.any() {
                        let is_trusted = match row.device {
                            Some(device) => tx.is_device_trusted(user.id, device, now).await?,
                            None => false,
                        };
                        if is_trusted && may_trust(tx, &user, now).await? {
                            let proven = Proven::InTrustedBrowser;
                            return begin_session(tx, app, user, client, row.device, fresh, proven).await.map(Ok);
                        }
                        let step = fresh.step(&user, row.device, now);
                        tx.insert_sign_in_step(&step).await?;
                        return Ok(Err((factors, step.expires_at)));
                    }
                    let proven = Proven::Now(AMR_PASSWORD);
                    begin_session(tx, app, user, client, row.device, fresh, proven).await.map(Ok)
                })
            })
            .await?;
        Ok(match outcome {
            Ok(signed_in) => SignInOutcome::Opened(Box::new(fresh.opened(signed_in))),
            Err((factors, expires_at)) => {
                SignInOutcome::SecondFactor(Waiting { token: fresh.token, factors, expires_at })
            }
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
    ) -> Result<(SignedIn, Option<Result<Caller, AppError>>), AppError> {
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
        let caller = match membership.filter(|membership| membership.is_active) {
            Some(membership) => Some(self.session_caller(membership.org, &signed_in, Credential::Session).await),
            None => None,
        };
        if let Some(Err(AppError::Unauthenticated)) = caller {
            // Past what it may last for who the person is by now. No other use brings it back.
            self.end_session(signed_in.user.id, signed_in.session.id).await?;
        } else if signed_in.session.times.is_seen_due(now) {
            let touched =
                self.store().write_locked(&AccountScope::OWN, (signed_in.session.id, now), |tx, (id, now)| {
                    Box::pin(async move { tx.touch_session(*id, *now).await.map_err(AppError::from) })
                });
            touched.await?;
        }
        let caller = match (org, caller) {
            (None, _) => None,
            (Some(_), Some(caller)) => Some(caller),
            (Some(_), None) => Some(Err(AppError::NotFound { what: "organization" })),
        };
        Ok((signed_in, caller))
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

    /// The person's sessions that can be used or that tokens go on from, newest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn list_own_sessions(&self, signed_in: &SignedIn) -> Result<Vec<ListedSession>, AppError> {
        self.store()
            .read(&AccountScope::OWN, (signed_in.user.id, self.ambient().now()), |tx, (user, now)| {
                Box::pin(async move {
                    let sessions = tx.list_sessions(*user).await?;
                    list_live(tx, *user, sessions, *now).await
                })
            })
            .await
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
        let args = (signed_in.user.id, signed_in.session.id, org, self.ambient().clone());
        self.store()
            .write(&AccountScope::OWN, args, |tx, (user, session, org, ambient)| {
                Box::pin(async move {
                    let membership = match org {
                        OrgRef::Id(id) => tx.load_membership(*user, *id).await?,
                        OrgRef::Slug(slug) => tx.load_membership_by_slug(*user, slug).await?,
                    };
                    let membership = membership.filter(|membership| membership.is_active);
                    let membership = membership.ok_or(AppError::NotFound { what: "organization" })?;
                    tx.set_active_org(*session, membership.org).await?;
                    let detail = json!({ "session": session });
                    let here = std::slice::from_ref(&membership);
                    tell_organizations(tx, here, *user, EventType::SessionSwitched, &detail, ambient).await?;
                    Ok(membership)
                })
            })
            .await
    }

    /// Judges the password of somebody who is signed in. Counted by the session: what others try under the name delays nobody in it.
    async fn prove_password(&self, signed_in: &SignedIn, password: &str, client: &Client) -> Result<(), AppError> {
        let user = &signed_in.user;
        let attempt = self.attempt(Guarded::Password, user.email.as_str(), Source::Session(signed_in.session.id));
        let args = (user.id, attempt.clone(), self.ambient().clone());
        let current = self
            .store()
            .write_locked(&AccountScope::OWN, args, |tx, (user, attempt, ambient)| {
                Box::pin(async move {
                    attempt.begin(tx, ambient).await?;
                    Ok::<_, AppError>(tx.load_user(*user).await?.filter(|user| user.is_active))
                })
            })
            .await?;
        let stored = current.as_ref().and_then(|user| user.password.as_ref());
        let verdict = self.accounts().hasher.verify(Password::new(password), stored).await;
        let verdict = self.judged(&attempt, verdict).await?;
        let found = Found { user: current, device: signed_in.session.device, attempt };
        let Verdict::Right { .. } = verdict else {
            self.record_refusal_of(&found, client).await?;
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
                    let mut renewed = signed_in.with_token(*hash, now);
                    amr.clone_into(&mut renewed.session.amr);
                    renewed.session.times.auth_at = now;
                    if !tx.renew_session(&session.token_hash, &renewed.session).await? {
                        return Err(AppError::Unauthenticated);
                    }
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
        let password = self.read_new_password(new, "/new_password", &user.email, &user.name).await?;
        if signed_in.session.amr != AMR_PASSWORD {
            signed_in.require_fresh(self.ambient().now())?;
        }
        self.prove_password(signed_in, current, client).await?;
        let stored = self.accounts().hasher.hash(password, self.ambient()).await?;
        let (token, device) = (BrowserToken::generate(self.ambient()), NewDevice::generate(self.ambient()));
        let args =
            (signed_in.clone(), stored, (token.hash(), device.clone()), self.sends_mail(), self.ambient().clone());
        let signed_in = self
            .store()
            .write(&AccountScope::OWN, args, |tx, (signed_in, stored, (hash, device), sends_mail, ambient)| {
                Box::pin(async move {
                    let (now, session, user) = (ambient.now(), &signed_in.session, signed_in.user.id);
                    let mut renewed = signed_in.with_token(*hash, now);
                    // Of two factors only one was proven again.
                    if session.amr == AMR_PASSWORD {
                        renewed.session.times.auth_at = now;
                    }
                    if !tx.renew_session(&session.token_hash, &renewed.session).await? {
                        return Err(AppError::Unauthenticated);
                    }
                    tx.update_user_password(user, stored, now).await?;
                    // Only something else than the mailbox says that it is the person who knows this one.
                    if is_mfa(&session.amr) {
                        tx.set_password_by_mail(user, false).await?;
                    }
                    let memberships = end_everything(tx, user, Some(session.id), ambient).await?;
                    keep_browser(tx, &mut renewed, device, now).await?;
                    if *sends_mail {
                        tell_person(tx, &signed_in.user, Notice::PasswordChanged, ambient).await?;
                    }
                    tell_organizations(tx, &memberships, user, EventType::PasswordChanged, &json!({}), ambient).await?;
                    // By the password and by what ended with the old one.
                    renewed.user.epoch += 2;
                    Ok(renewed)
                })
            })
            .await?;
        Ok(Opened { signed_in, token, device: Some(device.into_token()) })
    }
}
