//! The compile cache: artifacts on disk, each sealed with the host's key.
//!
//! An artifact is native code, so one that somebody else wrote must never be loaded. The seal is an HMAC-SHA256 over everything in the
//! entry *and* the key under which it is found, so an honest entry in another's place is foreign too. The key depends on the package, the
//! engine's version and settings and the processor: after an upgrade old entries are simply not found.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::package::PackageInfo;

/// First bytes of what is sealed and hashed; a new layout gets a new one.
const LAYOUT: &[u8] = b"bulkhead compile cache 1";
const SEAL_BYTES: usize = 32;
const LENGTH_BYTES: usize = 8;
/// Bytes on disk: thousands of packages of usual size. Uploads must not fill the disk that the database is on.
const CACHE_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// A directory of sealed artifacts.
pub(crate) struct Cache {
    directory: PathBuf,
    seal_key: [u8; 32],
}

/// One entry's content.
pub(crate) struct Entry {
    pub(crate) info: PackageInfo,
    pub(crate) artifact: Vec<u8>,
}

impl Cache {
    pub(crate) fn open(directory: PathBuf, seal_key: [u8; 32]) -> std::io::Result<Self> {
        fs::create_dir_all(&directory)?;
        Ok(Self { directory, seal_key })
    }

    fn path(&self, key: &Digest) -> PathBuf {
        self.directory.join(format!("{key}.sealed"))
    }

    /// The entry of a package, if there is one and it is ours. Anything else is removed.
    pub(crate) fn load(&self, package: Digest, compatibility: u64) -> Option<Entry> {
        let key = key(package, compatibility);
        let path = self.path(&key);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    tracing::warn!(%package, %error, "a compiled package cannot be read; it is compiled again");
                }
                return None;
            }
        };
        let entry = self.unseal(&key, &bytes).filter(|entry| entry.info.digest == package);
        if entry.is_none() {
            tracing::warn!(%package, "a compiled package is damaged or foreign; it is discarded and compiled again");
            self.discard(package, compatibility);
        }
        entry
    }

    pub(crate) fn discard(&self, package: Digest, compatibility: u64) {
        // Another process may have been quicker; what is left is overwritten by the next store.
        let _ = fs::remove_file(self.path(&key(package, compatibility)));
    }

    /// Keeps an entry. A failure costs a compilation later, nothing else.
    pub(crate) fn store(&self, entry: &Entry, compatibility: u64) {
        let key = key(entry.info.digest, compatibility);
        let written = self.seal(&key, entry).and_then(|bytes| self.write(&self.path(&key), &key, &bytes));
        if let Err(error) = written.and_then(|()| self.prune(CACHE_BYTES_MAX)) {
            tracing::warn!(package = %entry.info.digest, %error, "a compiled package cannot be kept");
        }
    }

    /// Removes what was used longest ago until at most so many bytes are left, also what crashed writers and earlier versions
    /// left behind. What is gone is compiled again when it is needed.
    fn prune(&self, bytes_max: u64) -> std::io::Result<()> {
        let mut files = Vec::new();
        for file in fs::read_dir(&self.directory)? {
            let file = file?;
            // One that another process has just removed is no longer there to be counted.
            let Ok(metadata) = file.metadata() else { continue };
            // Where the file system does not tell when it was read, the time when it was written stands in.
            let written = metadata.modified()?;
            files.push((metadata.accessed().map_or(written, |read| read.max(written)), metadata.len(), file.path()));
        }
        files.sort();
        let mut bytes: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, file_bytes, path) in files {
            if bytes <= bytes_max {
                break;
            }
            bytes -= file_bytes;
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// All or nothing: a reader sees the old file or the whole new one.
    fn write(&self, path: &Path, key: &Digest, bytes: &[u8]) -> std::io::Result<()> {
        let temporary = self.directory.join(format!("{key}.{}.partial", std::process::id()));
        let result = fs::File::create(&temporary)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&temporary, path));
        if result.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        result
    }

    fn mac(&self, key: &Digest, sealed: &[u8]) -> Hmac<Sha256> {
        let mac = Hmac::<Sha256>::new_from_slice(&self.seal_key).expect("HMAC takes a key of any length");
        mac.chain_update(LAYOUT).chain_update(key.0).chain_update(sealed)
    }

    fn seal(&self, key: &Digest, entry: &Entry) -> std::io::Result<Vec<u8>> {
        let info = serde_json::to_vec(&entry.info).map_err(std::io::Error::other)?;
        let mut bytes = vec![0; SEAL_BYTES];
        bytes.extend_from_slice(&u64::try_from(info.len()).unwrap_or(u64::MAX).to_le_bytes());
        bytes.extend_from_slice(&info);
        bytes.extend_from_slice(&entry.artifact);
        let seal = self.mac(key, &bytes[SEAL_BYTES..]).finalize().into_bytes();
        bytes[..SEAL_BYTES].copy_from_slice(&seal);
        Ok(bytes)
    }

    /// Verifies first, in memory, and reads only then.
    fn unseal(&self, key: &Digest, bytes: &[u8]) -> Option<Entry> {
        let (seal, sealed) = bytes.split_at_checked(SEAL_BYTES)?;
        self.mac(key, sealed).verify_slice(seal).ok()?;
        let (length, rest) = sealed.split_first_chunk::<LENGTH_BYTES>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let (info, artifact) = rest.split_at_checked(length)?;
        Some(Entry { info: serde_json::from_slice(info).ok()?, artifact: artifact.to_vec() })
    }
}

