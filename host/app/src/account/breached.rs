//! Passwords that were stolen somewhere: a file of their SHA-1 digests, as the public downloader of Have I Been Pwned writes it (a digest in
//! hexadecimal, a colon, how often it was seen; sorted). It has some forty gigabytes and is never read as a whole: a password is looked for by
//! halving.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use bulkhead_model::password::Password;
use sha1::{Digest as _, Sha1};

/// Bytes of a line with its end: forty digits, a colon, ten digits, and two for the end. What is longer is no line.
const LINE_BYTES_MAX: usize = 64;
/// Lines that are read at start, evenly spread, to see whether the file is what it should be.
const LOOKED_AT_FIRST: u64 = 256;

type Sha1Digest = [u8; 20];

/// Why a file of breached passwords is not used.
#[derive(Debug, thiserror::Error)]
pub enum BreachedFileError {
    #[error("the file of breached passwords cannot be read")]
    Read(#[from] io::Error),
    #[error("the file of breached passwords is empty")]
    Empty,
    #[error(
        "byte {at} of the file of breached passwords is not in a line of the form `SHA1:COUNT`, sorted: write it with the downloader of Have I Been \
         Pwned, as one file of SHA-1 digests"
    )]
    NotALine { at: u64 },
    #[error("the file of breached passwords is not sorted: the line at byte {at} belongs before an earlier one")]
    NotSorted { at: u64 },
}

/// A file of breached passwords, open for as long as the server runs.
#[derive(Clone, Debug)]
pub struct BreachedPasswords(Arc<Lines>);

#[derive(Debug)]
struct Lines {
    file: File,
    bytes: u64,
}

/// A line: where it begins, where the next one does, and its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    begin: u64,
    end: u64,
    digest: Sha1Digest,
}

/// A line's digest, without the line's end.
fn digest_of(line: &[u8]) -> Option<Sha1Digest> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let (digits, count) = line.split_at_checked(40)?;
    let count = count.strip_prefix(b":")?;
    if count.is_empty() || !count.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut digest = [0; 20];
    hex::decode_to_slice(digits, &mut digest).ok()?;
    Some(digest)
}

impl Lines {
    /// The line that this byte is in.
    fn line_at(&self, at: u64) -> Result<Line, BreachedFileError> {
        let not_a_line = || BreachedFileError::NotALine { at };
        // What can be of the line, and the end of the one before.
        let from = at.saturating_sub(LINE_BYTES_MAX as u64);
        let mut buffer = [0; 2 * LINE_BYTES_MAX];
        let wanted = usize::try_from(self.bytes - from).map_or(buffer.len(), |left| left.min(buffer.len()));
        self.file.read_exact_at(&mut buffer[..wanted], from)?;
        let here = usize::try_from(at - from).map_err(|_| not_a_line())?;
        let begin = match buffer[..here].iter().rposition(|byte| *byte == b'\n') {
            Some(newline) => newline + 1,
            None if from == 0 => 0,
            None => return Err(not_a_line()),
        };
        let (text_end, end) = match buffer[here..wanted].iter().position(|byte| *byte == b'\n') {
            Some(newline) => (here + newline, here + newline + 1),
            // The last line needs no end.
            None if from + wanted as u64 == self.bytes => (wanted, wanted),
            None => return Err(not_a_line()),
        };
        let digest = digest_of(&buffer[begin..text_end]).ok_or_else(not_a_line)?;
        Ok(Line { begin: from + begin as u64, end: from + end as u64, digest })
    }

    fn contains(&self, digest: &Sha1Digest) -> Result<bool, BreachedFileError> {
        // Where the line could begin that is looked for.
        let (mut low, mut high) = (0, self.bytes);
        while low < high {
            let line = self.line_at(low + (high - low) / 2)?;
            match line.digest.cmp(digest) {
                std::cmp::Ordering::Equal => return Ok(true),
                std::cmp::Ordering::Less => low = line.end,
                std::cmp::Ordering::Greater => high = line.begin,
            }
        }
        Ok(false)
    }
}

