//! What the operator did to the root keys, until each organization's audit log says it.
//!
//! The commands change a file, beside a server that may run and hold the database. So an act is put down beside `root.key` before it is done,
//! and the server of that directory tells it: at its start, and every few seconds while it runs.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bulkhead_app::App;
use bulkhead_app::key::{RootAct, RootDeed};
use bulkhead_model::ambient::Ambient;
use bulkhead_store::seal::{RootId, RootStanding};
use rustix::fs::OFlags;

use super::lock;
use crate::config::Config;
use crate::host::Host;

/// How often the server looks for acts that were not told yet …
const TELL_EVERY: Duration = Duration::from_secs(10);
/// … and when it could not read or tell them.
const TELL_AGAIN: Duration = Duration::from_mins(1);
/// Bytes that the file has at most: some hundred acts.
const FILE_BYTES_MAX: u64 = 64 * 1024;

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("root.key.acts")
}

/// What was done between these two: where each root key stood, and where it stands.
pub(super) fn between(
    before: &[(RootId, RootStanding)],
    after: &[(RootId, RootStanding)],
    ambient: &Ambient,
) -> Vec<RootAct> {
    let of = |keys: &[(RootId, RootStanding)], id| keys.iter().find(|(of, _)| *of == id).map(|(_, standing)| *standing);
    let wrapped = before.iter().find(|(_, standing)| *standing == RootStanding::Active).map(|(id, _)| *id);
    let ids: Vec<RootId> = before.iter().map(|(id, _)| *id).chain(after.iter().map(|(id, _)| *id)).collect();
    let mut acts: Vec<RootAct> = Vec::new();
    for id in ids {
        let (was, is) = (of(before, id), of(after, id));
        let what = match (was, is) {
            (None, Some(_)) => RootDeed::Added,
            (Some(_), None) => RootDeed::Removed,
            (Some(RootStanding::Next), Some(RootStanding::Active)) => RootDeed::Used,
            // Nothing, or what follows from another one that is used.
            (Some(_), Some(_)) | (None, None) => continue,
        };
        let root = id.to_string();
        if acts.iter().any(|act| act.root == root) {
            continue;
        }
        acts.push(RootAct {
            id: hex::encode(ambient.random::<8>()),
            what,
            root,
            was: was.map(|standing| standing.as_str().to_owned()),
            is: is.map(|standing| standing.as_str().to_owned()),
            instead_of: wrapped.filter(|_| what == RootDeed::Used).map(|id| id.to_string()),
            at: ambient.now(),
        });
    }
    acts
}

fn open(data_dir: &Path, options: &mut OpenOptions) -> std::io::Result<File> {
    options.read(true).write(true).mode(0o600).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    options.open(path(data_dir))
}

/// The lines that were written to their end: an act whose line was not was not done either.
fn whole_lines(file: &mut File) -> Result<String> {
    let (meta, user) = (file.metadata()?, rustix::process::geteuid().as_raw());
    let mode = meta.mode() & 0o777;
    ensure!(meta.is_file(), "it is no file");
    // What stands in it is signed in every organization's log: as with the keys themselves, nobody else writes it.
    ensure!(
        meta.uid() == user && mode & !0o700 == 0,
        "it is open to others than the user who runs this: remove it, or `chmod 600` and `chown` it"
    );
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
    Ok(text)
}

/// Puts acts down that are about to be done; answers how long the file was before. Under the lock.
pub(super) fn put_down(data_dir: &Path, acts: &[RootAct]) -> Result<u64> {
    let cannot = || format!("cannot write down in {} what is about to be done", path(data_dir).display());
    let mut file = open(data_dir, OpenOptions::new().create(true).truncate(false)).with_context(cannot)?;
    let before = whole_lines(&mut file).with_context(cannot)?.len() as u64;
    let mut text = String::new();
    for act in acts {
        text.push_str(&serde_json::to_string(act)?);
        text.push('\n');
    }
    ensure!(
        before + text.len() as u64 <= FILE_BYTES_MAX,
        "{} is full: start the server, which tells it",
        path(data_dir).display()
    );
    file.set_len(before).with_context(cannot)?;
    file.seek(SeekFrom::End(0)).with_context(cannot)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(cannot)?;
    File::open(data_dir)?.sync_all()?;
    Ok(before)
}

/// Takes acts back that were put down and could not be done. Under the lock.
pub(super) fn take_back(data_dir: &Path, before: u64) -> Result<()> {
    let file = open(data_dir, &mut OpenOptions::new())?;
    file.set_len(before)?;
    Ok(file.sync_all()?)
}

fn read(data_dir: &Path) -> Result<Vec<RootAct>> {
    let mut file = match open(data_dir, &mut OpenOptions::new()) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path(data_dir).display())),
    };
    let cannot = || format!("{} cannot be used; removed, what it says is in no audit log", path(data_dir).display());
    let lines = whole_lines(&mut file).with_context(cannot)?;
    lines.lines().map(|line| serde_json::from_str(line).with_context(cannot)).collect()
}

/// Takes away what was told.
fn forget(data_dir: &Path, told: &BTreeSet<String>) -> Result<()> {
    let _lock = lock(data_dir)?;
    let left: Vec<RootAct> = read(data_dir)?.into_iter().filter(|act| !told.contains(&act.id)).collect();
    if left.is_empty() {
        return Ok(std::fs::remove_file(path(data_dir))?);
    }
    // Beside it and then moved: a crash leaves what was there or what is left.
    let fresh = data_dir.join("root.key.acts.new");
    if let Err(error) = std::fs::remove_file(&fresh)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error.into());
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    for act in &left {
        writeln!(file, "{}", serde_json::to_string(act)?)?;
    }
    file.sync_all()?;
    std::fs::rename(&fresh, path(data_dir))?;
    Ok(File::open(data_dir)?.sync_all()?)
}

