//! Access tokens: short-lived JWTs (RFC 9068) for machines that cannot keep a cookie, signed with Ed25519.
//!
//! One algorithm, one type, one key: what a token's header says is compared with these and chooses nothing (RFC 8725 §3.1). A token
//! proves who asked some minutes ago; whether the person may still, and whether the session that it came from still lives, is looked up
//! at each use.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::id::{SessionId, UserId};
use crate::time::Timestamp;

/// How long a token lives.
pub const LIFETIME: Duration = Duration::from_mins(10);
/// Bytes of a token; longer ones are not looked at.
pub const BYTES_MAX: usize = 4096;
const TYPE: &str = "at+jwt";
const ALGORITHM: &str = "EdDSA";

/// The whole header. Anything else in it (`jku`, `jwk`, `x5u`, `crit`, …) refuses the token.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    typ: String,
    alg: String,
    kid: String,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// The server's address.
    pub iss: String,
    /// Whom it is for: the same server's API.
    pub aud: String,
    pub sub: UserId,
    /// The session that it came from.
    pub sid: SessionId,
    /// The person's epoch when it was made: a raised one makes it worth nothing.
    pub epoch: i64,
    /// When the person had proven who they are, in seconds since 1970 …
    pub auth_time: i64,
    /// … and with what (RFC 8176). What the session proves later is not the token's.
    pub amr: Vec<String>,
    pub jti: String,
    /// Seconds since 1970.
    pub iat: i64,
    pub nbf: i64,
    pub exp: i64,
}

/// What a token says besides its times.
#[derive(Clone, Copy, Debug)]
pub struct Bearer<'a> {
    pub user: UserId,
    pub session: SessionId,
    pub epoch: i64,
    pub auth_at: Timestamp,
    /// Divided by spaces.
    pub amr: &'a str,
}

/// Makes and checks the tokens of one server.
#[derive(Clone)]
pub struct TokenKey {
    signing: SigningKey,
    kid: String,
    issuer: String,
    audience: String,
}

fn seconds(at: Timestamp) -> i64 {
    at.as_micros().div_euclid(1_000_000)
}

fn encode(value: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(value).expect("text and numbers are written as JSON"))
}

impl TokenKey {
    /// `issuer` is the server's address without a trailing slash.
    #[must_use]
    pub fn new(seed: &[u8; 32], issuer: &str) -> Self {
        let signing = SigningKey::from_bytes(seed);
        let digest = Sha256::digest(signing.verifying_key().as_bytes());
        let kid = hex::encode(&digest[..8]);
        Self { signing, kid, issuer: issuer.to_owned(), audience: format!("{issuer}/api") }
    }

    /// The public key as a JWK Set (RFC 7517, RFC 8037).
    #[must_use]
    pub fn jwks(&self) -> serde_json::Value {
        let public: VerifyingKey = self.signing.verifying_key();
        serde_json::json!({
            "keys": [{
                "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": ALGORITHM, "kid": self.kid,
                "x": URL_SAFE_NO_PAD.encode(public.as_bytes()),
            }]
        })
    }

