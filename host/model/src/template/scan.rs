//! Cuts a string into literal text and expressions, and bounds what an expression may hold before minijinja reads it.

use super::{FILTERS_MAX, JOINS_MAX, TOKENS_MAX};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    Literal(&'a str),
    /// What stands between `{{` and `}}`, without white space around it.
    Expression(&'a str),
}

/// Expressions in one string, so that many small ones stay cheap together.
const PIECES_MAX: usize = 500;

pub(super) fn has_tags(text: &str) -> bool {
    text.contains("{{") || text.contains("{%") || text.contains("{#")
}

/// Cuts `text` at its tags. A string that is one expression, white space around it included, gives one piece.
pub(super) fn split(text: &str) -> Result<Vec<Piece<'_>>, String> {
    let trimmed = text.trim();
    if trimmed.starts_with("{{")
        && let Some(end) = expression_end(trimmed)
        && end == trimmed.len()
    {
        return Ok(vec![Piece::Expression(inside(trimmed)?)]);
    }
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(start) = next_tag(rest) {
        if pieces.len() >= PIECES_MAX {
            return Err(format!("more than {PIECES_MAX} parts in one template"));
        }
        if start > 0 {
            pieces.push(Piece::Literal(&rest[..start]));
        }
        let tag = &rest[start..];
        let length = match tag.as_bytes()[1] {
            b'%' => {
                return Err("statements `{% … %}` are not available; write `{{ a if b else c }}` or use a filter, \
                            and `{{ \"{%\" }}` for the characters themselves"
                    .to_owned());
            }
            b'#' => tag.find("#}").map(|end| end + 2).ok_or("a comment `{#` is not closed")?,
            _ => {
                let end = expression_end(tag).ok_or("an expression `{{` is not closed")?;
                pieces.push(Piece::Expression(inside(&tag[..end])?));
                end
            }
        };
        rest = &tag[length..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Literal(rest));
    }
    Ok(pieces)
}

fn next_tag(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|pair| matches!(pair, b"{{" | b"{%" | b"{#"))
}

fn inside(tag: &str) -> Result<&str, String> {
    let source = tag[2..tag.len() - 2].trim();
    if source.is_empty() {
        return Err("an expression `{{ }}` is empty".to_owned());
    }
    Ok(source)
}

/// Where the expression that begins with `{{` ends, after its `}}`. Brackets and quotes are balanced as minijinja does.
fn expression_end(tag: &str) -> Option<usize> {
    let bytes = tag.as_bytes();
    let mut at = 2;
    let mut open = 0_usize;
    while at < bytes.len() {
        match bytes[at] {
            b'}' if open == 0 && bytes.get(at + 1) == Some(&b'}') => return Some(at + 2),
            quote @ (b'"' | b'\'') => {
                at = string_end(bytes, at, quote)?;
                continue;
            }
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    None
}

/// The place after the closing quote.
fn string_end(bytes: &[u8], start: usize, quote: u8) -> Option<usize> {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return Some(at + 1),
            _ => at += 1,
        }
    }
    None
}

/// The tokens of an expression: names, numbers, strings, and each other character by itself.
pub(super) fn tokens(source: &str) -> Result<Vec<&str>, String> {
    let bytes = source.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii();
        match bytes[at] {
            byte if byte.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            quote @ (b'"' | b'\'') => at = string_end(bytes, at, quote).ok_or("a quoted text is not closed")?,
            byte if is_word(byte) => {
                while at < bytes.len() && is_word(bytes[at]) {
                    at += 1;
                }
            }
            _ => at += 1,
        }
        found.push(source.get(start..at).ok_or("a quoted text ends inside a character")?);
        if found.len() > TOKENS_MAX {
            return Err(format!("the expression has more than {TOKENS_MAX} parts"));
        }
    }
    Ok(found)
}

/// Refuses what could make evaluation expensive, before anything parses the source.
pub(super) fn check_expression(source: &str) -> Result<(), String> {
    let tokens = tokens(source)?;
    if tokens.contains(&"*") {
        return Err("`*` is not available; `| times(2)` multiplies a number".to_owned());
    }
    if tokens.iter().filter(|token| **token == "|").count() > FILTERS_MAX {
        return Err(format!("more than {FILTERS_MAX} filters in one expression"));
    }
    if tokens.iter().filter(|token| matches!(**token, "~" | "+" | ",")).count() > JOINS_MAX {
        return Err(format!("more than {JOINS_MAX} of `~`, `+` and `,` in one expression"));
    }
    Ok(())
}
