//! Passkeys (WebAuthn): made and removed, and used to sign in by themselves, as a second factor, and to prove again who it is.
//!
//! Each use is a challenge and its answer. The challenge is a row that goes with the first answer, whatever that is worth; the answer is judged
//! in the transaction that acts because of it, by the counter as it is then. The authenticator always verifies who holds it, so that a passkey
//! is two factors by itself.

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::account::is_person_name;
use bulkhead_model::id::{PasskeyId, SignInAttemptId, UserId};
use bulkhead_model::letter::Notice;
use bulkhead_model::mfa::{AMR_PASSKEY, AMR_PASSWORD_AND_PASSKEY, with_passkey, without_second_factor};
use bulkhead_model::passkey::{CEREMONY_LIVES, CeremonyPurpose, PASSKEYS_MAX, RelyingParty};
use bulkhead_model::permission::AccountScope;
use bulkhead_model::session::BrowserToken;
use bulkhead_model::throttle::Guarded;
use bulkhead_model::time::Timestamp;
use bulkhead_model::token::SecretHash;
use bulkhead_store::account::User;
use bulkhead_store::passkey::{Ceremony, StoredPasskey};
use bulkhead_store::throttle::SignInAttempt;
use bulkhead_store::{StoreError, Tx};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;
use webauthn_rs::prelude::{
    DiscoverableAuthentication, Passkey, PasskeyRegistration, PublicKeyCredential, RegisterPublicKeyCredential,
    Webauthn, WebauthnBuilder, WebauthnError,
};

use crate::account::{Attempt, Source, end_everything, tell_organizations, tell_person};
use crate::mfa::{no_set_up, require_dispensable, waiting};
use crate::sign_in::{
    Client, NewDevice, NewSession, Opened, Proven, SignedIn, begin_session, keep_browser, known_device, require_live,
    trust_browser,
};
use crate::{App, AppError};

/// In the ledger: proof of possession of a key (RFC 8176).
const METHOD: &str = "pop";
/// What authenticators show.
const SITE_NAME: &str = "Bulkhead";

/// What passkeys are made and judged with.
pub(crate) fn site(party: &RelyingParty) -> Webauthn {
    let mut builder = WebauthnBuilder::new(party.id(), &party.origins()[0])
        .expect("a relying party's name is its origins' domain, or what that ends with")
        .rp_name(SITE_NAME)
        .timeout(CEREMONY_LIVES);
    for origin in &party.origins()[1..] {
        builder = builder.append_allowed_origin(origin);
    }
    builder.build().expect("nothing that was said can be wrong any more")
}

/// A challenge for a browser's authenticator.
#[derive(Debug)]
pub struct Challenge {
    /// What `navigator.credentials` is asked with (`PublicKeyCredentialCreationOptionsJSON` or `…RequestOptionsJSON`).
    pub options: Value,
    pub expires_at: Timestamp,
}

/// What an answer is worth.
enum Judged {
    /// With what is to be kept of the passkey from here on.
    Right(String),
    Wrong,
    /// The signature is right, and the counter was seen before: there may be two of it.
    Copied,
}

/// What became of an answer.
enum Answered<T> {
    Accepted(T),
    Refused,
}

fn invalid_passkey() -> AppError {
    AppError::invalid(
        "invalid-passkey",
        "/credential",
        "the passkey's answer is not right, or comes too late: try again",
    )
}

/// A library's value as it is stored.
fn stored<T: serde::Serialize>(what: &'static str, value: &T) -> Result<String, AppError> {
    serde_json::to_string(value).map_err(|error| AppError::Store(StoreError::Corrupt { what, why: error.to_string() }))
}

fn read_stored<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T, AppError> {
    serde_json::from_str(text).map_err(|error| AppError::Store(StoreError::Corrupt { what, why: error.to_string() }))
}

/// The library's options as a browser takes them, without what they are wrapped in.
fn options_of(what: &impl serde::Serialize) -> Result<Value, AppError> {
    let failed = |error: serde_json::Error| StoreError::Corrupt { what: "a passkey's options", why: error.to_string() };
    let mut wrapped = serde_json::to_value(what).map_err(failed)?;
    Ok(wrapped["publicKey"].take())
}

