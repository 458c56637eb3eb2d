//! The Merkle tree of RFC 6962: hashing, the edge that grows with each leaf, and proofs.
//!
//! Only roots of full subtrees are ever stored. With leaf `n` the subtrees that end at it become full; they are kept with that leaf's
//! row (see [`Node::row`]), so a proof reads a few rows by their key and nothing is ever rewritten.

use crate::hash::Hash;

/// The hash of one leaf: SHA-256(0x00 ‖ leaf) (RFC 6962, 2.1).
#[must_use]
pub fn leaf(bytes: &[u8]) -> Hash {
    Hash::of(&[&[0], bytes])
}

/// The hash over two subtrees: SHA-256(0x01 ‖ left ‖ right).
#[must_use]
pub fn node(left: Hash, right: Hash) -> Hash {
    Hash::of(&[&[1], left.as_bytes(), right.as_bytes()])
}

/// The root of a tree without leaves: SHA-256 of nothing.
#[must_use]
pub fn empty_root() -> Hash {
    Hash::of(&[])
}

/// A full subtree: its leaves are `index << level` up to, without, `(index + 1) << level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub level: u32,
    pub index: u64,
}

impl Node {
    /// The leaf that made the subtree full. A leaf's row holds the hashes of the subtrees that it completed, from level 1 up.
    #[must_use]
    pub const fn row(self) -> u64 {
        ((self.index + 1) << self.level) - 1
    }
}

/// How many subtrees above the leaf itself become full with leaf `index`.
#[must_use]
pub const fn completed_by(index: u64) -> u32 {
    (index + 1).trailing_zeros()
}

/// The full subtrees of the largest possible sizes that make up the first `size` leaves, largest first.
#[must_use]
pub fn edge(size: u64) -> Vec<Node> {
    full_subtrees(0, size)
}

fn full_subtrees(begin: u64, end: u64) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut at = begin;
    while at < end {
        let by_place = if at == 0 { u64::BITS - 1 } else { at.trailing_zeros() };
        let level = by_place.min((end - at).ilog2());
        nodes.push(Node { level, index: at >> level });
        at += 1 << level;
    }
    nodes
}

/// Joins the roots of [`edge`] into the root of their tree.
fn join(roots: &[Hash]) -> Hash {
    let mut rest = roots.iter().rev();
    let Some(last) = rest.next() else { return empty_root() };
    rest.fold(*last, |right, left| node(*left, right))
}

/// The growing edge of a tree: as many hashes as its size has one-bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    size: u64,
    roots: Vec<Hash>,
}

impl Default for Edge {
    fn default() -> Self {
        Self::new()
    }
}

impl Edge {
    #[must_use]
    pub const fn new() -> Self {
        Self { size: 0, roots: Vec::new() }
    }

    /// The edge of a tree with `size` leaves from the roots of its full subtrees, largest first; none if the number of them is wrong.
    #[must_use]
    pub fn from_roots(size: u64, roots: Vec<Hash>) -> Option<Self> {
        (roots.len() == size.count_ones() as usize).then_some(Self { size, roots })
    }

    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    #[must_use]
    pub fn roots(&self) -> &[Hash] {
        &self.roots
    }

    /// Adds a leaf hash and returns the roots of the subtrees that it completed, from level 1 up.
    pub fn append(&mut self, leaf: Hash) -> Vec<Hash> {
        let mut completed = Vec::new();
        let mut root = leaf;
        for _ in 0..completed_by(self.size) {
            let left = self.roots.pop().expect("a size's trailing one-bits each stand for a root of the edge");
            root = node(left, root);
            completed.push(root);
        }
        self.roots.push(root);
        self.size += 1;
        completed
    }

    #[must_use]
    pub fn root(&self) -> Hash {
        join(&self.roots)
    }
}

/// Which full subtrees a proof needs, before anything is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Each element of the proof joins these.
    parts: Vec<Vec<Node>>,
}

