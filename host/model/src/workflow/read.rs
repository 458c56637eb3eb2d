//! From text to a checked definition: bounds, conversions, shape, parts, then the whole.

use indexmap::IndexMap;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::concurrency::{CONCURRENCY_MAX, Concurrency, KEY_ROOT};
use super::wire::{
    CallBody, ConcurrencyWire, ConditionBody, DefinitionWire, DelayBody, ScheduleBody, SetBody, StopBody, SwitchBody,
    TriggerBody, VariableWire,
};
use super::{
    ATTEMPTS_MAX, BACKOFF_MAX_MS, CASES_MAX, CallStep, Case, DELAY_MAX, DESCRIPTION_CHARS_MAX, Definition, Delay,
    JSON_DEPTH_MAX, NAME_CHARS_MAX, Note, PATTERNS_MAX, Problem, Retry, SCHEMA, STEPS_MAX, Step, StepId, StepKind,
    TEXT_BYTES_MAX, TIMEOUT_MAX_MS, TIMEOUT_MIN_MS, TRIGGERS_MAX, Trigger, TriggerId, TriggerKind, VARIABLES_MAX,
    Variable, VariableName, VariableType, check, convert, duration, json,
};
use crate::condition::{Condition, FieldPath, Segment};
use crate::limits::ContributionKind;
use crate::schedule::{MISFIRE_MAX, SPREAD_MAX_S, Schedule, ScheduleError, Ticks, ZONE_DEFAULT};
use crate::template::Template;

pub(super) fn read(text: &str) -> Result<(Definition, Vec<Note>), Vec<Problem>> {
    let mut reader = Reader { problems: Vec::new(), notes: Vec::new(), patterns: 0 };
    let definition = reader.definition(text);
    let Some(definition) = definition else { return Err(reader.problems) };
    check::check(&definition, &mut reader.problems, &mut reader.notes);
    reader.problems.truncate(PROBLEMS_MAX);
    reader.notes.truncate(PROBLEMS_MAX);
    if reader.problems.is_empty() { Ok((definition, reader.notes)) } else { Err(reader.problems) }
}

/// Problems reported of one document; more would only repeat themselves.
const PROBLEMS_MAX: usize = 200;

struct Reader {
    problems: Vec<Problem>,
    notes: Vec<Note>,
    /// Regular expressions so far.
    patterns: usize,
}

