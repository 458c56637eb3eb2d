//! `bulkhead`: the one binary. `serve` runs the platform, `demo` runs it with something in it, `plugin` is the author's loop.
//!
//! Exit codes: 0 success, 1 the command did its work and the answer is no, 2 it could not do its work (wrong usage included).

mod admin;
mod anchor;
mod audit;
mod backup;
mod config;
mod demo;
mod doctor;
mod first_party;
mod host;
mod keys;
mod mail;
mod plugin_cli;
mod serve;
mod telemetry;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use bulkhead_app::{AppError, Problem};
use bulkhead_runtime::CompilerCommand;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::config::Config;

/// The argument that turns this binary into the compiler's child process.
const COMPILE_WORKER: &str = "compile-worker";

#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, about = "Hosts sandboxed plugins for CRM automation", propagate_version = true)]
struct Cli {
    /// Configuration file (TOML); `bulkhead config example` prints one
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    #[command(after_help = "Examples:\n  bulkhead serve\n  bulkhead serve --config /etc/bulkhead.toml\n  \
        BULKHEAD_SERVER__LISTEN=0.0.0.0:8080 bulkhead serve")]
    Serve,
    /// Run a server with a sample organization, plugins and a workflow; continues where it was
    #[command(after_help = "Examples:\n  bulkhead demo --data-dir demo-data --listen 127.0.0.1:8080\n  \
        bulkhead demo --data-dir d --listen 127.0.0.1:8080 --sink http://127.0.0.1:9000/\n  \
        bulkhead demo --data-dir d --listen 127.0.0.1:8080 --database-url postgres://owner@localhost/bulkhead\n\n\
        DIR/demo.json holds the address, an API key and the workflow's webhook address.")]
    Demo(demo::Args),
    /// Bring the database to this version's schema and stop
    Migrate,
    /// Write everything but the keys into one file, while the server serves
    #[command(after_help = "Examples:\n  bulkhead backup --out monday.bulkhead\n  \
        bulkhead backup --out monday.bulkhead --data-dir /var/lib/bulkhead\n  \
        bulkhead backup verify monday.bulkhead\n\n\
        The file is one moment of the database, encrypted under a key derived from the root key (root.key in the data \
        directory), which is not in it. Keep a copy of the root key in another place: without it the backup is of no use.")]
    Backup(backup::BackupArgs),
    /// Put a backup into an empty database of either kind
    #[command(after_help = "Examples:\n  bulkhead restore --in monday.bulkhead --data-dir new\n  \
        bulkhead restore --in monday.bulkhead --data-dir new --database-url postgres://owner@localhost/bulkhead\n\n\
        The root key of the server that made the backup must lie in the data directory. Everything is restored or nothing; \
        jobs that were under way are done again. A backup of SQLite may go into PostgreSQL and back.")]
    Restore(backup::RestoreArgs),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Check that the server can run here, and say what is wrong
    Doctor(doctor::Args),
    /// The operator's own tasks, on the database itself
    #[command(subcommand)]
    Admin(admin::Command),
    /// Prove the audit log: export it, verify it
    #[command(subcommand)]
    Audit(audit::Command),
    /// Write, build, check and try plugins
    #[command(subcommand)]
    Plugin(plugin_cli::Command),
    /// Print a script that completes commands in your shell
    Completions { shell: clap_complete::Shell },
    /// The compiler's child process (started by the server itself)
    #[command(name = COMPILE_WORKER, hide = true)]
    CompileWorker,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Read the file and the environment, and say whether they are valid
    Check,
    /// Print a configuration with every key and its default
    Example,
}

/// How the compiler's child process is started: this binary again.
fn compiler() -> Result<CompilerCommand> {
    Ok(CompilerCommand::this_program(vec![COMPILE_WORKER.into()])?)
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let file = cli.config.as_deref();
    let done = match cli.command {
        Command::CompileWorker => return bulkhead_runtime::compiler::worker_main(),
        Command::Plugin(command) => match compiler() {
            Ok(compiler) => return command.run(compiler),
            Err(error) => Err(error),
        },
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "bulkhead", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(ConfigCommand::Example) => {
            print!("{}", Config::example());
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(ConfigCommand::Check) => Config::load(file).map(|_| {
            println!("the configuration is valid");
            ExitCode::SUCCESS
        }),
        Command::Serve => run(file, serve::run),
        Command::Migrate => run(file, host::migrate),
        Command::Backup(args) => run(file, |config| backup::run(config, args)),
        Command::Restore(args) => run(file, |config| backup::restore(config, args)),
        Command::Doctor(args) => run(file, |config| doctor::run(config, args)),
        Command::Audit(audit::Command::Verify { file, known, state, json }) => {
            audit::verify(&file, &known, state.as_deref(), json)
        }
        Command::Audit(command) => run(file, |config| audit::run(config, command)),
        Command::Admin(command) => run(file, |config| admin::run(config, command)),
        Command::Demo(args) => run(file, |config| demo::run(config, args)),
    };
    done.unwrap_or_else(|error| {
        // Not `eprintln!`, which panics where nothing can be written.
        let mut out = std::io::stderr();
        let mut told = writeln!(out, "error: {error:#}");
        for problem in problems_of(&error) {
            let place = if problem.path.is_empty() { "the whole" } else { &problem.path };
            told = told.and_then(|()| writeln!(out, "  at {place}: {}", problem.message));
        }
        // Where nothing can be written, the exit code still tells.
        drop(told);
        ExitCode::from(2)
    })
}

/// What the use case found wrong with its input, wherever in the chain it is told.
fn problems_of(error: &anyhow::Error) -> &[Problem] {
    error
        .chain()
        .find_map(|cause| match cause.downcast_ref::<AppError>() {
            Some(AppError::Invalid { problems, .. }) => Some(problems.as_slice()),
            _ => None,
        })
        .unwrap_or_default()
}

/// Loads the configuration and runs an asynchronous command with it.
fn run<F>(file: Option<&Path>, command: impl FnOnce(Config) -> F) -> Result<ExitCode>
where
    F: Future<Output = Result<ExitCode>>,
{
    // Root keys and secrets are in memory from here on: what the memory held must not lie in a file after a crash.
    if let Err(error) = rlimit::Resource::CORE.set(0, 0) {
        eprintln!("warning: a crash may leave a core dump: {error}");
    }
    let config = Config::load(file)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(command(config));
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    done
}
