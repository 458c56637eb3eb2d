//! Codes by mail as a second factor: the weakest, for members who have none of their own, where their organization takes it.
//!
//! Mail also lets people choose another password. So that one mailbox does not make both factors, a code by mail counts for nobody whose password
//! mail chose, until they proved something else.

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::backup_code::BackupCode;
use bulkhead_model::id::SignInStepId;
use bulkhead_model::letter::Letter;
use bulkhead_model::mfa::Method;
use bulkhead_model::password::Password;
use bulkhead_model::permission::AccountScope;
use bulkhead_model::session::BrowserToken;
use bulkhead_model::throttle::Guarded;
use bulkhead_model::time::Timestamp;
use bulkhead_store::Tx;
use bulkhead_store::account::User;
use serde_json::json;

use crate::access::administers;
use crate::account::{Source, tell_organizations};
use crate::mfa::waiting;
use crate::sign_in::{Client, known_device};
use crate::{App, AppError};

/// Wrong codes for one sign-in, however often one was mailed.
pub(crate) const FAILURES_MAX: u32 = 5;

impl App {
    /// Whether a code by mail is a second factor of the person: an organization of theirs asks for one and takes it, mail reaches them, they give
    /// nobody rights, and mail did not choose the password.
    pub(crate) async fn may_mail_code(&self, tx: &mut Tx, user: &User, now: Timestamp) -> Result<bool, AppError> {
        if !self.sends_mail() || user.email_verified_at.is_none() || user.is_super_admin {
            return Ok(false);
        }
        if tx.is_password_by_mail(user.id).await? {
            return Ok(false);
        }
        let memberships = tx.list_memberships(user.id).await?;
        if administers(tx, user.id, &memberships, now).await? {
            return Ok(false);
        }
        for membership in memberships.iter().filter(|membership| membership.is_active) {
            tx.enter_org(membership.org).await?;
            let policy = tx.load_sign_in_policy().await?;
            if policy.mfa.asks(false) && policy.methods().contains(&Method::Email) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Mails a code for a sign-in that waits, to who has no second factor of their own; a code before it is worth nothing from here on.
    ///
    /// # Errors
    /// [`AppError::Unauthenticated`] for a sign-in that does not wait, any more; [`AppError::Conflict`] `no-email-code`; [`AppError::TooMany`].
    pub async fn mail_sign_in_code(&self, token: &BrowserToken, client: &Client) -> Result<(), AppError> {
        let args = (self.clone(), token.hash(), client.clone());
        self.store()
            .write(&AccountScope::OWN, args, |tx, (app, hash, client)| {
                Box::pin(async move {
                    let now = app.ambient().now();
                    let (step, user) = waiting(tx, hash, now).await?;
                    if tx.load_factors(user.id).await?.any() || !app.may_mail_code(tx, &user, now).await? {
                        let message = "no code by mail counts for you: go on with what you have";
                        return Err(AppError::conflict("no-email-code", message));
                    }
                    let device = client.device.as_ref().map(BrowserToken::hash);
                    let device = known_device(tx, device, Some(user.id)).await?.map(|device| device.id);
                    // Whoever has the password fills no mailbox, and keeps nobody from their own code who comes from a known browser.
                    let who = format!("code of {}", user.id);
                    let attempt = app.attempt(Guarded::Mail, &who, Source::new(device, client.address));
                    attempt.begin(tx, app.ambient()).await?;
                    tx.enqueue_mail(&user.email, &Letter::SignInCode { step: step.id }, app.ambient()).await?;
                    let memberships = tx.list_memberships(user.id).await?;
                    let (action, detail) = (EventType::MfaCodeMailed, json!({ "address": client.address() }));
                    tell_organizations(tx, &memberships, user.id, action, &detail, app.ambient()).await
                })
            })
            .await
    }

    /// Makes the code of a letter that is about to be sent; `None` when the sign-in waits no more.
    pub(crate) async fn keep_email_code(&self, step: SignInStepId) -> Result<Option<String>, AppError> {
        let code = BackupCode::generate(self.ambient());
        let Some(plain) = Password::new(code.canonical()) else { return Ok(None) };
        let hash = self.accounts().hasher.hash(plain, self.ambient()).await?;
        let kept = self
            .store()
            .write_locked(&AccountScope::OWN, (step, hash, self.ambient().clone()), |tx, (step, hash, ambient)| {
                Box::pin(async move {
                    if !tx.has_sign_in_step(*step, ambient.now()).await? {
                        return Ok::<_, AppError>(false);
                    }
                    tx.replace_email_code(*step, hash, ambient.now()).await?;
                    Ok(true)
                })
            })
            .await?;
        Ok(kept.then(|| code.reveal()))
    }
}
