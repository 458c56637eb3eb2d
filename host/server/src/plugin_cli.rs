//! `bulkhead plugin …`: the author's loop. Everything here works without an account, a server or a database.

mod build;
mod check;
mod local;
mod manifest_file;
mod new;
mod report;
mod run_once;
mod sample;
mod sdk_files;

use std::path::PathBuf;
use std::process::ExitCode;

use bulkhead_runtime::CompilerCommand;
use clap::Subcommand;

/// Write, build, check and try plugins.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a project for a new plugin
    #[command(after_help = "Examples:\n  \
        bulkhead plugin new acme/tickets --kind action\n  \
        bulkhead plugin new acme/pager --kind channel --dir ~/plugins/pager\n\n\
        Then, in the project: `cargo test` runs it natively, `bulkhead plugin build` makes the package.")]
    New(new::Args),
    /// Compile a project and make its package: one .wasm file with the manifest inside
    #[command(after_help = "Examples:\n  bulkhead plugin build\n  bulkhead plugin build plugins/webhook --json\n\n\
        The package is written to target/plugins/<publisher>-<name>-<version>.wasm.")]
    Build(build::Args),
    /// Try a package against valid, hostile and malformed inputs, without any permission, and report its head-room
    #[command(after_help = "Examples:\n  bulkhead plugin check\n  \
        bulkhead plugin check target/plugins/acme-tickets-0.1.0.wasm --json\n\n\
        Nothing leaves this machine: every call is made with all permissions denied.")]
    Check(check::Args),
    /// Call one contribution once, under the real limits
    #[command(after_help = "Examples:\n  \
        bulkhead plugin run . --contribution tickets --input '{\"subject\": \"It is broken\"}'\n  \
        bulkhead plugin run acme-pager-0.1.0.wasm --contribution pager --input @notification.json \\\n      \
        --settings '{\"url\": \"http://127.0.0.1:9000/\"}' --allow-egress 127.0.0.1:9000 --grant-all\n  \
        bulkhead plugin run . --contribution has-phone --input '{\"leads\": [{\"id\": \"lead_1\", \"fields\": {}}]}'")]
    Run(run_once::Args),
}

impl Command {
    /// Runs the command. `compiler` starts the process that compiles packages to native code: this binary again.
    ///
    /// The exit code is 0 for success, 1 when the command did its work and the answer is no, 2 when it could not do its work.
    pub(crate) fn run(self, compiler: CompilerCommand) -> ExitCode {
        let done = match self {
            Self::New(args) => new::run(&args),
            Self::Build(args) => build::run(&args),
            Self::Check(args) => check::run(&args, compiler),
            Self::Run(args) => run_once::run(&args, compiler),
        };
        match done {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(1),
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::from(2)
            }
        }
    }
}

/// The package to work with: a file as it is, a project built first.
fn package_of(path: &std::path::Path) -> anyhow::Result<PathBuf> {
    if path.is_dir() { Ok(build::package(path, &build::Options::default())?.file) } else { Ok(path.to_owned()) }
}
