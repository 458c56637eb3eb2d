//! The filters that templates may use. Those that can make their input larger stop at the output limit.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value, filters as builtin};

use super::{OUTPUT_BYTES_MAX, scan};
use crate::workflow::json;

/// Every filter's name, in the order in which messages and the guide list them.
pub const FILTERS: [&str; 32] = [
    "default",
    "d",
    "tojson",
    "lower",
    "upper",
    "title",
    "capitalize",
    "trim",
    "truncate",
    "replace",
    "split",
    "join",
    "length",
    "count",
    "first",
    "last",
    "min",
    "max",
    "sort",
    "unique",
    "reverse",
    "map",
    "round",
    "abs",
    "int",
    "float",
    "string",
    "bool",
    "plus",
    "times",
    "urlencode",
    "items",
];

/// Every test's name, as in `x is defined`.
pub const TESTS: [&str; 7] = ["defined", "undefined", "none", "string", "number", "mapping", "sequence"];

/// Words that may stand before a parenthesis without being called.
const OPERATORS: [&str; 7] = ["and", "or", "not", "in", "if", "else", "is"];

pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_filter("default", builtin::default);
    environment.add_filter("d", builtin::default);
    environment.add_filter("tojson", tojson);
    environment.add_filter("lower", builtin::lower);
    environment.add_filter("upper", builtin::upper);
    environment.add_filter("title", builtin::title);
    environment.add_filter("capitalize", builtin::capitalize);
    environment.add_filter("trim", builtin::trim);
    environment.add_filter("truncate", truncate);
    environment.add_filter("replace", replace);
    environment.add_filter("split", builtin::split);
    environment.add_filter("join", join);
    environment.add_filter("length", builtin::length);
    environment.add_filter("count", builtin::length);
    environment.add_filter("first", builtin::first);
    environment.add_filter("last", builtin::last);
    environment.add_filter("min", builtin::min);
    environment.add_filter("max", builtin::max);
    environment.add_filter("sort", builtin::sort);
    environment.add_filter("unique", builtin::unique);
    environment.add_filter("reverse", builtin::reverse);
    environment.add_filter("map", map);
    environment.add_filter("round", builtin::round);
    environment.add_filter("abs", builtin::abs);
    environment.add_filter("int", builtin::int);
    environment.add_filter("float", builtin::float);
    environment.add_filter("string", string);
    environment.add_filter("bool", builtin::bool);
    environment.add_filter("plus", plus);
    environment.add_filter("times", times);
    environment.add_filter("urlencode", urlencode);
    environment.add_filter("items", builtin::items);
    environment.add_test("defined", minijinja::tests::is_defined);
    environment.add_test("undefined", minijinja::tests::is_undefined);
    environment.add_test("none", minijinja::tests::is_none);
    environment.add_test("string", minijinja::tests::is_string);
    environment.add_test("number", minijinja::tests::is_number);
    environment.add_test("mapping", minijinja::tests::is_mapping);
    environment.add_test("sequence", minijinja::tests::is_sequence);
}

/// minijinja finds an unknown filter, test or function only when it runs; this finds it when the definition is saved.
pub(super) fn check_names(source: &str) -> Result<(), String> {
    let tokens = scan::tokens(source)?;
    let at = |place: usize| tokens.get(place).copied().unwrap_or_default();
    for (place, token) in tokens.iter().enumerate() {
        let before = place.checked_sub(1).map_or("", at);
        if *token == "|" && !FILTERS.contains(&at(place + 1)) {
            return Err(format!("unknown filter `{}`; known are {}", at(place + 1), FILTERS.join(" ")));
        }
        if *token == "is" && before != "." && before != "|" {
            let name = if at(place + 1) == "not" { at(place + 2) } else { at(place + 1) };
            if !TESTS.contains(&name) {
                return Err(format!("unknown test `{name}`; known are {}", TESTS.join(" ")));
            }
        }
        let is_name = token.starts_with(|c: char| c.is_alphabetic() || c == '_') || matches!(*token, ")" | "]");
        let is_operator = OPERATORS.contains(token) && before != ".";
        if is_name && at(place + 1) == "(" && before != "|" && !is_operator {
            return Err(format!("`{token}(`: templates have filters but no functions"));
        }
    }
    Ok(())
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

fn too_large() -> Error {
    invalid("the result is larger than 1 MiB")
}

/// The value as JSON text.
fn tojson(value: &Value) -> Result<String, Error> {
    json::write_capped(value, OUTPUT_BYTES_MAX).map_err(invalid)
}

/// The value as text: text as it is, null as nothing, the rest as JSON.
fn string(value: &Value) -> Result<String, Error> {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => Ok(text.to_owned()),
        (None, ValueKind::Undefined) => Err(Error::from(ErrorKind::UndefinedError)),
        (None, ValueKind::None) => Ok(String::new()),
        (None, _) => tojson(value),
    }
}

