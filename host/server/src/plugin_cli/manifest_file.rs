//! `plugin.toml` and the schema files it names, read into a manifest. Errors name file, line and column.

use std::fmt::Write as _;
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail};
use bulkhead_model::manifest::{Manifest, ManifestError};
use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Name of the file in a project's folder.
pub(super) const FILE_NAME: &str = "plugin.toml";
const KINDS: [&str; 3] = ["actions", "channels", "factors"];
const SCHEMAS: [&str; 3] = ["settings", "input", "output"];

/// Reads and checks the manifest of the project in `dir`.
pub(super) fn read(dir: &Path) -> anyhow::Result<Manifest> {
    let file = dir.join(FILE_NAME);
    let text = fs::read_to_string(&file).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => anyhow::anyhow!(
            "{} does not exist: this is no plugin's folder; `bulkhead plugin new` makes one",
            file.display()
        ),
        _ => anyhow::anyhow!("{} cannot be read: {error}", file.display()),
    })?;
    let table = DeTable::parse(&text).map_err(|error| {
        anyhow::anyhow!("{}: {}", place(&file, &text, error.span().map_or(0, |span| span.start)), error.message())
    })?;
    let mut manifest = Value::Object(object(table.get_ref()).with_context(|| file.display().to_string())?);
    let schemas = inline_schemas(dir, &file, &text, table.get_ref(), &mut manifest)?;
    let json = serde_json::to_vec(&manifest).expect("a JSON value can be written");
    Manifest::parse(&json).map_err(|error| located(&file, &text, table.get_ref(), &schemas, &error))
}

/// A schema that came from a file: its pointer in the manifest, and the file.
struct SchemaFile {
    pointer: String,
    file: PathBuf,
}

fn inline_schemas(
    dir: &Path,
    file: &Path,
    text: &str,
    table: &DeTable<'_>,
    manifest: &mut Value,
) -> anyhow::Result<Vec<SchemaFile>> {
    let mut found = Vec::new();
    for kind in KINDS {
        let Some(contributions) = manifest.get_mut(kind).and_then(Value::as_array_mut) else { continue };
        for (index, contribution) in contributions.iter_mut().enumerate() {
            for key in SCHEMAS {
                let pointer = format!("/{kind}/{index}/{key}");
                let Some(value) = contribution.get_mut(key) else { continue };
                let Value::String(name) = value else { continue };
                let at = || place(file, text, offset(table, &pointer));
                let name = PathBuf::from(std::mem::take(name));
                if name.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
                    bail!("{}: {} leads out of the project; schemas lie beside {FILE_NAME}", at(), name.display());
                }
                let schema = dir.join(&name);
                let json = fs::read_to_string(&schema)
                    .map_err(|error| anyhow::anyhow!("{}: {} cannot be read: {error}", at(), schema.display()))?;
                *value = serde_json::from_str(&json).map_err(|error| {
                    anyhow::anyhow!("{}:{}:{}: not JSON: {error}", schema.display(), error.line(), error.column())
                })?;
                found.push(SchemaFile { pointer, file: schema });
            }
        }
    }
    Ok(found)
}

/// The error with its place in the file that the author wrote.
fn located(
    file: &Path,
    text: &str,
    table: &DeTable<'_>,
    schemas: &[SchemaFile],
    error: &ManifestError,
) -> anyhow::Error {
    let ManifestError::Invalid { path, problem } = error else {
        return anyhow::anyhow!("{}: {error}", file.display());
    };
    let within = |schema: &SchemaFile| {
        let rest = path.strip_prefix(schema.pointer.as_str())?;
        (rest.is_empty() || rest.starts_with('/')).then(|| rest.to_owned())
    };
    if let Some((schema, rest)) = schemas.iter().find_map(|schema| within(schema).map(|rest| (schema, rest))) {
        return anyhow::anyhow!(
            "{}: at {}: {problem}",
            schema.file.display(),
            if rest.is_empty() { "/" } else { &rest }
        );
    }
    let mut message = place(file, text, offset(table, path));
    if !path.is_empty() {
        // Writing to a string cannot fail.
        let _ = write!(message, ": {}", path.trim_start_matches('/').replace('/', "."));
    }
    anyhow::anyhow!("{message}: {problem}")
}

/// `file:line:column` of a byte.
fn place(file: &Path, text: &str, offset: usize) -> String {
    let before = &text[..text.floor_char_boundary(offset)];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("{}:{line}:{column}", file.display())
}