fn failed(error: &WebauthnError) -> AppError {
    AppError::Store(StoreError::Corrupt { what: "a passkey's challenge", why: error.to_string() })
}

/// Judges an answer by a challenge and by the passkey as it is stored now.
fn judge(
    site: &Webauthn,
    presented: &PublicKeyCredential,
    ceremony: &Ceremony,
    known: &StoredPasskey,
) -> Result<Judged, AppError> {
    let state: DiscoverableAuthentication = read_stored("a passkey's challenge", &ceremony.state)?;
    let mut passkey: Passkey = read_stored("a passkey", &known.credential)?;
    // Who it is for, where the authenticator says it; where nobody else did, it has to.
    let is_theirs = match presented.get_user_unique_id() {
        Some(handle) => handle == known.handle.as_bytes(),
        None => ceremony.user.is_some(),
    };
    if !is_theirs {
        return Ok(Judged::Wrong);
    }
    match site.finish_discoverable_authentication_v2(presented, state, &passkey) {
        Ok(result) => {
            passkey.update_credential(&result);
            Ok(Judged::Right(stored("a passkey", &passkey)?))
        }
        Err(WebauthnError::CredentialPossibleCompromise) => Ok(Judged::Copied),
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "a passkey's answer is not right");
            Ok(Judged::Wrong)
        }
    }
}

/// The challenge of this cookie, once, if its time is not over.
async fn take(
    tx: &mut Tx,
    hash: &SecretHash,
    purpose: CeremonyPurpose,
    now: Timestamp,
) -> Result<Option<Ceremony>, AppError> {
    let found = tx.use_ceremony(hash, purpose).await?;
    Ok(found.filter(|ceremony| now < ceremony.expires_at))
}

/// The passkey that answers, whoever's it is.
async fn find(tx: &mut Tx, presented: &PublicKeyCredential) -> Result<Option<StoredPasskey>, AppError> {
    Ok(tx.load_passkey_by_credential(presented.get_credential_id()).await?)
}

impl App {
    pub(crate) fn passkey_site(&self) -> Result<&Webauthn, AppError> {
        self.accounts().passkeys.as_ref().ok_or_else(|| {
            let message =
                "this server is reached under no name that passkeys can be made for: its operator can give it one";
            AppError::conflict("no-passkeys", message)
        })
    }

    /// A challenge that an existing passkey answers: one of these, or whichever the browser has for this site.
    async fn challenge(
        &self,
        tx: &mut Tx,
        hash: SecretHash,
        purpose: CeremonyPurpose,
        whose: Option<(UserId, &[StoredPasskey])>,
    ) -> Result<Challenge, AppError> {
        let now = self.ambient().now();
        let (options, state) =
            self.passkey_site()?.start_discoverable_authentication().map_err(|error| failed(&error))?;
        let mut options = options_of(&options)?;
        if let Some(object) = options.as_object_mut() {
            // What is left out is asked of every passkey that the browser has for this site.
            object.remove("allowCredentials");
            if let Some((_, known)) = whose {
                let allowed = known.iter().map(allow).collect::<Result<Vec<_>, _>>()?;
                object.insert("allowCredentials".to_owned(), Value::Array(allowed));
            }
        }
        let ceremony = Ceremony {
            purpose,
            token_hash: hash,
            user: whose.map(|(user, _)| user),
            handle: None,
            state: stored("a passkey's challenge", &state)?,
            created_at: now,
            expires_at: now.plus(CEREMONY_LIVES),
        };
        // What nobody answered goes with those that come: a crowd of strangers fills five minutes and no more.
        tx.remove_expired_ceremonies(now).await?;
        tx.replace_ceremony(&ceremony).await?;
        Ok(Challenge { options, expires_at: ceremony.expires_at })
    }

