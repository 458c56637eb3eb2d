//! Who may start a run now. A start that would only make a queue longer is refused at once, with the time after which to come back:
//! what was accepted is carried out, and the rest costs neither memory nor the others' time.
//!
//! Four bounds, in this order: memory for bodies that are being read and starts at once ([`gate`]), work of one organization that waits
//! and its starts in a minute ([`meter`]). Each is worked out from what is held or stored; nothing is counted that could leak.

mod gate;
mod meter;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_model::id::OrgId;
use bulkhead_model::permission::OrgScope;
use sha2::Digest as _;

use self::gate::{Full, Gate};
use self::meter::{Pace, Room, Waiting};
use crate::{App, AppError};

/// Organizations whose meters are remembered. A forgotten one begins with a full bucket and is counted anew.
const ORGS_MAX: u64 = 100_000;
/// Webhook addresses that are remembered after they were found good, and for how long: a flood is refused without a look at the
/// database. Nothing is let in by it.
const GOOD_HOOKS_MAX: u64 = 10_000;
const GOOD_HOOK_HOLDS: Duration = Duration::from_secs(5);
/// After how long to come back when the node has no place for a start or a body.
const NODE_RETRY_MS: u64 = 1_000;
/// … and when the organization's work waits already.
const WAITING_RETRY_MS: u64 = 5_000;

/// How many runs may be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartLimits {
    /// Runs of one organization that wait for their turn, on all nodes together; those that sleep until a time are not counted.
    pub waiting_max: u32,
    /// Starts of one organization in a minute on each node; ten seconds' worth may come at once.
    pub per_minute_max: u32,
    /// Starts that a node works on at once; fewer while its database is slow.
    pub at_once_max: u32,
    /// When no start's write ends within this time, the node takes in fewer.
    pub wait_ms_max: u64,
    /// Memory for webhook bodies that are under way on a node, in bytes; one organization gets half.
    pub body_bytes_max: u64,
}

impl Default for StartLimits {
    fn default() -> Self {
        Self {
            waiting_max: 100_000,
            per_minute_max: 600_000,
            at_once_max: 256,
            wait_ms_max: 250,
            body_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// Why a start was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Full(Full),
    Waiting { most: u32 },
    PerMinute { most: u32, wait: Duration },
}

impl Refusal {
    fn reason(self) -> &'static str {
        match self {
            Self::Full(Full::Share) => "share",
            Self::Full(Full::Node) => "node",
            Self::Full(Full::Bodies) => "bodies",
            Self::Waiting { .. } => "waiting",
            Self::PerMinute { .. } => "per-minute",
        }
    }

    /// Counts the refusal and says what the caller is told.
    fn told(self) -> AppError {
        metrics::counter!("bulkhead_starts_refused_total", "reason" => self.reason()).increment(1);
        let (code, message, retry_after_ms) = match self {
            Self::Full(Full::Share) => {
                let message =
                    "the organization has as many starts under way as it may: send fewer at once, and this one again";
                ("too-many-starts", message.to_owned(), NODE_RETRY_MS)
            }
            Self::Full(Full::Node | Full::Bodies) => {
                let message = "the server takes in no more starts at this moment: nothing was stored, send it again";
                ("too-many-starts", message.to_owned(), NODE_RETRY_MS)
            }
            Self::Waiting { most } => {
                let message = format!(
                    "{most} runs of the organization wait already: nothing was stored; send it again when some of them have ended"
                );
                ("too-many-waiting", message, WAITING_RETRY_MS)
            }
            Self::PerMinute { most, wait } => {
                let message =
                    format!("the organization may start {most} runs in a minute: send fewer, and this one again");
                let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                ("runs-per-minute", message, wait_ms.saturating_add(1))
            }
        };
        AppError::TooMany { code, message, retry_after_ms }
    }
}

/// One organization's meters.
struct Meters {
    pace: Mutex<Pace>,
    waiting: Mutex<Waiting>,
    /// Whoever counts; the others wait for the answer.
    counting: tokio::sync::Mutex<()>,
}

/// The bounds of this node, and what is held of them.
pub(crate) struct Admission {
    limits: StartLimits,
    built_at: Instant,
    gate: Mutex<Gate>,
    orgs: moka::sync::Cache<OrgId, Arc<Meters>>,
    good_hooks: moka::sync::Cache<[u8; 32], OrgId>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hook_key(token: &str) -> [u8; 32] {
    sha2::Sha256::digest(token.as_bytes()).into()
}

impl Admission {
    pub(crate) fn new(limits: StartLimits) -> Self {
        let most = usize::try_from(limits.at_once_max).unwrap_or(usize::MAX);
        let gate = Gate::new(most, Duration::from_millis(limits.wait_ms_max), limits.body_bytes_max);
        Self {
            limits,
            built_at: Instant::now(),
            gate: Mutex::new(gate),
            orgs: moka::sync::Cache::new(ORGS_MAX),
            good_hooks: moka::sync::Cache::builder().max_capacity(GOOD_HOOKS_MAX).time_to_live(GOOD_HOOK_HOLDS).build(),
        }
    }

    fn now(&self) -> Duration {
        self.built_at.elapsed()
    }

    fn meters(&self, org: OrgId) -> Arc<Meters> {
        self.orgs.get_with(org, || {
            Arc::new(Meters {
                pace: Mutex::new(Pace::new(self.limits.per_minute_max, self.now())),
                waiting: Mutex::default(),
                counting: tokio::sync::Mutex::default(),
            })
        })
    }

