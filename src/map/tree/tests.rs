//! The tree against a model, its invariants, its memory, and what a loader must refuse.
//!
//! The model is `rangemap::RangeMap` from positions to "which segment, and how far the log is from
//! the payload there", a value that does not change when an entry is split.

use super::node::{Child, INNER_MAX, LEAF_MAX, Link, leaf_bytes};
use super::{Account, Entry, Loader, NodeRef, Numbers, Tree};
use crate::map::extent::{Mapped, Zeroed};
use crate::map::live::Live;
use crate::types::{Location, PAYLOAD_BYTES_MAX, SegmentId};
use proptest::prelude::*;
use rangemap::RangeMap;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

type Model = RangeMap<u64, (u64, i128)>;

/// Places that the random tests use: few, so that entries meet.
const SPACE: u64 = 6000;

/// Trees that are alive at a time.
const TREES: usize = 6;

/// Segments of the random tests. The rewrite moves one to another, so that joins happen.
const SEGMENTS: u64 = 4;

fn mapped(start: u64, len: u32, segment: u64, offset: u32) -> Mapped {
    Mapped::new(start, len, Location::new(SegmentId(segment), offset))
}

/// The multiset of entries that the tree says exist, and the memory of their leaves.
#[derive(Default, PartialEq, Debug)]
struct Ledger {
    entries: BTreeMap<(u64, u32, u64), u32>,
    bytes: usize,
}

impl Account<Mapped> for Ledger {
    fn gain(&mut self, entry: &Mapped) {
        *self.entries.entry(key(entry)).or_default() += 1;
    }

    fn lose(&mut self, entry: &Mapped) {
        let count = self.entries.get_mut(&key(entry));
        let count = count.expect("lost what was gained");
        *count -= 1;
        if *count == 0 {
            self.entries.remove(&key(entry));
        }
    }

    fn resize(&mut self, from: usize, to: usize) {
        let rest = self.bytes.checked_sub(from);
        self.bytes = rest.expect("what was told of before") + to;
    }
}

fn key(entry: &Mapped) -> (u64, u32, u64) {
    (entry.start(), entry.len(), entry.at().to_bits())
}

/// A sequence of numbers that is the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound
    }
}

/// Where the entries of a random test lie: what decides how leaves store them.
#[derive(Clone, Copy, Debug)]
struct Layout {
    origin: u64,
    /// Positions from one place to the next.
    unit: u64,
    /// One entry in so many begins or ends between two places; none if 0.
    odd: u64,
    first_segment: u64,
}

/// Single bytes, pages, pages among which some entries are no pages, the last pages and segments
/// that there are, and places as far from each other as can be.
const LAYOUTS: [Layout; 5] = [
    Layout {
        origin: 0,
        unit: 1,
        odd: 0,
        first_segment: 0,
    },
    Layout {
        origin: 0,
        unit: 4096,
        odd: 0,
        first_segment: 1000,
    },
    Layout {
        origin: 1 << 40,
        unit: 4096,
        odd: 50,
        first_segment: 0,
    },
    Layout {
        origin: PAYLOAD_BYTES_MAX - 9000 * 4096,
        unit: 4096,
        odd: 50,
        first_segment: (1 << 36) - SEGMENTS,
    },
    Layout {
        origin: 0,
        unit: PAYLOAD_BYTES_MAX / 9000,
        odd: 9,
        first_segment: (1 << 36) - SEGMENTS,
    },
];

/// Trees, what they should be, and what the account says.
struct World {
    layout: Layout,
    trees: Vec<(Tree<Mapped>, Model)>,
    ledger: Ledger,
    pass: u64,
    dice: Dice,
}

/// A step of the random test. Numbers pick trees modulo how many there are.
#[derive(Clone, Copy, Debug)]
enum Step {
    Insert {
        tree: usize,
        count: u64,
        len_max: u64,
    },
    Append {
        tree: usize,
        count: u64,
        joins: bool,
    },
    Remove {
        tree: usize,
        count: u64,
        len_max: u64,
    },
    Share {
        tree: usize,
    },
    Release {
        tree: usize,
    },
    Splice {
        target: usize,
        source: usize,
    },
    Rewrite {
        leaves_max: usize,
    },
    Reload,
}

fn step() -> impl Strategy<Value = Step> {
    let tree = || 0..TREES;
    let len_max = || prop_oneof![Just(1u64), Just(3), Just(40), Just(2000)];
    prop_oneof![
        6 => (tree(), 1..600u64, len_max())
            .prop_map(|(tree, count, len_max)| Step::Insert { tree, count, len_max }),
        2 => (tree(), 1..600u64, any::<bool>())
            .prop_map(|(tree, count, joins)| Step::Append { tree, count, joins }),
        4 => (tree(), 1..300u64, len_max())
            .prop_map(|(tree, count, len_max)| Step::Remove { tree, count, len_max }),
        4 => tree().prop_map(|tree| Step::Share { tree }),
        1 => tree().prop_map(|tree| Step::Release { tree }),
        2 => (tree(), tree()).prop_map(|(target, source)| Step::Splice { target, source }),
        2 => (1..20usize).prop_map(|leaves_max| Step::Rewrite { leaves_max }),
        1 => Just(Step::Reload),
    ]
}

