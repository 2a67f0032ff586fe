//! What is left of trees that were given up: nodes that are lost bit by bit.
//!
//! A tree of a million entries is given up by pushing its root here, and so as fast as one of ten.
//!
//! Invariants:
//! 1. A node that somebody else holds is not kept here: it is theirs.
//! 2. The entries of what is kept here are still accounted for, each until its leaf's turn.
//!
//! Deliberately not here: when the turns come.

use super::node::Link;
use super::{Account, Entry, Tree};

/// Nodes whose entries are still to be lost.
pub(crate) struct Discarded<E> {
    nodes: Vec<Link<E>>,
}

impl<E: Entry> Discarded<E> {
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Takes what an owner gives up.
    pub(crate) fn push(&mut self, tree: Tree<E>) {
        self.nodes
            .extend(tree.root.filter(|root| !root.is_shared()));
    }

    /// Loses up to `nodes_max` nodes; returns how many more it might have been.
    pub(crate) fn lose(&mut self, nodes_max: usize, account: &mut impl Account<E>) -> usize {
        let mut left = nodes_max;
        while left > 0
            && let Some(node) = self.nodes.pop()
        {
            let children = node
                .into_children(account)
                .into_iter()
                .map(|child| child.link);
            self.nodes.extend(children.filter(|it| !it.is_shared()));
            left -= 1;
        }
        left
    }
}

impl<E> Default for Discarded<E> {
    fn default() -> Discarded<E> {
        Discarded { nodes: Vec::new() }
    }
}