    /// What is known without asking the database.
    fn look(&self, org: OrgId) -> Result<(), Refusal> {
        let now = self.now();
        lock(&self.gate).check(org, now).map_err(Refusal::Full)?;
        let meters = self.meters(org);
        if lock(&meters.waiting).is_full(now) {
            return Err(Refusal::Waiting { most: self.limits.waiting_max });
        }
        let wait = lock(&meters.pace).wait(now);
        if wait.is_zero() { Ok(()) } else { Err(Refusal::PerMinute { most: self.limits.per_minute_max, wait }) }
    }

    fn enter(self: &Arc<Self>, org: OrgId) -> Result<Place, Refusal> {
        let mut gate = lock(&self.gate);
        gate.enter(org, self.now()).map_err(Refusal::Full)?;
        show(&gate);
        drop(gate);
        Ok(Place { admission: Arc::clone(self), org, meters: self.meters(org), has_room: false })
    }
}

fn show(gate: &Gate) {
    let number = |value: usize| f64::from(u32::try_from(value).unwrap_or(u32::MAX));
    metrics::gauge!("bulkhead_starts_in_flight").set(number(gate.starts()));
    metrics::gauge!("bulkhead_starts_allowed").set(number(gate.allowed()));
}

/// The right to start one run: a place at the gate and in the queue, given back when it is dropped.
pub(crate) struct Place {
    admission: Arc<Admission>,
    org: OrgId,
    meters: Arc<Meters>,
    /// It holds a place of the room for work that waits, until its commit is over.
    has_room: bool,
}

impl Place {
    /// Measures the write that starts the run.
    pub(crate) async fn write<T, E>(&self, write: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let (admission, began) = (&self.admission, Instant::now());
        let mut under_way = Writing { admission, number: lock(&admission.gate).write(admission.now()), counts: false };
        let result = write.await;
        // A write that fails at once says nothing of how long one waits.
        under_way.counts = result.is_ok();
        drop(under_way);
        metrics::histogram!("bulkhead_start_write_seconds").record(began.elapsed().as_secs_f64());
        result
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.has_room {
            lock(&self.meters.waiting).done();
        }
        let mut gate = lock(&self.admission.gate);
        gate.leave(self.org);
        show(&gate);
    }
}

/// A write that is under way; its caller may go away.
struct Writing<'a> {
    admission: &'a Admission,
    number: u64,
    counts: bool,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        lock(&self.admission.gate).wrote(self.number, self.admission.now(), self.counts);
    }
}

/// Memory that is kept for a webhook's body.
pub struct BodyPlace {
    admission: Arc<Admission>,
    org: OrgId,
    bytes: u64,
}

impl Drop for BodyPlace {
    fn drop(&mut self) {
        lock(&self.admission.gate).drop_body(self.org, self.bytes);
    }
}

impl App {
    /// Lets a start in, or says when to come back.
    ///
    /// # Errors
    /// [`AppError::TooMany`]; the store's when what waits cannot be counted.
    pub(crate) async fn admit(&self, scope: &OrgScope) -> Result<Place, AppError> {
        let admission = self.admission();
        let mut place = admission.enter(scope.org()).map_err(Refusal::told)?;
        self.find_room(scope, &mut place).await?;
        // The last one, so that a start that was refused takes no token.
        let paced = lock(&place.meters.pace).take(admission.now());
        paced.map_err(|wait| Refusal::PerMinute { most: admission.limits.per_minute_max, wait }.told())?;
        Ok(place)
    }

    async fn find_room(&self, scope: &OrgScope, place: &mut Place) -> Result<(), AppError> {
        let (admission, most) = (self.admission(), self.admission().limits.waiting_max);
        let meters = Arc::clone(&place.meters);
        let mut counting = None;
        // Once for those who come while somebody else counts, and once after a count of one's own.
        for _ in 0..3 {
            let room = lock(&meters.waiting).ask(admission.now());
            match room {
                Room::Yes => {
                    place.has_room = true;
                    return Ok(());
                }
                Room::No => break,
                Room::Count => {}
            }
            if counting.is_none() {
                counting = Some(meters.counting.lock().await);
                continue;
            }
            // Of the moment before: what is committed meanwhile may or may not be in the count.
            let (asked_at, under_way) = (admission.now(), lock(&meters.waiting).under_way());
            let waiting = self
                .store()
                .read(scope, most, |tx, most| Box::pin(async move { tx.count_waiting_runs(*most).await }))
                .await?;
            lock(&meters.waiting).counted(waiting, under_way, most, asked_at);
        }
        Err(Refusal::Waiting { most }.told())
    }

    /// Refuses a delivery to an address that was good a moment ago and has no chance now, before anybody asks the database.
    pub(crate) fn recall_hook(&self, token: &str) -> Result<(), AppError> {
        match self.admission().good_hooks.get(&hook_key(token)) {
            Some(org) => self.admission().look(org).map_err(Refusal::told),
            None => Ok(()),
        }
    }

    /// Whether a delivery to a webhook address, which was found good, has a chance now.
    pub(crate) fn look_ahead(&self, token: &str, org: OrgId) -> Result<(), AppError> {
        self.admission().good_hooks.insert(hook_key(token), org);
        self.admission().look(org).map_err(Refusal::told)
    }

    /// Keeps memory for the body of a delivery to this organization.
    pub(crate) fn keep_body(&self, org: OrgId, bytes: u64) -> Result<BodyPlace, AppError> {
        let admission = self.admission();
        lock(&admission.gate).hold_body(org, bytes).map_err(|full| Refusal::Full(full).told())?;
        Ok(BodyPlace { admission: Arc::clone(admission), org, bytes })
    }
}
