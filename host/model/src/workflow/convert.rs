//! Older names, read as the present ones. Every conversion is noted, and the original text stays as it was.
//!
//! | older | present |
//! | --- | --- |
//! | variable `default_value`, `var_type` | `default`, `type` |
//! | operators `equals`, `not_equals`, `greater_than`, … | `eq`, `ne`, `gt`, … |
//! | groups `and`, `or` | `all`, `any` |
//! | test `{"condition_type":"field_equals","field_name":…,"operator":…,"value":…}` | `{"field":…,"op":…,"value":…}` |
//! | step `next_step_on_true`, `next_step_on_false`, `next_step`, `on_failure` | `then`, `else`, `next`, `on_error` |
//! | step type `call_webhook` (`url`, `method`, `headers`, `body`) | `action` with `use` `bulkhead/webhook#webhook` |
//! | `steps` as a list, steps named by number from 1 | `steps` by id (`step-1`, …) |
//! | no `start` | the first step |

use serde_json::{Map, Value};

use super::{Note, NoteKind, json};

/// What an older `call_webhook` becomes.
const WEBHOOK_ACTION: &str = "bulkhead/webhook#webhook";

const OPERATORS: [(&str, &str); 25] = [
    ("equals", "eq"),
    ("==", "eq"),
    ("not_equals", "ne"),
    ("not_equal", "ne"),
    ("!=", "ne"),
    ("greater_than", "gt"),
    (">", "gt"),
    ("greater_than_or_equal", "gte"),
    ("greater_or_equal", "gte"),
    (">=", "gte"),
    ("less_than", "lt"),
    ("<", "lt"),
    ("less_than_or_equal", "lte"),
    ("less_or_equal", "lte"),
    ("<=", "lte"),
    ("starts_with", "startswith"),
    ("ends_with", "endswith"),
    ("regex", "matches"),
    ("matches_regex", "matches"),
    ("in_list", "in"),
    ("is_in", "in"),
    ("not_in_list", "not_in"),
    ("includes", "contains"),
    ("is_set", "exists"),
    ("field_exists", "exists"),
];

const CONDITION_TYPES: [(&str, &str); 6] = [
    ("field_equals", "eq"),
    ("field_not_equals", "ne"),
    ("field_contains", "contains"),
    ("field_exists", "exists"),
    ("field_greater_than", "gt"),
    ("field_less_than", "lt"),
];

pub(super) fn convert(document: &mut Value, notes: &mut Vec<Note>) {
    let mut converter = Converter { notes };
    let Value::Object(map) = document else { return };
    if let Some(Value::Object(variables)) = map.get_mut("variables") {
        for (name, variable) in variables {
            let path = json::at_key(&mut "/variables".to_owned(), name, |path| path.clone());
            if let Value::Object(variable) = variable {
                converter.rename(&path, variable, "default_value", "default");
                converter.rename(&path, variable, "var_type", "type");
            }
        }
    }
    if let Some(Value::Array(triggers)) = map.get_mut("triggers") {
        for (index, trigger) in triggers.iter_mut().enumerate() {
            if let Some(when) = trigger.get_mut("when") {
                converter.condition(&mut format!("/triggers/{index}/when"), when);
            }
        }
    }
    converter.list_of_steps(map);
    if let Some(Value::Object(steps)) = map.get_mut("steps") {
        for (id, step) in steps.iter_mut() {
            let path = json::at_key(&mut "/steps".to_owned(), id, |path| path.clone());
            if let Value::Object(step) = step {
                converter.step(&path, step);
            }
        }
        if let Some(first) = steps.keys().next().cloned()
            && !map.contains_key("start")
        {
            converter.note("/start", format!("without `start` the first step `{first}` begins"));
            map.insert("start".to_owned(), Value::String(first));
        }
    }
}

struct Converter<'a> {
    notes: &'a mut Vec<Note>,
}

