//! What the drivers for real disks have in common: paths, how files are opened, when a transfer is
//! whole.
//!
//! Invariants:
//! 1. A path that passed [`check_path`] is relative and has no `..`; it is resolved beneath the
//!    store's directory without following a single link, so nothing outside is ever opened.
//! 2. A file is opened past the page cache unless its file system cannot do that, and then it is
//!    said aloud once.
//! 3. A transfer is begun anew [`TRIES_MAX`] times at most.
//!
//! Deliberately not here: waiting. The calls here either never block for long, or are made by those
//! who may block.

use crate::error::{Error, ErrorKind, Result};
use crate::io::{DirEntry, OpenMode};
use crate::types::{PAGE, page_floor};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Mode of the files that are made here: the owner reads and writes.
pub(super) const FILE_MODE: u32 = 0o600;

/// Mode of the directories that are made here.
pub(super) const DIR_MODE: u32 = 0o700;

/// How often a transfer is begun anew after EAGAIN, EINTR or a short count, before it fails.
///
/// The kernel moves up to 2 GiB a call, so a transfer that is healthy needs one or two.
pub(super) const TRIES_MAX: u32 = 128;

/// What one call moves at most: MAX_RW_COUNT, INT_MAX cut to pages.
pub(super) const TRANSFER_BYTES_MAX: usize = 0x7fff_f000;

/// Magic number of tmpfs; it takes O_DIRECT since Linux 6.6 and ignores it.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Nothing outside of the directory, no links on the way, whatever somebody puts there.
pub(super) const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// To open a directory in which a name is made, changed or synced.
pub(super) const DIR_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// The store's directory.
pub(super) struct Root {
    fd: OwnedFd,
    /// Whether files are opened with O_DIRECT.
    direct: AtomicBool,
    /// Whether this one says aloud what it cannot do: one shard of a store does.
    warns: bool,
}

/// What is known of a file once it is open.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) len: u64,
}

impl Root {
    pub(super) fn open(dir: &Path, warns: bool) -> Result<Root> {
        let fd = rustix::fs::openat(rustix::fs::CWD, dir, DIR_FLAGS, Mode::empty());
        let fd = fd.map_err(|errno| {
            let message = format!(
                "the store's directory cannot be opened: dir={} cause={errno}",
                dir.display()
            );
            Error::with_source(kind_of(errno.into()), message, io::Error::from(errno))
        })?;
        let root = Root {
            fd,
            direct: AtomicBool::new(true),
            warns,
        };
        let stats = rustix::fs::fstatfs(&root.fd);
        if stats.is_ok_and(|stats| stats.f_type as u64 == TMPFS_MAGIC) {
            root.give_up_direct("it lies in memory");
        }
        Ok(root)
    }

    pub(super) fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// From now on files are opened buffered.
    pub(super) fn give_up_direct(&self, why: &str) {
        if self.direct.swap(false, Ordering::Relaxed) && self.warns {
            tracing::warn!(
                why,
                "the store's file system has no direct I/O: going through the page cache"
            );
        }
    }

    /// How a file is opened in this mode.
    pub(super) fn flags(&self, mode: OpenMode) -> OFlags {
        let mut flags = OFlags::RDWR | OFlags::CLOEXEC;
        flags.set(OFlags::CREATE | OFlags::EXCL, mode == OpenMode::CreateNew);
        flags.set(OFlags::DIRECT, self.is_direct());
        flags
    }

    /// After a failed open: the mode to try once more, if it failed for the want of direct I/O.
    ///
    /// The kernel refuses O_DIRECT only after it has made the file, so the second try must find it.
    pub(super) fn retry_mode(&self, error: &io::Error, flags: OFlags) -> Option<OFlags> {
        let refused = error.raw_os_error() == Some(nix::libc::EINVAL);
        if !refused || !flags.contains(OFlags::DIRECT) {
            return None;
        }
        self.give_up_direct("it refuses O_DIRECT");
        Some(flags - OFlags::DIRECT - OFlags::EXCL)
    }

