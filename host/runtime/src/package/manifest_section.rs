//! The custom section that holds the manifest: reading it, and writing it into a component.

use bulkhead_model::limits::PackageLimits;
use bulkhead_model::manifest::{MANIFEST_SECTION, Manifest};

use super::{PackageError, offset};

/// Why a manifest cannot be written into a file.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    #[error("not a WebAssembly component")]
    NotAComponent,
    #[error("the component is cut off or damaged at byte {0}")]
    Damaged(usize),
    #[error("the manifest cannot be written as JSON")]
    Json(#[source] serde_json::Error),
}

pub(super) fn parse(sections: &[&[u8]], limits: &PackageLimits) -> Result<Manifest, PackageError> {
    let [json] = sections else {
        return Err(if sections.is_empty() {
            PackageError::ManifestMissing
        } else {
            PackageError::ManifestRepeated(sections.len())
        });
    };
    let bytes = offset(json.len());
    if bytes > limits.manifest_bytes {
        return Err(PackageError::ManifestTooLarge { bytes, limit: limits.manifest_bytes });
    }
    Manifest::parse(json).map_err(|error| PackageError::Manifest(error.to_string()))
}

/// The component with `manifest` in its custom section, in place of one that it may already have.
///
/// # Errors
/// When the bytes are not a component's. Whether the two fit together is for [`inspect`](super::inspect) to say.
pub fn embed_manifest(component: &[u8], manifest: &Manifest) -> Result<Vec<u8>, EmbedError> {
    const HEADER: [u8; 8] = [0, b'a', b's', b'm', 0x0d, 0, 1, 0];
    if !component.starts_with(&HEADER) {
        return Err(EmbedError::NotAComponent);
    }
    let json = serde_json::to_vec(manifest).map_err(EmbedError::Json)?;
    let mut out = HEADER.to_vec();
    let mut at = HEADER.len();
    while at < component.len() {
        let start = at;
        let id = component[at];
        at += 1;
        let size = read_size(component, &mut at).ok_or(EmbedError::Damaged(start))?;
        let body = component.get(at..at.saturating_add(size)).ok_or(EmbedError::Damaged(start))?;
        at += size;
        if id != 0 || custom_name(body) != Some(MANIFEST_SECTION.as_bytes()) {
            out.extend_from_slice(&component[start..at]);
        }
    }
    let mut body = Vec::with_capacity(json.len() + MANIFEST_SECTION.len() + 1);
    write_size(&mut body, MANIFEST_SECTION.len());
    body.extend_from_slice(MANIFEST_SECTION.as_bytes());
    body.extend_from_slice(&json);
    out.push(0);
    write_size(&mut out, body.len());
    out.extend_from_slice(&body);
    Ok(out)
}

fn custom_name(body: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    let len = read_size(body, &mut at)?;
    body.get(at..at.checked_add(len)?)
}

/// LEB128, at most 32 bits.
fn read_size(bytes: &[u8], at: &mut usize) -> Option<usize> {
    let mut value = 0_u64;
    for shift in (0..35).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return usize::try_from(u32::try_from(value).ok()?).ok();
        }
    }
    None
}

fn write_size(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let byte = u8::try_from(value & 0x7f).unwrap_or(0);
        value >>= 7;
        if value == 0 {
            out.push(byte);
            return;
        }
        out.push(byte | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sizes_round_trip(size in 0_u32..) {
            let size = usize::try_from(size).unwrap();
            let mut bytes = Vec::new();
            write_size(&mut bytes, size);
            let mut at = 0;
            prop_assert_eq!(read_size(&bytes, &mut at), Some(size));
            prop_assert_eq!(at, bytes.len());
        }

        /// Any bytes after a component's header end in a result, never a panic.
        #[test]
        fn damaged_components_are_errors_or_copied(tail in prop::collection::vec(any::<u8>(), 0..64)) {
            let manifest: Manifest = serde_json::from_str(
                r#"{"name":"acme/x","version":"1.0.0","wit":"bulkhead:plugin@0.1","title":"X"}"#,
            ).unwrap();
            let mut bytes = vec![0, b'a', b's', b'm', 0x0d, 0, 1, 0];
            bytes.extend(tail);
            if let Ok(out) = embed_manifest(&bytes, &manifest) {
                prop_assert_eq!(&embed_manifest(&out, &manifest).unwrap(), &out);
            }
        }
    }
}
