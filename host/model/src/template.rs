//! Templates in the string fields of a step: `New issue: {{ trigger.body.issue.title | truncate(80) }}`.
//!
//! The language is the *expressions* of minijinja (Jinja2): paths, comparisons, `and or not in`, `a if b else c`,
//! arithmetic and the filters of [`FILTERS`]. There are no statements (`{% … %}`), no functions, no loops and no
//! includes: a template places values, and its cost is bounded by its length. `{# … #}` is a comment.
//!
//! - A string that is exactly one `{{ … }}` keeps the JSON type of its value: `"{{ trigger.body.issue }}"` gives an object.
//! - Elsewhere in text, text and numbers are written as they are, `null` as nothing, lists and objects as JSON.
//! - An undefined value is an error, never an empty string; `default("…")` gives one a value.
//!
//! **Bounds.** Source [`SOURCE_BYTES_MAX`] per string, [`TOKENS_MAX`] tokens per expression, minijinja's fuel
//! [`FUEL`], result [`OUTPUT_BYTES_MAX`] over the whole value and [`crate::workflow::JSON_DEPTH_MAX`] levels. `*` is refused, since it
//! repeats text and lists without bound (`| times(2)` multiplies numbers); `~`, `+` and `,` are counted
//! ([`JOINS_MAX`]); every filter that can make its input larger stops at the output limit.

mod filters;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value as JinjaValue};
use serde_json::{Map, Value};

use crate::condition::{FieldPath, Lookup, Segment};
use crate::workflow::json;

pub use filters::{FILTERS, TESTS};

/// Bytes in one template string.
pub const SOURCE_BYTES_MAX: usize = 64 * 1024;
/// Tokens in one expression, so that neither parsing nor evaluation can nest deep.
pub const TOKENS_MAX: usize = 200;
/// `~`, `+` and `,` in one expression: each can at most add its operands' sizes.
pub const JOINS_MAX: usize = 32;
/// Filters in one expression; each may walk a payload of 1 MiB.
pub const FILTERS_MAX: usize = 16;
/// After this long no further expression of a value is evaluated. Far beyond honest use; it keeps a hostile definition
/// from holding a worker.
pub const RENDER_TIME_MAX: Duration = Duration::from_secs(2);
/// Instructions of one expression.
pub const FUEL: u64 = 10_000;
/// Bytes of one rendered value, counted as JSON. Source: payload limit of the workflow specification.
pub const OUTPUT_BYTES_MAX: usize = 1024 * 1024;

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::empty();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(50);
    // Debug output would copy parts of the context, secrets' names among them, into error texts.
    environment.set_debug(false);
    filters::install(&mut environment);
    environment
});

/// Why a template was refused or could not be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct TemplateError {
    /// JSON pointer (RFC 6901) to the string, from the root of the rendered value.
    pub path: String,
    pub message: String,
}

/// A JSON value whose strings are templates, checked and compiled.
#[derive(Clone, Debug)]
pub struct Template {
    node: Node,
}

#[derive(Clone, Debug)]
enum Node {
    /// No template anywhere below.
    Plain(Value),
    /// The whole string is one expression, which keeps its type.
    Typed(Expression),
    Text(Box<[Part]>),
    Array(Box<[Node]>),
    Object(Box<[(String, Node)]>),
}

#[derive(Clone, Debug)]
enum Part {
    Literal(Box<str>),
    Expression(Expression),
}

#[derive(Clone)]
enum Expression {
    /// A plain path: copied from the JSON itself, key order and number digits included.
    Path(FieldPath),
    Compiled {
        source: Arc<str>,
        /// Top-level names that it reads.
        roots: Arc<[String]>,
        code: Arc<minijinja::Expression<'static, 'static>>,
    },
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => fmt::Debug::fmt(path, f),
            Self::Compiled { source, .. } => fmt::Debug::fmt(source, f),
        }
    }
}

/// A value that a template reads: where the template is, and the dotted name that it mentions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// JSON pointer to the string, from the root of the value.
    pub path: String,
    /// `vars.channel`, `trigger.body.issue`.
    pub name: String,
}