    /// Checks that an opened file is one that can be used, and learns its length.
    pub(super) fn inspect(&self, file: BorrowedFd<'_>) -> io::Result<Facts> {
        let mask = StatxFlags::TYPE | StatxFlags::SIZE | StatxFlags::DIOALIGN;
        let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, mask)?;
        if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::RegularFile {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        if stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 {
            self.check_alignment(file, stat.stx_dio_mem_align, stat.stx_dio_offset_align)?;
        }
        Ok(Facts { len: stat.stx_size })
    }

    /// Compares what direct I/O on a file asks for with what we give, which is whole pages.
    fn check_alignment(&self, file: BorrowedFd<'_>, memory: u32, offset: u32) -> io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(file)?;
        if !flags.contains(OFlags::DIRECT) {
            return Ok(());
        }
        if memory == 0 || offset == 0 {
            self.give_up_direct("it says that it cannot");
            rustix::fs::fcntl_setfl(file, flags - OFlags::DIRECT)?;
            return Ok(());
        }
        if memory.max(offset) as usize > PAGE {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "the disk's blocks are too large, move the store to one with blocks of at \
                     most {PAGE} bytes: memory_align={memory} offset_align={offset}"
                ),
            ));
        }
        Ok(())
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What the caller should do about a failure to get at the store's directory.
fn kind_of(error: io::Error) -> ErrorKind {
    match error.raw_os_error() {
        Some(nix::libc::EMFILE | nix::libc::ENFILE | nix::libc::ENOMEM) => ErrorKind::Full,
        Some(nix::libc::EIO) => ErrorKind::Poisoned,
        _ => ErrorKind::InvalidInput,
    }
}

/// Refuses what could lead out of the store's directory, or is no name at all.
pub(super) fn check_path(path: &str) -> io::Result<()> {
    let fine = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    match path.split('/').all(fine) {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("not a path within the store's directory: path={path:?}"),
        )),
    }
}

/// The same for a directory, where the empty path stands for the store's.
pub(super) fn check_dir_path(path: &str) -> io::Result<()> {
    if path.is_empty() {
        return Ok(());
    }
    check_path(path)
}

/// The directory of a path, empty for the store's, and the name in it.
pub(super) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Asserts what every transfer must keep: whole pages, at least one.
pub(super) fn assert_aligned(offset: u64, bytes: &[u8]) {
    assert!(!bytes.is_empty(), "an empty transfer");
    assert!(
        bytes.len().is_multiple_of(PAGE),
        "the length is not whole pages"
    );
    assert!(
        offset.is_multiple_of(PAGE as u64),
        "the offset is not whole pages"
    );
    assert!(
        bytes.as_ptr().addr().is_multiple_of(PAGE),
        "the memory is not page-aligned"
    );
}

/// The names in an open directory, sorted. Names that are not UTF-8 are nobody's here, and left
/// out.
pub(super) fn list(dir: BorrowedFd<'_>) -> io::Result<Vec<DirEntry>> {
    let mut entries = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        if name == "." || name == ".." {
            continue;
        }
        let stat = match rustix::fs::statat(dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // It was unlinked between the two calls.
            Err(rustix::io::Errno::NOENT) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let len = match is_dir {
            true => 0,
            false => u64::try_from(stat.st_size).unwrap_or(0),
        };
        let name = name.to_owned();
        entries.push(DirEntry { name, len, is_dir });
    }
    entries.sort();
    Ok(entries)
}

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    Read,
    Write,
}

/// What a call's result means for its transfer.
pub(super) enum Step {
    /// Call again, from [`Transfer::start`].
    Again,
    Done,
    Failed(io::Error),
}

/// How far a transfer has come.
#[derive(Debug)]
pub(super) struct Transfer {
    direction: Direction,
    len: usize,
    done: usize,
    tries: u32,
}

impl Transfer {
    pub(super) fn new(direction: Direction, len: usize) -> Transfer {
        Transfer {
            direction,
            len,
            done: 0,
            tries: 0,
        }
    }

    /// Where in the buffer the next call begins; direct I/O begins at a page.
    pub(super) fn start(&self) -> usize {
        page_floor(self.done)
    }

    /// How much the next call asks for.
    pub(super) fn piece(&self) -> usize {
        (self.len - self.start()).min(TRANSFER_BYTES_MAX)
    }

