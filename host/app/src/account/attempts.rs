//! Attempts to prove something: counted before they are judged, given back when they were right.

use std::net::IpAddr;
use std::time::Duration;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{DeviceId, SessionId};
use bulkhead_model::permission::AccountScope;
use bulkhead_model::throttle::{CountedBy, Failures, Guarded, wait};
use bulkhead_store::Tx;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::{App, AppError};

/// Who makes an attempt, as far as it is known before the attempt is judged.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source {
    /// Anybody, from this address.
    Stranger(Option<IpAddr>),
    /// A browser that the person of the name signed in with before. Its address does not count: others have it too.
    Device(DeviceId),
    /// A session of the person.
    Session(SessionId),
}

impl Source {
    pub(crate) fn new(device: Option<DeviceId>, address: Option<IpAddr>) -> Self {
        device.map_or(Self::Stranger(address), Self::Device)
    }
}

/// The counters that one attempt falls under.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    guarded: Guarded,
    /// The name given, digested.
    pub(crate) identifier: [u8; 32],
    /// In the order of their keys, in which they are locked.
    counters: Vec<(CountedBy, [u8; 32])>,
}

/// IPv6 is counted by its /64: whoever has one address there has all of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & (u128::MAX << 64)).into()),
    }
}

impl Attempt {
    /// Counts the attempt as failed, unless it has to wait.
    ///
    /// # Errors
    /// [`AppError::TooMany`] `too-many-attempts`, the same whether somebody is meant or nobody.
    pub(crate) async fn begin(&self, tx: &mut Tx, ambient: &Ambient) -> Result<(), AppError> {
        let mut counted = Vec::with_capacity(self.counters.len());
        for (by, key) in &self.counters {
            counted.push((*by, tx.lock_failures(key).await?));
        }
        // The counters may have been waited for.
        let now = ambient.now();
        if let Some(pause) = wait(self.guarded, &counted, now) {
            metrics::counter!("bulkhead_attempts_throttled_total", "guarded" => self.guarded.as_str()).increment(1);
            return Err(too_many(pause));
        }
        for ((by, failures), (_, key)) in counted.iter().zip(&self.counters) {
            tx.save_failures(key, failures.and_one(self.guarded, *by, now)).await?;
        }
        Ok(())
    }

    /// Whether nobody who is known makes it: neither a session of the person's nor a browser that they signed in with before.
    pub(crate) fn is_of_stranger(&self) -> bool {
        self.counters.iter().any(|(by, _)| *by == CountedBy::Identifier)
    }

    /// It was never judged, because there was no room for it: it was no attempt.
    async fn give_back(&self, tx: &mut Tx) -> Result<(), AppError> {
        for (_, key) in &self.counters {
            let failures = tx.lock_failures(key).await?;
            tx.save_failures(key, failures.less_one()).await?;
        }
        Ok(())
    }

    /// It was right: whoever failed before under this name or device starts afresh; an address is shared with others.
    pub(crate) async fn succeed(&self, tx: &mut Tx) -> Result<(), AppError> {
        for (by, key) in &self.counters {
            let failures = tx.lock_failures(key).await?;
            let after = match by {
                CountedBy::Identifier | CountedBy::Device => Failures::NONE,
                CountedBy::Address => failures.less_one(),
            };
            tx.save_failures(key, after).await?;
        }
        Ok(())
    }
}

pub(crate) fn too_many(pause: Duration) -> AppError {
    AppError::TooMany {
        code: "too-many-attempts",
        message: "too many attempts: wait, then try again".to_owned(),
        retry_after_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
    }
}

impl App {
    fn counter(&self, guarded: Guarded, by: CountedBy, who: &[u8]) -> [u8; 32] {
        let key = &self.accounts().counter_key;
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
        for part in [guarded.as_str().as_bytes(), by.as_str().as_bytes(), who] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    /// An attempt of somebody who gives this name.
    pub(crate) fn attempt(&self, guarded: Guarded, identifier: &str, source: Source) -> Attempt {
        let mut counters = Vec::with_capacity(2);
        let by_name = self.counter(guarded, CountedBy::Identifier, identifier.as_bytes());
        let of_person = |id: &[u8]| {
            let who = [identifier.as_bytes(), b"\0", id].concat();
            (CountedBy::Device, self.counter(guarded, CountedBy::Device, &who))
        };
        match source {
            Source::Device(device) => counters.push(of_person(device.uuid().as_bytes())),
            Source::Session(session) => counters.push(of_person(session.uuid().as_bytes())),
            Source::Stranger(address) => {
                counters.push((CountedBy::Identifier, by_name));
                if let Some(address) = address {
                    let who = network(address).to_string();
                    counters.push((CountedBy::Address, self.counter(guarded, CountedBy::Address, who.as_bytes())));
                }
            }
        }
        counters.sort_by_key(|(_, key)| *key);
        Attempt { guarded, identifier: by_name, counters }
    }

    /// An attempt of somebody who gives no name: counted by the address alone, if that is known.
    pub(crate) fn attempt_of_nobody(&self, guarded: Guarded, address: Option<IpAddr>) -> Attempt {
        let by_address = |address| {
            let who = network(address).to_string();
            (CountedBy::Address, self.counter(guarded, CountedBy::Address, who.as_bytes()))
        };
        let identifier = self.counter(guarded, CountedBy::Identifier, b"");
        Attempt { guarded, identifier, counters: address.map(by_address).into_iter().collect() }
    }

    /// What came of judging an attempt; one that could not be judged is given back.
    pub(crate) async fn judged<T>(&self, attempt: &Attempt, judged: Result<T, AppError>) -> Result<T, AppError> {
        if judged.is_err() {
            let back = self.store().write_locked(&AccountScope::OWN, attempt.clone(), |tx, attempt| {
                Box::pin(async move { attempt.give_back(tx).await })
            });
            if let Err(error) = back.await {
                tracing::warn!(error = &error as &dyn std::error::Error, "an attempt that nobody judged stays counted");
            }
        }
        judged
    }

    /// Every counter that failures under this name fall under.
    pub(crate) fn counters_of_identifier(&self, identifier: &str) -> Vec<[u8; 32]> {
        let guarded =
            [Guarded::Password, Guarded::Code, Guarded::BackupCode, Guarded::Passkey, Guarded::Link, Guarded::Mail];
        let key = |guarded| self.counter(guarded, CountedBy::Identifier, identifier.as_bytes());
        let mut keys: Vec<_> = guarded.into_iter().map(key).collect();
        keys.sort_unstable();
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_is_one_counter() {
        let of = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