fn key(package: Digest, compatibility: u64) -> Digest {
    let hash = Sha256::new()
        .chain_update(LAYOUT)
        .chain_update(package.0)
        .chain_update(compatibility.to_le_bytes())
        .chain_update(std::env::consts::ARCH)
        .chain_update([0])
        .chain_update(std::env::consts::OS)
        .chain_update([0])
        .chain_update(env!("CARGO_PKG_VERSION"));
    Digest(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::Counts;

    fn entry() -> Entry {
        let manifest = serde_json::from_value(serde_json::json!({
            "name": "acme/x", "version": "1.0.0", "wit": "bulkhead:plugin@0.1", "title": "X",
        }));
        let info = PackageInfo {
            manifest: manifest.unwrap(),
            digest: Digest::of(b"package"),
            imports: Vec::new(),
            pure: false,
            size_bytes: 7,
            counts: Counts::default(),
        };
        Entry { info, artifact: b"native code".to_vec() }
    }

    fn cache() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path().join("made"), [7; 32]).unwrap();
        (directory, cache)
    }

    #[test]
    fn what_was_stored_is_found_for_the_same_engine_only() {
        let (_directory, cache) = cache();
        let entry = entry();
        cache.store(&entry, 1);
        assert_eq!(cache.load(entry.info.digest, 1).unwrap().artifact, entry.artifact);
        assert!(cache.load(entry.info.digest, 2).is_none());
        assert!(cache.load(Digest::of(b"another"), 1).is_none());
    }

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let (_directory, cache) = cache();
        let entry = entry();
        for (compatibility, used_s) in [(1, 300), (2, 100), (3, 200)] {
            cache.store(&entry, compatibility);
            let file =
                fs::File::options().write(true).open(cache.path(&key(entry.info.digest, compatibility))).unwrap();
            let used = std::time::UNIX_EPOCH + std::time::Duration::from_secs(used_s);
            file.set_times(fs::FileTimes::new().set_accessed(used).set_modified(used)).unwrap();
        }
        let left = |cache: &Cache| [1, 2, 3].map(|at| cache.path(&key(entry.info.digest, at)).exists());
        let each = fs::metadata(cache.path(&key(entry.info.digest, 1))).unwrap().len();
        cache.prune(3 * each).unwrap();
        assert_eq!(left(&cache), [true, true, true]);
        cache.prune(2 * each).unwrap();
        assert_eq!(left(&cache), [true, false, true]);
        cache.prune(each).unwrap();
        assert_eq!(left(&cache), [true, false, false]);
    }

    /// Every single changed byte, a cut, another's key and another's place: all are discarded.
    #[test]
    fn damaged_and_foreign_entries_are_removed() {
        let (_directory, cache) = cache();
        let entry = entry();
        let path = cache.path(&key(entry.info.digest, 1));
        cache.store(&entry, 1);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(cache.load(entry.info.digest, 1).is_none(), "byte {at}");
            assert!(!path.exists());
        }
        for cut in [0, 10, SEAL_BYTES, SEAL_BYTES + 3, good.len() - 1] {
            fs::write(&path, &good[..cut]).unwrap();
            assert!(cache.load(entry.info.digest, 1).is_none(), "cut {cut}");
        }
        let other = Cache { directory: cache.directory.clone(), seal_key: [8; 32] };
        other.store(&entry, 1);
        assert!(cache.load(entry.info.digest, 1).is_none());
        fs::write(cache.path(&key(entry.info.digest, 2)), &good).unwrap();
        assert!(cache.load(entry.info.digest, 2).is_none());
    }
}
