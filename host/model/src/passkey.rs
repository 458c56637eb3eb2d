//! Passkeys (WebAuthn level 3): which site they are made for, and how many and how long. What is signed, and by whom, is judged where
//! the library is (`host/app/src/passkey.rs`).

use std::time::Duration;

use url::{Host, Url};

/// Passkeys that a person can have at once.
pub const PASSKEYS_MAX: u32 = 10;
/// How long a browser has to answer a challenge. Source: reference/core-services.md, a.3 (60 to 300 s).
pub const CEREMONY_LIVES: Duration = Duration::from_mins(5);

/// What a challenge is for: an answer to one of a purpose is of no use for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CeremonyPurpose {
    /// Makes a passkey a person's.
    Register,
    /// Signs in by the passkey alone.
    SignIn,
    /// Goes on with a sign-in whose password was right.
    SecondFactor,
    /// Proves again who it is.
    StepUp,
}

impl CeremonyPurpose {
    pub const ALL: [Self; 4] = [Self::Register, Self::SignIn, Self::SecondFactor, Self::StepUp];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::SignIn => "sign_in",
            Self::SecondFactor => "second_factor",
            Self::StepUp => "step_up",
        }
    }

    /// Reads what [`as_str`](Self::as_str) writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.as_str() == text)
    }
}

/// The site that passkeys are made for: authenticators bind them to its name, and browsers answer to its pages alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelyingParty {
    id: String,
    /// One at least.
    origins: Vec<Url>,
}

/// Why passkeys cannot be made for a site.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelyingPartyError {
    #[error(
        "{0} is no origin for passkeys: it begins with https:// (or is http://localhost), names a domain, and holds no path"
    )]
    Origin(String),
    #[error("passkeys for {id} are of no use at {origin}: name the origin's domain, or one that it ends with")]
    Id { id: String, origin: String },
}

/// An origin that browsers make passkeys at: one that nobody on the way can take the place of.
fn read_origin(text: &str) -> Result<Url, RelyingPartyError> {
    let refused = || RelyingPartyError::Origin(text.to_owned());
    let url = Url::parse(text).map_err(|_| refused())?;
    let Some(Host::Domain(domain)) = url.host() else { return Err(refused()) };
    let is_secure = match url.scheme() {
        "https" => true,
        "http" => domain == "localhost" || domain.ends_with(".localhost"),
        _ => false,
    };
    let is_bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    let is_anonymous = url.username().is_empty() && url.password().is_none();
    if is_secure && is_bare && is_anonymous { Ok(url) } else { Err(refused()) }
}

/// Whether an origin may use passkeys of this name. A name of one label would be everybody's below it.
fn is_of(id: &str, origin: &Url) -> bool {
    let Some(domain) = origin.domain() else { return false };
    domain == id || (id.contains('.') && domain.strip_suffix(id).is_some_and(|rest| rest.ends_with('.')))
}

impl RelyingParty {
    /// What the configuration says: by default the name and origin of `public_url`; `None` where that is nothing to make passkeys for (an
    /// address without a domain, or without TLS) and nothing else is said.
    ///
    /// # Errors
    /// [`RelyingPartyError`] for what is said and cannot be.
    pub fn configured(
        public_url: &str,
        id: Option<&str>,
        origins: &[String],
    ) -> Result<Option<Self>, RelyingPartyError> {
        // A proxy may add a path, which is no part of an origin.
        let own = public_url.splitn(4, '/').take(3).collect::<Vec<_>>().join("/");
        let read = if origins.is_empty() {
            match read_origin(&own) {
                Ok(origin) => vec![origin],
                Err(_) if id.is_none() => return Ok(None),
                Err(error) => return Err(error),
            }
        } else {
            origins.iter().map(|origin| read_origin(origin)).collect::<Result<_, _>>()?
        };
        let id = match id {
            Some(id) => id.to_owned(),
            None => read[0].domain().unwrap_or_default().to_owned(),
        };
        if let Some(foreign) = read.iter().find(|origin| !is_of(&id, origin)) {
            return Err(RelyingPartyError::Id { id, origin: foreign.to_string() });
        }
        Ok(Some(Self { id, origins: read }))
    }

    /// The name that passkeys are bound to.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whose pages may ask for them. One at least.
    #[must_use]
    pub fn origins(&self) -> &[Url] {
        &self.origins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(url: &str, id: Option<&str>, origins: &[&str]) -> Result<Option<(String, usize)>, RelyingPartyError> {
        let origins: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
        let party = RelyingParty::configured(url, id, &origins)?;
        Ok(party.map(|party| (party.id().to_owned(), party.origins().len())))
    }

    #[test]
    fn a_site_is_its_address_unless_more_is_said() {
        let of = |id: &str, origins| Ok(Some((id.to_owned(), origins)));
        assert_eq!(configured("https://crm.example.com", None, &[]), of("crm.example.com", 1));
        assert_eq!(configured("https://h.test/behind/a/proxy", None, &[]), of("h.test", 1));
        assert_eq!(configured("http://localhost:8080", None, &[]), of("localhost", 1));
        assert_eq!(configured("https://crm.example.com", Some("example.com"), &[]), of("example.com", 1));
        let both = ["https://crm.example.com", "https://example.com:8443"];
        assert_eq!(configured("http://10.0.0.1", Some("example.com"), &both), of("example.com", 2));
    }

    #[test]
    fn without_a_domain_or_tls_there_are_none() {
        for url in ["http://127.0.0.1:8080", "https://[::1]", "http://crm.example.com", "https://10.0.0.1"] {
            assert_eq!(configured(url, None, &[]), Ok(None), "{url}");
            assert!(configured(url, Some("example.com"), &[]).is_err(), "{url}");
        }
    }

    #[test]
    fn no_passkey_is_for_a_site_that_is_not_the_origins() {
        for (id, origin) in [
            ("example.com", "https://example.com.evil.test"),
            ("example.com", "https://myexample.com"),
            ("crm.example.com", "https://example.com"),
            ("com", "https://example.com"),
            ("", "https://example.com"),
            ("example.com", "http://example.com"),
            ("example.com", "https://example.com/path"),
            ("example.com", "https://u:p@example.com"),
            ("example.com", "ftp://example.com"),
            ("example.com", "example.com"),
        ] {
            assert!(configured("https://example.com", Some(id), &[origin]).is_err(), "{id} at {origin}");
        }
    }

    #[test]
    fn purposes_are_read_as_they_are_written() {
        for purpose in CeremonyPurpose::ALL {
            assert_eq!(CeremonyPurpose::parse(purpose.as_str()), Some(purpose));
        }
        assert_eq!(CeremonyPurpose::parse("signin"), None);
    }
}
