//! The root keys: text in a file of the data directory that nobody but the server's user reads, the same wrapped by a key service, or from the
//! configuration. There is no default: without a key the server does not start, except that the embedded database's very first start makes one.

mod acts;
mod command;

use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bulkhead_model::ambient::Ambient;
use bulkhead_store::seal::{RootKey, RootKeys};
use rustix::fs::OFlags;
use zeroize::Zeroizing;

pub(crate) use self::acts::start_telling;
use self::command::CommandCustodian;
use crate::config::{Config, KeysSection};

/// Bytes that the file has at most: some hundred keys.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// What a file with wrapped keys begins with.
const WRAPPED_HEADER: &str = "# Bulkhead's root keys, wrapped by keys.command: keep a copy in another place.\n";

/// A key service: it wraps the root keys' text, and opens it again at each start. Its own key never comes here.
pub(crate) trait Custodian {
    /// The service's text for this one, without spaces.
    ///
    /// # Errors
    /// What the service says; never what it was to wrap.
    fn wrap(&self, text: &str) -> Result<String>;

    /// The text that was wrapped.
    ///
    /// # Errors
    /// What the service says.
    fn unwrap(&self, wrapped: &str) -> Result<Zeroizing<String>>;
}

/// In which form the file holds the keys.
enum Form {
    Plain,
    Wrapped(Box<dyn Custodian>),
}

impl Form {
    const fn file_name(&self) -> &'static str {
        match self {
            Self::Plain => "root.key",
            Self::Wrapped(_) => "root.key.wrapped",
        }
    }

    /// What the file is to hold.
    fn encode(&self, keys: &RootKeys) -> Result<Zeroizing<String>> {
        let text = keys.to_text();
        let Self::Wrapped(custodian) = self else { return Ok(text) };
        let wrapped = custodian.wrap(&text)?;
        let is_one_word = !wrapped.is_empty() && wrapped.bytes().all(|byte| byte.is_ascii_graphic());
        ensure!(
            is_one_word && !wrapped.starts_with('#'),
            "what keys.command wrapped is not one word of printable ASCII"
        );
        let shows_a_key = text.split_whitespace().any(|word| word != "next" && wrapped.contains(word));
        ensure!(!shows_a_key, "what keys.command wrapped shows the keys: that would be no protection");
        // What does not open again would be lost with what it takes the place of.
        let opened = custodian.unwrap(&wrapped).context("what was just wrapped does not open")?;
        ensure!(*opened == *text, "what keys.command wrapped it opens as something else");
        let text = Zeroizing::new(format!("{WRAPPED_HEADER}{wrapped}\n"));
        ensure!((text.len() as u64) < FILE_BYTES_MAX, "what keys.command wrapped is larger than any file of root keys");
        Ok(text)
    }

    fn decode(&self, text: &str) -> Result<RootKeys> {
        let Self::Wrapped(custodian) = self else { return Ok(RootKeys::parse(text)?) };
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let (Some(wrapped), None) = (lines.next(), lines.next()) else {
            bail!("it does not hold one line of wrapped keys");
        };
        RootKeys::parse(&custodian.unwrap(wrapped)?).context("what keys.command opened is no text of root keys")
    }
}

/// The file with the root keys.
struct KeyFile<'a> {
    data_dir: &'a Path,
    form: Form,
}

/// The file that the configuration speaks of, where it does not hold the keys itself.
fn key_file(config: &Config) -> KeyFile<'_> {
    let KeysSection { command, command_timeout_s, .. } = &config.keys;
    let form = if command.is_empty() {
        Form::Plain
    } else {
        Form::Wrapped(Box::new(CommandCustodian::new(command.clone(), Duration::from_secs(*command_timeout_s))))
    };
    KeyFile { data_dir: &config.server.data_dir, form }
}

/// Where the file with the root keys lies, or would lie.
pub(crate) fn path(config: &Config) -> PathBuf {
    key_file(config).path()
}

/// What the file with the root keys is called.
pub(crate) fn file_name(config: &Config) -> &'static str {
    key_file(config).form.file_name()
}