impl Plan {
    /// The path from leaf `index` to the root of the first `size` leaves (RFC 9162, 2.1.3.1); none if there is no such leaf.
    #[must_use]
    pub fn inclusion(index: u64, size: u64) -> Option<Self> {
        if index >= size {
            return None;
        }
        let mut parts = Vec::new();
        let (mut begin, mut end) = (0, size);
        while end - begin > 1 {
            let middle = begin + half(end - begin);
            if index < middle {
                parts.push(full_subtrees(middle, end));
                end = middle;
            } else {
                parts.push(full_subtrees(begin, middle));
                begin = middle;
            }
        }
        parts.reverse();
        Some(Self { parts })
    }

    /// What shows that the first `old` leaves are the beginning of the first `new` (RFC 9162, 2.1.4.1); none unless 0 < old ≤ new.
    #[must_use]
    pub fn consistency(old: u64, new: u64) -> Option<Self> {
        if old == 0 || old > new {
            return None;
        }
        let mut parts = Vec::new();
        let (mut begin, mut end) = (0, new);
        // Whether the old tree is the whole of what is looked at, from leaf 0: then its root is known to the verifier.
        let mut known = true;
        while old != end {
            let middle = begin + half(end - begin);
            if old <= middle {
                parts.push(full_subtrees(middle, end));
                end = middle;
            } else {
                parts.push(full_subtrees(begin, middle));
                begin = middle;
                known = false;
            }
        }
        if !known {
            parts.push(full_subtrees(begin, end));
        }
        parts.reverse();
        Some(Self { parts })
    }

    /// The subtrees whose roots are needed.
    pub fn nodes(&self) -> impl Iterator<Item = Node> + '_ {
        self.parts.iter().flatten().copied()
    }

    /// The proof, with the roots that `hash_of` knows; none if one is missing.
    #[must_use]
    pub fn proof(&self, hash_of: impl Fn(Node) -> Option<Hash>) -> Option<Vec<Hash>> {
        self.parts
            .iter()
            .map(|part| Some(join(&part.iter().map(|node| hash_of(*node)).collect::<Option<Vec<_>>>()?)))
            .collect()
    }
}

/// The largest power of two below `n`, for n ≥ 2.
const fn half(n: u64) -> u64 {
    1 << (n - 1).ilog2()
}

/// The proof does not lead from what it is about to the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the proof does not hold")]
pub struct ProofError;

/// Checks that `leaf` is at `index` of the tree of `size` leaves with this root (RFC 9162, 2.1.3.2).
///
/// # Errors
/// When it is not shown.
pub fn verify_inclusion(index: u64, size: u64, leaf: Hash, proof: &[Hash], root: Hash) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError);
    }
    let (mut place, mut last, mut found) = (index, size - 1, leaf);
    for step in proof {
        if last == 0 {
            return Err(ProofError);
        }
        if place & 1 == 1 || place == last {
            found = node(*step, found);
            while place & 1 == 0 && place != 0 {
                place >>= 1;
                last >>= 1;
            }
        } else {
            found = node(found, *step);
        }
        place >>= 1;
        last >>= 1;
    }
    if last == 0 && found == root { Ok(()) } else { Err(ProofError) }
}

