//! The condition language: a JSON tree that is checked once, compiled, and then evaluated without allocation.
//!
//! ```json
//! { "any": [ { "field": "trigger.body.labels[*].name", "op": "in", "value": ["bug", "urgent"] },
//!            { "not": { "field": "trigger.body.comments", "op": "lt", "value": 5 } } ] }
//! ```
//!
//! **Groups** are `all`, `any` (neither may be empty) and `not`, nested at most [`DEPTH_MAX`] deep.
//!
//! **Null and missing.** A path that leads nowhere is *missing*; that is not the same as `null`. `exists` holds for a
//! field that is there, `null` included; `eq null` holds only for an explicit `null`. Every other operator is false for
//! a missing field, and so `ne` and `not_in`, which are exactly "not `eq`" and "not `in`", are true for it.
//!
//! **Types.** Nothing is converted: text is never equal to a number, and an operator that does not fit the actual
//! value is false (the explanation says why). Numbers compare by value and exactly: `1` equals `1.0`, and integers
//! beyond 2⁵³ do not lose digits. `gt gte lt lte between` compare numbers, and times: an operand that is an RFC 3339
//! time (`2026-11-21T08:00:00Z`) or a date (`2026-11-21`, its midnight UTC) is compared as a moment, with the time zone
//! understood. Other text has no order here, and such an operand is refused when the condition is saved.
//!
//! **`[*]`** means *any element*: the operator holds when it holds for one of them; `ne` and `not_in` hold when `eq` and
//! `in` hold for none.
//!
//! `contains` is "has this part" for text and "has this element" for arrays. `startswith`, `endswith`, `contains` and
//! `eq` see case. `matches` is an unanchored regular expression of the `regex` crate (linear time, size bounded).

mod compare;
mod explain;
mod parse;
mod path;
mod schema;
#[cfg(test)]
pub(crate) mod tests;

use regex::Regex;
use serde_json::Value;

pub use explain::Explanation;
pub use path::{FieldPath, PATH_BYTES_MAX, PATH_SEGMENTS_MAX, PathError, Segment};
pub use schema::ConditionSchema;

use compare::{Moment, OneOf};

/// Groups inside groups. Source: the workflow specification.
pub const DEPTH_MAX: usize = 20;
/// Groups and tests in one condition, so that evaluation stays within a millisecond whatever somebody saves.
pub const NODES_MAX: usize = 500;
/// Values in one `in` or `not_in`.
pub const LIST_MAX: usize = 1000;
/// Bytes in a text operand.
pub const OPERAND_BYTES_MAX: usize = 4096;
/// Bytes in a regular expression.
pub const PATTERN_BYTES_MAX: usize = 1000;
/// Regular expressions in one condition: compiling one takes far longer than checking any other test.
pub const PATTERNS_MAX: usize = 20;
/// Bytes that a compiled regular expression may take, its lazy automaton included.
pub const REGEX_BYTES_MAX: usize = 256 * 1024;

/// Where a path begins. A plain [`Value`] is one; a run offers its parts without copying them together.
pub trait Lookup {
    /// The value where the walk begins, and the segments still to walk; `None` when the first ones lead nowhere.
    fn enter<'a, 's>(&'a self, segments: &'s [Segment]) -> Option<(&'a Value, &'s [Segment])>;

    /// The whole value under a top-level name, copied together where need be. Templates use it.
    fn root(&self, name: &str) -> Option<std::borrow::Cow<'_, Value>>;
}

impl Lookup for Value {
    fn enter<'a, 's>(&'a self, segments: &'s [Segment]) -> Option<(&'a Value, &'s [Segment])> {
        Some((self, segments))
    }

    fn root(&self, name: &str) -> Option<std::borrow::Cow<'_, Value>> {
        self.get(name).map(std::borrow::Cow::Borrowed)
    }
}

/// The moment that a text names: an RFC 3339 time, or a date alone (its midnight UTC).
pub(crate) fn moment(text: &str) -> Option<crate::time::Timestamp> {
    Moment::parse(text).map(Moment::timestamp)
}

/// A condition that was checked. Cheap to evaluate: see `examples/bench_condition.rs`.
#[derive(Clone, Debug)]
pub struct Condition {
    node: Node,
}

#[derive(Clone, Debug)]
enum Node {
    All(Box<[Node]>),
    Any(Box<[Node]>),
    Not(Box<Node>),
    Test(Box<Test>),
}

#[derive(Clone, Debug)]
struct Test {
    path: FieldPath,
    op: Op,
    /// `ne` and `not_in`: the check is that of `eq` and `in`, and its answer is turned round.
    negated: bool,
    check: Check,
    /// As written, for explanations.
    operand: Value,
}

#[derive(Clone, Debug)]
enum Check {
    Equals(Value),
    OneOf(OneOf),
    Order(Rank, Comparable),
    Between(Comparable, Comparable),
    Contains(Value),
    StartsWith(Box<str>),
    EndsWith(Box<str>),
    Exists(bool),
    Matches(Regex),
}

