//! The segment files of one shard: names, and a bounded set of open handles.
//!
//! Invariants:
//! 1. A handle that was given out stays valid for as long as its holder keeps it, whatever the set
//!    forgets.
//! 2. A want of descriptors is no failure of the disk: a segment that exists is opened once there
//!    is one, and what is not there yet is made later.

use super::Params;
use crate::io::retry::is_exhausted;
use crate::io::{Driver, OpenMode};
use crate::marks::mark;
use crate::residency::Held;
use crate::types::NUMBER_MAX;
use std::cell::RefCell;
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

/// Opens files, and keeps some of them open.
pub(super) struct Files<D: Driver> {
    driver: D,
    params: Params,
    open: RefCell<Open<D::File>>,
}

struct Open<F> {
    by_number: BTreeMap<u64, F>,
    oldest: VecDeque<u64>,
}

impl<D: Driver> Files<D> {
    pub(super) fn new(driver: D, params: Params) -> Files<D> {
        let open = Open {
            by_number: BTreeMap::new(),
            oldest: VecDeque::new(),
        };
        Files {
            driver,
            params,
            open: RefCell::new(open),
        }
    }

    pub(super) fn path(&self, file: u64) -> String {
        self.params.path(&segment_name(file))
    }

    /// A handle of an existing file. Waits for as long as the process has no descriptor to spare.
    pub(super) async fn open(&self, number: u64) -> io::Result<D::File> {
        let mut waits = false;
        loop {
            if let Some(file) = self.open.borrow().by_number.get(&number) {
                return Ok(file.clone());
            }
            match self.open_path(&self.path(number), OpenMode::Existing).await {
                Ok(file) => {
                    self.keep(number, file.clone());
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
        let helps = is_exhausted(error) && !open.by_number.is_empty();
        if helps {
            mark("open files shed");
            open.by_number.clear();
            open.oldest.clear();
        }
        helps
    }

    /// Keeps a handle for later.
    pub(super) fn keep(&self, number: u64, file: D::File) {
        let mut open = self.open.borrow_mut();
        if open.by_number.insert(number, file).is_none() {
            open.oldest.push_back(number);
        }
        while open.by_number.len() > self.params.files_open_max {
            let Some(oldest) = open.oldest.pop_front() else {
                return;
            };
            open.by_number.remove(&oldest);
        }
    }

    /// Closes a file that is about to be removed.
    pub(super) fn forget(&self, number: u64) {
        let mut open = self.open.borrow_mut();
        open.by_number.remove(&number);
        open.oldest.retain(|kept| *kept != number);
    }
}
