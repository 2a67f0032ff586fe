//! The nodes of the tree, and the one recursive change of them.
//!
//! It alone knows how full a node is kept and how it is copied, split and merged. An insertion and
//! a removal are the same [`Change`]: an interval loses what it holds and may gain an entry.
//!
//! Invariants, besides those of the tree:
//! 1. A change leaves no node above its maximum. A leaf that a rewrite has filled beyond it is
//!    split by the next change that touches it, and by a dump.
//! 2. A node that shrinks below its minimum is merged or evened out with a neighbour, if it has
//!    one. A node that was born small by an append is left alone: it is about to be filled.
//!
//! Deliberately not here: entries that reach over several leaves (`Tree::insert` cuts them free
//! first), and stamps but for clearing them (`pass`, `dump`).

use super::{Account, Entries, Entry, Tree};
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

/// Entries of a leaf. A leaf costs about 200 bytes beside its entries, and random insertion leaves
/// it 69 % full: 128 make that 2.3 bytes an entry, beside the four to six that a page takes itself.
/// More would save less than a byte, and each is counted when a shared leaf is copied.
pub(super) const LEAF_MAX: usize = 128;

/// A third: far enough from half that a leaf just split is not merged again at once.
pub(super) const LEAF_MIN: usize = LEAF_MAX / 3;

/// Children of an inner node: three levels reach 260,000 leaves, and a copied path stays small.
pub(super) const INNER_MAX: usize = 64;

/// A third, as for leaves.
pub(super) const INNER_MIN: usize = INNER_MAX / 3;

/// By how many items a node's memory grows: doubling would leave a quarter of it unused, and
/// single steps would move the node at every insertion.
const GROWTH: usize = 4;

/// Memory of a node beside its own and its list's: the counters of its `Rc`, and for each of two
/// blocks what the allocator adds, eight bytes and half of its granule of 16.
pub(super) const NODE_BYTES: usize = 2 * size_of::<usize>() + 2 * 16;

/// A leaf's share in the nodes above it: a [`Child`] of 24 bytes in one that random insertion
/// leaves 69 % full, and a bit more for that node itself.
const PLACE_BYTES: usize = 40;

/// The index of a node that was visited and not dumped.
const NO_INDEX: u32 = u32::MAX;

/// The mark of a pass on a node: that it was there, and the numbers that a dump gave the node.
#[derive(Default)]
pub(super) struct Stamp {
    pass: Cell<u64>,
    /// The first of them, and how many follow: more than one where the node was dumped in pieces.
    index: Cell<u32>,
    pieces: Cell<u32>,
}

impl Stamp {
    pub(super) fn is(&self, pass: u64) -> bool {
        self.pass.get() == pass
    }

    /// The numbers that a dump gave the node in the pass that was here last.
    pub(super) fn indices(&self) -> Range<u32> {
        let index = self.index.get();
        assert_ne!(index, NO_INDEX, "a dump has a pass of its own");
        index..index + self.pieces.get()
    }

    pub(super) fn visit(&self, pass: u64) {
        self.pass.set(pass);
        self.index.set(NO_INDEX);
    }

    pub(super) fn dump(&self, pass: u64, indices: &Range<u32>) {
        self.pass.set(pass);
        self.index.set(indices.start);
        self.pieces.set(indices.end - indices.start);
    }
}

/// A node of entries. They are in a cell because a rewrite changes them under all who share them.
pub(super) struct Leaf<E> {
    pub(super) entries: RefCell<Entries<E>>,
    pub(super) stamp: Stamp,
}

/// A node of nodes.
pub(super) struct Inner<E> {
    pub(super) children: Vec<Child<E>>,
    pub(super) stamp: Stamp,
}

/// A node and the start of its first entry.
pub(super) struct Child<E> {
    pub(super) first: u64,
    pub(super) link: Link<E>,
}

/// A share in a node.
pub(super) enum Link<E> {
    Leaf(Rc<Leaf<E>>),
    Inner(Rc<Inner<E>>),
}

/// The leaf where a position belongs, and what lies beside it.
pub(super) struct Place<'a, E> {
    pub(super) leaf: &'a Leaf<E>,
    /// Where the next leaf starts; `u64::MAX` if there is none.
    pub(super) limit: u64,
    pub(super) is_leftmost: bool,
}

