//! JSON Schemas that plugin authors write: checked for size and shape before they are compiled, since validating with a
//! careless or hostile one can take for ever.
//!
//! - References stay inside the document (`#/…`) and never form a circle; expanded, the schema stays below
//!   [`EXPANDED_MAX`] subschemas. Validation then costs at most that many steps per node of the instance.
//! - Regular expressions run on an engine without backtracking.

use std::collections::HashMap;

use serde_json::Value;

use super::check::below;

/// Bytes of a schema's text.
pub const SCHEMA_BYTES_MAX: usize = 64 * 1024;
/// Nesting of a schema's JSON.
pub const SCHEMA_DEPTH_MAX: usize = 32;
/// Subschemas once every reference is replaced by what it refers to.
pub const EXPANDED_MAX: u64 = 10_000;
/// Characters of a regular expression.
pub const PATTERN_CHARS_MAX: usize = 512;
/// Bytes of a compiled regular expression: the default of the `regex` crate is ten times as much.
const PATTERN_COMPILED_BYTES_MAX: usize = 1024 * 1024;

/// Why a schema was refused; `path` is a JSON pointer into it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct SchemaError {
    pub path: String,
    pub problem: String,
}

fn invalid<T>(path: &str, problem: impl Into<String>) -> Result<T, SchemaError> {
    Err(SchemaError { path: path.to_owned(), problem: problem.into() })
}

/// Checks a schema and makes its validator. Whoever validates against a plugin's schema gets the validator here.
///
/// # Errors
/// The first problem found, with its place.
pub fn compile(schema: &Value) -> Result<jsonschema::Validator, SchemaError> {
    if !schema.is_object() && !schema.is_boolean() {
        return invalid("", "a JSON Schema is an object");
    }
    depth("", schema, 0)?;
    let bytes = schema.to_string().len();
    if bytes > SCHEMA_BYTES_MAX {
        return invalid("", format!("{bytes} bytes; at most {SCHEMA_BYTES_MAX} are allowed"));
    }
    let mut walk = Walk { root: schema, expanded: HashMap::new() };
    walk.schema("", schema, true)?;
    jsonschema::options()
        .with_pattern_options(jsonschema::PatternOptions::regex().size_limit(PATTERN_COMPILED_BYTES_MAX))
        .build(schema)
        .map_err(|error| SchemaError { path: error.instance_path().to_string(), problem: error.to_string() })
}

fn depth(path: &str, value: &Value, level: usize) -> Result<(), SchemaError> {
    if level > SCHEMA_DEPTH_MAX {
        return invalid(path, format!("nested deeper than {SCHEMA_DEPTH_MAX}"));
    }
    match value {
        Value::Array(items) => {
            items.iter().enumerate().try_for_each(|(at, item)| depth(&below(path, &at.to_string()), item, level + 1))
        }
        Value::Object(map) => map.iter().try_for_each(|(key, item)| depth(&below(path, key), item, level + 1)),
        _ => Ok(()),
    }
}

/// What a keyword's value is made of.
enum Keyword {
    /// A schema, or a list of schemas.
    Schemas,
    /// Names to schemas.
    Named,
    /// Names to schemas that count only where something refers to them.
    Definitions,
    Reference,
    Pattern,
    Refused(&'static str),
    /// Anything else; `enum`, `const`, `default` and `examples` hold data that may look like a schema.
    Data,
}

fn keyword(name: &str) -> Keyword {
    match name {
        "allOf"
        | "anyOf"
        | "oneOf"
        | "not"
        | "if"
        | "then"
        | "else"
        | "items"
        | "prefixItems"
        | "additionalItems"
        | "contains"
        | "additionalProperties"
        | "propertyNames"
        | "unevaluatedItems"
        | "unevaluatedProperties"
        | "contentSchema" => Keyword::Schemas,
        "properties" | "patternProperties" | "dependentSchemas" | "dependencies" => Keyword::Named,
        "$defs" | "definitions" => Keyword::Definitions,
        "$ref" => Keyword::Reference,
        "pattern" => Keyword::Pattern,
        "$dynamicRef" | "$recursiveRef" | "$anchor" | "$dynamicAnchor" | "$recursiveAnchor" => {
            Keyword::Refused("references are written as \"$ref\": \"#/…\"")
        }
        "$vocabulary" => Keyword::Refused("vocabularies are not supported"),
        _ => Keyword::Data,
    }
}

struct Walk<'a> {
    root: &'a Value,
    /// How many subschemas a reference stands for; `None` while it is being counted, which is how a circle shows.
    expanded: HashMap<&'a str, Option<u64>>,
}