impl Template {
    /// Checks and compiles every string in `value`.
    ///
    /// # Errors
    /// Everything that is wrong, in document order; never empty.
    pub fn compile(value: &Value) -> Result<Self, Vec<TemplateError>> {
        let mut errors = Vec::new();
        let node = compile(value, &mut String::new(), 0, &mut errors);
        if errors.is_empty() { Ok(Self { node }) } else { Err(errors) }
    }

    /// Checks the templates in `value` without keeping them.
    ///
    /// # Errors
    /// As [`Self::compile`].
    pub fn check(value: &Value) -> Result<(), Vec<TemplateError>> {
        Self::compile(value).map(|_| ())
    }

    /// Every value that the templates read.
    pub fn references(&self) -> Vec<Reference> {
        let mut found = Vec::new();
        collect_references(&self.node, &mut String::new(), &mut found);
        found.sort();
        found.dedup();
        found
    }

    /// Whether anything in it is a template.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        matches!(self.node, Node::Plain(_))
    }

    /// Whether every template in it only names a value: what rendering costs is bounded by the size of what it names.
    #[must_use]
    pub fn only_names(&self) -> bool {
        fn only_names(node: &Node) -> bool {
            let named = |expression: &Expression| matches!(expression, Expression::Path(_));
            match node {
                Node::Plain(_) => true,
                Node::Typed(expression) => named(expression),
                Node::Text(parts) => parts.iter().all(|part| match part {
                    Part::Literal(_) => true,
                    Part::Expression(expression) => named(expression),
                }),
                Node::Array(nodes) => nodes.iter().all(only_names),
                Node::Object(fields) => fields.iter().all(|(_, node)| only_names(node)),
            }
        }
        only_names(&self.node)
    }

    /// The value with every template replaced by what it gives in this context.
    ///
    /// # Errors
    /// The first template that reads an undefined value, fails, or makes the result too large.
    pub fn render<L: Lookup + ?Sized>(&self, context: &L) -> Result<Value, TemplateError> {
        let mut renderer =
            Renderer { context, roots: BTreeMap::new(), bytes_left: OUTPUT_BYTES_MAX, began: Instant::now() };
        let mut path = String::new();
        let value = renderer
            .node(&self.node, &mut path)
            .map_err(|message| TemplateError { path: std::mem::take(&mut path), message })?;
        if json::depth(&value) > json::JSON_DEPTH_MAX {
            let message = format!("the result is nested deeper than {} levels", json::JSON_DEPTH_MAX);
            return Err(TemplateError { path: String::new(), message });
        }
        Ok(value)
    }
}

/// Compiles and renders in one go, for values that are rendered once.
///
/// # Errors
/// The first template that is refused or fails.
pub fn render_value<L: Lookup + ?Sized>(value: &Value, context: &L) -> Result<Value, TemplateError> {
    match Template::compile(value) {
        Ok(template) => template.render(context),
        Err(errors) => Err(errors.into_iter().next().expect("a refused template names a reason")),
    }
}

fn compile(value: &Value, path: &mut String, depth: usize, errors: &mut Vec<TemplateError>) -> Node {
    if depth > json::JSON_DEPTH_MAX {
        errors.push(TemplateError { path: path.clone(), message: "nested too deep".to_owned() });
        return Node::Plain(Value::Null);
    }
    match value {
        Value::String(text) => compile_text(text).unwrap_or_else(|message| {
            errors.push(TemplateError { path: path.clone(), message });
            Node::Plain(Value::Null)
        }),
        Value::Array(items) => {
            let nodes: Vec<Node> = items
                .iter()
                .enumerate()
                .map(|(index, item)| json::at_index(path, index, |path| compile(item, path, depth + 1, errors)))
                .collect();
            if nodes.iter().all(|node| matches!(node, Node::Plain(_))) {
                return Node::Plain(value.clone());
            }
            Node::Array(nodes.into())
        }
        Value::Object(map) => {
            let nodes: Vec<(String, Node)> = map
                .iter()
                .map(|(key, item)| {
                    (key.clone(), json::at_key(path, key, |path| compile(item, path, depth + 1, errors)))
                })
                .collect();
            if nodes.iter().all(|(_, node)| matches!(node, Node::Plain(_))) {
                return Node::Plain(value.clone());
            }
            Node::Object(nodes.into())
        }
        _ => Node::Plain(value.clone()),
    }
}

