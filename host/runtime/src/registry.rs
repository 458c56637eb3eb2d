//! From a digest to a component that is ready to be instantiated: found in memory, or loaded from the sealed cache, or inspected
//! and compiled. Whatever many ask for at the same time is made once.

use std::future::Future;
use std::sync::Arc;

use bulkhead_model::limits::{ContributionKind, PackageLimits};
use moka::future::Cache as Memory;
use moka::policy::EvictionPolicy;
use wasmtime::Engine;
use wasmtime::component::{Component, InstancePre, Linker};

use crate::bindings::exports::bulkhead::plugin::{action, channel, factor};
use crate::cache::{Cache, Entry};
use crate::compiler::{CompileError, Compiler};
use crate::digest::Digest;
use crate::engine::{self, Allocation, EngineError, EngineKind};
use crate::guest::{self, Guest};
use crate::package::{self, PackageError, PackageInfo};

/// What the caller's loader of package bytes may fail with.
pub type LoadError = Box<dyn std::error::Error + Send + Sync>;

/// Why a package is not ready.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("the package's bytes cannot be loaded")]
    Load(#[source] LoadError),
    #[error("the package's bytes have the digest {found}, not {expected}")]
    Replaced { expected: Digest, found: Digest },
    #[error("the package is not acceptable")]
    Package(#[from] PackageError),
    #[error("the package was not compiled")]
    Compile(#[from] CompileError),
    #[error("the compiled package cannot be linked: {0}")]
    Link(String),
}

impl PrepareError {
    /// Trying again may help: the fault is not the package's.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Load(_) => true,
            Self::Compile(error) => error.is_retryable(),
            Self::Replaced { .. } | Self::Package(_) | Self::Link(_) => false,
        }
    }
}

/// A package that is ready: compiled, linked, its exports found.
pub struct Prepared {
    pub(crate) info: PackageInfo,
    pub(crate) kind: EngineKind,
    pub(crate) pre: InstancePre<Guest>,
    pub(crate) action: Option<action::GuestIndices>,
    pub(crate) channel: Option<channel::GuestIndices>,
    pub(crate) factor: Option<factor::GuestIndices>,
    /// How many places of the pool one instance takes.
    pub(crate) slots: u32,
    /// Bytes of native code, for the bound of the registry.
    image_bytes: u64,
}

impl Prepared {
    #[must_use]
    pub fn info(&self) -> &PackageInfo {
        &self.info
    }

    /// Bytes of native code: what it takes up in memory.
    #[must_use]
    pub fn image_bytes(&self) -> u64 {
        self.image_bytes
    }

    #[must_use]
    pub fn digest(&self) -> Digest {
        self.info.digest
    }
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared")
            .field("name", &self.info.manifest.name)
            .field("digest", &self.info.digest)
            .finish_non_exhaustive()
    }
}

/// One engine with everything that is linked to it.
pub(crate) struct Side {
    kind: EngineKind,
    pub(crate) engine: Engine,
    pub(crate) allocation: Allocation,
    linker: Linker<Guest>,
    compatibility: u64,
}

impl Side {
    pub(crate) fn new(kind: EngineKind) -> Result<Self, EngineError> {
        let (engine, allocation) = engine::for_calls(kind)?;
        let linker = guest::linker(&engine, kind).map_err(|source| EngineError::new(kind, source))?;
        let compatibility = engine::compatibility(&engine);
        Ok(Self { kind, engine, allocation, linker, compatibility })
    }

    #[expect(
        unsafe_code,
        reason = "artifacts are native code; the seal was verified, or our own child process made it just now"
    )]
    fn deserialize(&self, artifact: &[u8]) -> wasmtime::Result<Component> {
        // SAFETY: `artifact` is in memory that nobody else writes, and it is what the compiler of this version wrote: it comes from the child process
        // of this binary, or from an entry whose seal only this host can make. wasmtime checks version and settings itself.
        unsafe { Component::deserialize(&self.engine, artifact) }
    }
}

/// The prepared packages that are in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PreparedStats {
    pub packages: u64,
    /// What they take up, to the KiB.
    pub bytes: u64,
}

/// The bound, shared store of prepared packages. A start loads none of them; the first call of each does.
pub(crate) struct Registry {
    effectful: Arc<Side>,
    pure: Arc<Side>,
    cache: Arc<Cache>,
    compiler: Compiler,
    memory: Memory<Digest, Arc<Prepared>>,
}

impl Registry {
    pub(crate) fn new(effectful: Side, pure: Side, cache: Cache, compiler: Compiler, prepared_bytes_max: u64) -> Self {
        let memory = Memory::builder()
            .max_capacity(prepared_bytes_max / 1024)
            .weigher(|_, prepared: &Arc<Prepared>| u32::try_from(prepared.image_bytes / 1024 + 1).unwrap_or(u32::MAX))
            // By use alone: a policy that also counts how often would keep a new package out, and link it again for each call.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { effectful: Arc::new(effectful), pure: Arc::new(pure), cache: Arc::new(cache), compiler, memory }
    }