/// `[start, end)` loses what it holds, and `entry`, which is just as long, takes its place.
pub(super) struct Change<E> {
    start: u64,
    end: u64,
    pub(super) entry: Option<E>,
}

/// What a change did to a node, for its parent to act on.
pub(super) struct Changed<E> {
    /// The nodes that were split off, which follow it.
    pub(super) siblings: Vec<Child<E>>,
    /// Whether it holds less than before.
    is_smaller: bool,
}

impl<E: Entry> Change<E> {
    pub(super) fn insert(entry: E) -> Change<E> {
        Change {
            start: entry.start(),
            end: entry.end(),
            entry: Some(entry),
        }
    }

    pub(super) fn remove(start: u64, end: u64) -> Change<E> {
        Change {
            start,
            end,
            entry: None,
        }
    }
}

impl<E> Clone for Link<E> {
    fn clone(&self) -> Link<E> {
        match self {
            Link::Leaf(leaf) => Link::Leaf(Rc::clone(leaf)),
            Link::Inner(inner) => Link::Inner(Rc::clone(inner)),
        }
    }
}

impl<E: Entry> Child<E> {
    pub(super) fn new(link: Link<E>) -> Child<E> {
        Child {
            first: link.first(),
            link,
        }
    }
}

impl<E: Entry> Link<E> {
    /// A leaf of entries that the account knows.
    pub(super) fn leaf(entries: &[E], account: &mut impl Account<E>) -> Link<E> {
        let entries = Entries::new(entries);
        account.resize(0, leaf_bytes(&entries));
        Link::Leaf(Rc::new(Leaf {
            entries: RefCell::new(entries),
            stamp: Stamp::default(),
        }))
    }

    pub(super) fn inner(children: Vec<Child<E>>) -> Link<E> {
        Link::Inner(Rc::new(Inner {
            children,
            stamp: Stamp::default(),
        }))
    }

    pub(super) fn stamp(&self) -> &Stamp {
        match self {
            Link::Leaf(leaf) => &leaf.stamp,
            Link::Inner(inner) => &inner.stamp,
        }
    }

    /// Where the first entry starts; the node is not empty.
    pub(super) fn first(&self) -> u64 {
        match self {
            Link::Leaf(leaf) => leaf.first(),
            Link::Inner(inner) => inner.children[0].first,
        }
    }

    /// Finds the leaf where position `at` belongs.
    pub(super) fn descend(&self, at: u64) -> Place<'_, E> {
        let mut link = self;
        let mut limit = u64::MAX;
        let mut is_leftmost = true;
        loop {
            match link {
                Link::Leaf(leaf) => {
                    return Place {
                        leaf,
                        limit,
                        is_leftmost,
                    };
                }
                Link::Inner(inner) => {
                    let index = inner.child_at(at);
                    limit = inner.limit_of(index, limit);
                    is_leftmost &= index == 0;
                    link = &inner.children[index].link;
                }
            }
        }
    }

    /// Makes `change` in this node, whose entries all end at or before `limit`. It may be left
    /// empty.
    pub(super) fn change(
        &mut self,
        limit: u64,
        change: &Change<E>,
        account: &mut impl Account<E>,
    ) -> Changed<E> {
        match self {
            Link::Leaf(leaf) => change_leaf(own_leaf(leaf, account), change, account),
            Link::Inner(inner) => own_inner(inner).change(limit, change, account),
        }
    }

    /// Gives up this share of the node; what nobody else holds is lost.
    pub(super) fn release(self, account: &mut impl Account<E>) {
        for child in self.into_children(account) {
            child.link.release(account);
        }
    }

    /// Gives up this share of the node alone: what it leaves are shares in its children, if nobody
    /// else holds it.
    pub(super) fn into_children(self, account: &mut impl Account<E>) -> Vec<Child<E>> {
        match self {
            Link::Leaf(leaf) => {
                if let Some(leaf) = Rc::into_inner(leaf) {
                    let entries = leaf.entries.into_inner();
                    entries.iter().for_each(|entry| account.lose(&entry));
                    account.resize(leaf_bytes(&entries), 0);
                }
                Vec::new()
            }
            Link::Inner(inner) => {
                Rc::into_inner(inner).map_or_else(Vec::new, |inner| inner.children)
            }
        }
    }

    /// Whether somebody else holds it, too.
    pub(super) fn is_shared(&self) -> bool {
        match self {
            Link::Leaf(leaf) => Rc::strong_count(leaf) > 1,
            Link::Inner(inner) => Rc::strong_count(inner) > 1,
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Link::Leaf(leaf) => leaf.entries.borrow().is_empty(),
            Link::Inner(inner) => inner.children.is_empty(),
        }
    }

    pub(super) fn is_underfull(&self) -> bool {
        match self {
            Link::Leaf(leaf) => leaf.entries.borrow().len() < LEAF_MIN,
            Link::Inner(inner) => inner.children.len() < INNER_MIN,
        }
    }
}

