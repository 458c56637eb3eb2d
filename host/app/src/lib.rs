//! Use cases: permission, order of steps, transactions; and the workers that carry runs forward.
//!
//! **Invariants:**
//! - Every use case that a person reaches takes a [`Caller`](bulkhead_model::permission::Caller) and asks the permission rule
//!   first; what it gets, an `OrgScope`, is what the store demands.
//! - No plugin call and no outbound call happens inside a transaction.
//! - Every mutation writes its audit entry in its own transaction.
//! - After commit only: the runtime is told what changed ([`live`]), workers are woken ([`worker`]), other nodes are told of both
//!   ([`node`]).

pub mod access;
pub mod access_token;
pub mod account;
pub mod admission;
pub mod allow_list;
pub mod api_key;
pub mod assignment;
pub mod audit;
pub mod audit_log;
pub mod auth;
pub mod block;
mod breaker;
pub mod call;
pub mod data;
pub mod dead_letter;
mod email_code;
mod engine;
pub mod error;
pub mod event;
pub mod grants;
pub mod health;
pub mod heartbeat;
pub mod hook;
mod in_flight;
pub mod installation;
pub mod job;
pub mod key;
pub mod key_usage;
pub mod limits;
mod live;
pub mod mail;
pub mod member;
pub mod mfa;
pub mod node;
pub mod org;
pub mod passkey;
pub mod permits;
mod planner;
pub mod plugin;
mod prune;
pub mod queue;
pub mod quota;
pub mod retention;
pub mod role;
pub mod role_request;
pub mod run;
pub mod sandbox;
pub mod schedule;
pub mod secret;
pub mod sign_in;
pub mod signed;
pub mod supervise;
pub mod team;
mod turns;
pub mod worker;
pub mod workflow;

use std::sync::Arc;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{OrgId, WorkflowId};
use bulkhead_model::rate::RateLimits;
use bulkhead_model::workflow::Definition;
use bulkhead_store::Store;
use bulkhead_store::seal::Sealer;

use crate::sandbox::Sandbox;

pub use account::{AccountParts, BreachedPasswords, HashingLimits};
pub use admission::StartLimits;
/// What the compiler's child process runs.
pub use bulkhead_runtime::compiler::worker_main as compiler_main;
pub use bulkhead_store::correlated;
pub use error::{AppError, Problem};
pub use permits::CallConcurrency;
pub use sandbox::SandboxParts;

/// What the application needs to run.
pub struct AppParts {
    pub store: Store,
    pub sealer: Sealer,
    pub ambient: Ambient,
    pub sandbox: SandboxParts,
    pub accounts: AccountParts,
}

struct Inner {
    store: Store,
    sealer: Sealer,
    ambient: Ambient,
    sandbox: Sandbox,
    accounts: account::Accounts,
}

/// The application. Cheap to clone.
#[derive(Clone)]
pub struct App {
    inner: Arc<Inner>,
    wake: worker::Wake,
    in_flight: in_flight::InFlight,
    node: node::NodeState,
    planner: planner::Planner,
    definitions: Definitions,
    admission: Arc<admission::Admission>,
    breakers: breaker::Breakers,
    rooms: quota::Rooms,
    ended_bytes: quota::EndedBytes,
    audit: audit::AuditState,
    standings: access::Standings,
    limiter: Arc<limits::Limiter>,
    allow_lists: allow_list::AllowLists,
    blocks: block::Blocks,
    key_uses: Arc<key_usage::KeyUses>,
}

/// Checked definitions, with an estimate of the bytes that each takes.
type Definitions = moka::sync::Cache<(OrgId, WorkflowId, i64), (Arc<Definition>, u32)>;

/// Memory for checked definitions, by their estimates.
const DEFINITIONS_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// SHA-256 of a text, in hexadecimal.
pub(crate) fn digest_hex(text: &str) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(text.as_bytes()))
}

