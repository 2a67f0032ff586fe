//! The kernel's requests in, each a task of its own; the answers out.
//!
//! Invariants:
//! 1. Whoever reads from the kernel waits for nothing but room for another request.
//! 2. Every request is answered once. The kernel waits for that before it sends what depends on it.

use super::files::{ATTRIBUTES, Answer};
use super::nodes::Node;
use super::{Shared, clock};
use bytes::Bytes;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// How long the kernel may believe what it was told: other doors change payloads, too.
const TTL: Duration = Duration::from_secs(1);

/// Longest write of the kernel; `REQUESTS_MAX` of them may be held.
const WRITE_BYTES_MAX: u32 = 1 << 20;

/// Names of a folder, as they were when it was opened.
#[derive(Default)]
pub(crate) struct Listings {
    open: Mutex<(u64, BTreeMap<u64, Listing>)>,
}

type Listing = Arc<Vec<(String, FileType)>>;

impl Listings {
    fn add(&self, names: Vec<(String, FileType)>) -> FileHandle {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.0 += 1;
        let handle = open.0;
        open.1.insert(handle, Arc::new(names));
        FileHandle(handle)
    }

    fn find(&self, handle: FileHandle) -> Option<Listing> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.1.get(&handle.0).cloned()
    }

    fn remove(&self, handle: FileHandle) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.1.remove(&handle.0);
    }
}

pub(crate) struct Driver(pub(crate) Arc<Shared>);

