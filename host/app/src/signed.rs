//! Signed requests: what came by a key is what the key's owner signed, and comes once.

use bulkhead_model::permission::{Caller, SystemReason, SystemScope};
use bulkhead_model::signature::{Demands, Message, Required, SignatureRefusal, Signed, Verified};

use crate::audit::KeyRefusal;
use crate::auth::Identity;
use crate::{App, AppError};

/// Of so many nonces one sweeps out those that nothing is good with any longer: by its first byte, which nobody can choose.
const SWEEPS_BELOW: u8 = 8;

/// A request, as far as its signature is concerned.
#[derive(Debug)]
pub struct SignedRequest<'a> {
    /// The signature that it carries for us.
    pub signed: Result<Option<Signed>, SignatureRefusal>,
    pub message: Message<'a>,
    pub has_body: bool,
    /// A person would have to prove anew who they are for this.
    pub is_sensitive: bool,
}

impl App {
    /// Checks the signature of a request by a key, but for whether it came before ([`take_nonce`](Self::take_nonce)). One that is there is
    /// checked whether or not the key asks for it.
    ///
    /// # Errors
    /// [`AppError::SignatureRequired`] without one where the key asks for it; [`AppError::InvalidSignature`] for every kind of bad one, in
    /// the same words.
    pub fn check_signature(
        &self,
        identity: &Identity,
        request: SignedRequest<'_>,
    ) -> Result<Option<Verified>, AppError> {
        let checked = match (&identity.signing, request.signed) {
            // Fields of another standard, or another's: whoever signs nothing has said nothing by them.
            (None, Ok(None) | Err(SignatureRefusal::Malformed)) => return Ok(None),
            (_, Err(refusal)) => Err(refusal),
            (None, Ok(Some(_))) => Err(SignatureRefusal::NoKey),
            (Some(signing), Ok(None)) => {
                return match signing.required {
                    Required::Sensitive if !request.is_sensitive => Ok(None),
                    Required::Always | Required::Sensitive => Err(AppError::SignatureRequired),
                };
            }
            (Some(signing), Ok(Some(signed))) => {
                let key_id = identity.caller.key().map(|id| id.to_string()).unwrap_or_default();
                let demands = Demands { key_id: &key_id, has_body: request.has_body, now: self.ambient().now() };
                signed.verify(&signing.key, &request.message, &demands)
            }
        };
        checked.map(Some).map_err(|refusal| self.refuse_signature(&identity.caller, refusal))
    }

    fn refuse_signature(&self, caller: &Caller, refusal: SignatureRefusal) -> AppError {
        metrics::counter!("bulkhead_signatures_refused_total", "reason" => refusal.as_str()).increment(1);
        if let Some(key) = caller.key() {
            self.record_refused_key(caller.org(), key, KeyRefusal::Signature(refusal));
        }
        AppError::InvalidSignature
    }

    /// Takes a signature's nonce, on all nodes together: whoever comes with the same afterwards is refused.
    ///
    /// # Errors
    /// [`AppError::InvalidSignature`]; the store's, which lets nobody in either.
    pub async fn take_nonce(&self, caller: &Caller, verified: Verified) -> Result<(), AppError> {
        let key = caller.key().ok_or(AppError::InvalidSignature)?;
        let scope = SystemScope::new(SystemReason::SignIn).for_org(caller.org());
        let is_new = self
            .store()
            // The nonce's row, which there is once, is the lock.
            .write_locked(&scope, (key, verified, self.ambient().now()), |tx, (key, verified, now)| {
                Box::pin(async move {
                    if verified.nonce[0] < SWEEPS_BELOW {
                        tx.remove_nonces(*now).await?;
                    }
                    Ok::<_, AppError>(tx.take_nonce(*key, &verified.nonce, verified.good_until).await?)
                })
            })
            .await?;
        if is_new { Ok(()) } else { Err(self.refuse_signature(caller, SignatureRefusal::Replayed)) }
    }
}
