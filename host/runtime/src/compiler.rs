//! Compiles packages in a child process. A hostile package may take the compiler a minute and gigabytes, or crash it; the host
//! only loses the child.
//!
//! The child gets one byte for the engine and the package on stdin, and writes the artifact to stdout. It has no environment, sets its own limits
//! on memory and processor time before it reads anything, and is killed when its time is over. It has a process group of its own: what is sent to the
//! server's group (Ctrl-C in a terminal, a service manager that stops everything) does not look like a package that cannot be compiled.

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
/// Bytes of an artifact: native code is a few times larger than WebAssembly, and packages have 32 MiB at most.
const ARTIFACT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Bytes of a message that are kept.
const MESSAGE_BYTES_MAX: u64 = 4 * 1024;

/// How the child process is started: this very binary, with the arguments that lead it to [`worker_main`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompilerCommand {
    pub program: PathBuf,
    pub args: Vec<OsString>,
}

impl CompilerCommand {
    /// The running program with these arguments. On Linux that is the program that runs, and not whatever an upgrade has put
    /// into its place since: artifacts of another version would not load.
    ///
    /// # Errors
    /// When this system does not say where the program is.
    pub fn this_program(args: Vec<OsString>) -> std::io::Result<Self> {
        let program =
            if cfg!(target_os = "linux") { PathBuf::from("/proc/self/exe") } else { std::env::current_exe()? };
        Ok(Self { program, args })
    }
}

/// Why a package was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error("the compiler does not accept the package: {0}")]
    Refused(String),
    #[error("the compiled package is larger than {bytes_max} bytes")]
    TooLarge { bytes_max: u64 },
    #[error("compiling took longer than {} s", .limit.as_secs())]
    TooSlow { limit: Duration },
    #[error("the compiler process ended early ({status}); a package that needs too much memory does this")]
    Crashed { status: String },
    #[error("the compiler process cannot be started or spoken to")]
    Unavailable(#[source] std::io::Error),
}

impl CompileError {
    /// Whether the same package may well be compiled the next time: only the compiler's own word is about the package alone. A child
    /// that was slow, killed or never began says as much about this machine, and the package may have been compiled before.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused(_) | Self::TooLarge { .. } => false,
            Self::TooSlow { .. } | Self::Crashed { .. } | Self::Unavailable(_) => true,
        }
    }
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
        let mut command = Command::new(&self.command.program);
        command
            .args(&self.command.args)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command.spawn().map_err(CompileError::Unavailable)?;
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
        let (status, (artifact, whole), (message, _)) = result.map_err(CompileError::Unavailable)?;
        let message = || crate::call_log::harmless(&String::from_utf8_lossy(&message));
        if status.success() {
            if whole { Ok(artifact) } else { Err(CompileError::TooLarge { bytes_max: ARTIFACT_BYTES_MAX }) }
        } else if status.code() == Some(i32::from(EXIT_REFUSED)) {
            Err(CompileError::Refused(message()))
        } else if status.code() == Some(i32::from(EXIT_BROKEN)) {
            Err(CompileError::Unavailable(std::io::Error::other(message())))
        } else {
            Err(CompileError::Crashed { status: status.to_string() })
        }
    }
}

/// What comes, up to so many bytes, and whether that is all.
async fn read(mut from: impl AsyncRead + Unpin, bytes_max: u64) -> std::io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    (&mut from).take(bytes_max).read_to_end(&mut bytes).await?;
    // What is over is read and thrown away, so that the child is not left waiting.
    let over = tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok((bytes, over == 0))
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

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A shell that says which process it is and then does `then`.
    fn shell(directory: &Path, then: &str, wall: Duration) -> Compiler {
        let script = format!("echo $$ > {}/pid; {then}", directory.display());
        let command = CompilerCommand { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()] };
        Compiler { command, at_once: Semaphore::new(1), wall }
    }

    #[cfg(target_os = "linux")]
    fn pid(directory: &Path) -> u32 {
        std::fs::read_to_string(directory.join("pid")).unwrap().trim().parse().unwrap()
    }

    #[tokio::test]
    async fn a_child_without_an_end_is_killed_when_its_time_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let compiler = shell(directory.path(), "while :; do :; done", Duration::from_secs(1));
        let error = compiler.compile(EngineKind::Effectful, b"").await.unwrap_err();
        assert!(matches!(error, CompileError::TooSlow { .. }), "{error}");
        assert!(error.is_retryable());
        // It was killed and waited for: no such process is left, not even a dead one.
        #[cfg(target_os = "linux")]
        assert!(!Path::new(&format!("/proc/{}", pid(directory.path()))).exists());
    }

    #[tokio::test]
    async fn a_child_that_is_killed_says_nothing_about_the_package() {
        let directory = tempfile::tempdir().unwrap();
        for end in ["kill -9 $$", "kill -15 $$", "kill -24 $$", "exit 9"] {
            let compiler = shell(directory.path(), end, Duration::from_mins(1));
            let error = compiler.compile(EngineKind::Effectful, b"").await.unwrap_err();
            assert!(matches!(error, CompileError::Crashed { .. }) && error.is_retryable(), "{end}: {error}");
        }
        let broken = shell(directory.path(), "echo no memory >&2; exit 4", Duration::from_mins(1));
        let error = broken.compile(EngineKind::Effectful, b"").await.unwrap_err();
        assert!(matches!(error, CompileError::Unavailable(_)) && error.is_retryable(), "{error}");
        let refuses = shell(directory.path(), "echo no >&2; exit 3", Duration::from_mins(1));
        let error = refuses.compile(EngineKind::Effectful, b"").await.unwrap_err();
        assert!(matches!(error, CompileError::Refused(_)) && !error.is_retryable(), "{error}");
    }

    /// The third number of `/proc/PID/stat` behind the name in parentheses is the process group.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_child_has_a_process_group_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let keep = format!("read line < /proc/$$/stat; echo \"$line\" > {}/stat", directory.path().display());
        let compiler = shell(directory.path(), &keep, Duration::from_mins(1));
        compiler.compile(EngineKind::Effectful, b"").await.unwrap();
        let stat = std::fs::read_to_string(directory.path().join("stat")).unwrap();
        let group = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(2).unwrap().to_owned();
        assert_eq!(group, pid(directory.path()).to_string());
    }

    #[tokio::test]
    async fn an_artifact_that_is_too_large_is_no_artifact() {
        assert_eq!(read(&b"1234"[..], 4).await.unwrap(), (b"1234".to_vec(), true));
        assert_eq!(read(&b"12345"[..], 4).await.unwrap(), (b"1234".to_vec(), false));
    }
}