fn compile_text(text: &str) -> Result<Node, String> {
    if !scan::has_tags(text) {
        return Ok(Node::Plain(Value::String(text.to_owned())));
    }
    if text.len() > SOURCE_BYTES_MAX {
        return Err(format!("the template is longer than {SOURCE_BYTES_MAX} bytes"));
    }
    let pieces = scan::split(text)?;
    if let [scan::Piece::Expression(source)] = pieces.as_slice() {
        return expression(source).map(Node::Typed);
    }
    let mut parts = Vec::with_capacity(pieces.len());
    for piece in pieces {
        parts.push(match piece {
            scan::Piece::Literal(text) => Part::Literal(text.into()),
            scan::Piece::Expression(source) => Part::Expression(expression(source)?),
        });
    }
    Ok(Node::Text(parts.into()))
}

fn expression(source: &str) -> Result<Expression, String> {
    if let Some(path) = plain_path(source) {
        return Ok(Expression::Path(path));
    }
    scan::check_expression(source)?;
    let code = ENVIRONMENT.compile_expression_owned(source.to_owned()).map_err(|error| reason(&error))?;
    filters::check_names(source)?;
    let roots = code.undeclared_variables(false).into_iter().collect();
    Ok(Expression::Compiled { source: source.into(), roots, code: Arc::new(code) })
}

/// The source as a path, if it is nothing but one: `a.b[0].c`, `a["b c"]`.
fn plain_path(source: &str) -> Option<FieldPath> {
    const WORDS: [&str; 10] = ["true", "false", "none", "True", "False", "None", "not", "null", "and", "or"];
    let path = FieldPath::parse(source).ok()?;
    let Segment::Key(first) = path.segments().first()? else { return None };
    if WORDS.contains(&&**first) || path.has_each() {
        return None;
    }
    // Outside of quotes only what minijinja too reads as a name: `a-b` is a subtraction.
    let is_name = |key: &str| {
        key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let quoted = source.contains('"');
    let names_are_plain =
        path.segments().iter().all(|segment| !matches!(segment, Segment::Key(key) if !quoted && !is_name(key)));
    let quoted_is_plain = !quoted || quoted_keys_only(source);
    (is_name(first) && names_are_plain && quoted_is_plain).then_some(path)
}

/// With quotes in the source, everything outside of the brackets must still be plain names and dots.
fn quoted_keys_only(source: &str) -> bool {
    let outside: String = source
        .split('[')
        .enumerate()
        .map(|(i, part)| match part.rsplit_once(']') {
            Some((_, tail)) if i > 0 => tail,
            _ => part,
        })
        .collect();
    outside.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.')
}

fn collect_references(node: &Node, path: &mut String, found: &mut Vec<Reference>) {
    match node {
        Node::Plain(_) => {}
        Node::Typed(expression) => expression.references(path, found),
        Node::Text(parts) => {
            for part in parts {
                if let Part::Expression(expression) = part {
                    expression.references(path, found);
                }
            }
        }
        Node::Array(nodes) => {
            for (index, node) in nodes.iter().enumerate() {
                json::at_index(path, index, |path| collect_references(node, path, found));
            }
        }
        Node::Object(nodes) => {
            for (key, node) in nodes {
                json::at_key(path, key, |path| collect_references(node, path, found));
            }
        }
    }
}

impl Expression {
    fn references(&self, path: &str, found: &mut Vec<Reference>) {
        let mut add = |name: String| found.push(Reference { path: path.to_owned(), name });
        match self {
            Self::Path(field) => {
                let keys = field.segments().iter().map_while(|segment| match segment {
                    Segment::Key(key) => Some(&**key),
                    Segment::Index(_) | Segment::Each => None,
                });
                add(keys.collect::<Vec<_>>().join("."));
            }
            Self::Compiled { code, .. } => {
                for name in code.undeclared_variables(true) {
                    add(name);
                }
            }
        }
    }
}

struct Renderer<'a, L: ?Sized> {
    context: &'a L,
    /// Parts of the context in minijinja's form, converted when first read.
    roots: BTreeMap<String, JinjaValue>,
    bytes_left: usize,
    began: Instant,
}

