//! Who may start a run now. A start that would only make a queue longer is refused at once, with the time after which to come back:
//! what was accepted is carried out, and the rest costs neither memory nor the others' time.
//!
//! Four bounds, in this order: memory for bodies that are being read and starts at once ([`gate`]), work of one organization that waits
//! and its starts in a minute ([`meter`]). Each is worked out from what is held or stored; nothing is counted that could leak.
//!
//! What a start holds travels with its write: a sender that hangs up gives nothing back before the write is over, since a write that
//! waits for SQLite's writer is carried out whether anybody listens or not.

mod gate;
mod meter;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_model::id::{OrgId, WorkflowId};
use bulkhead_model::permission::OrgScope;
use bulkhead_store::{Store, Tx};
use futures_util::future::BoxFuture;
use sha2::Digest as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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
/// … and when runs wait for a breaker, which tries the first one after as long.
const HELD_RETRY_MS: u64 = 30_000;
/// Of [`StartLimits::waiting_max`], the part that runs of one version may take up beside it while they wait for its breaker.
const HELD_PART: u32 = 4;
/// Versions of workflows whose waiting runs are remembered.
const HELD_METERS_MAX: u64 = 10_000;
/// Refused starts of one organization that are looked up at once, to see whether they are repetitions.
const LOOKED_UP_MAX: usize = 4;
/// Asking for room goes on so often while others take what was counted.
const ROOM_ASKED_MAX: u32 = 16;
/// A body is given memory in steps of so many bytes.
const BODY_STEP_BYTES: u64 = 16 * 1024;

/// How many runs may be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartLimits {
    /// Runs of one organization that wait for their turn; those that sleep until a time, or wait for a breaker, are not counted. Counted
    /// in the database at most two seconds ago: several nodes together may pass it by what they start in such a time.
    pub waiting_max: u32,
    /// Starts of one organization in a minute on each node; ten seconds' worth may come at once.
    pub per_minute_max: u32,
    /// Starts that a node works on at once; fewer while its database is slow. Organizations that hold nothing are let in beyond, up to
    /// twice as many.
    pub at_once_max: u32,
    /// When no start's write ends within this time, the node takes in fewer.
    pub wait_ms_max: u64,
    /// Memory for webhook bodies that are under way on a node, in bytes; one organization gets half, less while others are there.
    /// Organizations that hold nothing are let in beyond, up to twice as much.
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
    Held { most: u32 },
    PerMinute { most: u32, wait: Duration },
}

impl Refusal {
    fn reason(self) -> &'static str {
        match self {
            Self::Full(Full::Share) => "share",
            Self::Full(Full::Node) => "node",
            Self::Full(Full::Bodies) => "bodies",
            Self::Waiting { .. } => "waiting",
            Self::Held { .. } => "held",
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
                let message =
                    "the server takes in no more starts at this moment: this request stored nothing, send it again";
                ("too-many-starts", message.to_owned(), NODE_RETRY_MS)
            }
            Self::Waiting { most } => {
                let message = format!(
                    "{most} runs of the organization wait already: this request stored nothing; send it again when some of them have ended"
                );
                ("too-many-waiting", message, WAITING_RETRY_MS)
            }
            Self::Held { most } => {
                let message = format!(
                    "the workflow's runs fail alike, and {most} of them wait for its breaker already: this request stored nothing; mend the \
                     cause and close the breaker, or cancel runs that wait"
                );
                ("too-many-held", message, HELD_RETRY_MS)
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

/// Room in a queue that is counted in the database.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// Whoever counts; the others wait for the answer.
    counting: tokio::sync::Mutex<()>,
}

/// One organization's meters.
struct Meters {
    pace: Mutex<Pace>,
    queue: Arc<Queue>,
    look_ups: Arc<Semaphore>,
}

/// The bounds of this node, and what is held of them.
pub(crate) struct Admission {
    limits: StartLimits,
    built_at: Instant,
    gate: Mutex<Gate>,
    orgs: moka::sync::Cache<OrgId, Arc<Meters>>,
    /// Of versions whose runs wait for their breaker.
    held: moka::sync::Cache<(OrgId, WorkflowId, i64), Arc<Queue>>,
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
            held: moka::sync::Cache::new(HELD_METERS_MAX),
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
                queue: Arc::default(),
                look_ups: Arc::new(Semaphore::new(LOOKED_UP_MAX)),
            })
        })
    }

    /// What is known without asking the database.
    fn look(&self, org: OrgId) -> Result<(), Refusal> {
        let now = self.now();
        lock(&self.gate).check(org, now).map_err(Refusal::Full)?;
        let meters = self.meters(org);
        if lock(&meters.queue.waiting).is_full(now) {
            return Err(Refusal::Waiting { most: self.limits.waiting_max });
        }
        let wait = lock(&meters.pace).wait(now);
        if wait.is_zero() { Ok(()) } else { Err(Refusal::PerMinute { most: self.limits.per_minute_max, wait }) }
    }

    fn enter(self: &Arc<Self>, org: OrgId, body: Option<BodyPlace>) -> Result<Place, Refusal> {
        let mut gate = lock(&self.gate);
        gate.enter(org, self.now()).map_err(Refusal::Full)?;
        show(&gate);
        drop(gate);
        let queues = Mutex::default();
        Ok(Place { admission: Arc::clone(self), org, meters: self.meters(org), queues, _body: body })
    }
}

