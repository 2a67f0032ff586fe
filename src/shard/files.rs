//! The files of one shard that hold bytes: names, and a bounded set of open handles.
//!
//! Invariants:
//! 1. A handle that was given out stays valid for as long as its holder keeps it, whatever the set
//!    forgets.
//! 2. No handle of a file that was removed stays here: its room would never come back.
//! 3. A want of descriptors is no failure of the disk: a segment that exists is opened once there
//!    is one, and what is not there yet is made later.

use super::Params;
use crate::io::retry::is_exhausted;
use crate::io::{Driver, OpenMode};
use crate::marks::mark;
use crate::residency::Held;
use crate::types::{Epoch, NUMBER_MAX, SegmentId};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

/// Pause before a file is opened again for which there was no descriptor.
const RETRY_DELAY: Duration = Duration::from_millis(5);

/// Name of the file that holds segments, by number.
pub(super) fn segment_name(file: u64) -> String {
    format!("seg-{file:08x}")
}

/// The number in a segment file's name.
pub(super) fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("seg-")?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (segment_name(number) == name && number < NUMBER_MAX).then_some(number)
}

/// Name of the file that keeps what was fetched of a segment.
pub(super) fn kept_name(segment: SegmentId, epoch: Epoch) -> String {
    format!("kept-{:016x}-{:016x}", segment.0, epoch.0)
}

/// The segment and the epoch in such a name.
pub(super) fn parse_kept_name(name: &str) -> Option<(SegmentId, Epoch)> {
    let (segment, epoch) = name.strip_prefix("kept-")?.split_once('-')?;
    let parse = |digits| u64::from_str_radix(digits, 16).ok();
    let (segment, epoch) = (SegmentId(parse(segment)?), Epoch(parse(epoch)?));
    (kept_name(segment, epoch) == name).then_some((segment, epoch))
}

/// A file that may stay open.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum FileId {
    /// The file of this number, which holds segments.
    Numbered(u64),
    /// What was fetched of a segment.
    Kept(SegmentId, Epoch),
}

impl FileId {
    fn name(self) -> String {
        match self {
            FileId::Numbered(file) => segment_name(file),
            FileId::Kept(segment, epoch) => kept_name(segment, epoch),
        }
    }
}

impl From<u64> for FileId {
    fn from(file: u64) -> FileId {
        FileId::Numbered(file)
    }
}

/// Opens files, and keeps some of them open.
pub(super) struct Files<D: Driver> {
    driver: D,
    params: Params,
    open: RefCell<Open<D::File>>,
    /// How many files were removed.
    removals: Cell<u64>,
}

struct Open<F> {
    by_id: BTreeMap<FileId, F>,
    oldest: VecDeque<FileId>,
}

impl<D: Driver> Files<D> {
    pub(super) fn new(driver: D, params: Params) -> Files<D> {
        let open = Open {
            by_id: BTreeMap::new(),
            oldest: VecDeque::new(),
        };
        Files {
            driver,
            params,
            open: RefCell::new(open),
            removals: Cell::new(0),
        }
    }

    pub(super) fn path(&self, file: impl Into<FileId>) -> String {
        self.params.path(&file.into().name())
    }

    /// A handle of an existing file. Waits for as long as the process has no descriptor to spare.
    pub(super) async fn open(&self, file: impl Into<FileId>) -> io::Result<D::File> {
        let id = file.into();
        let mut waits = false;
        loop {
            if let Some(file) = self.open.borrow().by_id.get(&id) {
                return Ok(file.clone());
            }
            let removals = self.removals.get();
            match self.open_path(&self.path(id), OpenMode::Existing).await {
                Ok(file) => {
                    // It may be that of a file that has lost its name meanwhile.
                    if self.removals.get() == removals {
                        self.keep(id, file.clone());
                    }
                    return Ok(file);
                }
                Err(error) if is_exhausted(&error) => {
                    if !std::mem::replace(&mut waits, true) {
                        mark("waits for a descriptor");
                        tracing::warn!(
                            shard = self.params.shard.0,
                            "out of file descriptors, raise `ulimit -n`: waiting for one"
                        );
                    }
                    self.driver.sleep(RETRY_DELAY).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A handle of the file that a segment is in.
    pub(super) async fn open_segment(&self, held: &Held) -> io::Result<D::File> {
        match held.file() {
            Some(file) => self.open(file).await,
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Opens a file; where descriptors have run out, the ones kept here go first.
    pub(super) async fn open_path(&self, path: &str, mode: OpenMode) -> io::Result<D::File> {
        match self.driver.open(path, mode).await {
            Err(error) if self.shed(&error) => self.driver.open(path, mode).await,
            result => result,
        }
    }

    /// Closes what is kept if that is what an error asks for; says whether it helped.
    fn shed(&self, error: &io::Error) -> bool {
        let mut open = self.open.borrow_mut();
        let helps = is_exhausted(error) && !open.by_id.is_empty();
        if helps {
            mark("open files shed");
            open.by_id.clear();
            open.oldest.clear();
        }
        helps
    }

    /// Keeps a handle for later.
    pub(super) fn keep(&self, id: impl Into<FileId>, file: D::File) {
        let id = id.into();
        let mut open = self.open.borrow_mut();
        if open.by_id.insert(id, file).is_none() {
            open.oldest.push_back(id);
        }
        while open.by_id.len() > self.params.files_open_max {
            let Some(oldest) = open.oldest.pop_front() else {
                return;
            };
            open.by_id.remove(&oldest);
        }
    }

    /// Removes a file, and closes it: afterwards, for it may be opened until then.
    pub(super) async fn remove(&self, file: impl Into<FileId>) -> io::Result<()> {
        let id = file.into();
        let removed = self.driver.unlink(&self.path(id)).await;
        self.removals.set(self.removals.get() + 1);
        let mut open = self.open.borrow_mut();
        open.by_id.remove(&id);
        open.oldest.retain(|kept| *kept != id);
        removed
    }
}
