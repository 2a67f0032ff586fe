//! What the kernel holds of the mount: numbers, names, open files.
//!
//! Invariants:
//! 1. A number stands for one file or folder until the kernel has forgotten it, and is never used
//!    again.
//! 2. A path that is there has at most one node.
//! 3. The lock of the table is held for a look-up at a time, never across an await. The lock of a
//!    node's place is taken before it.

use super::clock;
use ringstore::PayloadId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use tokio::sync::RwLock;

/// The number of the mount's root.
pub(crate) const ROOT: u64 = 1;

/// A file or a folder that the kernel knows.
pub(crate) struct Node {
    pub(crate) number: u64,
    pub(crate) is_folder: bool,
    /// Read by whatever uses the payload, written by what moves or removes it.
    pub(crate) place: RwLock<Place>,
}

/// Where a node is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// The folder of this path; the root's is empty.
    Folder(String),
    File(PayloadId),
    /// Removed, and not open.
    Gone,
}

/// What is kept of a file while the kernel holds it.
#[derive(Clone)]
pub(crate) struct Marks {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) accessed: SystemTime,
    pub(crate) modified: SystemTime,
    pub(crate) changed: SystemTime,
    /// The payload that it is a clone of, if it was made one here.
    pub(crate) clone_of: Option<PayloadId>,
}

struct Slot {
    node: Arc<Node>,
    path: String,
    lookups: u64,
    opens: u64,
    marks: Marks,
}

struct Table {
    slots: BTreeMap<u64, Slot>,
    by_path: BTreeMap<String, u64>,
    /// Folders that are there although nothing may be in them.
    folders: BTreeSet<String>,
    next: u64,
}

pub(crate) struct Nodes {
    table: Mutex<Table>,
    /// Who mounted owns everything.
    owner: (u32, u32),
    since: SystemTime,
}

impl Nodes {
    pub(crate) fn new() -> Nodes {
        let owner = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        let nodes = Nodes {
            table: Mutex::new(Table {
                slots: BTreeMap::new(),
                by_path: BTreeMap::new(),
                folders: BTreeSet::new(),
                next: ROOT,
            }),
            owner,
            since: clock::now(),
        };
        nodes.enter("", Place::Folder(String::new()));
        nodes
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing is left half done by what can panic under it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, number: u64) -> Option<Arc<Node>> {
        let table = self.table();
        table.slots.get(&number).map(|slot| slot.node.clone())
    }

    /// The node of a path, which has this place, counted as looked up once more.
    pub(crate) fn enter(&self, path: &str, place: Place) -> Arc<Node> {
        let is_folder = matches!(place, Place::Folder(_));
        let mut table = self.table();
        if let Some(number) = table.by_path.get(path).copied()
            && let Some(slot) = table.slots.get_mut(&number)
            && slot.node.is_folder == is_folder
        {
            slot.lookups += 1;
            return slot.node.clone();
        }
        let number = table.next;
        table.next += 1;
        let node = Arc::new(Node {
            number,
            is_folder,
            place: RwLock::new(place),
        });
        let slot = Slot {
            node: node.clone(),
            path: path.to_owned(),
            lookups: 1,
            opens: 0,
            marks: Marks {
                mode: if is_folder { 0o700 } else { 0o600 },
                uid: self.owner.0,
                gid: self.owner.1,
                accessed: self.since,
                modified: self.since,
                changed: self.since,
                clone_of: None,
            },
        };
        table.slots.insert(number, slot);
        table.by_path.insert(path.to_owned(), number);
        node
    }

    pub(crate) fn forget(&self, number: u64, lookups: u64) {
        let mut table = self.table();
        let Some(slot) = table.slots.get_mut(&number) else {
            return;
        };
        slot.lookups = slot.lookups.saturating_sub(lookups);
        if slot.lookups == 0 && number != ROOT {
            let path = std::mem::take(&mut slot.path);
            table.slots.remove(&number);
            if table.by_path.get(&path) == Some(&number) {
                table.by_path.remove(&path);
            }
        }
    }

    /// The node that the kernel has for a path, if it has one.
    pub(crate) fn at(&self, path: &str) -> Option<Arc<Node>> {
        let table = self.table();
        let number = table.by_path.get(path)?;
        table.slots.get(number).map(|slot| slot.node.clone())
    }

    pub(crate) fn opened(&self, number: u64) {
        if let Some(slot) = self.table().slots.get_mut(&number) {
            slot.opens += 1;
        }
    }