    /// Takes the result of a call: the bytes that it moved, or its error.
    pub(super) fn note(&mut self, result: io::Result<usize>) -> Step {
        self.tries += 1;
        let moved = match result {
            Ok(moved) => moved,
            Err(error) if is_passing(&error) && self.tries < TRIES_MAX => return Step::Again,
            Err(error) => return Step::Failed(error),
        };
        let reached = self.start() + moved;
        if reached >= self.len {
            return Step::Done;
        }
        // The page that a short call broke off in is asked for once more; a file that ends there
        // gives the same again.
        if reached <= self.done || self.tries >= TRIES_MAX {
            return Step::Failed(self.stalled());
        }
        self.done = reached;
        Step::Again
    }

    fn stalled(&self) -> io::Error {
        let (kind, what) = match self.direction {
            Direction::Read => (io::ErrorKind::UnexpectedEof, "the file ends too early"),
            Direction::Write => (io::ErrorKind::WriteZero, "the write makes no progress"),
        };
        let message = format!("{what}: bytes={} of={}", self.done, self.len);
        io::Error::new(kind, message)
    }
}

/// Whether the same call may succeed if it is made again.
pub(super) fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(nix::libc::EAGAIN | nix::libc::EINTR)
    )
}

/// Random numbers: a keyed hash of a counter, with a key from the operating system.
pub(super) struct Dice {
    key: RandomState,
    thrown: Cell<u64>,
}

impl Dice {
    pub(super) fn new() -> Dice {
        Dice {
            key: RandomState::new(),
            thrown: Cell::new(0),
        }
    }

    pub(super) fn throw(&self) -> u64 {
        let count = self.thrown.get();
        self.thrown.set(count.wrapping_add(1));
        self.key.hash_one(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for path in ["a", "a/b", "a.b/c..d", "..."] {
            assert!(check_path(path).is_ok(), "{path}");
        }
        for path in [
            "", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/..", "./a", "a\0b",
        ] {
            assert!(check_path(path).is_err(), "{path:?}");
        }
        assert!(check_dir_path("").is_ok());
        assert_eq!(split("a/b/c"), ("a/b", "c"));
        assert_eq!(split("c"), ("", "c"));
    }

    /// What becomes of a transfer of three pages, given the results of its calls.
    fn run(direction: Direction, results: &[io::Result<usize>]) -> (usize, Step) {
        let mut transfer = Transfer::new(direction, 3 * PAGE);
        for (calls, result) in results.iter().enumerate() {
            let result = match result {
                Ok(moved) => Ok(*moved),
                Err(error) => Err(io::Error::from_raw_os_error(error.raw_os_error().unwrap())),
            };
            match transfer.note(result) {
                Step::Again => {}
                step => return (calls + 1, step),
            }
        }
        (results.len(), Step::Again)
    }

    #[test]
    fn transfers_are_continued_and_end() {
        let eagain = || Err(io::Error::from_raw_os_error(nix::libc::EAGAIN));
        assert!(matches!(
            run(Direction::Read, &[Ok(3 * PAGE)]),
            (1, Step::Done)
        ));
        let calls = [Ok(PAGE), eagain(), Ok(PAGE + 7), Ok(PAGE)];
        assert!(matches!(run(Direction::Write, &calls), (4, Step::Done)));

        let (calls, step) = run(Direction::Read, &[Ok(PAGE + 7), Ok(7)]);
        let Step::Failed(error) = step else {
            panic!("a file that ends")
        };
        assert_eq!((calls, error.kind()), (2, io::ErrorKind::UnexpectedEof));

        let (calls, step) = run(Direction::Write, &[Ok(0)]);
        let Step::Failed(error) = step else {
            panic!("no progress")
        };
        assert_eq!((calls, error.kind()), (1, io::ErrorKind::WriteZero));

        let (calls, step) = run(
            Direction::Read,
            &std::array::from_fn::<_, 500, _>(|_| eagain()),
        );
        let Step::Failed(error) = step else {
            panic!("no end")
        };
        assert_eq!((calls, error.kind()), (128, io::ErrorKind::WouldBlock));
    }

    #[test]
    fn dice_differ() {
        let (one, other) = (Dice::new(), Dice::new());
        assert_ne!(one.throw(), one.throw());
        assert_ne!(one.throw(), other.throw());
    }
}