impl BreachedPasswords {
    /// Opens a file and looks whether it is one of sorted digests, at its beginning, its end and many places between.
    ///
    /// # Errors
    /// [`BreachedFileError`], which says where the file is another one.
    pub fn open(path: &Path) -> Result<Self, BreachedFileError> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        if bytes == 0 {
            return Err(BreachedFileError::Empty);
        }
        let lines = Lines { file, bytes };
        let mut before: Option<Line> = None;
        for place in 0..=LOOKED_AT_FIRST {
            let at = u128::from(bytes - 1) * u128::from(place) / u128::from(LOOKED_AT_FIRST);
            let line = lines.line_at(u64::try_from(at).unwrap_or(bytes - 1))?;
            if before.is_some_and(|before| before.begin != line.begin && before.digest >= line.digest) {
                return Err(BreachedFileError::NotSorted { at: line.begin });
            }
            before = Some(line);
        }
        Ok(Self(Arc::new(lines)))
    }

    /// Whether a password is in the file. A file that cannot be read says no, which the log tells: nobody is kept from a password for that.
    pub(crate) async fn contains(&self, password: &Password) -> bool {
        let (lines, digest) = (Arc::clone(&self.0), Sha1Digest::from(Sha1::digest(password.as_bytes())));
        let looked = tokio::task::spawn_blocking(move || lines.contains(&digest)).await;
        let failure: Box<dyn std::error::Error + Send + Sync> = match looked {
            Ok(Ok(is_there)) => return is_there,
            Ok(Err(error)) => error.into(),
            Err(error) => error.into(),
        };
        metrics::counter!("bulkhead_breached_passwords_failures_total").increment(1);
        tracing::error!(
            error = &*failure as &dyn std::error::Error,
            "a password was not compared with those of known breaches"
        );
        false
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn digest(n: u32) -> Sha1Digest {
        Sha1::digest(n.to_be_bytes()).into()
    }

    /// The digests of these numbers as a file has them.
    fn written(numbers: std::ops::Range<u32>, end: &str) -> Vec<u8> {
        let mut digests: Vec<(Sha1Digest, u32)> = numbers.map(|n| (digest(n), n)).collect();
        digests.sort_unstable();
        let lines: Vec<String> = digests
            .iter()
            .map(|(digest, n)| format!("{}:{}", hex::encode_upper(digest), n % 100_000 * n + 1))
            .collect();
        lines.join(end).into_bytes()
    }

    fn open(bytes: &[u8]) -> Result<BreachedPasswords, BreachedFileError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        // It stays open when its name is gone.
        BreachedPasswords::open(file.path())
    }

    #[test]
    fn every_line_is_found_and_nothing_else() {
        for end in ["\n", "\r\n"] {
            for (count, last) in [(1, ""), (1, end), (2, ""), (3, end), (777, ""), (777, end)] {
                let mut bytes = written(0..count, end);
                bytes.extend_from_slice(last.as_bytes());
                let file = open(&bytes).unwrap();
                for n in 0..count {
                    assert!(file.0.contains(&digest(n)).unwrap(), "{n} of {count}");
                }
                for n in count..count + 200 {
                    assert!(!file.0.contains(&digest(n)).unwrap(), "{n} of {count}");
                }
                for edge in [[0; 20], [255; 20]] {
                    assert!(!file.0.contains(&edge).unwrap());
                }
            }
        }
    }

    #[test]
    fn a_file_of_another_kind_is_refused_at_start() {
        assert!(matches!(open(b""), Err(BreachedFileError::Empty)));
        let not_a_line = |bytes: &[u8]| matches!(open(bytes), Err(BreachedFileError::NotALine { .. }));
        assert!(not_a_line(b"<!doctype html>\n"));
        assert!(not_a_line("password\n123456\n".repeat(50).as_bytes()));
        let digits = hex::encode_upper(digest(1));
        // The digest alone, one without a count, an NTLM digest, and what is binary.
        for text in [digits.clone(), format!("{digits}:"), format!("{digits}:x"), format!("{}:1", &digits[..32])] {
            assert!(not_a_line(format!("{text}\n").as_bytes()), "{text}");
        }
        assert!(not_a_line(&[0; 1_000]));
        // One that broke off.
        let whole = written(0..10, "\n");
        assert!(not_a_line(&whole[..whole.len() - 30]));
        let mut turned: Vec<String> = String::from_utf8(whole).unwrap().lines().map(str::to_owned).collect();
        turned.reverse();
        let turned = turned.join("\n");
        assert!(matches!(open(turned.as_bytes()), Err(BreachedFileError::NotSorted { .. })));
        assert!(matches!(BreachedPasswords::open(Path::new("/nowhere")), Err(BreachedFileError::Read(_))));
        assert!(matches!(
            BreachedPasswords::open(Path::new("/")),
            Err(BreachedFileError::Read(_) | BreachedFileError::Empty)
        ));
    }

    #[tokio::test]
    async fn a_password_is_compared_by_its_sha_1() {
        // SHA-1 of "password", as everybody knows it.
        let file = open(b"5BAA61E4C9B93F3F0682250B6CF8331B7EE68FD8:9545824\n").unwrap();
        assert!(file.contains(&Password::new("password").unwrap()).await);
        assert!(!file.contains(&Password::new("Password").unwrap()).await);
    }

    #[tokio::test]
    async fn a_file_that_is_another_one_by_now_keeps_nobody_from_a_password() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&written(0..100, "\n")).unwrap();
        let breached = BreachedPasswords::open(file.path()).unwrap();
        file.as_file().set_len(10).unwrap();
        assert!(!breached.contains(&Password::new("password").unwrap()).await);
    }
}