impl App {
    #[must_use]
    pub fn new(parts: AppParts) -> Self {
        let AppParts { store, sealer, ambient, sandbox, accounts } = parts;
        let accounts = account::Accounts::new(accounts);
        let limiter = Arc::new(limits::Limiter::new(RateLimits::default(), accounts.counter_key));
        let inner = Inner { store, sealer, ambient, sandbox: Sandbox::new(sandbox), accounts };
        Self {
            inner: Arc::new(inner),
            wake: worker::Wake::default(),
            in_flight: in_flight::InFlight::default(),
            node: node::NodeState::default(),
            planner: planner::Planner::new(),
            definitions: moka::sync::Cache::builder()
                .max_capacity(DEFINITIONS_BYTES_MAX)
                .weigher(|_, (_, bytes): &(Arc<Definition>, u32)| *bytes)
                .build(),
            admission: Arc::new(admission::Admission::new(StartLimits::default())),
            breakers: breaker::Breakers::default(),
            rooms: quota::rooms(),
            ended_bytes: quota::ended_bytes(),
            audit: audit::AuditState::default(),
            standings: access::standings(),
            limiter,
            allow_lists: allow_list::allow_lists(),
            blocks: block::Blocks::default(),
            key_uses: Arc::default(),
        }
    }

    /// The same with other rate limits; what was counted so far is forgotten.
    #[must_use]
    pub fn with_rate_limits(mut self, limits: RateLimits) -> Self {
        self.limiter = Arc::new(limits::Limiter::new(limits, self.accounts().counter_key));
        self
    }

    /// The same with other bounds for starts; what is held of the bounds before stays with whoever holds it.
    #[must_use]
    pub fn with_start_limits(mut self, limits: StartLimits) -> Self {
        self.admission = Arc::new(admission::Admission::new(limits));
        self
    }

    #[must_use]
    pub fn ambient(&self) -> &Ambient {
        &self.inner.ambient
    }

    pub(crate) fn store(&self) -> &Store {
        &self.inner.store
    }

    pub(crate) fn accounts(&self) -> &account::Accounts {
        &self.inner.accounts
    }

    pub(crate) fn sandbox(&self) -> &Sandbox {
        &self.inner.sandbox
    }

    pub(crate) fn sealer(&self) -> &Sealer {
        &self.inner.sealer
    }

    pub(crate) fn definitions(&self) -> &Definitions {
        &self.definitions
    }

    pub(crate) fn admission(&self) -> &Arc<admission::Admission> {
        &self.admission
    }

    pub(crate) fn breakers(&self) -> &breaker::Breakers {
        &self.breakers
    }

    pub(crate) fn rooms(&self) -> &quota::Rooms {
        &self.rooms
    }

    pub(crate) fn ended_bytes(&self) -> &quota::EndedBytes {
        &self.ended_bytes
    }

    pub(crate) fn allow_lists(&self) -> &allow_list::AllowLists {
        &self.allow_lists
    }

    pub(crate) fn blocks(&self) -> &block::Blocks {
        &self.blocks
    }

    pub(crate) fn key_uses(&self) -> &key_usage::KeyUses {
        &self.key_uses
    }

    pub(crate) fn limiter(&self) -> &limits::Limiter {
        &self.limiter
    }

    pub(crate) fn standings(&self) -> &access::Standings {
        &self.standings
    }

    pub(crate) fn in_flight(&self) -> &in_flight::InFlight {
        &self.in_flight
    }

    pub(crate) fn planner(&self) -> &planner::Planner {
        &self.planner
    }

    pub(crate) fn wake(&self) -> &worker::Wake {
        &self.wake
    }

    pub(crate) fn node(&self) -> &node::NodeState {
        &self.node
    }

    /// Tells the workers of this process and of the other nodes that there is work.
    pub(crate) fn wake_workers(&self) {
        self.wake.wake();
        self.node.tell_wake();
    }

    /// Tells of work of one organization, so that it gets its turn at once.
    pub(crate) fn wake_org(&self, lane: bulkhead_model::job::Lane, org: OrgId) {
        self.wake.wake_org(lane, org);
        self.node.tell_wake();
    }
}