    fn passkey_row(&self, attempt: &Attempt, user: UserId, passed: bool, client: &Client) -> SignInAttempt {
        SignInAttempt {
            id: SignInAttemptId::new(self.ambient()),
            user: Some(user),
            identifier: attempt.identifier,
            method: METHOD.to_owned(),
            passed,
            device: None,
            address: client.address(),
            agent: client.agent(),
            network: None,
            created_at: self.ambient().now(),
            // It is told in the same transaction: whoever has the passkey's name has seen its owner's sign-in.
            is_told: true,
        }
    }

    /// Writes an answer that was refused down, and tells it where the person works.
    async fn refuse_passkey(
        &self,
        tx: &mut Tx,
        user: &User,
        attempt: &Attempt,
        judged: &Judged,
        client: &Client,
    ) -> Result<(), AppError> {
        let is_copied = matches!(judged, Judged::Copied);
        let row = self.passkey_row(attempt, user.id, false, client);
        tx.record_sign_in_attempt(&row).await?;
        if is_copied && self.sends_mail() {
            tell_person(tx, user, Notice::PasskeyCopied, self.ambient()).await?;
        }
        let memberships = tx.list_memberships(user.id).await?;
        let detail = json!({ "method": METHOD, "address": row.address, "counter_seen_before": is_copied });
        tell_organizations(tx, &memberships, user.id, EventType::MfaRefused, &detail, self.ambient()).await
    }

    /// What follows from an answer that was right, in its transaction.
    async fn accept_passkey(
        &self,
        tx: &mut Tx,
        known: &StoredPasskey,
        kept: &str,
        (user, attempt): (&User, &Attempt),
        client: &Client,
    ) -> Result<(), AppError> {
        tx.update_passkey(known.id, kept, self.ambient().now()).await?;
        attempt.succeed(tx).await?;
        tx.record_sign_in_attempt(&self.passkey_row(attempt, user.id, true, client)).await?;
        let memberships = tx.list_memberships(user.id).await?;
        let detail = json!({ "method": METHOD, "passkey": known.id });
        tell_organizations(tx, &memberships, user.id, EventType::MfaPassed, &detail, self.ambient()).await
    }

    /// Judges the answer of somebody who is known already, and does what follows from it either way.
    async fn judge_known(
        &self,
        tx: &mut Tx,
        presented: &PublicKeyCredential,
        ceremony: Option<Ceremony>,
        (user, attempt): (&User, &Attempt),
        client: &Client,
    ) -> Result<bool, AppError> {
        let ceremony = ceremony.filter(|ceremony| ceremony.user == Some(user.id));
        let known = find(tx, presented).await?.filter(|known| known.user == user.id);
        let judged = match (&ceremony, &known) {
            (Some(ceremony), Some(known)) => judge(self.passkey_site()?, presented, ceremony, known)?,
            _ => Judged::Wrong,
        };
        if let (Judged::Right(kept), Some(known)) = (&judged, &known) {
            self.accept_passkey(tx, known, kept, (user, attempt), client).await?;
            return Ok(true);
        }
        self.refuse_passkey(tx, user, attempt, &judged, client).await?;
        Ok(false)
    }

