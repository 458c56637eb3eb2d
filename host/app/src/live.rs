//! The calls that run in this process, so that a change of an installation ends them at once.
//!
//! A change commits first and is told here after. A call reads its installation first and registers after. Whichever comes
//! second sees the other: [`LiveCalls::changed`] finds the registered call, or [`LiveCalls::register`] finds that a newer
//! version is known. A step's transaction compares versions once more, so nothing here decides whether an effect commits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulkhead_model::grant::GrantVersion;
use bulkhead_model::id::{CallId, InstallationId, OrgId};
use bulkhead_runtime::CallControl;

/// How long the newest version of a changed installation is remembered: longer than any call takes from its read to its
/// registration.
const NEWEST_KEPT: Duration = Duration::from_mins(10);
const NEWEST_MAX: u64 = 100_000;

type Key = (OrgId, InstallationId);

/// The registry. Clones are the same one.
#[derive(Clone)]
pub(crate) struct LiveCalls {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    calls: HashMap<Key, HashMap<CallId, (GrantVersion, CallControl)>>,
    newest: moka::sync::Cache<Key, GrantVersion>,
}

/// Takes the call out of the registry when it is dropped.
pub(crate) struct Registration {
    live: LiveCalls,
    key: Key,
    call: CallId,
}

impl LiveCalls {
    pub(crate) fn new() -> Self {
        let newest = moka::sync::Cache::builder().max_capacity(NEWEST_MAX).time_to_live(NEWEST_KEPT).build();
        Self { inner: Arc::new(Mutex::new(Inner { calls: HashMap::new(), newest })) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a call that began under `version` into the registry; one whose installation changed meanwhile is revoked at
    /// once.
    pub(crate) fn register(&self, key: Key, version: GrantVersion, call: CallId, control: CallControl) -> Registration {
        let mut inner = self.lock();
        if inner.newest.get(&key).is_some_and(|newest| version < newest) {
            control.revoke();
        }
        inner.calls.entry(key).or_default().insert(call, (version, control));
        Registration { live: self.clone(), key, call }
    }

    /// The installation is at `version` now: ends every call that began under an older one. Answers how many.
    pub(crate) fn changed(&self, key: Key, version: GrantVersion) -> usize {
        let inner = self.lock();
        if inner.newest.get(&key).is_none_or(|newest| newest < version) {
            inner.newest.insert(key, version);
        }
        let Some(calls) = inner.calls.get(&key) else { return 0 };
        let older = calls.values().filter(|(begun, _)| *begun < version);
        older.map(|(_, control)| control.revoke()).count()
    }

    /// The installations whose calls run now.
    pub(crate) fn installations(&self) -> Vec<Key> {
        self.lock().calls.keys().copied().collect()
    }

    /// Calls that run now.
    pub(crate) fn count(&self) -> usize {
        self.lock().calls.values().map(HashMap::len).sum()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut inner = self.live.lock();
        if let Some(calls) = inner.calls.get_mut(&self.key) {
            calls.remove(&self.call);
            if calls.is_empty() {
                inner.calls.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::ambient::Ambient;
    use bulkhead_model::time::Timestamp;

    fn setting() -> (LiveCalls, Ambient, Key) {
        let ambient = Ambient::manual(Timestamp::from_micros(0), 3);
        let key = (OrgId::new(&ambient), InstallationId::new(&ambient));
        (LiveCalls::new(), ambient, key)
    }

    #[test]
    fn a_change_ends_the_calls_of_its_installation_and_no_others() {
        let (live, ambient, key) = setting();
        let other = (key.0, InstallationId::new(&ambient));
        let begin = |key, version| {
            let control = CallControl::new();
            (live.register(key, GrantVersion(version), CallId::new(&ambient), control.clone()), control)
        };
        let (old, new, elsewhere) = (begin(key, 1), begin(key, 2), begin(other, 1));
        assert_eq!(live.changed(key, GrantVersion(2)), 1);
        assert!(old.1.stopped().is_some() && new.1.stopped().is_none() && elsewhere.1.stopped().is_none());
        assert_eq!(live.count(), 3);
        drop((old, new, elsewhere));
        assert_eq!(live.count(), 0);
        assert!(live.lock().calls.is_empty());
    }

    #[test]
    fn a_call_that_read_before_the_change_and_registers_after_it_is_ended() {
        let (live, ambient, key) = setting();
        live.changed(key, GrantVersion(5));
        // A late word about an older change changes nothing.
        live.changed(key, GrantVersion(3));
        let late = CallControl::new();
        let _late = live.register(key, GrantVersion(4), CallId::new(&ambient), late.clone());
        let current = CallControl::new();
        let _current = live.register(key, GrantVersion(5), CallId::new(&ambient), current.clone());
        assert!(late.stopped().is_some() && current.stopped().is_none());
    }
}