impl<E: Entry> Inner<E> {
    /// Makes a node of `children`, and the siblings that follow it if they are too many for one.
    pub(super) fn split(mut children: Vec<Child<E>>) -> (Link<E>, Vec<Child<E>>) {
        let siblings = split_inner(&mut children, false);
        (Link::inner(children), siblings)
    }

    /// The child where position `at` belongs.
    pub(super) fn child_at(&self, at: u64) -> usize {
        let behind = self.children.partition_point(|child| child.first <= at);
        behind.saturating_sub(1)
    }

    /// What the entries of child `index` do not reach beyond, if this node's do not beyond `limit`.
    pub(super) fn limit_of(&self, index: usize, limit: u64) -> u64 {
        self.children
            .get(index + 1)
            .map_or(limit, |next| next.first)
    }

    fn change(
        &mut self,
        limit: u64,
        change: &Change<E>,
        account: &mut impl Account<E>,
    ) -> Changed<E> {
        let count = self.children.len();
        let low = self.child_at(change.start);
        let behind = &self.children[low + 1..];
        let is_reached = |child: &&Child<E>| child.first < change.end;
        // One by one, for those that are passed are about to be removed.
        let last = low + behind.iter().take_while(is_reached).count();
        // Children that lie in the interval wholly go unseen; at most one on either side is cut.
        let from = match self.children[low].first >= change.start {
            true if self.limit_of(low, limit) <= change.end => low,
            _ => low + 1,
        };
        let to = match self.limit_of(last, limit) <= change.end {
            true => last + 1,
            false => last.max(from),
        };
        let right_is_cut = to == last && from <= last;
        for child in self.children.drain(from..to.max(from)) {
            let root = Some(child.link);
            account.discard(Tree { root });
        }
        let mut is_smaller = false;
        if right_is_cut {
            is_smaller |= self.change_child(from, limit, change, account);
        }
        if from > low {
            is_smaller |= self.change_child(low, limit, change, account);
        }
        if is_smaller && right_is_cut {
            self.balance_if_underfull(low + 1, account);
        }
        if is_smaller {
            self.balance_if_underfull(low, account);
        }
        let siblings = split_inner(&mut self.children, low + 1 == count);
        Changed {
            is_smaller: self.children.len() < count,
            siblings,
        }
    }

    /// Makes `change` in a child, and keeps the list of children right. Tells whether the child is
    /// smaller than it was, or gone.
    fn change_child(
        &mut self,
        index: usize,
        limit: u64,
        change: &Change<E>,
        account: &mut impl Account<E>,
    ) -> bool {
        let limit = self.limit_of(index, limit);
        let child = &mut self.children[index];
        let changed = child.link.change(limit, change, account);
        if child.link.is_empty() {
            self.children.remove(index);
            return true;
        }
        child.first = child.link.first();
        if !changed.siblings.is_empty() {
            make_room(&mut self.children, changed.siblings.len());
            self.children.splice(index + 1..index + 1, changed.siblings);
        }
        changed.is_smaller
    }

    fn balance_if_underfull(&mut self, index: usize, account: &mut impl Account<E>) {
        let child = self.children.get(index);
        if child.is_some_and(|child| child.link.is_underfull()) {
            balance(&mut self.children, index, account);
        }
    }
}

