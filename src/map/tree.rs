//! A persistent B+tree of intervals that do not overlap: what makes a clone O(1) and a lookup
//! O(log n).
//!
//! It alone knows how trees share structure: a clone shares every node, and a change copies only
//! the nodes on its path. Leaves are sized to what they hold, and entries to what tells them from
//! others of their leaf.
//!
//! Invariants:
//! 1. Entries are in order, not empty, and do not overlap. No node is empty; an empty tree has
//!    none.
//! 2. The bound of every child is exactly the start of its first entry. Hence an entry never
//!    reaches beyond the next child's bound, and one descent finds the entry that holds a byte.
//! 3. A node that two trees can reach is never changed, but for [`Tree::rewrite_pass`], which all
//!    of them are meant to see and which keeps every leaf's interval.
//! 4. The [`Account`] has been told of each entry of each distinct node exactly once, however many
//!    trees share the node. An operation's gains and losses come in any order, but never is an
//!    entry lost that was not gained.
//! 5. A node that changes loses its stamp, so that a pass never takes it for what it was.
//! 6. All leaves are at one depth. It grows only when the root overflows, so that recursion, which
//!    is as deep as the tree is high, is bounded.
//!
//! Deliberately not here: what an entry means (`extent`), whose tree it is and what is counted
//! (`map`), and how nodes look on disk (`log`).

mod discarded;
mod dump;
mod entries;
mod node;
mod pass;

pub(crate) use discarded::Discarded;
pub(crate) use dump::{Dumping, Loader, NodeRef};
pub(crate) use entries::Numbers;

use entries::Entries;
use node::{Change, Child, Inner, Leaf, Link};
use std::cell::Ref;

/// An interval and what is true of it.
pub(crate) trait Entry: Copy + 'static {
    /// Its first position.
    fn start(&self) -> u64;
    /// The position behind its last; greater than its start.
    fn end(&self) -> u64;
    /// The part `[start, end)` of it, which lies in it and is not empty.
    fn slice(&self, start: u64, end: u64) -> Self;
    /// One entry for both, if `next` continues this one exactly.
    fn join(&self, next: &Self) -> Option<Self>;
    /// What it is in numbers, of which the first is its start. A leaf stores these.
    fn numbers(&self) -> Numbers;
    /// The inverse of [`Entry::numbers`].
    fn from_numbers(numbers: Numbers) -> Self;
}

/// Is told of every entry that begins or ceases to exist in some node, and of the leaves' memory.
///
/// An entry of a node that many trees share counts once; when a shared leaf is copied because one
/// of its owners changes it, its entries are gained again.
pub(crate) trait Account<E: Entry> {
    /// One more node holds `entry`.
    fn gain(&mut self, entry: &E);
    /// One node less holds `entry`.
    fn lose(&mut self, entry: &E);
    /// A leaf took `from` bytes of memory and takes `to`: none before it begins, none when it ends.
    fn resize(&mut self, _from: usize, _to: usize) {}

    /// An owner gives up a tree, or what was a part of one. It is lost at once, or bit by bit if
    /// it is kept as [`Discarded`].
    fn discard(&mut self, tree: Tree<E>)
    where
        Self: Sized,
    {
        if let Some(root) = tree.root {
            root.release(self);
        }
    }
}

/// For trees whose entries nobody counts.
impl<E: Entry> Account<E> for () {
    fn gain(&mut self, _entry: &E) {}
    fn lose(&mut self, _entry: &E) {}
}

/// A tree, or rather one owner's share in the nodes of many.
///
/// Dropping one frees memory but tells no [`Account`]: an accounted tree ends in [`Tree::release`].
pub(crate) struct Tree<E> {
    root: Option<Link<E>>,
}

impl<E: Entry> Tree<E> {
    /// A tree of no entries.
    pub(crate) fn new() -> Tree<E> {
        Tree { root: None }
    }

    /// Whether it has no entries.
    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// A second tree of the same entries, in constant time. Neither sees the other's changes.
    pub(crate) fn share(&self) -> Tree<E> {
        Tree {
            root: self.root.clone(),
        }
    }

    /// Puts `entry` in the place of all that it overlaps, joined with its neighbours if they allow.
    pub(crate) fn insert(&mut self, entry: E, account: &mut impl Account<E>) {
        assert!(entry.start() < entry.end(), "an entry is never empty");
        let Some(root) = &self.root else {
            account.gain(&entry);
            self.root = Some(Link::leaf(&[entry], account));
            return;
        };
        let place = root.descend(entry.start());
        // Strictly before the limit: an entry that starts right there may be one to join.
        let alone =
            entry.end() < place.limit && (place.is_leftmost || place.leaf.first() < entry.start());
        let entry = match alone {
            true => entry,
            false => self.absorb(entry, account),
        };
        self.apply(&Change::insert(entry), account);
    }

    /// Leaves nothing in `[start, end)`, in O(log n + removed).
    pub(crate) fn remove(&mut self, start: u64, end: u64, account: &mut impl Account<E>) {
        // A change copies what is shared on its path, so nothing is changed in vain.
        if self.range(start, end).next().is_some() {
            self.apply(&Change::remove(start, end), account);
        }
    }

