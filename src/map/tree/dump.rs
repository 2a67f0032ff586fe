//! Trees to lists of nodes and back, with all that they share.
//!
//! A dump names each distinct node once, children before parents, and a node by its index in that
//! order. A [`Loader`] takes the same list; it trusts nothing in it, for it comes from disk.
//!
//! Invariants:
//! 1. What a loader accepts is a tree: ordered, of one depth, and without overlap. Overlap being
//!    refused, no node occurs twice below one parent, and walking it takes no longer than its list.
//! 2. No node that is dumped holds more than its maximum. A leaf that a rewrite has filled beyond
//!    it is dumped in pieces, and so is what then has too many children.
//! 3. A loader holds a share of every node until [`Loader::finish`], which loses the entries of
//!    those that no tree has claimed.
//!
//! Deliberately not here: bytes (`log`), and what is dumped with a tree (`map`).

use super::node::{Child, INNER_MAX, LEAF_MAX, Link, even};
use super::{Account, Entry, Tree};
use std::ops::Range;

/// Highest tree that is accepted: recursion is as deep. Of nodes a third full, eight levels are
/// more than memory can hold, and twice that is still no depth for a stack.
const HEIGHT_MAX: u8 = 16;

/// A node as it is dumped and loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NodeRef<'a, E> {
    /// A node of entries.
    Leaf(&'a [E]),
    /// A node of nodes, which are named by their indices.
    Inner(&'a [u32]),
}

impl<E: Entry> Tree<E> {
    /// Emits every node that this pass has not emitted yet, children before their parents.
    ///
    /// `next_index` counts them. Returns the index of the root; an empty tree has none. An index
    /// names what the node was when it was emitted: a rewrite afterwards does not show in it.
    pub(crate) fn dump(
        &self,
        pass: u64,
        next_index: &mut u32,
        emit: &mut dyn FnMut(NodeRef<'_, E>),
    ) -> Option<u32> {
        assert_ne!(pass, 0);
        let mut dump = Dump {
            pass,
            next_index,
            emit,
        };
        let mut top = dump.node(self.root.as_ref()?);
        while top.len() > 1 {
            top = dump.inner(&top.collect::<Vec<u32>>());
        }
        Some(top.start)
    }
}

struct Dump<'a, E> {
    pass: u64,
    next_index: &'a mut u32,
    emit: &'a mut dyn FnMut(NodeRef<'_, E>),
}

impl<E: Entry> Dump<'_, E> {
    /// The indices of a node, which has several where it is more than one should hold.
    fn node(&mut self, link: &Link<E>) -> Range<u32> {
        if link.stamp().is(self.pass) {
            return link.stamp().indices();
        }
        let indices = match link {
            Link::Leaf(leaf) => {
                let entries: Vec<E> = leaf.entries.borrow().iter().collect();
                let pieces = entries.chunks(even(entries.len(), LEAF_MAX));
                self.emit_all(pieces.map(NodeRef::Leaf))
            }
            Link::Inner(inner) => {
                let children = inner.children.iter();
                let children: Vec<u32> =
                    children.flat_map(|child| self.node(&child.link)).collect();
                self.inner(&children)
            }
        };
        link.stamp().dump(self.pass, &indices);
        indices
    }

    fn inner(&mut self, children: &[u32]) -> Range<u32> {
        let pieces = children.chunks(even(children.len(), INNER_MAX));
        self.emit_all(pieces.map(NodeRef::Inner))
    }

    fn emit_all<'b>(&mut self, nodes: impl Iterator<Item = NodeRef<'b, E>>) -> Range<u32> {
        let first = *self.next_index;
        for node in nodes {
            (self.emit)(node);
            let next = self.next_index.checked_add(1);
            *self.next_index = next.expect("fewer nodes than indices");
        }
        first..*self.next_index
    }
}

/// Makes trees of the nodes of a dump.
pub(crate) struct Loader<E> {
    nodes: Vec<Loaded<E>>,
}

struct Loaded<E> {
    link: Link<E>,
    end: u64,
    height: u8,
}

impl<E: Entry> Loader<E> {
    /// A loader that has seen no node.
    pub(crate) fn new() -> Loader<E> {
        Loader { nodes: Vec::new() }
    }

    /// Takes the next node, whose index is the number of those before it.
    ///
    /// # Errors
    ///
    /// What is wrong with it. It is not taken then; the loader can go on or finish.
    pub(crate) fn push(
        &mut self,
        node: NodeRef<'_, E>,
        account: &mut impl Account<E>,
    ) -> Result<(), &'static str> {
        if u32::try_from(self.nodes.len()).is_err() {
            return Err("more nodes than indices");
        }
        let loaded = match node {
            NodeRef::Leaf(entries) => load_leaf(entries, account)?,
            NodeRef::Inner(indices) => self.load_inner(indices)?,
        };
        self.nodes.push(loaded);
        Ok(())
    }

    /// A tree whose root is the node of that index; any number may be made of one root.
    ///
    /// # Errors
    ///
    /// There is no such node.
    pub(crate) fn tree(&self, root: u32) -> Result<Tree<E>, &'static str> {
        let node = self.nodes.get(root as usize).ok_or("no such root")?;
        Ok(Tree {
            root: Some(node.link.clone()),
        })
    }

    /// Loses the nodes that are in no tree.
    pub(crate) fn finish(mut self, account: &mut impl Account<E>) {
        // Parents first: a child without any left is found unshared when its turn comes.
        while let Some(node) = self.nodes.pop() {
            node.link.release(account);
        }
    }

    fn load_inner(&self, indices: &[u32]) -> Result<Loaded<E>, &'static str> {
        let mut children: Vec<Child<E>> = Vec::new();
        let mut end = 0;
        let mut height = None;
        for &index in indices {
            let node = self.nodes.get(index as usize).ok_or("no such child")?;
            let child = Child::new(node.link.clone());
            if !children.is_empty() && child.first < end {
                return Err("children out of order");
            }
            if height.is_some_and(|height| height != node.height) {
                return Err("children of different heights");
            }
            (end, height) = (node.end, Some(node.height));
            children.push(child);
        }
        let height = height.ok_or("a node without children")? + 1;
        if height > HEIGHT_MAX {
            return Err("a tree too high");
        }
        children.shrink_to_fit();
        Ok(Loaded {
            link: Link::inner(children),
            end,
            height,
        })
    }
}

fn load_leaf<E: Entry>(
    entries: &[E],
    account: &mut impl Account<E>,
) -> Result<Loaded<E>, &'static str> {
    let last = entries.last().ok_or("a leaf without entries")?;
    if entries.iter().any(|entry| entry.start() >= entry.end()) {
        return Err("an empty entry");
    }
    if entries.windows(2).any(|two| two[0].end() > two[1].start()) {
        return Err("entries out of order");
    }
    entries.iter().for_each(|entry| account.gain(entry));
    Ok(Loaded {
        link: Link::leaf(entries, account),
        end: last.end(),
        height: 0,
    })
}