/// Merges a child with a neighbour, or evens them out if they are too much for one node.
fn balance<E: Entry>(children: &mut Vec<Child<E>>, index: usize, account: &mut impl Account<E>) {
    if children.len() < 2 {
        return;
    }
    let left = index.min(children.len() - 2);
    let right = children.remove(left + 1).link;
    let siblings = match (&mut children[left].link, right) {
        (Link::Leaf(left), Link::Leaf(right)) => {
            let entries = own_leaf(left, account);
            let more = take_leaf(right, account);
            account.resize(leaf_bytes(&more), 0);
            let all = entries.iter().chain(more.iter()).collect();
            fill_leaf(entries, all, false, account)
        }
        (Link::Inner(left), Link::Inner(right)) => {
            let joined = &mut own_inner(left).children;
            let seam = joined.len();
            let mut more = take_inner(right);
            joined.reserve_exact(more.len());
            joined.append(&mut more);
            // A node with a single child could not mend it; now the child has a neighbour.
            if joined[seam - 1].link.is_underfull() || joined[seam].link.is_underfull() {
                balance(joined, seam - 1, account);
            }
            split_inner(joined, false)
        }
        _ => unreachable!("siblings are of one height"),
    };
    children.splice(left + 1..left + 1, siblings);
}

fn change_leaf<E: Entry>(
    entries: &mut Entries<E>,
    change: &Change<E>,
    account: &mut impl Account<E>,
) -> Changed<E> {
    let count = entries.len();
    let behind = edit(entries, change, account);
    let is_append = change.entry.is_some() && behind == entries.len();
    let siblings = match entries.len() > LEAF_MAX {
        true => fill_leaf(entries, entries.iter().collect(), is_append, account),
        false => Vec::new(),
    };
    Changed {
        is_smaller: entries.len() < count,
        siblings,
    }
}

/// Makes a change in a list of entries. Returns the index behind the last entry that is new.
fn edit<E: Entry>(
    entries: &mut Entries<E>,
    change: &Change<E>,
    account: &mut impl Account<E>,
) -> usize {
    let mut low = entries.first_behind(change.start);
    let reached = entries.iter_from(low);
    let reached = reached.take_while(|entry| entry.start() < change.end);
    let mut high = low + reached.count();
    let cut = |index: usize| entries.get(index).filter(|_| low < high);
    let mut left = cut(low)
        .filter(|first| first.start() < change.start)
        .map(|first| first.slice(first.start(), change.start));
    let mut right = cut(high.wrapping_sub(1))
        .filter(|last| last.end() > change.end)
        .map(|last| last.slice(change.end, last.end()));
    let middle = change.entry.map(|entry| {
        let mut whole = entry;
        let before = low.checked_sub(1).and_then(|index| entries.get(index));
        if let Some(joined) = left.and_then(|left| left.join(&whole)) {
            (whole, left) = (joined, None);
        } else if let Some(joined) = before.and_then(|before| before.join(&whole)) {
            (whole, low) = (joined, low - 1);
        }
        let behind = entries.get(high);
        if let Some(joined) = right.and_then(|right| whole.join(&right)) {
            (whole, right) = (joined, None);
        } else if let Some(joined) = behind.and_then(|behind| whole.join(&behind)) {
            (whole, high) = (joined, high + 1);
        }
        whole
    });
    let parts = [left, middle, right];
    let new = parts.iter().flatten();
    new.clone().for_each(|entry| account.gain(entry));
    let old = entries.iter_from(low).take(high - low);
    old.for_each(|entry| account.lose(&entry));
    let before = leaf_bytes(entries);
    entries.replace(low..high, new.clone().copied());
    account.resize(before, leaf_bytes(entries));
    low + new.count()
}

/// The entries of a leaf, for a change: a leaf that others share is copied.
fn own_leaf<'a, E: Entry>(
    leaf: &'a mut Rc<Leaf<E>>,
    account: &mut impl Account<E>,
) -> &'a mut Entries<E> {
    if Rc::strong_count(leaf) > 1 {
        let entries = copy_leaf(leaf, account);
        *leaf = Rc::new(Leaf {
            entries: RefCell::new(entries),
            stamp: Stamp::default(),
        });
    }
    let leaf = Rc::get_mut(leaf).expect("a node that nobody shares");
    leaf.stamp = Stamp::default();
    leaf.entries.get_mut()
}

