//! Second factors: setting one up, proving it at sign-in and later, taking it away, and what organizations ask for.
//!
//! Every way in which a code is judged goes through [`App::judge`] and [`spend`], and each attempt is counted before it: at sign-in,
//! step-up and set-up alike. A step of time and a backup code are spent in the transaction that acts because of them.

use std::time::Duration;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::backup_code::{BackupCode, CODES, WARN_AT};
use bulkhead_model::id::{OrgId, SignInStepId, TotpId, UserId};
use bulkhead_model::letter::Notice;
use bulkhead_model::mfa::{AMR_EMAIL, AMR_MFA, AMR_PASSWORD, MfaPolicy, SignInPolicy, without_second_factor};
use bulkhead_model::password::{Password, StoredPassword};
use bulkhead_model::permission::{AccountScope, Actor, Caller, Permission, SystemReason, SystemScope};
use bulkhead_model::role::assignment::Within;
use bulkhead_model::session::BrowserToken;
use bulkhead_model::throttle::Guarded;
use bulkhead_model::time::Timestamp;
use bulkhead_model::token::SecretHash;
use bulkhead_model::totp::{FAILURES_MAX, SECRET_BYTES, SET_UP_LIVES_S, TotpSecret};
use bulkhead_store::Tx;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::mfa::{SignInStep, StoredBackupCode, Totp, TotpState};
use bulkhead_store::seal::{KEY_VERSION, Place};
use bulkhead_store::{StoreError, account::User};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::access::{Rights, load_roles, load_standing};
use crate::account::{Attempt, Source, end_everything, read_email, tell_organizations, tell_person};
use crate::email_code::FAILURES_MAX as FAILURES_MAX_BY_MAIL;
use crate::sign_in::{
    Client, NewDevice, NewSession, Opened, Proven, SignedIn, begin_session, keep_browser, known_device, ledger,
    require_live, trust_browser,
};
use crate::{App, AppError};

/// What authenticator apps show above the code.
const ISSUER: &str = "Bulkhead";

/// What somebody presents as a second factor.
#[derive(Clone)]
pub enum Proof {
    /// Of the authenticator app.
    Code(String),
    BackupCode(String),
    /// Mailed for this very sign-in.
    EmailCode(String),
}

impl Proof {
    /// What somebody typed as a code. A backup code is told apart by its form: nobody has to know which of two fields is meant.
    #[must_use]
    pub fn of_code(text: String) -> Self {
        if BackupCode::parse(&text).is_some() { Self::BackupCode(text) } else { Self::Code(text) }
    }

    const fn guarded(&self) -> Guarded {
        match self {
            Self::Code(_) | Self::EmailCode(_) => Guarded::Code,
            Self::BackupCode(_) => Guarded::BackupCode,
        }
    }

    /// In the ledger.
    const fn method(&self) -> &'static str {
        match self {
            Self::Code(_) => "otp",
            Self::BackupCode(_) => "backup_code",
            Self::EmailCode(_) => "email",
        }
    }

    const fn path(&self) -> &'static str {
        match self {
            Self::Code(_) => "/code",
            Self::BackupCode(_) => "/backup_code",
            Self::EmailCode(_) => "/email_code",
        }
    }
}

/// What a proof turned out to be; it counts when it is spent.
#[derive(Clone)]
enum Right {
    Step(TotpId, i64),
    BackupCode(StoredBackupCode),
    /// It goes with the sign-in that it was mailed for.
    EmailCode,
}

/// What an attempt is judged by, as it was when it was counted.
#[derive(Clone)]
struct Factors {
    user: User,
    attempt: Attempt,
    totp: Option<Totp>,
    codes: Vec<StoredBackupCode>,
    /// The sign-in that it is for, and the code that was mailed for it.
    mailed: Option<(SignInStepId, Option<StoredPassword>)>,
}

/// What a person has.
#[derive(Clone, Debug)]
pub struct MfaStatus {
    /// Since when an authenticator app counts.
    pub active_since: Option<Timestamp>,
    /// Its codes were wrong too often: a backup code lets them count again.
    pub is_locked: bool,
    pub backup_codes_left: usize,
    pub passkeys: usize,
    /// A set-up that the session began, how far it is, and when it ends.
    pub set_up: Option<(TotpState, Timestamp)>,
}

/// A set-up that was just begun. Shown once.
pub struct TotpShown {
    pub secret: Zeroizing<String>,
    pub uri: Zeroizing<String>,
    pub qr_svg: Zeroizing<String>,
    pub expires_at: Timestamp,
}

