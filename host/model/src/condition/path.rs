//! Dotted paths into JSON: `trigger.body.labels[*].name`, parsed once, walked without allocation.

use std::borrow::Cow;
use std::fmt;

use serde_json::Value;

use super::Lookup;

/// Bytes in a path's text. Long enough for any field that a person writes.
pub const PATH_BYTES_MAX: usize = 512;
/// Segments in a path. Values themselves are at most 100 levels deep.
pub const PATH_SEGMENTS_MAX: usize = 64;

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    Key(Box<str>),
    /// `[0]`: the element at this place, counted from 0.
    Index(usize),
    /// `[*]`: any element.
    Each,
}

/// A path that was checked and split.
#[derive(Clone, PartialEq, Eq)]
pub struct FieldPath {
    text: Box<str>,
    segments: Box<[Segment]>,
    each: bool,
}

/// Why a path was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a field path: {0}")]
pub struct PathError(pub(crate) &'static str);

impl FieldPath {
    /// Reads `a.b[0].c[*].d`. A key with dots or brackets in it is written `a["key.with.dots"]`.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Err(PathError("it is empty"));
        }
        if text.len() > PATH_BYTES_MAX {
            return Err(PathError("it is longer than 512 bytes"));
        }
        let mut segments = Vec::new();
        let mut rest = text;
        let mut first = true;
        while !rest.is_empty() {
            if segments.len() == PATH_SEGMENTS_MAX {
                return Err(PathError("it has more than 64 parts"));
            }
            let (segment, tail) = if let Some(inside) = rest.strip_prefix('[') {
                bracketed(inside)?
            } else {
                let body = if first {
                    rest
                } else {
                    rest.strip_prefix('.').ok_or(PathError("a dot or a bracket must follow `]`"))?
                };
                let end = body.find(['.', '[', ']']).unwrap_or(body.len());
                if end == 0 {
                    return Err(PathError("a name between dots is empty"));
                }
                if body[..end].chars().any(|c| c.is_whitespace() || c.is_control()) {
                    return Err(PathError("names with spaces are written in brackets and quotes: a[\"b c\"]"));
                }
                (Segment::Key(body[..end].into()), &body[end..])
            };
            segments.push(segment);
            rest = tail;
            first = false;
        }
        let each = segments.contains(&Segment::Each);
        Ok(Self { text: text.into(), segments: segments.into(), each })
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether it contains `[*]` and so may lead to several values.
    #[must_use]
    pub fn has_each(&self) -> bool {
        self.each
    }

    /// The one value that the path leads to; `None` when a part is missing. A path with `[*]` gives all its values in
    /// one array.
    pub fn resolve<'a, L: Lookup + ?Sized>(&self, root: &'a L) -> Option<Cow<'a, Value>> {
        let (start, rest) = root.enter(&self.segments)?;
        if !self.each {
            return walk(start, rest).map(Cow::Borrowed);
        }
        let mut found = Vec::new();
        for_each(start, rest, &mut |value| {
            found.push(value.clone());
            false
        });
        Some(Cow::Owned(Value::Array(found)))
    }

    /// As [`Self::resolve`], for groups too (`vars`, `steps.x`), which are copied together only here.
    pub(crate) fn resolve_group<'a, L: Lookup + ?Sized>(&self, root: &'a L) -> Option<Cow<'a, Value>> {
        if let Some(found) = self.resolve(root) {
            return Some(found);
        }
        let (Segment::Key(name), rest) = self.segments.split_first()? else { return None };
        match root.root(name)? {
            Cow::Borrowed(group) => walk(group, rest).map(Cow::Borrowed),
            Cow::Owned(group) => walk(&group, rest).cloned().map(Cow::Owned),
        }
    }

    /// Whether `test` holds for the value (or, with `[*]`, for any of the values) that the path leads to.
    pub(crate) fn any<L: Lookup + ?Sized>(&self, root: &L, test: &mut dyn FnMut(&Value) -> bool) -> bool {
        let Some((start, rest)) = root.enter(&self.segments) else { return false };
        if self.each { for_each(start, rest, test) } else { walk(start, rest).is_some_and(test) }
    }
}

impl fmt::Debug for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn bracketed(inside: &str) -> Result<(Segment, &str), PathError> {
    if let Some(tail) = inside.strip_prefix("*]") {
        return Ok((Segment::Each, tail));
    }
    if inside.starts_with('"') {
        // serde_json reads the quoted key, escapes included, and says where it ends.
        let mut reader = serde_json::Deserializer::from_str(inside).into_iter::<String>();
        let Some(Ok(key)) = reader.next() else { return Err(PathError("the quoted key is not closed")) };
        let tail = inside[reader.byte_offset()..].strip_prefix(']').ok_or(PathError("a bracket is not closed"))?;
        return Ok((Segment::Key(key.into()), tail));
    }
    let (digits, tail) = inside.split_once(']').ok_or(PathError("a bracket is not closed"))?;
    if digits.is_empty() || digits.len() > 9 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(PathError("brackets hold a place counted from 0, `*`, or a quoted key"));
    }
    let index = digits.parse().map_err(|_| PathError("the place in brackets is too large"))?;
    Ok((Segment::Index(index), tail))
}

fn step<'a>(value: &'a Value, segment: &Segment) -> Option<&'a Value> {
    match (segment, value) {
        (Segment::Key(key), Value::Object(map)) => map.get(&**key),
        (Segment::Index(index), Value::Array(items)) => items.get(*index),
        _ => None,
    }
}

fn walk<'a>(start: &'a Value, segments: &[Segment]) -> Option<&'a Value> {
    segments.iter().try_fold(start, step)
}

/// Calls `visit` with every value that the segments lead to, until it answers `true`; says whether it did.
fn for_each(start: &Value, segments: &[Segment], visit: &mut dyn FnMut(&Value) -> bool) -> bool {
    let Some((segment, rest)) = segments.split_first() else { return visit(start) };
    match (segment, start) {
        (Segment::Each, Value::Array(items)) => items.iter().any(|item| for_each(item, rest, visit)),
        (Segment::Each, _) => false,
        _ => step(start, segment).is_some_and(|next| for_each(next, rest, visit)),
    }
}
