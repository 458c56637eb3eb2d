//! What became of credentials that an address presented lately. Those that were good pass without being counted among guesses, so that nobody
//! who shares an address with a guesser is kept out; those that were refused are no new guess when they come again, so that a forgotten timer
//! with a revoked key shuts nobody out. Each process knows what it saw itself.

use std::time::Duration;

use bulkhead_model::id::OrgId;
use bulkhead_model::network::Network;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::Counted;
use crate::App;

/// Credentials of each kind that are remembered, at some 100 bytes each; beyond, those that were seen longest ago are forgotten.
const REMEMBERED_MAX: u64 = 50_000;
/// Since they were last good …
const GOOD_FOR: Duration = Duration::from_mins(15);
/// … and since they were first refused.
const BAD_FOR: Duration = Duration::from_mins(15);

/// Credentials as an address presented them: a digest, so that none of them are in memory longer than their request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Presented([u8; 16]);

/// Who good credentials belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    pub counted: Counted,
    /// Of an API key.
    pub org: Option<OrgId>,
}

/// What is known of credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    Good(Holder),
    Bad,
}

pub(super) struct Credentials {
    good: moka::sync::Cache<Presented, Holder>,
    bad: moka::sync::Cache<Presented, ()>,
}

impl Default for Credentials {
    fn default() -> Self {
        let lru = moka::policy::EvictionPolicy::lru;
        Self {
            good: moka::sync::Cache::builder()
                .max_capacity(REMEMBERED_MAX)
                .eviction_policy(lru())
                .time_to_idle(GOOD_FOR)
                .build(),
            bad: moka::sync::Cache::builder()
                .max_capacity(REMEMBERED_MAX)
                .eviction_policy(lru())
                .time_to_live(BAD_FOR)
                .build(),
        }
    }
}

impl App {
    /// Names credentials that come from an address.
    #[must_use]
    pub fn presented(&self, network: Network, credentials: &[u8]) -> Presented {
        let key = &self.limiter().digest_key;
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
        mac.update(b"presented v1\0");
        mac.update(network.to_string().as_bytes());
        mac.update(b"\0");
        mac.update(credentials);
        let digest: [u8; 32] = mac.finalize().into_bytes().into();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Presented(id)
    }

    #[must_use]
    pub fn known_credentials(&self, presented: Presented) -> Option<Known> {
        let credentials = &self.limiter().credentials;
        if let Some(holder) = credentials.good.get(&presented) {
            return Some(Known::Good(holder));
        }
        credentials.bad.get(&presented).map(|()| Known::Bad)
    }

    /// Remembers what became of credentials; what they were before is forgotten.
    pub fn remember_credentials(&self, presented: Presented, known: Known) {
        let credentials = &self.limiter().credentials;
        match known {
            Known::Good(holder) => {
                credentials.bad.invalidate(&presented);
                credentials.good.insert(presented, holder);
            }
            Known::Bad => {
                credentials.good.invalidate(&presented);
                credentials.bad.insert(presented, ());
            }
        }
    }
}