    pub(crate) async fn prepare<L>(&self, digest: Digest, load: L) -> Result<Arc<Prepared>, Arc<PrepareError>>
    where
        L: Future<Output = Result<Vec<u8>, LoadError>>,
    {
        if let Some(prepared) = self.memory.get(&digest).await {
            return Ok(prepared);
        }
        let prepared = self.memory.try_get_with(digest, self.make(digest, load)).await;
        // What it displaces goes now, not at some later call. Who still calls one of those keeps it until the call ends.
        self.settle().await;
        prepared
    }

    pub(crate) fn stats(&self) -> PreparedStats {
        PreparedStats { packages: self.memory.entry_count(), bytes: self.memory.weighted_size().saturating_mul(1024) }
    }

    pub(crate) fn holds(&self, digest: &Digest) -> bool {
        self.memory.contains_key(digest)
    }

    async fn settle(&self) {
        // The cache drops what it displaced when its threads have moved on by two epochs, one of which each turn tries to end.
        for _ in 0..3 {
            self.memory.run_pending_tasks().await;
        }
        let PreparedStats { packages, bytes } = self.stats();
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float; a few bytes of gigabytes are none")]
        let of = |value: u64| value as f64;
        metrics::gauge!("bulkhead_plugins_prepared").set(of(packages));
        metrics::gauge!("bulkhead_plugins_prepared_bytes").set(of(bytes));
    }

    pub(crate) async fn forget(&self, digest: &Digest) {
        self.memory.invalidate(digest).await;
        self.settle().await;
    }

    async fn make<L>(&self, digest: Digest, load: L) -> Result<Arc<Prepared>, PrepareError>
    where
        L: Future<Output = Result<Vec<u8>, LoadError>>,
    {
        for side in [&self.effectful, &self.pure] {
            if let Some(prepared) = self.cached(side, digest).await {
                return Ok(Arc::new(prepared));
            }
        }
        let bytes = load.await.map_err(PrepareError::Load)?;
        let (info, bytes) = blocking(move || {
            let found = Digest::of(&bytes);
            if found != digest {
                return Err(PrepareError::Replaced { expected: digest, found });
            }
            Ok((package::inspect(&bytes)?, bytes))
        })
        .await?;
        let side = Arc::clone(if info.pure { &self.pure } else { &self.effectful });
        let artifact = self.compiler.compile(side.kind, &bytes).await?;
        let cache = Arc::clone(&self.cache);
        blocking(move || {
            let entry = Entry { info, artifact };
            let prepared = link(&side, &entry)?;
            cache.store(&entry, side.compatibility);
            Ok(Arc::new(prepared))
        })
        .await
    }

    async fn cached(&self, side: &Arc<Side>, digest: Digest) -> Option<Prepared> {
        let (side, cache) = (Arc::clone(side), Arc::clone(&self.cache));
        blocking(move || {
            let entry = cache.load(digest, side.compatibility)?;
            let linked = link(&side, &entry);
            if let Err(error) = &linked {
                tracing::warn!(%digest, %error, "a compiled package cannot be used any more; it is compiled again");
                cache.discard(digest, side.compatibility);
            }
            linked.ok()
        })
        .await
    }
}

/// Runs work that computes or waits for the disk on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => unreachable!("blocking work is never aborted"),
        },
    }
}

fn link(side: &Side, entry: &Entry) -> Result<Prepared, PrepareError> {
    let failed = |error: wasmtime::Error| PrepareError::Link(format!("{error:#}"));
    let component = side.deserialize(&entry.artifact).map_err(failed)?;
    // The first call would pay for the images otherwise.
    component.initialize_copy_on_write_image().map_err(failed)?;
    let image_bytes = u64::try_from(component.image_range().end.addr() - component.image_range().start.addr());
    let slots = slots(&component, &entry.info);
    let pre = side.linker.instantiate_pre(&component).map_err(failed)?;
    let lists = |kind| entry.info.manifest.contributions().any(|(listed, _)| listed == kind);
    Ok(Prepared {
        action: lists(ContributionKind::Action).then(|| action::GuestIndices::new(&pre)).transpose().map_err(failed)?,
        channel: lists(ContributionKind::Channel)
            .then(|| channel::GuestIndices::new(&pre))
            .transpose()
            .map_err(failed)?,
        factor: lists(ContributionKind::Factor).then(|| factor::GuestIndices::new(&pre)).transpose().map_err(failed)?,
        info: entry.info.clone(),
        kind: side.kind,
        pre,
        slots,
        image_bytes: image_bytes.unwrap_or(u64::MAX),
    })
}

/// Places in the pool: as many as it takes for the pool to have room for every part of the instance.
fn slots(component: &Component, info: &PackageInfo) -> u32 {
    let most = PackageLimits::platform();
    let (memories, tables) = component
        .resources_required()
        .map_or((most.memories, most.tables), |required| (required.num_memories, required.num_tables));
    // The compiler adds instances of its own where two components inside the package talk to each other.
    let core_instances = u32::try_from(info.counts.core_instances).unwrap_or(most.core_instances)
        + u32::try_from(info.counts.component_instances).unwrap_or(most.component_instances);
    memories
        .max(tables.div_ceil(engine::TABLES_PER_SLOT))
        .max(core_instances.div_ceil(engine::CORE_INSTANCES_PER_SLOT))
        .clamp(1, engine::SLOTS)
}
