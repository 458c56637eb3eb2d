//! The document's shape, one struct per kind of object: what serde reads and what the published schema shows.
//!
//! A step or trigger is read by its `type` by hand (`read.rs`), because an internally tagged enum would lose the path of
//! what is wrong inside it.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde::Deserialize;
use serde_json::Value;

use super::{StopStatus, VariableType};
use crate::condition::ConditionSchema;
use crate::schedule::Misfire;

/// A workflow.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Workflow")]
pub(super) struct DefinitionWire {
    #[serde(rename = "$schema", default)]
    #[expect(dead_code, reason = "editors put the schema's address here; nothing reads it")]
    pub(super) schema_address: Option<String>,
    /// The version of the definition language: 1.
    #[schemars(with = "u64", range(min = 1, max = 1))]
    pub(super) schema: Value,
    #[schemars(length(min = 1, max = 120))]
    pub(super) name: String,
    #[serde(default)]
    #[schemars(length(max = 2000))]
    pub(super) description: String,
    /// Declared by name; read as `vars.name`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, VariableWire>")]
    pub(super) variables: IndexMap<String, Value>,
    /// What starts a run. At most 20.
    #[serde(default)]
    #[schemars(with = "Vec<TriggerWire>", length(max = 20))]
    pub(super) triggers: Vec<Value>,
    /// How many runs are carried at once. Without it as many as the organization may have.
    #[serde(default)]
    #[schemars(with = "Option<ConcurrencyWire>")]
    pub(super) concurrency: Option<Value>,
    /// The first step.
    pub(super) start: String,
    /// The steps by id. At most 200.
    #[schemars(with = "BTreeMap<String, StepWire>")]
    pub(super) steps: IndexMap<String, Value>,
}

/// A bound on the runs that are carried at once.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Concurrency")]
pub(super) struct ConcurrencyWire {
    #[schemars(range(min = 1, max = 1000))]
    pub(super) limit: u32,
    /// A path that begins with `trigger`: the limit is for each of its values then.
    #[serde(default)]
    pub(super) key: Option<String>,
}

/// A variable's declaration.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Variable")]
pub(super) struct VariableWire {
    #[serde(rename = "type")]
    pub(super) kind: VariableType,
    /// A run cannot start without a value; the default counts as one.
    #[serde(default)]
    pub(super) required: bool,
    /// The value when none is given. A secret has none.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Option<Value>")]
    pub(super) default: Option<Value>,
    #[serde(default)]
    #[schemars(length(max = 2000))]
    pub(super) description: String,
}

/// Reads a key that is there as `Some`, `null` included.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

fn empty_object() -> Value {
    Value::Object(serde_json::Map::new())
}