fn place(id: TotpId) -> Place<'static> {
    Place::of_person("totp", "secret", id.uuid())
}

fn wrong_code(path: &str) -> AppError {
    AppError::invalid("wrong-code", path, "the code is not right, or was used before")
}

fn is_wrong_code(error: &AppError) -> bool {
    matches!(error, AppError::Invalid { code: "wrong-code", .. })
}

/// The set-up that this session began, while its time is not over. No other session goes on with it.
async fn load_own_set_up(tx: &mut Tx, signed_in: &SignedIn, now: Timestamp) -> Result<Option<Totp>, AppError> {
    let found = tx.load_totp_set_up(signed_in.user.id).await?;
    let is_own = |totp: &Totp| {
        totp.session == Some(signed_in.session.id) && totp.expires_at.is_some_and(|expires_at| now < expires_at)
    };
    Ok(found.filter(is_own))
}

pub(crate) fn no_set_up() -> AppError {
    AppError::conflict("no-set-up", "no set-up waits for this, or its time is over: begin again")
}

/// Spends what was found right: `false` when somebody did before.
async fn spend(tx: &mut Tx, user: UserId, right: &Right, now: Timestamp) -> Result<bool, AppError> {
    Ok(match right {
        Right::Step(id, step) => tx.use_totp_step(*id, *step).await?,
        Right::EmailCode => true,
        Right::BackupCode(code) => {
            let is_first = tx.use_backup_code(user, code, now).await?;
            if is_first {
                // Who has a backup code has proven more than who guessed.
                tx.forgive_totp(user).await?;
            }
            is_first
        }
    })
}

impl App {
    fn open_totp(&self, totp: &Totp) -> Result<TotpSecret, AppError> {
        let unreadable = || {
            let why = "it does not open with this root key".to_owned();
            AppError::Store(StoreError::Corrupt { what: "the secret of an authenticator app", why })
        };
        let plain = self.sealer().open(&place(totp.id), totp.key_version, &totp.secret).map_err(|_| unreadable())?;
        let bytes: [u8; SECRET_BYTES] = plain.as_slice().try_into().map_err(|_| unreadable())?;
        Ok(TotpSecret::from_bytes(bytes))
    }

    /// Counts an attempt with a second factor, and finds what it is judged by.
    async fn begin_factor(&self, tx: &mut Tx, user: User, proof: &Proof, source: Source) -> Result<Factors, AppError> {
        let attempt = self.attempt(proof.guarded(), user.email.as_str(), source);
        attempt.begin(tx, self.ambient()).await?;
        let totp = tx.load_totp(user.id).await?;
        let codes = match proof {
            Proof::Code(_) | Proof::EmailCode(_) => Vec::new(),
            // Of the app that counts: without one no backup code is worth anything.
            Proof::BackupCode(_) => tx.list_backup_codes(user.id).await?,
        };
        Ok(Factors { user, attempt, totp, codes, mailed: None })
    }

    /// Whether the proof is right, for all that is known outside of a transaction.
    async fn judge(&self, factors: &Factors, proof: &Proof) -> Result<Option<Right>, AppError> {
        match proof {
            Proof::Code(code) => {
                let Some(totp) = &factors.totp else { return Ok(None) };
                let step = self.open_totp(totp)?.matching_step(code, self.ambient().now());
                let is_open = totp.failures < FAILURES_MAX;
                Ok(step.filter(|step| is_open && *step > totp.last_step).map(|step| Right::Step(totp.id, step)))
            }
            Proof::BackupCode(text) => {
                if factors.totp.is_none() {
                    return Ok(None);
                }
                let presented = BackupCode::parse(text).and_then(|code| Password::new(code.canonical()));
                let hashes: Vec<_> = factors.codes.iter().map(|code| code.hash.clone()).collect();
                let found = self.accounts().hasher.find(presented, &hashes).await?;
                Ok(found.and_then(|at| factors.codes.get(at)).cloned().map(Right::BackupCode))
            }
            Proof::EmailCode(text) => {
                let presented = BackupCode::parse(text).and_then(|code| Password::new(code.canonical()));
                let mailed = factors.mailed.as_ref().and_then(|(_, hash)| hash.clone());
                let found = self.accounts().hasher.find(presented, mailed.as_slice()).await?;
                Ok(found.map(|_| Right::EmailCode))
            }
        }
    }