    /// The person's passkeys, the oldest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn list_own_passkeys(&self, signed_in: &SignedIn) -> Result<Vec<StoredPasskey>, AppError> {
        let listed = self.store().read(&AccountScope::OWN, signed_in.user.id, |tx, user| {
            Box::pin(async move { tx.list_passkeys(*user).await.map_err(AppError::from) })
        });
        listed.await
    }

    /// Begins to make a passkey. Only this session goes on with it.
    ///
    /// # Errors
    /// [`AppError::StepUp`]; [`AppError::Conflict`] `no-passkeys`, `too-many-passkeys`; [`AppError::Unauthenticated`] when the session has
    /// ended meanwhile.
    pub async fn begin_passkey(&self, signed_in: &SignedIn) -> Result<Challenge, AppError> {
        self.passkey_site()?;
        signed_in.require_fresh(self.ambient().now())?;
        let handle = uuid::Builder::from_random_bytes(self.ambient().random()).into_uuid();
        let args = (self.clone(), signed_in.clone(), handle);
        self.store()
            .write(&AccountScope::OWN, args, |tx, (app, signed_in, handle)| {
                Box::pin(async move {
                    let (now, user) = (app.ambient().now(), &signed_in.user);
                    require_live(tx, signed_in, now).await?;
                    let known = tx.list_passkeys(user.id).await?;
                    require_room(&known)?;
                    let handle = known.first().map_or(*handle, |passkey| passkey.handle);
                    let excluded = known.into_iter().map(|passkey| passkey.credential_id).collect();
                    let (options, state) = app
                        .passkey_site()?
                        .start_passkey_registration(handle, user.email.as_str(), &user.name, Some(excluded))
                        .map_err(|error| failed(&error))?;
                    let mut options = options_of(&options)?;
                    // So that it can sign in by itself, where the authenticator has room for that.
                    options["authenticatorSelection"]["residentKey"] = json!("preferred");
                    options["authenticatorSelection"]["requireResidentKey"] = json!(false);
                    let ceremony = Ceremony {
                        purpose: CeremonyPurpose::Register,
                        token_hash: signed_in.session.token_hash,
                        user: Some(user.id),
                        handle: Some(handle),
                        state: stored("a passkey's challenge", &state)?,
                        created_at: now,
                        expires_at: now.plus(CEREMONY_LIVES),
                    };
                    tx.replace_ceremony(&ceremony).await?;
                    let memberships = tx.list_memberships(user.id).await?;
                    let (action, detail) = (EventType::MfaSetUpBegun, json!({ "method": METHOD }));
                    tell_organizations(tx, &memberships, user.id, action, &detail, app.ambient()).await?;
                    Ok(Challenge { options, expires_at: ceremony.expires_at })
                })
            })
            .await
    }

    /// Makes a passkey the person's. From here on it signs in, and a password alone does not. Every other session ends, and this one's token
    /// changes; when the person last proved who they are does not.
    ///
    /// # Errors
    /// [`AppError::StepUp`]; [`AppError::Invalid`] `invalid-name`, `invalid-passkey`; [`AppError::Conflict`] `no-set-up`, `no-passkeys`, `too-many-passkeys`;
    /// [`AppError::Unauthenticated`] when the session has ended meanwhile.
    pub async fn add_passkey(&self, signed_in: &SignedIn, name: &str, credential: Value) -> Result<Opened, AppError> {
        self.passkey_site()?;
        signed_in.require_fresh(self.ambient().now())?;
        if !is_person_name(name) {
            return Err(AppError::invalid("invalid-name", "/name", "a name has 1 to 100 characters on one line"));
        }
        let presented: RegisterPublicKeyCredential =
            serde_json::from_value(credential).map_err(|_| invalid_passkey())?;
        let (token, device) = (BrowserToken::generate(self.ambient()), NewDevice::generate(self.ambient()));
        let fresh = (PasskeyId::new(self.ambient()), token.hash(), device.clone());
        let args = (self.clone(), signed_in.clone(), presented, name.to_owned(), fresh);
        let answered = self.store().write(&AccountScope::OWN, args, |tx, args| Box::pin(add(tx, args))).await?;
        match answered {
            Answered::Accepted(signed_in) => Ok(Opened { signed_in, token, device: Some(device.into_token()) }),
            Answered::Refused => Err(invalid_passkey()),
        }
    }

    /// Removes a passkey, unless it is the last second factor of somebody who is asked for one. Every other session ends, and this one's token
    /// changes.
    ///
    /// # Errors
    /// [`AppError::StepUp`]; [`AppError::NotFound`]; [`AppError::Conflict`] `second-factor-stays`; [`AppError::Unauthenticated`] when the
    /// session has ended meanwhile.
    pub async fn remove_passkey(&self, signed_in: &SignedIn, id: PasskeyId) -> Result<Opened, AppError> {
        signed_in.require_fresh(self.ambient().now())?;
        let (token, device) = (BrowserToken::generate(self.ambient()), NewDevice::generate(self.ambient()));
        let args = (self.clone(), signed_in.clone(), id, (token.hash(), device.clone()));
        let signed_in = self
            .store()
            .write(&AccountScope::OWN, args, |tx, (app, signed_in, id, (hash, device))| {
                Box::pin(async move {
                    let (now, user) = (app.ambient().now(), &signed_in.user);
                    let mut renewed = signed_in.with_token(*hash, now);
                    let known = tx.list_passkeys(user.id).await?.into_iter().find(|known| known.id == *id);
                    if !tx.delete_passkey(user.id, *id).await? {
                        return Err(AppError::NotFound { what: "passkey" });
                    }
                    if !tx.load_factors(user.id).await?.any() {
                        require_dispensable(tx, user, now).await?;
                        without_second_factor(&signed_in.session.amr).clone_into(&mut renewed.session.amr);
                    }
                    let detail = json!({ "passkey": id, "before": { "name": known.map(|known| known.name) } });
                    let told = (Notice::PasskeyRemoved, EventType::PasskeyRemoved, detail);
                    app.renew_after_change(tx, signed_in, renewed, device, told).await
                })
            })
            .await?;
        Ok(Opened { signed_in, token, device: Some(device.into_token()) })
    }

    /// What follows from another second factor: the session goes on with another token, and everything else of the person has ended.
    async fn renew_after_change(
        &self,
        tx: &mut Tx,
        signed_in: &SignedIn,
        mut renewed: SignedIn,
        device: &NewDevice,
        (notice, action, detail): (Notice, EventType, Value),
    ) -> Result<SignedIn, AppError> {
        let (session, user, ambient) = (&signed_in.session, &signed_in.user, self.ambient());
        require_live(tx, signed_in, ambient.now()).await?;
        if !tx.renew_session(&session.token_hash, &renewed.session).await? {
            return Err(AppError::Unauthenticated);
        }
        let memberships = end_everything(tx, user.id, Some(session.id), ambient).await?;
        keep_browser(tx, &mut renewed, device, ambient.now()).await?;
        if self.sends_mail() {
            tell_person(tx, user, notice, ambient).await?;
        }
        tell_organizations(tx, &memberships, user.id, action, &detail, ambient).await?;
        renewed.user.epoch += 1;
        Ok(renewed)
    }

    /// Begins a sign-in by passkey alone: the same for everybody, since nobody is named. The answer has to come with the token.
    ///
    /// # Errors
    /// [`AppError::Conflict`] `no-passkeys`.
    pub async fn begin_passkey_sign_in(&self) -> Result<(BrowserToken, Challenge), AppError> {
        let token = BrowserToken::generate(self.ambient());
        let challenge =
            self.store().write_locked(&AccountScope::OWN, (self.clone(), token.hash()), |tx, (app, hash)| {
                Box::pin(async move { app.challenge(tx, *hash, CeremonyPurpose::SignIn, None).await })
            });
        Ok((token, challenge.await?))
    }

    /// Signs in by a passkey alone, which is two factors.
    ///
    /// # Errors
    /// [`AppError::Unauthenticated`] for every kind of wrong, in the same words; [`AppError::TooMany`] `too-many-attempts` by address;
    /// [`AppError::Conflict`] `no-passkeys`.
    pub async fn sign_in_by_passkey(
        &self,
        token: &BrowserToken,
        credential: Value,
        client: &Client,
    ) -> Result<Opened, AppError> {
        self.passkey_site()?;
        let presented: PublicKeyCredential =
            serde_json::from_value(credential).map_err(|_| AppError::Unauthenticated)?;
        let fresh = NewSession::generate(self.ambient());
        let args = (self.clone(), token.hash(), presented, client.clone(), fresh.clone());
        let answered = self.store().write(&AccountScope::OWN, args, |tx, args| Box::pin(open(tx, args))).await?;
        let outcome = if matches!(answered, Answered::Accepted(_)) { "passed" } else { "refused" };
        metrics::counter!("bulkhead_sign_ins_total", "outcome" => outcome).increment(1);
        match answered {
            Answered::Accepted(signed_in) => Ok(fresh.opened(signed_in)),
            Answered::Refused => Err(AppError::Unauthenticated),
        }
    }

    /// A challenge for the passkeys of somebody whose password was right.
    ///
    /// # Errors
    /// [`AppError::Unauthenticated`] for a sign-in that does not wait, any more; [`AppError::Conflict`] `no-passkeys`.
    pub async fn begin_passkey_second(&self, token: &BrowserToken) -> Result<Challenge, AppError> {
        self.store()
            .write_locked(&AccountScope::OWN, (self.clone(), token.hash()), |tx, (app, hash)| {
                Box::pin(async move {
                    let (step, user) = waiting(tx, hash, app.ambient().now()).await?;
                    let known = require_passkeys(tx, user.id).await?;
                    let whose = Some((user.id, &known[..]));
                    app.challenge(tx, step.token_hash, CeremonyPurpose::SecondFactor, whose).await
                })
            })
            .await
    }

    /// Goes on with a sign-in that waits for a second factor, by a passkey; `trusts` lets the browser stand for it from now on, where that
    /// may be.
    ///
    /// # Errors
    /// [`AppError::Unauthenticated`] for a sign-in that does not wait, any more; [`AppError::Invalid`] `invalid-passkey`;
    /// [`AppError::TooMany`]; [`AppError::Conflict`] `no-passkeys`.
    pub async fn sign_in_second_by_passkey(
        &self,
        token: &BrowserToken,
        (credential, trusts): (Value, bool),
        client: &Client,
    ) -> Result<Opened, AppError> {
        self.passkey_site()?;
        let presented: PublicKeyCredential = serde_json::from_value(credential).map_err(|_| invalid_passkey())?;
        let fresh = NewSession::generate(self.ambient());
        let args = (self.clone(), token.hash(), presented, client.clone(), fresh.clone());
        let args = (args, trusts);
        let answered = self.store().write(&AccountScope::OWN, args, |tx, args| Box::pin(open_second(tx, args))).await?;
        count_second(&answered);
        match answered {
            Answered::Accepted(signed_in) => {
                metrics::counter!("bulkhead_sign_ins_total", "outcome" => "passed").increment(1);
                Ok(fresh.opened(signed_in))
            }
            Answered::Refused => Err(invalid_passkey()),
        }
    }

    /// A challenge for the passkeys of somebody who is signed in.
    ///
    /// # Errors
    /// [`AppError::Conflict`] `no-passkeys`; [`AppError::Unauthenticated`] when the session has ended meanwhile.
    pub async fn begin_passkey_step_up(&self, signed_in: &SignedIn) -> Result<Challenge, AppError> {
        self.store()
            .write(&AccountScope::OWN, (self.clone(), signed_in.clone()), |tx, (app, signed_in)| {
                Box::pin(async move {
                    require_live(tx, signed_in, app.ambient().now()).await?;
                    let known = require_passkeys(tx, signed_in.user.id).await?;
                    let whose = Some((signed_in.user.id, &known[..]));
                    app.challenge(tx, signed_in.session.token_hash, CeremonyPurpose::StepUp, whose).await
                })
            })
            .await
    }

    /// Proves again who it is by a passkey; the session's token changes.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `invalid-passkey`; [`AppError::TooMany`]; [`AppError::Conflict`] `no-passkeys`; [`AppError::Unauthenticated`] when
    /// the session has ended meanwhile.
    pub async fn step_up_by_passkey(
        &self,
        signed_in: &SignedIn,
        credential: Value,
        client: &Client,
    ) -> Result<Opened, AppError> {
        self.passkey_site()?;
        let presented: PublicKeyCredential = serde_json::from_value(credential).map_err(|_| invalid_passkey())?;
        let token = BrowserToken::generate(self.ambient());
        let args = (self.clone(), signed_in.clone(), presented, client.clone(), token.hash());
        let answered = self.store().write(&AccountScope::OWN, args, |tx, args| Box::pin(prove(tx, args))).await?;
        count_second(&answered);
        match answered {
            Answered::Accepted(signed_in) => Ok(Opened { signed_in, token, device: None }),
            Answered::Refused => Err(invalid_passkey()),
        }
    }
}