impl<L: Lookup + ?Sized> Renderer<'_, L> {
    fn node(&mut self, node: &Node, path: &mut String) -> Result<Value, String> {
        match node {
            Node::Plain(value) => {
                self.spend(json::encoded_len(value))?;
                Ok(value.clone())
            }
            Node::Typed(expression) => {
                let value = self.evaluate(expression)?;
                self.spend(json::encoded_len(&value))?;
                Ok(value)
            }
            Node::Text(parts) => self.text(parts).map(Value::String),
            Node::Array(nodes) => {
                let mut items = Vec::with_capacity(nodes.len());
                for (index, node) in nodes.iter().enumerate() {
                    self.spend(1)?;
                    let length = json::push_index(path, index);
                    items.push(self.node(node, path)?);
                    path.truncate(length);
                }
                Ok(Value::Array(items))
            }
            Node::Object(nodes) => {
                let mut map = Map::with_capacity(nodes.len());
                for (key, node) in nodes {
                    self.spend(key.len() + 4)?;
                    let length = json::push_key(path, key);
                    map.insert(key.clone(), self.node(node, path)?);
                    path.truncate(length);
                }
                Ok(Value::Object(map))
            }
        }
    }

    fn text(&mut self, parts: &[Part]) -> Result<String, String> {
        let mut out = String::new();
        for part in parts {
            let before = out.len();
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Expression(Expression::Path(path)) => {
                    let value = path.resolve_group(self.context).ok_or_else(|| missing(path))?;
                    write_text(&mut out, &value);
                }
                Part::Expression(expression) => {
                    let value = self.evaluate(expression)?;
                    write_text(&mut out, &value);
                }
            }
            self.spend(out.len() - before)?;
        }
        Ok(out)
    }

    fn evaluate(&mut self, expression: &Expression) -> Result<Value, String> {
        match expression {
            Expression::Path(path) => {
                path.resolve_group(self.context).map(std::borrow::Cow::into_owned).ok_or_else(|| missing(path))
            }
            Expression::Compiled { source, roots, code } => {
                if self.began.elapsed() > RENDER_TIME_MAX {
                    return Err("the templates take too long".to_owned());
                }
                for name in roots.iter() {
                    if !self.roots.contains_key(name)
                        && let Some(root) = self.context.root(name)
                    {
                        self.roots.insert(name.clone(), JinjaValue::from(Serde(&*root)));
                    }
                }
                let result = code.eval(JinjaValue::from(self.roots.clone()));
                let value = result.map_err(|error| format!("`{}`: {}", source.trim(), reason(&error)))?;
                to_json(&value).map_err(|message| format!("`{}`: {message}", source.trim()))
            }
        }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), String> {
        match self.bytes_left.checked_sub(bytes) {
            Some(left) => {
                self.bytes_left = left;
                Ok(())
            }
            None => Err(format!("the result is larger than {OUTPUT_BYTES_MAX} bytes")),
        }
    }
}

fn missing(path: &FieldPath) -> String {
    format!("`{path}` is missing; `default(…)` gives a missing value a replacement")
}

fn to_json(value: &JinjaValue) -> Result<Value, String> {
    if value.is_undefined() {
        return Err("the value is undefined; `default(…)` gives a missing value a replacement".to_owned());
    }
    let text = json::write_capped(value, OUTPUT_BYTES_MAX)?;
    serde_json::from_str(&text).map_err(|_| "the result is not JSON".to_owned())
}

fn write_text(out: &mut String, value: &Value) {
    match value {
        Value::Null => {}
        Value::String(text) => out.push_str(text),
        other => out.push_str(&other.to_string()),
    }
}

/// minijinja's reason, in words for the author of a definition and without the library's location suffix.
fn reason(error: &minijinja::Error) -> String {
    let detail = error.detail().unwrap_or_default();
    match error.kind() {
        ErrorKind::UndefinedError => {
            "a value in it is undefined; `default(…)` gives a missing value a replacement".to_owned()
        }
        ErrorKind::OutOfFuel => "the expression takes too many steps".to_owned(),
        ErrorKind::UnknownFilter => format!("unknown filter ({detail}); known are {}", FILTERS.join(" ")),
        ErrorKind::UnknownFunction | ErrorKind::UnknownMethod => "templates have filters but no functions".to_owned(),
        kind if detail.is_empty() => kind.to_string(),
        kind => format!("{kind}: {detail}"),
    }
}