    /// Writes a refused proof down, counts it, and tells it where the person works.
    async fn refuse_factor(&self, factors: &Factors, proof: &Proof, client: &Client) -> Result<(), AppError> {
        metrics::counter!("bulkhead_second_factors_total", "method" => proof.method(), "outcome" => "refused")
            .increment(1);
        let user = factors.user.id;
        let row = ledger(self, &factors.attempt, Some(user), None, false, client, proof.method());
        let totp = match proof {
            Proof::Code(_) => factors.totp.as_ref().map(|totp| totp.id),
            Proof::BackupCode(_) | Proof::EmailCode(_) => None,
        };
        let mailed = match proof {
            Proof::EmailCode(_) => factors.mailed.as_ref().map(|(step, _)| *step),
            Proof::Code(_) | Proof::BackupCode(_) => None,
        };
        let args = (row, user, (totp, mailed), self.ambient().clone());
        self.store()
            .write(&AccountScope::OWN, args, |tx, (row, user, (totp, mailed), ambient)| {
                Box::pin(async move {
                    tx.record_sign_in_attempt(row).await?;
                    if let Some(step) = mailed {
                        tx.fail_email_code(*step).await?;
                    }
                    if let Some(totp) = totp {
                        tx.fail_totp(*totp).await?;
                    }
                    let memberships = tx.list_memberships(*user).await?;
                    let detail = json!({ "method": row.method, "address": row.address });
                    tell_organizations(tx, &memberships, *user, EventType::MfaRefused, &detail, ambient).await
                })
            })
            .await
    }

    /// What follows from a proof that was spent, in its transaction.
    async fn accept_factor(
        &self,
        tx: &mut Tx,
        factors: &Factors,
        proof: &Proof,
        client: &Client,
    ) -> Result<(), AppError> {
        let (user, ambient) = (&factors.user, self.ambient());
        factors.attempt.succeed(tx).await?;
        let row = ledger(self, &factors.attempt, Some(user.id), None, true, client, proof.method());
        tx.record_sign_in_attempt(&row).await?;
        let memberships = tx.list_memberships(user.id).await?;
        let (action, detail) = match proof {
            Proof::Code(_) | Proof::EmailCode(_) => (EventType::MfaPassed, json!({ "method": proof.method() })),
            Proof::BackupCode(_) => {
                let left = tx.list_backup_codes(user.id).await?.len();
                if self.sends_mail() {
                    let notice = if left <= WARN_AT { Notice::BackupCodesLow } else { Notice::BackupCodeUsed };
                    tell_person(tx, user, notice, ambient).await?;
                }
                (EventType::BackupCodeUsed, json!({ "left": left }))
            }
        };
        tell_organizations(tx, &memberships, user.id, action, &detail, ambient).await?;
        metrics::counter!("bulkhead_second_factors_total", "method" => proof.method(), "outcome" => "passed")
            .increment(1);
        Ok(())
    }

    /// Goes on with a sign-in that waits for a second factor; `trusts` lets the browser stand for it from now on, where that may be.
    ///
    /// # Errors
    /// [`AppError::Unauthenticated`] for a sign-in that does not wait, any more; [`AppError::Invalid`] `wrong-code`;
    /// [`AppError::TooMany`], [`AppError::Busy`].
    pub async fn sign_in_second(
        &self,
        token: &BrowserToken,
        (proof, trusts): (&Proof, bool),
        client: &Client,
    ) -> Result<Opened, AppError> {
        let args = (self.clone(), token.hash(), proof.clone(), client.clone());
        let (step, factors) = self
            .store()
            .write_locked(&AccountScope::OWN, args, |tx, (app, token, proof, client)| {
                Box::pin(async move {
                    let step = tx.load_sign_in_step(token).await?;
                    let step = step.filter(|step| app.ambient().now() < step.expires_at);
                    let step = step.ok_or(AppError::Unauthenticated)?;
                    let user = require_same(tx, &step).await?;
                    let device = client.device.as_ref().map(BrowserToken::hash);
                    let device = known_device(tx, device, Some(user.id)).await?.map(|device| device.id);
                    let source = Source::new(device, client.address);
                    let mut factors = app.begin_factor(tx, user, proof, source).await?;
                    if let Proof::EmailCode(_) = proof {
                        let now = app.ambient().now();
                        // What was mailed counts as long as mail does: not once the person has something better.
                        let counts = !tx.load_factors(step.user).await?.any()
                            && app.may_mail_code(tx, &factors.user, now).await?;
                        let hash = if counts { tx.load_email_code(step.id, FAILURES_MAX_BY_MAIL).await? } else { None };
                        factors.mailed = Some((step.id, hash));
                    }
                    Ok::<_, AppError>((step, factors))
                })
            })
            .await?;
        let judged = self.judge(&factors, proof).await;
        let Some(right) = self.judged(&factors.attempt, judged).await? else {
            self.refuse_factor(&factors, proof, client).await?;
            return Err(wrong_code(proof.path()));
        };
        let fresh = NewSession::generate(self.ambient());
        let args =
            (self.clone(), (step, factors.clone()), (proof.clone(), right), (client.clone(), trusts), fresh.clone());
        let signed_in = self
            .store()
            .write(&AccountScope::OWN, args, |tx, (app, (step, factors), (proof, right), (client, trusts), fresh)| {
                Box::pin(async move {
                    // Disabled, or another password, between the steps.
                    let user = require_same(tx, step).await?;
                    // An error takes back what was spent: of two requests with one sign-in the second one spends nothing.
                    if !tx.use_sign_in_step(step.id).await? {
                        return Err(AppError::Unauthenticated);
                    }
                    if !spend(tx, user.id, right, app.ambient().now()).await? {
                        return Err(wrong_code(proof.path()));
                    }
                    app.accept_factor(tx, factors, proof, client).await?;
                    let proven = Proven::Now(match proof {
                        Proof::Code(_) | Proof::BackupCode(_) => AMR_MFA,
                        Proof::EmailCode(_) => AMR_EMAIL,
                    });
                    let signed_in = begin_session(tx, app, user, client, step.device, fresh, proven).await?;
                    if *trusts {
                        trust_browser(tx, &signed_in, app.ambient()).await?;
                    }
                    Ok(signed_in)
                })
            })
            .await;
        if signed_in.as_ref().is_err_and(is_wrong_code) {
            self.refuse_factor(&factors, proof, client).await?;
        }
        let signed_in = signed_in?;
        metrics::counter!("bulkhead_sign_ins_total", "outcome" => "passed").increment(1);
        Ok(fresh.opened(signed_in))
    }

