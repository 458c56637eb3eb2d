//! `[mail]`: letters leave through a relay by SMTP.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bulkhead_app::mail::{Post, PostError};
use bulkhead_model::id::MailId;
use bulkhead_model::letter::Written;
use futures_util::future::BoxFuture;
use lettre::message::{Mailbox, header};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};

use crate::config::MailSection;

/// How long the relay may take for one step.
const STEP_TIME_MAX: Duration = Duration::from_secs(20);

/// A relay that letters are handed to.
struct Relay {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    /// Behind the `@` of message ids.
    domain: String,
}

/// The relay that the configuration names, if it names one.
pub(crate) fn relay(config: &MailSection) -> Result<Option<Arc<dyn Post>>> {
    let Some(url) = &config.url else { return Ok(None) };
    let from: Mailbox =
        config.from.parse().context("mail.from is an address such as \"Bulkhead <noreply@example.com>\"")?;
    let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(url.reveal())
        // The address holds a password, which no error may show.
        .map_err(|_| anyhow::anyhow!("mail.url is an address such as smtps://user:password@relay.example.com"))?
        .timeout(Some(STEP_TIME_MAX))
        .build();
    let domain = from.email.domain().to_owned();
    Ok(Some(Arc::new(Relay { transport, from, domain })))
}

impl Relay {
    fn message(&self, id: MailId, letter: &Written) -> Result<Message, PostError> {
        let never = |error: &dyn std::error::Error| PostError::Never(format!("the letter cannot be written: {error}"));
        let to: Mailbox = letter.to.as_str().parse().map_err(|error: lettre::address::AddressError| never(&error))?;
        Message::builder()
            .from(self.from.clone())
            .to(to)
            .subject(letter.subject.clone())
            // The same for a second copy, so that a mailbox can tell.
            .message_id(Some(format!("<{id}@{}>", self.domain)))
            .header(header::ContentType::TEXT_PLAIN)
            .body(letter.body.clone())
            .map_err(|error| never(&error))
    }
}

impl Post for Relay {
    fn send<'a>(&'a self, id: MailId, letter: &'a Written) -> BoxFuture<'a, Result<(), PostError>> {
        Box::pin(async move {
            let message = self.message(id, letter)?;
            match self.transport.send(message).await {
                Ok(_) => Ok(()),
                Err(error) if error.is_permanent() => Err(PostError::Never(error.to_string())),
                Err(error) => Err(PostError::Later(error.to_string())),
            }
        })
    }
}