fn count_second<T>(answered: &Answered<T>) {
    let outcome = if matches!(answered, Answered::Accepted(_)) { "passed" } else { "refused" };
    metrics::counter!("bulkhead_second_factors_total", "method" => METHOD, "outcome" => outcome).increment(1);
}

fn require_room(known: &[StoredPasskey]) -> Result<(), AppError> {
    if known.len() < PASSKEYS_MAX as usize {
        return Ok(());
    }
    let message = format!("you have {PASSKEYS_MAX} passkeys: remove one first");
    Err(AppError::conflict("too-many-passkeys", message))
}

/// What a browser is told of a passkey that may answer.
fn allow(passkey: &StoredPasskey) -> Result<Value, AppError> {
    let credential: Value = read_stored("a passkey", &passkey.credential)?;
    let transports = credential["cred"]["transports"].clone();
    let mut allowed = json!({ "type": "public-key", "id": credential["cred"]["cred_id"] });
    if transports.is_array() {
        allowed["transports"] = transports;
    }
    Ok(allowed)
}

async fn require_passkeys(tx: &mut Tx, user: UserId) -> Result<Vec<StoredPasskey>, AppError> {
    let known = tx.list_passkeys(user).await?;
    if known.is_empty() {
        return Err(AppError::conflict("no-passkeys", "you have no passkey: prove who you are in another way"));
    }
    Ok(known)
}