    /// Asks for the second factor of somebody who is signed in, if they have one; answers what the session has proven then.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `second-factor-required`, `wrong-code`; [`AppError::TooMany`], [`AppError::Busy`].
    pub(crate) async fn prove_second_factor(
        &self,
        signed_in: &SignedIn,
        proof: Option<&Proof>,
        client: &Client,
    ) -> Result<String, AppError> {
        let user = &signed_in.user;
        let Some(proof) = proof else {
            let factors = self.store().read(&AccountScope::OWN, user.id, |tx, user| {
                Box::pin(async move { tx.load_factors(*user).await.map_err(AppError::from) })
            });
            let factors = factors.await?;
            let message = match (factors.app, factors.passkey) {
                // Whose second factor is mail has proven it once in this session.
                (false, false) if signed_in.session.amr == AMR_EMAIL => return Ok(AMR_EMAIL.to_owned()),
                (false, false) => return Ok(AMR_PASSWORD.to_owned()),
                (true, false) => "say a code of your authenticator app or a backup code as well",
                (true, true) => {
                    "say a code of your authenticator app or a backup code as well, or use your passkey instead"
                }
                (false, true) => "use your passkey instead (`auth/step-up/passkey`)",
            };
            return Err(AppError::invalid("second-factor-required", "/code", message));
        };
        self.prove_factor(signed_in, proof, client).await?;
        Ok(AMR_MFA.to_owned())
    }

    async fn prove_factor(&self, signed_in: &SignedIn, proof: &Proof, client: &Client) -> Result<(), AppError> {
        let args = (self.clone(), signed_in.clone(), proof.clone());
        let factors = self
            .store()
            .write_locked(&AccountScope::OWN, args, |tx, (app, signed_in, proof)| {
                let source = Source::Session(signed_in.session.id);
                Box::pin(async move { app.begin_factor(tx, signed_in.user.clone(), proof, source).await })
            })
            .await?;
        let judged = self.judge(&factors, proof).await;
        let Some(right) = self.judged(&factors.attempt, judged).await? else {
            self.refuse_factor(&factors, proof, client).await?;
            return Err(wrong_code(proof.path()));
        };
        let args = (self.clone(), factors.clone(), (proof.clone(), right), client.clone());
        let is_spent = self
            .store()
            .write(&AccountScope::OWN, args, |tx, (app, factors, (proof, right), client)| {
                Box::pin(async move {
                    if !spend(tx, factors.user.id, right, app.ambient().now()).await? {
                        return Ok(false);
                    }
                    app.accept_factor(tx, factors, proof, client).await?;
                    Ok::<_, AppError>(true)
                })
            })
            .await?;
        if is_spent {
            return Ok(());
        }
        self.refuse_factor(&factors, proof, client).await?;
        Err(wrong_code(proof.path()))
    }

