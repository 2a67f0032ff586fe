//! The one door to the kernel: time, tasks, randomness and files come through a [`Driver`].
//!
//! The shard's code is generic over it, so that the very same code runs on io_uring, on a pool of
//! blocking threads, on two runtimes of others, and in the simulator, where a seed decides
//! everything.
//!
//! Rules that every driver keeps, and the conformance suite (`io::suite`) checks:
//! 1. Buffers are owned by the driver from the first poll of an operation to its completion.
//!    Dropping the future forgets the operation; its buffer comes home with the completion.
//! 2. A completed write is visible, not durable. `sync` makes durable what had *completed* before
//!    it was called; a write with [`Durability::Synced`] makes itself durable, nothing else.
//! 3. A created, renamed or unlinked name is durable only after `sync_dir` of its directory.
//! 4. Short transfers are continued and EAGAIN/EINTR resubmitted here, bounded; callers see all or
//!    an error.
//! 5. Paths are relative to the store's directory and never leave it; files are made 0600,
//!    directories 0700.
//! 6. An operation is submitted at its first poll.

mod beneath;
pub(crate) mod clock;
mod disk;
pub(crate) mod executor;
#[cfg(feature = "glommio")]
mod glommio;
#[cfg(any(feature = "glommio", feature = "tokio-uring"))]
mod hosted;
pub(crate) mod launch;
pub(crate) mod lock;
mod pulse;
pub(crate) mod retry;
#[cfg(feature = "sim")]
#[allow(
    dead_code,
    reason = "a disk's hands and figures are for tests of all kinds, here and later"
)]
pub(crate) mod sim;
#[cfg(test)]
pub(crate) mod suite;
mod threads;
#[cfg(feature = "tokio-uring")]
mod tokio_uring;
mod uring;

use crate::buf::{AlignedBuf, BufPool};
use crate::types::Nanos;
use bytes::Bytes;
use std::future::Future;
use std::io;
use std::time::Duration;

pub(crate) use pulse::Load;

/// How a file is opened. All of them read and write, past the page cache where the file system can.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OpenMode {
    /// It must exist.
    Existing,
    /// It must not exist; it is made.
    CreateNew,
}

/// Whether a write is durable when it completes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Durability {
    /// Visible; durable after a later `sync`.
    Visible,
    /// Durable, as if by RWF_DSYNC.
    Synced,
}

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct DirEntry {
    pub(crate) name: String,
    /// Length in bytes; 0 for a directory.
    pub(crate) len: u64,
    pub(crate) is_dir: bool,
}

/// A shard's access to the world. One per shard; handles are cheap to clone and stay on its thread.
pub(crate) trait Driver: Clone + 'static {
    type File: DriverFile;

    /// Its name, as stats and the log show it.
    fn name(&self) -> &'static str;

    /// Monotonic time.
    fn now(&self) -> Nanos;

    /// When the loop's pass began that runs now: time for nothing, and as old as the pass.
    fn pass(&self) -> Nanos;

    /// What the loop has done so far.
    fn load(&self) -> Load;

    /// Completes no earlier than `span` from its first poll.
    fn sleep(&self, span: Duration) -> impl Future<Output = ()> + 'static;

    /// Starts a task on this shard's thread. It runs until it is done or the driver is dropped.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);

    /// A random number; in the simulator, from the seed.
    fn random(&self) -> u64;

    /// Memory that this driver reads into fastest.
    fn pool(&self) -> &BufPool;

    fn open(
        &self,
        path: &str,
        mode: OpenMode,
    ) -> impl Future<Output = io::Result<Self::File>> + 'static;

    /// Makes a directory; fine if it is there.
    fn create_dir(&self, path: &str) -> impl Future<Output = io::Result<()>> + 'static;

    /// The names in a directory, sorted. The empty path is the store's directory.
    fn list(&self, path: &str) -> impl Future<Output = io::Result<Vec<DirEntry>>> + 'static;

    /// Gives a file another name, replacing what had it.
    fn rename(&self, from: &str, to: &str) -> impl Future<Output = io::Result<()>> + 'static;

    fn unlink(&self, path: &str) -> impl Future<Output = io::Result<()>> + 'static;

    /// Makes the names in a directory durable. The empty path is the store's directory.
    fn sync_dir(&self, path: &str) -> impl Future<Output = io::Result<()>> + 'static;
}

/// An open file; clones share it, the last one closes it.
pub(crate) trait DriverFile: Clone + 'static {
    /// Fills `buf` (a whole number of pages) from `offset` (a multiple of the page size).
    ///
    /// Reaching the end of the file first is `UnexpectedEof`.
    fn read(
        &self,
        offset: u64,
        buf: AlignedBuf,
    ) -> impl Future<Output = io::Result<AlignedBuf>> + 'static;

    /// Writes `bytes`, which must be page-aligned in memory, length and offset.
    fn write(
        &self,
        offset: u64,
        bytes: Bytes,
        durability: Durability,
    ) -> impl Future<Output = io::Result<()>> + 'static;

    /// Makes durable every write that had completed before the call.
    fn sync(&self) -> impl Future<Output = io::Result<()>> + 'static;

    /// Reserves space for `[0, len)` and makes that the file's length, if it was less.
    fn allocate(&self, len: u64) -> impl Future<Output = io::Result<()>> + 'static;

    /// Length in bytes, as of opening, allocating and writing through this handle.
    fn len(&self) -> u64;
}
