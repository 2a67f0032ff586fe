//! Reading, writing, cutting, punching, cloning, and what a file looks like.

use super::Shared;
use super::nodes::{Node, Place};
use bytes::Bytes;
use fuser::{Errno, FileAttr, FileType, INodeNo};
use ringstore::{Error, ErrorKind, ExtentKind, PayloadId};
use std::fmt::Write;
use tokio::sync::RwLockReadGuard;

/// What a request comes to.
pub(crate) type Answer<T> = Result<T, Errno>;

/// How much of a payload is first asked for its extents; twice as much each time after.
const WINDOW_BYTES: u64 = 64 << 20;

/// Extents that are looked at to tell how much of a file is data. What is behind counts as data:
/// `stat` must not take longer the more a file was written to.
const EXTENTS_MAX: usize = 1024;

/// Largest size of a payload.
const SIZE_MAX: u64 = 1 << 62;

/// Modes of `fallocate`, which are Linux's.
const KEEP_SIZE: i32 = 1;
const PUNCH_HOLE: i32 = 2;
const ZERO_RANGE: i32 = 16;

/// `lseek`'s ways of looking for data and holes, which are Linux's.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// Extended attributes of a file.
pub(crate) const ATTRIBUTES: [&str; 3] = [
    "user.ringstore.id",
    "user.ringstore.residency",
    "user.ringstore.clone_source",
];

/// What the kernel is told of an error.
pub(crate) fn errno(error: Error) -> Errno {
    match error.kind() {
        ErrorKind::NotFound => Errno::ENOENT,
        ErrorKind::InvalidInput => Errno::EINVAL,
        ErrorKind::Full => Errno::ENOSPC,
        ErrorKind::Closed => Errno::ESHUTDOWN,
        _ => {
            // The kernel has one word for them all; whoever looks after the store needs more.
            tracing::warn!("a file could not be read or written: error={error}");
            Errno::EIO
        }
    }
}

/// Bytes of a payload, by where they are.
#[derive(Default)]
struct Residency {
    hole: u64,
    dirty: u64,
    local: u64,
    remote: u64,
}

/// The payload of a node, which stays its payload while this is held.
pub(crate) struct Held<'a>(RwLockReadGuard<'a, Place>);

impl Held<'_> {
    pub(crate) fn id(&self) -> Answer<&PayloadId> {
        match &*self.0 {
            Place::File(id) => Ok(id),
            Place::Folder(_) => Err(Errno::EISDIR),
            Place::Gone => Err(Errno::ESTALE),
        }
    }
}

pub(crate) async fn hold(node: &Node) -> Held<'_> {
    Held(node.place.read().await)
}

impl Shared {
    pub(crate) async fn read(&self, node: &Node, offset: u64, len: usize) -> Answer<Bytes> {
        let held = hold(node).await;
        let id = held.id()?;
        let chunks = self.store.read_at(id, offset, len).await.map_err(errno)?;
        Ok(chunks.into_bytes())
    }

    pub(crate) async fn write(&self, node: &Node, offset: u64, data: Bytes) -> Answer<()> {
        if offset + data.len() as u64 > SIZE_MAX {
            return Err(Errno::EFBIG);
        }
        let held = hold(node).await;
        let written = self.store.write_at(held.id()?, offset, data).await;
        written.map_err(errno)?;
        self.nodes.touch(node.number);
        Ok(())
    }

    pub(crate) async fn resize(&self, node: &Node, size: u64) -> Answer<()> {
        if size > SIZE_MAX {
            return Err(Errno::EFBIG);
        }
        let held = hold(node).await;
        let cut = self.store.truncate(held.id()?, size).await;
        cut.map_err(errno)?;
        self.nodes.touch(node.number);
        Ok(())
    }

    pub(crate) async fn sync(&self, node: &Node) -> Answer<()> {
        if node.is_folder {
            return self.store.flush_all().await.map_err(errno);
        }
        let held = hold(node).await;
        self.store.flush(held.id()?).await.map_err(errno)?;
        Ok(())
    }

