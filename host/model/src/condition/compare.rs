//! How values compare: exactly, and only like with like.

use std::cmp::Ordering;

use serde_json::{Number, Value};

use super::{Comparable, Rank};
use crate::time::Timestamp;

/// A moment, from an RFC 3339 time or from a date alone (its midnight UTC).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(Timestamp);

impl Moment {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        // Cheap refusal first: most text is no time, and the full parser costs a hundred times more.
        let bytes = text.as_bytes();
        if bytes.len() < 10 || bytes[4] != b'-' || !bytes[0].is_ascii_digit() {
            return None;
        }
        if bytes.len() == 10 {
            let date = text.parse::<chrono::NaiveDate>().ok()?;
            let midnight = date.and_time(chrono::NaiveTime::MIN).and_utc();
            return Some(Self(Timestamp::from_micros(midnight.timestamp_micros())));
        }
        Timestamp::parse(text).ok().map(Self)
    }

    pub(crate) fn timestamp(self) -> Timestamp {
        self.0
    }
}

impl Comparable {
    pub(super) fn parse(operand: &Value) -> Option<Self> {
        match operand {
            Value::Number(number) => Some(Self::Number(number.clone())),
            Value::String(text) => Moment::parse(text).map(Self::Time),
            _ => None,
        }
    }

    /// How `actual` stands to this operand; `None` when they are not of one kind.
    pub(super) fn compare(&self, actual: &Value) -> Option<Ordering> {
        match (self, actual) {
            (Self::Number(operand), Value::Number(actual)) => compare_numbers(actual, operand),
            (Self::Time(operand), Value::String(text)) => Some(Moment::parse(text)?.cmp(operand)),
            _ => None,
        }
    }
}

impl Rank {
    pub(super) fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Gt => order.is_gt(),
            Self::Gte => order.is_ge(),
            Self::Lt => order.is_lt(),
            Self::Lte => order.is_le(),
        }
    }
}

/// The operands of `in`, sorted by kind: a long list costs a look-up, not a walk.
#[derive(Clone, Debug)]
pub(super) struct OneOf {
    texts: Box<[Box<str>]>,
    numbers: Box<[Number]>,
    has_true: bool,
    has_false: bool,
    has_null: bool,
}

impl OneOf {
    pub(super) fn new(operands: &[Value]) -> Self {
        let mut texts: Vec<Box<str>> = operands.iter().filter_map(Value::as_str).map(Into::into).collect();
        texts.sort_unstable();
        let mut numbers: Vec<Number> = operands.iter().filter_map(Value::as_number).cloned().collect();
        numbers.sort_by(order);
        let has = |wanted: &Value| operands.contains(wanted);
        let (has_true, has_false, has_null) = (has(&Value::Bool(true)), has(&Value::Bool(false)), has(&Value::Null));
        Self { texts: texts.into(), numbers: numbers.into(), has_true, has_false, has_null }
    }

    pub(super) fn contains(&self, actual: &Value) -> bool {
        match actual {
            Value::String(text) => self.texts.binary_search_by(|known| (**known).cmp(text)).is_ok(),
            Value::Number(number) => self.numbers.binary_search_by(|known| order(known, number)).is_ok(),
            Value::Bool(true) => self.has_true,
            Value::Bool(false) => self.has_false,
            Value::Null => self.has_null,
            Value::Array(_) | Value::Object(_) => false,
        }
    }

    /// Whether any operand is of the actual value's type.
    pub(super) fn has_type_of(&self, actual: &Value) -> bool {
        match actual {
            Value::String(_) => !self.texts.is_empty(),
            Value::Number(_) => !self.numbers.is_empty(),
            Value::Bool(_) => self.has_true || self.has_false,
            Value::Null => self.has_null,
            Value::Array(_) | Value::Object(_) => false,
        }
    }
}

/// JSON has no NaN, so numbers always have an order.
fn order(left: &Number, right: &Number) -> Ordering {
    compare_numbers(left, right).unwrap_or(Ordering::Equal)
}

/// Equality of JSON values, numbers by value.
pub(crate) fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::String(left), Value::String(right)) => left == right,
        (Value::Number(left), Value::Number(right)) => compare_numbers(left, right) == Some(Ordering::Equal),
        (Value::Bool(left), Value::Bool(right)) => left == right,
        (Value::Null, Value::Null) => true,
        _ => false,
    }
}

fn integer(number: &Number) -> Option<i128> {
    number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from))
}

/// Compares by value without rounding either side.
pub(crate) fn compare_numbers(left: &Number, right: &Number) -> Option<Ordering> {
    match (integer(left), integer(right)) {
        (Some(left), Some(right)) => Some(left.cmp(&right)),
        (Some(left), None) => compare_integer_with_float(left, right.as_f64()?),
        (None, Some(right)) => compare_integer_with_float(right, left.as_f64()?).map(Ordering::reverse),
        (None, None) => left.as_f64()?.partial_cmp(&right.as_f64()?),
    }
}

fn compare_integer_with_float(integer: i128, float: f64) -> Option<Ordering> {
    // JSON integers lie within ±2⁶⁴; anything beyond is settled by its sign alone.
    const BEYOND: f64 = 4e19;
    if float.is_nan() {
        return None;
    }
    if float >= BEYOND {
        return Some(Ordering::Less);
    }
    if float <= -BEYOND {
        return Some(Ordering::Greater);
    }
    let floor = float.floor();
    #[expect(clippy::cast_possible_truncation, reason = "a whole number within ±4e19 fits an i128 exactly")]
    let whole = floor as i128;
    Some(integer.cmp(&whole).then(if float > floor { Ordering::Less } else { Ordering::Equal }))
}
