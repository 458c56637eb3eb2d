//! Letters that the host writes to people: what waits to be sent, and how it reads. What waits holds no link: it is made when the letter
//! is sent, so that neither a row nor a backup is enough to use one.

use serde::{Deserialize, Serialize};

use crate::account::Email;
use crate::id::{InvitationId, OrgId, SignInStepId, UserId};
use crate::link::Purpose;

/// What a letter is about. Stored as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Letter {
    /// Somebody wants to choose another password for this address. Whether anybody has it is looked at when the letter is sent, so that
    /// asking takes the same time for everybody.
    ResetPassword,
    /// Proves that mail to the address arrives, and makes it the person's.
    VerifyEmail {
        user: UserId,
        /// The person's when it was asked for: what ends everything else takes this letter back as well.
        epoch: i64,
    },
    /// Somebody is to join an organization.
    Invitation { org: OrgId, invitation: InvitationId, org_name: String, inviter: String },
    /// A code for a sign-in that waits. It is made when the letter is sent.
    SignInCode { step: SignInStepId },
    /// Tells of something that the person should know of, and can do something about.
    Notice {
        notice: Notice,
        at: String,
        /// Whose account it is about, whoever has the address by now; none in letters of older versions.
        #[serde(default)]
        user: Option<UserId>,
    },
}

/// What a person is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    PasswordChanged,
    EmailChanged,
    /// Somebody who is signed in wants the account to use another address.
    EmailChangeAsked,
    NewDevice,
    /// Somebody tries to sign in as them again and again.
    ManyFailures,
    MfaEnabled,
    MfaDisabled,
    BackupCodeUsed,
    /// Three are left, or fewer.
    BackupCodesLow,
    BackupCodesMade,
    PasskeyAdded,
    PasskeyRemoved,
    /// It answered with a counter that was used before: there may be two of it.
    PasskeyCopied,
}

impl Letter {
    /// For metrics and logs.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::ResetPassword => "reset_password",
            Self::VerifyEmail { .. } => "verify_email",
            Self::Invitation { .. } => "invitation",
            Self::SignInCode { .. } => "sign_in_code",
            Self::Notice { .. } => "notice",
        }
    }

    /// The link that the letter carries.
    #[must_use]
    pub const fn purpose(&self) -> Option<Purpose> {
        match self {
            Self::ResetPassword => Some(Purpose::ChoosePassword),
            Self::VerifyEmail { .. } => Some(Purpose::VerifyEmail),
            Self::Invitation { .. } => Some(Purpose::Join),
            Self::SignInCode { .. } => None,
            Self::Notice { user, .. } => match user {
                Some(_) => Some(Purpose::Revoke),
                None => None,
            },
        }
    }
}

/// A letter as it is sent: plain text, so that nothing in it can pretend to be something else.
#[derive(Clone, PartialEq, Eq)]
pub struct Written {
    pub to: Email,
    pub subject: String,
    pub body: String,
}

impl std::fmt::Debug for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The body holds a link.
        f.debug_struct("Written").field("to", &self.to).field("subject", &self.subject).finish_non_exhaustive()
    }
}

/// Text that somebody else chose, on one line and without what a mail program makes a link of.
fn quoted(text: &str) -> String {
    let plain: String = text.chars().filter(|letter| !letter.is_control()).take(100).collect();
    plain.replace("://", " ").replace('.', "\u{2024}")
}