impl World {
    fn new(layout: Layout, seed: u64) -> World {
        World {
            layout,
            trees: vec![(Tree::new(), Model::new())],
            ledger: Ledger::default(),
            pass: 0,
            dice: Dice(seed),
        }
    }

    fn next_pass(&mut self) -> u64 {
        self.pass += 1;
        self.pass
    }

    fn step(&mut self, step: Step) {
        let count = self.trees.len();
        match step {
            Step::Insert {
                tree,
                count: inserts,
                len_max,
            } => {
                for _ in 0..inserts {
                    let len = 1 + self.dice.below(len_max);
                    self.insert(tree % count, len);
                }
            }
            Step::Append {
                tree,
                count: appends,
                joins,
            } => {
                self.append(tree % count, appends, joins);
            }
            Step::Remove {
                tree,
                count: removals,
                len_max,
            } => {
                for _ in 0..removals {
                    let (_, start) = self.place();
                    let end = start + self.layout.unit * (1 + self.dice.below(len_max));
                    let (tree, model) = &mut self.trees[tree % count];
                    tree.remove(start, end, &mut self.ledger);
                    model.remove(start..end);
                }
            }
            Step::Share { tree } if count < TREES => {
                let (tree, model) = &self.trees[tree % count];
                self.trees.push((tree.share(), model.clone()));
            }
            Step::Share { .. } => {}
            Step::Release { tree } => {
                let (tree, _) = self.trees.swap_remove(tree % count);
                tree.release(&mut self.ledger);
                if self.trees.is_empty() {
                    self.trees.push((Tree::new(), Model::new()));
                }
            }
            Step::Splice { target, source } => self.splice(target % count, source % count),
            Step::Rewrite { leaves_max } => self.rewrite(leaves_max),
            Step::Reload => self.reload(),
        }
    }

    /// A place, and the position there; sometimes one between it and the next.
    fn place(&mut self) -> (u64, u64) {
        let Layout {
            origin, unit, odd, ..
        } = self.layout;
        let place = self.dice.below(SPACE);
        let between = match odd > 0 && self.dice.below(odd) == 0 {
            true => self.dice.below(unit),
            false => 0,
        };
        (place, origin + place * unit + between)
    }

    /// Length of what is to fill one place: that of a page at most, as segments are not large.
    fn piece(&self) -> u64 {
        self.layout.unit.min(4096)
    }

    fn insert(&mut self, index: usize, len: u64) {
        let (place, start) = self.place();
        let piece = self.piece();
        let mut len = len * piece;
        if self.layout.odd > 0 && self.dice.below(self.layout.odd) == 0 {
            len -= self.dice.below(piece);
        }
        let segment = self.layout.first_segment + self.dice.below(SEGMENTS);
        // One distance per segment more often than not, so that neighbours join.
        let skew = if self.dice.below(4) == 0 { 7 } else { 0 };
        let between = (start - self.layout.origin) % self.layout.unit % piece;
        let offset = (place + skew) * piece + between;
        let (tree, model) = &mut self.trees[index];
        let entry = mapped(start, len as u32, segment, offset as u32);
        tree.insert(entry, &mut self.ledger);
        model.insert(start..entry.end(), value(&entry));
    }

    fn append(&mut self, index: usize, appends: u64, joins: bool) {
        let (mut place, mut start) = self.place();
        let (unit, piece) = (self.layout.unit, self.piece());
        let segment = self.layout.first_segment + 1;
        let (tree, model) = &mut self.trees[index];
        for step in 0..appends {
            let offset = (place + if joins { 0 } else { step % 2 }) * piece;
            let entry = mapped(start, 2 * piece as u32, segment, offset as u32);
            tree.insert(entry, &mut self.ledger);
            model.insert(start..entry.end(), value(&entry));
            (place, start) = (place + 2, start + 2 * unit);
        }
    }

    fn splice(&mut self, target: usize, source: usize) {
        let (_, start) = self.place();
        let end = start + self.dice.below(SPACE / 2) * self.layout.unit;
        if start == end {
            return;
        }
        let (source, source_model) = &self.trees[source];
        let (source, source_model) = (source.share(), source_model.clone());
        let (tree, model) = &mut self.trees[target];
        tree.move_range_from(&source, start, end, &mut self.ledger);
        model.remove(start..end);
        for (range, &value) in source_model.overlapping(start..end) {
            model.insert(range.start.max(start)..range.end.min(end), value);
        }
        source.release(&mut self.ledger);
    }

