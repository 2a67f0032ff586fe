//! The names on a disk: what programs see, what is durable, and the changes between the two.
//!
//! Invariants:
//! 1. `durable` with all of `pending` applied in order is `visible`.
//! 2. A change is kept by a crash, or made durable by a sync, only together with every earlier
//!    pending change of the same names.
//! 3. A change is one unit, also when it touches two names: renames are atomic, as on every
//!    journaling file system. One that spans two directories is durable with either.
//!
//! Deliberately not here: the files that the names lead to.

use super::faults::Fates;
use super::platter::{CrashReport, InFlight, InodeId};
use crate::io::DirEntry;
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};

/// What a name leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Node {
    Dir,
    File(InodeId),
}

/// A change of names, as a program asks for it.
#[derive(Clone, Debug)]
pub(super) enum NameRequest {
    Create(String),
    MakeDir(String),
    Rename(String, String),
    Unlink(String),
}

#[derive(Clone)]
struct NameChange {
    seq: u64,
    /// Each name with what it leads to afterwards.
    edits: Vec<(String, Option<Node>)>,
    forsaken: bool,
    /// A crash has already ruled that it is kept.
    decided: bool,
}

impl NameChange {
    fn is_in(&self, dir: &str) -> bool {
        self.edits.iter().any(|(name, _)| parent(name) == dir)
    }
}

type Map = BTreeMap<String, Node>;

#[derive(Clone, Default)]
pub(super) struct Names {
    visible: Map,
    durable: Map,
    pending: Vec<NameChange>,
    pub(super) in_flight: Vec<InFlight<NameRequest>>,
}

/// The directory of a name; the empty one for names at the top.
fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// Refuses what would leave the store's directory or is not a plain relative path.
pub(super) fn check_path(path: &str) -> Result<(), Errno> {
    let is_plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    if path.split('/').all(is_plain) {
        return Ok(());
    }
    Err(Errno::INVAL)
}

/// The same for a directory, where the empty path is the top.
pub(super) fn check_dir_path(path: &str) -> Result<(), Errno> {
    if path.is_empty() {
        Ok(())
    } else {
        check_path(path)
    }
}

fn apply(map: &mut Map, change: &NameChange) {
    for (name, node) in &change.edits {
        match node {
            Some(node) => map.insert(name.clone(), *node),
            None => map.remove(name),
        };
    }
}

impl Names {
    pub(super) fn file(&self, path: &str) -> Result<InodeId, Errno> {
        match self.visible.get(path) {
            Some(Node::File(id)) => Ok(*id),
            Some(Node::Dir) => Err(Errno::ISDIR),
            None => Err(Errno::NOENT),
        }
    }

    /// Every visible file with its name, sorted.
    pub(super) fn files(&self) -> impl Iterator<Item = (&str, InodeId)> {
        self.visible.iter().filter_map(|(name, node)| match node {
            Node::File(id) => Some((name.as_str(), *id)),
            Node::Dir => None,
        })
    }

    fn check_dir(&self, path: &str) -> Result<(), Errno> {
        match self.visible.get(path) {
            _ if path.is_empty() => Ok(()),
            Some(Node::Dir) => Ok(()),
            Some(Node::File(_)) => Err(Errno::NOTDIR),
            None => Err(Errno::NOENT),
        }
    }

    /// The entries of a directory, sorted by name; `len` tells a file's length.
    pub(super) fn list(
        &self,
        dir: &str,
        len: impl Fn(InodeId) -> u64,
    ) -> Result<Vec<DirEntry>, Errno> {
        self.check_dir(dir)?;
        let children = self.visible.iter().filter(|(name, _)| parent(name) == dir);
        let entries = children.map(|(name, node)| DirEntry {
            name: name.rsplit('/').next().unwrap_or(name).to_owned(),
            len: match node {
                Node::File(id) => len(*id),
                Node::Dir => 0,
            },
            is_dir: *node == Node::Dir,
        });
        let mut entries: Vec<DirEntry> = entries.collect();
        entries.sort();
        Ok(entries)
    }

