//! The WASI interfaces that every tool chain's standard library imports, and the little they give: no environment, no
//! arguments, no directories, no sockets; stdout and stderr lead into the call's log; clocks are coarse.
//!
//! A pure guest's clocks stand still and its random numbers follow from its input.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::TryRng;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWrite;
use wasmtime::component::Linker;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxView, WasiView, async_trait};

use crate::call_log::Stdio;
use crate::guest::Guest;
use crate::scope::Scope;

/// How finely a guest can tell time: enough for dates and time-outs, too coarse to measure the machine.
const CLOCK_RESOLUTION: Duration = Duration::from_millis(1);
/// A pure guest's moment: 2020-01-01T00:00:00Z, 18,262 days after the epoch. Some libraries mistrust the year 1970.
const FIXED_NOW: Duration = Duration::from_hours(18_262 * 24);
/// Bytes that one write to stdout or stderr may hold, as wasmtime's own streams allow.
const WRITE_BYTES: usize = 64 * 1024;

/// Made only when a guest calls a baseline function: many never do.
pub(crate) struct State {
    wasi: Option<Box<WasiCtx>>,
    /// The input of a pure guest; its random numbers begin here.
    seed: Option<Arc<str>>,
}

impl State {
    pub(crate) fn effectful() -> Self {
        Self { wasi: None, seed: None }
    }

    pub(crate) fn pure(input: Arc<str>) -> Self {
        Self { wasi: None, seed: Some(input) }
    }
}

pub(crate) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let State { wasi, seed } = &mut self.baseline;
        let ctx = wasi.get_or_insert_with(|| Box::new(context(&self.scope, seed.as_deref())));
        WasiCtxView { ctx, table: &mut self.table }
    }
}

fn context(scope: &Arc<Scope>, seed: Option<&str>) -> WasiCtx {
    let mut builder = WasiCtx::builder();
    builder
        .stdout(Sink { scope: Arc::clone(scope), stdio: Stdio::Stdout })
        .stderr(Sink { scope: Arc::clone(scope), stdio: Stdio::Stderr })
        .max_random_size(scope.limits.host_bytes_per_host_call)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false);
    if let Some(seed) = seed {
        let random = Deterministic::new(seed.as_bytes());
        builder
            .wall_clock(Fixed)
            .monotonic_clock(Fixed)
            .insecure_random_seed(u128::from_le_bytes(random.seed_part()))
            .insecure_random(random.clone())
            .secure_random(random);
    } else {
        let random = Ambient(Arc::clone(scope));
        builder
            .wall_clock(Coarse(Arc::clone(scope)))
            .monotonic_clock(Coarse(Arc::clone(scope)))
            .insecure_random_seed(u128::from_le_bytes(scope.ambient.random()))
            .insecure_random(random.clone())
            .secure_random(random);
    }
    builder.build()
}

/// The host's clock, rounded down.
struct Coarse(Arc<Scope>);

impl HostWallClock for Coarse {
    fn resolution(&self) -> Duration {
        CLOCK_RESOLUTION
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.0.ambient.now().as_millis())
    }
}

impl HostMonotonicClock for Coarse {
    fn resolution(&self) -> u64 {
        nanos(CLOCK_RESOLUTION)
    }

    fn now(&self) -> u64 {
        let since = Instant::now().saturating_duration_since(self.0.started);
        nanos(since) / nanos(CLOCK_RESOLUTION) * nanos(CLOCK_RESOLUTION)
    }
}

/// A clock that stands still.
struct Fixed;

impl HostWallClock for Fixed {
    fn resolution(&self) -> Duration {
        CLOCK_RESOLUTION
    }

    fn now(&self) -> Duration {
        FIXED_NOW
    }
}

impl HostMonotonicClock for Fixed {
    fn resolution(&self) -> u64 {
        nanos(CLOCK_RESOLUTION)
    }

    fn now(&self) -> u64 {
        0
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The host's generator.
#[derive(Clone)]
struct Ambient(Arc<Scope>);

impl TryRng for Ambient {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(u32::from_le_bytes(self.0.ambient.random()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(u64::from_le_bytes(self.0.ambient.random()))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.0.ambient.fill(bytes);
        Ok(())
    }
}

/// SHA-256 of the input and a counter. Written out here because the numbers must stay the same for ever, which no
/// library's default generator promises.
#[derive(Clone)]
struct Deterministic {
    seed: [u8; 32],
    counter: u64,
}

impl Deterministic {
    fn new(input: &[u8]) -> Self {
        Self { seed: Sha256::digest(input).into(), counter: 0 }
    }

    fn seed_part(&self) -> [u8; 16] {
        let [part, _] = self.seed.as_chunks::<16>().0 else { return [0; 16] };
        *part
    }

    fn block(&mut self) -> [u8; 32] {
        let block = Sha256::new().chain_update(self.seed).chain_update(self.counter.to_le_bytes()).finalize();
        self.counter += 1;
        block.into()
    }
}

impl TryRng for Deterministic {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        for chunk in bytes.chunks_mut(32) {
            chunk.copy_from_slice(&self.block()[..chunk.len()]);
        }
        Ok(())
    }
}

/// Standard output or error: always ready, never full, kept as far as the call's log has room.
struct Sink {
    scope: Arc<Scope>,
    stdio: Stdio,
}

impl Clone for Sink {
    fn clone(&self) -> Self {
        Self { scope: Arc::clone(&self.scope), stdio: self.stdio }
    }
}

impl IsTerminal for Sink {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Sink {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Sink {
    async fn ready(&mut self) {}
}

impl OutputStream for Sink {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.scope.host_call(bytes.len()).map_err(|ended| StreamError::Trap(ended.into()))?;
        self.scope.log.write(self.stdio, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES)
    }
}

impl AsyncWrite for Sink {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.scope.host_call(bytes.len()).map_err(std::io::Error::other)?;
        self.scope.log.write(self.stdio, bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pure_randomness_follows_from_the_input() {
        let numbers = |input: &[u8]| {
            let mut random = Deterministic::new(input);
            let Ok(first) = random.try_next_u64();
            let Ok(second) = random.try_next_u64();
            [first, second]
        };
        assert_eq!(numbers(b"a"), numbers(b"a"));
        assert_ne!(numbers(b"a"), numbers(b"b"));
        assert_eq!(numbers(b"a"), [5_766_618_128_821_433_199, 5_977_966_877_995_616_880]);
    }
}
