//! The root keys: text in a file of the data directory that nobody but the server's user reads, or from the configuration. There is
//! no default: without a key the server does not start, except that the embedded database's very first start makes one.

mod acts;

use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use bulkhead_model::ambient::Ambient;
use bulkhead_store::seal::{RootKey, RootKeys};
use rustix::fs::OFlags;
use zeroize::Zeroizing;

pub(crate) use self::acts::start_telling;
use crate::config::Config;

/// Bytes that the file has at most: some hundred keys.
const FILE_BYTES_MAX: u64 = 64 * 1024;

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("root.key")
}

/// Whether there is anything to [`load`].
pub(crate) fn are_there(config: &Config) -> bool {
    config.keys.root.is_some() || path(&config.server.data_dir).exists()
}

/// Reads the keys. Where there are none, one is made, but only for a data directory that holds nothing sealed yet.
pub(crate) fn load(config: &Config, may_create: bool, ambient: &Ambient) -> Result<RootKeys> {
    match &config.keys.root {
        Some(text) => RootKeys::parse(text.reveal()).context("keys.root is not valid"),
        None => load_or_create(&config.server.data_dir, may_create, ambient),
    }
}

fn load_or_create(data_dir: &Path, may_create: bool, ambient: &Ambient) -> Result<RootKeys> {
    check_directory(data_dir)?;
    if let Some(keys) = read(data_dir)? {
        return Ok(keys);
    }
    if !may_create {
        bail!(
            "{} is missing, and what is stored was sealed with it: restore it from your backup of the keys",
            path(data_dir).display()
        );
    }
    // Payloads lie here too, not only sealed things: the folder is the server's user's alone.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .with_context(|| format!("cannot create {}", data_dir.display()))?;
    {
        let _lock = lock(data_dir)?;
        create(data_dir, &RootKeys::single(RootKey::new(ambient.random())))?;
    }
    // Whoever was first: what counts is in the file, and never what this process made.
    read(data_dir)?.with_context(|| format!("{} was taken away again", path(data_dir).display()))
}

/// Reads the file that there is. Whatever is asked of it is asked of what was opened, and not of a name that may lead elsewhere by then.
fn read(data_dir: &Path) -> Result<Option<RootKeys>> {
    let path = path(data_dir);
    // A pipe would keep the server waiting.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            bail!("{} is a link: put the file itself there", path.display())
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        bail!("{} is no file", path.display());
    }
    if meta.len() > FILE_BYTES_MAX {
        bail!("{} is larger than any file of root keys", path.display());
    }
    let (mode, user) = (meta.mode() & 0o777, rustix::process::geteuid().as_raw());
    if mode & 0o077 != 0 {
        bail!("{} can be read by others (mode {mode:o}): run `chmod 600 {0}`", path.display());
    }
    if meta.uid() != user {
        bail!(
            "{} belongs to another user ({}) than the one that runs this ({user}): run this as that user, or give the file to this one",
            path.display(),
            meta.uid()
        );
    }
    let mut text = Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
    RootKeys::parse(&text).map(Some).with_context(|| format!("{} is not valid", path.display()))
}

/// Changes of the file follow one another. The lock goes with the process, however it ends.
fn lock(data_dir: &Path) -> Result<File> {
    let path = data_dir.join("root.key.lock");
    let cannot = || format!("cannot lock {}", path.display());
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600).custom_flags(flags);
    let file = options.open(&path).with_context(cannot)?;
    file.lock().with_context(cannot)?;
    Ok(file)
}

/// Writes the keys to a file beside, which nobody else can have open, whatever was left over there or put there. Under the lock.
fn write_beside(data_dir: &Path, keys: &RootKeys) -> Result<PathBuf> {
    let fresh = data_dir.join("root.key.new");
    let cannot = || format!("cannot write {}", fresh.display());
    if let Err(error) = std::fs::remove_file(&fresh)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error).with_context(cannot);
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).with_context(cannot)?;
    file.set_permissions(Permissions::from_mode(0o600)).with_context(cannot)?;
    file.write_all(keys.to_text().as_bytes()).with_context(cannot)?;
    file.sync_all().with_context(cannot)?;
    Ok(fresh)
}

/// Puts a first key in place. One that is there by then stays: it is never written over.
fn create(data_dir: &Path, keys: &RootKeys) -> Result<()> {
    let path = path(data_dir);
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    let fresh = write_beside(data_dir, keys)?;
    // A link by another name takes a place only if nobody has it, unlike a move.
    let linked = std::fs::hard_link(&fresh, &path);
    std::fs::remove_file(&fresh)?;
    if let Err(error) = linked
        && error.kind() != ErrorKind::AlreadyExists
    {
        return Err(error).with_context(|| format!("cannot make {}", path.display()));
    }
    File::open(data_dir)?.sync_all()?;
    Ok(())
}

