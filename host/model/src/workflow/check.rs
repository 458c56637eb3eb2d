//! What can only be seen of the whole: references between steps, cycles, names that conditions and templates read.

use std::collections::{HashMap, HashSet};

use super::graph::Graph;
use super::{Definition, Delay, Note, NoteKind, Problem, StepId, StepKind, VariableType, json};
use crate::condition::{Condition, FieldPath, Segment};
use crate::template::Template;

/// What `steps.<id>` offers.
const STEP_PARTS: [&str; 3] = ["output", "error", "status"];
/// What conditions and templates of steps may read.
const ROOTS: [&str; 5] = ["trigger", "vars", "steps", "run", "org"];

pub(super) fn check(definition: &Definition, problems: &mut Vec<Problem>, notes: &mut Vec<Note>) {
    check_targets(definition, problems);
    let graph = Graph::new(definition);
    let after: HashMap<&StepId, HashSet<&StepId>> =
        definition.steps.keys().map(|id| (id, graph.reachable_after(id))).collect();
    check_cycles(definition, &after, problems);
    note_unreachable(definition, &after, notes);
    let checker = Checker { definition, after };
    for (index, trigger) in definition.triggers.iter().enumerate() {
        if let Some(when) = &trigger.when {
            checker.trigger_condition(&format!("/triggers/{index}/when"), when, problems);
        }
    }
    check_schedules(definition, problems);
    for (id, step) in &definition.steps {
        checker.step(id, &step.kind, problems);
    }
}

/// Nobody is there to give a value when a schedule fires: without defaults its runs could never begin.
fn check_schedules(definition: &Definition, problems: &mut Vec<Problem>) {
    if definition.schedules().next().is_none() {
        return;
    }
    let Err(error) = crate::run::begin(definition, &serde_json::Map::new()) else { return };
    for missing in error.problems.iter().filter(|problem| problem.code == "missing") {
        let name = &missing.name;
        let message = format!("a schedule starts runs without values: give `{name}` a default, or do not require it");
        problems.push(Problem::new(format!("/variables/{name}"), "required-by-schedule", message));
    }
}

fn step_path(id: &StepId) -> String {
    json::at_key(&mut "/steps".to_owned(), id.as_str(), |path| path.clone())
}

fn check_targets(definition: &Definition, problems: &mut Vec<Problem>) {
    if !definition.steps.is_empty() && !definition.steps.contains_key(&definition.start) {
        problems.push(Problem::new("/start", "unknown-step", format!("there is no step `{}`", definition.start)));
    }
    for (id, step) in &definition.steps {
        for (relative, target) in step.kind.targets() {
            if !definition.steps.contains_key(target) {
                let path = format!("{}{relative}", step_path(id));
                problems.push(Problem::new(path, "unknown-step", format!("there is no step `{target}`")));
            }
        }
    }
}

fn check_cycles(definition: &Definition, after: &HashMap<&StepId, HashSet<&StepId>>, problems: &mut Vec<Problem>) {
    let circles: Vec<&StepId> =
        definition.steps.keys().filter(|id| after.get(*id).is_some_and(|after| after.contains(*id))).collect();
    if let Some(first) = circles.first() {
        let names: Vec<&str> = circles.iter().take(10).map(|id| id.as_str()).collect();
        let message =
            format!("steps lead back to themselves: {}; schema {} has no loops", names.join(", "), super::SCHEMA);
        problems.push(Problem::new(step_path(first), "cycle", message));
    }
}

fn note_unreachable(definition: &Definition, after: &HashMap<&StepId, HashSet<&StepId>>, notes: &mut Vec<Note>) {
    let Some(reached) = after.get(&definition.start) else { return };
    for id in definition.steps.keys() {
        if *id != definition.start && !reached.contains(id) {
            let message = format!("no step leads to `{id}`");
            notes.push(Note { kind: NoteKind::Warning, path: step_path(id), code: "unreachable".to_owned(), message });
        }
    }
}

struct Checker<'a> {
    definition: &'a Definition,
    /// The steps that can follow each step.
    after: HashMap<&'a StepId, HashSet<&'a StepId>>,
}

