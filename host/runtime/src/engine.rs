//! The one constructor of every engine configuration.
//!
//! Two engines serve two kinds of guest: *effectful* (actions, channels) and *pure* (factors, where every NaN has
//! the same bits). The compiler process builds the same configuration without a pool, because the allocation strategy does not
//! touch compiled code; that the two agree is checked by wasmtime when an artifact is loaded.
//!
//! Why these settings, with figures: `docs/decisions/0002-one-fresh-pooled-instance-per-call.md`.

use std::hash::{Hash as _, Hasher};

use bulkhead_model::limits::{ContributionKind, Limits, PackageLimits};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, WasmFeatures};

/// Bytes of stack that guest code may use; reaching it is a typed outcome.
pub(crate) const STACK_BYTES: usize = 512 * 1024;
/// Bytes of the stack of one call: the guest's part and what host functions need above it.
const CALL_STACK_BYTES: usize = 2 * 1024 * 1024;
/// Calls that may hold an instance at once; a component with many memories or tables counts as several.
pub(crate) const SLOTS: u32 = 1_000;
/// Each slot brings this many core instances and tables.
pub(crate) const CORE_INSTANCES_PER_SLOT: u32 = 4;
pub(crate) const TABLES_PER_SLOT: u32 = 2;
/// Bytes of a dropped instance's memory that stay mapped, to be cleaned by copying instead of unmapping.
const MEMORY_KEEP_RESIDENT_BYTES: usize = 512 * 1024;
const TABLE_KEEP_RESIDENT_BYTES: usize = 64 * 1024;
/// Bounds the metadata of one instance in the pool; wasmtime's own default.
const INSTANCE_METADATA_BYTES: usize = 1024 * 1024;

/// What the supported tool chains emit. Everything else is off: threads, 64-bit memories, garbage collection,
/// tail calls, exceptions, relaxed (non-deterministic) vectors, component-model async and so on.
pub(crate) fn wasm_features() -> WasmFeatures {
    WasmFeatures::MUTABLE_GLOBAL
        | WasmFeatures::SATURATING_FLOAT_TO_INT
        | WasmFeatures::SIGN_EXTENSION
        | WasmFeatures::REFERENCE_TYPES
        | WasmFeatures::CALL_INDIRECT_OVERLONG
        | WasmFeatures::MULTI_VALUE
        | WasmFeatures::BULK_MEMORY
        | WasmFeatures::BULK_MEMORY_OPT
        | WasmFeatures::SIMD
        | WasmFeatures::MULTI_MEMORY
        | WasmFeatures::EXTENDED_CONST
        | WasmFeatures::FLOATS
        | WasmFeatures::COMPONENT_MODEL
}

/// Which engine a package runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum EngineKind {
    Effectful,
    /// Deterministic: a result is a function of the input.
    Pure,
}

impl EngineKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Effectful => "effectful",
            Self::Pure => "pure",
        }
    }
}

/// How instances get their memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Slots reserved at start, reused with copy-on-write images.
    Pooling,
    /// Mapped for each instance: slower, and needs no large address space.
    OnDemand,
}

/// An engine could not be built.
#[derive(Debug, thiserror::Error)]
#[error("the {kind} engine cannot be built")]
pub struct EngineError {
    kind: &'static str,
    #[source]
    source: wasmtime::Error,
}

impl EngineError {
    pub(crate) fn new(kind: EngineKind, source: wasmtime::Error) -> Self {
        Self { kind: kind.as_str(), source }
    }
}

/// An engine to run guests, with the pool if the address space allows it.
pub(crate) fn for_calls(kind: EngineKind) -> Result<(Engine, Allocation), EngineError> {
    match build(kind, Allocation::Pooling) {
        Ok(engine) => Ok((engine, Allocation::Pooling)),
        Err(error) => {
            tracing::warn!(
                error = format!("{:#}", error.source),
                "no address space for pooled instances; each call maps its own memory"
            );
            Ok((build(kind, Allocation::OnDemand)?, Allocation::OnDemand))
        }
    }
}

/// An engine that only compiles.
pub(crate) fn for_compilation(kind: EngineKind) -> Result<Engine, EngineError> {
    build(kind, Allocation::OnDemand)
}

#[expect(clippy::disallowed_methods, reason = "the one place that builds engines")]
fn build(kind: EngineKind, allocation: Allocation) -> Result<Engine, EngineError> {
    Engine::new(&config(kind, allocation)).map_err(|source| EngineError::new(kind, source))
}

fn config(kind: EngineKind, allocation: Allocation) -> Config {
    let mut config = Config::new();
    config
        .wasm_features(WasmFeatures::all() - wasm_features(), false)
        .wasm_features(wasm_features(), true)
        .concurrency_support(false)
        .consume_fuel(true)
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES)
        .async_stack_size(CALL_STACK_BYTES)
        .memory_init_cow(true)
        .relaxed_simd_deterministic(true)
        .cranelift_nan_canonicalization(kind == EngineKind::Pure)
        .allocation_strategy(match allocation {
            Allocation::Pooling => InstanceAllocationStrategy::Pooling(pool()),
            Allocation::OnDemand => InstanceAllocationStrategy::OnDemand,
        });
    config
}

fn pool() -> PoolingAllocationConfig {
    let ceiling = Limits::ceiling_for(ContributionKind::Action);
    let package = PackageLimits::platform();
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(SLOTS)
        .total_core_instances(SLOTS * CORE_INSTANCES_PER_SLOT)
        .total_memories(SLOTS)
        .total_tables(SLOTS * TABLES_PER_SLOT)
        .total_stacks(SLOTS)
        .max_component_instance_size(INSTANCE_METADATA_BYTES)
        .max_core_instance_size(INSTANCE_METADATA_BYTES)
        .max_core_instances_per_component(package.core_instances)
        .max_memories_per_component(package.memories)
        .max_tables_per_component(package.tables)
        .max_memories_per_module(package.memories)
        .max_tables_per_module(package.tables)
        .max_memory_size(usize::try_from(ceiling.memory_bytes).unwrap_or(usize::MAX))
        .table_elements(usize::try_from(ceiling.table_elements).unwrap_or(usize::MAX))
        .linear_memory_keep_resident(MEMORY_KEEP_RESIDENT_BYTES)
        .table_keep_resident(TABLE_KEEP_RESIDENT_BYTES)
        .pagemap_scan(Enabled::Auto);
    pool
}

/// A number that differs whenever artifacts of `engine` would not load into another engine.
pub(crate) fn compatibility(engine: &Engine) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.finish()
}

/// FNV-1a: the standard library's hasher may change between compilers, and this value is kept on disk.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
