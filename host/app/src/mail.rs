//! Letters: put down by use cases, sent by a loop on each node. A letter is sent at least once; the id in it tells a second copy.

use std::time::Duration;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::id::{MailId, SignInAttemptId, UserId};
use bulkhead_model::letter::{self, Letter, Written};
use bulkhead_model::link::Purpose;
use bulkhead_model::permission::{AccountScope, Actor, SystemReason};
use bulkhead_store::link::Link;
use bulkhead_store::mail::Mail;
use futures_util::future::BoxFuture;
use serde_json::json;

use crate::account::tell_of;
use crate::supervise::Supervisor;
use crate::{App, AppError};

/// Why a letter was not taken.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PostError {
    /// It may be taken later.
    #[error("{0}")]
    Later(String),
    /// It never will be.
    #[error("{0}")]
    Never(String),
}

/// Where letters go: a mail relay.
pub trait Post: Send + Sync {
    /// Hands a letter over; `id` becomes part of its message id, so that a second copy is known as one.
    fn send<'a>(&'a self, id: MailId, letter: &'a Written) -> BoxFuture<'a, Result<(), PostError>>;
}

/// A letter that is being sent is nobody else's for this long; the relay gets less.
const LEASE: Duration = Duration::from_mins(2);
const SEND_TIME_MAX: Duration = Duration::from_mins(1);
/// Without a wake-up the letters are looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Distances of further tries: doubled each time, up to the longest.
const RETRY_FIRST: Duration = Duration::from_secs(30);
const RETRY_LONGEST: Duration = Duration::from_hours(1);
const ATTEMPTS_MAX: u32 = 12;
/// Letters that were given up, and attempts to sign in, are kept for so long.
const FAILED_KEPT: Duration = Duration::from_hours(24 * 7);
const ATTEMPTS_KEPT: Duration = Duration::from_hours(24 * 90);
/// A day after its last failure a counter says nothing any more (`bulkhead_model::throttle`).
const COUNTERS_KEPT: Duration = Duration::from_hours(48);
const TIDY_EVERY: Duration = Duration::from_mins(10);

impl App {
    /// Whether this server sends letters.
    #[must_use]
    pub fn sends_mail(&self) -> bool {
        self.accounts().post.is_some()
    }

    pub(crate) fn require_mail(&self) -> Result<(), AppError> {
        if self.sends_mail() {
            return Ok(());
        }
        Err(AppError::conflict("no-mail", "this server sends no mail: ask its operator for a link"))
    }

    /// The address that a link's token is used at. It begins with the configured address, whatever a request calls this server.
    #[must_use]
    pub fn link_url(&self, purpose: Purpose, token: &str) -> String {
        // Behind the `#`: no server and no log sees it.
        format!("{}/link#{}={token}", self.accounts().public_url, purpose.as_str())
    }

    /// Sends letters, tells of refused sign-ins, and removes what people leave behind, until shutdown.
    pub fn start_mail(&self, supervisor: &Supervisor) {
        let (app, stop) = (self.clone(), supervisor.stop_token());
        supervisor.spawn_loop("mail", move || {
            let (app, stop) = (app.clone(), stop.clone());
            async move {
                while !stop.is_cancelled() {
                    if let Err(error) = app.tell_refused_attempts().await {
                        tracing::warn!(error = &error as &dyn std::error::Error, "refused sign-ins were not told of");
                    }
                    if let Some(post) = app.accounts().post.clone()
                        && let Err(error) = app.send_due_mail(&*post).await
                    {
                        tracing::warn!(error = &error as &dyn std::error::Error, "letters could not be looked at");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(LOOK_EVERY) => {}
                        () = stop.cancelled() => return,
                    }
                }
            }
        });
        let (app, stop) = (self.clone(), supervisor.stop_token());
        supervisor.spawn_loop("people", move || {
            let (app, stop) = (app.clone(), stop.clone());
            async move {
                while !stop.is_cancelled() {
                    if let Err(error) = app.tidy_people().await {
                        tracing::warn!(error = &error as &dyn std::error::Error, "ended sessions were not removed");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(TIDY_EVERY) => {}
                        () = stop.cancelled() => return,
                    }
                }
            }
        });
    }

    /// Removes sessions, counters and letters that count for nothing any more. Nothing rests on it: limits are judged at each use.
    ///
    /// # Errors
    /// The store's.
    pub async fn tidy_people(&self) -> Result<(), AppError> {
        self.store()
            .write_locked(&AccountScope::OWN, self.ambient().now(), |tx, now| {
                Box::pin(async move {
                    tx.remove_expired_tokens(*now).await?;
                    tx.remove_expired_sessions(*now).await?;
                    tx.remove_expired_steps(*now).await?;
                    tx.remove_expired_links(*now).await?;
                    tx.remove_expired_revoke_links(*now).await?;
                    tx.remove_quiet_failures(now.minus(COUNTERS_KEPT)).await?;
                    tx.remove_failed_mail(MailId::first_at(now.minus(FAILED_KEPT))).await?;
                    tx.remove_sign_in_attempts(SignInAttemptId::first_at(now.minus(ATTEMPTS_KEPT))).await?;
                    Ok(())
                })
            })
            .await
    }