impl Driver {
    /// Runs a request beside the others, when there is room for it.
    fn run<F>(&self, work: impl FnOnce(Arc<Shared>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let shared = &self.0;
        let permit = shared.permits.clone().acquire_owned();
        let permit = shared.runtime.block_on(permit);
        let work = work(shared.clone());
        shared.runtime.spawn(async move {
            work.await;
            drop(permit);
        });
    }

    /// Runs a request that is answered with an entry.
    fn enter<F>(&self, reply: ReplyEntry, find: impl FnOnce(Arc<Shared>) -> F)
    where
        F: Future<Output = Answer<Arc<Node>>> + Send + 'static,
    {
        self.run(|shared| {
            let found = find(shared.clone());
            async move {
                match entered(&shared, found.await).await {
                    Ok((_, look)) => reply.entry(&TTL, &look, Generation(0)),
                    Err(error) => reply.error(error),
                }
            }
        });
    }

    /// Runs a request that is answered with success or failure.
    fn act<F>(&self, reply: ReplyEmpty, act: impl FnOnce(Arc<Shared>) -> F)
    where
        F: Future<Output = Answer<()>> + Send + 'static,
    {
        self.run(|shared| {
            let acting = act(shared);
            async move {
                match acting.await {
                    Ok(()) => reply.ok(),
                    Err(error) => reply.error(error),
                }
            }
        });
    }
}

/// A node that was found, with its looks; one that is gone again is not counted as known.
async fn entered(shared: &Shared, node: Answer<Arc<Node>>) -> Answer<(Arc<Node>, FileAttr)> {
    let node = node?;
    match shared.look(&node).await {
        Ok(look) => Ok((node, look)),
        Err(error) => {
            shared.nodes.forget(node.number, 1);
            Err(error)
        }
    }
}

fn time(given: TimeOrNow) -> SystemTime {
    match given {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => clock::now(),
    }
}

fn put_names(names: &[(String, FileType)], offset: u64, reply: &mut ReplyDirectory) {
    let dots = [(".", FileType::Directory), ("..", FileType::Directory)];
    let dots = dots.into_iter();
    let all = dots.chain(names.iter().map(|(name, kind)| (name.as_str(), *kind)));
    for (index, (name, kind)) in all.enumerate().skip(offset as usize) {
        // The number that says that there is none yet: `stat` has the right one.
        const UNKNOWN: INodeNo = INodeNo(0xffff_ffff);
        if reply.add(UNKNOWN, index as u64 + 1, kind, name) {
            return;
        }
    }
}

impl Filesystem for Driver {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_PARALLEL_DIROPS,
        ] {
            // An old kernel does without.
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        let _ = config.set_max_background(super::REQUESTS_MAX as u16);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.enter(reply, |shared| async move {
            shared.lookup(parent.0, &name).await
        });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        self.0.nodes.forget(ino.0, lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.run(|shared| async move {
            let looking = async {
                let node = shared.node(ino.0)?;
                shared.look(&node).await
            };
            match looking.await {
                Ok(look) => reply.attr(&TTL, &look),
                Err(error) => reply.error(error),
            }
        });
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        changed: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _created: Option<SystemTime>,
        _change_time: Option<SystemTime>,
        _backed_up: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let now = clock::now();
        self.run(|shared| async move {
            let setting = async {
                let node = shared.node(ino.0)?;
                if let Some(size) = size {
                    shared.resize(&node, size).await?;
                }
                shared.nodes.mark(ino.0, |marks| {
                    marks.mode = mode.map_or(marks.mode, |mode| (mode & 0o7777) as u16);
                    marks.uid = uid.unwrap_or(marks.uid);
                    marks.gid = gid.unwrap_or(marks.gid);
                    marks.accessed = accessed.map_or(marks.accessed, time);
                    marks.modified = modified.map_or(marks.modified, time);
                    marks.changed = changed.unwrap_or(now);
                });
                shared.look(&node).await
            };
            match setting.await {
                Ok(look) => reply.attr(&TTL, &look),
                Err(error) => reply.error(error),
            }
        });
    }

    fn mkdir(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let name = name.to_owned();
        self.enter(reply, |shared| async move {
            let node = shared.make_folder(parent.0, &name).await?;
            let mode = (mode & !umask & 0o7777) as u16;
            shared.nodes.mark(node.number, |marks| marks.mode = mode);
            Ok(node)
        });
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.act(reply, |shared| async move {
            shared.unlink(parent.0, &name).await
        });
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.act(reply, |shared| async move {
            shared.remove_folder(parent.0, &name).await
        });
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        self.act(reply, |shared| async move {
            let (from, to) = (
                (parent.0, name.as_os_str()),
                (new_parent.0, new_name.as_os_str()),
            );
            shared.rename(from, to, flags).await
        });
    }

    fn open(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.0.nodes.opened(ino.0);
        reply.opened(FileHandle(ino.0), FopenFlags::empty());
    }

    fn create(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = name.to_owned();
        let new = flags & nix::fcntl::OFlag::O_EXCL.bits() != 0;
        self.run(|shared| async move {
            let node = shared.create(parent.0, &name, new).await;
            match entered(&shared, node).await {
                Ok((node, mut look)) => {
                    look.perm = (mode & !umask & 0o7777) as u16;
                    shared
                        .nodes
                        .mark(node.number, |marks| marks.mode = look.perm);
                    shared.nodes.opened(node.number);
                    let handle = FileHandle(node.number);
                    reply.created(&TTL, &look, Generation(0), handle, FopenFlags::empty());
                }
                Err(error) => reply.error(error),
            }
        });
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.run(|shared| async move {
            let reading = async {
                let node = shared.node(ino.0)?;
                shared.read(&node, offset, size as usize).await
            };
            match reading.await {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(error),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = Bytes::copy_from_slice(data);
        self.run(|shared| async move {
            let len = data.len() as u32;
            let writing = async {
                let node = shared.node(ino.0)?;
                shared.write(&node, offset, data).await
            };
            match writing.await {
                Ok(()) => reply.written(len),
                Err(error) => reply.error(error),
            }
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Closing promises nothing, and what was written is with the store already.
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.act(reply, |shared| async move { shared.release(ino.0).await });
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.act(reply, |shared| async move {
            let node = shared.node(ino.0)?;
            shared.sync(&node).await
        });
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.run(|shared| async move {
            match shared.listing(ino.0).await {
                Ok(names) => reply.opened(shared.listings.add(names), FopenFlags::empty()),
                Err(error) => reply.error(error),
            }
        });
    }

    fn readdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        match self.0.listings.find(handle) {
            Some(names) => {
                put_names(&names, offset, &mut reply);
                reply.ok();
            }
            None => reply.error(Errno::EBADF),
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.0.listings.remove(handle);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.act(reply, |shared| async move {
            let node = shared.node(ino.0)?;
            shared.sync(&node).await
        });
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.run(|shared| async move {
            match shared.space().await {
                Ok((blocks, free, files)) => {
                    reply.statfs(blocks, free, free, files, u64::MAX >> 1, 4096, 255, 4096);
                }
                Err(error) => reply.error(error),
            }
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.to_string_lossy().into_owned();
        if !ATTRIBUTES.contains(&name.as_str()) {
            // The kernel asks for those of security with every write.
            return reply.error(Errno::ENODATA);
        }
        self.run(|shared| async move {
            let asking = async {
                let node = shared.node(ino.0)?;
                shared.attribute(&node, &name).await
            };
            put_attribute(asking.await, size, reply);
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.run(|shared| async move {
            let mut names = Vec::new();
            for name in ATTRIBUTES {
                if let Ok(node) = shared.node(ino.0)
                    && shared.attribute(&node, name).await.is_ok()
                {
                    names.extend_from_slice(name.as_bytes());
                    names.push(0);
                }
            }
            put_attribute(Ok(names), size, reply);
        });
    }

    fn setxattr(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn fallocate(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.act(reply, |shared| async move {
            let node = shared.node(ino.0)?;
            shared.allocate(&node, offset, len, mode).await
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.run(|shared| async move {
            let seeking = async {
                let node = shared.node(ino.0)?;
                shared.seek(&node, offset, whence).await
            };
            match seeking.await {
                Ok(found) => reply.offset(found),
                Err(error) => reply.error(error),
            }
        });
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        source: INodeNo,
        _source_handle: FileHandle,
        source_offset: u64,
        target: INodeNo,
        _target_handle: FileHandle,
        target_offset: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.run(|shared| async move {
            let cloning = async {
                let (from, to) = (shared.node(source.0)?, shared.node(target.0)?);
                let (from, to) = ((&*from, source_offset), (&*to, target_offset));
                shared.clone_file(from, to, len).await
            };
            match cloning.await {
                Ok(len) => reply.written(len),
                Err(error) => reply.error(error),
            }
        });
    }
}

fn put_attribute(value: Answer<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match value {
        Err(error) => reply.error(error),
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
    }
}
