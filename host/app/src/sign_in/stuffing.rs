//! Many names from one network: somebody tries what was stolen elsewhere. Each name is tried once or twice, so that what is counted by name finds
//! nothing; the network is shut out, and no account is.
//!
//! It is counted in the ledger of attempts, which all nodes share. Names whose owner signs in from the same network count for nothing, and neither
//! do tries in a browser in which the person signed in before: an office that mistypes is none.

use std::net::IpAddr;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::block::{STUFFED_NAMES, STUFFING_WITHIN};
use bulkhead_model::id::SignInAttemptId;
use bulkhead_model::network::Network;
use bulkhead_model::permission::AccountScope;
use bulkhead_model::rate::Policy;
use bulkhead_model::session::BrowserToken;
use bulkhead_store::throttle::SignInAttempt;
use bulkhead_store::{StoreError, Tx};

use crate::limits::{Counted, Known};
use crate::{App, AppError};

/// Writes a refused attempt down; whether its network has tried one name too many. What was counted then is not counted again, so that a network
/// that is let in begins anew.
pub(super) async fn record_refused(tx: &mut Tx, attempt: &SignInAttempt, ambient: &Ambient) -> Result<bool, AppError> {
    tx.record_sign_in_attempt(attempt).await?;
    let Some(network) = &attempt.network else { return Ok(false) };
    let since = SignInAttemptId::first_at(ambient.now().minus(STUFFING_WITHIN));
    if tx.count_names_that_failed(network, since, STUFFED_NAMES).await? < STUFFED_NAMES as usize {
        return Ok(false);
    }
    tx.forget_names_that_failed(network).await?;
    Ok(true)
}

impl App {
    /// Shuts out a network that tried one name too many.
    pub(super) async fn stop_stuffing(&self, address: Option<IpAddr>) {
        let Some(network) = address.map(Network::of) else { return };
        metrics::counter!("bulkhead_credential_stuffing_total").increment(1);
        self.shut_out(network, "many names").await;
    }

    /// Lets nobody try a password from a network that is shut out but in a browser in which the person of that name signed in before.
    ///
    /// # Errors
    /// [`AppError::TooMany`] `too-many-attempts`, whoever is meant.
    pub(super) fn require_not_shut_out(&self, address: Option<IpAddr>, is_known: bool) -> Result<(), AppError> {
        match address.and_then(|address| self.address_blocked_for(Network::of(address))) {
            Some(wait) if !is_known => Err(crate::account::too_many(wait)),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether somebody signed in before in the browser that presents this, so that it goes on where its network is shut out. A token that is no
    /// browser's is a guess like other credentials, and the same one again is looked up no more.
    pub async fn is_known_browser(&self, network: Network, browser: &BrowserToken) -> bool {
        let presented = self.presented(network, &[b"d".as_slice(), &browser.hash().0].concat());
        if self.known_credentials(presented) == Some(Known::Bad)
            // Nothing that is refused in any case costs a look into the database.
            || self.look_at_rate(Policy::SignIn, Counted::Network(network)).is_err()
            || self.begin_credentials(network).is_err()
        {
            return false;
        }
        let looked = self.store().read(&AccountScope::OWN, browser.hash(), |tx, hash| {
            Box::pin(async move { Ok::<_, StoreError>(tx.load_device_by_token(hash).await?.is_some()) })
        });
        match looked.await {
            Ok(is_known) => {
                if !is_known {
                    self.remember_credentials(presented, Known::Bad);
                }
                self.count_credentials(network, !is_known).await;
                is_known
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "nobody knows whether a browser is known");
                self.count_credentials(network, false).await;
                false
            }
        }
    }
}

/// The network that a password's try counts for: one by nobody known, or one that passed.
pub(super) fn counted_in(address: Option<IpAddr>, counts: bool) -> Option<String> {
    address.filter(|_| counts).map(|address| Network::of(address).to_string())
}