    /// Moves a part of one segment to another, and back to where it would join.
    fn rewrite(&mut self, leaves_max: usize) {
        let pass = self.next_pass();
        let first = self.layout.first_segment;
        let old = first + self.dice.below(SEGMENTS);
        let new = first + self.dice.below(SEGMENTS);
        let (_, from) = self.place();
        let moved = from..from + self.layout.unit * (1 + self.dice.below(SPACE / 2));
        for (tree, _) in &self.trees {
            let mut rewrite =
                |entry: &Mapped, fresh: &mut Vec<Mapped>| relocate(entry, old, new, &moved, fresh);
            let mut at = Some(0);
            while let Some(from) = at {
                at = tree.rewrite_pass(pass, from, leaves_max, &mut rewrite, &mut self.ledger);
                assert!(at.is_none_or(|at| at > from), "a pass goes on");
            }
        }
        for (_, model) in &mut self.trees {
            *model = relocated(model, old, new, &moved);
        }
    }

    fn reload(&mut self) {
        let pass = self.next_pass();
        let mut next_index = 0;
        let mut loader = Loader::new();
        let mut ledger = Ledger::default();
        let mut roots = Vec::new();
        for (tree, _) in &self.trees {
            let mut emit = |node: NodeRef<'_, Mapped>| {
                loader.push(node, &mut ledger).expect("a sound dump");
            };
            roots.push(tree.dump(pass, &mut next_index, &mut emit));
        }
        // Its memory may be less: what is loaded has no room to grow.
        let (loaded, dumped) = (&ledger.entries, &self.ledger.entries);
        assert_eq!(loaded, dumped, "a dump has each node once");
        for ((tree, _), root) in self.trees.iter_mut().zip(roots) {
            let loaded = root.map_or_else(Tree::new, |root| loader.tree(root).expect("a root"));
            std::mem::replace(tree, loaded).release(&mut self.ledger);
        }
        assert_eq!(
            self.ledger,
            Ledger::default(),
            "nothing of the old ones is left"
        );
        loader.finish(&mut ledger);
        self.ledger = ledger;
    }

    fn check(&mut self) {
        let pass = self.next_pass();
        let mut seen = Ledger::default();
        let mut leaves = BTreeSet::new();
        for (tree, model) in &self.trees {
            check_nodes(tree);
            let root = tree.root.as_ref();
            seen.bytes += root.map_or(0, |root| bytes_of_unseen(root, &mut leaves));
            let mut contents = Model::new();
            for entry in tree.range(0, u64::MAX) {
                assert!(!contents.overlaps(&(entry.start()..entry.end())));
                contents.insert(entry.start()..entry.end(), value(&entry));
            }
            assert_eq!(&contents, model);
            tree.visit_pass(pass, 0, usize::MAX, &mut |entry| seen.gain(entry));
        }
        assert!(seen == self.ledger, "the account is right");
        let (tree, model) = &self.trees[0];
        for _ in 0..5 {
            let start = self.layout.origin + self.dice.below(SPACE) * self.layout.unit;
            let end = start + self.dice.below(200) * self.layout.unit;
            check_lookup(tree, model, start, end);
        }
    }

    fn finish(mut self) {
        for (tree, _) in self.trees {
            tree.release(&mut self.ledger);
        }
        assert_eq!(self.ledger, Ledger::default());
    }
}

/// Memory of the leaves that are not among those seen.
fn bytes_of_unseen(link: &Link<Mapped>, seen: &mut BTreeSet<usize>) -> usize {
    match link {
        Link::Leaf(leaf) => match seen.insert(Rc::as_ptr(leaf).addr()) {
            true => leaf_bytes(&leaf.entries.borrow()),
            false => 0,
        },
        Link::Inner(inner) => {
            let children = inner.children.iter();
            children
                .map(|child| bytes_of_unseen(&child.link, seen))
                .sum()
        }
    }
}

fn value(entry: &Mapped) -> (u64, i128) {
    let distance = i128::from(entry.at().offset()) - i128::from(entry.start());
    (entry.at().segment().0, distance)
}

fn relocate(
    entry: &Mapped,
    old: u64,
    new: u64,
    moved: &Range<u64>,
    fresh: &mut Vec<Mapped>,
) -> bool {
    let start = entry.start().max(moved.start);
    let end = entry.end().min(moved.end);
    if entry.at().segment() != SegmentId(old) || start >= end {
        return false;
    }
    if entry.start() < start {
        fresh.push(entry.slice(entry.start(), start));
    }
    let part = entry.slice(start, end);
    fresh.push(mapped(start, part.len(), new, part.at().offset()));
    if end < entry.end() {
        fresh.push(entry.slice(end, entry.end()));
    }
    true
}

fn relocated(model: &Model, old: u64, new: u64, moved: &Range<u64>) -> Model {
    let mut result = model.clone();
    for (range, &(segment, distance)) in model.overlapping(moved) {
        let part = range.start.max(moved.start)..range.end.min(moved.end);
        if segment == old && part.start < part.end {
            result.insert(part, (new, distance));
        }
    }
    result
}

