//! The root keys: text in a file of the data directory that nobody but the server's user reads, or from the configuration. There is
//! no default: without a key the server does not start, except that the embedded database's very first start makes one.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use bulkhead_model::ambient::Ambient;
use bulkhead_store::seal::{RootKey, RootKeys};
use zeroize::Zeroizing;

use crate::config::Config;

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
    let path = path(data_dir);
    if data_dir.exists()
        && let Some(warning) = open_to_everybody(data_dir)?
    {
        tracing::warn!("{warning}");
    }
    if path.exists() {
        let mode = std::fs::metadata(&path)?.permissions().mode();
        if mode & 0o077 != 0 {
            bail!("{} can be read by others (mode {:o}): run `chmod 600 {0}`", path.display(), mode & 0o777);
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = Zeroizing::new(text);
        return RootKeys::parse(&text).with_context(|| format!("{} is not valid", path.display()));
    }
    if !may_create {
        bail!(
            "{} is missing, and what is stored was sealed with it: restore it from your backup of the keys",
            path.display()
        );
    }
    // Payloads lie here too, not only sealed things: the folder is the server's user's alone.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .with_context(|| format!("cannot create {}", data_dir.display()))?;
    let keys = RootKeys::single(RootKey::new(ambient.random()));
    save(data_dir, &keys)?;
    Ok(keys)
}

/// Writes the file anew. Beside it and then moved, so that a power cut leaves either the old keys or the new ones.
fn save(data_dir: &Path, keys: &RootKeys) -> Result<()> {
    let fresh = data_dir.join("root.key.new");
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)
        .with_context(|| format!("cannot write {}", fresh.display()))?;
    file.write_all(keys.to_text().as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&fresh, path(data_dir))?;
    std::fs::File::open(data_dir)?.sync_all()?;
    Ok(())
}

/// Changes the file's keys; answers what is there now.
pub(crate) fn change(config: &Config, change: impl FnOnce(RootKeys) -> Result<RootKeys>) -> Result<RootKeys> {
    if config.keys.root.is_some() {
        bail!("the root keys come from keys.root of the configuration: change them there, in all nodes alike");
    }
    let data_dir = &config.server.data_dir;
    let changed = change(load_or_create(data_dir, false, &Ambient::system())?)?;
    save(data_dir, &changed)?;
    Ok(changed)
}

/// Payloads lie in the data directory too, so others should not look into it, nor put a database of theirs there.
fn open_to_everybody(data_dir: &Path) -> Result<Option<String>> {
    let mode = std::fs::metadata(data_dir)?.permissions().mode();
    // A group may be how an orchestrator hands a volume over.
    let said = || format!("{} is open to everybody (mode {:o}): run `chmod 700 {0}`", data_dir.display(), mode & 0o777);
    Ok((mode & 0o007 != 0).then(said))
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
        set(&fresh, 0o705);
        assert!(open_to_everybody(&fresh).unwrap().unwrap().contains("chmod 700"));
        set(&fresh, 0o750);
        assert_eq!(open_to_everybody(&fresh).unwrap(), None);
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