/// At most `length` characters, the last one an ellipsis when something was cut.
fn truncate(text: &str, length: Option<usize>) -> String {
    let length = length.unwrap_or(255).max(1);
    match text.char_indices().nth(length) {
        None => text.to_owned(),
        Some(_) => text.chars().take(length - 1).chain(['…']).collect(),
    }
}

fn replace(text: &str, from: &str, to: &str) -> Result<String, Error> {
    if from.is_empty() {
        return Err(invalid("`replace` needs something to look for"));
    }
    let found = text.matches(from).count();
    let grown = found.saturating_mul(to.len().saturating_sub(from.len()));
    if text.len().saturating_add(grown) > OUTPUT_BYTES_MAX {
        return Err(too_large());
    }
    Ok(text.replace(from, to))
}

fn join(items: &Value, separator: Option<&str>) -> Result<String, Error> {
    let separator = separator.unwrap_or_default();
    let mut out = String::new();
    for (index, item) in items.try_iter()?.enumerate() {
        if index > 0 {
            out.push_str(separator);
        }
        out.push_str(&string(&item)?);
        if out.len() > OUTPUT_BYTES_MAX {
            return Err(too_large());
        }
    }
    Ok(out)
}

/// `map(attribute="name")`: that attribute of each element. Elements without it are an error unless `default` is given.
#[expect(clippy::needless_pass_by_value, reason = "minijinja hands filter arguments over by value")]
fn map(items: &Value, options: Kwargs) -> Result<Vec<Value>, Error> {
    let attribute: String = options.get("attribute")?;
    let default: Option<Value> = options.get("default")?;
    options.assert_all_used()?;
    let mut found = Vec::new();
    for item in items.try_iter()? {
        let mut value = item;
        for key in attribute.split('.') {
            value = value.get_attr(key)?;
        }
        if value.is_undefined() {
            value = default.clone().ok_or_else(|| Error::from(ErrorKind::UndefinedError))?;
        }
        found.push(value);
    }
    Ok(found)
}

/// Whole numbers stay whole; anything else is computed as a floating-point number.
fn arithmetic(
    left: &Value,
    right: &Value,
    whole: fn(i64, i64) -> Option<i64>,
    float: fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    if left.kind() != ValueKind::Number || right.kind() != ValueKind::Number {
        return Err(invalid("both sides must be numbers"));
    }
    if left.is_integer() && right.is_integer() {
        let (left, right) = (i64::try_from(left.clone())?, i64::try_from(right.clone())?);
        return whole(left, right).map(Value::from).ok_or_else(|| invalid("the number is too large"));
    }
    let result = float(f64::try_from(left.clone())?, f64::try_from(right.clone())?);
    if result.is_finite() { Ok(Value::from(result)) } else { Err(invalid("the number is too large")) }
}

fn plus(left: &Value, right: &Value) -> Result<Value, Error> {
    arithmetic(left, right, i64::checked_add, |left, right| left + right)
}

fn times(left: &Value, right: &Value) -> Result<Value, Error> {
    arithmetic(left, right, i64::checked_mul, |left, right| left * right)
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
fn urlencode(value: &Value) -> Result<String, Error> {
    use std::fmt::Write as _;
    let text = string(value)?;
    if text.len() > OUTPUT_BYTES_MAX / 3 {
        return Err(too_large());
    }
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    Ok(out)
}
