//! `bulkhead audit`, and the sealer with its anchor: checkpoints that are kept where the database's administrator cannot reach them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bulkhead_app::audit_log::NewCheckpoint;
use bulkhead_audit::bundle::LINE_BYTES_MAX;
use bulkhead_audit::key::VerifierKey;
use bulkhead_audit::verify::{Expectation, Report, Resume, Verifier};
use clap::Subcommand;

use crate::admin::require_org;
use crate::config::Config;
use crate::host::{FirstStart, Host};

/// Waiting entries are looked for this often: what one crash or one administrator can still reach is younger than that.
const SEAL_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Verify an exported bundle, without any database
    #[command(
        after_help = "Examples:\n  bulkhead audit verify acme.jsonl --key 'bulkhead/audit/org_…+1a2b3c4d+A…'\n  \
        bulkhead audit verify acme.jsonl --key-file acme.key --checkpoint monday.checkpoint --state acme.state\n\n\
        Without a key that came by another way than the bundle, it is only shown that the bundle fits together. A checkpoint that was \
        kept shows that nothing below it was changed, removed or added since."
    )]
    Verify {
        /// The bundle
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        known: Known,
        /// Go on from where the last verification ended, and keep where this one does
        #[arg(long, value_name = "FILE")]
        state: Option<PathBuf>,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Verify an organization's log in the database. With SQLite the server must not be running
    #[command(
        after_help = "Example:\n  bulkhead audit verify-database acme --checkpoint /mnt/anchor/org_…/latest.checkpoint"
    )]
    VerifyDatabase {
        /// The organization's short name
        org: String,
        #[command(flatten)]
        known: Known,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Write a bundle of an organization's log. With SQLite the server must not be running
    #[command(after_help = "Example:\n  bulkhead audit export acme --out acme.jsonl --key-out acme.key")]
    Export {
        /// The organization's short name
        org: String,
        /// The bundle to write; it must not be there yet
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// The number of the first entry
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// Adds the proof from a checkpoint over so many entries, for whoever kept it
        #[arg(long, value_name = "SIZE")]
        since: Option<u64>,
        /// Where to write the log's verifier key, to be given on by another way
        #[arg(long, value_name = "FILE")]
        key_out: Option<PathBuf>,
    },
}

/// What is known beforehand.
#[derive(Debug, clap::Args)]
pub(crate) struct Known {
    /// A verifier key of the log (repeatable)
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// A file with verifier keys, one a line (repeatable)
    #[arg(long = "key-file", value_name = "FILE")]
    key_files: Vec<PathBuf>,
    /// A file with a checkpoint that was kept (repeatable)
    #[arg(long = "checkpoint", value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
}

impl Known {
    fn read(&self) -> Result<(Vec<VerifierKey>, Vec<String>)> {
        let mut texts = self.keys.clone();
        for file in &self.key_files {
            let text = read(file)?;
            texts.extend(text.lines().filter(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned()));
        }
        let parse = |text: &String| {
            text.parse::<VerifierKey>()
                .with_context(|| format!("{text:?} is no verifier key (a file with keys goes to --key-file)"))
        };
        let keys = texts.iter().map(parse).collect::<Result<_>>()?;
        Ok((keys, self.checkpoints.iter().map(|file| read(file)).collect::<Result<_>>()?))
    }
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// `bulkhead audit verify`: needs no configuration and no database.
pub(crate) fn verify(file: &Path, known: &Known, state: Option<&Path>, json: bool) -> Result<ExitCode> {
    let (keys, kept) = known.read()?;
    let resume = match state.filter(|state| state.exists()) {
        Some(state) => Some(serde_json::from_str::<Resume>(&read(state)?).context("the state is not one")?),
        None => None,
    };
    let mut verifier = Verifier::new(Expectation { keys, kept, org: None, resume, end: true });
    let mut bundle = BufReader::new(File::open(file).with_context(|| format!("cannot read {}", file.display()))?);
    let mut line = Vec::new();
    loop {
        line.clear();
        // Bounded: a file without line breaks is not read into memory.
        let mut limited = std::io::Read::take(&mut bundle, LINE_BYTES_MAX as u64 + 2);
        if limited.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        match std::str::from_utf8(&line) {
            Ok(text) => verifier.line(text),
            Err(_) => verifier.unreadable_line(),
        }
    }
    let report = verifier.finish();
    if let (Some(state), Some(resume)) = (state, &report.resume) {
        write_whole(state, &serde_json::to_string(resume)?)?;
    }
    tell(&report, json)
}

fn tell(report: &Report, json: bool) -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(report)?)?;
    } else {
        tell_people(&mut out, report)?;
    }
    Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn tell_people(out: &mut impl std::io::Write, report: &Report) -> Result<()> {
    for fault in &report.faults {
        writeln!(out, "{fault}")?;
    }
    let named = report.faults.len() as u64;
    if report.faults_total > named {
        writeln!(out, "and {} more", report.faults_total - named)?;
    }
    let org = report.org.as_ref().map_or("an unknown organization", |org| org.as_str());
    match (report.first, report.last) {
        (Some(first), Some(last)) => writeln!(out, "{org}: {} entries, {first} to {last}", report.entries)?,
        _ => writeln!(out, "{org}: no entries")?,
    }
    if let Some((size, root)) = &report.checkpoint {
        writeln!(out, "checkpoint over {size} entries, root {root}")?;
    }
    for expired in &report.expired {
        writeln!(out, "{} payloads expired under {} by entry {}", expired.payloads, expired.policy, expired.by)?;
    }
    for size in &report.kept_agreed {
        writeln!(out, "agrees with the kept checkpoint over {size} entries")?;
    }
    if !report.key_known {
        writeln!(out, "no key was known beforehand: this shows only that it fits together")?;
    }
    let verdict = match report.first_bad_entry() {
        _ if report.is_sound() => "sound".to_owned(),
        Some(entry) => format!("NOT SOUND: the first bad entry is {entry}"),
        None => "NOT SOUND".to_owned(),
    };
    writeln!(out, "{verdict}")?;
    Ok(())
}

