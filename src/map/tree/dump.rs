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
    /// A dump of the tree as it is, of the nodes that this pass has not dumped yet.
    pub(crate) fn begin_dump(&self, pass: u64) -> Dumping<E> {
        assert_ne!(pass, 0);
        Dumping {
            pass,
            next: self.root.clone(),
            path: Vec::new(),
            root: None,
        }
    }

    /// Emits every node that this pass has not emitted yet. Returns the index of the root; an empty
    /// tree has none.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn dump(
        &self,
        pass: u64,
        next_index: &mut u32,
        emit: &mut dyn FnMut(NodeRef<'_, E>),
    ) -> Option<u32> {
        let mut dumping = self.begin_dump(pass);
        assert!(dumping.step(usize::MAX, next_index, emit), "no end");
        dumping.root()
    }
}

/// A dump under way.
pub(crate) struct Dumping<E> {
    pass: u64,
    /// What is looked at next, below the last node of the path.
    next: Option<Link<E>>,
    /// Inner nodes, from the root on, of which some children are dumped.
    path: Vec<Begun<E>>,
    root: Option<Range<u32>>,
}

/// An inner node, and the indices of its children so far.
struct Begun<E> {
    link: Link<E>,
    children_done: usize,
    indices: Vec<u32>,
}

impl<E: Entry> Dumping<E> {
    /// The root's index; none: the tree is empty, or the dump is not at its end.
    pub(crate) fn root(&self) -> Option<u32> {
        self.root.as_ref().map(|root| root.start)
    }

    /// Goes on for up to `leaves_max` leaves, children before their parents. True: this is the end.
    ///
    /// `next_index` counts the nodes that are emitted. An index names what the node was then: a
    /// rewrite afterwards does not show in it.
    pub(crate) fn step(
        &mut self,
        leaves_max: usize,
        next_index: &mut u32,
        emit: &mut dyn FnMut(NodeRef<'_, E>),
    ) -> bool {
        let mut out = Emit { next_index, emit };
        for _ in 0..leaves_max {
            let Some(mut link) = self.next.take() else {
                return true;
            };
            while let (Link::Inner(inner), false) = (&link, link.stamp().is(self.pass)) {
                let first = inner.children[0].link.clone();
                self.path.push(Begun {
                    link,
                    children_done: 0,
                    indices: Vec::new(),
                });
                link = first;
            }
            if let (Link::Leaf(leaf), false) = (&link, link.stamp().is(self.pass)) {
                let entries: Vec<E> = leaf.entries.borrow().iter().collect();
                let pieces = entries.chunks(even(entries.len(), LEAF_MAX));
                let indices = out.all(pieces.map(NodeRef::Leaf));
                link.stamp().dump(self.pass, &indices);
            }
            let indices = link.stamp().indices();
            self.next = self.note(indices, &mut out);
        }
        self.next.is_none()
    }

    /// A node below the path is done. Ends those inner nodes that are done with it, and returns
    /// what comes next.
    fn note(&mut self, mut indices: Range<u32>, out: &mut Emit<'_, E>) -> Option<Link<E>> {
        while let Some(last) = self.path.last_mut() {
            last.indices.extend(indices);
            last.children_done += 1;
            let Link::Inner(inner) = &last.link else {
                unreachable!("the path is of inner nodes");
            };
            if let Some(next) = inner.children.get(last.children_done) {
                return Some(next.link.clone());
            }
            indices = out.inner(&last.indices);
            last.link.stamp().dump(self.pass, &indices);
            self.path.pop();
        }
        while indices.len() > 1 {
            indices = out.inner(&indices.collect::<Vec<u32>>());
        }
        self.root = Some(indices);
        None
    }
}

/// Emits nodes, and counts them.
struct Emit<'a, E> {
    next_index: &'a mut u32,
    emit: &'a mut dyn FnMut(NodeRef<'_, E>),
}

impl<E: Entry> Emit<'_, E> {
    fn inner(&mut self, children: &[u32]) -> Range<u32> {
        let pieces = children.chunks(even(children.len(), INNER_MAX));
        self.all(pieces.map(NodeRef::Inner))
    }

    fn all<'b>(&mut self, nodes: impl Iterator<Item = NodeRef<'b, E>>) -> Range<u32> {
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