/// What starts a run.
#[derive(Debug, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(rename = "Trigger")]
#[expect(dead_code, reason = "only the schema is made from it")]
pub(super) enum TriggerWire {
    /// A request to one of the workflow's webhook addresses.
    Webhook(TriggerBody),
    /// A person, in the web interface.
    Manual(TriggerBody),
    /// A request to the API.
    Api(TriggerBody),
    /// The clock.
    Schedule(ScheduleBody),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TriggerBody {
    pub(super) id: String,
    /// Higher ones are asked first.
    #[serde(default)]
    pub(super) priority: i32,
    /// The run starts only when this holds; it reads `trigger.…`.
    #[serde(default)]
    #[schemars(with = "Option<ConditionSchema>")]
    pub(super) when: Option<Value>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ScheduleBody {
    pub(super) id: String,
    /// All triggers have it; nothing is asked before or after a schedule.
    #[serde(default)]
    pub(super) priority: i32,
    /// The run starts only when this holds; it reads `trigger.…`.
    #[serde(default)]
    #[schemars(with = "Option<ConditionSchema>")]
    pub(super) when: Option<Value>,
    /// Minute, hour, day of month, month, weekday; six fields begin with the second. At most once a minute.
    #[schemars(length(min = 1, max = 250))]
    pub(super) cron: String,
    /// A name of the IANA database, such as `Europe/Berlin`. `UTC` when left out.
    #[serde(default)]
    pub(super) time_zone: Option<String>,
    /// What becomes of ticks that could not fire within a minute of their time. `once` when left out.
    #[serde(default)]
    pub(super) misfire: Misfire,
    /// Missed ticks that `all` makes up for at once, the newest ones. 100 when left out.
    #[serde(default)]
    #[schemars(range(min = 1, max = 100))]
    pub(super) misfire_max: Option<u32>,
    /// Each workflow fires at a moment of its own within so many seconds after the tick. 0 when left out.
    #[serde(default)]
    #[schemars(range(min = 0, max = 3600))]
    pub(super) spread_s: u32,
}

/// One step.
#[derive(Debug, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(rename = "Step")]
#[expect(dead_code, reason = "only the schema is made from it")]
pub(super) enum StepWire {
    /// Calls a plugin's action.
    Action(CallBody),
    /// Sends a message through a plugin's channel.
    Notify(CallBody),
    /// Goes one of two ways.
    Condition(ConditionBody),
    /// Goes the way of the first case that holds.
    Switch(SwitchBody),
    /// Changes variables.
    Set(SetBody),
    /// Waits.
    Delay(DelayBody),
    /// Ends the run.
    Stop(StopBody),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CallBody {
    #[serde(default)]
    pub(super) title: Option<String>,
    #[serde(default)]
    pub(super) description: String,
    /// `publisher/plugin#contribution`.
    #[schemars(regex(pattern = r"^[a-z][a-z0-9-]*/[a-z][a-z0-9-]*#[a-z][a-z0-9-]*$"))]
    pub(super) r#use: String,
    /// `inst_…`; left out, the organization's only installation of the plugin.
    #[serde(default)]
    pub(super) installation: Option<String>,
    /// The call's input. Every string may be a template.
    #[serde(default = "empty_object")]
    pub(super) with: Value,
    #[serde(default)]
    pub(super) retry: Option<RetryBody>,
    #[serde(default)]
    #[schemars(range(min = 100, max = 60000))]
    pub(super) timeout_ms: Option<u64>,
    /// The run goes on at `next` when the step finally fails.
    #[serde(default)]
    pub(super) allow_failure: bool,
    /// The output that stands in for a failed step's; the run goes on.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Option<Value>")]
    pub(super) fallback: Option<Value>,
    /// The step that follows a final failure.
    #[serde(default)]
    pub(super) on_error: Option<String>,
    /// The step that follows; left out, the run ends well.
    #[serde(default)]
    pub(super) next: Option<String>,
    /// Kept for the builder's own use, such as the step's place on the canvas.
    #[serde(default)]
    #[expect(dead_code, reason = "kept in the text; runs do not read it")]
    pub(super) ui: Option<Value>,
}

/// Attempts and the pauses between them (exponential, full jitter).
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RetryBody {
    /// In all, the first one included. 3 when left out.
    #[serde(default)]
    #[schemars(range(min = 1, max = 100))]
    pub(super) max_attempts: Option<u32>,
    /// Bound of the first pause. 1000 when left out.
    #[serde(default)]
    pub(super) backoff_ms: Option<u64>,
    /// Bound of every pause. 60000 when left out.
    #[serde(default)]
    pub(super) backoff_max_ms: Option<u64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ConditionBody {
    #[serde(default)]
    pub(super) title: Option<String>,
    #[serde(default)]
    pub(super) description: String,
    #[serde(rename = "if")]
    #[schemars(with = "ConditionSchema")]
    pub(super) test: Value,
    #[serde(default)]
    pub(super) then: Option<String>,
    #[serde(default)]
    pub(super) r#else: Option<String>,
    /// Kept for the builder's own use, such as the step's place on the canvas.
    #[serde(default)]
    #[expect(dead_code, reason = "kept in the text; runs do not read it")]
    pub(super) ui: Option<Value>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SwitchBody {
    #[serde(default)]
    pub(super) title: Option<String>,
    #[serde(default)]
    pub(super) description: String,
    #[schemars(length(min = 1, max = 50))]
    pub(super) cases: Vec<CaseBody>,
    #[serde(default)]
    pub(super) r#else: Option<String>,
    /// Kept for the builder's own use, such as the step's place on the canvas.
    #[serde(default)]
    #[expect(dead_code, reason = "kept in the text; runs do not read it")]
    pub(super) ui: Option<Value>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CaseBody {
    #[serde(rename = "if")]
    #[schemars(with = "ConditionSchema")]
    pub(super) test: Value,
    #[serde(default)]
    pub(super) then: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SetBody {
    #[serde(default)]
    pub(super) title: Option<String>,
    #[serde(default)]
    pub(super) description: String,
    /// New values by variable name. Every string may be a template; all are computed before any is set.
    #[schemars(with = "BTreeMap<String, Value>")]
    pub(super) vars: IndexMap<String, Value>,
    #[serde(default)]
    pub(super) next: Option<String>,
    /// Kept for the builder's own use, such as the step's place on the canvas.
    #[serde(default)]
    #[expect(dead_code, reason = "kept in the text; runs do not read it")]
    pub(super) ui: Option<Value>,
}

/// Exactly one of `for_ms`, `for` and `until`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DelayBody {
    #[serde(default)]
    pub(super) title: Option<String>,
    #[serde(default)]
    pub(super) description: String,
    #[serde(default)]
    pub(super) for_ms: Option<u64>,
    /// `90s`, `1h 30m`, `3d`, `PT1H30M`.
    #[serde(default)]
    pub(super) r#for: Option<String>,
    /// A time, a date, or a template that gives one.
    #[serde(default)]
    pub(super) until: Option<String>,
    #[serde(default)]
    pub(super) next: Option<String>,
    /// Kept for the builder's own use, such as the step's place on the canvas.
    #[serde(default)]
    #[expect(dead_code, reason = "kept in the text; runs do not read it")]
    pub(super) ui: Option<Value>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StopBody {
    #[serde(default)]
    pub(super) title: Option<String>,
    #[serde(default)]
    pub(super) description: String,
    #[serde(default)]
    pub(super) status: StopStatus,
    /// The run's output. Every string may be a template.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Option<Value>")]
    pub(super) output: Option<Value>,
    /// Kept for the builder's own use, such as the step's place on the canvas.
    #[serde(default)]
    #[expect(dead_code, reason = "kept in the text; runs do not read it")]
    pub(super) ui: Option<Value>,
}

/// The published JSON Schema (draft 2020-12) of definitions.
#[must_use]
pub fn json_schema() -> Value {
    let schema = SchemaGenerator::new(SchemaSettings::draft2020_12()).into_root_schema_for::<DefinitionWire>();
    schema.to_value()
}
