//! What starts a run, and which trigger answers for a payload.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Definition, TriggerId};
use crate::condition::{Condition, Explanation};
use crate::schedule::{Firing, Schedule};
use crate::time::Timestamp;

#[derive(Clone, Debug)]
pub struct Trigger {
    pub id: TriggerId,
    pub kind: TriggerKind,
    /// Higher ones are asked first; equal ones in the order of the document.
    pub priority: i32,
    /// `None`: always.
    pub when: Option<Condition>,
    /// Of triggers of the kind `Schedule`, and of no other.
    pub schedule: Option<Schedule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TriggerKind {
    Webhook,
    Manual,
    Api,
    Schedule,
}

impl TriggerKind {
    pub const ALL: [Self; 4] = [Self::Webhook, Self::Manual, Self::Api, Self::Schedule];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Manual => "manual",
            Self::Api => "api",
            Self::Schedule => "schedule",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// Which trigger answers, and what every one that was asked said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TriggerMatch {
    pub trigger: Option<TriggerId>,
    pub considered: Vec<Considered>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Considered {
    pub trigger: TriggerId,
    pub matched: bool,
    /// Absent for a trigger without conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
}

impl TriggerMatch {
    /// Why no run began, in one sentence; `None` when one trigger answered.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        if self.trigger.is_some() {
            return None;
        }
        if self.considered.is_empty() {
            return Some("the workflow has no trigger of this kind".to_owned());
        }
        let names: Vec<&str> = self.considered.iter().map(|considered| considered.trigger.as_str()).collect();
        Some(format!("the conditions of {} do not hold", names.join(", ")))
    }
}

/// The `trigger` that conditions and templates see.
#[must_use]
pub fn trigger_payload(kind: TriggerKind, body: Value, headers: Value, query: Value) -> Value {
    let kind = Value::from(kind.as_str());
    let parts = [("type", kind), ("body", body), ("headers", headers), ("query", query)];
    Value::Object(parts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// The `trigger` of a run that a schedule starts: that of any trigger, with nothing sent, and the moments.
#[must_use]
pub fn schedule_payload(id: &TriggerId, schedule: &Schedule, firing: &Firing, now: Timestamp) -> Value {
    let mut payload = trigger_payload(TriggerKind::Schedule, Value::Null, json!({}), json!({}));
    payload["id"] = json!(id);
    payload["scheduled_for"] = json!(firing.tick);
    payload["scheduled_for_local"] = json!(schedule.ticks.local_text(firing.tick));
    payload["fired_at"] = json!(now);
    payload["late"] = json!(firing.late);
    payload
}

impl Definition {
    /// The triggers of the kind `Schedule`, with their rules.
    pub fn schedules(&self) -> impl Iterator<Item = (&TriggerId, &Schedule)> {
        self.triggers.iter().filter_map(|trigger| Some((&trigger.id, trigger.schedule.as_ref()?)))
    }

    /// The first trigger of this kind (and, when given, of this id) whose conditions hold for the payload. Triggers are
    /// asked by falling priority until one answers.
    #[must_use]
    pub fn matching_trigger(&self, kind: TriggerKind, id: Option<&TriggerId>, trigger: &Value) -> TriggerMatch {
        let mut candidates: Vec<&Trigger> = self
            .triggers
            .iter()
            .filter(|candidate| candidate.kind == kind && id.is_none_or(|id| *id == candidate.id))
            .collect();
        candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.priority));
        let context = TriggerContext { trigger };
        let mut considered = Vec::new();
        for candidate in candidates {
            let explanation = candidate.when.as_ref().map(|when| when.explain(&context));
            let matched = explanation.as_ref().is_none_or(|explanation| explanation.result);
            considered.push(Considered { trigger: candidate.id.clone(), matched, explanation });
            if matched {
                return TriggerMatch { trigger: Some(candidate.id.clone()), considered };
            }
        }
        TriggerMatch { trigger: None, considered }
    }
}

struct TriggerContext<'a> {
    trigger: &'a Value,
}

impl crate::condition::Lookup for TriggerContext<'_> {
    fn enter<'a, 's>(
        &'a self,
        segments: &'s [crate::condition::Segment],
    ) -> Option<(&'a Value, &'s [crate::condition::Segment])> {
        match segments.split_first()? {
            (crate::condition::Segment::Key(key), rest) if &**key == "trigger" => Some((self.trigger, rest)),
            _ => None,
        }
    }

    fn root(&self, name: &str) -> Option<std::borrow::Cow<'_, Value>> {
        (name == "trigger").then_some(std::borrow::Cow::Borrowed(self.trigger))
    }
}
