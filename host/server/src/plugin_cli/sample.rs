//! Values for a JSON Schema, and values that fit none.

use serde_json::{Map, Value, json};

/// How deep references and nesting are followed.
const DEPTH_MAX: usize = 16;
/// Texts that the usual patterns and formats accept, tried in this order.
const TEXTS: [&str; 14] = [
    "text",
    "a",
    "1",
    "https://example.com/",
    "http://example.com/",
    "name@example.com",
    "2026-01-01T00:00:00Z",
    "2026-01-01",
    "12:00:00Z",
    "example.com",
    "192.0.2.1",
    "01941f29-7c00-7000-8000-000000000000",
    "#channel",
    "A1",
];

/// How much of an object to fill.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    Required,
    Everything,
}

/// Values that the schema accepts: with what is required only, and with everything. Empty when none could be made.
pub(super) fn valid(schema: Option<&Value>) -> Vec<Value> {
    let Some(root) = schema else { return vec![json!({})] };
    let accepts = |value: &Value| {
        bulkhead_model::manifest::schema::compile(root).is_ok_and(|validator| validator.is_valid(value))
    };
    let mut values: Vec<Value> = Vec::new();
    for fill in [Fill::Required, Fill::Everything] {
        if let Some(value) = make(root, root, fill, 0).filter(accepts)
            && !values.contains(&value)
        {
            values.push(value);
        }
    }
    values
}

