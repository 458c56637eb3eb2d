//! `bulkhead backup` and `bulkhead restore`: the operator's copy of everything but the keys, and the way back.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use bulkhead_app::key::look_before_opening;
use bulkhead_model::ambient::Ambient;
use bulkhead_store::backup::{self, Progress, RestoredKeys, Summary};
use bulkhead_store::seal::Sealer;
use serde_json::json;

use crate::config::{Config, Secret};
use crate::host::store_config;
use crate::keys;

/// Which database; without these, the configuration's.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// The data directory, with the root key and, with SQLite, the database
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// PostgreSQL instead of the configuration's database: the database owner's address
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
}

impl Place {
    fn apply(self, config: &mut Config) {
        if let Some(dir) = self.data_dir {
            config.server.data_dir = dir;
        }
        if let Some(url) = self.database_url {
            config.database.owner_url = Some(Secret::new(url));
            config.database.url = None;
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct BackupArgs {
    #[command(subcommand)]
    command: Option<BackupCommand>,
    /// The file to write; it appears when it is complete
    #[arg(long, value_name = "FILE", required = true)]
    out: Option<PathBuf>,
    /// Replace FILE if it is there
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    place: Place,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum BackupCommand {
    /// Check that a backup is whole, without a database
    #[command(
        after_help = "Without the root key in the data directory the checksum is compared and nothing is opened.\n\n\
        Example:\n  bulkhead backup verify monday.bulkhead --data-dir /var/lib/bulkhead"
    )]
    Verify {
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The directory with the root key
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
        /// Print a summary as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct RestoreArgs {
    /// The backup
    #[arg(long = "in", value_name = "FILE")]
    input: PathBuf,
    #[command(flatten)]
    place: Place,
    /// Revoke every API key that the backup holds: what was revoked since it was made would work again
    #[arg(long)]
    revoke_keys: bool,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
}

/// `bulkhead backup`
pub(crate) async fn run(mut config: Config, args: BackupArgs) -> Result<ExitCode> {
    if let Some(BackupCommand::Verify { file, data_dir, json }) = args.command {
        if let Some(dir) = data_dir {
            config.server.data_dir = dir;
        }
        return verify(&config, &file, json);
    }
    let path = args.out.context("say where to with --out FILE")?;
    args.place.apply(&mut config);
    ensure!(args.replace || !path.exists(), "{} is there already: name another file, or add --replace", path.display());
    let ambient = Ambient::system();
    let root_key = keys::load(&config, false, &ambient)?.base().clone();
    let (partial, file) = open_partial(&path)?;
    let made = backup::create(
        &store_config(&config, &root_key),
        &root_key,
        &ambient,
        env!("CARGO_PKG_VERSION"),
        BufWriter::new(&file),
        &mut tell("read"),
    )
    .await;
    let (out, summary) = match made {
        Ok(made) => made,
        Err(error) => {
            // What is there of it is of no use.
            drop(std::fs::remove_file(&partial));
            return Err(error).context("the backup was not made");
        }
    };
    drop(out);
    file.sync_all().with_context(|| format!("cannot write {}", partial.display()))?;
    std::fs::rename(&partial, &path).with_context(|| format!("cannot write {}", path.display()))?;
    File::open(folder(&path))?.sync_all()?;
    report(&path, &summary, args.json, "backed up");
    if !args.json {
        let key = keys::path(&config);
        eprintln!("keep a copy of {} too, in another place: without it nobody can open the backup", key.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn verify(config: &Config, path: &Path, json: bool) -> Result<ExitCode> {
    let file = open(path)?;
    let roots = if keys::are_there(config) { Some(keys::load(config, false, &Ambient::system())?) } else { None };
    match backup::verify(file, roots.as_ref()) {
        Ok(summary) => {
            report(path, &summary, json, "whole");
            if roots.is_none() && !json {
                eprintln!("not opened, since there is no root key in {}", config.server.data_dir.display());
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error @ (backup::BackupError::Io(_) | backup::BackupError::Store(_))) => Err(error.into()),
        Err(error) => {
            if json {
                println!("{}", json!({ "file": path, "ok": false, "why": error.to_string() }));
            } else {
                eprintln!("{}: {error}", path.display());
            }
            Ok(ExitCode::from(1))
        }
    }
}

/// `bulkhead restore`
pub(crate) async fn restore(mut config: Config, args: RestoreArgs) -> Result<ExitCode> {
    args.place.apply(&mut config);
    let file = open(&args.input)?;
    let ambient = Ambient::system();
    let dir = &config.server.data_dir;
    if !keys::are_there(&config) {
        bail!(
            "{0} is missing: a restore needs the root key of the server that made the backup. Put it there first: \
             `mkdir -p -m 700 {1} && install -m 600 YOUR-COPY {0}`",
            keys::path(&config).display(),
            dir.display()
        );
    }
    let roots = keys::load(&config, false, &ambient)?;
    let root_key = roots.base().clone();
    let store_config = store_config(&config, &root_key);
    look_before_opening(&store_config, &Sealer::with_roots(Arc::new(roots.clone()), ambient.clone())).await?;
    let keys = if args.revoke_keys { RestoredKeys::Revoked } else { RestoredKeys::AsTheyWere };
    let summary = backup::restore_with(&store_config, &roots, &ambient, file, keys, &mut tell("restored"))
        .await
        .context("nothing was restored")?;
    report(&args.input, &summary, args.json, "restored");
    if args.revoke_keys && !args.json {
        eprintln!("every API key is revoked: make new ones with `bulkhead admin create-key`");
    } else if !args.json {
        eprintln!(
            "API keys are as they were then: what was revoked since {} works again until it is revoked again (--revoke-keys revokes all)",
            summary.header.created_at
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot read {}", path.display()))
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// `FILE.partial`, for its owner only, and nobody else's at this moment.
fn open_partial(path: &Path) -> Result<(PathBuf, File)> {
    let mut name = path.file_name().context("--out names a file")?.to_owned();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let cannot = || format!("cannot write {}", partial.display());
    let file = File::options().create(true).write(true).truncate(false).mode(0o600).open(&partial);
    let file = file.with_context(cannot)?;
    if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
        bail!("another backup is being written to {}", partial.display());
    }
    // Between the opening and the lock another backup may have ended and given this very file its name.
    if std::fs::metadata(&partial).with_context(cannot)?.ino() != file.metadata().with_context(cannot)?.ino() {
        bail!("another backup was just written to {}: try again", path.display());
    }
    // One that was left behind by a killed backup is begun anew.
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).with_context(cannot)?;
    file.set_len(0).with_context(cannot)?;
    Ok((partial, file))
}

/// A line for each table, and one now and then within a large one.
fn tell(verb: &'static str) -> impl FnMut(Progress<'_>) {
    move |progress| {
        // Not `eprintln!`: that nobody looks must not end a backup.
        drop(writeln!(std::io::stderr(), "{verb} {:<20} {}", progress.table, progress.rows));
    }
}

fn report(path: &Path, summary: &Summary, json: bool, what: &str) {
    if json {
        let header = &summary.header;
        let text = json!({
            "file": path,
            "ok": true,
            "bytes": summary.bytes,
            "sha256": summary.sha256,
            "created_at": header.created_at,
            "product": header.product,
            "database": header.database,
            "rows": summary.rows,
        });
        println!("{text}");
        return;
    }
    let rows = match &summary.rows {
        Some(rows) => format!("{} rows", rows.values().sum::<u64>()),
        None => "rows not counted".to_owned(),
    };
    println!(
        "{what}: {} ({rows}, {} bytes, made {} from {} by {})",
        path.display(),
        summary.bytes,
        summary.header.created_at,
        summary.header.database,
        summary.header.product
    );
}
