//! Why a condition gave its answer: the same tree, with what each node saw.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Check, Comparable, Lookup, Node, Test};

/// Bytes of an actual value that an explanation repeats; longer ones are cut and marked.
const SHOWN_BYTES_MAX: usize = 200;
/// Elements of an actual list that an explanation repeats.
const SHOWN_ITEMS_MAX: usize = 10;

/// One node of the explanation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// `all`, `any`, `not`, or the operator's name.
    pub op: String,
    pub result: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Explanation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Value>,
    /// What the field held, shortened; absent when it was missing.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub actual: Option<Value>,
    /// Why a test could not hold: a missing field, a value of another type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Reads a key that is there as `Some`, `null` included.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    serde::Deserialize::deserialize(deserializer).map(Some)
}

pub(super) fn explain<L: Lookup + ?Sized>(node: &Node, root: &L) -> Explanation {
    let group = |op: &str, result, children| Explanation {
        op: op.to_owned(),
        result,
        children,
        field: None,
        expected: None,
        actual: None,
        note: None,
    };
    match node {
        Node::All(nodes) => {
            let children: Vec<_> = nodes.iter().map(|node| explain(node, root)).collect();
            group("all", children.iter().all(|child| child.result), children)
        }
        Node::Any(nodes) => {
            let children: Vec<_> = nodes.iter().map(|node| explain(node, root)).collect();
            group("any", children.iter().any(|child| child.result), children)
        }
        Node::Not(node) => {
            let child = explain(node, root);
            group("not", !child.result, vec![child])
        }
        Node::Test(test) => explain_test(test, root),
    }
}

fn explain_test<L: Lookup + ?Sized>(test: &Test, root: &L) -> Explanation {
    let actual = test.path.resolve(root);
    let note = match actual.as_deref() {
        None => (!matches!(test.check, Check::Exists(_))).then(|| "the field is missing".to_owned()),
        Some(Value::Array(items)) if test.path.has_each() => {
            if items.is_empty() {
                Some("no element has the field".to_owned())
            } else if items.iter().all(|item| mismatch(&test.check, item).is_some()) {
                items.first().and_then(|item| mismatch(&test.check, item))
            } else {
                None
            }
        }
        Some(value) => mismatch(&test.check, value),
    };
    Explanation {
        op: test.op.as_str().to_owned(),
        result: test.eval(root),
        children: Vec::new(),
        field: Some(test.path.as_str().to_owned()),
        expected: Some(shorten(&test.operand)),
        actual: actual.as_deref().map(shorten),
        note,
    }
}

/// Why the check cannot hold for a value of this type, whatever it is exactly.
fn mismatch(check: &Check, actual: &Value) -> Option<String> {
    let wanted = match check {
        Check::Exists(_) => return None,
        Check::Equals(operand) => {
            if type_name(operand) == type_name(actual) {
                return None;
            }
            type_name(operand)
        }
        Check::OneOf(operands) => {
            if operands.has_type_of(actual) {
                return None;
            }
            "values of another type"
        }
        Check::Order(_, operand) | Check::Between(operand, _) => {
            if operand.compare(actual).is_some() {
                return None;
            }
            match operand {
                Comparable::Number(_) => "a number",
                Comparable::Time(_) => "a time",
            }
        }
        Check::Contains(operand) => match actual {
            Value::Array(_) => return None,
            Value::String(_) if operand.is_string() => return None,
            _ => "a list, or text for a part of it",
        },
        Check::StartsWith(_) | Check::EndsWith(_) | Check::Matches(_) => {
            if actual.is_string() {
                return None;
            }
            "text"
        }
    };
    let hint = if actual.is_array() { "; [*] after the field's name looks at each element" } else { "" };
    Some(format!("{} is compared with {wanted}{hint}", type_name(actual)))
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The value itself when it is small, else a shortened one that says so.
fn shorten(value: &Value) -> Value {
    match value {
        Value::String(text) if text.len() > SHOWN_BYTES_MAX => {
            let end = (0..=SHOWN_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            Value::String(format!("{}… ({} bytes)", &text[..end], text.len()))
        }
        Value::Array(items) => {
            let mut shown: Vec<Value> = items.iter().take(SHOWN_ITEMS_MAX).map(shorten_inner).collect();
            if items.len() > SHOWN_ITEMS_MAX {
                shown.push(Value::String(format!("… ({} elements)", items.len())));
            }
            Value::Array(shown)
        }
        Value::Object(map) => Value::String(format!("an object with {} keys", map.len())),
        _ => value.clone(),
    }
}

/// One level down nothing is spelled out, so that an explanation stays small whatever the payload.
fn shorten_inner(value: &Value) -> Value {
    match value {
        Value::Array(items) => Value::String(format!("a list with {} elements", items.len())),
        other => shorten(other),
    }
}