    /// What the person has.
    ///
    /// # Errors
    /// The store's.
    pub async fn show_mfa(&self, signed_in: &SignedIn) -> Result<MfaStatus, AppError> {
        self.store()
            .read(&AccountScope::OWN, (signed_in.clone(), self.ambient().now()), |tx, (signed_in, now)| {
                Box::pin(async move {
                    let totp = tx.load_totp(signed_in.user.id).await?;
                    let set_up = load_own_set_up(tx, signed_in, *now).await?;
                    Ok(MfaStatus {
                        active_since: totp.as_ref().map(|totp| totp.created_at),
                        is_locked: totp.as_ref().is_some_and(|totp| totp.failures >= FAILURES_MAX),
                        backup_codes_left: tx.list_backup_codes(signed_in.user.id).await?.len(),
                        passkeys: tx.list_passkeys(signed_in.user.id).await?.len(),
                        set_up: set_up.and_then(|totp| totp.expires_at.map(|expires_at| (totp.state, expires_at))),
                    })
                })
            })
            .await
    }

    /// Begins to set an authenticator app up, instead of the one that counts if there is one: that goes on counting until the end. Makes the
    /// secret; nobody else may choose it. Only this session goes on with it.
    ///
    /// # Errors
    /// [`AppError::StepUp`]; [`AppError::Unauthenticated`] when the session has ended meanwhile.
    pub async fn begin_totp(&self, signed_in: &SignedIn) -> Result<TotpShown, AppError> {
        let now = self.ambient().now();
        signed_in.require_fresh(now)?;
        let (id, secret) = (TotpId::new(self.ambient()), TotpSecret::generate(self.ambient()));
        let expires_at = now.plus(Duration::from_secs(SET_UP_LIVES_S));
        let row = Totp {
            id,
            user: signed_in.user.id,
            state: TotpState::Shown,
            session: Some(signed_in.session.id),
            secret: self.sealer().seal(&place(id), secret.bytes()),
            key_version: KEY_VERSION,
            last_step: 0,
            failures: 0,
            created_at: now,
            expires_at: Some(expires_at),
        };
        let args = (row, signed_in.clone(), self.ambient().clone());
        let kept = self.store().write(&AccountScope::OWN, args, |tx, (row, signed_in, ambient)| {
            Box::pin(async move {
                require_live(tx, signed_in, ambient.now()).await?;
                tx.replace_totp_set_up(row).await?;
                let memberships = tx.list_memberships(row.user).await?;
                let detail = json!({ "method": "otp" });
                tell_organizations(tx, &memberships, row.user, EventType::MfaSetUpBegun, &detail, ambient).await
            })
        });
        kept.await?;
        let uri = secret.uri(ISSUER, signed_in.user.email.as_str());
        let qr_svg = Zeroizing::new(TotpSecret::qr_svg(&uri));
        Ok(TotpShown { secret: secret.base32(), uri, qr_svg, expires_at })
    }

    /// Proves that the app shows the right codes; answers ten backup codes, shown once. They count from when the app does; those of an app that
    /// counts already do so until then.
    ///
    /// # Errors
    /// [`AppError::StepUp`]; [`AppError::Unauthenticated`] when the session has ended meanwhile; [`AppError::Conflict`] `no-set-up`; [`AppError::Invalid`] `wrong-code`; [`AppError::TooMany`], [`AppError::Busy`].
    pub async fn verify_totp(
        &self,
        signed_in: &SignedIn,
        code: &str,
        client: &Client,
    ) -> Result<Vec<BackupCode>, AppError> {
        signed_in.require_fresh(self.ambient().now())?;
        let proof = Proof::Code(code.to_owned());
        let args = (self.clone(), signed_in.clone(), proof.clone());
        let factors = self
            .store()
            .write_locked(&AccountScope::OWN, args, |tx, (app, signed_in, proof)| {
                Box::pin(async move {
                    let set_up = load_own_set_up(tx, signed_in, app.ambient().now()).await?;
                    let set_up = set_up.filter(|totp| totp.state == TotpState::Shown).ok_or_else(no_set_up)?;
                    let source = Source::Session(signed_in.session.id);
                    let factors = app.begin_factor(tx, signed_in.user.clone(), proof, source).await?;
                    Ok::<_, AppError>(Factors { totp: Some(set_up), ..factors })
                })
            })
            .await?;
        let judged = self.judge(&factors, &proof).await;
        let Some(right) = self.judged(&factors.attempt, judged).await? else {
            self.refuse_factor(&factors, &proof, client).await?;
            return Err(wrong_code("/code"));
        };
        let made = self.new_backup_codes().await;
        let (codes, hashes) = self.judged(&factors.attempt, made).await?;
        let args = (self.clone(), signed_in.clone(), factors, right, hashes);
        self.store()
            .write(&AccountScope::OWN, args, |tx, (app, signed_in, factors, right, hashes)| {
                Box::pin(async move {
                    let (user, now) = (factors.user.id, app.ambient().now());
                    require_live(tx, signed_in, now).await?;
                    let totp = factors.totp.as_ref().ok_or_else(no_set_up)?;
                    if !spend(tx, user, right, now).await? || !tx.verify_totp(totp.id).await? {
                        return Err(no_set_up());
                    }
                    factors.attempt.succeed(tx).await?;
                    tx.replace_backup_codes(totp.id, hashes, now).await?;
                    let memberships = tx.list_memberships(user).await?;
                    let detail = json!({ "count": hashes.len() });
                    tell_organizations(tx, &memberships, user, EventType::BackupCodesMade, &detail, app.ambient()).await
                })
            })
            .await?;
        Ok(codes)
    }