    /// Performs a change; `created` is what a creation's name leads to. Returns what lost its name.
    pub(super) fn perform(
        &mut self,
        seq: u64,
        request: &NameRequest,
        created: Node,
    ) -> Result<Option<Node>, Errno> {
        let mut replaced = None;
        let edits = match request {
            NameRequest::Create(path) => {
                self.check_dir(parent(path))?;
                if self.visible.contains_key(path) {
                    return Err(Errno::EXIST);
                }
                vec![(path.clone(), Some(created))]
            }
            NameRequest::MakeDir(path) => {
                self.check_dir(parent(path))?;
                match self.visible.get(path) {
                    Some(Node::Dir) => return Ok(None),
                    Some(Node::File(_)) => return Err(Errno::EXIST),
                    None => vec![(path.clone(), Some(Node::Dir))],
                }
            }
            NameRequest::Rename(from, to) => {
                let id = self.file(from)?;
                self.check_dir(parent(to))?;
                if from == to {
                    return Ok(None);
                }
                replaced = match self.file(to) {
                    Ok(id) => Some(Node::File(id)),
                    Err(Errno::NOENT) => None,
                    Err(error) => return Err(error),
                };
                vec![(from.clone(), None), (to.clone(), Some(Node::File(id)))]
            }
            NameRequest::Unlink(path) => {
                replaced = Some(Node::File(self.file(path)?));
                vec![(path.clone(), None)]
            }
        };
        let change = NameChange {
            seq,
            edits,
            forsaken: false,
            decided: false,
        };
        apply(&mut self.visible, &change);
        self.pending.push(change);
        Ok(replaced)
    }

    /// Makes durable the changes in `dir` before `cut`, and what they rest on; returns what they
    /// took a durable name from.
    pub(super) fn sync_dir(&mut self, dir: &str, cut: u64) -> Vec<Node> {
        let mut needed = BTreeSet::new();
        let mut chosen = vec![false; self.pending.len()];
        for (change, chosen) in self.pending.iter().zip(&mut chosen).rev() {
            let names = change.edits.iter().map(|(name, _)| name.as_str());
            let asked = change.is_in(dir) && change.seq < cut && !change.forsaken;
            *chosen = asked || names.clone().any(|name| needed.contains(name));
            if *chosen {
                needed.extend(names);
            }
        }
        let mut replaced = Vec::new();
        let mut chosen = chosen.into_iter();
        self.pending.retain(|change| {
            if !chosen.next().expect("one for each change") {
                return true;
            }
            let names = change.edits.iter().map(|(name, _)| name);
            replaced.extend(names.filter_map(|name| self.durable.get(name)));
            apply(&mut self.durable, change);
            false
        });
        replaced
    }

    /// A sync of `dir` has failed: no later one covers what this one should have.
    pub(super) fn forsake(&mut self, dir: &str, cut: u64) {
        let covered = |change: &&mut NameChange| change.is_in(dir) && change.seq < cut;
        for change in self.pending.iter_mut().filter(covered) {
            change.forsaken = true;
        }
    }

    pub(super) fn check_sync_dir(&self, dir: &str) -> Result<(), Errno> {
        self.check_dir(dir)
    }

    /// Whether a program can find the file.
    pub(super) fn is_visible(&self, id: InodeId) -> bool {
        self.visible.values().any(|node| *node == Node::File(id))
    }

    /// Whether a program can find the file, or could after a crash.
    pub(super) fn may_return(&self, id: InodeId) -> bool {
        let node = Node::File(id);
        let mut edits = self.pending.iter().flat_map(|change| &change.edits);
        self.is_visible(id)
            || self.durable.values().any(|other| *other == node)
            || edits.any(|(_, other)| *other == Some(node))
    }

    pub(super) fn len_pending(&self) -> usize {
        self.pending.len()
    }

    /// Rules that the changes from number `first` on are kept.
    pub(super) fn decide(&mut self, first: usize) {
        for change in &mut self.pending[first..] {
            change.decided = true;
        }
    }

    pub(super) fn units(&self) -> usize {
        self.pending.len() + self.in_flight.len()
    }

    /// Leaves what a crash leaves.
    pub(super) fn crash(&mut self, fates: &mut Fates<'_>, tally: &mut CrashReport) {
        let mut broken: BTreeSet<String> = BTreeSet::new();
        for change in std::mem::take(&mut self.pending) {
            let mut names = change.edits.iter().map(|(name, _)| name);
            let possible = !names.any(|name| broken.contains(name));
            // The decision is drawn also where it is moot, so that masks have a fixed length.
            let kept = change.decided || fates.keeps();
            if possible && kept {
                apply(&mut self.durable, &change);
            } else {
                broken.extend(change.edits.into_iter().map(|(name, _)| name));
            }
            if !change.decided {
                tally.names_kept += u64::from(possible && kept);
                tally.names_undone += u64::from(!(possible && kept));
            }
        }
        self.drop_orphans();
        self.visible = self.durable.clone();
    }

    /// Drops names whose directory is not there; parents sort before their children.
    fn drop_orphans(&mut self) {
        let mut kept = Map::new();
        for (name, node) in std::mem::take(&mut self.durable) {
            if parent(&name).is_empty() || kept.get(parent(&name)) == Some(&Node::Dir) {
                kept.insert(name, node);
            }
        }
        self.durable = kept;
    }

    /// Makes everything durable as it stands.
    pub(super) fn settle(&mut self) {
        self.pending.clear();
        self.durable = self.visible.clone();
    }

    /// Forgets everything.
    pub(super) fn wipe(&mut self) {
        *self = Names::default();
    }
}