fn check_lookup(tree: &Tree<Mapped>, model: &Model, start: u64, end: u64) {
    let mut expected = Model::new();
    for (range, &value) in model.overlapping(start..end) {
        if start < end {
            expected.insert(range.start.max(start)..range.end.min(end), value);
        }
    }
    let mut found = Model::new();
    for entry in tree.range(start, end) {
        assert!(start <= entry.start() && entry.end() <= end);
        found.insert(entry.start()..entry.end(), value(&entry));
    }
    assert_eq!(found, expected);
    let first = tree.first_at_or_after(start);
    let covered = first.map(|entry| entry.start().max(start));
    let mut ranges = model.iter().map(|(range, _)| range);
    let expected = ranges.find(|range| range.end > start);
    assert_eq!(covered, expected.map(|range| range.start.max(start)));
}

/// Counts of a tree's nodes, shared or not.
#[derive(Default, Debug)]
struct Shape {
    leaves: usize,
    entries: usize,
    inner: usize,
    children: usize,
    underfull: usize,
}

fn check_nodes<E: Entry>(tree: &Tree<E>) -> Shape {
    let mut shape = Shape::default();
    if let Some(root) = &tree.root {
        check_node(root, &mut shape);
        // The root has no neighbour and may be thin.
        shape.underfull -= usize::from(root.is_underfull());
        let lonely = matches!(root, Link::Inner(inner) if inner.children.len() < 2);
        assert!(!lonely, "a root with one child");
    }
    shape
}

