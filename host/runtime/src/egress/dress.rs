//! The dresses in which a secret may stand in text: as it is, escaped for a URL or for JSON, in hexadecimal, in base64. Each can be taken
//! off, and each byte that then shows knows where it stood before.

use std::borrow::Cow;
use std::ops::Range;

use memchr::{memchr, memchr2, memmem};

use super::vault::{NeedleKind, position};

/// A way of writing bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dress {
    Plain,
    /// `%2F`, and `+` for a space.
    Percent,
    /// `\"`, `\u0041`: text inside a JSON string.
    Json,
    /// JSON text inside a JSON string.
    JsonTwice,
    /// Digits of either case.
    Hex,
    /// `+/` or `-_`, also with JSON's `\/`.
    Base64,
}

/// Bytes without their dress.
pub(super) struct Reading<'a> {
    text: Cow<'a, [u8]>,
    /// Where each byte of the text began before, and the length at the end; `None` where nothing moved.
    starts: Option<Vec<u32>>,
}

impl Dress {
    pub(super) const ALL: [Self; 6] =
        [Self::Plain, Self::Percent, Self::Json, Self::JsonTwice, Self::Hex, Self::Base64];

    /// Whether this is where such a needle is looked for.
    pub(super) fn fits(self, kind: NeedleKind) -> bool {
        kind == match self {
            Self::Plain | Self::Percent | Self::Json | Self::JsonTwice => NeedleKind::Exact,
            Self::Hex => NeedleKind::Hex,
            Self::Base64 => NeedleKind::Base64,
        }
    }

    /// What the bytes say in this dress; `None` when they cannot wear it.
    pub(super) fn read(self, bytes: &[u8]) -> Option<Reading<'_>> {
        match self {
            Self::Plain => Some(Reading { text: Cow::Borrowed(bytes), starts: None }),
            Self::Percent => percent(bytes),
            Self::Json => json(bytes),
            Self::JsonTwice => {
                let once = json(bytes)?;
                let twice = json(&once.text)?;
                let starts = twice.starts.iter().flatten().map(|at| once.before(*at));
                let starts = Some(starts.collect());
                Some(Reading { text: Cow::Owned(twice.text.into_owned()), starts })
            }
            Self::Hex => Some(Reading { text: Cow::Owned(bytes.to_ascii_lowercase()), starts: None }),
            Self::Base64 => {
                let Reading { text, starts } =
                    json(bytes).unwrap_or(Reading { text: Cow::Borrowed(bytes), starts: None });
                let text = text.iter().map(|byte| standard_base64(*byte)).collect();
                Some(Reading { text: Cow::Owned(text), starts })
            }
        }
    }
}

impl Reading<'_> {
    /// Where `needle` begins in the text.
    pub(super) fn find(&self, needle: &[u8]) -> Option<usize> {
        position(&self.text, needle)
    }

    /// Where `needle` stood before the dress was taken off, from the first time to the last.
    pub(super) fn find_all<'r>(&'r self, needle: &'r [u8]) -> impl Iterator<Item = Range<usize>> + 'r {
        let hay = if needle.is_empty() || needle.len() > self.text.len() { None } else { Some(&*self.text) };
        let places = hay.into_iter().flat_map(move |hay| memmem::find_iter(hay, needle));
        places.map(move |at| self.place(at)..self.place(at + needle.len()))
    }

    fn place(&self, at: usize) -> usize {
        let start = self.starts.as_ref().and_then(|starts| starts.get(at).copied());
        start.map_or(at, |start| usize::try_from(start).unwrap_or(usize::MAX))
    }

    fn before(&self, at: u32) -> u32 {
        let place = usize::try_from(at).unwrap_or(usize::MAX);
        self.starts.as_ref().and_then(|starts| starts.get(place).copied()).unwrap_or(at)
    }
}

/// The bytes with one layer of percent escapes removed, `+` as a space.
pub(super) fn percent_decoded(bytes: &[u8]) -> Cow<'_, [u8]> {
    percent(bytes).map_or(Cow::Borrowed(bytes), |reading| reading.text)
}

