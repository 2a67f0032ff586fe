//! Passes: going once over every distinct node of many trees that share most of theirs.
//!
//! A pass is a number that the caller has not used before. What it has seen bears its stamp, so
//! that it is skipped wherever else it turns up, whole subtrees at a time. One that is interleaved
//! with another pass, or with changes, may see a node twice. It misses nothing that was in its tree
//! from beginning to end.
//!
//! Invariant: an inner node bears a stamp only when all its children have been seen.
//!
//! Deliberately not here: which trees there are, and in which order to go over them.

use super::node::{Inner, Leaf, Link, leaf_bytes};
use super::{Account, Entries, Entry, Tree};
use std::rc::Rc;

/// The stamp of a node that no pass has seen.
const NO_PASS: u64 = 0;

/// What a rewrite returns: whether it pushed a replacement, or leaves the entry as it is.
pub(crate) type Rewrite<'a, E> = dyn FnMut(&E, &mut Vec<E>) -> bool + 'a;

impl<E: Entry> Tree<E> {
    /// Visits the entries of the leaves that this pass has not seen, from position `from` on.
    ///
    /// Returns where to go on after `leaves_max` leaves. Those that are skipped are counted too,
    /// and a skipped subtree as one, so that a call's time is bounded.
    pub(crate) fn visit_pass(
        &self,
        pass: u64,
        from: u64,
        leaves_max: usize,
        visit: &mut dyn FnMut(&E),
    ) -> Option<u64> {
        let mut visit_leaf = |leaf: &Leaf<E>| {
            let entries = leaf.entries.borrow();
            entries.iter().for_each(|entry| visit(&entry));
        };
        self.walk(pass, from, leaves_max, &mut visit_leaf)
    }

    /// Like [`Tree::visit_pass`], but `rewrite` may replace entries, for all trees that share them.
    ///
    /// It returns `true` after pushing entries that cover exactly the interval of the one it was
    /// given. They are joined with neighbours in the same leaf where they allow.
    pub(crate) fn rewrite_pass(
        &self,
        pass: u64,
        from: u64,
        leaves_max: usize,
        rewrite: &mut Rewrite<'_, E>,
        account: &mut impl Account<E>,
    ) -> Option<u64> {
        let mut fresh = Fresh::new();
        let mut rewrite_leaf = |leaf: &Leaf<E>| fresh.rewrite(leaf, rewrite, account);
        self.walk(pass, from, leaves_max, &mut rewrite_leaf)
    }

    /// Estimates the memory in bytes of the nodes that this pass has not seen.
    #[cfg(test)]
    pub(crate) fn heap_bytes(&self, pass: u64) -> usize {
        assert_ne!(pass, NO_PASS);
        self.root.as_ref().map_or(0, |root| heap_bytes(root, pass))
    }

    fn walk(
        &self,
        pass: u64,
        from: u64,
        leaves_max: usize,
        visit: &mut dyn FnMut(&Leaf<E>),
    ) -> Option<u64> {
        assert_ne!(pass, NO_PASS);
        assert!(leaves_max > 0, "a walk of no steps would never end");
        let mut walk = Walk {
            pass,
            from,
            leaves_left: leaves_max,
            resume: None,
            visit,
        };
        walk.node(self.root.as_ref()?);
        walk.resume
    }
}

struct Walk<'a, E> {
    pass: u64,
    from: u64,
    leaves_left: usize,
    resume: Option<u64>,
    visit: &'a mut dyn FnMut(&Leaf<E>),
}