/// Writes the file anew. Beside it and then moved, so that a power cut leaves either the old keys or the new ones. Under the lock.
fn replace(data_dir: &Path, keys: &RootKeys) -> Result<()> {
    let fresh = write_beside(data_dir, keys)?;
    std::fs::rename(&fresh, path(data_dir)).with_context(|| format!("cannot write {}", path(data_dir).display()))?;
    File::open(data_dir)?.sync_all()?;
    Ok(())
}

/// Changes the file's keys; answers what is there now. Of two at once the second one changes what the first one left.
pub(crate) fn change(config: &Config, change: impl FnOnce(RootKeys) -> Result<RootKeys>) -> Result<RootKeys> {
    if config.keys.root.is_some() {
        bail!("the root keys come from keys.root of the configuration: change them there, in all nodes alike");
    }
    let data_dir = &config.server.data_dir;
    // Before anything is made there.
    load_or_create(data_dir, false, &Ambient::system())?;
    let _lock = lock(data_dir)?;
    let before = load_or_create(data_dir, false, &Ambient::system())?;
    let stood = before.standings();
    let changed = change(before)?;
    let acts = acts::between(&stood, &changed.standings(), &Ambient::system());
    // Before it is done: an act that nobody could ever read of is not done.
    let begun = acts::put_down(data_dir, &acts)?;
    if let Err(error) = replace(data_dir, &changed) {
        let is_done = read(data_dir).is_ok_and(|keys| keys.is_some_and(|keys| keys.standings() == changed.standings()));
        if !is_done {
            acts::take_back(data_dir, begun)?;
        }
        return Err(error);
    }
    Ok(changed)
}

