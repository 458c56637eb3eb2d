//! `bulkhead audit`, and the sealer with its anchor: checkpoints that are kept where the database's administrator cannot reach them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bulkhead_app::App;
use bulkhead_app::audit_log::{KeptCheckpoint, NewCheckpoint};
use bulkhead_audit::bundle::LINE_BYTES_MAX;
use bulkhead_audit::checkpoint::Checkpoint;
use bulkhead_audit::key::VerifierKey;
use bulkhead_audit::note::Note;
use bulkhead_audit::verify::{Expectation, Report, Resume, Verifier};
use clap::Subcommand;

use crate::admin::require_org;
use crate::anchor::Outbox;
use crate::config::Config;
use crate::host::{FirstStart, Host};

/// Waiting entries are looked for this often: what one crash or one administrator can still reach is younger than that.
const SEAL_EVERY: Duration = Duration::from_secs(2);
/// Details whose time is over are looked for this often.
const EXPIRE_EVERY: Duration = Duration::from_hours(1);
/// So many kept checkpoints are named one by one; an anchor's folder has one for each minute.
const KEPT_NAMED_MAX: usize = 10;

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
        after_help = "Example:\n  bulkhead audit verify-database acme --key-file acme.key --checkpoint monday.checkpoint\n\n\
        All checkpoints in the organization's folder of audit.anchor_dir are compared as well. That it was verified becomes an entry."
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
    match report.kept_agreed.as_slice() {
        [.., last] if report.kept_agreed.len() > KEPT_NAMED_MAX => {
            writeln!(out, "agrees with {} kept checkpoints, the last over {last} entries", report.kept_agreed.len())?;
        }
        sizes => {
            for size in sizes {
                writeln!(out, "agrees with the kept checkpoint over {size} entries")?;
            }
        }
    }
    if report.waiting > 0 {
        writeln!(out, "{} entries wait for their place or for a checkpoint", report.waiting)?;
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
            let (keys, mut kept) = known.read()?;
            if let Some(dir) = &config.audit.anchor_dir {
                kept.extend(all_kept(&dir.join(org.id.to_string()))?);
            }
            tell(&host.app.verify_audit_as_operator(org.id, keys, kept).await?, json)
        }
        Command::Export { org, out, first, since, key_out } => {
            let org = require_org(host, &org).await?;
            ensure!(!out.exists(), "{} is there already: name another file", out.display());
            let mut bundle = host.app.export_audit_as_operator(org.id, first, since).await?;
            let partial = out.with_added_extension("partial");
            let cannot = || format!("cannot write {}", out.display());
            let mut file = File::create(&partial).with_context(cannot)?;
            while let Some(lines) = bundle.next().await? {
                file.write_all(lines.as_bytes()).with_context(cannot)?;
            }
            file.sync_all().and_then(|()| std::fs::rename(&partial, &out)).with_context(cannot)?;
            if let Some((note, key)) = host.app.audit_checkpoint_as_operator(org.id).await? {
                if let Some(file) = key_out {
                    write_whole(&file, &format!("{key}\n"))?;
                }
                if let Some(dir) = &config.audit.anchor_dir {
                    let checkpoint = NewCheckpoint { org: org.id, size: read_checkpoint(&note)?.size, note };
                    anchor_checked(&host.app, dir, &checkpoint).await?;
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

/// The name of an organization's newest checkpoint in its folder.
const LATEST: &str = "latest.checkpoint";

fn read_if_there(path: &Path) -> std::io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the anchor's folder has as an organization's newest checkpoint.
pub(crate) fn kept_in(dir: PathBuf) -> KeptCheckpoint {
    Arc::new(move |org| read_if_there(&dir.join(org.to_string()).join(LATEST)))
}

/// Every checkpoint in an organization's folder, each once.
fn all_kept(folder: &Path) -> Result<BTreeSet<String>> {
    if !folder.exists() {
        return Ok(BTreeSet::new());
    }
    let files = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let paths = files.map(|file| Ok(file?.path())).collect::<std::io::Result<Vec<_>>>()?;
    let is_checkpoint = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "checkpoint");
    paths.iter().filter(is_checkpoint).map(|path| read(path)).collect()
}

fn read_checkpoint(note: &str) -> Result<Checkpoint> {
    let note = Note::parse(note).context("a checkpoint is not a signed note")?;
    Checkpoint::from_text(note.text()).context("a note is not a checkpoint")
}

/// Keeps a checkpoint in the anchor's folder, under its size and as the latest one. One that is there is never replaced: a second one of
/// the same size would be a second history. The latest one gives way only to a longer one that it is the beginning of, which `continues`
/// (old, new) checks.
async fn anchor<F>(dir: &Path, checkpoint: &NewCheckpoint, continues: impl Fn(String, String) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let folder = folder(dir, &checkpoint.org.to_string())?;
    let (path, latest) = (folder.join(format!("{:016}.checkpoint", checkpoint.size)), folder.join(LATEST));
    let mut is_newest = true;
    if let Some(before) = read_if_there(&latest).with_context(|| format!("cannot read {}", latest.display()))?
        && before != checkpoint.note
    {
        let size = read_checkpoint(&before)?.size;
        ensure!(size != checkpoint.size, "{} holds another checkpoint of this size", latest.display());
        // Another node may have been quicker with a longer one.
        is_newest = size < checkpoint.size;
        let new = checkpoint.note.clone();
        let (old, new) = if is_newest { (before, new) } else { (new, before) };
        continues(old, new).await.with_context(|| format!("{} is another history's", latest.display()))?;
    }
    match read_if_there(&path).with_context(|| format!("cannot read {}", path.display()))? {
        Some(kept) => ensure!(kept == checkpoint.note, "{} holds another checkpoint of this size", path.display()),
        None => write_whole(&path, &checkpoint.note)?,
    }
    if is_newest { write_whole(&latest, &checkpoint.note) } else { Ok(()) }
}

async fn anchor_checked(app: &App, dir: &Path, checkpoint: &NewCheckpoint) -> Result<()> {
    let org = checkpoint.org;
    let continues = move |old: String, new: String| async move {
        app.check_audit_checkpoints(org, &old, &new).await.map_err(anyhow::Error::from)
    };
    anchor(dir, checkpoint, continues).await
}

/// Begins to give audit entries their places, to keep checkpoints in `audit.anchor_dir`, and to have them told. The newest ones are kept
/// and told anew at the start: whoever signed them may have stopped before.
pub(crate) fn start_sealer(host: &Host, config: &Config, outbox: Option<Outbox>) {
    let (app, dir, stop) = (host.app.clone(), config.audit.anchor_dir.clone(), host.supervisor.stop_token());
    host.supervisor.spawn_loop("audit-sealer", move || {
        let (app, dir, outbox, stop) = (app.clone(), dir.clone(), outbox.clone(), stop.clone());
        async move {
            // By organization the newest one that could not be kept yet; older ones it covers.
            let mut to_keep: BTreeMap<bulkhead_model::id::OrgId, NewCheckpoint> = BTreeMap::new();
            let mut is_caught_up = dir.is_none() && outbox.is_none();
            while !stop.is_cancelled() {
                tokio::select! {
                    () = tokio::time::sleep(SEAL_EVERY) => {}
                    () = stop.cancelled() => return,
                }
                if !is_caught_up {
                    match app.newest_audit_checkpoints().await {
                        Ok(newest) => {
                            is_caught_up = true;
                            if let Some(outbox) = &outbox {
 for checkpoint in &newest { outbox.put(checkpoint.clone()); }
 }
                            to_keep.extend(newest.into_iter().map(|checkpoint| (checkpoint.org, checkpoint)));
                        }
                        Err(error) => {
                            tracing::warn!(error = &error as &dyn std::error::Error, "checkpoints were not read; trying again");
                        }
                    }
                }
                match app.seal_audit_logs().await {
                    Ok(signed) => {
                        if let Some(outbox) = &outbox {
 for checkpoint in &signed { outbox.put(checkpoint.clone()); }
 }
                        to_keep.extend(signed.into_iter().map(|checkpoint| (checkpoint.org, checkpoint)));
                    }
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "audit logs were not looked at; trying again");
                    }
                }
                let Some(dir) = &dir else {
                    to_keep.clear();
                    continue;
                };
                for (org, checkpoint) in std::mem::take(&mut to_keep) {
                    match anchor_checked(&app, dir, &checkpoint).await {
                        Ok(()) => metrics::counter!("bulkhead_audit_anchored_total").increment(1),
                        Err(error) => {
                            metrics::counter!("bulkhead_audit_anchor_failures_total").increment(1);
                            tracing::error!(%org, error = format!("{error:#}"), "a checkpoint could not be kept; trying again");
                            to_keep.insert(org, checkpoint);
                        }
                    }
                }
            }
        }
    });
}

