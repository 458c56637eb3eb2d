use std::any::Any;
use std::error::Error;
use std::fmt;

use crate::{http, secret};

/// Why a contribution gives no result. Messages are for people and hold no secrets.
///
/// Every error converts to a failure by `?`: the SDK's own ones to what they mean (a denied request and a missing secret are [`Refused`](Self::Refused), a
/// lost connection is [`Transient`](Self::Transient)), all others to [`Permanent`](Self::Permanent). For that reason a failure is not itself a
/// [`std::error::Error`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The input or a setting is wrong; the same input fails again.
    InvalidInput(String),
    /// Trying again may help; `retry_after_ms` says when, `None` leaves it to the host.
    Transient { message: String, retry_after_ms: Option<u64> },
    /// Trying again will not help.
    Permanent(String),
    /// A permission is missing. The admin reads the message.
    Refused(String),
}

impl Failure {
    pub fn invalid_input(message: impl Into<String>) -> Self {
        Self::InvalidInput(message.into())
    }

    pub fn transient(message: impl Into<String>) -> Self {
        Self::Transient { message: message.into(), retry_after_ms: None }
    }

    pub fn transient_after_ms(message: impl Into<String>, retry_after_ms: u64) -> Self {
        Self::Transient { message: message.into(), retry_after_ms: Some(retry_after_ms) }
    }

    pub fn permanent(message: impl Into<String>) -> Self {
        Self::Permanent(message.into())
    }

    pub fn refused(message: impl Into<String>) -> Self {
        Self::Refused(message.into())
    }

    /// The name of the case as the WIT file writes it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::InvalidInput(_) => "invalid-input",
            Self::Transient { .. } => "transient",
            Self::Permanent(_) => "permanent",
            Self::Refused(_) => "refused",
        }
    }

    #[must_use]
    pub fn message(&self) -> &str {
        match self {
            Self::InvalidInput(message)
            | Self::Transient { message, .. }
            | Self::Permanent(message)
            | Self::Refused(message) => message,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind(), self.message())
    }
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let any: &dyn Any = &error;
        if let Some(error) = any.downcast_ref::<http::Error>() {
            return match error {
                http::Error::Denied(_) => Self::refused(error.to_string()),
                http::Error::Timeout(_) | http::Error::Connection(_) => Self::transient(error.to_string()),
                http::Error::Invalid(_) | http::Error::TooLarge(_) | http::Error::Failed(_) => {
                    Self::permanent(error.to_string())
                }
            };
        }
        if let Some(error) = any.downcast_ref::<secret::Error>() {
            return match error {
                secret::Error::NotGranted(_) | secret::Error::NotSet(_) => Self::refused(error.to_string()),
                secret::Error::TooLarge => Self::permanent(error.to_string()),
            };
        }
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self::Permanent(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<u32, Failure> {
        Ok(text.parse::<u32>()?)
    }

    fn request(error: http::Error) -> Result<(), Failure> {
        Err(error)?;
        Ok(())
    }

    #[test]
    fn any_error_is_permanent() {
        assert_eq!(parse("7"), Ok(7));
        assert_eq!(parse("x"), Err(Failure::permanent("invalid digit found in string")));
    }

    #[test]
    fn a_denied_request_is_a_refusal_and_a_lost_one_transient() {
        let denied = request(http::Error::Denied("GET https://a.example/".into())).expect_err("it failed");
        assert_eq!(denied.kind(), "refused");
        let lost = request(http::Error::Connection("reset".into())).expect_err("it failed");
        assert_eq!(lost.kind(), "transient");
    }

    #[test]
    fn a_secret_that_is_not_set_is_a_refusal() {
        let failure = Failure::from(secret::Error::NotSet("token".into()));
        assert_eq!(failure, Failure::refused("the secret token is granted but has no value yet"));
    }
}
