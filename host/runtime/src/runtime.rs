//! The runtime as the application sees it.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::call::CallReport;
use tokio::runtime::Handle;

use crate::cache::Cache;
use crate::call::{self, CallRequest, Environment};
use crate::compiler::{Compiler, CompilerCommand};
use crate::control::CallControl;
use crate::digest::Digest;
use crate::egress::{EgressConfig, EgressGuard, EgressSetupError};
use crate::engine::{Allocation, EngineError, EngineKind};
use crate::package::{self, PackageError, PackageInfo};
use crate::places::Places;
use crate::registry::{LoadError, PrepareError, Prepared, PreparedStats, Registry, Side};
use crate::ticker::Ticker;

/// What the runtime is started with.
#[derive(Clone)]
pub struct RuntimeConfig {
    /// Holds sealed artifacts; made if it is absent.
    pub cache_dir: PathBuf,
    /// Seals the compile cache. Whoever has it can make this host run native code.
    pub seal_key: [u8; 32],
    /// Starts the compiler process.
    pub compiler: CompilerCommand,
    /// OS threads that guests share; at least 1.
    pub guest_threads: usize,
    /// Bytes of native code of prepared packages that stay in memory.
    pub prepared_bytes_max: u64,
    pub egress: EgressConfig,
}

/// Why the runtime does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the compile cache's directory {directory} cannot be made")]
    Cache { directory: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Egress(#[from] EgressSetupError),
    #[error("a thread cannot be started")]
    Thread(#[source] std::io::Error),
}

/// The sandbox. Clones are the same one.
#[derive(Clone)]
pub struct Runtime {
    shared: Arc<Shared>,
}

struct Shared {
    environment: Arc<Environment>,
    registry: Registry,
    allocation: Allocation,
    executor: Executor,
}

/// Guests run here and nowhere else, so that they hold up nobody but each other.
struct Executor {
    runtime: Option<tokio::runtime::Runtime>,
    handle: Handle,
}

impl Executor {
    fn start(threads: usize) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("guest")
            .enable_time()
            .build()?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Some(runtime), handle })
    }

    /// Runs a call to its end on a guest thread. When the caller stops waiting, the call is cancelled.
    async fn run(&self, environment: Arc<Environment>, prepared: Arc<Prepared>, request: CallRequest) -> CallReport {
        let caller = Handle::current();
        if caller.id() == self.handle.id() {
            return Box::pin(call::run(environment, prepared, request, caller)).await;
        }
        let limits = request.limits.clone();
        let guard = CancelOnDrop(Some(request.control.clone()));
        let report = self.handle.spawn(call::run(environment, prepared, request, caller)).await;
        guard.disarm();
        report.unwrap_or_else(|error| call::host_fault(&format!("the call's task broke down: {error}"), limits))
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Guests are ended by their deadline at the latest; waiting here could block a thread of another executor.
            runtime.shutdown_background();
        }
    }
}

struct CancelOnDrop(Option<CallControl>);

impl CancelOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(control) = self.0.take() {
            control.cancel();
        }
    }
}

impl Runtime {
    /// Builds both engines, opens the cache and starts the threads. Needs no async runtime.
    ///
    /// # Errors
    /// When an engine, the cache's directory or a thread cannot be made.
    pub fn start(config: RuntimeConfig, ambient: Ambient) -> Result<Self, StartError> {
        let effectful = Side::new(EngineKind::Effectful)?;
        let pure = Side::new(EngineKind::Pure)?;
        let ticker = Ticker::start(vec![effectful.engine.clone(), pure.engine.clone()]).map_err(StartError::Thread)?;
        let guard = EgressGuard::new(config.egress)?;
        let cache = Cache::open(config.cache_dir.clone(), config.seal_key)
            .map_err(|source| StartError::Cache { directory: config.cache_dir, source })?;
        let allocation = effectful.allocation;
        Ok(Self {
            shared: Arc::new(Shared {
                environment: Arc::new(Environment { guard, ambient, ticker, places: Places::new() }),
                registry: Registry::new(
                    effectful,
                    pure,
                    cache,
                    Compiler::new(config.compiler),
                    config.prepared_bytes_max,
                ),
                allocation,
                executor: Executor::start(config.guest_threads).map_err(StartError::Thread)?,
            }),
        })
    }

    /// How instances get their memory on this machine.
    #[must_use]
    pub fn allocation(&self) -> Allocation {
        self.shared.allocation
    }

    /// Looks into a package without compiling or running anything. Takes milliseconds for each MiB: call it from a thread
    /// that may block.
    ///
    /// # Errors
    /// The first thing that is wrong with the package.
    pub fn inspect(&self, package: &[u8]) -> Result<PackageInfo, PackageError> {
        package::inspect(package)
    }

    /// The package of this digest, ready to be called. `load` is only polled when neither memory nor cache has it.
    ///
    /// # Errors
    /// When the bytes cannot be loaded, are others, are not acceptable, or cannot be compiled; all callers that waited for the same package
    /// get the same error, and the next one tries again.
    pub async fn prepare<L>(&self, digest: Digest, load: L) -> Result<Arc<Prepared>, Arc<PrepareError>>
    where
        L: Future<Output = Result<Vec<u8>, LoadError>>,
    {
        self.shared.registry.prepare(digest, load).await
    }

    /// What is in memory of prepared packages.
    #[must_use]
    pub fn prepared(&self) -> PreparedStats {
        self.shared.registry.stats()
    }

    /// Whether the package is in memory.
    #[must_use]
    pub fn is_prepared(&self, digest: &Digest) -> bool {
        self.shared.registry.holds(digest)
    }

    /// Drops a package from memory; calls that run keep it until they end.
    pub async fn forget(&self, digest: &Digest) {
        self.shared.registry.forget(digest).await;
    }

    /// Runs one call to its end. Never fails: whatever happens is an outcome. When the caller stops waiting, the
    /// call is cancelled. Must be awaited on a tokio runtime with I/O and time: the guest's requests and the loading of secrets
    /// run there, the guest itself on threads of its own.
    pub async fn call(&self, prepared: &Arc<Prepared>, request: CallRequest) -> CallReport {
        let environment = Arc::clone(&self.shared.environment);
        self.shared.executor.run(environment, Arc::clone(prepared), request).await
    }

    /// Runs one call on the current task, for programs that have nothing else to do (the author's tools, benchmarks): a guest
    /// that computes holds this thread between two ticks of 2 ms. Everything else is as in [`call`](Self::call), except that a caller who stops waiting
    /// has dropped the guest.
    pub async fn call_here(&self, prepared: &Arc<Prepared>, request: CallRequest) -> CallReport {
        let environment = Arc::clone(&self.shared.environment);
        Box::pin(call::run(environment, Arc::clone(prepared), request, Handle::current())).await
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("allocation", &self.shared.allocation).finish_non_exhaustive()
    }
}