impl Reader {
    fn problem(&mut self, path: impl Into<String>, code: &'static str, message: impl Into<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem::new(path, code, message));
        }
    }

    /// `None` only when there is no document to speak of; with a definition there may still be problems.
    fn definition(&mut self, text: &str) -> Option<Definition> {
        let wire = self.document(text)?;
        if wire.schema.as_u64() != Some(SCHEMA) {
            self.problem("/schema", "schema", format!("this version reads schema {SCHEMA}"));
        }
        self.chars("/name", &wire.name, 1, NAME_CHARS_MAX);
        if wire.name.chars().any(char::is_control) {
            self.problem("/name", "name", "a name holds no control characters");
        }
        self.chars("/description", &wire.description, 0, DESCRIPTION_CHARS_MAX);
        let bounded = [
            ("/steps", "too-many-steps", wire.steps.len(), STEPS_MAX),
            ("/triggers", "too-many-triggers", wire.triggers.len(), TRIGGERS_MAX),
            ("/variables", "too-many-variables", wire.variables.len(), VARIABLES_MAX),
        ];
        for (path, code, found, max) in bounded {
            if found > max {
                self.problem(path, code, format!("{found} are too many; at most {max} are allowed"));
            }
        }
        if bounded.iter().any(|(_, _, found, max)| found > max) {
            return None;
        }
        if wire.steps.is_empty() {
            self.problem("/steps", "no-steps", "a workflow has at least one step");
        }
        let variables = self.variables(&wire.variables);
        let triggers = self.triggers(&wire.triggers);
        let steps = self.steps(&wire.steps);
        let concurrency = wire.concurrency.and_then(|wire| self.concurrency(wire));
        let start = self.name::<StepId>("/start", &wire.start)?;
        let complete = steps.len() == wire.steps.len() && variables.len() == wire.variables.len();
        if !complete {
            // Steps that could not be read would only be reported again as unknown.
            return None;
        }
        let (name, description) = (wire.name, wire.description);
        Some(Definition { text: text.into(), name, description, variables, triggers, concurrency, start, steps })
    }

    fn concurrency(&mut self, value: Value) -> Option<Concurrency> {
        let wire: ConcurrencyWire = self.shape("/concurrency", value)?;
        if !(1..=CONCURRENCY_MAX).contains(&wire.limit) {
            self.problem("/concurrency/limit", "out-of-bounds", format!("a limit is 1 to {CONCURRENCY_MAX}"));
            return None;
        }
        let Some(text) = wire.key else { return Some(Concurrency { limit: wire.limit, key: None }) };
        let path = match FieldPath::parse(&text) {
            Ok(path) => path,
            Err(error) => {
                self.problem("/concurrency/key", "path", error.to_string());
                return None;
            }
        };
        let begins = matches!(path.segments().first(), Some(Segment::Key(name)) if **name == *KEY_ROOT);
        if !begins || path.has_each() {
            let why = "a key is one value of what started the run: a path that begins with `trigger`, without [*]";
            self.problem("/concurrency/key", "path", why);
            return None;
        }
        Some(Concurrency { limit: wire.limit, key: Some(path) })
    }

    fn document(&mut self, text: &str) -> Option<DefinitionWire> {
        if text.len() > TEXT_BYTES_MAX {
            self.problem("", "too-large", format!("the definition is longer than {TEXT_BYTES_MAX} bytes"));
            return None;
        }
        let depth = json::text_depth(text);
        if depth > JSON_DEPTH_MAX {
            let message = format!(
                "the document nests {depth} levels deep; at most {JSON_DEPTH_MAX} are allowed, and 20 in a condition"
            );
            self.problem("", "too-deep", message);
            return None;
        }
        let mut document = match json::parse_strict(text) {
            Ok(document) => document,
            Err(message) => {
                self.problem("", "not-json", message);
                return None;
            }
        };
        // Before anything is copied or converted: a document of ten thousand steps is refused for its size alone.
        if let Some(steps) = document.get("steps") {
            let found = steps.as_object().map_or_else(|| steps.as_array().map_or(0, Vec::len), serde_json::Map::len);
            if found > STEPS_MAX {
                self.problem(
                    "/steps",
                    "too-many-steps",
                    format!("{found} steps are too many; at most {STEPS_MAX} are allowed"),
                );
                return None;
            }
        }
        convert::convert(&mut document, &mut self.notes);
        self.shape("", document)
    }

    fn shape<T: DeserializeOwned>(&mut self, path: &str, value: Value) -> Option<T> {
        match serde_path_to_error::deserialize(value) {
            Ok(read) => Some(read),
            Err(error) => {
                let mut pointer = path.to_owned();
                for segment in error.path() {
                    match segment {
                        serde_path_to_error::Segment::Map { key } => {
                            json::push_key(&mut pointer, key);
                        }
                        serde_path_to_error::Segment::Seq { index } => {
                            json::push_index(&mut pointer, *index);
                        }
                        _ => {}
                    }
                }
                self.problem(pointer, "shape", error.inner().to_string());
                None
            }
        }
    }

    fn chars(&mut self, path: &str, text: &str, min: usize, max: usize) {
        let count = text.chars().count();
        if !(min..=max).contains(&count) || (min > 0 && text.trim().is_empty()) {
            self.problem(path, "length", format!("{min} to {max} characters, and {count} were found"));
        }
    }

    fn name<T: std::str::FromStr<Err = crate::name::NameError>>(&mut self, path: &str, text: &str) -> Option<T> {
        match text.parse() {
            Ok(name) => Some(name),
            Err(error) => {
                let error: crate::name::NameError = error;
                self.problem(path, "name", error.rule);
                None
            }
        }
    }

    fn variables(&mut self, wire: &IndexMap<String, Value>) -> IndexMap<VariableName, Variable> {
        let mut variables = IndexMap::new();
        for (key, value) in wire {
            let path = json::at_key(&mut "/variables".to_owned(), key, |path| path.clone());
            let name = self.name::<VariableName>(&path, key);
            let Some(wire) = self.shape::<VariableWire>(&path, value.clone()) else { continue };
            self.chars(&format!("{path}/description"), &wire.description, 0, DESCRIPTION_CHARS_MAX);
            if let Some(default) = &wire.default {
                let at = format!("{path}/default");
                if wire.kind == VariableType::Secret {
                    self.problem(at, "secret-default", "a secret has no default; it would stand here in the clear");
                } else if !wire.kind.admits(default) {
                    self.problem(at, "wrong-type", format!("the default is no {}", wire.kind.as_str()));
                }
            }
            if let Some(name) = name {
                let VariableWire { kind, required, default, description } = wire;
                variables.insert(name, Variable { kind, required, default, description });
            }
        }
        variables
    }

    fn triggers(&mut self, wire: &[Value]) -> Vec<Trigger> {
        let mut triggers: Vec<Trigger> = Vec::new();
        for (index, value) in wire.iter().enumerate() {
            let path = format!("/triggers/{index}");
            let Some((kind, body)) = self.tagged(&path, value) else { continue };
            if kind == "event" {
                let message = "`event` triggers are not available yet; webhook, manual, api and schedule are";
                self.problem(format!("{path}/type"), "not-available", message);
                continue;
            }
            let Some(kind) = TriggerKind::parse(&kind) else {
                self.problem(format!("{path}/type"), "unknown-type", "a trigger is webhook, manual, api or schedule");
                continue;
            };
            let (body, schedule) = if kind == TriggerKind::Schedule {
                let Some(body) = self.shape::<ScheduleBody>(&path, body) else { continue };
                let Some(schedule) = self.schedule(&path, &body) else { continue };
                let ScheduleBody { id, priority, when, .. } = body;
                (TriggerBody { id, priority, when }, Some(schedule))
            } else {
                let Some(body) = self.shape::<TriggerBody>(&path, body) else { continue };
                (body, None)
            };
            let when = match body.when {
                None => None,
                Some(tree) => match self.condition(&format!("{path}/when"), &tree) {
                    Some(when) => Some(when),
                    None => continue,
                },
            };
            let Some(id) = self.name::<TriggerId>(&format!("{path}/id"), &body.id) else { continue };
            if triggers.iter().any(|other| other.id == id) {
                self.problem(format!("{path}/id"), "duplicate", format!("a trigger `{id}` is there already"));
            }
            triggers.push(Trigger { id, kind, priority: body.priority, when, schedule });
        }
        triggers
    }

    fn schedule(&mut self, path: &str, body: &ScheduleBody) -> Option<Schedule> {
        let misfire_max = body.misfire_max.unwrap_or(MISFIRE_MAX);
        let bounded = [("misfire_max", misfire_max, 1, MISFIRE_MAX), ("spread_s", body.spread_s, 0, SPREAD_MAX_S)];
        for (field, found, min, max) in bounded {
            if !(min..=max).contains(&found) {
                self.problem(format!("{path}/{field}"), "out-of-range", format!("{min} to {max}, and not {found}"));
            }
        }
        match Ticks::parse(&body.cron, body.time_zone.as_deref().unwrap_or(ZONE_DEFAULT)) {
            Ok(ticks) => Some(Schedule { ticks, misfire: body.misfire, misfire_max, spread_s: body.spread_s }),
            Err(error) => {
                let (field, code) = match error {
                    ScheduleError::Cron(_) => ("cron", "cron"),
                    ScheduleError::TooFrequent => ("cron", "too-frequent"),
                    ScheduleError::NeverFires => ("cron", "never-fires"),
                    ScheduleError::Zone(_) => ("time_zone", "time-zone"),
                };
                self.problem(format!("{path}/{field}"), code, error.to_string());
                None
            }
        }
    }

    fn steps(&mut self, wire: &IndexMap<String, Value>) -> IndexMap<StepId, Step> {
        let mut steps = IndexMap::new();
        for (key, value) in wire {
            let path = json::at_key(&mut "/steps".to_owned(), key, |path| path.clone());
            let id = self.name::<StepId>(&path, key);
            let step = self.step(&path, value);
            if let (Some(id), Some(step)) = (id, step) {
                steps.insert(id, step);
            }
        }
        steps
    }

    /// The object's `type`, and the object without it.
    fn tagged(&mut self, path: &str, value: &Value) -> Option<(String, Value)> {
        let Value::Object(map) = value else {
            self.problem(path, "shape", "an object with a `type` is expected");
            return None;
        };
        let Some(Value::String(kind)) = map.get("type") else {
            self.problem(path, "shape", "the object has no `type`");
            return None;
        };
        let body = map.iter().filter(|(key, _)| *key != "type").map(|(key, value)| (key.clone(), value.clone()));
        Some((kind.clone(), Value::Object(body.collect())))
    }

    fn step(&mut self, path: &str, value: &Value) -> Option<Step> {
        let (kind, body) = self.tagged(path, value)?;
        let (title, description, kind) = match kind.as_str() {
            "action" | "notify" => {
                let channel = kind == "notify";
                let mut body: CallBody = self.shape(path, body)?;
                let (title, description) = (body.title.take(), std::mem::take(&mut body.description));
                (title, description, self.call(path, channel, body))
            }
            "condition" => {
                let body: ConditionBody = self.shape(path, body)?;
                let test = self.condition(&format!("{path}/if"), &body.test);
                let then = self.target(&format!("{path}/then"), body.then.as_deref());
                let otherwise = self.target(&format!("{path}/else"), body.r#else.as_deref());
                (body.title, body.description, test.map(|test| StepKind::Condition { test, then, otherwise }))
            }
            "switch" => {
                let body: SwitchBody = self.shape(path, body)?;
                let otherwise = self.target(&format!("{path}/else"), body.r#else.as_deref());
                if body.cases.is_empty() || body.cases.len() > CASES_MAX {
                    self.problem(format!("{path}/cases"), "length", format!("a switch has 1 to {CASES_MAX} cases"));
                    return None;
                }
                let mut cases = Vec::new();
                for (index, case) in body.cases.iter().enumerate() {
                    let test = self.condition(&format!("{path}/cases/{index}/if"), &case.test);
                    let then = self.target(&format!("{path}/cases/{index}/then"), case.then.as_deref());
                    cases.extend(test.map(|test| Case { test, then }));
                }
                let complete = cases.len() == body.cases.len();
                (body.title, body.description, complete.then_some(StepKind::Switch { cases, otherwise }))
            }
            "set" => {
                let body: SetBody = self.shape(path, body)?;
                let next = self.target(&format!("{path}/next"), body.next.as_deref());
                let vars = self.assignments(&format!("{path}/vars"), &body.vars);
                (body.title, body.description, vars.map(|vars| StepKind::Set { vars, next }))
            }
            "delay" => {
                let body: DelayBody = self.shape(path, body)?;
                let next = self.target(&format!("{path}/next"), body.next.as_deref());
                let until = self.delay(path, &body);
                (body.title, body.description, until.map(|until| StepKind::Delay { until, next }))
            }
            "stop" => {
                let body: StopBody = self.shape(path, body)?;
                let output = match &body.output {
                    None => None,
                    Some(output) => Some(self.template(&format!("{path}/output"), output)?),
                };
                (body.title, body.description, Some(StepKind::Stop { status: body.status, output }))
            }
            "parallel" | "for_each" | "approval" => {
                self.problem(format!("{path}/type"), "not-available", format!("`{kind}` steps are not available yet"));
                return None;
            }
            _ => {
                let message = "a step is action, notify, condition, switch, set, delay or stop";
                self.problem(format!("{path}/type"), "unknown-type", message);
                return None;
            }
        };
        if let Some(title) = &title {
            self.chars(&format!("{path}/title"), title, 1, NAME_CHARS_MAX);
        }
        self.chars(&format!("{path}/description"), &description, 0, DESCRIPTION_CHARS_MAX);
        kind.map(|kind| Step { title, kind })
    }

    fn call(&mut self, path: &str, channel: bool, body: CallBody) -> Option<StepKind> {
        let used = self.used(&format!("{path}/use"), &body.r#use);
        let installation = match &body.installation {
            None => Some(None),
            Some(text) => match text.parse() {
                Ok(id) => Some(Some(id)),
                Err(error) => {
                    let error: crate::id::IdError = error;
                    self.problem(format!("{path}/installation"), "id", error.to_string());
                    None
                }
            },
        };
        let with = self.template(&format!("{path}/with"), &body.with);
        let retry = self.retry(&format!("{path}/retry"), body.retry.as_ref());
        if let Some(timeout_ms) = body.timeout_ms
            && !(TIMEOUT_MIN_MS..=TIMEOUT_MAX_MS).contains(&timeout_ms)
        {
            let message = format!("{TIMEOUT_MIN_MS} to {TIMEOUT_MAX_MS} milliseconds");
            self.problem(format!("{path}/timeout_ms"), "out-of-range", message);
        }
        let on_error = self.target(&format!("{path}/on_error"), body.on_error.as_deref());
        let next = self.target(&format!("{path}/next"), body.next.as_deref());
        let (plugin, contribution) = used?;
        Some(StepKind::Call(Box::new(CallStep {
            kind: if channel { ContributionKind::Channel } else { ContributionKind::Action },
            plugin,
            contribution,
            installation: installation?,
            with: with?,
            retry,
            timeout_ms: body.timeout_ms,
            allow_failure: body.allow_failure,
            fallback: body.fallback,
            on_error,
            next,
        })))
    }

    fn used(&mut self, path: &str, text: &str) -> Option<(crate::name::PluginName, crate::name::ContributionName)> {
        let parts = text.split_once('#').and_then(|(plugin, name)| Some((plugin.parse().ok()?, name.parse().ok()?)));
        if parts.is_none() {
            self.problem(path, "use", "publisher/plugin#contribution is expected, such as acme/slack#message");
        }
        parts
    }

    fn retry(&mut self, path: &str, body: Option<&super::wire::RetryBody>) -> Retry {
        let default = Retry::default();
        let Some(body) = body else { return default };
        let max_attempts = body.max_attempts.unwrap_or(default.max_attempts);
        if !(1..=ATTEMPTS_MAX).contains(&max_attempts) {
            self.problem(format!("{path}/max_attempts"), "out-of-range", format!("1 to {ATTEMPTS_MAX} attempts"));
        }
        let backoff_ms = body.backoff_ms.unwrap_or(default.backoff_ms);
        let backoff_max_ms = body.backoff_max_ms.unwrap_or(default.backoff_max_ms.max(backoff_ms));
        for (name, value) in [("backoff_ms", backoff_ms), ("backoff_max_ms", backoff_max_ms)] {
            if !(1..=BACKOFF_MAX_MS).contains(&value) {
                self.problem(format!("{path}/{name}"), "out-of-range", format!("1 to {BACKOFF_MAX_MS} milliseconds"));
            }
        }
        if backoff_max_ms < backoff_ms {
            self.problem(format!("{path}/backoff_max_ms"), "out-of-range", "it is below `backoff_ms`");
        }
        Retry { max_attempts, backoff_ms, backoff_max_ms }
    }

    fn assignments(&mut self, path: &str, wire: &IndexMap<String, Value>) -> Option<Vec<(VariableName, Template)>> {
        if wire.is_empty() {
            self.problem(path, "length", "a `set` sets at least one variable");
            return None;
        }
        let mut vars = Vec::new();
        for (key, value) in wire {
            let path = json::at_key(&mut path.to_owned(), key, |path| path.clone());
            let name = self.name::<VariableName>(&path, key);
            let template = self.template(&path, value);
            vars.extend(name.zip(template));
        }
        (vars.len() == wire.len()).then_some(vars)
    }

    fn delay(&mut self, path: &str, body: &DelayBody) -> Option<Delay> {
        let (at, delay) = match (body.for_ms, &body.r#for, &body.until) {
            (Some(ms), None, None) => (format!("{path}/for_ms"), std::time::Duration::from_millis(ms)),
            (None, Some(text), None) => {
                let at = format!("{path}/for");
                let Some(delay) = duration::parse(text) else {
                    self.problem(at, "duration", "a duration such as 90s, 1h 30m, 3d or PT1H30M is expected");
                    return None;
                };
                (at, delay)
            }
            (None, None, Some(text)) => {
                let at = format!("{path}/until");
                let template = self.template(&at, &Value::String(text.clone()))?;
                if template.is_plain() && crate::condition::moment(text).is_none() {
                    let message = "a time 2026-11-21T08:00:00Z, a date 2026-11-21, or a template is expected";
                    self.problem(at, "time", message);
                    return None;
                }
                return Some(Delay::Until(template));
            }
            _ => {
                self.problem(path, "shape", "a delay has exactly one of `for_ms`, `for` and `until`");
                return None;
            }
        };
        if delay.is_zero() || delay > DELAY_MAX {
            self.problem(at, "out-of-range", "a delay is longer than nothing and at most 366 days");
            return None;
        }
        Some(Delay::For(delay))
    }

    fn target(&mut self, path: &str, text: Option<&str>) -> Option<StepId> {
        text.and_then(|text| self.name(path, text))
    }

    fn condition(&mut self, path: &str, tree: &Value) -> Option<Condition> {
        if self.patterns > PATTERNS_MAX || self.problems.len() >= PROBLEMS_MAX {
            // Said already; compiling still more expressions is what the bounds are against.
            return None;
        }
        match Condition::parse(tree) {
            Ok(condition) => {
                self.patterns += condition.patterns();
                if self.patterns > PATTERNS_MAX {
                    let message = format!("more than {PATTERNS_MAX} regular expressions in one workflow");
                    self.problem(path, "too-many-patterns", message);
                }
                Some(condition)
            }
            Err(problems) => {
                for problem in problems {
                    self.problem(format!("{path}{}", problem.path), "condition", problem.message);
                }
                None
            }
        }
    }

    fn template(&mut self, path: &str, value: &Value) -> Option<Template> {
        if self.problems.len() >= PROBLEMS_MAX {
            return None;
        }
        match Template::compile(value) {
            Ok(template) => Some(template),
            Err(errors) => {
                for error in errors {
                    self.problem(format!("{path}{}", error.path), "template", error.message);
                }
                None
            }
        }
    }
}