    /// Returns whether it was the last opening.
    pub(crate) fn released(&self, number: u64) -> bool {
        match self.table().slots.get_mut(&number) {
            Some(slot) => {
                slot.opens = slot.opens.saturating_sub(1);
                slot.opens == 0
            }
            None => false,
        }
    }

    pub(crate) fn is_open(&self, number: u64) -> bool {
        let table = self.table();
        table.slots.get(&number).is_some_and(|slot| slot.opens > 0)
    }

    /// Takes a node from its path: it was removed.
    pub(crate) fn detach(&self, path: &str) {
        self.table().by_path.remove(path);
    }

    /// Gives a node another path, which takes it from whatever had that.
    pub(crate) fn rename(&self, from: &str, to: &str) {
        let mut table = self.table();
        table.by_path.remove(to);
        if let Some(number) = table.by_path.remove(from) {
            table.by_path.insert(to.to_owned(), number);
            if let Some(slot) = table.slots.get_mut(&number) {
                to.clone_into(&mut slot.path);
            }
        }
    }

    pub(crate) fn marks(&self, number: u64) -> Option<Marks> {
        let table = self.table();
        table.slots.get(&number).map(|slot| slot.marks.clone())
    }

    pub(crate) fn mark(&self, number: u64, change: impl FnOnce(&mut Marks)) {
        if let Some(slot) = self.table().slots.get_mut(&number) {
            change(&mut slot.marks);
        }
    }

    /// Notes that a file's bytes have changed.
    pub(crate) fn touch(&self, number: u64) {
        let now = clock::now();
        self.mark(number, |marks| {
            (marks.modified, marks.changed) = (now, now);
        });
    }

    /// Remembers a folder, whatever is in it; returns whether that is new.
    pub(crate) fn keep_folder(&self, path: &str) -> bool {
        path.is_empty() || self.table().folders.insert(path.to_owned())
    }

    pub(crate) fn drop_folder(&self, path: &str) -> bool {
        self.table().folders.remove(path)
    }

    pub(crate) fn is_kept(&self, path: &str) -> bool {
        self.table().folders.contains(path)
    }

    /// The remembered folders below a path that is empty or ends in `/`.
    pub(crate) fn kept_below(&self, prefix: &str) -> Vec<String> {
        let table = self.table();
        let behind = table.folders.range(prefix.to_owned()..);
        let below = behind.take_while(|path| path.starts_with(prefix));
        below.cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> Place {
        Place::File(PayloadId::new(path).unwrap())
    }

    #[test]
    fn a_number_lives_until_it_is_forgotten() {
        let nodes = Nodes::new();
        let first = nodes.enter("a", file("a")).number;
        assert_eq!(nodes.enter("a", file("a")).number, first);
        nodes.forget(first, 1);
        assert!(nodes.find(first).is_some());
        nodes.forget(first, 1);
        assert!(nodes.find(first).is_none() && nodes.at("a").is_none());
        assert_ne!(nodes.enter("a", file("a")).number, first);
        nodes.forget(ROOT, 1000);
        assert!(nodes.find(ROOT).is_some());
    }

    #[test]
    fn a_path_has_one_node() {
        let nodes = Nodes::new();
        let (a, b) = (nodes.enter("a", file("a")), nodes.enter("b", file("b")));
        nodes.rename("a", "b");
        assert_eq!(nodes.at("b").unwrap().number, a.number);
        assert!(nodes.at("a").is_none());
        nodes.forget(b.number, 1);
        assert_eq!(
            nodes.at("b").unwrap().number,
            a.number,
            "that was another b"
        );
        let folder = nodes.enter("b", Place::Folder("b".to_owned()));
        assert_ne!(folder.number, a.number);
        nodes.forget(a.number, 1);
        assert_eq!(nodes.at("b").unwrap().number, folder.number);
    }

    #[test]
    fn folders_are_found_by_what_they_are_in() {
        let nodes = Nodes::new();
        for path in ["a", "a/b", "a/b/c", "ab", "z"] {
            assert!(nodes.keep_folder(path));
        }
        assert!(!nodes.keep_folder("ab"));
        assert_eq!(nodes.kept_below("a/"), ["a/b", "a/b/c"]);
        assert_eq!(nodes.kept_below("").len(), 5);
        assert!(nodes.drop_folder("z") && !nodes.drop_folder("z"));
    }
}
