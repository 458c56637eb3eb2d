//! From JSON to the compiled tree, with every problem found on the way.

use std::cmp::Ordering;

use regex::RegexBuilder;
use serde_json::{Map, Value};

use super::compare::OneOf;
use super::{
    Check, Comparable, ConditionProblem, DEPTH_MAX, FieldPath, LIST_MAX, NODES_MAX, Node, OPERAND_BYTES_MAX, Op,
    PATTERN_BYTES_MAX, PATTERNS_MAX, REGEX_BYTES_MAX, Rank, Test,
};

/// Problems reported of one condition; more would only repeat themselves.
const PROBLEMS_MAX: usize = 50;

struct Parser {
    nodes: usize,
    patterns: usize,
    problems: Vec<ConditionProblem>,
}

pub(super) fn parse(tree: &Value) -> Result<Node, Vec<ConditionProblem>> {
    let mut parser = Parser { nodes: 0, patterns: 0, problems: Vec::new() };
    match parser.node(tree, &mut String::new(), 1) {
        Some(node) if parser.problems.is_empty() => Ok(node),
        _ => Err(parser.problems),
    }
}

impl Parser {
    fn problem<T>(&mut self, path: &str, message: impl Into<String>) -> Option<T> {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(ConditionProblem { path: path.to_owned(), message: message.into() });
        }
        None
    }

    /// `path` is one growing buffer: each level appends its own part and takes it away again.
    fn node(&mut self, tree: &Value, path: &mut String, depth: usize) -> Option<Node> {
        if depth > DEPTH_MAX {
            return self.problem(path, format!("nested deeper than {DEPTH_MAX} levels"));
        }
        self.nodes += 1;
        if self.nodes == NODES_MAX + 1 {
            return self.problem(path, format!("more than {NODES_MAX} groups and tests in one condition"));
        }
        if self.nodes > NODES_MAX {
            return None;
        }
        let Value::Object(map) = tree else {
            return self.problem(path, "a condition is an object: a test {field, op, value} or a group all, any, not");
        };
        let group = ["all", "any", "not"].into_iter().find(|name| map.contains_key(*name));
        let Some(group) = group else { return self.test(map, path).map(|test| Node::Test(Box::new(test))) };
        if map.len() > 1 {
            let other = map.keys().find(|key| *key != group).map_or("", String::as_str);
            return self.problem(path, format!("a group has one key; `{other}` does not belong beside `{group}`"));
        }
        let length = path.len();
        path.push('/');
        path.push_str(group);
        let node = self.group(group, &map[group], path, depth);
        path.truncate(length);
        node
    }

    fn group(&mut self, group: &str, inside: &Value, path: &mut String, depth: usize) -> Option<Node> {
        if group == "not" {
            return self.node(inside, path, depth + 1).map(|node| Node::Not(Box::new(node)));
        }
        let Value::Array(items) = inside else {
            return self.problem(path, format!("`{group}` holds a list of conditions"));
        };
        if items.is_empty() {
            return self.problem(path, format!("`{group}` is empty"));
        }
        let mut nodes = Vec::with_capacity(items.len().min(NODES_MAX));
        let mut complete = true;
        for (index, item) in items.iter().enumerate() {
            if self.nodes > NODES_MAX {
                return None;
            }
            let length = path.len();
            path.push('/');
            path.push_str(&index.to_string());
            match self.node(item, path, depth + 1) {
                Some(node) => nodes.push(node),
                None => complete = false,
            }
            path.truncate(length);
        }
        let nodes = nodes.into_boxed_slice();
        complete.then(|| if group == "all" { Node::All(nodes) } else { Node::Any(nodes) })
    }

    fn test(&mut self, map: &Map<String, Value>, path: &str) -> Option<Test> {
        if let Some(unknown) = map.keys().find(|key| !matches!(key.as_str(), "field" | "op" | "value")) {
            self.problem::<()>(path, format!("unknown key `{unknown}`; a test has field, op and value"));
        }
        let field = match map.get("field") {
            Some(Value::String(text)) => match FieldPath::parse(text) {
                Ok(field) => Some(field),
                Err(error) => self.problem(&format!("{path}/field"), error.to_string()),
            },
            Some(_) => self.problem(&format!("{path}/field"), "the field is a path in text form"),
            None => self.problem(path, "the test names no field"),
        };
        let op = match map.get("op") {
            Some(Value::String(text)) => match Op::parse(text) {
                Some(op) => Some(op),
                None => self.problem(&format!("{path}/op"), unknown_op(text)),
            },
            Some(_) => self.problem(&format!("{path}/op"), "the operator is a name in text form"),
            None => self.problem(path, "the test names no operator"),
        };
        let op = op?;
        let operand = map.get("value");
        if operand.is_none() && op != Op::Exists {
            return self.problem(path, format!("`{}` needs a value", op.as_str()));
        }
        if op == Op::Matches {
            self.patterns += 1;
            if self.patterns > PATTERNS_MAX {
                return self.problem(path, format!("more than {PATTERNS_MAX} regular expressions in one condition"));
            }
        }
        let check = match check(op, operand.unwrap_or(&Value::Bool(true))) {
            Ok(check) => check,
            Err(message) => return self.problem(&format!("{path}/value"), message),
        };
        let negated = matches!(op, Op::Ne | Op::NotIn);
        Some(Test { path: field?, op, negated, check, operand: operand.cloned().unwrap_or(Value::Bool(true)) })
    }
}