fn show(gate: &Gate) {
    let number = |value: usize| f64::from(u32::try_from(value).unwrap_or(u32::MAX));
    metrics::gauge!("bulkhead_starts_in_flight").set(number(gate.starts()));
    metrics::gauge!("bulkhead_starts_allowed").set(number(gate.allowed()));
}

/// The right to start one run: a place at the gate and in the queues, given back when the last one who shares it drops it.
pub(crate) struct Place {
    admission: Arc<Admission>,
    org: OrgId,
    meters: Arc<Meters>,
    /// Where it holds a place of the room for work that waits, until its commit is over.
    queues: Mutex<Vec<Arc<Queue>>>,
    /// The body that the run is made from.
    _body: Option<BodyPlace>,
}

impl Place {
    /// Does the write that starts the run, and measures it. The place is held until the write is over, by whoever carries it out: its
    /// caller may go away.
    pub(crate) async fn write<A, T, F>(
        self: &Arc<Self>,
        store: &Store,
        scope: &OrgScope,
        args: A,
        closure: F,
    ) -> Result<T, AppError>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'t> Fn(&'t mut Tx, &'t A) -> BoxFuture<'t, Result<T, AppError>> + Send + Sync + 'static,
    {
        let number = lock(&self.admission.gate).write(self.admission.now());
        let writing =
            Writing { place: Arc::clone(self), number, began: Instant::now(), counts: AtomicBool::new(false) };
        store
            // The invariants are the closure's, which says what orders it.
            .write_locked(scope, (args, writing), move |tx, (args, writing)| {
                let work = closure(tx, args);
                Box::pin(async move {
                    let result = work.await;
                    // A write that fails at once says nothing of how long one waits.
                    writing.counts.store(result.is_ok(), Ordering::Relaxed);
                    result
                })
            })
            .await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for queue in self.queues.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            lock(&queue.waiting).done();
        }
        let mut gate = lock(&self.admission.gate);
        gate.leave(self.org);
        show(&gate);
    }
}

/// A write that is under way.
struct Writing {
    place: Arc<Place>,
    number: u64,
    began: Instant,
    counts: AtomicBool,
}

impl Drop for Writing {
    fn drop(&mut self) {
        let (admission, counts) = (&self.place.admission, self.counts.load(Ordering::Relaxed));
        lock(&admission.gate).wrote(self.number, admission.now(), counts);
        metrics::histogram!("bulkhead_start_write_seconds").record(self.began.elapsed().as_secs_f64());
    }
}

/// Memory that is kept for a webhook's body.
pub struct BodyPlace {
    admission: Arc<Admission>,
    org: OrgId,
    bytes: u64,
}

impl BodyPlace {
    /// Keeps memory for `arrived_bytes` in all.
    ///
    /// # Errors
    /// [`AppError::TooMany`].
    pub fn grow(&mut self, arrived_bytes: u64) -> Result<(), AppError> {
        if arrived_bytes > self.bytes {
            let more = (arrived_bytes - self.bytes).next_multiple_of(BODY_STEP_BYTES);
            let grown = lock(&self.admission.gate).grow_body(self.org, more);
            grown.map_err(|full| Refusal::Full(full).told())?;
            self.bytes += more;
        }
        Ok(())
    }
}

impl Drop for BodyPlace {
    fn drop(&mut self) {
        lock(&self.admission.gate).drop_body(self.org, self.bytes);
    }
}

impl App {
    /// Lets a start in, or says when to come back. `body` is kept as long as the start.
    ///
    /// # Errors
    /// [`AppError::TooMany`]; the store's when what waits cannot be counted.
    pub(crate) async fn admit(&self, scope: &OrgScope, body: Option<BodyPlace>) -> Result<Arc<Place>, AppError> {
        let admission = self.admission();
        let place = admission.enter(scope.org(), body).map_err(Refusal::told)?;
        let queue = Arc::clone(&place.meters.queue);
        self.find_room(scope, &place, queue, None).await?;
        // The last one, so that a start that was refused takes no token.
        let paced = lock(&place.meters.pace).take(admission.now());
        paced.map_err(|wait| Refusal::PerMinute { most: admission.limits.per_minute_max, wait }.told())?;
        Ok(Arc::new(place))
    }