    /// Sends every letter that is due; answers how many the relay took.
    ///
    /// # Errors
    /// The store's. What the relay says is written down with the letter.
    pub async fn send_due_mail(&self, post: &dyn Post) -> Result<usize, AppError> {
        let mut sent = 0;
        loop {
            let now = self.ambient().now();
            let claimed = self.store().write_locked(&AccountScope::OWN, (now, now.plus(LEASE)), |tx, (now, until)| {
                Box::pin(async move { Ok::<_, AppError>(tx.claim_mail(*now, *until).await?) })
            });
            let Some(mail) = claimed.await? else { return Ok(sent) };
            let kind = mail.letter.as_ref().map_or("unknown", Letter::kind);
            let outcome = match self.write_letter(&mail).await? {
                Some(written) => match tokio::time::timeout(SEND_TIME_MAX, post.send(mail.id, &written)).await {
                    Ok(outcome) => outcome,
                    Err(_) => Err(PostError::Later("the relay took too long".to_owned())),
                },
                // Nobody is to get it.
                None => Ok(()),
            };
            let label = match &outcome {
                Ok(()) => "sent",
                Err(PostError::Later(_)) if mail.attempts < ATTEMPTS_MAX => "later",
                Err(_) => "failed",
            };
            metrics::counter!("bulkhead_mails_total", "kind" => kind, "outcome" => label).increment(1);
            if let Err(error) = &outcome {
                tracing::warn!(mail = %mail.id, kind, attempts = mail.attempts, error = %error, "a letter was not taken");
            }
            sent += usize::from(outcome.is_ok());
            let factor = 1_u32.checked_shl(mail.attempts.saturating_sub(1)).unwrap_or(u32::MAX);
            let next_at = self.ambient().now().plus(RETRY_FIRST.saturating_mul(factor).min(RETRY_LONGEST));
            let args = (mail, outcome, next_at);
            self.store()
                .write_locked(&AccountScope::OWN, args, |tx, (mail, outcome, next_at)| {
                    Box::pin(async move {
                        match outcome {
                            Ok(()) => tx.finish_mail(mail.id).await?,
                            Err(PostError::Later(error)) if mail.attempts < ATTEMPTS_MAX => {
                                tx.fail_mail(mail.id, error, Some(*next_at)).await?
                            }
                            Err(PostError::Later(error) | PostError::Never(error)) => {
                                tx.fail_mail(mail.id, error, None).await?
                            }
                        };
                        Ok::<_, AppError>(())
                    })
                })
                .await?;
        }
    }

    /// The letter as it is sent, with its link made now; `None` when nobody is to get it any more.
    async fn write_letter(&self, mail: &Mail) -> Result<Option<Written>, AppError> {
        let Some(letter) = mail.letter.clone() else { return Ok(None) };
        let to = mail.recipient.clone();
        let link = match &letter {
            Letter::ResetPassword => {
                let fresh = self.new_link(Purpose::ChoosePassword, None, Some(to.clone()));
                self.keep_link(fresh, None, mail.attempts == 1).await?
            }
            Letter::VerifyEmail { user, epoch } => {
                let fresh = self.new_link(Purpose::VerifyEmail, None, Some(to.clone()));
                self.keep_link(fresh, Some((*user, *epoch)), false).await?
            }
            Letter::Invitation { org, invitation, .. } => {
                let token = self.accounts().links.reveal(Purpose::Join, &[&org.uuid(), &invitation.uuid()]);
                Some(self.link_url(Purpose::Join, &token))
            }
            Letter::SignInCode { step } => self.keep_email_code(*step).await?,
            Letter::Notice { user: Some(user), .. } => Some(self.keep_revoke_link(*user, mail).await?),
            Letter::Notice { user: None, .. } => Some(format!("{}/link#forgotten", self.accounts().public_url)),
        };
        Ok(link.map(|link| letter::write(&letter, to, &link)))
    }

    /// Keeps a link for the person of this id and epoch, or of the link's address; `None` when there is no such person any more, or none who
    /// may sign in. `tells`: that somebody asked for another password is told here, where it is known who is meant.
    async fn keep_link(
        &self,
        link: Link,
        user: Option<(UserId, i64)>,
        tells: bool,
    ) -> Result<Option<String>, AppError> {
        let args = (link.clone(), user, tells, self.ambient().clone());
        let kept = self
            .store()
            .write(&AccountScope::OWN, args, |tx, (link, user, tells, ambient)| {
                Box::pin(async move {
                    let found = match (user, &link.email) {
                        (Some((user, epoch)), _) => tx.load_user(*user).await?.filter(|user| user.epoch == *epoch),
                        (None, Some(email)) => tx.load_user_by_email(email).await?,
                        (None, None) => None,
                    };
                    let Some(user) = found.filter(|user| user.is_active) else { return Ok::<_, AppError>(false) };
                    tx.void_links(user.id, link.purpose, ambient.now()).await?;
                    tx.insert_link(&Link { user: Some(user.id), epoch: Some(user.epoch), ..link.clone() }).await?;
                    if *tells {
                        let memberships = tx.list_memberships(user.id).await?;
                        let asked = (user.id, &Actor::System(SystemReason::Accounts));
                        let (action, detail) = (EventType::PasswordResetRequested, json!({}));
                        tell_of(tx, &memberships, asked, action, &detail, ambient).await?;
                    }
                    Ok(true)
                })
            })
            .await?;
        Ok(kept.then(|| self.link_url(link.purpose, &self.link_token(&link))))
    }
}