fn unknown_op(text: &str) -> String {
    let known = Op::ALL.map(Op::as_str).join(" ");
    let shown: String = text.chars().take(40).collect();
    format!("unknown operator `{shown}`; known are {known}")
}

fn check(op: Op, operand: &Value) -> Result<Check, String> {
    let name = op.as_str();
    match op {
        Op::Eq | Op::Ne => scalar(name, operand).map(Check::Equals),
        Op::Gt => ordered(name, operand).map(|operand| Check::Order(Rank::Gt, operand)),
        Op::Gte => ordered(name, operand).map(|operand| Check::Order(Rank::Gte, operand)),
        Op::Lt => ordered(name, operand).map(|operand| Check::Order(Rank::Lt, operand)),
        Op::Lte => ordered(name, operand).map(|operand| Check::Order(Rank::Lte, operand)),
        Op::In | Op::NotIn => {
            let Value::Array(items) = operand else { return Err(format!("`{name}` needs a list of values")) };
            if items.len() > LIST_MAX {
                return Err(format!("`{name}` takes at most {LIST_MAX} values"));
            }
            let items: Result<Vec<_>, _> = items.iter().map(|item| scalar(name, item)).collect();
            Ok(Check::OneOf(OneOf::new(&items?)))
        }
        Op::Contains => scalar(name, operand).map(Check::Contains),
        Op::StartsWith => text(name, operand).map(|part| Check::StartsWith(part.into())),
        Op::EndsWith => text(name, operand).map(|part| Check::EndsWith(part.into())),
        Op::Exists => match operand {
            Value::Bool(wanted) => Ok(Check::Exists(*wanted)),
            _ => Err("`exists` takes true or false, or no value".to_owned()),
        },
        Op::Matches => pattern(text(name, operand)?),
        Op::Between => between(operand),
    }
}

fn scalar(name: &str, operand: &Value) -> Result<Value, String> {
    match operand {
        Value::Array(_) | Value::Object(_) => {
            Err(format!("`{name}` compares with text, a number, true, false or null"))
        }
        Value::String(_) => text(name, operand).map(|_| operand.clone()),
        _ => Ok(operand.clone()),
    }
}

fn text<'a>(name: &str, operand: &'a Value) -> Result<&'a str, String> {
    match operand {
        Value::String(text) if text.len() > OPERAND_BYTES_MAX => {
            Err(format!("the text is longer than {OPERAND_BYTES_MAX} bytes"))
        }
        Value::String(text) => Ok(text),
        _ => Err(format!("`{name}` needs text")),
    }
}

fn ordered(name: &str, operand: &Value) -> Result<Comparable, String> {
    Comparable::parse(operand).ok_or_else(|| {
        format!("`{name}` compares numbers and times; write a number, a date 2026-11-21 or a time 2026-11-21T08:00:00Z")
    })
}

fn between(operand: &Value) -> Result<Check, String> {
    let Some([low, high]) = operand.as_array().map(Vec::as_slice) else {
        return Err("`between` needs a list of two values, the lower and the upper one".to_owned());
    };
    let high_end = ordered("between", high)?;
    match high_end.compare(low) {
        None => {
            ordered("between", low)?;
            Err("`between` needs two numbers or two times".to_owned())
        }
        Some(Ordering::Greater) => Err("the lower end of `between` is above its upper end".to_owned()),
        Some(_) => Ok(Check::Between(ordered("between", low)?, high_end)),
    }
}

fn pattern(text: &str) -> Result<Check, String> {
    if text.len() > PATTERN_BYTES_MAX {
        return Err(format!("the regular expression is longer than {PATTERN_BYTES_MAX} bytes"));
    }
    let built = RegexBuilder::new(text)
        .size_limit(REGEX_BYTES_MAX)
        .dfa_size_limit(REGEX_BYTES_MAX)
        .nest_limit(u32::try_from(DEPTH_MAX).unwrap_or(u32::MAX))
        .build();
    match built {
        Ok(regex) => Ok(Check::Matches(regex)),
        Err(regex::Error::CompiledTooBig(_)) => Err("the regular expression is too large once compiled".to_owned()),
        Err(error) => {
            // The library draws the pattern with a marker below it; its last line is the reason.
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ").to_owned();
            Err(format!("not a regular expression: {reason}"))
        }
    }
}