    /// Lets a start in whose run is to wait for its version's breaker, under the name `held_for`.
    ///
    /// # Errors
    /// As [`admit`](Self::admit).
    pub(crate) async fn admit_held(
        &self,
        scope: &OrgScope,
        place: &Place,
        (workflow, version): (WorkflowId, i64),
        held_for: &str,
    ) -> Result<(), AppError> {
        let queue = self.admission().held.get_with((scope.org(), workflow, version), Arc::default);
        self.find_room(scope, place, queue, Some(held_for)).await
    }

    /// How many runs wait in the queue: the organization's, or the one of a breaker. No more than `most` is answered.
    async fn count_queue(&self, scope: &OrgScope, held_for: Option<&str>, most: u32) -> Result<u32, AppError> {
        let Some(held_for) = held_for else {
            return self
                .store()
                .read(scope, most, |tx, most| Box::pin(async move { Ok(tx.count_waiting_runs(*most).await?) }))
                .await;
        };
        let whole = self.admission().limits.waiting_max;
        let (of_version, of_org): (u32, u32) = self
            .store()
            .read(scope, (held_for.to_owned(), most, whole), |tx, (held_for, most, whole)| {
                Box::pin(async move {
                    let of_version = tx.count_paused_runs(Some(held_for.as_str()), *most).await?;
                    Ok::<_, AppError>((of_version, tx.count_paused_runs(None, *whole).await?))
                })
            })
            .await?;
        // What is left is the less of both: many versions together hold no more than may wait in all.
        Ok(most - most.saturating_sub(of_version).min(whole.saturating_sub(of_org)))
    }

    /// Takes a place of the queue's room: the organization's own, or the one for runs that wait under the name `held_for`.
    async fn find_room(
        &self,
        scope: &OrgScope,
        place: &Place,
        queue: Arc<Queue>,
        held_for: Option<&str>,
    ) -> Result<(), AppError> {
        let admission = self.admission();
        let waiting_max = admission.limits.waiting_max;
        let (most, full) = if held_for.is_none() {
            (waiting_max, Refusal::Waiting { most: waiting_max })
        } else {
            let most = (waiting_max / HELD_PART).max(1);
            (most, Refusal::Held { most })
        };
        let mut counting = None;
        for _ in 0..ROOM_ASKED_MAX {
            let room = lock(&queue.waiting).ask(admission.now());
            match room {
                Room::Yes => {
                    lock(&place.queues).push(Arc::clone(&queue));
                    return Ok(());
                }
                Room::No => return Err(full.told()),
                Room::Count => {}
            }
            if counting.is_none() {
                counting = Some(queue.counting.lock().await);
                continue;
            }
            // Of the moment before: what is committed meanwhile may or may not be in the count.
            let (asked_at, under_way) = (admission.now(), lock(&queue.waiting).under_way());
            let waiting = self.count_queue(scope, held_for, most).await?;
            lock(&queue.waiting).counted(waiting, under_way, most, asked_at);
        }
        // There is room, and others were quicker each time.
        Err(Refusal::Full(Full::Node).told())
    }

    /// Refuses a delivery to an address that was good a moment ago and has no chance now, before anybody asks the database. One that
    /// `may_be_repeated` is looked up, if not too many are: then the right to do so is answered.
    pub(crate) fn recall_hook(
        &self,
        token: &str,
        may_be_repeated: bool,
    ) -> Result<Option<OwnedSemaphorePermit>, AppError> {
        let Some(org) = self.admission().good_hooks.get(&hook_key(token)) else { return Ok(None) };
        let Err(refusal) = self.admission().look(org) else { return Ok(None) };
        let looking = if may_be_repeated { self.may_look_up(org) } else { None };
        looking.map(Some).ok_or_else(|| refusal.told())
    }

    /// The right to look up whether a refused start is a repetition: a flood of them must not become one of reads.
    pub(crate) fn may_look_up(&self, org: OrgId) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.admission().meters(org).look_ups).try_acquire_owned().ok()
    }

    /// Whether a delivery to a webhook address, which was found good, has a chance now.
    pub(crate) fn look_ahead(&self, token: &str, org: OrgId) -> Result<(), AppError> {
        self.admission().good_hooks.insert(hook_key(token), org);
        self.admission().look(org).map_err(Refusal::told)
    }

    /// Keeps memory for the body of a delivery to this organization, as much as arrives.
    pub(crate) fn keep_body(&self, org: OrgId) -> Result<BodyPlace, AppError> {
        let admission = self.admission();
        lock(&admission.gate).begin_body(org);
        let mut place = BodyPlace { admission: Arc::clone(admission), org, bytes: 0 };
        place.grow(1)?;
        Ok(place)
    }
}