/// How the keys are kept, for people.
pub(crate) fn described(config: &Config) -> &'static str {
    match (&config.keys.root, key_file(config).form) {
        (Some(_), _) => "given by the configuration",
        (None, Form::Plain) => "present, for the server's user only",
        (None, Form::Wrapped(_)) => "present, wrapped; keys.command opens them",
    }
}

/// Whether there is anything to [`load`].
pub(crate) fn are_there(config: &Config) -> bool {
    config.keys.root.is_some() || path(config).exists()
}

/// Reads the keys. Where there are none, one is made, but only for a data directory that holds nothing sealed yet.
pub(crate) fn load(config: &Config, may_create: bool, ambient: &Ambient) -> Result<RootKeys> {
    match &config.keys.root {
        Some(text) => RootKeys::parse(text.reveal()).context("keys.root is not valid"),
        None => key_file(config).load_or_create(may_create, ambient),
    }
}

impl<'a> KeyFile<'a> {
    const fn plain(data_dir: &'a Path) -> Self {
        Self { data_dir, form: Form::Plain }
    }

    fn path(&self) -> PathBuf {
        self.data_dir.join(self.form.file_name())
    }

    fn load_or_create(&self, may_create: bool, ambient: &Ambient) -> Result<RootKeys> {
        check_directory(self.data_dir)?;
        if let Some(keys) = self.read()? {
            self.tell_of_other_form();
            return Ok(keys);
        }
        self.refuse_other_form()?;
        if !may_create {
            bail!(
                "{} is missing, and what is stored was sealed with it: restore it from your backup of the keys",
                self.path().display()
            );
        }
        // Payloads lie here too, not only sealed things: the folder is the server's user's alone.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(self.data_dir)
            .with_context(|| format!("cannot create {}", self.data_dir.display()))?;
        {
            let _lock = lock(self.data_dir)?;
            self.create(&RootKeys::single(RootKey::new(ambient.random())))?;
        }
        // Whoever was first: what counts is in the file, and never what this process made.
        self.read()?.with_context(|| format!("{} was taken away again", self.path().display()))
    }

    /// Keys that lie here in the other form are those that everything was sealed with: others beside them would be a mistake.
    fn refuse_other_form(&self) -> Result<()> {
        let is_there = |name: &str| self.data_dir.join(name).symlink_metadata().is_ok();
        match &self.form {
            Form::Plain if is_there("root.key.wrapped") => bail!(
                "{} is missing, and root.key.wrapped is there: only the keys.command that wrapped it opens it",
                self.path().display()
            ),
            Form::Wrapped(_) if is_there("root.key") => bail!(
                "{} is missing, and root.key is there, which nobody has wrapped yet: run `bulkhead admin keys wrap-roots`",
                self.path().display()
            ),
            Form::Plain | Form::Wrapped(_) => Ok(()),
        }
    }

    fn tell_of_other_form(&self) {
        let there = |name: &str| Some(self.data_dir.join(name)).filter(|path| path.symlink_metadata().is_ok());
        if matches!(self.form, Form::Plain) {
            if let Some(wrapped) = there("root.key.wrapped") {
                tracing::warn!("{} is not used here, and gets old: move it away", wrapped.display());
            }
        } else if let Some(plain) = there("root.key") {
            tracing::warn!("{} holds root keys that are not wrapped: keep it in another place", plain.display());
        }
    }