impl<'a> Walk<'a> {
    /// The number of subschemas in `schema`, references replaced.
    fn schema(&mut self, path: &str, schema: &'a Value, is_root: bool) -> Result<u64, SchemaError> {
        let map = match schema {
            Value::Object(map) => map,
            Value::Bool(_) => return Ok(1),
            // Under `dependencies`, a list of property names.
            Value::Array(_) => return Ok(1),
            _ => return invalid(path, "a schema is an object, true or false"),
        };
        let mut total: u64 = 1;
        for (name, value) in map {
            let here = below(path, name);
            let count = match keyword(name) {
                Keyword::Data if name == "$id" && !is_root => return invalid(&here, "$id stands at the root only"),
                Keyword::Data => 0,
                Keyword::Refused(why) => return invalid(&here, why),
                Keyword::Pattern => {
                    pattern(&here, value.as_str().unwrap_or_default())?;
                    0
                }
                Keyword::Reference => self.reference(&here, value)?,
                Keyword::Schemas => match value {
                    Value::Array(items) => {
                        self.all(items.iter().enumerate().map(|(i, v)| (i.to_string(), v)), &here)?
                    }
                    single => self.schema(&here, single, false)?,
                },
                Keyword::Named => {
                    let Value::Object(named) = value else { return invalid(&here, "an object of schemas") };
                    if name == "patternProperties" {
                        named.keys().try_for_each(|key| pattern(&below(&here, key), key))?;
                    }
                    self.all(named.iter().map(|(k, v)| (k.clone(), v)), &here)?
                }
                Keyword::Definitions => {
                    let Value::Object(named) = value else { return invalid(&here, "an object of schemas") };
                    self.all(named.iter().map(|(k, v)| (k.clone(), v)), &here)?;
                    0
                }
            };
            total = total.saturating_add(count);
        }
        if total > EXPANDED_MAX {
            return invalid(path, format!("it grows to more than {EXPANDED_MAX} subschemas"));
        }
        Ok(total)
    }

    fn all(&mut self, schemas: impl Iterator<Item = (String, &'a Value)>, path: &str) -> Result<u64, SchemaError> {
        let mut total: u64 = 0;
        for (key, schema) in schemas {
            total = total.saturating_add(self.schema(&below(path, &key), schema, false)?);
        }
        Ok(total)
    }

    fn reference(&mut self, path: &str, target: &'a Value) -> Result<u64, SchemaError> {
        let Some(pointer) = target.as_str().and_then(|text| text.strip_prefix('#')) else {
            return invalid(path, "a reference stays inside the document: \"#/…\"");
        };
        if !pointer.is_empty() && !pointer.starts_with('/') {
            return invalid(path, "a reference is a JSON pointer: \"#/…\"");
        }
        match self.expanded.get(pointer) {
            Some(Some(count)) => return Ok(*count),
            Some(None) => {
                return invalid(
                    path,
                    "the reference runs in a circle; write {\"type\": \"object\"} where it begins again",
                );
            }
            None => {}
        }
        let Some(found) = self.root.pointer(pointer) else { return invalid(path, "the reference leads nowhere") };
        if pointer.is_empty() {
            return invalid(path, "the reference runs in a circle; write {\"type\": \"object\"} where it begins again");
        }
        self.expanded.insert(pointer, None);
        let count = self.schema(pointer, found, false)?;
        self.expanded.insert(pointer, Some(count));
        Ok(count)
    }
}

fn pattern(path: &str, pattern: &str) -> Result<(), SchemaError> {
    if pattern.chars().count() > PATTERN_CHARS_MAX {
        return invalid(path, format!("a pattern has at most {PATTERN_CHARS_MAX} characters"));
    }
    match regex::RegexBuilder::new(pattern).size_limit(PATTERN_COMPILED_BYTES_MAX).build() {
        Ok(_) => Ok(()),
        Err(regex::Error::CompiledTooBig(_)) => invalid(path, "the pattern grows too large"),
        Err(_) => invalid(path, "a regular expression without look-around and back-references"),
    }
}
