//! The runs that this process carries forward now.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bulkhead_model::id::{OrgId, RunId};
use bulkhead_runtime::Validity;
use tokio_util::sync::CancellationToken;

/// The runs that this process carries forward now, so that each, or all, can be ended early.
#[derive(Clone, Default)]
pub(crate) struct InFlight {
    state: Arc<Mutex<InFlightState>>,
    /// Fires when nothing is in flight any more and nothing will be: only then may the heartbeat end.
    done: CancellationToken,
    /// As long as the heartbeat is in time. What is carried out under it ends with it.
    validity: Validity,
}

#[derive(Default)]
struct InFlightState {
    /// Cancelled at a fence and at the end of a shutdown's patience: every job is handed back.
    all: CancellationToken,
    runs: HashMap<RunId, Carried>,
    leashes: u64,
}

struct Carried {
    org: OrgId,
    token: CancellationToken,
    /// Which leash: a run whose job was lost may be carried again before the old leash is gone.
    leash: u64,
}

/// What one job's calls hang on. Dropping it takes its run out of the list.
pub(crate) struct Leash {
    in_flight: InFlight,
    number: u64,
    run: Option<RunId>,
    all: CancellationToken,
    own: CancellationToken,
}

impl InFlight {
    fn lock(&self) -> std::sync::MutexGuard<'_, InFlightState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A leash for a job that is about to be claimed: a fence that falls before the claim is answered ends it as well.
    pub(crate) fn leash(&self) -> Leash {
        let all = self.lock().all.clone();
        self.leash_of(all)
    }

    fn leash_of(&self, all: CancellationToken) -> Leash {
        let mut state = self.lock();
        state.leashes += 1;
        let (number, own) = (state.leashes, all.child_token());
        Leash { in_flight: self.clone(), number, run: None, all, own }
    }

    /// Ends the run's call in flight; its commit will find the run ended.
    pub(crate) fn cancel_run(&self, run: RunId) {
        if let Some(carried) = self.lock().runs.get(&run) {
            carried.token.cancel();
        }
    }

    /// Ends every call in flight; the jobs are handed back. Later ones are not touched.
    pub(crate) fn hand_back_all(&self) {
        let mut state = self.lock();
        state.all.cancel();
        state.all = CancellationToken::new();
    }

    /// The runs that are carried forward now and were not told to end.
    pub(crate) fn runs(&self) -> Vec<(OrgId, RunId)> {
        let state = self.lock();
        let going = state.runs.iter().filter(|(_, carried)| !carried.token.is_cancelled());
        going.map(|(run, carried)| (carried.org, *run)).collect()
    }

    /// Fires when this process has stopped acting for good.
    pub(crate) fn done(&self) -> &CancellationToken {
        &self.done
    }

    /// The right of this process to carry out jobs.
    pub(crate) fn validity(&self) -> &Validity {
        &self.validity
    }
}

impl Leash {
    /// One more for the same claim.
    pub(crate) fn another(&self) -> Self {
        self.in_flight.leash_of(self.all.clone())
    }

    /// Ties the run to it.
    pub(crate) fn hold(&mut self, org: OrgId, run: RunId) {
        self.run = Some(run);
        let carried = Carried { org, token: self.own.clone(), leash: self.number };
        self.in_flight.lock().runs.insert(run, carried);
    }

    /// Whether the job is to be handed back rather than finished.
    pub(crate) fn hand_back(&self) -> bool {
        self.all.is_cancelled() || self.in_flight.validity.has_ended()
    }

    /// Fires when the call in flight is to end, for whatever reason.
    pub(crate) fn cancel_token(&self) -> CancellationToken {
        self.own.clone()
    }

    /// What the run's calls are made under.
    pub(crate) fn validity(&self) -> Validity {
        self.in_flight.validity.clone()
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        let Some(run) = self.run else { return };
        let mut state = self.in_flight.lock();
        if state.runs.get(&run).is_some_and(|carried| carried.leash == self.number) {
            state.runs.remove(&run);
        }
    }
}
