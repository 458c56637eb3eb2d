//! CSV whose cells no spreadsheet takes for formulas.

use std::borrow::Cow;
use std::fmt::Write as _;

/// What makes a spreadsheet read a cell as a formula when a cell begins with it (OWASP, CSV injection).
const FORMULA_STARTS: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];

/// One line of CSV (RFC 4180) with its line break.
///
/// A cell that a spreadsheet would run is kept as text by a leading apostrophe; other control characters are written as `\u{…}`, so
/// that a value can forge neither a line nor a terminal's command.
#[must_use]
pub fn line<'a>(cells: impl IntoIterator<Item = &'a str>) -> String {
    let mut out = String::new();
    for (at, cell) in cells.into_iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        let cell = harmless(cell);
        if cell.contains([',', '"', '\'', ' ']) || cell.is_empty() {
            let _ = write!(out, "\"{}\"", cell.replace('"', "\"\""));
        } else {
            out.push_str(&cell);
        }
    }
    out.push_str("\r\n");
    out
}

fn harmless(cell: &str) -> Cow<'_, str> {
    let formula = cell.trim_start_matches([' ', '\u{feff}', '\u{a0}']).starts_with(FORMULA_STARTS);
    if !formula && !cell.contains(char::is_control) {
        return Cow::Borrowed(cell);
    }
    let mut out = String::with_capacity(cell.len() + 8);
    if formula {
        out.push('\'');
    }
    for letter in cell.chars() {
        if letter.is_control() {
            out.extend(letter.escape_unicode());
        } else {
            out.push(letter);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula_and_no_value_makes_a_line() {
        for start in FORMULA_STARTS {
            let cell = format!("{start}cmd|' /C calc'!A0");
            assert!(line([cell.as_str()]).starts_with("\"'"), "{cell}");
        }
        assert!(line([" =1+1"]).starts_with("\"' =1"));
        assert_eq!(line(["a", "b\r\nc", "d\"e", ""]), "a,b\\u{d}\\u{a}c,\"d\"\"e\",\"\"\r\n");
        assert_eq!(line(["a,b", "plug_1"]), "\"a,b\",plug_1\r\n");
    }
}
