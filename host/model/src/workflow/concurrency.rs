//! How many runs of a workflow are carried at once.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::condition::{FieldPath, Lookup, Segment};
use crate::id::WorkflowId;

/// The largest limit.
pub const CONCURRENCY_MAX: u32 = 1_000;
/// What a key's path begins with: it must be known when the run starts.
pub(super) const KEY_ROOT: &str = "trigger";

/// A bound on the runs that are carried at once: of the workflow, or of each value of a key. Runs beyond it wait in the queue; one
/// that waits itself (a delay, a pause before another attempt) is not carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concurrency {
    pub limit: u32,
    pub key: Option<FieldPath>,
}

impl Concurrency {
    /// The name of the runs that count together. `trigger` is what conditions see by that name; a key that is not there counts as
    /// `null`.
    #[must_use]
    pub fn group(&self, workflow: WorkflowId, trigger: &Value) -> String {
        let Some(path) = &self.key else { return workflow.to_string() };
        let root = Root(trigger);
        let value = path.resolve(&root);
        let text = value.map_or_else(|| "null".to_owned(), |value| value.to_string());
        // A value may be long, or personal: its digest tells values apart as well.
        let digest = Sha256::digest(text.as_bytes());
        format!("{workflow}:{}", hex::encode(&digest[..16]))
    }
}

/// `trigger` as the only name.
struct Root<'v>(&'v Value);

impl Lookup for Root<'_> {
    fn enter<'a, 's>(&'a self, segments: &'s [Segment]) -> Option<(&'a Value, &'s [Segment])> {
        match segments.split_first() {
            Some((Segment::Key(name), rest)) if **name == *KEY_ROOT => Some((self.0, rest)),
            _ => None,
        }
    }

    fn root(&self, name: &str) -> Option<std::borrow::Cow<'_, Value>> {
        (name == KEY_ROOT).then_some(std::borrow::Cow::Borrowed(self.0))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn runs_with_the_same_key_count_together() {
        let workflow = WorkflowId::from_uuid(uuid::Uuid::from_u128(7));
        let by_customer = Concurrency { limit: 1, key: Some(FieldPath::parse("trigger.body.customer.id").unwrap()) };
        let group =
            |customer: Value| by_customer.group(workflow, &json!({ "body": { "customer": { "id": customer } } }));
        assert_eq!(group(json!("a")), group(json!("a")));
        assert_ne!(group(json!("a")), group(json!("b")));
        assert_ne!(group(json!("1")), group(json!(1)), "text is no number");
        assert_eq!(by_customer.group(workflow, &json!({})), group(Value::Null), "a key that is missing is null");
        let whole = Concurrency { limit: 1, key: None };
        assert_eq!(whole.group(workflow, &json!({})), workflow.to_string());
        assert!(group(json!("x".repeat(1_000))).starts_with(&workflow.to_string()));
    }
}