    async fn new_backup_codes(&self) -> Result<(Vec<BackupCode>, Vec<StoredPassword>), AppError> {
        let codes: Vec<BackupCode> = (0..CODES).map(|_| BackupCode::generate(self.ambient())).collect();
        let plain = codes.iter().filter_map(|code| Password::new(code.canonical())).collect();
        let hashes = self.accounts().hasher.hash_set(plain, self.ambient()).await?;
        Ok((codes, hashes))
    }

    /// Ends a set-up: the person says that the backup codes are kept. From here on the app is asked for. Every other session ends, and this
    /// one's token changes; when the person last proved who they are does not.
    ///
    /// # Errors
    /// [`AppError::StepUp`]; [`AppError::Conflict`] `no-set-up`; [`AppError::Unauthenticated`] when the session has ended meanwhile.
    pub async fn activate_totp(&self, signed_in: &SignedIn) -> Result<Opened, AppError> {
        signed_in.require_fresh(self.ambient().now())?;
        self.change_factors(signed_in, Change::Activate).await
    }

    /// Takes the second factor away, for who may be without one. Every other session ends, and this one's token changes.
    ///
    /// # Errors
    /// [`AppError::StepUp`]; [`AppError::NotFound`]; [`AppError::Conflict`] `second-factor-stays`; [`AppError::Unauthenticated`] when the
    /// session has ended meanwhile.
    pub async fn disable_mfa(&self, signed_in: &SignedIn) -> Result<Opened, AppError> {
        signed_in.require_fresh(self.ambient().now())?;
        self.change_factors(signed_in, Change::Disable).await
    }

    async fn change_factors(&self, signed_in: &SignedIn, change: Change) -> Result<Opened, AppError> {
        let (token, device) = (BrowserToken::generate(self.ambient()), NewDevice::generate(self.ambient()));
        let args =
            (signed_in.clone(), (token.hash(), device.clone()), change, self.sends_mail(), self.ambient().clone());
        let signed_in = self
            .store()
            .write(&AccountScope::OWN, args, |tx, (signed_in, (hash, device), change, sends_mail, ambient)| {
                Box::pin(async move {
                    let (now, session, user) = (ambient.now(), &signed_in.session, &signed_in.user);
                    let had = tx.load_factors(user.id).await?;
                    let (amr, notice, action) = match change {
                        Change::Activate => {
                            let set_up = load_own_set_up(tx, signed_in, now).await?.ok_or_else(no_set_up)?;
                            if !tx.activate_totp(user.id, set_up.id).await? {
                                return Err(no_set_up());
                            }
                            (AMR_MFA, Notice::MfaEnabled, EventType::MfaEnrolled)
                        }
                        Change::Disable => {
                            require_dispensable(tx, user, now).await?;
                            if !tx.delete_second_factors(user.id).await? {
                                return Err(AppError::NotFound { what: "second factor" });
                            }
                            (without_second_factor(&session.amr), Notice::MfaDisabled, EventType::MfaDisabled)
                        }
                    };
                    let mut renewed = signed_in.with_token(*hash, now);
                    amr.clone_into(&mut renewed.session.amr);
                    if !tx.renew_session(&session.token_hash, &renewed.session).await? {
                        return Err(AppError::Unauthenticated);
                    }
                    let memberships = end_everything(tx, user.id, Some(session.id), ambient).await?;
                    keep_browser(tx, &mut renewed, device, now).await?;
                    if *sends_mail {
                        tell_person(tx, user, notice, ambient).await?;
                    }
                    let detail = match change {
                        Change::Activate => json!({ "method": "otp" }),
                        Change::Disable => json!({ "before": factors_told(had) }),
                    };
                    tell_organizations(tx, &memberships, user.id, action, &detail, ambient).await?;
                    renewed.user.epoch += 1;
                    Ok(renewed)
                })
            })
            .await?;
        Ok(Opened { signed_in, token, device: Some(device.into_token()) })
    }

