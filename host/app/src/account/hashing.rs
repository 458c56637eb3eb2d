//! Hashing of passwords: argon2id in a blocking pool of a few places, with a queue that has an end, so that memory is bounded and
//! sign-ins wait for each other rather than everything else for them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Params, Version};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::password::{Cost, PEPPER_VERSION, Password, StoredPassword};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zeroize::Zeroizing;

use crate::AppError;

/// How many passwords are hashed at once, and at what cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashingLimits {
    pub cost: Cost,
    /// Each takes the memory of its cost for as long as it is hashed.
    pub at_once_max: usize,
    /// Sign-ins beyond these are refused with a time to come back at.
    pub waiting_max: usize,
}

impl Default for HashingLimits {
    fn default() -> Self {
        Self { cost: Cost::DEFAULT, at_once_max: 2, waiting_max: 64 }
    }
}

/// A wait that is worth a line in the log.
const WAIT_NOTICED: Duration = Duration::from_millis(500);
/// When whoever was refused should come back.
const RETRY_AFTER_MS: u64 = 2_000;

/// What became of a presented password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Wrong,
    Right {
        /// The hash is to be made anew.
        is_outdated: bool,
    },
}

pub(crate) struct Hasher {
    limits: HashingLimits,
    pepper: Zeroizing<[u8; 32]>,
    /// Those that are hashed and those that wait.
    entrance: Arc<Semaphore>,
    places: Arc<Semaphore>,
    /// The dearest cost that was met: what is cheaper, or about nobody, is made as dear.
    dearest: Mutex<Cost>,
}

/// What a hash of the cost costs: memory filled, in KiB.
fn work(cost: Cost) -> u64 {
    u64::from(cost.memory_kib) * u64::from(cost.passes)
}

/// What is to be hashed for nothing beside a hash of `done`, so that both together cost what one of `dearest` does. `None` where the difference
/// is less than argon2 can do.
fn padding(done: Cost, dearest: Cost) -> Option<Cost> {
    let passes = dearest.passes.max(1);
    let memory_kib = work(dearest).saturating_sub(work(done)) / u64::from(passes);
    let memory_kib = u32::try_from(memory_kib).ok().filter(|memory| *memory >= 8 * dearest.lanes)?;
    Some(Cost { memory_kib, passes, lanes: dearest.lanes })
}

impl Hasher {
    pub(crate) fn new(limits: HashingLimits, pepper: [u8; 32]) -> Self {
        let at_once = limits.at_once_max.max(1);
        Self {
            limits,
            pepper: Zeroizing::new(pepper),
            entrance: Arc::new(Semaphore::new(at_once + limits.waiting_max)),
            places: Arc::new(Semaphore::new(at_once)),
            dearest: Mutex::new(limits.cost),
        }
    }

    /// A place in the queue, for all hashes of one operation.
    fn enter(&self) -> Result<OwnedSemaphorePermit, AppError> {
        Arc::clone(&self.entrance).try_acquire_owned().map_err(|_| busy())
    }

    /// The dearest cost so far, this one included.
    fn dearest(&self, met: Cost) -> Cost {
        let mut dearest = self.dearest.lock().unwrap_or_else(PoisonError::into_inner);
        if work(met) > work(*dearest) {
            *dearest = met;
        }
        *dearest
    }

    /// A hash that is compared with one that was stored: whatever its cost was, it takes as long as every other.
    async fn compute_evenly(&self, password: Password, cost: Cost, salt: [u8; 16]) -> Result<[u8; 32], AppError> {
        let entered = self.enter()?;
        let padding = padding(cost, self.dearest(cost));
        let (tag, entered) = self.compute(entered, password.clone(), cost, salt).await?;
        if let Some(padding) = padding {
            drop(self.compute(entered, password, padding, salt).await?);
        }
        Ok(tag)
    }

    /// Hashes a new password.
    ///
    /// # Errors
    /// [`AppError::Busy`] when too many wait.
    pub(crate) async fn hash(&self, password: Password, ambient: &Ambient) -> Result<StoredPassword, AppError> {
        let salt: [u8; 16] = ambient.random();
        let cost = self.limits.cost;
        let (tag, _) = self.compute(self.enter()?, password, cost, salt).await?;
        Ok(StoredPassword { cost, pepper_version: PEPPER_VERSION, salt, tag })
    }

