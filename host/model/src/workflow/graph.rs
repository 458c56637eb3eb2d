//! The steps as a graph: what reaches what, and whether anything comes back to itself. Nothing here recurses.

use std::collections::{HashMap, HashSet};

use super::{Definition, StepId};

pub(super) struct Graph<'a> {
    next: HashMap<&'a StepId, Vec<&'a StepId>>,
}

impl<'a> Graph<'a> {
    /// Edges to steps that do not exist are left out.
    pub(super) fn new(definition: &'a Definition) -> Self {
        let next = definition.steps.iter().map(|(id, step)| {
            let targets = step.kind.targets().into_iter().map(|(_, target)| target);
            (id, targets.filter(|target| definition.steps.contains_key(*target)).collect())
        });
        Self { next: next.collect() }
    }

    fn successors(&self, id: &StepId) -> &[&'a StepId] {
        self.next.get(id).map_or(&[], Vec::as_slice)
    }

    /// The steps that can follow `from`, near or far; `from` itself only if it can follow itself.
    pub(super) fn reachable_after(&self, from: &StepId) -> HashSet<&'a StepId> {
        let mut found = HashSet::new();
        let mut open: Vec<&StepId> = self.successors(from).to_vec();
        while let Some(id) = open.pop() {
            if let Some((key, targets)) = self.next.get_key_value(id)
                && found.insert(*key)
            {
                open.extend(targets.iter().copied());
            }
        }
        found
    }
}