    pub(crate) async fn allocate(
        &self,
        node: &Node,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Answer<()> {
        let end = offset.checked_add(len).filter(|end| *end <= SIZE_MAX);
        let end = end.ok_or(Errno::EFBIG)?;
        let held = hold(node).await;
        let id = held.id()?;
        match mode & !KEEP_SIZE {
            // Room is not set aside: a log has no place for a byte before it is written.
            0 => {}
            PUNCH_HOLE if mode & KEEP_SIZE != 0 => self.punch(id, offset, len).await?,
            ZERO_RANGE => self.punch(id, offset, len).await?,
            _ => return Err(Errno::EOPNOTSUPP),
        }
        if mode & KEEP_SIZE == 0 && end > self.size(id).await? {
            self.store.truncate(id, end).await.map_err(errno)?;
        }
        self.nodes.touch(node.number);
        Ok(())
    }

    async fn punch(&self, id: &PayloadId, offset: u64, len: u64) -> Answer<()> {
        self.store.punch_hole(id, offset, len).await.map_err(errno)
    }

    async fn size(&self, id: &PayloadId) -> Answer<u64> {
        self.store.size(id).await.map_err(errno)
    }

    /// The next data or hole at or behind an offset.
    pub(crate) async fn seek(&self, node: &Node, offset: i64, whence: i32) -> Answer<i64> {
        let for_hole = match whence {
            SEEK_DATA => false,
            SEEK_HOLE => true,
            _ => return Err(Errno::EINVAL),
        };
        let held = hold(node).await;
        let id = held.id()?;
        let size = self.size(id).await?;
        let mut at = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        if at >= size {
            return Err(Errno::ENXIO);
        }
        let mut window = WINDOW_BYTES;
        while at < size {
            let len = window.min(size - at);
            let extents = self.store.extents(id, at, len).await.map_err(errno)?;
            let mut found = extents.iter();
            let found = found.find(|extent| (extent.kind == ExtentKind::Hole) == for_hole);
            if let Some(extent) = found {
                return Ok(extent.offset as i64);
            }
            at += len;
            window *= 2;
        }
        // Behind the last byte there is a hole, always.
        match for_hole {
            true => Ok(size as i64),
            false => Err(Errno::ENXIO),
        }
    }

    /// Clones a file where that is what copying the range would come to.
    pub(crate) async fn clone_file(
        &self,
        source: (&Node, u64),
        target: (&Node, u64),
        len: u64,
    ) -> Answer<u32> {
        // The kernel copies the bytes itself then.
        let otherwise = Errno::EOPNOTSUPP;
        if (source.1, target.1) != (0, 0) || source.0.number == target.0.number {
            return Err(otherwise);
        }
        // In the order of their numbers, as whoever moves two files locks them.
        let (first, second) = match source.0.number < target.0.number {
            true => (hold(source.0).await, hold(target.0).await),
            false => {
                let target = hold(target.0).await;
                (hold(source.0).await, target)
            }
        };
        let (from, to) = (first.id()?, second.id()?);
        let size = self.size(from).await?;
        let told = u32::try_from(size).map_err(|_| otherwise)?;
        if size == 0 || size > len || self.size(to).await? > size {
            return Err(otherwise);
        }
        self.store.copy(from, to).await.map_err(errno)?;
        let from = from.clone();
        self.nodes
            .mark(target.0.number, |marks| marks.clone_of = Some(from));
        self.nodes.touch(target.0.number);
        Ok(told)
    }

    /// Where a payload's bytes are. With a limit, what is behind so many extents counts as local.
    async fn residency(&self, id: &PayloadId, size: u64, extents_max: usize) -> Answer<Residency> {
        let mut found = Residency::default();
        let (mut at, mut window, mut count) = (0, WINDOW_BYTES, 0);
        while at < size {
            if count > extents_max {
                found.local += size - at;
                break;
            }
            let len = window.min(size - at);
            let extents = self.store.extents(id, at, len).await.map_err(errno)?;
            count += extents.len();
            for extent in extents {
                *match extent.kind {
                    ExtentKind::Hole => &mut found.hole,
                    ExtentKind::Dirty => &mut found.dirty,
                    ExtentKind::Remote => &mut found.remote,
                    _ => &mut found.local,
                } += extent.len;
            }
            at += len;
            window *= 2;
        }
        Ok(found)
    }

    /// The value of an extended attribute.
    pub(crate) async fn attribute(&self, node: &Node, name: &str) -> Answer<Vec<u8>> {
        let held = hold(node).await;
        let Ok(id) = held.id() else {
            return Err(Errno::ENODATA);
        };
        if name == ATTRIBUTES[0] {
            return Ok(id.as_str().as_bytes().to_vec());
        }
        if name == ATTRIBUTES[1] {
            let size = self.size(id).await?;
            let found = self.residency(id, size, usize::MAX).await?;
            let mut text = String::new();
            let Residency {
                hole,
                dirty,
                local,
                remote,
            } = found;
            let written = write!(
                text,
                "hole={hole} dirty={dirty} local={local} remote={remote}"
            );
            written.expect("a string can be written to");
            return Ok(text.into_bytes());
        }
        let marks = self.nodes.marks(node.number);
        let source = marks.and_then(|marks| marks.clone_of);
        match source {
            Some(source) if name == ATTRIBUTES[2] => Ok(source.as_str().as_bytes().to_vec()),
            _ => Err(Errno::ENODATA),
        }
    }

    /// Blocks of 4 KiB, those of them that are free, and files.
    pub(crate) async fn space(&self) -> Answer<(u64, u64, u64)> {
        let stats = self.store.stats().await.map_err(errno)?;
        let below = rustix::fs::statvfs(&self.dir).map_err(|_| Errno::EIO)?;
        let (mut all, mut free) = (
            below.f_blocks * below.f_frsize,
            below.f_bavail * below.f_frsize,
        );
        if stats.local_disk_max > 0 {
            let left = stats.local_disk_max.saturating_sub(stats.live_bytes);
            (all, free) = (stats.local_disk_max, free.min(left));
        }
        Ok((all / 4096, free / 4096, stats.file_count))
    }

    /// What the kernel is told of a file or folder.
    pub(crate) async fn look(&self, node: &Node) -> Answer<FileAttr> {
        let marks = self.nodes.marks(node.number).ok_or(Errno::ESTALE)?;
        let mut look = FileAttr {
            ino: INodeNo(node.number),
            size: 4096,
            blocks: 0,
            atime: marks.accessed,
            mtime: marks.modified,
            ctime: marks.changed,
            crtime: marks.changed,
            kind: FileType::Directory,
            perm: marks.mode,
            nlink: 2,
            uid: marks.uid,
            gid: marks.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        if node.is_folder {
            return Ok(look);
        }
        let held = hold(node).await;
        let id = held.id()?;
        let size = self.size(id).await?;
        let found = self.residency(id, size, EXTENTS_MAX).await?;
        look.kind = FileType::RegularFile;
        look.nlink = 1;
        look.size = size;
        look.blocks = (found.dirty + found.local + found.remote).div_ceil(512);
        Ok(look)
    }
}