/// Returns the end of the node's last entry, and its height.
fn check_node<E: Entry>(link: &Link<E>, shape: &mut Shape) -> (u64, usize) {
    shape.underfull += usize::from(link.is_underfull());
    match link {
        Link::Leaf(leaf) => {
            let entries: Vec<E> = leaf.entries.borrow().iter().collect();
            assert!(entries.windows(2).all(|two| two[0].end() <= two[1].start()));
            assert!(entries.iter().all(|entry| entry.start() < entry.end()));
            shape.leaves += 1;
            shape.entries += entries.len();
            (entries.last().expect("an entry").end(), 0)
        }
        Link::Inner(inner) => {
            assert!(inner.children.len() <= INNER_MAX);
            shape.inner += 1;
            shape.children += inner.children.len();
            let mut last = None;
            for Child { first, link } in &inner.children {
                assert_eq!(*first, link.first());
                let (end, height) = check_node(link, shape);
                if let Some((last_end, last_height)) = last {
                    assert!(last_end <= *first && last_height == height);
                }
                last = Some((end, height));
            }
            let (end, height) = last.expect("a child");
            (end, height + 1)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn trees_match_their_models(
        layout in 0..LAYOUTS.len(),
        seed: u64,
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut world = World::new(LAYOUTS[layout], seed);
        for step in steps {
            world.step(step);
            world.check();
        }
        world.finish();
    }

    #[test]
    fn a_loader_survives_any_nodes(
        nodes in prop::collection::vec(
            prop_oneof![
                prop::collection::vec((0..200u64, 0..20u64), 0..4).prop_map(Ok),
                prop::collection::vec(0..12u32, 0..4).prop_map(Err),
            ],
            0..24,
        ),
        roots in prop::collection::vec(0..24u32, 0..6),
    ) {
        let mut ledger = BTreeMap::new();
        let mut loader = Loader::new();
        for node in &nodes {
            let result = match node {
                Ok(entries) => {
                    let entries: Vec<Raw> = entries.iter().map(|&(a, b)| Raw(a, b)).collect();
                    loader.push(NodeRef::Leaf(&entries), &mut ledger)
                }
                Err(children) => loader.push(NodeRef::Inner(children), &mut ledger),
            };
            let _ = result;
        }
        let trees: Vec<_> = roots.iter().filter_map(|&root| loader.tree(root).ok()).collect();
        loader.finish(&mut ledger);
        for mut tree in trees {
            check_entries(&tree);
            tree.insert(Raw(50, 130), &mut ledger);
            tree.remove(60, 70, &mut ledger);
            check_entries(&tree);
            tree.release(&mut ledger);
        }
        prop_assert!(ledger.values().all(|&count| count == 0));
    }
}

/// An entry that keeps no promise, as it may come from disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Raw(u64, u64);

impl Entry for Raw {
    fn start(&self) -> u64 {
        self.0
    }

    fn end(&self) -> u64 {
        self.1
    }

    fn slice(&self, start: u64, end: u64) -> Raw {
        Raw(start, end)
    }

    fn join(&self, _next: &Raw) -> Option<Raw> {
        None
    }

    fn numbers(&self) -> Numbers {
        [self.0, self.1, 0, 0]
    }

    fn from_numbers([start, end, ..]: Numbers) -> Raw {
        Raw(start, end)
    }
}

impl Account<Raw> for BTreeMap<Raw, i64> {
    fn gain(&mut self, entry: &Raw) {
        *self.entry(*entry).or_default() += 1;
    }

    fn lose(&mut self, entry: &Raw) {
        *self.entry(*entry).or_default() -= 1;
    }
}

fn check_entries(tree: &Tree<Raw>) {
    let entries: Vec<Raw> = tree.range(0, u64::MAX).collect();
    assert!(entries.windows(2).all(|two| two[0].1 <= two[1].0));
}

#[test]
fn a_loader_says_what_is_wrong() {
    let mut loader = Loader::new();
    let mut push = |node: NodeRef<'_, Raw>| loader.push(node, &mut ());
    assert_eq!(push(NodeRef::Leaf(&[Raw(0, 4), Raw(4, 5)])), Ok(()));
    assert_eq!(push(NodeRef::Leaf(&[Raw(7, 9)])), Ok(()));
    assert_eq!(push(NodeRef::Inner(&[0, 1])), Ok(()));
    let cases: [(NodeRef<'_, Raw>, &str); 9] = [
        (NodeRef::Leaf(&[]), "a leaf without entries"),
        (NodeRef::Leaf(&[Raw(3, 3)]), "an empty entry"),
        (NodeRef::Leaf(&[Raw(4, 3)]), "an empty entry"),
        (
            NodeRef::Leaf(&[Raw(0, 3), Raw(2, 4)]),
            "entries out of order",
        ),
        (NodeRef::Inner(&[]), "a node without children"),
        (NodeRef::Inner(&[0, 3]), "no such child"),
        (NodeRef::Inner(&[1, 0]), "children out of order"),
        (NodeRef::Inner(&[0, 0]), "children out of order"),
        (NodeRef::Inner(&[0, u32::MAX]), "no such child"),
    ];
    for (node, message) in cases {
        assert_eq!(push(node), Err(message), "{node:?}");
    }
    assert_eq!(push(NodeRef::Leaf(&[Raw(20, 21)])), Ok(()));
    let uneven = push(NodeRef::Inner(&[2, 3]));
    assert_eq!(uneven, Err("children of different heights"));
    let mut chain = 3;
    let refusal = loop {
        match loader.push(NodeRef::Inner(&[chain]), &mut ()) {
            Ok(()) => chain += 1,
            Err(message) => break message,
        }
    };
    assert_eq!((refusal, chain), ("a tree too high", 3 + 16));
    assert_eq!(loader.tree(100).err(), Some("no such root"));
    // The highest chain that is accepted is a tree like any other.
    let mut tree = loader.tree(chain).expect("a root");
    loader.finish(&mut ());
    for start in (0..4000).step_by(2) {
        tree.insert(Raw(start, start + 1), &mut ());
    }
    tree.remove(0, 3999, &mut ());
    assert!(tree.is_empty());
}

#[test]
fn a_rewrite_may_overfill_a_leaf_and_the_next_change_splits_it() {
    let mut ledger = Ledger::default();
    let mut tree = Tree::new();
    for index in 0..LEAF_MAX as u64 {
        tree.insert(mapped(index * 100, 30, 1, index as u32 * 200), &mut ledger);
    }
    let other = tree.share();
    let mut rewrite = |entry: &Mapped, fresh: &mut Vec<Mapped>| {
        relocate(
            entry,
            1,
            2,
            &(entry.start() + 10..entry.start() + 20),
            fresh,
        )
    };
    assert_eq!(tree.rewrite_pass(1, 0, 1, &mut rewrite, &mut ledger), None);
    assert_eq!(check_nodes(&other).leaves, 1);
    assert_eq!(check_nodes(&other).entries, 3 * LEAF_MAX);
    tree.remove(10, 20, &mut ledger);
    let shape = check_nodes(&tree);
    assert_eq!((shape.leaves, shape.entries), (3, 3 * LEAF_MAX - 1));
    assert_eq!(check_nodes(&other).leaves, 1);
    tree.release(&mut ledger);
    other.release(&mut ledger);
    assert_eq!(ledger, Ledger::default());
}

#[test]
fn an_overfull_leaf_is_dumped_in_pieces() {
    // Of one leaf, which is the root then, and of more than one node above them has.
    for leaves in [1, INNER_MAX as u64 + 6] {
        let mut tree = Tree::new();
        for index in 0..leaves * LEAF_MAX as u64 {
            let at = index as u32 * 200;
            tree.insert(mapped(index * 1000, 100, 1, at), &mut ());
        }
        let clone = tree.share();
        // So does a cleaner that has room for little at a time.
        let mut crumble = |entry: &Mapped, fresh: &mut Vec<Mapped>| {
            let places = entry.start()..entry.end();
            fresh.extend(places.map(|at| mapped(at, 1, 2, at as u32 * 2)));
            true
        };
        tree.rewrite_pass(1, 0, usize::MAX, &mut crumble, &mut ());
        assert_eq!(check_nodes(&tree).leaves as u64, leaves);

        let (mut loader, mut next_index) = (Loader::new(), 0);
        let mut emit = |node: NodeRef<'_, Mapped>| {
            match node {
                NodeRef::Leaf(entries) => assert!(entries.len() <= LEAF_MAX),
                NodeRef::Inner(children) => assert!(children.len() <= INNER_MAX),
            }
            loader.push(node, &mut ()).expect("a sound dump");
        };
        let roots = [&tree, &clone].map(|tree| tree.dump(2, &mut next_index, &mut emit));
        for root in roots {
            let mut loaded = loader.tree(root.expect("entries")).expect("a root");
            assert!(loaded.range(0, u64::MAX).eq(tree.range(0, u64::MAX)));
            assert_eq!(check_nodes(&loaded).underfull, 0);
            loaded.remove(500, leaves * 50_000, &mut ());
            check_nodes(&loaded);
        }
        loader.finish(&mut ());
    }
}

#[test]
fn a_pass_misses_nothing_while_trees_change() {
    let mut dice = Dice(9);
    let mut ledger = Ledger::default();
    let mut tree = Tree::new();
    for index in 0..20_000u64 {
        tree.insert(mapped(index * 10, 9, 1, index as u32), &mut ledger);
    }
    let mut trees = [tree.share(), tree];
    let mut rewrite =
        |entry: &Mapped, fresh: &mut Vec<Mapped>| relocate(entry, 1, 2, &(0..u64::MAX), fresh);
    for walked in 0..trees.len() {
        let mut at = Some(0);
        while let Some(from) = at {
            at = trees[walked].rewrite_pass(1, from, 3, &mut rewrite, &mut ledger);
            for changed in 0..8 {
                let start = dice.below(20_000);
                let tree = &mut trees[changed % 2];
                match changed < 4 {
                    true => tree.insert(mapped(start * 10, 3, 3, 0), &mut ledger),
                    false => tree.remove(start * 10, start * 10 + dice.below(900), &mut ledger),
                }
            }
        }
    }
    for tree in trees {
        check_nodes(&tree);
        let mut entries = tree.range(0, u64::MAX);
        assert!(entries.all(|entry| entry.at().segment() != SegmentId(1)));
        drop(entries);
        tree.release(&mut ledger);
    }
    assert!(ledger == Ledger::default(), "nothing is left");
}

#[test]
fn a_pass_skips_what_trees_share() {
    let mut tree = Tree::new();
    for index in 0..100_000u64 {
        tree.insert(mapped(index * 10, 5, 1, index as u32 * 7), &mut ());
    }
    let clones: Vec<_> = (0..10).map(|_| tree.share()).collect();
    let mut changed = tree.share();
    changed.remove(500_000, 500_001, &mut ());
    let mut seen = 0;
    let mut visit = |_: &Mapped| seen += 1;
    assert_eq!(tree.visit_pass(1, 0, usize::MAX, &mut visit), None);
    for clone in &clones {
        assert_eq!(clone.visit_pass(1, 0, 1, &mut visit), None);
    }
    // It skips 63 subtrees and 63 leaves at most on each of two levels.
    assert_eq!(changed.visit_pass(1, 0, 200, &mut visit), None);
    assert!((100_000..=100_000 + LEAF_MAX).contains(&seen), "{seen}");
    let bytes = tree.heap_bytes(2);
    assert!(clones[0].heap_bytes(2) == 0 && changed.heap_bytes(2) < bytes / 100);
}

/// Trees of three levels, of which wide parts go at once, against one flag per page.
#[test]
fn deep_trees_shrink_and_grow_soundly() {
    const PAGES: u64 = 400_000;
    let mut dice = Dice(5);
    let mut ledger = Ledger::default();
    let mut trees = vec![(Tree::new(), vec![false; PAGES as usize])];
    for round in 0..60 {
        let index = dice.below(trees.len() as u64) as usize;
        let (tree, pages) = &mut trees[index];
        let inserts = if round == 0 {
            PAGES
        } else {
            dice.below(20_000)
        };
        let base = dice.below(PAGES);
        for step in 0..inserts {
            let page = match round % 3 {
                0 => dice.below(PAGES),
                _ => (base + step) % PAGES,
            };
            tree.insert(mapped(page * 10, 9, 1, page as u32), &mut ledger);
            pages[page as usize] = true;
        }
        let width_max = [PAGES, PAGES / 8, 7_000, 300][round % 4];
        for _ in 0..3 {
            let start = dice.below(PAGES);
            let end = PAGES.min(start + dice.below(width_max));
            tree.remove(start * 10, end * 10, &mut ledger);
            pages[start as usize..end.max(start) as usize].fill(false);
        }
        let shape = check_nodes(tree);
        assert!(shape.entries < LEAF_MAX || shape.entries * 3 >= shape.leaves * LEAF_MAX);
        match trees.len() {
            4 => trees.swap_remove(index).0.release(&mut ledger),
            _ => trees.push((trees[index].0.share(), trees[index].1.clone())),
        }
        if round % 10 == 9 {
            check_pages(&trees, round as u64 + 1, &ledger);
        }
    }
    for (tree, _) in trees {
        tree.release(&mut ledger);
    }
    assert_eq!(ledger, Ledger::default());
}

/// However much goes at once, and wherever its edges lie, it leaves no thin nodes behind, and of a
/// shared tree it copies only what lies along its edges.
#[test]
fn wide_removals_leave_no_thin_nodes_and_copy_little() {
    let mut dice = Dice(3);
    let mut tree = Tree::new();
    for _ in 0..400_000 {
        let page = dice.below(300_000);
        tree.insert(mapped(page * 10, 9, 1, page as u32), &mut ());
    }
    let before = check_nodes(&tree);
    for round in 0..400 {
        let mut gains = Gains(0);
        let mut cut = tree.share();
        let start = dice.below(300_000 / (1 + round % 5));
        let width = [300, 7_000, 100_000, 300_000][round as usize % 4];
        let end = start + dice.below(width);
        cut.remove(start * 10, end * 10, &mut gains);
        let shape = check_nodes(&cut);
        assert!(shape.underfull <= before.underfull, "{shape:?}");
        // Two edges and a neighbour of each, and the two that an evened pair becomes.
        assert!(gains.0 <= 6 * LEAF_MAX, "{}", gains.0);
    }
}

struct Gains(usize);

impl Account<Mapped> for Gains {
    fn gain(&mut self, _entry: &Mapped) {
        self.0 += 1;
    }

    fn lose(&mut self, _entry: &Mapped) {}
}

#[test]
fn what_changes_is_dumped_again() {
    let mut tree = Tree::new();
    for index in 0..10_000u64 {
        tree.insert(mapped(index * 10, 5, 1, index as u32 * 7), &mut ());
    }
    let mut next_index = 0;
    let first = tree.dump(1, &mut next_index, &mut |_| {});
    assert_eq!(tree.dump(1, &mut next_index, &mut |_| {}), first);
    tree.insert(mapped(50_000, 5, 9, 0), &mut ());
    let mut leaves = Vec::new();
    let mut emit = |node: NodeRef<'_, Mapped>| {
        if let NodeRef::Leaf(entries) = node {
            leaves.push(
                entries
                    .iter()
                    .any(|entry| entry.at().segment() == SegmentId(9)),
            );
        }
    };
    assert_ne!(tree.dump(1, &mut next_index, &mut emit), first);
    assert_eq!(leaves, [true]);
}

#[test]
fn whatever_the_order_neighbours_join() {
    let mut dice = Dice(4);
    for round in 0..20 {
        let mut starts: Vec<u64> = (0..5_000).map(|index| index * 10).collect();
        let mut tree = Tree::new();
        // Every second round there are entries to replace, which join with nothing.
        for start in starts.iter().filter(|_| round % 2 == 1) {
            tree.insert(mapped(*start, 10, 7, 0), &mut ());
        }
        while !starts.is_empty() {
            let start = starts.swap_remove(dice.below(starts.len() as u64) as usize);
            tree.insert(mapped(start, 10, 1, start as u32), &mut ());
        }
        let all: Vec<Mapped> = tree.range(0, u64::MAX).collect();
        assert_eq!(all, [mapped(0, 50_000, 1, 0)], "round {round}");
    }
}

fn check_pages(trees: &[(Tree<Mapped>, Vec<bool>)], pass: u64, ledger: &Ledger) {
    let mut seen = Ledger::default();
    for (tree, pages) in trees {
        let found = tree.range(0, u64::MAX).map(|entry| entry.start() / 10);
        let expected = (0..).zip(pages).filter(|(_, page)| **page);
        assert!(found.eq(expected.map(|(index, _)| index)));
        tree.visit_pass(pass, 0, usize::MAX, &mut |entry| seen.gain(entry));
    }
    assert!(seen.entries == ledger.entries, "the account is right");
}

#[test]
fn zeroed_ranges_melt_into_one() {
    let mut tree = Tree::new();
    for start in (0..100_000u64).step_by(20) {
        tree.insert(Zeroed::new(start, start + 10), &mut ());
    }
    assert!(check_nodes(&tree).leaves > 30);
    for start in (10..100_000u64).step_by(20) {
        tree.insert(Zeroed::new(start, start + 10), &mut ());
    }
    let all: Vec<Zeroed> = tree.range(0, u64::MAX).collect();
    assert_eq!(all, [Zeroed::new(0, 100_000)]);
    assert_eq!(tree.range(7, 9).next(), Some(Zeroed::new(7, 9)));
    assert!(tree.range(9, 7).next().is_none());
}

/// Bytes of this process that are in memory.
fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0) * 4096
}

