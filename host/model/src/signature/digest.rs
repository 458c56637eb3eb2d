//! The digest that a request gives of its own body: the field `content-digest` (RFC 9530).

use sha2::{Digest as _, Sha256, Sha512};

use sfv::ListEntry;

use super::dictionary;

/// The field is not one of structured fields, names something twice, or gives a digest of a length that no digest of the kind has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`content-digest` names digests as `sha-256=:<base64>:` or `sha-512=:<base64>:`")]
pub struct Malformed;

/// What the body's digests are to be; all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentDigest {
    sha_256: Option<[u8; 32]>,
    sha_512: Option<[u8; 64]>,
}

impl ContentDigest {
    /// Reads the field's lines; `None` where there is none, or none of a kind that is known here. The standard's old and broken kinds are
    /// passed over.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn read(lines: &[&[u8]]) -> Result<Option<Self>, Malformed> {
        if lines.is_empty() {
            return Ok(None);
        }
        let digests = dictionary(lines).ok_or(Malformed)?;
        let mut found = Self { sha_256: None, sha_512: None };
        for (name, entry) in &digests {
            let ListEntry::Item(item) = entry else { return Err(Malformed) };
            let bytes = item.bare_item.as_byte_sequence().ok_or(Malformed)?;
            match name.as_str() {
                "sha-256" => found.sha_256 = Some(bytes.try_into().map_err(|_| Malformed)?),
                "sha-512" => found.sha_512 = Some(bytes.try_into().map_err(|_| Malformed)?),
                _ => {}
            }
        }
        Ok((found.sha_256.is_some() || found.sha_512.is_some()).then_some(found))
    }

    /// Begins to compare with a body.
    #[must_use]
    pub fn begin(self) -> Comparing {
        Comparing {
            sha_256: self.sha_256.map(|wanted| (Sha256::new(), wanted)),
            sha_512: self.sha_512.map(|wanted| (Sha512::new(), wanted)),
        }
    }
}

/// A body that is compared as it arrives.
pub struct Comparing {
    sha_256: Option<(Sha256, [u8; 32])>,
    sha_512: Option<(Sha512, [u8; 64])>,
}

impl Comparing {
    pub fn update(&mut self, bytes: &[u8]) {
        if let Some((hash, _)) = &mut self.sha_256 {
            hash.update(bytes);
        }
        if let Some((hash, _)) = &mut self.sha_512 {
            hash.update(bytes);
        }
    }

    /// Whether the whole body was the one that was announced.
    #[must_use]
    pub fn matches(self) -> bool {
        self.sha_256.is_none_or(|(hash, wanted)| <[u8; 32]>::from(hash.finalize()) == wanted)
            && self.sha_512.is_none_or(|(hash, wanted)| <[u8; 64]>::from(hash.finalize()) == wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(field: &str, body: &[u8]) -> Option<bool> {
        let mut comparing = ContentDigest::read(&[field.as_bytes()]).unwrap()?.begin();
        // In two pieces, as bodies arrive.
        let (first, second) = body.split_at(body.len() / 2);
        comparing.update(first);
        comparing.update(second);
        Some(comparing.matches())
    }

    /// RFC 9530, sections 2 and B.1, B.2, and the body of RFC 9421's test message.
    #[test]
    fn the_standards_digests_are_those_of_their_bodies() {
        let hello = b"{\"hello\": \"world\"}\n";
        assert_eq!(is("sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:", hello), Some(true));
        assert_eq!(is("sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:", b""), Some(true));
        let sha_512 =
            "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:";
        assert_eq!(is(sha_512, b"{\"hello\": \"world\"}"), Some(true));
        assert_eq!(is(sha_512, hello), Some(false));
    }

    #[test]
    fn every_digest_that_is_known_has_to_be_the_bodys() {
        let (good, wrong) =
            ("sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:", format!("sha-512=:{}==:", "A".repeat(86)));
        assert_eq!(is(good, b""), Some(true));
        assert_eq!(is(&format!("{good}, {wrong}"), b""), Some(false));
        assert_eq!(is(&format!("md5=:AAAA:, {good}"), b""), Some(true));
        assert_eq!(is("md5=:AAAA:, unixsum=:AAAA:", b""), None);
    }

    #[test]
    fn what_cannot_be_read_is_malformed() {
        for odd in
            ["sha-256", "sha-256=abc", "sha-256=:AAAA:", "sha-256=:!:", "sha-256=(:AAAA:)", "=", "a=:AAAA:, a=:AAAA:"]
        {
            assert_eq!(ContentDigest::read(&[odd.as_bytes()]), Err(Malformed), "{odd}");
        }
        assert_eq!(ContentDigest::read(&[]), Ok(None));
    }
}