type Adding = (App, SignedIn, RegisterPublicKeyCredential, String, (PasskeyId, SecretHash, NewDevice));

/// An answer that is not right takes the challenge along, hence no error.
async fn add(tx: &mut Tx, args: &Adding) -> Result<Answered<SignedIn>, AppError> {
    let (app, signed_in, presented, name, (id, hash, device)) = args;
    let (now, user) = (app.ambient().now(), &signed_in.user);
    require_live(tx, signed_in, now).await?;
    let ceremony = take(tx, &signed_in.session.token_hash, CeremonyPurpose::Register, now).await?;
    let ceremony = ceremony.filter(|ceremony| ceremony.user == Some(user.id)).ok_or_else(no_set_up)?;
    let handle: Uuid = ceremony.handle.ok_or_else(no_set_up)?;
    require_room(&tx.list_passkeys(user.id).await?)?;
    let state: PasskeyRegistration = read_stored("a passkey's challenge", &ceremony.state)?;
    let passkey = match app.passkey_site()?.finish_passkey_registration(presented, &state) {
        Ok(passkey) => passkey,
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "a new passkey is not right");
            return Ok(Answered::Refused);
        }
    };
    // Whoever says that somebody else's passkey is theirs would sign in as nobody, and keep its owner out.
    if tx.load_passkey_by_credential(passkey.cred_id()).await?.is_some() {
        return Ok(Answered::Refused);
    }
    let row = StoredPasskey {
        id: *id,
        user: user.id,
        handle,
        credential_id: passkey.cred_id().clone(),
        name: name.clone(),
        credential: stored("a passkey", &passkey)?,
        created_at: now,
        used_at: None,
    };
    tx.insert_passkey(&row).await?;
    let mut renewed = signed_in.with_token(*hash, now);
    renewed.session.amr = with_passkey(&signed_in.session.amr);
    let told = (Notice::PasskeyAdded, EventType::PasskeyAdded, json!({ "passkey": id, "name": name }));
    app.renew_after_change(tx, signed_in, renewed, device, told).await.map(Answered::Accepted)
}