    /// Makes ten new backup codes; the old ones are worth nothing from here on. They are dear to hash and each time a letter goes out: three
    /// times in an hour, and then one in twenty minutes.
    ///
    /// # Errors
    /// [`AppError::StepUp`]; [`AppError::Conflict`] `no-set-up` without an authenticator app; [`AppError::TooMany`], [`AppError::Busy`];
    /// [`AppError::Unauthenticated`] when the session has ended meanwhile.
    pub async fn renew_backup_codes(&self, signed_in: &SignedIn) -> Result<Vec<BackupCode>, AppError> {
        signed_in.require_fresh(self.ambient().now())?;
        if self.show_mfa(signed_in).await?.active_since.is_none() {
            return Err(no_set_up());
        }
        let who = format!("backup codes of {}", signed_in.user.id);
        let attempt = self.attempt(Guarded::Mail, &who, Source::Stranger(None));
        let counted = self.store().write_locked(
            &AccountScope::OWN,
            (attempt.clone(), self.ambient().clone()),
            |tx, (attempt, ambient)| Box::pin(async move { attempt.begin(tx, ambient).await }),
        );
        counted.await?;
        let made = self.new_backup_codes().await;
        let (codes, hashes) = self.judged(&attempt, made).await?;
        let args = (signed_in.clone(), hashes, self.sends_mail(), self.ambient().clone());
        self.store()
            .write(&AccountScope::OWN, args, |tx, (signed_in, hashes, sends_mail, ambient)| {
                Box::pin(async move {
                    let user = &signed_in.user;
                    require_live(tx, signed_in, ambient.now()).await?;
                    let totp = tx.load_totp(user.id).await?.ok_or_else(no_set_up)?;
                    tx.replace_backup_codes(totp.id, hashes, ambient.now()).await?;
                    if *sends_mail {
                        tell_person(tx, user, Notice::BackupCodesMade, ambient).await?;
                    }
                    let memberships = tx.list_memberships(user.id).await?;
                    let detail = json!({ "count": hashes.len() });
                    tell_organizations(tx, &memberships, user.id, EventType::BackupCodesMade, &detail, ambient).await
                })
            })
            .await?;
        Ok(codes)
    }

    /// Takes the second factor of somebody away who has lost it; every session ends. For the operator only: no route leads here.
    ///
    /// # Errors
    /// [`AppError::NotFound`]; [`AppError::Invalid`] `invalid-email`.
    pub async fn reset_mfa_as_operator(&self, email: &str) -> Result<(), AppError> {
        let email = read_email(email)?;
        let counters = self.counters_of_identifier(email.as_str());
        let args = (email, counters, self.sends_mail(), self.ambient().clone());
        self.store()
            .write(&AccountScope::OWN, args, |tx, (email, counters, sends_mail, ambient)| {
                Box::pin(async move {
                    let user = tx
                        .load_user_by_email(email)
                        .await?
                        .ok_or(AppError::NotFound { what: "person with this address" })?;
                    let had = tx.load_factors(user.id).await?;
                    if !tx.delete_second_factors(user.id).await? {
                        return Err(AppError::NotFound { what: "second factor" });
                    }
                    for key in counters {
                        tx.lock_failures(key).await?;
                        tx.save_failures(key, bulkhead_model::throttle::Failures::NONE).await?;
                    }
                    if *sends_mail {
                        tell_person(tx, &user, Notice::MfaDisabled, ambient).await?;
                    }
                    for membership in end_everything(tx, user.id, None, ambient).await? {
                        tx.enter_org(membership.org).await?;
                        let event = AuditEvent {
                            action: EventType::MfaDisabled,
                            target: user.id.to_string(),
                            actor: Actor::System(SystemReason::Admin),
                            detail: json!({ "by": "operator", "before": factors_told(had) }),
                        };
                        tx.record_audit(&event, ambient).await?;
                    }
                    Ok::<_, AppError>(())
                })
            })
            .await
    }