impl Converter<'_> {
    fn note(&mut self, path: &str, message: String) {
        let (path, code) = (path.to_owned(), "older-name".to_owned());
        self.notes.push(Note { kind: NoteKind::Conversion, path, code, message });
    }

    /// Gives a key its present name, unless that name is there already (then the older one is refused as unknown).
    fn rename(&mut self, path: &str, map: &mut Map<String, Value>, older: &str, present: &str) {
        if map.contains_key(present) {
            return;
        }
        if let Some(value) = map.shift_remove(older) {
            map.insert(present.to_owned(), value);
            self.note(path, format!("`{older}` was read as `{present}`"));
        }
    }

    /// Steps in a list are named by their `id` (text), else `step-N`; references by number count from 1.
    fn list_of_steps(&mut self, map: &mut Map<String, Value>) {
        let Some(Value::Array(list)) = map.get("steps") else { return };
        let name_of = |place: usize, step: &Value| match step.get("id") {
            Some(Value::String(id)) => id.clone(),
            Some(Value::Number(number)) => format!("step-{number}"),
            _ => format!("step-{}", place + 1),
        };
        let names: Vec<String> = list.iter().enumerate().map(|(place, step)| name_of(place, step)).collect();
        let unique: std::collections::HashSet<&String> = names.iter().collect();
        if unique.len() != names.len() {
            // Left as a list, it is refused by its shape; a step must not vanish behind another of its name.
            return;
        }
        let mut steps = Map::new();
        for (name, step) in names.into_iter().zip(list.clone()) {
            let mut step = step;
            if let Value::Object(step) = &mut step {
                step.shift_remove("id");
            }
            steps.insert(name, step);
        }
        map.insert("steps".to_owned(), Value::Object(steps));
        self.note("/steps", "a list of steps was read as steps by id".to_owned());
        if let Some(Value::Number(number)) = map.get("start") {
            let name = format!("step-{number}");
            map.insert("start".to_owned(), Value::String(name));
        }
    }

    fn step(&mut self, path: &str, step: &mut Map<String, Value>) {
        self.rename(path, step, "step_type", "type");
        let older_test = step.contains_key("condition_type")
            && step.get("type").is_none_or(|kind| kind == "condition")
            && !step.contains_key("if");
        if older_test {
            let mut test = Map::new();
            for key in ["condition_type", "field_name", "field", "operator", "op", "value"] {
                if let Some(value) = step.shift_remove(key) {
                    test.insert(key.to_owned(), value);
                }
            }
            step.insert("type".to_owned(), Value::String("condition".to_owned()));
            step.insert("if".to_owned(), Value::Object(test));
            self.note(path, "a test written into the step was read as its `if`".to_owned());
        }
        for (older, present) in [
            ("next_step_on_true", "then"),
            ("next_step_on_false", "else"),
            ("next_step", "next"),
            ("on_failure", "on_error"),
        ] {
            self.rename(path, step, older, present);
        }
        for key in ["then", "else", "next", "on_error"] {
            if let Some(Value::Number(number)) = step.get(key) {
                let name = format!("step-{number}");
                self.note(path, format!("step number {number} was read as `{name}`"));
                step.insert(key.to_owned(), Value::String(name));
            }
        }
        if step.get("type").is_some_and(|kind| kind == "call_webhook") {
            self.call_webhook(path, step);
        }
        if let Some(test) = step.get_mut("if") {
            self.condition(&mut format!("{path}/if"), test);
        }
        if let Some(Value::Array(cases)) = step.get_mut("cases") {
            for (index, case) in cases.iter_mut().enumerate() {
                if let Some(test) = case.get_mut("if") {
                    self.condition(&mut format!("{path}/cases/{index}/if"), test);
                }
            }
        }
    }

    fn call_webhook(&mut self, path: &str, step: &mut Map<String, Value>) {
        step.insert("type".to_owned(), Value::String("action".to_owned()));
        if !step.contains_key("use") {
            step.insert("use".to_owned(), Value::String(WEBHOOK_ACTION.to_owned()));
        }
        let mut with = match step.shift_remove("with") {
            Some(Value::Object(with)) => with,
            _ => Map::new(),
        };
        for (older, present) in [
            ("url", "url"),
            ("webhook_url", "url"),
            ("method", "method"),
            ("headers", "headers"),
            ("body", "body"),
            ("payload", "body"),
        ] {
            if !with.contains_key(present)
                && let Some(value) = step.shift_remove(older)
            {
                with.insert(present.to_owned(), value);
            }
        }
        step.insert("with".to_owned(), Value::Object(with));
        self.note(path, format!("`call_webhook` was read as an action that uses `{WEBHOOK_ACTION}`"));
    }

    /// The document is at most [`super::JSON_DEPTH_MAX`] deep, and so is this recursion.
    fn condition(&mut self, path: &mut String, tree: &mut Value) {
        let Value::Object(map) = tree else { return };
        self.rename(path, map, "and", "all");
        self.rename(path, map, "or", "any");
        for group in ["all", "any"] {
            if let Some(Value::Array(items)) = map.get_mut(group) {
                let length = json::push_key(path, group);
                for (index, item) in items.iter_mut().enumerate() {
                    let length = json::push_index(path, index);
                    self.condition(path, item);
                    path.truncate(length);
                }
                path.truncate(length);
            }
        }
        if let Some(inner) = map.get_mut("not") {
            let length = json::push_key(path, "not");
            self.condition(path, inner);
            path.truncate(length);
        }
        self.rename(path, map, "field_name", "field");
        self.rename(path, map, "operator", "op");
        if let Some(Value::String(kind)) = map.get("condition_type")
            && let Some((older, op)) = CONDITION_TYPES.iter().find(|(older, _)| older == kind)
        {
            map.shift_remove("condition_type");
            if !map.contains_key("op") {
                map.insert("op".to_owned(), Value::String((*op).to_owned()));
            }
            self.note(path, format!("`{older}` was read as a test"));
        }
        if let Some(Value::String(op)) = map.get("op")
            && let Some((older, present)) = OPERATORS.iter().find(|(older, _)| older == op)
        {
            map.insert("op".to_owned(), Value::String((*present).to_owned()));
            self.note(path, format!("`{older}` was read as `{present}`"));
        }
    }
}