type Opening = (App, SecretHash, PublicKeyCredential, Client, NewSession);

/// Counted by the address alone: whoever has nothing but a passkey's name delays nobody who has the passkey.
async fn open(tx: &mut Tx, args: &Opening) -> Result<Answered<SignedIn>, AppError> {
    let (app, hash, presented, client, fresh) = args;
    let now = app.ambient().now();
    let by_address = app.attempt_of_nobody(Guarded::Passkey, client.address);
    by_address.begin(tx, app.ambient()).await?;
    let Some(ceremony) = take(tx, hash, CeremonyPurpose::SignIn, now).await? else { return Ok(Answered::Refused) };
    let Some(known) = find(tx, presented).await? else { return Ok(Answered::Refused) };
    let user = tx.load_user(known.user).await?.filter(|user| user.is_active);
    let Some(user) = user else { return Ok(Answered::Refused) };
    let judged = judge(app.passkey_site()?, presented, &ceremony, &known)?;
    let Judged::Right(kept) = &judged else {
        app.refuse_passkey(tx, &user, &by_address, &judged, client).await?;
        return Ok(Answered::Refused);
    };
    app.accept_passkey(tx, &known, kept, (&user, &by_address), client).await?;
    let device = client.device.as_ref().map(BrowserToken::hash);
    let device = known_device(tx, device, Some(user.id)).await?.map(|device| device.id);
    let proven = Proven::Now(AMR_PASSKEY);
    begin_session(tx, app, user, client, device, fresh, proven).await.map(Answered::Accepted)
}

