//! The extent tree against `rangemap`: any sequence of changes, on trees that share nodes.

use super::plant::Input;
use crate::map::extent::Mapped;
use crate::map::live::Live;
use crate::map::tree::{Entry, Loader, NodeRef, Tree};
use crate::types::{Location, SegmentId};
use rangemap::RangeMap;

/// From positions to the segment that holds them, and how far the log is from the payload there: a
/// value that stays what it is when an extent is cut in two.
type Model = RangeMap<u64, (u64, i64)>;

/// Trees that are alive at a time, at most: enough for nodes with several owners.
const TREES_MAX: usize = 4;

/// Segments that extents lie in: few, so that neighbours join.
const SEGMENTS: u8 = 3;

/// Extents that one step appends, at most: two leaves' worth, so that trees grow high quickly.
const APPENDS_MAX: u64 = 255;

struct Trees {
    trees: Vec<(Tree<Mapped>, Model)>,
    live: Live,
    pass: u64,
}

/// Runs the steps that `data` spells, then compares everything.
pub fn map(data: &[u8]) {
    let mut input = Input::new(data);
    let mut trees = Trees {
        trees: vec![(Tree::new(), Model::new())],
        live: Live::default(),
        pass: 0,
    };
    let mut steps = 0;
    while let Some(step) = input.byte() {
        trees.step(step, &mut input);
        steps += 1;
        // Comparing costs as much as the trees are large: not after every step.
        if steps % 16 == 0 {
            trees.compare();
        }
    }
    trees.compare();
    trees.finish();
}

fn extent(start: u64, len: u64, segment: u8, shift: u64) -> Mapped {
    let at = Location::new(SegmentId(u64::from(segment)), (start + shift) as u32);
    Mapped::new(start, len as u32, at)
}

fn value(entry: &Mapped) -> (u64, i64) {
    let distance = i64::from(entry.at().offset()) - entry.start() as i64;
    (entry.at().segment().0, distance)
}

impl Trees {
    fn step(&mut self, step: u8, input: &mut Input<'_>) {
        let index = usize::from(step >> 4) % self.trees.len();
        let start = u64::from(input.half());
        let len = 1 + u64::from(input.byte().unwrap_or(0));
        match step % 8 {
            0 | 1 => self.insert(index, extent(start, len, step / 8 % SEGMENTS, len % 2)),
            2 => self.append(index, start, len.min(APPENDS_MAX), step & 8 != 0),
            3 => {
                let (tree, model) = &mut self.trees[index];
                let end = start + len * if step & 8 == 0 { 1 } else { 256 };
                tree.remove(start, end, &mut self.live);
                model.remove(start..end);
            }
            4 if self.trees.len() < TREES_MAX => {
                let (tree, model) = &self.trees[index];
                self.trees.push((tree.share(), model.clone()));
            }
            4 => {
                let (tree, _) = self.trees.swap_remove(index);
                tree.release(&mut self.live);
            }
            5 if step & 8 == 0 => self.live.lose_discarded(len as usize),
            5 => self.splice(index, start, start + len * 16),
            6 => self.relocate(start, start + len * 16, usize::from(step >> 3) + 1),
            _ => self.reload(),
        }
    }

    fn insert(&mut self, index: usize, entry: Mapped) {
        let (tree, model) = &mut self.trees[index];
        tree.insert(entry, &mut self.live);
        model.insert(entry.start()..entry.end(), value(&entry));
    }

    fn append(&mut self, index: usize, start: u64, count: u64, joins: bool) {
        for step in 0..count {
            let shift = if joins { 0 } else { step % 2 };
            self.insert(index, extent(start + step * 2, 2, 1, shift));
        }
    }