impl Checker<'_> {
    fn step(&self, id: &StepId, kind: &StepKind, problems: &mut Vec<Problem>) {
        let path = step_path(id);
        match kind {
            StepKind::Call(call) => self.template(id, &format!("{path}/with"), &call.with, problems),
            StepKind::Condition { test, .. } => self.condition(id, &format!("{path}/if"), test, problems),
            StepKind::Switch { cases, .. } => {
                for (index, case) in cases.iter().enumerate() {
                    self.condition(id, &format!("{path}/cases/{index}/if"), &case.test, problems);
                }
            }
            StepKind::Set { vars, .. } => {
                for (name, template) in vars {
                    let at = format!("{path}/vars/{name}");
                    match self.definition.variables.get(name).map(|variable| variable.kind) {
                        None => problems.push(Problem::new(
                            &at,
                            "unknown-variable",
                            format!("there is no variable `{name}`"),
                        )),
                        Some(VariableType::Secret) => {
                            problems.push(Problem::new(&at, "secret", "a secret cannot be set by a step"));
                        }
                        Some(_) => {}
                    }
                    self.template(id, &at, template, problems);
                }
            }
            StepKind::Delay { until: Delay::Until(template), .. } => {
                self.template(id, &format!("{path}/until"), template, problems);
            }
            StepKind::Delay { until: Delay::For(_), .. } | StepKind::Stop { output: None, .. } => {}
            StepKind::Stop { output: Some(output), .. } => {
                self.template(id, &format!("{path}/output"), output, problems);
            }
        }
    }

    fn template(&self, at: &StepId, path: &str, template: &Template, problems: &mut Vec<Problem>) {
        for reference in template.references() {
            let parts: Vec<&str> = reference.name.split('.').collect();
            if let Err((code, message)) = self.reference(at, &parts, true) {
                problems.push(Problem::new(format!("{path}{}", reference.path), code, message));
            }
        }
    }

    fn condition(&self, at: &StepId, path: &str, condition: &Condition, problems: &mut Vec<Problem>) {
        for (relative, field) in condition.paths() {
            let parts = keys(field);
            let checked = self.reference(at, &parts, false).and_then(|()| self.not_secret(&parts));
            if let Err((code, message)) = checked {
                problems.push(Problem::new(format!("{path}{relative}"), code, message));
            }
        }
    }

    fn trigger_condition(&self, path: &str, condition: &Condition, problems: &mut Vec<Problem>) {
        let _ = self;
        for (relative, field) in condition.paths() {
            if keys(field).first() != Some(&"trigger") {
                let message = "a trigger's conditions read `trigger.…`; nothing else is there yet";
                problems.push(Problem::new(format!("{path}{relative}"), "unknown-reference", message));
            }
        }
    }

    fn not_secret(&self, parts: &[&str]) -> Result<(), (&'static str, String)> {
        if let ["vars", name, ..] = parts
            && self.definition.variables.get(*name).is_some_and(|variable| variable.kind == VariableType::Secret)
        {
            return Err(("secret", format!("`{name}` is a secret; no condition may look at it")));
        }
        Ok(())
    }

    /// Whether a step may read this name. Templates may read whole groups (`vars | tojson`), conditions only values.
    fn reference(&self, at: &StepId, parts: &[&str], groups: bool) -> Result<(), (&'static str, String)> {
        let unknown = |message: String| Err(("unknown-reference", message));
        match parts {
            ["vars", name, ..] => {
                if self.definition.variables.contains_key(*name) {
                    Ok(())
                } else {
                    Err(("unknown-variable", format!("there is no variable `{name}`")))
                }
            }
            ["steps", id, rest @ ..] => {
                let Some(known) = self.definition.steps.get_key_value(*id).map(|(known, _)| known) else {
                    return Err(("unknown-step", format!("there is no step `{id}`")));
                };
                match rest.first() {
                    Some(part) if STEP_PARTS.contains(part) => {}
                    None if groups => {}
                    _ => return unknown(format!("of a step there are {}", STEP_PARTS.join(", "))),
                }
                // An unreachable step (of which there is a warning) has nothing before it.
                let reached = |from: &StepId| self.after.get(from).is_some_and(|after| after.contains(at));
                let runs = *at == self.definition.start || reached(&self.definition.start);
                if runs && !reached(known) {
                    return unknown(format!("`{id}` does not run before `{at}`"));
                }
                Ok(())
            }
            ["vars" | "steps"] if !groups => unknown(format!("`{}` needs a name after it", parts[0])),
            [root, ..] if ROOTS.contains(root) => Ok(()),
            [root, ..] => unknown(format!("`{root}` is unknown; there are {}", ROOTS.join(", "))),
            [] => unknown("the name is empty".to_owned()),
        }
    }
}

/// The path's leading keys, as far as they are plain.
fn keys(field: &FieldPath) -> Vec<&str> {
    field
        .segments()
        .iter()
        .map_while(|segment| match segment {
            Segment::Key(key) => Some(&**key),
            Segment::Index(_) | Segment::Each => None,
        })
        .collect()
}