impl<E: Entry> Walk<'_, E> {
    fn node(&mut self, link: &Link<E>) {
        if let (Link::Inner(inner), false) = (link, link.stamp().is(self.pass)) {
            return self.inner(inner);
        }
        self.leaves_left -= 1;
        if let (Link::Leaf(leaf), false) = (link, link.stamp().is(self.pass)) {
            (self.visit)(leaf);
            leaf.stamp.visit(self.pass);
        }
    }

    fn inner(&mut self, inner: &Rc<Inner<E>>) {
        for child in &inner.children[inner.child_at(self.from)..] {
            if self.leaves_left == 0 {
                self.resume = Some(child.first);
                return;
            }
            self.node(&child.link);
            if self.resume.is_some() {
                return;
            }
        }
        let mut children = inner.children.iter();
        if children.all(|child| child.link.stamp().is(self.pass)) {
            inner.stamp.visit(self.pass);
        }
    }
}

/// What a leaf is to become, gathered while it is read; kept from leaf to leaf for its memory.
struct Fresh<E> {
    entries: Vec<E>,
    pushed: Vec<E>,
    lost: Vec<E>,
    /// The last entry, which may yet be joined, and whether the account must gain it.
    tail: Option<(E, bool)>,
}

impl<E: Entry> Fresh<E> {
    fn new() -> Fresh<E> {
        Fresh {
            entries: Vec::new(),
            pushed: Vec::new(),
            lost: Vec::new(),
            tail: None,
        }
    }

    fn rewrite(
        &mut self,
        leaf: &Leaf<E>,
        rewrite: &mut Rewrite<'_, E>,
        account: &mut impl Account<E>,
    ) {
        self.entries.clear();
        for entry in leaf.entries.borrow().iter() {
            self.pushed.clear();
            if rewrite(&entry, &mut self.pushed) {
                assert_covers(&self.pushed, &entry);
                self.lost.push(entry);
                for index in 0..self.pushed.len() {
                    self.push(self.pushed[index], true, account);
                }
            } else {
                self.push(entry, false, account);
            }
        }
        self.settle(account);
        if self.lost.is_empty() {
            return;
        }
        self.lost.drain(..).for_each(|entry| account.lose(&entry));
        let new = Entries::new(&self.entries);
        let new_bytes = leaf_bytes(&new);
        let old = leaf.entries.replace(new);
        account.resize(leaf_bytes(&old), new_bytes);
    }

    fn push(&mut self, entry: E, is_new: bool, account: &mut impl Account<E>) {
        if let Some((last, last_is_new)) = self.tail
            && (is_new || last_is_new)
            && let Some(joined) = last.join(&entry)
        {
            let old = [(last, last_is_new), (entry, is_new)];
            let old = old.into_iter().filter(|(_, is_new)| !is_new);
            self.lost.extend(old.map(|(entry, _)| entry));
            self.tail = Some((joined, true));
        } else {
            self.settle(account);
            self.tail = Some((entry, is_new));
        }
    }

    /// Makes the last entry final.
    fn settle(&mut self, account: &mut impl Account<E>) {
        if let Some((entry, is_new)) = self.tail.take() {
            self.entries.push(entry);
            if is_new {
                account.gain(&entry);
            }
        }
    }
}

fn assert_covers<E: Entry>(parts: &[E], whole: &E) {
    let mut at = whole.start();
    for part in parts {
        assert!(part.start() == at && at < part.end(), "parts in order");
        at = part.end();
    }
    assert_eq!(at, whole.end(), "a rewrite covers what it replaces");
}

#[cfg(test)]
fn heap_bytes<E: Entry>(link: &Link<E>, pass: u64) -> usize {
    use super::node::NODE_BYTES;
    if link.stamp().is(pass) {
        return 0;
    }
    link.stamp().visit(pass);
    match link {
        Link::Leaf(leaf) => {
            NODE_BYTES + size_of::<Leaf<E>>() + leaf.entries.borrow().capacity_bytes()
        }
        Link::Inner(inner) => {
            let own = inner.children.capacity() * size_of::<super::Child<E>>();
            let children = inner.children.iter();
            let below: usize = children.map(|child| heap_bytes(&child.link, pass)).sum();
            NODE_BYTES + size_of::<Inner<E>>() + own + below
        }
    }
}
