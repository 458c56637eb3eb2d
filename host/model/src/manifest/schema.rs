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
/// References that lead from one to the next: each costs the validator some stack.
pub const REFERENCES_DEEP_MAX: usize = 16;
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

/// How large a schema is once its references are replaced.
#[derive(Clone, Copy, Default)]
struct Size {
    subschemas: u64,
    /// The longest chain of references below.
    references_deep: usize,
}

impl Size {
    const ONE: Self = Self { subschemas: 1, references_deep: 0 };

    fn and(self, other: Self) -> Self {
        Self {
            subschemas: self.subschemas.saturating_add(other.subschemas),
            references_deep: self.references_deep.max(other.references_deep),
        }
    }
}

struct Walk<'a> {
    root: &'a Value,
    /// What a reference stands for; `None` while it is being measured, which is how a circle shows.
    expanded: HashMap<&'a str, Option<Size>>,
}

impl<'a> Walk<'a> {
    fn schema(&mut self, path: &str, schema: &'a Value, is_root: bool) -> Result<Size, SchemaError> {
        let map = match schema {
            Value::Object(map) => map,
            // A list stands under `dependencies` and names properties.
            Value::Bool(_) | Value::Array(_) => return Ok(Size::ONE),
            _ => return invalid(path, "a schema is an object, true or false"),
        };
        let mut total = Size::ONE;
        for (name, value) in map {
            let here = below(path, name);
            let size = match keyword(name) {
                Keyword::Data if name == "$id" && !is_root => return invalid(&here, "$id stands at the root only"),
                Keyword::Data => Size::default(),
                Keyword::Refused(why) => return invalid(&here, why),
                Keyword::Pattern => {
                    pattern(&here, value.as_str().unwrap_or_default())?;
                    Size::default()
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
                    Size::default()
                }
            };
            total = total.and(size);
        }
        if total.subschemas > EXPANDED_MAX {
            return invalid(path, format!("it grows to more than {EXPANDED_MAX} subschemas"));
        }
        Ok(total)
    }

    fn all(&mut self, schemas: impl Iterator<Item = (String, &'a Value)>, path: &str) -> Result<Size, SchemaError> {
        let mut total = Size::default();
        for (key, schema) in schemas {
            total = total.and(self.schema(&below(path, &key), schema, false)?);
        }
        Ok(total)
    }

    fn reference(&mut self, path: &str, target: &'a Value) -> Result<Size, SchemaError> {
        let Some(pointer) = target.as_str().and_then(|text| text.strip_prefix('#')) else {
            return invalid(path, "a reference stays inside the document: \"#/…\"");
        };
        if !pointer.is_empty() && !pointer.starts_with('/') {
            return invalid(path, "a reference is a JSON pointer: \"#/…\"");
        }
        match self.expanded.get(pointer) {
            Some(Some(size)) => return Ok(*size),
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
        // Those that are being measured lead from one to the next: this keeps our own stack small as well.
        let open = self.expanded.values().filter(|size| size.is_none()).count();
        self.expanded.insert(pointer, None);
        if open > REFERENCES_DEEP_MAX {
            return invalid(path, format!("more than {REFERENCES_DEEP_MAX} references lead from one to the next"));
        }
        let mut size = self.schema(pointer, found, false)?;
        size.references_deep += 1;
        if size.references_deep > REFERENCES_DEEP_MAX {
            return invalid(path, format!("more than {REFERENCES_DEEP_MAX} references lead from one to the next"));
        }
        self.expanded.insert(pointer, Some(size));
        Ok(size)
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