async fn tell(app: &App, data_dir: &Path) -> Result<()> {
    if !path(data_dir).try_exists()? {
        return Ok(());
    }
    // What is about to be done at this moment is done or taken back when the lock is free: that may take as long as `keys.command` does.
    let dir = data_dir.to_owned();
    let look = move || -> Result<Vec<RootAct>> {
        let _lock = lock(&dir)?;
        read(&dir)
    };
    let acts = tokio::task::spawn_blocking(look).await??;
    let mut told = BTreeSet::new();
    for act in acts {
        let logs = app.tell_root_act(&act).await.context("an organization's log cannot be written")?;
        tracing::info!(
            root = act.root,
            what = act.what.as_str(),
            logs,
            "what was done to a root key is in the audit logs"
        );
        told.insert(act.id);
    }
    // A crash before this tells them again, which leaves no second entry.
    if told.is_empty() {
        return Ok(());
    }
    let dir = data_dir.to_owned();
    tokio::task::spawn_blocking(move || forget(&dir, &told)).await?
}

/// Begins to tell what is done to the root keys of this directory.
pub(crate) fn start_telling(host: &Host, config: &Config) {
    if config.keys.root.is_some() {
        return;
    }
    let (app, data_dir, stop) = (host.app.clone(), config.server.data_dir.clone(), host.supervisor.stop_token());
    host.supervisor.spawn_loop("root-key-acts", move || {
        let (app, data_dir, stop) = (app.clone(), data_dir.clone(), stop.clone());
        async move {
            while !stop.is_cancelled() {
                let pause = match tell(&app, &data_dir).await {
                    Ok(()) => TELL_EVERY,
                    Err(error) => {
                        metrics::counter!("bulkhead_root_key_acts_untold_total").increment(1);
                        tracing::error!(
                            error = format!("{error:#}"),
                            "what was done to root keys is not told; trying again"
                        );
                        TELL_AGAIN
                    }
                };
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stop.cancelled() => return,
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_store::seal::{RootKey, RootKeys};

    fn key(byte: u8) -> RootKey {
        RootKey::new([byte; 32])
    }

    fn acts(before: &RootKeys, after: &RootKeys) -> Vec<RootAct> {
        between(&before.standings(), &after.standings(), &Ambient::system())
    }

    #[test]
    fn each_act_is_told_with_where_the_key_stood() {
        let one = RootKeys::single(key(1));
        let two = one.with_next(key(2)).unwrap();
        let used = two.with_next_in_use().unwrap();
        let three = used.with_next(key(3)).unwrap().with_next_in_use().unwrap();
        let (first, second) = (key(1).id(), key(2).id());
        let without = three.without(second).unwrap();
        let told = |before: &RootKeys, after: &RootKeys| {
            let mut acts = acts(before, after);
            assert_eq!(acts.len(), 1, "{acts:?}");
            acts.remove(0)
        };
        let added = told(&one, &two);
        assert_eq!((added.what, &*added.root), (RootDeed::Added, &*second.to_string()));
        assert_eq!((added.was.as_deref(), added.is.as_deref()), (None, Some("next")));
        let begun = told(&two, &used);
        assert_eq!((begun.what, &*begun.root), (RootDeed::Used, &*second.to_string()));
        assert_eq!(begun.instead_of, Some(first.to_string()));
        let removed = told(&three, &without);
        assert_eq!((removed.what, &*removed.root, removed.is), (RootDeed::Removed, &*second.to_string(), None));
        assert!(acts(&two, &two).is_empty());
    }

    #[test]
    fn acts_are_kept_until_they_are_told_and_half_a_line_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let one = RootKeys::single(key(1));
        let (first, second) =
            (acts(&one, &one.with_next(key(2)).unwrap()), acts(&one, &one.with_next(key(3)).unwrap()));
        assert!(read(dir.path()).unwrap().is_empty());
        assert_eq!(put_down(dir.path(), &first).unwrap(), 0);
        let mut file = OpenOptions::new().append(true).open(path(dir.path())).unwrap();
        file.write_all(b"{\"id\":\"half").unwrap();
        assert_eq!(read(dir.path()).unwrap(), first);
        let before = put_down(dir.path(), &second).unwrap();
        assert_eq!(read(dir.path()).unwrap(), [first.clone(), second.clone()].concat());
        take_back(dir.path(), before).unwrap();
        assert_eq!(read(dir.path()).unwrap(), first, "what could not be done");
        put_down(dir.path(), &second).unwrap();
        forget(dir.path(), &BTreeSet::from([first[0].id.clone()])).unwrap();
        assert_eq!(read(dir.path()).unwrap(), second);
        forget(dir.path(), &BTreeSet::from([second[0].id.clone()])).unwrap();
        assert!(!path(dir.path()).exists());
    }

    #[test]
    fn a_link_is_not_followed_and_a_damaged_file_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let one = RootKeys::single(key(1));
        let added = acts(&one, &one.with_next(key(2)).unwrap());
        let elsewhere = dir.path().join("elsewhere");
        std::fs::write(&elsewhere, "theirs").unwrap();
        std::os::unix::fs::symlink(&elsewhere, path(dir.path())).unwrap();
        assert!(put_down(dir.path(), &added).is_err() && read(dir.path()).is_err());
        assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "theirs");
        std::fs::remove_file(path(dir.path())).unwrap();
        std::fs::write(path(dir.path()), "no act\n").unwrap();
        assert!(read(dir.path()).unwrap_err().to_string().contains("cannot be used"));
    }
}
