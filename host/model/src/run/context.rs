//! What conditions and templates of a run may read: `trigger`, `vars`, `steps`, `run`, `org`.

use std::borrow::Cow;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::{RunFacts, RunState, StepState, StepStatus};
use crate::condition::{Lookup, Segment};

/// The view of a run. Borrows everything, so that reading one field of a large payload copies nothing.
pub struct Context<'a> {
    trigger: &'a Value,
    state: &'a RunState,
    run: Value,
    org: Value,
}

impl<'a> Context<'a> {
    #[must_use]
    pub fn new(state: &'a RunState, trigger: &'a Value, facts: &RunFacts) -> Self {
        let run = json!({
            "id": facts.run,
            "workflow": facts.workflow,
            "started_at": facts.started_at,
            "generation": state.generation,
        });
        Self { trigger, state, run, org: json!({ "id": facts.org }) }
    }
}

/// One JSON text per status, so that a path can lead to it by reference.
static STATUS_VALUES: LazyLock<Vec<Value>> =
    LazyLock::new(|| StepStatus::ALL.iter().map(|status| Value::from(status.as_str())).collect());

fn status_value(status: StepStatus) -> Option<&'static Value> {
    let place = StepStatus::ALL.iter().position(|known| *known == status)?;
    STATUS_VALUES.get(place)
}

fn step_value(step: &StepState) -> Value {
    json!({ "status": step.status, "output": step.output, "error": step.error })
}

impl Lookup for Context<'_> {
    fn enter<'a, 's>(&'a self, segments: &'s [Segment]) -> Option<(&'a Value, &'s [Segment])> {
        let Segment::Key(root) = segments.first()? else { return None };
        match (&**root, &segments[1..]) {
            ("trigger", rest) => Some((self.trigger, rest)),
            ("run", rest) => Some((&self.run, rest)),
            ("org", rest) => Some((&self.org, rest)),
            ("vars", [Segment::Key(name), rest @ ..]) => Some((self.state.vars.get(&**name)?, rest)),
            ("steps", [Segment::Key(id), Segment::Key(part), rest @ ..]) => {
                let step = self.state.steps.get(&**id)?;
                let value = match &**part {
                    "output" => &step.output,
                    "error" => &step.error,
                    "status" => status_value(step.status)?,
                    _ => return None,
                };
                Some((value, rest))
            }
            _ => None,
        }
    }

    fn root(&self, name: &str) -> Option<Cow<'_, Value>> {
        match name {
            "trigger" => Some(Cow::Borrowed(self.trigger)),
            "run" => Some(Cow::Borrowed(&self.run)),
            "org" => Some(Cow::Borrowed(&self.org)),
            "vars" => Some(Cow::Owned(Value::Object(self.state.vars.clone()))),
            "steps" => {
                let steps = self.state.steps.iter().map(|(id, step)| (id.to_string(), step_value(step)));
                Some(Cow::Owned(Value::Object(steps.collect::<Map<_, _>>())))
            }
            _ => None,
        }
    }
}