    /// Compares a presented password with a stored one. Where there is none, or a cheaper one than others, the same work is done for nothing, so
    /// that nobody learns from the time who exists.
    ///
    /// # Errors
    /// [`AppError::Busy`] when too many wait.
    pub(crate) async fn verify(
        &self,
        password: Option<Password>,
        stored: Option<&StoredPassword>,
    ) -> Result<Verdict, AppError> {
        let dummy =
            StoredPassword { cost: self.limits.cost, pepper_version: PEPPER_VERSION, salt: [0x5a; 16], tag: [0; 32] };
        let against = stored.unwrap_or(&dummy);
        let is_possible = password.is_some() && stored.is_some();
        let Some(presented) = password.or_else(|| Password::new("")) else { return Ok(Verdict::Wrong) };
        let tag = self.compute_evenly(presented, against.cost, against.salt).await?;
        let matches = bool::from(tag.ct_eq(&against.tag)) && is_possible && against.pepper_version == PEPPER_VERSION;
        let is_outdated = against.is_outdated(self.limits.cost);
        Ok(if matches { Verdict::Right { is_outdated } } else { Verdict::Wrong })
    }

    /// Hashes a set of codes under one salt, so that an attempt costs one hash however many there are.
    ///
    /// # Errors
    /// [`AppError::Busy`] when too many wait.
    pub(crate) async fn hash_set(
        &self,
        codes: Vec<Password>,
        ambient: &Ambient,
    ) -> Result<Vec<StoredPassword>, AppError> {
        let salt: [u8; 16] = ambient.random();
        let cost = self.limits.cost;
        let mut hashes = Vec::with_capacity(codes.len());
        let mut entered = self.enter()?;
        for code in codes {
            let (tag, still) = self.compute(entered, code, cost, salt).await?;
            entered = still;
            hashes.push(StoredPassword { cost, pepper_version: PEPPER_VERSION, salt, tag });
        }
        Ok(hashes)
    }

    /// Which of a set the presented code is. One hash whatever is presented and however many there are, each of them compared.
    ///
    /// # Errors
    /// [`AppError::Busy`] when too many wait.
    pub(crate) async fn find(
        &self,
        presented: Option<Password>,
        among: &[StoredPassword],
    ) -> Result<Option<usize>, AppError> {
        let is_possible = presented.is_some();
        let Some(presented) = presented.or_else(|| Password::new("")) else { return Ok(None) };
        let (cost, salt) = among.first().map_or((self.limits.cost, [0x5a; 16]), |first| (first.cost, first.salt));
        let tag = self.compute_evenly(presented, cost, salt).await?;
        let mut found = None;
        for (at, stored) in among.iter().enumerate() {
            let of_the_set = stored.salt == salt && stored.cost == cost && stored.pepper_version == PEPPER_VERSION;
            if bool::from(tag.ct_eq(&stored.tag)) && of_the_set && is_possible {
                found = Some(at);
            }
        }
        Ok(found)
    }

    /// One hash, and the place in the queue back for the next.
    async fn compute(
        &self,
        entered: OwnedSemaphorePermit,
        password: Password,
        cost: Cost,
        salt: [u8; 16],
    ) -> Result<([u8; 32], OwnedSemaphorePermit), AppError> {
        let began = Instant::now();
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| busy())?;
        let waited = began.elapsed();
        metrics::histogram!("bulkhead_password_hash_wait_seconds").record(waited.as_secs_f64());
        if waited > WAIT_NOTICED {
            tracing::warn!(
                waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
                "sign-ins wait for each other"
            );
        }
        let pepper = self.pepper.clone();
        let worked = tokio::task::spawn_blocking(move || {
            // The places are kept until the memory is given back, also when whoever asked has gone away.
            let _place = place;
            argon2id(&password, cost, salt).map(|output| {
                let mut mac = Hmac::<Sha256>::new_from_slice(&*pepper).expect("HMAC takes keys of every length");
                mac.update(&*output);
                (<[u8; 32]>::from(mac.finalize().into_bytes()), entered)
            })
        });
        let worked = worked.await.map_err(|error| AppError::Runtime(Box::new(error)))?;
        worked.map_err(|error| AppError::Runtime(error.to_string().into()))
    }
}

fn busy() -> AppError {
    metrics::counter!("bulkhead_password_hashes_refused_total").increment(1);
    AppError::Busy { what: "signing in", retry_after_ms: RETRY_AFTER_MS }
}