/// Checks that the tree of `old` leaves is the beginning of the tree of `new` leaves (RFC 9162, 2.1.4.2).
///
/// # Errors
/// When it is not shown. A tree without leaves proves nothing and is refused.
pub fn verify_consistency(
    old: u64,
    new: u64,
    old_root: Hash,
    new_root: Hash,
    proof: &[Hash],
) -> Result<(), ProofError> {
    if old == 0 || old > new {
        return Err(ProofError);
    }
    if old == new {
        return if proof.is_empty() && old_root == new_root { Ok(()) } else { Err(ProofError) };
    }
    let mut steps = proof.iter();
    let first = if old.is_power_of_two() { old_root } else { *steps.next().ok_or(ProofError)? };
    let shift = (old - 1).trailing_ones();
    let (mut place, mut last) = ((old - 1) >> shift, (new - 1) >> shift);
    let (mut of_old, mut of_new) = (first, first);
    for step in steps {
        if last == 0 {
            return Err(ProofError);
        }
        if place & 1 == 1 || place == last {
            of_old = node(*step, of_old);
            of_new = node(*step, of_new);
            while place & 1 == 0 && place != 0 {
                place >>= 1;
                last >>= 1;
            }
        } else {
            of_new = node(of_new, *step);
        }
        place >>= 1;
        last >>= 1;
    }
    if last == 0 && of_old == old_root && of_new == new_root { Ok(()) } else { Err(ProofError) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// RFC 6962's definition, read off the page.
    fn root_by_definition(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => empty_root(),
            [one] => *one,
            many => {
                let (left, right) = many.split_at(usize::try_from(half(many.len() as u64)).unwrap());
                node(root_by_definition(left), root_by_definition(right))
            }
        }
    }

    /// Roots by the row that completed them and their level.
    type Stored = HashMap<(u64, u32), Hash>;

    fn grown(size: u64) -> (Vec<Hash>, Vec<Hash>, Stored) {
        let leaves: Vec<_> = (0..size).map(|at| leaf(&at.to_be_bytes())).collect();
        let (mut edge, mut roots, mut stored) = (Edge::new(), vec![empty_root()], HashMap::new());
        for (at, hash) in leaves.iter().enumerate() {
            stored.insert((at as u64, 0), *hash);
            for (level, root) in (1..).zip(edge.append(*hash)) {
                stored.insert((at as u64, level), root);
            }
            roots.push(edge.root());
        }
        (leaves, roots, stored)
    }

    #[test]
    fn the_edge_has_the_root_of_the_definition() {
        let (leaves, roots, _) = grown(70);
        for size in 0..=leaves.len() {
            assert_eq!(roots[size], root_by_definition(&leaves[..size]), "{size}");
        }
    }

    #[test]
    fn each_proof_of_each_size_holds_and_only_for_its_own() {
        let (leaves, roots, stored) = grown(40);
        let look_up = |node: Node| stored.get(&(node.row(), node.level)).copied();
        for size in 1..=40_usize {
            for index in 0..size {
                let proof = Plan::inclusion(index as u64, size as u64).unwrap().proof(look_up).unwrap();
                for (other, hash) in leaves.iter().enumerate() {
                    let held = verify_inclusion(index as u64, size as u64, *hash, &proof, roots[size]).is_ok();
                    assert_eq!(held, other == index, "{other} at {index} of {size}");
                }
            }
            for old in 1..=size {
                let proof = Plan::consistency(old as u64, size as u64).unwrap().proof(look_up).unwrap();
                for (other, root) in roots.iter().enumerate().skip(1) {
                    let held = verify_consistency(old as u64, size as u64, *root, roots[size], &proof).is_ok();
                    assert_eq!(held, other == old, "{other} as {old} of {size}");
                }
            }
        }
        assert_eq!(Plan::inclusion(3, 3), None);
        assert_eq!(Plan::consistency(0, 3), None);
        assert_eq!(Plan::consistency(4, 3), None);
    }

    proptest! {
        #[test]
        fn proofs_of_sizes_without_bound_read_logarithmically_many_rows(size in 1..=u64::MAX / 4, seed in any::<u64>()) {
            let index = seed % size;
            prop_assert!(Plan::inclusion(index, size).unwrap().nodes().count() <= 128);
            prop_assert!(Plan::consistency(index + 1, size).unwrap().nodes().count() <= 128);
            for node in edge(size) {
                prop_assert!(node.row() < size && node.level <= completed_by(node.row()));
            }
        }

        #[test]
        fn verifiers_survive_any_input(index in any::<u64>(), size in any::<u64>(), steps in 0..70_usize) {
            let proof = vec![empty_root(); steps];
            prop_assert!(verify_inclusion(index, size, empty_root(), &proof, leaf(b"")).is_err());
            prop_assert!(verify_consistency(index, size, empty_root(), leaf(b""), &proof).is_err());
        }
    }
}
