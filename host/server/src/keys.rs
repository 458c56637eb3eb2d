//! The root key: 32 bytes in a file of the data directory that nobody but the server's user reads.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use bulkhead_model::ambient::Ambient;
use bulkhead_store::seal::RootKey;

/// Reads the key. Where there is none, one is made, but only for a data directory that holds nothing sealed yet.
pub(crate) fn load_or_create(data_dir: &Path, may_create: bool, ambient: &Ambient) -> Result<RootKey> {
    let path = data_dir.join("root.key");
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
        let mut key = [0; 32];
        hex::decode_to_slice(text.trim(), &mut key)
            .map_err(|_| anyhow::anyhow!("{} does not hold 64 hexadecimal digits", path.display()))?;
        return Ok(RootKey::new(key));
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
    let key: [u8; 32] = ambient.random();
    // Written beside and moved, so that a power cut leaves either no key or a whole one.
    let fresh = data_dir.join("root.key.new");
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)
        .with_context(|| format!("cannot write {}", fresh.display()))?;
    writeln!(file, "{}", hex::encode(key))?;
    file.sync_all()?;
    std::fs::rename(&fresh, &path)?;
    std::fs::File::open(data_dir)?.sync_all()?;
    Ok(RootKey::new(key))
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

    #[test]
    fn a_key_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let ambient = Ambient::system();
        assert!(load_or_create(dir.path(), false, &ambient).is_err());
        let first = load_or_create(dir.path(), true, &ambient).unwrap().derive("x");
        let second = load_or_create(dir.path(), false, &ambient).unwrap().derive("x");
        assert_eq!(first, second);
        let fresh = dir.path().join("fresh");
        load_or_create(&fresh, true, &ambient).unwrap();
        assert_eq!(std::fs::metadata(&fresh).unwrap().permissions().mode() & 0o777, 0o700);
        let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        set(&dir.path().join("root.key"), 0o644);
        assert!(load_or_create(dir.path(), true, &ambient).unwrap_err().to_string().contains("chmod 600"));
        set(&fresh, 0o705);
        assert!(open_to_everybody(&fresh).unwrap().unwrap().contains("chmod 700"));
        set(&fresh, 0o750);
        assert_eq!(open_to_everybody(&fresh).unwrap(), None);
    }
}
