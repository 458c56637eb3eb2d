//! This process as one node of several on a PostgreSQL database.
//!
//! Nodes tell each other where to look ([`word`]): there is work, an installation changed, a run ended. What holds is always read
//! from the database, and looked at again without a word: each second for what this node carries out, each quarter of a second
//! for work. So a lost word costs time and nothing else, and one that somebody else sent can do no harm.
//!
//! The clock of all nodes is the database's ([`Ambient::follow`](bulkhead_model::ambient::Ambient::follow)): what a node writes
//! and promotes does not depend on its machine's clock.

mod word;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_model::id::{InstallationId, OrgId, RunId, WorkerId};
use bulkhead_model::permission::{SystemReason, SystemScope};
use bulkhead_store::node::Node;
use bulkhead_store::seal::{RootId, RootStanding, Sealer};
use bulkhead_store::{Listener, Store, StoreError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::word::{Which, Word};
use crate::supervise::Supervisor;
use crate::{App, AppError};

/// What is to be told is gathered for this long: at most one notification each.
const GATHER: Duration = Duration::from_millis(10);
/// What this node carries out is looked at this often, words or none.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// The other nodes and the shared clock are looked at each so many times of that.
const LOOK_AROUND_EVERY: u32 = 5;
/// A connection on which nothing was heard for this long is tried.
const QUIET_MAX: Duration = Duration::from_secs(15);
/// A word of one's own comes back within this time, or none does.
const ECHO_WITHIN: Duration = Duration::from_secs(3);
/// A listening connection is made anew after this long, doubled at each failure …
const RECONNECT_AFTER: Duration = Duration::from_millis(100);
/// … up to this.
const RECONNECT_MAX: Duration = Duration::from_secs(10);
/// Where no word ever comes back (a pooler in transaction mode), it is tried again after this long.
const DEAF_RETRY: Duration = Duration::from_mins(1);
/// Keys in one statement.
const KEYS_MAX: usize = 1_000;
/// A machine's clock that is further off is warned of.
pub const CLOCK_OFF_MAX: Duration = Duration::from_secs(2);
/// What ends with the process is given this long.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

const SCOPE: SystemScope = SystemScope::new(SystemReason::Nodes);

/// Whether and where this node listens.
#[derive(Clone, Debug)]
pub enum Notifications {
    /// It finds everything by looking.
    Off,
    On {
        /// Leads to the same database past a pooler; `None`: the application's own address.
        url: Option<String>,
    },
}

/// What this process knows of itself as a node. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct NodeState(Arc<Inner>);

#[derive(Default)]
struct Inner {
    outbox: Mutex<Word>,
    /// Something is in the outbox.
    filled: Notify,
    /// The outbox is emptied by somebody.
    telling: AtomicBool,
    /// Other nodes that are alive, as last seen.
    others: AtomicUsize,
    /// What this node calls itself in words; 0 before it begins to tell.
    name: AtomicU64,
    draining: AtomicBool,
    clock_off: AtomicBool,
    /// A root key that another node wraps with and this process was not started with.
    missing_root: Mutex<Option<RootId>>,
    worker: Mutex<Option<WorkerId>>,
    heartbeat_ended: Mutex<Option<CancellationToken>>,
    /// Goes on until the last job has ended, when the process's other loops have long stopped.
    supervisor: Supervisor,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NodeState {
    fn tell(&self, add: impl FnOnce(&mut Word)) {
        if self.0.telling.load(Ordering::Relaxed) && self.0.others.load(Ordering::Relaxed) > 0 {
            add(&mut lock(&self.0.outbox));
            self.0.filled.notify_one();
        }
    }

    pub(crate) fn tell_wake(&self) {
        self.tell(|word| word.wake = true);
    }

    pub(crate) fn tell_installation_changed(&self, org: OrgId, installation: InstallationId) {
        self.tell(|word| word.installations.add((org, installation)));
    }

    pub(crate) fn tell_run_ended(&self, org: OrgId, run: RunId) {
        self.tell(|word| word.runs.add((org, run)));
    }

    /// The worker of this process; the node's row is its heartbeat's.
    pub(crate) fn works_as(&self, worker: WorkerId) {
        *lock(&self.0.worker) = Some(worker);
    }

    /// The heartbeat has a thread of its own, which has ended when the token fires.
    pub(crate) fn has_heartbeat(&self, ended: CancellationToken) {
        *lock(&self.0.heartbeat_ended) = Some(ended);
    }

    /// A root key that another node wraps with and this process was not started with. What is under it opens there and not here, so this node
    /// takes no work as long as that is so.
    pub(crate) fn missing_root(&self) -> Option<RootId> {
        *lock(&self.0.missing_root)
    }

    fn note_roots(&self, alive: &[&Node], sealer: &Sealer) {
        let active = |(_, standing): &&(RootId, RootStanding)| *standing == RootStanding::Active;
        let mut wraps = alive.iter().flat_map(|node| &node.roots).filter(active);
        let missing = wraps.find(|(root, _)| !sealer.knows_root(*root)).map(|(root, _)| *root);
        let before = std::mem::replace(&mut *lock(&self.0.missing_root), missing);
        match missing {
            Some(root) if before != missing => tracing::error!(
                %root,
                "another node wraps with a root key that this process was not started with: it takes no work. Give it the others' root keys \
                 and start it again"
            ),
            None if before.is_some() => {
                tracing::info!("no other node wraps with a root key that is missing here any more");
            }
            Some(_) | None => {}
        }
        metrics::gauge!("bulkhead_root_key_missing").set(f64::from(u8::from(missing.is_some())));
    }

    fn worker(&self) -> Option<WorkerId> {
        *lock(&self.0.worker)
    }
}

/// The serving processes of the database, oldest first, as [`App::list_nodes`], beside a running server. For the operator only.
///
/// # Errors
/// The store's.
pub async fn list_nodes_as_operator(store: &Store) -> Result<Vec<Node>, StoreError> {
    store.read(&SCOPE, (), |tx, ()| Box::pin(async move { tx.list_nodes().await })).await
}

impl App {
    /// Takes up the shared clock and begins to tell and to hear. Before the worker starts. On SQLite there is nothing to do.
    ///
    /// # Errors
    /// The store's.
    pub async fn start_node(&self, notifications: Notifications) -> Result<(), AppError> {
        metrics::gauge!("bulkhead_nodes").set(1.0);
        if !self.store().is_postgres() {
            return Ok(());
        }
        self.look_around().await?;
        let state = &self.node().0;
        let app = self.clone();
        state.supervisor.spawn_loop("watch", move || app.clone().watch_loop());
        let Notifications::On { url } = notifications else {
            tracing::warn!("notifications are off: this node finds work and changes by looking");
            return Ok(());
        };
        state.name.store(u64::from_le_bytes(self.ambient().random()), Ordering::SeqCst);
        state.telling.store(true, Ordering::SeqCst);
        let app = self.clone();
        state.supervisor.spawn_loop("tell", move || app.clone().tell_loop());
        let app = self.clone();
        state.supervisor.spawn_loop("listen", move || app.clone().listen_loop(url.clone()));
        Ok(())
    }

    /// The serving processes of the database, oldest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn list_nodes(&self) -> Result<Vec<Node>, AppError> {
        Ok(self.store().read(&SCOPE, (), |tx, ()| Box::pin(async move { tx.list_nodes().await })).await?)
    }

    /// Tells the others that this node takes no new work.
    pub(crate) async fn drain_node(&self) {
        self.node().0.draining.store(true, Ordering::SeqCst);
        if self.store().is_postgres()
            && let Err(error) = self.look_around().await
        {
            tracing::debug!(error = &error as &dyn std::error::Error, "the others do not know that this node drains");
        }
    }

    /// The last of a node: the others are told that there may be work, once its row is gone.
    pub(crate) async fn leave_node(&self) {
        let state = &self.node().0;
        let heartbeat = lock(&state.heartbeat_ended).take();
        if let Some(ended) = heartbeat
            && tokio::time::timeout(LEAVE_WITHIN, ended.cancelled()).await.is_err()
        {
            tracing::debug!("the heartbeat has not ended in time");
        }
        state.supervisor.shut_down(LEAVE_WITHIN).await;
        if state.telling.swap(false, Ordering::SeqCst) {
            let mut last = std::mem::take(&mut *lock(&state.outbox));
            last.wake = true;
            last.left = true;
            if tokio::time::timeout(LEAVE_WITHIN, self.send(last)).await.is_err() {
                tracing::debug!("the others find out by themselves that this node left");
            }
        }
    }

    /// Takes up the shared clock, says how this node is, and counts the others.
    async fn look_around(&self) -> Result<(), StoreError> {
        let (began, before) = (Instant::now(), self.ambient().machine_now());
        let shared =
            self.store().read(&SCOPE, (), |tx, ()| Box::pin(async move { tx.load_shared_clock().await })).await?;
        let Some(shared) = shared else { return Ok(()) };
        // It was read at some moment between; the middle is off by half of the time at most.
        let half = began.elapsed() / 2;
        self.ambient().follow(shared.plus(half));
        let ahead_micros = before.plus(half).as_micros().saturating_sub(shared.as_micros());
        self.note_clock(ahead_micros);
        let (me, draining) = (self.node().worker(), self.node().0.draining.load(Ordering::SeqCst));
        if let Some(me) = me {
            // The row is this node's own; nobody else writes these columns.
            self.store()
                .write_locked(&SCOPE, (me, draining, ahead_micros), |tx, (me, draining, ahead)| {
                    Box::pin(async move { tx.update_node(*me, *draining, *ahead).await })
                })
                .await?;
        }
        let nodes = self.store().read(&SCOPE, (), |tx, ()| Box::pin(async move { tx.list_nodes().await })).await?;
        let alive: Vec<_> = nodes.iter().filter(|node| node.alive).collect();
        let others = alive.iter().filter(|node| Some(node.id) != me).count();
        self.node().note_roots(&alive, self.sealer());
        self.node().0.others.store(others, Ordering::SeqCst);
        metrics::gauge!("bulkhead_nodes").set(f64::from(u32::try_from(alive.len()).unwrap_or(u32::MAX)));
        Ok(())
    }

    fn note_clock(&self, ahead_micros: i64) {
        let off = Duration::from_micros(ahead_micros.unsigned_abs());
        let seconds = off.as_secs_f64() * if ahead_micros < 0 { -1.0 } else { 1.0 };
        metrics::gauge!("bulkhead_clock_offset_seconds").set(seconds);
        let was_off = self.node().0.clock_off.swap(off > CLOCK_OFF_MAX, Ordering::SeqCst);
        if off > CLOCK_OFF_MAX && !was_off {
            tracing::warn!(
                offset_s = seconds,
                "this machine's clock is off from the database's, which holds: set it right"
            );
        }
    }

    /// Looks each second whether what this node carries out was changed or ended elsewhere.
    async fn watch_loop(self) {
        let stop = self.node().0.supervisor.stop_token();
        for turn in 0_u32.. {
            tokio::select! {
                () = tokio::time::sleep(WATCH_EVERY) => {}
                () = stop.cancelled() => return,
            }
            let looked = self.watch(&self.sandbox().live.installations(), &self.in_flight().runs()).await;
            let around = if turn.is_multiple_of(LOOK_AROUND_EVERY) { self.look_around().await } else { Ok(()) };
            if let Err(error) = looked.and(around) {
                tracing::warn!(error = &error as &dyn std::error::Error, "looking at the other nodes' changes failed");
            }
        }
    }

    /// Reads how the installations and runs are, and ends what is no longer right.
    async fn watch(
        &self,
        installations: &[(OrgId, InstallationId)],
        runs: &[(OrgId, RunId)],
    ) -> Result<(), StoreError> {
        for keys in installations.chunks(KEYS_MAX) {
            let versions = self
                .store()
                .read(&SCOPE, keys.to_vec(), |tx, keys| Box::pin(async move { tx.list_grant_versions(keys).await }))
                .await?;
            for (org, installation, version) in versions {
                self.installation_is_at(org, installation, version);
            }
        }
        for keys in runs.chunks(KEYS_MAX) {
            let ended = self
                .store()
                .read(&SCOPE, keys.to_vec(), |tx, keys| Box::pin(async move { tx.list_ended_runs(keys).await }))
                .await?;
            for run in ended {
                self.in_flight().cancel_run(run);
            }
        }
        Ok(())
    }

    /// Sends what is in the outbox: the first word at once, those of the next moment together.
    async fn tell_loop(self) {
        let state = &self.node().0;
        let stop = state.supervisor.stop_token();
        loop {
            tokio::select! {
                () = state.filled.notified() => {}
                () = stop.cancelled() => return,
            }
            let word = std::mem::take(&mut *lock(&state.outbox));
            if !word.is_empty() {
                self.send(word).await;
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    /// Sends a word; one that cannot be sent is lost.
    async fn send(&self, mut word: Word) {
        word.node = self.node().0.name.load(Ordering::SeqCst);
        match self.store().notify(&word.to_text()).await {
            Ok(()) => metrics::counter!("bulkhead_notifications_total", "direction" => "sent").increment(1),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "the other nodes were not told");
            }
        }
    }

    async fn listen_loop(self, url: Option<String>) {
        let stop = self.node().0.supervisor.stop_token();
        let mut pause = RECONNECT_AFTER;
        let mut deaf = false;
        while !stop.is_cancelled() {
            let heard = match self.store().listen(url.as_deref()).await {
                Ok(Some(mut listener)) => {
                    tokio::select! {
                        heard = self.hear(&mut listener, &mut deaf) => heard,
                        () = stop.cancelled() => return,
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "this node cannot listen; it goes on by looking"
                    );
                    false
                }
            };
            metrics::gauge!("bulkhead_notifications_heard").set(0.0);
            pause = if heard { RECONNECT_AFTER } else { (pause * 2).min(RECONNECT_MAX) };
            let pause = if deaf { DEAF_RETRY } else { pause };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Hears until the connection is lost or proves deaf; answers whether anything was heard.
    async fn hear(&self, listener: &mut Listener, deaf: &mut bool) -> bool {
        let mut heard = false;
        // What was said before this connection was there is lost: everything is looked at.
        self.catch_up().await;
        self.send(Word::probe()).await;
        let mut patience = ECHO_WITHIN;
        loop {
            match tokio::time::timeout(patience, listener.next()).await {
                Ok(Some(text)) => {
                    if *deaf || !heard {
                        metrics::gauge!("bulkhead_notifications_heard").set(1.0);
                        tracing::info!("this node hears the others");
                    }
                    (heard, *deaf, patience) = (true, false, QUIET_MAX);
                    self.take(&text).await;
                }
                Ok(None) => {
                    tracing::warn!("the listening connection was lost");
                    return heard;
                }
                Err(_) if patience == QUIET_MAX => {
                    self.send(Word::probe()).await;
                    patience = ECHO_WITHIN;
                }
                Err(_) => {
                    if !heard && !*deaf {
                        *deaf = true;
                        tracing::warn!(
                            "no notification comes through: is there a pooler in transaction mode? This node finds work \
                             and changes by looking; database.listen_url can lead past the pooler"
                        );
                    }
                    return heard;
                }
            }
        }
    }

    /// Forgets what is remembered and looks at everything.
    async fn catch_up(&self) {
        self.sandbox().rights.invalidate_all();
        self.wake().wake();
        let looked = self.watch(&self.sandbox().live.installations(), &self.in_flight().runs()).await;
        if let Err(error) = looked {
            tracing::debug!(error = &error as &dyn std::error::Error, "looking failed; it is repeated each second");
        }
    }

    /// Looks where the word says.
    async fn take(&self, text: &str) {
        metrics::counter!("bulkhead_notifications_total", "direction" => "received").increment(1);
        // A word that cannot be read is a newer version's, or nobody's: it may mean anything.
        let word = Word::read(text).unwrap_or_else(Word::everything);
        let state = &self.node().0;
        if word.node == state.name.load(Ordering::SeqCst) {
            return;
        }
        // Somebody is there; how many is seen at the next look around.
        state.others.fetch_max(1, Ordering::SeqCst);
        if word.wake {
            self.wake().wake();
        }
        let installations = match &word.installations {
            Which::All => {
                self.sandbox().rights.invalidate_all();
                self.sandbox().live.installations()
            }
            Which::These(keys) => keys.clone(),
        };
        let mut runs = self.in_flight().runs();
        if let Which::These(told) = &word.runs {
            runs.retain(|run| told.contains(run));
        }
        let looked = self.watch(&installations, &runs).await;
        let around = if word.left { self.look_around().await } else { Ok(()) };
        if let Err(error) = looked.and(around) {
            tracing::debug!(error = &error as &dyn std::error::Error, "looking failed; it is repeated each second");
        }
    }
}
