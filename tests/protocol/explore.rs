//! Breadth first through every state, and backwards from the good ones.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;

use crate::queue::{Entry, State};

/// A step from one state to another.
pub(crate) struct Edge {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) entry: Entry,
}

/// Every reachable state and every step between two of them.
pub(crate) struct Graph {
    pub(crate) states: Vec<State>,
    pub(crate) edges: Vec<Edge>,
    /// The edge by which a state was found first; a shortest way, since the search is breadth first.
    found_by: Vec<Option<usize>>,
}

impl Graph {
    /// Finds every state, or answers the shortest way to one that breaks a rule.
    pub(crate) fn explore(
        start: State,
        states_max: usize,
        successors: impl Fn(&State) -> Vec<(Entry, State)>,
    ) -> Result<Self, String> {
        let mut known = HashMap::from([(start.clone(), 0)]);
        let mut graph = Self { states: vec![start], edges: Vec::new(), found_by: vec![None] };
        let mut open = VecDeque::from([0]);
        while let Some(from) = open.pop_front() {
            for (entry, state) in successors(&graph.states[from]) {
                let violation = state.violation;
                let to = *known.entry(state.clone()).or_insert(graph.states.len());
                graph.edges.push(Edge { from, to, entry });
                if to == graph.states.len() {
                    graph.states.push(state);
                    graph.found_by.push(Some(graph.edges.len() - 1));
                    open.push_back(to);
                }
                if let Some(violation) = violation {
                    return Err(format!("{violation}\n{}", graph.path(to)));
                }
            }
            assert!(graph.states.len() <= states_max, "the model has more than {states_max} states");
        }
        Ok(graph)
    }

    /// For each state, whether one that is `good` can be reached by steps of `admitted` actors (`None` is the world).
    pub(crate) fn can_reach(
        &self,
        good: impl Fn(&State) -> bool,
        admitted: impl Fn(Option<usize>) -> bool,
    ) -> Vec<bool> {
        self.can_reach_by(good, |entry| admitted(entry.actor()))
    }

    /// The same for chosen steps.
    pub(crate) fn can_reach_by(&self, good: impl Fn(&State) -> bool, admitted: impl Fn(&Entry) -> bool) -> Vec<bool> {
        let mut before: Vec<Vec<usize>> = vec![Vec::new(); self.states.len()];
        for edge in self.edges.iter().filter(|edge| admitted(&edge.entry)) {
            before[edge.to].push(edge.from);
        }
        let mut reaches: Vec<bool> = self.states.iter().map(good).collect();
        let mut open: Vec<usize> = (0..self.states.len()).filter(|state| reaches[*state]).collect();
        while let Some(state) = open.pop() {
            for from in &before[state] {
                if !std::mem::replace(&mut reaches[*from], true) {
                    open.push(*from);
                }
            }
        }
        reaches
    }

    /// The steps that lead to a state, one a line.
    pub(crate) fn path(&self, mut state: usize) -> String {
        let mut steps = Vec::new();
        let last = &self.states[state];
        while let Some(edge) = self.found_by[state] {
            steps.push(&self.edges[edge].entry);
            state = self.edges[edge].from;
        }
        let mut text = String::new();
        for step in steps.iter().rev() {
            let _ = writeln!(text, "  {step:?}");
        }
        let _ = writeln!(text, "  leads to {last:?}");
        text
    }
}