/// Where the deepest part of `pointer` that exists stands in the file.
fn offset(table: &DeTable<'_>, pointer: &str) -> usize {
    let mut offset = 0;
    let mut keys = pointer.split('/').skip(1);
    let Some(mut value) = keys.next().and_then(|key| entry(table, key, &mut offset)) else { return offset };
    for key in keys {
        let next = match value {
            DeValue::Table(table) => entry(table, key, &mut offset),
            DeValue::Array(items) => key.parse().ok().and_then(|index: usize| {
                let item = items.get(index)?;
                offset = item.span().start;
                Some(item.get_ref())
            }),
            _ => None,
        };
        let Some(next) = next else { break };
        value = next;
    }
    offset
}

fn entry<'t, 'i>(table: &'t DeTable<'i>, key: &str, offset: &mut usize) -> Option<&'t DeValue<'i>> {
    let (name, value) = table.iter().find(|(name, _)| name.get_ref().as_ref() == key)?;
    *offset = name.span().start;
    Some(value.get_ref())
}

fn object(table: &DeTable<'_>) -> anyhow::Result<Map<String, Value>> {
    table.iter().map(|(key, value)| Ok((key.get_ref().to_string(), json(value)?))).collect()
}

fn json(value: &Spanned<DeValue<'_>>) -> anyhow::Result<Value> {
    Ok(match value.get_ref() {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .with_context(|| format!("the number {} is too large", number.as_str()))?
            .into(),
        DeValue::Float(number) => {
            let number: f64 = number.as_str().parse().with_context(|| format!("the number {}", number.as_str()))?;
            serde_json::Number::from_f64(number).map(Value::Number).context("infinity and nan are no JSON")?
        }
        DeValue::Datetime(time) => Value::String(time.to_string()),
        DeValue::Array(items) => Value::Array(items.iter().map(json).collect::<anyhow::Result<_>>()?),
        DeValue::Table(table) => Value::Object(object(table)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"name = "acme/x"
version = "1.0.0"
wit = "bulkhead:plugin@0.1"
title = "X"

[[actions]]
name = "x"
title = "X"
input = "schemas/input.json"

[[permissions]]
kind = "http"
reason = "Because"
origins = ["https://a.example"]
methods = ["POST"]
paths = ["/"]
"#;

    fn project(text: &str, schema: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(dir.path().join("schemas")).expect("an empty folder");
        fs::write(dir.path().join(FILE_NAME), text).expect("writable");
        fs::write(dir.path().join("schemas/input.json"), schema).expect("writable");
        dir
    }

    fn error(text: &str, schema: &str) -> String {
        let dir = project(text, schema);
        let error = read(dir.path()).expect_err("it is wrong");
        format!("{error:#}").replace(&format!("{}/", dir.path().display()), "")
    }

    #[test]
    fn schema_files_are_put_in_their_place() {
        let dir = project(GOOD, r#"{"type": "object"}"#);
        let manifest = read(dir.path()).expect("it is right");
        assert_eq!(manifest.actions[0].input, Some(serde_json::json!({ "type": "object" })));
    }

    #[test]
    fn errors_name_file_and_line() {
        let wrong = GOOD.replace("https://a.example", "ftp://a.example");
        let error_text = error(&wrong, "{}");
        assert!(error_text.starts_with("plugin.toml:14:12: permissions.0.origins.0: "), "{error_text}");
        let error_text = error(&GOOD.replace("title = \"X\"\n\n[[", "\n[["), "{}");
        assert!(error_text.contains("missing field `title`"), "{error_text}");
        let error_text = error(&GOOD.replace("kind = \"http\"", "kind = http"), "{}");
        assert!(error_text.starts_with("plugin.toml:12:"), "{error_text}");
        let error_text = error(&GOOD.replace("input =", "inputs ="), "{}");
        assert!(error_text.starts_with("plugin.toml:") && error_text.contains("inputs"), "{error_text}");
    }

    #[test]
    fn errors_in_schemas_name_the_schema_file() {
        assert!(error(GOOD, "{\n  \"type\": \n}").starts_with("schemas/input.json:3:1: not JSON"));
        let remote = error(GOOD, r#"{"properties": {"a": {"$ref": "https://a.example/schema"}}}"#);
        assert!(remote.starts_with("schemas/input.json: at /properties/a/$ref: "), "{remote}");
        let missing = error(&GOOD.replace("schemas/input.json", "schemas/other.json"), "{}");
        assert!(missing.starts_with("plugin.toml:9:1: ") && missing.contains("schemas/other.json"), "{missing}");
        assert!(error(&GOOD.replace("schemas/input.json", "../input.json"), "{}").contains("leads out of the project"));
    }
}