/// Begins to forget details of entries whose time is over.
pub(crate) fn start_expiry(host: &Host) {
    let (app, stop) = (host.app.clone(), host.supervisor.stop_token());
    host.supervisor.spawn_loop("audit-expiry", move || {
        let (app, stop) = (app.clone(), stop.clone());
        async move {
            while !stop.is_cancelled() {
                tokio::select! {
                    () = tokio::time::sleep(EXPIRE_EVERY) => {}
                    () = stop.cancelled() => return,
                }
                match app.expire_audit_payloads().await {
                    Ok(0) => {}
                    Ok(payloads) => tracing::info!(payloads, "forgot details of audit entries whose time is over"),
                    Err(error) => {
                        metrics::counter!("bulkhead_audit_expiry_failures_total").increment(1);
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "audit logs were not looked at; trying again"
                        );
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_audit::hash::Hash;
    use bulkhead_audit::key::SignerKey;
    use bulkhead_model::ambient::Ambient;
    use bulkhead_model::id::OrgId;
    use bulkhead_model::time::Timestamp;

    fn checkpoint(org: OrgId, size: u64, root: u8) -> NewCheckpoint {
        let origin = bulkhead_audit::chain::origin(&org.to_string().parse().unwrap());
        let key = SignerKey::from_seed(&origin, &[1; 32]).unwrap();
        let text = Checkpoint { origin, size, root: Hash::from_bytes([root; 32]) }.text();
        NewCheckpoint { org, size, note: Note::sign(text, &key).unwrap().to_string() }
    }

    #[tokio::test]
    async fn an_anchored_checkpoint_gives_way_only_to_a_longer_one_that_continues_it() {
        let dir = tempfile::tempdir().unwrap();
        let org = OrgId::new(&Ambient::manual(Timestamp::from_micros(0), 1));
        let kept = |checkpoint: NewCheckpoint| {
            let path = dir.path().to_owned();
            async move {
                // Roots of one history are even numbers here.
                let root = |note: &str| read_checkpoint(note).map(|checkpoint| checkpoint.root.as_bytes()[0]);
                let continues = |old: String, new: String| async move {
                    ensure!(read_checkpoint(&old)?.size < read_checkpoint(&new)?.size, "asked the wrong way round");
                    ensure!(root(&old)? % 2 == root(&new)? % 2, "it does not");
                    Ok(())
                };
                anchor(&path, &checkpoint, continues).await.is_ok()
            }
        };
        let folder = dir.path().join(org.to_string());
        let latest = || read_checkpoint(&read(&folder.join(LATEST)).unwrap()).unwrap().size;
        assert!(kept(checkpoint(org, 10, 2)).await);
        assert!(kept(checkpoint(org, 10, 2)).await, "again the same");
        assert!(!kept(checkpoint(org, 10, 4)).await, "a second one of that size");
        assert!(!kept(checkpoint(org, 12, 3)).await, "a longer one of another history");
        assert!(!kept(checkpoint(org, 5, 3)).await, "a shorter one of another history: the log was cut off");
        assert_eq!((latest(), all_kept(&folder).unwrap().len()), (10, 1), "nothing of these is kept");
        assert!(kept(checkpoint(org, 7, 6)).await, "another node was quicker with the longer one");
        assert_eq!(latest(), 10);
        assert!(kept(checkpoint(org, 20, 8)).await);
        assert_eq!((latest(), all_kept(&folder).unwrap().len()), (20, 3));
        assert_eq!(kept_in(dir.path().to_owned())(org).unwrap(), Some(checkpoint(org, 20, 8).note));
        let other = OrgId::new(&Ambient::manual(Timestamp::from_micros(0), 2));
        assert_eq!(kept_in(dir.path().to_owned())(other).unwrap(), None);
        assert!(all_kept(&dir.path().join(other.to_string())).unwrap().is_empty());
        std::fs::write(folder.join(LATEST), "no checkpoint").unwrap();
        assert!(!kept(checkpoint(org, 30, 8)).await, "what cannot be read is not written over");
    }
}
