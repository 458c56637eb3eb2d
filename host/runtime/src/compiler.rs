//! Compiles packages in a child process. A hostile package may take the compiler a minute and gigabytes, or crash it; the host
//! only loses the child.
//!
//! The child gets one byte for the engine and the package on stdin, and writes the artifact to stdout. It has no environment, sets its own limits
//! on memory and processor time before it reads anything, and is killed when its time is over.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use bulkhead_model::limits::PackageLimits;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::sync::Semaphore;

use crate::engine::{self, EngineKind};

/// The child's exit code when the compiler says no; its words are on stderr.
const EXIT_REFUSED: u8 = 3;
/// The child's exit code when it could not even begin.
const EXIT_BROKEN: u8 = 4;
/// Bytes of an artifact: native code is a few times larger than WebAssembly.
const ARTIFACT_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Bytes of a message that are kept.
const MESSAGE_BYTES_MAX: u64 = 4 * 1024;

/// How the child process is started: this very binary, with the arguments that lead it to [`worker_main`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompilerCommand {
    pub program: PathBuf,
    pub args: Vec<OsString>,
}

/// Why a package was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error("the compiler does not accept the package: {0}")]
    Refused(String),
    #[error("compiling took longer than {} s", .limit.as_secs())]
    TooSlow { limit: Duration },
    #[error("the compiler process ended early ({status}); a package that needs too much memory does this")]
    Crashed { status: String },
    #[error("the compiler process cannot be started or spoken to")]
    Unavailable(#[source] std::io::Error),
}

/// Starts child processes, at most one for each core at once.
pub(crate) struct Compiler {
    command: CompilerCommand,
    at_once: Semaphore,
    wall: Duration,
}

impl Compiler {
    pub(crate) fn new(command: CompilerCommand) -> Self {
        let wall = Duration::from_millis(PackageLimits::platform().compile_wall_ms);
        Self { command, at_once: Semaphore::new(cores().get()), wall }
    }

    /// The serialized artifact of `package`.
    pub(crate) async fn compile(&self, kind: EngineKind, package: &[u8]) -> Result<Vec<u8>, CompileError> {
        let _permit = self.at_once.acquire().await.expect("the semaphore is never closed");
        let mut child = Command::new(&self.command.program)
            .args(&self.command.args)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(CompileError::Unavailable)?;
        let mut stdin = child.stdin.take().expect("stdin was asked for");
        let stdout = child.stdout.take().expect("stdout was asked for");
        let stderr = child.stderr.take().expect("stderr was asked for");
        let talk = async {
            let send = async {
                // A child that ends early closes the pipe; its exit status says why.
                let _ = stdin.write_all(&[selector(kind)]).await;
                let _ = stdin.write_all(package).await;
                drop(stdin);
            };
            let ((), artifact, message) =
                tokio::join!(send, read(stdout, ARTIFACT_BYTES_MAX), read(stderr, MESSAGE_BYTES_MAX));
            let status = child.wait().await?;
            Ok::<_, std::io::Error>((status, artifact?, message?))
        };
        let Ok(result) = tokio::time::timeout(self.wall, talk).await else {
            // A failure to kill means that it has just ended by itself.
            let _ = child.kill().await;
            return Err(CompileError::TooSlow { limit: self.wall });
        };
        let (status, artifact, message) = result.map_err(CompileError::Unavailable)?;
        if status.success() {
            Ok(artifact)
        } else if status.code() == Some(i32::from(EXIT_REFUSED)) {
            Err(CompileError::Refused(crate::call_log::harmless(&String::from_utf8_lossy(&message))))
        } else {
            Err(CompileError::Crashed { status: status.to_string() })
        }
    }
}

async fn read(mut from: impl AsyncRead + Unpin, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    (&mut from).take(bytes_max).read_to_end(&mut bytes).await?;
    // What is over is read and thrown away, so that the child is not left waiting.
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(bytes)
}

fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

fn selector(kind: EngineKind) -> u8 {
    match kind {
        EngineKind::Effectful => b'e',
        EngineKind::Pure => b'p',
    }
}

/// The child's whole life: limits itself, reads a package, compiles it, writes the artifact.
pub fn worker_main() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            // Nobody is left to tell when stderr is closed.
            let _ = std::io::stderr().write_all(message.as_bytes());
            ExitCode::from(code)
        }
    }
}

fn work() -> Result<(), (u8, String)> {
    let broken = |error: &dyn std::fmt::Display| (EXIT_BROKEN, error.to_string());
    let limits = PackageLimits::platform();
    limit_self(&limits).map_err(|error| broken(&error))?;
    let mut input = Vec::new();
    std::io::stdin().take(limits.package_bytes + 2).read_to_end(&mut input).map_err(|error| broken(&error))?;
    let kind = match input.first() {
        Some(b'e') => EngineKind::Effectful,
        Some(b'p') => EngineKind::Pure,
        _ => return Err(broken(&"no engine selected")),
    };
    let engine = engine::for_compilation(kind).map_err(|error| broken(&error))?;
    let artifact = engine.precompile_component(&input[1..]).map_err(|error| (EXIT_REFUSED, format!("{error:#}")))?;
    std::io::stdout().write_all(&artifact).map_err(|error| broken(&error))
}

/// Address space, processor time of all threads together, no core file, no files written.
#[cfg(unix)]
fn limit_self(limits: &PackageLimits) -> std::io::Result<()> {
    use rlimit::Resource;
    let cores = u64::try_from(cores().get()).unwrap_or(1);
    let cpu_s = (limits.compile_wall_ms / 1_000).saturating_mul(cores);
    Resource::AS.set(limits.compile_memory_bytes, limits.compile_memory_bytes)?;
    Resource::CPU.set(cpu_s, cpu_s)?;
    Resource::CORE.set(0, 0)?;
    Resource::FSIZE.set(0, 0)
}

#[cfg(not(unix))]
fn limit_self(_: &PackageLimits) -> std::io::Result<()> {
    Ok(())
}