/// What has an order: numbers and moments.
#[derive(Clone, Debug)]
enum Comparable {
    Number(serde_json::Number),
    Time(Moment),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rank {
    Gt,
    Gte,
    Lt,
    Lte,
}

/// The operators, by the names that definitions use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Eq,
    Ne,
    Gt,
    Gte,
    Lt,
    Lte,
    In,
    NotIn,
    Contains,
    StartsWith,
    EndsWith,
    Exists,
    Matches,
    Between,
}

impl Op {
    pub const ALL: [Self; 14] = [
        Self::Eq,
        Self::Ne,
        Self::Gt,
        Self::Gte,
        Self::Lt,
        Self::Lte,
        Self::In,
        Self::NotIn,
        Self::Contains,
        Self::StartsWith,
        Self::EndsWith,
        Self::Exists,
        Self::Matches,
        Self::Between,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Eq => "eq",
            Self::Ne => "ne",
            Self::Gt => "gt",
            Self::Gte => "gte",
            Self::Lt => "lt",
            Self::Lte => "lte",
            Self::In => "in",
            Self::NotIn => "not_in",
            Self::Contains => "contains",
            Self::StartsWith => "startswith",
            Self::EndsWith => "endswith",
            Self::Exists => "exists",
            Self::Matches => "matches",
            Self::Between => "between",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.as_str() == text)
    }
}

/// One thing that is wrong with a condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct ConditionProblem {
    /// JSON pointer (RFC 6901) from the condition's own root.
    pub path: String,
    pub message: String,
}

impl Condition {
    /// Checks and compiles the tree, collecting everything that is wrong with it.
    ///
    /// # Errors
    /// The problems, in document order; never empty.
    pub fn parse(tree: &Value) -> Result<Self, Vec<ConditionProblem>> {
        parse::parse(tree).map(|node| Self { node })
    }

    /// Whether the condition holds. Groups stop at the first answer.
    pub fn eval<L: Lookup + ?Sized>(&self, root: &L) -> bool {
        self.node.eval(root)
    }

    /// Evaluates every node, without stopping early, and keeps what each one saw. Its `result` equals [`Self::eval`].
    pub fn explain<L: Lookup + ?Sized>(&self, root: &L) -> Explanation {
        explain::explain(&self.node, root)
    }

    /// Regular expressions in it.
    pub(crate) fn patterns(&self) -> usize {
        self.node.patterns()
    }

    /// Every path that the condition reads, with the JSON pointer to the test that does.
    pub fn paths(&self) -> Vec<(String, &FieldPath)> {
        let mut found = Vec::new();
        self.node.collect_paths("", &mut found);
        found
    }
}

impl Node {
    fn eval<L: Lookup + ?Sized>(&self, root: &L) -> bool {
        match self {
            Self::All(nodes) => nodes.iter().all(|node| node.eval(root)),
            Self::Any(nodes) => nodes.iter().any(|node| node.eval(root)),
            Self::Not(node) => !node.eval(root),
            Self::Test(test) => test.eval(root),
        }
    }

    fn patterns(&self) -> usize {
        match self {
            Self::All(nodes) | Self::Any(nodes) => nodes.iter().map(Self::patterns).sum(),
            Self::Not(node) => node.patterns(),
            Self::Test(test) => usize::from(matches!(test.check, Check::Matches(_))),
        }
    }

    fn collect_paths<'a>(&'a self, at: &str, found: &mut Vec<(String, &'a FieldPath)>) {
        match self {
            Self::All(nodes) | Self::Any(nodes) => {
                let name = if matches!(self, Self::All(_)) { "all" } else { "any" };
                for (index, node) in nodes.iter().enumerate() {
                    node.collect_paths(&format!("{at}/{name}/{index}"), found);
                }
            }
            Self::Not(node) => node.collect_paths(&format!("{at}/not"), found),
            Self::Test(test) => found.push((format!("{at}/field"), &test.path)),
        }
    }
}

impl Test {
    fn eval<L: Lookup + ?Sized>(&self, root: &L) -> bool {
        if let Check::Exists(wanted) = self.check {
            return self.path.any(root, &mut |_| true) == wanted;
        }
        self.path.any(root, &mut |actual| self.check.holds(actual)) != self.negated
    }
}

impl Check {
    /// Whether the check holds for one value that is there.
    fn holds(&self, actual: &Value) -> bool {
        match self {
            Self::Equals(operand) => compare::equal(actual, operand),
            Self::OneOf(operands) => operands.contains(actual),
            Self::Order(rank, operand) => operand.compare(actual).is_some_and(|order| rank.holds(order)),
            Self::Between(low, high) => {
                low.compare(actual).is_some_and(std::cmp::Ordering::is_ge)
                    && high.compare(actual).is_some_and(std::cmp::Ordering::is_le)
            }
            Self::Contains(operand) => match (actual, operand) {
                (Value::String(text), Value::String(part)) => text.contains(part.as_str()),
                (Value::Array(items), operand) => items.iter().any(|item| compare::equal(item, operand)),
                _ => false,
            },
            Self::StartsWith(part) => actual.as_str().is_some_and(|text| text.starts_with(&**part)),
            Self::EndsWith(part) => actual.as_str().is_some_and(|text| text.ends_with(&**part)),
            Self::Exists(wanted) => *wanted,
            Self::Matches(regex) => actual.as_str().is_some_and(|text| regex.is_match(text)),
        }
    }
}