    /// Reads the file that there is. Whatever is asked of it is asked of what was opened, and not of a name that may lead elsewhere by then.
    fn read(&self) -> Result<Option<RootKeys>> {
        let path = self.path();
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
        file.take(FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .with_context(|| format!("cannot read {}", path.display()))?;
        self.form.decode(&text).map(Some).with_context(|| format!("{} cannot be used", path.display()))
    }

    /// Writes the keys to a file beside, which nobody else can have open, whatever was left over there or put there. Under the lock.
    fn write_beside(&self, keys: &RootKeys) -> Result<PathBuf> {
        let text = self.form.encode(keys)?;
        let fresh = self.data_dir.join("root.key.new");
        let cannot = || format!("cannot write {}", fresh.display());
        if let Err(error) = std::fs::remove_file(&fresh)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error).with_context(cannot);
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).with_context(cannot)?;
        file.set_permissions(Permissions::from_mode(0o600)).with_context(cannot)?;
        file.write_all(text.as_bytes()).with_context(cannot)?;
        file.sync_all().with_context(cannot)?;
        Ok(fresh)
    }

    /// Puts a first key in place. One that is there by then stays: it is never written over.
    fn create(&self, keys: &RootKeys) -> Result<()> {
        let path = self.path();
        if path.symlink_metadata().is_ok() {
            return Ok(());
        }
        let fresh = self.write_beside(keys)?;
        // A link by another name takes a place only if nobody has it, unlike a move.
        let linked = std::fs::hard_link(&fresh, &path);
        std::fs::remove_file(&fresh)?;
        if let Err(error) = linked
            && error.kind() != ErrorKind::AlreadyExists
        {
            return Err(error).with_context(|| format!("cannot make {}", path.display()));
        }
        File::open(self.data_dir)?.sync_all()?;
        Ok(())
    }

    /// Writes the file anew. Beside it and then moved, so that a power cut leaves either the old keys or the new ones. Under the lock.
    fn replace(&self, keys: &RootKeys) -> Result<()> {
        self.move_in(&self.write_beside(keys)?)
    }

    fn move_in(&self, fresh: &Path) -> Result<()> {
        let path = self.path();
        std::fs::rename(fresh, &path).with_context(|| format!("cannot write {}", path.display()))?;
        File::open(self.data_dir)?.sync_all()?;
        Ok(())
    }
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

/// Changes the file's keys; answers what is there now. Of two at once the second one changes what the first one left.
pub(crate) fn change(config: &Config, change: impl FnOnce(RootKeys) -> Result<RootKeys>) -> Result<RootKeys> {
    if config.keys.root.is_some() {
        bail!("the root keys come from keys.root of the configuration: change them there, in all nodes alike");
    }
    let file = key_file(config);
    // Before anything is made there.
    file.load_or_create(false, &Ambient::system())?;
    let _lock = lock(file.data_dir)?;
    let before = file.load_or_create(false, &Ambient::system())?;
    let stood = before.standings();
    let changed = change(before)?;
    let acts = acts::between(&stood, &changed.standings(), &Ambient::system());
    // What takes long comes first, such as a program that wraps: between the next two there is but a moment.
    let fresh = file.write_beside(&changed)?;
    // Before it is done: an act that nobody could ever read of is not done.
    let begun = acts::put_down(file.data_dir, &acts)?;
    if let Err(error) = file.move_in(&fresh) {
        // Moved, and not known to last: it stays told.
        if fresh.symlink_metadata().is_ok() {
            acts::take_back(file.data_dir, begun)?;
        }
        return Err(error);
    }
    Ok(changed)
}

/// Has `keys.command` wrap what `root.key` holds; where that was done before, has what is wrapped wrapped anew, under the service's present
/// key. Answers where the wrapped keys lie.
pub(crate) fn wrap_roots(config: &Config) -> Result<PathBuf> {
    let (wrapped, plain) = both_forms(config)?;
    let _lock = lock(wrapped.data_dir)?;
    if let Some(keys) = wrapped.read()? {
        if let Some(beside) = plain.read()? {
            ensure!(
                beside.standings() == keys.standings(),
                "{} and {} hold different keys: move the one that no server uses away first",
                plain.path().display(),
                wrapped.path().display()
            );
        }
        wrapped.replace(&keys)?;
        return Ok(wrapped.path());
    }
    let keys =
        plain.read()?.with_context(|| format!("{} is missing: there is nothing to wrap", plain.path().display()))?;
    wrapped.create(&keys)?;
    Ok(wrapped.path())
}

/// Writes `root.key` from what `keys.command` opens: the way back. Answers where it lies.
pub(crate) fn unwrap_roots(config: &Config) -> Result<PathBuf> {
    let (wrapped, plain) = both_forms(config)?;
    let _lock = lock(wrapped.data_dir)?;
    let path = plain.path();
    ensure!(path.symlink_metadata().is_err(), "{} is there already", path.display());
    let keys = wrapped.read()?.with_context(|| format!("{} is missing", wrapped.path().display()))?;
    plain.create(&keys)?;
    Ok(path)
}