/// JSON texts that no careful guest trips over, each with a name. Some are not even JSON.
pub(super) fn malformed(input_bytes_max: u64) -> Vec<(&'static str, String)> {
    let most = usize::try_from(input_bytes_max).unwrap_or(usize::MAX).saturating_sub(64);
    let nested = |depth: usize, open: &str, close: &str| format!("{}0{}", open.repeat(depth), close.repeat(depth));
    vec![
        ("null", "null".into()),
        ("a number", "-1e308".into()),
        ("a huge number", "1".repeat(400)),
        ("a string", r#""text""#.into()),
        ("an empty list", "[]".into()),
        ("an empty object", "{}".into()),
        ("unknown keys", r#"{"\u0000":1,"__proto__":{},"constructor":null}"#.into()),
        ("a repeated key", r#"{"a":1,"a":2}"#.into()),
        ("lone surrogates", r#"{"a":"\ud800"}"#.into()),
        ("60 lists deep", nested(60, "[", "]")),
        ("10,000 lists deep", nested(10_000, "[", "]")),
        ("10,000 objects deep", nested(10_000, r#"{"a":"#, "}")),
        ("20,000 keys", {
            let keys: Vec<String> = (0..20_000).map(|key| format!(r#""k{key}":0"#)).collect();
            format!("{{{}}}", keys.join(","))
        }),
        ("the longest string", format!(r#""{}""#, "a".repeat(most))),
        ("the longest list", format!("[{}0]", "0,".repeat(most / 2 - 4))),
        ("nothing", String::new()),
        ("cut off", r#"{"a": "#.into()),
        ("no JSON", "<xml/>".into()),
    ]
}

fn make(root: &Value, schema: &Value, fill: Fill, depth: usize) -> Option<Value> {
    if depth > DEPTH_MAX {
        return None;
    }
    let Value::Object(map) = schema else { return (schema == &Value::Bool(true)).then_some(Value::Null) };
    if let Some(pointer) = map.get("$ref").and_then(Value::as_str) {
        return make(root, root.pointer(pointer.strip_prefix('#')?)?, fill, depth + 1);
    }
    if let Some(value) = map.get("const") {
        return Some(value.clone());
    }
    if let Some(values) = map.get("enum").and_then(Value::as_array) {
        return if fill == Fill::Everything { values.last().cloned() } else { values.first().cloned() };
    }
    for key in ["oneOf", "anyOf"] {
        if let Some(choices) = map.get(key).and_then(Value::as_array) {
            let made = choices.iter().find_map(|choice| make(root, choice, fill, depth + 1))?;
            return Some(merged(made, object(root, map, fill, depth)));
        }
    }
    if let Some(parts) = map.get("allOf").and_then(Value::as_array) {
        let start = object(root, map, fill, depth).unwrap_or_else(|| json!({}));
        let parts = parts.iter().filter_map(|part| make(root, part, fill, depth + 1));
        return Some(parts.fold(start, |all, part| merged(all, Some(part))));
    }
    if let Some(example) = map.get("examples").and_then(Value::as_array).and_then(|examples| examples.first()) {
        return Some(example.clone());
    }
    let kind = match map.get("type") {
        Some(Value::String(kind)) => kind.as_str(),
        // Something rather than null where both are possible.
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null")?,
        _ if map.contains_key("properties") => "object",
        _ => return Some(map.get("default").cloned().unwrap_or(Value::Null)),
    };
    match kind {
        "object" => object(root, map, fill, depth),
        "array" => list(root, map, fill, depth),
        "string" => text(map, fill).map(Value::String),
        "integer" | "number" => Some(number(map, fill)),
        "boolean" => Some(Value::Bool(fill == Fill::Everything)),
        _ => Some(Value::Null),
    }
}

fn object(root: &Value, map: &Map<String, Value>, fill: Fill, depth: usize) -> Option<Value> {
    let none = Map::new();
    let properties = map.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let required: Vec<&str> =
        map.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let mut made = Map::new();
    for (name, schema) in properties {
        if fill == Fill::Everything || required.contains(&name.as_str()) {
            match make(root, schema, fill, depth + 1) {
                Some(value) => {
                    made.insert(name.clone(), value);
                }
                None if required.contains(&name.as_str()) => return None,
                None => {}
            }
        }
    }
    for name in required {
        if !made.contains_key(name) {
            made.insert(name.to_owned(), Value::Null);
        }
    }
    if fill == Fill::Everything
        && let Some(schema @ Value::Object(_)) = map.get("additionalProperties")
        && let Some(value) = make(root, schema, fill, depth + 1)
    {
        made.insert("x-extra".into(), value);
    }
    Some(Value::Object(made))
}

fn list(root: &Value, map: &Map<String, Value>, fill: Fill, depth: usize) -> Option<Value> {
    let count = |key: &str, otherwise| map.get(key).and_then(Value::as_u64).unwrap_or(otherwise);
    let least = count("minItems", 0);
    let wanted = if fill == Fill::Everything { least.max(3).min(count("maxItems", u64::MAX)) } else { least };
    let items = map.get("items").unwrap_or(&Value::Bool(true));
    (0..wanted.min(1_000)).map(|_| make(root, items, fill, depth + 1)).collect()
}

fn text(map: &Map<String, Value>, fill: Fill) -> Option<String> {
    let schema = Value::Object(map.clone());
    let validator = bulkhead_model::manifest::schema::compile(&schema).ok()?;
    let least = usize::try_from(map.get("minLength").and_then(Value::as_u64).unwrap_or(0)).unwrap_or(0);
    let most = usize::try_from(map.get("maxLength").and_then(Value::as_u64).unwrap_or(256)).unwrap_or(256);
    let is_url = map.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uri"));
    let first = is_url.then(|| "https://example.com/".to_owned());
    // The longest allowed text shows more than the shortest one, and its characters take four bytes each.
    let long = (fill == Fill::Everything).then(|| "😀".repeat(most.min(20_000)));
    let candidates =
        first.into_iter().chain(long).chain(TEXTS.map(str::to_owned)).chain([String::new(), "a".repeat(least)]);
    candidates.into_iter().find(|text| validator.is_valid(&Value::String(text.clone())))
}

fn number(map: &Map<String, Value>, fill: Fill) -> Value {
    let bound = |keys: [&str; 2]| keys.iter().find_map(|key| map.get(*key).cloned());
    let low = bound(["minimum", "exclusiveMinimum"]);
    let high = bound(["maximum", "exclusiveMaximum"]);
    if fill == Fill::Everything { high.or(low) } else { low.or(high) }.unwrap_or_else(|| json!(1))
}

fn merged(mut value: Value, with: Option<Value>) -> Value {
    if let (Value::Object(value), Some(Value::Object(with))) = (&mut value, with) {
        for (key, part) in with {
            value.entry(key).or_insert(part);
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fit_the_schema_they_were_made_for() {
        let schema = json!({
            "type": "object",
            "properties": {
                "url": { "type": "string", "pattern": "^https://", "maxLength": 100 },
                "method": { "$ref": "#/$defs/Method" },
                "retries": { "type": "integer", "minimum": 2, "maximum": 5 },
                "tags": { "type": "array", "items": { "type": "string", "minLength": 3, "maxLength": 3 }, "minItems": 1 },
                "nothing": { "type": ["null", "boolean"] },
                "choice": { "oneOf": [{ "const": "a" }, { "const": "b" }] }
            },
            "required": ["url", "tags"],
            "additionalProperties": false,
            "$defs": { "Method": { "enum": ["POST", "PUT"] } }
        });
        assert_eq!(
            valid(Some(&schema)),
            [
                json!({ "url": "https://example.com/", "tags": ["aaa"] }),
                json!({
                    "url": "https://example.com/",
                    "method": "PUT",
                    "retries": 5,
                    "tags": ["😀😀😀", "😀😀😀", "😀😀😀"],
                    "nothing": true,
                    "choice": "a"
                })
            ]
        );
    }

    #[test]
    fn a_schema_that_nothing_fits_gives_nothing() {
        assert!(valid(Some(&json!(false))).is_empty());
        assert!(valid(Some(&json!({ "type": "string", "pattern": "^no such text in the list$" }))).is_empty());
        assert_eq!(valid(None), [json!({})]);
    }

    #[test]
    fn malformed_inputs_stay_below_the_limit_of_an_input() {
        for (name, text) in malformed(1_048_576) {
            assert!(text.len() <= 1_048_576, "{name}: {}", text.len());
        }
    }
}