    /// The entries that overlap `[start, end)`, in order, clipped to it.
    ///
    /// It borrows a leaf at a time: while it lives, [`Tree::rewrite_pass`] of any tree panics.
    pub(crate) fn range(&self, start: u64, end: u64) -> Range<'_, E> {
        let mut range = Range {
            tree: self,
            leaf: None,
            index: 0,
            limit: u64::MAX,
            start,
            end,
        };
        if start < end {
            range.seek(start);
        }
        range
    }

    /// The whole entry that holds position `at`, or else the first that starts behind it.
    pub(crate) fn first_at_or_after(&self, at: u64) -> Option<E> {
        let root = self.root.as_ref()?;
        let place = root.descend(at);
        let entries = place.leaf.entries.borrow();
        match entries.get(entries.first_behind(at)) {
            Some(entry) => Some(entry),
            None if place.limit == u64::MAX => None,
            None => root.descend(place.limit).leaf.entries.borrow().get(0),
        }
    }

    /// Gives up this owner's share: the entries of nodes that nobody else holds are lost, when the
    /// account likes.
    pub(crate) fn release(self, account: &mut impl Account<E>) {
        account.discard(self);
    }

    /// Makes `[start, end)` what it is in `source`, its gaps too.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn move_range_from(
        &mut self,
        source: &Tree<E>,
        start: u64,
        end: u64,
        account: &mut impl Account<E>,
    ) {
        self.remove(start, end, account);
        for entry in source.range(start, end) {
            self.insert(entry, account);
        }
    }

    /// Joins `entry` with its neighbours where it can, and makes room for the result, so that it
    /// can be put into one leaf though it reaches into others.
    fn absorb(&mut self, entry: E, account: &mut impl Account<E>) -> E {
        let mut whole = entry;
        let before = entry.start().checked_sub(1);
        if let Some(left) = before.and_then(|at| self.holding(at)) {
            let left = left.slice(left.start(), entry.start());
            whole = left.join(&whole).unwrap_or(whole);
        }
        if let Some(right) = self.holding(entry.end()) {
            let right = right.slice(entry.end(), right.end());
            whole = whole.join(&right).unwrap_or(whole);
        }
        self.remove(whole.start(), whole.end(), account);
        whole
    }

    /// The entry that holds position `at`.
    fn holding(&self, at: u64) -> Option<E> {
        self.first_at_or_after(at)
            .filter(|entry| entry.start() <= at)
    }

    /// Makes a change whose entry, if it has one, overlaps nothing outside the leaf of its start.
    fn apply(&mut self, change: &Change<E>, account: &mut impl Account<E>) {
        let Some(root) = &mut self.root else {
            if let Some(entry) = change.entry {
                account.gain(&entry);
                self.root = Some(Link::leaf(&[entry], account));
            }
            return;
        };
        let mut siblings = root.change(u64::MAX, change, account).siblings;
        while !siblings.is_empty() {
            let old = self.root.take().expect("a tree that has just grown");
            siblings.insert(0, Child::new(old));
            let (root, more) = Inner::split(siblings);
            self.root = Some(root);
            siblings = more;
        }
        self.lower();
    }

    /// Removes a root that has become useless: one without entries, or with a single child.
    fn lower(&mut self) {
        while let Some(root) = &mut self.root {
            let only = match root {
                Link::Leaf(leaf) if leaf.entries.borrow().is_empty() => None,
                Link::Inner(inner) if inner.children.is_empty() => None,
                Link::Inner(inner) if inner.children.len() == 1 => {
                    Some(inner.children[0].link.clone())
                }
                _ => return,
            };
            self.root = only;
        }
    }
}

/// The entries of a tree in a range: what [`Tree::range`] returns.
///
/// It has no stack: at the end of a leaf it descends again, once in a hundred entries, and so
/// costs no allocation.
pub(crate) struct Range<'a, E> {
    tree: &'a Tree<E>,
    leaf: Option<Ref<'a, Entries<E>>>,
    index: usize,
    /// Where the next leaf starts; `u64::MAX` if there is none.
    limit: u64,
    start: u64,
    end: u64,
}

impl<E: Entry> Range<'_, E> {
    /// Goes to the first entry that ends behind `at`, in the leaf where `at` belongs.
    fn seek(&mut self, at: u64) {
        let Some(root) = &self.tree.root else { return };
        let place = root.descend(at);
        let leaf = place.leaf.entries.borrow();
        self.index = leaf.first_behind(at);
        self.limit = place.limit;
        self.leaf = Some(leaf);
    }
}

impl<E: Entry> Iterator for Range<'_, E> {
    type Item = E;

    fn next(&mut self) -> Option<E> {
        loop {
            let leaf = self.leaf.as_ref()?;
            if let Some(entry) = leaf.get(self.index) {
                let start = entry.start().max(self.start);
                let end = entry.end().min(self.end);
                if start < end {
                    self.index += 1;
                    let whole = start == entry.start() && end == entry.end();
                    return Some(if whole {
                        entry
                    } else {
                        entry.slice(start, end)
                    });
                }
                self.leaf = None;
            } else if self.limit < self.end {
                self.seek(self.limit);
            } else {
                self.leaf = None;
            }
        }
    }
}

impl<E: Entry> Leaf<E> {
    /// Where its first entry starts.
    fn first(&self) -> u64 {
        self.entries.borrow().first()
    }
}

#[cfg(test)]
mod tests;