/// The file that `keys.command` wraps, and the one that nobody does, in a directory that others do not write to.
fn both_forms(config: &Config) -> Result<(KeyFile<'_>, KeyFile<'_>)> {
    let wrapped = key_file(config);
    ensure!(matches!(wrapped.form, Form::Wrapped(_)), "say in keys.command which program wraps the keys");
    ensure!(wrapped.data_dir.is_dir(), "{} is no directory", wrapped.data_dir.display());
    check_directory(wrapped.data_dir)?;
    Ok((wrapped, KeyFile::plain(&config.server.data_dir)))
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
    use bulkhead_store::seal::RootStanding;

    use super::*;
    use crate::config::Secret;

    fn config(data_dir: &Path, root: Option<&str>) -> Config {
        let mut config = Config::default();
        data_dir.clone_into(&mut config.server.data_dir);
        config.keys.root = root.map(|text| Secret::new(text.to_owned()));
        config
    }

    fn file(data_dir: &Path) -> PathBuf {
        KeyFile::plain(data_dir).path()
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
        assert_eq!(std::fs::metadata(file(&fresh)).unwrap().permissions().mode() & 0o777, 0o600);
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
        KeyFile::plain(dir.path()).create(&RootKeys::single(RootKey::new(Ambient::system().random()))).unwrap();
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
        let meta = file(dir.path()).symlink_metadata().unwrap();
        assert!(meta.is_file() && meta.mode() & 0o777 == 0o600, "{meta:?}");
        assert_eq!(load(&config, false, &Ambient::system()).unwrap().standings().len(), 3);
    }

    #[test]
    fn a_link_or_a_pipe_is_no_root_key() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        std::fs::create_dir(&real).unwrap();
        load(&config(&real, None), true, &Ambient::system()).unwrap();
        std::os::unix::fs::symlink(file(&real), file(dir.path())).unwrap();
        let refused = load(&config(dir.path(), None), true, &Ambient::system()).unwrap_err().to_string();
        assert!(refused.contains("is a link"), "{refused}");
        std::fs::remove_file(file(dir.path())).unwrap();
        std::fs::create_dir(file(dir.path())).unwrap();
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
        assert_eq!(std::fs::metadata(file(dir.path())).unwrap().permissions().mode() & 0o777, 0o600);
    }

    /// With a key service of some lines.
    fn wrapped_by(data_dir: &Path, command: Vec<String>) -> Config {
        let mut config = config(data_dir, None);
        config.keys.command = command;
        config
    }

    #[test]
    fn wrapped_keys_lie_nowhere_as_they_are() {
        let (dir, service) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = wrapped_by(dir.path(), command::tests::service(service.path()));
        let ambient = Ambient::system();
        assert!(format!("{:#}", load(&config, false, &ambient).unwrap_err()).contains("root.key.wrapped is missing"));
        let first = load(&config, true, &ambient).unwrap();
        assert!(!file(dir.path()).exists() && are_there(&config));
        let meta = path(&config).symlink_metadata().unwrap();
        assert!(meta.is_file() && meta.mode() & 0o777 == 0o600, "{meta:?}");
        let hex_of = |keys: &RootKeys| keys.to_text().trim().to_owned();
        let kept = || std::fs::read_to_string(path(&config)).unwrap();
        assert!(kept().contains("test:") && !kept().contains(&hex_of(&first)), "{}", kept());
        assert_eq!(load(&config, false, &ambient).unwrap().to_text(), first.to_text());
        // The way of a second key is the same as in a file that nobody wraps.
        let next = RootKey::new(ambient.random());
        let added = change(&config, |keys| Ok(keys.with_next(next)?)).unwrap();
        assert_eq!(load(&config, false, &ambient).unwrap().to_text(), added.to_text());
        change(&config, |keys| Ok(keys.with_next_in_use()?)).unwrap();
        let used = load(&config, false, &ambient).unwrap().standings();
        assert_eq!(used[1], (added.standings()[1].0, RootStanding::Active));
        let lines = load(&config, false, &ambient).unwrap().to_text();
        let keys: Vec<&str> = lines.split_whitespace().collect();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(keys.iter().all(|key| !text.contains(key)), "{} shows a key", path.display());
        }
        // Without the service there is neither a start nor a new key.
        let without = config_without_command(&config);
        let refused = format!("{:#}", load(&without, true, &ambient).unwrap_err());
        assert!(refused.contains("only the keys.command that wrapped it"), "{refused}");
        assert!(!file(dir.path()).exists());
    }

    fn config_without_command(config: &Config) -> Config {
        let mut without = config.clone();
        without.keys.command.clear();
        without
    }

    #[test]
    fn a_service_that_fails_is_no_start_and_changes_nothing() {
        let (dir, service) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ambient = Ambient::system();
        let denies = command::tests::script(service.path(), "denies.sh", "echo 'access denied' >&2; exit 1");
        let denied = wrapped_by(dir.path(), denies);
        let refused = format!("{:#}", load(&denied, true, &ambient).unwrap_err());
        assert!(refused.contains("access denied"), "{refused}");
        assert!(!path(&denied).exists() && !file(dir.path()).exists());

        let works = wrapped_by(dir.path(), command::tests::service(service.path()));
        let first = load(&works, true, &ambient).unwrap();
        let before = std::fs::read_to_string(path(&works)).unwrap();
        assert!(load(&denied, true, &ambient).is_err());
        assert!(change(&denied, Ok).is_err());
        assert_eq!(std::fs::read_to_string(path(&works)).unwrap(), before);
        assert_eq!(load(&works, true, &ambient).unwrap().to_text(), first.to_text());

        // One that wraps what it cannot open again would be found out at the next start, with nothing left to go back to.
        for (answer, why) in [("test:nonsense", "does not open"), ("two words", "one word"), ("", "one word")] {
            let wraps = format!(
                "read -r ask; case \"$ask\" in *'\"wrap\"'*) echo '{{\"wrapped\":\"{answer}\"}}' ;; *) exit 1 ;; esac"
            );
            let bad = wrapped_by(dir.path(), command::tests::script(service.path(), "bad.sh", &wraps));
            let refused = format!("{:#}", key_file(&bad).replace(&first).unwrap_err());
            assert!(refused.contains(why), "{refused}");
            assert_eq!(std::fs::read_to_string(path(&works)).unwrap(), before);
        }
        // Lines of something else, or more than one, are not handed to the service.
        for text in ["", "# nothing\n", "test:a\ntest:b\n"] {
            std::fs::write(path(&works), text).unwrap();
            let refused = format!("{:#}", load(&works, true, &ambient).unwrap_err());
            assert!(refused.contains("one line of wrapped keys"), "{refused}");
        }
    }

    #[test]
    fn keys_are_handed_to_a_service_and_taken_back() {
        let (dir, service) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ambient = Ambient::system();
        let plain = config(dir.path(), None);
        let wrapped = wrapped_by(dir.path(), command::tests::service(service.path()));
        assert!(format!("{:#}", wrap_roots(&wrapped).unwrap_err()).contains("nothing to wrap"));
        assert!(wrap_roots(&plain).unwrap_err().to_string().contains("keys.command"));
        let first = load(&plain, true, &ambient).unwrap();
        // Another first key beside the one that everything is sealed with would be a mistake.
        let refused = format!("{:#}", load(&wrapped, true, &ambient).unwrap_err());
        assert!(refused.contains("wrap-roots"), "{refused}");
        assert_eq!(wrap_roots(&wrapped).unwrap(), path(&wrapped));
        assert!(unwrap_roots(&wrapped).unwrap_err().to_string().contains("there already"));
        std::fs::remove_file(file(dir.path())).unwrap();
        assert_eq!(load(&wrapped, false, &ambient).unwrap().to_text(), first.to_text());
        // Again: the service may have another key by now.
        assert_eq!(wrap_roots(&wrapped).unwrap(), path(&wrapped));
        assert_eq!(unwrap_roots(&wrapped).unwrap(), file(dir.path()));
        assert_eq!(std::fs::metadata(file(dir.path())).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load(&plain, false, &ambient).unwrap().to_text(), first.to_text());
    }
}