/// Writes a letter. `link` is the whole address, for letters that carry one, or the code.
#[must_use]
pub fn write(letter: &Letter, to: Email, link: &str) -> Written {
    let (subject, text) = match letter {
        Letter::ResetPassword => (
            "Choose a new password".to_owned(),
            format!(
                "Somebody, probably you, asked to choose a new password for this address.\n\n  {link}\n\nThe link works once, for an \
                 hour. If it was not you, do nothing: your password stays as it is."
            ),
        ),
        Letter::VerifyEmail { .. } => (
            "Confirm your address".to_owned(),
            format!(
                "This address is to be used for an account.\n\n  {link}\n\nThe link works once, for a day. If it was not you, do \
                 nothing."
            ),
        ),
        Letter::Invitation { org_name, inviter, .. } => (
            format!("Invitation to {}", quoted(org_name)),
            format!(
                "{} invites you to work in the organization {}.\n\n  {link}\n\nThe link works once, for a week. If you do not know \
                 what this is about, do nothing.",
                quoted(inviter),
                quoted(org_name)
            ),
        ),
        Letter::SignInCode { .. } => (
            "Your code".to_owned(),
            format!(
                "Somebody, probably you, signs in to your account with your password. This code goes on with it, once, within five minutes of the \
                 password:\n\n  {link}\n\nNobody of ours asks for it. If it was not you, choose another password: somebody has yours."
            ),
        ),
        Letter::Notice { notice, at, user } => {
            let (subject, what) = match notice {
                Notice::PasswordChanged => ("Your password was changed", "Your password was changed"),
                Notice::EmailChanged => (
                    "Your address was changed",
                    "Your account uses another address from now on, and this one no longer opens it. That was done",
                ),
                Notice::EmailChangeAsked => (
                    "Another address for your account",
                    "Somebody who is signed in as you, probably you, asked for another address in place of this one. It changes when a link that \
                     was sent there is followed. It was asked for",
                ),
                Notice::MfaEnabled => (
                    "A second factor was set up",
                    "Signing in to your account asks for a code of an authenticator app from now on. That was set up",
                ),
                Notice::MfaDisabled => (
                    "Your second factor was taken away",
                    "Your account is open to your password alone since it was taken away",
                ),
                Notice::BackupCodeUsed => {
                    ("A backup code was used", "One of your backup codes was used, and your password,")
                }
                Notice::BackupCodesLow => (
                    "Few backup codes are left",
                    "One of your backup codes was used, and your password. You have three or fewer left: make new ones. It was used",
                ),
                Notice::BackupCodesMade => (
                    "New backup codes",
                    "New backup codes were made for your account, and the old ones are worth nothing, since",
                ),
                Notice::PasskeyAdded => (
                    "A passkey was added",
                    "A passkey was added to your account, which opens it from now on. It was added",
                ),
                Notice::PasskeyRemoved => {
                    ("A passkey was removed", "One of your passkeys opens your account no longer. It was removed")
                }
                Notice::PasskeyCopied => (
                    "A passkey was refused",
                    "One of your passkeys counted backwards, as it does when somebody has a copy of it. Remove it, and add another one. It was refused",
                ),
                Notice::ManyFailures => (
                    "Many sign-ins were refused",
                    "Somebody tried to sign in to your account with a wrong password ten times within a day. Your password held. The last time was",
                ),
                Notice::NewDevice => {
                    ("A new sign-in", "Somebody signed in to your account in a browser that was not used before,")
                }
            };
            let otherwise = if user.is_some() {
                "follow this link, and say so there. It ends every session, token and API key of your account and takes away what was added to \
                 it since; your password is worth nothing from then on, and you get a letter to choose another one. The link works once, for a \
                 week, and signs nobody in"
            } else {
                "choose a new password at once, which ends every session"
            };
            let body = format!("{what} at {at}.\n\nIf that was you, do nothing. If not, {otherwise}:\n\n  {link}");
            (subject.to_owned(), body)
        }
    };
    Written { to, subject, body: format!("{text}\n\n-- \nBulkhead\n") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ambient::Ambient;
    use crate::time::Timestamp;

    #[test]
    fn letters_carry_their_link_and_nothing_that_others_smuggle_in() {
        let ambient = Ambient::manual(Timestamp::from_micros(0), 1);
        let letter = Letter::Invitation {
            org: OrgId::new(&ambient),
            invitation: InvitationId::new(&ambient),
            org_name: "Free money\r\nBcc: x@evil.test https://evil.test/x".to_owned(),
            inviter: "evil.test".to_owned(),
        };
        let written = write(&letter, "ada@example.com".parse().unwrap(), "https://bulkhead.test/link#join=x");
        assert_eq!(written.body.matches("https://").count(), 1, "{}", written.body);
        assert!(!written.subject.contains(['\r', '\n']) && !written.body.contains("evil.test"), "{written:?}");
        assert!(!format!("{written:?}").contains("join=x"), "it prints no link");
    }

    #[test]
    fn what_waits_holds_no_link() {
        let ambient = Ambient::manual(Timestamp::from_micros(0), 1);
        let letter = Letter::VerifyEmail { user: UserId::new(&ambient), epoch: 3 };
        let text = serde_json::to_string(&letter).unwrap();
        assert_eq!(serde_json::from_str::<Letter>(&text).unwrap(), letter);
        assert_eq!(letter.purpose(), Some(Purpose::VerifyEmail));
        assert!(text.contains("verify_email"), "{text}");
    }

    #[test]
    fn an_alert_carries_the_way_to_end_it_and_one_of_an_older_version_is_read() {
        let ambient = Ambient::manual(Timestamp::from_micros(0), 1);
        let old: Letter = serde_json::from_str(r#"{"kind":"notice","notice":"new_device","at":"then"}"#).unwrap();
        assert_eq!(old, Letter::Notice { notice: Notice::NewDevice, at: "then".to_owned(), user: None });
        assert_eq!(old.purpose(), None);
        let new =
            Letter::Notice { notice: Notice::NewDevice, at: "then".to_owned(), user: Some(UserId::new(&ambient)) };
        assert_eq!(new.purpose(), Some(Purpose::Revoke));
        let written = write(&new, "ada@example.com".parse().unwrap(), "https://bulkhead.test/link#revoke=x");
        assert!(written.body.contains("signs nobody in") && written.body.contains("#revoke=x"), "{}", written.body);
    }
}
