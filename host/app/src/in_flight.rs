//! The runs that this process carries forward now.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bulkhead_model::id::RunId;
use tokio_util::sync::CancellationToken;

/// The runs that this process carries forward now, so that each, or all, can be ended early.
#[derive(Clone, Default)]
pub(crate) struct InFlight {
    state: Arc<Mutex<InFlightState>>,
    /// Fires when nothing is in flight any more and nothing will be: only then may the heartbeat end.
    done: CancellationToken,
}

#[derive(Default)]
struct InFlightState {
    /// Cancelled at a fence and at the end of a shutdown's patience: every job is handed back.
    all: CancellationToken,
    runs: HashMap<RunId, CancellationToken>,
}

/// What one run's calls hang on. Dropping it takes the run out of the list.
pub(crate) struct Leash {
    in_flight: InFlight,
    run: RunId,
    all: CancellationToken,
    own: CancellationToken,
}

impl InFlight {
    fn lock(&self) -> std::sync::MutexGuard<'_, InFlightState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn leash(&self, run: RunId) -> Leash {
        let mut state = self.lock();
        let (all, own) = (state.all.clone(), state.all.child_token());
        state.runs.insert(run, own.clone());
        Leash { in_flight: self.clone(), run, all, own }
    }

    /// Ends the run's call in flight; its commit will find the run ended.
    pub(crate) fn cancel_run(&self, run: RunId) {
        if let Some(token) = self.lock().runs.get(&run) {
            token.cancel();
        }
    }

    /// Ends every call in flight; the jobs are handed back. Later ones are not touched.
    pub(crate) fn hand_back_all(&self) {
        let mut state = self.lock();
        state.all.cancel();
        state.all = CancellationToken::new();
    }
}

impl InFlight {
    /// Fires when this process has stopped acting for good.
    pub(crate) fn done(&self) -> &CancellationToken {
        &self.done
    }
}

impl Leash {
    /// Whether the job is to be handed back rather than finished.
    pub(crate) fn hand_back(&self) -> bool {
        self.all.is_cancelled()
    }

    /// Fires when the call in flight is to end, for whatever reason.
    pub(crate) fn cancel_token(&self) -> CancellationToken {
        self.own.clone()
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        self.in_flight.lock().runs.remove(&self.run);
    }
}