fn argon2id(password: &Password, cost: Cost, salt: [u8; 16]) -> Result<Zeroizing<[u8; 32]>, argon2::Error> {
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32))?;
    let mut output = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into(
        password.as_bytes(),
        &salt,
        &mut *output,
    )?;
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::time::Timestamp;

    fn hasher(cost: Cost, pepper: u8) -> Hasher {
        Hasher::new(HashingLimits { cost, at_once_max: 1, waiting_max: 1 }, [pepper; 32])
    }

    fn password(text: &str) -> Option<Password> {
        Password::new(text)
    }

    fn ambient() -> Ambient {
        Ambient::manual(Timestamp::from_micros(0), 1)
    }

    #[tokio::test]
    async fn a_password_proves_itself_under_its_pepper_only() {
        let ours = hasher(Cost::FLOOR, 1);
        let stored = ours.hash(password("violet cement orbit").unwrap(), &ambient()).await.unwrap();
        let right = ours.verify(password("violet cement orbit"), Some(&stored)).await.unwrap();
        assert_eq!(right, Verdict::Right { is_outdated: false });
        assert_eq!(ours.verify(password("violet cement orbiT"), Some(&stored)).await.unwrap(), Verdict::Wrong);
        assert_eq!(ours.verify(None, Some(&stored)).await.unwrap(), Verdict::Wrong);
        let other = hasher(Cost::FLOOR, 2);
        assert_eq!(other.verify(password("violet cement orbit"), Some(&stored)).await.unwrap(), Verdict::Wrong);
    }

    /// OneUptime GHSA-qg84-6hrg-mr5g: an account without a password opened to any.
    #[tokio::test]
    async fn no_password_matches_where_there_is_none() {
        let ours = hasher(Cost::FLOOR, 1);
        for presented in [password(""), password("violet cement orbit"), None] {
            assert_eq!(ours.verify(presented, None).await.unwrap(), Verdict::Wrong);
        }
    }

    #[tokio::test]
    async fn a_cheaper_hash_is_made_anew() {
        let stored = hasher(Cost::FLOOR, 1).hash(password("violet cement orbit").unwrap(), &ambient()).await.unwrap();
        let dearer = hasher(Cost { passes: 3, ..Cost::FLOOR }, 1);
        let right = dearer.verify(password("violet cement orbit"), Some(&stored)).await.unwrap();
        assert_eq!(right, Verdict::Right { is_outdated: true });
    }

    #[tokio::test]
    async fn a_code_is_found_in_its_set() {
        let ours = hasher(Cost::FLOOR, 1);
        let set: Vec<Password> = ["AAAAA00000", "BBBBB11111"].iter().filter_map(|code| Password::new(code)).collect();
        let set = ours.hash_set(set, &ambient()).await.unwrap();
        assert_eq!(set[0].salt, set[1].salt, "one salt");
        assert_eq!(ours.find(password("BBBBB11111"), &set).await.unwrap(), Some(1));
        assert_eq!(ours.find(password("BBBBB11111"), &set[..1]).await.unwrap(), None);
        for none in [password("BBBBB11112"), password(""), None] {
            assert_eq!(ours.find(none.clone(), &set).await.unwrap(), None);
            assert_eq!(ours.find(none, &[]).await.unwrap(), None);
        }
    }

    /// Vault CVE-2025-6011 and its kin: after the cost was raised, whoever had not signed in since answered faster than nobody.
    #[tokio::test]
    async fn a_comparison_costs_the_same_whatever_was_stored() {
        let all = |stored: Cost, dearest: Cost| work(stored) + padding(stored, dearest).map_or(0, work);
        for cheaper in [Cost::FLOOR, Cost { passes: 3, ..Cost::FLOOR }, Cost { memory_kib: 65_000, ..Cost::DEFAULT }] {
            let (padded, wanted) = (all(cheaper, Cost::DEFAULT), work(Cost::DEFAULT));
            assert!(padded.abs_diff(wanted) * 100 < wanted, "{cheaper:?}: {padded} in place of {wanted}");
        }
        assert_eq!(padding(Cost::DEFAULT, Cost::DEFAULT), None);
        // One that is dearer than what is configured makes everybody's as dear.
        let ours = hasher(Cost::FLOOR, 1);
        let dearer = Cost { passes: 4, ..Cost::FLOOR };
        assert_eq!(ours.dearest(Cost::FLOOR), Cost::FLOOR);
        let stored = hasher(dearer, 1).hash(password("violet cement orbit").unwrap(), &ambient()).await.unwrap();
        assert!(matches!(ours.verify(password("violet cement orbit"), Some(&stored)).await, Ok(Verdict::Right { .. })));
        assert_eq!(ours.dearest(Cost::FLOOR), dearer);
        assert_eq!(ours.verify(password("violet cement orbit"), None).await.unwrap(), Verdict::Wrong);
    }

    #[test]
    fn another_salt_is_another_hash() {
        let password = password("violet cement orbit").unwrap();
        let one = argon2id(&password, Cost::FLOOR, [1; 16]).unwrap();
        assert_eq!(one, argon2id(&password, Cost::FLOOR, [1; 16]).unwrap());
        assert_ne!(one, argon2id(&password, Cost::FLOOR, [2; 16]).unwrap());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whoever_comes_when_the_queue_is_full_is_sent_away() {
        let ours = Arc::new(hasher(Cost::FLOOR, 1));
        let stored = ours.hash(password("violet cement orbit").unwrap(), &ambient()).await.unwrap();
        let ask = || ours.verify(password("x"), Some(&stored));
        let answers = futures_util::future::join_all((0..20).map(|_| ask())).await;
        let refused = answers.iter().filter(|answer| matches!(answer, Err(AppError::Busy { .. }))).count();
        assert_eq!(refused, 18, "one is hashed, one waits");
        assert!(ask().await.is_ok(), "and the places are free again");
    }
}