/// A text under construction with the place of each of its bytes.
struct Writer {
    text: Vec<u8>,
    starts: Vec<u32>,
}

impl Writer {
    fn new(bytes: usize) -> Self {
        Self { text: Vec::with_capacity(bytes), starts: Vec::with_capacity(bytes + 1) }
    }

    /// Texts are a few MiB long: four bytes for a place are enough.
    fn push(&mut self, byte: u8, start: usize) {
        self.text.push(byte);
        self.starts.push(u32::try_from(start).unwrap_or(u32::MAX));
    }

    fn finish(mut self, bytes: usize) -> Reading<'static> {
        self.starts.push(u32::try_from(bytes).unwrap_or(u32::MAX));
        Reading { text: Cow::Owned(self.text), starts: Some(self.starts) }
    }
}

fn percent(bytes: &[u8]) -> Option<Reading<'static>> {
    memchr2(b'%', b'+', bytes)?;
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut out = Writer::new(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let (byte, taken) = match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                (u8::try_from(high * 16 + low).expect("two hexadecimal digits are a byte"), 3)
            }
            (b'+', ..) => (b' ', 1),
            (byte, ..) => (byte, 1),
        };
        out.push(byte, at);
        at += taken;
    }
    Some(out.finish(bytes.len()))
}

/// JSON's escapes removed wherever they stand; text that is no JSON is read just the same.
fn json(bytes: &[u8]) -> Option<Reading<'static>> {
    memchr(b'\\', bytes)?;
    let mut out = Writer::new(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'\\' || at + 1 == bytes.len() {
            out.push(bytes[at], at);
            at += 1;
            continue;
        }
        let (byte, taken) = match bytes[at + 1] {
            b'n' => (Some(b'\n'), 2),
            b't' => (Some(b'\t'), 2),
            b'r' => (Some(b'\r'), 2),
            b'b' => (Some(8), 2),
            b'f' => (Some(12), 2),
            b'u' => (None, 6),
            other => (Some(other), 2),
        };
        if let Some(byte) = byte {
            out.push(byte, at);
        } else {
            let digits = bytes.get(at + 2..at + 6).and_then(|digits| std::str::from_utf8(digits).ok());
            match digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(char::from_u32) {
                Some(character) => {
                    character.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| out.push(byte, at));
                }
                // Half of a pair of surrogates: kept apart, never joined to what follows.
                None => out.push(0, at),
            }
        }
        at += taken;
    }
    Some(out.finish(bytes.len()))
}

fn standard_base64(byte: u8) -> u8 {
    match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(dress: Dress, text: &str, needle: &str) -> Vec<(usize, usize)> {
        let Some(reading) = dress.read(text.as_bytes()) else { return Vec::new() };
        reading.find_all(needle.as_bytes()).map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn what_is_found_is_where_it_stood() {
        assert_eq!(places(Dress::Plain, "xsecretx", "secret"), [(1, 7)]);
        assert_eq!(places(Dress::Percent, "x%73ecre%74x+", "secret"), [(1, 11)]);
        assert_eq!(places(Dress::Json, r"\n\u0073ecret", "secret"), [(2, 13)]);
        assert_eq!(places(Dress::JsonTwice, r#"\"a\\\"b\""#, r#"a"b"#), [(2, 8)]);
        assert_eq!(places(Dress::Hex, "xAbCdx", "abcd"), [(1, 5)]);
        assert_eq!(places(Dress::Base64, r"x-_\/+x", "+//+"), [(1, 6)]);
    }

    #[test]
    fn text_without_a_dress_is_not_undressed() {
        for dress in [Dress::Percent, Dress::Json, Dress::JsonTwice] {
            assert!(dress.read(b"plain text").is_none());
        }
        assert!(Dress::JsonTwice.read(br#"\"once\""#).is_none());
    }
}