#[expect(
    clippy::disallowed_methods,
    reason = "a measurement, of which nothing depends"
)]
fn now() -> Instant {
    Instant::now()
}

fn nanos_each(since: Instant, count: u64) -> u128 {
    since.elapsed().as_nanos() / u128::from(count)
}

const MILLION: u64 = 1_000_000;

#[test]
fn what_is_given_up_is_lost_in_steps() {
    const ENTRIES: u64 = 20_000;
    let (mut tree, mut live) = (Tree::new(), Live::default());
    for index in 0..ENTRIES {
        tree.insert(mapped(index * 8192, 4096, index / 1000, 0), &mut live);
    }
    let mut clone = tree.share();
    clone.remove(0, ENTRIES / 2 * 8192, &mut live);
    live.lose_discarded(usize::MAX);
    let clones_own = live.extents() - ENTRIES;
    assert!(clones_own < 2 * LEAF_MAX as u64, "one path was copied");
    // The half that the clone does not have, and what stands on the path.
    tree.release(&mut live);
    let mut steps = 0;
    while live.has_discarded() {
        let before = live.extents();
        live.lose_discarded(1);
        assert!(before - live.extents() <= LEAF_MAX as u64);
        steps += 1;
    }
    assert!(steps > ENTRIES / 2 / LEAF_MAX as u64, "{steps}");
    assert_eq!(live.extents(), ENTRIES / 2);
    assert_eq!(clone.range(0, u64::MAX).count() as u64, ENTRIES / 2);
    // Cut off in the middle it is given up as a whole, too.
    clone.remove(0, u64::MAX, &mut live);
    assert!(live.extents() > ENTRIES / 2 - 2 * LEAF_MAX as u64);
    live.lose_discarded(usize::MAX);
    assert_eq!((live.total(), live.extents(), live.memory()), (0, 0, 0));
}