/// An inner node, for a change: one that others share is copied.
fn own_inner<E: Entry>(inner: &mut Rc<Inner<E>>) -> &mut Inner<E> {
    if Rc::strong_count(inner) > 1 {
        *inner = Rc::new(Inner {
            children: copy_inner(inner),
            stamp: Stamp::default(),
        });
    }
    let inner = Rc::get_mut(inner).expect("a node that nobody shares");
    inner.stamp = Stamp::default();
    inner
}

fn take_leaf<E: Entry>(leaf: Rc<Leaf<E>>, account: &mut impl Account<E>) -> Entries<E> {
    match Rc::try_unwrap(leaf) {
        Ok(leaf) => leaf.entries.into_inner(),
        Err(shared) => copy_leaf(&shared, account),
    }
}

fn take_inner<E: Entry>(inner: Rc<Inner<E>>) -> Vec<Child<E>> {
    match Rc::try_unwrap(inner) {
        Ok(inner) => inner.children,
        Err(shared) => copy_inner(&shared),
    }
}

fn copy_leaf<E: Entry>(leaf: &Leaf<E>, account: &mut impl Account<E>) -> Entries<E> {
    let entries = leaf.entries.borrow();
    entries.iter().for_each(|entry| account.gain(&entry));
    let copy = entries.clone();
    account.resize(0, leaf_bytes(&copy));
    copy
}

fn copy_inner<E: Entry>(inner: &Inner<E>) -> Vec<Child<E>> {
    let copy = |child: &Child<E>| Child {
        first: child.first,
        link: child.link.clone(),
    };
    inner.children.iter().map(copy).collect()
}

/// Makes `all` the entries of a leaf, and siblings that follow it of what is too much for one.
fn fill_leaf<E: Entry>(
    entries: &mut Entries<E>,
    mut all: Vec<E>,
    is_append: bool,
    account: &mut impl Account<E>,
) -> Vec<Child<E>> {
    let before = leaf_bytes(entries);
    let pieces = split(&mut all, LEAF_MAX, is_append);
    *entries = Entries::new(&all);
    account.resize(before, leaf_bytes(entries));
    let leaves = pieces.iter().map(|piece| Link::leaf(piece, account));
    leaves.map(Child::new).collect()
}

/// Memory of a leaf of such entries; one without any is about to go and counts as gone.
pub(super) fn leaf_bytes<E: Entry>(entries: &Entries<E>) -> usize {
    match entries.is_empty() {
        true => 0,
        false => NODE_BYTES + size_of::<Leaf<E>>() + PLACE_BYTES + entries.capacity_bytes(),
    }
}

fn split_inner<E: Entry>(children: &mut Vec<Child<E>>, is_append: bool) -> Vec<Child<E>> {
    if children.len() <= INNER_MAX {
        return Vec::new();
    }
    let pieces = split(children, INNER_MAX, is_append);
    let nodes = pieces.into_iter().map(Link::inner);
    nodes.map(Child::new).collect()
}

/// Takes from `items` what is too much for one node, in pieces that each fit one. They are of one
/// size, but after an append, when all are full but the last: more is about to follow it.
fn split<T>(items: &mut Vec<T>, max: usize, is_append: bool) -> Vec<Vec<T>> {
    let mut pieces = Vec::new();
    let each = match is_append {
        true => max,
        false => even(items.len(), max),
    };
    while items.len() > each {
        pieces.push(items.split_off((items.len() - 1) / each * each));
    }
    items.shrink_to_fit();
    pieces.reverse();
    pieces
}

/// Items of each piece when so many are divided evenly among as few pieces as hold `max` each.
pub(super) fn even(count: usize, max: usize) -> usize {
    count.div_ceil(count.div_ceil(max))
}

/// Sees to it that `more` items fit.
fn make_room<T>(items: &mut Vec<T>, more: usize) {
    if items.capacity() - items.len() < more {
        items.reserve_exact(more.max(GROWTH));
    }
}