    /// Makes a part of one tree what it is in the next.
    fn splice(&mut self, index: usize, start: u64, end: u64) {
        let (source, source_model) = &self.trees[(index + 1) % self.trees.len()];
        let (source, source_model) = (source.share(), source_model.clone());
        let (tree, model) = &mut self.trees[index];
        tree.move_range_from(&source, start, end, &mut self.live);
        model.remove(start..end);
        for (range, &value) in source_model.overlapping(start..end) {
            model.insert(range.start.max(start)..range.end.min(end), value);
        }
        source.release(&mut self.live);
    }

    /// Moves what lies in segment 1, in a range, to segment 7, in all trees.
    fn relocate(&mut self, start: u64, end: u64, leaves_max: usize) {
        self.pass += 1;
        let mut rewrite = |entry: &Mapped, out: &mut Vec<Mapped>| {
            let (from, until) = (entry.start().max(start), entry.end().min(end));
            if entry.at().segment() != SegmentId(1) || from >= until {
                return false;
            }
            if entry.start() < from {
                out.push(entry.slice(entry.start(), from));
            }
            let part = entry.slice(from, until);
            let at = Location::new(SegmentId(7), part.at().offset());
            out.push(Mapped::new(from, part.len(), at));
            if until < entry.end() {
                out.push(entry.slice(until, entry.end()));
            }
            true
        };
        for (tree, _) in &self.trees {
            let mut next = Some(0);
            while let Some(at) = next {
                next = tree.rewrite_pass(self.pass, at, leaves_max, &mut rewrite, &mut self.live);
                assert!(next.is_none_or(|next| next > at), "a pass goes on");
            }
        }
        for (_, model) in &mut self.trees {
            let moved: Vec<_> = model
                .overlapping(start..end)
                .filter(|(_, (segment, _))| *segment == 1)
                .map(|(range, value)| (range.start.max(start)..range.end.min(end), value.1))
                .collect();
            for (range, distance) in moved {
                model.insert(range, (7, distance));
            }
        }
    }

    /// Dumps all trees and makes them anew.
    fn reload(&mut self) {
        self.pass += 1;
        let (mut loader, mut live, mut count) = (Loader::new(), Live::default(), 0);
        let mut roots = Vec::new();
        for (tree, _) in &self.trees {
            let mut emit = |node: NodeRef<'_, Mapped>| {
                loader.push(node, &mut live).expect("a dump can be loaded");
            };
            roots.push(tree.dump(self.pass, &mut count, &mut emit));
        }
        for ((tree, _), root) in self.trees.iter_mut().zip(roots) {
            let loaded =
                root.map_or_else(Tree::new, |root| loader.tree(root).expect("it is there"));
            std::mem::replace(tree, loaded).release(&mut self.live);
        }
        self.live.lose_discarded(usize::MAX);
        assert_eq!(
            counts(&self.live),
            (0, 0),
            "nothing of the old ones is left"
        );
        loader.finish(&mut live);
        self.live = live;
    }

    fn compare(&mut self) {
        self.pass += 1;
        let mut seen = (0, 0);
        for (tree, model) in &self.trees {
            let (mut contents, mut at) = (Model::new(), 0);
            for entry in tree.range(0, u64::MAX) {
                assert!(at <= entry.start() && entry.start() < entry.end(), "order");
                contents.insert(entry.start()..entry.end(), value(&entry));
                at = entry.end();
            }
            assert_eq!(&contents, model);
            tree.visit_pass(self.pass, 0, usize::MAX, &mut |entry| {
                seen = (seen.0 + u64::from(entry.len()), seen.1 + 1);
            });
        }
        let (counted, is_all) = (counts(&self.live), !self.live.has_discarded());
        let more = counted.0 > seen.0 && counted.1 > seen.1;
        assert!(counted == seen || more && !is_all, "every node counts once");
    }

    fn finish(mut self) {
        for (tree, _) in self.trees {
            tree.release(&mut self.live);
        }
        self.live.lose_discarded(usize::MAX);
        assert_eq!(counts(&self.live), (0, 0), "nothing is left");
    }
}

fn counts(live: &Live) -> (u64, u64) {
    (live.total(), live.extents())
}
