//! The state of one call inside a wasmtime store, and the linker that connects host functions to it.

use std::sync::Arc;

use wasmtime::component::{Linker, ResourceTable};
use wasmtime::{Engine, StoreContextMut, UpdateDeadline};

use crate::capability::{baseline, config, http, logging, secrets};
use crate::engine::EngineKind;
use crate::limiter::Limiter;
use crate::scope::{Ended, Scope};

/// What the host functions of one call work on.
pub(crate) struct Guest {
    pub(crate) scope: Arc<Scope>,
    pub(crate) limiter: Limiter,
    pub(crate) table: ResourceTable,
    pub(crate) baseline: baseline::State,
    pub(crate) config: config::State,
    pub(crate) http: http::State,
}

impl Guest {
    pub(crate) fn new(scope: Arc<Scope>, baseline: baseline::State, config: config::State) -> Self {
        let limiter = Limiter::new(&scope.limits);
        let mut table = ResourceTable::new();
        table.set_max_capacity(usize::try_from(scope.limits.handles).unwrap_or(usize::MAX));
        let http = http::State::new(Arc::clone(&scope));
        Self { scope, limiter, table, baseline, config, http }
    }
}

/// Every host function that a package on this engine may import; what it may use is decided in each.
pub(crate) fn linker(engine: &Engine, kind: EngineKind) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    baseline::link(&mut linker)?;
    logging::link(&mut linker)?;
    if kind == EngineKind::Effectful {
        config::link(&mut linker)?;
        secrets::link(&mut linker)?;
        http::link(&mut linker)?;
    }
    Ok(linker)
}

/// At each epoch tick a guest that computes looks whether it may go on, and lets others run.
pub(crate) fn at_tick(context: &StoreContextMut<'_, Guest>) -> wasmtime::Result<UpdateDeadline> {
    match context.data().scope.control.stopped() {
        Some(stop) => Err(Ended::Stopped(stop).into()),
        None => Ok(UpdateDeadline::Yield(1)),
    }
}
