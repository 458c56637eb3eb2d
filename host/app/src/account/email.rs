//! Addresses: proving one, changing it, and getting a letter to choose another password.

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::account::Email;
use bulkhead_model::letter::{Letter, Notice};
use bulkhead_model::link::Purpose;
use bulkhead_model::permission::AccountScope;
use bulkhead_model::throttle::Guarded;
use bulkhead_store::account::User;
use serde_json::json;

use super::attempts::Source;
use super::{end_everything, invalid_link, read_email, tell_organizations, tell_person};
use crate::sign_in::{Client, SignedIn, require_live};
use crate::{App, AppError};

/// Letters that may wait at once, before more is asked for that might be for nobody. Each takes some hundred bytes and some milliseconds.
const WAITING_MAX: u32 = 10_000;
/// By then thousands have left.
const FULL_RETRY_AFTER_MS: u64 = 60_000;

impl App {
    /// Asks for a letter to choose another password. Nobody learns whether anybody has the address: the same is done for everybody, and
    /// who it is is looked at when the letter is sent.
    ///
    /// # Errors
    /// [`AppError::Conflict`] `no-mail`; [`AppError::TooMany`] `too-many-attempts`; [`AppError::Busy`] while too many letters wait.
    pub async fn ask_for_reset(&self, email: &str, client: &Client) -> Result<(), AppError> {
        self.require_mail()?;
        // What is no address gets no letter, and the same answer.
        let Ok(email) = email.parse::<Email>() else { return Ok(()) };
        let attempt = self.attempt(Guarded::Mail, email.as_str(), Source::Stranger(client.address));
        self.store()
            .write_locked(
                &AccountScope::OWN,
                (email, attempt, self.ambient().clone()),
                |tx, (email, attempt, ambient)| {
                    Box::pin(async move {
                        attempt.begin(tx, ambient).await?;
                        if tx.is_mail_full(WAITING_MAX).await? {
                            return Err(AppError::Busy { what: "the post", retry_after_ms: FULL_RETRY_AFTER_MS });
                        }
                        tx.enqueue_mail(email, &Letter::ResetPassword, ambient).await?;
                        Ok(())
                    })
                },
            )
            .await
    }

    /// Asks for a letter that proves an address: the person's own, or one to change to. Changing needs a fresh proof of who it is, and the
    /// address of now is told.
    ///
    /// # Errors
    /// [`AppError::Conflict`] `no-mail`; [`AppError::Invalid`] `invalid-email`; [`AppError::StepUp`]; [`AppError::TooMany`];
    /// [`AppError::Unauthenticated`] when the session has ended meanwhile.
    pub async fn ask_to_verify(&self, signed_in: &SignedIn, email: &str) -> Result<(), AppError> {
        self.require_mail()?;
        let email = read_email(email)?;
        if email != signed_in.user.email {
            signed_in.require_fresh(self.ambient().now())?;
        }
        // By who asks, so that one person fills few mailboxes.
        let attempt = self.attempt(Guarded::Mail, &signed_in.user.id.to_string(), Source::Stranger(None));
        let args = (signed_in.clone(), email, attempt, self.ambient().clone());
        self.store()
            .write(&AccountScope::OWN, args, |tx, (signed_in, email, attempt, ambient)| {
                Box::pin(async move {
                    let user = &signed_in.user;
                    require_live(tx, signed_in, ambient.now()).await?;
                    attempt.begin(tx, ambient).await?;
                    let letter = Letter::VerifyEmail { user: user.id, epoch: user.epoch };
                    tx.enqueue_mail(email, &letter, ambient).await?;
                    if *email == user.email {
                        return Ok(());
                    }
                    tell_person(tx, user, Notice::EmailChangeAsked, ambient).await?;
                    let memberships = tx.list_memberships(user.id).await?;
                    let detail = json!({ "before": user.email, "after": email });
                    let action = EventType::EmailChangeRequested;
                    tell_organizations(tx, &memberships, user.id, action, &detail, ambient).await
                })
            })
            .await
    }

    /// Proves an address by the token that was sent there. If it is another one than before, it becomes the person's, every session ends,
    /// and the old address is told.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `invalid-link`, also when somebody else has the address by now.
    pub async fn verify_email(&self, token: &str) -> Result<(), AppError> {
        let id = self.open_link(Purpose::VerifyEmail, token)?;
        let sends_mail = self.sends_mail();
        self.store()
            .write(&AccountScope::OWN, (id, sends_mail, self.ambient().clone()), |tx, (id, sends_mail, ambient)| {
                Box::pin(async move {
                    let now = ambient.now();
                    let link = tx.use_link(*id, Purpose::VerifyEmail, now).await?.ok_or_else(invalid_link)?;
                    let (user, email) = link.user.zip(link.email).ok_or_else(invalid_link)?;
                    // What ended everything else of the person ended the link.
                    let is_theirs = |user: &User| user.is_active && link.epoch == Some(user.epoch);
                    let user = tx.load_user(user).await?.filter(is_theirs).ok_or_else(invalid_link)?;
                    if user.email == email {
                        let memberships = tx.list_memberships(user.id).await?;
                        tx.verify_user_email(user.id, &email, now).await?;
                        return tell_organizations(
                            tx,
                            &memberships,
                            user.id,
                            EventType::EmailVerified,
                            &json!({}),
                            ambient,
                        )
                        .await;
                    }
                    if tx.load_user_by_email(&email).await?.is_some() {
                        return Err(invalid_link());
                    }
                    tx.update_user_email(user.id, &email, now).await?;
                    let memberships = end_everything(tx, user.id, None, ambient).await?;
                    if *sends_mail {
                        tell_person(tx, &user, Notice::EmailChanged, ambient).await?;
                    }
                    let detail = json!({ "before": user.email, "after": email });
                    tell_organizations(tx, &memberships, user.id, EventType::EmailChanged, &detail, ambient).await
                })
            })
            .await
    }
}