    /// What the organization asks of its members besides a password, and what it takes for it.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn show_sign_in_policy(&self, caller: &Caller, org: OrgId) -> Result<SignInPolicy, AppError> {
        let scope = caller.authorize(org, Permission::SecurityRead)?;
        self.store().read(&scope, (), |tx, ()| Box::pin(async move { Ok(tx.load_sign_in_policy().await?) })).await
    }

    /// Changes what the organization asks of its members, and what it takes: from their next request on.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn change_sign_in_policy(
        &self,
        caller: &Caller,
        org: OrgId,
        policy: SignInPolicy,
    ) -> Result<(), AppError> {
        let scope = caller.authorize(org, Permission::SecurityWrite)?;
        let args = (policy, scope.actor().clone(), self.ambient().clone());
        self.store()
            .write(&scope, args, |tx, (policy, actor, ambient)| {
                Box::pin(async move {
                    // What was held when the request came may be gone by now.
                    let rights = Rights::load(tx, actor, ambient.now()).await?;
                    rights.require(Permission::SecurityWrite, Within::Organization)?;
                    let before = tx.load_sign_in_policy().await?;
                    save_policy(tx, &before, policy, actor, ambient).await
                })
            })
            .await
    }

    /// Changes whom the organization asks for a second factor, by the operator; what it takes stays.
    ///
    /// # Errors
    /// The store's.
    pub async fn change_mfa_policy_as_operator(&self, org: OrgId, mfa: MfaPolicy) -> Result<(), AppError> {
        let scope = SystemScope::new(SystemReason::Admin).for_org(org);
        self.store()
            .write(&scope, (mfa, self.ambient().clone()), |tx, (mfa, ambient)| {
                Box::pin(async move {
                    let before = tx.load_sign_in_policy().await?;
                    let policy = before.clone().with_mfa(*mfa);
                    save_policy(tx, &before, &policy, &Actor::System(SystemReason::Admin), ambient).await
                })
            })
            .await
    }
}

#[derive(Clone, Copy)]
enum Change {
    Activate,
    Disable,
}

/// A sign-in that waits for its second factor, and whose it is.
pub(crate) async fn waiting(tx: &mut Tx, hash: &SecretHash, now: Timestamp) -> Result<(SignInStep, User), AppError> {
    let step = tx.load_sign_in_step(hash).await?.filter(|step| now < step.expires_at);
    let step = step.ok_or(AppError::Unauthenticated)?;
    let user = require_same(tx, &step).await?;
    Ok((step, user))
}

/// The person of a waiting sign-in, unless they were disabled or changed a credential since.
async fn require_same(tx: &mut Tx, step: &SignInStep) -> Result<User, AppError> {
    let user = tx.load_user(step.user).await?.filter(|user| user.is_active && user.epoch == step.epoch);
    user.ok_or(AppError::Unauthenticated)
}

/// Refuses to take a second factor away that somebody asks for.
pub(crate) async fn require_dispensable(tx: &mut Tx, user: &User, now: Timestamp) -> Result<(), AppError> {
    let stays = |message: &str| Err(AppError::conflict("second-factor-stays", message));
    if user.is_super_admin {
        return stays("who administers the platform keeps a second factor: replace it by setting another one up");
    }
    for membership in tx.list_memberships(user.id).await?.into_iter().filter(|membership| membership.is_active) {
        tx.enter_org(membership.org).await?;
        let roles = load_roles(tx).await?;
        let is_admin = load_standing(tx, user.id, &roles).await?.administers(now);
        if tx.load_sign_in_policy().await?.mfa.asks(is_admin) {
            return stays("an organization of yours asks for a second factor: replace it by setting another one up");
        }
    }
    Ok(())
}

/// Which second factors somebody had.
fn factors_told(had: bulkhead_model::mfa::Factors) -> Value {
    json!({ "otp": had.app, "passkeys": had.passkey })
}

fn told(policy: &SignInPolicy) -> Value {
    json!({ "mfa": policy.mfa, "methods": policy.methods(), "trusts_devices": policy.trusts_devices })
}

async fn save_policy(
    tx: &mut Tx,
    before: &SignInPolicy,
    policy: &SignInPolicy,
    actor: &Actor,
    ambient: &Ambient,
) -> Result<(), AppError> {
    if before == policy {
        return Ok(());
    }
    // What is known of members holds the policy as well.
    tx.begin_policy_epoch(ambient.now()).await?;
    tx.save_sign_in_policy(policy, ambient.now()).await?;
    let event = AuditEvent {
        action: EventType::SettingsChanged,
        target: "sign_in_policy".to_owned(),
        actor: actor.clone(),
        detail: json!({ "before": told(before), "after": told(policy) }),
    };
    Ok(tx.record_audit(&event, ambient).await?)
}