/// The commands that open the database.
pub(crate) async fn run(config: Config, command: Command) -> Result<ExitCode> {
    let host = Host::open(&config, FirstStart::Embedded, std::collections::BTreeSet::new()).await?;
    let done = act(&host, &config, command).await;
    host.store.close().await;
    done
}

async fn act(host: &Host, config: &Config, command: Command) -> Result<ExitCode> {
    match command {
        Command::Verify { file, known, state, json } => verify(&file, &known, state.as_deref(), json),
        Command::VerifyDatabase { org, known, json } => {
            let org = require_org(host, &org).await?;
            let (keys, kept) = known.read()?;
            tell(&host.app.verify_audit_as_operator(org.id, keys, kept).await?, json)
        }
        Command::Export { org, out, first, since, key_out } => {
            let org = require_org(host, &org).await?;
            ensure!(!out.exists(), "{} is there already: name another file", out.display());
            let bundle = host.app.export_audit_as_operator(org.id, first, since).await?;
            write_whole(&out, &bundle)?;
            if let Some((checkpoint, key)) = host.app.audit_checkpoint_as_operator(org.id).await? {
                if let Some(file) = key_out {
                    write_whole(&file, &format!("{key}\n"))?;
                }
                if let Some(dir) = &config.audit.anchor_dir {
                    let org = org.id.to_string();
                    write_whole(&folder(dir, &org)?.join("latest.checkpoint"), &checkpoint)?;
                }
            }
            println!("wrote {}; check it with `bulkhead audit verify {}`", out.display(), out.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Writes a file so that it is there whole or not at all.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let partial = path.with_added_extension("partial");
    let written = File::create(&partial)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&partial, path));
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn folder(dir: &Path, org: &str) -> Result<PathBuf> {
    let folder = dir.join(org);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// Keeps a checkpoint in the anchor's folder, under its size and as the latest one. One that is there is never replaced: a second one of
/// the same size would be a second history.
fn anchor(dir: &Path, checkpoint: &NewCheckpoint) -> Result<()> {
    let folder = folder(dir, &checkpoint.org.to_string())?;
    let path = folder.join(format!("{:016}.checkpoint", checkpoint.size));
    if path.exists() {
        ensure!(read(&path)? == checkpoint.note, "{} holds another checkpoint of this size", path.display());
        return Ok(());
    }
    write_whole(&path, &checkpoint.note)?;
    write_whole(&folder.join("latest.checkpoint"), &checkpoint.note)
}

/// Begins to give audit entries their places, and to keep checkpoints in `audit.anchor_dir`.
pub(crate) fn start_sealer(host: &Host, config: &Config) {
    let (app, dir, stop) = (host.app.clone(), config.audit.anchor_dir.clone(), host.supervisor.stop_token());
    host.supervisor.spawn_loop("audit-sealer", move || {
        let (app, dir, stop) = (app.clone(), dir.clone(), stop.clone());
        async move {
            // By organization the newest one that could not be kept yet; older ones it covers.
            let mut to_keep: BTreeMap<bulkhead_model::id::OrgId, NewCheckpoint> = BTreeMap::new();
            while !stop.is_cancelled() {
                tokio::select! {
                    () = tokio::time::sleep(SEAL_EVERY) => {}
                    () = stop.cancelled() => return,
                }
                match app.seal_audit_logs().await {
                    Ok(signed) => to_keep.extend(signed.into_iter().map(|checkpoint| (checkpoint.org, checkpoint))),
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "audit logs were not looked at; trying again");
                    }
                }
                let Some(dir) = &dir else {
                    to_keep.clear();
                    continue;
                };
                to_keep.retain(|org, checkpoint| match anchor(dir, checkpoint) {
                    Ok(()) => {
                        metrics::counter!("bulkhead_audit_anchored_total").increment(1);
                        false
                    }
                    Err(error) => {
                        metrics::counter!("bulkhead_audit_anchor_failures_total").increment(1);
                        tracing::error!(%org, error = format!("{error:#}"), "a checkpoint could not be kept; trying again");
                        true
                    }
                });
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::ambient::Ambient;
    use bulkhead_model::id::OrgId;
    use bulkhead_model::time::Timestamp;

    #[test]
    fn an_anchored_checkpoint_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let org = OrgId::new(&Ambient::manual(Timestamp::from_micros(0), 1));
        let first = NewCheckpoint { org, size: 3, note: "one".to_owned() };
        anchor(dir.path(), &first).unwrap();
        anchor(dir.path(), &first).unwrap();
        assert!(anchor(dir.path(), &NewCheckpoint { note: "another".to_owned(), ..first.clone() }).is_err());
        anchor(dir.path(), &NewCheckpoint { size: 9, note: "two".to_owned(), ..first }).unwrap();
        let folder = dir.path().join(org.to_string());
        assert_eq!(read(&folder.join("latest.checkpoint")).unwrap(), "two");
        assert_eq!(read(&folder.join("0000000000000003.checkpoint")).unwrap(), "one");
    }
}