    /// A token for ten minutes.
    #[must_use]
    pub fn issue(&self, bearer: &Bearer<'_>, jti: &[u8; 16], now: Timestamp) -> String {
        let (iat, exp) = (seconds(now), seconds(now.plus(LIFETIME)));
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            sub: bearer.user,
            sid: bearer.session,
            epoch: bearer.epoch,
            auth_time: seconds(bearer.auth_at),
            amr: bearer.amr.split(' ').map(str::to_owned).collect(),
            jti: hex::encode(jti),
            iat,
            nbf: iat,
            exp,
        };
        self.sign(TYPE, ALGORITHM, &claims)
    }

    fn sign(&self, typ: &str, alg: &str, claims: &Claims) -> String {
        let header = Header { typ: typ.to_owned(), alg: alg.to_owned(), kid: self.kid.clone() };
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let signature: Signature = self.signing.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    }

    /// What a token says, if this server made it and it is its time; `None` for anything else.
    #[must_use]
    pub fn open(&self, text: &str, now: Timestamp) -> Option<Claims> {
        if text.len() > BYTES_MAX {
            return None;
        }
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let bytes = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let header: Header = serde_json::from_slice(&bytes(header)?).ok()?;
        if header.typ != TYPE || header.alg != ALGORITHM || header.kid != self.kid {
            return None;
        }
        let signature = Signature::from_slice(&bytes(signature)?).ok()?;
        self.signing.verifying_key().verify_strict(signed.as_bytes(), &signature).ok()?;
        let claims: Claims = serde_json::from_slice(&bytes(claims)?).ok()?;
        let now = seconds(now);
        let is_ours = claims.iss == self.issuer && claims.aud == self.audience;
        let lives = i64::try_from(LIFETIME.as_secs()).unwrap_or(i64::MAX);
        let is_its_time = claims.nbf <= now && now < claims.exp && claims.exp.saturating_sub(claims.iat) <= lives;
        (is_ours && is_its_time).then_some(claims)
    }
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenKey({})", self.kid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ambient::Ambient;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp::from_micros(1_795_248_000_000_000);
    const URL: &str = "https://bulkhead.example.com";

    fn key() -> TokenKey {
        TokenKey::new(&[7; 32], URL)
    }

    fn token(key: &TokenKey) -> (String, UserId) {
        let ambient = Ambient::manual(NOW, 1);
        let user = UserId::new(&ambient);
        let bearer = Bearer { user, session: SessionId::new(&ambient), epoch: 3, auth_at: NOW, amr: "pwd otp" };
        (key.issue(&bearer, &ambient.random(), NOW), user)
    }

    /// RFC 8037 appendix A: the public key of this seed, in its JWK.
    #[test]
    fn the_published_key_is_that_of_rfc_8037() {
        let seed = URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").unwrap();
        let jwks = TokenKey::new(&seed.try_into().unwrap(), URL).jwks();
        assert_eq!(jwks["keys"][0]["x"], "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
        assert!(jwks["keys"][0].get("d").is_none(), "the private part stays here");
    }

    #[test]
    fn a_token_is_good_for_ten_minutes_here() {
        let (text, user) = token(&key());
        let claims = key().open(&text, NOW).unwrap();
        assert_eq!((claims.sub, claims.epoch), (user, 3));
        assert_eq!((claims.auth_time, claims.amr), (seconds(NOW), vec!["pwd".to_owned(), "otp".to_owned()]));
        assert!(key().open(&text, NOW.plus(Duration::from_secs(599))).is_some());
        assert!(key().open(&text, NOW.plus(Duration::from_mins(10))).is_none());
        assert!(key().open(&text, NOW.minus(Duration::from_secs(1))).is_none(), "not before its time");
        assert!(TokenKey::new(&[7; 32], "https://other.example.com").open(&text, NOW).is_none(), "another server's");
        assert!(TokenKey::new(&[8; 32], URL).open(&text, NOW).is_none(), "another key");
    }

    /// jsonwebtoken CVE-2026-25537 and its kin: what the header says chooses nothing.
    #[test]
    fn other_types_algorithms_and_headers_are_refused() {
        let key = key();
        let (text, _) = token(&key);
        let claims = key.open(&text, NOW).unwrap();
        for (typ, alg) in
            [("JWT", "EdDSA"), ("at+jwt", "none"), ("at+jwt", "HS256"), ("AT+JWT", "EdDSA"), ("at+jwt", "eddsa")]
        {
            assert!(key.open(&key.sign(typ, alg, &claims), NOW).is_none(), "{typ} {alg}");
        }
        assert!(key.open(&key.sign(TYPE, ALGORITHM, &claims), NOW).is_some());
        let (_, rest) = text.split_once('.').unwrap();
        for header in [
            format!(r#"{{"typ":"at+jwt","alg":"EdDSA","kid":"{}","jku":"https://evil.test"}}"#, key.kid),
            format!(r#"{{"typ":"at+jwt","alg":"EdDSA","kid":"{}","crit":["exp"]}}"#, key.kid),
            r#"{"typ":"at+jwt","alg":"EdDSA"}"#.to_owned(),
        ] {
            let forged = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header));
            assert!(key.open(&forged, NOW).is_none());
        }
        let unsigned = text.rsplit_once('.').unwrap().0;
        for forged in
            [unsigned.to_owned(), format!("{unsigned}."), format!("{text}."), format!("{text}A"), "x".repeat(5_000)]
        {
            assert!(key.open(&forged, NOW).is_none(), "{forged}");
        }
        for wrong in [
            Claims { exp: claims.exp + 1, ..claims.clone() },
            Claims { nbf: claims.nbf + 1, ..claims.clone() },
            Claims { aud: "other".to_owned(), ..claims.clone() },
            Claims { iss: "other".to_owned(), ..claims.clone() },
        ] {
            assert!(key.open(&key.sign(TYPE, ALGORITHM, &wrong), NOW).is_none(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn every_changed_character_is_refused(at in 0_usize..400, letter in "[A-Za-z0-9_-]") {
            let (text, _) = token(&key());
            let mut broken = text.clone().into_bytes();
            let at = at % broken.len();
            broken[at] = letter.as_bytes()[0];
            let broken = String::from_utf8(broken).unwrap();
            if broken != text {
                prop_assert!(key().open(&broken, NOW).is_none());
            }
        }

        #[test]
        fn any_text_is_looked_at_without_panic(text in "\\PC{0,200}") {
            prop_assert!(key().open(&text, NOW).is_none());
        }
    }
}