async fn open_second(
    tx: &mut Tx,
    ((app, hash, presented, client, fresh), trusts): &(Opening, bool),
) -> Result<Answered<SignedIn>, AppError> {
    let now = app.ambient().now();
    let (step, user) = waiting(tx, hash, now).await?;
    let device = client.device.as_ref().map(BrowserToken::hash);
    let device = known_device(tx, device, Some(user.id)).await?.map(|device| device.id);
    let attempt = app.attempt(Guarded::Passkey, user.email.as_str(), Source::new(device, client.address));
    attempt.begin(tx, app.ambient()).await?;
    let ceremony = take(tx, hash, CeremonyPurpose::SecondFactor, now).await?;
    if !app.judge_known(tx, presented, ceremony, (&user, &attempt), client).await? {
        return Ok(Answered::Refused);
    }
    // Of two that go on with one sign-in the second one comes too late, and takes back what it did.
    if !tx.use_sign_in_step(step.id).await? {
        return Err(AppError::Unauthenticated);
    }
    let proven = Proven::Now(AMR_PASSWORD_AND_PASSKEY);
    let signed_in = begin_session(tx, app, user, client, step.device, fresh, proven).await?;
    if *trusts {
        trust_browser(tx, &signed_in, app.ambient()).await?;
    }
    Ok(Answered::Accepted(signed_in))
}

type Proving = (App, SignedIn, PublicKeyCredential, Client, SecretHash);

async fn prove(tx: &mut Tx, args: &Proving) -> Result<Answered<SignedIn>, AppError> {
    let (app, signed_in, presented, client, hash) = args;
    let (now, session, user) = (app.ambient().now(), &signed_in.session, &signed_in.user);
    require_live(tx, signed_in, now).await?;
    let attempt = app.attempt(Guarded::Passkey, user.email.as_str(), Source::Session(session.id));
    attempt.begin(tx, app.ambient()).await?;
    let ceremony = take(tx, &session.token_hash, CeremonyPurpose::StepUp, now).await?;
    if !app.judge_known(tx, presented, ceremony, (user, &attempt), client).await? {
        return Ok(Answered::Refused);
    }
    let mut renewed = signed_in.with_token(*hash, now);
    AMR_PASSKEY.clone_into(&mut renewed.session.amr);
    renewed.session.times.auth_at = now;
    if !tx.renew_session(&session.token_hash, &renewed.session).await? {
        return Err(AppError::Unauthenticated);
    }
    let memberships = tx.list_memberships(user.id).await?;
    let detail = json!({ "session": session.id, "method": METHOD });
    tell_organizations(tx, &memberships, user.id, EventType::StepUpPassed, &detail, app.ambient()).await?;
    Ok(Answered::Accepted(renewed))
}