/// Payloads lie in the data directory too, so others should not look into it; where everybody may write, they could put keys and
/// databases of theirs there.
fn check_directory(data_dir: &Path) -> Result<()> {
    let mode = match std::fs::metadata(data_dir) {
        Ok(meta) => meta.mode() & 0o777,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", data_dir.display())),
    };
    // A group may be how an orchestrator hands a volume over.
    let open = format!("{} is open to everybody (mode {mode:o}): run `chmod 700 {0}`", data_dir.display());
    if mode & 0o002 != 0 {
        bail!("{open}");
    }
    if mode & 0o007 != 0 {
        tracing::warn!("{open}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn config(data_dir: &Path, root: Option<&str>) -> Config {
        let mut config = Config::default();
        data_dir.clone_into(&mut config.server.data_dir);
        config.keys.root = root.map(|text| Secret::new(text.to_owned()));
        config
    }

    #[test]
    fn a_key_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let ambient = Ambient::system();
        let load = |dir: &Path, may_create| load(&config(dir, None), may_create, &ambient);
        assert!(load(dir.path(), false).is_err());
        let first = load(dir.path(), true).unwrap().base().derive("x");
        let second = load(dir.path(), false).unwrap().base().derive("x");
        assert_eq!(first, second);
        let fresh = dir.path().join("fresh");
        load(&fresh, true).unwrap();
        assert_eq!(std::fs::metadata(&fresh).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(std::fs::metadata(path(&fresh)).unwrap().permissions().mode() & 0o777, 0o600);
        let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        set(&dir.path().join("root.key"), 0o644);
        assert!(load(dir.path(), true).unwrap_err().to_string().contains("chmod 600"));
        for mode in [0o705, 0o750, 0o770] {
            set(&fresh, mode);
            load(&fresh, false).unwrap();
        }
        set(&fresh, 0o703);
        let refused = load(&fresh, false).unwrap_err().to_string();
        assert!(refused.contains("chmod 700"), "{refused}");
    }

    /// Of processes that start at once in an empty directory, all use the key that is in the file.
    #[test]
    fn of_many_first_starts_all_use_the_key_that_is_kept() {
        for _ in 0..100 {
            let dir = tempfile::tempdir().unwrap();
            let barrier = std::sync::Barrier::new(4);
            let ids: Vec<_> = std::thread::scope(|scope| {
                let starts: Vec<_> = (0..4)
                    .map(|_| {
                        scope.spawn(|| {
                            let config = config(dir.path(), None);
                            barrier.wait();
                            load(&config, true, &Ambient::system()).unwrap().base().id()
                        })
                    })
                    .collect();
                starts.into_iter().map(|start| start.join().unwrap()).collect()
            });
            let kept = load(&config(dir.path(), None), false, &Ambient::system()).unwrap().base().id();
            assert_eq!(ids, [kept; 4]);
            assert!(!dir.path().join("root.key.new").exists());
        }
    }

    /// A second start makes a key while the first one has put its own in place already.
    #[test]
    fn a_key_that_is_there_is_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let kept = load(&config(dir.path(), None), true, &Ambient::system()).unwrap().base().id();
        create(dir.path(), &RootKeys::single(RootKey::new(Ambient::system().random()))).unwrap();
        assert_eq!(load(&config(dir.path(), None), false, &Ambient::system()).unwrap().base().id(), kept);
    }

    #[test]
    fn of_many_changes_at_once_none_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        load(&config(dir.path(), None), true, &Ambient::system()).unwrap();
        let added: Vec<_> = std::thread::scope(|scope| {
            let changes: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let key = RootKey::new(Ambient::system().random());
                        let id = key.id();
                        change(&config(dir.path(), None), |keys| Ok(keys.with_next(key)?)).unwrap();
                        id
                    })
                })
                .collect();
            changes.into_iter().map(|change| change.join().unwrap()).collect()
        });
        let kept = load(&config(dir.path(), None), false, &Ambient::system()).unwrap();
        assert_eq!(kept.standings().len(), 9);
        assert!(added.iter().all(|id| kept.standings().iter().any(|(of, _)| of == id)));
    }

    /// What was left over beside the file, or put there, is neither written into nor followed.
    #[test]
    fn keys_are_written_into_no_file_that_was_there_before() {
        let dir = tempfile::tempdir().unwrap();
        let (config, beside) = (config(dir.path(), None), dir.path().join("root.key.new"));
        load(&config, true, &Ambient::system()).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        std::fs::write(&elsewhere, "theirs").unwrap();
        let readable = std::fs::Permissions::from_mode(0o644);
        let add = || change(&config, |keys| Ok(keys.with_next(RootKey::new(Ambient::system().random()))?)).unwrap();
        std::fs::write(&beside, "left over").unwrap();
        std::fs::set_permissions(&beside, readable).unwrap();
        // Somebody has it open already.
        let mut open = File::open(&beside).unwrap();
        add();
        let mut seen = String::new();
        open.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "left over");
        std::os::unix::fs::symlink(&elsewhere, &beside).unwrap();
        add();
        assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "theirs");
        let meta = path(dir.path()).symlink_metadata().unwrap();
        assert!(meta.is_file() && meta.mode() & 0o777 == 0o600, "{meta:?}");
        assert_eq!(load(&config, false, &Ambient::system()).unwrap().standings().len(), 3);
    }

    #[test]
    fn a_link_or_a_pipe_is_no_root_key() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        std::fs::create_dir(&real).unwrap();
        load(&config(&real, None), true, &Ambient::system()).unwrap();
        std::os::unix::fs::symlink(path(&real), path(dir.path())).unwrap();
        let refused = load(&config(dir.path(), None), true, &Ambient::system()).unwrap_err().to_string();
        assert!(refused.contains("is a link"), "{refused}");
        std::fs::remove_file(path(dir.path())).unwrap();
        std::fs::create_dir(path(dir.path())).unwrap();
        let refused = load(&config(dir.path(), None), true, &Ambient::system()).unwrap_err().to_string();
        assert!(refused.contains("is no file"), "{refused}");
    }

    /// Ory's services signed and sealed with a key from their own source unless one was configured (GHSA-hgx2-28f8-6g2r, -c38g-mx2c-9wf2,
    /// -r9w3-57w2-gch2).
    #[test]
    fn no_key_no_start_and_no_default() {
        let dir = tempfile::tempdir().unwrap();
        let ambient = Ambient::system();
        let refused =
            |root: Option<&str>| format!("{:#}", load(&config(dir.path(), root), false, &ambient).unwrap_err());
        assert!(refused(None).contains("is missing"));
        let zeros = "0".repeat(64);
        for text in ["", "secret", "change-me", &zeros] {
            let why = refused(Some(text));
            assert!(why.contains("keys.root"), "{why}");
            assert!(text.is_empty() || !why.contains(text), "a key is not repeated: {why}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was written");
        assert!(!are_there(&config(dir.path(), None)));
        let hex = "0123456789abcdef".repeat(4);
        assert!(are_there(&config(dir.path(), Some(&hex))));
        let from_text = load(&config(dir.path(), Some(&hex)), false, &ambient).unwrap();
        assert_eq!(from_text.standings().len(), 1);
        assert!(change(&config(dir.path(), Some(&hex)), Ok).unwrap_err().to_string().contains("keys.root"));
    }

    #[test]
    fn a_key_is_added_used_and_taken_away_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), None);
        let first = load(&config, true, &Ambient::system()).unwrap();
        let another =
            |byte| RootKey::new([byte; 31].iter().copied().chain([0]).collect::<Vec<u8>>().try_into().unwrap());
        let added = change(&config, |keys| Ok(keys.with_next(another(3))?)).unwrap();
        assert_eq!(load(&config, false, &Ambient::system()).unwrap().standings(), added.standings());
        let used = change(&config, |keys| Ok(keys.with_next_in_use()?)).unwrap();
        assert_ne!(used.standings(), added.standings());
        assert!(change(&config, |keys| Ok(keys.without(keys.base().id())?)).is_err());
        let now = load(&config, false, &Ambient::system()).unwrap();
        assert_eq!(now.standings(), used.standings(), "what was refused changed nothing");
        assert_eq!(now.base().derive("x"), first.base().derive("x"));
        assert_eq!(std::fs::metadata(path(dir.path())).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