#[test]
fn a_million_random_extents_stay_small() {
    let mut dice = Dice(1);
    let mut order: Vec<u32> = (0..MILLION as u32).collect();
    for index in (1..order.len()).rev() {
        order.swap(index, dice.below(index as u64 + 1) as usize);
    }
    let resident = resident_bytes();
    let (mut tree, mut live) = (Tree::new(), Live::default());
    let began = now();
    for (step, &page) in order.iter().enumerate() {
        let offset = (step as u32 % 60_000) * 4096;
        let entry = mapped(u64::from(page) * 4096, 4096, step as u64 / 60_000, offset);
        tree.insert(entry, &mut live);
    }
    let insert = nanos_each(began, MILLION);
    let grown = resident_bytes().saturating_sub(resident);
    let began = now();
    for &page in &order {
        let start = u64::from(page) * 4096;
        let mut found = tree.range(start + 100, start + 200);
        assert_eq!(found.next().map(|entry| entry.len()), Some(100));
    }
    let lookup = nanos_each(began, MILLION);
    let began = now();
    assert_eq!(tree.range(0, u64::MAX).count() as u64, MILLION);
    let scan = nanos_each(began, MILLION);
    let shape = check_nodes(&tree);
    let each = tree.heap_bytes(1) as f64 / MILLION as f64;
    let told = live.memory() as f64 / MILLION as f64;
    let really = grown as f64 / MILLION as f64;
    println!("{each:.2} bytes each (told {told:.2}, resident {really:.2}), {shape:?}");
    println!("insert {insert} ns, lookup {lookup} ns, scan {scan} ns each");
    assert!(each <= 8.0, "{each}");
    assert!((each - told).abs() < each / 20.0, "{told} of {each}");
    let began = now();
    for &page in &order[..order.len() * 9 / 10] {
        let start = u64::from(page) * 4096;
        tree.remove(start, start + 4096, &mut live);
    }
    let remove = nanos_each(began, MILLION * 9 / 10);
    let shape = check_nodes(&tree);
    let each = tree.heap_bytes(2) as f64 / shape.entries as f64;
    println!("after removing nine of ten: {each:.2} bytes each, {shape:?}, remove {remove} ns");
    assert!(shape.entries >= shape.leaves * LEAF_MAX / 3);
    assert!(shape.children >= shape.inner * INNER_MAX / 3);
}

#[test]
fn a_million_appends_make_few_entries_or_full_leaves() {
    let (mut joining, mut apart) = (Tree::new(), Tree::new());
    let began = now();
    for index in 0..MILLION {
        let offset = (index % 60_000) as u32 * 4096;
        let start = index * 4096;
        joining.insert(mapped(start, 4096, index / 60_000, offset), &mut ());
    }
    let join = nanos_each(began, MILLION);
    assert_eq!(joining.range(0, u64::MAX).count(), 17);
    let began = now();
    for index in 0..MILLION {
        apart.insert(mapped(index * 4096, 4095, index, 0), &mut ());
    }
    let append = nanos_each(began, MILLION);
    let shape = check_nodes(&apart);
    let each = apart.heap_bytes(1) as f64 / MILLION as f64;
    println!("appends: {each:.2} bytes each, join {join} ns, append {append} ns, {shape:?}");
    assert!(shape.entries * 100 >= shape.leaves * LEAF_MAX * 99);
    assert!(shape.children * 100 >= shape.inner * INNER_MAX * 95);
}
